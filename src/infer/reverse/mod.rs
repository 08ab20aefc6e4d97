//! The reverse pass of the reference inference: from the gradient of a loss at the logits to that at every linear layer's
//! result, layer by layer from the last to the first. Of a layer only what entered it is needed; what is inside is computed
//! again (activation checkpointing, Chen et al. 2016), so that the memory is that of one layer. What becomes of the
//! gradients, [`Gradients`] says: whole matrices of them are never kept here. `f32`, sums in a fixed order.
//!
//! Blocks of softmax attention and plain feed-forward layers are taken back. [`check_reversible`] refuses the others.

mod attention;
mod feed_forward;
mod norm;
mod product;

pub use product::weight_gradient;

use super::block::{Joint, Layer, Mixer, Mlp};
use super::heads::Attention;
use super::linear::{FeedForward, Linear};
use super::norm::Norm;
use super::{Cache, Engine};
use crate::kernel::{Output, vector};
use crate::model::Config;
use crate::model::config::{Early, Ending, Gate, LayerConfig, Mixer as Mixes};
use crate::{Error, Result};
use feed_forward::has_slope;
use rayon::prelude::*;

/// Hears of the gradients of a reverse pass.
pub trait Gradients {
    /// What entered the linear layer of this GGUF name (`x`, `[n, in]`), and the gradient at what left it (`dy`, `[n, out]`). That
    /// of its weights is `dyᵀ x`.
    fn linear(&mut self, linear: &str, x: &[f32], dy: &[f32]);

    /// The gradient at the rows of the embedding that `tokens` have looked up, `[n, hidden]`.
    fn lookup(&mut self, _embedding: &str, _tokens: &[u32], _dy: &[f32]) {}

    /// The gradient of a norm's weights.
    fn norm(&mut self, _norm: &str, _dw: &[f32]) {}
}

impl Gradients for () {
    fn linear(&mut self, _: &str, _: &[f32], _: &[f32]) {}
}

/// That the reverse pass knows every part of a model, as far as its configuration tells; what its tensors tell beyond,
/// [`Engine::reverse_layer`] refuses.
///
/// # Errors
/// `Unsupported`, naming the part.
pub fn check_reversible(config: &Config) -> Result<()> {
    let whole = [
        (config.ending != Ending::Logits, "no head"),
        (config.streams.is_some(), "several residual streams"),
        (config.per_layer > 0, "vectors of tokens for every layer"),
        (config.ngrams.is_some(), "embeddings of n-grams"),
        (config.norm_residual.is_some(), "a normalised residual stream"),
        (config.embedding_unit_norm, "normalised embeddings"),
    ];
    let of_layers = || config.layers.iter().enumerate().find_map(|(i, layer)| Some((i, unknown_part(layer)?)));
    let found = whole.into_iter().find(|(is_there, _)| *is_there).map(|(_, what)| what.to_string());
    match found.or_else(|| of_layers().map(|(i, what)| format!("{what} (layer {i})"))) {
        None => Ok(()),
        Some(what) => Err(no_gradient(&what)),
    }
}

fn no_gradient(what: &str) -> Error {
    let what = format!("no gradient is taken through this model, which has {what}");
    Error::unsupported(what)
        .hint("models of attention and plain feed-forward layers can be tuned; leave tuning out here")
}

/// What of a layer has no reverse pass.
fn unknown_part(layer: &LayerConfig) -> Option<&'static str> {
    let Mixes::Attention(heads) = &layer.mixer else { return Some("a mixer that is no plain attention") };
    let few = &heads.peculiar;
    let Some(dense) = layer.ffn.dense.as_ref().filter(|_| layer.ffn.experts.is_none()) else {
        return Some(if layer.ffn.experts.is_some() { "experts" } else { "no feed-forward part" });
    };
    let parts = [
        (layer.beside.is_some(), "two mixers side by side"),
        (few.gate != Gate::None, "gated attention"),
        (few.norm_after_rope || few.unit_norm || few.value_norm, "norms of heads behind the rotation"),
        (few.clamp.is_some(), "clamped queries"),
        (few.both_ways, "attention in both directions"),
        (few.chosen.is_some(), "attention to chosen positions"),
        (few.shared.is_some(), "keys and values of another layer"),
        (dense.cutoff.is_some(), "a feed-forward part with a cutoff"),
        (!has_slope(dense.activation), "an activation with limits"),
        (layer.ffn.early != Early::Nothing, "a feed-forward part that reads early"),
    ];
    parts.into_iter().find(|(is_there, _)| *is_there).map(|(_, what)| what)
}

impl Linear {
    /// From the gradient `dy` at the result of `x` to that at `x`, which is added to `dx`.
    fn back(&self, x: &[f32], dy: &[f32], dx: &mut [f32], gradients: &mut dyn Gradients) {
        if let [scale] = self.scales[..] {
            let scaled: Vec<f32> = dy.iter().map(|d| d * scale).collect();
            gradients.linear(&self.name, x, &scaled);
            return product::add_back(&scaled, &*self.weight, dx);
        }
        gradients.linear(&self.name, x, dy);
        product::add_back(dy, &*self.weight, dx);
    }
}

impl Joint {
    /// The stream `x` once `result` joined it, before the norm on the sum.
    fn joined(&self, engine: &Engine, x: &[f32], result: &[f32]) -> Vec<f32> {
        let mut sum = x.to_vec();
        let hidden = engine.config.hidden;
        sum.par_chunks_exact_mut(hidden).zip(result.par_chunks_exact(hidden)).for_each(|(x, result)| {
            match &self.result {
                Some(norm) => {
                    let mut own = result.to_vec();
                    norm.apply(&mut own, 0);
                    vector::add_scaled(x, engine.config.residual_scale, &own);
                }
                None => vector::add_scaled(x, engine.config.residual_scale, result),
            }
        });
        sum
    }

    /// The stream behind the norm on the sum, where there is one.
    fn normed(&self, hidden: usize, mut sum: Vec<f32>) -> Vec<f32> {
        if let Some(norm) = &self.sum {
            sum.par_chunks_exact_mut(hidden).for_each(|row| norm.apply(row, 0));
        }
        sum
    }

    /// From the gradient `dy` at the stream behind this to those at the stream before (in its place) and at the result.
    /// `joined`: what [`Joint::joined`] gave.
    fn back(
        &self,
        engine: &Engine,
        joined: &[f32],
        result: &[f32],
        dy: &mut [f32],
        gradients: &mut dyn Gradients,
    ) -> Vec<f32> {
        let hidden = engine.config.hidden;
        if let Some(norm) = &self.sum {
            norm.back(joined, hidden, 1, dy, gradients);
        }
        let mut d = dy.to_vec();
        vector::scale(&mut d, engine.config.residual_scale);
        if let Some(norm) = &self.result {
            norm.back(result, hidden, 1, &mut d, gradients);
        }
        d
    }
}

/// Rows of a stream as a part reads them.
fn read(norm: Option<&Norm>, x: &[f32], hidden: usize) -> Vec<f32> {
    let Some(norm) = norm else { return x.to_vec() };
    let mut out = vec![0.0; x.len()];
    norm.rows(x, hidden, &mut out);
    out
}

/// The parts of a layer that the reverse pass knows.
struct Parts<'a> {
    attention: &'a Attention,
    output: &'a Linear,
    mlp: &'a FeedForward,
}

impl Layer {
    fn parts(&self) -> Result<Parts<'_>> {
        let parts = [
            (self.vector.is_some() || self.scale.is_some(), "vectors of tokens or a factor for a layer"),
            (self.streams.is_some() || self.ngrams.is_some(), "several residual streams or n-grams"),
            (self.after_attn.onto.is_some() || self.after_ffn.onto.is_some(), "a normalised residual stream"),
        ];
        if let Some((_, what)) = parts.into_iter().find(|(is_there, _)| *is_there) {
            return Err(no_gradient(what));
        }
        let [(Mixer::Attention(attention), output)] = &self.mixers[..] else {
            return Err(no_gradient("a mixer that is no plain attention"));
        };
        let Mlp::Dense(mlp) = &self.mlp else { return Err(no_gradient("experts")) };
        let parts = [
            (attention.gate.is_some(), "gated attention"),
            (attention.keys_are_values, "keys that are values"),
            (attention.out_norm.is_some() || mlp.norm.is_some(), "norms in front of last matrices"),
            (attention.indexer.is_some(), "attention to chosen positions"),
        ];
        match parts.into_iter().find(|(is_there, _)| *is_there) {
            Some((_, what)) => Err(no_gradient(what)),
            None => Ok(Parts { attention, output, mlp }),
        }
    }
}

impl Engine {
    /// That the reverse pass knows every part of a loaded layer.
    ///
    /// # Errors
    /// `Unsupported`, naming the part; `Internal` when it is not loaded.
    pub fn check_layer_reversible(&self, index: usize) -> Result<()> {
        match self.embedding_norm.is_some() {
            true => Err(no_gradient("normalised embeddings")),
            false => self.loaded(index)?.parts().map(|_| ()),
        }
    }

    /// From the gradient `dy` at what left a layer to that at `x`, which entered it: one sequence from its beginning, `[n,
    /// hidden]`. `cache` is that of the forward pass, for whole batches ([`Cache::one_batch`]).
    ///
    /// # Errors
    /// `Unsupported` for parts without a reverse pass; `Internal` when the layer is not loaded.
    pub fn reverse_layer(
        &self,
        index: usize,
        x: &[f32],
        mut dy: Vec<f32>,
        cache: &mut Cache,
        gradients: &mut dyn Gradients,
    ) -> Result<Vec<f32>> {
        let layer = self.loaded(index)?;
        let Parts { attention, output, mlp } = layer.parts()?;
        let own = self.config.layers.get(index).and_then(LayerConfig::heads);
        let own = own.ok_or_else(|| Error::Internal(format!("layer {index} is loaded as another kind")))?;
        let hidden = self.config.hidden;
        let n = x.len() / hidden;
        // Forward once more.
        let normed = read(layer.attn_norm.as_ref(), x, hidden);
        let trace = attention.traced(own, self, index, &normed, cache)?;
        let mut mixed = vec![0.0; n * hidden];
        let _ = output.product(&trace.attended, Output::whole(&mut mixed, hidden), &mut ());
        let joined = layer.after_attn.joined(self, x, &mixed);
        let middle = layer.after_attn.normed(hidden, joined.clone());
        let ffn_norm = match layer.parallel {
            true => layer.ffn_norm.as_ref().or(layer.attn_norm.as_ref()),
            false => layer.ffn_norm.as_ref(),
        };
        let read_by_mlp = if layer.parallel { x } else { middle.as_slice() };
        let into = read(ffn_norm, read_by_mlp, hidden);
        let mut result = Vec::new();
        if layer.after_ffn.result.is_some() || layer.after_ffn.sum.is_some() {
            result.resize(n * hidden, 0.0);
            let _ = mlp.forward(None, &into, hidden, &mut result, &mut Default::default(), &mut ());
        }
        // And back.
        let end = match layer.after_ffn.sum {
            Some(_) => layer.after_ffn.joined(self, &middle, &result),
            None => Vec::new(),
        };
        let d_result = layer.after_ffn.back(self, &end, &result, &mut dy, gradients);
        let mut d_read = vec![0.0; n * hidden];
        mlp.back(&into, hidden, &d_result, &mut d_read, gradients);
        if let Some(norm) = ffn_norm {
            norm.back(read_by_mlp, hidden, 1, &mut d_read, gradients);
        }
        if !layer.parallel {
            vector::add_scaled(&mut dy, 1.0, &d_read);
        }
        let d_mixed = layer.after_attn.back(self, &joined, &mixed, &mut dy, gradients);
        let mut d_attended = vec![0.0; trace.attended.len()];
        output.back(&trace.attended, &d_mixed, &mut d_attended, gradients);
        let mut d_normed = vec![0.0; n * hidden];
        attention.back((own, self), &trace, &d_attended, &mut d_normed, gradients);
        if let Some(norm) = &layer.attn_norm {
            norm.back(x, hidden, 1, &mut d_normed, gradients);
        }
        vector::add_scaled(&mut dy, 1.0, &d_normed);
        if layer.parallel {
            vector::add_scaled(&mut dy, 1.0, &d_read);
        }
        Ok(dy)
    }

    /// From the gradient `d` (`[n, vocab]`, used up) at the `logits` that [`Engine::head`] made of `hidden` to that at `hidden`
    /// (`[n, hidden]`).
    pub fn reverse_head(
        &self,
        hidden: &[f32],
        logits: &[f32],
        d: &mut [f32],
        gradients: &mut dyn Gradients,
    ) -> Vec<f32> {
        let c = &self.config;
        if let Some(cap) = c.logit_softcap {
            let pairs = d.par_iter_mut().zip(logits.par_iter());
            pairs.with_min_len(1 << 12).for_each(|(d, y)| *d *= 1.0 - (y / cap) * (y / cap));
        }
        if c.logit_scale != 1.0 {
            let scale = if c.logit_scale_divides { 1.0 / c.logit_scale } else { c.logit_scale };
            vector::scale(d, scale);
        }
        let normed = self.head_input(hidden);
        let mut dx = vec![0.0; hidden.len()];
        self.output.as_ref().unwrap_or(&self.embedding).back(&normed, d, &mut dx, gradients);
        if let Some(norm) = &self.output_norm {
            norm.back(hidden, c.hidden, 1, &mut dx, gradients);
        }
        dx
    }

    /// The end of the reverse pass: `dx` is the gradient at what [`Engine::embed`] made of `tokens`.
    pub fn reverse_embedding(&self, tokens: &[u32], mut dx: Vec<f32>, gradients: &mut dyn Gradients) {
        if self.config.embedding_scale != 1.0 {
            vector::scale(&mut dx, self.config.embedding_scale);
        }
        gradients.lookup(&self.embedding.name, tokens, &dx);
    }

    /// Weights of the norms in memory, by their GGUF names: of all layers, and in front of the head.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        let layers = self.layers.iter_mut().flatten().flat_map(|layer| {
            let joints = [&mut layer.after_attn, &mut layer.after_ffn];
            let joints = joints.into_iter().flat_map(|joint| joint.result.iter_mut().chain(&mut joint.sum));
            let heads = layer.mixers.iter_mut().flat_map(|(mixer, _)| match mixer {
                Mixer::Attention(a) => vec![a.q_norm.as_mut(), a.k_norm.as_mut()],
                _ => Vec::new(),
            });
            layer.attn_norm.iter_mut().chain(&mut layer.ffn_norm).chain(joints).chain(heads.flatten())
        });
        let all = layers.chain(&mut self.output_norm).filter(|norm| !norm.name.is_empty());
        all.map(|norm| (norm.name.as_str(), norm.weight.as_mut_slice()))
    }
}
