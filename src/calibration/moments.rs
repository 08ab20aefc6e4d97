//! Second moments of what enters a linear layer: the Hessian of the layer's output error (up to a factor), and the sums
//! that activation-aware scaling wants. Collected in batches; independent of the number of threads.

#[cfg(target_arch = "x86_64")]
use crate::kernel::gemm::{PANEL, Panels, Rows, multiply};
use crate::kernel::vector;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Tokens that are multiplied at once: their products are summed in `f32`, and these sums in `f64`.
const BATCH: usize = 2048;
/// Rows of the matrix that one task works out.
const ROWS: usize = 64;

/// Moments of one linear layer's input, or of one expert's.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub cols: usize,
    /// `[cols, cols]`: Σ x xᵀ over the tokens, symmetric.
    pub gram: Vec<f32>,
    /// Σ |x| per channel.
    pub abs: Vec<f64>,
    /// max |x| per channel.
    pub max: Vec<f32>,
    pub tokens: u64,
}

impl Moments {
    /// Mean of x² per channel, as an importance matrix has it; zeros when no token was seen.
    pub fn importance(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f32;
        (0..self.cols).map(|i| self.gram[i * self.cols + i] / tokens).collect()
    }
}

/// Moments in the making. Sums of up to 2048 tokens are `f32`, with a relative error of some 1e-6; all else is `f64`.
pub struct Collector {
    cols: usize,
    /// Tokens that wait for their batch, `[n, cols]`.
    rows: Vec<f32>,
    /// Upper triangle in blocks of [`ROWS`] rows.
    gram: Vec<f64>,
    abs: Vec<f64>,
    max: Vec<f32>,
    tokens: u64,
}

impl Collector {
    pub fn new(cols: usize) -> Self {
        Collector {
            cols,
            rows: Vec::new(),
            gram: vec![0.0; cols * cols],
            abs: vec![0.0; cols],
            max: vec![0.0; cols],
            tokens: 0,
        }
    }

    /// Adds the rows of `x` (`[n, cols]`). Returns the first channel that is not finite, if there is one.
    pub fn add(&mut self, x: &[f32]) -> Option<usize> {
        for row in x.chunks_exact(self.cols) {
            for ((abs, max), x) in self.abs.iter_mut().zip(&mut self.max).zip(row) {
                *abs += f64::from(x.abs());
                *max = max.max(x.abs());
            }
        }
        self.tokens += (x.len() / self.cols) as u64;
        let mut x = x;
        while !x.is_empty() {
            let (now, later) = x.split_at(x.len().min(BATCH * self.cols - self.rows.len()));
            self.rows.extend_from_slice(now);
            x = later;
            if self.rows.len() == BATCH * self.cols {
                self.flush();
            }
        }
        self.abs.iter().position(|sum| !sum.is_finite())
    }

    pub fn finish(mut self) -> Moments {
        self.flush();
        let n = self.cols;
        let gram = &self.gram;
        let mut full = vec![0.0; n * n];
        full.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            for (j, v) in row.iter_mut().enumerate() {
                *v = gram[i.min(j) * n + i.max(j)] as f32;
            }
        });
        Moments { cols: n, gram: full, abs: self.abs, max: self.max, tokens: self.tokens }
    }

    /// `gram += xᵀ x` for the tokens that wait.
    fn flush(&mut self) {
        let (n, tokens) = (self.cols, self.rows.len() / self.cols.max(1));
        if tokens == 0 {
            return;
        }
        let x = &self.rows;
        let mut transposed = vec![0.0; n * tokens];
        transposed.par_chunks_mut(16 * tokens).enumerate().for_each(|(block, out)| {
            for (t, row) in x.chunks_exact(n).enumerate() {
                for (i, v) in row[block * 16..].iter().take(out.len() / tokens).enumerate() {
                    out[i * tokens + t] = *v;
                }
            }
        });
        self.gram.par_chunks_mut(ROWS * n).enumerate().for_each(|(block, gram)| {
            let first = block * ROWS;
            let (rows, width) = (gram.len() / n, n - first);
            let mut product = vec![0.0; rows * width];
            outer(&transposed[first * tokens..(first + rows) * tokens], x, n, first, &mut product);
            for (gram, product) in gram.chunks_exact_mut(n).zip(product.chunks_exact(width)) {
                gram[first..].iter_mut().zip(product).for_each(|(sum, v)| *sum += f64::from(*v));
            }
        });
        self.rows.clear();
    }
}

/// `out[rows, n - first] = transposed[rows, tokens] · x[tokens, first ..]`.
fn outer(transposed: &[f32], x: &[f32], n: usize, first: usize, out: &mut [f32]) {
    let (tokens, width) = (x.len() / n, n - first);
    let rows = transposed.len() / tokens;
    #[cfg(target_arch = "x86_64")]
    if width.is_multiple_of(PANEL) && vector::has_avx512() {
        let left = Rows { data: transposed, step: tokens, n: rows, cols: tokens };
        let right = Panels::Plain { data: &x[first..], step: n };
        // SAFETY: AVX-512 was detected; `out` is `[rows, width]`.
        unsafe { multiply(left, right, width, out.as_mut_ptr(), width) };
        return;
    }
    let left = MatRef::from_row_major_slice(transposed, rows, tokens);
    let right = MatRef::from_row_major_slice_with_stride(&x[first..], tokens, width, n);
    matmul(MatMut::from_row_major_slice_mut(out, rows, width), Accum::Replace, left, right, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::numbers;

    #[test]
    fn moments_are_those_of_the_definition() {
        for (cols, n) in [(1, 3), (33, 10), (96, 2500), (100, 64), (160, 4100)] {
            let x = numbers(n * cols, cols as u32);
            let mut collector = Collector::new(cols);
            // In uneven pieces.
            for piece in x.chunks(37 * cols) {
                assert_eq!(collector.add(piece), None);
            }
            let m = collector.finish();
            assert_eq!((m.tokens, m.cols), (n as u64, cols));
            let scale = n as f64 / 3.0;
            for i in (0..cols).step_by(7) {
                for j in (0..cols).step_by(5) {
                    let exact: f64 = x.chunks_exact(cols).map(|r| f64::from(r[i]) * f64::from(r[j])).sum();
                    assert!((f64::from(m.gram[i * cols + j]) - exact).abs() < 1e-6 * scale, "{cols} {i} {j}");
                    assert_eq!(m.gram[i * cols + j], m.gram[j * cols + i]);
                }
                let abs: f64 = x.chunks_exact(cols).map(|r| f64::from(r[i].abs())).sum();
                assert!((m.abs[i] - abs).abs() < 1e-9 * scale);
                assert_eq!(m.max[i], x.chunks_exact(cols).map(|r| r[i].abs()).fold(0.0, f32::max));
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let x = numbers(3000 * 96, 5);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut collector = Collector::new(96);
                collector.add(&x);
                collector.finish()
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(7));
    }

    #[test]
    fn a_channel_that_is_not_a_number_is_named() {
        let mut x = numbers(4 * 8, 1);
        x[13] = f32::NAN;
        assert_eq!(Collector::new(8).add(&x), Some(5));
    }
}
