//! A checkpoint folder being written: safetensors shards whose layout is known before a byte is, plus the small files
//! around them. Everything is made in a folder beside the target and renamed in the end. What was written there by a run
//! that was killed can be taken up by another; which parts are finished is for the caller to know.

use super::gguf::human;
use super::pieces::{self, Piece, Touched};
pub use super::publish::MANIFEST;
use super::publish::{LAST, Stamp, Step};
use super::safetensors::{self, Entry, Layout};
use crate::control::Run;
use crate::disk::{self, Written, free_space, partial::Laying};
use crate::source::{SourceFile, parse_safetensors_header};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const JOURNAL: &str = ".quantize-journal";

/// A folder under a temporary name. It removes itself when it is dropped, unless it is to be kept.
pub struct Folder {
    target: PathBuf,
    partial: PathBuf,
    force: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    layout: Layout,
    files: Vec<Written>,
    touched: Touched,
    keep: bool,
}

/// # Errors
/// `Exists` when `target` cannot become a new folder.
pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    if target.to_str().is_none() {
        return Err(Error::request(format!("{}: the name is not UTF-8; choose another", target.display())));
    }
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    let exists = |what, replaceable| Error::Exists { path: target.to_path_buf(), what, replaceable };
    if !target.is_dir() {
        return Err(exists("is not a folder; name another one for the checkpoint", false));
    }
    let mut inside = std::fs::read_dir(target).map_err(|e| Error::io(target, e))?;
    match (inside.next().is_none(), force, target.join(MANIFEST).is_file()) {
        (true, _, _) | (_, true, true) => Ok(()),
        (_, true, false) => Err(exists(
            "was not made by this program (it has no quantize-manifest.json) and is not replaced; remove it yourself",
            false,
        )),
        (_, false, _) => Err(exists("exists", true)),
    }
}

/// The name under which `target` is built.
pub fn partial_path(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.partial"))
}

/// The journal of the run that builds `target`, inside the unfinished folder.
pub fn journal_path(target: &Path) -> PathBuf {
    partial_path(target).join(JOURNAL)
}

impl Folder {
    /// Lays out the shards, and makes the unfinished folder or takes up the one that is there.
    ///
    /// # Errors
    /// `Exists` when `target` cannot become a new folder; `Storage` when the disk is too small.
    pub fn create(
        target: &Path,
        entries: Vec<Entry>,
        metadata_format: &str,
        max_shard: u64,
        laying: Laying,
        born: impl FnOnce() -> Result<()>,
    ) -> Result<Folder> {
        refuse_existing(target, laying.force)?;
        let layout = safetensors::layout(&entries, metadata_format, max_shard)?;
        let partial = partial_path(target);
        let total: u64 = layout.shards.iter().map(|s| s.len).sum();
        if !partial.is_dir() {
            if let Some(free) = free_space(target).filter(|free| !laying.sparse && *free < total) {
                let (need, free) = (human(total), human(free));
                return Err(Error::storage(format!("{}: needs {need} of disk, {free} free", target.display())));
            }
            disk::create_folder(&partial).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::storage(format!("{}: its parent folder does not exist", target.display()))
                }
                _ => Error::io(&partial, e),
            })?;
        }
        born().inspect_err(|_| {
            let _ = disk::remove_folder(&partial, JOURNAL);
        })?;
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        // Of a run that was cut short while it completed the folder.
        let config = partial.join("config.json");
        disk::remove_file(&config).map_err(|e| Error::io(&config, e))?;
        let mut folder = Folder {
            target: target.to_path_buf(),
            force: laying.force,
            files: Vec::with_capacity(layout.shards.len()),
            entries,
            by_name,
            layout,
            partial,
            touched: Touched::default(),
            keep: false,
        };
        for shard in &folder.layout.shards {
            let path = folder.partial.join(&shard.name);
            let open = || -> std::io::Result<Written> {
                let file = Written::open_public(&path)?;
                match laying.sparse {
                    true => file.set_len(shard.len)?,
                    false => file.reserve(shard.len)?,
                }
                file.write_at(0, &shard.header)?;
                Ok(file)
            };
            folder.files.push(open().map_err(|e| Error::io(&path, e))?);
        }
        Ok(folder)
    }

    /// Whether the unfinished folder stays when this is dropped.
    pub fn keep_on_drop(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Makes sure that what was written is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.sync().map_err(|e| Error::io(file.path(), e)))
    }

    /// The tensors that were written since the last call.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub fn pieces(&self, run: Run) -> Result<Vec<Piece>> {
        let place = |entry: usize| {
            let place = &self.layout.places[entry];
            (place.shard, self.shard_path(place.shard), place.offset, place.len)
        };
        pieces::of(self.touched.take().into_iter().map(place).collect(), run)
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the bytes are until [`publish`](Self::publish).
    pub fn partial(&self) -> &Path {
        &self.partial
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
        self.touched.note(entry);
        self.files[shard].write_at(at, bytes).map_err(|e| Error::io(self.shard_path(shard), e))
    }

    /// Writes one of `count` equal parts of the tensor of this name.
    pub fn put_part(&self, name: &str, (index, count): (usize, usize), bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        match self.find(name) {
            Some(entry) if self.layout.places[entry].len == len * count as u64 => {
                self.put(entry, index as u64 * len, bytes)
            }
            _ => Err(Error::Internal(format!("{count} times '{name}' of {len} bytes is not in the output's layout"))),
        }
    }

    /// Writes the whole tensor of this name.
    pub fn put_named(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.find(name) {
            Some(entry) if self.layout.places[entry].len == bytes.len() as u64 => self.put(entry, 0, bytes),
            _ => Err(Error::Internal(format!("'{name}' of {} bytes is not in the output's layout", bytes.len()))),
        }
    }

    /// Reads back one of `count` equal parts of a tensor that was written, by this run or an earlier one.
    pub fn get_part(&self, entry: usize, (index, count): (usize, usize)) -> Result<Vec<u8>> {
        let place = self.layout.places[entry];
        let len = place.len / count.max(1) as u64;
        let mut bytes = vec![0; len as usize];
        SourceFile::open(&self.shard_path(place.shard))?.read_at(place.offset + index as u64 * len, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a small file.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.partial.join(name);
        disk::write(&path, text.as_bytes()).map_err(|e| Error::io(&path, e))
    }

    /// Copies a small file, following links.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let path = self.partial.join(name);
        let bytes = std::fs::read(from).map_err(|e| Error::io(from, e))?;
        if let Some(parent) = path.parent() {
            disk::create_folders(parent).map_err(|e| Error::io(parent, e))?;
        }
        disk::write(&path, &bytes).map_err(|e| Error::io(&path, e))
    }

    /// Writes the index (where there are several shards) and `config.json`, syncs and reads the headers back, so that the
    /// folder can be opened under its temporary name. `config.json` comes last: without it no loader takes the folder for
    /// a model.
    ///
    /// # Errors
    /// `Storage`; `Io`.
    pub fn seal(&self, config: &str, parameters: Option<u64>) -> Result<()> {
        let index = "model.safetensors.index.json";
        // MLX always has one.
        if self.layout.shards.len() > 1 || parameters.is_some() {
            self.text(index, &safetensors::index(&self.entries, &self.layout, parameters))?;
        }
        self.sync()?;
        self.check()?;
        self.text(LAST, config)
    }

    /// Takes `config.json` away again: more is written, after a look at what there is.
    ///
    /// # Errors
    /// `Io`.
    pub fn unseal(&self) -> Result<()> {
        let path = self.partial.join(LAST);
        disk::remove_file(&path).map_err(|e| Error::io(&path, e))
    }

    /// How a sealed folder is given its name, which is all that is missing.
    ///
    /// # Errors
    /// `Exists` when the name is taken by what is not replaced.
    pub fn complete(&self) -> Result<Step> {
        disk::sync_folder_of(&self.partial.join(LAST));
        refuse_existing(&self.target, self.force)?;
        let old = self.partial.with_extension("replaced");
        let ours = |old: &Path| old.join(MANIFEST).is_file();
        if old.symlink_metadata().is_ok() && !ours(&old) {
            let what = "is in the way of replacing a folder and was not made by this program; move it";
            return Err(Error::Exists { path: old, what, replaceable: false });
        }
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (from, to) = (name(&self.partial), name(&self.target));
        let stamp = Stamp::of(&self.partial.join(LAST));
        Ok(Step::Folder { from, to, old: name(&old), journal: JOURNAL.into(), last: LAST.into(), stamp })
    }

    /// What was written must be sound shards with exactly these tensors.
    fn check(&self) -> Result<()> {
        let fault =
            |what: String| Error::storage(format!("{}: re-reading what was written: {what}", self.partial.display()));
        let mut count = 0;
        for shard in &self.layout.shards {
            let path = self.partial.join(&shard.name);
            let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
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
        if !self.keep {
            let _ = disk::remove_folder(&self.partial, JOURNAL);
        }
    }
}

/// Removes the unfinished folder of a run that will not go on.
///
/// # Errors
/// `Exists` for a folder of that name that is not unfinished work; `Io`.
pub fn forget(target: &Path) -> Result<()> {
    let partial = partial_path(target);
    // Before the journal has its name, nothing else is there.
    let unborn = || {
        let own = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(|name| name == format!("{JOURNAL}.new")))
        };
        std::fs::read_dir(&partial).is_ok_and(|mut inside| inside.all(own))
    };
    if partial.exists() && !partial.join(JOURNAL).is_file() && !unborn() {
        let what = "is in the way and was not made by this program; move it";
        return Err(Error::Exists { path: partial, what, replaceable: false });
    }
    disk::remove_folder(&partial, JOURNAL).map_err(|e| Error::io(&partial, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Dtype;

    fn create(target: &Path, force: bool) -> Result<Folder> {
        let entries = ["a", "b"].map(|n| Entry { name: n.into(), dtype: Dtype::U8, shape: vec![4] }).to_vec();
        let laying = Laying { force, sparse: false };
        Folder::create(target, entries, "pt", 1 << 30, laying, || Ok(()))
    }

    fn publish(mut folder: Folder) -> Result<()> {
        folder.seal("{}", None)?;
        let step = folder.complete()?;
        folder.keep_on_drop(true);
        step.carry_out(disk::folder_of(folder.target()))
    }

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn an_unfinished_folder_goes_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let folder = create(&target, false).unwrap();
        folder.put_named("a", b"abcd").unwrap();
        assert!(folder.put_named("a", b"abc").is_err() && folder.put_named("c", b"abcd").is_err());
        drop(folder);
        assert_eq!(count(dir.path()), 0);
        let mut folder = create(&target, false).unwrap();
        folder.put_named("a", b"abcd").unwrap();
        folder.keep_on_drop(true);
        drop(folder);
        let folder = create(&target, false).unwrap();
        assert_eq!(folder.get_part(folder.find("a").unwrap(), (0, 1)).unwrap(), b"abcd");
        folder.put_named("b", b"efgh").unwrap();
        publish(folder).unwrap();
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
        let write = |force| -> Result<()> {
            let folder = create(&target, force)?;
            folder.text(MANIFEST, "{}")?;
            publish(folder)
        };
        write(false).unwrap();
        assert!(matches!(write(false), Err(Error::Exists { replaceable: true, .. })));
        write(true).unwrap();
        std::fs::remove_file(target.join(MANIFEST)).unwrap();
        assert!(matches!(write(true), Err(Error::Exists { what, .. }) if what.contains("not made by this program")));
        assert_eq!(count(dir.path()), 1);
        assert!(create(Path::new("/nonexistent/x/m"), false).is_err_and(|e| e.exit_code() == 5));
    }
}
