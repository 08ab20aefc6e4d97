//! `quantize eval`, `quantize compare` and `quantize report`: what an artifact is worth, as text, JSON, HTML and Markdown,
//! and an exit code that says whether quality held. Also used after a conversion, for the gates there.

use super::args::{Activations, CommonArgs, Format, GateArgs, TaskArgs, TextArgs};
use super::commands::{CompareArgs, ConvertArgs, EvalArgs, ReportArgs};
use super::interrupt::{CANCEL, catch_interrupt};
use super::output::print;
use super::places::read_by_conversion;
use super::progress::Terminal;
use super::values::is_stream;
use super::{options, words};
use crate::check::job::ComparisonJob;
use crate::check::{self, Measurement, Questions};
use crate::control::{Control, Notice, Run};
use crate::convert::together::Together;
use crate::disk::folder_of;
use crate::disk::partial::{PartialFile, refuse_existing};
use crate::eval::Method;
use crate::eval::gate::{self, Gates};
use crate::model::SourceModel;
use crate::report::{self, Report};
use crate::writer::places;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `quantize eval MODEL`: perplexity alone, or what an embedding model's vectors are like.
pub fn eval(args: EvalArgs) -> Result<()> {
    let control = start(&args.common, None)?;
    let terminal = Terminal::new(args.common.quiet);
    let run = Run::new(&control, &terminal);
    let read: Vec<&Path> = inputs(std::slice::from_ref(&args.model), &args.lora, &args.text, &args.tasks).collect();
    let saving = Saving::begin(&args.report, args.save_logits.as_deref(), &read, args.force, run)?;
    if args.text.text.len() > 1 {
        return Err(Error::Usage("eval takes one --text; compare takes several".into()));
    }
    if let Some(report) = saving.finished()? {
        return saving.show(&report, args.common.format, run);
    }
    let how = Measurement { adapter: args.lora.clone(), ..measurement(&args.text, args.text.text.first()) };
    let questions = questions(&args.tasks, &args.text, &args.lora);
    let answers = || check::answers(&args.model, &[], &questions, &control, &terminal);
    let (report, logits) = if how.text.is_none() && !questions.files.is_empty() {
        without_text(&args.text, &[("--save-logits", args.save_logits.is_some())])?;
        (answers()?, None)
    } else {
        let save = args.save_logits.as_deref();
        let (mut report, logits) = check::perplexity_with_logits(&args.model, &how, save, &control, &terminal)?;
        report.tasks = if questions.files.is_empty() { Vec::new() } else { answers()?.tasks };
        (report, logits)
    };
    saving.finish(&named(report), logits, args.common.format, run)
}

/// `quantize compare BASE Q...`: everything said about each candidate against the base.
pub fn compare(args: CompareArgs) -> Result<()> {
    let control = start(&args.common, args.max_memory)?;
    let terminal = Terminal::new(args.common.quiet);
    let run = Run::new(&control, &terminal);
    let gates = gates(&args.gates)?;
    gates.check_limits()?;
    let read: Vec<&Path> = inputs(&args.models, &args.lora, &args.text, &args.tasks).collect();
    let saving = Saving::begin(&args.report, None, &read, args.force, run)?;
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
    if let Some(report) = saving.finished()? {
        saving.show(&report, args.common.format, run)?;
        return gate::verdict(&report.gates);
    }
    check_texts(&args, how)?;
    // First, since it can turn out that prompts do not fit the context.
    let continued = match (args.continuations, args.models.split_first()) {
        (Some(starts), Some((base, candidates))) => {
            let how = how(args.text.text.first());
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
        let answers = named(check::answers(base, candidates, &questions, &control, &terminal)?);
        let tasks = answers.tasks.clone();
        report.get_or_insert(answers).tasks = tasks;
    }
    let report = report.ok_or_else(|| Error::Internal("no text".into()))?;
    let outcome = gate::verdict(&report.gates);
    saving.finish(&report, None, args.common.format, run)?;
    outcome
}

/// `quantize job compare`: the comparison of the flags, cut into tasks.
pub fn comparison_in_tasks(args: &CompareArgs, tasks: usize, run: Run) -> Result<ComparisonJob> {
    let gates = gates(&args.gates)?;
    gates.check_limits()?;
    let read: Vec<&Path> = inputs(&args.models, &args.lora, &args.text, &args.tasks).collect();
    Saving::begin(&args.report, None, &read, true, run)?;
    let how = |text| Measurement { gates, adapter: args.lora.clone(), ..measurement(&args.text, Some(text)) };
    let how: Vec<Measurement> = args.text.text.iter().map(how).collect();
    if how.is_empty() {
        return Err(Error::Usage("a comparison in tasks needs a text: add --text FILE".into()));
    }
    let (base, candidates) = args.models.split_first().ok_or_else(|| Error::Internal("no base".into()))?;
    ComparisonJob::new((base, candidates), how, args.report.clone(), tasks, run)
}

/// `quantize job assemble` of a comparison: the report of what its tasks have left.
pub fn assembled(folder: &Path, job: &ComparisonJob, control: &Control, quiet: bool, format: Format) -> Result<()> {
    let terminal = Terminal::new(quiet);
    let run = Run::new(control, &terminal);
    let texts = job.how.iter().flat_map(|how| how.text.iter().chain(&how.adapter));
    let read: Vec<&Path> =
        std::iter::once(&job.base).chain(&job.candidates).chain(texts).map(PathBuf::as_path).collect();
    let saving = Saving::begin(&job.reports, None, &read, control.force, run)?;
    let report = match saving.finished()? {
        Some(report) => {
            saving.show(&report, format, run)?;
            return gate::verdict(&report.gates);
        }
        None => named(check::job::assemble(folder, job, control, &terminal)?),
    };
    let outcome = gate::verdict(&report.gates);
    saving.finish(&report, None, format, run)?;
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
    let (shown, files): (Vec<_>, Vec<_>) = args.to.iter().cloned().partition(|to| is_ending(to));
    if shown.len() > 1 {
        return Err(Error::Usage("only one form can be printed; give the others files".into()));
    }
    let (control, terminal) = (Control::default(), Terminal::new(args.common.quiet));
    let run = Run::new(&control, &terminal);
    let piped = is_stream(&args.file);
    let read = [args.file.as_path()];
    let saving = Saving::begin(&files, None, if piped { &[] } else { &read }, args.force, run)?;
    let text = match piped {
        true => std::io::read_to_string(std::io::stdin()).map_err(|e| Error::io(&args.file, e))?,
        false => crate::input::read_text(&args.file)?,
    };
    let report = Report::from_json(&text).map_err(|e| e.in_file(&args.file))?;
    match shown.first() {
        Some(ending) => {
            print(&form(&Path::new("report").with_extension(ending))?(&report)?)?;
            saving.save(&report, None, run)
        }
        None => saving.finish(&report, None, args.common.format, run),
    }
}

/// What a measurement reads.
fn inputs<'a>(
    models: &'a [PathBuf],
    adapter: &'a Option<PathBuf>,
    text: &'a TextArgs,
    tasks: &'a TaskArgs,
) -> impl Iterator<Item = &'a Path> {
    models.iter().chain(adapter).chain(&text.text).chain(&tasks.task).map(PathBuf::as_path)
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

/// The report with the command line that made it.
fn named(report: Report) -> Report {
    Report { command: words::command().join(" "), ..report }
}

/// The gates asked for on the command line.
pub fn gates(args: &GateArgs) -> Result<Gates> {
    let share = |flag: &str, text: &Option<String>, most: f64| match text {
        Some(text) => gate::parse_share(text, most).map(Some).map_err(|e| Error::Usage(format!("{flag}: {e}"))),
        None => Ok(None),
    };
    Ok(Gates {
        max_kld: args.max_kld,
        max_ppl_increase: share("--max-ppl-increase", &args.max_ppl_increase, f64::MAX)?,
        min_top1: share("--min-top1", &args.min_top1, 1.0)?,
        min_cosine: args.min_cosine,
    })
}

/// Where a report goes in every form asked for, and the logits it was made of. They get their names together.
pub struct Saving<'a> {
    reports: &'a [PathBuf],
    /// All that is written.
    files: Vec<&'a Path>,
    together: Together,
    force: bool,
}

impl<'a> Saving<'a> {
    /// Checks the names against each other and against what is `read`, before anything is measured.
    ///
    /// # Errors
    /// `Usage` for a name without a known ending; `Request`; `Exists`; those of bringing an interrupted run to its end.
    fn begin(
        reports: &'a [PathBuf],
        logits: Option<&'a Path>,
        read: &[&Path],
        force: bool,
        run: Run,
    ) -> Result<Saving<'a>> {
        reports.iter().try_for_each(|path| check_name(path, None))?;
        let files: Vec<&Path> = logits.into_iter().chain(reports.iter().map(PathBuf::as_path)).collect();
        places::check(read.iter().copied(), files.iter().copied(), true)?;
        let together = Together::begin(&files, words::command_for_bytes().into(), read.iter().copied(), run)?;
        Saving { reports, files, together, force }.allowed()
    }

    /// The same for the report of a conversion to `output`.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn of_conversion(args: &'a ConvertArgs, run: Run) -> Result<Saving<'a>> {
        let reports = &args.report;
        reports.iter().try_for_each(|path| check_name(path, args.output.as_deref()))?;
        let files: Vec<&Path> = reports.iter().map(PathBuf::as_path).collect();
        let read: Vec<&Path> = read_by_conversion(args).chain(args.model.iter().map(Path::new)).collect();
        places::check(read.iter().copied(), files.iter().copied(), true)?;
        let together = match args.dry_run {
            true => Together::default(),
            false => Together::begin_beside_outputs(&files, words::command_for_bytes().into(), read, run)?,
        };
        Saving { reports, files, together, force: args.control.force }.allowed()
    }

    /// # Errors
    /// `Exists` for a file that may not be replaced.
    fn allowed(self) -> Result<Self> {
        self.files.iter().try_for_each(|file| refuse_existing(file, self.force || self.together.has(file)))?;
        Ok(self)
    }

    /// What an equal conversion had to say that had finished and could not say so.
    pub fn said(&self) -> Option<&Value> {
        self.together.said(&self.files)
    }

    /// Nothing is left to say.
    pub fn forget(mut self, run: Run) {
        self.together.forget(run);
    }

    /// The report of an equal run that had finished and could not say so.
    fn finished(&self) -> Result<Option<Report>> {
        self.together.said(&self.files).map(|said| Report::from_json(&said.to_string())).transpose()
    }

    /// Shows the report of that run.
    fn show(mut self, report: &Report, format: Format, run: Run) -> Result<()> {
        run.notice(Notice::Info("finished by the interrupted run".into()));
        print_report(report, format)?;
        self.together.forget(run);
        Ok(())
    }

    /// Saves the report, and shows it, whether it can be saved or not.
    fn finish(self, report: &Report, logits: Option<PartialFile>, format: Format, run: Run) -> Result<()> {
        let saved = self.save(report, logits, run);
        print_report(report, format)?;
        saved
    }

    fn save(self, report: &Report, logits: Option<PartialFile>, run: Run) -> Result<()> {
        let files = logits.into_iter().chain(self.written(report)?).collect();
        let said: Value = serde_json::from_str(&report.to_json()?).map_err(|e| Error::Internal(e.to_string()))?;
        self.together.publish(files, &said, run)?;
        self.reports.iter().for_each(|path| say!("wrote {}", path.display()));
        Ok(())
    }

    /// Saves the report of a conversion to `outputs`, which has `said` in the end.
    ///
    /// # Errors
    /// Those of writing and naming.
    pub fn save_beside(
        self,
        outputs: &[PathBuf],
        report: &Report,
        said: &Value,
        run: Run,
        end: impl FnOnce(),
    ) -> Result<()> {
        let files = self.written(report)?;
        self.together.publish_beside(outputs, files, said, run, end)?;
        self.reports.iter().for_each(|path| say!("wrote {}", path.display()));
        Ok(())
    }

    /// The report's files, which lack nothing but their names.
    fn written(&self, report: &Report) -> Result<Vec<PartialFile>> {
        let force = |path: &PathBuf| self.force || self.together.has(path);
        self.reports.iter().map(|path| PartialFile::holding(path, &form(path)?(report)?, force(path))).collect()
    }
}

fn print_report(report: &Report, format: Format) -> Result<()> {
    match format {
        Format::Text => print(&report::render_text(report)),
        Format::Json => print(&report.to_json()?),
    }
}

/// Endings of reports' names.
const ENDINGS: [&str; 4] = ["html", "md", "json", "txt"];

/// Whether a name is an ending alone.
pub fn is_ending(to: &Path) -> bool {
    ENDINGS.iter().any(|ending| to.as_os_str() == *ending)
}

/// How a report is written to a file.
type Form = fn(&Report) -> Result<String>;

/// The form that a file's name asks for.
///
/// # Errors
/// `Usage` for a name without a known ending.
fn form(path: &Path) -> Result<Form> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "htm") => Ok(report::render_html),
        Some("md" | "markdown") => Ok(report::render_markdown),
        Some("json") => Ok(Report::to_json),
        Some("txt") => Ok(|report| Ok(report::render_text(report))),
        _ => {
            let endings = ENDINGS.map(|ending| format!(".{ending}")).join(", ");
            Err(Error::Usage(format!("{}: a report's name ends in one of {endings}", path.display())))
        }
    }
}

/// That the name says which form it is to have, and that there is its folder, unless the run makes it (`output`).
fn check_name(path: &Path, output: Option<&Path>) -> Result<()> {
    form(path)?;
    let folder = folder_of(path);
    let is_made = output.is_some_and(|output| output.components().eq(folder.components()));
    if !is_made && !folder.is_dir() {
        return Err(Error::Usage(format!("{}: there is no folder {}", path.display(), folder.display())));
    }
    Ok(())
}

pub fn start(common: &CommonArgs, max_memory: Option<u64>) -> Result<Control> {
    catch_interrupt()?;
    let threads = options::threads(common.threads)?;
    Ok(Control { threads, max_memory, cancel: CANCEL.clone(), ..Control::default() })
}
