//! A look at the whole model before hours are spent on it: whether its weights are numbers, and what it makes of a few
//! tokens.

use super::stats::Statistics;
use crate::control::Run;
use crate::infer::{Cache, Engine, Linear};
use crate::model::{Model, fault};
use crate::quant::{GgmlType, QuantError};
use crate::source::Checkpoint;
use crate::{Error, Result};
use rayon::prelude::*;

/// Tokens that try the model out.
const TOKENS: usize = 64;
/// Weights that one task looks at.
const WEIGHTS: usize = 1 << 16;

/// Decodes every matrix once, and takes a few tokens through all layers. `engine` is without layers, before and after.
///
/// Errors: `BadInput` naming a weight that is no number, or the first layer whose input is not finite; those of loading.
pub fn probe(engine: &mut Engine, ckpt: &Checkpoint, model: &Model, windows: &[Vec<u32>], run: Run) -> Result<()> {
    let Some(tokens) = windows.first().map(|w| &w[..w.len().min(TOKENS)]) else { return Ok(()) };
    engine.linears_mut().try_for_each(|linear| check(linear, ckpt, model))?;
    let mut statistics = Statistics::new(model);
    statistics.set_window(tokens.len());
    let mut cache = Cache::one_batch(tokens.len());
    let mut x = engine.embed(tokens)?;
    for layer in 0..model.config.layers.len() {
        run.check()?;
        engine.load_layer(ckpt, model, layer)?;
        engine.layer_linears_mut(layer).try_for_each(|linear| check(linear, ckpt, model))?;
        let _ = engine.layer(layer, &mut x, &mut cache, &mut statistics)?;
        statistics.check()?;
        engine.unload_layer(layer);
    }
    Ok(())
}

/// That all weights are numbers.
fn check(linear: &Linear, ckpt: &Checkpoint, model: &Model) -> Result<()> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols().max(1));
    let step = (WEIGHTS / cols).max(1);
    let bad = (0..rows.div_ceil(step)).into_par_iter().any(|i| {
        let range = i * step..((i + 1) * step).min(rows);
        let mut weights = vec![0.0; range.len() * cols];
        linear.weight.decode(range, &mut weights);
        // Without a way out, so that it runs in vectors.
        !weights.iter().fold(true, |fine, w| fine & w.is_finite())
    });
    if !bad {
        return Ok(());
    }
    let damaged = || Error::bad_input("holds a number that is not finite").tensor(&*linear.name);
    let tensor = model.tensors.iter().find(|t| t.name == linear.name).ok_or_else(damaged)?;
    let mut row = vec![0.0; cols];
    for at in 0..rows {
        tensor.read_rows(ckpt, at..at + 1, &mut Vec::new(), &mut row)?;
        if let Some(index) = row.iter().position(|w| !w.is_finite()) {
            let error = QuantError::NotFinite { index, value: row[index] };
            return Err(fault(ckpt, tensor, &(at..at + 1), GgmlType::F32, error));
        }
    }
    Err(damaged())
}
