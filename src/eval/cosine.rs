//! What an artifact of a model without a head is worth: the cosines between its vectors of pieces of a text and the base's, and
//! what can be said of one model's vectors alone.

use super::bootstrap::{self, Bootstrap};
use super::compare::BATCH;
use super::scores::Scores;
use super::stats::{Estimate, Percentiles, Statistics};
use super::windows::Windows;
use crate::model::config::Ending;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// A model, seen as a function from texts to vectors.
pub trait Vectors {
    /// The vectors of each of `chunks`, which are of equal length: rows of [`Vectors::width`] numbers, one for a chunk, or one
    /// for each of its tokens.
    ///
    /// # Errors
    /// Those of running it; `Unsupported` for a model that gives logits.
    fn vectors(&mut self, chunks: &[Vec<u32>]) -> Result<Vec<Vec<f32>>>;

    /// Numbers of a vector.
    ///
    /// # Errors
    /// Those of loading it.
    fn width(&mut self) -> Result<usize>;

    /// The scores that go with a text's vector; `None` for a model that gives none.
    ///
    /// # Errors
    /// Those of loading it.
    fn scores(&mut self, _vector: &[f32]) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    /// The model is not needed for a while.
    fn put_away(&mut self) {}
}

/// In what a model's loss is measured: by what it ends in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// KL divergence, nats per token.
    #[default]
    Divergence,
    /// 1 − the cosine between vectors.
    Distance,
}

impl Loss {
    /// That of models that end so.
    pub fn of(ending: Ending) -> Self {
        match ending {
            Ending::Logits => Loss::Divergence,
            Ending::Vectors(_) => Loss::Distance,
        }
    }

    /// Whether it is that of models with a head.
    pub fn is_divergence(&self) -> bool {
        *self == Loss::Divergence
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Loss::Divergence => "KL divergence",
            Loss::Distance => "1 − cosine",
        }
    }

    /// Shorter.
    pub fn short(self) -> &'static str {
        match self {
            Loss::Divergence => "KL",
            Loss::Distance => "1 − cosine",
        }
    }
}

/// How near the vectors of an artifact are to the base's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cosines {
    /// Vectors that were compared.
    pub vectors: usize,
    /// The mean cosine.
    pub mean: Estimate,
    /// The smallest.
    pub worst: f64,
    /// How they are distributed.
    pub percentiles: Percentiles,
}

impl Cosines {
    /// Of the cosines of every chunk, with intervals over chunks.
    pub fn of(chunks: &[Vec<f64>], config: Bootstrap) -> Self {
        let all: Vec<f64> = chunks.iter().flatten().copied().collect();
        Cosines {
            vectors: all.len(),
            mean: bootstrap::mean(chunks, config),
            worst: all.iter().copied().fold(f64::INFINITY, f64::min).min(1.0),
            percentiles: Percentiles::of(all),
        }
    }
}

/// What was measured of an artifact.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// Of a model with a head.
    Logits(Box<Statistics>),
    /// Of one without.
    Vectors(Cosines),
}

impl Measured {
    /// The mean KL divergence, or 1 − the mean cosine.
    pub fn loss(&self) -> f64 {
        match self {
            Measured::Logits(s) => s.kld.value,
            Measured::Vectors(cosines) => 1.0 - cosines.mean.value,
        }
    }
}

/// The cosine between two vectors; 0 where one of them has no direction. By their distance, so that small ones count.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let length = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let (of_a, of_b) = (length(a), length(b));
    if of_a * of_b == 0.0 {
        return 0.0;
    }
    let apart = |(a, b): (&f32, &f32)| (f64::from(*a) / of_a - f64::from(*b) / of_b).powi(2);
    1.0 - a.iter().zip(b).map(apart).sum::<f64>() / 2.0
}

/// The cosines between rows of `width` numbers and their counterparts.
pub fn cosines(ours: &[f32], theirs: &[f32], width: usize) -> Vec<f64> {
    ours.chunks_exact(width).zip(theirs.chunks_exact(width)).map(|(a, b)| cosine(a, b)).collect()
}

/// A model under comparison and what it is called.
pub struct Embedder<'a> {
    pub name: String,
    pub model: &'a mut dyn Vectors,
}

impl Embedder<'_> {
    /// The vectors of every window, as many windows at once as are worth it. `done` hears of the tokens that were read.
    ///
    /// # Errors
    /// `BadInput` for vectors that are not finite; those of the model and of `done`.
    pub fn run(
        &mut self,
        stream: &[u32],
        windows: &Windows,
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let all: Vec<_> = windows.iter().collect();
        let mut found = Vec::with_capacity(all.len());
        for group in all.chunks((BATCH / windows.method.ctx()).max(1)) {
            let chunks: Vec<Vec<u32>> = group.iter().map(|window| windows.input(stream, *window)).collect();
            for vectors in self.model.vectors(&chunks)? {
                if !vectors.iter().all(|v| v.is_finite()) {
                    let what = format!("{} gives a vector that is not finite, of chunk {}", self.name, found.len());
                    return Err(Error::bad_input(what).hint("the model is damaged, or was when it was converted"));
                }
                found.push(vectors);
            }
            done(chunks.iter().map(Vec::len).sum())?;
        }
        Ok(found)
    }

    /// The scores that go with the vectors, where the model gives some.
    fn scores(&mut self, vectors: &[Vec<f32>]) -> Result<Option<Vec<Vec<f32>>>> {
        vectors.iter().map(|vector| self.model.scores(vector)).collect()
    }
}

/// A candidate beside the base.
pub struct Compared {
    /// The cosines of its vectors with the base's, chunk by chunk.
    pub cosines: Vec<Vec<f64>>,
    /// Of models that give scores.
    pub scores: Option<Scores>,
}

/// Each candidate's vectors beside the base's. One runs after the other, and is released behind its
/// turn.
///
/// # Errors
/// `BadInput` for vectors of another width; those of [`Embedder::run`].
pub fn compare(
    base: &mut Embedder,
    candidates: &mut [Embedder],
    stream: &[u32],
    windows: &Windows,
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Compared>> {
    let (ours, width) = (base.run(stream, windows, done)?, base.model.width()?);
    let our_scores = base.scores(&ours)?;
    let mut all = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let (theirs, other) = (candidate.run(stream, windows, done)?, candidate.model.width()?);
        if other != width {
            let what = format!("{} gives vectors of {other} numbers, the base of {width}", candidate.name);
            return Err(Error::bad_input(what).hint("compare a model with quantizations of itself"));
        }
        let scores = our_scores.as_ref().zip(candidate.scores(&theirs)?);
        all.push(Compared {
            cosines: ours.iter().zip(&theirs).map(|(a, b)| cosines(a, b, width)).collect(),
            scores: scores.map(|(ours, theirs)| Scores::of(ours, &theirs, Bootstrap::default())),
        });
        candidate.model.put_away();
    }
    Ok(all)
}

/// How much the vectors of different chunks differ: the cosines of all pairs, where each chunk has one vector.
pub fn between(vectors: &[Vec<f32>], width: usize) -> Vec<f64> {
    let one = |v: &&Vec<f32>| v.len() == width;
    let all: Vec<&Vec<f32>> = vectors.iter().filter(one).take(PAIRED).collect();
    let pairs = all.iter().enumerate().flat_map(|(i, a)| all[i + 1..].iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| cosine(a, b)).collect()
}

/// Chunks of which all pairs are looked at.
const PAIRED: usize = 256;

/// The mean distance (1 − cosine) of rows from their mean: the loss of a model that gives every text the same vector.
pub fn blind(rows: &[f32], width: usize) -> f64 {
    let mut mean = vec![0f64; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, v)| *mean += f64::from(*v));
    }
    let mean: Vec<f32> = mean.into_iter().map(|v| v as f32).collect();
    let distances: Vec<f64> = rows.chunks_exact(width).map(|row| 1.0 - cosine(row, &mean)).collect();
    distances.iter().sum::<f64>() / distances.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_small_differences_are_seen() {
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-7);
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 3.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 3.0]), 0.0);
        assert!((1.0 - cosine(&[1.0, 0.0], &[1.0, 1e-5]) - 5e-11).abs() < 1e-13);
        assert!(cosine(&[f32::NAN, 0.0], &[1.0, 0.0]).is_nan());
    }

    #[test]
    fn the_mean_has_an_interval_and_the_worst_is_the_worst() {
        let chunks: Vec<Vec<f64>> = (0..20).map(|i| vec![1.0 - f64::from(i) * 1e-3]).collect();
        let found = Cosines::of(&chunks, Bootstrap::default());
        assert!((found.mean.value - 0.9905).abs() < 1e-9 && (found.worst - 0.981).abs() < 1e-9);
        let [low, high] = found.mean.ci95.unwrap();
        assert!(low < 0.9905 && high > 0.9905 && low > 0.985 && found.vectors == 20);
        assert_eq!(Cosines::of(&chunks[..1], Bootstrap::default()).mean.ci95, None);
    }

    #[test]
    fn vectors_that_are_all_alike_tell_nothing() {
        assert!(blind(&[1.0, 0.0, 1.0, 0.0], 2) < 1e-12);
        assert!((blind(&[1.0, 0.0, 0.0, 1.0], 2) - (1.0 - 0.5f64.sqrt())).abs() < 1e-7);
        assert_eq!(between(&[vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 0.0]], 2), [0.0, 1.0, 0.0]);
    }
}
