//! Checkpoints of every architecture that llama.cpp's converter knows and transformers can write, as GGUF files: tensors and
//! metadata are what llama.cpp's converter made of the same (`tests/interop/family_goldens.py` wrote the goldens).

use crate::common::{json, names, repo, sha256};
use quantize::Control;
use quantize::convert::{self, Recipe};
use quantize::gguf::{Array, Value as Gguf, read_header};
use quantize::model::SourceModel;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// What differs from llama.cpp's conversion, and why.
const DIFFERENT: &[(&str, &str, &str)] = &[
    ("dbrx", "tensor blk.0.ffn_gate_inp.weight", "a router keeps F32"),
    ("dbrx", "tensor blk.1.ffn_gate_inp.weight", "a router keeps F32"),
    ("nemotron-h-moe", "tensor blk.4.ffn_gate_inp.weight", "a router keeps F32"),
    ("gpt-neox", "general.file_type", "stated everywhere"),
    ("mpt", "general.file_type", "stated everywhere"),
    ("mistral-window", "llama.attention.sliding_window", "stated where the model has one"),
    ("minimax-01", "tokenizer.chat_template", "the converter brings a template of its own"),
    ("xlm-roberta-reranker", "tokenizer.ggml.remove_extra_whitespaces", "its tokenizer.json splits at white space"),
    ("deci", "tokenizer.ggml.scores", "in the order of the merges"),
    ("xverse", "tokenizer.ggml.scores", "in the order of the merges"),
    ("qwen3-asr", "tokenizer.ggml.bos_token_id", "the end of a turn begins no text"),
    ("puzzle", "tensor blk.0.ssm_a", "torch's exp is not rounded correctly everywhere"),
    ("bailing-norm-head", "tensor output.weight", "torch adds up the squares of a column in another order"),
    ("bert-reranker", "tensor cls.weight", "the pooler is a part of the scores"),
    ("bert-reranker", "tensor cls.bias", "the pooler is a part of the scores"),
    ("bert-reranker", "general.size_label", "counts the pooler"),
    ("chameleon", "tensor blk.0.attn_q_norm.weight", "each head has its own"),
    ("chameleon", "tensor blk.0.attn_q_norm.bias", "each head has its own"),
    ("chameleon", "tensor blk.0.attn_k_norm.weight", "each head has its own"),
    ("chameleon", "tensor blk.0.attn_k_norm.bias", "each head has its own"),
    ("qwen3-omni", "tokenizer.ggml.eos_token_id", "the end of a turn, wherever its token is listed"),
    ("qwen3-reranker", "", "the converter goes by words in a README"),
    ("deepseek-v4", "", "not yet"),
    ("rwkv6qwen2", "", "not yet"),
];

/// As `words` and `values` of the script.
fn generated(name: &str, dtype: Dtype, elements: usize) -> Vec<u8> {
    let mut seed = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let words = (1..=elements as u64).map(|i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    let float = |w: u64, top: u32, low: u64, mantissa: u32| {
        ((w & 1) << top) | (((w >> 1 & 7) + low) << mantissa) | (w >> 4 & ((1 << mantissa) - 1))
    };
    match dtype {
        Dtype::F16 => words.flat_map(|w| (float(w, 15, 8, 10) as u16).to_le_bytes()).collect(),
        Dtype::BF16 => words.flat_map(|w| (float(w, 15, 120, 7) as u16).to_le_bytes()).collect(),
        Dtype::F32 => words.flat_map(|w| (float(w, 31, 120, 23) as u32).to_le_bytes()).collect(),
        Dtype::F8_E8M0 => words.map(|w| (w & 15) as u8 + 112).collect(),
        _ if name.ends_with("_scales") => words.map(|w| (w & 15) as u8 + 112).collect(),
        _ => words.map(|w| w as u8).collect(),
    }
}

/// Writes the checkpoint of a golden to a folder.
pub fn restore(name: &str, to: &Path) {
    restore_golden(&json(&repo("tests/golden/families").join(format!("{name}.json"))), to);
}

pub fn restore_golden(golden: &Value, to: &Path) {
    let path = |name: &str| {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for (name, stored) in golden["files"].as_object().unwrap() {
        let stored = repo("tests/golden/families/files").join(stored.as_str().unwrap());
        fs::copy(stored, path(name)).unwrap();
    }
    for (file, tensors) in golden["weights"].as_object().unwrap() {
        let data: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, entry)| {
                let dtype: Dtype = serde_json::from_value(entry[0].clone()).unwrap();
                let shape: Vec<usize> = serde_json::from_value(entry[1].clone()).unwrap();
                let data = match entry[2].as_array() {
                    Some(kept) => kept.iter().flat_map(|v| v.as_i64().unwrap().to_le_bytes()).collect(),
                    None => generated(name, dtype, shape.iter().product()),
                };
                (name, dtype, shape, data)
            })
            .collect();
        let views = data.iter().map(|(n, dtype, s, bytes)| (n, TensorView::new(*dtype, s.clone(), bytes).unwrap()));
        fs::write(path(file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

/// A number as Python's JSON has it.
fn python(x: f64) -> String {
    let short = format!("{x:e}");
    let (mantissa, exponent) = short.split_once('e').unwrap();
    let exponent: i32 = exponent.parse().unwrap();
    match exponent {
        -4..16 => format!("{x:?}"),
        _ => format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

fn number(x: f32) -> Value {
    match x {
        f32::INFINITY => json!("Infinity"),
        f32::NEG_INFINITY => json!("-Infinity"),
        _ => serde_json::from_str(&python(f64::from(x))).unwrap(),
    }
}

/// A value as the goldens have it: types, then the value, or length, beginning and digest of a long array.
fn stated(value: &Gguf) -> Value {
    let array = |ty: &str, items: Vec<Value>| {
        if items.len() <= 8 {
            return json!(["ARRAY", ty, items]);
        }
        let all = format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", "));
        json!(["ARRAY", ty, { "length": items.len(), "head": items[..4], "sha256": sha256(all.as_bytes()) }])
    };
    match value {
        Gguf::U32(x) => json!(["UINT32", x]),
        Gguf::I32(x) => json!(["INT32", x]),
        Gguf::F32(x) => json!(["FLOAT32", number(*x)]),
        Gguf::Bool(x) => json!(["BOOL", x]),
        Gguf::String(x) => json!(["STRING", x]),
        Gguf::Array(Array::U8(items)) => array("UINT8", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::I32(items)) => array("INT32", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::U32(items)) => array("UINT32", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::I64(items)) => array("INT64", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::U64(items)) => array("UINT64", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::F32(items)) => array("FLOAT32", items.iter().map(|x| number(*x)).collect()),
        Gguf::Array(Array::Bool(items)) => array("BOOL", items.iter().map(|x| json!(x)).collect()),
        Gguf::Array(Array::String(items)) => array("STRING", items.iter().map(|x| json!(x)).collect()),
        other => json!([format!("{other:?}")]),
    }
}

/// What is in a file: the tensors and the metadata as the goldens have them.
pub fn contents(file: &Path) -> [Map<String, Value>; 2] {
    let (header, bytes) = (read_header(file).unwrap(), fs::read(file).unwrap());
    let tensors = header.tensors.iter().map(|t| {
        let begin = (header.data_start + t.offset) as usize;
        let data = &bytes[begin..begin + t.bytes().unwrap() as usize];

        (t.name.clone(), json!([t.ty.name(), t.dims, sha256(data)[..16]]))
    });
    let metadata =
        header.metadata.iter().filter(|(k, _)| !k.starts_with("quantize.")).map(|(k, v)| (k.to_string(), stated(v)));
    [tensors.collect(), metadata.collect()]
}

fn differences(golden: &Value, name: &str) -> quantize::Result<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(name);
    restore_golden(golden, &folder);
    let pre = golden["metadata"]["tokenizer.ggml.pre"][1].as_str().filter(|pre| *pre != "default");
    let recipe = Recipe { pretokenizer: pre.map(String::from), ..Recipe::to(["f16"])? };
    let mut plan = convert::plan(&SourceModel::open(&folder)?, &recipe)?;
    plan.place(dir.path())?;
    // Their chunks and windows are others than those that GGUF files have without saying so.
    let check = ["llama4", "embedding-gemma"].contains(&name).then_some(false);
    let file = convert::run(&plan, &Control { check, ..Control::default() }, &())?.outputs[0].paths[0].clone();
    let mut wrong = Vec::new();
    let expected = ["tensors", "metadata"].map(|part| golden[part].as_object().unwrap());
    for ((ours, theirs), kind) in contents(&file).iter().zip(expected).zip(["tensor ", ""]) {
        let more = ours.keys().filter(|key| !theirs.contains_key(*key));
        for key in theirs.keys().chain(more) {
            if ours.get(key) != theirs.get(key) {
                wrong.push((format!("{kind}{key}"), format!("{:?} for {:?}", ours.get(key), theirs.get(key))));
            }
        }
    }
    let known = |key: &str| DIFFERENT.iter().any(|(of, what, _)| *of == name && *what == key);
    Ok(wrong.into_iter().filter(|(key, _)| !known(key)).map(|(key, what)| format!("{name}: {key}: {what}")).collect())
}

#[test]
fn every_family_converts_as_llama_cpp_converts_it() {
    let goldens = names(&repo("tests/golden/families"));
    let goldens: Vec<&str> = goldens.iter().filter_map(|file| file.strip_suffix(".json")).collect();
    assert!(goldens.len() > 220, "{}", goldens.len());
    let mut wrong = Vec::new();
    for name in goldens {
        if DIFFERENT.iter().any(|(of, what, _)| *of == name && what.is_empty()) {
            continue;
        }
        let golden = json(&repo("tests/golden/families").join(format!("{name}.json")));
        wrong.extend(differences(&golden, name).unwrap_or_else(|error| vec![format!("{name}: {error}")]));
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
