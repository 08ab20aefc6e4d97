//! Lightning attention (MiniMax-01, section 2.2): linear attention without a softmax, whose state decays by a fixed rate for
//! every head.

use super::linear::{Linear, sigmoid};
use super::norm::Norm;
use super::recurrent::{each_sequence, silu};
use super::{Call, Observer};
use crate::Result;
use crate::kernel::{Output, vector};
use crate::model::config;
use rayon::prelude::*;
use std::ops::ControlFlow;

pub(super) struct Lightning {
    /// Query, key and value of a head, head by head.
    pub qkv: Linear,
    pub gate: Linear,
    pub norm: Norm,
}

impl Lightning {
    pub fn mix(
        &self,
        own: &config::Lightning,
        call: &mut Call,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let (rows, n, dim, width) = (call.rows, call.n, own.dim, own.rates.len() * own.dim);
        let (mut qkv, mut gate) = (vec![0.0; rows * 3 * width], vec![0.0; rows * width]);
        let run = (|| {
            self.qkv.product(call.normed, Output::whole(&mut qkv, 3 * width), observer)?;
            self.gate.product(call.normed, Output::whole(&mut gate, width), observer)
        })();
        if run.is_break() {
            return Ok(run);
        }
        qkv.par_chunks_exact_mut(3 * width).for_each(|row| row.iter_mut().for_each(|x| *x = silu(*x)));
        each_sequence(call, width, |i, kept, out| {
            let x = &qkv[i * n * 3 * width..(i + 1) * n * 3 * width];
            kept.state.resize(width * dim, 0.0);
            let heads = kept.state.par_chunks_exact_mut(dim * dim).zip(&own.rates).enumerate();
            let results: Vec<Vec<f32>> = heads
                .map(|(head, (state, rate))| {
                    let (mut out, left) = (vec![0.0; n * dim], (-rate).exp());
                    for (row, out) in x.chunks_exact(3 * width).zip(out.chunks_exact_mut(dim)) {
                        let part = |which: usize| &row[(3 * head + which) * dim..][..dim];
                        let (q, k, v) = (part(0), part(1), part(2));
                        // The state is `[value channels, key channels]`.
                        for ((state, v), out) in state.chunks_exact_mut(dim).zip(v).zip(out) {
                            vector::scale(state, left);
                            vector::add_scaled(state, *v, k);
                            *out = vector::dot(state, q);
                        }
                    }
                    out
                })
                .collect();
            let gate = &gate[i * n * width..(i + 1) * n * width];
            out.par_chunks_exact_mut(width).zip(gate.par_chunks_exact(width)).enumerate().for_each(
                |(t, (out, gate))| {
                    for (out, result) in out.chunks_exact_mut(dim).zip(&results) {
                        out.copy_from_slice(&result[t * dim..(t + 1) * dim]);
                    }
                    self.norm.apply(out, 0);
                    out.iter_mut().zip(gate).for_each(|(out, gate)| *out *= sigmoid(*gate));
                },
            );
        })
    }
}
