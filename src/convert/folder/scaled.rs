//! Channel factors of one layer on their way into a checkpoint folder: which are found when the inputs of a stage are
//! known ([`crate::awq`] finds them), what the modules that are rounded see of them, and the norms, biases and routers
//! that are written changed. Linear layers that factors are taken out of are rounded before those are known: their
//! factors are powers of two, which change scales and nothing else.

use super::job::Job;
use crate::awq::{self, Consumer, Fold, Grid, Group, groups, representable};
use crate::calibration::layerwise::{Captured, Stage};
use crate::calibration::moments::Moments;
use crate::convert::ledger::Kind;
use crate::feedback::int::Codes;
use crate::minifloat;
use crate::model::modules::Module;
use crate::model::{MappedTensor, Role};
use crate::packed::Spec;
use crate::quant::GgmlType;
use crate::source::Dtype;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How channels are scaled before they are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// AWQ: for the least error in the outputs.
    Awq,
    /// SmoothQuant with this exponent, through norms only.
    Smooth(f32),
}

/// The factors of one layer.
#[derive(Default)]
pub struct Factors {
    fold: Fold,
    /// The factors found, by the group's place in [`groups`].
    found: BTreeMap<usize, Vec<f32>>,
    /// Error of the outputs with the factors, relative to that without, by role and expert of the module that reads the channels.
    gains: BTreeMap<(Role, Option<usize>), f64>,
}

/// What is known of the layer's modules while factors are looked for.
pub struct LayerInputs<'a> {
    pub captured: &'a [&'a Captured],
    /// Importance of the columns of an input under error feedback; `None`: the diagonal of the moments.
    pub importance: &'a (dyn Fn(&Moments, &Spec) -> Option<Vec<f64>> + Sync),
    /// Rounded modules from which factors can still be taken.
    pub held: &'a BTreeMap<usize, &'a Codes>,
}

/// Weights of all consumers of a group that are looked at; of more, every other row (or fewer) is.
const LOOKED_AT: usize = 1 << 28;

/// The smallest and the largest scale in half precision that lose no bits when they are halved or doubled.
const SCALES: (f32, f32) = (6.2e-5, 32768.0);

impl Factors {
    /// Finds the factors of all groups whose channels enter `stage`.
    pub fn find(
        &mut self,
        job: &Job,
        scaling: Scaling,
        layer: usize,
        stage: Stage,
        known: &LayerInputs,
        ledger: &mut Vec<Value>,
    ) -> Result<()> {
        for (place, group) in groups(job.model.known()?, &job.model.config, layer).into_iter().enumerate() {
            let enters = group.into.iter().find_map(|role| Stage::of(*role)) == Some(stage);
            if !enters || (matches!(scaling, Scaling::Smooth(_)) && !group.from.is_norm()) {
                continue;
            }
            match self.find_group(job, scaling, &group, known)? {
                Ok(scales) => {
                    self.fold.add(&group, &scales);
                    self.found.insert(place, scales);
                }
                Err(reason) => {
                    for (_, m) in readers(job, &group) {
                        ledger.push(json!({
                            "kind": Kind::Scaling, "module": m.path, "asked": "scaled channels",
                            "done": "channels as they are", "reason": reason,
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    /// What [`Factors::restored`] takes back.
    pub fn record(&self) -> Value {
        self.found.iter().map(|(place, scales)| json!([place, scales])).collect()
    }

    /// The factors that an earlier run found for `layer`.
    pub fn restored(job: &Job, layer: usize, record: &Value) -> Self {
        let mut out = Factors::default();
        let Ok(family) = &job.model.family else { return out };
        let groups = groups(family, &job.model.config, layer);
        for row in record.as_array().into_iter().flatten() {
            let place = row[0].as_u64().unwrap_or(u64::MAX) as usize;
            let scales = row[1].as_array().into_iter().flatten();
            let scales: Vec<f32> = scales.filter_map(|s| s.as_f64()).map(|s| s as f32).collect();
            if let Some(group) = groups.get(place).filter(|g| g.channels == scales.len()) {
                out.fold.add(group, &scales);
            }
        }
        out
    }

    /// The factors of one group, or why there are none.
    fn find_group(
        &mut self,
        job: &Job,
        scaling: Scaling,
        group: &Group,
        known: &LayerInputs,
    ) -> Result<std::result::Result<Vec<f32>, String>> {
        let modules: Vec<(usize, &Module)> = readers(job, group).collect();
        let Some(spec) = modules.first().and_then(|(i, _)| job.plan.modules[*i].spec) else {
            return Ok(Err("it is left unchanged".into()));
        };
        if let Some((_, kept)) = modules.iter().find(|(i, _)| job.plan.modules[*i].spec != Some(spec)) {
            return Ok(Err(format!("{} reads the same channels and is stored otherwise", kept.path)));
        }
        let settle = match Settle::new(job, group, known.held)? {
            Ok(settle) => settle,
            Err(reason) => return Ok(Err(reason)),
        };
        let total: usize = modules.iter().map(|(_, m)| m.rows * m.cols).sum();
        let every = total.div_ceil(LOOKED_AT).max(1);
        let mut rows = Vec::new();
        let mut inputs: Vec<(&Moments, Option<Vec<f64>>)> = Vec::new();
        for (_, m) in &modules {
            let captured = known.captured.iter().find(|c| c.linears.contains(&m.gguf));
            let Some(moments) = captured.and_then(|c| c.moments.get(m.expert.unwrap_or(0))) else {
                return Ok(Err("its inputs were not seen".into()));
            };
            // Those of modules that read the same are the same.
            let at = inputs.iter().position(|(known, _)| std::ptr::eq(*known, moments)).unwrap_or(inputs.len());
            if at == inputs.len() {
                inputs.push((moments, (known.importance)(moments, &spec)));
            }
            rows.push((sampled_rows(job, m, every)?, at));
        }
        let consumers: Vec<Consumer> = rows
            .iter()
            .map(|(weights, at)| Consumer { weights, inputs: inputs[*at].0, importance: inputs[*at].1.as_deref() })
            .collect();
        let scales = match scaling {
            Scaling::Smooth(alpha) => settle.apply(&awq::smooth(group.columns, group.channels, &consumers, alpha)),
            Scaling::Awq => {
                let grid = Grid { bits: spec.bits, group: spec.group_of(modules[0].1.cols), symmetric: spec.symmetric };
                let n = consumers.len().max(1);
                let options = awq::Options {
                    range_rows: (4096 / n).clamp(64, 1024),
                    rounded_rows: (1024 / n).clamp(32, 256),
                    ..awq::Options::default()
                };
                let found = awq::search(group.columns, group.channels, &consumers, grid, options, &|s| settle.apply(s));
                if found.plain > 0.0 {
                    for (_, m) in &modules {
                        self.gains.insert((m.role, m.expert), found.loss / found.plain);
                    }
                }
                found.scales
            }
        };
        Ok(Ok(scales))
    }

    /// What the columns of a module are multiplied with, and its inputs divided by; `None`: nothing.
    pub fn columns(&self, module: &Module) -> Option<&[f32]> {
        let cols = &self.fold.get(module.layer?, module.role)?.cols;
        let first = if cols.len() > module.cols { module.expert.unwrap_or(0) * module.cols } else { 0 };
        cols.get(first..first + module.cols)
    }

    /// What the rows of a module are multiplied with.
    pub fn rows(&self, module: &Module) -> Option<&[f32]> {
        let rows = &self.fold.get(module.layer?, module.role)?.rows;
        let first = module.expert.unwrap_or(0) * module.rows;
        rows.get(first..first + module.rows)
    }

    /// The error of the outputs that rounding leaves with the factors, relative to that without.
    pub fn gain(&self, module: &Module) -> Option<f64> {
        self.gains.get(&(module.role, module.expert)).copied()
    }

    /// Multiplies the weights of a module, as the folder has it.
    pub fn apply(&self, module: &Module, weights: &mut [f32]) {
        let (columns, rows) = (self.columns(module), self.rows(module));
        for (row, weights) in weights.chunks_exact_mut(module.cols.max(1)).enumerate() {
            if let Some(columns) = columns {
                weights.iter_mut().zip(columns).for_each(|(w, f)| *w *= f);
            }
            if let Some(factor) = rows.and_then(|rows| rows.get(row)) {
                weights.iter_mut().for_each(|w| *w *= factor);
            }
        }
    }

    /// Takes the factors of its rows out of a module that is rounded already.
    pub fn apply_rows(&self, module: &Module, codes: &mut Codes) {
        let Some(rows) = self.rows(module) else { return };
        let groups = codes.groups();
        for (scales, factor) in codes.scales.chunks_exact_mut(groups.max(1)).zip(rows) {
            scales.iter_mut().for_each(|s| *s *= factor);
        }
    }

    /// Writes the norms, biases and routers that the factors change.
    pub fn write_kept(&self, job: &Job, layer: usize) -> Result<()> {
        for t in job.model.tensors.iter().filter(|t| t.layer == Some(layer)) {
            let Some(factors) = self.fold.get(layer, t.role) else { continue };
            if t.role.is_linear() {
                continue;
            }
            let (mut values, ty) = stored(job, t)?.ok_or_else(|| Error::Internal(format!("{}: its type", t.name)))?;
            if t.role.is_norm() {
                factors.apply_norm(t.values.added(), &mut values);
            } else {
                let cols = if t.role.is_router() { t.cols() } else { values.len() };
                factors.apply(0..values.len() / cols.max(1), cols, t.rows_per_matrix(), &mut values);
            }
            let bytes = minifloat::to_bytes(ty, &values);
            let kept = job.plan.kept.iter().find(|k| k.source == t.parts[0]);
            let kept = kept.ok_or_else(|| Error::Internal(format!("{} is not in the folder", t.name)))?;
            job.folder.put_named(&kept.name, &bytes)?;
        }
        Ok(())
    }
}

/// Whether factors may be taken out of the rows of this module.
pub fn is_producer(job: &Job, module: &Module) -> bool {
    job.model.family.as_ref().is_ok_and(|f| f.feeds().iter().any(|feed| feed.from == module.role))
}

/// The modules that read a group's channels.
fn readers<'a>(job: &'a Job, group: &'a Group) -> impl Iterator<Item = (usize, &'a Module)> {
    let all = job.plan.layer(Some(group.layer));
    all.filter(|(_, m)| group.into.contains(&m.role) && (group.expert.is_none() || m.expert == group.expert))
}

/// Every `every`-th row.
fn sampled_rows(job: &Job, module: &Module, every: usize) -> Result<Vec<f32>> {
    if every == 1 {
        return module.read(job.ckpt);
    }
    let (cols, mut scratch) = (module.cols, Vec::new());
    let mut out = vec![0.0; module.rows.div_ceil(every) * cols];
    for (row, out) in (0..module.rows).step_by(every).zip(out.chunks_exact_mut(cols)) {
        let first = (module.first_row + row) * cols;
        job.ckpt.read_f32(module.meta(job.ckpt), first..first + cols, &mut scratch, out)?;
    }
    Ok(out)
}

/// A tensor's numbers as stored and their type, where it is one that can be written again.
fn stored(job: &Job, t: &MappedTensor) -> Result<Option<(Vec<f32>, GgmlType)>> {
    let meta = &job.ckpt.tensors()[t.parts[0]];
    let Dtype::Ggml(ty @ (GgmlType::F16 | GgmlType::BF16 | GgmlType::F32)) = meta.dtype else { return Ok(None) };
    let mut values = vec![0.0; meta.elements()];
    job.ckpt.read_f32(meta, 0..values.len(), &mut Vec::new(), &mut values)?;
    Ok(Some((values, ty)))
}

/// Makes factors that can be taken out of a group's producer without any rounding.
enum Settle {
    Norm {
        weights: Vec<f32>,
        add: f32,
        ty: GgmlType,
    },
    /// Powers of two, within these limits per channel.
    Linear {
        limits: Vec<(f32, f32)>,
    },
}

impl Settle {
    /// Or why nothing can be taken out.
    fn new(job: &Job, group: &Group, held: &BTreeMap<usize, &Codes>) -> Result<std::result::Result<Self, String>> {
        let tensor = |role| job.model.find(role, Some(group.layer));
        let routers = group.into.iter().filter(|role| role.is_router()).filter_map(|role| tensor(*role));
        let vectors = group.from_bias.and_then(tensor).into_iter().chain(routers);
        for t in vectors.chain(group.from.is_norm().then(|| tensor(group.from)).flatten()) {
            if stored(job, t)?.is_none() {
                return Ok(Err(format!("{} is of a type that is not written", t.name)));
            }
        }
        if group.from.is_norm() {
            let missing = || Error::Internal(format!("layer {} has no {:?}", group.layer, group.from));
            let t = tensor(group.from).ok_or_else(missing)?;
            let Some((weights, ty)) = stored(job, t)? else { return Err(missing()) };
            return Ok(Ok(Settle::Norm { weights, add: t.values.added(), ty }));
        }
        let mut all = job.plan.layer(Some(group.layer));
        let producer = all.find(|(_, m)| m.role == group.from && m.expert == group.expert);
        let Some((module, codes)) = producer.and_then(|(i, m)| Some((m, held.get(&i)?))) else {
            return Ok(Err("the layer before it is left unchanged".into()));
        };
        let first = group.first_row - group.expert.unwrap_or(0) * module.rows;
        let rows = codes.scales.chunks_exact(codes.groups().max(1)).skip(first).take(group.channels);
        let limits = rows.map(|scales| {
            let used = scales.iter().map(|s| s.abs()).filter(|s| *s > 0.0);
            let (low, high) = used.fold((f32::MAX, 0f32), |(low, high), s| (low.min(s), high.max(s)));
            // A row of zeros could be divided by anything, to no use.
            if high == 0.0 { (1.0, 1.0) } else { ((high / SCALES.1).min(1.0), (low / SCALES.0).max(1.0)) }
        });
        Ok(Ok(Settle::Linear { limits: limits.collect() }))
    }

    fn apply(&self, scales: &[f32]) -> Vec<f32> {
        match self {
            Settle::Norm { weights, add, ty } => representable(scales, weights, *add, *ty),
            Settle::Linear { limits } => {
                let power = |(s, (low, high)): (&f32, &(f32, f32))| {
                    let mut power = s.log2().round_ties_even().exp2();
                    while power > *high {
                        power /= 2.0;
                    }
                    while power < *low {
                        power *= 2.0;
                    }
                    if power.is_finite() && power > 0.0 { power } else { 1.0 }
                };
                scales.iter().zip(limits).map(power).collect()
            }
        }
    }
}

/// The moments of inputs that are divided by `columns`.
pub fn divided(inputs: &Moments, columns: &[f32]) -> Moments {
    let inverse: Vec<f32> = columns.iter().map(|s| 1.0 / s).collect();
    let mut out = inputs.clone();
    for (row, a) in out.gram.chunks_exact_mut(inputs.cols.max(1)).zip(&inverse) {
        row.iter_mut().zip(&inverse).for_each(|(v, b)| *v *= a * b);
    }
    out.abs.iter_mut().zip(&inverse).for_each(|(v, f)| *v *= f64::from(*f));
    out.max.iter_mut().zip(&inverse).for_each(|(v, f)| *v *= f);
    out
}
