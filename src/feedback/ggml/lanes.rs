//! Sixteen `f32` side by side: one column of sixteen rows. The arithmetic is spelled once per instruction set and is the
//! same IEEE operation everywhere (no fused multiply-add, no estimate of a reciprocal), so every set gives the same bits;
//! `[f32; 16]` is the specification and serves where there is no x86-64.

/// Rows that are worked on together.
pub const LANES: usize = 16;

/// One column of a bundle of rows in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Column(pub [f32; LANES]);

impl Column {
    pub const ZERO: Column = Column([0.0; LANES]);

    pub fn splat(x: f32) -> Self {
        Column([x; LANES])
    }
}

/// 1.5 · 2^23: adding it leaves no room for a fraction.
const ROUND: f32 = 12_582_912.0;
/// The largest f16.
const F16_MAX: f32 = 65504.0;
/// The smallest f16 with a full mantissa, 2^-14.
const F16_NORMAL: f32 = 6.103_515_6e-5;

/// A column in registers.
pub trait Lanes: Copy {
    /// Whether a column fits few enough registers that sixteen sums stay in them.
    const WIDE: bool;
    fn splat(x: f32) -> Self;
    fn load(x: &Column) -> Self;
    fn store(self, to: &mut Column);
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    /// `self < o ? self : o`
    fn min(self, o: Self) -> Self;
    /// `self > o ? self : o`
    fn max(self, o: Self) -> Self;
    /// `self < than ? yes : no`
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    #[inline(always)]
    fn neg(self) -> Self {
        Self::zero().sub(self)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.max(self.neg())
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

impl Lanes for Column {
    const WIDE: bool = false;

    fn splat(x: f32) -> Self {
        Column::splat(x)
    }
    fn load(x: &Column) -> Self {
        *x
    }
    fn store(self, to: &mut Column) {
        *to = self;
    }
    fn add(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| self.0[i] + o.0[i]))
    }
    fn sub(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| self.0[i] - o.0[i]))
    }
    fn mul(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| self.0[i] * o.0[i]))
    }
    fn div(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| self.0[i] / o.0[i]))
    }
    fn min(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| if self.0[i] < o.0[i] { self.0[i] } else { o.0[i] }))
    }
    fn max(self, o: Self) -> Self {
        Column(std::array::from_fn(|i| if self.0[i] > o.0[i] { self.0[i] } else { o.0[i] }))
    }
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self {
        Column(std::array::from_fn(|i| if self.0[i] < than.0[i] { yes.0[i] } else { no.0[i] }))
    }
}

/// The instruction sets that the lanes are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Sse2,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// What this machine has, the widest last.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            all.push(Isa::Sse2);
            if is_x86_feature_detected!("avx2") {
                all.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The widest that this machine has.
    pub fn detect() -> Isa {
        Self::available().last().copied().unwrap_or(Isa::Plain)
    }

    /// Runs `kernel` with this set, which must be one of [`Isa::available`].
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Plain => kernel.run::<Column>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Sse2 => kernel.run::<x86::Sse2>(),
            // SAFETY: this set and the next come from `available`, which found them.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { x86::avx512(kernel) },
        }
    }
}

/// Work that is compiled once per instruction set. All that it calls must be `#[inline(always)]`.
pub trait Kernel {
    type Output;
    fn run<V: Lanes>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
pub mod x86 {
    //! The same in registers. A value of these types is only made inside functions whose instruction set was detected.
    use super::{Column, Kernel, Lanes};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    /// `$name` holds `$count` vectors of `$width` floats.
    macro_rules! lanes {
        ($name:ident, $vector:ty, $count:literal, $width:literal, $wide:literal, $splat:ident, $load:ident, $store:ident,
         $add:ident, $sub:ident, $mul:ident, $div:ident, $min:ident, $max:ident, $select:path) => {
            #[derive(Clone, Copy)]
            pub struct $name([$vector; $count]);

            impl $name {
                #[inline(always)]
                fn zip(self, o: Self, f: impl Fn($vector, $vector) -> $vector) -> Self {
                    let mut out = self;
                    for i in 0..$count {
                        out.0[i] = f(self.0[i], o.0[i]);
                    }
                    out
                }
            }

            // SAFETY (all of the block): the callers run under the instruction set, see the module's head; loads and
            // stores stay inside the sixteen floats of a column, which is aligned to 64 bytes.
            impl Lanes for $name {
                const WIDE: bool = $wide;

                #[inline(always)]
                fn splat(x: f32) -> Self {
                    Self([unsafe { $splat(x) }; $count])
                }
                #[inline(always)]
                fn load(x: &Column) -> Self {
                    Self(std::array::from_fn(|i| unsafe { $load(x.0.as_ptr().add($width * i)) }))
                }
                #[inline(always)]
                fn store(self, to: &mut Column) {
                    for (i, v) in self.0.into_iter().enumerate() {
                        unsafe { $store(to.0.as_mut_ptr().add($width * i), v) }
                    }
                }
                #[inline(always)]
                fn add(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $add(a, b) })
                }
                #[inline(always)]
                fn sub(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $sub(a, b) })
                }
                #[inline(always)]
                fn mul(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $mul(a, b) })
                }
                #[inline(always)]
                fn div(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $div(a, b) })
                }
                #[inline(always)]
                fn min(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $min(a, b) })
                }
                #[inline(always)]
                fn max(self, o: Self) -> Self {
                    self.zip(o, |a, b| unsafe { $max(a, b) })
                }
                #[inline(always)]
                fn if_less(self, than: Self, yes: Self, no: Self) -> Self {
                    let mut out = self;
                    for i in 0..$count {
                        out.0[i] = unsafe { $select(self.0[i], than.0[i], yes.0[i], no.0[i]) };
                    }
                    out
                }
            }
        };
    }

    #[inline(always)]
    unsafe fn select_512(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }

    #[inline(always)]
    unsafe fn select_256(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    unsafe fn select_128(a: __m128, b: __m128, yes: __m128, no: __m128) -> __m128 {
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let mask = _mm_cmplt_ps(a, b);
            _mm_or_ps(_mm_and_ps(mask, yes), _mm_andnot_ps(mask, no))
        }
    }

    #[rustfmt::skip]
    lanes!(Avx512, __m512, 1, 16, true, _mm512_set1_ps, _mm512_load_ps, _mm512_store_ps,
        _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_min_ps, _mm512_max_ps, select_512);
    #[rustfmt::skip]
    lanes!(Avx2, __m256, 2, 8, false, _mm256_set1_ps, _mm256_load_ps, _mm256_store_ps,
        _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_min_ps, _mm256_max_ps, select_256);
    #[rustfmt::skip]
    lanes!(Sse2, __m128, 4, 4, false, _mm_set1_ps, _mm_load_ps, _mm_store_ps,
        _mm_add_ps, _mm_sub_ps, _mm_mul_ps, _mm_div_ps, _mm_min_ps, _mm_max_ps, select_128);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_what_f16_holds() {
        for bits in (0..u32::MAX).step_by(99_991) {
            let x = f32::from_bits(bits);
            if !x.is_finite() {
                continue;
            }
            let y = Column::splat(x).round_f16().0[0];
            let exact = half::f16::from_f32(y);
            assert_eq!(exact.to_f32(), y, "{x} gave {y}, which f16 does not hold");
            assert!(exact.is_finite());
            let nearest = half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
            // Ties may go either way.
            assert!((y - x).abs() <= (nearest - x).abs() || x.abs() > 65504.0, "{x}: {y} is farther than {nearest}");
        }
    }
}
