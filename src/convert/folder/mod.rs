//! From a checkpoint to a quantized checkpoint folder, as [`super::layout`] has decided it: [`job`] does what all methods share (reading modules, packing, writing, resuming), [`nearest`] rounds module by module without
//! running the model, [`layered`] by what a layer's inputs were (which [`crate::calibration::layerwise`] shows it), with
//! the channel factors of [`scaled`] where there are any, [`judged`] compares the result with its rival, [`tuned`] moves its scales, and [`files`]
//! makes the small files around the weights; [`plain_job`] makes those without quantized weights; [`engines`] says who would refuse the result. Formats are known to
//! [`crate::packed`], the container to [`crate::writer`].

pub mod engines;
pub mod files;
pub mod job;
pub mod judged;
pub mod layered;
pub mod nearest;
pub(super) mod parts;
mod plain_job;
pub mod scaled;
pub mod tuned;

use super::data::{Drawing, HoldOut, hold_out_for_folders};
use super::hashes;
use super::identity::CalibrationWindows;
use super::judge::{HeldOut, Scored};
use super::layout::FolderPlan;
use super::mixture;
use super::outcome::Made;
use super::plan::{OutputPlan, Plan};
use super::proven;
use super::published::Published;
use super::rounding::{Rounding, has_feedback, needs_data, rounds_by_data, smoothing, tuning};
use crate::control::{Notice, Run, Unit};
use crate::disk::folder_of;
use crate::feedback::{Shrink, int};
use crate::packed::{ChannelScaling, Spec};
use crate::{Error, Result};
use job::{Job, Provenance};
use layered::Layered;
use scaled::Scaling;
use serde_json::Value;

/// How channels are scaled in a calibrated run.
fn scaling(spec: &Spec, rounding: &Rounding) -> Option<Scaling> {
    match spec.scaling() {
        ChannelScaling::Awq => Some(Scaling::Awq),
        ChannelScaling::SmoothQuant => {
            smoothing(spec, rounding).filter(|exponent| *exponent > 0.0).map(Scaling::Smooth)
        }
        ChannelScaling::None => None,
    }
}

/// Makes the plain folders of a plan that are not published yet.
pub(super) fn run_plain(plan: &Plan, published: &mut Published, run: Run) -> Result<()> {
    plain_job::run(plan, published, run)
}

/// Makes the folders of a plan that are not published yet, one after the other. `drawing`: the calibration data, where one
/// of them needs some.
pub(super) fn run(plan: &Plan, drawing: Option<&Drawing>, published: &mut Published, run: Run) -> Result<()> {
    let left = plan.folders().filter(|(output, _)| !published.has(output.index));
    let mut left: Vec<(usize, FolderPlan)> = left.map(|(output, folder)| (output.index, folder.clone())).collect();
    if left.is_empty() {
        return Ok(());
    }
    mixture::spend(plan, &mut left, drawing, run)?;
    let hash = plan.recipe.hash_sources;
    let hashes = if hash { Some(hashes::of(plan, run)?) } else { None };
    left.iter().try_for_each(|(index, folder)| {
        one(plan, &plan.outputs[*index], folder, drawing, hashes.clone(), published, run)
    })
}

fn one(
    plan: &Plan,
    output: &OutputPlan,
    folder: &FolderPlan,
    drawing: Option<&Drawing>,
    hashes: Option<Vec<String>>,
    published: &mut Published,
    run: Run,
) -> Result<()> {
    let (source, rounding, spec) = (&plan.source, &plan.recipe.rounding, &folder.spec);
    let given = plan.recipe.data.is_some();
    let recipe = plan.recipe.of_output(output.index);
    let (feedback, scaling) = (has_feedback(spec, rounding, given), scaling(spec, rounding));
    // A budget is spent by the data, too.
    let calibration = drawing.filter(|_| recipe.data.is_some()).map(|d| serde_json::to_value(&d.report)).transpose();
    let calibration = calibration.map_err(|e| Error::Internal(e.to_string()))?.unwrap_or(Value::Null);
    let drawing = match needs_data(spec, rounding, given) {
        true => Some(drawing.ok_or_else(|| Error::Internal("no calibration data were drawn".into()))?),
        false => None,
    };
    // What is folded into norms cannot be taken back module by module, and scales of inputs need data anyway.
    let judged = feedback && scaling.is_none() && !spec.needs_inputs();
    let (by_data, steps) = (rounds_by_data(spec, rounding, given), tuning(spec, rounding, given));
    if steps > 0 {
        tuned::check(source)?;
    }
    let none = || HeldOut { sets: Vec::new(), scored: Scored::All };
    let split = match drawing {
        Some(drawing) if judged || steps > 0 => hold_out_for_folders(&drawing.windows),
        Some(drawing) => HoldOut { seen: drawing.windows.clone(), held: none() },
        None => HoldOut { seen: Vec::new(), held: none() },
    };
    let held: Vec<Vec<u32>> = split.held.sets.concat();
    if steps > 0 && held.is_empty() {
        let what =
            format!("{} calibration windows are too few to tune on, of which some are held out", split.seen.len());
        return Err(Error::bad_input(what));
    }
    let (all, sets) = split.all();
    let seen = drawing.map(|_| CalibrationWindows { windows: &all, sets: &sets, hashes: hashes.as_deref() });
    let total: u64 = source.ckpt.tensors().iter().map(|t| t.bytes()).sum();
    let phase = run.phase(output.target.name(), total, Unit::Bytes);
    let job = Job::new(source, folder, &recipe, &output.place, seen, run)?;
    let name = source.name();
    let provenance = Provenance { name: &name, hashes, calibration };
    let mut notes = Vec::new();
    let made = job.make(
        |job| {
            if by_data {
                let static_groups = rounding.static_groups || !spec.desc_act;
                let options = layered::Options {
                    feedback,
                    shrink: Shrink { rho: rounding.rho, damping: rounding.damping },
                    search: int::Search { static_groups, ..int::Search::default() },
                    scaling,
                    sequential: rounding.sequential.unwrap_or(true),
                };
                let unjudged = none();
                let rival = if judged { &split.held } else { &unjudged };
                judged::run(job, &Layered { windows: &split.seen, options }, rival)?;
            } else {
                nearest::run(job)?;
            }
            if steps > 0 {
                tuned::run(job, &split.seen, &held, steps)?;
            }
            Ok(())
        },
        |path| {
            let (checked, told) = proven::folder(plan, folder, path, run)?;
            notes = told;
            Ok(checked)
        },
        &provenance,
    )?;
    drop(phase);
    // Those of the plan are known already.
    for departure in made.departures.get(folder.departures.len()..).unwrap_or_default() {
        run.notice(Notice::About { output: output.target.name().to_string(), text: departure.to_string() });
    }
    let (quantized_weights, bits_per_weight) = folder.quantized(&source.ckpt);
    let steps = vec![(folder_of(&output.place).to_path_buf(), made.step.clone())];
    let finished = Made {
        index: output.index,
        name: output.target.name().to_string(),
        place: output.place.clone(),
        paths: vec![made.path.clone()],
        bytes: made.tensor_bytes,
        tensor_bytes: made.tensor_bytes,
        quantized_weights,
        bits_per_weight,
        ledger: made.departures.iter().map(|d| d.of(output.target.name())).collect(),
        checked: made.checked.clone(),
        notes,
        verdict: judged::verdict(&made.manifest["held_out"]),
        file: None,
        manifest: made.manifest.clone(),
    };
    published.publish(vec![finished], steps, || {})
}
