//! What an artifact is worth: perplexity, KL divergence and their error bars, over one token stream for any number of
//! models in lock-step; of models without a head the cosines between their vectors. It knows logits and vectors, not models: the
//! forward pass comes in through [`Logits`] and [`Vectors`].
//!
//! The definitions are those of llama.cpp's `llama-perplexity --kl-divergence`; what it lacks (confidence intervals by
//! block bootstrap, paired differences, gates) is added in [`bootstrap`] and [`gate`].

pub(crate) mod ablation;
mod artifact;
pub(crate) mod compare;
pub(crate) mod gate;
pub(crate) mod pairs;
pub(crate) mod positions;
mod records;
mod runnable;
pub(crate) mod scores;
pub(crate) mod stats;
pub(crate) mod text;
pub(crate) mod windows;

// Private, but for this repository's tests and benches.
cfg_if::cfg_if! {
    if #[cfg(feature = "internals")] {
        pub mod bootstrap;
        pub mod continuations;
        pub mod cosine;
        pub mod damage;
        pub mod klbase;
        pub mod softmax;
        pub mod tasks;
    } else {
        pub(crate) mod bootstrap;
        pub(crate) mod continuations;
        pub(crate) mod cosine;
        pub(crate) mod damage;
        pub(crate) mod klbase;
        pub(crate) mod softmax;
        pub(crate) mod tasks;
    }
}

use ndarray::ArrayView2;
use std::ops::Range;

use crate::Result;

pub use crate::disk::partial::PartialFile;
pub use crate::infer::{
    Cache, Engine, Gradients, KvCache, Linear, Observer, Sampling, check_reversible, weight_gradient,
};
pub use artifact::{Ablation, Artifact, TensorDamage};
pub use bootstrap::{Bootstrap, Difference, Pair};
pub use compare::{Base, Candidate, Comparison, Options, Progress, compare, compare_in_turns};
pub use cosine::{Cosines, Loss, Measured, Vectors};
pub use gate::{GateOutcome, Gates};
pub use klbase::{KlBaseReader, KlBaseWriter};
pub use runnable::Runnable;
pub use scores::Scores;
pub use stats::{Estimate, Percentiles, Record, Statistics};
pub use windows::{Method, Window, Windows};

/// Takes rows of logits `[n, vocab]` from a position on.
pub type EachRows<'a> = dyn FnMut(usize, ArrayView2<f32>) -> Result<()> + 'a;

/// A model, seen as a function from tokens to logits.
pub trait Logits {
    /// Rows of the output head: the length of every row of logits.
    fn vocab(&self) -> usize;

    /// Runs `chunks` of equal length, each from an empty cache; of every one, the logits of the positions `from ..` can
    /// be asked for until the next call.
    fn run(&mut self, chunks: &[Vec<u32>], from: usize) -> Result<()>;

    /// The same where runs of chunks, `groups` of so many each, have their first `shared` tokens in common, which need not
    /// be run for each; `from` is not among them.
    fn run_shared(&mut self, chunks: &[Vec<u32>], shared: usize, groups: &[usize], from: usize) -> Result<()> {
        let _ = (shared, groups);
        self.run(chunks, from)
    }

    /// Hands the logits of the positions `wanted` of chunk number `chunk` of the last [`Logits::run`] to
    /// `each(position, rows)`, in order and as many rows at once as the model has; `position` is that of the first. The
    /// row at position `i` predicts token `i + 1`. An error of `each` ends the run.
    fn logits(&mut self, chunk: usize, wanted: Range<usize>, each: &mut EachRows) -> Result<()>;

    /// The model is not needed for a while; what was run need not be kept.
    fn release(&mut self) {}
}
