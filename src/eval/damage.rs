//! The damage report: how far each tensor of an artifact is from its source, without running anything.

use super::TensorDamage;
use crate::control::Cancel;
use crate::model::{MappedTensor, Model, Role};
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use rayon::prelude::*;

/// Σ x² per input column of a matrix, by the matrix's GGUF name.
pub type Power<'a> = dyn Fn(&str) -> Option<&'a [f64]> + Sync + 'a;

/// Weights that are compared at a time.
const PIECE: usize = 1 << 18;

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

/// Rows whose mean square is a smaller share of the matrix's are next to nothing.
const SMALL: f64 = 1e-3;

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
        let found = compare(base.0, source, candidate.0, tensor, power(&tensor.name));
        Some(found.map(|(damage, likeness)| (damage, Likeness { moved: moved(tensor.role), ..likeness })))
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
    compare(base, source, candidate, tensor, None).map(|(damage, _)| damage.rel_error)
}

/// Sums over pairs of weights.
#[derive(Clone, Copy, Default)]
struct Alike {
    dot: f64,
    square: f64,
    size: f64,
    same: f64,
}

impl Alike {
    fn add(&mut self, x: f64, y: f64) {
        self.dot += x * y;
        self.square += y * y;
        self.size += x.abs();
        // What is rounded to nothing has either.
        self.same += x.abs() * if y == 0.0 { 0.5 } else { f64::from(u8::from(x * y > 0.0)) };
    }

    fn append(&mut self, other: Self) {
        self.dot += other.dot;
        self.square += other.square;
        self.size += other.size;
        self.same += other.same;
    }

    fn gain(&self) -> f64 {
        if self.square > 0.0 { self.dot / self.square } else { 1.0 }
    }

    fn signs(&self) -> f64 {
        if self.size > 0.0 { self.same / self.size } else { 1.0 }
    }
}

/// How far a gain is from 1, in either direction.
fn far(gain: f64) -> f64 {
    if gain > 0.0 { gain.ln().abs() } else { f64::INFINITY }
}

fn compare(
    base: &Checkpoint,
    source: &MappedTensor,
    candidate: &Checkpoint,
    tensor: &MappedTensor,
    power: Option<&[f64]>,
) -> Result<(TensorDamage, Likeness)> {
    if source.shape != tensor.shape {
        let what = format!("its shape is {:?}, the base's {:?}", tensor.shape, source.shape);
        return Err(Error::bad_file(&candidate.files()[0].path, what).tensor(tensor.name.as_str()));
    }
    let (cols, rows) = (tensor.cols(), tensor.row_count());
    let step = (PIECE / cols.max(1)).max(1);
    let (mut scratch, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
    // Per column, so that the weighting can wait.
    let matrices = rows / tensor.rows_per_matrix().max(1);
    let (mut error, mut norm) = (vec![0.0f64; matrices * cols], vec![0.0f64; matrices * cols]);
    let mut alike = vec![Alike::default(); matrices];
    let mut of_rows = Vec::with_capacity(rows);
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        a.resize(range.len() * cols, 0.0);
        b.resize(range.len() * cols, 0.0);
        source.read_rows(base, range.clone(), &mut scratch, &mut a)?;
        tensor.read_rows(candidate, range, &mut scratch, &mut b)?;
        for (i, (x, y)) in a.chunks_exact(cols).zip(b.chunks_exact(cols)).enumerate() {
            let matrix = (start + i) / tensor.rows_per_matrix().max(1);
            let first = matrix * cols;
            let columns = error[first..first + cols].iter_mut().zip(&mut norm[first..first + cols]);
            let (mut row_error, mut row_norm, mut row) = (0.0f64, 0.0f64, Alike::default());
            for ((x, y), (error, norm)) in x.iter().zip(y).zip(columns) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                let off = (x - y) * (x - y);
                *error += off;
                *norm += x * x;
                row_error += off;
                row_norm += x * x;
                row.add(x, y);
            }
            of_rows.push((row_error, row_norm, row.signs()));
            alike[matrix].append(row);
        }
    }
    let ratio = |error: f64, norm: f64| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    let weighted = |power: &[f64]| {
        let dot = |x: &[f64]| x.iter().zip(power).map(|(x, p)| x * p).sum::<f64>();
        ratio(dot(&error), dot(&norm))
    };
    let parts = tensor.parts.iter().map(|p| &candidate.tensors()[*p]);
    let ty = match parts.clone().next().map(|t| t.dtype) {
        Some(Dtype::Ggml(ty)) => ty.name().to_string(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let name = tensor.name.trim_end_matches(".weight");
    let mean = norm.iter().sum::<f64>() / rows.max(1) as f64;
    let counted = of_rows.iter().filter(|(_, norm, _)| *norm > SMALL * mean);
    let all = counted.clone().count().max(1) as f64;
    let likeness = Likeness {
        gain: alike.iter().map(Alike::gain).max_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(1.0),
        strange: counted.clone().filter(|(error, norm, _)| error > norm).count() as f64 / all,
        signs: alike.iter().map(Alike::signs).fold(1.0, f64::min),
        other_signs: counted.filter(|(_, _, signs)| *signs < CHANCE).count() as f64 / all,
        moved: false,
    };
    let damage = TensorDamage {
        name: tensor.name.clone(),
        layer: tensor.layer,
        role: name.rsplit('.').next().unwrap_or(name).to_string(),
        ty,
        bytes: parts.map(|t| t.bytes()).sum(),
        rel_error: ratio(error.iter().sum(), norm.iter().sum()),
        rel_error_weighted: power.filter(|p| p.len() == error.len()).map(weighted),
    };
    Ok((damage, likeness))
}
