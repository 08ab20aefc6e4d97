//! A GGUF file that was calibrated, made once more from its source and compared: nothing else tells whether its tensors are
//! what its recipe gives.

use crate::control::{Control, Run};
use crate::convert::{self, Recipe, Source, record};
use crate::isa::Isa;
use crate::model::SourceModel;
use crate::source::{Checkpoint, TensorMeta};
use crate::{Error, Result};
use rayon::prelude::*;

/// Runs the recipe of `file` over `source` again, in a folder of its own where data are spilled. Names of the tensors with
/// other bytes.
///
/// # Errors
/// `BadInput` for a file without a recipe, of text that is not here any more or was changed, or calibrated with other
/// instructions than this processor's; those of the conversion.
pub fn differing(file: &Checkpoint, source: &SourceModel, run: Run) -> Result<Vec<String>> {
    let path = &file.files()[0].path;
    let fault = |what: String| Error::bad_file(path, what);
    let metadata = file.gguf().ok_or_else(|| Error::Internal("not a GGUF file".into()))?;
    let recipe = record::read(metadata)
        .ok_or_else(|| fault("was calibrated, but its record is not in a form that this version reads".into()))?;
    let data = recipe.data.iter().flat_map(|data| &data.sources);
    if let Some(missing) = data.filter_map(Source::path).find(|path| !path.exists()) {
        let what = format!("was calibrated on {}, which is not here", missing.display());
        return Err(fault(what).hint("its tensors cannot be verified without that text; run this where the text is"));
    }
    let (there, here) = (metadata.str(record::INSTRUCTIONS), Isa::active().name());
    if let Some(there) = there.filter(|there| *there != here) {
        let what = format!("was calibrated with {there} instructions, whose last bits differ from those of {here}");
        return Err(fault(what)
            .hint("its tensors can be verified on a processor with those instructions, with the same settings"));
    }
    let folder = match &run.control.spill {
        Some(folder) => tempfile::tempdir_in(folder).map_err(|e| Error::io(folder, e))?,
        None => tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?,
    };
    let made = again(source, &recipe, folder.path(), run)?;
    if made.gguf().and_then(|m| m.str(record::DATA_TOKENS)) != metadata.str(record::DATA_TOKENS) {
        return Err(fault("was calibrated on different text than its recipe names now".into())
            .hint("the text or the source's tokenizer has changed since"));
    }
    compare(file, &made, run)
}

fn again(source: &SourceModel, recipe: &Recipe, folder: &std::path::Path, run: Run) -> Result<Checkpoint> {
    let mut plan = convert::plan(source, recipe)?;
    plan.place(folder)?;
    let control = Control {
        check: Some(false),
        resume: false,
        cancel: run.control.cancel.clone(),
        spill: run.control.spill.clone(),
        ..*run.control
    };
    let outcome = convert::run(&plan, &control, run.report)?;
    let paths = outcome.outputs.first().map(|made| made.paths.as_slice()).unwrap_or_default();
    Checkpoint::open_gguf(paths)
}

/// The tensors of `file` whose bytes are not those of `made`.
fn compare(file: &Checkpoint, made: &Checkpoint, run: Run) -> Result<Vec<String>> {
    const PIECE: u64 = 4 << 20;
    let same = |t: &TensorMeta| -> Result<bool> {
        let Some(other) = made.find(&t.name).map(|i| &made.tensors()[i]) else { return Ok(false) };
        if (other.dtype, &other.shape) != (t.dtype, &t.shape) {
            return Ok(false);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for at in (0..t.bytes()).step_by(PIECE as usize) {
            run.check()?;
            let len = PIECE.min(t.bytes() - at) as usize;
            a.resize(len, 0);
            b.resize(len, 0);
            file.read(t, at, &mut a)?;
            made.read(other, at, &mut b)?;
            if a != b {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let differs = |t: &TensorMeta| same(t).map(|same| (!same).then(|| t.name.clone())).transpose();
    let mut differing = file.tensors().par_iter().filter_map(differs).collect::<Result<Vec<String>>>()?;
    let missing = made.tensors().iter().filter(|t| file.find(&t.name).is_none());
    differing.extend(missing.map(|t| t.name.clone()));
    differing.sort();
    Ok(differing)
}
