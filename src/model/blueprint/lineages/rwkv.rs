//! RWKV 6 and 7, and their hybrid with Qwen's feed-forward blocks.

use super::super::view::{Stored, View, squeezed};
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts, TokenizerKind};
use crate::model::tensor::ValueMap;

const WORLD: TokenizerFacts = TokenizerFacts { kind: TokenizerKind::RwkvWorld, ..PLAIN_TOKENIZER };

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "rwkv6",
        classes: &["Rwkv6ForCausalLM"],
        tensors: "token_embd token_embd_norm output output_norm attn_norm attn_norm_2 time_mix_w1 time_mix_w2 \
            time_mix_lerp_x time_mix_first time_mix_decay time_mix_decay_w1 time_mix_decay_w2 time_mix_key \
            time_mix_value time_mix_receptance time_mix_gate time_mix_ln time_mix_output channel_mix_lerp_k \
            channel_mix_lerp_r channel_mix_key channel_mix_receptance channel_mix_value",
        names: &[
            ("rwkv.blocks.{}.pre_ln", "token_embd_norm"),
            ("rwkv.blocks.{}.attention.experts.time_maa", "blk.{}.time_mix_lerp_fused"),
        ],
        rename: |_, name| {
            // These lie one behind the other, as experts do.
            let parts =
                ["w", "k", "v", "r", "g"].iter().position(|p| name.ends_with(&format!(".attention.time_maa_{p}")));
            match parts {
                Some(i) => {
                    let stem = &name[..name.len() - "time_maa_x".len()];
                    Named::Keep(format!("{stem}experts.{i}.time_maa.weight"))
                }
                None => with_weight(name),
            }
        },
        changes: &[
            ("time_mix_w1.weight", Change::Turned),
            ("time_mix_w2.weight", Change::Turned),
            ("time_mix_decay_w1.weight", Change::Turned),
            ("time_mix_decay_w2.weight", Change::Turned),
            ("time_mix_decay.weight", Change::Squeeze),
            ("time_mix_lerp_x.weight", Change::Squeeze),
            ("channel_mix_lerp_k.weight", Change::Squeeze),
            ("channel_mix_lerp_r.weight", Change::Squeeze),
            ("time_mix_output.weight", Change::View(rescaled)),
            ("channel_mix_value.weight", Change::View(rescaled)),
        ],
        base: false,
        keys: rwkv6,
        tokenizer: WORLD,
        ..PLAIN
    },
    Blueprint {
        gguf: "rwkv7",
        classes: &["Rwkv7ForCausalLM", "RWKV7ForCausalLM"],
        tensors: "token_embd token_embd_norm output output_norm attn_norm attn_norm_2 time_mix_w0 time_mix_w1 time_mix_w2 \
            time_mix_a0 time_mix_a1 time_mix_a2 time_mix_v0 time_mix_v1 time_mix_v2 time_mix_g1 time_mix_g2 \
            time_mix_k_k time_mix_k_a time_mix_r_k time_mix_key time_mix_value time_mix_receptance time_mix_ln \
            time_mix_output channel_mix_lerp_k channel_mix_key channel_mix_value",
        keys: rwkv7,
        tokenizer: WORLD,
        ..SEVENTH
    },
    Blueprint {
        gguf: "arwkv7",
        classes: &["RwkvHybridForCausalLM"],
        tensors: "token_embd token_embd_norm output output_norm attn_norm ffn_norm ffn_up ffn_gate ffn_down time_mix_w0 \
            time_mix_w1 time_mix_w2 time_mix_a0 time_mix_a1 time_mix_a2 time_mix_v0 time_mix_v1 time_mix_v2 \
            time_mix_g1 time_mix_g2 time_mix_k_k time_mix_k_a time_mix_r_k time_mix_key time_mix_value \
            time_mix_receptance time_mix_ln time_mix_output",
        keys: arwkv7,
        ..SEVENTH
    },
];

const SEVENTH: Blueprint = Blueprint {
    names: &[
        ("model.layers.{}.pre_norm", "token_embd_norm"),
        ("model.layers.{}.attention.experts.x", "blk.{}.time_mix_lerp_fused"),
        ("model.layers.{}.attention.x_x", "blk.{}.time_mix_lerp_fused"),
    ],
    rename: seventh,
    // The first block mixes no values in; llama.cpp wants the tensors all the same.
    splits: &[
        ("first_a0.weight", &[("time_mix_a0.weight", Change::Squeeze), ("time_mix_v0.weight", Change::Squeeze)]),
        ("first_a1.weight", &[("time_mix_a1.weight", LORA), ("time_mix_v1.weight", LORA)]),
        ("first_a2.weight", &[("time_mix_a2.weight", LORA), ("time_mix_v2.weight", LORA)]),
    ],
    changes: &[
        ("time_mix_w1.weight", LORA),
        ("time_mix_w2.weight", LORA),
        ("time_mix_a1.weight", LORA),
        ("time_mix_a2.weight", LORA),
        ("time_mix_v1.weight", LORA),
        ("time_mix_v2.weight", LORA),
        ("time_mix_g1.weight", LORA),
        ("time_mix_g2.weight", LORA),
        ("time_mix_w0.weight", Change::Squeeze),
        ("time_mix_a0.weight", Change::Squeeze),
        ("time_mix_v0.weight", Change::Squeeze),
        ("time_mix_k_k.weight", Change::Squeeze),
        ("time_mix_k_a.weight", Change::Squeeze),
        ("channel_mix_lerp_k.weight", Change::Squeeze),
        ("time_mix_r_k.weight", Change::View(|_, s| Ok(View::same(&[s.shape.iter().product()])))),
        (
            "time_mix_lerp_fused.weight",
            Change::View(|_, s| match s.shape.len() {
                // Stored as one already, in whatever shape.
                1..=3 => Ok(View::same(&[s.shape[0], 1, 1, s.shape[1..].iter().product()])),
                _ => Ok(View::same(s.shape)),
            }),
        ),
    ],
    base: false,
    ..PLAIN
};

/// The small matrices of low rank, which one of two ways of storing has turned.
const LORA: Change = Change::View(|_, s| match s.name.contains("_lora.lora") {
    true => Ok(View::same(&squeezed(s.shape))),
    false => Ok(View::turned(s, None)),
});

fn with_weight(name: &str) -> Named {
    match name.ends_with(".weight") || name.ends_with(".bias") {
        true => Named::Keep(name.into()),
        false => Named::Keep(format!("{name}.weight")),
    }
}

/// Halved once for every so many blocks, against overflow in F16.
fn rescaled(h: &Hparams, s: &Stored) -> Result<View> {
    let times = h.size("rescale_every")?.filter(|every| *every > 0).map_or(0, |every| s.layer / every);
    Ok(View::same(s.shape).with(ValueMap::Times([0.5_f32.powi(times as i32), 1.0])))
}

/// One spelling for the names of several publishers.
fn seventh(h: &Hparams, name: &str) -> Named {
    let mut name = name.replace("blocks", "layers").replace("ffn", "feed_forward");
    name = name.replace("self_attn", "attention").replace("attn", "attention").replace("time_mixer.", "");
    name = name.replace("feed_forward_norm", "ln2").replace("g_norm", "ln_x");
    name = name.replace("_lora.lora.0.weight", "1.weight").replace("_lora.lora.2.weight", "2.weight");
    name = name.replace("_lora.lora.2.bias", "0.weight");
    let Some((stem, last)) = name.split_once(".attention.") else { return with_weight(&name) };
    let is_first = stem.ends_with(".0");
    let last = last.strip_suffix(".weight").unwrap_or(last);
    if is_first && matches!(last, "v0" | "v1" | "v2") {
        return Named::Drop("the first block mixes no values of an earlier one in");
    }
    let gated = h.get("wkv_has_gate").and_then(|v| v.as_bool()).unwrap_or(true);
    let mixed: &[&str] = if gated { &["r", "w", "k", "v", "a", "g"] } else { &["r", "w", "k", "v", "a"] };
    let mixes = last.strip_prefix("x_").and_then(|kind| mixed.iter().position(|k| *k == kind));
    match (mixes, last) {
        (Some(i), _) => Named::Keep(format!("{stem}.attention.experts.{i}.x.weight")),
        (_, "a0" | "a1" | "a2") if is_first => Named::Keep(format!("{stem}.attention.first_{last}.weight")),
        _ => with_weight(&name),
    }
}

/// What all of them begin with.
fn endless(k: &mut Keys, heads: usize, ffn: usize) -> Result<()> {
    k.size("context_length", 1 << 20)?;
    k.size("embedding_length", k.h.hidden()?)?;
    k.size("block_count", k.blocks)?;
    k.size("wkv.head_size", heads)?;
    k.size("feed_forward_length", ffn)?;
    k.file_type();
    k.size("attention.head_count", 0)
}

fn rwkv6(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let hidden = h.hidden()?;
    endless(k, h.need("head_size")?, h.size("intermediate_size")?.unwrap_or(hidden * 7 / 2 / 32 * 32))?;
    k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
    k.needed_size("rescale_every_n_layers", "rescale_every")?;
    // The largest model has twice the others'.
    let wide = if hidden == 4096 { 2 } else { 1 };
    k.size("time_mix_extra_dim", 32 * wide)?;
    k.size("time_decay_extra_dim", 64 * wide)
}

/// The rank that the reference code derives where the configuration has none.
fn rank(hidden: usize, exponent: f64, factor: f64) -> usize {
    ((hidden as f64).powf(exponent) * factor / 32.0).round_ties_even().max(1.0) as usize * 32
}

fn rwkv7(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let hidden = h.hidden()?;
    let head = h.size_of(&["head_size", "head_dim"])?.unwrap_or(64);
    endless(k, head, h.size("intermediate_size")?.unwrap_or(4 * hidden))?;
    if let Some(eps) = h.float_of(&["layer_norm_epsilon", "norm_eps"])? {
        k.float("attention.layer_norm_epsilon", eps);
    }
    for (key, names, exponent, factor) in [
        ("decay", ["lora_rank_decay", "decay_low_rank_dim"], 0.5, 1.8),
        ("iclr", ["lora_rank_iclr", "a_low_rank_dim"], 0.5, 1.8),
        ("value_residual_mix", ["lora_rank_value_residual_mix", "v_low_rank_dim"], 0.5, 1.3),
        ("gate", ["lora_rank_gate", "gate_low_rank_dim"], 0.8, 0.6),
    ] {
        let rank = h.size_of(&names)?.unwrap_or(rank(hidden, exponent, factor));
        k.size(&format!("attention.{key}_lora_rank"), rank)?;
    }
    Ok(())
}

fn arwkv7(k: &mut Keys) -> Result<()> {
    let h = k.h;
    endless(k, h.need("head_size")?, h.need("intermediate_size")?)?;
    k.stated_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
    k.size("attention.decay_lora_rank", 64)?;
    k.size("attention.iclr_lora_rank", 64)?;
    k.size("attention.value_residual_mix_lora_rank", 32)?;
    k.size("attention.gate_lora_rank", if h.flag("wkv_has_gate") { 128 } else { 0 })?;
    k.size("token_shift_count", 1)
}
