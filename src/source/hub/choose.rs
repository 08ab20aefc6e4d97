//! Which files of a repository a conversion reads. Only files at the top are looked at: folders hold other formats and
//! original releases of the same weights.

use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";

const SMALL: [&str; 9] = [
    CONFIG,
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "README.md",
];
const SMALL_PREFIXES: [&str; 2] = ["tokenizer", "chat_template"];
const SMALL_SUFFIXES: [&str; 4] = [".json", ".model", ".txt", ".jinja"];

/// The weights that belong together.
#[derive(Debug, PartialEq)]
pub(super) enum Weights {
    Files(Vec<String>),
    /// The shards that [`INDEX`] names.
    Indexed,
}

/// Configuration, tokenizer, chat template and model card, sorted.
pub(super) fn small(names: &BTreeSet<String>) -> Vec<String> {
    let wanted = |name: &str| {
        SMALL.contains(&name)
            || (plain(name)
                && SMALL_PREFIXES.iter().any(|p| name.starts_with(p))
                && (SMALL_SUFFIXES.iter().any(|s| name.ends_with(s)) || name.starts_with("tokenizer.model")))
    };
    names.iter().filter(|name| wanted(name)).cloned().collect()
}

/// The weights of a repository with these files; the same choice as for a folder on disk.
///
/// Errors: `Unsupported` when there is no config.json or there are no safetensors.
pub(super) fn weights(id: &str, names: &BTreeSet<String>) -> Result<Weights> {
    let has = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    let single = names.contains(SINGLE);
    if names.contains(INDEX) && !single {
        return Ok(Weights::Indexed);
    }
    let other = |name: &&String| {
        plain(name)
            && name.ends_with(".safetensors")
            && !["consolidated", "adapter_"].iter().any(|prefix| name.starts_with(prefix))
    };
    let files = match single {
        true => vec![SINGLE.to_string()],
        false => names.iter().filter(other).cloned().collect(),
    };
    if files.is_empty() {
        let (what, hint) = if has(".gguf") {
            ("holds GGUF files and no safetensors", "download the GGUF file you want and name it")
        } else if has(".bin") || has(".pt") || has(".pth") {
            (
                "holds PyTorch pickles, which can run code when loaded, and no safetensors",
                "look for a revision with safetensors (often refs/pr/N), or another repository of the model",
            )
        } else {
            ("holds no safetensors at its top level", "check the id; adapters and datasets cannot be converted")
        };
        return Err(Error::unsupported(format!("{id}: the repository {what}")).hint(hint));
    }
    if !names.contains(CONFIG) {
        let hint = "look for the repository of the model in the transformers layout";
        return Err(Error::unsupported(format!("{id}: the repository has no {CONFIG}")).hint(hint));
    }
    Ok(Weights::Files(files))
}

/// The shard names in an index file, sorted.
///
/// Errors: `BadInput` when it is not an index or names files in other folders.
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read(index).map_err(|e| Error::io(index, e))?;
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|e| Error::bad_file(index, format!("the index is not valid: {e}")))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match shards.iter().find(|s| !plain(s) || !s.ends_with(".safetensors")) {
        Some(odd) => Err(Error::bad_file(index, format!("names '{odd}', which is not a .safetensors file next to it"))),
        None if shards.is_empty() => Err(Error::bad_file(index, "names no files")),
        None => Ok(shards.into_iter().collect()),
    }
}

/// A file anywhere in the repository whose path is safe as a path below a folder.
pub(super) fn nested(path: &str) -> bool {
    path.split('/').all(plain)
}

/// A file at the top of the repository whose name is safe as one part of a path.
pub(super) fn plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn only_what_a_conversion_reads() {
        let names = set(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "chat_template.jinja",
            "consolidated.safetensors",
            "consolidated.00.pth",
            "flax_model.msgpack",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.gguf",
            "model.onnx",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/tokenizer.model",
            "original/consolidated.safetensors",
            "pytorch_model.bin",
            "special_tokens_map.json",
            "tokenizer.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer.model.v3",
            "tokenizer_config.json",
            "vocab.json",
        ]);
        let mut expected = vec!["README.md", "chat_template.jinja", "config.json", "generation_config.json"];
        expected.extend(["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer.model"]);
        expected.extend(["tokenizer.model.v3", "tokenizer_config.json", "vocab.json"]);
        assert_eq!(small(&names), expected);
        assert_eq!(weights("a/b", &names).unwrap(), Weights::Indexed);
    }

    #[test]
    fn a_whole_model_goes_before_an_index_and_variants() {
        let files = |names: &[&str]| weights("a/b", &set(names));
        let single = Weights::Files(vec!["model.safetensors".into()]);
        let all = ["config.json", "model.safetensors", "model.fp16.safetensors", INDEX, "consolidated.safetensors"];
        assert_eq!(files(&all).unwrap(), single);
        assert_eq!(files(&["config.json", "x.safetensors"]).unwrap(), Weights::Files(vec!["x.safetensors".into()]));
        for (names, expected) in [
            (vec!["config.json", "m.gguf"], "GGUF"),
            (vec!["config.json", "pytorch_model.bin"], "pickles"),
            (vec!["config.json", "original/a.safetensors"], "no safetensors"),
            (vec!["config.json", "adapter_model.safetensors"], "no safetensors"),
            (vec!["model.safetensors"], "no config.json"),
        ] {
            let error = files(&names).unwrap_err().to_string();
            assert!(error.contains(expected), "{names:?}: {error}");
        }
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(INDEX);
        let shards_of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            shards(&path)
        };
        let good =
            shards_of(r#"{"weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors", "c": "m-1.safetensors"}}"#);
        assert_eq!(good.unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for bad in ["../m.safetensors", "/m.safetensors", "m.bin", "", ".safetensors", "a\\m.safetensors"] {
            let text = serde_json::json!({ "weight_map": { "a": bad } }).to_string();
            assert!(shards_of(&text).is_err(), "{bad}");
        }
        assert!(shards_of("{}").is_err() && shards_of(r#"{"weight_map": {}}"#).is_err());
    }
}
