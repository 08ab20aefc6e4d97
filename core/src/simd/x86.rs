//! The vectors of x86-64: four lanes with SSE2, which every such processor has, eight with AVX2 and F16C, sixteen with
//! AVX-512. Only the entry points of `mod.rs` can name them, and use them where an `Isa` proves that the processor has the
//! instructions; that is why calling these is sound, and it is the reason meant by every SAFETY line here that gives no
//! other.

use super::ranges;
use super::vector::{Float, Int, Mask};
use half::f16;
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

macro_rules! operators {
    ($type:ident $($operator:ident $function:ident $instruction:ident)*) => {$(
        impl $operator for $type {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                // SAFETY: see the top of the file.
                $type(unsafe { $instruction(self.0, other.0) })
            }
        }
    )*};
}

/// Methods of one instruction each; `$body` may use the arguments' fields.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: $type),*) -> $out {
            // SAFETY: see the top of the file.
            #[allow(unused_unsafe)]
            unsafe { $body }
        }
    )*};
}

// ---- SSE2

#[derive(Clone, Copy)]
pub struct F4(__m128);
#[derive(Clone, Copy)]
pub struct I4(__m128i);
#[derive(Clone, Copy)]
pub struct M4(__m128);

operators! { F4 Add add _mm_add_ps Sub sub _mm_sub_ps Mul mul _mm_mul_ps Div div _mm_div_ps }
operators! { I4 Add add _mm_add_epi32 Sub sub _mm_sub_epi32 BitAnd bitand _mm_and_si128 BitOr bitor _mm_or_si128 }

/// `mask ? yes : no`, bit by bit.
#[inline(always)]
fn blend4(mask: __m128, yes: __m128, no: __m128) -> __m128 {
    // SAFETY: see the top of the file.
    unsafe { _mm_or_ps(_mm_and_ps(mask, yes), _mm_andnot_ps(mask, no)) }
}

#[inline(always)]
fn blend4i(mask: __m128i, yes: __m128i, no: __m128i) -> __m128i {
    // SAFETY: see the top of the file.
    unsafe { _mm_castps_si128(blend4(_mm_castsi128_ps(mask), _mm_castsi128_ps(yes), _mm_castsi128_ps(no))) }
}

/// The transpose of a 4 × 4 matrix.
#[inline(always)]
fn transpose4(r: [__m128; 4]) -> [__m128; 4] {
    // SAFETY: see the top of the file.
    unsafe {
        let (a, b) = (_mm_unpacklo_ps(r[0], r[1]), _mm_unpacklo_ps(r[2], r[3]));
        let (c, d) = (_mm_unpackhi_ps(r[0], r[1]), _mm_unpackhi_ps(r[2], r[3]));
        [_mm_movelh_ps(a, b), _mm_movehl_ps(b, a), _mm_movelh_ps(c, d), _mm_movehl_ps(d, c)]
    }
}

impl Float for F4 {
    const N: usize = 4;
    type Int = I4;
    type Mask = M4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        F4(unsafe { _mm_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn ranges(from: *const f32) -> (Self, Self) {
        // SAFETY: the caller's.
        let (low, high) = unsafe { ranges::of_4(from) };
        (F4(low), F4(high))
    }
    #[inline(always)]
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4] {
        // SAFETY: the caller's.
        let r = unsafe {
            [
                _mm_loadu_ps(rows[0].add(at)),
                _mm_loadu_ps(rows[1].add(at)),
                _mm_loadu_ps(rows[2].add(at)),
                _mm_loadu_ps(rows[3].add(at)),
            ]
        };
        transpose4(r).map(F4)
    }
    #[inline(always)]
    fn to_half(self) -> I4 {
        let mut lanes = [0f32; 4];
        // SAFETY: the arrays hold four numbers.
        unsafe {
            self.store(lanes.as_mut_ptr());
            let bits = lanes.map(|v| i32::from(f16::from_f32(v).to_bits()));
            I4(_mm_loadu_si128(bits.as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn from_half(bits: I4) -> Self {
        let mut lanes = [0i32; 4];
        // SAFETY: the arrays hold four numbers.
        unsafe {
            bits.store(lanes.as_mut_ptr());
            Self::load(lanes.map(|b| f16::from_bits(b as u16).to_f32()).as_ptr())
        }
    }
    methods! {
        fn splat(value: f32) -> Self = F4(_mm_set1_ps(value));
        fn min(self: Self, other: Self) -> Self = F4(_mm_min_ps(self.0, other.0));
        fn max(self: Self, other: Self) -> Self = F4(_mm_max_ps(self.0, other.0));
        fn abs(self: Self) -> Self = F4(_mm_andnot_ps(_mm_set1_ps(-0.0), self.0));
        fn negate(self: Self) -> Self = F4(_mm_xor_ps(self.0, _mm_set1_ps(-0.0)));
        fn sqrt(self: Self) -> Self = F4(_mm_sqrt_ps(self.0));
        fn lt(self: Self, other: Self) -> M4 = M4(_mm_cmplt_ps(self.0, other.0));
        fn le(self: Self, other: Self) -> M4 = M4(_mm_cmple_ps(self.0, other.0));
        fn same(self: Self, other: Self) -> M4 = M4(_mm_cmpeq_ps(self.0, other.0));
        fn select(mask: M4, yes: Self, no: Self) -> Self = F4(blend4(mask.0, yes.0, no.0));
        fn to_bits(self: Self) -> I4 = I4(_mm_castps_si128(self.0));
        fn from_bits(bits: I4) -> Self = F4(_mm_castsi128_ps(bits.0));
        fn truncate(self: Self) -> I4 = I4(_mm_cvttps_epi32(self.0));
    }
}

impl Int for I4 {
    type Float = F4;
    type Mask = M4;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's.
        I4(unsafe { _mm_loadu_si128(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's.
        I4(unsafe { _mm_unpacklo_epi16(_mm_loadl_epi64(from.cast()), _mm_setzero_si128()) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the caller's for the store.
        unsafe {
            let low = _mm_and_si128(self.0, _mm_set1_epi32(255));
            let words = _mm_packs_epi32(low, low);
            to.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
        }
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I4(unsafe { _mm_slli_epi32::<BITS>(self.0) })
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I4(unsafe { _mm_srli_epi32::<BITS>(self.0) })
    }
    methods! {
        fn add_products(self: Self, a: Self, b: Self) -> Self =
            I4(_mm_add_epi32(self.0, _mm_madd_epi16(a.0, b.0)));
        fn splat(value: i32) -> Self = I4(_mm_set1_epi32(value));
        fn min(self: Self, other: Self) -> Self = I4(blend4i(_mm_cmplt_epi32(self.0, other.0), self.0, other.0));
        fn max(self: Self, other: Self) -> Self = I4(blend4i(_mm_cmpgt_epi32(self.0, other.0), self.0, other.0));
        fn eq(self: Self, other: Self) -> M4 = M4(_mm_castsi128_ps(_mm_cmpeq_epi32(self.0, other.0)));
        fn lt(self: Self, other: Self) -> M4 = M4(_mm_castsi128_ps(_mm_cmplt_epi32(self.0, other.0)));
        fn to_float(self: Self) -> F4 = F4(_mm_cvtepi32_ps(self.0));
        fn select(mask: M4, yes: Self, no: Self) -> Self = I4(blend4i(_mm_castps_si128(mask.0), yes.0, no.0));
    }
}

impl Mask for M4 {
    const N: usize = 4;

    methods! {
        fn and(self: Self, other: Self) -> Self = M4(_mm_and_ps(self.0, other.0));
        fn or(self: Self, other: Self) -> Self = M4(_mm_or_ps(self.0, other.0));
        fn not(self: Self) -> Self = M4(_mm_xor_ps(self.0, _mm_castsi128_ps(_mm_set1_epi32(-1))));
        fn bits(self: Self) -> u32 = _mm_movemask_ps(self.0) as u32;
        fn any(self: Self) -> bool = _mm_movemask_ps(self.0) != 0;
        fn all(self: Self) -> bool = _mm_movemask_ps(self.0) == 15;
    }
}

// ---- AVX2

#[derive(Clone, Copy)]
pub struct F8(__m256);
#[derive(Clone, Copy)]
pub struct I8(__m256i);
#[derive(Clone, Copy)]
pub struct M8(__m256);

operators! { F8 Add add _mm256_add_ps Sub sub _mm256_sub_ps Mul mul _mm256_mul_ps Div div _mm256_div_ps }
operators! {
    I8 Add add _mm256_add_epi32 Sub sub _mm256_sub_epi32 BitAnd bitand _mm256_and_si256 BitOr bitor _mm256_or_si256
}

/// Four floats of row `i`, then of row `i + 4`.
///
/// # Safety
/// Both must be readable at `at`.
#[inline(always)]
unsafe fn two_rows(rows: &[*const f32], i: usize, at: usize) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(rows[i].add(at)));
        _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(rows[i + 4].add(at)))
    }
}

impl Float for F8 {
    const N: usize = 8;
    type Int = I8;
    type Mask = M8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        F8(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn ranges(from: *const f32) -> (Self, Self) {
        // SAFETY: the caller's.
        let (low, high) = unsafe { ranges::of_8(from) };
        (F8(low), F8(high))
    }
    #[inline(always)]
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4] {
        // SAFETY: the caller's for the loads. Each half holds four rows, and is transposed by itself.
        unsafe {
            let (r0, r1, r2, r3) =
                (two_rows(rows, 0, at), two_rows(rows, 1, at), two_rows(rows, 2, at), two_rows(rows, 3, at));
            let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpacklo_ps(r2, r3));
            let (c, d) = (_mm256_unpackhi_ps(r0, r1), _mm256_unpackhi_ps(r2, r3));
            [
                F8(_mm256_shuffle_ps::<0x44>(a, b)),
                F8(_mm256_shuffle_ps::<0xee>(a, b)),
                F8(_mm256_shuffle_ps::<0x44>(c, d)),
                F8(_mm256_shuffle_ps::<0xee>(c, d)),
            ]
        }
    }
    #[inline(always)]
    fn lookup4(index: I8, table: &[f32; 4]) -> Self {
        // SAFETY: see the top of the file.
        F8(unsafe { _mm256_permutevar_ps(_mm256_broadcast_ps(&_mm_loadu_ps(table.as_ptr())), index.0) })
    }
    #[inline(always)]
    fn lookup8(index: I8, table: &[f32; 8]) -> Self {
        // SAFETY: see the top of the file.
        F8(unsafe { _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index.0) })
    }
    methods! {
        fn splat(value: f32) -> Self = F8(_mm256_set1_ps(value));
        fn min(self: Self, other: Self) -> Self = F8(_mm256_min_ps(self.0, other.0));
        fn max(self: Self, other: Self) -> Self = F8(_mm256_max_ps(self.0, other.0));
        fn abs(self: Self) -> Self = F8(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0));
        fn negate(self: Self) -> Self = F8(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)));
        fn sqrt(self: Self) -> Self = F8(_mm256_sqrt_ps(self.0));
        fn lt(self: Self, other: Self) -> M8 = M8(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0));
        fn le(self: Self, other: Self) -> M8 = M8(_mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0));
        fn same(self: Self, other: Self) -> M8 = M8(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0));
        fn select(mask: M8, yes: Self, no: Self) -> Self = F8(_mm256_blendv_ps(no.0, yes.0, mask.0));
        fn to_bits(self: Self) -> I8 = I8(_mm256_castps_si256(self.0));
        fn from_bits(bits: I8) -> Self = F8(_mm256_castsi256_ps(bits.0));
        fn truncate(self: Self) -> I8 = I8(_mm256_cvttps_epi32(self.0));
        fn to_half(self: Self) -> I8 =
            I8(_mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)));
        fn from_half(bits: I8) -> Self = {
            let words = _mm_packus_epi32(_mm256_castsi256_si128(bits.0), _mm256_extracti128_si256::<1>(bits.0));
            F8(_mm256_cvtph_ps(words))
        };
    }
}

impl Int for I8 {
    type Float = F8;
    type Mask = M8;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's.
        I8(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's.
        I8(unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the caller's for the store.
        unsafe {
            let low = _mm256_and_si256(self.0, _mm256_set1_epi32(255));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
        }
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I8(unsafe { _mm256_slli_epi32::<BITS>(self.0) })
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I8(unsafe { _mm256_srli_epi32::<BITS>(self.0) })
    }
    methods! {
        fn add_products(self: Self, a: Self, b: Self) -> Self =
            I8(_mm256_add_epi32(self.0, _mm256_madd_epi16(a.0, b.0)));
        fn splat(value: i32) -> Self = I8(_mm256_set1_epi32(value));
        fn min(self: Self, other: Self) -> Self = I8(_mm256_min_epi32(self.0, other.0));
        fn max(self: Self, other: Self) -> Self = I8(_mm256_max_epi32(self.0, other.0));
        fn eq(self: Self, other: Self) -> M8 = M8(_mm256_castsi256_ps(_mm256_cmpeq_epi32(self.0, other.0)));
        fn lt(self: Self, other: Self) -> M8 = M8(_mm256_castsi256_ps(_mm256_cmpgt_epi32(other.0, self.0)));
        fn to_float(self: Self) -> F8 = F8(_mm256_cvtepi32_ps(self.0));
        fn select(mask: M8, yes: Self, no: Self) -> Self = {
            let blended =
                _mm256_blendv_ps(_mm256_castsi256_ps(no.0), _mm256_castsi256_ps(yes.0), mask.0);
            I8(_mm256_castps_si256(blended))
        };
    }
}

impl Mask for M8 {
    const N: usize = 8;

    methods! {
        fn and(self: Self, other: Self) -> Self = M8(_mm256_and_ps(self.0, other.0));
        fn or(self: Self, other: Self) -> Self = M8(_mm256_or_ps(self.0, other.0));
        fn not(self: Self) -> Self = M8(_mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1))));
        fn bits(self: Self) -> u32 = _mm256_movemask_ps(self.0) as u32;
        fn any(self: Self) -> bool = _mm256_movemask_ps(self.0) != 0;
        fn all(self: Self) -> bool = _mm256_movemask_ps(self.0) == 255;
    }
}

// ---- AVX-512

#[derive(Clone, Copy)]
pub struct F16(__m512);
#[derive(Clone, Copy)]
pub struct I16(__m512i);
#[derive(Clone, Copy)]
pub struct M16(__mmask16);

operators! { F16 Add add _mm512_add_ps Sub sub _mm512_sub_ps Mul mul _mm512_mul_ps Div div _mm512_div_ps }
operators! {
    I16 Add add _mm512_add_epi32 Sub sub _mm512_sub_epi32 BitAnd bitand _mm512_and_si512 BitOr bitor _mm512_or_si512
}

/// Four floats each of rows `i`, `i + 4`, `i + 8`, `i + 12`.
///
/// # Safety
/// All must be readable at `at`.
#[inline(always)]
unsafe fn four_rows(rows: &[*const f32], i: usize, at: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let v = _mm512_castps128_ps512(_mm_loadu_ps(rows[i].add(at)));
        let v = _mm512_insertf32x4::<1>(v, _mm_loadu_ps(rows[i + 4].add(at)));
        let v = _mm512_insertf32x4::<2>(v, _mm_loadu_ps(rows[i + 8].add(at)));
        _mm512_insertf32x4::<3>(v, _mm_loadu_ps(rows[i + 12].add(at)))
    }
}

/// Adds `STEP` to the index in the lanes where `x` is not below the bound `STEP - 1` places further.
#[inline(always)]
unsafe fn half_step<const STEP: i32>(x: __m512, bounds: __m512, index: __m512i) -> __m512i {
    // SAFETY: see the top of the file.
    unsafe {
        let at = _mm512_add_epi32(index, _mm512_set1_epi32(STEP - 1));
        let bound = _mm512_permutexvar_ps(at, bounds);
        let above = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound);
        _mm512_mask_add_epi32(index, above, index, _mm512_set1_epi32(STEP))
    }
}

impl Float for F16 {
    const N: usize = 16;
    type Int = I16;
    type Mask = M16;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        F16(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn ranges(from: *const f32) -> (Self, Self) {
        // SAFETY: the caller's.
        let (low, high) = unsafe { ranges::of_16(from) };
        (F16(low), F16(high))
    }
    #[inline(always)]
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4] {
        // SAFETY: the caller's for the loads. Each quarter holds four rows, and is transposed by itself.
        unsafe {
            let (r0, r1, r2, r3) =
                (four_rows(rows, 0, at), four_rows(rows, 1, at), four_rows(rows, 2, at), four_rows(rows, 3, at));
            let (a, b) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpacklo_ps(r2, r3));
            let (c, d) = (_mm512_unpackhi_ps(r0, r1), _mm512_unpackhi_ps(r2, r3));
            [
                F16(_mm512_shuffle_ps::<0x44>(a, b)),
                F16(_mm512_shuffle_ps::<0xee>(a, b)),
                F16(_mm512_shuffle_ps::<0x44>(c, d)),
                F16(_mm512_shuffle_ps::<0xee>(c, d)),
            ]
        }
    }
    #[inline(always)]
    fn index16(self, bounds: &[f32; 15]) -> I16 {
        // SAFETY: see the top of the file; the load covers fifteen floats and masks the sixteenth.
        unsafe {
            // By halves: the bound in the middle of what is left is looked up by the index so far.
            let bounds = _mm512_maskz_loadu_ps(0x7fff, bounds.as_ptr());
            let mut index = _mm512_setzero_si512();
            index = half_step::<8>(self.0, bounds, index);
            index = half_step::<4>(self.0, bounds, index);
            index = half_step::<2>(self.0, bounds, index);
            I16(half_step::<1>(self.0, bounds, index))
        }
    }
    #[inline(always)]
    fn value16(self, bounds: &[f32; 15], values: &[f32; 16]) -> Self {
        // SAFETY: see the top of the file; the load covers the sixteen values.
        F16(unsafe { _mm512_permutexvar_ps(self.index16(bounds).0, _mm512_loadu_ps(values.as_ptr())) })
    }
    #[inline(always)]
    fn lookup4(index: I16, table: &[f32; 4]) -> Self {
        // SAFETY: see the top of the file.
        F16(unsafe { _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table.as_ptr())), index.0) })
    }
    #[inline(always)]
    fn lookup8(index: I16, table: &[f32; 8]) -> Self {
        // SAFETY: see the top of the file. The table is there twice, so that the fourth bit does not matter.
        F16(unsafe { _mm512_permutexvar_ps(index.0, _mm512_broadcast_f32x8(_mm256_loadu_ps(table.as_ptr()))) })
    }
    methods! {
        fn least(self: Self) -> f32 = _mm512_reduce_min_ps(self.0);
        fn splat(value: f32) -> Self = F16(_mm512_set1_ps(value));
        fn min(self: Self, other: Self) -> Self = F16(_mm512_min_ps(self.0, other.0));
        fn max(self: Self, other: Self) -> Self = F16(_mm512_max_ps(self.0, other.0));
        fn abs(self: Self) -> Self = F16(_mm512_abs_ps(self.0));
        fn negate(self: Self) -> Self = F16(_mm512_xor_ps(self.0, _mm512_set1_ps(-0.0)));
        fn sqrt(self: Self) -> Self = F16(_mm512_sqrt_ps(self.0));
        fn lt(self: Self, other: Self) -> M16 = M16(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0));
        fn le(self: Self, other: Self) -> M16 = M16(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0));
        fn same(self: Self, other: Self) -> M16 = M16(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0));
        fn select(mask: M16, yes: Self, no: Self) -> Self = F16(_mm512_mask_blend_ps(mask.0, no.0, yes.0));
        fn to_bits(self: Self) -> I16 = I16(_mm512_castps_si512(self.0));
        fn from_bits(bits: I16) -> Self = F16(_mm512_castsi512_ps(bits.0));
        fn truncate(self: Self) -> I16 = I16(_mm512_cvttps_epi32(self.0));
        fn to_half(self: Self) -> I16 =
            I16(_mm512_cvtepu16_epi32(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)));
        fn from_half(bits: I16) -> Self = F16(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits.0)));
    }
}

impl Int for I16 {
    type Float = F16;
    type Mask = M16;

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's.
        I16(unsafe { _mm512_loadu_si512(from.cast()) })
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's.
        I16(unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the caller's for the store.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_bytes4(vectors: [Self; 4], to: [*mut u8; 4]) {
        // SAFETY: the caller's for the stores. Each quarter of `bytes` holds four of each vector.
        unsafe {
            let words =
                (_mm512_packus_epi32(vectors[0].0, vectors[1].0), _mm512_packus_epi32(vectors[2].0, vectors[3].0));
            let bytes = _mm512_packus_epi16(words.0, words.1);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm_storeu_si128(to[0].cast(), _mm512_extracti32x4_epi32::<0>(bytes));
            _mm_storeu_si128(to[1].cast(), _mm512_extracti32x4_epi32::<1>(bytes));
            _mm_storeu_si128(to[2].cast(), _mm512_extracti32x4_epi32::<2>(bytes));
            _mm_storeu_si128(to[3].cast(), _mm512_extracti32x4_epi32::<3>(bytes));
        }
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I16(unsafe { _mm512_sllv_epi32(self.0, _mm512_set1_epi32(BITS)) })
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        // SAFETY: see the top of the file.
        I16(unsafe { _mm512_srlv_epi32(self.0, _mm512_set1_epi32(BITS)) })
    }
    methods! {
        fn add_products(self: Self, a: Self, b: Self) -> Self =
            I16(_mm512_add_epi32(self.0, _mm512_madd_epi16(a.0, b.0)));
        fn splat(value: i32) -> Self = I16(_mm512_set1_epi32(value));
        fn min(self: Self, other: Self) -> Self = I16(_mm512_min_epi32(self.0, other.0));
        fn max(self: Self, other: Self) -> Self = I16(_mm512_max_epi32(self.0, other.0));
        fn eq(self: Self, other: Self) -> M16 = M16(_mm512_cmpeq_epi32_mask(self.0, other.0));
        fn lt(self: Self, other: Self) -> M16 = M16(_mm512_cmplt_epi32_mask(self.0, other.0));
        fn to_float(self: Self) -> F16 = F16(_mm512_cvtepi32_ps(self.0));
        fn select(mask: M16, yes: Self, no: Self) -> Self = I16(_mm512_mask_blend_epi32(mask.0, no.0, yes.0));
    }
}

impl Mask for M16 {
    const N: usize = 16;

    methods! {
        fn and(self: Self, other: Self) -> Self = M16(self.0 & other.0);
        fn or(self: Self, other: Self) -> Self = M16(self.0 | other.0);
        fn not(self: Self) -> Self = M16(!self.0);
        fn bits(self: Self) -> u32 = u32::from(self.0);
        fn any(self: Self) -> bool = self.0 != 0;
        fn all(self: Self) -> bool = self.0 == u16::MAX;
    }
}
