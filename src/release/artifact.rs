//! What a release knows of each artifact, read from the artifact itself: an interrupted run that goes on knows no more.

use crate::check::origin;
use crate::control::Run;
use crate::convert::OutputPlan;
use crate::eval::Measured;
use crate::eval::gate::shown_cosine;
use crate::report::figures;
use crate::report::format::count;
use crate::source::Checkpoint;
use crate::writer::folder::MANIFEST;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A finished artifact of a release.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its place in the recipe.
    pub index: usize,
    /// What it is called by: `Q4_K_M`, `awq`.
    pub target: String,
    /// The file, of a split one the first shard, or the folder; from the release's folder on.
    pub path: String,
    /// `gguf`, or the folder's format.
    pub format: String,
    /// Its files of weights, or the folder.
    pub places: Vec<PathBuf>,
    /// Bytes of all files of weights.
    pub bytes: u64,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
    /// Weights, in all.
    pub weights: u64,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// How it was made, in words.
    pub how: String,
    /// What was lost, where that was measured.
    pub measured: Option<Measured>,
    /// Of a GGUF file, how many tensors of each part have which type.
    pub types: Vec<(String, Vec<(String, usize)>)>,
    /// SHA-256 of the source's files as it records them.
    pub source_hashes: Vec<(String, Option<String>)>,
    /// Of a folder; null otherwise.
    pub manifest: Value,
}

/// The finished files of an output.
pub fn paths_of(output: &OutputPlan) -> Vec<PathBuf> {
    paths_at(&output.place)
}

/// The finished files of an output that goes to `place`; none where it is not finished.
fn paths_at(place: &Path) -> Vec<PathBuf> {
    if place.exists() {
        return vec![place.to_path_buf()];
    }
    let (Some(folder), Some(stem)) = (place.parent(), place.file_stem()) else { return Vec::new() };
    let begin = format!("{}-", stem.to_string_lossy());
    let number = |name: &str| {
        let (no, of) = name.strip_prefix(&begin)?.strip_suffix(".gguf")?.split_once("-of-")?;
        (no.len() == 5 && of.len() == 5).then(|| of.parse::<usize>().ok()).flatten()
    };
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut shards: Vec<(String, usize)> = names.filter_map(|name| number(&name).map(|of| (name, of))).collect();
    shards.sort();
    match shards.first() {
        Some((_, of)) if *of == shards.len() => shards.into_iter().map(|(name, _)| folder.join(name)).collect(),
        _ => Vec::new(),
    }
}

impl Artifact {
    /// What there is to know of a finished output.
    ///
    /// # Errors
    /// Those of opening it; `Internal` where it is not there.
    pub fn open(output: &OutputPlan, run: Run) -> Result<Artifact> {
        Self::open_at(output, &output.place, run)
    }

    /// The same of one that has moved to `place`.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn open_at(output: &OutputPlan, place: &Path, run: Run) -> Result<Artifact> {
        let places = paths_at(place);
        let name = |path: &Path| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let first = places.first().ok_or_else(|| Error::Internal(format!("{} is not there", place.display())))?;
        let ckpt = Checkpoint::open(first)?;
        let tensor_bytes: u64 = ckpt.tensors().iter().map(|t| t.bytes()).sum();
        let weights: u64 = ckpt.tensors().iter().map(|t| t.elements() as u64).sum();
        let manifest = match ckpt.gguf() {
            Some(_) => Value::Null,
            None => crate::input::read_json(&first.join(MANIFEST))?,
        };
        Ok(Artifact {
            index: output.index,
            target: output.target.name().to_string(),
            path: name(first),
            format: manifest["format"].as_str().unwrap_or("gguf").to_string(),
            bytes: ckpt.shards().iter().map(|f| f.len).sum(),
            tensor_bytes,
            weights,
            bits_per_weight: 8.0 * tensor_bytes as f64 / weights.max(1) as f64,
            how: origin::of(&ckpt, None, run).map_or_else(String::new, |made| made.how),
            measured: None,
            types: if ckpt.gguf().is_some() { types(&ckpt) } else { Vec::new() },
            source_hashes: source_hashes(&ckpt, &manifest),
            manifest,
            places,
        })
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.manifest.is_null()
    }

    /// What was lost, as a sentence; empty where that was not measured.
    pub fn in_words(&self) -> String {
        match &self.measured {
            None => String::new(),
            Some(Measured::Logits(s)) => {
                let (kl, top) = (figures::kl(s.kld).with_error, figures::share(s.same_top).text);
                format!(
                    "KL divergence from the source {kl} nats per token, same top token {top}, over {} positions of text.",
                    count(s.tokens)
                )
            }
            Some(Measured::Vectors(cosines)) => {
                let (mean, worst) = (shown_cosine(cosines.mean.value), shown_cosine(cosines.worst));
                format!(
                    "Mean cosine between its vectors and the source's {mean}, the worst {worst}, over {} chunks of text.",
                    cosines.vectors
                )
            }
        }
    }
}

/// How many tensors of each part of the model have which type, in order of the file.
fn types(ckpt: &Checkpoint) -> Vec<(String, Vec<(String, usize)>)> {
    let mut parts: Vec<(String, Vec<(String, usize)>)> = Vec::new();
    for t in ckpt.tensors().iter().filter(|t| t.shape.len() > 1) {
        let name = t.name.strip_suffix(".weight").unwrap_or(&t.name);
        let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part);
        let ty = t.dtype.to_string();
        let at = parts.iter().position(|(p, _)| p == part).unwrap_or_else(|| {
            parts.push((part.to_string(), Vec::new()));
            parts.len() - 1
        });
        match parts[at].1.iter_mut().find(|(known, _)| *known == ty) {
            Some((_, n)) => *n += 1,
            None => parts[at].1.push((ty, 1)),
        }
    }
    parts
}

fn source_hashes(ckpt: &Checkpoint, manifest: &Value) -> Vec<(String, Option<String>)> {
    let Some(metadata) = ckpt.gguf() else {
        let rows = manifest["source"]["files"].as_array().into_iter().flatten();
        let text = |row: &Value, key: &str| row[key].as_str().map(String::from);
        return rows.filter_map(|row| Some((text(row, "name")?, text(row, "sha256")))).collect();
    };
    let names = metadata.strings("quantize.source.files").unwrap_or_default();
    let hashes = metadata.strings(crate::convert::record::SOURCE_HASHES).unwrap_or_default();
    let hash = |i: usize| hashes.get(i).map(|h| h.to_string());
    names.iter().enumerate().map(|(i, name)| (name.to_string(), hash(i))).collect()
}
