//! Qwen 2 and 3, dense and with experts.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, HEAD_NORMS, MLP, QWEN_EXPERTS, SHARED_EXPERT, TWO_NORMS};
use crate::model::family::{
    ByteLevel, DEFAULTS, Defaults, ExpertKeys, Family, HfName, PLAIN_TOKENIZER, TokenizerFacts, WindowRule,
};
use crate::model::keys::rows::{EXPERT_WIDTHS, TEXT_MODEL};

/// Byte-level, whatever else lies in the folder.
const BYTE_LEVEL: TokenizerFacts = TokenizerFacts { byte_level: ByteLevel::Always, ..PLAIN_TOKENIZER };

pub(super) static FAMILIES: &[Family] = &[
    Family {
        gguf: "qwen2",
        hf: &[HfName {
            architecture: "Qwen2ForCausalLM",
            model_type: "qwen2",
            defaults: Defaults { kv_heads: Some(32), window: WindowRule::Late, ..DEFAULTS },
            experts: None,
        }],
        tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
        qkv_bias: true,
        ..PLAIN
    },
    Family {
        gguf: "qwen2moe",
        hf: &[HfName {
            architecture: "Qwen2MoeForCausalLM",
            model_type: "qwen2_moe",
            defaults: Defaults { kv_heads: Some(16), window: WindowRule::EarlyAlternate, ..DEFAULTS },
            experts: Some(ExpertKeys {
                width: "moe_intermediate_size",
                shared: Some("shared_expert_intermediate_size"),
                norm_topk: Some("norm_topk_prob"),
            }),
        }],
        tables: &[ENDS, TWO_NORMS, ATTENTION, QWEN_EXPERTS, SHARED_EXPERT],
        keys: &[TEXT_MODEL, EXPERT_WIDTHS],
        qkv_bias: true,
        tokenizer: BYTE_LEVEL,
        ..PLAIN
    },
    Family {
        gguf: "qwen3",
        hf: &[HfName {
            architecture: "Qwen3ForCausalLM",
            model_type: "qwen3",
            defaults: Defaults {
                kv_heads: Some(32),
                head_dim: Some(128),
                states_head_dim: true,
                window: WindowRule::Late,
                ..DEFAULTS
            },
            experts: None,
        }],
        tables: &[ENDS, TWO_NORMS, HEAD_NORMS, ATTENTION, MLP],
        ..PLAIN
    },
    Family {
        gguf: "qwen3moe",
        hf: &[HfName {
            architecture: "Qwen3MoeForCausalLM",
            model_type: "qwen3_moe",
            defaults: Defaults { kv_heads: Some(4), window: WindowRule::Switched, ..DEFAULTS },
            experts: Some(ExpertKeys {
                width: "moe_intermediate_size",
                shared: None,
                norm_topk: Some("norm_topk_prob"),
            }),
        }],
        tables: &[ENDS, TWO_NORMS, HEAD_NORMS, ATTENTION, QWEN_EXPERTS],
        keys: &[TEXT_MODEL, EXPERT_WIDTHS],
        norm_topk: true,
        tokenizer: BYTE_LEVEL,
        ..PLAIN
    },
];
