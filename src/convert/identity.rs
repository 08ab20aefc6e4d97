//! What a run is of, beside its recipe: the program, the source, the windows of text and the layout of the outputs. With
//! the recipe it makes the key by which an interrupted run is continued: only an equal one may go on with what another
//! left behind.

use super::companions::companions;
use super::recipe::{Data, Recipe};
use crate::Result;
use crate::control::Cancel;
use crate::digest::hex;
use crate::isa::Isa;
use crate::source::{Checkpoint, SourceFile, sha256_file};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

/// What tells one run from another of the same recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Of this program.
    pub version: String,
    /// The instruction set, where activations take part: second moments differ in their last bits.
    pub instructions: Option<String>,
    /// The files that hold the weights.
    pub source: Vec<FileIdentity>,
    /// The small files beside them (configuration, tokenizer, chat template, model card), by their SHA-256.
    pub companions: BTreeMap<String, String>,
    /// SHA-256 over the calibration windows: tokens, lengths, and which of them are held out.
    pub windows: Option<String>,
    /// SHA-256 over the header of every output and the place of every tensor in it.
    pub layout: Vec<String>,
}

/// What a calibrated run is of, beside the files.
#[derive(Clone, Copy, Debug)]
pub struct CalibrationWindows<'a> {
    pub windows: &'a [Vec<u32>],
    /// The set that each window belongs to (0: not held out); none where nothing is held out.
    pub sets: &'a [usize],
    /// SHA-256 of the files that hold the weights, where they were hashed before.
    pub hashes: Option<&'a [String]>,
}

/// A file of weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileIdentity {
    pub name: String,
    pub bytes: u64,
    /// Nanoseconds since 1970, where the hash is not known.
    pub modified: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl FileIdentity {
    fn of(file: &SourceFile, sha256: Option<String>) -> Self {
        let modified = file.modified.filter(|_| sha256.is_none());
        let since = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let name = file.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Self { name, bytes: file.len, modified: since.map(|s| s.as_nanos().to_string()), sha256 }
    }
}

impl Identity {
    /// The identity of a run over `ckpt`. `seen`: of one that calibrates. `layout`: a header's bytes for every output.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub fn new(
        ckpt: &Checkpoint,
        seen: Option<CalibrationWindows>,
        layout: Vec<String>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let companions = match ckpt.gguf() {
            // All that a GGUF source says is in its one file.
            Some(_) => BTreeMap::new(),
            None => {
                let hashed = |name: String| Ok((name.clone(), sha256_file(&ckpt.dir().join(&name), cancel)?));
                companions(ckpt.dir())?.into_iter().map(hashed).collect::<Result<_>>()?
            }
        };
        let hash = |i: usize| seen.and_then(|seen| seen.hashes?.get(i).cloned());
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_string(),
            instructions: seen.map(|_| Isa::active().name().to_string()),
            source: ckpt.files().iter().enumerate().map(|(i, file)| FileIdentity::of(file, hash(i))).collect(),
            companions,
            windows: seen.map(|seen| digest_of_windows(seen.windows, seen.sets)),
            layout,
        })
    }

    /// The identity of a run over what is calibrated on where no windows are drawn yet: the SHA-256 of every file of `data`.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub fn of_data(data: &Data, cancel: &Cancel) -> Result<BTreeMap<String, String>> {
        let files = data.sources.iter().filter_map(|source| Some((source.to_string(), source.path()?)));
        let mut hashes =
            files.map(|(name, path)| Ok((name, sha256_file(path, cancel)?))).collect::<Result<BTreeMap<_, _>>>()?;
        hashes.insert("instructions".into(), Isa::active().name().to_string());
        Ok(hashes)
    }

    /// The key of a run: the recipes of its outputs and what it is of.
    pub fn key(&self, recipes: &[Recipe]) -> Value {
        let recipes: Vec<Value> = recipes.iter().map(Recipe::to_json).collect();
        json!({ "recipes": recipes, "identity": serde_json::to_value(self).unwrap_or_default() })
    }
}

fn digest_of_windows(windows: &[Vec<u32>], sets: &[usize]) -> String {
    let mut hasher = Sha256::new();
    for (i, window) in windows.iter().enumerate() {
        let set = sets.get(i).copied().unwrap_or(0);
        hasher.update((window.len() as u64).to_le_bytes());
        hasher.update((set as u64).to_le_bytes());
        window.iter().for_each(|token| hasher.update(token.to_le_bytes()));
    }
    hex(&hasher.finalize())
}

/// The first difference between two keys, as `(where, there, here)`.
pub fn difference(there: &Value, here: &Value) -> Option<(String, String, String)> {
    fn walk(path: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
        let under = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let names = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
                let null = Value::Null;
                names.into_iter().find_map(|k| walk(&under(k), x.get(k).unwrap_or(&null), y.get(k).unwrap_or(&null)))
            }
            (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
                x.iter().zip(y).enumerate().find_map(|(i, (x, y))| walk(&under(&i.to_string()), x, y))
            }
            _ if a == b => None,
            _ => {
                let short = |v: &Value| v.to_string().chars().take(80).collect();
                Some((path.to_string(), short(a), short(b)))
            }
        }
    }
    walk("", there, here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_found_at_any_depth() {
        let a = json!({ "recipe": { "data": { "seed": 1, "tokens": 5 } }, "list": [1, 2] });
        assert_eq!(difference(&a, &a), None);
        let mut b = a.clone();
        b["recipe"]["data"]["seed"] = json!(2);
        assert_eq!(difference(&a, &b), Some(("recipe.data.seed".into(), "1".into(), "2".into())));
        let mut b = a.clone();
        b["list"] = json!([1, 3]);
        assert_eq!(difference(&a, &b).unwrap().0, "list.1");
        b["list"] = json!([1]);
        assert_eq!(difference(&a, &b).unwrap().0, "list");
        let mut b = a.clone();
        b["more"] = json!(true);
        assert_eq!(difference(&a, &b), Some(("more".into(), "null".into(), "true".into())));
    }

    #[test]
    fn where_windows_begin_and_end_counts() {
        let digest = |windows: &[Vec<u32>], sets: &[usize]| digest_of_windows(windows, sets);
        let two = digest(&[vec![1, 2], vec![3, 4]], &[0, 0]);
        assert_ne!(two, digest(&[vec![1, 2, 3, 4]], &[0]));
        assert_ne!(two, digest(&[vec![1, 2], vec![3, 4]], &[0, 1]));
        assert_eq!(two, digest(&[vec![1, 2], vec![3, 4]], &[0, 0]));
    }
}
