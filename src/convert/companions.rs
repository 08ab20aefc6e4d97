//! The small files beside the weights of a checkpoint folder: configuration, tokenizer, templates, documentation.

use crate::writer::folder::MANIFEST;
use crate::{Error, Result};
use std::path::Path;

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

/// Files that are written here, whatever the source has under these names.
const OURS: [&str; 5] = ["config.json", "quantize_config.json", "quant_config.json", MANIFEST, "README.md"];

/// Larger files are no configuration, tokenizer or documentation.
const LIMIT: u64 = 1 << 30;

/// Names of the files beside the weights that belong to the model: everything in the folder itself that is neither a
/// weight nor hidden, and the chat templates of `additional_chat_templates`.
pub fn others(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in ["", "additional_chat_templates"] {
        let Ok(entries) = std::fs::read_dir(dir.join(folder)) else { continue };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(dir, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let small = entry.path().metadata().is_ok_and(|m| m.is_file() && m.len() <= LIMIT);
            let lower = name.to_ascii_lowercase();
            let weights = WEIGHTS.iter().any(|w| lower.ends_with(w));
            if small && !weights && !name.starts_with('.') && !OURS.contains(&name.as_str()) {
                names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    names.sort();
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
