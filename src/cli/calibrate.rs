//! `quantize calibrate`: an importance matrix from a model and texts, merged from several, or shown.

use super::args::Format;
use super::commands::CalibrateArgs;
use super::interrupt;
use super::output::{print, print_json};
use super::progress::Terminal;
use super::{options, places, recipe, words};
use crate::calibration::hessians::{self, Hessians};
use crate::calibration::imatrix::Imatrix;
use crate::calibration::resume;
use crate::calibration::summary;
use crate::control::{Control, Run};
use crate::convert::calibrate::{Calibrated, Calibration, Checkpoints, calibrate, extra};
use crate::convert::overlap_text;
use crate::convert::together::Together;
use crate::disk::folder_of;
use crate::disk::partial::{PartialFile, refuse_existing};
use crate::model::SourceModel;
use crate::{Error, Result, escape};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub fn run(args: CalibrateArgs) -> Result<()> {
    let start = Instant::now();
    check(&args)?;
    interrupt::catch_interrupt()?;
    let control = recipe::control(&args.control, args.common.threads)?;
    let hessians = hessians(&args)?;
    let terminal = Terminal::new(args.common.quiet);
    let run = Run::new(&control, &terminal);
    let together = args.output.iter().chain(&args.save_text);
    let together = together.map(PathBuf::as_path).collect::<Vec<_>>();
    let together =
        Together::begin(&together, words::command_for_bytes().into(), places::read_by_calibration(&args), run)?;
    let may_replace = |file: &Path| args.control.force || together.has(file);
    args.output.iter().chain(&args.save_text).try_for_each(|file| refuse_existing(file, may_replace(file)))?;
    // From here on no other run writes it; with Hessians, once they begin.
    let reserved = args.output.as_deref().filter(|_| !args.hessians);
    let reserved = reserved.map(|file| PartialFile::create(file, may_replace(file))).transpose()?;
    let earlier: Vec<Imatrix> = args.merge.iter().map(|path| Imatrix::open(path)).collect::<Result<_>>()?;
    let mut made = match &args.model {
        Some(model) => {
            let path = options::resolve_model(model, &args.hub, args.common.quiet)?;
            places::of_calibration(&args, Some(&path))?;
            let source = SourceModel::open_merged(&path, args.lora.as_deref())?;
            earlier.iter().zip(&args.merge).try_for_each(|(earlier, file)| earlier.check(&source.model, file))?;
            let calibration = Calibration {
                data: recipe::data(&args.data, &args.hub, args.common.quiet)?,
                head: args.process_output,
                hessians: args.hessians,
            };
            let every = Duration::from_secs(args.checkpoint_every);
            let checkpoints = args.output.as_deref().map(|output| Checkpoints { output, every });
            let force = args.output.as_deref().is_some_and(may_replace);
            let control = Control { force, ..control.clone() };
            Some(calibrate(&source, &calibration, args.text.as_deref(), checkpoints, &control, &terminal)?)
        }
        None => None,
    };
    let mut imatrix = made.as_ref().map(|made| made.imatrix.clone());
    for (other, file) in earlier.into_iter().zip(&args.merge) {
        match &mut imatrix {
            Some(imatrix) => imatrix.merge(other).map_err(|e| e.in_file(file))?,
            None => imatrix = Some(other),
        }
    }
    let imatrix = imatrix.ok_or_else(|| Error::Internal("no importance matrix".into()))?;
    let mut files: Vec<PartialFile> = reserved.into_iter().collect();
    let data = made.as_ref().map(|made| &made.data);
    files.iter().try_for_each(|file| imatrix.write_into(file, &extra(data)))?;
    files.extend(made.as_mut().and_then(|made| made.hessians.take()));
    if let (Some(file), Some(made)) = (&args.save_text, &made) {
        files.push(PartialFile::holding(file, &made.text, may_replace(file))?);
    }
    together.publish(files, &Value::Null, run)?;
    if let (Some(output), true) = (&args.output, made.is_some()) {
        resume::forget(output)?;
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
            "output": args.output.as_deref().map(escape::path), "entries": imatrix.entries.len(), "chunks": imatrix.chunks,
            "data": made.as_ref().map(|m| &m.data), "experts": experts, "overlap": made.as_ref().and_then(|m| m.overlap),
            "statistics": rows, "hessians": hessians, "seconds": start.elapsed().as_secs_f64(),
        }));
    }
    if let Some(made) = made.as_ref().filter(|_| !args.common.quiet) {
        print_summary(made);
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

/// Everything that can be refused before a model is opened.
fn check(args: &CalibrateArgs) -> Result<()> {
    if args.model.is_none() && args.merge.is_empty() {
        return Err(Error::Usage(
            "nothing to do: name a MODEL to calibrate, or importance matrices with --merge".into(),
        ));
    }
    if args.output.is_none() && !args.show_statistics {
        return Err(Error::Usage("name the file to write with -o imatrix.gguf".into()));
    }
    if args.control.resume && (args.model.is_none() || args.output.is_none()) {
        return Err(Error::Usage("--resume continues the calibration of a MODEL with an output (-o)".into()));
    }
    if args.control.resume && args.hessians {
        return Err(Error::Usage("files with --hessians are made in one go: leave out --resume".into()));
    }
    for file in [&args.output, &args.save_text].into_iter().flatten() {
        let folder = folder_of(file);
        if !folder.is_dir() {
            let what = format!("{}: the folder {} does not exist", file.display(), folder.display());
            return Err(Error::storage(what));
        }
    }
    places::of_calibration(args, None)?;
    if args.hessians && args.output.as_ref().is_some_and(|o| o.extension().is_some_and(|e| e == "dat")) {
        return Err(Error::Usage("--hessians needs llama.cpp's newer form: name the output .gguf".into()));
    }
    Ok(())
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

/// What was used, for the person at the terminal.
fn print_summary(made: &Calibrated) {
    let data = &made.data;
    say!(
        "  {} tokens in windows of {} ({} asked for), {:.0} tokens/s, data {}",
        data.tokens,
        data.seq_len,
        data.tokens_asked,
        made.tokens_per_second,
        &data.sha256[..16]
    );
    for source in &data.sources {
        let rows = (source.rows_used, source.rows, source.rows_dropped);
        say!(
            "  {}: {} of {} rows used, {} dropped, {} tokens",
            source.name,
            rows.0,
            rows.1,
            rows.2,
            source.tokens_used
        );
    }
    for row in made.experts.iter().filter(|e| !e.unseen.is_empty()) {
        say!("  {}: experts without a token: {:?}", row.tensor, row.unseen);
    }
    if let Some(least) = made.experts.iter().min_by_key(|e| e.min) {
        say!("  tokens per expert: at least {}, 5th percentile {}, median {}", least.min, least.p5, least.median);
    }
    if let Some(overlap) = made.overlap {
        let flag = if overlap.is_suspicious() { "warning: " } else { "" };
        say!("  {flag}{}", overlap_text(overlap));
    }
}
