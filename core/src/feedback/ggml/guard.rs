//! What quantized rows lose on data that had no part in making them: the guard that takes ggml's blocks back where
//! feedback does not hold, and the table of losses by type that a byte budget is spent by. Sums run in a fixed order,
//! since they decide bytes.

use super::lanes::LANES;
use super::matrices::{Hessian, PANEL, Panels};
use super::rounding::subtract;
use super::{Prepared, Stage, feedback_rows, supports};
use crate::isa::Isa;
use crate::quant::{GgmlType, QuantError, dequantize_rows, quantize_rows};
use crate::simd::{self, F32x16, Float, Kernel};
use rayon::prelude::*;

/// A second moment to measure with: of held-out data, or of one kind of text.
pub struct Gauge {
    n: usize,
    /// The upper triangle.
    h: Panels,
}

impl Gauge {
    /// From `gram` (`[n, n]`, Σ x xᵀ, symmetric); n is a multiple of 16.
    ///
    /// Errors: a matrix of another size.
    pub fn new(gram: &[f32], n: usize) -> Result<Self, QuantError> {
        if n == 0 || !n.is_multiple_of(PANEL) || gram.len() != n * n {
            return Err(QuantError::Length {
                what: format!("the moments are not of {n} columns, a multiple of {PANEL}"),
            });
        }
        Ok(Gauge { n, h: Panels::new(gram, n, true) })
    }

    /// Σ e'He over the rows of `w` (`[rows, n]`) as `bytes` of `ty` hold them: the squared error of the layer's output,
    /// summed over the tokens.
    ///
    /// Errors: lengths that do not fit.
    pub fn loss(&self, ty: GgmlType, w: &[f32], bytes: &[u8]) -> Result<f64, QuantError> {
        let n = self.n;
        let row_bytes = ty.row_bytes(n).ok_or(QuantError::NotWholeBlocks { ty, cols: n, block: ty.block() })?;
        if !w.len().is_multiple_of(n) || w.len() / n * row_bytes != bytes.len() {
            return Err(QuantError::Length { what: format!("{} bytes do not hold {} weights", bytes.len(), w.len()) });
        }
        let isa = Isa::active();
        let bundles = w.par_chunks(LANES * n).zip(bytes.par_chunks(LANES * row_bytes));
        let losses: Result<Vec<f64>, QuantError> = bundles
            .map(|(w, bytes)| {
                let mut decoded = vec![0.0; w.len()];
                dequantize_rows(ty, bytes, &mut decoded)?;
                let mut error = vec![F32x16::ZERO; n];
                for (lane, (w, v)) in w.chunks_exact(n).zip(decoded.chunks_exact(n)).enumerate() {
                    for (error, (w, v)) in error.iter_mut().zip(w.iter().zip(v)) {
                        error.0[lane] = w - v;
                    }
                }
                Ok(simd::run_16(isa, Quadratic { h: &self.h, n, x: &error }))
            })
            .collect();
        Ok(losses?.iter().sum())
    }
}

/// Σ x'Hx over a bundle.
struct Quadratic<'a> {
    h: &'a Panels,
    n: usize,
    x: &'a [F32x16],
}

impl Kernel for Quadratic<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<V: Float>(self) -> f64 {
        let mut sum = 0.0;
        for first in (0..self.n).step_by(PANEL) {
            let columns = first..first + PANEL;
            // What stands above the panel's own square stands to the left of it too.
            let (mut above, mut square) = ([F32x16::ZERO; PANEL], [F32x16::ZERO; PANEL]);
            subtract::<V>(&mut above, self.h, columns.clone(), 0..first, &self.x[..first]);
            subtract::<V>(&mut square, self.h, columns.clone(), columns.clone(), &self.x[columns.clone()]);
            for ((above, square), x) in above.iter().zip(&square).zip(&self.x[columns]) {
                let products = above.0.iter().zip(&square.0).map(|(a, s)| 2.0 * f64::from(*a) + f64::from(*s));
                sum -= products.zip(&x.0).map(|(p, x)| p * f64::from(*x)).sum::<f64>();
            }
        }
        sum
    }
}

/// Whether feedback is kept for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub keep: bool,
    /// By gauge: the loss of feedback's blocks and of ggml's.
    pub losses: Vec<(f64, f64)>,
}

impl Verdict {
    /// Feedback is kept where it loses no more than ggml's search under any of the gauges, one for each kind of text.
    ///
    /// Errors: as [`Gauge::loss`].
    pub fn new(gauges: &[Gauge], ty: GgmlType, w: &[f32], feedback: &[u8], ggml: &[u8]) -> Result<Self, QuantError> {
        let pair = |gauge: &Gauge| Ok((gauge.loss(ty, w, feedback)?, gauge.loss(ty, w, ggml)?));
        let losses = gauges.iter().map(pair).collect::<Result<Vec<_>, QuantError>>()?;
        Ok(Verdict { keep: losses.iter().all(|(feedback, ggml)| feedback <= ggml), losses })
    }
}

/// What one type would cost one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeLoss {
    pub ty: GgmlType,
    pub bytes: u64,
    /// As [`Gauge::loss`].
    pub loss: f64,
}

/// The losses of `w` (`[rows, cols]`) in each of `types`: with feedback where the type has it, else by ggml's
/// search with `importance`.
///
/// Errors: those of quantizing.
pub fn losses_by_type(
    hessian: &Hessian,
    gauge: &Gauge,
    w: &[f32],
    importance: &[f32],
    types: &[GgmlType],
    stage: Stage,
) -> Result<Vec<TypeLoss>, QuantError> {
    let cols = hessian.n;
    let rows = w.len() / cols.max(1);
    let row = |ty: GgmlType| {
        let row_bytes = ty.row_bytes(cols).ok_or(QuantError::NotWholeBlocks { ty, cols, block: ty.block() })?;
        let mut out = vec![0; rows * row_bytes];
        if supports(ty) {
            feedback_rows(&Prepared::new(ty, hessian)?, w, importance, stage, &mut out)?;
        } else {
            quantize_rows(ty, w, cols, Some(importance), &mut out)?;
        }
        Ok(TypeLoss { ty, bytes: out.len() as u64, loss: gauge.loss(ty, w, &out)? })
    };
    types.iter().map(|ty| row(*ty)).collect()
}
