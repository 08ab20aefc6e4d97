//! The tokenizer of a GGUF file as a folder has it: `tokenizer.json` and `tokenizer_config.json`, for byte-level BPE and
//! for what SentencePiece merges.

use crate::model::tokenizer::sentencepiece::TokenType;
use crate::model::tokenizer::{GgufVocab, pre};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// A file's name and its text.
pub type Named = (&'static str, String);

/// The files, or why they cannot be stated. `context`: what the configuration calls the longest text.
///
/// # Errors
/// The reason, as it follows "the tokenizer is not restated: ".
pub fn restated(vocab: &GgufVocab, context: usize) -> Result<Vec<Named>, String> {
    let tokenizer = match vocab.model() {
        "gpt2" => byte_level(vocab)?,
        "llama" => merged_pieces(vocab),
        other => return Err(format!("of the kind '{other}' it has no form in tokenizer.json here")),
    };
    let token = |name: &str| vocab.special(name).and_then(|id| vocab.tokens().get(id as usize));
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
        "clean_up_tokenization_spaces": false });
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(text) = token(name) {
            config[key] = text.as_str().into();
        }
    }
    for key in ["add_bos_token", "add_eos_token"] {
        if let Some(add) = vocab.flag(key) {
            config[key] = add.into();
        }
    }
    if let Some(template) = vocab.chat_template() {
        config["chat_template"] = template.into();
    }
    let mut generation = Map::new();
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = vocab.special(name) {
            generation.insert(key.into(), id.into());
        }
    }
    let mut files = vec![("tokenizer.json", text(&tokenizer)), ("tokenizer_config.json", text(&config))];
    if !generation.is_empty() {
        files.push(("generation_config.json", text(&Value::Object(generation))));
    }
    Ok(files)
}

fn text(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Rows that no token has: converters call them so.
fn is_padding(id: usize, token: &str, ty: TokenType) -> bool {
    ty == TokenType::Unused && token == format!("[PAD{id}]")
}

/// Every token with its id, and those that are found in a text before anything else.
fn tokens(vocab: &GgufVocab) -> (Map<String, Value>, Vec<Value>) {
    let (mut all, mut added) = (Map::new(), Vec::new());
    for ((id, token), ty) in vocab.tokens().iter().enumerate().zip(vocab.token_types()) {
        if is_padding(id, token, ty) {
            continue;
        }
        all.insert(token.clone(), id.into());
        if matches!(ty, TokenType::Control | TokenType::UserDefined | TokenType::Unknown) {
            added.push(json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": ty != TokenType::UserDefined }));
        }
    }
    (all, added)
}

/// Puts the tokens around a text that the file says.
fn template(vocab: &GgufVocab, adds_bos: bool) -> Value {
    let special = |name: &str, add: bool| {
        let id = vocab.special(name).filter(|_| add)?;
        Some((id, vocab.tokens().get(id as usize)?.clone()))
    };
    let (bos, eos) = (special("bos", adds_bos), special("eos", vocab.flag("add_eos_token") == Some(true)));
    let mut named = Map::new();
    for (id, text) in [&bos, &eos].into_iter().flatten() {
        named.insert(text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] }));
    }
    if named.is_empty() {
        return Value::Null;
    }
    let form = |texts: &[(&str, u32)]| -> Value {
        let around = |side: &Option<(u32, String)>, ty: u32| {
            side.as_ref().map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": ty } }))
        };
        let mut parts = Vec::new();
        for (name, ty) in texts {
            parts.extend(around(&bos, *ty));
            parts.push(json!({ "Sequence": { "id": name, "type_id": ty } }));
            parts.extend(around(&eos, *ty));
        }
        parts.into()
    };
    json!({ "type": "TemplateProcessing", "single": form(&[("A", 0)]), "pair": form(&[("A", 0), ("B", 1)]),
        "special_tokens": named })
}

fn byte_level(vocab: &GgufVocab) -> Result<Value, String> {
    let name = vocab.pre().unwrap_or("default");
    let (cuts, nfc) =
        pre::restated(name).ok_or_else(|| format!("how '{name}' cuts words has no form in tokenizer.json here"))?;
    let known = pre::by_name(name);
    let adds_bos = vocab.flag("add_bos_token").unwrap_or_else(|| known.is_some_and(|pre| pre.add_bos));
    let (all, added) = tokens(vocab);
    let decoder = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": if nfc { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": cuts, "post_processor": template(vocab, adds_bos), "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": known.is_some_and(|pre| pre.ignore_merges), "vocab": all, "merges": vocab.merges(),
        },
    }))
}

/// SentencePiece merges the best-scored pair: merges by falling score, those that make one piece by the ids of their left
/// and right parts, as transformers' converter lists them.
fn merged_pieces(vocab: &GgufVocab) -> Value {
    let (all, added) = tokens(vocab);
    let (types, scores) = (vocab.token_types(), vocab.scores());
    let is_piece = |id: usize| matches!(types[id], TokenType::Normal | TokenType::UserDefined | TokenType::Unused);
    let ids: HashMap<&str, usize> = vocab
        .tokens()
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges: Vec<(f32, usize, usize)> = Vec::new();
    for (id, token) in vocab.tokens().iter().enumerate().filter(|(id, _)| types[*id] == TokenType::Normal) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut pairs: Vec<(usize, usize)> =
            cuts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(left, right)| (scores[id], left, right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let pair = |(_, left, right): &(f32, usize, usize)| json!([vocab.tokens()[*left], vocab.tokens()[*right]]);
    let merges: Vec<Value> = merges.iter().map(pair).collect();
    let prefix = vocab.flag("add_space_prefix").unwrap_or(true);
    let unknown = vocab.special("unknown").map(|id| vocab.tokens()[id as usize].clone());
    let bytes = types.contains(&TokenType::Byte);
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let back = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
    let (mut normalizers, mut decoders) = (Vec::new(), vec![back]);
    if prefix {
        normalizers.push(json!({ "type": "Prepend", "prepend": "▁" }));
    }
    normalizers.push(space);
    decoders.extend([json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })]);
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": normalizers }, "pre_tokenizer": null,
        "post_processor": template(vocab, vocab.flag("add_bos_token").unwrap_or(true)),
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": false,
            "vocab": all, "merges": merges,
        },
    })
}
