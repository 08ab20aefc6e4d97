//! Vocabularies that are neither byte-level BPE nor SentencePiece's merges: unigram models, WordPiece, and Gemma 4's. Keys,
//! types and order are those of llama.cpp's converter.

use super::files::{ADDED_SCORE, HfFiles, MAX_ROWS, MODELS, PADDING_SCORE, read_optional};
use super::sentencepiece::{self, Model, Piece, TokenType};
use super::special::Special;
use crate::gguf::{Array, Metadata, Value as Stored};
use crate::{Error, Result};
use serde_json::Value;

/// A unigram model: the most likely pieces, not merges.
pub(super) struct Unigram {
    pieces: Vec<Piece>,
    space_prefix: bool,
    remove_spaces: bool,
    charsmap: Vec<u8>,
}

/// Where unigram models lie, beside `tokenizer.model`.
const FILES: [&str; 2] = [MODELS[1], MODELS[2]];

impl Unigram {
    /// The model of one of the files that hold unigram models only.
    pub fn open(files: &HfFiles, rows: usize) -> Result<Option<Self>> {
        for name in FILES {
            let path = files.path(name);
            if let Some(bytes) = read_optional(&path)? {
                let model = sentencepiece::parse_model(&path, &bytes)?;
                let unigram = Self::of_model(model);
                return Ok(Some(if name == FILES[1] { unigram.into_fairseq(rows) } else { unigram }));
            }
        }
        Ok(None)
    }

    pub fn of_model(model: Model) -> Self {
        let Model { pieces, add_dummy_prefix, remove_extra_whitespaces, charsmap, .. } = model;
        Self { pieces, space_prefix: add_dummy_prefix, remove_spaces: remove_extra_whitespaces, charsmap }
    }

    /// Fairseq has four special tokens of its own before the fourth piece.
    fn into_fairseq(mut self, rows: usize) -> Self {
        let special = |text: &str, ty| Piece { text: text.into(), score: 0.0, ty };
        let own = [
            special("<s>", TokenType::Control),
            special("<pad>", TokenType::Control),
            special("</s>", TokenType::Control),
            special("<unk>", TokenType::Unknown),
        ];
        self.pad(rows);
        self.pieces.pop();
        self.pieces = own.into_iter().chain(self.pieces.into_iter().skip(3)).collect();
        self
    }

    /// Unused pieces up to the rows of the embedding.
    fn pad(&mut self, rows: usize) {
        for id in self.pieces.len()..rows {
            let text = format!("[PAD{id}]");
            self.pieces.push(Piece { text, score: PADDING_SCORE, ty: TokenType::Unused });
        }
    }

    /// The model of a `tokenizer.json`.
    pub fn of_json(files: &HfFiles, json: &Value) -> Result<Self> {
        let bad = || Error::bad_file(files.path("tokenizer.json"), "'model.vocab' is not a list of [token, score]");
        let model = json.get("model").ok_or_else(bad)?;
        let unknown = model.get("unk_id").and_then(Value::as_u64);
        let added = files.merged_added_tokens()?;
        let mut pieces = Vec::new();
        for (id, entry) in model.get("vocab").and_then(Value::as_array).ok_or_else(bad)?.iter().enumerate() {
            let (Some(text), Some(score)) =
                (entry.get(0).and_then(Value::as_str), entry.get(1).and_then(Value::as_f64))
            else {
                return Err(bad());
            };
            let ty = match added.iter().find(|t| t.id == id) {
                _ if unknown == Some(id as u64) => TokenType::Unknown,
                Some(token) if token.special => TokenType::Control,
                Some(_) => TokenType::UserDefined,
                None if super::byte_of(text).is_some() => TokenType::Byte,
                None => TokenType::Normal,
            };
            pieces.push(Piece { text: text.to_string(), score: score as f32, ty });
        }
        let text = |key: &str| json.get(key).map(Value::to_string).unwrap_or_default();
        let charsmap = find(json.get("normalizer"), "precompiled_charsmap").and_then(Value::as_str).map(decode_base64);
        Ok(Self {
            pieces,
            space_prefix: !text("pre_tokenizer").contains("\"never\"")
                && !text("pre_tokenizer").contains("\"add_prefix_space\":false"),
            // Words are cut out of the white space between them.
            remove_spaces: text("pre_tokenizer").contains("\"WhitespaceSplit\""),
            charsmap: charsmap.unwrap_or_default(),
        })
    }

    /// `types`: the number of token types of an encoder.
    pub fn write(mut self, files: &HfFiles, rows: usize, types: Option<u32>, meta: &mut Metadata) -> Result<()> {
        self.pad(rows);
        let mut vocab: Vec<Piece> = self.pieces;
        if let Some(added) = files.added_tokens.as_ref().and_then(Value::as_object) {
            for (token, id) in added.iter().filter_map(|(token, id)| Some((token, usize::try_from(id.as_u64()?).ok()?)))
            {
                let piece = Piece { text: token.clone(), score: ADDED_SCORE, ty: TokenType::UserDefined };
                vocab.get_mut(id).into_iter().for_each(|p| *p = piece.clone());
            }
        }
        let len = vocab.len();
        meta.set("tokenizer.ggml.model", "t5");
        meta.set("tokenizer.ggml.pre", "default");
        write_pieces(vocab, meta);
        meta.set("tokenizer.ggml.add_space_prefix", self.space_prefix);
        if let Some(types) = types {
            meta.set("tokenizer.ggml.token_type_count", types);
        }
        meta.set("tokenizer.ggml.remove_extra_whitespaces", self.remove_spaces);
        if !self.charsmap.is_empty() {
            meta.set("tokenizer.ggml.precompiled_charsmap", Stored::Array(Array::U8(self.charsmap)));
        }
        Special::load(files, false, Some(len))?.write(meta);
        Ok(())
    }
}

fn write_pieces(pieces: Vec<Piece>, meta: &mut Metadata) {
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        tokens.push(piece.text);
        scores.push(piece.score);
        types.push(piece.ty as i32);
    }
    meta.set("tokenizer.ggml.tokens", tokens);
    meta.set("tokenizer.ggml.scores", scores);
    meta.set("tokenizer.ggml.token_type", types);
}

/// WordPiece: pieces inside a word lose their mark, all others get the one that stands for a space.
pub(super) fn write_word_pieces(
    files: &HfFiles,
    json: &Value,
    rows: usize,
    types: u32,
    pre: Option<&str>,
    meta: &mut Metadata,
) -> Result<()> {
    let bad = || Error::bad_file(files.path("tokenizer.json"), "'model.vocab' is not a map of tokens to ids");
    let map = json.get("model").and_then(|m| m.get("vocab")?.as_object()).ok_or_else(bad)?;
    let mut tokens: Vec<(String, TokenType)> = (0..rows).map(|i| (format!("[PAD{i}]"), TokenType::Unused)).collect();
    for (token, id) in map {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows).ok_or_else(bad)?;
        tokens[id] = (token.clone(), TokenType::Normal);
    }
    for token in files.merged_added_tokens()? {
        let control = token.is_control();
        let ty = if control { TokenType::Control } else { TokenType::UserDefined };
        tokens.get_mut(token.id).into_iter().for_each(|t| *t = (token.content.clone(), ty));
    }
    let spelled = |(token, ty): &(String, TokenType)| match (ty, token.strip_prefix("##")) {
        (TokenType::Control, _) => token.clone(),
        (_, Some(inner)) => inner.to_string(),
        _ => format!("▁{token}"),
    };
    meta.set("tokenizer.ggml.token_type_count", types);
    meta.set("tokenizer.ggml.model", "bert");
    meta.set("tokenizer.ggml.pre", pre.unwrap_or("default"));
    meta.set("tokenizer.ggml.tokens", tokens.iter().map(spelled).collect::<Vec<_>>());
    meta.set("tokenizer.ggml.token_type", tokens.iter().map(|(_, ty)| *ty as i32).collect::<Vec<_>>());
    Special::load(files, false, Some(rows))?.write(meta);
    Ok(())
}

/// Tokens of Gemma 4 that a chat parser must see.
const VISIBLE: [&str; 7] =
    ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

/// SentencePiece's spelling with merges, under a name of its own.
pub(super) fn write_gemma4(files: &HfFiles, json: &Value, meta: &mut Metadata) -> Result<()> {
    let bad = || Error::bad_file(files.path("tokenizer.json"), "'model.vocab' is not a map of tokens to ids");
    let map = json.get("model").and_then(|m| m.get("vocab")?.as_object()).ok_or_else(bad)?;
    let added = files.merged_added_tokens()?;
    let last = map.values().filter_map(Value::as_u64).chain(added.iter().map(|t| t.id as u64)).max().ok_or_else(bad)?;
    let rows = usize::try_from(last).ok().filter(|n| *n < MAX_ROWS).ok_or_else(bad)? + 1;
    let blank = |i: usize| Piece { text: format!("[PAD{i}]"), score: ADDED_SCORE, ty: TokenType::Unused };
    let mut pieces: Vec<Piece> = (0..rows).map(blank).collect();
    for (token, id) in map {
        let id = id.as_u64().ok_or_else(bad)? as usize;
        let ty = if super::byte_of(token).is_some() { TokenType::Byte } else { TokenType::Normal };
        pieces[id] = Piece { text: token.clone(), ty, ..blank(id) };
    }
    for token in &added {
        let inside = map.contains_key(&token.content);
        let ty = match token.special {
            true => TokenType::Control,
            false if inside => TokenType::Normal,
            false => TokenType::UserDefined,
        };
        pieces[token.id] = Piece { text: token.content.clone(), ty, ..blank(token.id) };
    }
    for piece in pieces.iter_mut().filter(|p| VISIBLE.contains(&p.text.as_str())) {
        piece.ty = TokenType::UserDefined;
    }
    meta.set("tokenizer.ggml.model", "gemma4");
    write_pieces(pieces, meta);
    Special::load(files, true, None)?.write(meta);
    meta.set("tokenizer.ggml.add_space_prefix", false);
    meta.set("tokenizer.ggml.add_bos_token", true);
    Ok(())
}

/// The value under a key, anywhere in a tree of normalizers.
fn find<'a>(json: Option<&'a Value>, key: &str) -> Option<&'a Value> {
    match json? {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(Some(v), key))),
        Value::Array(list) => list.iter().find_map(|v| find(Some(v), key)),
        _ => None,
    }
}

pub(super) fn decode_base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u32> = text.bytes().filter_map(value).map(u32::from).collect();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0, |bits, d| bits << 6 | d) << (6 * (4 - group.len()));
        let [_, a, b, c] = bits.to_be_bytes();
        bytes.extend(&[a, b, c][..group.len() - 1]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("+/8=", &[0xfb, 0xff])]
        {
            assert_eq!(decode_base64(text), bytes);
        }
    }
}
