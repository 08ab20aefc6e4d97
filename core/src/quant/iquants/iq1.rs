//! IQ1_S and IQ1_M: eight weights at a time are a point of a codebook over {-1, 0, 1}, all shifted by an eighth up or down.
//! As a ternary split has just two boundaries in the sorted weights, every split is tried. Layouts, constants and the
//! order of additions are ggml's.

use super::codes;
use super::grids::{self, Grid, Place, unpack};
use super::numeric::{SUPER, block_importance, error_weights, get_u16, mean_square, own_square, scale_code};
use super::steps::{Sorted, Split, Steps};
use crate::quant::{f16_at, put_f16};
use half::f16;

pub const DELTA: f32 = 0.125;
/// The three values under either shift.
pub const UP: [f32; 3] = [-1.0 + DELTA, DELTA, 1.0 + DELTA];
pub const DOWN: [f32; 3] = [-1.0 - DELTA, -DELTA, 1.0 - DELTA];

const S_GROUP: usize = 32;
const M_GROUP: usize = 16;

fn ascending<const G: usize>(x: &[f32]) -> [u8; G] {
    let mut order: [u8; G] = std::array::from_fn(|i| i as u8);
    // Adding zero makes the two zeros equal.
    order.sort_by(|&a, &b| (x[usize::from(a)] + 0.0).total_cmp(&(x[usize::from(b)] + 0.0)));
    order
}

/// The best split of those offered so far, and its score.
struct Best(f32, Option<Split>);

impl Best {
    /// Takes over a split whose weighted correlation is better.
    fn offer(&mut self, sum_qx: f32, sum_q2: f32, first: usize, second: usize, variant: usize) {
        if sum_q2 > 0.0 && sum_qx * sum_qx > self.0 * sum_q2 {
            let scale = sum_qx / sum_q2;
            *self = Best(scale * sum_qx, Some(Split { first, second, scale, variant }));
        }
    }
}

impl<const G: usize> Sorted<G> {
    /// The digits by weight, the scale, and the variant. A negative scale is made positive by mirroring the digits; the
    /// flag says whether that was done.
    fn digits(&self) -> Option<([u8; G], f32, usize, bool)> {
        let split = self.split.as_ref()?;
        let mut digits = [2u8; G];
        for (rank, &i) in self.order.iter().enumerate() {
            if rank < split.first {
                digits[usize::from(i)] = 0;
            } else if rank < split.second {
                digits[usize::from(i)] = 1;
            }
        }
        let mirrored = split.scale < 0.0;
        if mirrored {
            digits = digits.map(|digit| 2 - digit);
        }
        Some((digits, if mirrored { -split.scale } else { split.scale }, split.variant, mirrored))
    }
}

/// Sorts the groups of `G` weights, of which `x` consists, and splits them one after the other: the specification.
pub fn splits<const G: usize>(x: &[f32], weight: &[f32]) -> Vec<Sorted<G>> {
    let sorted = |(x, weight): (&[f32], &[f32])| {
        let order = ascending::<G>(x);
        let split = if G == S_GROUP { best_split_s(&order, x, weight) } else { best_split_m(&order, x, weight) };
        Sorted { order, split }
    };
    x.chunks_exact(G).zip(weight.chunks_exact(G)).map(sorted).collect()
}

/// The grid point of one pattern: itself, or the nearest with these values under this scale. The flag says which.
#[inline(always)]
fn to_point<P: Steps>(
    grid: &Grid<8>,
    digits: &[u8],
    x: &[f32],
    weight: &[f32],
    scale: f32,
    values: &[f32; 3],
) -> (u16, bool) {
    match grid.place(digits) {
        Place::On(index) => (index, true),
        Place::Off(candidates) => (P::nearest(grid, candidates, values, x, weight, scale), false),
    }
}

/// Adds one point's weighted (value times x) and squared values, the values times `factor`, to the sums.
fn add_point(sums: &mut (f32, f32), point: &[u8; 8], values: &[f32; 3], factor: f32, x: &[f32], weight: &[f32]) {
    for ((digit, x), w) in point.iter().zip(x).zip(weight) {
        let q = values[usize::from(*digit)] * factor;
        sums.0 += w * q * x;
        sums.1 += w * q * q;
    }
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| if max > x.abs() { max } else { x.abs() })
}

struct Group<const POINTS: usize> {
    scale: f32,
    points: [u16; POINTS],
    /// IQ1_S: 0 up, 1 down. IQ1_M: bit 1 is the shift of the first eight weights, bit 0 that of the second; 1 is down.
    shift: usize,
}

/// All splits of an IQ1_S group under both shifts.
fn best_split_s(order: &[u8], x: &[f32], weight: &[f32]) -> Option<Split> {
    let mut sum_x = [0.0; S_GROUP + 1];
    let mut sum_w = [0.0; S_GROUP + 1];
    for (rank, &i) in order.iter().enumerate() {
        let i = usize::from(i);
        sum_x[rank + 1] = sum_x[rank] + weight[i] * x[i];
        sum_w[rank + 1] = sum_w[rank] + weight[i];
    }
    let mut best = Best(-f32::MAX, None);
    for first in 0..=S_GROUP {
        for second in first..=S_GROUP {
            for (variant, v) in [UP, DOWN].iter().enumerate() {
                let sum_qx = sum_x[first] * v[0]
                    + (sum_x[second] - sum_x[first]) * v[1]
                    + (sum_x[S_GROUP] - sum_x[second]) * v[2];
                let sum_q2 = sum_w[first] * v[0] * v[0]
                    + (sum_w[second] - sum_w[first]) * v[1] * v[1]
                    + (sum_w[S_GROUP] - sum_w[second]) * v[2] * v[2];
                best.offer(sum_qx, sum_q2, first, second, variant);
            }
        }
    }
    best.1
}

/// What becomes of an IQ1_S group with its best split.
#[inline(always)]
fn settle_s<P: Steps>(sorted: &Sorted<S_GROUP>, x: &[f32], weight: &[f32]) -> Option<Group<4>> {
    if largest(x) < 1e-12 {
        return None;
    }
    let (digits, scale, variant, mirrored) = sorted.digits()?;
    let shift = variant ^ usize::from(mirrored);
    finish::<_, P>(scale, &digits, shift, |_| if shift == 0 { &UP } else { &DOWN }, x, weight)
}

/// Moves the digits to grid points and refits the scale if one of them was off the grid.
#[inline(always)]
fn finish<const POINTS: usize, P: Steps>(
    mut scale: f32,
    digits: &[u8],
    shift: usize,
    values: impl Fn(usize) -> &'static [f32; 3],
    x: &[f32],
    weight: &[f32],
) -> Option<Group<POINTS>> {
    let grid = grids::iq1();
    let mut points = [0; POINTS];
    let mut all_on_grid = true;
    for (k, point) in points.iter_mut().enumerate() {
        let part = 8 * k..8 * k + 8;
        let (index, on_grid) =
            to_point::<P>(grid, &digits[part.clone()], &x[part.clone()], &weight[part], scale, values(k));
        *point = index;
        all_on_grid &= on_grid;
    }
    if !all_on_grid {
        let mut sums = (0.0, 0.0);
        for (k, point) in points.iter().enumerate() {
            let part = 8 * k..8 * k + 8;
            add_point(&mut sums, grid.point(*point), values(k), 1.0, &x[part.clone()], &weight[part]);
        }
        if sums.0 > 0.0 && sums.1 > 0.0 {
            scale = sums.0 / sums.1;
        }
    }
    // Only overflow makes the scale no number (ggml aborts on it).
    (!scale.is_nan()).then_some(Group { scale, points, shift })
}

/// The error weights of a row, by super-block.
#[inline(always)]
fn row_weights(row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut weights = vec![0.0; row.len()];
    for (i, (x, weight)) in row.chunks_exact(SUPER).zip(weights.chunks_exact_mut(SUPER)).enumerate() {
        error_weights(x, block_importance(importance, i, SUPER), mean_square(x, 2.0), own_square, weight);
    }
    weights
}

/// Block: f16 d; 32 low bytes of indices; 8 x u16 of 4 x 3 upper bits, the 3-bit scale, and the shift (1 is down).
#[inline(always)]
pub fn quantize_s<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let weights = row_weights(row, importance);
    let sorted = P::splits::<S_GROUP>(row, &weights);
    let groups = row.chunks_exact(S_GROUP).zip(weights.chunks_exact(S_GROUP)).zip(&sorted);
    let mut groups = groups.map(|((x, weight), sorted)| settle_s::<P>(sorted, x, weight));
    for block in out.chunks_exact_mut(50) {
        block.fill(0);
        let mut scales = [0.0; SUPER / S_GROUP];
        let mut heads = [0u16; SUPER / S_GROUP];
        let mut max_scale = 0.0f32;
        for (ib, group) in groups.by_ref().take(SUPER / S_GROUP).enumerate() {
            let Some(group) = group else { continue };
            for (k, point) in group.points.iter().enumerate() {
                block[2 + 4 * ib + k] = *point as u8;
                heads[ib] |= (point >> 8) << (3 * k) | (group.shift as u16) << 15;
            }
            scales[ib] = group.scale;
            max_scale = max_scale.max(group.scale);
        }
        let d = max_scale / 15.0;
        for (ib, head) in heads.iter_mut().enumerate() {
            if max_scale == 0.0 {
                *head &= 0x0fff;
            } else {
                *head |= u16::from(scale_code(scales[ib], 1.0 / d, 7)) << 12;
            }
            block[34 + 2 * ib..36 + 2 * ib].copy_from_slice(&head.to_le_bytes());
        }
        // ggml stores a larger scale than it rounds with.
        put_f16(block, 0, d * 1.125);
    }
}

pub fn dequantize_s(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(50).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let head = get_u16(block, 34 + k / 4 * 2);
            let scale = d * f32::from(2 * (head >> 12 & 7) + 1);
            let index = usize::from(block[2 + k]) | usize::from(head >> (3 * (k % 4)) & 7) << 8;
            put_shifted(index, head & 0x8000 != 0, scale, out);
        }
    }
}

/// Writes the eight weights of one point, shifted down or up.
fn put_shifted(index: usize, down: bool, scale: f32, out: &mut [f32]) {
    let delta = if down { -DELTA } else { DELTA };
    for (out, digit) in out.iter_mut().zip(unpack::<8>(codes::IQ1[index], 2)) {
        *out = scale * (f32::from(digit) - 1.0 + delta);
    }
}

fn shifts_m(shift: usize, half: usize) -> &'static [f32; 3] {
    if shift >> (1 - half) & 1 == 0 { &UP } else { &DOWN }
}

/// All splits of an IQ1_M group under the four pairs of shifts. As neighbouring values are 1 apart under either shift, the
/// sums over three groups collapse to prefix sums `[half][rank]` of each half.
fn best_split_m(order: &[u8], x: &[f32], weight: &[f32]) -> Option<Split> {
    let mut px = [[0.0f32; M_GROUP + 1]; 2];
    let mut pw = [[0.0f32; M_GROUP + 1]; 2];
    for (rank, &i) in order.iter().enumerate() {
        let i = usize::from(i);
        let half = i / (M_GROUP / 2);
        px[half][rank + 1] = px[half][rank] + weight[i] * x[i];
        pw[half][rank + 1] = pw[half][rank] + weight[i];
        px[1 - half][rank + 1] = px[1 - half][rank];
        pw[1 - half][rank + 1] = pw[1 - half][rank];
    }
    let mut best = Best(-f32::MAX, None);
    for first in 0..=M_GROUP {
        for second in first..=M_GROUP {
            // [shift][half]
            let mut qx = [[0.0f32; 2]; 2];
            let mut q2 = [[0.0f32; 2]; 2];
            for half in 0..2 {
                let sum = px[half][first] + px[half][second];
                for (shift, v) in [UP, DOWN].iter().enumerate() {
                    qx[shift][half] = px[half][M_GROUP] * v[2] - sum;
                    q2[shift][half] = pw[half][M_GROUP] * v[2] * v[2]
                        + pw[half][first] * (v[0] * v[0] - v[1] * v[1])
                        + pw[half][second] * (v[1] * v[1] - v[2] * v[2]);
                }
            }
            for variant in 0..4 {
                let (a, b) = (variant >> 1, variant & 1);
                best.offer(qx[a][0] + qx[b][1], q2[a][0] + q2[b][1], first, second, variant);
            }
        }
    }
    best.1
}

/// What becomes of an IQ1_M group with its best split.
#[inline(always)]
fn settle_m<P: Steps>(sorted: &Sorted<M_GROUP>, x: &[f32], weight: &[f32]) -> Option<Group<2>> {
    if largest(x) < 1e-7 {
        return None;
    }
    let (digits, scale, variant, mirrored) = sorted.digits()?;
    let shift = if mirrored { 3 - variant } else { variant };
    finish::<_, P>(scale, &digits, shift, |half| shifts_m(shift, half), x, weight)
}

/// Block: 32 low bytes of indices; 16 bytes of two upper parts (3 bits and the shift, 1 is down); 4 x u16 of four 3-bit
/// scales each, whose top nibbles together are the f16 d.
#[inline(always)]
pub fn quantize_m<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let weights = row_weights(row, importance);
    let all = P::splits::<M_GROUP>(row, &weights);
    let blocks = row.chunks_exact(SUPER).zip(weights.chunks_exact(SUPER)).zip(all.chunks_exact(SUPER / M_GROUP));
    for (((x, weight), sorted), block) in blocks.zip(out.chunks_exact_mut(56)) {
        block.fill(0);
        let mut groups = [const { Group { scale: 0.0, points: [0; 2], shift: 0 } }; SUPER / M_GROUP];
        for (ib, group) in groups.iter_mut().enumerate() {
            let part = ib * M_GROUP..(ib + 1) * M_GROUP;
            let Some(found) = settle_m::<P>(&sorted[ib], &x[part.clone()], &weight[part]) else { continue };
            block[2 * ib] = found.points[0] as u8;
            block[2 * ib + 1] = found.points[1] as u8;
            block[32 + ib] = (found.points[0] >> 8 | (found.points[1] >> 8) << 4) as u8;
            *group = found;
        }
        let max_scale = groups.iter().fold(0.0, |max: f32, group| max.max(group.scale));
        if max_scale == 0.0 {
            continue;
        }

        // The scale of scales is refitted to what the rounded group scales left.
        let mut d = max_scale / 15.0;
        let inverse = 1.0 / d;
        let mut scales = [0u16; 4];
        let mut sums = (0.0, 0.0);
        for (ib, group) in groups.iter().enumerate() {
            let code = scale_code(group.scale, inverse, 7);
            scales[ib / 4] |= u16::from(code) << (3 * (ib % 4));
            block[32 + ib] |= (group.shift as u8 >> 1) << 3 | (group.shift as u8 & 1) << 7;
            for (half, point) in group.points.iter().enumerate() {
                let part = ib * M_GROUP + 8 * half..ib * M_GROUP + 8 * half + 8;
                let (values, factor) = (shifts_m(group.shift, half), f32::from(2 * code + 1));
                add_point(&mut sums, grids::iq1().point(*point), values, factor, &x[part.clone()], &weight[part]);
            }
        }
        if sums.1 > 0.0 {
            d = sums.0 / sums.1;
        }
        // ggml stores a larger scale than the fit gives.
        let d = f16::from_f32(d * 1.1125).to_bits();
        for (k, scales) in scales.iter().enumerate() {
            let word = scales | (d >> (4 * k) & 15) << 12;
            block[48 + 2 * k..50 + 2 * k].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The f16 scale that is spread over the top nibbles of the four scale words.
pub fn scale_m(block: &[u8]) -> f32 {
    f16::from_bits((0..4).fold(0, |bits, k| bits | (get_u16(block, 48 + 2 * k) >> 12) << (4 * k))).to_f32()
}

pub fn dequantize_m(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(56).zip(out.chunks_exact_mut(SUPER)) {
        let d = scale_m(block);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let code = get_u16(block, 48 + k / 8 * 2) >> (3 * (k / 2 % 4)) & 7;
            let head = block[32 + k / 2] >> (4 * (k % 2));
            let index = usize::from(block[k]) | usize::from(head & 7) << 8;
            put_shifted(index, head & 8 != 0, d * f32::from(2 * code + 1), out);
        }
    }
}

/// Finds the first block whose scale is not finite.
pub fn check_m(bytes: &[u8]) -> Result<(), (usize, f32)> {
    for (i, block) in bytes.chunks_exact(56).enumerate() {
        let d = scale_m(block);
        if !d.is_finite() {
            return Err((i, d));
        }
    }
    Ok(())
}
