//! Mixers that sum the past up in a state: the gated delta rule, Mamba and Mamba-2; and the short convolution that they
//! begin with, which LFM2 has alone. Heads, or channels, are worked on at once, positions one after the other.

use super::attention::Recurrent;
use super::linear::{Linear, columns, products, sigmoid, softplus};
use super::norm::{Norm, unit_length, unit_norm};
use super::{Call, Observer};
use crate::Result;
use crate::kernel::{Output, vector};
use crate::model::config;
use rayon::prelude::*;
use std::ops::ControlFlow;

pub(super) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// A causal convolution of every channel with itself: `[channels, kernel]`.
pub(super) struct Conv {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub kernel: usize,
    /// Rows from one tap to the next.
    pub gap: usize,
}

impl Conv {
    /// Rows in front of a sequence that it sees.
    pub fn before(&self) -> usize {
        (self.kernel - 1) * self.gap
    }

    /// Over the rows of one sequence (`x` and the result are `[n, channels]`), behind those of `recent`
    /// (`[(kernel - 1) * gap, channels]`), which become the last of the sequence.
    pub fn run(
        &self,
        x: &[f32],
        channels: usize,
        recent: &mut Vec<f32>,
        after: impl Fn(f32) -> f32 + Sync,
    ) -> Vec<f32> {
        let before = self.before() * channels;
        recent.resize(before, 0.0);
        recent.extend_from_slice(x);
        let all = &*recent;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_exact_mut(channels).enumerate().for_each(|(t, out)| {
            for (c, out) in out.iter_mut().enumerate() {
                let taps = &self.weight[c * self.kernel..(c + 1) * self.kernel];
                let sum: f32 = taps.iter().enumerate().map(|(k, w)| w * all[(t + k * self.gap) * channels + c]).sum();
                *out = after(sum + self.bias.as_ref().map_or(0.0, |bias| bias[c]));
            }
        });
        recent.drain(..x.len());
        out
    }
}

/// What enters the output matrix, `[rows, width]`: of each sequence (its number, what it has summed up, and its rows), which
/// is kept for the next batch.
pub(super) fn each_sequence(
    call: &mut Call,
    width: usize,
    mut run: impl FnMut(usize, &mut Recurrent, &mut [f32]),
) -> Result<ControlFlow<()>> {
    let mut out = vec![0.0; call.rows * width];
    for (i, out) in out.chunks_exact_mut(call.n * width).enumerate() {
        let mut kept = call.cache.take_recurrent(call.index, i)?;
        run(i, &mut kept, out);
        call.cache.put_recurrent(call.index, i, call.n, kept);
    }
    call.keep_wanted(&out, width);
    Ok(ControlFlow::Continue(()))
}

pub(super) struct Delta {
    /// Queries, keys and values.
    pub qkv: Linear,
    pub gate: Linear,
    /// What the decays and the strengths of writing are made from: one matrix of both, key head by key head, or two.
    pub rates: Vec<Linear>,
    pub conv: Conv,
    /// Negative, by value head.
    pub a: Vec<f32>,
    pub dt_bias: Vec<f32>,
    pub norm: Norm,
}

impl Delta {
    pub fn mix(&self, own: &config::Delta, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let &config::Delta { key_heads, value_heads, key_dim, value_dim, tiled, .. } = own;
        let (rows, n, normed) = (call.rows, call.n, call.normed);
        let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
        let channels = 2 * keys + values;
        let (mut qkv, mut z) = (vec![0.0; rows * channels], vec![0.0; rows * values]);
        let mut rates = vec![0.0; rows * 2 * value_heads];
        let run = (|| {
            self.qkv.product(normed, Output::whole(&mut qkv, channels), observer)?;
            self.gate.product(normed, Output::whole(&mut z, values), observer)?;
            products(&self.rates, normed, &mut rates, 2 * value_heads, observer)
        })();
        if run.is_break() {
            return Ok(run);
        }
        let per_key = value_heads / key_heads;
        // Where the strength of writing and the decay of a head lie in a row.
        let place = |head: usize| match self.rates.len() {
            1 => {
                let at = head / per_key * 2 * per_key + head % per_key;
                (at, at + per_key)
            }
            _ => (value_heads + head, head),
        };
        each_sequence(call, values, |i, kept, out| {
            let x = &qkv[i * n * channels..(i + 1) * n * channels];
            let mut x = self.conv.run(x, channels, &mut kept.recent, silu);
            x.par_chunks_exact_mut(channels).for_each(|row| {
                let (q, k) = row[..2 * keys].split_at_mut(keys);
                q.chunks_exact_mut(key_dim).for_each(|head| unit_length(head, 1.0 / (key_dim as f32).sqrt()));
                k.chunks_exact_mut(key_dim).for_each(|head| unit_length(head, 1.0));
            });
            kept.state.resize(values * key_dim, 0.0);
            let rates = &rates[i * n * 2 * value_heads..];
            let heads: Vec<Vec<f32>> = kept
                .state
                .par_chunks_exact_mut(value_dim * key_dim)
                .enumerate()
                .map(|(head, state)| {
                    let from = if tiled { head % key_heads } else { head / per_key };
                    let (write, decay) = place(head);
                    let mut out = vec![0.0; n * value_dim];
                    for (t, (row, out)) in x.chunks_exact(channels).zip(out.chunks_exact_mut(value_dim)).enumerate() {
                        let rates = &rates[t * 2 * value_heads..];
                        let beta = sigmoid(rates[write]);
                        let kept = (self.a[head] * softplus(rates[decay] + self.dt_bias[head])).exp();
                        let q = &row[from * key_dim..(from + 1) * key_dim];
                        let k = &row[keys + from * key_dim..keys + (from + 1) * key_dim];
                        let v = &row[2 * keys + head * value_dim..2 * keys + (head + 1) * value_dim];
                        // The state is `[value_dim, key_dim]`.
                        for ((state, v), out) in state.chunks_exact_mut(key_dim).zip(v).zip(out) {
                            vector::scale(state, kept);
                            let error = (v - vector::dot(state, k)) * beta;
                            vector::add_scaled(state, error, k);
                            *out = vector::dot(state, q);
                        }
                    }
                    out
                })
                .collect();
            let z = &z[i * n * values..(i + 1) * n * values];
            out.par_chunks_exact_mut(values).zip(z.par_chunks_exact(values)).enumerate().for_each(|(t, (out, z))| {
                for (head, (out, z)) in out.chunks_exact_mut(value_dim).zip(z.chunks_exact(value_dim)).enumerate() {
                    out.copy_from_slice(&heads[head][t * value_dim..(t + 1) * value_dim]);
                    self.norm.apply(out, 0);
                    out.iter_mut().zip(z).for_each(|(out, z)| *out *= silu(*z));
                }
            });
        })
    }
}

pub(super) struct Mamba {
    /// To what is mixed and its gate.
    pub into: Linear,
    pub conv: Conv,
    /// To what step sizes are made from, and inputs and outputs of the state.
    pub x: Linear,
    pub dt: Linear,
    /// Norms of the three parts (Jamba).
    pub norms: Option<[Norm; 3]>,
    /// Negative, `[inner, state]`.
    pub a: Vec<f32>,
    pub d: Vec<f32>,
}

impl Mamba {
    pub fn mix(&self, own: &config::Mamba, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let &config::Mamba { inner, state, rank, unit_norms, .. } = own;
        let (rows, n) = (call.rows, call.n);
        let mut both = vec![0.0; rows * 2 * inner];
        if self.into.product(call.normed, Output::whole(&mut both, 2 * inner), observer).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut x = vec![0.0; rows * inner];
        // What each sequence has summed up; the state comes behind the products.
        let mut recent: Vec<Recurrent> = Vec::new();
        for i in 0..call.batch.sequences {
            let mut kept = call.cache.take_recurrent(call.index, i)?;
            let raw = columns(&both[i * n * 2 * inner..(i + 1) * n * 2 * inner], 2 * inner, 0..inner);
            x[i * n * inner..(i + 1) * n * inner].copy_from_slice(&self.conv.run(&raw, inner, &mut kept.recent, silu));
            recent.push(kept);
        }
        let width = rank + 2 * state;
        let (mut parts, mut dt) = (vec![0.0; rows * width], vec![0.0; rows * inner]);
        if self.x.product(&x, Output::whole(&mut parts, width), observer).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for row in parts.chunks_exact_mut(width) {
            let (low, rest) = row.split_at_mut(rank);
            let (b, c) = rest.split_at_mut(state);
            for (i, part) in [low, b, c].into_iter().enumerate() {
                match &self.norms {
                    Some(norms) => norms[i].apply(part, 0),
                    None if unit_norms => unit_norm(part, call.engine.config.norm_eps),
                    None => {}
                }
            }
        }
        let low = columns(&parts, width, 0..rank);
        if self.dt.product(&low, Output::whole(&mut dt, inner), observer).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut out = vec![0.0; rows * inner];
        for (i, kept) in recent.iter_mut().enumerate() {
            kept.state.resize(inner * state, 0.0);
            let channels: Vec<Vec<f32>> = kept
                .state
                .par_chunks_exact_mut(state)
                .enumerate()
                .map(|(c, h)| {
                    let a = &self.a[c * state..(c + 1) * state];
                    let one = |t: usize| {
                        let row = i * n + t;
                        let (x, step) = (x[row * inner + c], softplus(dt[row * inner + c]));
                        let (b, out) = parts[row * width + rank..(row + 1) * width].split_at(state);
                        let mut sum = self.d[c] * x;
                        for (((h, a), b), out) in h.iter_mut().zip(a).zip(b).zip(out) {
                            *h = *h * (step * a).exp() + step * b * x;
                            sum += *h * out;
                        }
                        sum * silu(both[row * 2 * inner + inner + c])
                    };
                    (0..n).map(one).collect()
                })
                .collect();
            for (c, channel) in channels.iter().enumerate() {
                channel.iter().enumerate().for_each(|(t, y)| out[(i * n + t) * inner + c] = *y);
            }
        }
        recent.into_iter().enumerate().for_each(|(i, kept)| call.cache.put_recurrent(call.index, i, n, kept));
        call.keep_wanted(&out, inner);
        Ok(ControlFlow::Continue(()))
    }
}

pub(super) struct Mamba2 {
    /// To the gate, to what is mixed, to inputs and outputs of the state, and to step sizes.
    pub into: Linear,
    pub conv: Conv,
    pub dt_bias: Vec<f32>,
    /// Negative, by head.
    pub a: Vec<f32>,
    pub d: Vec<f32>,
    /// Of the gated result, in parts.
    pub norm: Option<Norm>,
}

impl Mamba2 {
    pub fn mix(&self, own: &config::Mamba2, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let &config::Mamba2 { inner, state, heads, groups, least_step, .. } = own;
        let n = call.n;
        let (channels, dim) = (inner + 2 * groups * state, inner / heads);
        let width = inner + channels + heads;
        let mut all = vec![0.0; call.rows * width];
        if self.into.product(call.normed, Output::whole(&mut all, width), observer).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        each_sequence(call, inner, |i, kept, out| {
            let all = &all[i * n * width..(i + 1) * n * width];
            let x = self.conv.run(&columns(all, width, inner..inner + channels), channels, &mut kept.recent, silu);
            kept.state.resize(inner * state, 0.0);
            let results: Vec<Vec<f32>> = kept
                .state
                .par_chunks_exact_mut(dim * state)
                .enumerate()
                .map(|(head, h)| {
                    let group = head / (heads / groups);
                    let mut y = vec![0.0; n * dim];
                    for (t, y) in y.chunks_exact_mut(dim).enumerate() {
                        let row = &x[t * channels..(t + 1) * channels];
                        let step =
                            softplus(all[t * width + inner + channels + head] + self.dt_bias[head]).max(least_step);
                        let kept = (step * self.a[head]).exp();
                        let b = &row[inner + group * state..inner + (group + 1) * state];
                        let c = &row[inner + (groups + group) * state..inner + (groups + group + 1) * state];
                        let x = &row[head * dim..(head + 1) * dim];
                        for ((h, x), y) in h.chunks_exact_mut(state).zip(x).zip(y) {
                            vector::scale(h, kept);
                            vector::add_scaled(h, step * x, b);
                            *y = vector::dot(h, c) + self.d[head] * x;
                        }
                    }
                    y
                })
                .collect();
            out.par_chunks_exact_mut(inner).enumerate().for_each(|(t, out)| {
                for (out, y) in out.chunks_exact_mut(dim).zip(&results) {
                    out.copy_from_slice(&y[t * dim..(t + 1) * dim]);
                }
                out.iter_mut().zip(&all[t * width..t * width + inner]).for_each(|(out, z)| *out *= silu(*z));
                if let Some(norm) = &self.norm {
                    let part = inner / groups;
                    out.chunks_exact_mut(part).enumerate().for_each(|(i, out)| norm.apply(out, i));
                }
            });
        })
    }
}

pub(super) struct ShortConv {
    /// To the two gates and what is between them.
    pub into: Linear,
    pub conv: Conv,
}

impl ShortConv {
    pub fn mix(&self, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let (hidden, n) = (call.engine.config.hidden, call.n);
        let mut all = vec![0.0; call.rows * 3 * hidden];
        if self.into.product(call.normed, Output::whole(&mut all, 3 * hidden), observer).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        each_sequence(call, hidden, |i, kept, out| {
            let all = &all[i * n * 3 * hidden..(i + 1) * n * 3 * hidden];
            let gated = |row: &[f32]| (0..hidden).map(|c| row[c] * row[2 * hidden + c]).collect::<Vec<f32>>();
            let x: Vec<f32> = all.chunks_exact(3 * hidden).flat_map(gated).collect();
            let x = self.conv.run(&x, hidden, &mut kept.recent, |x| x);
            for ((out, x), row) in
                out.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)).zip(all.chunks_exact(3 * hidden))
            {
                out.iter_mut().zip(x).zip(&row[hidden..2 * hidden]).for_each(|((out, x), gate)| *out = x * gate);
            }
        })
    }
}
