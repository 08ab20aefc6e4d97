//! A conversion in tasks that any number of machines work on, over one folder that all of them see. A task is an ordinary
//! run that makes some parts of the outputs, in a folder of its own, under an ordinary journal; that folder gets its name
//! when all is on the disk. [`assemble`] puts the parts into the outputs and their journals into one, and then continues
//! the run: nothing is left to do but to check and to publish. See record 14.

mod activations;
mod assemble;
mod cut;
mod finished;
mod make;
mod statistics;
mod status;
mod task;
mod work;

pub use assemble::assemble;
pub use status::{State, status};
pub use task::{is_due, run};
pub use work::{Phase, Task, Tasks, Work};

pub(crate) use assemble::tidy;
pub(crate) use cut::ranges;
use finished::TASKS;
pub(crate) use finished::{Done, done, task_folder};
pub(crate) use task::complete;

use super::data::Drawing;
use super::files;
use super::folder;
use super::identity::difference;
use super::plan::{Decided, Plan, Prepared};
use super::recipe::Recipe;
use super::rounding::needs_data;
use crate::calibration::data::DataReport;
use crate::control::Run;
use crate::disk::{self, partial::PartialFile};
use crate::error::Hint;
use crate::model::SourceModel;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file that says what a job is.
pub const FILE: &str = "job.json";
/// The file of the calibration windows.
const WINDOWS: &str = "windows.json";
const KIND: &str = "quantize job 1";

/// A conversion that is cut into tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    kind: String,
    /// The checkpoint.
    pub model: PathBuf,
    /// Where relative names in the recipe are of.
    pub directory: PathBuf,
    /// What decides the bytes.
    pub recipe: Recipe,
    /// What the files and every folder are of: program, source, layout, recipe.
    identities: Vec<Value>,
    /// What the model is calibrated on, drawn when the job was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataReport>,
    /// The windows of it, which lie in a file of their own.
    #[serde(skip)]
    windows: Vec<Vec<u32>>,
    /// In the order in which they are run.
    pub phases: Vec<Phase>,
    /// All, with their places in this list for names.
    pub tasks: Vec<Task>,
}

impl Job {
    /// Cuts the conversion of a plan into about so many tasks of each phase. Calibration data are drawn now, once for all tasks.
    ///
    /// # Errors
    /// `Unsupported` for what cannot be cut; those of drawing and of the importance matrix.
    pub fn new(plan: &mut Plan, tasks: usize, run: Run) -> Result<Self> {
        refuse(plan)?;
        plan.prepared = super::draw(plan, run)?.map(|Drawing { windows, report, .. }| Prepared {
            windows,
            report,
            importance: None,
        });
        let (phases, tasks) = phases(plan, tasks)?;
        let (data, windows) = plan.prepared.clone().map_or((None, Vec::new()), |p| (Some(p.report), p.windows));
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, e));
        Ok(Self {
            kind: KIND.into(),
            model: absolute(&plan.source.path)?,
            directory: absolute(Path::new("."))?,
            recipe: plan.recipe.clone(),
            identities: identities(plan, run)?,
            data,
            windows,
            phases,
            tasks,
        })
    }

    /// Writes it into a folder, which becomes the job's.
    ///
    /// # Errors
    /// `Exists` for a folder that holds a job; `Io`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save(folder, self, || match self.data {
            Some(_) => {
                let text = serde_json::to_string(&self.windows).map_err(|e| Error::Internal(e.to_string()))?;
                PartialFile::holding(&folder.join(WINDOWS), &text, true)?.finish()
            }
            None => Ok(()),
        })
    }

    /// The job of a folder.
    ///
    /// # Errors
    /// `BadInput` for a folder without one, or of another version; `Io`.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut job: Job = open(folder, KIND)?;
        if job.data.is_some() {
            let path = folder.join(WINDOWS);
            let windows = serde_json::from_slice(&crate::input::read(&path)?);
            job.windows = windows.map_err(|e| Error::bad_file(&path, e.to_string()))?;
        }
        Ok(job)
    }

    /// The plan of the conversion, its outputs placed in `into`; `path` is the folder of the job.
    ///
    /// # Errors
    /// `BadInput` when the source, the program or anything else is not what the job was planned with, naming what differs.
    pub fn plan(&self, path: &Path, into: &Path, run: Run) -> Result<Plan> {
        let source = SourceModel::open(&self.model)?;
        let mut plan = super::plan(&source, &self.recipe)?;
        if let Some(report) = &self.data {
            let (windows, report) = (self.windows.clone(), report.clone());
            plan.prepared = Some(Prepared { windows, report, importance: self.importance(path)? });
        }
        plan.place(into)?;
        for (there, here) in self.identities.iter().zip(identities(&plan, run)?) {
            same(&self.model, there, &here)?;
        }
        Ok(plan)
    }

    /// Which windows which tasks run before those that need them all, and the folders of these.
    fn windows_by_task(&self, path: &Path) -> Vec<(Range<usize>, PathBuf)> {
        let all = self.tasks.iter().enumerate().flat_map(|(i, task)| task.work.iter().map(move |work| (i, work)));
        let windows = all.filter_map(|(i, work)| match work {
            Work::Sums(windows) | Work::Activations(windows) => Some((windows.clone(), task_folder(path, i))),
            _ => None,
        });
        windows.collect()
    }

    /// The importance matrix and its SHA-256, once a task has made it.
    fn importance(&self, path: &Path) -> Result<Option<(PathBuf, String)>> {
        let Some(task) = self.tasks.iter().position(|task| task.work.contains(&Work::Importance)) else {
            return Ok(None);
        };
        let hash = finished::done(path, task)?.and_then(|done| done.importance);
        Ok(hash.map(|hash| (task_folder(path, task).join(statistics::IMPORTANCE), hash)))
    }
}

/// Writes a job into a folder, which becomes its own; `with` writes what lies beside `job.json`.
///
/// # Errors
/// `Exists` for a folder that holds a job; `Io`.
pub(crate) fn save<J: Tasks + Serialize>(folder: &Path, job: &J, with: impl FnOnce() -> Result<()>) -> Result<()> {
    if disk::is_no_folder(folder) {
        return Err(Error::request(format!("{} is not a folder", folder.display())));
    }
    disk::create_folders(&folder.join(TASKS)).map_err(|e| Error::io(folder, e))?;
    let file = PartialFile::create(&folder.join(FILE), false).map_err(|e| match e {
        Error::Exists { path, .. } => {
            Error::Exists { path, what: "is another job's; name another folder", replaceable: false }
        }
        other => other,
    })?;
    with()?;
    let text = serde_json::to_string_pretty(job).map_err(|e| Error::Internal(e.to_string()))? + "\n";
    file.write_at(0, text.as_bytes())?;
    file.finish()
}

/// What a job of a folder says of its kind.
///
/// # Errors
/// `BadInput` for a folder without a job; `Io`.
pub(crate) fn kind(folder: &Path) -> Result<String> {
    Ok(read(folder)?.1["kind"].as_str().unwrap_or_default().to_string())
}

fn read(folder: &Path) -> Result<(PathBuf, Value)> {
    let path = folder.join(FILE);
    if !path.is_file() {
        let what = "is not the folder of a job: it has no job.json";
        return Err(Error::bad_file(folder, what).hint(Hint::PlanJob));
    }
    let value = crate::input::read_json(&path)?;
    Ok((path, value))
}

/// The job of a folder, which has to be of this kind.
///
/// # Errors
/// `BadInput` for a folder without one, or of another version; `Io`.
pub(crate) fn open<J: Tasks + DeserializeOwned>(folder: &Path, kind: &str) -> Result<J> {
    let (path, value) = read(folder)?;
    if value["kind"] != kind {
        return Err(Error::bad_file(&path, "is of another version of this program; plan the job again"));
    }
    let job: J = serde_json::from_value(value).map_err(|e| Error::bad_file(&path, e.to_string()))?;
    let inside = |range: &Range<usize>| range.start <= range.end && range.end <= job.tasks().len();
    match job.phases().iter().all(|phase| inside(&phase.tasks)) {
        true => Ok(job),
        false => Err(Error::bad_file(&path, "names tasks that it does not have")),
    }
}

/// That what tasks are of is what the job was planned with.
///
/// # Errors
/// `BadInput` naming what differs, of the file `of`.
pub(crate) fn same(of: &Path, there: &Value, here: &Value) -> Result<()> {
    match difference(there, here) {
        Some((name, was, is)) => {
            let what = format!("is not what the job was planned with: {name} was {was}, and is {is} here");
            Err(Error::bad_file(of, what).hint("plan the job again, in another folder"))
        }
        None => Ok(()),
    }
}

/// The phases of a plan, each after the one before, and all tasks: about so many in each.
fn phases(plan: &Plan, count: usize) -> Result<(Vec<Phase>, Vec<Task>)> {
    let (mut phases, mut tasks): (Vec<Phase>, Vec<Task>) = (Vec::new(), Vec::new());
    let mut add = |name: &str, more: Vec<Task>| {
        let after = phases.last().map(|phase| phase.name.clone()).into_iter().collect();
        phases.push(Phase { name: name.into(), after, tasks: tasks.len()..tasks.len() + more.len() });
        tasks.extend(more);
    };
    let convert = cut::tasks(plan, count);
    match &plan.prepared {
        Some(_) if files::parts::is_layered(plan) => {
            let activations = cut::activations(plan, &files::parts::windows(plan)?, &convert, count);
            if !activations.is_empty() {
                add("activations", activations);
            }
        }
        Some(prepared) => {
            let (sums, importance) = cut::statistics(plan, &prepared.windows, count);
            add("calibrate", sums);
            add("importance", vec![importance]);
        }
        None => {}
    }
    add("convert", convert);
    Ok((phases, tasks))
}

/// What the outputs of a plan are of, beside where they lie.
fn identities(plan: &Plan, run: Run) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    if plan.files().next().is_some() {
        all.push(files::parts::identity(plan, run)?);
    }
    for output in plan.outputs.iter().filter(|output| !output.target.is_file()) {
        all.push(folder::parts::identity(plan, output, run)?);
    }
    Ok(all)
}

/// What is not cut into tasks.
fn refuse(plan: &Plan) -> Result<()> {
    let recipe = &plan.recipe;
    for output in &plan.outputs {
        let name = output.target.name();
        let calibrated = match &output.what {
            Decided::File(file) => recipe.data.is_some() && (file.limit.is_some() || recipe.sequential_files()),
            Decided::Folder(folder) => {
                folder.limit.is_some() || needs_data(&folder.spec, &recipe.rounding, recipe.data.is_some())
            }
            Decided::Plain(_) => false,
        };
        if calibrated {
            let what = match output.target.is_file() {
                true => "types chosen by a budget, and sequential error feedback, are not cut into tasks",
                false => "formats that are calibrated are not cut into tasks",
            };
            let what = format!("{name}: {what}");
            return Err(Error::unsupported(what).hint("convert it on one machine"));
        }
    }
    Ok(())
}
