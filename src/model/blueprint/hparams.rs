//! `config.json` as llama.cpp's converter sees it: the text model's keys over the outer ones, transformers' defaults below.

use super::{Blueprint, Part};
use crate::Result;
use crate::model::hf_json::{as_size, missing, wrong};
use serde_json::{Map, Value};

/// Hyper-parameters by key; `null` is absent unless a method says otherwise.
pub(in crate::model) struct Hparams {
    map: Map<String, Value>,
    rope: Map<String, Value>,
    /// All of `config.json`, for the projectors of a model.
    outer: Value,
}

/// No size, count or length of a model is larger.
const LARGEST: usize = 1 << 27;

/// A size that a model can have.
pub(super) fn plausible(value: &Value) -> Option<usize> {
    as_size(value).filter(|n| *n <= LARGEST)
}

/// Sub-configurations that stand for the text model.
const TEXT: [&str; 6] =
    ["text_config", "llm_config", "lm_config", "language_config", "lfm", "transformer_layer_config"];

impl Hparams {
    /// As a blueprint reads it.
    pub fn new(json: &Value, blueprint: &Blueprint) -> Self {
        let mut map = json.as_object().cloned().unwrap_or_default();
        let thinker = || json.get("thinker_config")?.get("text_config")?.as_object();
        if blueprint.part == Part::Projector {
            let own = ["vision_config", "vision_encoder"].iter().find_map(|key| json.get(*key)?.as_object());
            map = own.cloned().unwrap_or_default();
        } else if let Some(text) = TEXT.iter().find_map(|key| json.get(key)?.as_object()).or_else(thinker) {
            map.extend(text.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        if let Ok(Value::Object(defaults)) = serde_json::from_str(blueprint.defaults) {
            for (key, value) in defaults {
                map.entry(key).or_insert(value);
            }
        }
        blueprint.without.iter().for_each(|key| drop(map.remove(*key)));
        let rope = rope(&map);
        let outer = if blueprint.part == Part::Projector { json.clone() } else { Value::Null };
        Self { map, rope, outer }
    }

    /// Of the whole `config.json` (of a projector only).
    pub fn outer(&self, key: &str) -> Option<&Value> {
        self.outer.get(key).filter(|v| !v.is_null())
    }

    /// The whole `config.json` (of a projector only).
    pub fn whole(&self) -> &Value {
        &self.outer
    }

    /// The first of the classes that the model names.
    pub fn class(&self) -> Option<&str> {
        self.get("architectures")?.get(0)?.as_str()
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The value of the first of these keys that is there, be it `null`.
    pub fn find(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter().find_map(|key| self.map.get(*key)).filter(|v| !v.is_null())
    }

    pub fn size_of(&self, keys: &[&str]) -> Result<Option<usize>> {
        let size = |v: &Value| plausible(v).ok_or_else(|| wrong(keys[0], v, "a plausible size"));
        self.find(keys).map(size).transpose()
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.size_of(&[key])
    }

    /// # Errors
    /// `BadInput` when it is absent.
    pub fn need(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| missing(key))
    }

    pub fn float_of(&self, keys: &[&str]) -> Result<Option<f32>> {
        let float = |v: &Value| match v.as_f64() {
            Some(x) if (x as f32).is_finite() => Ok(x as f32),
            _ => Err(wrong(keys[0], v, "a number")),
        };
        self.find(keys).map(float).transpose()
    }

    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        self.float_of(&[key])
    }

    pub fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    pub fn list(&self, key: &str) -> Option<&Vec<Value>> {
        self.get(key)?.as_array()
    }

    /// Whether each layer's entry of `layer_types` is this.
    pub fn layers_of_type(&self, ty: &str) -> Option<Vec<bool>> {
        Some(self.list("layer_types")?.iter().map(|v| v.as_str() == Some(ty)).collect())
    }

    /// Blocks that the configuration counts.
    pub fn blocks(&self) -> Result<usize> {
        let keys = ["n_layers", "num_hidden_layers", "n_layer", "num_layers", "num_transformer_layers"];
        self.size_of(&keys)?.filter(|n| *n > 0).ok_or_else(|| missing("num_hidden_layers"))
    }

    pub fn heads(&self) -> Result<usize> {
        let keys = ["num_attention_heads", "n_head", "n_heads"];
        self.size_of(&keys)?.filter(|n| *n > 0).ok_or_else(|| missing("num_attention_heads"))
    }

    /// `num_attention_heads` where it is absent.
    pub fn kv_heads(&self) -> Result<usize> {
        self.size_of(&["num_key_value_heads", "n_kv_heads"])?.map_or_else(|| self.heads(), Ok)
    }

    pub fn hidden(&self) -> Result<usize> {
        self.size_of(&["hidden_size", "n_embd", "dim"])?.ok_or_else(|| missing("hidden_size"))
    }

    /// `head_dim`, or what the hidden size leaves to a head.
    pub fn head_dim(&self) -> Result<usize> {
        match self.size("head_dim")? {
            Some(n) => Ok(n),
            None => Ok(self.hidden()? / self.heads()?.max(1)),
        }
    }

    /// `head_dim` of layers with full attention, where those with a window have another.
    pub fn full_head(&self) -> Result<usize> {
        match self.size("global_head_dim")?.or_else(|| self.of_full_layers("head_dim")) {
            Some(dim) => Ok(dim),
            None => self.head_dim(),
        }
    }

    /// What the first layer with full attention has of its own.
    pub fn of_full_layers(&self, key: &str) -> Option<usize> {
        let own = self.get("per_layer_config")?.as_object()?;
        let full = self.layers_of_type("full_attention")?;
        let mut layers: Vec<(usize, usize)> =
            own.iter().filter_map(|(layer, c)| Some((layer.parse().ok()?, plausible(c.get(key)?)?))).collect();
        layers.sort();
        layers.into_iter().find(|(layer, _)| full.get(*layer) == Some(&true)).map(|(_, n)| n)
    }

    /// The rotary parameters, those of full attention where kinds of layers differ.
    pub fn rope(&self) -> &Map<String, Value> {
        self.rope.get("full_attention").and_then(Value::as_object).unwrap_or(&self.rope)
    }

    /// Those of layers with a window, where they have some of their own.
    pub fn local_rope(&self) -> Option<&Map<String, Value>> {
        self.rope.get("sliding_attention")?.as_object()
    }

    pub fn rope_float(&self, key: &str) -> Option<f32> {
        self.rope().get(key)?.as_f64().map(|x| x as f32)
    }
}

/// `rope_parameters` or `rope_scaling`, with what stands beside it in older files.
fn rope(map: &Map<String, Value>) -> Map<String, Value> {
    let object = |key: &str| map.get(key).and_then(Value::as_object).cloned();
    let mut rope = object("rope_parameters").or_else(|| object("rope_scaling")).unwrap_or_default();
    if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
        return rope;
    }
    let first = |keys: &[&str]| keys.iter().find_map(|key| map.get(*key)).filter(|v| !v.is_null()).cloned();
    let local = ["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];
    if let Some(theta) = first(&local) {
        rope.insert("sliding_attention".into(), serde_json::json!({ "rope_theta": theta }));
    }
    let theta = ["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
    let beside = [
        ("rope_theta", first(&theta)),
        ("rope_type", rope.get("type").cloned()),
        ("partial_rotary_factor", first(&["partial_rotary_factor", "rope_pct", "rope_percent"])),
        ("original_max_position_embeddings", first(&["original_max_position_embeddings"])),
    ];
    for (key, value) in beside {
        if let Some(value) = value {
            rope.entry(key).or_insert(value);
        }
    }
    rope
}
