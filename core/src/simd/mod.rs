//! The vectors that kernels are written in, and the way to run a kernel with the instructions of an [`Isa`]. A kernel is
//! written once against [`Float`]; every operation is exactly the scalar one in every lane, so all levels give the same
//! bits. [`F32x16`] is sixteen lanes in memory. No algorithm here.

mod lanes16;
mod portable;
#[cfg(target_arch = "x86_64")]
mod ranges;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use lanes16::F32x16;
pub(crate) use vector::{Float, Int, MAX_LANES, Mask, Two};

use crate::isa::{Isa, by_isa};

/// Work that is compiled once for each level. All that it calls and that takes time must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]` as well. Plain loops, which the compiler makes vectors of, need no `V`.
    fn run<V: Float>(self) -> Self::Output;
}

// Only the two functions below name the vectors of x86-64 (`x86` is private), so they exist in no other code but what
// runs where their instructions are.

#[cfg(target_arch = "x86_64")]
type Baseline = x86::F4;
#[cfg(not(target_arch = "x86_64"))]
type Baseline = portable::F;

/// Sixteen lanes without any instructions of their own.
pub(crate) type Plain = Two<Two<portable::F>>;

/// Runs `kernel` with the vectors of `isa`.
#[inline]
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(all(test, target_arch = "x86_64"))]
    if isa.is_portable() {
        return kernel.run::<portable::F>();
    }
    by_isa! {
        isa, [K: Kernel] (kernel: K) -> K::Output;
        avx512: kernel.run::<x86::F16>(), avx2: kernel.run::<x86::F8>(), baseline: kernel.run::<Baseline>()
    }
}

/// Runs `kernel` with sixteen lanes, of as many vectors of `isa` as that takes.
#[inline]
pub(crate) fn run_16<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    if isa.is_plain() {
        return kernel.run::<Plain>();
    }
    by_isa! {
        isa, [K: Kernel] (kernel: K) -> K::Output;
        avx512: kernel.run::<x86::F16>(), avx2: kernel.run::<Two<x86::F8>>(), baseline: kernel.run::<Two<Two<Baseline>>>()
    }
}

/// As [`run_16`], with instructions that multiply pairs of 16-bit numbers and add at once, where there are some: the
/// compiler takes them for [`Int::add_products`].
#[inline]
pub(crate) fn run_16_pairs<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if isa.has_vnni() {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn vnni<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<x86::F16>()
        }
        // SAFETY: an `Isa` says so only where the features were detected.
        return unsafe { vnni(kernel) };
    }
    run_16(isa, kernel)
}
