//! What a task of a job does.

use serde::{Deserialize, Serialize};
use std::ops::Range;

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
}
