//! Sixteen rows side by side: the vector that all error-feedback arithmetic runs on, and the choice of instruction set.
//! Plain arrays and plain operators, which the compiler vectorises inside the entry points of [`Isa::run`]; nothing is
//! fused, so every instruction set gives the same bits.

use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};

/// Rows of a bundle.
pub const LANES: usize = 16;

/// One number for each row of a bundle.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Lane(pub [f32; LANES]);

impl Lane {
    pub const ZERO: Lane = Lane([0.0; LANES]);

    #[inline(always)]
    pub fn splat(v: f32) -> Lane {
        Lane([v; LANES])
    }

    #[inline(always)]
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Lane {
        for v in &mut self.0 {
            *v = f(*v);
        }
        self
    }

    #[inline(always)]
    pub fn zip(mut self, other: Lane, f: impl Fn(f32, f32) -> f32) -> Lane {
        for i in 0..LANES {
            self.0[i] = f(self.0[i], other.0[i]);
        }
        self
    }

    #[inline(always)]
    pub fn min(self, other: Lane) -> Lane {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    pub fn max(self, other: Lane) -> Lane {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    pub fn abs(self) -> Lane {
        self.map(f32::abs)
    }

    /// To the nearest integer, ties to even, for magnitudes below 2^22.
    #[inline(always)]
    pub fn round(self) -> Lane {
        // Adding 1.5 · 2^23 leaves no room for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        self.map(|v| v + SHIFT - SHIFT)
    }

    /// Where `a < b`, `self`, else `other`.
    #[inline(always)]
    pub fn if_less(mut self, a: Lane, b: Lane, other: Lane) -> Lane {
        for i in 0..LANES {
            self.0[i] = if a.0[i] < b.0[i] { self.0[i] } else { other.0[i] };
        }
        self
    }

    /// `Σ` over the rows, in their order, of the first `rows`.
    pub fn sum(self, rows: usize) -> f64 {
        self.0.iter().take(rows).map(|v| f64::from(*v)).sum()
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl $trait for Lane {
            type Output = Lane;
            #[inline(always)]
            fn $method(mut self, other: Lane) -> Lane {
                for i in 0..LANES {
                    self.0[i] $op other.0[i];
                }
                self
            }
        }
        impl $trait<f32> for Lane {
            type Output = Lane;
            #[inline(always)]
            fn $method(mut self, other: f32) -> Lane {
                for i in 0..LANES {
                    self.0[i] $op other;
                }
                self
            }
        }
    };
}
operator!(Add, add, +=);
operator!(Sub, sub, -=);
operator!(Mul, mul, *=);

impl AddAssign for Lane {
    #[inline(always)]
    fn add_assign(&mut self, other: Lane) {
        *self = *self + other;
    }
}

impl SubAssign for Lane {
    #[inline(always)]
    fn sub_assign(&mut self, other: Lane) {
        *self = *self - other;
    }
}

/// An instruction set to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Work that is compiled once per instruction set. Everything it calls that takes time must be `#[inline(always)]`.
pub trait Kernel {
    type Output;
    fn run(self) -> Self::Output;
}

impl Isa {
    /// Those that this machine runs, widest first.
    pub fn available() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        {
            let mut all = vec![Isa::Baseline];
            if is_x86_feature_detected!("avx2") {
                all.insert(0, Isa::Avx2);
            }
            if crate::kernel::vector::has_avx512() {
                all.insert(0, Isa::Avx512);
            }
            all
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Isa::Baseline]
    }

    /// The widest that this machine runs.
    pub fn widest() -> Isa {
        Self::available().first().copied().unwrap_or(Isa::Baseline)
    }

    /// Runs `kernel` with this instruction set, which must be one of [`Isa::available`].
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512<K: Kernel>(kernel: K) -> K::Output {
                kernel.run()
            }
            #[target_feature(enable = "avx2")]
            fn avx2<K: Kernel>(kernel: K) -> K::Output {
                kernel.run()
            }
            match self {
                // SAFETY: the feature was detected by `available`, from which the value comes.
                Isa::Avx512 => return unsafe { avx512(kernel) },
                // SAFETY: as above.
                Isa::Avx2 => return unsafe { avx2(kernel) },
                Isa::Baseline => {}
            }
        }
        kernel.run()
    }
}

/// Goes into a loop (over columns, or grids) whose body is arithmetic on [`Lane`]s: those are vectors already, and without
/// a word the compiler takes several of them at once instead, lane by lane, with gathers and scatters. It costs nothing.
#[inline(always)]
pub(super) fn one_column() {
    std::hint::black_box(());
}

/// Columns of a tile of [`subtract_product`]: so many sums stay in registers.
const TILE: usize = 8;
/// Columns that are copied together.
const PANEL: usize = 2 * TILE;
/// One row of them.
pub(super) type Panel = [f32; PANEL];

/// `out[c] -= Σ_i x[i] · m[i, c]` for each bundle, where `m` is `[depth, out.len()]` with rows `stride` apart: the product
/// that carries errors to other columns. Several bundles share each copied panel of `m`.
#[inline(always)]
pub(super) fn subtract_product(
    m: &[f32],
    stride: usize,
    depth: usize,
    bundles: &mut [(&[Lane], &mut [Lane])],
    panel: &mut Vec<Panel>,
) {
    let Some(cols) = bundles.iter().map(|b| b.1.len()).min() else { return };
    for from in (0..cols).step_by(PANEL) {
        let width = PANEL.min(cols - from);
        panel.clear();
        panel.extend((0..depth).map(|i| {
            let mut row = [0.0; PANEL];
            row[..width].copy_from_slice(&m[i * stride + from..][..width]);
            row
        }));
        for (x, out) in bundles.iter_mut() {
            let out = &mut out[from..from + width];
            for (half, out) in out.chunks_mut(TILE).enumerate() {
                let mut sums = [Lane::ZERO; TILE];
                for (x, row) in x[..depth].iter().zip(panel.iter()) {
                    one_column();
                    for c in 0..TILE {
                        sums[c] += *x * row[half * TILE + c];
                    }
                }
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out -= sum;
                }
            }
        }
    }
}

/// The type that a scale has in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleType {
    F16,
    Bf16,
    F32,
}

impl ScaleType {
    /// The nearest number of this type (ties to even). What is too large for `F16` becomes its largest number.
    #[inline(always)]
    pub fn round(self, v: Lane) -> Lane {
        match self {
            ScaleType::F16 => v.map(round_f16),
            ScaleType::Bf16 => v.map(|v| keep_bits(v, 16)),
            ScaleType::F32 => v,
        }
    }

    /// The smallest scale that is told from zero.
    pub fn smallest(self) -> f32 {
        match self {
            // f16's smallest subnormal; the inverse of anything smaller is of no use in f32 either.
            ScaleType::F16 => 5.960_464_5e-8,
            ScaleType::Bf16 | ScaleType::F32 => 1e-30,
        }
    }
}

/// Drops the last `bits` bits, to nearest, ties to even.
#[inline(always)]
fn keep_bits(v: f32, bits: u32) -> f32 {
    let b = v.to_bits();
    let half = (1u32 << (bits - 1)) - 1 + (b >> bits & 1);
    f32::from_bits(b.wrapping_add(half) & !((1u32 << bits) - 1))
}

#[inline(always)]
fn round_f16(v: f32) -> f32 {
    let large = keep_bits(v, 13).clamp(-65504.0, 65504.0);
    // Below 2^-14 f16 has a fixed step of 2^-24, which is that of f32 between 1/2 and 1.
    let small = (v.abs() + 0.75) - 0.75;
    if v.abs() < 6.103_515_6e-5 { small.copysign(v) } else { large }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn scales_round_as_the_types_do() {
        let mut v = 1e-9f32;
        while v < 6e4 {
            for v in [v, -v] {
                let got = ScaleType::F16.round(Lane::splat(v)).0[3];
                assert_eq!(got.to_bits(), f16::from_f32(v).to_f32().to_bits(), "{v}");
                let got = ScaleType::Bf16.round(Lane::splat(v)).0[3];
                assert_eq!(got.to_bits(), bf16::from_f32(v).to_f32().to_bits(), "{v}");
            }
            v *= 1.000_37;
        }
        assert_eq!(round_f16(1e9), 65504.0);
        assert_eq!(round_f16(0.0), 0.0);
    }

    #[test]
    fn rounding_is_to_even() {
        let r = |v: f32| Lane::splat(v).round().0[0];
        assert_eq!([r(0.5), r(1.5), r(2.5), r(-0.5), r(-1.5), r(7.49)], [0.0, 2.0, 2.0, 0.0, -2.0, 7.0]);
    }
}
