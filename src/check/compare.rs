//! The measurement itself: opens base and candidates, runs them over one token stream, and gathers what a report shows.

use super::measurement::Measurement;
use super::text::Prepared;
use super::turns::{self, Entrant, Simulated};
use super::{machine, origin, vectors};
use crate::calibration::{stats, totals};
use crate::control::{self, Control, Notice, Run, Unit};
use crate::convert::stream::source_bytes;
use crate::disk::partial::PartialFile;
use crate::eval::ablation::ablate;
use crate::eval::bootstrap::{self, Bootstrap};
use crate::eval::cosine::{Compared, Cosines, Embedder};
use crate::eval::klbase::{KlBaseReader, KlBaseWriter};
use crate::eval::positions;
use crate::eval::{self, Base, Candidate, Gates, Logits, Runnable, Vectors, Windows};
use crate::infer::Cache;
use crate::model::config::{Ending, Pooling};
use crate::model::{Model, SourceModel, name_of};
use crate::report::{self, Artifact, Report};
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Windows whose activations weigh the errors of the damage report.
const DAMAGE_WINDOWS: usize = 4;

/// The perplexity of one model; of one without a head, what its vectors of the text's windows are like. With `save_logits`,
/// its logits go to a file of that name, in the form of llama-perplexity's `--kl-divergence-base`, which [`compare`] takes
/// in place of the model.
///
/// The report has a base and no candidates; its `command` is empty, for the caller to fill. Gates and ablation have no
/// meaning here.
///
/// # Errors
/// `Request` for a method that scores nothing or windows longer than the model's context; `BadInput` for a text that is
/// too short, and for what is wrong with the model; `Unsupported`; `Io`; `Interrupted`.
pub fn perplexity(
    model: &Path,
    how: &Measurement,
    save_logits: Option<&Path>,
    control: &Control,
    report: &dyn control::Report,
) -> Result<Report> {
    let (report, stored) = perplexity_with_logits(model, how, save_logits, control, report)?;
    stored.map_or(Ok(()), PartialFile::finish)?;
    Ok(report)
}

/// The same, where the caller gives the file of logits its name.
pub(crate) fn perplexity_with_logits(
    model: &Path,
    how: &Measurement,
    save_logits: Option<&Path>,
    control: &Control,
    report: &dyn control::Report,
) -> Result<(Report, Option<PartialFile>)> {
    let (begin, run) = (Instant::now(), Run::new(control, report));
    let source = SourceModel::open_merged(model, how.adapter.as_deref())?.to_run()?;
    if let Ending::Vectors(pooling) = source.model.config.ending {
        if save_logits.is_some() {
            source.model.config.ending.needs_logits("a file of logits")?;
        }
        return Ok((vectors::facts(&source, pooling, how, begin, run)?, None));
    }
    let text = Prepared::new(&source, how)?;
    let mut base = turns::load(&source, Simulated::of(how), run)?;
    let save = save_logits.map(|path| KlBaseWriter::create(path, &text.windows, base.vocab(), &text.stream));
    let save = save.transpose()?;
    let artifact = base.artifact.clone();
    let mut comparison = {
        let _phase = run.phase("evaluating", text.windows.covered_tokens() as u64, Unit::Tokens);
        let model = Candidate { name: artifact.name.clone(), model: &mut base };
        text.compare(Base::Model(model), &mut [], save, None, run)?
    };
    let mut report = text.report();
    report.source = Some(Artifact { name: name_of(model), ..artifact.clone() });
    report.base = Some(measured_base(artifact, &comparison));
    report.environment = machine::environment(run.threads(), begin);
    Ok((report, comparison.stored.take()))
}

/// Everything that is said about each candidate against the base: KL divergence, perplexity and agreement with their
/// intervals, or of models without a head the cosines between vectors; the damage of every tensor, and the verdicts of the
/// gates. `base` is a model, or a file of its logits. A gate that fails is a verdict in the report, and no error.
///
/// Candidates that do not fit into memory together are loaded in turn; [`Control::max_memory`] is what the whole process
/// may take, in bytes. The report's `command` is empty, for the caller to fill.
///
/// # Errors
/// As [`perplexity`]; also `Request` for too little memory, gates out of range, and an ablation of stored logits;
/// `BadInput` for models that read the text as other tokens than the base, and for a text too short to judge the gates.
///
/// ```
/// use quantize::check::{self, Measurement};
/// use quantize::{Control, convert::{self, Recipe}, eval::Method, model::SourceModel};
///
/// let folder = tempfile::tempdir().unwrap();
/// let base = std::path::Path::new("tests/conformance/llama");
/// let mut plan = convert::plan(&SourceModel::open(base)?, &Recipe::to(["q8_0"])?)?;
/// plan.place(folder.path())?;
/// let made = convert::run(&plan, &Control::default(), &())?.outputs[0].paths.clone();
///
/// let text = folder.path().join("text.txt");
/// std::fs::write(&text, "It was a bright cold day in April. ".repeat(4)).unwrap();
/// let how = Measurement { method: Method::LlamaCpp { ctx: 16 }, ..Measurement::on(&text) };
/// let report = check::compare(base, &made, &how, &Control::default(), &())?;
/// assert!(report.candidates[0].stats.as_ref().unwrap().kld.value < 0.1);
/// # Ok::<(), quantize::Error>(())
/// ```
pub fn compare(
    base: &Path,
    candidates: &[PathBuf],
    how: &Measurement,
    control: &Control,
    report: &dyn control::Report,
) -> Result<Report> {
    let (begin, run) = (Instant::now(), Run::new(control, report));
    let mut field = Field::open(base, candidates, how, Share::All, run)?;
    let report = match field.pooling() {
        None => {
            let comparison = field.run(run)?;
            field.by_logits(base, how, &comparison)?
        }
        Some(pooling) => field.by_vectors(base, pooling, how, run)?,
    };
    field.ended(report, how, begin, run)
}

/// What some windows of the text give: a part of [`compare`].
///
/// # Errors
/// As [`compare`]; `BadInput` for windows that there are not.
pub(super) fn part(
    base: &Path,
    candidates: &[PathBuf],
    how: &Measurement,
    windows: Range<usize>,
    run: Run,
) -> Result<eval::Comparison> {
    Field::open(base, candidates, how, Share::Windows(windows), run)?.run(run)
}

/// The rest of it, of all parts together.
///
/// # Errors
/// As [`compare`].
pub(super) fn whole(
    base: &Path,
    candidates: &[PathBuf],
    how: &Measurement,
    comparison: &eval::Comparison,
    run: Run,
) -> Result<Report> {
    let begin = Instant::now();
    let field = Field::open(base, candidates, how, Share::Rest, run)?;
    let report = field.by_logits(base, how, comparison)?;
    field.ended(report, how, begin, run)
}

/// That a text does for a measurement: it is there, long enough for its windows, and for the gates.
///
/// # Errors
/// `Request` and `BadInput` as [`compare`] has them.
pub fn text_suffices(source: &SourceModel, how: &Measurement) -> Result<()> {
    sufficing(source, how).map(|_| ())
}

/// The text of a measurement, which does for it.
pub(super) fn sufficing(source: &SourceModel, how: &Measurement) -> Result<Prepared> {
    let ending = source.model.config.ending;
    how.gates.check_ending(ending)?;
    let text = Prepared::new(source, how)?;
    suffices(&text, ending, &how.gates)?;
    Ok(text)
}

fn suffices(text: &Prepared, ending: Ending, gates: &Gates) -> Result<()> {
    match ending {
        Ending::Logits => gates.check_size(text.windows.scored_tokens(), text.windows.count),
        Ending::Vectors(_) => gates.check_chunks(text.windows.count),
    }
}

fn measured_base(artifact: Artifact, comparison: &eval::Comparison) -> report::Base {
    let ppl = bootstrap::perplexity(&comparison.base, comparison.chunks, Bootstrap::default());
    report::Base { artifact, ppl: Some(ppl), vectors: None }
}

/// What candidates are compared with.
enum Reference {
    Model(Box<Runnable>),
    /// Its logits alone; taken out when they are read.
    Logits(Option<Box<KlBaseReader>>),
}

/// What of a comparison is done.
enum Share {
    All,
    /// These windows are run.
    Windows(Range<usize>),
    /// What follows when all windows were run.
    Rest,
}

/// All that takes part in a comparison.
struct Field<'a> {
    path: &'a Path,
    base: Reference,
    /// The base model, whose tokenizer read the text.
    source: Option<SourceModel>,
    candidates: Vec<Entrant<'a>>,
    text: Prepared,
    /// As of [`eval::compare_in_turns`].
    turn: Option<usize>,
}

impl<'a> Field<'a> {
    /// Opens everything, and refuses what cannot be compared or judged.
    fn open(path: &'a Path, candidates: &[PathBuf], how: &Measurement, share: Share, run: Run<'a>) -> Result<Self> {
        let Some(first) = candidates.first() else {
            return Err(Error::request("a comparison needs a base and at least one candidate"));
        };
        // Seconds of loading the first are not spent on a second that is not there.
        candidates.iter().try_for_each(|path| Checkpoint::open(path).map(|_| ()))?;
        let simulated = Simulated::of(how);
        // A stored base has its own tokens; otherwise the base's tokenizer makes them.
        let mut opened = None;
        let (base, text, sizes) = match is_logits(path) {
            true if how.ablation.is_some() => {
                return Err(Error::request("an ablation needs the base model itself, not its stored logits"));
            }
            true if how.adapter.is_some() => {
                return Err(Error::request("an adapter is merged into the base model, not into its stored logits"));
            }
            true => {
                let (stored, model) = (KlBaseReader::open(path)?, Runnable::open_idle(first)?);
                model.engine.config.ending.needs_logits("a comparison with stored logits")?;
                how.gates.check_ending(Ending::Logits)?;
                let (text, vocab) = (Prepared::stored(&stored, &model, how), stored.vocab());
                (Reference::Logits(Some(Box::new(stored))), text, (vocab, model.engine.config.hidden))
            }
            false => {
                let source = SourceModel::open_merged(path, how.adapter.as_deref())?.to_run()?;
                let ending = source.model.config.ending;
                how.gates.check_ending(ending)?;
                if how.ablation.is_some() {
                    ending.needs_logits("an ablation")?;
                }
                // Whatever the text does not do for is said before a weight is read.
                let text = Prepared::new(&source, how)?;
                suffices(&text, ending, &how.gates)?;
                // Of vectors hardly anything is held.
                let vocab = if ending == Ending::Logits { source.model.config.vocab } else { 1 };
                let bytes = source_bytes(&source.ckpt, &source.model);
                turns::allow(bytes, candidates, &text.windows, vocab, run.control.max_memory)?;
                let model = turns::load(&source, Simulated::of_base(how), run)?;
                let sizes = (vocab, model.engine.config.hidden);
                opened = Some(source);
                (Reference::Model(Box::new(model)), text, sizes)
            }
        };
        let turn = match share {
            // Candidates are not run.
            Share::Rest => Some(1),
            _ => turns::plan(candidates, &text.windows, sizes, run.control.max_memory)?,
        };
        let mut entrants: Vec<Entrant> = Vec::with_capacity(candidates.len());
        for path in candidates {
            let model = match turn {
                None => turns::open(path, None, simulated, run)?,
                Some(_) => Runnable::open_idle(path)?,
            };
            if let Reference::Model(base) = &base {
                text.same_tokens(base, &model)?;
            }
            entrants.push(match turn {
                None => Entrant::loaded(path, model, simulated, run),
                Some(_) => Entrant::idle(path, &model, simulated, run),
            });
        }
        turns::unique_names(entrants.iter_mut().map(|entrant| &mut entrant.artifact));
        if opened.is_none() {
            suffices(&text, Ending::Logits, &how.gates)?;
        }
        let text = match share {
            Share::Windows(windows) => text.only(windows)?,
            Share::All | Share::Rest => text,
        };
        Ok(Self { path, base, source: opened, candidates: entrants, text, turn })
    }

    /// How the models make vectors of a text, where they give no logits.
    fn pooling(&self) -> Option<Pooling> {
        self.source.as_ref().and_then(|source| source.model.config.ending.pooling())
    }

    /// What is said beside what was measured.
    fn ended(mut self, mut report: Report, how: &Measurement, begin: Instant, run: Run) -> Result<Report> {
        self.origins(&mut report.candidates, run)?;
        self.damage(&mut report.candidates, how, run)?;
        report.environment = machine::environment(run.threads(), begin);
        Ok(report)
    }

    /// The report of a comparison by logits, as far as it is measured.
    fn by_logits(&self, base: &Path, how: &Measurement, comparison: &eval::Comparison) -> Result<Report> {
        let (statistics, pairs) = comparison.summarize(Bootstrap::default());
        let mut report = self.text.report();
        let artifact = match &self.base {
            Reference::Model(model) => model.artifact.clone(),
            Reference::Logits(_) => Artifact {
                name: "base".into(),
                path: base.display().to_string(),
                format: "logits".into(),
                ..Artifact::default()
            },
        };
        if let Reference::Model(_) = &self.base {
            report.source = Some(Artifact { name: name_of(base), ..artifact.clone() });
        }
        report.base = Some(measured_base(artifact, comparison));
        report.pairs = pairs;
        let scored = self.text.windows.method.scored();
        for ((candidate, stats), records) in self.candidates.iter().zip(statistics).zip(&comparison.candidates) {
            let artifact = candidate.artifact.clone();
            let positions = positions::by_position(records, scored.clone());
            report.gates.extend(how.gates.judge(&artifact.name, &stats, self.text.windows.count)?);
            let stats = Some(stats);
            report.candidates.push(report::Candidate { artifact, stats, positions, ..report::Candidate::default() });
        }
        Ok(report)
    }

    /// The same by vectors.
    fn by_vectors(&mut self, path: &Path, pooling: Pooling, how: &Measurement, run: Run) -> Result<Report> {
        let Reference::Model(base) = &mut self.base else {
            return Err(Error::Internal("vectors are not stored".into()));
        };
        let total = (self.text.windows.covered_tokens() * (self.candidates.len() + 1)) as u64;
        let (artifact, width) = (base.artifact.clone(), base.engine.vector_width());
        let compared = {
            let _phase = run.phase("comparing", total, Unit::Tokens);
            let mut base = Embedder { name: artifact.name.clone(), model: &mut **base };
            let mut rows: Vec<Embedder> = self
                .candidates
                .iter_mut()
                .map(|model| Embedder { name: model.artifact.name.clone(), model: model as &mut dyn Vectors })
                .collect();
            self.text.cosines(&mut base, &mut rows, run)?
        };
        let mut report = self.text.report_of_vectors();
        report.source = Some(Artifact { name: name_of(path), ..artifact.clone() });
        let vectors = report::OfVectors { width, pooling: pooling.name().into(), between: None };
        report.base = Some(report::Base { artifact, ppl: None, vectors: Some(vectors) });
        for (candidate, Compared { cosines: chunks, scores }) in self.candidates.iter().zip(compared) {
            let cosines = Cosines::of(&chunks, Bootstrap::default());
            if !cosines.mean.value.is_finite() {
                return Err(Error::bad_input(format!(
                    "{} gives vectors that are not numbers",
                    candidate.artifact.name
                )));
            }
            let artifact = candidate.artifact.clone();
            report.gates.extend(how.gates.judge_vectors(&artifact.name, &cosines, chunks.len())?);
            report.candidates.push(report::Candidate {
                artifact,
                cosine: Some(cosines),
                scores,
                ..report::Candidate::default()
            });
        }
        Ok(report)
    }

    /// Runs all of them over the text.
    fn run(&mut self, run: Run) -> Result<eval::Comparison> {
        // The base counts as a run even where its logits are read from a file.
        let total = (self.text.windows.covered_tokens() * (self.candidates.len() + 1)) as u64;
        let _phase = run.phase("comparing", total, Unit::Tokens);
        let rows = self.candidates.iter_mut();
        let mut rows: Vec<Candidate> = rows
            .map(|model| Candidate { name: model.artifact.name.clone(), model: model as &mut dyn Logits })
            .collect();
        let base = match &mut self.base {
            Reference::Model(base) => Base::Model(Candidate { name: base.artifact.name.clone(), model: &mut **base }),
            Reference::Logits(stored) => {
                Base::File(stored.take().ok_or_else(|| Error::Internal("logits are read once".into()))?)
            }
        };
        self.text.compare(base, &mut rows, None, self.turn, run)
    }

    /// How each candidate was made, as far as it says.
    fn origins(&self, rows: &mut [report::Candidate], run: Run) -> Result<()> {
        for (candidate, row) in self.candidates.iter().zip(rows) {
            let text = self.source.as_ref().map(|source| (source, self.text.stream.as_slice()));
            row.made = origin::of(&Checkpoint::open(&candidate.path)?, text, run);
        }
        Ok(())
    }

    /// How far every tensor is from the base's, and the ablation where one is asked for. Stored logits have no tensors.
    fn damage(&mut self, rows: &mut [report::Candidate], how: &Measurement, run: Run) -> Result<()> {
        let Reference::Model(base) = &mut self.base else { return Ok(()) };
        let (cancel, text) = (&run.control.cancel, &self.text);
        let seen = activations(base, text)?;
        let mut twin = match how.ablation {
            Some(_) => Some(turns::open(self.path, how.adapter.as_deref(), Simulated::of_base(how), run)?),
            None => None,
        };
        for (candidate, row) in self.candidates.iter_mut().zip(rows) {
            // The damage is read from the file.
            let ckpt = Checkpoint::open(&candidate.path)?;
            let model = Model::open(&ckpt)?;
            let (from, to) = ((&*base.ckpt, &*base.model), (&ckpt, &model));
            let power = |name: &str| seen.get(name).map(Vec::as_slice);
            row.tensors = eval::damage::measure(from, to, &power, cancel)?;
            let (Some(twin), Some(windows)) = (&mut twin, how.ablation) else { continue };
            if eval::damage::transform(from, to)?.is_some() {
                let text = "its channels are scaled or sorted, so no group of its tensors fits the base alone";
                run.notice(Notice::About { output: row.artifact.name.clone(), text: text.into() });
                continue;
            }
            let count = windows.clamp(1, text.windows.count);
            let windows = Windows { count, ..text.windows.clone() };
            row.ablation = ablate(base, twin, candidate.model()?, &text.stream, &windows, cancel)?;
            candidate.release();
        }
        Ok(())
    }
}

/// What the base's linear layers see in the first windows of the text: the weights of the damage report.
fn activations(base: &Runnable, text: &Prepared) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut seen = stats::Statistics::new(&base.model);
    for window in text.windows.iter().take(DAMAGE_WINDOWS) {
        let tokens = text.windows.input(&text.stream, window);
        let hidden = base.engine.hidden(&tokens, &mut Cache::one_batch(tokens.len()), &mut seen)?;
        if base.engine.config.ending == Ending::Logits {
            base.engine.head(&hidden[..base.engine.config.hidden], &mut seen);
        }
        seen.check()?;
    }
    let sums = seen.totals().0.into_iter();
    Ok(sums.map(|(name, total)| (name, total.sums.into_iter().map(totals::double).collect())).collect())
}

/// Whether it is a file of llama-perplexity's `--kl-divergence-base`, by its first bytes.
pub fn is_logits(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0u8; 8];
    let read = crate::input::open(path).map(|mut f| f.read_exact(&mut magic).is_ok());
    matches!(read, Ok(true)) && &magic == b"_logits_"
}
