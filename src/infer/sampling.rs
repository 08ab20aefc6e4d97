//! Choosing the next token from logits, and the loop that generates text token by token. Which tokens end a text, and
//! how tokens become text, is the caller's matter.

use super::{Cache, Engine};
use crate::{Error, Result};

/// How to choose among the logits. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens are considered; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are considered; 1 means all.
    pub top_p: f32,
    /// What is drawn depends on it alone.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Chooses tokens; the same seed and logits give the same tokens.
pub struct Sampler {
    options: Sampling,
    state: u64,
}

impl Sampler {
    pub fn new(options: Sampling) -> Self {
        Sampler { options, state: options.seed }
    }

    /// The next token. Of equally likely ones, the first.
    ///
    /// Errors: `BadInput` when no logit is a number.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let mut order: Vec<u32> = (0..logits.len() as u32).filter(|t| !logits[*t as usize].is_nan()).collect();
        let logit = |t: u32| logits[t as usize];
        let descending = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
        let best = order.iter().copied().min_by(descending);
        let best = best.ok_or_else(|| Error::bad_input("the model's logits are not numbers"))?;
        let Sampling { temperature, top_k, top_p, .. } = self.options;
        if temperature <= 0.0 || !logit(best).is_finite() {
            return Ok(best);
        }
        if top_k > 0 && top_k < order.len() {
            order.select_nth_unstable_by(top_k - 1, descending);
            order.truncate(top_k);
        }
        // Cutting the tail needs the order; drawing from all does not.
        if top_k > 0 || top_p < 1.0 {
            order.sort_unstable_by(descending);
        }
        let mut weights: Vec<f64> =
            order.iter().map(|t| f64::from((logit(*t) - logit(best)) / temperature).exp()).collect();
        let mut total: f64 = weights.iter().sum();
        if top_p < 1.0 {
            let (mut sum, mut kept) = (0.0, 0);
            while kept < weights.len() && sum < total * f64::from(top_p) || kept == 0 {
                sum += weights[kept];
                kept += 1;
            }
            weights.truncate(kept);
            total = sum;
        }
        let mut rest = self.uniform() * total;
        let chosen = weights.iter().position(|w| {
            rest -= w;
            rest < 0.0
        });
        Ok(order[chosen.unwrap_or(weights.len() - 1)])
    }

    /// Uniform in 0 .. 1 (SplitMix64, Steele, Lea and Flood 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stopping token was chosen.
    Stop,
    /// The limit was reached.
    Length,
    /// Whoever heard of the tokens wanted no more.
    Interrupted,
}

/// Continues `prompt` by up to `limit` tokens, one of `stop` ending it early. Every chosen token but a stopping one is
/// handed to `on_token`, which returns whether to go on. Returns the tokens handed out.
///
/// Errors: `BadInput` for an empty prompt, a token beyond the vocabulary, or logits that are not numbers.
pub fn generate(
    engine: &Engine,
    prompt: &[u32],
    limit: usize,
    stop: &[u32],
    sampling: Sampling,
    on_token: impl FnMut(u32) -> bool,
) -> Result<(Vec<u32>, Ended)> {
    let mut cache = engine.cache(prompt.len() + limit);
    continue_text(engine, &mut cache, prompt, limit, stop, &mut Sampler::new(sampling), on_token)
}

/// The same after what `cache` holds already of the beginning of `text`.
///
/// Errors: as [`generate`].
pub fn continue_text(
    engine: &Engine,
    cache: &mut Cache,
    text: &[u32],
    limit: usize,
    stop: &[u32],
    sampler: &mut Sampler,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<(Vec<u32>, Ended)> {
    let Some((_, before)) = text.split_last() else {
        return Err(Error::bad_input("the prompt is empty; the model needs at least one token to continue"));
    };
    let mut batch = text[cache.keep_beginning(before)..].to_vec();
    let mut made = Vec::new();
    while made.len() < limit {
        let logits = engine.forward(&batch, cache, batch.len() - 1..batch.len())?;
        let token = sampler.choose(&logits)?;
        if stop.contains(&token) {
            return Ok((made, Ended::Stop));
        }
        made.push(token);
        if !on_token(token) {
            return Ok((made, Ended::Interrupted));
        }
        batch = vec![token];
    }
    Ok((made, Ended::Length))
}

/// Continues each of `prompts` (of equal length) by `len` of the most likely tokens, all in step; nothing ends a text.
/// `on_token` is called for every token and may stop the run.
///
/// Errors: as [`generate`], and those of `on_token`.
pub fn continue_together(
    engine: &Engine,
    prompts: &[&[u32]],
    len: usize,
    mut on_token: impl FnMut() -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let from = prompts.first().map_or(0, |prompt| prompt.len());
    let mut cache = Cache::together(engine.config.layers.len(), prompts.len(), from + len);
    let hidden = engine.hidden_from(prompts, from.saturating_sub(1), &mut cache)?;
    let mut logits = engine.head(&hidden, &mut ());
    let mut sampler = Sampler::new(Sampling::default());
    let mut made = vec![Vec::with_capacity(len); prompts.len()];
    for at in 0..len {
        let vocab = logits.len() / prompts.len().max(1);
        for (made, logits) in made.iter_mut().zip(logits.chunks_exact(vocab.max(1))) {
            made.push(sampler.choose(logits)?);
            on_token()?;
        }
        if at + 1 < len {
            let last: Vec<u32> = made.iter().map(|made| made[at]).collect();
            logits = engine.step(&last, &mut cache)?;
        }
    }
    Ok(made)
}

/// Continues each of `starts` (a first token and a seed) to `len` tokens, all in step, so that weights are decoded once for
/// all of them; nothing ends a text. `on_token` is called for every token and may stop the run.
///
/// Errors: as [`generate`], and those of `on_token`.
pub fn sample_together(
    engine: &Engine,
    starts: &[(u32, u64)],
    len: usize,
    options: Sampling,
    mut on_token: impl FnMut() -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let mut cache = Cache::together(engine.config.layers.len(), starts.len(), len);
    let mut samplers: Vec<Sampler> =
        starts.iter().map(|(_, seed)| Sampler::new(Sampling { seed: *seed, ..options })).collect();
    let mut made: Vec<Vec<u32>> = starts.iter().map(|(token, _)| vec![*token]).collect();
    for at in 1..len {
        let last: Vec<u32> = made.iter().map(|m| m[at - 1]).collect();
        let logits = engine.step(&last, &mut cache)?;
        let vocab = logits.len() / starts.len();
        for ((made, sampler), logits) in made.iter_mut().zip(&mut samplers).zip(logits.chunks_exact(vocab)) {
            made.push(sampler.choose(logits)?);
            on_token()?;
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, f32::NAN, 1.0, 2.0];

    fn tokens(options: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        (0..n).map(|_| sampler.choose(&LOGITS).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(tokens(Sampling::default(), 3), [1, 1, 1]);
        assert!(Sampler::new(Sampling::default()).choose(&[f32::NAN]).is_err());
        assert!(Sampler::new(Sampling::default()).choose(&[]).is_err());
    }

    #[test]
    fn sampling_follows_the_probabilities_and_the_seed() {
        let options = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let drawn = tokens(options, 20_000);
        assert_eq!(drawn, tokens(options, 20_000));
        assert_ne!(drawn, tokens(Sampling { seed: 8, ..options }, 20_000));
        let total: f64 = [0.0, 2.0, 1.0, 2.0f64].iter().map(|l| l.exp()).sum();
        for (token, logit) in [(0, 0.0f64), (1, 2.0), (3, 1.0), (4, 2.0)] {
            let share = drawn.iter().filter(|t| **t == token).count() as f64 / drawn.len() as f64;
            assert!((share - logit.exp() / total).abs() < 0.015, "{token}: {share}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let options = Sampling { temperature: 1.0, ..Sampling::default() };
        assert!(tokens(Sampling { top_k: 2, ..options }, 500).iter().all(|t| [1, 4].contains(t)));
        assert!(tokens(Sampling { top_p: 0.5, ..options }, 500).iter().all(|t| [1, 4].contains(t)));
        assert!(tokens(Sampling { top_p: 0.0, ..options }, 500).iter().all(|t| *t == 1));
        assert!(tokens(Sampling { top_k: 3, ..options }, 500).contains(&3));
    }
}
