//! [`Config::from_hf`]: hyper-parameters from a `config.json`, in the spellings of transformers 4 (`rope_scaling`,
//! `rope_theta`, `num_experts`) and 5 (`rope_parameters`, nested per layer type), with the defaults that transformers
//! fills in. It reads the one JSON value it is given, no files.

use super::config::{Activation, Attention, Biases, Config, Experts, Rope, RopeScaling};
use super::families::{self, Defaults, Family, HfName, WindowRule};
use crate::{Error, Result};
use serde_json::Value;

/// `config.json` as one flat table: keys of a nested `text_config` come before the outer ones; `null` is absent.
#[derive(Clone, Copy)]
pub(super) struct HfJson<'a> {
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

    fn bool(self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    fn str(self, key: &str) -> Result<Option<&'a str>> {
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

fn hf_number(json: HfJson, key: &str) -> Result<Option<f32>> {
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
    families::by_hf(architecture, model_type).ok_or_else(|| {
        let name = architecture.or(model_type).unwrap_or("(config.json names no architecture)");
        Error::unsupported(format!("model architecture {name} is not supported; supported: {}", families::supported()))
    })
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown architecture or variant, [`Error::BadInput`] for a missing or absurd value.
    pub fn from_hf(json: &Value) -> Result<Config> {
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
        check_variant(j, family)?;
        let mut config = Config {
            arch: family.gguf.to_string(),
            layers,
            hidden,
            ffn: required("intermediate_size", d.ffn)?,
            heads,
            kv_heads,
            head_dim,
            vocab: required("vocab_size", d.vocab)?,
            context,
            norm_eps: hf_number(j, "rms_norm_eps")?.unwrap_or(d.norm_eps),
            rope: rope(j, family, d, head_dim, context)?,
            attention: Vec::new(),
            experts: experts(j, family, name)?,
            bias: Biases {
                qkv: family.qkv_bias || j.bool("attention_bias")?.unwrap_or(false),
                attn_output: !family.qkv_bias && j.bool("attention_bias")?.unwrap_or(false),
                mlp: j.bool("mlp_bias")?.unwrap_or(false),
            },
            tied_embeddings: j.bool("tie_word_embeddings")?.unwrap_or(d.tied),
            activation: activation(j, family)?,
            attn_softcap: None,
            logit_softcap: None,
            attn_scale: 1.0 / (head_dim as f32).sqrt(),
            embedding_scale: 1.0,
        };
        if family.qkv_bias
            && let Some(qkv) = j.bool("qkv_bias")?
        {
            config.bias.qkv = qkv;
        }
        if family.gemma {
            // Gemma2's class default is 50 and 30; a null switches the cap off.
            let cap = |key: &str, default: f32| -> Result<Option<f32>> {
                let absent = !json.as_object().is_some_and(|o| o.contains_key(key));
                let fallback = (absent && family.gguf == "gemma2").then_some(default);
                Ok(hf_number(j, key)?.or(fallback))
            };
            config.attn_softcap = cap("attn_logit_softcapping", 50.0)?;
            config.logit_softcap = cap("final_logit_softcapping", 30.0)?;
            config.attn_scale = 1.0 / hf_number(j, "query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
            config.embedding_scale = (hidden as f32).sqrt();
        }
        config.check_sizes()?;
        config.attention = attention(j, d, layers)?;
        config.check()?;
        Ok(config)
    }
}

/// Variants that share a family's name and differ in ways nothing downstream knows.
fn check_variant(j: HfJson, family: &Family) -> Result<()> {
    if j.bool("use_bidirectional_attention")? == Some(true) {
        return Err(Error::unsupported("config.json: bidirectional attention is not supported"));
    }
    if family.gguf.ends_with("moe") {
        let sparse_step = j.size(&["decoder_sparse_step"])?.unwrap_or(1);
        let dense = j.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
        if sparse_step != 1 || dense {
            let what = "config.json: layers without experts in a mixture of experts (decoder_sparse_step, mlp_only_layers) are not supported";
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

fn activation(j: HfJson, family: &Family) -> Result<Activation> {
    // Early gemma configurations say "gelu" in hidden_act; the models compute the tanh form either way.
    let key = if family.gemma { "hidden_activation" } else { "hidden_act" };
    match (j.str(key)?, family.gemma) {
        (None | Some("gelu_pytorch_tanh" | "gelu"), true) => Ok(Activation::GeluTanh),
        (None | Some("silu" | "swish"), false) => Ok(Activation::Silu),
        (Some(other), _) => {
            Err(Error::unsupported(format!("config.json: {key} '{other}' is not supported for {}", family.gguf)))
        }
    }
}

fn experts(j: HfJson, family: &Family, name: &HfName) -> Result<Option<Experts>> {
    let qwen = family.gguf.ends_with("moe");
    if !qwen && name.model_type != "mixtral" {
        return Ok(None);
    }
    let required = |keys: &[&str]| -> Result<usize> { j.size(keys)?.ok_or_else(|| missing(keys[0])) };
    let shared = family.row(families::Role::SharedDown).is_some();
    Ok(Some(Experts {
        count: required(&["num_local_experts", "num_experts"])?,
        used: required(&["num_experts_per_tok"])?,
        ffn: required(if qwen { &["moe_intermediate_size"] } else { &["intermediate_size"] })?,
        shared_ffn: if shared { Some(required(&["shared_expert_intermediate_size"])?) } else { None },
        norm_topk: if qwen { j.bool("norm_topk_prob")?.unwrap_or(false) } else { true },
    }))
}

/// Per-layer windows: `layer_types` where the file has it, the family's rule otherwise.
fn attention(j: HfJson, d: &Defaults, layers: usize) -> Result<Vec<Attention>> {
    let switched_on = j.bool("use_sliding_window")?.unwrap_or(false);
    let window = match d.window {
        WindowRule::Every(default) => {
            let stated = [j.text, Some(j.outer)].into_iter().flatten().any(|v| v.get("sliding_window").is_some());
            j.size(&["sliding_window"])?.or(if stated { None } else { default })
        }
        WindowRule::AllButEvery(_) => Some(j.size(&["sliding_window"])?.unwrap_or(4096)),
        _ if switched_on => Some(j.size(&["sliding_window"])?.unwrap_or(4096)),
        _ => None,
    };
    let Some(window) = window.filter(|w| *w != 0) else { return Ok(vec![Attention::Full; layers]) };
    let sliding = Attention::Sliding { window };
    let of = |is_sliding: bool| if is_sliding { sliding } else { Attention::Full };
    let per_type = !matches!(d.window, WindowRule::Every(_) | WindowRule::Switched);
    if let Some(types) = j.get("layer_types").filter(|_| per_type) {
        let names = types.as_array().ok_or_else(|| wrong("layer_types", types, "a list"))?;
        if names.len() != layers {
            let what = format!("config.json: layer_types has {} entries for {layers} layers", names.len());
            return Err(Error::bad_input(what));
        }
        return names
            .iter()
            .map(|name| match name.as_str() {
                Some("full_attention") => Ok(Attention::Full),
                Some("sliding_attention") => Ok(sliding),
                _ => Err(Error::unsupported(format!("config.json: layer type {name} is not supported"))),
            })
            .collect();
    }
    let first_late = j.size(&["max_window_layers"])?.unwrap_or(28);
    let rule: Vec<_> = match d.window {
        WindowRule::Every(_) | WindowRule::Switched => vec![sliding; layers],
        WindowRule::Late => (0..layers).map(|i| of(i >= first_late)).collect(),
        WindowRule::EarlyAlternate => (0..layers).map(|i| of(i % 2 == 0 && i < first_late)).collect(),
        WindowRule::AllButEvery(n) => {
            let n = j.size(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(n);
            if n == 0 {
                return Err(Error::bad_input("config.json: sliding_window_pattern is 0"));
            }
            (0..layers).map(|i| of((i + 1) % n != 0)).collect()
        }
    };
    Ok(rule)
}

fn rope(j: HfJson, family: &Family, d: &Defaults, head_dim: usize, context: usize) -> Result<Rope> {
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
        None => hf_number(j, "partial_rotary_factor")?.unwrap_or(1.0),
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::bad_input(format!("config.json: partial_rotary_factor is {partial}; expected 0 to 1")));
    }
    if partial != 1.0 && family.gguf != "phi3" {
        let what = format!("config.json: partial_rotary_factor {partial} is not supported for {}", family.gguf);
        return Err(Error::unsupported(what));
    }
    let original = match full.get("original_max_position_embeddings") {
        Some(v) if !v.is_null() => {
            Some(as_size(v).ok_or_else(|| wrong("original_max_position_embeddings", v, "a whole number"))?)
        }
        _ => j.size(&["original_max_position_embeddings"])?,
    };
    let scaling = scaling(full, original, family, context)?;
    Ok(Rope { theta, theta_local, dims: (head_dim as f32 * partial) as usize, scaling })
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
    let kind = if family.gguf == "phi3" && kind == "yarn" { "longrope" } else { kind };
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
