//! Faults for tests: the Nth change below a folder fails, and where it is a kill or a full disk, every later one too. Runs
//! in other folders go on as if nothing were.

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; operations are counted.
    None,
    /// It fails, once.
    Once(ErrorKind),
    /// It and all later ones that need space fail.
    Full,
    /// The process is gone: nothing changes any more, not even what it would have tidied up.
    Kill,
}

/// What was seen of a run.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Operations so far: what they are, and on which file.
    pub operations: Vec<(String, PathBuf)>,
}

struct Injected {
    below: PathBuf,
    at: usize,
    fault: Fault,
    seen: Seen,
}

static INJECTED: Mutex<Vec<Injected>> = Mutex::new(Vec::new());

fn injected() -> std::sync::MutexGuard<'static, Vec<Injected>> {
    INJECTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs `work` with `fault` at operation `at` (from 0) below `folder`. What it gave, and what was seen.
pub fn with<T>(folder: &Path, at: usize, fault: Fault, work: impl FnOnce() -> T) -> (T, Seen) {
    let seen = Seen::default();
    injected().push(Injected { below: folder.to_path_buf(), at, fault, seen });
    let result = work();
    let mut all = injected();
    let i = all.iter().position(|one| one.below == folder);
    let seen = i.map(|i| all.swap_remove(i).seen).unwrap_or_default();
    (result, seen)
}

/// Called before an operation changes something.
pub(super) fn before(what: &str, path: &Path) -> Result<()> {
    let mut all = injected();
    let Some(one) = all.iter_mut().find(|one| path.starts_with(&one.below)) else { return Ok(()) };
    let n = one.seen.operations.len();
    one.seen.operations.push((what.to_string(), path.to_path_buf()));
    let needs_space = matches!(what, "create" | "write" | "reserve" | "sync" | "mkdir" | "rename");
    match one.fault {
        Fault::Once(kind) if n == one.at => Err(kind.into()),
        Fault::Full if n >= one.at && needs_space => Err(ErrorKind::StorageFull.into()),
        Fault::Kill if n >= one.at => Err(Error::other("killed")),
        _ => Ok(()),
    }
}
