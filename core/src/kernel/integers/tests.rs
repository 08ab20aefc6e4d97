use super::super::{DOT_ROWS, Output, RowSource, matmul};
use crate::isa::Isa;
use crate::made::numbers;
use crate::quant::integers::integers;
use crate::quant::{GgmlType, dequantize_rows, quantize_rows};
use faer::MatMut;
use std::ops::Range;

struct Blocks {
    ty: GgmlType,
    bytes: Vec<u8>,
    cols: usize,
}

impl Blocks {
    /// `rows` random rows, rounded to `ty`.
    fn new(ty: GgmlType, rows: usize, cols: usize) -> Blocks {
        let mut bytes = vec![0; rows * ty.row_bytes(cols).unwrap()];
        quantize_rows(ty, &bell(rows * cols, ty as u32), cols, Some(&vec![1.0; cols]), &mut bytes).unwrap();
        Blocks { ty, bytes, cols }
    }

    fn bytes_of(&self, rows: Range<usize>) -> &[u8] {
        let size = self.ty.row_bytes(self.cols).unwrap();
        &self.bytes[rows.start * size..rows.end * size]
    }
}

impl RowSource for Blocks {
    fn rows(&self) -> usize {
        self.bytes.len() / self.ty.row_bytes(self.cols).unwrap()
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn ggml_type(&self) -> Option<GgmlType> {
        Some(self.ty)
    }

    fn stored(&self, rows: Range<usize>) -> Option<&[u8]> {
        Some(self.bytes_of(rows))
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        dequantize_rows(self.ty, self.bytes_of(rows), out).unwrap();
    }
}

/// Repeatable numbers that lie as those of a model do.
fn bell(n: usize, seed: u32) -> Vec<f32> {
    numbers(8 * n, seed).chunks_exact(8).map(|v| v.iter().sum()).collect()
}

/// `y[n, rows]` with the instructions of `isa`.
fn product(isa: Isa, x: &[f32], w: &Blocks, rows: Range<usize>) -> Vec<f32> {
    let (n, count) = (x.len() / w.cols, rows.len());
    let mut y = vec![f32::NAN; n * count];
    let known = integers(w.ty).unwrap();
    super::matmul(isa, known, x, w, rows.start, MatMut::from_column_major_slice_mut(&mut y, count, n));
    y
}

/// The largest error of a product, as a part of `|x| |w|`.
fn error(y: &[f32], x: &[f32], w: &Blocks, rows: Range<usize>) -> f64 {
    let mut weights = vec![0.0; rows.len() * w.cols];
    w.decode(rows.clone(), &mut weights);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut worst = 0f64;
    for (x, y) in x.chunks_exact(w.cols).zip(y.chunks_exact(rows.len())) {
        for (w, y) in weights.chunks_exact(w.cols).zip(y) {
            let norms = (dot(x, x) * dot(w, w)).sqrt();
            worst = worst.max((f64::from(*y) - dot(x, w)).abs() / norms);
        }
    }
    worst
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| integers(*ty).is_some())
}

#[test]
fn products_of_every_type_are_right_and_the_same_with_all_instructions() {
    let (n, cols) = (14, 2048);
    let mut x = bell(n * cols, 9);
    for (t, x) in x.chunks_exact_mut(cols).enumerate().skip(3) {
        // A few channels that stand out in all rows, as models have them; one alone; a row of small numbers but for one.
        match t % 4 {
            0 => [5, 700, cols - 1].iter().for_each(|c| x[*c] *= 100.0),
            1 => x[64] = 100.0,
            2 => x.iter_mut().enumerate().for_each(|(i, v)| *v *= if i == 31 { 1.0 } else { 1e-4 }),
            _ => {}
        }
    }
    for ty in types() {
        let w = Blocks::new(ty, 21, cols);
        let first = product(Isa::SCALAR, &x, &w, 2..21);
        let worst = error(&first, &x, &w, 2..21);
        assert!(worst < 3e-6, "{ty}: {worst}");
        for isa in Isa::available() {
            assert_eq!(first, product(isa, &x, &w, 2..21), "{ty}, {}", isa.name());
        }
    }
}

#[test]
fn every_shape_has_its_products() {
    for (n, cols, rows) in [(1, 32, 1), (4, 96, 33), (7, 64, 130), (12, 1056, 16), (25, 2080, 31)] {
        let (x, w) = (bell(n * cols, 3), Blocks::new(GgmlType::Q5_1, rows, cols));
        let first = product(Isa::SCALAR, &x, &w, 0..rows);
        let worst = error(&first, &x, &w, 0..rows);
        assert!(worst < 5e-6, "{n} {cols} {rows}: {worst}");
        for isa in Isa::available() {
            assert_eq!(first, product(isa, &x, &w, 0..rows), "{n} {cols} {rows}, {}", isa.name());
        }
    }
}

#[test]
fn matrices_of_blocks_are_multiplied_as_integers_by_any_number_of_threads() {
    let (n, rows, cols) = (50, 300, 256);
    let (x, w) = (bell(n * cols, 4), Blocks::new(GgmlType::Q4_K, rows, cols));
    let (stride, at) = (rows + 5, 2);
    let run = |threads, n: usize| {
        let mut y = vec![0.0; n * stride];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| matmul(&x[..n * cols], &w, 0..rows, Output { data: &mut y, stride, at }));
        y
    };
    let y = run(1, n);
    assert_eq!(y, run(3, n));
    let integers = product(Isa::active(), &x, &w, 0..rows);
    for (y, integers) in y.chunks_exact(stride).zip(integers.chunks_exact(rows)) {
        assert_eq!(y[at..at + rows], *integers);
    }
    // A row's products do not depend on its neighbours.
    assert_eq!(run(2, DOT_ROWS + 1), y[..(DOT_ROWS + 1) * stride]);
}

#[test]
fn a_row_that_is_not_finite_spoils_its_own_products_alone() {
    let (n, cols) = (14, 256);
    let (mut x, w) = (bell(n * cols, 5), Blocks::new(GgmlType::Q6_K, 20, cols));
    (x[3 * cols + 7], x[13 * cols]) = (f32::NAN, f32::INFINITY);
    // Numbers whose squares are none, and zeros.
    x[5 * cols..6 * cols].fill(1e-30);
    x[6 * cols..7 * cols].fill(0.0);
    for isa in Isa::available() {
        for (t, y) in product(isa, &x, &w, 0..20).chunks_exact(20).enumerate() {
            match t {
                3 | 13 => assert!(y.iter().all(|v| v.is_nan())),
                5 => assert!(y.iter().all(|v| *v != 0.0 && v.abs() < 1e-26)),
                6 => assert!(y.iter().all(|v| *v == 0.0)),
                _ => assert!(y.iter().all(|v| v.is_finite() && *v != 0.0)),
            }
        }
    }
}
