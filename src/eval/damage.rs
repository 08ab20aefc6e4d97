//! The damage report: how far each tensor of an artifact is from its source, without running anything.

use crate::model::{MappedTensor, Model};
use crate::report::TensorDamage;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Weights that are compared at a time.
const PIECE: usize = 1 << 18;

/// `‖W − W'‖ / ‖W‖` of every matrix that both models have, in the candidate's order.
///
/// Errors: `BadInput` when shapes differ, and those of reading.
pub fn measure(
    base: (&Checkpoint, &Model),
    candidate: (&Checkpoint, &Model),
    cancel: &AtomicBool,
) -> Result<Vec<TensorDamage>> {
    let matrices: Vec<&MappedTensor> = candidate.1.tensors.iter().filter(|t| t.shape.len() >= 2).collect();
    let one = |tensor: &&MappedTensor| -> Option<Result<TensorDamage>> {
        let source = base.1.tensors.iter().find(|t| t.name == tensor.name)?;
        if cancel.load(Ordering::Relaxed) {
            return Some(Err(Error::Interrupted));
        }
        Some(compare(base.0, source, candidate.0, tensor))
    };
    matrices.par_iter().filter_map(one).collect()
}

fn compare(
    base: &Checkpoint,
    source: &MappedTensor,
    candidate: &Checkpoint,
    tensor: &MappedTensor,
) -> Result<TensorDamage> {
    if source.shape != tensor.shape {
        let what = format!("its shape is {:?}, the base's {:?}", tensor.shape, source.shape);
        return Err(Error::bad_file(&candidate.files()[0].path, what).tensor(tensor.name.as_str()));
    }
    let (cols, rows) = (tensor.cols(), tensor.row_count());
    let step = (PIECE / cols.max(1)).max(1);
    let (mut scratch, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        a.resize(range.len() * cols, 0.0);
        b.resize(range.len() * cols, 0.0);
        source.read_rows(base, range.clone(), &mut scratch, &mut a)?;
        tensor.read_rows(candidate, range, &mut scratch, &mut b)?;
        for (x, y) in a.iter().zip(&b) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            error += (x - y) * (x - y);
            norm += x * x;
        }
    }
    let parts = tensor.parts.iter().map(|p| &candidate.tensors()[*p]);
    let ty = match parts.clone().next().map(|t| t.dtype) {
        Some(Dtype::Ggml(ty)) => ty.name().to_string(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let name = tensor.name.trim_end_matches(".weight");
    Ok(TensorDamage {
        name: tensor.name.clone(),
        layer: tensor.layer,
        role: name.rsplit('.').next().unwrap_or(name).to_string(),
        ty,
        bytes: parts.map(|t| t.bytes()).sum(),
        rel_error: if norm > 0.0 { (error / norm).sqrt() } else { 0.0 },
        rel_error_weighted: None,
    })
}
