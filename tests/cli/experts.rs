//! Experts: in stacks where an engine has them so, and quantized wherever they lie.

use super::verify::{Tensors, edit_config, loads, refuses, store, tensors, verdict};
use crate::common::{copy_model, fails, logits, ok, quantize, stderr};
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;

fn make(dir: &Path, source: &str, format: &str, out: &str, more: &[&str]) -> String {
    let mut args = vec!["--to", format, source, "-o", out, "--rounding", "nearest"];
    if format.starts_with("mlx") {
        args.extend(["--group-size", "32"]);
    }
    args.extend(more);
    let run = quantize(dir, &args);
    let said = stderr(&run);
    ok(run);
    said
}

/// Takes the stacks of a folder apart.
fn unstacked(found: &Tensors, single: impl Fn(&str, usize) -> String) -> Tensors {
    let mut out = Tensors::new();
    for (name, (dtype, shape, bytes)) in found {
        if !name.contains("switch_mlp") {
            out.insert(name.clone(), (*dtype, shape.clone(), bytes.clone()));
            continue;
        }
        for (i, part) in bytes.chunks(bytes.len() / shape[0]).enumerate() {
            out.insert(single(name, i), (*dtype, shape[1..].to_vec(), part.to_vec()));
        }
    }
    out
}

/// mlx-lm's classes stack the weights of single experts as they load them; of many, not their scales.
#[test]
fn mlx_has_experts_in_stacks() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let tokens: Vec<u32> = (0..12).map(|i| 7 * i % 300).collect();
    for (family, singles) in [("qwen3-moe", false), ("qwen2-moe", true), ("mixtral", true)] {
        copy_model(family, &d.join(family));
        let out = format!("{family}-out");
        make(d, family, "mlx-4bit", &out, &["--threads", "1"]);
        let found = tensors(&d.join(&out));
        let stacks: Vec<_> = found.iter().filter(|(name, _)| name.contains(".switch_mlp.")).collect();
        assert!(!stacks.is_empty() && stacks.iter().all(|(_, (_, shape, _))| shape.len() == 3 && shape[0] > 1));
        assert!(!found.keys().any(|name| name.contains(".experts.")), "{family}");
        for part in ["gate_proj.weight", "up_proj.scales", "down_proj.biases"] {
            assert!(stacks.iter().any(|(name, _)| name.ends_with(part)), "{family}: {part}");
        }
        make(d, family, "mlx-4bit", "threads", &["--threads", "2"]);
        assert!(tensors(&d.join("threads")) == found);
        std::fs::remove_dir_all(d.join("threads")).unwrap();
        loads(d, &out, "mlx", &[]);
        // Read back, they are the experts that the checkpoint has.
        make(d, &out, "safetensors", "plain", &[]);
        let whole = logits(&d.join(&out), &tokens);
        let plain = logits(&d.join("plain"), &tokens);
        let apart = whole.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-2, "{family}: {apart}");
        // One by one, some are taken and some are not; the model is the same.
        let numbered = |name: &str| match family {
            "mixtral" => name.replace("gate_proj", "w1").replace("down_proj", "w2").replace("up_proj", "w3"),
            _ => name.to_string(),
        };
        let single = |name: &str, i: usize| numbered(&name.replace("switch_mlp", &format!("experts.{i}")));
        std::fs::remove_file(d.join(&out).join("model.safetensors.index.json")).unwrap();
        store(&d.join(&out), &unstacked(&found, single));
        assert_eq!(logits(&d.join(&out), &tokens), whole, "{family}");
        match singles {
            true => loads(d, &out, "mlx", &[]),
            false => assert!(refuses(d, &out, "mlx", &[], "is an expert by itself")[0].contains(".experts.0.")),
        }
        std::fs::remove_dir_all(d.join("plain")).unwrap();
    }
}

/// What lies in one tensor has one format.
#[test]
fn rules_hold_for_whole_stacks() {
    let dir = tempfile::tempdir().unwrap();
    copy_model("qwen3-moe", &dir.path().join("m"));
    let run = |rule: &str| {
        let args = [
            "--to",
            "mlx-4bit",
            "m",
            "-o",
            "out",
            "--rounding",
            "nearest",
            "--group-size",
            "32",
            "--tensor-type",
            rule,
        ];
        quantize(dir.path(), &args)
    };
    fails(&run(r"experts\.1\.up_proj=8bit"), 4, &["experts.1.up_proj", "let one rule match all of them"]);
    ok(run(r"experts\.\d+\.up_proj=8bit"));
    let config = crate::common::json(&dir.path().join("out/config.json"));
    assert_eq!(config["quantization"]["model.layers.0.mlp.switch_mlp.up_proj"]["bits"], 8);
    ok(quantize(dir.path(), &["verify", "out"]));
}

/// A checkpoint of nobody's family with its experts one by one, or stacked as transformers 5 keeps them.
fn frontier(dir: &Path, stacked: bool) {
    copy_model("qwen3-moe", dir);
    edit_config(dir, |config| {
        config["architectures"] = json!(["FrontierForCausalLM"]);
        config["model_type"] = json!("frontier");
    });
    if !stacked {
        return;
    }
    let found = tensors(dir);
    let of = |name: &str| {
        let (block, rest) = name.split_once(".experts.")?;
        let (expert, last) = rest.split_once('.')?;
        Some((format!("{block}.experts"), expert.parse::<usize>().ok()?, last.trim_end_matches(".weight").to_string()))
    };
    let experts = found.keys().filter_map(|name| Some(of(name)?.1)).max().unwrap() + 1;
    let mut out = Tensors::new();
    for (name, tensor) in &found {
        let Some((block, _, last)) = of(name) else {
            out.insert(name.clone(), tensor.clone());
            continue;
        };
        let part = |e: usize, last: &str| found[&format!("{block}.{e}.{last}.weight")].clone();
        let (stack, parts) = match last.as_str() {
            "down_proj" => ("down_proj", &["down_proj"][..]),
            _ => ("gate_up_proj", &["gate_proj", "up_proj"][..]),
        };
        let (dtype, shape, _): (Dtype, _, _) = part(0, parts[0]);
        let bytes = (0..experts).flat_map(|e| parts.iter().flat_map(move |p| part(e, p).2)).collect();
        out.insert(format!("{block}.{stack}"), (dtype, vec![experts, parts.len() * shape[0], shape[1]], bytes));
    }
    store(dir, &out);
}

/// Stacked or not, they are quantized, under the names that engines have for single ones.
#[test]
fn stacked_experts_of_an_unknown_family_are_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    frontier(&d.join("single"), false);
    frontier(&d.join("stacked"), true);
    for format in ["fp8", "nf4", "nvfp4a16", "mxfp4", "int8", "w8a16"] {
        let said = make(d, "stacked", format, &format!("stacked-{format}"), &["--quiet"]);
        assert!(!said.contains("left unchanged"), "{format}: {said}");
        make(d, "single", format, &format!("single-{format}"), &["--quiet"]);
        let [stacked, single] = ["stacked", "single"].map(|kind| tensors(&d.join(format!("{kind}-{format}"))));
        assert!(stacked.keys().any(|name| name.contains("mlp.experts.1.up_proj.")), "{format}");
        assert!(stacked == single, "{format}");
    }
    // Gate and up of an expert, and what makes a query, a key and a value, are one matrix of an engine.
    let found = tensors(&d.join("stacked-nvfp4a16"));
    let scale = |name: &str| &found[&format!("model.layers.0.{name}.weight_global_scale")].2;
    assert_eq!(scale("mlp.experts.1.gate_proj"), scale("mlp.experts.1.up_proj"));
    assert_eq!(scale("self_attn.q_proj"), scale("self_attn.v_proj"));
    assert_ne!(scale("self_attn.q_proj"), scale("self_attn.o_proj"));
    // Input channels first, no format has a place for them: the ledger says so.
    let mut found = tensors(&d.join("stacked"));
    for (name, (_, shape, _)) in &mut found {
        if name.contains(".experts.") {
            shape.swap(1, 2);
        }
    }
    store(&d.join("stacked"), &found);
    let said = make(d, "stacked", "fp8", "turned", &[]);
    assert!(said.contains("left unchanged") && said.contains("input channels first"), "{said}");
    let (_, found) = verdict(d, "turned", "transformers", &[]);
    assert_ne!(found["loads"], true);
}

/// Matrices that stay by their names can be asked for, and modules left; the manifest says why matrices stay.
#[test]
fn matrices_are_included_and_excluded_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    frontier(&d.join("m"), true);
    let args = ["--to", "fp8", "m", "-o", "out", "--include", r"layers\.0\.mlp\.gate\.", "--exclude", "o_proj|experts"];
    let said = quantize(d, &args);
    ok(said);
    let found = tensors(&d.join("out"));
    let quantized: Vec<&String> = found.keys().filter(|name| name.ends_with(".weight_scale")).collect();
    assert!(quantized.iter().any(|name| name.contains("layers.0.mlp.gate.")), "{quantized:?}");
    assert!(
        !quantized
            .iter()
            .any(|name| name.contains("o_proj") || name.contains("experts") || name.contains("1.mlp.gate."))
    );
    let manifest = crate::common::json(&d.join("out/quantize-manifest.json"));
    let kept = manifest["kept"].as_array().unwrap();
    let why = |name: &str| {
        kept.iter().find(|row| row["tensor"].as_str().unwrap().contains(name)).map(|r| r["reason"].clone())
    };
    assert_eq!(why("layers.1.mlp.gate."), Some(json!("a router")));
    assert!(why("embed_tokens").unwrap().as_str().unwrap().contains("embedding"));
    assert_eq!(why("layernorm"), None);
    fails(&quantize(d, &["--to", "fp8", "m", "-o", "b", "--include", "nothing_like_it"]), 2, &["nothing_like_it"]);
    fails(&quantize(d, &["--to", "fp8", "m", "-o", "b", "--exclude", "("]), 2, &["--exclude", "("]);
    fails(&quantize(d, &["--to", "q4_k_m", "m", "-o", "b.gguf"]), 4, &["FrontierForCausalLM", "most like", "fp8"]);
}
