//! The search that the 2- and 3-bit grid types share: signs are split off, and for each group of weights a scale and grid
//! points are sought that lose least. The types differ in the rows of [`Search`]; how the result is packed is in `iq2.rs`
//! and `iq3.rs`. The order of trials and of additions is ggml's, since both decide the bytes.

use super::grids::{Grid, Place};
use super::numeric::{SUPER, error_weights, mean_square};
use super::steps::{Found, GROUP, Refit, Search, Steps};
use crate::quant::search::{nearest_int, qp};

/// What the search found for one super-block.
pub struct Fitted {
    /// By group.
    pub scales: [f32; SUPER / 16],
    pub max_scale: f32,
    /// By group: whether it is stored as zero.
    pub zero: [bool; SUPER / 16],
    /// By `N` weights: the index of the grid point.
    pub points: [u16; SUPER / 4],
    /// By eight weights: bit i is set where weight i is negative (its eighth bit is clear where signs are even).
    pub signs: [u8; SUPER / 8],
}

/// What the digits stand for.
pub const MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

impl<const N: usize> Search<N> {
    /// Searches one super-block of 256 weights.
    #[inline(always)]
    pub fn fit<P: Steps>(&self, x: &[f32], importance: Option<&[f32]>) -> Fitted {
        let mut fitted = Fitted {
            scales: [0.0; SUPER / 16],
            max_scale: 0.0,
            zero: [false; SUPER / 16],
            points: [0; SUPER / 4],
            signs: [0; SUPER / 8],
        };
        let mean_square = mean_square(x, self.mean_square_factor);
        for (ib, group) in x.chunks_exact(self.group).enumerate() {
            let start = ib * self.group;
            let mut weight = [0.0; GROUP];
            let weight = &mut weight[..self.group];
            let importance = importance.and_then(|all| all.get(start..start + self.group));
            error_weights(group, importance, mean_square, self.plain, weight);

            let mut magnitude = [0.0; GROUP];
            let magnitude = &mut magnitude[..self.group];
            let mut signs = [0u8; GROUP / 8];
            for (k, sign) in signs.iter_mut().enumerate().take(self.group / 8) {
                let part = 8 * k..8 * k + 8;
                *sign = split_signs(&group[part.clone()], &weight[part.clone()], self.even_signs, &mut magnitude[part]);
            }

            let Some((mut scale, digits)) = self.fit_group::<P>(magnitude, weight) else {
                fitted.zero[ib] = true;
                continue;
            };
            let stored = if self.even_signs { 0x7f } else { 0xff };
            let flip = if scale < 0.0 { 0xff } else { 0 };
            scale = scale.abs();
            for (k, sign) in signs.iter().enumerate().take(self.group / 8) {
                fitted.signs[start / 8 + k] = (sign ^ flip) & stored;
            }
            for (k, pattern) in digits[..self.group].chunks_exact(N).enumerate() {
                if let Place::On(point) = (self.grid)().place(pattern) {
                    fitted.points[start / N + k] = point;
                }
            }
            fitted.scales[ib] = scale;
            fitted.max_scale = fitted.max_scale.max(scale);
        }
        fitted
    }

    /// The largest code.
    pub fn widest(&self) -> f32 {
        f32::from(2 * (self.grid)().levels() - 1)
    }

    /// The scale and digits of one group, or `None` where it is stored as zero. The scale is negative where all signs
    /// have to turn.
    #[inline(always)]
    fn fit_group<P: Steps>(&self, x: &[f32], weight: &[f32]) -> Option<(f32, [u8; GROUP])> {
        let grid = (self.grid)();
        let top = i32::from(grid.levels()) - 1;
        let widest = self.widest();
        let max = x.iter().fold(x[0], |max, x| if max > *x { max } else { *x });
        if max < self.zero_below {
            return None;
        }
        let (scale, reach) = if self.fitted_start {
            let scale = fit_positive(x, weight, top + 2);
            (scale, scale * (top + 1) as f32)
        } else {
            (max / widest, max)
        };
        if self.fitted_start && reach <= 0.0 {
            return None;
        }

        // Distances between points count with the root of the error weight.
        let mut root = [0.0; GROUP];
        for (root, w) in root.iter_mut().zip(weight) {
            *root = w.sqrt();
        }

        let chunks = self.group / N;
        let on_grid = [self.refit == Refit::OffGrid; GROUP / 4];
        let mut best = Found { scale, digits: [0; GROUP], on_grid };
        P::trials(self, x, weight, &root, reach, &mut best);
        let Found { mut scale, mut digits, on_grid } = best;

        let any_off_grid = on_grid[..chunks].contains(&false);
        if (any_off_grid || self.refit == Refit::Always) && scale > 0.0 {
            let inverse = 1.0 / scale;
            for (k, on_grid) in on_grid[..chunks].iter().enumerate() {
                if self.refit == Refit::OffGrid && *on_grid {
                    continue;
                }
                let part = N * k..N * k + N;
                to_grid::<N, P>(grid, &x[part.clone()], &root[part.clone()], inverse, scale, &mut digits[part]);
            }
            let (sum_qx, sum_q2) = correlate(x, weight, &digits);
            if sum_q2 > 0.0 {
                scale = sum_qx / sum_q2;
            }
        }
        // Only overflow makes the scale no number (ggml aborts on it).
        (!scale.is_nan()).then_some((scale, digits))
    }
}

/// Tries the scales around `reach` one after the other: the specification.
#[inline(always)]
pub fn trials<const N: usize, P: Steps>(
    search: &Search<N>,
    x: &[f32],
    weight: &[f32],
    root: &[f32],
    reach: f32,
    found: &mut Found,
) {
    let grid = (search.grid)();
    let widest = search.widest();
    let mut best = 0.0;
    for trial in -search.tries..=search.tries {
        let inverse = (widest + trial as f32 * search.step) / reach;
        let mut digits = [0u8; GROUP];
        let mut all_on_grid = [true; GROUP / 4];
        for (k, on_grid) in all_on_grid[..search.group / N].iter_mut().enumerate() {
            let part = N * k..N * k + N;
            let out = &mut digits[part.clone()];
            *on_grid = to_grid::<N, P>(grid, &x[part.clone()], &root[part], inverse, 1.0 / inverse, out);
        }
        let (sum_qx, sum_q2) = correlate(x, weight, &digits);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            let scale = sum_qx / sum_q2;
            best = scale * sum_qx;
            *found = Found { scale, digits, on_grid: all_on_grid };
        }
    }
}

/// Rounds `x / scale` to digits and moves them to the nearest grid point. Says whether they were on the grid already.
/// `inverse` and `scale` are given apart, because one is the rounded reciprocal of the other either way.
#[inline(always)]
fn to_grid<const N: usize, P: Steps>(
    grid: &Grid<N>,
    x: &[f32],
    root: &[f32],
    inverse: f32,
    scale: f32,
    out: &mut [u8],
) -> bool {
    let top = i32::from(grid.levels()) - 1;
    for (digit, x) in out.iter_mut().zip(x) {
        *digit = nearest_int(0.5 * (inverse * x - 1.0)).clamp(0, top) as u8;
    }
    match grid.place(out) {
        Place::On(_) => true,
        Place::Off(candidates) => {
            out.copy_from_slice(grid.point(P::nearest(grid, candidates, &MAGNITUDES, x, root, scale)));
            false
        }
    }
}

/// Weighted sums of (code times x) and of squared codes, for the codes `2 digit + 1`.
#[inline(always)]
fn correlate(x: &[f32], weight: &[f32], digits: &[u8]) -> (f32, f32) {
    let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
    for ((x, w), digit) in x.iter().zip(weight).zip(digits) {
        let q = f32::from(2 * digit + 1);
        sum_qx += w * x * q;
        sum_q2 += w * q * q;
    }
    (sum_qx, sum_q2)
}

/// Writes the magnitudes of eight weights and returns their signs. With `even` signs an odd count of minus signs is mended
/// by turning the weight that matters least, whose magnitude then counts as negative; the eighth bit is implied.
fn split_signs(x: &[f32], weight: &[f32], even: bool, magnitude: &mut [f32]) -> u8 {
    let mut signs = 0u8;
    for (i, (x, m)) in x.iter().zip(magnitude.iter_mut()).enumerate() {
        // A zero of either sign counts as positive and keeps its bits.
        if *x >= 0.0 {
            *m = *x;
        } else {
            *m = -x;
            signs |= 1 << i;
        }
    }
    if even && signs.count_ones() % 2 == 1 {
        let loss = |i: usize| weight[i] * x[i] * x[i];
        let mut least = (0, loss(0));
        for i in 1..8 {
            let loss = loss(i);
            if loss < least.1 {
                least = (i, loss);
            }
        }
        magnitude[least.0] = -magnitude[least.0];
        signs ^= 1 << least.0;
    }
    signs
}

/// The scale of the weighted least-squares fit of a group of 32 by codes 0 to `top`.
fn fit_positive(x: &[f32], weight: &[f32], top: i32) -> f32 {
    match (x.try_into(), weight.try_into()) {
        (Ok(x), Ok(weight)) => qp::<GROUP>(top, x, weight, &mut [0; GROUP]),
        _ => 0.0,
    }
}
