//! Which instructions the program uses: the one switch for all arithmetic. An [`Isa`] is proof that the machine has what it
//! names, since only detection makes one, so code that takes an `Isa` may run those instructions and stay safe. What the
//! vectors of a level are is in `simd`; no arithmetic here.
//!
//! | level | processor features | arithmetic |
//! |---|---|---|
//! | `scalar` | those of the target | quantizers run their specification, one weight after another; vectors are arrays |
//! | `portable` | those of the target (NEON on aarch64) | vectors are arrays of four; on x86-64 in unit tests only |
//! | `sse2` | those of x86-64 | vectors of four |
//! | `avx2` | AVX2, F16C | vectors of eight; products of quantized weights in 16-bit integers |
//! | `avx512` | the above, FMA, AVX-512 F, BW, DQ, VL (Skylake-X, Zen 4) | vectors of sixteen; matrix products of [`crate::kernel`]'s own |
//! | `avx512bf16` | the above, AVX512-BF16 (Cooper Lake, Zen 4) | products of bfloat16 in pairs |
//!
//! Quantized blocks, error feedback, element-wise functions and softmax have the same bits with every level: no operation
//! is fused or reordered. So have products of quantized weights with the activations of more than a few tokens, from
//! `avx2` on (`kernel::integers`). Other matrix products, attention and moments differ in their last bits: up to `avx2`
//! they are faer's, from `avx512` on those of `kernel::gemm`, and with `avx512bf16` products of bfloat16 are summed in
//! pairs. faer asks the processor itself; with AVX2 and with AVX-512 it adds in the same order, so a lowered level gives
//! what a machine of that level gives from `avx2` on.

use std::sync::OnceLock;

/// A set of instructions that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

/// Each level has all instructions of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Scalar,
    Portable,
    Sse2,
    Avx2,
    Avx512,
    Avx512Bf16,
}

impl Level {
    const ALL: [Level; 6] =
        [Level::Scalar, Level::Portable, Level::Sse2, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

    /// Whether the machine has all that the level's code is compiled for.
    fn is_available(self) -> bool {
        match self {
            Level::Scalar => true,
            Level::Portable => cfg!(any(test, not(target_arch = "x86_64"))),
            #[cfg(target_arch = "x86_64")]
            Level::Sse2 => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                // The compiler takes FMA as a part of AVX-512 F.
                Level::Avx2.is_available()
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => Level::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

static ACTIVE: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// No instructions beyond the target's own: every machine has these.
    pub const SCALAR: Isa = Isa(Level::Scalar);

    /// All that this machine has, the widest last.
    pub fn available() -> Vec<Isa> {
        Level::ALL.into_iter().filter(|level| level.is_available()).map(Isa).collect()
    }

    /// The widest that this machine has.
    pub fn detect() -> Isa {
        Self::available().last().copied().unwrap_or(Self::SCALAR)
    }

    /// The set of that name, if this machine has it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            Level::Portable => "portable",
            Level::Sse2 => "sse2",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
        }
    }

    /// What the process uses: the widest, unless [`make_active`](Self::make_active) came first.
    #[inline]
    pub fn active() -> Isa {
        *ACTIVE.get_or_init(Isa::detect)
    }

    /// Has the whole process use this set; `false` if it uses another already.
    pub fn make_active(self) -> bool {
        *ACTIVE.get_or_init(|| self) == self
    }

    /// Whether vectors are arrays.
    pub fn is_plain(self) -> bool {
        self.0 <= Level::Portable
    }

    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn is_portable(self) -> bool {
        self.0 == Level::Portable
    }

    /// Whether [`by_isa`] runs the code for AVX2, or that for AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn has_avx2(self) -> bool {
        self.0 >= Level::Avx2
    }

    /// The permission to run AVX-512, if this set has it.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn avx512(self) -> Option<Avx512> {
        (self.0 >= Level::Avx512).then_some(Avx512(()))
    }

    /// Whether vectors multiply pairs of 16-bit numbers faster than `f32`.
    #[inline]
    pub fn has_pairs(self) -> bool {
        self.0 >= Level::Avx2
    }

    /// Whether AVX512-VNNI may run besides AVX-512. It changes no result, so that it is no level of its own.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn has_vnni(self) -> bool {
        self.0 >= Level::Avx512 && is_x86_feature_detected!("avx512vnni")
    }

    /// The permission to run AVX512-BF16, if this set has it.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn avx512_bf16(self) -> Option<Avx512Bf16> {
        (self.0 >= Level::Avx512Bf16).then_some(Avx512Bf16(()))
    }
}

/// Proof that the machine has the features of level `avx512`, for code written in its instructions.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

/// The same of level `avx512bf16`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(());

#[cfg(target_arch = "x86_64")]
impl Avx512Bf16 {
    pub fn avx512(self) -> Avx512 {
        Avx512(())
    }
}

/// Evaluates one of three expressions over the arguments, compiled for the features of its level. What the expressions call must be inlined (`#[inline(always)]`) to take part.
#[doc(hidden)]
#[macro_export]
macro_rules! by_isa {
    (
        $isa:expr, [$($generics:tt)*] ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;
        avx512: $avx512:expr, avx2: $avx2:expr, baseline: $baseline:expr
    ) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$($generics)*>($($arg: $ty),*) $(-> $ret)? {
                $avx512
            }
            #[target_feature(enable = "avx2,f16c")]
            fn avx2<$($generics)*>($($arg: $ty),*) $(-> $ret)? {
                $avx2
            }
            let isa: $crate::isa::Isa = $isa;
            if isa.avx512().is_some() {
                // SAFETY: an `Isa` of this level is made only where the features were detected.
                return unsafe { avx512($($arg),*) };
            }
            if isa.has_avx2() {
                // SAFETY: as above.
                return unsafe { avx2($($arg),*) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _: $crate::isa::Isa = $isa;
        $baseline
    }};
}
pub use by_isa;

/// Defines functions of plain loops that are compiled for every level (function multiversioning); a call runs that of
/// [`Isa::active`].
#[doc(hidden)]
#[macro_export]
macro_rules! multiversion {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            $crate::by_isa! {
                $crate::isa::Isa::active(), [] ($($arg: $ty),*) $(-> $ret)?;
                avx512: body($($arg),*), avx2: body($($arg),*), baseline: body($($arg),*)
            }
        }
    )*};
}
pub use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_nested_and_named() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::SCALAR);
        assert!(available.is_sorted());
        for isa in &available {
            assert_eq!(Isa::named(isa.name()), Some(*isa));
        }
        assert_eq!(Isa::named("avx99"), None);
        assert_eq!(Isa::detect(), available[available.len() - 1]);
    }

    #[test]
    fn the_process_has_one_set() {
        let active = Isa::active();
        assert!(active.make_active());
        assert!(active == Isa::SCALAR || !Isa::SCALAR.make_active());
        assert_eq!(Isa::active(), active);
    }
}
