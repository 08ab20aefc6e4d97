//! Whether calibration was worth it, by the only measure that counts: on text that had no part in it, the outputs of what was
//! made (logits, or vectors where there is no head) are compared with the source's, and so are those of its rival, which the
//! format's own search makes alone. Files and folders are judged alike. One layer of one model is in memory at a time. With
//! every statistic of every token, for models that fit into memory, see [`mod@crate::eval::compare`].

use super::blind::Blind;
use super::ledger::{Kind, LedgerRow};
use crate::control::{Run, Unit, return_freed_memory};
use crate::eval::Loss;
use crate::eval::cosine::{self, cosines};
use crate::eval::softmax::kl_of_rows;
use crate::infer::{Cache, Engine, Observer};
use crate::model::Model;
use crate::model::config::Ending;
use crate::source::Checkpoint;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Rows of logits in memory at once: 16 MiB of them, but enough for a row of the head to be worth decoding. They take a
/// small part of what the head takes.
pub(super) fn rows_at_once(vocab: usize) -> usize {
    ((1 << 22) / vocab.max(1)).clamp(64, 256)
}

/// The head of a model, and nothing else of it.
pub(super) fn head(model: &dyn Layers) -> Result<Engine> {
    let mut engine = model.shell()?;
    engine.unload_beginning();
    Ok(engine)
}

/// A model whose layers come one at a time.
pub trait Layers {
    /// Embeddings and head, without layers.
    fn shell(&self) -> Result<Engine>;

    /// Loads a layer into the shell.
    fn load(&self, engine: &mut Engine, layer: usize) -> Result<()>;
}

/// The layers of an open checkpoint.
#[derive(Clone, Copy)]
pub struct OpenModel<'a> {
    pub ckpt: &'a Checkpoint,
    pub model: &'a Model,
}

impl Layers for OpenModel<'_> {
    fn shell(&self) -> Result<Engine> {
        Engine::shell(self.ckpt, self.model)
    }

    fn load(&self, engine: &mut Engine, layer: usize) -> Result<()> {
        engine.load_layer(self.ckpt, self.model, layer)
    }
}

/// Which positions of a window are scored. Each predicts the token after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// Those of its second half that predict one of its tokens, as llama-perplexity does.
    SecondHalf,
    All,
}

impl Scored {
    /// What is scored of a model that ends so: the vector of a window is made of all of its tokens.
    pub fn of(self, ending: Ending) -> Self {
        if ending == Ending::Logits { self } else { Scored::All }
    }

    /// Of a window of `len` tokens.
    pub fn positions(self, len: usize) -> Range<usize> {
        match self {
            Scored::SecondHalf => len / 2..len.saturating_sub(1).max(len / 2),
            Scored::All => 0..len,
        }
    }
}

/// Windows to judge by, in sets.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    pub sets: Vec<Vec<Vec<u32>>>,
    pub scored: Scored,
}

impl HeldOut {
    /// The windows, those of one set of the same length.
    fn windows(&self) -> Vec<&[u32]> {
        let shortest = |set: &Vec<Vec<u32>>| set.iter().map(Vec::len).min().unwrap_or(0);
        self.sets.iter().flat_map(|set| set.iter().map(move |w| &w[..shortest(set)])).collect()
    }

    pub fn tokens(&self) -> usize {
        self.sets.iter().flatten().map(Vec::len).sum()
    }
}

/// What the last layer gave for the scored positions of every window, `[scored, hidden]`.
///
/// Errors: those of loading and of the engine.
pub fn results(model: &dyn Layers, windows: &[&[u32]], scored: Scored, run: Run) -> Result<Vec<Vec<f32>>> {
    let mut engine = model.shell()?;
    let mut streams: Vec<Vec<f32>> = windows.iter().map(|w| engine.embed(w)).collect::<Result<_>>()?;
    engine.unload_ends();
    let mut cache = Cache::one_batch(windows.iter().map(|w| w.len()).max().unwrap_or(0));
    for layer in 0..engine.config.layers.len() {
        model.load(&mut engine, layer)?;
        for (x, window) in streams.iter_mut().zip(windows) {
            run.check()?;
            step(&engine, layer, x, 1, &mut cache, &mut ())?;
            run.advance(window.len() as u64);
        }
        engine.unload_layer(layer);
    }
    let width = engine.config.stream();
    for (x, window) in streams.iter_mut().zip(windows) {
        let wanted = scored.positions(window.len());
        *x = engine.channels(&x[wanted.start * width..wanted.end * width]).into_owned();
    }
    Ok(streams)
}

/// The loss of a candidate in each window, by the [`results`] of both: the mean KL divergence from the base (nats per token)
/// over the scored positions, or the mean of 1 − cosine. `heard` is given the base's
/// logits `[rows, vocab]` and their width.
///
/// Errors: `BadInput` when the base's logits are not finite; those of loading.
pub fn losses(
    (base, base_results): (&dyn Layers, &[Vec<f32>]),
    (candidate, candidate_results): (&dyn Layers, &[Vec<f32>]),
    heard: &mut dyn FnMut(&[f32], usize),
    run: Run,
) -> Result<Vec<f64>> {
    // Two heads and their logits are the peak of many runs.
    return_freed_memory();
    let engines = (head(base)?, head(candidate)?);
    if Loss::of(engines.0.config.ending) == Loss::Distance {
        let distance = |(x, y): (&Vec<f32>, &Vec<f32>)| {
            run.check()?;
            let all = cosines(&engines.0.vectors(x)?, &engines.1.vectors(y)?, engines.0.vector_width());
            let distance = all.iter().map(|cosine| 1.0 - cosine).sum::<f64>() / all.len().max(1) as f64;
            match distance.is_nan() {
                true => Err(Error::bad_input("the vectors of the model that is quantized are not finite")),
                false => Ok(distance),
            }
        };
        return base_results.iter().zip(candidate_results).map(distance).collect();
    }
    let (mut logits, vocab) = ((Vec::new(), Vec::new()), engines.0.config.vocab);
    let widths = (engines.0.config.hidden, engines.1.config.hidden);
    let at_once = rows_at_once(vocab);
    let means = base_results.iter().zip(candidate_results).map(|(x, y)| {
        let (mut sum, mut rows) = (0.0, 0);
        for (x, y) in x.chunks(at_once * widths.0).zip(y.chunks(at_once * widths.1)) {
            run.check()?;
            engines.0.head_into(x, &mut logits.0, &mut ());
            heard(&logits.0, vocab);
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

/// Vectors of different texts may be near each other, and there may be only one: rounding is never suspected below this
/// distance.
const UNLIKE: f64 = 0.5;

/// The mean distance of the vectors of a model that ignores its context from the source's.
fn blind_distance(model: &dyn Layers, results: &[Vec<f32>]) -> Result<f64> {
    let engine = head(model)?;
    let all = results.iter().map(|x| engine.vectors(x)).collect::<Result<Vec<_>>>()?;
    Ok(cosine::blind(&all.concat(), engine.vector_width()).max(UNLIKE))
}

/// Sequences of one length, one behind the other, through a loaded layer, from their beginning.
pub(super) fn step(
    engine: &Engine,
    layer: usize,
    x: &mut Vec<f32>,
    sequences: usize,
    cache: &mut Cache,
    observer: &mut (impl Observer + Send),
) -> Result<()> {
    cache.truncate(0);
    // As in `Engine::hidden_from`.
    let _ = rayon::scope(|_| engine.layer_of_each(layer, x, sequences, cache, observer))?;
    Ok(())
}

/// What held-out text says of an output: its loss against the source, set by set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// In what the loss is measured.
    #[serde(default, skip_serializing_if = "Loss::is_divergence")]
    pub loss: Loss,
    /// Of what calibration made: mean KL divergence in nats per token, or mean of 1 − cosine.
    pub kl: Vec<f64>,
    /// Of its rival.
    pub rival: Vec<f64>,
    /// Tokens in the windows.
    pub tokens: usize,
    /// The loss of a model that knows how often the source expects each token, or its mean vector, and nothing of what it
    /// reads: what the source's context is worth.
    pub blind: f64,
}

/// Bits per weight from which on rounding rarely costs a model all that its context is worth.
const SOUND_BITS: f64 = 3.0;

impl Verdict {
    /// A warning about a loss that is more than the model's context is worth, at so many bits per weight. Some models bear
    /// no rounding; whether what was written is this model, each layer tells by itself ([`super::proof`]).
    ///
    /// # Errors
    /// `Gate` for a loss that is no number.
    pub fn check(&self, name: &str, bits_per_weight: f64) -> Result<Option<String>> {
        let best = |(kl, rival): (&f64, &f64)| kl.min(*rival);
        let Some(worst) = self.kl.iter().zip(&self.rival).map(best).max_by(f64::total_cmp) else { return Ok(None) };
        if worst.is_nan() {
            return Err(Error::Gate(format!(
                "{name}: what it loses on held-out text is no number, and nothing was published"
            )));
        }
        if bits_per_weight < SOUND_BITS || worst <= self.blind {
            return Ok(None);
        }
        let unit = match self.loss {
            Loss::Divergence => "nats per token",
            Loss::Distance => "(1 − cosine of their vectors)",
        };
        let what = format!("{name} diverges from the source by {worst:.2} {unit} on held-out text");
        Ok(Some(format!(
            "{what}, a model that ignores its context by {:.2}; this model hardly bears these types",
            self.blind
        )))
    }

    /// Whether what calibration made is kept: on no set is it worse; NaN counts as worse.
    pub fn keeps(&self) -> bool {
        self.kl.iter().zip(&self.rival).all(Self::is_kept)
    }

    /// A loss with as many digits as it is known to.
    pub fn shown(&self, loss: f64) -> String {
        match self.loss {
            Loss::Divergence => format!("{loss:.4}"),
            Loss::Distance => format!("{loss:.6}"),
        }
    }

    fn is_kept((kl, rival): (&f64, &f64)) -> bool {
        kl <= rival
    }

    /// The row of an output that is not kept. `asked` lost to `done`.
    pub fn ledger_row(&self, candidate: &str, asked: &str, done: &str) -> Option<LedgerRow> {
        let (kl, rival) = self.kl.iter().zip(&self.rival).find(|pair| !Self::is_kept(*pair))?;
        Some(LedgerRow {
            candidate: candidate.to_string(),
            kind: Kind::Search,
            tensor: None,
            asked: asked.into(),
            done: done.into(),
            reason: format!(
                "on held-out text its {} is {}, that of {done} {}",
                self.loss.name(),
                self.shown(*kl),
                self.shown(*rival)
            ),
        })
    }
}

/// Judges pairs of what calibration made and its rival. The source runs once.
///
/// Errors: those of [`results`] and [`losses`].
pub fn judge(
    source: OpenModel,
    pairs: &[(&dyn Layers, &dyn Layers)],
    held: &HeldOut,
    run: Run,
) -> Result<Vec<Verdict>> {
    let windows = held.windows();
    let layers = source.model.config.layers.len() as u64;
    let tokens = windows.iter().map(|w| w.len() as u64).sum::<u64>() * (1 + 2 * pairs.len() as u64);
    let _phase = run.phase("measuring held-out text", tokens * layers, Unit::TokensByLayer(layers));
    let ending = source.model.config.ending;
    let (loss, scored) = (Loss::of(ending), held.scored.of(ending));
    let base = results(&source, &windows, scored, run)?;
    // The base's logits are made for each candidate anew; once is enough for what they say of the base.
    let (mut predictions, mut unheard) = (Blind::default(), true);
    let mut by_set = |candidate: &dyn Layers| -> Result<Vec<f64>> {
        let results = results(candidate, &windows, scored, run)?;
        let first = std::mem::take(&mut unheard);
        let mut heard = |logits: &[f32], vocab: usize| {
            if first {
                predictions.add(logits, vocab);
            }
        };
        let mut kl = losses((&source, &base), (candidate, &results), &mut heard, run)?.into_iter();
        let mean = |n: usize| kl.by_ref().take(n).sum::<f64>() / n as f64;
        Ok(held.sets.iter().map(Vec::len).map(mean).collect())
    };
    let mut verdict = |(made, rival): &(&dyn Layers, &dyn Layers)| {
        Ok(Verdict { loss, kl: by_set(*made)?, rival: by_set(*rival)?, tokens: held.tokens(), blind: 0.0 })
    };
    let mut verdicts = pairs.iter().map(&mut verdict).collect::<Result<Vec<_>>>()?;
    let blind = match loss {
        Loss::Divergence => predictions.loss(),
        Loss::Distance => blind_distance(&source, &base)?,
    };
    verdicts.iter_mut().for_each(|verdict| verdict.blind = blind);
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_kept_where_it_is_worse_on_no_set() {
        let verdict = |kl: &[f64], rival: &[f64]| Verdict {
            loss: Loss::Divergence,
            kl: kl.to_vec(),
            rival: rival.to_vec(),
            tokens: 1,
            blind: 2.0,
        };
        assert!(verdict(&[1.0, 0.5], &[1.0, 0.6]).keeps());
        assert!(!verdict(&[1.0, 0.7], &[1.0, 0.6]).keeps());
        assert!(!verdict(&[f64::NAN], &[1.0]).keeps());
        let row = verdict(&[0.1, 0.7], &[0.2, 0.6]).ledger_row("Q4_K", "error feedback", "ggml's search").unwrap();
        assert_eq!(row.reason, "on held-out text its KL divergence is 0.7000, that of ggml's search 0.6000");
        assert_eq!(verdict(&[0.1], &[0.2]).ledger_row("", "", ""), None);
    }

    #[test]
    fn a_loss_of_all_that_context_is_worth_is_said() {
        let loss = Loss::Divergence;
        let verdict =
            |kl: f64, rival| Verdict { loss, kl: vec![0.1, kl], rival: vec![0.1, rival], tokens: 1, blind: 3.9 };
        assert_eq!(verdict(0.2, 4.7).check("Q4_K_M", 4.8).unwrap(), None);
        assert_eq!(verdict(4.73, 4.7).check("IQ1_S", 1.6).unwrap(), None);
        let warning = verdict(4.73, 4.7).check("Q4_K_M", 4.8).unwrap().unwrap();
        assert!(warning.contains("4.70") && warning.contains("3.90"), "{warning}");
        assert_eq!(verdict(f64::NAN, f64::NAN).check("Q4_K_M", 4.8).unwrap_err().exit_code(), 6);
    }

    #[test]
    fn second_halves_predict_their_own_tokens() {
        assert_eq!(Scored::SecondHalf.positions(8), 4..7);
        assert_eq!(Scored::SecondHalf.positions(1), 0..0);
        assert_eq!(Scored::All.positions(3), 0..3);
    }
}
