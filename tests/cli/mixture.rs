//! Folders with a budget (`--to mlx-4bit --target-bpw 4.5`), made as a user makes them.

use crate::common::*;
use serde_json::{Value, json as value};
use std::collections::BTreeSet;
use std::path::Path;

const DATA: [&str; 6] = ["--calibration", "default", "--calibration-tokens", "512", "--seq-len", "32"];

/// Arguments of a conversion of the small trained model into `out`.
fn args<'a>(model: &'a str, how: &[&'a str], out: &'a str) -> Vec<&'a str> {
    [how, &DATA, &[model, "-o", out, "--quiet", "--format", "json", "--check"]].concat()
}

fn made(dir: &Path, how: &[&str], out: &str) -> Value {
    let report: Value = serde_json::from_str(&ok(quantize(dir, &args(&tiny(), how, out)))).unwrap();
    report["artifacts"][0].clone()
}

fn kinds(allocation: &Value) -> BTreeSet<String> {
    let rows = allocation["tensors"].as_array().unwrap();
    rows.iter().map(|row| row["type"].as_str().unwrap().to_string()).collect()
}

/// Bytes of the files of weights.
fn weights(folder: &Path) -> u64 {
    let files = names(folder).into_iter().filter(|name| name.ends_with(".safetensors"));
    files.map(|name| std::fs::metadata(folder.join(name)).unwrap().len()).sum()
}

/// KL divergence from the source over the texts of the check.
fn kl(artifact: &Value) -> f64 {
    let check = &artifact["check"];
    check["kl"].as_f64().unwrap_or_else(|| panic!("no divergence in {check}"))
}

#[test]
fn a_budget_is_kept_used_up_and_worth_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let uniform = made(d, &["--to", "mlx-4bit-64g"], "uniform");
    let bytes = weights(&d.join("uniform"));
    let size = bytes.to_string();
    let mixed = made(d, &["--to", "mlx-4bit-64g", "--target-size", &size], "mixed");
    let spent = weights(&d.join("mixed"));
    assert!(spent <= bytes && bytes - spent < bytes / 100, "{spent} of {bytes}");
    assert!(kinds(&mixed["allocation"]).len() > 1, "{}", mixed["allocation"]);
    assert!(kl(&mixed) <= kl(&uniform), "{mixed} {uniform}");
    assert_eq!(mixed["allocation"]["spent"], mixed["bytes"]);
    // What was chosen is what lies there, and what loaders are told.
    let (config, manifest) = (json(&d.join("mixed/config.json")), json(&d.join("mixed/quantize-manifest.json")));
    assert_eq!(manifest["allocation"], mixed["allocation"]);
    for row in mixed["allocation"]["tensors"].as_array().unwrap() {
        let module = row["tensor"].as_str().unwrap().trim_end_matches(".weight");
        let rows = manifest["modules"].as_array().unwrap();
        let format = &rows.iter().find(|row| row["module"] == module).unwrap()["format"];
        assert_eq!(*format, row["type"], "{module}");
        let told = config["quantization"].get(module).unwrap_or(&config["quantization"]);
        let told = format!("mlx-{}bit-{}g", told["bits"], told["group_size"]);
        assert_eq!(*format, told, "{module}");
    }
    // More bytes lose less.
    let more = made(d, &["--to", "mlx-4bit-64g", "--target-bpw", "6", "--rounding", "nearest"], "more");
    assert!(kl(&more) < kl(&uniform));
    let bits = |artifact: &Value| artifact["allocation"]["budget"].as_u64().unwrap();
    assert!(more["bytes"].as_u64().unwrap() <= bits(&more));
    assert_eq!(json(&d.join("more/quantize-manifest.json"))["recipe"]["data"]["tokens"], 512);
}

#[test]
fn fused_modules_are_stored_alike() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (to, bits) in [("w4a16-32g", "8"), ("nvfp4a16", "9"), ("gptq-4bit-32g", "8")] {
        let artifact = made(d, &["--to", to, "--target-bpw", bits, "--force"], "out");
        let kinds = kinds(&artifact["allocation"]);
        assert!(kinds.len() > 1, "{to}: {kinds:?}");
        let manifest = json(&d.join("out/quantize-manifest.json"));
        let of = |layer: usize, end: &str| {
            let rows = manifest["modules"].as_array().unwrap();
            let name = format!("model.layers.{layer}.{end}");
            rows.iter().find(|row| row["module"] == *name).unwrap()["format"].clone()
        };
        for layer in 0..4 {
            assert_eq!(of(layer, "self_attn.q_proj"), of(layer, "self_attn.v_proj"), "{to}");
            assert_eq!(of(layer, "mlp.gate_proj"), of(layer, "mlp.up_proj"), "{to}");
        }
        assert!(logits(&d.join("out"), &[1, 2, 3]).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn the_same_folder_by_its_recipe_and_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let how = ["--to", "mlx-4bit-32g", "--target-bpw", "5.2", "--tensor-type", "v_proj=8bit"];
    let recipe = ok(quantize(d, &[&how[..], &DATA, &["--print-recipe"]].concat()));
    let parsed: Value = serde_json::from_str(&recipe).unwrap();
    assert_eq!(parsed["outputs"][0]["folder"]["limit"], value!({ "bits-per-weight": 5.2 }));
    assert_eq!(parsed["outputs"][0]["folder"]["name"], "mlx-4bit-32g-5.2bpw");
    std::fs::write(d.join("r.json"), &recipe).unwrap();
    let tiny = tiny();
    ok(quantize(d, &[&how[..], &DATA, &[&tiny, "-o", "a", "--quiet", "-t", "1"]].concat()));
    ok(quantize(d, &["--recipe", "r.json", &tiny, "-o", "b", "--quiet", "-t", "7"]));
    assert_eq!(digests(&d.join("a")), digests(&d.join("b")));
    let manifest = json(&d.join("a/quantize-manifest.json"));
    assert_eq!(manifest["recipe"]["outputs"], parsed["outputs"]);
    // What was asked for is no choice.
    let rows = manifest["allocation"]["tensors"].as_array().unwrap();
    assert!(rows.iter().all(|row| !row["tensor"].as_str().unwrap().contains("v_proj")));
    let plan = ok(quantize(d, &[&how[..], &DATA, &[&tiny, "--dry-run", "--format", "json", "--quiet"]].concat()));
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["folders"][0]["allocation"], manifest["allocation"]);
}

#[test]
fn what_cannot_be_met_is_refused_with_the_range() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let refused = |how: &[&str], parts: &[&str]| fails(&quantize(d, &args(&tiny(), how, "out")), 2, parts);
    for bits in ["1", "15"] {
        refused(&["--to", "mlx-4bit", "--target-bpw", bits], &["mlx-4bit", "out of reach", "to 9.", "bits per weight"]);
    }
    refused(&["--to", "w4a16-32g", "--target-size", "1K"], &["out of reach", "bytes", "to the largest"]);
    refused(&["--to", "mlx-4bit", "--like", "q4_k_m", "--target-bpw", "5"], &["--like", "--target-size"]);
    refused(&["--to", "mlx-4bit,q4_k_m", "--target-bpw", "5"], &["separate runs"]);
    let without = ["--to", "mlx-4bit", "--target-bpw", "5", &tiny(), "-o", "out"];
    fails(&quantize(d, &without), 2, &["add --calibration default"]);
    let all = ["--to", "gptq-4bit-32g", "--target-bpw", "9", "--tensor-type", ".=8bit"];
    refused(&all, &["nothing to choose"]);
    assert!(names(d).is_empty());
}
