//! Tensors of GGUF files that a task of a job makes, under a journal of its own, and files that are put together of what
//! tasks have made: see [`crate::convert::job`].

use super::{Output, create, forget, journal, key};
use crate::control::Run;
use crate::convert::importance::Importance;
use crate::convert::journal::Journal;
use crate::convert::plan::{FilePlan, Plan};
use crate::convert::record::Facts;
use crate::convert::sizes::bytes_of;
use crate::convert::stream;
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
    let recorded = |file| Importance::recorded(file, plan.recipe.unseen_experts, &plan.source.model);
    let mut importance = plan.recipe.importance.as_ref().map(recorded).transpose()?;
    if let Some(importance) = &mut importance {
        plan.files().try_for_each(|(_, file)| importance.cover(file))?;
    }
    Ok(importance)
}

fn facts(importance: Option<&Importance>) -> Facts<'static> {
    Facts { data: None, imatrix: importance.map(|i| i.facts.clone()) }
}

/// What all tasks that make these files have to have in common.
///
/// # Errors
/// Those of the importance matrix; `Io`.
pub fn identity(plan: &Plan, run: Run) -> Result<Value> {
    key(plan, &files(plan), &facts(importance(plan)?.as_ref()), None, run)
}

/// The unfinished files and their journal, new ones that nothing was written to, in place of those that are there.
///
/// # Errors
/// `Exists`; `Storage`; `Io`.
pub fn lay_out(plan: &Plan, run: Run) -> Result<()> {
    if let Some(path) = journal(plan) {
        forget(&path)?;
    }
    make(plan, 0..0, run)
}

/// Makes some tensors of every file.
///
/// # Errors
/// Those of a conversion.
pub fn make(plan: &Plan, tensors: Range<usize>, run: Run) -> Result<()> {
    let importance = importance(plan)?;
    let facts = facts(importance.as_ref());
    let key = key(plan, &files(plan), &facts, None, run)?;
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
