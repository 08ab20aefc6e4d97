//! One task: a run of some parts, in a folder that gets its name when everything in it is on the disk. Whoever comes second
//! with the same task throws its own folder away, so that it does not matter how often a task is started, or how often at once.

use super::finished::{DONE, Done, TASKS, done, task_folder};
use super::work::{Phase, Tasks, Work};
use crate::control::{Control, Report, Run};
use crate::disk::{self, Written};
use crate::error::Hint;
use crate::{Error, Result};
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Locked by who works in a folder.
pub(super) const LOCK: &str = "lock";

/// The file that says why a task last failed.
pub(super) fn failure(job: &Path, task: usize) -> PathBuf {
    job.join(TASKS).join(format!("{task}.failed"))
}

/// What the names of folders in which a task is worked on begin with.
pub(super) fn attempts(task: usize) -> String {
    format!(".{task}.")
}

/// Does a task, unless it is done. Whether it was done now.
///
/// # Errors
/// `Request` for a task that there is not, or whose phase is not due; `BadInput` when the source is not the job's; those of
/// what it does.
pub fn run(path: &Path, job: &dyn Tasks, task: usize, control: &Control, report: &dyn Report) -> Result<bool> {
    let Some(what) = job.tasks().get(task) else {
        return Err(Error::request(format!(
            "the job has the tasks 0 to {}, not {task}",
            job.tasks().len().saturating_sub(1)
        )));
    };
    if done(path, task)?.is_some() {
        return Ok(false);
    }
    before(job, task)?.into_iter().try_for_each(|phase| complete(path, phase))?;
    let start = Instant::now();
    let nonce = RandomState::new().hash_one(std::process::id());
    let own = path.join(TASKS).join(format!("{}{nonce:016x}", attempts(task)));
    disk::create_folder(&own).map_err(|e| Error::io(&own, e))?;
    let made = make(path, &own, job, &what.work, control, report);
    let finished = made.and_then(|done| {
        let done = Done { seconds: start.elapsed().as_secs_f64(), ..done };
        finish(&own, &task_folder(path, task), &done)
    });
    let failed = failure(path, task);
    match &finished {
        Ok(_) => disk::remove_file(&failed).map_err(|e| Error::io(&failed, e))?,
        Err(e) => {
            let _ = disk::remove_folder(&own, LOCK);
            if !matches!(e, Error::Interrupted) {
                let _ = disk::write(&failed, e.to_string().as_bytes());
            }
        }
    }
    finished
}

/// The phases that have to be finished before a task.
fn before(job: &dyn Tasks, task: usize) -> Result<Vec<&Phase>> {
    let phase = job.phases().iter().find(|phase| phase.tasks.contains(&task));
    phase.into_iter().flat_map(|phase| &phase.after).map(|name| job.phase(name)).collect()
}

/// Whether the phases before that of a task are finished.
///
/// # Errors
/// `BadInput` for what is not as it was written.
pub fn is_due(path: &Path, job: &dyn Tasks, task: usize) -> Result<bool> {
    for phase in before(job, task)? {
        if !missing(path, phase)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The tasks of a phase that are not done.
fn missing(path: &Path, phase: &Phase) -> Result<Vec<usize>> {
    let mut missing = Vec::new();
    for task in phase.tasks.clone() {
        if done(path, task)?.is_none() {
            missing.push(task);
        }
    }
    Ok(missing)
}

/// Refuses a phase of which tasks are missing.
///
/// # Errors
/// `Request` naming them.
pub(crate) fn complete(path: &Path, phase: &Phase) -> Result<()> {
    let missing = missing(path, phase)?;
    if missing.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = missing.iter().take(10).map(usize::to_string).collect();
    let more = if missing.len() > 10 { ", ..." } else { "" };
    let are = if missing.len() == 1 { "task is" } else { "tasks are" };
    let what = format!("phase {}: {} {are} not done: {}{more}", phase.name, missing.len(), shown.join(", "));
    Err(Error::request(what).hint(Hint::JobStatus))
}

/// Does what a task is for, in a folder that is locked meanwhile.
fn make(
    path: &Path,
    own: &Path,
    job: &dyn Tasks,
    work: &[Work],
    control: &Control,
    report: &dyn Report,
) -> Result<Done> {
    let lock = own.join(LOCK);
    let _lock = Written::open(&lock).and_then(|file| file.lock().map(|()| file)).map_err(|e| Error::io(&lock, e))?;
    let spill = Some(own.to_path_buf());
    let control = Control { sparse: true, resume: false, force: false, spill, ..control.clone() };
    job.make(path, own, work, Run::new(&control, report))
}

/// Gives what was made its name. Whether it was the first of it.
fn finish(own: &Path, named: &Path, done: &Done) -> Result<bool> {
    let path = own.join(DONE);
    let text = serde_json::to_string(done).map_err(|e| Error::Internal(e.to_string()))?;
    let write = || -> std::io::Result<()> {
        let file = Written::open_public(&path)?;
        file.write_at(0, text.as_bytes())?;
        file.sync()
    };
    write().map_err(|e| Error::io(&path, e))?;
    let lock = own.join(LOCK);
    disk::remove_file(&lock).map_err(|e| Error::io(&lock, e))?;
    disk::sync_folder_of(&path);
    match disk::rename(own, named) {
        Ok(()) => {
            disk::sync_folder_of(named);
            Ok(true)
        }
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {
            disk::remove_folder(own, DONE).map_err(|e| Error::io(own, e))?;
            Ok(false)
        }
        Err(e) => Err(Error::io(named, e)),
    }
}
