//! TQ1_0 and TQ2_0: weights of -1, 0 or 1 times the block's largest magnitude, for models trained that way (BitNet b1.58,
//! TriLM). TQ1_0 packs five weights in a byte in base three, TQ2_0 four in two bits each. Layouts are ggml's.

use super::numeric::SUPER;
use crate::quant::{f16_at, put_f16};

/// Runs of TQ1_0: bytes in the run and weights a byte. Byte m of a run of `len` holds the weights m, m + len, m + 2 len, ...
const RUNS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

/// The block's scale, and its weights rounded to -1, 0, 1, as 0, 1, 2; halves round away from zero.
#[inline(always)]
fn trits(x: &[f32]) -> (f32, [u8; SUPER]) {
    // Magnitudes are ordered like their bits, and integers the compiler compares many at a time.
    let d = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff)));
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut trits = [0; SUPER];
    for (trit, x) in trits.iter_mut().zip(x) {
        let scaled = x * inverse;
        // The inverse of a tiny scale is infinite; such a block's stored scale is zero.
        let (up, down) = ((0.5..=1.5).contains(&scaled), (-1.5..=-0.5).contains(&scaled));
        *trit = 1 + u8::from(up) - u8::from(down);
    }
    (d, trits)
}

/// Block: 48 bytes of five weights, 4 bytes of four, f16 d.
#[inline(always)]
pub fn quantize_tq1(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(54)) {
        let (d, trits) = trits(x);
        let (mut trits, mut bytes) = (&trits[..], &mut block[..]);
        for (len, per_byte) in RUNS {
            let (run, rest) = bytes.split_at_mut(len);
            let mut digits = [0u16; 32];
            for n in 0..5 {
                // A missing fifth digit is zero.
                for (i, digits) in digits[..len].iter_mut().enumerate() {
                    *digits = 3 * *digits + if n < per_byte { u16::from(trits[n * len + i]) } else { 0 };
                }
            }
            for (byte, digits) in run.iter_mut().zip(digits) {
                // As a fraction of 256, rounded up: multiplying by three then yields digit after digit.
                *byte = (digits * 256).div_ceil(243) as u8;
            }
            (trits, bytes) = (&trits[len * per_byte..], rest);
        }
        put_f16(block, 52, d);
    }
}

pub fn dequantize_tq1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(54).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 52);
        let (mut bytes, mut out) = (block, out);
        for (len, per_byte) in RUNS {
            let (run, rest) = out.split_at_mut(len * per_byte);
            for (n, values) in run.chunks_exact_mut(len).enumerate() {
                for (value, byte) in values.iter_mut().zip(bytes) {
                    let fraction = byte.wrapping_mul(3u8.pow(n as u32));
                    *value = (f32::from((u16::from(fraction) * 3) >> 8) - 1.0) * d;
                }
            }
            (bytes, out) = (&bytes[len..], rest);
        }
    }
}

/// Block: 64 bytes, byte m of each half holding the weights m, m + 32, m + 64, m + 96; f16 d.
#[inline(always)]
pub fn quantize_tq2(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(66)) {
        let (d, trits) = trits(x);
        for (trits, bytes) in trits.as_chunks::<128>().0.iter().zip(block.as_chunks_mut::<32>().0) {
            for (m, byte) in bytes.iter_mut().enumerate() {
                *byte = trits[m] | trits[m + 32] << 2 | trits[m + 64] << 4 | trits[m + 96] << 6;
            }
        }
        put_f16(block, 64, d);
    }
}

pub fn dequantize_tq2(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(66).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 64);
        for (bytes, out) in block.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (n, values) in out.chunks_exact_mut(32).enumerate() {
                for (value, byte) in values.iter_mut().zip(bytes) {
                    *value = (f32::from(byte >> (2 * n) & 3) - 1.0) * d;
                }
            }
        }
    }
}
