//! What a run will write, decided before a weight is read: the type of every tensor of every GGUF file, the format of
//! every module of every folder, exact sizes, and where it all goes. Everything that can be refused is refused here.

use super::allocation::Allocation;
pub use super::asked::regex_fault;
use super::findings;
use super::layout::{FolderPlan, PlainPlan};
use super::ledger::{Kind, LedgerRow};
use super::loadable;
use super::recipe::{Limit, Recipe, Split, Target};
use super::record::{self, Facts};
use super::rounding::tuning;
use super::sizes::{self, FileSizes};
use super::stream;
pub use super::types::AssumedImportance;
use super::types::{self, Tensor};
use crate::calibration::data::DataReport;
use crate::error::Hint;
use crate::gguf::{self, Metadata};
use crate::infer::check_reversible;
use crate::model::config_keys::lost;
use crate::model::contradictions;
use crate::model::tokenizer::GgufVocab;
use crate::model::{Mtp, Part, Role, SourceModel, TOWER, WITHOUT_MTP, gguf_metadata, preset_facts};
use crate::quant::presets::{self, Choice, Preset, Why};
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::OnceLock;

/// A run, decided.
#[derive(Debug)]
pub struct Plan {
    /// The model.
    pub source: SourceModel,
    /// What was asked for.
    pub recipe: Recipe,
    /// In the order of [`Recipe::outputs`].
    pub outputs: Vec<OutputPlan>,
    /// Where the importance matrix goes that calibration makes on the way, if it is to be kept.
    pub save_importance: Option<PathBuf>,
    /// Whether every GGUF file gets a Modelfile for Ollama beside it.
    pub modelfiles: bool,
    /// An evaluation text that calibration data should not hold.
    pub evaluation_text: Option<PathBuf>,
    /// SHA-256 of the source files, once they are hashed.
    pub source_hashes: OnceLock<Vec<String>>,
    /// The calibration data, and what was made of them, where tasks of a job have done that before.
    pub(super) prepared: Option<Prepared>,
    /// What was odd about the source, and what of it the outputs cannot hold: a sentence each.
    pub remarks: Vec<String>,
    /// Of GGUF files, but for their types and records. `None` when none is made.
    pub(super) metadata: Option<Metadata>,
}

/// What a run that calibrates finds done.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// The calibration windows.
    pub windows: Vec<Vec<u32>>,
    /// What they were drawn from.
    pub report: DataReport,
    /// The importance matrix of the windows, and the SHA-256 of its file.
    pub importance: Option<(PathBuf, String)>,
}

/// One output, decided.
#[derive(Debug)]
pub struct OutputPlan {
    /// Its place in [`Recipe::outputs`].
    pub index: usize,
    /// What was asked for.
    pub target: Target,
    /// The file (of a split one: the name that its shards' names are made of) or folder.
    pub place: PathBuf,
    /// How it is made.
    pub what: Decided,
}

impl OutputPlan {
    /// Where a file's Modelfile goes.
    pub fn modelfile(&self) -> PathBuf {
        self.place.with_extension("Modelfile")
    }
}

/// How an output is made.
#[derive(Debug)]
pub enum Decided {
    /// A GGUF file.
    File(Box<FilePlan>),
    /// A checkpoint folder.
    Folder(Box<FolderPlan>),
    /// A folder without quantization.
    Plain(Box<PlainPlan>),
}

/// A GGUF file, decided.
#[derive(Clone, Debug)]
pub struct FilePlan {
    /// Types and sizes of its tensors. Of a file with a budget, types are chosen when its losses are known.
    pub sizes: FileSizes,
    /// GGUF `general.file_type`.
    pub file_type: u32,
    /// Whose rules it follows.
    pub preset: &'static Preset,
    /// The budget, where types are chosen to fit one.
    pub limit: Option<Limit>,
    /// How a budget was spent.
    pub allocation: Option<Allocation>,
    /// Parts of the model that have no place in it, and where they have one.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A part of a model that a file does not hold, or not exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    what: &'static str,
    done: &'static str,
    reason: &'static str,
}

/// Decides everything but the reach of budgets.
pub(super) fn decide_outputs(source: &SourceModel, recipe: &Recipe, importance: AssumedImportance) -> Result<Plan> {
    recipe.check()?;
    let drawn = recipe.files().next().map(|_| source.for_files(recipe.part, recipe.mtp)).transpose()?;
    let source = drawn.as_ref().unwrap_or(source);
    if source.model.is_drawn() && recipe.folders().next().is_some() {
        let what = "make GGUF files and folders of this model in separate runs: what its tensors mean is not known";
        return Err(Error::unsupported(what));
    }
    let mut remarks = source.ckpt.remarks().to_vec();
    remarks.extend(without_effect(source, recipe).into_iter().map(String::from));
    if let Some(config) = source.model.hf_config.as_ref().filter(|_| source.ckpt.gguf().is_none()) {
        remarks.extend(contradictions::of(source.ckpt.dir(), config));
    }
    remarks.extend(source.model.half_known().filter(|_| !source.ckpt.is_adapter()));
    let metadata = match recipe.files().next() {
        Some(_) => {
            let (metadata, told) = metadata(source, recipe)?;
            remarks.extend(told);
            if source.model.part() == Part::Text {
                remarks.extend(lost(&source.model)?.iter().map(ToString::to_string));
            }
            Some(metadata)
        }
        None => None,
    };
    let mut plan = Plan {
        source: source.clone(),
        recipe: recipe.clone(),
        outputs: Vec::new(),
        save_importance: None,
        modelfiles: false,
        evaluation_text: None,
        source_hashes: OnceLock::new(),
        prepared: None,
        remarks,
        metadata,
    };
    for (index, target) in recipe.outputs.iter().enumerate() {
        let what = match target {
            Target::Folder { format, limit, .. } => {
                // What is planned from a configuration alone has no files.
                let is_folder = source.ckpt.gguf().is_none() && !source.ckpt.files().is_empty();
                if is_folder && !source.ckpt.dir().join("config.json").is_file() {
                    let what = "there is no config.json, which every program that loads a folder reads";
                    return Err(Error::unsupported(format!("{}: {what}", source.ckpt.dir().display())));
                }
                if tuning(format, &recipe.rounding, recipe.data.is_some()) > 0 {
                    check_reversible(&source.model.config)?;
                }
                let folder = FolderPlan::new(source, *format, recipe.devices, &recipe.types.tensors)?;
                Decided::Folder(Box::new(FolderPlan { limit: *limit, ..folder }))
            }
            Target::Plain { dtype, like, .. } => {
                Decided::Plain(Box::new(PlainPlan::new(source, *dtype, like.as_ref())?))
            }
            _ => Decided::File(Box::new(plan.file(index, target, importance)?)),
        };
        let place = PathBuf::from(recipe.usual_place(target, &source.name()));
        plan.outputs.push(OutputPlan { index, target: target.clone(), place, what });
    }
    let is_packed = |row: &sizes::TensorRow| row.choice.why == Why::Kept && !row.choice.got.is_plain();
    let packed = plan.files().map(|(_, file)| file.sizes.rows.iter().filter(|row| is_packed(row)).count()).max();
    if let Some(n) = packed.filter(|n| *n > 0 && source.ckpt.gguf().is_none()) {
        plan.remarks.push(format!("{n} expert tensors are stored in MXFP4 and are kept bit for bit"));
    }
    plan.check_overrides()?;
    Ok(plan)
}

impl Plan {
    /// The GGUF files, with the output that each is.
    pub fn files(&self) -> impl Iterator<Item = (&OutputPlan, &FilePlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::File(file) = &o.what { Some((o, &**file)) } else { None })
    }

    /// The folders, with the output that each is.
    pub fn folders(&self) -> impl Iterator<Item = (&OutputPlan, &FolderPlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::Folder(f) = &o.what { Some((o, &**f)) } else { None })
    }

    /// Whether GGUF files hold a model that makes vectors of texts instead of continuing them.
    pub(super) fn is_encoder(&self) -> bool {
        let arch = &self.source.model.config.arch;
        let Some(metadata) = &self.metadata else { return false };
        metadata.get(&format!("{arch}.pooling_type")).is_some()
            || metadata.bool(&format!("{arch}.attention.causal")) == Some(false)
    }

    /// The folders without quantization, with the output that each is.
    pub fn plain(&self) -> impl Iterator<Item = (&OutputPlan, &PlainPlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::Plain(f) = &o.what { Some((o, &**f)) } else { None })
    }

    /// Weights of the model in GGUF files.
    pub fn weights(&self) -> u64 {
        stream::outputs(&self.source.model).iter().map(|(_, s)| s.iter().map(|d| *d as u64).product::<u64>()).sum()
    }

    /// What departs from what was asked, as far as it is known before the work.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        self.outputs.iter().flat_map(OutputPlan::ledger).collect()
    }

    /// Refuses a plan that departs from what was asked.
    ///
    /// # Errors
    /// `Unsupported` for the first departure.
    pub fn refuse_departures(&self) -> Result<()> {
        let Some(row) = self.ledger().into_iter().find(|row| row.kind != Kind::LeftOut) else { return Ok(()) };
        let what = format!("{}: cannot be {}: {}", row.candidate, row.asked, row.reason);
        let error = Error::unsupported(what).hint(Hint::AllowFallback { instead: row.done });
        Err(match row.tensor {
            Some(tensor) => error.tensor(tensor),
            None => error,
        })
    }

    /// The GGUF file of a preset, whatever the outputs are.
    pub(super) fn preset_file(&self, preset: &'static Preset) -> Result<FilePlan> {
        self.decided(preset.name, preset, AssumedImportance::Given)
    }

    /// Decides the types of a GGUF file.
    fn file(&self, index: usize, target: &Target, importance: AssumedImportance) -> Result<FilePlan> {
        let (preset, limit) = match target {
            Target::Preset(preset) => (*preset, None),
            // Until the types are chosen.
            Target::Budget { limit, .. } => (f16()?, Some(*limit)),
            Target::Folder { .. } | Target::Plain { .. } => {
                return Err(Error::Internal("a folder is not a file".into()));
            }
        };
        let decided =
            self.decided(target.name(), preset, if limit.is_some() { AssumedImportance::Given } else { importance })?;
        let file_type = if let Some(Limit::Like(like)) = limit { like.file_type } else { decided.file_type };
        let mut file = FilePlan { file_type, limit, ..decided };
        file.sizes.file_bytes =
            file.sizes.padded_bytes + self.header_bytes((index, target), &file, &Facts::default())?;
        Ok(file)
    }

    fn decided(&self, name: &str, preset: &'static Preset, importance: AssumedImportance) -> Result<FilePlan> {
        let metadata = self.metadata.as_ref().ok_or_else(|| Error::Internal("no metadata".into()))?;
        let tensors = types::of_source(&self.source, &self.recipe, preset, preset_facts(metadata), importance)?;
        let file_type = types::marked(preset, &tensors).file_type;
        let sizes = sizes::of_file(name, preset, tensors.into_iter().map(Tensor::decided), 0);
        let left_out = left_out(&self.source, &self.recipe);
        Ok(FilePlan { sizes, file_type, preset, limit: None, allocation: None, left_out })
    }

    /// The metadata of a file: the model's, the file type, the record of the run, and what the recipe overrides.
    ///
    /// # Errors
    /// `Request` for an override that contradicts the type of a value.
    pub(super) fn metadata(
        &self,
        (index, target): (usize, &Target),
        file: &FilePlan,
        facts: &Facts,
    ) -> Result<Metadata> {
        let mut metadata = self.recorded((index, target), file, facts);
        record::override_metadata(&mut metadata, &self.recipe.metadata)?;
        Ok(metadata)
    }

    /// The same without what the recipe overrides.
    fn recorded(&self, (index, target): (usize, &Target), file: &FilePlan, facts: &Facts) -> Metadata {
        let mut metadata = self.metadata.clone().unwrap_or_default();
        match self.source.ckpt.is_adapter() {
            true => metadata.remove("general.file_type"),
            false => metadata.set("general.file_type", file.file_type),
        }
        let recipe = Recipe { outputs: vec![target.clone()], ..self.recipe.of_output(index) };
        record::write(&mut metadata, &recipe, &self.source, facts);
        let model = &self.source.model;
        if model.part() == Part::Text && recipe.mtp != Mtp::Only && model.runnable().is_ok() {
            let feedback = recipe.data.is_some() && recipe.file_feedback();
            findings::lay_out(&mut metadata, model.config.ending, feedback);
        }
        metadata
    }

    /// That the keys which the recipe overrides leave files that llama.cpp loads.
    fn check_overrides(&self) -> Result<()> {
        for (output, file) in self.files().filter(|_| !self.recipe.metadata.is_empty()) {
            let tensors = file.sizes.rows.iter().map(|row| (row.name.clone(), row.choice.got, row.shape.clone()));
            let without = self.recorded((output.index, &output.target), file, &Facts::default());
            let mut with = without.clone();
            record::override_metadata(&mut with, &self.recipe.metadata)?;
            let planned = Checkpoint::imagined(tensors.collect())?.with_metadata(without);
            if let Some(what) = loadable::refused_by_change(planned, with) {
                let keys: Vec<&str> = self.recipe.metadata.iter().map(|o| o.key.as_str()).collect();
                let what = format!("with another {}, llama.cpp could not use the file: {what}", keys.join(", "));
                return Err(Error::request(what));
            }
        }
        Ok(())
    }

    /// The bytes before the tensors of a file, but for what shards add.
    pub(super) fn header_bytes(&self, output: (usize, &Target), file: &FilePlan, facts: &Facts) -> Result<u64> {
        let entries = stream::entries(&self.source.model, &file.sizes.types());
        let metadata = self.metadata(output, file, facts)?;
        Ok(gguf::encode_header(&metadata, &entries, gguf::DEFAULT_ALIGNMENT).len() as u64)
    }
}

impl OutputPlan {
    /// What departs from what was asked.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        match &self.what {
            Decided::File(file) => file.ledger(self.target.name()),
            Decided::Folder(folder) => folder.departures.iter().map(|d| d.of(self.target.name())).collect(),
            Decided::Plain(folder) => folder.departures.iter().map(|d| d.of(self.target.name())).collect(),
        }
    }
}

impl FilePlan {
    fn ledger(&self, candidate: &str) -> Vec<LedgerRow> {
        let row = |r: &sizes::TensorRow| LedgerRow {
            candidate: candidate.to_string(),
            kind: Kind::Fallback,
            tensor: Some(r.name.clone()),
            asked: r.choice.wanted.to_string(),
            done: r.choice.got.to_string(),
            reason: format!(
                "rows of {} are not a multiple of {}",
                r.shape.last().unwrap_or(&0),
                r.choice.wanted.block()
            ),
        };
        let left_out = self.left_out.iter().map(|left| LedgerRow {
            candidate: candidate.to_string(),
            kind: Kind::LeftOut,
            tensor: None,
            asked: left.what.into(),
            done: left.done.into(),
            reason: left.reason.into(),
        });
        self.sizes.fallbacks().map(row).chain(left_out).collect()
    }

    /// Takes other types; the bytes before the tensors stay as they are.
    pub(super) fn take(&mut self, choices: Vec<Choice>) {
        let rows = std::mem::take(&mut self.sizes.rows).into_iter().zip(choices);
        let before = self.sizes.file_bytes.saturating_sub(self.sizes.padded_bytes);
        let rows = rows.map(|(row, choice)| (row.name, row.shape, choice));
        self.sizes = sizes::of_file(&self.sizes.name, self.preset, rows, before);
    }
}

/// What of a recipe for GGUF files makes no difference to this model: a sentence each.
fn without_effect(source: &SourceModel, recipe: &Recipe) -> Vec<&'static str> {
    let (ckpt, model) = (&source.ckpt, &source.model);
    let text = recipe.part == Part::Text && recipe.files().next().is_some();
    let tensors = |mtp| source.for_files(recipe.part, mtp).map(|kept| kept.model.tensors.len()).ok();
    let is_plain = |t: &TensorMeta| matches!(t.dtype, Dtype::Ggml(ty) if ty.is_plain());
    let no_mtp = || tensors(Mtp::Keep) == Some(model.tensors.len());
    let all = [
        (recipe.mtp == Mtp::Drop && no_mtp(), "there are no multi-token prediction layers to leave out"),
        (recipe.requantize && ckpt.tensors().iter().all(is_plain), "nothing is quantized in the source yet"),
        (
            recipe.types.keep_output && !model.tensors.iter().any(|t| t.role == Role::Output),
            "there is no output matrix to leave alone: the embedding is used",
        ),
        (
            recipe.split == Split::AsSource && ckpt.files().len() < 2,
            "the source is one file, and so is what is made of it",
        ),
    ];
    all.into_iter().filter(|(idle, _)| text && *idle).map(|(_, what)| what).collect()
}

/// The parts of the source that a text model has no place for, or only in fewer bits.
fn left_out(source: &SourceModel, recipe: &Recipe) -> Vec<LeftOut> {
    let model = &source.model;
    if recipe.part == Part::Projector || recipe.mtp == Mtp::Only {
        return Vec::new();
    }
    let has = |reason: &str| model.dropped.iter().any(|(_, why)| why == reason);
    let encoder = LeftOut {
        what: "encoder of images or sound",
        done: "left out",
        reason: "a text model cannot hold it; it goes into a separate projector file (mmproj)",
    };
    let mtp = LeftOut {
        what: "multi-token prediction",
        done: "left out",
        reason: "llama.cpp does not support it for this architecture",
    };
    let computed = LeftOut {
        what: "norms and decays that are computed from F16 weights",
        done: "rounded to F16",
        reason: "as llama.cpp's converter has them; of a BF16 or F32 checkpoint they are exact",
    };
    let rounded = model.tensors.iter().any(|t| t.is_rounded(&source.ckpt));
    let all = [(encoder, has(TOWER)), (mtp, has(WITHOUT_MTP)), (computed, rounded)];
    all.into_iter().filter(|(_, has)| *has).map(|(left, _)| left).collect()
}

pub(super) fn f16() -> Result<&'static Preset> {
    presets::find("f16").ok_or_else(|| Error::Internal("no F16".into()))
}

/// The metadata of the model, and of its tokenizer; and what is to be said of the latter.
pub(crate) fn metadata(source: &SourceModel, recipe: &Recipe) -> Result<(Metadata, Vec<String>)> {
    let (ckpt, model) = (&source.ckpt, &source.model);
    let mut metadata = gguf_metadata(model, ckpt, 0)?;
    // A GGUF source's own layout and provenance are not the new file's.
    let stale = |key: &str| key == gguf::ALIGNMENT_KEY || key.starts_with("quantize.");
    for key in metadata.iter().map(|(key, _)| key.to_string()).filter(|key| stale(key)).collect::<Vec<_>>() {
        metadata.remove(&key);
    }
    let (pre, mut told) = (recipe.pretokenizer.as_deref(), Vec::new());
    if model.part() == Part::Projector {
        return Ok((metadata, told));
    }
    if ckpt.gguf().is_none() {
        let vocab = GgufVocab::from_hf_dir(ckpt.dir(), model.config.vocab, model.tokenizer_facts(), pre)?;
        vocab.write(&mut metadata);
        told.extend(vocab.remarks().iter().cloned());
    } else if let Some(name) = pre {
        metadata.set("tokenizer.ggml.pre", name);
    }
    Ok((metadata, told))
}
