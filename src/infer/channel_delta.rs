//! The gated delta rule with a decay for every key channel (Kimi Linear, section 3): keys, queries and values come through
//! convolutions of their own, decays and gates through narrow matrices.

use super::linear::{Linear, products, sigmoid, softplus};
use super::norm::{Norm, unit_length};
use super::recurrent::{Conv, each_sequence, silu};
use super::{Call, Observer};
use crate::Result;
use crate::kernel::{Output, vector};
use crate::model::config;
use rayon::prelude::*;
use std::ops::ControlFlow;

pub(super) struct ChannelDelta {
    /// Queries, keys and values.
    pub qkv: Vec<Linear>,
    /// Of all three, one behind the other.
    pub conv: Conv,
    /// To the decays of all channels, and to the gates of the result: one matrix each, or two behind each other.
    pub decay: Vec<Linear>,
    pub gate: Vec<Linear>,
    /// To the strengths of writing, by head.
    pub write: Linear,
    /// By head.
    pub a: Vec<f32>,
    /// By channel.
    pub dt_bias: Vec<f32>,
    pub norm: Norm,
}

/// `x` (`[rows, in]`) through matrices one behind the other.
fn through(linears: &[Linear], x: &[f32], rows: usize, observer: &mut dyn Observer) -> ControlFlow<(), Vec<f32>> {
    let mut inner = Vec::new();
    for (i, linear) in linears.iter().enumerate() {
        let mut out = vec![0.0; rows * linear.out()];
        linear.product(if i == 0 { x } else { &inner }, Output::whole(&mut out, linear.out()), observer)?;
        inner = out;
    }
    ControlFlow::Continue(inner)
}

impl ChannelDelta {
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let narrow = self.decay.iter_mut().chain(&mut self.gate);
        self.qkv.iter_mut().chain(narrow).chain([&mut self.write])
    }

    pub fn mix(
        &self,
        own: &config::ChannelDelta,
        call: &mut Call,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let &config::ChannelDelta { heads, dim, least_decay, .. } = own;
        let (rows, n, width) = (call.rows, call.n, heads * dim);
        let (mut qkv, mut write) = (vec![0.0; rows * 3 * width], vec![0.0; rows * heads]);
        let made = (|| {
            products(&self.qkv, call.normed, &mut qkv, 3 * width, observer)?;
            let decay = through(&self.decay, call.normed, rows, observer)?;
            let gate = through(&self.gate, call.normed, rows, observer)?;
            self.write.product(call.normed, Output::whole(&mut write, heads), observer)?;
            ControlFlow::Continue((decay, gate))
        })();
        let ControlFlow::Continue((mut decay, gate)) = made else { return Ok(ControlFlow::Break(())) };
        decay.par_chunks_exact_mut(width).for_each(|row| {
            vector::add_scaled(row, 1.0, &self.dt_bias);
            for (row, a) in row.chunks_exact_mut(dim).zip(&self.a) {
                row.iter_mut().for_each(|x| {
                    *x = match least_decay {
                        Some(least) => (least * sigmoid(a.abs() * *x)).exp(),
                        None => (-a.abs() * softplus(*x)).exp(),
                    }
                });
            }
        });
        each_sequence(call, width, |i, kept, out| {
            let x = &qkv[i * n * 3 * width..(i + 1) * n * 3 * width];
            let mut x = self.conv.run(x, 3 * width, &mut kept.recent, silu);
            x.par_chunks_exact_mut(3 * width).for_each(|row| {
                let (q, k) = row[..2 * width].split_at_mut(width);
                q.chunks_exact_mut(dim).for_each(|head| unit_length(head, 1.0 / (dim as f32).sqrt()));
                k.chunks_exact_mut(dim).for_each(|head| unit_length(head, 1.0));
            });
            kept.state.resize(width * dim, 0.0);
            let results: Vec<Vec<f32>> = kept
                .state
                .par_chunks_exact_mut(dim * dim)
                .enumerate()
                .map(|(head, state)| {
                    let mut out = vec![0.0; n * dim];
                    for (t, (row, out)) in x.chunks_exact(3 * width).zip(out.chunks_exact_mut(dim)).enumerate() {
                        let at = i * n + t;
                        let kept = &decay[at * width + head * dim..][..dim];
                        let beta = sigmoid(write[at * heads + head]);
                        let part = |which: usize| &row[which * width + head * dim..][..dim];
                        let (q, k, v) = (part(0), part(1), part(2));
                        // The state is `[value channels, key channels]`.
                        for ((state, v), out) in state.chunks_exact_mut(dim).zip(v).zip(out) {
                            state.iter_mut().zip(kept).for_each(|(state, kept)| *state *= kept);
                            let error = (v - vector::dot(state, k)) * beta;
                            vector::add_scaled(state, error, k);
                            *out = vector::dot(state, q);
                        }
                    }
                    out
                })
                .collect();
            let gate = &gate[i * n * width..(i + 1) * n * width];
            out.par_chunks_exact_mut(width).zip(gate.par_chunks_exact(width)).enumerate().for_each(
                |(t, (out, gate))| {
                    for (head, (out, gate)) in out.chunks_exact_mut(dim).zip(gate.chunks_exact(dim)).enumerate() {
                        out.copy_from_slice(&results[head][t * dim..(t + 1) * dim]);
                        self.norm.apply(out, 0);
                        out.iter_mut().zip(gate).for_each(|(out, gate)| *out *= sigmoid(*gate));
                    }
                },
            );
        })
    }
}
