//! What is done in tasks, and what a task of it does.

use super::finished::Done;
use crate::control::Run;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// What is cut into tasks: a conversion, or a comparison.
pub trait Tasks {
    /// In the order in which they are run.
    fn phases(&self) -> &[Phase];

    /// All tasks, with their places in this list for names.
    fn tasks(&self) -> &[Task];

    /// Does what a task is for. `path`: the folder of the job; `own`: where what is made goes.
    ///
    /// # Errors
    /// `BadInput` when what is read is not what the job was planned with; those of the work.
    fn make(&self, path: &Path, own: &Path, work: &[Work], run: Run) -> Result<Done>;

    /// A phase by its name.
    ///
    /// # Errors
    /// `Request` naming those that there are.
    fn phase(&self, name: &str) -> Result<&Phase> {
        self.phases().iter().find(|phase| phase.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.phases().iter().map(|phase| phase.name.as_str()).collect();
            Error::request(format!("the job has no phase '{name}', but {}", names.join(", ")))
        })
    }
}

/// Tasks that may run at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What it is called.
    pub name: String,
    /// The phases that have to be finished before.
    pub after: Vec<String>,
    /// Which tasks.
    pub tasks: Range<usize>,
}

/// What one process does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What is made.
    pub work: Vec<Work>,
    /// Bytes of the source that it reads, about.
    pub reads: u64,
    /// Bytes that it writes, about.
    pub writes: u64,
}

/// A range of parts of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Tensors of all GGUF files.
    Tensors(Range<usize>),
    /// Parts of one folder.
    Folder {
        /// Its place in the recipe.
        output: usize,
        /// Which parts.
        parts: Range<usize>,
    },
    /// Source files that are hashed.
    Hashes(Range<usize>),
    /// Calibration windows that the model is run on, for the sums of an importance matrix.
    Sums(Range<usize>),
    /// The importance matrix: all sums, added up.
    Importance,
    /// Calibration windows that are taken through the model, for what enters the layers at which other tasks begin.
    Activations(Range<usize>),
    /// Layers of all GGUF files that are rounded with error feedback.
    Layers(Range<usize>),
    /// Windows of a text that models are compared on.
    Windows {
        /// Its place among the texts.
        text: usize,
        /// Which windows.
        windows: Range<usize>,
    },
}
