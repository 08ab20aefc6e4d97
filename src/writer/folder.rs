//! A checkpoint folder being written: safetensors shards whose layout is known before a byte is, plus the small files
//! around them. Everything is made in a folder beside the target and renamed in the end. Finished parts of the work are
//! journalled there, so that a run that was killed can be continued by another with the same recipe.

use super::atomic::{free_space, reserve, sync_folder, write_all_at};
use super::gguf::human;
use super::safetensors::{self, Entry, Layout};
use crate::source::{SourceFile, parse_safetensors_header};
use crate::{Error, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The provenance of a folder that this program made. Its presence is what lets `--force` replace the folder.
pub const MANIFEST: &str = "quantize-manifest.json";
const JOURNAL: &str = ".quantize-journal";

/// How an unfinished or finished folder that is already there is dealt with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Existing {
    /// Replace a finished folder of this program, and begin anew where a run was cut short.
    pub force: bool,
    /// Continue a run that was cut short.
    pub resume: bool,
}

/// A folder under a temporary name. Dropped before [`Folder::publish`], it removes itself unless some part of the work
/// was finished.
pub struct Folder {
    target: PathBuf,
    partial: PathBuf,
    force: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    layout: Layout,
    files: Vec<File>,
    journal: Mutex<Journal>,
    /// Parts that an earlier run finished, with what it noted about them.
    finished: HashMap<String, Value>,
    done: bool,
}

struct Journal {
    file: File,
    parts: usize,
}

/// Errors: `Usage` when `target` cannot become a new folder.
pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    if target.to_str().is_none() {
        return Err(Error::Usage(format!("{}: the name is not UTF-8; choose another", target.display())));
    }
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    let shown = target.display();
    if !target.is_dir() {
        return Err(Error::Usage(format!("{shown} is not a folder; name another one for the checkpoint")));
    }
    let mut inside = std::fs::read_dir(target).map_err(|e| Error::io(target, e))?;
    match (inside.next().is_none(), force, target.join(MANIFEST).is_file()) {
        (true, _, _) | (_, true, true) => Ok(()),
        (_, true, false) => Err(Error::Usage(format!(
            "{shown} was not made by this program (it has no {MANIFEST}) and is not replaced; remove it yourself"
        ))),
        (_, false, _) => Err(Error::Usage(format!("{shown} exists; use --force to replace it"))),
    }
}

/// The name under which a run with this recipe builds `target`.
fn partial_path(target: &Path, recipe: &Value) -> PathBuf {
    let digest = Sha256::digest(recipe.to_string().as_bytes());
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let name = target.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.partial-{hex}"))
}

impl Folder {
    /// Lays out the shards and makes the folder, or finds that of an earlier run. `recipe` is everything that decides
    /// the bytes.
    ///
    /// # Errors
    /// `Usage` when `target` exists, or an unfinished run is in the way; `Storage` when the disk is too small.
    pub fn create(
        target: &Path,
        entries: Vec<Entry>,
        metadata_format: &str,
        max_shard: u64,
        recipe: &Value,
        existing: Existing,
    ) -> Result<Folder> {
        refuse_existing(target, existing.force)?;
        let layout = safetensors::layout(&entries, metadata_format, max_shard)?;
        let partial = partial_path(target, recipe);
        let head = json!({ "recipe": recipe, "shards": layout.shards.len() });
        let shown = partial.display();
        let mut earlier = None;
        if partial.is_dir() {
            match read_journal(&partial, &head) {
                // A journal that cannot be read was cut off before any work was done.
                None => remove(&partial)?,
                Some(_) if existing.force && !existing.resume => remove(&partial)?,
                Some(parts) if existing.resume || parts.is_empty() => earlier = Some(parts),
                Some(parts) => {
                    let what =
                        format!("{shown} holds {} finished parts of the same run, which was cut short", parts.len());
                    return Err(Error::Usage(format!("{what}; add --resume to continue it, or --force to begin anew")));
                }
            }
        } else if existing.resume
            && let Some(other) = other_partial(target)
        {
            let what = "was begun with other options, another source or another version, and cannot be continued";
            return Err(Error::Usage(format!("{} {what}; repeat its command, or remove it", other.display())));
        }
        let total: u64 = layout.shards.iter().map(|s| s.len).sum();
        if earlier.is_none() {
            if let Some(free) = free_space(target).filter(|free| *free < total) {
                let (need, free) = (human(total), human(free));
                return Err(Error::Storage(format!("{}: needs {need} of disk, {free} free", target.display())));
            }
            std::fs::create_dir(&partial).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::Storage(format!("{}: the folder it should lie in does not exist", target.display()))
                }
                _ => Error::io(&partial, e),
            })?;
        }
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        // Of a run that was cut short while it gave the folder its name.
        let _ = std::fs::remove_file(partial.join("config.json"));
        let journal = lock_journal(&partial, earlier.as_ref().map(HashMap::len), &head)?;
        let finished = earlier.unwrap_or_default();
        let mut folder = Folder {
            target: target.to_path_buf(),
            force: existing.force,
            journal: Mutex::new(Journal { file: journal, parts: finished.len() }),
            files: Vec::with_capacity(layout.shards.len()),
            entries,
            by_name,
            layout,
            finished,
            partial,
            done: false,
        };
        for shard in &folder.layout.shards {
            let path = folder.partial.join(&shard.name);
            let open = || -> std::io::Result<File> {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
                reserve(&file, shard.len)?;
                write_all_at(&file, 0, &shard.header)?;
                Ok(file)
            };
            folder.files.push(open().map_err(|e| Error::io(&path, e))?);
        }
        Ok(folder)
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the bytes are until [`publish`](Self::publish).
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Bytes of all tensors, without headers.
    pub fn tensor_bytes(&self) -> u64 {
        self.layout.tensor_bytes
    }

    fn place(&self, entry: usize, offset: u64, len: usize) -> Result<(usize, u64)> {
        match self.layout.places.get(entry) {
            Some(place) if offset + len as u64 <= place.len => Ok((place.shard, place.offset + offset)),
            _ => Err(Error::Internal(format!("{len} bytes at {offset} of tensor {entry} of the output"))),
        }
    }

    fn shard_path(&self, shard: usize) -> PathBuf {
        self.partial.join(&self.layout.shards[shard].name)
    }

    /// Writes bytes of a tensor, `offset` into it. Any number of threads may call this at once.
    pub fn put(&self, entry: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (shard, at) = self.place(entry, offset, bytes.len())?;
        write_all_at(&self.files[shard], at, bytes).map_err(|e| Error::io(self.shard_path(shard), e))
    }

    /// Writes the whole tensor of this name.
    pub fn put_named(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.find(name) {
            Some(entry) if self.layout.places[entry].len == bytes.len() as u64 => self.put(entry, 0, bytes),
            _ => Err(Error::Internal(format!("'{name}' of {} bytes is not in the output's layout", bytes.len()))),
        }
    }

    /// Reads back a tensor that was written, by this run or an earlier one.
    pub fn get(&self, entry: usize) -> Result<Vec<u8>> {
        let place = self.layout.places[entry];
        let mut bytes = vec![0; place.len as usize];
        SourceFile::open(&self.shard_path(place.shard))?.read_at(place.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// What an earlier run noted about a part that it finished.
    pub fn finished(&self, part: &str) -> Option<&Value> {
        self.finished.get(part)
    }

    /// Notes that every tensor of a part is written. Only then is the part skipped after a kill.
    pub fn finish_part(&self, part: &str, record: &Value) -> Result<()> {
        for (i, file) in self.files.iter().enumerate() {
            file.sync_data().map_err(|e| Error::io(self.shard_path(i), e))?;
        }
        let path = self.partial.join(JOURNAL);
        let mut journal = self.journal.lock().map_err(|_| Error::Internal("the journal's writer panicked".into()))?;
        let line = json!({ "part": part, "record": record }).to_string() + "\n";
        let written = journal.file.write_all(line.as_bytes()).and_then(|()| journal.file.sync_data());
        written.map_err(|e| Error::io(&path, e))?;
        journal.parts += 1;
        Ok(())
    }

    /// Whether anything would be lost if the folder were removed now.
    pub fn is_worth_keeping(&self) -> bool {
        self.journal.lock().is_ok_and(|j| j.parts > 0)
    }

    /// Writes a small file.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.partial.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| Error::io(&path, e))
    }

    /// Copies a small file, following links.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let path = self.partial.join(name);
        let bytes = std::fs::read(from).map_err(|e| Error::io(from, e))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        write().map_err(|e| Error::io(&path, e))
    }

    /// Writes the index (where there are several shards) and `config.json`, syncs, reads the headers back, and gives the
    /// folder its name. `config.json` comes last: without it no loader takes the folder for a model.
    pub fn publish(mut self, config: &str, parameters: Option<u64>) -> Result<PathBuf> {
        let index = "model.safetensors.index.json";
        // MLX always has one.
        if self.layout.shards.len() > 1 || parameters.is_some() {
            self.text(index, &safetensors::index(&self.entries, &self.layout, parameters))?;
        }
        for (i, file) in self.files.iter().enumerate() {
            file.sync_all().map_err(|e| Error::io(self.shard_path(i), e))?;
        }
        self.check()?;
        self.text("config.json", config)?;
        sync_folder(&self.partial.join("config.json"));
        refuse_existing(&self.target, self.force)?;
        if self.target.is_dir() {
            // Out of the way in one step, so that at no time half a folder has the name.
            let old = self.partial.with_extension("replaced");
            std::fs::rename(&self.target, &old).map_err(|e| Error::io(&self.target, e))?;
            if let Err(e) = std::fs::rename(&self.partial, &self.target) {
                let _ = std::fs::rename(&old, &self.target);
                return Err(Error::io(&self.target, e));
            }
            self.done = true;
            remove(&old)?;
        } else {
            std::fs::rename(&self.partial, &self.target).map_err(|e| Error::io(&self.target, e))?;
            self.done = true;
        }
        sync_folder(&self.target);
        let journal = self.target.join(JOURNAL);
        std::fs::remove_file(&journal).map_err(|e| Error::io(&journal, e))?;
        Ok(self.target.clone())
    }

    /// What was written must be sound shards with exactly these tensors.
    fn check(&self) -> Result<()> {
        let fault =
            |what: String| Error::Storage(format!("{}: re-reading what was written: {what}", self.partial.display()));
        let mut count = 0;
        for shard in &self.layout.shards {
            let path = self.partial.join(&shard.name);
            let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
            let len = file.metadata().map_err(|e| Error::io(&path, e))?.len();
            let header = parse_safetensors_header(file, len, &path).map_err(|e| fault(e.to_string()))?;
            for t in header.tensors {
                let known = self.find(&t.name).map(|i| &self.entries[i]);
                if known.is_none_or(|e| e.dtype != t.dtype || e.shape != t.shape) {
                    return Err(fault(format!("tensor '{}' differs from what was meant", t.name)));
                }
                count += 1;
            }
        }
        if count != self.entries.len() { Err(fault(format!("{count} tensors"))) } else { Ok(()) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.done && !self.is_worth_keeping() {
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }
}

/// Removes an unfinished or replaced folder, unless another run is writing it.
fn remove(path: &Path) -> Result<()> {
    if let Ok(journal) = File::open(path.join(JOURNAL))
        && matches!(journal.try_lock(), Err(std::fs::TryLockError::WouldBlock))
    {
        return Err(in_use(path));
    }
    std::fs::remove_dir_all(path).map_err(|e| Error::io(path, e))
}

/// The unfinished folder of a run with another recipe.
fn other_partial(target: &Path) -> Option<PathBuf> {
    let prefix = format!("{}.partial-", target.file_name()?.to_string_lossy());
    let folder = super::atomic::folder_of(target);
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).collect();
    found.sort();
    found.into_iter().find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
}

/// The finished parts that a journal names; `None` when its head is not `head`. A line that a kill cut short is no part.
fn read_journal(partial: &Path, head: &Value) -> Option<HashMap<String, Value>> {
    let text = std::fs::read_to_string(partial.join(JOURNAL)).ok()?;
    let complete = &text[..text.rfind('\n')? + 1];
    let mut lines = complete.lines().map(serde_json::from_str::<Value>);
    if lines.next()?.ok()? != *head {
        return None;
    }
    let mut parts = HashMap::new();
    for line in lines.map_while(|l| l.ok()) {
        parts.insert(line.get("part")?.as_str()?.to_string(), line.get("record")?.clone());
    }
    Some(parts)
}

fn in_use(partial: &Path) -> Error {
    Error::Usage(format!("another run is writing {}", partial.display()))
}

/// Opens the journal for appending and keeps every other run out of it.
fn lock_journal(partial: &Path, earlier: Option<usize>, head: &Value) -> Result<File> {
    let path = partial.join(JOURNAL);
    let io = |e| Error::io(&path, e);
    let mut file = OpenOptions::new().append(true).read(true).create(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(in_use(partial));
        }
        // A file system without locks.
        Err(std::fs::TryLockError::Error(_)) => {}
    }
    match earlier {
        None => {
            file.write_all(format!("{head}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        }
        Some(_) => {
            // What a kill cut short goes, so that the next line begins on its own.
            let text = std::fs::read_to_string(&path).map_err(io)?;
            file.set_len(text.rfind('\n').map_or(0, |at| at as u64 + 1)).map_err(io)?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Dtype;

    fn entries() -> Vec<Entry> {
        ["a", "b"].map(|n| Entry { name: n.into(), dtype: Dtype::U8, shape: vec![4] }).to_vec()
    }

    fn create(target: &Path, recipe: &str, existing: Existing) -> Result<Folder> {
        Folder::create(target, entries(), "pt", 1 << 30, &json!(recipe), existing)
    }

    const ANEW: Existing = Existing { force: false, resume: false };
    const RESUME: Existing = Existing { force: false, resume: true };
    const FORCE: Existing = Existing { force: true, resume: false };

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn nothing_is_left_of_a_run_that_finished_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = create(&dir.path().join("m"), "r", ANEW).unwrap();
        folder.put_named("a", b"abcd").unwrap();
        assert!(folder.put_named("a", b"abc").is_err() && folder.put_named("c", b"abcd").is_err());
        drop(folder);
        assert_eq!(count(dir.path()), 0);
    }

    #[test]
    fn a_run_is_continued_by_one_with_its_recipe() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let folder = create(&target, "r", ANEW).unwrap();
        folder.put_named("a", b"abcd").unwrap();
        folder.finish_part("first", &json!({ "loss": 1.5 })).unwrap();
        assert!(matches!(create(&target, "r", RESUME), Err(Error::Usage(m)) if m.contains("another run")));
        drop(folder);
        // A line that was being written when the process died.
        let partial = partial_path(&target, &json!("r"));
        let mut journal = OpenOptions::new().append(true).open(partial.join(JOURNAL)).unwrap();
        journal.write_all(b"{\"part\": \"sec").unwrap();
        assert!(matches!(create(&target, "r", ANEW), Err(Error::Usage(m)) if m.contains("--resume")));
        assert!(matches!(create(&target, "other", RESUME), Err(Error::Usage(m)) if m.contains("cannot be continued")));
        let folder = create(&target, "r", RESUME).unwrap();
        assert_eq!(folder.finished("first").unwrap()["loss"], 1.5);
        assert!(folder.finished("second").is_none());
        assert_eq!(folder.get(folder.find("a").unwrap()).unwrap(), b"abcd");
        folder.put_named("b", b"efgh").unwrap();
        folder.finish_part("second", &json!({})).unwrap();
        folder.publish("{}", None).unwrap();
        assert_eq!(count(dir.path()), 1);
        let mut names: Vec<_> = std::fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors"]);
    }

    #[test]
    fn only_folders_of_this_program_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        std::fs::create_dir(&target).unwrap();
        // An empty folder is a place to put things.
        let write = |existing| -> Result<PathBuf> {
            let folder = create(&target, "r", existing)?;
            folder.text(MANIFEST, "{}")?;
            folder.publish("{}", None)
        };
        write(ANEW).unwrap();
        assert!(matches!(write(ANEW), Err(Error::Usage(m)) if m.contains("--force")));
        write(FORCE).unwrap();
        std::fs::remove_file(target.join(MANIFEST)).unwrap();
        assert!(matches!(write(FORCE), Err(Error::Usage(m)) if m.contains("not made by this program")));
        assert_eq!(count(dir.path()), 1);
        assert!(create(Path::new("/nonexistent/x/m"), "r", ANEW).is_err_and(|e| e.exit_code() == 5));
    }
}
