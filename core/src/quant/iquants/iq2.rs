//! IQ2_XXS, IQ2_XS and IQ2_S: eight weights at a time are a point of a codebook (magnitudes 8, 25, 43) and their signs.
//! Block layouts and constants are ggml's; the search is in `search.rs`.

use super::codes;
use super::grids::{self, unpack};
use super::numeric::{SUPER, block_importance, get_u16, get_u32, own_square, scale_code};
use super::steps::{Refit, Search, Steps};
use crate::quant::{f16_at, put_f16};

/// What the digits of a point are worth, in quarters of the scale.
pub const LEVELS: [f32; 3] = [8.0, 25.0, 43.0];

const XXS: Search<8> = Search {
    grid: grids::iq2_xxs,
    group: 32,
    even_signs: true,
    mean_square_factor: 1.0,
    plain: own_square,
    zero_below: 1e-15,
    tries: 6,
    step: 0.1,
    refit: Refit::Always,
    fitted_start: true,
};

const XS: Search<8> =
    Search { grid: grids::iq2_xs, group: 16, tries: 9, refit: Refit::OffGrid, fitted_start: false, ..XXS };

const S: Search<8> = Search {
    grid: grids::iq2_s,
    even_signs: false,
    mean_square_factor: 2.0,
    plain: |x, mean_square| 0.25 * mean_square + x * x,
    zero_below: 1e-8,
    ..XS
};

/// Seven stored signs and the eighth that makes the number of minus signs even.
pub fn even_signs(stored: u8) -> u8 {
    stored | (stored.count_ones() as u8 & 1) << 7
}

/// Writes `scale * level * sign` for one grid point; bit i of `signs` is set where weight i is negative.
pub fn put_point<const N: usize>(code: u16, bits: usize, levels: &[f32], signs: u8, scale: f32, out: &mut [f32]) {
    for (i, (out, digit)) in out.iter_mut().zip(unpack::<N>(code, bits)).enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * levels[usize::from(digit)] * sign;
    }
}

fn point_scale(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code)) * 0.25
}

/// Block: f16 d, then for every 32 weights four bytes of indices and 4 x 7 signs with the 4-bit scale on top.
#[inline(always)]
pub fn quantize_xxs<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(66)).enumerate() {
        block.fill(0);
        let fitted = XXS.fit::<P>(x, block_importance(importance, i, SUPER));
        if fitted.max_scale == 0.0 {
            continue;
        }
        let d = fitted.max_scale / 31.0;
        put_f16(block, 0, d);
        for (ib, bytes) in block[2..].chunks_exact_mut(8).enumerate() {
            let mut high = u32::from(scale_code(fitted.scales[ib], 1.0 / d, 15)) << 28;
            let (indices, word) = bytes.split_at_mut(4);
            for (k, index) in indices.iter_mut().enumerate() {
                *index = fitted.points[4 * ib + k] as u8;
                high |= u32::from(fitted.signs[4 * ib + k]) << (7 * k);
            }
            word.copy_from_slice(&high.to_le_bytes());
        }
    }
}

pub fn dequantize_xxs(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(66).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (group, out) in block[2..].chunks_exact(8).zip(out.chunks_exact_mut(32)) {
            let high = get_u32(group, 4);
            let scale = point_scale(d, (high >> 28) as u8);
            for (k, out) in out.chunks_exact_mut(8).enumerate() {
                let signs = even_signs((high >> (7 * k)) as u8 & 0x7f);
                put_point::<8>(codes::IQ2_XXS[usize::from(group[k])], 2, &LEVELS, signs, scale, out);
            }
        }
    }
}

/// Block: f16 d; 32 x u16 (9-bit index, 7 signs); eight bytes of 4-bit scales, one per 16 weights.
#[inline(always)]
pub fn quantize_xs<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(74)).enumerate() {
        block.fill(0);
        let fitted = XS.fit::<P>(x, block_importance(importance, i, SUPER));
        if fitted.max_scale == 0.0 {
            continue;
        }
        let d = fitted.max_scale / 31.0;
        put_f16(block, 0, d);
        let (points, scales) = block[2..].split_at_mut(64);
        for (k, bytes) in points.chunks_exact_mut(2).enumerate() {
            bytes.copy_from_slice(&(fitted.points[k] | u16::from(fitted.signs[k]) << 9).to_le_bytes());
        }
        put_scales(&fitted.scales, d, scales);
    }
}

/// Two 4-bit scales a byte, the first in the low half.
pub fn put_scales(values: &[f32], d: f32, out: &mut [u8]) {
    for (pair, byte) in values.chunks_exact(2).zip(out) {
        *byte = scale_code(pair[0], 1.0 / d, 15) | scale_code(pair[1], 1.0 / d, 15) << 4;
    }
}

pub fn dequantize_xs(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(74).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let q = get_u16(block, 2 + 2 * k);
            let scale = point_scale(d, block[66 + k / 4] >> (4 * (k / 2 % 2)) & 15);
            let signs = even_signs((q >> 9) as u8);
            put_point::<8>(codes::IQ2_XS[usize::from(q & 511)], 2, &LEVELS, signs, scale, out);
        }
    }
}

/// Block: f16 d; 32 low bytes of indices; 32 bytes of signs; 8 bytes of the indices' upper two bits; 8 bytes of scales.
#[inline(always)]
pub fn quantize_s<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(82)).enumerate() {
        block.fill(0);
        let fitted = S.fit::<P>(x, block_importance(importance, i, SUPER));
        for (k, point) in fitted.points[..32].iter().enumerate() {
            block[2 + k] = *point as u8;
            block[34 + k] = fitted.signs[k];
            block[66 + k / 4] |= ((point >> 8) << (2 * (k % 4))) as u8;
        }
        if fitted.max_scale == 0.0 {
            continue;
        }
        let d = fitted.max_scale / 31.0;
        // ggml stores a slightly smaller scale than it rounds with.
        put_f16(block, 0, d * 0.9875);
        put_scales(&fitted.scales, d, &mut block[74..]);
    }
}

pub fn dequantize_s(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(82).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let upper = usize::from(block[66 + k / 4] >> (2 * (k % 4)) & 3);
            let index = usize::from(block[2 + k]) | upper << 8;
            let scale = point_scale(d, block[74 + k / 4] >> (4 * (k / 2 % 2)) & 15);
            put_point::<8>(codes::IQ2_S[index], 2, &LEVELS, block[34 + k], scale, out);
        }
    }
}
