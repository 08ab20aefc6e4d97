//! Sixteen `f32` in memory with plain operators, which the compiler vectorises inside kernels; nothing is fused, so every
//! level gives the same bits. In registers the same sixteen are a [`Float`](super::Float).

use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};

const N: usize = 16;

/// Sixteen numbers side by side, for instance one for each row of a bundle.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct F32x16(pub [f32; N]);

impl F32x16 {
    pub const LANES: usize = N;
    pub const ZERO: F32x16 = F32x16([0.0; N]);

    #[inline(always)]
    pub fn splat(v: f32) -> F32x16 {
        F32x16([v; N])
    }

    /// A slice in whole vectors and what is left.
    #[inline(always)]
    pub fn chunks(x: &[f32]) -> (impl ExactSizeIterator<Item = F32x16>, &[f32]) {
        let (chunks, rest) = x.as_chunks::<N>();
        (chunks.iter().map(|chunk| F32x16(*chunk)), rest)
    }

    #[inline(always)]
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> F32x16 {
        for v in &mut self.0 {
            *v = f(*v);
        }
        self
    }

    #[inline(always)]
    pub fn zip(mut self, other: F32x16, f: impl Fn(f32, f32) -> f32) -> F32x16 {
        for i in 0..N {
            self.0[i] = f(self.0[i], other.0[i]);
        }
        self
    }

    #[inline(always)]
    pub fn min(self, other: F32x16) -> F32x16 {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    pub fn max(self, other: F32x16) -> F32x16 {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    pub fn abs(self) -> F32x16 {
        self.map(f32::abs)
    }

    /// To the nearest integer, ties to even, for magnitudes below 2^22.
    #[inline(always)]
    pub fn round(self) -> F32x16 {
        // Adding 1.5 · 2^23 leaves no room for a fraction.
        const SHIFT: f32 = 12_582_912.0;
        self.map(|v| v + SHIFT - SHIFT)
    }

    /// Where `a < b`, `self`, else `other`.
    #[inline(always)]
    pub fn if_less(mut self, a: F32x16, b: F32x16, other: F32x16) -> F32x16 {
        for i in 0..N {
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
        impl $trait for F32x16 {
            type Output = F32x16;
            #[inline(always)]
            fn $method(mut self, other: F32x16) -> F32x16 {
                for i in 0..N {
                    self.0[i] $op other.0[i];
                }
                self
            }
        }
        impl $trait<f32> for F32x16 {
            type Output = F32x16;
            #[inline(always)]
            fn $method(mut self, other: f32) -> F32x16 {
                for i in 0..N {
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

impl AddAssign for F32x16 {
    #[inline(always)]
    fn add_assign(&mut self, other: F32x16) {
        *self = *self + other;
    }
}

impl SubAssign for F32x16 {
    #[inline(always)]
    fn sub_assign(&mut self, other: F32x16) {
        *self = *self - other;
    }
}
