//! [`Config::from_hf`]: hyper-parameters from a `config.json`, in the spellings of transformers 4 (`rope_scaling`,
//! `rope_theta`, `num_experts`) and 5 (`rope_parameters`, nested per layer type), with the defaults that transformers
//! fills in. What a family does differently is a field or a function of its row in `families`. It reads the one JSON value
//! it is given, no files.

use super::anatomy;
use super::blueprint;
use super::config::{Config, Rope, RopeScaling, Sizes, yarn_attention_factor};
use super::families;
use super::family::{Family, HfName, Reading, Rotation};
use super::hf_json::{HfJson, as_size, hf_number, missing, number, wrong};
use crate::error::Hint;
use crate::{Error, Result};
use serde_json::Value;

/// The family that a `config.json` names.
///
/// # Errors
/// [`Error::Unsupported`] with the list of supported architectures.
pub fn family_of(json: &Value) -> Result<(&'static Family, &'static HfName)> {
    let architecture = blueprint::class(json);
    let model_type = json.get("model_type").and_then(Value::as_str);
    let known = families::by_hf(architecture, model_type);
    // A wrapper of images around a text model of a known family, and a model saved from its base class.
    let text = || {
        let text = json
            .get("text_config")
            .filter(|_| architecture.is_some_and(|a| a.ends_with("ForConditionalGeneration")))?;
        blueprint::class(text)
            .and_then(|own| families::by_hf(Some(own), None))
            .or_else(|| families::by_hf(None, text.get("model_type").and_then(Value::as_str)))
    };
    let base = || families::by_hf(Some(&format!("{}ForCausalLM", architecture?.strip_suffix("Model")?)), None);
    // llama.cpp has an architecture of its own for some wrappers of known text models.
    let found = if blueprint::find(json).is_some() { None } else { known.or_else(text).or_else(base) };
    found.ok_or_else(|| {
        let name = architecture.or(model_type).unwrap_or("(config.json names no architecture)");
        if let Some(blueprint) = blueprint::find(json) {
            if anatomy::runs(blueprint.gguf, name) {
                let what = format!("of {name} models no folders are made that need to know what each tensor means");
                return Error::unsupported(what).hint(Hint::FilesAndNearestFolders);
            }
            let what = format!("{name} models are converted only: they cannot be run or calibrated here");
            return Error::unsupported(what).hint(Hint::ConvertedOnly);
        }
        let near = nearest(name).map_or(String::new(), |near| format!("; the nearest that is: {near}"));
        Error::unsupported(format!("model architecture {name} is not known here{near}"))
    })
}

/// The known class whose name goes along with `name` the farthest, where that is most of it.
fn nearest(name: &str) -> Option<&'static str> {
    let stem = |class: &str| {
        let ends = ["ForCausalLM", "ForConditionalGeneration", "ForMaskedLM", "ForSequenceClassification", "Model"];
        ends.iter().find_map(|end| class.strip_suffix(end)).unwrap_or(class).to_ascii_lowercase()
    };
    let own = stem(name);
    let common = |class: &str| own.bytes().zip(stem(class).bytes()).take_while(|(a, b)| a == b).count();
    let near = |class: &&str| common(class) >= 4 && 3 * common(class) >= 2 * own.len();
    let known = families::architectures().chain(blueprint::all().flat_map(|b| b.classes.iter().copied()));
    // Of equals the first, which is the usual spelling.
    known.filter(near).min_by_key(|class| (std::cmp::Reverse(common(class)), stem(class).len()))
}

impl<'a> Reading<'a> {
    fn new(json: &'a Value) -> Result<Self> {
        let (family, name) = family_of(json)?;
        let d = &name.defaults;
        let j = HfJson::new(json);
        let required = |key: &str, default: Option<usize>| -> Result<usize> {
            j.size(&[key])?.or(default).ok_or_else(|| missing(key))
        };
        let layers = required("num_hidden_layers", d.layers)?;
        let hidden = required("hidden_size", d.hidden)?;
        let heads = required("num_attention_heads", d.heads)?;
        // An absent key takes the class default, a null one means as many as heads.
        let kv_default = if j.outer.get("num_key_value_heads").is_some() { None } else { d.kv_heads };
        let kv_heads = j.size(&["num_key_value_heads"])?.or(kv_default).unwrap_or(heads);
        let head_dim = match j.size(&["head_dim"])?.or(d.head_dim) {
            Some(n) => n,
            None if heads != 0 && hidden % heads == 0 => hidden / heads,
            None => {
                let what =
                    format!("config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
                return Err(Error::bad_input(what).hint("set head_dim"));
            }
        };
        let context = j.size(&["max_position_embeddings"])?.unwrap_or(d.context);
        let (ffn, vocab) = (required("intermediate_size", d.ffn)?, required("vocab_size", d.vocab)?);
        let sizes = Sizes { layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context };
        Ok(Reading { json: j, family, name, sizes })
    }
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown architecture or variant, [`Error::BadInput`] for a missing or absurd value.
    pub fn from_hf(json: &Value) -> Result<Config> {
        let reading = Reading::new(json)?;
        let Reading { json: j, family, name, sizes } = &reading;
        check_variant(*j, name)?;
        let ropes = ropes(&reading)?;
        sizes.check()?;
        let mut config = Config {
            arch: family.gguf.to_string(),
            layers: (family.layers)(&reading)?,
            hidden: sizes.hidden,
            ffn: sizes.ffn,
            vocab: sizes.vocab,
            context: sizes.context,
            norm: family.norm,
            norm_eps: hf_number(*j, family.norm_eps_key)?.unwrap_or(name.defaults.norm_eps),
            ropes,
            tied_embeddings: j.bool("tie_word_embeddings")?.unwrap_or(name.defaults.tied),
            logit_softcap: reading.cap("final_logit_softcapping", family.logit_softcap)?,
            embedding_scale: family.embedding_scale.of(sizes.hidden),
            logit_scale_divides: family.logit_scale_divides,
            norms: family.norms(),
            pairs: family.rotation == Rotation::Pairs,
            ..Config::default()
        };
        (family.finish)(&reading, &mut config)?;
        config.check()?;
        Ok(config)
    }
}

/// Variants that share a family's name and differ in ways nothing downstream knows.
fn check_variant(j: HfJson, name: &HfName) -> Result<()> {
    if j.bool("use_bidirectional_attention")? == Some(true) {
        return Err(Error::unsupported("config.json: bidirectional attention is not supported"));
    }
    if name.experts.is_some() {
        let sparse_step = j.size(&["decoder_sparse_step"])?.unwrap_or(1);
        let dense = j.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
        if sparse_step != 1 || dense {
            let what = "config.json: layers without experts in a mixture of experts (decoder_sparse_step, mlp_only_layers) are not supported";
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

/// The rotary embedding, and that of layers with a window where they have one of their own.
fn ropes(r: &Reading) -> Result<Vec<Rope>> {
    let (j, family, d) = (r.json, r.family, &r.name.defaults);
    let empty = Value::Null;
    // transformers prefers `rope_scaling` where a file has both.
    let table = j.get("rope_scaling").or_else(|| j.get("rope_parameters")).unwrap_or(&empty);
    if !table.is_null() && !table.is_object() {
        return Err(wrong("rope_parameters", table, "an object"));
    }
    let nested = |key: &str| table.get(key).filter(|v| v.is_object());
    let local = nested("sliding_attention");
    let full = nested("full_attention").unwrap_or(if local.is_some() { &empty } else { table });
    let theta = match number(full, "rope_theta")? {
        Some(theta) => theta,
        None => hf_number(j, "rope_theta")?.unwrap_or(d.theta),
    };
    let theta_local = match (d.theta_local, local) {
        (None, _) => None,
        (Some(default), local) => {
            let own = local.map(|l| number(l, "rope_theta")).transpose()?.flatten();
            Some(match own {
                Some(theta) => theta,
                None => hf_number(j, "rope_local_base_freq")?.unwrap_or(default),
            })
        }
    };
    let partial = match number(full, "partial_rotary_factor")? {
        Some(f) => f,
        None => hf_number(j, "partial_rotary_factor")?.unwrap_or(d.partial_rotary),
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::bad_input(format!("config.json: partial_rotary_factor is {partial}; expected 0 to 1")));
    }
    if partial != 1.0 && !family.partial_rotary {
        let what = format!("config.json: partial_rotary_factor {partial} is not supported for {}", family.gguf);
        return Err(Error::unsupported(what));
    }
    let original = match full.get("original_max_position_embeddings") {
        Some(v) if !v.is_null() => {
            Some(as_size(v).ok_or_else(|| wrong("original_max_position_embeddings", v, "a whole number"))?)
        }
        _ => j.size(&["original_max_position_embeddings"])?,
    };
    let scaling = scaling(full, original, family, r.sizes.context)?;
    let dims = (r.sizes.head_dim as f32 * partial) as usize;
    let local = theta_local.map(|theta| Rope { theta, dims, scaling: RopeScaling::Default });
    Ok(std::iter::once(Rope { theta, dims, scaling }).chain(local).collect())
}

fn scaling(table: &Value, original: Option<usize>, family: &Family, context: usize) -> Result<RopeScaling> {
    let kind = table.get("rope_type").or_else(|| table.get("type")).and_then(Value::as_str).unwrap_or("default");
    let positive = |key: &str, default: Option<f32>| -> Result<f32> {
        match number(table, key)?.or(default) {
            Some(f) if f > 0.0 => Ok(f),
            Some(f) => Err(Error::bad_input(format!("config.json: rope {key} is {f}; expected more than 0"))),
            None => Err(missing(&format!("rope_parameters.{key}"))),
        }
    };
    let stated = |key: &str| number(table, key);
    // Phi3 once called its own scheme "su", and for a while "yarn".
    let kind = if family.long_rope && kind == "yarn" { "longrope" } else { kind };
    match kind.to_ascii_lowercase().as_str() {
        // Dynamic NTK changes nothing up to the trained context, which is as far as this program goes.
        "default" | "dynamic" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: positive("factor", None)? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: positive("factor", Some(8.0))?,
            low_freq_factor: positive("low_freq_factor", Some(1.0))?,
            high_freq_factor: positive("high_freq_factor", Some(4.0))?,
            original_context: original.unwrap_or(8192),
        }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor: positive("factor", None)?,
            original_context: original.unwrap_or(context),
            attention_factor: match (stated("attention_factor")?, stated("attn_factor")?) {
                (Some(f), _) | (None, Some(f)) => Some(f),
                (None, None) => match (stated("mscale")?, stated("mscale_all_dim")?) {
                    (Some(a), Some(b)) if a * b != 0.0 => Some(yarn_attention_factor(positive("factor", None)?, a, b)),
                    _ => None,
                },
            },
            beta_fast: positive("beta_fast", Some(32.0))?,
            beta_slow: positive("beta_slow", Some(1.0))?,
            truncate: table.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        }),
        "longrope" | "su" => Ok(RopeScaling::LongRope {
            short: factors(table, "short_factor")?,
            long: factors(table, "long_factor")?,
            original_context: original.unwrap_or(4096),
            attention_factor: number(table, "attention_factor")?,
        }),
        other => Err(Error::unsupported(format!("config.json: rope scaling '{other}' is not supported"))),
    }
}

fn factors(table: &Value, key: &str) -> Result<Vec<f32>> {
    let list = table.get(key).and_then(Value::as_array).ok_or_else(|| missing(&format!("rope_parameters.{key}")))?;
    list.iter()
        .map(|v| match v.as_f64() {
            Some(f) if f > 0.0 && (f as f32).is_finite() => Ok(f as f32),
            _ => Err(wrong(key, v, "numbers above 0")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(architecture: &str, more: Value) -> Config {
        let mut json = json!({
            "architectures": [architecture], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        });
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::from_hf(&json).unwrap()
    }

    fn windows(c: &Config) -> Vec<Option<usize>> {
        c.attention().map(|h| h.window).collect()
    }

    fn positions(c: &Config) -> Vec<Option<usize>> {
        c.attention().map(|h| h.rope).collect()
    }

    #[test]
    fn layers_that_are_not_alike() {
        let c = config("Cohere2ForCausalLM", json!({"sliding_window": 8}));
        assert_eq!(windows(&c), [Some(8), Some(8), Some(8), None]);
        assert_eq!(positions(&c), [Some(0), Some(0), Some(0), None]);
        assert!(c.layers.iter().all(|l| l.wiring.parallel));

        let c = config("SmolLM3ForCausalLM", json!({}));
        assert_eq!(positions(&c), [Some(0), Some(0), Some(0), None]);
        let c = config("SmolLM3ForCausalLM", json!({"no_rope_layers": [0, 1, 0, 1]}));
        assert_eq!(positions(&c), [None, Some(0), None, Some(0)]);

        let types = json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        let c = config("Exaone4ForCausalLM", json!({"sliding_window": 8, "layer_types": types}));
        assert_eq!(positions(&c), [Some(0), None, None, Some(0)]);
        assert_eq!(positions(&config("Exaone4ForCausalLM", json!({"sliding_window": null}))), [Some(0); 4]);

        let rope = json!({
            "full_attention": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        });
        let c = config("Olmo3ForCausalLM", json!({"sliding_window": 8, "rope_parameters": rope}));
        assert_eq!(positions(&c), [Some(1), Some(1), Some(1), Some(0)]);
        assert!(matches!(c.ropes[0].scaling, RopeScaling::Yarn { .. }));
        assert_eq!((c.ropes[1].theta, &c.ropes[1].scaling), (1e4, &RopeScaling::Default));
        assert!(c.layers.iter().all(|l| l.wiring.post_norm && !l.wiring.pre_norm));
    }

    #[test]
    fn biases_and_scales_go_by_each_familys_keys() {
        let biases = |c: &Config| {
            let heads = c.first_heads().unwrap();
            (heads.qkv_bias, heads.output_bias, c.layers[0].ffn.dense.as_ref().unwrap().bias)
        };
        assert_eq!(biases(&config("Starcoder2ForCausalLM", json!({}))), (true, true, true));
        assert_eq!(biases(&config("SeedOssForCausalLM", json!({}))), (true, false, false));
        assert_eq!(biases(&config("StableLmForCausalLM", json!({"use_qkv_bias": true}))), (true, false, false));
        assert_eq!(biases(&config("Qwen2ForCausalLM", json!({}))), (true, false, false));
        assert_eq!(biases(&config("LlamaForCausalLM", json!({"attention_bias": true}))), (true, true, false));

        let scales = json!({"attention_multiplier": 0.5, "embedding_multiplier": 12.0, "logits_scaling": 8.0});
        let c = config("GraniteForCausalLM", scales);
        assert_eq!((c.embedding_scale, c.residual_scale, c.logit_scale), (12.0, 1.0, 8.0));
        assert_eq!(c.first_heads().unwrap().scale, 0.5);

        let c = config("StableLmForCausalLM", json!({}));
        assert_eq!((c.ropes[0].dims, c.norm), (4, crate::model::config::Norm::Layer));
        let gated = |name| config(name, json!({})).layers[0].ffn.dense.as_ref().unwrap().gated;
        assert!(!gated("ArceeForCausalLM") && gated("LlamaForCausalLM"));
    }
}
