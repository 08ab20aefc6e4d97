//! Models measured by questions with several answers: one model in memory at a time, each with its own tokenizer, and
//! what candidates answer beside what the base does.

use super::machine;
use super::turns::{self, Simulated};
use crate::clock::{now, strftime};
use crate::control::{self, Control, Run, Unit};
use crate::eval::tasks::{self, Answer, Task, paired, share};
use crate::eval::{KvCache, Runnable};
use crate::model::name_of;
use crate::report::{self, Answered, Artifact, Report, TaskResult};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is asked, and of which models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Questions {
    /// Files of questions, in any of the forms of [`crate::eval::tasks`].
    pub files: Vec<PathBuf>,
    /// At most so many of each file, spread evenly over it; `None`: all.
    pub most: Option<usize>,
    /// A LoRA adapter that is merged into the base.
    pub adapter: Option<PathBuf>,
    /// Round activations to 8 bits before products with quantized weights.
    pub rounded_activations: bool,
    /// Round keys and values as an engine does that keeps them in these types: the candidates', or of a model alone.
    pub kv_cache: Option<KvCache>,
}

/// How many questions the base and each candidate answer rightly, with intervals, and the paired differences. The report
/// has results of questions and none of text; its `command` is empty, for the caller to fill.
///
/// # Errors
/// `BadInput` for a file in no known form, a broken question, one longer than a model's context, and what is wrong with a
/// model; `Unsupported`; `Io`; `Interrupted`.
pub fn answers(
    base: &Path,
    candidates: &[PathBuf],
    questions: &Questions,
    control: &Control,
    report: &dyn control::Report,
) -> Result<Report> {
    let (begin, run) = (Instant::now(), Run::new(control, report));
    let mut tasks = questions.files.iter().map(|path| tasks::open(path)).collect::<Result<Vec<Task>>>()?;
    tasks.iter_mut().for_each(|task| task.thin(questions.most.unwrap_or(usize::MAX)));
    let asked: usize = tasks.iter().map(|task| task.questions.len()).sum();

    let mut artifacts: Vec<Artifact> = Vec::new();
    // By model, then by task.
    let mut answers: Vec<Vec<Vec<Answer>>> = Vec::new();
    let _phase = run.phase("answering", (asked * (candidates.len() + 1)) as u64, Unit::Questions);
    for (i, path) in std::iter::once(base).chain(candidates.iter().map(PathBuf::as_path)).enumerate() {
        let adapter = questions.adapter.as_deref().filter(|_| i == 0);
        let is_base = i == 0 && !candidates.is_empty();
        let kv_cache = questions.kv_cache.filter(|_| !is_base);
        let simulated = Simulated { activations: questions.rounded_activations, kv_cache };
        let mut model = turns::open(path, adapter, simulated, run)?;
        model.model.config.ending.needs_logits("a question").map_err(|e| e.in_file(path))?;
        artifacts.push(model.artifact.clone());
        let of_file = |(task, file): (&Task, &PathBuf)| all(&mut model, task, run).map_err(|e| e.in_file(file));
        answers.push(tasks.iter().zip(&questions.files).map(of_file).collect::<Result<_>>()?);
    }
    turns::unique_names(artifacts.iter_mut().skip(1));

    let mut report = Report::new("");
    report.created = strftime("%Y-%m-%dT%H:%M:%SZ", now());
    for (t, (task, file)) in tasks.iter().zip(&questions.files).enumerate() {
        let of_base = &answers[0][t];
        report.tasks.push(TaskResult {
            file: file.display().to_string(),
            sha256: task.sha256.clone(),
            kind: task.kind,
            questions: task.questions.len(),
            chance: task.chance(),
            base: answered(of_base),
            candidates: answers[1..].iter().map(|of| beside(of_base, &of[t])).collect(),
        });
    }
    let mut artifacts = artifacts.into_iter();
    if let Some(artifact) = artifacts.next() {
        report.source = Some(Artifact { name: name_of(base), ..artifact.clone() });
        report.base = Some(report::Base { artifact, ..report::Base::default() });
    }
    report.candidates =
        artifacts.map(|artifact| report::Candidate { artifact, ..report::Candidate::default() }).collect();
    report.environment = machine::environment(run.threads(), begin);
    Ok(report)
}

/// The answers of a model to all questions of a task.
fn all(model: &mut Runnable, task: &Task, run: Run) -> Result<Vec<Answer>> {
    let context = model.model.config.context;
    let answers = tasks::answer(model, task, context, &mut |done| {
        run.advance(done as u64);
        run.check()
    })?;
    if answers.len() == task.questions.len() {
        Ok(answers)
    } else {
        Err(Error::Internal("a question was not answered".into()))
    }
}

fn answered(answers: &[Answer]) -> Answered {
    let right = answers.iter().filter(|a| a.right).count();
    Answered {
        accuracy: share(right, answers.len()),
        difference: None,
        p: None,
        same: None,
        answers: answers.iter().map(|a| a.chosen).collect(),
    }
}

fn beside(base: &[Answer], other: &[Answer]) -> Answered {
    let found = paired(base, other);
    Answered { difference: Some(found.difference), p: Some(found.p), same: Some(found.same), ..answered(other) }
}
