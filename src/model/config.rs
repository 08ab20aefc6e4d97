//! The hyper-parameters of a model, in one shape for every family, whether they come from `config.json` (transformers 4
//! and 5 spellings) or from GGUF metadata. It holds numbers and choices, no tensor names.

/// How the token mixing of one layer sees the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    Full,
    /// Each position sees itself and the `window - 1` positions before it.
    Sliding {
        window: usize,
    },
}

/// Rotary embedding scaling, as `rope_scaling` / `rope_parameters` names it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear { factor: f32 },
    Llama3 { factor: f32, low_freq_factor: f32, high_freq_factor: f32, original_context: usize },
    Yarn { factor: f32, original_context: usize, attention_factor: Option<f32>, beta_fast: f32, beta_slow: f32 },
    LongRope { short: Vec<f32>, long: Vec<f32>, original_context: usize, attention_factor: Option<f32> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f32,
    /// Theta of the sliding-window layers where it differs (gemma3).
    pub theta_local: Option<f32>,
    /// Rotated dimensions per head (`partial_rotary_factor` applied).
    pub dims: usize,
    pub scaling: RopeScaling,
}

/// Mixture-of-experts sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    pub used: usize,
    /// Feed-forward width of one expert.
    pub ffn: usize,
    /// Width of the shared expert, where there is one (qwen2_moe).
    pub shared_ffn: Option<usize>,
    /// Whether the weights of the chosen experts are normalised to sum 1 (`norm_topk_prob`).
    pub norm_topk: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

/// Everything the converter, the planner and the forward pass need to know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The row of [`super::families`] this model belongs to, by its GGUF architecture name (`llama`, `qwen2moe`, ...).
    pub arch: String,
    pub layers: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
    pub norm_eps: f32,
    pub rope: Rope,
    /// Per layer.
    pub attention: Vec<Attention>,
    pub experts: Option<Experts>,
    pub tied_embeddings: bool,
    pub activation: Activation,
    /// `tanh(x / cap) * cap` on attention scores and on logits (gemma2).
    pub attn_softcap: Option<f32>,
    pub logit_softcap: Option<f32>,
    /// Attention scores are multiplied by this; `1/sqrt(head_dim)` unless the family says otherwise.
    pub attn_scale: f32,
    /// Embedding rows are multiplied by this on look-up (`sqrt(hidden)` in the gemmas).
    pub embedding_scale: f32,
}
