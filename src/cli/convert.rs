//! The main job: `quantize --to TYPE[,TYPE...] MODEL`. Everything that can be refused is refused before a weight is read:
//! the model, the tokenizer, the types, the output names, the disk space. Then one pass writes every target.

use super::allocate;
use super::calibrate::{self, Importance};
use super::folder_plan::Means;
use super::journaled::Journaled;
use super::options::{self, CANCEL};
use super::plan::{Planned, Prepared, prepare};
use super::progress::{Progress, Unit};
use super::{ConvertArgs, Format, TextArgs, eval, feedback, folder, print, print_json};
use crate::convert::{self, Control, Target};
use crate::eval::gate;
use crate::model::Model;
use crate::report::LedgerRow;
use crate::source::{self, Checkpoint};
use crate::writer::atomic::{refuse_existing, write_text};
use crate::writer::gguf::{Artifact, Split, human};
use crate::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub fn run(mut args: ConvertArgs) -> Result<()> {
    let start = Instant::now();
    positionals(&mut args)?;
    let model_arg = args.model.first().cloned().unwrap_or_default();
    let gates = eval::gates(&args.gates)?;
    if args.text.is_none() && !gates.is_empty() {
        return Err(Error::Usage("a quality gate needs a text to measure on: add --text FILE".into()));
    }
    let folder_targets = folder::take_targets(&mut args.types.to, &args.folder)?;
    let budgets = args.budget.budgets()?;
    if args.search.sequential && args.types.to.len() + budgets.len() > 1 {
        return Err(Error::Usage("--sequential takes one GGUF type at a time".into()));
    }
    let only_folders = args.types.to.is_empty() && budgets.is_empty() && !folder_targets.is_empty();
    refuse_idle_flags(&args, only_folders, folder_targets.is_empty())?;
    let threads = options::threads(args.common.threads)?;
    options::catch_interrupt()?;
    let path = options::resolve_model(&model_arg, &args.hub, args.common.quiet)?;
    let importance = calibrate::Plan::new(&args.imatrix, &args.calibration, &args.hub, args.common.quiet)?;
    let (mut prepared, source);
    if only_folders {
        let ckpt = Checkpoint::open(&path)?;
        let model = Model::open(&ckpt)?;
        (prepared, source) = (None, Some((ckpt, model)));
    } else {
        (prepared, source) = (Some(prepare(&path, &args.types, importance.kind())?), None);
    }
    if let (Some(p), Some(_)) = (&prepared, &args.text) {
        p.model.known()?;
    }
    let model_name = options::model_name(&path);
    let importance = match (&prepared, &source) {
        (Some(p), _) => importance.open(&p.model)?,
        (None, Some((_, model))) => importance.open(model)?,
        (None, None) => return Err(Error::Internal("no source was opened".into())),
    };
    let mut drawing = None;
    if let Some(prepared) = prepared.as_mut().filter(|_| !budgets.is_empty()) {
        allocate::add(prepared, &budgets, &importance, &args)?;
        if !args.dry_run {
            outputs(prepared, &args, &model_name)?;
        }
        drawing = allocate::run(prepared, &budgets, &importance, &args, threads)?;
        if !args.common.quiet {
            prepared.targets.iter().for_each(|t| eprint!("{}", allocate::table(t)));
        }
    }
    let (ckpt, model) = match (&prepared, &source) {
        (Some(p), _) => (&p.ckpt, &p.model),
        (None, Some((ckpt, model))) => (ckpt, model),
        (None, None) => return Err(Error::Internal("no source was opened".into())),
    };
    let folder_paths = match args.dry_run {
        true => folder_targets.iter().map(|t| PathBuf::from(&t.name)).collect(),
        false => folder::output_paths(args.output.as_deref(), &model_name, &folder_targets, only_folders)?,
    };
    let folders = folder::prepare(ckpt, model, folder_targets, folder_paths, args.folder.tp, args.types.on_fallback)?;
    if args.dry_run {
        let (rounding, tokens) = (args.folder.rounding, args.calibration.calibration_tokens as u64);
        let means = Means { ckpt, model, rounding, calibration_tokens: tokens, threads };
        return super::plan::describe(prepared.as_ref(), &folders, &means, args.common.format);
    }
    for p in &folders {
        folder::refuse_existing(&p.output, args.force)?;
    }
    if !args.common.quiet {
        folder::warn(&folders);
    }
    let mut done = Done::default();
    if let Some(prepared) = &prepared {
        files(prepared, &args, (importance, drawing), &model_name, threads, start, &mut done)?;
    }
    if !folders.is_empty() {
        let written = folder::run(&path, ckpt, model, &folders, &args)?;
        done.paths.extend(written.iter().map(|w| w.path.clone()));
        done.ledger.extend(written.iter().map(|w| w.departures.iter().map(folder::ledger_row).collect()));
        let rows = folder::summary_json(&folders, &written, ckpt);
        match done.json.as_mut().and_then(|json| json["artifacts"].as_array_mut()) {
            Some(artifacts) => artifacts.extend(rows),
            None => done.json = Some(folder::json(&path, ckpt, model, rows, start.elapsed().as_secs_f64())),
        }
        let text = folder::summary(&folders, &written, ckpt, &args);
        if args.common.format == Format::Text {
            print(&text)?;
            eprintln!("  in {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    let json = done.json.unwrap_or_default();
    let Some(text) = args.text else {
        return if args.common.format == Format::Json { print_json(&json) } else { Ok(()) };
    };
    // Then the source and what was just made of it, over one token stream.
    drop((prepared, source));
    let models: Vec<PathBuf> = std::iter::once(path).chain(done.paths).collect();
    let text = TextArgs {
        text: Some(text),
        ctx: args.ctx,
        stride: None,
        chunks: args.chunks,
        activations: Default::default(),
    };
    let mut report = eval::measure(&models, &text, &gates, None, threads, args.common.quiet)?;
    for (rows, candidate) in done.ledger.into_iter().zip(&report.candidates) {
        let name = &candidate.artifact.name;
        report.ledger.extend(rows.into_iter().map(|row| LedgerRow { candidate: name.clone(), ..row }));
    }
    eval::save(&report, &args.report, args.force)?;
    match args.common.format {
        Format::Text => print(&format!("\n{}", crate::report::render_text(&report)))?,
        Format::Json => {
            let mut json = json;
            json["report"] = serde_json::to_value(&report).map_err(|e| Error::Internal(e.to_string()))?;
            print_json(&json)?;
        }
    }
    gate::verdict(&report.gates)
}

/// What a run made.
#[derive(Default)]
struct Done {
    /// Of each artifact: the path by which it is opened.
    paths: Vec<PathBuf>,
    /// Of each artifact: what departs from what was asked.
    ledger: Vec<Vec<LedgerRow>>,
    json: Option<serde_json::Value>,
}

/// Flags that would do nothing are mistakes.
fn refuse_idle_flags(args: &ConvertArgs, only_folders: bool, no_folders: bool) -> Result<()> {
    let t = &args.types;
    let gguf = [
        (!t.tensor_type.is_empty() || t.tensor_type_file.is_some(), "--tensor-type"),
        (t.output_tensor_type.is_some(), "--output-tensor-type"),
        (t.token_embedding_type.is_some(), "--token-embedding-type"),
        (t.leave_output_tensor, "--leave-output-tensor"),
        (t.pure, "--pure"),
        (!t.override_kv.is_empty(), "--override-kv"),
        (t.pretokenizer.is_some(), "--pretokenizer"),
        (args.imatrix.imatrix.is_some(), "--imatrix"),
        (args.save_imatrix.is_some(), "--save-imatrix"),
        (args.split_max_size.is_some(), "--split-max-size (folders have --max-shard-size)"),
        (args.split_max_tensors.is_some(), "--split-max-tensors"),
        (args.keep_split, "--keep-split"),
        (args.modelfile, "--modelfile"),
    ];
    if only_folders && let Some((_, flag)) = gguf.iter().find(|(given, _)| *given) {
        return Err(Error::Usage(format!("{flag} is for GGUF files, and none is to be written")));
    }
    let calibrates = !args.calibration.calibration.is_empty();
    if args.search.sort_channels && (only_folders || !args.search.is_feedback(calibrates)?) {
        let what = "--sort-channels is for GGUF files with error feedback: add --calibration default";
        return Err(Error::Usage(what.into()));
    }
    if !no_folders {
        return Ok(());
    }
    let feedback = args.search.is_feedback(calibrates)?;
    match (args.folder.resume, feedback) {
        (true, false) => Err(Error::Usage("--resume goes on with checkpoint folders and with error feedback".into())),
        (true, true) if args.search.sequential => Err(Error::Usage("--sequential runs cannot be resumed".into())),
        _ => args.folder.refuse_idle(),
    }
}

/// Writes the GGUF files.
fn files(
    prepared: &Prepared,
    args: &ConvertArgs,
    (importance, drawing): (calibrate::Opened, Option<calibrate::Drawing>),
    model_name: &str,
    threads: usize,
    start: Instant,
    done: &mut Done,
) -> Result<()> {
    let outputs = outputs(prepared, args, model_name)?;
    prepared.warn(args.common.quiet);
    let wanted = match args.search.is_feedback(importance.calibrates())? {
        true => {
            let drawing = drawing.map_or_else(|| importance.draw(prepared, args, false), |d| Ok(Some(d)))?;
            drawing.map_or(Wanted::Plain(None), |d| Wanted::Feedback(Box::new(d)))
        }
        false => Wanted::Plain(importance.make(prepared, args)?.map(Box::new)),
    };
    let (artifacts, importance, refused) = write(prepared, args, wanted, &outputs, threads)?;
    let importance = importance.as_ref();
    if args.modelfile {
        for written in &artifacts {
            let text = format!("FROM ./{}\n", file_name(&written.paths[0]));
            write_text(&modelfile_path(&written.output), &text, args.force)?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if args.common.format == Format::Text {
        summary(prepared, &artifacts, seconds)?;
    }
    done.json = Some(summary_json(prepared, importance, &refused, &artifacts, seconds));
    done.paths = artifacts.iter().map(|a| a.paths[0].clone()).collect();
    for (target, refused) in prepared.targets.iter().zip(refused) {
        let name = target.preset.name;
        let of_importance = importance.map_or_else(Vec::new, |i| i.ledger_rows(name));
        done.ledger.push([target.ledger_rows(name), of_importance, refused].concat());
    }
    Ok(())
}

/// The name of every file, none of which is there.
fn outputs(prepared: &Prepared, args: &ConvertArgs, model_name: &str) -> Result<Vec<PathBuf>> {
    let names: Vec<&str> = prepared.targets.iter().map(|t| t.preset.name).collect();
    let outputs = options::output_paths(args.output.as_deref(), model_name, &names)?;
    for output in &outputs {
        refuse_existing(output, args.force)?;
        if args.modelfile {
            refuse_existing(&modelfile_path(output), args.force)?;
        }
    }
    if let Some(file) = &args.save_imatrix {
        refuse_existing(file, args.force)?;
    }
    Ok(outputs)
}

/// One finished artifact.
struct Written {
    output: PathBuf,
    paths: Vec<PathBuf>,
    bytes: u64,
    tensor_bytes: u64,
}

impl Written {
    fn bits(&self, prepared: &Prepared) -> f64 {
        8.0 * self.tensor_bytes as f64 / prepared.weights().max(1) as f64
    }
}

/// What guides the search.
enum Wanted {
    Plain(Option<Box<Importance>>),
    Feedback(Box<calibrate::Drawing>),
}

/// Files, the importance they were made with, and per file what kept ggml's search instead of feedback.
type Made = (Vec<Written>, Option<Importance>, Vec<Vec<LedgerRow>>);

/// The streaming pass, and the files it makes.
fn write(prepared: &Prepared, args: &ConvertArgs, wanted: Wanted, outputs: &[PathBuf], threads: usize) -> Result<Made> {
    let (ckpt, model) = (&prepared.ckpt, &prepared.model);
    let split = split(args, prepared)?;
    let (mut artifacts, mut plain) = (Vec::new(), Vec::new());
    let mut journal = match &wanted {
        Wanted::Feedback(drawing) => Some(Journaled::open(prepared, args, drawing, &outputs[0])?),
        Wanted::Plain(_) => None,
    };
    let mut left = journal.iter_mut().flat_map(|j| std::mem::take(&mut j.files)).collect::<Vec<_>>().into_iter();
    for (target, output) in prepared.targets.iter().zip(outputs) {
        let mut metadata = prepared.metadata.clone();
        metadata.set("general.file_type", target.preset.file_type);
        target.record(&mut metadata, ckpt, !args.no_source_hash);
        match &wanted {
            Wanted::Plain(importance) => importance.iter().for_each(|i| i.record(&mut metadata)),
            Wanted::Feedback(drawing) => calibrate::describe(&mut metadata, &drawing.data),
        }
        options::override_metadata(&mut metadata, &args.types.override_kv)?;
        let entries = convert::entries(model, &target.types);
        if matches!(wanted, Wanted::Feedback(_)) {
            plain.push(Artifact::reopen(output, &metadata, &entries, split, args.force, &mut left)?);
            args.search.record(&mut metadata);
        }
        let artifact = Artifact::reopen(output, &metadata, &entries, split, args.force, &mut left)?;
        refuse_the_source(prepared, &artifact)?;
        artifacts.push(artifact);
    }
    let (importance, mut outcome) = match (wanted, &mut journal) {
        (Wanted::Feedback(drawing), Some(journaled)) => {
            let journal = journaled.journal(&artifacts, &plain)?;
            let run = feedback::run(prepared, args, *drawing, &artifacts, &plain, threads, journal);
            if journaled.stays(run.is_ok()) {
                artifacts.iter_mut().chain(&mut plain).for_each(|artifact| artifact.stays(true));
                if run.is_err() && !args.common.quiet {
                    eprintln!("finished layers are kept beside the output; --resume goes on behind them");
                }
            }
            (None, Some(run?))
        }
        (Wanted::Plain(importance), _) => (importance.map(|i| *i), None),
        (Wanted::Feedback(_), None) => return Err(Error::Internal("feedback without a journal".into())),
    };
    let total = convert::source_bytes(ckpt, model);
    let progress = Progress::new("quantizing", total, Unit::Bytes, args.common.quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let sinks = artifacts.iter().chain(&plain).zip(prepared.targets.iter().cycle()).enumerate();
    let sinks: Vec<Target> = sinks
        .map(|(i, (artifact, t))| {
            let done = outcome.as_ref().map_or_else(Vec::new, |o| o.done[i % prepared.targets.len()].clone());
            Target { types: t.types.clone(), sink: artifact, done }
        })
        .collect();
    let known = importance.as_ref().or(outcome.as_ref().map(|o| &o.importance));
    let hashes = SourceHashes::new(ckpt, args.no_source_hash);
    convert::run(ckpt, model, &|name| known.and_then(|i| i.of(name)), &sinks, &|| hashes.work(), &control)?;
    drop(sinks);
    progress.finish();
    if !args.no_source_hash {
        let hashes = hashes.finish()?;
        for artifact in artifacts.iter_mut().chain(&mut plain) {
            artifact.set_metadata("quantize.source.sha256", hashes.clone());
        }
    }
    for artifact in artifacts.iter().chain(&plain) {
        artifact.seal(threads, &CANCEL)?;
    }
    let mut refused = vec![Vec::new(); prepared.targets.len()];
    let (mut importance, mut losers) = (importance, Vec::new());
    if let Some(mut outcome) = outcome.take() {
        let keep = feedback::judge(&mut outcome, prepared, &artifacts, &plain, args.common.quiet)?;
        // From here on the end is a matter of names.
        artifacts.iter_mut().chain(&mut plain).for_each(|artifact| artifact.stays(false));
        journal.iter_mut().for_each(Journaled::leaves);
        let both = artifacts.into_iter().zip(plain).zip(keep);
        (artifacts, losers) = both.map(|((a, b), keep)| if keep { (a, b) } else { (b, a) }).unzip();
        refused = outcome.ledger;
        importance = Some(outcome.importance);
    }
    // All are complete; none had its name until here.
    control.check()?;
    let mut written = Vec::new();
    for (artifact, output) in artifacts.into_iter().zip(outputs) {
        let (bytes, tensor_bytes) = (artifact.total_bytes(), artifact.tensor_bytes());
        written.push(Written { output: output.clone(), paths: artifact.publish()?, bytes, tensor_bytes });
    }
    // Not before: until the last name is given, a killed run can go on.
    drop(losers);
    Ok((written, importance, refused))
}

/// Not even `--force` lets a lossy copy take its source's place.
fn refuse_the_source(prepared: &Prepared, artifact: &Artifact) -> Result<()> {
    let sources: Vec<PathBuf> = prepared.ckpt.files().iter().flat_map(|f| f.path.canonicalize()).collect();
    match artifact.targets().find(|target| target.canonicalize().is_ok_and(|t| sources.contains(&t))) {
        Some(target) => Err(Error::Usage(format!("{} is the source itself; name another file", target.display()))),
        None => Ok(()),
    }
}

/// SHA-256 of every source file, several at once.
pub fn hash_sources(ckpt: &Checkpoint, threads: usize) -> Result<Vec<String>> {
    let hashes = SourceHashes::new(ckpt, false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(ckpt.files().len())).map(|_| scope.spawn(|| hashes.work())).collect();
        let panicked = || Err(Error::Internal("hashing panicked".into()));
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| panicked()))
    })?;
    hashes.finish()
}

/// SHA-256 of every source file, by as many threads as come. They read ahead of those that quantize, so that a cold disk
/// is read once.
struct SourceHashes<'a> {
    files: &'a [source::SourceFile],
    next: AtomicUsize,
    done: Mutex<Vec<(usize, String)>>,
}

impl<'a> SourceHashes<'a> {
    fn new(ckpt: &'a Checkpoint, none: bool) -> Self {
        let files = if none { &[] } else { ckpt.files() };
        Self { files, next: AtomicUsize::new(0), done: Mutex::default() }
    }

    /// Hashes files until none is left.
    fn work(&self) -> Result<()> {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = self.files.get(i) else { return Ok(()) };
            let hash = source::sha256_file(&file.path, &CANCEL)?;
            self.done().push((i, hash));
        }
    }

    /// The hashes in order of the files.
    fn finish(&self) -> Result<Vec<String>> {
        let mut hashes = std::mem::take(&mut *self.done());
        hashes.sort();
        match hashes.len() == self.files.len() {
            true => Ok(hashes.into_iter().map(|(_, hash)| hash).collect()),
            false => Err(Error::Internal("a source file was not hashed".into())),
        }
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Vec<(usize, String)>> {
        // A thread that panicked has pushed or has not; the count tells.
        self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// llama-quantize's `IN [OUT] TYPE [THREADS]`, where `--to` was not given.
fn positionals(args: &mut ConvertArgs) -> Result<()> {
    if args.model.is_empty() {
        return Err(Error::Usage("no model named; try: quantize --to q4_k_m ./model".into()));
    }
    let mut rest = args.model.split_off(1);
    if args.types.to.is_empty() && args.budget.is_empty() {
        if rest.len() > 1
            && let Some(n) = rest.last().and_then(|t| t.parse().ok())
            && crate::quant::presets::find(&rest[rest.len() - 2]).is_some()
        {
            args.common.threads = Some(n);
            rest.pop();
        }
        match rest.pop() {
            Some(ty) => args.types.to.push(ty),
            None => return Err(Error::Usage("no target type; try --to q4_k_m".into())),
        }
        if let Some(out) = rest.pop() {
            args.output = Some(out.into());
        }
    }
    match rest.first() {
        Some(extra) => Err(Error::Usage(format!("unexpected argument '{extra}'"))),
        None => Ok(()),
    }
}

fn split(args: &ConvertArgs, prepared: &Prepared) -> Result<Split> {
    if let Some(size) = &args.split_max_size {
        return Ok(Split::MaxBytes(options::size(size)?));
    }
    if let Some(n) = args.split_max_tensors {
        return Ok(Split::MaxTensors(n.get()));
    }
    let files = prepared.ckpt.files().len();
    Ok(if args.keep_split && files > 1 { Split::Count(files) } else { Split::Never })
}

fn modelfile_path(output: &Path) -> PathBuf {
    output.with_extension("Modelfile")
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// The last word, for machines.
fn summary_json(
    prepared: &Prepared,
    importance: Option<&Importance>,
    refused: &[Vec<LedgerRow>],
    artifacts: &[Written],
    seconds: f64,
) -> serde_json::Value {
    let ledger = |(t, refused): (&Planned, &Vec<LedgerRow>)| {
        let name = t.preset.name;
        [t.ledger_rows(name), importance.map_or_else(Vec::new, |i| i.ledger_rows(name)), refused.clone()].concat()
    };
    let source = convert::source_bytes(&prepared.ckpt, &prepared.model);
    let rows = artifacts.iter().zip(prepared.targets.iter().zip(refused)).map(|(a, (t, refused))| {
        json!({ "type": t.preset.name, "paths": a.paths, "bytes": a.bytes, "bits_per_weight": a.bits(prepared),
                "ratio": a.bytes as f64 / source.max(1) as f64, "fallbacks": t.fallbacks(), "ledger": ledger((t, refused)), "allocation": t.allocation })
    });
    let rows: Vec<_> = rows.collect();
    let dropped = prepared.model.dropped.iter().map(|(name, why)| json!({ "tensor": name, "reason": why }));
    let dropped: Vec<_> = dropped.collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"), "source": prepared.path, "source_bytes": source,
        "weights": prepared.weights(), "tensors": prepared.ckpt.tensors().len(), "dropped": dropped,
        "artifacts": rows, "seconds": seconds, "calibration": importance.and_then(|i| i.data.as_ref()),
    })
}

/// The last word: what was written, how large it is, what was not as asked. Paths go to standard output, the rest is
/// for the person at the terminal.
fn summary(prepared: &Prepared, artifacts: &[Written], seconds: f64) -> Result<()> {
    let source = convert::source_bytes(&prepared.ckpt, &prepared.model);
    let mut out = String::new();
    for (a, t) in artifacts.iter().zip(&prepared.targets) {
        for path in &a.paths {
            out += &format!("{}\n", path.display());
        }
        eprintln!(
            "  {:<8} {:>10}  {:.2} bits per weight  {:.1} % of the source  {}",
            t.preset.name,
            human(a.bytes),
            a.bits(prepared),
            100.0 * a.bytes as f64 / source.max(1) as f64,
            match t.fallbacks() {
                0 => "no fallbacks".to_string(),
                n => format!("{n} tensors fell back to another type"),
            }
        );
    }
    let (total, dropped) = (prepared.ckpt.tensors().len(), &prepared.model.dropped);
    eprintln!(
        "  {total} source tensors: {} written, {} dropped, in {seconds:.1} s",
        total - dropped.len(),
        dropped.len()
    );
    for (name, why) in dropped {
        eprintln!("    dropped {name}: {why}");
    }
    print(&out)
}
