//! Multi-head latent attention: DeepSeek 2 to 3.2, Kimi K2, Youtu, Mistral Small 4. llama.cpp absorbs the up-projection of
//! keys and values, which therefore comes apart and partly turned.

use super::super::view::{Stored, View, range};
use super::shapes;
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN, layer_of, nextn};
use crate::Result;
use crate::model::source_names::TOWER;
use crate::model::tensor::Gather;
use std::sync::Arc;

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        classes: &[
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "KimiK25ForConditionalGeneration",
            "KimiVLForConditionalGeneration",
            "YoutuForCausalLM",
            "YoutuVLForConditionalGeneration",
        ],
        shapes: Some(shapes::latent),
        ..LATENT
    },
    Blueprint {
        gguf: "deepseek32",
        classes: &["DeepseekV32ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_output attn_rot_embd ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp rope_freqs attn_q_a attn_q_b attn_kv_a_mqa attn_k_b attn_v_b \
            attn_q_a_norm attn_kv_a_norm indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b nextn.eh_proj \
            nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        rename: super::same,
        more_blocks: nextn,
        keys: |k| {
            latent(k)?;
            k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])?;
            indexer(k)
        },
        ..LATENT
    },
    Blueprint {
        gguf: "deepseek2-ocr",
        classes: &["DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM"],
        rename: |h, name| match name.contains("sam_model") || name.contains("qwen2_model") {
            true => Named::Drop(TOWER),
            false => without_mtp(h, name),
        },
        splits: &[],
        keys: ocr,
        ..LATENT
    },
    Blueprint {
        gguf: "mistral4",
        classes: &["Mistral3ForConditionalGeneration", "Mistral4ForCausalLM"],
        only: |json| json.get("text_config").unwrap_or(json).get("model_type") == Some(&"mistral4".into()),
        tensors: "token_embd output output_norm attn_norm attn_q attn_output attn_rot_embd ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_gate_up_exps \
            ffn_down ffn_down_exps ffn_down_shexp rope_freqs attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b \
            attn_v_b attn_q_a_norm attn_kv_a_norm",
        names: &[
            ("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
            ("model.layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_up_exps.weight"),
        ],
        ..LATENT
    },
];

pub(super) const KV_B: &[(&str, Change)] = &[
    ("attn_k_b.weight", Change::View(|h, s| Ok(parts(h, s)?.0))),
    ("attn_v_b.weight", Change::View(|h, s| Ok(parts(h, s)?.1))),
];

pub(super) const LATENT: Blueprint = Blueprint {
    gguf: "deepseek2",
    tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output attn_rot_embd ffn_norm \
        ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
        ffn_down_exps ffn_down_shexp rope_freqs attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b \
        attn_q_a_norm attn_kv_a_norm nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm \
        nextn.shared_head_head nextn.shared_head_norm",
    rename: without_mtp,
    splits: &[("kv_b_proj.weight", KV_B)],
    defaults: r#"{"rms_norm_eps": 1e-6}"#,
    // With the absorbed projections there is one key-value head for all.
    keys: latent,
    ..PLAIN
};

/// llama.cpp leaves the multi-token prediction of these models out.
fn without_mtp(h: &Hparams, name: &str) -> Named {
    let beyond = layer_of(name).is_some_and(|layer| h.blocks().is_ok_and(|blocks| layer >= blocks));
    if beyond {
        return Named::Drop(super::WITHOUT_MTP);
    }
    if h.flag("tie_word_embeddings") && name.ends_with("lm_head.weight") {
        return Named::Drop("the configuration ties the output to the embedding");
    }
    Named::Keep(name.into())
}

/// Of `[heads * (nope + value), rank]`, the key part as `[heads, rank, nope]` and the value part as `[heads, value, rank]`.
pub(super) fn latent_parts(s: &Stored, nope: usize, value: usize) -> Result<(View, View)> {
    let both = (nope + value).max(1);
    let (heads, rank) = (s.shape[0] / both, s.shape[1]);
    let cols: Arc<[u32]> = range(0, nope).into();
    let rows: Arc<[u32]> = range(nope, nope + value).into();
    let keys = Gather { matrices: heads, stored: [both, rank], turned: true, rows: None, cols: Some(cols) };
    let values = Gather { matrices: heads, stored: [both, rank], turned: false, rows: Some(rows), cols: None };
    Ok((View::gathered(&[heads, rank, nope], keys), View::gathered(&[heads, value, rank], values)))
}

fn parts(h: &Hparams, s: &Stored) -> Result<(View, View)> {
    latent_parts(s, h.need("qk_nope_head_dim")?, h.need("v_head_dim")?)
}

/// Ordinary attention, with the experts of the others.
fn ocr(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.size("leading_dense_block_count", leading(h)?)?;
    k.needed_size("vocab_size", "vocab_size")?;
    k.stated_size("attention.q_lora_rank", &["q_lora_rank"])?;
    k.size("rope.dimension_count", h.need("qk_rope_head_dim")?)?;
    experts(k)?;
    let window = h.size("sliding_window_size")?.filter(|n| *n > 0).or(h.size("sliding_window")?);
    if let Some(window) = window.filter(|n| *n > 0) {
        k.size("attention.sliding_window", window)?;
    }
    k.meta.set("tokenizer.chat_template", "{% for m in messages %}{{m['content']}}{% endfor %}");
    Ok(())
}

/// Metadata of latent attention and its experts.
pub(super) fn latent(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.size("attention.head_count_kv", 1)?;
    k.size("leading_dense_block_count", leading(h)?)?;
    k.needed_size("vocab_size", "vocab_size")?;
    k.stated_size("attention.q_lora_rank", &["q_lora_rank"])?;
    let (rank, rotary) = (h.size("kv_lora_rank")?.unwrap_or(512), h.need("qk_rope_head_dim")?);
    k.size("attention.kv_lora_rank", rank)?;
    k.head_lengths(rank + rotary, rank)?;
    k.size("attention.key_length_mla", h.need("qk_nope_head_dim")? + rotary)?;
    k.needed_size("attention.value_length_mla", "v_head_dim")?;
    experts(k)?;
    k.size("rope.dimension_count", rotary)?;
    if let Some(mscale) = h.rope().get("mscale_all_dim").and_then(|v| v.as_f64()) {
        k.float("rope.scaling.yarn_log_multiplier", (0.1 * mscale) as f32);
    }
    Ok(())
}

/// Blocks without experts at the beginning.
fn leading(h: &Hparams) -> Result<usize> {
    match h.size("first_k_dense_replace")? {
        Some(n) => Ok(n),
        None if h.get("n_routed_experts").is_none() => h.need("num_hidden_layers"),
        None => Ok(0),
    }
}

fn experts(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.stated_size("expert_feed_forward_length", &["moe_intermediate_size", "intermediate_size"])?;
    k.stated_size("expert_count", &["n_routed_experts"])?;
    k.size("expert_shared_count", h.size("n_shared_experts")?.unwrap_or(0))?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    if h.flag("norm_topk_prob") {
        k.flag("expert_weights_norm", true);
    }
    Ok(())
}

/// Metadata of DeepSeek's sparse attention.
pub(super) fn indexer(k: &mut Keys) -> Result<()> {
    k.needed_size("attention.indexer.head_count", "index_n_heads")?;
    k.needed_size("attention.indexer.key_length", "index_head_dim")?;
    k.needed_size("attention.indexer.top_k", "index_topk")
}
