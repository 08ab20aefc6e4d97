//! SHA-256 of the source files, on the threads that read them anyway.

use super::plan::Plan;
use crate::control::Run;
use crate::source::{self, Checkpoint, SourceFile};
use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hashes every source file once, on as many threads as call [`SourceHashes::work`]. They read ahead of those that
/// quantize, so that a cold disk is read once.
pub(super) struct SourceHashes<'a> {
    files: &'a [SourceFile],
    run: Run<'a>,
    next: AtomicUsize,
    done: Mutex<Vec<(usize, String)>>,
}

impl<'a> SourceHashes<'a> {
    /// Without `wanted` there is nothing to hash.
    pub fn new(ckpt: &'a Checkpoint, wanted: bool, run: Run<'a>) -> Self {
        let files = if wanted { ckpt.files() } else { &[] };
        Self { files, run, next: AtomicUsize::new(0), done: Mutex::default() }
    }

    /// Hashes files until none is left.
    pub fn work(&self) -> Result<()> {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = self.files.get(i) else { return Ok(()) };
            let hash = source::sha256_file(&file.path, &self.run.control.cancel)?;
            self.done().push((i, hash));
        }
    }

    /// The hashes in order of the files.
    pub fn finish(&self) -> Result<Vec<String>> {
        let mut hashes = std::mem::take(&mut *self.done());
        hashes.sort();
        match hashes.len() == self.files.len() {
            true => Ok(hashes.into_iter().map(|(_, hash)| hash).collect()),
            false => Err(Error::Internal("a source file was not hashed".into())),
        }
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Vec<(usize, String)>> {
        // A thread that panicked has pushed or has not; the count tells.
        self.done.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The hashes of all source files of a plan, where they were made.
pub(super) fn known(plan: &Plan) -> Option<&[String]> {
    plan.source_hashes.get().map(Vec::as_slice)
}

/// The same, made now where they were not.
pub(super) fn of(plan: &Plan, run: Run) -> Result<Vec<String>> {
    match known(plan) {
        Some(hashes) => Ok(hashes.to_vec()),
        None => {
            let made = all(&plan.source.ckpt, run)?;
            Ok(plan.source_hashes.get_or_init(|| made).clone())
        }
    }
}

/// Hashes all source files at once.
fn all(ckpt: &Checkpoint, run: Run) -> Result<Vec<String>> {
    let hashes = SourceHashes::new(ckpt, true, run);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..run.threads().min(ckpt.files().len())).map(|_| scope.spawn(|| hashes.work())).collect();
        let panicked = || Err(Error::Internal("hashing panicked".into()));
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| panicked()))
    })?;
    hashes.finish()
}
