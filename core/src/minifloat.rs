//! Floats of four and eight bits (OCP Microscaling 1.0 and FP8 specifications): E4M3 without infinities, E2M1, and the
//! power-of-two scale E8M0; and rounding to the type that a checkpoint keeps its numbers in.

use crate::dtype::GgmlType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub const E4M3_MAX: f32 = 448.0;
pub const E2M1_MAX: f32 = 6.0;
/// The values of the E2M1 codes; bit 3 is the sign.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The largest magnitude; 0 of nothing.
pub fn largest(w: &[f32]) -> f32 {
    w.iter().fold(0.0, |max, w| max.max(w.abs()))
}

/// The value of an E4M3 code; `0x7f` and `0xff` are NaN.
pub fn e4m3(code: u8) -> f32 {
    let mantissa = f32::from(code & 7);
    let exponent = i32::from(code >> 3 & 15);
    let value = match exponent {
        _ if code & 0x7f == 0x7f => f32::NAN,
        0 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits(((exponent + 120) as u32) << 23),
    };
    if code & 0x80 != 0 { -value } else { value }
}

/// The E4M3 code nearest to `x`, ties to even; beyond 448 the largest one.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let x = x.abs();
    if x.is_nan() {
        return sign | 0x7f;
    }
    if x < 1.0 / 64.0 {
        // Subnormals; eight of them make the smallest normal number, whose code is 8.
        return sign | (x * 512.0).round_ties_even() as u8;
    }
    let bits = x.min(E4M3_MAX).to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// The E2M1 code nearest to `x`, ties to the even code. What rounds to zero from below is minus zero.
pub fn to_e2m1(x: f32) -> u8 {
    let a = x.abs();
    let code = u8::from(a > 0.25)
        + u8::from(a >= 0.75)
        + u8::from(a > 1.25)
        + u8::from(a >= 1.75)
        + u8::from(a > 2.5)
        + u8::from(a >= 3.5)
        + u8::from(a > 5.0);
    code | u8::from(x < 0.0) << 3
}

/// The value of an E8M0 code: `2^(code - 127)`; 255 is NaN.
pub fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// `x` as type `ty` (F16, BF16, anything else F32) holds it.
pub fn rounded(ty: GgmlType, x: f32) -> f32 {
    match ty {
        GgmlType::F16 => f16::from_f32(x).to_f32(),
        GgmlType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// [`rounded`] over a slice.
pub fn round_all(ty: GgmlType, x: &mut [f32]) {
    const STEP: usize = 256;
    match ty {
        GgmlType::F16 => {
            let mut half = [f16::ZERO; STEP];
            for x in x.chunks_mut(STEP) {
                half[..x.len()].convert_from_f32_slice(x);
                half[..x.len()].convert_to_f32_slice(x);
            }
        }
        GgmlType::BF16 => x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        _ => {}
    }
}

/// What follows 1 in `ty`, less 1: torch's `finfo.eps`.
pub fn epsilon(ty: GgmlType) -> f32 {
    match ty {
        GgmlType::F16 => f16::EPSILON.to_f32(),
        GgmlType::BF16 => bf16::EPSILON.to_f32(),
        _ => f32::EPSILON,
    }
}

/// Numbers in the bytes of `ty`.
pub fn to_bytes(ty: GgmlType, x: &[f32]) -> Vec<u8> {
    match ty {
        GgmlType::F16 => x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        GgmlType::BF16 => x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code is the nearest to itself, and midpoints go to the even neighbour.
    #[test]
    fn eight_bit_codes() {
        for code in (0..=255u8).filter(|c| c & 0x7f != 0x7f) {
            assert_eq!(to_e4m3(e4m3(code)), code, "{code:#x}");
        }
        for code in 0..0x7e {
            let middle = (e4m3(code) + e4m3(code + 1)) / 2.0;
            assert_eq!(to_e4m3(middle), code + (code & 1));
            assert_eq!(to_e4m3(-middle.next_up()), 0x80 | (code + 1));
        }
        assert_eq!((e4m3(0x7e), to_e4m3(1e9), to_e4m3(-480.0)), (448.0, 0x7e, 0xfe));
        assert!(e4m3(0x7f).is_nan());
    }

    #[test]
    fn four_bit_codes() {
        for (code, value) in E2M1.iter().enumerate() {
            assert_eq!(to_e2m1(*value), if code == 8 { 0 } else { code as u8 });
        }
        let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].map(|x| E2M1[usize::from(to_e2m1(x))]);
        assert_eq!(ties, [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(to_e2m1(-0.1), 8);
    }

    #[test]
    fn powers_of_two() {
        assert_eq!((e8m0(127), e8m0(0), e8m0(254)), (1.0, 2f32.powi(-127), 2f32.powi(127)));
        assert!(e8m0(255).is_nan());
    }
}
