//! Rounding to a group-wise integer grid, as the search for scales and clips sees it: what a weight becomes, not its
//! code. Rows lie in bundles of [`LANES`], transposed, so that every step is the same for all lanes and no sum depends
//! on the machine. The codes that are stored come from elsewhere.

use crate::isa::multiversion;
use half::f16;

pub(super) const LANES: usize = 16;

/// One weight of each row of a bundle.
pub(super) type Lanes = [f32; LANES];

/// A grid of integers with one scale (and zero point) per group of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// 2 to 8.
    pub bits: u8,
    /// Columns that share a scale; the whole row if that is shorter.
    pub group: usize,
    /// Whether the zero point is the middle of the codes; else it is chosen so that the range from the smallest to the
    /// largest weight, zero included, is covered.
    pub symmetric: bool,
}

impl Grid {
    /// Columns of a group in rows of `cols`.
    pub fn group(&self, cols: usize) -> usize {
        if self.group == 0 { cols.max(1) } else { self.group.min(cols).max(1) }
    }
}

/// Rows of a matrix, `[bundles, cols, LANES]`; lanes without a row are zero.
pub(super) struct Bundles {
    pub cols: usize,
    data: Vec<Lanes>,
}

impl Bundles {
    /// At most `limit` of the rows of `weights` (`[rows, cols]`), evenly spread, and how many rows each stands for.
    pub fn sample(weights: &[f32], cols: usize, limit: usize) -> (Self, f64) {
        let rows = weights.len() / cols.max(1);
        let taken = rows.min(limit.max(1));
        let mut data = vec![[0.0; LANES]; taken.div_ceil(LANES) * cols];
        for i in 0..taken {
            let row = &weights[i * rows / taken * cols..][..cols];
            let bundle = &mut data[i / LANES * cols..][..cols];
            bundle.iter_mut().zip(row).for_each(|(lanes, w)| lanes[i % LANES] = *w);
        }
        (Bundles { cols, data }, rows as f64 / taken.max(1) as f64)
    }

    pub fn count(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    /// `[cols]` of lanes.
    pub fn bundle(&self, index: usize) -> &[Lanes] {
        &self.data[index * self.cols..][..self.cols]
    }
}

/// Added to and taken from a float below 2^22, it rounds to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

multiversion! {
    /// `errors = w − Q(w·s)/s` for the columns of one group, `scales` being `s` per column. Weights are first clamped
    /// to ±`clip` (in units of `w·s`) per lane.
    pub fn group_errors(grid: Grid, w: &[Lanes], scales: &[f32], clip: Lanes, errors: &mut [Lanes]) {
        let levels = ((1u32 << grid.bits) - 1) as f32;
        let (mut low, mut high) = ([0f32; LANES], [0f32; LANES]);
        for (w, s) in w.iter().zip(scales) {
            for l in 0..LANES {
                let v = w[l] * s;
                low[l] = if v < low[l] { v } else { low[l] };
                high[l] = if v > high[l] { v } else { high[l] };
            }
        }
        let (mut step, mut inverse, mut zero) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for l in 0..LANES {
            let (lo, hi) = (low[l].max(-clip[l]), high[l].min(clip[l]));
            let range = if grid.symmetric { 2.0 * hi.max(-lo) } else { hi - lo };
            let scale = f16::from_f32(range / levels).to_f32();
            // A group of zeros, or one too small for the scale's type.
            step[l] = scale;
            inverse[l] = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            zero[l] = if grid.symmetric {
                (levels + 1.0) / 2.0
            } else {
                ((-lo * inverse[l] + ROUND) - ROUND).clamp(0.0, levels)
            };
        }
        for ((w, s), e) in w.iter().zip(scales).zip(errors.iter_mut()) {
            let back = 1.0 / s;
            for l in 0..LANES {
                let v = (w[l] * s).max(-clip[l]).min(clip[l]);
                let code = ((v * inverse[l] + zero[l] + ROUND) - ROUND).max(0.0).min(levels);
                e[l] = w[l] - (code - zero[l]) * step[l] * back;
            }
        }
    }

    /// `e H eᵀ` per lane, with `errors` (`[n]` of lanes) for `e` and the symmetric block of `gram` that starts at
    /// (`at`, `at`), `gram` having rows of `stride`.
    pub fn weighted_squares(errors: &[Lanes], gram: &[f32], stride: usize, at: usize) -> Lanes {
        let mut total = [0f32; LANES];
        for (i, e) in errors.iter().enumerate() {
            let row = &gram[(at + i) * stride + at..][..i + 1];
            // Two sums hide the latency of an addition.
            let mut sums = [[0f32; LANES]; 2];
            let (pairs, rest) = errors[..i].as_chunks::<2>();
            for (pair, h) in pairs.iter().zip(row.as_chunks::<2>().0) {
                for s in 0..2 {
                    for l in 0..LANES {
                        sums[s][l] += h[s] * pair[s][l];
                    }
                }
            }
            if let [last] = rest {
                for l in 0..LANES {
                    sums[0][l] += row[i - 1] * last[l];
                }
            }
            for l in 0..LANES {
                total[l] += e[l] * (row[i] * e[l] + 2.0 * (sums[0][l] + sums[1][l]));
            }
        }
        total
    }
}

/// No clipping.
pub(super) const UNCLIPPED: Lanes = [f32::MAX; LANES];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    /// One row by the formulas of the formats.
    fn plain(grid: Grid, row: &[f32]) -> Vec<f32> {
        let levels = ((1u32 << grid.bits) - 1) as f32;
        let (low, high) = row.iter().fold((0f32, 0f32), |(l, h), w| (l.min(*w), h.max(*w)));
        let range = if grid.symmetric { 2.0 * high.max(-low) } else { high - low };
        let scale = f16::from_f32(range / levels).to_f32();
        let zero =
            if grid.symmetric { (levels + 1.0) / 2.0 } else { (-low / scale).round_ties_even().clamp(0.0, levels) };
        let code = |w: &f32| (w / scale + zero).round_ties_even().clamp(0.0, levels);
        row.iter().map(|w| (code(w) - zero) * scale).collect()
    }

    #[test]
    fn rounding_is_that_of_the_formats() {
        for (bits, symmetric, n) in [(4, false, 64), (4, true, 37), (3, false, 1), (8, true, 128)] {
            let grid = Grid { bits, group: n, symmetric };
            let weights = numbers(LANES * n, 5);
            let (bundles, each) = Bundles::sample(&weights, n, 1000);
            assert_eq!((bundles.count(), each), (1, 1.0));
            let mut errors = vec![[0.0; LANES]; n];
            group_errors(grid, bundles.bundle(0), &vec![1.0; n], UNCLIPPED, &mut errors);
            for (l, row) in weights.chunks_exact(n).enumerate() {
                let expected = plain(grid, row);
                let differ = (0..n).filter(|j| (row[*j] - errors[*j][l] - expected[*j]).abs() > 1e-6).count();
                // A product with the inverse and a division may round a tie differently.
                assert!(differ <= n / 64, "{bits} {symmetric} {differ}");
            }
        }
    }

    #[test]
    fn zeros_stay_zero() {
        let grid = Grid { bits: 4, group: 0, symmetric: false };
        let mut errors = vec![[1.0; LANES]; 3];
        group_errors(grid, &[[0.0; LANES]; 3], &[1.0; 3], UNCLIPPED, &mut errors);
        assert_eq!(errors, vec![[0.0; LANES]; 3]);
    }

    #[test]
    fn squares_are_weighted_by_the_block() {
        let (n, stride, at) = (7, 12, 3);
        let mut gram = numbers(stride * stride, 1);
        for i in 0..stride {
            for j in 0..i {
                gram[j * stride + i] = gram[i * stride + j];
            }
        }
        let e = numbers(n, 2);
        let errors: Vec<Lanes> = e.iter().map(|e| std::array::from_fn(|l| e * l as f32)).collect();
        let got = weighted_squares(&errors, &gram, stride, at);
        let one: f64 = (0..n * n)
            .map(|k| (k / n, k % n))
            .map(|(i, j)| f64::from(e[i]) * f64::from(gram[(at + i) * stride + at + j]) * f64::from(e[j]))
            .sum();
        for (l, got) in got.iter().enumerate() {
            assert!((f64::from(*got) - one * (l * l) as f64).abs() < 1e-3, "{got} {one}");
        }
    }

    #[test]
    fn a_sample_spreads_over_the_rows() {
        let weights: Vec<f32> = (0..100).flat_map(|r| [r as f32, 0.5]).collect();
        let (bundles, each) = Bundles::sample(&weights, 2, 20);
        assert_eq!((bundles.count(), each), (2, 5.0));
        assert_eq!(bundles.bundle(0)[0][..3], [0.0, 5.0, 10.0]);
        assert_eq!(bundles.bundle(1)[0][..5], [80.0, 85.0, 90.0, 95.0, 0.0]);
    }
}
