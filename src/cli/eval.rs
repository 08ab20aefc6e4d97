//! `quantize eval`, `quantize compare` and `quantize report`: what an artifact is worth, as text, JSON, HTML and Markdown,
//! and an exit code that says whether quality held. Also used after a conversion, for the gates there.

use super::args::{Activations, CommonArgs, Format, GateArgs, TextArgs};
use super::commands::{CompareArgs, EvalArgs, ReportArgs};
use super::interrupt;
use super::interrupt::CANCEL;
use super::options;
use super::output::print;
use super::progress::Terminal;
use super::turns::{self, Entrant};
use crate::calibration::{stats, totals};
use crate::control::{Control, Notice, Run, Unit};
use crate::eval::ablation::ablate as ablate_groups;
use crate::eval::bootstrap::{self, Bootstrap};
use crate::eval::gate::{self, Gates};
use crate::eval::klbase::{FLOOR, KlBaseReader, KlBaseWriter};
use crate::eval::text::Corpus;
use crate::eval::{self, Base, Candidate, Method, Options, Runnable, Windows};
use crate::infer::Cache;
use crate::model::{Model, name_of};
use crate::report::{self, Environment, MethodInfo, Report};
use crate::source::Checkpoint;
use crate::writer::atomic::{refuse_existing, write_text};
use crate::writer::places;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Chunks whose activations weigh the errors of the damage report.
const DAMAGE_CHUNKS: usize = 4;

/// `quantize eval MODEL`: perplexity alone.
pub fn eval(args: EvalArgs) -> Result<()> {
    let threads = start(&args.common)?;
    let begin = Instant::now();
    let outputs = args.save_logits.iter().chain(&args.report).map(PathBuf::as_path);
    places::check(inputs(std::slice::from_ref(&args.model), &args.text), outputs, args.force)?;
    let mut base = turns::open(&args.model, args.text.activations, args.common.quiet)?;
    let text = Prepared::new(&base, &args.text)?;
    let save = match &args.save_logits {
        Some(path) => Some(KlBaseWriter::create(path, &text.windows, eval::Logits::vocab(&base), &text.stream)?),
        None => None,
    };
    let (control, terminal) = watched(threads, args.common.quiet);
    let run = Run::new(&control, &terminal);
    let phase = run.phase("evaluating", text.windows.covered_tokens() as u64, Unit::Tokens);
    let artifact = base.artifact.clone();
    let comparison = {
        let model = Candidate { name: artifact.name.clone(), model: &mut base };
        text.compare(Base::Model(model), &mut [], save, None, run)?
    };
    drop(phase);
    let ppl = bootstrap::perplexity(&comparison.base, comparison.chunks, Bootstrap::default());
    let mut report = text.report(threads, begin);
    report.source = Some(report::Artifact { name: name_of(&args.model), ..artifact.clone() });
    report.base = Some(report::Base { artifact, ppl: Some(ppl) });
    finish(&report, &args.report, args.common.format, args.force)
}

/// `quantize compare BASE Q...`: everything said about each candidate against the base.
pub fn compare(args: CompareArgs) -> Result<()> {
    let threads = start(&args.common)?;
    let gates = gates(&args.gates)?;
    places::check(inputs(&args.models, &args.text), args.report.iter().map(PathBuf::as_path), args.force)?;
    let ablate = args.ablate.then_some(args.ablate_chunks);
    let report = measure(&args.models, &args.text, &gates, ablate, args.max_memory, threads, args.common.quiet)?;
    let outcome = gate::verdict(&report.gates);
    finish(&report, &args.report, args.common.format, args.force)?;
    outcome
}

/// `quantize report saved.json`: the same report in another form.
pub fn render(args: ReportArgs) -> Result<()> {
    places::check([args.file.as_path()], args.to.iter().map(PathBuf::as_path), args.force)?;
    let text = crate::input::read_text(&args.file)?;
    let report = Report::from_json(&text).map_err(|e| e.in_file(&args.file))?;
    finish(&report, &args.to, args.common.format, args.force)
}

/// What a measurement reads.
fn inputs<'a>(models: &'a [PathBuf], text: &'a TextArgs) -> impl Iterator<Item = &'a Path> {
    models.iter().chain(&text.text).map(PathBuf::as_path)
}

/// Runs the base and every candidate over one token stream. `models[0]` is the base. With `ablate`, also the base with one
/// group of each candidate's tensors at a time, on so many chunks.
pub fn measure(
    models: &[PathBuf],
    text: &TextArgs,
    gates: &Gates,
    ablate: Option<usize>,
    max_memory: Option<u64>,
    threads: usize,
    quiet: bool,
) -> Result<Report> {
    let begin = Instant::now();
    let [base_path, candidate_paths @ ..] = models else {
        return Err(Error::Usage("compare needs a base and at least one candidate".into()));
    };
    // A stored base has its own tokens; otherwise the base's tokenizer makes them.
    let stored = if is_base_file(base_path) { Some(KlBaseReader::open(base_path)?) } else { None };
    let mut base = match &stored {
        Some(_) => None,
        None => Some(turns::open(base_path, text.activations, quiet)?),
    };
    let (prepared, sizes) = match (&base, &stored) {
        (Some(base), _) => (Prepared::new(base, text)?, (base.engine.config.vocab, base.engine.config.hidden)),
        (None, Some(stored)) => {
            let first = candidate_paths.first().map(|path| Runnable::open_idle(path)).transpose()?;
            let first = first.ok_or_else(|| Error::Usage("compare needs a base and at least one candidate".into()))?;
            let prepared = Prepared::stored(stored, &first, base_path, text.activations)?;
            (prepared, (stored.vocab(), first.engine.config.hidden))
        }
        (None, None) => return Err(Error::Internal("no base".into())),
    };
    let turn = turns::plan(candidate_paths, &prepared.windows, sizes, max_memory)?;
    let mut candidates: Vec<Entrant> = Vec::with_capacity(candidate_paths.len());
    for path in candidate_paths {
        let model = match turn {
            None => turns::open(path, text.activations, quiet)?,
            Some(_) => Runnable::open_idle(path)?,
        };
        if let Some(base) = &base {
            same_tokens(base, &model, &prepared)?;
        }
        candidates.push(match turn {
            None => Entrant::loaded(path, model, text.activations),
            Some(_) => Entrant::idle(path, &model, text.activations),
        });
    }
    unique_names(&mut candidates);
    gates.check_size(prepared.windows.scored_tokens(), prepared.windows.count)?;
    // The base counts as a run even where its logits are read from a file.
    let total = (prepared.windows.covered_tokens() * (candidates.len() + 1)) as u64;
    let (control, terminal) = watched(threads, quiet);
    let run = Run::new(&control, &terminal);
    let phase = run.phase("comparing", total, Unit::Tokens);
    let base_artifact = base.as_ref().map(|b| b.artifact.clone());
    let comparison = {
        let mut rows: Vec<Candidate> = candidates
            .iter_mut()
            .map(|model| Candidate { name: model.artifact.name.clone(), model: model as &mut dyn eval::Logits })
            .collect();
        let from = match (&mut base, stored) {
            (Some(base), _) => {
                let name = base.artifact.name.clone();
                Base::Model(Candidate { name, model: base })
            }
            (None, Some(stored)) => Base::File(Box::new(stored)),
            (None, None) => return Err(Error::Internal("no base".into())),
        };
        prepared.compare(from, &mut rows, None, turn, run)?
    };
    drop(phase);
    let artifacts: Vec<_> = candidates.iter().map(|c| c.artifact.clone()).collect();
    let (statistics, pairs) = comparison.summarize(Bootstrap::default());
    let mut report = prepared.report(threads, begin);
    report.source = base_artifact.clone().map(|a| report::Artifact { name: name_of(base_path), ..a });
    report.base = Some(report::Base {
        artifact: base_artifact.unwrap_or_else(|| report::Artifact {
            name: "base".into(),
            path: base_path.display().to_string(),
            format: "logits".into(),
            ..report::Artifact::default()
        }),
        ppl: Some(bootstrap::perplexity(&comparison.base, comparison.chunks, Bootstrap::default())),
    });
    report.pairs = pairs;
    for (artifact, stats) in artifacts.into_iter().zip(statistics) {
        report.gates.extend(gates.judge(&artifact.name, &stats, prepared.windows.count)?);
        report.candidates.push(report::Candidate { artifact, stats: Some(stats), ..report::Candidate::default() });
    }
    let Some(mut base) = base else {
        return match ablate {
            Some(_) => Err(Error::Usage("--ablate needs the base model itself, not its stored logits".into())),
            None => Ok(report),
        };
    };
    let seen = activations(&base, &prepared)?;
    let mut twin = ablate.map(|_| turns::open(base_path, text.activations, quiet)).transpose()?;
    for (candidate, row) in candidates.iter_mut().zip(&mut report.candidates) {
        // The damage is read from the file.
        let ckpt = Checkpoint::open(&candidate.path)?;
        let model = Model::open(&ckpt)?;
        let (from, to) = ((&*base.ckpt, &*base.model), (&ckpt, &model));
        let power = |name: &str| seen.get(name).map(Vec::as_slice);
        row.tensors = eval::damage::measure(from, to, &power, &CANCEL)?;
        if let (Some(twin), Some(chunks)) = (&mut twin, ablate) {
            if eval::damage::transform(from, to)?.is_some() {
                let text = "its channels are scaled or sorted, so no group of its tensors fits the base alone";
                run.notice(Notice::About { output: row.artifact.name.clone(), text: text.into() });
                continue;
            }
            let count = chunks.clamp(1, prepared.windows.count);
            let windows = Windows { count, ..prepared.windows.clone() };
            row.ablation = ablate_groups(&mut base, twin, candidate.model()?, &prepared.stream, &windows, &CANCEL)?;
            eval::Logits::release(candidate);
        }
    }
    report.environment.seconds = begin.elapsed().as_secs_f64();
    report.environment.peak_rss = peak_rss();
    Ok(report)
}

/// What the base's linear layers see in the first chunks of the text: the weights of the damage report.
fn activations(base: &Runnable, text: &Prepared) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut seen = stats::Statistics::new(&base.model);
    for window in text.windows.iter().take(DAMAGE_CHUNKS) {
        let tokens = text.windows.input(&text.stream, window);
        let hidden = base.engine.hidden(&tokens, &mut Cache::one_batch(tokens.len()), &mut seen)?;
        base.engine.head(&hidden[..base.engine.config.hidden], &mut seen);
        seen.check()?;
    }
    let sums = seen.totals().0.into_iter();
    Ok(sums.map(|(name, total)| (name, total.sums.into_iter().map(totals::double).collect())).collect())
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
    })
}

/// Saves the report in every form asked for and prints it.
fn finish(report: &Report, files: &[PathBuf], format: Format, force: bool) -> Result<()> {
    save(report, files, force)?;
    match format {
        Format::Text => print(&report::render_text(report)),
        Format::Json => print(&report.to_json()?),
    }
}

/// Who hears of a comparison.
fn watched(threads: usize, quiet: bool) -> (Control, Terminal) {
    (Control { threads, cancel: CANCEL.clone(), ..Control::default() }, Terminal::new(quiet))
}

/// That a report can be written to `path`, before anything is measured.
///
/// # Errors
/// `Usage` for a name without a known ending; `Exists`.
pub fn check_report(path: &Path, force: bool) -> Result<()> {
    let known = ["html", "htm", "md", "markdown", "json", "txt"];
    if !path.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e)) {
        let what = format!("{}: a report's name ends in .html, .md, .json or .txt", path.display());
        return Err(Error::Usage(what));
    }
    refuse_existing(path, force)
}

/// Writes the report in every form asked for.
pub fn save(report: &Report, files: &[PathBuf], force: bool) -> Result<()> {
    for path in files {
        let text = match path.extension().and_then(|e| e.to_str()) {
            Some("html" | "htm") => report::render_html(report),
            Some("md" | "markdown") => report::render_markdown(report),
            Some("json") => report.to_json()?,
            Some("txt") => report::render_text(report),
            _ => {
                let what = format!("{}: a report's name ends in .html, .md, .json or .txt", path.display());
                return Err(Error::Usage(what));
            }
        };
        write_text(path, &text, force)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

fn start(common: &CommonArgs) -> Result<usize> {
    interrupt::catch_interrupt()?;
    options::threads(common.threads)
}

/// A file of llama-perplexity's `--kl-divergence-base`, by its first bytes.
fn is_base_file(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0u8; 8];
    let read = crate::input::open(path).map(|mut f| f.read_exact(&mut magic).is_ok());
    matches!(read, Ok(true)) && &magic == b"_logits_"
}

/// Candidates of one type are told apart by their files' names, and these by as much of their paths as it takes.
fn unique_names(candidates: &mut [Entrant]) {
    let known: Vec<(String, String)> =
        candidates.iter().map(|c| (c.artifact.name.clone(), c.artifact.path.clone())).collect();
    for (candidate, name) in candidates.iter_mut().zip(told_apart(&known)) {
        candidate.artifact.name = name;
    }
}

/// A name for each `(name, path)`: its own, or the last parts of the path, as many as make all different.
fn told_apart(known: &[(String, String)]) -> Vec<String> {
    let tail = |path: &str, parts: usize| -> String {
        let all: Vec<_> = Path::new(path).components().map(|c| c.as_os_str().to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let longest = known.iter().map(|(_, path)| Path::new(path).components().count()).max().unwrap_or(0);
    let named = |(name, path): &(String, String)| {
        let alike = || known.iter().filter(|(n, p)| n == name && p != path);
        if alike().next().is_none() {
            return name.clone();
        }
        let parts = (1..longest).find(|n| alike().all(|(_, p)| tail(p, *n) != tail(path, *n)));
        tail(path, parts.unwrap_or(longest))
    };
    known.iter().map(named).collect()
}

/// A candidate must read the text as the base does, or the comparison means nothing.
fn same_tokens(base: &Runnable, candidate: &Runnable, text: &Prepared) -> Result<()> {
    let path = &candidate.artifact.path;
    let (theirs, ours) = (candidate.engine.config.vocab, base.engine.config.vocab);
    if theirs != ours {
        let what = format!("its vocabulary has {theirs} tokens, the base's {ours}: it is another model");
        return Err(Error::bad_file(path, what).hint("compare a model with quantizations of itself"));
    }
    if text.corpus.tokens(candidate)? != text.stream {
        return Err(Error::bad_file(path, "its tokenizer reads the text as other tokens than the base's")
            .hint("the file was converted with another tokenizer or pre-tokenizer; convert it again"));
    }
    Ok(())
}

/// A text as one token stream, and the windows over it.
struct Prepared {
    corpus: Corpus,
    path: PathBuf,
    stream: Vec<u32>,
    windows: Windows,
    activations: Activations,
}

impl Prepared {
    fn new(model: &Runnable, args: &TextArgs) -> Result<Self> {
        let path = match &args.text {
            Some(path) => path.clone(),
            None => return Err(Error::Usage("no text to evaluate on; give --text FILE".into())),
        };
        let corpus = Corpus::open(&path)?;
        let stream = corpus.tokens(model)?;
        let method = match args.stride {
            Some(stride) => Method::Strided { ctx: args.ctx, stride },
            None => Method::LlamaCpp { ctx: args.ctx },
        };
        let windows = Windows::plan(method, stream.len(), args.chunks, eval::text::Encoder::bos(model))?;
        if args.ctx > model.engine.config.context {
            let what =
                format!("--ctx {} is more than the model's context of {}", args.ctx, model.engine.config.context);
            return Err(Error::Usage(what));
        }
        Ok(Self { corpus, path, stream, windows, activations: args.activations })
    }

    fn stored(base: &KlBaseReader, model: &Runnable, path: &Path, activations: Activations) -> Result<Self> {
        let corpus = Corpus { format: "tokens", documents: Vec::new(), sha256: String::new() };
        let windows = base.windows(eval::text::Encoder::bos(model));
        Ok(Self { corpus, path: path.to_path_buf(), stream: base.tokens().to_vec(), windows, activations })
    }

    fn compare(
        &self,
        base: Base,
        candidates: &mut [Candidate],
        save_base: Option<KlBaseWriter>,
        turn: Option<usize>,
        run: Run,
    ) -> Result<eval::Comparison> {
        let per_chunk = (self.windows.covered_tokens() / self.windows.count.max(1)) as u64;
        let mut on_progress = |_: &eval::Progress| {
            run.advance(per_chunk);
            run.check()
        };
        let options = Options { save_base, progress: Some(&mut on_progress) };
        eval::compare_in_turns(base, candidates, &self.stream, &self.windows, options, turn)
    }

    fn report(&self, threads: usize, begin: Instant) -> Report {
        let mut report = Report::new(command_line());
        report.created = now();
        let method = self.windows.method;
        report.method = Some(MethodInfo {
            name: method.name().into(),
            ctx: method.ctx(),
            stride: method.stride(),
            chunks: self.windows.count,
            tokens: self.windows.scored_tokens(),
            text: self.path.display().to_string(),
            text_sha256: self.corpus.sha256.clone(),
            text_format: self.corpus.format.into(),
            bos: self.windows.bos,
            activations: if self.activations == Activations::Q8 { "q8" } else { "f32" }.into(),
            kl_floor: matches!(method, Method::LlamaCpp { .. }).then_some(f64::from(FLOOR)),
            bootstrap: Bootstrap::default(),
        });
        report.environment = Environment {
            os: std::env::consts::OS.into(),
            cpu: cpu_name(),
            threads,
            seconds: begin.elapsed().as_secs_f64(),
            peak_rss: peak_rss(),
        };
        report
    }
}

/// The command line that made the report; what is no UTF-8 becomes �.
fn command_line() -> String {
    std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// UTC, RFC 3339, from the seconds since 1970 (days to a civil date after Howard Hinnant).
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// Largest resident memory of this process so far, where the system tells.
fn peak_rss() -> u64 {
    turns::kibibytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::told_apart;

    #[test]
    fn candidates_of_one_name_are_told_apart() {
        let names = |all: &[(&str, &str)]| {
            told_apart(&all.iter().map(|(n, p)| (n.to_string(), p.to_string())).collect::<Vec<_>>())
        };
        assert_eq!(names(&[("Q4_K_M", "a/x.gguf"), ("Q6_K", "a/y.gguf")]), ["Q4_K_M", "Q6_K"]);
        assert_eq!(names(&[("Q4_K_M", "a/x.gguf"), ("Q4_K_M", "a/y.gguf")]), ["x.gguf", "y.gguf"]);
        let same = [("Q4_K_M", "m/a/x.gguf"), ("Q4_K_M", "m/b/x.gguf"), ("Q4_K_M", "m/b/y.gguf"), ("F16", "z")];
        assert_eq!(names(&same), ["a/x.gguf", "b/x.gguf", "y.gguf", "F16"]);
        assert_eq!(names(&[("Q8_0", "x.gguf"), ("Q8_0", "x.gguf")]), ["Q8_0", "Q8_0"]);
    }
}
