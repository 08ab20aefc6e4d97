//! Linear attention beside latent attention, hyper-connections, and what came with them: Kimi Linear, Ling 3, MiniMax-01,
//! GLM 5.3, Hunyuan 4, dots 3, Muse Glimmer.

use super::super::base::Gating;
use super::super::hparams::plausible;
use super::super::view::{Stored, View, pairs};
use super::deepseek::{KV_B, LATENT, indexer, latent, latent_parts};
use super::{Blueprint, Change, HALVES, Hparams, Keys, Named, PLAIN, nextn};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::source_names::TOWER;
use crate::model::tensor::{Generated, ValueMap};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "kimi-linear",
        classes: &["KimiLinearForCausalLM", "KimiLinearModel"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp ssm_dt ssm_a ssm_norm ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v \
            ssm_f_a ssm_f_b ssm_beta ssm_g_a ssm_g_b attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b \
            attn_q_a_norm attn_kv_a_norm",
        names: &[
            ("model.layers.{}.self_attn.dt_bias", "blk.{}.ssm_dt.bias"),
            ("model.layers.{}.block_sparse_moe.experts.w1", "blk.{}.ffn_gate_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w2", "blk.{}.ffn_down_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w3", "blk.{}.ffn_up_exps"),
        ],
        changes: &[
            ("ssm_conv1d_q.weight", Change::View(conv)),
            ("ssm_conv1d_k.weight", Change::View(conv)),
            ("ssm_conv1d_v.weight", Change::View(conv)),
            ("ssm_a", Change::NegExp),
        ],
        splits: &[("kv_b_proj.weight", KV_B)],
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: kimi,
        ..PLAIN
    },
    Blueprint {
        gguf: "kimi-k3",
        classes: &["KimiK3ForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output attn_gate ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp ssm_dt ssm_a ssm_norm ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v ssm_f_a ssm_f_b \
            ssm_beta ffn_routed_down ffn_routed_up ffn_routed_norm attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b \
            attn_v_b attn_q_a_norm attn_kv_a_norm",
        names: &[
            ("model.layers.{}.self_attn.dt_bias", "blk.{}.ssm_dt.bias"),
            ("model.layers.{}.block_sparse_moe.experts.w1", "blk.{}.ffn_gate_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w2", "blk.{}.ffn_down_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w3", "blk.{}.ffn_up_exps"),
            ("model.layers.{}.self_attn.full_g_proj", "blk.{}.attn_gate"),
            ("model.layers.{}.self_attn.g_proj", "blk.{}.ssm_g"),
            ("model.layers.{}.experts.self_attention_res", "blk.{}.attn_res_score"),
            ("model.layers.{}.experts.mlp_res", "blk.{}.ffn_res_score"),
            ("model.experts.output_attn_res", "output_res_score"),
        ],
        rename: |h, name| {
            if name.starts_with("mm_projector.") {
                return Named::Drop(TOWER);
            }
            // Norm and projection of a residual become one vector: two parts, as experts are.
            let residual = name.strip_suffix(".weight").and_then(|stem| {
                let (stem, part) =
                    stem.strip_suffix("_norm").map(|s| (s, 0)).or(stem.strip_suffix("_proj").map(|s| (s, 1)))?;
                let (before, last) = stem.rsplit_once('.').filter(|(_, last)| last.ends_with("_res"))?;
                Some(format!("{before}.experts.{part}.{last}.weight"))
            });
            let full = super::layer_of(name).is_some_and(|layer| attends_fully(h, layer));
            match residual {
                Some(name) => Named::Keep(name),
                None if full => super::renamed(name, ".self_attn.g_proj.", ".self_attn.full_g_proj."),
                None => Named::Keep(name.into()),
            }
        },
        changes: &[
            ("ssm_conv1d_q.weight", Change::View(conv)),
            ("ssm_conv1d_k.weight", Change::View(conv)),
            ("ssm_conv1d_v.weight", Change::View(conv)),
            ("ssm_a", Change::View(|_, s| Ok(View::same(&[s.shape.iter().product()]).with(ValueMap::NegExp)))),
            ("attn_res_score.weight", PRODUCT),
            ("ffn_res_score.weight", PRODUCT),
            ("output_res_score.weight", PRODUCT),
        ],
        splits: &[("kv_b_proj.weight", KV_B)],
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: kimi3,
        ..PLAIN
    },
    Blueprint { classes: &["BailingMoeV3ForCausalLM"], ..LING },
    Blueprint {
        classes: &["BailingMoeV3VLForConditionalGeneration"],
        rename: |h, name| match name.starts_with("linear_proj") {
            true => Named::Drop(TOWER),
            false => (LING.rename)(h, name),
        },
        keys: |k| {
            ling(k)?;
            let sections = k.h.list("mrope_section").into_iter().flatten().filter_map(|v| v.as_u64());
            let mut sections: Vec<usize> = sections.take(3).map(|n| n as usize).collect();
            sections.resize(4, 0);
            k.sizes("rope.dimension_sections", &sections);
            Ok(())
        },
        ..LING
    },
    Blueprint {
        gguf: "minimax-01",
        classes: &["MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_norm_2 attn_qkv attn_q attn_k attn_v attn_output \
            attn_gate ffn_norm ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps",
        names: &[
            ("model.layers.{}.block_sparse_moe.experts.w1", "blk.{}.ffn_gate_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w2", "blk.{}.ffn_down_exps"),
            ("model.layers.{}.block_sparse_moe.experts.w3", "blk.{}.ffn_up_exps"),
        ],
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.stated_float("residual_scale", "layernorm_full_attention_alpha")?;
            k.needed_size("rope.dimension_count", "rotary_dim")
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "glm5-next",
        classes: &["Glm5NextForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp ssm_dt ssm_a ssm_norm ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v ssm_f_a \
            ssm_f_b ssm_beta ssm_g_a ssm_g_b attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b \
            attn_q_a_norm attn_kv_a_norm indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b \
            indexer_compressor_gate indexer_compressor_ape hc_attn_fn hc_attn_base hc_attn_scale hc_ffn_fn \
            hc_ffn_base hc_ffn_scale nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm \
            nextn.shared_head_head nextn.shared_head_norm",
        names: &[("model.layers.{}.self_attn.dt_bias", "blk.{}.ssm_dt.bias")],
        rename: |h, name| {
            const BARE: [&str; 8] = [
                "hc_attn_fn",
                "hc_attn_base",
                "hc_attn_scale",
                "hc_ffn_fn",
                "hc_ffn_base",
                "hc_ffn_scale",
                "index_kpool_compress_ape",
                "index_kpool_compress_gate",
            ];

            match BARE.iter().any(|end| name.ends_with(end)) {
                true => Named::Keep(format!("{name}.weight")),
                false => super::dense::without_tied_head(h, name),
            }
        },
        changes: &[
            ("ssm_conv1d_q.weight", Change::View(conv)),
            ("ssm_conv1d_k.weight", Change::View(conv)),
            ("ssm_conv1d_v.weight", Change::View(conv)),
            ("ssm_a", Change::View(|_, s| Ok(View::same(&[s.shape.iter().product()]).with(ValueMap::NegExp)))),
        ],
        splits: &[("kv_b_proj.weight", KV_B)],
        without: &["head_dim"],
        more_blocks: nextn,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: glm5_next,
        tokenizer: super::glm::MIXTURE_TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "hy_v4",
        classes: &["HYV4ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_output attn_sinks attn_gate ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp rope_freqs attn_q_a attn_q_b attn_kv_a_mqa attn_k_b attn_v_b \
            attn_q_a_norm attn_kv_a_norm indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b hc_attn_fn \
            hc_attn_base hc_attn_scale hc_ffn_fn hc_ffn_base hc_ffn_scale output_hc_fn output_hc_base \
            output_hc_scale",
        rename: |_, name| {
            if name.starts_with("model.mtp_layers.") {
                return Named::Drop(super::WITHOUT_MTP);
            }
            super::with_suffix(
                name,
                &[
                    ("mlp.experts.down_proj", ".weight"),
                    ("learnable_sink_param", ".weight"),
                    ("hc_fn", ".weight"),
                    ("hc_base", ".weight"),
                    ("hc_scale", ".weight"),
                    ("hc_head_fn", ".weight"),
                    ("hc_head_base", ".weight"),
                    ("hc_head_scale", ".weight"),
                ],
            )
        },
        splits: &[("kv_b_proj.weight", KV_B), ("mlp.experts.gate_up_proj", HALVES)],
        without: &["n_group", "topk_group"],
        keys: hunyuan4,
        ..LATENT
    },
    Blueprint {
        gguf: "dots3note",
        classes: &["Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration", "Dots3NoteTextForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_output attn_gate ffn_norm ffn_gate_inp exp_probs_b ffn_up \
            ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down ffn_down_exps ffn_down_shexp \
            attn_k_norm attn_q_a attn_q_b attn_kv_a_mqa attn_k_b attn_v_b attn_q_a_norm attn_kv_a_norm \
            indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b nextn.eh_proj nextn.embed_tokens \
            nextn.enorm nextn.hnorm nextn.shared_head_norm",
        rename: |h, name| match name {
            "model.mtp.embed_tokens.weight" => {
                Named::Keep(format!("model.layers.{}.embed_tokens.weight", h.blocks().unwrap_or(0)))
            }
            name => Named::Keep(name.into()),
        },
        changes: &[
            ("attn_q_a_norm.weight", Change::View(|h, s| rescaled(h, s, h.need("q_lora_rank")?))),
            ("attn_kv_a_norm.weight", Change::View(|h, s| rescaled(h, s, s.shape[0]))),
        ],
        splits: &[(
            "kv_b_proj.weight",
            &[
                ("attn_k_b.weight", Change::View(|h, s| Ok(dots_parts(h, s)?.0))),
                ("attn_v_b.weight", Change::View(|h, s| Ok(dots_parts(h, s)?.1))),
            ],
        )],
        without: &["head_dim"],
        more_blocks: |_, names| {
            usize::from(names.filter(|n| n.ends_with(".embed_tokens.weight")).any(|n| n.contains(".layers.")))
        },
        keys: dots3,
        tokenizer: TokenizerFacts { named: &[("eot", "<|endofassistant|>")], ..PLAIN_TOKENIZER },
        ..LATENT
    },
    Blueprint {
        gguf: "muse-glimmer",
        classes: &["MuseGlimmerForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_norm+pre post_ffw_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm",
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("post_attention_norm.weight", Change::PlusOne),
            ("ffn_norm.weight", Change::PlusOne),
            ("post_ffw_norm.weight", Change::PlusOne),
            ("attn_q.weight", Change::View(|h, s| Ok(View::rows(s, pairs(s.shape[0], h.heads()?))))),
            ("attn_k.weight", Change::View(|h, s| Ok(View::rows(s, pairs(s.shape[0], h.kv_heads()?))))),
        ],
        generated: scaled_head_norms,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.stated_float("final_logit_softcapping", "final_logit_softcapping")?;
            k.stated_float("logit_scale", "output_multiplier")?;
            k.windows_by_type()
        },
        tokenizer: TokenizerFacts { named: &[("eot", "<|eot|>")], ..PLAIN_TOKENIZER },
        ..PLAIN
    },
];

const LING: Blueprint = Blueprint {
    gguf: "bailingmoe3",
    tensors: "token_embd output output_norm attn_norm attn_q attn_k attn_v attn_output attn_gate ffn_norm \
            ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp \
            ffn_down ffn_down_exps ffn_down_shexp layer_output_norm ssm_dt ssm_a ssm_norm ssm_conv1d_q \
            ssm_conv1d_k ssm_conv1d_v ssm_f_a ssm_beta ssm_g_a attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b \
            attn_v_b attn_q_a_norm attn_kv_a_norm nextn.eh_proj nextn.enorm nextn.hnorm",
    names: &[("model.layers.{}.attention.dt_bias", "blk.{}.ssm_dt.bias")],
    rename: |h, name| {
        let full = super::layer_of(name).is_some_and(|layer| attends(h, layer));
        let name = match full {
            true => name.replace(".attention.g_proj.", ".attention.full_g_proj."),
            false => name.to_string(),
        };
        super::with_suffix(&name, &[(".expert_bias", ".bias")])
    },
    changes: &[
        ("ssm_conv1d_q.weight", Change::View(conv)),
        ("ssm_conv1d_k.weight", Change::View(conv)),
        ("ssm_conv1d_v.weight", Change::View(conv)),
        ("ssm_a", Change::View(|_, s| Ok(View::same(&[s.shape.iter().product(), 1]).with(ValueMap::Exp)))),
    ],
    splits: &[
        ("kv_b_proj.weight", KV_B),
        ("attention.full_g_proj.weight", &[("attn_gate.weight", Change::Same)]),
        ("attention.g_proj.weight", &[("ssm_g_a.weight", Change::Same)]),
        ("attention.f_proj.weight", &[("ssm_f_a.weight", Change::Same)]),
    ],
    more_blocks: nextn,
    defaults: r#"{"rms_norm_eps": 1e-6}"#,
    keys: ling,
    ..PLAIN
};

/// `[inner, kernel]`, with or without a dimension of 1 between, as `[1, inner, 1, kernel]`.
fn conv(_: &Hparams, s: &Stored) -> Result<View> {
    Ok(View::same(&[1, s.shape[0], 1, s.shape.last().copied().unwrap_or(1)]))
}

const PRODUCT: Change = Change::View(|_, s| {
    let width = s.shape[s.shape.len() - 1];
    Ok(View::same(&[width]).with(ValueMap::Product).without(width))
});

/// Whether a block of Kimi attends; they are counted from 1.
fn attends_fully(h: &Hparams, layer: usize) -> bool {
    let full = h.get("linear_attn_config").and_then(|linear| linear.get("full_attn_layers")?.as_array());
    full.is_some_and(|full| full.iter().any(|v| v.as_u64() == Some(layer as u64 + 1)))
}

/// The third Kimi: latent experts, gates on all attention, and residuals that are chosen among.
fn kimi3(k: &mut Keys) -> Result<()> {
    kimi(k)?;
    let h = k.h;
    let linear = h.get("linear_attn_config").cloned().unwrap_or_default();
    if let Some(bound) = linear.get("gate_lower_bound").and_then(|v| v.as_f64()) {
        k.float("kda.gate_lower_bound", bound as f32);
    }
    let (rank, rotary) = (h.need("kv_lora_rank")?, h.need("qk_rope_head_dim")?);
    k.head_lengths(rank + rotary, rank)?;
    k.stated_flag("expert_weights_norm", "moe_renormalize");
    k.gating(Gating::Sigmoid);
    k.stated_size("expert_latent_length", &["routed_expert_hidden_size"])?;
    k.stated_float("activation.situ_beta", "activation_situ_beta")?;
    k.stated_float("activation.situ_linear_beta", "activation_situ_linear_beta")?;
    k.needed_size("attn_res.block_size", "attn_res_block_size")
}

fn kimi(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.needed_size("vocab_size", "vocab_size")?;
    let linear = h.get("linear_attn_config").cloned().unwrap_or_default();
    let number = |key: &str| linear.get(key).and_then(plausible);
    let heads: Vec<usize> = (0..h.blocks()?).map(|layer| usize::from(attends_fully(h, layer))).collect();
    k.sizes("attention.head_count_kv", &heads);
    if let Some(n) = number("short_conv_kernel_size") {
        k.size("ssm.conv_kernel", n)?;
    }
    if let Some(n) = number("head_dim") {
        k.size("kda.head_dim", n)?;
    }
    latent_heads(k)?;
    k.needed_size("expert_shared_count", "num_shared_experts")?;
    k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")
}

/// Latent attention in every so many blocks, and the width of an expert.
fn latent_heads(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.stated_size("attention.q_lora_rank", &["q_lora_rank"])?;
    let (rank, rotary) = (h.need("kv_lora_rank")?, h.need("qk_rope_head_dim")?);
    k.size("attention.kv_lora_rank", rank)?;
    k.size("rope.dimension_count", rotary)?;
    k.size("attention.key_length", rank + rotary)?;
    k.size("attention.key_length_mla", h.need("qk_nope_head_dim")? + rotary)?;
    k.needed_size("attention.value_length_mla", "v_head_dim")?;
    k.needed_size("expert_feed_forward_length", "moe_intermediate_size")
}

/// Whether a block of Ling 3 attends: the last of each group, and those that fill none.
fn attends(h: &Hparams, layer: usize) -> bool {
    let (blocks, group) = (h.blocks().unwrap_or(0), h.size("layer_group_size").ok().flatten().unwrap_or(1).max(1));
    layer >= blocks || (layer + 1).is_multiple_of(group) || layer >= blocks / group * group
}

fn ling(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let heads: Vec<usize> = (0..k.blocks).map(|layer| usize::from(attends(h, layer))).collect();
    k.sizes("attention.head_count_kv", &heads);
    k.needed_size("vocab_size", "vocab_size")?;
    k.needed_size("ssm.conv_kernel", "short_conv_kernel_size")?;
    k.needed_size("kda.head_dim", "head_dim")?;
    k.stated_flag("kda.safe_gate", "kda_safe_gate");
    k.stated_float("kda.gate_lower_bound", "kda_lower_bound")?;
    latent_heads(k)?;
    k.needed_size("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size")?;
    k.size("expert_shared_count", h.size("num_shared_experts")?.unwrap_or(1))?;
    k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    k.stated_flag("expert_weights_norm", "norm_topk_prob");
    clamps(k, "swiglu_clamp_exp", "expert_swiglu_limit_list");
    clamps(k, "swiglu_clamp_shexp", "share_expert_swiglu_limit_list");
    more(k)
}

/// Limits of activations, one for each block.
fn clamps(k: &mut Keys, key: &str, from: &str) {
    let Some(list) = k.h.list(from) else { return };
    let mut limits: Vec<f32> = list.iter().map(|v| v.as_f64().unwrap_or(0.0) as f32).collect();
    limits.resize(k.blocks, 0.0);
    k.floats(key, limits);
}

fn more(k: &mut Keys) -> Result<()> {
    match nextn(k.h, &mut std::iter::empty()) {
        0 => Ok(()),
        n => k.size("nextn_predict_layers", n),
    }
}

fn full_indexers(k: &mut Keys) {
    if let Some(types) = k.h.list("indexer_types") {
        k.flags("attention.indexer.types", types.iter().map(|t| t == "full").collect());
    }
}

fn glm5_next(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let linear = h.layers_of_type("linear_attention").unwrap_or_default();
    let mut heads: Vec<usize> = linear.iter().map(|linear| usize::from(!linear)).collect();
    heads.resize(k.blocks, 1);
    k.sizes("attention.head_count_kv", &heads);
    k.needed_size("vocab_size", "vocab_size")?;
    k.float("attention.layer_norm_epsilon", 1e-6);
    more(k)?;
    let linear = h.get("linear_attn_config").cloned().unwrap_or_default();
    let number = |key: &str| linear.get(key).and_then(|v| v.as_f64());
    k.size("ssm.conv_kernel", number("short_conv_kernel_size").unwrap_or(4.0) as usize)?;
    k.size("kda.head_dim", number("head_dim").unwrap_or(128.0) as usize)?;
    if let Some(bound) = number("gate_lower_bound") {
        k.float("kda.gate_lower_bound", bound as f32);
    }
    let (rank, rotary) = (h.need("kv_lora_rank")?, h.need("qk_rope_head_dim")?);
    k.needed_size("attention.q_lora_rank", "q_lora_rank")?;
    k.size("attention.kv_lora_rank", rank)?;
    k.size("rope.dimension_count", rotary)?;
    k.head_lengths(rank + rotary, rank)?;
    k.size("attention.key_length_mla", h.need("qk_nope_head_dim")? + rotary)?;
    k.needed_size("attention.value_length_mla", "v_head_dim")?;
    indexer(k)?;
    k.needed_size("attention.indexer.kpool", "index_kpool")?;
    let tail = h.get("index_kpool_always_select_tail").and_then(|v| v.as_bool()).unwrap_or(true);
    k.flag("attention.indexer.kpool_select_tail", tail);
    full_indexers(k);
    k.needed_size("hyper_connection.count", "hc_mult")?;
    k.needed_size("hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters")?;
    k.stated_float("hyper_connection.epsilon", "hc_eps")?;
    k.needed_size("leading_dense_block_count", "first_k_dense_replace")?;
    k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
    k.needed_size("expert_shared_count", "n_shared_experts")?;
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    k.stated_flag("expert_weights_norm", "norm_topk_prob");
    if let Some(limit) = h.float("swiglu_limit")? {
        k.floats("swiglu_clamp_exp", vec![limit; k.blocks]);
        k.floats("swiglu_clamp_shexp", vec![limit; k.blocks]);
    }
    Ok(())
}

fn hunyuan4(k: &mut Keys) -> Result<()> {
    let h = k.h;
    latent(k)?;
    let dense = h.list("mlp_layer_types").map(|types| types.iter().take_while(|t| *t == "dense").count());
    if let Some(dense) = h.size("first_k_dense_replace")?.or(dense) {
        k.size("leading_dense_block_count", dense)?;
    }
    k.gating(Gating::Sigmoid);
    if let Some(limit) = h.float("swiglu_limit")?.filter(|limit| *limit > 0.0) {
        k.floats("swiglu_clamp_exp", vec![limit; k.blocks]);
    }
    k.needed_size("hyper_connection.count", "hc_mult")?;
    k.stated_float("hyper_connection.epsilon", "hc_eps")?;
    k.stated_float("hyper_connection.magnitude", "hc_magnitude")?;
    if h.get("index_n_heads").is_some() {
        indexer(k)?;
        full_indexers(k);
    }
    Ok(())
}

/// Whether a block of dots 3 sees a window; those behind the last do.
fn slides(h: &Hparams, layer: usize) -> bool {
    h.list("layer_types").and_then(|types| types.get(layer)).is_none_or(|t| t == "sliding_attention")
}

/// The rescaling of activations by the root of hidden size over rank goes to the norm before.
fn rescaled(h: &Hparams, s: &Stored, rank: usize) -> Result<View> {
    if !h.flag("apply_mla_qkv_lora_rescale") {
        return Ok(View::same(s.shape));
    }
    let factor = (h.hidden()? as f64 / rank.max(1) as f64).sqrt() as f32;
    Ok(View::same(s.shape).with(ValueMap::Times([factor, 1.0])))
}

fn dots_parts(h: &Hparams, s: &Stored) -> Result<(View, View)> {
    match slides(h, s.layer) {
        true => latent_parts(s, h.need("swa_qk_nope_head_dim")?, h.need("swa_v_head_dim")?),
        false => latent_parts(s, h.need("qk_nope_head_dim")?, h.need("v_head_dim")?),
    }
}

fn dots3(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let (full, local) = (h.heads()?, h.need("swa_num_attention_heads")?);
    latent(k)?;
    let heads: Vec<usize> = (0..k.blocks).map(|i| if slides(h, i) { local } else { full }).collect();
    k.sizes("attention.head_count", &heads);
    let windows: Vec<bool> = (0..h.blocks()?).map(|i| slides(h, i)).collect();
    let rank = h.need("swa_kv_lora_rank")?;
    k.needed_size("attention.sliding_window", "sliding_window_size")?;
    k.flags("attention.sliding_window_pattern", windows.clone());
    k.size("attention.kv_lora_rank_swa", rank)?;
    k.size("attention.key_length_swa", rank + h.need("swa_qk_rope_head_dim")?)?;
    k.size("attention.value_length_swa", rank)?;
    k.size("attention.key_length_mla_swa", h.need("swa_qk_nope_head_dim")? + h.need("swa_qk_rope_head_dim")?)?;
    k.needed_size("attention.value_length_mla_swa", "swa_v_head_dim")?;
    let more = k.blocks - h.blocks()?;
    if more > 0 {
        k.size("nextn_predict_layers", more)?;
    }
    indexer(k)?;
    k.flags("attention.indexer.types", windows.iter().map(|slides| !slides).collect());
    Ok(())
}

/// Norms of heads without weights and with one factor: weights that say so.
fn scaled_head_norms(h: &Hparams) -> Result<Vec<Generated>> {
    let (dims, scale) = (h.head_dim()?, h.float("qk_scale_factor")?.unwrap_or(1.0));
    let norm = |layer: usize, which: &str, value: f32| Generated {
        name: format!("blk.{layer}.attn_{which}_norm.weight"),
        shape: vec![dims],
        values: vec![value; dims],
    };
    Ok((0..h.blocks()?).flat_map(|layer| [norm(layer, "q", scale), norm(layer, "k", 1.0)]).collect())
}
