//! Linear layers over weights in any stored form, and the feed-forward block made of them.

use super::Observer;
use super::activations::Rounding;
use super::erf::erf;
use super::norm::{Norm, ROWS_PER_TASK};
use crate::kernel::view::matrix;
use crate::kernel::{Output, RowSource, bf16, matmul, vector};
use crate::model::config::Activation;
use rayon::prelude::*;
use std::ops::{ControlFlow, Range};

/// A linear layer `[out, in]`, or a stack of them `[experts * out, in]`.
pub struct Linear {
    /// GGUF name of the weight.
    pub name: String,
    /// `[out, in]`, or a stack of them.
    pub weight: Box<dyn RowSource>,
    /// What products are multiplied with, before the bias: nothing, one number, or one for each expert. llama.cpp's `.scale`
    /// tensors, the second level of NVFP4's scales.
    pub(super) scales: Vec<f32>,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
    /// What happens to activations before the product.
    pub(super) rounding: Rounding,
}

impl Linear {
    pub(super) fn out(&self) -> usize {
        self.weight.rows()
    }

    /// Whether products are of numbers rounded to bfloat16, unless activations are rounded in another way already.
    pub fn multiply_in_bf16(&mut self, on: bool) {
        match (self.rounding, on) {
            (Rounding::None, true) => self.rounding = Rounding::Bf16,
            (Rounding::Bf16, false) => self.rounding = Rounding::None,
            _ => {}
        }
    }

    fn matmul(&self, x: &[f32], rows: Range<usize>, y: Output<'_>) {
        if self.rounding == Rounding::Bf16 {
            return bf16::matmul(x, &*self.weight, rows, y);
        }
        match self.rounding.apply(x, self.weight.cols()) {
            Some(rounded) => matmul(&rounded, &*self.weight, rows, y),
            None => matmul(x, &*self.weight, rows, y),
        }
    }

    /// `y = x · Wᵀ + bias`.
    pub(super) fn product(&self, x: &[f32], y: Output<'_>, observer: &mut dyn Observer) -> ControlFlow<()> {
        self.product_of(None, self.out(), x, y, observer)
    }

    /// The same with the rows of one expert, each of which has `out`; or of the only one.
    pub(super) fn product_of(
        &self,
        expert: Option<usize>,
        out: usize,
        x: &[f32],
        y: Output<'_>,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        observer.input(&self.name, expert, matrix(x, self.weight.cols()))?;
        let (stride, at, first) = (y.stride, y.at, expert.unwrap_or(0) * out);
        let rows = first..first + out;
        self.matmul(x, rows.clone(), Output { data: &mut *y.data, stride, at });
        if let Some(scale) = self.scales.get(expert.unwrap_or(0)).or(self.scales.first()) {
            for row in y.data.chunks_exact_mut(stride).take(x.len() / self.weight.cols()) {
                vector::scale(&mut row[at..at + out], *scale);
            }
        }
        if let Some(bias) = &self.bias {
            let bias = &bias[rows];
            for row in y.data.chunks_exact_mut(stride).take(x.len() / self.weight.cols()) {
                vector::add_scaled(&mut row[at..at + bias.len()], 1.0, bias);
            }
        }
        ControlFlow::Continue(())
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// Of rows of `width`, these columns.
pub(super) fn columns(x: &[f32], width: usize, of: Range<usize>) -> Vec<f32> {
    x.chunks_exact(width).flat_map(|row| &row[of.clone()]).copied().collect()
}

/// Several linear layers with the same input, or one that fuses them: their results side by side.
pub(super) fn products(
    linears: &[Linear],
    x: &[f32],
    y: &mut [f32],
    stride: usize,
    observer: &mut dyn Observer,
) -> ControlFlow<()> {
    let mut at = 0;
    for linear in linears {
        linear.product(x, Output { data: &mut *y, stride, at }, observer)?;
        at += linear.out();
    }
    ControlFlow::Continue(())
}

/// `down(activation(gate(x)) · up(x))`, or without gate `down(activation(up(x)))`. Of a stack of experts each is one.
pub(super) struct FeedForward {
    /// Gate and up, or one matrix with the rows of both in this order; without gate, up alone.
    pub gate_up: Vec<Linear>,
    pub gated: bool,
    pub down: Linear,
    pub width: usize,
    pub activation: Activation,
    /// What a row's gate must exceed its mean by, in standard deviations; the rest counts.
    pub cutoff: Option<f32>,
    /// The norm in front of the last matrix (BitNet).
    pub norm: Option<Norm>,
}

impl FeedForward {
    /// In the order of use.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate_up.iter_mut().chain([&mut self.down])
    }

    /// `x` and `out` are `[n, hidden]`.
    pub fn forward(
        &self,
        expert: Option<usize>,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let (n, width) = (x.len() / hidden, self.width);
        let both = if self.gated { 2 * width } else { width };
        let gate_up = sized(&mut inner.gate_up, n * both);
        let rows = both / self.gate_up.len();
        for (i, linear) in self.gate_up.iter().enumerate() {
            linear.product_of(expert, rows, x, Output { data: &mut *gate_up, stride: both, at: i * rows }, observer)?;
        }
        if let Some(by) = self.cutoff {
            gate_up.chunks_exact_mut(both).for_each(|row| cut_off(&mut row[..width], by));
        }
        let activated = sized(&mut inner.activated, n * width);
        activate(self.activation, self.gated, gate_up, activated, width);
        if let Some(norm) = &self.norm {
            activated.par_chunks_exact_mut(width).for_each(|row| norm.apply(row, 0));
        }
        self.down.product_of(expert, hidden, activated, Output::whole(out, hidden), observer)
    }
}

/// `max(x - (mean + by · deviation), 0)`.
fn cut_off(x: &mut [f32], by: f32) {
    let n = x.len().max(1) as f32;
    let mean = x.iter().sum::<f32>() / n;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let least = mean + by * variance.sqrt();
    x.iter_mut().for_each(|v| *v = (*v - least).max(0.0));
}

/// Working memory inside a feed-forward block.
#[derive(Default)]
pub(super) struct Inner {
    pub gate_up: Vec<f32>,
    pub activated: Vec<f32>,
}

/// The first `len` elements of a buffer, which hold anything.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// `inner = activation(gate) · up` with gate and up side by side in `gate_up` (`[n, 2 * width]`), or `activation(up)` with
/// up alone (`[n, width]`).
pub(super) fn activate(activation: Activation, gated: bool, gate_up: &[f32], inner: &mut [f32], width: usize) {
    let both = if gated { 2 * width } else { width };
    let rows = inner.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(both));
    rows.with_min_len(ROWS_PER_TASK).for_each(|(inner, row)| {
        let (gate, up) = row.split_at(width);
        match (activation, gated) {
            (Activation::Silu, true) => vector::silu_times(inner, gate, up),
            (Activation::GeluTanh, true) => vector::gelu_times(inner, gate, up),
            (_, true) => {
                for ((inner, gate), up) in inner.iter_mut().zip(gate).zip(up) {
                    *inner = times(activation, *gate, *up);
                }
            }
            (_, false) => inner.iter_mut().zip(gate).for_each(|(inner, x)| *inner = times(activation, *x, 1.0)),
        }
    });
}

/// `activation(gate) · up`.
pub(super) fn times(activation: Activation, gate: f32, up: f32) -> f32 {
    match activation {
        Activation::Silu => gate * sigmoid(gate) * up,
        Activation::GeluTanh => {
            let inner = 0.797_884_6 * (gate + 0.044_715 * gate * gate * gate);
            0.5 * gate * (1.0 + inner.tanh()) * up
        }
        Activation::Gelu => 0.5 * gate * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2)) * up,
        Activation::Relu => gate.max(0.0) * up,
        Activation::SquaredRelu => gate.max(0.0) * gate.max(0.0) * up,
        Activation::Clamped { limit } => {
            let gate = gate.min(limit);
            gate * sigmoid(1.702 * gate) * (up.clamp(-limit, limit) + 1.0)
        }
        Activation::ClampedSilu { limit } => {
            let gate = gate.min(limit);
            gate * sigmoid(gate) * up.clamp(-limit, limit)
        }
        Activation::Xielu { positive, negative, beta, eps } => {
            let value = match gate > 0.0 {
                true => positive * gate * gate + beta * gate,
                false => (gate.min(eps).exp_m1() - gate) * negative + beta * gate,
            };
            value * up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_right() {
        let erfs = [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.5, 0.999_593_1), (-1.0, -0.842_700_8)];
        assert!(erfs.iter().all(|(x, y)| (erf(*x) - y).abs() < 2e-7));
        let close = |activation, gate: f32, up: f32, y: f32| {
            let got = times(activation, gate, up);
            assert!((got - y).abs() < 2e-6, "{activation:?} of {gate} and {up} is {got}, not {y}");
        };
        close(Activation::Gelu, 1.0, 2.0, 1.682_689_5);
        close(Activation::GeluTanh, 1.0, 1.0, 0.841_192);
        close(Activation::Relu, -2.0, 3.0, 0.0);
        close(Activation::Relu, 2.0, 3.0, 6.0);
        close(Activation::SquaredRelu, -2.0, 1.0, 0.0);
        close(Activation::SquaredRelu, 3.0, 1.0, 9.0);
        // Beyond the limit both stand still.
        close(Activation::Clamped { limit: 7.0 }, 9.0, -9.0, times(Activation::Clamped { limit: 7.0 }, 7.0, -7.0));
        close(Activation::Clamped { limit: 7.0 }, 1.0, 1.0, 2.0 / (1.0 + (-1.702f32).exp()));
        close(Activation::ClampedSilu { limit: 3.0 }, 5.0, 4.0, 9.0 * sigmoid(3.0));
        let xielu = Activation::Xielu { positive: 0.8, negative: 1.3, beta: 0.5, eps: -1e-6 };
        close(xielu, 2.0, 1.0, 4.2);
        close(xielu, -2.0, 1.0, ((-2f32).exp() - 1.0 + 2.0) * 1.3 - 1.0);
    }
}
