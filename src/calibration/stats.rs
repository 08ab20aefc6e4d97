//! What the inputs of every linear layer look like: sums of squares and of magnitudes per channel, and token counts, per
//! expert where there are experts. Each window's sums are `f64` in a fixed order and join the [`Totals`] in fixed point, so
//! they depend neither on the number of threads nor on which windows run together. Layers with the same input share a sum.

use super::totals::{Total, Totals, fixed};
use crate::infer::Observer;
use crate::kernel::view::flat;
use crate::model::{MappedTensor, Model, graph};
use crate::{Error, Result};
use ndarray::ArrayView2;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::ops::ControlFlow;

/// Channels that one task sums.
const CHANNELS: usize = 128;
/// Rows that are summed in `f32` before they join the `f64` sum.
const ROWS: usize = 16;

/// Collects while the model runs.
pub struct Statistics {
    inputs: Vec<Shared>,
    /// Index in `inputs` by GGUF name.
    by_name: HashMap<String, usize>,
    window: usize,
    fault: Option<Error>,
}

/// What linear layers have as their common input.
struct Shared {
    names: Vec<String>,
    /// The one of `names` that sums; the others are given the same.
    leader: Option<String>,
    cols: usize,
    total: Total,
}

impl Statistics {
    /// Ready for the linear layers of `model`.
    pub fn new(model: &Model) -> Self {
        let mut seen = Self { inputs: Vec::new(), by_name: HashMap::new(), window: usize::MAX, fault: None };
        let mut shared: HashMap<(Option<usize>, usize, usize), usize> = HashMap::new();
        for t in model.tensors.iter().filter(|t| t.name.ends_with(".weight") && !t.role.is_norm()) {
            let new = || Shared::new(t);
            let index = match graph::input_of(t.role) {
                Some(input) => *shared.entry((t.layer, input, t.cols())).or_insert(seen.inputs.len()),
                None => seen.inputs.len(),
            };
            if index == seen.inputs.len() {
                seen.inputs.push(new());
            }
            seen.inputs[index].names.push(t.name.clone());
            seen.by_name.insert(t.name.clone(), index);
        }
        seen
    }

    /// Of inputs to come, every `tokens` rows are a window of their own. Experts see one window at a time.
    pub fn set_window(&mut self, tokens: usize) {
        self.window = tokens.max(1);
    }

    /// Goes on from `totals`, which another run over the same model gave.
    ///
    /// Errors: `BadInput` when they are of another model.
    pub fn restore(&mut self, totals: &Totals) -> Result<()> {
        for (name, total) in &totals.0 {
            let input = self.by_name.get(name).map(|i| &mut self.inputs[*i]);
            let fits = |own: &Total| own.sums.len() == total.sums.len() && own.counts.len() == total.counts.len();
            let input = input.filter(|input| fits(&input.total));
            let input = input.ok_or_else(|| Error::bad_input("the sums are of another model").tensor(name))?;
            input.total.clone_from(total);
        }
        Ok(())
    }

    /// The first fault so far: `BadInput` for activations that are not numbers.
    pub fn check(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// The layers that saw at least one token, by GGUF name.
    pub fn totals(&self) -> Totals {
        let seen = self.inputs.iter().filter(|input| input.total.counts.iter().any(|c| *c > 0));
        let named = seen.flat_map(|input| input.names.iter().map(|name| (name.clone(), input.total.clone())));
        Totals(named.collect())
    }

    fn add(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) -> Result<()> {
        let input = self.by_name.get(linear).map(|i| &mut self.inputs[*i]);
        let input = input.ok_or_else(|| Error::Internal(format!("'{linear}' is not a tensor of the model")))?;
        if *input.leader.get_or_insert_with(|| linear.to_string()) != linear {
            return Ok(());
        }
        let (cols, matrix) = (input.cols, expert.unwrap_or(0));
        let range = matrix * cols..(matrix + 1) * cols;
        let Total { sums, magnitudes, counts, overflow } = &mut input.total;
        let (Some(sums), Some(magnitudes)) = (sums.get_mut(range.clone()), magnitudes.get_mut(range)) else {
            return Err(Error::Internal(format!("'{linear}' has no expert {matrix}")));
        };
        let rows = if expert.is_some() { x.len() / cols } else { self.window };
        let parts = sums.par_chunks_mut(CHANNELS).zip(magnitudes.par_chunks_mut(CHANNELS)).enumerate();
        let faults: Vec<Fault> = parts
            .map(|(i, (sums, magnitudes))| {
                let windows = x.chunks(rows.saturating_mul(cols).max(1));
                let faults = windows.filter_map(|window| accumulate(window, cols, i * CHANNELS, sums, magnitudes));
                faults.collect::<Vec<Fault>>()
            })
            .flatten_iter()
            .collect();
        counts[matrix] += (x.len() / cols) as u64;
        for fault in faults {
            match fault {
                Fault::NotFinite(channel) => return Err(not_finite(linear, channel)),
                Fault::TooLarge => *overflow = true,
            }
        }
        Ok(())
    }
}

impl Shared {
    fn new(t: &MappedTensor) -> Self {
        let matrices = if t.shape.len() > 2 { t.shape[0] } else { 1 };
        let n = t.cols() * matrices;
        let total = Total { sums: vec![0; n], magnitudes: vec![0; n], counts: vec![0; matrices], overflow: false };
        Self { names: Vec::new(), leader: None, cols: t.cols(), total }
    }
}

impl Observer for Statistics {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        match self.add(linear, expert, &flat(x)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(fault) => {
                self.fault.get_or_insert(fault);
                ControlFlow::Break(())
            }
        }
    }
}

/// What can be wrong with a sum.
enum Fault {
    /// The channel whose numbers are none.
    NotFinite(usize),
    /// More than the fixed-point numbers hold.
    TooLarge,
}

/// What is said of activations that are no numbers.
pub(super) fn not_finite(linear: &str, channel: usize) -> Error {
    Error::bad_input(format!("the activations that enter it are not finite (channel {channel})"))
        .tensor(linear)
        .hint("the model's weights are damaged, or its activations overflow; calibration would be useless")
}

/// Adds the rows of `x` (`[n, cols]`), one window or one expert's share of it, channels `at ..`, to the totals.
fn accumulate(x: &[f32], cols: usize, at: usize, sums: &mut [i128], magnitudes: &mut [i128]) -> Option<Fault> {
    let width = sums.len();
    let (mut sum2, mut abs) = ([0f64; CHANNELS], [0f64; CHANNELS]);
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
    if let Some(channel) = sum2[..width].iter().position(|s| !s.is_finite()) {
        return Some(Fault::NotFinite(at + channel));
    }
    let mut fits = true;
    for (totals, parts) in [(sums, &sum2), (magnitudes, &abs)] {
        for (total, part) in totals.iter_mut().zip(parts) {
            match fixed(*part).and_then(|part| total.checked_add(part)) {
                Some(sum) => *total = sum,
                None => fits = false,
            }
        }
    }
    (!fits).then_some(Fault::TooLarge)
}

/// How the tokens went to the experts of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertUse {
    /// The stacked matrix.
    pub tensor: String,
    /// Tokens that the least used expert saw.
    pub min: u64,
    /// The fifth percentile.
    pub p5: u64,
    /// The median.
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
    use super::super::totals::single;
    use super::*;

    #[test]
    fn sums_are_those_of_the_definition() {
        let (cols, n) = (300, 37);
        let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919) % 1000) as f32 / 100.0 - 5.0).collect();
        let (mut sum2, mut abs) = (vec![0; cols], vec![0; cols]);
        for (i, (sum2, abs)) in sum2.chunks_mut(CHANNELS).zip(abs.chunks_mut(CHANNELS)).enumerate() {
            assert!(accumulate(&x, cols, i * CHANNELS, sum2, abs).is_none());
        }
        for j in 0..cols {
            let column = || (0..n).map(|i| f64::from(x[i * cols + j]));
            let (square, magnitude): (f64, f64) = (column().map(|v| v * v).sum(), column().map(f64::abs).sum());
            assert!((f64::from(single(sum2[j])) / square - 1.0).abs() < 1e-6);
            assert!((f64::from(single(abs[j])) / magnitude - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn what_is_no_number_and_what_is_too_large_is_told_apart() {
        let mut sums = ([0i128; 3], [0i128; 3]);
        let mut add = |x: &[f32]| accumulate(x, 3, 0, &mut sums.0, &mut sums.1);
        assert!(add(&[1.0, 2.0, 3.0]).is_none());
        assert!(matches!(add(&[1.0, f32::NAN, 3.0]), Some(Fault::NotFinite(1))));
        assert!(matches!(add(&[1e15, 1.0, 1.0]), Some(Fault::TooLarge)));
        assert!(matches!(add(&[1e30, 1.0, 1.0]), Some(Fault::NotFinite(0))), "the square is infinite");
    }

    #[test]
    fn experts_are_counted() {
        let counts = [5u64, 0, 9, 7];
        let rows = expert_use([("blk.0.ffn_down_exps.weight", &counts[..]), ("blk.0.attn_q.weight", &[3])].into_iter());
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].min, rows[0].median, &rows[0].unseen[..]), (0, 7, &[1][..]));
    }
}
