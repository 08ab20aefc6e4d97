//! What gets lost on the way into a GGUF file: two configurations compared fact by fact.

use super::write::write;
use crate::gguf::Metadata;
use crate::model::config::{Config, LayerConfig, Mixer, RopeScaling, Temperature, longrope_attention_factor};
use crate::model::family::Entry;
use crate::model::understood::Model;
use crate::{Error, Result};

/// A fact of a configuration that its GGUF file does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// As this program calls it.
    pub fact: &'static str,
    /// What the source says, and what a reader of the file will take it for; of layers, the first that differs.
    pub source: String,
    pub file: String,
    /// How many layers it concerns; 0 for facts of the whole model.
    pub layers: usize,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lost { fact, source, file, layers } = self;
        let of = if *layers > 0 { format!(" of {layers} layers") } else { String::new() };
        write!(f, "GGUF cannot hold the {fact}{of}: {source} in config.json, {file} for programs that run the file")
    }
}

/// What a GGUF file of this model cannot hold: its metadata read back, completed by what its tensors tell, against the
/// configuration. Empty for a GGUF source.
///
/// # Errors
/// Those of writing and reading metadata.
pub fn lost(model: &Model) -> Result<Vec<Lost>> {
    let Some(json) = &model.hf_config else { return Ok(Vec::new()) };
    let ours = &model.config;
    let Ok(family) = model.known() else {
        return Ok(model.as_file().map_or_else(Vec::new, |file| differences(ours, &file)));
    };
    let mut meta = Metadata::new();
    meta.set("general.architecture", family.gguf);
    write(ours, family, json, &mut meta, |_| {}, 0)?;
    let ours_alone = family.entries().filter_map(|entry| match entry {
        Entry::Ours(key) => Some(key.name),
        _ => None,
    });
    ours_alone.for_each(|key| meta.remove(&format!("{}.{key}", family.gguf)));
    let size = u32::try_from(ours.vocab).map_err(|_| Error::bad_input("vocabulary does not fit GGUF"))?;
    meta.set(format!("{}.vocab_size", family.gguf), size);
    let mut back = Config::from_gguf(&meta)?;
    told_by_tensors(&mut back, model);
    let mut lost = differences(ours, &back);
    let text = json.get("text_config").unwrap_or(json);
    let scaling = ["rope_scaling", "rope_parameters"].iter().find_map(|key| text.get(key));
    let kind = scaling.and_then(|s| s.get("rope_type").or(s.get("type"))?.as_str());
    if kind == Some("dynamic") {
        lost.push(Lost { fact: "rotary scaling", source: "dynamic".into(), file: "none".into(), layers: 0 });
    }
    Ok(lost)
}

/// Biases, a tied head and rotary factors are tensors, or their absence.
fn told_by_tensors(back: &mut Config, model: &Model) {
    let ours = &model.config;
    back.tied_embeddings = ours.tied_embeddings;
    for (back, ours) in back.layers.iter_mut().zip(&ours.layers) {
        if let (Some(back), Some(ours)) = (back.heads_mut(), ours.heads()) {
            (back.qkv_bias, back.output_bias) = (ours.qkv_bias, ours.output_bias);
        }
        if let (Some(back), Some(ours)) = (&mut back.ffn.dense, &ours.ffn.dense) {
            back.bias = ours.bias;
        }
    }
    let (context, rope) = (ours.context, ours.rope());
    if let (false, Some(back), Some(ours)) = (model.generated.is_empty(), back.ropes.first_mut(), rope) {
        back.scaling = ours.scaling.clone();
        if let RopeScaling::LongRope { original_context, attention_factor: Some(factor), .. } = &mut back.scaling {
            *factor = longrope_attention_factor(context, *original_context);
        }
    }
}

/// Fact by fact, what two configurations of one family say differently.
pub fn differences(source: &Config, file: &Config) -> Vec<Lost> {
    let mut lost = Vec::new();
    for (fact, of) in MODEL_FACTS {
        let (source, file) = (of(source), of(file));
        if source != file {
            lost.push(Lost { fact, source, file, layers: 0 });
        }
    }
    for (fact, of) in LAYER_FACTS {
        let pairs = source.layers.iter().zip(&file.layers).map(|(a, b)| (of(a), of(b)));
        let differing: Vec<_> = pairs.filter(|(a, b)| a != b).collect();
        let layers = differing.len();
        if let Some((source, file)) = differing.into_iter().next() {
            lost.push(Lost { fact, source, file, layers });
        }
    }
    lost
}

/// A name and how a value is shown.
type Fact<T> = (&'static str, fn(&T) -> String);

const MODEL_FACTS: &[Fact<Config>] = &[
    ("layers", |c| c.layers.len().to_string()),
    ("hidden size", |c| c.hidden.to_string()),
    ("feed-forward size", |c| c.ffn.to_string()),
    ("vocabulary", |c| c.vocab.to_string()),
    ("context length", |c| c.context.to_string()),
    ("kind of norm", |c| format!("{:?}", c.norm)),
    ("norm epsilon", |c| c.norm_eps.to_string()),
    ("rotary base", |c| shown(c.rope().map(|r| r.theta))),
    ("rotary dimensions", |c| shown(c.rope().map(|r| r.dims))),
    ("rotary scaling", |c| c.rope().map_or(String::new(), |r| format!("{:?}", r.scaling))),
    ("rotary base of layers with a window", |c| shown(c.ropes.get(1).map(|r| r.theta))),
    ("rotary scaling of layers with a window", |c| {
        c.ropes.get(1).map_or(String::new(), |r| format!("{:?}", r.scaling))
    }),
    ("tied embeddings", |c| c.tied_embeddings.to_string()),
    ("softcap of logits", |c| shown(c.logit_softcap)),
    ("scale of embeddings", |c| c.embedding_scale.to_string()),
    ("scale of residuals", |c| c.residual_scale.to_string()),
    ("scale of logits", |c| c.logit_scale.to_string()),
];

const LAYER_FACTS: &[Fact<LayerConfig>] = &[
    ("heads", |l| shown(l.heads().map(|h| h.q))),
    ("key-value heads", |l| shown(l.heads().map(|h| h.kv))),
    ("head size", |l| shown(l.heads().map(|h| h.dim))),
    ("value head size", |l| shown(l.heads().map(|h| h.value_dim))),
    ("attention window", |l| shown(l.heads().and_then(|h| h.window))),
    ("positions", |l| shown(l.heads().and_then(|h| h.rope))),
    ("attention scale", |l| shown(l.heads().map(|h| h.scale))),
    ("softcap of attention", |l| shown(l.heads().and_then(|h| h.softcap))),
    ("attention temperature", |l| {
        let of = |t: Option<Temperature>| t.map(|t| (t.scale, t.floor));
        match &l.mixer {
            Mixer::Attention(heads) => format!("{:?}", of(heads.peculiar.temperature)),
            Mixer::Latent(latent) => format!("{:?}", of(latent.temperature)),
            _ => String::new(),
        }
    }),
    ("norms of queries and keys without weights", |l| shown(l.heads().map(|h| h.peculiar.unit_norm))),
    ("attention biases", |l| format!("{:?}", l.heads().map(|h| (h.qkv_bias, h.output_bias)))),
    ("feed-forward block", |l| format!("{:?}", l.ffn.dense)),
    ("experts", |l| shown(l.ffn.experts.as_ref().map(|e| e.count))),
    ("experts used", |l| shown(l.ffn.experts.as_ref().map(|e| e.used))),
    ("expert width", |l| shown(l.ffn.experts.as_ref().map(|e| e.ffn))),
    ("shared expert width", |l| shown(l.ffn.experts.as_ref().and_then(|e| e.shared_ffn))),
    ("normalised expert weights", |l| shown(l.ffn.experts.as_ref().map(|e| e.norm_topk))),
    ("activation of experts", |l| format!("{:?}", l.ffn.experts.as_ref().map(|e| e.activation))),
    ("wiring", |l| format!("{:?}", l.wiring)),
];

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "none".into(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> Config {
        Config::from_hf(&json).unwrap()
    }

    #[test]
    fn differences_are_named_and_counted() {
        let json = serde_json::json!({
            "architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "sliding_window": 16,
        });
        let source = config(json.clone());
        assert!(differences(&source, &source).is_empty());
        let mut plain = json;
        plain["sliding_window"] = serde_json::Value::Null;
        plain["rope_theta"] = serde_json::json!(5e5);
        let found = differences(&source, &config(plain));
        let facts: Vec<_> = found.iter().map(|l| (l.fact, l.source.as_str(), l.file.as_str(), l.layers)).collect();
        assert_eq!(facts, [("rotary base", "10000", "500000", 0), ("attention window", "16", "none", 3)]);
    }
}
