//! The pass of an importance matrix: calibration windows go through one layer after the other, of which only one is in
//! memory, what the linear layers see is summed up, and an interrupted pass is taken up again where it was. With second
//! moments, and weights that are replaced on the way, see [`super::layerwise`].

use super::probe::probe;
use super::resume::{self, Key, Position, Progress, Saved};
use super::stats::Statistics;
use super::streams::Streams;
use super::totals::Totals;
use crate::control::Run;
use crate::infer::{Cache, Engine, Observer};
use crate::kernel::view::matrix;
use crate::model::Model;
use crate::source::Checkpoint;
use crate::{Error, Result};
use ndarray::ArrayView2;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// How the pass is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Collect what enters the output matrix too.
    pub head: bool,
    /// Weights are not looked at before: another pass over the same model does that.
    pub unprobed: bool,
    /// Bytes of activations that may stay in memory; beyond, they go to a file in `spill`.
    pub max_memory: Option<u64>,
    pub spill: PathBuf,
}

pub struct Pass<'a> {
    ckpt: &'a Checkpoint,
    model: &'a Model,
    windows: &'a [Vec<u32>],
    options: &'a Options,
    engine: Engine,
    streams: Streams,
    statistics: Statistics,
    at: Position,
}

impl<'a> Pass<'a> {
    /// At the beginning, behind `probe` where that is wanted.
    ///
    /// Errors: those of `probe`, of loading and of the disk.
    pub fn new(
        ckpt: &'a Checkpoint,
        model: &'a Model,
        windows: &'a [Vec<u32>],
        options: &'a Options,
        run: Run,
    ) -> Result<Self> {
        let mut pass = Self::blank(ckpt, model, windows, options)?;
        if !options.unprobed {
            probe(&mut pass.engine, ckpt, model, windows, run)?;
        }
        for (i, window) in windows.iter().enumerate() {
            pass.streams.put(i, pass.engine.embed(window)?)?;
        }
        pass.engine.unload_ends();
        Ok(pass)
    }

    /// Where another was that has been saved.
    ///
    /// Errors: `BadInput` when it was of another model or of other windows; those of loading and of the disk.
    pub fn resumed(
        ckpt: &'a Checkpoint,
        model: &'a Model,
        windows: &'a [Vec<u32>],
        options: &'a Options,
        mut saved: Saved,
    ) -> Result<Self> {
        let mut pass = Self::blank(ckpt, model, windows, options)?;
        pass.statistics.restore(&saved.progress.totals)?;
        let other = |_| Error::bad_input("the activations of the calibration to resume are of other windows");
        for (i, window) in windows.iter().enumerate() {
            let mut x = vec![0f32; window.len() * model.config.stream()];
            saved.activations.read_exact(bytemuck::cast_slice_mut(&mut x)).map_err(other)?;
            pass.streams.put(i, x)?;
        }
        pass.engine.unload_ends();
        pass.at = saved.progress.at;
        Ok(pass)
    }

    fn blank(ckpt: &'a Checkpoint, model: &'a Model, windows: &'a [Vec<u32>], options: &'a Options) -> Result<Self> {
        Ok(Self {
            ckpt,
            model,
            windows,
            options,
            engine: Engine::shell(ckpt, model)?,
            streams: Streams::new(windows, model.config.stream(), options.max_memory, &options.spill)?,
            statistics: Statistics::new(model),
            at: Position::default(),
        })
    }

    pub fn at(&self) -> Position {
        self.at
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.statistics.totals()
    }

    /// Writes down at `path` what [`Pass::resumed`] goes on from.
    ///
    /// Errors: `Io`.
    pub fn save(&mut self, path: &Path, key: &Key) -> Result<()> {
        resume::save(path, &Progress { key: key.clone(), at: self.at, totals: self.totals() }, &mut self.streams)
    }

    /// Runs what is left; `after` is called with the tokens that went through a layer. Products are of numbers rounded to
    /// bfloat16, which moves a channel's mean square by some 0.01 %.
    ///
    /// Errors: `BadInput` naming the first layer whose input is not finite; those of the engine, of the disk and of `after`.
    pub fn run(&mut self, mut after: impl FnMut(&mut Self, usize) -> Result<()>) -> Result<()> {
        let layers = self.model.config.layers.len();
        // Nobody asks for the product after the last input.
        let stem = if self.model.config.per_layer > 0 { "proj" } else { "ffn_down" };
        let last = (!self.options.head).then(|| format!("blk.{}.{stem}.weight", layers.saturating_sub(1)));
        let mut cache = Cache::one_batch(self.windows.iter().map(Vec::len).max().unwrap_or(0));
        while self.at.layer < layers {
            let layer = self.at.layer;
            self.engine.load_layer(self.ckpt, self.model, layer)?;
            self.engine.layer_linears_mut(layer).for_each(|l| l.multiply_in_bf16(true));
            while let Some(window) = self.windows.get(self.at.windows) {
                let mut x = self.streams.get(self.at.windows)?;
                self.statistics.set_window(window.len());
                let mut observer = UntilLast { statistics: &mut self.statistics, last: last.as_deref() };
                cache.truncate(0);
                // As in `Engine::hidden_from`.
                let _ = rayon::scope(|_| self.engine.layer(layer, &mut x, &mut cache, &mut observer))?;
                self.statistics.check()?;
                self.streams.put(self.at.windows, x)?;
                self.at.windows += 1;
                after(self, window.len())?;
            }
            self.engine.unload_layer(layer);
            self.at = Position { layer: layer + 1, windows: 0 };
        }
        if self.options.head {
            let tied = !self.model.tensors.iter().any(|t| t.name == "output.weight");
            let head = if tied { "token_embd.weight" } else { "output.weight" };
            for (i, window) in self.windows.iter().enumerate() {
                let x = self.streams.get(i)?;
                self.statistics.set_window(window.len());
                let input = self.engine.head_input(&self.engine.channels(&x));
                let _ = self.statistics.input(head, None, matrix(&input, self.engine.config.hidden));
                self.statistics.check()?;
                self.streams.keep(i, x);
            }
        }
        Ok(())
    }
}

/// Collects up to the input of the layer `last`.
struct UntilLast<'a> {
    statistics: &'a mut Statistics,
    last: Option<&'a str>,
}

impl Observer for UntilLast<'_> {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        self.statistics.input(linear, expert, x)?;
        if self.last == Some(linear) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
