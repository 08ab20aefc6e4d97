//! From a gram matrix to what error feedback works with: the regularised Hessian, the order of columns, and the factor
//! `U` of the inverse. Nothing of grids or codes.

use super::cholesky::invert_factor;
use super::lanes::one_column;
use crate::isa::Isa;
use crate::simd::F32x16;
use rayon::prelude::*;
use std::ops::Range;

/// How the Hessian is made safe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shrink {
    /// Off-diagonals are multiplied by `1 - rho`: a guard against drift of weights, not only against few tokens.
    pub rho: f32,
    /// Times the mean of the live diagonal, added to the diagonal.
    pub damping: f32,
}

impl Default for Shrink {
    fn default() -> Self {
        Shrink { rho: 0.3, damping: 0.01 }
    }
}

/// The order in which columns are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Natural,
    /// Groups of so many columns by their most active column, and columns inside each by activity; groups stay together,
    /// so the file needs no index (GAR, arXiv 2505.14638).
    Groups(usize),
    /// All columns by activity (`desc_act`).
    Activity,
}

/// Why there is no factor. The caller rounds to nearest instead.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum FactorError {
    #[error("the activations of channel {column} are not finite numbers")]
    NotFinite { column: usize },
    #[error("no activation was seen")]
    Unseen,
    #[error("the second moments stay singular at a damping of {damping}")]
    Singular { damping: f32 },
}

/// What had to be done to get a factor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// The damping that it took.
    pub damping: f32,
    /// Columns whose activations were always zero.
    pub dead: usize,
}

/// Damping grows by this until it is past the cap.
const ESCALATION: f32 = 10.0;
/// Where the diagonal outweighs everything else, feedback is no better than rounding to nearest.
const CAP: f32 = 1.0;
/// Keeps dead columns apart from zero where no damping was asked for.
const LEAST_DAMPING: f32 = 1e-6;

/// The regularised Hessian and its inverse's factor, columns in the order of processing.
pub struct Factor {
    n: usize,
    order: Vec<u32>,
    diagonal: Vec<f32>,
    /// `[n, n]`: H (normalised to a mean live diagonal of one) and `U`; empty for a diagonal Hessian.
    full: Option<(Vec<f32>, Vec<f32>)>,
}

impl Factor {
    /// From `gram` (`[n, n]`, `Σ x xᵀ`).
    ///
    /// Errors: see [`FactorError`]; where it is `Singular`, damping was raised to the cap before.
    pub fn new(gram: &[f32], n: usize, shrink: Shrink, order: Order) -> Result<(Factor, Notes), FactorError> {
        Self::with_isa(gram, n, shrink, order, Isa::active())
    }

    pub(super) fn with_isa(
        gram: &[f32],
        n: usize,
        shrink: Shrink,
        order: Order,
        isa: Isa,
    ) -> Result<(Factor, Notes), FactorError> {
        if let Some(at) = gram.par_iter().position_first(|v| !v.is_finite()) {
            return Err(FactorError::NotFinite { column: at / n });
        }
        let diagonal: Vec<f32> = (0..n).map(|i| gram[i * n + i]).collect();
        let (mean, dead) = mean_live(&diagonal).ok_or(FactorError::Unseen)?;
        let order = columns(&diagonal, order);
        let keep = f64::from(1.0 - shrink.rho.clamp(0.0, 1.0));
        let entry = |i: usize, j: usize, damping: f32| {
            let (i, j) = (order[i] as usize, order[j] as usize);
            let v = f64::from(gram[i * n + j]) / mean;
            if i == j { v.max(0.0) + f64::from(damping) } else { v * keep }
        };
        let mut damping = shrink.damping.max(LEAST_DAMPING);
        // Reversed, so that L⁻¹ of the reversed matrix is U: H = R Rᵀ with R upper, and U = R⁻¹.
        let mut reversed = vec![0.0; n * n];
        loop {
            reversed.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
                let row = row.iter_mut().enumerate();
                row.take(i + 1).for_each(|(j, v)| *v = entry(n - 1 - i, n - 1 - j, damping));
            });
            if invert_factor(&mut reversed, n, isa) {
                break;
            }
            if damping >= CAP {
                return Err(FactorError::Singular { damping });
            }
            damping = (damping * ESCALATION).min(CAP);
        }
        let mut u = vec![0.0; n * n];
        u.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            let source = &reversed[(n - 1 - i) * n..][..n];
            row[i..].iter_mut().zip(source[..n - i].iter().rev()).for_each(|(v, s)| *v = *s as f32);
        });
        drop(reversed);
        let mut h = vec![0.0; n * n];
        h.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, v)| *v = entry(i, j, damping) as f32);
        });
        if u.par_iter().any(|v| !v.is_finite()) {
            return Err(FactorError::Singular { damping });
        }
        let diagonal = (0..n).map(|i| h[i * n + i]).collect();
        Ok((Factor { n, order, diagonal, full: Some((h, u)) }, Notes { damping, dead }))
    }

    /// A Hessian without off-diagonals: rounding sees how important columns are, and no error is carried on. Where
    /// nothing was seen all columns are alike.
    pub fn diagonal(importance: &[f32]) -> Factor {
        let n = importance.len();
        let finite: Vec<f32> = importance.iter().map(|v| if v.is_finite() { v.max(0.0) } else { 0.0 }).collect();
        let diagonal = match mean_live(&finite) {
            Some((mean, _)) => finite.iter().map(|v| (f64::from(*v) / mean) as f32 + 1e-3).collect(),
            None => vec![1.0; n],
        };
        Factor { n, order: (0..n as u32).collect(), diagonal, full: None }
    }

    pub fn len(&self) -> usize {
        self.n
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The column of the matrix at each place of processing.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The regularised Hessian's diagonal, by place.
    pub fn importance(&self) -> &[f32] {
        &self.diagonal
    }

    /// By column of the matrix: what the squared error of rounding it counts when later columns make up for it,
    /// `1 / U_jj²`. `None` for a diagonal Hessian.
    pub fn conditional(&self) -> Option<Vec<f64>> {
        let (_, u) = self.full.as_ref()?;
        let mut out = vec![0.0; self.n];
        for (place, column) in self.order.iter().enumerate() {
            out[*column as usize] = f64::from(u[place * self.n + place]).powi(-2);
        }
        Some(out)
    }

    /// H and `U`, both `[n, n]`; `None` for a diagonal Hessian.
    pub(super) fn into_full(self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.full
    }

    /// Rows `rows` of the regularised Hessian from column `from` on, and the distance of rows; `None` if it is diagonal.
    pub(super) fn hessian(&self, row: usize, from: usize) -> Option<&[f32]> {
        self.full.as_ref().map(|(h, _)| &h[row * self.n + from..])
    }

    /// As [`Factor::hessian`] of `U`.
    pub(super) fn upper(&self, row: usize, from: usize) -> Option<&[f32]> {
        self.full.as_ref().map(|(_, u)| &u[row * self.n + from..])
    }

    /// The part of `H` between the places of a block, `[len, len]`.
    pub(super) fn square(&self, places: &Range<usize>) -> Vec<f32> {
        let len = places.len();
        let mut out = vec![0.0; len * len];
        for (i, row) in out.chunks_mut(len.max(1)).enumerate() {
            match self.hessian(places.start + i, places.start) {
                Some(h) => row.copy_from_slice(&h[..len]),
                None => row[i] = self.diagonal[places.start + i],
            }
        }
        out
    }

    /// The factor between the places of a block.
    pub(super) fn local(&self, places: &Range<usize>) -> Local {
        let len = places.len();
        Local::from_fn(len, |i, j| match self.upper(places.start + i, places.start) {
            Some(u) => u[j],
            None if i == j => 1.0 / self.diagonal[places.start + i].sqrt(),
            None => 0.0,
        })
    }
}

/// The mean of what is positive and the number of columns that are not; `None` when there are none.
fn mean_live(diagonal: &[f32]) -> Option<(f64, usize)> {
    let live = || diagonal.iter().filter(|v| **v > 0.0);
    let count = live().count();
    (count > 0).then(|| (live().map(|v| f64::from(*v)).sum::<f64>() / count as f64, diagonal.len() - count))
}

fn columns(diagonal: &[f32], order: Order) -> Vec<u32> {
    let n = diagonal.len();
    let mut columns: Vec<u32> = (0..n as u32).collect();
    // Sorting is stable: equal columns keep their order.
    let most_active_first = |a: &u32, b: &u32| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]);
    match order {
        Order::Natural => columns,
        Order::Activity => {
            columns.sort_by(most_active_first);
            columns
        }
        Order::Groups(size) => {
            // A last group that is shorter stays last: blocks are cut from the front.
            let whole = n / size.max(1) * size;
            let mut groups: Vec<&mut [u32]> = columns[..whole].chunks_mut(size.max(1)).collect();
            groups.iter_mut().for_each(|group| group.sort_by(most_active_first));
            groups.sort_by(|a, b| most_active_first(&a[0], &b[0]));
            let mut sorted: Vec<u32> = groups.into_iter().flat_map(|g| g.iter().copied()).collect();
            columns[whole..].sort_by(most_active_first);
            sorted.extend_from_slice(&columns[whole..]);
            sorted
        }
    }
}

/// An upper triangular factor of a few columns, as the recurrence reads it.
pub struct Local {
    len: usize,
    /// `[len, len]`: row `j` holds `U_ij` for `i < j`.
    above: Vec<f32>,
    /// `1 / U_jj`.
    inverse: Vec<f32>,
}

impl Local {
    fn from_fn(len: usize, u: impl Fn(usize, usize) -> f32) -> Local {
        let mut above = vec![0.0; len * len];
        for j in 0..len {
            (0..j).for_each(|i| above[j * len + i] = u(i, j));
        }
        Local { len, above, inverse: (0..len).map(|j| 1.0 / u(j, j)).collect() }
    }

    /// The factor of these columns alone: `U` of `h` (`[len, len]`, positive definite), and `h⁻¹`.
    pub(super) fn alone(h: &[f32], len: usize) -> Option<(Local, Vec<f32>)> {
        let mut m = vec![0.0; len * len];
        for i in 0..len {
            (0..len).for_each(|j| m[(len - 1 - i) * len + len - 1 - j] = f64::from(h[i * len + j]));
        }
        if !invert_factor(&mut m, len, Isa::SCALAR) {
            return None;
        }
        let u = |i: usize, j: usize| if i <= j { m[(len - 1 - i) * len + len - 1 - j] } else { 0.0 };
        let mut inverse = vec![0.0; len * len];
        for i in 0..len {
            for j in 0..len {
                inverse[i * len + j] = (0..=i.min(j)).map(|k| u(k, i) * u(k, j)).sum::<f64>() as f32;
            }
        }
        Some((Local::from_fn(len, |i, j| u(i, j) as f32), inverse))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The recurrence of GPTQ for `C` grids at once, over the columns `from .. from + target.len()`:
    /// `t_j = w_j - Σ_i U_ij E_i`, `E_j = (t_j - ŵ_j) / U_jj` with `ŵ = grid(j, t)`, `j` counted from `from`. Errors of
    /// columns before `from` must be in `target` already (`Local::compensate`). Returns each grid's exact loss `Σ E²`.
    #[inline(always)]
    pub fn trial<const C: usize>(
        &self,
        from: usize,
        target: &[F32x16],
        errors: &mut [[F32x16; C]],
        grid: impl FnMut(usize, [F32x16; C]) -> [F32x16; C],
    ) -> [F32x16; C] {
        self.trial_with(from, target, errors, grid)
    }

    /// [`Local::trial`] with a grid that is not a closure.
    #[inline(always)]
    pub fn trial_with<const C: usize>(
        &self,
        from: usize,
        target: &[F32x16],
        errors: &mut [[F32x16; C]],
        mut grid: impl Choose<C>,
    ) -> [F32x16; C] {
        let mut loss = [F32x16::ZERO; C];
        for (j, target) in target.iter().enumerate() {
            let above = &self.above[(from + j) * self.len + from..][..j];
            let mut t = [*target; C];
            for (u, e) in above.iter().zip(errors.iter()) {
                for c in 0..C {
                    one_column();
                    t[c] -= e[c] * *u;
                }
            }
            let rounded = grid.choose(j, t);
            for c in 0..C {
                let e = (t[c] - rounded[c]) * self.inverse[from + j];
                errors[j][c] = e;
                loss[c] += e * e;
            }
        }
        loss
    }
}

/// What [`Local::trial`] rounds with. A closure is one; a type of its own is for where several calls share it, for then the
/// compiler does not inline a closure, and what is not inlined is compiled for the baseline.
pub trait Choose<const C: usize> {
    /// The values that `targets` of column `j` become.
    fn choose(&mut self, j: usize, targets: [F32x16; C]) -> [F32x16; C];
}

impl<const C: usize, F: FnMut(usize, [F32x16; C]) -> [F32x16; C]> Choose<C> for F {
    #[inline(always)]
    fn choose(&mut self, j: usize, targets: [F32x16; C]) -> [F32x16; C] {
        self(j, targets)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cholesky::tests::spd;
    use super::*;

    #[test]
    fn u_is_the_factor_of_the_inverse_in_the_order_of_columns() {
        let n = 48;
        let gram = spd(n, 100, 1);
        for order in [Order::Natural, Order::Groups(16), Order::Activity] {
            let (f, notes) = Factor::new(&gram, n, Shrink::default(), order).unwrap();
            assert_eq!(notes, Notes { damping: 0.01, dead: 0 });
            let mean = (0..n).map(|i| gram[i * n + i]).sum::<f32>() / n as f32;
            let (h, u) = f.full.as_ref().unwrap();
            for i in 0..n {
                for j in 0..n {
                    let (a, b) = (f.order[i] as usize, f.order[j] as usize);
                    let wanted =
                        gram[a * n + b] / mean * if i == j { 1.0 } else { 0.7 } + if i == j { 0.01 } else { 0.0 };
                    assert!((h[i * n + j] - wanted).abs() < 1e-5);
                    // U H Uᵀ = I.
                    let v: f64 = (0..n)
                        .flat_map(|k| (0..n).map(move |l| (k, l)))
                        .map(|(k, l)| f64::from(u[i * n + k]) * f64::from(h[k * n + l]) * f64::from(u[j * n + l]))
                        .sum();
                    assert!((v - f64::from(i == j)).abs() < 1e-3, "{order:?} [{i}, {j}]: {v}");
                }
            }
        }
    }

    #[test]
    fn orders_keep_groups_together() {
        let diagonal = [1.0, 5.0, 2.0, 9.0, 3.0, 3.0, 7.0];
        assert_eq!(columns(&diagonal, Order::Activity), [3, 6, 1, 4, 5, 2, 0]);
        assert_eq!(columns(&diagonal, Order::Groups(2)), [3, 2, 1, 0, 4, 5, 6]);
        assert_eq!(columns(&diagonal, Order::Groups(7)), columns(&diagonal, Order::Activity));
    }

    #[test]
    fn bad_grams_are_handled_or_named() {
        let none = |gram: &[f32], n, shrink| Factor::new(gram, n, shrink, Order::Natural).err();
        let plain = Shrink { rho: 0.0, damping: 0.01 };
        assert_eq!(none(&[0.0; 9], 3, plain), Some(FactorError::Unseen));
        assert_eq!(none(&[1.0, 0.0, f32::NAN, 1.0], 2, plain), Some(FactorError::NotFinite { column: 1 }));
        // Not a gram matrix at all.
        let wild = [1.0, 9.0, 9.0, 1.0];
        assert_eq!(none(&wild, 2, plain), Some(FactorError::Singular { damping: 1.0 }));
        // Indefinite by rounding: damping rises until it is not.
        let (_, notes) = Factor::new(&[1.0, 1.05, 1.05, 1.0], 2, plain, Order::Natural).unwrap();
        assert!((notes.damping - 0.1).abs() < 1e-6);
        // Rank one, and a dead column.
        let x = [1.0, -2.0, 0.0, 3.0f32];
        let gram: Vec<f32> = x.iter().flat_map(|a| x.iter().map(move |b| a * b)).collect();
        let (f, notes) = Factor::new(&gram, 4, Shrink { rho: 0.0, damping: 0.0 }, Order::Natural).unwrap();
        assert_eq!(notes.dead, 1);
        assert!(f.full.unwrap().1.iter().all(|v| v.is_finite()));
        assert!(Factor::new(&[4.0], 1, plain, Order::Activity).is_ok());
    }
}
