//! The mixture-of-experts feed-forward block: routing, the chosen experts on the tokens that chose them, and the shared
//! expert. Every token is computed once per chosen expert; nothing is dropped for capacity.

use super::{FeedForward, Inner, Linear, Observer, sized};
use crate::kernel::{Output, vector};
use crate::model::config::Activation;
use std::ops::ControlFlow;

pub(super) struct Experts {
    /// `[experts, hidden]`.
    pub router: Linear,
    /// `[experts * width, hidden]` each.
    pub gate: Linear,
    pub up: Linear,
    /// `[experts * hidden, width]`.
    pub down: Linear,
    pub count: usize,
    /// Experts per token.
    pub used: usize,
    pub width: usize,
    /// Whether the weights of the chosen experts are made to sum to 1.
    pub norm_topk: bool,
    pub activation: Activation,
    pub shared: Option<SharedExpert>,
}

/// An expert that every token uses, times `sigmoid(gate · x)` where there is a gate (qwen2_moe).
pub(super) struct SharedExpert {
    pub name: String,
    /// `[hidden]`.
    pub gate: Option<Vec<f32>>,
    pub expert: FeedForward,
}

impl Experts {
    /// `out = Σ weight · expert(x)`, both `[n, hidden]`.
    pub fn forward(
        &self,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let n = x.len() / hidden;
        let mut scores = vec![0.0; n * self.count];
        self.router.product(x, Output::whole(&mut scores, self.count), observer)?;
        let chosen = self.route(&mut scores, n);
        out.fill(0.0);
        for expert in 0..self.count {
            let tokens: Vec<(usize, f32)> = chosen.iter().filter(|c| c.1 == expert).map(|c| (c.0, c.2)).collect();
            let mut rows = Vec::with_capacity(tokens.len() * hidden);
            for (t, _) in &tokens {
                rows.extend_from_slice(&x[t * hidden..][..hidden]);
            }
            let mut results = vec![0.0; rows.len()];
            self.expert(expert, &rows, hidden, &mut results, inner, observer)?;
            for ((t, weight), row) in tokens.iter().zip(results.chunks_exact(hidden)) {
                vector::add_scaled(&mut out[t * hidden..][..hidden], *weight, row);
            }
        }
        if let Some(SharedExpert { gate, expert, name }) = &self.shared {
            let mut rows = vec![0.0; out.len()];
            expert.forward(x, hidden, &mut rows, inner, observer)?;
            if gate.is_some() {
                observer.input(name, None, x)?;
            }
            for ((out, row), x) in
                out.chunks_exact_mut(hidden).zip(rows.chunks_exact(hidden)).zip(x.chunks_exact(hidden))
            {
                let weight = gate.as_ref().map_or(1.0, |g| 1.0 / (1.0 + (-vector::dot(g, x)).exp()));
                vector::add_scaled(out, weight, row);
            }
        }
        ControlFlow::Continue(())
    }

    /// The chosen experts of `n` tokens as (token, expert, weight), token by token: the `used` largest of the softmax over all
    /// experts; of equal ones the first.
    fn route(&self, scores: &mut [f32], n: usize) -> Vec<(usize, usize, f32)> {
        let mut chosen = Vec::with_capacity(n * self.used);
        for (t, scores) in scores.chunks_exact_mut(self.count).enumerate() {
            vector::softmax(scores);
            let mut order: Vec<usize> = (0..self.count).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            order.truncate(self.used);
            let sum: f32 = order.iter().map(|e| scores[*e]).sum();
            let divisor = if self.norm_topk { sum } else { 1.0 };
            chosen.extend(order.iter().map(|e| (t, *e, scores[*e] / divisor)));
        }
        chosen
    }

    /// One expert on the rows of its tokens; `x` and `out` are `[tokens, hidden]`.
    fn expert(
        &self,
        expert: usize,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let (n, width) = (x.len() / hidden, self.width);
        let gate_up = sized(&mut inner.gate_up, n * 2 * width);
        for (at, linear) in [(0, &self.gate), (width, &self.up)] {
            linear.expert_product(expert, width, x, Output { data: &mut *gate_up, stride: 2 * width, at }, observer)?;
        }
        let activated = sized(&mut inner.activated, n * width);
        super::activate(self.activation, gate_up, activated, width);
        self.down.expert_product(expert, hidden, activated, Output::whole(out, hidden), observer)
    }
}
