//! Four-bit floats (E2M1) under a scale per group of columns, NVFP4's and MXFP4's: the [`Grid`] that chooses scales and
//! codes inside the feedback loop. Which scales there are is the caller's; nothing is packed here.

use super::lanes::LANES;
use super::{Block, Factor, Grid, Polish, round};
use crate::simd::F32x16;
use std::ops::RangeInclusive;

/// What a format can hold.
pub struct Fp4Spec {
    /// Columns that share a scale.
    pub group: usize,
    /// What each code of a scale stands for, rising with the code inside `codes`.
    pub scales: [f32; 256],
    pub codes: RangeInclusive<u8>,
    /// Codes that are tried, relative to the smallest scale under which the group's largest weight becomes 6 or less.
    pub tried: RangeInclusive<i32>,
}

/// A rounded matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp4Rounded {
    /// E2M1 codes, `[rows, cols]`.
    pub codes: Vec<u8>,
    /// `[rows, groups]`.
    pub scales: Vec<u8>,
    /// As a share of the weights' power.
    pub loss: f64,
}

/// Rounds `w` (`[rows, factor.len()]`, finite); the factor's order must keep groups together.
pub fn quantize(w: &[f32], factor: &Factor, spec: &Fp4Spec) -> Fp4Rounded {
    let cols = factor.len();
    let (rows, groups) = (w.len() / cols.max(1), cols.div_ceil(spec.group));
    let grid = Fp4Grid {
        spec,
        group_of: factor.order().chunks(spec.group).map(|block| block[0] as usize / spec.group).collect(),
    };
    let rounded = round(w, factor, &grid, 1);
    let loss = rounded.relative_loss();
    let (mut codes, mut scales) = (vec![0; rows * cols], vec![0; rows * groups]);
    for (row, part) in (0..rows).step_by(LANES).zip(&rounded.parts) {
        for lane in 0..LANES.min(rows - row) {
            let out = &mut codes[(row + lane) * cols..][..cols];
            part.units.iter().zip(factor.order()).for_each(|(units, c)| out[*c as usize] = code(units[lane]));
            for (block, scale) in part.scales.iter().enumerate() {
                scales[(row + lane) * groups + grid.group_of[block]] = scale[lane];
            }
        }
    }
    Fp4Rounded { codes, scales, loss }
}

struct Fp4Grid<'a> {
    spec: &'a Fp4Spec,
    /// The file's group of each block.
    group_of: Vec<usize>,
}

/// One bundle's result, by place and by block.
struct Part {
    /// Halves: −12 to 12.
    units: Vec<[i8; LANES]>,
    scales: Vec<[u8; LANES]>,
}

/// Scales that are tried at once.
const TRIES: usize = 4;

/// The E2M1 number nearest to `x`, ties to even.
#[inline(always)]
fn nearest(x: F32x16) -> F32x16 {
    let a = x.abs();
    let fine = (a * 2.0).round() * 0.5;
    let coarse = ((a * 0.5).round() * 2.0).min(F32x16::splat(6.0));
    let upper = a.round().if_less(a, F32x16::splat(4.0), coarse);
    let size = fine.if_less(a, F32x16::splat(2.0), upper);
    (size * -1.0).if_less(x, F32x16::ZERO, size)
}

/// The code of so many halves.
fn code(units: i8) -> u8 {
    let size = match units.unsigned_abs() {
        n @ 0..=4 => n,
        6 => 5,
        8 => 6,
        _ => 7,
    };
    if units < 0 { size | 8 } else { size }
}

#[inline(always)]
fn halves(value: F32x16) -> [i8; LANES] {
    value.0.map(|v| (2.0 * v) as i8)
}

impl Fp4Grid<'_> {
    #[inline(always)]
    fn scale(&self, codes: [u8; LANES]) -> F32x16 {
        F32x16(codes.map(|c| self.spec.scales[usize::from(c)]))
    }
}

impl Grid for Fp4Grid<'_> {
    type Part = Part;

    fn block(&self) -> usize {
        self.spec.group
    }

    fn start(&self, weights: &[F32x16], _: &Factor) -> Part {
        Part { units: vec![[0; LANES]; weights.len()], scales: vec![[0; LANES]; self.group_of.len()] }
    }

    #[inline(always)]
    fn round(&self, part: &mut Part, block: Block<'_>) {
        let (low, high) = (*self.spec.codes.start(), *self.spec.codes.end());
        let largest = block.weight.iter().fold(F32x16::ZERO, |max, w| max.max(w.abs()));
        let valid = &self.spec.scales[usize::from(low)..=usize::from(high)];
        let fits = largest.0.map(|max| i32::from(low) + valid.partition_point(|s| s * 6.0 < max) as i32);
        let offsets: Vec<i32> = self.spec.tried.clone().collect();
        let mut best = ([low; LANES], F32x16::splat(f32::INFINITY));
        let mut errors = vec![[F32x16::ZERO; TRIES]; block.weight.len()];
        for offsets in offsets.chunks(TRIES) {
            let tried: [[u8; LANES]; TRIES] = std::array::from_fn(|c| {
                // A short chunk tries its last one again.
                let offset = offsets[c.min(offsets.len() - 1)];
                fits.map(|at| (at + offset).clamp(i32::from(low), i32::from(high)) as u8)
            });
            let scales = tried.map(|codes| self.scale(codes));
            let inverses = scales.map(|s| s.map(|s| 1.0 / s));
            let losses = block.local.trial(0, block.weight, &mut errors, |_, t| {
                std::array::from_fn(|c| nearest(t[c] * inverses[c]) * scales[c])
            });
            for c in 0..TRIES {
                let better = losses[c].0.iter().zip(&best.1.0).map(|(loss, least)| loss < least);
                let codes = best.0.iter_mut().zip(&tried[c]).zip(better);
                codes.filter(|(_, better)| *better).for_each(|((best, tried), _)| *best = *tried);
                best.1 = losses[c].min(best.1);
            }
        }
        part.scales[block.places.start / self.spec.group] = best.0;
        let scale = self.scale(best.0);
        let inverse = scale.map(|s| 1.0 / s);
        let mut errors = vec![[F32x16::ZERO; 1]; block.weight.len()];
        block.local.trial(0, block.weight, &mut errors, |j, [t]| {
            let value = nearest(t * inverse);
            part.units[block.places.start + j] = halves(value);
            block.value[j] = value * scale;
            [block.value[j]]
        });
        block.error.iter_mut().zip(&errors).for_each(|(out, [e])| *out = *e);
    }

    #[inline(always)]
    fn polish(&self, part: &mut Part, block: Polish<'_>) {
        let Polish { places, square, gradient, value } = block;
        let scale = self.scale(part.scales[places.start / self.spec.group]);
        let inverse = scale.map(|s| 1.0 / s);
        // One code after the other, to where the loss is least with all others fixed.
        for (j, value) in value.iter_mut().enumerate() {
            let units = nearest((*value + gradient[j] * (1.0 / square.diagonal(j))) * inverse);
            let change = units * scale - *value;
            *value = units * scale;
            part.units[places.start + j] = halves(units);
            square.moved(j, change, gradient);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Order, Shrink};
    use super::*;
    use crate::made::numbers;
    use crate::minifloat::{E2M1, e4m3, e8m0, to_e2m1};

    fn specs() -> [Fp4Spec; 2] {
        let nv = std::array::from_fn(|c| if c < 0x7f { e4m3(c as u8) / 100.0 } else { 0.0 });
        let mx = std::array::from_fn(|c| e8m0(c.min(254) as u8));
        [
            Fp4Spec { group: 16, scales: nv, codes: 1..=0x7e, tried: -5..=2 },
            Fp4Spec { group: 32, scales: mx, codes: 0..=254, tried: -2..=1 },
        ]
    }

    #[test]
    fn numbers_become_the_nearest_of_the_format() {
        for i in -700..700 {
            let x = i as f32 / 100.0 + 0.001;
            let found = nearest(F32x16::splat(x)).0[0];
            assert_eq!(found, E2M1[usize::from(to_e2m1(x))], "{x}");
            assert_eq!(E2M1[usize::from(code((2.0 * found) as i8))], found);
        }
    }

    #[test]
    fn feedback_lowers_the_error_of_the_outputs() {
        let (rows, cols) = (20, 96);
        let w = numbers(rows * cols, 1);
        // Inputs that share a large component.
        let common = numbers(200, 2);
        let x: Vec<f32> = numbers(200 * cols, 3).iter().enumerate().map(|(i, v)| 0.3 * v + common[i / cols]).collect();
        let mut gram = vec![0.0; cols * cols];
        for x in x.chunks_exact(cols) {
            for i in 0..cols {
                (0..cols).for_each(|j| gram[i * cols + j] += x[i] * x[j]);
            }
        }
        for spec in specs() {
            let error = |found: &Fp4Rounded| {
                let mut total = 0.0f64;
                for x in x.chunks_exact(cols) {
                    for row in 0..rows {
                        let dot: f32 = (0..cols)
                            .map(|c| {
                                let scale = spec.scales[usize::from(found.scales[(row * cols + c) / spec.group])];
                                let q = E2M1[usize::from(found.codes[row * cols + c])] * scale;
                                x[c] * (w[row * cols + c] - q)
                            })
                            .sum();
                        total += f64::from(dot).powi(2);
                    }
                }
                total
            };
            let shrink = Shrink { rho: 0.0, damping: 0.01 };
            let (factor, _) = Factor::new(&gram, cols, shrink, Order::Groups(spec.group)).unwrap();
            let diagonal = Factor::diagonal(&(0..cols).map(|i| gram[i * cols + i]).collect::<Vec<_>>());
            let (with, without) = (quantize(&w, &factor, &spec), quantize(&w, &diagonal, &spec));
            let (with, without) = (error(&with), error(&without));
            assert!(with < 0.3 * without, "{with} {without}");
        }
    }
}
