//! Rounding to nearest: every module alone, as the format's own tool does it. The model is not run.

use super::job::{Job, formats_module, part, parts};
use crate::convert::layout::rules::ModulePlan;
use crate::model::modules::Module;
use crate::packed::Spec;
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};

/// Modules are worked on together up to so many weights (and a single larger one alone), which bounds the memory.
const TOGETHER: usize = 1 << 25;

/// The weights in memory at once, where the largest module has so many.
pub fn at_once(largest: usize) -> usize {
    TOGETHER.max(largest)
}

/// Rounds every part that is not finished.
pub fn run(job: &Job) -> Result<()> {
    parts(job.plan).into_iter().try_for_each(|layer| round_part(job, layer))
}

/// Rounds the modules of one part, unless an earlier run did.
pub fn round_part(job: &Job, layer: Option<usize>) -> Result<()> {
    job.unless_finished(&part(layer), || rounded_part(job, layer))
}

/// Rounds the modules of one part; what is to be noted about it.
pub fn rounded_part(job: &Job, layer: Option<usize>) -> Result<Value> {
    let modules: Vec<usize> = job.plan.layer(layer).map(|(i, _)| i).collect();
    let mut records = Vec::new();
    for batch in batches(&job.plan.modules, &modules) {
        job.run.check()?;
        let done: Result<Vec<Value>> = batch.par_iter().map(|i| round(job, *i)).collect();
        records.extend(done?);
    }
    Ok(json!({ "modules": records }))
}

fn batches(all: &[ModulePlan], chosen: &[usize]) -> Vec<Vec<usize>> {
    let (mut batches, mut weights) = (vec![Vec::new()], 0);
    for &i in chosen {
        let size = all[i].module.rows * all[i].module.cols;
        if weights > 0 && weights + size > TOGETHER {
            batches.push(Vec::new());
            weights = 0;
        }
        weights += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(i);
        }
    }
    batches
}

fn round(job: &Job, index: usize) -> Result<Value> {
    let ModulePlan { module, spec, .. } = &job.plan.modules[index];
    let Some(spec) = spec else { return job.copy_module(index) };
    let weights = module.read(job.ckpt)?;
    let mut what = formats_module(job, index, &weights);
    what.fused_max = fused_max(job, spec, index, &weights)?;
    let pieces = spec.quantize_nearest(&what).map_err(|e| in_file(e, job, module))?;
    job.write_module(index, &pieces)?;
    Ok(job.record(index, &weights, &job.unpack(index, &pieces)?))
}

/// Names file and tensor of a fault that the rounding found.
pub fn in_file(error: Error, job: &Job, module: &Module) -> Error {
    let meta = module.meta(job.ckpt);
    match error {
        Error::BadInput(mut finding) => {
            finding.file = job.ckpt.files().get(meta.file).map(|f| f.path.clone());
            finding.tensor = Some(meta.name.clone());
            Error::BadInput(finding)
        }
        other => other,
    }
}

/// Largest magnitude among the modules that share a global scale with this one.
pub fn fused_max(job: &Job, spec: &Spec, index: usize, weights: &[f32]) -> Result<Option<f32>> {
    if !spec.shares_global_scale() {
        return Ok(None);
    }
    let modules = &job.plan.modules;
    let own = &modules[index].module;
    let Some(set) = own.shares_scale() else { return Ok(None) };
    let largest = |w: &[f32]| w.iter().fold(0f32, |max, w| max.max(w.abs()));
    let mut max = largest(weights);
    for (i, other) in modules.iter().map(|m| &m.module).enumerate() {
        if i != index && other.layer == own.layer && other.shares_scale() == Some(set) {
            max = max.max(largest(&other.read(job.ckpt)?));
        }
    }
    Ok(Some(max))
}
