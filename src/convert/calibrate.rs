//! Statistics of a model on text, as a result of their own: an importance matrix, with Hessians where asked, made once
//! and used often. Also how a conversion gets an importance matrix on the way.

use super::data::{self, Drawing};
use super::identity::{CalibrationWindows, Identity};
use super::recipe::{Data, Recipe};
use super::record::describe;
use crate::calibration::data::{DataReport, text};
use crate::calibration::hessians::HessianWriter;
use crate::calibration::imatrix::Imatrix;
use crate::calibration::layerwise;
use crate::calibration::overlap::Overlap;
use crate::calibration::pass::{self, Pass};
use crate::calibration::resume::{self, Key};
use crate::calibration::stats::{self, ExpertUse};
use crate::calibration::totals::Totals;
use crate::control::{Control, Report};
use crate::control::{Notice, Run, Unit};
use crate::disk::partial::PartialFile;
use crate::gguf::Metadata;
use crate::model::SourceModel;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything that decides the statistics of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Which texts.
    pub data: Data,
    /// Collect what enters the output matrix too.
    pub head: bool,
    /// Collect Σ x xᵀ of every linear layer's input too.
    pub hessians: bool,
}

/// How an importance matrix that takes long is kept from being lost.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints<'a> {
    /// What the run writes in the end; the checkpoint lies beside it.
    pub output: &'a Path,
    /// Zero: after every window.
    pub every: Duration,
}

/// The statistics of a model.
pub struct Calibrated {
    /// The importance matrix.
    pub imatrix: Imatrix,
    /// What was calibrated on.
    pub data: DataReport,
    /// The windows, as text.
    pub text: String,
    /// How often experts were used.
    pub experts: Vec<ExpertUse>,
    /// What the data shares with the evaluation text, where one was named.
    pub overlap: Option<Overlap>,
    /// How fast it went.
    pub tokens_per_second: f64,
    /// The file with Hessians, which has no name yet.
    pub(crate) hessians: Option<PartialFile>,
}

/// Draws the data, and runs the model over it. [`Calibrated::write`] writes what was made; Hessians are on the disk by then, and
/// get the name of the output of `checkpoints`. `evaluation` is a text to compare the data with.
///
/// # Errors
/// Those of drawing, of loading, and of activations that are not finite; `Request` for Hessians without an output.
pub fn calibrate(
    source: &SourceModel,
    calibration: &Calibration,
    evaluation: Option<&Path>,
    checkpoints: Option<Checkpoints>,
    control: &Control,
    report: &dyn Report,
) -> Result<Calibrated> {
    let source = &source.to_run()?;
    if calibration.head {
        source.model.config.ending.needs_logits("an importance matrix of the output matrix")?;
    }
    let run = Run::new(control, report);
    let drawing = data::draw(source, &calibration.data, evaluation, run)?;
    match (calibration.hessians, checkpoints) {
        (true, Some(checkpoints)) => with_hessians(source, drawing, checkpoints.output, run),
        (true, None) => Err(Error::request("Hessians are written while they are made: name an output")),
        (false, _) => importance(source, &drawing, calibration, checkpoints, run),
    }
}

/// Runs the windows of a drawing for their importance.
///
/// # Errors
/// As [`calibrate`].
pub(super) fn importance(
    source: &SourceModel,
    drawing: &Drawing,
    calibration: &Calibration,
    checkpoints: Option<Checkpoints>,
    run: Run,
) -> Result<Calibrated> {
    let spill = match checkpoints {
        Some(c) => run.spill_folder(c.output),
        None => run.control.spill.clone().unwrap_or_else(|| PathBuf::from(".")),
    };
    let max_memory = run.control.max_memory;
    let options = pass::Options { head: calibration.head, max_memory, spill, unprobed: false };
    let collected = collect(source, &drawing.windows, calibration, &options, checkpoints, run);
    let (totals, tokens_per_second) = collected.map_err(|e| e.in_file(&source.path))?;
    let used = totals.0.iter().map(|(name, total)| (name.as_str(), total.counts.as_slice()));
    Ok(Calibrated {
        imatrix: Imatrix::new(&totals, &drawing.report),
        data: drawing.report.clone(),
        text: text(&drawing.windows, &*source.tokenizer()?),
        experts: stats::expert_use(used),
        overlap: drawing.overlap,
        tokens_per_second,
        hessians: None,
    })
}

/// Calibrates layer by layer into a file with Hessians.
fn with_hessians(source: &SourceModel, drawing: Drawing, output: &Path, run: Run) -> Result<Calibrated> {
    let Drawing { windows, report: data, overlap } = drawing;
    let model = &source.model;
    let mut writer = HessianWriter::create(output, run.control.force, model, &data, &extra(Some(&data)))?;
    let options = layerwise::Options {
        max_memory: run.control.max_memory,
        spill: run.spill_folder(output),
        ..layerwise::Options::default()
    };
    let (start, layers) = (Instant::now(), model.config.layers.len() as u64);
    {
        let _phase = run.phase("calibrating", data.tokens as u64 * layers, Unit::TokensByLayer(layers));
        layerwise::run(&source.ckpt, model, &windows, &options, &mut writer, run)
            .map_err(|e| e.in_file(&source.path))?;
    }
    let tokens_per_second = data.tokens as f64 / start.elapsed().as_secs_f64();
    let (imatrix, file) = writer.finish(&data)?;
    let experts = stats::expert_use(imatrix.entries.iter().map(|(name, e)| (name.as_str(), e.counts.as_slice())));
    let text = text(&windows, &*source.tokenizer()?);
    Ok(Calibrated { imatrix, data, text, experts, overlap, tokens_per_second, hessians: Some(file) })
}

impl Calibrated {
    /// Writes the importance matrix to `output` (the old format where that ends in `.dat`) and removes the checkpoint beside
    /// it: the calibration is finished. A file with Hessians gets its name.
    ///
    /// # Errors
    /// `Exists` unless `control` forces it; `Request` where Hessians were made for another output; `Io`; `Storage`.
    pub fn write(self, output: &Path, control: &Control) -> Result<()> {
        match self.hessians {
            Some(file) if file.target() != output => {
                Err(Error::request(format!("the Hessians were made for {}", file.target().display())))
            }
            Some(file) => file.finish().and_then(|()| resume::forget(output)),
            None => write(&self.imatrix, Some(&self.data), PartialFile::create(output, control.force)?),
        }
    }
}

/// Writes an importance matrix; `data`: what it was made on, where this run made it.
///
/// # Errors
/// `Io`; `Storage`.
pub(crate) fn write(imatrix: &Imatrix, data: Option<&DataReport>, file: PartialFile) -> Result<()> {
    let output = file.target().to_path_buf();
    imatrix.write_into(&file, &extra(data))?;
    file.finish()?;
    if data.is_some() { resume::forget(&output) } else { Ok(()) }
}

/// What an importance matrix says of its making.
pub fn extra(data: Option<&DataReport>) -> Metadata {
    let mut extra = Metadata::new();
    extra.set("quantize.version", env!("CARGO_PKG_VERSION"));
    if let Some(data) = data {
        describe(&mut extra, data);
    }
    extra
}

/// Writing checkpoints takes at most one part in so many of the time.
const CHEAP: u32 = 20;

/// Runs the windows. The sums, and the tokens per second.
fn collect(
    source: &SourceModel,
    windows: &[Vec<u32>],
    calibration: &Calibration,
    options: &pass::Options,
    checkpoints: Option<Checkpoints>,
    run: Run,
) -> Result<(Totals, f64)> {
    let (ckpt, model) = (&*source.ckpt, &*source.model);
    let file = checkpoints.map(|c| resume::path_for(c.output));
    let key = match checkpoints {
        Some(_) => key(source, calibration, windows, run)?,
        None => Key::new(),
    };
    file.iter().try_for_each(|file| resume::refuse_foreign(file))?;
    let saved = match &file {
        Some(file) if run.control.resume => resume::open(file, &key)?,
        _ => None,
    };
    let layers = model.config.layers.len();
    let mut pass = match saved {
        Some(saved) => Pass::resumed(ckpt, model, windows, options, saved)?,
        None => Pass::new(ckpt, model, windows, options, run.unheard())?,
    };
    let at = pass.at();
    if at != Default::default() {
        run.notice(Notice::Resuming { layers: at.layer, of: layers });
    }
    let tokens = |windows: &[Vec<u32>]| windows.iter().map(|w| w.len() as u64).sum::<u64>();
    let done = at.layer as u64 * tokens(windows) + tokens(windows.get(..at.windows).unwrap_or_default());
    let left = layers as u64 * tokens(windows) - done;
    let start = Instant::now();
    let _phase = run.phase("calibrating", left, Unit::TokensByLayer(layers as u64));
    let (mut last, mut wait, mut told) = (start, checkpoints.map_or(Duration::ZERO, |c| c.every), false);
    pass.run(|pass, n| {
        run.advance(n as u64);
        let stop = run.check();
        let (Some(file), Some(checkpoints)) = (&file, checkpoints) else { return stop };
        if stop.is_err() || last.elapsed() >= wait {
            let began = Instant::now();
            match pass.save(file, &key) {
                Ok(()) if stop.is_err() => run.notice(Notice::Kept(file.clone())),
                Ok(()) => {}
                // The run itself can go on.
                Err(e) if !told => {
                    run.notice(Notice::Warning(format!("no checkpoint to resume from: {e}")));
                    told = true;
                }
                Err(_) => {}
            }
            last = Instant::now();
            wait = if checkpoints.every.is_zero() { wait } else { checkpoints.every.max(CHEAP * began.elapsed()) };
        }
        stop
    })?;
    let speed = left as f64 / layers.max(1) as f64 / start.elapsed().as_secs_f64();
    Ok((pass.totals(), speed))
}

/// The sums of some windows, which can be added to those of others in any order. `probe`: have a look at all weights before.
///
/// # Errors
/// As [`calibrate`].
pub(super) fn sums(
    source: &SourceModel,
    windows: &[Vec<u32>],
    calibration: &Calibration,
    probe: bool,
    run: Run,
) -> Result<Totals> {
    let spill = run.control.spill.clone().unwrap_or_else(|| PathBuf::from("."));
    let max_memory = run.control.max_memory;
    let options = pass::Options { head: calibration.head, max_memory, spill, unprobed: !probe };
    let collected = collect(source, windows, calibration, &options, None, run);
    collected.map(|(totals, _)| totals).map_err(|e| e.in_file(&source.path))
}

/// What has to be the same for a run to be continued, by the names of its parts.
pub(super) fn key(source: &SourceModel, calibration: &Calibration, windows: &[Vec<u32>], run: Run) -> Result<Key> {
    fn flatten(path: &str, value: &Value, key: &mut Key) {
        let under = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        match value {
            Value::Object(map) => map.iter().for_each(|(name, v)| flatten(&under(name), v, key)),
            Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| flatten(&under(&i.to_string()), v, key)),
            other => drop(key.insert(path.to_string(), other.to_string())),
        }
    }
    let seen = CalibrationWindows { windows, sets: &[], hashes: None };
    let identity = Identity::new(&source.ckpt, Some(seen), Vec::new(), &run.control.cancel)?;
    let mut key = Key::new();
    let json = |value: serde_json::Result<Value>| value.map_err(|e| Error::Internal(e.to_string()));
    flatten("", &json(serde_json::to_value(calibration))?, &mut key);
    flatten("identity", &json(serde_json::to_value(identity))?, &mut key);
    Ok(key)
}

/// The calibration that a conversion's importance comes from.
pub(super) fn of_recipe(recipe: &Recipe) -> Calibration {
    Calibration { data: recipe.data.clone().unwrap_or_default(), ..Calibration::default() }
}
