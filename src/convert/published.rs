//! Outputs that get their names. What is to be renamed, and what was made, is written down beside the outputs before the
//! first rename, and goes when the whole run is finished. A run that was killed between two names, or interrupted after
//! some of its outputs were finished, is so taken up by the next of the same recipe: names are given, and what is finished
//! is not made again.

use super::data::Drawing;
use super::hashes;
use super::identity::{CalibrationWindows, Identity};
use super::journal::Journal;
use super::naming::{self, Finished, Record, TakenUp, Whose, tidied};
use super::outcome::Made;
use super::plan::{OutputPlan, Plan};
use crate::calibration::resume::path_for;
use crate::control::{Notice, Run};
use crate::disk::{self, partial::beside};
use crate::writer::folder::partial_path;
use crate::writer::publish::Step;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Records that earlier runs left where the outputs of a plan go, with every name given.
pub(super) struct Earlier(Vec<TakenUp>);

impl Earlier {
    /// Brings to their end what runs left that were killed while they gave names.
    ///
    /// # Errors
    /// Those of renaming.
    pub fn recover(plan: &Plan, run: Run) -> Result<Self> {
        let folders = plan.outputs.iter().map(|o| disk::folder_of(&o.place)).collect();
        let whose = |folder: &Path, record: &Record| {
            Whose::ours(plan.outputs.iter().any(|o| {
                let same = |f: &Finished| f.made.place.file_name() == o.place.file_name();
                disk::folder_of(&o.place) == folder && record.outputs.iter().any(same)
            }))
        };
        Ok(Self(naming::recover(folders, whose, run)?))
    }

    /// Removes the records: all that they tell of has been said.
    pub fn forget(self, run: Run) {
        Unended(self.0.into_iter().map(|(_, journal, _)| journal).collect()).end(run);
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
            // As a run that made it would name them.
            let here = |path: &PathBuf| output.place.with_file_name(path.file_name().unwrap_or_default());
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
    pub fn publish(&mut self, made: Vec<Made>, steps: Vec<(PathBuf, Step)>, begun: impl FnMut()) -> Result<()> {
        let announced = self.announce(&made, &steps)?;
        naming::carry_out(&mut self.records, announced, &steps, begun)?;
        self.made.extend(made);
        Ok(())
    }

    /// Writes the records. How many there were before.
    fn announce(&mut self, made: &[Made], steps: &[(PathBuf, Step)]) -> Result<usize> {
        let mut folders: BTreeMap<PathBuf, Record> = BTreeMap::new();
        let empty = || Record::of(&self.identity);
        for (folder, step) in steps {
            folders.entry(folder.clone()).or_insert_with(empty).steps.push(step.clone());
        }
        for made in made {
            let finished = Finished { recipe: self.plan.recipe.of_output(made.index).to_json(), made: made.clone() };
            folders.entry(disk::folder_of(&made.place).to_path_buf()).or_insert_with(empty).outputs.push(finished);
        }
        // Of these names there may be some of an earlier run, which were taken over.
        let paths: Vec<PathBuf> = folders.iter().filter_map(|(folder, record)| record.path(folder)).collect();
        self.records.retain(|known| paths.iter().all(|path| known.path() != path));
        let new = naming::announce(&folders)?;
        let before = self.records.len();
        self.records.extend(new);
        Ok(before)
    }

    /// All outputs are made.
    pub fn end(mut self) -> (Vec<Made>, Unended) {
        self.made.sort_by_key(|made| made.index);
        (self.made, Unended(self.records))
    }
}

/// What is written down of outputs that are made, until nothing is left to do for them. A run that does not come to its
/// end leaves it, and an equal one need not make them again.
#[must_use]
pub(crate) struct Unended(Vec<Journal>);

impl Unended {
    /// The run is finished: nothing is left to remember.
    pub fn end(self, run: Run) {
        self.0.into_iter().for_each(|record| tidied(record.remove(), run));
    }
}
