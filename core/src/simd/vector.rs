//! The vectors that lane kernels are written in: some number of `f32` (or `i32`) lanes with the few operations the searches
//! need, each exactly the scalar one in every lane. No fused multiply-add, no reassociation. A kernel is written once
//! against [`Float`]; `x86.rs` and `portable.rs` provide the widths, [`Two`] puts a pair of vectors side by side.

use super::F32x16;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Sub};

/// Adding it rounds a float below 2^22 in magnitude to an integer, half to even.
pub const MAGIC: f32 = 12_582_912.0;

/// The most lanes any vector has (a pair of the widest).
pub const MAX_LANES: usize = 32;

/// A vector of `f32`.
pub trait Float: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    const N: usize;
    /// How many of the machine's vectors it is made of.
    const VECTORS: usize = 1;
    type Int: Int<Float = Self, Mask = Self::Mask>;
    type Mask: Mask;

    fn splat(value: f32) -> Self;

    /// # Safety
    /// `from` must be readable for `N` floats.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// `to` must be writable for `N` floats.
    unsafe fn store(self, to: *mut f32);

    /// Sixteen lanes from memory; only where there are as many.
    #[inline(always)]
    fn read(from: &F32x16) -> Self {
        const { assert!(Self::N == 16) };
        // SAFETY: both are sixteen floats.
        unsafe { Self::load(from.0.as_ptr()) }
    }

    /// The inverse of [`read`](Self::read).
    #[inline(always)]
    fn write(self, to: &mut F32x16) {
        const { assert!(Self::N == 16) };
        // SAFETY: both are sixteen floats.
        unsafe { self.store(to.0.as_mut_ptr()) }
    }

    /// Four columns of a matrix whose rows are the lanes: vector `k` holds float `at + k` of every row.
    ///
    /// # Safety
    /// `rows` must hold `N` pointers, each readable for four floats at `at`.
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4];

    /// The least and the greatest weight of `N` blocks of 32 that follow one another; lane `i` is block `i`. Of zeros it may
    /// be any.
    ///
    /// # Safety
    /// `from` must be readable for all of them, none of which is a NaN.
    #[inline(always)]
    unsafe fn ranges(from: *const f32) -> (Self, Self) {
        let (mut low, mut high) = ([f32::MAX; MAX_LANES], [-f32::MAX; MAX_LANES]);
        // SAFETY: the caller's; no vector has more lanes.
        unsafe {
            for lane in 0..Self::N {
                for x in from.add(32 * lane).cast::<[f32; 32]>().read() {
                    low[lane] = if x < low[lane] { x } else { low[lane] };
                    high[lane] = if x > high[lane] { x } else { high[lane] };
                }
            }
            (Self::load(low.as_ptr()), Self::load(high.as_ptr()))
        }
    }

    /// `self < other ? self : other`.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`.
    fn max(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// The other sign, of zeros too.
    fn negate(self) -> Self;
    fn sqrt(self) -> Self;
    fn lt(self, other: Self) -> Self::Mask;
    fn le(self, other: Self) -> Self::Mask;
    /// Whether the lanes are equal; a NaN equals nothing.
    fn same(self, other: Self) -> Self::Mask;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    fn to_bits(self) -> Self::Int;
    fn from_bits(bits: Self::Int) -> Self;
    /// Towards zero. What lies outside of `i32` becomes its smallest number.
    fn truncate(self) -> Self::Int;
    /// The bits of each lane as a half-precision number, rounded to nearest even.
    fn to_half(self) -> Self::Int;
    /// The inverse of [`to_half`](Self::to_half).
    fn from_half(bits: Self::Int) -> Self;

    fn gt(self, other: Self) -> Self::Mask {
        other.lt(self)
    }

    /// How many of the ascending `bounds` are not above `self`: all of them for a NaN.
    #[inline(always)]
    fn index16(self, bounds: &[f32; 15]) -> Self::Int {
        let mut index = Self::Int::splat(0);
        for (k, bound) in bounds.iter().enumerate() {
            index = Self::Int::select(self.lt(Self::splat(*bound)), index, Self::Int::splat(k as i32 + 1));
        }
        index
    }

    /// The value at [`index16`](Self::index16).
    #[inline(always)]
    fn value16(self, bounds: &[f32; 15], values: &[f32; 16]) -> Self {
        let mut value = Self::splat(values[0]);
        for (bound, next) in bounds.iter().zip(&values[1..]) {
            value = Self::select(self.lt(Self::splat(*bound)), value, Self::splat(*next));
        }
        value
    }

    /// `table[index % 4]`.
    #[inline(always)]
    fn lookup4(index: Self::Int, table: &[f32; 4]) -> Self {
        lookup(index, table)
    }

    /// `table[index % 8]`.
    #[inline(always)]
    fn lookup8(index: Self::Int, table: &[f32; 8]) -> Self {
        lookup(index, table)
    }

    /// The least of all lanes, none of which is a NaN.
    #[inline(always)]
    fn least(self) -> f32 {
        let mut lanes = [f32::INFINITY; MAX_LANES];
        // SAFETY: no vector has more lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.iter().fold(f32::INFINITY, |least, v| least.min(*v))
    }

    /// `nearest_int` of the scalar search, for any argument.
    #[inline(always)]
    fn nearest(self) -> Self::Int {
        ((self + Self::splat(MAGIC)).to_bits() & Self::Int::splat(0x007f_ffff)) - Self::Int::splat(0x0040_0000)
    }

    /// `f32::round`, halves away from zero, for magnitudes below 2^22: adding the float below one half and cutting off.
    #[inline(always)]
    fn round_away(self) -> Self::Int {
        let sign = self.to_bits() & Self::Int::splat(i32::MIN);
        let half = Self::from_bits(sign | Self::Int::splat(0.5f32.next_down().to_bits() as i32));
        (self + half).truncate()
    }

    /// `nearest_int(self).clamp(low, high)` as floats, for magnitudes below 2^22.
    #[inline(always)]
    fn nearest_small(self, low: f32, high: f32) -> Self {
        let rounded = self + Self::splat(MAGIC);
        rounded.max(Self::splat(MAGIC + low)).min(Self::splat(MAGIC + high)) - Self::splat(MAGIC)
    }
}

/// A table lookup in every lane; the table's length is a power of two.
#[inline(always)]
fn lookup<F: Float>(index: F::Int, table: &[f32]) -> F {
    let (mut at, mut lanes) = ([0i32; MAX_LANES], [0.0; MAX_LANES]);
    // SAFETY: no vector has more lanes.
    unsafe {
        index.store(at.as_mut_ptr());
        for (lane, at) in lanes.iter_mut().zip(at).take(F::N) {
            *lane = table[at as usize & (table.len() - 1)];
        }
        F::load(lanes.as_ptr())
    }
}

/// A vector of `i32`.
pub trait Int: Copy + Add<Output = Self> + Sub<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self> {
    type Float: Float<Int = Self, Mask = Self::Mask>;
    type Mask: Mask;

    fn splat(value: i32) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn eq(self, other: Self) -> Self::Mask;
    fn lt(self, other: Self) -> Self::Mask;
    fn to_float(self) -> Self::Float;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    fn shl<const BITS: i32>(self) -> Self;
    fn shr<const BITS: i32>(self) -> Self;
    /// `self` and the products of the lower and of the upper halves of `a` and `b`, each a signed 16-bit number.
    fn add_products(self, a: Self, b: Self) -> Self;

    /// # Safety
    /// `from` must be readable for `N` integers.
    unsafe fn load(from: *const i32) -> Self;

    /// # Safety
    /// `from` must be readable for `N` numbers; it need not be aligned.
    unsafe fn load_words(from: *const u16) -> Self;

    /// # Safety
    /// `to` must be writable for `N` integers.
    unsafe fn store(self, to: *mut i32);

    /// # Safety
    /// `to` must be writable for `N` bytes.
    unsafe fn store_bytes(self, to: *mut u8);

    /// Stores four vectors of numbers from 0 to 255.
    ///
    /// # Safety
    /// Each of `to` must be writable for `N` bytes.
    #[inline(always)]
    unsafe fn store_bytes4(vectors: [Self; 4], to: [*mut u8; 4]) {
        for (vector, to) in vectors.into_iter().zip(to) {
            // SAFETY: the caller's.
            unsafe { vector.store_bytes(to) };
        }
    }

    #[inline(always)]
    fn clamp(self, low: i32, high: i32) -> Self {
        self.max(Self::splat(low)).min(Self::splat(high))
    }
}

/// One truth value per lane.
pub trait Mask: Copy {
    const N: usize;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn not(self) -> Self;
    /// Lane `i` as bit `i`.
    fn bits(self) -> u32;
    fn any(self) -> bool;
    fn all(self) -> bool;
}

/// Two vectors side by side: twice the lanes, and two independent chains of additions for the processor to overlap.
#[derive(Clone, Copy)]
pub struct Two<T>(pub T, pub T);

macro_rules! two_operator {
    ($($operator:ident $function:ident)*) => {$(
        impl<T: $operator<Output = T>> $operator for Two<T> {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                Two(self.0.$function(other.0), self.1.$function(other.1))
            }
        }
    )*};
}

two_operator! { Add add  Sub sub  Mul mul  Div div  BitAnd bitand  BitOr bitor }

impl<T: Float> Float for Two<T> {
    const N: usize = 2 * T::N;
    const VECTORS: usize = 2 * T::VECTORS;
    type Int = Two<T::Int>;
    type Mask = Two<T::Mask>;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Two(T::splat(value), T::splat(value))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's, half for each.
        unsafe { Two(T::load(from), T::load(from.add(T::N))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's, half for each.
        unsafe {
            self.0.store(to);
            self.1.store(to.add(T::N));
        }
    }
    #[inline(always)]
    unsafe fn columns(rows: &[*const f32], at: usize) -> [Self; 4] {
        // SAFETY: the caller's, half for each.
        let (a, b) = unsafe { (T::columns(&rows[..T::N], at), T::columns(&rows[T::N..2 * T::N], at)) };
        [Two(a[0], b[0]), Two(a[1], b[1]), Two(a[2], b[2]), Two(a[3], b[3])]
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Two(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Two(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Two(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn negate(self) -> Self {
        Two(self.0.negate(), self.1.negate())
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Two(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        Two(self.0.lt(other.0), self.1.lt(other.1))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Self::Mask {
        Two(self.0.le(other.0), self.1.le(other.1))
    }
    #[inline(always)]
    fn same(self, other: Self) -> Self::Mask {
        Two(self.0.same(other.0), self.1.same(other.1))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Two(T::select(mask.0, yes.0, no.0), T::select(mask.1, yes.1, no.1))
    }
    #[inline(always)]
    fn to_bits(self) -> Self::Int {
        Two(self.0.to_bits(), self.1.to_bits())
    }
    #[inline(always)]
    fn from_bits(bits: Self::Int) -> Self {
        Two(T::from_bits(bits.0), T::from_bits(bits.1))
    }
    #[inline(always)]
    fn index16(self, bounds: &[f32; 15]) -> Self::Int {
        Two(self.0.index16(bounds), self.1.index16(bounds))
    }
    #[inline(always)]
    fn value16(self, bounds: &[f32; 15], values: &[f32; 16]) -> Self {
        Two(self.0.value16(bounds, values), self.1.value16(bounds, values))
    }
    #[inline(always)]
    fn truncate(self) -> Self::Int {
        Two(self.0.truncate(), self.1.truncate())
    }
    #[inline(always)]
    fn to_half(self) -> Self::Int {
        Two(self.0.to_half(), self.1.to_half())
    }
    #[inline(always)]
    fn from_half(bits: Self::Int) -> Self {
        Two(T::from_half(bits.0), T::from_half(bits.1))
    }
}

impl<T: Int> Int for Two<T> {
    type Float = Two<T::Float>;
    type Mask = Two<T::Mask>;

    #[inline(always)]
    fn splat(value: i32) -> Self {
        Two(T::splat(value), T::splat(value))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Two(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Two(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        Two(self.0.eq(other.0), self.1.eq(other.1))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        Two(self.0.lt(other.0), self.1.lt(other.1))
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller's, half for each.
        unsafe { Two(T::load(from), T::load(from.add(T::Float::N))) }
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's, half for each.
        unsafe { Two(T::load_words(from), T::load_words(from.add(T::Float::N))) }
    }
    #[inline(always)]
    fn to_float(self) -> Self::Float {
        Two(self.0.to_float(), self.1.to_float())
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Two(T::select(mask.0, yes.0, no.0), T::select(mask.1, yes.1, no.1))
    }
    #[inline(always)]
    fn shl<const BITS: i32>(self) -> Self {
        Two(self.0.shl::<BITS>(), self.1.shl::<BITS>())
    }
    #[inline(always)]
    fn shr<const BITS: i32>(self) -> Self {
        Two(self.0.shr::<BITS>(), self.1.shr::<BITS>())
    }
    #[inline(always)]
    fn add_products(self, a: Self, b: Self) -> Self {
        Two(self.0.add_products(a.0, b.0), self.1.add_products(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller's, half for each.
        unsafe {
            self.0.store(to);
            self.1.store(to.add(T::Float::N));
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the caller's, half for each.
        unsafe {
            self.0.store_bytes(to);
            self.1.store_bytes(to.add(T::Float::N));
        }
    }
}

impl<T: Mask> Mask for Two<T> {
    const N: usize = 2 * T::N;

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Two(self.0.and(other.0), self.1.and(other.1))
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Two(self.0.or(other.0), self.1.or(other.1))
    }
    #[inline(always)]
    fn not(self) -> Self {
        Two(self.0.not(), self.1.not())
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.bits() | self.1.bits() << T::N
    }
    #[inline(always)]
    fn any(self) -> bool {
        self.0.or(self.1).any()
    }
    #[inline(always)]
    fn all(self) -> bool {
        self.0.and(self.1).all()
    }
}
