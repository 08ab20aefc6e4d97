//! What a run over calibration data takes: memory for one layer, with its second moments where these are needed, and for
//! the activations, and processor time from counted work and the rates measured in `docs/benchmarks.md`. It is a
//! projection: other processors shift every time by one factor.

use crate::model::graph::leads_input;
use crate::model::{Config, MappedTensor, Model};
use crate::quant::GgmlType;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is done with the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A few windows in exact products, where every matrix is decoded for them alone.
    Check,
    /// An importance matrix.
    Importance,
    /// Largest values of inputs, or second moments that nothing is rounded with.
    Statistics,
    /// Integers in groups by error feedback (GPTQ), layers behind quantized ones.
    Gptq,
    /// The same behind a search for channel factors (AWQ).
    Awq,
    /// GGUF blocks by error feedback.
    Blocks,
}

/// The projection for one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub calibration_tokens: u64,
    /// Summed over all cores.
    pub cpu_seconds: f64,
    /// Bytes.
    pub peak_memory: u64,
}

/// Seconds of one core per unit of work: a multiplication with addition in a product of activations, one in the
/// factorisation and feedback of a matrix, and a weight that is read, searched and packed.
struct Rates {
    product: f64,
    feedback: f64,
    weight: f64,
}

impl Pass {
    /// Measured on an AMD Zen 5 core with AVX512-BF16: see `docs/benchmarks.md`, "Time and memory of calibrated runs".
    fn rates(self) -> Rates {
        match self {
            Pass::Check => Rates { product: 2.5e-11, feedback: 0.0, weight: 1.7e-9 },
            Pass::Importance => Rates { product: 6.8e-12, feedback: 0.0, weight: 2e-9 },
            Pass::Statistics => Rates { product: 7.4e-12, feedback: 0.0, weight: 2e-9 },
            Pass::Gptq => Rates { product: 8.9e-12, feedback: 4.2e-11, weight: 1.05e-7 },
            Pass::Awq => Rates { product: 1.15e-11, feedback: 4.2e-11, weight: 3e-7 },
            Pass::Blocks => Rates { product: 8.9e-12, feedback: 4.2e-11, weight: 5e-7 },
        }
    }
}

/// Seconds that a weight in a codebook takes beyond what [`Pass::Blocks`] counts for all: ggml's search and feedback's, each
/// over hundreds of points. Measured on a core with AVX2: see `docs/benchmarks.md`, "Error feedback on codebooks".
pub fn codebook(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::IQ3_S => 1e-6,
        GgmlType::IQ3_XXS => 1e-6,
        GgmlType::IQ2_S => 1e-6,
        GgmlType::IQ2_XS => 1e-6,
        GgmlType::IQ2_XXS => 1e-6,
        GgmlType::IQ1_M => 1e-6,
        _ => 0.0,
    }
}

/// Bytes of activations kept behind a half layer at most; see [`crate::calibration::layerwise`].
const INNER: u64 = 2 << 30;

/// What `pass` over `tokens` tokens takes. `threads` share the work evenly; each has buffers of its own.
pub fn of(model: &Model, pass: Pass, tokens: u64, threads: usize) -> Cost {
    let c = &model.config;
    let rates = pass.rates();
    let (mut products, mut feedback, mut weights) = (0.0, 0.0, 0.0);
    let mut layers: BTreeMap<Option<usize>, Layer> = BTreeMap::new();
    for t in model.tensors.iter().filter(|t| t.role.is_linear()) {
        let (rows, cols) = (t.rows_per_matrix() as f64, t.cols() as f64);
        let (count, share) = matrices(t, c);
        let seen = tokens as f64 * share;
        products += count * rows * cols * seen;
        weights += count * rows * cols;
        let layer = layers.entry(t.layer).or_default();
        layer.weights += (count * rows * cols) as u64;
        let grams = (count * cols * cols) as u64;
        let own = leads_input(t.role);
        if own && !matches!(pass, Pass::Check | Pass::Importance) {
            products += count * cols * cols * seen / 2.0;
            layer.moments = layer.moments.max(grams);
        }
        if !matches!(pass, Pass::Check | Pass::Importance | Pass::Statistics) {
            feedback += count * (rows * cols * cols + if own { cols * cols * cols } else { 0.0 });
            layer.widest = layer.widest.max(t.cols() as u64);
            layer.largest = layer.largest.max(rows as u64 * cols as u64);
        }
    }
    let cpu_seconds = rates.product * products + rates.feedback * feedback + rates.weight * weights;
    let hidden = 4 * tokens * c.stream() as u64;
    let ends = 2 * (c.vocab * c.hidden) as u64;
    let base = 40_000_000 + 700 * c.vocab as u64 + 20_000_000 * threads as u64;
    let peak_memory = base
        + match pass {
            Pass::Check | Pass::Importance => {
                ends.max(hidden + 2 * layers.values().map(|l| l.weights).max().unwrap_or(0))
            }
            _ => {
                // Kept where later stages see what the rounded ones before them give.
                let sequential = matches!(pass, Pass::Gptq | Pass::Awq);
                let inner =
                    INNER.min(4 * tokens * c.attention().map(|h| h.q_width()).max().unwrap_or(0).max(c.ffn) as u64);
                // The moments of held-out text: some of the calibration data, some of the bundled texts.
                let held = if pass == Pass::Blocks { 8 } else { 0 };
                let layer = layers.values().map(|l| l.memory() + held * l.moments).max().unwrap_or(0);
                // Two embeddings and the activations of the held-out windows, when the file is judged.
                let judged = if pass == Pass::Blocks { 2 * (ends + hidden / 8) } else { ends };
                judged.max(hidden + if sequential { inner } else { 0 } + layer)
            }
        };
    Cost { calibration_tokens: tokens, cpu_seconds, peak_memory }
}

/// One layer of the model.
#[derive(Default)]
struct Layer {
    weights: u64,
    /// Numbers in the largest set of second moments that is held at once.
    moments: u64,
    widest: u64,
    largest: u64,
}

impl Layer {
    /// Its weights in 16 bits; sums in 64 bits, of which one half is kept, and the moments made of them in 32; then the
    /// factor in 64 bits with its inverse in 32, and the matrix in work, thrice.
    fn memory(&self) -> u64 {
        2 * self.weights + 8 * self.moments + 12 * self.widest * self.widest + 12 * self.largest
    }
}

/// How many matrices a tensor holds, and the share of all tokens that each sees.
fn matrices(t: &MappedTensor, c: &Config) -> (f64, f64) {
    match c.experts() {
        Some(e) if t.role.is_expert() => (e.count as f64, e.used as f64 / e.count.max(1) as f64),
        _ => (1.0, 1.0),
    }
}
