//! The arithmetic that takes the time: the matrix product over stored weights, and the element-wise functions of
//! [`vector`]. One small interface, so that a faster product can replace what is behind it. No model, no files.

pub mod bf16;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
mod integers;
mod rows;
pub mod vector;
pub mod view;

pub use rows::row_blocks;
pub use rows::{Dense, RowSource};

use crate::isa::Isa;
use crate::quant::integers::integers;
use faer::linalg::matmul::matmul as faer_matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use rows::ROW_BLOCK;
use std::cell::RefCell;
use std::ops::Range;

/// Where a product goes: columns `at ..` of a row-major matrix whose rows are `stride` long.
pub struct Output<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub at: usize,
}

impl<'a> Output<'a> {
    /// A whole matrix with rows of `cols`.
    pub fn whole(data: &'a mut [f32], cols: usize) -> Self {
        Output { data, stride: cols, at: 0 }
    }
}

/// Rows that are decoded together.
#[cfg(target_arch = "x86_64")]
const DECODE_ROWS: usize = 16;

/// Up to this many input rows, a dot product per weight row beats packing the rows for a matrix product.
const DOT_ROWS: usize = 3;

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y[n, rows] = x[n, cols] · w[rows, cols]ᵀ` in `f32`, each weight decoded once, parallel over blocks of weight rows.
/// Where weights are stored as integers, more than a few rows of `x` are multiplied as integers too, each product with an
/// error of at most about 3e-6 of `|x| |w|`, and mostly under 1e-6. The result is the same for any number of threads.
pub fn matmul(x: &[f32], w: &dyn RowSource, rows: Range<usize>, y: Output<'_>) {
    let (cols, out) = (w.cols(), rows.len());
    let n = x.len() / cols;
    if n == 0 || out == 0 {
        return;
    }
    let Output { data, stride, at } = y;
    // Column-major [out, n]: the transpose of the row-major result.
    let y = &mut data[at..at + (n - 1) * stride + out];
    let y = MatMut::from_column_major_slice_with_stride_mut(y, out, n, stride);
    if n > DOT_ROWS
        && Isa::active().has_pairs()
        && w.stored(rows.clone()).is_some()
        && let Some(known) = w.ggml_type().and_then(integers)
    {
        return integers::matmul(Isa::active(), known, x, w, rows.start, y);
    }
    let xt = MatRef::from_column_major_slice(x, cols, n);
    #[cfg(target_arch = "x86_64")]
    let avx512 = Isa::active().avx512().filter(|_| n > DOT_ROWS);
    row_blocks(y, ROW_BLOCK).into_par_iter().enumerate().for_each(|(block, mut y)| {
        DECODED.with_borrow_mut(|scratch| {
            let first = rows.start + block * ROW_BLOCK;
            let count = y.nrows();
            #[cfg(target_arch = "x86_64")]
            if let Some(avx512) = avx512 {
                scratch.resize((ROW_BLOCK + DECODE_ROWS) * cols, 0.0);
                let (panels, decoded) = scratch.split_at_mut(ROW_BLOCK * cols);
                for row in (0..count).step_by(DECODE_ROWS) {
                    let some = (count - row).min(DECODE_ROWS);
                    let wanted = first + row..first + row + some;
                    let decoded = w.plain(wanted.clone()).unwrap_or_else(|| {
                        w.decode(wanted, &mut decoded[..some * cols]);
                        &decoded[..some * cols]
                    });
                    let panel = &mut panels[row / gemm::PANEL * gemm::PANEL * cols..];
                    gemm::pack(avx512, decoded, cols, some, cols, panel, row % gemm::PANEL);
                }
                let x = gemm::Rows { data: x, step: cols, n, cols };
                // SAFETY: the `n` rows of `count` floats are those of `y`, which is this task's alone.
                unsafe { gemm::multiply(avx512, x, gemm::Panels::Packed(panels), count, y.as_ptr_mut(), stride) };
                return;
            }
            scratch.resize(ROW_BLOCK * cols, 0.0);
            let weights = &mut scratch[..count * cols];
            w.decode(first..first + count, weights);
            if n <= DOT_ROWS {
                for (t, x) in x.chunks_exact(cols).enumerate() {
                    for (r, w) in weights.chunks_exact(cols).enumerate() {
                        y[(r, t)] = vector::dot(w, x);
                    }
                }
            } else {
                let weights = MatRef::from_row_major_slice(weights, count, cols);
                faer_matmul(y, Accum::Replace, weights, xt, 1.0, Par::Seq);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    #[test]
    fn products_equal_the_triple_loop_in_every_shape() {
        for (n, cols, rows) in [(1, 64, 5), (3, 96, 70), (4, 33, 64), (13, 100, 131), (70, 256, 65)] {
            let w = Dense { data: numbers(rows * cols, 1), cols };
            let x = numbers(n * cols, 2);
            let (stride, at) = (rows + 7, 3);
            let mut y = vec![f32::NAN; n * stride];
            matmul(&x, &w, 2..rows, Output { data: &mut y, stride, at });
            for t in 0..n {
                for r in 2..rows {
                    let pairs = x[t * cols..][..cols].iter().zip(&w.data[r * cols..][..cols]);
                    let exact: f64 = pairs.map(|(a, b)| *a as f64 * *b as f64).sum();
                    let got = y[t * stride + at + r - 2];
                    assert!((got as f64 - exact).abs() < 1e-5 * (cols as f64), "{n} {cols} {rows}: {got} {exact}");
                }
                assert!(y[t * stride..][..at].iter().all(|v| v.is_nan()), "wrote outside its columns");
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let w = Dense { data: numbers(300 * 128, 3), cols: 128 };
        let x = numbers(50 * 128, 4);
        let run = |threads| {
            let mut y = vec![0.0; 50 * 300];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matmul(&x, &w, 0..300, Output::whole(&mut y, 300)));
            y
        };
        assert_eq!(run(1), run(3));
    }
}
