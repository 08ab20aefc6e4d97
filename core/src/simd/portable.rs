//! Four lanes in arrays, for processors without a file of their own (on aarch64 the compiler makes NEON of it) and as a
//! second opinion in tests.

use super::vector::{Float, Int, Mask};
use half::f16;
use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

const N: usize = 4;

#[derive(Clone, Copy)]
pub struct F([f32; N]);
#[derive(Clone, Copy)]
pub struct I([i32; N]);
#[derive(Clone, Copy)]
pub struct M([bool; N]);

macro_rules! operators {
    ($($type:ident $operator:ident $function:ident $each:expr;)*) => {$(
        impl $operator for $type {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                $type(from_fn(|i| $each(self.0[i], other.0[i])))
            }
        }
    )*};
}

operators! {
    F Add add f32::add;
    F Sub sub f32::sub;
    F Mul mul f32::mul;
    F Div div f32::div;
    I Add add i32::wrapping_add;
    I Sub sub i32::wrapping_sub;
    I BitAnd bitand i32::bitand;
    I BitOr bitor i32::bitor;
}

/// Methods that do the same in every lane.
macro_rules! lanewise {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $out:ident = $each:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: $type),*) -> $out {
            $out(from_fn(|i| $each($($arg.0[i]),*)))
        }
    )*};
}

impl Float for F {
    const N: usize = N;
    type Int = I;
    type Mask = M;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        F([value; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's; arrays of floats have no further alignment.
        F(unsafe { from.cast::<[f32; N]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[f32; N]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4] {
        // SAFETY: the caller's.
        from_fn(|k| F(from_fn(|i| unsafe { rows[i].add(at + k).read() })))
    }
    lanewise! {
        fn min(self: Self, other: Self) -> F = |a, b| if a < b { a } else { b };
        fn max(self: Self, other: Self) -> F = |a, b| if a > b { a } else { b };
        fn abs(self: Self) -> F = f32::abs;
        fn negate(self: Self) -> F = |a: f32| -a;
        fn sqrt(self: Self) -> F = f32::sqrt;
        fn lt(self: Self, other: Self) -> M = |a, b| a < b;
        fn le(self: Self, other: Self) -> M = |a, b| a <= b;
        fn same(self: Self, other: Self) -> M = |a, b| a == b;
        fn select(mask: M, yes: Self, no: Self) -> F = |m, a, b| if m { a } else { b };
        fn to_bits(self: Self) -> I = |a: f32| a.to_bits() as i32;
        fn from_bits(bits: I) -> F = |b: i32| f32::from_bits(b as u32);
        fn truncate(self: Self) -> I = |a: f32| if a.abs() < 2147483648.0 { a as i32 } else { i32::MIN };
        fn to_half(self: Self) -> I = |a| i32::from(f16::from_f32(a).to_bits());
        fn from_half(bits: I) -> F = |b| f16::from_bits(b as u16).to_f32();
    }
}

impl Int for I {
    type Float = F;
    type Mask = M;

    #[inline(always)]
    fn splat(value: i32) -> Self {
        I([value; N])
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        I(self.0.map(|v| v << BITS))
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        I(self.0.map(|v| (v as u32 >> BITS) as i32))
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's.
        I(unsafe { from.cast::<[i32; N]>().read() })
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's.
        I(unsafe { from.cast::<[u16; N]>().read_unaligned() }.map(i32::from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[i32; N]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[u8; N]>().write(self.0.map(|v| v as u8)) }
    }
    #[inline(always)]
    fn add_products(self, a: Self, b: Self) -> Self {
        let product = |a: i32, b: i32| (i32::from(a as i16) * i32::from(b as i16)).wrapping_add((a >> 16) * (b >> 16));
        I(from_fn(|i| self.0[i].wrapping_add(product(a.0[i], b.0[i]))))
    }
    lanewise! {
        fn min(self: Self, other: Self) -> I = i32::min;
        fn max(self: Self, other: Self) -> I = i32::max;
        fn eq(self: Self, other: Self) -> M = |a, b| a == b;
        fn lt(self: Self, other: Self) -> M = |a, b| a < b;
        fn to_float(self: Self) -> F = |a| a as f32;
        fn select(mask: M, yes: Self, no: Self) -> I = |m, a, b| if m { a } else { b };
    }
}

impl Mask for M {
    const N: usize = N;

    lanewise! {
        fn and(self: Self, other: Self) -> M = |a, b| a & b;
        fn or(self: Self, other: Self) -> M = |a, b| a | b;
        fn not(self: Self) -> M = |a: bool| !a;
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        (0..N).fold(0, |bits, i| bits | u32::from(self.0[i]) << i)
    }
    #[inline(always)]
    fn any(self) -> bool {
        self.0.contains(&true)
    }
    #[inline(always)]
    fn all(self) -> bool {
        !self.0.contains(&false)
    }
}
