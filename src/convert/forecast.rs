//! What a conversion will take, told from its plan: memory, disk and processor time; and where its files will fit.

use super::cost::{self, Cost, Pass};
use super::devices::{self, Device, Fit};
use super::folder::nearest;
use super::layout::FolderPlan;
use super::plan::{AssumedImportance, Plan};
use super::recipe::Recipe;
use super::rounding::{has_feedback, needs_data, tuning};
use super::sizes::{self, FileSizes, TensorRow};
use super::stream;
use super::tune;
use super::types::sizes_of_model;
use crate::model::{Cache, Model, SourceModel};
use crate::packed::ChannelScaling;
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// Everything that is known of the GGUF files of a run.
#[derive(Serialize)]
pub struct Files {
    pub weights: u64,
    /// `None` when planned from config.json alone.
    pub source_bytes: Option<u64>,
    /// Memory of the conversion itself.
    pub peak_memory: u64,
    pub disk: u64,
    /// Bytes of keys and values per token of context, in 16 bits. `None` for a model of an unknown family.
    pub kv_bytes_per_token: Option<u64>,
    /// Bytes that a sequence takes whatever its length: recurrent states, and keys and values of layers with a window.
    pub state_bytes: Option<u64>,
    pub targets: Vec<FileSizes>,
}

impl Files {
    pub fn new(model: &Model, targets: Vec<FileSizes>, source_bytes: Option<u64>, threads: usize) -> Self {
        let config = &model.config;
        let cache = cache(model);
        let tensors = targets.first().map_or(&[][..], |t| &t.rows);
        Self {
            weights: tensors.iter().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum(),
            source_bytes,
            peak_memory: sizes::conversion_memory(config, tensors, threads),
            disk: targets.iter().map(|t| t.file_bytes).sum(),
            kv_bytes_per_token: cache.as_ref().map(|cache| cache.per_token),
            state_bytes: cache.map(|cache| cache.fixed),
            targets,
        }
    }

    /// The files of a plan; `None` when it has none.
    pub fn of(plan: &Plan, threads: usize) -> Option<Self> {
        let targets: Vec<FileSizes> = plan.files().map(|(_, file)| file.sizes.clone()).collect();
        let source = &plan.source;
        let bytes = stream::source_bytes(&source.ckpt, &source.model);
        (!targets.is_empty()).then(|| Self::new(&source.model, targets, Some(bytes), threads))
    }

    /// Whether a file fits devices, the built-in table of them where none is named, with `context` tokens of context.
    /// `None` where the room for keys and values is not known.
    pub fn fits(&self, file: &FileSizes, devices: &[Device], context: usize, longest: usize) -> Option<Vec<Fit>> {
        let (kv, states) = (self.kv_bytes_per_token?, self.state_bytes.unwrap_or(0));
        let table = devices::for_files();
        let devices = if devices.is_empty() { &table } else { devices };
        let fit = |d| devices::fit(d, file.tensor_bytes + states, kv, context as u64, longest as u64);
        Some(devices.iter().map(fit).collect())
    }
}

/// How a folder fits so many devices of each kind, the built-in ones where none is named. `None` where the room for keys and
/// values is not known.
pub fn folder_fits(
    model: &Model,
    folder: &FolderPlan,
    devices: &[Device],
    count: usize,
    context: usize,
) -> Option<Vec<Fit>> {
    let cache = cache(model)?;
    let devices = if devices.is_empty() { devices::table() } else { devices.to_vec() };
    let longest = model.config.context as u64;
    let weights = folder.tensor_bytes() + cache.fixed;
    let fit = |d: &Device| devices::fit(d, weights, cache.per_token, context as u64, longest);
    Some(devices::several(devices, count).iter().map(fit).collect())
}

/// What a sequence takes in memory beside the weights; `None` for a model of an unknown family.
pub fn cache(model: &Model) -> Option<Cache> {
    let of_family = || Cache { per_token: sizes::kv_bytes_per_token(&model.config), fixed: 0 };
    model.drawn_cache().cloned().or_else(|| model.family.is_ok().then(of_family))
}

/// The plan for the model at `path`, which may be its `config.json` alone, and what its GGUF files take. Presets that
/// need importance are planned as with it.
///
/// # Errors
/// As [`super::plan()`]; `BadInput` where there is no model.
pub fn plan(path: &Path, recipe: &Recipe, threads: usize) -> Result<(Plan, Option<Files>)> {
    let Some(json) = config_only(path)? else {
        let plan = super::plan_assuming(&SourceModel::open(path)?, recipe, AssumedImportance::WhereNeeded)?;
        let files = Files::of(&plan, threads);
        return Ok((plan, files));
    };
    let (ckpt, model) = Model::imagined(json, recipe.mtp)?;
    let source = SourceModel::new(path, ckpt, model);
    let sizes = sizes_of_model(&source.model, recipe)?;
    let files = (!sizes.is_empty()).then(|| Files::new(&source.model, sizes, None, threads));
    let outputs = recipe.outputs.iter().filter(|t| !t.is_file()).cloned().collect();
    Ok((super::plan(&source, &Recipe { outputs, ..recipe.clone() })?, files))
}

/// The config.json of a model without weights: the file itself, or a folder that holds nothing else to read.
fn config_only(path: &Path) -> Result<Option<serde_json::Value>> {
    let file = if path.is_dir() {
        let has_weights = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".safetensors") || name.ends_with(".gguf") || name.ends_with(".bin")
        });
        if has_weights {
            return Ok(None);
        }
        path.join("config.json")
    } else if path.extension().is_some_and(|e| e == "json") {
        path.to_path_buf()
    } else {
        return Ok(None);
    };
    match file.exists() {
        true => crate::input::read_json(&file).map(Some),
        false => Err(Error::bad_file(path, "has no model: there is no config.json in it")),
    }
}

/// What the work on a plan takes.
#[derive(Clone, Copy)]
pub struct Forecast<'a> {
    pub plan: &'a Plan,
    /// Tokens that are calibrated on, where anything is.
    pub calibration_tokens: u64,
    pub threads: usize,
}

impl Forecast<'_> {
    /// What a pass over the calibration data takes.
    pub fn cost(&self, pass: Pass) -> Cost {
        cost::of(&self.plan.source.model, pass, self.calibration_tokens, self.threads)
    }

    /// What error feedback takes for the one of `files` that takes longest.
    pub fn feedback_cost(&self, files: &Files) -> Cost {
        let seconds = |row: &TensorRow| row.shape.iter().product::<usize>() as f64 * cost::codebook(row.choice.got);
        let codebooks = files.targets.iter().map(|file| file.rows.iter().map(seconds).sum());
        let mut cost = self.cost(Pass::Blocks);
        cost.cpu_seconds += codebooks.fold(0.0, f64::max);
        cost
    }

    /// Bytes of disk that error feedback takes for `files` until it is done: each lies beside its rival, the file rounded to
    /// nearest, and the better one stays.
    pub fn feedback_disk(&self, files: &Files) -> u64 {
        2 * files.disk
    }

    /// What the calibration of a folder takes; `None` where there is none.
    pub fn folder_cost(&self, folder: &FolderPlan) -> Option<Cost> {
        let (spec, rounding, given) = (&folder.spec, &self.plan.recipe.rounding, self.plan.recipe.data.is_some());
        let steps = tuning(spec, rounding, given);
        let pass = match (has_feedback(spec, rounding, given), spec.scaling()) {
            (true, ChannelScaling::Awq) => Pass::Awq,
            (true, ChannelScaling::None | ChannelScaling::SmoothQuant) => Pass::Gptq,
            (false, _) if needs_data(spec, rounding, given) => Pass::Statistics,
            (false, _) if folder.limit.is_some() => Pass::Statistics,
            (false, _) => return None,
        };
        let mut cost = self.cost(pass);
        if folder.limit.is_some() {
            // Losses are estimated in several formats on some of the rows, and sensitivities measured with the whole model.
            cost.cpu_seconds += 2.0 * self.cost(Pass::Gptq).cpu_seconds;
            let model = self.plan.source.ckpt.tensors().iter().map(|t| t.bytes()).sum();
            cost.peak_memory = cost.peak_memory.max(model);
        }
        if steps > 0 {
            let window = self.plan.recipe.data.as_ref().map_or(0, |data| data.window);
            let own =
                tune::cost(&self.plan.source.model, folder.quantized(&self.plan.source.ckpt), spec, steps, window);
            cost.cpu_seconds += own.cpu_seconds;
            cost.peak_memory = cost.peak_memory.max(own.peak_memory);
        }
        Some(cost)
    }

    /// Bytes that the work holds at once: a batch of modules as numbers, packed and read back; or the calibration.
    pub fn folder_memory(&self, folder: &FolderPlan) -> u64 {
        let largest = folder.modules.iter().map(|m| m.module.rows * m.module.cols).max().unwrap_or(0);
        let packing = 40_000_000 + 8 * nearest::at_once(largest) as u64 + (self.threads as u64) * 1_000_000;
        packing.max(self.folder_cost(folder).map_or(0, |c| c.peak_memory))
    }
}
