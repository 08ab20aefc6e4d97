//! The small files of a checkpoint folder: those copied from the source, the configuration with the quantization added,
//! the manifest that says what was made of what, and the model card for people.

use crate::Result;
use crate::card::{FolderCard, Parent, placeholder};
use crate::convert::companions::others;
use crate::convert::layout::{Departure, FolderPlan, pretty};
use crate::model::Model;
use crate::packed::Spec;
use crate::packed::engines::MlxFamily;
use crate::source::Checkpoint;
use crate::writer::folder::{Folder, MANIFEST};
use serde_json::Value;

/// The source's `config.json` with nothing changed but what was added.
pub fn config(source: &Value, planned: &FolderPlan) -> String {
    let mut config = source.clone();
    if let Value::Object(map) = &mut config {
        if planned.spec.doubles_config() {
            for (key, value) in keys_beside(source) {
                map.insert(key.into(), value);
            }
            if let Some(Value::Object(text)) = map.get_mut("text_config") {
                keys_beside(&source["text_config"]).into_iter().for_each(|(key, value)| {
                    text.insert(key.into(), value);
                });
            }
            map.insert("quantization".into(), planned.config.clone());
        }
        map.insert("quantization_config".into(), planned.config.clone());
    }
    pretty(&config)
}

/// What a configuration as transformers 5 saves it says under new names alone, or leaves to be derived, under the names
/// that mlx-lm reads.
pub fn keys_beside(config: &Value) -> Vec<(&'static str, Value)> {
    let mut found = Vec::new();
    let lacks = |key: &str| config.get(key).is_none_or(Value::is_null);
    let rope = &config["rope_parameters"];
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = rope.get(key).filter(|value| lacks(key) && value.is_number()) {
            found.push((key, value.clone()));
        }
    }
    let kind = rope.get("rope_type").and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| *kind != "default" && lacks("rope_scaling")) {
        let mut scaling = rope.clone();
        scaling["type"] = kind.into();
        found.push(("rope_scaling", scaling));
    }
    if let Some(experts) = config.get("num_local_experts").filter(|_| lacks("num_experts")) {
        // Mixtral's own name is the new one.
        if config.get("moe_intermediate_size").is_some() {
            found.push(("num_experts", experts.clone()));
        }
    }
    let Some(family) = config.get("model_type").and_then(Value::as_str).and_then(MlxFamily::of) else { return found };
    let derived = |key: &str| -> Option<Value> {
        let number = |key: &str| config.get(key)?.as_u64();
        match key {
            "head_dim" => Some(number("hidden_size")?.checked_div(number("num_attention_heads")?)?.into()),
            "block_dim" => Some(number("hidden_size")?.into()),
            "rope_scaling" => Some(Value::Null),
            _ => None,
        }
    };
    for key in family.needed.iter().filter(|key| config.get(**key).is_none()) {
        if let Some(value) = derived(key).filter(|_| found.iter().all(|(known, _)| known != key)) {
            found.push((key, value));
        }
    }
    found
}

/// What a folder's tags say of its format.
pub fn tags(spec: &Spec, has_chat: bool) -> Vec<String> {
    let name = spec.to_string();
    let word = name.split('-').next().unwrap_or(&name).to_string();
    let chat = has_chat.then(|| "conversational".to_string());
    ["quantized".to_string(), word].into_iter().chain(chat).collect()
}

/// The model card of a folder called `name`.
///
/// # Errors
/// As [`FolderCard::text`].
pub fn card(
    name: &str,
    planned: &FolderPlan,
    manifest: &Value,
    departures: &[Departure],
    about: &About,
) -> Result<String> {
    let bits = manifest["bits_per_weight"].as_f64().unwrap_or(0.0);
    let format = planned.spec.to_string();
    let tags = tags(&planned.spec, about.has_chat);
    let data = &manifest["calibration"];
    let calibration = data["tokens"].as_u64().map(|tokens| (tokens, data["sha256"].as_str().unwrap_or_default()));
    let cells = |d: &Departure| {
        let module = d.module.clone().unwrap_or_else(|| "all".into());
        vec![module, d.asked.clone(), d.done.clone(), d.reason.clone()]
    };
    let departures = departures.iter().map(cells).collect();
    let card = FolderCard {
        name,
        parent: &about.parent,
        format: &format,
        loader: planned.spec.loader(),
        tags: &tags,
        pipeline: Some("text-generation").filter(|_| about.is_text),
        quantized_by: about.quantized_by.as_deref(),
        bits_per_weight: bits,
        measured: &about.measured,
        calibration,
        departures,
        manifest: MANIFEST,
        repository: &about.repository.clone().unwrap_or_else(|| placeholder(name)),
        sub: about.sub.as_deref(),
    };
    card.text()
}

/// What a card says of a folder beyond what is in it.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub parent: Parent,
    pub has_chat: bool,
    /// Whether it writes text.
    pub is_text: bool,
    pub quantized_by: Option<String>,
    pub repository: Option<String>,
    /// Its name within the repository, where it is a part of one.
    pub sub: Option<String>,
    /// What it costs, in a sentence, where that was measured.
    pub measured: String,
}

impl About {
    /// What can be told of a source.
    pub fn of(ckpt: &Checkpoint, model: &Model, name: &str) -> About {
        let parent = Parent::of(ckpt.dir(), model.hf_config.as_ref(), ckpt.gguf(), name);
        About { parent, has_chat: has_chat(ckpt), is_text: model.runnable().is_ok(), ..About::default() }
    }
}

/// Whether a source has a chat template.
pub fn has_chat(ckpt: &Checkpoint) -> bool {
    if let Some(metadata) = ckpt.gguf() {
        return metadata.str("tokenizer.chat_template").is_some();
    }
    let dir = ckpt.dir();
    let in_config = || {
        let config = crate::input::read_json(&dir.join("tokenizer_config.json")).ok();
        config.is_some_and(|config| config.get("chat_template").is_some_and(|t| !t.is_null()))
    };
    dir.join("chat_template.jinja").is_file() || dir.join("chat_template.json").is_file() || in_config()
}

/// Writes everything that is small into the folder, `config.json` excepted. `name`: what the card calls it; it does not
/// depend on where the folder lies.
pub fn write(
    folder: &Folder,
    ckpt: &Checkpoint,
    planned: &FolderPlan,
    manifest: &Value,
    name: &str,
    departures: &[Departure],
    about: &About,
) -> Result<()> {
    for name in others(ckpt.dir())? {
        folder.copy(&ckpt.dir().join(&name), &name)?;
    }
    for name in planned.spec.extra_config_files() {
        folder.text(name, &pretty(&planned.config))?;
    }
    folder.text(MANIFEST, &pretty(manifest))?;
    folder.text("README.md", &card(name, planned, manifest, departures, about)?)
}

/// Departures as rows of the manifest.
pub fn ledger(departures: &[Departure]) -> Value {
    departures.iter().map(|d| d.of("").in_manifest()).collect()
}

/// The departures that a part of the run noted.
pub fn departures(record: &Value) -> Vec<Departure> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    let rows = record["ledger"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |row: &Value| Departure {
        kind: serde_json::from_value(row["kind"].clone()).unwrap_or_default(),
        module: row["module"].as_str().map(String::from),
        asked: text(row, "asked"),
        done: text(row, "done"),
        reason: text(row, "reason"),
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_names_stand_beside_new_ones() {
        let new = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }, "num_local_experts": 8,
            "moe_intermediate_size": 64 });
        assert_eq!(keys_beside(&new), [("rope_theta", json!(1e6)), ("num_experts", json!(8))]);
        let old = json!({ "rope_theta": 1e4, "num_experts": 8, "moe_intermediate_size": 64 });
        assert!(keys_beside(&old).is_empty());
        let mixtral = json!({ "num_local_experts": 8, "rope_theta": 1e4 });
        assert!(keys_beside(&mixtral).is_empty());
        let yarn = json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4, "partial_rotary_factor": 0.5 } });
        let scaling = json!({ "rope_type": "yarn", "factor": 4, "partial_rotary_factor": 0.5, "type": "yarn" });
        assert_eq!(keys_beside(&yarn), [("partial_rotary_factor", json!(0.5)), ("rope_scaling", scaling)]);
        let derived = json!({ "model_type": "exaone4", "hidden_size": 64, "num_attention_heads": 4 });
        assert_eq!(keys_beside(&derived), [("head_dim", json!(16)), ("rope_scaling", Value::Null)]);
    }
}
