//! Checkpoints that are already packed, as a source: every family in every format reads, runs and converts as its
//! unpacked twin does.

use crate::common::{conformance, model, quantize, repo};
use quantize::infer::{Cache, Engine};
use quantize::kernel::RowSource;
use quantize::model::Model;
use quantize::packed::{Input, Module, Reach, Scope, Spec, parse};
use quantize::quant::GgmlType;
use quantize::source::{Checkpoint, Dtype};
use serde_json::{Value, json};
use std::path::Path;

const TOKENS: [u32; 24] =
    [1, 17, 300, 45, 9, 9, 120, 31, 77, 5, 260, 199, 3, 88, 41, 2, 64, 128, 250, 7, 19, 23, 311, 60];

fn stored(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Ggml(ty) => ty.name(),
        Dtype::U8 => "U8",
        Dtype::U32 => "U32",
        Dtype::F8_E4M3 => "F8_E4M3",
        other => panic!("{other}"),
    }
}

/// A safetensors file of named tensors.
fn write(path: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, data) in tensors {
        let offsets = [at, at + data.len()];
        header.insert(name.clone(), json!({ "dtype": stored(*dtype), "shape": shape, "data_offsets": offsets }));
        at += data.len();
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    tensors.iter().for_each(|t| bytes.extend(&t.3));
    std::fs::write(path, bytes).unwrap();
}

/// Whether the format quantizes this tensor, by its name.
fn chosen(spec: &Spec, name: &str, shape: &[usize]) -> bool {
    let router = [".gate.weight", "shared_expert_gate.weight"].iter().any(|s| name.ends_with(s));
    let linear = name.contains(".layers.") && name.ends_with(".weight") && shape.len() == 2 && !router;
    let ends = name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight");
    linear || (ends && spec.reach() == Reach::EmbeddingsToo)
}

/// Writes `source` packed to `packed`, and with the same weights in F32 to `plain`; returns how many modules there were.
fn write_twins(source: &Path, spec: &Spec, packed: &Path, plain: &Path) -> usize {
    let ckpt = Checkpoint::open(source).unwrap();
    let (mut small, mut large, mut kept, mut names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for t in ckpt.tensors() {
        let Dtype::Ggml(ty) = t.dtype else { panic!() };
        let mut w = vec![0.0; t.elements()];
        ckpt.read_f32(t, 0..w.len(), &mut Vec::new(), &mut w).unwrap();
        let module = t.name.strip_suffix(".weight").unwrap_or(&t.name).to_string();
        if chosen(spec, &t.name, &t.shape) && spec.refuses(t.shape[0], t.shape[1]).is_none() {
            let mut m = Module::new(&w, t.shape[0], t.shape[1], ty);
            m.input_max = Some(64.0);
            for piece in spec.quantize_nearest(&m).unwrap() {
                small.push((format!("{module}.{}", piece.suffix), piece.dtype, piece.shape, piece.data));
            }
            names.push(t.name.clone());
        } else {
            if t.shape.len() == 2 && !t.name.ends_with("embed_tokens.weight") {
                kept.push(module);
            }
            let mut raw = vec![0; t.bytes() as usize];
            ckpt.read(t, 0, &mut raw).unwrap();
            small.push((t.name.clone(), t.dtype, t.shape.clone(), raw.clone()));
            large.push((t.name.clone(), t.dtype, t.shape.clone(), raw));
        }
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    for dir in [packed, plain] {
        std::fs::create_dir_all(dir).unwrap();
        for file in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"] {
            let _ = std::fs::copy(source.join(file), dir.join(file));
        }
    }
    std::fs::write(plain.join("config.json"), config.to_string()).unwrap();
    let object = spec.quantization_config(Scope { kept: &kept, exceptions: &[] });
    config[if spec.doubles_config() { "quantization" } else { "quantization_config" }] = object;
    std::fs::write(packed.join("config.json"), config.to_string()).unwrap();
    write(&packed.join("model.safetensors"), &small);
    let read = Checkpoint::open(packed).unwrap();
    for name in &names {
        let t = &read.tensors()[read.find(name).unwrap()];
        assert!(matches!(t.dtype, Dtype::Packed(_)), "{name}");
        let module = read.load_packed(t).unwrap();
        let mut w = vec![0.0; t.elements()];
        module.decode(0..module.rows(), &mut w);
        let bytes = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        large.push((name.clone(), Dtype::Ggml(GgmlType::F32), t.shape.clone(), bytes));
    }
    write(&plain.join("model.safetensors"), &large);
    names.len()
}

fn logits(dir: &Path) -> Vec<f32> {
    let ckpt = Checkpoint::open(dir).unwrap();
    let model = Model::open(&ckpt).unwrap();
    let engine = Engine::load(&ckpt, &model).unwrap();
    let tokens: Vec<u32> = TOKENS.iter().map(|t| t % model.config.vocab as u32).collect();
    let hidden = engine.hidden(&tokens, &mut Cache::one_batch(tokens.len()), &mut ()).unwrap();
    let mut logits = Vec::new();
    engine.head_into(&hidden, &mut logits, &mut ());
    logits
}

/// Bit for bit the same logits; where the format rounds activations too, nearly.
fn same_logits(packed: &Path, plain: &Path, what: &str) {
    let ckpt = Checkpoint::open(packed).unwrap();
    let module = ckpt.tensors().iter().find(|t| matches!(t.dtype, Dtype::Packed(_))).unwrap();
    let exact = ckpt.load_packed(module).unwrap().input() == Input::Exact;
    let (a, b) = (logits(packed), logits(plain));
    assert!(a.iter().all(|x| x.is_finite()), "{what}");
    if exact {
        assert!(a == b, "{what}");
        return;
    }
    let square = |x: f32| f64::from(x * x);
    let error: f64 = a.iter().zip(&b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|b| square(*b)).sum();
    let ratio = (error / size).sqrt();
    // Four-bit activations cost a random model a good deal.
    let most = if what.starts_with("nvfp4") { 0.7 } else { 0.4 };
    assert!(ratio > 0.0 && ratio < most, "{what}: {ratio}");
}

/// Every tensor in GGUF's order, read a few rows at a time.
fn mapped(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let ckpt = Checkpoint::open(dir).unwrap();
    let mut all = Vec::new();
    for t in &Model::open(&ckpt).unwrap().tensors {
        let (rows, cols) = (t.row_count(), t.cols());
        let mut w = vec![0.0; rows * cols];
        for (i, w) in w.chunks_mut(7 * cols).enumerate() {
            let end = (7 * i + 7).min(rows);
            t.read_rows(&ckpt, 7 * i..end, &mut Vec::new(), w).unwrap();
        }
        all.push((t.name.clone(), w));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn every_family_reads_and_runs_as_its_unpacked_twin() {
    let formats =
        ["gptq-4bit-32g", "awq-4bit-32g", "w4a16-32g-asym", "fp8", "nvfp4a16", "nf4-dq", "bnb-int8", "mlx-4bit-32g"];
    for source in conformance() {
        for name in formats {
            let spec = parse(name).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (packed, plain) = (dir.path().join("packed"), dir.path().join("plain"));
            let modules = write_twins(&source, &spec, &packed, &plain);
            assert!(modules > 7, "{name} of {}: {modules} modules", source.display());
            same_logits(&packed, &plain, &format!("{name} of {}", source.display()));
            assert!(mapped(&packed) == mapped(&plain), "{name} of {}", source.display());
        }
    }
}

#[test]
fn every_format_of_a_llama() {
    let source = model("llama");
    for name in [
        "gptq-2bit-32g",
        "gptq-3bit-32g",
        "gptq-8bit-64g-asym",
        "gptq-4bit-channel",
        "awq-4bit-64g-sym",
        "w4a16-64g",
        "w8a16",
        "fp8-block",
        "fp8-static",
        "int8",
        "nvfp4",
        "mxfp4",
        "nf4",
        "fp4",
        "fp4-dq",
        "mlx-2bit-32g",
        "mlx-3bit-32g",
        "mlx-5bit-32g",
        "mlx-6bit-64g",
        "mlx-8bit-64g",
        "mlx-mxfp4",
        "mlx-nvfp4",
        "mlx-mxfp8",
    ] {
        let spec = parse(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (packed, plain) = (dir.path().join("packed"), dir.path().join("plain"));
        let modules = write_twins(&source, &spec, &packed, &plain);
        if modules == 0 {
            // Rows of 64 hold no block of 128: all weights are plain, and read so.
            assert_eq!(name, "fp8-block");
            let read = Checkpoint::open(&packed).unwrap();
            assert!(read.remarks().iter().any(|r| r.contains("all weights are plain")), "{:?}", read.remarks());
            assert!(logits(&packed) == logits(&plain));
            continue;
        }
        same_logits(&packed, &plain, name);
        assert!(mapped(&packed) == mapped(&plain), "{name}");
    }
}

/// FP8 with block scales as DeepSeek's checkpoints have it, which nothing here writes.
#[test]
fn inverse_block_scales_are_multiplied() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, plain) = (dir.path().join("packed"), dir.path().join("plain"));
    let spec = parse("fp8-block").unwrap();
    assert!(write_twins(&model("tiny-llama"), &spec, &packed, &plain) > 7);
    let path = packed.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = json!({ "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3" });
    std::fs::write(&path, config.to_string()).unwrap();
    // The same file with another name for the scales; the name is longer, so the header is written anew.
    let file = std::fs::read(packed.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(file[8..8 + len].to_vec()).unwrap().replace("weight_scale\"", "weight_scale_inv\"");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(&file[8 + len..]);
    std::fs::write(packed.join("model.safetensors"), bytes).unwrap();
    same_logits(&packed, &plain, "fp8");
}

#[test]
fn packed_folders_convert_and_compare_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gptq-4bit-64g", "fp8"] {
        write_twins(
            &model("tiny-llama"),
            &parse(name).unwrap(),
            &dir.path().join(name),
            &dir.path().join(format!("{name}-plain")),
        );
        let out = quantize(dir.path(), &["--to", "q4_k_m", name]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let text = repo("calibration/technical.txt");
    let model = model("tiny-llama");
    let args = ["compare", model.to_str().unwrap(), "gptq-4bit-64g", "fp8", "--ctx", "128", "--chunks", "4"];
    let out = quantize(dir.path(), &[&args[..], &["--text", text.to_str().unwrap(), "--format", "json"]].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let candidates = report["candidates"].as_array().or(report["report"]["candidates"].as_array()).unwrap();
    let kld = |i: usize| candidates[i]["stats"]["kld"]["value"].as_f64().unwrap();
    assert!(kld(0) > kld(1) && kld(1) > 0.0, "{} {}", kld(0), kld(1));
    let artifact = &candidates[0];
    let bpw = artifact["bpw"].as_f64().unwrap();
    assert!(bpw > 4.0 && bpw < 8.0, "{artifact}");
    assert_eq!(artifact["format"], "gptq");
    // What cannot be read is refused as before.
    let path = dir.path().join("gptq-4bit-64g/config.json");
    let config = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"checkpoint_format\":\"gptq\"", "\"checkpoint_format\":\"marlin\"");
    std::fs::write(&path, config).unwrap();
    let out = quantize(dir.path(), &["--to", "q4_k_m", "gptq-4bit-64g", "-o", "again.gguf"]);
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.code() == Some(4) && message.contains("already quantized (gptq in the layout 'marlin'"),
        "{message}"
    );
}
