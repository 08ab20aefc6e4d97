//! What engines do to activations before a product with quantized weights. ggml's CPU kernels round them to 8 bits, block
//! by block (`quantize_row_q8_0`, `quantize_row_q8_K`), which is for comparing with llama.cpp. Some checkpoint formats
//! have the activations rounded too, which is part of what the checkpoint is worth. Exact `f32` everywhere else.

use crate::minifloat::{E2M1, E2M1_MAX, E4M3_MAX, e4m3, to_e2m1, to_e4m3};
use crate::packed::Input;
use crate::quant::GgmlType;
use rayon::prelude::*;

/// What happens to the activations of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rounding {
    None,
    /// ggml's rounding in blocks of this length, where it divides the rows.
    Ggml(usize),
    /// What the checkpoint's format says.
    Format(Input),
    /// To bfloat16, weights as well, inside the product.
    Bf16,
}

impl Rounding {
    /// `x` (`[n, cols]`) after rounding; `None` if nothing changes.
    pub(super) fn apply(self, x: &[f32], cols: usize) -> Option<Vec<f32>> {
        match self {
            Rounding::Ggml(block) if cols.is_multiple_of(block) => Some(rounded(x, block)),
            Rounding::Format(Input::Int8Mixed { threshold }) => Some(mixed(x, cols, threshold)),
            Rounding::Format(input) if input != Input::Exact => {
                let mut x = x.to_vec();
                x.par_chunks_exact_mut(cols).with_min_len(8).for_each(|row| round_row(row, input));
                Some(x)
            }
            _ => None,
        }
    }
}

/// LLM.int8() (Dettmers et al. 2022) as bitsandbytes does it, which rounds to half precision before: a channel with an
/// outlier in any row keeps its numbers, the others become integers under the largest number of the row that is none. As
/// there, the result depends on which rows come together: an evaluation batches whole chunks.
fn mixed(x: &[f32], cols: usize, threshold: f32) -> Vec<f32> {
    let half = |v: f32| half::f16::from_f32(v).to_f32();
    let mut kept = vec![false; cols];
    for row in x.chunks_exact(cols) {
        kept.iter_mut().zip(row).for_each(|(kept, v)| *kept |= half(*v).abs() >= threshold);
    }
    let mut rounded = x.to_vec();
    rounded.par_chunks_exact_mut(cols).with_min_len(8).for_each(|row| {
        let usual = row.iter().map(|v| half(*v).abs()).filter(|v| *v < threshold);
        let largest = usual.fold(0f32, f32::max).max(f32::MIN_POSITIVE);
        for (v, _) in row.iter_mut().zip(&kept).filter(|(_, kept)| !**kept) {
            *v = (half(*v) * (127.0 / largest)).round_ties_even() * (largest / 127.0);
        }
    });
    rounded
}

/// One token's activations, as vLLM's kernels round them.
fn round_row(x: &mut [f32], input: Input) {
    let largest = |x: &[f32]| x.iter().fold(0f32, |max, v| max.max(v.abs()));
    match input {
        Input::Exact | Input::Int8Mixed { .. } => {}
        Input::Fp8 { group } => {
            for x in x.chunks_mut(group.unwrap_or(usize::MAX).max(1)) {
                let scale = (largest(x) / E4M3_MAX).max(f32::MIN_POSITIVE);
                x.iter_mut().for_each(|v| *v = e4m3(to_e4m3(*v / scale)) * scale);
            }
        }
        Input::Fp8Static { scale } => x.iter_mut().for_each(|v| *v = e4m3(to_e4m3(*v / scale)) * scale),
        Input::Int8 => {
            let scale = (largest(x) / 127.0).max(f32::MIN_POSITIVE);
            x.iter_mut().for_each(|v| *v = (*v / scale).round_ties_even() * scale);
        }
        Input::NvFp4 { global } => {
            for x in x.chunks_mut(16) {
                let scale = e4m3(to_e4m3(global * (largest(x) / E2M1_MAX))) / global;
                let code = |v: f32| if scale > 0.0 { to_e2m1(v / scale) } else { 0 };
                x.iter_mut().for_each(|v| *v = E2M1[usize::from(code(*v))] * scale);
            }
        }
    }
}

/// Activations in a block of Q8_K.
const LONG: usize = 256;

/// The block length that ggml's kernels for weights of type `ty` round with; `None` if they do not.
pub(super) fn block_for(ty: GgmlType) -> Option<usize> {
    ty.info().activations.block()
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

    /// Every format stays within half of its own step, and what it can hold it leaves alone.
    #[test]
    fn formats_round_to_what_they_can_hold() {
        let x: Vec<f32> = (0..256).map(|i| ((i * 37) % 101) as f32 / 8.0 - 6.0).collect();
        let global = 2688.0 / 6.5;
        for (input, relative) in [
            (Input::Fp8 { group: None }, 1.0 / 16.0),
            (Input::Fp8 { group: Some(128) }, 1.0 / 16.0),
            (Input::Fp8Static { scale: 6.5 / 448.0 }, 1.0 / 16.0),
            (Input::Int8, 1.0 / 254.0),
            (Input::NvFp4 { global }, 0.18),
        ] {
            let once = Rounding::Format(input).apply(&x, 256).unwrap();
            for (x, y) in x.iter().zip(&once) {
                let bound = if input == Input::Int8 { 6.7 * relative } else { x.abs() * relative + 0.3 * relative };
                assert!(
                    (x - y).abs() <= bound.max(if relative > 0.1 { 1.1 } else { 0.0 }),
                    "{input:?}: {x} became {y}"
                );
            }
            let twice = Rounding::Format(input).apply(&once, 256).unwrap();
            assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{input:?}");
        }
        assert_eq!(Rounding::Format(Input::Exact).apply(&x, 256), None);
        assert_eq!(Rounding::Ggml(32).apply(&x, 100), None);
    }

    #[test]
    fn channels_with_outliers_stay_as_they_are() {
        // Channel 1 has an outlier in the second row.
        let x = [2.56, 5.0, 0.013, 0.0, -1.27, 6.5, 0.004, 0.006];
        let y = Rounding::Format(Input::Int8Mixed { threshold: 6.0 }).apply(&x, 4).unwrap();
        // In the first row 5.0 is the largest that is no outlier.
        let want = [65.0 * 5.0 / 127.0, 5.0, 0.0, 0.0, -1.27, 6.5, 0.0, 0.01];
        assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-3), "{y:?}");
        assert_eq!((y[1], y[5]), (5.0, 6.5));
    }

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
