//! ERNIE 4.5, dense: Llama whose rotary pairs are neighbours on the Hub too.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, TWO_NORMS};
use crate::Result;
use crate::model::config::LayerConfig;
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName, Rotation};

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "ernie4_5",
    hf: &[HfName {
        architecture: "Ernie4_5ForCausalLM",
        model_type: "ernie4_5",
        defaults: Defaults {
            kv_heads: Some(2),
            head_dim: Some(128),
            states_head_dim: true,
            context: 131_072,
            norm_eps: 1e-5,
            theta: 500_000.0,
            tied: true,
            ..DEFAULTS
        },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
    rotation: Rotation::Pairs,
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let bias = r.flag("use_bias", false)?;
    r.layers_with_biases(bias, bias, bias)
}
