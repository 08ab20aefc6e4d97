//! A tensor of the GGUF file as a view of source tensors: parts, order of rows and what happens to values, and the reading
//! of rows through it. It holds no weights.

use super::role::Role;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A small tensor that follows from the configuration. Goes to the file as F32, before all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its name in GGUF.
    pub name: String,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
    /// What is in it.
    pub values: Vec<f32>,
}

/// How GGUF rows follow from source rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are.
    Same,
    /// Per head, the two halves of the rotary dimensions are interleaved.
    Rope {
        /// Heads, of which each is permuted alike.
        heads: usize,
    },
    /// By a table.
    Gather(Arc<Gather>),
}

/// Rows and columns of stored matrices in another order. A tensor of several matrices takes each from one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Stored matrices; each in a part of its own, or one below the other.
    pub matrices: usize,
    /// `[rows, columns]` of each.
    pub stored: [usize; 2],
    /// Rows of the tensor are columns of the stored matrix.
    pub turned: bool,
    /// By row of the tensor's matrix, the stored row (turned: column). `None`: the same.
    pub rows: Option<Arc<[u32]>>,
    /// By column of the tensor, the stored column (turned: row). `None`: the same.
    pub cols: Option<Arc<[u32]>>,
}

impl Gather {
    /// Whether it takes nothing from outside of a tensor of so many elements, and gives so many.
    pub fn fits(&self, stored: usize, given: usize) -> bool {
        let [rows, cols] = if self.turned { [self.stored[1], self.stored[0]] } else { self.stored };
        let inside = |list: &Option<Arc<[u32]>>, n: usize| match list {
            Some(list) => list.iter().all(|i| (*i as usize) < n).then_some(list.len()),
            None => Some(n),
        };
        let product = |parts: [usize; 3]| parts.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
        match (inside(&self.rows, rows), inside(&self.cols, cols)) {
            (Some(r), Some(c)) => {
                product([self.matrices, rows, cols]) == Some(stored) && product([self.matrices, r, c]) == Some(given)
            }
            _ => false,
        }
    }
}

/// How GGUF's values follow from the source's, one by one.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMap {
    /// As they are.
    Same,
    /// 1 is added.
    PlusOne,
    /// This is added.
    Plus(f32),
    /// `-exp(x)`.
    NegExp,
    /// `exp(x)`.
    Exp,
    /// `log(1 + exp(x))`.
    Softplus,
    /// The sum of so many slabs, which lie one behind the other in each of the outermost entries.
    SumOf(usize),
    /// Multiplied by two constants of the model, one after the other.
    Times([f32; 2]),
    /// The same with constants of each row.
    RowTimes(Arc<[[f32; 2]]>),
    /// The mean over the whole tensor, a vector, is taken away.
    ZeroMean,
    /// Two vectors, a part each, multiplied.
    Product,
    /// Rounded to minus one, nothing and one times the mean magnitude of the whole tensor, which is found when it is needed.
    Ternary(Arc<OnceLock<f32>>),
    /// Every column of the whole tensor has length 1 then; their lengths are found when they are needed.
    UnitColumns(Arc<OnceLock<Vec<f32>>>),
}

impl ValueMap {
    /// What the model adds to a stored value.
    pub fn added(&self) -> f32 {
        if *self == ValueMap::PlusOne { 1.0 } else { 0.0 }
    }

    /// To rows of `cols`, in `f32`, as the model itself computes.
    pub fn apply(&self, values: &mut [f32], cols: usize) {
        self.apply_rows(values, 0, cols, |x| x);
    }

    /// To rows of `cols` values from row `first` on; every step is rounded by `round`.
    fn apply_rows(&self, values: &mut [f32], first: usize, cols: usize, round: impl Fn(f32) -> f32) {
        match self {
            ValueMap::Same => {}
            ValueMap::PlusOne => values.iter_mut().for_each(|w| *w = round(*w + 1.0)),
            ValueMap::Plus(x) => values.iter_mut().for_each(|w| *w = round(*w + x)),
            ValueMap::NegExp => values.iter_mut().for_each(|w| *w = round(-f64::from(*w).exp() as f32)),
            ValueMap::Exp => values.iter_mut().for_each(|w| *w = round(f64::from(*w).exp() as f32)),
            ValueMap::Times([a, b]) => values.iter_mut().for_each(|w| *w = round(round(*w * a) * b)),
            ValueMap::RowTimes(factors) => {
                for (row, [a, b]) in values.chunks_mut(cols.max(1)).zip(&factors[first.min(factors.len())..]) {
                    row.iter_mut().for_each(|w| *w = round(round(*w * a) * b));
                }
            }
            ValueMap::Softplus => {
                values.iter_mut().for_each(|w| *w = round(f64::from(*w).exp().ln_1p() as f32));
            }
            // It was read so.
            ValueMap::Product => {}
            ValueMap::SumOf(_) => values.iter_mut().for_each(|w| *w = round(*w)),
            ValueMap::Ternary(scale) => {
                let inverse = 1.0 / scale.get().copied().unwrap_or(1.0);
                values.iter_mut().for_each(|w| *w = round((*w * inverse).round_ties_even().clamp(-1.0, 1.0) / inverse));
            }
            ValueMap::UnitColumns(lengths) => {
                let lengths = lengths.get().map_or(&[][..], Vec::as_slice);
                for row in values.chunks_mut(cols.max(1)) {
                    row.iter_mut().zip(lengths).for_each(|(w, length)| *w /= length);
                }
            }
            ValueMap::ZeroMean => {
                let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
                values.iter_mut().for_each(|w| *w = round(*w - mean));
            }
        }
    }
}

/// A tensor of the GGUF file and where its weights come from.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedTensor {
    /// GGUF name.
    pub name: String,
    /// `[out, in]`, `[experts, out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// Source tensors by index; several when experts lie one by one.
    pub parts: Vec<usize>,
    /// The part is `[experts, 2 * out, in]`, and this is the first (0) or second (1) half of every expert.
    pub half: Option<usize>,
    /// How rows are put into another order.
    pub rows: RowOrder,
    /// What becomes of the values.
    pub values: ValueMap,
    /// What it is for.
    pub role: Role,
    /// The layer that it is in.
    pub layer: Option<usize>,
}

impl MappedTensor {
    /// Length of a row: the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Rows, all outer dimensions flattened; 1 for a vector.
    pub fn row_count(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// How many weights it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of one matrix: all of them, or one expert's.
    pub fn rows_per_matrix(&self) -> usize {
        match self.shape.as_slice() {
            [_, .., rows, _] => *rows,
            _ => self.row_count(),
        }
    }

    /// Whether every row is a stored row as it is, so that it can be copied whatever its type.
    pub fn keeps_rows(&self) -> bool {
        let ordered = match &self.rows {
            RowOrder::Same => self.parts.len() == 1,
            RowOrder::Rope { .. } => false,
            RowOrder::Gather(_) if self.shape.len() == 1 && self.parts.len() > 1 => false,
            RowOrder::Gather(gather) => !gather.turned && gather.cols.is_none(),
        };
        ordered && self.half.is_none() && self.values == ValueMap::Same
    }

    /// Reads rows as they are stored, `row_bytes` each; for tensors that keep their rows.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_stored(&self, ckpt: &Checkpoint, rows: Range<usize>, row_bytes: usize, out: &mut [u8]) -> Result<()> {
        let RowOrder::Gather(gather) = &self.rows else {
            return ckpt.read(&ckpt.tensors()[self.parts[0]], (rows.start * row_bytes) as u64, out);
        };
        let per_matrix = (self.row_count() / gather.matrices.max(1)).max(1);
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            let (matrix, row) = (row / per_matrix, row % per_matrix);
            let row = gather.rows.as_ref().map_or(row, |rows| rows[row] as usize);
            let (part, row) = if self.parts.len() > 1 { (matrix, row) } else { (0, matrix * gather.stored[0] + row) };
            ckpt.read(&ckpt.tensors()[self.parts[part]], (row * row_bytes) as u64, out)?;
        }
        Ok(())
    }

    /// Reads rows of the GGUF tensor as F32, transforms applied; `out` holds `rows.len() * cols` values.
    /// `scratch` is reused from call to call. Any number of threads may read at once.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn read_rows(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let (cols, first) = (self.cols(), rows.start);
        if rows.start > rows.end || rows.end > self.row_count() || out.len() != rows.len() * cols {
            let what = format!("rows {rows:?} of {} into {} values", self.name, out.len());
            return Err(Error::Internal(what));
        }
        // Of several threads all find the same.
        match &self.values {
            ValueMap::Ternary(scale) if scale.get().is_none() => {
                let _ = scale.set(self.mean_magnitude(ckpt, scratch)?);
            }
            ValueMap::UnitColumns(lengths) if lengths.get().is_none() => {
                let _ = lengths.set(self.column_lengths(ckpt, scratch)?);
            }
            _ => {}
        }
        match &self.rows {
            _ if self.values == ValueMap::Product => self.read_product(ckpt, scratch, out)?,
            _ if let ValueMap::SumOf(slabs) = self.values => self.read_sum(slabs, ckpt, rows, scratch, out)?,
            RowOrder::Gather(_) if self.shape.len() == 1 && self.parts.len() > 1 => {
                self.read_joined(ckpt, scratch, out)?
            }
            RowOrder::Gather(gather) => self.read_gathered(gather, ckpt, rows, scratch, out)?,
            RowOrder::Same => self.read_runs(ckpt, rows, scratch, out)?,
            // The rows of a bias are its elements.
            RowOrder::Rope { heads } if self.shape.len() == 1 => {
                self.read_rope(ckpt, rows.start * cols..rows.end * cols, 1, cols / (*heads).max(1), scratch, out)?;
            }
            RowOrder::Rope { heads } => {
                self.read_rope(ckpt, rows, cols, self.row_count() / (*heads).max(1), scratch, out)?;
            }
        }
        if self.values != ValueMap::Same {
            match self.is_half(ckpt) {
                true => self.values.apply_rows(out, first, cols, |x| half::f16::from_f32(x).to_f32()),
                false => self.values.apply_rows(out, first, cols, |x| x),
            }
        }
        Ok(())
    }

    /// Whether what is computed of its values is rounded to F16: llama.cpp's converter computes in the stored type.
    fn is_half(&self, ckpt: &Checkpoint) -> bool {
        self.parts.iter().any(|p| ckpt.tensors()[*p].dtype == Dtype::Ggml(GgmlType::F16))
    }

    /// Whether the model, which computes with values that follow from its weights, has other ones in the last bits.
    pub fn is_rounded(&self, ckpt: &Checkpoint) -> bool {
        use ValueMap::{Exp, NegExp, Plus, PlusOne, RowTimes, Softplus, Times};
        let computed = matches!(self.values, PlusOne | Plus(_) | NegExp | Exp | Softplus | Times(_) | RowTimes(_));
        computed && self.is_half(ckpt)
    }

    /// Every row as it is without its map of values.
    fn plain_rows(&self, ckpt: &Checkpoint, scratch: &mut Vec<u8>, mut each: impl FnMut(&[f32])) -> Result<()> {
        let plain = MappedTensor { values: ValueMap::Same, ..self.clone() };
        let mut row = vec![0.0; self.cols()];
        for i in 0..self.row_count() {
            plain.read_rows(ckpt, i..i + 1, scratch, &mut row)?;
            each(&row);
        }
        Ok(())
    }

    fn mean_magnitude(&self, ckpt: &Checkpoint, scratch: &mut Vec<u8>) -> Result<f32> {
        let mut sum = 0.0;
        self.plain_rows(ckpt, scratch, |row| sum += row.iter().map(|w| f64::from(w.abs())).sum::<f64>())?;
        Ok(((sum / self.elements().max(1) as f64) as f32).max(1e-5))
    }

    fn column_lengths(&self, ckpt: &Checkpoint, scratch: &mut Vec<u8>) -> Result<Vec<f32>> {
        let mut squares = vec![0.0; self.cols()];
        self.plain_rows(ckpt, scratch, |row| {
            squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*w));
        })?;
        Ok(squares.into_iter().map(|sum| sum.sqrt() as f32 + 1e-7).collect())
    }

    fn read_product(&self, ckpt: &Checkpoint, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let mut factors = vec![0.0; out.len()];
        out.fill(1.0);
        for part in &self.parts {
            ckpt.read_f32(&ckpt.tensors()[*part], 0..out.len(), scratch, &mut factors)?;
            out.iter_mut().zip(&factors).for_each(|(w, factor)| *w *= factor);
        }
        Ok(())
    }

    fn read_sum(
        &self,
        slabs: usize,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let (cols, part) = (self.cols(), &ckpt.tensors()[self.parts[0]]);
        let per = (self.row_count() / self.shape[0].max(1)).max(1);
        let mut slab = vec![0.0; cols];
        out.fill(0.0);
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            let (outer, inner) = (row / per, row % per);
            for i in 0..slabs {
                let at = ((outer * slabs + i) * per + inner) * cols;
                ckpt.read_f32(part, at..at + cols, scratch, &mut slab)?;
                out.iter_mut().zip(&slab).for_each(|(sum, w)| *sum += w);
            }
        }
        Ok(())
    }

    /// A vector whose parts are vectors, one behind the other.
    fn read_joined(&self, ckpt: &Checkpoint, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let each = (out.len() / self.parts.len()).max(1);
        for (part, out) in self.parts.iter().zip(out.chunks_mut(each)) {
            ckpt.read_f32(&ckpt.tensors()[*part], 0..out.len(), scratch, out)?;
        }
        Ok(())
    }

    /// Runs of rows that lie together in one part.
    fn read_runs(&self, ckpt: &Checkpoint, rows: Range<usize>, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        // Rows per expert where experts are apart; all rows otherwise.
        let block = if self.parts.len() > 1 || self.half.is_some() { self.shape[1] } else { self.row_count() };
        let mut row = rows.start;
        let mut rest = out;
        while row < rows.end {
            let (expert, inner) = (row / block, row % block);
            let n = (block - inner).min(rows.end - row);
            let (part, first) = match self.half {
                Some(half) => (self.parts[0], (2 * expert + half) * block + inner),
                None => (self.parts[expert], inner),
            };
            let (now, later) = rest.split_at_mut(n * cols);
            ckpt.read_f32(&ckpt.tensors()[part], first * cols..(first + n) * cols, scratch, now)?;
            rest = later;
            row += n;
        }
        Ok(())
    }

    fn read_gathered(
        &self,
        gather: &Gather,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let (cols, [stored_rows, stored_cols]) = (self.cols(), gather.stored);
        if let Some(width) = gather.cols.as_ref().map(|list| list.len()).filter(|n| *n > cols) {
            // Each of the gather's rows holds several of the tensor.
            let (wide, each) = (Self { shape: vec![self.elements() / width, width], ..self.clone() }, width / cols);
            let whole = rows.start / each..rows.end.div_ceil(each);
            let mut buffer = vec![0.0; whole.len() * width];
            wide.read_gathered(gather, ckpt, whole.clone(), scratch, &mut buffer)?;
            out.copy_from_slice(&buffer[(rows.start - whole.start * each) * cols..][..out.len()]);
            return Ok(());
        }
        let per_matrix = (self.row_count() / gather.matrices.max(1)).max(1);
        let apart = self.parts.len() > 1;
        let mut read = |matrix: usize, from: usize, to: &mut [f32]| {
            let (part, base) = if apart { (matrix, 0) } else { (0, matrix * stored_rows * stored_cols) };
            ckpt.read_f32(&ckpt.tensors()[self.parts[part]], base + from..base + from + to.len(), scratch, to)
        };
        let row_of = |row: usize| gather.rows.as_ref().map_or(row, |rows| rows[row] as usize);
        let col_of = |col: usize| gather.cols.as_ref().map_or(col, |cols| cols[col] as usize);
        let mut buffer = Vec::new();
        let mut start = rows.start;
        while start < rows.end {
            let (matrix, first) = (start / per_matrix, start % per_matrix);
            let end = (start - first + per_matrix).min(rows.end);
            let wanted: Vec<usize> = (first..first + end - start).map(row_of).collect();
            let out = &mut out[(start - rows.start) * cols..(end - rows.start) * cols];
            if gather.turned {
                // Of every stored row the span of columns that become these rows.
                let (low, high) = (wanted.iter().min().copied().unwrap_or(0), wanted.iter().max().map_or(0, |n| n + 1));
                buffer.resize(high - low, 0.0);
                for col in 0..cols {
                    read(matrix, col_of(col) * stored_cols + low, &mut buffer)?;
                    wanted.iter().enumerate().for_each(|(i, row)| out[i * cols + col] = buffer[row - low]);
                }
            } else {
                for (run, place) in runs(&wanted) {
                    buffer.resize(run.len() * stored_cols, 0.0);
                    read(matrix, run.start * stored_cols, &mut buffer)?;
                    let rows = out[place * cols..(place + run.len()) * cols].chunks_exact_mut(cols);
                    for (row, stored) in rows.zip(buffer.chunks_exact(stored_cols)) {
                        row.iter_mut().enumerate().for_each(|(i, w)| *w = stored[col_of(i)]);
                    }
                }
            }
            start = end;
        }
        Ok(())
    }

    /// GGUF row `2j + i` of a head is source row `i * head / 2 + j` of that head (llama.cpp's `LlamaModel.permute`).
    fn read_rope(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        cols: usize,
        head: usize,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let part = &ckpt.tensors()[self.parts[0]];
        let mut buffer = vec![0.0; head.div_ceil(2) * cols];
        let mut start = rows.start;
        while start < rows.end {
            let base = start / head * head;
            let end = (base + head).min(rows.end);
            for half in 0..2 {
                // The rows of this half that the range asks for: every other one, but together in the source.
                let first = (start - base + 1 - half) / 2;
                let last = (end - base + 1 - half) / 2;
                if first == last {
                    continue;
                }
                let source = base + half * (head / 2) + first;
                let run = &mut buffer[..(last - first) * cols];
                ckpt.read_f32(part, source * cols..(source + last - first) * cols, scratch, run)?;
                for (k, row) in run.chunks_exact(cols).enumerate() {
                    let at = (base + 2 * (first + k) + half - rows.start) * cols;
                    out[at..at + cols].copy_from_slice(row);
                }
            }
            start = end;
        }
        Ok(())
    }
}

/// Runs of consecutive numbers, each with where it begins.
fn runs(numbers: &[usize]) -> Vec<(Range<usize>, usize)> {
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    for (place, &n) in numbers.iter().enumerate() {
        match runs.last_mut() {
            Some((run, _)) if run.end == n => run.end += 1,
            _ => runs.push((n..n + 1, place)),
        }
    }
    runs
}
