//! A tensor of the GGUF file as a view of source tensors: parts, order of rows and what happens to values, and the reading
//! of rows through it. It holds no weights.

use super::role::Role;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use std::ops::Range;

/// How GGUF rows follow from source rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    Same,
    /// Per head, the two halves of the rotary dimensions are interleaved.
    Rope {
        heads: usize,
    },
}

/// How GGUF's values follow from the source's, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueMap {
    Same,
    /// 1 is added.
    PlusOne,
}

impl ValueMap {
    /// What the model adds to a stored value.
    pub fn added(self) -> f32 {
        match self {
            ValueMap::Same => 0.0,
            ValueMap::PlusOne => 1.0,
        }
    }

    /// In `f32`, as the model itself computes.
    pub fn apply(self, values: &mut [f32]) {
        if self != ValueMap::Same {
            values.iter_mut().for_each(|w| *w += self.added());
        }
    }
}

/// A tensor of the GGUF file and where its weights come from.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedTensor {
    /// GGUF name.
    pub name: String,
    /// `[out, in]`, `[experts, out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// Source tensors by index; several when experts lie one by one.
    pub parts: Vec<usize>,
    /// The part is `[experts, 2 * out, in]`, and this is the first (0) or second (1) half of every expert.
    pub half: Option<usize>,
    pub rows: RowOrder,
    pub values: ValueMap,
    pub role: Role,
    pub layer: Option<usize>,
}

impl MappedTensor {
    /// Length of a row: the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Rows, all outer dimensions flattened; 1 for a vector.
    pub fn row_count(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of one matrix: all of them, or one expert's.
    pub fn rows_per_matrix(&self) -> usize {
        match self.shape.as_slice() {
            [_, .., rows, _] => *rows,
            _ => self.row_count(),
        }
    }

    /// Whether the stored rows are the rows: same order, nothing added, nothing left out.
    pub fn is_verbatim(&self) -> bool {
        self.half.is_none() && self.rows == RowOrder::Same && self.values == ValueMap::Same
    }

    /// Reads rows of the GGUF tensor as F32, transforms applied; `out` holds `rows.len() * cols` values.
    /// `scratch` is reused from call to call. Any number of threads may read at once.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn read_rows(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let cols = self.cols();
        if rows.start > rows.end || rows.end > self.row_count() || out.len() != rows.len() * cols {
            let what = format!("rows {rows:?} of {} into {} values", self.name, out.len());
            return Err(Error::Internal(what));
        }
        match self.rows {
            RowOrder::Same => self.read_runs(ckpt, rows, scratch, out)?,
            // The rows of a bias are its elements.
            RowOrder::Rope { heads } if self.shape.len() == 1 => {
                self.read_rope(ckpt, rows.start * cols..rows.end * cols, 1, cols / heads.max(1), scratch, out)?;
            }
            RowOrder::Rope { heads } => {
                self.read_rope(ckpt, rows, cols, self.row_count() / heads.max(1), scratch, out)?;
            }
        }
        if self.values != ValueMap::Same {
            self.values.apply(out);
            // llama.cpp's converter computes in the stored type, so that F16 sums are rounded to F16.
            if self.parts.iter().any(|p| ckpt.tensors()[*p].dtype == Dtype::Ggml(GgmlType::F16)) {
                out.iter_mut().for_each(|w| *w = half::f16::from_f32(*w).to_f32());
            }
        }
        Ok(())
    }

    /// Runs of rows that lie together in one part.
    fn read_runs(&self, ckpt: &Checkpoint, rows: Range<usize>, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        // Rows per expert where experts are apart; all rows otherwise.
        let block = if self.parts.len() > 1 || self.half.is_some() { self.shape[1] } else { self.row_count() };
        let mut row = rows.start;
        let mut rest = out;
        while row < rows.end {
            let (expert, inner) = (row / block, row % block);
            let n = (block - inner).min(rows.end - row);
            let (part, first) = match self.half {
                Some(half) => (self.parts[0], (2 * expert + half) * block + inner),
                None => (self.parts[expert], inner),
            };
            let (now, later) = rest.split_at_mut(n * cols);
            ckpt.read_f32(&ckpt.tensors()[part], first * cols..(first + n) * cols, scratch, now)?;
            rest = later;
            row += n;
        }
        Ok(())
    }

    /// GGUF row `2j + i` of a head is source row `i * head / 2 + j` of that head (llama.cpp's `LlamaModel.permute`).
    fn read_rope(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        cols: usize,
        head: usize,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let part = &ckpt.tensors()[self.parts[0]];
        let mut buffer = vec![0.0; head.div_ceil(2) * cols];
        let mut start = rows.start;
        while start < rows.end {
            let base = start / head * head;
            let end = (base + head).min(rows.end);
            for half in 0..2 {
                // The rows of this half that the range asks for: every other one, but together in the source.
                let first = (start - base + 1 - half) / 2;
                let last = (end - base + 1 - half) / 2;
                if first == last {
                    continue;
                }
                let source = base + half * (head / 2) + first;
                let run = &mut buffer[..(last - first) * cols];
                ckpt.read_f32(part, source * cols..(source + last - first) * cols, scratch, run)?;
                for (k, row) in run.chunks_exact(cols).enumerate() {
                    let at = (base + 2 * (first + k) + half - rows.start) * cols;
                    out[at..at + cols].copy_from_slice(row);
                }
            }
            start = end;
        }
        Ok(())
    }
}
