//! What the inputs of every linear layer look like: sums of squares and of magnitudes per channel, and token counts, per
//! expert where there are experts. Sums are `f64` in a fixed order, so they do not depend on the number of threads.

use crate::infer::Observer;
use crate::model::Model;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Channels that one task sums.
const CHANNELS: usize = 128;
/// Rows that are summed in `f32` before they join the `f64` sum.
const ROWS: usize = 16;

/// The inputs of one linear layer, or of a stack of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub cols: usize,
    /// `[matrices, cols]`: Σ x².
    pub sum2: Vec<f64>,
    /// `[matrices, cols]`: Σ |x|.
    pub abs: Vec<f64>,
    /// Tokens per matrix.
    pub counts: Vec<u64>,
}

/// Collects while the model runs.
pub struct Statistics {
    inputs: BTreeMap<String, Input>,
    fault: Option<Error>,
}

impl Statistics {
    /// Ready for the linear layers of `model`.
    pub fn new(model: &Model) -> Self {
        let matrices = model.tensors.iter().filter(|t| t.name.ends_with(".weight") && !t.role.is_norm());
        let input = |t: &crate::model::MappedTensor| {
            let matrices = if t.shape.len() > 2 { t.shape[0] } else { 1 };
            let (cols, n) = (t.cols(), t.cols() * matrices);
            let (sum2, abs, counts) = (vec![0.0; n], vec![0.0; n], vec![0; matrices]);
            (t.name.clone(), Input { cols, sum2, abs, counts })
        };
        Self { inputs: matrices.map(input).collect(), fault: None }
    }

    /// The first fault so far: `BadInput` for activations that are not numbers.
    pub fn check(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// The layers that saw at least one token, by GGUF name.
    pub fn finish(mut self) -> Result<BTreeMap<String, Input>> {
        self.check()?;
        self.inputs.retain(|_, input| input.counts.iter().any(|c| *c > 0));
        Ok(self.inputs)
    }
}

impl Observer for Statistics {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) -> ControlFlow<()> {
        let Some(input) = self.inputs.get_mut(linear) else {
            self.fault.get_or_insert_with(|| Error::Internal(format!("'{linear}' is no tensor of the model")));
            return ControlFlow::Break(());
        };
        let (cols, matrix) = (input.cols, expert.unwrap_or(0));
        let range = matrix * cols..(matrix + 1) * cols;
        let (Some(sum2), Some(abs)) = (input.sum2.get_mut(range.clone()), input.abs.get_mut(range)) else {
            self.fault.get_or_insert_with(|| Error::Internal(format!("'{linear}' has no expert {matrix}")));
            return ControlFlow::Break(());
        };
        let parts = sum2.par_chunks_mut(CHANNELS).zip(abs.par_chunks_mut(CHANNELS)).enumerate();
        parts.for_each(|(i, (sum2, abs))| accumulate(x, cols, i * CHANNELS, sum2, abs));
        input.counts[matrix] += (x.len() / cols) as u64;
        if let Some(channel) = sum2.iter().position(|s| !s.is_finite()) {
            self.fault.get_or_insert_with(|| not_finite(linear, channel));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// What is said of activations that are no numbers.
pub(super) fn not_finite(linear: &str, channel: usize) -> Error {
    Error::bad_input(format!("the activations that enter it are not finite (channel {channel})"))
        .tensor(linear)
        .hint("the model's weights are damaged, or its activations overflow; calibration would be useless")
}

/// Adds the rows of `x` (`[n, cols]`), channels `at ..`, to the sums.
fn accumulate(x: &[f32], cols: usize, at: usize, sum2: &mut [f64], abs: &mut [f64]) {
    let width = sum2.len();
    for rows in x.chunks(ROWS * cols) {
        let (mut square, mut magnitude) = ([0f32; CHANNELS], [0f32; CHANNELS]);
        for row in rows.chunks_exact(cols) {
            let sums = square.iter_mut().zip(magnitude.iter_mut());
            for ((square, magnitude), x) in sums.zip(&row[at..at + width]) {
                *square += x * x;
                *magnitude += x.abs();
            }
        }
        sum2.iter_mut().zip(&square).for_each(|(sum, part)| *sum += f64::from(*part));
        abs.iter_mut().zip(&magnitude).for_each(|(sum, part)| *sum += f64::from(*part));
    }
}

/// How the tokens went to the experts of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertUse {
    pub tensor: String,
    pub min: u64,
    pub p5: u64,
    pub median: u64,
    /// Experts that saw no token.
    pub unseen: Vec<usize>,
}

/// One row per stacked tensor, of those that see the same tokens only the first by name.
pub fn expert_use<'a>(counts: impl Iterator<Item = (&'a str, &'a [u64])>) -> Vec<ExpertUse> {
    let stacked = counts.filter(|(name, counts)| counts.len() > 1 && name.contains("ffn_down"));
    stacked
        .map(|(name, counts)| {
            let mut sorted = counts.to_vec();
            sorted.sort_unstable();
            let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
            let unseen = (0..counts.len()).filter(|e| counts[*e] == 0).collect();
            ExpertUse { tensor: name.to_string(), min: at(0.0), p5: at(0.05), median: at(0.5), unseen }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition() {
        let (cols, n) = (300, 37);
        let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919) % 1000) as f32 / 100.0 - 5.0).collect();
        let (mut sum2, mut abs) = (vec![0.0; cols], vec![0.0; cols]);
        for (i, (sum2, abs)) in sum2.chunks_mut(CHANNELS).zip(abs.chunks_mut(CHANNELS)).enumerate() {
            accumulate(&x, cols, i * CHANNELS, sum2, abs);
        }
        for j in 0..cols {
            let column = || (0..n).map(|i| f64::from(x[i * cols + j]));
            let (square, magnitude): (f64, f64) = (column().map(|v| v * v).sum(), column().map(f64::abs).sum());
            assert!((sum2[j] / square - 1.0).abs() < 1e-6);
            assert!((abs[j] / magnitude - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn experts_are_counted() {
        let counts = [5u64, 0, 9, 7];
        let rows = expert_use([("blk.0.ffn_down_exps.weight", &counts[..]), ("blk.0.attn_q.weight", &[3])].into_iter());
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].min, rows[0].median, &rows[0].unseen[..]), (0, 7, &[1][..]));
    }
}
