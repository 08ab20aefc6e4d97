//! Whether llama.cpp loads a sound GGUF file, told from its metadata and shapes. What it requires of each architecture is a
//! table that `tests/interop/llama_requirements.py` makes by taking things away from files that load; what it requires of
//! vocabularies are the rules of its llama-vocab.cpp.

mod values;

use crate::gguf::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, Metadata, Value};
use crate::model::{Model, tokenizer};
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::OnceLock;

/// Architectures whose rotary dimensions must be the whole head.
const WHOLE_HEADS: [&str; 5] = ["llama", "llama-embed", "deci", "falcon", "llama4"];
/// Architectures of files that are no language models and have no vocabulary.
const WITHOUT_VOCABULARY: [&str; 2] = ["clip", "wavtokenizer-dec"];
/// Vocabularies that it knows.
const VOCABULARIES: [&str; 11] =
    ["no_vocab", "none", "llama", "bert", "gpt2", "hybriddna", "whitespace", "t5", "rwkv", "plamo2", "gemma4"];
/// Those of models without one.
const WITHOUT_TOKENS: [&str; 2] = ["no_vocab", "none"];
/// Tensors that any architecture may have beside those of the table.
const ANYWHERE: [&str; 5] =
    ["output.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "output.bias"];

/// What it requires.
#[derive(Deserialize)]
struct Table {
    names: Vec<String>,
    terms: Vec<String>,
    architectures: BTreeMap<String, Row>,
}

#[derive(Deserialize)]
struct Row {
    /// Required keys with the numbers of their types.
    keys: BTreeMap<String, u32>,
    /// Those that it can do without, but reads.
    optional: BTreeMap<String, u32>,
    ends: Vec<String>,
    /// One list for every kind of block: what it must hold.
    blocks: Vec<Vec<String>>,
    known: BTreeSet<String>,
    /// Per dimension, slowest first, the numbers of the terms that may give it.
    sizes: BTreeMap<String, Vec<Vec<usize>>>,
}

fn table() -> Option<&'static Table> {
    static TABLE: OnceLock<Option<Table>> = OnceLock::new();
    TABLE.get_or_init(|| serde_json::from_str(include_str!("loadable/llama_cpp.json")).ok()).as_ref()
}

/// What is found of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Why it is refused: a sentence each.
    pub refusals: Vec<String>,
    /// Why nothing is known: llama.cpp has the architecture, and the table does not.
    pub unknown: Option<String>,
}

/// Why llama.cpp does not load the file, and whether that can be told.
pub fn examine(file: &Checkpoint) -> Found {
    if file.is_adapter() {
        return Found { refusals: adapter(file), unknown: None };
    }
    let mut refusals = structure(file);
    refusals.extend(vocabulary(file));
    let arch = file.gguf().and_then(|m| m.str("general.architecture")).unwrap_or_default();
    let known = table().is_some_and(|t| t.architectures.contains_key(arch)) || WITHOUT_VOCABULARY.contains(&arch);
    let unknown = format!("what its loader requires of '{arch}' is not known here; only the vocabulary was checked");
    Found { unknown: (!known && refusals.is_empty()).then_some(unknown), refusals }
}

/// Why llama.cpp would not load a file with other metadata that it loads as it is, or could not read a text with it.
pub fn refused_by_change(file: Checkpoint, metadata: Metadata) -> Option<String> {
    let before = examine(&file).refusals;
    if reads_text(file.gguf()) && !reads_text(Some(&metadata)) {
        return Some("it would have no vocabulary any more (tokenizer.ggml.model)".into());
    }
    let after = examine(&file.with_metadata(metadata)).refusals;
    after.into_iter().find(|what| !before.contains(what))
}

/// Whether there is a vocabulary. A model without is loaded, and can be given numbers alone.
fn reads_text(meta: Option<&Metadata>) -> bool {
    let model = meta.and_then(|meta| meta.str("tokenizer.ggml.model"));
    model.is_some_and(|model| !WITHOUT_TOKENS.contains(&model))
}

/// What is wrong with an adapter, as `llama_adapter_lora_init` reads it: every tensor is one of a pair, and the alpha is
/// there. What it changes is known with its model only.
fn adapter(file: &Checkpoint) -> Vec<String> {
    let Some(meta) = file.gguf() else { return Vec::new() };
    let mut found = Vec::new();
    if meta.str("adapter.type") != Some("lora") {
        found.push("adapter.type is not 'lora'".into());
    }
    if !matches!(meta.get("adapter.lora.alpha"), Some(Value::F32(_))) {
        found.push("adapter.lora.alpha is missing".into());
    }
    for t in file.tensors() {
        let lacking = |other: String| file.find(&other).is_none().then(|| format!("has no {other}"));
        let fault = match t.name.rsplit_once('.') {
            Some((module, "lora_a")) => lacking(format!("{module}.lora_b")),
            Some((module, "lora_b")) => lacking(format!("{module}.lora_a")),
            _ if t.name.ends_with("_norm.weight") => Some("changes a norm, which it passes over".into()),
            _ => Some("is no part of an adapter".into()),
        };
        found.extend(fault.map(|what| format!("{} {what}", t.name)));
    }
    found
}

/// What the file of a folder without a family would lack, or have in other sizes than its configuration says, if it were
/// made; `None` where the table does not have its architecture.
pub fn of_folder(model: &Model) -> Option<Vec<String>> {
    let meta = model.drawn_keys()?;
    let arch = meta.str("general.architecture").unwrap_or_default();
    table()?.architectures.get(arch)?;
    let of = |name: &String, shape: &[usize]| {
        let ty = if shape.len() == 1 { GgmlType::F32 } else { GgmlType::F16 };
        (name.clone(), ty, shape.to_vec())
    };
    let stored = model.tensors.iter().map(|t| of(&t.name, &t.shape));
    let tensors = stored.chain(model.generated.iter().map(|g| of(&g.name, &g.shape))).collect();
    Checkpoint::imagined(tensors).ok().map(|file| structure(&file.with_metadata(meta)))
}

/// What is wrong with keys, tensors and sizes.
pub fn structure(file: &Checkpoint) -> Vec<String> {
    let Some(meta) = file.gguf() else { return vec!["is not a GGUF file".into()] };
    let arch = meta.str("general.architecture").unwrap_or_default();
    let mut found: Vec<String> = gap(file, meta).into_iter().collect();
    let Some(table) = table() else { return found };
    if !table.names.iter().any(|name| name == arch) {
        return vec![format!("it does not know the architecture '{arch}'")];
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
    for (dims, width) in
        ["", "_swa"].map(|end| (format!("rope.dimension_count{end}"), format!("attention.key_length{end}")))
    {
        let width = uint(&width).or(head.filter(|_| width == "attention.key_length"));
        if let (Some(n), Some(width)) = (uint(&dims), width)
            && n > width
        {
            found.push(format!("{arch}.{dims} is {n}, more than the {width} channels of a head"));
        }
    }
    let rows = file.find("position_embd.weight").and_then(|i| file.tensors()[i].shape.first().copied());
    if let (Some(rows), Some(context)) = (rows, uint("context_length"))
        && context > rows as u64
    {
        found.push(format!("{arch}.context_length is {context}, but position_embd.weight has {rows} rows"));
    }
    let encoders = ["clip.has_vision_encoder", "clip.has_audio_encoder"];
    if arch == "clip" && !encoders.iter().any(|key| meta.bool(key) == Some(true)) {
        found.push(format!("neither {} nor {} is true in it", encoders[0], encoders[1]));
    }
    let row = table.architectures.get(arch);
    let is_own = |key: &str| row.is_some_and(|row| row.keys.contains_key(key) || row.optional.contains_key(key));
    found.extend(values::odd(meta, arch, is_own));
    if let Some(row) = row {
        keys(row, meta, arch, &mut found);
        tensors(row, file, meta, arch, &mut found);
        sizes((table, row), file, meta, arch, &mut found);
    }
    found
}

/// The first tensor that does not lie right behind the one before it, as every tensor must (`gguf_init_from_file`).
fn gap(file: &Checkpoint, meta: &Metadata) -> Option<String> {
    if file.files().is_empty() {
        return None;
    }
    let alignment = meta.uint(ALIGNMENT_KEY).unwrap_or(DEFAULT_ALIGNMENT).max(1);
    let is_apart = |pair: &&[TensorMeta]| {
        let padded = pair[0].bytes().next_multiple_of(alignment);
        pair[0].file == pair[1].file && pair[0].range.start + padded != pair[1].range.start
    };
    let pair = file.tensors().windows(2).find(is_apart)?;
    Some(format!("{} does not lie right behind {}, which is before it in the file", pair[1].name, pair[0].name))
}

/// Keys that depend on the size of the model: DeepSeek's small ones have no low-rank queries.
fn is_waived(arch: &str, key: &str, meta: &Metadata) -> bool {
    let layers = meta.uint(&format!("{arch}.block_count")).unwrap_or(0);
    (arch, key) == ("deepseek2", "attention.q_lora_rank") && [26, 27, 48].contains(&layers)
}

fn keys(row: &Row, meta: &Metadata, arch: &str, found: &mut Vec<String>) {
    let required = row.keys.iter().map(|(key, ty)| (key, ty, true));
    for (key, ty, required) in required.chain(row.optional.iter().map(|(key, ty)| (key, ty, false))) {
        match meta.get(&format!("{arch}.{key}")) {
            None if !required || is_waived(arch, key, meta) => {}
            None => found.push(format!("{arch}.{key} is missing")),
            Some(value) => {
                let is = type_number(value);
                if is != *ty && is != ARRAY && *ty != ARRAY {
                    found.push(format!("{arch}.{key} has another type than it reads"));
                }
            }
        }
    }
}

const ARRAY: u32 = 9;

/// The number that GGUF gives the type of a value.
fn type_number(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => ARRAY,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

/// A name without its block: the block, and `attn_q.weight` or `enc.attn_q.weight`.
fn split(name: &str) -> (Option<usize>, String) {
    let (side, rest) = match name.split_once(".blk.") {
        Some((side @ ("enc" | "dec"), rest)) => (format!("{side}."), rest),
        _ => (String::new(), name.strip_prefix("blk.").unwrap_or("")),
    };
    match rest.split_once('.').and_then(|(n, part)| Some((n.parse().ok()?, part))) {
        Some((block, part)) => (Some(block), format!("{side}{part}")),
        None => (None, name.to_string()),
    }
}

/// How many blocks a model must have for tensors that smaller ones are read without.
const ONLY_FROM: [(&str, &str, u64); 2] =
    [("command-r", "attn_q_norm.weight", 64), ("command-r", "attn_k_norm.weight", 64)];

fn tensors(row: &Row, file: &Checkpoint, meta: &Metadata, arch: &str, found: &mut Vec<String>) {
    let mut by_block: BTreeMap<Option<usize>, BTreeSet<String>> = BTreeMap::new();
    let blocks = meta.uint(&format!("{arch}.block_count")).unwrap_or(0);
    let (mut strange, mut narrow) = (None, None);
    for t in file.tensors() {
        let (block, part) = split(&t.name);
        let only_from = ONLY_FROM.iter().find(|(a, p, _)| (*a, *p) == (arch, part.as_str()));
        let is_read = only_from.is_none_or(|(_, _, from)| blocks >= *from);
        // Scales beside matrices, as some types have them.
        let known = row.known.contains(&part) || only_from.is_some() || part.ends_with("scale");
        let known = known || ANYWHERE.contains(&part.as_str());
        if !known || !is_read || block.is_some_and(|b| b as u64 >= blocks) {
            strange.get_or_insert(&t.name);
        }
        // Drafts and classifiers are read, and not multiplied by.
        let idle = part.ends_with("scale") || part.starts_with("nextn.") || part.starts_with("cls.");
        let vector = t.shape.len() == 1 && !idle;
        if vector && t.dtype != Dtype::Ggml(crate::quant::GgmlType::F32) {
            narrow.get_or_insert((&t.name, t.dtype));
        }
        by_block.entry(block).or_default().insert(part);
    }
    if let Some(name) = strange {
        found.push(format!("{name} is a tensor that it does not know in a '{arch}' of {blocks} blocks"));
    }
    if let Some((name, ty)) = narrow {
        found.push(format!("{name} is a vector in {ty}, which its kernels do not take; F32 is meant"));
    }
    let ends = by_block.get(&None);
    for name in &row.ends {
        if !ends.is_some_and(|ends| ends.contains(name)) {
            found.push(format!("{name} is missing"));
        }
    }
    if row.blocks.is_empty() {
        return;
    }
    for block in 0..blocks.min(1 << 16) as usize {
        let none = BTreeSet::new();
        let parts = by_block.get(&Some(block)).unwrap_or(&none);
        let missing = |kind: &&Vec<String>| kind.iter().filter(|part| !parts.contains(*part)).count();
        let Some(nearest) = row.blocks.iter().min_by_key(missing).filter(|kind| missing(kind) > 0) else { continue };
        let first = nearest.iter().find(|part| !parts.contains(*part)).map_or("", String::as_str);
        found.push(format!("blk.{block}.{first} is missing"));
        return;
    }
}

/// Rotated channels have a factor for every two of them. Gemma 4 rotates those of its layers differently.
fn rotary_factors(meta: &Metadata, arch: &str) -> Option<usize> {
    let channels = of_key("rope.dimension_count", meta, arch, None).filter(|_| arch != "gemma4")?;
    Some(channels / 2)
}

fn sizes((table, row): (&Table, &Row), file: &Checkpoint, meta: &Metadata, arch: &str, found: &mut Vec<String>) {
    for t in file.tensors() {
        let (block, part) = split(&t.name);
        if let Some(factors) = rotary_factors(meta, arch).filter(|n| part == "rope_freqs.weight" && t.shape != [*n]) {
            found.push(format!("{} has the shape {:?} where {factors} factors are meant", t.name, t.shape));
            return;
        }
        let Some(dims) = row.sizes.get(&part) else { continue };
        if dims.len() != t.shape.len() {
            found.push(format!("{} has {} dimensions instead of {}", t.name, t.shape.len(), dims.len()));
            return;
        }
        for (terms, size) in dims.iter().zip(&t.shape) {
            let values = terms.iter().filter_map(|n| value_of(table.terms.get(*n)?, meta, arch, block));
            let values: BTreeSet<usize> = values.collect();
            if !values.is_empty() && !values.contains(size) {
                let wanted: Vec<String> = values.iter().map(usize::to_string).collect();
                found.push(format!("{} has the size {size} where {} is meant", t.name, wanted.join(" or ")));
                return;
            }
        }
    }
}

/// A term of the table in the numbers of a file.
fn value_of(term: &str, meta: &Metadata, arch: &str, block: Option<usize>) -> Option<usize> {
    let one = |name: &str| of_key(name, meta, arch, block);
    if term == "qkv" {
        let (heads, kv) = (one("attention.head_count")?, one("attention.head_count_kv")?);
        let (width, value) = (one("attention.key_length")?, one("attention.value_length")?);
        return Some(heads * width + kv * (width + value));
    }
    term.split('*')
        .try_fold(1usize, |product, factor| product.checked_mul(factor.parse().ok().or_else(|| one(factor))?))
}

/// A size of the file, with the defaults of the loader.
fn of_key(name: &str, meta: &Metadata, arch: &str, block: Option<usize>) -> Option<usize> {
    let key = format!("{arch}.{name}");
    let at = |values: &mut dyn Iterator<Item = i64>| values.nth(block?).and_then(|v| usize::try_from(v).ok());
    match (name, meta.get(&key)) {
        ("vocab", _) => meta.strings("tokenizer.ggml.tokens").map(<[String]>::len),
        (_, Some(Value::Array(Array::U32(v)))) => at(&mut v.iter().map(|v| i64::from(*v))),
        (_, Some(Value::Array(Array::I32(v)))) => at(&mut v.iter().map(|v| i64::from(*v))),
        (_, Some(_)) => meta.uint(&key).and_then(|v| usize::try_from(v).ok()),
        ("attention.head_count_kv", None) => of_key("attention.head_count", meta, arch, block),
        ("attention.key_length" | "attention.value_length", None) => {
            let heads = of_key("attention.head_count", meta, arch, block.or(Some(0)))?;
            of_key("embedding_length", meta, arch, block)?.checked_div(heads)
        }
        _ => None,
    }
}

/// What is wrong with the vocabulary.
pub fn vocabulary(file: &Checkpoint) -> Vec<String> {
    let mut found = Vec::new();
    let Some(meta) = file.gguf() else { return found };
    let arch = meta.str("general.architecture").unwrap_or_default();
    if WITHOUT_VOCABULARY.contains(&arch) {
        return found;
    }
    let Some(model) = meta.str("tokenizer.ggml.model") else {
        return vec!["there is no vocabulary: tokenizer.ggml.model is missing".into()];
    };
    if !VOCABULARIES.contains(&model) {
        return vec![format!("it does not know the vocabulary '{model}' (tokenizer.ggml.model)")];
    }
    let rows = file.find("token_embd.weight").and_then(|i| file.tensors()[i].shape.first().copied());
    if WITHOUT_TOKENS.contains(&model) {
        let said = meta.uint(&format!("{arch}.vocab_size"));
        let missing = || {
            format!(
                "there is no vocabulary (tokenizer.ggml.model is '{model}'), and {arch}.vocab_size is not the number of rows of token_embd.weight"
            )
        };
        found.extend(rows.filter(|rows| said != Some(*rows as u64)).map(|_| missing()));
        return found;
    }
    let Some(tokens) = meta.strings("tokenizer.ggml.tokens") else {
        return vec!["there are no tokens (tokenizer.ggml.tokens)".into()];
    };
    let pre = meta.str("tokenizer.ggml.pre");
    let byte_level = ["gpt2", "hybriddna", "whitespace", "gemma4"].contains(&model);
    if byte_level && pre != Some("kimi-k2") && meta.strings("tokenizer.ggml.merges").is_none() {
        found.push("the byte-level vocabulary has no merges (tokenizer.ggml.merges)".into());
    }
    if let (Some(pre), true) = (pre, byte_level && model != "gemma4")
        && !pre.is_empty()
        && tokenizer::check_pre_tokenizer(pre).is_err()
    {
        found.push(format!("'{pre}' is a pre-tokenizer that it does not know (tokenizer.ggml.pre)"));
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
        found.push(format!("token '{twice}' appears twice"));
    }
    if model == "llama" && !seen.contains("<0x0A>") {
        found.push("the SentencePiece vocabulary has no byte tokens (<0x00> to <0xFF>)".into());
    }
    if model == "plamo2"
        && let Some(byte) =
            (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).find(|token| !seen.contains(token.as_str()))
    {
        found.push(format!("the PLaMo 2 vocabulary has no token for the byte {byte}"));
    }
    let name = meta.str("general.name").unwrap_or_default().to_ascii_lowercase();
    if name.contains("phi3") || name.contains("phi-3") {
        let wanted = ["</s>", "<unk>", "<s>", "<|endoftext|>"].into_iter().find(|token| !seen.contains(token));
        if let Some(token) = wanted {
            found.push(format!("general.name says Phi-3, of which it wants the token '{token}'"));
        }
    }
    for (key, kinds) in [("scores", &["f32", "i32"][..]), ("token_type", &["i32"])] {
        let full = format!("tokenizer.ggml.{key}");
        let Some(value) = meta.get(&full) else { continue };
        let (kind, len) = match value {
            Value::Array(Array::F32(v)) => ("f32", v.len()),
            Value::Array(Array::I32(v)) => ("i32", v.len()),
            _ => ("another", 0),
        };
        if !kinds.contains(&kind) {
            found.push(format!("{full} is not an array of {}", kinds.join(" or ")));
        } else if len < tokens.len() {
            found.push(format!("{full} has {len} entries for {} tokens", tokens.len()));
        }
    }
    if let Some(rows) = rows.filter(|rows| *rows != tokens.len()) {
        found.push(format!("token_embd.weight has {rows} rows, but the vocabulary {} tokens", tokens.len()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let table = table().expect("the table is JSON of its form");
        assert!(table.architectures.len() > 80 && table.names.len() > 120);
        for (arch, row) in &table.architectures {
            assert!(table.names.contains(arch), "{arch}");
            assert!(row.sizes.values().flatten().flatten().all(|n| *n < table.terms.len()), "{arch}");
            assert!(row.ends.iter().all(|name| row.known.contains(name)), "{arch}");
        }
    }

    #[test]
    fn names_fall_into_blocks() {
        assert_eq!(split("blk.12.attn_q.weight"), (Some(12), "attn_q.weight".into()));
        assert_eq!(split("enc.blk.0.ffn_up.weight"), (Some(0), "enc.ffn_up.weight".into()));
        assert_eq!(split("output_norm.weight"), (None, "output_norm.weight".into()));
    }

    #[test]
    fn rotary_factors_are_half_of_the_channels() {
        let table = table().unwrap();
        let by_chance = |row: &Row| row.sizes.keys().any(|part| part.starts_with("rope_f"));
        assert!(!table.architectures.values().any(by_chance));
        let mut meta = Metadata::new();
        // Llama 3.2 with 1 billion weights: neither twice its 32 heads nor these times 8.
        meta.set("llama.attention.head_count", 32u32);
        meta.set("llama.attention.head_count_kv", 8u32);
        meta.set("llama.rope.dimension_count", 64u32);
        assert_eq!(rotary_factors(&meta, "llama"), Some(32));
    }

    #[test]
    fn terms_are_read_from_metadata() {
        let mut meta = Metadata::new();
        meta.set("llama.embedding_length", 64u32);
        meta.set("llama.attention.head_count", 4u32);
        assert_eq!(value_of("2*embedding_length", &meta, "llama", None), Some(128));
        assert_eq!(value_of("attention.head_count*attention.key_length", &meta, "llama", Some(0)), Some(64));
        assert_eq!(value_of("qkv", &meta, "llama", Some(0)), Some(192));
        assert_eq!(value_of("expert_count", &meta, "llama", None), None);
    }
}
