//! The codebook types, IQ1 to IQ3: their search is the specification's own ([`crate::quant::iquants`]), in which two steps
//! are most of the work. The nearest point to a pattern off the grid is sought among candidates in lanes, each of which
//! adds up its distance in order; the splits of IQ1 are in `ternary.rs`.

use super::{Job, Kernel, int_lanes, ternary};
use crate::quant::iquants::grids::{Candidates, Grid, Place, unpack};

use crate::quant::iquants::search::MAGNITUDES;
use crate::quant::iquants::steps::{Found, GROUP, Search, Sorted, Steps};
use crate::quant::iquants::{iq1, iq2, iq3};
use crate::simd::{Float, Int, MAX_LANES, Mask};
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
        candidates.points[nearest::<F, N>(candidates, values, x, weight, scale)]
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
            // By chunk: the packed digits of every trial, on the grid in the end.
            let mut patterns = [[0i32; MAX_LANES]; GROUP / 4];
            let mut on_grid = [[true; GROUP / 4]; MAX_LANES];
            for k in 0..search.group / N {
                let mut pattern = F::Int::splat(0);
                for i in (N * k..N * k + N).rev() {
                    let digit = (half * (inverse * F::splat(x[i]) - one)).nearest().clamp(0, top);
                    // Eight digits have two bits each, four have three.
                    pattern = if N == 8 { pattern.shl::<2>() } else { pattern.shl::<3>() } | digit;
                }
                // SAFETY: no vector has more lanes.
                unsafe { pattern.store(patterns[k].as_mut_ptr()) };
                let part = N * k..N * k + N;
                let (x, root) = (&x[part.clone()], &root[part]);
                for lane in 0..lanes {
                    let pattern = &mut patterns[k][lane];
                    if let Place::Off(candidates) = grid.place_packed(*pattern as usize) {
                        let at = nearest::<F, N>(candidates, &MAGNITUDES, x, root, scales[lane]);
                        *pattern = i32::from(candidates.patterns[at]);
                        on_grid[lane][k] = false;
                    }
                }
            }
            let (mut sum_qx, mut sum_q2) = (F::splat(0.0), F::splat(0.0));
            for k in 0..search.group / N {
                // SAFETY: no vector has more lanes.
                let mut pattern = unsafe { F::Int::load(patterns[k].as_ptr()) };
                for i in N * k..N * k + N {
                    let digit = pattern & F::Int::splat(if N == 8 { 3 } else { 7 });
                    pattern = if N == 8 { pattern.shr::<2>() } else { pattern.shr::<3>() };
                    let q = (digit + digit + F::Int::splat(1)).to_float();
                    sum_qx = sum_qx + F::splat(weight[i] * x[i]) * q;
                    sum_q2 = sum_q2 + F::splat(weight[i]) * q * q;
                }
            }
            let (sum_qx, sum_q2) = (super::lanes(sum_qx), super::lanes(sum_q2));
            for lane in 0..lanes {
                let (qx, q2) = (sum_qx[lane], sum_q2[lane]);
                if q2 > 0.0 && qx * qx > best * q2 {
                    found.scale = qx / q2;
                    best = found.scale * qx;
                    for (digits, pattern) in found.digits[..search.group].chunks_exact_mut(N).zip(&patterns) {
                        digits.copy_from_slice(&unpack::<N>(pattern[lane] as u16, if N == 8 { 2 } else { 3 }));
                    }
                    found.on_grid = on_grid[lane];
                }
            }
        }
    }

    #[inline(always)]
    fn splits<const G: usize>(x: &[f32], weight: &[f32]) -> Vec<Sorted<G>> {
        ternary::splits::<F, G>(x, weight)
    }
}

/// Where the first nearest candidate is: see [`Steps::nearest`].
#[inline(always)]
fn nearest<F: Float, const N: usize>(
    candidates: Candidates,
    values: &[f32],
    x: &[f32],
    weight: &[f32],
    scale: f32,
) -> usize {
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
    if candidates.points.len() <= F::N {
        return least.trailing_zeros() as usize;
    }
    let positions = int_lanes(best_at);
    let mut at = i32::MAX;
    while least != 0 {
        at = at.min(positions[least.trailing_zeros() as usize]);
        least &= least - 1;
    }
    at as usize
}

macro_rules! kernels {
    ($($name:ident $quantize:path, $block:literal $bytes:literal;)*) => {$(
        pub struct $name<'a, 'b>(pub &'a mut Job<'b>);

        impl Kernel for $name<'_, '_> {
            type Output = ();

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
