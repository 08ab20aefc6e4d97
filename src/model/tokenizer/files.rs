//! The tokenizer's JSON files of a Hugging Face folder, read once and handed to the parts that interpret them. It
//! interprets nothing itself.

use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// No tokenizer file is near this size; a larger one is refused before it is read.
const MAX_FILE: u64 = 64 << 20;

/// SentencePiece models, which need no `tokenizer.json`.
pub(super) const MODELS: [&str; 3] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];

/// The score of an added token, and of a row that no token belongs to, as the converter writes them.
pub(super) const ADDED_SCORE: f32 = -1000.0;
pub(super) const PADDING_SCORE: f32 = -10000.0;
/// Rows of an embedding beyond this are a fault of the input, not a vocabulary.
pub(super) const MAX_ROWS: usize = 1 << 24;

/// What lies in a folder, each file as parsed JSON or `None` where it is absent.
pub(super) struct HfFiles {
    pub dir: PathBuf,
    pub tokenizer: Option<Value>,
    pub tokenizer_config: Option<Value>,
    pub config: Option<Value>,
    pub added_tokens: Option<Value>,
}

impl HfFiles {
    pub fn open(dir: &Path) -> Result<Self> {
        let json = |name| read_json(&dir.join(name));
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer: json("tokenizer.json")?,
            tokenizer_config: json("tokenizer_config.json")?,
            config: json("config.json")?,
            added_tokens: json("added_tokens.json")?,
        })
    }

    /// What is said of a folder without any.
    pub fn none(&self) -> Error {
        let what = "no tokenizer: neither tokenizer.json nor tokenizer.model is here";
        Error::bad_file(&self.dir, what).hint("download the tokenizer files of the model into this folder")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A string of `tokenizer_config.json`.
    pub fn config_str(&self, key: &str) -> Option<&str> {
        self.tokenizer_config.as_ref()?.get(key)?.as_str()
    }

    /// Added tokens: those of `tokenizer.json`, with `added_tokens_decoder` of `tokenizer_config.json` taking
    /// precedence, as transformers loads them. In order of id.
    pub fn merged_added_tokens(&self) -> Result<Vec<AddedToken>> {
        let mut tokens = std::collections::BTreeMap::new();
        for token in self.tokenizer_added_tokens()? {
            tokens.insert(token.id, token);
        }
        let has_decoder = self.tokenizer_config.as_ref().is_some_and(|t| t.get("added_tokens_decoder").is_some());
        if let Some(map) = self.added_tokens.as_ref().and_then(Value::as_object).filter(|_| !has_decoder) {
            for (content, id) in map.iter().filter_map(|(token, id)| Some((token, id.as_u64()?.try_into().ok()?))) {
                tokens.entry(id).or_insert_with(|| AddedToken {
                    id,
                    content: content.clone(),
                    special: false,
                    strips: (false, false),
                });
            }
        }
        for token in self.decoder_added_tokens()? {
            tokens.insert(token.id, token);
        }
        Ok(tokens.into_values().collect())
    }

    /// `added_tokens` of `tokenizer.json`, in file order.
    pub fn tokenizer_added_tokens(&self) -> Result<Vec<AddedToken>> {
        let Some(list) = self.tokenizer.as_ref().and_then(|t| t.get("added_tokens")) else { return Ok(Vec::new()) };
        let bad = || Error::bad_file(self.path("tokenizer.json"), "'added_tokens' is not a list of {id, content}");
        if list.is_null() {
            return Ok(Vec::new());
        }
        let list = list.as_array().ok_or_else(bad)?;
        list.iter().map(|t| AddedToken::new(t.get("id").and_then(Value::as_u64), t).ok_or_else(bad)).collect()
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`, in file order.
    pub fn decoder_added_tokens(&self) -> Result<Vec<AddedToken>> {
        let Some(map) = self.tokenizer_config.as_ref().and_then(|t| t.get("added_tokens_decoder")) else {
            return Ok(Vec::new());
        };
        let bad =
            || Error::bad_file(self.path("tokenizer_config.json"), "'added_tokens_decoder' is not {id: {content}}");
        if map.is_null() {
            return Ok(Vec::new());
        }
        let map = map.as_object().ok_or_else(bad)?;
        map.iter().map(|(id, t)| AddedToken::new(id.parse().ok(), t).ok_or_else(bad)).collect()
    }
}

/// One added token.
#[derive(Clone, Debug)]
pub(super) struct AddedToken {
    pub id: usize,
    pub content: String,
    pub special: bool,
    /// Takes in the white space before it (`lstrip`), and after it (`rstrip`).
    pub strips: (bool, bool),
}

impl AddedToken {
    fn new(id: Option<u64>, json: &Value) -> Option<Self> {
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        Some(Self {
            id: id?.try_into().ok()?,
            content: json.get("content")?.as_str()?.to_string(),
            special: flag("special"),
            strips: (flag("lstrip"), flag("rstrip")),
        })
    }

    /// Whether it is a control token: some models forget to mark theirs as special (the converter's list).
    pub fn is_control(&self) -> bool {
        let token = self.content.as_str();
        self.special
            || matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
            || (token.starts_with("<|") && token.ends_with("|>"))
            || (token.starts_with("<｜") && token.ends_with("｜>"))
            || (token.starts_with("<unused") && token.ends_with('>'))
    }
}

/// The whole file, or `None` when there is none.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    let len = match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    if len > MAX_FILE {
        return Err(Error::bad_file(
            path,
            format!("it has {len} bytes, more than the {MAX_FILE} allowed for a tokenizer file"),
        ));
    }
    std::fs::read(path).map(Some).map_err(|e| Error::io(path, e))
}

pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_optional(path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| Error::bad_file(path, "not valid UTF-8"))
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_optional(path)? else { return Ok(None) };
    crate::input::json(path, &bytes).map(Some)
}
