//! What ggml's CPU kernels do to activations before a product with quantized weights: round them to 8 bits, block by
//! block (`quantize_row_q8_0`, `quantize_row_q8_K`). For comparing with llama.cpp; exact `f32` is the default elsewhere.

use crate::quant::GgmlType;

/// Weights per block of rounded activations.
const SHORT: usize = 32;
const LONG: usize = 256;

/// The block length that ggml's kernels for weights of type `ty` round with; `None` if they do not.
pub(super) fn block_for(ty: GgmlType) -> Option<usize> {
    match ty.block() {
        1 => None,
        LONG => Some(LONG),
        _ => Some(SHORT),
    }
}

/// `x` after rounding in blocks of `block`, which divides its row length.
pub(super) fn rounded(x: &[f32], block: usize) -> Vec<f32> {
    let round_block = if block == LONG { round_long } else { round_short };
    let mut x = x.to_vec();
    x.chunks_exact_mut(block).for_each(round_block);
    x
}

/// Q8_0: a half-precision scale, ties away from zero.
fn round_short(x: &mut [f32]) {
    let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let stored = half::f16::from_f32(scale).to_f32();
    x.iter_mut().for_each(|v| *v = (*v * inverse).round() * stored);
}

/// Q8_K: a single-precision scale with the sign of the largest element, ties to even.
fn round_long(x: &mut [f32]) {
    let largest = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    if largest == 0.0 {
        return x.fill(0.0);
    }
    let inverse = -127.0 / largest;
    let scale = 1.0 / inverse;
    x.iter_mut().for_each(|v| *v = (*v * inverse).round_ties_even().min(127.0) * scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_round_to_multiples_of_their_scale() {
        for block in [32, 256] {
            let x: Vec<f32> = (0..2 * block).map(|i| ((i * 37) % 101) as f32 - 50.0).chain(vec![0.0; block]).collect();
            let y = rounded(&x, block);
            for (x, y) in x.chunks(block).zip(y.chunks(block)) {
                let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                // Half a step, and up to 127 steps times the rounding of a half-precision scale.
                let bound = scale * (0.5 + 127.0 / 2048.0);
                for (x, y) in x.iter().zip(y) {
                    assert!((x - y).abs() <= bound, "{x} became {y}");
                    let steps = if scale > 0.0 { y / scale } else { *y };
                    assert!((steps - steps.round()).abs() < 0.1, "{y} is no multiple of {scale}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_those_of_ggmls_kernels() {
        let types =
            [GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_1, GgmlType::IQ4_NL, GgmlType::Q4_K, GgmlType::IQ2_XXS];
        assert_eq!(types.map(block_for), [None, Some(32), Some(32), Some(32), Some(256), Some(256)]);
    }
}
