//! Tensors of GGUF files that a task of a job makes, under a journal of its own, and files that are put together of what
//! tasks have made: see [`crate::convert::job`].

use super::{Output, Seen, create, forget, journal, key, seen};
use crate::calibration::layerwise::Stretch;
use crate::control::Run;
use crate::convert::importance::{Importance, matrix_of_tasks};
use crate::convert::journal::Journal;
use crate::convert::plan::{FilePlan, Plan};
use crate::convert::record::Facts;
use crate::convert::sizes::bytes_of;
use crate::convert::stream;
use crate::writer::gguf::Artifact;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::ops::Range;

/// Of every tensor, in the order in which [`make`] counts them: how many weights it has, and its bytes in all files.
pub fn tensors(plan: &Plan) -> Vec<(u64, u64)> {
    let types: Vec<_> = plan.files().map(|(_, file)| file.sizes.types()).collect();
    let size = |(i, (_, shape)): (usize, (&str, &[usize]))| {
        let bytes = types.iter().map(|types| bytes_of(shape, types[i])).sum();
        (shape.iter().map(|n| *n as u64).product(), bytes)
    };
    stream::outputs(&plan.source.model).into_iter().enumerate().map(size).collect()
}

/// Bytes of the source that some of the tensors are made of.
pub fn source_bytes(plan: &Plan, tensors: &Range<usize>) -> u64 {
    let (model, ckpt) = (&plan.source.model, &plan.source.ckpt);
    let mapped = model.tensors.iter().enumerate().filter(|(i, _)| tensors.contains(&(model.generated.len() + i)));
    mapped.flat_map(|(_, t)| t.parts.iter()).map(|part| ckpt.tensors()[*part].bytes()).sum()
}

fn files(plan: &Plan) -> Vec<(usize, FilePlan)> {
    plan.files().map(|(output, file)| (output.index, file.clone())).collect()
}

fn importance(plan: &Plan) -> Result<Option<Importance>> {
    let (recipe, unseen) = (&plan.recipe, plan.recipe.unseen_experts);
    let made = plan.prepared.as_ref().and_then(|prepared| prepared.importance.as_ref());
    let mut importance = match (&recipe.importance, made) {
        (Some(file), _) => Some(Importance::recorded(file, unseen, &plan.source.model)?),
        (None, Some(file)) => Some(Importance::new(&matrix_of_tasks(file)?, unseen, None)?),
        (None, None) => None,
    };
    if let Some(importance) = &mut importance {
        plan.files().try_for_each(|(_, file)| importance.cover(file))?;
    }
    Ok(importance)
}

fn facts<'p>(plan: &'p Plan, importance: Option<&Importance>) -> Facts<'p> {
    Facts { data: plan.prepared.as_ref().map(|p| &p.report), imatrix: importance.map(|i| i.facts.clone()) }
}

/// What all tasks that make these files have to have in common, known before any of them has run.
///
/// # Errors
/// Those of the importance matrix; `Io`.
pub fn identity(plan: &Plan, run: Run) -> Result<Value> {
    let facts = match &plan.prepared {
        Some(prepared) => {
            let by_matrix = !plan.recipe.file_feedback();
            let imatrix = by_matrix.then(|| Importance::expected_facts(&prepared.report));
            Facts { data: Some(&prepared.report), imatrix }
        }
        None => facts(plan, importance(plan)?.as_ref()),
    };
    key(plan, &files(plan), &facts, seen(plan)?.as_ref().map(Seen::windows), run)
}

/// The unfinished files and their journal, new ones that nothing was written to, in place of those that are there.
///
/// # Errors
/// `Exists`; `Storage`; `Io`.
pub fn lay_out(plan: &Plan, run: Run) -> Result<()> {
    if let Some(path) = journal(plan) {
        forget(&path)?;
    }
    match is_layered(plan) {
        true => round(plan, 0..0, &mut |_| Err(Error::Internal("no layers, no activations".into())), run),
        false => make(plan, 0..0, run),
    }
}

/// Whether files are rounded layer by layer, with error feedback.
pub fn is_layered(plan: &Plan) -> bool {
    plan.prepared.is_some() && plan.recipe.file_feedback() && plan.files().next().is_some()
}

/// The windows that are taken through the layers, those that are held out among them.
///
/// # Errors
/// `BadInput` where the windows are too few or too short to judge by.
pub fn windows(plan: &Plan) -> Result<Vec<Vec<u32>>> {
    Ok(seen(plan)?.map(|seen| seen.windows).unwrap_or_default())
}

/// Of every layer how many weights it has, and its bytes in all files; the output matrix is the last one's.
pub fn layers(plan: &Plan) -> Vec<(u64, u64)> {
    let model = &plan.source.model;
    let mut layers = vec![(0, 0); model.config.layers.len()];
    let tied = !model.tensors.iter().any(|t| t.name == "output.weight");
    let head = if tied { "token_embd.weight" } else { "output.weight" };
    for ((name, _), (weights, bytes)) in stream::outputs(model).into_iter().zip(tensors(plan)) {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let layer = if name == head { layers.len().checked_sub(1) } else { layer };
        if let Some(sums) = layer.and_then(|layer| layers.get_mut(layer)) {
            *sums = (sums.0 + weights, sums.1 + bytes);
        }
    }
    layers
}

/// Rounds some layers of every file, and of its rival. `entering` gives what enters the first of them, window by window; the
/// model's first is not asked for.
///
/// # Errors
/// Those of a conversion with error feedback, and of `entering`.
pub fn round(
    plan: &Plan,
    layers: Range<usize>,
    entering: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
    run: Run,
) -> Result<()> {
    let facts = facts(plan, None);
    let seen = seen(plan)?.ok_or_else(|| Error::Internal("error feedback without data".into()))?;
    let key = key(plan, &files(plan), &facts, Some(seen.windows()), run)?;
    let mut outputs = create(plan, files(plan), &facts, true, &mut std::iter::empty(), run)?;
    let path = journal(plan).ok_or_else(|| Error::Internal("a task without files".into()))?;
    let paths = outputs.iter().flat_map(Output::artifacts).flat_map(Artifact::temp_paths).collect();
    let mut journal = Journal::create(&path, &key, paths)?;
    if !layers.is_empty() {
        let (windows, stretch) = ((&seen.windows[..], seen.sets), Stretch { layers, entering });
        super::round(plan, &mut outputs, windows, &mut journal, Some(stretch), run)?;
        plan.source.ckpt.files().iter().try_for_each(|file| file.check_unchanged())?;
    }
    journal.keep_on_drop(true);
    outputs.iter_mut().flat_map(Output::artifacts_mut).for_each(|a| a.keep_on_drop(true));
    Ok(())
}

/// Makes some tensors of every file.
///
/// # Errors
/// Those of a conversion.
pub fn make(plan: &Plan, tensors: Range<usize>, run: Run) -> Result<()> {
    let importance = importance(plan)?;
    let facts = facts(plan, importance.as_ref());
    let seen = seen(plan)?;
    let key = key(plan, &files(plan), &facts, seen.as_ref().map(Seen::windows), run)?;
    let mut outputs = create(plan, files(plan), &facts, false, &mut std::iter::empty(), run)?;
    for output in &mut outputs {
        output.done = (0..output.done.len()).map(|i| !tensors.contains(&i)).collect();
    }
    let (ckpt, model) = (&*plan.source.ckpt, &*plan.source.model);
    let targets: Vec<stream::Target> = outputs
        .iter()
        .map(|o| stream::Target { types: o.file.sizes.types(), sink: &o.artifact, done: o.done.clone() })
        .collect();
    stream::run(ckpt, model, &|name| importance.as_ref().and_then(|i| i.of(name)), &targets, &|| Ok(()), run)?;
    drop(targets);
    ckpt.files().iter().try_for_each(|file| file.check_unchanged())?;
    let (mut paths, mut pieces) = (Vec::new(), Vec::new());
    for artifact in outputs.iter().flat_map(Output::artifacts) {
        artifact.sync()?;
        pieces.extend(artifact.pieces(paths.len(), run)?);
        paths.extend(artifact.temp_paths());
    }
    let path = journal(plan).ok_or_else(|| Error::Internal("a task without files".into()))?;
    let mut journal = Journal::create(&path, &key, paths)?;
    if !tensors.is_empty() {
        let part = format!("tensors {} to {}", tensors.start, tensors.end);
        journal.finish(&part, json!({ "tensors": [tensors.start, tensors.end] }), pieces)?;
    }
    journal.keep_on_drop(true);
    outputs.iter_mut().flat_map(Output::artifacts_mut).for_each(|a| a.keep_on_drop(true));
    Ok(())
}
