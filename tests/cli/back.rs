//! Back to plain weights: `--to safetensors` from GGUF files and from packed folders.

use crate::common::*;
use quantize::quant::GgmlType;
use quantize::source::{Checkpoint, Dtype};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Type, shape and bytes of every tensor; of packed ones no bytes.
fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let ckpt = Checkpoint::open(path).unwrap();
    let read = |t: &quantize::source::TensorMeta| {
        let mut bytes = Vec::new();
        if !matches!(t.dtype, Dtype::Packed(_)) {
            bytes.resize(t.bytes() as usize, 0);
            ckpt.read(t, 0, &mut bytes).unwrap();
        }
        (t.name.clone(), (t.dtype, t.shape.clone(), bytes))
    };
    ckpt.tensors().iter().map(read).collect()
}

fn numbers(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let ckpt = Checkpoint::open(path).unwrap();
    let read = |t: &quantize::source::TensorMeta| {
        let mut out = vec![0.0; t.elements()];
        ckpt.read_f32(t, 0..out.len(), &mut Vec::new(), &mut out).unwrap();
        (t.name.clone(), out)
    };
    ckpt.tensors().iter().map(read).collect()
}

fn back(dir: &Path, args: &[&str]) -> Value {
    let all = [&["--to", "safetensors", "--format", "json", "--quiet"], args].concat();
    serde_json::from_str(&ok(quantize(dir, &all))).unwrap()
}

/// The families whose norms are stored with 1 added, which F16 sources lose digits by.
const ADDED: [&str; 2] = ["gemma2", "gemma3"];

#[test]
fn every_family_comes_back_from_gguf_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for name in FAMILIES {
        ok(quantize(d, &["--to", "f16", &family(name), "-o", "m.gguf", "--no-check", "--quiet", "--force"]));
        let (file, like) = (d.join("m.gguf"), family(name));
        for more in [vec![], vec!["--like-config", like.as_str()]] {
            let out = back(d, &[&["m.gguf", "-o", "out", "--force"], &more[..]].concat());
            let ledger = out["artifacts"][0]["ledger"].as_array().unwrap();
            let (was, is) = (tensors(&model(name)), tensors(&d.join("out")));
            assert_eq!(was.keys().collect::<Vec<_>>(), is.keys().collect::<Vec<_>>(), "{name}");
            let differing: Vec<&String> = was.keys().filter(|key| was[*key] != is[*key]).collect();
            assert_eq!(differing.is_empty(), ledger.is_empty(), "{name}: {differing:?} {ledger:?}");
            assert_eq!(!differing.is_empty(), ADDED.contains(&name), "{name}: {differing:?}");
            assert!(differing.iter().all(|key| key.contains("norm")), "{name}: {differing:?}");
            let config = json(&d.join("out/config.json"));
            let named = config.get("dtype").or(config.get("torch_dtype")).unwrap();
            assert_eq!(named, "float16", "{name}");
            // A file made of the folder is the one that it came from, but for what names the folder.
            ok(quantize(d, &["--to", "f16", "out", "-o", "again.gguf", "--no-check", "--quiet", "--force"]));
            let (first, again) = (tensors(&file), tensors(&d.join("again.gguf")));
            let same = first.keys().filter(|key| first[*key] != again[*key]).count();
            assert!(same == 0 || ADDED.contains(&name), "{name}: {same}");
            let meta = |path: &Path| quantize::gguf::read_header(path).unwrap().metadata;
            let (first, again) = (meta(&file), meta(&d.join("again.gguf")));
            let own = |key: &str| key.starts_with("general.") || key.starts_with("quantize.");
            for (key, value) in first.iter().filter(|(key, _)| !own(key)) {
                let other = again.get(key);
                // What SentencePiece gave a score is ranked anew.
                let scores = key == "tokenizer.ggml.scores" || key == "tokenizer.ggml.token_type";
                assert!(other == Some(value) || (scores && other.is_some()), "{name} {key}: {value:?} {other:?}");
            }
        }
    }
}

#[test]
fn packed_folders_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let formats =
        ["fp8", "int8", "nf4", "mxfp4", "nvfp4a16", "mlx-4bit-32g", "w4a16-32g", "gptq-4bit-32g", "awq-4bit-32g"];
    for (i, format) in formats.iter().enumerate() {
        let source = family(FAMILIES[i]);
        ok(quantize(d, &["--to", format, &source, "-o", "packed", "--rounding", "nearest", "--quiet", "--force"]));
        back(d, &["packed", "-o", "plain", "--dtype", "f32", "--force"]);
        let (packed, plain) = (numbers(&d.join("packed")), numbers(&d.join("plain")));
        assert_eq!(packed.len(), plain.len(), "{format}");
        for (name, values) in &plain {
            assert_eq!(packed[name], *values, "{format} {name}");
        }
        assert!(tensors(&d.join("plain")).values().all(|t| t.0 == Dtype::Ggml(GgmlType::F32)));
        let config = json(&d.join("plain/config.json"));
        assert!(config.get("quantization_config").is_none() && config.get("quantization").is_none(), "{format}");
        let left = ["quantize_config.json", "model.safetensors.index.json", "README.md"];
        assert!(names(&d.join("plain")).iter().all(|name| !left.contains(&name.as_str())), "{format}");
        // Without a type, what was not packed stays as it is.
        back(d, &["packed", "-o", "plain", "--force"]);
        let (was, is) = (tensors(&d.join("packed")), tensors(&d.join("plain")));
        for (name, t) in is {
            match was[&name].0 {
                Dtype::Packed(_) => assert_eq!(t.0, Dtype::Ggml(GgmlType::F16), "{format} {name}"),
                _ => assert_eq!(was[&name], t, "{format} {name}"),
            }
        }
    }
}

#[test]
fn quantized_files_come_back_in_16_bits_with_what_was_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(quantize(d, &["--to", "q8_0", &tiny(), "-o", "m.gguf", "--no-check", "--quiet"]));
    let out = back(d, &["m.gguf", "-o", "out"]);
    let artifact = &out["artifacts"][0];
    assert_eq!(artifact["format"], "safetensors");
    let rounded = |row: &Value| row["done"] == "rounded to bfloat16";
    assert!(artifact["ledger"].as_array().unwrap().iter().any(rounded), "{artifact}");
    assert_eq!(json(&d.join("out/config.json"))["torch_dtype"], "bfloat16");
    let exact = back(d, &["m.gguf", "-o", "exact", "--dtype", "f32", "--split-max-size", "100k"]);
    assert_eq!(exact["artifacts"][0]["ledger"], serde_json::json!([]));
    assert!(d.join("exact/model.safetensors.index.json").is_file());
    // The model is the same: so are its logits.
    let tokens: Vec<u32> = (1..20).collect();
    let (file, folder) = (logits(&d.join("m.gguf"), &tokens), logits(&d.join("exact"), &tokens));
    let largest = file.iter().zip(&folder).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(largest < 1e-3, "{largest}");
}

#[test]
fn a_configuration_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(quantize(d, &["--to", "f16", &family("qwen3"), "-o", "m.gguf", "--no-check", "--quiet"]));
    let like = |name: &str| quantize(d, &["--to", "safetensors", "m.gguf", "-o", "out", "--like-config", name]);
    fails(&like(&family("llama")), 3, &["qwen3", "llama"]);
    fails(&like("nothing"), 3, &["config.json"]);
    // A configuration alone, of the right family with other sizes.
    std::fs::create_dir(d.join("c")).unwrap();
    let mut config = json(&model("qwen3").join("config.json"));
    config["num_hidden_layers"] = 1.into();
    std::fs::write(d.join("c/config.json"), config.to_string()).unwrap();
    fails(&like("c"), 3, &["does not belong"]);
    let folder = quantize(d, &["--to", "safetensors", &tiny(), "-o", "out", "--like-config", &tiny()]);
    fails(&folder, 2, &["GGUF"]);
    fails(&quantize(d, &["--to", "q8_0", &tiny(), "--dtype", "f16"]), 2, &["--dtype"]);
    assert_eq!(names(d), ["c", "m.gguf"]);
}
