//! Rows of a GGUF tensor on their way back: where each element stood in the checkpoint's tensor, and what its value was.

use crate::model::tensor::{MappedTensor, RowOrder, ValueMap};
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::ops::Range;

/// Elements that are decoded at once.
const CHUNK: usize = 1 << 18;

/// What one tensor of the file gives to one tensor of the folder.
#[derive(Debug)]
pub(super) struct Take {
    /// Index into the file's tensors.
    pub gguf: usize,
    /// How the folder's tensors become that one.
    pub map: MappedTensor,
    /// Which of the mapping's parts the folder's tensor is.
    pub place: usize,
}

impl Take {
    /// Equal blocks of the folder's tensor that equal runs of the file's rows belong to.
    pub fn matrices(&self) -> usize {
        match &self.map.rows {
            _ if matches!(self.map.values, ValueMap::SumOf(_)) => 1,
            _ if self.map.half.is_some() => self.map.shape[0],
            RowOrder::Gather(gather) if self.map.parts.len() == 1 => gather.matrices.max(1),
            _ => 1,
        }
    }

    /// Whether the part is the file's tensor, row by row.
    pub fn is_plain(&self) -> bool {
        let one_by_one = !matches!(self.map.values, ValueMap::SumOf(_) | ValueMap::Product);
        self.map.rows == RowOrder::Same && self.map.half.is_none() && one_by_one
    }

    /// Elements of a part of so many that it gives.
    pub fn gives(&self, of: usize) -> usize {
        match self.map.values {
            // Where it is one term or factor, the others are known.
            ValueMap::SumOf(_) | ValueMap::Product => of,
            _ => self.map.elements() / self.map.parts.len().max(1),
        }
    }

    /// The file's tensor as rows of equal length, each of which lies in one part.
    fn grid(&self) -> (usize, usize) {
        let (map, elements) = (&self.map, self.map.elements());
        let cols = match &map.rows {
            RowOrder::Rope { .. } if map.shape.len() == 1 => 1,
            RowOrder::Gather(_) if map.shape.len() == 1 && map.parts.len() > 1 => elements / map.parts.len(),
            RowOrder::Gather(gather) => gather.cols.as_ref().map_or(map.cols(), |cols| cols.len().max(map.cols())),
            _ => map.cols(),
        };
        (elements / cols.max(1), cols)
    }

    /// A run of the part's elements, which is one of the file's.
    pub fn read_plain(&self, ckpt: &Checkpoint, piece: Range<usize>, out: &mut [f32]) -> Result<()> {
        let t = &ckpt.tensors()[self.gguf];
        let first = self.place * (self.map.elements() / self.map.parts.len().max(1)) + piece.start;
        ckpt.read_f32(t, first..first + out.len(), &mut Vec::new(), out)?;
        let cols = self.map.cols().max(1);
        self.undo(out, first / cols, cols);
        Ok(())
    }

    /// Puts what belongs to block `block` of `blocks`, whose first element is `base` of the part, where it was.
    pub fn scatter(
        &self,
        ckpt: &Checkpoint,
        (block, blocks): (usize, usize),
        base: usize,
        out: &mut [f32],
    ) -> Result<()> {
        if self.map.values == ValueMap::Product && self.place > 0 {
            out.fill(1.0);
            return Ok(());
        }
        let (rows, cols) = self.grid();
        // Every factor of a product would be the whole.
        let parts = if self.map.values == ValueMap::Product { 1 } else { self.map.parts.len().max(1) };
        let per_part = rows / parts;
        let per_block = per_part / blocks.max(1);
        let (first, step) = (self.place % parts * per_part, (CHUNK / cols.max(1)).max(1));
        let (mut scratch, mut values) = (Vec::new(), Vec::new());
        let t = &ckpt.tensors()[self.gguf];
        for row in (block * per_block..(block + 1) * per_block).step_by(step) {
            let n = step.min((block + 1) * per_block - row);
            values.resize(n * cols, 0.0);
            let at = (first + row) * cols;
            ckpt.read_f32(t, at..at + n * cols, &mut scratch, &mut values)?;
            self.undo(&mut values, first + row, cols);
            for (i, values) in values.chunks_exact(cols.max(1)).enumerate() {
                self.put(row + i, per_part, values, base, out)?;
            }
        }
        Ok(())
    }

    /// Puts one row of `per_part` where it was. `base`: the first element of `out` in the part.
    fn put(&self, row: usize, per_part: usize, values: &[f32], base: usize, out: &mut [f32]) -> Result<()> {
        let cols = values.len();
        let outside = || Error::Internal(format!("row {row} of {} is outside its part", self.map.name));
        let gather = match &self.map.rows {
            RowOrder::Gather(gather) if !(self.map.shape.len() == 1 && self.map.parts.len() > 1) => gather,
            order => {
                let to = match (order, self.map.half, &self.map.values) {
                    (_, _, ValueMap::SumOf(terms)) => {
                        let per = (per_part / self.map.shape[0].max(1)).max(1);
                        row / per * terms * per + row % per
                    }
                    (RowOrder::Rope { heads }, ..) => {
                        let head = (per_part / (*heads).max(1)).max(1);
                        let inner = row % head;
                        row - inner + inner % 2 * (head / 2) + inner / 2
                    }
                    (_, Some(half), _) => {
                        let block = self.map.shape[1].max(1);
                        (2 * (row / block) + half) * block + row % block
                    }
                    _ => row,
                };
                let at = (to * cols).checked_sub(base).ok_or_else(outside)?;
                out.get_mut(at..at + cols).ok_or_else(outside)?.copy_from_slice(values);
                return Ok(());
            }
        };
        let [stored_rows, stored_cols] = gather.stored;
        let per_matrix = match self.map.parts.len() {
            1 => (per_part / gather.matrices.max(1)).max(1),
            _ => per_part.max(1),
        };
        let (matrix, row) = (row / per_matrix, row % per_matrix);
        let start = (matrix * stored_rows * stored_cols).checked_sub(base).ok_or_else(outside)?;
        let row = gather.rows.as_ref().map_or(row, |rows| rows[row] as usize);
        for (col, value) in values.iter().enumerate() {
            let col = gather.cols.as_ref().map_or(col, |cols| cols[col] as usize);
            let at = if gather.turned { col * stored_cols + row } else { row * stored_cols + col };
            *out.get_mut(start + at).ok_or_else(outside)? = *value;
        }
        Ok(())
    }

    /// The values before they were mapped, of rows from `first` on.
    fn undo(&self, values: &mut [f32], first: usize, cols: usize) {
        let each = |values: &mut [f32], undo: &dyn Fn(f64) -> f64| {
            values.iter_mut().for_each(|w| *w = undo(f64::from(*w)) as f32);
        };
        match &self.map.values {
            ValueMap::PlusOne => values.iter_mut().for_each(|w| *w -= 1.0),
            ValueMap::Plus(x) => values.iter_mut().for_each(|w| *w -= x),
            ValueMap::NegExp => each(values, &|w| (-w).ln()),
            ValueMap::Exp => each(values, &f64::ln),
            // log(exp(w) - 1), for large w too.
            ValueMap::Softplus => each(values, &|w| w + (-(-w).exp_m1()).ln()),
            ValueMap::Times([a, b]) => each(values, &|w| w / f64::from(*b) / f64::from(*a)),
            ValueMap::RowTimes(factors) => {
                // The rows of the mapping, whatever the grid.
                let cols = if self.map.cols() > 0 { self.map.cols() } else { cols };
                for (row, [a, b]) in values.chunks_mut(cols).zip(&factors[first.min(factors.len())..]) {
                    each(row, &|w| w / f64::from(*b) / f64::from(*a));
                }
            }
            ValueMap::Same
            | ValueMap::SumOf(_)
            | ValueMap::ZeroMean
            | ValueMap::Product
            | ValueMap::Ternary(_)
            | ValueMap::UnitColumns(_) => {}
        }
    }
}
