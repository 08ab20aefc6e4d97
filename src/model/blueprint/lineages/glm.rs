//! GLM: the first with gate and up in one matrix, image models, mixtures with multi-token prediction, and GLM-5 with its
//! indexer.

use super::super::base::Gating;
use super::super::view::{Stored, View};
use super::deepseek::{LATENT, indexer, latent};
use super::shapes;
use super::{Blueprint, Change, Hparams, Keys, Named, PLAIN, nextn};
use crate::Result;
use crate::model::family::{PLAIN_TOKENIZER, TokenizerFacts};

/// Its tokenizers name no special tokens; these texts are they.
pub(super) const TOKENIZER: TokenizerFacts = TokenizerFacts {
    named: &[("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")],
    ..PLAIN_TOKENIZER
};

/// Those of the mixtures.
pub(super) const MIXTURE_TOKENIZER: TokenizerFacts = TokenizerFacts {
    named: &[("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")],
    ..PLAIN_TOKENIZER
};

pub(super) static ALL: &[Blueprint] = &[
    Blueprint {
        gguf: "chatglm",
        classes: &["GlmForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_down rope_freqs",
        base: false,
        keys: chatglm,
        tokenizer: TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "chatglm",
        classes: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output ffn_norm ffn_up \
            ffn_down rope_freqs",
        rename: |_, name| match name.ends_with("rotary_pos_emb.inv_freq") {
            true => Named::Drop("a buffer that is computed from the configuration"),
            false => Named::Keep(name.strip_prefix("transformer.").unwrap_or(name).into()),
        },
        base: false,
        keys: chatglm,
        tokenizer: TOKENIZER,
        ..PLAIN
    },
    Blueprint {
        gguf: "glm4",
        classes: &["Glm4vForConditionalGeneration", "GlmOcrForConditionalGeneration"],
        tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
            ffn_norm post_ffw_norm ffn_up ffn_down rope_freqs nextn.eh_proj nextn.embed_tokens nextn.enorm \
            nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        changes: &[
            ("attn_q.weight", Change::View(halves)),
            ("attn_q.bias", Change::View(halves)),
            ("attn_k.weight", Change::View(halves)),
            ("attn_k.bias", Change::View(halves)),
        ],
        more_blocks: nextn,
        keys: |k| {
            k.partial_rotary(0.5)?;
            k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])
        },
        tokenizer: TOKENIZER,
        ..PLAIN
    },
    Blueprint { classes: &["Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"], ..MIXTURE },
    Blueprint {
        classes: &["SolarOpenForCausalLM"],
        tokenizer: TokenizerFacts {
            named: &[("eos", "<|endoftext|>"), ("eot", "<|endoftext|>"), ("unk", "<unk>"), ("bos", "<|startoftext|>")],
            ..PLAIN_TOKENIZER
        },
        ..MIXTURE
    },
    Blueprint {
        classes: &["Glm4MoeLiteForCausalLM"],
        shapes: Some(shapes::latent),
        more_blocks: nextn,
        keys: lite,
        tokenizer: MIXTURE_TOKENIZER,
        rename: super::same,
        ..LATENT
    },
    Blueprint {
        gguf: "glm-dsa",
        classes: &["GlmMoeDsaForCausalLM"],
        tensors: "token_embd output output_norm attn_norm attn_q attn_output attn_rot_embd ffn_norm ffn_gate_inp \
            exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
            ffn_down_exps ffn_down_shexp rope_freqs attn_q_a attn_q_b attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b \
            attn_q_a_norm attn_kv_a_norm indexer.k_norm indexer.proj indexer.attn_k indexer.attn_q_b nextn.eh_proj \
            nextn.embed_tokens nextn.enorm nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
        rename: super::same,
        more_blocks: nextn,
        keys: |k| {
            latent(k)?;
            let dims = k.h.need("qk_rope_head_dim")? as f32 * k.h.rope_float("partial_rotary_factor").unwrap_or(1.0);
            k.size("rope.dimension_count", dims as usize)?;
            k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])?;
            indexer(k)?;
            if let Some(types) = k.h.list("indexer_types") {
                k.flags("attention.indexer.types", types.iter().map(|t| t == "full").collect());
            }
            Ok(())
        },
        tokenizer: MIXTURE_TOKENIZER,
        ..LATENT
    },
];

const MIXTURE: Blueprint = Blueprint {
    gguf: "glm4moe",
    shapes: Some(shapes::glm_moe),
    tensors: "token_embd output output_norm attn_norm attn_qkv attn_q attn_k attn_v attn_output post_attention_norm \
        ffn_gate_inp exp_probs_b ffn_up ffn_up_exps ffn_up_shexp ffn_gate ffn_gate_exps ffn_gate_shexp ffn_down \
        ffn_down_exps ffn_down_shexp attn_q_norm attn_k_norm nextn.eh_proj nextn.embed_tokens nextn.enorm \
        nextn.hnorm nextn.shared_head_head nextn.shared_head_norm",
    more_blocks: nextn,
    keys: |k| {
        k.partial_rotary(0.5)?;
        k.stated_size("expert_count", &["n_routed_experts"])?;
        k.stated_size("expert_feed_forward_length", &["moe_intermediate_size"])?;
        k.stated_size("expert_shared_count", &["n_shared_experts"])?;
        k.stated_size("leading_dense_block_count", &["first_k_dense_replace"])?;
        k.gating(Gating::Sigmoid);
        k.stated_float("expert_weights_scale", "routed_scaling_factor")?;
        k.stated_flag("expert_weights_norm", "norm_topk_prob");
        k.stated_size("nextn_predict_layers", &["num_nextn_predict_layers"])
    },
    tokenizer: MIXTURE_TOKENIZER,
    ..PLAIN
};

fn lite(k: &mut Keys) -> Result<()> {
    latent(k)?;
    match nextn(k.h, &mut std::iter::empty()) {
        0 => Ok(()),
        n => k.size("nextn_predict_layers", n),
    }
}

fn chatglm(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.size("context_length", h.size("seq_length")?.map_or_else(|| h.hidden(), Ok)?)?;
    k.size("embedding_length", h.hidden()?)?;
    k.stated_size("feed_forward_length", &["ffn_hidden_size", "intermediate_size"])?;
    k.size("block_count", k.blocks)?;
    k.size("attention.head_count", h.heads()?)?;
    k.stated_size("attention.head_count_kv", &["multi_query_group_num", "num_key_value_heads"])?;
    // The converter looks for ChatGLM's name of it only.
    k.float("attention.layer_norm_rms_epsilon", h.float("layernorm_epsilon")?.unwrap_or(1e-5));
    k.file_type();
    let dims = h.size("attention_dim")?.map_or_else(|| h.head_dim(), Ok)?;
    let part = h.rope_float("partial_rotary_factor").unwrap_or(0.5);
    k.size("rope.dimension_count", (dims as f32 * part) as usize)?;
    k.meta.set("tokenizer.ggml.add_bos_token", false);
    let base = match h.float("rope_ratio")? {
        Some(ratio) => Some(10_000.0 * ratio),
        None => h.rope_float("rope_theta"),
    };
    k.float("rope.freq_base", base.unwrap_or(10_000.0));
    Ok(())
}

/// Of every head, rotated pairs become two halves; without sections they stay.
fn halves(h: &Hparams, s: &Stored) -> Result<View> {
    if !h.rope().contains_key("mrope_section") {
        return Ok(View::same(s.shape));
    }
    let head = h.head_dim()?.max(1);
    let rotated = (head as f32 * h.rope_float("partial_rotary_factor").unwrap_or(0.5)) as usize;
    let stored = |i: usize| match i {
        i if i < rotated / 2 => 2 * i,
        i if i < rotated => 2 * (i - rotated / 2) + 1,
        i => i,
    };
    Ok(View::rows(s, (0..s.shape[0]).map(|row| (row / head * head + stored(row % head)) as u32).collect()))
}
