//! What models are made of: mixers of tokens, feed-forward parts, the streams between them, and what stands at their end.

use crate::{Error, Result};

/// How a block mixes tokens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mixer {
    /// Softmax attention.
    Attention(Heads),
    /// Multi-head latent attention (DeepSeek-V2, section 2.1).
    Latent(Latent),
    /// The gated delta rule (Yang et al. 2024).
    Delta(Delta),
    /// The same with a decay for every key channel (Kimi Linear).
    ChannelDelta(ChannelDelta),
    /// Selective state spaces (Gu and Dao 2023).
    Mamba(Mamba),
    /// The same with one decay per head (Dao and Gu 2024).
    Mamba2(Mamba2),
    /// A convolution over few tokens between two gates (LFM2).
    ShortConv(ShortConv),
    /// Linear attention with a fixed decay for every head (MiniMax-01).
    Lightning(Lightning),
    /// The block mixes no tokens.
    None,
}

/// Keys and values from one small vector per token.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Query heads.
    pub heads: usize,
    /// Channels of a query or key head without positions, and with.
    pub nope: usize,
    /// Channels of a head that are rotated.
    pub rotated: usize,
    /// Channels of a value head.
    pub value_dim: usize,
    /// Width of the vector that a token leaves behind.
    pub rank: usize,
    /// Which of `Config::ropes`; `None`: no positions.
    pub rope: Option<usize>,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// Each position sees itself and the `window - 1` positions before it; `None`: all before it.
    pub window: Option<usize>,
    /// Which of the positions before it each token reads; `None`: all.
    pub chosen: Option<Chosen>,
}

/// Which positions a token reads in sparse attention.
#[derive(Clone, Debug, PartialEq)]
pub enum Chosen {
    /// Those that an indexer of its own ranks highest.
    ByIndexer(Indexer),
    /// Those of the last layer before that has an indexer.
    AsBefore,
}

/// A small attention that ranks the positions before a token, of which the best are read (DeepSeek-V3.2, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Indexer {
    /// Its query heads.
    pub heads: usize,
    /// Channels of a head.
    pub dim: usize,
    /// Channels of a head that are rotated.
    pub rotated: usize,
    /// They are the last ones, not the first.
    pub at_end: bool,
    /// Rotated channels are neighbours, not half of them apart.
    pub pairs: bool,
    /// Positions that are read at most.
    pub top: usize,
    /// Groups of neighbours that have one key.
    pub pools: Option<Pools>,
    /// Whole blocks of positions are chosen, by every head for its own group of queries.
    pub blocks: Option<Blocks>,
    /// Keys of a group are averaged, then normalised and turned as the first of them; every head counts alike (Qwen3.8).
    pub plain: bool,
    /// Of the norm of its keys.
    pub norm_eps: f32,
}

impl Indexer {
    /// Positions that it can choose for one token.
    pub fn most(&self) -> usize {
        self.top + self.pools.filter(|p| p.tail).map_or(0, |p| p.size.saturating_sub(1))
    }
}

/// Positions are ranked in groups of neighbours, by one key that is drawn from all of a group (GLM-5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Positions in a group.
    pub size: usize,
    /// Positions behind the last whole group are read always.
    pub tail: bool,
}

/// Blocks of neighbouring positions, each ranked by the best score in it (MiniMax M3). As many are read as `Indexer::top`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Positions in a block.
    pub size: usize,
    /// The last ones up to a token's own, which are read always.
    pub local: usize,
}

/// The gated delta rule with a decay for every key channel (Kimi Linear).
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelDelta {
    /// Heads.
    pub heads: usize,
    /// Channels of keys and of values.
    pub dim: usize,
    /// Width of the convolutions.
    pub kernel: usize,
    /// Logarithms of decays lie between this and 0, by a sigmoid; `None`: by softplus, without a bound.
    pub least_decay: Option<f32>,
}

/// Linear attention with a fixed decay for every head (MiniMax-01).
#[derive(Clone, Debug, PartialEq)]
pub struct Lightning {
    /// What a token leaves of the state of each head, as a negative logarithm.
    pub rates: Vec<f32>,
    /// Channels of queries, keys and values.
    pub dim: usize,
}

/// The gated delta rule (Yang et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values.
    pub value_heads: usize,
    /// Channels of a key head.
    pub key_dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
    /// Width of the convolution.
    pub kernel: usize,
    /// Value head `i` reads key head `i % key_heads`; otherwise those of a key head follow each other.
    pub tiled: bool,
}

/// Selective state spaces (Gu and Dao 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba {
    /// Channels of the mixer.
    pub inner: usize,
    /// States of a channel.
    pub state: usize,
    /// Width of what the step sizes are made from.
    pub rank: usize,
    /// Width of the convolution.
    pub kernel: usize,
    /// Step sizes, inputs and outputs of the state are normalised without weights (FalconMamba).
    pub unit_norms: bool,
}

/// State spaces with one decay per head (Dao and Gu 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2 {
    /// Channels of the mixer.
    pub inner: usize,
    /// States of a channel.
    pub state: usize,
    /// Heads, each with a decay.
    pub heads: usize,
    /// Of inputs and outputs of the state, and parts of the result that are normalised apart.
    pub groups: usize,
    /// Width of the convolution.
    pub kernel: usize,
    /// No step is smaller.
    pub least_step: f32,
}

/// A convolution over few tokens between two gates (LFM2).
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConv {
    /// Width of the convolution.
    pub kernel: usize,
}

/// Queries at position `p` are multiplied by `1 + scale · ln(1 + floor(p / floor))` (Llama 4; `shifted`: `p + 1`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Of the logarithm.
    pub scale: f32,
    /// Positions in a step.
    pub floor: f32,
    /// Positions count from 1.
    pub shifted: bool,
}

/// Where attention's result meets a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// No gate.
    #[default]
    None,
    /// `sigmoid` of as many rows as a query head has, behind each query head in one matrix (Qwen3-Next).
    InQuery,
    /// `sigmoid` of a matrix of its own, by channel or by head.
    Sigmoid,
    /// `softplus` of a matrix of its own.
    Softplus,
}

/// What few families do in their attention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peculiar {
    /// What its result is multiplied by.
    pub gate: Gate,
    /// Queries and keys are normalised behind the rotation (Hunyuan).
    pub norm_after_rope: bool,
    /// Queries and keys are normalised without weights behind the rotation (Llama 4).
    pub unit_norm: bool,
    /// Values are normalised without weights (Gemma 4).
    pub value_norm: bool,
    /// Values are multiplied by this.
    pub value_scale: Option<f32>,
    /// The largest slope of the linear biases (Press et al. 2021).
    pub alibi: Option<f32>,
    /// Queries, keys and values are clamped to this.
    pub clamp: Option<f32>,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// A window is a chunk of positions that see only each other (Llama 4).
    pub chunked: bool,
    /// Each position sees those behind it too; with a window, those at most half of it away on either side (encoders).
    pub both_ways: bool,
    /// Which of the positions are read; `None`: all.
    pub chosen: Option<Indexer>,
    /// The layer whose keys and values are read, where this one has none of its own (Gemma 4 E).
    pub shared: Option<usize>,
}

/// The shape of one layer's attention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// Key and value heads.
    pub kv: usize,
    /// Channels of a query and of a key head.
    pub dim: usize,
    /// Channels of a value head.
    pub value_dim: usize,
    /// Each position sees itself and the `window - 1` positions before it; `None`: all before it.
    pub window: Option<usize>,
    /// Which of `Config::ropes` rotates queries and keys; `None`: no positions.
    pub rope: Option<usize>,
    /// Scores are multiplied by this; `1/sqrt(dim)` unless the family says otherwise.
    pub scale: f32,
    /// `tanh(x / cap) * cap` on scores (gemma2).
    pub softcap: Option<f32>,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// The output has a bias.
    pub output_bias: bool,
    /// What few families do.
    pub peculiar: Peculiar,
}

impl Heads {
    /// Rows of the query matrix.
    pub fn q_width(&self) -> usize {
        self.q * self.dim
    }

    /// Rows of the key matrix.
    pub fn k_width(&self) -> usize {
        self.kv * self.dim
    }

    /// Rows of the value matrix.
    pub fn v_width(&self) -> usize {
        self.kv * self.value_dim
    }

    /// Columns of the output matrix.
    pub fn out_width(&self) -> usize {
        self.q * self.value_dim
    }
}

/// The function between the matrices of a feed-forward block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// By the hyperbolic tangent.
    GeluTanh,
    /// By the error function.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `x · sigmoid(1.702 x)` times `up + 1`, both cut off at `limit` (gpt-oss).
    Clamped {
        /// Where values are cut off.
        limit: f32,
    },
    /// `silu(x)` times `up`, both cut off at `limit` before (GLM-5.3).
    ClampedSilu {
        /// Where values are cut off.
        limit: f32,
    },
    /// xIELU (Huang and Schlag 2024).
    Xielu {
        /// Slope above 0, after its softplus.
        positive: f32,
        /// Slope below 0, after its softplus.
        negative: f32,
        /// Its linear part.
        beta: f32,
        /// Where its exponential part is cut off.
        eps: f32,
    },
}

/// A feed-forward block without experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// Channels between its matrices.
    pub width: usize,
    /// `down(act(gate(x)) * up(x))`; otherwise `down(act(up(x)))`.
    pub gated: bool,
    /// What stands between them.
    pub activation: Activation,
    /// All of its matrices have biases.
    pub bias: bool,
    /// Of the gate only what lies so many standard deviations above the mean of the row is let through (Gemma 3n).
    pub cutoff: Option<f32>,
}

/// How scores of a router become weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gating {
    /// A softmax over all.
    #[default]
    Softmax,
    /// A sigmoid of each.
    Sigmoid,
    /// The square root of a softplus of each.
    SqrtSoftplus,
    /// A softmax over those that were chosen.
    OfChosen,
}

/// What routers do beside choosing the largest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// How scores become weights.
    pub gating: Gating,
    /// Groups of experts, of which only some are looked at; 0 and 1: none.
    pub groups: usize,
    /// How many of them are looked at.
    pub groups_used: usize,
    /// The weights of the chosen are multiplied by this.
    pub scale: Option<f32>,
    /// The weights multiply what enters the experts, not their results (Llama 4).
    pub weighs_input: bool,
    /// Experts are chosen one after the other, each with its weight in a softmax over those whose scores are within twice
    /// this part of the largest that is left (SparseMixer, Liu et al. 2024).
    pub mixer: Option<f32>,
    /// The layer gives the mean of the chosen experts and the shared one, not their sum (Cohere 2).
    pub averaged: bool,
}

/// Mixture-of-experts sizes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token goes through.
    pub used: usize,
    /// Feed-forward width of one expert.
    pub ffn: usize,
    /// Width of the shared expert, where there is one (qwen2_moe).
    pub shared_ffn: Option<usize>,
    /// Whether the weights of the chosen experts are normalised to sum 1 (`norm_topk_prob`).
    pub norm_topk: bool,
    /// What stands between the matrices of an expert.
    pub activation: Activation,
    /// Of the shared expert, where it is another.
    pub shared_activation: Option<Activation>,
    /// How they are chosen.
    pub routing: Routing,
}

/// The feed-forward part of a block. Both at once run side by side on the same input; neither: the block has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ffn {
    /// The part without experts.
    pub dense: Option<Dense>,
    /// The part with them.
    pub experts: Option<Experts>,
    /// What reads the stream before the mixer.
    pub early: Early,
    /// What both give together is multiplied by this (Grok 2).
    pub scale: Option<f32>,
}

/// What of a feed-forward part reads the stream as it enters the block, before tokens are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Early {
    /// None of it.
    #[default]
    Nothing,
    /// Its router (SmallThinker).
    Router,
    /// All of its experts, behind a norm of their own (Arctic).
    Experts,
}

/// What a model ends in, behind its last layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// A head: logits of the token that comes next.
    #[default]
    Logits,
    /// No head: vectors that stand for a text.
    Vectors(Pooling),
}

impl Ending {
    /// How a text's vectors are made, of a model without a head.
    pub fn pooling(self) -> Option<Pooling> {
        match self {
            Ending::Logits => None,
            Ending::Vectors(pooling) => Some(pooling),
        }
    }

    /// # Errors
    /// `Unsupported` for a model without a head; `what` says what needs one.
    pub fn needs_logits(self, what: &str) -> Result<()> {
        match self {
            Ending::Logits => Ok(()),
            Ending::Vectors(_) => {
                Err(Error::unsupported(format!("{what} needs logits, and this model gives vectors of texts")))
            }
        }
    }
}

/// How the vectors of a text's tokens become those of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token, which stands for the text (`[CLS]`).
    First,
    /// That of the last token.
    Last,
    /// They are not pooled: each is one of the text's vectors (ColBERT).
    Each,
}

impl Pooling {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::First => "first token",
            Pooling::Last => "last token",
            Pooling::Each => "none: every token has a vector",
        }
    }

    /// By llama.cpp's number; `None` for rerankers', and what it does not know.
    pub fn of_gguf(number: u64) -> Option<Pooling> {
        [Pooling::Each, Pooling::Mean, Pooling::First, Pooling::Last].get(usize::try_from(number).ok()?).copied()
    }
}

/// Residual streams of which every part of a block reads a mixture, and to which its result is added in parts
/// (hyper-connections, Zhu et al. 2025).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streams {
    /// How many.
    pub count: usize,
    /// Of the norms before mixing.
    pub eps: f32,
    /// How they are mixed.
    pub mixing: Mixing,
}

/// How residual streams are mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mixing {
    /// Streams flow into each other by a matrix that so many rounds make doubly stochastic (Xie et al. 2026); the end is
    /// their mean.
    Sinkhorn {
        /// Of scaling rows and columns.
        rounds: usize,
    },
    /// Each goes on by itself; results are added with a weight of at most `magnitude`, and a learned mixture is the end
    /// (Hunyuan 4).
    Apart {
        /// The largest weight.
        magnitude: f32,
    },
    /// Every channel of what a part reads is a mixture of its own, of streams that are normalised before; results are added
    /// (Qwen3.8-Flash-Next).
    Gated,
    /// A block computes with the first; all are predicted before and corrected after it (Gemma 3n).
    AltUp,
}

/// A layer that adds what n-grams of tokens, hashed, choose from a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Ngrams {
    /// Which layer.
    pub layer: usize,
    /// Tokens of the longest.
    pub size: usize,
    /// Rows of the table for each length.
    pub heads: usize,
    /// Columns of the table.
    pub width: usize,
    /// The token that ends a text, behind which nothing of it is seen.
    pub end: u32,
    /// By distance.
    pub multipliers: Vec<i64>,
    /// By length and head: where their rows begin.
    pub offsets: Vec<i64>,
    /// By length and head: how many there are.
    pub sizes: Vec<i64>,
}

impl Streams {
    /// Those that travel with a token beside the first; what was predicted for that too.
    pub fn carried(&self) -> usize {
        if self.mixing == Mixing::AltUp { self.count } else { self.count - 1 }
    }
}
