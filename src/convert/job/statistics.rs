//! Importance matrices in tasks: each sums up what some calibration windows give, and one adds up what they have made. Sums of
//! a window are rounded to fixed point once, so how windows are shared out changes no bit.

use crate::calibration::imatrix::Imatrix;
use crate::calibration::resume::{self, Key, Position, Progress};
use crate::calibration::totals::Totals;
use crate::control::{Cancel, Run};
use crate::convert::calibrate::{self, of_recipe};
use crate::convert::plan::{Plan, Prepared};
use crate::disk::partial::PartialFile;
use crate::source::sha256_file;
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The sums of a task, in its folder.
const SUMS: &str = "sums";
/// The importance matrix, in the folder of its task: what calibrating on one machine writes.
pub const IMPORTANCE: &str = "importance.gguf";

fn prepared(plan: &Plan) -> Result<&Prepared> {
    plan.prepared.as_ref().ok_or_else(|| Error::bad_input("the job has no calibration data"))
}

/// What the sums of some windows are of.
fn key(plan: &Plan, windows: &Range<usize>, run: Run) -> Result<Key> {
    let mut key = calibrate::key(&plan.source, &of_recipe(&plan.recipe), &prepared(plan)?.windows, run)?;
    key.insert("windows of the task".into(), format!("{} to {}", windows.start, windows.end));
    Ok(key)
}

/// Runs the model over some windows, and writes the sums into the folder of the task.
///
/// # Errors
/// Those of a calibration.
pub fn sum(plan: &Plan, windows: &Range<usize>, own: &Path, run: Run) -> Result<()> {
    let chosen = prepared(plan)?.windows.get(windows.clone());
    let chosen = chosen.ok_or_else(|| Error::bad_input("the job has no such calibration windows"))?;
    let key = key(plan, windows, run)?;
    let totals = calibrate::sums(&plan.source, chosen, &of_recipe(&plan.recipe), windows.start == 0, run)?;
    let at = Position { layer: plan.source.model.config.layers.len(), windows: 0 };
    resume::save_sums(&own.join(SUMS), &Progress { key, at, totals })
}

/// Adds up the sums that tasks have left in their folders, and writes the importance matrix. Its SHA-256.
///
/// # Errors
/// `BadInput` for sums that are missing, damaged or of another run, or too large to be added exactly; `Io`.
pub fn add(plan: &Plan, parts: &[(Range<usize>, PathBuf)], own: &Path, run: Run) -> Result<String> {
    let report = &prepared(plan)?.report;
    let mut totals = Totals::default();
    for (windows, folder) in parts {
        run.check()?;
        let path = folder.join(SUMS);
        let again = |e: Error| e.hint(format!("remove {}, and run its task again", folder.display()));
        let saved = resume::open(&path, &key(plan, windows, run)?).map_err(again)?;
        let saved = saved.ok_or_else(|| again(Error::bad_file(&path, "no such file")))?;
        totals.join(saved.progress.totals).map_err(|tensor| {
            let what = "the sums of its inputs are too large to be added exactly, or are of another model";
            Error::bad_file(&path, what).tensor(tensor).hint("make the importance matrix on one machine")
        })?;
    }
    let imatrix = Imatrix::new(&totals, report);
    let path = own.join(IMPORTANCE);
    calibrate::write(&imatrix, Some(report), PartialFile::create(&path, false)?)?;
    // The file holds more digits than its singles where these are not too large for it.
    let same = |back: &Imatrix| {
        let entries = imatrix.entries.iter().zip(&back.entries);
        imatrix.entries.len() == back.entries.len()
            && entries.into_iter().all(|((a, x), (b, y))| a == b && x.sums == y.sums && x.counts == y.counts)
    };
    match same(&Imatrix::open(&path)?) {
        true => sha256_file(&path, &Cancel::default()),
        false => Err(Error::bad_input("the importance matrix cannot be written exactly")
            .hint("make the importance matrix on one machine")),
    }
}
