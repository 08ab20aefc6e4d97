//! Which tensors of an unfinished output were written since somebody last asked, where they lie, and their hashes: what
//! tells later whether the bytes on the disk are still those that were written.

use crate::control::Run;
use crate::digest::hex;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A tensor in an unfinished file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// Its place in the list of files.
    pub file: usize,
    pub at: u64,
    pub len: u64,
    /// 64 hexadecimal digits.
    pub sha256: String,
}

impl Piece {
    /// Whether the bytes are still there, `files` being the list of files.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub fn is_there(&self, files: &[PathBuf], run: Run) -> Result<bool> {
        let Some(path) = files.get(self.file) else { return Ok(false) };
        Ok(hash(path, self.at, self.len, run)?.is_some_and(|there| there == self.sha256))
    }
}

/// Tensors that were written, by their place in the output.
#[derive(Debug, Default)]
pub struct Touched(Mutex<BTreeSet<usize>>);

impl Touched {
    pub fn note(&self, tensor: usize) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(tensor);
    }

    /// Those since the last call.
    pub fn take(&self) -> BTreeSet<usize> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// Reads tensors back, each as `(file, path, offset, length)`, and hashes them.
///
/// # Errors
/// `Io`; `Storage` for a file that is shorter than what was written; `Interrupted`.
pub fn of(places: Vec<(usize, PathBuf, u64, u64)>, run: Run) -> Result<Vec<Piece>> {
    let piece = |(file, path, at, len): (usize, PathBuf, u64, u64)| {
        let sha256 = hash(&path, at, len, run)?;
        let short = || Error::storage(format!("{}: shorter than what was written to it", path.display()));
        Ok(Piece { file, at, len, sha256: sha256.ok_or_else(short)? })
    };
    places.into_par_iter().map(piece).collect()
}

/// The hash of some bytes of a file; `None` where it has not so many.
fn hash(path: &Path, at: u64, len: u64, run: Run) -> Result<Option<String>> {
    let mut hasher = Sha256::new();
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(at))?;
        let (mut left, mut buffer) = (len, vec![0; len.min(1 << 20) as usize]);
        while left > 0 && !run.control.cancel.is_requested() {
            let piece = &mut buffer[..left.min(1 << 20) as usize];
            file.read_exact(piece)?;
            hasher.update(&*piece);
            left -= piece.len() as u64;
        }
        Ok(())
    };
    match read() {
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotFound) => return Ok(None),
        done => done.map_err(|e| Error::io(path, e))?,
    }
    run.check()?;
    Ok(Some(hex(&hasher.finalize())))
}
