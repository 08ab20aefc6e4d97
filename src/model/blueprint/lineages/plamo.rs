//! PLaMo: the first with shuffled heads, the second a hybrid with Mamba, the third with windows.

use super::super::view::{Stored, View};
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts, TokenizerKind};
use crate::model::tensor::ValueMap;
use crate::{Error, Result};

const LISTED: TokenizerFacts = TokenizerFacts { kind: TokenizerKind::Plamo, ..PLAIN_TOKENIZER };

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "plamo",
        classes: &["PlamoForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd ffn_up \
            ffn_gate ffn_down rope_freqs",
        changes: &[
            ("attn_q.weight", Change::View(|_, s| Ok(View::rows(s, broadcast(s, s.shape[0])?)))),
            ("attn_output.weight", Change::View(|_, s| Ok(View::cols(s, broadcast(s, s.shape[1])?)))),
        ],
        base: false,
        keys: |k| {
            let h = k.h;
            k.size("context_length", 4096)?;
            k.size("embedding_length", h.hidden()?)?;
            k.needed_size("feed_forward_length", "intermediate_size")?;
            k.size("block_count", k.blocks)?;
            k.size("attention.head_count", h.heads()?)?;
            // The configuration states another number than the weights have.
            k.size("attention.head_count_kv", GROUPS)?;
            k.stated_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
            k.file_type();
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "plamo2",
        classes: &["Plamo2ForCausalLM", "PLaMo2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_output post_attention_norm \
            attn_rot_embd ffn_norm post_ffw_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm rope_freqs ssm_in \
            ssm_conv1d ssm_x ssm_dt ssm_dt_norm ssm_a ssm_b_norm ssm_c_norm ssm_d ssm_out",
        rename: |_, name| {
            const ENDS: [(&str, &str); 6] = [
                (".dt_bias", ".dt_proj.bias"),
                (".dt_norm_weight", ".dt_norm.weight"),
                (".B_norm_weight", ".B_norm.weight"),
                (".C_norm_weight", ".C_norm.weight"),
                (".k_weight", ".k.weight"),
                (".q_weight", ".q.weight"),
            ];
            let found = ENDS.iter().find_map(|(end, to)| Some(format!("{}{to}", name.strip_suffix(end)?)));
            Named::Keep(found.unwrap_or_else(|| name.to_string()))
        },
        changes: &[
            ("ssm_a", Change::NegExp),
            ("ssm_conv1d.weight", Change::Squeeze),
            ("attn_norm.weight", Change::PlusOne),
            ("post_attention_norm", AFTER_MIXER),
            ("ffn_norm.weight", Change::PlusOne),
            ("post_ffw_norm", AFTER_MLP),
            ("output_norm.weight", Change::PlusOne),
        ],
        base: false,
        keys: plamo2,
        tokenizer: LISTED,
        ..PLAIN
    },
    Blueprint {
        gguf: "plamo3",
        classes: &["Plamo3ForCausalLM", "PLaMo3ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output post_attention_norm ffn_norm post_ffw_norm \
            ffn_up ffn_down attn_q_norm attn_k_norm",
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("post_attention_norm", AFTER_MIXER),
            ("ffn_norm.weight", Change::PlusOne),
            ("post_ffw_norm", AFTER_MLP),
            ("attn_q_norm.weight", Change::PlusOne),
            ("attn_k_norm.weight", Change::PlusOne),
            ("output_norm.weight", Change::PlusOne),
        ],
        keys: plamo3,
        tokenizer: LISTED,
        ..PLAIN
    },
];

const AFTER_MIXER: Change = Change::View(|_, s| Ok(View::same(s.shape).with(ValueMap::Plus(1.0 / 5.0))));
// 5 to the power of -1.5.
const AFTER_MLP: Change = Change::View(|_, s| Ok(View::same(s.shape).with(ValueMap::Plus(0.089_442_72))));

const GROUPS: usize = 5;

/// Heads that share a key lie apart, as ggml repeats keys.
fn broadcast(s: &Stored, n: usize) -> Result<Vec<u32>> {
    const HEADS: usize = 8 * GROUPS;
    if !n.is_multiple_of(HEADS) {
        return Err(Error::bad_input(format!("{n} is not a multiple of {HEADS} heads")).tensor(s.name));
    }
    let head = n / HEADS;
    let stored = |i: usize| {
        let (group, key) = (i / head / 8, i / head % 8);
        ((key * GROUPS + group) * head + i % head) as u32
    };
    Ok((0..n).map(stored).collect())
}

/// Whether a block of the second is Mamba's.
fn is_mamba(h: &Hparams, layer: usize, blocks: usize) -> bool {
    let step = h.size("mamba_step").ok().flatten().unwrap_or(2).max(1);
    if blocks <= step / 2 { layer + 1 != blocks } else { layer % step != step / 2 }
}

fn plamo2(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let size = |key: &str, default: usize| -> Result<usize> { Ok(h.size(key)?.unwrap_or(default)) };
    k.needed_size("vocab_size", "vocab_size")?;
    if h.get("mamba_enabled").and_then(|v| v.as_bool()) != Some(false) {
        let heads = |n: usize| (0..k.blocks).map(|i| if is_mamba(h, i, k.blocks) { 0 } else { n }).collect::<Vec<_>>();
        let (kv, q) = (heads(size("num_key_value_heads", 4)?), heads(size("num_attention_heads", 32)?));
        k.sizes("attention.head_count_kv", &kv);
        k.sizes("attention.head_count", &q);
    }
    let (head, mamba_heads) = (size("hidden_size_per_head", 128)?, size("mamba_num_heads", 64)?);
    k.size("context_length", size("max_position_embeddings", 2048)?)?;
    k.size("embedding_length", size("hidden_size", 4096)?)?;
    k.head_lengths(head, head)?;
    k.size("block_count", k.blocks)?;
    k.float("attention.layer_norm_rms_epsilon", h.float("rms_norm_eps")?.unwrap_or(1e-6));
    k.float("rope.freq_base", h.rope_float("rope_theta").unwrap_or(10_000.0));
    k.size("ssm.state_size", size("mamba_d_state", 64)?)?;
    k.size("ssm.conv_kernel", size("mamba_d_conv", 4)?)?;
    k.size("ssm.time_step_rank", mamba_heads)?;
    k.size("ssm.inner_size", mamba_heads * head)?;
    k.size("ssm.group_count", 0)?;
    k.size("feed_forward_length", size("intermediate_size", 13312)?)?;
    k.file_type();
    Ok(())
}

fn plamo3(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let factor = h.float("rope_scaling_factor")?.unwrap_or(1.0);
    if factor != 1.0 && !h.rope().contains_key("rope_type") {
        k.text("rope.scaling.type", "yarn");
        k.float("rope.scaling.factor", factor);
        k.needed_size("rope.scaling.original_context_length", "initial_context_length")?;
        k.float("rope.scaling.yarn_beta_fast", 32.0);
        k.float("rope.scaling.yarn_beta_slow", 1.0);
    }
    k.needed_size("vocab_size", "vocab_size")?;
    let Some(window) = h.size_of(&["window_size", "sliding_window"])? else { return Ok(()) };
    k.size("attention.sliding_window", window)?;
    match h.list("sliding_window_pattern") {
        Some(layers) => k.flags("attention.sliding_window_pattern", layers.iter().map(|v| v == true).collect()),
        None => k.needed_size("attention.sliding_window_pattern", "sliding_window_pattern")?,
    }
    Ok(())
}
