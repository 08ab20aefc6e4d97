//! `quantize calibrate`: an importance matrix from a model and texts, merged from several, or shown. Also where a
//! conversion gets its importance: from a file, or from calibrating in the same run.

use super::collect::{self, Collected, Keeping, go_on};
use super::options;
use super::plan::{self, Prepared};
use super::progress::{Progress, Unit};
use super::{CalibrateArgs, CalibrationArgs, ConvertArgs, Format, HubArgs, ImatrixArgs, print, print_json};
use crate::calibration::data::{self, Amount, DataReport, Drawn, Overlap, Source};
use crate::calibration::hessians::{self, HessianWriter, Hessians};
use crate::calibration::imatrix::{Imatrix, UnseenExperts, Weights, is_required};
use crate::calibration::layerwise;
use crate::calibration::pass;
use crate::calibration::resume;
use crate::calibration::stats::{self, ExpertUse};
use crate::calibration::summary;
use crate::calibration::totals::Totals;
use crate::convert::Control;
use crate::eval::text::Corpus;
use crate::gguf::Metadata;
use crate::model::Model;
use crate::quant::codec;
use crate::quant::presets::Why;
use crate::report::LedgerRow;
use crate::runnable::Runnable;
use crate::source::Checkpoint;
use crate::writer::atomic::{folder_of, refuse_existing};
use crate::{Error, Result};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

impl ValueEnum for UnseenExperts {
    fn value_variants<'a>() -> &'a [Self] {
        &[UnseenExperts::LayerMean, UnseenExperts::Plain, UnseenExperts::Error]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            UnseenExperts::LayerMean => "the mean over the layer's other experts",
            UnseenExperts::Plain => "all channels alike, as llama-quantize does",
            UnseenExperts::Error => "stop",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

pub fn run(args: CalibrateArgs) -> Result<()> {
    let start = Instant::now();
    options::catch_interrupt()?;
    options::threads(args.common.threads)?;
    if args.model.is_none() && args.merge.is_empty() {
        return Err(Error::Usage(
            "nothing to do: name a MODEL to calibrate, or importance matrices with --merge".into(),
        ));
    }
    if args.output.is_none() && !args.show_statistics {
        return Err(Error::Usage("name the file to write with -o imatrix.gguf".into()));
    }
    if let Some(output) = &args.output {
        refuse_existing(output, args.force)?;
        let folder = folder_of(output);
        if !folder.is_dir() {
            return Err(Error::Storage(format!(
                "{}: the folder {} does not exist",
                output.display(),
                folder.display()
            )));
        }
    }
    if let Some(file) = &args.save_text {
        refuse_existing(file, args.force)?;
    }
    if args.hessians && args.output.as_ref().is_some_and(|o| o.extension().is_some_and(|e| e == "dat")) {
        return Err(Error::Usage("--hessians needs llama.cpp's newer form: name the output .gguf".into()));
    }
    let hessians = hessians(&args)?;
    let earlier: Vec<Imatrix> = args.merge.iter().map(|path| Imatrix::open(path)).collect::<Result<_>>()?;
    let mut extra = Metadata::new();
    extra.set("quantize.version", env!("CARGO_PKG_VERSION"));
    let (mut imatrix, mut made) = (None::<Imatrix>, None);
    if let Some(model) = &args.model {
        let path = options::resolve_model(model, &args.hub, args.common.quiet)?;
        let sources = sources(&args.data, &args.hub, args.common.quiet)?;
        if !earlier.is_empty() {
            let model = Model::open(&Checkpoint::open(&path)?)?;
            earlier.iter().zip(&args.merge).try_for_each(|(earlier, file)| earlier.check(&model, file))?;
        }
        let every = Duration::from_secs(args.checkpoint_every);
        let keeping = args.output.as_deref().map(|output| Keeping { output, resume: args.resume, every });
        let text = args.text.as_deref();
        let run = match &args.output {
            Some(output) if args.hessians => with_hessians(&path, &sources, &args, output)?,
            _ => {
                let options = pass::Options {
                    head: args.process_output,
                    max_memory: args.max_memory,
                    spill: options::scratch_folder(args.output.as_deref()),
                };
                calibrate(&path, &sources, &args.data, text, &options, keeping, args.common.quiet)?
            }
        };
        describe(&mut extra, &run.data);
        if let Some(file) = &args.save_text {
            std::fs::write(file, &run.text).map_err(|e| Error::io(file, e))?;
        }
        imatrix = Some(run.imatrix.clone());
        made = Some(run);
    }
    for (other, file) in earlier.into_iter().zip(&args.merge) {
        match &mut imatrix {
            Some(imatrix) => imatrix.merge(other).map_err(|e| in_file(e, file))?,
            None => imatrix = Some(other),
        }
    }
    let imatrix = imatrix.ok_or_else(|| Error::Internal("no importance matrix".into()))?;
    if let Some(output) = &args.output {
        if !args.hessians {
            imatrix.write(output, &extra, args.force)?;
        }
        if args.model.is_some() {
            resume::forget(output)?;
        }
    }
    let rows = if args.show_statistics { summary::rows(&imatrix) } else { Vec::new() };
    let written = args.output.as_deref().filter(|_| args.hessians);
    let hessians = match (written.map(Hessians::open).transpose()?.flatten(), args.show_statistics) {
        (Some(written), true) => written.summary()?,
        (None, true) => hessians.iter().map(Hessians::summary).collect::<Result<Vec<_>>>()?.concat(),
        (_, false) => Vec::new(),
    };
    if args.common.format == Format::Json {
        let experts = made.as_ref().map(|m| &m.experts);
        return print_json(&json!({
            "output": args.output, "entries": imatrix.entries.len(), "chunks": imatrix.chunks,
            "data": made.as_ref().map(|m| &m.data), "experts": experts, "overlap": made.as_ref().and_then(|m| m.overlap),
            "statistics": rows, "hessians": hessians, "seconds": start.elapsed().as_secs_f64(),
        }));
    }
    if let Some(made) = &made
        && !args.common.quiet
    {
        made.tell();
    }
    if args.show_statistics {
        print(&summary::table(&rows))?;
        if !hessians.is_empty() {
            print(&hessians::table(&hessians))?;
        }
    }
    match &args.output {
        Some(output) => print(&format!("{}\n", output.display())),
        None => Ok(()),
    }
}

/// The Hessians of the one file that is to be shown. Sums of several would not be those of one run.
fn hessians(args: &CalibrateArgs) -> Result<Option<Hessians>> {
    let mut found = None;
    for path in &args.merge {
        let Some(hessians) = Hessians::open(path)? else { continue };
        if args.merge.len() > 1 || args.model.is_some() || args.output.is_some() {
            let what = "holds Hessians, which cannot be merged exactly: their products are rounded";
            let hint = "calibrate once over all texts with --hessians, or merge importance matrices made without it";
            return Err(Error::bad_file(path, what).hint(hint));
        }
        found = Some(hessians);
    }
    Ok(found)
}

/// Calibrates layer by layer into a file with Hessians.
fn with_hessians(path: &Path, sources: &[Source], args: &CalibrateArgs, output: &Path) -> Result<Made> {
    let quiet = args.common.quiet;
    let drawing = draw(path, sources, &args.data, args.text.as_deref(), (TooLong::Refuse, false), quiet)?;
    let Drawing { model, windows, data, overlap } = drawing;
    let text = data::text(&windows, &model);
    // The layers come back one at a time.
    let Runnable { ckpt, model, engine, .. } = model;
    drop(engine);
    let mut extra = Metadata::new();
    extra.set("quantize.version", env!("CARGO_PKG_VERSION"));
    describe(&mut extra, &data);
    let mut writer = HessianWriter::create(output, args.force, &model, &data, &extra)?;
    let options = layerwise::Options {
        max_memory: args.max_memory,
        spill: folder_of(output).to_path_buf(),
        ..layerwise::Options::default()
    };
    let start = Instant::now();
    let layers = model.config.layers as u64;
    let progress = Progress::new("calibrating", data.tokens as u64 * layers, Unit::TokensByLayer(layers), quiet);
    let control = Control { threads: 0, cancel: &options::CANCEL, advance: &|n| progress.advance(n) };
    layerwise::run(&ckpt, &model, &windows, &options, &mut writer, &control).map_err(|e| in_file(e, path))?;
    progress.finish();
    let speed = data.tokens as f64 / start.elapsed().as_secs_f64();
    let imatrix = writer.finish(&data)?;
    let experts = stats::expert_use(imatrix.entries.iter().map(|(name, e)| (name.as_str(), e.counts.as_slice())));
    Ok(Made { imatrix, data, text, experts, overlap, speed })
}

fn in_file(error: Error, file: &Path) -> Error {
    match error {
        Error::BadInput(mut finding) => {
            finding.file.get_or_insert_with(|| file.to_path_buf());
            Error::BadInput(finding)
        }
        other => other,
    }
}

/// The sources asked for; the bundled texts when none are.
fn sources(args: &CalibrationArgs, hub: &HubArgs, quiet: bool) -> Result<Vec<Source>> {
    if args.calibration.is_empty() {
        return Ok(vec![Source::Default]);
    }
    let fetch = |address: &str| super::pull::fetch_dataset_file(address, hub, quiet);
    args.calibration.iter().map(|text| Source::parse(text, fetch)).collect()
}

/// A calibration run's results.
struct Made {
    imatrix: Imatrix,
    data: DataReport,
    /// The windows, as text.
    text: String,
    experts: Vec<ExpertUse>,
    overlap: Option<Overlap>,
    /// Tokens per second.
    speed: f64,
}

/// A model and the windows it is to be calibrated on.
pub struct Drawing {
    pub model: Runnable,
    pub windows: Vec<Vec<u32>>,
    pub data: DataReport,
    pub overlap: Option<Overlap>,
}

/// What becomes of windows longer than the model's context.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TooLong {
    Refuse,
    Shorten,
}

/// Loads the model and draws the data. `text` is compared with the data. The model's layers are loaded when it has to run
/// here, or `whole` later.
fn draw(
    path: &Path,
    sources: &[Source],
    args: &CalibrationArgs,
    text: Option<&Path>,
    (too_long, whole): (TooLong, bool),
    quiet: bool,
) -> Result<Drawing> {
    let evaluation = text.map(Corpus::open).transpose()?;
    data::check(sources)?;
    if !quiet {
        eprintln!("loading {}", path.display());
    }
    let model =
        if whole || sources.contains(&Source::Model) { Runnable::open(path) } else { Runnable::open_idle(path) };
    let model = model?;
    let context = model.engine.config.context;
    if args.seq_len > context && too_long == TooLong::Refuse {
        return Err(Error::Usage(format!("--seq-len {} is more than the model's context of {context}", args.seq_len)));
    }
    let seq_len = args.seq_len.min(context);
    let amount = Amount { tokens: args.calibration_tokens, seq_len, seed: args.calibration_seed };
    let sampled = sources.iter().filter(|s| **s == Source::Model).count() * amount.tokens / sources.len().max(1);
    let progress = Progress::new("sampling", sampled as u64, Unit::Tokens, quiet || sampled == 0);
    let Drawn { windows, report: data } = data::draw(sources, amount, &model, &mut || {
        progress.advance(1);
        go_on()
    })?;
    progress.finish();
    let overlap = match &evaluation {
        Some(corpus) => Some(data::overlap(&windows, &corpus.tokens(&model)?)),
        None => None,
    };
    Ok(Drawing { model, windows, data, overlap })
}

/// Loads the model, draws the data and runs it. `text` is compared with the data.
fn calibrate(
    path: &Path,
    sources: &[Source],
    args: &CalibrationArgs,
    text: Option<&Path>,
    options: &pass::Options,
    keeping: Option<Keeping>,
    quiet: bool,
) -> Result<Made> {
    let Drawing { model, windows, data, overlap } = draw(path, sources, args, text, (TooLong::Refuse, false), quiet)?;
    let text = data::text(&windows, &model);
    // The layers come back one at a time.
    let Runnable { ckpt, model, engine, .. } = model;
    drop(engine);
    let collected = collect::run((&ckpt, &model), &windows, &data, options, keeping, quiet);
    let Collected { totals, speed } = collected.map_err(|e| in_file(e, path))?;
    let experts = stats::expert_use(totals.0.iter().map(|(name, total)| (name.as_str(), total.counts.as_slice())));
    let imatrix = Imatrix::new(&totals, &data);
    Ok(Made { imatrix, data, text, experts, overlap, speed })
}

/// The windows to calibrate a model on. The model itself is in memory only while they are drawn.
pub fn windows(path: &Path, args: &CalibrationArgs, hub: &HubArgs, quiet: bool) -> Result<Drawn> {
    let sources = sources(args, hub, quiet)?;
    if !quiet && args.calibration.is_empty() {
        eprintln!("calibrating on the bundled texts; --calibration names others");
    }
    let Drawing { windows, data, .. } = draw(path, &sources, args, None, (TooLong::Shorten, false), quiet)?;
    let drawn = Drawn { windows, report: data };
    if drawn.report.tokens < drawn.report.tokens_asked && !quiet {
        eprintln!("  the data has {} tokens; {} were asked for", drawn.report.tokens, drawn.report.tokens_asked);
    }
    Ok(drawn)
}

impl Made {
    /// What was used, for the person at the terminal.
    fn tell(&self) {
        let data = &self.data;
        eprintln!(
            "  {} tokens in windows of {} ({} asked for), {:.0} tokens/s, data {}",
            data.tokens,
            data.seq_len,
            data.tokens_asked,
            self.speed,
            &data.sha256[..16]
        );
        for source in &data.sources {
            let rows = (source.rows_used, source.rows, source.rows_dropped);
            eprintln!(
                "  {}: {} of {} rows used, {} dropped, {} tokens",
                source.name, rows.0, rows.1, rows.2, source.tokens_used
            );
        }
        if data.tokens < data.tokens_asked {
            eprintln!("  the data has no more; name more sources for {} tokens", data.tokens_asked);
        }
        for row in self.experts.iter().filter(|e| !e.unseen.is_empty()) {
            eprintln!("  {}: experts without a token: {:?}", row.tensor, row.unseen);
        }
        if let Some(least) = self.experts.iter().min_by_key(|e| e.min) {
            eprintln!(
                "  tokens per expert: at least {}, 5th percentile {}, median {}",
                least.min, least.p5, least.median
            );
        }
        if let Some(overlap) = self.overlap {
            let flag = if overlap.is_suspicious() { "warning: " } else { "" };
            eprintln!("  {flag}{}", overlap_text(overlap));
        }
    }
}

fn overlap_text(overlap: Overlap) -> String {
    format!("{:.2} % of the evaluation text is in the calibration data (runs of 13 tokens)", 100.0 * overlap.share())
}

/// Which data a file is made with.
pub fn describe(metadata: &mut Metadata, data: &DataReport) {
    let names: Vec<String> = data.sources.iter().map(|s| s.name.clone()).collect();
    metadata.set("quantize.calibration.sources", names);
    metadata.set("quantize.calibration.tokens", data.tokens as u32);
    metadata.set("quantize.calibration.seq_len", data.seq_len as u32);
    metadata.set("quantize.calibration.seed", data.seed);
    metadata.set("quantize.calibration.sha256", data.sha256.as_str());
}

/// Where a conversion's importance will come from, as far as the command line says.
pub enum Plan {
    None,
    File(ImatrixArgs),
    Calibrate(Vec<Source>),
}

impl Plan {
    /// Errors: `Usage` for both at once, and those of [`Source::parse`].
    pub fn new(imatrix: &ImatrixArgs, calibration: &CalibrationArgs, hub: &HubArgs, quiet: bool) -> Result<Self> {
        match (&imatrix.imatrix, calibration.calibration.is_empty()) {
            (Some(_), false) => Err(Error::Usage(
                "--imatrix and --calibration exclude each other; --calibration makes a new one".into(),
            )),
            (Some(_), true) => Ok(Plan::File(imatrix.clone())),
            (None, false) => Ok(Plan::Calibrate(sources(calibration, hub, quiet)?)),
            (None, true) => Ok(Plan::None),
        }
    }

    pub fn kind(&self) -> plan::Imatrix {
        if matches!(self, Plan::None) { plan::Imatrix::Absent } else { plan::Imatrix::Given }
    }

    /// Reads the file, if there is one, and compares it with the model.
    pub fn open(self, model: &Model) -> Result<Opened> {
        Ok(match self {
            Plan::None => Opened::None,
            Plan::File(args) => Importance::open(&args, model)?.map_or(Opened::None, |i| Opened::File(Box::new(i))),
            Plan::Calibrate(sources) => {
                model.known()?;
                Opened::Calibrate(sources)
            }
        })
    }
}

/// The same, after everything was checked that can be before the work.
pub enum Opened {
    None,
    File(Box<Importance>),
    Calibrate(Vec<Source>),
}

impl Opened {
    pub fn calibrates(&self) -> bool {
        matches!(self, Opened::Calibrate(_))
    }

    /// The data alone, where it is to be calibrated on; `whole`: with a model that runs.
    pub fn draw(&self, prepared: &Prepared, args: &ConvertArgs, whole: bool) -> Result<Option<Drawing>> {
        let Opened::Calibrate(sources) = self else { return Ok(None) };
        let text = args.text.as_deref();
        draw(&prepared.path, sources, &args.calibration, text, (TooLong::Refuse, whole), args.common.quiet).map(Some)
    }

    /// The importance itself, calibrated now where it was asked for.
    pub fn make(self, prepared: &Prepared, args: &ConvertArgs) -> Result<Option<Importance>> {
        let mut importance = match self {
            Opened::None => return Ok(None),
            Opened::File(importance) => *importance,
            Opened::Calibrate(sources) => {
                let text = args.text.as_deref();
                let options = pass::Options {
                    max_memory: args.search.max_memory,
                    spill: options::scratch_folder(args.output.as_deref()),
                    ..pass::Options::default()
                };
                let made =
                    calibrate(&prepared.path, &sources, &args.calibration, text, &options, None, args.common.quiet)?;
                if !args.common.quiet {
                    made.tell();
                }
                if let Some(file) = &args.save_imatrix {
                    let mut extra = Metadata::new();
                    describe(&mut extra, &made.data);
                    made.imatrix.write(file, &extra, args.force)?;
                }
                let unseen = args.imatrix.unseen_experts.unwrap_or_default();
                let mut importance = Importance::new(&made.imatrix, args.save_imatrix.clone(), unseen)?;
                (importance.data, importance.overlap) = (Some(made.data), made.overlap);
                importance
            }
        };
        importance.cover(prepared)?;
        Ok(Some(importance))
    }
}

/// The importance that a layer-by-layer pass has collected on the way.
pub fn from_inputs(
    inputs: &BTreeMap<String, stats::Input>,
    data: DataReport,
    overlap: Option<Overlap>,
    prepared: &Prepared,
    args: &ConvertArgs,
) -> Result<Importance> {
    let mut totals = Totals::default();
    totals.add(inputs);
    let imatrix = Imatrix::new(&totals, &data);
    if let Some(file) = &args.save_imatrix {
        let mut extra = Metadata::new();
        describe(&mut extra, &data);
        imatrix.write(file, &extra, args.force)?;
    }
    let unseen = args.imatrix.unseen_experts.unwrap_or_default();
    let mut importance = Importance::new(&imatrix, args.save_imatrix.clone(), unseen)?;
    (importance.data, importance.overlap) = (Some(data), overlap);
    importance.cover(prepared)?;
    Ok(importance)
}

/// Weights for every tensor, and what the artifact and the ledger say about them.
pub struct Importance {
    weights: Weights,
    file: Option<PathBuf>,
    dataset: Option<String>,
    entries: usize,
    chunks: u32,
    unseen: UnseenExperts,
    /// Quantized tensors of layers that are not in the matrix.
    missing: Vec<String>,
    /// Where it was calibrated in this run.
    pub data: Option<DataReport>,
    overlap: Option<Overlap>,
}

impl Importance {
    fn new(imatrix: &Imatrix, file: Option<PathBuf>, unseen: UnseenExperts) -> Result<Self> {
        Ok(Self {
            weights: imatrix.weights(unseen)?,
            file,
            dataset: imatrix.datasets.first().cloned(),
            entries: imatrix.entries.len(),
            chunks: imatrix.chunks,
            unseen,
            missing: Vec::new(),
            data: None,
            overlap: None,
        })
    }

    /// From a file that was checked against `model`; `None` when none is named.
    pub fn open(args: &ImatrixArgs, model: &Model) -> Result<Option<Self>> {
        let Some(path) = &args.imatrix else { return Ok(None) };
        let imatrix = Imatrix::open(path)?;
        imatrix.check(model, path)?;
        Self::new(&imatrix, Some(path.clone()), args.unseen_experts.unwrap_or_default()).map(Some)
    }

    /// The weights of a tensor.
    pub fn of(&self, name: &str) -> Option<&[f32]> {
        self.weights.by_name.get(name).map(Vec::as_slice)
    }

    /// A tensor whose type needs importance must have an entry; of the others it is noted which have none.
    fn cover(&mut self, prepared: &Prepared) -> Result<()> {
        for target in &prepared.targets {
            for row in &target.plan.rows {
                let (name, ty) = (row.name.as_str(), row.choice.got);
                let needed = is_required(name, ty, target.preset.name) || codec(ty).is_some_and(|c| c.needs_importance);
                if needed && row.choice.why != Why::Kept && self.of(name).is_none() {
                    let what = format!("{ty} needs importance, and the matrix has none for it");
                    let hint = format!("give it another type: --tensor-type '{}=q4_k'", regex::escape(name));
                    let error = Error::bad_input(what).tensor(name).hint(hint);
                    return Err(match &self.file {
                        Some(file) => in_file(error, file),
                        None => error,
                    });
                }
                let quantized = row.choice.why != Why::Kept && !ty.is_plain() && name.starts_with("blk.");
                if quantized && self.of(name).is_none() && !self.missing.iter().any(|m| m == name) {
                    self.missing.push(name.to_string());
                }
            }
        }
        Ok(())
    }

    /// llama-quantize's keys, and where the data came from.
    pub fn record(&self, metadata: &mut Metadata) {
        if let Some(file) = &self.file {
            metadata.set("quantize.imatrix.file", file.display().to_string());
        }
        if let Some(dataset) = &self.dataset {
            metadata.set("quantize.imatrix.dataset", dataset.as_str());
        }
        metadata.set("quantize.imatrix.entries_count", self.entries as u32);
        if self.chunks > 0 {
            metadata.set("quantize.imatrix.chunks_count", self.chunks);
        }
        if !self.weights.unseen.is_empty() {
            metadata.set("quantize.imatrix.unseen_experts", self.unseen.name());
        }
        if let Some(data) = &self.data {
            describe(metadata, data);
        }
    }

    /// Experts and tensors without data, and an evaluation text that was calibrated on.
    pub fn ledger_rows(&self, candidate: &str) -> Vec<LedgerRow> {
        let row = |kind: &str, tensor: Option<&str>, asked: &str, done: String, reason: String| LedgerRow {
            candidate: candidate.to_string(),
            kind: kind.into(),
            tensor: tensor.map(String::from),
            asked: asked.into(),
            done,
            reason,
        };
        let unseen = self.weights.unseen.iter().map(|(name, experts)| {
            let reason = format!("{} experts saw no token in calibration: {experts:?}", experts.len());
            row("unseen experts", Some(name), "importance of each expert's own", self.unseen.name().into(), reason)
        });
        let overlap = self.overlap.filter(|o| o.is_suspicious());
        let overlap =
            overlap.map(|o| row("overlap", None, "unseen evaluation text", "partly seen".into(), overlap_text(o)));
        let missing = self.missing.iter().map(|name| {
            let reason = "the importance matrix has no entry for it".to_string();
            row("no importance", Some(name), "weighted error", "plain error".into(), reason)
        });
        unseen.chain(missing).chain(overlap).collect()
    }
}
