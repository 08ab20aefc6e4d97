//! Granite 3: Llama with factors on embeddings, residuals, attention scores and logits.

use super::llama::PAIRS;
use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, TWO_NORMS};
use crate::Result;
use crate::model::config::{Config, LayerConfig};
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName, Rotation};
use crate::model::keys::rows::{SCALES, TEXT_MODEL, VOCAB_AND_ROTATION};

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "granite",
    hf: &[HfName {
        architecture: "GraniteForCausalLM",
        model_type: "granite",
        defaults: Defaults { context: 2048, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
    maps: PAIRS,
    rotation: Rotation::Pairs,
    keys: &[TEXT_MODEL, VOCAB_AND_ROTATION, SCALES],
    logit_scale_divides: true,
    layers,
    finish,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let scale = r.number("attention_multiplier", 1.0)?;
    r.layers_with(|_, layer| layer.heads_mut().into_iter().for_each(|h| h.scale = scale))
}

fn finish(r: &Reading, config: &mut Config) -> Result<()> {
    config.embedding_scale = r.number("embedding_multiplier", 1.0)?;
    config.residual_scale = r.number("residual_multiplier", 1.0)?;
    config.logit_scale = r.number("logits_scaling", 1.0)?;
    Ok(())
}
