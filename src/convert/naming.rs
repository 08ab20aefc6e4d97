//! What is written down before outputs get their names: what a run is of, what it made, and the steps. The next run, of
//! whatever kind, gives the names that are due; what else it takes from a record is its own matter.

use super::journal::{Journal, Left, NEW};
use super::outcome::Made;
use crate::control::{Notice, Run};
use crate::disk::{self, partial::beside};
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
pub(super) struct Record {
    /// What the run was of.
    pub identity: Value,
    /// Outputs of a conversion.
    pub outputs: Vec<Finished>,
    pub steps: Vec<Step>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Finished {
    pub recipe: Value,
    pub made: Made,
}

/// A record that an earlier run left in a folder, with every name given.
pub(super) type TakenUp = (PathBuf, Journal, Record);

/// Whose a record is, for the run that finds it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Whose {
    /// Its own: what it does with it is its own matter.
    Ours,
    Others,
    /// Of another part of this run, which looks for itself.
    LeftAlone,
}

impl Whose {
    pub fn ours(it_is: bool) -> Self {
        if it_is { Whose::Ours } else { Whose::Others }
    }
}

/// Brings to their end what runs left that were killed while they gave names in `folders`. The records that are ours.
///
/// # Errors
/// Those of renaming.
pub(super) fn recover(
    mut folders: Vec<&Path>,
    whose: impl Fn(&Path, &Record) -> Whose,
    run: Run,
) -> Result<Vec<TakenUp>> {
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
                found.extend(taken_up(folder, &path(name), &whose, run)?);
            } else if let Some(name) = name.strip_suffix(NEW).filter(|name| name.ends_with(END)) {
                // Nothing was renamed yet.
                tidied(Journal::forget_unborn(&path(name)), run);
            }
        }
    }
    Ok(found)
}

/// One record, where it is of this program and no run is at work on it, with its names given. `None` where it is not ours.
fn taken_up(folder: &Path, path: &Path, whose: &impl Fn(&Path, &Record) -> Whose, run: Run) -> Result<Option<TakenUp>> {
    let Left { mut journal, key, .. } = match Journal::peek(path) {
        Ok(Some(left)) => left,
        Ok(None) | Err(Error::Exists { .. } | Error::Unfinished { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let Ok(record) = serde_json::from_value::<Record>(key) else { return Ok(None) };
    let whose = whose(folder, &record);
    if whose == Whose::LeftAlone || !record.steps.iter().all(Step::is_sound) {
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
    if whose == Whose::Ours {
        return Ok(Some((folder.to_path_buf(), journal, record)));
    }
    // Of another run: with its names given it is not needed any more.
    journal.keep_on_drop(!due);
    Ok(None)
}

/// Says that something was left behind, which does no harm.
pub(super) fn tidied(removed: Result<()>, run: Run) {
    if let Err(e) = removed {
        run.notice(Notice::Warning(format!("{e}: not removed; remove it yourself")));
    }
}

/// Writes records of what is to get names, one a folder.
///
/// # Errors
/// `Io`; `Unfinished` while another run gives the same names.
pub(super) fn announce(folders: &BTreeMap<PathBuf, Record>) -> Result<Vec<Journal>> {
    let mut new = Vec::new();
    for (folder, record) in folders {
        let Some(path) = record.path(folder) else { continue };
        let key = serde_json::to_value(record).map_err(|e| Error::Internal(e.to_string()))?;
        new.push(Journal::create(&path, &key, Vec::new())?);
    }
    Ok(new)
}

impl Record {
    /// One without outputs and steps.
    pub fn of(identity: &Value) -> Self {
        Record { identity: identity.clone(), outputs: Vec::new(), steps: Vec::new() }
    }

    /// Its own name in `folder`, where it has steps.
    pub fn path(&self, folder: &Path) -> Option<PathBuf> {
        self.steps.first().map(|first| beside(&folder.join(first.to()), END))
    }
}

/// Gives names that `records` tell of. Once the first is given, `begun` is called: should this run not come to the end of
/// it, the next one does. Records of what did not begin go.
///
/// # Errors
/// `Io`; `Exists` for a name that was taken meanwhile.
pub(super) fn carry_out(
    records: &mut Vec<Journal>,
    announced: usize,
    steps: &[(PathBuf, Step)],
    mut begun: impl FnMut(),
) -> Result<()> {
    for (n, (folder, step)) in steps.iter().enumerate() {
        match step.carry_out(folder) {
            // Nothing happened yet, and nothing is to happen.
            Err(e) if n == 0 && step.is_one() => {
                records.truncate(announced);
                return Err(e);
            }
            done => {
                records[announced..].iter_mut().for_each(|record| record.keep_on_drop(true));
                begun();
                done?;
            }
        }
    }
    steps.iter().for_each(|(folder, step)| disk::sync_folder_of(&folder.join(step.to())));
    Ok(())
}
