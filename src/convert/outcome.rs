//! What a run made.

use super::allocation::Allocation;
use super::judge::Verdict;
use super::ledger::LedgerRow;
use super::proof::Checked;
use crate::calibration::data::DataReport;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// What a run made.
#[derive(Debug)]
pub struct Outcome {
    /// In the order of [`super::Recipe::outputs`].
    pub outputs: Vec<Made>,
    /// What was calibrated on.
    pub data: Option<DataReport>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// One finished output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// Its place in [`super::Recipe::outputs`].
    pub index: usize,
    /// What it is called by: `Q4_K_M`, `gptq`.
    pub name: String,
    /// Where it was put.
    pub place: PathBuf,
    /// The files (of a split one: all shards), or the folder. The first opens the model.
    pub paths: Vec<PathBuf>,
    /// Of a file all bytes, of a folder those of its tensors.
    pub bytes: u64,
    /// Bytes of the tensors alone.
    pub tensor_bytes: u64,
    /// Weights in the file, or those of a folder that are quantized.
    pub quantized_weights: u64,
    /// Bits per weight of those, scales included.
    pub bits_per_weight: f64,
    /// What departs from what was asked.
    pub ledger: Vec<LedgerRow>,
    /// What held-out text says, where the output was judged.
    pub verdict: Option<Verdict>,
    /// What was seen when it ran beside its source; `None` where it was not run.
    pub checked: Option<Checked>,
    /// What is odd about it: a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Of a GGUF file.
    pub file: Option<MadeFile>,
    /// Of a folder; null otherwise.
    pub manifest: Value,
}

/// What there is to know of a GGUF file beside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MadeFile {
    /// Tensors that did not get the type they should have.
    pub fallbacks: usize,
    /// How a budget was spent.
    pub allocation: Option<Allocation>,
}
