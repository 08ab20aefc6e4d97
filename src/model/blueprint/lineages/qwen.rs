//! Qwen's image models, and its hybrids of gated delta nets with full attention: Qwen3-Next, Qwen3.5 and their mixtures.

use super::super::view::{Stored, View, range, squeezed};
use super::shapes;
use super::{Blueprint, Change, HALVES, Hparams, Keys, Named, PLAIN, TURNED_HALVES};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::source_names::TOWER;
use crate::model::tensor::{Gather, ValueMap};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "qwen2",
        classes: &[
            "AudioFlamingo3ForConditionalGeneration",
            "DotsOCRForCausalLM",
            "KORMoForCausalLM",
            "Qwen2AudioForConditionalGeneration",
        ],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate \
            ffn_down",
        keys: |k| k.pooling(),
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen",
        classes: &["QWenLMHeadModel"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output attn_rot_embd ffn_norm ffn_up ffn_gate \
            ffn_down rope_freqs",
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen3vl",
        classes: &["Qwen3ASRForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate \
            ffn_down attn_q_norm attn_k_norm rope_freqs",
        rename: thinker,
        keys: |k| {
            k.meta.set("tokenizer.chat_template", CHATML);
            k.size("n_deepstack_layers", 0)
        },
        tokenizer: TokenizerFacts { chat_end: Some("<|im_end|>"), ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen2vl",
        shapes: Some(shapes::qwen2),
        classes: &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2VLModel",
            "Qwen2_5OmniModel",
        ],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down",
        rename: thinker,
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen3vl",
        classes: &["Qwen3VLForConditionalGeneration"],
        shapes: Some(shapes::qwen3),
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down attn_q_norm attn_k_norm rope_freqs",
        rename: thinker,
        keys: deepstack,
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen3vlmoe",
        classes: &["Qwen3VLMoeForConditionalGeneration"],
        shapes: Some(shapes::qwen3),
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        rename: thinker,
        names: &[("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight")],
        changes: &[("ffn_down_exps.weight", Change::Turned)],
        splits: &[("mlp.experts.gate_up_proj", TURNED_HALVES)],
        keys: |k| {
            expert_widths(k)?;
            deepstack(k)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen3vlmoe",
        classes: &["Qwen3OmniMoeForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm \
            ffn_gate_inp ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        rename: thinker,
        keys: |k| {
            expert_widths(k)?;
            k.size("n_deepstack_layers", 0)
        },
        tokenizer: TokenizerFacts { chat_end: Some("<|im_end|>"), ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "qwen3next",
        classes: &["Qwen3NextForCausalLM"],
        shapes: Some(shapes::qwen3_next),
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_gate_inp ffn_gate_inp_shexp ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp \
            ffn_gate_up_exps ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm ssm_in ssm_conv1d ssm_dt ssm_a \
            ssm_norm ssm_out ssm_ba nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm \
            nextn.shared_head_head nextn.shared_head_norm",
        splits: &[
            ("mlp.experts.gate_up_proj", HALVES),
            (
                "linear_attn.in_proj_qkvz.weight",
                &[("attn_qkv.weight", Change::View(qkv_of_groups)), ("attn_gate.weight", Change::View(gate_of_groups))],
            ),
        ],
        changes: PLUS_ONE_AND_CONV,
        keys: |k| {
            expert_widths(k)?;
            hybrid(k)
        },
        ..DELTA
    },
    Blueprint {
        gguf: "qwen35",
        classes: &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
        shapes: Some(shapes::qwen35),
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm ssm_conv1d ssm_dt ssm_a ssm_norm ssm_out \
            ssm_alpha ssm_beta nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head \
            nextn.shared_head_norm",
        keys: |k| {
            hybrid(k)?;
            sections(k)
        },
        ..DELTA
    },
    Blueprint {
        gguf: "qwen35",
        classes: &["MiniCPMV4_6ForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm ssm_conv1d ssm_dt ssm_a ssm_norm ssm_out \
            ssm_alpha ssm_beta",
        rename: |_, name| match name.strip_prefix("model.").unwrap_or(name) {
            own if own.starts_with("merger.") => Named::Drop(TOWER),
            own if own.starts_with("mtp") => Named::Drop(super::WITHOUT_MTP),
            _ => Named::Keep(name.into()),
        },
        more_blocks: super::none,
        keys: |k| {
            hybrid(k)?;
            sections(k)
        },
        ..DELTA
    },
    Blueprint {
        gguf: "qwen35moe",
        classes: &["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"],
        shapes: Some(shapes::qwen35),
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            attn_gate ffn_gate_inp ffn_gate_inp_shexp ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp \
            ffn_gate_up_exps ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm ssm_conv1d ssm_dt ssm_a ssm_norm \
            ssm_out ssm_alpha ssm_beta nextn.eh_proj nextn.embed_tokens nextn.enorm nextn.hnorm \
            nextn.shared_head_head nextn.shared_head_norm",
        names: &[
            ("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
            ("model.layers.{}.linear_attn.dt_bias", "blk.{}.ssm_dt.bias"),
        ],
        keys: |k| {
            expert_widths(k)?;
            hybrid(k)?;
            sections(k)
        },
        ..DELTA
    },
    Blueprint {
        gguf: "qwen4exp",
        classes: &["Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration"],
        tensors: "token_embd output attn_qkv attn_q attn_k attn_v attn_output attn_gate ffn_gate_inp \
            ffn_gate_inp_shexp ffn_up_exps ffn_up_shexp ffn_gate_exps ffn_gate_shexp ffn_gate_up_exps \
            ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm per_layer_token_embd ssm_conv1d ssm_dt ssm_a \
            ssm_norm ssm_out ssm_alpha ssm_beta indexer.k_norm indexer.q_proj indexer.k_proj indexer.q_norm",
        names: &[
            ("model.layers.{}.linear_attn.dt_bias", "blk.{}.ssm_dt.bias"),
            ("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight"),
            ("model.layers.{}.attn_hyper_connection.hc_norm", "blk.{}.hc_attn_norm"),
            ("model.layers.{}.attn_hyper_connection.input_mix_weight_down", "blk.{}.hc_attn_down"),
            ("model.layers.{}.attn_hyper_connection.input_mix_weight_up", "blk.{}.hc_attn_up"),
            ("model.layers.{}.attn_hyper_connection.block_inject_weight", "blk.{}.hc_attn_inject"),
            ("model.layers.{}.mlp_hyper_connection.hc_norm", "blk.{}.hc_ffn_norm"),
            ("model.layers.{}.mlp_hyper_connection.input_mix_weight_down", "blk.{}.hc_ffn_down"),
            ("model.layers.{}.mlp_hyper_connection.input_mix_weight_up", "blk.{}.hc_ffn_up"),
            ("model.layers.{}.mlp_hyper_connection.block_inject_weight", "blk.{}.hc_ffn_inject"),
            ("model.hyper_connection_mixer.hc_norm", "output_hc_norm"),
            ("model.hyper_connection_mixer.input_mix_weight_down", "output_hc_down"),
            ("model.hyper_connection_mixer.input_mix_weight_up", "output_hc_up"),
            ("model.layers.{}.self_attn.indexer.q_layernorm", "blk.{}.indexer.q_norm"),
            ("model.layers.{}.self_attn.indexer.k_layernorm", "blk.{}.indexer.k_norm"),
            ("model.layers.{}.ple.key_proj", "blk.{}.ple_key"),
            ("model.layers.{}.ple.value_proj", "blk.{}.ple_value"),
            ("model.layers.{}.ple.norm_key", "blk.{}.ple_norm_key"),
            ("model.layers.{}.ple.norm_query", "blk.{}.ple_norm_query"),
            ("model.layers.{}.ple.norm_conv", "blk.{}.ple_norm_conv"),
            ("model.layers.{}.ple.conv1d", "blk.{}.ple_conv1d"),
            ("ngrams.experts.table", "per_layer_token_embd"),
        ],
        rename: |h, name| {
            if name.starts_with("mtp.") || name.starts_with("model.mtp.") {
                return Named::Drop(super::WITHOUT_MTP);
            }
            // The shards of the table lie one below the other.
            match name.split_once(".ngram_embedding.shard_").and_then(|(_, rest)| rest.split_once('.')) {
                Some((shard, suffix)) => Named::Keep(format!("ngrams.experts.{shard}.table.{suffix}")),
                None => mtp(h, name),
            }
        },
        changes: QWEN4,
        splits: &[
            ("mlp.experts.gate_up_proj", HALVES),
            (
                "indexer.index_qk_proj.weight",
                &[
                    ("indexer.q_proj.weight", Change::View(|h, s| Ok(View::rows(s, range(0, index_queries(h)?))))),
                    (
                        "indexer.k_proj.weight",
                        Change::View(|h, s| Ok(View::rows(s, range(index_queries(h)?, s.shape[0])))),
                    ),
                ],
            ),
        ],
        keys: |k| {
            expert_widths(k)?;
            hybrid(k)?;
            sections(k)?;
            qwen4(k)
        },
        ..DELTA
    },
];

/// Gated delta nets whose value heads are stored by key head; ggml repeats key heads as tiles.
const DELTA: Blueprint = Blueprint {
    names: &[("model.layers.{}.linear_attn.dt_bias", "blk.{}.ssm_dt.bias")],
    rename: mtp,
    more_blocks: |h, names| {
        let blocks = h.blocks().unwrap_or(0);
        let stored = names.filter_map(super::layer_of).map(|n| (n + 1).saturating_sub(blocks)).max().unwrap_or(0);
        stored.max(h.size("mtp_num_hidden_layers").ok().flatten().filter(|_| stored > 0).unwrap_or(0))
    },
    changes: TILED,
    splits: &[("mlp.experts.gate_up_proj", HALVES)],
    defaults: r#"{"full_attention_interval": 4, "rms_norm_eps": 1e-6}"#,
    ..PLAIN
};

/// The changes of gated delta nets with tiled value heads and norms of queries and keys, and more.
macro_rules! tiled_and {
    ($($more:expr,)*) => {
        &[
            ("attn_qkv.weight", Change::View(|h, s| value_rows_behind(h, s, s.shape[0]))),
            ("attn_gate.weight", Change::View(tiled_rows)),
            ("ssm_alpha.weight", Change::View(tiled_rows)),
            ("ssm_beta.weight", Change::View(tiled_rows)),
            ("ssm_a", Change::View(|h, s| Ok(tiled_rows(h, s)?.with(ValueMap::NegExp)))),
            ("ssm_dt.bias", Change::View(tiled_rows)),
            ("ssm_conv1d.weight", Change::View(conv)),
            ("ssm_out.weight", Change::View(|h, s| Ok(View::cols(s, tiled(h, s.shape[1], 0)?)))),
            ("attn_q_norm.weight", Change::PlusOne),
            ("attn_k_norm.weight", Change::PlusOne),
            $($more,)*
        ]
    };
}

const TILED: &[(&str, Change)] = tiled_and![
    ("attn_norm.weight", Change::PlusOne),
    ("post_attention_norm.weight", Change::PlusOne),
    ("nextn.enorm.weight", Change::PlusOne),
    ("nextn.hnorm.weight", Change::PlusOne),
    ("nextn.shared_head_norm.weight", Change::PlusOne),
    ("output_norm.weight", Change::PlusOne),
];

const QWEN4: &[(&str, Change)] = tiled_and![
    ("hc_attn_norm.weight", Change::PlusOne),
    ("hc_ffn_norm.weight", Change::PlusOne),
    ("output_hc_norm.weight", Change::PlusOne),
    ("indexer.q_norm.weight", Change::PlusOne),
    ("indexer.k_norm.weight", Change::PlusOne),
    ("ple_norm_key.weight", Change::PlusOne),
    ("ple_norm_query.weight", Change::PlusOne),
    ("ple_norm_conv.weight", Change::PlusOne),
    ("ple_conv1d.weight", Change::Squeeze),
    ("per_layer_token_embd.weight", Change::View(one_below_the_other)),
];

/// `[parts, rows, cols]` as `[parts * rows, cols]`.
fn one_below_the_other(_: &Hparams, s: &Stored) -> Result<View> {
    let [parts, rows, cols] = s.shape else { return Ok(View::same(s.shape)) };
    let gather = Gather { matrices: *parts, stored: [*rows, *cols], turned: false, rows: None, cols: None };
    Ok(View::gathered(&[parts * rows, *cols], gather))
}

fn index_queries(h: &Hparams) -> Result<usize> {
    Ok(h.need("indexer_n_heads")? * h.need("indexer_head_dim")?)
}

fn qwen4(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.needed_size("hyper_connection.count", "hc_count")?;
    k.needed_size("hyper_connection.low_rank", "hc_lowrank")?;
    k.needed_size("attention.indexer.head_count", "indexer_n_heads")?;
    k.needed_size("attention.indexer.key_length", "indexer_head_dim")?;
    k.needed_size("attention.indexer.top_k", "indexer_budget")?;
    let (full, ratio) = (h.layers_of_type("full_attention").unwrap_or_default(), h.need("indexer_compress_ratio")?);
    let ratios: Vec<usize> = full.iter().map(|full| if *full { ratio } else { 0 }).collect();
    k.sizes("attention.compress_ratios", &ratios);
    // Counted from 1 there.
    let layers = h.list("ple_layer_ids").into_iter().flatten().filter_map(|v| (v.as_u64()? as usize).checked_sub(1));
    let layers: Vec<usize> = layers.collect();
    if layers.is_empty() {
        return Ok(());
    }
    k.sizes("ple.layers", &layers);
    k.needed_size("ple.ngram_size", "ngram_size")?;
    k.needed_size("ple.heads_per_ngram", "heads_per_ngram")?;
    k.needed_size("ple.conv_kernel", "ple_conv_kernel_size")?;
    let eos = h.get("eos_token_id").and_then(|v| v.as_u64().or(v.as_array()?.last()?.as_u64()));
    k.size("ple.eos_token_id", eos.unwrap_or(0) as usize)?;
    k.stated_size("ple.image_token_id", &["image_token_id"])?;
    if let Some(cols) = k.columns(".ngram_embedding.shard_0.weight") {
        k.size("embedding_length_per_layer_input", cols)?;
    }
    // Beyond the integers that a float holds.
    for (key, name) in [
        ("ple.layer_multipliers", "ple_embedding.layer_multipliers"),
        ("ple.head_offsets", "ple_embedding.ngram_heads_offsets"),
        ("ple.head_vocab_sizes", "ple_embedding.ngram_heads_vocab_sizes"),
    ] {
        k.integers(key, name)?;
    }
    Ok(())
}

const PLUS_ONE_AND_CONV: &[(&str, Change)] = &[
    ("ssm_a", Change::NegExp),
    ("ssm_conv1d.weight", Change::Squeeze),
    ("attn_norm.weight", Change::PlusOne),
    ("post_attention_norm.weight", Change::PlusOne),
    ("attn_q_norm.weight", Change::PlusOne),
    ("attn_k_norm.weight", Change::PlusOne),
    ("nextn.enorm.weight", Change::PlusOne),
    ("nextn.hnorm.weight", Change::PlusOne),
    ("nextn.shared_head_norm.weight", Change::PlusOne),
    ("output_norm.weight", Change::PlusOne),
];

fn thinker(_: &Hparams, name: &str) -> Named {
    Named::Keep(name.replace("thinker.", ""))
}

/// The template that Qwen's sound models are meant to have.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// `mtp.*` becomes the blocks behind the last.
fn mtp(h: &Hparams, name: &str) -> Named {
    let name = name.strip_prefix("model.").filter(|rest| rest.starts_with("mtp.")).unwrap_or(name);
    let Some(rest) = name.strip_prefix("mtp.") else { return Named::Keep(name.into()) };
    let blocks = h.blocks().unwrap_or(0);
    if let Some((index, rest)) = rest.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        return Named::Keep(format!("model.layers.{}.{rest}", blocks + index.parse::<usize>().unwrap_or(0)));
    }
    let (stem, suffix) = rest.split_once('.').unwrap_or((rest, ""));
    let stem = match stem {
        "fc" => "eh_proj",
        "pre_fc_norm_embedding" => "enorm",
        "pre_fc_norm_hidden" => "hnorm",
        "norm" => "shared_head.norm",
        _ => return Named::Keep(name.into()),
    };
    Named::Keep(format!("model.layers.{blocks}.{stem}.{suffix}"))
}

fn deepstack(k: &mut Keys) -> Result<()> {
    let vision = k.h.get("vision_config").and_then(|v| v.get("deepstack_visual_indexes")?.as_array());
    k.size("n_deepstack_layers", vision.map_or(0, Vec::len))
}

pub(super) fn expert_widths(k: &mut Keys) -> Result<()> {
    k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
    k.stated_size("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"])
}

fn hybrid(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let more = k.blocks - h.blocks()?;
    if more > 0 {
        k.size("nextn_predict_layers", more)?;
    }
    k.needed_size("ssm.conv_kernel", "linear_conv_kernel_dim")?;
    k.needed_size("ssm.state_size", "linear_key_head_dim")?;
    k.needed_size("ssm.group_count", "linear_num_key_heads")?;
    k.needed_size("ssm.time_step_rank", "linear_num_value_heads")?;
    k.size("ssm.inner_size", h.need("linear_value_head_dim")? * h.need("linear_num_value_heads")?)?;
    if let Some(mut recurrent) = h.layers_of_type("linear_attention") {
        recurrent.resize(k.blocks, false);
        k.flags("attention.recurrent_layers", recurrent);
    }
    k.needed_size("full_attention_interval", "full_attention_interval")?;
    k.partial_rotary(0.25)
}

/// Readers of these architectures demand sections.
fn sections(k: &mut Keys) -> Result<()> {
    if !k.h.rope().contains_key("mrope_section") {
        k.sizes("rope.dimension_sections", &[11, 11, 10, 0]);
    }
    Ok(())
}

/// Value heads in tiles (one of every key head, then the next of every key head) of what is stored key head by key head:
/// `len` elements of which the first `skip` stay.
fn tiled(h: &Hparams, len: usize, skip: usize) -> Result<Vec<u32>> {
    let (keys, values) = (h.need("linear_num_key_heads")?.max(1), h.need("linear_num_value_heads")?.max(1));
    let (per_key, head) = (values / keys, len.saturating_sub(skip) / values);
    let mut order = range(0, skip);
    for of_key in 0..per_key {
        for key in 0..keys {
            let first = skip + (key * per_key + of_key) * head;
            order.extend(range(first, first + head));
        }
    }
    Ok(order)
}

/// All rows, in tiled order.
fn tiled_rows(h: &Hparams, s: &Stored) -> Result<View> {
    Ok(View::rows(s, tiled(h, s.shape[0], 0)?))
}

/// Rows of queries and keys, then those of values.
fn value_rows_behind(h: &Hparams, s: &Stored, rows: usize) -> Result<View> {
    let skip = 2 * h.need("linear_key_head_dim")? * h.need("linear_num_key_heads")?;
    Ok(View::rows(s, tiled(h, rows, skip)?))
}

fn conv(h: &Hparams, s: &Stored) -> Result<View> {
    let flat = squeezed(s.shape);
    value_rows_behind(h, &Stored { shape: &flat, ..*s }, flat[0])
}

/// Stored key head by key head: query, key, values, gates of the values.
fn groups(h: &Hparams) -> Result<[usize; 3]> {
    let (keys, values) = (h.need("linear_num_key_heads")?.max(1), h.need("linear_num_value_heads")?);
    Ok([keys, h.need("linear_key_head_dim")?, values / keys * h.need("linear_value_head_dim")?])
}

fn qkv_of_groups(h: &Hparams, s: &Stored) -> Result<View> {
    let [keys, key, value] = groups(h)?;
    let all = 2 * key + 2 * value;
    let part = |from: usize, to: usize| (0..keys).flat_map(move |g| range(g * all + from, g * all + to));
    let rows = part(0, key).chain(part(key, 2 * key)).chain(part(2 * key, 2 * key + value));
    Ok(View::rows(s, rows.collect()))
}

fn gate_of_groups(h: &Hparams, s: &Stored) -> Result<View> {
    let [keys, key, value] = groups(h)?;
    let all = 2 * key + 2 * value;
    Ok(View::rows(s, (0..keys).flat_map(|g| range(g * all + 2 * key + value, (g + 1) * all)).collect()))
}
