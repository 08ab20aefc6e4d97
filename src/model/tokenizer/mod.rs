//! Tokenizers: the vocabulary as GGUF metadata holds it ([`GgufVocab`]), the same vocabulary at work ([`Tokenizer`]), and
//! chat templates ([`render_chat`]).

mod bpe;
mod charsmap;
mod chat;
mod files;
mod growth;
mod hf;
mod library;
mod listed;
mod pieces;
pub mod pre;
mod restated;
mod runtime;
pub mod sentencepiece;
mod special;
mod split;
mod spm;

pub use chat::{Message, fault as template_fault, render_chat};
pub use runtime::{DecodeStream, Tokenizer};

use crate::gguf::{Array, Metadata, Value};
use crate::model::family::TokenizerFacts;
use crate::{Error, Result};
use sentencepiece::TokenType;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The tokenizer part of GGUF metadata (`tokenizer.*`), complete and checked: as many types and scores as tokens, no
/// token twice. Keys that this crate does not use are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufVocab {
    meta: Metadata,
    remarks: Vec<String>,
}

/// That llama.cpp knows a pre-tokenizer of this name.
///
/// # Errors
/// [`Error::Unsupported`] with the names that it knows.
pub fn check_pre_tokenizer(name: &str) -> Result<()> {
    pre::check_name(name).map(|_| ())
}

/// That the tokenizer's files in a folder, as far as there are any, can be read at all.
///
/// # Errors
/// [`Error::BadInput`] naming the file.
pub fn check_files(dir: &Path) -> Result<()> {
    restated::open(dir).map(|_| ())
}

/// That the library which transformers uses reads the `tokenizer.json` of a folder, where there is one.
///
/// # Errors
/// [`Error::BadInput`] naming the file.
pub fn check_library(dir: &Path) -> Result<()> {
    match dir.join("tokenizer.json").is_file() {
        true => runtime::check_library(&files::HfFiles::open(dir)?),
        false => Ok(()),
    }
}

/// The chat templates of a Hugging Face folder by their names, `default` the main one, as transformers takes them.
///
/// # Errors
/// [`Error::BadInput`] for a file that cannot be read.
pub fn chat_templates(dir: &Path) -> Result<BTreeMap<String, String>> {
    special::templates_of(&files::HfFiles::open(dir)?)
}

/// What is odd about the `tokenizer.model` of a folder beside a `tokenizer.json`, which transformers loads.
pub fn unlike_model_file(dir: &Path) -> Option<String> {
    hf::unlike_model_file(dir)
}

impl GgufVocab {
    /// The vocabulary of a Hugging Face folder. `rows` is the number of embedding rows, up to which the vocabulary is
    /// padded; `facts` decide a few details as in llama.cpp's converter; `pre` names the
    /// pre-tokenizer instead of having it recognised (byte-level BPE only).
    ///
    /// # Errors
    /// [`Error::BadInput`] for missing, corrupt or contradictory files, [`Error::Unsupported`] for a tokenizer that
    /// llama.cpp has no name for.
    pub fn from_hf_dir(dir: &Path, rows: usize, facts: &TokenizerFacts, pre: Option<&str>) -> Result<Self> {
        hf::build(&restated::open(dir)?, rows, facts, pre)
    }

    /// The vocabulary in the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::BadInput`] when there is none, or its arrays contradict each other.
    pub fn from_metadata(source: &Metadata) -> Result<Self> {
        let mut meta = Metadata::new();
        for (key, value) in source.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
            meta.set(key, value.clone());
        }
        let vocab = Self { meta, remarks: Vec::new() };
        vocab.check()?;
        Ok(vocab)
    }

    /// What was odd about the files, and what was made of it: a sentence each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Sets all keys in `meta`, in the order of llama.cpp's converter.
    pub fn write(&self, meta: &mut Metadata) {
        for (key, value) in self.meta.iter() {
            meta.set(key, value.clone());
        }
    }

    /// `gpt2` for byte-level BPE, `llama` for SentencePiece's merges, `t5` for unigram models, `bert` for WordPiece.
    pub fn model(&self) -> &str {
        self.meta.str("tokenizer.ggml.model").unwrap_or_default()
    }

    /// The name of the pre-tokenizer.
    pub fn pre(&self) -> Option<&str> {
        self.meta.str("tokenizer.ggml.pre")
    }

    /// By id.
    pub fn tokens(&self) -> &[String] {
        self.meta.strings("tokenizer.ggml.tokens").unwrap_or_default()
    }

    /// By id; zeros where the file has none.
    pub fn scores(&self) -> Vec<f32> {
        match self.meta.get("tokenizer.ggml.scores") {
            Some(Value::Array(Array::F32(scores))) => scores.clone(),
            Some(Value::Array(Array::I32(scores))) => scores.iter().map(|&s| s as f32).collect(),
            _ => vec![0.0; self.tokens().len()],
        }
    }

    /// By id; normal where the file has none.
    pub fn token_types(&self) -> Vec<TokenType> {
        match self.meta.get("tokenizer.ggml.token_type") {
            Some(Value::Array(Array::I32(types))) => types.iter().map(|&t| TokenType::from_i32(t)).collect(),
            _ => vec![TokenType::Normal; self.tokens().len()],
        }
    }

    /// In order of rank, each `left right`.
    pub fn merges(&self) -> &[String] {
        self.meta.strings("tokenizer.ggml.merges").unwrap_or_default()
    }

    /// The id under `tokenizer.ggml.{name}_token_id`, where it is one of the tokens.
    pub fn special(&self, name: &str) -> Option<u32> {
        let id = self.meta.uint(&format!("tokenizer.ggml.{name}_token_id"))?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < self.tokens().len())
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        self.meta.bool(&format!("tokenizer.ggml.{name}"))
    }

    pub fn chat_template(&self) -> Option<&str> {
        self.meta.str("tokenizer.chat_template")
    }

    fn check(&self) -> Result<()> {
        if self.meta.str("tokenizer.ggml.model").is_none() {
            return Err(Error::bad_input("no tokenizer in the metadata: tokenizer.ggml.model is missing"));
        }
        let tokens = self.tokens();
        if tokens.is_empty() {
            return Err(Error::bad_input("no tokens in the metadata: tokenizer.ggml.tokens is missing or empty"));
        }
        let lengths = [("scores", self.scores().len()), ("token_type", self.token_types().len())];
        if let Some((key, n)) = lengths.into_iter().find(|&(_, n)| n != tokens.len()) {
            let what = format!("tokenizer.ggml.{key} holds {n} entries for {} tokens", tokens.len());
            return Err(Error::bad_input(what));
        }
        let mut seen = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate().filter(|(_, t)| !t.is_empty()) {
            if let Some(other) = seen.insert(token.as_str(), id) {
                let what = format!("tokens {other} and {id} are both {token:?}, which llama.cpp refuses to load");
                return Err(Error::bad_input(what));
            }
        }
        Ok(())
    }
}

/// The byte of a SentencePiece byte token `<0xXX>`.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
