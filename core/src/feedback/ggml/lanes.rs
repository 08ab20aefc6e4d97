//! What the searches do with sixteen rows side by side: a column of them, or a number for each. On top of
//! [`Float`](crate::simd::Float), whose operations are the same IEEE ones at every level, so every instruction set gives
//! the same bits.

use crate::simd::{F32x16, Float};

/// Rows that are worked on together.
pub const LANES: usize = F32x16::LANES;

/// 1.5 · 2^23: adding it leaves no room for a fraction.
const ROUND: f32 = 12_582_912.0;
/// The largest f16.
const F16_MAX: f32 = 65504.0;
/// The smallest f16 with a full mantissa, 2^-14.
const F16_NORMAL: f32 = 6.103_515_6e-5;

/// Sixteen numbers in registers.
pub trait Lanes: Float {
    /// Whether they fit so few registers that sixteen sums stay in them.
    const WIDE: bool = Self::VECTORS == 1;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// 0 − `self`: 0 for both zeros.
    #[inline(always)]
    fn neg(self) -> Self {
        Self::zero().sub(self)
    }

    /// `self < than ? yes : no`
    #[inline(always)]
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self {
        Self::select(self.lt(than), yes, no)
    }

    #[inline(always)]
    fn clamp(self, low: f32, high: f32) -> Self {
        self.max(Self::splat(low)).min(Self::splat(high))
    }

    /// To the nearest integer, half to even, for |x| below 2^22.
    #[inline(always)]
    fn round(self) -> Self {
        self.add(Self::splat(ROUND)).sub(Self::splat(ROUND))
    }

    /// `1 / self`, and 0 for 0.
    #[inline(always)]
    fn inverse(self) -> Self {
        Self::zero().if_less(self.abs(), Self::splat(1.0).div(self), Self::zero())
    }

    /// `self / by`, and 0 where `by` is not above 0.
    #[inline(always)]
    fn ratio(self, by: Self) -> Self {
        Self::zero().if_less(by, self.div(by), Self::zero())
    }

    /// A nearest number that f16 holds; what is too large becomes the largest finite one. Veltkamp's splitting leaves
    /// eleven bits of mantissa; below 2^-14 the spacing is 2^-24, which is that of numbers near 0.75.
    #[inline(always)]
    fn round_f16(self) -> Self {
        let x = self.clamp(-F16_MAX, F16_MAX);
        let scaled = x.mul(Self::splat(8193.0));
        let normal = scaled.sub(scaled.sub(x));
        let subnormal = x.add(Self::splat(0.75)).sub(Self::splat(0.75));
        x.abs().if_less(Self::splat(F16_NORMAL), subnormal, normal)
    }
}

impl<V: Float> Lanes for V {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Plain;

    #[test]
    fn numbers_round_to_what_f16_holds() {
        for bits in (0..u32::MAX).step_by(99_991) {
            let x = f32::from_bits(bits);
            if !x.is_finite() {
                continue;
            }
            let mut y = F32x16::ZERO;
            Plain::splat(x).round_f16().write(&mut y);
            let y = y.0[0];
            let exact = half::f16::from_f32(y);
            assert_eq!(exact.to_f32(), y, "{x} gave {y}, which f16 does not hold");
            assert!(exact.is_finite());
            let nearest = half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
            // Ties may go either way.
            assert!((y - x).abs() <= (nearest - x).abs() || x.abs() > 65504.0, "{x}: {y} is farther than {nearest}");
        }
    }
}
