//! The damage report: how far each tensor of an artifact is from its source, without running anything.

use super::TensorDamage;
use super::pairs::{self, Beside, Row, Sums};
use crate::control::Cancel;
use crate::model::{MappedTensor, Model, Role};
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Σ x² per input column of a matrix, by the matrix's GGUF name.
pub type Power<'a> = dyn Fn(&str) -> Option<&'a [f64]> + Sync + 'a;

/// Metadata of a GGUF file whose feed-forward channels are in another order than the source's.
pub const SORTED: &str = "quantize.search.sorted_channels";

/// What was done to a candidate's weights beside rounding, so that they cannot be told apart from the base's one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Feed-forward channels stand in another order.
    Sorted,
    /// Norms are others, as where AWQ and SmoothQuant move factors between channels and the norms before them.
    Scaled,
}

/// How the candidate's weights were transformed, if they were: by its metadata, and by its norms.
///
/// Errors: those of reading.
pub fn transform(base: (&Checkpoint, &Model), candidate: (&Checkpoint, &Model)) -> Result<Option<Transform>> {
    if candidate.0.gguf().and_then(|m| m.bool(SORTED)) == Some(true) {
        return Ok(Some(Transform::Sorted));
    }
    for tensor in candidate.1.tensors.iter().filter(|t| t.role.is_norm()) {
        let source = base.1.tensors.iter().find(|t| t.name == tensor.name && t.shape == tensor.shape);
        let Some(source) = source else { continue };
        let (mut a, mut b) = (vec![0.0; source.elements()], vec![0.0; source.elements()]);
        source.read_rows(base.0, 0..source.row_count(), &mut Vec::new(), &mut a)?;
        tensor.read_rows(candidate.0, 0..tensor.row_count(), &mut Vec::new(), &mut b)?;
        // Half precision and bfloat16 are within a hundredth.
        if a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 0.01 * a.abs().max(0.01)) {
            return Ok(Some(Transform::Scaled));
        }
    }
    Ok(None)
}

/// `‖W − W'‖ / ‖W‖` of every matrix that both models have, in the candidate's order; and the same with each column's error
/// weighted by the power of the activation it meets, where `power` (`[matrices, cols]` by GGUF name) knows it.
/// Matrices that were transformed are left out.
///
/// Errors: `BadInput` when shapes differ, and those of reading.
pub fn measure(
    base: (&Checkpoint, &Model),
    candidate: (&Checkpoint, &Model),
    power: &Power,
    cancel: &Cancel,
) -> Result<Vec<TensorDamage>> {
    let all = measure_rows(base, candidate, transform(base, candidate)?, power, cancel)?.into_iter();
    Ok(all.filter(|(_, likeness)| !likeness.moved).map(|(damage, _)| damage).collect())
}

/// How a matrix lies to the source's, beyond its distance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likeness {
    /// `W·W' / W'·W'`: what the matrix would have to be multiplied by to come closest; of stacked ones that which is
    /// furthest from 1.
    pub gain: f64,
    /// The share of its rows that are further from the source's than these are long: others, as a rule. Rows that are
    /// next to nothing do not count.
    pub strange: f64,
    /// How many of its rows have nothing of the source's; rows that are faint in the source do not count.
    pub lost: usize,
    /// The share of weights, by their size, that have the source's sign; of stacked matrices the least. It stays where rows
    /// and columns are multiplied by positive factors.
    pub signs: f64,
    /// The share of its rows that have the signs of others.
    pub other_signs: f64,
    /// Whether factors were moved, so that the numbers themselves tell nothing.
    pub moved: bool,
}

/// Rows that have fewer of the source's signs are others: half of them are alike by chance.
const CHANCE: f64 = 0.65;

/// As [`measure`], with how each matrix lies to the source's, and with those that factors were moved out of. `transform`: what
/// [`transform()`] says.
///
/// # Errors
/// As [`measure`].
pub fn measure_rows(
    base: (&Checkpoint, &Model),
    candidate: (&Checkpoint, &Model),
    transform: Option<Transform>,
    power: &Power,
    cancel: &Cancel,
) -> Result<Vec<(TensorDamage, Likeness)>> {
    let sorted = |role: Role| transform == Some(Transform::Sorted) && role.is_feed_forward();
    let moved = |role: Role| transform == Some(Transform::Scaled) && (role.is_linear() || role.is_router());
    let matrices = candidate.1.tensors.iter().filter(|t| t.shape.len() >= 2 && !sorted(t.role));
    let matrices: Vec<&MappedTensor> = matrices.collect();
    let one = |tensor: &&MappedTensor| -> Option<Result<(TensorDamage, Likeness)>> {
        let source = base.1.tensors.iter().find(|t| t.name == tensor.name)?;
        if let Err(e) = cancel.check() {
            return Some(Err(e));
        }
        Some(compare((base.0, source), (candidate.0, tensor), power(&tensor.name), moved(tensor.role)))
    };
    matrices.par_iter().filter_map(one).collect()
}

/// `‖W − W'‖ / ‖W‖` of one tensor of the same shape in both.
///
/// Errors: those of reading.
pub fn distance(
    base: &Checkpoint,
    source: &MappedTensor,
    candidate: &Checkpoint,
    tensor: &MappedTensor,
) -> Result<f64> {
    compare((base, source), (candidate, tensor), None, false).map(|(damage, _)| damage.rel_error)
}

/// How far a gain is from 1, in either direction.
fn far(gain: f64) -> f64 {
    if gain > 0.0 { gain.ln().abs() } else { f64::INFINITY }
}

/// `moved`: whether factors were moved out of it.
fn compare(
    (base, source): (&Checkpoint, &MappedTensor),
    (candidate, tensor): (&Checkpoint, &MappedTensor),
    power: Option<&[f64]>,
    moved: bool,
) -> Result<(TensorDamage, Likeness)> {
    if source.shape != tensor.shape {
        let what = format!("its shape is {:?}, the base's {:?}", tensor.shape, source.shape);
        return Err(Error::bad_file(&candidate.files()[0].path, what).tensor(tensor.name.as_str()));
    }
    let mut scratch = Vec::new();
    let mut read = |rows: Range<usize>, a: &mut [f32], b: &mut [f32]| {
        source.read_rows(base, rows.clone(), &mut scratch, a)?;
        tensor.read_rows(candidate, rows, &mut scratch, b)
    };
    let found = Beside::read((tensor.row_count(), tensor.cols()), tensor.rows_per_matrix(), &mut read)?;
    let weighted = |power: &[f64]| {
        let dot = |of: fn(&Sums) -> f64| found.columns.iter().zip(power).map(|(sums, p)| of(sums) * p).sum::<f64>();
        Sums { error: dot(|sums| sums.error), norm: dot(|sums| sums.norm), ..Sums::default() }.far()
    };
    let parts = tensor.parts.iter().map(|p| &candidate.tensors()[*p]);
    let ty = match parts.clone().next().map(|t| t.dtype) {
        Some(Dtype::Ggml(ty)) => ty.name().to_string(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let name = tensor.name.trim_end_matches(".weight");
    let of_matrix = |rows: &[Row]| rows.iter().fold(Sums::default(), |sum, row| sum.and(row.sums)).gain();
    let likeness = Likeness {
        gain: found.matrices().map(of_matrix).max_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(1.0),
        strange: found.share(|row| row.sums.is_strange()),
        lost: found.lost(moved),
        signs: found.matrices().map(pairs::signs).fold(1.0, f64::min),
        other_signs: found.share(|row| row.signs() < CHANCE),
        moved,
    };
    let damage = TensorDamage {
        name: tensor.name.clone(),
        layer: tensor.layer,
        role: name.rsplit('.').next().unwrap_or(name).to_string(),
        ty,
        bytes: parts.map(|t| t.bytes()).sum(),
        rel_error: found.total().far(),
        rel_error_weighted: power.filter(|p| p.len() == found.columns.len()).map(weighted),
    };
    Ok((damage, likeness))
}
