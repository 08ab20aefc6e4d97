//! The one piece of linear algebra that error feedback needs: the upper triangular `U` with `H⁻¹ = Uᵀ U`, in `f64`, in
//! place. Written out, and not taken from a library, because the result decides bytes: block sizes and the order of
//! additions are fixed, so any number of threads and any instruction set give the same bits.

use crate::isa::Isa;
use crate::simd::{self, Float, Kernel};
use rayon::prelude::*;

/// Rows and columns of a block.
const BLOCK: usize = 64;
/// Rows and columns of a tile whose sums stay in registers.
const ROWS: usize = 4;
const COLS: usize = 16;

/// Replaces the lower triangle of `a` (`[n, n]`, symmetric) by `L⁻¹` where `a = L Lᵀ`; what is above the diagonal is
/// undefined afterwards. `false` (and `a` spoiled) when `a` is not positive definite.
pub fn invert_factor(a: &mut [f64], n: usize, isa: Isa) -> bool {
    factor(a, n, isa) && {
        invert(a, n, isa);
        true
    }
}

/// `a = L Lᵀ`, right-looking, in the lower triangle.
fn factor(a: &mut [f64], n: usize, isa: Isa) -> bool {
    let mut transposed = Vec::new();
    for at in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - at);
        let end = at + width;
        // The diagonal block, by the definition.
        for j in at..end {
            for i in j..end {
                let mut v = a[i * n + j];
                for k in at..j {
                    v -= a[i * n + k] * a[j * n + k];
                }
                if i == j {
                    if !(v > 0.0 && v.is_finite()) {
                        return false;
                    }
                    a[i * n + j] = v.sqrt();
                } else {
                    a[i * n + j] = v / a[j * n + j];
                }
            }
        }
        // The rows below it: X L_kkᵀ = A.
        let (above, below) = a.split_at_mut(end * n);
        let diagonal = |j: usize, k: usize| above[(at + j) * n + at + k];
        below.par_chunks_mut(n).for_each(|row| {
            let row = &mut row[at..end];
            for j in 0..width {
                let mut v = row[j];
                for (k, x) in row[..j].iter().enumerate() {
                    v -= x * diagonal(j, k);
                }
                row[j] = v / diagonal(j, j);
            }
        });
        // And their products from what is to the right of it.
        let rest = n - end;
        transposed.resize(width * rest, 0.0);
        for (i, row) in below.chunks(n).enumerate() {
            for (k, v) in row[at..end].iter().enumerate() {
                transposed[k * rest + i] = *v;
            }
        }
        below.par_chunks_mut(BLOCK * n).enumerate().for_each(|(block, rows)| {
            // Only up to the diagonal.
            let cols = ((block + 1) * BLOCK).min(rest);
            let x: Vec<f64> = rows.chunks(n).flat_map(|row| row[at..end].iter().copied()).collect();
            let x = Matrix { data: &x, stride: width };
            let m = Matrix { data: &transposed, stride: rest };
            simd::run(isa, Subtract { x, m, depth: width, out: rows, stride: n, at: end, cols });
        });
    }
    true
}

/// `L⁻¹` in place of `L`, one block of rows after the other: `M_r = L_rr⁻¹ (I_r - Σ_{p<r} L_rp M_p)`.
fn invert(a: &mut [f64], n: usize, isa: Isa) {
    for at in (0..n).step_by(BLOCK) {
        let height = BLOCK.min(n - at);
        let (above, rows) = a.split_at_mut(at * n);
        let rows = &mut rows[..height * n];
        let left: Vec<f64> = rows.chunks(n).flat_map(|row| row[..at].iter().copied()).collect();
        let diagonal: Vec<f64> = rows.chunks(n).flat_map(|row| row[at..at + height].iter().copied()).collect();
        let above = &*above;
        // Blocks of columns are independent of each other.
        let columns: Vec<Vec<f64>> = (0..at + height)
            .into_par_iter()
            .step_by(BLOCK)
            .map(|from| {
                let cols = BLOCK.min(at + height - from);
                let mut out = vec![0.0; height * cols];
                if from < at {
                    // M has no blocks above its diagonal.
                    let x = Matrix { data: &left[from..], stride: at };
                    let m = Matrix { data: &above[from * n + from..], stride: n };
                    simd::run(isa, Subtract { x, m, depth: at - from, out: &mut out, stride: cols, at: 0, cols });
                } else {
                    (0..height).for_each(|i| out[i * cols + i] = 1.0);
                }
                simd::run(isa, Solve { diagonal: &diagonal, height, out: &mut out, cols });
                out
            })
            .collect();
        for (block, out) in columns.iter().enumerate() {
            let (from, cols) = (block * BLOCK, BLOCK.min(at + height - block * BLOCK));
            for (row, out) in rows.chunks_mut(n).zip(out.chunks(cols)) {
                row[from..from + cols].copy_from_slice(out);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f64],
    stride: usize,
}

/// `out[r, at + c] -= Σ_k x[r, k] · m[k, c]` for all rows of `out`, `k < depth`, `c < cols`.
struct Subtract<'a> {
    x: Matrix<'a>,
    m: Matrix<'a>,
    depth: usize,
    out: &'a mut [f64],
    stride: usize,
    at: usize,
    cols: usize,
}

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        let Subtract { x, m, depth, out, stride, at, cols } = self;
        let mut panel = vec![[0.0; COLS]; depth];
        for from in (0..cols).step_by(COLS) {
            let width = COLS.min(cols - from);
            for (k, panel) in panel.iter_mut().enumerate() {
                panel[..width].copy_from_slice(&m.data[k * m.stride + from..][..width]);
            }
            for (tile, out) in out.chunks_mut(ROWS * stride).enumerate() {
                let rows = out.len() / stride;
                // Rows beyond the last are computed as the last again and dropped.
                let x: [&[f64]; ROWS] =
                    std::array::from_fn(|r| &x.data[(tile * ROWS + r.min(rows - 1)) * x.stride..][..depth]);
                let mut sums = [[0.0; COLS]; ROWS];
                for (k, panel) in panel.iter().enumerate() {
                    for r in 0..ROWS {
                        let v = x[r][k];
                        for c in 0..COLS {
                            sums[r][c] += v * panel[c];
                        }
                    }
                }
                for (row, sums) in out.chunks_mut(stride).zip(&sums) {
                    for (v, sum) in row[at + from..at + from + width].iter_mut().zip(sums) {
                        *v -= sum;
                    }
                }
            }
        }
    }
}

/// `out = L⁻¹ out` for the lower triangular `diagonal` (`[height, height]`); `out` is `[height, cols]`.
struct Solve<'a> {
    diagonal: &'a [f64],
    height: usize,
    out: &'a mut [f64],
    cols: usize,
}

impl Kernel for Solve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        let Solve { diagonal, height, out, cols } = self;
        for i in 0..height {
            let (done, row) = out.split_at_mut(i * cols);
            let row = &mut row[..cols];
            for (k, done) in done.chunks(cols).enumerate() {
                let l = diagonal[i * height + k];
                row.iter_mut().zip(done).for_each(|(v, done)| *v -= l * done);
            }
            let inverse = 1.0 / diagonal[i * height + i];
            row.iter_mut().for_each(|v| *v *= inverse);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::made::numbers;

    /// A positive definite matrix that is far from diagonal.
    pub(in super::super) fn spd(n: usize, samples: usize, seed: u32) -> Vec<f32> {
        let x = numbers(n * samples, seed);
        let mut h = vec![0.0; n * n];
        for x in x.chunks(n) {
            // Neighbours are alike, and powers differ.
            let y: Vec<f32> = (0..n).map(|i| (x[i] + 0.7 * x[(i + 1) % n]) * (1.0 + (i % 7) as f32)).collect();
            for i in 0..n {
                for j in 0..n {
                    h[i * n + j] += y[i] * y[j];
                }
            }
        }
        h
    }

    #[test]
    fn the_inverse_factor_is_that_of_the_definition() {
        for n in [1, 2, 63, 64, 65, 150] {
            let h: Vec<f64> = spd(n, 2 * n + 3, 5).iter().map(|v| f64::from(*v)).collect();
            let mut m = h.clone();
            assert!(invert_factor(&mut m, n, Isa::active()));
            // M H Mᵀ = I.
            let lower = |i: usize, j: usize| if j <= i { m[i * n + j] } else { 0.0 };
            for i in 0..n {
                let mh: Vec<f64> = (0..n).map(|c| (0..=i).map(|k| lower(i, k) * h[k * n + c]).sum()).collect();
                for j in 0..n {
                    let v: f64 = (0..n).map(|k| mh[k] * lower(j, k)).sum();
                    assert!((v - f64::from(i == j)).abs() < 1e-8, "{n}: [{i}, {j}] = {v}");
                }
            }
        }
    }

    #[test]
    fn threads_and_instruction_sets_give_the_same_bits() {
        let n = 200;
        let h: Vec<f64> = spd(n, 300, 6).iter().map(|v| f64::from(*v)).collect();
        let run = |threads, isa| {
            let mut m = h.clone();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| invert_factor(&mut m, n, isa)));
            m
        };
        let first = run(1, Isa::SCALAR);
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert!(run(threads, isa) == first, "{isa:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused() {
        let n = 70;
        let mut h = vec![0.0; n * n];
        (0..n).for_each(|i| h[i * n + i] = 1.0);
        h[69 * n + 69] = -1e-9;
        assert!(!invert_factor(&mut h, n, Isa::active()));
        assert!(!invert_factor(&mut [f64::NAN], 1, Isa::active()));
    }
}
