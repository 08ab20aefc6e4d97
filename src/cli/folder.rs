//! `--to gptq`, `--to fp8`, ...: quantized checkpoint folders. Flags become a format, a plan and a method; everything
//! that can be refused is refused before a weight is read.

use super::options::{self, CANCEL};
use super::progress::{Progress, Unit};
use super::{ConvertArgs, Format, OnFallback, calibrate};
use crate::checkpoint::job::Provenance;
use crate::checkpoint::judge::{self, Judged};
use crate::checkpoint::layered::{self, takes_feedback};
use crate::checkpoint::nearest::Nearest;
use crate::checkpoint::scaled::Scaling;
use crate::checkpoint::{Departure, Job, Layered, Method, Planned, Request, Written};
use crate::convert::Control;
use crate::feedback::Shrink;
use crate::feedback::int::Search;
use crate::formats::{self, Spec};
use crate::model::Model;
use crate::report::LedgerRow;
use crate::source::Checkpoint;
pub use crate::writer::folder::refuse_existing;
use crate::writer::folder::{Existing, MANIFEST};
use crate::writer::gguf::human;
use crate::{Error, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The layout that `--to gptq` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Zero points less one, as AutoGPTQ began it; what every engine reads
    Gptq,
    /// Zero points as they are
    #[value(name = "gptq_v2")]
    GptqV2,
    /// compressed-tensors' pack-quantized
    CompressedTensors,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rounding {
    /// Each weight to the nearest code
    Nearest,
    /// With error feedback: later columns make up for the errors of earlier ones
    Gptq,
}

/// What decides a quantized checkpoint folder, beyond the names given to --to.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Checkpoint folders (gptq, awq, fp8, nf4, mlx-4bit, ...)")]
pub struct FolderArgs {
    /// Columns under one scale; -1 for whole rows [default: 128, or the largest of 64 and 32 that divides every row]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub group_size: Option<i64>,
    /// Bits per weight, where the format has a choice
    #[arg(long, value_name = "N")]
    pub bits: Option<u8>,
    /// Symmetric groups, without zero points
    #[arg(long, overrides_with = "asym")]
    pub sym: bool,
    /// Groups with zero points
    #[arg(long)]
    pub asym: bool,
    /// GPTQ: quantize columns by falling activation and store the order (vLLM refuses such files)
    #[arg(long)]
    pub desc_act: bool,
    /// GPTQ: which layout
    #[arg(long, value_enum, value_name = "LAYOUT")]
    pub checkpoint_format: Option<Layout>,
    /// How codes are chosen [default: gptq where the format has integers in groups (MLX: with --calibration), nearest
    /// elsewhere; nvfp4 and mxfp4 take gptq, too]
    #[arg(long, value_enum, value_name = "HOW")]
    pub rounding: Option<Rounding>,
    /// With --desc-act: scales from the groups as they lie in the file
    #[arg(long, requires = "desc_act")]
    pub static_groups: bool,
    /// Share of the mean diagonal that steadies the Hessian; raised by itself where that is too little
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub damp: f32,
    /// INT8 with --calibration: SmoothQuant's exponent, which moves large input channels into the weights; 0 for none
    #[arg(long, value_name = "ALPHA", default_value_t = 0.5)]
    pub smooth: f32,
    /// Let every layer see the inputs of the original model, not those behind quantized layers
    #[arg(long)]
    pub no_sequential: bool,
    /// Begin another file where one would be larger
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub max_shard_size: String,
    /// Devices over which an engine is to split every layer; groups are chosen so that they survive it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub tp: usize,
    /// Continue a run that was cut short (also of GGUF files with error feedback)
    #[arg(long)]
    pub resume: bool,
}

impl FolderArgs {
    /// Where no folder is asked for, these flags are mistakes.
    pub fn refuse_idle(&self) -> Result<()> {
        match self.given() {
            None => Ok(()),
            Some(flag) => Err(Error::Usage(format!(
                "{flag} is for checkpoint folders (gptq, awq, fp8, ...), and none is to be written"
            ))),
        }
    }

    /// A flag that was given, if any.
    fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.group_size.is_some(), "--group-size"),
            (self.bits.is_some(), "--bits"),
            (self.sym, "--sym"),
            (self.asym, "--asym"),
            (self.desc_act, "--desc-act"),
            (self.checkpoint_format.is_some(), "--checkpoint-format"),
            (self.rounding.is_some(), "--rounding"),
            (self.static_groups, "--static-groups"),
            (self.no_sequential, "--no-sequential"),
            (self.smooth != 0.5, "--smooth"),
            (self.tp != 1, "--tp"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }
}

/// A folder format that was asked for.
#[derive(Clone, Debug)]
pub struct Target {
    /// As it was typed, in lower case; names the folder.
    pub name: String,
    pub spec: Spec,
}

/// Takes the folder formats out of `--to`'s values and applies the flags to them. A mix with GGUF types is fine: those
/// that remain in `to` are GGUF types.
pub fn take_targets(to: &mut Vec<String>, args: &FolderArgs) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let mut rest = Vec::new();
    for name in to.drain(..) {
        match formats::parse(&name) {
            Some(_) => targets.push(Target { spec: with_flags(&name, args)?, name: name.to_ascii_lowercase() }),
            None => rest.push(name),
        }
    }
    *to = rest;
    for (i, t) in targets.iter().enumerate() {
        if targets[..i].iter().any(|u| u.spec == t.spec) {
            return Err(Error::Usage(format!("{} is asked for twice", t.spec)));
        }
    }
    Ok(targets)
}

/// The format of a name, refined by the flags. Both speak one language: a flag is one more word of the name.
fn with_flags(name: &str, args: &FolderArgs) -> Result<Spec> {
    let mut full = name.to_ascii_lowercase();
    let mut refine = |flag: &str, word: String| -> Result<()> {
        full = format!("{full}-{word}");
        match formats::parse(&full) {
            Some(_) => Ok(()),
            None => Err(Error::Usage(format!("{name} cannot have {flag}"))),
        }
    };
    if let Some(bits) = args.bits {
        refine(&format!("--bits {bits}"), format!("{bits}bit"))?;
    }
    match args.group_size {
        Some(-1) => refine("--group-size -1", "channel".into())?,
        Some(n) => refine(&format!("--group-size {n}"), format!("{n}g"))?,
        None => {}
    }
    for (on, flag, word) in
        [(args.sym, "--sym", "sym"), (args.asym, "--asym", "asym"), (args.desc_act, "--desc-act", "desc")]
    {
        if on {
            refine(flag, word.into())?;
        }
    }
    match args.checkpoint_format {
        Some(Layout::Gptq) => refine("--checkpoint-format gptq", "v1".into())?,
        Some(Layout::GptqV2) => refine("--checkpoint-format gptq_v2", "v2".into())?,
        Some(Layout::CompressedTensors) | None => {}
    }
    let mut spec = formats::parse(&full).ok_or_else(|| Error::Internal(format!("the format {full}")))?;
    if args.checkpoint_format == Some(Layout::CompressedTensors) {
        let gptq = matches!(spec.format, formats::Format::Gptq | formats::Format::GptqV2);
        if !(gptq && matches!(spec.bits, 4 | 8) && !spec.desc_act) {
            let what = "is written as compressed-tensors with 4 or 8 bits and without --desc-act only";
            return Err(Error::Usage(format!("{spec} {what}")));
        }
        spec.format = formats::Format::PackQuantized;
    }
    Ok(spec)
}

/// Where each folder goes. `output` is the folder itself for a single target, unless it exists and is no folder of ours
/// or ends in a slash: then it is the place to put it.
pub fn output_paths(output: Option<&Path>, model: &str, targets: &[Target], alone: bool) -> Result<Vec<PathBuf>> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let named = |t: &Target| format!("{model}-{}", t.name);
    let Some(output) = output else { return Ok(targets.iter().map(|t| PathBuf::from(named(t))).collect()) };
    let text = output.to_string_lossy();
    if let Some(marker) = ["{type}", "{ftype}"].into_iter().find(|m| text.contains(m)) {
        return Ok(targets.iter().map(|t| PathBuf::from(text.replace(marker, &t.name))).collect());
    }
    let ours = !output.is_dir() || output.join(MANIFEST).is_file();
    if targets.len() == 1 && alone && ours && !text.ends_with('/') {
        return Ok(vec![output.to_path_buf()]);
    }
    if output.exists() && !output.is_dir() {
        return Err(Error::Usage(format!("{} is not a folder; checkpoints go into one", output.display())));
    }
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    Ok(targets.iter().map(|t| output.join(named(t))).collect())
}

/// One folder, decided and named.
pub struct Prepared {
    pub target: Target,
    pub planned: Planned,
    pub output: PathBuf,
}

/// Decides every folder. Nothing is written, no weight is read.
pub fn prepare(
    ckpt: &Checkpoint,
    model: &Model,
    targets: Vec<Target>,
    outputs: Vec<PathBuf>,
    tp: usize,
    on_fallback: OnFallback,
) -> Result<Vec<Prepared>> {
    if !targets.is_empty() {
        model.known()?;
    }
    let mut prepared = Vec::new();
    for (target, output) in targets.into_iter().zip(outputs) {
        let planned = Planned::new(ckpt, model, &Request { spec: target.spec, tp: tp.max(1) })?;
        if on_fallback == OnFallback::Error
            && let Some(d) = planned.departures.first()
        {
            let hint = "--on-fallback warn accepts it";
            return Err(Error::Unsupported(format!("{}: {}\n  hint: {hint}", target.spec, line(d))));
        }
        prepared.push(Prepared { target, planned, output });
    }
    Ok(prepared)
}

fn line(d: &Departure) -> String {
    let module = d.module.as_deref().map_or(String::new(), |m| format!("{m}: "));
    format!("{module}{} instead of {}: {}", d.done, d.asked, d.reason)
}

/// Says what departs from what was asked, alike departures together.
pub fn warn(prepared: &[Prepared]) {
    for p in prepared {
        for text in lines(&p.planned.departures) {
            eprintln!("{}: {text}", p.target.name);
        }
    }
}

/// Departures in words; those that differ only in their layer are one line.
pub fn lines(departures: &[Departure]) -> Vec<String> {
    let mut groups: Vec<(String, &Departure, usize)> = Vec::new();
    for d in departures {
        let part = d.module.as_deref().map_or("", |m| m.rsplit('.').next().unwrap_or(m)).to_string();
        match groups.iter_mut().find(|(p, e, _)| (p.as_str(), &e.asked, &e.done) == (&part, &d.asked, &d.done)) {
            Some(group) => group.2 += 1,
            None => groups.push((part, d, 1)),
        }
    }
    let text = |(part, d, n): (String, &Departure, usize)| match n {
        1 => line(d),
        n => format!("{part} ×{n}: {} instead of {}: {}", d.done, d.asked, d.reason),
    };
    groups.into_iter().map(text).collect()
}

/// Whether codes of this format are chosen with error feedback; `given`: there is calibration data.
pub fn has_feedback(spec: &Spec, rounding: Option<Rounding>, given: bool) -> bool {
    match rounding {
        Some(Rounding::Nearest) => false,
        Some(Rounding::Gptq) => takes_feedback(spec),
        // What their own tools make in seconds is made so, too, unless there is data.
        None => spec.is_integer() && (spec.format != formats::Format::MlxAffine || given),
    }
}

/// Whether this format takes calibration data even when none is named.
pub fn needs_data(spec: &Spec, rounding: Option<Rounding>, given: bool) -> bool {
    spec.needs_inputs() || has_feedback(spec, rounding, given)
}

impl Prepared {
    /// Whether the model has to be run on calibration data.
    fn is_calibrated(&self, args: &ConvertArgs) -> bool {
        let given = !args.calibration.calibration.is_empty();
        let scaled = given && self.scaling(args).is_some();
        scaled || needs_data(&self.planned.spec, args.folder.rounding, given)
    }

    /// Whether codes are chosen with error feedback.
    fn takes_feedback(&self, args: &ConvertArgs) -> bool {
        has_feedback(&self.planned.spec, args.folder.rounding, !args.calibration.calibration.is_empty())
    }

    /// How channels are scaled in a calibrated run.
    fn scaling(&self, args: &ConvertArgs) -> Option<Scaling> {
        match self.planned.spec.format {
            formats::Format::Awq => Some(Scaling::Awq),
            formats::Format::Int8 => Some(Scaling::Smooth(args.folder.smooth)).filter(|_| args.folder.smooth > 0.0),
            _ => None,
        }
    }
}

/// Everything on the command line that decides the bytes.
fn recipe(p: &Prepared, args: &ConvertArgs, max_shard: u64, calibration: &Value) -> Value {
    let f = &args.folder;
    let calibrated = p.is_calibrated(args);
    let feedback = p.takes_feedback(args);
    let scaling = p.scaling(args).filter(|_| calibrated);
    json!({
        "to": p.target.name,
        "format": p.planned.spec.to_string(),
        "tp": f.tp,
        "rounding": if feedback { "gptq" } else { "nearest" },
        "damp": feedback.then_some(f.damp),
        "static_groups": f.static_groups,
        "scaling": scaling.map(|s| match s {
            Scaling::Awq => "awq".to_string(),
            Scaling::Smooth(alpha) => format!("smoothquant {alpha}"),
        }),
        "sequential": calibrated.then_some(!f.no_sequential),
        "calibration_sha256": if calibrated { calibration["sha256"].clone() } else { Value::Null },
        "max_shard_bytes": max_shard,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// What the held-out windows said, in words.
fn judged(held_out: &Value) -> Option<String> {
    let kl = |key: &str| held_out[key].as_f64();
    let (calibrated, nearest) = (kl("kl_divergence")?, kl("kl_divergence_of_nearest")?);
    let tokens = &held_out["tokens"];
    Some(format!("KL divergence {calibrated:.4} on {tokens} held-out tokens, {nearest:.4} if rounded to nearest"))
}

/// Makes every folder, one after the other. `path` is where the model is opened from.
pub fn run(
    path: &Path,
    ckpt: &Checkpoint,
    model: &Model,
    prepared: &[Prepared],
    args: &ConvertArgs,
) -> Result<Vec<Written>> {
    let (f, quiet) = (&args.folder, args.common.quiet);
    let threads = options::threads(args.common.threads)?;
    let max_shard = options::size(&f.max_shard_size)?;
    let existing = Existing { force: args.force, resume: f.resume };
    if !(f.damp > 0.0 && f.damp <= 1.0) {
        return Err(Error::Usage(format!("--damp {} is not a share between 0 and 1", f.damp)));
    }
    for p in prepared {
        refuse_existing(&p.output, args.force)?;
    }
    if !args.calibration.calibration.is_empty()
        && !prepared.iter().any(|p| p.is_calibrated(args))
        && args.types.to.is_empty()
    {
        return Err(Error::Usage("--calibration has no effect: no format asked for is calibrated".into()));
    }
    let hashes = (!args.no_source_hash).then(|| super::convert::hash_sources(ckpt, threads)).transpose()?;
    let name = options::model_name(ckpt.dir());
    let mut written = Vec::new();
    for p in prepared {
        let mut calibration = Value::Null;
        let (mut loaded, mut held) = (None, Vec::new());
        if p.is_calibrated(args) {
            let drawn = calibrate::windows(path, &args.calibration, &args.hub, quiet)?;
            calibration = serde_json::to_value(&drawn.report).map_err(|e| Error::Internal(e.to_string()))?;
            // What is folded into norms cannot be taken back module by module, and scales of inputs need data anyway.
            let judged = p.takes_feedback(args) && p.scaling(args).is_none() && !p.planned.spec.needs_inputs();
            let (rest, kept) = if judged { judge::split(&drawn.windows) } else { (drawn.windows, Vec::new()) };
            (loaded, held) = (Some(rest), kept);
        }
        let mut method: Box<dyn Method> = Box::new(Nearest);
        if let Some(windows) = &loaded {
            let shrink = Shrink { damping: f.damp, ..Shrink::default() };
            let static_groups = f.static_groups || !p.planned.spec.desc_act;
            let search = Search { static_groups, ..Search::default() };
            let (feedback, scaling) = (p.takes_feedback(args), p.scaling(args));
            let (sequential, max_memory) = (!f.no_sequential, args.search.max_memory);
            let options = layered::Options { feedback, shrink, search, scaling, sequential, max_memory };
            method = Box::new(Judged { method: Layered { windows, options }, held: &held });
        }
        let total: u64 = ckpt.tensors().iter().map(|t| t.bytes()).sum();
        let progress = Progress::new(&p.target.name, total, Unit::Bytes, quiet);
        let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
        let recipe = recipe(p, args, max_shard, &calibration);
        let job = Job::new((ckpt, model), &p.planned, &p.output, max_shard, &recipe, existing, &control)?;
        let partial = job.folder.partial().to_path_buf();
        let provenance = Provenance { name: &name, hashes: hashes.clone(), recipe: &recipe, calibration };
        let done = job.make(&mut *method, &provenance);
        progress.finish();
        match done {
            Ok(done) => {
                if !quiet {
                    if let Some(text) = judged(&done.manifest["held_out"]) {
                        eprintln!("{}: {text}", p.target.name);
                    }
                    let run = done.departures.get(p.planned.departures.len()..).unwrap_or_default();
                    lines(run).iter().for_each(|text| eprintln!("{}: {text}", p.target.name));
                }
                written.push(done);
            }
            Err(e) => {
                if partial.is_dir() && !quiet {
                    eprintln!("finished parts are kept in {}; --resume continues behind them", partial.display());
                }
                return Err(e);
            }
        }
    }
    Ok(written)
}

/// A line per folder for people; paths go to standard output.
pub fn summary(prepared: &[Prepared], written: &[Written], ckpt: &Checkpoint, args: &ConvertArgs) -> String {
    let source: u64 = ckpt.tensors().iter().map(|t| t.bytes()).sum();
    let mut out = String::new();
    for (p, w) in prepared.iter().zip(written) {
        out += &format!("{}\n", w.path.display());
        let (_, bits) = p.planned.quantized(ckpt);
        if args.common.format == Format::Text {
            eprintln!(
                "  {:<8} {:>10}  {bits:.2} bits per quantized weight  {:.1} % of the source  {}",
                p.target.name,
                human(w.tensor_bytes),
                100.0 * w.tensor_bytes as f64 / source.max(1) as f64,
                match w.departures.len() {
                    0 => "as asked".to_string(),
                    n => format!("{n} departures from what was asked (see {MANIFEST})"),
                }
            );
        }
    }
    out
}

/// The same for machines.
pub fn summary_json(prepared: &[Prepared], written: &[Written], ckpt: &Checkpoint) -> Vec<Value> {
    let row = |(p, w): (&Prepared, &Written)| {
        let (weights, bits) = p.planned.quantized(ckpt);
        json!({
            "type": p.target.name, "format": p.planned.spec.to_string(), "paths": [w.path], "bytes": w.tensor_bytes,
            "quantized_weights": weights, "bits_per_weight": bits, "ledger": w.manifest["ledger"],
        })
    };
    prepared.iter().zip(written).map(row).collect()
}

/// The whole result for machines, where only folders were made.
pub fn json(path: &Path, ckpt: &Checkpoint, model: &Model, rows: Vec<Value>, seconds: f64) -> Value {
    let dropped = model.dropped.iter().map(|(name, why)| json!({ "tensor": name, "reason": why }));
    json!({
        "version": env!("CARGO_PKG_VERSION"), "source": path,
        "source_bytes": crate::convert::source_bytes(ckpt, model), "tensors": ckpt.tensors().len(),
        "dropped": dropped.collect::<Vec<_>>(), "artifacts": rows, "seconds": seconds,
    })
}

/// A departure as the report has it; the candidate's name is filled in there.
pub fn ledger_row(d: &Departure) -> LedgerRow {
    LedgerRow {
        candidate: String::new(),
        kind: "fallback".into(),
        tensor: d.module.clone(),
        asked: d.asked.clone(),
        done: d.done.clone(),
        reason: d.reason.clone(),
    }
}
