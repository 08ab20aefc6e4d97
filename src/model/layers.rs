//! The layers that a `config.json` describes: what most families have in common, and what the functions of the others are
//! made of.

use super::config::{Activation, Dense, Experts, Ffn, Heads, LayerConfig, Mixer};
use super::family::{AttnScale, Cap, Family, Reading, WindowRule};
use super::hf_json::{HfJson, hf_number, missing, wrong};
use super::role::Role;
use crate::{Error, Result};

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
        ..Heads::default()
    };
    let activation = activation(j, family)?;
    let ffn = match experts(r, activation)? {
        Some(experts) => Ffn { experts: Some(experts), ..Ffn::default() },
        None => Ffn { dense: Some(dense(r, activation)?), ..Ffn::default() },
    };
    // Layers with a window have a rotary base of their own in families that say so.
    let local = usize::from(r.name.defaults.theta_local.is_some());
    let windows = windows(j, r.name.defaults.window, sizes.layers)?;
    Ok(windows
        .into_iter()
        .map(|window| LayerConfig {
            mixer: Mixer::Attention(Heads { window, rope: Some(window.map_or(0, |_| local)), ..heads.clone() }),
            beside: None,
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
        cutoff: None,
    })
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
        ..Experts::default()
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

    /// A soft cap; `null` switches one off that the family has by default.
    pub(super) fn cap(&self, key: &str, rule: Cap) -> Result<Option<f32>> {
        let absent = self.json.outer.get(key).is_none();
        match rule {
            Cap::Never => Ok(None),
            Cap::Stated => hf_number(self.json, key),
            Cap::Default(default) => Ok(hf_number(self.json, key)?.or(absent.then_some(default))),
        }
    }
}
