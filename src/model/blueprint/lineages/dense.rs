//! Dense decoders.

use super::{Blueprint, Change, Hparams, Keys, Named, PAIRS, PLAIN, llama3_factors, long_rope_factors, nextn};
use crate::Result;
use crate::model::config::longrope_attention_factor;
use crate::model::family::{ByteLevel, PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::source_names::TOWER;

/// Tokenizers of Phi 3: added tokens go by their flags.
pub(super) const PHI_TOKENIZER: TokenizerFacts =
    TokenizerFacts { byte_level: ByteLevel::OfClass("GPT2Tokenizer"), added_by_flags: true, ..PLAIN_TOKENIZER };

pub(super) const LLAMA_TOKENIZER: TokenizerFacts =
    TokenizerFacts { states_space_prefix: true, by_vocabulary_size: true, ..PLAIN_TOKENIZER };

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "mistral3",
        classes: &["Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_norm ffn_gate_inp ffn_up ffn_up_exps ffn_gate ffn_gate_exps ffn_down ffn_down_exps rope_freqs",
        changes: PAIRS,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            k.llama()?;
            if k.h.str("model_type") == Some("ministral3") {
                for (key, from) in [
                    ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
                    ("attention.temperature_scale", "llama_4_scaling_beta"),
                ] {
                    if let Some(x) = k.h.rope_float(from) {
                        k.float(key, x);
                    }
                }
            }
            Ok(())
        },
        only: |json| json.get("text_config").unwrap_or(json).get("model_type") == Some(&"ministral3".into()),
        tokenizer: LLAMA_TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "apertus",
        classes: &["ApertusForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm rope_freqs",
        rename: |_, name| match name.contains(".act_fn.") {
            true => Named::Drop("numbers of the activation, which go to the metadata"),
            false => Named::Keep(name.into()),
        },
        generated: llama3_factors,
        keys: |k| {
            k.llama()?;
            for (key, name) in [
                ("xielu.alpha_n", "alpha_n"),
                ("xielu.alpha_p", "alpha_p"),
                ("xielu.beta", "beta"),
                ("xielu.eps", "eps"),
            ] {
                let values = k.scalars(&format!(".act_fn.{name}"))?;
                k.plain_floats(key, values);
            }
            Ok(())
        },
        tokenizer: LLAMA_TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "command-r",
        classes: &["CohereForCausalLM"],
        only: |json| json.get("use_qk_norm") == Some(&true.into()),
        tensors: "token_embd output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm",
        defaults: r#"{"layer_norm_eps": 1e-5, "logit_scale": 0.0625}"#,
        keys: |k| {
            k.stated_size("context_length", &["model_max_length", "max_position_embeddings"])?;
            k.stated_float("logit_scale", "logit_scale")?;
            k.text("rope.scaling.type", "none");
            Ok(())
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "jais2",
        classes: &["Jais2ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_down",
        keys: |k| k.size("rope.dimension_count", k.h.head_dim()?),
        ..PLAIN
    },
    Blueprint {
        gguf: "nemotron",
        classes: &["NemotronForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_norm ffn_up ffn_down rope_freqs",
        changes: &[
            ("attn_norm.weight", Change::PlusOne),
            ("ffn_norm.weight", Change::PlusOne),
            ("output_norm.weight", Change::PlusOne),
        ],
        defaults: r#"{"norm_eps": 1e-5, "partial_rotary_factor": 0.5}"#,
        keys: |k| {
            let h = k.h;
            k.needed_size("vocab_size", "vocab_size")?;
            if let Some(eps) = h.float_of(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"])? {
                k.float("attention.layer_norm_epsilon", eps);
            }
            let part = h.rope_float("partial_rotary_factor").unwrap_or(0.5);
            k.size("rope.dimension_count", (part * h.hidden()? as f32) as usize / h.heads()?)?;
            match h.float("factor")?.or(h.rope_float("factor")) {
                None => k.text("rope.scaling.type", "none"),
                Some(factor) => {
                    k.text("rope.scaling.type", "linear");
                    k.float("rope.scaling.factor", factor);
                }
            }
            k.meta.set("tokenizer.ggml.padding_token_id", 0u32);
            k.meta.set("tokenizer.ggml.unknown_token_id", 1u32);
            Ok(())
        },
        tokenizer: TokenizerFacts { fixed_ids: &[("padding", 0), ("unknown", 1)], ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "olmo",
        classes: &["OlmoForCausalLM", "OLMoForCausalLM"],
        tensors: "token_embd output attn_qkv attn_q attn_k attn_v attn_output ffn_up ffn_gate ffn_down",
        changes: PAIRS,
        keys: |k| {
            k.float("attention.layer_norm_epsilon", 1e-5);
            k.stated_float("attention.clamp_kqv", "clip_qkv")
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "exaone",
        classes: &["ExaoneForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output attn_rot_embd \
            ffn_norm ffn_up ffn_gate ffn_down rope_freqs",
        generated: llama3_factors,
        defaults: r#"{"layer_norm_epsilon": 1e-5}"#,
        keys: |k| k.partial_rotary(1.0),
        ..PLAIN
    },
    Blueprint {
        gguf: "exaone4",
        classes: &["Exaone4_5_ForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            post_ffw_norm ffn_up ffn_gate ffn_down attn_q_norm attn_k_norm rope_freqs nextn.eh_proj \
            nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        more_blocks: nextn,
        generated: llama3_factors,
        keys: |k| {
            k.needed_size("vocab_size", "vocab_size")?;
            k.windows_by_type()?;
            match nextn(k.h, &mut std::iter::empty()) {
                0 => Ok(()),
                n => k.size("nextn_predict_layers", n),
            }
        },
        ..PLAIN
    },
    Blueprint {
        gguf: "hunyuan-dense",
        classes: &["HunYuanDenseV1ForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down attn_q_norm attn_k_norm",
        rename: without_tied_head,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: alpha_scaled_rope,
        tokenizer: TokenizerFacts { ends_by_eod: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "hunyuan_vl",
        classes: &["HunYuanVLForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down attn_q_norm attn_k_norm",
        rename: without_tied_head,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        keys: |k| {
            let h = k.h;
            let Some(sections) =
                ["xdrope_section", "mrope_section"].iter().find_map(|key| h.rope().get(*key)?.as_array())
            else {
                return alpha_scaled_rope(k);
            };
            let sections: Vec<usize> = sections.iter().filter_map(|v| v.as_u64()).map(|n| n as usize).collect();
            if let Some(theta) = h.rope_float("rope_theta") {
                k.float("rope.freq_base", theta);
            }
            k.text("rope.scaling.type", "none");
            k.float("rope.scaling.factor", h.rope_float("factor").unwrap_or(1.0));
            k.float("rope.scaling.alpha", h.rope_float("alpha").unwrap_or(1.0));
            let context = h.need("max_position_embeddings")?;
            k.size("rope.scaling.original_context_length", context)?;
            k.size("context_length", context)?;
            k.sizes("rope.dimension_sections", &sections);
            Ok(())
        },
        tokenizer: TokenizerFacts { ends_by_eod: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    Blueprint {
        gguf: "minicpm3",
        classes: &["MiniCPM3ForCausalLM"],
        tensors: "token_embd output output_norm rope_factors_long rope_factors_short attn_norm attn_output ffn_norm \
            ffn_up ffn_gate ffn_down attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_q_a_norm attn_kv_a_norm",
        base: false,
        generated: long_rope_factors,
        keys: |k| {
            let h = k.h;
            k.file_type();
            k.needed_size("context_length", "max_position_embeddings")?;
            k.size("embedding_length", h.hidden()?)?;
            k.size("block_count", k.blocks)?;
            k.needed_size("feed_forward_length", "intermediate_size")?;
            k.size("attention.head_count", h.heads()?)?;
            k.size("attention.head_count_kv", h.kv_heads()?)?;
            k.stated_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
            k.needed_size("vocab_size", "vocab_size")?;
            k.stated_size("attention.q_lora_rank", &["q_lora_rank"])?;
            k.needed_size("attention.kv_lora_rank", "kv_lora_rank")?;
            k.size("attention.key_length", h.need("qk_nope_head_dim")? + h.need("qk_rope_head_dim")?)?;
            k.needed_size("rope.dimension_count", "qk_rope_head_dim")
        },
        defaults: r#"{"rms_norm_eps": 1e-6}"#,
        ..PLAIN
    },
    Blueprint {
        gguf: "phi3",
        classes: &["Phi4ForCausalLMV"],
        tensors: "token_embd output output_norm rope_factors_long rope_factors_short attn_norm attn_qkv attn_q attn_k attn_v \
            attn_output ffn_norm ffn_up ffn_down",
        rename: |_, name| match name.starts_with("model.mm_projector.") {
            true => Named::Drop(TOWER),
            false => Named::Keep(name.into()),
        },
        base: false,
        generated: long_rope_factors,
        keys: phi3,
        tokenizer: PHI_TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "paddleocr",
        classes: &["PaddleOCRVLForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_gate ffn_down",
        rename: |_, name| match name.starts_with("mlp_AR.") || name.starts_with("model.projector.") {
            true => Named::Drop(TOWER),
            false => super::renamed(name, "ernie.", "model."),
        },
        tokenizer: TokenizerFacts { states_space_prefix: true, ..PLAIN_TOKENIZER },
        ..PLAIN
    },
    STABLELM,
    Blueprint {
        classes: &["StableLmForCausalLM"],
        only: |json| {
            let flag = |key: &str| json.get(key) == Some(&true.into());
            flag("use_parallel_residual") && !flag("qk_layernorm")
        },
        ..STABLELM
    },
];

const STABLELM: Blueprint = Blueprint {
    gguf: "stablelm",
    classes: &["LlavaStableLMEpochForCausalLM", "StableLMEpochForCausalLM"],
    tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
        ffn_gate ffn_down attn_q_norm attn_k_norm rope_freqs",
    keys: |k| {
        k.partial_rotary(0.25)?;
        k.flag("use_parallel_residual", k.h.flag("use_parallel_residual"));
        Ok(())
    },
    ..PLAIN
};

/// `lm_head.weight` of a model that ties it.
pub(super) fn without_tied_head(h: &Hparams, name: &str) -> Named {
    match name == "lm_head.weight" && h.flag("tie_word_embeddings") {
        true => Named::Drop("the configuration ties the output to the embedding"),
        false => Named::Keep(name.into()),
    }
}

/// Hunyuan scales the rotary base by a power of alpha.
pub(super) fn alpha_scaled_rope(k: &mut Keys) -> Result<()> {
    let h = k.h;
    if h.rope().get("rope_type").and_then(|v| v.as_str()) != Some("dynamic") {
        return Ok(());
    }
    let number = |key: &str, default: f64| h.rope().get(key).and_then(|v| v.as_f64()).unwrap_or(default);
    let (alpha, theta, dims) = (number("alpha", 50.0), number("rope_theta", 10_000.0), h.head_dim()? as f64);
    k.float("rope.freq_base", (theta * alpha.powf(dims / (dims - 2.0))) as f32);
    k.text("rope.scaling.type", "none");
    k.float("rope.scaling.factor", 1.0);
    // What the configuration says is the context before the scaling.
    k.size("rope.scaling.original_context_length", 256 * 1024)?;
    k.size("context_length", 256 * 1024)
}

/// What Phi 3 has instead of the usual metadata.
pub(super) fn phi3(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let (hidden, heads) = (h.hidden()?, h.heads()?);
    let context = h.size_of(&["n_positions", "max_position_embeddings"])?.unwrap_or(131_072);
    let original = h.rope_float("original_max_position_embeddings").map_or(4096, |n| n as usize);
    k.size("context_length", context)?;
    k.size("rope.scaling.original_context_length", original)?;
    k.size("embedding_length", hidden)?;
    k.needed_size("feed_forward_length", "intermediate_size")?;
    k.size("block_count", k.blocks)?;
    k.size("attention.head_count", heads)?;
    k.size("attention.head_count_kv", h.kv_heads()?)?;
    k.stated_float("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
    let part = h.rope_float("partial_rotary_factor").unwrap_or(1.0);
    k.size("rope.dimension_count", (part * hidden as f32) as usize / heads)?;
    if let Some(theta) = h.rope_float("rope_theta") {
        k.float("rope.freq_base", theta);
    }
    k.file_type();
    k.size("attention.sliding_window", h.size("sliding_window")?.unwrap_or(0))?;
    if h.rope().contains_key("long_factor") {
        k.float("rope.scaling.attn_factor", longrope_attention_factor(context, original));
    }
    Ok(())
}
