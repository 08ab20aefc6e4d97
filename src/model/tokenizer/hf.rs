//! Builds the tokenizer metadata of a GGUF file from a Hugging Face folder, with the keys, types and order of llama.cpp's
//! converter: byte-level BPE from `tokenizer.json`, SentencePiece from `tokenizer.model`, or from a `tokenizer.json` that
//! restates a SentencePiece model. Special tokens are decided in `special`, the pre-tokenizer's name in `pre`.

use super::files::{ADDED_SCORE, AddedToken, HfFiles, MAX_ROWS, PADDING_SCORE, read_json, read_optional};
use super::pieces::{self, Unigram};
use super::sentencepiece::{self, Piece, TokenType};
use super::special::{ADD_KEYS, Special};
use super::{GgufVocab, listed, pre};
use crate::gguf::Metadata;
use crate::model::families::{ByteLevel, TokenizerFacts, TokenizerKind};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// See [`GgufVocab::from_hf_dir`].
pub(super) fn build(
    files: &HfFiles,
    rows: usize,
    facts: &TokenizerFacts,
    pre_override: Option<&str>,
) -> Result<GgufVocab> {
    if rows == 0 || rows > MAX_ROWS {
        return Err(Error::bad_file(&files.dir, format!("a vocabulary of {rows} rows is not plausible")));
    }
    if let Some(name) = pre_override {
        pre::check_name(name)?;
    }
    let mut meta = Metadata::new();
    let prefix = files.tokenizer_config.as_ref().and_then(|c| c.get("add_prefix_space")?.as_bool());
    if let Some(prefix) = prefix.filter(|_| facts.states_space_prefix) {
        meta.set("tokenizer.ggml.add_space_prefix", prefix);
    }
    for (ty, add) in facts.adds {
        if let Some((_, key)) = ADD_KEYS.iter().find(|(t, _)| t == ty) {
            meta.set(*key, *add);
        }
    }
    match facts.kind {
        TokenizerKind::RwkvWorld => listed::write_world(files, rows, &mut meta)?,
        TokenizerKind::Plamo => listed::write_plamo(files, rows, &mut meta)?,
        _ => {}
    }
    if matches!(facts.kind, TokenizerKind::RwkvWorld | TokenizerKind::Plamo) {
        return GgufVocab::from_metadata(&meta);
    }
    let types = files.config.as_ref().and_then(|c| c.get("type_vocab_size")?.as_u64()).unwrap_or(1) as u32;
    let is_encoder = facts.kind == TokenizerKind::Encoder;
    let (mut space_prefix, mut remarks) = (None, Vec::new());
    match source(files, facts, rows)? {
        Source::SentencePiece(pieces, dummy_prefix) => {
            let vocab = Vocab::from_pieces(files, pieces, rows, facts)?;
            remarks.extend(vocab.beyond.iter().cloned());
            vocab.write_spm(files, &mut meta, &mut remarks)?;
            space_prefix = facts.no_space_prefix.then_some(false).or(facts.tells_dummy_prefix.then_some(dummy_prefix));
        }
        Source::Unigram(unigram) => unigram.write(files, rows, is_encoder.then_some(types), &mut meta)?,
        Source::WordPiece(json) => pieces::write_word_pieces(files, json, rows, types, pre_override, &mut meta)?,
        Source::JsonSpm(json) if facts.kind == TokenizerKind::Gemma4 => pieces::write_gemma4(files, json, &mut meta)?,
        Source::JsonSpm(json) => {
            let vocab = Vocab::from_spm_json(files, json, rows)?;
            vocab.write_spm(files, &mut meta, &mut remarks)?;
            if !prepends_space(json) {
                space_prefix = Some(false);
            }
        }
        Source::JsonBpe(json) => {
            let pre = pre::recognise(files, json, pre_override)?;
            let vocab = Vocab::from_bpe_json(files, json, rows)?;
            meta.set("tokenizer.ggml.model", "gpt2");
            meta.set("tokenizer.ggml.pre", pre);
            meta.set("tokenizer.ggml.tokens", vocab.tokens);
            meta.set("tokenizer.ggml.token_type", vocab.types.iter().map(|&t| t as i32).collect::<Vec<_>>());
            let mut special = Special::load(files, true, Some(rows))?;
            let added = files.merged_added_tokens()?;
            for (ty, text) in facts.named {
                let id = added.iter().find(|t| t.content == *text).map(|t| t.id as i64);
                special.set_id(ty, id, files)?;
            }
            if special.lacks_merges() {
                let what = "is byte-level BPE without merges: there are none in it, and no merges.txt";
                return Err(Error::bad_file(files.path("tokenizer.json"), what)
                    .hint("fetch the tokenizer files again; llama.cpp does not load a file without merges"));
            }
            remarks.extend(special.remarks());
            special.write(&mut meta);
            if is_encoder {
                meta.set("tokenizer.ggml.token_type_count", types);
            }
        }
    }
    remarks.extend(strips_space(files, facts)?);
    let eod = files.config.as_ref().and_then(|c| c.get("eod_token_id")?.as_u64());
    if let Some(id) = eod.filter(|_| facts.ends_by_eod) {
        meta.set("tokenizer.ggml.eos_token_id", id as u32);
    }
    if let Some(text) = facts.chat_end {
        let added = files.merged_added_tokens()?;
        if let Some(token) = added.iter().find(|t| t.content == text && t.id < rows) {
            meta.set("tokenizer.ggml.eos_token_id", token.id as u32);
        }
    }
    for (ty, id) in facts.fixed_ids {
        meta.set(format!("tokenizer.ggml.{ty}_token_id"), *id);
    }
    if let Some(prefix) = space_prefix
        && meta.get("tokenizer.ggml.add_space_prefix").is_none()
    {
        meta.set("tokenizer.ggml.add_space_prefix", prefix);
    }
    if facts.by_vocabulary_size {
        by_vocabulary_size(rows, &mut meta);
    }
    let vocab = GgufVocab::from_metadata(&meta).map_err(|e| match e {
        Error::BadInput(finding) => Error::bad_file(&files.dir, finding.what),
        other => other,
    })?;
    Ok(GgufVocab { remarks, ..vocab })
}

/// What is to be said of tokens that take in the white space beside them, which no key of a GGUF file can say. llama.cpp knows
/// the models whose tokens all do so to their right.
fn strips_space(files: &HfFiles, facts: &TokenizerFacts) -> Result<Option<String>> {
    let added = files.merged_added_tokens()?;
    let strips = |(left, right): (bool, bool)| left || right && !facts.added_by_flags;
    let names: Vec<String> = added.iter().filter(|t| strips(t.strips)).map(|t| format!("'{}'", t.content)).collect();
    let (Some(first), more) = (names.first(), names.len().saturating_sub(1)) else { return Ok(None) };
    let others = if more > 0 { format!(" and {more} more") } else { String::new() };
    Ok(Some(format!(
        "{first}{others} absorb adjacent white space (lstrip, rstrip), which a GGUF file cannot express: a prompt with a space there is tokenized differently than in transformers"
    )))
}

/// Two models that the converter knows by their vocabulary size: CodeLlama's infill tokens, and Granite's missing BOS.
fn by_vocabulary_size(rows: usize, meta: &mut Metadata) {
    match rows {
        32016 => {
            for (ty, id) in [("prefix", 32007u32), ("suffix", 32008), ("middle", 32009), ("eot", 32010)] {
                meta.set(format!("tokenizer.ggml.{ty}_token_id"), id);
            }
        }
        49152 => meta.set("tokenizer.ggml.add_bos_token", false),
        _ => {}
    }
}

enum Source<'a> {
    /// With what the model file says of the space before a text.
    SentencePiece(Vec<Piece>, bool),
    /// `tokenizer.json` in SentencePiece's spelling: BPE over characters with `<0xXX>` bytes to fall back on.
    JsonSpm(&'a Value),
    JsonBpe(&'a Value),
    Unigram(Unigram),
    WordPiece(&'a Value),
}

fn source<'a>(files: &'a HfFiles, facts: &TokenizerFacts, rows: usize) -> Result<Source<'a>> {
    let json = files.tokenizer.as_ref();
    let byte_level = match facts.byte_level {
        ByteLevel::SentencePieceFirst => false,
        ByteLevel::Always => true,
        ByteLevel::OfClass(class) => files.config_str("tokenizer_class") == Some(class),
    };
    let path = files.path("tokenizer.model");
    if !(byte_level && json.is_some())
        && let Some(bytes) = read_optional(&path)?
        && (sentencepiece::looks_like_model(&bytes) || json.is_none())
        && let Some(model) = read_or_ignored(&path, &bytes, json.is_some())?
    {
        if model.is_unigram {
            return Ok(Source::Unigram(Unigram::of_model(model)));
        }
        let (pieces, dummy_prefix) = (model.pieces, model.add_dummy_prefix);
        if !json.is_some_and(|json| is_another(&pieces, json)) {
            return Ok(Source::SentencePiece(pieces, dummy_prefix));
        }
    }
    if let Some(unigram) = Unigram::open(files, rows)? {
        return Ok(Source::Unigram(unigram));
    }
    let Some(json) = json else {
        return Err(files.none());
    };
    let file = files.path("tokenizer.json");
    let model = json.get("model").ok_or_else(|| Error::bad_file(&file, "'model' is missing"))?;
    let ty = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    match ty {
        "WordPiece" => return Ok(Source::WordPiece(json)),
        "Unigram" => return Ok(Source::Unigram(Unigram::of_json(files, json)?)),
        _ => {}
    }
    if ty != "BPE" || model.get("vocab").is_none_or(|v| !v.is_object()) {
        let what = format!(
            "{}: a {ty} tokenizer is not supported (BPE, unigram, WordPiece and SentencePiece are)",
            file.display()
        );
        return Err(Error::unsupported(what));
    }
    let mentions = |key| json.get(key).is_some_and(|v| v.to_string().contains("\"ByteLevel\""));
    if model.get("byte_fallback").and_then(Value::as_bool) == Some(true) && !mentions("pre_tokenizer") {
        return Ok(Source::JsonSpm(json));
    }
    if !mentions("pre_tokenizer") && !mentions("decoder") {
        let what = format!("{}: this BPE tokenizer is neither byte-level nor SentencePiece's", file.display());
        return Err(Error::unsupported(what));
    }
    Ok(Source::JsonBpe(json))
}

/// A model file; `None` for one that cannot be read where there is something else to take.
fn read_or_ignored(path: &Path, bytes: &[u8], is_ignored: bool) -> Result<Option<sentencepiece::Model>> {
    match sentencepiece::parse_model(path, bytes) {
        Err(_) if is_ignored => Ok(None),
        other => other.map(Some),
    }
}

/// See [`super::unlike_model_file`].
pub(super) fn unlike_model_file(dir: &Path) -> Option<String> {
    let path = dir.join("tokenizer.model");
    let bytes = read_optional(&path).ok()??;
    let json = read_json(&dir.join("tokenizer.json")).ok()??;
    if !sentencepiece::looks_like_model(&bytes) {
        // The vocabulary of tiktoken, which some folders hold under the same name: base64 and a rank.
        let line = bytes.split(|byte| *byte == b'\n').next()?;
        let rank =
            std::str::from_utf8(line).ok().and_then(|line| line.trim_end().rsplit_once(' ')?.1.parse::<u32>().ok());
        return rank.is_none().then(|| {
            "tokenizer.model is none that is known; tokenizer.json is taken, as transformers does".to_string()
        });
    }
    match sentencepiece::parse_model(&path, &bytes) {
        Ok(model) if model.is_unigram || !is_another(&model.pieces, &json) => None,
        Ok(_) => Some(
            "tokenizer.model is a different tokenizer than tokenizer.json, which transformers loads; it is ignored"
                .into(),
        ),
        Err(_) => Some("tokenizer.model cannot be read; tokenizer.json is taken, as transformers does".into()),
    }
}

/// Whether the pieces of a `tokenizer.model` are not those of a `tokenizer.json`: one in ten has another id there, or none.
fn is_another(pieces: &[Piece], json: &Value) -> bool {
    let Some(vocab) = json.get("model").and_then(|m| m.get("vocab")?.as_object()) else { return false };
    let same = |(id, piece): (usize, &Piece)| vocab.get(&piece.text).and_then(Value::as_u64) == Some(id as u64);
    let differing = pieces.iter().enumerate().filter(|p| !same(*p)).count();
    differing * 10 > pieces.len()
}

/// Whether `tokenizer.json` puts a space before a text (`Prepend`, or `Metaspace` unless told never to).
fn prepends_space(json: &Value) -> bool {
    let normalizer = json.get("normalizer").map(Value::to_string).unwrap_or_default();
    let pre = json.get("pre_tokenizer").map(Value::to_string).unwrap_or_default();
    let metaspace = pre.contains("\"Metaspace\"") || normalizer.contains("\"Metaspace\"");
    normalizer.contains("\"Prepend\"")
        || (metaspace && !pre.contains("\"never\"") && !pre.contains("\"add_prefix_space\":false"))
}

/// A vocabulary under construction: one entry per embedding row.
struct Vocab {
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<TokenType>,
    /// Of added tokens that have no row: a sentence each.
    beyond: Vec<String>,
}

impl Vocab {
    /// `rows` unused rows, named `[PADi]`.
    fn padding(rows: usize) -> Self {
        Self {
            tokens: (0..rows).map(|i| format!("[PAD{i}]")).collect(),
            scores: vec![PADDING_SCORE; rows],
            types: vec![TokenType::Unused; rows],
            beyond: Vec::new(),
        }
    }

    /// Sets a row; rows beyond the embedding are dropped.
    fn set(&mut self, id: usize, token: String, score: f32, ty: TokenType) {
        if let (Some(t), Some(s), Some(y)) = (self.tokens.get_mut(id), self.scores.get_mut(id), self.types.get_mut(id))
        {
            (*t, *s, *y) = (token, score, ty);
        }
    }

    fn set_added(&mut self, token: AddedToken, is_control: bool) {
        if is_control {
            self.set(token.id, token.content, ADDED_SCORE, TokenType::Control);
        } else {
            // llama.cpp takes user-defined tokens as text, in which a space is a space.
            self.set(token.id, token.content.replace('▁', " "), ADDED_SCORE, TokenType::UserDefined);
        }
    }

    fn from_pieces(files: &HfFiles, pieces: Vec<Piece>, rows: usize, facts: &TokenizerFacts) -> Result<Self> {
        let mut vocab = Self::padding(rows);
        for (id, piece) in pieces.into_iter().enumerate() {
            let ty = match piece.ty {
                TokenType::UserDefined => TokenType::Normal,
                ty => ty,
            };
            vocab.set(id, piece.text, piece.score, ty);
        }
        if let Some(added) = &files.added_tokens {
            let bad = || Error::bad_file(files.path("added_tokens.json"), "not a map of tokens to ids");
            for (token, id) in added.as_object().ok_or_else(bad)? {
                let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).ok_or_else(bad)?;
                if id >= rows {
                    vocab.beyond.push(format!(
                        "token '{token}' has id {id}, but the embedding has {rows} rows; it is left out"
                    ));
                }
                vocab.set(id, token.clone(), ADDED_SCORE, TokenType::UserDefined);
            }
        }
        let mut added = files.decoder_added_tokens()?;
        if facts.added_by_flags {
            added.extend(files.tokenizer_added_tokens()?);
        }
        for token in added {
            if token.id >= rows {
                let AddedToken { id, content, .. } = &token;
                vocab
                    .beyond
                    .push(format!("token '{content}' has id {id}, but the embedding has {rows} rows; it is left out"));
            }
            if facts.added_by_flags {
                let ty = if token.special { TokenType::Control } else { TokenType::UserDefined };
                vocab.set(token.id, token.content, ADDED_SCORE, ty);
            } else {
                let control = token.is_control();
                vocab.set_added(token, control);
            }
        }
        Ok(vocab)
    }

    fn from_bpe_json(files: &HfFiles, json: &Value, rows: usize) -> Result<Self> {
        let mut vocab = Self::padding(rows);
        let added = files.merged_added_tokens()?;
        let texts: std::collections::HashSet<&str> = added.iter().map(|t| t.content.as_str()).collect();
        let by_id: HashMap<usize, &str> = added.iter().map(|t| (t.id, t.content.as_str())).collect();
        for (token, id) in json_vocab(files, json, rows)? {
            if let Some(other) = by_id.get(&id).filter(|other| **other != token) {
                let what = format!("token {id} is '{token}', and '{other}' among the added tokens");
                return Err(Error::bad_file(files.path("tokenizer.json"), what)
                    .hint("fetch the tokenizer files again, or see added_tokens.json and tokenizer_config.json"));
            }
            if !texts.contains(token) {
                vocab.set(id, token.to_string(), 0.0, TokenType::Normal);
            }
        }
        for token in added {
            check_row(files, &token.content, token.id, rows)?;
            let control = token.is_control();
            vocab.set_added(token, control);
        }
        Ok(vocab)
    }

    /// Scores are not in `tokenizer.json`. SentencePiece gives the n-th piece that training produced the score `-n`, and
    /// lists the single characters after them; the order of the merges is the order of the pieces, so this restores the
    /// original numbers, or, where pieces were added by hand, the order of what can be merged, which is all that tokenization looks at.
    fn from_spm_json(files: &HfFiles, json: &Value, rows: usize) -> Result<Self> {
        let mut vocab = Self::padding(rows);
        let mut entries = json_vocab(files, json, rows)?;
        entries.sort_by_key(|&(_, id)| id);
        let ranks = merged_pieces(json);
        let mut next = ranks.len();
        let added = files.merged_added_tokens()?;
        let added_ids: std::collections::HashSet<usize> = added.iter().map(|t| t.id).collect();
        let unknown = json.get("model").and_then(|m| m.get("unk_token")?.as_str());
        for (token, id) in entries {
            if added_ids.contains(&id) {
                continue;
            }
            if is_byte_token(token) {
                vocab.set(id, token.to_string(), 0.0, TokenType::Byte);
            } else if Some(token) == unknown {
                vocab.set(id, token.to_string(), 0.0, TokenType::Unknown);
            } else {
                let rank = ranks.get(token).copied().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                vocab.set(id, token.to_string(), -(rank as f32), TokenType::Normal);
            }
        }
        for token in added {
            let control = token.is_control();
            vocab.set_added(token, control);
        }
        Ok(vocab)
    }

    fn write_spm(self, files: &HfFiles, meta: &mut Metadata, remarks: &mut Vec<String>) -> Result<()> {
        let rows = self.tokens.len();
        meta.set("tokenizer.ggml.model", "llama");
        meta.set("tokenizer.ggml.pre", "default");
        meta.set("tokenizer.ggml.tokens", self.tokens);
        meta.set("tokenizer.ggml.scores", self.scores);
        meta.set("tokenizer.ggml.token_type", self.types.iter().map(|&t| t as i32).collect::<Vec<_>>());
        let special = Special::load(files, false, Some(rows))?;
        remarks.extend(special.remarks());
        special.write(meta);
        Ok(())
    }
}

/// `model.vocab` as (token, id), every id checked against the embedding.
fn json_vocab<'a>(files: &HfFiles, json: &'a Value, rows: usize) -> Result<Vec<(&'a str, usize)>> {
    let bad = || Error::bad_file(files.path("tokenizer.json"), "'model.vocab' is not a map of tokens to ids");
    let map = json.get("model").and_then(|m| m.get("vocab")?.as_object()).ok_or_else(bad)?;
    let mut vocab = Vec::with_capacity(map.len());
    for (token, id) in map {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).ok_or_else(bad)?;
        check_row(files, token, id, rows)?;
        vocab.push((token.as_str(), id));
    }
    Ok(vocab)
}

fn check_row(files: &HfFiles, token: &str, id: usize, rows: usize) -> Result<()> {
    if id < rows {
        return Ok(());
    }
    let what = format!("token '{token}' has id {id}, but the embedding has only {rows} rows");
    Err(Error::bad_file(files.path("tokenizer.json"), what).hint("check that the tokenizer belongs to this model"))
}

/// What the merges produce, numbered in order of first appearance.
fn merged_pieces(json: &Value) -> HashMap<String, usize> {
    let mut pieces = HashMap::new();
    let merges = json.get("model").and_then(|m| m.get("merges")?.as_array());
    for merge in merges.into_iter().flatten() {
        let piece = match merge {
            Value::String(pair) => pair.split_once(' ').map(|(a, b)| format!("{a}{b}")),
            pair => pair
                .get(0)
                .and_then(Value::as_str)
                .zip(pair.get(1).and_then(Value::as_str))
                .map(|(a, b)| format!("{a}{b}")),
        };
        let n = pieces.len();
        if let Some(piece) = piece {
            pieces.entry(piece).or_insert(n);
        }
    }
    pieces
}

/// `<0xXX>`.
fn is_byte_token(token: &str) -> bool {
    super::byte_of(token).is_some()
}
