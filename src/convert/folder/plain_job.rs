//! Makes a plain folder: tensors in parts of about a gigabyte, each noted in the folder's journal when it is complete.

use super::job;
use crate::control::{Notice, Run, Unit};
use crate::convert::companions::others;
use crate::convert::hashes;
use crate::convert::journal::Journal;
use crate::convert::layout::plain::{From, PlainPlan, config_text};
use crate::convert::layout::pretty;
use crate::convert::ledger::{Kind, LedgerRow};
use crate::convert::outcome::Made;
use crate::convert::plan::{OutputPlan, Plan};
use crate::convert::published::Published;
use crate::disk::folder_of;
use crate::model::SourceModel;
use crate::quant::{self, GgmlType, QuantError};
use crate::source::Dtype;
use crate::writer::folder::{Folder, MANIFEST};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::ops::Range;

/// Bytes of a part.
const PART: u64 = 1 << 30;
/// Numbers that are decoded at once; more than so many, and nothing else is.
const PIECE: usize = 1 << 22;
const ALONE: usize = 1 << 25;

/// Numbers that the folder's type does not hold exactly, and all.
#[derive(Clone, Copy, Default)]
struct RoundingCount {
    count: u64,
    of: u64,
}

impl std::ops::Add for RoundingCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { count: self.count + other.count, of: self.of + other.of }
    }
}

struct Work<'a> {
    source: &'a SourceModel,
    plan: &'a PlainPlan,
    folder: &'a Folder,
    run: Run<'a>,
}

/// Makes the plain folders of a plan that are not published yet.
pub(super) fn run(plan: &Plan, published: &mut Published, run: Run) -> Result<()> {
    let left: Vec<_> = plan.plain().filter(|(output, _)| !published.has(output.index)).collect();
    left.into_iter().try_for_each(|(output, plain)| one(plan, output, plain, published, run))
}

fn one(plan: &Plan, output: &OutputPlan, plain: &PlainPlan, published: &mut Published, run: Run) -> Result<()> {
    let (source, target) = (&plan.source, &output.place);
    let recipe = plan.recipe.of_output(output.index);
    let hashes = if recipe.hash_sources { Some(hashes::of(plan, run)?) } else { None };
    let (mut folder, mut journal, key) = job::begin(&source.ckpt, (&plain.entries, "pt"), &recipe, target, None, run)?;
    let keep = |folder: &mut Folder, journal: &mut Journal| {
        let keep = journal.parts() > 0;
        folder.keep_on_drop(keep);
        journal.keep_on_drop(keep);
        keep
    };
    keep(&mut folder, &mut journal);
    let phase = run.phase(output.target.name(), plain.tensor_bytes(), Unit::Bytes);
    let work = Work { source, plan: plain, folder: &folder, run };
    let mut rounded = RoundingCount::default();
    let done = parts(plain).into_iter().try_for_each(|(name, tensors, _)| {
        rounded = rounded + work.part(&mut journal, &name, tensors)?;
        Ok(())
    });
    let done = done.and_then(|()| run.check());
    let done = done.and_then(|()| source.ckpt.files().iter().try_for_each(|file| file.check_unchanged()));
    drop(phase);
    if let Err(e) = done {
        if keep(&mut folder, &mut journal) {
            run.notice(Notice::Kept(folder.partial().to_path_buf()));
        }
        return Err(e);
    }
    keep(&mut folder, &mut journal);
    let mut ledger: Vec<LedgerRow> = output.ledger();
    ledger.extend(rounding(plain, rounded, output.target.name()));
    for row in ledger.iter().filter(|row| row.kind == Kind::Rounded) {
        let text = format!("{} instead of {}: {}", row.done, row.asked, row.reason);
        run.notice(Notice::About { output: output.target.name().to_string(), text });
    }
    let manifest = json!({
        "quantize_version": env!("CARGO_PKG_VERSION"),
        "source": job::source(&source.name(), &source.ckpt, hashes.as_deref()),
        "format": "safetensors",
        "recipe": key["recipes"][0],
        "ledger": ledger.iter().map(LedgerRow::in_manifest).collect::<Vec<_>>(),
    });
    if let Some(dir) = &plain.beside {
        for name in others(dir)?.iter().map(String::as_str).filter(|name| *name != "hf_quant_config.json") {
            folder.copy(&dir.join(name), name)?;
        }
        // A card that speaks of quantization, or of another file, is not true of what is made here.
        let is_copy = source.ckpt.gguf().is_none() && source.ckpt.scheme().is_none();
        if is_copy && dir.join("README.md").is_file() {
            folder.copy(&dir.join("README.md"), "README.md")?;
        }
    }
    plain.small.iter().try_for_each(|(name, text)| folder.text(name, text))?;
    folder.text(MANIFEST, &pretty(&manifest))?;
    let (tensor_bytes, weights) = (folder.tensor_bytes(), plain.weights());
    folder.seal(&config_text(plain), None)?;
    let step = folder.complete()?;
    folder.keep_on_drop(true);
    journal.keep_on_drop(true);
    let made = Made {
        index: output.index,
        name: output.target.name().to_string(),
        place: target.clone(),
        paths: vec![target.clone()],
        bytes: tensor_bytes,
        tensor_bytes,
        quantized_weights: weights,
        bits_per_weight: 8.0 * tensor_bytes as f64 / weights.max(1) as f64,
        ledger,
        verdict: None,
        checked: None,
        notes: Vec::new(),
        file: None,
        manifest,
    };
    published.publish(vec![made], vec![(folder_of(target).to_path_buf(), step)], || {})
}

/// Tensors in runs of about [`PART`] bytes, and how many bytes each has.
pub(super) fn parts(plan: &PlainPlan) -> Vec<(String, Range<usize>, u64)> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, entry) in plan.entries.iter().enumerate() {
        bytes += entry.bytes().unwrap_or(0);
        if bytes >= PART || i + 1 == plan.entries.len() {
            parts.push((format!("tensors {start} to {i}"), start..i + 1, bytes));
            (start, bytes) = (i + 1, 0);
        }
    }
    parts
}

/// Makes some parts, for [`super::parts`].
pub(super) fn make_parts(
    plan: &Plan,
    output: &OutputPlan,
    plain: &PlainPlan,
    units: Range<usize>,
    run: Run,
) -> Result<()> {
    let (source, recipe) = (&plan.source, plan.recipe.of_output(output.index));
    let layout = (plain.entries.as_slice(), "pt");
    let (mut folder, mut journal, _) = job::begin(&source.ckpt, layout, &recipe, &output.place, None, run)?;
    let work = Work { source, plan: plain, folder: &folder, run };
    for (name, tensors, _) in parts(plain).into_iter().take(units.end).skip(units.start) {
        work.part(&mut journal, &name, tensors)?;
    }
    source.ckpt.files().iter().try_for_each(|file| file.check_unchanged())?;
    folder.keep_on_drop(true);
    journal.keep_on_drop(true);
    Ok(())
}

/// The row that says how many numbers were rounded.
fn rounding(plan: &PlainPlan, rounded: RoundingCount, candidate: &str) -> Option<LedgerRow> {
    if rounded.count == 0 {
        return None;
    }
    let ty = plan.config.get("dtype").or(plan.config.get("torch_dtype")).and_then(Value::as_str).unwrap_or("the type");
    Some(LedgerRow {
        candidate: candidate.to_string(),
        kind: Kind::Rounded,
        tensor: None,
        asked: "the exact values".into(),
        done: format!("rounded to {ty}"),
        reason: format!("{} of {} unpacked or converted values have more digits", rounded.count, rounded.of),
    })
}

impl Work<'_> {
    /// Makes the tensors of a part, unless an earlier run did. What was rounded in it.
    fn part(&self, journal: &mut Journal, name: &str, tensors: Range<usize>) -> Result<RoundingCount> {
        let number = |record: &Value, key: &str| record[key].as_u64().unwrap_or(0);
        if let Some(record) = journal.finished(name)? {
            return Ok(RoundingCount { count: number(&record, "rounded"), of: number(&record, "of") });
        }
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        for tensor in tensors {
            for piece in self.pieces(tensor) {
                let list = if piece.len() > ALONE { &mut alone } else { &mut together };
                list.push((tensor, piece));
            }
        }
        let each = |(tensor, piece): &(usize, Range<usize>)| {
            self.run.check()?;
            self.piece(*tensor, piece.clone())
        };
        let sum = together.par_iter().map(each).try_reduce(RoundingCount::default, |a, b| Ok(a + b))?;
        let sum = alone.iter().try_fold(sum, |sum, piece| Ok::<_, Error>(sum + each(piece)?))?;
        self.run.check()?;
        self.folder.sync()?;
        journal.finish(name, json!({ "rounded": sum.count, "of": sum.of }), self.folder.pieces(self.run)?)?;
        Ok(sum)
    }

    /// A tensor in ranges of its elements, or of its bytes where these are copied.
    fn pieces(&self, tensor: usize) -> Vec<Range<usize>> {
        let entry = &self.plan.entries[tensor];
        let all: usize = entry.shape.iter().product();
        let by = |step: usize, all: usize| -> Vec<Range<usize>> {
            (0..all).step_by(step.max(1)).map(|from| from..(from + step.max(1)).min(all)).collect()
        };
        match (&self.plan.from[tensor], &self.plan.back) {
            (From::Back(i), Some(back)) => back.tensors[*i].pieces(),
            (From::Decoded { turned: true, .. }, _) => by(entry.shape.iter().rev().take(2).product(), all),
            (From::Decoded { turned: false, .. }, _) => {
                let cols = entry.shape.last().copied().unwrap_or(1).max(1);
                by((PIECE / cols).max(1) * cols, all)
            }
            _ => by(PIECE, entry.bytes().unwrap_or(0) as usize),
        }
    }

    /// Makes one piece.
    fn piece(&self, tensor: usize, piece: Range<usize>) -> Result<RoundingCount> {
        let (ckpt, entry) = (&self.source.ckpt, &self.plan.entries[tensor]);
        let mut values = Vec::new();
        match (&self.plan.from[tensor], &self.plan.back) {
            (From::Stored(source), _) => return self.copy(*source, tensor, piece),
            (From::Decoded { source, turned }, _) => {
                let t = &ckpt.tensors()[*source];
                values.resize(piece.len(), 0.0);
                ckpt.read_f32(t, piece.clone(), &mut Vec::new(), &mut values)?;
                if let (true, [.., rows, cols]) = (*turned, &t.shape[..]) {
                    let stored = std::mem::take(&mut values);
                    values = (0..stored.len()).map(|i| stored[i % rows * cols + i / rows]).collect();
                }
            }
            (From::Back(i), Some(back)) => back.tensors[*i].read(ckpt, piece.clone(), &mut values)?,
            (From::Back(_), None) => return Err(Error::Internal("nothing to go back from".into())),
        }
        let Dtype::Ggml(ty) = entry.dtype else {
            return Err(Error::Internal(format!("'{}' in {}", entry.name, entry.dtype)));
        };
        let (bytes, count) = self.encode(ty, &values, &entry.name)?;
        let size = bytes.len() / values.len().max(1);
        self.folder.put(tensor, (piece.start * size) as u64, &bytes)?;
        self.run.advance(bytes.len() as u64);
        Ok(RoundingCount { count, of: values.len() as u64 })
    }

    /// The numbers as they are stored, and how many of them that changed.
    fn encode(&self, ty: GgmlType, values: &[f32], name: &str) -> Result<(Vec<u8>, u64)> {
        let fault = |what: String| {
            let file = self.source.ckpt.files().first().map(|f| f.path.clone()).unwrap_or_default();
            Error::bad_file(file, what).tensor(name)
        };
        let mut bytes = vec![0; ty.row_bytes(values.len()).unwrap_or(0)];
        quant::quantize_rows(ty, values, values.len(), None, &mut bytes).map_err(|e| match e {
            QuantError::NotFinite { value, .. } => fault(format!("holds a value of {value}"))
                .hint("the source is damaged or its training diverged; fetch it again or ask its author"),
            other => fault(other.to_string()),
        })?;
        let mut back = vec![0.0; values.len()];
        quant::dequantize_rows(ty, &bytes, &mut back).map_err(|e| Error::Internal(e.to_string()))?;
        if let Some(at) = back.iter().position(|w| !w.is_finite()) {
            return Err(fault(format!("a value of {} is too large for {ty}", values[at]))
                .hint("take a type with more range: bf16 or f32"));
        }
        let count = values.iter().zip(&back).filter(|(a, b)| a != b).count();
        Ok((bytes, count as u64))
    }

    /// Copies bytes of a tensor that stays as it is, after a look at its numbers.
    fn copy(&self, source: usize, tensor: usize, piece: Range<usize>) -> Result<RoundingCount> {
        let (ckpt, t) = (&self.source.ckpt, &self.source.ckpt.tensors()[source]);
        let mut bytes = vec![0; piece.len()];
        ckpt.read(t, piece.start as u64, &mut bytes)?;
        job::look(ckpt, t, &bytes)?;
        self.folder.put(tensor, piece.start as u64, &bytes)?;
        self.run.advance(bytes.len() as u64);
        Ok(RoundingCount::default())
    }
}
