//! Sixteen rows side by side ([`F32x16`]): the product that carries errors on, and how the types of scales round. Plain
//! operators, which the compiler vectorises inside a `simd::Kernel`.

use crate::simd::F32x16;

/// Rows of a bundle.
pub const LANES: usize = F32x16::LANES;

/// Goes into a loop (over columns, or grids) whose body is arithmetic on [`F32x16`]s: those are vectors already, and without
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
    bundles: &mut [(&[F32x16], &mut [F32x16])],
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
                let mut sums = [F32x16::ZERO; TILE];
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
    pub fn round(self, v: F32x16) -> F32x16 {
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
                let got = ScaleType::F16.round(F32x16::splat(v)).0[3];
                assert_eq!(got.to_bits(), f16::from_f32(v).to_f32().to_bits(), "{v}");
                let got = ScaleType::Bf16.round(F32x16::splat(v)).0[3];
                assert_eq!(got.to_bits(), bf16::from_f32(v).to_f32().to_bits(), "{v}");
            }
            v *= 1.000_37;
        }
        assert_eq!(round_f16(1e9), 65504.0);
        assert_eq!(round_f16(0.0), 0.0);
    }

    #[test]
    fn rounding_is_to_even() {
        let r = |v: f32| F32x16::splat(v).round().0[0];
        assert_eq!([r(0.5), r(1.5), r(2.5), r(-0.5), r(-1.5), r(7.49)], [0.0, 2.0, 2.0, 0.0, -2.0, 7.0]);
    }
}
