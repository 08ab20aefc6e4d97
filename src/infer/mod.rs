//! Reference inference: the forward pass of every supported family, over weights in any stored form. Activations are
//! `f32`, matrix products accumulate in `f32`, and a batch is all tokens of a chunk at once or one new token after a
//! cache. It reads top to bottom (after llama2.c) and measures nothing; the evaluator does.

mod activations;
mod altup;
mod attention;
mod block;
mod carried;
mod channel_delta;
mod chosen;
mod erf;
mod experts;
mod heads;
mod kv_cache;
mod latent;
mod lightning;
mod linear;
mod load;
mod ngrams;
mod norm;
mod pooling;
mod recurrent;
mod reverse;
mod rope;
mod sampling;
mod scorer;
mod streams;
mod weights;

pub use attention::Cache;
pub use kv_cache::KvCache;
pub use linear::Linear;
pub use reverse::{Gradients, check_reversible, weight_gradient};
pub use sampling::{Ended, Sampler, Sampling, continue_text, continue_together, generate, sample_together};
pub use weights::Stored;

use crate::kernel::{Output, vector};
use crate::model::Config;
use crate::{Error, Result};
use activations::Rounding;
use block::{Buffers, Call, Joint, Layer, Mlp};
use carried::PerLayer;
use linear::{FeedForward, Inner, sized};
use ndarray::ArrayView2;
use norm::Norm;
use rayon::prelude::*;
use rope::Angles;
use std::ops::{ControlFlow, Range};

/// Sees what goes into every linear layer while a batch runs. `()` ignores it.
pub trait Observer {
    /// `x` (`[tokens, in]`) is about to be multiplied with the matrix of the GGUF name `linear`; of a stacked one with
    /// `expert`'s part, and `x` are the tokens that chose it (possibly none). `Break` ends the run right here;
    /// only the inputs of experts after this one, which do not depend on its products, are still shown.
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()>;
}

impl Observer for () {
    fn input(&mut self, _: &str, _: Option<usize>, _: ArrayView2<f32>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Sequences of equal length in one batch, and the first position of each whose result is wanted.
#[derive(Clone, Copy)]
struct Batch {
    sequences: usize,
    from: usize,
}

/// A model that can run.
pub struct Engine {
    /// The hyper-parameters.
    pub config: Config,
    embedding: Linear,
    /// What is added at every position (GPT-2).
    positions: Option<Linear>,
    /// What is added to every token of a text that is read alone (BERT's first segment).
    segment: Option<Vec<f32>>,
    embedding_norm: Option<Norm>,
    /// `None`: not in memory (now).
    layers: Vec<Option<Layer>>,
    /// `None`: what mixes the streams, or the last layer, has normalised them.
    output_norm: Option<Norm>,
    /// `None`: the embedding (tied).
    output: Option<Linear>,
    rope_factors: rope::Factors,
    /// Tokens' vectors for the layers.
    per_layer: Option<PerLayer>,
    /// Numbers that go with a token beside its channels.
    carried: usize,
    /// What several residual streams end in; `None`: their mean.
    last_mix: Option<streams::Mix>,
    last_gate: Option<streams::GatedMix>,
    /// Rows that n-grams of tokens choose.
    ngram_table: Option<Linear>,
    /// Where streams alternate, how they begin and end.
    altup: Option<altup::Ends>,
    /// How keys and values are rounded.
    kv_cache: Option<KvCache>,
    /// What pooled vectors go through, of models without a head.
    dense: Vec<Linear>,
    /// The head of a classifier or reranker.
    scorer: Option<scorer::Scorer>,
}

impl Engine {
    /// A cache for a sequence of up to `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.config.layers.len(), capacity)
    }

    /// Runs `tokens` after those in `cache` and returns the logits `[wanted.len(), vocab]` of the positions `wanted` of
    /// this batch.
    ///
    /// Errors: `BadInput` for a token beyond the vocabulary, or more tokens than the cache has room for; `Unsupported` for a model
    /// without a head.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache, wanted: Range<usize>) -> Result<Vec<f32>> {
        self.config.ending.needs_logits("a forward pass to the head")?;
        let hidden = self.hidden(tokens, cache, &mut ())?;
        let width = self.config.hidden;
        let wanted = hidden.get(wanted.start * width..wanted.end * width);
        let wanted = wanted.ok_or_else(|| Error::Internal("logits asked for beyond the batch".into()))?;
        Ok(self.head(wanted, &mut ()))
    }

    /// Runs `tokens` after those in `cache` and returns the last layer's result `[n, hidden]`, which [`Engine::head`]
    /// turns into logits.
    ///
    /// Errors: as [`Engine::forward`].
    pub fn hidden(&self, tokens: &[u32], cache: &mut Cache, observer: &mut dyn Observer) -> Result<Vec<f32>> {
        let mut x = self.embed_at(tokens, cache.len(), tokens.len())?;
        let mut carried = self.carry(tokens, &x, cache.before());
        cache.read(tokens, 1);
        let batch = Batch { sequences: 1, from: 0 };
        for layer in 0..self.layers.len() {
            if self.layer_of(layer, &mut x, &mut carried, batch, cache, observer)?.is_break() {
                break;
            }
        }
        cache.advance(tokens.len());
        Ok(self.collapsed(x, &carried))
    }

    /// Runs `sequences` of equal length, as one batch, after what `cache` holds of each, and returns the last layer's results
    /// of the positions `from ..` of each, `[sequences, len - from, hidden]`. The last layer computes only those.
    ///
    /// Errors: as [`Engine::forward`]; `Internal` for lengths that differ.
    pub fn hidden_from(&self, sequences: &[&[u32]], from: usize, cache: &mut Cache) -> Result<Vec<f32>> {
        let len = sequences.first().map_or(0, |s| s.len());
        if sequences.iter().any(|s| s.len() != len) || from >= len.max(1) {
            return Err(Error::Internal("a batch needs sequences of one length, and positions inside them".into()));
        }
        let tokens = sequences.concat();
        let mut x = self.embed_at(&tokens, cache.len(), len)?;
        let none = vec![Vec::new(); sequences.len()];
        let mut carried = self.carry(&tokens, &x, if cache.keeps() { cache.before() } else { &none });
        cache.read(&tokens, sequences.len());
        // A worker that shares its work wakes nobody but the others; from outside, every product would.
        rayon::scope(|_| {
            for layer in 0..self.layers.len() {
                let from = if layer + 1 == self.layers.len() && self.config.streams.is_none() { from } else { 0 };
                let batch = Batch { sequences: sequences.len(), from };
                let _ = self.layer_of(layer, &mut x, &mut carried, batch, cache, &mut ())?;
            }
            cache.advance(len);
            if self.config.streams.is_none() {
                return Ok(x);
            }
            let (all, hidden) = (self.collapsed(x, &carried), self.config.hidden);
            let wanted = all.chunks_exact(hidden).enumerate().filter(|(row, _)| row % len >= from);
            Ok(wanted.flat_map(|(_, row)| row).copied().collect())
        })
    }

    /// Runs one token of each sequence in `cache` and returns the logits `[sequences, vocab]`.
    ///
    /// Errors: as [`Engine::forward`].
    pub fn step(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        self.config.ending.needs_logits("generating text")?;
        let mut x = self.embed_at(tokens, cache.len(), 1)?;
        let mut carried = self.carry(tokens, &x, cache.before());
        cache.read(tokens, tokens.len());
        let batch = Batch { sequences: tokens.len(), from: 0 };
        rayon::scope(|_| {
            for layer in 0..self.layers.len() {
                let _ = self.layer_of(layer, &mut x, &mut carried, batch, cache, &mut ())?;
            }
            cache.advance(1);
            Ok(self.head(&self.collapsed(x, &carried), &mut ()))
        })
    }

    /// The residual stream of `tokens` from the beginning of a text on: their embeddings and what goes with them, `[n,
    /// hidden + carried]`.
    ///
    /// Errors: `BadInput` for a token beyond the vocabulary, or for more tokens than there are positions.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let x = self.embed_at(tokens, 0, tokens.len())?;
        let carried = self.carry(tokens, &x, &[Vec::new()]);
        Ok(self.together(x, &carried))
    }

    /// The same of sequences of `n` tokens from position `first` on, one behind the other.
    fn embed_at(&self, tokens: &[u32], first: usize, n: usize) -> Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let mut x = vec![0.0; tokens.len() * hidden];
        for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
            let token = *token as usize;
            if token >= self.embedding.out() {
                let what = format!("token {token} is not in the model's vocabulary of {}", self.embedding.out());
                return Err(Error::bad_input(what).hint("the tokenizer belongs to another model"));
            }
            self.embedding.weight.decode(token..token + 1, row);
            if self.config.embedding_scale != 1.0 {
                vector::scale(row, self.config.embedding_scale);
            }
        }
        if let Some(positions) = &self.positions {
            let mut own = vec![0.0; hidden];
            for (i, row) in x.chunks_exact_mut(hidden).enumerate() {
                let position = first + i % n.max(1);
                if position >= positions.out() {
                    let what = format!("{} tokens; the model has {} positions", position + 1, positions.out());
                    return Err(Error::bad_input(what));
                }
                positions.weight.decode(position..position + 1, &mut own);
                vector::add_scaled(row, 1.0, &own);
            }
        }
        if let Some(segment) = &self.segment {
            x.chunks_exact_mut(hidden).for_each(|row| vector::add_scaled(row, 1.0, segment));
        }
        if let Some(norm) = &self.embedding_norm {
            x.chunks_exact_mut(hidden).for_each(|row| norm.apply(row, 0));
        }
        Ok(x)
    }

    /// Whether the two halves of a layer follow each other, so that each can be run alone.
    pub fn has_halves(&self, index: usize) -> bool {
        let layer = self.layers.get(index).and_then(Option::as_ref);
        layer.is_some_and(|l| !l.parallel && l.scale.is_none() && l.mixers.len() < 2 && self.carried == 0)
    }

    /// Runs one layer in place on the residual stream `x` (as [`Engine::embed`] makes it) of the tokens after those in
    /// `cache`. The cache's length does not change: [`Engine::hidden`] advances it after the last layer.
    ///
    /// Errors: `BadInput` when the cache has no room for `n` tokens.
    pub fn layer(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        self.layer_of_each(index, x, 1, cache, observer)
    }

    /// [`Engine::layer`] for so many sequences of one length, one behind the other in `x`.
    ///
    /// Errors: as [`Engine::layer`].
    pub fn layer_of_each(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        sequences: usize,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let batch = Batch { sequences, from: 0 };
        if self.carried == 0 {
            return self.layer_of(index, x, &mut [], batch, cache, observer);
        }
        let (mut channels, mut carried) = self.apart(x);
        let run = self.layer_of(index, &mut channels, &mut carried, batch, cache, observer)?;
        *x = self.together(channels, &carried);
        Ok(run)
    }

    /// The same of several sequences, with channels and what goes with them apart.
    fn layer_of(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        carried: &mut [f32],
        batch: Batch,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        if self.attention_of(index, x, carried, batch, cache, observer)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.feed_forward_of(index, x, carried, batch, cache, observer)
    }

    /// The first half of [`Engine::layer`]. When the observer breaks it off, `x` is as it was.
    ///
    /// Errors: as [`Engine::layer`].
    pub fn attention(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        self.attention_of(index, x, &mut [], Batch { sequences: 1, from: 0 }, cache, observer)
    }

    /// The second half.
    ///
    /// Errors: `Internal` when the layer is not loaded.
    pub fn feed_forward(
        &self,
        index: usize,
        x: &mut [f32],
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        self.feed_forward_of(index, x, &mut [], Batch { sequences: 1, from: 0 }, cache, observer)
    }

    /// What is left of [`Engine::attention`] once an observer broke it off at its last matrix: `attended` is what was about
    /// to enter that, `x` as it was before.
    ///
    /// Errors: `Internal` when the layer is not loaded.
    pub fn attention_end(&self, index: usize, attended: &[f32], x: &mut [f32], cache: &mut Cache) -> Result<()> {
        let layer = self.loaded(index)?;
        if let [(_, output)] = &layer.mixers[..] {
            self.end(output, attended, x, &layer.after_attn, cache);
        }
        Ok(())
    }

    /// The same of [`Engine::feed_forward`].
    ///
    /// Errors: `Internal` when the layer is not loaded or has experts, which have no one last matrix.
    pub fn feed_forward_end(&self, index: usize, activated: &[f32], x: &mut [f32], cache: &mut Cache) -> Result<()> {
        let layer = self.loaded(index)?;
        let Mlp::Dense(mlp) = &layer.mlp else {
            return Err(Error::Internal(format!("layer {index} has experts")));
        };
        self.end(&mlp.down, activated, x, &layer.after_ffn, cache);
        Ok(())
    }

    fn end(&self, last: &Linear, inner: &[f32], x: &mut [f32], joint: &Joint, cache: &mut Cache) {
        let result = sized(&mut cache.buffers.result, x.len());
        let _ = last.product(inner, Output::whole(result, self.config.hidden), &mut ());
        self.add(x, result, joint);
    }

    fn loaded(&self, index: usize) -> Result<&Layer> {
        let layer = self.layers.get(index).and_then(Option::as_ref);
        layer.ok_or_else(|| Error::Internal(format!("layer {index} is not loaded")))
    }

    /// Logits `[n, vocab]` of the last layer's results `hidden` (`[n, hidden]`).
    pub fn head(&self, hidden: &[f32], observer: &mut dyn Observer) -> Vec<f32> {
        let mut logits = Vec::new();
        self.head_into(hidden, &mut logits, observer);
        logits
    }

    /// What enters the output matrix: the last layer's results, normalised.
    pub fn head_input(&self, hidden: &[f32]) -> Vec<f32> {
        let Some(norm) = &self.output_norm else { return hidden.to_vec() };
        let mut normed = vec![0.0; hidden.len()];
        norm.rows(hidden, self.config.hidden, &mut normed);
        normed
    }

    /// The same into a vector that is reused from call to call.
    pub fn head_into(&self, hidden: &[f32], logits: &mut Vec<f32>, observer: &mut dyn Observer) {
        let normed = self.head_input(hidden);
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let vocab = output.out();
        logits.resize(normed.len() / self.config.hidden * vocab, 0.0);
        if output.product(&normed, Output::whole(logits, vocab), observer).is_break() {
            return;
        }
        let c = &self.config;
        if c.logit_scale != 1.0 {
            let scale = if c.logit_scale_divides { 1.0 / c.logit_scale } else { c.logit_scale };
            logits.par_chunks_mut(vocab).for_each(|row| vector::scale(row, scale));
        }
        if let Some(cap) = c.logit_softcap {
            logits.par_chunks_mut(vocab).for_each(|row| vector::soft_cap(row, cap));
        }
    }

    /// Whether to round activations to 8 bits before products with quantized weights, as llama.cpp does on a CPU. Off
    /// by default. It follows the types that the weights have when it is called. Where a checkpoint's own format rounds
    /// activations (FP8, INT8, NVFP4), that happens in any case.
    pub fn round_activations(&mut self, on: bool) {
        for linear in self.linears_mut().filter(|l| !matches!(l.rounding, Rounding::Format(_))) {
            let block = linear.weight.ggml_type().filter(|_| on).and_then(activations::block_for);
            linear.rounding = block.map_or(Rounding::None, Rounding::Ggml);
        }
    }

    /// Leaves the activations of layer `index` as they are, whatever its format does with them. What scales that were fixed
    /// beforehand have room for: the largest magnitude, by the GGUF name of the weight.
    pub fn keep_activations(&mut self, index: usize) -> Vec<(String, f32)> {
        let mut rooms = Vec::new();
        for linear in self.layer_linears_mut(index) {
            if let Rounding::Format(input) = std::mem::replace(&mut linear.rounding, Rounding::None) {
                rooms.extend(input.room().map(|room| (linear.name.clone(), room)));
            }
        }
        rooms
    }

    /// Rounds keys and values as an engine does that keeps them in these types; `None`, the default, leaves them as they are.
    ///
    /// # Errors
    /// `Request` for heads that are no whole blocks of a type, and for a model that keeps no keys.
    pub fn round_keys_and_values(&mut self, types: Option<KvCache>) -> Result<()> {
        if let Some(types) = types {
            types.fit(&self.config)?;
        }
        self.kv_cache = types;
        Ok(())
    }

    /// What a checkpoint's own format rounds activations to, if it does.
    pub fn rounded_by_format(&mut self) -> Option<&'static str> {
        self.linears_mut().find_map(|linear| match linear.rounding {
            Rounding::Format(input) => input.name(),
            _ => None,
        })
    }

    /// The linear layers of a layer in the order of use, for replacing weights; none when it is not loaded.
    pub fn layer_linears_mut(&mut self, index: usize) -> impl Iterator<Item = &mut Linear> {
        self.layers.get_mut(index).into_iter().flatten().flat_map(Layer::linears_mut)
    }

    /// Every linear layer in memory, in the order of use, for replacing weights.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let layers = self.layers.iter_mut().flatten().flat_map(Layer::linears_mut);
        let per_layer = self.per_layer.iter_mut().flat_map(|p| [&mut p.embedding, &mut p.projection]);
        let altup = self.altup.iter_mut().flat_map(altup::Ends::linears_mut);
        std::iter::once(&mut self.embedding)
            .chain(per_layer)
            .chain(altup)
            .chain(self.last_gate.iter_mut().flat_map(streams::GatedMix::linears_mut))
            .chain(layers)
            .chain(&mut self.output)
            .chain(&mut self.dense)
            .chain(self.scorer.iter_mut().flat_map(scorer::Scorer::linears_mut))
    }

    /// The angles of one of the rotary embeddings for the next `n` positions; what a checkpoint brings of factors is the
    /// first one's.
    fn angles(&self, which: Option<usize>, cache: &Cache, n: usize) -> Option<Angles> {
        self.angles_from(which, cache, cache.len(), n)
    }

    /// The same of `n` positions from `first` on.
    fn angles_from(&self, which: Option<usize>, cache: &Cache, first: usize, n: usize) -> Option<Angles> {
        let rope = self.config.ropes.get(which?)?;
        let none = rope::Factors::default();
        let factors = if which == Some(0) { &self.rope_factors } else { &none };
        Some(Angles::new(rope, factors, cache.capacity(), self.config.context, first, n))
    }

    fn rotate(&self, head: &mut [f32], angles: &Angles, i: usize) {
        match self.config.spread_pairs {
            true => angles.rotate_spread(head, i),
            false => angles.rotate(head, i, self.config.pairs),
        }
    }
}
