//! `--tune`: what it makes of a small trained model, and when it is refused.

use crate::common::*;
use std::path::Path;

const DATA: [&str; 6] = ["--calibration", "default", "--calibration-tokens", "3072", "--seq-len", "128"];

/// KL divergence from the source on text, as `compare` measures it.
fn kl(dir: &Path, folder: &str) -> f64 {
    let text = repo("tests/fixtures/tiny-llama/README.md");
    let how = ["--ctx", "64", "--format", "json", "--quiet", "--text", text.to_str().unwrap()];
    let out = ok(quantize(dir, &[&["compare", tiny().as_str(), folder], &how[..]].concat()));
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    report["candidates"][0]["stats"]["kld"]["value"].as_f64().unwrap()
}

#[test]
fn tuned_folders_are_nearer_to_the_source() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), tiny());
    for format in ["mlx-3bit-64g", "gptq-3bit-64g"] {
        let made = |name: &str, more: &[&str]| {
            let all = [&["--to", format, tiny.as_str(), "-o", name, "--quiet", "--no-check"], &DATA[..], more].concat();
            ok(quantize(dir.path(), &all));
        };
        let (plain, tuned) = (format!("{format}-plain"), format!("{format}-tuned"));
        made(&plain, &[]);
        made(&tuned, &["--tune", "10"]);
        let (before, after) = (kl(dir.path(), &plain), kl(dir.path(), &tuned));
        assert!(after < before, "{format}: {before} became {after}");
        let summary = &json(&dir.path().join(&tuned).join("quantize-manifest.json"))["tuned"];
        assert!(summary["kept"].as_u64().unwrap() > 0, "{format}: {summary}");
        assert_eq!(names(&dir.path().join(&plain)), names(&dir.path().join(&tuned)));
        // Codes are those of the other.
        let codes = if format.starts_with("mlx") { "weight" } else { "qweight" };
        for layer in [0, 5] {
            let name = format!("model.layers.{layer}.mlp.up_proj.{codes}");
            let bytes = |folder: &str| stored(&dir.path().join(folder).join("model.safetensors"), &name);
            assert!(bytes(&plain) == bytes(&tuned), "{format}: {name}");
        }
    }
}

/// What a tensor of a safetensors file holds.
fn stored(file: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let at = |i: usize| start + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    bytes[at(0)..at(1)].to_vec()
}

#[test]
fn tuning_is_refused_where_there_is_nothing_to_tune_or_to_tune_by() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, experts) = (tiny(), family("mixtral"));
    let refused = |args: &[&str], code: i32, said: &str| {
        fails(&quantize(dir.path(), args), code, &[said]);
        assert!(names(dir.path()).is_empty(), "{args:?}");
    };
    refused(&["--to", "mlx-4bit", &tiny, "--tune", "5", "-o", "out"], 2, "--calibration");
    refused(&["--to", "fp8", &tiny, "--tune", "5", "-o", "out"], 2, "--tune");
    refused(&[&["--to", "q4_0", &tiny, "--tune", "5", "-o", "out.gguf"], &DATA[..]].concat(), 2, "--tune");
    refused(&["--to", "mlx-4bit", &tiny, "--tune", "0", "-o", "out"], 2, "--tune");
    refused(&[&["--to", "mlx-4bit-32g", &experts, "--tune", "5", "-o", "out"], &DATA[..]].concat(), 4, "experts");
    let few = ["--calibration", "default", "--calibration-tokens", "384", "--seq-len", "128"];
    refused(&[&["--to", "mlx-4bit", &tiny, "--tune", "5", "-o", "out"], &few[..]].concat(), 3, "too few");
}
