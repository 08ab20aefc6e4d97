//! Rotary position embeddings (Su et al. 2021) and their scaled variants: from a configuration to the cosines and sines
//! of a batch of positions, computed once per batch. The formulas and their order in `f32` are those of transformers'
//! `modeling_rope_utils.py`, so that angles agree with it at large positions too.

use crate::kernel::vector;
use crate::model::config::{Rope, RopeScaling};
use std::f32::consts::PI;

/// Divisors of the frequencies that a checkpoint brings as tensors, each `[dims / 2]`.
#[derive(Default)]
pub struct Factors {
    /// `rope_freqs.weight` (llama3 scaling).
    pub all: Option<Vec<f32>>,
    /// `rope_factors_short.weight` (longrope, up to the original context).
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight` (longrope, beyond it).
    pub long: Option<Vec<f32>>,
}

/// Cosines and sines, each `[positions, dims / 2]`.
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    /// The angles of positions `first .. first + n` in the layers that see everything.
    ///
    /// `context` is how long the sequence can become: longrope chooses its factors by it. `full_context` is what the
    /// model was made for.
    pub fn new(rope: &Rope, factors: &Factors, context: usize, full_context: usize, first: usize, n: usize) -> Self {
        let (frequencies, scale) = frequencies(rope, factors, context, full_context);
        Self::at(&frequencies, scale, first, n)
    }

    fn at(frequencies: &[f32], scale: f32, first: usize, n: usize) -> Self {
        let half = frequencies.len();
        let angles = (first..first + n).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(|a| a.sin_cos()).map(|(s, c)| (s * scale, c * scale)).unzip();
        Angles { cos, sin, half }
    }

    /// Those that turn back what these turned: the transpose of the rotation.
    pub fn back(&self) -> Self {
        Angles { cos: self.cos.clone(), sin: self.sin.iter().map(|s| -s).collect(), half: self.half }
    }

    /// Turns the first channels of `head` by the angles of the `i`-th position of the batch; channels that are turned
    /// together are neighbours (`pairs`), or half of them apart.
    pub fn rotate(&self, head: &mut [f32], i: usize, pairs: bool) {
        let (cos, sin) = self.row(i);
        let rotated = &mut head[..2 * cos.len()];
        if pairs {
            vector::rotate_pairs(rotated, cos, sin);
        } else {
            let (low, high) = rotated.split_at_mut(cos.len());
            vector::rotate_halves(low, high, cos, sin);
        }
    }

    /// The same where the whole head lies in pairs, a channel of its first half beside one of its second, although a part of it
    /// is turned.
    pub fn rotate_spread(&self, head: &mut [f32], i: usize) {
        let (cos, sin) = self.row(i);
        let half = head.len() / 2;
        let place = |channel: usize| if channel < half { 2 * channel } else { 2 * (channel - half) + 1 };
        for (j, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (low, high) = (place(j), place(j + self.half));
            let (x, y) = (head[low], head[high]);
            head[low] = x * cos - y * sin;
            head[high] = y * cos + x * sin;
        }
    }

    /// Cosines and sines of the `i`-th position of the batch.
    pub fn row(&self, i: usize) -> (&[f32], &[f32]) {
        let range = i * self.half..(i + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// `theta^(-2j / dims)`.
fn base(theta: f32, dims: usize) -> Vec<f32> {
    (0..dims / 2).map(|j| 1.0 / theta.powf((2 * j) as f32 / dims as f32)).collect()
}

/// Frequencies after scaling, and the factor on cosines and sines.
fn frequencies(rope: &Rope, factors: &Factors, context: usize, full_context: usize) -> (Vec<f32>, f32) {
    let mut f = base(rope.theta, rope.dims);
    let mut scale = 1.0;
    let divide = |f: &mut Vec<f32>, by: &[f32]| f.iter_mut().zip(by).for_each(|(f, d)| *f /= d);
    if let Some(all) = &factors.all {
        divide(&mut f, all);
        return (f, scale);
    }
    match &rope.scaling {
        RopeScaling::Default => {}
        RopeScaling::Linear { factor } => f.iter_mut().for_each(|f| *f /= factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let original = *original_context as f32;
            for f in &mut f {
                let wavelength = 2.0 * PI / *f;
                if wavelength > original / low_freq_factor {
                    *f /= factor;
                } else if wavelength >= original / high_freq_factor {
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    *f = (1.0 - smooth) * *f / factor + smooth * *f;
                }
            }
        }
        RopeScaling::Yarn { factor, original_context, attention_factor, beta_fast, beta_slow, truncate } => {
            let dims = rope.dims as f32;
            // The dimension whose wavelength turns `rotations` times in the original context.
            let dimension = |rotations: f32| {
                dims * (*original_context as f32 / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
            };
            let (low, high) = (dimension(*beta_fast), dimension(*beta_slow));
            let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dims - 1.0));
            let high = if high == low { high + 0.001 } else { high };
            for (j, f) in f.iter_mut().enumerate() {
                let interpolated = ((j as f32 - low) / (high - low)).clamp(0.0, 1.0);
                *f = *f / factor * interpolated + *f * (1.0 - interpolated);
            }
            let default = if *factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            scale = attention_factor.unwrap_or(default);
        }
        RopeScaling::LongRope { short, long, original_context, attention_factor } => {
            let stored = if context > *original_context { (&factors.long, long) } else { (&factors.short, short) };
            divide(&mut f, stored.0.as_ref().unwrap_or(stored.1));
            let original = *original_context as f32;
            let ratio = full_context as f32 / original;
            let default = if ratio > 1.0 { (1.0 + ratio.ln() / original.ln()).sqrt() } else { 1.0 };
            scale = attention_factor.unwrap_or(default);
        }
    }
    (f, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 10000.0, dims: 16, scaling }
    }

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 2e-6 * w.abs(), "{got:?} is not {want:?}");
        }
    }

    // The expected numbers are transformers' rules (`modeling_rope_utils.py`) worked out in double precision.

    #[test]
    fn yarn_interpolates_slow_dimensions_only() {
        let yarn = |original_context| RopeScaling::Yarn {
            factor: 4.0,
            original_context,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        };
        let (f, scale) = frequencies(&rope(yarn(64)), &Factors::default(), 256, 256);
        close(&f, &[1.0, 0.237_170_82, 0.05, 0.007_905_694, 0.0025, 7.905_694e-4, 2.5e-4, 7.905_694e-5]);
        close(&[scale], &[1.138_629_4]);
        let (f, _) = frequencies(&rope(yarn(4096)), &Factors::default(), 256, 256);
        close(&f, &[1.0, 0.316_227_77, 0.1, 0.025_693_506, 0.00625, 0.001_383_496_5, 2.5e-4, 7.905_694e-5]);
    }

    #[test]
    fn llama3_divides_long_wavelengths() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 32 };
        let (f, scale) = frequencies(&rope(scaling), &Factors::default(), 256, 256);
        let want = [1.0, 0.095_839_985, 0.0125, 0.003_952_847, 0.00125, 3.952_847e-4, 1.25e-4, 3.952_847e-5];
        close(&f, &want);
        // The same as divisors, as a checkpoint brings them.
        let divisors = base(10000.0, 16).iter().zip(want).map(|(b, w)| b / w).collect();
        let factors = Factors { all: Some(divisors), ..Factors::default() };
        close(&frequencies(&rope(RopeScaling::Default), &factors, 256, 256).0, &want);
        assert_eq!(scale, 1.0);
    }

    #[test]
    fn longrope_chooses_factors_by_the_context() {
        let scaling = RopeScaling::LongRope {
            short: vec![2.0; 8],
            long: vec![4.0; 8],
            original_context: 4096,
            attention_factor: None,
        };
        let (short, scale) = frequencies(&rope(scaling.clone()), &Factors::default(), 4096, 131_072);
        let (long, _) = frequencies(&rope(scaling), &Factors::default(), 4097, 131_072);
        assert_eq!((short[0], long[0]), (0.5, 0.25));
        close(&[scale], &[1.190_238_1]);
    }

    #[test]
    fn angles_grow_with_the_position() {
        let angles = Angles::new(&rope(RopeScaling::Linear { factor: 2.0 }), &Factors::default(), 64, 64, 10, 3);
        let (cos, sin) = angles.row(2);
        close(&[cos[0], sin[0]], &[6f32.cos(), 6f32.sin()]);
        let local = Rope { theta: 10000.0, dims: 16, scaling: RopeScaling::Default };
        let local = Angles::new(&local, &Factors::default(), 64, 64, 12, 1);
        close(&[local.row(0).1[0]], &[12f32.sin()]);
    }
}
