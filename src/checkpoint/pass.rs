//! The forward pass that calibrated methods ride on: layer after layer, all windows through one layer before the next.
//! A layer's linear layers come in stages that feed each other; when the passes are sequential, the inputs of a stage are
//! seen behind the already quantized stages before it. It gathers second moments and rounds nothing.

use super::job::{Job, part};
use crate::infer::{Cache, Engine, Observer};
use crate::kernel::{Dense, Output, matmul};
use crate::model::Role;
use crate::model::modules::Module;
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;

/// What went into one linear layer (or one expert's): sums over tokens.
pub struct Inputs {
    pub cols: usize,
    /// `[cols, cols]`, `Σ x xᵀ`.
    pub gram: Vec<f32>,
    /// Largest magnitude.
    pub max: f32,
    pub tokens: u64,
}

/// By input class and expert.
pub type Captured = HashMap<(u8, Option<usize>), Inputs>;

/// Which modules of a layer read the same activations.
pub fn class(role: Role) -> Option<u8> {
    use Role::*;
    Some(match role {
        AttnQ | AttnK | AttnV | AttnQkv => 0,
        AttnOutput => 1,
        FfnGate | FfnUp | FfnGateUp => 2,
        FfnDown => 3,
        ExpertGate | ExpertUp => 4,
        SharedGate | SharedUp => 5,
        ExpertDown => 6,
        SharedDown => 7,
        _ => return None,
    })
}

/// The classes of each stage, in the order in which they feed each other.
pub const STAGES: [&[u8]; 4] = [&[0], &[1], &[2, 4, 5], &[3, 6, 7]];

/// What the pass does at each stage of a layer.
pub trait Visit {
    /// The inputs of the modules of these classes are known. May replace weights of the engine.
    fn stage(&mut self, layer: usize, classes: &[u8], captured: &Captured, engine: &mut Engine) -> Result<()>;
    /// All stages of the layer are done.
    fn layer_done(&mut self, layer: usize) -> Result<()>;
    /// The layer was finished by an earlier run: puts its weights into the engine.
    fn restore(&mut self, layer: usize, engine: &mut Engine) -> Result<()>;
}

/// Runs `windows` through the model. Layers that an earlier run finished are restored, not visited.
///
/// # Errors
/// Those of the engine and of `visit`; `Interrupted`.
pub fn run(
    job: &Job,
    engine: &mut Engine,
    windows: &[Vec<u32>],
    sequential: bool,
    visit: &mut dyn Visit,
) -> Result<()> {
    let mut streams: Vec<Vec<f32>> = windows.iter().map(|w| engine.embed(w)).collect::<Result<_>>()?;
    for layer in 0..engine.config.layers {
        if job.folder.finished(&part(Some(layer))).is_some() {
            if sequential {
                visit.restore(layer, engine)?;
            }
            advance(job, engine, layer, windows, &mut streams)?;
            visit.layer_done(layer)?;
            continue;
        }
        let observed = Observed::new(&job.planned.contents.modules, layer);
        if sequential {
            for classes in STAGES.iter().filter(|classes| observed.has(classes)) {
                let captured = observed.capture(job, engine, layer, classes, windows, &streams)?;
                visit.stage(layer, classes, &captured, engine)?;
            }
            advance(job, engine, layer, windows, &mut streams)?;
        } else {
            let all = STAGES.concat();
            let captured = observed.capture(job, engine, layer, &all, windows, &streams)?;
            advance(job, engine, layer, windows, &mut streams)?;
            visit.stage(layer, &all, &captured, engine)?;
        }
        visit.layer_done(layer)?;
    }
    Ok(())
}

/// Takes every window through the layer.
fn advance(job: &Job, engine: &Engine, layer: usize, windows: &[Vec<u32>], streams: &mut [Vec<f32>]) -> Result<()> {
    for (x, window) in streams.iter_mut().zip(windows) {
        job.control.check()?;
        engine.layer(layer, x, &mut engine.cache(window.len()), &mut ())?;
    }
    Ok(())
}

/// The one module of each class whose inputs stand for the class.
struct Observed {
    /// By GGUF name: the class, and the columns.
    classes: HashMap<String, (u8, usize)>,
}

impl Observed {
    fn new(modules: &[Module], layer: usize) -> Self {
        let mut first: HashMap<u8, (String, usize)> = HashMap::new();
        for m in modules.iter().filter(|m| m.layer == Some(layer)) {
            if let Some(class) = class(m.role) {
                first.entry(class).or_insert_with(|| (m.gguf.clone(), m.cols));
            }
        }
        Self { classes: first.into_iter().map(|(class, (name, cols))| (name, (class, cols))).collect() }
    }

    fn has(&self, classes: &[u8]) -> bool {
        self.classes.values().any(|(c, _)| classes.contains(c))
    }

    fn capture(
        &self,
        job: &Job,
        engine: &Engine,
        layer: usize,
        classes: &[u8],
        windows: &[Vec<u32>],
        streams: &[Vec<f32>],
    ) -> Result<Captured> {
        let mut gather = Gather { observed: self, wanted: classes, captured: Captured::new() };
        for (x, window) in streams.iter().zip(windows) {
            job.control.check()?;
            let mut x = x.clone();
            engine.layer(layer, &mut x, &mut engine.cache(window.len()), &mut gather)?;
        }
        match gather.captured.is_empty() {
            true => Err(Error::Internal(format!("layer {layer} was run, but showed no input"))),
            false => Ok(gather.captured),
        }
    }
}

struct Gather<'a> {
    observed: &'a Observed,
    wanted: &'a [u8],
    captured: Captured,
}

impl Observer for Gather<'_> {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) {
        let known = self.observed.classes.get(linear).filter(|(class, _)| self.wanted.contains(class));
        if let Some((class, cols)) = known {
            let inputs = self.captured.entry((*class, expert)).or_insert_with(|| Inputs::new(*cols));
            inputs.add(x);
        }
    }
}

impl Inputs {
    pub fn new(cols: usize) -> Self {
        Inputs { cols, gram: vec![0.0; cols * cols], max: 0.0, tokens: 0 }
    }

    /// Adds the rows of `x`. One product per call, so the order of additions does not depend on threads.
    fn add(&mut self, x: &[f32]) {
        let (cols, tokens) = (self.cols, x.len() / self.cols);
        if tokens == 0 {
            return;
        }
        let transposed = crate::formats::transpose(x, tokens, cols);
        let mut product = vec![0.0; cols * cols];
        let rows = Dense { data: transposed.clone(), cols: tokens };
        matmul(&transposed, &rows, 0..cols, Output::whole(&mut product, cols));
        self.gram.par_iter_mut().zip(&product).for_each(|(sum, p)| *sum += p);
        self.max = x.iter().fold(self.max, |max, v| max.max(v.abs()));
        self.tokens += tokens as u64;
    }
}
