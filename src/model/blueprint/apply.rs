//! Applies a blueprint to a checkpoint: every source tensor gets its place in the GGUF file, or is dropped with a reason.

use super::base::{self, Keys};
use super::names::Names;
use super::shapes::{Cache, promised};
use super::view::{Change, Stored, View, squeezed};
use super::{Blueprint, Hparams, Mtp, Named, Part};
use crate::gguf::Metadata;
use crate::model::role::Role;
use crate::model::source_names::{drop_reason_of_any, drop_reason_of_buffer, layer_of, sort_like_llama_cpp, text_name};
use crate::model::tensor::{Generated, MappedTensor, RowOrder, ValueMap};
use crate::quant::GgmlType;
use crate::quant::presets::layer_of as layer_of_gguf;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A checkpoint as a GGUF file holds it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::model) struct Drawn {
    pub arch: &'static str,
    pub tensors: Vec<MappedTensor>,
    pub generated: Vec<Generated>,
    pub dropped: Vec<(String, String)>,
    /// Of the architecture, with `general.file_type` in its place.
    pub keys: Metadata,
    /// What a sequence takes, where that is known.
    pub cache: Option<Cache>,
}

/// Experts of one kind, or a tensor that stands alone.
#[derive(Default)]
struct Group {
    /// By expert; one of 0 for a tensor alone.
    parts: BTreeMap<usize, usize>,
    are_experts: bool,
}

/// # Errors
/// `BadInput` for a tensor without a place, for shapes and keys that do not fit; `Unsupported` for element types that are
/// no weights.
pub(in crate::model) fn draw(
    ckpt: &Checkpoint,
    blueprint: &'static Blueprint,
    json: &serde_json::Value,
    mtp: Mtp,
) -> Result<Drawn> {
    let h = Hparams::new(json, blueprint);
    let (mut groups, mut dropped) = (BTreeMap::<String, Group>::new(), Vec::new());
    let mut names = Vec::new();
    for (part, t) in ckpt.tensors().iter().enumerate() {
        let (name, dropped_of_any) = match blueprint.part {
            Part::Text => {
                let name = text_name(&t.name).replace("e_score_correction_bias", "e_score_correction.bias");
                let reason = drop_reason_of_any(t, &name);
                (name, reason)
            }
            Part::Projector => (t.name.clone(), drop_reason_of_buffer(t, &t.name)),
        };
        if let Some(reason) = dropped_of_any {
            dropped.push((t.name.clone(), reason.to_string()));
            continue;
        }
        let name = match (blueprint.rename)(&h, &name) {
            Named::Keep(name) => name,
            Named::Alias(name, _) if ckpt.find(name).is_none() && !groups.contains_key(name) => name.to_string(),
            Named::Drop(reason) | Named::Alias(_, reason) => {
                dropped.push((t.name.clone(), reason.to_string()));
                continue;
            }
        };
        check_type(ckpt, t)?;
        let (whole, expert) = without_expert(&name);
        let group = groups.entry(whole).or_default();
        group.are_experts |= expert.is_some();
        if group.parts.insert(expert.unwrap_or(0), part).is_some() {
            return Err(Error::bad_input("two tensors have this name in a GGUF file").tensor(&t.name));
        }
        names.push(name);
    }
    let more = (blueprint.more_blocks)(&h, &mut names.iter().map(String::as_str));
    let own = if blueprint.part == Part::Text { h.blocks()? } else { 0 };
    let blocks = own + more;
    let table = Names::of(blueprint);
    let mut tensors = Vec::new();
    for (name, group) in &groups {
        tensors.extend(mapped(ckpt, &h, blueprint, &table, name, group, blocks)?);
    }
    if blueprint.part == Part::Text && mtp != Mtp::Keep {
        split_off(ckpt, mtp, own, &mut tensors, &mut dropped)?;
    }
    let blocks = if mtp == Mtp::Drop { own } else { blocks };
    sort_like_llama_cpp(ckpt, &mut tensors);
    let mut generated = (blueprint.generated)(&h)?;
    for (folder, name) in blueprint.beside {
        generated.extend(beside(ckpt, folder, name)?);
    }
    if let Some(wrong) = generated.iter().find(|g| g.values.is_empty() || g.values.iter().any(|x| !x.is_finite())) {
        let what = format!("the configuration gives no finite values for {}", wrong.name);
        return Err(Error::bad_file(ckpt.dir(), what));
    }
    let keys = keys_of(&h, blueprint, blocks, ckpt, mtp)?;
    let cache = promised(blueprint, &h).ok().flatten().map(|(_, cache)| cache);
    Ok(Drawn { arch: blueprint.gguf, tensors, generated, dropped, keys, cache })
}

/// The metadata of a file of so many blocks.
fn keys_of(h: &Hparams, blueprint: &'static Blueprint, blocks: usize, ckpt: &Checkpoint, mtp: Mtp) -> Result<Metadata> {
    let mut keys = Metadata::new();
    let mut k = Keys { h, arch: blueprint.gguf, blocks, ckpt, meta: &mut keys };
    if blueprint.base {
        base::write(&mut k)?;
    }
    (blueprint.keys)(&mut k)?;
    if mtp == Mtp::Drop {
        keys.remove(&format!("{}.nextn_predict_layers", blueprint.gguf));
    }
    Ok(keys)
}

/// The file that a configuration promises. `ckpt` holds nothing. `None` where tensors do not follow from it alone.
///
/// # Errors
/// `BadInput` for a configuration that lacks a size.
pub(in crate::model) fn imagine(
    ckpt: &Checkpoint,
    blueprint: &'static Blueprint,
    json: &serde_json::Value,
    mtp: Mtp,
) -> Result<Option<Drawn>> {
    let h = Hparams::new(json, blueprint);
    let Some((promised, cache)) = promised(blueprint, &h)? else { return Ok(None) };
    let made = |(name, shape): (String, Vec<usize>)| MappedTensor {
        layer: layer_of_gguf(&name),
        name,
        shape,
        parts: Vec::new(),
        half: None,
        rows: RowOrder::Same,
        values: ValueMap::Same,
        role: Role::Unknown,
    };
    let mut tensors: Vec<MappedTensor> = promised.into_iter().map(made).collect();
    let mut dropped = Vec::new();
    if mtp != Mtp::Keep {
        split_off(ckpt, mtp, h.blocks()?, &mut tensors, &mut dropped)?;
    }
    let blocks = tensors.iter().filter_map(|t| t.layer).max().map_or(0, |last| last + 1);
    let keys = keys_of(&h, blueprint, blocks, ckpt, mtp)?;
    let generated = (blueprint.generated)(&h)?;
    Ok(Some(Drawn { arch: blueprint.gguf, tensors, generated, dropped, keys, cache: Some(cache) }))
}

/// Takes out the layers that predict more than the next token, blocks from `own` on, or everything that a draft model of
/// them does not need.
///
/// # Errors
/// `Unsupported` for a draft model of a checkpoint that has none.
fn split_off(
    ckpt: &Checkpoint,
    mtp: Mtp,
    own: usize,
    tensors: &mut Vec<MappedTensor>,
    dropped: &mut Vec<(String, String)>,
) -> Result<()> {
    let predicts = |t: &MappedTensor| layer_of_gguf(&t.name).is_some_and(|block| block >= own);
    if mtp == Mtp::Only && !tensors.iter().any(predicts) {
        let what = "the checkpoint has no layers that predict more than the next token, or none that llama.cpp has a place for";
        return Err(Error::unsupported(format!("{}: {what}", ckpt.dir().display())));
    }
    const SHARED: [&str; 3] = ["token_embd.weight", "output_norm.weight", "output.weight"];
    let (kept, left): (Vec<_>, Vec<_>) = std::mem::take(tensors).into_iter().partition(|t| match mtp {
        Mtp::Only => predicts(t) || SHARED.contains(&t.name.as_str()),
        _ => !predicts(t),
    });
    let why =
        if mtp == Mtp::Only { "no part of a draft model" } else { "multi-token prediction, which was not wanted" };
    let mut parts: Vec<usize> = left.iter().flat_map(|t| t.parts.iter().copied()).collect();
    parts.sort_unstable();
    parts.dedup();
    dropped.extend(parts.into_iter().map(|part| (ckpt.tensors()[part].name.clone(), why.to_string())));
    *tensors = kept;
    Ok(())
}

/// The one matrix of a folder beside the checkpoint, where it is there.
fn beside(ckpt: &Checkpoint, folder: &str, name: &str) -> Result<Option<Generated>> {
    let path = ckpt.dir().join(folder).join("model.safetensors");
    if !path.is_file() {
        return Ok(None);
    }
    let other = Checkpoint::open(&path)?;
    let Some(t) = other.tensors().iter().find(|t| t.name.ends_with("linear.weight")) else { return Ok(None) };
    let mut values = vec![0.0; t.elements()];
    other.read_f32(t, 0..values.len(), &mut Vec::new(), &mut values)?;
    Ok(Some(Generated { name: name.into(), shape: t.shape.clone(), values }))
}

fn check_type(ckpt: &Checkpoint, t: &TensorMeta) -> Result<()> {
    let float = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::F64].map(Dtype::Ggml);
    if float.contains(&t.dtype) || matches!(t.dtype, Dtype::Packed(_) | Dtype::Ggml(GgmlType::MXFP4)) {
        return Ok(());
    }
    let file = ckpt.files().get(t.file).map_or(ckpt.dir(), |f| &f.path);
    let what = format!("{}: tensor '{}' is stored as {:?}", file.display(), t.name, t.dtype);
    Err(Error::unsupported(format!("{what}; weights must be F32, F16, BF16 or F64")))
}

/// `a.experts.7.b` is expert 7 of `a.experts.b`.
fn without_expert(name: &str) -> (String, Option<usize>) {
    let found = name.split_once(".experts.").and_then(|(before, rest)| {
        let (number, after) = rest.split_once('.')?;
        Some((format!("{before}.experts.{after}"), number.parse().ok()?))
    });
    found.map_or_else(|| (name.to_string(), None), |(whole, expert)| (whole, Some(expert)))
}

/// The GGUF tensors that one source tensor becomes.
fn mapped(
    ckpt: &Checkpoint,
    h: &Hparams,
    blueprint: &Blueprint,
    table: &Names,
    name: &str,
    group: &Group,
    blocks: usize,
) -> Result<Vec<MappedTensor>> {
    let parts: Vec<usize> = group.parts.values().copied().collect();
    let first = &ckpt.tensors()[parts[0]];
    let fault = |what: String| {
        let file = ckpt.files().get(first.file).map_or(ckpt.dir(), |f| &f.path);
        Error::bad_file(file, what).tensor(&first.name).hint("check that config.json belongs to these weights")
    };
    if parts.iter().any(|p| squeezed(&ckpt.tensors()[*p].shape) != squeezed(&first.shape)) {
        return Err(fault("the experts of this layer differ in shape".into()));
    }
    if group.parts.keys().enumerate().any(|(i, expert)| i != *expert) {
        return Err(fault(format!("{} experts are here, and not all of them from the first on", parts.len())));
    }
    let mut shape = first.shape.clone();
    if group.are_experts {
        shape.insert(0, parts.len());
    }
    if shape.is_empty() {
        shape.push(1);
    }
    let layer = layer_of(name);
    // Nothing is lost and nothing made up, whatever the configuration says of sizes. Of several tensors some may be copies.
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let all = elements(&shape);
    let kept = |views: &[View]| {
        let fits = |v: &View| v.gather.as_ref().is_none_or(|g| g.fits(all, elements(&v.shape)));
        let given: usize = views.iter().map(|v| elements(&v.shape) + v.left_out).sum();
        let whole = if views.len() == 1 { given == all } else { given >= all };
        match whole && views.iter().all(|v| fits(v) && (1..=all).contains(&elements(&v.shape))) {
            true => Ok(()),
            false => Err(fault(format!("its shape {shape:?} is not what the configuration gives"))),
        }
    };
    let made = |gguf: String, view: View| MappedTensor {
        name: gguf,
        shape: view.shape,
        parts: parts.clone(),
        half: None,
        rows: view.gather.map_or(RowOrder::Same, |gather| RowOrder::Gather(Arc::new(gather))),
        values: view.values,
        role: Role::Unknown,
        layer,
    };
    let stored = Stored { name: &first.name, shape: &shape, layer: layer.unwrap_or(0) };
    let block = |stem: &str| match layer {
        Some(layer) if stem.contains("{}") => stem.replace("{}", &layer.to_string()),
        Some(layer) => format!("blk.{layer}.{stem}"),
        None => stem.to_string(),
    };
    if let Some((_, split)) = blueprint.splits.iter().find(|(end, _)| name.ends_with(end)) {
        let views = split.iter().map(|(_, change)| change.view(h, &stored)).collect::<Result<Vec<_>>>()?;
        kept(&views)?;
        return Ok(split.iter().zip(views).map(|((gguf, _), view)| made(block(gguf), view)).collect());
    }
    let gguf = table
        .find(name, layer)
        .ok_or_else(|| fault(format!("does not belong in a {} model (shape {:?})", blueprint.gguf, first.shape)))?;
    if layer.is_some_and(|layer| layer >= blocks && gguf.starts_with("blk.")) {
        return Err(fault(format!("is in a block beyond the {blocks} that the configuration has")));
    }
    let stem = ["blk.", "v.blk.", "a.blk."]
        .iter()
        .find_map(|begin| gguf.strip_prefix(begin))
        .and_then(|rest| rest.split_once('.'))
        .map_or(gguf.as_str(), |(_, stem)| stem);
    let change = blueprint.changes.iter().find(|(of, _)| *of == stem).map_or(Change::Same, |(_, change)| *change);
    let view = change.view(h, &stored)?;
    kept(std::slice::from_ref(&view))?;
    Ok(vec![made(gguf, view)])
}
