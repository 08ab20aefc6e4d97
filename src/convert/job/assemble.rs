//! Puts what tasks have made into the outputs: the bytes to their places, the notes of them into the outputs' journals. The
//! run that continues from there finds everything done, checks it and gives the names.

use super::finished::{TASKS, done, task_folder};
use super::task::{LOCK, complete};
use super::{Job, files, folder};
use crate::control::{Control, Report, Run};
use crate::convert::identity::difference;
use crate::convert::journal::{Contents, Journal, Left};
use crate::convert::{Outcome, Plan, naming};
use crate::disk::{self, Written};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Makes the outputs of a job whose tasks are all done, in `output` or, without one, in its folder.
///
/// # Errors
/// `Request` naming tasks that are not done; `BadInput` for what a task has made and is not there any more, or not as it
/// was; those of [`crate::convert::run`].
pub fn assemble(
    path: &Path,
    job: &Job,
    output: Option<&Path>,
    control: &Control,
    report: &dyn Report,
) -> Result<(Plan, Outcome)> {
    job.phases.iter().try_for_each(|phase| complete(path, phase))?;
    let fresh = Control { resume: false, ..control.clone() };
    let run = Run::new(&fresh, report);
    let mut plan = job.plan(path, &path.join(TASKS), run)?;
    let names: Vec<PathBuf> = journals(&plan);
    plan.place(output.unwrap_or(path))?;
    plan.check_places(&fresh, &|_| false)?;
    plan.source_hashes = hashes(path, job, &plan)?.map_or_else(OnceLock::new, OnceLock::from);
    if plan.files().next().is_some() {
        files::parts::lay_out(&plan, run)?;
    }
    for output in &plan.outputs {
        folder::parts::lay_out(&plan, output, run)?;
    }
    for (name, target) in names.iter().zip(journals(&plan)) {
        let relative = name.strip_prefix(path.join(TASKS)).map_err(|e| Error::Internal(e.to_string()))?;
        merge(path, job, relative, &target, run)?;
    }
    let outcome = crate::convert::run(&plan, &Control { resume: true, ..control.clone() }, report)?;
    tidy(path, run);
    Ok((plan, outcome))
}

/// Removes what killed tasks have left.
pub(crate) fn tidy(path: &Path, run: Run) {
    for attempt in std::fs::read_dir(path.join(TASKS)).into_iter().flatten().flatten() {
        if attempt.file_name().to_string_lossy().starts_with('.') {
            let attempt = attempt.path();
            naming::tidied(disk::remove_folder(&attempt, LOCK).map_err(|e| Error::io(&attempt, e)), run);
        }
    }
}

/// The journals of the unfinished outputs of a plan.
fn journals(plan: &Plan) -> Vec<PathBuf> {
    let folders = plan.outputs.iter().filter(|output| !output.target.is_file());
    files::journal(plan).into_iter().chain(folders.map(folder::parts::journal)).collect()
}

/// The hashes that tasks have made of the source files.
fn hashes(path: &Path, job: &Job, plan: &Plan) -> Result<Option<Vec<String>>> {
    if !plan.recipe.hash_sources {
        return Ok(None);
    }
    let mut all = BTreeMap::new();
    for task in 0..job.tasks.len() {
        all.extend(done(path, task)?.map(|done| done.hashes).unwrap_or_default());
    }
    let all: Vec<String> = all.into_values().collect();
    match all.len() == plan.source.ckpt.files().len() {
        true => Ok(Some(all)),
        false => Err(Error::bad_file(path.join(super::FILE), "has no task for the hash of some source file")),
    }
}

/// Takes what the tasks have made of one output, `journal` being its journal's name in each of their folders, into the
/// unfinished output that has the journal `target`.
fn merge(path: &Path, job: &Job, journal: &Path, target: &Path, run: Run) -> Result<()> {
    let missing = || Error::Internal(format!("{}: no journal", target.display()));
    let Left { journal: mut whole, key, files } = Journal::peek(target)?.ok_or_else(missing)?;
    let opened = files.iter().map(|file| Written::open_public(file).map_err(|e| Error::io(file, e)));
    let opened: Vec<Written> = opened.collect::<Result<_>>()?;
    for task in 0..job.tasks.len() {
        let from = task_folder(path, task).join(journal);
        let Some(Contents { key: theirs, files: sources, parts }) = Journal::contents(&from)? else { continue };
        if let Some((name, was, is)) = difference(&theirs, &key) {
            let what = format!("task {task} made parts of another run: its {name} was {was}, and is {is} here");
            return Err(Error::bad_file(&from, what));
        }
        for (part, record, pieces) in parts {
            for piece in &pieces {
                run.check()?;
                if !piece.is_there(&sources, run)? {
                    let what = format!("is not what task {task} has written: it was damaged or cut short");
                    let hint = format!("remove {}, and run task {task} again", task_folder(path, task).display());
                    return Err(Error::bad_file(sources.get(piece.file).unwrap_or(&from), what).hint(hint));
                }
                let (source, to) = (&sources[piece.file], opened.get(piece.file).ok_or_else(missing)?);
                let source = File::open(source).map_err(|e| Error::io(source, e))?;
                to.copy_range(&source, piece.at, piece.at, piece.len).map_err(|e| Error::io(to.path(), e))?;
            }
            opened.iter().try_for_each(|file| file.sync().map_err(|e| Error::io(file.path(), e)))?;
            whole.finish(&part, record, pieces)?;
        }
    }
    whole.keep_on_drop(true);
    Ok(())
}
