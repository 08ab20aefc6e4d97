//! Groups of integers under one scale and zero point: what every integer rounding yields and every integer packer takes.

use std::ops::Range;

/// A rounded matrix `[rows, cols]`: `w = scale * (code - zero)` of the column's group.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    pub rows: usize,
    pub cols: usize,
    pub bits: u8,
    /// Columns per group; `cols` for one group per row.
    pub group: usize,
    /// `[rows, cols]`, `0 .. 2^bits`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`, exactly representable in the file's type.
    pub scales: Vec<f32>,
    /// `[rows, groups]`; `2^(bits - 1)` throughout when symmetric.
    pub zeros: Vec<u8>,
    /// The group of each column where it is not `column / group`.
    pub g_idx: Option<Vec<u32>>,
}

impl Codes {
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }

    /// Writes the weights of `rows` to `out` (`[rows.len(), cols]`).
    pub fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        let groups = self.groups();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            for (col, w) in out.iter_mut().enumerate() {
                let group = self.g_idx.as_ref().map_or(col / self.group, |g| g[col] as usize);
                let at = row * groups + group;
                *w = self.scales[at] * (f32::from(self.codes[row * self.cols + col]) - f32::from(self.zeros[at]));
            }
        }
    }
}
