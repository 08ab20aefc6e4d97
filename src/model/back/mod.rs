//! From a GGUF file back to the tensors of a checkpoint folder: the mapping that a folder of the same configuration has
//! into the file, walked the other way. [`take`] puts rows where they came from, and [`config`] and [`tokenizer`] state
//! again what the metadata holds. It reads rows and decides no types.

pub mod config;
mod take;
pub mod tokenizer;

use super::source_model::SourceModel;
use super::tensor::{MappedTensor, ValueMap};
use crate::gguf::Metadata;
use crate::quant::GgmlType;
use crate::quant::presets::layer_of;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use take::Take;

/// A tensor of the folder.
#[derive(Debug)]
pub struct BackTensor {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// How the folder that the names are from stores it, where it has weights.
    pub stored: Option<Dtype>,
    takes: Vec<Take>,
    /// Equal blocks that are put together one at a time.
    blocks: usize,
    /// The last two dimensions of what the mapping reads change places: blocks and scales of MXFP4 lie the other way round
    /// than the weights that transformers makes of them.
    turned: bool,
}

/// Something that is not as it was in the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inexact {
    /// GGUF names.
    pub tensors: Vec<String>,
    pub done: &'static str,
    pub reason: &'static str,
}

/// All tensors of the folder, and what is to be said of them.
#[derive(Debug)]
pub struct Back {
    pub tensors: Vec<BackTensor>,
    pub inexact: Vec<Inexact>,
    /// Tensors of the folder that the file does not hold, with the reason.
    pub left_out: Vec<(String, String)>,
}

/// How many of something at most are kept in memory while a tensor is put together.
const PIECE: usize = 1 << 22;

impl Back {
    /// `form`: a folder of the same configuration, with or without weights.
    ///
    /// # Errors
    /// `Unsupported` where the names of the folder do not follow from its configuration; `BadInput` where file and
    /// folder are not of the same model.
    pub fn new(ckpt: &Checkpoint, form: &SourceModel) -> Result<Self> {
        let Some(meta) = ckpt.gguf() else { return Err(Error::Internal("no GGUF file to go back from".into())) };
        let arch = meta.str("general.architecture").unwrap_or_default();
        let file = ckpt.files().first().map(|f| f.path.clone()).unwrap_or_default();
        if arch != form.model.config.arch {
            let what = format!("is a {arch} model; the configuration is of a {} model", form.model.config.arch);
            return Err(Error::bad_file(file, what).hint("name the folder of the model that the file was made from"));
        }
        let has_weights = !form.ckpt.files().is_empty();
        let mut parts: BTreeMap<usize, Vec<Take>> = BTreeMap::new();
        let (mut inexact, mut left_out) = (Vec::<Inexact>::new(), form.model.dropped.clone());
        let mut used: HashSet<&str> = form.model.generated.iter().map(|g| g.name.as_str()).collect();
        for t in &form.model.tensors {
            if t.parts.is_empty() {
                let what =
                    format!("{}: which tensors a {arch} folder has does not follow from config.json alone", t.name);
                return Err(Error::unsupported(what)
                    .hint("name the original's folder with its safetensors files; their names and shapes are read"));
            }
            used.insert(&t.name);
            let Some(index) = ckpt.find(&t.name) else {
                let reason = absent(t, meta, arch).ok_or_else(|| {
                    let what = "is missing, but the configuration promises it";
                    Error::bad_file(&file, what)
                        .tensor(&t.name)
                        .hint("check that the configuration belongs to this file")
                })?;
                let names = t.parts.iter().map(|p| (form.ckpt.tensors()[*p].name.clone(), reason.to_string()));
                left_out.extend(names);
                continue;
            };
            if squeezed(&ckpt.tensors()[index].shape) != squeezed(&t.shape) {
                let found = &ckpt.tensors()[index].shape;
                let what = format!("shape is {found:?}, but the configuration makes it {:?}", t.shape);
                return Err(Error::bad_file(&file, what)
                    .tensor(&t.name)
                    .hint("check that the configuration belongs to this file"));
            }
            let narrower = || {
                let stored = t.parts.iter().map(|p| form.ckpt.tensors()[*p].dtype).find(|_| has_weights);
                let held = ckpt.tensors()[index].dtype;
                let differs = stored.is_some_and(|stored| stored != held) && held != Dtype::Ggml(GgmlType::F32);
                differs.then_some(("as the file holds them", "the file's type holds fewer digits, or another range"))
            };
            if let Some((done, reason)) = inexactness(&t.values).or_else(narrower) {
                match inexact.iter_mut().find(|i| i.done == done) {
                    Some(known) => known.tensors.push(t.name.clone()),
                    None => inexact.push(Inexact { tensors: vec![t.name.clone()], done, reason }),
                }
            }
            for (place, part) in t.parts.iter().enumerate() {
                parts.entry(*part).or_default().push(Take { gguf: index, map: t.clone(), place });
            }
        }
        let rotary =
            |name: &str| ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name);
        if let Some(t) = ckpt.tensors().iter().find(|t| !used.contains(t.name.as_str()) && !rotary(&t.name)) {
            let what = "does not belong in a folder with this configuration";
            return Err(Error::bad_file(&file, what)
                .tensor(&t.name)
                .hint("check that the configuration belongs to this file"));
        }
        let tensor = |(part, takes): (usize, Vec<Take>)| {
            let meta = &form.ckpt.tensors()[part];
            let blocks = takes.first().map_or(1, Take::matrices);
            let even = takes.iter().all(|t| t.matrices() == blocks);
            let turned = meta.dtype == Dtype::Ggml(GgmlType::MXFP4) && meta.shape.len() > 2;
            let (mut name, mut shape) = (meta.name.clone(), meta.shape.clone());
            if turned {
                name = name.trim_end_matches(".mxfp4").to_string();
                let n = shape.len();
                shape.swap(n - 2, n - 1);
            }
            let stored = has_weights.then_some(meta.dtype);
            BackTensor { name, shape, stored, takes, blocks: if even { blocks } else { 1 }, turned }
        };
        let tensors: Vec<BackTensor> = parts.into_iter().map(tensor).collect();
        let made: HashMap<&str, usize> = tensors.iter().map(|t| (t.name.as_str(), 0)).collect();
        left_out.retain(|(name, _)| !made.contains_key(name.as_str()));
        let partial = tensors.iter().filter(|t| t.covered() < t.elements());
        let partial: Vec<String> = partial.map(|t| t.name.clone()).collect();
        if !partial.is_empty() {
            let (done, reason) = ("zeros in a part", "a GGUF file does not hold all of it");
            inexact.push(Inexact { tensors: partial, done, reason });
        }
        Ok(Self { tensors, inexact, left_out })
    }
}

/// Why a file may lack a tensor that its configuration promises.
fn absent(t: &MappedTensor, meta: &Metadata, arch: &str) -> Option<&'static str> {
    let blocks = meta.uint(&format!("{arch}.block_count")).unwrap_or(0);
    let beyond = layer_of(&t.name).is_some_and(|layer| layer as u64 >= blocks);
    match t.name.as_str() {
        "output.weight" => Some("the file's output is its embedding"),
        _ if beyond => Some("it predicts more than the next token, which the file does without"),
        _ => None,
    }
}

/// What is lost where values are taken back, and what is done.
fn inexactness(values: &ValueMap) -> Option<(&'static str, &'static str)> {
    Some(match values {
        ValueMap::Same => return None,
        ValueMap::PlusOne | ValueMap::Plus(_) => {
            ("the constant taken away again", "what rounding the sum to the source's type cut off is lost")
        }
        ValueMap::NegExp => ("log(-x)", "the file holds -exp(x), rounded"),
        ValueMap::Exp => ("log(x)", "the file holds exp(x), rounded"),
        ValueMap::Softplus => ("the inverse of softplus", "the file holds log(1 + exp(x)), rounded"),
        ValueMap::Times(_) | ValueMap::RowTimes(_) => {
            ("divided by the constants again", "the file holds the product, rounded")
        }
        ValueMap::SumOf(_) => ("the sum as one of the terms, zeros as the others", "the file holds the sum"),
        ValueMap::ZeroMean => {
            ("without the mean", "the file holds the values less their mean, which changes no result")
        }
        ValueMap::Product => ("the product as one factor, ones as the other", "the file holds the product"),
        ValueMap::Ternary(_) => ("the ternary values", "the file holds what the model rounds the weights to"),
        ValueMap::UnitColumns(_) => ("columns of length 1", "the file holds the columns divided by their lengths"),
    })
}

fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|n| *n != 1).collect()
}

impl BackTensor {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements that come from the file.
    fn covered(&self) -> usize {
        self.takes.iter().map(|take| take.gives(self.elements())).sum()
    }

    /// Whether its rows are those of one tensor of the file, in the same order.
    fn is_plain(&self) -> bool {
        matches!(self.takes.as_slice(), [take] if take.is_plain())
    }

    /// The tensor in parts that are put together one at a time: ranges of its elements.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let all = self.elements();
        let step = match self.is_plain() {
            _ if self.turned => self.shape.iter().rev().take(2).product(),
            true => {
                let cols = self.takes[0].map.cols().max(1);
                (PIECE / cols).max(1) * cols
            }
            false => all / self.blocks.max(1),
        };
        (0..all).step_by(step.max(1)).map(|from| from..(from + step).min(all)).collect()
    }

    /// One of [`Self::pieces`], as the checkpoint would hold it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, ckpt: &Checkpoint, piece: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.resize(piece.len(), 0.0);
        let (block, blocks) = (piece.start / piece.len().max(1), self.elements() / piece.len().max(1));
        match self.is_plain() {
            true => self.takes[0].read_plain(ckpt, piece, out)?,
            false => self.takes.iter().try_for_each(|take| take.scatter(ckpt, (block, blocks), piece.start, out))?,
        }
        if let (true, [.., cols, rows]) = (self.turned, &self.shape[..]) {
            let read = std::mem::take(out);
            *out = (0..read.len()).map(|i| read[i % rows * cols + i / rows]).collect();
        }
        Ok(())
    }
}
