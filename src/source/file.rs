//! A file that is read by position: many threads share one handle, and no seek stands between them.

use crate::control::Cancel;
use crate::digest::hex;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An open file of a checkpoint.
#[derive(Debug)]
pub struct SourceFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Length in bytes when it was opened.
    pub len: u64,
    /// When it was changed last, as of then, where the system tells.
    pub modified: Option<SystemTime>,
    handle: File,
}

impl SourceFile {
    /// Errors: `BadInput` when there is no such file or it is not a regular one; `Io` when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let fault = |e: std::io::Error| match e.kind() {
            ErrorKind::NotFound => Error::bad_file(path, "no such file"),
            _ => Error::io(path, e),
        };
        // Before it is opened: that would wait forever for whoever writes to a pipe.
        if !std::fs::metadata(path).map_err(fault)?.is_file() {
            return Err(Error::bad_file(path, "not a regular file"));
        }
        let handle = File::open(path).map_err(fault)?;
        let metadata = handle.metadata().map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), len: metadata.len(), modified: metadata.modified().ok(), handle })
    }

    /// Bytes that it takes on the disk, where the system tells; holes take none.
    pub fn stored(&self) -> u64 {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            self.handle.metadata().map_or(self.len, |m| m.blocks().saturating_mul(512))
        }
        #[cfg(not(unix))]
        self.len
    }

    /// The open file, for copies inside the file system; see [`crate::disk::Written::copy_range`].
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// That the file is the one that was opened: as long, and changed no later.
    ///
    /// Errors: `BadInput` when it is another.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = std::fs::metadata(&self.path).map_err(|e| Error::io(&self.path, e))?;
        match metadata.len() == self.len && metadata.modified().ok() == self.modified {
            true => Ok(()),
            false => Err(Error::bad_file(&self.path, "the file changed while it was being read")
                .hint("make sure nothing writes to the checkpoint, and run again")),
        }
    }

    /// A stream from the file's start. It shares the handle's position, so only one may be in use.
    pub(super) fn stream(&self) -> impl Read + '_ {
        std::io::BufReader::with_capacity(1 << 16, &self.handle)
    }

    /// Fills `out` from `position` on, without moving any shared position. Any number of threads may read at once.
    ///
    /// Errors: `BadInput` when the file ends before `out` is full; `Io` when the disk fails.
    pub fn read_at(&self, position: u64, out: &mut [u8]) -> Result<()> {
        read_exact_at(&self.handle, position, out).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => Error::bad_file(&self.path, "the file became shorter while it was being read")
                .hint("make sure nothing writes to the checkpoint, and run again"),
            _ => Error::io(&self.path, e),
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, position: u64, out: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, position)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut position: u64, mut out: &mut [u8]) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, position) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                position += n as u64;
                out = &mut out[n..];
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The SHA-256 of a file, as 64 lower-case hexadecimal digits. Looks at `cancel` once per MiB.
pub fn sha256_file(path: &Path, cancel: &Cancel) -> Result<String> {
    // A pipe would wait for a writer, and be empty when it is read again.
    if !std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::bad_file(path, "not a regular file"));
    }
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    Ok(hex(&hash.finalize()))
}
