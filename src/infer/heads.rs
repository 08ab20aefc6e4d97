//! Attention as a mixer of tokens: projections, norms of heads, rotation, the cache, gates. What happens between queries,
//! keys and values is in `attention`.

use super::attention::{Heads, Seen, attend};
use super::chosen::{self, Indexer};
use super::linear::{Linear, sigmoid, sized, softplus};
use super::norm::{Norm, ROWS_PER_TASK, unit_norm};
use super::{Call, Observer};
use crate::kernel::{Output, vector};
use crate::model::config::{self, Gate, Temperature};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// The matrices of one layer's attention; the last is the layer's own.
pub(super) struct Attention {
    /// Query, key and value, or one matrix with the rows of all three in this order. Without values, keys are values too.
    pub qkv: Vec<Linear>,
    pub keys_are_values: bool,
    /// What gates the result, where it has a matrix of its own.
    pub gate: Option<Linear>,
    /// Norms over each query and key head, or over all at once.
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub sinks: Option<Vec<f32>>,
    /// The norm of all heads' results, in front of the output matrix (BitNet).
    pub out_norm: Option<Norm>,
    pub indexer: Option<Indexer>,
}

/// The factor on queries at a position.
pub(super) fn temperature(rule: Option<Temperature>, position: usize) -> f32 {
    rule.map_or(1.0, |t| {
        let position = if t.shifted { position + 1 } else { position };
        1.0 + t.scale * (1.0 + (position as f32 / t.floor).floor()).ln()
    })
}

impl Attention {
    /// The heads of this layer as attention sees them.
    pub(super) fn shape(&self, own: &config::Heads) -> Heads<'_> {
        let few = &own.peculiar;
        Heads {
            heads: own.q,
            kv_heads: own.kv,
            dim: own.dim,
            value_dim: own.value_dim,
            scale: own.scale,
            softcap: own.softcap,
            window: own.window.map(|w| w.max(1)),
            chunked: few.chunked,
            both_ways: few.both_ways,
            sinks: self.sinks.as_deref(),
            alibi: few.alibi,
        }
    }

    /// From the normalised stream to what enters the output matrix, `[wanted rows, q_width]`.
    pub fn mix(&self, own: &config::Heads, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let (engine, batch) = (call.engine, call.batch);
        let c = &engine.config;
        let (hidden, first, rows, n) = (c.hidden, call.cache.len(), call.rows, call.n);
        let (q_width, kv_width, v_width) = (own.q_width(), own.k_width(), own.v_width());
        let shared = own.peculiar.shared;
        if own.peculiar.both_ways && first > 0 {
            return Err(Error::Internal("tokens that see the ones after them were run without those".into()));
        }
        // Columns of the keys and values that this layer makes.
        let (k_cols, v_cols) = if shared.is_some() { (0, 0) } else { (kv_width, v_width) };
        let stride = q_width + k_cols + v_cols;
        let normed = call.normed;
        let in_query = own.peculiar.gate == Gate::InQuery;
        let qkv = sized(call.qkv, rows * stride);
        let mut gates = Vec::new();
        // Keys and values of all positions; queries only of those that are wanted, where they have a matrix of their own.
        let (ahead, rest) = match &self.qkv[..] {
            [query, rest @ ..] if in_query || (batch.from > 0 && !rest.is_empty()) => (Some(query), rest),
            all => (None, all),
        };
        let wanted = |row: usize| row % n >= batch.from;
        let run = (|| {
            if let Some(query) = ahead.filter(|_| in_query) {
                gates.resize(rows * 2 * q_width, 0.0);
                query.product(normed, Output::whole(&mut gates, 2 * q_width), observer)?;
                for (row, both) in qkv.chunks_exact_mut(stride).zip(gates.chunks_exact(2 * q_width)) {
                    for (q, both) in row.chunks_exact_mut(own.dim).zip(both.chunks_exact(2 * own.dim)) {
                        q.copy_from_slice(&both[..own.dim]);
                    }
                }
            } else if let Some(query) = ahead {
                for row in (batch.from..rows).step_by(n) {
                    let x = &normed[row * hidden..(row + n - batch.from) * hidden];
                    query.product(x, Output { data: &mut qkv[row * stride..], stride, at: 0 }, observer)?;
                }
            }
            let mut at = ahead.map_or(0, |_| q_width);
            for linear in rest {
                linear.product(normed, Output { data: &mut *qkv, stride, at }, observer)?;
                at += linear.out();
            }
            if let Some(gate) = &self.gate {
                gates.resize(rows * gate.out(), 0.0);
                gate.product(normed, Output::whole(&mut gates, gate.out()), observer)?;
            }
            ControlFlow::Continue(())
        })();
        if run.is_break() {
            return Ok(run);
        }
        let angles = engine.angles(own.rope, call.cache, n);
        let few = &own.peculiar;
        qkv.par_chunks_exact_mut(stride).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(i, row)| {
            if let Some(limit) = few.clamp {
                row.iter_mut().for_each(|v| *v = v.clamp(-limit, limit));
            }
            let (qk, v) = row.split_at_mut(q_width + k_cols);
            let (q, k) = qk.split_at_mut(q_width);
            if self.keys_are_values {
                v.copy_from_slice(k);
            }
            for (part, norm) in [(if wanted(i) { q } else { &mut [] }, &self.q_norm), (k, &self.k_norm)] {
                let wide = norm.as_ref().filter(|norm| norm.weight.len() == part.len() && norm.is_wide(own.dim));
                if let Some(norm) = wide {
                    norm.apply(part, 0);
                }
                let norm = norm.as_ref().filter(|_| wide.is_none());
                for (h, head) in part.chunks_exact_mut(own.dim).enumerate() {
                    if let Some(norm) = norm.filter(|_| !few.norm_after_rope) {
                        norm.apply(head, h);
                    }
                    if let Some(angles) = &angles {
                        engine.rotate(head, angles, i % n);
                    }
                    if let Some(norm) = norm.filter(|_| few.norm_after_rope) {
                        norm.apply(head, h);
                    }
                    if few.unit_norm {
                        unit_norm(head, c.norm_eps);
                    }
                }
            }
            if few.value_norm {
                v.chunks_exact_mut(own.value_dim).for_each(|head| unit_norm(head, c.norm_eps));
            }
            if let Some(scale) = few.value_scale {
                vector::scale(v, scale);
            }
            if let Some(kept) = engine.kv_cache.filter(|_| shared.is_none()) {
                kept.keys(k, own.dim);
                kept.values(v, own.value_dim);
            }
            let factor = temperature(few.temperature, first + i % n);
            if factor != 1.0 {
                vector::scale(&mut row[..q_width], factor);
            }
        });
        let choice = match (&self.indexer, &few.chosen) {
            (Some(indexer), Some(ranking)) => {
                let normed = call.normed;
                match indexer.choose(ranking, call, normed, (own.rope, angles.as_ref()), observer) {
                    ControlFlow::Continue(choice) => Some(choice),
                    ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                }
            }
            _ => None,
        };
        let qkv = sized(call.qkv, rows * stride);
        let shape = self.shape(own);
        let (left, out_width) = (n - batch.from, own.out_width());
        let attended = sized(call.attended, batch.sequences * left * out_width);
        let outs = attended.chunks_exact_mut(left * out_width);
        let (carried, place) = (engine.carried, c.carried_of(shared.unwrap_or(call.index)));
        for (i, (sequence, attended)) in qkv.chunks_exact(n * stride).zip(outs).enumerate() {
            let queries = &sequence[batch.from * stride..];
            let with = &mut call.carried[i * n * carried..(i + 1) * n * carried];
            if let (Some(shared), Some(place)) = (shared, place) {
                let seen = if call.cache.keeps() {
                    let kv = call.cache.shared(shared, i);
                    let (keys, values) = (&kv.keys, &kv.values);
                    Seen { keys, values, step: kv_width, value_step: v_width, len: first + n }
                } else {
                    let (keys, values) = (&with[place..], &with[place + kv_width..]);
                    Seen { keys, values, step: carried, value_step: carried, len: n }
                };
                attend(shape, queries, stride, seen, call.packed_keys, attended);
                continue;
            }
            if let Some(place) = place {
                for (with, row) in with.chunks_exact_mut(carried).zip(sequence.chunks_exact(stride)) {
                    with[place..place + kv_width + v_width].copy_from_slice(&row[q_width..]);
                }
            }
            let (keys, values) = (&sequence[q_width..], &sequence[q_width + kv_width..]);
            let mut seen = Seen { keys, values, step: stride, value_step: stride, len: n };
            if call.cache.keeps() {
                let kv = call.cache.layer(call.index, i, [kv_width, v_width]);
                for row in sequence.chunks_exact(stride) {
                    kv.keys.extend_from_slice(&row[q_width..q_width + kv_width]);
                    kv.values.extend_from_slice(&row[q_width + kv_width..]);
                }
                let (keys, values) = (&kv.keys, &kv.values);
                seen = Seen { keys, values, step: kv_width, value_step: v_width, len: first + n };
            }
            // Of a sequence the lists of those that are wanted.
            let each = choice.as_ref().map_or(1, |choice| choice.len() / rows.max(1));
            let lists = choice.as_ref().map(|choice| &choice[(i * n + batch.from) * each..(i + 1) * n * each]);
            match lists.filter(|lists| !chosen::are_all(lists, each, first + batch.from)) {
                Some(lists) => chosen::attend(shape, queries, stride, seen, lists, attended),
                None => attend(shape, queries, stride, seen, call.packed_keys, attended),
            }
        }
        if !gates.is_empty() {
            let width = gates.len() / rows;
            let rows: Vec<&[f32]> =
                gates.chunks_exact(width).enumerate().filter(|(i, _)| wanted(*i)).map(|(_, row)| row).collect();
            for (out, gate) in attended.chunks_exact_mut(out_width).zip(rows) {
                gated(few.gate, out, gate, own);
            }
        }
        if let Some(norm) = &self.out_norm {
            attended.par_chunks_exact_mut(out_width).for_each(|out| norm.apply(out, 0));
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Norm {
    /// Whether all heads are normalised as one row: more weights than a head has, and none of them a head's alone.
    pub(super) fn is_wide(&self, dim: usize) -> bool {
        self.weight.len() > dim && !self.by_head
    }
}

/// One row of attention's result times its gate.
fn gated(kind: Gate, out: &mut [f32], gate: &[f32], own: &config::Heads) {
    match kind {
        Gate::InQuery => {
            for (out, both) in out.chunks_exact_mut(own.value_dim).zip(gate.chunks_exact(2 * own.dim)) {
                out.iter_mut().zip(&both[own.dim..]).for_each(|(out, gate)| *out *= sigmoid(*gate));
            }
        }
        Gate::Softplus => gate_by(out, gate, softplus),
        Gate::Sigmoid => gate_by(out, gate, sigmoid),
        Gate::None => {}
    }
}

/// Multiplies equal parts of a row by what their gates give.
pub(super) fn gate_by(out: &mut [f32], gate: &[f32], of: fn(f32) -> f32) {
    let part = (out.len() / gate.len().max(1)).max(1);
    out.chunks_mut(part).zip(gate).for_each(|(out, gate)| vector::scale(out, of(*gate)));
}
