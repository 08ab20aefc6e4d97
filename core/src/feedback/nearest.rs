//! Integers without error feedback: what tests and benches compare with.

use super::ScaleType;
use super::int::{Codes, IntSpec};
use crate::simd::F32x16;
use rayon::prelude::*;

/// Rounds `w` (`[rows, cols]`, finite) to nearest with scales from the extremes, every step in the arithmetic of the
/// scale's type, as compressed-tensors does: bit for bit its result when `w` is of that type.
pub fn nearest(w: &[f32], rows: usize, cols: usize, spec: &IntSpec) -> Codes {
    let (groups, middle, max) = (spec.groups(cols), spec.middle(), spec.max_code());
    let step = |v: f32| spec.scale.round(F32x16::splat(v)).0[0];
    // What stands in for a scale of zero: the type's machine epsilon.
    let epsilon = match spec.scale {
        ScaleType::F16 => 9.765_625e-4,
        ScaleType::Bf16 => 7.812_5e-3,
        ScaleType::F32 => f32::EPSILON,
    };
    let (mut codes, mut scales, mut zeros) = (vec![0; rows * cols], vec![0.0; rows * groups], vec![0; rows * groups]);
    let out = codes.par_chunks_mut(cols.max(1)).zip(scales.par_chunks_mut(groups.max(1)));
    let out = out.zip(zeros.par_chunks_mut(groups.max(1))).zip(w.par_chunks(cols.max(1)));
    out.for_each(|(((codes, scales), zeros), w)| {
        let by_group = codes.chunks_mut(spec.group).zip(w.chunks(spec.group)).zip(scales.iter_mut().zip(zeros));
        for ((codes, w), (scale, zero)) in by_group {
            let (low, high) = w.iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let width = if spec.symmetric { step(high.max(-low) / (max / 2.0)) } else { step(step(high - low) / max) };
            *scale = if width == 0.0 { epsilon } else { width };
            let shift = if spec.symmetric {
                0.0
            } else {
                let z = step(-middle - step(low / *scale)).round_ties_even();
                z.clamp(f32::from(spec.least_zero) - middle, max - middle)
            };
            *zero = (shift + middle) as u8;
            for (code, w) in codes.iter_mut().zip(w) {
                let v = step(step(w / *scale) + shift).round_ties_even() + middle;
                *code = v.clamp(0.0, max) as u8;
            }
        }
    });
    Codes { rows, cols, bits: spec.bits, group: spec.group, codes, scales, zeros, g_idx: None }
}
