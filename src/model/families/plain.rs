//! The family that all others differ from.

use crate::Result;
use crate::model::config::{Activation, Config, Norm, Wiring};
use crate::model::family::{Activations, AttnScale, Cap, EmbeddingScale, Family, PLAIN_TOKENIZER, Reading, Rotation};
use crate::model::keys::rows::TEXT_MODEL;
use crate::model::layers::standard_layers;

fn nothing(_: &Reading, _: &mut Config) -> Result<()> {
    Ok(())
}

/// The usual; families name what differs.
pub(super) const PLAIN: Family = Family {
    gguf: "",
    hf: &[],
    tables: &[],
    maps: &[],
    rotation: Rotation::Halves,
    keys: &[TEXT_MODEL],
    norm: Norm::Rms,
    norm_eps_key: "rms_norm_eps",
    wiring: Wiring::SEQUENTIAL,
    activations: Activations {
        key: "hidden_act",
        names: &[("silu", Activation::Silu), ("swish", Activation::Silu)],
        default: Activation::Silu,
    },
    attn_softcap: Cap::Never,
    logit_softcap: Cap::Never,
    attn_scale: AttnScale::HeadDim,
    embedding_scale: EmbeddingScale::One,
    logit_scale_divides: false,
    qkv_bias: false,
    norm_topk: false,
    partial_rotary: false,
    long_rope: false,
    towers: &[],
    tokenizer: PLAIN_TOKENIZER,
    layers: standard_layers,
    finish: nothing,
    unstated: |_| {},
};
