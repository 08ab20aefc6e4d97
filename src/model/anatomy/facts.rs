//! What the metadata and the tensors of a GGUF file say of a model, asked by key and by layer. For a checkpoint folder both
//! are what its blueprint writes.

use crate::gguf::{Array, Metadata, Value};
use crate::model::tensor::MappedTensor;
use crate::{Error, Result};
use std::collections::HashMap;

pub(in crate::model) struct Facts<'a> {
    pub meta: &'a Metadata,
    pub arch: &'a str,
    /// Shapes by name, those of generated tensors too.
    pub tensors: HashMap<&'a str, &'a [usize]>,
    /// The text model's `config.json`, of a folder.
    pub json: Option<&'a serde_json::Value>,
}

impl<'a> Facts<'a> {
    pub fn new(
        meta: &'a Metadata,
        arch: &'a str,
        tensors: &'a [MappedTensor],
        generated: &'a [crate::model::Generated],
        json: Option<&'a serde_json::Value>,
    ) -> Self {
        let stored = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
        let tensors = stored.chain(generated.iter().map(|g| (g.name.as_str(), g.shape.as_slice()))).collect();
        let json = json.map(|json| json.get("text_config").unwrap_or(json));
        Facts { meta, arch, tensors, json }
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.meta.get(&format!("{}.{key}", self.arch))
    }

    /// A whole number; of one for each layer, that of `layer`.
    pub fn size(&self, key: &str, layer: usize) -> Option<usize> {
        let n = match self.value(key)? {
            Value::Array(Array::U32(v)) => v.get(layer).map(|n| u64::from(*n)),
            Value::Array(Array::I32(v)) => v.get(layer).and_then(|n| u64::try_from(*n).ok()),
            _ => self.meta.uint(&format!("{}.{key}", self.arch)),
        };
        n.and_then(|n| usize::try_from(n).ok())
    }

    /// # Errors
    /// `BadInput` when the key is missing.
    pub fn needed(&self, key: &str, layer: usize) -> Result<usize> {
        self.size(key, layer).ok_or_else(|| {
            Error::bad_input(format!("metadata key '{}.{key}' is missing or of another type", self.arch))
        })
    }

    /// A list of whole numbers; none where there is no such key.
    pub fn integers(&self, key: &str) -> Vec<i64> {
        match self.value(key) {
            Some(Value::Array(Array::I64(v))) => v.clone(),
            Some(Value::Array(Array::U64(v))) => v.iter().map(|n| *n as i64).collect(),
            Some(Value::Array(Array::I32(v))) => v.iter().map(|n| i64::from(*n)).collect(),
            Some(Value::Array(Array::U32(v))) => v.iter().map(|n| i64::from(*n)).collect(),
            _ => Vec::new(),
        }
    }

    pub fn float(&self, key: &str) -> Option<f32> {
        self.meta.f32(&format!("{}.{key}", self.arch)).filter(|x| x.is_finite())
    }

    /// A number; of one for each layer, that of `layer`.
    pub fn float_of(&self, key: &str, layer: usize) -> Option<f32> {
        match self.value(key)? {
            Value::Array(Array::F32(list)) => list.get(layer).copied(),
            _ => self.float(key),
        }
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.meta.bool(&format!("{}.{key}", self.arch))
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A flag of `layer`, out of a list of flags or numbers.
    pub fn flag_of(&self, key: &str, layer: usize) -> Option<bool> {
        match self.value(key)? {
            Value::Array(Array::Bool(flags)) => flags.get(layer).copied(),
            Value::Array(_) => self.size(key, layer).map(|n| n != 0),
            _ => None,
        }
    }

    /// The number of `layer` under a key that does not begin with the architecture.
    pub fn plain_float(&self, key: &str, layer: usize) -> Option<f32> {
        match self.meta.get(key)? {
            Value::Array(Array::F32(list)) => list.get(layer).copied(),
            _ => None,
        }
    }

    /// The shape of a tensor of `layer`.
    pub fn shape(&self, layer: usize, stem: &str) -> Option<&'a [usize]> {
        self.tensors.get(format!("blk.{layer}.{stem}").as_str()).copied()
    }

    pub fn has(&self, layer: usize, stem: &str) -> bool {
        self.shape(layer, stem).is_some()
    }

    /// What `config.json` says, of a folder.
    pub fn said(&self, key: &str) -> Option<&'a serde_json::Value> {
        self.json?.get(key).filter(|v| !v.is_null())
    }

    pub fn said_float(&self, key: &str) -> Option<f32> {
        self.said(key)?.as_f64().map(|x| x as f32)
    }

    /// What it says of rotary embeddings.
    pub fn said_of_rope(&self, key: &str) -> Option<&'a serde_json::Value> {
        let table = self.said("rope_parameters").or_else(|| self.said("rope_scaling"))?;
        table.get(key).or_else(|| table.get("full_attention")?.get(key)).filter(|v| !v.is_null())
    }
}
