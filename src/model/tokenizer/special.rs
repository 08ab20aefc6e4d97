//! Special tokens, the add-BOS/EOS/SEP flags, merges and chat templates of a Hugging Face folder, decided the way
//! llama.cpp's converter (`SpecialVocab` of gguf-py) decides them. It does not build the vocabulary.

use super::files::{HfFiles, read_json, read_text};
use crate::gguf::Metadata;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The special tokens asked for, in the order in which they are written.
const TYPES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// GGUF keys by type; types that are not listed (cls) have no key.
const ID_KEYS: [(&str, &str); 8] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
    ("eom", "tokenizer.ggml.eom_token_id"),
];

pub(super) const ADD_KEYS: [(&str, &str); 3] = [
    ("bos", "tokenizer.ggml.add_bos_token"),
    ("eos", "tokenizer.ggml.add_eos_token"),
    ("sep", "tokenizer.ggml.add_sep_token"),
];

/// A chat template: its name (`default` for the main one) and its text.
type Template = (String, String);

#[derive(Debug, Default)]
pub(super) struct Special {
    types: Vec<String>,
    /// Ids at or above this are dropped.
    limit: Option<usize>,
    ids: Vec<(String, u32)>,
    add: Vec<(String, bool)>,
    merges: Vec<String>,
    templates: Vec<Template>,
    /// Special tokens that were dropped.
    beyond: Vec<(String, u32)>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

impl Special {
    /// `merges` asks for the merges too; `limit` drops special tokens whose id is not below it.
    pub fn load(files: &HfFiles, merges: bool, limit: Option<usize>) -> Result<Self> {
        let mut s = Self { types: TYPES.map(String::from).into(), limit, ..Self::default() };
        if merges {
            s.load_merges(files)?;
        }
        if let Some(normalizer) = files.tokenizer.as_ref().and_then(|t| t.get("normalizer")) {
            s.normalizer(normalizer, 0);
        }
        s.tokenizer_config(files)?;
        if let Some(config) = &files.config {
            for ty in s.types.clone() {
                let key = format!("{ty}_token_id");
                let id = match config.get(&key) {
                    None | Some(Value::Null) => config.get("text_config").and_then(|c| c.get(&key)),
                    id => id,
                };
                s.set_id(&ty, id.and_then(Value::as_i64), files)?;
            }
        }
        s.stops(files)?;
        Ok(s)
    }

    /// Tokens at which generation stops, where `config.json` or `generation_config.json` names several: the first is EOS
    /// unless another is, the next ones become EOT and EOM, at which llama.cpp stops too.
    fn stops(&mut self, files: &HfFiles) -> Result<()> {
        let generation = read_json(&files.path("generation_config.json")).unwrap_or_default();
        for config in [files.config.as_ref(), generation.as_ref()].into_iter().flatten() {
            let ids = match config.get("eos_token_id") {
                Some(Value::Array(list)) => list.iter().filter_map(Value::as_i64).collect(),
                Some(id) => id.as_i64().into_iter().collect::<Vec<_>>(),
                None => Vec::new(),
            };
            for id in ids {
                let known = self
                    .ids
                    .iter()
                    .any(|(ty, known)| i64::from(*known) == id && ["eos", "eot", "eom"].contains(&ty.as_str()));
                if !known && let Some(free) = ["eos", "eot", "eom"].into_iter().find(|ty| self.id(ty).is_none()) {
                    self.set_id(free, Some(id), files)?;
                }
            }
        }
        Ok(())
    }

    /// Whether merges were asked for, and there are none.
    pub fn lacks_merges(&self) -> bool {
        self.merges.is_empty()
    }

    /// What is to be said of chat templates, and of special tokens that no row has: a sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let names: Vec<&str> = self.templates.iter().map(|(name, _)| name.as_str()).collect();
        let none = !names.is_empty() && !names.contains(&"default");
        let of_templates = none.then(|| {
            format!(
                "there is no default chat template, only {}; engines fall back to one of their own",
                names.join(", ")
            )
        });
        let of_template = self.chat_template().and_then(super::chat::fault);
        let of_template = of_template
            .map(|why| format!("the chat template cannot be read ({why}); llama.cpp's server may not start with it"));
        let of_tokens = self.beyond.iter().map(|(ty, id)| {
            format!("{id} is said to be the {ty} token, but the embedding has fewer rows; that is left out")
        });
        of_templates.into_iter().chain(of_template).chain(of_tokens).collect()
    }

    pub fn id(&self, ty: &str) -> Option<u32> {
        self.ids.iter().find(|(t, _)| t == ty).map(|(_, id)| *id)
    }

    pub fn add(&self, ty: &str) -> Option<bool> {
        self.add.iter().find(|(t, _)| t == ty).map(|(_, add)| *add)
    }

    /// The main chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.iter().find(|(name, _)| name == "default").map(|(_, text)| text.as_str())
    }

    /// Writes everything in the converter's order: merges, ids, flags, templates, normalizer options.
    pub fn write(self, meta: &mut Metadata) {
        if !self.merges.is_empty() {
            meta.set("tokenizer.ggml.merges", self.merges);
        }
        for (ty, id) in self.ids {
            if let Some((_, key)) = ID_KEYS.iter().find(|(t, _)| *t == ty) {
                meta.set(*key, id);
            }
        }
        for (ty, add) in self.add {
            if let Some((_, key)) = ADD_KEYS.iter().find(|(t, _)| *t == ty) {
                meta.set(*key, add);
            }
        }
        let mut names = Vec::new();
        for (name, text) in self.templates.iter().filter(|(name, _)| name != "default") {
            meta.set(format!("tokenizer.chat_template.{name}"), text.as_str());
            names.push(name.clone());
        }
        if !names.is_empty() {
            meta.set("tokenizer.chat_templates", names);
        }
        if let Some((_, text)) = self.templates.into_iter().find(|(name, _)| name == "default") {
            meta.set("tokenizer.chat_template", text);
        }
        if let Some(on) = self.lowercase {
            meta.set("tokenizer.ggml.normalizer.lowercase", on);
        }
        if let Some(on) = self.strip_accents {
            meta.set("tokenizer.ggml.normalizer.strip_accents", on);
        }
    }

    fn load_merges(&mut self, files: &HfFiles) -> Result<()> {
        if let Some(merges) = files.tokenizer.as_ref().and_then(|t| t.get("model")?.get("merges")?.as_array()) {
            let bad = || {
                Error::bad_file(files.path("tokenizer.json"), "'merges' is neither \"a b\" strings nor [a, b] pairs")
            };
            self.merges = merges.iter().map(|m| merge(m).ok_or_else(bad)).collect::<Result<_>>()?;
        }
        if self.merges.is_empty() {
            let text = read_text(&files.path("merges.txt"))?.unwrap_or_default();
            let lines = text.lines().skip(usize::from(text.starts_with('#'))).map(str::split_whitespace);
            for mut words in lines {
                if let (Some(a), Some(b), None) = (words.next(), words.next(), words.next()) {
                    self.merges.push(format!("{a} {b}"));
                }
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, json: &Value, depth: usize) {
        let flag = |key| json.get(key).and_then(Value::as_bool);
        match json.get("type").and_then(Value::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") if depth < 8 => {
                for part in json.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
                    self.normalizer(part, depth + 1);
                }
            }
            _ => {}
        }
    }

    fn tokenizer_config(&mut self, files: &HfFiles) -> Result<()> {
        let mut config = files.tokenizer_config.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
        if let Some(tokenizer) = &files.tokenizer {
            self.post_processor(tokenizer, &mut config);
        }
        self.templates(files, &config)?;
        if config.is_empty() {
            return Ok(());
        }
        let added = files.tokenizer_added_tokens()?;
        for ty in self.types.clone() {
            if let Some(add) = config.get(&format!("add_{ty}_token")).and_then(Value::as_bool) {
                // What the post-processor does outweighs what the flag says.
                if self.add(&ty).is_none() {
                    self.add.push((ty.clone(), add));
                }
            }
            let entry = config.get(&format!("{ty}_token"));
            if let Some(content) = entry.and_then(|e| e.as_str().or_else(|| e.get("content")?.as_str())) {
                let id = added.iter().find(|t| t.content == content).map(|t| t.id as i64);
                self.set_id(&ty, id, files)?;
            }
        }
        Ok(())
    }

    /// Reads from the post-processor which special tokens it puts around a text, with the tokens that
    /// `tokenizer_config.json` leaves open filled in.
    fn post_processor(&mut self, tokenizer: &Value, config: &mut Map<String, Value>) {
        let known = !config.is_empty();
        let get = |config: &Map<String, Value>, key: &str| config.get(key).filter(|v| truthy(v)).cloned();
        let (mut bos, mut cls) = (get(config, "bos_token"), get(config, "cls_token"));
        let (mut eos, mut sep) = (get(config, "eos_token"), get(config, "sep_token"));
        for (key, token, substitute) in [("bos_token", &mut bos, &cls), ("eos_token", &mut eos, &sep)] {
            if let Some(other) = substitute
                && token.is_none()
                && known
            {
                config.insert(key.into(), other.clone());
                *token = substitute.clone();
            }
        }
        let Some(post) = tokenizer.get("post_processor").filter(|p| truthy(p)) else { return };
        let steps = match post.get("processors").and_then(Value::as_array) {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(post),
        };
        for step in steps {
            match step.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    for ty in ["bos", "eos"] {
                        if self.add(ty).is_none() {
                            self.set_add(ty, false);
                        }
                    }
                }
                Some("RobertaProcessing") => {
                    for ty in ["bos", "eos", "sep"] {
                        self.set_add(ty, true);
                    }
                    for (ty, token) in [("cls", &mut cls), ("sep", &mut sep)] {
                        if token.is_none() && known {
                            *token = step.get(ty).and_then(|t| t.get(0)).cloned();
                            config.insert(format!("{ty}_token"), token.clone().unwrap_or_default());
                        }
                    }
                }
                Some("TemplateProcessing") => {
                    let empty = Vec::new();
                    let part = |key| step.get(key).and_then(Value::as_array).unwrap_or(&empty);
                    let (single, pair) = (part("single"), part("pair"));
                    let (mut first, mut last) = (None, None);
                    if single.len() > 1 {
                        first = special_id(single.first());
                        last = special_id(single.last());
                    }
                    if let Some(first) = &first {
                        if !known {
                            bos = Some(first.clone());
                        } else if bos.as_ref() != Some(first) && cls.as_ref() != Some(first) {
                            for (key, token) in [("bos_token", &mut bos), ("cls_token", &mut cls)] {
                                if token.is_none() {
                                    *token = Some(first.clone());
                                    config.insert(key.into(), first.clone());
                                }
                            }
                        }
                        self.set_add("bos", bos.as_ref() == Some(first) || cls.as_ref() == Some(first));
                    }
                    if let Some(last) = &last {
                        if known && eos.as_ref() != Some(last) {
                            // The token that was named EOS becomes the end of a turn.
                            if let Some(ty) = ["eot", "eom"].into_iter().find(|ty| !self.types.iter().any(|t| t == ty))
                            {
                                self.types.push(ty.into());
                                config.insert(format!("{ty}_token"), eos.clone().unwrap_or_default());
                            }
                            config.insert("eos_token".into(), last.clone());
                        }
                        eos = Some(last.clone());
                        self.set_add("eos", true);
                    }
                    if let Some(add) = separator(pair, first.as_ref(), last.as_ref(), &[&sep, &eos]) {
                        self.set_add("sep", add);
                        if add && sep.is_none() && known {
                            config.insert("sep_token".into(), eos.clone().unwrap_or_default());
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn templates(&mut self, files: &HfFiles, config: &Map<String, Value>) -> Result<()> {
        // As transformers does: a file of its own goes first.
        let template = match (template_file(files)?, config.get("chat_template")) {
            (Value::Null, Some(template)) => template.clone(),
            (Value::Null, None) => {
                let json = read_json(&files.path("chat_template.json"))?;
                let json = json.or(read_json(&files.path("processor_config.json"))?);
                json.and_then(|j| j.get("chat_template").cloned()).unwrap_or_default()
            }
            (file, _) => file,
        };
        // A table of names, as it is in memory, or a list of such entries, as it is usually saved.
        let template = match template {
            Value::Object(map) => {
                map.into_iter().map(|(name, text)| serde_json::json!({ "name": name, "template": text })).collect()
            }
            other => other,
        };
        match template {
            Value::String(text) => self.templates.push(("default".into(), text)),
            Value::Array(list) => {
                for entry in list {
                    let field = |key| entry.get(key).and_then(Value::as_str);
                    let (Some(name), Some(text)) = (field("name"), field("template")) else { continue };
                    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                    if !name.is_empty() {
                        self.templates.retain(|(n, _)| *n != name);
                        self.templates.push((name, text.into()));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set_add(&mut self, ty: &str, add: bool) {
        match self.add.iter_mut().find(|(t, _)| t == ty) {
            Some(entry) => entry.1 = add,
            None => self.add.push((ty.into(), add)),
        }
    }

    pub fn set_id(&mut self, ty: &str, id: Option<i64>, files: &HfFiles) -> Result<()> {
        // Older checkpoints say -1 of a token that they do not have.
        let Some(id) = id.filter(|id| *id != -1) else { return Ok(()) };
        let bad = || Error::bad_file(&files.dir, format!("{id} is not a valid id for the {ty} token"));
        let id = u32::try_from(id).map_err(|_| bad())?;
        let in_range = self.limit.is_none_or(|limit| (id as usize) < limit);
        if !in_range && !self.beyond.iter().any(|(known, _)| known == ty) {
            self.beyond.push((ty.into(), id));
        } else if in_range && self.id(ty).is_none() {
            self.ids.push((ty.into(), id));
        }
        Ok(())
    }
}

/// The chat templates of a folder by their names.
pub(super) fn templates_of(files: &HfFiles) -> Result<BTreeMap<String, String>> {
    let mut special = Special::default();
    let config = files.tokenizer_config.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    special.templates(files, &config)?;
    Ok(special.templates.into_iter().collect())
}

/// One merge as GGUF writes it: the two halves around a space, spaces inside a half spelled as byte-level BPE does.
fn merge(json: &Value) -> Option<String> {
    if let Some(text) = json.as_str() {
        return Some(text.to_string());
    }
    let [a, b] = json.as_array()?.as_slice() else { return None };
    Some(format!("{} {}", a.as_str()?.replace(' ', "Ġ"), b.as_str()?.replace(' ', "Ġ")))
}

/// `chat_template.jinja`, with `additional_chat_templates/`; null where there is none.
fn template_file(files: &HfFiles) -> Result<Value> {
    let Some(text) = read_text(&files.path("chat_template.jinja"))? else { return Ok(Value::Null) };
    let mut named = Vec::new();
    if let Ok(entries) = std::fs::read_dir(files.path("additional_chat_templates")) {
        let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "jinja")) {
            if let (Some(name), Some(text)) = (path.file_stem().and_then(|s| s.to_str()), read_text(path)?) {
                named.push(serde_json::json!({"name": name, "template": text}));
            }
        }
    }
    if named.is_empty() {
        return Ok(text.into());
    }
    named.insert(0, serde_json::json!({"name": "default", "template": text}));
    Ok(named.into())
}

/// The token of a template step `{"SpecialToken": {"id": ...}}`.
fn special_id(step: Option<&Value>) -> Option<Value> {
    step?.get("SpecialToken")?.get("id").filter(|v| truthy(v)).cloned()
}

/// Whether the template for a pair puts a separator between its texts; `None` when it is not `A [x] [y] B`.
fn separator(pair: &[Value], first: Option<&Value>, last: Option<&Value>, known: &[&Option<Value>]) -> Option<bool> {
    let start = usize::from(first.is_some() && special_id(pair.first()).as_ref() == first);
    let end = pair.len() - usize::from(last.is_some() && special_id(pair.last()).as_ref() == last && !pair.is_empty());
    let pair = pair.get(start..end)?;
    let sequence =
        |step: Option<&Value>, id: &str| step.and_then(|s| s.get("Sequence")?.get("id")?.as_str()) == Some(id);
    if !sequence(pair.first(), "A") || !sequence(pair.last(), "B") {
        return None;
    }
    let middle = pair.get(1..pair.len().checked_sub(1)?)?;
    let is_separator =
        |step: &Value| special_id(Some(step)).is_some_and(|id| known.iter().any(|k| k.as_ref() == Some(&id)));
    match middle {
        [] => None,
        [a, b] => Some((is_separator(a) && last.is_none()) || is_separator(b)),
        [a, ..] => Some(is_separator(a) && last.is_none()),
    }
}

/// Python's truth value of a JSON value.
fn truthy(v: &Value) -> bool {
    match v {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}
