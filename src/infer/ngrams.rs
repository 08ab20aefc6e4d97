//! Hashed n-grams of tokens as a layer has them (Qwen3.8-Flash-Next): the tokens up to a position, hashed in several ways,
//! choose rows of a table; keys made of these rows are compared with every residual stream and decide how much of a value,
//! and of its neighbours by a convolution with gaps, is added.

use super::carried::each_stream;
use super::linear::{Linear, sigmoid};
use super::norm::Norm;
use super::recurrent::{Conv, silu};
use super::streams::group_norm;
use super::{Batch, Cache, Engine, Observer};
use crate::kernel::{Output, vector};
use crate::model::config;
use rayon::prelude::*;
use std::ops::ControlFlow;

/// The layer's part.
pub(super) struct Ngrams {
    /// `[streams * hidden, width]` and `[hidden, width]`.
    pub key: Linear,
    pub value: Linear,
    /// Stream by stream.
    pub norm_key: Norm,
    pub norm_query: Norm,
    pub norm_conv: Norm,
    /// Of all streams, with a gap of the longest n-gram.
    pub conv: Conv,
}

/// The rows of the table that the last of `tokens` chooses; those before it are its past.
fn rows(own: &config::Ngrams, tokens: &[u32]) -> Vec<usize> {
    // What lies before the beginning, or before the end of a text, counts as that end.
    let mut past = Vec::with_capacity(own.size);
    let mut over = false;
    for i in 0..own.size {
        let token = tokens.len().checked_sub(i + 1).map(|at| tokens[at]).filter(|_| !over).unwrap_or(own.end);
        past.push(i64::from(token));
        over = over || i > 0 && token == own.end;
    }
    let mut all = Vec::new();
    for n in 2..=own.size {
        let hash = past.iter().zip(&own.multipliers).take(n).fold(0, |hash, (t, m)| hash ^ t.wrapping_mul(*m));
        let first = (n - 2) * own.heads;
        let of = |(size, offset): (&i64, &i64)| (hash.rem_euclid(*size) + offset) as usize;
        all.extend(own.sizes.iter().zip(&own.offsets).skip(first).take(own.heads).map(of));
    }
    all
}

impl Engine {
    /// The rows of the table for each of `tokens`, one behind the other, to `carried`; `before` are the tokens in front of
    /// those of each sequence.
    pub(super) fn carry_ngrams(&self, tokens: &[u32], before: &[Vec<u32>], carried: &mut [f32]) {
        let (Some(own), Some(table)) = (&self.config.ngrams, &self.ngram_table) else { return };
        let (place, step) = (self.config.carried_ngrams(), self.carried);
        let n = tokens.len() / before.len().max(1);
        for (i, row) in carried.chunks_exact_mut(step).enumerate() {
            let (sequence, at) = (i / n.max(1), i % n.max(1));
            let own_tokens = &tokens[sequence * n..=i];
            let mut past: Vec<u32> = before.get(sequence).cloned().unwrap_or_default();
            past.extend_from_slice(&own_tokens[at.saturating_sub(own.size)..]);
            for (row, to) in rows(own, &past).into_iter().zip(row[place.clone()].chunks_exact_mut(own.width)) {
                let row = row.min(table.out().saturating_sub(1));
                table.weight.decode(row..row + 1, to);
            }
        }
    }
}

impl Ngrams {
    pub fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.key, &mut self.value]
    }

    /// Adds to all streams.
    pub fn add(
        &self,
        engine: &Engine,
        index: usize,
        (x, carried): (&mut [f32], &mut [f32]),
        batch: Batch,
        cache: &mut Cache,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let c = &engine.config;
        let Some(streams) = c.streams else { return ControlFlow::Continue(()) };
        let (hidden, place) = (c.hidden, c.carried_ngrams());
        let (wide, rows) = (streams.count * hidden, x.len() / c.hidden);
        let found: Vec<f32> =
            carried.chunks_exact(engine.carried).flat_map(|row| &row[place.clone()]).copied().collect();
        let (mut keys, mut values) = (vec![0.0; rows * wide], vec![0.0; rows * hidden]);
        self.key.product(&found, Output::whole(&mut keys, wide), observer)?;
        self.value.product(&found, Output::whole(&mut values, hidden), observer)?;
        let mut queries = engine.all_streams(&streams, x, carried);
        group_norm(&self.norm_key, &mut keys, hidden);
        group_norm(&self.norm_query, &mut queries, hidden);
        let mut gated = vec![0.0; rows * wide];
        gated.par_chunks_exact_mut(wide).enumerate().for_each(|(row, gated)| {
            for (s, gated) in gated.chunks_exact_mut(hidden).enumerate() {
                let at = row * wide + s * hidden;
                let score = vector::dot(&keys[at..at + hidden], &queries[at..at + hidden]) / (hidden as f32).sqrt();
                let gate = sigmoid(score.abs().max(1e-6).sqrt() * if score == 0.0 { 0.0 } else { score.signum() });
                vector::add_scaled(gated, gate, &values[row * hidden..(row + 1) * hidden]);
            }
        });
        let mut normed = gated.clone();
        group_norm(&self.norm_conv, &mut normed, hidden);
        let n = rows / batch.sequences.max(1);
        for (i, gated) in gated.chunks_exact_mut(n * wide).enumerate() {
            let new = &normed[i * n * wide..(i + 1) * n * wide];
            let mut recent = vec![0.0; self.conv.before() * wide];
            if cache.keeps() {
                let kept = cache.ranked(index, i, wide);
                let len = kept.len().min(recent.len());
                let from = recent.len() - len;
                recent[from..].copy_from_slice(&kept[kept.len() - len..]);
                kept.extend_from_slice(new);
            }
            vector::add_scaled(gated, 1.0, &self.conv.run(new, wide, &mut recent, silu));
        }
        let at = c.carried_streams();
        let all =
            x.chunks_exact_mut(hidden).zip(carried.chunks_exact_mut(engine.carried)).zip(gated.chunks_exact(wide));
        for ((x, carried), gated) in all {
            each_stream(x, &mut carried[at..], streams.count)
                .zip(gated.chunks_exact(hidden))
                .for_each(|(stream, more)| vector::add_scaled(stream, 1.0, more));
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_ends_where_a_text_ends() {
        let own = config::Ngrams {
            layer: 0,
            size: 3,
            heads: 1,
            width: 1,
            end: 0,
            multipliers: vec![3, 5, 7],
            offsets: vec![0, 101],
            sizes: vec![101, 103],
        };
        let hash = |past: [i64; 3]| {
            let two = (past[0] * 3) ^ (past[1] * 5);
            vec![(two % 101) as usize, ((two ^ (past[2] * 7)) % 103) as usize + 101]
        };
        assert_eq!(rows(&own, &[9, 4, 6]), hash([6, 4, 9]));
        assert_eq!(rows(&own, &[6]), hash([6, 0, 0]));
        assert_eq!(rows(&own, &[9, 0, 6]), hash([6, 0, 0]));
        assert_eq!(rows(&own, &[9, 4, 0]), hash([0, 4, 9]));
    }
}
