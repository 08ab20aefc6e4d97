//! How far a job is.

use super::finished::{TASKS, done};
use super::task::{LOCK, attempts, failure};
use super::work::{Task, Tasks};
use crate::Result;
use crate::disk::Written;
use serde::Serialize;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// What it makes is there.
    Done {
        /// What it took.
        seconds: f64,
    },
    /// Somebody works on it, as far as locks tell.
    Running,
    /// The last try came to nothing.
    Failed {
        /// Why.
        error: String,
    },
    /// Nobody works on it.
    Waiting,
}

/// How far a job is.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of every task, in order.
    pub tasks: Vec<State>,
    /// Seconds of one task at a time that are left, by those that are done: of the phases of which some task is.
    pub seconds_left: Option<f64>,
}

impl Status {
    /// How many tasks are in a state like this one.
    pub fn count(&self, state: fn(&State) -> bool) -> usize {
        self.tasks.iter().filter(|s| state(s)).count()
    }
}

/// Looks at the folder of a job.
///
/// # Errors
/// `BadInput` for what is not as it was written.
pub fn status(path: &Path, job: &dyn Tasks) -> Result<Status> {
    let tasks = (0..job.tasks().len()).map(|task| state(path, task)).collect::<Result<Vec<State>>>()?;
    let left = job.phases().iter().map(|phase| seconds_left(&tasks, job.tasks(), phase.tasks.clone()));
    let left = left.collect::<Vec<_>>();
    // A phase of which nothing is done tells nothing of its time.
    let seconds_left = left.iter().any(Option::is_some).then(|| left.iter().flatten().sum());
    Ok(Status { tasks, seconds_left })
}

/// Seconds of one task at a time that a phase takes yet, by its tasks that are done.
fn seconds_left(states: &[State], tasks: &[Task], phase: Range<usize>) -> Option<f64> {
    let (mut took, mut read, mut left) = (0.0, 0, 0);
    for (state, task) in states.iter().zip(tasks).take(phase.end).skip(phase.start) {
        match state {
            State::Done { seconds } => (took, read) = (took + seconds, read + task.reads),
            _ => left += task.reads,
        }
    }
    (read > 0).then(|| took * left as f64 / read as f64)
}

fn state(path: &Path, task: usize) -> Result<State> {
    if let Some(done) = done(path, task)? {
        return Ok(State::Done { seconds: done.seconds });
    }
    let entries = std::fs::read_dir(path.join(TASKS)).into_iter().flatten().flatten();
    let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&attempts(task)));
    for entry in own {
        let lock = entry.path().join(LOCK);
        let held = || Written::open(&lock)?.lock();
        if lock.is_file() && held().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            return Ok(State::Running);
        }
    }
    match std::fs::read_to_string(failure(path, task)) {
        Ok(error) => Ok(State::Failed { error }),
        Err(_) => Ok(State::Waiting),
    }
}
