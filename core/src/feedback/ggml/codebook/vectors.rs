//! What the steps need to know of each vector of columns, made once per Hessian and type.

use super::super::matrices::{Hessian, Matrices, Triangles, inverse_factor};
use super::book::{Book, SUPER};

/// All of `n` columns, vectors of as many columns as the book has.
pub struct Vectors {
    pub matrices: Matrices,
    /// What an error in one column of a vector costs, the other columns of the vector fixed, when later columns make up for
    /// it: the diagonal of `(U_vvᵀ U_vv)⁻¹`.
    pub feedback: Vec<f32>,
    /// The same of the factors of the blocks' own inverses.
    pub own: Vec<f32>,
    /// The diagonal of H.
    pub diagonal: Vec<f32>,
    /// `H_vv⁻¹`, `[n / vector][vector, vector]`.
    pub inverse: Vec<f32>,
}

impl Vectors {
    pub fn new(hessian: &Hessian, book: &Book) -> Self {
        let matrices = Matrices::new(hessian, SUPER, book.block);
        let (n, vector) = (matrices.n, book.vector);
        let at = |i: usize, j: usize| f64::from(matrices.h.at(i, j));
        let mut inverse = Vec::with_capacity(n * vector);
        for first in (0..n).step_by(vector) {
            let h: Vec<f64> = (0..vector * vector).map(|k| at(first + k / vector, first + k % vector)).collect();
            let u = inverse_factor(&h, vector);
            for k in 0..vector * vector {
                let (i, j) = (k / vector, k % vector);
                inverse.push((0..=i.min(j)).map(|r| u[r * vector + i] * u[r * vector + j]).sum::<f64>() as f32);
            }
        }
        Vectors {
            feedback: weights(&matrices.feedback, book),
            own: weights(&matrices.own, book),
            diagonal: (0..n).map(|i| matrices.h.at(i, i)).collect(),
            inverse,
            matrices,
        }
    }
}

/// The diagonal of `(U_vvᵀ U_vv)⁻¹ = V Vᵀ` with `V = U_vv⁻¹`, for all vectors.
fn weights(triangles: &Triangles, book: &Book) -> Vec<f32> {
    let (block, vector) = (book.block, book.vector);
    let mut out = Vec::with_capacity(triangles.inverse.len());
    for first in (0..triangles.inverse.len()).step_by(vector) {
        let u = |i: usize, j: usize| f64::from(triangles.u[(first + j) * block + first % block + i]);
        let mut v = vec![0f64; vector * vector];
        for j in 0..vector {
            v[j * vector + j] = f64::from(triangles.inverse[first + j]);
            for i in (0..j).rev() {
                let sum: f64 = (i + 1..=j).map(|k| u(i, k) * v[k * vector + j]).sum();
                v[i * vector + j] = -sum * f64::from(triangles.inverse[first + i]);
            }
        }
        out.extend(v.chunks_exact(vector).map(|row| row.iter().map(|v| v * v).sum::<f64>() as f32));
    }
    out
}
