//! How scales and codes are chosen, and what that asks of a run: error feedback, calibration data.

use crate::feedback::Shrink;
use crate::packed::{ChannelScaling, Spec};
use serde::{Deserialize, Serialize};

/// How scales and codes are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounding {
    /// `None`: error feedback where there is calibration data (folders: where the format has integers in groups), the
    /// format's own search elsewhere.
    pub search: Option<Search>,
    /// Error feedback: how far the Hessian's off-diagonals are shrunk, 0 to 1.
    pub rho: f32,
    /// Error feedback: share of the mean diagonal that is added to it.
    pub damping: f32,
    /// Each layer sees what the quantized ones before it give. `None`: in folders, not in files.
    pub sequential: Option<bool>,
    /// Feed-forward channels in the order of their power (GGUF).
    pub sort_channels: bool,
    /// GPTQ with columns by falling activation: scales from the groups as they lie in the file.
    pub static_groups: bool,
    /// SmoothQuant's exponent; 0 for none (INT8).
    pub smooth: f32,
    /// Steps in which scales and biases of finished folders are tuned by KL divergence from the source; 0: they are not.
    #[serde(skip_serializing_if = "is_zero")]
    pub tune: usize,
}

/// Steps of tuning at most.
pub const MOST_STEPS: usize = 100_000;

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for Rounding {
    fn default() -> Self {
        let Shrink { rho, damping } = Shrink::default();
        Self {
            search: None,
            rho,
            damping,
            sequential: None,
            sort_channels: false,
            static_groups: false,
            smooth: 0.5,
            tune: 0,
        }
    }
}

/// How codes are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Search {
    /// Block by block, as the format's own tool does: the bytes of llama-quantize, or each weight to the nearest code.
    Nearest,
    /// With error feedback under the whole Hessian: later columns make up for the errors of earlier ones.
    Feedback,
}

/// Whether codes of a format are chosen with error feedback; `given`: there is calibration data.
pub fn has_feedback(spec: &Spec, rounding: &Rounding, given: bool) -> bool {
    match rounding.search {
        Some(Search::Nearest) => false,
        Some(Search::Feedback) => spec.takes_feedback(),
        None => spec.prefers_feedback(given),
    }
}

/// Whether the model has to be run on calibration data for a format: on the bundled texts, where none are given.
pub fn needs_data(spec: &Spec, rounding: &Rounding, given: bool) -> bool {
    rounds_by_data(spec, rounding, given) || tuning(spec, rounding, given) > 0
}

/// In how many steps a folder is tuned.
pub fn tuning(spec: &Spec, rounding: &Rounding, given: bool) -> usize {
    if given && spec.is_tunable() { rounding.tune } else { 0 }
}

/// Whether calibration data decide codes, scales or channel factors before any tuning.
pub fn rounds_by_data(spec: &Spec, rounding: &Rounding, given: bool) -> bool {
    (given && scales(spec, rounding)) || spec.needs_inputs() || has_feedback(spec, rounding, given)
}

/// SmoothQuant's exponent, for a format whose inputs are smoothed.
pub fn smoothing(spec: &Spec, rounding: &Rounding) -> Option<f32> {
    (spec.scaling() == ChannelScaling::SmoothQuant).then_some(rounding.smooth)
}

/// Whether channels are scaled in a calibrated run.
fn scales(spec: &Spec, rounding: &Rounding) -> bool {
    spec.scaling() == ChannelScaling::Awq || smoothing(spec, rounding).is_some_and(|exponent| exponent > 0.0)
}
