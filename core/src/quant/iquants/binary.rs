//! Q1_0 and Q2_0: one bit a weight (its sign, times the mean magnitude of the block), and two bits (-1, 0, 1, 2 times the
//! largest magnitude). Layouts and rounding are ggml's.

use crate::quant::{f16_at, put_f16};

/// Block: f16 d; 128 bits, set where the weight is not negative.
pub fn quantize_q1(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(128).zip(out.chunks_exact_mut(18)) {
        put_f16(block, 0, x.iter().fold(0.0, |sum, x| sum + x.abs()) / 128.0);
        for (x, byte) in x.chunks_exact(8).zip(&mut block[2..]) {
            *byte = x.iter().enumerate().fold(0, |bits, (i, x)| bits | u8::from(*x >= 0.0) << i);
        }
    }
}

pub fn dequantize_q1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(128)) {
        let d = f16_at(block, 0);
        for (i, out) in out.iter_mut().enumerate() {
            *out = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    }
}

/// Block: f16 d; four 2-bit codes a byte.
#[inline(always)]
pub fn quantize_q2(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(64).zip(out.chunks_exact_mut(18)) {
        // Magnitudes are ordered like their bits, and integers the compiler compares many at a time.
        let d = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        put_f16(block, 0, d);
        let mut codes = [0u8; 64];
        for (code, x) in codes.iter_mut().zip(x) {
            *code = ((x * inverse).round().clamp(-1.0, 2.0) + 1.0) as u8;
        }
        for (codes, byte) in codes.as_chunks::<4>().0.iter().zip(&mut block[2..]) {
            *byte = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
        }
    }
}

pub fn dequantize_q2(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(64)) {
        let d = f16_at(block, 0);
        for (i, out) in out.iter_mut().enumerate() {
            *out = (f32::from(block[2 + i / 4] >> (2 * (i % 4)) & 3) - 1.0) * d;
        }
    }
}
