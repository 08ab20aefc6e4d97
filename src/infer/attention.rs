//! Attention of a batch of queries over the key/value cache: grouped heads, sliding windows, soft-capping; causal, or in both
//! directions. The projections before and after it are not here.

use super::Buffers;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx512, Isa};
#[cfg(target_arch = "x86_64")]
use crate::kernel::gemm;
use crate::kernel::{row_blocks, vector};
use crate::{Error, Result};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Keys and values of one layer, each `[positions, kv_heads * head_dim]`, after rotation.
#[derive(Clone, Default)]
pub(super) struct KeyValues {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    /// What an indexer ranks positions by.
    ranked: Vec<f32>,
}

/// The keys and values of `len` positions, wherever they are: those of a position begin `step` (`value_step`) after those of
/// the one before.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub step: usize,
    pub value_step: usize,
    pub len: usize,
}

/// What a mixer that sums the past up has of it.
#[derive(Clone, Default)]
pub(super) struct Recurrent {
    pub state: Vec<f32>,
    /// The last inputs of its convolution, the oldest first.
    pub recent: Vec<f32>,
    /// Tokens that went into both.
    len: usize,
}

/// What a sequence remembers, or several that grow together. Not tied to the engine that fills it beyond its sizes.
pub struct Cache {
    /// Those of each sequence, layer by layer; nothing where sequences come whole.
    layers: Vec<KeyValues>,
    recurrent: Vec<Recurrent>,
    /// The tokens of each sequence.
    tokens: Vec<Vec<u32>>,
    sequences: usize,
    len: usize,
    capacity: usize,
    pub(super) buffers: Buffers,
}

impl Cache {
    /// For a sequence of up to `capacity` tokens that comes in any number of batches, in a model of `layers` layers.
    pub fn new(layers: usize, capacity: usize) -> Self {
        Cache::together(layers, 1, capacity)
    }

    /// For `sequences` that take their tokens in step, up to `capacity` each.
    pub fn together(layers: usize, sequences: usize, capacity: usize) -> Self {
        Cache {
            layers: (0..layers * sequences).map(|_| KeyValues::default()).collect(),
            recurrent: (0..layers * sequences).map(|_| Recurrent::default()).collect(),
            tokens: vec![Vec::new(); sequences],
            sequences,
            len: 0,
            capacity,
            buffers: Buffers::default(),
        }
    }

    /// For sequences of up to `capacity` tokens that come whole, each in one batch: nothing is remembered, and every
    /// batch begins at position 0.
    pub fn one_batch(capacity: usize) -> Self {
        Cache::new(0, capacity)
    }

    /// Whether it remembers anything.
    pub(super) fn keeps(&self) -> bool {
        !self.layers.is_empty()
    }

    /// How many tokens it holds of each sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The same with so many copies of each sequence, which go on by themselves.
    pub fn forked(mut self, copies: &[usize]) -> Cache {
        fn each<T: Clone>(kept: &[T], sequences: usize, copies: &[usize]) -> Vec<T> {
            let of_layer = |layer: &[T]| -> Vec<T> {
                let pairs = layer.iter().zip(copies);
                pairs.flat_map(|(one, n)| std::iter::repeat_n(one, *n)).cloned().collect()
            };
            kept.chunks(sequences.max(1)).flat_map(of_layer).collect()
        }
        self.layers = each(&self.layers, self.sequences, copies);
        self.recurrent = each(&self.recurrent, self.sequences, copies);
        self.tokens = each(&self.tokens, self.sequences, copies);
        self.sequences = copies.iter().sum();
        self
    }

    /// Forgets all but what one sequence has in common with the beginning of `text`; how many tokens are left.
    pub fn keep_beginning(&mut self, text: &[u32]) -> usize {
        let held = self.before().first().map_or(&[][..], Vec::as_slice);
        let common = held.iter().zip(text).take_while(|(a, b)| a == b).count();
        // What was summed up cannot be taken back.
        let sums = self.recurrent.iter().any(|kept| kept.len > 0);
        let kept = if common < self.len && sums { 0 } else { common };
        self.truncate(kept);
        kept
    }

    /// The keys and values of `sequence` in `layer`, cut to the tokens held, to which those of the batch are to be
    /// appended.
    pub(super) fn layer(&mut self, layer: usize, sequence: usize, widths: [usize; 2]) -> &mut KeyValues {
        let kv = &mut self.layers[layer * self.sequences + sequence];
        kv.keys.truncate(self.len * widths[0]);
        kv.values.truncate(self.len * widths[1]);
        kv
    }

    /// The same of what an indexer ranks positions by, of `width` numbers each.
    pub(super) fn ranked(&mut self, layer: usize, sequence: usize, width: usize) -> &mut Vec<f32> {
        let kept = &mut self.layers[layer * self.sequences + sequence].ranked;
        kept.truncate(self.len * width);
        kept
    }

    /// The keys and values of `sequence` in a layer before, with those of the batch.
    pub(super) fn shared(&self, layer: usize, sequence: usize) -> &KeyValues {
        &self.layers[layer * self.sequences + sequence]
    }

    /// What `sequence` has summed up in `layer`, to be taken and put back with the `n` tokens of the batch; nothing at the
    /// beginning.
    ///
    /// Errors: `Internal` when tokens were forgotten that are part of the sum.
    pub(super) fn take_recurrent(&mut self, layer: usize, sequence: usize) -> Result<Recurrent> {
        match self.recurrent.get_mut(layer * self.sequences + sequence) {
            Some(kept) if self.len > 0 && kept.len != self.len => {
                Err(Error::Internal("a recurrent layer cannot forget single tokens".into()))
            }
            Some(kept) if self.len > 0 => Ok(std::mem::take(kept)),
            _ => Ok(Recurrent::default()),
        }
    }

    pub(super) fn put_recurrent(&mut self, layer: usize, sequence: usize, n: usize, kept: Recurrent) {
        let len = self.len + n;
        if let Some(place) = self.recurrent.get_mut(layer * self.sequences + sequence) {
            *place = Recurrent { len, ..kept };
        }
    }

    /// The tokens that it holds, of each sequence.
    pub(super) fn before(&mut self) -> &[Vec<u32>] {
        let len = self.len;
        self.tokens.iter_mut().for_each(|tokens| tokens.truncate(len));
        &self.tokens
    }

    /// Takes note of the next tokens of `sequences`.
    pub(super) fn read(&mut self, tokens: &[u32], sequences: usize) {
        if self.keeps() {
            let each = tokens.chunks(tokens.len() / sequences.max(1));
            self.tokens.iter_mut().zip(each).for_each(|(kept, new)| kept.extend_from_slice(new));
        }
    }

    /// Counts the `n` tokens that every layer has appended.
    pub(super) fn advance(&mut self, n: usize) {
        if self.keeps() {
            self.len += n;
        }
    }
}

/// The shape and the choices of a layer's attention.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub value_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    pub softcap: Option<f32>,
    /// Each position sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    /// Those of its chunk of `window` positions instead.
    pub chunked: bool,
    /// Those behind it too; with a window, what is at most half of it away.
    pub both_ways: bool,
    /// A score of each head that nothing is read for.
    pub sinks: Option<&'a [f32]>,
    /// The largest slope of linear biases.
    pub alibi: Option<f32>,
}

impl Heads<'_> {
    /// What is taken from a head's score per position of distance (Press et al. 2021): powers of one base, and between them
    /// where the heads are no power of two.
    pub(super) fn slope(&self, head: usize) -> Option<f32> {
        let below = 1 << self.heads.max(1).ilog2();
        let power = |of: usize, step: f32| 2f32.powf(-self.alibi.unwrap_or(0.0) * step / of as f32);
        self.alibi.map(|_| match head < below {
            true => power(below, (head + 1) as f32),
            false => power(2 * below, (2 * (head - below) + 1) as f32),
        })
    }

    /// The positions, of `len`, that the query at `position` sees.
    pub(super) fn seen(&self, position: usize, len: usize) -> Range<usize> {
        let end = position + 1;
        match self.window {
            None if self.both_ways => 0..len,
            Some(window) if self.both_ways => position.saturating_sub(window / 2)..(end + window / 2).min(len),
            Some(chunk) if self.chunked => position / chunk * chunk..end,
            window => window.map_or(0, |w| end.saturating_sub(w))..end,
        }
    }
}

/// Queries that are multiplied with the keys together: whole tiles of the product. Fixed, so that no result depends on
/// the number of threads.
const QUERY_BLOCK: usize = 48;

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Queries of a batch that are too few for packing the keys.
#[cfg(target_arch = "x86_64")]
const FEW_QUERIES: usize = 4;

/// Attends from the last `n` positions of `kv` to all before them, or to all. The queries are the first `heads * dim` columns of
/// `q` (`[n, stride]`); the result goes to `out` (`[n, heads * value_dim]`). `packed` is working memory.
pub(super) fn attend(shape: Heads, q: &[f32], stride: usize, kv: Seen, packed: &mut Vec<f32>, out: &mut [f32]) {
    let Heads { heads, dim, value_dim, .. } = shape;
    let n = q.len() / stride;
    let first = kv.len - n;
    #[cfg(target_arch = "x86_64")]
    let packed = Isa::active()
        .avx512()
        .filter(|_| n >= FEW_QUERIES && [dim, value_dim].iter().all(|d| d.is_multiple_of(gemm::PANEL)))
        .map(|avx512| {
            pack_keys(avx512, shape, kv, packed);
            (avx512, packed.as_slice())
        });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = packed;
    // Column-major [heads * dim, n], cut into one piece per head and block of queries.
    let out = MatMut::from_column_major_slice_mut(out, heads * value_dim, n);
    row_blocks(out, value_dim).into_par_iter().enumerate().for_each(|(head, rows)| {
        // A block of queries is a block of rows of the transpose.
        row_blocks(rows.transpose_mut(), QUERY_BLOCK).into_par_iter().enumerate().for_each(|(block, out)| {
            let out = out.transpose_mut();
            let queries = block * QUERY_BLOCK..((block + 1) * QUERY_BLOCK).min(n);
            let work = Block { shape, kv, head, queries, first };
            let q = &q[work.queries.start * stride + head * dim..(work.queries.end - 1) * stride + (head + 1) * dim];
            SCORES.with_borrow_mut(|scores| {
                #[cfg(target_arch = "x86_64")]
                if let Some(packed) = packed {
                    return work.attend_packed(q, stride, packed, scores, out);
                }
                work.attend(q, stride, scores, out);
            });
        });
    });
}

/// The keys of each head in panels, `[kv_heads, positions / PANEL rounded up, dim, PANEL]`.
#[cfg(target_arch = "x86_64")]
fn pack_keys(avx512: Avx512, shape: Heads, kv: Seen, packed: &mut Vec<f32>) {
    let Heads { kv_heads, dim, .. } = shape;
    let Seen { keys, step, len: positions, .. } = kv;
    packed.resize(kv_heads * positions.next_multiple_of(gemm::PANEL) * dim, 0.0);
    let panels = packed.par_chunks_exact_mut(gemm::PANEL * dim).with_min_len(8).enumerate();
    panels.for_each(|(i, panel)| {
        let per_head = positions.div_ceil(gemm::PANEL);
        let (head, start) = (i / per_head, i % per_head * gemm::PANEL);
        for from in (start..(start + gemm::PANEL).min(positions)).step_by(16) {
            let count = (positions - from).min(16);
            gemm::pack(avx512, &keys[from * step + head * dim..], step, count, dim, panel, from - start);
        }
    });
}

/// One head's share of [`attend`] for some of the queries; position `first` is that of the first query of the batch.
struct Block<'a> {
    shape: Heads<'a>,
    kv: Seen<'a>,
    head: usize,
    queries: Range<usize>,
    first: usize,
}

impl Block<'_> {
    /// The positions that a query sees.
    fn seen(&self, query: usize) -> Range<usize> {
        self.shape.seen(self.first + query, self.kv.len)
    }

    /// The key/value head of this head.
    fn kv_head(&self) -> usize {
        self.head / (self.shape.heads / self.shape.kv_heads)
    }

    /// `q` and `out` begin at this head's columns of the first query; `out` is `[dim, queries]`, column-major.
    fn attend(&self, q: &[f32], stride: usize, scores: &mut Vec<f32>, out: MatMut<'_, f32>) {
        let (dim, value_dim, n) = (self.shape.dim, self.shape.value_dim, self.queries.len());
        let (step, value_step) = (self.kv.step, self.kv.value_step);
        let positions = self.seen(self.queries.start).start..self.seen(self.queries.end - 1).end;
        let len = positions.len();
        let stored = |step: usize, dim: usize| {
            let column = self.kv_head() * dim;
            positions.start * step + column..(positions.end - 1) * step + column + dim
        };
        let keys = MatRef::from_row_major_slice_with_stride(&self.kv.keys[stored(step, dim)], len, dim, step);
        let values = &self.kv.values[stored(value_step, value_dim)];
        let values = MatRef::from_row_major_slice_with_stride(values, len, value_dim, value_step);
        let q = MatRef::from_column_major_slice_with_stride(q, dim, n, stride);
        // Row-major [queries, len], which is column-major [len, queries].
        scores.resize(n * len, 0.0);
        let columns = MatMut::from_column_major_slice_mut(scores, len, n);
        matmul(columns, Accum::Replace, keys, q, 1.0, Par::Seq);
        self.weigh(scores, positions.start, len);
        let weights = MatRef::from_column_major_slice(scores.as_slice(), len, n);
        matmul(out, Accum::Replace, values.transpose(), weights, 1.0, Par::Seq);
    }

    /// The same from packed keys.
    #[cfg(target_arch = "x86_64")]
    fn attend_packed(
        &self,
        q: &[f32],
        stride: usize,
        (avx512, packed): (Avx512, &[f32]),
        scores: &mut Vec<f32>,
        out: MatMut<'_, f32>,
    ) {
        use gemm::{PANEL, Panels, Rows, multiply};
        let (dim, value_dim, n) = (self.shape.dim, self.shape.value_dim, self.queries.len());
        let step = self.kv.value_step;
        // Panels begin at a multiple of their size.
        let start = self.seen(self.queries.start).start / PANEL * PANEL;
        let len = self.seen(self.queries.end - 1).end - start;
        let all = self.kv.len.next_multiple_of(PANEL);
        let keys = Panels::Packed(&packed[(self.kv_head() * all + start) * dim..]);
        scores.resize(n * len, 0.0);
        // SAFETY: `scores` is `[n, len]`.
        unsafe { multiply(avx512, Rows { data: q, step: stride, n, cols: dim }, keys, len, scores.as_mut_ptr(), len) };
        self.weigh(scores, start, len);
        let values = Panels::Plain { data: &self.kv.values[start * step + self.kv_head() * value_dim..], step };
        let weights = Rows { data: scores, step: len, n, cols: len };
        let stride = out.col_stride() as usize;
        // SAFETY: each of the `n` columns of `out`, which is this task's alone, holds `value_dim` floats.
        unsafe { multiply(avx512, weights, values, value_dim, out.as_ptr_mut(), stride) };
    }

    /// From products of queries and keys to attention weights, `[queries, len]`; the first column is position `start`.
    fn weigh(&self, scores: &mut [f32], start: usize, len: usize) {
        let slope = self.shape.slope(self.head);
        for (query, row) in self.queries.clone().zip(scores.chunks_exact_mut(len)) {
            let seen = self.seen(query);
            row[..seen.start - start].fill(0.0);
            row[seen.end - start..].fill(0.0);
            let row = &mut row[seen.start - start..seen.end - start];
            vector::scale(row, self.shape.scale);
            if let Some(cap) = self.shape.softcap {
                vector::soft_cap(row, cap);
            }
            if let Some(slope) = slope {
                let distance = |i: usize| (self.first + query).abs_diff(seen.start + i) as f32;
                row.iter_mut().enumerate().for_each(|(i, score)| *score -= slope * distance(i));
            }
            softmax_beside(row, self.shape.sinks.map(|sinks| sinks[self.head]));
        }
    }
}

/// Softmax over scores, beside one that nothing is read for.
pub(super) fn softmax_beside(row: &mut [f32], sink: Option<f32>) {
    let Some(sink) = sink else { return vector::softmax(row) };
    let shift = vector::max(row).max(sink);
    let sum = vector::exp_sum(row, shift) + (sink - shift).exp();
    vector::scale(row, 1.0 / sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    #[test]
    fn attention_equals_its_definition() {
        let (heads, kv_heads, past) = (4, 2, 30);
        let choices = [(None, None), (Some(16), None), (None, Some(0.7)), (Some(70), Some(2.0))];
        for ((window, softcap), (dim, n)) in
            choices.into_iter().flat_map(|c| [(8, 150), (32, 150), (64, 3)].map(|d| (c, d)))
        {
            let shape = Heads {
                heads,
                kv_heads,
                dim,
                value_dim: dim,
                scale: 0.9,
                softcap,
                window,
                chunked: false,
                both_ways: false,
                sinks: None,
                alibi: None,
            };
            // Keys and values as they lie behind the queries, and more than they need.
            let step = kv_heads * dim + 3;
            let kv = KeyValues {
                keys: numbers((past + n) * step, 1),
                values: numbers((past + n) * step, 2),
                ..KeyValues::default()
            };
            let stride = heads * dim + 5;
            let q = numbers(n * stride, 3);
            let mut out = vec![f32::NAN; n * heads * dim];
            let seen = Seen { keys: &kv.keys, values: &kv.values, step, value_step: step, len: past + n };
            attend(shape, &q, stride, seen, &mut Vec::new(), &mut out);
            for t in 0..n {
                for h in 0..heads {
                    let query = &q[t * stride + h * dim..][..dim];
                    let position = past + t;
                    let low = window.map_or(0, |w| (position + 1).saturating_sub(w));
                    let row = |data: &[f32], p: usize| data[p * step + h / 2 * dim..][..dim].to_vec();
                    let score = |p: usize| {
                        let s: f64 = query.iter().zip(row(&kv.keys, p)).map(|(a, b)| *a as f64 * b as f64).sum();
                        let s = s * 0.9;
                        softcap.map_or(s, |c| (s / c as f64).tanh() * c as f64).exp()
                    };
                    let total: f64 = (low..=position).map(score).sum();
                    for d in 0..dim {
                        let exact: f64 =
                            (low..=position).map(|p| score(p) / total * row(&kv.values, p)[d] as f64).sum();
                        let got = out[(t * heads + h) * dim + d] as f64;
                        assert!((got - exact).abs() < 1e-5, "{window:?} {softcap:?} query {t} head {h}: {got} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn sinks_slopes_and_chunks_equal_their_definition() {
        let (heads, dim, value_dim, past, n) = (4, 8, 6, 5, 20);
        let sinks = [0.5, -1.0, 0.0, 2.0];
        for (window, sinks, alibi) in
            [(None, Some(&sinks[..]), None), (None, None, Some(8.0)), (Some(6), Some(&sinks[..]), Some(4.0))]
        {
            let shape = Heads {
                heads,
                kv_heads: 2,
                dim,
                value_dim,
                scale: 0.9,
                softcap: None,
                window,
                chunked: true,
                both_ways: false,
                sinks,
                alibi,
            };
            let kv = KeyValues {
                keys: numbers((past + n) * 16, 1),
                values: numbers((past + n) * 12, 2),
                ..KeyValues::default()
            };
            let q = numbers(n * heads * dim, 3);
            let mut out = vec![f32::NAN; n * heads * value_dim];
            let seen = Seen { keys: &kv.keys, values: &kv.values, step: 16, value_step: 12, len: past + n };
            attend(shape, &q, heads * dim, seen, &mut Vec::new(), &mut out);
            for (t, h) in (0..n).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let position = past + t;
                let first = window.map_or(0, |w| position / w * w);
                let score = |p: usize| {
                    let query = &q[(t * heads + h) * dim..][..dim];
                    let products = query.iter().zip(&kv.keys[p * 16 + h / 2 * dim..]).map(|(a, b)| f64::from(a * b));
                    let slope = alibi.map_or(0.0, |a: f32| 2f64.powf(-f64::from(a) * (h + 1) as f64 / heads as f64));
                    (products.sum::<f64>() * 0.9 - slope * (position - p) as f64).exp()
                };
                let sink = sinks.map_or(0.0, |s| f64::from(s[h]).exp());
                let total = (first..=position).map(score).sum::<f64>() + sink;
                for d in 0..value_dim {
                    let value = |p: usize| f64::from(kv.values[p * 12 + h / 2 * value_dim + d]);
                    let exact: f64 = (first..=position).map(|p| score(p) / total * value(p)).sum();
                    let got = f64::from(out[(t * heads + h) * value_dim + d]);
                    assert!((got - exact).abs() < 1e-5, "{window:?} {alibi:?} query {t} head {h}: {got} {exact}");
                }
            }
        }
    }

    #[test]
    fn in_both_directions_everything_is_seen_or_half_a_window_on_either_side() {
        let (heads, n) = (2, 130);
        for (window, alibi, dim) in [(None, None, 8), (Some(16), None, 32), (Some(7), None, 8), (None, Some(8.0), 32)] {
            let shape = Heads {
                heads,
                kv_heads: 1,
                dim,
                value_dim: dim,
                scale: 0.9,
                softcap: None,
                window,
                chunked: false,
                both_ways: true,
                sinks: None,
                alibi,
            };
            let (keys, values, q) = (numbers(n * dim, 1), numbers(n * dim, 2), numbers(n * heads * dim, 3));
            let seen = Seen { keys: &keys, values: &values, step: dim, value_step: dim, len: n };
            // All queries, and the last ones alone.
            for from in [0, 100] {
                let mut out = vec![f32::NAN; (n - from) * heads * dim];
                attend(shape, &q[from * heads * dim..], heads * dim, seen, &mut Vec::new(), &mut out);
                for (t, h) in (from..n).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                    let near = |p: &usize| window.is_none_or(|w| p.abs_diff(t) <= w / 2);
                    let score = |p: usize| {
                        let query = &q[(t * heads + h) * dim..][..dim];
                        let products = query.iter().zip(&keys[p * dim..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                        let slope =
                            alibi.map_or(0.0, |a: f32| 2f64.powf(-f64::from(a) * (h + 1) as f64 / heads as f64));
                        (products.sum::<f64>() * 0.9 - slope * p.abs_diff(t) as f64).exp()
                    };
                    let total: f64 = (0..n).filter(near).map(score).sum();
                    for d in 0..dim {
                        let value = |p: usize| f64::from(values[p * dim + d]);
                        let exact: f64 = (0..n).filter(near).map(|p| score(p) / total * value(p)).sum();
                        let got = f64::from(out[((t - from) * heads + h) * dim + d]);
                        assert!((got - exact).abs() < 1e-5, "{window:?} {alibi:?} query {t} head {h}: {got} {exact}");
                    }
                }
            }
        }
    }
}
