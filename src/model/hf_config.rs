//! [`Config::from_hf`]: hyper-parameters from a `config.json`, in the spellings of transformers 4 (`rope_scaling`,
//! `rope_theta`, `num_experts`) and 5 (`rope_parameters`, nested per layer type), with the defaults that transformers
//! fills in. What a family does differently is a field or a function of its row in `families`. It reads the one JSON value
//! it is given, no files.

use super::config::{Activation, Config, Dense, Experts, Ffn, Heads, LayerConfig, Mixer, Rope, RopeScaling, Sizes};
use super::families::{self, AttnScale, Cap, EmbeddingScale, Family, HfName, Role, WindowRule};
use crate::{Error, Result};
use serde_json::Value;

/// `config.json` as one flat table: keys of a nested `text_config` come before the outer ones; `null` is absent.
#[derive(Clone, Copy)]
pub struct HfJson<'a> {
    outer: &'a Value,
    text: Option<&'a Value>,
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

fn as_size(value: &Value) -> Option<usize> {
    if let Some(n) = value.as_u64() {
        return usize::try_from(n).ok();
    }
    // Some exporters write whole numbers as floats.
    let f = value.as_f64()?;
    (f.fract() == 0.0 && (0.0..=9.0e15).contains(&f)).then_some(f as usize)
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    let mut shown = value.to_string();
    if shown.len() > 60 {
        shown = shown.chars().take(57).collect::<String>() + "...";
    }
    Error::bad_input(format!("config.json: '{key}' is {shown}; expected {expected}"))
}

fn number(table: &Value, key: &str) -> Result<Option<f32>> {
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

fn missing(key: &str) -> Error {
    Error::bad_input(format!("config.json: '{key}' is missing"))
        .hint("is this the config.json that belongs to the weights?")
}

/// The family that a `config.json` names.
///
/// # Errors
/// [`Error::Unsupported`] with the list of supported architectures.
pub fn family_of(json: &Value) -> Result<(&'static Family, &'static HfName)> {
    let architecture = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let model_type = json.get("model_type").and_then(Value::as_str);
    let known = families::by_hf(architecture, model_type);
    // A wrapper of images around a text model of a known family, and a model saved from its base class.
    let text = || {
        let text = json
            .get("text_config")
            .filter(|_| architecture.is_some_and(|a| a.ends_with("ForConditionalGeneration")))?;
        let own = text.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        families::by_hf(own, text.get("model_type").and_then(Value::as_str))
    };
    let base = || families::by_hf(Some(&format!("{}ForCausalLM", architecture?.strip_suffix("Model")?)), None);
    known.or_else(text).or_else(base).ok_or_else(|| {
        let name = architecture.or(model_type).unwrap_or("(config.json names no architecture)");
        Error::unsupported(format!("model architecture {name} is not supported; supported: {}", families::supported()))
    })
}

/// A `config.json` whose family and sizes are known.
pub struct Reading<'a> {
    pub(super) json: HfJson<'a>,
    pub(super) family: &'static Family,
    pub(super) name: &'static HfName,
    pub(super) sizes: Sizes,
}

impl<'a> Reading<'a> {
    fn new(json: &'a Value) -> Result<Self> {
        let (family, name) = family_of(json)?;
        let d = &name.defaults;
        let j = HfJson::new(json);
        let required = |key: &str, default: Option<usize>| -> Result<usize> {
            j.size(&[key])?.or(default).ok_or_else(|| missing(key))
        };
        let layers = required("num_hidden_layers", d.layers)?;
        let hidden = required("hidden_size", d.hidden)?;
        let heads = required("num_attention_heads", d.heads)?;
        // An absent key takes the class default, a null one means as many as heads.
        let kv_default = if j.outer.get("num_key_value_heads").is_some() { None } else { d.kv_heads };
        let kv_heads = j.size(&["num_key_value_heads"])?.or(kv_default).unwrap_or(heads);
        let head_dim = match j.size(&["head_dim"])?.or(d.head_dim) {
            Some(n) => n,
            None if heads != 0 && hidden % heads == 0 => hidden / heads,
            None => {
                let what =
                    format!("config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
                return Err(Error::bad_input(what).hint("set head_dim"));
            }
        };
        let context = j.size(&["max_position_embeddings"])?.unwrap_or(d.context);
        let (ffn, vocab) = (required("intermediate_size", d.ffn)?, required("vocab_size", d.vocab)?);
        let sizes = Sizes { layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context };
        Ok(Reading { json: j, family, name, sizes })
    }

    /// A soft cap; `null` switches one off that the family has by default.
    fn cap(&self, key: &str, rule: Cap) -> Result<Option<f32>> {
        let absent = self.json.outer.get(key).is_none();
        match rule {
            Cap::Never => Ok(None),
            Cap::Stated => hf_number(self.json, key),
            Cap::Default(default) => Ok(hf_number(self.json, key)?.or(absent.then_some(default))),
        }
    }
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown architecture or variant, [`Error::BadInput`] for a missing or absurd value.
    pub fn from_hf(json: &Value) -> Result<Config> {
        let reading = Reading::new(json)?;
        let Reading { json: j, family, name, sizes } = &reading;
        check_variant(*j, name)?;
        let ropes = ropes(&reading)?;
        sizes.check()?;
        let mut config = Config {
            arch: family.gguf.to_string(),
            layers: (family.layers)(&reading)?,
            hidden: sizes.hidden,
            ffn: sizes.ffn,
            vocab: sizes.vocab,
            context: sizes.context,
            norm: family.norm,
            norm_eps: hf_number(*j, family.norm_eps_key)?.unwrap_or(name.defaults.norm_eps),
            ropes,
            tied_embeddings: j.bool("tie_word_embeddings")?.unwrap_or(name.defaults.tied),
            logit_softcap: reading.cap("final_logit_softcapping", family.logit_softcap)?,
            embedding_scale: family.embedding_scale.of(sizes.hidden),
            residual_scale: 1.0,
            logit_scale: 1.0,
        };
        (family.finish)(&reading, &mut config)?;
        config.check()?;
        Ok(config)
    }
}

impl EmbeddingScale {
    pub(super) fn of(self, hidden: usize) -> f32 {
        match self {
            EmbeddingScale::One => 1.0,
            EmbeddingScale::SqrtHidden => (hidden as f32).sqrt(),
        }
    }
}

/// Variants that share a family's name and differ in ways nothing downstream knows.
fn check_variant(j: HfJson, name: &HfName) -> Result<()> {
    if j.bool("use_bidirectional_attention")? == Some(true) {
        return Err(Error::unsupported("config.json: bidirectional attention is not supported"));
    }
    if name.experts.is_some() {
        let sparse_step = j.size(&["decoder_sparse_step"])?.unwrap_or(1);
        let dense = j.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
        if sparse_step != 1 || dense {
            let what = "config.json: layers without experts in a mixture of experts (decoder_sparse_step, mlp_only_layers) are not supported";
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

/// Equal layers but for their windows: [`Family::layers`] of most families.
///
/// # Errors
/// As [`Config::from_hf`].
pub fn standard_layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let (j, family, sizes) = (r.json, r.family, r.sizes);
    let attention_bias = j.bool("attention_bias")?.unwrap_or(false);
    let qkv_bias = match family.qkv_bias {
        true => j.bool("qkv_bias")?.unwrap_or(true),
        false => attention_bias,
    };
    let scale = match family.attn_scale {
        AttnScale::HeadDim => sizes.head_dim as f32,
        AttnScale::QueryScalar { .. } => hf_number(j, "query_pre_attn_scalar")?.unwrap_or(256.0),
    };
    let heads = Heads {
        q: sizes.heads,
        kv: sizes.kv_heads,
        dim: sizes.head_dim,
        value_dim: sizes.head_dim,
        window: None,
        rope: Some(0),
        scale: 1.0 / scale.sqrt(),
        softcap: r.cap("attn_logit_softcapping", family.attn_softcap)?,
        qkv_bias,
        output_bias: !family.qkv_bias && attention_bias,
    };
    let activation = activation(j, family)?;
    let ffn = match experts(r, activation)? {
        Some(experts) => Ffn { dense: None, experts: Some(experts) },
        None => Ffn { dense: Some(dense(r, activation)?), experts: None },
    };
    // Layers with a window have a rotary base of their own in families that say so.
    let local = usize::from(r.name.defaults.theta_local.is_some());
    let windows = windows(j, r.name.defaults.window, sizes.layers)?;
    Ok(windows
        .into_iter()
        .map(|window| LayerConfig {
            mixer: Mixer::Attention(Heads { window, rope: Some(window.map_or(0, |_| local)), ..heads.clone() }),
            ffn: ffn.clone(),
            wiring: family.wiring,
        })
        .collect())
}

fn activation(j: HfJson, family: &Family) -> Result<Activation> {
    let rule = &family.activations;
    let Some(stated) = j.str(rule.key)? else { return Ok(rule.default) };
    match rule.names.iter().find(|(name, _)| *name == stated) {
        Some((_, activation)) => Ok(*activation),
        None => {
            let what = format!("config.json: {} '{stated}' is not supported for {}", rule.key, family.gguf);
            Err(Error::unsupported(what))
        }
    }
}

fn dense(r: &Reading, activation: Activation) -> Result<Dense> {
    Ok(Dense {
        width: r.sizes.ffn,
        gated: r.family.is_gated(),
        activation,
        bias: r.json.bool("mlp_bias")?.unwrap_or(false) && r.family.has(Role::FfnDownBias),
    })
}

impl Family {
    /// Whether a second matrix gates the feed-forward blocks.
    pub fn is_gated(&self) -> bool {
        self.has(Role::FfnGate) || self.has(Role::FfnGateUp)
    }
}

fn experts(r: &Reading, activation: Activation) -> Result<Option<Experts>> {
    let Some(keys) = &r.name.experts else { return Ok(None) };
    let j = r.json;
    let required = |keys: &[&str]| -> Result<usize> { j.size(keys)?.ok_or_else(|| missing(keys[0])) };
    Ok(Some(Experts {
        count: required(&["num_local_experts", "num_experts"])?,
        used: required(&["num_experts_per_tok"])?,
        ffn: required(&[keys.width])?,
        shared_ffn: keys.shared.map(|key| required(&[key])).transpose()?,
        norm_topk: match keys.norm_topk {
            Some(key) => j.bool(key)?.unwrap_or(false),
            None => true,
        },
        activation,
    }))
}

/// Per-layer windows: `layer_types` where the file has it, the family's rule otherwise.
fn windows(j: HfJson, rule: WindowRule, layers: usize) -> Result<Vec<Option<usize>>> {
    let switched_on = j.bool("use_sliding_window")?.unwrap_or(false);
    let window = match rule {
        WindowRule::Every(default) => {
            let stated = [j.text, Some(j.outer)].into_iter().flatten().any(|v| v.get("sliding_window").is_some());
            j.size(&["sliding_window"])?.or(if stated { None } else { default })
        }
        WindowRule::AllButEvery { .. } => Some(j.size(&["sliding_window"])?.unwrap_or(4096)),
        WindowRule::ByType { .. } => j.size(&["sliding_window"])?,
        WindowRule::Never => None,
        _ if switched_on => Some(j.size(&["sliding_window"])?.unwrap_or(4096)),
        _ => None,
    };
    let Some(window) = window.filter(|w| *w != 0) else { return Ok(vec![None; layers]) };
    let of = |slides: bool| slides.then_some(window);
    let per_type = !matches!(rule, WindowRule::Every(_) | WindowRule::Switched);
    if let Some(types) = j.get("layer_types").filter(|_| per_type) {
        let names = types.as_array().ok_or_else(|| wrong("layer_types", types, "a list"))?;
        if names.len() != layers {
            let what = format!("config.json: layer_types has {} entries for {layers} layers", names.len());
            return Err(Error::bad_input(what));
        }
        return names
            .iter()
            .map(|name| match name.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(Error::unsupported(format!("config.json: layer type {name} is not supported"))),
            })
            .collect();
    }
    let first_late = j.size(&["max_window_layers"])?.unwrap_or(28);
    let slides: Box<dyn Fn(usize) -> bool> = match rule {
        WindowRule::Every(_) | WindowRule::Switched => Box::new(|_| true),
        WindowRule::Never => Box::new(|_| false),
        WindowRule::Late => Box::new(move |i| i >= first_late),
        WindowRule::EarlyAlternate => Box::new(move |i| i % 2 == 0 && i < first_late),
        WindowRule::AllButEvery { every, .. } | WindowRule::ByType { every } => {
            let n = j.size(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(every);
            if n == 0 {
                return Err(Error::bad_input("config.json: sliding_window_pattern is 0"));
            }
            Box::new(move |i| (i + 1) % n != 0)
        }
    };
    Ok((0..layers).map(|i| of(slides(i))).collect())
}

/// The rotary embedding, and that of layers with a window where they have one of their own.
fn ropes(r: &Reading) -> Result<Vec<Rope>> {
    let (j, family, d) = (r.json, r.family, &r.name.defaults);
    let empty = Value::Null;
    // transformers prefers `rope_scaling` where a file has both.
    let table = j.get("rope_scaling").or_else(|| j.get("rope_parameters")).unwrap_or(&empty);
    if !table.is_null() && !table.is_object() {
        return Err(wrong("rope_parameters", table, "an object"));
    }
    let nested = |key: &str| table.get(key).filter(|v| v.is_object());
    let local = nested("sliding_attention");
    let full = nested("full_attention").unwrap_or(if local.is_some() { &empty } else { table });
    let theta = match number(full, "rope_theta")? {
        Some(theta) => theta,
        None => hf_number(j, "rope_theta")?.unwrap_or(d.theta),
    };
    let theta_local = match (d.theta_local, local) {
        (None, _) => None,
        (Some(default), local) => {
            let own = local.map(|l| number(l, "rope_theta")).transpose()?.flatten();
            Some(match own {
                Some(theta) => theta,
                None => hf_number(j, "rope_local_base_freq")?.unwrap_or(default),
            })
        }
    };
    let partial = match number(full, "partial_rotary_factor")? {
        Some(f) => f,
        None => hf_number(j, "partial_rotary_factor")?.unwrap_or(d.partial_rotary),
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::bad_input(format!("config.json: partial_rotary_factor is {partial}; expected 0 to 1")));
    }
    if partial != 1.0 && !family.partial_rotary {
        let what = format!("config.json: partial_rotary_factor {partial} is not supported for {}", family.gguf);
        return Err(Error::unsupported(what));
    }
    let original = match full.get("original_max_position_embeddings") {
        Some(v) if !v.is_null() => {
            Some(as_size(v).ok_or_else(|| wrong("original_max_position_embeddings", v, "a whole number"))?)
        }
        _ => j.size(&["original_max_position_embeddings"])?,
    };
    let scaling = scaling(full, original, family, r.sizes.context)?;
    let dims = (r.sizes.head_dim as f32 * partial) as usize;
    let local = theta_local.map(|theta| Rope { theta, dims, scaling: RopeScaling::Default });
    Ok(std::iter::once(Rope { theta, dims, scaling }).chain(local).collect())
}

fn scaling(table: &Value, original: Option<usize>, family: &Family, context: usize) -> Result<RopeScaling> {
    let kind = table.get("rope_type").or_else(|| table.get("type")).and_then(Value::as_str).unwrap_or("default");
    let positive = |key: &str, default: Option<f32>| -> Result<f32> {
        match number(table, key)?.or(default) {
            Some(f) if f > 0.0 => Ok(f),
            Some(f) => Err(Error::bad_input(format!("config.json: rope {key} is {f}; expected more than 0"))),
            None => Err(missing(&format!("rope_parameters.{key}"))),
        }
    };
    // Phi3 once called its own scheme "su", and for a while "yarn".
    let kind = if family.long_rope && kind == "yarn" { "longrope" } else { kind };
    match kind.to_ascii_lowercase().as_str() {
        // Dynamic NTK changes nothing up to the trained context, which is as far as this program goes.
        "default" | "dynamic" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: positive("factor", None)? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: positive("factor", Some(8.0))?,
            low_freq_factor: positive("low_freq_factor", Some(1.0))?,
            high_freq_factor: positive("high_freq_factor", Some(4.0))?,
            original_context: original.unwrap_or(8192),
        }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor: positive("factor", None)?,
            original_context: original.unwrap_or(context),
            attention_factor: match number(table, "attention_factor")? {
                Some(f) => Some(f),
                None => number(table, "attn_factor")?,
            },
            beta_fast: positive("beta_fast", Some(32.0))?,
            beta_slow: positive("beta_slow", Some(1.0))?,
        }),
        "longrope" | "su" => Ok(RopeScaling::LongRope {
            short: factors(table, "short_factor")?,
            long: factors(table, "long_factor")?,
            original_context: original.unwrap_or(4096),
            attention_factor: number(table, "attention_factor")?,
        }),
        other => Err(Error::unsupported(format!("config.json: rope scaling '{other}' is not supported"))),
    }
}

fn factors(table: &Value, key: &str) -> Result<Vec<f32>> {
    let list = table.get(key).and_then(Value::as_array).ok_or_else(|| missing(&format!("rope_parameters.{key}")))?;
    list.iter()
        .map(|v| match v.as_f64() {
            Some(f) if f > 0.0 && (f as f32).is_finite() => Ok(f as f32),
            _ => Err(wrong(key, v, "numbers above 0")),
        })
        .collect()
}

impl Reading<'_> {
    /// A number that transformers' class fills in where it is absent.
    pub(super) fn number(&self, key: &str, default: f32) -> Result<f32> {
        Ok(hf_number(self.json, key)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.json.bool(key)?.unwrap_or(default))
    }

    /// The standard layers, each changed by `change`, which is told its number.
    pub(super) fn layers_with(&self, change: impl Fn(usize, &mut LayerConfig)) -> Result<Vec<LayerConfig>> {
        let mut layers = standard_layers(self)?;
        layers.iter_mut().enumerate().for_each(|(i, layer)| change(i, layer));
        Ok(layers)
    }

    /// The same with the biases of all linear layers as `config.json` says in other words.
    pub(super) fn layers_with_biases(&self, qkv: bool, output: bool, dense: bool) -> Result<Vec<LayerConfig>> {
        self.layers_with(|_, layer| {
            if let Some(heads) = layer.heads_mut() {
                (heads.qkv_bias, heads.output_bias) = (qkv, output);
            }
            layer.ffn.dense.iter_mut().for_each(|d| d.bias = dense);
        })
    }

    /// Refuses what a flag switches on.
    pub(super) fn refuse(&self, key: &str) -> Result<()> {
        match self.json.bool(key)? {
            Some(true) => {
                Err(Error::unsupported(format!("config.json: {key} is not supported for {}", self.family.gguf)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(architecture: &str, more: Value) -> Config {
        let mut json = json!({
            "architectures": [architecture], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::from_hf(&json).unwrap()
    }

    fn windows(c: &Config) -> Vec<Option<usize>> {
        c.attention().map(|h| h.window).collect()
    }

    fn positions(c: &Config) -> Vec<Option<usize>> {
        c.attention().map(|h| h.rope).collect()
    }

    #[test]
    fn layers_that_are_not_alike() {
        let c = config("Cohere2ForCausalLM", json!({"sliding_window": 8}));
        assert_eq!(windows(&c), [Some(8), Some(8), Some(8), None]);
        assert_eq!(positions(&c), [Some(0), Some(0), Some(0), None]);
        assert!(c.layers.iter().all(|l| l.wiring.parallel));

        let c = config("SmolLM3ForCausalLM", json!({}));
        assert_eq!(positions(&c), [Some(0), Some(0), Some(0), None]);
        let c = config("SmolLM3ForCausalLM", json!({"no_rope_layers": [0, 1, 0, 1]}));
        assert_eq!(positions(&c), [None, Some(0), None, Some(0)]);

        let types = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        let c = config("Exaone4ForCausalLM", json!({"sliding_window": 8, "layer_types": types}));
        assert_eq!(positions(&c), [Some(0), None, None, Some(0)]);
        assert_eq!(positions(&config("Exaone4ForCausalLM", json!({"sliding_window": null}))), [Some(0); 4]);

        let rope = json!({
            "full_attention": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        });
        let c = config("Olmo3ForCausalLM", json!({"sliding_window": 8, "rope_parameters": rope}));
        assert_eq!(positions(&c), [Some(1), Some(1), Some(1), Some(0)]);
        assert!(matches!(c.ropes[0].scaling, RopeScaling::Yarn { .. }));
        assert_eq!((c.ropes[1].theta, &c.ropes[1].scaling), (1e4, &RopeScaling::Default));
        assert!(c.layers.iter().all(|l| l.wiring.post_norm && !l.wiring.pre_norm));
    }

    #[test]
    fn biases_and_scales_go_by_each_familys_keys() {
        let biases = |c: &Config| {
            let heads = c.first_heads().unwrap();
            (heads.qkv_bias, heads.output_bias, c.layers[0].ffn.dense.as_ref().unwrap().bias)
        };
        assert_eq!(biases(&config("Starcoder2ForCausalLM", json!({}))), (true, true, true));
        assert_eq!(biases(&config("SeedOssForCausalLM", json!({}))), (true, false, false));
        assert_eq!(biases(&config("StableLmForCausalLM", json!({"use_qkv_bias": true}))), (true, false, false));
        assert_eq!(biases(&config("Qwen2ForCausalLM", json!({}))), (true, false, false));
        assert_eq!(biases(&config("LlamaForCausalLM", json!({"attention_bias": true}))), (true, true, false));

        let scales = json!({"attention_multiplier": 0.5, "embedding_multiplier": 12.0, "logits_scaling": 8.0});
        let c = config("GraniteForCausalLM", scales);
        assert_eq!((c.embedding_scale, c.residual_scale, c.logit_scale), (12.0, 1.0, 8.0));
        assert_eq!(c.first_heads().unwrap().scale, 0.5);

        let c = config("StableLmForCausalLM", json!({}));
        assert_eq!((c.ropes[0].dims, c.norm), (4, crate::model::config::Norm::Layer));
        let gated = |name| config(name, json!({})).layers[0].ffn.dense.as_ref().unwrap().gated;
        assert!(!gated("ArceeForCausalLM") && gated("LlamaForCausalLM"));
    }
}
