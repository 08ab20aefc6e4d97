//! Command R and R7B: attention and feed-forward side by side behind one LayerNorm without bias, rotary pairs that are
//! neighbours on the Hub too, scaled logits.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, ONE_NORM};
use crate::Result;
use crate::model::config::{Config, LayerConfig, Norm, Wiring};
use crate::model::family::Reading;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName, Rotation, WindowRule};
use crate::model::keys::rows::{COHERE2, LOGITS_AND_NO_SCALING, TEXT_MODEL};

const COHERE: Family = Family {
    tables: &[ENDS, ONE_NORM, ATTENTION, MLP],
    rotation: Rotation::Pairs,
    norm: Norm::Layer,
    norm_eps_key: "layer_norm_eps",
    wiring: Wiring { parallel: true, ..Wiring::SEQUENTIAL },
    finish,
    ..PLAIN
};

const DEFAULT: Defaults = Defaults { context: 8192, norm_eps: 1e-5, tied: true, ..DEFAULTS };

pub(super) static FAMILIES: &[Family] = &[
    Family {
        gguf: "command-r",
        hf: &[HfName { architecture: "CohereForCausalLM", model_type: "cohere", defaults: DEFAULT, experts: None }],
        keys: &[TEXT_MODEL, LOGITS_AND_NO_SCALING],
        layers: command_r,
        ..COHERE
    },
    Family {
        gguf: "cohere2",
        hf: &[HfName {
            architecture: "Cohere2ForCausalLM",
            model_type: "cohere2",
            defaults: Defaults {
                states_head_dim: true,
                window: WindowRule::AllButEvery { every: 4, unstated: Some(4096) },
                ..DEFAULT
            },
            experts: None,
        }],
        keys: &[TEXT_MODEL, COHERE2],
        unstated: Config::without_full_rope,
        layers: cohere2,
        ..COHERE
    },
];

fn command_r(r: &Reading) -> Result<Vec<LayerConfig>> {
    // Command R+.
    r.refuse("use_qk_norm")?;
    r.layers_with(|_, _| {})
}

/// Layers that see everything have no positions.
fn cohere2(r: &Reading) -> Result<Vec<LayerConfig>> {
    r.layers_with(|_, layer| {
        let full = layer.heads_mut().filter(|h| h.window.is_none());
        full.into_iter().for_each(|h| h.rope = None);
    })
}

fn finish(r: &Reading, config: &mut Config) -> Result<()> {
    config.logit_scale = r.number("logit_scale", 0.0625)?;
    if let Some(context) = r.json.size(&["model_max_length"])? {
        config.context = context;
    }
    Ok(())
}
