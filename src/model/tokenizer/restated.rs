//! A `tokenizer.json` for folders that have none: made of `vocab.json` and `merges.txt`, as transformers' slow tokenizers read
//! them, or of Mistral's `tekken.json`.

use super::bpe::byte_spelling;
use super::files::{HfFiles, MAX_ROWS, MODELS, read_json, read_text};
use super::pieces::decode_base64;
use super::pre;

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Classes whose words are GPT-2's.
const GPT2: [&str; 5] =
    ["GPT2Tokenizer", "CodeGenTokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"];

/// The tokenizer's files of a folder, with a `tokenizer.json` made of others where it is missing and they are there.
///
/// # Errors
/// `BadInput` for malformed files, `Unsupported` for a class whose words this program does not know.
pub(super) fn open(dir: &Path) -> Result<HfFiles> {
    let mut files = HfFiles::open(dir)?;
    if files.tokenizer.is_some() || MODELS.iter().any(|name| dir.join(name).is_file()) {
        return Ok(files);
    }
    files.tokenizer = from_vocab_and_merges(dir, files.tokenizer_config.as_ref())?;
    if files.tokenizer.is_none()
        && let Some((tokenizer, config)) = from_tekken(dir)?
    {
        files.tokenizer = Some(tokenizer);
        files.tokenizer_config = files.tokenizer_config.take().or(Some(config));
    }
    Ok(files)
}

/// What `vocab.json` and `merges.txt` say, or `None` when one of them is missing.
fn from_vocab_and_merges(dir: &Path, config: Option<&Value>) -> Result<Option<Value>> {
    let Some(vocab) = read_json(&dir.join("vocab.json"))? else { return Ok(None) };
    let Some(merges) = read_text(&dir.join("merges.txt"))? else { return Ok(None) };
    let map = vocab.as_object().ok_or_else(|| Error::bad_file(dir.join("vocab.json"), "not a map of tokens to ids"))?;
    let class = config.and_then(|c| c.get("tokenizer_class")?.as_str()).unwrap_or(GPT2[0]);
    let class = class.trim_end_matches("Fast");
    let prefix = config.and_then(|c| c.get("add_prefix_space")?.as_bool()).unwrap_or(false);
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex });
    let (normalizer, pre_tokenizer) = match class {
        "Qwen2Tokenizer" => (json!({ "type": "NFC" }), split(&pre::pattern("qwen2"), byte_level(false))),
        _ if GPT2.contains(&class) => (Value::Null, byte_level(true)),
        _ => {
            let what = format!("{}: a {class} of vocab.json and merges.txt is not supported", dir.display());
            return Err(Error::unsupported(format!("{what} ({}, Qwen2Tokenizer are)", GPT2.join(", "))));
        }
    };
    let special = special_tokens(dir, config)?;
    let added: Vec<Value> = special.iter().filter_map(|t| Some(added(map.get(t)?.as_u64()?, t))).collect();
    let lines = merges.lines().skip(usize::from(merges.starts_with("#version")));
    let merges: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
    Ok(Some(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(true),
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })))
}

/// The contents of the special tokens that the small files name; GPT-2's where they name none.
fn special_tokens(dir: &Path, config: Option<&Value>) -> Result<BTreeSet<String>> {
    let map = read_json(&dir.join("special_tokens_map.json"))?;
    let mut found = BTreeSet::new();
    for file in [config, map.as_ref()].into_iter().flatten() {
        for (key, value) in file.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token")) {
            let content = value.as_str().or_else(|| value.get("content")?.as_str());
            found.extend(content.filter(|_| !key.starts_with("add_")).map(String::from));
        }
    }
    if found.is_empty() {
        found.insert("<|endoftext|>".into());
    }
    Ok(found)
}

fn added(id: u64, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

fn split(pattern: &str, respell: Value) -> Value {
    let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, respell] })
}

/// `tokenizer.json` and `tokenizer_config.json` of a folder with a `tekken.json`: special tokens first, then the ranked
/// pieces. A piece's merges are all its divisions into two others, as transformers derives them.
fn from_tekken(dir: &Path) -> Result<Option<(Value, Value)>> {
    let path = dir.join("tekken.json");
    let Some(tekken) = read_json(&path)? else { return Ok(None) };
    let bad = |what: &str| Error::bad_file(&path, what.to_string());
    let config = tekken.get("config").ok_or_else(|| bad("'config' is missing"))?;
    let size = |key: &str| {
        let size = config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        size.filter(|n| *n < MAX_ROWS).ok_or_else(|| bad(&format!("'config.{key}' is not a size")))
    };
    let (all, specials) = (size("default_vocab_size")?, size("default_num_special_tokens")?);
    let pattern = config.get("pattern").and_then(Value::as_str).ok_or_else(|| bad("'config.pattern' is missing"))?;
    let listed = tekken.get("vocab").and_then(Value::as_array).ok_or_else(|| bad("'vocab' is not a list"))?;
    let bytes = |entry: &Value| entry.get("token_bytes").and_then(Value::as_str).map(decode_base64);
    let pieces: Vec<Vec<u8>> = listed
        .iter()
        .take(all.saturating_sub(specials))
        .map(|entry| bytes(entry).filter(|b| !b.is_empty()).ok_or_else(|| bad("a token without 'token_bytes'")))
        .collect::<Result<_>>()?;
    let ranks: HashMap<&[u8], usize> =
        pieces.iter().enumerate().map(|(rank, piece)| (piece.as_slice(), rank)).collect();
    let spelling = byte_spelling();
    let spell = |bytes: &[u8]| bytes.iter().map(|b| spelling[usize::from(*b)]).collect::<String>();
    let mut merges = Vec::new();
    for piece in &pieces {
        let halves = (1..piece.len()).map(|at| piece.split_at(at));
        let mut pairs: Vec<_> = halves.filter_map(|(a, b)| Some((*ranks.get(a)?, *ranks.get(b)?))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(a, b)| json!([spell(&pieces[a]), spell(&pieces[b])])));
    }
    let named = tekken.get("special_tokens").and_then(Value::as_array).into_iter().flatten();
    let named: HashMap<u64, &str> =
        named.filter_map(|t| Some((t.get("rank")?.as_u64()?, t.get("token_str")?.as_str()?))).collect();
    let mut vocab = Map::new();
    let mut tokens = Vec::new();
    for id in 0..specials as u64 {
        let text = named.get(&id).map_or_else(|| format!("<SPECIAL_{id}>"), |text| (*text).to_string());
        tokens.push(added(id, &text));
        vocab.insert(text, json!(id));
    }
    for (rank, piece) in pieces.iter().enumerate() {
        vocab.insert(spell(piece), json!(specials + rank));
    }
    let respell = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": null,
        "pre_tokenizer": split(pattern, respell.clone()),
        "post_processor": null,
        "decoder": respell,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": true },
    });
    let names = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];
    let has = |text: &str| named.values().any(|known| *known == text);
    let mut config: Map<String, Value> =
        names.into_iter().filter(|(_, text)| has(text)).map(|(key, text)| (key.into(), json!(text))).collect();
    config.insert("add_bos_token".into(), json!(true));
    config.insert("add_eos_token".into(), json!(false));
    Ok(Some((tokenizer, Value::Object(config))))
}
