//! Residual streams beside each other (hyper-connections, Zhu et al. 2025): every part of a block reads a mixture of them,
//! and its result goes to each with a weight of its own. The weights follow from the streams themselves. The first stream is
//! the residual stream of other models; the others travel behind it.

use super::altup::AltUp;
use super::carried::each_stream;
use super::linear::{Linear, sigmoid};
use super::norm::{Norm, unit_norm};
use super::recurrent::silu;
use super::{Engine, Observer};
use crate::kernel::{Output, vector};
use crate::model::config::{Mixing, Streams};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// What makes the weights of one part of a block, or those of the end.
pub(super) struct Mix {
    /// `[weights, streams * hidden]`.
    pub weigh: Linear,
    pub base: Vec<f32>,
    /// One for each kind of weight: of reading, of writing, of streams into each other.
    pub scale: Vec<f32>,
}

/// What mixes streams channel by channel.
pub(super) struct GatedMix {
    /// Stream by stream.
    pub norm: Norm,
    /// `[rank, streams * hidden]` and back.
    pub narrow: [Linear; 2],
    /// To the weights with which a result is added, `[streams, streams * hidden]`; the end has none.
    pub inject: Option<Linear>,
}

impl GatedMix {
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.narrow.iter_mut().chain(&mut self.inject)
    }

    /// What is read of all streams (`[rows, streams * hidden]`).
    fn enter(&self, mut all: Vec<f32>, count: usize, observer: &mut dyn Observer) -> ControlFlow<(), Entered> {
        let [down, up] = &self.narrow;
        let (wide, rank) = (up.out(), down.out());
        let (hidden, rows) = (wide / count, all.len() / wide);
        group_norm(&self.norm, &mut all, hidden);
        let (mut inner, mut weights) = (vec![0.0; rows * rank], vec![0.0; rows * wide]);
        down.product(&all, Output::whole(&mut inner, rank), observer)?;
        inner.iter_mut().for_each(|v| *v = silu(*v / count as f32));
        up.product(&inner, Output::whole(&mut weights, wide), observer)?;
        let mut x = vec![0.0; rows * hidden];
        for (x, (all, weights)) in
            x.chunks_exact_mut(hidden).zip(all.chunks_exact(wide).zip(weights.chunks_exact(wide)))
        {
            for (i, (v, w)) in all.iter().zip(weights).enumerate() {
                x[i % hidden] += v * sigmoid(*w) / count as f32;
            }
        }
        let mut write = Vec::new();
        if let Some(inject) = &self.inject {
            write.resize(rows * count, 0.0);
            inject.product(&all, Output::whole(&mut write, count), observer)?;
            write.iter_mut().for_each(|w| *w = 2.0 * sigmoid(*w / count as f32));
        }
        ControlFlow::Continue(Entered { x, write, flow: Vec::new() })
    }
}

/// Normalises every stream of rows of several by itself.
pub(super) fn group_norm(norm: &Norm, all: &mut [f32], hidden: usize) {
    let streams = (norm.weight.len() / hidden).max(1);
    all.par_chunks_exact_mut(hidden).enumerate().for_each(|(i, stream)| norm.apply(stream, i % streams));
}

/// How the streams of a layer are read and written.
pub(super) enum Between {
    Mixed(Box<[Mix; 2]>),
    Gated(Box<[GatedMix; 2]>),
    AltUp(Box<AltUp>),
}

impl Between {
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Between::Mixed(mixes) => mixes.iter_mut().map(|mix| &mut mix.weigh).collect(),
            Between::Gated(mixes) => mixes.iter_mut().flat_map(|mix| mix.linears_mut()).collect(),
            Between::AltUp(altup) => altup.linears_mut().collect(),
        }
    }

    pub fn altup(&self) -> Option<&AltUp> {
        if let Between::AltUp(altup) = self { Some(altup) } else { None }
    }
}

/// What a part reads, and how its result is written.
pub(super) struct Entered {
    /// `[rows, hidden]`.
    pub x: Vec<f32>,
    /// `[rows, streams]`.
    write: Vec<f32>,
    /// How much of stream `i` goes to stream `j`, `[rows, i, j]`; nothing where each goes on by itself.
    flow: Vec<f32>,
}

/// Matrices `[n, n]` of positive numbers whose rows and columns sum up to 1, after so many rounds (Sinkhorn and Knopp 1967).
fn sinkhorn(m: &mut [f32], n: usize, rounds: usize, eps: f32) {
    for row in m.chunks_exact_mut(n) {
        vector::softmax(row);
        row.iter_mut().for_each(|v| *v += eps);
    }
    for round in 0..rounds {
        if round > 0 {
            for row in m.chunks_exact_mut(n) {
                let sum = row.iter().sum::<f32>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for column in 0..n {
            let sum = (0..n).map(|row| m[row * n + column]).sum::<f32>() + eps;
            (0..n).for_each(|row| m[row * n + column] /= sum);
        }
    }
}

impl Mix {
    /// The weights before their functions, `[rows, weights]`.
    fn weights(&self, all: &[f32], eps: f32, observer: &mut dyn Observer) -> ControlFlow<(), Vec<f32>> {
        let mut normed = all.to_vec();
        normed.par_chunks_exact_mut(self.weigh.weight.cols()).for_each(|row| unit_norm(row, eps));
        let n = self.weigh.out();
        let mut weights = vec![0.0; all.len() / self.weigh.weight.cols() * n];
        self.weigh.product(&normed, Output::whole(&mut weights, n), observer)?;
        ControlFlow::Continue(weights)
    }
}

/// `Σ weight · stream` of every row.
fn mixture(all: &[f32], weights: &[f32], count: usize, hidden: usize) -> Vec<f32> {
    let mut x = vec![0.0; all.len() / count];
    let rows = x.par_chunks_exact_mut(hidden).zip(all.par_chunks_exact(count * hidden));
    rows.zip(weights.par_chunks_exact(count)).for_each(|((x, all), weights)| {
        for (stream, weight) in all.chunks_exact(hidden).zip(weights) {
            vector::add_scaled(x, *weight, stream);
        }
    });
    x
}

impl Engine {
    /// All streams of every row, `[rows, streams * hidden]`.
    pub(super) fn all_streams(&self, own: &Streams, x: &[f32], carried: &[f32]) -> Vec<f32> {
        let (hidden, at) = (self.config.hidden, self.config.carried_streams());
        let more = (own.count - 1) * hidden;
        let rows = x.chunks_exact(hidden).zip(carried.chunks_exact(self.carried));
        rows.flat_map(|(x, carried)| x.iter().chain(&carried[at..at + more])).copied().collect()
    }

    /// What a part of a block reads, the first or the second; `None`: the one stream that there is.
    pub(super) fn enter(
        &self,
        streams: Option<&Between>,
        part: usize,
        (x, carried): (&[f32], &[f32]),
        observer: &mut dyn Observer,
    ) -> ControlFlow<(), Option<Entered>> {
        let (Some(streams), Some(own)) = (streams, self.config.streams) else { return ControlFlow::Continue(None) };
        let all = || self.all_streams(&own, x, carried);
        ControlFlow::Continue(match streams {
            Between::Mixed(mixes) => Some(self.enter_mixed(&mixes[part], &own, all(), observer)?),
            Between::Gated(mixes) => Some(mixes[part].enter(all(), own.count, observer)?),
            Between::AltUp(_) => None,
        })
    }

    fn enter_mixed(
        &self,
        mix: &Mix,
        own: &Streams,
        all: Vec<f32>,
        observer: &mut dyn Observer,
    ) -> ControlFlow<(), Entered> {
        let (c, count) = (&self.config, own.count);
        let raw = mix.weights(&all, c.norm_eps, observer)?;
        let (mut read, mut write, mut flow) = (Vec::new(), Vec::new(), Vec::new());
        let of = |raw: &[f32], base: &[f32], scale: f32| -> Vec<f32> {
            raw.iter().zip(base).map(|(raw, base)| raw * scale + base).collect()
        };
        for raw in raw.chunks_exact(mix.weigh.out()) {
            let (into, rest) = raw.split_at(count);
            let (back, between) = rest.split_at(count);
            read.extend(of(into, &mix.base, mix.scale[0]).into_iter().map(|w| sigmoid(w) + own.eps));
            let back = of(back, &mix.base[count..], mix.scale[1]).into_iter().map(sigmoid);
            match own.mixing {
                Mixing::Apart { magnitude } => write.extend(back.map(|w| magnitude * w + own.eps)),
                Mixing::Sinkhorn { rounds } => {
                    write.extend(back.map(|w| 2.0 * w));
                    let mut m = of(between, &mix.base[2 * count..], mix.scale[2]);
                    sinkhorn(&mut m, count, rounds, own.eps);
                    flow.extend(m);
                }
                Mixing::AltUp | Mixing::Gated => {}
            }
        }
        ControlFlow::Continue(Entered { x: mixture(&all, &read, count, c.hidden), write, flow })
    }

    /// Writes the result of a part (`[rows, hidden]`) to the streams that it was read from.
    pub(super) fn leave(&self, entered: &Entered, result: &[f32], x: &mut [f32], carried: &mut [f32]) {
        let Some(own) = self.config.streams else { return };
        let (count, hidden, at) = (own.count, self.config.hidden, self.config.carried_streams());
        let all = self.all_streams(&own, x, carried);
        let rows = x.par_chunks_exact_mut(hidden).zip(carried.par_chunks_exact_mut(self.carried)).enumerate();
        rows.for_each(|(row, (x, carried))| {
            let old = &all[row * count * hidden..(row + 1) * count * hidden];
            let write = &entered.write[row * count..(row + 1) * count];
            let flow = entered.flow.get(row * count * count..(row + 1) * count * count);
            for (to, stream) in each_stream(x, &mut carried[at..], count).enumerate() {
                if let Some(flow) = flow {
                    stream.fill(0.0);
                    for (from, old) in old.chunks_exact(hidden).enumerate() {
                        vector::add_scaled(stream, flow[from * count + to], old);
                    }
                }
                vector::add_scaled(stream, write[to], &result[row * hidden..(row + 1) * hidden]);
            }
        });
    }

    /// What the head reads, `[rows, hidden]`.
    pub(super) fn collapsed(&self, x: Vec<f32>, carried: &[f32]) -> Vec<f32> {
        let Some(own) = self.config.streams else { return x };
        let all = self.all_streams(&own, &x, carried);
        if let Some(ends) = &self.altup {
            return ends.end(&all);
        }
        if let Some(mix) = &self.last_gate {
            return match mix.enter(all, own.count, &mut ()) {
                ControlFlow::Continue(entered) => entered.x,
                ControlFlow::Break(()) => x,
            };
        }
        let rows = x.len() / self.config.hidden;
        let weights = match &self.last_mix {
            Some(mix) => match mix.weights(&all, self.config.norm_eps, &mut ()) {
                ControlFlow::Continue(raw) => {
                    let of = |(i, w): (usize, &f32)| sigmoid(w * mix.scale[0] + mix.base[i % own.count]) + own.eps;
                    raw.iter().enumerate().map(of).collect()
                }
                ControlFlow::Break(()) => return x,
            },
            None => vec![1.0 / own.count as f32; rows * own.count],
        };
        mixture(&all, &weights, own.count, self.config.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_sum_up_to_one() {
        let mut m: Vec<f32> = (0..16).map(|i| ((i * 7) % 5) as f32 * 0.6).collect();
        sinkhorn(&mut m, 4, 20, 1e-6);
        for i in 0..4 {
            let (row, column): (f32, f32) = (m[i * 4..i * 4 + 4].iter().sum(), (0..4).map(|r| m[r * 4 + i]).sum());
            assert!((row - 1.0).abs() < 1e-4 && (column - 1.0).abs() < 1e-4, "{row} {column}");
        }
        assert!(m.iter().all(|v| *v > 0.0) && (m[0] - m[1]).abs() > 0.01);
    }
}
