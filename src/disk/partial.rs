//! One output file under a temporary name in its final folder: positioned writes from any thread, then sync and rename.
//! Dropping it without [`PartialFile::finish`] removes it. A killed process leaves at most a hidden `.partial` file.

use super::{Written, folder_of};
use crate::error::{Error, Result, Unfinished};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// How outputs are laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Laying {
    /// Whether what has the final name may be replaced.
    pub force: bool,
    /// Whether space is taken only where something is written.
    pub sparse: bool,
}

/// A file that does not exist under its final name yet.
#[derive(Debug)]
pub struct PartialFile {
    file: Written,
    target: PathBuf,
    force: bool,
    keep: bool,
}

impl PartialFile {
    /// Opens the temporary file of `target`, in its folder. An existing `target` is an error unless `force`.
    ///
    /// # Errors
    /// `Exists`; `Unfinished` while another run writes `target`; `Storage` and `Io`.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        Self::create_as(target, "", force)
    }

    /// A whole text, which lacks nothing but its name.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn holding(target: &Path, text: &str, force: bool) -> Result<Self> {
        let file = Self::create(target, force)?;
        file.write_at(0, text.as_bytes())?;
        Ok(file)
    }

    /// The same as [`Self::create`] for another file that may take the place of `target` in the end.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_as(target: &Path, kind: &str, force: bool) -> Result<Self> {
        // What a killed run left under this name is taken over, so that nothing piles up.
        let this = Self::reopen(target, &partial_name(target, kind), force)?;
        this.file.set_len(0).map_err(|e| Error::io(target, e))?;
        Ok(this)
    }

    /// Takes up the temporary file `temp` that an earlier run left for `target`. It goes when this is dropped, as any other.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn reopen(target: &Path, temp: &Path, force: bool) -> Result<Self> {
        refuse_existing(target, force)?;
        Ok(Self { file: open_locked(temp, target)?, target: target.to_path_buf(), force, keep: false })
    }

    /// Whether the temporary file stays when this is dropped unfinished.
    pub fn keep_on_drop(&mut self, on: bool) {
        self.keep = on;
    }

    /// The name that it is to have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether what has the final name may be replaced.
    pub fn replaces(&self) -> bool {
        self.force
    }

    /// Where the bytes are until [`finish`](Self::finish).
    pub fn temp_path(&self) -> &Path {
        self.file.path()
    }

    /// Sets the length and reserves the space, so that a full disk shows before the work and not after it.
    pub fn reserve(&self, len: u64) -> Result<()> {
        self.file.reserve(len).map_err(|e| Error::io(&self.target, e))
    }

    /// Writes `bytes` at `offset`. Any number of threads may call this at once.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(offset, bytes).map_err(|e| Error::io(&self.target, e))
    }

    /// Sets the length, without space for what is not written.
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| Error::io(&self.target, e))
    }

    /// Copies bytes of another file; see [`Written::copy_range`].
    pub fn copy_range(&self, other: &std::fs::File, from: u64, to: u64, len: u64) -> Result<()> {
        self.file.copy_range(other, from, to, len).map_err(|e| Error::io(&self.target, e))
    }

    /// Makes sure that the bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io(&self.target, e))
    }

    /// Makes the file whole, so that nothing but its name is missing.
    ///
    /// # Errors
    /// `Io`.
    pub fn complete(&self) -> Result<()> {
        self.sync()?;
        self.file.set_usual_mode().map_err(|e| Error::io(&self.target, e))
    }

    /// Removes what was written.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(mut self) -> Result<()> {
        self.keep = true;
        super::remove_file(self.file.path()).map_err(|e| Error::io(self.file.path(), e))
    }

    /// Syncs and gives the file its final name.
    pub fn finish(mut self) -> Result<()> {
        self.complete()?;
        let rename = if self.force { super::rename } else { super::rename_new };
        rename(self.temp_path(), &self.target).map_err(|e| Error::io(&self.target, e))?;
        self.keep = true;
        super::sync_folder_of(&self.target);
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.keep {
            let _ = super::remove_file(self.file.path());
        }
    }
}

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub struct Stream {
    pub file: PartialFile,
    at: u64,
}

impl Stream {
    pub fn new(file: PartialFile) -> Self {
        Self { file, at: 0 }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.file.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `.NAME.partial` in the folder of `target`; of long names the beginning and a hash, so that it is never too long.
fn partial_name(target: &Path, kind: &str) -> PathBuf {
    beside(target, &format!("{kind}.partial"))
}

/// A hidden name beside `target` that begins with its own and ends in `end`; of long names the beginning and a hash.
pub fn beside(target: &Path, end: &str) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let name = target.file_name().and_then(|n| n.to_str()).unwrap_or("output");
    let mut short: String = name.chars().take(40).collect();
    if short.len() < name.len() {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        short += &format!(".{:016x}", hasher.finish());
    }
    folder_of(target).join(format!(".{short}{end}"))
}

/// Opens a temporary file, and keeps other runs from it for as long as it is open.
fn open_locked(path: &Path, target: &Path) -> Result<Written> {
    // The error itself names the temporary file, which means nothing to the user.
    let fault = |e: io::Error| match e.kind() {
        ErrorKind::NotFound => {
            let folder = folder_of(target).display();
            Error::storage(format!("{}: the folder {folder} does not exist", target.display()))
        }
        ErrorKind::WouldBlock => Error::Unfinished { path: target.to_path_buf(), why: Unfinished::BeingWritten },
        kind => Error::io(target, kind.into()),
    };
    loop {
        let file = Written::open(path).map_err(fault)?;
        file.lock().map_err(fault)?;
        // Between the two calls the other run may have finished, and given what was opened its final name.
        if file.is_in_place().map_err(fault)? {
            return Ok(file);
        }
    }
}

/// # Errors
/// `Exists` for a file unless `force`, and for a folder always; `Request` for a name that is no UTF-8, which journals and
/// reports could not hold.
pub fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    if target.to_str().is_none() {
        return Err(Error::request(format!("{}: the name is not UTF-8; choose another", target.display())));
    }
    if target.is_dir() {
        let what = "is a folder; name a file";
        return Err(Error::Exists { path: target.to_path_buf(), what, replaceable: false });
    }
    // Renaming over a device or a pipe would replace it.
    if target.metadata().is_ok_and(|m| !m.is_file()) {
        let what = "is a device or a pipe; name a file";
        return Err(Error::Exists { path: target.to_path_buf(), what, replaceable: false });
    }
    if !force && target.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: target.to_path_buf(), what: "exists", replaceable: true });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_text(target: &Path, text: &str, force: bool) -> Result<()> {
        PartialFile::holding(target, text, force)?.finish()
    }

    #[test]
    fn one_run_at_a_time_and_leftovers_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        let mut first = PartialFile::create(&target, false).unwrap();
        first.write_at(0, b"abc").unwrap();
        assert!(matches!(PartialFile::create(&target, false), Err(Error::Unfinished { .. })));
        drop(PartialFile::create_as(&target, ".rival", false).unwrap());
        first.keep_on_drop(true);
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let second = PartialFile::create(&target, false).unwrap();
        second.write_at(0, b"x").unwrap();
        second.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let long = |end: &str| partial_name(Path::new(&("n".repeat(200) + end)), "");
        assert_ne!(long("a"), long("b"));
    }

    #[test]
    fn nothing_is_left_unless_finished() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        let file = PartialFile::create(&target, false).unwrap();
        file.write_at(3, b"abc").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn finished_files_have_their_bytes_and_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        write_text(&target, "one", false).unwrap();
        assert!(matches!(write_text(&target, "two", false), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "one");
        write_text(&target, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_io_error() {
        let err = PartialFile::create(Path::new("/nonexistent/x/a.gguf"), false).unwrap_err();
        assert_eq!(err.exit_code(), 5);
    }
}
