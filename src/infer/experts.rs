//! The mixture-of-experts feed-forward block: routing, the chosen experts on the tokens that chose them, and the shared
//! expert. Every token is computed once per chosen expert; nothing is dropped for capacity.

use super::linear::sigmoid;
use super::{FeedForward, Inner, Linear, Observer};
use crate::kernel::view::matrix;
use crate::kernel::{Output, vector};
use crate::model::config::{Gating, Routing};
use std::borrow::Cow;
use std::ops::ControlFlow;

pub(super) struct Experts {
    /// `[experts, hidden]`.
    pub router: Linear,
    /// What enters the router is normalised and multiplied by this before (Gemma 4).
    pub router_scale: Option<Vec<f32>>,
    /// Added to the scores for the choice alone.
    pub correction: Option<Vec<f32>>,
    /// Matrices `[experts * rows, columns]`.
    pub each: FeedForward,
    /// Into a narrower space in which the experts work, and back (Nemotron 3).
    pub latent: Option<[Linear; 2]>,
    pub count: usize,
    /// Experts per token.
    pub used: usize,
    /// Whether the weights of the chosen experts are made to sum to 1.
    pub norm_topk: bool,
    pub routing: Routing,
    pub shared: Option<SharedExpert>,
    pub eps: f32,
}

/// An expert that every token uses, times `sigmoid(gate · x)` where there is a gate (qwen2_moe).
pub(super) struct SharedExpert {
    pub name: String,
    /// `[hidden]`.
    pub gate: Option<Vec<f32>>,
    pub expert: FeedForward,
}

impl Experts {
    /// In the order of use.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let [down, up] = match &mut self.latent {
            Some([down, up]) => [Some(down), Some(up)],
            None => [None, None],
        };
        let shared = self.shared.iter_mut().flat_map(|s| s.expert.linears_mut());
        std::iter::once(&mut self.router).chain(down).chain(self.each.linears_mut()).chain(up).chain(shared).collect()
    }

    /// `out = Σ weight · expert(x)`, both `[n, hidden]`; weights follow from `seen`, which is `x` but for few.
    pub fn forward(
        &self,
        x: &[f32],
        seen: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let n = x.len() / hidden;
        let mut scores = vec![0.0; n * self.count];
        self.router.product(&self.routed(seen, hidden), Output::whole(&mut scores, self.count), observer)?;
        let chosen = self.route(&mut scores, n);
        out.fill(0.0);
        let Some([down, up]) = &self.latent else {
            let run = self.weighted(&chosen, x, hidden, out, inner, observer);
            self.add_shared(x, hidden, out, inner, observer)?;
            return run;
        };
        let width = down.out();
        let (mut narrow, mut results) = (vec![0.0; n * width], vec![0.0; n * width]);
        down.product(x, Output::whole(&mut narrow, width), observer)?;
        let run = self.weighted(&chosen, &narrow, width, &mut results, inner, observer);
        if run.is_continue() {
            up.product(&results, Output::whole(out, hidden), observer)?;
        }
        self.add_shared(x, hidden, out, inner, observer)?;
        run
    }

    /// What enters the router.
    fn routed<'a>(&self, x: &'a [f32], hidden: usize) -> Cow<'a, [f32]> {
        let Some(scale) = &self.router_scale else { return Cow::Borrowed(x) };
        let mut x = x.to_vec();
        for row in x.chunks_exact_mut(hidden) {
            vector::rms_norm(row, scale, self.eps);
        }
        Cow::Owned(x)
    }

    /// `out += Σ weight · expert(x)`.
    fn weighted(
        &self,
        chosen: &[(usize, usize, f32)],
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        // Where the observer ends the run of one expert, the others still show their inputs.
        let mut run = ControlFlow::Continue(());
        for expert in 0..self.count {
            let tokens: Vec<(usize, f32)> = chosen.iter().filter(|c| c.1 == expert).map(|c| (c.0, c.2)).collect();
            let mut rows = Vec::with_capacity(tokens.len() * hidden);
            for (t, weight) in &tokens {
                let from = rows.len();
                rows.extend_from_slice(&x[t * hidden..][..hidden]);
                if self.routing.weighs_input {
                    vector::scale(&mut rows[from..], *weight);
                }
            }
            let mut results = vec![0.0; rows.len()];
            if self.each.forward(Some(expert), &rows, hidden, &mut results, inner, observer).is_break() {
                run = ControlFlow::Break(());
                continue;
            }
            for ((t, weight), row) in tokens.iter().zip(results.chunks_exact(hidden)) {
                let weight = if self.routing.weighs_input { 1.0 } else { *weight };
                vector::add_scaled(&mut out[t * hidden..][..hidden], weight, row);
            }
        }
        run
    }

    /// `out += shared(x)`.
    fn add_shared(
        &self,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        if let Some(SharedExpert { gate, expert, name }) = &self.shared {
            let mut rows = vec![0.0; out.len()];
            expert.forward(None, x, hidden, &mut rows, inner, observer)?;
            if gate.is_some() {
                observer.input(name, None, matrix(x, hidden))?;
            }
            for ((out, row), x) in
                out.chunks_exact_mut(hidden).zip(rows.chunks_exact(hidden)).zip(x.chunks_exact(hidden))
            {
                let weight = gate.as_ref().map_or(1.0, |g| sigmoid(vector::dot(g, x)));
                vector::add_scaled(out, weight, row);
            }
            if self.routing.averaged {
                vector::scale(out, 0.5);
            }
        }
        ControlFlow::Continue(())
    }

    /// The chosen experts of `n` tokens as (token, expert, weight), token by token: those with the largest scores; of
    /// equal ones the first.
    fn route(&self, scores: &mut [f32], n: usize) -> Vec<(usize, usize, f32)> {
        let rule = &self.routing;
        let mut chosen = Vec::with_capacity(n * self.used);
        for (t, scores) in scores.chunks_exact_mut(self.count).enumerate() {
            if let Some(within) = rule.mixer {
                let all = sparse_mixer(scores, self.used, within);
                chosen.extend(all.into_iter().map(|(expert, weight)| (t, expert, weight)));
                continue;
            }
            match rule.gating {
                Gating::Softmax => vector::softmax(scores),
                Gating::Sigmoid => scores.iter_mut().for_each(|s| *s = sigmoid(*s)),
                Gating::SqrtSoftplus => scores.iter_mut().for_each(|s| *s = s.exp().ln_1p().sqrt()),
                Gating::OfChosen => {}
            }
            let mut ranks = scores.to_vec();
            if let Some(correction) = &self.correction {
                vector::add_scaled(&mut ranks, 1.0, correction);
            }
            if (1..rule.groups).contains(&rule.groups_used) {
                self.mask_groups(&mut ranks);
            }
            let mut order: Vec<usize> = (0..self.count).collect();
            order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
            order.truncate(self.used);
            let mut weights: Vec<f32> = order.iter().map(|e| scores[*e]).collect();
            if rule.gating == Gating::OfChosen {
                vector::softmax(&mut weights);
            } else if self.norm_topk {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            if let Some(scale) = rule.scale {
                vector::scale(&mut weights, scale);
            }
            chosen.extend(order.into_iter().zip(weights).map(|(e, weight)| (t, e, weight)));
        }
        chosen
    }

    /// Takes the experts of all but the best groups out: by their two best experts where there is a correction
    /// (DeepSeek-V3), else by their best (DeepSeek-V2).
    fn mask_groups(&self, ranks: &mut [f32]) {
        let size = (self.count / self.routing.groups).max(1);
        let value = |group: &[f32]| {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let best = if self.correction.is_some() { 2 } else { 1 };
            sorted.iter().take(best).sum::<f32>()
        };
        let values: Vec<f32> = ranks.chunks(size).map(value).collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        for group in order.into_iter().skip(self.routing.groups_used) {
            ranks[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
}

/// Experts and their weights, chosen one after the other.
fn sparse_mixer(scores: &[f32], used: usize, within: f32) -> Vec<(usize, f32)> {
    let mut left = scores.to_vec();
    (0..used)
        .map(|_| {
            let largest = vector::max(&left);
            let expert = left.iter().position(|s| *s == largest).unwrap_or(0);
            let near = |score: f32| (largest - score) / score.abs().max(largest) <= 2.0 * within;
            let all =
                left.iter().zip(scores).filter(|(_, score)| near(**score)).map(|(left, _)| (left - largest).exp());
            let weight = 1.0 / all.sum::<f32>();
            left[expert] = f32::NEG_INFINITY;
            (expert, weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_mixers_weigh_what_is_near() {
        // 2.0 and 1.99 are within 2 %; of what is left, 1.99 is alone.
        let chosen = sparse_mixer(&[1.99, -3.0, 2.0, 1.0], 2, 0.01);
        let first = 1.0 / (1.0 + (-0.01f32).exp());
        assert_eq!([chosen[0].0, chosen[1].0], [2, 0]);
        assert!((chosen[0].1 - first).abs() < 1e-6 && (chosen[1].1 - 1.0).abs() < 1e-6, "{chosen:?}");
    }
}
