//! What a checkpoint folder will hold, decided from the configuration and the shapes alone: how each linear layer is
//! stored, where that departs from what was asked and why, and every tensor's type and shape. No weight is read.

use super::rules::{self, Alike, KEPT, ModulePlan};
use super::seats;
use crate::convert::allocation::Allocation;
use crate::convert::ledger::{Kind, LedgerRow};
use crate::convert::recipe::{Limit, TypeRule};
use crate::error::Hint;
use crate::model::graph::{Shard, shards};
use crate::model::modules::{Contents, Kept, Module};
use crate::model::{Model, Role, SourceModel};
use crate::packed::engines::{is_absorbed, loads_its_own_alone};
use crate::packed::{Exception, Loader, Reach, Scope, Spec};
use crate::source::Checkpoint;
use crate::writer::safetensors::Entry;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
struct Request {
    spec: Spec,
    /// Devices over which an engine is to split every layer.
    devices: usize,
}

/// One way in which the folder departs from what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// What it is about.
    pub kind: Kind,
    /// `None`: all modules.
    pub module: Option<String>,
    /// The format that was asked for.
    pub asked: String,
    /// What is done instead.
    pub done: String,
    /// Why.
    pub reason: String,
}

impl Departure {
    /// As a row of the ledger of an output.
    pub fn of(&self, candidate: &str) -> LedgerRow {
        LedgerRow {
            candidate: candidate.to_string(),
            kind: self.kind,
            tensor: self.module.clone(),
            asked: self.asked.clone(),
            done: self.done.clone(),
            reason: self.reason.clone(),
        }
    }
}

impl std::fmt::Display for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let module = self.module.as_deref().map_or(String::new(), |m| format!("{m}: "));
        write!(f, "{module}{} instead of {}: {}", self.done, self.asked, self.reason)
    }
}

/// A folder, decided.
#[derive(Clone, Debug)]
pub struct FolderPlan {
    /// The format of most modules; its group is settled.
    pub spec: Spec,
    /// In the order of [`Contents::modules`].
    pub(crate) modules: Vec<ModulePlan>,
    /// Tensors that stay as they are, in the order of the source.
    pub(crate) kept: Vec<Kept>,
    /// What is other than was asked.
    pub departures: Vec<Departure>,
    /// Every tensor of the folder, in the order of the source.
    pub(crate) entries: Vec<Entry>,
    /// The `quantization_config` object.
    pub config: Value,
    /// The budget, where the formats of modules are chosen to fit one. Until then all have the format of most.
    pub limit: Option<Limit>,
    /// How a budget was spent.
    pub allocation: Option<Allocation>,
}

impl FolderPlan {
    /// Decides a folder in a format that survives a split over so many devices, with `rules` for single modules.
    ///
    /// # Errors
    /// Those of [`rules::apply`]; `Unsupported` when a group that was asked for by name does not divide the rows, or nothing at all can be stored so.
    pub fn new(source: &SourceModel, spec: Spec, devices: usize, rules: &[TypeRule]) -> Result<FolderPlan> {
        let (ckpt, model, request) = (&*source.ckpt, &*source.model, &Request { spec, devices: devices.max(1) });
        if source.model.hf_config.is_none() {
            source.model.known()?;
        }
        // They are copied; a broken one is found now and not by an engine.
        crate::model::tokenizer::check_files(ckpt.dir())?;
        let embeddings = request.spec.reach() == Reach::EmbeddingsToo;
        let for_mlx = spec.loader() == Loader::Mlx;
        let json = model.hf_config.as_ref().unwrap_or(&Value::Null);
        if for_mlx && loads_its_own_alone(json) {
            let what = "mlx-lm takes norms and convolutions of such a model for its own as soon as experts are quantized, \
                        so that only what mlx_lm.convert made comes out right";
            return Err(Error::unsupported(format!("{spec}: {what}")).hint("another format, or mlx_lm.convert"));
        }
        let mut contents = Contents::of(ckpt, model, embeddings, for_mlx)?;
        if model.known().is_err() {
            contents.include(ckpt, rules::included(rules)?);
        }
        let mut departures = Vec::new();
        if let Err(why) = &source.model.family {
            departures.extend(stacks(ckpt, model, &contents.kept, &request.spec));
            if contents.modules.is_empty() {
                return Err(why.error());
            }
        }
        let spec = settle_group(request, &contents.modules, &mut departures)?;
        let Contents { modules, kept } = contents;
        let seats = if for_mlx { seats::of_mlx(&modules, json) } else { seats::own(&modules) };
        let seated = modules.into_iter().zip(seats);
        let mut modules: Vec<ModulePlan> =
            seated.map(|(module, seat)| ModulePlan { module, seat, spec: Some(spec), ruled: false }).collect();
        rules::apply(&spec, &mut modules, &kept, rules)?;
        for ModulePlan { module, spec: chosen, .. } in modules.iter_mut().filter(|m| !m.ruled) {
            let absorbed = for_mlx && is_absorbed(json, &module.path);
            let why = "mlx-lm takes it apart as it loads it, and would round it once more";
            let reason = absorbed.then(|| why.to_string()).or_else(|| refusal(&spec, module, request.devices));
            let Some(reason) = reason else { continue };
            let instead = spec.fallback().filter(|_| !absorbed);
            departures.push(Departure {
                kind: Kind::Fallback,
                module: Some(module.path.clone()),
                asked: spec.to_string(),
                done: instead.map_or(KEPT.into(), |s| s.to_string()),
                reason,
            });
            *chosen = instead;
        }
        agree(&mut modules, &mut departures);
        if modules.iter().all(|m| m.spec.is_none()) {
            let reason = departures.iter().rev().find(|d| d.module.is_some()).map_or("", |d| d.reason.as_str());
            return Err(Error::unsupported(format!(
                "{spec}: no linear layer of this model can be stored so: {reason}"
            )));
        }
        let entries = entries(ckpt, &modules, &kept);
        let config = config(ckpt, model, &spec, &modules, &kept);
        Ok(FolderPlan { spec, modules, kept, departures, entries, config, limit: None, allocation: None })
    }

    /// The modules of a layer, with their places; `None` for embedding and output.
    pub(crate) fn layer(&self, layer: Option<usize>) -> impl Iterator<Item = (usize, &Module)> {
        self.modules.iter().map(|m| &m.module).enumerate().filter(move |(_, m)| m.layer == layer)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.entries.iter().filter_map(|e| e.bytes().ok()).sum()
    }

    /// Weights in all tensors.
    pub fn weights(&self, ckpt: &Checkpoint) -> u64 {
        let modules = self.modules.iter().map(|m| (m.module.rows * m.module.cols) as u64);
        modules.sum::<u64>() + self.kept.iter().map(|k| ckpt.tensors()[k.source].elements() as u64).sum::<u64>()
    }

    /// Weights that are quantized, and bits that each takes with its share of scales.
    pub fn quantized(&self, ckpt: &Checkpoint) -> (u64, f64) {
        let (mut weights, mut bytes) = (0, 0);
        for ModulePlan { module: m, spec, .. } in &self.modules {
            if let Some(spec) = spec {
                weights += (m.rows * m.cols) as u64;
                bytes += spec.sizes(m.rows, m.cols, m.scale_type(ckpt));
            }
        }
        (weights, 8.0 * bytes as f64 / weights.max(1) as f64)
    }
}

/// Of an unknown architecture: stacks of matrices whose order is not known, or that no engine has by another name, stay as
/// they are.
fn stacks(ckpt: &Checkpoint, model: &Model, kept: &[Kept], spec: &Spec) -> Vec<Departure> {
    let left =
        |t: &&crate::model::MappedTensor| t.parts.first().is_some_and(|part| kept.iter().any(|k| k.source == *part));
    let stacks = model.tensors.iter().filter(|t| t.shape.len() == 3 && t.half.unwrap_or(0) == 0).filter(left);
    let large = stacks.filter(|t| t.shape[1] >= 16 && t.shape[2] >= 16);
    let row = |t: &crate::model::MappedTensor| Departure {
        kind: Kind::Fallback,
        module: t.parts.first().map(|part| ckpt.tensors()[*part].name.clone()),
        asked: spec.to_string(),
        done: KEPT.into(),
        reason: match t.role {
            Role::Unknown => {
                "a stack of matrices that lie otherwise than formats have them: input channels first, or gate \
                              and up in turns"
                    .into()
            }
            _ => "stacked experts that no engine has one by one".into(),
        },
    };
    large.map(row).collect()
}

/// The input channels of a module on one of `tp` devices; `None` when they cannot be split evenly.
fn split_cols(module: &Module, tp: usize) -> Option<usize> {
    match shards(module.role) {
        Shard::Columns => module.cols.is_multiple_of(tp.max(1)).then(|| module.cols / tp.max(1)),
        Shard::Rows => Some(module.cols),
    }
}

/// Settles the group: the one asked for, or the largest usual one that divides every row, on every device.
fn settle_group(request: &Request, modules: &[Module], departures: &mut Vec<Departure>) -> Result<Spec> {
    let mut spec = request.spec;
    let Some(asked) = spec.group.filter(|_| spec.has_free_group()) else { return Ok(spec) };
    let fits = |group: usize| {
        modules.iter().find(|m| !split_cols(m, request.devices).is_some_and(|cols| cols.is_multiple_of(group)))
    };
    let Some(first) = fits(asked) else { return Ok(spec) };
    let best = [128, 64, 32].into_iter().filter(|g| *g < asked).find(|g| fits(*g).is_none());
    let reason = undivided(first, asked, request.devices);
    if spec.group_given {
        let hint = match best {
            Some(of) => Hint::Groups { of, format: Spec { group: best, ..spec }.to_string() },
            None => "a format without groups takes it: fp8, int8, nf4".into(),
        };
        return Err(Error::unsupported(format!("{spec}: {reason}")).hint(hint));
    }
    // Where no group divides all, the smallest leaves the fewest modules out.
    let group = best.unwrap_or(32.min(asked));
    spec.group = Some(group);
    departures.push(Departure {
        kind: Kind::Fallback,
        module: None,
        asked: format!("groups of {asked}"),
        done: format!("groups of {group}"),
        reason,
    });
    Ok(spec)
}

fn undivided(module: &Module, group: usize, tp: usize) -> String {
    let (path, cols) = (&module.path, module.cols);
    match split_cols(module, tp) {
        None => format!("the {cols} input channels of {path} cannot be split over {tp} devices"),
        Some(part) if part == cols => format!("{group} does not divide the rows of {cols} of {path}"),
        Some(part) => {
            format!("{group} does not divide the rows of {cols} of {path}, which are {part} on each of {tp} devices")
        }
    }
}

/// Why this module cannot be stored so.
pub fn refusal(spec: &Spec, module: &Module, tp: usize) -> Option<String> {
    spec.refuses(module.rows, module.cols).or_else(|| {
        let group = spec.group.filter(|_| spec.is_integer())?;
        let survives = split_cols(module, tp).is_some_and(|cols| cols.is_multiple_of(group));
        (!survives).then(|| undivided(module, group, tp))
    })
}

/// Modules that are fused or lie in one tensor must be stored alike: one that cannot be quantized keeps the others from it.
fn agree(modules: &mut [ModulePlan], departures: &mut Vec<Departure>) {
    let shown = |spec: Option<Spec>| spec.map_or(KEPT.into(), |s| s.to_string());
    let mut sets: HashMap<Alike, Vec<usize>> = HashMap::new();
    for (i, module) in modules.iter().enumerate() {
        if let Some(alike) = module.alike() {
            sets.entry(alike).or_default().push(i);
        }
    }
    let mut differing: Vec<(bool, Vec<usize>)> = sets
        .into_iter()
        .filter(|(_, set)| set.iter().any(|i| modules[*i].spec != modules[set[0]].spec))
        .map(|(alike, set)| (matches!(alike, Alike::Stack(_)), set))
        .collect();
    differing.sort();
    for (stack, set) in differing {
        for &i in &set {
            let Some(&lesser) = set.iter().find(|j| modules[**j].spec != modules[i].spec) else { continue };
            let (own, lesser) = (&modules[i], &modules[lesser]);
            // The one that departed already decides.
            let departed =
                |m: &ModulePlan| departures.iter().any(|d| d.module.as_deref() == Some(m.module.path.as_str()));
            if departed(lesser) && !departed(own) {
                let why = if stack { "lies in one tensor with" } else { "engines fuse it with" };
                departures.push(Departure {
                    kind: Kind::Fallback,
                    module: Some(own.module.path.clone()),
                    asked: shown(own.spec),
                    done: shown(lesser.spec),
                    reason: format!("{why} {}", lesser.module.path),
                });
                modules[i].spec = lesser.spec;
            }
        }
    }
}

fn entries(ckpt: &Checkpoint, modules: &[ModulePlan], all_kept: &[Kept]) -> Vec<Entry> {
    let mut placed: Vec<((usize, usize), Entry)> = Vec::new();
    for kept in all_kept {
        let t = &ckpt.tensors()[kept.source];
        placed.push(((kept.source, 0), Entry { name: kept.name.clone(), dtype: t.dtype, shape: t.shape.clone() }));
    }
    for plan in modules.iter().filter(|plan| plan.seat.is_first()) {
        let (m, seat) = (&plan.module, &plan.seat);
        let at = (m.source, m.first_row);
        match plan.spec {
            Some(spec) => {
                for slot in spec.layout(m.rows, m.cols, m.scale_type(ckpt)) {
                    let name = plan.name(slot.suffix);
                    placed.push((at, Entry { name, dtype: slot.dtype, shape: seat.shape(slot.shape) }));
                }
            }
            None => {
                let (name, dtype) = (plan.name("weight"), m.meta(ckpt).dtype);
                placed.push((at, Entry { name, dtype, shape: seat.shape(vec![m.rows, m.cols]) }));
            }
        }
    }
    placed.sort_by_key(|(at, _)| *at);
    placed.into_iter().map(|(_, entry)| entry).collect()
}

/// `quantization_config`, with the names of everything that a loader would otherwise take for quantized.
fn config(ckpt: &Checkpoint, model: &Model, spec: &Spec, modules: &[ModulePlan], all_kept: &[Kept]) -> Value {
    let role_of = |source: usize| model.tensors.iter().find(|t| t.parts.contains(&source)).map(|t| t.role);
    let mut kept = Vec::new();
    for k in all_kept {
        let matrix = ckpt.tensors()[k.source].shape.len() == 2;
        // A matrix without a role belongs to an image encoder.
        let linear = matrix && role_of(k.source).is_none_or(|role| role.is_router() || role == Role::Unknown);
        if let Some(path) = k.name.strip_suffix(".weight").filter(|_| linear) {
            kept.push(path.to_string());
        }
    }
    let mut exceptions = Vec::new();
    for ModulePlan { seat, spec: chosen, .. } in modules.iter().filter(|plan| plan.seat.is_first()) {
        match chosen {
            None => kept.push(seat.path.clone()),
            Some(other) if other != spec => exceptions.push(Exception { module: seat.path.clone(), spec: *other }),
            Some(_) => {}
        }
    }
    spec.quantization_config(Scope { kept: &kept, exceptions: &exceptions })
}
