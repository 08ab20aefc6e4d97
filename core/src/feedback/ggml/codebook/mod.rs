//! Error feedback on ggml's codebooks (IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M), whose points are four or eight weights that
//! are chosen together: block LDLQ as in QuIP# (arXiv 2402.04396) on these grids, with scales chosen in the loop, and sweeps
//! of coordinate descent. The same problem and the same stages as one folder up; ggml's own search has no part in it.

mod book;
mod bundle;
mod polish;
mod scan;
#[cfg(test)]
pub(super) mod tests;
mod vectors;

use super::matrices::Hessian;
use crate::isa::Isa;
use crate::quant::GgmlType;
use crate::simd::{self, Float, Kernel};
use book::Book;
#[cfg(test)]
use book::SUPER;
use bundle::Bundle;
use scan::Tables;
use vectors::Vectors;

/// Whether `ty` is made here.
pub fn supports(ty: GgmlType) -> bool {
    Book::new(ty).is_some()
}

/// Everything that is the same for all rows and for all matrices with one input.
pub struct Codebook {
    book: Book,
    vectors: Vectors,
}

impl Codebook {
    /// `None` for types that are not made here. The columns are whole super-blocks.
    pub fn new(ty: GgmlType, hessian: &Hessian) -> Option<Self> {
        let book = Book::new(ty)?;
        let vectors = Vectors::new(hessian, &book);
        Some(Codebook { book, vectors })
    }

    /// Quantizes up to sixteen rows into the bytes of their blocks.
    pub fn rows(&self, rows: &[f32], sweeps: usize, isa: Isa, out: &mut [u8], row_bytes: usize) {
        self.bundle(rows, sweeps, isa).pack(&self.book, out, row_bytes);
    }

    fn bundle(&self, rows: &[f32], sweeps: usize, isa: Isa) -> Bundle {
        let mut bundle = Bundle::new(&self.book, rows, self.vectors.matrices.n);
        simd::run_16(isa, Task { codebook: self, bundle: &mut bundle, sweeps });
        bundle
    }
}

struct Task<'a> {
    codebook: &'a Codebook,
    bundle: &'a mut Bundle,
    sweeps: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        match self.codebook.book.point {
            4 => self.go::<V, 8, 2>(),
            _ => self.go::<V, 3, 4>(),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn go<V: Float, const LEVELS: usize, const HALF: usize>(self) {
        let Task { codebook: Codebook { book, vectors }, bundle, sweeps } = self;
        let mut tables = Tables::new();
        bundle.feedback::<V, LEVELS, HALF>(book, vectors, &mut tables);
        for _ in 0..sweeps {
            bundle.polish::<V, LEVELS, HALF>(book, vectors, &mut tables);
        }
    }
}
