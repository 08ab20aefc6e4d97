//! Attention taken back: from the gradient at what enters the output matrix to that at the normalised stream. Probabilities
//! are made again block by block of queries, and never kept (Dao et al. 2022, section 3.1, algorithm 2).

use super::super::attention::{Heads, softmax_beside};
use super::super::block::Call;
use super::super::heads::{Attention, temperature};
use super::super::linear::{columns, products};
use super::super::norm::{Norm, ROWS_PER_TASK};
use super::super::rope::Angles;
use super::super::{Batch, Cache, Engine};
use super::Gradients;
use crate::Result;
use crate::kernel::vector;
use crate::model::config;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Queries whose scores are in memory at once, for each key and value head.
const QUERIES: usize = 128;

/// What the forward pass left of one sequence.
pub(super) struct Trace<'a> {
    /// What was read, `[n, hidden]`.
    normed: &'a [f32],
    /// Queries, keys and values as they were multiplied, `[n, stride]`.
    qkv: Vec<f32>,
    angles: Option<Angles>,
    /// What entered the output matrix, `[n, out_width]`.
    pub attended: Vec<f32>,
}

impl Attention {
    /// The forward pass of one sequence `normed` (`[n, hidden]`) in the layer `index`.
    pub(super) fn traced<'a>(
        &self,
        own: &config::Heads,
        engine: &Engine,
        index: usize,
        normed: &'a [f32],
        cache: &mut Cache,
    ) -> Result<Trace<'a>> {
        let rows = normed.len() / engine.config.hidden;
        let (mut qkv, mut packed_keys, mut attended) = (Vec::new(), Vec::new(), Vec::new());
        let mut call = Call {
            engine,
            index,
            batch: Batch { sequences: 1, from: 0 },
            rows,
            n: rows,
            normed,
            cache: &mut *cache,
            qkv: &mut qkv,
            packed_keys: &mut packed_keys,
            attended: &mut attended,
            carried: &mut [],
        };
        let _ = self.mix(own, &mut call, &mut ())?;
        Ok(Trace { normed, qkv, angles: engine.angles_from(own.rope, cache, 0, rows), attended })
    }

    /// From the gradient `d_attended` at what enters the output matrix to that at what was read, which is added to `dx`.
    pub(super) fn back(
        &self,
        (own, engine): (&config::Heads, &Engine),
        trace: &Trace,
        d_attended: &[f32],
        dx: &mut [f32],
        gradients: &mut dyn Gradients,
    ) {
        let (q_width, k_width) = (own.q_width(), own.k_width());
        let stride = q_width + k_width + own.v_width();
        let mut d = cores_back(self.shape(own), &trace.qkv, stride, d_attended);
        let few = &own.peculiar;
        let back = trace.angles.as_ref().map(Angles::back);
        d.par_chunks_exact_mut(stride).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(i, row)| {
            let factor = temperature(few.temperature, i);
            if factor != 1.0 {
                vector::scale(&mut row[..q_width], factor);
            }
            let (qk, v) = row.split_at_mut(q_width + k_width);
            if let Some(back) = &back {
                qk.chunks_exact_mut(own.dim).for_each(|head| engine.rotate(head, back, i));
            }
            if let Some(scale) = few.value_scale {
                vector::scale(v, scale);
            }
        });
        if self.q_norm.is_some() || self.k_norm.is_some() {
            let mut raw = vec![0.0; trace.qkv.len()];
            let _ = products(&self.qkv, trace.normed, &mut raw, stride, &mut ());
            let parts = [(&self.q_norm, 0..q_width), (&self.k_norm, q_width..q_width + k_width)];
            for (norm, of) in parts.into_iter().filter_map(|(norm, of)| Some((norm.as_ref()?, of))) {
                let (x, mut dy) = (columns(&raw, stride, of.clone()), columns(&d, stride, of.clone()));
                let (width, parts) = rows_of(norm, of.len(), own.dim);
                norm.back(&x, width, parts, &mut dy, gradients);
                for (row, dy) in d.chunks_exact_mut(stride).zip(dy.chunks_exact(of.len())) {
                    row[of.clone()].copy_from_slice(dy);
                }
            }
        }
        let mut at = 0;
        for linear in &self.qkv {
            let dy = columns(&d, stride, at..at + linear.out());
            linear.back(trace.normed, &dy, dx, gradients);
            at += linear.out();
        }
    }
}

/// The width of what a norm of queries or keys takes as one row, and how many parts its weights have.
fn rows_of(norm: &Norm, width: usize, dim: usize) -> (usize, usize) {
    match norm.weight.len() == width && norm.is_wide(dim) {
        true => (width, 1),
        false => (dim, width / dim.max(1)),
    }
}

/// The gradient at queries, keys and values (`[n, stride]`, as `qkv`) from that at the results `[n, heads * value_dim]`.
fn cores_back(shape: Heads, qkv: &[f32], stride: usize, d_out: &[f32]) -> Vec<f32> {
    let Heads { heads, kv_heads, dim, value_dim, .. } = shape;
    let n = qkv.len() / stride;
    let each: Vec<Group> = (0..kv_heads).into_par_iter().map(|i| Group::back(shape, qkv, stride, d_out, i)).collect();
    let mut d = vec![0.0; n * stride];
    let (group, q_width) = (heads / kv_heads, heads * dim);
    for (t, row) in d.chunks_exact_mut(stride).enumerate() {
        for (i, own) in each.iter().enumerate() {
            let wide = group * dim;
            row[i * wide..(i + 1) * wide].copy_from_slice(&own.q[t * wide..(t + 1) * wide]);
            row[q_width + i * dim..][..dim].copy_from_slice(&own.k[t * dim..(t + 1) * dim]);
            let at = q_width + kv_heads * dim + i * value_dim;
            row[at..at + value_dim].copy_from_slice(&own.v[t * value_dim..(t + 1) * value_dim]);
        }
    }
    d
}

/// The gradients at one key and value head and the queries that read it.
struct Group {
    /// `[n, heads of the group * dim]`.
    q: Vec<f32>,
    /// `[n, dim]`.
    k: Vec<f32>,
    /// `[n, value_dim]`.
    v: Vec<f32>,
}

impl Group {
    fn back(shape: Heads, qkv: &[f32], stride: usize, d_out: &[f32], kv_head: usize) -> Self {
        let Heads { heads, kv_heads, dim, value_dim, .. } = shape;
        let (n, group) = (qkv.len() / stride, heads / kv_heads);
        let (mut dq, mut dk, mut dv) = (vec![0.0; n * group * dim], vec![0.0; n * dim], vec![0.0; n * value_dim]);
        let (mut scores, mut d_scores, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        let (key, value) = (heads * dim + kv_head * dim, (heads + kv_heads) * dim + kv_head * value_dim);
        for (inner, first) in (0..group).flat_map(|h| (0..n).step_by(QUERIES).map(move |first| (h, first))) {
            let head = kv_head * group + inner;
            let queries = first..(first + QUERIES).min(n);
            let seen = shape.seen(queries.start, n).start..shape.seen(queries.end - 1, n).end;
            let (len, count) = (seen.len(), queries.len());
            let keys = transposed(qkv, stride, seen.clone(), key, dim);
            let values = transposed(qkv, stride, seen.clone(), value, value_dim);
            let q = transposed(qkv, stride, queries.clone(), head * dim, dim);
            let d_out = transposed(d_out, heads * value_dim, queries.clone(), head * value_dim, value_dim);
            // Row-major [queries, positions], which is column-major [positions, queries].
            scores.resize(count * len, 0.0);
            d_scores.resize(count * len, 0.0);
            let columns = MatMut::from_column_major_slice_mut(&mut scores, len, count);
            matmul(columns, Accum::Replace, keys.transpose(), q, 1.0, Par::Seq);
            let columns = MatMut::from_column_major_slice_mut(&mut d_scores, len, count);
            matmul(columns, Accum::Replace, values.transpose(), d_out, 1.0, Par::Seq);
            let rows = scores.chunks_exact_mut(len).zip(d_scores.chunks_exact_mut(len));
            for (query, (row, d)) in queries.clone().zip(rows) {
                softmax_back(shape, (head, query), seen.start, row, d, n, &mut slopes);
            }
            let p = MatRef::from_row_major_slice(&scores, count, len);
            let ds = MatRef::from_row_major_slice(&d_scores, count, len);
            let of = seen.start * value_dim..seen.end * value_dim;
            let dv = MatMut::from_column_major_slice_mut(&mut dv[of], value_dim, len);
            matmul(dv, Accum::Add, d_out, p, 1.0, Par::Seq);
            let dk = MatMut::from_column_major_slice_mut(&mut dk[seen.start * dim..seen.end * dim], dim, len);
            matmul(dk, Accum::Add, q, ds, 1.0, Par::Seq);
            let wide = group * dim;
            let own = queries.start * wide + inner * dim..(queries.end - 1) * wide + (inner + 1) * dim;
            let dq = MatMut::from_column_major_slice_with_stride_mut(&mut dq[own], dim, count, wide);
            matmul(dq, Accum::Replace, keys, ds.transpose(), 1.0, Par::Seq);
        }
        Group { q: dq, k: dk, v: dv }
    }
}

/// `width` columns from `at` on of some rows of a row-major matrix, as columns.
fn transposed(data: &[f32], step: usize, rows: Range<usize>, at: usize, width: usize) -> MatRef<'_, f32> {
    let data = &data[rows.start * step + at..(rows.end - 1) * step + at + width];
    MatRef::from_column_major_slice_with_stride(data, width, rows.len(), step)
}

/// The row of a head's query, of `n` positions: products `row` with the keys from position `from` on become probabilities,
/// and the gradient `d` at those that at the products. What is not seen becomes 0 in both.
fn softmax_back(
    shape: Heads,
    (head, query): (usize, usize),
    from: usize,
    row: &mut [f32],
    d: &mut [f32],
    n: usize,
    slopes: &mut Vec<f32>,
) {
    let seen = shape.seen(query, n);
    let first = seen.start;
    let seen = seen.start - from..seen.end - from;
    for unseen in [0..seen.start, seen.end..row.len()] {
        row[unseen.clone()].fill(0.0);
        d[unseen].fill(0.0);
    }
    let (row, d) = (&mut row[seen.clone()], &mut d[seen]);
    vector::scale(row, shape.scale);
    slopes.clear();
    if let Some(cap) = shape.softcap {
        vector::soft_cap(row, cap);
        slopes.extend(row.iter().map(|s| 1.0 - (s / cap) * (s / cap)));
    }
    if let Some(slope) = shape.slope(head) {
        let distance = |i: usize| query.abs_diff(first + i) as f32;
        row.iter_mut().enumerate().for_each(|(i, score)| *score -= slope * distance(i));
    }
    softmax_beside(row, shape.sinks.map(|sinks| sinks[head]));
    let mean = vector::dot(row, d);
    d.iter_mut().zip(&*row).for_each(|(d, p)| *d = p * (*d - mean) * shape.scale);
    d.iter_mut().zip(&*slopes).for_each(|(d, slope)| *d *= slope);
}
