//! Feed-forward blocks taken back.

use super::super::erf::erf;
use super::super::linear::{FeedForward, columns, sigmoid, sized, times};
use super::Gradients;
use crate::kernel::Output;
use crate::model::config::Activation;
use rayon::prelude::*;

/// Whether an activation has a derivative here.
pub(super) fn has_slope(activation: Activation) -> bool {
    slope(activation, 0.0).is_some()
}

/// The value of an activation without `up`, and its derivative.
fn slope(activation: Activation, x: f32) -> Option<(f32, f32)> {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let derivative = match activation {
        Activation::Silu => {
            let s = sigmoid(x);
            s * (1.0 + x * (1.0 - s))
        }
        Activation::GeluTanh => {
            let t = (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh();
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
        }
        Activation::Gelu => {
            let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            below + x * (-0.5 * x * x).exp() * 0.5 * SQRT_2_OVER_PI
        }
        Activation::Relu => f32::from(u8::from(x > 0.0)),
        Activation::SquaredRelu => 2.0 * x.max(0.0),
        Activation::Xielu { positive, negative, beta, eps } => match x > 0.0 {
            true => 2.0 * positive * x + beta,
            false => (if x < eps { x.exp() } else { 0.0 } - 1.0) * negative + beta,
        },
        Activation::Clamped { .. } | Activation::ClampedSilu { .. } => return None,
    };
    Some((times(activation, x, 1.0), derivative))
}

impl FeedForward {
    /// From the gradient `dy` at the result of `x` (both `[n, hidden]`) to that at `x`, which is added to `dx`.
    pub(super) fn back(&self, x: &[f32], hidden: usize, dy: &[f32], dx: &mut [f32], gradients: &mut dyn Gradients) {
        let (n, width) = (x.len() / hidden, self.width);
        let both = if self.gated { 2 * width } else { width };
        let mut gate_up = vec![0.0; n * both];
        let mut at = 0;
        for linear in &self.gate_up {
            let _ = linear.product(x, Output { data: &mut gate_up, stride: both, at }, &mut ());
            at += linear.out();
        }
        let mut inner = Vec::new();
        let activated = sized(&mut inner, n * width);
        super::super::linear::activate(self.activation, self.gated, &gate_up, activated, width);
        let mut d_inner = vec![0.0; n * width];
        self.down.back(activated, dy, &mut d_inner, gradients);
        // In the place of gate and up their gradients.
        let rows = gate_up.par_chunks_exact_mut(both).zip(d_inner.par_chunks_exact(width));
        rows.for_each(|(row, d)| {
            let (gate, up) = row.split_at_mut(width);
            for (i, (gate, d)) in gate.iter_mut().zip(d).enumerate() {
                let (value, derivative) = slope(self.activation, *gate).unwrap_or_default();
                match up.get_mut(i) {
                    Some(up) => (*gate, *up) = (d * *up * derivative, d * value),
                    None => *gate = d * derivative,
                }
            }
        });
        let mut at = 0;
        for linear in &self.gate_up {
            let own = columns(&gate_up, both, at..at + linear.out());
            linear.back(x, &own, dx, gradients);
            at += linear.out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_small_steps() {
        let xielu = Activation::Xielu { positive: 0.8, negative: 1.3, beta: 0.5, eps: -1e-6 };
        for activation in
            [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu, Activation::SquaredRelu, xielu]
        {
            for x in [-3.0, -0.7, -0.1, 0.2, 1.1, 4.0f32] {
                let (value, derivative) = slope(activation, x).unwrap();
                let h = 1e-2;
                let difference = (times(activation, x + h, 1.0) - times(activation, x - h, 1.0)) / (2.0 * h);
                assert!((derivative - difference).abs() < 3e-4, "{activation:?} at {x}: {derivative} {difference}");
                assert_eq!(value, times(activation, x, 1.0));
            }
        }
    }
}
