//! Other metadata for a GGUF file.

use super::copy::{self, Copied};
use crate::control::Cancel;
use crate::gguf::{self, ALIGNMENT_KEY, Array, Metadata, Value};
use crate::model::tokenizer::template_fault;
use crate::source::SourceFile;
use crate::{Error, Result};
use std::path::Path;

/// One change of a file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `ty`: the value's type as GGUF names it (`u32`, `str`, `[f32]`); `None`: that of the value which is there, or text.
    Set {
        /// The key, whether it is there or not.
        key: String,
        /// The type by its name.
        ty: Option<String>,
        /// The value as text.
        value: String,
    },
    /// Takes the key of this name out.
    Remove(String),
    /// Gives a key another name.
    Rename {
        /// The name that it has.
        from: String,
        /// The name that it gets.
        to: String,
    },
    /// The chat template, as text.
    ChatTemplate(String),
    /// What a token, by its text or its number, is: `normal`, `unknown`, `control`, `user-defined`, `unused`, `byte`.
    TokenType {
        /// Text or number.
        token: String,
        /// What it is.
        ty: String,
    },
    /// The token that ends something: `eos` a text, `eot` a turn, `eom` a message.
    Stop {
        /// `eos`, `eot` or `eom`.
        kind: String,
        /// Text or number.
        token: String,
    },
}

/// The names of types of single values; in brackets they are lists.
pub const SCALARS: [&str; 12] = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "str"];

const TEMPLATE: &str = "tokenizer.chat_template";
const TYPES: [(&str, i32); 6] =
    [("normal", 1), ("unknown", 2), ("control", 3), ("user-defined", 4), ("unused", 5), ("byte", 6)];

/// Copies `input` to `output`, which may be the same file, with these changes. What has the name is replaced with `force`
/// alone, and when the new file is whole.
///
/// # Errors
/// `Request` for a change that does not fit; `BadInput` for a file that is not a GGUF file, or a shard behind the first;
/// `Exists`; `Io`; `Interrupted`.
pub fn edit(input: &Path, output: &Path, changes: &[Change], force: bool, cancel: &Cancel) -> Result<()> {
    let header = gguf::read_header(input)?;
    if header.metadata.uint("split.count").is_some_and(|n| n > 1) {
        if header.metadata.uint("split.no") != Some(0) {
            let what = "is not the first shard, which holds the metadata";
            return Err(Error::bad_file(input, what).hint("name the first shard"));
        }
        if !is_same(input, output) {
            let what = "is the first of several shards, which find each other by their names";
            return Err(Error::bad_file(input, what).hint("edit it in place, or merge the shards first"));
        }
    }
    let metadata = changed(&header.metadata, changes)?;
    let file = SourceFile::open(input)?;
    let copied =
        |info: &gguf::TensorInfo| Copied { info: info.clone(), file: &file, at: header.data_start + info.offset };
    let tensors: Vec<Copied> = header.tensors.iter().map(copied).collect();
    copy::publish(vec![copy::write(output, &metadata, &tensors, force, cancel)?])
}

/// Metadata with these changes.
///
/// # Errors
/// `Request` for a change that does not fit.
pub fn changed(metadata: &Metadata, changes: &[Change]) -> Result<Metadata> {
    let mut metadata = metadata.clone();
    changes.iter().try_for_each(|change| apply(&mut metadata, change))?;
    Ok(metadata)
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn apply(metadata: &mut Metadata, change: &Change) -> Result<()> {
    let bad = |what: String| Err(Error::request(what));
    let guarded = |key: &str| match key == ALIGNMENT_KEY || key.starts_with("split.") || key == gguf::SPLIT_SET {
        true => bad(format!("{key} describes the file's layout and cannot be changed by hand")),
        false => Ok(()),
    };
    match change {
        Change::Set { key, ty, value } => {
            guarded(key)?;
            let value = typed(metadata.get(key), key, ty.as_deref(), value)?;
            if key == "tokenizer.ggml.tokens" {
                same_length(metadata, &value)?;
            }
            if let (TEMPLATE, Value::String(text)) = (key.as_str(), &value)
                && let Some(why) = template_fault(text)
            {
                return bad(format!("chat template: {why}"));
            }
            metadata.set(key.as_str(), value);
        }
        Change::Remove(key) => {
            guarded(key)?;
            if metadata.get(key).is_none() {
                return bad(format!("there is no key {key} to remove"));
            }
            if key == "general.architecture" {
                return bad(format!("{key} is required by every loader and cannot be removed"));
            }
            metadata.remove(key);
        }
        Change::Rename { from, to } => {
            guarded(from)?;
            guarded(to)?;
            if metadata.get(to).is_some() {
                return bad(format!("{from} cannot become {to}: there is such a key"));
            }
            if !metadata.rename(from, to) {
                return bad(format!("there is no key {from} to rename"));
            }
        }
        Change::ChatTemplate(text) => {
            if text.trim().is_empty() {
                return bad("the chat template is empty; remove the key tokenizer.chat_template to have none".into());
            }
            if let Some(why) = template_fault(text) {
                return bad(format!("chat template: {why}"));
            }
            metadata.set(TEMPLATE, text.as_str());
        }
        Change::TokenType { token, ty } => {
            let id = token_of(metadata, token)?;
            let Some((_, number)) = TYPES.iter().find(|(name, _)| name == ty) else {
                let names = TYPES.map(|(name, _)| name).join(", ");
                return bad(format!("'{ty}' is not a token type; these are {names}"));
            };
            let Some(Value::Array(Array::I32(mut types))) = metadata.get("tokenizer.ggml.token_type").cloned() else {
                return bad("the file has no list of token types".into());
            };
            match types.get_mut(id as usize) {
                Some(place) => *place = *number,
                None => return bad(format!("the list of token types ends before token {id}")),
            }
            metadata.set("tokenizer.ggml.token_type", types);
        }
        Change::Stop { kind, token } => {
            if !["eos", "eot", "eom"].contains(&kind.as_str()) {
                return bad(format!(
                    "'{kind}' is not a kind of stop token; these are eos (text), eot (turn) and eom (message)"
                ));
            }
            let id = token_of(metadata, token)?;
            metadata.set(format!("tokenizer.ggml.{kind}_token_id"), id);
        }
    }
    Ok(())
}

/// The number of a token that is named by its text or its number.
fn token_of(metadata: &Metadata, token: &str) -> Result<u32> {
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens") else {
        return Err(Error::request("the file has no tokenizer"));
    };
    let by_text = tokens.iter().position(|t| t == token);
    let by_number = || token.parse::<usize>().ok().filter(|id| *id < tokens.len());
    match by_text.or_else(by_number) {
        Some(id) => Ok(id as u32),
        None => Err(Error::request(format!(
            "'{token}' is neither one of the {} tokens nor the number of one",
            tokens.len()
        ))),
    }
}

fn same_length(metadata: &Metadata, value: &Value) -> Result<()> {
    let (Some(old), Value::Array(Array::String(new))) = (metadata.strings("tokenizer.ggml.tokens"), value) else {
        return Ok(());
    };
    match old.len() == new.len() {
        true => Ok(()),
        false => Err(Error::request(format!("{} tokens cannot take the place of {}", new.len(), old.len()))),
    }
}

/// The value that a text stands for.
fn typed(old: Option<&Value>, key: &str, ty: Option<&str>, text: &str) -> Result<Value> {
    let ty = ty.or(old.map(Value::kind)).unwrap_or("str");
    let bad = |what: &str| Error::request(format!("{key}: '{text}' is {what}"));
    macro_rules! value {
        ($($name:literal $array:literal $rust:ty;)*) => {
            match ty {
                "str" => Ok(Value::from(text)),
                "[str]" => serde_json::from_str::<Vec<String>>(text).map(Value::from).map_err(|_| bad("no JSON list of strings")),
                $($name => text.trim().parse::<$rust>().map(Value::from).map_err(|_| bad(concat!("no ", $name))),
                  $array => serde_json::from_str::<Vec<$rust>>(text).map(Value::from).map_err(|_| bad(concat!("no JSON list of ", $name))),)*
                _ => Err(Error::request(format!(
                    "{key}: '{ty}' is not a value type; these are {}, and lists such as [str]",
                    SCALARS.join(", ")
                ))),
            }
        };
    }
    let value = value! {
        "u8" "[u8]" u8; "i8" "[i8]" i8; "u16" "[u16]" u16; "i16" "[i16]" i16; "u32" "[u32]" u32; "i32" "[i32]" i32;
        "u64" "[u64]" u64; "i64" "[i64]" i64; "f32" "[f32]" f32; "f64" "[f64]" f64; "bool" "[bool]" bool;
    }?;
    match value {
        Value::F32(v) if !v.is_finite() => Err(bad("not finite")),
        Value::F64(v) if !v.is_finite() => Err(bad("not finite")),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let mut m = Metadata::new();
        m.set("general.architecture", "llama");
        m.set("a.number", 7u32);
        m.set("a.flags", vec![true, false]);
        m.set("tokenizer.ggml.tokens", vec!["x".to_string(), "3".to_string(), "y".to_string()]);
        m.set("tokenizer.ggml.token_type", vec![1i32, 1, 1]);
        m
    }

    fn set(key: &str, ty: Option<&str>, value: &str) -> Change {
        Change::Set { key: key.into(), ty: ty.map(String::from), value: value.into() }
    }

    #[test]
    fn values_keep_their_types_unless_told_otherwise() {
        let mut m = metadata();
        let ok = [
            set("a.number", None, "9"),
            set("a.flags", None, "[false]"),
            set("b", None, "text"),
            set("c", Some("f32"), "0.5"),
        ];
        ok.iter().for_each(|change| apply(&mut m, change).unwrap());
        assert_eq!(m.get("a.number"), Some(&Value::U32(9)));
        assert_eq!(m.get("a.flags"), Some(&Value::from(vec![false])));
        assert_eq!((m.str("b"), m.f32("c")), (Some("text"), Some(0.5)));
        for bad in [
            set("a.number", None, "-1"),
            set("a.number", Some("u128"), "1"),
            set("general.alignment", Some("u32"), "64"),
            set("split.count", Some("u16"), "2"),
            set("x", Some("f32"), "inf"),
            set("tokenizer.ggml.tokens", None, "[\"a\"]"),
            Change::Remove("absent".into()),
            Change::Remove("general.architecture".into()),
            Change::Rename { from: "absent".into(), to: "b2".into() },
            Change::Rename { from: "b".into(), to: "c".into() },
            Change::ChatTemplate(" \n".into()),
            Change::ChatTemplate("{% if messages %}".into()),
        ] {
            let before = m.clone();
            assert!(matches!(apply(&mut m, &bad), Err(Error::Request(_))), "{bad:?}");
            assert_eq!(m, before, "{bad:?}");
        }
        apply(&mut m, &Change::Rename { from: "a.number".into(), to: "a.count".into() }).unwrap();
        assert_eq!(m.iter().nth(1), Some(("a.count", &Value::U32(9))), "a key keeps its place");
    }

    #[test]
    fn tokens_go_by_text_before_number() {
        let mut m = metadata();
        apply(&mut m, &Change::TokenType { token: "3".into(), ty: "control".into() }).unwrap();
        apply(&mut m, &Change::Stop { kind: "eot".into(), token: "2".into() }).unwrap();
        assert_eq!(m.get("tokenizer.ggml.token_type"), Some(&Value::from(vec![1i32, 3, 1])));
        assert_eq!(m.uint("tokenizer.ggml.eot_token_id"), Some(2));
        assert!(apply(&mut m, &Change::Stop { kind: "eot".into(), token: "9".into() }).is_err());
        assert!(apply(&mut m, &Change::TokenType { token: "x".into(), ty: "odd".into() }).is_err());
    }
}
