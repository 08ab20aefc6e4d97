//! StarCoder 2: LayerNorm, biases everywhere, a feed-forward block without gate.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, OUTPUT_NORM_BIAS, TWO_NORM_BIASES, TWO_NORMS};
use crate::Result;
use crate::model::config::{Activation, LayerConfig, Norm};
use crate::model::family::Reading;
use crate::model::family::{Activations, DEFAULTS, Defaults, Dim, Family, HfName, Row, Source, When};
use crate::model::role::Role;

const FC: &[Row] = &[
    Row {
        sources: &[Source::One("model.layers.{layer}.mlp.c_fc.weight")],
        gguf: "blk.{layer}.ffn_up.weight",
        role: Role::FfnUp,
        shape: &[Dim::Ffn, Dim::Hidden],
        when: When::Dense,
    },
    Row {
        sources: &[Source::One("model.layers.{layer}.mlp.c_proj.weight")],
        gguf: "blk.{layer}.ffn_down.weight",
        role: Role::FfnDown,
        shape: &[Dim::Hidden, Dim::Ffn],
        when: When::Dense,
    },
    Row {
        sources: &[Source::One("model.layers.{layer}.mlp.c_fc.bias")],
        gguf: "blk.{layer}.ffn_up.bias",
        role: Role::FfnUpBias,
        shape: &[Dim::Ffn],
        when: When::DenseBias,
    },
    Row {
        sources: &[Source::One("model.layers.{layer}.mlp.c_proj.bias")],
        gguf: "blk.{layer}.ffn_down.bias",
        role: Role::FfnDownBias,
        shape: &[Dim::Hidden],
        when: When::DenseBias,
    },
];

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "starcoder2",
    hf: &[HfName {
        architecture: "Starcoder2ForCausalLM",
        model_type: "starcoder2",
        defaults: Defaults { kv_heads: Some(2), context: 4096, norm_eps: 1e-5, tied: true, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, OUTPUT_NORM_BIAS, TWO_NORMS, TWO_NORM_BIASES, ATTENTION, FC],
    norm: Norm::Layer,
    norm_eps_key: "norm_epsilon",
    activations: Activations {
        key: "hidden_act",
        names: &[("gelu_pytorch_tanh", Activation::GeluTanh)],
        default: Activation::GeluTanh,
    },
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let bias = r.flag("use_bias", true)?;
    r.layers_with_biases(bias, bias, bias)
}
