//! OLMo 2 and 3: norms after attention and feed-forward alone, query and key norms over the full width.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MLP, POST_NORMS, WIDE_NORMS};
use crate::model::config::Wiring;
use crate::model::family::{DEFAULTS, Defaults, Family, HfName, WindowRule};
use crate::model::keys::rows::{TEXT_MODEL, WINDOWS};

const OLMO: Defaults = Defaults { context: 2048, norm_eps: 1e-5, window: WindowRule::ByType { every: 4 }, ..DEFAULTS };

pub(super) static FAMILIES: &[Family] = &[Family {
    gguf: "olmo2",
    hf: &[
        HfName { architecture: "Olmo2ForCausalLM", model_type: "olmo2", defaults: OLMO, experts: None },
        HfName {
            architecture: "Olmo3ForCausalLM",
            model_type: "olmo3",
            defaults: Defaults { theta_local: Some(500_000.0), ..OLMO },
            experts: None,
        },
    ],
    tables: &[ENDS, POST_NORMS, WIDE_NORMS, ATTENTION, MLP],
    keys: &[TEXT_MODEL, WINDOWS],
    wiring: Wiring { pre_norm: false, post_norm: true, parallel: false },
    ..PLAIN
}];
