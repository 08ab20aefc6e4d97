//! How an artifact was made, read from its own record, and whether what it was calibrated on holds the evaluation text.

use crate::calibration::data::Source;
use crate::calibration::overlap;
use crate::control::Run;
use crate::convert::{data as windows, recipe::Recipe, record};
use crate::gguf::Metadata;
use crate::model::SourceModel;
use crate::report::Origin;
use crate::source::Checkpoint;
use crate::writer::folder::MANIFEST;
use serde_json::Value;

/// What an artifact says of itself. `base`: the model whose tokenizer read the text, and the text, where there is one.
/// `None` where it says nothing. What cannot be read or drawn again is left out; a report does not fail for it.
pub fn of(artifact: &Checkpoint, base: Option<(&SourceModel, &[u32])>, run: Run) -> Option<Origin> {
    let (mut made, recipe) = match artifact.gguf() {
        Some(metadata) => of_file(metadata)?,
        None => of_folder(artifact)?,
    };
    made.overlap = base.zip(recipe).and_then(|((source, text), recipe)| overlap(source, text, &recipe, run));
    Some(made)
}

fn of_file(metadata: &Metadata) -> Option<(Origin, Option<Recipe>)> {
    let recipe = record::read(metadata);
    let mut parts = Vec::new();
    match metadata.str("quantize.version") {
        Some(version) => parts.push(format!("quantize {version}")),
        None if metadata.str("quantize.imatrix.file").is_some() => parts.push("llama-quantize".to_string()),
        None => return None,
    }
    if record::used_feedback(metadata) {
        parts.push("error feedback".into());
    }
    let sources = metadata.strings("quantize.calibration.sources").unwrap_or_default();
    let number = |key: &str| metadata.uint(&format!("quantize.{key}")).unwrap_or(0);
    if !sources.is_empty() {
        let (tokens, seed) = (number("calibration.tokens"), number("calibration.seed"));
        parts.push(format!("calibrated on {tokens} tokens of {} (seed {seed})", sources.join(", ")));
    } else if let Some(file) = metadata.str("quantize.imatrix.file") {
        let dataset = metadata.str("quantize.imatrix.dataset").map_or(String::new(), |d| format!(" of {d}"));
        parts.push(format!("importance matrix {file}{dataset}"));
    } else {
        parts.push("no calibration".into());
    }
    let json = metadata.str(record::RECIPE).and_then(|text| serde_json::from_str(text).ok());
    Some((Origin { how: parts.join(", "), recipe: json, overlap: None }, recipe))
}

fn of_folder(artifact: &Checkpoint) -> Option<(Origin, Option<Recipe>)> {
    let manifest: Value = crate::input::read_json(&artifact.dir().join(MANIFEST)).ok()?;
    let mut parts = vec![format!("quantize {}", manifest["quantize_version"].as_str()?)];
    if let Some(format) = manifest["format"].as_str() {
        parts.push(format.to_string());
    }
    let calibration = &manifest["calibration"];
    match calibration["tokens"].as_u64() {
        Some(tokens) => {
            let names = calibration["sources"].as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(|s| s["name"].as_str()).collect();
            parts.push(format!("calibrated on {tokens} tokens of {}", names.join(", ")));
        }
        None => parts.push("no calibration".into()),
    }
    let recipe = Recipe::from_json(&manifest["recipe"].to_string()).ok();
    Some((Origin { how: parts.join(", "), recipe: Some(manifest["recipe"].clone()), overlap: None }, recipe))
}

/// The share of the text's runs of 13 tokens that are in the windows of the recipe, drawn again.
fn overlap(source: &SourceModel, text: &[u32], recipe: &Recipe, run: Run) -> Option<f64> {
    let data = recipe.data.as_ref()?;
    // What a model sampled is not sampled again for this.
    if data.sources.contains(&Source::Model) {
        return None;
    }
    let drawing = windows::draw(source, data, None, run.unheard()).ok()?;
    Some(overlap::overlap(&drawing.windows, text).share())
}
