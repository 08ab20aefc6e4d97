//! The small files of a checkpoint folder: those copied from the source, the configuration with the quantization added,
//! the manifest that says what was made of what, and the section of the model card for people.

use super::plan::{Departure, FolderPlan};
use crate::convert::companions::others;
use crate::packed::Spec;
use crate::source::Checkpoint;
use crate::writer::folder::{Folder, MANIFEST};
use crate::{Error, Result};
use serde_json::{Value, json};

/// The source's `config.json` with nothing changed but what was added.
pub fn config(source: &Value, planned: &FolderPlan) -> String {
    let mut config = source.clone();
    if let Value::Object(map) = &mut config {
        if planned.spec.doubles_config() {
            for (key, value) in keys_beside(source) {
                map.insert(key.into(), value);
            }
            map.insert("quantization".into(), planned.config.clone());
        }
        map.insert("quantization_config".into(), planned.config.clone());
    }
    pretty(&config)
}

/// What a configuration as transformers 5 saves it says under new names alone, under the old ones that other engines read.
pub fn keys_beside(config: &Value) -> Vec<(&'static str, Value)> {
    let mut found = Vec::new();
    let lacks = |key: &str| config.get(key).is_none_or(Value::is_null);
    if let Some(theta) = config["rope_parameters"].get("rope_theta").filter(|_| lacks("rope_theta")) {
        found.push(("rope_theta", theta.clone()));
    }
    let kind = config["rope_parameters"].get("rope_type").and_then(Value::as_str);
    if kind.is_some_and(|kind| kind != "default") && lacks("rope_scaling") {
        found.push(("rope_scaling", config["rope_parameters"].clone()));
    }
    if let Some(experts) = config.get("num_local_experts").filter(|_| lacks("num_experts")) {
        // Mixtral's own name is the new one.
        if config.get("moe_intermediate_size").is_some() {
            found.push(("num_experts", experts.clone()));
        }
    }
    found
}

/// Indented by two, as transformers writes it, with a newline at the end.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// The model card's section; also what people see of the run when they open the folder.
fn card_section(spec: &Spec, source: &str, manifest: &Value, departures: &[Departure]) -> String {
    let bits = manifest["bits_per_weight"].as_f64().unwrap_or(0.0);
    let mut text = format!(
        "## Quantization\n\nThis is `{source}` quantized to `{spec}` by quantize {} ({bits:.2} bits per quantized weight). \
         Embeddings, norms, routers and biases are as they were unless said otherwise; `{MANIFEST}` records the recipe, \
         the source's hashes and the loss of every module.\n",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(data) = manifest["calibration"].as_object() {
        let (tokens, hash) = (&data["tokens"], data["sha256"].as_str().unwrap_or(""));
        text += &format!("\nCalibration: {tokens} tokens, SHA-256 of the tokens `{hash}`.\n");
    }
    if !departures.is_empty() {
        text += "\n| Module | Asked | Done | Reason |\n|---|---|---|---|\n";
        const SHOWN: usize = 20;
        for d in departures.iter().take(SHOWN) {
            let module = d.module.as_deref().unwrap_or("all");
            text += &format!("| {module} | {} | {} | {} |\n", d.asked, d.done, d.reason);
        }
        if departures.len() > SHOWN {
            text += &format!("\n{} more are in `{MANIFEST}`.\n", departures.len() - SHOWN);
        }
    }
    text
}

/// Writes everything that is small into the folder, `config.json` excepted.
pub fn write(
    folder: &Folder,
    ckpt: &Checkpoint,
    planned: &FolderPlan,
    manifest: &Value,
    source: &str,
    departures: &[Departure],
) -> Result<()> {
    for name in others(ckpt.dir())? {
        folder.copy(&ckpt.dir().join(&name), &name)?;
    }
    for name in planned.spec.extra_config_files() {
        folder.text(name, &pretty(&planned.config))?;
    }
    folder.text(MANIFEST, &pretty(manifest))?;
    let card = ckpt.dir().join("README.md");
    let mut text = match std::fs::read_to_string(&card) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::io(&card, e)),
    };
    if !text.is_empty() {
        text += if text.ends_with('\n') { "\n" } else { "\n\n" };
    }
    folder.text("README.md", &(text + &card_section(&planned.spec, source, manifest, departures)))
}

/// Departures as rows of the manifest.
pub fn ledger(departures: &[Departure]) -> Value {
    let row = |d: &Departure| json!({ "module": d.module, "asked": d.asked, "done": d.done, "reason": d.reason });
    departures.iter().map(row).collect()
}

/// The departures that a part of the run noted.
pub fn departures(record: &Value) -> Vec<Departure> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    let rows = record["ledger"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |row: &Value| Departure {
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

    #[test]
    fn old_names_stand_beside_new_ones() {
        let new = json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }, "num_local_experts": 8,
            "moe_intermediate_size": 64 });
        assert_eq!(keys_beside(&new), [("rope_theta", json!(1e6)), ("num_experts", json!(8))]);
        let old = json!({ "rope_theta": 1e4, "num_experts": 8, "moe_intermediate_size": 64 });
        assert!(keys_beside(&old).is_empty());
        let mixtral = json!({ "num_local_experts": 8, "rope_theta": 1e4 });
        assert!(keys_beside(&mixtral).is_empty());
    }
}
