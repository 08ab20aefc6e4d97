//! One repository's folder in the Hub cache: contents under `blobs/` by their ETag, `snapshots/COMMIT/` with relative links
//! to them, `refs/NAME` with the commit a branch or tag stood at. The layout of huggingface_hub, which shares it; partial
//! files (`.incomplete`) and lock files have its names too. It does no network traffic.

use super::client::RemoteFile;
use super::{Snapshot, choose, is_hex};
use crate::error::Hint;
use crate::{Error, Result};
use hf_hub::{Cache, Repo};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) struct Folder {
    cache: PathBuf,
    root: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub(super) fn new(cache: &Path, repo: &Repo) -> Self {
        let name = repo.folder_name();
        Self { cache: cache.to_path_buf(), root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Whether the snapshot holds the file (and not only a link to contents that were removed).
    pub(super) fn has(&self, commit: &str, name: &str) -> bool {
        self.snapshot(commit).join(name).is_file()
    }

    /// How many bytes of the file an earlier run fetched.
    pub(super) fn already(&self, file: &RemoteFile) -> u64 {
        let blob = self.blob_path(file);
        let len = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        match (len(&blob), len(&partial(&blob))) {
            (whole, _) if whole == file.size => whole,
            (_, part) if part <= file.size => part,
            _ => 0,
        }
    }

    fn blob_path(&self, file: &RemoteFile) -> PathBuf {
        self.root.join("blobs").join(&file.etag)
    }

    /// The path of the file's contents, after `download` has completed the partial file it is given. Another process
    /// that fetches the same contents is waited for.
    pub(super) fn blob(
        &self,
        file: &RemoteFile,
        cancel: &AtomicBool,
        download: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let blob = self.blob_path(file);
        create_folder_of(&blob)?;
        let _lock = self.lock(file, cancel)?;
        let complete = std::fs::metadata(&blob).is_ok_and(|m| m.len() == file.size);
        if !complete {
            let part = partial(&blob);
            download(&part)?;
            std::fs::rename(&part, &blob).map_err(|e| Error::io(&blob, e))?;
        }
        Ok(blob)
    }

    /// `None` where the file system has no locks.
    fn lock(&self, file: &RemoteFile, cancel: &AtomicBool) -> Result<Option<File>> {
        let path = self.locks.join(format!("{}.lock", file.etag));
        create_folder_of(&path)?;
        let lock = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if cancel.load(Ordering::Relaxed) => return Err(Error::Interrupted),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Makes the contents appear in the snapshot under the file's name.
    pub(super) fn link(&self, commit: &str, name: &str, blob: &Path) -> Result<()> {
        let link = self.snapshot(commit).join(name);
        create_folder_of(&link)?;
        // A link to contents that are gone.
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(&link).map_err(|e| Error::io(&link, e))?;
        }
        place(blob, &link, name.matches('/').count())
            .or_else(|e| if self.has(commit, name) { Ok(()) } else { Err(Error::io(&link, e)) })
    }

    /// Notes that the revision stands at `commit`. A commit that was asked for by its hash needs no note.
    pub(super) fn set_ref(&self, repo: &Repo, commit: &str) -> Result<()> {
        if repo.revision() == commit {
            return Ok(());
        }
        let noted = Cache::new(self.cache.clone()).repo(repo.clone()).create_ref(commit);
        noted.map_err(|e| Error::io(self.root.join("refs").join(repo.revision()), e))
    }

    /// The snapshot of `revision` as the cache has it, for use without a network.
    ///
    /// Errors: `BadInput` when anything that a conversion needs is missing.
    pub(super) fn complete(&self, id: &str, revision: &str) -> Result<Snapshot> {
        let missing = |what: &str| {
            let revised = if revision == "main" { String::new() } else { format!("@{revision}") };
            Error::bad_input(format!("{id}: offline mode, and {what} in the cache {}", self.cache.display()))
                .hint(Hint::Online { id: Some(format!("{id}{revised}")) })
        };
        let commit = self.commit(revision).ok_or_else(|| missing(&format!("revision '{revision}' is not")))?;
        let path = self.snapshot(&commit);
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&path).map_err(|_| missing("the snapshot is not"))?.flatten() {
            if entry.path().is_file() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        if !names.contains(choose::CONFIG) {
            return Err(missing(&format!("{} is not", choose::CONFIG)));
        }
        let mut files = choose::small(&names);
        match choose::weights(id, &names).map_err(|_| missing("the weights are not"))? {
            choose::Weights::Files(weights) => files.extend(weights),
            choose::Weights::Indexed => {
                let shards = choose::shards(&path.join(choose::INDEX))?;
                if let Some(shard) = shards.iter().find(|s| !names.contains(*s)) {
                    return Err(missing(&format!("{shard} is not")));
                }
                files.push(choose::INDEX.to_string());
                files.extend(shards);
            }
        }
        Ok(Snapshot { path, commit, files })
    }

    /// The commit that a revision stood at when it was last fetched.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_hex(revision, 40..=64) && self.snapshot(revision).is_dir() {
            return Some(revision.to_string());
        }
        let noted = std::fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(noted.trim().to_string()).filter(|commit| is_hex(commit, 7..=64))
    }
}

fn partial(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_os_string();
    name.push(".incomplete");
    name.into()
}

fn create_folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
}

/// A relative link, so that the cache can be moved; a second name or a copy where links cannot be made. `depth`: folders
/// between the snapshot and the link.
fn place(blob: &Path, link: &Path, depth: usize) -> std::io::Result<()> {
    let target = Path::new(&"../".repeat(depth + 2)).join("blobs").join(blob.file_name().unwrap_or_default());
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, link);
    linked.or_else(|_| std::fs::hard_link(blob, link)).or_else(|_| std::fs::copy(blob, link).map(|_| ()))
}
