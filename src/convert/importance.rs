//! The importance of input channels that guides the search of GGUF blocks: from a file, or from calibrating in the same
//! run; and what the ledger says of it.

use super::ledger::{Kind, LedgerRow};
use super::plan::FilePlan;
use super::recipe::ImportanceFile;
use super::record::ImatrixFacts;
use super::sizes;
use crate::calibration::data::DataReport;
use crate::calibration::imatrix::{Imatrix, UnseenExperts, Weights};
use crate::calibration::overlap::Overlap;
use crate::control::Cancel;
use crate::error::Hint;
use crate::model::Model;
use crate::quant::presets::Why;
use crate::source::sha256_file;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Weights for every tensor.
pub struct Importance {
    weights: Weights,
    /// Where it was read from.
    file: Option<PathBuf>,
    pub(super) facts: ImatrixFacts,
    unseen: UnseenExperts,
    /// Quantized tensors of layers that are not in the matrix.
    missing: Vec<String>,
    overlap: Option<Overlap>,
}

impl Importance {
    /// From a file that is checked against `model`.
    ///
    /// # Errors
    /// Those of [`Imatrix::open`], [`Imatrix::check`] and [`Imatrix::weights`].
    pub fn open(path: &Path, unseen: UnseenExperts, model: &Model) -> Result<Self> {
        let imatrix = Imatrix::open(path)?;
        imatrix.check(model, path)?;
        let mut importance = Self::new(&imatrix, unseen, None)?;
        importance.facts.file = Some(path.display().to_string());
        importance.file = Some(path.to_path_buf());
        Ok(importance)
    }

    /// From the file that a recipe names.
    ///
    /// # Errors
    /// `BadInput` when it is not the file that it was when the recipe was made; those of [`Importance::open`].
    pub(super) fn recorded(file: &ImportanceFile, unseen: UnseenExperts, model: &Model) -> Result<Self> {
        let path = Path::new(&file.file);
        match sha256_file(path, &Cancel::default())? == file.sha256 {
            true => Self::open(path, unseen, model),
            false => Err(Error::bad_file(path, "is not the file that the recipe was made with")),
        }
    }

    /// From a matrix that was just made.
    ///
    /// # Errors
    /// `BadInput` for an unseen expert under [`UnseenExperts::Error`].
    pub fn new(imatrix: &Imatrix, unseen: UnseenExperts, overlap: Option<Overlap>) -> Result<Self> {
        let facts = ImatrixFacts {
            file: None,
            dataset: imatrix.datasets.first().cloned(),
            entries: imatrix.entries.len() as u32,
            chunks: imatrix.chunks,
        };
        Ok(Self { weights: imatrix.weights(unseen)?, file: None, facts, unseen, missing: Vec::new(), overlap })
    }

    /// What a matrix made of this data will be described as, in as many bytes.
    pub(super) fn expected_facts(data: &DataReport) -> ImatrixFacts {
        let dataset = data.sources.first().map(|s| s.name.clone());
        let chunks = (data.tokens / data.seq_len.max(1)) as u32;
        ImatrixFacts { file: None, dataset, entries: 0, chunks }
    }

    /// The mean square of every input channel of a tensor, `[matrices, cols]`.
    pub fn of(&self, name: &str) -> Option<&[f32]> {
        self.weights.by_name.get(name).map(Vec::as_slice)
    }

    /// A tensor whose type needs importance must have an entry; of the others it is noted which have none.
    ///
    /// # Errors
    /// `BadInput` naming the tensor.
    pub(super) fn cover(&mut self, file: &FilePlan) -> Result<()> {
        for row in &file.sizes.rows {
            let (name, ty) = (row.name.as_str(), row.choice.got);
            let kept = row.choice.why == Why::Kept;
            if !kept && sizes::needs_importance(file.preset, name, ty) && self.of(name).is_none() {
                let what = format!("{ty} needs importance, and the matrix has none for it");
                let hint = Hint::TypeWithoutImportance { tensor: name.to_string() };
                let error = Error::bad_input(what).tensor(name).hint(hint);
                return Err(match &self.file {
                    Some(file) => error.in_file(file),
                    None => error,
                });
            }
            let quantized = !kept && !ty.is_plain() && name.starts_with("blk.");
            if quantized && self.of(name).is_none() && !self.missing.iter().any(|m| m == name) {
                self.missing.push(name.to_string());
            }
        }
        Ok(())
    }

    /// Experts and tensors without data, and an evaluation text that was calibrated on.
    pub(super) fn ledger(&self, candidate: &str) -> Vec<LedgerRow> {
        let row = |kind: Kind, tensor: Option<&str>, asked: &str, done: String, reason: String| LedgerRow {
            candidate: candidate.to_string(),
            kind,
            tensor: tensor.map(String::from),
            asked: asked.into(),
            done,
            reason,
        };
        let unseen = self.weights.unseen.iter().map(|(name, experts)| {
            let reason = format!("{} experts saw no token in calibration: {experts:?}", experts.len());
            row(Kind::UnseenExperts, Some(name), "importance of each expert's own", self.unseen.name().into(), reason)
        });
        let overlap = self.overlap.filter(|o| o.is_suspicious());
        let overlap =
            overlap.map(|o| row(Kind::Overlap, None, "unseen evaluation text", "partly seen".into(), overlap_text(o)));
        let missing = self.missing.iter().map(|name| {
            let reason = "the importance matrix has no entry for it".to_string();
            row(Kind::NoImportance, Some(name), "weighted error", "plain error".into(), reason)
        });
        unseen.chain(missing).chain(overlap).collect()
    }
}

/// The importance matrix that tasks of a job have made, by its file and that file's SHA-256.
///
/// # Errors
/// `BadInput` when it is not what was written.
pub(super) fn matrix_of_tasks((path, sha256): &(PathBuf, String)) -> Result<Imatrix> {
    match sha256_file(path, &Cancel::default())? == *sha256 {
        true => Imatrix::open(path),
        false => {
            let hint = "remove the folder that it lies in, and run its task again";
            Err(Error::bad_file(path, "is not what its task has written").hint(hint))
        }
    }
}

/// How much of an evaluation text was calibrated on, in words.
pub fn overlap_text(overlap: Overlap) -> String {
    format!("{:.2} % of the evaluation text is in the calibration data (runs of 13 tokens)", 100.0 * overlap.share())
}
