//! Error feedback on ggml's grids: blocks of Q2_K .. Q6_K, Q4_0 .. Q8_0, IQ4_NL and IQ4_XS, and in [`codebook`] those of the
//! i-quants below four bits, whose scales and codes are chosen under the whole Hessian of the layer, so that one weight's error is made good by the others, in bytes that every
//! reader of these types decodes. Pure functions on rows and matrices: no files, no models.
//!
//! The problem, row by row: minimise e'He over all blocks that the type can hold, where e = w − ŵ and H is the second
//! moment of the layer's input. The stages, each better and dearer than the one before: **B**, feedback (GPTQ, Frantar et
//! al. 2022) with ggml's own scales; **C**, scales searched in the loop; **D**, a sweep of coordinate descent over
//! sub-blocks, codes and block scales (after CDQuant and the two-stage grid optimisation of arXiv 2602.02126).

// A lane is a row of several arrays at once; one index for all of them says so.
#![allow(clippy::needless_range_loop)]

mod bundle;
mod candidates;
mod codebook;
mod guard;
mod lanes;
mod layout;
mod matrices;
mod polish;
mod rounding;
mod search;
#[cfg(test)]
mod tests;

use crate::isa::Isa;
use crate::quant::{GgmlType, QuantError, QuantizeRow, codec};
use crate::simd::{self, Float, Kernel};
pub use guard::{Gauge, TypeLoss, Verdict, losses_by_type};

use bundle::{Bundle, FirstPass};
use codebook::Codebook;
use lanes::LANES;
use layout::Layout;
pub use matrices::Hessian;
use matrices::Matrices;
use rayon::prelude::*;

/// Where to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// B: scales by ggml's search on the compensated blocks. Codebooks begin with C.
    GgmlScales,
    /// C: scales by in-loop search.
    InLoop,
    /// D: that, and this many polish sweeps.
    Polish(usize),
}

impl Default for Stage {
    fn default() -> Self {
        Stage::Polish(1)
    }
}

/// Whether feedback can make blocks of `ty`.
pub fn supports(ty: GgmlType) -> bool {
    layout::layout(ty).is_some() || codebook::supports(ty)
}

/// A Hessian made ready for one type: everything that is the same for all rows and for all matrices with this input.
pub struct Prepared {
    ty: GgmlType,
    cols: usize,
    grid: Grid,
}

enum Grid {
    Levels(Levels),
    Codebook(Codebook),
}

/// A grid of levels, one weight at a time.
struct Levels {
    layout: Layout,
    quantize: QuantizeRow,
    matrices: Matrices,
}

impl Prepared {
    /// From the Hessian of the layer's input.
    ///
    /// Errors: a type without feedback, columns that are not whole blocks.
    pub fn new(ty: GgmlType, hessian: &Hessian) -> Result<Self, QuantError> {
        let (unsupported, cols) = (QuantError::Unsupported { ty }, hessian.n);
        let quantize = codec(ty).and_then(|c| c.quantize).filter(|_| supports(ty)).ok_or(unsupported.clone())?;
        if !cols.is_multiple_of(ty.block()) {
            return Err(QuantError::NotWholeBlocks { ty, cols, block: ty.block() });
        }
        let grid = match layout::layout(ty) {
            Some(layout) => {
                let matrices = Matrices::new(hessian, layout.block, layout.sub);
                Grid::Levels(Levels { layout, quantize, matrices })
            }
            None => Grid::Codebook(Codebook::new(ty, hessian).ok_or(unsupported)?),
        };
        Ok(Prepared { ty, cols, grid })
    }
}

/// Quantizes whole rows `w` (`[rows, cols]`) into the bytes of their blocks. `importance` (`[cols]`, the diagonal of the
/// Hessian over the number of tokens, as an importance matrix has it) steers ggml's search in [`Stage::GgmlScales`].
/// Rows do not depend on each other, and neither threads nor instruction sets change a bit.
///
/// Errors: lengths that do not fit, a weight that is not finite.
pub fn feedback_rows(
    prepared: &Prepared,
    w: &[f32],
    importance: &[f32],
    stage: Stage,
    out: &mut [u8],
) -> Result<(), QuantError> {
    run(prepared, w, importance, stage, out, Isa::active())
}

fn run(
    prepared: &Prepared,
    w: &[f32],
    importance: &[f32],
    stage: Stage,
    out: &mut [u8],
    isa: Isa,
) -> Result<(), QuantError> {
    let Prepared { ty, cols, grid } = prepared;
    let cols = *cols;
    let row_bytes = cols / ty.block() * ty.block_bytes();
    if !w.len().is_multiple_of(cols) || w.len() / cols * row_bytes != out.len() {
        let what = format!("{} weights in rows of {cols} do not fill {} bytes of {}", w.len(), out.len(), ty);
        return Err(QuantError::Length { what });
    }
    if importance.len() != cols {
        return Err(QuantError::Length { what: format!("the importance does not have {cols} columns") });
    }
    if let Some(index) = w.iter().position(|v| !v.is_finite()) {
        return Err(QuantError::NotFinite { index, value: w[index] });
    }
    let bundles = w.par_chunks(LANES * cols).zip(out.par_chunks_mut(LANES * row_bytes));
    let Levels { layout, quantize, matrices } = match grid {
        Grid::Levels(levels) => levels,
        Grid::Codebook(codebook) => {
            let sweeps = if let Stage::Polish(sweeps) = stage { sweeps } else { 0 };
            bundles.for_each(|(rows, out)| codebook.rows(rows, sweeps, isa, out, row_bytes));
            return Ok(());
        }
    };
    let in_loop = if layout.starts_from_ggml { FirstPass::InLoopFromGgml(*quantize) } else { FirstPass::InLoop };
    let (first, sweeps) = match stage {
        Stage::GgmlScales => (FirstPass::Ggml(*quantize, importance), 0),
        Stage::InLoop => (in_loop, 0),
        Stage::Polish(sweeps) => (in_loop, sweeps),
    };
    let steps = Steps { layout, matrices, first, sweeps };
    bundles.for_each(|(rows, out)| {
        let mut bundle = Bundle::new(layout, rows, cols);
        simd::run_16(isa, Task(steps, &mut bundle, rows.len() / cols));
        bundle.pack(layout, out, row_bytes);
    });
    Ok(())
}

/// What happens to a bundle.
#[derive(Clone, Copy)]
struct Steps<'a> {
    layout: &'a Layout,
    matrices: &'a Matrices,
    first: FirstPass<'a>,
    sweeps: usize,
}

/// One bundle, of which so many rows are in use, and what happens to it.
struct Task<'a>(Steps<'a>, &'a mut Bundle, usize);

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        if self.0.layout.table { self.go::<V, true>() } else { self.go::<V, false>() }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn go<V: Float, const TABLE: bool>(self) {
        let Task(Steps { layout, matrices, first, sweeps }, bundle, rows) = self;
        bundle.feedback::<V, TABLE>(layout, matrices, first, rows);
        for _ in 0..sweeps {
            bundle.polish::<V, TABLE>(layout, matrices);
        }
    }
}
