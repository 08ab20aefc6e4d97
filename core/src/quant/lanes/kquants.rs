//! Q2_K to Q6_K by lanes. A lane is a super-block: its sub-blocks are searched one after the other, the same sub-block of
//! all lanes at once, then its scales in the same lanes. Coding and packing go along each super-block's own weights, where
//! no order matters. The specification is [`crate::quant::kquants`].

use super::search::{extreme, q3, qkx, qp, qx};
use super::{Bundle, Halves, Job, Kernel, lanes, sum_squares, transpose};
use crate::quant::kquants::{pack_q3_scales, pack_scale_min, unpack_scale_min};
use crate::quant::search::{EPS, Grid};
use crate::simd::{Float, Int, MAX_LANES, Two};

const QK: usize = 256;

const WEIGHTED: Grid = Grid { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };

/// By sub-block, then by lane.
type PerLane<T, const SUB: usize> = [[T; MAX_LANES]; SUB];

/// The weights of a bundle of super-blocks and what their errors count, one sub-block of `K` at a time.
struct Source<'a, F> {
    bundle: &'a Bundle<QK>,
    x: &'a [F; QK],
    /// The mean square of a super-block times 1 or 2.
    sigma2: F,
}

impl<F: Float> Source<'_, F> {
    #[inline(always)]
    fn sub_block<const K: usize>(&self, j: usize) -> &[F; K] {
        &self.x.as_chunks::<K>().0[j]
    }

    /// `importance · sqrt(σ² + x²)` of sub-block `j`, and the sum of it.
    #[inline(always)]
    fn error_weights<const K: usize>(&self, j: usize) -> ([F; K], F) {
        let mut weights = [F::splat(0.0); K];
        // SAFETY: there is importance for every column where this is called.
        unsafe { transpose(&self.bundle.importance, j * K, &mut weights) };
        let mut total = F::splat(0.0);
        for (w, x) in weights.iter_mut().zip(self.sub_block::<K>(j)) {
            *w = *w * (self.sigma2 + *x * *x).sqrt();
            total = total + *w;
        }
        (weights, total)
    }
}

impl<'a, F: Float> Source<'a, F> {
    /// Transposes a bundle. σ² is `factor` times the mean square where there is importance.
    #[inline(always)]
    fn new(bundle: &'a Bundle<QK>, x: &'a mut [F; QK], weighted: bool, factor: f32) -> Self {
        // SAFETY: every lane points at a super-block.
        unsafe { transpose(&bundle.rows, 0, x) };
        let sigma2 = if weighted && factor != 0.0 {
            F::splat(factor) * sum_squares(x) / F::splat(QK as f32)
        } else {
            F::splat(0.0)
        };
        Source { bundle, x, sigma2 }
    }
}

/// Codes of `N` weights for `x ≈ d · code − m`, `d` not zero.
#[inline(always)]
fn code_asymmetric<F: Float>(x: F, d: F, m: F, top: i32) -> F::Int {
    ((x + m) / d).nearest().clamp(0, top)
}

/// What the codes of one sub-block are made with: the rounded scales, or, where its scale was rounded to zero, the
/// numbers that the search ended with.
#[derive(Clone, Copy, Default)]
struct Coding {
    d: f32,
    m: f32,
    inverse: f32,
    origin: f32,
}

impl Coding {
    /// # Safety
    /// `x` must be readable for `N` floats.
    #[inline(always)]
    unsafe fn asymmetric<F: Float>(&self, x: *const f32, top: i32) -> F::Int {
        // SAFETY: the caller's.
        let x = unsafe { F::load(x) };
        if self.d != 0.0 {
            code_asymmetric(x, F::splat(self.d), F::splat(self.m), top)
        } else {
            (F::splat(self.inverse) * (x - F::splat(self.origin))).nearest().clamp(0, top)
        }
    }

    /// # Safety
    /// `x` must be readable for `N` floats.
    #[inline(always)]
    unsafe fn symmetric<F: Float>(&self, x: *const f32, half: i32) -> F::Int {
        // SAFETY: the caller's.
        let x = unsafe { F::load(x) };
        if self.d == 0.0 && self.inverse == 0.0 {
            // The search found nothing but zeros, and left the codes at zero.
            return F::Int::splat(0);
        }
        let scaled = if self.d != 0.0 { x / F::splat(self.d) } else { F::splat(self.inverse) * x };
        scaled.nearest().clamp(-half, half - 1) + F::Int::splat(half)
    }
}

/// The scales and minimums of all sub-blocks as integers, with their own scales as halves; by lane.
struct ScaleCodes<const SUB: usize> {
    scales: PerLane<i32, SUB>,
    mins: PerLane<i32, SUB>,
    d: Halves,
    dmin: Halves,
}

#[inline(always)]
fn per_lane<F: Float, const SUB: usize>(v: &[F; SUB]) -> PerLane<f32, SUB> {
    let mut all = [[0.0; MAX_LANES]; SUB];
    for (all, v) in all.iter_mut().zip(v) {
        // SAFETY: no vector has more lanes.
        unsafe { v.store(all.as_mut_ptr()) };
    }
    all
}

#[inline(always)]
fn int_per_lane<I: Int, const SUB: usize>(v: &[I; SUB]) -> PerLane<i32, SUB> {
    let mut all = [[0; MAX_LANES]; SUB];
    for (all, v) in all.iter_mut().zip(v) {
        // SAFETY: no vector has more lanes.
        unsafe { v.store(all.as_mut_ptr()) };
    }
    all
}

#[inline(always)]
fn largest<F: Float>(values: &[F]) -> F {
    let mut max = F::splat(0.0);
    for v in values {
        max = v.max(max);
    }
    max
}

/// Q4_K (`BITS` 4) and Q5_K (5).
pub struct Q45K<'a, 'b, const BITS: i32>(pub &'a mut Job<'b>);

impl<const BITS: i32> Kernel for Q45K<'_, '_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        let job = self.0;
        let plain = match BITS {
            4 => Grid { rmin: -1.0, rdelta: 0.1, steps: 20, mad: false },
            _ => Grid { rmin: -0.5, rdelta: 0.1, steps: 15, mad: false },
        };
        let top = (1 << BITS) - 1;
        let bytes = if BITS == 4 { 144 } else { 176 };
        let (weighted, out) = (job.importance.is_some(), job.out.as_mut_ptr());
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            let source = Source::new(&bundle, &mut x, weighted, 2.0);
            let zero = Two::<F>::splat(0.0);
            let (mut scales, mut mins, mut total) = ([zero; 8], [zero; 8], [zero; 8]);
            let (mut inverses, mut origins) = ([zero; 8], [zero; 8]);
            for j in 0..8 {
                let x = source.sub_block::<32>(j);
                let fit = if weighted {
                    let (weights, sum) = source.error_weights::<32>(j);
                    total[j] = sum;
                    qkx(top, x, &weights, WEIGHTED)
                } else {
                    let mean = (sum_squares(x) / Two::<F>::splat(32.0)).sqrt();
                    let mut weights = [zero; 32];
                    for (w, x) in weights.iter_mut().zip(x) {
                        *w = mean + x.abs();
                    }
                    qkx(top, x, &weights, plain)
                };
                (scales[j], mins[j], inverses[j], origins[j]) = (fit.scale, fit.min, fit.inverse, fit.origin);
            }
            let codes = scale_codes_45::<Two<F>, BITS>(&scales, &mins, &total, weighted);
            let (inverses, origins) = (per_lane(&inverses), per_lane(&origins));
            for lane in 0..source.bundle.count {
                // SAFETY: the output has room for every super-block of the job.
                let out = unsafe { bundle.block(out, lane, bytes) };
                codes.d.put(lane, out);
                codes.dmin.put(lane, &mut out[2..]);
                let (sc, sm) = (codes.scales.map(|s| s[lane] as u8), codes.mins.map(|m| m[lane] as u8));
                pack_scale_min(&sc, &sm, &mut out[4..16]);
                let mut coding = [Coding::default(); 8];
                for (j, coding) in coding.iter_mut().enumerate() {
                    let (sc, sm) = unpack_scale_min(&out[4..16], j);
                    *coding = Coding {
                        d: codes.d.value[lane] * f32::from(sc),
                        m: codes.dmin.value[lane] * f32::from(sm),
                        inverse: inverses[j][lane],
                        origin: origins[j][lane],
                    };
                }
                // SAFETY: a lane's 256 weights, and the bytes of its block.
                unsafe { pack_45::<F, BITS>(source.bundle.rows[lane], &coding, out.as_mut_ptr().add(16)) };
            }
        }
    }
}

#[inline(always)]
fn scale_codes_45<F: Float, const BITS: i32>(
    scales: &[F; 8],
    mins: &[F; 8],
    total: &[F; 8],
    weighted: bool,
) -> ScaleCodes<8> {
    let top = F::Int::splat(63);
    let (d, dmin, mut sc, mut sm);
    if weighted {
        (d, sc) = qp(63, scales, total);
        (dmin, sm) = qp(63, mins, total);
        if BITS == 5 {
            for code in sc.iter_mut().chain(&mut sm) {
                *code = code.min(top);
            }
        }
    } else {
        let (max_scale, max_min) = (largest(scales), largest(mins));
        (sc, sm) = (rounded_to(63, scales, max_scale), rounded_to(63, mins, max_min));
        for code in sc.iter_mut().chain(&mut sm) {
            *code = code.min(top);
        }
        (d, dmin) = (max_scale / F::splat(63.0), max_min / F::splat(63.0));
    }
    ScaleCodes { scales: int_per_lane(&sc), mins: int_per_lane(&sm), d: Halves::new(d), dmin: Halves::new(dmin) }
}

/// Codes of `values` in units of `max / top`, as bytes.
#[inline(always)]
fn rounded_to<F: Float, const SUB: usize>(top: i32, values: &[F; SUB], max: F) -> [F::Int; SUB] {
    let inverse = F::select(max.gt(F::splat(0.0)), F::splat(top as f32) / max, F::splat(0.0));
    let mut codes = [F::Int::splat(0); SUB];
    for (code, v) in codes.iter_mut().zip(values) {
        *code = (inverse * *v).nearest() & F::Int::splat(255);
    }
    codes
}

/// # Safety
/// `x` must be readable for 256 floats, `out` writable for 128 bytes and 32 more in Q5_K.
#[inline(always)]
unsafe fn pack_45<F: Float, const BITS: i32>(x: *const f32, coding: &[Coding; 8], out: *mut u8) {
    let top = (1 << BITS) - 1;
    // SAFETY: every offset below is within these bounds.
    unsafe {
        let low = if BITS == 4 { out } else { out.add(32) };
        for i in (0..32).step_by(F::N) {
            let mut high = F::Int::splat(0);
            for k in 0..4 {
                let a = coding[2 * k].asymmetric::<F>(x.add(64 * k + i), top);
                let b = coding[2 * k + 1].asymmetric::<F>(x.add(64 * k + 32 + i), top);
                let nibble = F::Int::splat(15);
                ((a & nibble) | (b & nibble).shl::<4>()).store_bytes(low.add(32 * k + i));
                if BITS == 5 {
                    let pair = a.shr::<4>() | b.shr::<4>().shl::<1>();
                    high = high.shr::<2>() | pair.shl::<6>();
                }
            }
            if BITS == 5 {
                high.store_bytes(out.add(i));
            }
        }
    }
}

/// Q2_K.
pub struct Q2K<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Q2K<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        const PLAIN: Grid = Grid { rmin: -0.5, rdelta: 0.1, steps: 15, mad: true };
        let job = self.0;
        let (weighted, out) = (job.importance.is_some(), job.out.as_mut_ptr());
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            let source = Source::new(&bundle, &mut x, weighted, 1.0);
            let zero = Two::<F>::splat(0.0);
            let (mut scales, mut mins, mut total) = ([zero; 16], [zero; 16], [zero; 16]);
            let (mut inverses, mut origins) = ([zero; 16], [zero; 16]);
            for j in 0..16 {
                let x = source.sub_block::<16>(j);
                let fit = if weighted {
                    let (weights, sum) = source.error_weights::<16>(j);
                    total[j] = sum;
                    qkx(3, x, &weights, WEIGHTED)
                } else {
                    let mut weights = [zero; 16];
                    for (w, x) in weights.iter_mut().zip(x) {
                        *w = x.abs();
                    }
                    qkx(3, x, &weights, PLAIN)
                };
                (scales[j], mins[j], inverses[j], origins[j]) = (fit.scale, fit.min, fit.inverse, fit.origin);
            }
            let codes = if weighted {
                let ((d, sc), (dmin, sm)) = (qp(15, &scales, &total), qp(15, &mins, &total));
                ScaleCodes {
                    scales: int_per_lane(&sc),
                    mins: int_per_lane(&sm),
                    d: Halves::new(d),
                    dmin: Halves::new(dmin),
                }
            } else {
                let (max_scale, max_min) = (largest(&scales), largest(&mins));
                let (sc, sm) = (rounded_to(15, &scales, max_scale), rounded_to(15, &mins, max_min));
                let fifteen = Two::<F>::splat(15.0);
                let (d, dmin) = (Halves::new(max_scale / fifteen), Halves::new(max_min / fifteen));
                ScaleCodes { scales: int_per_lane(&sc), mins: int_per_lane(&sm), d, dmin }
            };
            let (inverses, origins) = (per_lane(&inverses), per_lane(&origins));
            for lane in 0..source.bundle.count {
                // SAFETY: the output has room for every super-block of the job.
                let out = unsafe { bundle.block(out, lane, 84) };
                codes.d.put(lane, &mut out[80..]);
                codes.dmin.put(lane, &mut out[82..]);
                let mut coding = [Coding::default(); 16];
                for (j, coding) in coding.iter_mut().enumerate() {
                    // Codes beyond four bits, of scales below zero, spill over as in the specification.
                    out[j] = codes.scales[j][lane] as u8 | (codes.mins[j][lane] as u8) << 4;
                    *coding = Coding {
                        d: codes.d.value[lane] * f32::from(out[j] & 15),
                        m: codes.dmin.value[lane] * f32::from(out[j] >> 4),
                        inverse: inverses[j][lane],
                        origin: origins[j][lane],
                    };
                }
                let (x, qs) = (source.bundle.rows[lane], out[16..].as_mut_ptr());
                for k in 0..2 {
                    for i in (0..32).step_by(F::N) {
                        // SAFETY: a lane's 256 weights, and 64 bytes of its block.
                        unsafe {
                            let at = 128 * k + i;
                            let a = coding[at / 16].asymmetric::<F>(x.add(at), 3);
                            let b = coding[at / 16 + 2].asymmetric::<F>(x.add(at + 32), 3);
                            let c = coding[at / 16 + 4].asymmetric::<F>(x.add(at + 64), 3);
                            let d = coding[at / 16 + 6].asymmetric::<F>(x.add(at + 96), 3);
                            (a | b.shl::<2>() | c.shl::<4>() | d.shl::<6>()).store_bytes(qs.add(32 * k + i));
                        }
                    }
                }
            }
        }
    }
}

/// Q3_K.
pub struct Q3K<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Q3K<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        let job = self.0;
        let (weighted, out) = (job.importance.is_some(), job.out.as_mut_ptr());
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            let source = Source::new(&bundle, &mut x, weighted, 2.0);
            let zero = Two::<F>::splat(0.0);
            let (mut scales, mut total, mut inverses) = ([zero; 16], [zero; 16], [zero; 16]);
            if weighted {
                for j in 0..16 {
                    let (weights, sum) = source.error_weights::<16>(j);
                    let fit = qx(4, source.sub_block::<16>(j), &weights);
                    (scales[j], inverses[j], total[j]) = (fit.scale, fit.inverse, sum);
                }
            } else {
                // Each step of a sweep waits for the one before; more lanes fill the time.
                for j in (0..16).step_by(2) {
                    let (a, b) = (source.sub_block::<16>(j), source.sub_block::<16>(j + 1));
                    let mut pair = [Two(zero, zero); 16];
                    for i in 0..16 {
                        pair[i] = Two(a[i], b[i]);
                    }
                    Two(scales[j], scales[j + 1]) = q3(4, &pair);
                }
            }
            let (d, codes) = scale_codes_3(&scales, &total, weighted);
            let (d, codes, inverses) = (Halves::new(d), int_per_lane(&codes), per_lane(&inverses));
            for lane in 0..source.bundle.count {
                // SAFETY: the output has room for every super-block of the job.
                let out = unsafe { bundle.block(out, lane, 110) };
                let sc = codes.map(|c| c[lane] as u8);
                pack_q3_scales(&sc, &mut out[96..108]);
                d.put(lane, &mut out[108..]);
                let mut coding = [Coding::default(); 16];
                for (j, coding) in coding.iter_mut().enumerate() {
                    *coding = Coding {
                        d: d.value[lane] * (i32::from(sc[j]) - 32) as f32,
                        inverse: inverses[j][lane],
                        ..Coding::default()
                    };
                }
                let x = source.bundle.rows[lane];
                // SAFETY: a lane's 256 weights.
                let row = unsafe { &*x.cast::<[f32; QK]>() };
                let mut swept = [0u8; QK];
                for (j, codes) in swept.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    if !weighted && coding[j].d == 0.0 {
                        // Codes that sweeps have moved are made again; this is rare.
                        crate::quant::search::q3(4, &row.as_chunks::<16>().0[j], codes);
                    }
                }
                for i in (0..32).step_by(F::N) {
                    // SAFETY: a lane's 256 weights, and the 96 bytes of codes in its block.
                    unsafe {
                        let mut high = F::Int::splat(0);
                        for k in 0..2 {
                            let mut low = F::Int::splat(0);
                            for quarter in 0..4 {
                                let at = 128 * k + 32 * quarter + i;
                                let coding = &coding[at / 16];
                                let code = if coding.d == 0.0 && !weighted {
                                    bytes_as_ints::<F>(&swept[at..])
                                } else {
                                    coding.symmetric::<F>(x.add(at), 4)
                                };
                                low = low.shr::<2>() | (code & F::Int::splat(3)).shl::<6>();
                                high = high.shr::<1>() | code.shr::<2>().shl::<7>();
                            }
                            low.store_bytes(out[32 + 32 * k + i..].as_mut_ptr());
                        }
                        high.store_bytes(out[i..].as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// The first `N` bytes as integers, exact as they are small.
#[inline(always)]
fn bytes_as_ints<F: Float>(bytes: &[u8]) -> F::Int {
    let mut values = [0.0f32; MAX_LANES];
    for (v, b) in values.iter_mut().zip(&bytes[..F::N]) {
        *v = f32::from(*b);
    }
    // SAFETY: the array holds as many numbers as any vector.
    unsafe { F::load(values.as_ptr()).truncate() }
}

/// The super-block scale of Q3_K and the codes of its sub-blocks' scales, 0 to 63.
#[inline(always)]
fn scale_codes_3<F: Float>(scales: &[F; 16], total: &[F; 16], weighted: bool) -> (F, [F::Int; 16]) {
    let zero = F::splat(0.0);
    let half = F::Int::splat(32);
    let mut codes = [F::Int::splat(0); 16];
    if weighted {
        let fit = qx(32, scales, total);
        let dead = extreme(scales).1.lt(F::splat(EPS));
        for (code, s) in codes.iter_mut().zip(scales) {
            let l = (fit.inverse * *s).nearest().clamp(-32, 31) + half;
            *code = F::Int::select(dead, F::Int::splat(0), l);
        }
        return (fit.scale, codes);
    }
    let max = extreme(scales).0;
    let iscale = F::splat(-32.0) / max;
    let none = max.same(zero);
    for (code, s) in codes.iter_mut().zip(scales) {
        let l = (iscale * *s).nearest().clamp(-32, 31) + half;
        *code = F::Int::select(none, F::Int::splat(0), l);
    }
    (F::select(none, zero, F::splat(1.0) / iscale), codes)
}

/// Q6_K.
pub struct Q6K<'a, 'b>(pub &'a mut Job<'b>);

impl Kernel for Q6K<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Float>(self) {
        let job = self.0;
        let (weighted, out) = (job.importance.is_some(), job.out.as_mut_ptr());
        let mut x = [Two::<F>::splat(0.0); QK];
        for bundle in Bundle::<QK>::all(job, Two::<F>::N) {
            let source = Source::new(&bundle, &mut x, weighted, 0.0);
            let zero = Two::<F>::splat(0.0);
            let (mut scales, mut inverses) = ([zero; 16], [zero; 16]);
            for j in 0..16 {
                let x = source.sub_block::<16>(j);
                let mut weights = [zero; 16];
                if weighted {
                    // SAFETY: there is importance for every column.
                    unsafe { transpose(&source.bundle.importance, 16 * j, &mut weights) };
                } else {
                    for (w, x) in weights.iter_mut().zip(x) {
                        *w = *x * *x;
                    }
                }
                let fit = qx(32, x, &weights);
                (scales[j], inverses[j]) = (fit.scale, fit.inverse);
            }
            let (max, _) = extreme(&scales);
            let empty = lanes(Two::<F>::select(max.abs().lt(Two::<F>::splat(EPS)), Two::<F>::splat(1.0), zero));
            let iscale = Two::<F>::splat(-128.0) / max;
            let d = Halves::new(Two::<F>::splat(1.0) / iscale);
            let mut codes = [<Two<F> as Float>::Int::splat(0); 16];
            for (code, s) in codes.iter_mut().zip(&scales) {
                *code = (iscale * *s).nearest().min(Int::splat(127));
            }
            let (codes, inverses) = (int_per_lane(&codes), per_lane(&inverses));
            for lane in 0..source.bundle.count {
                // SAFETY: the output has room for every super-block of the job.
                let out = unsafe { bundle.block(out, lane, 210) };
                if empty[lane] != 0.0 {
                    out.fill(0);
                    continue;
                }
                d.put(lane, &mut out[208..]);
                let mut coding = [Coding::default(); 16];
                for (j, coding) in coding.iter_mut().enumerate() {
                    let sc = codes[j][lane] as i8;
                    out[192 + j] = sc as u8;
                    *coding =
                        Coding { d: d.value[lane] * f32::from(sc), inverse: inverses[j][lane], ..Coding::default() };
                }
                let (x, qs) = (source.bundle.rows[lane], out.as_mut_ptr());
                for k in 0..2 {
                    for i in (0..32).step_by(F::N) {
                        // SAFETY: a lane's 256 weights, and the 192 bytes of codes in its block.
                        unsafe {
                            let at = 128 * k + i;
                            let a = coding[at / 16].symmetric::<F>(x.add(at), 32);
                            let b = coding[at / 16 + 2].symmetric::<F>(x.add(at + 32), 32);
                            let c = coding[at / 16 + 4].symmetric::<F>(x.add(at + 64), 32);
                            let d = coding[at / 16 + 6].symmetric::<F>(x.add(at + 96), 32);
                            let nibble = F::Int::splat(15);
                            ((a & nibble) | (c & nibble).shl::<4>()).store_bytes(qs.add(64 * k + i));
                            ((b & nibble) | (d & nibble).shl::<4>()).store_bytes(qs.add(64 * k + 32 + i));
                            let high = a.shr::<4>() | b.shr::<4>().shl::<2>() | c.shr::<4>().shl::<4>();
                            (high | d.shr::<4>().shl::<6>()).store_bytes(qs.add(128 + 32 * k + i));
                        }
                    }
                }
            }
        }
    }
}
