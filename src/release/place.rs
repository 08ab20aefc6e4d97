//! The folder of a release while it is made: under another name, with a note of what it is of, so that another run can go
//! on with it and no other takes its place. It gets its name when it is whole.

use super::hashes::SUMS;
use crate::control::{Control, Notice, Run};
use crate::convert::identity::difference;
use crate::disk;
use crate::error::Unfinished;
use crate::writer::folder::{self, MANIFEST};
use crate::writer::publish::{Stamp, Step};
use crate::{Error, Result};
use serde_json::Value;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The note in an unfinished release. Its presence is what lets this program replace or remove the folder.
const NOTE: &str = ".quantize-release";
/// That of a run which says something else of the same release, until it takes the first one's place.
const NEW_NOTE: &str = ".quantize-release.new";

/// What the note of a release says.
pub fn note(key: &Value, words: &str) -> Value {
    let mut note = key.clone();
    note[WORDS] = words.into();
    note
}

/// Of a note: a hash of what only cards and figures hang on.
const WORDS: &str = "words";

/// An unfinished release that this run alone works on. What is in it stays when this is dropped, and the folder goes where
/// there is nothing.
pub struct Place {
    target: PathBuf,
    partial: PathBuf,
    force: bool,
    /// Whether it is an earlier run's that goes on.
    pub resumed: bool,
    /// Locked.
    _note: File,
    gone: bool,
}

impl Place {
    /// Brings to its end what a run left that was killed while it gave `target` its name. What that release is of, where
    /// there is such a one.
    ///
    /// # Errors
    /// `Unfinished` while that run is at work; `Exists`; `Io`.
    pub fn complete(target: &Path, run: Run) -> Result<Option<Value>> {
        let partial = folder::partial_path(target);
        let is_named = target.join(NOTE).is_file();
        // Where the system cannot exchange folders, there is a moment between two names.
        let is_between = || {
            let old = disk::folder_of(target).join(replaced(target));
            target.symlink_metadata().is_err() && old.join(MANIFEST).is_file() && partial.join(SUMS).is_file()
        };
        let (note, step) = match is_named {
            true => (target.join(NOTE), step(&partial, target, None)),
            false if is_between() => (partial.join(NOTE), step(&partial, target, Stamp::of(&partial.join(SUMS)))),
            false => return Ok(None),
        };
        if !note.is_file() {
            return Ok(None);
        }
        let _lock = locked(&note, target)?;
        let key = crate::input::read_json(&note).unwrap_or_default();
        step.catch_up(disk::folder_of(target))?;
        let what = format!("an interrupted run had finished {}: its naming is completed", target.display());
        run.notice(Notice::Info(what));
        Ok(Some(key))
    }

    /// Makes the unfinished folder of `target`, or takes up the one that is there. `key`: what the release is of; `words`: what
    /// is said of it, which a run that goes on says in its own way.
    ///
    /// # Errors
    /// `Exists`; `Unfinished` when another run is at work there, or left what this one cannot continue or was not asked
    /// to; `Io`.
    pub fn begin(target: &Path, key: &Value, words: &str, run: Run) -> Result<Place> {
        let Control { force, resume, .. } = *run.control;
        let partial = folder::partial_path(target);
        let written = note(key, words).to_string();
        let mut resumed = false;
        if partial.symlink_metadata().is_ok() {
            let note = partial.join(NOTE);
            if !note.is_file() && holds_anything(&partial) {
                let what = "is in the way and was not made by this program; move it";
                return Err(Error::Exists { path: partial, what, replaceable: false });
            }
            // Held until the folder is gone or taken up.
            let lock = if note.is_file() { Some(locked(&note, target)?) } else { None };
            let mut there: Value = crate::input::read_json(&note).unwrap_or_default();
            let said = there.as_object_mut().and_then(|note| note.remove(WORDS));
            let parts = parts(&partial);
            match difference(&there, key) {
                None if resume => {
                    resumed = true;
                    if said.is_none_or(|said| said != words) {
                        let new = partial.join(NEW_NOTE);
                        let put = disk::write(&new, written.as_bytes()).and_then(|()| disk::rename(&new, &note));
                        put.map_err(|e| Error::io(&note, e))?;
                    }
                }
                Some((name, was, is)) if resume && parts > 0 => {
                    return Err(Error::Unfinished { path: partial, why: Unfinished::OfAnotherRun { name, was, is } });
                }
                _ if parts > 0 && !force => {
                    return Err(Error::Unfinished { path: partial, why: Unfinished::Parts(parts) });
                }
                _ => disk::remove_folder(&partial, NOTE).map_err(|e| Error::io(&partial, e))?,
            }
            drop(lock);
        }
        if !resumed {
            disk::create_folder(&partial).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::storage(format!("{}: its parent folder does not exist", target.display()))
                }
                _ => Error::io(&partial, e),
            })?;
            let note = partial.join(NOTE);
            disk::write(&note, written.as_bytes()).map_err(|e| Error::io(&note, e))?;
        }
        let note = locked(&partial.join(NOTE), target)?;
        Ok(Place { target: target.to_path_buf(), partial, force, resumed, _note: note, gone: false })
    }

    /// Where the release is made.
    pub fn folder(&self) -> &Path {
        &self.partial
    }

    /// Writes a small file.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.partial.join(name);
        disk::write(&path, text.as_bytes()).map_err(|e| Error::io(&path, e))
    }

    /// Copies a small file.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let bytes = crate::input::read(from)?;
        let path = self.partial.join(name);
        disk::write(&path, &bytes).map_err(|e| Error::io(&path, e))
    }

    /// The files of the release, from its folder on, in order. What earlier runs left unfinished goes.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(sub) = folders.pop() {
            let dir = self.partial.join(&sub);
            for entry in std::fs::read_dir(&dir).map_err(|e| Error::io(&dir, e))? {
                let entry = entry.map_err(|e| Error::io(&dir, e))?;
                let path = entry.path();
                let Ok(name) = entry.file_name().into_string() else { continue };
                let full = if sub.is_empty() { name.clone() } else { format!("{sub}/{name}") };
                let ends = [
                    ".partial",
                    ".suspect",
                    ".resume",
                    ".publishing",
                    ".publishing.new",
                    ".resume.new",
                    ".quantize-journal",
                    NEW_NOTE,
                ];
                let left = ends.iter().any(|end| name.ends_with(end));
                match (path.is_dir(), left) {
                    _ if full == NOTE => {}
                    (true, true) => disk::remove_folder(&path, MANIFEST).map_err(|e| Error::io(&path, e))?,
                    (false, true) => disk::remove_file(&path).map_err(|e| Error::io(&path, e))?,
                    (true, false) => folders.push(full),
                    (false, false) => found.push(full),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Gives the release its name.
    ///
    /// # Errors
    /// `Exists`, where something took the name meanwhile; `Io`.
    pub fn publish(mut self) -> Result<PathBuf> {
        folder::refuse_existing(&self.target, self.force)?;
        let target = self.target.clone();
        self.take(&target)?;
        Ok(target)
    }

    /// Gives a release that failed its gates a name that says so, in place of an earlier one.
    ///
    /// # Errors
    /// `Exists`; `Io`.
    pub fn reject(mut self) -> Result<PathBuf> {
        let kept = failed_name(&self.target);
        folder::refuse_existing(&kept, true)?;
        self.take(&kept)?;
        Ok(kept)
    }

    /// Takes a name, and leaves the note behind.
    fn take(&mut self, target: &Path) -> Result<()> {
        let stamp = Stamp::of(&self.partial.join(SUMS));
        step(&self.partial, target, stamp).carry_out(disk::folder_of(target))?;
        self.gone = true;
        Ok(())
    }

    /// Says that there is something to go on with.
    pub fn tell(&self, run: Run) {
        if parts(&self.partial) > 0 {
            run.notice(Notice::Kept(self.partial.clone()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.gone && parts(&self.partial) == 0 {
            let _ = disk::remove_folder(&self.partial, NOTE);
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of what is replaced, until it is gone.
fn replaced(target: &Path) -> String {
    format!("{}.replaced", name_of(target))
}

/// How the folder gets its name.
fn step(partial: &Path, target: &Path, stamp: Option<Stamp>) -> Step {
    let (from, to) = (name_of(partial), name_of(target));
    Step::Folder { from, to, old: replaced(target), journal: NOTE.into(), last: SUMS.into(), stamp }
}

/// The name of a release that failed its gates.
pub fn failed_name(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.failed"))
}

/// What there is in an unfinished release that another run can use.
fn parts(partial: &Path) -> usize {
    let unfinished = |name: &str| name.ends_with(".partial") || name.ends_with(".publishing");
    let is_part = |name: &str| name != NOTE && name != NEW_NOTE && !(name.starts_with('.') && unfinished(name));
    let entries = std::fs::read_dir(partial).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| is_part(name) && !name.ends_with("-imatrix.gguf")).count()
}

fn holds_anything(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut inside| inside.next().is_some())
}

/// The note, open and locked.
fn locked(note: &Path, target: &Path) -> Result<File> {
    let file = File::open(note).map_err(|e| Error::io(note, e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::Unfinished { path: target.to_path_buf(), why: Unfinished::BeingWritten })
        }
        _ => Ok(file),
    }
}

/// What the release in a folder calls itself, for the message that it is in the way; `None` where there is none.
pub fn describe(target: &Path) -> Option<String> {
    let manifest: Value = crate::input::read_json(&target.join(MANIFEST)).ok()?;
    let text = |key: &str| manifest[key].as_str().map(String::from);
    let rows = manifest["artifacts"].as_array()?;
    let types: Vec<&str> = rows.iter().filter_map(|row| row["type"].as_str()).collect();
    let (name, version) = (text("name")?, text("quantize_version")?);
    Some(format!("holds a release of {name}: {} (quantize {version})", types.join(", ")))
}
