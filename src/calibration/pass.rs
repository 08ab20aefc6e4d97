//! The pass over calibration windows with the whole model in memory: what the linear layers see is summed up,
//! window by window, and can be taken up again from where it was. Layer by layer, see [`super::layerwise`].

use super::stats::Statistics;
use super::totals::Totals;
use crate::Result;
use crate::infer::{Cache, Engine, Observer};
use crate::runnable::Runnable;
use std::ops::ControlFlow;

/// How far a pass is.
pub struct Pass {
    statistics: Statistics,
    /// Windows that are in the sums.
    done: usize,
}

impl Pass {
    /// At the beginning.
    pub fn new(model: &Runnable) -> Self {
        Self { statistics: Statistics::new(&model.model), done: 0 }
    }

    /// With `done` windows behind it, which gave `totals`.
    ///
    /// Errors: `BadInput` when the totals are of another model.
    pub fn resumed(model: &Runnable, done: usize, totals: &Totals) -> Result<Self> {
        let mut statistics = Statistics::new(&model.model);
        statistics.restore(totals)?;
        Ok(Self { statistics, done })
    }

    pub fn done(&self) -> usize {
        self.done
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.statistics.totals()
    }

    /// Runs the windows that are left; `after` is called with the tokens done. `head`: the output matrix too. Products
    /// are of numbers rounded to bfloat16, which moves a channel's mean square by some 0.01 %.
    ///
    /// Errors: `BadInput` naming the first layer whose input is not finite; those of the engine and of `after`.
    pub fn run(
        &mut self,
        model: &mut Runnable,
        windows: &[Vec<u32>],
        head: bool,
        after: impl FnMut(&Self, usize) -> Result<()>,
    ) -> Result<()> {
        model.engine.linears_mut().for_each(|l| l.multiply_in_bf16(true));
        let ran = self.run_with(&model.engine, windows, head, after);
        model.engine.linears_mut().for_each(|l| l.multiply_in_bf16(false));
        ran
    }

    fn run_with(
        &mut self,
        engine: &Engine,
        windows: &[Vec<u32>],
        head: bool,
        mut after: impl FnMut(&Self, usize) -> Result<()>,
    ) -> Result<()> {
        let layers = engine.config.layers;
        // Nobody asks for the product after the last input.
        let last = (!head).then(|| format!("blk.{}.ffn_down.weight", layers.saturating_sub(1)));
        let mut cache = Cache::one_batch(windows.iter().map(Vec::len).max().unwrap_or(0));
        while let Some(window) = windows.get(self.done) {
            self.statistics.set_window(window.len());
            let mut observer = UntilLast { statistics: &mut self.statistics, last: last.as_deref() };
            // As in `Engine::hidden_from`.
            rayon::scope(|_| -> Result<()> {
                cache.truncate(0);
                let mut x = engine.embed(window)?;
                for layer in 0..layers {
                    let run = engine.layer(layer, &mut x, &mut cache, &mut observer)?;
                    observer.statistics.check()?;
                    if run.is_break() {
                        break;
                    }
                }
                if head {
                    engine.head(&x, &mut observer);
                    observer.statistics.check()?;
                }
                Ok(())
            })?;
            self.done += 1;
            after(self, window.len())?;
        }
        Ok(())
    }
}

/// The sums over `windows`.
///
/// Errors: as [`Pass::run`].
pub fn run(model: &mut Runnable, windows: &[Vec<u32>], head: bool) -> Result<Totals> {
    let mut pass = Pass::new(model);
    pass.run(model, windows, head, |_, _| Ok(()))?;
    Ok(pass.totals())
}

/// Collects up to the input of the layer `last`.
struct UntilLast<'a> {
    statistics: &'a mut Statistics,
    last: Option<&'a str>,
}

impl Observer for UntilLast<'_> {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) -> ControlFlow<()> {
        self.statistics.input(linear, expert, x)?;
        if self.last == Some(linear) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
