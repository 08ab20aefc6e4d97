//! What goes with a token beside its channels, in models whose layers read more than the residual stream: vectors of its
//! own for every layer (Gemma 4 E), keys and values that later layers attend to again, further residual streams, and the
//! positions that an indexer chose. Where layers are run one by one, all travel behind the channels of each row.

use super::linear::{Linear, times};
use super::norm::Norm;
use super::{Engine, Observer};
use crate::kernel::{Output, vector};
use crate::model::config::Activation;
use std::borrow::Cow;
use std::ops::ControlFlow;

/// The streams of one row: the first, and those in `carried`, which begins with the second.
pub(super) fn each_stream<'a>(
    x: &'a mut [f32],
    carried: &'a mut [f32],
    count: usize,
) -> impl Iterator<Item = &'a mut [f32]> {
    let hidden = x.len();
    std::iter::once(x).chain(carried.chunks_exact_mut(hidden).take(count - 1))
}

/// What makes every token's vectors for all layers.
pub(super) struct PerLayer {
    /// `[vocab, layers * width]`.
    pub embedding: Linear,
    /// `[layers * width, hidden]`.
    pub projection: Linear,
    pub norm: Norm,
}

/// How a layer adds a token's vector for it: `norm(project(activation(gate(x)) · vector))`.
pub(super) struct LayerVector {
    pub gate: Linear,
    pub project: Linear,
    pub norm: Norm,
    pub activation: Activation,
}

impl PerLayer {
    /// The vectors of `tokens` for all layers, to the front of each row of `carried` (`[n, step]`); `x` are the embeddings
    /// (`[n, hidden]`).
    pub fn of(&self, tokens: &[u32], x: &[f32], carried: &mut [f32], step: usize) {
        let (hidden, all) = (self.projection.weight.cols(), self.projection.out());
        let each = self.norm.weight.len().max(1);
        let _ = self.projection.product(x, Output { data: carried, stride: step, at: 0 }, &mut ());
        let mut own = vec![0.0; all];
        for (row, token) in carried.chunks_exact_mut(step).zip(tokens) {
            let row = &mut row[..all];
            vector::scale(row, 1.0 / (hidden as f32).sqrt());
            row.chunks_exact_mut(each).for_each(|part| self.norm.apply(part, 0));
            // Tokens beyond the table have the first one's.
            let token = Some(*token as usize).filter(|token| *token < self.embedding.out()).unwrap_or(0);
            self.embedding.weight.decode(token..token + 1, &mut own);
            vector::add_scaled(row, (each as f32).sqrt(), &own);
            vector::scale(row, std::f32::consts::FRAC_1_SQRT_2);
        }
    }
}

impl LayerVector {
    /// What `vectors` (a row each) make of `x` (`[n, hidden]`), to be added.
    pub fn of<'a>(
        &self,
        x: &[f32],
        vectors: impl Iterator<Item = &'a [f32]>,
        observer: &mut dyn Observer,
    ) -> ControlFlow<(), Vec<f32>> {
        let (hidden, width) = (self.project.out(), self.gate.out());
        let mut inner = vec![0.0; x.len() / hidden * width];
        self.gate.product(x, Output::whole(&mut inner, width), observer)?;
        for (inner, own) in inner.chunks_exact_mut(width).zip(vectors) {
            inner.iter_mut().zip(own).for_each(|(gate, own)| *gate = times(self.activation, *gate, *own));
        }
        let mut result = vec![0.0; x.len()];
        self.project.product(&inner, Output::whole(&mut result, hidden), observer)?;
        result.chunks_exact_mut(hidden).for_each(|row| self.norm.apply(row, 0));
        ControlFlow::Continue(result)
    }
}

impl Engine {
    /// What goes with `tokens`, `[n, carried]`; `x` are their embeddings, and `before` the tokens in front of those of each
    /// sequence.
    pub(super) fn carry(&self, tokens: &[u32], x: &[f32], before: &[Vec<u32>]) -> Vec<f32> {
        let mut carried = vec![0.0; tokens.len() * self.carried];
        self.carry_ngrams(tokens, before, &mut carried);
        if let Some(per_layer) = &self.per_layer {
            per_layer.of(tokens, x, &mut carried, self.carried);
        }
        if let Some(ends) = &self.altup {
            ends.begin(x, &mut carried, self.carried, self.config.carried_streams());
        } else if let Some(streams) = &self.config.streams {
            // All begin as the embedding.
            let (at, hidden) = (self.config.carried_streams(), self.config.hidden);
            for (row, x) in carried.chunks_exact_mut(self.carried).zip(x.chunks_exact(hidden)) {
                row[at..].chunks_exact_mut(hidden).take(streams.count - 1).for_each(|stream| stream.copy_from_slice(x));
            }
        }
        carried
    }

    /// The channels that the head reads out of a stream of [`embed`](Engine::embed) and [`layer`](Engine::layer), `[n,
    /// hidden]`.
    pub fn channels<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        if self.carried == 0 {
            return Cow::Borrowed(x);
        }
        let (channels, carried) = self.apart(x);
        self.collapsed(channels, &carried).into()
    }

    /// The numbers of a stream that say how near it is to another: all but the positions that were chosen.
    pub fn numbers<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        let (width, mut places) = (self.config.stream(), self.config.carried_choice());
        if places.is_empty() {
            return Cow::Borrowed(x);
        }
        places = self.config.hidden + places.start..self.config.hidden + places.end;
        let rows = x.chunks_exact(width);
        rows.flat_map(|row| row[..places.start].iter().chain(&row[places.end..])).copied().collect::<Vec<f32>>().into()
    }

    /// Channels and what goes with them, apart.
    pub(super) fn apart(&self, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let rows = x.chunks_exact(self.config.hidden + self.carried);
        let carried = rows.clone().flat_map(|row| &row[self.config.hidden..]).copied().collect();
        (rows.flat_map(|row| &row[..self.config.hidden]).copied().collect(), carried)
    }

    /// The same together.
    pub(super) fn together(&self, x: Vec<f32>, carried: &[f32]) -> Vec<f32> {
        if self.carried == 0 {
            return x;
        }
        let rows = x.chunks_exact(self.config.hidden).zip(carried.chunks_exact(self.carried));
        rows.flat_map(|(x, carried)| x.iter().chain(carried)).copied().collect()
    }
}
