//! GGUF files: the pass with activations, where error feedback was asked for, and the pass without, which fills what is
//! left of all files in one read of the source. Files are sealed, judged against what ggml's own search makes, and only
//! then get their names.

use super::allocation::Allocation;
use super::blocks::{BlockOutput, Refine, Settings};
use super::budget;
use super::calibrate::{self, extra, of_recipe};
use super::data::{Decides, Drawing, HoldOut, hold_out_for_files};
use super::findings;
use super::hashes::{self, SourceHashes};
use super::identity::{CalibrationWindows, Identity};
use super::importance::{Importance, matrix_of_tasks};
use super::journal::{Journal, Left};
use super::judge::{self, OpenModel, Verdict};
use super::ledger::{Kind, LedgerRow};
use super::naming;
use super::outcome::{Made, MadeFile};
use super::plan::{FilePlan, OutputPlan, Plan};
use super::proof::Checked;
use super::proven;
use super::published::Published;
use super::recipe::Recipe;
use super::record::{DATA_HASH, Facts, SOURCE_HASHES};
use super::stream;
use crate::calibration::imatrix::Imatrix;
use crate::calibration::layerwise::{self, Stretch};
use crate::calibration::resume::path_for;
use crate::calibration::totals::Input;
use crate::calibration::totals::Totals;
use crate::control::{Notice, Run, Unit};
use crate::digest::sha256;
use crate::disk::partial::{Laying, PartialFile};
use crate::disk::{self, folder_of};
use crate::feedback::Shrink;
use crate::model::Model;
use crate::source::Checkpoint;
use crate::writer::gguf::Artifact;
use crate::writer::pieces::Piece;
use crate::writer::publish::Step;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) mod parts;

/// A file in the making.
struct Output<'p> {
    plan: &'p OutputPlan,
    file: FilePlan,
    artifact: Artifact,
    /// What ggml's search alone makes, where the file is rounded with error feedback.
    rival: Option<Artifact>,
    /// Per tensor: whether its bytes are written.
    done: Vec<bool>,
    ledger: Vec<LedgerRow>,
    verdict: Option<Verdict>,
}

impl Output<'_> {
    fn name(&self) -> &str {
        self.plan.target.name()
    }

    fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        std::iter::once(&self.artifact).chain(&self.rival)
    }

    fn artifacts_mut(&mut self) -> impl Iterator<Item = &mut Artifact> {
        std::iter::once(&mut self.artifact).chain(&mut self.rival)
    }
}

/// Makes the GGUF files of a plan that are not published yet. `drawing`: the calibration data, where the recipe has some.
pub(super) fn run(plan: &Plan, drawing: Option<&Drawing>, published: &mut Published, run: Run) -> Result<()> {
    let left = plan.files().filter(|(output, _)| !published.has(output.index));
    let mut files: Vec<(usize, FilePlan)> = left.map(|(o, file)| (o.index, file.clone())).collect();
    let Some((first, _)) = files.first() else {
        // A run that was killed when it had given all names left its journal.
        let first = plan.files().next().filter(|_| plan.recipe.file_feedback());
        return first.map_or(Ok(()), |(output, _)| forget(&path_for(&output.place)));
    };
    let journal = path_for(&plan.outputs[*first].place);
    let held = spend(plan, &mut files, drawing, run)?;
    match (drawing, &held) {
        (Some(drawing), Some(held)) if plan.recipe.file_feedback() => {
            with_feedback(plan, files, &journal, (drawing, held), published, run)
        }
        _ => by_search(plan, files, drawing, published, run),
    }
}

/// Chooses the types of files with a budget. What was held out to do so.
pub(super) fn spend(
    plan: &Plan,
    files: &mut [(usize, FilePlan)],
    drawing: Option<&Drawing>,
    run: Run,
) -> Result<Option<HoldOut>> {
    let (Some(drawing), Some(data), Some((first, _))) = (drawing, &plan.recipe.data, plan.files().next()) else {
        return Ok(None);
    };
    if !needs_hold_out(plan) {
        return Ok(None);
    }
    let held = hold_out_for_files(&plan.source, data, &drawing.windows, decides(plan))?;
    budget::spend(plan, files, &held, &drawing.report, &run.spill_folder(&first.place), run)?;
    Ok(Some(held))
}

fn needs_hold_out(plan: &Plan) -> bool {
    plan.recipe.file_feedback() || decides(plan) == Decides::Types
}

/// What files of this plan are held-out windows for, whatever else they are.
fn decides(plan: &Plan) -> Decides {
    match plan.files().any(|(_, file)| file.limit.is_some()) {
        true => Decides::Types,
        false => Decides::Feedback,
    }
}

/// Files that ggml's search alone makes.
fn by_search(
    plan: &Plan,
    files: Vec<(usize, FilePlan)>,
    drawing: Option<&Drawing>,
    published: &mut Published,
    run: Run,
) -> Result<()> {
    let recipe = &plan.recipe;
    let mut saved = None;
    let mut importance = match (&recipe.importance, drawing) {
        (Some(file), _) => Some(Importance::recorded(file, recipe.unseen_experts, &plan.source.model)?),
        (None, Some(drawing)) => {
            let imatrix = match plan.prepared.as_ref().and_then(|prepared| prepared.importance.as_ref()) {
                Some(file) => matrix_of_tasks(file)?,
                None => calibrate::importance(&plan.source, drawing, &of_recipe(recipe), None, run)?.imatrix,
            };
            saved = saved_importance(plan, &imatrix, drawing, run)?;
            Some(Importance::new(&imatrix, recipe.unseen_experts, drawing.overlap)?)
        }
        (None, None) => None,
    };
    if let Some(importance) = &mut importance {
        files.iter().try_for_each(|(_, file)| importance.cover(file))?;
    }
    let facts = Facts { data: drawing.map(|d| &d.report), imatrix: importance.as_ref().map(|i| i.facts.clone()) };
    let (journal, left) = left(plan, &files, &facts, run)?;
    let mut outputs = create(plan, files, &facts, false, &mut left.into_iter(), run)?;
    if let Some(journal) = &journal {
        take(&mut outputs, journal)?;
    }
    fill(plan, &mut outputs, importance.as_ref(), run)?;
    let checked = prove(plan, &mut outputs, run)?;
    publish(plan, outputs, checked, (importance.as_ref(), saved), published, run)?;
    if let Some(journal) = journal {
        naming::tidied(journal.remove(), run);
    }
    Ok(())
}

/// Files that are rounded with error feedback, each beside its rival.
fn with_feedback(
    plan: &Plan,
    files: Vec<(usize, FilePlan)>,
    path: &Path,
    (drawing, held): (&Drawing, &HoldOut),
    published: &mut Published,
    run: Run,
) -> Result<()> {
    let (windows, sets) = held.all();
    let facts = Facts { data: Some(&drawing.report), imatrix: None };
    // Tasks of a job know their source by its times: hashes are made meanwhile.
    let hashes = hashes::known(plan).filter(|_| plan.prepared.is_none());
    let seen = CalibrationWindows { windows: &windows, sets: &sets, hashes };
    let key = key(plan, &files, &facts, Some(seen), run)?;
    let (journal, left) = begin(path, &key, run)?;
    let mut outputs = create(plan, files, &facts, true, &mut left.into_iter(), run)?;
    let mut journal = match journal {
        Some(journal) => journal,
        None => {
            let unfinished = outputs.iter().flat_map(Output::artifacts).flat_map(Artifact::temp_paths).collect();
            Journal::create(path, &key, unfinished)?
        }
    };
    let rounded = round(plan, &mut outputs, (&windows, sets), &mut journal, None, run);
    // Once there is something to go on with, it stays until all is whole.
    let keep = rounded.is_ok() || journal.parts() > 0;
    journal.keep_on_drop(keep);
    outputs.iter_mut().flat_map(Output::artifacts_mut).for_each(|a| a.keep_on_drop(keep));
    let inputs = rounded.inspect_err(|_| {
        if keep {
            run.notice(Notice::Kept(path.to_path_buf()));
        }
    })?;
    let mut totals = Totals::default();
    totals.add(&inputs);
    let imatrix = Imatrix::new(&totals, &drawing.report);
    let saved = saved_importance(plan, &imatrix, drawing, run)?;
    let mut importance = Importance::new(&imatrix, plan.recipe.unseen_experts, drawing.overlap)?;
    outputs.iter().try_for_each(|output| importance.cover(&output.file))?;
    fill(plan, &mut outputs, Some(&importance), run)?;
    judge(plan, &mut outputs, held, run)?;
    let checked = prove(plan, &mut outputs, run).inspect_err(|e| {
        // What cannot be what was meant is not gone on with.
        if matches!(e, Error::Gate(_)) {
            outputs.iter_mut().flat_map(Output::artifacts_mut).for_each(|a| a.keep_on_drop(false));
            journal.keep_on_drop(false);
        }
    })?;
    publish(plan, outputs, checked, (Some(&importance), saved), published, run)?;
    naming::tidied(journal.remove(), run);
    Ok(())
}

/// The key of the run: what its layers' results depend on.
fn key(
    plan: &Plan,
    files: &[(usize, FilePlan)],
    facts: &Facts,
    seen: Option<CalibrationWindows>,
    run: Run,
) -> Result<serde_json::Value> {
    let layout = files.iter().map(|(index, file)| {
        let metadata = plan.metadata((*index, &plan.recipe.outputs[*index]), file, facts)?;
        let mut entries = stream::entries(&plan.source.model, &file.sizes.types());
        crate::gguf::layout(&mut entries, crate::gguf::DEFAULT_ALIGNMENT)?;
        Ok(sha256(&crate::gguf::encode_header(&metadata, &entries, crate::gguf::DEFAULT_ALIGNMENT)))
    });
    let layout = layout.collect::<Result<Vec<String>>>()?;
    let cancel = &run.control.cancel;
    let recipes: Vec<Recipe> = files.iter().map(|(index, _)| plan.recipe.of_output(*index)).collect();
    Ok(Identity::new(&plan.source.ckpt, seen, layout, cancel)?.key(&recipes))
}

/// The journal of an earlier run that this one continues, and the unfinished files it left.
fn begin(path: &Path, key: &serde_json::Value, run: Run) -> Result<(Option<Journal>, Vec<PathBuf>)> {
    if run.control.resume {
        let Some(Left { journal, files, .. }) = Journal::resume(path, key, run)? else {
            return Ok((None, Vec::new()));
        };
        if files.iter().all(|file| file.exists()) {
            return Ok((Some(journal), files));
        }
        run.notice(Notice::Info("an unfinished file of the interrupted run is missing; beginning again".into()));
    }
    forget(path)?;
    Ok((None, Vec::new()))
}

/// Removes the journal of a run that will not go on, and its unfinished files.
fn forget(path: &Path) -> Result<()> {
    let Some(Left { mut journal, files, .. }) = Journal::peek(path)? else { return Ok(()) };
    let own = |f: &&PathBuf| folder_of(f) == folder_of(path) && f.extension().is_some_and(|e| e == "partial");
    for file in files.iter().filter(own) {
        disk::remove_file(file).map_err(|e| Error::io(file, e))?;
    }
    journal.keep_on_drop(false);
    Ok(())
}

/// Lays the files out under temporary names; each rival before its file, as `left` has them.
fn create<'p>(
    plan: &'p Plan,
    files: Vec<(usize, FilePlan)>,
    facts: &Facts,
    rivals: bool,
    left: &mut impl Iterator<Item = PathBuf>,
    run: Run,
) -> Result<Vec<Output<'p>>> {
    let split = plan.recipe.split.of_files(plan.source.ckpt.shards().len());
    let laying = Laying { force: run.control.force, sparse: run.control.sparse };
    let mut outputs = Vec::new();
    for (index, file) in files {
        let planned = &plan.outputs[index];
        let metadata = plan.metadata((index, &planned.target), &file, facts)?;
        let entries = stream::entries(&plan.source.model, &file.sizes.types());
        let mut open = |kind| Artifact::reopen(&planned.place, &metadata, &entries, split, kind, laying, left);
        let artifact = open("")?;
        let rival = if rivals { Some(open(".rival")?) } else { None };
        artifact.targets().try_for_each(|target| plan.refuse_input(target))?;
        let (done, ledger) = (vec![false; entries.len()], Vec::new());
        outputs.push(Output { plan: planned, file, artifact, rival, done, ledger, verdict: None });
    }
    Ok(outputs)
}

/// Rounds the matrices of every block, or those of some layers, for all files in one pass over the layers. What entered each
/// of them.
fn round(
    plan: &Plan,
    outputs: &mut [Output],
    (windows, sets): (&[Vec<u32>], Vec<usize>),
    journal: &mut Journal,
    stretch: Option<Stretch>,
    run: Run,
) -> Result<BTreeMap<String, Input>> {
    let (ckpt, model) = (&*plan.source.ckpt, &*plan.source.model);
    let rounding = &plan.recipe.rounding;
    let options = layerwise::Options {
        bf16: true,
        sequential: plan.recipe.sequential_files(),
        held: sets,
        max_memory: run.control.max_memory,
        spill: run.spill_folder(&outputs[0].plan.place),
    };
    let settings = Settings {
        shrink: Shrink { rho: rounding.rho, damping: rounding.damping },
        sequential: plan.recipe.sequential_files(),
        sort_channels: rounding.sort_channels,
        ..Settings::default()
    };
    let artifacts: Vec<&Artifact> = outputs.iter().flat_map(Output::artifacts).collect();
    let settle = || -> Result<Vec<Piece>> {
        let (mut first, mut pieces) = (0, Vec::new());
        for artifact in &artifacts {
            artifact.sync()?;
            pieces.extend(artifact.pieces(first, run)?);
            first += artifact.targets().count();
        }
        Ok(pieces)
    };
    let mut blocks = Vec::new();
    for output in outputs.iter() {
        let rival = output.rival.as_ref().ok_or_else(|| Error::Internal("no rival".into()))?;
        blocks.push(BlockOutput::new(output.file.sizes.types(), &output.artifact, rival));
    }
    let mut refine = Refine::new(ckpt, model, &mut blocks, settings, run, Some(journal), &settle)?;
    if refine.finished() > 0 {
        run.notice(Notice::Resuming { layers: refine.finished(), of: model.config.layers.len() });
    }
    if !refine.is_complete() {
        let layers = stretch.as_ref().map_or(model.config.layers.len(), |s| s.layers.len()) as u64;
        let tokens = windows.iter().map(Vec::len).sum::<usize>() as u64;
        let _phase = run.phase("rounding with feedback", tokens * layers, Unit::TokensByLayer(layers));
        let head = match stretch {
            None => Some(layerwise::run(ckpt, model, windows, &options, &mut refine, run)?),
            Some(stretch) => {
                refine.begin_with(stretch.layers.start);
                layerwise::run_stretch(ckpt, model, windows, &options, stretch, &mut refine, run)?
            }
        };
        head.map_or(Ok(()), |head| refine.head(&head))?;
    }
    let inputs = std::mem::take(&mut refine.inputs);
    drop(refine);
    let found: Vec<_> = blocks.into_iter().map(|b| (b.done, b.refused, b.kept)).collect();
    for (output, (done, refused, kept)) in outputs.iter_mut().zip(found) {
        let text = format!("{kept} matrices with feedback");
        run.notice(Notice::About { output: output.name().to_string(), text });
        let candidate = output.name().to_string();
        let rows = refused.into_iter().map(|refused| {
            let expert = refused.expert.map_or(String::new(), |e| format!(" (expert {e})"));
            LedgerRow {
                candidate: candidate.clone(),
                kind: Kind::Search,
                tensor: Some(format!("{}{expert}", refused.tensor)),
                asked: "error feedback".into(),
                done: "ggml's search".into(),
                reason: refused.reason,
            }
        });
        output.ledger.extend(rows);
        output.done = done;
    }
    Ok(inputs)
}

/// The importance matrix that a run has made, where it is to be saved.
fn saved_importance(plan: &Plan, imatrix: &Imatrix, drawing: &Drawing, run: Run) -> Result<Option<PartialFile>> {
    let Some(path) = &plan.save_importance else { return Ok(None) };
    let file = PartialFile::create(path, run.control.force)?;
    imatrix.write_into(&file, &extra(Some(&drawing.report)))?;
    Ok(Some(file))
}

/// Writes what is left of all files in one read of the source, with the hashes of its files, and seals them.
fn fill(plan: &Plan, outputs: &mut [Output], importance: Option<&Importance>, run: Run) -> Result<()> {
    let (ckpt, model) = (&*plan.source.ckpt, &*plan.source.model);
    let unknown = plan.recipe.hash_sources && hashes::known(plan).is_none();
    let reading = SourceHashes::new(ckpt, unknown, run);
    {
        let _phase = run.phase("quantizing", stream::source_bytes(ckpt, model), Unit::Bytes);
        let sinks = outputs.iter().flat_map(|output| output.artifacts().map(move |artifact| (output, artifact)));
        let targets: Vec<stream::Target> = sinks
            .map(|(output, sink)| stream::Target { types: output.file.sizes.types(), sink, done: output.done.clone() })
            .collect();
        stream::run(ckpt, model, &|name| importance.and_then(|i| i.of(name)), &targets, &|| reading.work(), run)?;
    }
    // What was read is what the hashes are of, and what the configuration belongs to.
    ckpt.files().iter().try_for_each(|file| file.check_unchanged())?;
    if plan.recipe.hash_sources {
        let hashes = match hashes::known(plan) {
            Some(known) => known.to_vec(),
            None => reading.finish()?,
        };
        for artifact in outputs.iter_mut().flat_map(Output::artifacts_mut) {
            artifact.set_metadata(SOURCE_HASHES, hashes.clone());
        }
    }
    outputs
        .iter_mut()
        .flat_map(Output::artifacts_mut)
        .try_for_each(|a| a.seal(DATA_HASH, run.threads(), &run.control.cancel))
}

/// Whether each file is kept: on text that was held out, against that of ggml's search alone. Where it is not, its rival
/// takes its place.
fn judge(plan: &Plan, outputs: &mut [Output], held: &HoldOut, run: Run) -> Result<()> {
    let open = |artifact: &Artifact| -> Result<(Checkpoint, Model)> {
        let ckpt = Checkpoint::open_gguf(&artifact.temp_paths())?;
        let model = Model::open(&ckpt)?;
        Ok((ckpt, model))
    };
    let mut opened = Vec::new();
    for output in outputs.iter() {
        let rival = output.rival.as_ref().ok_or_else(|| Error::Internal("no rival".into()))?;
        opened.push((open(&output.artifact)?, open(rival)?));
    }
    let stored: Vec<(OpenModel, OpenModel)> = opened
        .iter()
        .map(|((ckpt, model), (rival_ckpt, rival_model))| {
            (OpenModel { ckpt, model }, OpenModel { ckpt: rival_ckpt, model: rival_model })
        })
        .collect();
    let pairs: Vec<(&dyn judge::Layers, &dyn judge::Layers)> =
        stored.iter().map(|(a, b)| (a as &dyn judge::Layers, b as &dyn judge::Layers)).collect();
    let source = OpenModel { ckpt: &plan.source.ckpt, model: &plan.source.model };
    let verdicts = judge::judge(source, &pairs, &held.held, run)?;
    for (output, verdict) in outputs.iter_mut().zip(verdicts) {
        let bits = 8.0 * output.artifact.tensor_bytes() as f64 / plan.weights().max(1) as f64;
        if let Some(warning) = verdict.check(output.name(), bits)? {
            run.notice(Notice::Warning(warning));
        }
        let sets = verdict.kl.iter().zip(&verdict.rival);
        let shown = |loss: &f64| verdict.shown(*loss);
        let sets: Vec<String> = sets.map(|(f, g)| format!("{} (ggml's search {})", shown(f), shown(g))).collect();
        let text = format!("{} {}", verdict.loss.short(), sets.join(", on the bundled texts "));
        run.notice(Notice::About { output: output.name().to_string(), text });
        output.ledger.extend(verdict.ledger_row(output.plan.target.name(), "error feedback", "ggml's search"));
        if !verdict.keeps()
            && let Some(rival) = &mut output.rival
        {
            std::mem::swap(&mut output.artifact, rival);
        }
        output.verdict = Some(verdict);
    }
    Ok(())
}

/// Runs the files beside the source. One that cannot be what was meant stays under the name of a suspect, and the run ends.
fn prove(plan: &Plan, outputs: &mut [Output], run: Run) -> Result<Vec<(Option<Checked>, Vec<String>)>> {
    let mut all = Vec::new();
    for output in outputs.iter_mut() {
        let (name, paths) = (output.name().to_string(), output.artifact.temp_paths());
        let (checked, notes) = proven::file(plan, &name, &paths, run)?;
        if let Some(checked) = checked.as_ref().filter(|c| c.suspicion.is_some()) {
            let targets: Vec<PathBuf> = output.artifact.targets().map(PathBuf::from).collect();
            for (from, target) in paths.iter().zip(&targets) {
                proven::set_aside(from, target)?;
            }
            let kept = targets.first().map_or_else(PathBuf::new, |target| proven::suspect_name(target));
            return Err(proven::suspicious(&name, checked, &kept));
        }
        let mut seen = checked.as_ref().map(findings::of_check).unwrap_or_default();
        seen.extend(output.verdict.as_ref().map(findings::of_held_out).unwrap_or_default());
        if !seen.is_empty() {
            output.artifact.amend(seen)?;
        }
        all.push((checked, notes));
    }
    Ok(all)
}

/// Gives the files their names. All are complete; none had its name until here.
fn publish(
    plan: &Plan,
    outputs: Vec<Output>,
    proven: Vec<(Option<Checked>, Vec<String>)>,
    (importance, saved): (Option<&Importance>, Option<PartialFile>),
    published: &mut Published,
    run: Run,
) -> Result<()> {
    run.check()?;
    let (mut made, mut artifacts, mut losers, mut steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sides: Vec<PartialFile> = saved.into_iter().collect();
    for (output, (checked, notes)) in outputs.into_iter().zip(proven) {
        let Output { plan: planned, file, artifact, rival, ledger, verdict, .. } = output;
        let name = planned.target.name().to_string();
        let of_importance = importance.map_or_else(Vec::new, |i| i.ledger(&name));
        let (bytes, tensor_bytes) = (artifact.total_bytes(), artifact.tensor_bytes());
        let allocation: Option<Allocation> = file.allocation;
        let folder = folder_of(&planned.place).to_path_buf();
        steps.extend(artifact.complete()?.into_iter().map(|step| (folder.clone(), step)));
        let paths: Vec<PathBuf> = artifact.targets().map(Path::to_path_buf).collect();
        if plan.modelfiles {
            let first = paths.first().and_then(|path| path.file_name()).unwrap_or_default();
            let side = PartialFile::create(&planned.modelfile(), run.control.force)?;
            side.write_at(0, format!("FROM ./{}\n", first.to_string_lossy()).as_bytes())?;
            sides.push(side);
        }
        losers.push(rival);
        artifacts.push(artifact);
        made.push(Made {
            index: planned.index,
            place: planned.place.clone(),
            paths,
            bytes,
            tensor_bytes,
            quantized_weights: plan.weights(),
            bits_per_weight: 8.0 * tensor_bytes as f64 / plan.weights().max(1) as f64,
            ledger: [planned.ledger(), of_importance, ledger].concat(),
            verdict,
            checked,
            notes,
            file: Some(MadeFile { fallbacks: file.sizes.fallbacks().count(), allocation }),
            name,
            manifest: serde_json::Value::Null,
        });
    }
    for side in &sides {
        steps.push((folder_of(side.target()).to_path_buf(), Step::of(side)?));
    }
    published.publish(made, steps, || {
        // What is left to be renamed is no longer this run's alone.
        artifacts.iter_mut().for_each(|artifact| artifact.keep_on_drop(true));
        sides.iter_mut().for_each(|side| side.keep_on_drop(true));
    })?;
    // Not before: until the last name is given, a killed run can go on.
    losers.into_iter().flatten().for_each(|rival| naming::tidied(rival.discard(), run));
    Ok(())
}

/// Where the journal of a plan's files lies, if there are any.
pub fn journal(plan: &Plan) -> Option<PathBuf> {
    plan.files().next().map(|(output, _)| path_for(&output.place))
}

/// What is calibrated on by tasks of a job.
struct Seen {
    windows: Vec<Vec<u32>>,
    sets: Vec<usize>,
}

impl Seen {
    fn windows(&self) -> CalibrationWindows<'_> {
        CalibrationWindows { windows: &self.windows, sets: &self.sets, hashes: None }
    }
}

/// The windows that tasks of a job calibrate on; `None` where there are no tasks, or no data.
fn seen(plan: &Plan) -> Result<Option<Seen>> {
    let (Some(prepared), Some(data)) = (&plan.prepared, &plan.recipe.data) else { return Ok(None) };
    if !plan.recipe.file_feedback() {
        return Ok(Some(Seen { windows: prepared.windows.clone(), sets: Vec::new() }));
    }
    let (windows, sets) = hold_out_for_files(&plan.source, data, &prepared.windows, decides(plan))?.all();
    Ok(Some(Seen { windows, sets }))
}

/// The journal of files that were put together, and the files.
fn left(plan: &Plan, files: &[(usize, FilePlan)], facts: &Facts, run: Run) -> Result<(Option<Journal>, Vec<PathBuf>)> {
    let known = plan.recipe.data.is_none() || plan.prepared.is_some();
    match (run.control.resume && known, journal(plan)) {
        (true, Some(path)) => {
            let seen = seen(plan)?;
            begin(&path, &key(plan, files, facts, seen.as_ref().map(Seen::windows), run)?, run)
        }
        _ => Ok((None, Vec::new())),
    }
}

/// Notes the tensors that are there.
fn take(outputs: &mut [Output], journal: &Journal) -> Result<()> {
    for name in journal.names() {
        let record = journal.finished(&name)?.unwrap_or_default();
        let Ok([start, end]) = serde_json::from_value::<[usize; 2]>(record["tensors"].clone()) else { continue };
        for output in outputs.iter_mut() {
            output.done.iter_mut().take(end).skip(start).for_each(|done| *done = true);
        }
    }
    outputs.iter_mut().flat_map(Output::artifacts_mut).for_each(|a| a.keep_on_drop(true));
    Ok(())
}
