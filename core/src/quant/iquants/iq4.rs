//! IQ4_NL and IQ4_XS: four bits a weight that index a table of sixteen unevenly spaced values. Layouts, constants and the
//! order of trials are ggml's.

use super::numeric::{SUPER, block_importance, error_weights, get_u16, own_square, sum_squares};
use crate::quant::search::nearest_int;
use crate::quant::{f16_at, put_f16};

pub(crate) const VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
const GROUP: usize = 32;
const TRIES: i32 = 7;

/// The index of the value nearest to `x`; halfway, the upper one.
fn nearest_value(x: f32) -> u8 {
    if x <= VALUES[0] {
        return 0;
    }
    let above = VALUES.iter().position(|value| x < *value).unwrap_or(15);
    if x - VALUES[above - 1] < VALUES[above] - x { above as u8 - 1 } else { above as u8 }
}

/// The scale of 32 weights that loses least in the weighted square; 0 where all are (nearly) zero.
fn best_scale(x: &[f32], weight: &[f32]) -> f32 {
    let (mut largest, mut max) = (0.0, 0.0);
    for x in x {
        if x.abs() > largest {
            largest = x.abs();
            max = *x;
        }
    }
    if largest < 1e-15 {
        return 0.0;
    }
    let fit = |inverse: f32| {
        let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
        for (x, w) in x.iter().zip(weight) {
            let q = VALUES[usize::from(nearest_value(inverse * x))];
            sum_qx += w * q * x;
            sum_q2 += w * q * q;
        }
        (sum_qx, sum_q2)
    };
    let (sum_qx, sum_q2) = fit(1.0 / (-max / VALUES[0]));
    let mut scale = if sum_q2 > 0.0 { sum_qx / sum_q2 } else { 0.0 };
    let mut best = scale * sum_qx;
    for trial in -TRIES..=TRIES {
        let (sum_qx, sum_q2) = fit((trial as f32 + VALUES[0]) / max);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            scale = sum_qx / sum_q2;
            best = scale * sum_qx;
        }
    }
    scale
}

fn group_scale(x: &[f32], importance: Option<&[f32]>, mean_square: f32) -> f32 {
    let mut weight = [0.0; GROUP];
    error_weights(x, importance, mean_square, own_square, &mut weight);
    best_scale(x, &weight)
}

/// Sixteen bytes: weight i in the low half of byte i, weight i + 16 in the high half.
fn put_group(x: &[f32], scale: f32, out: &mut [u8]) {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (low, high) = x.split_at(GROUP / 2);
    for ((byte, low), high) in out.iter_mut().zip(low).zip(high) {
        *byte = nearest_value(inverse * low) | nearest_value(inverse * high) << 4;
    }
}

fn get_group(bytes: &[u8], scale: f32, out: &mut [f32]) {
    let (low, high) = out.split_at_mut(GROUP / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = scale * VALUES[usize::from(byte & 15)];
        *high = scale * VALUES[usize::from(byte >> 4)];
    }
}

/// Block: f16 d; 16 bytes of codes.
pub fn quantize_nl(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(GROUP).zip(out.chunks_exact_mut(18)).enumerate() {
        let mean_square = sum_squares(x) * (2.0 / GROUP as f32);
        let scale = group_scale(x, block_importance(importance, i, GROUP), mean_square);
        put_f16(block, 0, scale);
        put_group(x, scale, &mut block[2..]);
    }
}

pub fn dequantize_nl(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(18).zip(out.chunks_exact_mut(GROUP)) {
        get_group(&block[2..], f16_at(block, 0), out);
    }
}

/// Block: f16 d; u16 of the upper two bits of eight 6-bit scales; 4 bytes of their lower four bits; 128 bytes of codes.
pub fn quantize_xs(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(136)).enumerate() {
        block.fill(0);
        let importance = block_importance(importance, i, SUPER);
        let mean_square = sum_squares(x) * (2.0 / SUPER as f32);
        let mut scales = [0.0f32; SUPER / GROUP];
        let mut max_scale = 0.0f32;
        for (ib, x) in x.chunks_exact(GROUP).enumerate() {
            scales[ib] = group_scale(x, block_importance(importance, ib, GROUP), mean_square);
            if scales[ib].abs() > max_scale.abs() {
                max_scale = scales[ib];
            }
        }
        let d = -max_scale / 32.0;
        put_f16(block, 0, d);
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let mut upper = 0u16;
        for (ib, x) in x.chunks_exact(GROUP).enumerate() {
            let l = nearest_int(inverse * scales[ib]).clamp(-32, 31);
            put_group(x, d * l as f32, &mut block[8 + 16 * ib..24 + 16 * ib]);
            let code = (l + 32) as u8;
            block[4 + ib / 2] |= (code & 15) << (4 * (ib % 2));
            upper |= u16::from(code >> 4) << (2 * ib);
        }
        block[2..4].copy_from_slice(&upper.to_le_bytes());
    }
}

pub fn dequantize_xs(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(136).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        let upper = get_u16(block, 2);
        for (ib, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let low = u16::from(block[4 + ib / 2] >> (4 * (ib % 2)) & 15);
            let l = low | (upper >> (2 * ib) & 3) << 4;
            get_group(&block[8 + 16 * ib..24 + 16 * ib], d * (f32::from(l) - 32.0), out);
        }
    }
}
