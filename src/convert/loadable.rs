//! Whether llama.cpp loads a sound GGUF file, told from its metadata and shapes. The rules are those of its loader
//! (llama-model.cpp, llama-vocab.cpp).

use crate::gguf::Metadata;
use crate::model::tokenizer;
use crate::source::Checkpoint;
use std::collections::HashSet;

/// Architectures whose rotary dimensions must be the whole head.
const WHOLE_HEADS: [&str; 5] = ["llama", "llama-embed", "deci", "falcon", "llama4"];
/// Architectures of files that are no language models and have no vocabulary.
const WITHOUT_VOCABULARY: [&str; 2] = ["clip", "wavtokenizer-dec"];

/// Why llama.cpp does not load the file: a sentence each.
pub fn refusals(file: &Checkpoint) -> Vec<String> {
    let Some(meta) = file.gguf() else { return vec!["is no GGUF file".into()] };
    let arch = meta.str("general.architecture").unwrap_or_default();
    let mut found = Vec::new();
    if !WITHOUT_VOCABULARY.contains(&arch) {
        vocabulary(file, meta, &mut found);
    }
    let uint = |key: &str| meta.uint(&format!("{arch}.{key}"));
    let heads = uint("attention.head_count").filter(|n| *n > 0);
    let head = uint("attention.key_length").or_else(|| Some(uint("embedding_length")? / heads?));
    if let (Some(dims), Some(head)) = (uint("rope.dimension_count"), head)
        && WHOLE_HEADS.contains(&arch)
        && dims != head
    {
        found.push(format!("{arch}.rope.dimension_count is {dims}, but heads have {head} channels"));
    }
    found
}

fn vocabulary(file: &Checkpoint, meta: &Metadata, found: &mut Vec<String>) {
    let Some(model) = meta.str("tokenizer.ggml.model") else {
        return found.push("there is no vocabulary: tokenizer.ggml.model is missing".into());
    };
    let tokens = meta.strings("tokenizer.ggml.tokens").unwrap_or_default();
    if model == "no_vocab" {
        return;
    }
    if model == "gpt2" && meta.strings("tokenizer.ggml.merges").is_none_or(<[String]>::is_empty) {
        found.push("the byte-level vocabulary has no merges (tokenizer.ggml.merges)".into());
    }
    if let (Some(pre), "gpt2") = (meta.str("tokenizer.ggml.pre"), model)
        && tokenizer::check_pre_tokenizer(pre).is_err()
    {
        found.push(format!("'{pre}' is no pre-tokenizer that it knows (tokenizer.ggml.pre)"));
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
        found.push(format!("token '{twice}' is there twice"));
    }
    if model == "llama" && !seen.contains("<0x0A>") {
        found.push("the SentencePiece vocabulary has no byte tokens (<0x00> to <0xFF>)".into());
    }
    let rows = file.find("token_embd.weight").and_then(|i| file.tensors()[i].shape.first().copied());
    if let Some(rows) = rows.filter(|rows| *rows != tokens.len()) {
        found.push(format!("token_embd.weight has {rows} rows, but the vocabulary {} tokens", tokens.len()));
    }
}
