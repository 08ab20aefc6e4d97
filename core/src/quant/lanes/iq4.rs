//! The four-bit types with a table of values: IQ4_NL and IQ4_XS, whose searches run in lanes, and the four-bit floats
//! MXFP4 and NVFP4, which need none. The specifications are in [`crate::quant::iquants`].

use super::search::extreme;
use super::{Bundle, Halves, Job, Kernel, lanes, sum_squares, transpose};
use crate::quant::iquants::fp4;
use crate::quant::iquants::iq4::VALUES;
use crate::quant::search::EPS;
use crate::simd::{Float, Int, MAX_LANES, Mask, Two};

const GROUP: usize = 32;
const SUPER: usize = 256;
const TRIES: i32 = 7;

/// Half-way between neighbours, where the upper one begins. Differences to these are exact, so comparing with them equals
/// comparing distances.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut k = 0;
    while k < 15 {
        bounds[k] = 0.5 * (VALUES[k] + VALUES[k + 1]);
        k += 1;
    }
    bounds
};

#[inline(always)]
fn fit<F: Float>(x: &[F; GROUP], weight: &[F; GROUP], inverse: F) -> (F, F) {
    let (mut sum_qx, mut sum_q2) = (F::splat(0.0), F::splat(0.0));
    for i in 0..GROUP {
        let q = (inverse * x[i]).value16(&BOUNDS, &VALUES);
        let wq = weight[i] * q;
        sum_qx = sum_qx + wq * x[i];
        sum_q2 = sum_q2 + wq * q;
    }
    (sum_qx, sum_q2)
}

/// The scale of 32 weights per lane that loses least in the weighted square; 0 where all are (nearly) zero.
#[inline(always)]
fn best_scale<F: Float>(x: &[F; GROUP], weight: &[F; GROUP]) -> F {
    let (max, amax) = extreme(x);
    let zero = F::splat(0.0);
    let dead = amax.lt(F::splat(EPS));
    let max = F::select(dead, F::splat(1.0), max);
    let (sum_qx, sum_q2) = fit(x, weight, F::splat(1.0) / (max.negate() / F::splat(VALUES[0])));
    let mut scale = F::select(sum_q2.gt(zero), sum_qx / sum_q2, zero);
    let mut best = scale * sum_qx;
    for trial in -TRIES..=TRIES {
        let (sum_qx, sum_q2) = fit(x, weight, F::splat(trial as f32 + VALUES[0]) / max);
        let better = sum_q2.gt(zero).and((sum_qx * sum_qx).gt(best * sum_q2));
        if better.any() {
            scale = F::select(better, sum_qx / sum_q2, scale);
            best = F::select(better, scale * sum_qx, best);
        }
    }
    F::select(dead, zero, scale)
}

/// Group `j` of every lane's importance, as error weights; the squares themselves without importance.
#[inline(always)]
fn error_weights<F: Float, const BLOCK: usize>(
    bundle: &Bundle<BLOCK>,
    weighted: bool,
    j: usize,
    x: &[F; GROUP],
    mean_square: F,
) -> [F; GROUP] {
    let mut weights = [F::splat(0.0); GROUP];
    if weighted {
        // SAFETY: there is importance for every column.
        unsafe { transpose(&bundle.importance, j * GROUP, &mut weights) };
        for (w, x) in weights.iter_mut().zip(x) {
            *w = *w * (mean_square + *x * *x).sqrt();
        }
    } else {
        for (w, x) in weights.iter_mut().zip(x) {
            *w = *x * *x;
        }
    }
    weights
}

/// Sixteen bytes: weight i in the low half of byte i, weight i + 16 in the high half.
///
/// # Safety
/// `x` must be readable for 32 floats, `out` writable for 16 bytes.
#[inline(always)]
unsafe fn put_group<F: Float>(x: *const f32, scale: f32, out: *mut u8) {
    let inverse = F::splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
    for i in (0..GROUP / 2).step_by(F::N) {
        // SAFETY: within the bounds above, as sixteen is a multiple of `N`.
        unsafe {
            let low = (inverse * F::load(x.add(i))).index16(&BOUNDS);
            let high = (inverse * F::load(x.add(i + GROUP / 2))).index16(&BOUNDS);
            (low | high.shl::<4>()).store_bytes(out.add(i));
        }
    }
}

pub struct Nl<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Nl<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let mut x = [Two::<F>::splat(0.0); GROUP];
        for bundle in Bundle::<GROUP>::all(job, Two::<F>::N) {
            // SAFETY: every lane points at a block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let mean_square = sum_squares(&x) * Two::<F>::splat(2.0 / GROUP as f32);
            let weights = error_weights(&bundle, job.importance.is_some(), 0, &x, mean_square);
            let scale = best_scale(&x, &weights);
            let (halves, scales) = (Halves::new(scale), lanes(scale));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 32 weights.
                unsafe {
                    let out = bundle.block(out, lane, 18);
                    halves.put(lane, out);
                    put_group::<F>(bundle.rows[lane], scales[lane], out[2..].as_mut_ptr());
                }
            }
        }
    }
}

pub struct Xs<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Xs<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        let out = self.0.out.as_mut_ptr();
        let job = &*self.0;
        let zero = Two::<F>::splat(0.0);
        let mut x = [zero; SUPER];
        for bundle in Bundle::<SUPER>::all(job, Two::<F>::N) {
            // SAFETY: every lane points at a super-block.
            unsafe { transpose(&bundle.rows, 0, &mut x) };
            let mean_square = sum_squares(&x) * Two::<F>::splat(2.0 / SUPER as f32);
            let mut scales = [zero; SUPER / GROUP];
            for (j, (x, scale)) in x.as_chunks::<GROUP>().0.iter().zip(&mut scales).enumerate() {
                let weights = error_weights(&bundle, job.importance.is_some(), j, x, mean_square);
                *scale = best_scale(x, &weights);
            }
            let d = extreme(&scales).0.negate() / Two::<F>::splat(32.0);
            let inverse = Two::<F>::select(d.same(zero), zero, Two::<F>::splat(1.0) / d);
            let mut codes = [[0.0; MAX_LANES]; SUPER / GROUP];
            for (codes, scale) in codes.iter_mut().zip(&scales) {
                *codes = lanes((inverse * *scale).nearest().clamp(-32, 31).to_float());
            }
            let (halves, d) = (Halves::new(d), lanes(d));
            for lane in 0..bundle.count {
                // SAFETY: the output has room for every block of the job; a lane has 256 weights.
                let out = unsafe { bundle.block(out, lane, 136) };
                halves.put(lane, out);
                out[4..8].fill(0);
                let mut upper = 0u16;
                for (j, codes) in codes.iter().enumerate() {
                    let l = codes[lane];
                    // SAFETY: as above; sixteen bytes per group.
                    unsafe {
                        let x = bundle.rows[lane].add(GROUP * j);
                        put_group::<F>(x, d[lane] * l, out[8 + 16 * j..].as_mut_ptr());
                    }
                    let code = (l as i32 + 32) as u8;
                    out[4 + j / 2] |= (code & 15) << (4 * (j % 2));
                    upper |= u16::from(code >> 4) << (2 * j);
                }
                out[2..4].copy_from_slice(&upper.to_le_bytes());
            }
        }
    }
}

/// The code whose value times `scale` is nearest, of equals the first, of `N` weights.
#[inline(always)]
fn nearest_code<F: Float>(x: F, scale: f32) -> F::Int {
    let mut code = F::Int::splat(0);
    let mut best = (F::splat(fp4::VALUES[0] * scale) - x).abs();
    for (k, value) in fp4::VALUES.iter().enumerate().skip(1) {
        let error = (F::splat(value * scale) - x).abs();
        let less = error.lt(best);
        best = F::select(less, error, best);
        code = F::Int::select(less, F::Int::splat(k as i32), code);
    }
    code
}

/// As [`put_group`], of `len` weights.
#[inline(always)]
fn put_codes<F: Float>(x: &[f32], scale: f32, out: &mut [u8]) {
    let (low, high) = x.split_at(x.len() / 2);
    let mut codes = [0u8; MAX_LANES];
    for ((out, low), high) in out.chunks_mut(F::N).zip(low.chunks(F::N)).zip(high.chunks(F::N)) {
        let (mut a, mut b) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        a[..low.len()].copy_from_slice(low);
        b[..high.len()].copy_from_slice(high);
        // SAFETY: the arrays hold as much as any vector.
        unsafe {
            let low = nearest_code(F::load(a.as_ptr()), scale);
            let high = nearest_code(F::load(b.as_ptr()), scale);
            (low | high.shl::<4>()).store_bytes(codes.as_mut_ptr());
        }
        out.copy_from_slice(&codes[..out.len()]);
    }
}

pub struct Mx<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Mx<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        for (x, out) in self.0.src.chunks_exact(32).zip(self.0.out.chunks_exact_mut(17)) {
            out[0] = fp4::shared_exponent(x);
            put_codes::<F>(x, fp4::half_e8m0(out[0]), &mut out[1..]);
        }
    }
}

pub struct Nv<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Nv<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        for (x, out) in self.0.src.chunks_exact(64).zip(self.0.out.chunks_exact_mut(36)) {
            let (scales, codes) = out.split_at_mut(4);
            for ((x, scale), codes) in x.chunks_exact(16).zip(scales).zip(codes.chunks_exact_mut(8)) {
                *scale = fp4::to_ue4m3(x.iter().fold(0.0, |max: f32, x| max.max(x.abs())) / 6.0);
                put_codes::<F>(x, fp4::half_ue4m3(*scale), codes);
            }
        }
    }
}
