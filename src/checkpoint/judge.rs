//! Whether calibration was worth it, by the only measure that counts: on windows that had no part in it, the output of
//! the finished checkpoint is compared with the source's, and so is that of the source merely rounded to nearest. Where
//! the calibrated one is worse, the folder gets the other. Loss inside a layer says nothing here.

use super::job::{Job, Method, formats_module, part, parts};
use super::layered::{Layered, replace};
use super::nearest::rounded_part;
use crate::eval::softmax::kl_of_rows;
use crate::formats::Packed;
use crate::infer::{Cache, Engine};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};

/// The part of the journal that holds the verdict.
pub const VERDICT: &str = "held-out windows";

/// One window in so many is held out, but no more than [`MOST`].
const SHARE: usize = 32;
const MOST: usize = 4;
/// With fewer windows than this none is held out.
const FEWEST: usize = 4;

/// Splits windows into those to calibrate on and those to judge by, which lie evenly between the others.
pub fn split(windows: &[Vec<u32>]) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let held = if windows.len() < FEWEST { 0 } else { (windows.len() / SHARE).clamp(1, MOST) };
    // The middle of each of `held` equal stretches.
    let is_held = |i: usize| (0..held).any(|k| i == (2 * k + 1) * windows.len() / (2 * held));
    let pick =
        |wanted: bool| (0..windows.len()).filter(|i| is_held(*i) == wanted).map(|i| windows[i].clone()).collect();
    (pick(false), pick(true))
}

/// Rounds as `method` does, and keeps the result if `held` says so.
pub struct Judged<'a> {
    pub method: Layered<'a>,
    pub held: &'a [Vec<u32>],
}

impl Method for Judged<'_> {
    fn run(&mut self, job: &Job) -> Result<()> {
        let all = parts(job.planned);
        // A run that comes back to finished layers need not take the tokens through them.
        if all.iter().all(|layer| job.folder.finished(&part(*layer)).is_some()) {
            for layer in &all {
                job.unless_finished(&part(*layer), || Err(Error::Internal("a finished part is gone".into())))?;
            }
        } else {
            self.method.run(job)?;
        }
        if self.held.is_empty() {
            return Ok(());
        }
        let mut worse = false;
        job.unless_finished(VERDICT, || {
            let [calibrated, nearest] = divergences(job, self.held)?;
            Ok(verdict(job, self.held, calibrated, nearest))
        })?;
        job.record_of(VERDICT, |record| worse = record["chosen"] == "nearest")?;
        if !worse {
            return Ok(());
        }
        for layer in all {
            let mut done = false;
            job.record_of(&part(layer), |record| done = record["nearest"] == true)?;
            if !done {
                let mut record = rounded_part(job, layer)?;
                record["nearest"] = json!(true);
                job.redo(&part(layer), record)?;
            }
        }
        Ok(())
    }
}

/// The journal's record, with a row of the ledger where calibration lost.
fn verdict(job: &Job, held: &[Vec<u32>], calibrated: f64, nearest: f64) -> Value {
    // What is no number is no better, either.
    let keep = calibrated <= nearest;
    let ledger = match keep {
        true => json!([]),
        false => json!([{
            "module": null,
            "asked": format!("{} with calibration", job.planned.spec),
            "done": "rounding to nearest",
            "reason": format!(
                "on held-out windows the KL divergence is {calibrated:.4}, that of rounding to nearest {nearest:.4}"
            ),
        }]),
    };
    json!({
        "tokens": held.iter().map(Vec::len).sum::<usize>(),
        "kl_divergence": calibrated,
        "kl_divergence_of_nearest": nearest,
        "chosen": if keep { "calibrated" } else { "nearest" },
        "ledger": ledger,
    })
}

/// Rows of logits in memory at once.
const ROWS: usize = 64;

/// The mean KL divergence from the source, over all positions of `windows`, of the checkpoint as it was written and of
/// the source rounded to nearest. All three models go through a layer before the next is loaded.
fn divergences(job: &Job, windows: &[Vec<u32>]) -> Result<[f64; 2]> {
    let mut engine = Engine::shell(job.ckpt, job.model)?;
    let mut cache = Cache::one_batch(windows.iter().map(Vec::len).max().unwrap_or(0));
    let source: Vec<Vec<f32>> = windows.iter().map(|w| engine.embed(w)).collect::<Result<_>>()?;
    let mut streams = [source.clone(), source.clone(), source];
    for layer in 0..job.model.config.layers.len() {
        engine.load_layer(job.ckpt, job.model, layer)?;
        for (which, streams) in streams.iter_mut().enumerate() {
            job.control.check()?;
            if which > 0 {
                let packed = modules(job, layer, which == 2)?;
                let linears = engine.layer_linears_mut(layer).collect();
                replace(&job.planned.contents.modules, linears, packed);
            }
            for x in streams {
                cache.truncate(0);
                let _ = engine.layer(layer, x, &mut cache, &mut ())?;
            }
        }
        engine.unload_layer(layer);
    }
    let (mut sums, mut rows) = ([0.0; 2], 0);
    let (width, vocab) = (job.model.config.hidden, job.model.config.vocab);
    let mut logits = [Vec::new(), Vec::new(), Vec::new()];
    for window in 0..windows.len() {
        for from in (0..streams[0][window].len()).step_by(ROWS * width) {
            job.control.check()?;
            for (logits, x) in logits.iter_mut().zip(&streams) {
                let to = (from + ROWS * width).min(x[window].len());
                engine.head_into(&x[window][from..to], logits, &mut ());
            }
            let [base, calibrated, nearest] = &logits;
            let kl = [calibrated, nearest].map(|q| kl_of_rows(base, q, vocab));
            rows += kl[0].len();
            sums.iter_mut().zip(&kl).for_each(|(sum, kl)| *sum += kl.iter().sum::<f64>());
        }
    }
    Ok(sums.map(|sum| sum / rows.max(1) as f64))
}

/// The quantized modules of a layer: as they were written, or rounded to nearest.
fn modules(job: &Job, layer: usize, nearest: bool) -> Result<Vec<(usize, Packed)>> {
    let all: Vec<usize> = job.planned.contents.layer(Some(layer)).map(|(i, _)| i).collect();
    let one = |index: usize| -> Result<Option<(usize, Packed)>> {
        let packed = match (job.planned.specs[index], nearest) {
            (Some(spec), true) => {
                let weights = job.planned.contents.modules[index].read(job.ckpt)?;
                Some(job.unpack(index, &spec.quantize_nearest(&formats_module(job, index, &weights))?)?)
            }
            _ => job.read_back(index)?,
        };
        Ok(packed.map(|packed| (index, packed)))
    };
    all.into_par_iter().filter_map(|index| one(index).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_out_windows_lie_between_the_others() {
        let windows = |n: u32| (0..n).map(|i| vec![i]).collect::<Vec<_>>();
        for (n, wanted) in [(0, vec![]), (3, vec![]), (4, vec![2]), (16, vec![8]), (64, vec![16, 48])] {
            let (rest, held) = split(&windows(n));
            assert_eq!(held.concat(), wanted);
            assert_eq!(rest.len() + held.len(), n as usize);
            assert!(rest.iter().all(|w| !held.contains(w)));
        }
        assert_eq!(split(&windows(1000)).1.len(), MOST);
    }
}
