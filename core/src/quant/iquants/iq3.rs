//! IQ3_XXS and IQ3_S: four weights at a time are a point of a codebook, with their signs. Block layouts and constants are
//! ggml's; the search is in `search.rs`.

use super::codes;
use super::grids;
use super::iq2::{even_signs, put_point, put_scales};
use super::numeric::{SUPER, block_importance, get_u32, own_square, scale_code};
use super::steps::{Refit, Search, Steps};
use crate::quant::{f16_at, put_f16};

/// What the digits of a point are worth: in half scales, and in scales.
pub const LEVELS_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
pub const LEVELS_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

const XXS: Search<4> = Search {
    grid: grids::iq3_xxs,
    group: 32,
    even_signs: true,
    mean_square_factor: 2.0,
    plain: own_square,
    zero_below: 1e-8,
    tries: 15,
    step: 0.2,
    refit: Refit::OffGrid,
    fitted_start: false,
};

const S: Search<4> = Search {
    grid: grids::iq3_s,
    even_signs: false,
    // The smallest positive float: only a group of zeros is stored as zero.
    zero_below: f32::from_bits(1),
    tries: 9,
    refit: Refit::AllIfOffGrid,
    ..XXS
};

/// Block: f16 d; 64 indices; then for every 32 weights 4 x 7 signs with the 4-bit scale on top.
#[inline(always)]
pub fn quantize_xxs<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(98)).enumerate() {
        block.fill(0);
        let fitted = XXS.fit::<P>(x, block_importance(importance, i, SUPER));
        if fitted.max_scale == 0.0 {
            continue;
        }
        let d = fitted.max_scale / 31.0;
        // ggml stores a slightly larger scale than it rounds with.
        put_f16(block, 0, d * 1.0125);
        let (points, rest) = block[2..].split_at_mut(64);
        for (byte, point) in points.iter_mut().zip(fitted.points) {
            *byte = point as u8;
        }
        for (ib, bytes) in rest.chunks_exact_mut(4).enumerate() {
            let mut word = u32::from(scale_code(fitted.scales[ib], 1.0 / d, 15)) << 28;
            for k in 0..4 {
                word |= u32::from(fitted.signs[4 * ib + k]) << (7 * k);
            }
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

pub fn dequantize_xxs(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(98).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let word = get_u32(block, 66 + k / 4 * 4);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let signs = even_signs((word >> (7 * (k % 4))) as u8 & 0x7f);
            for (half, out) in out.chunks_exact_mut(4).enumerate() {
                let code = codes::IQ3_XXS[usize::from(block[2 + 2 * k + half])];
                put_point::<4>(code, 3, &LEVELS_XXS, signs >> (4 * half), scale, out);
            }
        }
    }
}

/// Block: f16 d; 64 low bytes of indices; 8 bytes of their upper bits; 32 bytes of signs; 4 bytes of 4-bit scales.
#[inline(always)]
pub fn quantize_s<P: Steps>(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (i, (x, block)) in row.chunks_exact(SUPER).zip(out.chunks_exact_mut(110)).enumerate() {
        block.fill(0);
        let fitted = S.fit::<P>(x, block_importance(importance, i, SUPER));
        // ggml does not step over the place of a group of zeros, so what follows one moves up in all but the upper bits.
        let stored = (0..8).filter(|ib| !fitted.zero[*ib]);
        for (place, ib) in stored.enumerate() {
            for (k, point) in fitted.points[8 * ib..8 * ib + 8].iter().enumerate() {
                block[2 + 8 * place + k] = *point as u8;
                block[66 + ib] |= ((point >> 8) << k) as u8;
            }
            block[74 + 4 * place..78 + 4 * place].copy_from_slice(&fitted.signs[4 * ib..4 * ib + 4]);
        }
        if fitted.max_scale == 0.0 {
            continue;
        }
        let d = fitted.max_scale / 31.0;
        // ggml stores a slightly larger scale than it rounds with.
        put_f16(block, 0, d * 1.033);
        put_scales(&fitted.scales, d, &mut block[106..]);
    }
}

pub fn dequantize_s(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.chunks_exact(110).zip(out.chunks_exact_mut(SUPER)) {
        let d = f16_at(block, 0);
        for (k, out) in out.chunks_exact_mut(4).enumerate() {
            let scale_code = block[106 + k / 16] >> (4 * (k / 8 % 2)) & 15;
            let scale = d * f32::from(1 + 2 * scale_code);
            let index = usize::from(block[2 + k]) | usize::from(block[66 + k / 8] >> (k % 8) & 1) << 8;
            let signs = block[74 + k / 2] >> (4 * (k % 2));
            put_point::<4>(codes::IQ3_S[index], 3, &LEVELS_S, signs, scale, out);
        }
    }
}
