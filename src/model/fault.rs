//! What a failed quantization means for the checkpoint: which weight of which file is at fault, and what to try.

use super::MappedTensor;
use crate::Error;
use crate::error::Hint;
use crate::quant::{GgmlType, QuantError};
use crate::source::Checkpoint;
use std::ops::Range;

/// Names the weight at fault: source file, source tensor, row and column.
pub fn fault(ckpt: &Checkpoint, tensor: &MappedTensor, rows: &Range<usize>, ty: GgmlType, error: QuantError) -> Error {
    let cols = tensor.cols().max(1);
    let part = tensor.parts.get(rows.start / tensor.rows_per_matrix().max(1)).or(tensor.parts.first());
    let meta = part.map(|p| &ckpt.tensors()[*p]);
    let file = meta.and_then(|m| ckpt.files().get(m.file)).map(|f| f.path.clone()).unwrap_or_default();
    let name = meta.map_or(&tensor.name, |m| &m.name);
    match error {
        QuantError::NotFinite { index, value } => {
            let (row, col) = (rows.start + index / cols, index % cols);
            Error::bad_file(file, format!("the weight in row {row}, column {col} is {value}"))
                .tensor(name)
                .hint("the checkpoint is damaged or its training diverged; download it again or ask its author")
        }
        QuantError::BadScale { block, .. } => {
            let at = rows.start * cols + block * ty.block();
            let what = format!("a weight near row {}, column {} is too large for {ty}", at / cols, at % cols);
            Error::bad_file(file, what).tensor(name).hint(Hint::WiderType { tensor: tensor.name.clone() })
        }
        other => Error::bad_file(file, other.to_string()).tensor(name),
    }
}
