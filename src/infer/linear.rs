//! Linear layers over weights in any stored form, and the feed-forward block made of them.

use super::Observer;
use super::activations::Rounding;
use crate::kernel::{Output, RowSource, bf16, matmul, vector};
use crate::model::config::Activation;
use rayon::prelude::*;
use std::ops::{ControlFlow, Range};

/// A linear layer `[out, in]`, or a stack of them `[experts * out, in]`.
pub struct Linear {
    /// GGUF name of the weight.
    pub name: String,
    pub weight: Box<dyn RowSource>,
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
        observer.input(&self.name, None, x)?;
        let (stride, at) = (y.stride, y.at);
        self.matmul(x, 0..self.out(), Output { data: &mut *y.data, stride, at });
        if let Some(bias) = &self.bias {
            for row in y.data.chunks_exact_mut(stride) {
                vector::add_scaled(&mut row[at..at + bias.len()], 1.0, bias);
            }
        }
        ControlFlow::Continue(())
    }

    /// `y = x · W[expert]ᵀ`, where each expert has `out` rows.
    pub(super) fn expert_product(
        &self,
        expert: usize,
        out: usize,
        x: &[f32],
        y: Output<'_>,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        observer.input(&self.name, Some(expert), x)?;
        self.matmul(x, expert * out..(expert + 1) * out, y);
        ControlFlow::Continue(())
    }
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

/// `down(activation(gate(x)) · up(x))`.
pub(super) struct FeedForward {
    /// Gate and up, or one matrix with the rows of both in this order.
    pub gate_up: Vec<Linear>,
    pub down: Linear,
    pub width: usize,
    pub activation: Activation,
}

impl FeedForward {
    /// `x` and `out` are `[n, hidden]`.
    pub fn forward(
        &self,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
        inner: &mut Inner,
        observer: &mut dyn Observer,
    ) -> ControlFlow<()> {
        let (n, width) = (x.len() / hidden, self.width);
        let gate_up = sized(&mut inner.gate_up, n * 2 * width);
        products(&self.gate_up, x, gate_up, 2 * width, observer)?;
        let activated = sized(&mut inner.activated, n * width);
        activate(self.activation, gate_up, activated, width);
        self.down.product(activated, Output::whole(out, hidden), observer)
    }
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

/// `inner = activation(gate) · up` with gate and up side by side in `gate_up` (`[n, 2 * width]`).
pub(super) fn activate(activation: Activation, gate_up: &[f32], inner: &mut [f32], width: usize) {
    let rows = inner.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width));
    rows.with_min_len(ROWS_PER_TASK).for_each(|(inner, row)| {
        let (gate, up) = row.split_at(width);
        match activation {
            Activation::Silu => vector::silu_times(inner, gate, up),
            Activation::GeluTanh => vector::gelu_times(inner, gate, up),
            Activation::SquaredRelu => {
                for ((inner, gate), up) in inner.iter_mut().zip(gate).zip(up) {
                    let positive = gate.max(0.0);
                    *inner = positive * positive * up;
                }
            }
        }
    });
}

/// Rows of activations that are worth handing to another thread.
pub(super) const ROWS_PER_TASK: usize = 32;
