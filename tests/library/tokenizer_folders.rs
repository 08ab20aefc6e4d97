//! Tokenizers from folders that are put together here: which pre-tokenizer is recognised, special tokens, chat
//! templates, padding, SentencePiece models restated as `tokenizer.json`, and folders that are at fault.

use crate::common::model;
use quantize::gguf::{Metadata, Value, read_header};
use quantize::model::tokenizer::sentencepiece::{Piece, TokenType, parse};
use quantize::model::tokenizer::{GgufVocab, Tokenizer, pre};
use quantize::model::tokenizer_of;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn folder(files: &[(&str, Json)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, json) in files {
        let text = json.as_str().map_or_else(|| json.to_string(), String::from);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A small byte-level `tokenizer.json`.
fn byte_level(pre_tokenizer: Json) -> Json {
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 4, "content": "<|begin|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 5, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false},
            {"id": 6, "content": "<tool>▁", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "ignore_merges": false, "byte_fallback": false,
                  "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": [["a", "b"]]},
    })
}

fn gpt2() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

fn split(pattern: &str) -> Json {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
}

fn recognised(change: impl Fn(&mut Json), pre_tokenizer: Json) -> String {
    let mut json = byte_level(pre_tokenizer);
    change(&mut json);
    let dir = folder(&[("tokenizer.json", json)]);
    let vocab = GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("llama"), None).unwrap();
    vocab.pre().unwrap().to_string()
}

#[test]
fn the_structure_names_the_pre_tokenizer() {
    let same = |_: &mut Json| {};
    let nfc = |json: &mut Json| json["normalizer"] = json!({"type": "NFC"});
    let whole = |json: &mut Json| json["model"]["ignore_merges"] = json!(true);
    let digits = |individual: bool| json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": individual}, gpt2()]});
    let token = |text: &'static str| move |json: &mut Json| json["added_tokens"][0]["content"] = json!(text);
    assert_eq!(recognised(same, gpt2()), "gpt-2");
    assert_eq!(recognised(nfc, gpt2()), "mpt");
    assert_eq!(recognised(same, digits(true)), "smollm");
    assert_eq!(recognised(token("<fim_prefix>"), digits(true)), "starcoder");
    assert_eq!(recognised(nfc, digits(true)), "command-r");
    assert_eq!(recognised(nfc, split(QWEN2)), "qwen2");
    assert_eq!(recognised(token("<｜begin▁of▁sentence｜>"), split(QWEN2)), "deepseek-r1-qwen");
    assert_eq!(recognised(whole, split(LLAMA3)), "llama-bpe");
    assert_eq!(recognised(same, split(LLAMA3)), "dbrx");
    assert_eq!(recognised(token("<|begin_of_text|>"), split(LLAMA3)), "smaug-bpe");
    // Spelled in other ways: the case-insensitive group written out, and matches kept instead of isolated.
    let spelled =
        LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])");
    let mut inverted = split(&spelled);
    inverted["pretokenizers"][0]["behavior"] = json!("Removed");
    inverted["pretokenizers"][0]["invert"] = json!(true);
    assert_eq!(recognised(whole, inverted), "llama-bpe");
}

#[test]
fn an_unknown_structure_is_refused_with_the_closest_name() {
    let near = split(&QWEN2.replace(r"\p{N}|", r"\p{N}+|"));
    let dir = folder(&[("tokenizer.json", byte_level(near))]);
    let error = GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("qwen2"), None).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("tokenizer.json") && text.contains("the pre-tokenizer qwen2"), "{text}");
    let vocab = GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("qwen2"), Some("stablelm2")).unwrap();
    assert_eq!(vocab.pre(), Some("stablelm2"));

    let wrong = GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("qwen2"), Some("qwen-2")).unwrap_err();
    assert_eq!(wrong.exit_code(), 4);
    assert!(wrong.to_string().contains("closest: 'qwen2'"), "{wrong}");

    let mut lower = byte_level(gpt2());
    lower["normalizer"] = json!({"type": "Lowercase"});
    let dir = folder(&[("tokenizer.json", lower)]);
    assert_eq!(GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("llama"), None).unwrap_err().exit_code(), 4);
}

#[test]
fn every_pattern_of_the_table_compiles_and_covers_a_text() {
    let mut meta = Metadata::new();
    meta.set("tokenizer.ggml.model", "gpt2");
    let printed = (0x21..=0x7e).map(|b| char::from(b).to_string());
    // Spaces and line ends as bytes are spelled, and as they are.
    let tokens: Vec<String> = printed.chain(["Ġ", "Ċ", "▁", " ", "\n"].map(String::from)).collect();
    meta.set("tokenizer.ggml.tokens", tokens);
    for entry in pre::PRE_TOKENIZERS {
        meta.set("tokenizer.ggml.pre", entry.name);
        let tokenizer = Tokenizer::from_gguf(&meta).unwrap();
        let text = "It's  a test,\n\n1234567 x!\n  end ";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "{}", entry.name);
    }
}

#[test]
fn rows_types_special_tokens_and_templates() {
    let mut json = byte_level(gpt2());
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [4], "tokens": ["<|begin|>"]}}});
    let config = json!({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "add_eos_token": true,
        "chat_template": [{"name": "default", "template": "main"}, {"name": "tool use", "template": "tools"}],
        "added_tokens_decoder": {"7": {"content": "<late>", "special": true}}});
    let dir = folder(&[
        ("tokenizer.json", json),
        ("tokenizer_config.json", config),
        ("config.json", json!({"pad_token_id": 3})),
    ]);
    let vocab = GgufVocab::from_hf_dir(dir.path(), 10, tokenizer_of("qwen2"), None).unwrap();
    assert_eq!(vocab.tokens(), ["a", "b", "Ġ", "ab", "<|begin|>", "<|end|>", "<tool> ", "<late>", "[PAD8]", "[PAD9]"]);
    use TokenType::*;
    assert_eq!(
        vocab.token_types(),
        [Normal, Normal, Normal, Normal, Control, Control, UserDefined, Control, Unused, Unused]
    );
    let mut meta = Metadata::new();
    vocab.write(&mut meta);
    let rest: Vec<(&str, &Value)> = meta.iter().skip(4).collect();
    let text = |s: &str| Value::String(s.into());
    assert_eq!(
        rest,
        [
            ("tokenizer.ggml.merges", &Value::from(vec!["a b".to_string()])),
            ("tokenizer.ggml.bos_token_id", &Value::U32(4)),
            ("tokenizer.ggml.eos_token_id", &Value::U32(5)),
            ("tokenizer.ggml.padding_token_id", &Value::U32(3)),
            ("tokenizer.ggml.add_bos_token", &Value::Bool(true)),
            ("tokenizer.ggml.add_eos_token", &Value::Bool(true)),
            ("tokenizer.chat_template.tool_use", &text("tools")),
            ("tokenizer.chat_templates", &Value::from(vec!["tool_use".to_string()])),
            ("tokenizer.chat_template", &text("main")),
        ]
    );
    let tokenizer = Tokenizer::from_hf_dir(dir.path()).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos(), tokenizer.add_eos()),
        (Some(4), Some(5), true, true)
    );
    assert_eq!(tokenizer.end_tokens(), [5]);
    assert_eq!(tokenizer.chat_template(), Some("main"));
    assert_eq!(tokenizer.encode("ab<|begin|>a<late>", true).unwrap(), [3, 4, 0, 7]);
    assert_eq!(Tokenizer::from_gguf(&meta).unwrap().encode("ab<|begin|>a<late>", true).unwrap(), [3, 4, 0, 7]);
}

#[test]
fn the_chat_template_may_lie_in_a_file() {
    let config = json!({"bos_token": "<|begin|>"});
    let files = [("tokenizer.json", byte_level(gpt2())), ("tokenizer_config.json", config)];
    let template = |extra: (&str, Json)| {
        let mut files = files.to_vec();
        files.push(extra);
        let vocab = GgufVocab::from_hf_dir(folder(&files).path(), 8, tokenizer_of("llama"), None).unwrap();
        vocab.chat_template().map(String::from)
    };
    assert_eq!(template(("chat_template.jinja", json!("{{ x }}"))).as_deref(), Some("{{ x }}"));
    assert_eq!(template(("chat_template.json", json!({"chat_template": "{{ y }}"}))).as_deref(), Some("{{ y }}"));
    assert_eq!(template(("other.txt", json!("z"))), None);
}

/// A SentencePiece model in the spelling of transformers' fast tokenizers: every way to put a piece together is a merge,
/// best pieces first.
fn restate(pieces: &[Piece]) -> Json {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, p)| (p.text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for piece in pieces.iter().filter(|p| p.ty == TokenType::Normal) {
        let mut ways: Vec<(usize, usize, Json)> = Vec::new();
        for (at, _) in piece.text.char_indices().skip(1) {
            let (a, b) = piece.text.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(a), ids.get(b)) {
                ways.push((left, right, json!([a, b])));
            }
        }
        ways.sort_by_key(|w| (w.0, w.1));
        merges.extend(ways.into_iter().map(|w| (piece.score, w.2)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let added: Vec<Json> = pieces
        .iter()
        .enumerate()
        .filter(|(_, p)| matches!(p.ty, TokenType::Control | TokenType::Unknown))
        .map(|(id, p)| json!({"id": id, "content": p.text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    json!({
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": ids, "merges": merges.into_iter().map(|m| m.1).collect::<Vec<_>>()},
    })
}

/// Scores derived from the merges order the pieces as the model does, and the folder and its GGUF tokenize alike.
fn restated_model_is_the_same(pieces: &[Piece], rows: usize, texts: &[&str]) -> Vec<f32> {
    let dir = folder(&[("tokenizer.json", restate(pieces))]);
    let vocab = GgufVocab::from_hf_dir(dir.path(), rows, tokenizer_of("llama"), None).unwrap();
    assert_eq!(vocab.model(), "llama");
    let mut scores = Vec::new();
    for ((piece, token), score) in pieces.iter().zip(vocab.tokens()).zip(vocab.scores()) {
        assert_eq!(&piece.text, token);
        // The score of a single character is never looked at.
        if piece.ty == TokenType::Normal && piece.text.chars().count() > 1 {
            scores.push((piece.score, score));
        }
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert!(scores.windows(2).all(|w| w[0].0 == w[1].0 || w[0].1 > w[1].1));
    let mut meta = Metadata::new();
    vocab.write(&mut meta);
    let (source, gguf) = (Tokenizer::from_hf_dir(dir.path()).unwrap(), Tokenizer::from_gguf(&meta).unwrap());
    for text in texts {
        let ids = gguf.encode(text, false).unwrap();
        assert_eq!(source.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!((source.decode(&ids), gguf.decode(&ids)), (text.to_string(), text.to_string()));
        for tokenizer in [&source, &gguf] {
            let mut stream = tokenizer.stream();
            let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            assert_eq!(streamed + &stream.finish(), *text);
        }
    }
    vocab.scores()
}

const TEXTS: [&str; 5] = [
    "Hello world",
    "  two  spaces\n\nand\tlines ",
    "fn main() { println!(\"{}\", a[0] >> 3); } // 12345",
    "нещо на Български, 我想在apple工作1314151天～ កាន់តែ",
    "🚀 (normal) 😶‍🌫️ naïve café",
];

#[test]
fn sentencepiece_restated_as_tokenizer_json() {
    let path = model("mistral-window").join("tokenizer.model");
    let pieces = parse(&path, &std::fs::read(&path).unwrap()).unwrap();
    let scores = restated_model_is_the_same(&pieces, pieces.len(), &TEXTS);
    for (piece, score) in pieces.iter().zip(scores).filter(|(p, _)| p.ty == TokenType::Normal) {
        assert_eq!(piece.score, score, "{}", piece.text);
    }
}

#[test]
fn llama_2_restated_as_tokenizer_json() {
    let Some(dir) = std::env::var_os("QUANTIZE_VOCAB_DIR") else {
        println!("skipped: QUANTIZE_VOCAB_DIR is not set");
        return;
    };
    let meta = read_header(&Path::new(&dir).join("ggml-vocab-llama-spm.gguf")).unwrap().metadata;
    let vocab = GgufVocab::from_metadata(&meta).unwrap();
    let entries = vocab.tokens().iter().zip(vocab.scores()).zip(vocab.token_types());
    let pieces: Vec<Piece> = entries.map(|((text, score), ty)| Piece { text: text.clone(), score, ty }).collect();
    restated_model_is_the_same(&pieces, 32000, &TEXTS);
}

#[test]
fn folders_at_fault_are_refused() {
    let refused = |files: &[(&str, Json)], rows: usize, code: u8, says: &str| {
        let dir = folder(files);
        let error = GgufVocab::from_hf_dir(dir.path(), rows, tokenizer_of("llama"), None).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let changed = |change: &dyn Fn(&mut Json)| {
        let mut json = byte_level(gpt2());
        change(&mut json);
        [("tokenizer.json", json)]
    };
    refused(&[], 8, 3, "no tokenizer");
    refused(&[("tokenizer.json", json!("{\"model\": "))], 8, 3, "not valid JSON");
    refused(&[("tokenizer.json", json!({}))], 8, 3, "'model' is missing");
    refused(&[("tokenizer.model", json!("garbage"))], 8, 3, "not a SentencePiece model");
    refused(&changed(&|_| {}), 3, 3, "only 3 rows");
    refused(&changed(&|_| {}), usize::MAX, 3, "not plausible");
    refused(&changed(&|j| j["model"]["vocab"]["a"] = json!(-1)), 8, 3, "not a map of tokens to ids");
    refused(&changed(&|j| j["model"]["merges"] = json!([["a"]])), 8, 3, "merges");
    refused(&changed(&|j| j["model"]["type"] = json!("Unigram")), 8, 3, "not a list of [token, score]");
    refused(&changed(&|j| j["added_tokens"][1]["content"] = json!("<|begin|>")), 8, 3, "both");
    refused(&changed(&|j| j["added_tokens"] = json!([{"id": "x"}])), 8, 3, "added_tokens");

    let mut meta = Metadata::new();
    assert_eq!(GgufVocab::from_metadata(&meta).unwrap_err().exit_code(), 3);
    meta.set("tokenizer.ggml.model", "gpt2");
    meta.set("tokenizer.ggml.tokens", vec!["a".to_string(), "b".to_string()]);
    meta.set("tokenizer.ggml.token_type", vec![1i32]);
    assert!(GgufVocab::from_metadata(&meta).unwrap_err().to_string().contains("1 entries for 2 tokens"));
}

/// Unigram models, WordPiece and Gemma 4's vocabulary: the ids of transformers, from the folder and from the GGUF file's
/// metadata alone. Where a folder has a tokenizer.json beside its SentencePiece model, transformers reads the model for T5 and
/// tokenizer.json for UMT5, and they differ at the end of a text and around special tokens.
#[test]
fn other_kinds_give_the_ids_of_transformers() {
    let golden = crate::common::json(&crate::common::repo("tests/golden/tokenizer-kinds.json"));
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let mut wrong = Vec::new();
    for (name, expected) in golden["ids"].as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        crate::families::restore(name, dir.path());
        let source = quantize::model::SourceModel::open(dir.path())
            .unwrap()
            .for_files(Default::default(), Default::default())
            .unwrap();
        let facts = quantize::model::tokenizer_facts(&source.model);
        let vocab = GgufVocab::from_hf_dir(dir.path(), source.model.config.vocab, facts, None).unwrap();
        let mut meta = Metadata::new();
        vocab.write(&mut meta);
        let ways = [Tokenizer::from_gguf(&meta).unwrap(), Tokenizer::from_hf_dir(dir.path()).unwrap()];
        for (way, tokenizer) in ["metadata", "folder"].iter().zip(&ways) {
            if [("t5", "folder"), ("umt5", "metadata")].contains(&(name, way)) {
                continue;
            }
            for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
                let ids = json!(tokenizer.encode(text, true).unwrap());
                if ids != *expected {
                    wrong.push(format!("{name}, {way}, {text:?}: {ids} for {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn vocabulary_and_merges_are_read_like_the_tokenizer_json_they_come_from() {
    let whole = model("llama");
    let json: Json = serde_json::from_slice(&std::fs::read(whole.join("tokenizer.json")).unwrap()).unwrap();
    let merge = |m: &Json| match m.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => m.as_str().unwrap().to_string(),
    };
    let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let config: Json = serde_json::from_slice(&std::fs::read(whole.join("tokenizer_config.json")).unwrap()).unwrap();
    let mut parts = [
        ("vocab.json", json["model"]["vocab"].clone()),
        ("merges.txt", json!(format!("#version: 0.2\n{}\n", merges.join("\n")))),
        ("config.json", serde_json::from_slice(&std::fs::read(whole.join("config.json")).unwrap()).unwrap()),
        ("tokenizer_config.json", config),
    ];
    parts[3].1["tokenizer_class"] = json!("GPT2Tokenizer");
    let dir = folder(&parts);
    let vocab = |dir: &Path| GgufVocab::from_hf_dir(dir, 320, tokenizer_of("llama"), None).unwrap();
    let (ours, expected) = (vocab(dir.path()), vocab(&whole));
    assert_eq!((ours.tokens(), ours.merges()), (expected.tokens(), expected.merges()));
    assert_eq!((ours.token_types(), ours.pre()), (expected.token_types(), expected.pre()));
    let ways = [dir.path(), &whole].map(|dir| Tokenizer::from_hf_dir(dir).unwrap());
    for text in TEXTS {
        let [ours, expected] = ways.each_ref().map(|t| t.encode(text, true).unwrap());
        assert_eq!(ours, expected, "{text}");
    }
    parts[3].1["tokenizer_class"] = json!("ClipTokenizer");
    let error = GgufVocab::from_hf_dir(folder(&parts).path(), 320, tokenizer_of("llama"), None).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("ClipTokenizer"), "{error}");
}

#[test]
fn tekken_is_ranks_behind_special_tokens() {
    let base64 = |bytes: &[u8]| {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let chunk = |c: &[u8]| {
            let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*c.get(i).unwrap_or(&0)));
            let all: String = (0..4).map(|i| char::from(digits[(bits >> (18 - 6 * i) & 63) as usize])).collect();
            format!("{}{}", &all[..=c.len()], "=".repeat(3 - c.len()))
        };
        bytes.chunks(3).map(chunk).collect::<String>()
    };
    // Ranks 256 to 260.
    let pieces: Vec<Vec<u8>> =
        (0..=255).map(|b| vec![b]).chain(["he", "ll", "hell", " w", "é"].map(Vec::from)).collect();
    let vocab: Vec<Json> = pieces
        .iter()
        .enumerate()
        .map(|(i, b)| json!({ "rank": i, "token_bytes": base64(b), "token_str": null }))
        .collect();
    let special: Vec<Json> =
        ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(i, t)| json!({ "rank": i, "token_str": t })).collect();
    let tekken = json!({
        "config": {
            "pattern": pre::by_name("tekken").unwrap().split[0],
            "default_vocab_size": 4 + pieces.len(),
            "default_num_special_tokens": 4,
        },
        "vocab": vocab,
        "special_tokens": special,
    });
    let dir = folder(&[("tekken.json", tekken), ("config.json", json!({ "vocab_size": 265 }))]);
    let vocab = GgufVocab::from_hf_dir(dir.path(), 265, tokenizer_of("llama"), None).unwrap();
    assert_eq!((vocab.model(), vocab.pre()), ("gpt2", Some("tekken")));
    assert_eq!(vocab.tokens()[..4], ["<unk>", "<s>", "</s>", "<SPECIAL_3>"]);
    assert_eq!(vocab.merges(), ["h e", "l l", "he ll", "Ġ w", "Ã ©"]);
    assert_eq!((vocab.special("bos"), vocab.special("eos")), (Some(1), Some(2)));
    let mut meta = Metadata::new();
    vocab.write(&mut meta);
    for tokenizer in [Tokenizer::from_gguf(&meta).unwrap(), Tokenizer::from_hf_dir(dir.path()).unwrap()] {
        let ids = tokenizer.encode("<s>hello wé", true).unwrap();
        assert_eq!(ids, [1, 4 + 258, 4 + u32::from(b'o'), 4 + 259, 4 + 260]);
        assert!(tokenizer.add_bos() && !tokenizer.add_eos());
    }
}

#[test]
fn tokens_that_take_in_white_space_are_named() {
    let mut json = byte_level(gpt2());
    json["added_tokens"][0]["lstrip"] = json!(true);
    let dir = folder(&[("tokenizer.json", json)]);
    let vocab = GgufVocab::from_hf_dir(dir.path(), 8, tokenizer_of("llama"), None).unwrap();
    assert!(vocab.remarks().iter().any(|r| r.contains("'<|begin|>'") && r.contains("lstrip")), "{:?}", vocab.remarks());
}
