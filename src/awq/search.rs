//! The scales of one group of channels: AWQ's curves, then a refinement per channel, decided by the error that the real
//! rounding leaves in the outputs, `Σ tr((W − Q(W·s)/s) H (W − Q(W·s)/s)ᵀ)`. SmoothQuant's scales too, which are a formula.

use super::grid::{Bundles, Grid, LANES, UNCLIPPED, group_errors, weighted_squares};
use super::groups::Columns;
use super::refine::{Layer, descend, expected_error};
use crate::calibration::moments::Moments;
use rayon::prelude::*;

/// A linear layer that reads the group's channels and will be quantized.
#[derive(Clone, Copy)]
pub struct Consumer<'a> {
    /// `[rows, cols]`, one expert's.
    pub weights: &'a [f32],
    /// Of the tokens that this layer, or this expert, saw.
    pub inputs: &'a Moments,
    /// What the squared error of a column counts in the expected error. `None`: the diagonal of the gram, which is right
    /// for rounding to nearest; with error feedback it is `1 / U_jj²` of the factor `H⁻¹ = UᵀU`.
    pub importance: Option<&'a [f64]>,
}

/// How far the search goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Sweeps of the refinement per channel; 0 leaves AWQ's best curve.
    pub sweeps: usize,
    /// Rows of each layer that the expected error looks at.
    pub range_rows: usize,
    /// Rows of each layer that are rounded to compare candidates.
    pub rounded_rows: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { sweeps: 4, range_rows: 1024, rounded_rows: 256 }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Per channel.
    pub scales: Vec<f32>,
    /// Error of the outputs with them, over the rounded rows.
    pub loss: f64,
    /// The same with all scales 1; never below `loss`.
    pub plain: f64,
}

/// AWQ's curves: exponents r = k / STEPS.
const STEPS: usize = 20;

/// Finds scales for `channels` channels that `consumers` read through `columns`. `settle` turns wished scales into ones
/// that can be folded (see [`super::representable`]); what is returned has passed through it. All ones where nothing
/// is better, and where no token came by.
pub fn search(
    columns: Columns,
    channels: usize,
    consumers: &[Consumer],
    grid: Grid,
    options: Options,
    settle: &(dyn Fn(&[f32]) -> Vec<f32> + Sync),
) -> Scales {
    let cols = columns.count(channels);
    let one = vec![1.0; channels];
    let seen: Vec<&Consumer> = consumers.iter().filter(|c| c.inputs.tokens > 0).collect();
    if seen.is_empty() || channels == 0 {
        return Scales { scales: one, loss: 0.0, plain: 0.0 };
    }
    let ranges: Vec<_> = seen.iter().map(|c| Bundles::sample(c.weights, cols, options.range_rows)).collect();
    let importance: Vec<Vec<f64>> = seen.iter().map(|c| importance(c, cols)).collect();
    let layers: Vec<Layer> = ranges
        .iter()
        .zip(&importance)
        .map(|((rows, each), importance)| Layer { rows, each: *each, importance })
        .collect();
    // Of the curves the cheap estimate takes one, of the three that remain the rounding itself.
    let mut start = (one.clone(), f64::INFINITY);
    for curve in curves(columns, channels, &seen, grid, &ranges) {
        let error = expected_error(&layers, columns, grid, &curve);
        if error < start.1 {
            start = (curve, error);
        }
    }
    let mut candidates = vec![start.0];
    if options.sweeps > 0 {
        candidates.push(descend(&layers, columns, grid, &candidates[0], options.sweeps));
    }
    let rounded: Vec<_> = seen.iter().map(|c| Bundles::sample(c.weights, cols, options.rounded_rows)).collect();
    let loss = |scales: &[f32]| rounding_loss(columns, &seen, &rounded, grid, scales);
    let plain = loss(&one);
    let mut best = Scales { scales: one, loss: plain, plain };
    for candidate in candidates {
        let scales = settle(&candidate);
        let loss = loss(&scales);
        if loss < best.loss {
            best = Scales { scales, loss, plain };
        }
    }
    best
}

fn importance(consumer: &Consumer, cols: usize) -> Vec<f64> {
    match consumer.importance {
        Some(given) => given.to_vec(),
        None => consumer.inputs.gram.iter().step_by(cols + 1).map(|h| f64::from(*h)).collect(),
    }
}

/// AWQ's candidates, all ones first: with the mean magnitude `x` of a channel and the mean `w` of its weights relative
/// to the largest of their groups, `x^r / (w^(1-r) + 1e-4)` and `x^r`, brought to `sqrt(max · min) = 1`.
fn curves(
    columns: Columns,
    channels: usize,
    consumers: &[&Consumer],
    grid: Grid,
    rows: &[(Bundles, f64)],
) -> Vec<Vec<f32>> {
    let (x, w) = (input_means(columns, channels, consumers), weight_means(columns, channels, grid, rows));
    let curve = |k: usize, both: bool| {
        let r = k as f32 / STEPS as f32;
        let scale = |(x, w): (&f32, &f32)| {
            let divisor = if both { w.powf(1.0 - r) + 1e-4 } else { 1.0 };
            (x.powf(r) / divisor).max(1e-4)
        };
        let mut scales: Vec<f32> = x.iter().zip(&w).map(scale).collect();
        let (low, high) = scales.iter().fold((f32::MAX, 0f32), |(l, h), s| (l.min(*s), h.max(*s)));
        let middle = (low * high).sqrt();
        scales.iter_mut().for_each(|s| *s /= middle);
        scales.iter().all(|s| s.is_finite() && *s > 0.0).then_some(scales)
    };
    let all = (0..STEPS).flat_map(|k| [curve(k, false), curve(k, true)]);
    all.flatten().collect()
}

/// mean |x| per channel over all tokens of all consumers and the columns that share the channel.
fn input_means(columns: Columns, channels: usize, consumers: &[&Consumer]) -> Vec<f32> {
    let mut sums = vec![0f64; channels];
    for consumer in consumers {
        consumer.inputs.abs.iter().enumerate().for_each(|(column, abs)| sums[columns.channel(column)] += abs);
    }
    let tokens: u64 = consumers.iter().map(|c| c.inputs.tokens).sum();
    let shared = columns.count(channels) / channels.max(1) * tokens as usize;
    sums.iter().map(|sum| (sum / shared as f64) as f32).collect()
}

/// Mean over rows and columns of |w| relative to the largest of its row and group, per channel.
fn weight_means(columns: Columns, channels: usize, grid: Grid, rows: &[(Bundles, f64)]) -> Vec<f32> {
    let mut sums = vec![0f64; channels];
    let mut weight = 0.0;
    for (bundles, each) in rows {
        let size = grid.group(bundles.cols);
        weight += bundles.count() as f64 * LANES as f64 * each;
        for bundle in (0..bundles.count()).map(|b| bundles.bundle(b)) {
            for (g, group) in bundle.chunks(size).enumerate() {
                let mut largest = [0f32; LANES];
                group.iter().for_each(|w| largest.iter_mut().zip(w).for_each(|(m, w)| *m = m.max(w.abs())));
                for (i, w) in group.iter().enumerate() {
                    let share: f32 =
                        w.iter().zip(&largest).map(|(w, m)| if *m > 0.0 { w.abs() / m } else { 0.0 }).sum();
                    sums[columns.channel(g * size + i)] += f64::from(share) * each;
                }
            }
        }
    }
    let shared = weight * (columns.count(channels) / channels.max(1)) as f64;
    sums.iter().map(|sum| (sum / shared) as f32).collect()
}

/// The error of the outputs when the sampled rows are rounded to nearest with these scales.
fn rounding_loss(
    columns: Columns,
    consumers: &[&Consumer],
    rows: &[(Bundles, f64)],
    grid: Grid,
    scales: &[f32],
) -> f64 {
    let spread = columns.spread(scales);
    let tasks: Vec<(usize, usize)> =
        rows.iter().enumerate().flat_map(|(c, (bundles, _))| (0..bundles.count()).map(move |b| (c, b))).collect();
    let losses: Vec<f64> = tasks
        .into_par_iter()
        .map(|(c, b)| {
            let (bundles, each) = &rows[c];
            let cols = bundles.cols;
            let mut errors = vec![[0.0; LANES]; cols];
            let size = grid.group(cols);
            let groups = bundles.bundle(b).chunks(size).zip(spread.chunks(size)).zip(errors.chunks_mut(size));
            groups.for_each(|((w, s), e)| group_errors(grid, w, s, UNCLIPPED, e));
            let lanes = weighted_squares(&errors, &consumers[c].inputs.gram, cols, 0);
            lanes.iter().map(|l| f64::from(*l)).sum::<f64>() * each
        })
        .collect();
    losses.iter().sum()
}

/// SmoothQuant: `max|x|^alpha / max|w|^(1 - alpha)` per channel, which moves the difficulty of quantizing activations into
/// the weights. A channel without inputs or weights keeps 1. 0.5 is the paper's `alpha`.
pub fn smooth(columns: Columns, channels: usize, consumers: &[Consumer], alpha: f32) -> Vec<f32> {
    let (mut x, mut w) = (vec![0f32; channels], vec![0f32; channels]);
    let cols = columns.count(channels);
    for consumer in consumers {
        for (column, max) in consumer.inputs.max.iter().enumerate() {
            let x = &mut x[columns.channel(column)];
            *x = x.max(*max);
        }
        for row in consumer.weights.chunks_exact(cols.max(1)) {
            for (column, weight) in row.iter().enumerate() {
                let w = &mut w[columns.channel(column)];
                *w = w.max(weight.abs());
            }
        }
    }
    let scale = |(x, w): (&f32, &f32)| {
        let scale = x.powf(alpha) / w.powf(1.0 - alpha);
        if scale.is_finite() && scale > 0.0 { scale.max(1e-5) } else { 1.0 }
    };
    x.iter().zip(&w).map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    fn nothing(cols: usize) -> Moments {
        Moments { cols, gram: vec![0.0; cols * cols], abs: vec![0.0; cols], max: vec![0.0; cols], tokens: 0 }
    }

    /// Moments of `tokens` inputs whose channels differ a lot in size.
    fn moments(cols: usize, tokens: usize, seed: u32) -> Moments {
        let size: Vec<f32> = numbers(cols, seed).iter().map(|v| (2.5 * v).exp()).collect();
        let common = numbers(tokens, seed + 1);
        let own = numbers(tokens * cols, seed + 2);
        let x: Vec<f32> = (0..tokens * cols).map(|i| size[i % cols] * (own[i] + 0.5 * common[i / cols])).collect();
        let mut m = nothing(cols);
        m.tokens = tokens as u64;
        for x in x.chunks_exact(cols) {
            for i in 0..cols {
                m.abs[i] += f64::from(x[i].abs());
                m.max[i] = m.max[i].max(x[i].abs());
                for j in 0..cols {
                    m.gram[i * cols + j] += x[i] * x[j];
                }
            }
        }
        m
    }

    fn consumer<'a>(inputs: &'a Moments, weights: &'a [f32]) -> Consumer<'a> {
        Consumer { weights, inputs, importance: None }
    }

    const ODD: [(Columns, usize, usize, usize); 5] = [
        (Columns::Same, 64, 32, 40),
        (Columns::Same, 33, 0, 7),
        (Columns::Same, 70, 64, 1),
        (Columns::Heads { shared: 3, dim: 8 }, 16, 16, 19),
        (Columns::Heads { shared: 1, dim: 5 }, 15, 7, 33),
    ];

    #[test]
    fn the_loss_is_never_above_that_of_no_scales_and_mostly_far_below() {
        let mut ratios = Vec::new();
        for (columns, channels, group, rows) in ODD {
            for symmetric in [false, true] {
                let grid = Grid { bits: 4, group, symmetric };
                let cols = columns.count(channels);
                let m = moments(cols, 50, 1);
                let w = numbers(rows * cols, 9);
                let consumers = [consumer(&m, &w)];
                let run = |sweeps| {
                    let options = Options { sweeps, ..Options::default() };
                    search(columns, channels, &consumers, grid, options, &<[f32]>::to_vec)
                };
                let (awq, refined) = (run(0), run(4));
                assert!(awq.loss <= awq.plain && refined.loss <= awq.loss);
                // Symmetric codes reach less far on the positive side: what is scaled up most is then cut.
                if !symmetric {
                    ratios.push(refined.loss / refined.plain);
                }
                assert!(refined.scales.iter().all(|s| s.is_finite() && *s > 0.0) && refined.scales.len() == channels);
            }
        }
        ratios.sort_by(f64::total_cmp);
        assert!(ratios[ratios.len() / 2] < 0.9, "{ratios:?}");
    }

    #[test]
    fn scales_that_cannot_be_folded_are_not_taken() {
        let m = moments(32, 20, 1);
        let w = numbers(8 * 32, 9);
        let grid = Grid { bits: 4, group: 32, symmetric: false };
        let found = search(Columns::Same, 32, &[consumer(&m, &w)], grid, Options::default(), &|s| vec![1.0; s.len()]);
        assert_eq!((found.scales, found.loss), (vec![1.0; 32], found.plain));
    }

    #[test]
    fn experts_count_by_their_tokens_and_unseen_ones_not_at_all() {
        let (a, b) = (moments(32, 60, 1), moments(32, 2, 77));
        let (wa, wb) = (numbers(16 * 32, 2), numbers(16 * 32, 3));
        let grid = Grid { bits: 4, group: 32, symmetric: false };
        let unseen = nothing(32);
        let run = |consumers: &[Consumer]| {
            search(Columns::Same, 32, consumers, grid, Options::default(), &<[f32]>::to_vec).scales
        };
        let alone = run(&[consumer(&a, &wa)]);
        assert_eq!(alone, run(&[consumer(&a, &wa), consumer(&unseen, &wb)]));
        assert_eq!(run(&[consumer(&unseen, &wb)]), vec![1.0; 32]);
        let distance = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x / y).ln().abs()).sum::<f32>();
        let both = run(&[consumer(&a, &wa), consumer(&b, &wb)]);
        assert!(distance(&both, &alone) < distance(&both, &run(&[consumer(&b, &wb)])));
    }

    #[test]
    fn any_number_of_threads_finds_the_same_scales() {
        let m = moments(96, 40, 4);
        let w = numbers(100 * 96, 9);
        let grid = Grid { bits: 4, group: 32, symmetric: false };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let found = search(Columns::Same, 96, &[consumer(&m, &w)], grid, Options::default(), &<[f32]>::to_vec);
                (found, crate::awq::clip::limits(&w, 96, &m.gram, grid))
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn smoothing_is_the_papers_formula() {
        let inputs = |max: [f32; 2]| Moments { max: max.to_vec(), tokens: 1, ..nothing(2) };
        let (x, y) = (inputs([9.0, 0.0]), inputs([16.0, 0.0]));
        let (a, b) = (consumer(&x, &[1.0, -2.0, 0.0, 4.0]), consumer(&y, &[-0.25, 1.0]));
        assert_eq!(smooth(Columns::Same, 2, &[a, b], 0.5), [4.0, 1.0]);
    }
}
