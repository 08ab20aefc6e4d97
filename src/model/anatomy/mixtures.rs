//! Rows of mixtures of experts, of those that have ways of their own.

use super::Anatomy;
use super::rows::{PAIRS, PLAIN, on_heads};
use crate::Error;
use crate::model::config::{Activation, Early, Gating, Norm, NormNames, RopeScaling};

pub(super) static ALL: &[Anatomy] = &[
    Anatomy {
        gguf: &["smallthinker"],
        activation: Activation::Relu,
        all_but_every: Some(4),
        full_first: true,
        full_rope: false,
        layer: |f, index, layer| {
            let stated = |key: &str| f.said(key).and_then(|v| v.get(index)?.as_u64()).map(|n| n != 0);
            if f.said("moe_enable_early_router").and_then(|v| v.as_bool()) != Some(false) {
                layer.ffn.early = Early::Router;
            }
            let window = f.size("attention.sliding_window", index).filter(|n| *n > 0);
            on_heads(layer, |h| {
                if let Some(slides) = stated("sliding_window_layout") {
                    h.window = window.filter(|_| slides);
                }
                if let Some(rotates) = stated("rope_layout") {
                    h.rope = rotates.then_some(0);
                }
            })
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["arctic"],
        layer: |f, index, layer| match f.has(index, "ffn_norm_exps.weight") {
            true => {
                layer.ffn.early = Early::Experts;
                Ok(())
            }
            false => Err(Error::unsupported("their experts have no norm of their own")),
        },
        ..PAIRS
    },
    // llama.cpp has the first one's numbers as constants.
    Anatomy {
        gguf: &["grok"],
        activation: Activation::GeluTanh,
        layer: |f, _, layer| {
            if layer.ffn.dense.is_some() {
                layer.ffn.scale = Some(std::f32::consts::FRAC_1_SQRT_2);
            }
            on_heads(layer, |h| {
                h.scale = f.float("attention.output_scale").unwrap_or(0.088_388_35);
                h.softcap = h.softcap.or(Some(30.0));
            })
        },
        finish: |f, c| {
            let post_ffn = if f.has(0, "layer_output_norm.weight") { "layer_output_norm" } else { "post_ffw_norm" };
            c.norms = NormNames { post_attn: "attn_output_norm", post_ffn, ..c.norms };
            c.embedding_scale = f.float("embedding_scale").unwrap_or(78.383_67);
            c.logit_scale = f.float("logit_scale").unwrap_or(0.577_350_26);
            // Their factor comes on top of yarn's own.
            if let Some(RopeScaling::Yarn { factor, attention_factor: Some(own), .. }) =
                c.ropes.first_mut().map(|rope| &mut rope.scaling)
            {
                *own *= 0.1 * factor.ln() + 1.0;
            }
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["minimax-m3"],
        gating: Gating::Sigmoid,
        activation: Activation::Clamped { limit: 7.0 },
        finish: |f, _| match [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)]
            .iter()
            .find(|(key, usual)| f.said_float(key).is_some_and(|said| said != *usual))
        {
            Some((key, _)) => Err(Error::unsupported(format!("their {key} is not that of the published models"))),
            None => Ok(()),
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["olmoe"],
        norm_topk: false,
        layer: |f, _, layer| {
            let normed = f.said("norm_topk_prob").and_then(|v| v.as_bool());
            layer.ffn.experts.iter_mut().for_each(|e| e.norm_topk = normed.unwrap_or(e.norm_topk));
            Ok(())
        },
        finish: |f, _| match f.said_float("clip_qkv").or(f.float("attention.clamp_kqv")) {
            Some(_) => Err(Error::unsupported("their queries and keys are clamped behind a norm")),
            None => Ok(()),
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["dbrx"],
        norm: Norm::Layer,
        norms: NormNames { ffn: "attn_output_norm", ..PLAIN.norms },
        ..PLAIN
    },
];
