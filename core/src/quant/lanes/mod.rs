//! The quantizers at the speed of the machine: ggml's searches with one sub-block per SIMD lane. The scalar quantizers
//! beside this module are the specification; what comes from here equals theirs byte for byte, which the tests assert for
//! every type and every instruction set. Lanes never exchange numbers, so each adds in the scalar order.

// A lane is a row of several arrays at once; one index for all of them says so.
#![allow(clippy::needless_range_loop)]

mod grid;
mod iq4;
mod kquants;
mod legacy;
mod plain;
mod search;
mod ternary;
#[cfg(test)]
mod tests;

use super::{GgmlType, QuantError, QuantizeRow};
use crate::isa::Isa;
use crate::simd::{self, Float, Int, Kernel, MAX_LANES, Mask};

/// Whole rows to quantize to blocks of one type. Kernels rely on its lengths, which [`Job::new`] alone can set.
pub struct Job<'a> {
    ty: GgmlType,
    src: &'a [f32],
    cols: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl<'a> Job<'a> {
    /// Rows of `cols` weights, `importance` (`[cols]`), and room for exactly their blocks.
    ///
    /// Errors: lengths that do not fit, rows that are not whole blocks.
    pub fn new(
        ty: GgmlType,
        src: &'a [f32],
        cols: usize,
        importance: Option<&'a [f32]>,
        out: &'a mut [u8],
    ) -> Result<Self, QuantError> {
        let row_bytes = match ty.row_bytes(cols) {
            Some(n) if cols > 0 => n,
            _ => return Err(QuantError::NotWholeBlocks { ty, cols, block: ty.block() }),
        };
        if !src.len().is_multiple_of(cols) || src.len() / cols * row_bytes != out.len() {
            let what = format!("{} weights in rows of {cols} do not fill {} bytes of {ty}", src.len(), out.len());
            return Err(QuantError::Length { what });
        }
        if importance.is_some_and(|w| w.len() != cols) {
            return Err(QuantError::Length { what: format!("the importance does not have {cols} columns") });
        }
        Ok(Job { ty, src, cols, importance, out })
    }

    /// Quantizes row by row with the specification.
    pub fn by_rows(&mut self, quantize: QuantizeRow) {
        let row_bytes = self.out.len() / (self.src.len() / self.cols).max(1);
        for (row, out) in self.src.chunks_exact(self.cols).zip(self.out.chunks_exact_mut(row_bytes.max(1))) {
            quantize(row, self.importance, out);
        }
    }
}

/// Quantizes by lanes where the job's type has a lane form and `isa` is one; says whether it did.
pub fn quantize(isa: Isa, job: &mut Job) -> bool {
    use GgmlType::*;
    if isa == Isa::SCALAR {
        return false;
    }
    match job.ty {
        Q4_0 => simd::run(isa, legacy::Symmetric::<8, 18>(job)),
        Q5_0 => simd::run(isa, legacy::Symmetric::<16, 22>(job)),
        Q4_1 => simd::run(isa, legacy::Asymmetric::<15, 20>(job)),
        Q5_1 => simd::run(isa, legacy::Asymmetric::<31, 24>(job)),
        Q8_0 => simd::run(isa, legacy::Q8(job)),
        Q2_K => simd::run(isa, kquants::Q2K(job)),
        Q3_K => simd::run(isa, kquants::Q3K(job)),
        Q4_K => simd::run(isa, kquants::Q45K::<4>(job)),
        Q5_K => simd::run(isa, kquants::Q45K::<5>(job)),
        Q6_K => simd::run(isa, kquants::Q6K(job)),
        IQ1_S => simd::run(isa, grid::Iq1S(job)),
        IQ1_M => simd::run(isa, grid::Iq1M(job)),
        IQ2_XXS => simd::run(isa, grid::Iq2Xxs(job)),
        IQ2_XS => simd::run(isa, grid::Iq2Xs(job)),
        IQ2_S => simd::run(isa, grid::Iq2S(job)),
        IQ3_XXS => simd::run(isa, grid::Iq3Xxs(job)),
        IQ3_S => simd::run(isa, grid::Iq3S(job)),
        IQ4_NL => simd::run(isa, iq4::Nl(job)),
        IQ4_XS => simd::run(isa, iq4::Xs(job)),
        MXFP4 => simd::run(isa, iq4::Mx(job)),
        NVFP4 => simd::run(isa, iq4::Nv(job)),
        BF16 => simd::run(isa, plain::Bf16(job)),
        TQ1_0 => simd::run(isa, plain::Tq1(job)),
        TQ2_0 => simd::run(isa, plain::Tq2(job)),
        Q2_0 => simd::run(isa, plain::Q2(job)),
        // What is not worth lanes, or holds no weights.
        F32 | F16 | F64 | I8 | I16 | I32 | I64 | Q1_0 => return false,
    }
    true
}

/// Whether every number is finite.
pub fn all_finite(isa: Isa, src: &[f32]) -> bool {
    simd::run(isa, Finite(src))
}

struct Finite<'a>(&'a [f32]);

impl Kernel for Finite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<F: Float>(self) -> bool {
        let src = self.0;
        // The largest exponent bits that occur; infinities and NaNs have them all.
        let exponent = F::Int::splat(0x7f80_0000);
        let mut most = [F::Int::splat(0); 4];
        let whole = src.len() / (4 * F::N) * (4 * F::N);
        for at in (0..whole).step_by(4 * F::N) {
            for (k, most) in most.iter_mut().enumerate() {
                // SAFETY: four vectors from `at` are within the slice.
                let bits = unsafe { F::load(src.as_ptr().add(at + k * F::N)) }.to_bits();
                *most = most.max(bits & exponent);
            }
        }
        let all = most[0].max(most[1]).max(most[2].max(most[3]));
        !all.eq(exponent).any() && src[whole..].iter().all(|v| v.is_finite())
    }
}

/// `count` consecutive blocks of `BLOCK` weights, one per lane. Lanes beyond the last block repeat it.
struct Bundle<const BLOCK: usize> {
    /// Index of the first block, counted through all rows.
    first: usize,
    count: usize,
    rows: [*const f32; MAX_LANES],
    importance: [*const f32; MAX_LANES],
}

impl<const BLOCK: usize> Bundle<BLOCK> {
    /// The bundles of `lanes` blocks that a job consists of. Rows are whole blocks.
    #[inline(always)]
    fn all(job: &Job, lanes: usize) -> impl Iterator<Item = Bundle<BLOCK>> + use<BLOCK> {
        let (blocks, per_row) = (job.src.len() / BLOCK, job.cols / BLOCK);
        let src = job.src.as_ptr();
        // Never read where there is no importance.
        let importance = job.importance.map_or(src, |w| w.as_ptr());
        (0..blocks).step_by(lanes).map(move |first| {
            let mut bundle = Bundle {
                first,
                count: lanes.min(blocks - first),
                rows: [src; MAX_LANES],
                importance: [importance; MAX_LANES],
            };
            for lane in 0..lanes {
                let block = (first + lane).min(blocks - 1);
                // SAFETY: the block is one of the job's, and its columns are in the importance if there is one.
                unsafe {
                    bundle.rows[lane] = src.add(block * BLOCK);
                    bundle.importance[lane] = importance.wrapping_add(block % per_row * BLOCK);
                }
            }
            bundle
        })
    }

    /// Where a lane's block goes.
    ///
    /// # Safety
    /// `out` must have room for all blocks of the job, of `bytes` each, and nothing else may write to them meanwhile.
    #[inline(always)]
    unsafe fn block<'a>(&self, out: *mut u8, lane: usize, bytes: usize) -> &'a mut [u8] {
        // SAFETY: the caller's; the bundle's blocks are the job's.
        unsafe { std::slice::from_raw_parts_mut(out.add((self.first + lane) * bytes), bytes) }
    }
}

/// Columns `at .. at + x.len()` of the rows, one vector each.
///
/// # Safety
/// Every row must be readable there, and the length a multiple of four.
#[inline(always)]
unsafe fn transpose<F: Float>(rows: &[*const f32; MAX_LANES], at: usize, x: &mut [F]) {
    for (k, x) in x.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        // SAFETY: the caller's.
        *x = unsafe { F::columns(rows, at + 4 * k) };
    }
}

/// The lanes of a vector as an array.
#[inline(always)]
fn lanes<F: Float>(v: F) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: no vector has more lanes.
    unsafe { v.store(lanes.as_mut_ptr()) };
    lanes
}

/// `Σ x²`, in order.
#[inline(always)]
fn sum_squares<F: Float>(x: &[F]) -> F {
    let mut sum = F::splat(0.0);
    for v in x {
        sum = sum + *v * *v;
    }
    sum
}

/// Numbers rounded to half precision: their bits and what these are worth.
struct Halves {
    bits: [i32; MAX_LANES],
    value: [f32; MAX_LANES],
}

impl Halves {
    #[inline(always)]
    fn new<F: Float>(v: F) -> Self {
        let half = v.to_half();
        Halves { bits: int_lanes(half), value: lanes(F::from_half(half)) }
    }

    #[inline(always)]
    fn put(&self, lane: usize, out: &mut [u8]) {
        out[..2].copy_from_slice(&(self.bits[lane] as u16).to_le_bytes());
    }
}

#[inline(always)]
fn int_lanes<I: Int>(v: I) -> [i32; MAX_LANES] {
    let mut lanes = [0; MAX_LANES];
    // SAFETY: no vector has more lanes.
    unsafe { v.store(lanes.as_mut_ptr()) };
    lanes
}
