//! A finished folder whose scales (biases, norms) are tuned before it gets its name: it is opened as a loader reads it, takes
//! [`tune`]'s steps, and what held-out windows prefer is written over what was there. Until then
//! nothing on the disk changes; a run that is cut short begins the steps anew.

use super::files;
use super::job::{Job, TUNED, relative_error};
use crate::control::Notice;
use crate::convert::judge::OpenModel;
use crate::convert::tune::{self, Norm, Subject, Tuned, Tuning};
use crate::infer::{Engine, check_reversible};
use crate::minifloat;
use crate::model::{MappedTensor, RowOrder, SourceModel, ValueMap};
use crate::packed::{ChannelScaling, Tunable};
use crate::quant::GgmlType;
use crate::source::Dtype;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// That a model can be tuned, as far as its configuration and its first layer tell.
///
/// # Errors
/// `Unsupported`, naming what no gradient is taken through; those of loading.
pub fn check(source: &SourceModel) -> Result<()> {
    check_reversible(&source.model.config)?;
    let mut engine = Engine::shell(&source.ckpt, &source.model)?;
    engine.load_layer(&source.ckpt, &source.model, 0)?;
    engine.check_layer_reversible(0)
}

/// Tunes the folder, unless an earlier run has, in so many steps on the windows `seen`, judged by `held`.
///
/// # Errors
/// Those of [`tune::run`] and of the disk.
pub fn run(job: &Job, seen: &[Vec<u32>], held: &[Vec<u32>], steps: usize) -> Result<()> {
    job.unless_finished(TUNED, || tuned(job, seen, held, steps))?;
    let Some(record) = job.finished(TUNED)? else { return Ok(()) };
    if let Ok(Tuned { kept, before, after, held_out_tokens: tokens, .. }) = Tuned::deserialize(&record["summary"]) {
        let text = match kept {
            0 => {
                format!("tuning in {steps} steps brought nothing on {tokens} held-out tokens; scales stay as they were")
            }
            _ => format!(
                "tuned in {kept} steps: KL divergence {before:.4} became {after:.4} on {tokens} held-out tokens"
            ),
        };
        job.run.notice(Notice::About { output: job.name.clone(), text });
    }
    Ok(())
}

fn tuned(job: &Job, seen: &[Vec<u32>], held: &[Vec<u32>], steps: usize) -> Result<Value> {
    let (mut artifact, norms) = opened(job)?;
    let (indices, matrices) = matrices(job)?.into_iter().unzip::<_, _, Vec<usize>, Vec<_>>();
    let places: Vec<String> = norms.iter().map(|(place, _)| place.clone()).collect();
    let subject = Subject { matrices, norms: norms.into_iter().map(|(_, norm)| norm).collect() };
    let source = OpenModel { ckpt: job.ckpt, model: job.model };
    let tuning = Tuning { source, seen, held, steps };
    let (tuned, summary) = tune::run(&mut artifact, subject, &tuning, job.run)?;
    drop(artifact);
    let mut errors = Map::new();
    if summary.kept > 0 {
        for (index, (_, matrix)) in indices.into_iter().zip(tuned.matrices) {
            errors.extend(write(job, index, &matrix)?);
        }
        for (place, norm) in places.iter().zip(tuned.norms) {
            job.folder.put_named(place, &minifloat::to_bytes(norm.dtype, &norm.stored))?;
        }
    }
    Ok(json!({ "summary": summary, "relative_errors": errors }))
}

/// The folder under its temporary name, as a loader reads it, and its norms with the names of their tensors.
fn opened(job: &Job) -> Result<(Engine, Vec<(String, Norm)>)> {
    let config = job.model.hf_config.as_ref();
    let config = config.ok_or_else(|| Error::Internal("a folder is made of a source without config.json".into()))?;
    job.folder.seal(&files::config(config, job.plan), None)?;
    let load = || {
        let made = SourceModel::open(job.folder.partial())?;
        let engine = Engine::load(&made.ckpt, &made.model)?;
        let norms = made.model.tensors.iter().filter(|t| t.role.is_norm());
        let norms = norms.filter_map(|t| norm(job, &made, t).transpose()).collect::<Result<_>>()?;
        Ok((engine, norms))
    };
    let opened = load();
    job.folder.unseal()?;
    opened
}

/// A norm as it is stored, with the name of its tensor; `None` where what is stored is no float, or more is done with it than
/// to add a number.
fn norm(job: &Job, made: &SourceModel, t: &MappedTensor) -> Result<Option<(String, Norm)>> {
    let ([part], RowOrder::Same, ValueMap::Same | ValueMap::PlusOne) = (&t.parts[..], &t.rows, &t.values) else {
        return Ok(None);
    };
    let meta = &made.ckpt.tensors()[*part];
    let Dtype::Ggml(dtype @ (GgmlType::F16 | GgmlType::BF16 | GgmlType::F32)) = meta.dtype else { return Ok(None) };
    let is_whole = meta.elements() == t.elements() && job.folder.find(&meta.name).is_some();
    if !is_whole {
        return Ok(None);
    }
    let mut stored = vec![0.0; meta.elements()];
    made.ckpt.read_f32(meta, 0..stored.len(), &mut Vec::new(), &mut stored)?;
    Ok(Some((meta.name.clone(), Norm { name: t.name.clone(), stored, dtype, added: t.values.added() })))
}

/// What of the folder can be tuned: modules with the GGUF names of their linear layers, rows in the engine's order.
fn matrices(job: &Job) -> Result<Vec<(usize, (String, Tunable))>> {
    let all: Vec<usize> = (0..job.plan.modules.len()).collect();
    let one = |index: usize| -> Result<Option<_>> {
        let plan = &job.plan.modules[index];
        if !plan.spec.is_some_and(|spec| spec.is_tunable()) {
            return Ok(None);
        }
        let packed = job.read_back(index)?.map(|packed| packed.reorder(|row| plan.module.engine_row(row)));
        let matrix = packed.and_then(|packed| packed.tunable());
        Ok(matrix.map(|matrix| (index, (plan.module.gguf.clone(), matrix))))
    };
    let found: Vec<_> = all.into_par_iter().filter_map(|index| one(index).transpose()).collect::<Result<_>>()?;
    match found.is_empty() {
        true => Err(Error::unsupported(format!("{}: no module has scales that can be tuned", job.name))),
        false => Ok(found),
    }
}

/// Writes the scales of a module; its path with the error that they leave, which is not known where channels are scaled.
fn write(job: &Job, index: usize, matrix: &Tunable) -> Result<Option<(String, Value)>> {
    let plan = &job.plan.modules[index];
    let Some(spec) = &plan.spec else { return Ok(None) };
    for piece in spec.scale_pieces(matrix, plan.module.scale_type(job.ckpt))? {
        job.folder.put_part(&plan.name(piece.suffix), plan.seat.place(), &piece.data)?;
    }
    let Some(packed) = job.read_back(index)? else { return Ok(None) };
    let error = match spec.scaling() {
        ChannelScaling::None => Some(relative_error(&plan.module.read(job.ckpt)?, &packed)),
        ChannelScaling::Awq | ChannelScaling::SmoothQuant => None,
    };
    Ok(Some((plan.module.path.clone(), json!(error))))
}
