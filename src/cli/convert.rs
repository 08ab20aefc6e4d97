//! The main job: `quantize --to TYPE[,TYPE...] MODEL`. Everything that can be refused is refused before a weight is read:
//! the model, the tokenizer, the types, the output names, the disk space. Then one pass writes every target.

use super::calibrate::{self, Importance};
use super::options::{self, CANCEL};
use super::plan::{Planned, Prepared, describe, prepare};
use super::progress::{Progress, Unit};
use super::{ConvertArgs, Format, TextArgs, eval, print, print_json};
use crate::convert::{self, Control, Target};
use crate::eval::gate;
use crate::source;
use crate::writer::atomic::{refuse_existing, write_text};
use crate::writer::gguf::{Artifact, Split, human};
use crate::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
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
    let threads = options::threads(args.common.threads)?;
    options::catch_interrupt()?;
    let path = options::resolve_model(&model_arg, &args.hub, args.common.quiet)?;
    let importance = calibrate::Plan::new(&args.imatrix, &args.calibration, &args.hub, args.common.quiet)?;
    let prepared = prepare(&path, &args.types, importance.kind())?;
    let importance = importance.open(&prepared.model)?;
    if args.dry_run {
        return describe(&prepared, threads, args.common.format);
    }
    let names: Vec<&str> = prepared.targets.iter().map(|t| t.preset.name).collect();
    let outputs = options::output_paths(args.output.as_deref(), &options::model_name(&path), &names)?;
    for output in &outputs {
        refuse_existing(output, args.force)?;
        if args.modelfile {
            refuse_existing(&modelfile_path(output), args.force)?;
        }
    }
    if let Some(file) = &args.save_imatrix {
        refuse_existing(file, args.force)?;
    }
    prepared.warn(args.common.quiet);
    let importance = importance.make(&prepared, &args)?;
    let artifacts = write(&prepared, &args, importance.as_ref(), &outputs, threads)?;
    if args.modelfile {
        for written in &artifacts {
            let text = format!("FROM ./{}\n", file_name(&written.paths[0]));
            write_text(&modelfile_path(&written.output), &text, args.force)?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let importance = importance.as_ref();
    let Some(text) = args.text else {
        return match args.common.format {
            Format::Text => summary(&prepared, &artifacts, seconds),
            Format::Json => print_json(&summary_json(&prepared, importance, &artifacts, seconds)),
        };
    };
    // Then the source and what was just made of it, over one token stream.
    let json = summary_json(&prepared, importance, &artifacts, seconds);
    if args.common.format == Format::Text {
        summary(&prepared, &artifacts, seconds)?;
    }
    let Prepared { path, targets, .. } = prepared;
    let models: Vec<PathBuf> = std::iter::once(path).chain(artifacts.iter().map(|a| a.paths[0].clone())).collect();
    let text = TextArgs {
        text: Some(text),
        ctx: args.ctx,
        stride: None,
        chunks: args.chunks,
        activations: Default::default(),
    };
    let mut report = eval::measure(&models, &text, &gates, None, threads, args.common.quiet)?;
    for (target, i) in targets.iter().zip(0..report.candidates.len()) {
        let rows = target.ledger_rows(&report.candidates[i].artifact.name);
        report.ledger.extend(rows);
        report.ledger.extend(importance.map_or_else(Vec::new, |x| x.ledger_rows(&report.candidates[i].artifact.name)));
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

/// The streaming pass, and the files it makes.
fn write(
    prepared: &Prepared,
    args: &ConvertArgs,
    importance: Option<&Importance>,
    outputs: &[PathBuf],
    threads: usize,
) -> Result<Vec<Written>> {
    let (ckpt, model) = (&prepared.ckpt, &prepared.model);
    let split = split(args, prepared)?;
    let mut artifacts = Vec::new();
    for (target, output) in prepared.targets.iter().zip(outputs) {
        let mut metadata = prepared.metadata.clone();
        metadata.set("general.file_type", target.preset.file_type);
        target.record(&mut metadata, ckpt, !args.no_source_hash);
        if let Some(importance) = importance {
            importance.record(&mut metadata);
        }
        options::override_metadata(&mut metadata, &args.types.override_kv)?;
        let entries = convert::entries(model, &target.types);
        let artifact = Artifact::create(output, &metadata, &entries, split, args.force)?;
        refuse_the_source(prepared, &artifact)?;
        artifacts.push(artifact);
    }
    let total = convert::source_bytes(ckpt, model);
    let progress = Progress::new("quantizing", total, Unit::Bytes, args.common.quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let sinks: Vec<Target> = artifacts
        .iter()
        .zip(&prepared.targets)
        .map(|(artifact, t)| Target { types: t.types.clone(), sink: artifact })
        .collect();
    convert::run(ckpt, model, &|name| importance.and_then(|i| i.of(name)), &sinks, &control)?;
    drop(sinks);
    progress.finish();
    if !args.no_source_hash {
        let hashes = hash_sources(prepared, threads)?;
        for artifact in &mut artifacts {
            artifact.set_metadata("quantize.source.sha256", hashes.clone());
        }
    }
    for artifact in &artifacts {
        artifact.seal(threads, &CANCEL)?;
    }
    // All are complete; none had its name until here.
    control.check()?;
    let mut written = Vec::new();
    for (artifact, output) in artifacts.into_iter().zip(outputs) {
        let (bytes, tensor_bytes) = (artifact.total_bytes(), artifact.tensor_bytes());
        written.push(Written { output: output.clone(), paths: artifact.publish()?, bytes, tensor_bytes });
    }
    Ok(written)
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
fn hash_sources(prepared: &Prepared, threads: usize) -> Result<Vec<String>> {
    let files = prepared.ckpt.files();
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, String)>> {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(i) else { return Ok(done) };
            done.push((i, source::sha256_file(&file.path, &CANCEL)?));
        }
    };
    let mut hashes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(files.len())).map(|_| scope.spawn(work)).collect();
        let joined =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(Error::Internal("hashing panicked".into()))));
        joined.collect::<Result<Vec<_>>>()
    })?
    .concat();
    hashes.sort();
    Ok(hashes.into_iter().map(|(_, hash)| hash).collect())
}

/// llama-quantize's `IN [OUT] TYPE [THREADS]`, where `--to` was not given.
fn positionals(args: &mut ConvertArgs) -> Result<()> {
    if args.model.is_empty() {
        return Err(Error::Usage("no model named; try: quantize --to q4_k_m ./model".into()));
    }
    let mut rest = args.model.split_off(1);
    if args.types.to.is_empty() {
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
    artifacts: &[Written],
    seconds: f64,
) -> serde_json::Value {
    let ledger = |t: &Planned| {
        let name = t.preset.name;
        [t.ledger_rows(name), importance.map_or_else(Vec::new, |i| i.ledger_rows(name))].concat()
    };
    let source = convert::source_bytes(&prepared.ckpt, &prepared.model);
    let rows = artifacts.iter().zip(&prepared.targets).map(|(a, t)| {
        json!({ "type": t.preset.name, "paths": a.paths, "bytes": a.bytes, "bits_per_weight": a.bits(prepared),
                "ratio": a.bytes as f64 / source.max(1) as f64, "fallbacks": t.fallbacks(), "ledger": ledger(t) })
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
