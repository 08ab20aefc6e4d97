//! AWQ's clipping: a group whose largest weights are cut gets a finer step. Chosen per row and group by the error of the
//! group's own share of the output; for rounding to nearest only.

use super::grid::{Bundles, Grid, LANES, Lanes, UNCLIPPED, group_errors, weighted_squares};
use rayon::prelude::*;

/// Limits that are tried: the largest magnitude times `1 - i / STEPS` for `i < TRIED`.
const STEPS: usize = 20;
const TRIED: usize = 10;

/// The largest magnitude that each row's groups should keep, `[rows, groups]`, for `weights` (`[rows, cols]`, channel
/// scales applied) whose inputs have the second moments `gram` (`[cols, cols]`, divided by the same scales).
pub fn limits(weights: &[f32], cols: usize, gram: &[f32], grid: Grid) -> Vec<f32> {
    let rows = weights.len() / cols.max(1);
    let size = grid.group(cols);
    let (bundles, _) = Bundles::sample(weights, cols, rows);
    let ones = vec![1.0; size];
    let chosen: Vec<Vec<Lanes>> = (0..bundles.count())
        .into_par_iter()
        .map(|b| {
            let groups = bundles.bundle(b).chunks(size).enumerate();
            groups.map(|(g, w)| best(w, gram, cols, g * size, grid, &ones[..w.len()])).collect()
        })
        .collect();
    (0..rows).flat_map(|row| chosen[row / LANES].iter().map(move |lanes| lanes[row % LANES])).collect()
}

fn best(w: &[Lanes], gram: &[f32], cols: usize, at: usize, grid: Grid, ones: &[f32]) -> Lanes {
    let mut largest = [0f32; LANES];
    w.iter().for_each(|w| largest.iter_mut().zip(w).for_each(|(m, w)| *m = m.max(w.abs())));
    let mut errors = vec![[0.0; LANES]; w.len()];
    let (mut limit, mut least) = (largest, UNCLIPPED);
    for i in 0..TRIED {
        let tried = largest.map(|m| m * (1.0 - i as f32 / STEPS as f32));
        group_errors(grid, w, ones, tried, &mut errors);
        let loss = weighted_squares(&errors, gram, cols, at);
        for l in 0..LANES {
            if loss[l] < least[l] {
                (limit[l], least[l]) = (tried[l], loss[l]);
            }
        }
    }
    limit
}

/// Cuts `weights` (`[rows, cols]`) to `limits` (`[rows, groups]`).
pub fn clip(weights: &mut [f32], cols: usize, limits: &[f32], grid: Grid) {
    let size = grid.group(cols);
    let rows = weights.chunks_exact_mut(cols.max(1)).zip(limits.chunks_exact(cols.div_ceil(size).max(1)));
    for (row, limits) in rows {
        for (group, limit) in row.chunks_mut(size).zip(limits) {
            group.iter_mut().for_each(|w| *w = w.clamp(-limit, *limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    /// The error of group-wise rounding in the outputs, over all groups alone.
    fn loss(weights: &[f32], cut: &[f32], cols: usize, gram: &[f32], grid: Grid) -> f64 {
        let size = grid.group(cols);
        let (before, after) = (Bundles::sample(weights, cols, usize::MAX).0, Bundles::sample(cut, cols, usize::MAX).0);
        let mut total = 0.0;
        for b in 0..before.count() {
            let groups = before.bundle(b).chunks(size).zip(after.bundle(b).chunks(size)).enumerate();
            for (g, (w, cut)) in groups {
                let mut errors = vec![[0.0; LANES]; w.len()];
                group_errors(grid, cut, &vec![1.0; w.len()], UNCLIPPED, &mut errors);
                for ((e, w), cut) in errors.iter_mut().zip(w).zip(cut) {
                    (0..LANES).for_each(|l| e[l] += w[l] - cut[l]);
                }
                total += weighted_squares(&errors, gram, cols, g * size).iter().map(|l| f64::from(*l)).sum::<f64>();
            }
        }
        total
    }

    #[test]
    fn clipping_never_raises_the_error_of_a_group_and_lowers_it_for_long_tails() {
        for (rows, cols, group) in [(20, 64, 32), (3, 37, 16), (1, 9, 0)] {
            let grid = Grid { bits: 3, group, symmetric: false };
            let weights: Vec<f32> = numbers(rows * cols, 1).iter().map(|w| w * w * w).collect();
            let mut gram = vec![0.0; cols * cols];
            (0..cols).for_each(|i| gram[i * cols + i] = 1.0 + i as f32 / cols as f32);
            let limits = limits(&weights, cols, &gram, grid);
            assert_eq!(limits.len(), rows * cols.div_ceil(grid.group(cols)));
            let mut cut = weights.clone();
            clip(&mut cut, cols, &limits, grid);
            let (before, after) =
                (loss(&weights, &weights, cols, &gram, grid), loss(&weights, &cut, cols, &gram, grid));
            assert!(after <= before * 1.0001 && (rows < 20 || after < 0.98 * before), "{before} {after}");
        }
    }
}
