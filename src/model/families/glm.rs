//! GLM-4 0414: norms before and after each part, gate and up in one matrix, half of each head rotated in pairs.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, FUSED_MLP};
use crate::Result;
use crate::model::config::{LayerConfig, Wiring};
use crate::model::family::Reading;
use crate::model::family::{
    DEFAULTS, Defaults, Dim, Family, HfName, PLAIN_TOKENIZER, Rotation, Row, Source, TokenizerFacts, When,
};
use crate::model::keys::rows::{ROTATION, TEXT_MODEL};
use crate::model::role::Role;

const fn norm(source: &'static [Source], gguf: &'static str, role: Role) -> Row {
    Row { sources: source, gguf, role, shape: &[Dim::Hidden], when: When::Always }
}

const NORMS: &[Row] = &[
    norm(&[Source::One("model.layers.{layer}.input_layernorm.weight")], "blk.{layer}.attn_norm.weight", Role::AttnNorm),
    norm(
        &[Source::One("model.layers.{layer}.post_self_attn_layernorm.weight")],
        "blk.{layer}.post_attention_norm.weight",
        Role::PostAttnNorm,
    ),
    norm(
        &[Source::One("model.layers.{layer}.post_attention_layernorm.weight")],
        "blk.{layer}.ffn_norm.weight",
        Role::FfnNorm,
    ),
    norm(
        &[Source::One("model.layers.{layer}.post_mlp_layernorm.weight")],
        "blk.{layer}.post_ffw_norm.weight",
        Role::PostFfnNorm,
    ),
];

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "glm4",
    hf: &[HfName {
        architecture: "Glm4ForCausalLM",
        model_type: "glm4",
        defaults: Defaults {
            kv_heads: Some(2),
            head_dim: Some(128),
            states_head_dim: true,
            context: 131_072,
            norm_eps: 1.5625e-7,
            partial_rotary: 0.5,
            ..DEFAULTS
        },
        experts: None,
    }],
    tables: &[ENDS, NORMS, ATTENTION, FUSED_MLP],
    keys: &[TEXT_MODEL, ROTATION],
    rotation: Rotation::Pairs,
    wiring: Wiring { post_norm: true, ..Wiring::SEQUENTIAL },
    partial_rotary: true,
    tokenizer: TokenizerFacts {
        named: &[("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")],
        ..PLAIN_TOKENIZER
    },
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    r.layers_with_biases(r.flag("attention_bias", false)?, false, false)
}
