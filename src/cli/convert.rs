//! The main job: `quantize --to TYPE[,TYPE...] MODEL`. Flags become a recipe, the recipe a plan, the plan's outcome words;
//! then, where a text is given, the source and what was made of it are compared.

use super::args::Format;
use super::commands::ConvertArgs;
use super::eval::{self, Saving};
use super::output::{print, print_json};
use super::prepare::{Prepared, accept, prepare};
use super::progress::Terminal;
use super::{options, plan, recipe, words};
use crate::check::{self, Measurement};
use crate::control::{Control, Notice, Run};
use crate::convert::{self, Allocation, Made, Outcome, Plan, running, stream};
use crate::eval::Method;
use crate::eval::gate::{self, Gates};
use crate::quant::presets;
use crate::report::{LedgerRow, Report};
use crate::writer::gguf::human;
use crate::{Error, Result, escape};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub fn run(mut args: ConvertArgs, given: &[String]) -> Result<()> {
    recipe::refuse_beside(&args, given)?;
    if args.print_recipe {
        recipe::refuse_unprinted(given)?;
        let mut args = args;
        args.model.insert(0, String::new());
        positionals(&mut args)?;
        let recipe = recipe::of_convert(&args)?;
        super::idle::refuse(given, &recipe, false)?;
        recipe.check()?;
        return print_json(&recipe);
    }
    refuse_words(&args)?;
    positionals(&mut args)?;
    let gates = eval::gates(&args.gates)?;
    if args.text.is_none() && !gates.is_empty() {
        return Err(Error::Usage("a quality gate needs a text to measure on: add --text FILE".into()));
    }
    if args.text.is_some() && !args.types.mmproj.is_empty() {
        return Err(Error::Usage("--mmproj and --text cannot be combined: a projector is not a text model".into()));
    }
    gates.check_limits()?;
    let terminal = Terminal::new(args.common.quiet);
    let saving = Saving::of_conversion(&args, Run::new(&Control::default(), &terminal))?;
    let Prepared { control, terminal, recipe, path, source, .. } = prepare(&args, given, || Ok(()))?;
    let run = Run::new(&control, &terminal);
    if let Some(text) = &args.text {
        check::text_suffices(&source.to_run()?, &measurement(&args, text.clone(), gates))?;
    }
    let mut plan = convert::plan(&source, &recipe)?;
    if args.check {
        convert::proven::can_run(&plan)?;
    }
    accept(&args, &plan)?;
    if args.dry_run {
        convert::spend_budgets(&mut plan, &control, &terminal)?;
        return plan::describe(&plan, &args, &control);
    }
    plan.save_importance = args.save_imatrix.clone();
    plan.evaluation_text = args.text.clone();
    if let Some(output) = &args.output {
        plan.place(output)?;
    }
    let mut outputs: Vec<PathBuf> = plan.files().map(|(o, _)| o.place.clone()).collect();
    plan.modelfiles = args.modelfile;
    if args.modelfile {
        outputs.iter().try_for_each(|output| options::modelfile_name(output))?;
        outputs.extend(plan.files().map(|(o, _)| o.modelfile()));
    }
    super::places::of_conversion(&args, &path, &outputs)?;
    if !args.common.quiet {
        for output in &plan.outputs {
            words::departures(&output.ledger()).iter().for_each(|line| say!("{}: {line}", output.target.name()));
        }
    }
    if let Some(said) = saving.said() {
        convert::forget(&plan, run)?;
        let report = said_again(said, args.common.format, run)?;
        saving.forget(run);
        return gate::verdict(&report.gates);
    }
    let (outcome, unended) = convert::make(&plan, &control, &terminal)?;
    let unended = match args.text {
        Some(_) => Some(unended),
        None => {
            unended.end(run);
            None
        }
    };
    let json = summary_json(&plan, &outcome);
    match (args.common.format, &args.text) {
        (Format::Text, _) => summary(&plan, &outcome, args.common.quiet)?,
        (Format::Json, None) => print_json(&json)?,
        (Format::Json, Some(_)) => {}
    }
    let (Some(text), Some(unended)) = (args.text.clone(), unended) else { return Ok(()) };
    // Then the source and what was just made of it, over one token stream.
    drop((plan, source));
    let measured = measure(&args, path, &outcome, text, gates, &control).inspect_err(|_| {
        run.notice(Notice::Info("what was made is whole; the same command goes on with the comparison".into()));
    });
    let report = measured?;
    let paths: Vec<PathBuf> = outcome.outputs.into_iter().flat_map(|made| made.paths).collect();
    let said = json!({ "paths": paths, "summary": json, "report": report });
    // What was computed is shown, whether it can be saved or not.
    let saved = saving.save_beside(&paths, &report, &said, run, || unended.end(run));
    show(json, &report, args.common.format)?;
    saved?;
    gate::verdict(&report.gates)
}

/// Says what an equal run had to say that was killed when all was done. Its report.
fn said_again(said: &Value, format: Format, run: Run) -> Result<Report> {
    run.notice(Notice::Info("finished by the interrupted run".into()));
    let report = Report::from_json(&said["report"].to_string())?;
    if format == Format::Text {
        let paths = said["paths"].as_array().into_iter().flatten().filter_map(Value::as_str);
        print(&paths.map(|path| format!("{path}\n")).collect::<String>())?;
    }
    show(said["summary"].clone(), &report, format)?;
    Ok(report)
}

fn show(mut json: Value, report: &Report, format: Format) -> Result<()> {
    match format {
        Format::Text => print(&format!("\n{}", crate::report::render_text(report))),
        Format::Json => {
            json["report"] = serde_json::to_value(report).map_err(|e| Error::Internal(e.to_string()))?;
            print_json(&json)
        }
    }
}

fn measure(
    args: &ConvertArgs,
    source: PathBuf,
    outcome: &Outcome,
    text: PathBuf,
    gates: Gates,
    control: &Control,
) -> Result<Report> {
    let models: Vec<PathBuf> =
        std::iter::once(source).chain(outcome.outputs.iter().map(|made| made.paths[0].clone())).collect();
    let how = measurement(args, text, gates);
    let mut report = eval::measure(&models, &how, control, args.common.quiet)?;
    for (made, candidate) in outcome.outputs.iter().zip(&report.candidates) {
        let name = &candidate.artifact.name;
        report.ledger.extend(made.ledger.iter().map(|row| LedgerRow { candidate: name.clone(), ..row.clone() }));
    }
    Ok(report)
}

/// How the flags have the artifacts measured.
pub fn measurement(args: &ConvertArgs, text: PathBuf, gates: Gates) -> Measurement {
    let method = Method::LlamaCpp { ctx: args.ctx };
    Measurement { adapter: args.lora.clone(), method, windows: args.chunks, gates, ..Measurement::on(text) }
}

/// Words that people try in place of a model, and what does it here.
const WORDS: [(&[&str], &str); 9] = [
    (&["run", "answer"], "quantize chat MODEL"),
    (&["convert", "quantize", "quant"], "quantize --to q4_k_m MODEL"),
    (&["download", "fetch", "get"], "quantize pull ORG/NAME"),
    (&["upload", "publish"], "quantize release MODEL --to q4_k_m -o release/, then quantize push release/ ORG/NAME"),
    (&["imatrix"], "quantize calibrate MODEL -o imatrix.gguf"),
    (&["perplexity", "ppl"], "quantize eval MODEL --text FILE"),
    (&["info", "show", "dump", "metadata"], "quantize inspect FILE"),
    (&["check", "validate"], "quantize verify FILE"),
    (&["list", "formats"], "quantize types"),
];

/// # Errors
/// `Usage` for a word that is no command, where no model has that name.
fn refuse_words(args: &ConvertArgs) -> Result<()> {
    let Some(word) = args.model.first().filter(|word| !Path::new(word).exists()) else { return Ok(()) };
    match WORDS.iter().find(|(words, _)| words.contains(&word.as_str())) {
        Some((_, command)) => Err(Error::Usage(format!("there is no command '{word}'; try: {command}"))),
        None => Ok(()),
    }
}

/// llama-quantize's `IN [OUT] TYPE [THREADS]`, where `--to` was not given.
pub fn positionals(args: &mut ConvertArgs) -> Result<()> {
    if args.model.is_empty() {
        return Err(Error::Usage("no model named; try: quantize --to q4_k_m ./model".into()));
    }
    let mut rest = args.model.split_off(1);
    let budget = &args.budget;
    if args.recipe.is_none()
        && args.types.to.is_empty()
        && args.types.mmproj.is_empty()
        && budget.target_bpw.is_empty()
        && budget.target_size.is_empty()
        && budget.like.is_empty()
    {
        if rest.len() > 1
            && let Some(n) = rest.last().and_then(|t| t.parse().ok())
            && presets::find(&rest[rest.len() - 2]).is_some()
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

/// Bytes of the source that an output is compared with: what was read for files, all tensors for folders.
fn source_bytes(plan: &Plan, made: &Made) -> u64 {
    let (ckpt, model) = (&plan.source.ckpt, &plan.source.model);
    match made.file {
        Some(_) => stream::source_bytes(ckpt, model),
        None => ckpt.tensors().iter().map(|t| t.bytes()).sum(),
    }
}

/// The last word, for machines.
pub fn summary_json(plan: &Plan, outcome: &Outcome) -> Value {
    let (ckpt, model) = (&plan.source.ckpt, &plan.source.model);
    let row = |made: &Made| {
        let ratio = made.bytes as f64 / source_bytes(plan, made).max(1) as f64;
        let mut row = json!({
            "type": made.name, "paths": made.paths.iter().map(|p| escape::path(p)).collect::<Vec<_>>(), "bytes": made.bytes, "bits_per_weight": made.bits_per_weight,
            "ratio": ratio, "ledger": made.ledger, "check": made.checked, "notes": made.notes,
        });
        match &made.file {
            Some(file) => {
                row["fallbacks"] = json!(file.fallbacks);
                row["allocation"] = json!(file.allocation);
            }
            None => {
                row["format"] = made.manifest["format"].clone();
                row["allocation"] = made.manifest["allocation"].clone();
                row["quantized_weights"] = json!(made.quantized_weights);
            }
        }
        row
    };
    let dropped = model.dropped.iter().map(|(name, why)| json!({ "tensor": name, "reason": why }));
    let mut json = json!({
        "version": env!("CARGO_PKG_VERSION"), "source": escape::path(&plan.source.path),
        "source_bytes": stream::source_bytes(ckpt, model), "tensors": ckpt.tensors().len(),
        "dropped": dropped.collect::<Vec<_>>(), "remarks": plan.remarks, "artifacts": outcome.outputs.iter().map(row).collect::<Vec<_>>(),
        "seconds": outcome.seconds, "calibration": outcome.data,
    });
    if plan.files().next().is_some() {
        json["weights"] = json!(plan.weights());
    }
    json
}

/// A line for each dropped tensor, or for all of a reason where they are many.
fn dropped_by_reason(dropped: &[(String, String)]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, why) in dropped {
        match reasons.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, names)) => names.push(name),
            None => reasons.push((why, vec![name])),
        }
    }
    let lines = reasons.into_iter().flat_map(|(why, names)| match names[..] {
        [first, .., last] if names.len() > 4 => vec![format!("{} tensors, {first} to {last}: {why}", names.len())],
        _ => names.iter().map(|name| format!("{name}: {why}")).collect(),
    });
    lines.collect()
}

/// The last word: what was written, how large it is, what was not as asked. Paths go to standard output, the rest is
/// for the person at the terminal.
pub fn summary(plan: &Plan, outcome: &Outcome, quiet: bool) -> Result<()> {
    let mut out = String::new();
    for made in &outcome.outputs {
        for path in &made.paths {
            out += &format!("{}\n", path.display());
        }
        let allocation = match &made.file {
            Some(file) => file.allocation.clone(),
            None => Allocation::of_folder(&made.manifest),
        };
        if let Some(allocation) = allocation.filter(|_| !quiet) {
            super::output::say_block(&words::allocation(&made.name, &allocation));
        }
        let (bits, what) = match &made.file {
            Some(file) => {
                let what = match file.fallbacks {
                    0 => "no fallbacks".to_string(),
                    1 => "1 tensor fell back to another type".to_string(),
                    n => format!("{n} tensors fell back to another type"),
                };
                ("bits per weight", what)
            }
            None => {
                let plain = made.manifest["format"] == "safetensors";
                let what = match made.ledger.len() {
                    0 => "as asked".to_string(),
                    n => {
                        let manifest = crate::writer::folder::MANIFEST;
                        format!("{n} departures from what was asked (see {manifest})")
                    }
                };
                (if plain { "bits per weight" } else { "bits per quantized weight" }, what)
            }
        };
        let share = 100.0 * made.bytes as f64 / source_bytes(plan, made).max(1) as f64;
        say!(
            "  {:<8} {:>10}  {:.2} {bits}  {share:.1} % of the source  {what}",
            made.name,
            human(made.bytes),
            made.bits_per_weight,
        );
        match &made.checked {
            Some(checked) => say!("           checked: {checked}"),
            None if plan.source.ckpt.is_adapter() => {
                say!("           not run: an adapter is run with its model; its structure was checked")
            }
            None if plan.source.model.runnable().is_err() => {
                say!("           not run: this model can only be converted here; its structure was checked")
            }
            None => {}
        }
    }
    let (total, dropped) = (plan.source.ckpt.tensors().len(), &plan.source.model.dropped);
    let (written, dropped_count, seconds) = (total - dropped.len(), dropped.len(), outcome.seconds);
    match plan.files().next() {
        Some(_) => {
            say!("  {total} source tensors: {written} written, {dropped_count} dropped, in {seconds:.1} s");
            dropped_by_reason(dropped).iter().for_each(|line| say!("    dropped {line}"));
        }
        None => say!("  in {seconds:.1} s"),
    }
    if !quiet {
        running::commands(plan, &outcome.outputs).iter().for_each(|command| say!("run it: {command}"));
    }
    print(&out)
}
