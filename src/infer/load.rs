//! Layers out of a checkpoint: which matrices and norms a block has is told by its tensors, what is done with them by the
//! configuration.

use super::altup::AltUp;
use super::block::{Both, Joint, Layer, Mixer, Mlp};
use super::carried::LayerVector;
use super::channel_delta::ChannelDelta;
use super::chosen::Indexer;
use super::experts::{Experts, SharedExpert};
use super::heads::Attention;
use super::latent::{Expand, Latent};
use super::lightning::Lightning;
use super::ngrams::Ngrams;
use super::norm::Norm;
use super::recurrent::{Conv, Delta, Mamba, Mamba2, ShortConv};
use super::streams::{Between, Mix};
use super::weights::Loader;
use super::{FeedForward, Linear};
use crate::model::Model;
use crate::model::config::{self, Activation, Config, Early, Gate, LayerConfig, Mixer as Mixes};
use crate::{Error, Result};

/// The tensors of one block.
struct Block<'a> {
    loader: &'a Loader<'a>,
    c: &'a Config,
    index: usize,
}

impl Loader<'_> {
    pub(super) fn layer(&self, model: &Model, index: usize) -> Result<Layer> {
        let c = &model.config;
        let block = Block { loader: self, c, index };
        let described = c.layers.get(index);
        let described = described.ok_or_else(|| Error::Internal(format!("there is no layer {index}")))?;
        let layer = block.layer(described)?;
        match self.unused(&block.name("")) {
            Some(name) => {
                Err(Error::unsupported("is no part of what is known of this architecture, so the model cannot be run")
                    .tensor(name))
            }
            None => Ok(layer),
        }
    }
}

impl Block<'_> {
    fn name(&self, stem: &str) -> String {
        format!("blk.{}.{stem}", self.index)
    }

    fn has(&self, stem: &str) -> bool {
        self.loader.has(&self.name(stem))
    }

    fn shape(&self, stem: &str) -> Option<&[usize]> {
        self.loader.shape(&self.name(stem))
    }

    fn linear(&self, stem: &str, rows: usize, cols: usize) -> Result<Linear> {
        self.loader.linear(&self.name(stem), rows, cols)
    }

    fn numbers(&self, stem: &str, len: usize) -> Result<Vec<f32>> {
        self.loader.numbers(&self.name(stem), len)
    }

    fn optional(&self, stem: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.loader.optional(&self.name(stem), len)
    }

    /// A norm over rows of `len`, where the block has it.
    fn norm(&self, stem: &str, len: usize) -> Result<Option<Norm>> {
        // Falcon-H1's converter writes one name without its last part.
        if self.has(stem) {
            let weight = self.numbers(stem, len)?;
            let (name, kind, eps) = (self.name(stem), self.c.norm, self.c.norm_eps);
            return Ok(Some(Norm { name, kind, weight, by_head: false, bias: None, eps }));
        }
        let there = self.has(&format!("{stem}.weight"));
        there.then(|| self.loader.norm(self.c, &self.name(stem), len)).transpose()
    }

    fn layer(&self, described: &LayerConfig) -> Result<Layer> {
        let (c, hidden, names) = (self.c, self.c.hidden, self.c.norms);
        let mixers = [Some(&described.mixer), described.beside.as_ref()].into_iter().flatten();
        let mixers = mixers.filter_map(|own| self.mixer(own).transpose()).collect::<Result<Vec<_>>>()?;
        let wiring = described.wiring;
        // A block of one part has one norm, under the name of either.
        let alone = mixers.is_empty();
        let first = alone && self.has(&format!("{}.weight", names.attn));
        let before = |stem: &str, wanted: bool| match (wanted, c.weightless_norms) {
            (true, true) => Ok(Some(self.loader.weightless(c))),
            (true, false) => self.norm(stem, hidden),
            (false, _) => Ok(None),
        };
        let after = |stem: &str| -> Result<Option<Norm>> {
            let norm = if wiring.post_norm { self.norm(stem, hidden)? } else { None };
            Ok(norm.map(|norm| Norm { eps: c.post_norm_eps.unwrap_or(norm.eps), ..norm }))
        };
        let joint = |read: &str, result: &str, sum: &str| -> Result<Joint> {
            let onto = match c.norm_residual {
                Some(factor) => Some((self.loader.norm(c, &self.name(read), hidden)?, factor)),
                None => None,
            };
            let sum = if sum.is_empty() { None } else { Some(self.loader.norm(c, &self.name(sum), hidden)?) };
            Ok(Joint { onto, result: after(result)?, sum })
        };
        Ok(Layer {
            attn_norm: before(names.attn, wiring.pre_norm && !alone)?,
            mixers,
            after_attn: joint(names.attn, names.post_attn, names.attn_sum)?,
            ffn_norm: before(if first { names.attn } else { names.ffn }, wiring.pre_norm)?,
            mlp: self.mlp(&described.ffn)?,
            after_ffn: joint(names.ffn, names.post_ffn, names.ffn_sum)?,
            parallel: wiring.parallel,
            early: described.ffn.early,
            streams: self.streams()?,
            ngrams: self.ngrams()?,
            vector: self.vector(described)?,
            scale: self.optional("layer_output_scale.weight", 1)?.and_then(|v| v.first().copied()),
        })
    }

    /// How both parts of the block read and write several residual streams.
    fn streams(&self) -> Result<Option<Between>> {
        let Some(own) = &self.c.streams else { return Ok(None) };
        let weights = match own.mixing {
            config::Mixing::Sinkhorn { .. } => (2 + own.count) * own.count,
            config::Mixing::Apart { .. } => 2 * own.count,
            config::Mixing::Gated => {
                let mix = |stem: &str| self.loader.gated_mix(self.c, &self.name(stem));
                return Ok(Some(Between::Gated(Box::new([mix("hc_attn")?, mix("hc_ffn")?]))));
            }
            config::Mixing::AltUp => return Ok(Some(Between::AltUp(Box::new(self.altup(own.count)?)))),
        };
        let mix = |stem: &str| -> Result<Mix> {
            let mix = self.loader.mix(&self.name(stem))?;
            let kinds = if weights > 2 * own.count { 3 } else { 2 };
            if (mix.weigh.out(), mix.weigh.weight.cols(), mix.scale.len())
                != (weights, own.count * self.c.hidden, kinds)
            {
                return Err(Error::bad_input(format!("'{}' does not weigh {} streams", self.name(stem), own.count)));
            }
            Ok(mix)
        };
        Ok(Some(Between::Mixed(Box::new([mix("hc_attn")?, mix("hc_ffn")?]))))
    }

    fn ngrams(&self) -> Result<Option<Box<Ngrams>>> {
        let Some(own) = self.c.ngrams.as_ref().filter(|own| own.layer == self.index) else { return Ok(None) };
        let (hidden, count) = (self.c.hidden, self.c.streams.map_or(1, |streams| streams.count));
        let (wide, width) = (count * hidden, (own.size - 1) * own.heads * own.width);
        let norm = |stem: &str| self.loader.norm(self.c, &self.name(stem), wide);
        let conv = self.shape("ple_conv1d.weight").map_or(0, |shape| shape.iter().product());
        if conv == 0 || !conv.is_multiple_of(wide) {
            return Err(Error::bad_input(format!("'{}' does not fit {wide} channels", self.name("ple_conv1d.weight"))));
        }
        Ok(Some(Box::new(Ngrams {
            key: self.linear("ple_key", wide, width)?,
            value: self.linear("ple_value", hidden, width)?,
            norm_key: norm("ple_norm_key")?,
            norm_query: norm("ple_norm_query")?,
            norm_conv: norm("ple_norm_conv")?,
            conv: Conv { gap: own.size, ..self.conv("ple_conv1d", wide, conv / wide)? },
        })))
    }

    fn altup(&self, count: usize) -> Result<AltUp> {
        let hidden = self.c.hidden;
        let rank = self.shape("laurel_l.weight").and_then(|shape| shape.first().copied()).unwrap_or(0);
        Ok(AltUp {
            router: self.linear("altup_router", count, hidden)?,
            router_norm: self.loader.norm(self.c, &self.name("altup_router_norm"), hidden)?,
            predict: self.linear("altup_predict_coef", count * count, count)?,
            correct: self.linear("altup_correct_coef", count, count)?,
            scale: self.numbers("altup_correct_scale.weight", hidden)?,
            narrow: [self.linear("laurel_l", rank, hidden)?, self.linear("laurel_r", hidden, rank)?],
            narrow_norm: self.loader.norm(self.c, &self.name("laurel_post_norm"), hidden)?,
        })
    }

    /// How the block adds each token's vector for it.
    fn vector(&self, described: &LayerConfig) -> Result<Option<LayerVector>> {
        let (hidden, width) = (self.c.hidden, self.c.per_layer);
        let Some(dense) = described.ffn.dense.as_ref().filter(|_| width > 0) else { return Ok(None) };
        Ok(Some(LayerVector {
            gate: self.linear("inp_gate", width, hidden)?,
            project: self.linear("proj", hidden, width)?,
            norm: self.loader.norm(self.c, &self.name("post_norm"), hidden)?,
            activation: dense.activation,
        }))
    }

    fn mixer(&self, own: &Mixes) -> Result<Option<(Mixer, Linear)>> {
        let hidden = self.c.hidden;
        let (mixer, stem, width) = match own {
            Mixes::Attention(heads) => {
                (Mixer::Attention(Box::new(self.attention(heads)?)), "attn_output", heads.out_width())
            }
            Mixes::Latent(own) => {
                (Mixer::Latent(Box::new(self.latent(own)?)), "attn_output", own.heads * own.value_dim)
            }
            Mixes::Delta(own) => (Mixer::Delta(Box::new(self.delta(own)?)), "ssm_out", own.value_heads * own.value_dim),
            Mixes::ChannelDelta(own) => {
                (Mixer::ChannelDelta(Box::new(self.channel_delta(own)?)), "attn_output", own.heads * own.dim)
            }
            Mixes::Lightning(own) => {
                let width = own.rates.len() * own.dim;
                // Their norm has an epsilon of its own.
                let norm = Norm { eps: 1e-6, ..self.loader.norm(self.c, &self.name("attn_norm_2"), width)? };
                let (qkv, gate) =
                    (self.linear("attn_qkv", 3 * width, hidden)?, self.linear("attn_gate", width, hidden)?);
                (Mixer::Lightning(Box::new(Lightning { qkv, gate, norm })), "attn_output", width)
            }
            Mixes::Mamba(own) => (Mixer::Mamba(Box::new(self.mamba(own)?)), "ssm_out", own.inner),
            Mixes::Mamba2(own) => (Mixer::Mamba2(Box::new(self.mamba2(own)?)), "ssm_out", own.inner),
            Mixes::ShortConv(own) => {
                let into = self.linear("shortconv.in_proj", 3 * hidden, hidden)?;
                let conv = self.conv("shortconv.conv", hidden, own.kernel)?;
                (Mixer::ShortConv(ShortConv { into, conv }), "shortconv.out_proj", hidden)
            }
            Mixes::None => return Ok(None),
        };
        Ok(Some((mixer, self.linear(stem, hidden, width)?)))
    }

    fn attention(&self, heads: &config::Heads) -> Result<Attention> {
        let hidden = self.c.hidden;
        let (q, k, v) = (heads.q_width(), heads.k_width(), heads.v_width());
        let shares = heads.peculiar.shared.is_some();
        let keys_are_values = !shares && !self.has("attn_qkv.weight") && !self.has("attn_v.weight");
        let qkv = match self.has("attn_qkv.weight") {
            _ if shares => vec![self.linear("attn_q", q, hidden)?],
            true => vec![self.linear("attn_qkv", q + k + v, hidden)?],
            false => {
                let queries = if heads.peculiar.gate == Gate::InQuery { 2 * q } else { q };
                let mut all = vec![self.linear("attn_q", queries, hidden)?, self.linear("attn_k", k, hidden)?];
                if !keys_are_values {
                    all.push(self.linear("attn_v", v, hidden)?);
                }
                all
            }
        };
        let head_norm = |stem: &str| -> Result<Option<Norm>> {
            let Some(shape) = self.shape(&format!("{stem}.weight")) else { return Ok(None) };
            let by_head = shape.len() > 1;
            let norm = self.norm(stem, shape.iter().product())?;
            Ok(norm.map(|norm| Norm { by_head, ..norm }))
        };
        Ok(Attention {
            qkv,
            keys_are_values,
            gate: self.gate()?,
            q_norm: head_norm("attn_q_norm")?,
            k_norm: head_norm("attn_k_norm")?,
            sinks: self.optional("attn_sinks.weight", heads.q)?,
            out_norm: self.norm("attn_sub_norm", heads.out_width())?,
            indexer: heads.peculiar.chosen.as_ref().map(|own| self.plain_indexer(own)).transpose()?,
        })
    }

    fn latent(&self, own: &config::Latent) -> Result<Latent> {
        let (hidden, c) = (self.c.hidden, self.c);
        let &config::Latent { heads, nope, rotated, value_dim, rank, .. } = own;
        let all = heads * (nope + rotated);
        let narrow = self.shape("attn_q_a.weight").map(|shape| shape[0]);
        let q = match narrow {
            Some(width) => vec![self.linear("attn_q_a", width, hidden)?, self.linear("attn_q_b", all, width)?],
            None => vec![self.linear("attn_q", all, hidden)?],
        };
        let b = match self.has("attn_kv_b.weight") && !self.has("attn_k_b.weight") {
            true => Expand::Whole(self.linear("attn_kv_b", heads * (nope + value_dim), rank)?),
            false => Expand::Absorbed {
                k: self.linear("attn_k_b", heads * rank, nope)?,
                v: self.linear("attn_v_b", heads * value_dim, rank)?,
            },
        };
        Ok(Latent {
            q,
            q_norm: narrow.map(|width| self.norm("attn_q_a_norm", width)).transpose()?.flatten(),
            kv_a: self.linear("attn_kv_a_mqa", rank + rotated, hidden)?,
            kv_norm: self.loader.norm(c, &self.name("attn_kv_a_norm"), rank)?,
            k_norm: self.norm("attn_k_norm", rotated)?,
            b,
            gate: self.gate()?,
            sinks: self.optional("attn_sinks.weight", heads)?,
            indexer: match &own.chosen {
                Some(config::Chosen::ByIndexer(own)) => Some(self.indexer(own, narrow)?),
                _ => None,
            },
        })
    }

    /// One whose queries are made from the stream, and whose keys are averaged.
    fn plain_indexer(&self, own: &config::Indexer) -> Result<Indexer> {
        let norm = |stem: &str| -> Result<Norm> {
            let norm = self.loader.norm(self.c, &self.name(stem), own.dim)?;
            Ok(Norm { kind: config::Norm::Rms, ..norm })
        };
        Ok(Indexer {
            q: self.linear("indexer.q_proj", own.heads * own.dim, self.c.hidden)?,
            q_norm: Some(norm("indexer.q_norm")?),
            k: self.linear("indexer.k_proj", own.dim, self.c.hidden)?,
            k_norm: norm("indexer.k_norm")?,
            weigh: None,
            pool: None,
        })
    }

    fn indexer(&self, own: &config::Indexer, narrow: Option<usize>) -> Result<Indexer> {
        let hidden = self.c.hidden;
        let narrow = narrow.ok_or_else(|| Error::unsupported("an indexer beside queries without a narrow vector"))?;
        let k_norm = self.loader.norm(self.c, &self.name("indexer.k_norm"), own.dim)?;
        let pool = |pools: &config::Pools| -> Result<(Linear, Vec<f32>)> {
            let places = self.numbers("indexer_compressor_ape.weight", pools.size * own.dim)?;
            Ok((self.linear("indexer_compressor_gate", own.dim, hidden)?, places))
        };
        Ok(Indexer {
            q: self.linear("indexer.attn_q_b", own.heads * own.dim, narrow)?,
            k: self.linear("indexer.attn_k", own.dim, hidden)?,
            k_norm: Norm { kind: config::Norm::Layer, eps: own.norm_eps, ..k_norm },
            q_norm: None,
            weigh: Some(self.linear("indexer.proj", own.heads, hidden)?),
            pool: own.pools.as_ref().map(pool).transpose()?,
        })
    }

    fn gate(&self) -> Result<Option<Linear>> {
        let gate = |shape: &[usize]| self.linear("attn_gate", shape[0], self.c.hidden);
        self.shape("attn_gate.weight").map(gate).transpose()
    }

    fn conv(&self, stem: &str, channels: usize, kernel: usize) -> Result<Conv> {
        let weight = self.numbers(&format!("{stem}.weight"), channels * kernel)?;
        Ok(Conv { weight, bias: self.optional(&format!("{stem}.bias"), channels)?, kernel, gap: 1 })
    }

    fn delta(&self, own: &config::Delta) -> Result<Delta> {
        let hidden = self.c.hidden;
        let (keys, values) = (own.key_heads * own.key_dim, own.value_heads * own.value_dim);
        let heads = own.value_heads;
        let rates = match self.has("ssm_ba.weight") {
            true => vec![self.linear("ssm_ba", 2 * heads, hidden)?],
            false => vec![self.linear("ssm_alpha", heads, hidden)?, self.linear("ssm_beta", heads, hidden)?],
        };
        Ok(Delta {
            qkv: self.linear("attn_qkv", 2 * keys + values, hidden)?,
            gate: self.linear("attn_gate", values, hidden)?,
            rates,
            conv: self.conv("ssm_conv1d", 2 * keys + values, own.kernel)?,
            a: self.numbers("ssm_a", heads)?,
            dt_bias: self.numbers("ssm_dt.bias", heads)?,
            norm: self.loader.norm(self.c, &self.name("ssm_norm"), own.value_dim)?,
        })
    }

    fn channel_delta(&self, own: &config::ChannelDelta) -> Result<ChannelDelta> {
        let (hidden, width) = (self.c.hidden, own.heads * own.dim);
        let mut conv = self.conv("ssm_conv1d_q", width, own.kernel)?;
        for stem in ["ssm_conv1d_k", "ssm_conv1d_v"] {
            conv.weight.extend(self.conv(stem, width, own.kernel)?.weight);
        }
        let narrow = |first: &str, second: &str| -> Result<Vec<Linear>> {
            let rows = self.shape(&format!("{first}.weight")).and_then(|shape| shape.first().copied()).unwrap_or(width);
            let mut all = vec![self.linear(first, rows, hidden)?];
            if self.has(&format!("{second}.weight")) {
                all.push(self.linear(second, width, rows)?);
            }
            if all.last().is_some_and(|last| last.out() != width) {
                return Err(Error::bad_input(format!("'{}' leads to {rows} channels, not {width}", self.name(first))));
            }
            Ok(all)
        };
        let mut norm = self.loader.norm(self.c, &self.name("ssm_norm"), own.dim)?;
        norm.kind = config::Norm::Rms;
        Ok(ChannelDelta {
            qkv: ["attn_q", "attn_k", "attn_v"]
                .map(|s| self.linear(s, width, hidden))
                .into_iter()
                .collect::<Result<_>>()?,
            conv,
            decay: narrow("ssm_f_a", "ssm_f_b")?,
            gate: narrow("ssm_g_a", "ssm_g_b")?,
            write: self.linear("ssm_beta", own.heads, hidden)?,
            a: self.numbers("ssm_a", own.heads)?,
            dt_bias: self.numbers("ssm_dt.bias", width)?,
            norm,
        })
    }

    fn mamba(&self, own: &config::Mamba) -> Result<Mamba> {
        let hidden = self.c.hidden;
        let norms = [("ssm_dt_norm", own.rank), ("ssm_b_norm", own.state), ("ssm_c_norm", own.state)];
        let norms = norms.map(|(stem, len)| self.norm(stem, len));
        let [dt, b, c] = norms;
        let norms = match (dt?, b?, c?) {
            (Some(dt), Some(b), Some(c)) => Some([dt, b, c]),
            _ => None,
        };
        Ok(Mamba {
            into: self.linear("ssm_in", 2 * own.inner, hidden)?,
            conv: self.conv("ssm_conv1d", own.inner, own.kernel)?,
            x: self.linear("ssm_x", own.rank + 2 * own.state, own.inner)?,
            dt: self.linear("ssm_dt", own.inner, own.rank)?,
            norms,
            a: self.numbers("ssm_a", own.inner * own.state)?,
            d: self.numbers("ssm_d", own.inner)?,
        })
    }

    fn mamba2(&self, own: &config::Mamba2) -> Result<Mamba2> {
        let channels = own.inner + 2 * own.groups * own.state;
        let norm = self.norm("ssm_norm", own.inner)?;
        Ok(Mamba2 {
            into: self.linear("ssm_in", own.inner + channels + own.heads, self.c.hidden)?,
            conv: self.conv("ssm_conv1d", channels, own.kernel)?,
            dt_bias: self.numbers("ssm_dt.bias", own.heads)?,
            a: self.numbers("ssm_a", own.heads)?,
            d: self.numbers("ssm_d", own.heads)?,
            norm,
        })
    }

    fn mlp(&self, ffn: &config::Ffn) -> Result<Mlp> {
        let dense = ffn.dense.as_ref().map(|d| -> Result<FeedForward> {
            Ok(FeedForward {
                cutoff: d.cutoff,
                norm: self.norm("ffn_sub_norm", d.width)?,
                ..self.feed_forward("", d.width, d.gated, d.activation)?
            })
        });
        let experts = ffn.experts.as_ref().map(|e| self.experts(e));
        let norm = |stem: &str| self.norm(stem, self.c.hidden);
        let pre = if ffn.early == Early::Experts { "ffn_norm_exps" } else { "pre_ffw_norm_2" };
        Ok(match (dense.transpose()?, experts.transpose()?) {
            (Some(dense), Some(experts)) => Mlp::Both(Box::new(Both {
                dense,
                dense_post: norm("post_ffw_norm_1")?,
                experts_pre: norm(pre)?,
                experts,
                experts_post: norm("post_ffw_norm_2")?,
                scale: ffn.scale,
            })),
            (Some(dense), None) => Mlp::Dense(Box::new(dense)),
            (None, Some(experts)) => Mlp::Experts(Box::new(experts)),
            (None, None) => Mlp::None,
        })
    }

    /// The feed-forward block whose tensors are called `ffn_gate{suffix}` and so on.
    fn feed_forward(&self, suffix: &str, width: usize, gated: bool, activation: Activation) -> Result<FeedForward> {
        let hidden = self.c.hidden;
        let part = |stem: &str, rows: usize, cols: usize| self.linear(&format!("{stem}{suffix}"), rows, cols);
        let gate_up = match (gated, self.has(&format!("ffn_gate{suffix}.weight"))) {
            (true, true) => vec![part("ffn_gate", width, hidden)?, part("ffn_up", width, hidden)?],
            (true, false) => vec![part("ffn_up", 2 * width, hidden)?],
            (false, _) => vec![part("ffn_up", width, hidden)?],
        };
        let down = part("ffn_down", hidden, width)?;
        Ok(FeedForward { gate_up, gated, down, width, activation, cutoff: None, norm: None })
    }

    fn experts(&self, sizes: &config::Experts) -> Result<Experts> {
        let hidden = self.c.hidden;
        let (count, width) = (sizes.count, sizes.ffn);
        let shared = sizes.shared_ffn.map(|width| {
            let gate = "ffn_gate_inp_shexp.weight";
            let up = self.shape("ffn_up_shexp.weight").and_then(|shape| shape.first());
            let gated = self.has("ffn_gate_shexp.weight") || up == Some(&(2 * width));
            let expert =
                self.feed_forward("_shexp", width, gated, sizes.shared_activation.unwrap_or(sizes.activation))?;
            Ok::<_, Error>(SharedExpert { gate: self.optional(gate, hidden)?, name: self.name(gate), expert })
        });
        let latent = self.shape("ffn_latent_down.weight").map(|shape| shape[0]);
        let inner = latent.unwrap_or(hidden);
        let fused = self.has("ffn_gate_up_exps.weight");
        let gated = fused || self.has("ffn_gate_exps.weight");
        let up = |stem: &str, rows: usize| self.linear(stem, rows, inner);
        let gate_up = match (fused, gated) {
            (true, _) => vec![up("ffn_gate_up_exps", count * 2 * width)?],
            (false, true) => vec![up("ffn_gate_exps", count * width)?, up("ffn_up_exps", count * width)?],
            (false, false) => vec![up("ffn_up_exps", count * width)?],
        };
        let correction = ["exp_probs_b.bias", "exp_probs_b.weight", "exp_probs_b"];
        let correction = correction.into_iter().find(|stem| self.has(stem));
        let scaled = |scale: Vec<f32>| scale.into_iter().map(|w| w / (hidden as f32).sqrt()).collect();
        Ok(Experts {
            router: self.linear("ffn_gate_inp", count, hidden)?,
            router_scale: self.optional("ffn_gate_inp.scale", hidden)?.map(scaled),
            correction: correction.map(|stem| self.numbers(stem, count)).transpose()?,
            each: FeedForward {
                gate_up,
                gated,
                down: self.linear("ffn_down_exps", count * inner, width)?,
                width,
                activation: sizes.activation,
                cutoff: None,
                norm: None,
            },
            latent: match latent {
                Some(n) => Some([self.linear("ffn_latent_down", n, hidden)?, self.linear("ffn_latent_up", hidden, n)?]),
                None => None,
            },
            count,
            used: sizes.used,
            norm_topk: sizes.norm_topk,
            routing: sizes.routing.clone(),
            shared: shared.transpose()?,
            eps: self.c.norm_eps,
        })
    }
}
