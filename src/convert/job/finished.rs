//! What a finished task has left.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of what tasks have made.
pub const TASKS: &str = "tasks";
/// What a finished task says of itself.
pub const DONE: &str = "done.json";

/// Where what a task makes gets its name.
pub fn task_folder(job: &Path, task: usize) -> PathBuf {
    job.join(TASKS).join(task.to_string())
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Done {
    pub seconds: f64,
    /// SHA-256 of source files, by their places; of a comparison, of the records, by their texts.
    pub hashes: BTreeMap<usize, String>,
    /// SHA-256 of the importance matrix, of the task that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<String>,
}

/// What is known of a finished task; `None` where it is not finished.
///
/// # Errors
/// `BadInput` for a file that is not what was written.
pub fn done(job: &Path, task: usize) -> Result<Option<Done>> {
    let path = task_folder(job, task).join(DONE);
    if !path.is_file() {
        return Ok(None);
    }
    let done = serde_json::from_value(crate::input::read_json(&path)?);
    done.map(Some).map_err(|e| Error::bad_file(&path, e.to_string()).hint("remove the task's folder, and run it again"))
}
