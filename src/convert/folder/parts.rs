//! Parts of checkpoint folders that a task of a job makes, under a journal of its own, and folders that are put together of
//! what tasks have made: see [`crate::convert::job`].

use super::job::{Job, parts};
use super::{nearest, plain_job};
use crate::control::Run;
use crate::convert::layout::FolderPlan;
use crate::convert::plan::{Decided, OutputPlan, Plan};
use crate::writer::folder;
use crate::{Error, Result};
use serde_json::Value;
use std::ops::Range;
use std::path::PathBuf;

/// Where the journal of an unfinished folder lies.
pub fn journal(output: &OutputPlan) -> PathBuf {
    folder::journal_path(&output.place)
}

/// Names and bytes of the parts of a folder, in the order in which [`make`] counts them; none for a file.
pub fn units(plan: &Plan, output: &OutputPlan) -> Vec<(String, u64)> {
    match &output.what {
        Decided::File(_) => Vec::new(),
        Decided::Plain(plain) => plain_job::parts(plain).into_iter().map(|(name, _, bytes)| (name, bytes)).collect(),
        Decided::Folder(folder) => {
            let ckpt = &plan.source.ckpt;
            let kept = folder.kept.iter().map(|kept| ckpt.tensors()[kept.source].bytes()).sum();
            let of = |layer| folder.layer(layer).map(|(_, m)| 2 * (m.rows * m.cols) as u64).sum();
            let layers = parts(folder).into_iter().map(|layer| (super::job::part(layer), of(layer)));
            std::iter::once(("kept".to_string(), kept)).chain(layers).collect()
        }
    }
}

/// What all tasks that make this folder have to have in common.
///
/// # Errors
/// `Io`; `Internal` for a file.
pub fn identity(plan: &Plan, output: &OutputPlan, run: Run) -> Result<Value> {
    let (entries, format) = match &output.what {
        Decided::File(_) => return Err(Error::Internal("a file is no folder".into())),
        Decided::Plain(plain) => (&plain.entries, "pt"),
        Decided::Folder(folder) => (&folder.entries, folder.spec.loader().metadata_format()),
    };
    super::job::key(&plan.source.ckpt, (entries, format), &plan.recipe.of_output(output.index), None, run)
}

fn begun<'a>(plan: &'a Plan, output: &OutputPlan, folder: &'a FolderPlan, run: Run<'a>) -> Result<Job<'a>> {
    Job::new(&plan.source, folder, &plan.recipe.of_output(output.index), &output.place, None, run)
}

/// Makes some parts of a folder.
///
/// # Errors
/// Those of a conversion.
pub fn make(plan: &Plan, output: &OutputPlan, units: Range<usize>, run: Run) -> Result<()> {
    match &output.what {
        Decided::File(_) => Err(Error::Internal("a file has no parts".into())),
        Decided::Plain(plain) => plain_job::make_parts(plan, output, plain, units, run),
        Decided::Folder(folder) => {
            let job = begun(plan, output, folder, run)?;
            let parts = parts(folder);
            for unit in units {
                match unit.checked_sub(1) {
                    None => job.unless_finished("kept", || job.copy_kept())?,
                    Some(n) => nearest::round_part(&job, *parts.get(n).ok_or_else(|| no_part(unit))?)?,
                }
            }
            job.keep()
        }
    }
}

fn no_part(unit: usize) -> Error {
    Error::Internal(format!("the folder has no part {unit}"))
}

/// The unfinished folder and its journal, new ones that nothing was written to, in place of those that are there.
///
/// # Errors
/// `Exists`; `Storage`; `Io`.
pub fn lay_out(plan: &Plan, output: &OutputPlan, run: Run) -> Result<()> {
    folder::forget(&output.place)?;
    match &output.what {
        Decided::File(_) => Ok(()),
        Decided::Plain(plain) => plain_job::make_parts(plan, output, plain, 0..0, run),
        Decided::Folder(folder) => begun(plan, output, folder, run)?.keep(),
    }
}
