//! Statistics files with Hessians: an importance matrix (see [`super::imatrix`]) that also holds Σ x xᵀ of every linear
//! layer's input, as GPTQ and error feedback need it. Written a layer at a time while [`super::layerwise`] runs, read a
//! matrix at a time. Layers that have their input in common share one. Such files are not merged: the products are
//! rounded to `f32`, so sums of two files are not those of one run.

use super::data::DataReport;
use super::imatrix::{Entry, Imatrix};
use super::layerwise::{Captured, Stage, Visit, shared_inputs};
use super::stats::Statistics;
use super::totals::Total;
use crate::disk::partial::PartialFile;
use crate::gguf::{self, Metadata, TensorInfo};
use crate::infer::{Linear, Observer};
use crate::model::Model;
use crate::quant::GgmlType;
use crate::source::Checkpoint;
use crate::{Error, Result};
use ndarray::ArrayView2;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

/// `[matrices, cols, cols]`: Σ x xᵀ.
const GRAM: &str = ".in_gram";
/// `[matrices, cols]`: max |x|.
const LARGEST: &str = ".in_max";
/// Strings `LINEAR=OWNER`: the moments of LINEAR's input are the tensors called after OWNER.
const OWNERS: &str = "quantize.hessian.owners";

/// Writes while the layers are visited.
pub struct HessianWriter {
    file: PartialFile,
    /// Place and bytes in the file by tensor name.
    places: HashMap<String, (u64, u64)>,
    statistics: Statistics,
}

impl HessianWriter {
    /// A file for `model` calibrated on `data`, whose space is reserved.
    ///
    /// Errors: `Exists` when it is there and `force` is not set; `Io`.
    pub fn create(path: &Path, force: bool, model: &Model, data: &DataReport, extra: &Metadata) -> Result<Self> {
        let statistics = Statistics::new(model);
        let blank = Imatrix { entries: blank(model), ..of(data) };
        let mut infos: Vec<TensorInfo> = blank.tensors().into_iter().map(|(info, _)| info).collect();
        let mut owners = Vec::new();
        for layer in 0..model.config.layers.len() {
            for (linears, cols) in shared_inputs(model, layer) {
                let Some(owner) = linears.first().cloned() else { continue };
                let matrices = blank.entries.get(&owner).map_or(1, |e| e.counts.len()) as u64;
                let mut put = |suffix: &str, dims: Vec<u64>| {
                    infos.push(TensorInfo { name: format!("{owner}{suffix}"), dims, ty: GgmlType::F32, offset: 0 });
                };
                put(GRAM, vec![cols as u64, cols as u64, matrices]);
                put(LARGEST, vec![cols as u64, matrices]);
                owners.extend(linears.iter().map(|linear| format!("{linear}={owner}")));
            }
        }
        let mut meta = blank.metadata(extra);
        meta.set(OWNERS, owners);
        let len = gguf::layout(&mut infos, gguf::DEFAULT_ALIGNMENT)?;
        let header = gguf::encode_header(&meta, &infos, gguf::DEFAULT_ALIGNMENT);
        let start = header.len() as u64;
        let file = PartialFile::create(path, force)?;
        file.reserve(start + len)?;
        file.write_at(0, &header)?;
        let place = |info: TensorInfo| Some((info.name.clone(), (start + info.offset, info.bytes()?)));
        let places = infos.into_iter().map(|info| place(info).ok_or_else(|| Error::Internal("no size".into())));
        Ok(Self { file, places: places.collect::<Result<_>>()?, statistics })
    }

    /// The importance matrix in the file, and the file, which lacks nothing but its name.
    ///
    /// Errors: `Internal` when a layer was not visited; `Io`.
    pub fn finish(self, data: &DataReport) -> Result<(Imatrix, PartialFile)> {
        let mut imatrix = Imatrix::new(&self.statistics.totals(), data);
        imatrix.entries.values_mut().for_each(|entry| entry.exact = None);
        for (info, bytes) in imatrix.tensors() {
            self.put(&info.name, 0, &bytes)?;
        }
        Ok((imatrix, self.file))
    }

    /// Writes part `index` of a tensor that is made of parts of this length.
    fn put(&self, name: &str, index: usize, bytes: &[u8]) -> Result<()> {
        let (at, len) = self.places.get(name).ok_or_else(|| Error::Internal(format!("{name} has no place")))?;
        let from = (index * bytes.len()) as u64;
        if from + bytes.len() as u64 > *len {
            return Err(Error::Internal(format!("{name} does not fit into its place")));
        }
        self.file.write_at(at + from, bytes)
    }
}

impl Visit for HessianWriter {
    fn entering(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        self.statistics.input(linear, expert, x)
    }

    fn stage(&mut self, _: usize, _: Stage, captured: &[&Captured], _: Vec<&mut Linear>) -> Result<()> {
        self.statistics.check()?;
        for captured in captured {
            let Some(owner) = captured.linears.first() else { continue };
            for (i, moments) in captured.moments.iter().enumerate() {
                self.put(&format!("{owner}{GRAM}"), i, bytemuck::cast_slice(&moments.gram))?;
                self.put(&format!("{owner}{LARGEST}"), i, bytemuck::cast_slice(&moments.max))?;
            }
        }
        Ok(())
    }

    fn layer_done(&mut self, _: usize) -> Result<()> {
        self.statistics.check()
    }
}

/// What an importance matrix says of its data, without entries.
fn of(data: &DataReport) -> Imatrix {
    Imatrix::new(&super::totals::Totals::default(), data)
}

/// Entries of the right sizes for every matrix in the layers.
fn blank(model: &Model) -> BTreeMap<String, Entry> {
    let matrices =
        model.tensors.iter().filter(|t| t.layer.is_some() && t.name.ends_with(".weight") && !t.role.is_norm());
    let entry = |n: usize, matrices: usize| Entry {
        sums: vec![0.0; n],
        magnitudes: Some(vec![0.0; n]),
        counts: vec![0; matrices],
        exact: None::<Total>,
    };
    let sized = matrices.map(|t| {
        let matrices = if t.shape.len() > 2 { t.shape[0] } else { 1 };
        (t.name.clone(), entry(t.cols() * matrices, matrices))
    });
    sized.collect()
}

/// Hessians in a file.
pub struct Hessians {
    file: Checkpoint,
    /// The owner of the moments by linear layer.
    owners: BTreeMap<String, String>,
}

impl Hessians {
    /// `None` when the file is an importance matrix without them.
    ///
    /// Errors: `BadInput` when it is damaged; `Io`.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("dat")) {
            return Ok(None);
        }
        let file = Checkpoint::open(path)?;
        let Some(owners) = file.gguf().and_then(|meta| meta.strings(OWNERS)) else { return Ok(None) };
        let split = |pair: &String| pair.split_once('=').map(|(a, b)| (a.to_string(), b.to_string()));
        let owners: Option<_> = owners.iter().map(split).collect();
        let owners = owners.ok_or_else(|| Error::bad_file(path, format!("the key {OWNERS} is malformed")))?;
        Ok(Some(Self { file, owners }))
    }

    /// The linear layers that have one.
    #[cfg(feature = "internals")]
    pub fn linears(&self) -> impl Iterator<Item = &str> {
        self.owners.keys().map(String::as_str)
    }

    /// Σ x xᵀ (`[cols, cols]`) of what entered a linear layer, or one expert of it.
    ///
    /// Errors: `BadInput` when the file has none for it.
    pub fn gram(&self, linear: &str, expert: usize) -> Result<Vec<f32>> {
        let none = || Error::bad_input("the file has no Hessian for it").tensor(linear);
        let owner = self.owners.get(linear).ok_or_else(none)?;
        let tensor = self.file.find(&format!("{owner}{GRAM}")).map(|i| &self.file.tensors()[i]).ok_or_else(none)?;
        let cols = tensor.shape.last().copied().unwrap_or(0);
        let range = expert * cols * cols..(expert + 1) * cols * cols;
        if range.end > tensor.elements() || range.is_empty() {
            return Err(none());
        }
        let mut gram = vec![0.0; cols * cols];
        self.file.read_f32(tensor, range, &mut Vec::new(), &mut gram)?;
        Ok(gram)
    }

    /// One row per input: how far its channels go together. Of experts, the first.
    pub fn summary(&self) -> Result<Vec<Row>> {
        let owners = self.owners.iter().filter(|(linear, owner)| linear == owner);
        let rows = owners.map(|(owner, _)| {
            let gram = self.gram(owner, 0)?;
            let cols = gram.len().isqrt();
            let square = |v: f32| f64::from(v) * f64::from(v);
            let all: f64 = gram.iter().map(|v| square(*v)).sum();
            let diagonal = || (0..cols).map(|i| gram[i * cols + i]);
            let own: f64 = diagonal().map(square).sum();
            let mean = diagonal().map(f64::from).sum::<f64>() / cols as f64;
            let largest = diagonal().map(f64::from).fold(0.0, f64::max);
            let share = if all > 0.0 { 1.0 - own / all } else { 0.0 };
            let spread = if mean > 0.0 { largest / mean } else { 0.0 };
            Ok(Row { input: owner.clone(), channels: cols, off_diagonal: share, spread })
        });
        rows.collect()
    }
}

/// A Hessian in a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub input: String,
    pub channels: usize,
    /// Share of the squared Frobenius norm off the diagonal: 0 when the channels have nothing to do with each other.
    pub off_diagonal: f64,
    /// The largest diagonal element over the mean.
    pub spread: f64,
}

/// The rows as text.
pub fn table(rows: &[Row]) -> String {
    let mut out = format!("\n{:<40} {:>8} {:>12} {:>10}\n", "Hessian", "channels", "off-diagonal", "max/mean");
    for row in rows {
        let share = 100.0 * row.off_diagonal;
        out += &format!("{:<40} {:>8} {share:>10.1} % {:>10.1}\n", row.input, row.channels, row.spread);
    }
    out
}
