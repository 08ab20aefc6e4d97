//! The two products of a linear layer's reverse pass: what comes back to its input, and the gradient of its weights. Both
//! are cut into blocks whatever the number of threads, so that every sum has one order.

use crate::kernel::{RowSource, row_blocks};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Weights that are decoded at once: 64 MiB of them.
const DECODED: usize = 1 << 24;
/// Rows that a thread decodes together.
const ROWS: usize = 64;
/// Columns of a block of the result.
const COLUMNS: usize = 96;

/// `dx[n, in] += dy[n, out] · w[out, in]`.
pub(super) fn add_back(dy: &[f32], w: &dyn RowSource, dx: &mut [f32]) {
    let (out, cols) = (w.rows(), w.cols());
    let n = dy.len() / out.max(1);
    if n == 0 || cols == 0 {
        return;
    }
    let step = (DECODED / cols).clamp(ROWS, 1 << 16);
    let mut scratch = Vec::new();
    for first in (0..out).step_by(step) {
        let rows = first..(first + step).min(out);
        let count = rows.len();
        let weights = match w.plain(rows.clone()) {
            Some(weights) => weights,
            None => {
                scratch.resize(count * cols, 0.0);
                scratch.par_chunks_mut(ROWS * cols).enumerate().for_each(|(i, some)| {
                    let from = first + i * ROWS;
                    w.decode(from..from + some.len() / cols, some);
                });
                &scratch
            }
        };
        let back = MatRef::from_row_major_slice(weights, count, cols).transpose();
        // Column-major [out, n] and [in, n]: the transposes of row-major matrices.
        let dy = &dy[first..(n - 1) * out + rows.end];
        let dy = MatRef::from_column_major_slice_with_stride(dy, count, n, out);
        let dx = MatMut::from_column_major_slice_mut(dx, cols, n);
        row_blocks(dx, COLUMNS).into_par_iter().enumerate().for_each(|(i, dx)| {
            let back = back.subrows(i * COLUMNS, dx.nrows());
            matmul(dx, Accum::Add, back, dy, 1.0, Par::Seq);
        });
    }
}

/// The gradient of some rows of a linear layer's weights, `[rows.len(), cols]`, to `dw`: of `x` (`[n, cols]`), which entered
/// it, and the gradient `dy` (`[n, out]`) at what left it.
pub fn weight_gradient(x: &[f32], cols: usize, dy: &[f32], out: usize, rows: Range<usize>, dw: &mut [f32]) {
    let n = x.len() / cols.max(1);
    if n == 0 || rows.is_empty() {
        return dw.fill(0.0);
    }
    let count = rows.len();
    let x = MatRef::from_column_major_slice(x, cols, n);
    let dy = &dy[rows.start..(n - 1) * out + rows.end];
    let dy = MatRef::from_row_major_slice_with_stride(dy, n, count, out);
    // Column-major [cols, rows]: the transpose of the row-major gradient.
    matmul(MatMut::from_column_major_slice_mut(dw, cols, count), Accum::Replace, x, dy, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Dense;
    use crate::made::numbers;

    #[test]
    fn both_equal_the_triple_loop() {
        for (n, out, cols) in [(1, 5, 7), (3, 130, 200), (20, 64, 96)] {
            let (x, dy) = (numbers(n * cols, 1), numbers(n * out, 2));
            let w = Dense { data: numbers(out * cols, 3), cols };
            let mut dx = vec![1.0; n * cols];
            add_back(&dy, &w, &mut dx);
            for (t, c) in (0..n).flat_map(|t| (0..cols).map(move |c| (t, c))) {
                let terms = (0..out).map(|r| f64::from(dy[t * out + r]) * f64::from(w.data[r * cols + c]));
                let exact = 1.0 + terms.sum::<f64>();
                assert!((f64::from(dx[t * cols + c]) - exact).abs() < 1e-5 * out as f64, "{n} {out} {cols}");
            }
            let rows = 1..out - 1;
            let mut dw = vec![f32::NAN; rows.len() * cols];
            weight_gradient(&x, cols, &dy, out, rows.clone(), &mut dw);
            for (r, c) in rows.clone().flat_map(|r| (0..cols).map(move |c| (r, c))) {
                let terms = (0..n).map(|t| f64::from(dy[t * out + r]) * f64::from(x[t * cols + c]));
                let exact = terms.sum::<f64>();
                let got = f64::from(dw[(r - rows.start) * cols + c]);
                assert!((got - exact).abs() < 1e-5 * n as f64, "{n} {out} {cols}: {got} {exact}");
            }
        }
    }
}
