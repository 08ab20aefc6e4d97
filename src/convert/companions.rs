//! The small files beside the weights of a checkpoint folder: configuration, tokenizer, templates, documentation.

use crate::writer::folder::MANIFEST;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Component, Path};

/// Weights in some form, and files that describe them: what a quantized copy replaces. The rest is copied.
const WEIGHTS: [&str; 13] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
    ".tflite",
    ".npz",
    ".index.json",
];

/// How unfinished work of this program ends, which may lie beside a source.
const UNFINISHED: [&str; 3] = [".resume", ".resume.new", ".partial"];

/// Files that are written here, whatever the source has under these names.
const OURS: [&str; 5] = ["config.json", "quantize_config.json", "quant_config.json", MANIFEST, "README.md"];

/// Larger files are no configuration, tokenizer or documentation.
const LIMIT: u64 = 1 << 30;

/// The folders of what sentence-transformers runs behind the model: pooling, dense layers.
fn modules(dir: &Path) -> Result<Vec<String>> {
    let list = dir.join("modules.json");
    let modules = if list.is_file() { crate::input::read_json(&list)? } else { Value::Null };
    let paths = modules.as_array().into_iter().flatten().filter_map(|module| module.get("path")?.as_str());
    // One name each: nothing outside of the folder belongs to the model.
    let is_name = |path: &&str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    Ok(paths.filter(is_name).filter(|path| !path.is_empty() && dir.join(path).is_dir()).map(String::from).collect())
}

/// Names of the files beside the weights that belong to the model: everything in the folder itself that is neither a
/// weight nor hidden, the chat templates of `additional_chat_templates`, and the modules of sentence-transformers with
/// their weights.
///
/// # Errors
/// `Io`; `BadInput` for a list of modules that is no JSON.
pub fn others(dir: &Path) -> Result<Vec<String>> {
    let modules = modules(dir)?;
    let mut names = Vec::new();
    for folder in ["", "additional_chat_templates"].into_iter().chain(modules.iter().map(String::as_str)) {
        let is_module = modules.iter().any(|module| module == folder);
        let Ok(entries) = std::fs::read_dir(dir.join(folder)) else { continue };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(dir, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let small = entry.path().metadata().is_ok_and(|m| m.is_file() && m.len() <= LIMIT);
            let lower = name.to_ascii_lowercase();
            let ends = |with: &[&str]| with.iter().any(|end| lower.ends_with(end));
            let is_ours = ends(&WEIGHTS) || ends(&UNFINISHED) || OURS.contains(&name.as_str());
            if small && !name.starts_with('.') && (is_module || !is_ours) {
                names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Every small file that belongs to the model, the configuration and the model card with them: what an output depends on
/// beside the weights.
///
/// # Errors
/// `Io`.
pub fn companions(dir: &Path) -> Result<Vec<String>> {
    let mut names = others(dir)?;
    names.extend(["config.json", "README.md"].iter().filter(|name| dir.join(name).is_file()).map(|s| s.to_string()));
    names.sort();
    Ok(names)
}
