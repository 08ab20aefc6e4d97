//! The streaming pass: every tensor is read and decoded once, in pieces of whole rows, and each piece is quantized and
//! written for every target before the next one is touched. Memory is a few pieces per thread, whatever the model's
//! size. Which type a tensor gets was decided before; nothing is decided here.

use crate::control::Run;
use crate::gguf::TensorInfo;
use crate::model::{MappedTensor, Model, fault};
use crate::quant::{self, GgmlType, QuantError};
use crate::source::{Checkpoint, Dtype};
use crate::writer::Sink;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Weights per piece; whole rows, at least one. Its bytes, its numbers and its blocks stay in the second-level cache.
pub const PIECE: usize = 1 << 17;

/// Statistics of one tensor's input activations: the importance of each column, per stacked matrix (`[matrices, cols]`).
pub type Importance<'a> = &'a (dyn Fn(&str) -> Option<&'a [f32]> + Sync);

/// One output of the run: `types[i]` is what tensor `i` of [`outputs`] becomes.
pub struct Target<'a> {
    pub types: Vec<GgmlType>,
    pub sink: &'a dyn Sink,
    /// Tensors whose bytes are there already; those beyond the end are not.
    pub done: Vec<bool>,
}

impl Target<'_> {
    fn is_done(&self, tensor: usize) -> bool {
        self.done.get(tensor).copied().unwrap_or(false)
    }
}

/// Name, shape (outermost first) of everything the artifacts hold: generated tensors, then the mapped ones.
pub fn outputs(model: &Model) -> Vec<(&str, &[usize])> {
    let generated = model.generated.iter().map(|g| (g.name.as_str(), g.shape.as_slice()));
    generated.chain(model.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()))).collect()
}

/// The same, as GGUF tensor entries of the given types that have no place yet.
pub fn entries(model: &Model, types: &[GgmlType]) -> Vec<TensorInfo> {
    let entry = |((name, shape), ty): ((&str, &[usize]), &GgmlType)| TensorInfo {
        name: name.to_string(),
        dims: shape.iter().rev().map(|d| *d as u64).collect(),
        ty: *ty,
        offset: 0,
    };
    outputs(model).into_iter().zip(types).map(entry).collect()
}

/// Source bytes that a run over `model` reads.
pub fn source_bytes(ckpt: &Checkpoint, model: &Model) -> u64 {
    let len = |part: &usize| ckpt.tensors().get(*part).map_or(0, |t| t.bytes());
    model.tensors.iter().flat_map(|t| t.parts.iter()).map(len).sum()
}

/// Work beside the pass that does not depend on it. Half of the threads (at least one) call it before they turn to the
/// weights, so that it must find its own end when several do.
pub type Aside<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// Reads every tensor once and writes it to every target.
pub fn run<'a>(
    ckpt: &'a Checkpoint,
    model: &Model,
    importance: Importance<'a>,
    targets: &'a [Target<'a>],
    aside: Aside<'a>,
    run: Run,
) -> Result<()> {
    for (index, tensor) in model.generated.iter().enumerate() {
        for target in targets.iter().filter(|target| !target.is_done(index)) {
            let cols = tensor.shape.last().copied().unwrap_or(1);
            let mut bytes = Vec::new();
            encode(target.types[index], &tensor.values, cols, None, &mut bytes)
                .map_err(|e| Error::Internal(format!("{}: {e}", tensor.name)))?;
            target.sink.put(index, 0, &bytes)?;
        }
    }
    let mut pieces = Vec::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        let step = (PIECE / tensor.cols().max(1)).max(1);
        let rows = tensor.row_count();
        // A piece never spans two experts, so that each has its own importance.
        let matrix = tensor.rows_per_matrix().max(1);
        for base in (0..rows).step_by(matrix) {
            let end = (base + matrix).min(rows);
            pieces.extend((base..end).step_by(step).map(|r| (index, r..(r + step).min(end))));
        }
    }
    let next = AtomicUsize::new(0);
    let work = |begins_aside: bool| -> Result<()> {
        if begins_aside {
            aside().inspect_err(|_| next.store(pieces.len(), Ordering::Relaxed))?;
        }
        let mut worker = Worker { ckpt, importance, targets, scratch: Vec::new(), rows: Vec::new(), bytes: Vec::new() };
        while let Some((index, rows)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if targets.iter().all(|target| target.is_done(model.generated.len() + index)) {
                continue;
            }
            let tensor = &model.tensors[*index];
            let done = run.check().and_then(|()| worker.piece(tensor, model.generated.len() + index, rows.clone()));
            if let Err(e) = done {
                next.store(pieces.len(), Ordering::Relaxed); // the other threads stop at their next piece
                return Err(e);
            }
            run.advance(tensor.source_bytes(ckpt, rows));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = run.threads().max(1);
        let work = &work;
        let workers: Vec<_> = (0..threads).map(|i| scope.spawn(move || work(i < threads.div_ceil(2)))).collect();
        // Every thread is joined before the first error is returned, so that nothing writes any more.
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        results.into_iter().try_for_each(|r| {
            r.unwrap_or_else(|_| Err(Error::Internal("a quantization thread panicked; please report this".into())))
        })
    })
}

/// One thread's buffers.
struct Worker<'a> {
    ckpt: &'a Checkpoint,
    importance: Importance<'a>,
    targets: &'a [Target<'a>],
    scratch: Vec<u8>,
    rows: Vec<f32>,
    bytes: Vec<u8>,
}

impl Worker<'_> {
    /// Reads rows of a tensor and writes them to every target.
    fn piece(&mut self, tensor: &MappedTensor, index: usize, rows: Range<usize>) -> Result<()> {
        let cols = tensor.cols();
        let mut decoded = false;
        for target in self.targets.iter().filter(|t| !t.is_done(index)) {
            let ty = target.types[index];
            let row_bytes =
                ty.row_bytes(cols).ok_or_else(|| Error::Internal(format!("{}: {ty} rows of {cols}", tensor.name)))?;
            if tensor.copies(self.ckpt, ty) {
                self.bytes.resize(row_bytes * rows.len(), 0);
                tensor.read_stored(self.ckpt, rows.clone(), row_bytes, &mut self.bytes)?;
                quant::check_rows(ty, &self.bytes).map_err(|e| fault(self.ckpt, tensor, &rows, ty, as_stored(e)))?;
            } else {
                if !decoded {
                    self.rows.resize(cols * rows.len(), 0.0);
                    tensor.read_rows(self.ckpt, rows.clone(), &mut self.scratch, &mut self.rows)?;
                    decoded = true;
                }
                let weights = (self.importance)(&tensor.name);
                let matrix = rows.start / tensor.rows_per_matrix().max(1);
                let weights = weights.map(|w| if w.len() > cols { &w[matrix * cols..(matrix + 1) * cols] } else { w });
                encode(ty, &self.rows, cols, weights, &mut self.bytes)
                    .map_err(|e| fault(self.ckpt, tensor, &rows, ty, e))?;
            }
            target.sink.put(index, (rows.start * row_bytes) as u64, &self.bytes)?;
        }
        Ok(())
    }
}

/// Quantizes whole rows into `out` and checks what came out: a weight too large for the type shows here.
fn encode(
    ty: GgmlType,
    rows: &[f32],
    cols: usize,
    weights: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<(), QuantError> {
    let row_bytes = ty.row_bytes(cols).ok_or(QuantError::NotWholeBlocks { ty, cols, block: ty.block() })?;
    out.resize(rows.len() / cols.max(1) * row_bytes, 0);
    quant::quantize_rows(ty, rows, cols, weights, out)?;
    quant::check_rows(ty, out)
}

impl MappedTensor {
    /// Whether the stored bytes are already what type `ty` asks for, so that they are copied and not re-coded.
    fn copies(&self, ckpt: &Checkpoint, ty: GgmlType) -> bool {
        let same = |part: &usize| ckpt.tensors()[*part].dtype == Dtype::Ggml(ty);
        self.keeps_rows() && self.parts.iter().all(same)
    }

    fn source_bytes(&self, ckpt: &Checkpoint, rows: &Range<usize>) -> u64 {
        let len: u64 = self.parts.iter().map(|p| ckpt.tensors()[*p].bytes()).sum();
        let all = self.row_count().max(1) as u64;
        len * rows.end as u64 / all - len * rows.start as u64 / all
    }
}

/// What a failed check means for bytes that were copied: nothing was too large, the source itself is damaged.
fn as_stored(error: QuantError) -> QuantError {
    match error {
        QuantError::BadScale { ty, block, value } => QuantError::NotFinite { index: block * ty.block(), value },
        other => other,
    }
}
