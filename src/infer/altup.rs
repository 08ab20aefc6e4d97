//! Alternating updates (Baykal et al. 2023) as Gemma 3n has them: of several residual streams a block computes with the
//! first; the others, and the first itself, are predicted before it and corrected by its result. Beside attention lies a
//! narrow residual path (LAuReL, Menghani et al. 2024).

use super::carried::each_stream;
use super::linear::Linear;
use super::norm::Norm;
use super::{Engine, Observer};
use crate::kernel::{Output, vector};
use std::ops::ControlFlow;

/// Those of one layer.
pub(super) struct AltUp {
    /// `[streams, hidden]`, over the first stream normalised.
    pub router: Linear,
    pub router_norm: Norm,
    /// `[streams * streams, streams]` and `[streams, streams]`.
    pub predict: Linear,
    pub correct: Linear,
    /// On the first stream where the token's vector for the layer is made.
    pub scale: Vec<f32>,
    /// The narrow path: `[rank, hidden]` and back.
    pub narrow: [Linear; 2],
    pub narrow_norm: Norm,
}

/// Matrices `[streams - 1, hidden, hidden]` that make the further streams of an embedding, and lead them to the end.
pub(super) struct Ends {
    pub begin: Linear,
    pub end: Linear,
}

/// Rows of `x` are brought to the mean square of those of `like`.
fn as_large_as(x: &mut [f32], like: &[f32]) {
    let square = |x: &[f32]| vector::dot(x, x) / x.len().max(1) as f32;
    let scale = square(like).sqrt() / square(x).max(1e-5).sqrt();
    vector::scale(x, scale);
}

impl AltUp {
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.router, &mut self.predict, &mut self.correct].into_iter().chain(&mut self.narrow)
    }

    /// What a matrix makes of the router's answer to `x` (`[rows, hidden]`).
    fn coefficients(
        &self,
        of: &Linear,
        x: &[f32],
        hidden: usize,
        observer: &mut dyn Observer,
    ) -> ControlFlow<(), Vec<f32>> {
        let (rows, n) = (x.len() / hidden, self.router.out());
        let (mut normed, mut routed) = (vec![0.0; x.len()], vec![0.0; rows * n]);
        self.router_norm.rows(x, hidden, &mut normed);
        vector::scale(&mut normed, 1.0 / hidden as f32);
        self.router.product(&normed, Output::whole(&mut routed, n), observer)?;
        routed.iter_mut().for_each(|v| *v = v.tanh());
        let mut out = vec![0.0; rows * of.out()];
        of.product(&routed, Output::whole(&mut out, of.out()), observer)?;
        ControlFlow::Continue(out)
    }

    /// Puts the predicted streams in the place of `x` and of those in `carried`; the prediction of the first is kept behind
    /// them.
    pub fn predict(
        &self,
        engine: &Engine,
        x: &mut [f32],
        carried: &mut [f32],
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let (hidden, at, n) = (engine.config.hidden, engine.config.carried_streams(), self.router.out());
        let all = self.coefficients(&self.predict, x, hidden, observer)?;
        let rows =
            x.chunks_exact_mut(hidden).zip(carried.chunks_exact_mut(engine.carried)).zip(all.chunks_exact(n * n));
        for ((x, carried), weights) in rows {
            let streams = &mut carried[at..at + n * hidden];
            let old: Vec<f32> = x.iter().chain(&streams[..(n - 1) * hidden]).copied().collect();
            for (to, stream) in each_stream(x, streams, n).enumerate() {
                for (from, old) in old.chunks_exact(hidden).enumerate() {
                    vector::add_scaled(stream, weights[to * n + from], old);
                }
            }
            streams[(n - 1) * hidden..].copy_from_slice(x);
        }
        ControlFlow::Continue(())
    }

    /// What the narrow path makes of what attention reads, to `x`, in which attention's result is already.
    pub fn join(&self, x: &mut [f32], read: &[f32], observer: &mut dyn Observer) -> ControlFlow<()> {
        let [down, up] = &self.narrow;
        let (hidden, rank) = (up.out(), down.out());
        let (mut narrow, mut wide) = (vec![0.0; x.len() / hidden * rank], vec![0.0; x.len()]);
        down.product(read, Output::whole(&mut narrow, rank), observer)?;
        up.product(&narrow, Output::whole(&mut wide, hidden), observer)?;
        for ((x, wide), read) in
            x.chunks_exact_mut(hidden).zip(wide.chunks_exact_mut(hidden)).zip(read.chunks_exact(hidden))
        {
            self.narrow_norm.apply(wide, 0);
            vector::add_scaled(x, 1.0, wide);
            vector::add_scaled(x, 1.0, read);
            vector::scale(x, std::f32::consts::FRAC_1_SQRT_2);
        }
        ControlFlow::Continue(())
    }

    /// Corrects the predicted streams by what the block made of the first, `x`.
    pub fn correct(
        &self,
        engine: &Engine,
        x: &mut [f32],
        carried: &mut [f32],
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let (hidden, at, n) = (engine.config.hidden, engine.config.carried_streams(), self.router.out());
        let all = self.coefficients(&self.correct, x, hidden, observer)?;
        let rows = x.chunks_exact_mut(hidden).zip(carried.chunks_exact_mut(engine.carried)).zip(all.chunks_exact(n));
        for ((x, carried), weights) in rows {
            let (others, first) = carried[at..at + n * hidden].split_at_mut((n - 1) * hidden);
            let news: Vec<f32> = x.iter().zip(&*first).map(|(x, predicted)| x - predicted).collect();
            x.copy_from_slice(first);
            for (stream, weight) in each_stream(x, others, n).zip(weights) {
                vector::add_scaled(stream, weight + 1.0, &news);
            }
        }
        ControlFlow::Continue(())
    }

    /// The first stream as the layer's vectors read it.
    pub fn scaled(&self, x: &[f32]) -> Vec<f32> {
        let row = |x: &[f32]| x.iter().zip(&self.scale).map(|(x, scale)| x * scale).collect::<Vec<f32>>();
        x.chunks_exact(self.scale.len()).flat_map(row).collect()
    }

    /// Adds `more` (`[rows, hidden]`) to all streams but the first.
    pub fn add_to_others(&self, engine: &Engine, more: &[f32], carried: &mut [f32]) {
        let (hidden, at, n) = (engine.config.hidden, engine.config.carried_streams(), self.router.out());
        for (carried, more) in carried.chunks_exact_mut(engine.carried).zip(more.chunks_exact(hidden)) {
            carried[at..at + (n - 1) * hidden].chunks_exact_mut(hidden).for_each(|s| vector::add_scaled(s, 1.0, more));
        }
    }
}

impl Ends {
    pub fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.begin, &mut self.end]
    }

    /// The further streams of embeddings `x`, into rows of `carried` from `at` on.
    pub fn begin(&self, x: &[f32], carried: &mut [f32], step: usize, at: usize) {
        let hidden = self.begin.weight.cols();
        for i in 0..self.begin.out() / hidden {
            let at = at + i * hidden;
            let to = Output { data: &mut *carried, stride: step, at };
            let _ = self.begin.product_of(Some(i), hidden, x, to, &mut ());
            for (row, x) in carried.chunks_exact_mut(step).zip(x.chunks_exact(hidden)) {
                as_large_as(&mut row[at..at + hidden], x);
            }
        }
    }

    /// The mean of all streams (`[rows, streams * hidden]`), each led to the end.
    pub fn end(&self, all: &[f32]) -> Vec<f32> {
        let hidden = self.end.weight.cols();
        let n = self.end.out() / hidden + 1;
        let rows = all.len() / (n * hidden);
        let mut out: Vec<f32> = all.chunks_exact(n * hidden).flat_map(|row| &row[..hidden]).copied().collect();
        let mut led = vec![0.0; rows * hidden];
        for i in 1..n {
            let stream: Vec<f32> =
                all.chunks_exact(n * hidden).flat_map(|row| &row[i * hidden..(i + 1) * hidden]).copied().collect();
            let _ = self.end.product_of(Some(i - 1), hidden, &stream, Output::whole(&mut led, hidden), &mut ());
            let rows = led.chunks_exact_mut(hidden).zip(out.chunks_exact_mut(hidden)).zip(all.chunks_exact(n * hidden));
            for ((led, out), first) in rows {
                as_large_as(led, &first[..hidden]);
                vector::add_scaled(out, 1.0, led);
            }
        }
        vector::scale(&mut out, 1.0 / n as f32);
        out
    }
}
