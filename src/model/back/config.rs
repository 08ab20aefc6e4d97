//! The `config.json` that a GGUF file of a known family was made with, as far as the metadata tell. What was stated is
//! read again, and has to give the same model; otherwise the original's configuration is asked for.

use crate::error::Hint;
use crate::model::Model;
use crate::model::config::{Config, Rope, RopeScaling};
use crate::model::family::{Family, HfName, WindowRule};
use crate::model::tokenizer::GgufVocab;
use crate::source::Checkpoint;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// Keys that are left out where they say what is assumed anyway.
const RARE: [&str; 26] = [
    "attention_bias",
    "mlp_bias",
    "use_qkv_bias",
    "use_bias",
    "attention_out_bias",
    "qkv_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "sliding_window_pattern",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "no_rope_layers",
    "rope_local_base_freq",
    "rope_scaling",
    "norm_topk_prob",
    "hidden_act",
    "hidden_activation",
];

/// States the configuration of a GGUF model.
///
/// # Errors
/// `Unsupported` where the metadata do not tell all of it.
pub fn restated(ckpt: &Checkpoint, model: &Model) -> Result<Value> {
    let family = model.known().map_err(|_| {
        let what =
            format!("a config.json of the architecture '{}' is not restated from a GGUF file", model.config.arch);
        Error::unsupported(what).hint(Hint::NameConfiguration)
    })?;
    let stated = |name: &HfName, rope: Option<&RopeScaling>| {
        let mut config = model.config.clone();
        if let (Some(scaling), Some(first)) = (rope, config.ropes.first_mut()) {
            first.scaling = scaling.clone();
        }
        let json = state(&config, family, name)?;
        same(&json, &config).then(|| leave_out(json, &config))
    };
    let factors = model.generated.iter().find(|g| g.name == "rope_freqs.weight").map(|g| g.values.as_slice());
    let rope = match (factors, model.config.rope()) {
        (Some(factors), Some(rope)) => Some(llama3(rope, factors).ok_or_else(|| {
            Error::unsupported("the file's rotary factors are none that a usual configuration gives")
                .hint(Hint::NameConfiguration)
        })?),
        _ => None,
    };
    // A wrapper around a text model holds more than this file.
    let mut whole: Vec<&HfName> = family.hf.iter().filter(|name| !is_wrapper(name.architecture)).collect();
    // Of the names of one family only some have windows in transformers (Mistral, and not Llama).
    let windowed = |name: &HfName| matches!(name.defaults.window, WindowRule::Every(Some(_)));
    if model.config.window().is_some() && whole.iter().any(|name| windowed(name)) {
        whole.retain(|name| windowed(name));
    }
    let found = whole.into_iter().find_map(|name| stated(name, rope.as_ref()));
    let Some(mut json) = found else {
        let what = format!("the metadata do not tell all that the config.json of a {} model says", family.gguf);
        return Err(Error::unsupported(what).hint(Hint::NameConfiguration));
    };
    if let Some(vocab) = ckpt.gguf().and_then(|meta| GgufVocab::from_metadata(meta).ok()) {
        for name in ["bos", "eos", "pad"] {
            let key = if name == "pad" { "padding" } else { name };
            // Where there is none, the default of the class would be.
            json[format!("{name}_token_id")] = vocab.special(key).map_or(Value::Null, Value::from);
        }
    }
    Ok(json)
}

/// Whether a class holds a text model beside an encoder.
pub fn is_wrapper(architecture: &str) -> bool {
    architecture.ends_with("ForConditionalGeneration")
}

/// Whether a configuration says the same model.
fn same(json: &Value, config: &Config) -> bool {
    Config::from_hf(json).is_ok_and(|read| read == *config)
}

/// Without what is assumed anyway.
fn leave_out(mut json: Value, config: &Config) -> Value {
    for key in RARE {
        let Some(value) = json.as_object_mut().and_then(|map| map.shift_remove(key)) else { continue };
        if !same(&json, config) {
            json[key] = value;
        }
    }
    json
}

/// The usual parameters of Llama 3's scaling that give these factors.
fn llama3(rope: &Rope, factors: &[f32]) -> Option<RopeScaling> {
    let candidates = [8.0, 32.0, 16.0, 4.0, 2.0, 64.0].into_iter().flat_map(|factor| {
        [(1.0, 4.0), (1.0, 1.0)].into_iter().flat_map(move |(low_freq_factor, high_freq_factor)| {
            let contexts = std::iter::once(8192).chain((3..22).map(|n| 1usize << n));
            contexts.map(move |original_context| RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            })
        })
    });
    candidates.into_iter().find(|scaling| Rope { scaling: scaling.clone(), ..rope.clone() }.llama3_factors() == factors)
}

/// As the shortest decimal that is this number.
fn number(x: f32) -> Value {
    format!("{x}").parse::<f64>().map_or(Value::Null, Value::from)
}

/// All that families of this kind may read. `None` for what they have no words for.
fn state(c: &Config, family: &Family, name: &HfName) -> Option<Value> {
    let heads = c.first_heads()?;
    let rope = c.rope();
    let mut m = Map::new();
    let mut set = |key: &str, value: Value| m.insert(key.to_string(), value);
    set("architectures", json!([name.architecture]));
    set("model_type", name.model_type.into());
    set("vocab_size", c.vocab.into());
    set("hidden_size", c.hidden.into());
    set("intermediate_size", c.ffn.into());
    set("num_hidden_layers", c.layers.len().into());
    set("num_attention_heads", heads.q.into());
    set("num_key_value_heads", heads.kv.into());
    set("head_dim", heads.dim.into());
    set("max_position_embeddings", c.context.into());
    set(family.norm_eps_key, number(c.norm_eps));
    set("tie_word_embeddings", c.tied_embeddings.into());
    if let Some(rope) = rope {
        set("rope_theta", number(rope.theta));
        set("rope_scaling", scaling(&rope.scaling)?);
        if let RopeScaling::LongRope { original_context, .. } = &rope.scaling {
            set("original_max_position_embeddings", (*original_context).into());
        }
        set("partial_rotary_factor", number(rope.dims as f32 / heads.dim.max(1) as f32));
    }
    if let Some(local) = c.ropes.get(1) {
        set("rope_local_base_freq", number(local.theta));
    }
    let (dense, experts) = (c.layers.iter().find_map(|l| l.ffn.dense.as_ref()), c.experts());
    let activation = dense.map(|d| d.activation).or(experts.map(|e| e.activation));
    if let Some((word, _)) = family.activations.names.iter().find(|(_, a)| Some(*a) == activation) {
        set(family.activations.key, (*word).into());
    }
    let dense_bias = dense.is_some_and(|d| d.bias);
    set("attention_bias", (heads.qkv_bias || heads.output_bias).into());
    set("qkv_bias", heads.qkv_bias.into());
    set("use_qkv_bias", heads.qkv_bias.into());
    set("attention_out_bias", heads.output_bias.into());
    set("mlp_bias", dense_bias.into());
    set("use_bias", (heads.output_bias || dense_bias).into());
    let slides = c.slides();
    set("sliding_window", c.window().map_or(Value::Null, Value::from));
    set("use_sliding_window", c.window().is_some().into());
    if c.window().is_some() {
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        set("layer_types", slides.iter().map(kind).collect());
    }
    let scalar = 1.0 / (heads.scale * heads.scale);
    let whole = scalar.round();
    // transformers takes a whole number for one, and nothing else.
    let scalar = if (scalar - whole).abs() < 1e-3 * whole { Value::from(whole as u64) } else { number(scalar) };
    set("query_pre_attn_scalar", scalar);
    set("attention_multiplier", number(heads.scale));
    set("attn_logit_softcapping", heads.softcap.map_or(Value::Null, number));
    set("final_logit_softcapping", c.logit_softcap.map_or(Value::Null, number));
    set("logit_scale", number(c.logit_scale));
    set("logits_scaling", number(c.logit_scale));
    set("embedding_multiplier", number(c.embedding_scale));
    set("residual_multiplier", number(c.residual_scale));
    let rotates = c.attention().map(|h| u64::from(h.rope.is_some()));
    set("no_rope_layers", rotates.collect());
    match (&name.experts, experts) {
        (Some(keys), Some(experts)) => {
            let count = if keys.norm_topk.is_none() { "num_local_experts" } else { "num_experts" };
            set(count, experts.count.into());
            set("num_experts_per_tok", experts.used.into());
            set(keys.width, experts.ffn.into());
            if let Some(key) = keys.shared {
                set(key, experts.shared_ffn?.into());
            }
            if let Some(key) = keys.norm_topk {
                set(key, experts.norm_topk.into());
            }
        }
        (None, None) => {}
        _ => return None,
    }
    Some(Value::Object(m))
}

fn scaling(scaling: &RopeScaling) -> Option<Value> {
    let list = |values: &[f32]| -> Value { values.iter().map(|x| number(*x)).collect() };
    Some(match scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": number(*factor) }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3", "factor": number(*factor), "low_freq_factor": number(*low_freq_factor),
            "high_freq_factor": number(*high_freq_factor), "original_max_position_embeddings": original_context,
        }),
        RopeScaling::Yarn { factor, original_context, attention_factor, beta_fast, beta_slow, truncate } => {
            let mut yarn = json!({
                "rope_type": "yarn", "factor": number(*factor), "original_max_position_embeddings": original_context,
                "beta_fast": number(*beta_fast), "beta_slow": number(*beta_slow),
            });
            if let Some(factor) = attention_factor {
                yarn["attention_factor"] = number(*factor);
            }
            if !truncate {
                yarn["truncate"] = false.into();
            }
            yarn
        }
        RopeScaling::LongRope { short, long, original_context, attention_factor } => {
            let mut longrope = json!({
                "rope_type": "longrope", "short_factor": list(short), "long_factor": list(long),
                "original_max_position_embeddings": original_context,
            });
            if let Some(factor) = attention_factor {
                longrope["attention_factor"] = number(*factor);
            }
            longrope
        }
    })
}
