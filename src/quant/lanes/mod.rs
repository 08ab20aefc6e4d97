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
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod ranges;
mod search;
mod ternary;
#[cfg(test)]
mod tests;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::GgmlType;
use std::sync::OnceLock;
use vector::{Float, Int, MAX_LANES, Mask};

/// Which instructions the quantizers use. The bytes do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The specification itself, one weight after another.
    Scalar,
    /// Lanes in plain arrays, on any processor; where there is something better, in tests alone: nobody need compile it.
    Portable,
    Sse2,
    /// With F16C, which every processor with AVX2 has.
    Avx2,
    /// F, BW, DQ, VL, as all servers since Skylake-X and Zen 4 have.
    Avx512,
}

impl Isa {
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Portable, Isa::Sse2, Isa::Avx2, Isa::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Portable => "portable",
            Isa::Sse2 => "sse2",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Portable => cfg!(any(test, not(target_arch = "x86_64"))),
            #[cfg(target_arch = "x86_64")]
            Isa::Sse2 => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

static ACTIVE: OnceLock<Isa> = OnceLock::new();

/// What the quantizers use from now on: the best there is, unless [`force`] came first.
pub fn active() -> Isa {
    *ACTIVE.get_or_init(|| {
        let best = Isa::ALL.into_iter().rev().find(|isa| isa.is_available());
        best.unwrap_or(Isa::Scalar)
    })
}

/// Chooses for the whole process; says whether it could: the machine must have it, and nothing else may be in use yet.
pub fn force(isa: Isa) -> bool {
    isa.is_available() && *ACTIVE.get_or_init(|| isa) == isa
}

/// Whole rows to quantize; lengths were checked.
pub struct Job<'a> {
    pub src: &'a [f32],
    pub cols: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [u8],
}

/// Quantizes by lanes where `ty` has a lane form and `isa` is one; says whether it did.
pub fn quantize(isa: Isa, ty: GgmlType, job: &mut Job) -> bool {
    use GgmlType::*;
    if isa == Isa::Scalar {
        return false;
    }
    match ty {
        Q4_0 => dispatch(isa, legacy::Symmetric::<8, 18>(job)),
        Q5_0 => dispatch(isa, legacy::Symmetric::<16, 22>(job)),
        Q4_1 => dispatch(isa, legacy::Asymmetric::<15, 20>(job)),
        Q5_1 => dispatch(isa, legacy::Asymmetric::<31, 24>(job)),
        Q8_0 => dispatch(isa, legacy::Q8(job)),
        Q2_K => dispatch(isa, kquants::Q2K(job)),
        Q3_K => dispatch(isa, kquants::Q3K(job)),
        Q4_K => dispatch(isa, kquants::Q45K::<4>(job)),
        Q5_K => dispatch(isa, kquants::Q45K::<5>(job)),
        Q6_K => dispatch(isa, kquants::Q6K(job)),
        IQ1_S => dispatch(isa, grid::Iq1S(job)),
        IQ1_M => dispatch(isa, grid::Iq1M(job)),
        IQ2_XXS => dispatch(isa, grid::Iq2Xxs(job)),
        IQ2_XS => dispatch(isa, grid::Iq2Xs(job)),
        IQ2_S => dispatch(isa, grid::Iq2S(job)),
        IQ3_XXS => dispatch(isa, grid::Iq3Xxs(job)),
        IQ3_S => dispatch(isa, grid::Iq3S(job)),
        IQ4_NL => dispatch(isa, iq4::Nl(job)),
        IQ4_XS => dispatch(isa, iq4::Xs(job)),
        MXFP4 => dispatch(isa, iq4::Mx(job)),
        NVFP4 => dispatch(isa, iq4::Nv(job)),
        BF16 => dispatch(isa, plain::Bf16(job)),
        TQ1_0 => dispatch(isa, plain::Tq1(job)),
        TQ2_0 => dispatch(isa, plain::Tq2(job)),
        Q2_0 => dispatch(isa, plain::Q2(job)),
        // What is not worth lanes, or holds no weights.
        F32 | F16 | F64 | I8 | I16 | I32 | I64 | Q1_0 => return false,
    }
    true
}

/// Whether every number is finite.
pub fn all_finite(isa: Isa, src: &[f32]) -> bool {
    let mut finite = true;
    dispatch(isa, Finite { src, finite: &mut finite });
    finite
}

struct Finite<'a> {
    src: &'a [f32],
    finite: &'a mut bool,
}

impl Kernel for Finite<'_> {
    #[inline(always)]
    fn run<F: Float>(self) {
        // The largest exponent bits that occur; infinities and NaNs have them all.
        let exponent = F::Int::splat(0x7f80_0000);
        let mut most = [F::Int::splat(0); 4];
        let whole = self.src.len() / (4 * F::N) * (4 * F::N);
        for at in (0..whole).step_by(4 * F::N) {
            for (k, most) in most.iter_mut().enumerate() {
                // SAFETY: four vectors from `at` are within the slice.
                let bits = unsafe { F::load(self.src.as_ptr().add(at + k * F::N)) }.to_bits();
                *most = most.max(bits & exponent);
            }
        }
        let all = most[0].max(most[1]).max(most[2].max(most[3]));
        *self.finite = !all.eq(exponent).any() && self.src[whole..].iter().all(|v| v.is_finite());
    }
}

/// Work that is written once for every width of vector.
trait Kernel {
    /// Must be inlined into its caller, whose instruction set it takes.
    fn run<F: Float>(self);
}

fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        #[cfg(all(test, target_arch = "x86_64"))]
        Isa::Portable => kernel.run::<portable::F>(),
        // SAFETY: whoever names an instruction set has asked `is_available`; `active` and `force` do.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        _ => kernel.run::<x86::F4>(),
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run::<portable::F>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2<K: Kernel>(kernel: K) {
    kernel.run::<x86::F8>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<K: Kernel>(kernel: K) {
    kernel.run::<x86::F16>();
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
