//! Whether an output is run before it gets its name, and what happens to one that cannot be what was meant: it stays under
//! a name of its own, and the run fails.

use super::cost::{self, Pass};
use super::folder::plan::FolderPlan;
use super::judge::{Layers, Stored};
use super::loadable;
use super::plan::{FilePlan, Plan};
use super::proof::{self, Checked, TOKENS};
use crate::control::{Notice, Run};
use crate::model::SourceModel;
use crate::model::keys::lost;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Seconds of one core that a check may take unasked: about ten of an ordinary machine.
const UNASKED: f64 = 20.0;
/// Seconds of one core that a conversion takes per weight of an output; measured, see `docs/benchmarks.md`.
const CONVERSION: f64 = 4e-9;

/// Seconds of one core that the check of one output takes: three passes of its tokens, two readings of the weights.
pub fn seconds(plan: &Plan) -> f64 {
    let (model, config) = (&plan.source.model, &plan.source.model.config);
    let head = 3.0 * (TOKENS * config.vocab * config.hidden) as f64 * 7e-12;
    3.0 * cost::of(model, Pass::Importance, TOKENS as u64, 1).cpu_seconds + head
}

/// Whether the outputs are run where nobody said: where that takes little, or less than the conversion.
pub fn is_cheap(plan: &Plan) -> bool {
    let outputs = plan.outputs.len().max(1) as f64;
    let calibrated = plan.recipe.data.is_some();
    calibrated || seconds(plan) * outputs <= UNASKED.max(CONVERSION * plan.weights() as f64 * outputs)
}

/// Whether an output of this plan is run.
pub fn is_run(plan: &Plan, run: Run) -> bool {
    plan.source.model.family.is_ok() && run.control.check.unwrap_or_else(|| is_cheap(plan))
}

/// A finished file under its temporary names: what llama.cpp's loader demands of it, and what it does beside its source.
///
/// # Errors
/// Those of opening and running it.
pub fn file(plan: &Plan, file: &FilePlan, name: &str, paths: &[PathBuf], run: Run) -> Result<Option<Checked>> {
    let ckpt = Checkpoint::open_gguf(paths)?;
    for what in loadable::examine(&ckpt).refusals {
        run.notice(Notice::About { output: name.into(), text: format!("llama.cpp does not load it: {what}") });
    }
    if !is_run(plan, run) {
        return Ok(None);
    }
    // Without a tokenizer, or one that is read here, there is no text to run on.
    if plan.source.tokenizer().is_err() {
        return Ok(None);
    }
    let model = crate::model::Model::open(&ckpt)?;
    let artifact = SourceModel::new(&paths[0], ckpt, model);
    let checked = if_it_runs(beside(&plan.source, &artifact, &|layer| smallest(file, layer), run))?;
    let Some(mut checked) = checked else { return Ok(None) };
    let notice = |text: String| run.notice(Notice::About { output: name.into(), text });
    // What GGUF cannot hold was told, and shows here.
    if let Some(what) = checked.suspicion.take_if(|_| lost(&plan.source.model).is_ok_and(|lost| !lost.is_empty())) {
        notice(format!("{what}: what GGUF cannot hold of the model"));
    }
    if checked.suspicion.is_none()
        && let Some(what) = proof::other_tokens(&plan.source, &artifact)?
    {
        notice(what);
    }
    Ok(Some(checked))
}

/// `None` for what the engine does not run, of which conversion and rounding are all there is.
fn if_it_runs(checked: Result<Checked>) -> Result<Option<Checked>> {
    match checked {
        Err(Error::Unsupported(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// A finished file beside the model it was made of.
///
/// # Errors
/// Those of opening and running both.
pub fn beside(
    source: &SourceModel,
    artifact: &SourceModel,
    bits: &dyn Fn(Option<usize>) -> f64,
    run: Run,
) -> Result<Checked> {
    source.model.known()?;
    if let Err(opaque) = &artifact.model.family {
        let suspicion = Some(opaque.error().to_string());
        return Ok(Checked { suspicion, ..Checked::default() });
    }
    let stored = |s: &SourceModel| (s.ckpt.clone(), s.model.clone());
    let (ours, theirs) = (stored(source), stored(artifact));
    let (ours, theirs) = (Stored { ckpt: &ours.0, model: &ours.1 }, Stored { ckpt: &theirs.0, model: &theirs.1 });
    let bits = |layer| bits(layer).min(of_source(&source.ckpt));
    let mut checked = proof::check(&ours, &theirs, &proof::windows(source)?, &bits, run)?;
    if checked.suspicion.is_none() {
        checked.suspicion = proof::other_weights(ours, theirs, run)?;
    }
    Ok(checked)
}

/// The bits that stand for a format which rounds activations, or has floats of eight bits.
const ROUNDED: f64 = 5.0;

/// The same of a source, which may be stored in such a format.
fn of_source(ckpt: &Checkpoint) -> f64 {
    if ckpt.scheme().is_some() { ROUNDED } else { 32.0 }
}

/// A finished folder, layer by layer as `layers` reads it back.
///
/// # Errors
/// Those of running it.
pub fn folder(plan: &Plan, folder: &FolderPlan, layers: &dyn Layers, run: Run) -> Result<Option<Checked>> {
    if !is_run(plan, run) {
        return Ok(None);
    }
    let source = Stored { ckpt: &plan.source.ckpt, model: &plan.source.model };
    if plan.source.tokenizer().is_err() {
        return Ok(None);
    }
    let bits = folder.quantized(&plan.source.ckpt).1.min(ROUNDED).min(of_source(&plan.source.ckpt));
    let of = |layer: Option<usize>| if layer.is_some() { bits } else { 16.0 };
    if_it_runs(
        proof::windows(&plan.source).and_then(|windows| proof::check(&source, layers, &windows, &of, run.unheard())),
    )
}

/// Bits of the smallest type of a matrix in a layer, or of embedding and output.
fn smallest(file: &FilePlan, layer: Option<usize>) -> f64 {
    let rows = file.sizes.rows.iter().filter(|row| layer_of(&row.name) == layer && row.shape.len() > 1);
    rows.map(|row| row.choice.got.bits()).fold(32.0, f64::min)
}

/// The same of a file that is there.
pub fn smallest_of(ckpt: &Checkpoint, layer: Option<usize>) -> f64 {
    let tensors = ckpt.tensors().iter().filter(|t| layer_of(&t.name) == layer && t.shape.len() > 1);
    tensors.map(|t| 8.0 * t.bytes() as f64 / t.elements().max(1) as f64).fold(32.0, f64::min)
}

fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The name under which an output stays that cannot be what was meant.
pub fn suspect_name(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.suspect"))
}

/// The error of a run with such an output.
pub fn suspicious(name: &str, checked: &Checked, kept: &Path) -> Error {
    let why = checked.suspicion.as_deref().unwrap_or_default();
    let blind = match checked.blind {
        blind if blind > 0.0 && blind < 0.05 * checked.entropy => {
            "; the source itself makes little of what it reads, so it may be the one that is broken"
        }
        _ => "",
    };
    Error::Gate(format!("{name}: {why}{blind}. Nothing was published; what was made is {}", kept.display()))
}

/// Renames what lies at `from` to the name of a suspect, in place of an earlier one.
///
/// # Errors
/// `Io`.
pub fn set_aside(from: &Path, target: &Path) -> Result<PathBuf> {
    let kept = suspect_name(target);
    if kept.is_dir() && kept.join(crate::writer::folder::MANIFEST).is_file() {
        std::fs::remove_dir_all(&kept).map_err(|e| Error::io(&kept, e))?;
    }
    std::fs::rename(from, &kept).map_err(|e| Error::io(&kept, e))?;
    Ok(kept)
}

/// Whether this plan's outputs are run, and at what cost, in words.
pub fn in_words(plan: &Plan, check: Option<bool>) -> String {
    if plan.source.model.family.is_err() {
        return "not run at the end: this model is converted only".into();
    }
    let cost = seconds(plan) * plan.outputs.len().max(1) as f64;
    match check.unwrap_or_else(|| is_cheap(plan)) {
        true => format!("run beside the source at the end: about {cost:.1} s of one core"),
        false => format!("not run at the end unless asked for: about {cost:.0} s of one core"),
    }
}
