//! The part of a GGUF conversion that knows the activations: layer by layer, every quantized matrix of a block is rounded
//! with error feedback for every target, where its type has it, and beside it by ggml's own search with the importance of
//! the same tokens. Text that had no part in the rounding decides which of the two is kept. Norms, embeddings and
//! everything unquantized are left to [`super::stream`].

use super::journal::Journal;
use super::sorting::{self, Side, Sorted};
use crate::calibration::layerwise::{Captured, Stage, Visit};
use crate::calibration::moments::{Moments, importance, mean_gram};
use crate::calibration::totals::Input;
use crate::control::Run;
use crate::feedback::ggml::{self, Gauge, Hessian, Prepared, Verdict, feedback_rows};
use crate::feedback::{Factor, Order, Shrink};
use crate::infer::{Linear, Stored};
use crate::matrix::by_search;
use crate::model::config::Ending;
use crate::model::{MappedTensor, Model, fault};
use crate::quant::{self, GgmlType, QuantError};
use crate::source::Checkpoint;
use crate::writer::Sink;
use crate::writer::pieces::Piece;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// How the rounding is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    pub shrink: Shrink,
    pub stage: ggml::Stage,
    /// Later layers see what the quantized ones give; with one target only.
    pub sequential: bool,
    /// Feed-forward channels in the order of their power, where gate, up and down are all quantized; not when sequential.
    pub sort_channels: bool,
}

/// A file in the making, as the rounding sees it.
pub struct BlockOutput<'a> {
    /// What each tensor of [`super::stream::outputs`] becomes.
    pub types: Vec<GgmlType>,
    pub sink: &'a dyn Sink,
    /// Takes the blocks of ggml's search alone: what the finished file is compared with.
    pub plain: &'a dyn Sink,
    /// Per tensor of [`super::stream::outputs`]: whether its bytes are written.
    pub done: Vec<bool>,
    /// Matrices that kept ggml's blocks.
    pub refused: Vec<Refused>,
    /// Matrices with feedback.
    pub kept: usize,
    /// Those of them that a journal knows.
    noted: usize,
    /// The matrices of the layer at hand that are sorted, by their place in the model.
    sorted: HashMap<usize, Sorted>,
}

impl<'a> BlockOutput<'a> {
    pub fn new(types: Vec<GgmlType>, sink: &'a dyn Sink, plain: &'a dyn Sink) -> Self {
        let done = vec![false; types.len()];
        Self { types, sink, plain, done, refused: Vec::new(), kept: 0, noted: 0, sorted: HashMap::new() }
    }
}

/// A matrix in which feedback lost on held-out text, or was not possible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    pub tensor: String,
    pub expert: Option<usize>,
    pub reason: String,
}

/// The part of a journal that holds a layer.
fn part(layer: usize) -> String {
    format!("layer {layer}")
}

/// The part of a journal that holds the output matrix.
const HEAD: &str = "output matrix";

/// What a journal notes of a finished layer. Floating-point numbers as their bits, so that none changes on the way.
#[derive(Serialize, Deserialize)]
struct LayerRecord {
    inputs: Vec<Sums>,
    outputs: Vec<OutputRecord>,
}

#[derive(Serialize, Deserialize)]
struct Sums {
    linear: String,
    cols: usize,
    sum2: Vec<u64>,
    abs: Vec<u64>,
    counts: Vec<u64>,
}

/// The state of one output after a layer.
#[derive(Serialize, Deserialize)]
struct OutputRecord {
    /// Tensors whose blocks are complete, by their place in the output.
    done: Vec<usize>,
    refused: Vec<Refused>,
    /// Of this layer.
    kept: usize,
}

/// Rounds matrices as their inputs become known.
pub struct Refine<'a, 'o> {
    ckpt: &'a Checkpoint,
    model: &'a Model,
    outputs: &'o mut [BlockOutput<'a>],
    settings: Settings,
    run: Run<'a>,
    index: HashMap<&'a str, usize>,
    /// The statistics that an importance matrix is made of.
    pub inputs: BTreeMap<String, Input>,
    /// Without one, the run cannot be continued.
    journal: Option<&'o mut Journal>,
    /// Brings to the disk what the outputs have taken, and says what that is.
    settle: &'o dyn Fn() -> Result<Vec<Piece>>,
    /// Layers that an earlier run has finished.
    finished: usize,
    /// Whether it has finished the output matrix.
    head_finished: bool,
}

/// Rows that are rounded together when a matrix is too large to hold.
const ROWS: usize = 4096;

impl<'a, 'o> Refine<'a, 'o> {
    /// Takes up what the journal knows. `settle` is called before a layer is noted in it.
    ///
    /// # Errors
    /// `BadInput` for a journal whose records are of other outputs.
    pub fn new(
        ckpt: &'a Checkpoint,
        model: &'a Model,
        outputs: &'o mut [BlockOutput<'a>],
        settings: Settings,
        run: Run<'a>,
        journal: Option<&'o mut Journal>,
        settle: &'o dyn Fn() -> Result<Vec<Piece>>,
    ) -> Result<Self> {
        let index = model.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let inputs = BTreeMap::new();
        let mut refine = Refine {
            ckpt,
            model,
            outputs,
            settings,
            run,
            index,
            inputs,
            journal,
            settle,
            finished: 0,
            head_finished: false,
        };
        refine.restore()?;
        Ok(refine)
    }

    fn restore(&mut self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let damaged = || Error::bad_input("the journal of the interrupted run is damaged; remove it to begin again");
        loop {
            let is_layer = self.finished < self.model.config.layers.len();
            let name = if is_layer { part(self.finished) } else { HEAD.into() };
            let Some(record) = journal.finished(&name)? else { return Ok(()) };
            let record: LayerRecord = serde_json::from_value(record).map_err(|_| damaged())?;
            if record.outputs.len() != self.outputs.len() {
                return Err(damaged());
            }
            let number = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits).collect();
            for Sums { linear, cols, sum2, abs, counts } in record.inputs {
                self.inputs.insert(linear, Input { cols, sum2: number(sum2), abs: number(abs), counts });
            }
            for (output, record) in self.outputs.iter_mut().zip(record.outputs) {
                for i in record.done {
                    *output.done.get_mut(i).ok_or_else(damaged)? = true;
                }
                output.refused.extend(record.refused);
                output.kept += record.kept;
                output.noted = output.kept;
            }
            if !is_layer {
                self.head_finished = true;
                return Ok(());
            }
            self.finished += 1;
        }
    }

    /// Leaves the layers before this one to others.
    pub fn begin_with(&mut self, layer: usize) {
        self.finished = layer;
    }

    /// Layers that an earlier run has finished.
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.head_finished
    }

    /// The matrix that makes the logits, whose input comes after the last layer; models that give vectors have none.
    pub fn head(&mut self, captured: &Captured) -> Result<()> {
        if self.model.config.ending != Ending::Logits {
            return self.note(HEAD, |_| false);
        }
        let name = if self.index.contains_key("output.weight") { "output.weight" } else { "token_embd.weight" };
        self.matrices(&[name.to_string()], captured, &mut [])?;
        self.note(HEAD, |tensor| tensor == name)
    }

    /// Notes a part in the journal, if there is one; `own`: whether a tensor is of this part.
    fn note(&mut self, part: &str, own: impl Fn(&str) -> bool) -> Result<()> {
        let Some(journal) = self.journal.as_mut() else { return Ok(()) };
        let pieces = (self.settle)()?;
        let bits = |x: &[f64]| x.iter().map(|v| v.to_bits()).collect();
        let inputs = self.inputs.iter().filter(|(name, _)| own(name)).map(|(linear, input)| Sums {
            linear: linear.clone(),
            cols: input.cols,
            sum2: bits(&input.sum2),
            abs: bits(&input.abs),
            counts: input.counts.clone(),
        });
        let outputs = self.outputs.iter_mut().map(|output| {
            let kept = output.kept - std::mem::replace(&mut output.noted, output.kept);
            OutputRecord {
                done: (0..output.done.len()).filter(|i| output.done[*i]).collect(),
                refused: output.refused.iter().filter(|r| own(&r.tensor)).cloned().collect(),
                kept,
            }
        });
        let record = LayerRecord { inputs: inputs.collect(), outputs: outputs.collect() };
        let record = serde_json::to_value(record).map_err(|e| Error::Internal(e.to_string()))?;
        journal.finish(part, record, pieces)
    }

    /// Rounds the matrices `names` (of all experts), whose input is `captured`.
    fn matrices(&mut self, names: &[String], captured: &Captured, linears: &mut [&mut Linear]) -> Result<()> {
        let replace = self.settings.sequential && self.outputs.len() == 1;
        let mut replaced: HashMap<&str, Vec<u8>> = HashMap::new();
        let (ckpt, model) = (self.ckpt, self.model);
        let mean = mean_gram(&captured.moments);
        for expert in 0..captured.moments.len() {
            // With the channels as the model has them, and sorted.
            let mut inputs: [Option<InputFactor>; 2] = [None, None];
            for name in names {
                let Some(&index) = self.index.get(name.as_str()) else { continue };
                let tensor = &model.tensors[index];
                let matrix = tensor.rows_per_matrix().max(1);
                let stacked = tensor.row_count() > matrix;
                let all = if stacked { expert * matrix..(expert + 1) * matrix } else { 0..tensor.row_count() };
                for first in all.clone().step_by(ROWS) {
                    self.run.check()?;
                    let rows = first..(first + ROWS).min(all.end);
                    let mut weights = vec![0.0; rows.len() * tensor.cols()];
                    tensor.read_rows(ckpt, rows.clone(), &mut Vec::new(), &mut weights)?;
                    for target in 0..self.outputs.len() {
                        if self.outputs[target].types[model.generated.len() + index].is_plain() {
                            continue;
                        }
                        let sorted = self.outputs[target].sorted.get(&index).cloned();
                        let columns = sorted.as_ref().filter(|(side, _)| *side == Side::Cols);
                        let columns = columns.map(|(_, orders)| orders.of(expert));
                        let input = &mut inputs[usize::from(columns.is_some())];
                        let input = match input {
                            Some(known) => known,
                            none => none.insert(self.input(captured, expert, mean.as_deref(), columns)?),
                        };
                        let part = Part { tensor, index, rows: rows.clone(), expert, stacked, sorted };
                        let bytes = self.rows(target, part, &weights, input)?;
                        if replace {
                            replaced.entry(name).or_default().extend(bytes);
                        }
                    }
                }
            }
        }
        for linear in linears {
            let Some((bytes, &index)) = replaced.remove(linear.name.as_str()).zip(self.index.get(linear.name.as_str()))
            else {
                continue;
            };
            if !bytes.is_empty() {
                let ty = self.outputs[0].types[model.generated.len() + index];
                linear.weight = Box::new(Stored::new(ty, bytes, linear.weight.cols())?);
            }
        }
        Ok(())
    }

    /// Everything about one input that does not depend on the matrix, its channels in the order of `columns`.
    fn input<'c>(
        &self,
        captured: &'c Captured,
        expert: usize,
        mean: Option<&[f32]>,
        columns: Option<&[u32]>,
    ) -> Result<InputFactor> {
        let own = &captured.moments[expert];
        let cols = own.cols;
        let (gram, tokens) = own.leaning(mean);
        let placed = |gram: Cow<'c, [f32]>| match columns {
            Some(order) => sorting::both(&gram, order).into(),
            None => gram,
        };
        let gram = placed(gram);
        let importance = importance(&gram, cols, tokens);
        let factor = Factor::new(&gram, cols, self.settings.shrink, Order::Natural).map_err(|e| e.to_string());
        drop(gram);
        let hessian = factor.and_then(|(factor, _)| Hessian::new(factor).map_err(|e| e.to_string()));
        let gauges = captured.held.iter().filter_map(|set| set.get(expert)).filter(|held| held.tokens > 0);
        let gauges = gauges.map(|held| Gauge::new(&placed((&held.gram).into()), cols)).collect::<Result<_, _>>();
        Ok(InputFactor {
            columns: columns.map(<[u32]>::to_vec),
            importance: importance.iter().any(|v| *v > 0.0).then_some(importance),
            hessian,
            gauges: gauges.unwrap_or_default(),
            stage: self.settings.stage,
            prepared: HashMap::new().into(),
        })
    }

    /// Rounds some rows of a tensor for one target and writes them.
    fn rows(&mut self, target: usize, part: Part, weights: &[f32], input: &InputFactor) -> Result<Vec<u8>> {
        let (ckpt, output_file) = (self.ckpt, &mut self.outputs[target]);
        let (sink, plain) = (output_file.sink, output_file.plain);
        let Part { tensor, index, rows, .. } = &part;
        let (output, cols) = (self.model.generated.len() + index, tensor.cols());
        let ty = output_file.types[output];
        let fault = |e: QuantError| fault(ckpt, tensor, rows, ty, e);
        let whole = || fault(QuantError::NotWholeBlocks { ty, cols, block: ty.block() });
        let row_bytes = ty.row_bytes(cols).ok_or_else(whole)?;
        let search = |weights: &[f32], importance: Option<&[f32]>| -> Result<Vec<u8>> {
            let bytes = by_search(ty, weights, cols, importance).map_err(fault)?;
            quant::check_rows(ty, &bytes).map_err(fault)?;
            Ok(bytes)
        };
        let mut bytes = search(weights, input.natural_importance().as_deref())?;
        let offset = (rows.start * row_bytes) as u64;
        plain.put(output, offset, &bytes)?;
        let mut weights = Cow::Borrowed(weights);
        if let Some(order) = &input.columns {
            weights = sorting::columns(&weights, order).into();
            bytes = search(&weights, input.importance.as_deref())?;
        }
        if ggml::supports(ty) {
            match input.feedback(ty, &weights, &mut bytes) {
                Ok(()) => output_file.kept += usize::from(rows.start.is_multiple_of(tensor.rows_per_matrix().max(1))),
                Err(reason) => {
                    let (tensor, expert) = (tensor.name.clone(), part.stacked.then_some(part.expert));
                    output_file.refused.push(Refused { tensor, expert, reason });
                }
            }
        }
        quant::check_rows(ty, &bytes).map_err(fault)?;
        match &part.sorted {
            Some((Side::Rows, orders)) => {
                let places = orders.places(part.expert);
                for (row, bytes) in rows.clone().zip(bytes.chunks_exact(row_bytes)) {
                    // The second half of a fused matrix is sorted like the first.
                    let channel = row % places.len();
                    let place = row - channel + places[channel] as usize;
                    sink.put(output, (place * row_bytes) as u64, bytes)?;
                }
            }
            _ => sink.put(output, offset, &bytes)?,
        }
        output_file.done[output] = true;
        Ok(bytes)
    }
}

/// Some rows of a tensor.
struct Part<'a> {
    tensor: &'a MappedTensor,
    /// Its place in the model.
    index: usize,
    rows: Range<usize>,
    expert: usize,
    /// Whether the tensor holds several experts.
    stacked: bool,
    sorted: Option<Sorted>,
}

/// What is known of an input.
struct InputFactor {
    /// The order of its channels, where that is not the model's. All else here is in this order.
    columns: Option<Vec<u32>>,
    importance: Option<Vec<f32>>,
    hessian: Result<Hessian, String>,
    /// One for each kind of text that is held out.
    gauges: Vec<Gauge>,
    stage: ggml::Stage,
    prepared: std::cell::RefCell<HashMap<GgmlType, Prepared>>,
}

impl InputFactor {
    /// The importance of channels in the model's order.
    fn natural_importance(&self) -> Option<Cow<'_, [f32]>> {
        let sorted = self.importance.as_ref()?;
        let Some(columns) = &self.columns else { return Some(sorted.into()) };
        let mut natural = vec![0.0; sorted.len()];
        columns.iter().zip(sorted).for_each(|(channel, v)| natural[*channel as usize] = *v);
        Some(natural.into())
    }

    /// Replaces ggml's blocks of `weights` by those with feedback; the reason why not otherwise.
    fn feedback(&self, ty: GgmlType, weights: &[f32], bytes: &mut [u8]) -> Result<(), String> {
        let hessian = self.hessian.as_ref().map_err(String::clone)?;
        let importance = self.importance.as_deref().ok_or("no activation was seen")?;
        let text = |e: QuantError| e.to_string();
        let mut all = self.prepared.borrow_mut();
        let prepared = match all.entry(ty) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Prepared::new(ty, hessian).map_err(text)?),
        };
        let mut better = vec![0; bytes.len()];
        feedback_rows(prepared, weights, importance, self.stage, &mut better).map_err(text)?;
        quant::check_rows(ty, &better).map_err(text)?;
        let verdict = Verdict::new(&self.gauges, ty, weights, &better, bytes).map_err(text)?;
        if !verdict.keep {
            let (feedback, ggml) = verdict.losses.iter().copied().find(|(f, g)| f > g).unwrap_or_default();
            return Err(format!("on held-out text its loss is {:.2} times that of ggml's search", feedback / ggml));
        }
        bytes.copy_from_slice(&better);
        Ok(())
    }
}

impl Visit for Refine<'_, '_> {
    fn inputs(&mut self, captured: &[Captured]) {
        for output in self.outputs.iter_mut().filter(|_| self.settings.sort_channels) {
            let quantized = |i: usize| !output.types[self.model.generated.len() + i].is_plain();
            output.sorted = sorting::sorted(self.model, captured, quantized);
        }
    }

    fn stage(&mut self, _: usize, _: Stage, captured: &[&Captured], mut linears: Vec<&mut Linear>) -> Result<()> {
        for captured in captured {
            for name in &captured.linears {
                self.inputs.insert(name.clone(), statistics(&captured.moments)?);
            }
            self.matrices(&captured.linears, captured, &mut linears)?;
        }
        Ok(())
    }

    fn is_finished(&self, layer: usize) -> bool {
        layer < self.finished
    }

    fn layer_done(&mut self, layer: usize) -> Result<()> {
        if layer >= self.finished {
            let prefix = format!("blk.{layer}.");
            self.note(&part(layer), |tensor| tensor.starts_with(&prefix))?;
        }
        self.run.check()
    }
}

/// The diagonal, as an importance matrix keeps it.
fn statistics(moments: &[Moments]) -> Result<Input> {
    let cols = moments.first().map(|m| m.cols).ok_or_else(|| Error::Internal("an input without moments".into()))?;
    let diagonal = |m: &Moments| (0..cols).map(|i| f64::from(m.gram[i * cols + i])).collect::<Vec<f64>>();
    Ok(Input {
        cols,
        sum2: moments.iter().flat_map(diagonal).collect(),
        abs: moments.iter().flat_map(|m| m.abs.iter().copied()).collect(),
        counts: moments.iter().map(|m| m.tokens).collect(),
    })
}
