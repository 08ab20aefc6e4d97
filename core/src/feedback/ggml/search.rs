//! Scales for the compensated weights of one block, by least squares on the weighted squared error of each sub-block:
//! ggml's own search row by row, or a shorter one for a bundle of rows at once. Codes are thrown away: error feedback
//! makes its own.

use super::candidates::{Means, Scales, weighted_mean};
use super::lanes::{LANES, Lanes};
use super::layout::{Block, Factors, Layout, MAX_BLOCK, MAX_SUB, MAX_SUBS, unpack_scales};
use super::rounding::nearest;
use crate::quant::QuantizeRow;
use crate::simd::F32x16;

/// d, dmin and the sub-blocks' scales and minimums of one block of a bundle.
#[derive(Clone, Debug)]
pub struct BlockScales {
    pub d: F32x16,
    pub dmin: F32x16,
    pub a: [F32x16; MAX_SUBS],
    pub c: [F32x16; MAX_SUBS],
}

impl BlockScales {
    pub fn new(layout: &Layout) -> Self {
        let block = Block::new(layout);
        let (a, c) = (block.a.map(F32x16::splat), block.c.map(F32x16::splat));
        BlockScales { d: F32x16::ZERO, dmin: F32x16::ZERO, a, c }
    }
}

/// ggml's search on each of the first `rows` rows of `x` (`[block]`), with the importance of the block's columns.
pub fn by_ggml(layout: &Layout, quantize: QuantizeRow, x: &[F32x16], importance: &[f32], rows: usize) -> BlockScales {
    let mut found = BlockScales::new(layout);
    let mut block = Block::new(layout);
    let (mut row, mut bytes) = ([0f32; MAX_BLOCK], [0u8; MAX_BLOCK]);
    let (row, bytes) = (&mut row[..layout.block], &mut bytes[..layout.ty.block_bytes()]);
    for lane in 0..rows.min(LANES) {
        for (v, x) in row.iter_mut().zip(x) {
            *v = x.0[lane];
        }
        quantize(row, Some(importance), bytes);
        unpack_scales(layout, bytes, &mut block);
        (found.d.0[lane], found.dmin.0[lane]) = (block.d, block.dmin);
        for b in 0..layout.subs() {
            (found.a[b].0[lane], found.c[b].0[lane]) = (block.a[b], block.c[b]);
        }
    }
    found
}

/// What the search finds for one sub-block: `x ≈ s · level + m`.
#[derive(Clone, Copy)]
struct Fit<V> {
    s: V,
    m: V,
    /// `Σ w level²`: what an error of the scale costs.
    weight: V,
    mean_level: V,
}

/// Trials per sub-block.
const TRIALS: usize = 10;

/// Scale and minimum (not positive), as ggml's `make_qkx3_quants` with fewer trials.
#[inline(always)]
fn fit_asymmetric<V: Lanes>(layout: &Layout, x: &[F32x16], weights: &[f32]) -> Fit<V> {
    let top = layout.levels.1;
    let (mut low, mut high) = (V::read(&x[0]), V::read(&x[0]));
    let (mut sum_w, mut sum_x) = (0.0f32, V::zero());
    for (x, w) in x.iter().zip(weights) {
        let x = V::read(x);
        (low, high) = (x.min(low), x.max(high));
        sum_w += w;
        sum_x = sum_x.add(x.mul(V::splat(*w)));
    }
    let signed_min = matches!(layout.mins, Factors::Fixed(_));
    if !signed_min {
        low = low.min(V::zero());
    }
    let over_range = V::splat(1.0).ratio(high.sub(low));
    let mut fit = Fit { s: V::zero(), m: low, weight: V::zero(), mean_level: V::zero() };
    let mut best = V::splat(f32::MAX);
    let mut levels = [F32x16::ZERO; MAX_SUB];
    for trial in 0..TRIALS {
        let factor = V::splat(top - 0.9 + 0.2 * trial as f32).mul(over_range);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (V::zero(), V::zero(), V::zero());
        for ((x, w), level) in x.iter().zip(weights).zip(&mut levels) {
            let (x, w) = (V::read(x), V::splat(*w));
            let l = x.sub(fit.m).mul(factor).clamp(0.0, top).round();
            l.write(level);
            let wl = w.mul(l);
            sum_l = sum_l.add(wl);
            sum_l2 = sum_l2.add(wl.mul(l));
            sum_xl = sum_xl.add(wl.mul(x));
        }
        let all = V::splat(sum_w);
        let det = all.mul(sum_l2).sub(sum_l.mul(sum_l));
        let mut s = all.mul(sum_xl).sub(sum_x.mul(sum_l)).ratio(det);
        let mut m = sum_l2.mul(sum_x).sub(sum_l.mul(sum_xl)).ratio(det);
        if !signed_min {
            s = V::zero().if_less(m, sum_xl.ratio(sum_l2), s);
            m = m.min(V::zero());
        }
        s = s.max(V::zero());
        let mut error = V::zero();
        for ((x, w), level) in x.iter().zip(weights).zip(&levels) {
            let e = s.mul(V::read(level)).add(m).sub(V::read(x));
            error = error.add(e.mul(e).mul(V::splat(*w)));
        }
        error = V::zero().if_less(det, error, V::splat(f32::MAX));
        fit.s = error.if_less(best, s, fit.s);
        fit.weight = error.if_less(best, sum_l2, fit.weight);
        fit.mean_level = error.if_less(best, sum_l.mul(V::splat(1.0 / sum_w)), fit.mean_level);
        fit.m = error.if_less(best, m, fit.m);
        best = error.min(best);
    }
    fit
}

/// Scale alone, as ggml's `make_qx_quants` with fewer trials.
#[inline(always)]
fn fit_symmetric<V: Lanes, const TABLE: bool>(layout: &Layout, x: &[F32x16], weights: &[f32]) -> Fit<V> {
    let mut extreme = V::zero();
    for x in x {
        let x = V::read(x);
        extreme = extreme.abs().if_less(x.abs(), x, extreme);
    }
    let over = extreme.inverse();
    let step = if TABLE { 1.5 } else { 0.2 };
    let mut fit = Fit { s: V::zero(), m: V::zero(), weight: V::zero(), mean_level: V::zero() };
    let mut best = V::zero();
    for trial in 0..TRIALS {
        let factor = V::splat(layout.levels.0 + step * (trial as f32 - 0.5 * (TRIALS - 2) as f32)).mul(over);
        let (mut sum_l2, mut sum_xl) = (V::zero(), V::zero());
        for (x, w) in x.iter().zip(weights) {
            let x = V::read(x);
            let l = nearest::<V, TABLE>(layout.levels, x.mul(factor));
            let wl = V::splat(*w).mul(l);
            sum_l2 = sum_l2.add(wl.mul(l));
            sum_xl = sum_xl.add(wl.mul(x));
        }
        let s = sum_xl.ratio(sum_l2);
        let gain = s.mul(sum_xl);
        fit.s = best.if_less(gain, s, fit.s);
        fit.weight = best.if_less(gain, sum_l2, fit.weight);
        best = gain.max(best);
    }
    fit
}

/// Trials of a block's own scale.
const UNITS: usize = 13;

/// The unit d with `values ≈ d · integers` (`low ..= high`, of which `end` is the one that the largest value meets first),
/// by trials and a last least-squares fit, rounded to f16.
#[inline(always)]
fn unit<V: Lanes>(values: &[F32x16], weights: &[F32x16], low: f32, high: f32, end: f32) -> V {
    let mut extreme = V::zero();
    for v in values {
        let v = V::read(v);
        extreme = extreme.abs().if_less(v.abs(), v, extreme);
    }
    let (mut best, mut best_error) = (V::zero(), V::splat(f32::MAX));
    for trial in 0..UNITS {
        let d = extreme.mul(V::splat(1.0 / (end * (1.0 - trial as f32 / 63.0))));
        let over = d.inverse();
        let (mut error, mut sum_sa, mut sum_a2) = (V::zero(), V::zero(), V::zero());
        for (s, w) in values.iter().zip(weights) {
            let (s, w) = (V::read(s), V::read(w));
            let a = s.mul(over).clamp(low, high).round();
            let e = s.sub(d.mul(a));
            error = error.add(w.mul(e).mul(e));
            let wa = w.mul(a);
            sum_sa = sum_sa.add(wa.mul(s));
            sum_a2 = sum_a2.add(wa.mul(a));
        }
        let refit = V::zero().if_less(sum_a2, sum_sa.ratio(sum_a2), d);
        best = error.if_less(best_error, refit, best);
        best_error = error.min(best_error);
    }
    best.round_f16()
}

/// Scales of the bundle's block `x` (`[block]`), and each sub-block's mean level.
#[inline(always)]
pub fn in_lanes<V: Lanes, const TABLE: bool>(
    layout: &Layout,
    x: &[F32x16],
    weights: &[f32],
    mean_level: &mut [F32x16; MAX_SUBS],
) -> BlockScales {
    let mut found = BlockScales::new(layout);
    let (mut s, mut m) = ([F32x16::ZERO; MAX_SUBS], [F32x16::ZERO; MAX_SUBS]);
    let (mut s_weight, mut m_weight) = ([F32x16::ZERO; MAX_SUBS], [F32x16::ZERO; MAX_SUBS]);
    let subs = layout.subs();
    for (b, (x, w)) in x.chunks_exact(layout.sub).zip(weights.chunks_exact(layout.sub)).enumerate() {
        let fit =
            if layout.has_min() { fit_asymmetric::<V>(layout, x, w) } else { fit_symmetric::<V, TABLE>(layout, x, w) };
        fit.s.write(&mut s[b]);
        fit.m.neg().write(&mut m[b]);
        fit.weight.write(&mut s_weight[b]);
        m_weight[b] = F32x16::splat(w.iter().fold(0.0, |sum, w| sum + w));
        fit.mean_level.write(&mut mean_level[b]);
    }
    if let Factors::Integer(low, high) = layout.scales {
        // Where both signs are there, the longer side takes the largest.
        let end = if low < 0.0 { low } else { high };
        let d = unit::<V>(&s[..subs], &s_weight, low, high, end);
        d.write(&mut found.d);
        let over = d.inverse();
        for b in 0..subs {
            V::read(&s[b]).mul(over).clamp(low, high).round().write(&mut found.a[b]);
        }
    } else {
        V::read(&s[0]).round_f16().write(&mut found.d);
    }
    if let Factors::Integer(low, high) = layout.mins {
        let dmin = unit::<V>(&m[..subs], &m_weight, low, high, high);
        dmin.write(&mut found.dmin);
        let over = dmin.inverse();
        for b in 0..subs {
            V::read(&m[b]).mul(over).clamp(low, high).round().write(&mut found.c[b]);
        }
    } else if layout.has_min() {
        // The minimum itself: c is −1 there.
        V::read(&m[0]).neg().round_f16().write(&mut found.dmin);
    }
    found
}

/// Each sub-block's weighted mean level of `x` (`[block]`), rounded with `scales`.
#[inline(always)]
pub fn mean_levels<V: Lanes, const TABLE: bool>(
    layout: &Layout,
    x: &[F32x16],
    weights: &[f32],
    scales: &BlockScales,
    mean_level: &mut [F32x16; MAX_SUBS],
) {
    for (b, (x, w)) in x.chunks_exact(layout.sub).zip(weights.chunks_exact(layout.sub)).enumerate() {
        let affine = Scales::<V>::load(&scales.d, &scales.dmin, &scales.a[b], &scales.c[b]).affine();
        let mut levels = [F32x16::ZERO; MAX_SUB];
        for (level, x) in levels.iter_mut().zip(x) {
            nearest::<V, TABLE>(layout.levels, V::read(x).sub(affine.m).mul(affine.inverse)).write(level);
        }
        weighted_mean::<V>(&levels[..layout.sub], w).write(&mut mean_level[b]);
    }
}

/// The means that a minimum mediates between, for the fresh weights `x` of a sub-block.
#[inline(always)]
pub fn means<V: Lanes>(mean_level: &F32x16, x: V) -> Means<V> {
    Means { level: V::read(mean_level), x }
}
