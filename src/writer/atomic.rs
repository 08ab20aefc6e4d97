//! One output file under a temporary name in its final folder: positioned writes from any thread, then sync and rename.
//! Dropping it without [`PartialFile::finish`] removes it. A killed process leaves at most a hidden `.partial` file.

use crate::error::Unfinished;
use crate::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that does not exist under its final name yet.
#[derive(Debug)]
pub struct PartialFile {
    temp: NamedTempFile,
    target: PathBuf,
    force: bool,
}

impl PartialFile {
    /// Opens the temporary file of `target`, in its folder. An existing `target` is an error unless `force`.
    ///
    /// # Errors
    /// `Exists`; `Unfinished` while another run writes `target`; `Storage` and `Io`.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        Self::create_as(target, "", force)
    }

    /// The same for another file that may take the place of `target` in the end.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_as(target: &Path, kind: &str, force: bool) -> Result<Self> {
        refuse_existing(target, force)?;
        let path = partial_name(target, kind);
        // What a killed run left under this name is taken over, so that nothing piles up.
        let file = open_locked(&path, target)?;
        file.set_len(0).map_err(|e| Error::io(target, e))?;
        let path = tempfile::TempPath::try_from_path(path).map_err(|e| Error::io(target, e))?;
        Ok(Self { temp: NamedTempFile::from_parts(file, path), target: target.to_path_buf(), force })
    }

    /// Takes up the temporary file `temp` that an earlier run left for `target`. It goes when this is dropped, as any other.
    pub fn reopen(target: &Path, temp: &Path, force: bool) -> Result<Self> {
        refuse_existing(target, force)?;
        let file = open_locked(temp, target)?;
        let path = tempfile::TempPath::try_from_path(temp).map_err(|e| Error::io(temp, e))?;
        Ok(Self { temp: NamedTempFile::from_parts(file, path), target: target.to_path_buf(), force })
    }

    /// Whether the temporary file stays when this is dropped unfinished.
    pub fn keep_on_drop(&mut self, on: bool) {
        self.temp.disable_cleanup(on);
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the bytes are until [`finish`](Self::finish).
    pub fn temp_path(&self) -> &Path {
        self.temp.path()
    }

    /// Sets the length and reserves the space, so that a full disk shows before the work and not after it.
    pub fn reserve(&self, len: u64) -> Result<()> {
        reserve(self.file(), len).map_err(|e| Error::io(&self.target, e))
    }

    /// Writes `bytes` at `offset`. Any number of threads may call this at once.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(self.file(), offset, bytes).map_err(|e| Error::io(&self.target, e))
    }

    /// Makes sure that the bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file().sync_all().map_err(|e| Error::io(&self.target, e))
    }

    /// Syncs and gives the file its final name.
    pub fn finish(self) -> Result<()> {
        self.sync()?;
        set_usual_mode(self.file()).map_err(|e| Error::io(&self.target, e))?;
        let target = self.target;
        if self.force {
            self.temp.persist(&target).map_err(|e| Error::io(&target, e.error))?;
        } else {
            self.temp.persist_noclobber(&target).map_err(|e| Error::io(&target, e.error))?;
        }
        sync_folder(&target);
        Ok(())
    }

    fn file(&self) -> &File {
        self.temp.as_file()
    }
}

/// `.NAME.partial` in the folder of `target`; of long names the beginning and a hash, so that it is never too long.
fn partial_name(target: &Path, kind: &str) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let name = target.file_name().and_then(|n| n.to_str()).unwrap_or("output");
    let mut short: String = name.chars().take(40).collect();
    if short.len() < name.len() {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        short += &format!(".{:016x}", hasher.finish());
    }
    folder_of(target).join(format!(".{short}{kind}.partial"))
}

/// Opens a temporary file, and keeps other runs from it for as long as it is open.
fn open_locked(path: &Path, target: &Path) -> Result<File> {
    // The error itself names the temporary file, which means nothing to the user.
    let fault = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let folder = folder_of(target).display();
            Error::storage(format!("{}: the folder {folder} does not exist", target.display()))
        }
        kind => Error::io(target, kind.into()),
    };
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    loop {
        let file = options.open(path).map_err(fault)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::Unfinished { path: target.to_path_buf(), why: Unfinished::BeingWritten });
        }
        // Between the two calls the other run may have finished, and given what was opened its final name.
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
            let here = file.metadata().map_err(fault)?;
            if !path.symlink_metadata().is_ok_and(|there| same(there, here)) {
                continue;
            }
        }
        return Ok(file);
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

/// Bytes that can still be written in the folder of `target`, where the system tells.
pub fn free_space(target: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder_of(target)).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = target;
        None
    }
}

/// The folder a file lives in; `.` for a bare name.
pub fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Sets the length of a file and reserves its space where the file system can; where not, the writes find out.
pub(super) fn reserve(file: &File, len: u64) -> std::io::Result<()> {
    file.set_len(len)?;
    #[cfg(target_os = "linux")]
    if len > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes a small text file atomically.
pub fn write_text(target: &Path, text: &str, force: bool) -> Result<()> {
    let file = PartialFile::create(target, force)?;
    file.write_at(0, text.as_bytes())?;
    file.finish()
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Temporary files are private; the finished one gets the mode any new file would have.
#[cfg(unix)]
fn set_usual_mode(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    file.set_permissions(std::fs::Permissions::from_mode(0o666 & !mask.bits()))
}

#[cfg(not(unix))]
fn set_usual_mode(_: &File) -> std::io::Result<()> {
    Ok(())
}

/// The rename itself should survive a power cut. A file system that cannot sync folders loses only that.
pub(super) fn sync_folder(target: &Path) {
    if let Ok(folder) = File::open(folder_of(target)) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
