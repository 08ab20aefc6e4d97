//! The hyper-parameters of a model, in one shape for every family, whether they come from `config.json` (see
//! `hf_config`) or from GGUF metadata. It holds numbers and choices, no tensor names.

use super::families::{self, WindowRule};
use crate::gguf::{Array, Metadata, Value};
use crate::{Error, Result};

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

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub attn_output: bool,
    /// Gate, up and down.
    pub mlp: bool,
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
    pub bias: Biases,
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

impl Config {
    /// The sizes alone, before anything is allocated by them.
    pub(super) fn check_sizes(&self) -> Result<()> {
        let sizes =
            [self.layers, self.hidden, self.ffn, self.heads, self.kv_heads, self.head_dim, self.vocab, self.context];
        for ((name, limit), size) in LIMITS.into_iter().zip(sizes) {
            if size == 0 || size > limit {
                return Err(Error::bad_input(format!("model configuration: {name} is {size}; expected 1 to {limit}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let what = format!("{} heads cannot share {} key-value heads evenly", self.heads, self.kv_heads);
            return Err(Error::bad_input(format!("model configuration: {what}")));
        }
        Ok(())
    }

    /// Everything that can be said without looking at tensors.
    pub(super) fn check(&self) -> Result<()> {
        self.check_sizes()?;
        let bad = |what: String| Err(Error::bad_input(format!("model configuration: {what}")));
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("norm epsilon is {}; expected 0 to 1", self.norm_eps));
        }
        let dims = self.rope.dims;
        if dims == 0 || !dims.is_multiple_of(2) || dims > self.head_dim {
            return bad(format!("{dims} rotary dimensions of {}; expected an even number", self.head_dim));
        }
        if !(self.rope.theta >= 1.0 && self.rope.theta_local.is_none_or(|t| t >= 1.0)) {
            return bad(format!("rope theta is {}; expected 1 or more", self.rope.theta));
        }
        if let RopeScaling::LongRope { short, long, .. } = &self.rope.scaling
            && (short.len() != dims / 2 || long.len() != dims / 2)
        {
            let lens = format!("{} short and {} long", short.len(), long.len());
            return bad(format!("{lens} rope factors; expected {} of each", dims / 2));
        }
        if !(self.attn_scale.is_finite() && self.attn_scale > 0.0) {
            return bad(format!("attention scale is {}", self.attn_scale));
        }
        if let Some(e) = &self.experts {
            if e.count == 0 || e.count > 1 << 16 || e.used == 0 || e.used > e.count {
                return bad(format!("{} experts of which {} are used", e.count, e.used));
            }
            if e.ffn == 0 || e.ffn > 1 << 22 || e.shared_ffn.is_some_and(|f| f == 0 || f > 1 << 22) {
                return bad(format!("expert sizes {} and {:?}", e.ffn, e.shared_ffn));
            }
        }
        Ok(())
    }

    /// Reads the hyper-parameters of a GGUF file. What GGUF does not store follows from the tensors and is set by
    /// [`super::Model::open`]: biases, tied embeddings, and long-rope factors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown architecture, [`Error::BadInput`] for a missing or absurd value.
    pub fn from_gguf(meta: &Metadata) -> Result<Config> {
        let arch = meta.str("general.architecture").ok_or_else(|| {
            Error::bad_input("general.architecture is missing")
                .hint("is this a model file, not a vocabulary or adapter?")
        })?;
        let family = families::by_gguf(arch).ok_or_else(|| {
            let known: Vec<_> = families::FAMILIES.iter().map(|f| f.gguf).collect();
            Error::unsupported(format!("GGUF architecture '{arch}' is not supported; supported: {}", known.join(", ")))
        })?;
        // All spellings of a family on the Hub agree on what GGUF leaves out.
        let defaults = &family.hf[0].defaults;
        let k = Keys { meta, arch };
        let layers = k.size("block_count")?;
        let hidden = k.size("embedding_length")?;
        let heads = k.size("attention.head_count")?;
        let kv_heads = k.size_opt("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = match k.size_opt("attention.key_length")? {
            Some(n) => n,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        if k.size_opt("attention.value_length")?.is_some_and(|n| n != head_dim) {
            return Err(Error::unsupported(format!("{arch}: value heads of another size than key heads")));
        }
        let vocab = match k.size_opt("vocab_size")? {
            Some(n) => n,
            None => meta.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len),
        };
        let ffn = k.size("feed_forward_length")?;
        let experts = match k.size_opt("expert_count")?.filter(|n| *n != 0) {
            None => None,
            Some(count) => Some(Experts {
                count,
                used: k.size("expert_used_count")?,
                ffn: k.size_opt("expert_feed_forward_length")?.unwrap_or(ffn),
                shared_ffn: match family.row(families::Role::SharedDown) {
                    Some(_) => Some(k.size_opt("expert_shared_feed_forward_length")?.unwrap_or(ffn)),
                    None => None,
                },
                norm_topk: family.norm_topk,
            }),
        };
        let mut config = Config {
            arch: arch.to_string(),
            layers,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context: k.size("context_length")?,
            norm_eps: k
                .float("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| k.missing("attention.layer_norm_rms_epsilon"))?,
            rope: Rope {
                theta: k.float("rope.freq_base").unwrap_or(10_000.0),
                theta_local: defaults.theta_local.map(|t| k.float("rope.freq_base_swa").unwrap_or(t)),
                dims: k.size_opt("rope.dimension_count")?.unwrap_or(head_dim),
                scaling: k.scaling()?,
            },
            attention: Vec::new(),
            experts,
            bias: Biases { qkv: family.qkv_bias, ..Biases::default() },
            tied_embeddings: defaults.tied,
            activation: if family.gemma { Activation::GeluTanh } else { Activation::Silu },
            attn_softcap: k.float("attn_logit_softcapping").filter(|_| family.gemma),
            logit_softcap: k.float("final_logit_softcapping").filter(|_| family.gemma),
            attn_scale: 1.0 / (head_dim as f32).sqrt(),
            embedding_scale: if family.gemma { (hidden as f32).sqrt() } else { 1.0 },
        };
        config.check_sizes()?;
        // GGUF has no key for it; the 27B gemmas scale by hidden / heads (llama.cpp tells them by their layers too).
        if (arch == "gemma2" && layers == 46) || (arch == "gemma3" && layers == 62) {
            config.attn_scale = 1.0 / ((hidden / heads) as f32).sqrt();
        }
        config.attention = k.attention(defaults.window, layers)?;
        config.check()?;
        Ok(config)
    }
}

/// Reads `{arch}.{key}`.
struct Keys<'a> {
    meta: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn missing(&self, key: &str) -> Error {
        Error::bad_input(format!("metadata key '{}' is missing or of another type", self.name(key)))
    }

    fn size_opt(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        let per_layer = |v: &[i64]| v.first().copied().filter(|first| v.iter().all(|x| x == first));
        let value = match self.meta.get(&name) {
            None => return Ok(None),
            // Some files state a size per layer; one size for all is the only case there is here.
            Some(Value::Array(Array::I32(v))) => per_layer(&v.iter().map(|x| i64::from(*x)).collect::<Vec<_>>()),
            Some(Value::Array(Array::U32(v))) => per_layer(&v.iter().map(|x| i64::from(*x)).collect::<Vec<_>>()),
            Some(_) => self.meta.uint(&name).and_then(|v| i64::try_from(v).ok()),
        };
        match value.and_then(|v| usize::try_from(v).ok()) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::bad_input(format!("metadata key '{name}' is not one whole number for all layers"))),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.size_opt(key)?.ok_or_else(|| self.missing(key))
    }

    fn float(&self, key: &str) -> Option<f32> {
        self.meta.f32(&self.name(key)).filter(|v| v.is_finite())
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let kind = self.meta.str(&self.name("rope.scaling.type")).unwrap_or("none");
        let original = self.size_opt("rope.scaling.original_context_length")?;
        let factor = self.float("rope.scaling.factor").filter(|f| *f > 0.0);
        match (kind, factor) {
            ("linear", Some(factor)) => Ok(RopeScaling::Linear { factor }),
            ("yarn", Some(factor)) => Ok(RopeScaling::Yarn {
                factor,
                original_context: original.ok_or_else(|| self.missing("rope.scaling.original_context_length"))?,
                attention_factor: self.float("rope.scaling.yarn_attn_factor"),
                beta_fast: self.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: self.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            }),
            ("linear" | "yarn", None) => Err(self.missing("rope.scaling.factor")),
            ("none" | "longrope", _) => Ok(RopeScaling::Default),
            (other, _) => Err(Error::unsupported(format!("rope scaling '{other}' is not supported"))),
        }
    }

    fn attention(&self, rule: WindowRule, layers: usize) -> Result<Vec<Attention>> {
        let (window, pattern) = match rule {
            WindowRule::AllButEvery(n) => {
                // gemma2 files may leave the window out; gemma3 files without one have full attention throughout.
                let fallback = (self.arch == "gemma2").then_some(4096);
                (self.size_opt("attention.sliding_window")?.or(fallback), Some(n))
            }
            WindowRule::Every(_) => (self.size_opt("attention.sliding_window")?, None),
            // Conversion drops qwen's windows.
            _ => (None, None),
        };
        let Some(window) = window.filter(|w| *w != 0) else { return Ok(vec![Attention::Full; layers]) };
        let sliding = Attention::Sliding { window };
        let key = self.name("attention.sliding_window_pattern");
        let full_every = match (self.meta.get(&key), pattern) {
            (Some(Value::Array(Array::Bool(slides))), _) if slides.len() == layers => {
                return Ok(slides.iter().map(|s| if *s { sliding } else { Attention::Full }).collect());
            }
            (Some(_), _) => self.meta.uint(&key).map(|n| n as usize).filter(|n| *n != 0),
            (None, pattern) => pattern,
        };
        Ok((0..layers)
            .map(|i| if full_every.is_some_and(|n| (i + 1) % n == 0) { Attention::Full } else { sliding })
            .collect())
    }
}
