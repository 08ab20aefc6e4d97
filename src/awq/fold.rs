//! Channel factors folded onto a model, as data: per tensor a factor per row and a factor per column. Applying them
//! changes weights and leaves the model's function as it is. No searching here, and no files.

use super::groups::Group;
use crate::model::families::Role;
use crate::quant::GgmlType;
use std::collections::BTreeMap;
use std::ops::Range;

/// The factors of every tensor that a set of groups touches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    factors: BTreeMap<(usize, Role), Factors>,
}

/// What one tensor is multiplied with. Empty means 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Factors {
    /// Per row, all experts together. The rows that have factors other than 1 have the same order in GGUF and in
    /// Hugging Face checkpoints; rows that GGUF reorders (query and key) never do.
    pub rows: Vec<f32>,
    /// Per column: `[cols]`, or `[experts, cols]` where experts differ. Of a vector (a norm, a bias) per element.
    pub cols: Vec<f32>,
}

impl Fold {
    pub fn get(&self, layer: usize, role: Role) -> Option<&Factors> {
        self.factors.get(&(layer, role))
    }

    /// Moves `scales` (`[group.channels]`, positive) from the group's producer into its consumers.
    pub fn add(&mut self, group: &Group, scales: &[f32]) {
        let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let vectors = group.from_bias.into_iter().chain(group.from.is_norm().then_some(group.from));
        for role in vectors {
            self.multiply_cols(group.layer, role, &inverse, 0, 1);
        }
        if !group.from.is_norm() {
            let rows = &mut self.factors.entry((group.layer, group.from)).or_default().rows;
            rows.resize(group.from_rows, 1.0);
            multiply(&mut rows[group.first_row..], &inverse);
        }
        let spread = group.columns.spread(scales);
        for role in &group.into {
            self.multiply_cols(group.layer, *role, &spread, group.expert.unwrap_or(0), group.experts);
        }
    }

    fn multiply_cols(&mut self, layer: usize, role: Role, factors: &[f32], matrix: usize, matrices: usize) {
        let cols = &mut self.factors.entry((layer, role)).or_default().cols;
        cols.resize(factors.len() * matrices, 1.0);
        multiply(&mut cols[matrix * factors.len()..], factors);
    }
}

fn multiply(values: &mut [f32], factors: &[f32]) {
    values.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
}

impl Factors {
    /// The new weights of `rows` of a matrix (`weights` `[rows.len(), cols]`) or of a stack of matrices with
    /// `rows_per_matrix` rows each. A vector is one row.
    pub fn apply(&self, rows: Range<usize>, cols: usize, rows_per_matrix: usize, weights: &mut [f32]) {
        for (row, weights) in rows.zip(weights.chunks_exact_mut(cols.max(1))) {
            if self.cols.len() > cols {
                let matrix = row / rows_per_matrix.max(1);
                multiply(weights, self.cols.get(matrix * cols..).unwrap_or_default());
            } else {
                multiply(weights, &self.cols);
            }
            if let Some(factor) = self.rows.get(row) {
                weights.iter_mut().for_each(|w| *w *= factor);
            }
        }
    }

    /// The new stored weights of a norm that computes `x * (stored + add)`.
    pub fn apply_norm(&self, add: f32, stored: &mut [f32]) {
        stored.iter_mut().zip(&self.cols).for_each(|(w, f)| *w = (*w + add) * f - add);
    }
}

/// A value as a tensor of type `ty` stores it.
pub fn stored(value: f32, ty: GgmlType) -> f32 {
    match ty {
        GgmlType::F16 => half::f16::from_f32(value).to_f32(),
        GgmlType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Largest factor between a wished scale and the one that a norm's stored type allows.
const SLACK: f32 = 1.2;

/// Scales close to `scales` for which the norm `weights` (as stored, `x * (weight + add)`) can be divided without any
/// rounding: the rounding of the new weight is put into the scale, and so into the columns that read it, where it costs
/// nothing. A channel for which that would change the scale by more than a fifth keeps the scale 1.
pub fn representable(scales: &[f32], weights: &[f32], add: f32, ty: GgmlType) -> Vec<f32> {
    let settle = |(scale, weight): (&f32, &f32)| {
        let effective = weight + add;
        let rounded = stored(effective / scale - add, ty) + add;
        let settled = effective / rounded;
        let change = settled / scale;
        if change.is_finite() && (1.0 / SLACK..SLACK).contains(&change) { settled } else { 1.0 }
    };
    scales.iter().zip(weights).map(settle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::numbers;

    #[test]
    fn a_norm_takes_settled_scales_without_rounding() {
        let n = 500;
        for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::F32] {
            for add in [0.0, 1.0] {
                let weights: Vec<f32> = numbers(n, 1).into_iter().map(|w| stored(w, ty)).collect();
                let wished: Vec<f32> = numbers(n, 2).into_iter().map(|s| (3.0 * s).exp()).collect();
                let scales = representable(&wished, &weights, add, ty);
                let mut new = weights.clone();
                let factors = Factors { cols: scales.iter().map(|s| 1.0 / s).collect(), ..Factors::default() };
                factors.apply_norm(add, &mut new);
                let mut moved = 0;
                for i in 0..n {
                    // What the file says, times the scale, is what it was.
                    let (old, now) = (weights[i] + add, (stored(new[i], ty) + add) * scales[i]);
                    assert!((old - now).abs() <= 3e-7 * old.abs(), "{ty} {add}: {old} {now} {}", scales[i]);
                    moved += usize::from(scales[i] != 1.0);
                }
                assert!(moved > n * 3 / 4, "{moved}");
            }
        }
    }

    #[test]
    fn dead_and_tiny_channels_keep_their_scale() {
        let scales = representable(&[2.0, 3.0, 1e6, 0.5], &[0.0, 1e-7, 6e-8, -1.0], 0.0, GgmlType::F16);
        assert!(scales[0] == 1.0 && scales[2] == 1.0 && scales[3] == 0.5, "{scales:?}");
        assert_eq!(representable(&[4.0], &[-1.0], 1.0, GgmlType::BF16), [1.0]);
    }

    #[test]
    fn a_stack_has_factors_per_expert() {
        let factors = Factors { rows: vec![1.0, 2.0, 3.0, 4.0], cols: vec![1.0, 10.0, 5.0, 7.0] };
        let mut weights = vec![1.0; 6];
        factors.apply(1..4, 2, 2, &mut weights);
        assert_eq!(weights, [2.0, 20.0, 15.0, 21.0, 20.0, 28.0]);
    }
}
