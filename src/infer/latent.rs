//! Multi-head latent attention (DeepSeek-V2, section 2.1): a token leaves one small vector behind from which the keys and
//! values of all heads follow, and one rotated key that they share.

use super::attention::{Heads, Seen, attend};
use super::chosen::{self, Choice, Indexer};
use super::heads::{gate_by, temperature};
use super::linear::{Linear, columns, products, sigmoid};
use super::norm::Norm;
use super::{Call, Observer};
use crate::Result;
use crate::kernel::{Output, vector};
use crate::model::config;
use rayon::prelude::*;
use std::ops::ControlFlow;

pub(super) struct Latent {
    /// To a narrow vector and from there on, or one matrix.
    pub q: Vec<Linear>,
    pub q_norm: Option<Norm>,
    /// To the latent vector and the shared key.
    pub kv_a: Linear,
    pub kv_norm: Norm,
    /// Of the shared key (dots 3).
    pub k_norm: Option<Norm>,
    pub b: Expand,
    pub gate: Option<Linear>,
    pub sinks: Option<Vec<f32>>,
    pub indexer: Option<Indexer>,
}

/// From the latent vector to heads.
pub(super) enum Expand {
    /// `[heads * rank, nope]`, which takes queries to the latent space, and `[heads * value_dim, rank]` back from it.
    Absorbed { k: Linear, v: Linear },
    /// Keys and values, head by head, of `nope + value_dim` rows.
    Whole(Linear),
}

impl Latent {
    /// From the normalised stream to what enters the output matrix, `[rows, heads * value_dim]`.
    pub fn mix(&self, own: &config::Latent, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let engine = call.engine;
        let (rows, n, first) = (call.rows, call.n, call.cache.len());
        let &config::Latent { heads, nope, rotated, value_dim, rank, .. } = own;
        let (head, kv_width) = (nope + rotated, rank + rotated);
        let (mut q, mut kv) = (vec![0.0; rows * heads * head], vec![0.0; rows * kv_width]);
        let (mut gates, mut narrow) = (Vec::new(), Vec::new());
        let run = (|| {
            match &self.q[..] {
                [down, up] => {
                    narrow.resize(rows * down.out(), 0.0);
                    down.product(call.normed, Output::whole(&mut narrow, down.out()), observer)?;
                    if let Some(norm) = &self.q_norm {
                        narrow.chunks_exact_mut(down.out()).for_each(|row| norm.apply(row, 0));
                    }
                    up.product(&narrow, Output::whole(&mut q, heads * head), observer)?;
                }
                all => products(all, call.normed, &mut q, heads * head, observer)?,
            }
            if let Some(gate) = &self.gate {
                gates.resize(rows * gate.out(), 0.0);
                gate.product(call.normed, Output::whole(&mut gates, gate.out()), observer)?;
            }
            self.kv_a.product(call.normed, Output::whole(&mut kv, kv_width), observer)
        })();
        if run.is_break() {
            return Ok(run);
        }
        let angles = engine.angles(own.rope, call.cache, n);
        kv.par_chunks_exact_mut(kv_width).enumerate().for_each(|(i, row)| {
            self.kv_norm.apply(&mut row[..rank], 0);
            if let Some(norm) = &self.k_norm {
                norm.apply(&mut row[rank..], 0);
            }
            if let Some(angles) = &angles {
                engine.rotate(&mut row[rank..], angles, i % n);
            }
            if let Some(kept) = engine.kv_cache {
                kept.keys(row, kv_width);
            }
        });
        q.par_chunks_exact_mut(heads * head).enumerate().for_each(|(i, row)| {
            if let Some(angles) = &angles {
                row.chunks_exact_mut(head).for_each(|h| engine.rotate(&mut h[nope..], angles, i % n));
            }
            let factor = temperature(own.temperature, first + i % n);
            if factor != 1.0 {
                vector::scale(row, factor);
            }
        });
        let rope = own.rope;
        let choice = match (&own.chosen, &self.indexer) {
            (Some(config::Chosen::ByIndexer(own)), Some(indexer)) => {
                match indexer.choose(own, call, &narrow, (rope, angles.as_ref()), observer) {
                    ControlFlow::Continue(choice) => Some(choice),
                    ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                }
            }
            (Some(config::Chosen::AsBefore), _) => {
                let (step, place) = (engine.carried, engine.config.carried_choice());
                Some(call.carried.chunks_exact(step).map(|row| chosen::carried(&row[place.clone()])).collect())
            }
            _ => None,
        };
        if let (Some(choice), Some(_)) = (&choice, &self.indexer) {
            let (step, place) = (engine.carried.max(1), engine.config.carried_choice());
            let rows = call.carried.chunks_exact_mut(step).zip(choice).filter(|_| !place.is_empty());
            rows.for_each(|(row, chosen)| chosen::carry(chosen, &mut row[place.clone()]));
        }
        let mut out = vec![0.0; rows * heads * value_dim];
        let shape = Heads { sinks: self.sinks.as_deref(), window: own.window.map(|w| w.max(1)), ..heads_shape(own) };
        let asked = (shape, choice.as_ref());
        let run = match &self.b {
            Expand::Absorbed { k, v } => absorbed(own, call, (k, v), (&q, &kv), asked, &mut out, observer),
            Expand::Whole(b) => whole(own, call, b, (&q, &kv), asked, &mut out, observer),
        };
        if run.is_break() {
            return Ok(run);
        }
        let gates = gates.chunks_exact((gates.len() / rows).max(1));
        out.chunks_exact_mut(heads * value_dim).zip(gates).for_each(|(out, gate)| gate_by(out, gate, sigmoid));
        call.keep_wanted(&out, heads * value_dim);
        Ok(ControlFlow::Continue(()))
    }
}

/// In the latent space, whose vectors are keys and values of every head.
fn absorbed(
    own: &config::Latent,
    call: &mut Call,
    (k, v): (&Linear, &Linear),
    (q, kv): (&[f32], &[f32]),
    (shape, choice): (Heads, Option<&Choice>),
    out: &mut [f32],
    observer: &mut dyn Observer,
) -> ControlFlow<()> {
    let &config::Latent { heads, nope, rotated, value_dim, rank, .. } = own;
    let (rows, n, kv_width) = (call.rows, call.n, rank + rotated);
    let shape = Heads { kv_heads: 1, dim: kv_width, value_dim: rank, ..shape };
    let mut wide = vec![0.0; rows * heads * kv_width];
    let stride = heads * kv_width;
    for h in 0..heads {
        let at = h * (nope + rotated);
        let part = columns(q, heads * (nope + rotated), at..at + nope);
        k.product_of(Some(h), rank, &part, Output { data: &mut wide, stride, at: h * kv_width }, observer)?;
        for (wide, row) in wide.chunks_exact_mut(stride).zip(q.chunks_exact(heads * (nope + rotated))) {
            wide[h * kv_width + rank..(h + 1) * kv_width].copy_from_slice(&row[at + nope..at + nope + rotated]);
        }
    }
    let mut latent = vec![0.0; rows * heads * rank];
    let parts = latent.chunks_exact_mut(n * heads * rank);
    for (i, ((latent, wide), kv)) in
        parts.zip(wide.chunks_exact(n * stride)).zip(kv.chunks_exact(n * kv_width)).enumerate()
    {
        let mut seen = Seen { keys: kv, values: kv, step: kv_width, value_step: kv_width, len: n };
        let first = call.cache.len();
        if call.cache.keeps() {
            let kept = call.cache.layer(call.index, i, [kv_width, 0]);
            kept.keys.extend_from_slice(kv);
            seen = Seen { keys: &kept.keys, values: &kept.keys, len: first + n, ..seen };
        }
        read(shape, wide, stride, seen, choice.map(|c| &c[i * n..(i + 1) * n]), call.packed_keys, latent);
    }
    for h in 0..heads {
        let part = columns(&latent, heads * rank, h * rank..(h + 1) * rank);
        let to = Output { data: &mut *out, stride: heads * value_dim, at: h * value_dim };
        v.product_of(Some(h), value_dim, &part, to, observer)?;
    }
    ControlFlow::Continue(())
}

/// With keys and values of every head at every position.
fn whole(
    own: &config::Latent,
    call: &mut Call,
    b: &Linear,
    (q, kv): (&[f32], &[f32]),
    (shape, choice): (Heads, Option<&Choice>),
    out: &mut [f32],
    observer: &mut dyn Observer,
) -> ControlFlow<()> {
    let &config::Latent { heads, nope, rotated, value_dim, rank, .. } = own;
    let (rows, n, head) = (call.rows, call.n, nope + rotated);
    let shape = Heads { kv_heads: heads, dim: head, value_dim, ..shape };
    let latent = columns(kv, rank + rotated, 0..rank);
    let mut both = vec![0.0; rows * b.out()];
    b.product(&latent, Output::whole(&mut both, b.out()), observer)?;
    let (mut keys, mut values) = (Vec::with_capacity(rows * heads * head), Vec::new());
    for (row, kv) in both.chunks_exact(b.out()).zip(kv.chunks_exact(rank + rotated)) {
        for part in row.chunks_exact(nope + value_dim) {
            keys.extend_from_slice(&part[..nope]);
            keys.extend_from_slice(&kv[rank..]);
            values.extend_from_slice(&part[nope..]);
        }
    }
    let widths = [heads * head, heads * value_dim];
    for (i, out) in out.chunks_exact_mut(n * widths[1]).enumerate() {
        let keys = &keys[i * n * widths[0]..(i + 1) * n * widths[0]];
        let values = &values[i * n * widths[1]..(i + 1) * n * widths[1]];
        let mut seen = Seen { keys, values, step: widths[0], value_step: widths[1], len: n };
        let first = call.cache.len();
        if call.cache.keeps() {
            let kept = call.cache.layer(call.index, i, widths);
            kept.keys.extend_from_slice(keys);
            kept.values.extend_from_slice(values);
            seen = Seen { keys: &kept.keys, values: &kept.values, len: first + n, ..seen };
        }
        let q = &q[i * n * widths[0]..(i + 1) * n * widths[0]];
        read(shape, q, widths[0], seen, choice.map(|c| &c[i * n..(i + 1) * n]), call.packed_keys, out);
    }
    ControlFlow::Continue(())
}

/// Attends to all positions, or to those that were chosen where these are fewer.
fn read(
    shape: Heads,
    q: &[f32],
    stride: usize,
    seen: Seen,
    choice: Option<&[Vec<u32>]>,
    packed: &mut Vec<f32>,
    out: &mut [f32],
) {
    let first = seen.len - q.len() / stride;
    match choice.filter(|lists| !chosen::are_all(lists, 1, first)) {
        Some(choice) => chosen::attend(shape, q, stride, seen, choice, out),
        None => attend(shape, q, stride, seen, packed, out),
    }
}

/// What does not depend on where keys and values come from.
fn heads_shape(own: &config::Latent) -> Heads<'static> {
    Heads {
        heads: own.heads,
        kv_heads: own.heads,
        dim: own.nope + own.rotated,
        value_dim: own.value_dim,
        scale: own.scale,
        softcap: None,
        window: None,
        chunked: false,
        both_ways: false,
        sinks: None,
        alibi: None,
    }
}
