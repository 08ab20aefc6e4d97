//! Values of a `config.json` by their keys, with errors that name the key. It reads the one JSON value it is given, no
//! files.

use crate::{Error, Result};
use serde_json::Value;

/// `config.json` as one flat table: keys of a nested `text_config` come before the outer ones; `null` is absent.
#[derive(Clone, Copy)]
pub struct HfJson<'a> {
    pub(super) outer: &'a Value,
    pub(super) text: Option<&'a Value>,
}

impl<'a> HfJson<'a> {
    pub(super) fn new(json: &'a Value) -> Self {
        HfJson { outer: json, text: json.get("text_config").filter(|t| t.is_object()) }
    }

    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        let own = |v: &'a Value| v.get(key);
        match self.text.and_then(own) {
            Some(v) => Some(v),
            None => own(self.outer),
        }
        .filter(|v| !v.is_null())
    }

    pub(super) fn has(self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn size(self, keys: &[&str]) -> Result<Option<usize>> {
        let Some((key, value)) = keys.iter().find_map(|k| self.get(k).map(|v| (k, v))) else { return Ok(None) };
        match as_size(value) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(key, value, "a whole number that is not negative")),
        }
    }

    pub(super) fn bool(self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    pub(super) fn str(self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong(key, other, "a string")),
        }
    }
}

pub(super) fn as_size(value: &Value) -> Option<usize> {
    if let Some(n) = value.as_u64() {
        return usize::try_from(n).ok();
    }
    // Some exporters write whole numbers as floats.
    let f = value.as_f64()?;
    (f.fract() == 0.0 && (0.0..=9.0e15).contains(&f)).then_some(f as usize)
}

pub(super) fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    let mut shown = value.to_string();
    if shown.len() > 60 {
        shown = shown.chars().take(57).collect::<String>() + "...";
    }
    Error::bad_input(format!("config.json: '{key}' is {shown}; expected {expected}"))
}

pub(super) fn number(table: &Value, key: &str) -> Result<Option<f32>> {
    match table.get(key).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(f) if f.is_finite() && (f as f32).is_finite() => Ok(Some(f as f32)),
            _ => Err(wrong(key, value, "a number")),
        },
    }
}

pub(super) fn hf_number(json: HfJson, key: &str) -> Result<Option<f32>> {
    match json.text.filter(|t| t.get(key).is_some_and(|v| !v.is_null())) {
        Some(text) => number(text, key),
        None => number(json.outer, key),
    }
}

pub(super) fn missing(key: &str) -> Error {
    Error::bad_input(format!("config.json: '{key}' is missing"))
        .hint("is this the config.json that belongs to the weights?")
}
