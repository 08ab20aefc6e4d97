//! [`Config::from_gguf`]: a configuration from the metadata of a GGUF file, key by key. It reads no tensors.

use crate::gguf::Metadata;
use crate::model::config::{Config, LayerConfig, Rope, RopeScaling, Sizes};
use crate::model::families;
use crate::model::family::{AttnScale, Key, Rotation, Stored};
use crate::model::keys::rows::*;
use crate::{Error, Result};

/// Every key in the order in which reading needs them: sizes first.
pub(super) static READ: &[&Key] = &[
    &EMBEDDING_LENGTH,
    &BLOCK_COUNT,
    &CONTEXT_LENGTH,
    &FEED_FORWARD_LENGTH,
    &VOCAB_SIZE,
    &HEAD_COUNT,
    &HEAD_COUNT_KV,
    &KEY_LENGTH,
    &VALUE_LENGTH,
    &RMS_EPSILON,
    &LAYER_EPSILON,
    &ATTENTION_SCALE,
    &EMBEDDING_SCALE,
    &RESIDUAL_SCALE,
    &LOGIT_SCALE,
    &PARALLEL_RESIDUAL,
    &ROPE_DIMENSIONS,
    &FREQ_BASE,
    &SCALING_TYPE,
    &FREQ_BASE_SWA,
    &EXPERT_COUNT,
    &EXPERT_USED_COUNT,
    &EXPERT_WIDTH,
    &SHARED_EXPERT_WIDTH,
    &ATTN_SOFTCAP,
    &LOGIT_SOFTCAP,
    &WINDOW,
    &WINDOW_PATTERN,
];

impl Config {
    /// Reads the hyper-parameters of a GGUF file. What GGUF does not store follows from the tensors and is set by
    /// [`crate::model::Model::open`]: biases, tied embeddings, and long-rope factors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown architecture, [`Error::BadInput`] for a missing or absurd value.
    pub fn from_gguf(meta: &Metadata) -> Result<Config> {
        let arch = meta.str("general.architecture").ok_or_else(|| {
            Error::bad_input("general.architecture is missing")
                .hint("is this a model file, not a vocabulary or adapter?")
        })?;
        let family = families::by_gguf(arch).ok_or_else(|| {
            let known: Vec<_> = families::all().map(|f| f.gguf).collect();
            Error::unsupported(format!("GGUF architecture '{arch}' is not supported; supported: {}", known.join(", ")))
        })?;
        let defaults = &family.hf[0].defaults;
        let rope = |theta: f32| Rope { theta, dims: 0, scaling: RopeScaling::Default };
        let mut config = Config {
            arch: arch.to_string(),
            norm: family.norm,
            ropes: std::iter::once(rope(10_000.0)).chain(defaults.theta_local.map(rope)).collect(),
            tied_embeddings: defaults.tied,
            logit_scale_divides: family.logit_scale_divides,
            norms: family.norms(),
            pairs: family.rotation == Rotation::Pairs,
            ..Config::default()
        };
        for key in READ {
            (key.to)(&mut config, &Stored { meta, family, key: key.name })?;
        }
        config.check_sizes()?;
        let (hidden, layers) = (config.hidden, config.layers.len());
        // Those that no key states.
        let unscaled = config.layers.iter_mut().filter_map(LayerConfig::heads_mut).filter(|h| h.scale == 0.0);
        for heads in unscaled {
            let scale = match family.attn_scale {
                AttnScale::QueryScalar { by_hidden } if layers == by_hidden => hidden / heads.q,
                AttnScale::HeadDim | AttnScale::QueryScalar { .. } => heads.dim,
            };
            heads.scale = 1.0 / (scale as f32).sqrt();
        }
        (family.unstated)(&mut config);
        config.check()?;
        Ok(config)
    }

    /// The sizes that a GGUF file states, layer by layer.
    fn check_sizes(&self) -> Result<()> {
        for heads in self.attention() {
            let sizes = Sizes {
                layers: self.layers.len(),
                hidden: self.hidden,
                ffn: self.ffn,
                heads: heads.q,
                kv_heads: heads.kv,
                head_dim: heads.dim,
                vocab: self.vocab,
                context: self.context,
            };
            sizes.check()?;
        }
        Ok(())
    }
}
