//! What is tuned of a matrix whose codes stay, how gradients of its weights are summed up to it, and how a step moves it.
//!
//! A weight is `s (c - z)` in formats with zero points, of which the scale `s` moves. Where a group has a bias, `s c + b`, it is
//! taken as `s (c - m) + l` with the mean `m` of the group's codes: scale and level `l` then have nothing to do with each
//! other, and what rounding a scale to its stored type moves the level by goes into the bias, which is rounded after it.
//! Both move in units of the group's own steps, so that one rate serves all groups of a model.

use crate::infer::weight_gradient;
use crate::kernel::RowSource;
use crate::minifloat::{self, round_all};
use crate::packed::Tunable;
use crate::quant::GgmlType;
use rayon::prelude::*;
use std::cell::RefCell;

/// Rows whose gradient is in memory at once, per thread.
const ROWS: usize = 64;

/// A number for each group, and Adam's moments of its gradient (Kingma and Ba 2015, algorithm 1).
#[derive(Default)]
struct Moving {
    by: Vec<f32>,
    gradient: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// How much of Adam's moments is left after a step, and what keeps a group without gradient where it is.
const MEAN: f32 = 0.9;
const SQUARE: f32 = 0.99;
const EPS: f32 = 1e-12;

impl Moving {
    fn new(groups: usize) -> Self {
        let zeros = || vec![0.0; groups];
        Moving { by: zeros(), gradient: zeros(), mean: zeros(), square: zeros() }
    }

    /// The `count`-th step, counted from 1.
    fn step(&mut self, rate: f32, count: i32) {
        let (mean_share, square_share) = (1.0 - MEAN.powi(count), 1.0 - SQUARE.powi(count));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((by, gradient), (mean, square)) in self.by.iter_mut().zip(&mut self.gradient).zip(moments) {
            *mean = MEAN * *mean + (1.0 - MEAN) * *gradient;
            *square = SQUARE * *square + (1.0 - SQUARE) * *gradient * *gradient;
            *by -= rate * (*mean / mean_share) / ((*square / square_share).sqrt() + EPS);
            *gradient = 0.0;
        }
    }
}

/// A matrix that is tuned.
pub struct Parameters {
    /// GGUF name of its linear layer.
    pub name: String,
    now: Tunable,
    /// Scales and levels as they were.
    scales: Vec<f32>,
    levels: Vec<f32>,
    /// Of each group the mean code, and the root of the mean square of the steps from it (without biases: from 0).
    centres: Vec<f32>,
    spreads: Vec<f32>,
    scale: Moving,
    /// Of no groups where there are no biases.
    level: Moving,
}

/// A norm of an artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// GGUF name of its weights.
    pub name: String,
    /// As they are stored, and in which type.
    pub stored: Vec<f32>,
    pub dtype: GgmlType,
    /// What the model adds to them (Gemma: 1).
    pub added: f32,
}

/// A norm that is tuned, its weights in units of their mean magnitude.
pub struct NormParameters {
    now: Norm,
    origin: Vec<f32>,
    unit: f32,
    weight: Moving,
}

impl NormParameters {
    pub fn new(norm: Norm) -> Self {
        let size: f32 = norm.stored.iter().map(|w| (w + norm.added).abs()).sum();
        let unit = size / norm.stored.len().max(1) as f32;
        NormParameters { origin: norm.stored.clone(), unit, weight: Moving::new(norm.stored.len()), now: norm }
    }

    /// The norm as it is now.
    pub fn now(&self) -> &Norm {
        &self.now
    }

    /// Writes the weights as the model multiplies with them.
    pub fn place(&self, weights: &mut [f32]) {
        weights.iter_mut().zip(&self.now.stored).for_each(|(w, stored)| *w = stored + self.now.added);
    }

    /// Adds a gradient of the weights.
    pub fn add(&mut self, dw: &[f32]) {
        self.weight.gradient.iter_mut().zip(dw).for_each(|(sum, dw)| *sum += self.unit * dw);
    }

    /// As [`Parameters::step`].
    pub fn step(&mut self, rate: f32, count: i32) {
        self.weight.step(rate, count);
        let moved = self.origin.iter().zip(&self.weight.by).map(|(w, by)| w + self.unit * by);
        self.now.stored = moved.collect();
        round_all(self.now.dtype, &mut self.now.stored);
    }
}

/// Working memory of a thread.
#[derive(Default)]
struct Scratch {
    dw: Vec<f32>,
    steps: Vec<f32>,
    codes: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

impl Parameters {
    pub fn new(name: String, matrix: Tunable) -> Self {
        let (cols, groups) = (matrix.cols(), matrix.groups());
        let all = matrix.scales().len();
        let has_biases = matrix.biases().is_some();
        let (mut centres, mut spreads) = (vec![0.0; all], vec![0.0; all]);
        let ones = vec![1.0; cols];
        let rows = centres.par_chunks_exact_mut(groups).zip(spreads.par_chunks_exact_mut(groups)).enumerate();
        rows.for_each(|(row, (centres, spreads))| {
            let (mut codes, mut steps) = (Vec::new(), vec![0.0; cols]);
            let (mut counts, mut squares) = (vec![0.0; groups], vec![0.0; groups]);
            matrix.steps(row, &mut codes, &mut steps);
            matrix.reduce(&steps, &ones, centres, &mut counts);
            let squared: Vec<f32> = steps.iter().map(|s| s * s).collect();
            matrix.reduce(&squared, &ones, &mut squares, &mut counts);
            for ((centre, spread), (square, count)) in centres.iter_mut().zip(spreads).zip(squares.iter().zip(&counts))
            {
                *centre = if has_biases { *centre / count.max(1.0) } else { 0.0 };
                *spread = (square / count.max(1.0) - *centre * *centre).max(0.0).sqrt();
            }
        });
        let scales = matrix.scales().to_vec();
        let level = |(bias, (scale, centre)): (&f32, (&f32, &f32))| bias + scale * centre;
        let biases = matrix.biases().unwrap_or_default().iter();
        let levels: Vec<f32> = biases.zip(scales.iter().zip(&centres)).map(level).collect();
        let (scale, level) = (Moving::new(all), Moving::new(levels.len()));
        Parameters { name, now: matrix, scales, levels, centres, spreads, scale, level }
    }

    /// The matrix as it is now.
    pub fn now(&self) -> &Tunable {
        &self.now
    }

    /// Adds the gradient that `x` (`[n, in]`), which entered, and `dy` (`[n, out]`), at what left, give.
    pub fn add(&mut self, x: &[f32], dy: &[f32]) {
        let matrix = &self.now;
        let (rows, cols, groups) = (matrix.rows(), matrix.cols(), matrix.groups());
        let firsts: Vec<usize> = (0..rows).step_by(ROWS).collect();
        let of_block = |first: usize| {
            let count = (rows - first).min(ROWS);
            let (mut along, mut sums) = (vec![0.0; count * groups], vec![0.0; count * groups]);
            SCRATCH.with_borrow_mut(|Scratch { dw, steps, codes }| {
                dw.resize(ROWS * cols, 0.0);
                steps.resize(cols, 0.0);
                weight_gradient(x, cols, dy, rows, first..first + count, &mut dw[..count * cols]);
                let rows = along.chunks_exact_mut(groups).zip(sums.chunks_exact_mut(groups));
                for ((row, dw), (along, sums)) in (first..).zip(dw.chunks_exact(cols)).zip(rows) {
                    matrix.steps(matrix.stored_row(row), codes, steps);
                    matrix.reduce(steps, dw, along, sums);
                }
            });
            (along, sums)
        };
        let blocks: Vec<_> = firsts.into_par_iter().map(of_block).collect();
        let mut row = 0;
        for (along, sums) in blocks {
            for (along, sums) in along.chunks_exact(groups).zip(sums.chunks_exact(groups)) {
                self.add_row(self.now.stored_row(row), along, sums);
                row += 1;
            }
        }
    }

    /// Adds the gradient `dy` (`[n, cols]`) at rows that were looked up.
    pub fn add_rows(&mut self, rows: &[u32], dy: &[f32]) {
        let (cols, groups) = (self.now.cols(), self.now.groups());
        let (mut steps, mut codes) = (vec![0.0; cols], Vec::new());
        let (mut along, mut sums) = (vec![0.0; groups], vec![0.0; groups]);
        for (row, dy) in rows.iter().zip(dy.chunks_exact(cols)) {
            let stored = self.now.stored_row(*row as usize);
            self.now.steps(stored, &mut codes, &mut steps);
            self.now.reduce(&steps, dy, &mut along, &mut sums);
            self.add_row(stored, &along, &sums);
        }
    }

    /// What the sums over a row's groups are at scale and level.
    fn add_row(&mut self, stored: usize, along: &[f32], sums: &[f32]) {
        let of = stored * along.len()..(stored + 1) * along.len();
        let known = self.scales[of.clone()].iter().zip(&self.centres[of.clone()]);
        let sums_of = along.iter().zip(sums);
        for ((gradient, (along, sum)), (scale, centre)) in
            self.scale.gradient[of.clone()].iter_mut().zip(sums_of).zip(known)
        {
            *gradient += scale * (along - centre * sum);
        }
        if let Some(gradients) = self.level.gradient.get_mut(of.clone()) {
            let units = self.scales[of.clone()].iter().zip(&self.spreads[of]);
            for ((gradient, sum), (scale, spread)) in gradients.iter_mut().zip(sums).zip(units) {
                *gradient += scale.abs() * spread * sum;
            }
        }
    }

    /// Moves by what was added since the last step, the `count`-th, counted from 1.
    pub fn step(&mut self, rate: f32, count: i32) {
        self.scale.step(rate, count);
        self.level.step(rate, count);
        let dtype = self.now.dtype();
        let moved = |(scale, by): (&f32, &f32)| minifloat::rounded(dtype, scale * (1.0 + by));
        let scales: Vec<f32> = self.scales.iter().zip(&self.scale.by).map(moved).collect();
        let biases =
            self.levels.iter().zip(&self.level.by).enumerate().map(|(i, (level, by))| {
                level + self.scales[i].abs() * self.spreads[i] * by - scales[i] * self.centres[i]
            });
        let biases = biases.collect();
        self.now = self.now.with(scales, biases);
    }

    /// The gradients that were added since the last step, at scales and biases of all groups as they are stored: for tests.
    #[cfg(test)]
    pub fn gradients(&self) -> (Vec<f32>, Vec<f32>) {
        let unit = |i: usize| self.scales[i].abs() * self.spreads[i];
        let biases: Vec<f32> = self.level.gradient.iter().enumerate().map(|(i, g)| g / unit(i).max(1e-30)).collect();
        let scale = |(i, g): (usize, &f32)| {
            let bias = biases.get(i).copied().unwrap_or(0.0);
            g / self.scales[i] + self.centres[i] * bias
        };
        (self.scale.gradient.iter().enumerate().map(scale).collect(), biases)
    }
}
