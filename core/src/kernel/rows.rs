//! Weights as products take them: rows by ranges, and blocks of rows of a result.

use crate::quant::GgmlType;
use faer::MatMut;
use std::ops::Range;

/// Rows of the weight matrix that are decoded and multiplied together. Fixed, so that results do not depend on the
/// number of threads; 64 rows of a few thousand weights stay in the second-level cache.
pub(super) const ROW_BLOCK: usize = 64;

/// A matrix `[rows, cols]` in any stored form: a way to get rows of weights as `f32`.
pub trait RowSource: Send + Sync {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// The type of the stored blocks, if they are ggml's.
    fn ggml_type(&self) -> Option<GgmlType> {
        None
    }
    /// `rows` as they lie in memory (`[rows.len(), cols]`), if that is how they are stored.
    fn plain(&self, _rows: Range<usize>) -> Option<&[f32]> {
        None
    }
    /// The bytes of `rows`, if they are stored as blocks of [`ggml_type`](Self::ggml_type).
    fn stored(&self, _rows: Range<usize>) -> Option<&[u8]> {
        None
    }
    /// Writes `rows` to `out` (`[rows.len(), cols]`). The caller keeps `rows` inside the matrix and `out` of that size.
    fn decode(&self, rows: Range<usize>, out: &mut [f32]);
}

/// Plain `f32` rows.
pub struct Dense {
    pub data: Vec<f32>,
    pub cols: usize,
}

impl RowSource for Dense {
    fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn plain(&self, rows: Range<usize>) -> Option<&[f32]> {
        self.data.get(rows.start * self.cols..rows.end * self.cols)
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.data[rows.start * self.cols..rows.end * self.cols]);
    }
}

/// The matrix in blocks of so many rows, the last with what is left.
pub fn row_blocks(mut matrix: MatMut<'_, f32>, rows: usize) -> Vec<MatMut<'_, f32>> {
    let mut blocks = Vec::with_capacity(matrix.nrows().div_ceil(rows));
    while matrix.nrows() > rows {
        let (block, rest) = matrix.split_at_row_mut(rows);
        blocks.push(block);
        matrix = rest;
    }
    if matrix.nrows() > 0 {
        blocks.push(matrix);
    }
    blocks
}
