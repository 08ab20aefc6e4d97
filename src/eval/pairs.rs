//! Two matrices of one shape beside each other: what is summed over the pairs of their weights, by row and by column.

use crate::Result;
use std::ops::Range;

/// Weights that are compared at a time.
const PIECE: usize = 1 << 18;

/// Sums over pairs of a weight `x` of the source and a weight `y` of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Σ (x − y)²
    pub error: f64,
    /// Σ x²
    pub norm: f64,
    /// Σ x·y
    pub dot: f64,
    /// Σ y²
    pub square: f64,
}

impl Sums {
    fn add(&mut self, x: f64, y: f64) {
        self.error += (x - y) * (x - y);
        self.norm += x * x;
        self.dot += x * y;
        self.square += y * y;
    }

    /// With those of `other` added.
    pub fn and(self, other: Self) -> Self {
        Self {
            error: self.error + other.error,
            norm: self.norm + other.norm,
            dot: self.dot + other.dot,
            square: self.square + other.square,
        }
    }

    /// `‖x − y‖ / ‖x‖`, and 0 where there is nothing.
    pub fn far(self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }

    /// What the other would have to be multiplied by to come closest.
    pub fn gain(self) -> f64 {
        if self.square > 0.0 { self.dot / self.square } else { 1.0 }
    }

    /// Whether the other is further away than the source is long.
    pub fn is_strange(self) -> bool {
        self.error > self.norm
    }
}

/// A row of both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// Sums over the row.
    pub sums: Sums,
    /// Σ |x|
    pub size: f64,
    /// The part of it whose sign the other has; what is rounded to nothing has either.
    pub same: f64,
}

/// The share of a row, by the source's direction in it, up to which nothing is left of the row. Three values under the scale of
/// the largest weight leave an eighth where each block has an outlier, other roundings far more.
const LEFT: f64 = 0.05;

impl Row {
    /// Whether the other row has nothing of the source's, as one that was zeroed; `factors`: columns may have been multiplied
    /// by positive numbers.
    pub fn is_lost(&self, factors: bool) -> bool {
        let Sums { norm, dot, square, .. } = self.sums;
        let length = if factors { (norm * square).sqrt() } else { norm };
        dot <= LEFT * length
    }

    /// The share of the row, by size, that has the source's signs.
    pub fn signs(&self) -> f64 {
        share_of_signs(self.same, self.size)
    }
}

/// Of rows together, the share of weights, by their size, that have the source's sign.
pub fn signs(rows: &[Row]) -> f64 {
    let of = |part: fn(&Row) -> f64| rows.iter().map(part).sum();
    share_of_signs(of(|row| row.same), of(|row| row.size))
}

fn share_of_signs(same: f64, size: f64) -> f64 {
    if size > 0.0 { same / size } else { 1.0 }
}

/// Rows whose mean square is a smaller share of the matrix's are next to nothing.
const SMALL: f64 = 1e-3;
/// Rows of a smaller share may be rounded to nothing, where rows share what scales are rounded by.
const FAINT: f64 = 1e-2;

/// What is summed of two matrices, or of two stacks of them.
#[derive(Debug)]
pub struct Beside {
    /// Row by row.
    pub rows: Vec<Row>,
    /// `[matrices, columns]`
    pub columns: Vec<Sums>,
    /// Rows of one matrix.
    pub per_matrix: usize,
}

/// Fills rows of the source's matrix, and of the other's.
type ReadRows<'a> = dyn FnMut(Range<usize>, &mut [f32], &mut [f32]) -> Result<()> + 'a;

impl Beside {
    /// Goes through two matrices of this shape, or stacks of `per_matrix` rows each.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read((rows, cols): (usize, usize), per_matrix: usize, read: &mut ReadRows) -> Result<Self> {
        let per_matrix = per_matrix.max(1);
        let step = (PIECE / cols.max(1)).max(1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut found = Beside {
            rows: Vec::with_capacity(rows),
            columns: vec![Sums::default(); rows.div_ceil(per_matrix) * cols],
            per_matrix,
        };
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            a.resize(range.len() * cols, 0.0);
            b.resize(range.len() * cols, 0.0);
            read(range, &mut a, &mut b)?;
            for (x, y) in a.chunks_exact(cols.max(1)).zip(b.chunks_exact(cols.max(1))) {
                found.add(x, y);
            }
        }
        Ok(found)
    }

    fn add(&mut self, x: &[f32], y: &[f32]) {
        let first = self.rows.len() / self.per_matrix * x.len();
        let mut row = Row::default();
        for ((x, y), column) in x.iter().zip(y).zip(&mut self.columns[first..]) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            column.add(x, y);
            row.sums.add(x, y);
            row.size += x.abs();
            row.same += x.abs() * if y == 0.0 { 0.5 } else { f64::from(u8::from(x * y > 0.0)) };
        }
        self.rows.push(row);
    }

    /// The rows of each matrix.
    pub fn matrices(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunks(self.per_matrix)
    }

    /// All sums together.
    pub fn total(&self) -> Sums {
        self.columns.iter().fold(Sums::default(), |sum, column| sum.and(*column))
    }

    /// What a row's norm is above that is more than so small a share of the mean.
    fn least(&self, share: f64) -> f64 {
        share * self.total().norm / self.rows.len().max(1) as f64
    }

    /// The share of the rows of which `is` says so; rows that are next to nothing do not count.
    pub fn share(&self, is: impl Fn(&Row) -> bool) -> f64 {
        let (mut all, mut those) = (0usize, 0usize);
        let least = self.least(SMALL);
        self.rows.iter().filter(|row| row.sums.norm > least).for_each(|row| {
            all += 1;
            those += usize::from(is(row));
        });
        those as f64 / all.max(1) as f64
    }

    /// How many rows have nothing of the source's; see [`Row::is_lost`]. An expert of which all rows are lost does not count: ggml's
    /// search makes nothing of one that an importance matrix calls unimportant throughout.
    pub fn lost(&self, factors: bool) -> usize {
        let (least, is_stack) = (self.least(FAINT), self.rows.len() > self.per_matrix);
        let of_matrix = |rows: &[Row]| {
            let own = || rows.iter().filter(|row| row.sums.norm > least);
            let lost = own().filter(|row| row.is_lost(factors)).count();
            if is_stack && lost == own().count() { 0 } else { lost }
        };
        self.matrices().map(of_matrix).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(source: &[[f32; 4]], other: &[[f32; 4]]) -> Beside {
        let flat = |rows: &[[f32; 4]], range: Range<usize>| rows[range].concat();
        let mut read = |range: Range<usize>, a: &mut [f32], b: &mut [f32]| {
            a.copy_from_slice(&flat(source, range.clone()));
            b.copy_from_slice(&flat(other, range));
            Ok(())
        };
        Beside::read((source.len(), 4), source.len(), &mut read).unwrap()
    }

    #[test]
    fn a_row_without_anything_of_the_sources_is_lost() {
        let row = [1.0, -2.0, 3.0, -4.0];
        let negated = row.map(|v: f32| -v);
        for (other, lost) in [
            (row, 0),
            (row.map(|v| 0.6 * v), 0),
            // What three values make of it.
            ([0.0, 0.0, 4.0, -4.0], 0),
            ([0.0; 4], 1),
            (row.map(|v| 1e-4 * v), 1),
            (negated, 1),
            ([4.0, 3.0, 2.0, 1.0], 1),
        ] {
            let found = beside(&[row, row, row], &[row, other, row]);
            assert_eq!(found.lost(false), lost, "{other:?}");
        }
        // Whatever its columns were multiplied by, a row keeps its signs.
        let moved = [0.001, -0.1, 0.002, -0.3];
        assert_eq!((beside(&[row], &[moved]).lost(true), beside(&[row], &[[0.0; 4]]).lost(true)), (0, 1));
    }

    #[test]
    fn rows_that_are_nothing_in_the_source_are_not_lost() {
        let row = [1.0, -2.0, 3.0, -4.0];
        let faint = row.map(|v: f32| 0.01 * v);
        let found = beside(&[row, [0.0; 4], faint], &[row, [0.0; 4], [0.0; 4]]);
        assert_eq!(found.lost(false), 0);
        assert_eq!(found.share(|row| row.sums.is_strange()), 0.0);
    }

    #[test]
    fn an_expert_may_be_lost_but_not_rows_of_it() {
        let (row, none) = ([1.0, -2.0, 3.0, -4.0], [0.0; 4]);
        for (other, lost) in [([row, row, none, none], 0), ([row, none, row, row], 1), ([row, none, none, none], 1)] {
            let found = Beside { per_matrix: 2, ..beside(&[row; 4], &other) };
            assert_eq!(found.lost(false), lost, "{other:?}");
        }
    }

    #[test]
    fn sums_are_those_of_all_weights() {
        let found = beside(&[[1.0, 2.0, 3.0, 4.0], [0.0; 4]], &[[1.0, 1.0, -3.0, 0.0], [1.0; 4]]);
        let Sums { error, norm, dot, square } = found.total();
        assert_eq!((error, norm, dot, square), (57.0, 30.0, -6.0, 15.0));
        assert_eq!(found.rows[0].signs(), 0.5);
        assert_eq!((signs(&found.rows), found.columns.len()), (0.5, 4));
    }
}
