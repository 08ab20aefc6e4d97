//! GGUF to GGUF for architectures of every kind, known or not, against llama-quantize: the type of every tensor of some
//! 160 models (tests/golden/architectures/types.json), and the bytes of a few with made-up weights (hashes.json).
//! tests/interop/gguf_to_gguf.py wrote both, and compares the bytes of all.

use quantize::gguf::{Array, Metadata, TensorInfo, Value, encode_header, layout, read_header};
use quantize::model::preset_facts;
use quantize::quant::GgmlType;
use quantize::quant::presets::{self, Candidate, ModelFacts, Request};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

fn golden(name: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/architectures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A tensor of a recorded file: name, type in the source, shape (outermost first).
struct Tensor {
    name: String,
    ty: GgmlType,
    shape: Vec<usize>,
}

/// Every tensor of a file, by layer and name as llama.cpp orders them.
fn tensors(parts: &Json, file: &Json) -> Vec<Tensor> {
    let mut found = Vec::new();
    for row in file["tensors"].as_array().unwrap() {
        let row: Vec<i64> = row.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect();
        let part: Vec<&str> = parts[row[0] as usize].as_str().unwrap().split(' ').collect();
        for layer in &row[1..] {
            let name = part[0].replacen('*', &layer.to_string(), 1);
            let shape = part[2].split('x').map(|n| n.parse().unwrap()).collect();
            found.push((*layer, Tensor { name, ty: GgmlType::from_name(part[1]).unwrap(), shape }));
        }
    }
    found.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    found.into_iter().map(|(_, t)| t).collect()
}

/// The metadata that decides on types.
fn metadata(file: &Json) -> Metadata {
    let arch = file["arch"].as_str().unwrap();
    let mut meta = Metadata::new();
    meta.set("general.architecture", arch);
    for (key, value) in file["facts"].as_object().unwrap() {
        let value = match value.as_array() {
            Some(all) => Value::Array(Array::I32(all.iter().map(|n| n.as_i64().unwrap() as i32).collect())),
            None => Value::U32(value.as_u64().unwrap() as u32),
        };
        meta.set(format!("{arch}.{key}"), value);
    }
    meta
}

#[test]
fn types_equal_those_of_llama_quantize() {
    let golden = golden("types.json");
    let letter = |c: char| GgmlType::from_name(golden["letters"][c.to_string()].as_str().unwrap()).unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for (name, file) in golden["files"].as_object().unwrap() {
        let (tensors, meta) = (tensors(&golden["parts"], file), metadata(file));
        let candidates: Vec<Candidate> =
            tensors.iter().map(|t| Candidate { name: &t.name, shape: &t.shape, kept: t.ty }).collect();
        for (targets, expected) in file["types"].as_object().unwrap() {
            let expected: Vec<GgmlType> = expected.as_str().unwrap().chars().map(letter).collect();
            assert_eq!(expected.len(), tensors.len(), "{name}");
            for target in targets.split(' ') {
                let preset = presets::find(target.trim_end_matches('+')).unwrap();
                let request = Request {
                    preset,
                    pure: false,
                    leave_output: false,
                    output: None,
                    embedding: None,
                    overrides: Vec::new(),
                };
                let facts = ModelFacts { has_imatrix: target.ends_with('+'), ..preset_facts(&meta) };
                let (choices, _) = presets::choose(&request, &facts, &candidates);
                for ((choice, expected), t) in choices.iter().zip(&expected).zip(&tensors) {
                    compared += 1;
                    if choice.got != *expected {
                        wrong.push(format!("{name} {target} {}: {} for {expected}", t.name, choice.got));
                    }
                }
            }
        }
    }
    assert!(compared > 200_000, "{compared}");
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

/// Pseudo-random numbers from -0.5 to 0.5 that are exact in `f32`.
fn numbers(seed: usize, n: usize) -> impl Iterator<Item = f32> {
    let seed = (seed as u64 * 0x9e37_79b9) as u32;
    (0..n as u32).map(move |i| {
        let mut x = i.wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        (x >> 8) as f32 / (1 << 24) as f32 - 0.5
    })
}

/// Writes a GGUF file of tensors with their bytes.
fn write(path: &Path, meta: &Metadata, tensors: Vec<(TensorInfo, Vec<u8>)>) {
    let (mut infos, bytes): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    layout(&mut infos, 32).unwrap();
    let mut out = encode_header(meta, &infos, 32);
    for bytes in bytes {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(32), 0);
    }
    std::fs::write(path, out).unwrap();
}

fn info(name: String, shape: &[usize], ty: GgmlType) -> TensorInfo {
    TensorInfo { name, dims: shape.iter().rev().map(|d| *d as u64).collect(), ty, offset: 0 }
}

/// The made-up model and an importance matrix to it.
fn write_model(tensors: &[Tensor], meta: &Metadata, model: &Path, imatrix: &Path) {
    let (mut weights, mut sums) = (Vec::new(), Vec::new());
    for (i, t) in tensors.iter().enumerate() {
        let values = numbers(i, t.shape.iter().product());
        let bytes = match t.ty {
            GgmlType::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        weights.push((info(t.name.clone(), &t.shape, t.ty), bytes));
        if t.name.ends_with("weight") && t.shape.len() > 1 {
            let n = if t.shape.len() > 2 { t.shape[0] } else { 1 };
            let cols = t.shape[t.shape.len() - 1];
            let of = numbers(i + 100_000, n * cols).flat_map(|v| (v + 0.625).to_le_bytes()).collect();
            sums.push((info(format!("{}.in_sum2", t.name), &[n, cols], GgmlType::F32), of));
            let ones = 1f32.to_le_bytes().repeat(n);
            sums.push((info(format!("{}.counts", t.name), &[n, 1], GgmlType::F32), ones));
        }
    }
    write(model, meta, weights);
    let mut meta = Metadata::new();
    meta.set("general.type", "imatrix");
    meta.set("imatrix.datasets", vec!["random".to_string()]);
    meta.set("imatrix.chunk_count", 1u32);
    meta.set("imatrix.chunk_size", 512u32);
    write(imatrix, &meta, sums);
}

fn run(args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_quantize")).args(args).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn bytes_equal_those_of_llama_quantize() {
    let (types, hashes) = (golden("types.json"), golden("hashes.json"));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (model, imatrix, out) = (path("model.gguf"), path("imatrix.gguf"), path("out.gguf"));
    for (name, targets) in hashes.as_object().unwrap() {
        let file = &types["files"][name];
        let tensors = tensors(&types["parts"], file);
        write_model(&tensors, &metadata(file), Path::new(&model), Path::new(&imatrix));
        for (target, expected) in targets.as_object().unwrap() {
            let mut args = vec!["--to", target, &model, "-o", &out, "--force", "--quiet"];
            let mut verify = vec!["verify", &out, "--source", &model];
            if target == "Q2_K" {
                args.extend(["--imatrix", &imatrix]);
                verify.extend(["--imatrix", &imatrix]);
            }
            let (ok, text) = run(&args);
            assert!(ok, "{name} {target}: {text}");
            let (header, bytes) = (read_header(Path::new(&out)).unwrap(), std::fs::read(&out).unwrap());
            let expected = expected.as_str().unwrap().split(' ');
            for (t, expected) in tensors.iter().zip(expected) {
                let info = header.find(&t.name).unwrap();
                let start = (header.data_start + info.offset) as usize;
                let digest = Sha256::digest(&bytes[start..start + info.bytes().unwrap() as usize]);
                let hex: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
                assert_eq!(hex, expected, "{name} {target} {} as {}", t.name, info.ty);
            }
            let (ok, text) = run(&verify);
            assert!(ok && text.contains(&format!("{0} of {0} tensors are what", tensors.len())), "{name}: {text}");
        }
    }
}

/// A model of an architecture that nobody knows.
fn unknown(dir: &Path) -> String {
    let mut meta = Metadata::new();
    meta.set("general.architecture", "newborn");
    meta.set("newborn.block_count", 1u32);
    meta.set("newborn.oddity", vec![1i64, -9_007_199_254_740_993]);
    let shapes: [(&str, &[usize], GgmlType); 5] = [
        ("token_embd.weight", &[32, 256], GgmlType::F16),
        ("blk.0.attn_q.weight", &[256, 256], GgmlType::F16),
        ("blk.0.mystery.weight", &[64, 288], GgmlType::F16),
        ("blk.0.attn_norm.weight", &[256], GgmlType::F32),
        ("blk.0.table.weight", &[4, 2], GgmlType::I64),
    ];
    let tensors = shapes.iter().enumerate().map(|(i, (name, shape, ty))| {
        let bytes = match ty {
            GgmlType::F16 => {
                numbers(i, shape.iter().product()).flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
            }
            GgmlType::I64 => (0..8i64).flat_map(|v| ((1 << 53) + 1 + v).to_le_bytes()).collect(),
            _ => numbers(i, shape.iter().product()).flat_map(f32::to_le_bytes).collect(),
        };
        (info(name.to_string(), shape, *ty), bytes)
    });
    let path = dir.join("newborn.gguf");
    write(&path, &meta, tensors.collect());
    path.to_string_lossy().into_owned()
}

#[test]
fn an_unknown_architecture_is_quantized_planned_split_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let model = unknown(dir.path());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let out = path("out.gguf");
    let ok = |args: &[&str]| {
        let (ok, text) = run(args);
        assert!(ok, "{args:?}: {text}");
        text
    };
    ok(&["--to", "q4_k_m", &model, "-o", &out, "--tensor-type", "attn_q=q6_k", "--quiet"]);
    let header = read_header(Path::new(&out)).unwrap();
    let ty = |name: &str| header.find(name).unwrap().ty;
    use GgmlType::*;
    assert_eq!((ty("token_embd.weight"), ty("blk.0.attn_q.weight"), ty("blk.0.mystery.weight")), (Q6_K, Q6_K, Q5_0));
    assert_eq!((ty("blk.0.attn_norm.weight"), ty("blk.0.table.weight")), (F32, I64));
    let odd = Value::Array(Array::I64(vec![1, -9_007_199_254_740_993]));
    assert_eq!(header.metadata.get("newborn.oddity"), Some(&odd));
    let text = ok(&["verify", &out, "--source", &model]);
    assert!(text.contains("5 of 5 tensors are what"), "{text}");
    assert!(ok(&["plan", &model, "--to", "q4_k_m"]).contains("wanted Q4_K, got Q5_0"));
    let split = path("split.gguf");
    ok(&["--to", "q8_0", &model, "-o", &split, "--split-max-tensors", "2", "--quiet"]);
    let text = ok(&["verify", &path("split-00001-of-00003.gguf"), "--source", &model]);
    assert!(text.contains("5 of 5 tensors are what"), "{text}");
}

#[test]
fn what_needs_the_meaning_of_tensors_refuses_an_unknown_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let model = unknown(dir.path());
    let out = dir.path().join("out").to_string_lossy().into_owned();
    let folder = ["--to", "fp8", &model, "-o", &out];
    let calibrated = ["--to", "q4_k_m", "--calibration", "default", &model, "-o", &out];
    for args in [&folder[..], &calibrated, &["calibrate", &model, "-o", &out], &["eval", &model, "--text", "default"]] {
        let (ok, text) = run(args);
        assert!(!ok && text.contains("newborn") && text.contains("from GGUF to GGUF"), "{args:?}: {text}");
        assert!(!Path::new(&out).exists());
    }
}
