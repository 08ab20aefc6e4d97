//! The best split of IQ1's groups, a group per lane. The specification, with the order of splits and of additions, is
//! [`crate::quant::iquants::iq1`].

use super::{int_lanes, lanes, transpose};
use crate::quant::iquants::iq1::{DOWN, UP};
use crate::quant::iquants::steps::{Sorted, Split};
use crate::simd::{Float, Int, MAX_LANES, Mask};

/// A group by rank: weight times error weight, error weight, and which weight it is.
struct Ranked<const G: usize> {
    wx: [[f32; MAX_LANES]; G],
    w: [[f32; MAX_LANES]; G],
    index: [[i32; MAX_LANES]; G],
}

/// The best split so far, by lane.
struct Best<F: Float> {
    score: F,
    scale: F,
    /// `(first · 64 + second) · 4 + variant`; −1 is none.
    key: F::Int,
}

impl<F: Float> Best<F> {
    /// Takes over a split where its weighted correlation is better.
    #[inline(always)]
    fn offer(&mut self, qx: F, q2: F, key: usize) {
        let better = q2.gt(F::splat(0.0)).and((qx * qx).gt(self.score * q2));
        if better.any() {
            let scale = qx / q2;
            self.score = F::select(better, scale * qx, self.score);
            self.scale = F::select(better, scale, self.scale);
            self.key = F::Int::select(better, F::Int::splat(key as i32), self.key);
        }
    }
}

/// Sorts and splits all groups of `G` weights.
#[inline(always)]
pub fn splits<F: Float, const G: usize>(x: &[f32], weight: &[f32]) -> Vec<Sorted<G>> {
    let groups = x.len() / G;
    let mut all = Vec::with_capacity(groups);
    for first in (0..groups).step_by(F::N) {
        let mut pointers = ([x.as_ptr(); MAX_LANES], [x.as_ptr(); MAX_LANES]);
        for lane in 0..F::N {
            let at = (first + lane).min(groups - 1) * G;
            (pointers.0[lane], pointers.1[lane]) = (x[at..at + G].as_ptr(), weight[at..at + G].as_ptr());
        }
        let (mut x, mut w) = ([F::splat(0.0); G], [F::splat(0.0); G]);
        // SAFETY: every lane points at a group, and a group is a multiple of four.
        unsafe {
            transpose(&pointers.0, 0, &mut x);
            transpose(&pointers.1, 0, &mut w);
        }
        let ranked = rank(&x, &w);
        let best: Best<F> = if G == 32 { best_s(&ranked) } else { best_m(&ranked) };
        let (keys, scales) = (int_lanes(best.key), lanes(best.scale));
        for lane in 0..F::N.min(groups - first) {
            let key = keys[lane];
            let split = (key >= 0).then(|| Split {
                first: key as usize >> 8,
                second: key as usize >> 2 & 63,
                scale: scales[lane],
                variant: key as usize & 3,
            });
            all.push(Sorted { order: std::array::from_fn(|rank| ranked.index[rank][lane] as u8), split });
        }
    }
    all
}

/// A weight's rank is the number of those that come before it: the smaller ones, and the equal ones with a lower index.
#[inline(always)]
fn rank<F: Float, const G: usize>(x: &[F; G], w: &[F; G]) -> Ranked<G> {
    let (zero, one) = (F::Int::splat(0), F::Int::splat(1));
    let mut ranks: [F::Int; G] = std::array::from_fn(|i| F::Int::splat(i as i32));
    for i in 1..G {
        let mut rank = ranks[i];
        for j in 0..i {
            let swapped = F::Int::select(x[i].lt(x[j]), one, zero);
            rank = rank - swapped;
            ranks[j] = ranks[j] + swapped;
        }
        ranks[i] = rank;
    }
    let mut ranked = Ranked { wx: [[0.0; MAX_LANES]; G], w: [[0.0; MAX_LANES]; G], index: [[0; MAX_LANES]; G] };
    for i in 0..G {
        let (wx, w, ranks) = (lanes(w[i] * x[i]), lanes(w[i]), int_lanes(ranks[i]));
        for lane in 0..F::N {
            // Below G, a power of two, in any case.
            let rank = ranks[lane] as usize & (G - 1);
            ranked.wx[rank][lane] = wx[lane];
            ranked.w[rank][lane] = w[lane];
            ranked.index[rank][lane] = i as i32;
        }
    }
    ranked
}

#[inline(always)]
fn load<F: Float>(lanes: &[f32; MAX_LANES]) -> F {
    // SAFETY: no vector has more lanes.
    unsafe { F::load(lanes.as_ptr()) }
}

#[inline(always)]
fn none<F: Float>() -> Best<F> {
    Best { score: F::splat(-f32::MAX), scale: F::splat(0.0), key: F::Int::splat(-1) }
}

/// IQ1_S: both shifts.
#[inline(always)]
fn best_s<F: Float, const G: usize>(ranked: &Ranked<G>) -> Best<F> {
    let zero = F::splat(0.0);
    let (mut sum_x, mut sum_w) = ([zero; 33], [zero; 33]);
    for rank in 0..G {
        sum_x[rank + 1] = sum_x[rank] + load::<F>(&ranked.wx[rank]);
        sum_w[rank + 1] = sum_w[rank] + load::<F>(&ranked.w[rank]);
    }
    // By shift, what the weights after the second border add.
    let (mut tail_x, mut tail_w) = ([[zero; 33]; 2], [[zero; 33]; 2]);
    for (shift, v) in [UP, DOWN].iter().enumerate() {
        let v = F::splat(v[2]);
        for second in 0..=G {
            tail_x[shift][second] = (sum_x[G] - sum_x[second]) * v;
            tail_w[shift][second] = (sum_w[G] - sum_w[second]) * v * v;
        }
    }
    let mut best = none::<F>();
    for first in 0..=G {
        let (first_x, first_w) = (sum_x[first], sum_w[first]);
        let head_x = [first_x * F::splat(UP[0]), first_x * F::splat(DOWN[0])];
        let head_w = [first_w * F::splat(UP[0]) * F::splat(UP[0]), first_w * F::splat(DOWN[0]) * F::splat(DOWN[0])];
        for second in first..=G {
            let (x, w) = (sum_x[second] - first_x, sum_w[second] - first_w);
            for (shift, v) in [UP, DOWN].iter().enumerate() {
                let v = F::splat(v[1]);
                let qx = head_x[shift] + x * v + tail_x[shift][second];
                let q2 = head_w[shift] + w * v * v + tail_w[shift][second];
                best.offer(qx, q2, (first * 64 + second) * 4 + shift);
            }
        }
    }
    best
}

/// IQ1_M: the four pairs of shifts of its halves.
#[inline(always)]
fn best_m<F: Float, const G: usize>(ranked: &Ranked<G>) -> Best<F> {
    let zero = F::splat(0.0);
    // [half][rank]
    let (mut px, mut pw) = ([[zero; 33]; 2], [[zero; 33]; 2]);
    for rank in 0..G {
        // SAFETY: no vector has more lanes.
        let index = unsafe { F::Int::load(ranked.index[rank].as_ptr()) };
        let first_half = index.lt(F::Int::splat(G as i32 / 2));
        let (x, w) = (load::<F>(&ranked.wx[rank]), load::<F>(&ranked.w[rank]));
        px[0][rank + 1] = F::select(first_half, px[0][rank] + x, px[0][rank]);
        pw[0][rank + 1] = F::select(first_half, pw[0][rank] + w, pw[0][rank]);
        px[1][rank + 1] = F::select(first_half, px[1][rank], px[1][rank] + x);
        pw[1][rank + 1] = F::select(first_half, pw[1][rank], pw[1][rank] + w);
    }
    // [half][shift][rank]: what a second border there adds.
    let mut tail = [[[zero; 33]; 2]; 2];
    for half in 0..2 {
        for (shift, v) in [UP, DOWN].iter().enumerate() {
            for rank in 0..=G {
                tail[half][shift][rank] = pw[half][rank] * F::splat(v[1] * v[1] - v[2] * v[2]);
            }
        }
    }
    let mut best = none::<F>();
    for first in 0..=G {
        // [half][shift]: what does not depend on the second border.
        let (mut top_x, mut head_w) = ([[zero; 2]; 2], [[zero; 2]; 2]);
        for half in 0..2 {
            for (shift, v) in [UP, DOWN].iter().enumerate() {
                top_x[half][shift] = px[half][G] * F::splat(v[2]);
                head_w[half][shift] = pw[half][G] * F::splat(v[2]) * F::splat(v[2])
                    + pw[half][first] * F::splat(v[0] * v[0] - v[1] * v[1]);
            }
        }
        for second in first..=G {
            // [shift][half]
            let (mut qx, mut q2) = ([[zero; 2]; 2], [[zero; 2]; 2]);
            for half in 0..2 {
                let sum = px[half][first] + px[half][second];
                for shift in 0..2 {
                    qx[shift][half] = top_x[half][shift] - sum;
                    q2[shift][half] = head_w[half][shift] + tail[half][shift][second];
                }
            }
            for variant in 0..4 {
                let (a, b) = (variant >> 1, variant & 1);
                best.offer(qx[a][0] + qx[b][1], q2[a][0] + q2[b][1], (first * 64 + second) * 4 + variant);
            }
        }
    }
    best
}
