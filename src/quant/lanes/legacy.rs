//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 by lanes. A lane is a block: its extremes, or with importance its search, in lanes;
//! the codes along its own weights. The specification is [`crate::quant::legacy`].

use super::search::{extreme, qkx, qx};
use super::vector::{Float, Int, MAX_LANES, Mask, Two};
use super::{Bundle, Halves, Job, Kernel, lanes, transpose};
use crate::quant::search::Grid;

const QK: usize = 32;

/// The mean square of every row, each added up in order; rows are lanes.
#[inline(always)]
fn mean_squares<F: Float>(job: &Job) -> Vec<f32> {
    let rows = job.src.len() / job.cols;
    let mut all = Vec::with_capacity(rows + F::N);
    for first in (0..rows).step_by(F::N) {
        let mut pointers = [job.src.as_ptr(); MAX_LANES];
        for (lane, pointer) in pointers.iter_mut().enumerate().take(F::N) {
            *pointer = job.src[(first + lane).min(rows - 1) * job.cols..].as_ptr();
        }
        let mut sum = F::splat(0.0);
        for at in (0..job.cols).step_by(4) {
            // SAFETY: rows are whole blocks, so four more columns are there.
            for x in unsafe { F::columns(&pointers, at) } {
                sum = sum + x * x;
            }
        }
        all.extend_from_slice(&lanes(sum / F::splat(job.cols as f32))[..F::N]);
    }
    all
}

/// `importance · sqrt(mean square of the row + x²)`.
#[inline(always)]
fn error_weights<F: Float>(bundle: &Bundle<QK>, mean_squares: &[f32], per_row: usize, x: &[F; QK]) -> [F; QK] {
    let mut sigma2 = [0.0; MAX_LANES];
    for (lane, sigma2) in sigma2.iter_mut().enumerate().take(bundle.count) {
        *sigma2 = mean_squares[(bundle.first + lane) / per_row];
    }
    let mut weights = [F::splat(0.0); QK];
    // SAFETY: no vector has more lanes, and there is importance for every column where this is called.
    let sigma2 = unsafe {
        transpose(&bundle.importance, 0, &mut weights);
        F::load(sigma2.as_ptr())
    };
    for (w, x) in weights.iter_mut().zip(x) {
        *w = *w * (sigma2 + *x * *x).sqrt();
    }
    weights
}

/// `1 / d`, 0 for a zero scale; and one of the two where it overflows: such a block's codes are zero.
#[inline(always)]
fn inverse<F: Float>(d: F) -> F {
    let zero = F::splat(0.0);
    F::select(d.same(zero), zero, F::splat(1.0) / d)
}

/// Low nibbles, and the fifth bits in a word where the layout has them, of the codes `code(i)` of weights `i .. i + N`.
///
/// # Safety
/// `out` must be writable for a block's codes: 16 bytes, or 20 if `five`.
#[inline(always)]
unsafe fn pack<F: Float>(codes: &[F::Int; QK], five: bool, out: *mut u8) {
    // `codes` holds `QK / N` vectors.
    let vectors = QK / F::N;
    // SAFETY: the caller's.
    unsafe {
        let low = if five { out.add(4) } else { out };
        let nibble = F::Int::splat(15);
        if F::N <= 16 {
            for v in 0..vectors / 2 {
                let (a, b) = (codes[v] & nibble, codes[v + vectors / 2] & nibble);
                (a | b.shl::<4>()).store_bytes(low.add(v * F::N));
            }
        }
        if five {
            let bit = F::Int::splat(16);
            let mut high = 0u32;
            for (v, code) in codes.iter().enumerate().take(vectors) {
                high |= (*code & bit).eq(bit).bits() << (v * F::N);
            }
            out.cast::<[u8; 4]>().write(high.to_le_bytes());
        }
    }
}

/// Q4_0 (`HALF` 8) and Q5_0 (16).
pub struct Symmetric<'a, 'b, const HALF: i32, const BYTES: usize>(pub &'a mut Job<'b>);

impl<const HALF: i32, const BYTES: usize> Kernel for Symmetric<'_, '_, HALF, BYTES> {
    #[inline(always)]
    fn run<F: Float>(self) {
        if self.0.importance.is_some() {
            self.weighted::<F>();
        } else {
            self.plain::<F>();
        }
    }
}

impl<const HALF: i32, const BYTES: usize> Symmetric<'_, '_, HALF, BYTES> {
    #[inline(always)]
    fn weighted<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let means = mean_squares::<Two<F>>(job);
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let fit = qx(HALF, &x, &error_weights(&bundle, &means, job.cols / QK, &x));
            let (d, inverses) = (Halves::new(fit.scale), lanes(fit.inverse));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, BYTES);
                    d.put(lane, out);
                    let mut codes = [F::Int::splat(0); QK];
                    if inverses[lane] != 0.0 {
                        let inverse = F::splat(inverses[lane]);
                        for v in 0..QK / F::N {
                            let scaled = inverse * F::load(bundle.rows[lane].add(v * F::N));
                            codes[v] = scaled.nearest().clamp(-HALF, HALF - 1) + F::Int::splat(HALF);
                        }
                    }
                    pack::<F>(&codes, HALF == 16, out.as_mut_ptr().add(2));
                }
            }
        }
    }

    #[inline(always)]
    fn plain<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let mut x = [F::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, F::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let (low, high) = range(&x);
            let (up, down) = (high.abs(), low.abs());
            // The first of two opposite extremes counts; where there are such, look again.
            let max = if up.same(down).any() { extreme(&x).0 } else { F::select(up.gt(down), high, low) };
            let d = max / F::splat(-HALF as f32);
            let (halves, inverses) = (Halves::new(d), lanes(inverse(d)));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, BYTES);
                    halves.put(lane, out);
                    let mut codes = [F::Int::splat(0); QK];
                    if inverses[lane].is_finite() {
                        let (inverse, offset) = (F::splat(inverses[lane]), F::splat(HALF as f32 + 0.5));
                        for v in 0..QK / F::N {
                            let scaled = F::load(bundle.rows[lane].add(v * F::N)) * inverse + offset;
                            codes[v] = scaled.truncate().min(F::Int::splat(2 * HALF - 1));
                        }
                    }
                    pack::<F>(&codes, HALF == 16, out.as_mut_ptr().add(2));
                }
            }
        }
    }
}

/// Smallest and largest weight.
#[inline(always)]
fn range<F: Float>(x: &[F; QK]) -> (F, F) {
    let (mut low, mut high) = (F::splat(f32::MAX), F::splat(-f32::MAX));
    for v in x {
        low = v.min(low);
        high = v.max(high);
    }
    (low, high)
}

/// Q4_1 (`TOP` 15) and Q5_1 (31).
pub struct Asymmetric<'a, 'b, const TOP: i32, const BYTES: usize>(pub &'a mut Job<'b>);

impl<const TOP: i32, const BYTES: usize> Kernel for Asymmetric<'_, '_, TOP, BYTES> {
    #[inline(always)]
    fn run<F: Float>(self) {
        if self.0.importance.is_some() {
            self.weighted::<F>();
        } else {
            self.plain::<F>();
        }
    }
}

impl<const TOP: i32, const BYTES: usize> Asymmetric<'_, '_, TOP, BYTES> {
    #[inline(always)]
    fn weighted<F: Float>(self) {
        const GRID: Grid = Grid { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let means = mean_squares::<Two<F>>(job);
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let fit = qkx(TOP, &x, &error_weights(&bundle, &means, job.cols / QK, &x), GRID);
            let (d, m) = (Halves::new(fit.scale), Halves::new(fit.min.negate()));
            let (inverses, origins) = (lanes(fit.inverse), lanes(fit.origin));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, BYTES);
                    d.put(lane, out);
                    m.put(lane, &mut out[2..]);
                    let (inverse, origin) = (F::splat(inverses[lane]), F::splat(origins[lane]));
                    let mut codes = [F::Int::splat(0); QK];
                    for v in 0..QK / F::N {
                        let x = F::load(bundle.rows[lane].add(v * F::N));
                        codes[v] = (inverse * (x - origin)).nearest().clamp(0, TOP);
                    }
                    pack::<F>(&codes, TOP == 31, out.as_mut_ptr().add(4));
                }
            }
        }
    }

    #[inline(always)]
    fn plain<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let mut x = [F::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, F::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let (low, high) = range(&x);
            let d = (high - low) / F::splat(TOP as f32);
            let (halves, minimums) = (Halves::new(d), Halves::new(low));
            let (inverses, lows) = (lanes(inverse(d)), lanes(low));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, BYTES);
                    halves.put(lane, out);
                    minimums.put(lane, &mut out[2..]);
                    let mut codes = [F::Int::splat(0); QK];
                    if inverses[lane].is_finite() {
                        let (inverse, low) = (F::splat(inverses[lane]), F::splat(lows[lane]));
                        for v in 0..QK / F::N {
                            let x = F::load(bundle.rows[lane].add(v * F::N));
                            codes[v] = ((x - low) * inverse + F::splat(0.5)).truncate().clamp(0, TOP);
                        }
                    }
                    pack::<F>(&codes, TOP == 31, out.as_mut_ptr().add(4));
                }
            }
        }
    }
}

/// Q8_0.
pub struct Q8<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Q8<'_, '_> {
    #[inline(always)]
    fn run<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let mut x = [F::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, F::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let mut amax = F::splat(0.0);
            for v in &x {
                amax = amax.max(v.abs());
            }
            let d = amax / F::splat(127.0);
            let (halves, inverses) = (Halves::new(d), lanes(inverse(d)));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, 34);
                    halves.put(lane, out);
                    if !inverses[lane].is_finite() {
                        out[2..].fill(0);
                        continue;
                    }
                    let inverse = F::splat(inverses[lane]);
                    for i in (0..QK).step_by(F::N) {
                        let scaled = F::load(bundle.rows[lane].add(i)) * inverse;
                        scaled.round_away().store_bytes(out[2 + i..].as_mut_ptr());
                    }
                }
            }
        }
    }
}
