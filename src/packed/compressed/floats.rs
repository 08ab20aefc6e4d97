//! The eight- and four-bit formats of compressed-tensors: FP8 by row, block and tensor, INT8 by row, NVFP4 and MXFP4.
//! Rounding follows `calculate_qparams`, `generate_gparam` and `_quantize`, each step in the type that torch has there.

use super::FP8_BLOCK;
use crate::dtype::GgmlType;
use crate::feedback::fp4::Fp4Spec;
use crate::minifloat::{
    self, E2M1, E2M1_MAX, E4M3_MAX, e4m3, e8m0, epsilon, largest, round_all, rounded, to_e2m1, to_e4m3,
};
use crate::packed::bits::{pack_rows, to_bytes};
use crate::packed::{Data, Feedback, Module, Piece, ScaleRule, Spec};
use crate::{Error, Result};
use rayon::prelude::*;

/// `largest / top` in `dtype`; where that is zero, the type's epsilon.
fn scale_for(largest: f32, top: f32, dtype: GgmlType) -> f32 {
    let scale = rounded(dtype, largest / top);
    if scale == 0.0 { epsilon(dtype) } else { scale }
}

/// `w / scale` in `dtype`, coded one by one.
fn code_row(w: &[f32], scale: f32, dtype: GgmlType, out: &mut [u8], code: impl Fn(f32) -> u8) {
    const STEP: usize = 256;
    let mut buffer = [0.0; STEP];
    for (w, out) in w.chunks(STEP).zip(out.chunks_mut(STEP)) {
        let scaled = &mut buffer[..w.len()];
        scaled.iter_mut().zip(w).for_each(|(s, w)| *s = w / scale);
        round_all(dtype, scaled);
        out.iter_mut().zip(scaled).for_each(|(out, s)| *out = code(*s));
    }
}

/// A scale per row: codes and scales.
fn by_row(m: &Module, top: f32, code: impl Fn(f32) -> u8 + Sync) -> Data {
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0.0; m.rows];
    let rows = codes.par_chunks_mut(m.cols).zip(&mut scales).zip(m.weights.par_chunks(m.cols));
    rows.for_each(|((codes, scale), w)| {
        *scale = scale_for(largest(w), top, m.dtype);
        code_row(w, *scale, m.dtype, codes, &code);
    });
    vec![codes, minifloat::to_bytes(m.dtype, &scales)]
}

/// `weight`, `weight_scale`.
pub(super) fn fp8_rows(m: &Module) -> Data {
    by_row(m, E4M3_MAX, to_e4m3)
}

/// `weight`, `weight_scale`.
pub(super) fn int8_rows(m: &Module) -> Data {
    by_row(m, 127.5, |s| s.clamp(-128.0, 127.0).round_ties_even() as i8 as u8)
}

/// `weight`, `weight_scale`.
pub(super) fn fp8_blocks(m: &Module) -> Data {
    let across = m.cols.div_ceil(FP8_BLOCK);
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0.0; m.rows.div_ceil(FP8_BLOCK) * across];
    let bands = codes.par_chunks_mut(FP8_BLOCK * m.cols).zip(m.weights.par_chunks(FP8_BLOCK * m.cols));
    bands.zip(scales.par_chunks_mut(across)).for_each(|((codes, w), scales)| {
        for (block, scale) in scales.iter_mut().enumerate() {
            let columns = block * FP8_BLOCK..((block + 1) * FP8_BLOCK).min(m.cols);
            let max = w.chunks(m.cols).fold(0.0, |max: f32, row| max.max(largest(&row[columns.clone()])));
            *scale = scale_for(max, E4M3_MAX, m.dtype);
            for (codes, w) in codes.chunks_mut(m.cols).zip(w.chunks(m.cols)) {
                code_row(&w[columns.clone()], *scale, m.dtype, &mut codes[columns.clone()], to_e4m3);
            }
        }
    });
    vec![codes, minifloat::to_bytes(m.dtype, &scales)]
}

fn input_max(m: &Module, spec: &str) -> Result<f32> {
    m.input_max.filter(|x| x.is_finite() && *x >= 0.0).ok_or_else(|| {
        Error::bad_input(format!("{spec} needs the largest input of the module, which comes from calibration"))
    })
}

/// `input_scale`, `weight`, `weight_scale`.
pub(super) fn fp8_static(m: &Module) -> Result<Data> {
    let input = scale_for(input_max(m, "fp8-static")?, E4M3_MAX, m.dtype);
    // Fused modules are served with the largest of their scales anyway, so it may as well be theirs from the start.
    let scale = scale_for(m.fused_max.unwrap_or_else(|| largest(m.weights)), E4M3_MAX, m.dtype);
    let mut codes = vec![0; m.rows * m.cols];
    let rows = codes.par_chunks_mut(m.cols).zip(m.weights.par_chunks(m.cols));
    rows.for_each(|(codes, w)| code_row(w, scale, m.dtype, codes, to_e4m3));
    let number = |x| minifloat::to_bytes(m.dtype, &[x]);
    Ok(vec![number(input), codes, number(scale)])
}

/// The scales over four-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp4Kind {
    /// E4M3 under a global scale (NVFP4).
    Nv,
    /// Powers of two, E8M0 (MXFP4).
    Mx,
}

/// A matrix in four-bit floats, as NVFP4 (16 columns per scale) or MXFP4 (32) store it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp4Codes {
    pub rows: usize,
    pub cols: usize,
    pub kind: Fp4Kind,
    /// Columns under one scale.
    pub group: usize,
    /// E2M1, `[rows, cols]`.
    pub codes: Vec<u8>,
    /// E4M3 (NVFP4) or E8M0 (MXFP4), `[rows, cols / group]`.
    pub scales: Vec<u8>,
    /// NVFP4: what scales are divided by.
    pub global: f32,
    /// NVFP4 with activations: the same for the input.
    pub input_global: Option<f32>,
}

/// The global scale for weights, or inputs, up to `max`: 448 * 6 / max, as torch has it in `dtype`.
pub fn global_scale(max: f32, dtype: GgmlType, rule: ScaleRule) -> f32 {
    let smallest = if dtype == GgmlType::F16 { half::f16::MIN_POSITIVE.to_f32() } else { f32::MIN_POSITIVE };
    let exact = E4M3_MAX * E2M1_MAX / max.max(smallest);
    // torch divides a number by a tensor in two steps.
    let scale = rounded(dtype, rounded(dtype, 1.0 / max.max(smallest)) * (E4M3_MAX * E2M1_MAX));
    match rule {
        // What overflows half precision is replaced, however small that makes every block scale.
        ScaleRule::Peer if !scale.is_finite() => 1.0,
        ScaleRule::Search if !scale.is_finite() => exact.min(f32::MAX),
        _ => scale,
    }
}

/// The kind of a spec that has one.
fn kind_of(spec: &Spec) -> Result<Fp4Kind> {
    match spec.format.feedback {
        Feedback::Floats(kind) => Ok(kind),
        Feedback::None | Feedback::Integers { .. } => Err(Error::Internal(format!("four-bit floats for {spec}"))),
    }
}

impl Fp4Codes {
    /// # Errors
    /// `BadInput` when the format quantizes inputs too and their largest magnitude is not given; `Internal` when it has no
    /// four-bit floats.
    pub fn nearest(spec: &Spec, m: &Module) -> Result<Self> {
        let group = spec.group_of(m.cols);
        let kind = kind_of(spec)?;
        let mx = kind == Fp4Kind::Mx;
        let input_global = match spec.needs_inputs() {
            true => Some(global_scale(input_max(m, spec.format.id)?, m.dtype, m.scales)),
            false => None,
        };
        let global = match mx {
            true => 1.0,
            false => global_scale(m.fused_max.unwrap_or_else(|| largest(m.weights)), m.dtype, m.scales),
        };
        let mut codes = vec![0; m.rows * m.cols];
        let mut scales = vec![0; m.rows * m.cols / group];
        let blocks = codes.par_chunks_mut(group).zip(&mut scales).zip(m.weights.par_chunks(group));
        blocks.enumerate().with_min_len(256).for_each(|(i, ((codes, scale), w))| {
            *scale = if mx { mx_scale(largest(w)) } else { nv_scale(largest(w), global, m.dtype) };
            let value = |code| if mx { e8m0(code) } else { e4m3(code) / global };
            if m.scales == ScaleRule::Search {
                let first = i * group % m.cols;
                let importance = m.importance.map(|x| &x[first..first + group]);
                let near = if mx { 1 } else { 4 };
                let lowest = if mx { 0 } else { 1 };
                let highest = if mx { 254 } else { 0x7e };
                let nearby = scale.saturating_sub(near).max(lowest)..=scale.saturating_add(near).min(highest);
                *scale = best(w, importance, nearby, value).unwrap_or(*scale);
            }
            let scale = value(*scale);
            codes.iter_mut().zip(w).for_each(|(code, w)| *code = to_e2m1(w / scale));
        });
        Ok(Fp4Codes { rows: m.rows, cols: m.cols, kind, group, codes, scales, global, input_global })
    }

    /// The grid on which error feedback may choose other codes and scales under the same global scale.
    pub fn grid(&self) -> Fp4Spec {
        let mx = self.kind == Fp4Kind::Mx;
        let value = |code: usize| match mx {
            true => e8m0(code.min(254) as u8),
            false if code < 0x7f => e4m3(code as u8) / self.global,
            false => 0.0,
        };
        let (codes, tried) = if mx { (0..=254, -2..=1) } else { (1..=0x7e, -5..=2) };
        Fp4Spec { group: self.group, scales: std::array::from_fn(value), codes, tried }
    }
}

/// The E4M3 scale of a block: its largest weight becomes 6.
fn nv_scale(max: f32, global: f32, dtype: GgmlType) -> u8 {
    match to_e4m3((global * rounded(dtype, max / E2M1_MAX)).min(E4M3_MAX)) {
        // The peer has an eighth for zero.
        0 => to_e4m3(0.125),
        code => code,
    }
}

/// The E8M0 scale of a block: the power of two nearest to the largest weight, where 1.75 and above is nearer to 2,
/// becomes 4.
fn mx_scale(max: f32) -> u8 {
    match max.to_bits().saturating_add(0x20_0000) >> 23 {
        0 => 127,
        exponent => exponent.saturating_sub(2).min(254) as u8,
    }
}

/// The code among `nearby` with the lowest weighted squared error; of equals the first. `None` when all are infinite.
fn best(
    w: &[f32],
    importance: Option<&[f32]>,
    nearby: impl Iterator<Item = u8>,
    value: impl Fn(u8) -> f32,
) -> Option<u8> {
    let mut found = (f32::INFINITY, None);
    for code in nearby {
        let scale = value(code);
        let mut error = 0.0;
        for (i, w) in w.iter().enumerate() {
            let off = E2M1[usize::from(to_e2m1(w / scale))] * scale - w;
            error += off * off * importance.map_or(1.0, |x| x[i]);
        }
        if error < found.0 {
            found = (error, Some(code));
        }
    }
    found.1
}

/// Packs four-bit floats, however they were chosen.
///
/// # Errors
/// `BadInput` when the shape cannot be stored; `Internal` when the codes do not belong to `spec`.
pub fn pack_fp4(spec: &Spec, codes: &Fp4Codes, dtype: GgmlType) -> Result<Vec<Piece>> {
    spec.check_shape(codes.rows, codes.cols)?;
    if kind_of(spec)? != codes.kind || spec.group_of(codes.cols) != codes.group {
        return Err(Error::Internal(format!("four-bit floats in groups of {} for {spec}", codes.group)));
    }
    spec.fill(codes.rows, codes.cols, dtype, packed(codes))
}

/// `input_global_scale` with activations, `weight_global_scale` of NVFP4, `weight_packed`, `weight_scale`.
fn packed(codes: &Fp4Codes) -> Data {
    let bytes = to_bytes(&pack_rows(&codes.codes, codes.codes.len(), 4));
    let number = |x: f32| x.to_le_bytes().to_vec();
    let mut data = Vec::new();
    data.extend(codes.input_global.map(number));
    match codes.kind {
        Fp4Kind::Nv => data.push(number(codes.global)),
        Fp4Kind::Mx => {}
    }
    data.push(bytes[..codes.codes.len() / 2].to_vec());
    data.push(codes.scales.clone());
    data
}

/// Rounds to nearest.
pub(super) fn fp4(spec: &Spec, m: &Module) -> Result<Data> {
    Ok(packed(&Fp4Codes::nearest(spec, m)?))
}
