//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 by lanes. A lane is a block: its extremes, or with importance its search, in lanes;
//! the codes along its own weights. The specification is [`crate::quant::legacy`]; what is rare and would cost every block
//! a step (signs of zero, opposite extremes of one size, scales that overflow) is left to it.

use super::search::{qkx, qx};
use super::{Bundle, Halves, Job, Kernel, int_lanes, lanes, transpose};
use crate::quant::legacy;
use crate::quant::search::Grid;
use crate::simd::{Float, Int, MAX_LANES, Mask, Two};

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

/// What a bundle of blocks is rounded with, by lane.
#[derive(Clone, Copy)]
struct Scales {
    /// The stored scale, and above it the stored minimum.
    heads: [i32; MAX_LANES],
    inverses: [f32; MAX_LANES],
    lows: [f32; MAX_LANES],
    /// The lanes whose blocks are left to the specification, as bits.
    others: u32,
}

/// Rounding without a search: blocks follow one another, and a bundle is as many as there are lanes.
trait Plain {
    const BYTES: usize;

    fn scales<F: Float>(low: F, high: F) -> Scales;

    /// Quantizes a bundle.
    ///
    /// # Safety
    /// `N` blocks must be readable, and there must be room for them.
    unsafe fn bundle<F: Float>(src: *const f32, scales: &Scales, out: *mut u8);

    /// The specification, for any number of blocks.
    fn one_by_one(src: &[f32], out: &mut [u8]);

    #[inline(always)]
    fn all<F: Float>(job: &mut Job) {
        let mut bundles = job.src.chunks_exact(F::N * QK).peekable();
        let mut outs = job.out.chunks_exact_mut(F::N * Self::BYTES);
        let mut scales =
            [Scales { heads: [0; MAX_LANES], inverses: [0.0; MAX_LANES], lows: [0.0; MAX_LANES], others: 0 }; 2];
        if let Some(first) = bundles.peek() {
            // SAFETY: whole bundles.
            let (low, high) = unsafe { F::ranges(first.as_ptr()) };
            scales[0] = Self::scales(low, high);
        }
        let mut slot = 0;
        while let (Some(src), Some(out)) = (bundles.next(), outs.next()) {
            // One bundle ahead, so that the processor need not wait for divisions.
            if let Some(next) = bundles.peek() {
                // SAFETY: whole bundles.
                let (low, high) = unsafe { F::ranges(next.as_ptr()) };
                scales[1 - slot] = Self::scales(low, high);
            }
            // SAFETY: whole bundles.
            unsafe { Self::bundle::<F>(src.as_ptr(), &scales[slot], out.as_mut_ptr()) };
            let mut others = scales[slot].others;
            while others != 0 {
                let lane = others.trailing_zeros() as usize;
                others &= others - 1;
                Self::one_by_one(&src[lane * QK..][..QK], &mut out[lane * Self::BYTES..][..Self::BYTES]);
            }
            slot = 1 - slot;
        }
        let rest = job.src.len() / (F::N * QK) * (F::N * QK);
        Self::one_by_one(&job.src[rest..], &mut job.out[rest / QK * Self::BYTES..]);
    }
}

/// `1 / d` where neither is zero, infinite or NaN, and the other lanes.
#[inline(always)]
fn inverse<F: Float>(d: F) -> (F, F::Mask) {
    let inverse = F::splat(1.0) / d;
    let size = inverse.abs();
    let sound = F::splat(0.0).lt(size).and(size.lt(F::splat(f32::INFINITY)));
    (inverse, sound.not())
}

/// Packs four blocks of codes that fit: low nibbles, and before them the fifth bits in a word where the layout has them.
///
/// # Safety
/// Each of `outs` must be writable for a block's codes: 16 bytes, or 20 if `five`.
#[inline(always)]
unsafe fn pack<F: Float>(codes: &[[F::Int; QK]; 4], five: bool, outs: [*mut u8; 4]) {
    // A block's codes are `QK / N` vectors.
    let vectors = QK / F::N;
    let nibble = F::Int::splat(15);
    // SAFETY: the caller's.
    unsafe {
        for v in 0..vectors / 2 {
            let mut bytes = [nibble; 4];
            for (byte, codes) in bytes.iter_mut().zip(codes) {
                let low = if five { codes[v] & nibble } else { codes[v] };
                let high = if five { codes[v + vectors / 2] & nibble } else { codes[v + vectors / 2] };
                *byte = low | high.shl::<4>();
            }
            F::Int::store_bytes4(bytes, outs.map(|out| out.add(if five { 4 } else { 0 } + v * F::N)));
        }
        if five {
            let bit = F::Int::splat(16);
            for (codes, out) in codes.iter().zip(outs) {
                let mut high = 0u32;
                for (v, code) in codes.iter().enumerate().take(vectors) {
                    high |= (*code & bit).eq(bit).bits() << (v * F::N);
                }
                out.cast::<[u8; 4]>().write(high.to_le_bytes());
            }
        }
    }
}

/// [`pack`] for one block.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn pack_one<F: Float>(codes: &[F::Int; QK], five: bool, out: *mut u8) {
    let mut rest = [[0u8; 20]; 3];
    let [a, b, c] = &mut rest;
    // SAFETY: the caller's; the others have room.
    unsafe { pack::<F>(&[*codes; 4], five, [out, a.as_mut_ptr(), b.as_mut_ptr(), c.as_mut_ptr()]) }
}

/// Q4_0 (`HALF` 8) and Q5_0 (16).
pub struct Symmetric<'a, 'b, const HALF: i32, const BYTES: usize>(pub &'a mut Job<'b>);

impl<const HALF: i32, const BYTES: usize> Kernel for Symmetric<'_, '_, HALF, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        if self.0.importance.is_some() {
            self.weighted::<F>();
        } else {
            <Self as Plain>::all::<F>(self.0);
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
                    pack_one::<F>(&codes, HALF == 16, out.as_mut_ptr().add(2));
                }
            }
        }
    }
}

impl<const HALF: i32, const BYTES: usize> Plain for Symmetric<'_, '_, HALF, BYTES> {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn scales<F: Float>(low: F, high: F) -> Scales {
        let (up, down) = (high.abs(), low.abs());
        let d = F::select(up.gt(down), high, low) / F::splat(-HALF as f32);
        let (inverse, unsound) = inverse(d);
        // The first of two opposite extremes counts.
        let others = up.same(down).or(unsound).bits();
        Scales { heads: int_lanes(d.to_half()), inverses: lanes(inverse), lows: [0.0; MAX_LANES], others }
    }

    #[inline(always)]
    unsafe fn bundle<F: Float>(src: *const f32, scales: &Scales, out: *mut u8) {
        let offset = F::splat(HALF as f32 + 0.5);
        for first in (0..F::N).step_by(4) {
            // SAFETY: the caller's.
            unsafe {
                let outs = [0, 1, 2, 3].map(|k| out.add((first + k) * BYTES));
                let mut codes = [[F::Int::splat(0); QK]; 4];
                for k in 0..4 {
                    outs[k].cast::<[u8; 2]>().write((scales.heads[first + k] as u16).to_le_bytes());
                    let inverse = F::splat(scales.inverses[first + k]);
                    for v in 0..QK / F::N {
                        let scaled = F::load(src.add((first + k) * QK + v * F::N)) * inverse + offset;
                        codes[k][v] = scaled.truncate().min(F::Int::splat(2 * HALF - 1));
                    }
                }
                pack::<F>(&codes, HALF == 16, outs.map(|out| out.add(2)));
            }
        }
    }

    #[inline(always)]
    fn one_by_one(src: &[f32], out: &mut [u8]) {
        legacy::symmetric::<HALF, BYTES>(src, None, out);
    }
}

/// Q4_1 (`TOP` 15) and Q5_1 (31).
pub struct Asymmetric<'a, 'b, const TOP: i32, const BYTES: usize>(pub &'a mut Job<'b>);

impl<const TOP: i32, const BYTES: usize> Kernel for Asymmetric<'_, '_, TOP, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        if self.0.importance.is_some() {
            self.weighted::<F>();
        } else {
            <Self as Plain>::all::<F>(self.0);
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
                    pack_one::<F>(&codes, TOP == 31, out.as_mut_ptr().add(4));
                }
            }
        }
    }
}

impl<const TOP: i32, const BYTES: usize> Plain for Asymmetric<'_, '_, TOP, BYTES> {
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn scales<F: Float>(low: F, high: F) -> Scales {
        let d = (high - low) / F::splat(TOP as f32);
        let (inverse, unsound) = inverse(d);
        // A zero that is the least or the greatest weight: which sign it has depends on the order.
        let zero = F::splat(0.0);
        let others = unsound.or(low.same(zero)).or(high.same(zero)).bits();
        let heads = int_lanes(d.to_half() | low.to_half().shl::<16>());
        Scales { heads, inverses: lanes(inverse), lows: lanes(low), others }
    }

    #[inline(always)]
    unsafe fn bundle<F: Float>(src: *const f32, scales: &Scales, out: *mut u8) {
        let half = F::splat(0.5);
        for first in (0..F::N).step_by(4) {
            // SAFETY: the caller's.
            unsafe {
                let outs = [0, 1, 2, 3].map(|k| out.add((first + k) * BYTES));
                let mut codes = [[F::Int::splat(0); QK]; 4];
                for k in 0..4 {
                    outs[k].cast::<[u8; 4]>().write(scales.heads[first + k].to_le_bytes());
                    let (inverse, low) = (F::splat(scales.inverses[first + k]), F::splat(scales.lows[first + k]));
                    for v in 0..QK / F::N {
                        let scaled = (F::load(src.add((first + k) * QK + v * F::N)) - low) * inverse + half;
                        codes[k][v] = scaled.truncate().min(F::Int::splat(TOP));
                    }
                }
                pack::<F>(&codes, TOP == 31, outs.map(|out| out.add(4)));
            }
        }
    }

    #[inline(always)]
    fn one_by_one(src: &[f32], out: &mut [u8]) {
        legacy::asymmetric::<TOP, BYTES>(src, None, out);
    }
}

/// Q8_0.
pub struct Q8<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Q8<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        <Self as Plain>::all::<F>(self.0);
    }
}

impl Plain for Q8<'_, '_> {
    const BYTES: usize = 34;

    #[inline(always)]
    fn scales<F: Float>(low: F, high: F) -> Scales {
        let d = high.abs().max(low.abs()) / F::splat(127.0);
        let (inverse, unsound) = inverse(d);
        let heads = int_lanes(d.to_half());
        Scales { heads, inverses: lanes(inverse), lows: [0.0; MAX_LANES], others: unsound.bits() }
    }

    #[inline(always)]
    unsafe fn bundle<F: Float>(src: *const f32, scales: &Scales, out: *mut u8) {
        for first in (0..F::N).step_by(2) {
            // SAFETY: the caller's.
            unsafe {
                let outs = [0, 1].map(|k| out.add((first + k) * Self::BYTES));
                for k in 0..2 {
                    outs[k].cast::<[u8; 2]>().write((scales.heads[first + k] as u16).to_le_bytes());
                }
                for i in (0..QK).step_by(2 * F::N) {
                    let (mut codes, mut to) = ([F::Int::splat(0); 4], [out; 4]);
                    for j in 0..4 {
                        let (k, i) = (j / 2, i + j % 2 * F::N);
                        let scaled = F::load(src.add((first + k) * QK + i)) * F::splat(scales.inverses[first + k]);
                        codes[j] = scaled.round_away() & F::Int::splat(255);
                        to[j] = outs[k].add(2 + i);
                    }
                    F::Int::store_bytes4(codes, to);
                }
            }
        }
    }

    #[inline(always)]
    fn one_by_one(src: &[f32], out: &mut [u8]) {
        legacy::quantize_q8_0(src, None, out);
    }
}
