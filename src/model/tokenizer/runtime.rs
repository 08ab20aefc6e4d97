//! Text to token ids and back, from a Hugging Face folder (the `tokenizers` crate reads `tokenizer.json`) or from GGUF
//! metadata alone (as llama.cpp reads it). BOS and EOS are never added here; [`Tokenizer::add_bos`] says who wants them.

use super::bpe::{Bpe, byte_spelling};
use super::files::HfFiles;
use super::library;
use super::restated;
use super::sentencepiece::TokenType;
use super::special::Special;
use super::spm::Spm;
use super::{GgufVocab, byte_of, pre};
use crate::gguf::Metadata;
use crate::model::families::{swallows_space, tokenizer_of_model_type};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// Tokens that end a generation whatever the metadata names as EOS, by llama.cpp's list for the families here.
const END_TOKENS: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<EOT>",
];

/// A vocabulary at work.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Inner,
    len: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    end: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<String>,
}

#[derive(Debug)]
enum Inner {
    Hf(Box<Hf>),
    Gguf(Box<Gguf>),
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or `tokenizer.model` where that is all there is.
    ///
    /// # Errors
    /// [`Error::BadInput`] for missing or corrupt files, [`Error::Unsupported`] for kinds that this crate cannot run.
    pub fn from_hf_dir(dir: &Path) -> Result<Self> {
        let files = restated::open(dir)?;
        let config = files.config.as_ref();
        let field = |key: &str| config.and_then(|c| c.get(key).or_else(|| c.get("text_config")?.get(key)));
        let rows = field("vocab_size").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let Some(json) = &files.tokenizer else {
            let facts = tokenizer_of_model_type(field("model_type").and_then(Value::as_str));
            let rows = match rows {
                Some(rows) => rows,
                None => sentencepiece_len(&files)?,
            };
            return Self::from_vocab(&super::hf::build(&files, rows, facts, None)?, "");
        };
        let hf = Hf::new(&files)?;
        let special = Special::load(&files, false, None)?;
        let named: Vec<u32> = END_TOKENS.iter().filter_map(|t| hf.plain.token_to_id(t)).collect();
        let (bos, eos) = (special.id("bos"), special.id("eos"));
        // What llama.cpp does when the metadata does not say (see `GgufVocab`), so that both sources behave alike.
        let bos_by_default = match json.get("model").and_then(|m| m.get("byte_fallback")?.as_bool()) {
            Some(true) => true,
            _ => pre::recognise(&files, json, None).ok().and_then(pre::by_name).is_some_and(|p| p.add_bos),
        };
        Ok(Self {
            len: hf.plain.get_vocab_size(true),
            end: with_eos(named, eos),
            add_bos: special.add("bos").unwrap_or(bos_by_default),
            add_eos: special.add("eos").unwrap_or(false),
            chat_template: special.chat_template().map(String::from),
            inner: Inner::Hf(Box::new(hf)),
            bos,
            eos,
        })
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`GgufVocab::from_metadata`]; [`Error::Unsupported`] for kinds other than byte-level BPE and SentencePiece.
    pub fn from_gguf(meta: &Metadata) -> Result<Self> {
        Self::from_vocab(&GgufVocab::from_metadata(meta)?, meta.str("general.name").unwrap_or_default())
    }

    /// `name` is the model's (`general.name`), which llama.cpp consults for one family.
    fn from_vocab(vocab: &GgufVocab, name: &str) -> Result<Self> {
        let gguf = Gguf::new(vocab, name)?;
        let eos = vocab.special("eos").or(gguf.default_id(vocab, 2));
        let named = (0u32..).zip(vocab.tokens()).filter(|(_, t)| END_TOKENS.contains(&t.as_str())).map(|(id, _)| id);
        let add_bos = match vocab.model() {
            "llama" | "bert" => true,
            _ => vocab.pre().and_then(pre::by_name).is_some_and(|p| p.add_bos),
        };
        Ok(Self {
            len: vocab.tokens().len(),
            bos: vocab.special("bos").or(gguf.default_id(vocab, 1)),
            end: with_eos(named.collect(), eos),
            eos,
            add_bos: vocab.flag("add_bos_token").unwrap_or(add_bos),
            add_eos: vocab.flag("add_eos_token").unwrap_or(false),
            chat_template: vocab.chat_template().map(String::from),
            inner: Inner::Gguf(Box::new(gguf)),
        })
    }

    /// The ids of `text`, without BOS and EOS. Control tokens in the text are recognised only with `parse_special`;
    /// user-defined ones always are.
    ///
    /// # Errors
    /// [`Error::BadInput`] when the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        match &self.inner {
            Inner::Hf(hf) => hf.encode(text, parse_special),
            Inner::Gguf(gguf) => gguf.encode(text, parse_special),
        }
    }

    /// The text of some ids, control tokens included; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.inner {
            Inner::Hf(hf) => hf.plain.decode(ids, false).unwrap_or_default(),
            Inner::Gguf(gguf) => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| gguf.piece(id)).copied().collect();
                let text = String::from_utf8_lossy(&bytes);
                gguf.strip_prefix(&text).to_string()
            }
        }
    }

    /// Decodes one id at a time; see `DecodeStream`.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, ids: Vec::new(), shown: 0, bytes: Vec::new(), started: false }
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens that end a generation: EOS, and end-of-turn tokens by their usual names.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }

    /// Whether the model expects BOS in front of a text.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Whether the model expects EOS after a text.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.eos.is_some()
    }

    /// How many ids there are (for a Hugging Face folder without padding rows).
    pub fn vocab_len(&self) -> usize {
        self.len
    }

    /// The conversation through the chat template.
    ///
    /// Errors: `BadInput` when there is no template, or it cannot be rendered.
    pub fn render(&self, messages: &[super::Message], add_generation_prompt: bool) -> Result<String> {
        let template = self
            .chat_template()
            .ok_or_else(|| Error::bad_input("the model has no chat template").hint("use plain text instead"))?;
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id)).unwrap_or_default();
        super::render_chat(template, messages, &text(self.bos()), &text(self.eos()), add_generation_prompt)
    }

    /// The chat template, where the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The text of a single token as it stands in the vocabulary, for special tokens in templates.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &self.inner {
            Inner::Hf(hf) => hf.plain.id_to_token(id),
            Inner::Gguf(gguf) => gguf.pieces.get(id as usize).map(|p| String::from_utf8_lossy(p).into_owned()),
        }
    }
}

fn with_eos(mut end: Vec<u32>, eos: Option<u32>) -> Vec<u32> {
    end.extend(eos);
    end.sort_unstable();
    end.dedup();
    end
}

fn sentencepiece_len(files: &HfFiles) -> Result<usize> {
    let path = files.path("tokenizer.model");
    let bytes = super::files::read_optional(&path)?.ok_or_else(|| files.none())?;
    Ok(super::sentencepiece::parse(&path, &bytes)?.len())
}

/// The `tokenizers` crate with `tokenizer.json`.
#[derive(Debug)]
struct Hf {
    /// Takes special tokens in a text as text. Also used for decoding.
    plain: tokenizers::Tokenizer,
    /// Recognises special tokens; made when first needed, since few callers need both.
    special: OnceLock<tokenizers::Tokenizer>,
}

/// That the crate reads `tokenizer.json`.
///
/// # Errors
/// `BadInput`.
pub(super) fn check_library(files: &HfFiles) -> Result<()> {
    Hf::new(files).map(|_| ())
}

impl Hf {
    fn new(files: &HfFiles) -> Result<Self> {
        let path = files.path("tokenizer.json");
        let bad = |e: tokenizers::Error| Error::bad_file(&path, format!("not a usable tokenizer: {e}"));
        if let Some(json) = &files.tokenizer {
            super::growth::check(json).map_err(|what| Error::bad_file(&path, what))?;
        }
        // What was read here, and not the file once more: the library panics at some of what is no JSON.
        let mut plain = match &files.tokenizer {
            Some(json) => json.to_string().parse(),
            None => tokenizers::Tokenizer::from_file(&path),
        }
        .map_err(bad)?;
        // transformers adds the tokens that only tokenizer_config.json knows.
        for token in files.merged_added_tokens()? {
            if plain.token_to_id(&token.content).is_none() {
                let added = tokenizers::AddedToken::from(token.content, token.special);
                plain.add_tokens([added]).map_err(bad)?;
            }
        }
        plain.with_truncation(None).map_err(bad)?;
        plain.with_padding(None);
        plain.set_encode_special_tokens(true);
        Ok(Self { plain, special: OnceLock::new() })
    }

    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let tokenizer = if parse_special {
            self.special.get_or_init(|| {
                let mut special = self.plain.clone();
                special.set_encode_special_tokens(false);
                special
            })
        } else {
            &self.plain
        };
        ids(tokenizer, text)
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false);
    let encoding = encoding.map_err(|e| Error::bad_input(format!("the text cannot be tokenized: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}

/// A vocabulary from GGUF metadata.
#[derive(Debug)]
struct Gguf {
    kind: Kind,
    /// Cut out of a text before anything else, longest first.
    specials: Vec<SpecialToken>,
    /// The bytes each id stands for.
    pieces: Vec<Vec<u8>>,
    /// A space is put before a text (and taken off again).
    space_prefix: bool,
}

#[derive(Debug)]
enum Kind {
    Bpe(Box<Bpe>),
    Spm(Spm),
    Library(Box<tokenizers::Tokenizer>),
}

#[derive(Debug)]
struct SpecialToken {
    id: u32,
    text: String,
    /// Recognised only when special tokens are asked for.
    control: bool,
    /// Swallows white space after it.
    strips_right: bool,
}

impl Gguf {
    fn new(vocab: &GgufVocab, name: &str) -> Result<Self> {
        let kind = match vocab.model() {
            "llama" => Kind::Spm(Spm::new(vocab)),
            "gpt2" => Kind::Bpe(Box::new(Bpe::new(vocab)?)),
            name if library::MODELS.contains(&name) => Kind::Library(Box::new(library::of(vocab)?)),
            other => {
                let known = format!("'gpt2', 'llama', '{}'", library::MODELS.join("', '"));
                let what = format!("the tokenizer '{other}' cannot be run here (only {known} can)");
                return Err(Error::unsupported(what));
            }
        };
        let types = vocab.token_types();
        let spelling: HashMap<char, u8> = byte_spelling().into_iter().zip(0..=255).collect();
        let piece = |(token, ty): (&String, &TokenType)| match ty {
            TokenType::Unused => Vec::new(),
            TokenType::Byte => byte_of(token).into_iter().collect(),
            TokenType::Normal if matches!(&kind, Kind::Bpe(bpe) if bpe.spells_bytes()) => unspell(token, &spelling),
            TokenType::Normal => token.replace('▁', " ").into_bytes(),
            _ => token.clone().into_bytes(),
        };
        let pieces = vocab.tokens().iter().zip(&types).map(piece).collect();
        let mut specials = Vec::new();
        for ((id, text), ty) in (0u32..).zip(vocab.tokens()).zip(&types) {
            let ends = END_TOKENS.contains(&text.as_str());
            let control = ends || matches!(ty, TokenType::Control | TokenType::Unknown);
            if !text.is_empty() && (control || *ty == TokenType::UserDefined) {
                let strips_right = swallows_space(name, text);
                specials.push(SpecialToken { id, text: text.clone(), control, strips_right });
            }
        }
        specials.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        let space_prefix = !matches!(kind, Kind::Bpe(_)) && vocab.flag("add_space_prefix").unwrap_or(true);
        Ok(Self { kind, specials, pieces, space_prefix })
    }

    /// SentencePiece's customary ids, for files that do not name theirs.
    fn default_id(&self, vocab: &GgufVocab, id: u32) -> Option<u32> {
        (matches!(self.kind, Kind::Spm(_)) && (id as usize) < vocab.tokens().len()).then_some(id)
    }

    fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        let mut after_special = true;
        for part in self.partition(text, parse_special) {
            match (part, &self.kind) {
                (Part::Token(id), _) => {
                    out.push(id);
                    after_special = true;
                }
                (Part::Text(text), Kind::Bpe(bpe)) => bpe.encode(text, &mut out),
                (Part::Text(text), Kind::Spm(spm)) => {
                    let prefix = if self.space_prefix && after_special { "▁" } else { "" };
                    spm.encode(&format!("{prefix}{}", text.replace(' ', "▁")), &mut out);
                    after_special = false;
                }
                (Part::Text(text), Kind::Library(tokenizer)) => out.extend(ids(tokenizer, text)?),
            }
        }
        Ok(out)
    }

    /// Cuts out special tokens: for each in turn, every occurrence in what is still text.
    fn partition<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Part<'t>> {
        let mut parts = if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] };
        for special in self.specials.iter().filter(|s| parse_special || !s.control) {
            if !text.contains(&special.text) {
                continue;
            }
            let mut next = Vec::with_capacity(parts.len() + 2);
            for part in parts {
                let Part::Text(mut rest) = part else {
                    next.push(part);
                    continue;
                };
                while let Some((before, after)) = rest.split_once(special.text.as_str()) {
                    if !before.is_empty() {
                        next.push(Part::Text(before));
                    }
                    next.push(Part::Token(special.id));
                    let ascii_space = |c: char| matches!(c, ' ' | '\t'..='\r');
                    rest = if special.strips_right { after.trim_start_matches(ascii_space) } else { after };
                }
                if !rest.is_empty() {
                    next.push(Part::Text(rest));
                }
            }
            parts = next;
        }
        parts
    }

    fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Takes off the space that encoding put before the text.
    fn strip_prefix<'t>(&self, text: &'t str) -> &'t str {
        if self.space_prefix { text.strip_prefix(' ').unwrap_or(text) } else { text }
    }
}

#[derive(Clone, Copy)]
enum Part<'t> {
    Token(u32),
    Text(&'t str),
}

/// The bytes that a token of byte-level BPE spells; characters outside the spelling stand for themselves.
fn unspell(token: &str, spelling: &HashMap<char, u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match spelling.get(&c) {
            Some(&byte) => bytes.push(byte),
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes
}

/// Decodes a growing sequence of ids into text that can be printed as it comes: a character whose bytes are not all
/// there yet is held back.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Hugging Face: ids whose text is not complete, after some that give them their surroundings.
    ids: Vec<u32>,
    /// How many of `ids` have been shown.
    shown: usize,
    /// GGUF: bytes of an incomplete character.
    bytes: Vec<u8>,
    started: bool,
}

impl DecodeStream<'_> {
    /// Adds an id and returns the text that it completes, often empty.
    pub fn push(&mut self, id: u32) -> String {
        let Inner::Gguf(gguf) = &self.tokenizer.inner else { return self.push_hf(id) };
        self.bytes.extend_from_slice(gguf.piece(id));
        let mut text = String::new();
        loop {
            let (valid, skip) = match std::str::from_utf8(&self.bytes) {
                Ok(_) => (self.bytes.len(), None),
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            text.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
            self.bytes.drain(..valid + skip.unwrap_or(0));
            match skip {
                // Bytes that no continuation can repair.
                Some(_) => text.push(char::REPLACEMENT_CHARACTER),
                None => break,
            }
        }
        self.first(text)
    }

    /// What is left of an incomplete character.
    pub fn finish(mut self) -> String {
        let rest = match &self.tokenizer.inner {
            Inner::Gguf(_) => String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned(),
            Inner::Hf(_) => {
                let shown = self.tokenizer.decode(self.ids.get(..self.shown).unwrap_or_default());
                let all = self.tokenizer.decode(&self.ids);
                return all.strip_prefix(&shown).unwrap_or_default().to_string();
            }
        };
        self.first(rest)
    }

    /// A decoder may treat the start of a text specially (it drops SentencePiece's leading space), so the ids that were
    /// shown last are decoded again in front of the new ones and their text taken off.
    fn push_hf(&mut self, id: u32) -> String {
        self.ids.push(id);
        let shown = self.tokenizer.decode(self.ids.get(..self.shown).unwrap_or_default());
        let all = self.tokenizer.decode(&self.ids);
        if all.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        let Some(new) = all.strip_prefix(&shown).map(str::to_string) else { return String::new() };
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        new
    }

    fn first(&mut self, text: String) -> String {
        let Inner::Gguf(gguf) = &self.tokenizer.inner else { return text };
        if self.started || text.is_empty() {
            return text;
        }
        self.started = true;
        gguf.strip_prefix(&text).to_string()
    }
}
