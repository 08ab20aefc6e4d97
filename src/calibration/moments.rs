//! Second moments of what enters a linear layer: Σ x xᵀ over the tokens (half the Hessian of the layer's squared error),
//! with Σ |x| and max |x| per channel. Nothing here knows a model.
//!
//! Products are summed in `f32` over batches of at most [`BATCH`] tokens, and the batches in `f64`. The error is that of the
//! `f32` sums: below 1e-6 of Σ |xᵢ xⱼ| in practice, however many tokens there are. The order of additions is fixed for any number of threads.

use crate::kernel::bf16;
#[cfg(target_arch = "x86_64")]
use crate::{
    isa::{Avx512, Avx512Bf16, Isa},
    kernel::gemm,
};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::RefCell;

/// Tokens that are multiplied together.
pub const BATCH: usize = 2048;
/// Columns of the moment that one task computes.
const STRIP: usize = 64;
/// Channels that one task sums.
const CHANNELS: usize = 64;
/// Rows that are summed in `f32` before they join the `f64` sum.
const ROWS: usize = 16;

/// Second moments of the inputs of one linear layer, or of one expert's.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub cols: usize,
    /// `[cols, cols]`, symmetric: Σ x xᵀ over the tokens.
    pub gram: Vec<f32>,
    /// `[cols]`: Σ |x|.
    pub abs: Vec<f64>,
    /// `[cols]`: max |x|.
    pub max: Vec<f32>,
    pub tokens: u64,
}

impl Moments {
    /// The moments that an expert's matrices are rounded with, and for how many tokens they stand: its own, and with few
    /// tokens rather those of all experts (`mean`, of [`mean_gram`]), which count as many tokens as there are channels.
    pub fn leaning(&self, mean: Option<&[f32]>) -> (Cow<'_, [f32]>, f32) {
        let (tokens, cols) = (self.tokens as f32, self.cols as f32);
        match mean {
            None => ((&self.gram).into(), tokens),
            Some(mean) => {
                let sums = self.gram.par_iter().zip(mean).map(|(own, mean)| own + cols * mean);
                (sums.collect::<Vec<f32>>().into(), tokens + cols)
            }
        }
    }
}

/// The mean square of each channel of `gram`, `[cols, cols]`, over so many tokens.
pub fn importance(gram: &[f32], cols: usize, tokens: f32) -> Vec<f32> {
    (0..cols).map(|i| gram[i * cols + i] / tokens.max(1.0)).collect()
}

/// The mean second moment of a token over all experts; `None` for a dense layer.
pub fn mean_gram(moments: &[Moments]) -> Option<Vec<f32>> {
    let tokens: u64 = moments.iter().map(|m| m.tokens).sum();
    if moments.len() < 2 || tokens == 0 {
        return None;
    }
    let mut mean = vec![0.0; moments[0].gram.len()];
    for m in moments {
        mean.par_iter_mut().zip(&m.gram).for_each(|(sum, v)| *sum += v / tokens as f32);
    }
    Some(mean)
}

/// Collects [`Moments`] from batches of inputs.
pub struct Collector {
    cols: usize,
    /// The lower triangle in strips of [`STRIP`] columns; strip `i` is `[cols - i * STRIP, STRIP or the rest]`.
    strips: Vec<Vec<f64>>,
    abs: Vec<f64>,
    max: Vec<f32>,
    tokens: u64,
    /// Rows that wait for the next product, `[waiting, cols]`.
    waiting: Vec<f32>,
    batch: usize,
    bf16: bool,
}

thread_local! {
    static PRODUCT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Collector {
    /// For inputs of `cols` channels that are multiplied `batch` (at most [`BATCH`]) tokens at a time, rounded to bfloat16
    /// before if `bf16`: then [`Moments::gram`] is exact for the rounded inputs.
    pub fn new(cols: usize, batch: usize, bf16: bool) -> Self {
        let strip = |start: usize| vec![0.0; (cols - start) * STRIP.min(cols - start)];
        Self {
            cols,
            strips: (0..cols).step_by(STRIP).map(strip).collect(),
            abs: vec![0.0; cols],
            max: vec![0.0; cols],
            tokens: 0,
            waiting: Vec::new(),
            batch: batch.clamp(1, BATCH),
            bf16,
        }
    }

    /// Adds the rows of `x` (`[n, cols]`). How they are cut into calls does not matter for [`Moments::gram`]. Returns the
    /// first channel that is not finite, if there is one; then nothing of the result can be used.
    pub fn add(&mut self, mut x: &[f32]) -> Option<usize> {
        let cols = self.cols;
        let parts = self.abs.par_chunks_mut(CHANNELS).zip(self.max.par_chunks_mut(CHANNELS)).enumerate();
        parts.for_each(|(i, (abs, max))| magnitudes(x, cols, i * CHANNELS, abs, max));
        if let Some(channel) = self.abs.iter().position(|s| !s.is_finite()) {
            return Some(channel);
        }
        self.tokens += (x.len() / cols) as u64;
        while !x.is_empty() {
            // A whole batch that comes in one piece is not copied.
            if self.waiting.is_empty() && x.len() >= self.batch * cols {
                let (now, rest) = x.split_at(self.batch * cols);
                self.multiply(now);
                x = rest;
                continue;
            }
            let room = (self.batch * cols - self.waiting.len()).min(x.len());
            self.waiting.extend_from_slice(&x[..room]);
            x = &x[room..];
            if self.waiting.len() == self.batch * cols {
                self.flush();
            }
        }
        None
    }

    fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.multiply(&waiting);
        self.waiting = waiting;
        self.waiting.clear();
    }

    /// Adds xᵀ x of `x` (`[n, cols]`).
    fn multiply(&mut self, x: &[f32]) {
        let (cols, n) = (self.cols, x.len() / self.cols);
        if n == 0 {
            return;
        }
        let right = if self.bf16 { Right::bf16(x, n, cols) } else { Right::new(x, n, cols) };
        self.strips.par_iter_mut().enumerate().for_each(|(i, strip)| {
            let start = i * STRIP;
            let width = STRIP.min(cols - start);
            PRODUCT.with_borrow_mut(|product| {
                right.strip(start, width, product);
                for (sums, row) in strip.chunks_exact_mut(width).zip(product.chunks_exact(STRIP)) {
                    sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
                }
            });
        });
    }

    /// The moments of all rows so far.
    pub fn finish(mut self) -> Moments {
        self.flush();
        let cols = self.cols;
        let mut gram = vec![0.0; cols * cols];
        for (i, strip) in self.strips.iter_mut().enumerate() {
            let start = i * STRIP;
            let width = STRIP.min(cols - start);
            for (row, sums) in strip.chunks_exact(width).enumerate() {
                for (column, sum) in sums.iter().enumerate().take(row + 1) {
                    gram[(start + row) * cols + start + column] = *sum as f32;
                }
            }
            *strip = Vec::new();
        }
        mirror(&mut gram, cols);
        Moments { cols, gram, abs: self.abs, max: self.max, tokens: self.tokens }
    }
}

/// Copies the lower triangle to the upper, block by block.
fn mirror(gram: &mut [f32], cols: usize) {
    for block in (0..cols).step_by(STRIP) {
        for other in (0..=block).step_by(STRIP) {
            for i in block..(block + STRIP).min(cols) {
                for j in other..(other + STRIP).min(i) {
                    gram[j * cols + i] = gram[i * cols + j];
                }
            }
        }
    }
}

/// Adds the magnitudes of the rows of `x` (`[n, cols]`), channels `at ..`.
fn magnitudes(x: &[f32], cols: usize, at: usize, abs: &mut [f64], max: &mut [f32]) {
    let width = abs.len();
    for rows in x.chunks(ROWS * cols) {
        let mut sums = [0f32; CHANNELS];
        for row in rows.chunks_exact(cols) {
            for ((sum, max), x) in sums.iter_mut().zip(max.iter_mut()).zip(&row[at..at + width]) {
                *sum += x.abs();
                *max = max.max(x.abs());
            }
        }
        abs.iter_mut().zip(&sums).for_each(|(sum, part)| *sum += f64::from(*part));
    }
}

/// A batch `[n, cols]`, ready for products with itself.
enum Right {
    /// `[cols, n]`.
    Plain { transposed: Vec<f32>, n: usize },
    /// `[cols / PANEL rounded up, n, PANEL]`, the rest zeros.
    #[cfg(target_arch = "x86_64")]
    Panels { avx512: Avx512, panels: Vec<f32>, n: usize },
    /// Of pairs of tokens, `[cols / PANEL rounded up, pairs, PANEL]`.
    #[cfg(target_arch = "x86_64")]
    Pairs { isa: Avx512Bf16, panels: Vec<u32>, pairs: usize },
}

impl Right {
    fn new(x: &[f32], n: usize, cols: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx512) = Isa::active().avx512() {
            use gemm::PANEL;
            let mut panels = vec![0.0; cols.next_multiple_of(PANEL) * n];
            panels.par_chunks_exact_mut(n * PANEL).enumerate().for_each(|(i, panel)| {
                let from = i * PANEL;
                let width = PANEL.min(cols - from);
                for (place, row) in panel.chunks_exact_mut(PANEL).zip(x.chunks_exact(cols)) {
                    place[..width].copy_from_slice(&row[from..from + width]);
                }
            });
            return Right::Panels { avx512, panels, n };
        }
        Right::plain(x, n, cols)
    }

    /// Of inputs rounded to bfloat16.
    fn bf16(x: &[f32], n: usize, cols: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = Isa::active().avx512_bf16() {
            use gemm::PANEL;
            let pairs = n.div_ceil(2);
            let none = vec![0.0; cols];
            let mut panels = vec![0; cols.next_multiple_of(PANEL) * pairs];
            panels.par_chunks_exact_mut(pairs * PANEL).enumerate().for_each(|(i, panel)| {
                let part = i * PANEL..(i * PANEL + PANEL).min(cols);
                for (out, rows) in panel.chunks_exact_mut(PANEL).zip(x.chunks(2 * cols)) {
                    let (low, high) = rows.split_at(cols);
                    let high = if high.is_empty() { &none } else { high };
                    bf16::join(&low[part.clone()], &high[part.clone()], out);
                }
            });
            return Right::Pairs { isa, panels, pairs };
        }
        let mut x = x.to_vec();
        bf16::round(&mut x);
        Right::new(&x, n, cols)
    }

    fn plain(x: &[f32], n: usize, cols: usize) -> Self {
        let mut transposed = vec![0.0; n * cols];
        transposed.par_chunks_mut(16 * n).enumerate().for_each(|(block, out)| {
            for (t, row) in x.chunks_exact(cols).enumerate() {
                for (i, v) in row[block * 16..].iter().take(out.len() / n).enumerate() {
                    out[i * n + t] = *v;
                }
            }
        });
        Right::Plain { transposed, n }
    }

    /// Columns `start .. start + width` of the product from row `start` on, `[cols - start, STRIP]` with anything
    /// beyond `width`, and of the first rows only the lower triangle. `start` is a multiple of [`STRIP`].
    fn strip(&self, start: usize, width: usize, product: &mut Vec<f32>) {
        match self {
            Right::Plain { transposed, n } => {
                let x = &transposed[start * n..];
                let rows = x.len() / n;
                product.resize(rows * STRIP, 0.0);
                // The transpose of the row-major result, in the order of `kernel::matmul`.
                let y = MatMut::from_column_major_slice_with_stride_mut(product, width, rows, STRIP);
                let columns = MatRef::from_row_major_slice(&x[..width * n], width, *n);
                let rows = MatRef::from_column_major_slice(x, *n, rows);
                matmul(y, Accum::Replace, columns, rows, 1.0, Par::Seq);
            }
            #[cfg(target_arch = "x86_64")]
            Right::Panels { avx512, panels, n } => {
                let left = &panels[start * n..];
                let columns = width.next_multiple_of(gemm::PANEL) * n;
                product.resize(left.len() / n * STRIP, 0.0);
                gemm::multiply_panels(*avx512, left, &left[..columns], *n, product, STRIP);
            }
            #[cfg(target_arch = "x86_64")]
            Right::Pairs { isa, panels, pairs } => {
                let left = &panels[start * pairs..];
                let columns = width.next_multiple_of(gemm::PANEL) * pairs;
                product.resize(left.len() / pairs * STRIP, 0.0);
                bf16::fast::multiply_panels(*isa, left, &left[..columns], *pairs, product, STRIP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    fn collected(x: &[f32], cols: usize, batch: usize, piece: usize) -> Moments {
        let mut collector = Collector::new(cols, batch, false);
        x.chunks(piece * cols).for_each(|x| assert_eq!(collector.add(x), None));
        collector.finish()
    }

    #[test]
    fn moments_are_those_of_the_definition() {
        for (cols, n) in [(1, 5), (32, 1), (48, 300), (100, 77), (192, 2500)] {
            let x = numbers(n * cols, 9);
            let got = collected(&x, cols, BATCH, 64);
            assert_eq!((got.cols, got.tokens), (cols, n as u64));
            for i in 0..cols {
                let column = |i: usize| (0..n).map(move |t| (t, i));
                let value = |(t, i): (usize, usize)| f64::from(x[t * cols + i]);
                for j in 0..cols {
                    let pairs = || column(i).zip(column(j)).map(|(a, b)| value(a) * value(b));
                    let (exact, size) = (pairs().sum::<f64>(), pairs().map(f64::abs).sum::<f64>());
                    let error = (f64::from(got.gram[i * cols + j]) - exact).abs();
                    assert!(error <= 1e-6 * size, "[{i}, {j}] of {cols} x {n}: {error} of {size}");
                    assert_eq!(got.gram[i * cols + j], got.gram[j * cols + i]);
                }
                let exact: f64 = column(i).map(|p| value(p).abs()).sum();
                assert!((got.abs[i] / exact - 1.0).abs() < 1e-6);
                let largest = column(i).map(|p| value(p).abs()).fold(0.0, f64::max);
                assert_eq!(f64::from(got.max[i]), largest);
            }
        }
    }

    #[test]
    fn both_ways_to_multiply_are_right() {
        let (cols, n) = (150, 333);
        let x = numbers(n * cols, 5);
        let (fast, plain) = (Right::new(&x, n, cols), Right::plain(&x, n, cols));
        for start in (0..cols).step_by(STRIP) {
            let width = STRIP.min(cols - start);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            fast.strip(start, width, &mut a);
            plain.strip(start, width, &mut b);
            for row in 0..cols - start {
                for column in 0..width.min(row + 1) {
                    let pairs = x.chunks(cols).map(|x| f64::from(x[start + row]) * f64::from(x[start + column]));
                    let exact: f64 = pairs.sum();
                    for (way, strip) in [("fast", &a), ("plain", &b)] {
                        let got = f64::from(strip[row * STRIP + column]);
                        assert!((got - exact).abs() < 1e-4, "{way} {start} {row} {column}: {got} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn moments_of_rounded_inputs_are_those_of_the_rounded_numbers() {
        for (cols, n) in [(1, 5), (48, 301), (100, 2077)] {
            let x = numbers(n * cols, 9);
            let mut collector = Collector::new(cols, BATCH, true);
            assert_eq!(collector.add(&x), None);
            let mut rounded = x;
            bf16::round(&mut rounded);
            let (got, wanted) = (collector.finish().gram, collected(&rounded, cols, BATCH, n).gram);
            for (got, wanted) in got.iter().zip(&wanted) {
                assert!((got - wanted).abs() <= 1e-6 * n as f32, "{cols} x {n}: {got} {wanted}");
            }
        }
    }

    #[test]
    fn neither_threads_nor_pieces_change_a_bit() {
        let (cols, n) = (200, 700);
        let x = numbers(n * cols, 3);
        let run = |threads, piece| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| collected(&x, cols, 256, piece))
        };
        let one = run(1, 128);
        assert_eq!(one, run(2, 128));
        assert_eq!(one, run(7, 128));
        assert_eq!(one.gram, run(2, 700).gram);
        assert_eq!(one.gram, run(2, 33).gram);
    }

    #[test]
    fn what_is_no_number_is_named() {
        let mut x = vec![0.5; 3 * 40];
        x[40 + 7] = f32::INFINITY;
        assert_eq!(Collector::new(40, BATCH, false).add(&x), Some(7));
    }
}
