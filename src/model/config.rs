//! The hyper-parameters of a model, in one shape for every family, whether they come from `config.json` (see
//! `hf_config`) or from GGUF metadata (see `keys`). What may differ from layer to layer is said per layer. It holds
//! numbers and choices, no tensor names.

mod parts;

pub use parts::*;

use crate::{Error, Result};

/// Rotary embedding scaling, as `rope_scaling` / `rope_parameters` names it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions are divided.
    Linear {
        /// How much longer the context becomes.
        factor: f32,
    },
    /// Long wavelengths are stretched (Llama 3.1).
    Llama3 {
        /// How much longer the context becomes.
        factor: f32,
        /// Wavelengths above `original_context` by this are stretched whole.
        low_freq_factor: f32,
        /// Wavelengths below `original_context` by this stay.
        high_freq_factor: f32,
        /// Tokens that the model was first trained on.
        original_context: usize,
    },
    /// Blended by wavelength (Peng et al. 2023).
    Yarn {
        /// How much longer the context becomes.
        factor: f32,
        /// Tokens that the model was first trained on.
        original_context: usize,
        /// What cosines and sines are multiplied by; `None`: by the rule's own.
        attention_factor: Option<f32>,
        /// Turns over the context from which on frequencies stay.
        beta_fast: f32,
        /// Turns over the context up to which frequencies are divided.
        beta_slow: f32,
        /// The dimensions between which frequencies are blended are whole numbers.
        truncate: bool,
    },
    /// A factor for every frequency (Ding et al. 2024).
    LongRope {
        /// Factors within the original context, `[dims / 2]`.
        short: Vec<f32>,
        /// Factors beyond it, `[dims / 2]`.
        long: Vec<f32>,
        /// Tokens that the model was first trained on.
        original_context: usize,
        /// What cosines and sines are multiplied by; `None`: by the rule's own.
        attention_factor: Option<f32>,
    },
}

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Rotated dimensions per head (`partial_rotary_factor` applied).
    pub dims: usize,
    /// How they are changed for long contexts.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Divisors of the rotary frequencies after Llama 3's rule (transformers' `_compute_llama3_parameters`), `[dims / 2]`: 1
    /// for short wavelengths, `factor` for long ones, a blend between. Empty under another scaling.
    pub fn llama3_factors(&self) -> Vec<f32> {
        let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } =
            self.scaling
        else {
            return Vec::new();
        };
        let dims = self.dims as f32;
        let context = original_context as f32;
        (0..self.dims / 2)
            .map(|i| {
                let frequency = 1.0 / self.theta.powf((2 * i) as f32 / dims);
                // A number over a tensor is torch's reciprocal times the number: the last bit differs.
                let wavelength = frequency.recip() * (2.0 * std::f32::consts::PI);
                if wavelength < context / high {
                    1.0
                } else if wavelength > context / low {
                    factor
                } else {
                    let smooth = (wavelength.recip() * context - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    }
}

/// How a block's parts are joined with the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Norms in front of mixer and feed-forward.
    pub pre_norm: bool,
    /// Norms on their results, before these are added (gemma2, olmo2).
    pub post_norm: bool,
    /// Mixer and feed-forward read the same stream and are added together (phi, cohere).
    pub parallel: bool,
}

impl Wiring {
    /// A norm in front of each of the two parts, one after the other.
    pub const SEQUENTIAL: Wiring = Wiring { pre_norm: true, post_norm: false, parallel: false };
}

/// One block.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// What mixes tokens.
    pub mixer: Mixer,
    /// A second mixer that reads the same and whose result is added too (Falcon-H1).
    pub beside: Option<Mixer>,
    /// The feed-forward part.
    pub ffn: Ffn,
    /// Where norms stand, and how the parts are joined.
    pub wiring: Wiring,
}

impl LayerConfig {
    /// `None` where the block mixes tokens in another way.
    pub fn heads(&self) -> Option<&Heads> {
        match &self.mixer {
            Mixer::Attention(heads) => Some(heads),
            _ => None,
        }
    }

    /// Whether it reads only some of the positions.
    pub fn chooses(&self) -> bool {
        match &self.mixer {
            Mixer::Attention(heads) => heads.peculiar.chosen.is_some(),
            Mixer::Latent(latent) => latent.chosen.is_some(),
            _ => false,
        }
    }

    /// The same, to be changed.
    pub fn heads_mut(&mut self) -> Option<&mut Heads> {
        match &mut self.mixer {
            Mixer::Attention(heads) => Some(heads),
            _ => None,
        }
    }
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// By the root of the mean square.
    Rms,
    /// With the mean taken out (LayerNorm).
    Layer,
}

/// How GGUF calls the norms of a block, without `blk.N.`; a block need not have all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormNames {
    /// Before the mixer.
    pub attn: &'static str,
    /// Behind the mixer.
    pub post_attn: &'static str,
    /// Before the feed-forward part.
    pub ffn: &'static str,
    /// Behind the feed-forward part.
    pub post_ffn: &'static str,
    /// Norms of the stream itself, once the result of mixer or feed-forward was added (BERT).
    pub attn_sum: &'static str,
    /// The same behind the feed-forward part.
    pub ffn_sum: &'static str,
}

impl NormNames {
    /// Those of most architectures.
    pub const USUAL: NormNames = NormNames {
        attn: "attn_norm",
        post_attn: "post_attention_norm",
        ffn: "ffn_norm",
        post_ffn: "post_ffw_norm",
        ..NormNames::NONE
    };

    /// Those of BERT.
    pub const ON_SUMS: NormNames =
        NormNames { attn_sum: "attn_output_norm", ffn_sum: "layer_output_norm", ..NormNames::NONE };

    pub(super) const NONE: NormNames =
        NormNames { attn: "", post_attn: "", ffn: "", post_ffn: "", attn_sum: "", ffn_sum: "" };

    /// Whether what leaves the last layer is normalised already.
    pub fn are_on_sums(&self) -> bool {
        !self.ffn_sum.is_empty()
    }
}

/// Everything the converter, the planner and the forward pass need to know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The row of [`super::families`] this model belongs to, by its GGUF architecture name (`llama`, `qwen2moe`, ...).
    pub arch: String,
    /// In order.
    pub layers: Vec<LayerConfig>,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// `intermediate_size`: the width of feed-forward blocks without experts, which GGUF states even where there are none.
    pub ffn: usize,
    /// Rows of the embeddings.
    pub vocab: usize,
    /// Tokens of the longest context.
    pub context: usize,
    /// The kind of norm.
    pub norm: Norm,
    /// Its epsilon.
    pub norm_eps: f32,
    /// Rotary embeddings, of which layers name one. The first is the one that GGUF's `rope.*` keys state; the second, where
    /// there is one, belongs to the layers with a window.
    pub ropes: Vec<Rope>,
    /// Whether the head is the embeddings.
    pub tied_embeddings: bool,
    /// `tanh(x / cap) * cap` on logits (gemma2).
    pub logit_softcap: Option<f32>,
    /// Embedding rows are multiplied by this on look-up (`sqrt(hidden)` in the gemmas).
    pub embedding_scale: f32,
    /// What a block adds to the residual stream is multiplied by this (granite).
    pub residual_scale: f32,
    /// Logits are multiplied by this (cohere), or divided (granite, which states the divisor).
    pub logit_scale: f32,
    /// Whether logits are divided by it.
    pub logit_scale_divides: bool,
    /// Embeddings are normalised without weights.
    pub embedding_unit_norm: bool,
    /// The epsilon of norms on results, where it is another.
    pub post_norm_eps: Option<f32>,
    /// Norms without weights (OLMo).
    pub weightless_norms: bool,
    /// What its norms are called.
    pub norms: NormNames,
    /// The runtime rotates channels that are neighbours, not those half a head apart.
    pub pairs: bool,
    /// All channels of a head lie in pairs, although a part of them is rotated (files of Bamba).
    pub spread_pairs: bool,
    /// The stream goes on from what a part read, normalised, times this (MiniMax-01).
    pub norm_residual: Option<f32>,
    /// Channels of the vector that every token has for each layer (Gemma 4 E); 0: there is none.
    pub per_layer: usize,
    /// Residual streams beside each other.
    pub streams: Option<Streams>,
    /// Embeddings of runs of tokens.
    pub ngrams: Option<Ngrams>,
    /// Logits, or vectors of texts.
    pub ending: Ending,
    /// Of a classifier with two layers: the first is followed by GELU, not tanh.
    pub scores_by_gelu: bool,
}

impl Default for Config {
    /// Nothing is scaled; no sizes.
    fn default() -> Self {
        Config {
            arch: String::new(),
            layers: Vec::new(),
            hidden: 0,
            ffn: 0,
            vocab: 0,
            context: 0,
            norm: Norm::Rms,
            norm_eps: 0.0,
            ropes: Vec::new(),
            tied_embeddings: false,
            logit_softcap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_scale_divides: false,
            embedding_unit_norm: false,
            post_norm_eps: None,
            weightless_norms: false,
            norms: NormNames::USUAL,
            pairs: false,
            spread_pairs: false,
            norm_residual: None,
            per_layer: 0,
            streams: None,
            ngrams: None,
            ending: Ending::Logits,
            scores_by_gelu: false,
        }
    }
}

/// Limits far above any model, so that a hostile file cannot ask for absurd tables or overflow a product of sizes.
const LIMITS: [(&str, usize); 8] = [
    ("layers", 4096),
    ("hidden size", 1 << 20),
    ("feed-forward size", 1 << 22),
    ("heads", 1 << 14),
    ("key-value heads", 1 << 14),
    ("head size", 1 << 14),
    ("vocabulary", 1 << 26),
    ("context length", 1 << 31),
];

fn bad<T>(what: String) -> Result<T> {
    Err(Error::bad_input(format!("model configuration: {what}")))
}

/// The sizes that decide how much is allocated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
}

impl Sizes {
    /// # Errors
    /// `BadInput` for a size that no model has.
    pub fn check(&self) -> Result<()> {
        let sizes =
            [self.layers, self.hidden, self.ffn, self.heads, self.kv_heads, self.head_dim, self.vocab, self.context];
        for ((name, limit), size) in LIMITS.into_iter().zip(sizes) {
            if size == 0 || size > limit {
                return bad(format!("{name} is {size}; expected 1 to {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(format!("{} heads cannot share {} key-value heads evenly", self.heads, self.kv_heads));
        }
        Ok(())
    }
}

impl Config {
    /// The rotary embedding that GGUF's `rope.*` keys state; `None` for models without any.
    pub fn rope(&self) -> Option<&Rope> {
        self.ropes.first()
    }

    /// The attention of every layer that has one.
    pub fn attention(&self) -> impl Iterator<Item = &Heads> {
        self.layers.iter().filter_map(LayerConfig::heads)
    }

    /// The first layer's attention: what readers of one number per model are told.
    pub fn first_heads(&self) -> Option<&Heads> {
        self.attention().next()
    }

    /// The experts of the first layer that has some.
    pub fn experts(&self) -> Option<&Experts> {
        self.layers.iter().find_map(|l| l.ffn.experts.as_ref())
    }

    /// What goes with a token beside its channels, in numbers: its vectors for the layers, keys and values of the layers
    /// that others share, further residual streams, and the positions that an indexer chose.
    pub fn carried(&self) -> usize {
        self.carried_ngrams().end
    }

    /// Where what the n-grams of tokens choose lies in it.
    pub fn carried_ngrams(&self) -> std::ops::Range<usize> {
        let start = self.carried_choice().end;
        start..start + self.ngrams.as_ref().map_or(0, |own| (own.size - 1) * own.heads * own.width)
    }

    /// Numbers of a row of the residual stream: channels, and what goes with them.
    pub fn stream(&self) -> usize {
        self.hidden + self.carried()
    }

    /// Where keys and values of `layer` begin in it, if others share them.
    pub fn carried_of(&self, layer: usize) -> Option<usize> {
        self.is_shared(layer).then(|| self.carried_before(layer))
    }

    fn carried_before(&self, layer: usize) -> usize {
        let heads = (0..layer).filter(|i| self.is_shared(*i)).filter_map(|i| self.layers[i].heads());
        self.per_layer * self.layers.len() + heads.map(|h| h.k_width() + h.v_width()).sum::<usize>()
    }

    /// Where the residual streams behind the first begin in it.
    pub fn carried_streams(&self) -> usize {
        self.carried_before(self.layers.len())
    }

    /// Where the positions that an indexer chose lie in it, for layers that read those of one before.
    pub fn carried_choice(&self) -> std::ops::Range<usize> {
        let more = self.streams.map_or(0, |s| s.carried() * self.hidden);
        let chosen = |layer: &LayerConfig| match &layer.mixer {
            Mixer::Latent(Latent { chosen: Some(chosen), .. }) => Some(chosen.clone()),
            _ => None,
        };
        let all: Vec<Chosen> = self.layers.iter().filter_map(chosen).collect();
        let width = |chosen: &Chosen| match chosen {
            Chosen::ByIndexer(own) => own.most(),
            Chosen::AsBefore => 0,
        };
        let read_again = all.contains(&Chosen::AsBefore);
        let width = all.iter().map(width).max().filter(|_| read_again).unwrap_or(0);
        let start = self.carried_streams() + more;
        start..start + width
    }

    fn is_shared(&self, layer: usize) -> bool {
        self.attention().any(|heads| heads.peculiar.shared == Some(layer))
    }

    /// The window of the layers that have one.
    pub fn window(&self) -> Option<usize> {
        self.attention().find_map(|h| h.window)
    }

    /// Which layers see a window.
    pub fn slides(&self) -> Vec<bool> {
        self.layers.iter().map(|l| l.heads().is_some_and(|h| h.window.is_some())).collect()
    }

    /// In models with windows, layers that see everything have no positions (Cohere 2, EXAONE 4).
    pub(super) fn without_full_rope(&mut self) {
        if self.window().is_some() {
            let full = self.layers.iter_mut().filter_map(LayerConfig::heads_mut).filter(|h| h.window.is_none());
            full.for_each(|h| h.rope = None);
        }
    }

    /// Everything that can be said without looking at tensors.
    pub(super) fn check(&self) -> Result<()> {
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("norm epsilon is {}; expected 0 to 1", self.norm_eps));
        }
        for layer in &self.layers {
            match &layer.mixer {
                Mixer::Attention(heads) => {
                    if let Some(shared) = heads.peculiar.shared {
                        let of = self.layers.get(shared).and_then(LayerConfig::heads);
                        let sizes = |h: &Heads| (h.kv, h.dim, h.value_dim, h.peculiar.shared.is_some());
                        if of.map(sizes) != Some((heads.kv, heads.dim, heads.value_dim, false)) {
                            return bad(format!("layer {shared} has no keys and values that others could share"));
                        }
                    }
                    check_scale(heads.scale)?;
                    self.check_rope(heads.rope, heads.dim)?;
                }
                Mixer::Latent(latent) => {
                    check_scale(latent.scale)?;
                    self.check_rope(latent.rope, latent.rotated)?;
                }
                _ => {}
            }
            if let Some(e) = &layer.ffn.experts {
                if e.count == 0 || e.count > 1 << 16 || e.used == 0 || e.used > e.count {
                    return bad(format!("{} experts of which {} are used", e.count, e.used));
                }
                if e.ffn == 0 || e.ffn > 1 << 22 || e.shared_ffn.is_some_and(|f| f == 0 || f > 1 << 22) {
                    return bad(format!("expert sizes {} and {:?}", e.ffn, e.shared_ffn));
                }
            }
        }
        Ok(())
    }

    /// Of heads that turn up to `dim` channels.
    fn check_rope(&self, which: Option<usize>, dim: usize) -> Result<()> {
        let Some(rope) = which.and_then(|i| self.ropes.get(i)) else { return Ok(()) };
        let dims = rope.dims;
        if dims == 0 || !dims.is_multiple_of(2) || dims > dim {
            return bad(format!("{dims} rotary dimensions of {dim}; expected an even number"));
        }
        if rope.theta.is_nan() || rope.theta < 1.0 {
            return bad(format!("rope theta is {}; expected 1 or more", rope.theta));
        }
        if let RopeScaling::LongRope { short, long, .. } = &rope.scaling
            && (short.len() != dims / 2 || long.len() != dims / 2)
        {
            let lens = format!("{} short and {} long", short.len(), long.len());
            return bad(format!("{lens} rope factors; expected {} of each", dims / 2));
        }
        Ok(())
    }
}

fn check_scale(scale: f32) -> Result<()> {
    match scale.is_finite() && scale > 0.0 {
        true => Ok(()),
        false => bad(format!("attention scale is {scale}")),
    }
}

/// Phi3's factor on rotary sines and cosines, by the context it was stretched to (transformers' longrope).
pub fn longrope_attention_factor(context: usize, original: usize) -> f32 {
    let scale = context as f64 / original as f64;
    if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() as f32 } else { 1.0 }
}

/// The factor on rotary sines and cosines that YaRN's two scales give (transformers' `_compute_yarn_parameters`).
pub fn yarn_attention_factor(factor: f32, scale: f32, all_dims: f32) -> f32 {
    let of = |m: f32| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    of(scale) / of(all_dims)
}
