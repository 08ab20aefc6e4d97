//! The plain rounding to integers in groups that GPTQ, AWQ and compressed-tensors' pack-quantized share: compressed-tensors'
//! own. How the integers are packed is each tool's matter.

use super::{Module, Spec};
use crate::dtype::GgmlType;
use crate::feedback::int::Codes;
use crate::minifloat::{epsilon, round_all, rounded};
use rayon::prelude::*;

/// Rounds to nearest as compressed-tensors' `calculate_qparams` and `_quantize` do, every step in the checkpoint's type.
/// `group` divides the columns.
pub fn nearest(module: &Module, bits: u8, group: usize, symmetric: bool) -> Codes {
    let (rows, cols, dtype) = (module.rows, module.cols, module.dtype);
    let groups = cols / group;
    let (mut codes, mut scales) = (vec![0; rows * cols], vec![0.0; rows * groups]);
    let mut zeros = vec![0; rows * groups];
    let in_groups = codes.par_chunks_mut(group).zip(&mut scales).zip(&mut zeros);
    in_groups.zip(module.weights.par_chunks(group)).with_min_len(64).for_each(|(((codes, scale), zero), w)| {
        (*scale, *zero) = round_group(w, bits, symmetric, dtype, codes);
    });
    Codes { rows, cols, bits, group, codes, scales, zeros, g_idx: None }
}

/// [`nearest`] on the grid of `spec`.
pub(super) fn on_grid(spec: &Spec, module: &Module) -> Codes {
    nearest(module, spec.bits, spec.group_of(module.cols), spec.symmetric)
}

/// Rounds one group and returns its scale and its zero point.
fn round_group(w: &[f32], bits: u8, symmetric: bool, dtype: GgmlType, codes: &mut [u8]) -> (f32, u8) {
    let top = ((1u32 << bits) - 1) as f32;
    let half = (1u32 << (bits - 1)) as f32;
    let (min, max) = w.iter().fold((0f32, 0f32), |(min, max), w| (min.min(*w), max.max(*w)));
    let (mut scale, mut zero) = if symmetric {
        (rounded(dtype, max.max(-min) / (top / 2.0)), 0.0)
    } else {
        let scale = rounded(dtype, rounded(dtype, max - min) / top);
        let zero = rounded(dtype, -half - rounded(dtype, min / scale)).clamp(-half, half - 1.0).round_ties_even();
        (scale, zero)
    };
    if scale == 0.0 {
        (scale, zero) = (epsilon(dtype), 0.0);
    }
    const STEP: usize = 256;
    let mut buffer = [0.0; STEP];
    for (w, codes) in w.chunks(STEP).zip(codes.chunks_mut(STEP)) {
        let scaled = &mut buffer[..w.len()];
        scaled.iter_mut().zip(w).for_each(|(s, w)| *s = w / scale);
        round_all(dtype, scaled);
        if zero != 0.0 {
            scaled.iter_mut().for_each(|s| *s += zero);
            round_all(dtype, scaled);
        }
        for (code, s) in codes.iter_mut().zip(scaled) {
            *code = (s.round_ties_even().clamp(-half, half - 1.0) + half) as u8;
        }
    }
    (scale, (zero + half) as u8)
}
