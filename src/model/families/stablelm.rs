//! StableLM 2 1.6B: LayerNorm, a quarter of each head rotated, biases on query, key and value.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, OUTPUT_NORM_BIAS, TWO_NORM_BIASES, TWO_NORMS};
use crate::Result;
use crate::model::config::{LayerConfig, Norm};
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName};
use crate::model::keys::rows::STABLELM;

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "stablelm",
    hf: &[HfName {
        architecture: "StableLmForCausalLM",
        model_type: "stablelm",
        defaults: Defaults { kv_heads: Some(32), context: 4096, norm_eps: 1e-5, partial_rotary: 0.25, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, OUTPUT_NORM_BIAS, TWO_NORMS, TWO_NORM_BIASES, ATTENTION, MLP],
    keys: &[STABLELM],
    norm: Norm::Layer,
    norm_eps_key: "layer_norm_eps",
    partial_rotary: true,
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    // StableLM 2 12B.
    r.refuse("qk_layernorm")?;
    r.refuse("use_parallel_residual")?;
    r.layers_with_biases(r.flag("use_qkv_bias", false)?, false, false)
}
