//! Norms taken back.

use super::super::norm::{Norm, ROWS_PER_TASK};
use super::Gradients;
use crate::model::config;
use rayon::prelude::*;

impl Norm {
    /// From the gradient `dy` at what [`Norm::apply`] made of rows `x` of `width` to that at `x`, in place. Rows take the
    /// weights of `parts` parts in turn.
    pub(super) fn back(&self, x: &[f32], width: usize, parts: usize, dy: &mut [f32], gradients: &mut dyn Gradients) {
        let (width, parts) = (width.max(1), parts.max(1));
        // Whole turns, so that every block begins with the first part.
        let block = ROWS_PER_TASK * parts * width;
        let blocks = dy.par_chunks_mut(block).zip(x.par_chunks(block));
        let of_blocks: Vec<Vec<f64>> = blocks
            .map(|(dy, x)| {
                let mut dw = vec![0f64; self.weight.len()];
                for (i, (dy, x)) in dy.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    let first = i % parts * width % self.weight.len().max(1);
                    let of = first..first + width;
                    self.row_back(x, &self.weight[of.clone()], dy, &mut dw[of]);
                }
                dw
            })
            .collect();
        let mut dw = vec![0f64; self.weight.len()];
        of_blocks.iter().for_each(|some| dw.iter_mut().zip(some).for_each(|(sum, v)| *sum += v));
        let dw: Vec<f32> = dw.into_iter().map(|v| v as f32).collect();
        gradients.norm(&self.name, &dw);
    }

    /// `y = r (x - m) w` with `r = 1/sqrt(mean((x - m)²) + eps)`, and a mean `m` that LayerNorm alone takes out.
    fn row_back(&self, x: &[f32], weight: &[f32], dy: &mut [f32], dw: &mut [f64]) {
        let n = x.len() as f64;
        let is_centred = match self.kind {
            config::Norm::Rms => false,
            config::Norm::Layer => true,
        };
        let mean = if is_centred { x.iter().map(|v| f64::from(*v)).sum::<f64>() / n } else { 0.0 };
        let centred = |v: f32| f64::from(v) - mean;
        let power = x.iter().map(|v| centred(*v).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (power + f64::from(self.eps)).sqrt();
        let mut along = 0.0;
        for (((dy, x), w), dw) in dy.iter_mut().zip(x).zip(weight).zip(dw) {
            *dw += f64::from(*dy) * centred(*x) * r;
            *dy *= w;
            along += f64::from(*dy) * centred(*x);
        }
        let along = along * r * r * r / n;
        let mut sum = 0.0;
        for (dy, x) in dy.iter_mut().zip(x) {
            let back = f64::from(*dy) * r - along * centred(*x);
            sum += back;
            *dy = back as f32;
        }
        if is_centred {
            let mean = (sum / n) as f32;
            dy.iter_mut().for_each(|v| *v -= mean);
        }
    }
}
