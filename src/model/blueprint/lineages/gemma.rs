//! Gemma 3n and 4, and the embedding model made of Gemma 3.

use super::shapes;
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts, TokenizerKind};
use crate::model::tensor::Generated;

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        classes: &["Gemma4ForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4UnifiedForConditionalGeneration"],
        ..GEMMA4
    },
    // Drafts for a target of the fourth generation.
    Blueprint {
        gguf: "gemma4-assistant",
        classes: &["Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"],
        shapes: None,
        tensors: "token_embd output_norm attn_norm attn_q attn_output post_attention_norm ffn_norm+pre post_ffw_norm ffn_up \
            ffn_gate ffn_down attn_q_norm rope_freqs layer_output_scale nextn.pre_projection nextn.post_projection",
        rename: |h, name| match name.contains("masked_embedding") {
            true => Named::Drop("llama.cpp computes with the whole embedding"),
            false => (GEMMA4.rename)(h, name),
        },
        keys: |k| {
            gemma4(k)?;
            k.needed_size("embedding_length_out", "backbone_hidden_size")?;
            k.size("nextn_predict_layers", k.blocks)
        },
        ..GEMMA4
    },
    Blueprint {
        gguf: "gemma3n",
        classes: &["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            ffn_norm+pre post_ffw_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm per_layer_token_embd \
            per_layer_model_proj per_layer_proj_norm altup_proj altup_unembd_proj inp_gate proj post_norm \
            altup_correct_coef altup_correct_scale altup_predict_coef altup_router altup_router_norm laurel_l \
            laurel_r laurel_post_norm",
        names: &[
            ("model.experts.altup_projections", "altup_proj"),
            ("model.experts.altup_unembed_projections", "altup_unembd_proj"),
        ],
        rename: |_, name| {
            // Stacked like experts.
            for kind in ["altup_projections", "altup_unembed_projections"] {
                if let Some(rest) = name.strip_prefix(&format!("model.{kind}.")) {
                    let (index, suffix) = rest.split_once('.').unwrap_or((rest, "weight"));
                    return Named::Keep(format!("model.experts.{index}.{kind}.{suffix}"));
                }
            }
            super::with_suffix(name, &[("_scale", ".weight")])
        },
        changes: &[("token_embd.weight", Change::Same)],
        defaults: r#"{"rms_norm_eps": 1e-6}"#,
        keys: gemma3n,
        tokenizer: TokenizerFacts { no_space_prefix: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "gemma-embedding",
        classes: &["Gemma3TextModel"],
        tensors: "token_embd output dense_2 dense_3 output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output \
            post_attention_norm ffn_norm+pre post_ffw_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm",
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("ffn_norm.weight", Change::PlusOne),
            ("post_attention_norm.weight", Change::PlusOne),
            ("post_ffw_norm.weight", Change::PlusOne),
            ("attn_q_norm.weight", Change::PlusOne),
            ("attn_k_norm.weight", Change::PlusOne),
            ("output_norm.weight", Change::PlusOne),
        ],
        names: &[
            ("layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
            ("layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
        ],
        defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "head_dim": 256}"#,
        beside: &[("2_Dense", "dense_2.weight"), ("3_Dense", "dense_3.weight")],
        keys: |k| {
            gemma3(k)?;
            for (folder, name) in [("2_Dense", "dense_2"), ("3_Dense", "dense_3")] {
                if let Some([out, from]) = k.beside_shape(folder)?.as_deref() {
                    k.size(&format!("{name}_feat_in"), *from)?;
                    k.size(&format!("{name}_feat_out"), *out)?;
                }
            }
            k.pooling()
        },
        tokenizer: TokenizerFacts { no_space_prefix: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
];

const GEMMA4: Blueprint = Blueprint {
    gguf: "gemma4",
    shapes: Some(shapes::gemma4),
    tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            ffn_norm+pre pre_ffw_norm_2 post_ffw_norm post_ffw_norm_1 post_ffw_norm_2 ffn_gate_inp ffn_up \
            ffn_up_exps ffn_gate ffn_gate_exps ffn_gate_up_exps ffn_down ffn_down_exps attn_q_norm attn_k_norm \
            rope_freqs layer_output_scale per_layer_token_embd per_layer_model_proj per_layer_proj_norm inp_gate \
            proj post_norm",
    names: &[
        ("model.layers.{}.router.scale", "blk.{}.ffn_gate_inp.scale"),
        ("model.layers.{}.router.per_expert_scale", "blk.{}.ffn_down_exps.scale"),
    ],
    rename: |_, name| {
        let fused = name.contains(".experts.") && !name.ends_with(".weight");
        match fused || name.ends_with("per_dim_scale") || name.ends_with("layer_scalar") {
            true => Named::Keep(format!("{name}.weight")),
            false => Named::Keep(name.into()),
        }
    },
    defaults: r#"{"rms_norm_eps": 1e-6, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": null}"#,
    keys: gemma4,
    generated: proportional,
    tokenizer: TokenizerFacts { kind: TokenizerKind::Gemma4, ..PLAIN_TOKENIZER },
    ..PLAIN
};

/// What llama.cpp's converter writes for every Gemma since the third.
fn gemma3(k: &mut Keys) -> Result<()> {
    k.needed_size("context_length", "max_position_embeddings")?;
    k.size("attention.head_count", k.h.heads()?)?;
    if let Some(cap) = k.h.float("final_logit_softcapping")? {
        k.float("final_logit_softcapping", cap);
    }
    k.stated_size("attention.sliding_window", &["sliding_window"])?;
    k.size("attention.head_count_kv", k.h.kv_heads()?)
}

fn slides(h: &Hparams) -> Vec<bool> {
    h.layers_of_type("sliding_attention").unwrap_or_default()
}

fn gemma4(k: &mut Keys) -> Result<()> {
    gemma3(k)?;
    let h = k.h;
    let shared = h.size("num_kv_shared_layers")?.unwrap_or(0);
    k.size("attention.shared_kv_layers", shared)?;
    k.size("embedding_length_per_layer_input", h.size("hidden_size_per_layer_input")?.unwrap_or(0))?;
    let slides = slides(h);
    k.flags("attention.sliding_window_pattern", slides.clone());
    let (full, local) = (h.full_head()?, h.head_dim()?);
    k.head_lengths(full, full)?;
    k.size("attention.key_length_swa", local)?;
    k.size("attention.value_length_swa", local)?;
    k.stated_size("expert_feed_forward_length", &["expert_intermediate_size", "moe_intermediate_size"])?;
    if h.flag("use_double_wide_mlp") {
        let (width, first) = (h.need("intermediate_size")?, k.blocks.saturating_sub(shared));
        let widths: Vec<usize> = (0..k.blocks).map(|i| if i < first { width } else { 2 * width }).collect();
        k.sizes("feed_forward_length", &widths);
    }
    let full_heads = h.size("num_global_key_value_heads")?.or_else(|| h.of_full_layers("num_key_value_heads"));
    if let (Some(full), Some(local)) = (full_heads, h.size("num_key_value_heads")?) {
        let heads: Vec<usize> = slides.iter().map(|slides| if *slides { local } else { full }).collect();
        k.sizes("attention.head_count_kv", &heads);
    }
    k.size("rope.dimension_count", full)?;
    k.size("rope.dimension_count_swa", local)
}

/// Full layers rotate a part of each head in place; factors too large to turn stand for the rest.
fn proportional(h: &Hparams) -> Result<Vec<Generated>> {
    let (dims, part) = (h.full_head()?, h.rope_float("partial_rotary_factor").unwrap_or(0.25));
    let rotated = (dims as f32 * part / 2.0) as usize;
    let values = (0..dims / 2).map(|i| if i < rotated { 1.0 } else { 1e30 }).collect();
    Ok(vec![Generated { name: "rope_freqs.weight".into(), shape: vec![dims / 2], values }])
}

fn gemma3n(k: &mut Keys) -> Result<()> {
    gemma3(k)?;
    let h = k.h;
    k.needed_size("altup.active_idx", "altup_active_idx")?;
    k.needed_size("altup.num_inputs", "altup_num_inputs")?;
    k.needed_size("embedding_length_per_layer_input", "hidden_size_per_layer_input")?;
    k.needed_size("attention.shared_kv_layers", "num_kv_shared_layers")?;
    let sparsity = h.list("activation_sparsity_pattern").into_iter().flatten();
    let scales = sparsity.map(|share| normal_quantile(share.as_f64().unwrap_or(0.0))).collect();
    k.floats("activation_sparsity_scale", scales);
    k.flags("attention.sliding_window_pattern", slides(h));
    Ok(())
}

/// The point below which this share of a normal distribution lies.
fn normal_quantile(share: f64) -> f32 {
    if share <= 0.0 {
        return f32::NEG_INFINITY;
    }
    // Bisection of the distribution function by its series; a handful of values per model.
    let below = |x: f64| 0.5 * erfc(-x / std::f64::consts::SQRT_2);
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    (0.5 * (low + high)) as f32
}

/// `1 - erf(x)`, by the power series of erf.
fn erfc(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return if x > 0.0 { 0.0 } else { 2.0 };
    }
    let (mut sum, mut term) = (x, x);
    for n in 1..400 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        assert!((normal_quantile(0.95) - 1.644_853_6).abs() < 1e-6);
        assert!(normal_quantile(0.5).abs() < 1e-6);
        assert_eq!(normal_quantile(0.0), f32::NEG_INFINITY);
    }
}
