//! Llama's line: what differs from it in names, in fused matrices, or in a few numbers, and image models around it.

use super::super::hparams::plausible;
use super::super::view::{Stored, View, pairs, range};
use super::dense::LLAMA_TOKENIZER;
use super::{Blueprint, Change, Hparams, Keys, Named, PAIRS, PLAIN, llama3_factors, long_rope_factors};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::mistral::CLASS;
use crate::model::source_names::TOWER;

const ROTARY: &str = "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
    ffn_norm ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps rope_freqs";

const LLAMA: Blueprint = Blueprint {
    gguf: "llama",
    tensors: ROTARY,
    changes: PAIRS,
    generated: llama3_factors,
    keys: |k| k.llama(),
    tokenizer: LLAMA_TOKENIZER,
    ..PLAIN
};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint { classes: &["IQuestCoderForCausalLM", "LLaMAForCausalLM", "VLlama3ForCausalLM"], ..LLAMA },
    Blueprint { classes: &[CLASS], changes: &[], ..LLAMA },
    Blueprint {
        classes: &["InternLM3ForCausalLM"],
        generated: super::no_tensors,
        tokenizer: TokenizerFacts { states_space_prefix: true, chat_end: Some("<|im_end|>"), ..PLAIN_TOKENIZER },
        ..LLAMA
    },
    Blueprint {
        classes: &["JanusForConditionalGeneration"],
        rename: |_, name| {
            const OTHERS: [&str; 5] =
                ["aligner.", "vqmodel.", "generation_embeddings.", "generation_aligner.", "generation_head."];
            let own = name.strip_prefix("model.").unwrap_or(name);
            match OTHERS.iter().any(|part| own.starts_with(part)) {
                true => Named::Drop("belongs to the part that reads and makes images; a text model does not use it"),
                false => Named::Keep(name.into()),
            }
        },
        ..LLAMA
    },
    Blueprint {
        classes: &["Sarashina2VisionForCausalLM"],
        rename: |_, name| match name.starts_with("norm.") {
            true => Named::Drop(TOWER),
            false => Named::Keep(name.strip_prefix("llm.").unwrap_or(name).into()),
        },
        ..LLAMA
    },
    Blueprint { gguf: "llama-embed", classes: &["LlamaBidirectionalModel"], ..LLAMA },
    Blueprint {
        gguf: "nanbeige",
        classes: &["NanbeigeForCausalLM"],
        keys: |k| {
            k.llama()?;
            k.size("num_loops", k.h.size("num_loops")?.unwrap_or(1).max(1))?;
            k.flag("skip_loop_final_norm", k.h.flag("skip_loop_final_norm"));
            Ok(())
        },
        ..LLAMA
    },
    Blueprint {
        gguf: "cogvlm",
        classes: &["CogVLMForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_gate ffn_down vis_up \
            vis_gate vis_down vis_attn_output vis_attn_qkv",
        ..LLAMA
    },
    Blueprint {
        gguf: "internlm2",
        classes: &["InternLM2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd ffn_norm \
            ffn_up ffn_gate ffn_down",
        splits: &[(
            "attention.wqkv.weight",
            &[
                ("attn_q.weight", Change::View(|h, s| of_groups(h, s, Part::Query))),
                ("attn_k.weight", Change::View(|h, s| of_groups(h, s, Part::Key))),
                ("attn_v.weight", Change::View(|h, s| of_groups(h, s, Part::Value))),
            ],
        )],
        changes: &[],
        generated: super::no_tensors,
        keys: super::nothing,
        tokenizer: TokenizerFacts {
            added_by_flags: true,
            tells_dummy_prefix: true,
            chat_end: Some("<|im_end|>"),
            ..PLAIN_TOKENIZER
        },
        ..LLAMA
    },
    Blueprint {
        gguf: "deci",
        classes: &["DeciLMForCausalLM"],
        only: |json| json.get("block_configs").is_none(),
        changes: DECI_PAIRS,
        keys: |k| {
            let heads = k.h.list("num_key_value_heads_per_layer").map(|list| (0..list.len()).collect::<Vec<_>>());
            if let Some(layers) = heads {
                let heads = layers.into_iter().map(|layer| deci_heads(k.h, layer).map(|(_, kv)| kv));
                k.sizes("attention.head_count_kv", &heads.collect::<Result<Vec<_>>>()?);
            }
            k.llama()
        },
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
    Blueprint {
        gguf: "deci",
        classes: &["DeciLMForCausalLM"],
        changes: DECI_PAIRS,
        base: false,
        keys: deci_blocks,
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
    Blueprint {
        gguf: "baichuan",
        classes: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
        splits: &[(
            "self_attn.W_pack.weight",
            &[
                ("attn_q.weight", Change::View(|h, s| Ok(View::rows(s, pairs(s.shape[0] / 3, h.heads()?))))),
                ("attn_k.weight", Change::View(packed_keys)),
                ("attn_v.weight", Change::View(|_, s| Ok(View::rows(s, range(s.shape[0] / 3 * 2, s.shape[0]))))),
            ],
        )],
        changes: &[],
        generated: super::no_tensors,
        keys: meta_layout,
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
    Blueprint {
        gguf: "xverse",
        classes: &["XverseForCausalLM"],
        generated: super::no_tensors,
        keys: meta_layout,
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
    Blueprint {
        gguf: "orion",
        classes: &["OrionForCausalLM"],
        changes: &[],
        generated: super::no_tensors,
        base: false,
        keys: |k| {
            let h = k.h;
            k.file_type();
            k.text("tensor_data_layout", "Meta AI original pth");
            k.stated_size("context_length", &["max_sequence_length", "max_position_embeddings", "model_max_length"])?;
            k.size("embedding_length", h.hidden()?)?;
            k.size("block_count", k.blocks)?;
            k.needed_size("feed_forward_length", "intermediate_size")?;
            k.size("attention.head_count", h.heads()?)?;
            k.size("attention.head_count_kv", h.kv_heads()?)?;
            // Its norms have a mean, whatever the key's name says.
            k.stated_float("attention.layer_norm_epsilon", "rms_norm_eps")
        },
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
    Blueprint {
        gguf: "minicpm",
        classes: &["MiniCPMForCausalLM"],
        tensors: "token_embd output output_norm rope_factors_long rope_factors_short attn_norm attn_qkv attn_q attn_k attn_v \
            attn_output attn_rot_embd ffn_norm ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down \
            ffn_down_exps rope_freqs",
        generated: long_rope_factors,
        keys: |k| {
            let h = k.h;
            let number =
                |key: &str| h.get(key).and_then(|v| v.as_f64()).ok_or_else(|| crate::model::hf_json::missing(key));
            k.float("embedding_scale", number("scale_emb")? as f32);
            k.float("residual_scale", (number("scale_depth")? / (h.blocks()? as f64).sqrt()) as f32);
            k.float("logit_scale", (h.hidden()? as f64 / number("dim_model_base")?) as f32);
            Ok(())
        },
        tokenizer: PLAIN_TOKENIZER,
        ..LLAMA
    },
];

const DECI_PAIRS: &[(&str, Change)] = &[
    ("attn_q.weight", Change::View(|h, s| Ok(View::rows(s, pairs(s.shape[0], deci_heads(h, s.layer)?.0))))),
    ("attn_k.weight", Change::View(|h, s| Ok(View::rows(s, pairs(s.shape[0], deci_heads(h, s.layer)?.1))))),
];

fn meta_layout(k: &mut Keys) -> Result<()> {
    k.text("tensor_data_layout", "Meta AI original pth");
    k.size("rope.dimension_count", k.h.hidden()? / k.h.heads()?)
}

/// The second third, in pairs.
fn packed_keys(h: &Hparams, s: &Stored) -> Result<View> {
    let third = s.shape[0] / 3;
    Ok(View::rows(s, pairs(third, h.heads()?).into_iter().map(|row| row + third as u32).collect()))
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Query,
    Key,
    Value,
}

/// Rows of queries, keys or values where every group has its queries, its key and its value together.
fn of_groups(h: &Hparams, s: &Stored, part: Part) -> Result<View> {
    let (heads, groups) = (h.heads()?, h.kv_heads()?.max(1));
    let per_group = heads / groups;
    let head = s.shape[0] / (groups * (per_group + 2)).max(1);
    let taken = match part {
        Part::Query => 0..per_group,
        Part::Key => per_group..per_group + 1,
        Part::Value => per_group + 1..per_group + 2,
    };
    let start = |group: usize, i: usize| (group * (per_group + 2) + i) * head;
    let rows: Vec<u32> = (0..groups)
        .flat_map(|group| taken.clone().flat_map(move |i| range(start(group, i), start(group, i) + head)))
        .collect();
    if part == Part::Value {
        return Ok(View::rows(s, rows));
    }
    let order = pairs(rows.len(), rows.len() / head.max(1));
    Ok(View::rows(s, order.into_iter().map(|row| rows[row as usize]).collect()))
}

/// Heads of queries and of keys in a block. Those without attention have none; linear ones only the first.
fn deci_heads(h: &Hparams, layer: usize) -> Result<(usize, usize)> {
    let heads = h.heads()?;
    if let Some(kv) = h.list("num_key_value_heads_per_layer").and_then(|list| plausible(list.get(layer)?)) {
        return Ok((heads, kv));
    }
    let Some(block) = h.list("block_configs").and_then(|blocks| blocks.get(layer)?.get("attention")) else {
        return Ok((heads, h.kv_heads()?));
    };
    let number = |key: &str| block.get(key).and_then(plausible);
    Ok(match number("n_heads_in_group") {
        Some(group) => (heads, heads / group.max(1)),
        None if block.get("replace_with_linear").and_then(|v| v.as_bool()) == Some(true) => (heads, 0),
        None => (0, 0),
    })
}

/// Widths are multiples of 256, two thirds of what the multiplier says.
fn deci_blocks(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let heads = (0..k.blocks).map(|layer| deci_heads(h, layer)).collect::<Result<Vec<_>>>()?;
    let (hidden, head) = (h.hidden()?, h.hidden()? / h.heads()?);
    let widths: Vec<usize> = (0..k.blocks)
        .map(|layer| {
            h.list("block_configs").and_then(|blocks| blocks.get(layer)?.get("ffn")?.get("ffn_mult")?.as_f64())
        })
        .map(|factor| ((2.0 * factor.unwrap_or(0.0) * hidden as f64 / 3.0) as usize).next_multiple_of(256))
        .collect();
    if let Some(theta) = h.rope_float("rope_theta") {
        k.float("rope.freq_base", theta);
    }
    k.sizes("attention.head_count_kv", &heads.iter().map(|(_, kv)| *kv).collect::<Vec<_>>());
    k.sizes("attention.head_count", &heads.iter().map(|(q, _)| *q).collect::<Vec<_>>());
    k.sizes("feed_forward_length", &widths);
    k.size("block_count", k.blocks)?;
    k.needed_size("context_length", "max_position_embeddings")?;
    k.size("embedding_length", hidden)?;
    k.stated_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
    k.head_lengths(head, head)?;
    k.file_type();
    k.llama()
}
