//! Types that hold plain numbers: F32, F16, BF16. Rounding is IEEE nearest-even, as ggml's.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(super) fn quantize_f32(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(row) {
        *out = x.to_le_bytes();
    }
}

pub(super) fn quantize_f16(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    let mut buffer = [f16::ZERO; 256];
    for (x, out) in row.chunks(256).zip(out.chunks_mut(512)) {
        let half = &mut buffer[..x.len()];
        half.convert_from_f32_slice(x);
        for (out, h) in out.as_chunks_mut::<2>().0.iter_mut().zip(half) {
            *out = h.to_le_bytes();
        }
    }
}

#[inline(always)]
pub(crate) fn quantize_bf16(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
        // To nearest even; a NaN stays one.
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let bits = if x.is_nan() { bits >> 16 | 0x40 } else { rounded };
        *out = (bits as u16).to_le_bytes();
    }
}

pub(super) fn dequantize_f32(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *y = f32::from_le_bytes(*b);
    }
}

pub(super) fn dequantize_f16(bytes: &[u8], out: &mut [f32]) {
    let mut buffer = [f16::ZERO; 256];
    for (out, b) in out.chunks_mut(256).zip(bytes.chunks(512)) {
        let half = &mut buffer[..out.len()];
        for (h, b) in half.iter_mut().zip(b.as_chunks::<2>().0) {
            *h = f16::from_le_bytes(*b);
        }
        half.convert_to_f32_slice(out);
    }
}

pub(super) fn dequantize_bf16(bytes: &[u8], out: &mut [f32]) {
    for (y, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *y = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

pub(super) fn check_f32(bytes: &[u8]) -> Result<(), (usize, f32)> {
    let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    first_bad(values)
}

pub(super) fn check_f16(bytes: &[u8]) -> Result<(), (usize, f32)> {
    // An exponent of all ones is an infinity or a NaN; looking at the bits is quicker than converting.
    let at = bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00);
    at.map_or(Ok(()), |i| Err((i, f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())))
}

pub(super) fn check_bf16(bytes: &[u8]) -> Result<(), (usize, f32)> {
    let values = bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32());
    first_bad(values)
}

fn first_bad(values: impl Iterator<Item = f32>) -> Result<(), (usize, f32)> {
    values.enumerate().find(|(_, v)| !v.is_finite()).map_or(Ok(()), Err)
}
