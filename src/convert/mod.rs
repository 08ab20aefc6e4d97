//! From a checkpoint to its quantized copies. A [`Recipe`] says what decides their bytes, [`plan()`] what that means for a
//! model, and [`run`] makes them. The walk of a conversion:
//!
//! 1. [`crate::model::SourceModel::open`] reads headers, configuration and tensor names; no weight.
//! 2. [`plan()`] decides the type of every tensor ([`sizes`]) and the format of every module ([`folder`]).
//! 3. Where something is calibrated, [`data`] draws windows of text, once, and holds some of them out.
//! 4. For budgets, what types cost this model is measured ([`sensitivity`]), and [`budget`] chooses for files, `mixture` for folders.
//! 5. The pass with activations takes the windows through one layer after the other: [`blocks`] rounds GGUF blocks with
//!    error feedback, [`folder::layered`] the modules of folders. [`journal`] notes every layer that is on the disk.
//! 6. The pass without reads every weight once: [`stream`] for GGUF files, [`folder::nearest`] for folders.
//! 7. What was made is sealed and read back; [`judge`] compares it with its rival on the held-out text.
//! 8. [`proof`] runs it beside its source over a few windows; what no rounding explains ends the run.
//! 9. Outputs get their names. Until then nothing looks finished, and a killed run goes on from its journal, if the key
//!    that derives from recipe and [`identity`] is the same.
//!
//! [`calibrate`] makes importance matrices as results of their own.

pub(crate) mod allocation;
mod asked;
mod blind;
pub(crate) mod budget;
pub(crate) mod calibrate;
pub(crate) mod catalogue;
pub(crate) mod companions;
pub(crate) mod cost;
pub(crate) mod data;
pub(crate) mod devices;
mod files;
mod findings;
pub(crate) mod fitting;
pub(crate) mod forecast;
mod form;
mod hashes;
pub(crate) mod identity;
mod importance;
mod inputs;
pub(crate) mod job;
mod ledger;
pub(crate) mod loadable;
mod mixture;
mod naming;
mod outcome;
mod per_output;
pub(crate) mod places;
pub(crate) mod plan;
pub(crate) mod proof;
pub(crate) mod proven;
mod published;
pub(crate) mod record;
pub(crate) mod rounding;
pub(crate) mod rule_sets;
pub(crate) mod running;
pub(crate) mod sensitivity;
pub(crate) mod sizes;
mod sorting;
mod tune;
mod types;
mod unfolded;
mod written;

// Private, but for this repository's tests and benches.
cfg_if::cfg_if! {
    if #[cfg(feature = "internals")] {
        pub mod blocks;
        pub mod folder;
        pub mod journal;
        pub mod judge;
        pub mod layout;
        pub mod recipe;
        pub mod stream;
        pub mod together;
    } else {
        pub(crate) mod blocks;
        pub(crate) mod folder;
        pub(crate) mod journal;
        pub(crate) mod judge;
        pub(crate) mod layout;
        pub(crate) mod recipe;
        pub(crate) mod stream;
        pub(crate) mod together;
    }
}

pub use crate::calibration::data::{DataReport, Source, SourceReport};
pub use crate::calibration::imatrix::{Entry, Imatrix, UnseenExperts, Weights};
pub use crate::calibration::overlap::Overlap;
pub use crate::calibration::stats::ExpertUse;
pub use crate::calibration::totals::Total;
pub use crate::packed::{ChannelScaling, Format, Loader, Reach, Spec};
pub use crate::quant::presets::{Choice, Preset, Why};
pub use allocation::{AllocatedTensor, Allocation, Sensitivity};
pub use calibrate::{Calibrated, Calibration, Checkpoints, calibrate};
pub use importance::{Importance, overlap_text};
pub use judge::Verdict;
pub use layout::plain::like;
pub use layout::{Departure, FolderPlan, PlainPlan};
pub use ledger::{Kind, LedgerRow};
pub use outcome::{Made, MadeFile, Outcome};
pub use plan::{AssumedImportance, Decided, FilePlan, OutputPlan, Plan};
pub use proof::{Checked, Nearness};
pub use recipe::{
    Data, Float, FolderType, ImportanceFile, Like, Limit, Override, OverrideValue, Recipe, RuleType, Split, Target,
    TypeRule, TypeRules,
};
pub use rounding::{Rounding, Search};
pub use sizes::{FileSizes, TensorRow};

use crate::Result;
use crate::control::{Control, Notice, Report, Run};
use crate::model::SourceModel;
use data::Drawing;
use plan::Prepared;
use published::{Earlier, Published, Unended};
use std::time::Instant;

/// Decides everything. Nothing is written, no weight is read. Outputs go to the current folder, under the names that
/// [`recipe::Target::usual_name`] gives.
///
/// # Errors
/// `Request` for a recipe that contradicts itself or names what the model does not have; `Unsupported` for a type or
/// format that the model cannot have; `BadInput` for a tokenizer that cannot be converted, or a quantized source.
pub fn plan(source: &SourceModel, recipe: &Recipe) -> Result<Plan> {
    plan_assuming(source, recipe, AssumedImportance::OfRecipe)
}

/// The same, where it is not known yet whether there will be importance.
///
/// # Errors
/// As [`plan()`].
pub fn plan_assuming(source: &SourceModel, recipe: &Recipe, importance: AssumedImportance) -> Result<Plan> {
    let plan = plan::decide_outputs(source, recipe, importance)?;
    if data_of(&plan).is_some() {
        plan.source.model.runnable()?;
    }
    plan.files().try_for_each(|(output, file)| budget::check(&plan, (output.index, &output.target), file))?;
    plan.folders().try_for_each(|(output, folder)| mixture::check(&plan, output.target.name(), folder))?;
    Ok(plan)
}

/// Makes the outputs of a plan.
///
/// # Errors
/// `Exists`, `Unfinished` and `Request` before any work, for what is in the way of the outputs; `BadInput` for weights
/// that are no numbers or too large for their type; `Io` and `Storage`; `Interrupted` when the run was asked to stop.
/// Nothing is left under a final name then, but outputs that were finished before; a run of the same recipe takes these
/// over, and makes the others.
///
/// ```
/// use quantize::convert::{self, Recipe};
/// use quantize::{Control, model::SourceModel};
///
/// let source = SourceModel::open("tests/conformance/llama".as_ref())?;
/// let mut plan = convert::plan(&source, &Recipe::to(["q8_0"])?)?;
/// let folder = tempfile::tempdir().unwrap();
/// plan.place(folder.path())?;
/// let outcome = convert::run(&plan, &Control::default(), &())?;
/// assert_eq!(outcome.outputs[0].paths, [folder.path().join("llama-Q8_0.gguf")]);
/// # Ok::<(), quantize::Error>(())
/// ```
pub fn run(plan: &Plan, control: &Control, report: &dyn Report) -> Result<Outcome> {
    let (outcome, unended) = make(plan, control, report)?;
    unended.end(Run::new(control, report));
    Ok(outcome)
}

/// The same for a run that has more to do with its outputs: should it be killed, an equal one takes them over.
///
/// # Errors
/// As [`run`].
pub(crate) fn make(plan: &Plan, control: &Control, report: &dyn Report) -> Result<(Outcome, Unended)> {
    let (start, run) = (Instant::now(), Run::new(control, report));
    let earlier = Earlier::recover(plan, run)?;
    plan.check_places(control, &|output| earlier.may_have(plan, output))
        .inspect_err(|_| published::tell_of_unfinished(plan, run))?;
    let drawing = draw(plan, run)?;
    // What takes long goes on by what the weights are, not by when their files were written.
    let is_long = plan.recipe.file_feedback() || plan.recipe.folders().next().is_some();
    if drawing.is_some() && is_long && plan.recipe.hash_sources {
        hashes::of(plan, run)?;
    }
    let mut published = Published::new(plan, earlier, drawing.as_ref(), run)?;
    plan.check_places(control, &|output| published.has(output.index))?;
    files::run(plan, drawing.as_ref(), &mut published, run)?;
    folder::run(plan, drawing.as_ref(), &mut published, run)?;
    folder::run_plain(plan, &mut published, run)?;
    let (outputs, unended) = published.end();
    let data = drawing.map(|d| d.report);
    Ok((Outcome { outputs, data, seconds: start.elapsed().as_secs_f64() }, unended))
}

/// Removes what runs left that made the outputs of a plan and were killed before they ended.
///
/// # Errors
/// Those of renaming.
pub(crate) fn forget(plan: &Plan, run: Run) -> Result<()> {
    Earlier::recover(plan, run).map(|earlier| earlier.forget(run))
}

/// Chooses the types of the outputs that have a budget, as [`run`] does before it writes them: for a look at the choice.
///
/// # Errors
/// As [`run`], where the model is run.
pub fn spend_budgets(plan: &mut Plan, control: &Control, report: &dyn Report) -> Result<()> {
    if plan.recipe.outputs.iter().all(|target| target.limit().is_none()) {
        return Ok(());
    }
    let run = Run::new(control, report);
    let drawing = draw(plan, run)?;
    let mut files: Vec<(usize, FilePlan)> = plan.files().map(|(o, file)| (o.index, file.clone())).collect();
    files::spend(plan, &mut files, drawing.as_ref(), run)?;
    let mut folders: Vec<(usize, FolderPlan)> = plan.folders().map(|(o, folder)| (o.index, folder.clone())).collect();
    mixture::spend(plan, &mut folders, drawing.as_ref(), run)?;
    for (index, file) in files {
        plan.outputs[index].what = Decided::File(Box::new(file));
    }
    for (index, folder) in folders {
        plan.outputs[index].what = Decided::Folder(Box::new(folder));
    }
    Ok(())
}

/// The calibration data, where some output needs any.
fn draw(plan: &Plan, run: Run) -> Result<Option<Drawing>> {
    let Some((data, named)) = data_of(plan) else { return Ok(None) };
    if let Some(Prepared { windows, report, .. }) = &plan.prepared {
        return Ok(Some(Drawing { windows: windows.clone(), report: report.clone(), overlap: None }));
    }
    plan.source.model.runnable()?;
    if !named {
        run.notice(Notice::BundledTexts);
    }
    data::draw(&plan.source, &data, plan.evaluation_text.as_deref(), run).map(Some)
}

/// What the model is calibrated on for some output, and whether that was named.
pub(crate) fn data_of(plan: &Plan) -> Option<(Data, bool)> {
    let recipe = &plan.recipe;
    let given = recipe.data.is_some();
    let files = given && recipe.files().next().is_some();
    let budget = recipe.outputs.iter().any(|target| target.limit().is_some());
    let needed = files || budget || recipe.folders().any(|spec| rounding::needs_data(spec, &recipe.rounding, given));
    needed.then(|| (recipe.data.clone().unwrap_or_default(), given))
}
