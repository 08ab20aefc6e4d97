//! Reference inference: the forward pass of every supported family, over weights in any stored form. Activations are
//! `f32`, matrix products accumulate in `f32`, and a batch is all tokens of a chunk at once or one new token after a
//! cache. It reads top to bottom (after llama2.c) and measures nothing; the evaluator does.

mod activations;
mod attention;
mod experts;
mod linear;
mod rope;
mod sampling;
mod weights;

pub use attention::Cache;
pub use linear::Linear;
pub use sampling::{Sampling, generate, sample_together};
pub use weights::Stored;

use crate::kernel::{Output, vector};
use crate::model::{Config, LayerConfig};
use crate::{Error, Result};
use activations::Rounding;
use attention::{Heads, Seen, attend};
use experts::Experts;
use linear::{FeedForward, Inner, ROWS_PER_TASK, activate, sized};
use rayon::prelude::*;
use rope::Angles;
use std::ops::{ControlFlow, Range};

/// Sees what goes into every linear layer while a batch runs; `()` looks away.
pub trait Observer {
    /// `x` (`[tokens, in]`) is about to be multiplied with the matrix of the GGUF name `linear`; of a stacked one with
    /// `expert`'s part, and `x` are the tokens that chose it (possibly none). `Break` ends the run right here;
    /// only the inputs of experts after this one, which do not depend on its products, are still shown.
    fn input(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) -> ControlFlow<()>;
}

impl Observer for () {
    fn input(&mut self, _: &str, _: Option<usize>, _: &[f32]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Working memory of a batch, kept from layer to layer and from batch to batch: fresh pages from the system for every
/// step would cost more than the steps between the products.
#[derive(Default)]
struct Buffers {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    packed_keys: Vec<f32>,
    attended: Vec<f32>,
    result: Vec<f32>,
    inner: Inner,
}

enum Mlp {
    Dense(FeedForward),
    Experts(Box<Experts>),
}

struct Layer {
    attn_norm: Vec<f32>,
    /// Query, key and value, or one matrix with the rows of all three in this order.
    qkv: Vec<Linear>,
    /// Norms over each head (qwen3, gemma3).
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attn_output: Linear,
    /// Norms on the results of attention and feed-forward (gemma2, gemma3).
    post_attn_norm: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    mlp: Mlp,
    post_ffn_norm: Option<Vec<f32>>,
    window: Option<usize>,
}

impl Layer {
    /// In the order of use.
    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let mlp: Vec<&mut Linear> = match &mut self.mlp {
            Mlp::Dense(mlp) => mlp.gate_up.iter_mut().chain([&mut mlp.down]).collect(),
            Mlp::Experts(e) => {
                let shared = e.shared.iter_mut().map(|s| &mut s.expert);
                let shared = shared.flat_map(|s| s.gate_up.iter_mut().chain([&mut s.down]));
                [&mut e.router, &mut e.gate, &mut e.up, &mut e.down].into_iter().chain(shared).collect()
            }
        };
        self.qkv.iter_mut().chain([&mut self.attn_output]).chain(mlp)
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
    pub config: Config,
    embedding: Linear,
    /// `None`: not in memory (now).
    layers: Vec<Option<Layer>>,
    output_norm: Vec<f32>,
    /// `None`: the embedding (tied).
    output: Option<Linear>,
    rope_factors: rope::Factors,
    /// Rotary pairs are neighbours, not halves.
    interleaved_rope: bool,
}

impl Engine {
    /// A cache for a sequence of up to `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.config.layers.len(), capacity)
    }

    /// Runs `tokens` after those in `cache` and returns the logits `[wanted.len(), vocab]` of the positions `wanted` of
    /// this batch.
    ///
    /// Errors: `BadInput` for a token beyond the vocabulary, or more tokens than the cache has room for.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache, wanted: Range<usize>) -> Result<Vec<f32>> {
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
        let mut x = self.embed(tokens)?;
        for layer in 0..self.layers.len() {
            if self.layer(layer, &mut x, cache, observer)?.is_break() {
                break;
            }
        }
        cache.advance(tokens.len());
        Ok(x)
    }

    /// Runs sequences of equal length from their beginning, as one batch, and returns the last layer's results of the
    /// positions `from ..` of each, `[sequences, len - from, hidden]`. The last layer computes only those.
    ///
    /// Errors: as [`Engine::forward`]; `Internal` for lengths that differ.
    pub fn hidden_from(&self, sequences: &[&[u32]], from: usize, cache: &mut Cache) -> Result<Vec<f32>> {
        let len = sequences.first().map_or(0, |s| s.len());
        if sequences.iter().any(|s| s.len() != len) || from >= len.max(1) {
            return Err(Error::Internal("a batch needs sequences of one length, and positions inside them".into()));
        }
        let mut x = self.embed(&sequences.concat())?;
        // A worker that shares its work wakes nobody but the others; from outside, every product would.
        rayon::scope(|_| {
            for layer in 0..self.layers.len() {
                let from = if layer + 1 == self.layers.len() { from } else { 0 };
                let batch = Batch { sequences: sequences.len(), from };
                cache.truncate(0);
                let _ = self.attention_of(layer, &mut x, batch, cache, &mut ())?;
                let _ = self.feed_forward(layer, &mut x, cache, &mut ())?;
            }
            Ok(x)
        })
    }

    /// Runs one token of each sequence in `cache` and returns the logits `[sequences, vocab]`.
    ///
    /// Errors: as [`Engine::forward`].
    pub fn step(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let mut x = self.embed(tokens)?;
        let batch = Batch { sequences: tokens.len(), from: 0 };
        rayon::scope(|_| {
            for layer in 0..self.layers.len() {
                let _ = self.attention_of(layer, &mut x, batch, cache, &mut ())?;
                let _ = self.feed_forward(layer, &mut x, cache, &mut ())?;
            }
            cache.advance(1);
            Ok(self.head(&x, &mut ()))
        })
    }

    /// The embeddings `[n, hidden]` of `tokens`.
    ///
    /// Errors: `BadInput` for a token beyond the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
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
        Ok(x)
    }

    /// Runs one layer in place on the residual stream `x` (`[n, hidden]`) of the tokens after those in `cache`. The
    /// cache's length does not change: [`Engine::hidden`] advances it after the last layer.
    ///
    /// Errors: `BadInput` when the cache has no room for `n` tokens.
    pub fn layer(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        if self.attention(index, x, cache, observer)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.feed_forward(index, x, cache, observer)
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
        self.attention_of(index, x, Batch { sequences: 1, from: 0 }, cache, observer)
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
        let layer = self.loaded(index)?;
        let hidden = self.config.hidden;
        let mut buffers = std::mem::take(&mut cache.buffers);
        let Buffers { normed, result, inner, .. } = &mut buffers;
        let (normed, result) = (sized(normed, x.len()), sized(result, x.len()));
        self.norm(x, &layer.ffn_norm, normed);
        let run = match &layer.mlp {
            Mlp::Dense(mlp) => mlp.forward(normed, hidden, result, inner, observer),
            Mlp::Experts(mlp) => mlp.forward(normed, hidden, result, inner, observer),
        };
        if run.is_continue() {
            self.add(x, result, layer.post_ffn_norm.as_deref());
        }
        cache.buffers = buffers;
        Ok(run)
    }

    /// What is left of [`Engine::attention`] once an observer broke it off at its last matrix: `attended` is what was about
    /// to enter that, `x` as it was before.
    ///
    /// Errors: `Internal` when the layer is not loaded.
    pub fn attention_end(&self, index: usize, attended: &[f32], x: &mut [f32], cache: &mut Cache) -> Result<()> {
        let layer = self.loaded(index)?;
        self.end(&layer.attn_output, attended, x, layer.post_attn_norm.as_deref(), cache);
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
        self.end(&mlp.down, activated, x, layer.post_ffn_norm.as_deref(), cache);
        Ok(())
    }

    fn end(&self, last: &Linear, inner: &[f32], x: &mut [f32], norm: Option<&[f32]>, cache: &mut Cache) {
        let result = sized(&mut cache.buffers.result, x.len());
        let _ = last.product(inner, Output::whole(result, self.config.hidden), &mut ());
        self.add(x, result, norm);
    }

    /// Attention of several sequences that begin after the tokens in `cache`; of `x` only the rows from `batch.from` on
    /// of each sequence are left.
    fn attention_of(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        batch: Batch,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let layer = self.loaded(index)?;
        let c = &self.config;
        let (hidden, first) = (c.hidden, cache.len());
        let rows = x.len() / hidden;
        let n = rows / batch.sequences.max(1);
        if first + n > cache.capacity() {
            let what = format!("{} tokens do not fit the context of {}", first + n, cache.capacity());
            return Err(Error::bad_input(what));
        }
        let mut buffers = std::mem::take(&mut cache.buffers);
        let Buffers { normed, qkv, packed_keys, attended, result, .. } = &mut buffers;
        let (normed, result) = (sized(normed, rows * hidden), sized(result, rows * hidden));
        let own = c.layers.get(index).and_then(LayerConfig::heads);
        let own = own.ok_or_else(|| Error::Internal(format!("no attention in layer {index}")))?;
        let (q_width, kv_width) = (own.q_width(), own.k_width());
        let stride = q_width + 2 * kv_width;

        self.norm(x, &layer.attn_norm, normed);
        let qkv = sized(qkv, rows * stride);
        // Keys and values of all positions; queries only of those that are wanted, where they have a matrix of their own.
        let (ahead, rest) = match &layer.qkv[..] {
            [query, rest @ ..] if batch.from > 0 && !rest.is_empty() => (Some(query), rest),
            all => (None, all),
        };
        let wanted = |row: usize| row % n >= batch.from;
        let run = (|| {
            if let Some(query) = ahead {
                for row in (batch.from..rows).step_by(n) {
                    let x = &normed[row * hidden..(row + n - batch.from) * hidden];
                    query.product(x, Output { data: &mut qkv[row * stride..], stride, at: 0 }, observer)?;
                }
            }
            let mut at = ahead.map_or(0, |query| query.out());
            for linear in rest {
                linear.product(normed, Output { data: &mut *qkv, stride, at }, observer)?;
                at += linear.out();
            }
            ControlFlow::Continue(())
        })();
        if run.is_break() {
            cache.buffers = buffers;
            return Ok(run);
        }
        let rope = own.rope.and_then(|i| Some((i, c.ropes.get(i)?)));
        let (which, rope) = rope.ok_or_else(|| Error::Internal(format!("no positions in layer {index}")))?;
        let angles = match which {
            0 => Angles::new(rope, &self.rope_factors, cache.capacity(), c.context, first, n),
            _ => Angles::new(rope, &rope::Factors::default(), cache.capacity(), c.context, first, n),
        };
        qkv.par_chunks_exact_mut(stride).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(i, row)| {
            let (q, k) = row[..q_width + kv_width].split_at_mut(q_width);
            for (part, norm) in [(if wanted(i) { q } else { &mut [] }, &layer.q_norm), (k, &layer.k_norm)] {
                for head in part.chunks_exact_mut(own.dim) {
                    if let Some(norm) = norm {
                        vector::rms_norm(head, norm, c.norm_eps);
                    }
                    self.rotate(head, rope.dims, &angles, i % n);
                }
            }
        });
        let shape = Heads {
            heads: own.q,
            kv_heads: own.kv,
            dim: own.dim,
            scale: own.scale,
            softcap: own.softcap,
            window: layer.window,
        };
        let left = n - batch.from;
        let attended = sized(attended, batch.sequences * left * q_width);
        let outs = attended.chunks_exact_mut(left * q_width);
        for (i, (sequence, attended)) in qkv.chunks_exact(n * stride).zip(outs).enumerate() {
            let (keys, values) = (&sequence[q_width..], &sequence[q_width + kv_width..]);
            let mut seen = Seen { keys, values, step: stride, len: n };
            if cache.keeps() {
                let kv = cache.layer(index, i, kv_width);
                for row in sequence.chunks_exact(stride) {
                    kv.keys.extend_from_slice(&row[q_width..q_width + kv_width]);
                    kv.values.extend_from_slice(&row[q_width + kv_width..]);
                }
                seen = Seen { keys: &kv.keys, values: &kv.values, step: kv_width, len: first + n };
            }
            attend(shape, &sequence[batch.from * stride..], stride, seen, packed_keys, attended);
        }
        let result = &mut result[..batch.sequences * left * hidden];
        let run = layer.attn_output.product(attended, Output::whole(result, hidden), observer);
        if run.is_continue() {
            if batch.from > 0 {
                for (i, row) in (0..rows).filter(|row| wanted(*row)).enumerate() {
                    x.copy_within(row * hidden..(row + 1) * hidden, i * hidden);
                }
                x.truncate(batch.sequences * left * hidden);
            }
            self.add(x, result, layer.post_attn_norm.as_deref());
        }
        cache.buffers = buffers;
        Ok(run)
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
        let mut normed = vec![0.0; hidden.len()];
        self.norm(hidden, &self.output_norm, &mut normed);
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
        if let Some(cap) = self.config.logit_softcap {
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
        std::iter::once(&mut self.embedding).chain(layers).chain(&mut self.output)
    }

    fn rotate(&self, head: &mut [f32], dims: usize, angles: &Angles, i: usize) {
        let (cos, sin) = angles.row(i);
        let rotated = &mut head[..dims];
        if self.interleaved_rope {
            vector::rotate_pairs(rotated, cos, sin);
        } else {
            let (low, high) = rotated.split_at_mut(cos.len());
            vector::rotate_halves(low, high, cos, sin);
        }
    }

    /// The rows of `x` (`[n, hidden]`), normalised, to `out`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let hidden = self.config.hidden;
        let rows = out.par_chunks_exact_mut(hidden).zip(x.par_chunks_exact(hidden)).with_min_len(ROWS_PER_TASK);
        rows.for_each(|(out, x)| {
            out.copy_from_slice(x);
            vector::rms_norm(out, weight, self.config.norm_eps);
        });
    }

    /// `x += result`, which is normalised before where the family has a norm there.
    fn add(&self, x: &mut [f32], result: &mut [f32], norm: Option<&[f32]>) {
        let hidden = self.config.hidden;
        let rows = x.par_chunks_exact_mut(hidden).zip(result.par_chunks_exact_mut(hidden));
        rows.with_min_len(ROWS_PER_TASK).for_each(|(x, result)| {
            if let Some(norm) = norm {
                vector::rms_norm(result, norm, self.config.norm_eps);
            }
            vector::add_scaled(x, 1.0, result);
        });
    }
}
