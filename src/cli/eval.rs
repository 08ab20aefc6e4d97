//! `quantize eval`, `quantize compare` and `quantize report`: what an artifact is worth, as text, JSON, HTML and Markdown,
//! and an exit code that says whether quality held. Also used after a conversion, for the gates there.

use super::args::{Activations, CommonArgs, Format, GateArgs, TaskArgs, TextArgs};
use super::commands::{CompareArgs, EvalArgs, ReportArgs};
use super::interrupt::{CANCEL, catch_interrupt};
use super::options;
use super::output::print;
use super::progress::Terminal;
use super::values::is_stream;
use crate::check::{self, Measurement, Questions};
use crate::control::Control;
use crate::disk::folder_of;
use crate::disk::partial::{refuse_existing, write_text};
use crate::eval::Method;
use crate::eval::gate::{self, Gates};
use crate::model::SourceModel;
use crate::report::{self, Report};
use crate::writer::places;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// `quantize eval MODEL`: perplexity alone, or what an embedding model's vectors are like.
pub fn eval(args: EvalArgs) -> Result<()> {
    let control = start(&args.common, None)?;
    args.report.iter().try_for_each(|path| check_report(path, None, args.force))?;
    let outputs = args.save_logits.iter().chain(&args.report).map(PathBuf::as_path);
    places::check(inputs(std::slice::from_ref(&args.model), &args.text, &args.tasks), outputs, args.force)?;
    if args.text.text.len() > 1 {
        return Err(Error::Usage("eval takes one --text; compare takes several".into()));
    }
    let how = Measurement { adapter: args.lora.clone(), ..measurement(&args.text, args.text.text.first()) };
    let terminal = Terminal::new(args.common.quiet);
    let questions = questions(&args.tasks, &args.text, &args.lora);
    let answers = || check::answers(&args.model, &[], &questions, &control, &terminal);
    let report = if how.text.is_none() && !questions.files.is_empty() {
        without_text(&args.text, &[("--save-logits", args.save_logits.is_some())])?;
        answers()?
    } else {
        let mut report = check::perplexity(&args.model, &how, args.save_logits.as_deref(), &control, &terminal)?;
        report.tasks = if questions.files.is_empty() { Vec::new() } else { answers()?.tasks };
        report
    };
    finish(&named(report), &args.report, args.common.format, args.force)
}

/// `quantize compare BASE Q...`: everything said about each candidate against the base.
pub fn compare(args: CompareArgs) -> Result<()> {
    let control = start(&args.common, args.max_memory)?;
    let gates = gates(&args.gates)?;
    gates.check_limits()?;
    args.report.iter().try_for_each(|path| check_report(path, None, args.force))?;
    places::check(inputs(&args.models, &args.text, &args.tasks), args.report.iter().map(PathBuf::as_path), args.force)?;
    let ablation = args.ablate.then_some(args.ablate_chunks);
    let how = |text: Option<&PathBuf>| {
        let adapter = args.lora.clone();
        Measurement { gates, ablation, adapter, ..measurement(&args.text, text) }
    };
    let questions = questions(&args.tasks, &args.text, &args.lora);
    let is_stored = args.models.first().is_some_and(|base| check::is_logits(base));
    if is_stored && !questions.files.is_empty() {
        return Err(Error::Usage("--task needs the base model itself, not its stored logits".into()));
    }
    if is_stored && args.continuations.is_some() {
        return Err(Error::Usage("--continuations needs the base model itself, not its stored logits".into()));
    }
    let texts: Vec<Option<&PathBuf>> = match args.text.text.as_slice() {
        [] if questions.files.is_empty() => vec![None],
        [] => Vec::new(),
        texts => texts.iter().map(Some).collect(),
    };
    if texts.is_empty() {
        let others = [
            ("--ablate", args.ablate),
            ("--continuations", args.continuations.is_some()),
            ("a quality gate", gates != Gates::default()),
        ];
        without_text(&args.text, &others)?;
    }
    check_texts(&args, how)?;
    // First, since it can turn out that prompts do not fit the context.
    let continued = match (args.continuations, args.models.split_first()) {
        (Some(starts), Some((base, candidates))) => {
            let (how, terminal) = (how(args.text.text.first()), Terminal::new(args.common.quiet));
            let (starts, length) = (starts as usize, args.length as usize);
            Some(check::continuations(base, candidates, &how, starts, length, &control, &terminal)?)
        }
        _ => None,
    };
    let reports: Result<Vec<Report>> =
        texts.into_iter().map(|text| measure(&args.models, &how(text), &control, args.common.quiet)).collect();
    let mut report = report::worst_of(reports?);
    if let Some(report) = &mut report {
        report.continuations = continued;
    }
    if !questions.files.is_empty() {
        let (base, candidates) = args.models.split_first().ok_or_else(|| Error::Internal("no base".into()))?;
        let terminal = Terminal::new(args.common.quiet);
        let answers = named(check::answers(base, candidates, &questions, &control, &terminal)?);
        let tasks = answers.tasks.clone();
        report.get_or_insert(answers).tasks = tasks;
    }
    let report = report.ok_or_else(|| Error::Internal("no text".into()))?;
    let outcome = gate::verdict(&report.gates);
    finish(&report, &args.report, args.common.format, args.force)?;
    outcome
}

/// That several texts suffice, before any of them is measured on.
fn check_texts<'a>(args: &'a CompareArgs, how: impl Fn(Option<&'a PathBuf>) -> Measurement) -> Result<()> {
    let (texts, Some(base)) = (&args.text.text, args.models.first()) else { return Ok(()) };
    if texts.len() < 2 {
        return Ok(());
    }
    if check::is_logits(base) {
        return Err(Error::Usage("stored logits are of one text: leave --text out".into()));
    }
    let source = SourceModel::open_merged(base, args.lora.as_deref())?.to_run()?;
    texts.iter().try_for_each(|text| check::text_suffices(&source, &how(Some(text))))
}

/// `quantize report saved.json`: the same report in another form.
pub fn render(args: ReportArgs) -> Result<()> {
    // A name that is an ending alone: that form, on standard output.
    let (shown, files): (Vec<_>, Vec<_>) =
        args.to.iter().cloned().partition(|to| ENDINGS.iter().any(|e| to.as_os_str() == *e));
    if shown.len() > 1 {
        return Err(Error::Usage("only one form can be printed; give the others files".into()));
    }
    files.iter().try_for_each(|path| check_report(path, None, args.force))?;
    let report = match is_stream(&args.file) {
        true => Report::from_json(&std::io::read_to_string(std::io::stdin()).map_err(|e| Error::io(&args.file, e))?),
        false => {
            places::check([args.file.as_path()], files.iter().map(PathBuf::as_path), args.force)?;
            Report::from_json(&crate::input::read_text(&args.file)?)
        }
    };
    let report = report.map_err(|e| e.in_file(&args.file))?;
    match shown.first() {
        Some(ending) => {
            print(&form(&Path::new("report").with_extension(ending))?(&report)?)?;
            save(&report, &files, args.force)
        }
        None => finish(&report, &files, args.common.format, args.force),
    }
}

/// What a measurement reads.
fn inputs<'a>(models: &'a [PathBuf], text: &'a TextArgs, tasks: &'a TaskArgs) -> impl Iterator<Item = &'a Path> {
    models.iter().chain(&text.text).chain(&tasks.task).map(PathBuf::as_path)
}

/// What the flags ask of the models.
fn questions(tasks: &TaskArgs, text: &TextArgs, adapter: &Option<PathBuf>) -> Questions {
    Questions {
        files: tasks.task.clone(),
        most: tasks.questions.map(|n| n as usize),
        adapter: adapter.clone(),
        rounded_activations: text.activations == Activations::Q8,
        kv_cache: text.kv_cache,
    }
}

/// Flags that say how a text is measured on mean nothing without one.
fn without_text(text: &TextArgs, others: &[(&str, bool)]) -> Result<()> {
    let of_text = [("--stride", text.stride.is_some()), ("--chunks", text.chunks.is_some())];
    match of_text.iter().chain(others).find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::Usage(format!("{flag} has no effect without a text; add --text FILE"))),
        None => Ok(()),
    }
}

/// How the flags have it measured, but for gates and ablation.
fn measurement(args: &TextArgs, text: Option<&PathBuf>) -> Measurement {
    Measurement {
        text: text.cloned(),
        method: match args.stride {
            Some(stride) => Method::Strided { ctx: args.ctx, stride },
            None => Method::LlamaCpp { ctx: args.ctx },
        },
        windows: args.chunks,
        rounded_activations: args.activations == Activations::Q8,
        kv_cache: args.kv_cache,
        ..Measurement::default()
    }
}

/// The report on the candidates behind the base, which is `models[0]`.
pub fn measure(models: &[PathBuf], how: &Measurement, control: &Control, quiet: bool) -> Result<Report> {
    let (base, candidates) = models.split_first().ok_or_else(|| Error::Internal("no base".into()))?;
    check::compare(base, candidates, how, control, &Terminal::new(quiet)).map(named)
}

/// The report with the command line that made it; what is no UTF-8 becomes �.
fn named(report: Report) -> Report {
    let command = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    Report { command, ..report }
}

/// The gates asked for on the command line.
pub fn gates(args: &GateArgs) -> Result<Gates> {
    let share = |flag: &str, text: &Option<String>| match text {
        Some(text) => gate::parse_share(text).map(Some).map_err(|e| Error::Usage(format!("{flag}: {e}"))),
        None => Ok(None),
    };
    Ok(Gates {
        max_kld: args.max_kld,
        max_ppl_increase: share("--max-ppl-increase", &args.max_ppl_increase)?,
        min_top1: share("--min-top1", &args.min_top1)?,
        min_cosine: args.min_cosine,
    })
}

/// Saves the report in every form asked for and prints it.
fn finish(report: &Report, files: &[PathBuf], format: Format, force: bool) -> Result<()> {
    // What was computed is shown, whether it can be saved or not.
    let saved = save(report, files, force);
    match format {
        Format::Text => print(&report::render_text(report))?,
        Format::Json => print(&report.to_json()?)?,
    }
    saved
}

/// Endings of reports' names.
const ENDINGS: [&str; 4] = ["html", "md", "json", "txt"];

/// How a report is written to a file.
type Form = fn(&Report) -> Result<String>;

/// The form that a file's name asks for.
///
/// # Errors
/// `Usage` for a name without a known ending.
fn form(path: &Path) -> Result<Form> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => Ok(|report| Ok(report::render_html(report))),
        Some("md" | "markdown") => Ok(|report| Ok(report::render_markdown(report))),
        Some("json") => Ok(Report::to_json),
        Some("txt") => Ok(|report| Ok(report::render_text(report))),
        _ => {
            let endings = ENDINGS.map(|ending| format!(".{ending}")).join(", ");
            Err(Error::Usage(format!("{}: a report's name ends in one of {endings}", path.display())))
        }
    }
}

/// That a report can be written to `path`, before anything is measured.
///
/// # Errors
/// `Usage` for a name without a known ending; `Exists`.
pub fn check_report(path: &Path, output: Option<&Path>, force: bool) -> Result<()> {
    form(path)?;
    let folder = folder_of(path);
    let is_made = output.is_some_and(|output| output.components().eq(folder.components()));
    if !is_made && !folder.is_dir() {
        return Err(Error::Usage(format!("{}: there is no folder {}", path.display(), folder.display())));
    }
    refuse_existing(path, force)
}

/// Writes the report in every form asked for.
pub fn save(report: &Report, files: &[PathBuf], force: bool) -> Result<()> {
    for path in files {
        write_text(path, &form(path)?(report)?, force)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

fn start(common: &CommonArgs, max_memory: Option<u64>) -> Result<Control> {
    catch_interrupt()?;
    let threads = options::threads(common.threads)?;
    Ok(Control { threads, max_memory, cancel: CANCEL.clone(), ..Control::default() })
}
