//! What lets an interrupted run go on, of files and of folders alike: a line of JSON about the run, and one for every
//! part of the work that is on the disk. The bytes themselves are in the unfinished outputs. A line that a kill cut short
//! does not count; a journal of another run is refused and left alone, naming what differs.

use super::identity::difference;
use crate::error::Unfinished;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What the first line says the file is.
const KIND: &str = "quantize journal 2";
/// A journal grows by a few MB per layer; a larger file is none.
const LIMIT: u64 = 4 << 30;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: String,
    /// What the run is of: an equal one alone goes on.
    key: Value,
    /// Unfinished files, where their names do not follow from the output's.
    files: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    part: String,
    record: Value,
}

/// An open journal, which no other process can open meanwhile.
pub struct Journal {
    path: PathBuf,
    file: File,
    /// In the order in which they were finished; of a part that was done twice, both.
    parts: Vec<(String, Value)>,
    keep: bool,
}

/// What an earlier run left.
pub struct Left {
    pub journal: Journal,
    pub files: Vec<PathBuf>,
}

impl Journal {
    /// Begins a journal at `path`, where none is. It appears whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(path: &Path, key: &Value, files: Vec<PathBuf>) -> Result<Journal> {
        let io = |e| Error::io(path, e);
        let mut new = path.as_os_str().to_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let begin = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
            write_line(&mut file, &Head { kind: KIND.into(), key: key.clone(), files })?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
            Ok(file)
        };
        let file = begin().inspect_err(|_| {
            let _ = std::fs::remove_file(&new);
        });
        let file = file.map_err(io)?;
        lock(&file, path)?;
        Ok(Journal { path: path.to_path_buf(), file, parts: Vec::new(), keep: false })
    }

    /// Opens the journal that an earlier run left at `path`; `None` where there is none, or none that was begun.
    ///
    /// # Errors
    /// `Exists` for a file that is no journal; `Unfinished` when it is of another run, naming what differs, or in use;
    /// `Io`.
    pub fn resume(path: &Path, key: &Value) -> Result<Option<Left>> {
        let Some((head, mut journal)) = Self::open(path)? else { return Ok(None) };
        if head.key != *key {
            let (name, was, is) = difference(&head.key, key).unwrap_or_default();
            // It is not this run's to remove.
            journal.keep = true;
            let why = Unfinished::OfAnotherRun { name, was, is };
            return Err(Error::Unfinished { path: path.to_path_buf(), why });
        }
        Ok(Some(Left { journal, files: head.files }))
    }

    /// The journal at `path` whatever its key, for who wants to know what is there or to remove it.
    ///
    /// # Errors
    /// As [`Journal::resume`].
    pub fn peek(path: &Path) -> Result<Option<Left>> {
        let opened = Self::open(path)?;
        Ok(opened.map(|(head, mut journal)| {
            journal.keep = true;
            Left { journal, files: head.files }
        }))
    }

    fn open(path: &Path) -> Result<Option<(Head, Journal)>> {
        let io = |e| Error::io(path, e);
        let metadata = match path.symlink_metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(io)?,
        };
        let foreign = || Error::Exists {
            path: path.to_path_buf(),
            what: "is no journal of an interrupted run, and is left alone; move it away",
            replaceable: false,
        };
        if !metadata.is_file() || metadata.len() > LIMIT {
            return Err(foreign());
        }
        let mut file = OpenOptions::new().read(true).append(true).open(path).map_err(io)?;
        lock(&file, path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let mut lines = bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n"));
        let head = lines.next().and_then(|line| serde_json::from_slice::<Head>(line).ok());
        let Some(head) = head.filter(|head| head.kind == KIND) else { return Err(foreign()) };
        let mut len = bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut parts = Vec::new();
        for line in lines {
            let Ok(Part { part, record }) = serde_json::from_slice(line) else { break };
            parts.push((part, record));
            len += line.len();
        }
        // What a kill cut short goes, so that the next line begins on its own.
        file.set_len(len as u64).map_err(io)?;
        Ok(Some((head, Journal { path: path.to_path_buf(), file, parts, keep: true })))
    }

    /// Parts that are finished.
    pub fn parts(&self) -> &[(String, Value)] {
        &self.parts
    }

    /// What was noted about a finished part.
    pub fn finished(&self, part: &str) -> Option<&Value> {
        self.parts.iter().rev().find(|(name, _)| name == part).map(|(_, record)| record)
    }

    /// Notes a part whose bytes are on the disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(&mut self, part: &str, record: Value) -> Result<()> {
        let line = Part { part: part.to_string(), record };
        let written = write_line(&mut self.file, &line).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.path, e))?;
        self.parts.push((line.part, line.record));
        Ok(())
    }

    /// Whether the journal stays when it is dropped.
    pub fn keep_on_drop(&mut self, keep: bool) {
        self.keep = keep;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Unfinished { path: path.to_path_buf(), why: Unfinished::InUse }),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn write_line(file: &mut File, line: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resume(path: &Path, key: &Value) -> Left {
        Journal::resume(path, key).unwrap().unwrap()
    }

    #[test]
    fn a_cut_line_does_not_count_and_another_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.resume");
        let key = json!({ "recipe": { "to": "q4_k" } });
        assert!(Journal::resume(&path, &key).unwrap().is_none());
        let mut journal = Journal::create(&path, &key, vec!["x".into()]).unwrap();
        journal.finish("layer 0", json!({ "sum": (0.1f64 + 0.2).to_bits() })).unwrap();
        journal.finish("layer 1", json!([])).unwrap();
        assert!(matches!(Journal::resume(&path, &key), Err(Error::Unfinished { why: Unfinished::InUse, .. })));
        journal.keep_on_drop(true);
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let left = resume(&path, &key);
        assert_eq!((left.files, left.journal.parts().len()), (vec![PathBuf::from("x")], 2));
        assert_eq!(left.journal.finished("layer 0").unwrap()["sum"], (0.1f64 + 0.2).to_bits());
        drop(left.journal);
        // Any cut leaves the parts before it.
        for cut in [1, 10] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut journal = resume(&path, &key).journal;
            assert!(journal.finished("layer 1").is_none() && journal.finished("layer 0").is_some());
            journal.finish("layer 1", json!([])).unwrap();
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let other = Journal::resume(&path, &json!({ "recipe": { "to": "q5_k" } })).err().unwrap();
        assert!(other.to_string().contains("recipe.to was \"q4_k\", and is \"q5_k\" here"), "{other}");
        assert_eq!(std::fs::read(&path).unwrap(), whole, "left alone");
    }

    #[test]
    fn files_that_are_no_journal_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.resume");
        for text in ["", "notes of mine\n", "{}\n", "{\"kind\":\"quantize jour"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(Journal::resume(&path, &json!({})), Err(Error::Exists { .. })), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
