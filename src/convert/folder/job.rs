//! One folder being made: what every method of rounding shares. Modules come in parts (a layer is one), each noted in
//! the folder's journal when it is complete, so that a run that was cut short continues after its last part. The result
//! does not depend on where it was cut, nor on the number of threads.

use super::files::{self, About};
use crate::control::{Notice, Run};
use crate::convert::identity::{CalibrationWindows, Identity};
use crate::convert::journal::{Journal, Left};
use crate::convert::layout::rules::ModulePlan;
use crate::convert::layout::{Departure, FolderPlan, pretty};
use crate::convert::proof::{Checked, DIGITS, Nearness, rounded_to};
use crate::convert::proven;
use crate::convert::recipe::Recipe;
use crate::digest::sha256;
use crate::disk::partial::Laying;
use crate::error::Unfinished;
use crate::kernel::RowSource;
use crate::model::modules::Contents;
use crate::model::{Model, SourceModel};
use crate::packed::{self, Loader, Packed, Piece, Scheme, StoredPiece};
use crate::quant;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::folder::{self, Folder};
use crate::writer::publish::Step;
use crate::writer::safetensors::Entry;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// What a folder is made from and reported to.
pub struct Job<'a> {
    pub ckpt: &'a Checkpoint,
    pub model: &'a Model,
    pub plan: &'a FolderPlan,
    pub folder: Folder,
    pub run: Run<'a>,
    scheme: Scheme,
    journal: Mutex<Journal>,
    /// What the output is called by.
    pub name: String,
    /// What the output's bytes are decided by.
    key: Value,
}

/// What surrounds the weights.
pub struct Provenance<'a> {
    /// The source as people call it.
    pub name: &'a str,
    /// SHA-256 of each source file; `None` when they are not to be read once more.
    pub hashes: Option<Vec<String>>,
    /// What the calibration data was.
    pub calibration: Value,
}

/// A folder that is finished but for its name.
pub struct UnnamedFolder {
    /// Keeps other runs away until the name is given; both stay if it is not.
    _unnamed: (Folder, Mutex<Journal>),
    /// How the name is given.
    pub step: Step,
    pub path: PathBuf,
    pub tensor_bytes: u64,
    /// Departures of the plan and of the run.
    pub departures: Vec<Departure>,
    /// What was seen when it ran beside its source.
    pub checked: Option<Checked>,
    pub manifest: Value,
}

/// The part of everything that belongs to no layer, or of one layer.
pub fn part(layer: Option<usize>) -> String {
    layer.map_or("ends".into(), |layer| format!("layer {layer}"))
}

/// The part of the journal that holds the verdict.
pub const VERDICT: &str = "held-out windows";

/// The part of the journal that tells of tuned scales.
pub const TUNED: &str = "tuned scales";

/// The parts of a plan, in order.
pub fn parts(plan: &FolderPlan) -> Vec<Option<usize>> {
    let mut layers: Vec<Option<usize>> = plan.modules.iter().map(|m| m.module.layer).collect();
    layers.dedup();
    layers
}

/// One tensor of a copied piece at a time.
const PIECE: usize = 4 << 20;

impl<'a> Job<'a> {
    /// Makes the folder under its temporary name, or takes up that of an earlier run of the same recipe over the same
    /// source. `seen`: what is calibrated on, if anything is.
    ///
    /// # Errors
    /// `Unfinished` when an interrupted run is in the way, or the one to be continued was another; `Exists`; `Storage`.
    pub fn new(
        source: &'a SourceModel,
        plan: &'a FolderPlan,
        recipe: &Recipe,
        target: &Path,
        seen: Option<CalibrationWindows>,
        run: Run<'a>,
    ) -> Result<Self> {
        let (ckpt, model) = (&*source.ckpt, &*source.model);
        let config = json!({ "quantization_config": plan.config });
        let scheme = Scheme::of(&config).map_err(Error::Internal)?;
        let scheme = scheme.ok_or_else(|| Error::Internal("the configuration names no format".into()))?;
        let name = recipe.outputs.first().map_or_else(String::new, |t| t.name().to_string());
        let (folder, journal, key) =
            begin(ckpt, (&plan.entries, plan.spec.loader().metadata_format()), recipe, target, seen, run)?;
        Ok(Self { ckpt, model, plan, folder, run, scheme, journal: Mutex::new(journal), name, key })
    }

    /// The journal of an earlier run that this one continues.
    fn left(target: &Path, key: &Value, run: Run) -> Result<Option<Journal>> {
        let path = folder::journal_path(target);
        let known = match run.control.resume {
            true => Journal::resume(&path, key, run)?,
            false => Journal::peek(&path)?,
        };
        if let Some(Left { journal, .. }) = known {
            if run.control.resume {
                return Ok(Some(journal));
            }
            let parts = journal.parts();
            if parts > 0 && !run.control.force {
                let why = Unfinished::Parts(parts);
                return Err(Error::Unfinished { path: folder::partial_path(target), why });
            }
        }
        folder::forget(target)?;
        Ok(None)
    }

    /// Copies what is not quantized, lets `rounded` make the rest, and completes the folder but for its name. `prove` runs
    /// what lies under the temporary name beside the source.
    pub fn make(
        mut self,
        rounded: impl FnOnce(&Self) -> Result<()>,
        prove: impl FnOnce(&Path) -> Result<Option<Checked>>,
        provenance: &Provenance,
    ) -> Result<UnnamedFolder> {
        let done = self.unless_finished("kept", || self.copy_kept()).and_then(|()| rounded(&self));
        let worth_keeping = self.journal()?.parts() > 0;
        self.folder.keep_on_drop(worth_keeping);
        self.journal()?.keep_on_drop(worth_keeping);
        let done = done.and_then(|()| self.run.check());
        let done = done.and_then(|()| self.ckpt.files().iter().try_for_each(|file| file.check_unchanged()));
        if let Err(e) = done {
            if worth_keeping {
                self.run.notice(Notice::Kept(self.folder.partial().to_path_buf()));
            }
            return Err(e);
        }
        let mut departures = self.plan.departures.clone();
        let mut modules = Vec::new();
        let parts = [VERDICT.to_string()].into_iter().chain(parts(self.plan).into_iter().map(part));
        for part in parts {
            let Some(mut record) = self.finished(&part)? else { continue };
            departures.extend(files::departures(&record));
            if let Some(Value::Array(rows)) = record.get_mut("modules").map(Value::take) {
                modules.extend(rows);
            }
        }
        let tuned = self.finished(TUNED)?;
        // What a module's scales have become since its row was written.
        for row in &mut modules {
            let error = row["module"].as_str().and_then(|path| tuned.as_ref()?["relative_errors"].get(path));
            if let Some(error) = error {
                row["relative_error"] = error.clone();
            }
        }
        let mut manifest = self.manifest(provenance, &departures, modules);
        if let Some(tuned) = tuned {
            manifest["tuned"] = tuned["summary"].clone();
        }
        if let Some(mut held_out) = self.finished(VERDICT)? {
            held_out.as_object_mut().and_then(|record| record.remove("ledger"));
            manifest["held_out"] = held_out;
        }
        let Some(config) = &self.model.hf_config else {
            return Err(Error::Internal("a folder is made of a source without config.json".into()));
        };
        let about = About::of(self.ckpt, self.model, provenance.name);
        let name = format!("{}-{}", provenance.name, self.name);
        files::write(&self.folder, self.ckpt, self.plan, &manifest, &name, &departures, &about)?;
        let tensor_bytes = self.folder.tensor_bytes();
        let parameters = (self.plan.spec.loader() == Loader::Mlx).then(|| parameters(self.ckpt));
        self.folder.seal(&files::config(config, self.plan), parameters)?;
        let checked = prove(self.folder.partial())?;
        if let Some(checked) = checked.as_ref().filter(|c| c.suspicion.is_some()) {
            self.folder.keep_on_drop(true);
            self.journal()?.keep_on_drop(false);
            let kept = proven::set_aside(self.folder.partial(), self.folder.target())?;
            return Err(proven::suspicious(&self.name, checked, &kept));
        }
        if let Some(checked) = &checked {
            let (texts, tokens) = (&checked.texts, checked.tokens);
            manifest["checked"] = match checked.nearness {
                Nearness::Logits { kl, same_top, .. } => json!({ "texts": texts, "tokens": tokens,
                    "kl_divergence": rounded_to(kl, DIGITS), "same_top": rounded_to(same_top, DIGITS) }),
                Nearness::Vectors { cosine, .. } => {
                    json!({ "texts": texts, "tokens": tokens, "distance": rounded_to(1.0 - cosine, DIGITS) })
                }
            };
            self.folder.text(folder::MANIFEST, &pretty(&manifest))?;
        }
        let step = self.folder.complete()?;
        // Whatever happens from here on, there is something to go on with.
        self.folder.keep_on_drop(true);
        self.journal()?.keep_on_drop(true);
        let path = self.folder.target().to_path_buf();
        let Self { folder, journal, .. } = self;
        Ok(UnnamedFolder { _unnamed: (folder, journal), step, path, tensor_bytes, departures, checked, manifest })
    }

    /// Stops here, and keeps what there is: see [`crate::convert::job`].
    pub fn keep(mut self) -> Result<()> {
        self.ckpt.files().iter().try_for_each(|file| file.check_unchanged())?;
        self.folder.keep_on_drop(true);
        self.journal()?.keep_on_drop(true);
        Ok(())
    }

    fn journal(&self) -> Result<MutexGuard<'_, Journal>> {
        self.journal.lock().map_err(|_| Error::Internal("a writer panicked".into()))
    }

    /// What was noted about a finished part, by this run or an earlier one.
    ///
    /// # Errors
    /// `Io`.
    pub fn finished(&self, part: &str) -> Result<Option<Value>> {
        self.journal()?.finished(part)
    }

    /// Whether a part is finished.
    pub fn has(&self, part: &str) -> Result<bool> {
        Ok(self.journal()?.has(part))
    }

    /// Does a part of the work and notes that it is done, unless that was noted before.
    pub fn unless_finished(&self, part: &str, work: impl FnOnce() -> Result<Value>) -> Result<()> {
        if self.has(part)? {
            return Ok(());
        }
        let record = work()?;
        self.run.check()?;
        self.redo(part, record)
    }

    /// Notes that a part is done, whether it was before or not: from then on only this record counts.
    pub fn redo(&self, part: &str, record: Value) -> Result<()> {
        self.folder.sync()?;
        let pieces = self.folder.pieces(self.run)?;
        self.journal()?.finish(part, record, pieces)
    }

    /// Copies every tensor that stays as it is, after a look at its numbers.
    pub fn copy_kept(&self) -> Result<Value> {
        for kept in &self.plan.kept {
            let entry = self.entry(&kept.name)?;
            self.copy(kept.source, 0, self.ckpt.tensors()[kept.source].bytes(), (entry, 0))?;
        }
        Ok(json!({}))
    }

    fn entry(&self, name: &str) -> Result<usize> {
        self.folder.find(name).ok_or_else(|| Error::Internal(format!("'{name}' is not in the output's layout")))
    }

    /// Copies `len` bytes of a source tensor, from `offset` on, to a place in a tensor of the folder.
    fn copy(&self, source: usize, offset: u64, len: u64, (entry, to): (usize, u64)) -> Result<()> {
        let t = &self.ckpt.tensors()[source];
        let mut buffer = Vec::new();
        for at in (0..len).step_by(PIECE) {
            self.run.check()?;
            buffer.resize(PIECE.min((len - at) as usize), 0);
            self.ckpt.read(t, offset + at, &mut buffer)?;
            look(self.ckpt, t, &buffer)?;
            self.folder.put(entry, to + at, &buffer)?;
            self.run.advance(buffer.len() as u64);
        }
        Ok(())
    }

    /// Copies module `index` as it is.
    pub fn copy_module(&self, index: usize) -> Result<Value> {
        let plan = &self.plan.modules[index];
        let m = &plan.module;
        let size = m.meta(self.ckpt).bytes() / m.meta(self.ckpt).elements().max(1) as u64;
        let (offset, len) = ((m.first_row * m.cols) as u64 * size, (m.rows * m.cols) as u64 * size);
        let to = plan.seat.place().0 as u64 * len;
        self.copy(m.source, offset, len, (self.entry(&plan.name("weight"))?, to))?;
        Ok(json!({ "module": m.path, "format": null, "bits": 8 * size }))
    }

    /// Writes a packed module.
    pub fn write_module(&self, index: usize, pieces: &[Piece]) -> Result<()> {
        let plan = &self.plan.modules[index];
        let m = &plan.module;
        for piece in pieces {
            self.folder.put_part(&plan.name(piece.suffix), plan.seat.place(), &piece.data)?;
        }
        self.run
            .advance(m.meta(self.ckpt).bytes() / m.meta(self.ckpt).elements().max(1) as u64 * (m.rows * m.cols) as u64);
        Ok(())
    }

    /// A module as a loader reads it, rows in the engine's order.
    pub fn unpack(&self, index: usize, pieces: &[Piece]) -> Result<Packed> {
        let ModulePlan { module: m, seat, .. } = &self.plan.modules[index];
        let stored = |p: &Piece| StoredPiece {
            suffix: p.suffix.to_string(),
            dtype: p.dtype,
            shape: p.shape.clone(),
            data: p.data.clone(),
        };
        let packed = self.scheme.unpack(&seat.path, pieces.iter().map(stored).collect());
        packed.map_err(|what| Error::bad_input(what).tensor(&m.path))
    }

    /// A module that was written before.
    pub fn read_back(&self, index: usize) -> Result<Option<Packed>> {
        let plan = &self.plan.modules[index];
        let ModulePlan { module: m, seat, spec, .. } = plan;
        let Some(spec) = spec else { return Ok(None) };
        let mut pieces = Vec::new();
        for slot in spec.layout(m.rows, m.cols, m.scale_type(self.ckpt)) {
            let data = self.folder.get_part(self.entry(&plan.name(slot.suffix))?, seat.place())?;
            pieces.push(Piece { suffix: slot.suffix, dtype: slot.dtype, shape: slot.shape, data });
        }
        self.unpack(index, &pieces).map(Some)
    }

    /// The manifest's row of a module: its format, its bits per weight, and the squared error relative to the weights
    /// (rows in the source's order).
    pub fn record(&self, index: usize, weights: &[f32], packed: &Packed) -> Value {
        let ModulePlan { module: m, spec, .. } = &self.plan.modules[index];
        let bytes = spec.map_or(0, |s| s.sizes(m.rows, m.cols, m.scale_type(self.ckpt)));
        json!({
            "module": m.path,
            "format": spec.map(|s| s.to_string()),
            "bits": 8.0 * bytes as f64 / (m.rows * m.cols) as f64,
            "relative_error": relative_error(weights, packed),
        })
    }
}

/// The squared error of a module relative to its weights, rows of both in the same order.
pub fn relative_error(weights: &[f32], packed: &dyn RowSource) -> f64 {
    let (mut error, mut total) = (0.0f64, 0.0f64);
    let mut row = vec![0.0; packed.cols()];
    for (i, weights) in weights.chunks_exact(row.len().max(1)).enumerate() {
        packed.decode(i..i + 1, &mut row);
        for (w, q) in weights.iter().zip(&row) {
            error += f64::from(w - q).powi(2);
            total += f64::from(*w).powi(2);
        }
    }
    error / total.max(f64::MIN_POSITIVE)
}

impl Job<'_> {
    fn manifest(&self, provenance: &Provenance, departures: &[Departure], modules: Vec<Value>) -> Value {
        let (weights, bits) = self.plan.quantized(self.ckpt);
        let kept = Contents::reasons(&self.plan.kept, self.ckpt, self.model);
        let kept: Vec<Value> =
            kept.into_iter().map(|(tensor, why)| json!({ "tensor": tensor, "reason": why })).collect();
        let mut manifest = json!({
            "quantize_version": env!("CARGO_PKG_VERSION"),
            "source": source(provenance.name, self.ckpt, provenance.hashes.as_deref()),
            "format": self.plan.spec.to_string(),
            "recipe": self.key["recipes"][0],
            "calibration": provenance.calibration,
            "quantized_weights": weights,
            "bits_per_weight": bits,
            "ledger": files::ledger(departures),
            "kept": kept,
            "modules": modules,
        });
        if let Some(allocation) = &self.plan.allocation {
            manifest["allocation"] = json!(allocation);
        }
        manifest
    }
}

/// A folder under its temporary name and its journal, new ones or those of an earlier run that this one continues, and
/// what decides the bytes. `layout`: the tensors, and the format that a header names. Neither outlives a run that gets
/// nowhere.
///
/// # Errors
/// As [`Job::new`].
pub fn begin(
    ckpt: &Checkpoint,
    (entries, format): (&[Entry], &'static str),
    recipe: &Recipe,
    target: &Path,
    seen: Option<CalibrationWindows>,
    run: Run,
) -> Result<(Folder, Journal, Value)> {
    let max_shard = recipe.split.of_folders();
    let layout = crate::writer::safetensors::layout(entries, format, max_shard)?;
    let shards = layout.shards.iter().map(|shard| folder::partial_path(target).join(&shard.name)).collect();
    let key = key(ckpt, (entries, format), recipe, seen, run)?;
    let mut journal = Job::left(target, &key, run)?;
    // By its journal an unfinished folder is known as this program's, so that comes first.
    let born = || {
        if journal.is_none() {
            journal = Some(Journal::create(&folder::journal_path(target), &key, shards)?);
        }
        Ok(())
    };
    let laying = Laying { force: run.control.force, sparse: run.control.sparse };
    let mut folder = Folder::create(target, entries.to_vec(), format, max_shard, laying, born)?;
    let journal = journal.ok_or_else(|| Error::Internal("a folder without a journal".into()))?;
    folder.keep_on_drop(journal.parts() > 0);
    Ok((folder, journal, key))
}

/// What decides the bytes of a folder of these tensors.
///
/// # Errors
/// `Io`; `Interrupted`.
pub fn key(
    ckpt: &Checkpoint,
    (entries, format): (&[Entry], &'static str),
    recipe: &Recipe,
    seen: Option<CalibrationWindows>,
    run: Run,
) -> Result<Value> {
    let layout = crate::writer::safetensors::layout(entries, format, recipe.split.of_folders())?;
    let layout = layout.shards.iter().map(|shard| sha256(&shard.header)).collect();
    Ok(Identity::new(ckpt, seen, layout, &run.control.cancel)?.key(std::slice::from_ref(recipe)))
}

/// The manifest's account of the source; `hashes` are those of its files.
pub fn source(name: &str, ckpt: &Checkpoint, hashes: Option<&[String]>) -> Value {
    let base = |f: &crate::source::SourceFile| f.path.file_name().map(|n| n.to_string_lossy().into_owned());
    let hash = |i: usize| hashes.and_then(|h| h.get(i));
    let files = ckpt.files().iter().enumerate();
    let files: Vec<Value> = files.map(|(i, f)| json!({ "name": base(f), "bytes": f.len, "sha256": hash(i) })).collect();
    json!({ "name": name, "files": files })
}

/// Looks at numbers of a tensor that are copied as they are.
///
/// # Errors
/// `BadInput` for one that is not finite.
pub fn look(ckpt: &Checkpoint, t: &TensorMeta, bytes: &[u8]) -> Result<()> {
    match t.dtype {
        Dtype::Ggml(ty) if quant::check_rows(ty, bytes).is_err() => {
            Err(Error::bad_file(&ckpt.files()[t.file].path, "holds a number that is not finite")
                .tensor(&t.name)
                .hint("the checkpoint is damaged or its training diverged; download it again or ask its author"))
        }
        _ => Ok(()),
    }
}

/// The number of weights that a checkpoint's tensors stand for.
fn parameters(ckpt: &Checkpoint) -> u64 {
    ckpt.tensors().iter().map(|t| t.elements() as u64).sum()
}

/// What a module is to the rounding to nearest of its format.
pub fn formats_module<'a>(job: &Job, index: usize, weights: &'a [f32]) -> packed::Module<'a> {
    let m = &job.plan.modules[index].module;
    packed::Module::new(weights, m.rows, m.cols, m.scale_type(job.ckpt))
}
