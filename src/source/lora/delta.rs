//! What an adapter adds to one tensor, and reading the tensor with it.

use super::super::decode::decode;
use super::super::{Checkpoint, Dtype, SourceFile, TensorMeta};
use super::extended;
use super::files::{
    A, B, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, MERGE_FIRST, Parts, Settings, TOKENS, matrices, values,
};
use crate::dtype::GgmlType;
use crate::packed::transpose;
use crate::quant::codec;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// `left` `[rows, rank]` times `right` `[rank, cols]`, scaled; or rows that take the place of the base's.
#[derive(Debug, Default)]
pub struct Delta {
    pub rows: usize,
    pub cols: usize,
    pub left: Vec<f32>,
    pub right: Vec<f32>,
    scale: f32,
    /// How many matrices are stacked, each of which has a `left` and a `right` of its own; 0 for one.
    stacked: usize,
    /// Lengths that the rows have in the end, `[rows]`.
    magnitude: Option<Vec<f32>>,
    /// What columns are multiplied by, `[cols]`.
    factors: Option<Vec<f32>>,
    /// What is added is rounded to the base's type before, as PEFT does it for embeddings and parameters.
    rounded: bool,
    /// Rows of single tokens, `[cols]` each.
    own: HashMap<usize, Vec<f32>>,
}

/// What a module's parts add, to which tensors.
pub fn deltas(
    base: &Checkpoint,
    module: &str,
    parts: &Parts,
    settings: &Settings,
    weights: &Path,
) -> Result<Vec<(String, Delta)>> {
    let file = |t: &TensorMeta| base.files[t.file].path.clone();
    let read = |t: &TensorMeta| values(base, t);
    if let Some(t) = parts.get(TOKENS) {
        let fault = |what: String| Error::bad_file(weights, what).tensor(&t.name);
        if parts.len() > 1 {
            return Err(Error::unsupported("rows of single tokens beside matrices are not merged")
                .tensor(module)
                .hint(MERGE_FIRST));
        }
        let (name, ids) = (format!("{module}.weight"), settings.tokens(module));
        let of_base = base.named(&name).map_or(&[][..], |found| &base.tensors[found].shape);
        let (&[rows, cols], true) = (of_base, t.shape == [ids.len(), of_base.last().copied().unwrap_or(0)]) else {
            return Err(fault(format!("is {:?} for {} tokens of the base model's {of_base:?}", t.shape, ids.len())));
        };
        if let Some(id) = ids.iter().find(|id| **id >= rows) {
            return Err(fault(format!("holds token {id}, and the base model has {rows}")).hint(extended(id + 1)));
        }
        let values = read(t)?;
        let own = ids.iter().copied().zip(values.chunks_exact(cols.max(1)).map(<[f32]>::to_vec)).collect();
        return Ok(vec![(name, Delta { rows, cols, own, ..Delta::default() })]);
    }
    let embedding = parts.contains_key(EMBEDDING_A);
    let (a, b, rank) = matrices(parts, module, if embedding { [EMBEDDING_A, EMBEDDING_B] } else { [A, B] }, weights)?;
    let (input, output) = (a.shape[1], b.shape[0]);
    let scale = settings.scale(module, rank);
    let turned = embedding || settings.turned;
    let (left, right) = match turned {
        true => (transpose(&read(a)?, rank, input), transpose(&read(b)?, output, rank)),
        false => (read(b)?, read(a)?),
    };
    let (rows, cols) = if turned { (input, output) } else { (output, input) };
    let magnitude = match parts.get(MAGNITUDE) {
        Some(t) if t.elements() == if turned { cols } else { rows } => Some(read(t)?),
        Some(t) => {
            let what = format!("has {} magnitudes for {rows} x {cols} weights", t.elements());
            return Err(Error::bad_file(file(t), what).tensor(&t.name));
        }
        None => None,
    };
    let name = format!("{module}.weight");
    let rounded = embedding && magnitude.is_none();
    let mut product = Delta { rows, cols, left, right, scale, rounded, ..Delta::default() };
    match magnitude {
        // Outputs are columns, and lengths those of columns.
        Some(magnitude) if turned => {
            product.factors = Some(product.column_factors(base, &name, &magnitude, (weights, module))?);
        }
        magnitude => product.magnitude = magnitude,
    }
    let mut found = vec![(name, product)];
    if let Some(t) = parts.get(BIAS) {
        let delta = Delta { rows: 1, cols: t.elements(), left: vec![1.0], right: read(t)?, scale, ..Delta::default() };
        found.push((format!("{module}.bias"), delta));
    }
    Ok(found)
}

impl Delta {
    /// `left` times `right`, scaled, of a stack of so many. PEFT rounds what it adds to a parameter.
    pub fn of_parameter([rows, cols]: [usize; 2], left: Vec<f32>, right: Vec<f32>, scale: f32, stacked: usize) -> Self {
        Delta { rows, cols, left, right, scale, stacked, rounded: true, ..Delta::default() }
    }

    /// What the columns of the sum have to be multiplied by to have these lengths.
    fn column_factors(
        &self,
        base: &Checkpoint,
        name: &str,
        magnitude: &[f32],
        (weights, module): (&Path, &str),
    ) -> Result<Vec<f32>> {
        let t = base.fitting(name, [self.rows, self.cols], weights, module)?;
        let (mut row, mut added, mut scratch) = (vec![0.0; self.cols], Vec::new(), Vec::new());
        let mut squares = vec![0.0f64; self.cols];
        for r in 0..self.rows {
            base.read_f32(t, r * self.cols..(r + 1) * self.cols, &mut scratch, &mut row)?;
            self.product(r, 0, self.cols, &mut added);
            for ((square, w), x) in squares.iter_mut().zip(&row).zip(&added) {
                *square += f64::from(w + x) * f64::from(w + x);
            }
        }
        Ok(magnitude.iter().zip(squares).map(|(length, square)| length / square.sqrt() as f32).collect())
    }

    /// The stored bytes of `t` from `offset` on, with what is added.
    pub fn read(&self, t: &TensorMeta, file: &SourceFile, offset: u64, out: &mut [u8]) -> Result<()> {
        let internal =
            || Error::Internal(format!("{} bytes at {offset} of '{}' are not whole values", out.len(), t.name));
        let Dtype::Ggml(ty) = t.dtype else { return Err(internal()) };
        let width = if ty == GgmlType::F32 { 4 } else { 2 };
        if !offset.is_multiple_of(width as u64) || !out.len().is_multiple_of(width) {
            return Err(internal());
        }
        let quantize = codec(ty).and_then(|codec| codec.quantize).ok_or_else(internal)?;
        let fault = |e: Error| e.tensor(t.name.as_str());
        file.read_at(t.range.start + offset, out).map_err(fault)?;
        let mut at = (offset / width as u64) as usize;
        let (mut bytes, mut row, mut added) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = out;
        while !rest.is_empty() {
            let (r, from) = (at / self.cols, at % self.cols);
            let n = (self.cols - from).min(rest.len() / width);
            let (now, later) = rest.split_at_mut(n * width);
            // Rows have to be seen whole where their length counts.
            let first = if self.magnitude.is_some() { 0 } else { from };
            if self.magnitude.is_some() && n < self.cols {
                bytes.resize(self.cols * width, 0);
                file.read_at(t.range.start + (r * self.cols * width) as u64, &mut bytes).map_err(fault)?;
            } else {
                bytes.clear();
                bytes.extend_from_slice(now);
            }
            row.resize(bytes.len() / width, 0.0);
            decode(ty, &bytes, &mut row)?;
            self.product(r, first, row.len(), &mut added);
            if self.rounded {
                bytes.resize(added.len() * width, 0);
                quantize(&added, None, &mut bytes);
                decode(ty, &bytes, &mut added)?;
            }
            match self.own.get(&r) {
                Some(own) => row.iter_mut().zip(&own[first..]).for_each(|(w, own)| *w = *own),
                None => self.add(r, &mut row, &added),
            }
            if let Some(factors) = &self.factors {
                row.iter_mut().zip(&factors[first..]).for_each(|(w, factor)| *w *= factor);
            }
            quantize(&row[from - first..][..n], None, now);
            at += n;
            rest = later;
        }
        Ok(())
    }

    /// What is added to `n` values of row `r` from column `from` on.
    fn product(&self, r: usize, from: usize, n: usize, added: &mut Vec<f32>) {
        let stacked = self.stacked.max(1);
        let rank = self.right.len() / self.cols / stacked;
        let first = r / (self.rows / stacked) * rank;
        added.clear();
        added.resize(n, 0.0);
        for (k, factor) in self.left[r * rank..(r + 1) * rank].iter().enumerate() {
            let right = &self.right[(first + k) * self.cols + from..][..n];
            added.iter_mut().zip(right).for_each(|(sum, x)| *sum += factor * x);
        }
        added.iter_mut().for_each(|sum| *sum *= self.scale);
    }

    /// Merges it into what is stored of row `r`, or all of it where the row has a length.
    fn add(&self, r: usize, row: &mut [f32], added: &[f32]) {
        row.iter_mut().zip(added).for_each(|(w, x)| *w += x);
        if let Some(magnitude) = &self.magnitude {
            let length = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt() as f32;
            let factor = magnitude[r] / length;
            row.iter_mut().for_each(|w| *w *= factor);
        }
    }
}
