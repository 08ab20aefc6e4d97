//! Causal attention of a batch of queries over the key/value cache: grouped heads, sliding windows, soft-capping. The
//! projections before and after it are not here.

use crate::kernel::vector;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Keys and values of one layer, each `[positions, kv_heads * head_dim]`, after rotation.
#[derive(Default)]
pub(super) struct KeyValues {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

/// What a sequence remembers. One per sequence; not tied to the engine that fills it beyond its sizes.
pub struct Cache {
    layers: Vec<KeyValues>,
    len: usize,
    capacity: usize,
}

impl Cache {
    /// For a sequence of up to `capacity` tokens that comes in any number of batches, in a model of `layers` layers.
    pub fn new(layers: usize, capacity: usize) -> Self {
        Cache { layers: (0..layers).map(|_| KeyValues::default()).collect(), len: 0, capacity }
    }

    /// For sequences of up to `capacity` tokens that come whole, each in one batch: the layers share one buffer, and
    /// every batch begins at position 0.
    pub fn one_batch(capacity: usize) -> Self {
        Cache::new(1, capacity)
    }

    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The keys and values of `layer`, cut to the tokens held, to which those of the batch are to be appended.
    pub(super) fn layer(&mut self, layer: usize, width: usize) -> &mut KeyValues {
        let slots = self.layers.len();
        let kv = &mut self.layers[layer % slots];
        kv.keys.truncate(self.len * width);
        kv.values.truncate(self.len * width);
        kv
    }

    /// Counts the `n` tokens that every one of `layers` layers has appended.
    pub(super) fn advance(&mut self, n: usize, layers: usize) {
        if self.layers.len() >= layers {
            self.len += n;
        }
    }
}

/// The shape and the choices of a layer's attention.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    pub softcap: Option<f32>,
    /// Each position sees itself and the `window - 1` before it.
    pub window: Option<usize>,
}

/// Queries that are multiplied with the keys together. Fixed, so that no result depends on the number of threads.
const QUERY_BLOCK: usize = 64;

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Attends from the last `n` positions of `kv` to all before them. The queries are the first `heads * dim` columns of
/// `q` (`[n, stride]`); the result goes to `out` (`[n, heads * dim]`).
pub(super) fn attend(shape: Heads, q: &[f32], stride: usize, kv: &KeyValues, out: &mut [f32]) {
    let Heads { heads, kv_heads, dim, .. } = shape;
    let (width, n) = (kv_heads * dim, q.len() / stride);
    let first = kv.keys.len() / width - n;
    // Column-major [heads * dim, n], cut into one piece per head and block of queries.
    let out = MatMut::from_column_major_slice_mut(out, heads * dim, n);
    out.par_row_chunks_mut(dim).enumerate().for_each(|(head, rows)| {
        rows.par_col_chunks_mut(QUERY_BLOCK).enumerate().for_each(|(block, out)| {
            let queries = block * QUERY_BLOCK..((block + 1) * QUERY_BLOCK).min(n);
            attend_block(shape, q, stride, kv, first, head, queries, out);
        });
    });
}

/// One head's share of `attend` for some of the queries, of which the first of the batch is at position `first`. `out`
/// is `[dim, queries]`.
#[allow(clippy::too_many_arguments)]
fn attend_block(
    shape: Heads,
    q: &[f32],
    stride: usize,
    kv: &KeyValues,
    first: usize,
    head: usize,
    queries: Range<usize>,
    out: MatMut<'_, f32>,
) {
    let dim = shape.dim;
    let width = shape.kv_heads * dim;
    // The positions that a query sees.
    let seen = |query: usize| {
        let end = first + query + 1;
        shape.window.map_or(0, |w| end.saturating_sub(w))..end
    };
    let positions = seen(queries.start).start..seen(queries.end - 1).end;
    let len = positions.len();
    let column = head / (shape.heads / shape.kv_heads) * dim;
    let stored = positions.start * width + column..(positions.end - 1) * width + column + dim;
    let keys = MatRef::from_row_major_slice_with_stride(&kv.keys[stored.clone()], len, dim, width);
    let values = MatRef::from_row_major_slice_with_stride(&kv.values[stored], len, dim, width);
    let q = &q[queries.start * stride + head * dim..(queries.end - 1) * stride + (head + 1) * dim];
    let q = MatRef::from_column_major_slice_with_stride(q, dim, queries.len(), stride);
    SCORES.with_borrow_mut(|scores| {
        // Row-major [queries, len], which is column-major [len, queries].
        scores.resize(queries.len() * len, 0.0);
        let columns = MatMut::from_column_major_slice_mut(scores, len, queries.len());
        matmul(columns, Accum::Replace, keys, q, shape.scale, Par::Seq);
        for (query, row) in queries.clone().zip(scores.chunks_exact_mut(len)) {
            let Range { start, end } = seen(query);
            let (before, row) = row.split_at_mut(start - positions.start);
            let (row, after) = row.split_at_mut(end - start);
            before.fill(0.0);
            after.fill(0.0);
            if let Some(cap) = shape.softcap {
                vector::soft_cap(row, cap);
            }
            vector::softmax(row);
        }
        let weights = MatRef::from_column_major_slice(scores.as_slice(), len, queries.len());
        matmul(out, Accum::Replace, values.transpose(), weights, 1.0, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        let mut next = || {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn attention_equals_its_definition() {
        let (heads, kv_heads, dim, past, n) = (4, 2, 8, 30, 150);
        for (window, softcap) in [(None, None), (Some(16), None), (None, Some(0.7)), (Some(70), Some(2.0))] {
            let shape = Heads { heads, kv_heads, dim, scale: 0.9, softcap, window };
            let kv = KeyValues {
                keys: numbers((past + n) * kv_heads * dim, 1),
                values: numbers((past + n) * kv_heads * dim, 2),
            };
            let stride = heads * dim + 5;
            let q = numbers(n * stride, 3);
            let mut out = vec![f32::NAN; n * heads * dim];
            attend(shape, &q, stride, &kv, &mut out);
            for t in 0..n {
                for h in 0..heads {
                    let query = &q[t * stride + h * dim..][..dim];
                    let position = past + t;
                    let low = window.map_or(0, |w| (position + 1).saturating_sub(w));
                    let row = |data: &[f32], p: usize| data[(p * kv_heads + h / 2) * dim..][..dim].to_vec();
                    let score = |p: usize| {
                        let s: f64 = query.iter().zip(row(&kv.keys, p)).map(|(a, b)| *a as f64 * b as f64).sum();
                        let s = s * 0.9;
                        softcap.map_or(s, |c| (s / c as f64).tanh() * c as f64).exp()
                    };
                    let total: f64 = (low..=position).map(score).sum();
                    for d in 0..dim {
                        let exact: f64 = (low..=position).map(|p| score(p) / total * row(&kv.values, p)[d] as f64).sum();
                        let got = out[(t * heads + h) * dim + d] as f64;
                        assert!((got - exact).abs() < 1e-5, "{window:?} {softcap:?} query {t} head {h}: {got} {exact}");
                    }
                }
            }
        }
    }
}
