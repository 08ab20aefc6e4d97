//! KL divergence of a finished model from the one it was made of, on few windows, with one layer of one model in memory
//! at a time. With every statistic of every token, for models that fit into memory, see [`crate::eval::compare`].

use crate::convert::Control;
use crate::eval::softmax::kl_of_rows;
use crate::infer::{Cache, Engine};
use crate::model::Model;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::ops::Range;

/// Rows of logits in memory at once.
const ROWS: usize = 64;

/// A model, and what its last layer gave for the positions of every window that are scored, `[scored, hidden]`.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub ckpt: &'a Checkpoint,
    pub model: &'a Model,
    pub results: &'a [Vec<f32>],
}

/// The positions of a window of `len` tokens that are scored: those of its second half that predict one of its tokens.
pub fn scored(len: usize) -> Range<usize> {
    len / 2..len.saturating_sub(1).max(len / 2)
}

/// Runs `windows` through the layers of a model, for [`Side::results`]. `control.advance` hears of the tokens that went
/// through a layer.
///
/// Errors: those of loading and of the engine.
pub fn results(ckpt: &Checkpoint, model: &Model, windows: &[&[u32]], control: &Control) -> Result<Vec<Vec<f32>>> {
    let mut engine = Engine::shell(ckpt, model)?;
    let mut streams: Vec<Vec<f32>> = windows.iter().map(|w| engine.embed(w)).collect::<Result<_>>()?;
    engine.unload_ends();
    let mut cache = Cache::one_batch(windows.iter().map(|w| w.len()).max().unwrap_or(0));
    for layer in 0..model.config.layers.len() {
        engine.load_layer(ckpt, model, layer)?;
        for (x, window) in streams.iter_mut().zip(windows) {
            control.check()?;
            cache.truncate(0);
            // As in `Engine::hidden_from`.
            let _ = rayon::scope(|_| engine.layer(layer, x, &mut cache, &mut ()))?;
            (control.advance)(window.len() as u64);
        }
        engine.unload_layer(layer);
    }
    let width = model.config.hidden;
    for (x, window) in streams.iter_mut().zip(windows) {
        let wanted = scored(window.len());
        *x = x[wanted.start * width..wanted.end * width].to_vec();
    }
    Ok(streams)
}

/// The mean KL divergence of `candidate` from `base` over the scored positions of each window.
///
/// Errors: `BadInput` when the base's logits are not finite; those of loading.
pub fn divergences(base: Side, candidate: Side, control: &Control) -> Result<Vec<f64>> {
    let engines = (Engine::shell(base.ckpt, base.model)?, Engine::shell(candidate.ckpt, candidate.model)?);
    let (mut logits, vocab) = ((Vec::new(), Vec::new()), base.model.config.vocab);
    let means = base.results.iter().zip(candidate.results).map(|(x, y)| {
        let (mut sum, mut rows) = (0.0, 0);
        let widths = (base.model.config.hidden, candidate.model.config.hidden);
        for (x, y) in x.chunks(ROWS * widths.0).zip(y.chunks(ROWS * widths.1)) {
            control.check()?;
            engines.0.head_into(x, &mut logits.0, &mut ());
            engines.1.head_into(y, &mut logits.1, &mut ());
            let kl = kl_of_rows(&logits.0, &logits.1, vocab);
            rows += kl.len();
            sum += kl.iter().sum::<f64>();
        }
        match sum.is_nan() {
            true => Err(Error::bad_input("the logits of the model that is quantized are not finite")),
            false => Ok(sum / rows.max(1) as f64),
        }
    });
    means.collect()
}
