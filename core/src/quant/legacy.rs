//! The 32-weight types of the first generation: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0. Layouts and arithmetic are ggml's
//! (`quantize_row_*_ref` without importance, `quantize_row_*_impl` with it).

use super::search::{Grid, nearest_int, qkx, qx};
use super::{f16_at, put_f16};
use crate::isa::multiversion;

const N: usize = 32;

/// `1 / d`, and 0 for a zero scale. `None` where it overflows: the weights of such a block are subnormal, its stored scale
/// is 0, and its codes are those that x86-64 gets when it narrows ggml's infinities to a byte, namely 0.
fn inverse(d: f32) -> Option<f32> {
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    id.is_finite().then_some(id)
}

fn blocks(row: &[f32]) -> impl Iterator<Item = &[f32; N]> {
    row.as_chunks::<N>().0.iter()
}

/// `importance · sqrt(mean square of the row + x²)`: the weight of an error in column `i` (ggml's empirical form).
fn error_weights(row: &[f32], importance: &[f32]) -> impl Fn(usize, &[f32; N]) -> [f32; N] {
    let sigma2 = row.iter().fold(0.0f32, |s, x| s + x * x) / row.len() as f32;
    move |block, x| std::array::from_fn(|i| importance[block * N + i] * (sigma2 + x[i] * x[i]).sqrt())
}

/// Low nibbles into `qs`, fifth bits into `qh` where the layout has them.
pub(crate) fn pack(codes: &[u8; N], out: &mut [u8]) {
    let (high, low) = out.split_at_mut(out.len() - 16);
    for (i, byte) in low.iter_mut().enumerate() {
        *byte = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
    }
    if high.len() == 4 {
        let bits = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(c >> 4 & 1) << i);
        high.copy_from_slice(&bits.to_le_bytes());
    }
}

/// Q4_0 (`HALF` 8) and Q5_0 (16): `d · (code − HALF)`.
pub(crate) fn symmetric<const HALF: i32, const BYTES: usize>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let weights = importance.map(|w| error_weights(row, w));
    for (block, (x, out)) in blocks(row).zip(out.chunks_exact_mut(BYTES)).enumerate() {
        let mut codes = [0u8; N];
        let d = match &weights {
            Some(weights) => qx(HALF, x, Some(&weights(block, x)), &mut codes),
            None => {
                let (mut max, mut amax) = (0.0f32, 0.0f32);
                for &v in x {
                    if amax < v.abs() {
                        (amax, max) = (v.abs(), v);
                    }
                }
                let d = max / -(HALF as f32);
                if let Some(id) = inverse(d) {
                    let top = 2 * HALF - 1;
                    codes = x.map(|v| i32::from((v * id + (HALF as f32 + 0.5)) as i8).min(top) as u8);
                }
                d
            }
        };
        put_f16(out, 0, d);
        pack(&codes, &mut out[2..]);
    }
}

/// Q4_1 (`TOP` 15) and Q5_1 (31): `d · code + m`.
pub(crate) fn asymmetric<const TOP: i32, const BYTES: usize>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const GRID: Grid = Grid { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };
    let weights = importance.map(|w| error_weights(row, w));
    for (block, (x, out)) in blocks(row).zip(out.chunks_exact_mut(BYTES)).enumerate() {
        let mut codes = [0u8; N];
        let (d, m) = match &weights {
            Some(weights) => {
                let (d, min) = qkx(TOP, x, &weights(block, x), GRID, &mut codes);
                (d, -min)
            }
            None => {
                let (mut min, mut max) = (f32::MAX, -f32::MAX);
                for &v in x {
                    if v < min {
                        min = v;
                    }
                    if v > max {
                        max = v;
                    }
                }
                let d = (max - min) / TOP as f32;
                if let Some(id) = inverse(d) {
                    codes = x.map(|v| (((v - min) * id + 0.5) as u8).min(TOP as u8));
                }
                (d, min)
            }
        };
        put_f16(out, 0, d);
        put_f16(out, 2, m);
        pack(&codes, &mut out[4..]);
    }
}

/// `roundf` for |x| below 2^22, by steps that the compiler can vectorize on any x86-64.
#[inline(always)]
fn round_half_away(x: f32) -> i32 {
    let even = nearest_int(x);
    let rest = x - even as f32; // exact; a tie that went to the even neighbour towards zero leaves a half
    even + i32::from((rest == 0.5) & (x > 0.0)) - i32::from((rest == -0.5) & (x < 0.0))
}

/// Q8_0 takes no importance: at eight bits ggml rounds to the largest magnitude alone.
pub(crate) fn quantize_q8_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
    for (x, out) in blocks(row).zip(out.chunks_exact_mut(34)) {
        let amax = x.iter().fold(0.0f32, |m, v| if m > v.abs() { m } else { v.abs() });
        let d = amax / 127.0;
        put_f16(out, 0, d);
        match inverse(d) {
            Some(id) => {
                for (byte, v) in out[2..].iter_mut().zip(x) {
                    *byte = round_half_away(v * id) as u8;
                }
            }
            None => out[2..].fill(0),
        }
    }
}

/// Codes of a Q5 block: low nibbles from `qs` (16 bytes), fifth bits from `qh` (4 bytes, code `i` at bit `i`).
#[inline(always)]
fn five_bit_codes(qh: &[u8], qs: &[u8]) -> [u8; N] {
    let mut codes = [0u8; N];
    for (codes, high) in codes.as_chunks_mut::<8>().0.iter_mut().zip(qh) {
        for (bit, code) in codes.iter_mut().enumerate() {
            *code = if high & (1 << bit) != 0 { 16 } else { 0 };
        }
    }
    let (first, second) = codes.split_at_mut(16);
    for ((first, second), q) in first.iter_mut().zip(second).zip(qs) {
        *first |= q & 15;
        *second |= q >> 4;
    }
    codes
}

multiversion! {
    pub(super) fn dequantize_q4_0(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(18).zip(out.as_chunks_mut::<N>().0) {
            let d = f16_at(b, 0);
            for i in 0..16 {
                y[i] = (i32::from(b[2 + i] & 15) - 8) as f32 * d;
                y[i + 16] = (i32::from(b[2 + i] >> 4) - 8) as f32 * d;
            }
        }
    }

    pub(super) fn dequantize_q4_1(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(20).zip(out.as_chunks_mut::<N>().0) {
            let (d, m) = (f16_at(b, 0), f16_at(b, 2));
            for i in 0..16 {
                y[i] = f32::from(b[4 + i] & 15) * d + m;
                y[i + 16] = f32::from(b[4 + i] >> 4) * d + m;
            }
        }
    }

    pub(super) fn dequantize_q5_0(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(22).zip(out.as_chunks_mut::<N>().0) {
            let d = f16_at(b, 0);
            for (y, code) in y.iter_mut().zip(five_bit_codes(&b[2..6], &b[6..22])) {
                *y = (i32::from(code) - 16) as f32 * d;
            }
        }
    }

    pub(super) fn dequantize_q5_1(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(24).zip(out.as_chunks_mut::<N>().0) {
            let (d, m) = (f16_at(b, 0), f16_at(b, 2));
            for (y, code) in y.iter_mut().zip(five_bit_codes(&b[4..8], &b[8..24])) {
                *y = f32::from(code) * d + m;
            }
        }
    }

    pub(super) fn dequantize_q8_0(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(34).zip(out.as_chunks_mut::<N>().0) {
            let d = f16_at(b, 0);
            for (y, q) in y.iter_mut().zip(&b[2..]) {
                *y = f32::from(*q as i8) * d;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_away_from_zero() {
        for i in -128 * 64..=128 * 64 {
            let x = i as f32 / 64.0;
            for x in [x.next_down(), x, x.next_up()] {
                assert_eq!(round_half_away(x), x.round() as i32, "{x}");
            }
        }
    }
}
