//! Rows of numbers: views with a shape between the parts of the program, slices inside of them.

use ndarray::ArrayView2;
use std::borrow::Cow;

/// Whole rows of `cols` numbers as a matrix, `[rows, cols]`.
pub fn matrix(values: &[f32], cols: usize) -> ArrayView2<'_, f32> {
    let rows = values.len() / cols.max(1);
    ArrayView2::from_shape((rows, cols), values).expect("the caller has whole rows")
}

/// The numbers of a matrix row after row, copied if they do not lie so.
pub fn flat(matrix: ArrayView2<'_, f32>) -> Cow<'_, [f32]> {
    match matrix.to_slice() {
        Some(rows) => rows.into(),
        None => matrix.iter().copied().collect(),
    }
}
