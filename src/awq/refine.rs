//! Scales chosen channel by channel, where AWQ tries one family of curves. The expected squared error of rounding to a
//! grid of step `Δ` is `Δ²/12` per weight, and `Δ` follows the range of the group, so that
//!
//! `F(s) = Σ_layers Σ_groups (Σ_rows range(w·s)²) · (Σ_columns d / s²)`
//!
//! with `d` the weight of a column's error. F falls apart into sets of groups that share channels, does not change when
//! all factors of a set are multiplied together, and is cheap enough for coordinate descent with exact ranges.

use super::grid::{Bundles, Grid, LANES, Lanes};
use super::groups::Columns;
use crate::isa::multiversion;
use rayon::prelude::*;
use std::f32::consts::SQRT_2;

/// A linear layer as the refinement sees it.
pub(super) struct Layer<'a> {
    pub rows: &'a Bundles,
    /// Rows that each sampled row stands for.
    pub each: f64,
    /// Weight of the squared error per column.
    pub importance: &'a [f64],
}

/// Groups of columns that share channels, and those channels.
struct Set {
    channels: Vec<usize>,
    groups: Vec<usize>,
}

/// Splits the groups of rows of `cols` columns into sets without common channels.
fn sets(columns: Columns, channels: usize, group: usize) -> Vec<Set> {
    let cols = columns.count(channels);
    let count = cols.div_ceil(group);
    // The set of a group is the smallest group that it is linked to.
    let mut root: Vec<usize> = (0..count).collect();
    let mut first = vec![usize::MAX; channels];
    loop {
        let before = root.clone();
        for column in 0..cols {
            let (channel, group) = (columns.channel(column), column / group);
            first[channel] = first[channel].min(root[group]);
            root[group] = root[group].min(first[channel]);
        }
        if before == root {
            break;
        }
    }
    let roots = (0..count).filter(|g| root[*g] == *g);
    roots
        .map(|r| Set {
            channels: (0..channels).filter(|c| first[*c] == r).collect(),
            groups: (0..count).filter(|g| root[*g] == r).collect(),
        })
        .collect()
}

/// One group of one layer during the descent.
struct State<'a> {
    layer: &'a Layer<'a>,
    symmetric: bool,
    /// Columns by channel: (channel, column).
    columns: Vec<(usize, usize)>,
    /// The same columns' weights, `[columns, bundles]` of lanes.
    weights: Vec<Lanes>,
    bundles: usize,
    /// Range of the columns after each one, with the factors before this sweep: `[columns + 1, bundles]`.
    after: Vec<(Lanes, Lanes)>,
    /// Range of the columns that this sweep has passed, `[bundles]`.
    before: Vec<(Lanes, Lanes)>,
    /// Next column.
    at: usize,
    /// Σ d / s².
    noise: f64,
}

const EMPTY: (Lanes, Lanes) = ([0.0; LANES], [0.0; LANES]);

impl<'a> State<'a> {
    fn new(layer: &'a Layer<'a>, group: usize, grid: Grid, columns: Columns) -> Self {
        let cols = layer.rows.cols;
        let size = grid.group(cols);
        let mut order: Vec<(usize, usize)> =
            (group * size..((group + 1) * size).min(cols)).map(|c| (columns.channel(c), c)).collect();
        order.sort_unstable();
        let bundles = layer.rows.count();
        let weights = order.iter().flat_map(|(_, c)| (0..bundles).map(|b| layer.rows.bundle(b)[*c])).collect();
        let after = vec![EMPTY; (order.len() + 1) * bundles];
        let before = vec![EMPTY; bundles];
        State { layer, symmetric: grid.symmetric, columns: order, weights, bundles, after, before, at: 0, noise: 0.0 }
    }

    /// Prepares a sweep.
    fn begin(&mut self, scales: &[f32]) {
        let n = self.bundles;
        for i in (0..self.columns.len()).rev() {
            let (now, later) = self.after.split_at_mut((i + 1) * n);
            let now = &mut now[i * n..];
            now.copy_from_slice(&later[..n]);
            widen(now, &self.weights[i * n..][..n], scales[self.columns[i].0]);
        }
        self.before.fill(EMPTY);
        self.at = 0;
        self.noise = self.columns.iter().map(|(ch, c)| self.column_noise(*c, scales[*ch])).sum();
    }

    fn column_noise(&self, column: usize, scale: f32) -> f64 {
        self.layer.importance[column] / (f64::from(scale) * f64::from(scale))
    }

    /// The columns of `channel`, if the next ones are its.
    fn next(&self, channel: usize) -> std::ops::Range<usize> {
        let end = self.columns[self.at..].iter().take_while(|(ch, _)| *ch == channel).count();
        self.at..self.at + end
    }

    /// This group's share of F if the factor of `channel` were `new` instead of `old`.
    fn cost(&self, channel: usize, old: f32, new: f32) -> f64 {
        let columns = self.next(channel);
        let noise = self.columns[columns.clone()]
            .iter()
            .fold(self.noise, |noise, (_, c)| noise - self.column_noise(*c, old) + self.column_noise(*c, new));
        let after = &self.after[columns.end * self.bundles..][..self.bundles];
        let n = self.bundles;
        let power =
            range_power(self.symmetric, &self.before, after, &self.weights[columns.start * n..columns.end * n], new);
        power * self.layer.each * noise
    }

    /// Passes the columns of `channel`, whose factor changed from `old` to `new`.
    fn pass(&mut self, channel: usize, old: f32, new: f32) {
        for i in self.next(channel) {
            let column = self.columns[i].1;
            self.noise += self.column_noise(column, new) - self.column_noise(column, old);
            let n = self.bundles;
            widen(&mut self.before, &self.weights[i * n..][..n], new);
            self.at = i + 1;
        }
    }
}

multiversion! {
    /// Ranges that also cover `weights * scale`.
    pub fn widen(ranges: &mut [(Lanes, Lanes)], weights: &[Lanes], scale: f32) {
        for ((low, high), w) in ranges.iter_mut().zip(weights) {
            for l in 0..LANES {
                let v = w[l] * scale;
                low[l] = if v < low[l] { v } else { low[l] };
                high[l] = if v > high[l] { v } else { high[l] };
            }
        }
    }

    /// Σ range² over all rows, where a row's range covers `before`, `after` and `weights * scale` (`[columns, bundles]`).
    pub fn range_power(
        symmetric: bool,
        before: &[(Lanes, Lanes)],
        after: &[(Lanes, Lanes)],
        weights: &[Lanes],
        scale: f32
    ) -> f64 {
        let mut total = 0f64;
        let n = before.len();
        for (b, (before, after)) in before.iter().zip(after).enumerate() {
            let mut range = [0f32; LANES];
            for l in 0..LANES {
                let mut low = if after.0[l] < before.0[l] { after.0[l] } else { before.0[l] };
                let mut high = if after.1[l] > before.1[l] { after.1[l] } else { before.1[l] };
                for column in weights.chunks_exact(n) {
                    let v = column[b][l] * scale;
                    low = if v < low { v } else { low };
                    high = if v > high { v } else { high };
                }
                let wide = if symmetric { 2.0 * high.max(-low) } else { high - low };
                range[l] = wide * wide;
            }
            total += f64::from(range.iter().sum::<f32>());
        }
        total
    }
}

/// Factors that are tried for each channel, widest first.
const STEPS: [&[f32]; 3] = [
    &[2.0, SQRT_2, 1.0 / SQRT_2, 0.5],
    &[SQRT_2, 1.189_207, 0.840_896_4, 1.0 / SQRT_2],
    &[1.189_207, 1.090_507_7, 0.917_004_04, 0.840_896_4],
];

/// Lowers F from `scales` (per channel) by `sweeps` sweeps over the channels. Channels whose `fixed` is set keep their
/// factor. The sets are independent, so the result does not depend on the number of threads.
pub(super) fn descend(layers: &[Layer], columns: Columns, grid: Grid, scales: &[f32], sweeps: usize) -> Vec<f32> {
    let cols = columns.count(scales.len());
    let group = grid.group(cols);
    let parts: Vec<(Vec<usize>, Vec<f32>)> = sets(columns, scales.len(), group)
        .into_par_iter()
        .map(|set| {
            let states = set.groups.iter().flat_map(|g| layers.iter().map(|l| State::new(l, *g, grid, columns)));
            let mut states: Vec<State> = states.collect();
            let mut scales = scales.to_vec();
            for sweep in 0..sweeps {
                states.iter_mut().for_each(|s| s.begin(&scales));
                for &channel in &set.channels {
                    let old = scales[channel];
                    let cost = |new: f32| states.iter().map(|s| s.cost(channel, old, new)).sum::<f64>();
                    let (mut best, mut least) = (old, cost(old));
                    for step in STEPS[sweep.min(STEPS.len() - 1)] {
                        let cost = cost(old * step);
                        if cost < least {
                            (best, least) = (old * step, cost);
                        }
                    }
                    states.iter_mut().for_each(|s| s.pass(channel, old, best));
                    scales[channel] = best;
                }
            }
            let chosen = set.channels.iter().map(|c| scales[*c]).collect();
            (set.channels, chosen)
        })
        .collect();
    let mut result = scales.to_vec();
    for (channels, mut chosen) in parts {
        normalize(&mut chosen);
        channels.iter().zip(chosen).for_each(|(c, s)| result[*c] = s);
    }
    result
}

/// Divides by the geometric mean, which F does not see, so that what is folded into the norm stays near its old size.
fn normalize(scales: &mut [f32]) {
    let mean = scales.iter().map(|s| f64::from(s.ln())).sum::<f64>() / scales.len().max(1) as f64;
    let factor = (-mean).exp() as f32;
    scales.iter_mut().for_each(|s| *s *= factor);
}

/// F itself.
pub(super) fn expected_error(layers: &[Layer], columns: Columns, grid: Grid, scales: &[f32]) -> f64 {
    let cols = columns.count(scales.len());
    let group = grid.group(cols);
    let shares: Vec<f64> = (0..layers.len() * cols.div_ceil(group))
        .into_par_iter()
        .map(|i| {
            let mut state = State::new(&layers[i % layers.len()], i / layers.len(), grid, columns);
            state.begin(scales);
            let n = state.bundles;
            range_power(grid.symmetric, &state.after[..n], &state.after[..n], &[], 1.0) * state.layer.each * state.noise
        })
        .collect();
    shares.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    #[test]
    fn groups_that_share_channels_are_one_set() {
        let count = |columns, channels, group| sets(columns, channels, group).len();
        assert_eq!(count(Columns::Same, 100, 32), 4);
        // Heads of 64 over shared value heads: one set per value head, or per part of it.
        assert_eq!(count(Columns::Heads { shared: 3, dim: 64 }, 192, 64), 3);
        assert_eq!(count(Columns::Heads { shared: 3, dim: 64 }, 192, 32), 6);
        // A group of 128 that holds the end of one value head's columns and the start of the next links them.
        assert_eq!(count(Columns::Heads { shared: 3, dim: 64 }, 192, 128), 2);
        let all: usize = sets(Columns::Heads { shared: 3, dim: 64 }, 192, 128).iter().map(|s| s.channels.len()).sum();
        assert_eq!(all, 192);
    }

    #[test]
    fn descent_lowers_the_expected_error_and_keeps_count_of_it() {
        for (columns, channels, group) in
            [(Columns::Same, 70, 32), (Columns::Heads { shared: 2, dim: 8 }, 24, 12), (Columns::Same, 5, 0)]
        {
            let cols = columns.count(channels);
            let grid = Grid { bits: 4, group, symmetric: false };
            let (a, b) = (numbers(37 * cols, 1), numbers(5 * cols, 2));
            let (a, b) = (Bundles::sample(&a, cols, 100).0, Bundles::sample(&b, cols, 100).0);
            let d: Vec<f64> = numbers(cols, 3).iter().map(|v| f64::from(4.0 * v).exp()).collect();
            let layers = [&a, &b].map(|rows| Layer { rows, each: 1.0, importance: &d });
            let one = vec![1.0; channels];
            let mut last = expected_error(&layers, columns, grid, &one);
            let first = last;
            for sweeps in 1..5 {
                let scales = descend(&layers, columns, grid, &one, sweeps);
                let now = expected_error(&layers, columns, grid, &scales);
                assert!(now <= last * 1.0001, "{last} {now}");
                last = now;
            }
            assert!(last < 0.9 * first, "{first} {last}");
        }
    }
}
