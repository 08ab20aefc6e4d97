//! Outputs that get their names. What is to be renamed, and what was made, is written down beside the outputs before the
//! first rename, and goes when the whole run is finished. A run that was killed between two names, or interrupted after
//! some of its outputs were finished, is so taken up by the next of the same recipe: names are given, and what is finished
//! is not made again.

use super::data::Drawing;
use super::hashes;
use super::identity::{CalibrationWindows, Identity};
use super::journal::{Journal, Left, NEW};
use super::outcome::Made;
use super::plan::{OutputPlan, Plan};
use crate::calibration::resume::path_for;
use crate::control::{Notice, Run};
use crate::disk::{self, partial::beside};
use crate::writer::folder::partial_path;
use crate::writer::publish::Step;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the names of records end.
const END: &str = ".publishing";

/// What is written down. All names are of files in the record's folder.
#[derive(Serialize, Deserialize)]
struct Record {
    /// What the run was of.
    identity: Value,
    outputs: Vec<Finished>,
    steps: Vec<Step>,
}

#[derive(Serialize, Deserialize)]
struct Finished {
    recipe: Value,
    made: Made,
}

/// Records that earlier runs left where the outputs of a plan go, with every name given.
pub(super) struct Earlier(Vec<(PathBuf, Journal, Record)>);

impl Earlier {
    /// Brings to their end what runs left that were killed while they gave names.
    ///
    /// # Errors
    /// Those of renaming.
    pub fn recover(plan: &Plan, run: Run) -> Result<Self> {
        let mut folders: Vec<&Path> = plan.outputs.iter().map(|o| disk::folder_of(&o.place)).collect();
        folders.sort();
        folders.dedup();
        let mut found = Vec::new();
        for folder in folders {
            let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
            names.retain(|name| name.starts_with('.'));
            names.sort();
            for name in &names {
                let path = |name: &str| folder.join(name);
                if name.ends_with(END) {
                    found.extend(taken_up(plan, folder, &path(name), run)?);
                } else if let Some(name) = name.strip_suffix(NEW).filter(|name| name.ends_with(END)) {
                    // Nothing was renamed yet.
                    tidied(Journal::forget_unborn(&path(name)), run);
                }
            }
        }
        Ok(Self(found))
    }

    /// What was made of an output, if one of its name and recipe is finished.
    fn of(&self, plan: &Plan, output: &OutputPlan) -> Option<(&Record, &Finished)> {
        let recipe = plan.recipe.of_output(output.index).to_json();
        let same = |folder: &Path, finished: &Finished| {
            finished.recipe == recipe
                && folder == disk::folder_of(&output.place)
                && finished.made.place.file_name() == output.place.file_name()
                && finished.made.paths.iter().all(|path| folder.join(path.file_name().unwrap_or_default()).exists())
        };
        self.0.iter().find_map(|(folder, _, record)| {
            record.outputs.iter().find(|finished| same(folder, finished)).map(|finished| (record, finished))
        })
    }

    /// Whether an output of its name and recipe is finished, as far as that is known before the data are drawn.
    pub fn may_have(&self, plan: &Plan, output: &OutputPlan) -> bool {
        self.of(plan, output).is_some()
    }
}

/// Says what unfinished work there is that was to replace what is in the way of a plan's outputs.
pub(super) fn tell_of_unfinished(plan: &Plan, run: Run) {
    for output in &plan.outputs {
        let left = match output.target.is_file() {
            true => vec![path_for(&output.place), beside(&output.place, ".partial")],
            false => vec![partial_path(&output.place)],
        };
        if let Some(left) = left.iter().find(|left| left.exists() && output.place.exists()) {
            let what = "is the unfinished work of a run that was to replace";
            run.notice(Notice::Info(format!("{} {what} {}", left.display(), output.place.display())));
        }
    }
}

/// Says that something was left behind, which does no harm.
pub(super) fn tidied(removed: Result<()>, run: Run) {
    if let Err(e) = removed {
        run.notice(Notice::Warning(format!("{e}: not removed; remove it yourself")));
    }
}

/// One record, where it is of this program and no run is at work on it, with its names given. `None` where it does
/// not matter to this plan.
fn taken_up(plan: &Plan, folder: &Path, path: &Path, run: Run) -> Result<Option<(PathBuf, Journal, Record)>> {
    let Left { mut journal, key, .. } = match Journal::peek(path) {
        Ok(Some(left)) => left,
        Ok(None) | Err(Error::Exists { .. } | Error::Unfinished { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(record) = serde_json::from_value::<Record>(key) else { return Ok(None) };
    if !record.steps.iter().all(Step::is_sound) {
        return Ok(None);
    }
    let due = record.steps.iter().any(|step| step.is_due(folder));
    if due {
        let names: Vec<&str> = record.steps.iter().map(Step::to).collect();
        let had = format!("an interrupted run had finished {}", names.join(", "));
        match record.steps.iter().try_for_each(|step| step.catch_up(folder)) {
            Ok(()) => run.notice(Notice::Info(format!("{had}: given its name"))),
            // It stays under its temporary name.
            Err(e @ Error::Exists { .. }) => {
                run.notice(Notice::Warning(format!("{had}, but {e}")));
                return Ok(None);
            }
            Err(e) => return Err(e),
        }
    }
    let ours = |o: &OutputPlan| {
        let same = |f: &Finished| f.made.place.file_name() == o.place.file_name();
        disk::folder_of(&o.place) == folder && record.outputs.iter().any(same)
    };
    match plan.outputs.iter().any(ours) {
        true => Ok(Some((folder.to_path_buf(), journal, record))),
        false => {
            // Of another run: with its names given it is not needed any more.
            journal.keep_on_drop(!due);
            Ok(None)
        }
    }
}

/// The finished outputs of a run, and what is written down about them.
pub(super) struct Published<'p> {
    plan: &'p Plan,
    identity: Value,
    records: Vec<Journal>,
    made: Vec<Made>,
}

impl<'p> Published<'p> {
    /// Takes over what an equal run has finished.
    ///
    /// # Errors
    /// Those of reading the small files of the source.
    pub fn new(plan: &'p Plan, earlier: Earlier, drawing: Option<&Drawing>, run: Run) -> Result<Self> {
        let seen = drawing.map(|d| CalibrationWindows { windows: &d.windows, sets: &[], hashes: hashes::known(plan) });
        let identity = Identity::new(&plan.source.ckpt, seen, Vec::new(), &run.control.cancel)?;
        let identity = serde_json::to_value(identity).map_err(|e| Error::Internal(e.to_string()))?;
        let mut made = Vec::new();
        for output in &plan.outputs {
            let known = earlier.of(plan, output).filter(|(record, _)| record.identity == identity);
            let Some((_, finished)) = known else { continue };
            let name = output.target.name().to_string();
            run.notice(Notice::About { output: name, text: "finished by the interrupted run".into() });
            let folder = disk::folder_of(&output.place);
            let here = |path: &PathBuf| folder.join(path.file_name().unwrap_or_default());
            let paths = finished.made.paths.iter().map(here).collect();
            made.push(Made { index: output.index, place: output.place.clone(), paths, ..finished.made.clone() });
        }
        let records = earlier.0.into_iter().map(|(_, journal, _)| journal).collect();
        Ok(Self { plan, identity, records, made })
    }

    /// Whether an output needs no more work.
    pub fn has(&self, index: usize) -> bool {
        self.made.iter().any(|made| made.index == index)
    }

    /// Writes down what was made and which names it gets, and gives them. Once the first is given, `begun` is called: should
    /// this run not come to the end of it, the next one does.
    ///
    /// # Errors
    /// `Io`; `Exists` for a name that was taken meanwhile.
    pub fn publish(&mut self, made: Vec<Made>, steps: Vec<(PathBuf, Step)>, mut begun: impl FnMut()) -> Result<()> {
        let announced = self.announce(&made, &steps)?;
        for (n, (folder, step)) in steps.iter().enumerate() {
            match step.carry_out(folder) {
                // Nothing happened yet, and nothing is to happen.
                Err(e) if n == 0 && step.is_one() => {
                    self.records.truncate(announced);
                    return Err(e);
                }
                done => {
                    self.records[announced..].iter_mut().for_each(|record| record.keep_on_drop(true));
                    begun();
                    done?;
                }
            }
        }
        steps.iter().for_each(|(folder, step)| disk::sync_folder_of(&folder.join(step.to())));
        self.made.extend(made);
        Ok(())
    }

    /// Writes the records. How many there were before.
    fn announce(&mut self, made: &[Made], steps: &[(PathBuf, Step)]) -> Result<usize> {
        let mut folders: BTreeMap<PathBuf, Record> = BTreeMap::new();
        let empty = || Record { identity: self.identity.clone(), outputs: Vec::new(), steps: Vec::new() };
        for (folder, step) in steps {
            folders.entry(folder.clone()).or_insert_with(empty).steps.push(step.clone());
        }
        for made in made {
            let finished = Finished { recipe: self.plan.recipe.of_output(made.index).to_json(), made: made.clone() };
            folders.entry(disk::folder_of(&made.place).to_path_buf()).or_insert_with(empty).outputs.push(finished);
        }
        let mut new = Vec::new();
        for (folder, record) in folders {
            let Some(first) = record.steps.first() else { continue };
            let path = beside(&folder.join(first.to()), END);
            let key = serde_json::to_value(&record).map_err(|e| Error::Internal(e.to_string()))?;
            // Of this name there may be one of an earlier run, which was taken over.
            self.records.retain(|known| known.path() != path);
            new.push(Journal::create(&path, &key, Vec::new())?);
        }
        let before = self.records.len();
        self.records.extend(new);
        Ok(before)
    }

    /// The run is finished: nothing is left to remember.
    pub fn end(mut self, run: Run) -> Vec<Made> {
        self.records.into_iter().for_each(|record| tidied(record.remove(), run));
        self.made.sort_by_key(|made| made.index);
        self.made
    }
}
