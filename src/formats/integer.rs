//! GPTQ, AWQ and compressed-tensors' pack-quantized: integers in 32-bit words, and the plain rounding that
//! compressed-tensors does. Layouts of AutoGPTQ, AutoAWQ (GEMM) and compressed-tensors.

use super::Module;
use super::bits::{pack_rows, to_bytes, transpose, words};
use super::minifloat::{self, epsilon, round_all, rounded};
use crate::feedback::int::Codes;
use crate::quant::GgmlType;
use crate::{Error, Result};
use rayon::prelude::*;

/// AWQ's order of columns within a word.
pub(super) const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// `g_idx`, `qweight`, `qzeros`, `scales`; `minus_one` stores zero points less one.
pub(super) fn gptq(codes: &Codes, minus_one: bool) -> Result<Vec<Vec<u8>>> {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let g_idx: Vec<u32> = match &codes.g_idx {
        Some(g_idx) => g_idx.clone(),
        None => (0..k).map(|k| (k / codes.group) as u32).collect(),
    };
    let mut zeros = transpose(&codes.zeros, n, groups);
    if minus_one {
        if zeros.contains(&0) {
            let error = Error::bad_input("has a zero point of 0, which the first GPTQ layout cannot hold");
            return Err(error.hint("use the second layout (v2), or symmetric groups"));
        }
        zeros.iter_mut().for_each(|z| *z -= 1);
    }
    let packed = pack_rows(&codes.codes, k, codes.bits);
    Ok(vec![
        to_bytes(&g_idx),
        to_bytes(&transpose(&packed, n, words(k, codes.bits))),
        to_bytes(&pack_rows(&zeros, n, codes.bits)),
        minifloat::to_bytes(GgmlType::F16, &transpose(&codes.scales, n, groups)),
    ])
}

/// `qweight`, `qzeros`, `scales`.
pub(super) fn awq(codes: &Codes) -> Vec<Vec<u8>> {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let pack = |mut by_input: Vec<u8>| {
        for eight in by_input.as_chunks_mut::<8>().0 {
            *eight = AWQ_ORDER.map(|i| eight[i]);
        }
        to_bytes(&pack_rows(&by_input, n, 4))
    };
    vec![
        pack(transpose(&codes.codes, n, k)),
        pack(transpose(&codes.zeros, n, groups)),
        minifloat::to_bytes(GgmlType::F16, &transpose(&codes.scales, n, groups)),
    ]
}

/// `weight_packed`, `weight_scale`, `weight_shape`, and `weight_zero_point` unless symmetric.
pub(super) fn pack_quantized(codes: &Codes, symmetric: bool, dtype: GgmlType) -> Vec<Vec<u8>> {
    let (n, k, groups) = (codes.rows, codes.cols, codes.groups());
    let mut data = vec![
        to_bytes(&pack_rows(&codes.codes, k, codes.bits)),
        minifloat::to_bytes(dtype, &codes.scales),
        [n as i64, k as i64].iter().flat_map(|d| d.to_le_bytes()).collect(),
    ];
    if !symmetric {
        let packed = pack_rows(&transpose(&codes.zeros, n, groups), n, codes.bits);
        data.push(to_bytes(&transpose(&packed, groups, words(n, codes.bits))));
    }
    data
}

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
