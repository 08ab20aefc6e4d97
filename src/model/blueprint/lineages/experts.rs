//! More mixtures of experts: MiniMax M3, DeepSeek's first, Ling's first, Grove, Maple, SmallThinker, Arctic, Grok, DBRX.

use super::super::base::Gating;
use super::super::hparams::plausible;
use super::super::view::{Stored, View, pairs, range};
use super::small::fused_rows;
use super::{Blueprint, Change, Hparams, Keys, Named, PAIRS, PLAIN};
use crate::Result;
use crate::model::tensor::{Gather, ValueMap};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "minimax-m3",
        in_f32: &[".indexer."],
        classes: &["MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down ffn_down_exps \
            ffn_down_shexp attn_q_norm attn_k_norm indexer.k_norm indexer.q_proj indexer.k_proj indexer.q_norm",
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("ffn_norm.weight", Change::PlusOne),
            ("output_norm.weight", Change::PlusOne),
            ("attn_q_norm.weight", Change::PlusOne),
            ("attn_k_norm.weight", Change::PlusOne),
            ("indexer.q_norm.weight", Change::PlusOne),
            ("indexer.k_norm.weight", Change::PlusOne),
        ],
        keys: minimax3,
        ..PLAIN
    },
    Blueprint {
        gguf: "deepseek",
        classes: &["DeepseekForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd ffn_norm \
            ffn_gate_inp ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down ffn_down_exps \
            ffn_down_shexp rope_freqs",
        changes: PAIRS,
        keys: |k| {
            k.llama()?;
            k.text("rope.scaling.type", "none");
            k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
            k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
            k.float("expert_weights_scale", 1.0);
            k.needed_size("expert_count", "n_routed_experts")?;
            k.needed_size("expert_shared_count", "n_shared_experts")
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "bailingmoe",
        classes: &["BailingMoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp ffn_down_exps ffn_down_shexp rope_freqs",
        changes: &[(
            "output.weight",
            Change::View(|h, s| match h.flag("norm_head") {
                true => Ok(View::same(s.shape).with(ValueMap::UnitColumns(Default::default()))),
                false => Ok(View::same(s.shape)),
            }),
        )],
        names: &[("model.layers.{}.attention.dense", "blk.{}.attn_output")],
        splits: &[(
            "attention.query_key_value.weight",
            &[
                ("attn_q.weight", Change::View(|h, s| fused_pairs(h, s, 0))),
                ("attn_k.weight", Change::View(|h, s| fused_pairs(h, s, 1))),
                ("attn_v.weight", Change::View(|h, s| fused_rows(h, s, 2))),
            ],
        )],
        keys: |k| {
            k.llama()?;
            k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
            k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
            k.float("expert_weights_scale", 1.0);
            k.needed_size("expert_shared_count", "num_shared_experts")?;
            k.stated_flag("expert_weights_norm", "norm_topk_prob");
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "grovemoe",
        classes: &["GroveMoeForCausalLM", "modeling_grove_moe.GroveMoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        names: &[
            ("model.layers.{}.mlp.chunk.experts.up_proj", "blk.{}.ffn_up_chexps"),
            ("model.layers.{}.mlp.chunk.experts.gate_proj", "blk.{}.ffn_gate_chexps"),
            ("model.layers.{}.mlp.chunk.experts.down_proj", "blk.{}.ffn_down_chexps"),
        ],
        rename: |_, name| match name.ends_with(".expert_bias") {
            true => Named::Drop("the model itself does not use it"),
            false => super::renamed(name, ".chunk_experts.", ".chunk.experts."),
        },
        keys: |k| {
            // All but the widths is fixed in the model's code.
            k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
            k.size("expert_chunk_feed_forward_length", k.h.size("head_dim")?.unwrap_or(128))?;
            k.size("experts_per_group", 2)?;
            k.float("expert_group_scale", 0.05);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "maple",
        classes: &["MapleForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp ffn_up_exps \
            ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        keys: |k| {
            k.needed_size("vocab_size", "vocab_size")?;
            k.partial_rotary(1.0)?;
            k.windows_by_type()?;
            k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
            k.floats("swiglu_clamp_exp", vec![7.0; k.blocks]);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "smallthinker",
        classes: &["SmallThinkerForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps",
        keys: |k| {
            let h = k.h;
            k.stated_size("expert_count", &["moe_num_primary_experts"])?;
            k.stated_size("expert_used_count", &["moe_num_active_primary_experts"])?;
            k.stated_size("expert_feed_forward_length", &["moe_ffn_hidden_size"])?;
            k.stated_size("feed_forward_length", &["moe_ffn_hidden_size"])?;
            let softmax = h.flag("moe_primary_router_apply_softmax");
            k.gating(if softmax { Gating::Softmax } else { Gating::Sigmoid });
            let slides = h.list("sliding_window_layout").is_some_and(|layers| layers.iter().any(|on| *on != 0));
            match h.size("sliding_window_size")?.filter(|window| slides && *window > 0) {
                Some(window) => k.size("attention.sliding_window", window),
                None => Ok(()),
            }
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "arctic",
        classes: &["ArcticForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps rope_freqs",
        names: &[
            ("model.layers.{}.residual_layernorm", "blk.{}.ffn_norm"),
            ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm_exps"),
        ],
        changes: PAIRS,
        keys: |k| {
            k.needed_size("vocab_size", "vocab_size")?;
            k.size("rope.dimension_count", k.h.hidden()? / k.h.heads()?)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "grok",
        classes: &["GrokForCausalLM", "Grok1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_output_norm \
            attn_rot_embd ffn_norm post_ffw_norm ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down \
            ffn_down_exps rope_freqs layer_output_norm",
        names: &[
            ("transformer.decoder_layer.{}.moe.experts.linear", "blk.{}.ffn_gate_exps"),
            ("transformer.decoder_layer.{}.moe.experts.linear_1", "blk.{}.ffn_down_exps"),
            ("transformer.decoder_layer.{}.moe.experts.linear_v", "blk.{}.ffn_up_exps"),
        ],
        rename: |_, name| super::renamed(name, ".moe.", ".moe.experts."),
        keys: grok,
        ..PLAIN
    },
    Blueprint {
        gguf: "dbrx",
        classes: &["DbrxForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output attn_output_norm ffn_gate_inp ffn_up_exps \
            ffn_gate_exps ffn_down_exps",
        names: &[
            ("transformer.blocks.{}.ffn.experts.mlp.w1", "blk.{}.ffn_gate_exps.weight"),
            ("transformer.blocks.{}.ffn.experts.mlp.v1", "blk.{}.ffn_up_exps.weight"),
            ("transformer.blocks.{}.ffn.experts.mlp.w2", "blk.{}.ffn_down_exps.weight"),
        ],
        changes: &[
            ("ffn_gate_exps.weight", Change::View(dbrx_experts)),
            ("ffn_up_exps.weight", Change::View(dbrx_experts)),
            ("ffn_down_exps.weight", Change::View(dbrx_turned_experts)),
        ],
        base: false,
        keys: dbrx,
        ..PLAIN
    },
];

/// Rows of queries (0) or keys (1) of a fused matrix, in pairs.
fn fused_pairs(h: &Hparams, s: &Stored, part: usize) -> Result<View> {
    let (head, heads, kv) = (h.head_dim()?, h.heads()?, h.kv_heads()?);
    fused_rows(h, s, part)?;
    let (start, n) = if part == 0 { (0, heads) } else { (heads * head, kv) };
    let rows = range(start, start + n * head);
    Ok(View::rows(s, pairs(rows.len(), n).into_iter().map(|row| rows[row as usize]).collect()))
}

fn minimax3(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.needed_size("expert_feed_forward_length", "intermediate_size")?;
    k.needed_size("rope.dimension_count", "rotary_dim")?;
    k.needed_size("expert_shared_count", "n_shared_experts")?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    k.flag("expert_weights_norm", true);
    let sparse = h.get("sparse_attention_config").cloned().unwrap_or_default();
    for (key, from) in [
        ("head_count", "sparse_num_index_heads"),
        ("key_length", "sparse_index_dim"),
        ("top_k", "sparse_topk_blocks"),
        ("block_size", "sparse_block_size"),
        ("local_blocks", "sparse_local_block"),
    ] {
        let number = sparse.get(from).and_then(|v| v.as_u64());
        let number = number.ok_or_else(|| crate::model::hf_json::missing(from))?;
        k.size(&format!("attention.indexer.{key}"), number as usize)?;
    }
    let dense = h.list("moe_layer_freq").map_or(0, |layers| layers.iter().take_while(|on| **on == 0).count());
    k.size("leading_dense_block_count", dense)
}

fn grok(k: &mut Keys) -> Result<()> {
    let h = k.h;
    for (key, from) in
        [("attn_logit_softcapping", "attn_logit_softcapping"), ("router_logit_softcapping", "router_logit_softcapping")]
    {
        k.float(key, h.float(from)?.unwrap_or(30.0));
    }
    if let Some(cap) = h.float("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        k.float("final_logit_softcapping", cap);
    }
    k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
    if h.str("model_type") == Some("git") {
        // What transformers fills in for another model that has this name.
        k.float("attention.layer_norm_epsilon", h.float("layer_norm_eps")?.unwrap_or(1e-12));
    }
    // Both names mean the same scaling.
    if matches!(h.str("rope_type"), Some("yarn" | "original")) {
        k.text("rope.scaling.type", "yarn");
        k.needed_size("rope.scaling.original_context_length", "original_max_position_embeddings")?;
        for (key, from) in [
            ("factor", "scaling_factor"),
            ("yarn_ext_factor", "extrapolation_factor"),
            ("yarn_attn_factor", "attn_factor"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ] {
            k.stated_float(&format!("rope.scaling.{key}"), from)?;
        }
    }
    if let Some(length) = h.size("attn_temperature_len")?.filter(|n| *n > 0) {
        k.size("attention.temperature_length", length)?;
    }
    let scale = (h.head_dim()? as f64).powf(-0.5) as f32;
    k.float("attention.output_scale", h.float("attn_output_multiplier")?.unwrap_or(scale));
    k.stated_float("embedding_scale", "embedding_multiplier_scale")?;
    k.stated_float("logit_scale", "output_multiplier_scale")
}

/// `[experts * ffn, hidden]` as `[experts, ffn, hidden]`.
fn dbrx_experts(h: &Hparams, s: &Stored) -> Result<View> {
    let [experts, width] = dbrx_sizes(h);
    Ok(View::same(s.shape).shaped(vec![experts, width, s.shape[1]]))
}

/// The same, every expert turned.
fn dbrx_turned_experts(h: &Hparams, s: &Stored) -> Result<View> {
    let [experts, width] = dbrx_sizes(h);
    let gather = Gather { matrices: experts, stored: [width, s.shape[1]], turned: true, rows: None, cols: None };
    Ok(View::gathered(&[experts, s.shape[1], width], gather))
}

fn dbrx_sizes(h: &Hparams) -> [usize; 2] {
    ["moe_num_experts", "ffn_hidden_size"]
        .map(|key| h.get("ffn_config").and_then(|c| c.get(key).and_then(plausible)).unwrap_or(0))
}

fn dbrx(k: &mut Keys) -> Result<()> {
    let (attention, ffn) = (k.h.get("attn_config").cloned(), k.h.get("ffn_config").cloned());
    let number = |table: &Option<serde_json::Value>, key: &str| table.as_ref().and_then(|t| t.get(key)?.as_f64());
    k.size("block_count", k.blocks)?;
    k.needed_size("context_length", "max_seq_len")?;
    k.needed_size("embedding_length", "d_model")?;
    k.size("feed_forward_length", number(&ffn, "ffn_hidden_size").unwrap_or(0.0) as usize)?;
    k.needed_size("attention.head_count", "n_heads")?;
    k.size("attention.head_count_kv", number(&attention, "kv_n_heads").unwrap_or(1.0) as usize)?;
    k.float("rope.freq_base", number(&attention, "rope_theta").unwrap_or(10_000.0) as f32);
    if let Some(clip) = number(&attention, "clip_qkv") {
        k.float("attention.clamp_kqv", clip as f32);
    }
    k.size("expert_count", number(&ffn, "moe_num_experts").unwrap_or(0.0) as usize)?;
    k.size("expert_used_count", number(&ffn, "moe_top_k").unwrap_or(0.0) as usize)?;
    k.float("attention.layer_norm_epsilon", 1e-5);
    k.file_type();
    Ok(())
}
