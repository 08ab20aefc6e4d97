//! Norms: of residual streams, of heads, of whole rows of queries and keys.

use crate::kernel::vector;
use crate::model::config;
use rayon::prelude::*;

/// Rows of activations that are worth handing to another thread.
pub(super) const ROWS_PER_TASK: usize = 32;

/// One norm with its weights.
pub(super) struct Norm {
    /// GGUF name of the weights; empty where there are none.
    pub name: String,
    pub kind: config::Norm,
    pub weight: Vec<f32>,
    /// The weights are those of one head after the other.
    pub by_head: bool,
    pub bias: Option<Vec<f32>>,
    pub eps: f32,
}

impl Norm {
    /// One row in place. Of more weights than numbers the rows take theirs in turn: `part` counts.
    pub fn apply(&self, row: &mut [f32], part: usize) {
        let n = row.len();
        let first = part * n % self.weight.len().max(1);
        let weight = &self.weight[first..first + n];
        match self.kind {
            config::Norm::Rms => vector::rms_norm(row, weight, self.eps),
            config::Norm::Layer => layer_norm(row, weight, self.eps),
        }
        if let Some(bias) = &self.bias {
            vector::add_scaled(row, 1.0, bias);
        }
    }

    /// The rows of `x` (`[n, width]`), normalised, to `out`.
    pub fn rows(&self, x: &[f32], width: usize, out: &mut [f32]) {
        let rows = out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(width)).with_min_len(ROWS_PER_TASK);
        rows.for_each(|(out, x)| {
            out.copy_from_slice(x);
            self.apply(out, 0);
        });
    }
}

/// LayerNorm (Ba et al. 2016): the mean is taken out before.
fn layer_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = x.iter().sum::<f32>() / x.len().max(1) as f32;
    x.iter_mut().for_each(|v| *v -= mean);
    vector::rms_norm(x, weight, eps);
}

/// `x *= scale / sqrt(x · x + 1e-6)`: vectors of length `scale`, as the delta rule has its queries and keys.
pub(super) fn unit_length(x: &mut [f32], scale: f32) {
    let length = 1.0 / (vector::dot(x, x) + 1e-6).sqrt();
    vector::scale(x, length * scale);
}

/// `x /= sqrt(mean(x²) + eps)`.
pub(super) fn unit_norm(x: &mut [f32], eps: f32) {
    let scale = 1.0 / (vector::dot(x, x) / x.len().max(1) as f32 + eps).sqrt();
    vector::scale(x, scale);
}
