//! Mixtures of experts with ordinary attention.

use super::super::base::Gating;
use super::super::hparams::plausible;
use super::super::view::{Stored, View};
use super::shapes;
use super::{Blueprint, Change, HALVES, Hparams, Keys, Named, PAIRS, PLAIN, TURNED_HALVES, long_rope_factors, nextn};
use crate::model::tensor::ValueMap;
use crate::{Error, Result};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "afmoe",
        classes: &["AfmoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_norm+pre post_ffw_norm ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate \
            ffn_gate_exps ffn_gate_shexp ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm",
        rename: expert_bias,
        keys: |k| {
            k.llama()?;
            k.stated_size("expert_shared_count", &["num_shared_experts"])?;
            k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
            k.stated_size("leading_dense_block_count", &["num_dense_layers"])?;
            k.stated_flag("expert_weights_norm", "route_norm");
            k.stated_float("expert_weights_scale", "route_scale")?;
            k.stated_size("attention.sliding_window", &["sliding_window"])
        },
        defaults: r#"{"rms_norm_eps": 1e-5, "score_func": "sigmoid", "route_norm": true, "route_scale": 1.0}"#,
        ..PLAIN
    },
    Blueprint {
        gguf: "cohere2moe",
        classes: &["Cohere2MoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_gate_inp ffn_up \
            ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_gate_up_exps ffn_down ffn_down_exps \
            ffn_down_shexp nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head \
            nextn.shared_head_norm",
        rename: |_, name| match name.ends_with(".bias") {
            true => Named::Drop("a bias, which this architecture does not support"),
            false => Named::Keep(name.into()),
        },
        more_blocks: nextn,
        defaults: r#"{"layer_norm_eps": 1e-5}"#,
        keys: cohere2moe,
        ..PLAIN
    },
    Blueprint {
        gguf: "dots1",
        classes: &["Dots1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm",
        defaults: r#"{"rms_norm_eps": 1e-6}"#,
        keys: |k| {
            k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
            k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
            k.needed_size("expert_shared_count", "n_shared_experts")?;
            k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
            k.stated_flag("expert_weights_norm", "norm_topk_prob");
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "ernie4_5-moe",
        classes: &["Ernie4_5_MoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp",
        rename: |_, name| match ["mtp_block.", "mtp_emb_norm.", "mtp_hidden_norm.", "mtp_linear_proj."]
            .iter()
            .any(|mtp| name.contains(mtp))
        {
            true => Named::Drop(super::WITHOUT_MTP),
            false => super::renamed(name, "ernie.", "model."),
        },
        defaults: r#"{"rms_norm_eps": 1e-5, "moe_layer_interval": 1}"#,
        keys: |k| {
            let h = k.h;
            k.needed_size("expert_count", "moe_num_experts")?;
            k.needed_size("expert_used_count", "moe_k")?;
            k.needed_size("interleave_moe_layer_step", "moe_layer_interval")?;
            k.needed_size("leading_dense_block_count", "moe_layer_start_index")?;
            k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
            if let Some(shared) = h.size("moe_num_shared_experts")? {
                k.size("expert_shared_count", shared)?;
                if let (1.., Some(ffn), Some(kv)) =
                    (shared, h.size("intermediate_size")?, h.size("num_key_value_heads")?)
                {
                    k.size("expert_shared_feed_forward_length", ffn / kv.max(1))?;
                }
            }
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "exaone-moe",
        classes: &["ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm rope_freqs nextn.eh_proj \
            nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        more_blocks: nextn,
        generated: super::llama3_factors,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            let h = k.h;
            k.needed_size("vocab_size", "vocab_size")?;
            k.windows_by_type()?;
            let (width, shared) = (h.need("moe_intermediate_size")?, h.need("num_shared_experts")?);
            k.size("expert_feed_forward_length", width)?;
            k.size("expert_shared_count", shared)?;
            k.size("expert_shared_feed_forward_length", width * shared)?;
            k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
            k.stated_flag("expert_weights_norm", "norm_topk_prob");
            let dense = h.size_of(&["first_k_dense_replace", "first_last_k_dense_replace"])?;
            k.size("leading_dense_block_count", dense.unwrap_or(0))?;
            k.size("nextn_predict_layers", h.size("num_nextn_predict_layers")?.unwrap_or(0))?;
            k.text("rope.scaling.type", "none");
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "hunyuan-moe",
        classes: &["HunYuanMoEV1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp ffn_down_exps ffn_down_shexp \
            attn_q_norm attn_k_norm rope_freqs",
        rename: super::dense::without_tied_head,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.needed_size("expert_shared_feed_forward_length", "intermediate_size")?;
            for (key, from) in [
                ("expert_feed_forward_length", "moe_intermediate_size"),
                ("expert_used_count", "moe_topk"),
                ("expert_shared_count", "num_shared_expert"),
            ] {
                if let Some(n) = of_every_layer(k.h, from)? {
                    k.size(key, n)?;
                }
            }
            super::dense::alpha_scaled_rope(k)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "hy_v3",
        classes: &["HYV3ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm nextn.eh_proj nextn.embed_tokens nextn.enorm \
            nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        rename: |h, name| match super::layer_of(name).is_some_and(|l| h.blocks().is_ok_and(|n| l >= n)) {
            true => super::renamed(name, ".final_layernorm.", ".shared_head.norm."),
            false => Named::Keep(name.into()),
        },
        more_blocks: nextn,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            let h = k.h;
            let width = h.need("moe_intermediate_size")?;
            k.size("expert_feed_forward_length", width)?;
            k.size("expert_shared_feed_forward_length", width * h.size("num_shared_experts")?.unwrap_or(1))?;
            let norm = h.get("route_norm").and_then(|v| v.as_bool()).unwrap_or(true);
            k.flag("expert_weights_norm", norm);
            k.float("expert_weights_scale", h.float("router_scaling_factor")?.unwrap_or(1.0));
            k.gating(Gating::Sigmoid);
            match h.size("num_nextn_predict_layers")?.unwrap_or(0) {
                0 => Ok(()),
                n => k.size("nextn_predict_layers", n),
            }
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "laguna",
        classes: &["LagunaForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output attn_gate ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm",
        defaults: r#"{"rms_norm_eps": 1e-6}"#,
        keys: laguna,
        ..PLAIN
    },
    Blueprint {
        gguf: "mellum",
        classes: &["MellumForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        defaults: r#"{"rms_norm_eps": 1e-6}"#,
        keys: |k| {
            k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
            match k.h.get("use_sliding_window").and_then(|v| v.as_bool()) {
                Some(false) => Ok(()),
                _ => k.windows_by_type(),
            }
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "mimo2",
        classes: &["MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_sinks ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps \
            layer_output_norm nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head \
            nextn.shared_head_norm",
        names: &[("model.layers.{}.self_attn.attention_sink_bias", "blk.{}.attn_sinks.weight")],
        rename: |h, name| {
            let Some(rest) = name.strip_prefix("model.mtp.layers.") else { return Named::Keep(name.into()) };
            let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
            let layer = h.blocks().unwrap_or(0) + index.parse::<usize>().unwrap_or(0);
            Named::Keep(format!("model.layers.{layer}.{rest}"))
        },
        // Published with three, which the configuration does not say.
        more_blocks: |_, _| 3,
        keys: mimo,
        ..PLAIN
    },
    Blueprint {
        gguf: "minimax-m2",
        shapes: Some(shapes::minimax),
        classes: &["MiniMaxM2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        defaults: r#"{"rms_norm_eps": 1e-6, "scoring_func": "sigmoid"}"#,
        keys: |k| {
            k.needed_size("expert_feed_forward_length", "intermediate_size")?;
            match k.h.size("rotary_dim")? {
                Some(dims) => k.size("rope.dimension_count", dims),
                None => k.partial_rotary(1.0),
            }
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "olmoe",
        classes: &["OlmoeForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        defaults: r#"{"num_experts": 64, "num_experts_per_tok": 8}"#,
        keys: |k| {
            k.float("attention.layer_norm_rms_epsilon", 1e-5);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "phimoe",
        classes: &["PhiMoEForCausalLM", "PhimoeForCausalLM"],
        tensors: "token_embd output output_norm rope_factors_long rope_factors_short attn_norm attn_qkv attn_q attn_k \
            attn_v attn_output ffn_norm ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps",
        base: false,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        generated: long_rope_factors,
        keys: phimoe,
        tokenizer: super::dense::PHI_TOKENIZER,
        ..PLAIN
    },
    Blueprint { classes: &["BailingMoeV2ForCausalLM"], ..BAILING },
    Blueprint {
        classes: &["SarvamMoEForCausalLM", "modeling_sarvam_moe.SarvamMoEForCausalLM"],
        changes: &[("exp_probs_b.bias", Change::View(zero_mean))],
        keys: |k| {
            bailing(k)?;
            k.size("rope.dimension_count", k.h.head_dim()?)
        },
        ..BAILING
    },
    Blueprint {
        gguf: "llama4",
        classes: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_norm ffn_gate_inp ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp rope_freqs",
        names: &[("model.layers.{}.feed_forward.experts.down_proj", "blk.{}.ffn_down_exps.weight")],
        changes: &[("ffn_down_exps.weight", Change::Turned)],
        splits: &[("feed_forward.experts.gate_up_proj", TURNED_HALVES)],
        defaults: r#"{"rms_norm_eps": 1e-5, "interleave_moe_layer_step": 1}"#,
        generated: super::llama3_factors,
        keys: |k| {
            let h = k.h;
            k.stated_size("feed_forward_length", &["intermediate_size_mlp"])?;
            k.llama()?;
            k.needed_size("interleave_moe_layer_step", "interleave_moe_layer_step")?;
            k.needed_size("expert_feed_forward_length", "intermediate_size")?;
            if h.layers_of_type("full_attention").is_some_and(|full| full.iter().all(|full| *full)) {
                k.size("attention.sliding_window", 0)?;
            }
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "granitemoe",
        classes: &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp ffn_down_exps ffn_down_shexp",
        changes: PAIRS,
        splits: &[("block_sparse_moe.input_linear.weight", HALVES), ("shared_mlp.input_linear.weight", SHARED_HALVES)],
        defaults: GRANITE_DEFAULTS,
        keys: |k| {
            granite(k)?;
            k.stated_size("expert_shared_feed_forward_length", &["shared_intermediate_size"])
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "granite_swa",
        classes: &["GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output attn_sinks ffn_norm \
            ffn_gate_inp ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_up_exps ffn_down \
            ffn_down_exps ffn_down_shexp rope_freqs",
        names: &[
            ("model.layers.{}.block_sparse_moe.experts.gate_up_proj", "blk.{}.ffn_gate_up_exps.weight"),
            ("model.layers.{}.block_sparse_moe.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
            ("model.layers.{}.block_sparse_moe.input_linear", "blk.{}.ffn_gate_up_exps"),
            ("model.layers.{}.shared_mlp.input_linear", "blk.{}.ffn_up_shexp"),
            ("model.layers.{}.shared_mlp.output_linear", "blk.{}.ffn_down_shexp"),
        ],
        rename: |_, name| super::with_suffix(name, &[("sinks", ".weight")]),
        changes: PAIRS,
        defaults: GRANITE_DEFAULTS,
        keys: granite_swa,
        ..PLAIN
    },
    Blueprint {
        gguf: "step35",
        classes: &["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration", "StepVLForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_gate ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm rope_freqs nextn.eh_proj \
            nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        rename: |h, name| match super::layer_of(name).is_some_and(|l| h.blocks().is_ok_and(|n| l >= n)) {
            true => Named::Keep(name.replace(".transformer.", ".").replace("shared_head.output", "shared_head.head")),
            false => super::with_suffix(name, &[(".moe.router_bias", ".bias")]),
        },
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("ffn_norm.weight", Change::PlusOne),
            ("attn_q_norm.weight", Change::PlusOne),
            ("attn_k_norm.weight", Change::PlusOne),
            ("output_norm.weight", Change::PlusOne),
            ("nextn.enorm.weight", Change::PlusOne),
            ("nextn.hnorm.weight", Change::PlusOne),
            ("nextn.shared_head_norm.weight", Change::PlusOne),
        ],
        more_blocks: nextn,
        keys: step,
        ..PLAIN
    },
];

pub(super) const SHARED_HALVES: &[(&str, Change)] =
    &[("ffn_gate_shexp.weight", Change::Half(0)), ("ffn_up_shexp.weight", Change::Half(1))];

pub(super) const GRANITE_DEFAULTS: &str = r#"{"rms_norm_eps": 1e-6, "attention_multiplier": 1.0, "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0, "logits_scaling": 1.0}"#;

const BAILING: Blueprint = Blueprint {
    gguf: "bailingmoe2",
    tensors: "token_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_gate_inp exp_probs_b ffn_up \
        ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down ffn_down_exps ffn_down_shexp \
        attn_q_norm attn_k_norm layer_output_norm nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm \
        nextn.shared_head_head nextn.shared_head_norm",
    rename: expert_bias,
    more_blocks: nextn,
    keys: bailing,
    defaults: r#"{"rms_norm_eps": 1e-6}"#,
    ..PLAIN
};

/// Biases of the choice of experts that are not called so.
fn expert_bias(_: &Hparams, name: &str) -> Named {
    super::with_suffix(name, &[(".expert_bias", ".bias")])
}

/// A size that is one number, or the same in a list of all layers.
fn of_every_layer(h: &Hparams, key: &str) -> Result<Option<usize>> {
    let Some(list) = h.list(key) else { return h.size(key) };
    let first = list.first().and_then(|v| v.as_u64());
    match list.iter().all(|v| v.as_u64() == first) {
        true => Ok(first.map(|n| n as usize)),
        false => Err(Error::unsupported(format!(
            "config.json: {key} differs from layer to layer, which llama.cpp does not know"
        ))),
    }
}

fn cohere2moe(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let types = h.list("mlp_layer_types");
    let dense = match types {
        Some(types) => types.iter().take_while(|t| *t == "dense").count(),
        None => h.size("first_k_dense_replace")?.unwrap_or(0),
    };
    let width = h.need("intermediate_size")?;
    k.stated_float("logit_scale", "logit_scale")?;
    k.windows_by_type()?;
    k.needed_size("vocab_size", "vocab_size")?;
    k.size("expert_feed_forward_length", width)?;
    k.size("leading_dense_block_count", dense)?;
    k.flag("expert_weights_norm", h.flag("norm_topk_prob"));
    let shared = h.size("num_shared_experts")?.unwrap_or(0);
    if shared > 0 {
        k.size("expert_shared_count", shared)?;
        k.size("expert_shared_feed_forward_length", width * shared)?;
    }
    k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])?;
    k.size("rope.dimension_count", h.head_dim()?)?;
    k.text("rope.scaling.type", "none");
    Ok(())
}

fn laguna(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.needed_size("vocab_size", "vocab_size")?;
    let heads = match h.list("num_attention_heads_per_layer") {
        Some(list) => list.iter().map(|v| plausible(v).unwrap_or(0)).collect(),
        None => vec![h.heads()?; h.blocks()?],
    };
    k.sizes("attention.head_count", &heads);
    k.stated_size("attention.sliding_window", &["sliding_window"])?;
    k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
    k.needed_size("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    k.flag("expert_weights_norm", true);
    k.stated_float("expert_weights_scale", "moe_routed_scaling_factor")?;
    k.gating(Gating::Sigmoid);
    let types = h.list("mlp_layer_types").map_or(0, |types| types.iter().take_while(|t| *t == "dense").count());
    k.size("leading_dense_block_count", types)?;
    k.partial_rotary(1.0)?;
    if let Some(local) = h.local_rope() {
        let part = local.get("partial_rotary_factor").and_then(|v| v.as_f64()).unwrap_or(1.0);
        k.size("rope.dimension_count_swa", (h.head_dim()? as f64 * part) as usize)?;
    }
    Ok(())
}

fn mimo(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let hybrid = h.list("hybrid_layer_pattern").into_iter().flatten().map(|v| v.as_u64().unwrap_or(0) as usize);
    let hybrid: Vec<usize> = hybrid.chain([1; 3]).take(k.blocks).collect();
    let (full, local) = (h.need("num_key_value_heads")?, h.need("swa_num_key_value_heads")?);
    let heads: Vec<usize> = hybrid.iter().map(|slides| if *slides == 1 { local } else { full }).collect();
    k.sizes("attention.head_count_kv", &heads);
    k.needed_size("attention.sliding_window", "sliding_window")?;
    k.sizes("attention.sliding_window_pattern", &hybrid);
    k.needed_size("attention.value_length", "v_head_dim")?;
    k.needed_size("expert_count", "n_routed_experts")?;
    k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
    k.partial_rotary(1.0)?;
    k.float("attention.layer_norm_rms_epsilon", h.float("layernorm_epsilon")?.unwrap_or(1e-5));
    k.stated_float("attention.value_scale", "attention_value_scale")?;
    k.size("nextn_predict_layers", 3)
}

fn phimoe(k: &mut Keys) -> Result<()> {
    super::dense::phi3(k)?;
    k.needed_size("expert_used_count", "num_experts_per_tok")?;
    k.stated_size("expert_count", &["num_local_experts", "num_experts"])
}

fn bailing(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.partial_rotary(0.5)?;
    k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
    k.needed_size("vocab_size", "vocab_size")?;
    let (width, shared) = (h.need("moe_intermediate_size")?, h.need("num_shared_experts")?);
    k.size("expert_feed_forward_length", width)?;
    let all = h.size("moe_shared_expert_intermediate_size")?.unwrap_or(width * shared);
    k.size("expert_shared_feed_forward_length", all)?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    k.size("expert_shared_count", shared)?;
    k.stated_flag("expert_weights_norm", "norm_topk_prob");
    k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])
}

/// The mean over all experts is taken away.
fn zero_mean(_: &Hparams, s: &Stored) -> Result<View> {
    Ok(View::same(s.shape).with(ValueMap::ZeroMean))
}

/// Granite's multipliers, under GGUF's names.
pub(super) fn granite(k: &mut Keys) -> Result<()> {
    k.llama()?;
    for (key, from) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        k.stated_float(key, from)?;
    }
    Ok(())
}

fn granite_swa(k: &mut Keys) -> Result<()> {
    granite(k)?;
    let h = k.h;
    k.size("attention.sliding_window", h.size("sliding_window")?.unwrap_or(128))?;
    let usual = || (0..k.blocks).map(|i| i % 4 != 0).collect();
    let slides = h.layers_of_type("sliding_attention").unwrap_or_else(usual);
    k.flags("attention.sliding_window_pattern", slides);
    if let Some(list) = h.list("no_rope_layers") {
        k.flags(
            "attention.rope_pattern",
            list.iter().map(|v| v.as_u64() == Some(1) || v.as_bool() == Some(true)).collect(),
        );
    }
    k.stated_size("expert_shared_feed_forward_length", &["shared_intermediate_size"])
}

fn step(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let mut slides = h.layers_of_type("sliding_attention").unwrap_or_default();
    slides.resize(k.blocks, false);
    let other = h.get("attention_other_setting").cloned().unwrap_or_default();
    let own = |key: &str, base: usize| other.get(key).and_then(plausible).unwrap_or(base);
    let (heads, groups) = (h.need("num_attention_heads")?, h.need("num_attention_groups")?);
    let of = |base: usize, local: usize| slides.iter().map(|s| if *s { local } else { base }).collect::<Vec<_>>();
    k.sizes("attention.head_count", &of(heads, own("num_attention_heads", heads)));
    if let Some(thetas) = h.list("rope_theta") {
        for (key, theta) in ["rope.freq_base", "rope.freq_base_swa"].iter().zip(thetas) {
            k.float(key, theta.as_f64().unwrap_or(10_000.0) as f32);
        }
    }
    k.sizes("attention.head_count_kv", &of(groups, own("num_attention_groups", groups)));
    k.needed_size("attention.sliding_window", "sliding_window")?;
    k.flags("attention.sliding_window_pattern", slides.clone());
    k.size("attention.value_length", h.head_dim()?)?;
    k.needed_size("expert_count", "moe_num_experts")?;
    k.needed_size("expert_used_count", "moe_top_k")?;
    k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
    k.needed_size("expert_shared_feed_forward_length", "share_expert_dim")?;
    k.stated_float("expert_weights_scale", "moe_router_scaling_factor")?;
    k.stated_flag("expert_weights_norm", "norm_expert_weight");
    let first =
        h.str("moe_layers_enum").unwrap_or_default().split(',').filter_map(|n| n.trim().parse::<usize>().ok()).min();
    k.size("leading_dense_block_count", first.unwrap_or(0))?;
    k.size("moe_every_n_layers", h.size("moe_every_n_layer")?.unwrap_or(1))?;
    k.float("attention.layer_norm_rms_epsilon", h.float("rms_norm_eps")?.unwrap_or(1e-5));
    for (key, from) in [("swiglu_clamp_exp", "swiglu_limits"), ("swiglu_clamp_shexp", "swiglu_limits_shared")] {
        if let Some(list) = h.list(from) {
            let mut limits: Vec<f32> = list.iter().map(|v| v.as_f64().unwrap_or(0.0) as f32).collect();
            limits.resize(k.blocks, 0.0);
            k.floats(key, limits);
        }
    }
    match h.size("num_nextn_predict_layers")?.unwrap_or(0) {
        0 => Ok(()),
        n => k.size("nextn_predict_layers", n),
    }
}
