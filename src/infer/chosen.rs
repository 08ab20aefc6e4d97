//! Sparse attention (DeepSeek-V3.2, section 2.1): a small attention without values, the indexer, ranks the positions before
//! a token, and only the best of them are read.

use super::attention::{Heads, Seen, softmax_beside};
use super::linear::Linear;
use super::norm::Norm;
use super::rope::Angles;
use super::{Call, Observer};
use crate::kernel::{Output, vector};
use crate::model::config::{self, Blocks, Pools};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// The positions that each row of a batch reads, in ascending order; of blocks, a list for each of the indexer's heads.
pub(super) type Choice = Vec<Vec<u32>>;

pub(super) struct Indexer {
    /// From the narrow vector that queries are made from, `[heads * dim, rank]`.
    pub q: Linear,
    /// One key for all heads, `[dim, hidden]`.
    pub k: Linear,
    pub k_norm: Norm,
    pub q_norm: Option<Norm>,
    /// To the weights of the heads, `[heads, hidden]`; `None`: all count alike.
    pub weigh: Option<Linear>,
    /// What weighs the keys of a group of positions: from the stream, `[dim, hidden]`, and by place in the group,
    /// `[size, dim]`.
    pub pool: Option<(Linear, Vec<f32>)>,
}

impl Indexer {
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let more = self.weigh.iter_mut().chain(self.pool.iter_mut().map(|(gate, _)| gate));
        [&mut self.q, &mut self.k].into_iter().chain(more)
    }

    /// Of each row of the batch; `narrow` is what queries are made from (`[rows, rank]`).
    pub fn choose(
        &self,
        own: &config::Indexer,
        call: &mut Call,
        narrow: &[f32],
        (own_rope, angles): (Option<usize>, Option<&Angles>),
        observer: &mut dyn Observer,
    ) -> ControlFlow<(), Choice> {
        let &config::Indexer { heads, dim, rotated, .. } = own;
        let (rows, n, first) = (call.rows, call.n, call.cache.len());
        // A key, and behind it what weighs it in its group.
        let width = dim * if self.pool.is_some() { 2 } else { 1 };
        let (mut q, mut keys) = (vec![0.0; rows * heads * dim], vec![0.0; rows * width]);
        let mut weights = vec![1.0; rows * heads];
        self.q.product(narrow, Output::whole(&mut q, heads * dim), observer)?;
        self.k.product(call.normed, Output { data: &mut keys, stride: width, at: 0 }, observer)?;
        if let Some(weigh) = &self.weigh {
            weigh.product(call.normed, Output::whole(&mut weights, heads), observer)?;
        }
        if let Some((gate, _)) = &self.pool {
            gate.product(call.normed, Output { data: &mut keys, stride: width, at: dim }, observer)?;
        }
        let turned = if own.at_end { dim - rotated..dim } else { 0..rotated };
        let turn = |head: &mut [f32], i: usize| {
            if let Some(angles) = angles.filter(|_| rotated > 0) {
                angles.rotate(&mut head[turned.clone()], i % n, own.pairs);
            }
        };
        if !own.plain {
            keys.par_chunks_exact_mut(width).enumerate().for_each(|(i, row)| {
                self.k_norm.apply(&mut row[..dim], 0);
                turn(&mut row[..dim], i);
            });
        }
        q.par_chunks_exact_mut(heads * dim).enumerate().for_each(|(i, row)| {
            for head in row.chunks_exact_mut(dim) {
                if let Some(norm) = &self.q_norm {
                    norm.apply(head, 0);
                }
                turn(head, i);
            }
        });
        // Groups of plain keys are turned as the first of them: by angles from the beginning on.
        let from_first = own.plain.then(|| call.engine.angles_from(own_rope, call.cache, 0, first + n)).flatten();
        let mut choice = Choice::with_capacity(rows);
        for (i, new) in keys.chunks_exact(n * width).enumerate() {
            let keys = match call.cache.keeps() {
                true => {
                    let kept = call.cache.ranked(call.index, i, width);
                    kept.extend_from_slice(new);
                    &*kept
                }
                false => new,
            };
            let pooled = match (own.pools, &self.pool) {
                (Some(pools), Some((_, places))) => Some(pool(keys, dim, pools, places)),
                (Some(pools), None) => Some(self.mean(own, keys, pools.size, from_first.as_ref())),
                _ => None,
            };
            let (candidates, step) = pooled.as_ref().map_or((keys, width), |pooled| (pooled.as_slice(), dim));
            let of_blocks = |row: usize, blocks: Blocks| -> Vec<Vec<u32>> {
                let query = |h: usize| &q[((i * n + row) * heads + h) * dim..][..dim];
                let score = |h: usize, p: usize| vector::dot(query(h), &keys[p * width..][..dim]);
                (0..heads).map(|h| best_blocks(own.top, blocks, first + row + 1, |p| score(h, p))).collect()
            };
            let of = |row: usize| {
                let at = i * n + row;
                let score = |key: &[f32]| -> f32 {
                    let of_head = |h: usize| vector::dot(&q[(at * heads + h) * dim..][..dim], key).max(0.0);
                    (0..heads).map(|h| weights[at * heads + h] * of_head(h)).sum()
                };
                best(own, first + row + 1, |c| score(&candidates[c * step..][..dim]))
            };
            match own.blocks {
                Some(blocks) => {
                    let lists: Vec<Choice> = (0..n).into_par_iter().map(|row| of_blocks(row, blocks)).collect();
                    choice.extend(lists.into_iter().flatten());
                }
                None => choice.par_extend((0..n).into_par_iter().map(of)),
            }
        }
        ControlFlow::Continue(choice)
    }

    /// One key for each whole group: the mean of its keys, normalised and turned as the first position.
    fn mean(&self, own: &config::Indexer, keys: &[f32], size: usize, angles: Option<&Angles>) -> Vec<f32> {
        let mut all = vec![0.0; keys.len() / (size * own.dim) * own.dim];
        for (i, (mean, group)) in all.chunks_exact_mut(own.dim).zip(keys.chunks_exact(size * own.dim)).enumerate() {
            group.chunks_exact(own.dim).for_each(|key| vector::add_scaled(mean, 1.0 / size as f32, key));
            self.k_norm.apply(mean, 0);
            if let Some(angles) = angles.filter(|_| own.rotated > 0) {
                angles.rotate(mean, i * size, own.pairs);
            }
        }
        all
    }
}

/// One key for each whole group: a weighted mean of its keys, channel by channel. Rows of `keys` are a key and its weights.
fn pool(keys: &[f32], dim: usize, pools: Pools, places: &[f32]) -> Vec<f32> {
    let of = |group: &[f32]| -> Vec<f32> {
        let rows = || group.chunks_exact(2 * dim).enumerate();
        let channel = |c: usize| {
            let weights: Vec<f32> = rows().map(|(place, row)| row[dim + c] + places[place * dim + c]).collect();
            let largest = vector::max(&weights);
            let sum: f32 = weights.iter().map(|w| (w - largest).exp()).sum();
            rows().zip(&weights).map(|((_, row), w)| row[c] * (w - largest).exp() / sum).sum::<f32>()
        };
        (0..dim).map(channel).collect()
    };
    keys.chunks_exact(pools.size * 2 * dim).flat_map(of).collect()
}

/// The best of `seen` positions, or of their groups. Of equal ones the first.
fn best(own: &config::Indexer, seen: usize, score: impl Fn(usize) -> f32) -> Vec<u32> {
    let size = own.pools.map_or(1, |pools| pools.size);
    let (whole, most) = (seen / size, own.top / size);
    let mut order: Vec<usize> = (0..whole).collect();
    if whole > most {
        let scores: Vec<f32> = order.iter().map(|c| score(*c)).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(most);
        order.sort_unstable();
    }
    let tail = own.pools.filter(|pools| pools.tail).map_or(seen..seen, |_| whole * size..seen);
    let mut chosen: Vec<u32> =
        order.iter().flat_map(|c| c * size..(c + 1) * size).chain(tail).map(|p| p as u32).collect();
    if chosen.is_empty() {
        chosen.push(seen as u32 - 1);
    }
    chosen
}

/// The positions that `seen` ones leave of the `top` best blocks, each of which is worth its best position. Of equal ones
/// the first.
fn best_blocks(top: usize, blocks: Blocks, seen: usize, score: impl Fn(usize) -> f32) -> Vec<u32> {
    let count = seen.div_ceil(blocks.size);
    let of = |block: usize| block * blocks.size..((block + 1) * blocks.size).min(seen);
    let worth = |block: usize| match block + blocks.local >= count {
        true => f32::INFINITY,
        false => of(block).map(&score).fold(f32::NEG_INFINITY, f32::max),
    };
    let mut order: Vec<usize> = (0..count).collect();
    if count > top {
        let worths: Vec<f32> = order.iter().map(|block| worth(*block)).collect();
        order.sort_by(|a, b| worths[*b].total_cmp(&worths[*a]));
        order.truncate(top);
        order.sort_unstable();
    }
    order.into_iter().flat_map(of).map(|p| p as u32).collect()
}

/// As `attention::attend`, of the positions in `choice`: one list for each row of `q` (`[n, stride]`), or for each of its
/// groups of heads.
pub(super) fn attend(shape: Heads, q: &[f32], stride: usize, kv: Seen, choice: &[Vec<u32>], out: &mut [f32]) {
    let Heads { heads, kv_heads, dim, value_dim, scale, sinks, .. } = shape;
    let rows = out.len() / (heads * value_dim);
    let lists = (choice.len() / rows.max(1)).max(1);
    let each = out.par_chunks_exact_mut(heads * value_dim).zip(q.par_chunks_exact(stride));
    each.zip(choice.par_chunks_exact(lists)).for_each(|((out, q), lists)| {
        out.fill(0.0);
        for (h, (out, q)) in out.chunks_exact_mut(value_dim).zip(q.chunks_exact(dim)).enumerate() {
            let head = h / (heads / kv_heads);
            let chosen = &lists[h * lists.len() / heads];
            let key = |p: &u32| &kv.keys[*p as usize * kv.step + head * dim..][..dim];
            let mut weights: Vec<f32> = chosen.iter().map(|p| vector::dot(q, key(p)) * scale).collect();
            softmax_beside(&mut weights, sinks.map(|sinks| sinks[h]));
            for (p, weight) in chosen.iter().zip(&weights) {
                let value = &kv.values[*p as usize * kv.value_step + head * value_dim..][..value_dim];
                vector::add_scaled(out, *weight, value);
            }
        }
    });
}

/// Whether lists of rows from position `first` on, `each` for a row, have every position that the row could see.
pub(super) fn are_all(lists: &[Vec<u32>], each: usize, first: usize) -> bool {
    lists.iter().enumerate().all(|(i, chosen)| chosen.len() == first + i / each + 1)
}

/// Positions as numbers that travel with the tokens, and back.
pub(super) fn carry(chosen: &[u32], to: &mut [f32]) {
    to.fill(-1.0);
    to.iter_mut().zip(chosen).for_each(|(to, p)| *to = *p as f32);
}

pub(super) fn carried(from: &[f32]) -> Vec<u32> {
    from.iter().take_while(|p| **p >= 0.0).map(|p| *p as u32).collect()
}
