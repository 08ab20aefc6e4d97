//! The searches of [`crate::quant::search`] with one sub-block per lane: the same steps in the same order in every lane,
//! masks for its branches, so the same bits. What a search returns is enough to code the sub-block afterwards.

use crate::quant::search::{EPS, Grid};
use crate::simd::{Float, Int, Mask};

/// The largest magnitude and the signed value that has it, the first one where there are several.
#[inline(always)]
pub fn extreme<F: Float, const K: usize>(x: &[F; K]) -> (F, F) {
    let (mut max, mut amax) = (F::splat(0.0), F::splat(0.0));
    for v in x {
        let more = v.abs().gt(amax);
        amax = F::select(more, v.abs(), amax);
        max = F::select(more, *v, max);
    }
    (max, amax)
}

/// A symmetric fit: the scale, and the inverse that the best codes were rounded with.
#[derive(Clone, Copy)]
pub struct Symmetric<F> {
    pub scale: F,
    pub inverse: F,
}

/// [`crate::quant::search::qx`] by its scale alone. No argument of the rounding exceeds `nmax + 1`.
#[inline(always)]
pub fn qx<F: Float, const K: usize>(nmax: i32, x: &[F; K], weights: &[F; K]) -> Symmetric<F> {
    let (max, amax) = extreme(x);
    let dead = amax.lt(F::splat(EPS));
    // Any finite number will do in the lanes whose result is dropped.
    let max = F::select(dead, F::splat(1.0), max);
    let zero = F::splat(0.0);
    let mut wx = [zero; K];
    for i in 0..K {
        wx[i] = weights[i] * x[i];
    }
    let n = nmax as f32;
    let mut inverse = F::splat(-n) / max;
    let (sumlx, suml2) = qx_sums(n, x, weights, &wx, inverse);
    let mut scale = F::select(suml2.same(zero), zero, sumlx / suml2);
    let mut best = scale * sumlx;
    for step in (-9..=9).filter(|s| *s != 0) {
        let iscale = F::splat(-(n + 0.1 * step as f32)) / max;
        let (sumlx, suml2) = qx_sums(n, x, weights, &wx, iscale);
        let better = suml2.gt(zero).and((sumlx * sumlx).gt(best * suml2));
        if better.any() {
            scale = F::select(better, sumlx / suml2, scale);
            best = F::select(better, scale * sumlx, best);
            inverse = F::select(better, iscale, inverse);
        }
    }
    Symmetric { scale: F::select(dead, zero, scale), inverse: F::select(dead, zero, inverse) }
}

#[inline(always)]
fn qx_sums<F: Float, const K: usize>(n: f32, x: &[F; K], w: &[F; K], wx: &[F; K], iscale: F) -> (F, F) {
    let (mut sumlx, mut suml2) = (F::splat(0.0), F::splat(0.0));
    for i in 0..K {
        let l = (iscale * x[i]).nearest_small(-n, n - 1.0);
        sumlx = sumlx + wx[i] * l;
        suml2 = suml2 + w[i] * l * l;
    }
    (sumlx, suml2)
}

/// [`crate::quant::search::q3`] by its scale alone.
#[inline(always)]
pub fn q3<F: Float, const K: usize>(nmax: i32, x: &[F; K]) -> F {
    let (max, amax) = extreme(x);
    let dead = amax.lt(F::splat(EPS));
    let max = F::select(dead, F::splat(1.0), max);
    let zero = F::splat(0.0);
    let n = nmax as f32;
    let iscale = F::splat(-n) / max;
    let (mut sumlx, mut suml2) = (zero, zero);
    // What each weight adds to the sums with the code that it has.
    let (mut codes, mut own_lx, mut own_l2) = ([zero; K], [zero; K], [zero; K]);
    for i in 0..K {
        let l = (iscale * x[i]).nearest_small(-n, n - 1.0);
        let w = x[i] * x[i];
        (codes[i], own_lx[i], own_l2[i]) = (l, w * x[i] * l, w * l * l);
        sumlx = sumlx + own_lx[i];
        suml2 = suml2 + own_l2[i];
    }
    // A lane that a sweep leaves as it is will not change in another one either, so all sweep until none changes.
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..K {
            let slx = sumlx - own_lx[i];
            let sl2 = suml2 - own_l2[i];
            let new = (x[i] * sl2 / slx).nearest().clamp(-nmax, nmax - 1).to_float();
            let w = x[i] * x[i];
            let (new_lx, new_l2) = (w * x[i] * new, w * new * new);
            let new_slx = slx + new_lx;
            let new_sl2 = sl2 + new_l2;
            let better = (new_slx * new_slx * suml2).gt(sumlx * sumlx * new_sl2);
            let take = slx.gt(zero).and(new.same(codes[i]).not()).and(new_sl2.gt(zero)).and(better);
            if take.any() {
                codes[i] = F::select(take, new, codes[i]);
                own_lx[i] = F::select(take, new_lx, own_lx[i]);
                own_l2[i] = F::select(take, new_l2, own_l2[i]);
                sumlx = F::select(take, new_slx, sumlx);
                suml2 = F::select(take, new_sl2, suml2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    F::select(suml2.gt(zero).and(dead.not()), sumlx / suml2, zero)
}

/// An asymmetric fit `x ≈ scale · code − min`, and the two numbers that the best codes were made with:
/// `code = nearest_int(inverse · (x − origin))`, limited to the type's codes.
#[derive(Clone, Copy)]
pub struct Asymmetric<F> {
    pub scale: F,
    pub min: F,
    pub inverse: F,
    pub origin: F,
}

/// Sums over the codes of one starting scale.
struct Trial<F> {
    sum_l: F,
    sum_l2: F,
    sum_xl: F,
}

/// `SMALL`: no argument of the rounding reaches 2^22.
#[inline(always)]
fn qkx_trial<F: Float, const K: usize, const SMALL: bool>(
    nmax: i32,
    x: &[F; K],
    weights: &[F; K],
    iscale: F,
    min: F,
    codes: &mut [F; K],
) -> Trial<F> {
    let zero = F::splat(0.0);
    let mut t = Trial { sum_l: zero, sum_l2: zero, sum_xl: zero };
    for i in 0..K {
        let scaled = iscale * (x[i] - min);
        let l = if SMALL { scaled.nearest_small(0.0, nmax as f32) } else { scaled.nearest().clamp(0, nmax).to_float() };
        let wl = weights[i] * l;
        t.sum_l = t.sum_l + wl;
        t.sum_l2 = t.sum_l2 + wl * l;
        t.sum_xl = t.sum_xl + wl * x[i];
        codes[i] = l;
    }
    t
}

/// As rounding keeps the order, the extremes of a lane tell whether all arguments of the rounding are small.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn qkx_any_trial<F: Float, const K: usize>(
    nmax: i32,
    x: &[F; K],
    weights: &[F; K],
    iscale: F,
    min: F,
    low: F,
    high: F,
    dead: F::Mask,
    codes: &mut [F; K],
) -> Trial<F> {
    let limit = F::splat(4_000_000.0);
    let small = (iscale * (low - min)).abs().lt(limit).and((iscale * (high - min)).abs().lt(limit));
    if small.or(dead).all() {
        qkx_trial::<F, K, true>(nmax, x, weights, iscale, min, codes)
    } else {
        qkx_trial::<F, K, false>(nmax, x, weights, iscale, min, codes)
    }
}

#[inline(always)]
fn qkx_error<F: Float, const K: usize>(x: &[F; K], weights: &[F; K], codes: &[F; K], scale: F, min: F, mad: bool) -> F {
    let mut sum = F::splat(0.0);
    for i in 0..K {
        let diff = scale * codes[i] + min - x[i];
        sum = sum + weights[i] * if mad { diff.abs() } else { diff * diff };
    }
    sum
}

/// [`crate::quant::search::qkx`].
#[inline(always)]
pub fn qkx<F: Float, const K: usize>(nmax: i32, x: &[F; K], weights: &[F; K], grid: Grid) -> Asymmetric<F> {
    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..K {
        low = x[i].min(low);
        high = x[i].max(high);
        sum_w = sum_w + weights[i];
        sum_x = sum_x + weights[i] * x[i];
    }
    let (zero, n) = (F::splat(0.0), nmax as f32);
    let start = zero.min(low);
    let dead = high.le(start);
    // Any range will do in the lanes whose result is dropped.
    let max = F::select(dead, start + F::splat(1.0), high);
    let mut min = start;
    let mut inverse = F::splat(n) / (max - min);
    let mut origin = min;
    let mut scale = F::splat(1.0) / inverse;
    let mut codes = [zero; K];
    qkx_any_trial(nmax, x, weights, inverse, min, low, high, dead, &mut codes);
    let mut best = qkx_error(x, weights, &codes, scale, min, grid.mad);
    for step in 0..=grid.steps {
        let iscale = F::splat(grid.rmin + grid.rdelta * step as f32 + n) / (max - min);
        let t = qkx_any_trial(nmax, x, weights, iscale, min, low, high, dead, &mut codes);
        let det = sum_w * t.sum_l2 - t.sum_l * t.sum_l;
        let mut this_scale = (sum_w * t.sum_xl - sum_x * t.sum_l) / det;
        let mut this_min = (t.sum_l2 * sum_x - t.sum_l * t.sum_xl) / det;
        let positive = this_min.gt(zero);
        if positive.any() {
            this_min = F::select(positive, zero, this_min);
            this_scale = F::select(positive, t.sum_xl / t.sum_l2, this_scale);
        }
        let error = qkx_error(x, weights, &codes, this_scale, this_min, grid.mad);
        let better = det.gt(zero).and(error.lt(best)).and(dead.not());
        best = F::select(better, error, best);
        inverse = F::select(better, iscale, inverse);
        origin = F::select(better, min, origin);
        scale = F::select(better, this_scale, scale);
        min = F::select(better, this_min, min);
    }
    // Codes of a lane without range are zero: so is an inverse that they are made with.
    Asymmetric {
        scale: F::select(dead, zero, scale),
        min: min.negate(),
        inverse: F::select(dead, zero, inverse),
        origin,
    }
}

/// [`crate::quant::search::qp`]: the scale and the codes.
#[inline(always)]
pub fn qp<F: Float, const K: usize>(nmax: i32, x: &[F; K], weights: &[F; K]) -> (F, [F::Int; K]) {
    let (zero, n) = (F::splat(0.0), nmax as f32);
    let mut max = zero;
    for v in x {
        max = max.max(*v);
    }
    let dead = max.lt(F::splat(EPS));
    let max = F::select(dead, F::splat(1.0), max);
    let top = F::Int::splat(nmax);
    let byte = F::Int::splat(255);
    let mut iscale = F::splat(n) / max;
    let mut best = zero;
    let scale = F::splat(1.0) / iscale;
    for i in 0..K {
        // In this place alone the code is a byte before it is used.
        let diff = x[i] - scale * ((iscale * x[i]).nearest() & byte).to_float();
        best = best + weights[i] * diff * diff;
    }
    for step in (-4..=4).filter(|s| *s != 0) {
        let this = F::splat(0.1 * step as f32 + n) / max;
        let scale = F::splat(1.0) / this;
        let mut error = zero;
        for i in 0..K {
            let diff = x[i] - scale * (this * x[i]).nearest().min(top).to_float();
            error = error + weights[i] * diff * diff;
        }
        let better = error.lt(best);
        best = F::select(better, error, best);
        iscale = F::select(better, this, iscale);
    }
    let (mut sumlx, mut suml2) = (zero, zero);
    let mut codes = [F::Int::splat(0); K];
    for i in 0..K {
        let l = (iscale * x[i]).nearest().min(top);
        codes[i] = l & byte;
        let l = l.to_float();
        sumlx = sumlx + weights[i] * x[i] * l;
        suml2 = suml2 + weights[i] * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..K {
            let (w, c) = (weights[i], codes[i].to_float());
            let slx = sumlx - w * x[i] * c;
            let sl2 = suml2 - w * c * c;
            let new = (x[i] * sl2 / slx).nearest().min(top);
            let l = new.to_float();
            let new_slx = slx + w * x[i] * l;
            let new_sl2 = sl2 + w * l * l;
            let better = (new_slx * new_slx * suml2).gt(sumlx * sumlx * new_sl2);
            let take = slx.gt(zero).and(sl2.gt(zero)).and(new.eq(codes[i]).not()).and(better);
            codes[i] = F::Int::select(take, new & byte, codes[i]);
            sumlx = F::select(take, new_slx, sumlx);
            suml2 = F::select(take, new_sl2, suml2);
            changed |= take.any();
        }
        if !changed {
            break;
        }
    }
    let scale = F::select(suml2.gt(zero).and(dead.not()), sumlx / suml2, zero);
    for code in &mut codes {
        *code = F::Int::select(dead, F::Int::splat(0), *code);
    }
    (scale, codes)
}
