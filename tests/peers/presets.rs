//! The type of every tensor against llama-quantize's own choice (tests/golden/llama-quantize-types.json), for models of
//! every kind that the mixture rules tell apart, every preset, with and without an importance matrix.

use quantize::quant::GgmlType;
use quantize::quant::presets::{self, Candidate, ModelFacts, Request};
use regex::Regex;
use serde_json::Value;

fn number(v: &Value) -> usize {
    v.as_u64().unwrap() as usize
}

/// Name and shape of every tensor of a made-up model, as the script that made the expectations has them.
fn tensors(model: &Value) -> Vec<(String, Vec<usize>)> {
    let (cols, layers, experts) = (number(&model["cols"]), number(&model["layers"]), number(&model["experts"]));
    let mut out = Vec::new();
    for part in model["parts"].as_str().unwrap().split(' ') {
        let shape = match part {
            _ if part.contains("norm") || part.ends_with("inp_shexp") => vec![cols],
            "ffn_gate_inp" => vec![experts, cols],
            _ if part.ends_with("_exps") => vec![experts, 2, cols],
            _ => vec![2, cols],
        };
        match part {
            "token_embd" | "output_norm" | "output" => out.push((format!("{part}.weight"), shape)),
            _ => out.extend((0..layers).map(|i| (format!("blk.{i}.{part}.weight"), shape.clone()))),
        }
    }
    out
}

fn request(preset: &str, flags: &Value) -> Request {
    let preset = presets::find(preset).unwrap();
    let mut r =
        Request { preset, pure: false, leave_output: false, output: None, embedding: None, overrides: Vec::new() };
    let mut flags = flags.as_array().unwrap().iter().map(|f| f.as_str().unwrap());
    let ty = |name: &str| GgmlType::from_name(name).unwrap();
    while let Some(flag) = flags.next() {
        match flag {
            "--pure" => r.pure = true,
            "--leave-output-tensor" => r.leave_output = true,
            "--output-tensor-type" => r.output = flags.next().map(ty),
            "--token-embedding-type" => r.embedding = flags.next().map(ty),
            "--tensor-type" => {
                let (regex, name) = flags.next().unwrap().split_once('=').unwrap();
                r.overrides.push((Regex::new(regex).unwrap(), ty(name)));
            }
            other => panic!("{other}"),
        }
    }
    r
}

/// `Q6_K*4 Q4_K*28` at `index`.
fn in_runs(runs: &str, mut index: usize) -> &str {
    for run in runs.split(' ') {
        let (ty, n) = run.split_once('*').unwrap();
        let n: usize = n.parse().unwrap();
        if index < n {
            return ty;
        }
        index -= n;
    }
    panic!("'{runs}' is too short")
}

#[test]
fn types_equal_those_of_llama_quantize() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama-quantize-types.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for (model_name, model) in golden["models"].as_object().unwrap() {
        let tensors = tensors(model);
        let candidates: Vec<Candidate> = tensors
            .iter()
            .map(|(name, shape)| {
                let f32 = shape.len() == 1 || name.contains("ffn_gate_inp");
                Candidate { name, shape, kept: if f32 { GgmlType::F32 } else { GgmlType::F16 } }
            })
            .collect();
        for preset in presets::PRESETS.iter().map(|p| p.name) {
            // llama-quantize ignores --tensor-type where the default type is a plain one; here it holds for every preset.
            let plain = matches!(preset, "F32" | "F16" | "BF16");
            if plain && model["flags"].as_array().unwrap().iter().any(|f| f == "--tensor-type") {
                continue;
            }
            for has_imatrix in [false, true] {
                let types = &model["types"];
                let with = &types[format!("{preset} imatrix").as_str()];
                let expected = if has_imatrix && !with.is_null() { with } else { &types[preset] };
                // llama-quantize refuses presets of 64 and 128 weights a block where they do not divide the rows.
                let Some(rest) = expected["rest"].as_str() else {
                    assert!(expected.is_null() && matches!(preset, "Q1_0" | "Q2_0"), "{model_name} {preset}");
                    continue;
                };
                let facts = ModelFacts {
                    arch: model["arch"].as_str().unwrap(),
                    layers: number(&model["layers"]),
                    heads: number(&model["heads"]),
                    kv_heads: number(&model["kv_heads"]),
                    experts: number(&model["experts"]),
                    has_imatrix,
                };
                let (choices, _) = presets::choose(&request(preset, &model["flags"]), &facts, &candidates);
                for (candidate, choice) in candidates.iter().zip(&choices) {
                    let name = candidate.name;
                    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                        Some((layer, part)) => (layer.parse().unwrap(), part),
                        None => (0, name),
                    };
                    let want = match expected[part].as_str() {
                        Some(runs) => in_runs(runs, layer),
                        None if candidate.kept == GgmlType::F32 => "F32",
                        None => rest,
                    };
                    compared += 1;
                    if choice.got.name() != want {
                        wrong.push(format!(
                            "{model_name} {preset} imatrix={has_imatrix} {name}: {} not {want}",
                            choice.got
                        ));
                    }
                }
            }
        }
    }
    assert!(compared > 400_000, "only {compared} choices compared");
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
