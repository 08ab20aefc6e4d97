//! Mistral's own layout: `params.json` beside `consolidated.safetensors`, restated as a `config.json`. The rows of its queries
//! and keys lie as GGUF has them already.

use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// The class that the restated configuration names; there is a blueprint of it.
pub(super) const CLASS: &str = "MistralOwnLayout";

/// Keys by transformers' names; the first of Mistral's that is there.
const KEYS: [(&str, &[&str]); 12] = [
    ("hidden_size", &["dim"]),
    ("num_hidden_layers", &["n_layers"]),
    ("num_attention_heads", &["n_heads"]),
    ("num_key_value_heads", &["n_kv_heads"]),
    ("head_dim", &["head_dim"]),
    ("intermediate_size", &["hidden_dim"]),
    ("rms_norm_eps", &["norm_eps"]),
    ("vocab_size", &["vocab_size"]),
    ("rope_theta", &["rope_theta"]),
    ("max_position_embeddings", &["max_position_embeddings", "max_seq_len"]),
    ("tie_word_embeddings", &["tied_embeddings"]),
    ("sliding_window", &["sliding_window"]),
];

/// What a GGUF file of this layout would need beyond it.
const BEYOND: [&str; 5] = ["moe", "yarn", "llama_4_scaling", "quantization", "q_lora_rank"];

/// # Errors
/// `Unsupported` for what only some of these models have.
pub(super) fn restated(params: &Value) -> Result<Value> {
    if let Some(key) = BEYOND.iter().find(|key| params.get(**key).is_some_and(|v| !v.is_null())) {
        let what = format!("params.json has '{key}', which is not read from Mistral's own layout");
        return Err(Error::unsupported(what).hint("fetch the model in transformers' layout (config.json)"));
    }
    let mut config = Map::new();
    config.insert("architectures".into(), json!([CLASS]));
    config.insert("model_type".into(), json!("mistral"));
    for (key, theirs) in KEYS {
        if let Some(value) = theirs.iter().find_map(|key| params.get(*key)).filter(|v| !v.is_null()) {
            config.insert(key.into(), value.clone());
        }
    }
    // Of a model that sees images, as it is: the projector's blueprint reads it.
    if let Some(vision) = params.get("vision_encoder").filter(|v| v.is_object()) {
        config.insert("vision_encoder".into(), vision.clone());
    }
    config.entry("max_position_embeddings").or_insert(json!(128_000));
    config.entry("tie_word_embeddings").or_insert(json!(false));
    Ok(Value::Object(config))
}
