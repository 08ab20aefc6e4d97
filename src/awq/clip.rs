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
