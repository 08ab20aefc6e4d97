//! The matrix product over quantized weights in integers: activations are rounded to 16 bits, weights are the integers
//! that they are stored as, and instructions that multiply pairs of 16-bit numbers do twice the work of those on `f32`.

mod input;
mod panel;
#[cfg(test)]
mod tests;
mod tile;

use super::rows::{ROW_BLOCK, RowSource, row_blocks};
use crate::isa::Isa;
use crate::quant::integers::{BLOCK, Integers, LARGEST};
use crate::simd;
use faer::MatMut;
use input::Input;
use panel::{PACKED, Pack, Panels};
use rayon::prelude::*;
use std::cell::RefCell;
use tile::Multiply;

/// What a thread needs for a block of rows: rows decoded, their steps and offsets, and panels.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    steps: Vec<f32>,
    added: Vec<f32>,
    panels: Panels,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// The memory of the last product's activations.
    static INPUT: RefCell<Input> = RefCell::default();
}

/// As [`super::matmul`], over weights whose type is known to be integers; `y` is `[rows, n]`, column-major, of the rows of
/// `w` from `first` on.
pub(super) fn matmul(isa: Isa, known: Integers, x: &[f32], w: &dyn RowSource, first: usize, y: MatMut<'_, f32>) {
    let (cols, stride) = (w.cols(), y.col_stride() as usize);
    let (blocks, offsets) = (cols / BLOCK, known.offsets);
    assert!(known.largest <= LARGEST, "sums might overflow");
    let mut input = INPUT.take();
    input.set(isa, x, cols, offsets);
    row_blocks(y, ROW_BLOCK).into_par_iter().enumerate().for_each(|(block, y)| {
        SCRATCH.with_borrow_mut(|scratch| {
            let (first, rows) = (first + block * ROW_BLOCK, y.nrows());
            scratch.weights.resize(PACKED * cols, 0.0);
            scratch.steps.resize(PACKED * blocks, 0.0);
            scratch.added.resize(PACKED * blocks * offsets, 0.0);
            scratch.panels.reset(ROW_BLOCK, cols, offsets);
            for at in (0..rows).step_by(PACKED) {
                let some = (rows - at).min(PACKED);
                let wanted = first + at..first + at + some;
                let weights = &mut scratch.weights[..some * cols];
                w.decode(wanted.clone(), weights);
                let bytes = w.stored(wanted).unwrap_or_default();
                let steps = scratch.steps.chunks_exact_mut(blocks);
                for (row, (bytes, steps)) in bytes.chunks_exact((bytes.len() / some).max(1)).zip(steps).enumerate() {
                    let added = &mut scratch.added[row * blocks * offsets..][..blocks * offsets];
                    (known.read)(bytes, steps, added);
                }
                let (steps, added, panels) = (&scratch.steps, &scratch.added, &mut scratch.panels);
                simd::run_16(isa, Pack { weights, steps, added, panels, at });
            }
            let (x, w) = (&input, &scratch.panels);
            simd::run_16_pairs(isa, Multiply { x, w, rows, y: y.as_ptr_mut(), stride });
        });
    });
    INPUT.set(input);
}
