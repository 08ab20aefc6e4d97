//! TQ1_0 and TQ2_0: weights of -1, 0 or 1 times the block's largest magnitude, for models trained that way (BitNet b1.58,
//! TriLM). TQ1_0 packs five weights in a byte in base three, TQ2_0 four in two bits each. Layouts are ggml's.

use super::numeric::SUPER;
use crate::quant::{f16_at, put_f16};

/// Runs of TQ1_0: bytes in the run and weights a byte. Byte m of a run of `len` holds the weights m, m + len, m + 2 len, ...
const RUNS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

/// The block's scale and the inverse that its weights are rounded with.
fn scales(x: &[f32]) -> (f32, f32) {
    let d = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    (d, if d == 0.0 { 0.0 } else { 1.0 / d })
}

/// -1, 0, 1 as 0, 1, 2; halves round away from zero.
fn trit(x: f32, inverse: f32) -> u8 {
    let rounded = (x * inverse).round();
    // The inverse of a tiny scale is infinite; such a block's stored scale is zero.
    if rounded.is_finite() { (rounded + 1.0) as u8 } else { 1 }
}

/// Block: 48 bytes of five weights, 4 bytes of four, f16 d.
pub fn quantize_tq1(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(54)) {
        let (d, inverse) = scales(x);
        let (mut x, mut bytes) = (x, &mut block[..]);
        for (len, per_byte) in RUNS {
            let (run, rest) = bytes.split_at_mut(len);
            for (m, byte) in run.iter_mut().enumerate() {
                let mut q = (0..per_byte).fold(0u16, |q, n| 3 * q + u16::from(trit(x[m + n * len], inverse)));
                if per_byte == 4 {
                    q *= 3;
                }
                // As a fraction of 256, rounded up: multiplying by three then yields digit after digit.
                *byte = (q * 256).div_ceil(243) as u8;
            }
            (x, bytes) = (&x[len * per_byte..], rest);
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
pub fn quantize_tq2(row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, block) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(66)) {
        let (d, inverse) = scales(x);
        for (x, bytes) in x.chunks_exact(128).zip(block.chunks_exact_mut(32)) {
            for (m, byte) in bytes.iter_mut().enumerate() {
                *byte = (0..4).fold(0, |q, n| q | trit(x[m + 32 * n], inverse) << (2 * n));
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
