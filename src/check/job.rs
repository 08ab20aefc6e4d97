//! A comparison in tasks: each runs the base and all candidates over some windows of a text, and leaves the records of every
//! position. They are put together in the order of the text, and the report is made of them as of one run's. See record 16.

use super::compare;
use super::measurement::Measurement;
use super::text::Prepared;
use crate::control::{Control, Report as Hears, Run};
use crate::convert::identity::Identity;
use crate::convert::job::{self, Done, Phase, Task, Tasks, Work};
use crate::disk::partial::PartialFile;
use crate::eval::compare::BATCH;
use crate::eval::{Comparison, Runnable};
use crate::isa::Isa;
use crate::model::SourceModel;
use crate::report::{self, Report};
use crate::source::{Checkpoint, sha256_file};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KIND: &str = "quantize comparison 1";

/// A comparison that is cut into tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparisonJob {
    kind: String,
    /// Where relative names are of.
    pub directory: PathBuf,
    /// The model that the others are made from.
    pub base: PathBuf,
    /// What is compared with it.
    pub candidates: Vec<PathBuf>,
    /// One of each text.
    pub how: Vec<Measurement>,
    /// Where the report goes.
    pub reports: Vec<PathBuf>,
    /// Program, instruction set, models and texts.
    identity: Value,
    phases: Vec<Phase>,
    tasks: Vec<Task>,
}

impl ComparisonJob {
    /// Cuts a comparison on the texts of `how` into about so many tasks.
    ///
    /// # Errors
    /// `Unsupported` for what is not cut: stored logits, models without a head, an ablation; as [`super::compare`] for all that can be
    /// known before a model runs.
    pub fn new(
        (base, candidates): (&Path, &[PathBuf]),
        how: Vec<Measurement>,
        reports: Vec<PathBuf>,
        tasks: usize,
        run: Run,
    ) -> Result<Self> {
        let whole =
            |what: &str| Error::unsupported(format!("{what} is not cut into tasks")).hint("run it on one machine");
        if compare::is_logits(base) {
            return Err(whole("a comparison with stored logits"));
        }
        if how.iter().any(|how| how.ablation.is_some()) {
            return Err(whole("an ablation"));
        }
        let Some(first) = how.first() else { return Err(Error::request("a comparison needs a text")) };
        let source = SourceModel::open_merged(base, first.adapter.as_deref())?.to_run()?;
        source.model.config.ending.needs_logits("a comparison in tasks")?;
        let texts = how.iter().map(|how| compare::sufficing(&source, how));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let reader = Runnable::open_idle(base)?;
        for path in candidates {
            run.check()?;
            let candidate = Runnable::open_idle(path)?;
            texts.iter().try_for_each(|text| text.same_tokens(&reader, &candidate))?;
        }
        let here = Path::new(".");
        let job = Self {
            kind: KIND.into(),
            directory: std::path::absolute(here).map_err(|e| Error::io(here, e))?,
            base: base.to_path_buf(),
            candidates: candidates.to_vec(),
            how,
            reports,
            identity: Value::Null,
            phases: Vec::new(),
            tasks: Vec::new(),
        };
        let tasks = job.cut(&texts, tasks)?;
        let phases = vec![Phase { name: "compare".into(), after: Vec::new(), tasks: 0..tasks.len() }];
        Ok(Self { identity: job.identity_now(run)?, phases, tasks, ..job })
    }

    /// Writes it into a folder, which becomes the job's.
    ///
    /// # Errors
    /// `Exists` for a folder that holds a job; `Io`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        job::save(folder, self, || Ok(()))
    }

    /// Whether the job of a folder is a comparison.
    ///
    /// # Errors
    /// `BadInput` for a folder without a job; `Io`.
    pub fn is_in(folder: &Path) -> Result<bool> {
        Ok(job::kind(folder)? == KIND)
    }

    /// The job of a folder.
    ///
    /// # Errors
    /// `BadInput` for a folder without one; `Io`.
    pub fn open(folder: &Path) -> Result<Self> {
        job::open(folder, KIND)
    }

    fn models(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.base).chain(&self.candidates)
    }

    /// Tasks of about as many windows. Windows that models run together in one go stay together.
    fn cut(&self, texts: &[Prepared], count: usize) -> Result<Vec<Task>> {
        let mut units: Vec<(usize, Range<usize>)> = Vec::new();
        for (text, Prepared { windows, .. }) in texts.iter().enumerate() {
            let group = (BATCH / windows.method.ctx()).max(1);
            let starts = (0..windows.count).step_by(group);
            units.extend(starts.map(|start| (text, start..(start + group).min(windows.count))));
        }
        let models =
            self.models().map(|path| Ok(Checkpoint::open(path)?.files().iter().map(|file| file.len).sum::<u64>()));
        let reads = models.sum::<Result<u64>>()?;
        let work: Vec<u64> = units.iter().map(|(_, windows)| windows.len() as u64).collect();
        let task = |range: Range<usize>| {
            let mut task = Task { work: Vec::new(), reads, writes: 0 };
            for (of, more) in &units[range] {
                let scored = more.len() * texts[*of].windows.method.scored().len();
                task.writes += (scored * (8 + 17 * self.candidates.len())) as u64;
                match task.work.last_mut() {
                    Some(Work::Windows { text, windows }) if text == of => windows.end = more.end,
                    _ => task.work.push(Work::Windows { text: *of, windows: more.clone() }),
                }
            }
            task
        };
        Ok(job::ranges(&work, count).into_iter().map(task).collect())
    }

    /// What the comparison is of: program, instruction set, models with the adapter of the base, and texts.
    fn identity_now(&self, run: Run) -> Result<Value> {
        let cancel = &run.control.cancel;
        let adapter = self.how.first().and_then(|how| how.adapter.as_deref());
        let base = std::iter::once(SourceModel::open_merged(&self.base, adapter)?.ckpt).map(Ok);
        let candidates = self.candidates.iter().map(|path| Checkpoint::open(path).map(Arc::new));
        let identity = |ckpt: Result<Arc<Checkpoint>>| {
            let identity = Identity::new(&*ckpt?, None, Vec::new(), cancel)?;
            serde_json::to_value(identity).map_err(|e| Error::Internal(e.to_string()))
        };
        let models = base.chain(candidates).map(identity).collect::<Result<Vec<Value>>>()?;
        let texts = self.how.iter().filter_map(|how| how.text.as_deref());
        let texts = texts.map(|text| sha256_file(text, cancel)).collect::<Result<Vec<String>>>()?;
        Ok(json!({ "instructions": Isa::active().name(), "models": models, "texts": texts }))
    }

    /// That these are those that the job was planned with.
    fn check(&self, run: Run) -> Result<()> {
        job::same(&self.base, &self.identity, &self.identity_now(run)?)
    }

    /// What the tasks have left of a text.
    fn records(&self, path: &Path, text: usize) -> Result<Comparison> {
        let mut all = Comparison::default();
        for (task, Task { work, .. }) in self.tasks.iter().enumerate() {
            for work in work {
                let Work::Windows { text: of, windows } = work else { continue };
                if *of != text {
                    continue;
                }
                let folder = job::task_folder(path, task);
                let file = folder.join(name(text));
                let damaged = || {
                    let what = format!("is not what task {task} has written: it was damaged or cut short");
                    let hint = format!("remove {}, and run task {task} again", folder.display());
                    Error::bad_file(&file, what).hint(hint)
                };
                let hash =
                    job::done(path, task)?.and_then(|done| done.hashes.get(&text).cloned()).ok_or_else(damaged)?;
                if !file.is_file() || sha256_file(&file, &Default::default())? != hash {
                    return Err(damaged());
                }
                let part = Comparison::from_bytes(&crate::input::read(&file)?).ok_or_else(damaged)?;
                if part.chunks != windows.len() || !all.append(part) {
                    return Err(damaged());
                }
            }
        }
        Ok(all)
    }
}

/// The records of a text, in the folder of a task.
fn name(text: usize) -> String {
    format!("text-{text}.records")
}

impl Tasks for ComparisonJob {
    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn make(&self, _: &Path, own: &Path, work: &[Work], run: Run) -> Result<Done> {
        self.check(run)?;
        let mut done = Done::default();
        for work in work {
            let Work::Windows { text, windows } = work else {
                return Err(Error::bad_input("a comparison makes nothing of a model"));
            };
            let how = self.how.get(*text).ok_or_else(|| Error::bad_input("the job has no such text"))?;
            let part = compare::part(&self.base, &self.candidates, how, windows.clone(), run)?;
            let path = own.join(name(*text));
            let file = PartialFile::create(&path, false)?;
            file.write_at(0, &part.to_bytes())?;
            file.finish()?;
            done.hashes.insert(*text, sha256_file(&path, &run.control.cancel)?);
        }
        Ok(done)
    }
}

/// The report of a comparison whose tasks are all done: of several texts the worst, as [`report::worst_of`] has it.
///
/// # Errors
/// `Request` naming tasks that are not done; `BadInput` for what a task has left and is not as it was; as [`super::compare`].
pub fn assemble(path: &Path, job: &ComparisonJob, control: &Control, hears: &dyn Hears) -> Result<Report> {
    let run = Run::new(control, hears);
    job.phases.iter().try_for_each(|phase| job::complete(path, phase))?;
    job.check(run)?;
    let mut reports = Vec::new();
    for (text, how) in job.how.iter().enumerate() {
        let records = job.records(path, text)?;
        reports.push(compare::whole(&job.base, &job.candidates, how, &records, run)?);
    }
    job::tidy(path, run);
    report::worst_of(reports).ok_or_else(|| Error::bad_input("the job has no text"))
}
