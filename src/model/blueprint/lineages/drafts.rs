//! Drafts of blocks (DFlash and its kin), which a target model checks. Their tokenizer is the target's: its files must lie
//! in the draft's folder.

use super::super::view::{Stored, View};
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::{Error, Result};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint { classes: &["DFlashDraftModel", "DFlash2DraftModel"], ..DFLASH },
    Blueprint {
        classes: &[
            "Qwen3DSparkModel",
            "DSparkDraftModel",
            "DSparkSpeculator",
            "Lfm2DSparkDraftModel",
            "LingDSparkModel",
        ],
        rename: |h, name| match name.ends_with("lm_head.weight") && draft_vocabulary(h).is_none() {
            true => Named::Drop("the target's output is used"),
            false => dflash_names(h, name),
        },
        keys: dspark,
        ..DFLASH
    },
    Blueprint {
        classes: &["MuseGlimmerAssistantModel"],
        rename: super::same,
        changes: &[],
        keys: |k| {
            let h = k.h;
            mask(k, h.get("mask_token_id"));
            k.needed_size("block_size", "block_size")?;
            target_layers(k, h.list("target_layer_ids"));
            if h.get("layer_types").is_some() { k.windows_by_type() } else { Ok(()) }
        },
        ..DFLASH
    },
];

const DFLASH: Blueprint = Blueprint {
    gguf: "dflash",
    tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output post_attention_norm attn_sinks \
        ffn_norm post_ffw_norm ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps \
        ffn_gate_shexp ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm rope_freqs layer_output_scale \
        attn_q_a attn_q_b attn_q_a_norm enc.output_norm fc markov_w1 markov_w2 conf_proj attn_conv_base attn_conv_proj \
        ffn_conv_base ffn_conv_proj selector_predecessor selector_successor selector_hidden",
    rename: dflash_names,
    changes: &[
        ("attn_q.weight", Change::View(halves)),
        ("attn_k.weight", Change::View(halves)),
        ("attn_q_norm.weight", Change::View(halves)),
        ("attn_k_norm.weight", Change::View(halves)),
    ],
    keys: dflash,
    ..PLAIN
};

fn dflash_names(h: &Hparams, name: &str) -> Named {
    let name = if name.starts_with("model.") { name.to_string() } else { format!("model.{name}") };
    let shared = h.get("has_embed_tokens").and_then(|v| v.as_bool()) == Some(false);
    match name.as_str() {
        "model.t2d" => Named::Drop("only training needs it"),
        "model.embed_tokens.weight" if shared => Named::Drop("the target's embedding is used"),
        name if name.ends_with("_codebook") || (name.contains("sink") && !name.ends_with(".weight")) => {
            Named::Keep(format!("{name}.weight"))
        }
        name => Named::Keep(name.into()),
    }
}

/// Of every head, pairs that are rotated together become two halves, where they are stored as pairs.
fn halves(h: &Hparams, s: &Stored) -> Result<View> {
    if h.get("rope_is_neox_style").and_then(|v| v.as_bool()) != Some(false) {
        return Ok(View::same(s.shape));
    }
    let head = h.need("head_dim")?.max(2);
    let stored = |row: usize| row / head * head + row % head % (head / 2) * 2 + row % head / (head / 2);
    Ok(View::rows(s, (0..s.shape[0]).map(|row| stored(row) as u32).collect()))
}

/// The smaller vocabulary of a draft, where it has one.
fn draft_vocabulary(h: &Hparams) -> Option<usize> {
    let (draft, all) = (h.size("draft_vocab_size").ok()??, h.size("vocab_size").ok()??);
    (draft > 0 && draft < all).then_some(draft)
}

fn mask(k: &mut Keys, id: Option<&serde_json::Value>) {
    if let Some(id) = id.and_then(|v| v.as_u64()) {
        k.meta.set("tokenizer.ggml.mask_token_id", id as u32);
    }
}

/// Layers of the target that the draft reads: GGUF counts what goes in, configurations what comes out.
fn target_layers(k: &mut Keys, layers: Option<&Vec<serde_json::Value>>) {
    let layers: Vec<usize> = layers.into_iter().flatten().filter_map(|v| v.as_u64()).map(|n| n as usize + 1).collect();
    if !layers.is_empty() {
        k.sizes("target_layers", &layers);
    }
}

fn dflash(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let own = h.get("dflash_config").cloned().unwrap_or_default();
    let number = |key: &str| own.get(key).filter(|v| !v.is_null()).or(h.get(key)).and_then(|v| v.as_f64());
    let of_draft = |key: &str| own.get(key).and_then(|v| v.as_f64());
    mask(k, own.get("mask_token_id"));
    if let Some(part) = h.rope_float("partial_rotary_factor") {
        k.size("rope.dimension_count", (h.head_dim()? as f64 * f64::from(part)) as usize)?;
    }
    if let Some(scale) = of_draft("attention_value_scale") {
        k.float("attention.value_scale", scale as f32);
    }
    k.size("block_size", number("block_size").unwrap_or(16.0) as usize)?;
    if of_draft("conv_kernel_size").is_some() {
        for key in ["conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"] {
            k.size(key, of_draft(key).unwrap_or(0.0) as usize)?;
        }
    }
    for (key, from) in [("logit_scale", "output_multiplier"), ("embedding_scale", "input_embedding_scale")] {
        if let Some(x) = number(from) {
            k.float(key, x as f32);
        }
    }
    if let Some(cap) = number("final_logit_softcapping").filter(|cap| *cap > 0.0) {
        k.float("final_logit_softcapping", cap as f32);
    }
    let layers = own.get("target_layer_ids").and_then(|v| v.as_array()).or(h.list("target_layer_ids"));
    target_layers(k, layers);
    let everywhere = own.get("use_swa").and_then(|v| v.as_bool()) == Some(true);
    let window = of_draft("swa_window_size").filter(|n| *n > 0.0).map(|n| n as usize);
    let window = window.or(h.size("sliding_window")?).filter(|n| *n > 0);
    if let Some(window) = window.filter(|_| everywhere || h.flag("use_sliding_window")) {
        let slides = h.layers_of_type("sliding_attention").unwrap_or_default();
        k.size("attention.sliding_window", window)?;
        k.flags("attention.sliding_window_pattern", if everywhere { vec![true; k.blocks] } else { slides });
    }
    let causal = h.get("is_causal").or(own.get("causal")).and_then(|v| v.as_bool());
    if let Some(causal) = causal {
        k.flag("attention.causal", causal);
    }
    Ok(())
}

fn dspark(k: &mut Keys) -> Result<()> {
    let h = k.h;
    if draft_vocabulary(h).is_some() {
        let what =
            "config.json: a draft with a vocabulary smaller than its target's (draft_vocab_size) is not supported";
        return Err(Error::unsupported(what));
    }
    dflash(k)?;
    if h.get("dflash_config").is_none() {
        mask(k, h.get("mask_token_id"));
        match h.list("aux_hidden_state_layer_ids") {
            // These count what goes in.
            Some(layers) => {
                let layers: Vec<usize> = layers.iter().filter_map(|v| v.as_u64()).map(|n| n as usize).collect();
                k.sizes("target_layers", &layers);
            }
            None => target_layers(k, h.list("target_layer_ids")),
        }
    }
    let nested = h.get("transformer_layer_config").is_some() || h.get("aux_hidden_state_layer_ids").is_some();
    k.flag("sample_from_anchor", h.get("sample_from_anchor").and_then(|v| v.as_bool()).unwrap_or(!nested));
    let confident = k.ckpt.tensors().iter().any(|t| t.name.contains("confidence_head.proj"));
    k.flag("has_confidence_head", confident);
    Ok(())
}
