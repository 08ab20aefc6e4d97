//! Seed-OSS: Llama with biases on query, key and value. GGUF calls the norm before the feed-forward block after its name
//! on the Hub.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, ONE_NORM};
use crate::Result;
use crate::model::config::LayerConfig;
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Dim, Family, HfName, Row, Source, When};
use crate::model::role::Role;

const FFN_NORM: &[Row] = &[Row {
    sources: &[Source::One("model.layers.{layer}.post_attention_layernorm.weight")],
    gguf: "blk.{layer}.post_attention_norm.weight",
    role: Role::FfnNorm,
    shape: &[Dim::Hidden],
    when: When::Always,
}];

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "seed_oss",
    hf: &[HfName {
        architecture: "SeedOssForCausalLM",
        model_type: "seed_oss",
        defaults: Defaults {
            kv_heads: Some(8),
            head_dim: Some(128),
            states_head_dim: true,
            context: 524_288,
            ..DEFAULTS
        },
        experts: None,
    }],
    tables: &[ENDS, ONE_NORM, FFN_NORM, ATTENTION, MLP],
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let (qkv, output) = (r.flag("attention_bias", true)?, r.flag("attention_out_bias", false)?);
    r.layers_with_biases(qkv, output, r.flag("mlp_bias", false)?)
}
