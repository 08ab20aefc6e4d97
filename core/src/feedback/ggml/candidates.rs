//! The scales and minimums that a sub-block tries: the neighbours of those it has. For integer scales these are the
//! integers around; where the scale is an f16 of its own, steps of a fraction of it. A minimum is recentred for each scale
//! first, since it has to move with the scale.

use super::lanes::Lanes;
use super::layout::{Factors, Layout};
use super::rounding::{Affine, CANDIDATES};
use crate::simd::F32x16;

/// The scales of one sub-block: d and dmin of its block, its own a and c.
#[derive(Clone, Copy)]
pub struct Scales<V> {
    pub d: V,
    pub dmin: V,
    pub a: V,
    pub c: V,
}

impl<V: Lanes> Scales<V> {
    #[inline(always)]
    pub fn load(d: &F32x16, dmin: &F32x16, a: &F32x16, c: &F32x16) -> Self {
        Scales { d: V::read(d), dmin: V::read(dmin), a: V::read(a), c: V::read(c) }
    }

    #[inline(always)]
    pub fn affine(self) -> Affine<V> {
        Affine::new(self.d, self.dmin, self.a, self.c)
    }

    /// `self` where `a < b`, else `other`.
    #[inline(always)]
    fn if_less(self, a: V, b: V, other: Self) -> Self {
        Scales {
            d: a.if_less(b, self.d, other.d),
            dmin: a.if_less(b, self.dmin, other.dmin),
            a: a.if_less(b, self.a, other.a),
            c: a.if_less(b, self.c, other.c),
        }
    }
}

/// The weighted means of a sub-block's levels and weights, between which the minimum mediates.
#[derive(Clone, Copy)]
pub struct Means<V> {
    pub level: V,
    pub x: V,
}

/// `Σ w x / Σ w` with the same weights in every row.
#[inline(always)]
pub fn weighted_mean<V: Lanes>(x: &[F32x16], weights: &[f32]) -> V {
    let (mut sum, mut total) = (V::zero(), 0.0f32);
    for (x, w) in x.iter().zip(weights) {
        sum = sum.add(V::read(x).mul(V::splat(*w)));
        total += w;
    }
    sum.mul(V::splat(1.0 / total))
}

/// How far integer scales without a minimum go: those around, and those of the other sign, since the levels reach
/// farther to one side than to the other.
const AROUND: [f32; CANDIDATES] = [0.0, -1.0, 1.0, -2.0, 2.0, 3.0, 0.0, -1.0, 1.0];
const SAME_SIGN: usize = 6;

/// The same for f16 scales, in steps of [`step`].
const STEPS: [f32; CANDIDATES] = [0.0, -1.0, 1.0, -2.0, 2.0, 3.0, 0.0, -1.5, 1.5];

/// The neighbours of `at`; the first is `at` itself, its minimum recentred where there is one.
#[inline(always)]
pub fn around<V: Lanes>(layout: &Layout, at: Scales<V>, means: Means<V>) -> [Scales<V>; CANDIDATES] {
    // A quarter of the change that moves the outermost level to its neighbour.
    let step = if layout.table { 0.02 } else { 0.3 / (layout.levels.1 - layout.levels.0 + 1.0) };
    let mut out = [at; CANDIDATES];
    match (layout.scales, layout.mins) {
        (Factors::Integer(low, high), Factors::Integer(least, most)) => {
            let over_dmin = at.dmin.inverse();
            for (k, out) in out.iter_mut().enumerate() {
                let (i, j) = (centred(k / 3), centred(k % 3));
                out.a = at.a.add(V::splat(i)).clamp(low, high);
                let c = at.d.mul(out.a).mul(means.level).sub(means.x).mul(over_dmin).clamp(least, most).round();
                out.c = c.add(V::splat(j)).clamp(least, most);
            }
        }
        (Factors::Integer(low, high), _) => {
            for (k, out) in out.iter_mut().enumerate() {
                let a = if k < SAME_SIGN { at.a } else { at.a.neg() };
                out.a = a.add(V::splat(AROUND[k])).clamp(low, high);
            }
        }
        (_, Factors::None) => {
            for (k, out) in out.iter_mut().enumerate() {
                let d = if k < SAME_SIGN { at.d } else { at.d.neg() };
                out.d = d.mul(V::splat(1.0 + step * STEPS[k])).round_f16();
            }
        }
        _ => {
            for (k, out) in out.iter_mut().enumerate() {
                let (i, j) = (centred(k / 3), centred(k % 3));
                out.d = at.d.mul(V::splat(1.0 + step * i)).round_f16();
                let centre = means.x.sub(out.d.mul(means.level));
                out.dmin = centre.add(at.d.mul(V::splat(0.2 * j))).round_f16();
            }
        }
    }
    out
}

/// 0, −1, 1.
#[inline(always)]
fn centred(i: usize) -> f32 {
    [0.0, -1.0, 1.0][i % 3]
}

/// The candidate of the smallest loss in each row, the first of equals; and that loss.
#[inline(always)]
pub fn best<V: Lanes>(candidates: &[Scales<V>; CANDIDATES], losses: &[V; CANDIDATES]) -> (Scales<V>, V) {
    let (mut scales, mut loss) = (candidates[0], losses[0]);
    for (candidate, l) in candidates.iter().zip(losses).skip(1) {
        scales = candidate.if_less(*l, loss, scales);
        loss = l.if_less(loss, *l, loss);
    }
    (scales, loss)
}

/// `a` where its loss is below `limit`, else `b`.
#[inline(always)]
pub fn better<V: Lanes>(a: Scales<V>, loss: V, limit: V, b: Scales<V>) -> Scales<V> {
    a.if_less(loss, limit, b)
}
