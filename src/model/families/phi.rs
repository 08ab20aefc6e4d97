//! Phi-3 and Phi-4: fused query-key-value and gate-up matrices, long-rope, part of each head rotated.

use super::plain::PLAIN;
use super::rows::{ENDS, FUSED_ATTENTION, FUSED_MLP, TWO_NORMS};
use crate::model::family::{ByteLevel, DEFAULTS, Defaults, Family, HfName, PLAIN_TOKENIZER, TokenizerFacts};
use crate::model::keys::rows::PHI3;

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "phi3",
    hf: &[HfName {
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        defaults: Defaults { context: 4096, norm_eps: 1e-5, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, FUSED_ATTENTION, FUSED_MLP],
    keys: &[PHI3],
    partial_rotary: true,
    long_rope: true,
    // Phi-4 is byte-level.
    tokenizer: TokenizerFacts {
        byte_level: ByteLevel::OfClass("GPT2Tokenizer"),
        added_by_flags: true,
        ..PLAIN_TOKENIZER
    },
    ..PLAIN
}];

/// Whether white space after a special token belongs to it. llama.cpp knows that only by the model's name
/// (`general.name`).
pub fn swallows_space(model_name: &str, token: &str) -> bool {
    let name = model_name.to_lowercase();
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    phi3 && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>")
}
