//! Tuning what is continuous in a finished artifact: codes stay, and scales (biases, norms) take steps down the mean KL
//! divergence of its next-token probabilities from the source's, on calibration windows. After mlx-lm's DWQ (distilled
//! weight quantization), which does so for MLX; see docs/credits.md. Windows that had no part in it say which of the
//! states on the way is the best, the first among them.
//!
//! The source runs once, a layer at a time; of it what left the last layer is kept. The artifact is in memory as it is
//! packed, with one window's inputs of all layers, and the inside of one layer.

mod parameters;

use super::cost::{self, Cost, Pass};
use super::judge::{self, OpenModel, Scored};
use crate::control::{Run, Unit};
use crate::eval::bootstrap::Rng;
use crate::eval::softmax::{kl_gradients, kl_of_rows};
use crate::infer::{Cache, Engine, Gradients};
use crate::model::Model;
use crate::packed::{Spec, Tunable};
use crate::{Error, Result};
pub use parameters::Norm;
use parameters::{NormParameters, Parameters};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// Tokens of a step, at least; a step takes whole windows.
const TOKENS: usize = 1024;
/// How far the first steps move, in units of a group's own scale; the rate falls to 0 along half a cosine.
const RATE: f32 = 2e-3;
/// How often held-out windows are asked, and how many times in a row they may say worse.
const ASKED: usize = 10;
const PATIENCE: usize = 3;
/// Rows of logits in memory at once.
const LOGITS: usize = 256;

/// Seconds of one core per multiplication with addition, as in [`Pass::Check`], and bytes that are kept for every group.
const PRODUCT: f64 = 2.5e-11;
const GROUP: u64 = 64;

/// What is tuned on.
pub struct Tuning<'a> {
    /// What the artifact was made of.
    pub source: OpenModel<'a>,
    /// Windows to take steps on.
    pub seen: &'a [Vec<u32>],
    /// Windows that had no part in the calibration, to judge by.
    pub held: &'a [Vec<u32>],
    pub steps: usize,
}

/// What is tuned of an artifact.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Matrices by the GGUF names of their linear layers, rows in the engine's order.
    pub matrices: Vec<(String, Tunable)>,
    pub norms: Vec<Norm>,
}

/// What tuning did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Steps that were asked for, and that which gave what was kept; 0: nothing was better than the beginning.
    pub steps: usize,
    pub kept: usize,
    /// Tokens that the steps took, with repetition.
    pub tokens: usize,
    /// Held-out tokens, and the mean KL divergence there before and after, in nats per token.
    pub held_out_tokens: usize,
    pub before: f64,
    pub after: f64,
}

/// What so many steps take on windows of `window` tokens, where a folder of `spec` has (`weights`, bits per weight): the processor
/// by products like those of a check, of which a token takes four where it takes one there (forward, forward again, back,
/// weights), and memory for the folder, and for what is known of every group of its weights.
pub fn cost(model: &Model, (weights, bits): (u64, f64), spec: &Spec, steps: usize, window: usize) -> Cost {
    let tokens = steps * TOKENS.next_multiple_of(window.clamp(1, TOKENS));
    let c = &model.config;
    let products = cost::of(model, Pass::Check, tokens as u64, 1).cpu_seconds;
    let head = (tokens * c.vocab * c.hidden) as f64 * PRODUCT;
    let groups = weights / spec.group_of(c.hidden) as u64;
    let window = (window * (c.layers.len() + 8) * c.hidden + 2 * LOGITS * c.vocab) as u64;
    Cost {
        calibration_tokens: tokens as u64,
        cpu_seconds: 4.0 * (products + head),
        peak_memory: (weights as f64 * bits / 8.0) as u64
            + GROUP * groups
            + 4 * window
            + 2 * (c.vocab * c.hidden) as u64,
    }
}

/// Tunes `subject`, which are parts of `artifact`; gives it back, all in the same order, as the state with the least loss on
/// held-out windows has it.
///
/// # Errors
/// `Unsupported` for parts of a model that no gradient is taken through; `BadInput` for logits that are not finite; those of
/// loading; `Interrupted`.
pub fn run(artifact: &mut Engine, subject: Subject, tuning: &Tuning, run: Run) -> Result<(Subject, Tuned)> {
    let Tuning { source, seen, held, steps } = *tuning;
    let layers = source.model.config.layers.len();
    (0..layers).try_for_each(|layer| artifact.check_layer_reversible(layer))?;
    let order = order(seen, steps);
    let used: Vec<usize> = order.iter().flatten().copied().collect::<BTreeSet<usize>>().into_iter().collect();
    let windows: Vec<&[u32]> = used.iter().map(|i| &seen[*i]).chain(held).map(Vec::as_slice).collect();
    let tokens: usize = windows.iter().map(|w| w.len()).sum();
    let results = {
        let _phase = run.phase("running the source", (tokens * layers) as u64, Unit::TokensByLayer(layers as u64));
        judge::results(&source, &windows, Scored::All, run)?
    };
    let (of_seen, of_held) = results.split_at(used.len());
    let known: HashMap<usize, &[f32]> = used.into_iter().zip(of_seen.iter().map(Vec::as_slice)).collect();
    let source = judge::head(&source)?;
    if source.config.vocab != artifact.config.vocab {
        return Err(Error::Internal("source and artifact have vocabularies of other sizes".into()));
    }
    let mut state = State { cache: Cache::one_batch(longest(seen, held)), source, logits: Default::default(), run };
    let mut parameters = All::new(subject);
    parameters.place(artifact);
    let held_tokens: usize = held.iter().map(Vec::len).sum();
    let every = steps.div_ceil(ASKED);
    let step_tokens: usize = order.iter().flatten().map(|i| seen[*i].len()).sum();
    // A step takes about four times what asking does.
    let total = 4 * step_tokens + (1 + steps.div_ceil(every)) * held_tokens;
    let _phase = run.phase("tuning", total as u64 / 4, Unit::Tokens);
    let held: Vec<(&[u32], &[f32])> = held.iter().map(Vec::as_slice).zip(of_held.iter().map(Vec::as_slice)).collect();
    let before = state.loss(artifact, &held)?;
    let mut best = (before, 0, parameters.now());
    let (mut taken, mut worse) = (0, 0);
    for (step, windows) in order.iter().enumerate() {
        let tokens: usize = windows.iter().map(|i| seen[*i].len()).sum();
        for i in windows {
            let of_source = known.get(i).copied().unwrap_or_default();
            state.add_gradients(artifact, &seen[*i], of_source, 1.0 / tokens as f32, &mut parameters)?;
        }
        taken += tokens;
        let left = 0.5 * (1.0 + (std::f32::consts::PI * step as f32 / steps as f32).cos());
        parameters.step(RATE * left, step as i32 + 1);
        parameters.place(artifact);
        if (step + 1).is_multiple_of(every) || step + 1 == steps {
            let loss = state.loss(artifact, &held)?;
            worse = if loss < best.0 { 0 } else { worse + 1 };
            if loss < best.0 {
                best = (loss, step + 1, parameters.now());
            }
            if worse == PATIENCE {
                break;
            }
        }
    }
    let (after, kept, subject) = best;
    let tuned = Tuned { steps, kept, tokens: taken, held_out_tokens: held_tokens, before, after };
    Ok((subject, tuned))
}

fn longest(seen: &[Vec<u32>], held: &[Vec<u32>]) -> usize {
    seen.iter().chain(held).map(Vec::len).max().unwrap_or(0)
}

/// The windows of every step: all of them in a random order, then all again in another.
fn order(seen: &[Vec<u32>], steps: usize) -> Vec<Vec<usize>> {
    let mut rng = Rng::new(0);
    let mut left = Vec::new();
    let mut next = || {
        if left.is_empty() {
            left = (0..seen.len()).collect::<Vec<usize>>();
            for i in (1..left.len()).rev() {
                left.swap(i, rng.below(i + 1));
            }
        }
        left.pop()
    };
    let mut step = || {
        let (mut windows, mut tokens) = (Vec::new(), 0);
        while tokens < TOKENS && windows.len() < seen.len() {
            let Some(window) = next() else { break };
            tokens += seen[window].len();
            windows.push(window);
        }
        windows
    };
    (0..steps).map(|_| step()).collect()
}

/// Everything that is tuned.
struct All {
    matrices: Vec<Parameters>,
    norms: Vec<NormParameters>,
    /// Places among both, by name.
    matrix: HashMap<String, usize>,
    norm: HashMap<String, usize>,
}

impl All {
    fn new(subject: Subject) -> Self {
        let Subject { matrices, norms } = subject;
        let matrices: Vec<_> = matrices.into_iter().map(|(name, matrix)| Parameters::new(name, matrix)).collect();
        let norms: Vec<_> = norms.into_iter().map(NormParameters::new).collect();
        let matrix = matrices.iter().enumerate().map(|(i, one)| (one.name.clone(), i)).collect();
        let norm = norms.iter().enumerate().map(|(i, one)| (one.now().name.clone(), i)).collect();
        All { matrices, norms, matrix, norm }
    }

    fn now(&self) -> Subject {
        Subject {
            matrices: self.matrices.iter().map(|one| (one.name.clone(), one.now().clone())).collect(),
            norms: self.norms.iter().map(|one| one.now().clone()).collect(),
        }
    }

    fn step(&mut self, rate: f32, count: i32) {
        self.matrices.iter_mut().for_each(|one| one.step(rate, count));
        self.norms.iter_mut().for_each(|one| one.step(rate, count));
    }

    /// Puts everything as it is now into its place in the engine.
    fn place(&self, engine: &mut Engine) {
        for linear in engine.linears_mut() {
            if let Some(i) = self.matrix.get(&linear.name) {
                linear.weight = Box::new(self.matrices[*i].now().clone());
            }
        }
        for (name, weights) in engine.norms_mut() {
            if let Some(i) = self.norm.get(name) {
                self.norms[*i].place(weights);
            }
        }
    }
}

impl Gradients for All {
    fn linear(&mut self, linear: &str, x: &[f32], dy: &[f32]) {
        if let Some(i) = self.matrix.get(linear) {
            self.matrices[*i].add(x, dy);
        }
    }

    fn lookup(&mut self, embedding: &str, tokens: &[u32], dy: &[f32]) {
        if let Some(i) = self.matrix.get(embedding) {
            self.matrices[*i].add_rows(tokens, dy);
        }
    }

    fn norm(&mut self, norm: &str, dw: &[f32]) {
        if let Some(i) = self.norm.get(norm) {
            self.norms[*i].add(dw);
        }
    }
}

/// Working memory, and the head of the source.
struct State<'a> {
    cache: Cache,
    source: Engine,
    /// Of source and artifact.
    logits: (Vec<f32>, Vec<f32>),
    run: Run<'a>,
}

impl State<'_> {
    /// Takes one window forward; what entered every layer, and what left the last.
    fn forward(&mut self, engine: &Engine, window: &[u32], keep: bool) -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
        let (mut entered, mut x) = (Vec::new(), engine.embed(window)?);
        for layer in 0..engine.config.layers.len() {
            self.run.check()?;
            if keep {
                entered.push(x.clone());
            }
            judge::step(engine, layer, &mut x, 1, &mut self.cache, &mut ())?;
        }
        Ok((entered, x))
    }

    /// The mean divergence over windows, each with what left the last layer of the source.
    fn loss(&mut self, engine: &Engine, windows: &[(&[u32], &[f32])]) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        let (hidden, vocab) = (engine.config.hidden, engine.config.vocab);
        for (window, of_source) in windows {
            let (_, x) = self.forward(engine, window, false)?;
            for (x, of_source) in x.chunks(LOGITS * hidden).zip(of_source.chunks(LOGITS * hidden)) {
                self.source.head_into(of_source, &mut self.logits.0, &mut ());
                engine.head_into(x, &mut self.logits.1, &mut ());
                sum += kl_of_rows(&self.logits.0, &self.logits.1, vocab).iter().sum::<f64>();
            }
            tokens += window.len();
            self.run.advance(window.len() as u64 / 4);
        }
        finite(sum / tokens.max(1) as f64)
    }

    /// Adds `factor` times the gradient of the divergence, summed over the tokens of a window.
    fn add_gradients(
        &mut self,
        engine: &Engine,
        window: &[u32],
        of_source: &[f32],
        factor: f32,
        parameters: &mut dyn Gradients,
    ) -> Result<f64> {
        let (mut entered, x) = self.forward(engine, window, true)?;
        let (hidden, vocab) = (engine.config.hidden, engine.config.vocab);
        let (mut sum, mut dx) = (0.0, Vec::with_capacity(x.len()));
        for (x, of_source) in x.chunks(LOGITS * hidden).zip(of_source.chunks(LOGITS * hidden)) {
            let (base, logits) = &mut self.logits;
            self.source.head_into(of_source, base, &mut ());
            engine.head_into(x, logits, &mut ());
            sum += kl_gradients(base, logits, vocab, factor).iter().sum::<f64>();
            dx.extend(engine.reverse_head(x, logits, base, parameters));
        }
        finite(sum)?;
        while let Some(x) = entered.pop() {
            self.run.check()?;
            dx = engine.reverse_layer(entered.len(), &x, dx, &mut self.cache, parameters)?;
        }
        engine.reverse_embedding(window, dx, parameters);
        self.run.advance(window.len() as u64);
        Ok(sum)
    }
}

fn finite(loss: f64) -> Result<f64> {
    match loss.is_finite() {
        true => Ok(loss),
        false => Err(Error::bad_input("the logits of the model that is tuned are not finite")),
    }
}

#[cfg(test)]
mod tests;
