//! Rules for single modules of folders, recipes as files, and the coverage of importance matrices.

use crate::common::*;
use quantize::source::{Checkpoint, Dtype};
use serde_json::{Value, json as value};
use std::path::Path;

fn make(dir: &Path, model: &str, to: &str, rules: &[&str]) -> std::process::Output {
    let mut args = vec!["--to", to, model, "-o", "out", "--rounding", "nearest", "--quiet", "--force"];
    rules.iter().for_each(|rule| args.extend(["--tensor-type", rule]));
    quantize(dir, &args)
}

fn stored(folder: &Path, name: &str) -> Dtype {
    let ckpt = Checkpoint::open(folder).unwrap();
    ckpt.tensors()[ckpt.find(name).unwrap_or_else(|| panic!("no {name}"))].dtype
}

#[test]
fn compressed_tensors_get_a_group_for_every_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let rules = ["self_attn=fp8", "layers.0.mlp=keep", "ffn_down=w8a16", "embed_tokens=keep"];
    ok(make(d, &family("qwen3"), "w4a16-32g", &rules));
    let config = json(&d.join("out/config.json"))["quantization_config"].clone();
    assert_eq!(config["format"], "mixed-precision");
    let groups: Vec<&Value> = config["config_groups"].as_object().unwrap().values().collect();
    let of = |module: &str| groups.iter().find(|g| g["targets"].as_array().unwrap().contains(&value!(module)));
    let attention = of("model.layers.1.self_attn.q_proj").unwrap();
    assert_eq!((&attention["format"], &attention["weights"]["type"]), (&value!("float-quantized"), &value!("float")));
    // A name of GGUF's side.
    assert_eq!(of("model.layers.1.mlp.down_proj").unwrap()["weights"]["num_bits"], 8);
    assert_eq!(of("Linear").unwrap()["weights"]["num_bits"], 4);
    let ignored = config["ignore"].as_array().unwrap();
    assert!(ignored.contains(&value!("model.layers.0.mlp.down_proj")));
    assert!(!ignored.contains(&value!("model.layers.1.mlp.down_proj")));
    let out = d.join("out");
    assert!(matches!(stored(&out, "model.layers.0.mlp.up_proj.weight"), Dtype::Ggml(_)));
    assert!(matches!(stored(&out, "model.layers.1.mlp.up_proj.weight"), Dtype::Packed(_)));
    let manifest = json(&out.join("quantize-manifest.json"));
    let formats = |path: &str| {
        let rows = manifest["modules"].as_array().unwrap();
        rows.iter().find(|row| row["module"] == path).map(|row| row["format"].clone())
    };
    assert_eq!(formats("model.layers.1.self_attn.o_proj"), Some(value!("fp8")));
    assert_eq!(manifest["recipe"]["types"]["tensors"][2], value!({ "pattern": "ffn_down", "type": "w8a16-channel" }));
    // And it runs.
    assert!(logits(&out, &[1, 2, 3]).iter().all(|x| x.is_finite()));
}

#[test]
fn mlx_and_gptq_say_it_their_way() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(make(d, &family("llama"), "mlx-4bit-32g", &["v_proj=6bit", "lm_head=keep", "embed=8bit"]));
    let config = json(&d.join("out/config.json"));
    assert_eq!(config["quantization"], config["quantization_config"]);
    let of = |name: &str| config["quantization"][name].clone();
    assert_eq!(of("model.layers.1.self_attn.v_proj"), value!({ "group_size": 32, "bits": 6, "mode": "affine" }));
    assert_eq!((of("lm_head"), of("model.embed_tokens")["bits"].clone()), (value!(false), value!(8)));
    assert!(logits(&d.join("out"), &[1, 2, 3]).iter().all(|x| x.is_finite()));
    ok(make(d, &family("llama"), "gptq-4bit-32g", &["down_proj=8bit", r"layers\.0\.self_attn=keep"]));
    let dynamic = json(&d.join("out/config.json"))["quantization_config"]["dynamic"].clone();
    let key = |sign: &str, name: &str| format!("{sign}:^{}$", name.replace('.', r"\."));
    assert_eq!(dynamic[key("+", "model.layers.0.mlp.down_proj")]["bits"], 8);
    assert!(dynamic.get(key("-", "model.layers.0.self_attn.q_proj")).is_some());
    assert!(logits(&d.join("out"), &[1, 2, 3]).iter().all(|x| x.is_finite()));
}

#[test]
fn rules_that_cannot_be_kept_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let refused = |to: &str, rules: &[&str], code: i32, parts: &[&str]| {
        fails(&make(d, &family("qwen3"), to, rules), code, parts);
    };
    refused("w4a16-32g", &["no_such=fp8"], 2, &["no_such=fp8", "matches no"]);
    refused("w4a16-32g", &["q_proj=fp8"], 4, &["fuse", "q_proj=fp8"]);
    refused("w4a16-32g", &["gate_proj=keep"], 4, &["fuse", "up_proj"]);
    refused("w4a16-32g", &["self_attn=gptq"], 2, &["share a folder"]);
    refused("gptq-4bit-32g", &["self_attn=5bit"], 2, &["5 bits"]);
    refused("awq-4bit-32g", &["self_attn=8bit"], 2, &["8 bits"]);
    refused("fp8", &["self_attn=nvfp4"], 2, &["calibration"]);
    refused("w4a16-32g", &["self_attn=w4a16-48g"], 4, &["48"]);
    refused("fp8", &["self_attn=q6_k"], 2, &["GGUF files"]);
    refused("q8_0", &["self_attn=fp8"], 2, &["checkpoint folders"]);
    refused("q8_0", &["no_such=q6_k"], 2, &["matches no"]);
    refused("fp8", &["(=keep"], 2, &["("]);
    refused("fp8", &["embed_tokens=mxfp4"], 4, &["linear layer"]);
    assert!(names(d).is_empty());
}

/// Codes with error feedback, where modules of one input have groups of two lengths and one has none.
#[test]
fn calibrated_mixtures_are_made_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let data = ["--calibration", "tokens:random", "--calibration-tokens", "512", "--seq-len", "32"];
    let rules = ["--tensor-type", "k_proj=mlx-8bit-64g", "--tensor-type", "v_proj=mlx-mxfp8"];
    let model = tiny();
    let args = [&["--to", "mlx-4bit-32g", &model, "-o", "out", "--quiet"], &data[..], &rules[..]].concat();
    ok(quantize(d, &args));
    let manifest = json(&d.join("out/quantize-manifest.json"));
    let rows = manifest["modules"].as_array().unwrap();
    let of = |end: &str| rows.iter().find(|row| row["module"].as_str().unwrap().ends_with(end)).unwrap();
    assert_eq!(of("k_proj")["format"], "mlx-8bit-64g");
    assert_eq!(of("v_proj")["format"], "mlx-mxfp8");
    assert!(of("q_proj")["loss"].is_number() && of("v_proj")["loss"].is_null());
    assert!(of("k_proj")["relative_error"].as_f64() < of("q_proj")["relative_error"].as_f64());
}

#[test]
fn recipes_are_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let flags = ["--to", "q4_0,mlx-4bit-32g", "--tensor-type", "ffn_down=q8_0", "--tensor-type", "v_proj=6bit"];
    let text = ok(quantize(d, &[&flags[..], &["--print-recipe"]].concat()));
    std::fs::write(d.join("r.json"), &text).unwrap();
    assert_eq!(ok(quantize(d, &["--recipe", "r.json", "--print-recipe"])), text);
    let make = |to: &str, how: &[&str]| ok(quantize(d, &[how, &[&tiny(), "-o", to, "--no-check", "--quiet"]].concat()));
    make("a/", &flags);
    make("b/", &["--recipe", "r.json"]);
    for name in names(&d.join("a")) {
        let (a, b) = (d.join("a").join(&name), d.join("b").join(&name));
        match a.is_dir() {
            true => assert_eq!(digests(&a), digests(&b)),
            false => assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap()),
        }
    }
    fails(&quantize(d, &["--recipe", "r.json", &tiny(), "--to", "q8_0"]), 2, &["--to", "--recipe"]);
    // What is not there is as usual.
    let short = r#"{ "outputs": [{ "preset": "Q4_0" }, { "folder": { "name": "mlx-4bit-32g", "format": "mlx-4bit-32g!" } }],
        "types": { "tensors": [{ "pattern": "ffn_down", "type": "q8_0" }, { "pattern": "v_proj", "type": "6bit" }] } }"#;
    std::fs::write(d.join("short.json"), short).unwrap();
    assert_eq!(ok(quantize(d, &["--recipe", "short.json", "--print-recipe"])), text);
    let mut recipe: Value = serde_json::from_str(&text).unwrap();
    recipe["tpyes"] = value!({});
    std::fs::write(d.join("bad.json"), recipe.to_string()).unwrap();
    fails(&quantize(d, &["--recipe", "bad.json", &tiny()]), 3, &["bad.json", "tpyes"]);
}

#[test]
fn an_importance_matrix_shows_what_it_covers() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let data = ["--calibration", "tokens:random", "--calibration-tokens", "64", "--seq-len", "32", "--quiet"];
    ok(quantize(d, &[&["calibrate", &family("mixtral"), "-o", "i.gguf"], &data[..]].concat()));
    let text = ok(quantize(d, &["inspect", "i.gguf"]));
    assert!(text.contains("blk.0.ffn_down_exps.weight") && text.contains("experts"), "{text}");
    let out: Value = serde_json::from_str(&ok(quantize(d, &["inspect", "i.gguf", "--format", "json"]))).unwrap();
    let rows = out["imatrix"]["coverage"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|row| row["tensor"] == name).unwrap();
    let (experts, dense) = (row("blk.0.ffn_down_exps.weight"), row("blk.0.attn_q.weight"));
    assert_eq!((&dense["matrices"], &dense["least"], &dense["most"]), (&value!(1), &value!(64), &value!(64)));
    assert!(experts["matrices"].as_u64() > Some(1) && experts["most"].as_u64() >= experts["least"].as_u64());
    assert!(dense["outlier"].as_f64() >= Some(1.0));
    let some = ok(quantize(d, &["inspect", "i.gguf", "--filter", "blk.1", "--format", "json"]));
    assert!(some.contains("blk.1.attn_q") && !some.contains("blk.0."));
    // Two of the same are twice as many tokens.
    ok(quantize(d, &["calibrate", "--merge", "i.gguf", "i.gguf", "-o", "two.gguf"]));
    let out: Value = serde_json::from_str(&ok(quantize(d, &["inspect", "two.gguf", "--format", "json"]))).unwrap();
    assert_eq!(
        out["imatrix"]["coverage"].as_array().unwrap().iter().find(|r| r["tensor"] == "blk.0.attn_q.weight").unwrap()["most"],
        128
    );
}
