//! GGUF metadata values and the ordered list of keys that a header holds. Types are kept exactly: a `u32` stays a `u32`.

/// One metadata value (GGUF specification, `gguf_metadata_value_type`).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned byte.
    U8(u8),
    /// A signed byte.
    I8(i8),
    /// 16 bits without a sign.
    U16(u16),
    /// 16 bits with a sign.
    I16(i16),
    /// 32 bits without a sign.
    U32(u32),
    /// 32 bits with a sign.
    I32(i32),
    /// A float of 32 bits.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Array),
    /// 64 bits without a sign.
    U64(u64),
    /// 64 bits with a sign.
    I64(i64),
    /// A float of 64 bits.
    F64(f64),
}

/// An array value; one vector per element type, so that a vocabulary costs no more than its strings.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 16 bits without a sign each.
    U16(Vec<u16>),
    /// 16 bits with a sign each.
    I16(Vec<i16>),
    /// 32 bits without a sign each.
    U32(Vec<u32>),
    /// 32 bits with a sign each.
    I32(Vec<i32>),
    /// Floats of 32 bits.
    F32(Vec<f32>),
    /// True or false, a byte each in the file.
    Bool(Vec<bool>),
    /// UTF-8 texts.
    String(Vec<String>),
    /// Arrays of arrays.
    Nested(Vec<Array>),
    /// 64 bits without a sign each.
    U64(Vec<u64>),
    /// 64 bits with a sign each.
    I64(Vec<i64>),
    /// Floats of 64 bits.
    F64(Vec<f64>),
}

macro_rules! from {
    ($($rust:ty => $variant:ident),*) => {
        $(impl From<$rust> for Value { fn from(v: $rust) -> Self { Value::$variant(v) } }
          impl From<Vec<$rust>> for Value { fn from(v: Vec<$rust>) -> Self { Value::Array(Array::$variant(v)) } })*
    };
}
from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, String => String, u64 => U64, i64 => I64, f64 => F64);

impl Value {
    /// The name of its type: `u32`, `str`, `[f32]`; `[[]]` for arrays of arrays.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "bool",
            Value::String(_) => "str",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
            Value::Array(Array::U8(_)) => "[u8]",
            Value::Array(Array::I8(_)) => "[i8]",
            Value::Array(Array::U16(_)) => "[u16]",
            Value::Array(Array::I16(_)) => "[i16]",
            Value::Array(Array::U32(_)) => "[u32]",
            Value::Array(Array::I32(_)) => "[i32]",
            Value::Array(Array::F32(_)) => "[f32]",
            Value::Array(Array::Bool(_)) => "[bool]",
            Value::Array(Array::String(_)) => "[str]",
            Value::Array(Array::Nested(_)) => "[[]]",
            Value::Array(Array::U64(_)) => "[u64]",
            Value::Array(Array::I64(_)) => "[i64]",
            Value::Array(Array::F64(_)) => "[f64]",
        }
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.to_string())
    }
}

/// Keys and values in file order. Setting a key that exists replaces its value in place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes entries whose keys the caller knows to be unique; unlike repeated [`Metadata::set`] this is linear.
    pub(super) fn from_unique(entries: Vec<(String, Value)>) -> Self {
        Self { entries }
    }

    /// Sets a key, in its place where it is there already.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Gives an entry another key, in its place. Whether there was one.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let entry = self.entries.iter_mut().find(|(k, _)| k == from);
        entry.map(|entry| entry.0 = to.to_string()).is_some()
    }

    /// Takes a key away.
    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|(k, _)| k != key);
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Any non-negative integer value as `u64`.
    pub fn uint(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A float of 32 or 64 bits.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match *self.get(key)? {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match *self.get(key)? {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A text.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}
