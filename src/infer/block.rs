//! One block: its mixer and its feed-forward part with their norms, and how both are joined with the residual stream.

use super::attention::Cache;
use super::carried::LayerVector;
use super::channel_delta::ChannelDelta;
use super::experts::Experts;
use super::lightning::Lightning;
use super::linear::{FeedForward, Inner, Linear, sized};
use super::ngrams::Ngrams;
use super::norm::{Norm, ROWS_PER_TASK};
use super::streams::Between;
use super::{Batch, Engine, Observer, heads, latent, recurrent};
use crate::kernel::{Output, vector};
use crate::model::config::{Early, Mixer as Mixes};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// Working memory of a batch, kept from layer to layer and from batch to batch: fresh pages from the system for every
/// step would cost more than the steps between the products.
#[derive(Default)]
pub(super) struct Buffers {
    pub normed: Vec<f32>,
    pub qkv: Vec<f32>,
    pub packed_keys: Vec<f32>,
    pub attended: Vec<f32>,
    pub result: Vec<f32>,
    /// What enters the feed-forward half of a layer whose halves lie side by side, or what entered the layer.
    pub beside: Vec<f32>,
    pub inner: Inner,
}

pub(super) enum Mlp {
    Dense(Box<FeedForward>),
    Experts(Box<Experts>),
    Both(Box<Both>),
    None,
}

/// A dense block and experts side by side, between norms of their own where they have some (Gemma 4, Arctic).
pub(super) struct Both {
    pub dense: FeedForward,
    pub dense_post: Option<Norm>,
    /// `None`: experts read what the dense block does.
    pub experts_pre: Option<Norm>,
    pub experts: Experts,
    pub experts_post: Option<Norm>,
    pub scale: Option<f32>,
}

pub(super) enum Mixer {
    Attention(Box<heads::Attention>),
    Latent(Box<latent::Latent>),
    Delta(Box<recurrent::Delta>),
    Mamba(Box<recurrent::Mamba>),
    Mamba2(Box<recurrent::Mamba2>),
    ShortConv(recurrent::ShortConv),
    ChannelDelta(Box<ChannelDelta>),
    Lightning(Box<Lightning>),
}

impl Mixer {
    /// In the order of use.
    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Mixer::Attention(a) => {
                let indexer = a.indexer.iter_mut().flat_map(|indexer| indexer.linears_mut());
                a.qkv.iter_mut().chain(&mut a.gate).chain(indexer).collect()
            }
            Mixer::Latent(l) => {
                let b = match &mut l.b {
                    latent::Expand::Absorbed { k, v } => vec![k, v],
                    latent::Expand::Whole(b) => vec![b],
                };
                let indexer = l.indexer.iter_mut().flat_map(|indexer| indexer.linears_mut());
                l.q.iter_mut().chain(&mut l.gate).chain([&mut l.kv_a]).chain(indexer).chain(b).collect()
            }
            Mixer::Delta(d) => [&mut d.qkv, &mut d.gate].into_iter().chain(&mut d.rates).collect(),
            Mixer::Mamba(m) => vec![&mut m.into, &mut m.x, &mut m.dt],
            Mixer::Mamba2(m) => vec![&mut m.into],
            Mixer::ShortConv(c) => vec![&mut c.into],
            Mixer::ChannelDelta(d) => d.linears_mut().collect(),
            Mixer::Lightning(l) => vec![&mut l.qkv, &mut l.gate],
        }
    }
}

/// A batch on its way through a mixer, and the working memory for it.
pub(super) struct Call<'a> {
    pub engine: &'a Engine,
    pub index: usize,
    pub batch: Batch,
    /// Tokens of all sequences, and of each.
    pub rows: usize,
    pub n: usize,
    /// `[rows, hidden]`.
    pub normed: &'a [f32],
    pub cache: &'a mut Cache,
    pub qkv: &'a mut Vec<f32>,
    pub packed_keys: &'a mut Vec<f32>,
    /// What enters the output matrix: of all rows those that are wanted.
    pub attended: &'a mut Vec<f32>,
    /// What goes with the tokens, `[rows, carried]`.
    pub carried: &'a mut [f32],
}

impl Call<'_> {
    /// Of `all` (`[rows, width]`) the rows that are wanted.
    pub fn keep_wanted(&mut self, all: &[f32], width: usize) {
        let left = self.n - self.batch.from;
        let kept = sized(self.attended, self.batch.sequences * left * width);
        let all = all.chunks_exact(width).enumerate().filter(|(row, _)| row % self.n >= self.batch.from);
        kept.chunks_exact_mut(width).zip(all).for_each(|(kept, (_, row))| kept.copy_from_slice(row));
    }
}

/// How a part's result joins the stream.
pub(super) struct Joint {
    /// The norm of the stream, and a factor, that it goes on from (MiniMax-01); `None`: from the stream as it was.
    pub onto: Option<(Norm, f32)>,
    /// The norm on the result (gemma2, gemma3).
    pub result: Option<Norm>,
    /// That on the stream, once the result was added (BERT).
    pub sum: Option<Norm>,
}

pub(super) struct Layer {
    /// `None`: the part reads the stream as it is.
    pub attn_norm: Option<Norm>,
    /// What mixes tokens, each with its last matrix; results are added up.
    pub mixers: Vec<(Mixer, Linear)>,
    pub after_attn: Joint,
    pub ffn_norm: Option<Norm>,
    pub mlp: Mlp,
    pub after_ffn: Joint,
    /// Mixer and feed-forward read the same stream.
    pub parallel: bool,
    pub early: Early,
    /// How both parts read and write the residual streams, where there are several.
    pub streams: Option<Between>,
    pub ngrams: Option<Box<Ngrams>>,
    /// Adds each token's vector for the layer (Gemma 4 E).
    pub vector: Option<LayerVector>,
    /// What leaves the layer is multiplied by this (Gemma 4).
    pub scale: Option<f32>,
}

impl Layer {
    /// In the order of use.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let mixers = self.mixers.iter_mut().flat_map(|(mixer, output)| mixer.linears_mut().into_iter().chain([output]));
        let mlp: Vec<&mut Linear> = match &mut self.mlp {
            Mlp::Dense(mlp) => mlp.linears_mut().collect(),
            Mlp::Experts(e) => e.linears_mut(),
            Mlp::Both(both) => both.dense.linears_mut().chain(both.experts.linears_mut()).collect(),
            Mlp::None => Vec::new(),
        };
        let vector = self.vector.iter_mut().flat_map(|v| [&mut v.gate, &mut v.project]);
        let streams = self.streams.iter_mut().flat_map(Between::linears_mut);
        let ngrams = self.ngrams.iter_mut().flat_map(|ngrams| ngrams.linears_mut());
        ngrams.chain(mixers).chain(mlp).chain(vector).chain(streams)
    }
}

impl Engine {
    /// Attention of several sequences that begin after the tokens in `cache`; of `x` only the rows from `batch.from` on
    /// of each sequence are left.
    pub(super) fn attention_of(
        &self,
        index: usize,
        x: &mut Vec<f32>,
        carried: &mut [f32],
        batch: Batch,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let layer = self.loaded(index)?;
        let (hidden, first) = (self.config.hidden, cache.len());
        let rows = x.len() / hidden;
        let n = rows / batch.sequences.max(1);
        if first + n > cache.capacity() {
            let what = format!("{} tokens do not fit the context of {}", first + n, cache.capacity());
            return Err(Error::bad_input(what));
        }
        let altup = layer.streams.as_ref().and_then(Between::altup);
        if altup.is_some_and(|altup| altup.predict(self, x, carried, observer).is_break()) {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(ngrams) = &layer.ngrams
            && ngrams.add(self, index, (x, carried), batch, cache, observer).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        let streams = layer.streams.as_ref().filter(|_| !layer.mixers.is_empty());
        let ControlFlow::Continue(entered) = self.enter(streams, 0, (x, carried), observer) else {
            return Ok(ControlFlow::Break(()));
        };
        let mut buffers = std::mem::take(&mut cache.buffers);
        let Buffers { normed, qkv, packed_keys, attended, result, beside, .. } = &mut buffers;
        let left = batch.sequences * (n - batch.from);
        let into = entered.as_ref().map_or(x.as_slice(), |entered| entered.x.as_slice());
        let into = match &layer.attn_norm {
            Some(norm) if !layer.mixers.is_empty() => {
                norm.rows(into, hidden, sized(normed, rows * hidden));
                &normed[..rows * hidden]
            }
            _ => into,
        };
        let result = sized(result, left * hidden);
        let mut run = ControlFlow::Continue(());
        for (i, (mixer, output)) in layer.mixers.iter().enumerate() {
            let mut call = Call {
                engine: self,
                index,
                batch,
                rows,
                n,
                normed: into,
                cache: &mut *cache,
                qkv: &mut *qkv,
                packed_keys: &mut *packed_keys,
                attended: &mut *attended,
                carried: &mut *carried,
            };
            run = self.mix(i, mixer, &mut call, observer)?;
            if run.is_break() {
                break;
            }
            let attended = &attended[..left * output.weight.cols()];
            if i == 0 {
                run = output.product(attended, Output::whole(result, hidden), observer);
            } else {
                let mut more = vec![0.0; left * hidden];
                run = output.product(attended, Output::whole(&mut more, hidden), observer);
                vector::add_scaled(result, 1.0, &more);
            }
            if run.is_break() {
                break;
            }
        }
        if run.is_continue() {
            if batch.from > 0 {
                for (i, row) in (0..rows).filter(|row| row % n >= batch.from).enumerate() {
                    x.copy_within(row * hidden..(row + 1) * hidden, i * hidden);
                }
                x.truncate(left * hidden);
            }
            if layer.early != Early::Nothing {
                sized(beside, x.len()).copy_from_slice(x);
            }
            if layer.parallel {
                let beside = sized(beside, x.len());
                match layer.ffn_norm.as_ref().or(layer.attn_norm.as_ref()) {
                    Some(norm) => norm.rows(x, hidden, beside),
                    None => beside.copy_from_slice(x),
                }
            }
            match &entered {
                Some(entered) => self.leave(entered, result, x, carried),
                None if layer.mixers.is_empty() => {}
                None => self.add(x, result, &layer.after_attn),
            }
            if let Some(altup) = altup {
                let read = &normed[..x.len()];
                run = altup.join(x, read, observer);
            }
        }
        cache.buffers = buffers;
        Ok(run)
    }

    /// What enters the last matrix of the `i`-th mixer of a layer, for the wanted rows.
    fn mix(&self, i: usize, mixer: &Mixer, call: &mut Call, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let described = self.config.layers.get(call.index);
        let described = described.and_then(|layer| if i == 0 { Some(&layer.mixer) } else { layer.beside.as_ref() });
        match (mixer, described) {
            (Mixer::Attention(mixer), Some(Mixes::Attention(own))) => mixer.mix(own, call, observer),
            (Mixer::Latent(mixer), Some(Mixes::Latent(own))) => mixer.mix(own, call, observer),
            (Mixer::Delta(mixer), Some(Mixes::Delta(own))) => mixer.mix(own, call, observer),
            (Mixer::ChannelDelta(mixer), Some(Mixes::ChannelDelta(own))) => mixer.mix(own, call, observer),
            (Mixer::Lightning(mixer), Some(Mixes::Lightning(own))) => mixer.mix(own, call, observer),
            (Mixer::Mamba(mixer), Some(Mixes::Mamba(own))) => mixer.mix(own, call, observer),
            (Mixer::Mamba2(mixer), Some(Mixes::Mamba2(own))) => mixer.mix(own, call, observer),
            (Mixer::ShortConv(mixer), Some(Mixes::ShortConv(_))) => mixer.mix(call, observer),
            _ => Err(Error::Internal(format!("layer {} is loaded as another kind", call.index))),
        }
    }

    pub(super) fn feed_forward_of(
        &self,
        index: usize,
        x: &mut [f32],
        carried: &mut [f32],
        batch: Batch,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> Result<ControlFlow<()>> {
        let layer = self.loaded(index)?;
        let hidden = self.config.hidden;
        let ControlFlow::Continue(entered) = self.enter(layer.streams.as_ref(), 1, (x, carried), observer) else {
            return Ok(ControlFlow::Break(()));
        };
        let mut buffers = std::mem::take(&mut cache.buffers);
        let Buffers { normed, result, inner, beside, .. } = &mut buffers;
        let (normed, result) = (sized(normed, x.len()), sized(result, x.len()));
        let stream = entered.as_ref().map_or(&*x, |entered| entered.x.as_slice());
        let into: &[f32] = match &layer.ffn_norm {
            _ if layer.parallel => &beside[..stream.len()],
            Some(norm) => {
                norm.rows(stream, hidden, normed);
                normed
            }
            None => stream,
        };
        let mut run = match &layer.mlp {
            Mlp::Dense(mlp) => mlp.forward(None, into, hidden, result, inner, observer),
            Mlp::Experts(mlp) => {
                let routed = if layer.early == Early::Router { &beside[..stream.len()] } else { into };
                mlp.forward(into, routed, hidden, result, inner, observer)
            }
            Mlp::Both(both) => {
                let read = if layer.early == Early::Experts { &beside[..stream.len()] } else { &*x };
                both.forward(into, read, hidden, result, inner, observer)
            }
            Mlp::None => ControlFlow::Continue(()),
        };
        match &entered {
            _ if run.is_break() || matches!(layer.mlp, Mlp::None) => {}
            Some(entered) => self.leave(entered, result, x, carried),
            None => self.add(x, result, &layer.after_ffn),
        }
        let altup = layer.streams.as_ref().and_then(Between::altup);
        if let Some(altup) = altup.filter(|_| run.is_continue()) {
            run = altup.correct(self, x, carried, observer);
        }
        if let Some(own_vector) = layer.vector.as_ref().filter(|_| run.is_continue()) {
            let n = carried.len() / self.carried.max(1) / batch.sequences.max(1);
            let wanted = carried.chunks_exact(self.carried.max(1)).enumerate();
            let wanted = wanted.filter(|(row, _)| row % n.max(1) >= batch.from).map(|(_, row)| row);
            let own = self.config.per_layer;
            let wanted = wanted.map(|row| &row[index * own..(index + 1) * own]);
            let more = match altup {
                Some(altup) => own_vector.of(&altup.scaled(x), wanted, observer),
                None => own_vector.of(x, wanted, observer),
            };
            match (more, altup) {
                (ControlFlow::Continue(more), Some(altup)) => altup.add_to_others(self, &more, carried),
                (ControlFlow::Continue(more), None) => vector::add_scaled(x, 1.0, &more),
                (ControlFlow::Break(()), _) => run = ControlFlow::Break(()),
            }
        }
        if let Some(scale) = layer.scale.filter(|_| run.is_continue()) {
            vector::scale(x, scale);
        }
        cache.buffers = buffers;
        Ok(run)
    }

    /// `x += result`, which is scaled where the family has a factor; both are normalised where it has a norm there.
    pub(super) fn add(&self, x: &mut [f32], result: &mut [f32], joint: &Joint) {
        let hidden = self.config.hidden;
        let rows = x.par_chunks_exact_mut(hidden).zip(result.par_chunks_exact_mut(hidden));
        rows.with_min_len(ROWS_PER_TASK).for_each(|(x, result)| {
            if let Some(norm) = &joint.result {
                norm.apply(result, 0);
            }
            if let Some((norm, factor)) = &joint.onto {
                norm.apply(x, 0);
                vector::scale(x, *factor);
            }
            vector::add_scaled(x, self.config.residual_scale, result);
            if let Some(norm) = &joint.sum {
                norm.apply(x, 0);
            }
        });
    }
}

impl Both {
    /// `x` is the stream normalised for the dense block, `stream` as it is where experts read it.
    fn forward(
        &self,
        x: &[f32],
        stream: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let run = self.dense.forward(None, x, hidden, out, inner, observer);
        let mut more = vec![0.0; x.len()];
        let mut own = Vec::new();
        let into = match &self.experts_pre {
            Some(norm) => {
                own.resize(x.len(), 0.0);
                norm.rows(stream, hidden, &mut own);
                own.as_slice()
            }
            None => x,
        };
        let routed = if self.experts.router_scale.is_some() { stream } else { into };
        self.experts.forward(into, routed, hidden, &mut more, inner, observer)?;
        for (out, more) in out.chunks_exact_mut(hidden).zip(more.chunks_exact_mut(hidden)) {
            self.dense_post.iter().for_each(|norm| norm.apply(out, 0));
            self.experts_post.iter().for_each(|norm| norm.apply(more, 0));
            vector::add_scaled(out, 1.0, more);
            self.scale.iter().for_each(|scale| vector::scale(out, *scale));
        }
        run
    }
}
