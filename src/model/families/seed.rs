//! Seed-OSS: Llama with biases on query, key and value. GGUF calls the norm before the feed-forward block after its name
//! on the Hub.

use super::rows::{ATTENTION, ENDS, MLP, ONE_NORM};
use super::{DEFAULTS, Defaults, Dim, Family, HfName, PLAIN, Role, Row, Source, When};
use crate::Result;
use crate::model::config::LayerConfig;
use crate::model::hf_config::Reading;

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
