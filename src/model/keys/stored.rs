//! What a GGUF file says under one key, and what a family takes for granted where it says nothing.

use crate::gguf::{Array, Value};
use crate::model::config::{Config, Dense, Ffn, Heads, LayerConfig, Mixer, RopeScaling};
use crate::model::family::{Family, Stored, WindowRule};
use crate::{Error, Result};

/// A layer of the family before anything is known of its sizes.
pub(in crate::model) fn prototype(family: &Family) -> LayerConfig {
    let heads = Heads { rope: Some(0), qkv_bias: family.qkv_bias, ..Heads::default() };
    let activation = family.activations.default;
    let dense = Dense { width: 0, gated: family.is_gated(), activation, bias: false, cutoff: None };
    let ffn = Ffn { dense: Some(dense), ..Ffn::default() };
    LayerConfig { mixer: Mixer::Attention(heads), beside: None, ffn, wiring: family.wiring }
}

/// The window of a GGUF file, its pattern included.
pub(in crate::model) fn read_window(c: &mut Config, s: &Stored) -> Result<()> {
    // All spellings of a family on the Hub agree on what GGUF leaves out.
    let (window, every) = match s.family.hf[0].defaults.window {
        WindowRule::AllButEvery { every, unstated } => (s.size_opt()?.or(unstated), Some(every)),
        WindowRule::ByType { every } => (s.size_opt()?, Some(every)),
        WindowRule::Every(_) => (s.size_opt()?, None),
        // Conversion drops qwen's windows.
        _ => (None, None),
    };
    let Some(window) = window.filter(|w| *w != 0) else { return Ok(()) };
    let layers = c.layers.len();
    let pattern = s.beside("attention.sliding_window_pattern");
    let slides = match (s.meta.get(&pattern), every) {
        (Some(Value::Array(Array::Bool(slides))), _) if slides.len() == layers => slides.clone(),
        (stated, usual) => {
            let stated = stated.and_then(|_| s.meta.uint(&pattern)).map(|n| n as usize).filter(|n| *n != 0);
            let every = if s.meta.get(&pattern).is_some() { stated } else { usual };
            (0..layers).map(|i| every.is_none_or(|n| (i + 1) % n != 0)).collect()
        }
    };
    let local = c.ropes.len() > 1;
    for (layer, _) in c.layers.iter_mut().zip(slides).filter(|(_, slides)| *slides) {
        if let Some(heads) = layer.heads_mut() {
            heads.window = Some(window);
            heads.rope = heads.rope.map(|rope| if local { 1 } else { rope });
        }
    }
    Ok(())
}

impl Stored<'_> {
    pub(in crate::model) fn beside(&self, key: &str) -> String {
        format!("{}.{key}", self.family.gguf)
    }

    /// A key that is not there leaves the model unknown, and its tensors are what they are; a key that says something else
    /// is a fault of the file.
    pub(in crate::model) fn missing_key(&self, key: &str) -> Error {
        let key = self.beside(key);
        match self.meta.get(&key) {
            None => Error::unsupported(format!("the metadata key '{key}' is missing, which such a model needs")),
            Some(_) => Error::bad_input(format!("metadata key '{key}' is of another type than it should be")),
        }
    }

    pub(in crate::model) fn missing(&self) -> Error {
        self.missing_key(self.key)
    }

    /// One number per layer: a list of as many, or one for all.
    pub(in crate::model) fn sizes(&self, layers: usize) -> Result<Option<Vec<usize>>> {
        let name = self.beside(self.key);
        let list = |v: Vec<i64>| -> Option<Vec<usize>> { v.into_iter().map(|n| usize::try_from(n).ok()).collect() };
        let values = match self.meta.get(&name) {
            None => return Ok(None),
            Some(Value::Array(Array::I32(v))) => list(v.iter().map(|x| i64::from(*x)).collect()),
            Some(Value::Array(Array::U32(v))) => list(v.iter().map(|x| i64::from(*x)).collect()),
            Some(_) => self.meta.uint(&name).and_then(|n| usize::try_from(n).ok()).map(|n| vec![n; layers]),
        };
        match values.filter(|v| v.len() == layers) {
            Some(values) => Ok(Some(values)),
            None => {
                let what =
                    format!("metadata key '{name}' is neither one whole number nor one for each of {layers} layers");
                Err(Error::bad_input(what))
            }
        }
    }

    pub(in crate::model) fn size_of(&self, key: &str) -> Result<Option<usize>> {
        let name = self.beside(key);
        let first = |v: &[i64]| v.first().copied().filter(|first| v.iter().all(|x| x == first));
        let value = match self.meta.get(&name) {
            None => return Ok(None),
            Some(Value::Array(Array::I32(v))) => first(&v.iter().map(|x| i64::from(*x)).collect::<Vec<_>>()),
            Some(Value::Array(Array::U32(v))) => first(&v.iter().map(|x| i64::from(*x)).collect::<Vec<_>>()),
            Some(_) => self.meta.uint(&name).and_then(|v| i64::try_from(v).ok()),
        };
        match value.and_then(|v| usize::try_from(v).ok()) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::bad_input(format!("metadata key '{name}' is not one whole number for all layers"))),
        }
    }

    pub(in crate::model) fn size_opt(&self) -> Result<Option<usize>> {
        self.size_of(self.key)
    }

    pub(in crate::model) fn size(&self) -> Result<usize> {
        self.size_opt()?.ok_or_else(|| self.missing())
    }

    pub(in crate::model) fn float_of(&self, key: &str) -> Option<f32> {
        self.meta.f32(&self.beside(key)).filter(|v| v.is_finite())
    }

    pub(in crate::model) fn flag(&self) -> Option<bool> {
        self.meta.bool(&self.beside(self.key))
    }

    pub(in crate::model) fn float(&self) -> Option<f32> {
        self.float_of(self.key)
    }

    pub(in crate::model) fn scaling(&self) -> Result<RopeScaling> {
        let kind = self.meta.str(&self.beside("rope.scaling.type")).unwrap_or("none");
        let original = self.size_of("rope.scaling.original_context_length")?;
        let factor = self.float_of("rope.scaling.factor").filter(|f| *f > 0.0);
        match (kind, factor) {
            ("linear", Some(factor)) => Ok(RopeScaling::Linear { factor }),
            ("yarn", Some(factor)) => Ok(RopeScaling::Yarn {
                factor,
                original_context: original.ok_or_else(|| self.missing_key("rope.scaling.original_context_length"))?,
                attention_factor: self.float_of("rope.scaling.yarn_attn_factor"),
                beta_fast: self.float_of("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: self.float_of("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                truncate: true,
            }),
            ("linear" | "yarn", None) => Err(self.missing_key("rope.scaling.factor")),
            ("none" | "longrope", _) => Ok(RopeScaling::Default),
            (other, _) => Err(Error::unsupported(format!("rope scaling '{other}' is not supported"))),
        }
    }
}
