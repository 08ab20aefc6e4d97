//! The pass that takes a model apart layer by layer: calibration windows go through one layer after the other, of which
//! only one is in memory, and a visitor sees the second moments of every linear layer's input, early enough to replace
//! the weights before the tokens go on. What the visitor does with them is not known here.

use super::moments::{BATCH, Collector, Moments};
use super::probe::probe;
use super::streams::Streams;
use crate::control::Run;
use crate::infer::{Cache, Engine, Linear, Observer};
use crate::kernel::view::{flat, matrix};
pub use crate::model::graph::Stage;
use crate::model::graph::{self, Part};
use crate::model::{Model, Role};
use crate::source::Checkpoint;
use crate::{Error, Result};
use ndarray::ArrayView2;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

/// Linear layers of one layer that have their input in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Input {
    stage: Stage,
    part: Part,
    cols: usize,
}

impl Input {
    fn of(role: Role, cols: usize) -> Option<Input> {
        let input = &graph::INPUTS[graph::input_of(role)?];
        Some(Input { stage: input.stage, part: input.part, cols })
    }
}

/// What entered some linear layers that have their input in common.
pub struct Captured {
    /// GGUF names of the weights.
    pub linears: Vec<String>,
    /// One, or one per expert.
    pub moments: Vec<Moments>,
    /// The same for each set of held-out windows.
    pub held: Vec<Vec<Moments>>,
}

/// Works on one layer after the other.
pub trait Visit {
    /// `x` is about to enter a linear layer, in a pass that is not sequential; see [`Observer::input`]. `Break` ends the
    /// pass, with the error of the next call of [`Visit::stage`].
    fn entering(&mut self, _linear: &str, _expert: Option<usize>, _x: ArrayView2<f32>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// All inputs of a layer are known, in a pass that is not sequential; its stages follow.
    fn inputs(&mut self, _captured: &[Captured]) {}

    /// The inputs of `stage` of `layer` are known. In a sequential pass, weights that are replaced here are those that
    /// the tokens go on through.
    fn stage(&mut self, layer: usize, stage: Stage, captured: &[&Captured], linears: Vec<&mut Linear>) -> Result<()>;

    /// Whether an earlier run has finished this layer, so that the tokens only pass through it. Not in sequential passes.
    fn is_finished(&self, _layer: usize) -> bool {
        false
    }

    /// The layer is finished with.
    fn layer_done(&mut self, layer: usize) -> Result<()>;
}

/// How the pass is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Later stages see what the replaced weights make of the tokens; otherwise all see the original model.
    pub sequential: bool,
    /// Products inside the layers and the moments are of numbers rounded to bfloat16: twice as fast on some machines.
    pub bf16: bool,
    /// The set of every window whose moments are kept apart, counted from 1; 0, and all windows beyond, are not.
    pub held: Vec<usize>,
    /// Bytes of activations that may stay in memory; beyond, they go to a file in `spill`.
    pub max_memory: Option<u64>,
    pub spill: PathBuf,
}

impl Options {
    /// Loads a layer to multiply as these say.
    fn load(&self, engine: &mut Engine, ckpt: &Checkpoint, model: &Model, layer: usize) -> Result<()> {
        engine.load_layer(ckpt, model, layer)?;
        if self.bf16 {
            engine.layer_linears_mut(layer).for_each(|l| l.multiply_in_bf16(true));
        }
        Ok(())
    }
}

/// Some layers of a pass whose tokens have been taken up to them before.
pub struct Stretch<'a> {
    pub layers: Range<usize>,
    /// What enters the first of the layers, of each window; not asked for the model's first.
    pub entering: &'a mut dyn FnMut(usize) -> Result<Vec<f32>>,
}

/// Runs `windows` through the layers of `model`. `run` advances by the tokens of a window per layer. Returns the
/// moments of the output matrix's input, taken after the last layer.
///
/// Errors: `BadInput` for activations that are not finite, those of loading, of the visitor and of the disk.
pub fn run(
    ckpt: &Checkpoint,
    model: &Model,
    windows: &[Vec<u32>],
    options: &Options,
    visit: &mut dyn Visit,
    run: Run,
) -> Result<Captured> {
    let mut entering = |_| Err(Error::Internal("a pass begins with the first layer".into()));
    let all = Stretch { layers: 0..model.config.layers.len(), entering: &mut entering };
    let head = run_stretch(ckpt, model, windows, options, all, visit, run)?;
    head.ok_or_else(|| Error::bad_input("there are no calibration windows"))
}

/// The same for some layers; `None` where the last is not among them.
///
/// # Errors
/// As [`run`]; those of [`Stretch::entering`].
pub fn run_stretch(
    ckpt: &Checkpoint,
    model: &Model,
    windows: &[Vec<u32>],
    options: &Options,
    stretch: Stretch,
    visit: &mut dyn Visit,
    run: Run,
) -> Result<Option<Captured>> {
    let Stretch { layers, entering } = stretch;
    let mut engine = Engine::shell(ckpt, model)?;
    if layers.start == 0 && !visit.is_finished(0) {
        probe(&mut engine, ckpt, model, windows, run)?;
    }
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let mut cache = Cache::one_batch(longest);
    let width = model.config.hidden;
    let mut streams = Streams::new(windows, model.config.stream(), options.max_memory, &options.spill)?;
    let mut inner = Inner::new(windows.len(), options);
    for (i, window) in windows.iter().enumerate() {
        streams.put(i, if layers.start == 0 { engine.embed(window)? } else { entering(i)? })?;
    }
    engine.unload_ends();
    for layer in layers.clone() {
        options.load(&mut engine, ckpt, model, layer)?;
        let inputs = inputs(model, layer);
        let experts = model.config.layers[layer].ffn.experts.as_ref().map_or(1, |e| e.count.max(1));
        let pass = Pass { layer, inputs: &inputs, experts, options, windows, run };
        if visit.is_finished(layer) {
            pass.forward(&engine, &mut streams, &mut cache)?;
        } else if options.sequential {
            for stage in Stage::ALL {
                let captured = pass.collect(&engine, &mut streams, &mut inner, &mut cache, Some(stage), visit)?;
                pass.visit(&mut engine, visit, stage, &captured)?;
            }
            pass.finish(&engine, &mut streams, &mut inner, &mut cache)?;
        } else {
            let captured = pass.collect(&engine, &mut streams, &mut inner, &mut cache, None, visit)?;
            visit.inputs(&captured);
            for stage in Stage::ALL {
                pass.visit(&mut engine, visit, stage, &captured)?;
            }
        }
        visit.layer_done(layer)?;
        engine.unload_layer(layer);
        run.advance(windows.iter().map(|w| w.len() as u64).sum());
    }
    if layers.end < model.config.layers.len() {
        return Ok(None);
    }
    let head = BTreeMap::from([("output".to_string(), Input { stage: Stage::Down, part: Part::Dense, cols: width })]);
    let mut seen = Collecting::new(&head, None);
    for i in 0..windows.len() {
        let x = streams.get(i)?;
        seen.set = options.held.get(i).copied().unwrap_or(0);
        let _ = seen.input("output", None, matrix(&engine.head_input(&engine.channels(&x)), width));
        seen.check()?;
    }
    Ok(seen.finish().pop())
}

/// Takes `windows` through the first layers of `model` as [`run`] does that is not sequential. What enters each layer of `cuts`,
/// which rise, goes to `keep` window by window.
///
/// # Errors
/// Those of loading, of the engine, of the disk and of `keep`.
pub fn forward(
    ckpt: &Checkpoint,
    model: &Model,
    windows: &[Vec<u32>],
    options: &Options,
    cuts: &[usize],
    keep: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    run: Run,
) -> Result<()> {
    let Some(last) = cuts.last().copied() else { return Ok(()) };
    let mut engine = Engine::shell(ckpt, model)?;
    let mut cache = Cache::one_batch(windows.iter().map(Vec::len).max().unwrap_or(0));
    let mut streams = Streams::new(windows, model.config.stream(), options.max_memory, &options.spill)?;
    for (i, window) in windows.iter().enumerate() {
        streams.put(i, engine.embed(window)?)?;
    }
    engine.unload_ends();
    let inputs = BTreeMap::new();
    for layer in 0..=last {
        if cuts.contains(&layer) {
            for i in 0..windows.len() {
                let x = streams.get(i)?;
                keep(layer, &x)?;
                streams.keep(i, x);
            }
        }
        if layer == last {
            break;
        }
        options.load(&mut engine, ckpt, model, layer)?;
        let pass = Pass { layer, inputs: &inputs, experts: 1, options, windows, run };
        pass.forward(&engine, &mut streams, &mut cache)?;
        engine.unload_layer(layer);
        run.advance(windows.iter().map(|w| w.len() as u64).sum());
    }
    Ok(())
}

/// The linear layers of `layer`, those with a common input together, with the input's channels.
pub(super) fn shared_inputs(model: &Model, layer: usize) -> Vec<(Vec<String>, usize)> {
    let mut groups: BTreeMap<Input, Vec<String>> = BTreeMap::new();
    for (name, input) in inputs(model, layer) {
        groups.entry(input).or_default().push(name);
    }
    groups.into_iter().map(|(input, names)| (names, input.cols)).collect()
}

/// The input of every linear layer of `layer`, by GGUF name.
fn inputs(model: &Model, layer: usize) -> BTreeMap<String, Input> {
    let tensors = model.tensors.iter().filter(|t| t.layer == Some(layer));
    tensors.filter_map(|t| Some((t.name.clone(), Input::of(t.role, t.cols())?))).collect()
}

/// One layer of the pass.
struct Pass<'a> {
    layer: usize,
    inputs: &'a BTreeMap<String, Input>,
    /// Matrices that a stacked tensor holds.
    experts: usize,
    options: &'a Options,
    windows: &'a [Vec<u32>],
    run: Run<'a>,
}

impl Pass<'_> {
    /// Runs the windows as far as the moments of one stage ask for, or all of them through the whole layer. With
    /// [`Stage::GateUp`] the windows are moved on behind the attention.
    fn collect(
        &self,
        engine: &Engine,
        streams: &mut Streams,
        inner: &mut Inner,
        cache: &mut Cache,
        only: Option<Stage>,
        visit: &mut dyn Visit,
    ) -> Result<Vec<Captured>> {
        let mut seen = Collecting::new(self.inputs, only);
        seen.bf16 = self.options.bf16;
        // Rows wait per expert, so of many experts each may have fewer.
        seen.expert_batch = (2 * BATCH / self.experts).clamp(128, BATCH);
        for i in 0..self.windows.len() {
            self.run.check()?;
            let mut x = streams.get(i)?;
            seen.set = self.options.held.get(i).copied().unwrap_or(0);
            cache.truncate(0);
            match only {
                None => {
                    let mut both = Both { seen: &mut seen, visit };
                    let _ = engine.layer(self.layer, &mut x, cache, &mut both)?;
                    streams.put(i, x)?;
                }
                // Halves that lie side by side are run together, once for each stage.
                Some(_) if !engine.has_halves(self.layer) => {
                    seen.stop = matches!(only, Some(Stage::Qkv | Stage::AttnOutput));
                    let mut through = x.clone();
                    let _ = engine.layer(self.layer, &mut through, cache, &mut seen)?;
                    seen.last = None;
                    streams.keep(i, x);
                }
                Some(Stage::Qkv | Stage::AttnOutput) => {
                    seen.stop = true;
                    let _ = engine.attention(self.layer, &mut x, cache, &mut seen)?;
                    streams.keep(i, x);
                }
                Some(stage) => {
                    if stage == Stage::GateUp {
                        match inner.take(i) {
                            Some(attended) => engine.attention_end(self.layer, &attended, &mut x, cache)?,
                            None => {
                                let _ = engine.attention(self.layer, &mut x, cache, &mut ())?;
                            }
                        }
                        streams.put(i, x)?;
                        x = streams.get(i)?;
                    }
                    seen.stop = true;
                    let _ = engine.feed_forward(self.layer, &mut x, cache, &mut seen)?;
                    streams.keep(i, x);
                }
            }
            inner.put(i, seen.last.take());
            seen.check()?;
        }
        Ok(seen.finish())
    }

    /// Takes the windows through the whole layer.
    fn forward(&self, engine: &Engine, streams: &mut Streams, cache: &mut Cache) -> Result<()> {
        for i in 0..self.windows.len() {
            self.run.check()?;
            let mut x = streams.get(i)?;
            cache.truncate(0);
            let _ = engine.layer(self.layer, &mut x, cache, &mut ())?;
            streams.put(i, x)?;
        }
        Ok(())
    }

    /// Takes the windows through the feed-forward half.
    fn finish(&self, engine: &Engine, streams: &mut Streams, inner: &mut Inner, cache: &mut Cache) -> Result<()> {
        if !engine.has_halves(self.layer) {
            return self.forward(engine, streams, cache);
        }
        for i in 0..self.windows.len() {
            self.run.check()?;
            let mut x = streams.get(i)?;
            match inner.take(i) {
                Some(activated) => engine.feed_forward_end(self.layer, &activated, &mut x, cache)?,
                None => {
                    let _ = engine.feed_forward(self.layer, &mut x, cache, &mut ())?;
                }
            }
            streams.put(i, x)?;
        }
        Ok(())
    }

    /// Shows the visitor what was captured for one stage.
    fn visit(&self, engine: &mut Engine, visit: &mut dyn Visit, stage: Stage, captured: &[Captured]) -> Result<()> {
        let is_mine = |name: &String| self.inputs.get(name).is_some_and(|input| input.stage == stage);
        let mine: Vec<&Captured> = captured.iter().filter(|c| c.linears.first().is_some_and(is_mine)).collect();
        let linears = engine.layer_linears_mut(self.layer).filter(|l| is_mine(&l.name)).collect();
        visit.stage(self.layer, stage, &mine, linears)
    }
}

/// Sums up what enters the linear layers of the stage wanted, or of all.
struct Collecting<'a> {
    inputs: &'a BTreeMap<String, Input>,
    only: Option<Stage>,
    /// End each run once the inputs of the stage are seen.
    stop: bool,
    set: usize,
    /// Tokens that are multiplied together where there are experts.
    expert_batch: usize,
    bf16: bool,
    groups: BTreeMap<Input, Group>,
    /// What entered the last matrix of attention or of a dense feed-forward block, where the run ended there.
    last: Option<Vec<f32>>,
    fault: Option<Error>,
}

/// What has been seen of one input.
struct Group {
    /// The linear layer whose input is summed; the others are given the same.
    leader: String,
    /// Per set of windows and expert, of which a dense layer has one.
    sums: Vec<Vec<Collector>>,
}

impl<'a> Collecting<'a> {
    fn new(inputs: &'a BTreeMap<String, Input>, only: Option<Stage>) -> Self {
        let (groups, last) = (BTreeMap::new(), None);
        Collecting { inputs, only, stop: false, set: 0, expert_batch: BATCH, bf16: false, groups, last, fault: None }
    }

    fn check(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn finish(self) -> Vec<Captured> {
        let inputs = self.inputs;
        let captured = self.groups.into_iter().map(|(input, group)| {
            let linears = inputs.iter().filter(|(_, i)| **i == input).map(|(name, _)| name.clone()).collect();
            let sets = group.sums.into_iter().map(|set| set.into_iter().map(Collector::finish).collect());
            let mut held: Vec<Vec<Moments>> = sets.collect();
            let moments = if held.is_empty() { Vec::new() } else { held.remove(0) };
            Captured { linears, moments, held }
        });
        captured.collect()
    }
}

impl Observer for Collecting<'_> {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        let wanted = self.inputs.get(linear).filter(|input| self.only.is_none_or(|only| input.stage == only));
        let Some(input) = wanted else { return ControlFlow::Continue(()) };
        let new = || Group { leader: linear.to_string(), sums: Vec::new() };
        let group = self.groups.entry(*input).or_insert_with(new);
        if group.leader != linear {
            return ControlFlow::Continue(());
        }
        let (expert, batch) = (expert.unwrap_or(0), if expert.is_some() { self.expert_batch } else { BATCH });
        if group.sums.len() <= self.set {
            group.sums.resize_with(self.set + 1, Vec::new);
        }
        let set = &mut group.sums[self.set];
        if set.len() <= expert {
            set.resize_with(expert + 1, || Collector::new(input.cols, batch, self.bf16));
        }
        let sums = &mut set[expert];
        let x = flat(x);
        if let Some(channel) = sums.add(&x) {
            self.fault.get_or_insert_with(|| super::stats::not_finite(linear, channel));
            return ControlFlow::Break(());
        }
        if !self.stop {
            return ControlFlow::Continue(());
        }
        if input.part == Part::Dense && matches!(input.stage, Stage::AttnOutput | Stage::Down) {
            self.last = Some(x.into_owned());
        }
        ControlFlow::Break(())
    }
}

/// Bytes of [`Inner`] at most.
const KEPT: usize = 2 << 30;

/// What entered the last matrix of a half layer, window by window, so that the run goes on from there once that matrix is
/// replaced. Windows beyond the limit are run through the half layer again, with the same result.
struct Inner {
    slots: Vec<Option<Vec<f32>>>,
    /// Bytes left.
    room: usize,
}

impl Inner {
    fn new(windows: usize, options: &Options) -> Self {
        let room = if options.max_memory.is_some() { 0 } else { KEPT };
        Inner { slots: vec![None; windows], room }
    }

    fn put(&mut self, window: usize, x: Option<Vec<f32>>) {
        let Some(x) = x.filter(|x| size_of_val(&x[..]) <= self.room) else { return };
        self.room -= size_of_val(&x[..]);
        self.slots[window] = Some(x);
    }

    fn take(&mut self, window: usize) -> Option<Vec<f32>> {
        let x = self.slots[window].take()?;
        self.room += size_of_val(&x[..]);
        Some(x)
    }
}

/// Shows a visitor what is summed up.
struct Both<'a, 'b> {
    seen: &'a mut Collecting<'b>,
    visit: &'a mut dyn Visit,
}

impl Observer for Both<'_, '_> {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        self.visit.entering(linear, expert, x)?;
        self.seen.input(linear, expert, x)
    }
}
