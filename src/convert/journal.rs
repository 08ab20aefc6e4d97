//! What lets an interrupted run go on, of files and of folders alike: a line about the run, and one for every part of the
//! work that is on the disk, each with its own hash. The bytes themselves are in the unfinished outputs; a line has the
//! place and the hash of every tensor of its part. A line that a kill cut short does not count, nor does one whose
//! tensors are not what was noted, or any after it; a journal of another run is refused and left alone, naming what
//! differs.

use super::identity::difference;
use crate::control::Run;
use crate::digest::sha256;
use crate::disk::{self, Written};
use crate::error::Unfinished;
use crate::writer::pieces::Piece;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What the first line says the file is.
const KIND: &str = "quantize journal 3";
/// How the name of one ends that is not begun yet.
pub(super) const NEW: &str = ".new";
/// A journal grows by a few MB per layer; a larger file is none.
const LIMIT: u64 = 4 << 30;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: String,
    /// What the run is of; only a run with an equal key goes on.
    key: Value,
    /// Unfinished files: names of those beside the journal, whole paths of others.
    files: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    part: String,
    record: Value,
    /// What was written for it.
    pieces: Vec<Piece>,
}

/// An open journal, which no other process can open meanwhile.
pub struct Journal {
    file: Written,
    len: u64,
    /// In the order in which they were finished; of a part that was done twice, both.
    parts: Vec<Line>,
    keep: bool,
}

/// A journal that was read, with what was written for each of its parts.
type Opened = (Head, Journal, Vec<Vec<Piece>>);

/// Where the line of a part lies. Its record stays on the disk: those of all layers together are large.
struct Line {
    part: String,
    at: u64,
    len: usize,
}

/// What an earlier run left.
pub struct Left {
    pub journal: Journal,
    /// What the run was of.
    pub key: Value,
    pub files: Vec<PathBuf>,
}

/// What a journal holds.
pub struct Contents {
    /// What the run was of.
    pub key: Value,
    pub files: Vec<PathBuf>,
    /// Names, records, and what was written for each.
    pub parts: Vec<(String, Value, Vec<Piece>)>,
}

impl Journal {
    /// Begins a journal at `path`, where none is. It appears whole or not at all.
    ///
    /// # Errors
    /// `Unfinished` while another run begins one there; `Io`.
    pub fn create(path: &Path, key: &Value, files: Vec<PathBuf>) -> Result<Journal> {
        let new = unborn(path);
        let files = files.iter().map(|file| stored(path, file)).collect::<Result<_>>()?;
        let first = line(&Head { kind: KIND.into(), key: key.clone(), files })?;
        let begin = || -> std::io::Result<Written> {
            let file = loop {
                let file = Written::open(&new)?;
                file.lock()?;
                // Between the two calls another run may have taken it for a dead one's.
                if file.is_in_place()? {
                    break file;
                }
            };
            file.set_len(0)?;
            file.write_at(0, &first)?;
            file.sync()?;
            disk::rename(&new, path)?;
            Ok(file.at(path))
        };
        let file = begin().inspect_err(|e| {
            if e.kind() != ErrorKind::WouldBlock {
                let _ = disk::remove_file(&new);
            }
        });
        let file = file.map_err(|e| in_use(path, e))?;
        Ok(Journal { file, len: first.len() as u64, parts: Vec::new(), keep: false })
    }

    /// Removes what a run left that was killed while it began a journal at `path`; not that of one which begins it now.
    ///
    /// # Errors
    /// `Io`.
    pub fn forget_unborn(path: &Path) -> Result<()> {
        let new = unborn(path);
        let remove = || -> std::io::Result<()> {
            if !new.symlink_metadata().is_ok_and(|m| m.is_file()) {
                return Ok(());
            }
            let file = Written::open(&new)?;
            match file.lock() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
                _ => disk::remove_file(file.path()),
            }
        };
        remove().map_err(|e| Error::io(&new, e))
    }

    /// Opens the journal that an earlier run left at `path`; `None` where there is none, or none that was begun. Parts
    /// whose bytes are not what was noted are forgotten, with all that were finished after them.
    ///
    /// # Errors
    /// `Exists` for a file that is no journal; `Unfinished` when it is of another run, naming what differs, or in use;
    /// `Io`; `Interrupted`.
    pub fn resume(path: &Path, key: &Value, run: Run) -> Result<Option<Left>> {
        let Some((head, mut journal, pieces)) = Self::open(path)? else { return Ok(None) };
        if head.key != *key {
            let (name, was, is) = difference(&head.key, key).unwrap_or_default();
            // It is not this run's to remove.
            journal.keep = true;
            let why = Unfinished::OfAnotherRun { name, was, is };
            return Err(Error::Unfinished { path: path.to_path_buf(), why });
        }
        let sound = sound(&head.files, &pieces, run)?;
        if sound < journal.parts.len() {
            let what = format!(
                "{} of {} finished parts are damaged or follow a damaged one, and will be redone",
                journal.parts.len() - sound,
                journal.parts.len()
            );
            run.notice(crate::control::Notice::Warning(what));
            journal.len = journal.parts[sound].at;
            journal.parts.truncate(sound);
            journal.file.set_len(journal.len).map_err(|e| Error::io(path, e))?;
        }
        Ok(Some(Left { journal, key: head.key, files: head.files }))
    }

    /// The journal at `path` whatever its key: to say what is there, or to remove it.
    ///
    /// # Errors
    /// As [`Journal::resume`].
    pub fn peek(path: &Path) -> Result<Option<Left>> {
        let opened = Self::open(path)?;
        Ok(opened.map(|(head, mut journal, _)| {
            journal.keep = true;
            Left { journal, key: head.key, files: head.files }
        }))
    }

    /// All that a run has finished, whatever its key.
    ///
    /// # Errors
    /// As [`Journal::resume`]; `BadInput` when it was changed meanwhile.
    pub fn contents(path: &Path) -> Result<Option<Contents>> {
        let Some((head, journal, pieces)) = Self::open(path)? else { return Ok(None) };
        let mut parts = Vec::new();
        for (line, pieces) in journal.parts.iter().zip(pieces) {
            let record = journal.finished(&line.part)?.unwrap_or_default();
            parts.push((line.part.clone(), record, pieces));
        }
        Ok(Some(Contents { key: head.key, files: head.files, parts }))
    }

    fn open(path: &Path) -> Result<Option<Opened>> {
        let io = |e| Error::io(path, e);
        let metadata = match path.symlink_metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.map_err(io)?,
        };
        let foreign = |what| Error::Exists { path: path.to_path_buf(), what, replaceable: false };
        let none =
            || foreign("is not the journal of an interrupted run and was left untouched; move it out of the way");
        if !metadata.is_file() || metadata.len() > LIMIT {
            return Err(none());
        }
        let mut file = Written::open(path).map_err(io)?;
        file.lock().map_err(|e| in_use(path, e))?;
        let bytes = file.read_all().map_err(io)?;
        let mut lines = bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n"));
        let first = lines.next();
        let Some(mut head) = first.and_then(read_line::<Head>).filter(|head| head.kind == KIND) else {
            // Version 0.1.0's lines have no hashes.
            let old = first.is_some_and(|line| line.starts_with(br#"{"kind":"quantize journal 2""#));
            return Err(if old { foreign("was left by another version of this program; remove it") } else { none() });
        };
        head.files.iter_mut().for_each(|file| *file = disk::folder_of(path).join(&*file));
        let mut len = first.map_or(0, <[u8]>::len) as u64;
        let (mut parts, mut pieces) = (Vec::new(), Vec::new());
        for line in lines {
            let Some(part) = read_line::<Part>(line) else { break };
            parts.push(Line { part: part.part, at: len, len: line.len() });
            pieces.push(part.pieces);
            len += line.len() as u64;
        }
        // What a kill cut short goes, so that the next line begins on its own.
        file.set_len(len).map_err(io)?;
        Ok(Some((head, Journal { file, len, parts, keep: true }, pieces)))
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// How many parts are finished.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The names of the finished parts.
    pub fn names(&self) -> Vec<String> {
        self.parts.iter().map(|line| line.part.clone()).collect()
    }

    /// Whether a part is finished.
    pub fn has(&self, part: &str) -> bool {
        self.find(part).is_some()
    }

    fn find(&self, part: &str) -> Option<&Line> {
        self.parts.iter().rev().find(|line| line.part == part)
    }

    /// What was noted about a finished part.
    ///
    /// # Errors
    /// `Io`; `BadInput` when the journal was changed since it was read.
    pub fn finished(&self, part: &str) -> Result<Option<Value>> {
        let Some(line) = self.find(part) else { return Ok(None) };
        let bytes = self.file.read_at(line.at, line.len).map_err(|e| Error::io(self.path(), e))?;
        let changed = || Error::bad_file(self.path(), "was changed while it was in use");
        Ok(Some(read_line::<Part>(&bytes).ok_or_else(changed)?.record))
    }

    /// Notes a part whose bytes are on the disk, where they lie and what they are.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(&mut self, part: &str, record: Value, pieces: Vec<Piece>) -> Result<()> {
        let part = Part { part: part.to_string(), record, pieces };
        let text = line(&part)?;
        let written = self.file.write_at(self.len, &text).and_then(|()| self.file.sync());
        written.map_err(|e| Error::io(self.file.path(), e))?;
        self.parts.push(Line { part: part.part, at: self.len, len: text.len() });
        self.len += text.len() as u64;
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(mut self) -> Result<()> {
        self.keep = true;
        disk::remove_file(self.file.path()).map_err(|e| Error::io(self.file.path(), e))
    }

    /// Whether the journal stays when it is dropped.
    pub fn keep_on_drop(&mut self, keep: bool) {
        self.keep = keep;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.keep {
            let _ = disk::remove_file(self.file.path());
        }
    }
}

/// How many parts, from the first, have the bytes that were noted. What a later part has written over is that part's, and
/// if that one is forgotten, the earlier one's bytes are gone.
fn sound(files: &[PathBuf], parts: &[Vec<Piece>], run: Run) -> Result<usize> {
    let mut known: HashMap<&Piece, bool> = HashMap::new();
    let mut sound = parts.len();
    loop {
        let (mut later, mut damaged) = (BTreeSet::new(), None);
        for (i, pieces) in parts[..sound].iter().enumerate().rev() {
            for piece in pieces.iter().filter(|piece| later.insert((piece.file, piece.at))) {
                let there = match known.get(piece) {
                    Some(there) => *there,
                    None => piece.is_there(files, run)?,
                };
                known.insert(piece, there);
                if !there {
                    damaged = Some(i);
                }
            }
        }
        match damaged {
            Some(first) => sound = first,
            None => return Ok(sound),
        }
    }
}

/// The name that a journal at `path` has until its first line is whole.
fn unborn(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_os_string();
    new.push(NEW);
    PathBuf::from(new)
}

/// An unfinished file as a journal at `path` names it.
fn stored(path: &Path, file: &Path) -> Result<PathBuf> {
    match disk::folder_of(file) == disk::folder_of(path) {
        true => Ok(file.file_name().unwrap_or_default().into()),
        false => std::path::absolute(file).map_err(|e| Error::io(file, e)),
    }
}

fn in_use(path: &Path, e: std::io::Error) -> Error {
    match e.kind() {
        ErrorKind::WouldBlock => Error::Unfinished { path: path.to_path_buf(), why: Unfinished::InUse },
        _ => Error::io(path, e),
    }
}

/// Hash, blank, JSON, end of line.
fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(format!("{} {json}\n", sha256(json.as_bytes())).into_bytes())
}

fn read_line<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Option<T> {
    let (hash, json) = line.strip_suffix(b"\n")?.split_at_checked(64)?;
    let json = json.strip_prefix(b" ")?;
    (sha256(json).as_bytes() == hash).then(|| serde_json::from_slice(json).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;
    use serde_json::json;

    fn resume(path: &Path, key: &Value) -> Left {
        Journal::resume(path, key, Run::new(&Control::default(), &())).unwrap().unwrap()
    }

    #[test]
    fn a_cut_line_does_not_count_and_another_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.resume");
        let key = json!({ "recipe": { "to": "q4_k" } });
        assert!(Journal::resume(&path, &key, Run::new(&Control::default(), &())).unwrap().is_none());
        let mut journal = Journal::create(&path, &key, vec![dir.path().join("x")]).unwrap();
        journal.finish("layer 0", json!({ "sum": (0.1f64 + 0.2).to_bits() }), Vec::new()).unwrap();
        journal.finish("layer 1", json!([]), Vec::new()).unwrap();
        assert!(matches!(
            Journal::resume(&path, &key, Run::new(&Control::default(), &())),
            Err(Error::Unfinished { why: Unfinished::InUse, .. })
        ));
        journal.keep_on_drop(true);
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let left = resume(&path, &key);
        assert_eq!((left.files, left.journal.parts()), (vec![dir.path().join("x")], 2));
        assert_eq!(left.journal.finished("layer 0").unwrap().unwrap()["sum"], (0.1f64 + 0.2).to_bits());
        drop(left.journal);
        // Any cut leaves the parts before it.
        for cut in [1, 10] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut journal = resume(&path, &key).journal;
            assert!(!journal.has("layer 1") && journal.has("layer 0"));
            journal.finish("layer 1", json!([]), Vec::new()).unwrap();
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let other = Journal::resume(&path, &json!({ "recipe": { "to": "q5_k" } }), Run::new(&Control::default(), &()))
            .err()
            .unwrap();
        assert!(other.to_string().contains("recipe.to was \"q4_k\", and here it is \"q5_k\""), "{other}");
        assert_eq!(std::fs::read(&path).unwrap(), whole, "left alone");
    }

    #[test]
    fn files_that_are_no_journal_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.resume");
        for text in ["", "notes of mine\n", "{}\n", "{\"kind\":\"quantize jour"] {
            std::fs::write(&path, text).unwrap();
            assert!(
                matches!(
                    Journal::resume(&path, &json!({}), Run::new(&Control::default(), &())),
                    Err(Error::Exists { .. })
                ),
                "{text}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn parts_whose_bytes_changed_are_forgotten_with_all_after_them() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("a.resume"), dir.path().join("a.partial"));
        std::fs::write(&file, b"onetwothree").unwrap();
        let piece = |at: u64, bytes: &[u8]| Piece { file: 0, at, len: bytes.len() as u64, sha256: sha256(bytes) };
        let key = json!({});
        let mut journal = Journal::create(&path, &key, vec![file.clone()]).unwrap();
        // What a later part wrote over is no longer the earlier one's, unless the later one is forgotten.
        journal.finish("zero", json!(0), vec![piece(3, b"xxx")]).unwrap();
        journal.finish("one", json!(1), vec![piece(0, b"one")]).unwrap();
        journal.finish("two", json!(2), vec![piece(3, b"two")]).unwrap();
        journal.finish("three", json!(3), vec![piece(6, b"three")]).unwrap();
        journal.keep_on_drop(true);
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let parts = |bytes: &[u8]| {
            std::fs::write(&path, &whole).unwrap();
            std::fs::write(&file, bytes).unwrap();
            let parts = resume(&path, &key).journal.parts();
            // What is forgotten stays so.
            std::fs::write(&file, b"onetwothree").unwrap();
            assert_eq!(resume(&path, &key).journal.parts(), parts);
            parts
        };
        assert_eq!(parts(b"onetwothree"), 4);
        assert_eq!(parts(b"onetwothre!"), 3);
        assert_eq!(parts(b"onetwothre"), 3);
        assert_eq!(parts(b"one2wothree"), 0);
        assert_eq!(parts(b"0netwothree"), 0);
        // A line that was changed ends what is known.
        let at = whole.len() - 10;
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert_eq!(resume(&path, &key).journal.parts(), 3);
    }
}
