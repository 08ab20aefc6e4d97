//! The tokenizer metadata of the conformance folders against what llama.cpp's converter wrote, and tokenization from GGUF
//! metadata against tokenization from the folder it was made of.

use crate::common::model;
use quantize::gguf::{Array, Metadata, Value};
use quantize::model::tokenizer::{GgufVocab, Tokenizer};
use quantize::model::tokenizer_of;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

const FOLDERS: [(&str, &str); 12] = [
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("llama", "llama"),
    ("llama-tied-headdim", "llama"),
    ("llama3-rope", "llama"),
    ("mistral-window", "llama"),
    ("mixtral", "llama"),
    ("phi3", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen2-moe", "qwen2moe"),
    ("qwen3", "qwen3"),
    ("qwen3-moe", "qwen3moe"),
];

const CORPUS: [&str; 12] = [
    "",
    "Hello world",
    "  two  and   three spaces,\ttabs\n\n\nand newlines \n x ",
    "fn main() {\n    let x = a[0]->b % 3; // it's we'll I'D\n}\r\n",
    "3 33 333 3333 12345678",
    "naïve café, ÀÉÎ, größer, Ελληνικά, нещо на Български",
    "我想在apple工作1314151天～ 日本語のテキスト 한국어",
    "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅",
    "<|endoftext|>before <|endoftext|> between<|endoftext|>",
    "<s>[INST] hi [/INST]</s><unk> <0x0A>",
    "a\u{301}\u{0}\u{7f}\u{85}\u{a0}\u{3000}z",
];

/// One value as the expected files state it: arrays by length, head and the SHA-256 of Python's JSON of the list.
fn stated(value: &Value) -> serde_json::Value {
    fn array<T: Clone>(
        ty: &str,
        items: &[T],
        python: impl Fn(&T) -> String,
        json: impl Fn(&T) -> serde_json::Value,
    ) -> serde_json::Value {
        let text = format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", "));
        let sha: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        let head: Vec<_> = items.iter().take(4).map(json).collect();
        json!({"type": ["ARRAY", ty], "value": {"length": items.len(), "head": head, "sha256": sha}})
    }
    match value {
        Value::String(s) => json!({"type": ["STRING"], "value": s}),
        Value::U32(v) => json!({"type": ["UINT32"], "value": v}),
        Value::Bool(v) => json!({"type": ["BOOL"], "value": v}),
        Value::Array(Array::String(v)) => array("STRING", v, |s| json!(s).to_string(), |s| json!(s)),
        Value::Array(Array::I32(v)) => array("INT32", v, |n| n.to_string(), |n| json!(n)),
        Value::Array(Array::F32(v)) => {
            array("FLOAT32", v, |x| format!("{:?}", f64::from(*x)), |x| json!(f64::from(*x)))
        }
        other => panic!("no tokenizer key holds {other:?}"),
    }
}

#[test]
fn conformance_folders_give_the_keys_of_the_converter() {
    for (folder, arch) in FOLDERS {
        let dir = model(folder);
        let text = std::fs::read_to_string(dir.join("expected_gguf.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected: Vec<(String, serde_json::Value)> = expected["metadata"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let pre = dir.join("tokenizer.json").exists().then_some("gpt-2");
        let vocab = GgufVocab::from_hf_dir(&dir, 320, tokenizer_of(arch), pre).unwrap();
        let mut meta = Metadata::new();
        vocab.write(&mut meta);
        let got: Vec<(String, serde_json::Value)> = meta.iter().map(|(k, v)| (k.to_string(), stated(v))).collect();
        assert_eq!(got, expected, "{folder}");
    }
}

#[test]
fn the_pre_tokenizer_of_the_folders_is_recognised() {
    for (folder, arch) in FOLDERS {
        let vocab = GgufVocab::from_hf_dir(&model(folder), 320, tokenizer_of(arch), None).unwrap();
        let expected = if vocab.model() == "gpt2" { "gpt-2" } else { "default" };
        assert_eq!(vocab.pre(), Some(expected), "{folder}");
    }
}

/// A GGUF of the folder tokenizes as the folder does, and decoding gives the text back.
fn same_from_both(dir: &Path, rows: usize, arch: &str) {
    let vocab = GgufVocab::from_hf_dir(dir, rows, tokenizer_of(arch), None).unwrap();
    let mut meta = Metadata::new();
    vocab.write(&mut meta);
    assert_eq!(GgufVocab::from_metadata(&meta).unwrap(), vocab);
    let (source, gguf) = (Tokenizer::from_hf_dir(dir).unwrap(), Tokenizer::from_gguf(&meta).unwrap());
    assert_eq!((source.bos(), source.eos()), (gguf.bos(), gguf.eos()));
    assert_eq!((source.add_bos(), source.add_eos()), (gguf.add_bos(), gguf.add_eos()));
    assert_eq!(source.end_tokens(), gguf.end_tokens());
    for text in CORPUS.iter().map(|t| t.to_string()).chain([CORPUS.join("\n")]) {
        for parse_special in [false, true] {
            let ids = gguf.encode(&text, parse_special).unwrap();
            assert_eq!(
                source.encode(&text, parse_special).unwrap(),
                ids,
                "{}: {text:?} {parse_special}",
                dir.display()
            );
            if parse_special {
                continue;
            }
            assert_eq!(gguf.decode(&ids), text);
            assert_eq!(source.decode(&ids), text);
            for tokenizer in [&source, &gguf] {
                let mut stream = tokenizer.stream();
                let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
                streamed.push_str(&stream.finish());
                assert_eq!(streamed, text);
            }
        }
    }
}

#[test]
fn gguf_and_folder_tokenize_alike() {
    same_from_both(&model("tiny-llama"), 2048, "llama");
    for (folder, arch) in FOLDERS {
        same_from_both(&model(folder), 320, arch);
    }
}

#[test]
fn streams_hold_back_characters_that_are_not_complete() {
    let dir = model("llama");
    let vocab = GgufVocab::from_hf_dir(&dir, 320, tokenizer_of("llama"), None).unwrap();
    let mut meta = Metadata::new();
    vocab.write(&mut meta);
    for tokenizer in [Tokenizer::from_hf_dir(&dir).unwrap(), Tokenizer::from_gguf(&meta).unwrap()] {
        let ids = tokenizer.encode("a🚀b", false).unwrap();
        assert_eq!(ids.len(), 6);
        let mut stream = tokenizer.stream();
        let pushed: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(pushed, ["a", "", "", "", "🚀", "b"]);
        let mut cut = tokenizer.stream();
        assert_eq!(ids[..3].iter().map(|&id| cut.push(id)).collect::<String>(), "a");
        assert_eq!(cut.finish(), "\u{fffd}");
    }
}
