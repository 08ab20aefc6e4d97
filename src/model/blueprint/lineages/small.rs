//! Dense decoders that have no relatives here, and those without a fixed order of reading.

use super::super::view::{Stored, View, pairs, range};
use super::{Blueprint, Change, Hparams, Keys, Named, PAIRS, PLAIN};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::tensor::ValueMap;

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "hrm_text",
        classes: &["HrmTextForCausalLM"],
        tensors: "token_embd output attn_q attn_k attn_v attn_output attn_gate ffn_up ffn_gate ffn_down",
        names: &[("model.z_L_init", "hrm.z_l_init")],
        rename: stacked,
        splits: &[
            (
                "self_attn.gqkv_proj.weight",
                &[
                    ("attn_gate.weight", Change::View(|_, s| Ok(quarter(s, 0)))),
                    ("attn_q.weight", Change::View(|_, s| Ok(quarter(s, 1)))),
                    ("attn_k.weight", Change::View(|_, s| Ok(quarter(s, 2)))),
                    ("attn_v.weight", Change::View(|_, s| Ok(quarter(s, 3)))),
                ],
            ),
            ("mlp.gate_up_proj.weight", GATE_UP),
        ],
        // Every pass through a stack has a place in the cache of its own.
        more_blocks: |h, _| {
            let cycles = |key: &str| h.size(key).ok().flatten().unwrap_or(0);
            let passes = cycles("H_cycles") * (cycles("L_cycles") + 1);
            (layers_per_stack(h) * passes).saturating_sub(h.blocks().unwrap_or(0))
        },
        keys: |k| {
            let h = k.h;
            k.size("rope.dimension_count", h.head_dim()?)?;
            k.stated_float("embedding_scale", "embedding_scale")?;
            k.size("hrm.layers_per_stack", layers_per_stack(h))?;
            k.needed_size("hrm.h_cycles", "H_cycles")?;
            k.needed_size("hrm.l_cycles", "L_cycles")?;
            k.flag("hrm.prefix_lm", h.flag("prefix_lm"));
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "ernie4_5",
        classes: &["Ernie4_5_ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down",
        rename: |_, name| super::renamed(name, "ernie.", "model."),
        splits: &[
            (
                "self_attn.qkv_proj.weight",
                &[
                    ("attn_q.weight", Change::View(|h, s| fused_rows(h, s, 0))),
                    ("attn_k.weight", Change::View(|h, s| fused_rows(h, s, 1))),
                    ("attn_v.weight", Change::View(|h, s| fused_rows(h, s, 2))),
                ],
            ),
            // Stored the other way round than its name says.
            ("mlp.up_gate_proj.weight", GATE_UP),
        ],
        tokenizer: TokenizerFacts { states_space_prefix: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "bitnet",
        classes: &["BitnetForCausalLM", "BitNetForCausalLM"],
        tensors: "token_embd output_norm attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_up ffn_gate ffn_down \
            attn_sub_norm ffn_sub_norm",
        names: &[
            ("model.layers.{}.self_attn.attn_sub_norm", "blk.{}.attn_sub_norm"),
            ("model.layers.{}.mlp.ffn_sub_norm", "blk.{}.ffn_sub_norm"),
        ],
        rename: super::dense::without_tied_head,
        changes: &[
            ("attn_q.weight", TERNARY),
            ("attn_k.weight", TERNARY),
            ("attn_v.weight", TERNARY),
            ("attn_output.weight", TERNARY),
            ("ffn_up.weight", TERNARY),
            ("ffn_gate.weight", TERNARY),
            ("ffn_down.weight", TERNARY),
        ],
        keys: |k| {
            k.text("rope.scaling.type", "linear");
            k.float("rope.scaling.factor", 1.0);
            // BitNet b1.58 2B4T; readers take SiLU where nothing is said.
            if let Some(activation) = k.h.str("hidden_act").filter(|name| *name != "silu") {
                k.text("hidden_activation", activation);
            }
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "plm",
        classes: &["PLMForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_output ffn_norm ffn_up ffn_down attn_kv_a_mqa \
            attn_kv_b attn_kv_a_norm",
        keys: |k| {
            let h = k.h;
            let rotary = h.need("qk_rope_head_dim")?;
            k.needed_size("vocab_size", "vocab_size")?;
            k.needed_size("attention.kv_lora_rank", "kv_lora_rank")?;
            k.head_lengths(h.need("qk_nope_head_dim")? + rotary, h.need("v_head_dim")?)?;
            k.size("rope.dimension_count", rotary)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "openelm",
        classes: &["OpenELMForCausalLM"],
        tensors: "token_embd output_norm attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_gate ffn_down attn_q_norm \
            attn_k_norm",
        splits: &[("ffn.proj_1.weight", GATE_UP)],
        base: false,
        keys: openelm,
        ..PLAIN
    },
    Blueprint {
        gguf: "chameleon",
        classes: &["ChameleonForConditionalGeneration", "ChameleonForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down attn_q_norm attn_k_norm",
        rename: |_, name| match name.starts_with("model.vqmodel.") {
            true => Named::Drop(crate::model::source_names::TOWER),
            false => Named::Keep(name.into()),
        },
        changes: &[
            ("attn_q.weight", Change::QueryPairs),
            ("attn_q.bias", Change::QueryPairs),
            ("attn_k.weight", Change::KeyPairs),
            ("attn_k.bias", Change::KeyPairs),
            ("attn_q_norm.weight", HEADS_IN_PAIRS),
            ("attn_q_norm.bias", HEADS_IN_PAIRS),
            ("attn_k_norm.weight", HEADS_IN_PAIRS),
            ("attn_k_norm.bias", HEADS_IN_PAIRS),
        ],
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.flag("swin_norm", k.h.flag("swin_norm"));
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "maincoder",
        classes: &["MaincoderForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down attn_q_norm attn_k_norm",
        keys: |k| k.stated_size("rope.dimension_count", &["head_dim"]),
        ..PLAIN
    },
    Blueprint {
        gguf: "spark2_5",
        classes: &["Spark2_5ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_output attn_gate ffn_norm ffn_up ffn_gate ffn_down",
        names: &[("model.layers.{}.self_attn.q_k_v_proj", "blk.{}.attn_qkv")],
        keys: |k| {
            let h = k.h;
            k.needed_size("vocab_size", "vocab_size")?;
            k.windows_by_type()?;
            let part = h.rope_float("partial_rotary_factor").unwrap_or(1.0);
            let local = h.local_rope().and_then(|rope| rope.get("partial_rotary_factor")?.as_f64()).unwrap_or(1.0);
            let head = h.head_dim()? as f64;
            k.size("rope.dimension_count", (head * f64::from(part)) as usize)?;
            k.size("rope.dimension_count_swa", (head * local) as usize)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "talkie",
        classes: &["TalkieForCausalLM"],
        tensors: "token_embd output attn_q attn_k attn_v attn_output ffn_up ffn_gate ffn_down attn_q_norm layer_output_scale",
        names: &[
            ("model.blocks.{}.attn_gain.a_g", "blk.{}.attn_output.scale"),
            ("model.blocks.{}.mlp_gain.a_g", "blk.{}.ffn_down.scale"),
        ],
        rename: |_, name| match name {
            "lm_head_gain.w_g" => Named::Drop("a number, which goes to the metadata"),
            name if name.ends_with("_gain.a_g") || name.ends_with(".weight") => Named::Keep(name.into()),
            name => Named::Keep(format!("{name}.weight")),
        },
        changes: &[
            ("attn_q.weight", Change::View(turned_back)),
            ("attn_k.weight", Change::View(turned_back)),
            ("attn_q_norm.weight", Change::Column),
        ],
        keys: |k| {
            k.float("attention.layer_norm_rms_epsilon", f32::EPSILON);
            if let Some(gain) = k.scalars("lm_head_gain.w_g")?.first() {
                k.float("logit_scale", *gain);
            }
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "pangu-embedded",
        classes: &["PanguEmbeddedForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down",
        rename: super::dense::without_tied_head,
        keys: |k| {
            let head = k.h.head_dim()?;
            k.head_lengths(head, head)?;
            k.llama()
        },
        tokenizer: TokenizerFacts { states_space_prefix: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "llada",
        classes: &["LLaDAModelLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down rope_freqs",
        changes: PAIRS,
        keys: |k| {
            let h = k.h;
            k.pooling()?;
            k.needed_size("vocab_size", "vocab_size")?;
            let width = h.size_of(&["hidden_size", "d_model"])?.unwrap_or(0);
            k.size("rope.dimension_count", h.size("head_dim")?.unwrap_or(width / h.heads()?))?;
            k.size("context_length", h.size("max_sequence_length")?.unwrap_or(4096))?;
            k.size("embedding_length", h.size("d_model")?.unwrap_or(4096))?;
            k.size("feed_forward_length", h.size("mlp_hidden_size")?.unwrap_or(12288))?;
            diffusion(k);
            Ok(())
        },
        tokenizer: TokenizerFacts { adds: &[("bos", true)], ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "llada-moe",
        classes: &["LLaDAMoEModel", "LLaDAMoEModelLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        keys: |k| {
            k.stated_size("expert_feed_forward_length", &["expert_intermediate_size"])?;
            // The one published vocabulary's.
            k.meta.set("tokenizer.ggml.mask_token_id", 156_895u32);
            diffusion(k);
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "dream",
        classes: &["DreamModel"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down rope_freqs",
        keys: |k| {
            k.pooling()?;
            reads_both_ways(k)
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "rnd1",
        classes: &["RND1"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp \
            ffn_up_exps ffn_gate_exps ffn_down_exps attn_q_norm attn_k_norm",
        keys: |k| {
            super::qwen::expert_widths(k)?;
            reads_both_ways(k)
        },
        ..PLAIN
    },
];

pub(super) const GATE_UP: &[(&str, Change)] =
    &[("ffn_gate.weight", Change::Half(0)), ("ffn_up.weight", Change::Half(1))];

/// A row for each head, its channels in the order of the head's.
const HEADS_IN_PAIRS: Change = Change::View(|_, s| match s.shape {
    [_, head] => Ok(View::cols(s, pairs(*head, 1))),
    _ => Err(crate::Error::bad_input("is not one row for each head").tensor(s.name)),
});

/// Every matrix has three values.
const TERNARY: Change = Change::View(|_, s| Ok(View::same(s.shape).with(ValueMap::Ternary(Default::default()))));

/// Without causal mask, and with the id of the token that stands for what is not known yet.
fn reads_both_ways(k: &mut Keys) -> Result<()> {
    k.flag("attention.causal", false);
    if let Some(id) = k.h.size("mask_token_id")? {
        k.meta.set("tokenizer.ggml.mask_token_id", id as u32);
    }
    Ok(())
}

fn diffusion(k: &mut Keys) {
    k.flag("attention.causal", false);
    k.meta.set("diffusion.shift_logits", false);
}

fn layers_per_stack(h: &Hparams) -> usize {
    h.size("num_layers_per_stack").ok().flatten().filter(|n| *n > 0).or(h.blocks().ok()).unwrap_or(0)
}

/// The stack of high level lies behind that of low level.
fn stacked(h: &Hparams, name: &str) -> Named {
    let of = |prefix: &str, first: usize| {
        let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        let rest = rest.strip_prefix("attn.").map_or(rest.to_string(), |rest| format!("self_attn.{rest}"));
        Some(format!("model.layers.{}.{rest}", layer.parse::<usize>().ok()? + first))
    };
    let placed = of("model.L_module.layers.", 0).or_else(|| of("model.H_module.layers.", layers_per_stack(h)));
    Named::Keep(placed.unwrap_or_else(|| name.to_string()))
}

fn quarter(s: &Stored, i: usize) -> View {
    let rows = s.shape[0] / 4;
    View::rows(s, range(i * rows, (i + 1) * rows))
}

/// Queries, keys and values one below the other.
pub(super) fn fused_rows(h: &Hparams, s: &Stored, part: usize) -> Result<View> {
    let (head, heads, kv) = (h.head_dim()?, h.heads()?, h.kv_heads()?);
    let ends = [0, heads * head, (heads + kv) * head, (heads + 2 * kv) * head];
    if s.shape[0] != ends[3] {
        let what = format!("has {} rows, not those of {heads} and twice {kv} heads of {head}", s.shape[0]);
        return Err(crate::Error::bad_input(what).tensor(s.name));
    }
    Ok(View::rows(s, range(ends[part], ends[part + 1])))
}

/// The second half of every head with its sign turned: its rotation goes the other way.
fn turned_back(h: &Hparams, s: &Stored) -> Result<View> {
    let head = h.head_dim()?.max(1);
    let sign = |row: usize| if row % head < head / 2 { [1.0, 1.0] } else { [-1.0, 1.0] };
    Ok(View::same(s.shape).with(ValueMap::RowTimes((0..s.shape[0]).map(sign).collect())))
}

fn openelm(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let (width, divisor) = (h.need("model_dim")? as f64, h.need("ffn_dim_divisor")?.max(1));
    let sizes = |key: &str| -> Result<Vec<usize>> {
        let list = h.list(key).ok_or_else(|| crate::model::hf_json::missing(key))?;
        Ok(list.iter().filter_map(|v| v.as_u64()).map(|n| n as usize).collect())
    };
    // To the nearest multiple, but never a tenth below.
    let divisible = |x: f64| {
        let nearest = ((x + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
        if (nearest as f64) < 0.9 * x { nearest + divisor } else { nearest }
    };
    let factors = h.list("ffn_multipliers").into_iter().flatten();
    let of_factor = |v: &serde_json::Value| match v.as_f64() {
        Some(factor) if (0.0..1e4).contains(&factor) => Ok(divisible(factor * width)),
        _ => Err(crate::model::hf_json::wrong("ffn_multipliers", v, "factors of the width")),
    };
    let widths: Vec<usize> = factors.map(of_factor).collect::<Result<_>>()?;
    let head = h.need("head_dim")?;
    k.size("block_count", k.blocks)?;
    k.needed_size("context_length", "max_context_length")?;
    k.needed_size("embedding_length", "model_dim")?;
    k.sizes("feed_forward_length", &widths);
    k.sizes("attention.head_count", &sizes("num_query_heads")?);
    k.sizes("attention.head_count_kv", &sizes("num_kv_heads")?);
    k.stated_float("rope.freq_base", "rope_freq_constant")?;
    k.float("attention.layer_norm_rms_epsilon", 1e-6);
    k.size("rope.dimension_count", head)?;
    k.head_lengths(head, head)?;
    k.file_type();
    Ok(())
}
