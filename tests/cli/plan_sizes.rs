//! `quantize plan` on a config.json alone against file sizes that others published for their llama.cpp files. Sources, as
//! shown by huggingface.co in GB (10^9 bytes) unless another is named:
//! Phi-3-mini-4k: bartowski/Phi-3-mini-4k-instruct-GGUF and mradermacher/Phi-3-mini-4k-instruct-GGUF;
//! Llama-3.1 8B: bartowski/Meta-Llama-3.1-8B-Instruct-GGUF and mradermacher/Meta-Llama-3.1-8B-Instruct-GGUF;
//! Llama-3.1 70B and 405B: mradermacher/Meta-Llama-3.1-70B-GGUF, mradermacher/Meta-Llama-3.1-405B-GGUF (the 405B as first
//! released, with 16 key/value heads instead of 8);
//! Mixtral 8x7B: gobean/Mixtral-8x7B-Instruct-v0.1-GGUF (Q4_K_M) and TheBloke/dolphin-2.5-mixtral-8x7b-GGUF
//! (Q8_0: a fine-tune of it with two more tokens).

use crate::common::{model, repo};
use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn config(name: &str) -> PathBuf {
    repo(&format!("tests/configs/{name}.json"))
}

fn plan(config: &Path, types: &str) -> Value {
    let output = Command::cargo_bin("quantize")
        .unwrap()
        .args(["plan", "--format", "json", "--to", types])
        .arg(config)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sizes(config: &Path, types: &str) -> Vec<f64> {
    let plan = plan(config, types);
    plan["targets"].as_array().unwrap().iter().map(|t| t["file_bytes"].as_f64().unwrap()).collect()
}

#[test]
fn published_sizes_within_three_percent() {
    let published = [
        ("phi-3-mini-4k", 2.39, 4.06),
        ("llama-3.1-8b", 4.92, 8.54),
        ("llama-3.1-70b", 42.5, 75.0),
        ("llama-3.1-405b", 245.8, 435.8),
        ("mixtral-8x7b", 28.4, 49.62),
    ];
    for (name, q4_k_m, q8_0) in published {
        let ours = sizes(&config(name), "q4_k_m,q8_0");
        for (ours, published) in ours.iter().zip([q4_k_m, q8_0]) {
            let off = ours / (published * 1e9) - 1.0;
            assert!(off.abs() < 0.03, "{name}: {:.2} GB, published {published} GB ({:+.2} %)", ours / 1e9, off * 100.0);
        }
    }
}

#[test]
fn the_405b_of_the_first_release_to_a_tenth_of_a_percent() {
    let text = std::fs::read_to_string(config("llama-3.1-405b")).unwrap();
    let text = text.replace("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 16");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    for (ours, published) in sizes(&path, "q4_k_m,q8_0").iter().zip([245.8, 435.8]) {
        assert!((ours / (published * 1e9) - 1.0).abs() < 0.001, "{:.2} GB, published {published} GB", ours / 1e9);
    }
}

/// llama.cpp's tools/quantize/README.md: bits per weight of Llama-3.1-8B, of the presets whose rules are as they were then.
#[test]
fn bits_per_weight_as_llama_cpp_documents_them() {
    let documented = [
        ("Q2_K", 3.1593),
        ("Q3_K_S", 3.6429),
        ("Q3_K_L", 4.2979),
        ("Q4_K_S", 4.6672),
        ("Q4_K_M", 4.8944),
        ("Q5_K_S", 5.5704),
        ("Q5_K_M", 5.7036),
        ("Q6_K", 6.5633),
        ("Q8_0", 8.5008),
        ("F16", 16.0005),
    ];
    let types: Vec<&str> = documented.iter().map(|(name, _)| *name).collect();
    let plan = plan(&config("llama-3.1-8b"), &types.join(","));
    for (target, (name, bits)) in plan["targets"].as_array().unwrap().iter().zip(documented) {
        assert_eq!(target["type"], name);
        let ours = target["bits_per_weight"].as_f64().unwrap();
        assert!((ours - bits).abs() < 0.0001, "{name}: {ours:.4}, documented {bits}");
    }
}

#[test]
fn a_planned_size_is_the_size_of_the_file() {
    let model = model("tiny-llama");
    let dir = tempfile::tempdir().unwrap();
    for ty in ["q8_0", "q4_k_m", "bf16"] {
        let path = dir.path().join(format!("{ty}.gguf"));
        let mut convert = Command::cargo_bin("quantize").unwrap();
        convert.args(["--quiet", "--to", ty, "-o"]).arg(&path).arg(&model).assert().success();
        assert_eq!(sizes(&model, ty), [std::fs::metadata(&path).unwrap().len() as f64], "{ty}");
    }
}

#[test]
fn a_type_that_needs_an_importance_matrix_is_planned_but_not_written() {
    let model = model("tiny-llama");
    let targets = plan(&model, "iq2_xxs,q2_k_s,q2_k")["targets"].clone();
    let needs: Vec<_> = targets.as_array().unwrap().iter().map(|t| t["needs_importance"].as_bool().unwrap()).collect();
    assert_eq!(needs, [true, true, false]);
    let dir = tempfile::tempdir().unwrap();
    let output = Command::cargo_bin("quantize")
        .unwrap()
        .args(["--quiet", "--to", "q2_k_s", "-o"])
        .arg(dir.path().join("x.gguf"))
        .arg(&model)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("importance matrix"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
