//! `quantize plan` on the config.json alone of models that are converted only: tensors against those of real conversions, and
//! sizes against published ones. Sources: Qwen3.5 and 3.6, parameters and Q8_0 without multi-token prediction in GB (10^9
//! bytes) and caches, ggml-org/Llama-macOS issue 63; GLM-4.5-Air, ubergarm/GLM-4.5-Air-GGUF in GiB, with it; gpt-oss-20b
//! (MXFP4 experts, the rest in Q8_0) and DeepSeek-V3's parameters, llama-bench's tables in llama.cpp's repository.

use crate::common::{json, names, repo};
use assert_cmd::Command;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn plan(config: &Path, more: &[&str]) -> Result<Value, String> {
    let out =
        Command::cargo_bin("quantize").unwrap().args(["plan", "--format", "json"]).args(more).arg(config).output();
    let out = out.unwrap();
    match out.status.success() {
        true => Ok(serde_json::from_slice(&out.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}

/// Name, type and shape of every tensor.
fn planned(plan: &Value) -> BTreeMap<String, Value> {
    let rows = plan["targets"][0]["rows"].as_array().unwrap();
    rows.iter().map(|row| (row["name"].as_str().unwrap().into(), json!([row["got"], row["shape"]]))).collect()
}

#[test]
fn a_configuration_promises_the_tensors_of_a_conversion() {
    let (mut exact, mut wrong) = (Vec::new(), Vec::new());
    for file in names(&repo("tests/golden/families")) {
        let Some(name) = file.strip_suffix(".json") else { continue };
        let golden = json(&repo("tests/golden/families").join(&file));
        let config = golden["files"]["config.json"].as_str().map(|f| repo("tests/golden/families/files").join(f));
        // Of its output llama.cpp keeps the rows of two words.
        let Some(config) = config.filter(|_| name != "qwen3-reranker") else { continue };
        let plan = match plan(&config, &["--to", "f16"]) {
            Ok(plan) => plan,
            // Not by its configuration alone, and it says so.
            Err(why) => {
                assert!(
                    why.contains("configuration") || why.contains("supported") || why.contains("config.json"),
                    "{name}: {why}"
                );
                continue;
            }
        };
        let theirs = golden["tensors"].as_object().unwrap().iter().map(|(name, t)| {
            let shape: Vec<Value> = t[1].as_array().unwrap().iter().rev().cloned().collect();
            (name.clone(), json!([t[0], shape]))
        });
        let (ours, theirs) = (planned(&plan), theirs.collect::<BTreeMap<_, _>>());
        let more = ours.keys().filter(|key| !theirs.contains_key(*key));
        let differing = theirs.keys().chain(more).filter(|key| ours.get(*key) != theirs.get(*key));
        let lines: Vec<String> =
            differing.map(|key| format!("{name}: {key}: {:?} for {:?}", ours.get(key), theirs.get(key))).collect();
        match lines.is_empty() {
            true => exact.push(name.to_string()),
            false => wrong.extend(lines.into_iter().take(6)),
        }
    }
    assert!(wrong.is_empty(), "{} equal, but:\n{}", exact.len(), wrong.join("\n"));
    for name in ["qwen3.5-moe", "qwen3-next", "gpt-oss-mxfp4", "gemma4-e", "gemma4-moe", "glm4-moe", "deepseek-v3"] {
        assert!(exact.iter().any(|n| n == name), "{name} is not planned: {exact:?}");
    }
    assert!(exact.len() >= 20, "{exact:?}");
}

const GIB: f64 = (1u64 << 30) as f64;

#[test]
fn published_sizes_within_one_percent() {
    let close = |what: &str, ours: f64, published: f64| {
        let off = ours / published - 1.0;
        assert!(off.abs() < 0.01, "{what}: {ours:.4e}, published {published:.4e} ({:+.2} %)", 100.0 * off);
    };
    let of = |name: &str, more: &[&str]| plan(&repo(&format!("tests/configs/{name}.json")), more).unwrap();
    let bytes = |plan: &Value, i: usize| plan["targets"][i]["file_bytes"].as_f64().unwrap();
    let weights = |plan: &Value| plan["weights"].as_f64().unwrap();

    let qwen = of("qwen3.6-35b-a3b", &["--to", "q8_0", "--mtp", "drop"]);
    close("Qwen3.6-35B-A3B", weights(&qwen), 34.7e9);
    close("Qwen3.6-35B-A3B Q8_0", bytes(&qwen, 0), 36.9e9);
    assert_eq!(qwen["kv_bytes_per_token"], 20_480);
    let dense = of("qwen3.5-27b", &["--to", "q8_0", "--mtp", "drop"]);
    close("Qwen3.5-27B", weights(&dense), 26.9e9);
    close("Qwen3.5-27B Q8_0", bytes(&dense, 0), 28.6e9);
    assert_eq!(dense["kv_bytes_per_token"], 65_536);
    // 48 layers of 48 heads' states of 128 by 128, and three columns of the convolution.
    assert_eq!(dense["state_bytes"], 48 * 4 * (48 * 128 * 128 + 3 * (2 * 16 * 128 + 48 * 128)));
    close("Qwen3.5-27B with its draft layer", weights(&of("qwen3.5-27b", &["--to", "q8_0"])), 27.32e9);

    let gpt = of("gpt-oss-20b", &["--to", "q8_0"]);
    close("gpt-oss-20b", weights(&gpt), 20.91e9);
    close("gpt-oss-20b MXFP4", bytes(&gpt, 0), 11.27 * GIB);
    // 12 of 24 layers see all tokens, the others 128.
    assert_eq!(gpt["kv_bytes_per_token"], 12 * 2 * 2 * 8 * 64);
    assert_eq!(gpt["state_bytes"], 12 * 2 * 2 * 8 * 64 * 128);

    let glm = of("glm-4.5-air", &["--to", "bf16,q8_0"]);
    close("GLM-4.5-Air BF16", bytes(&glm, 0), 205.811 * GIB);
    close("GLM-4.5-Air Q8_0", bytes(&glm, 1), 109.381 * GIB);

    let deepseek = of("deepseek-v3", &["--to", "q4_k_m"]);
    close("DeepSeek-V3", weights(&deepseek), 671.03e9);
    assert_eq!(deepseek["kv_bytes_per_token"], 576 * 2 * 61);
}

#[test]
fn sizes_that_no_model_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(repo("tests/configs/deepseek-v3.json")).unwrap();
    for (from, to, told) in [
        ("\"hidden_size\": 7168", "\"hidden_size\": 99999999", "hidden_size"),
        ("\"n_routed_experts\": 256", "\"n_routed_experts\": 1000000", "larger than any"),
        ("\"kv_lora_rank\": 512,", "", "kv_lora_rank"),
    ] {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let why = plan(&path, &["--to", "q8_0"]).unwrap_err();
        assert!(why.contains(told), "{why}");
    }
}
