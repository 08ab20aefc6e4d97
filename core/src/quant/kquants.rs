//! The K-quants, Q2_K to Q6_K: super-blocks of 256 weights whose sub-blocks have integer scales. The searches are in
//! [`super::search`]; here is what goes around them in ggml-quants.c: error weights, super-block scales, coding with the
//! rounded scales, packing and unpacking.

use super::search::{EPS, Grid, nearest_int, q3, qkx, qp, qx};
use super::{f16_at, put_f16, round_f16};
use crate::isa::multiversion;

/// Weights per super-block (ggml's `QK_K`).
const QK: usize = 256;

/// Super-blocks of a row with their importance and their place in the output.
fn super_blocks<'a>(
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    bytes: usize,
) -> impl Iterator<Item = (&'a [f32; QK], Option<&'a [f32; QK]>, &'a mut [u8])> {
    let x = row.as_chunks::<QK>().0;
    let importance = importance.map(|w| w.as_chunks::<QK>().0);
    x.iter().zip(out.chunks_exact_mut(bytes)).enumerate().map(move |(i, (x, out))| (x, importance.map(|w| &w[i]), out))
}

fn sub_block<const N: usize>(x: &[f32; QK], j: usize) -> &[f32; N] {
    &x.as_chunks::<N>().0[j]
}

fn sum(x: impl IntoIterator<Item = f32>) -> f32 {
    x.into_iter().fold(0.0, |s, v| s + v)
}

/// `importance · sqrt(σ² + x²)` (ggml's empirical weight of an error).
fn error_weights<const N: usize>(x: &[f32; N], importance: &[f32; N], sigma2: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (sigma2 + x[i] * x[i]).sqrt())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| if *v > m { *v } else { m })
}

/// The value of largest magnitude; the first wins a tie.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m })
}

/// Codes of one sub-block for `x ≈ d · code − m`. With `d` zero the search's codes stay, as in ggml.
fn code_asymmetric<const N: usize>(x: &[f32; N], d: f32, m: f32, top: i32, codes: &mut [u8]) {
    if d != 0.0 {
        for i in 0..N {
            codes[i] = nearest_int((x[i] + m) / d).clamp(0, top) as u8;
        }
    }
}

/// Codes of one sub-block for `x ≈ d · (code − half)`.
fn code_symmetric<const N: usize>(x: &[f32; N], d: f32, half: i32, codes: &mut [u8]) {
    if d != 0.0 {
        for i in 0..N {
            codes[i] = (nearest_int(x[i] / d).clamp(-half, half - 1) + half) as u8;
        }
    }
}

/// Two bits a weight, four weights of each 128 to a byte (Q2_K, low bits of Q3_K).
pub(crate) fn pack_two_bits(codes: &[u8; QK], qs: &mut [u8]) {
    for (l, qs) in codes.as_chunks::<128>().0.iter().zip(qs.chunks_exact_mut(32)) {
        for i in 0..32 {
            qs[i] = (l[i] & 3) | (l[i + 32] & 3) << 2 | (l[i + 64] & 3) << 4 | (l[i + 96] & 3) << 6;
        }
    }
}

/// Q2_K: `d · (sc & 15) · code − dmin · (sc >> 4)`, 16 sub-blocks of 16.
pub(super) fn quantize_q2_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const PLAIN: Grid = Grid { rmin: -0.5, rdelta: 0.1, steps: 15, mad: true };
    const WEIGHTED: Grid = Grid { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };
    for (x, importance, out) in super_blocks(row, importance, out, 84) {
        let mut codes = [0u8; QK];
        let (mut scales, mut mins, mut total) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        let sigma2 = sum(x.iter().map(|v| v * v)) / QK as f32;
        for (j, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let x = sub_block::<16>(x, j);
            (scales[j], mins[j]) = match importance {
                Some(w) => {
                    let weights = error_weights(x, sub_block::<16>(w, j), sigma2);
                    total[j] = sum(weights);
                    qkx(3, x, &weights, WEIGHTED, codes)
                }
                None => qkx(3, x, &x.map(f32::abs), PLAIN, codes),
            };
        }
        let (mut sc, mut sm) = ([0u8; 16], [0u8; 16]);
        let (d, dmin);
        if importance.is_some() {
            d = qp(15, &scales, &total, &mut sc);
            dmin = qp(15, &mins, &total, &mut sm);
        } else {
            let (max_scale, max_min) = (largest(&scales), largest(&mins));
            if max_scale > 0.0 {
                sc = scales.map(|s| nearest_int(15.0 / max_scale * s) as u8);
            }
            if max_min > 0.0 {
                sm = mins.map(|m| nearest_int(15.0 / max_min * m) as u8);
            }
            (d, dmin) = (max_scale / 15.0, max_min / 15.0);
        }
        for j in 0..16 {
            out[j] = sc[j] | sm[j] << 4;
        }
        put_f16(out, 80, d);
        put_f16(out, 82, dmin);
        let (d, dmin) = (round_f16(d), round_f16(dmin));
        for (j, codes) in codes.chunks_exact_mut(16).enumerate() {
            let (sc, sm) = (f32::from(out[j] & 15), f32::from(out[j] >> 4));
            code_asymmetric(sub_block::<16>(x, j), d * sc, dmin * sm, 3, codes);
        }
        pack_two_bits(&codes, &mut out[16..80]);
    }
}

/// The 16 six-bit scales of Q3_K in 12 bytes: low nibbles in eight, high pairs of bits in four.
pub(crate) fn pack_q3_scales(scales: &[u8; 16], out: &mut [u8]) {
    out[..12].fill(0);
    for (j, s) in scales.iter().enumerate() {
        out[j % 8] |= (s & 15) << (4 * (j / 8));
        out[8 + j % 4] |= (s >> 4) << (2 * (j / 4));
    }
}

#[inline(always)]
pub(crate) fn unpack_q3_scale(bytes: &[u8], j: usize) -> i32 {
    let low = bytes[j % 8] >> (4 * (j / 8)) & 15;
    let high = bytes[8 + j % 4] >> (2 * (j / 4)) & 3;
    i32::from(low | high << 4) - 32
}

/// Q3_K: `d · (sc − 32) · (code − 4)`, 16 sub-blocks of 16.
pub(super) fn quantize_q3_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, importance, out) in super_blocks(row, importance, out, 110) {
        let mut codes = [0u8; QK];
        let (mut scales, mut total) = ([0f32; 16], [0f32; 16]);
        let sigma2 = 2.0 * sum(x.iter().map(|v| v * v)) / QK as f32;
        for (j, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let x = sub_block::<16>(x, j);
            scales[j] = match importance {
                Some(w) => {
                    let weights = error_weights(x, sub_block::<16>(w, j), sigma2);
                    total[j] = sum(weights);
                    qx(4, x, Some(&weights), codes)
                }
                None => q3(4, x, codes),
            };
        }
        let mut sc = [0u8; 16];
        let d = if importance.is_some() {
            qx(32, &scales, Some(&total), &mut sc)
        } else {
            let max = extreme(&scales);
            if max != 0.0 {
                let iscale = -32.0 / max;
                sc = scales.map(|s| (nearest_int(iscale * s).clamp(-32, 31) + 32) as u8);
                1.0 / iscale
            } else {
                0.0
            }
        };
        pack_q3_scales(&sc, &mut out[96..108]);
        put_f16(out, 108, d);
        let d = round_f16(d);
        for (j, codes) in codes.chunks_exact_mut(16).enumerate() {
            code_symmetric(sub_block::<16>(x, j), d * (i32::from(sc[j]) - 32) as f32, 4, codes);
        }
        out[..32].fill(0);
        for (i, code) in codes.iter_mut().enumerate() {
            if *code > 3 {
                out[i % 32] |= 1 << (i / 32);
                *code -= 4;
            }
        }
        pack_two_bits(&codes, &mut out[32..96]);
    }
}

/// The eight pairs of six-bit scale and minimum of Q4_K and Q5_K in 12 bytes.
pub(crate) fn pack_scale_min(scales: &[u8; 8], mins: &[u8; 8], out: &mut [u8]) {
    for j in 0..4 {
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        out[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
        out[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
    }
}

#[inline(always)]
pub(crate) fn unpack_scale_min(bytes: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        (bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4, bytes[j + 4] >> 4 | bytes[j] >> 6 << 4)
    }
}

/// Q4_K and Q5_K: `d · sc · code − dmin · m`, 8 sub-blocks of 32.
pub(super) fn quantize_q45_k<const BITS: i32>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    const WEIGHTED: Grid = Grid { rmin: -0.9, rdelta: 0.05, steps: 36, mad: false };
    let plain = match BITS {
        4 => Grid { rmin: -1.0, rdelta: 0.1, steps: 20, mad: false },
        _ => Grid { rmin: -0.5, rdelta: 0.1, steps: 15, mad: false },
    };
    let top = (1 << BITS) - 1;
    let bytes = if BITS == 4 { 144 } else { 176 };
    for (x, importance, out) in super_blocks(row, importance, out, bytes) {
        let mut codes = [0u8; QK];
        let (mut scales, mut mins, mut total) = ([0f32; 8], [0f32; 8], [0f32; 8]);
        let sigma2 = 2.0 * sum(x.iter().map(|v| v * v)) / QK as f32;
        for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let x = sub_block::<32>(x, j);
            (scales[j], mins[j]) = match importance {
                Some(w) => {
                    let weights = error_weights(x, sub_block::<32>(w, j), sigma2);
                    total[j] = sum(weights);
                    qkx(top, x, &weights, WEIGHTED, codes)
                }
                None => {
                    let mean = (sum(x.iter().map(|v| v * v)) / 32.0).sqrt();
                    qkx(top, x, &x.map(|v| mean + v.abs()), plain, codes)
                }
            };
        }
        let (mut sc, mut sm) = ([0u8; 8], [0u8; 8]);
        let (d, dmin);
        if importance.is_some() {
            d = qp(63, &scales, &total, &mut sc);
            dmin = qp(63, &mins, &total, &mut sm);
            // A least-squares scale can come out negative, and its code then wraps. ggml limits it in Q5_K alone; in Q4_K
            // the upper bits spill into those of another sub-block, before the weights are coded with what is stored.
            if BITS == 5 {
                (sc, sm) = (sc.map(|s| s.min(63)), sm.map(|m| m.min(63)));
            }
        } else {
            let (max_scale, max_min) = (largest(&scales), largest(&mins));
            let round = |max: f32, v: f32| {
                let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
                // ggml narrows to a byte before it takes the minimum: a negative scale becomes 63.
                (nearest_int(inverse * v) as u8).min(63)
            };
            (sc, sm) = (scales.map(|s| round(max_scale, s)), mins.map(|m| round(max_min, m)));
            (d, dmin) = (max_scale / 63.0, max_min / 63.0);
        }
        put_f16(out, 0, d);
        put_f16(out, 2, dmin);
        pack_scale_min(&sc, &sm, &mut out[4..16]);
        let (d, dmin) = (round_f16(d), round_f16(dmin));
        for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
            let (sc, sm) = unpack_scale_min(&out[4..16], j);
            code_asymmetric(sub_block::<32>(x, j), d * f32::from(sc), dmin * f32::from(sm), top, codes);
        }
        let (high, low) = out[16..].split_at_mut(if BITS == 4 { 0 } else { 32 });
        high.fill(0);
        for (k, (l, low)) in codes.as_chunks::<64>().0.iter().zip(low.chunks_exact_mut(32)).enumerate() {
            for i in 0..32 {
                low[i] = (l[i] & 15) | (l[i + 32] & 15) << 4;
            }
            for (i, high) in high.iter_mut().enumerate() {
                *high |= (l[i] >> 4) << (2 * k) | (l[i + 32] >> 4) << (2 * k + 1);
            }
        }
    }
}

/// Q6_K: `d · sc · (code − 32)`, 16 sub-blocks of 16. The importance itself is the weight of an error here.
pub(super) fn quantize_q6_k(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (x, importance, out) in super_blocks(row, importance, out, 210) {
        let mut codes = [0u8; QK];
        let mut scales = [0f32; 16];
        for (j, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            scales[j] = qx(32, sub_block::<16>(x, j), importance.map(|w| sub_block::<16>(w, j)), codes);
        }
        let max = extreme(&scales);
        if max.abs() < EPS {
            out.fill(0);
            continue;
        }
        let iscale = -128.0 / max;
        put_f16(out, 208, 1.0 / iscale);
        let d = f16_at(out, 208);
        for (j, codes) in codes.chunks_exact_mut(16).enumerate() {
            let sc = nearest_int(iscale * scales[j]).min(127) as i8;
            out[192 + j] = sc as u8;
            code_symmetric(sub_block::<16>(x, j), d * f32::from(sc), 32, codes);
        }
        let (ql, qh) = out[..192].split_at_mut(128);
        for ((l, ql), qh) in codes.as_chunks::<128>().0.iter().zip(ql.chunks_exact_mut(64)).zip(qh.chunks_exact_mut(32))
        {
            for i in 0..32 {
                ql[i] = (l[i] & 15) | (l[i + 64] & 15) << 4;
                ql[i + 32] = (l[i + 32] & 15) | (l[i + 96] & 15) << 4;
                qh[i] = l[i] >> 4 | (l[i + 32] >> 4) << 2 | (l[i + 64] >> 4) << 4 | (l[i + 96] >> 4) << 6;
            }
        }
    }
}

multiversion! {
    pub(super) fn dequantize_q2_k(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(84).zip(out.as_chunks_mut::<QK>().0) {
            let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
            for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let (dl, ml) = (d * f32::from(b[j] & 15), dmin * f32::from(b[j] >> 4));
                let (at, shift) = (16 + 32 * (j / 8) + 16 * (j % 2), 2 * (j % 8 / 2));
                for (y, q) in y.iter_mut().zip(&b[at..at + 16]) {
                    *y = dl * f32::from(q >> shift & 3) - ml;
                }
            }
        }
    }

    pub(super) fn dequantize_q3_k(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(110).zip(out.as_chunks_mut::<QK>().0) {
            let d = f16_at(b, 108);
            for (j, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let dl = d * unpack_q3_scale(&b[96..108], j) as f32;
                let (half, shift, bit) = (16 * (j % 2), 2 * (j % 8 / 2), j / 2);
                let qs = &b[32 + 32 * (j / 8) + half..][..16];
                let high = &b[half..half + 16];
                for i in 0..16 {
                    let code = (qs[i] >> shift & 3) as i8 - ((!high[i] >> bit & 1) << 2) as i8;
                    y[i] = dl * f32::from(code);
                }
            }
        }
    }

    pub(super) fn dequantize_q4_k(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(144).zip(out.as_chunks_mut::<QK>().0) {
            let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
            for (k, y) in y.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                let q = &b[16 + 32 * k..][..32];
                let ((s1, m1), (s2, m2)) = (unpack_scale_min(&b[4..16], 2 * k), unpack_scale_min(&b[4..16], 2 * k + 1));
                let (d1, d2) = (d * f32::from(s1), d * f32::from(s2));
                let (m1, m2) = (dmin * f32::from(m1), dmin * f32::from(m2));
                for i in 0..32 {
                    y[i] = d1 * f32::from(q[i] & 15) - m1;
                    y[i + 32] = d2 * f32::from(q[i] >> 4) - m2;
                }
            }
        }
    }

    pub(super) fn dequantize_q5_k(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(176).zip(out.as_chunks_mut::<QK>().0) {
            let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
            let high = &b[16..48];
            for (k, y) in y.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                let q = &b[48 + 32 * k..][..32];
                let (bit1, bit2) = (1u8 << (2 * k), 2u8 << (2 * k));
                let ((s1, m1), (s2, m2)) = (unpack_scale_min(&b[4..16], 2 * k), unpack_scale_min(&b[4..16], 2 * k + 1));
                let (d1, d2) = (d * f32::from(s1), d * f32::from(s2));
                let (m1, m2) = (dmin * f32::from(m1), dmin * f32::from(m2));
                for i in 0..32 {
                    y[i] = d1 * f32::from((q[i] & 15) + if high[i] & bit1 != 0 { 16 } else { 0 }) - m1;
                    y[i + 32] = d2 * f32::from((q[i] >> 4) + if high[i] & bit2 != 0 { 16 } else { 0 }) - m2;
                }
            }
        }
    }

    pub(super) fn dequantize_q6_k(bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(210).zip(out.as_chunks_mut::<QK>().0) {
            let d = f16_at(b, 208);
            for (k, y) in y.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                let (ql, qh) = (&b[64 * k..][..64], &b[128 + 32 * k..][..32]);
                let scale: [f32; 8] = std::array::from_fn(|j| d * f32::from(b[192 + 8 * k + j] as i8));
                for i in 0..32 {
                    let code = |low: u8, shift: u8| f32::from((low | (qh[i] >> shift & 3) << 4) as i8 - 32);
                    y[i] = scale[i / 16] * code(ql[i] & 15, 0);
                    y[i + 32] = scale[2 + i / 16] * code(ql[i + 32] & 15, 2);
                    y[i + 64] = scale[4 + i / 16] * code(ql[i] >> 4, 4);
                    y[i + 96] = scale[6 + i / 16] * code(ql[i + 32] >> 4, 6);
                }
            }
        }
    }
}
