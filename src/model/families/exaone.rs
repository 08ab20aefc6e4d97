//! EXAONE 4: norms after attention and feed-forward alone; where there are windows, the layers without one have no
//! positions.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, HEAD_NORMS, MLP, POST_NORMS};
use crate::Result;
use crate::model::config::{Config, LayerConfig, Wiring};
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName, WindowRule};
use crate::model::keys::rows::{TEXT_MODEL, VOCAB, WINDOWS};
use crate::model::layers::standard_layers;

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "exaone4",
    hf: &[HfName {
        architecture: "Exaone4ForCausalLM",
        model_type: "exaone4",
        defaults: Defaults { context: 2048, norm_eps: 1e-5, window: WindowRule::ByType { every: 4 }, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, POST_NORMS, HEAD_NORMS, ATTENTION, MLP],
    keys: &[TEXT_MODEL, VOCAB, WINDOWS],
    unstated: Config::without_full_rope,
    wiring: Wiring { pre_norm: false, post_norm: true, parallel: false },
    layers,
    ..PLAIN
}];

fn layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let mut layers = standard_layers(r)?;
    let slides = |l: &LayerConfig| l.heads().is_some_and(|h| h.window.is_some());
    if layers.iter().any(slides) {
        let full = layers.iter_mut().filter_map(LayerConfig::heads_mut).filter(|h| h.window.is_none());
        full.for_each(|h| h.rope = None);
    }
    Ok(layers)
}
