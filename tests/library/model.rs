//! The mapping against llama.cpp's converter: for every tiny model of `tests/conformance`, the same tensors in the same
//! order with the same bytes at F16, and the same metadata, as `expected_gguf.json` records from `convert_hf_to_gguf.py`.

use crate::common::{FAMILIES, json, model as folder, open, sha256};
use quantize::gguf::Value;
use quantize::model::config_keys::lost;
use quantize::model::{Config, Role, expected_tensors, gguf_metadata, keeps_f32};

/// A line per tensor: name, ggml dimensions, type, hash of the data.
fn line(name: &str, shape: &[usize], values: &[f32]) -> String {
    let f32_type = keeps_f32(name, shape);
    let bytes: Vec<u8> = match f32_type {
        true => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        false => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
    };
    let dims: Vec<_> = shape.iter().rev().collect();
    format!("{name} {dims:?} {} {}", if f32_type { "F32" } else { "F16" }, sha256(&bytes))
}

#[test]
fn tensors_equal_those_of_the_converter() {
    for name in FAMILIES {
        let (ckpt, model) = open(name);
        let mut lines: Vec<String> = model.generated.iter().map(|g| line(&g.name, &g.shape, &g.values)).collect();
        for t in &model.tensors {
            let mut values = vec![0.0; t.elements()];
            t.read_rows(&ckpt, 0..t.row_count(), &mut Vec::new(), &mut values).unwrap();
            lines.push(line(&t.name, &t.shape, &values));
        }
        let expected: Vec<String> = json(&folder(name).join("expected_gguf.json"))["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| {
                let dims: Vec<u64> = t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
                let text = |key: &str| t[key].as_str().unwrap().to_string();
                format!("{} {dims:?} {} {}", text("name"), text("type"), text("sha256"))
            })
            .collect();
        assert_eq!(lines, expected, "{name}");
    }
}

/// `TYPE value`, floats as their exact decimal.
fn shown(value: &Value) -> String {
    match value {
        Value::U32(v) => format!("UINT32 {v}"),
        Value::I32(v) => format!("INT32 {v}"),
        Value::F32(v) => format!("FLOAT32 {:?}", f64::from(*v)),
        Value::Bool(v) => format!("BOOL {v}"),
        Value::String(v) => format!("STRING {v}"),
        other => panic!("unexpected {other:?}"),
    }
}

fn shown_json(ty: &str, value: &serde_json::Value) -> String {
    match (ty, value) {
        ("FLOAT32", v) => format!("FLOAT32 {:?}", v.as_f64().unwrap()),
        (_, serde_json::Value::String(v)) => format!("{ty} {v}"),
        (_, v) => format!("{ty} {v}"),
    }
}

#[test]
fn metadata_equals_that_of_the_converter() {
    for name in FAMILIES {
        let (ckpt, model) = open(name);
        let mut meta = gguf_metadata(&model, &ckpt, 1).unwrap();
        // The one key more that we write: llama.cpp has no window for mistral.
        const WINDOW: &str = "llama.attention.sliding_window";
        assert_eq!(meta.uint(WINDOW), (name == "mistral-window").then_some(16), "{name}");
        meta.remove(WINDOW);
        let ours: Vec<_> = meta.iter().map(|(k, v)| (k.to_string(), shown(v))).collect();
        let expected: Vec<_> = json(&folder(name).join("expected_gguf.json"))["metadata"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(k, _)| !k.starts_with("tokenizer."))
            .map(|(k, v)| (k.clone(), shown_json(v["type"][0].as_str().unwrap(), &v["value"])))
            .collect();
        assert_eq!(ours, expected, "{name}");
    }
}

#[test]
fn the_plan_from_config_alone_lists_the_tensors_of_the_checkpoint() {
    for name in FAMILIES {
        let (_, model) = open(name);
        let config = Config::from_hf(&json(&folder(name).join("config.json"))).unwrap();
        assert_eq!(config, model.config);
        let mut planned = expected_tensors(&config);
        let mut mapped: Vec<_> =
            model.tensors.iter().map(|t| (t.name.clone(), t.shape.clone(), t.role, t.layer)).collect();
        planned.sort();
        mapped.sort();
        assert_eq!(planned, mapped, "{name}");
    }
}

#[test]
fn any_range_of_rows_equals_the_same_rows_of_the_whole() {
    for name in ["llama-tied-headdim", "mixtral", "gemma3"] {
        let (ckpt, model) = open(name);
        for t in &model.tensors {
            let (cols, rows) = (t.cols(), t.row_count());
            let mut scratch = Vec::new();
            let mut whole = vec![0.0; rows * cols];
            t.read_rows(&ckpt, 0..rows, &mut scratch, &mut whole).unwrap();
            for step in [1, 7, 33] {
                for start in (0..rows).step_by(step) {
                    let end = (start + step).min(rows);
                    let mut part = vec![0.0; (end - start) * cols];
                    t.read_rows(&ckpt, start..end, &mut scratch, &mut part).unwrap();
                    assert_eq!(part, whole[start * cols..end * cols], "{} rows {start}..{end}", t.name);
                }
            }
            let mut short = vec![0.0; cols];
            assert!(t.read_rows(&ckpt, rows..rows + 1, &mut scratch, &mut short).is_err());
        }
    }
}

/// The hyper-parameters that a GGUF file states come back from it, for every family.
#[test]
fn gguf_metadata_reads_back_as_the_same_configuration() {
    for name in FAMILIES {
        let (ckpt, model) = open(name);
        let mut meta = gguf_metadata(&model, &ckpt, 1).unwrap();
        meta.set("tokenizer.ggml.tokens", vec![String::new(); model.config.vocab]);
        let mut back = Config::from_gguf(&meta).unwrap_or_else(|e| panic!("{name}: {e}"));
        // What only tensors tell.
        back.tied_embeddings = model.config.tied_embeddings;
        for (back, ours) in back.layers.iter_mut().zip(&model.config.layers) {
            let ours_heads = ours.heads().unwrap();
            let heads = back.heads_mut().unwrap();
            (heads.qkv_bias, heads.output_bias) = (ours_heads.qkv_bias, ours_heads.output_bias);
            if let (Some(back), Some(ours)) = (&mut back.ffn.dense, &ours.ffn.dense) {
                back.bias = ours.bias;
            }
        }
        let mut ours = model.config.clone();
        if name == "llama3-rope" {
            // Its scaling is in the tensor rope_freqs.
            ours.ropes[0].scaling = back.ropes[0].scaling.clone();
        }
        assert_eq!(back, ours, "{name}");
        // To readers that follow llama.cpp, the llama architecture has no window.
        let lost: Vec<_> = lost(&model).unwrap().into_iter().map(|l| (l.fact, l.layers)).collect();
        let expected =
            if name == "mistral-window" { vec![("attention window", ours.layers.len())] } else { Vec::new() };
        assert_eq!(lost, expected, "{name}");
    }
}

#[test]
fn roles_find_their_tensors() {
    let (_, model) = open("qwen2-moe");
    let router = model.find(Role::Router, Some(1)).unwrap();
    assert_eq!((router.name.as_str(), router.shape.as_slice()), ("blk.1.ffn_gate_inp.weight", &[4, 64][..]));
    assert_eq!(model.find(Role::ExpertUp, Some(2)).unwrap().parts.len(), 4);
    assert!(model.find(Role::FfnUp, Some(0)).is_none());
    assert_eq!(model.find(Role::Output, None).unwrap().shape, [320, 64]);
}
