//! State-space models, short convolutions, and their hybrids with attention.

use super::super::base::Gating;
use super::super::hparams::plausible;
use super::super::view::{Stored, View};
use super::moe::{GRANITE_DEFAULTS, SHARED_HALVES, granite};
use super::{Blueprint, Change, HALVES, Hparams, Keys, Named, PLAIN};
use crate::Result;
use crate::model::tensor::ValueMap;

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "mamba",
        classes: &["MambaForCausalLM", "MambaLMHeadModel", "FalconMambaForCausalLM"],
        tensors: "token_embd output output_norm attn_norm ssm_in ssm_conv1d ssm_x ssm_dt ssm_a ssm_d ssm_out",
        changes: &[("ssm_a", Change::NegExp), ("ssm_conv1d.weight", Change::Squeeze)],
        base: false,
        keys: mamba,
        ..PLAIN
    },
    Blueprint {
        gguf: "mamba2",
        classes: &["Mamba2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm ssm_in ssm_conv1d ssm_dt ssm_a ssm_d ssm_norm ssm_out",
        names: &[("backbone.layers.{}.mixer.dt_bias", "blk.{}.ssm_dt.bias")],
        changes: MAMBA2,
        base: false,
        defaults: r#"{"layer_norm_epsilon": 1e-5}"#,
        keys: mamba2,
        ..PLAIN
    },
    Blueprint {
        gguf: "jamba",
        classes: &["JambaForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps ssm_in ssm_conv1d ssm_x \
            ssm_dt ssm_dt_norm ssm_a ssm_b_norm ssm_c_norm ssm_d ssm_out",
        rename: |h, name| {
            let name = name.replace(".moe.", ".feed_forward.");
            let every = |key: &str, default| h.size(key).ok().flatten().unwrap_or(default);
            let (offset, period) = (every("expert_layer_offset", 1), every("expert_layer_period", 2).max(1));
            let sparse = super::layer_of(&name).is_some_and(|l| l >= offset && (l - offset).is_multiple_of(period));
            let name = if sparse { name } else { name.replace(".experts.0.", ".") };
            Named::Keep(name.replace(".feed_forward.experts.", ".mlp.experts."))
        },
        changes: &[("ssm_a", Change::NegExp), ("ssm_conv1d.weight", Change::Squeeze)],
        base: false,
        keys: jamba,
        ..PLAIN
    },
    Blueprint {
        gguf: "falcon-h1",
        classes: &["FalconH1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm+pre ffn_up \
            ffn_gate ffn_down ssm_in ssm_conv1d ssm_dt ssm_a ssm_d ssm_norm ssm_out",
        names: &[("model.layers.{}.mamba.dt_bias", "blk.{}.ssm_dt.bias")],
        changes: &[
            ("ssm_a", Change::View(|h, s| Ok(column(h, s)?.with(ValueMap::NegExp)))),
            ("ssm_d", Change::Column),
            ("ssm_conv1d.weight", Change::Squeeze),
            ("ssm_norm.weight", Change::View(grouped)),
            ("ffn_down.weight", Change::View(|h, s| scaled(s, element(h, "mlp_multipliers", 1)))),
            ("ffn_gate.weight", Change::View(|h, s| scaled(s, element(h, "mlp_multipliers", 0)))),
            (
                "attn_k.weight",
                Change::View(|h, s| scaled2(s, h.float("key_multiplier")?, h.float("attention_in_multiplier")?)),
            ),
            ("attn_q.weight", Change::View(|h, s| scaled(s, h.float("attention_in_multiplier")?))),
            ("attn_v.weight", Change::View(|h, s| scaled(s, h.float("attention_in_multiplier")?))),
            ("attn_output.weight", Change::View(|h, s| scaled(s, h.float("attention_out_multiplier")?))),
            ("ssm_out.weight", Change::View(|h, s| scaled(s, h.float("ssm_out_multiplier")?))),
            ("output.weight", Change::View(|h, s| scaled(s, h.float("lm_head_multiplier")?))),
            ("token_embd.weight", Change::View(|h, s| scaled(s, h.float("embedding_multiplier")?))),
            ("ssm_in.weight", Change::View(in_projection)),
        ],
        base: false,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: falcon_h1,
        ..PLAIN
    },
    Blueprint {
        gguf: "granitehybrid",
        classes: &["GraniteMoeHybridForCausalLM", "BambaForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp ssm_in ssm_conv1d ssm_dt ssm_a ssm_d ssm_norm ssm_out",
        names: &[
            ("model.layers.{}.mamba.dt_bias", "blk.{}.ssm_dt.bias"),
            ("model.layers.{}.feed_forward.output_linear", "blk.{}.ffn_down"),
        ],
        changes: &[
            ("ssm_a", Change::View(|h, s| Ok(column(h, s)?.with(ValueMap::NegExp)))),
            ("ssm_d", Change::Column),
            ("ssm_conv1d.weight", Change::Squeeze),
            ("ssm_norm.weight", Change::View(grouped)),
            ("attn_q.weight", Change::QueryPairs),
            ("attn_k.weight", Change::KeyPairs),
        ],
        // Without experts the shared feed-forward block is all there is.
        rename: |h, name| match h.size("num_local_experts").ok().flatten().unwrap_or(0) {
            0 => Named::Keep(name.replace(".shared_mlp.", ".feed_forward.")),
            _ => Named::Keep(name.into()),
        },
        splits: &[
            ("block_sparse_moe.input_linear.weight", HALVES),
            ("shared_mlp.input_linear.weight", SHARED_HALVES),
            ("feed_forward.input_linear.weight", DENSE_HALVES),
        ],
        defaults: GRANITE_DEFAULTS,
        keys: granite_hybrid,
        ..PLAIN
    },
    Blueprint {
        gguf: "nemotron_h",
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_up ffn_down ssm_in \
        ssm_conv1d ssm_dt ssm_a ssm_d ssm_norm ssm_out",
        only: |json| !has_experts(json),
        ..NEMOTRON
    },
    Blueprint { gguf: "nemotron_h_moe", tensors: NEMOTRON_MIXTURE, only: has_experts, ..NEMOTRON },
    Blueprint {
        gguf: "nemotron_h_moe",
        classes: &["NemotronHPuzzleForCausalLM"],
        tensors: NEMOTRON_MIXTURE,
        rename: |h, name| match name {
            name if name.starts_with("mtp.") => Named::Drop(super::WITHOUT_MTP),
            name => match name.strip_prefix("model.") {
                Some(rest) => Named::Keep(format!("backbone.{rest}")),
                None => nemotron_names(h, name),
            },
        },
        more_blocks: super::none,
        keys: puzzle,
        ..NEMOTRON
    },
    Blueprint { classes: &["Lfm2ForCausalLM", "LFM2ForCausalLM"], ..LFM2 },
    Blueprint {
        classes: &["Lfm2Model", "Lfm2BidirectionalModel"],
        rename: |_, name| match name.starts_with("model.") {
            true => Named::Keep(name.into()),
            false => Named::Keep(format!("model.{name}")),
        },
        beside: &[("1_Dense", "dense_2.weight")],
        keys: |k| {
            if let Some(rows) = k.beside_shape("1_Dense")?.and_then(|shape| shape.first().copied()) {
                k.size("embedding_length_out", rows)?;
            }
            lfm2(k)?;
            if k.h.get("architectures").is_some_and(|a| a[0] == "Lfm2BidirectionalModel") {
                k.flag("attention.causal", false);
            }
            k.pooling()
        },
        ..LFM2
    },
    Blueprint {
        gguf: "lfm2moe",
        classes: &["Lfm2MoeForCausalLM"],
        tensors: "token_embd token_embd_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps attn_q_norm attn_k_norm \
            shortconv.conv shortconv.in_proj shortconv.out_proj",
        rename: |_, name| super::with_suffix(name, &[(".expert_bias", ".bias")]),
        names: &[
            ("model.layers.{}.feed_forward.experts.w1", "blk.{}.ffn_gate_exps"),
            ("model.layers.{}.feed_forward.experts.w2", "blk.{}.ffn_down_exps"),
            ("model.layers.{}.feed_forward.experts.w3", "blk.{}.ffn_up_exps"),
        ],
        changes: SHORT_CONVOLUTION,
        defaults: r#"{"norm_eps": 1e-5}"#,
        keys: |k| {
            attention_only(k, "conv")?;
            k.needed_size("expert_feed_forward_length", "moe_intermediate_size")?;
            k.needed_size("leading_dense_block_count", "num_dense_layers")?;
            k.gating(Gating::Sigmoid);
            k.needed_size("vocab_size", "vocab_size")?;
            k.needed_size("shortconv.l_cache", "conv_L_cache")
        },
        ..PLAIN
    },
];

const LFM2: Blueprint = Blueprint {
    gguf: "lfm2",
    tensors: "token_embd token_embd_norm output dense_2 attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
        ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm shortconv.conv shortconv.in_proj shortconv.out_proj",
    changes: SHORT_CONVOLUTION,
    defaults: r#"{"norm_eps": 1e-5}"#,
    keys: lfm2,
    ..PLAIN
};

const SHORT_CONVOLUTION: &[(&str, Change)] =
    &[("shortconv.conv.weight", Change::View(|_, s| Ok(View::same(&[s.shape[0], s.shape[s.shape.len() - 1]]))))];

const NEMOTRON_MIXTURE: &str = "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
        ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_latent_down ffn_latent_up ffn_down \
        ffn_down_exps ffn_down_shexp ssm_in ssm_conv1d ssm_dt ssm_a ssm_d ssm_norm ssm_out nextn.eh_proj \
        nextn.enorm nextn.hnorm nextn.shared_head_norm";

const DENSE_HALVES: &[(&str, Change)] = &[("ffn_gate.weight", Change::Half(0)), ("ffn_up.weight", Change::Half(1))];

const MAMBA2: &[(&str, Change)] = &[
    ("ssm_a", Change::View(|h, s| Ok(column(h, s)?.with(ValueMap::NegExp)))),
    ("ssm_d", Change::Column),
    ("ssm_conv1d.weight", Change::Squeeze),
    ("ssm_norm.weight", Change::View(grouped)),
];

const NEMOTRON: Blueprint = Blueprint {
    classes: &["NemotronHForCausalLM"],
    names: &[
        ("backbone.layers.{}.mixer.dt_bias", "blk.{}.ssm_dt.bias"),
        ("backbone.layers.{}.mixer.gate.e_score_correction", "blk.{}.exp_probs_b"),
        ("backbone.layers.{}.mixer.experts.up_proj", "blk.{}.ffn_up_exps"),
        ("backbone.layers.{}.mixer.experts.down_proj", "blk.{}.ffn_down_exps"),
    ],
    rename: nemotron_names,
    changes: &[
        ("ssm_a", Change::View(|h, s| Ok(column(h, s)?.with(ValueMap::NegExp)))),
        ("ssm_d", Change::Column),
        ("ssm_conv1d.weight", Change::Squeeze),
        ("ssm_norm.weight", Change::View(grouped)),
        ("attn_q.weight", Change::QueryPairs),
        ("attn_k.weight", Change::KeyPairs),
    ],
    defaults: r#"{"layer_norm_epsilon": 1e-5}"#,
    more_blocks: |h, _| match h.get("num_experts_per_tok") {
        Some(_) => usize::from(h.size("num_nextn_predict_layers").ok().flatten().unwrap_or(0) > 0),
        None => 0,
    },
    keys: nemotron,
    ..PLAIN
};

fn has_experts(json: &serde_json::Value) -> bool {
    json.get("num_experts_per_tok").is_some()
}

fn column(_: &Hparams, s: &Stored) -> Result<View> {
    Ok(View::same(&[s.shape, &[1]].concat()))
}

/// `[inner]` as `[groups, inner / groups]`.
fn grouped(h: &Hparams, s: &Stored) -> Result<View> {
    let groups = h.size_of(&["n_groups", "mamba_n_groups"])?.unwrap_or(1).max(1);
    Ok(View::same(&[groups, s.shape[0] / groups]))
}

fn scaled(s: &Stored, factor: Option<f32>) -> Result<View> {
    Ok(View::same(s.shape).with(ValueMap::Times([factor.unwrap_or(1.0), 1.0])))
}

fn scaled2(s: &Stored, first: Option<f32>, second: Option<f32>) -> Result<View> {
    Ok(View::same(s.shape).with(ValueMap::Times([first.unwrap_or(1.0), second.unwrap_or(1.0)])))
}

fn element(h: &Hparams, key: &str, index: usize) -> Option<f32> {
    h.list(key)?.get(index)?.as_f64().map(|x| x as f32)
}

/// Rows of gate, input, B, C and time steps, each with a factor of its own.
fn in_projection(h: &Hparams, s: &Stored) -> Result<View> {
    let inner = h.need("mamba_d_ssm")?;
    let state = h.need("mamba_n_groups")? * h.need("mamba_d_state")?;
    let all = h.float("ssm_in_multiplier")?.unwrap_or(1.0);
    let sizes = [inner, inner, state, state, s.shape[0].saturating_sub(2 * inner + 2 * state)];
    let factor = |part: usize| [all, element(h, "ssm_multipliers", part).unwrap_or(1.0)];
    let rows = sizes.iter().enumerate().flat_map(|(part, n)| std::iter::repeat_n(factor(part), *n));
    Ok(View::same(s.shape).with(ValueMap::RowTimes(rows.collect())))
}

fn mamba(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let width = h.size_of(&["hidden_size", "d_model"])?.unwrap_or(0);
    k.size("context_length", 1 << 20)?;
    k.size("embedding_length", width)?;
    k.size("feed_forward_length", 0)?;
    k.size("attention.head_count", 0)?;
    k.size("block_count", k.blocks)?;
    k.size("ssm.conv_kernel", h.size_of(&["conv_kernel", "d_conv"])?.unwrap_or(4))?;
    k.size("ssm.inner_size", h.size_of(&["intermediate_size", "d_inner"])?.unwrap_or(2 * width))?;
    k.size("ssm.state_size", h.size_of(&["state_size", "d_state"])?.unwrap_or(16))?;
    k.size("ssm.time_step_rank", h.size_of(&["time_step_rank", "dt_rank"])?.unwrap_or(width.div_ceil(16)))?;
    k.float("attention.layer_norm_rms_epsilon", h.float_of(&["layer_norm_epsilon", "rms_norm_eps"])?.unwrap_or(1e-5));
    k.flag("ssm.dt_b_c_rms", h.str("model_type") == Some("falcon_mamba"));
    k.file_type();
    Ok(())
}

/// A key of Mamba under the names that hybrids give it, too.
fn of_mamba(h: &Hparams, names: &[&str]) -> Result<Option<usize>> {
    let prefixed: Vec<String> = names.iter().map(|name| format!("mamba_{name}")).collect();
    let all: Vec<&str> = names.iter().copied().chain(prefixed.iter().map(String::as_str)).collect();
    h.size_of(&all)
}

fn mamba2(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let width = h.size_of(&["hidden_size", "d_model", "dim"])?.unwrap_or(0);
    let expand = h.size_of(&["mamba_expand", "expand"])?.unwrap_or(2);
    let inner = h.size_of(&["mamba_d_ssm", "intermediate_size", "d_inner"])?.unwrap_or(expand * width);
    let head = h.size_of(&["mamba_d_head", "head_dim"])?.unwrap_or(64).max(1);
    k.size("context_length", 1 << 20)?;
    k.size("embedding_length", width)?;
    k.size("feed_forward_length", 0)?;
    k.size("attention.head_count", 0)?;
    k.size("block_count", k.blocks)?;
    k.size("ssm.conv_kernel", of_mamba(h, &["conv_kernel", "d_conv"])?.unwrap_or(4))?;
    k.size("ssm.inner_size", inner)?;
    k.size("ssm.state_size", of_mamba(h, &["state_size", "d_state"])?.unwrap_or(128))?;
    k.size("ssm.time_step_rank", inner / head)?;
    k.size("ssm.group_count", of_mamba(h, &["n_groups"])?.unwrap_or(1))?;
    k.float("attention.layer_norm_rms_epsilon", h.float_of(&["layer_norm_epsilon", "rms_norm_eps"])?.unwrap_or(1e-5));
    k.file_type();
    Ok(())
}

fn falcon_h1(k: &mut Keys) -> Result<()> {
    mamba2(k)?;
    let h = k.h;
    k.needed_size("vocab_size", "vocab_size")?;
    k.size("context_length", h.size("max_position_embeddings")?.unwrap_or(0))?;
    k.needed_size("feed_forward_length", "intermediate_size")?;
    k.size("attention.head_count", h.heads()?)?;
    k.size("attention.head_count_kv", h.kv_heads()?)?;
    k.head_lengths(h.head_dim()?, h.head_dim()?)?;
    if let Some(theta) = h.rope_float("rope_theta") {
        k.float("rope.freq_base", theta);
    }
    Ok(())
}

fn jamba(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let width = h.size_of(&["hidden_size", "mamba_d_model"])?.unwrap_or(0);
    let (offset, period) =
        (h.size("attn_layer_offset")?.unwrap_or(4), h.size("attn_layer_period")?.unwrap_or(8).max(1));
    let kv = h.kv_heads()?;
    let attends = |i: usize| i >= offset && (i - offset).is_multiple_of(period);
    let heads: Vec<usize> = (0..k.blocks).map(|i| if attends(i) { kv } else { 0 }).collect();
    k.size("block_count", k.blocks)?;
    k.stated_size("context_length", &["max_position_embeddings", "n_ctx"])?;
    k.size("embedding_length", width)?;
    k.needed_size("feed_forward_length", "intermediate_size")?;
    k.size("attention.head_count", h.heads()?)?;
    k.sizes("attention.head_count_kv", &heads);
    k.size("ssm.conv_kernel", h.size("mamba_d_conv")?.unwrap_or(4))?;
    k.size("ssm.inner_size", h.size("mamba_expand")?.unwrap_or(2) * width)?;
    k.size("ssm.state_size", h.size("mamba_d_state")?.unwrap_or(16))?;
    k.size("ssm.time_step_rank", h.size("mamba_dt_rank")?.unwrap_or(width.div_ceil(16)))?;
    k.float("attention.layer_norm_rms_epsilon", h.float_of(&["layer_norm_epsilon", "rms_norm_eps"])?.unwrap_or(1e-6));
    k.stated_size("expert_count", &["num_local_experts", "num_experts"])?;
    k.stated_size("expert_used_count", &["num_experts_per_tok", "num_experts_per_token"])?;
    k.file_type();
    Ok(())
}

/// Whether each block attends, of Granite's hybrids and Bamba.
fn attends(h: &Hparams, blocks: usize) -> Result<Vec<bool>> {
    if let Some(types) = h.list("layer_types").or_else(|| h.list("layers_block_type")) {
        return Ok(types.iter().map(|t| t == "attention" || t == "full_attention").collect());
    }
    if let Some(indices) = h.list("attn_layer_indices") {
        return Ok((0..blocks as u64).map(|i| indices.iter().any(|v| v.as_u64() == Some(i))).collect());
    }
    let (period, offset) = (h.need("attn_layer_period")?.max(1), h.need("attn_layer_offset")?);
    Ok((0..blocks).map(|i| i % period == offset).collect())
}

fn granite_hybrid(k: &mut Keys) -> Result<()> {
    let h = k.h;
    match h.str("model_type") {
        // Bamba has none of the multipliers.
        Some("bamba") => k.llama()?,
        _ => granite(k)?,
    }
    k.stated_size("expert_shared_feed_forward_length", &["shared_intermediate_size"])?;
    let attends = attends(h, k.blocks)?;
    ssm(k)?;
    let kv = h.kv_heads()?;
    if let Some(dims) = h.size("attn_rotary_emb")? {
        k.size("rope.dimension_count", dims)?;
    }
    let heads: Vec<usize> = attends.iter().map(|a| if *a { kv } else { 0 }).collect();
    k.sizes("attention.head_count_kv", &heads);
    let rotates = h.str("model_type") == Some("bamba");
    k.flag("rope.scaling.finetuned", rotates);
    if !rotates {
        k.size("context_length", 1 << 20)?;
    }
    Ok(())
}

fn ssm(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.size("ssm.conv_kernel", of_mamba(h, &["conv_kernel", "d_conv"])?.unwrap_or(4))?;
    let state = of_mamba(h, &["state_size", "d_state", "state_dim", "ssm_state_size"])?.unwrap_or(128);
    k.size("ssm.state_size", state)?;
    k.size("ssm.group_count", of_mamba(h, &["n_groups", "num_groups"])?.unwrap_or(1))?;
    let heads = of_mamba(h, &["n_heads", "num_heads"])?.unwrap_or(0);
    let inner = match of_mamba(h, &["expand"])? {
        Some(expand) if h.get("mamba_num_heads").is_none() => expand * h.hidden()?,
        _ => heads * of_mamba(h, &["head_dim", "d_head"])?.unwrap_or(64),
    };
    k.size("ssm.inner_size", inner)?;
    k.size("ssm.time_step_rank", heads)
}

/// Names of Nemotron-H; its multi-token prediction lies in two layers that become one block.
fn nemotron_names(h: &Hparams, name: &str) -> Named {
    let Some(rest) = name.strip_prefix("mtp.layers.") else {
        return match name.starts_with("model.layers.") && name.contains(".mixer.") {
            true => super::renamed(name, "model.layers.", "backbone.layers."),
            false => Named::Keep(name.into()),
        };
    };
    let blocks = h.blocks().unwrap_or(0);
    let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let rest = match (index, rest) {
        ("0", "norm.weight") => "norm.weight",
        ("1", "norm.weight") => "post_attention_layernorm.weight",
        (_, rest) => rest,
    };
    let rest = rest.replace("final_layernorm.", "shared_head.norm.");
    if ["enorm.", "hnorm.", "eh_proj.", "shared_head.", "post_attention_layernorm."]
        .iter()
        .any(|own| rest.starts_with(own))
    {
        return Named::Keep(format!("model.layers.{blocks}.{rest}"));
    }
    Named::Keep(format!("backbone.layers.{blocks}.{rest}"))
}

fn nemotron(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let pattern: Vec<char> = match (h.str("hybrid_override_pattern"), h.list("layers_block_type")) {
        (Some(pattern), _) => pattern.chars().collect(),
        (None, Some(list)) => list
            .iter()
            .map(|t| match t.as_str().unwrap_or_default() {
                "mamba" | "linear_attention" => 'M',
                "attention" | "full_attention" => '*',
                "moe" => 'E',
                _ => '-',
            })
            .collect(),
        _ => Vec::new(),
    };
    let mixture = h.get("num_experts_per_tok").is_some();
    let more = k.blocks - h.blocks()?;
    let blocks = k.blocks;
    let is = |what: char| {
        let mut list: Vec<bool> = pattern.iter().map(|c| *c == what).collect();
        list.resize(blocks, what != 'M');
        list
    };
    k.llama()?;
    ssm(k)?;
    let kv = h.kv_heads()?;
    let heads: Vec<usize> = is('*').iter().map(|a| if *a { kv } else { 0 }).collect();
    k.sizes("attention.head_count_kv", &heads);
    k.flag("rope.scaling.finetuned", false);
    k.size("context_length", 1 << 20)?;
    let head = h.size_of(&["head_dim", "attention_head_dim"])?.map_or_else(|| h.head_dim(), Ok)?;
    k.head_lengths(head, head)?;
    if !mixture {
        let width = h.need("intermediate_size")?;
        let widths: Vec<usize> = is('-').iter().map(|f| if *f { width } else { 0 }).collect();
        k.sizes("feed_forward_length", &widths);
        return Ok(());
    }
    let width = h.need("moe_intermediate_size")?;
    let widths: Vec<usize> = is('E').iter().map(|f| if *f { width } else { 0 }).collect();
    k.sizes("feed_forward_length", &widths);
    k.needed_size("expert_used_count", "num_experts_per_tok")?;
    k.size("expert_feed_forward_length", width)?;
    k.needed_size("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size")?;
    k.needed_size("expert_count", "n_routed_experts")?;
    k.needed_size("expert_shared_count", "n_shared_experts")?;
    k.stated_flag("expert_weights_norm", "norm_topk_prob");
    k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
    k.stated_size("expert_group_count", &["n_group"])?;
    k.stated_size("moe_latent_size", &["moe_latent_size"])?;
    if more > 0 {
        k.needed_size("nextn_predict_layers", "num_nextn_predict_layers")?;
    }
    Ok(())
}

/// Nemotron H with another mixture of experts in every block.
fn puzzle(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let blocks = h.list("block_configs").ok_or_else(|| crate::model::hf_json::missing("block_configs"))?;
    let sizes = |key: &str| -> Vec<usize> {
        blocks.iter().map(|block| block.get(key).and_then(plausible).unwrap_or(0)).collect()
    };
    let attends = |block: &serde_json::Value| {
        matches!(block.get("block_type").and_then(|v| v.as_str()), Some("attention" | "full_attention"))
    };
    k.llama()?;
    ssm(k)?;
    let kv = h.kv_heads()?;
    let heads: Vec<usize> = blocks.iter().map(|block| if attends(block) { kv } else { 0 }).collect();
    k.sizes("attention.head_count_kv", &heads);
    k.flag("rope.scaling.finetuned", false);
    k.size("context_length", 1 << 20)?;
    let head = h.size_of(&["head_dim", "attention_head_dim"])?.map_or_else(|| h.head_dim(), Ok)?;
    k.head_lengths(head, head)?;
    k.sizes("feed_forward_length", &sizes("moe_intermediate_size"));
    k.sizes("expert_feed_forward_length", &sizes("moe_intermediate_size"));
    k.sizes("expert_used_count", &sizes("num_experts_per_tok"));
    for (key, from) in [
        ("expert_shared_feed_forward_length", "moe_shared_expert_intermediate_size"),
        ("expert_count", "n_routed_experts"),
        ("expert_shared_count", "n_shared_experts"),
        ("expert_group_count", "n_group"),
        ("moe_latent_size", "moe_latent_size"),
    ] {
        k.needed_size(key, from)?;
    }
    k.stated_flag("expert_weights_norm", "norm_topk_prob");
    k.stated_float("expert_weights_scale", "routed_scaling_factor")
}

/// Key-value heads by layer: none where the type is this.
fn attention_only(k: &mut Keys, without: &str) -> Result<()> {
    let kv = k.h.kv_heads()?;
    let types = k.h.list("layer_types").cloned().unwrap_or_default();
    let heads: Vec<usize> = types.iter().map(|t| if t == without { 0 } else { kv }).collect();
    k.sizes("attention.head_count_kv", &heads);
    Ok(())
}

pub(super) fn lfm2(k: &mut Keys) -> Result<()> {
    let h = k.h;
    attention_only(k, "conv")?;
    k.needed_size("vocab_size", "vocab_size")?;
    k.needed_size("shortconv.l_cache", "conv_L_cache")?;
    k.stated_float("attention.layer_norm_rms_epsilon", "norm_eps")?;
    let mut width = h.size_of(&["block_ff_dim", "intermediate_size"])?.unwrap_or(0);
    if h.flag("block_auto_adjust_ff_dim") {
        width = 2 * width / 3;
        if let Some(times) = h.float("block_ffn_dim_multiplier")? {
            width = (f64::from(times) * width as f64) as usize;
        }
        width = width.next_multiple_of(h.size("block_multiple_of")?.unwrap_or(256).max(1));
    }
    k.size("feed_forward_length", width)
}
