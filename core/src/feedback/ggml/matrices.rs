//! What the steps need from H and U, laid out for sequential reading: panels of sixteen columns, made once per input; the
//! triangles and inverses of the diagonal blocks of one sub-block each, and sums over sub-blocks, once per type too.

use super::lanes::LANES;
use crate::feedback::Factor;
use crate::quant::QuantError;
use std::ops::Range;
use std::sync::Arc;

/// Columns of a panel.
pub const PANEL: usize = 16;

/// A matrix `[n, n]` in panels of sixteen columns, of which each holds its rows one after the other.
pub struct Panels {
    data: Vec<f32>,
    n: usize,
    /// Only the rows of the upper triangle, down to the panel's own last row.
    upper: bool,
}

impl Panels {
    pub fn new(matrix: &[f32], n: usize, upper: bool) -> Self {
        let mut data = Vec::with_capacity(if upper { n * (n + PANEL) / 2 } else { n * n });
        for first in (0..n).step_by(PANEL) {
            let rows = if upper { first + PANEL } else { n };
            for row in matrix.chunks_exact(n).take(rows) {
                data.extend_from_slice(&row[first..first + PANEL]);
            }
        }
        Panels { data, n, upper }
    }

    /// Rows `rows` of panel `index`, `[rows, PANEL]`.
    #[inline(always)]
    pub fn rows(&self, index: usize, rows: Range<usize>) -> &[f32] {
        let start = if self.upper { PANEL * index * (index + 1) / 2 } else { self.n * index };
        &self.data[(start + rows.start) * PANEL..(start + rows.end) * PANEL]
    }

    /// The element in row `i`, column `j`.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        self.rows(j / PANEL, i..i + 1)[j % PANEL]
    }
}

/// A regularised Hessian H and the upper U with `H⁻¹ = UᵀU`, in panels; for any number of types.
#[derive(Clone)]
pub struct Hessian {
    pub(super) n: usize,
    pub(super) h: Arc<Panels>,
    pub(super) u: Arc<Panels>,
}

impl Hessian {
    /// From a factor with its columns in their natural order.
    ///
    /// Errors: columns in another order, or not a multiple of 16 of them.
    pub fn new(factor: Factor) -> Result<Self, QuantError> {
        let n = factor.len();
        if factor.order().iter().enumerate().any(|(i, column)| i != *column as usize) {
            return Err(QuantError::Length { what: format!("the {n} columns are not in their natural order") });
        }
        let diagonal = factor.importance().to_vec();
        let (h, u) = factor.into_full().unwrap_or_else(|| {
            let of = |f: fn(f32) -> f32| {
                let mut m = vec![0.0; n * n];
                diagonal.iter().enumerate().for_each(|(i, v)| m[i * n + i] = f(*v));
                m
            };
            (of(|v| v), of(|v| 1.0 / v.sqrt()))
        });
        Self::from_matrices(h, u, n)
    }

    /// From H and U, both `[n, n]`.
    pub(super) fn from_matrices(h: Vec<f32>, u: Vec<f32>, n: usize) -> Result<Self, QuantError> {
        if n == 0 || !n.is_multiple_of(PANEL) || h.len() < n * n || u.len() < n * n {
            let what = format!("the Hessian is not of {n} columns, a multiple of {PANEL}");
            return Err(QuantError::Length { what });
        }
        // Each matrix goes as soon as it is laid out anew: there may be gigabytes of them.
        let h = Arc::new(Panels::new(&{ h }, n, false));
        let u = Arc::new(Panels::new(&{ u }, n, true));
        Ok(Hessian { n, h, u })
    }
}

/// One triangle `[sub, sub]` per sub-block: row j holds `U[i, j]` for i < j, then zeros; and `1 / U[j, j]`.
pub struct Triangles {
    pub u: Vec<f32>,
    pub inverse: Vec<f32>,
    /// `1 / U[j, j]²`: what an error in column j alone costs.
    pub weights: Vec<f32>,
}

/// See the file's head. All of `n` columns, sub-blocks of `sub`.
pub struct Matrices {
    pub n: usize,
    pub h: Arc<Panels>,
    pub u: Arc<Panels>,
    /// Of U itself.
    pub feedback: Triangles,
    /// Of the factors of the inverses of H's diagonal blocks: `H_bb⁻¹ = U_bᵀ U_b`.
    pub own: Triangles,
    /// `H_bb⁻¹`, `[n / sub][sub, sub]`.
    pub own_inverse: Vec<f32>,
    pub inverse_diagonal: Vec<f32>,
    /// `[n, subs]`: the sum of row i of H over each sub-block of its own block.
    pub row_sums: Vec<f32>,
    /// `[n / block][subs, subs]`: the sums of H over pairs of sub-blocks of a block.
    pub sums: Vec<f32>,
}

impl Matrices {
    /// Of a Hessian whose columns are a multiple of `block`, which is a multiple of `sub`.
    pub fn new(hessian: &Hessian, block: usize, sub: usize) -> Self {
        let Hessian { n, h, u } = hessian;
        let n = *n;
        let subs = block / sub;
        debug_assert!(n.is_multiple_of(block) && LANES == PANEL);
        let mut feedback = Triangles { u: vec![0.0; n * sub], inverse: vec![0.0; n], weights: vec![0.0; n] };
        let mut own = Triangles { u: vec![0.0; n * sub], inverse: vec![0.0; n], weights: vec![0.0; n] };
        let mut own_inverse = vec![0.0; n * sub];
        for first in (0..n).step_by(sub) {
            let part = |m: &Panels, i: usize, j: usize| f64::from(m.at(first + i, first + j));
            let h_bb: Vec<f64> = (0..sub * sub).map(|k| part(h, k / sub, k % sub)).collect();
            let u_b = inverse_factor(&h_bb, sub);
            feedback.set(first, sub, |i, j| part(u, i, j));
            own.set(first, sub, |i, j| u_b[i * sub + j]);
            for (k, out) in own_inverse[first * sub..(first + sub) * sub].iter_mut().enumerate() {
                let (i, j) = (k / sub, k % sub);
                *out = (0..=i.min(j)).map(|r| u_b[r * sub + i] * u_b[r * sub + j]).sum::<f64>() as f32;
            }
        }
        let mut row_sums = vec![0.0; n * subs];
        let mut sums = vec![0f64; n / block * subs * subs];
        for i in 0..n {
            let (index, at) = (i / block, i % block / sub);
            for b in 0..subs {
                let first = index * block + b * sub;
                let sum: f64 = (first..first + sub).map(|j| f64::from(h.at(i, j))).sum();
                row_sums[i * subs + b] = sum as f32;
                sums[(index * subs + at) * subs + b] += sum;
            }
        }
        Matrices {
            n,
            h: h.clone(),
            u: u.clone(),
            feedback,
            own,
            own_inverse,
            inverse_diagonal: (0..n).map(|i| 1.0 / h.at(i, i)).collect(),
            row_sums,
            sums: sums.into_iter().map(|v| v as f32).collect(),
        }
    }
}

impl Triangles {
    /// Takes the triangle of the sub-block that begins at column `first`.
    fn set(&mut self, first: usize, sub: usize, u: impl Fn(usize, usize) -> f64) {
        for j in 0..sub {
            for i in 0..j {
                self.u[(first + j) * sub + i] = u(i, j) as f32;
            }
            self.inverse[first + j] = (1.0 / u(j, j)) as f32;
            self.weights[first + j] = (1.0 / (u(j, j) * u(j, j))) as f32;
        }
    }
}

/// The upper U with `h⁻¹ = UᵀU` of a small positive definite `h` (`[n, n]`): the inverse of the upper R with `h = R Rᵀ`.
pub(super) fn inverse_factor(h: &[f64], n: usize) -> Vec<f64> {
    let mut r = vec![0f64; n * n];
    for j in (0..n).rev() {
        for i in (0..=j).rev() {
            let rest: f64 = (j + 1..n).map(|k| r[i * n + k] * r[j * n + k]).sum();
            let value = h[i * n + j] - rest;
            r[i * n + j] = if i == j { value.max(f64::MIN_POSITIVE).sqrt() } else { value / r[j * n + j] };
        }
    }
    let mut u = vec![0f64; n * n];
    for j in 0..n {
        u[j * n + j] = 1.0 / r[j * n + j];
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| r[i * n + k] * u[k * n + j]).sum();
            u[i * n + j] = -sum / r[i * n + i];
        }
    }
    u
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let n = 5;
        let a: Vec<f64> = (0..n * n).map(|i| ((i * 7919 % 31) as f64 - 15.0) / 15.0).collect();
        let h: Vec<f64> = (0..n * n)
            .map(|k| {
                let (i, j) = (k / n, k % n);
                (0..n).map(|t| a[i * n + t] * a[j * n + t]).sum::<f64>() + if i == j { 0.5 } else { 0.0 }
            })
            .collect();
        let u = inverse_factor(&h, n);
        for i in 0..n {
            assert!((0..i).all(|j| u[i * n + j] == 0.0), "not upper");
            for j in 0..n {
                let product = |x: usize, y: usize| (0..n).map(|t| u[t * n + x] * u[t * n + y]).sum::<f64>();
                let one: f64 = (0..n).map(|k| product(i, k) * h[k * n + j]).sum();
                assert!((one - if i == j { 1.0 } else { 0.0 }).abs() < 1e-9, "{i} {j}: {one}");
            }
        }
    }
}
