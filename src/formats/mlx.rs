//! MLX's modes: affine (unsigned integers with scale and bias per group), and four- and eight-bit floats. Rounding is
//! that of `mx.quantize` on the CPU, in single precision whatever the checkpoint's type.

use super::bits::{pack_rows, to_bytes};
use super::float::largest;
use super::minifloat::{self, E2M1_MAX, E4M3_MAX, e4m3, e8m0, round_all, to_e4m3};
use super::{Format, Module, Piece, Spec};
use crate::feedback::int::Codes;
use crate::quant::GgmlType;
use crate::{Error, Result};
use rayon::prelude::*;

/// A matrix `[rows, cols]` as `w = scale * code + bias` of the column's group.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    pub rows: usize,
    pub cols: usize,
    pub bits: u8,
    pub group: usize,
    /// `[rows, cols]`
    pub codes: Vec<u8>,
    /// `[rows, cols / group]`; may be negative.
    pub scales: Vec<f32>,
    /// `[rows, cols / group]`
    pub biases: Vec<f32>,
}

impl Affine {
    /// Integers with zero points: the bias is `-scale * zero`, rounded to `dtype`.
    pub fn from_codes(codes: &Codes, dtype: GgmlType) -> Self {
        let mut biases: Vec<f32> = codes.scales.iter().zip(&codes.zeros).map(|(s, z)| -s * f32::from(*z)).collect();
        round_all(dtype, &mut biases);
        let (rows, cols, bits, group) = (codes.rows, codes.cols, codes.bits, codes.group);
        Affine { rows, cols, bits, group, codes: codes.codes.clone(), scales: codes.scales.clone(), biases }
    }

    /// Rounds to nearest; `group` divides the columns. Scales and biases are rounded to the checkpoint's type after the
    /// codes were chosen with the exact ones.
    pub fn nearest(m: &Module, bits: u8, group: usize) -> Self {
        let (rows, cols) = (m.rows, m.cols);
        let mut codes = vec![0; rows * cols];
        let (mut scales, mut biases) = (vec![0.0; rows * cols / group], vec![0.0; rows * cols / group]);
        let groups = codes.par_chunks_mut(group).zip(&mut scales).zip(&mut biases).zip(m.weights.par_chunks(group));
        groups.with_min_len(64).for_each(|(((codes, scale), bias), w)| {
            (*scale, *bias) = round_group(w, bits, codes);
        });
        round_all(m.dtype, &mut scales);
        round_all(m.dtype, &mut biases);
        Affine { rows, cols, bits, group, codes, scales, biases }
    }
}

/// The edge of the range with the larger magnitude becomes exact where it can.
fn round_group(w: &[f32], bits: u8, codes: &mut [u8]) -> (f32, f32) {
    let top = ((1u32 << bits) - 1) as f32;
    let edges = (f32::INFINITY, f32::NEG_INFINITY);
    let (min, max) = w.iter().fold(edges, |(min, max), w| (min.min(*w), max.max(*w)));
    let from_min = min.abs() > max.abs();
    let scale = ((max - min) / top).max(1e-7);
    let scale = if from_min { scale } else { -scale };
    let edge = if from_min { min } else { max };
    let steps = (edge / scale).round_ties_even();
    let (scale, bias) = if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) };
    for (code, w) in codes.iter_mut().zip(w) {
        *code = ((w - bias) / scale).round_ties_even().clamp(0.0, top) as u8;
    }
    (scale, bias)
}

/// Packs integers with scale and bias, however they were chosen.
///
/// # Errors
/// `Internal` when they do not belong to `spec`; `BadInput` when the shape cannot be stored.
pub fn pack_affine(spec: &Spec, a: &Affine, dtype: GgmlType) -> Result<Vec<Piece>> {
    spec.check_shape(a.rows, a.cols)?;
    if spec.format != Format::MlxAffine || spec.bits != a.bits || spec.group_of(a.cols) != a.group {
        return Err(Error::Internal(format!("codes of {} bits in groups of {} for {spec}", a.bits, a.group)));
    }
    let data = vec![
        minifloat::to_bytes(dtype, &a.biases),
        minifloat::to_bytes(dtype, &a.scales),
        to_bytes(&pack_rows(&a.codes, a.cols, a.bits)),
    ];
    spec.fill(a.rows, a.cols, dtype, data)
}

/// `scales`, `weight` of the modes without biases.
pub(super) fn floats(format: Format, m: &Module) -> Vec<Vec<u8>> {
    let group = if format == Format::MlxNvFp4 { 16 } else { 32 };
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0; m.rows * m.cols / group];
    let groups = codes.par_chunks_mut(group).zip(&mut scales).zip(m.weights.par_chunks(group));
    groups.with_min_len(64).for_each(|((codes, scale), w)| {
        let max = largest(w);
        *scale = match format {
            Format::MlxNvFp4 => to_e4m3(max / E2M1_MAX),
            Format::MlxMxFp4 => power_above(max / E2M1_MAX),
            _ => power_above(max / E4M3_MAX),
        };
        let step = if format == Format::MlxNvFp4 { e4m3(*scale) } else { e8m0(*scale) };
        for (code, w) in codes.iter_mut().zip(w) {
            let x = if step == 0.0 { 0.0 } else { w / step };
            *code = if format == Format::MlxMxFp8 { to_e4m3(x) } else { to_e2m1(x) };
        }
    });
    let bits = if format == Format::MlxMxFp8 { 8 } else { 4 };
    vec![scales, to_bytes(&pack_rows(&codes, m.cols, bits))]
}

/// The E8M0 code of the smallest power of two that is at least `x`.
fn power_above(x: f32) -> u8 {
    let exponent = x.to_bits() >> 23;
    (exponent + u32::from(x.to_bits() & 0x7f_ffff != 0)).min(254) as u8
}

/// E2M1 with ties toward zero, and no minus zero.
fn to_e2m1(x: f32) -> u8 {
    let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let code = ties.iter().map(|tie| u8::from(x.abs() > *tie)).sum::<u8>();
    if code != 0 && x < 0.0 { code | 8 } else { code }
}
