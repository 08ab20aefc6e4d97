//! One folder being made: what every method of rounding shares. Modules come in parts (a layer is one), each noted in
//! the folder's journal when it is complete, so that a run that was cut short continues behind its last part. The result
//! does not depend on where it was cut, nor on the number of threads.

use super::files;
use super::judge::VERDICT;
use super::plan::{Departure, Planned};
use crate::convert::Control;
use crate::kernel::RowSource;
use crate::model::Model;
use crate::packed::{self, Packed, Piece, Scheme, StoredPiece};
use crate::quant;
use crate::source::{Checkpoint, Dtype};
use crate::writer::folder::{Existing, Folder};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// How codes are chosen.
pub trait Method {
    /// Writes every part of the folder that is not finished yet.
    fn run(&mut self, job: &Job) -> Result<()>;
}

/// What a folder is made from and reported to.
pub struct Job<'a> {
    pub ckpt: &'a Checkpoint,
    pub model: &'a Model,
    pub planned: &'a Planned,
    pub folder: Folder,
    pub control: &'a Control<'a>,
    scheme: Scheme,
    /// Records of the finished parts, by part.
    records: Mutex<Vec<(String, Value)>>,
}

/// What surrounds the weights.
pub struct Provenance<'a> {
    /// The source as people call it.
    pub name: &'a str,
    /// SHA-256 of each source file; `None` when they are not to be read once more.
    pub hashes: Option<Vec<String>>,
    /// Everything that decides the bytes.
    pub recipe: &'a Value,
    /// What the calibration data was.
    pub calibration: Value,
}

/// A finished folder.
pub struct Written {
    pub path: PathBuf,
    pub tensor_bytes: u64,
    /// Departures of the plan and of the run.
    pub departures: Vec<Departure>,
    pub manifest: Value,
}

/// The part of everything that belongs to no layer, or of one layer.
pub fn part(layer: Option<usize>) -> String {
    layer.map_or("ends".into(), |layer| format!("layer {layer}"))
}

/// The parts of a plan, in order.
pub fn parts(planned: &Planned) -> Vec<Option<usize>> {
    let mut layers: Vec<Option<usize>> = planned.contents.modules.iter().map(|m| m.layer).collect();
    layers.dedup();
    layers
}

/// One tensor of a copied piece at a time.
const PIECE: usize = 4 << 20;

impl<'a> Job<'a> {
    /// Makes the folder under its temporary name, or finds that of an earlier run of the same recipe.
    pub fn new(
        (ckpt, model): (&'a Checkpoint, &'a Model),
        planned: &'a Planned,
        target: &Path,
        max_shard: u64,
        recipe: &Value,
        existing: Existing,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        refuse_the_source(ckpt, target)?;
        let config = json!({ "quantization_config": planned.config });
        let scheme = Scheme::of(&config).map_err(Error::Internal)?;
        let scheme = scheme.ok_or_else(|| Error::Internal("the configuration names no format".into()))?;
        let format = planned.spec.metadata_format();
        let identity = json!({ "recipe": recipe, "source": identity(ckpt) });
        let folder = Folder::create(target, planned.entries.clone(), format, max_shard, &identity, existing)?;
        Ok(Self { ckpt, model, planned, folder, control, scheme, records: Mutex::default() })
    }

    /// Copies what is not quantized, runs `method` for the rest, and gives the folder its name.
    pub fn make(self, method: &mut dyn Method, provenance: &Provenance) -> Result<Written> {
        self.unless_finished("kept", || self.copy_kept())?;
        method.run(&self)?;
        self.control.check()?;
        let mut records = self.records.into_inner().map_err(|_| Error::Internal("a writer panicked".into()))?;
        let order = |part: &str| parts(self.planned).iter().position(|layer| self::part(*layer) == part);
        records.sort_by_key(|(part, _)| order(part));
        let mut departures = self.planned.departures.clone();
        let mut modules = Vec::new();
        let held_out = records.iter().find(|(part, _)| part == VERDICT).map(|(_, record)| record.clone());
        for (_, record) in &mut records {
            departures.extend(files::departures(record));
            if let Some(Value::Array(rows)) = record.get_mut("modules").map(Value::take) {
                modules.extend(rows);
            }
        }
        let mut manifest = manifest(self.ckpt, self.planned, provenance, &departures, modules);
        if let Some(mut held_out) = held_out {
            held_out.as_object_mut().and_then(|record| record.remove("ledger"));
            manifest["held_out"] = held_out;
        }
        let Some(config) = &self.model.hf_config else {
            return Err(Error::Internal("a folder is made of a source without config.json".into()));
        };
        files::write(&self.folder, self.ckpt, self.planned, &manifest, provenance.name, &departures)?;
        let tensor_bytes = self.folder.tensor_bytes();
        let parameters = (self.planned.spec.metadata_format() == "mlx").then(|| parameters(self.ckpt));
        let path = self.folder.publish(&files::config(config, self.planned), parameters)?;
        Ok(Written { path, tensor_bytes, departures, manifest })
    }

    /// Does a part of the work and notes that it is done, unless an earlier run did.
    pub fn unless_finished(&self, part: &str, work: impl FnOnce() -> Result<Value>) -> Result<()> {
        let record = match self.folder.finished(part) {
            Some(record) => record.clone(),
            None => {
                let record = work()?;
                self.control.check()?;
                self.folder.finish_part(part, &record)?;
                record
            }
        };
        let mut records = self.records.lock().map_err(|_| Error::Internal("a writer panicked".into()))?;
        records.push((part.to_string(), record));
        Ok(())
    }

    /// Notes that a part was done once more: from now on only this record counts.
    pub fn redo(&self, part: &str, record: Value) -> Result<()> {
        self.folder.finish_part(part, &record)?;
        let mut records = self.records.lock().map_err(|_| Error::Internal("a writer panicked".into()))?;
        records.retain(|(p, _)| p != part);
        records.push((part.to_string(), record));
        Ok(())
    }

    /// Shows the record of a finished part.
    pub fn record_of(&self, part: &str, see: impl FnMut(&Value)) -> Result<()> {
        let records = self.records.lock().map_err(|_| Error::Internal("a writer panicked".into()))?;
        records.iter().filter(|(p, _)| p == part).map(|(_, record)| record).take(1).for_each(see);
        Ok(())
    }

    /// Copies every tensor that stays as it is, after a look at its numbers.
    fn copy_kept(&self) -> Result<Value> {
        for kept in &self.planned.contents.kept {
            let entry = self.entry(&kept.name)?;
            self.copy(kept.source, 0, self.ckpt.tensors()[kept.source].bytes(), entry)?;
        }
        Ok(json!({}))
    }

    fn entry(&self, name: &str) -> Result<usize> {
        self.folder.find(name).ok_or_else(|| Error::Internal(format!("'{name}' is not in the output's layout")))
    }

    /// Copies `len` bytes of a source tensor, from `offset` on.
    fn copy(&self, source: usize, offset: u64, len: u64, entry: usize) -> Result<()> {
        let t = &self.ckpt.tensors()[source];
        let mut buffer = Vec::new();
        for at in (0..len).step_by(PIECE) {
            self.control.check()?;
            buffer.resize(PIECE.min((len - at) as usize), 0);
            self.ckpt.read(t, offset + at, &mut buffer)?;
            if let Dtype::Ggml(ty) = t.dtype
                && quant::check_rows(ty, &buffer).is_err()
            {
                let file = &self.ckpt.files()[t.file].path;
                return Err(Error::bad_file(file, "holds a number that is not finite")
                    .tensor(&t.name)
                    .hint("the checkpoint is damaged or its training diverged; download it again or ask its author"));
            }
            self.folder.put(entry, at, &buffer)?;
            (self.control.advance)(buffer.len() as u64);
        }
        Ok(())
    }

    /// Copies module `index` as it is.
    pub fn copy_module(&self, index: usize) -> Result<Value> {
        let m = &self.planned.contents.modules[index];
        let size = m.meta(self.ckpt).bytes() / m.meta(self.ckpt).elements().max(1) as u64;
        let (offset, len) = ((m.first_row * m.cols) as u64 * size, (m.rows * m.cols) as u64 * size);
        self.copy(m.source, offset, len, self.entry(&format!("{}.weight", m.path))?)?;
        Ok(json!({ "module": m.path, "format": null, "bits": 8 * size }))
    }

    /// Writes a packed module.
    pub fn write_module(&self, index: usize, pieces: &[Piece]) -> Result<()> {
        let m = &self.planned.contents.modules[index];
        for piece in pieces {
            self.folder.put_named(&format!("{}.{}", m.path, piece.suffix), &piece.data)?;
        }
        (self.control.advance)(
            m.meta(self.ckpt).bytes() / m.meta(self.ckpt).elements().max(1) as u64 * (m.rows * m.cols) as u64,
        );
        Ok(())
    }

    /// A module as a loader reads it, rows in the engine's order.
    pub fn unpack(&self, index: usize, pieces: &[Piece]) -> Result<Packed> {
        let m = &self.planned.contents.modules[index];
        let stored = |p: &Piece| StoredPiece {
            suffix: p.suffix.to_string(),
            dtype: p.dtype,
            shape: p.shape.clone(),
            data: p.data.clone(),
        };
        let packed = self.scheme.unpack(&m.path, pieces.iter().map(stored).collect());
        packed.map_err(|what| Error::bad_input(what).tensor(&m.path))
    }

    /// A module that was written before.
    pub fn read_back(&self, index: usize) -> Result<Option<Packed>> {
        let m = &self.planned.contents.modules[index];
        let Some(spec) = self.planned.specs[index] else { return Ok(None) };
        let mut pieces = Vec::new();
        for slot in spec.layout(m.rows, m.cols, m.scale_type(self.ckpt)) {
            let data = self.folder.get(self.entry(&format!("{}.{}", m.path, slot.suffix))?)?;
            pieces.push(Piece { suffix: slot.suffix, dtype: slot.dtype, shape: slot.shape, data });
        }
        self.unpack(index, &pieces).map(Some)
    }

    /// The manifest's row of a module: its format, its bits per weight, and the squared error relative to the weights
    /// (rows in the source's order).
    pub fn record(&self, index: usize, weights: &[f32], packed: &Packed) -> Value {
        let m = &self.planned.contents.modules[index];
        let spec = self.planned.specs[index];
        let bytes = spec.map_or(0, |s| s.sizes(m.rows, m.cols, m.scale_type(self.ckpt)));
        let (mut error, mut total) = (0.0f64, 0.0f64);
        let mut row = vec![0.0; m.cols];
        for (i, weights) in weights.chunks_exact(m.cols).enumerate() {
            packed.decode(i..i + 1, &mut row);
            for (w, q) in weights.iter().zip(&row) {
                error += f64::from(w - q).powi(2);
                total += f64::from(*w).powi(2);
            }
        }
        json!({
            "module": m.path,
            "format": spec.map(|s| s.to_string()),
            "bits": 8.0 * bytes as f64 / (m.rows * m.cols) as f64,
            "relative_error": error / total.max(f64::MIN_POSITIVE),
        })
    }
}

/// The number of weights that a checkpoint's tensors stand for.
fn parameters(ckpt: &Checkpoint) -> u64 {
    ckpt.tensors().iter().map(|t| t.elements() as u64).sum()
}

/// Names, sizes and times of the source files: enough to notice that they changed between two runs.
fn identity(ckpt: &Checkpoint) -> Value {
    let file = |f: &crate::source::SourceFile| {
        let modified = f.path.metadata().and_then(|m| m.modified()).ok();
        let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        json!({ "path": f.path, "bytes": f.len, "modified": since.map(|s| s.as_nanos().to_string()) })
    };
    ckpt.files().iter().map(file).collect()
}

/// Neither the source folder nor one around it may be replaced.
fn refuse_the_source(ckpt: &Checkpoint, target: &Path) -> Result<()> {
    let (Ok(source), Ok(target)) = (ckpt.dir().canonicalize(), target.canonicalize()) else { return Ok(()) };
    match source.starts_with(&target) {
        true => Err(Error::Usage(format!("{} holds the source itself; name another folder", target.display()))),
        false => Ok(()),
    }
}

fn manifest(
    ckpt: &Checkpoint,
    planned: &Planned,
    provenance: &Provenance,
    departures: &[Departure],
    modules: Vec<Value>,
) -> Value {
    let name = |f: &crate::source::SourceFile| f.path.file_name().map(|n| n.to_string_lossy().into_owned());
    let hash = |i: usize| provenance.hashes.as_ref().and_then(|h| h.get(i).cloned());
    let files = ckpt.files().iter().enumerate();
    let files: Vec<Value> = files.map(|(i, f)| json!({ "name": name(f), "bytes": f.len, "sha256": hash(i) })).collect();
    let (weights, bits) = planned.quantized(ckpt);
    json!({
        "quantize_version": env!("CARGO_PKG_VERSION"),
        "source": { "name": provenance.name, "files": files },
        "format": planned.spec.to_string(),
        "recipe": provenance.recipe,
        "calibration": provenance.calibration,
        "quantized_weights": weights,
        "bits_per_weight": bits,
        "ledger": files::ledger(departures),
        "modules": modules,
    })
}

/// What a module is to the rounding to nearest of its format.
pub fn formats_module<'a>(job: &Job, index: usize, weights: &'a [f32]) -> packed::Module<'a> {
    let m = &job.planned.contents.modules[index];
    packed::Module::new(weights, m.rows, m.cols, m.scale_type(job.ckpt))
}
