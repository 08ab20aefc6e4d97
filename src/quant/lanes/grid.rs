//! The codebook types, IQ1 to IQ3: their search is the specification's own ([`crate::quant::iquants`]), in which two steps
//! are most of the work. The nearest point to a pattern off the grid is sought among candidates in lanes, each of which
//! adds up its distance in order; the splits of IQ1 are tried a vector at a time, one by one only where one is better.

use super::vector::{Float, Int, MAX_LANES, Mask};
use super::{Job, Kernel, int_lanes};
use crate::quant::iquants::grids::{Candidates, Grid, Place, Steps};
use crate::quant::iquants::iq1::{DOWN, Split, UP};
use crate::quant::iquants::search::{Found, GROUP, MAGNITUDES, Search};
use crate::quant::iquants::{iq1, iq2, iq3};
use std::marker::PhantomData;

/// The lane form of [`Steps`].
struct ByLanes<F>(PhantomData<F>);

const LANE: [i32; MAX_LANES] = {
    let mut lane = [0; MAX_LANES];
    let mut i = 0;
    while i < MAX_LANES {
        lane[i] = i as i32;
        i += 1;
    }
    lane
};

impl<F: Float> Steps for ByLanes<F> {
    #[inline(always)]
    fn nearest<const N: usize>(
        _: &Grid<N>,
        candidates: Candidates,
        values: &[f32],
        x: &[f32],
        weight: &[f32],
        scale: f32,
    ) -> u16 {
        // What each digit adds to the distance at each place: a candidate is a sum of lookups.
        let mut terms = [[0.0f32; 8]; N];
        for ((terms, x), w) in terms.iter_mut().zip(x).zip(weight) {
            for (term, value) in terms.iter_mut().zip(values) {
                let diff = scale * value - x;
                *term = w * diff * diff;
            }
        }
        let len = F::Int::splat(candidates.points.len() as i32);
        // SAFETY: no vector has more lanes.
        let lane = unsafe { F::Int::load(LANE.as_ptr()) };
        let (mut best, mut best_at) = (F::splat(f32::MAX), F::Int::splat(0));
        for first in (0..candidates.points.len()).step_by(F::N) {
            // SAFETY: the patterns may be read beyond the last candidate, further than any vector.
            let mut pattern = unsafe { F::Int::load_words(candidates.patterns.as_ptr().add(first)) };
            let mut sum = F::splat(0.0);
            for terms in &terms {
                // Eight digits have two bits each, four have three.
                if N == 8 {
                    sum = sum + F::lookup4(pattern, &[terms[0], terms[1], terms[2], terms[3]]);
                    pattern = pattern.shr::<2>();
                } else {
                    sum = sum + F::lookup8(pattern, terms);
                    pattern = pattern.shr::<3>();
                }
            }
            let at = F::Int::splat(first as i32) + lane;
            let less = sum.lt(best).and(at.lt(len));
            best = F::select(less, sum, best);
            best_at = F::Int::select(less, at, best_at);
        }
        // The first of the least; nearly always there is one.
        let mut least = best.same(F::splat(best.least())).bits();
        let positions = int_lanes(best_at);
        let mut at = i32::MAX;
        while least != 0 {
            at = at.min(positions[least.trailing_zeros() as usize]);
            least &= least - 1;
        }
        candidates.points[at as usize]
    }

    /// A lane is a trial.
    #[inline(always)]
    fn trials<const N: usize>(
        search: &Search<N>,
        x: &[f32],
        weight: &[f32],
        root: &[f32],
        reach: f32,
        found: &mut Found,
    ) {
        let grid = (search.grid)();
        let top = i32::from(grid.levels()) - 1;
        let count = (2 * search.tries + 1) as usize;
        let (one, half) = (F::splat(1.0), F::splat(0.5));
        let mut best = 0.0;
        for first in (0..count).step_by(F::N) {
            let lanes = (count - first).min(F::N);
            // SAFETY: no vector has more lanes.
            let trial =
                (F::Int::splat(first as i32 - search.tries) + unsafe { F::Int::load(LANE.as_ptr()) }).to_float();
            let inverse = (F::splat(search.widest()) + trial * F::splat(search.step)) / F::splat(reach);
            let scales = super::lanes(one / inverse);
            // By weight, then by trial.
            let mut digits = [[0i32; MAX_LANES]; GROUP];
            let mut on_grid = [[true; GROUP / 4]; MAX_LANES];
            for k in 0..search.group / N {
                let mut pattern = F::Int::splat(0);
                for i in (N * k..N * k + N).rev() {
                    let digit = (half * (inverse * F::splat(x[i]) - one)).nearest().clamp(0, top);
                    // SAFETY: no vector has more lanes.
                    unsafe { digit.store(digits[i].as_mut_ptr()) };
                    // Eight digits have two bits each, four have three.
                    pattern = if N == 8 { pattern.shl::<2>() } else { pattern.shl::<3>() } | digit;
                }
                for (lane, pattern) in int_lanes(pattern)[..lanes].iter().enumerate() {
                    if let Place::Off(candidates) = grid.place_packed(*pattern as usize) {
                        let part = N * k..N * k + N;
                        let (x, root) = (&x[part.clone()], &root[part.clone()]);
                        let point = Self::nearest(grid, candidates, &MAGNITUDES, x, root, scales[lane]);
                        for (digits, digit) in digits[part].iter_mut().zip(grid.point(point)) {
                            digits[lane] = i32::from(*digit);
                        }
                        on_grid[lane][k] = false;
                    }
                }
            }
            let (mut sum_qx, mut sum_q2) = (F::splat(0.0), F::splat(0.0));
            for ((x, w), digits) in x.iter().zip(weight).zip(&digits) {
                // SAFETY: no vector has more lanes.
                let digit = unsafe { F::Int::load(digits.as_ptr()) };
                let q = (digit + digit + F::Int::splat(1)).to_float();
                sum_qx = sum_qx + F::splat(w * x) * q;
                sum_q2 = sum_q2 + F::splat(*w) * q * q;
            }
            let (sum_qx, sum_q2) = (super::lanes(sum_qx), super::lanes(sum_q2));
            for lane in 0..lanes {
                let (qx, q2) = (sum_qx[lane], sum_q2[lane]);
                if q2 > 0.0 && qx * qx > best * q2 {
                    found.scale = qx / q2;
                    best = found.scale * qx;
                    for (digit, digits) in found.digits.iter_mut().zip(&digits[..search.group]) {
                        *digit = digits[lane] as u8;
                    }
                    found.on_grid = on_grid[lane];
                }
            }
        }
    }

    /// A weight's rank is the number of those that come before it.
    #[inline(always)]
    fn ascending<const G: usize>(x: &[f32]) -> [usize; G] {
        let mut order = [0; G];
        // SAFETY: vectors of the group's weights and their places, of which the group is a multiple.
        unsafe {
            for at in (0..G).step_by(F::N) {
                let (own, place) = (F::load(x[at..at + F::N].as_ptr()), F::Int::load(LANE[at..].as_ptr()));
                let (zero, one) = (F::Int::splat(0), F::Int::splat(1));
                let mut rank = zero;
                for (j, other) in x[..G].iter().enumerate() {
                    let other = F::splat(*other);
                    let earlier = other.same(own).and(F::Int::splat(j as i32).lt(place));
                    rank = rank + F::Int::select(other.lt(own).or(earlier), one, zero);
                }
                for (i, rank) in int_lanes(rank)[..F::N].iter().enumerate() {
                    order[*rank as usize] = at + i;
                }
            }
        }
        order
    }

    #[inline(always)]
    fn best_split_s(sum_x: &[f32; 33], sum_w: &[f32; 33]) -> Option<Split> {
        let (x, w) = (padded(sum_x), padded(sum_w));
        let (all_x, all_w) = (F::splat(sum_x[32]), F::splat(sum_w[32]));
        let mut best: Option<Split> = None;
        for first in 0..=32 {
            let (first_x, first_w) = (F::splat(sum_x[first]), F::splat(sum_w[first]));
            for second in (first..=32).step_by(F::N) {
                // SAFETY: the arrays are padded by as much as any vector reads.
                let (x, w) = unsafe { (F::load(x.as_ptr().add(second)), F::load(w.as_ptr().add(second))) };
                let (mut qx, mut q2) = ([x; 2], [x; 2]);
                for (variant, v) in [UP, DOWN].iter().enumerate() {
                    let v = [F::splat(v[0]), F::splat(v[1]), F::splat(v[2])];
                    qx[variant] = first_x * v[0] + (x - first_x) * v[1] + (all_x - x) * v[2];
                    q2[variant] = first_w * v[0] * v[0] + (w - first_w) * v[1] * v[1] + (all_w - w) * v[2] * v[2];
                }
                offer(&mut best, &qx, &q2, first, second, 32);
            }
        }
        best
    }

    #[inline(always)]
    fn best_split_m(px: &[[f32; 17]; 2], pw: &[[f32; 17]; 2]) -> Option<Split> {
        let (x, w) = ([padded(&px[0]), padded(&px[1])], [padded(&pw[0]), padded(&pw[1])]);
        let mut best: Option<Split> = None;
        for first in 0..=16 {
            for second in (first..=16).step_by(F::N) {
                let zero = F::splat(0.0);
                // [shift][half]
                let (mut qx, mut q2) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for half in 0..2 {
                    // SAFETY: the arrays are padded by as much as any vector reads.
                    let (x, w) =
                        unsafe { (F::load(x[half].as_ptr().add(second)), F::load(w[half].as_ptr().add(second))) };
                    let sum = F::splat(px[half][first]) + x;
                    for (shift, v) in [UP, DOWN].iter().enumerate() {
                        qx[shift][half] = F::splat(px[half][16] * v[2]) - sum;
                        q2[shift][half] =
                            F::splat(pw[half][16] * v[2] * v[2] + pw[half][first] * (v[0] * v[0] - v[1] * v[1]))
                                + w * F::splat(v[1] * v[1] - v[2] * v[2]);
                    }
                }
                let (mut sum_qx, mut sum_q2) = ([zero; 4], [zero; 4]);
                for variant in 0..4 {
                    let (a, b) = (variant >> 1, variant & 1);
                    sum_qx[variant] = qx[a][0] + qx[b][1];
                    sum_q2[variant] = q2[a][0] + q2[b][1];
                }
                offer(&mut best, &sum_qx, &sum_q2, first, second, 16);
            }
        }
        best
    }
}

/// Offers the splits with borders `first` and `second ..= last`, as many as there are lanes, in order of the second border
/// and then of the variant.
#[inline(always)]
fn offer<F: Float, const V: usize>(
    best: &mut Option<Split>,
    qx: &[F; V],
    q2: &[F; V],
    first: usize,
    second: usize,
    last: usize,
) {
    let count = (last - second + 1).min(F::N);
    // SAFETY: no vector has more lanes.
    let lane = unsafe { F::Int::load(LANE.as_ptr()) };
    let offered = lane.lt(F::Int::splat(count as i32));
    let score = best.as_ref().map_or(-f32::MAX, |b| b.score);
    let mut any = lane.lt(lane);
    for v in 0..V {
        any = any.or(is_better(qx[v], q2[v], F::splat(score)));
    }
    if !any.and(offered).any() {
        return;
    }
    let winner = match clear_winner(qx, q2, score, lane, offered) {
        Some(winner) => winner..winner + 1,
        None => 0..count * V,
    };
    let (mut all_qx, mut all_q2) = ([[0.0; MAX_LANES]; V], [[0.0; MAX_LANES]; V]);
    for v in 0..V {
        (all_qx[v], all_q2[v]) = (super::lanes(qx[v]), super::lanes(q2[v]));
    }
    for key in winner {
        let (lane, v) = (key / V, key % V);
        Split::offer(best, all_qx[v][lane], all_q2[v][lane], first, second + lane, v);
    }
}

/// Whether a split beats the score.
#[inline(always)]
fn is_better<F: Float>(qx: F, q2: F, score: F) -> F::Mask {
    q2.gt(F::splat(0.0)).and((qx * qx).gt(score * q2))
}

/// The one whose taking over alone leaves what offering all in turn would: it beats the score and the score of each one
/// before it, and none after it beats its own. Rounding can prevent that there is one. Numbers are `lane · V + variant`.
#[inline(always)]
fn clear_winner<F: Float, const V: usize>(
    qx: &[F; V],
    q2: &[F; V],
    score: f32,
    lane: F::Int,
    offered: F::Mask,
) -> Option<usize> {
    let none = F::splat(f32::NEG_INFINITY);
    let mut scores = [none; V];
    let mut most = none;
    for v in 0..V {
        let own = qx[v] / q2[v] * qx[v];
        let counts = q2[v].gt(F::splat(0.0)).and(offered);
        scores[v] = F::select(counts.and(own.same(own)), own, none);
        most = most.max(scores[v]);
        if counts.and(own.same(own).not()).any() {
            return None;
        }
    }
    let most = greatest(most);
    let mut winner = usize::MAX;
    for (v, scores) in scores.iter().enumerate() {
        let at = scores.same(F::splat(most)).bits();
        if at != 0 {
            winner = winner.min(at.trailing_zeros() as usize * V + v);
        }
    }
    if winner == usize::MAX {
        return None;
    }
    let mut before = F::splat(score);
    let mut later = lane.lt(lane);
    for v in 0..V {
        let earlier = lane.lt(F::Int::splat(((winner + V - 1 - v) / V) as i32));
        before = before.max(F::select(earlier, scores[v], none));
        let up_to = lane.lt(F::Int::splat(((winner + V - v) / V) as i32));
        later = later.or(is_better(qx[v], q2[v], F::splat(most)).and(up_to.not()).and(offered));
    }
    let (qx, q2) = (super::lanes(qx[winner % V])[winner / V], super::lanes(q2[winner % V])[winner / V]);
    (qx * qx > greatest(before) * q2 && !later.any()).then_some(winner)
}

#[inline(always)]
fn greatest<F: Float>(v: F) -> f32 {
    -v.negate().least()
}

/// The numbers and as many of the last one as any vector may read beyond.
#[inline(always)]
fn padded<const N: usize>(sums: &[f32; N]) -> [f32; 64] {
    let mut all = [sums[N - 1]; 64];
    all[..N].copy_from_slice(sums);
    all
}

macro_rules! kernels {
    ($($name:ident $quantize:path, $block:literal $bytes:literal;)*) => {$(
        pub struct $name<'a, 'b>(pub &'a mut Job<'b>);

        impl Kernel for $name<'_, '_> {
            #[inline(always)]
            fn run<F: Float>(self) {
                let job = self.0;
                let row_bytes = job.cols / $block * $bytes;
                for (row, out) in job.src.chunks_exact(job.cols).zip(job.out.chunks_exact_mut(row_bytes)) {
                    $quantize(row, job.importance, out);
                }
            }
        }
    )*};
}

kernels! {
    Iq1S iq1::quantize_s::<ByLanes<F>>, 256 50;
    Iq1M iq1::quantize_m::<ByLanes<F>>, 256 56;
    Iq2Xxs iq2::quantize_xxs::<ByLanes<F>>, 256 66;
    Iq2Xs iq2::quantize_xs::<ByLanes<F>>, 256 74;
    Iq2S iq2::quantize_s::<ByLanes<F>>, 256 82;
    Iq3Xxs iq3::quantize_xxs::<ByLanes<F>>, 256 98;
    Iq3S iq3::quantize_s::<ByLanes<F>>, 256 110;
}
