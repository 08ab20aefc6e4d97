//! The keys, one row each, and the lists of those that families write. Data and one-line rules.

use super::stored::{prototype, read_window};
use crate::model::config::{Config, Experts, Heads, LayerConfig, Norm, Rope, RopeScaling, longrope_attention_factor};
use crate::model::family::Entry::{self, FileType, General, Key as At, Ours};
use crate::model::family::{Cap, Facts, Key, Stated, Stored, WindowRule};
use crate::model::role::Role;
use crate::{Error, Result};

/// What the converter's `TextModel` writes for every model.
pub const TEXT_MODEL: &[Entry] = &[
    General,
    At(&BLOCK_COUNT),
    At(&CONTEXT_LENGTH),
    At(&EMBEDDING_LENGTH),
    At(&FEED_FORWARD_LENGTH),
    At(&HEAD_COUNT),
    At(&HEAD_COUNT_KV),
    At(&SCALING_TYPE),
    At(&SCALING_FACTOR),
    At(&SCALING_CONTEXT),
    At(&YARN_ATTENTION_FACTOR),
    At(&YARN_BETA_FAST),
    At(&YARN_BETA_SLOW),
    At(&FREQ_BASE),
    At(&FREQ_BASE_SWA),
    At(&RMS_EPSILON),
    At(&LAYER_EPSILON),
    At(&EXPERT_COUNT),
    At(&EXPERT_USED_COUNT),
    At(&KEY_LENGTH),
    At(&VALUE_LENGTH),
    FileType,
];

/// What `LlamaModel` adds.
pub const VOCAB_AND_ROTATION: &[Entry] = &[At(&VOCAB_SIZE), At(&ROPE_DIMENSIONS)];

/// What `GraniteModel` adds.
pub const SCALES: &[Entry] = &[At(&ATTENTION_SCALE), At(&EMBEDDING_SCALE), At(&RESIDUAL_SCALE), At(&LOGIT_SCALE)];

/// What `CommandR2Model` adds.
pub const LOGITS_AND_NO_SCALING: &[Entry] = &[At(&LOGIT_SCALE), At(&NO_SCALING)];

/// What `Cohere2Model` adds.
pub const COHERE2: &[Entry] = &[At(&LOGIT_SCALE), At(&WINDOW), At(&VOCAB_SIZE), At(&ROPE_DIMENSIONS), At(&NO_SCALING)];

pub const ROTATION: &[Entry] = &[At(&ROPE_DIMENSIONS)];

pub const VOCAB: &[Entry] = &[At(&VOCAB_SIZE)];

/// A window and which layers it applies to, always stated.
pub const WINDOWS: &[Entry] = &[At(&WINDOW), At(&WINDOW_LAYERS)];

/// llama.cpp reads and writes no window for this architecture; our own readers need it.
pub const WINDOW_BESIDE: &[Entry] = &[Ours(&WINDOW)];

pub const EXPERT_WIDTHS: &[Entry] = &[At(&EXPERT_WIDTH), At(&SHARED_EXPERT_WIDTH)];

/// What `Gemma3Model` adds.
pub const LOGIT_CAP_AND_WINDOW: &[Entry] = &[At(&LOGIT_SOFTCAP), At(&WINDOW), At(&WINDOW_PATTERN)];

pub const GEMMA2: &[Entry] = &[
    General,
    At(&CONTEXT_LENGTH),
    At(&EMBEDDING_LENGTH),
    At(&BLOCK_COUNT),
    At(&FEED_FORWARD_LENGTH),
    At(&HEAD_COUNT),
    At(&HEAD_COUNT_KV),
    At(&RMS_EPSILON),
    At(&KEY_LENGTH),
    At(&VALUE_LENGTH),
    FileType,
    At(&ATTN_SOFTCAP),
    At(&LOGIT_SOFTCAP),
    At(&WINDOW),
    At(&WINDOW_PATTERN),
];

pub const GEMMA: &[Entry] = &[
    General,
    At(&CONTEXT_LENGTH),
    At(&EMBEDDING_LENGTH),
    At(&BLOCK_COUNT),
    At(&FEED_FORWARD_LENGTH),
    At(&HEAD_COUNT),
    At(&HEAD_COUNT_KV),
    At(&RMS_EPSILON),
    At(&KEY_LENGTH),
    At(&VALUE_LENGTH),
    FileType,
];

pub const STABLELM: &[Entry] = &[
    General,
    At(&CONTEXT_LENGTH),
    At(&EMBEDDING_LENGTH),
    At(&BLOCK_COUNT),
    At(&FEED_FORWARD_LENGTH),
    At(&ROPE_DIMENSIONS),
    At(&HEAD_COUNT),
    At(&HEAD_COUNT_KV),
    At(&PARALLEL_RESIDUAL),
    At(&LAYER_EPSILON),
    FileType,
];

pub const PHI3: &[Entry] = &[
    At(&LONG_ROPE_FACTOR),
    General,
    At(&CONTEXT_LENGTH),
    At(&ORIGINAL_CONTEXT),
    At(&EMBEDDING_LENGTH),
    At(&FEED_FORWARD_LENGTH),
    At(&BLOCK_COUNT),
    At(&HEAD_COUNT),
    At(&HEAD_COUNT_KV),
    At(&RMS_EPSILON),
    At(&ROPE_DIMENSIONS),
    At(&FREQ_BASE),
    FileType,
    At(&WINDOW_OR_ZERO),
];

fn heads<'a>(f: &'a Facts) -> Option<&'a Heads> {
    f.config.first_heads()
}

fn size(n: usize) -> Option<Stated> {
    Some(Stated::Size(n))
}

fn nothing(_: &mut Config, _: &Stored) -> Result<()> {
    Ok(())
}

pub(in crate::model) static BLOCK_COUNT: Key = Key {
    name: "block_count",
    from: |f| size(f.config.layers.len()),
    to: |c, s| {
        let n = s.size()?;
        if n == 0 || n > 4096 {
            return Err(Error::bad_input(format!("model configuration: layers is {n}; expected 1 to 4096")));
        }
        c.layers = vec![prototype(s.family); n];
        Ok(())
    },
};

pub(in crate::model) static CONTEXT_LENGTH: Key = Key {
    name: "context_length",
    from: |f| size(f.config.context),
    to: |c, s| {
        c.context = s.size()?;
        Ok(())
    },
};

pub(in crate::model) static EMBEDDING_LENGTH: Key = Key {
    name: "embedding_length",
    from: |f| size(f.config.hidden),
    to: |c, s| {
        c.hidden = s.size()?;
        c.embedding_scale = s.family.embedding_scale.of(c.hidden);
        Ok(())
    },
};

pub(in crate::model) static FEED_FORWARD_LENGTH: Key = Key {
    name: "feed_forward_length",
    from: |f| size(f.config.ffn),
    to: |c, s| {
        let widths = s.sizes(c.layers.len())?.ok_or_else(|| s.missing())?;
        c.ffn = widths.iter().copied().max().unwrap_or(0);
        for (layer, width) in c.layers.iter_mut().zip(widths) {
            layer.ffn.dense.iter_mut().for_each(|d| d.width = width);
        }
        Ok(())
    },
};

pub(in crate::model) static VOCAB_SIZE: Key = Key {
    name: "vocab_size",
    from: |f| size(f.config.vocab),
    to: |c, s| {
        c.vocab = match s.size_opt()? {
            Some(n) => n,
            None => s.meta.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len),
        };
        Ok(())
    },
};

pub(in crate::model) static HEAD_COUNT: Key = Key {
    name: "attention.head_count",
    from: |f| size(heads(f)?.q),
    to: |c, s| {
        let counts = s.sizes(c.layers.len())?.ok_or_else(|| s.missing())?;
        let hidden = c.hidden;
        each(c, counts, |h, n| {
            let dim = hidden.checked_div(n).unwrap_or(0);
            (h.q, h.kv, h.dim, h.value_dim) = (n, n, dim, dim);
        });
        Ok(())
    },
};

pub(in crate::model) static HEAD_COUNT_KV: Key = Key {
    name: "attention.head_count_kv",
    from: |f| size(heads(f)?.kv),
    to: |c, s| {
        if let Some(counts) = s.sizes(c.layers.len())? {
            each(c, counts, |h, n| h.kv = n);
        }
        Ok(())
    },
};

/// Whether head sizes are written: where `config.json` or transformers' class states one, or hidden / heads is another.
fn states_head_dim(f: &Facts) -> bool {
    let differs = heads(f).is_some_and(|h| h.q * h.dim != f.config.hidden);
    f.name.defaults.states_head_dim || f.json.has("head_dim") || differs
}

pub(in crate::model) static KEY_LENGTH: Key = Key {
    name: "attention.key_length",
    from: |f| size(heads(f)?.dim).filter(|_| states_head_dim(f)),
    to: |c, s| {
        if let Some(n) = s.size_opt()? {
            let sizes = vec![n; c.layers.len()];
            each(c, sizes, |h, n| (h.dim, h.value_dim) = (n, n));
        }
        Ok(())
    },
};

pub(in crate::model) static VALUE_LENGTH: Key = Key {
    name: "attention.value_length",
    from: |f| size(heads(f)?.value_dim).filter(|_| states_head_dim(f)),
    to: |c, s| {
        let dim = c.first_heads().map_or(0, |h| h.dim);
        if s.size_opt()?.is_some_and(|n| n != dim) {
            let what = format!("{}: value heads of another size than key heads", s.family.gguf);
            return Err(Error::unsupported(what));
        }
        Ok(())
    },
};

pub(in crate::model) static RMS_EPSILON: Key = Key {
    name: "attention.layer_norm_rms_epsilon",
    from: |f| epsilon(f, Norm::Rms),
    to: |c, s| read_epsilon(c, s, Norm::Rms),
};

pub(in crate::model) static LAYER_EPSILON: Key = Key {
    name: "attention.layer_norm_epsilon",
    from: |f| epsilon(f, Norm::Layer),
    to: |c, s| read_epsilon(c, s, Norm::Layer),
};

fn epsilon(f: &Facts, norm: Norm) -> Option<Stated> {
    (f.config.norm == norm).then_some(Stated::Float(f.config.norm_eps))
}

fn read_epsilon(c: &mut Config, s: &Stored, norm: Norm) -> Result<()> {
    if c.norm == norm {
        c.norm_eps = s.float().ok_or_else(|| s.missing())?;
    }
    Ok(())
}

/// Attention's scale where a family states one instead of the head size.
pub(in crate::model) static ATTENTION_SCALE: Key = Key {
    name: "attention.scale",
    from: |f| heads(f).map(|h| Stated::Float(h.scale)),
    to: |c, s| {
        let Some(scale) = s.float().filter(|x| *x > 0.0) else { return Ok(()) };
        c.layers.iter_mut().filter_map(LayerConfig::heads_mut).for_each(|h| h.scale = scale);
        Ok(())
    },
};

pub(in crate::model) static EMBEDDING_SCALE: Key = Key {
    name: "embedding_scale",
    from: |f| Some(Stated::Float(f.config.embedding_scale)),
    to: |c, s| {
        c.embedding_scale = s.float().unwrap_or(c.embedding_scale);
        Ok(())
    },
};

pub(in crate::model) static RESIDUAL_SCALE: Key = Key {
    name: "residual_scale",
    from: |f| Some(Stated::Float(f.config.residual_scale)),
    to: |c, s| {
        c.residual_scale = s.float().unwrap_or(1.0);
        Ok(())
    },
};

pub(in crate::model) static LOGIT_SCALE: Key = Key {
    name: "logit_scale",
    from: |f| Some(Stated::Float(f.config.logit_scale)),
    to: |c, s| {
        c.logit_scale = s.float().unwrap_or(1.0);
        Ok(())
    },
};

pub(in crate::model) static PARALLEL_RESIDUAL: Key = Key {
    name: "use_parallel_residual",
    from: |f| Some(Stated::Flag(f.config.layers.first()?.wiring.parallel)),
    to: |c, s| {
        let parallel = s.flag();
        c.layers.iter_mut().for_each(|l| l.wiring.parallel = parallel.unwrap_or(l.wiring.parallel));
        Ok(())
    },
};

/// Families that state it even where there is no scaling.
pub(in crate::model) static NO_SCALING: Key =
    Key { name: "rope.scaling.type", from: |_| Some(Stated::Text("none")), to: nothing };

pub(in crate::model) static ROPE_DIMENSIONS: Key = Key {
    name: "rope.dimension_count",
    from: |f| size(f.config.rope()?.dims),
    to: |c, s| {
        let dims = s.size_opt()?.unwrap_or(c.first_heads().map_or(0, |h| h.dim));
        c.ropes.iter_mut().for_each(|rope| rope.dims = dims);
        Ok(())
    },
};

pub(in crate::model) static FREQ_BASE: Key = Key {
    name: "rope.freq_base",
    from: |f| Some(Stated::Float(f.config.rope()?.theta)),
    to: |c, s| {
        let theta = s.float().unwrap_or(10_000.0);
        c.ropes.first_mut().into_iter().for_each(|rope| rope.theta = theta);
        Ok(())
    },
};

pub(in crate::model) static FREQ_BASE_SWA: Key = Key {
    name: "rope.freq_base_swa",
    from: |f| Some(Stated::Float(f.config.ropes.get(1)?.theta)),
    to: |c, s| {
        let (dims, Some(theta)) = (c.rope().map_or(0, |r| r.dims), s.float()) else { return Ok(()) };
        c.ropes.truncate(1);
        c.ropes.push(Rope { theta, dims, scaling: RopeScaling::Default });
        Ok(())
    },
};

pub(in crate::model) static SCALING_TYPE: Key = Key {
    name: "rope.scaling.type",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Linear { .. } => Some(Stated::Text("linear")),
        RopeScaling::Yarn { .. } => Some(Stated::Text("yarn")),
        RopeScaling::LongRope { .. } => Some(Stated::Text("longrope")),
        RopeScaling::Default | RopeScaling::Llama3 { .. } => None,
    },
    // Together with the keys below, which mean something only beside the type.
    to: |c, s| {
        let scaling = s.scaling()?;
        c.ropes.first_mut().into_iter().for_each(|rope| rope.scaling = scaling.clone());
        Ok(())
    },
};

pub(in crate::model) static SCALING_FACTOR: Key = Key {
    name: "rope.scaling.factor",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Linear { factor } | RopeScaling::Yarn { factor, .. } => Some(Stated::Float(factor)),
        _ => None,
    },
    to: nothing,
};

pub(in crate::model) static SCALING_CONTEXT: Key = Key {
    name: "rope.scaling.original_context_length",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Yarn { original_context, .. } => size(original_context),
        _ => None,
    },
    to: nothing,
};

pub(in crate::model) static YARN_ATTENTION_FACTOR: Key = Key {
    name: "rope.scaling.yarn_attn_factor",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor.map(Stated::Float),
        _ => None,
    },
    to: nothing,
};

/// Whether `config.json` states a key of the rotary scaling; readers know the defaults of others.
fn states_scaling(f: &Facts, key: &str) -> bool {
    let table = f.json.get("rope_scaling").or_else(|| f.json.get("rope_parameters"));
    let table = table.map(|t| t.get("full_attention").unwrap_or(t));
    table.is_some_and(|t| t.get(key).is_some_and(|v| !v.is_null()))
}

pub(in crate::model) static YARN_BETA_FAST: Key = Key {
    name: "rope.scaling.yarn_beta_fast",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Yarn { beta_fast, .. } if states_scaling(f, "beta_fast") => Some(Stated::Float(beta_fast)),
        _ => None,
    },
    to: nothing,
};

pub(in crate::model) static YARN_BETA_SLOW: Key = Key {
    name: "rope.scaling.yarn_beta_slow",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::Yarn { beta_slow, .. } if states_scaling(f, "beta_slow") => Some(Stated::Float(beta_slow)),
        _ => None,
    },
    to: nothing,
};

/// The factor on rotary sines and cosines of phi3.
pub(in crate::model) static LONG_ROPE_FACTOR: Key = Key {
    name: "rope.scaling.attn_factor",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::LongRope { original_context, .. } => {
            Some(Stated::Float(longrope_attention_factor(f.config.context, original_context)))
        }
        _ => None,
    },
    to: nothing,
};

/// phi3 states it without long-rope too.
pub(in crate::model) static ORIGINAL_CONTEXT: Key = Key {
    name: "rope.scaling.original_context_length",
    from: |f| match f.config.rope()?.scaling {
        RopeScaling::LongRope { original_context, .. } => size(original_context),
        _ => size(f.json.size(&["original_max_position_embeddings"]).ok()?.unwrap_or(4096)),
    },
    to: nothing,
};

pub(in crate::model) static EXPERT_COUNT: Key = Key {
    name: "expert_count",
    from: |f| size(f.config.experts()?.count),
    to: |c, s| {
        let Some(count) = s.size_opt()?.filter(|n| *n != 0) else { return Ok(()) };
        for layer in &mut c.layers {
            let Some(dense) = layer.ffn.dense.take() else { continue };
            layer.ffn.experts = Some(Experts {
                count,
                used: 0,
                ffn: dense.width,
                shared_ffn: s.family.has(Role::SharedDown).then_some(dense.width),
                norm_topk: s.family.norm_topk,
                activation: dense.activation,
                ..Experts::default()
            });
        }
        Ok(())
    },
};

pub(in crate::model) static EXPERT_USED_COUNT: Key = Key {
    name: "expert_used_count",
    from: |f| size(f.config.experts()?.used),
    to: |c, s| {
        if c.experts().is_some() {
            let used = s.size()?;
            experts_mut(c).for_each(|e| e.used = used);
        }
        Ok(())
    },
};

pub(in crate::model) static EXPERT_WIDTH: Key = Key {
    name: "expert_feed_forward_length",
    from: |f| size(f.config.experts()?.ffn),
    to: |c, s| {
        if let Some(width) = s.size_opt()? {
            experts_mut(c).for_each(|e| e.ffn = width);
        }
        Ok(())
    },
};

pub(in crate::model) static SHARED_EXPERT_WIDTH: Key = Key {
    name: "expert_shared_feed_forward_length",
    from: |f| size(f.config.experts()?.shared_ffn?),
    to: |c, s| {
        if let Some(width) = s.size_opt()? {
            experts_mut(c).filter(|e| e.shared_ffn.is_some()).for_each(|e| e.shared_ffn = Some(width));
        }
        Ok(())
    },
};

pub(in crate::model) static ATTN_SOFTCAP: Key = Key {
    name: "attn_logit_softcapping",
    from: |f| heads(f)?.softcap.map(Stated::Float),
    to: |c, s| {
        if s.family.attn_softcap != Cap::Never {
            let cap = s.float().or(s.family.attn_softcap.unstated());
            c.layers.iter_mut().filter_map(LayerConfig::heads_mut).for_each(|h| h.softcap = cap);
        }
        Ok(())
    },
};

pub(in crate::model) static LOGIT_SOFTCAP: Key = Key {
    name: "final_logit_softcapping",
    from: |f| f.config.logit_softcap.map(Stated::Float),
    to: |c, s| {
        c.logit_softcap =
            s.float().or(s.family.logit_softcap.unstated()).filter(|_| s.family.logit_softcap != Cap::Never);
        Ok(())
    },
};

pub(in crate::model) static WINDOW: Key =
    Key { name: "attention.sliding_window", from: |f| f.config.window().map(Stated::Size), to: read_window };

/// A zero says that there is none; an absent key would mean an unknown one.
pub(in crate::model) static WINDOW_OR_ZERO: Key =
    Key { name: "attention.sliding_window", from: |f| size(f.config.window().unwrap_or(0)), to: read_window };

/// Which layers slide, always stated.
pub(in crate::model) static WINDOW_LAYERS: Key = Key {
    name: "attention.sliding_window_pattern",
    from: |f| f.config.window().map(|_| Stated::Flags(f.config.slides())),
    to: nothing,
};

/// Which layers slide, where they are not all but every n-th, as readers take for granted.
pub(in crate::model) static WINDOW_PATTERN: Key = Key {
    name: "attention.sliding_window_pattern",
    from: |f| {
        f.config.window()?;
        let slides = f.config.slides();
        let usual = |i: usize| match f.name.defaults.window {
            WindowRule::AllButEvery { every, .. } => !(i + 1).is_multiple_of(every),
            _ => true,
        };
        let differs = slides.iter().enumerate().any(|(i, slides)| *slides != usual(i));
        differs.then_some(Stated::Flags(slides))
    },
    to: nothing,
};

fn each(c: &mut Config, values: Vec<usize>, set: impl Fn(&mut Heads, usize)) {
    for (layer, n) in c.layers.iter_mut().zip(values) {
        if let Some(heads) = layer.heads_mut() {
            set(heads, n);
        }
    }
}

fn experts_mut(c: &mut Config) -> impl Iterator<Item = &mut Experts> {
    c.layers.iter_mut().filter_map(|l| l.ffn.experts.as_mut())
}
