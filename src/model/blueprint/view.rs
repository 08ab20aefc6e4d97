//! A GGUF tensor as a view of stored matrices: which rows, which columns, turned or not, and what happens to values.

use super::Hparams;
use crate::model::tensor::{Gather, ValueMap};
use crate::{Error, Result};
use std::sync::Arc;

/// The shape of a tensor in the file, and how it follows from what is stored.
pub(in crate::model) struct View {
    pub shape: Vec<usize>,
    pub gather: Option<Gather>,
    pub values: ValueMap,
    /// Stored values that have no place in the file.
    pub left_out: usize,
}

/// A source tensor (all experts of a kind count as one), before anything happens to it.
pub(in crate::model) struct Stored<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Its block.
    pub layer: usize,
}

/// What happens to a tensor.
#[derive(Clone, Copy)]
pub(in crate::model) enum Change {
    Same,
    /// 1 is added.
    PlusOne,
    /// `-exp(x)`.
    NegExp,
    /// `log(1 + exp(x))`.
    Softplus,
    /// Dimensions of 1 go away.
    Squeeze,
    /// `[n]` becomes `[n, 1]`.
    Column,
    /// The last two dimensions change places.
    Turned,
    /// Of every query head, rotary rows go from two halves to interleaved pairs (llama.cpp's `LlamaModel.permute`).
    QueryPairs,
    /// The same of key heads.
    KeyPairs,
    /// The first or the second half of the rows of every matrix.
    Half(usize),
    /// One of three equal parts of the rows.
    Third(usize),
    /// The first or the second half of the columns of every matrix, as rows.
    TurnedHalf(usize),
    View(fn(&Hparams, &Stored) -> Result<View>),
}

impl View {
    pub fn same(shape: &[usize]) -> Self {
        View { shape: shape.to_vec(), gather: None, values: ValueMap::Same, left_out: 0 }
    }

    pub fn gathered(shape: &[usize], gather: Gather) -> Self {
        View { gather: Some(gather), ..View::same(shape) }
    }

    /// So many stored values have no place in the file.
    pub fn without(self, left_out: usize) -> Self {
        View { left_out, ..self }
    }

    pub fn with(self, values: ValueMap) -> Self {
        View { values, ..self }
    }

    pub fn shaped(self, shape: Vec<usize>) -> Self {
        View { shape, ..self }
    }

    /// The stored tensor as `matrices` of `[rows, columns]`; `rows` in the order of the tensor, for each matrix the same.
    pub fn rows(stored: &Stored, rows: Vec<u32>) -> Self {
        let (matrices, [r, c]) = matrices(stored.shape);
        let mut shape = stored.shape.to_vec();
        match shape.len() {
            // The rows of a vector are its elements.
            1 => {
                shape[0] = rows.len();
                let gather = Gather { matrices: 1, stored: [1, r], turned: false, rows: None, cols: Some(rows.into()) };
                return View::gathered(&shape, gather);
            }
            n => shape[n - 2] = rows.len(),
        }
        let gather = Gather { matrices, stored: [r, c], turned: false, rows: Some(rows.into()), cols: None };
        View::gathered(&shape, gather)
    }

    /// Columns in the order of the tensor.
    pub fn cols(stored: &Stored, cols: Vec<u32>) -> Self {
        let (matrices, size) = matrices(stored.shape);
        let mut shape = stored.shape.to_vec();
        shape.last_mut().into_iter().for_each(|n| *n = cols.len());
        let gather = Gather { matrices, stored: size, turned: false, rows: None, cols: Some(cols.into()) };
        View::gathered(&shape, gather)
    }

    /// Rows are stored columns.
    pub fn turned(stored: &Stored, rows: Option<Vec<u32>>) -> Self {
        let (matrices, [r, c]) = matrices(stored.shape);
        let mut shape = stored.shape.to_vec();
        let n = shape.len();
        (shape[n - 2], shape[n - 1]) = (rows.as_ref().map_or(c, Vec::len), r);
        let rows = rows.map(Arc::from);
        let gather = Gather { matrices, stored: [r, c], turned: true, rows, cols: None };
        View::gathered(&shape, gather)
    }
}

/// A shape as matrices, one below the other: how many, and `[rows, columns]` of each. A vector is one of a single column.
fn matrices(shape: &[usize]) -> (usize, [usize; 2]) {
    match shape {
        [] => (1, [1, 1]),
        [n] => (1, [*n, 1]),
        [outer @ .., rows, cols] => (outer.iter().product(), [*rows, *cols]),
    }
}

/// Rows `from..to`, as [`View::rows`] takes them; none where there cannot be so many.
pub(in crate::model) fn range(from: usize, to: usize) -> Vec<u32> {
    match (u32::try_from(from), u32::try_from(to)) {
        (Ok(from), Ok(to)) if to.saturating_sub(from) <= MOST_ROWS => (from..to).collect(),
        _ => Vec::new(),
    }
}

/// No matrix has more.
const MOST_ROWS: u32 = 1 << 24;

/// Of `heads` heads over `rows` rows, row `2 i + k` of a head is stored as row `k * head / 2 + i`.
pub(in crate::model) fn pairs(rows: usize, heads: usize) -> Vec<u32> {
    let head = rows / heads.max(1);
    let source = |row: usize| row / head * head + row % head % 2 * (head / 2) + row % head / 2;
    (0..rows).map(|row| source(row) as u32).collect()
}

impl Change {
    /// # Errors
    /// `BadInput` when the stored shape does not allow the change.
    pub fn view(self, h: &Hparams, stored: &Stored) -> Result<View> {
        let shape = stored.shape;
        let (_, [rows, cols]) = matrices(shape);
        let misshapen = || {
            let what = format!("shape is {shape:?}, which is not one of this architecture");
            Error::bad_input(what).tensor(stored.name)
        };
        let needs = |dims: usize, even: usize| match shape.len() >= dims && even.is_multiple_of(2) {
            true => Ok(()),
            false => Err(misshapen()),
        };
        let paired = |heads: usize| match heads > 0 && rows.is_multiple_of(2 * heads) {
            true => Ok(View::rows(stored, pairs(rows, heads))),
            false => Err(misshapen()),
        };
        Ok(match self {
            Change::Same => View::same(shape),
            Change::PlusOne => View::same(shape).with(ValueMap::PlusOne),
            Change::NegExp => View::same(shape).with(ValueMap::NegExp),
            Change::Softplus => View::same(shape).with(ValueMap::Softplus),
            Change::Squeeze => View::same(&squeezed(shape)),
            Change::Column => View::same(&[shape, &[1]].concat()),
            Change::Turned => {
                needs(2, 0)?;
                View::turned(stored, None)
            }
            Change::QueryPairs => paired(h.heads()?)?,
            Change::KeyPairs => paired(h.kv_heads()?)?,
            Change::Half(i) => {
                needs(1, rows)?;
                View::rows(stored, range(i * rows / 2, (i + 1) * rows / 2))
            }
            Change::Third(_) if !rows.is_multiple_of(3) => return Err(misshapen()),
            Change::Third(i) => View::rows(stored, range(i * rows / 3, (i + 1) * rows / 3)),
            Change::TurnedHalf(i) => {
                needs(2, cols)?;
                View::turned(stored, Some(range(i * cols / 2, (i + 1) * cols / 2)))
            }
            Change::View(view) => view(h, stored)?,
        })
    }
}

/// Without dimensions of 1, as numpy's `squeeze`.
pub(in crate::model) fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|n| *n != 1).collect()
}
