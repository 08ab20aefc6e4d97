//! Whether an output is run before it gets its name, and what happens to one that cannot be what was meant: it stays under
//! a name of its own, and the run fails.

use super::cost::{self, Pass};
use super::judge::OpenModel;
use super::layout::FolderPlan;
use super::loadable;
use super::plan::Plan;
pub use super::proof::other_tokens;
use super::proof::{self, Checked, Nearness, TOKENS};
use super::unfolded;
use crate::control::{Notice, Run};
use crate::disk;
use crate::eval::TensorDamage;
use crate::eval::damage::Transform;
use crate::model::config::Ending;
use crate::model::config_keys::lost;
use crate::model::{MappedTensor, Mtp, Part, SourceModel};
use crate::quant::presets::layer_of;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::folder::MANIFEST;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Seconds of one core that a check may take unasked: ten of a machine with four. It does not depend on this machine's, since
/// files hold what was seen.
const UNASKED: f64 = 40.0;
/// Seconds of one core that a conversion takes per weight of an output; measured, see `docs/benchmarks.md`.
const CONVERSION: f64 = 4e-9;

/// Seconds of one core that the check of one output takes: three passes of its tokens, two readings of the weights, and the
/// texts.
pub fn seconds(plan: &Plan) -> f64 {
    let (model, config) = (&plan.source.model, &plan.source.model.config);
    let vocab = if config.ending == Ending::Logits { config.vocab } else { 0 };
    let head = (TOKENS * vocab * config.hidden) as f64 * 2.5e-11;
    0.3 + 3.0 * (cost::of(model, Pass::Check, TOKENS as u64, 1).cpu_seconds + head)
}

/// Whether the outputs are run where that was left open: where that takes little, or less than the conversion.
pub fn is_cheap(plan: &Plan) -> bool {
    let outputs = plan.outputs.len().max(1) as f64;
    let calibrated = plan.recipe.data.is_some();
    calibrated || seconds(plan) * outputs <= UNASKED.max(CONVERSION * plan.weights() as f64 * outputs)
}

/// That outputs of this plan can be run.
///
/// # Errors
/// `Unsupported` for what the reference inference does not run; those of the tokenizer, without which there is no text.
pub fn can_run(plan: &Plan) -> Result<()> {
    let source = &plan.source;
    if source.model.part() != Part::Text || plan.recipe.mtp == Mtp::Only {
        return Err(Error::unsupported("a file that is not a complete text model cannot be run"));
    }
    source.model.runnable()?;
    source.tokenizer().map(|_| ())
}

/// Whether they are; `check`: whether somebody said so.
pub fn is_run(plan: &Plan, check: Option<bool>) -> bool {
    check.unwrap_or_else(|| is_cheap(plan)) && can_run(plan).is_ok()
}

/// A finished file under its temporary names: what llama.cpp's loader demands of it, and what it does beside its source,
/// where it is run; and a sentence for each thing that is odd.
///
/// # Errors
/// Those of opening and running it.
pub fn file(plan: &Plan, name: &str, paths: &[PathBuf], run: Run) -> Result<(Option<Checked>, Vec<String>)> {
    let ckpt = Checkpoint::open_gguf(paths)?;
    let refusals = loadable::examine(&ckpt).refusals.into_iter();
    let mut notes: Vec<String> = refusals.map(|what| format!("llama.cpp does not load it: {what}")).collect();
    let mut seen = None;
    if is_run(plan, run.control.check) {
        let model = crate::model::Model::open(&ckpt)?;
        let artifact = SourceModel::new(&paths[0], ckpt, model);
        if let Some((checked, odd)) = if_it_runs(beside(&plan.source, &artifact, run))? {
            notes.extend(odd);
            seen = Some(checked);
        }
    } else {
        notes.extend(unread(plan, run.control.check));
    }
    notes.iter().for_each(|text| run.notice(Notice::Warning(format!("{name}: {text}"))));
    Ok((seen, notes))
}

/// Why a model is not run that would be, if its text could be read.
fn unread(plan: &Plan, check: Option<bool>) -> Option<String> {
    let meant = check.unwrap_or_else(|| is_cheap(plan)) && plan.source.model.part() == Part::Text;
    if !meant || plan.recipe.mtp == Mtp::Only || plan.source.model.runnable().is_err() {
        return None;
    }
    let why = plan.source.tokenizer().err()?;
    Some(format!("not run beside its source, whose tokenizer cannot be read: {why}"))
}

/// `None` for what the engine does not run, of which conversion and rounding are all there is.
fn if_it_runs<T>(checked: Result<T>) -> Result<Option<T>> {
    match checked {
        Err(Error::Unsupported(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// A finished GGUF file beside the model it was made of, and what is odd about it that is no fault of rounding: what such a
/// file cannot hold of the model, and text that it reads as other tokens.
///
/// # Errors
/// Those of reading and running the source; what is wrong with the file is a suspicion.
pub fn beside(source: &SourceModel, artifact: &SourceModel, run: Run) -> Result<(Checked, Vec<String>)> {
    source.model.runnable()?;
    let mut checked = match judged(source, artifact, run) {
        Err(e @ Error::BadInput(_)) => Checked::suspicious(e.to_string()),
        other => other?,
    };
    let mut notes = Vec::new();
    // What the file says otherwise of the model than the source changes results, and no weights.
    let is_lost = lost(&source.model).is_ok_and(|lost| !lost.is_empty());
    let excused = is_lost && artifact.model.config != source.model.config;
    if let Some(what) = checked.suspicion.take_if(|_| excused) {
        notes.push(format!("{what}: what GGUF cannot hold of the model"));
        checked.suspicion = weights_beside(source, artifact, run)?;
    }
    if checked.suspicion.is_none() {
        notes.extend(proof::other_tokens(source, artifact)?);
    }
    Ok((checked, notes))
}

fn weights_beside(source: &SourceModel, artifact: &SourceModel, run: Run) -> Result<Option<String>> {
    let [ours, theirs] = [source, artifact].map(|it| OpenModel { ckpt: &it.ckpt, model: &it.model });
    match proof::other_weights(ours, theirs, run) {
        Err(e @ Error::BadInput(_)) => Ok(Some(e.to_string())),
        other => other,
    }
}

fn judged(source: &SourceModel, artifact: &SourceModel, run: Run) -> Result<Checked> {
    if let Err(why) = artifact.model.runnable() {
        return Ok(Checked::suspicious(why.to_string()));
    }
    let ours = OpenModel { ckpt: &source.ckpt, model: &source.model };
    let theirs = OpenModel { ckpt: &artifact.ckpt, model: &artifact.model };
    let bits = |layer| smallest(&artifact.ckpt, layer).min(of_source(&source.ckpt));
    let mut checked = proof::check_on_texts(source, (&ours, &theirs), &bits, run)?;
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

/// A finished folder under its temporary name: what its weights do beside the source, read as any loader reads them; and a
/// sentence for each thing that is odd.
///
/// # Errors
/// Those of opening and running it.
pub fn folder(plan: &Plan, folder: &FolderPlan, path: &Path, run: Run) -> Result<(Option<Checked>, Vec<String>)> {
    if !is_run(plan, run.control.check) {
        let notes: Vec<String> = unread(plan, run.control.check).into_iter().collect();
        notes.iter().for_each(|why| run.notice(Notice::Warning(format!("{}: {why}", folder.spec))));
        return Ok((None, notes));
    }
    let artifact = SourceModel::open(path)?;
    let source = OpenModel { ckpt: &plan.source.ckpt, model: &plan.source.model };
    let made = OpenModel { ckpt: &artifact.ckpt, model: &artifact.model };
    let bits = folder.quantized(&plan.source.ckpt).1.min(ROUNDED).min(of_source(&plan.source.ckpt));
    let ends = folder.layer(None).any(|(index, _)| folder.modules[index].spec.is_some());
    let of = |layer: Option<usize>| if layer.is_some() || ends { bits } else { 16.0 };
    let checked = if_it_runs(proof::check_on_texts(&plan.source, (&source, &made), &of, run.unheard()))?;
    Ok((checked, Vec::new()))
}

/// A checkpoint folder, quantized or not, beside the model it was made of.
///
/// # Errors
/// Those of reading and running the source; `Unsupported` for a folder that cannot be run here. What is wrong with it is a
/// suspicion.
pub fn folder_beside(source: &SourceModel, artifact: &SourceModel, run: Run) -> Result<Checked> {
    let unknown = |e: Error| Error::unsupported(format!("the folder cannot be run here, and so not be checked: {e}"));
    let (source, artifact) = (&source.to_run()?, &artifact.to_run().map_err(unknown)?);
    match as_folder(source, artifact, run) {
        Err(e @ Error::BadInput(_)) => Ok(Checked::suspicious(e.to_string())),
        other => other,
    }
}

fn as_folder(source: &SourceModel, artifact: &SourceModel, run: Run) -> Result<Checked> {
    if artifact.model.config != source.model.config {
        return Ok(Checked::suspicious("its configuration is not that of the source"));
    }
    let [ours, theirs] = [source, artifact].map(|it| OpenModel { ckpt: &it.ckpt, model: &it.model });
    let (ckpt, tensors) = (&artifact.ckpt, &artifact.model.tensors);
    let bits = |t: &MappedTensor| {
        let parts = t.parts.iter().map(|part| &ckpt.tensors()[*part]);
        let of_part = |t: &TensorMeta| {
            let pieces = ckpt.packed_pieces(t);
            // Tables of values take the same of a small matrix as of a large one.
            let is_table = |suffix: &str| suffix.contains("quant_map") || suffix.contains("quant_state");
            let own = pieces.iter().filter(|(suffix, _)| !is_table(suffix));
            let packed: u64 = own.map(|(_, piece)| piece.bytes()).sum();
            let bytes = if packed > 0 { packed } else { t.bytes() };
            let bits = 8.0 * bytes as f64 / t.elements().max(1) as f64;
            // Floats of eight bits are no nearer than integers of five.
            let is_float = |suffix: &str, piece: &TensorMeta| {
                let by_powers = matches!(suffix, "scales" | "weight_scale") && piece.dtype == Dtype::U8;
                by_powers || (piece.dtype == Dtype::F8_E4M3 && piece.elements() == t.elements())
            };
            let floats = pieces.iter().any(|(suffix, piece)| is_float(suffix, piece));
            if floats { bits.min(ROUNDED) } else { bits }
        };
        parts.map(of_part).fold(32.0, f64::min)
    };
    let of_layer = |layer: Option<usize>| {
        let own = tensors.iter().filter(|t| t.layer == layer && t.shape.len() > 1);
        let bits = own.map(bits).fold(32.0, f64::min).min(of_source(&source.ckpt));
        if ckpt.is_quantized() { bits.min(ROUNDED) } else { bits }
    };
    let mut checked = proof::check_on_texts(source, (&ours, &theirs), &of_layer, run)?;
    let transform = proof::transform(ours, theirs)?;
    if checked.suspicion.is_none() && transform == Some(Transform::Scaled) {
        checked.suspicion = match ckpt.is_quantized() {
            true => unfolded::other_matrix(ours, theirs, &|t| proof::bound_of_weights(bits(t), false), run)?,
            false => Some(proof::OTHER_NORMS.into()),
        };
    }
    if checked.suspicion.is_none() {
        let of_name = |damage: &TensorDamage| tensors.iter().find(|t| t.name == damage.name).map_or(32.0, bits);
        checked.suspicion = proof::other_matrices(ours, theirs, transform, (&of_name, false), run)?;
    }
    Ok(checked)
}

/// Bits of the smallest type of a matrix in a layer, or of embedding and output.
fn smallest(ckpt: &Checkpoint, layer: Option<usize>) -> f64 {
    let tensors = ckpt.tensors().iter().filter(|t| layer_of(&t.name) == layer && t.shape.len() > 1);
    tensors.map(|t| 8.0 * t.bytes() as f64 / t.elements().max(1) as f64).fold(32.0, f64::min)
}

/// The name under which an output stays that cannot be what was meant.
pub fn suspect_name(target: &Path) -> PathBuf {
    let name = target.file_name().map_or_else(Default::default, |n| n.to_string_lossy().into_owned());
    target.with_file_name(format!("{name}.suspect"))
}

/// The error of a run with such an output.
pub fn suspicious(name: &str, checked: &Checked, kept: &Path) -> Error {
    let why = checked.suspicion.as_deref().unwrap_or_default();
    let blind = match checked.nearness {
        Nearness::Logits { blind, entropy, .. } if blind > 0.0 && blind < 0.05 * entropy => {
            "; the source itself predicts poorly, so it may be the one that is broken"
        }
        _ => "",
    };
    Error::Gate(format!("{name}: {why}{blind}. It was not published; what was made is {}", kept.display()))
}

/// Renames what lies at `from` to the name of a suspect, in place of an earlier one.
///
/// # Errors
/// `Io`.
pub fn set_aside(from: &Path, target: &Path) -> Result<PathBuf> {
    let kept = suspect_name(target);
    if kept.is_dir() && kept.join(MANIFEST).is_file() {
        disk::remove_folder(&kept, MANIFEST).map_err(|e| Error::io(&kept, e))?;
    }
    disk::rename(from, &kept).map_err(|e| Error::io(&kept, e))?;
    Ok(kept)
}

/// Whether this plan's outputs are run, and at what cost, in words.
pub fn in_words(plan: &Plan, check: Option<bool>) -> String {
    if can_run(plan).is_err() {
        return "not checked by running it: this model can be converted but not run here".into();
    }
    let cost = seconds(plan) * plan.outputs.len().max(1) as f64;
    match check.unwrap_or_else(|| is_cheap(plan)) {
        true => format!("checked against the source at the end: about {cost:.1} s of one core"),
        false => format!("not checked at the end unless asked for: about {cost:.0} s of one core"),
    }
}
