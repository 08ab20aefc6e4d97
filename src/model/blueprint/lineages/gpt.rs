//! The GPT-2 line and its time: fused attention in several layouts, learned positions or ALiBi, LayerNorm; and GPT-OSS.

use super::super::view::{Stored, View, range};
use super::shapes;
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN};
use crate::Result;
use crate::model::tensor::{Gather, ValueMap};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "gpt2",
        classes: &["GPT2LMHeadModel"],
        tensors: "token_embd position_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        changes: &[
            ("attn_qkv.weight", Change::Turned),
            ("attn_output.weight", Change::Turned),
            ("ffn_up.weight", Change::Turned),
            ("ffn_down.weight", Change::Turned),
        ],
        defaults: r#"{"n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "layer_norm_epsilon": 1e-5}"#,
        base: false,
        keys: |k| {
            k.size("block_count", k.blocks)?;
            k.stated_size("context_length", &["n_ctx", "n_positions"])?;
            k.needed_size("embedding_length", "n_embd")?;
            k.size("feed_forward_length", 4 * k.h.need("n_embd")?)?;
            k.needed_size("attention.head_count", "n_head")?;
            k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
            k.file_type();
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "gpt2",
        classes: &["RuGPT3XLForCausalLM"],
        tensors: "token_embd position_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        names: &[("model.layers.{}.self_attn.experts.qkv_proj", "blk.{}.attn_qkv")],
        rename: |_, name| {
            // One below the other, as experts lie.
            let parts = ["q_proj", "k_proj", "v_proj"].iter().enumerate();
            let found = parts.map(|(i, part)| (i, format!(".self_attn.{part}."))).find(|(_, part)| name.contains(part));
            match found {
                Some((i, part)) => super::renamed(name, &part, &format!(".self_attn.experts.{i}.qkv_proj.")),
                None => Named::Keep(name.into()),
            }
        },
        changes: &[("attn_qkv.weight", Change::View(stacked)), ("attn_qkv.bias", Change::View(stacked))],
        ..PLAIN
    },
    Blueprint {
        gguf: "codeshell",
        classes: &["CodeShellForCausalLM"],
        tensors: "token_embd position_embd output output_norm attn_norm attn_qkv attn_output attn_rot_embd ffn_norm ffn_up \
            ffn_down",
        base: false,
        keys: |k| {
            k.needed_size("context_length", "n_positions")?;
            k.needed_size("embedding_length", "n_embd")?;
            k.size("feed_forward_length", 4 * k.h.need("n_embd")?)?;
            k.size("block_count", k.blocks)?;
            k.needed_size("attention.head_count", "n_head")?;
            k.needed_size("attention.head_count_kv", "num_query_groups")?;
            k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
            k.file_type();
            k.float("rope.freq_base", 10_000.0);
            k.text("rope.scaling.type", "linear");
            k.float("rope.scaling.factor", 1.0);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "jais",
        classes: &["JAISLMHeadModel"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_gate ffn_down",
        rename: |_, name| match name.ends_with("relative_pe.slopes") {
            true => Named::Drop("a number, which goes to the metadata"),
            false => Named::Keep(name.into()),
        },
        changes: &[
            ("attn_qkv.weight", Change::Turned),
            ("attn_output.weight", Change::Turned),
            ("ffn_up.weight", Change::Turned),
            ("ffn_gate.weight", Change::Turned),
            ("ffn_down.weight", Change::Turned),
            (
                "token_embd.weight",
                Change::View(|h, s| scaled(s, h.float_of(&["mup_embeddings_scale", "embeddings_scale"])?)),
            ),
            ("output.weight", Change::View(|h, s| scaled(s, jais_output(h)?))),
        ],
        base: false,
        keys: jais,
        ..PLAIN
    },
    Blueprint {
        gguf: "refact",
        classes: &["GPTRefactForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate \
            ffn_down",
        names: &[("transformer.h.{}.attn.q", "blk.{}.attn_q")],
        splits: &[
            ("attn.kv.weight", &[("attn_k.weight", Change::Half(0)), ("attn_v.weight", Change::Half(1))]),
            ("mlp.gate_up_proj.weight", super::small::GATE_UP),
        ],
        base: false,
        keys: |k| {
            let width = (8 * k.h.need("n_embd")? / 3).next_multiple_of(256);
            one_key_head(k, width, "attention.layer_norm_rms_epsilon")
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "starcoder",
        classes: &["GPTBigCodeForCausalLM"],
        changes: &[("attn_qkv.weight", Change::View(all_queries)), ("attn_qkv.bias", Change::View(all_queries))],
        tensors: "token_embd position_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        defaults: r#"{"n_positions": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "layer_norm_epsilon": 1e-5}"#,
        base: false,
        keys: |k| one_key_head(k, 4 * k.h.need("n_embd")?, "attention.layer_norm_epsilon"),
        ..PLAIN
    },
    Blueprint {
        gguf: "gptneox",
        classes: &["GPTNeoXForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        changes: &[("attn_qkv.weight", Change::View(by_kind)), ("attn_qkv.bias", Change::View(by_kind))],
        defaults: r#"{"layer_norm_eps": 1e-5, "use_parallel_residual": true}"#,
        base: false,
        keys: |k| {
            let h = k.h;
            k.needed_size("context_length", "max_position_embeddings")?;
            k.size("embedding_length", h.hidden()?)?;
            k.size("block_count", k.blocks)?;
            k.needed_size("feed_forward_length", "intermediate_size")?;
            let part = h.float("rotary_pct")?.or(h.rope_float("partial_rotary_factor")).unwrap_or(0.25);
            k.size("rope.dimension_count", (part * (h.hidden()? / h.heads()?) as f32) as usize)?;
            k.size("attention.head_count", h.heads()?)?;
            k.flag("use_parallel_residual", h.flag("use_parallel_residual"));
            k.stated_float("attention.layer_norm_epsilon", "layer_norm_eps")
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "bloom",
        classes: &["BloomForCausalLM", "BloomModel"],
        tensors: "token_embd token_embd_norm output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down",
        rename: |_, name| Named::Keep(name.replace("transformer.", "")),
        changes: &[("attn_qkv.weight", Change::View(by_kind)), ("attn_qkv.bias", Change::View(by_kind))],
        defaults: r#"{"layer_norm_epsilon": 1e-5}"#,
        base: false,
        keys: |k| {
            let hidden = k.h.hidden()?;
            k.size("context_length", k.h.size("seq_length")?.unwrap_or(hidden))?;
            k.size("embedding_length", hidden)?;
            k.size("feed_forward_length", 4 * hidden)?;
            k.size("block_count", k.blocks)?;
            k.size("attention.head_count", k.h.heads()?)?;
            k.size("attention.head_count_kv", k.h.heads()?)?;
            k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
            k.file_type();
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "mpt",
        classes: &["MPTForCausalLM", "MptForCausalLM"],
        tensors: "token_embd position_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn \
            ffn_down attn_q_norm attn_k_norm",
        base: false,
        keys: mpt,
        ..PLAIN
    },
    Blueprint {
        gguf: "falcon",
        classes: &["FalconForCausalLM", "RWForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_norm_2 attn_qkv attn_output ffn_up ffn_down",
        changes: &[("attn_qkv.weight", Change::View(by_group)), ("attn_qkv.bias", Change::View(by_group))],
        defaults: r#"{"layer_norm_epsilon": 1e-5}"#,
        base: false,
        keys: |k| {
            let hidden = k.h.hidden()?;
            k.size("context_length", 2048)?;
            k.text("tensor_data_layout", "jploski");
            k.size("embedding_length", hidden)?;
            k.size("feed_forward_length", 4 * hidden)?;
            k.size("block_count", k.blocks)?;
            k.size("attention.head_count", k.h.heads()?)?;
            k.size("attention.head_count_kv", k.h.size_of(&["num_kv_heads", "n_head_kv"])?.unwrap_or(1))?;
            k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
            k.file_type();
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "phi2",
        classes: &["PhiForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_down",
        defaults: r#"{"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}"#,
        base: false,
        keys: |k| {
            let (hidden, heads) = (k.h.hidden()?, k.h.heads()?);
            k.stated_size("context_length", &["n_positions", "max_position_embeddings"])?;
            k.size("embedding_length", hidden)?;
            k.size("feed_forward_length", 4 * hidden)?;
            k.size("block_count", k.blocks)?;
            k.size("attention.head_count", heads)?;
            k.size("attention.head_count_kv", k.h.kv_heads()?)?;
            if let Some(eps) = k.h.float_of(&["layer_norm_epsilon", "layer_norm_eps"])? {
                k.float("attention.layer_norm_epsilon", eps);
            }
            let part = k.h.rope_float("partial_rotary_factor").unwrap_or(0.5);
            k.size("rope.dimension_count", (part * hidden as f32) as usize / heads)?;
            k.file_type();
            k.meta.set("tokenizer.ggml.add_bos_token", false);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "gpt-oss",
        shapes: Some(shapes::gpt_oss),
        classes: &["GptOssForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_sinks ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps",
        names: &[
            ("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks.weight"),
            ("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
            ("model.layers.{}.mlp.experts.down_proj_bias", "blk.{}.ffn_down_exps.bias"),
            ("model.layers.{}.mlp.experts.down_proj.mxfp4", "blk.{}.ffn_down_exps.weight"),
        ],
        changes: &[(
            "ffn_down_exps.weight",
            Change::View(|_, s| match s.name.ends_with(".mxfp4") {
                true => Ok(View::same(s.shape)),
                false => Ok(View::turned(s, None)),
            }),
        )],
        splits: &[
            // Packed experts are stored as [experts, out, in], plain ones as [experts, in, out].
            (
                "mlp.experts.gate_up_proj.mxfp4",
                &[
                    (
                        "ffn_gate_exps.weight",
                        Change::View(|_, s| Ok(View::rows(s, (0..s.shape[1] as u32).step_by(2).collect()))),
                    ),
                    (
                        "ffn_up_exps.weight",
                        Change::View(|_, s| Ok(View::rows(s, (1..s.shape[1] as u32).step_by(2).collect()))),
                    ),
                ],
            ),
            (
                "mlp.experts.gate_up_proj",
                &[
                    ("ffn_gate_exps.weight", Change::View(|_, s| Ok(View::turned(s, Some(every_other(s, 0)))))),
                    ("ffn_up_exps.weight", Change::View(|_, s| Ok(View::turned(s, Some(every_other(s, 1)))))),
                ],
            ),
            (
                "mlp.experts.gate_up_proj_bias",
                &[
                    ("ffn_gate_exps.bias", Change::View(|_, s| Ok(View::cols(s, every_other(s, 0))))),
                    ("ffn_up_exps.bias", Change::View(|_, s| Ok(View::cols(s, every_other(s, 1))))),
                ],
            ),
        ],
        defaults: r#"{"rms_norm_eps": 1e-5, "head_dim": 64}"#,
        keys: |k| {
            k.needed_size("attention.sliding_window", "sliding_window")?;
            k.needed_size("expert_feed_forward_length", "intermediate_size")
        },
        ..PLAIN
    },
];

/// GPT-2's keys with one head of keys and values for all, and a feed-forward block of this width.
fn one_key_head(k: &mut Keys, width: usize, epsilon: &str) -> Result<()> {
    k.needed_size("context_length", "n_positions")?;
    k.needed_size("embedding_length", "n_embd")?;
    k.size("feed_forward_length", width)?;
    k.size("block_count", k.blocks)?;
    k.needed_size("attention.head_count", "n_head")?;
    k.size("attention.head_count_kv", if shares_keys(k.h) { 1 } else { k.h.heads()? })?;
    k.stated_float(epsilon, "layer_norm_epsilon")?;
    k.file_type();
    Ok(())
}

fn every_other(s: &Stored, from: usize) -> Vec<u32> {
    (from as u32..s.shape.last().copied().unwrap_or(0) as u32).step_by(2).collect()
}

/// Whether all heads have one key and value.
fn shares_keys(h: &Hparams) -> bool {
    h.get("multi_query").and_then(|v| v.as_bool()) != Some(false)
}

fn all_queries(h: &Hparams, s: &Stored) -> Result<View> {
    if shares_keys(h) { Ok(View::same(s.shape)) } else { by_kind(h, s) }
}

/// Stored head by head, each query, key, value: all queries, all keys, all values.
fn by_kind(h: &Hparams, s: &Stored) -> Result<View> {
    let heads = h.heads()?;
    let head = s.shape[0] / (3 * heads);
    let rows =
        (0..3).flat_map(|kind| (0..heads).flat_map(move |i| range((3 * i + kind) * head, (3 * i + kind + 1) * head)));
    Ok(View::rows(s, rows.collect()))
}

/// Stored group by group, each its queries, its key and its value: all queries, all keys, all values.
fn by_group(h: &Hparams, s: &Stored) -> Result<View> {
    let (heads, groups) = (h.heads()?, h.size_of(&["num_kv_heads", "n_head_kv"])?.unwrap_or(1).max(1));
    let (per_group, head) = (heads / groups, s.shape[0] / (heads + 2 * groups));
    let all = (per_group + 2) * head;
    let part =
        |from: usize, to: usize| (0..groups).flat_map(move |g| range(g * all + from * head, g * all + to * head));
    let rows = part(0, per_group).chain(part(per_group, per_group + 1)).chain(part(per_group + 1, per_group + 2));
    Ok(View::rows(s, rows.collect()))
}

fn mpt(k: &mut Keys) -> Result<()> {
    let attention = k.h.get("attn_config").cloned().unwrap_or_default();
    let number = |key: &str| attention.get(key).and_then(|v| v.as_f64());
    let width = k.h.need("d_model")?;
    k.needed_size("context_length", "max_seq_len")?;
    k.size("embedding_length", width)?;
    k.size("block_count", k.blocks)?;
    k.size("feed_forward_length", 4 * width)?;
    k.needed_size("attention.head_count", "n_heads")?;
    if let Some(heads) = number("kv_n_heads").filter(|n| *n > 0.0) {
        k.size("attention.head_count_kv", heads as usize)?;
    }
    k.float("attention.layer_norm_epsilon", 1e-5);
    if let Some(clip) = number("clip_qkv") {
        k.float("attention.clamp_kqv", clip as f32);
    }
    let alibi = attention.get("alibi").and_then(|v| v.as_bool()).unwrap_or(true);
    k.float("attention.max_alibi_bias", if alibi { number("alibi_bias_max").unwrap_or(8.0) as f32 } else { 0.0 });
    Ok(())
}

/// `[3, rows, columns]` as one matrix, `[3, n]` as one vector.
fn stacked(_: &Hparams, s: &Stored) -> Result<View> {
    let &[n, rows, ref rest @ ..] = s.shape else { return Ok(View::same(s.shape)) };
    let shape: Vec<usize> = [&[n * rows], rest].concat();
    let stored = if rest.is_empty() { [1, rows] } else { [rows, rest[0]] };
    Ok(View::gathered(&shape, Gather { matrices: n, stored, turned: false, rows: None, cols: None }))
}

fn scaled(s: &Stored, factor: Option<f32>) -> Result<View> {
    Ok(View::same(s.shape).with(ValueMap::Times([factor.unwrap_or(1.0), 1.0])))
}

/// What logits are multiplied by.
fn jais_output(h: &Hparams) -> Result<Option<f32>> {
    let number = |key: &str| h.get(key).and_then(|v| v.as_f64());
    match (number("mup_output_alpha"), number("mup_width_scale")) {
        (Some(alpha), Some(width)) => Ok(Some((alpha * width) as f32)),
        _ => h.float("width_scale"),
    }
}

fn jais(k: &mut Keys) -> Result<()> {
    k.size("block_count", k.blocks)?;
    k.needed_size("context_length", "n_positions")?;
    k.needed_size("embedding_length", "n_embd")?;
    k.needed_size("feed_forward_length", "n_inner")?;
    k.needed_size("attention.head_count", "n_head")?;
    k.stated_float("attention.layer_norm_epsilon", "layer_norm_epsilon")?;
    k.file_type();
    // The slope of the first head tells the largest bias, from which llama.cpp computes all slopes.
    let heads = k.h.need("n_head")?.max(1).ilog2();
    let largest = match k.scalars("relative_pe.slopes")?.first() {
        Some(slope) => -(slope.log2() * 2.0_f32.powi(heads as i32)).round(),
        None => 8.0,
    };
    k.float("attention.max_alibi_bias", largest);
    Ok(())
}
