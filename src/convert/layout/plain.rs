//! A plain folder: every weight as F32, F16 or BF16, under the names that transformers loads. Decided from names, types
//! and shapes: of a folder every tensor stays what it is but for what is packed, of a GGUF file names and layout go back
//! to the checkpoint's. How it is made is in `plain_job`.

use super::pretty;
use super::quantized::Departure;
use crate::convert::companions::others;
use crate::convert::ledger::Kind;
use crate::convert::recipe::{Float, Like};
use crate::digest::hex;
use crate::model::back::{self, Back, Inexact, config::is_wrapper, config::restated};
use crate::model::tokenizer::GgufVocab;
use crate::model::{Model, Mtp, Part, SourceModel};
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, sha256_file};
use crate::writer::safetensors::Entry;
use crate::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where a tensor of the folder comes from.
#[derive(Debug)]
pub enum From {
    /// This source tensor, byte for byte.
    Stored(usize),
    /// The numbers of this source tensor; `turned`: the last two dimensions change places.
    Decoded { source: usize, turned: bool },
    /// This tensor of [`PlainPlan::back`].
    Back(usize),
}

/// A plain folder, decided.
#[derive(Debug)]
pub struct PlainPlan {
    /// Of a GGUF source.
    pub(crate) back: Option<Back>,
    /// In the order of `entries`.
    pub(crate) from: Vec<From>,
    /// Every tensor of the folder.
    pub(crate) entries: Vec<Entry>,
    /// What is other than was asked.
    pub departures: Vec<Departure>,
    /// `config.json`.
    pub config: Value,
    /// A folder whose small files are copied.
    pub beside: Option<PathBuf>,
    /// Small files that are written.
    pub(crate) small: Vec<back::tokenizer::Named>,
}

/// What the recipe says of a folder whose configuration and tokenizer are taken over.
///
/// # Errors
/// `BadInput` for a folder without configuration; `Io`.
pub fn like(folder: &Path) -> Result<Like> {
    if !folder.join("config.json").is_file() {
        return Err(Error::bad_file(folder, "holds no config.json to take over"));
    }
    let mut hash = Sha256::new();
    let never = crate::control::Cancel::new();
    for name in others(folder)?.iter().map(String::as_str).chain(["config.json"]) {
        hash.update(name.as_bytes());
        hash.update(sha256_file(&folder.join(name), &never)?.as_bytes());
    }
    Ok(Like { folder: folder.display().to_string(), sha256: hex(&hash.finalize()) })
}

impl PlainPlan {
    /// Decides a folder of `dtype` throughout, or of each tensor's own type. `like`: whose configuration and tokenizer are
    /// taken over, of a GGUF source.
    ///
    /// # Errors
    /// `Request` where `like` has no use; those of [`Back::new`] and [`restated`].
    pub fn new(source: &SourceModel, dtype: Option<Float>, like: Option<&Like>) -> Result<Self> {
        let dtype = dtype.map(Float::stored);
        match (source.ckpt.gguf(), like) {
            (Some(_), like) => of_file(source, dtype, like),
            (None, Some(_)) => {
                let what = "configuration and tokenizer are taken from elsewhere for a GGUF source alone; a folder has its own";
                Err(Error::request(what))
            }
            (None, None) => of_folder(source, dtype),
        }
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.entries.iter().filter_map(|e| e.bytes().ok()).sum()
    }

    /// Numbers in all tensors.
    pub fn weights(&self) -> u64 {
        self.entries.iter().map(|e| e.shape.iter().map(|d| *d as u64).product::<u64>()).sum()
    }
}

/// The type that a configuration names, where a folder can have it.
fn named_type(config: &Value) -> Option<GgmlType> {
    let text = config.get("text_config").unwrap_or(config);
    let of =
        |table: &Value| ["dtype", "torch_dtype"].iter().find_map(|key| table.get(*key)?.as_str().map(String::from));
    match of(config).or_else(|| of(text))?.as_str() {
        "float16" => Some(GgmlType::F16),
        "bfloat16" => Some(GgmlType::BF16),
        "float32" => Some(GgmlType::F32),
        _ => None,
    }
}

fn is_float(ty: GgmlType) -> bool {
    [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::F64].contains(&ty)
}

fn of_folder(source: &SourceModel, asked: Option<GgmlType>) -> Result<PlainPlan> {
    let ckpt = &*source.ckpt;
    let Some(config) = &source.model.hf_config else {
        return Err(Error::Internal("a folder without config.json".into()));
    };
    if !ckpt.dir().join("config.json").is_file() && !ckpt.files().is_empty() {
        let what = "there is no config.json, which every program that loads a folder reads";
        return Err(Error::unsupported(format!("{}: {what}", ckpt.dir().display())));
    }
    crate::model::tokenizer::check_files(ckpt.dir())?;
    // Packed weights are no more exact than 16 bits.
    let unpacked = asked.or(named_type(config).filter(|ty| *ty != GgmlType::F32)).unwrap_or(GgmlType::BF16);
    let (mut from, mut entries) = (Vec::new(), Vec::new());
    for (i, t) in ckpt.tensors().iter().enumerate() {
        let (mut name, mut shape) = (t.name.clone(), t.shape.clone());
        let (ty, how) = match t.dtype {
            Dtype::Ggml(ty) if is_float(ty) => match asked.filter(|asked| *asked != ty) {
                None => (t.dtype, From::Stored(i)),
                Some(asked) => (Dtype::Ggml(asked), From::Decoded { source: i, turned: false }),
            },
            // Experts in pairs of blocks and scales lie the other way round than those that transformers unpacks.
            Dtype::Ggml(GgmlType::MXFP4) => {
                name = name.trim_end_matches(".mxfp4").to_string();
                let n = shape.len();
                shape.swap(n - 2, n - 1);
                (Dtype::Ggml(unpacked), From::Decoded { source: i, turned: true })
            }
            Dtype::Packed(_) => (Dtype::Ggml(unpacked), From::Decoded { source: i, turned: false }),
            other => (other, From::Stored(i)),
        };
        from.push(how);
        entries.push(Entry { name, dtype: ty, shape });
    }
    let config = plain_config(config, &entries);
    let beside = Some(ckpt.dir().to_path_buf());
    Ok(PlainPlan { back: None, from, entries, departures: Vec::new(), config, beside, small: Vec::new() })
}

fn of_file(source: &SourceModel, asked: Option<GgmlType>, like: Option<&Like>) -> Result<PlainPlan> {
    let ckpt = &*source.ckpt;
    let form = match like {
        Some(like) => form_of_folder(Path::new(&like.folder))?,
        None => {
            let (imagined, model) = Model::imagined(restated(ckpt, &source.model)?, Mtp::Keep)?;
            SourceModel::new(&source.path, imagined, model)
        }
    };
    let Some(config) = &form.model.hf_config else {
        return Err(Error::Internal("a folder without config.json".into()));
    };
    let back = Back::new(ckpt, &form)?;
    let usual = asked.or_else(|| like.and_then(|_| named_type(config))).unwrap_or_else(|| main_type(ckpt));
    let ty = |stored: Option<Dtype>| match (asked, stored) {
        (None, Some(Dtype::Ggml(own))) if is_float(own) => own,
        _ => usual,
    };
    let entry = |t: &back::BackTensor| {
        let dtype = Dtype::Ggml(ty(t.stored));
        Entry { name: t.name.clone(), dtype, shape: t.shape.clone() }
    };
    let entries: Vec<Entry> = back.tensors.iter().map(entry).collect();
    let from = (0..entries.len()).map(From::Back).collect();
    let mut departures = Vec::new();
    for Inexact { tensors, done, reason } in &back.inexact {
        departures.push(Departure {
            kind: Kind::Fallback,
            module: tensors.first().cloned(),
            asked: format!("the checkpoint's own values, in {} tensors", tensors.len()),
            done: (*done).into(),
            reason: (*reason).into(),
        });
    }
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, reason) in &back.left_out {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, names)) => names.push(name),
            None => reasons.push((reason, vec![name])),
        }
    }
    for (reason, names) in reasons {
        departures.push(Departure {
            kind: Kind::Fallback,
            module: names.first().map(|name| name.to_string()),
            asked: format!("{} tensors of the original's folder", names.len()),
            done: "not there".into(),
            reason: reason.into(),
        });
    }
    let mut small = Vec::new();
    if like.is_none() {
        let vocab = ckpt.gguf().map(GgufVocab::from_metadata).transpose()?;
        let context = config.get("max_position_embeddings").and_then(Value::as_u64).unwrap_or(0) as usize;
        match vocab.map(|vocab| back::tokenizer::restated(&vocab, context)) {
            Some(Ok(files)) => small = files,
            Some(Err(why)) => departures.push(no_tokenizer(why)),
            None => departures.push(no_tokenizer("the file holds none".into())),
        }
    }
    let config = plain_config(config, &entries);
    let beside = like.map(|like| PathBuf::from(&like.folder));
    Ok(PlainPlan { back: Some(back), from, entries, departures, config, beside, small })
}

fn no_tokenizer(reason: String) -> Departure {
    Departure { kind: Kind::Fallback, module: None, asked: "the tokenizer's files".into(), done: "none".into(), reason }
}

/// A folder whose names and configuration are taken over; without weights its configuration alone tells them.
fn form_of_folder(folder: &Path) -> Result<SourceModel> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    if names.any(|name| Path::new(&name).extension().is_some_and(|e| e == "safetensors")) {
        return SourceModel::open(folder)?.for_files(Part::Text, Mtp::Keep);
    }
    let json = crate::input::read_json(&folder.join("config.json"))?;
    let architecture = json.get("architectures").and_then(|a| a.get(0)?.as_str()).unwrap_or_default();
    if is_wrapper(architecture) {
        let what = "what tensors are called in a model with an encoder does not follow from its config.json alone";
        return Err(Error::unsupported(format!("{}: {what}", folder.display()))
            .hint("name the original's folder with its safetensors files; their names and shapes are read"));
    }
    let (ckpt, model) = Model::imagined(json, Mtp::Keep)?;
    Ok(SourceModel::new(folder, ckpt, model))
}

/// The type of most of a file's weights, where a folder can have it.
fn main_type(ckpt: &Checkpoint) -> GgmlType {
    let weights = |ty: GgmlType| -> usize {
        ckpt.tensors().iter().filter(|t| t.dtype == Dtype::Ggml(ty)).map(|t| t.elements()).sum()
    };
    let all: usize = ckpt.tensors().iter().map(|t| t.elements()).sum();
    let plain = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
    plain.into_iter().find(|ty| 2 * weights(*ty) > all).unwrap_or(GgmlType::BF16)
}

/// The configuration without quantization, and with the type of most weights.
fn plain_config(source: &Value, entries: &[Entry]) -> Value {
    let mut config = source.clone();
    let bytes = |ty: GgmlType| -> u64 {
        entries.iter().filter(|e| e.dtype == Dtype::Ggml(ty)).filter_map(|e| e.bytes().ok()).sum()
    };
    let types = [(GgmlType::F32, "float32"), (GgmlType::F16, "float16"), (GgmlType::BF16, "bfloat16")];
    let most = types.into_iter().max_by_key(|(ty, _)| bytes(*ty)).map(|(_, name)| name);
    let state = |table: &mut serde_json::Map<String, Value>, anyway: bool| {
        for key in ["quantization_config", "quantization", "compression_config"] {
            table.shift_remove(key);
        }
        let key = ["dtype", "torch_dtype"].into_iter().find(|key| table.contains_key(*key));
        if let (Some(name), Some(key)) = (most, key.or(anyway.then_some("torch_dtype"))) {
            table.insert(key.into(), name.into());
        }
    };
    if let Value::Object(map) = &mut config {
        state(map, true);
        if let Some(Value::Object(text)) = map.get_mut("text_config") {
            state(text, false);
        }
    }
    config
}

/// The text of `config.json`.
pub fn config_text(plan: &PlainPlan) -> String {
    pretty(&plan.config)
}
