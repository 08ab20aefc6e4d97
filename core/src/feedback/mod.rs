//! Error feedback: rounding a matrix so that the layer's output changes least (GPTQ, arXiv 2210.17323; the same as LDLQ).
//! The core walks over blocks of columns, lets a [`Grid`] round each, and carries the errors to the columns still to
//! come; afterwards a polish sweep gives every block a second choice. It knows nothing of packing, files or models.
//!
//! Rows do not depend on each other: 16 of them form a bundle, transposed, so that each row is one lane of a vector.

mod cholesky;
pub mod factor;
pub mod fp4;
pub mod ggml;
pub mod int;
pub mod lanes;
#[cfg(any(test, feature = "internals"))]
pub mod nearest;

pub use crate::simd::F32x16;
pub use factor::{Choose, Factor, Local, Order, Shrink};
pub use lanes::{LANES, ScaleType};

use crate::isa::Isa;
use crate::simd::{self, Float, Kernel};
use lanes::{Panel, one_column, subtract_product};
use rayon::prelude::*;
use std::ops::Range;

/// Bundles that one task takes through the matrix together; they share every read of `U` and `H`.
const BUNDLES: usize = 4;

/// Decides what the weights of a block become. Columns are counted by place in the order of processing
/// ([`Factor::order`]). Methods that take time should be `#[inline(always)]`: they are compiled per instruction set.
pub trait Grid: Sync {
    /// The codes and parameters of one bundle.
    type Part: Send;

    /// Columns of a block; blocks begin at multiples of it, and the last may be shorter.
    fn block(&self) -> usize;

    /// Columns of the parts of a block that [`Grid::polish`] works on one after the other.
    fn sub_block(&self) -> usize {
        self.block()
    }

    /// Before the first block: `weights` are the bundle's own.
    fn start(&self, weights: &[F32x16], factor: &Factor) -> Self::Part;

    /// Rounds one block: writes `value` and `error`.
    fn round(&self, part: &mut Self::Part, block: Block<'_>);

    /// Rounds a block whose values are all known once more: changes `value` where that lowers the loss.
    fn polish(&self, part: &mut Self::Part, block: Polish<'_>);
}

/// A block to round.
pub struct Block<'a> {
    pub places: Range<usize>,
    /// The factor between the block's columns.
    pub local: &'a Local,
    /// What the columns should be, with the errors of all earlier blocks in them.
    pub weight: &'a [F32x16],
    /// What they become.
    pub value: &'a mut [F32x16],
    /// `E` of each column as [`Local::trial`] defines it.
    pub error: &'a mut [F32x16],
}

/// A block to round again. With `G = (W - Ŵ) H`, a change `v` of the block's values changes the loss `(W - Ŵ) H (W - Ŵ)ᵀ`
/// by `-2 v·g + v·H v`.
pub struct Polish<'a> {
    pub places: Range<usize>,
    pub square: &'a Square,
    /// The block's columns of `G`. The core works out the new ones itself: this is for the grid to use up.
    pub gradient: &'a mut [F32x16],
    pub value: &'a mut [F32x16],
}

/// `H` between the columns of one block.
pub struct Square {
    len: usize,
    h: Vec<f32>,
    pub parts: Vec<SubBlock>,
}

/// Columns `from .. from + local.len()` of a block, seen alone.
pub struct SubBlock {
    /// `U` of these columns' own `H`.
    pub local: Local,
    /// The inverse of these columns' own `H`, `[len, len]`.
    inverse: Vec<f32>,
}

impl Square {
    fn new(factor: &Factor, places: &Range<usize>, sub: usize) -> Option<Square> {
        let len = places.len();
        let h = factor.square(places);
        let parts = (0..len).step_by(sub.max(1)).map(|from| {
            let (local, inverse) = Local::alone(
                &factor.square(&(places.start + from..places.start + (from + sub).min(len))),
                sub.min(len - from),
            )?;
            Some(SubBlock { local, inverse })
        });
        Some(Square { len, h, parts: parts.collect::<Option<_>>()? })
    }

    /// Row `i` of the block's H; as H is symmetric, also column `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.h[i * self.len..][..self.len]
    }

    /// `H_ii`.
    pub fn diagonal(&self, i: usize) -> f32 {
        self.h[i * self.len + i]
    }

    /// `out_j = Σ_i H_ji v_i` over the columns `range`; `v` and `out` begin with the first of them.
    #[inline(always)]
    pub fn product(&self, range: Range<usize>, v: &[F32x16], out: &mut [F32x16]) {
        for (j, out) in range.clone().zip(out) {
            let mut sum = F32x16::ZERO;
            for (h, v) in self.row(j)[range.clone()].iter().zip(v) {
                one_column();
                sum += *v * *h;
            }
            *out = sum;
        }
    }

    /// The change of the loss when the values of the columns `from ..` change by `change` and the gradient there is
    /// `gradient`.
    #[inline(always)]
    pub fn loss_change(&self, from: usize, change: &[F32x16], gradient: &[F32x16]) -> F32x16 {
        let mut sum = F32x16::ZERO;
        for (j, (v, g)) in change.iter().zip(gradient).enumerate() {
            let mut hv = F32x16::ZERO;
            for (h, v) in self.row(from + j)[from..].iter().zip(change) {
                one_column();
                hv += *v * *h;
            }
            sum += *v * (hv - *g * 2.0);
        }
        sum
    }

    /// `gradient -= H_{·j} change` over the whole block, after the value of column `j` changed.
    #[inline(always)]
    pub fn moved(&self, j: usize, change: F32x16, gradient: &mut [F32x16]) {
        for (g, h) in gradient.iter_mut().zip(self.row(j)) {
            one_column();
            *g -= change * *h;
        }
    }
}

impl SubBlock {
    /// The values at which these columns' loss would be least, all others fixed: `target = value + H⁻¹ g`. Returns what
    /// the loss lies above that least one, `gᵀ H⁻¹ g`. A [`Local::trial`] on `target` with `self.local` gives the same
    /// figure for other values.
    #[inline(always)]
    pub fn target(&self, value: &[F32x16], gradient: &[F32x16], target: &mut [F32x16]) -> F32x16 {
        let len = self.local.len();
        let mut excess = F32x16::ZERO;
        for (j, target) in target.iter_mut().enumerate().take(len) {
            let mut step = F32x16::ZERO;
            for (h, g) in self.inverse[j * len..][..len].iter().zip(gradient) {
                one_column();
                step += *g * *h;
            }
            excess += step * gradient[j];
            *target = value[j] + step;
        }
        excess
    }
}

/// What rounding gave.
pub struct Rounded<P> {
    /// One per bundle of [`LANES`] rows.
    pub parts: Vec<P>,
    /// `Σ (w - ŵ) H (w - ŵ)ᵀ` over all rows, with the regularised and normalised H.
    pub loss: f64,
    /// `Σ w diag(H) wᵀ`, to compare it with.
    pub energy: f64,
}

impl<P> Rounded<P> {
    /// The loss as a share of the weights' own power.
    pub fn relative_loss(&self) -> f64 {
        if self.energy > 0.0 { self.loss / self.energy } else { 0.0 }
    }
}

/// Rounds `w` (`[rows, factor.len()]`, finite) to `grid`, with `sweeps` polish sweeps. The same bits for any number of
/// threads.
pub fn round<G: Grid>(w: &[f32], factor: &Factor, grid: &G, sweeps: usize) -> Rounded<G::Part> {
    round_with(w, factor, grid, sweeps, Isa::active())
}

fn round_with<G: Grid>(w: &[f32], factor: &Factor, grid: &G, sweeps: usize, isa: Isa) -> Rounded<G::Part> {
    let n = factor.len();
    let mut rounded = Rounded { parts: Vec::new(), loss: 0.0, energy: 0.0 };
    if n == 0 {
        return rounded;
    }
    let blocks: Vec<Range<usize>> = (0..n).step_by(grid.block()).map(|at| at..(at + grid.block()).min(n)).collect();
    let locals: Vec<Local> = blocks.par_iter().map(|b| factor.local(b)).collect();
    let squares = (sweeps > 0).then(|| {
        let squares: Option<Vec<Square>> =
            blocks.par_iter().map(|b| Square::new(factor, b, grid.sub_block())).collect();
        squares
    });
    // A part of a positive definite matrix is one itself; should rounding have spoiled that, there is no polish.
    let squares = squares.flatten().unwrap_or_default();
    let plan = Plan { factor, grid, blocks: &blocks, locals: &locals, squares: &squares, sweeps };
    let tasks: Vec<Vec<Bundle<G::Part>>> =
        w.par_chunks(BUNDLES * LANES * n).map(|rows| simd::run(isa, Task { plan: &plan, rows })).collect();
    for bundle in tasks.into_iter().flatten() {
        rounded.loss += bundle.loss;
        rounded.energy += bundle.energy;
        rounded.parts.push(bundle.part);
    }
    rounded
}

struct Plan<'a, G> {
    factor: &'a Factor,
    grid: &'a G,
    blocks: &'a [Range<usize>],
    locals: &'a [Local],
    squares: &'a [Square],
    sweeps: usize,
}

/// The rows of a few bundles on their way through the matrix.
struct Task<'a, G> {
    plan: &'a Plan<'a, G>,
    rows: &'a [f32],
}

struct Bundle<P> {
    part: P,
    rows: usize,
    /// Column by column: what is left of the weights (first), then `G`.
    weight: Vec<F32x16>,
    value: Vec<F32x16>,
    loss: f64,
    energy: f64,
}

impl<G: Grid> Kernel for Task<'_, G> {
    type Output = Vec<Bundle<G::Part>>;

    #[inline(always)]
    fn run<V: Float>(self) -> Self::Output {
        let Plan { factor, grid, blocks, locals, squares, sweeps } = *self.plan;
        let n = factor.len();
        let mut bundles: Vec<Bundle<G::Part>> = self
            .rows
            .chunks(LANES * n)
            .map(|rows| {
                let weight = transposed(rows, factor.order());
                let rows = rows.len() / n;
                let energy = weight.iter().zip(factor.importance()).map(|(w, h)| (*w * *w * *h).sum(rows)).sum();
                let part = grid.start(&weight, factor);
                Bundle { part, rows, weight, value: vec![F32x16::ZERO; n], loss: 0.0, energy }
            })
            .collect();
        let longest = blocks.first().map_or(0, |b| b.len());
        let mut errors = vec![vec![F32x16::ZERO; longest]; bundles.len()];
        let mut panel = Vec::new();
        for (places, local) in blocks.iter().zip(locals) {
            for (bundle, error) in bundles.iter_mut().zip(&mut errors) {
                let block = Block {
                    places: places.clone(),
                    local,
                    weight: &bundle.weight[places.clone()],
                    value: &mut bundle.value[places.clone()],
                    error: &mut error[..places.len()],
                };
                grid.round(&mut bundle.part, block);
                let losses = error[..places.len()].iter().map(|e| (*e * *e).sum(bundle.rows));
                bundle.loss += losses.sum::<f64>();
            }
            if let Some(u) = factor.upper(places.start, places.end).filter(|_| places.end < n) {
                let mut work: Vec<_> = bundles
                    .iter_mut()
                    .zip(&errors)
                    .map(|(b, e)| (&e[..places.len()], &mut b.weight[places.end..]))
                    .collect();
                subtract_product(u, n, places.len(), &mut work, &mut panel);
            }
        }
        if !squares.is_empty() {
            self.polish(&mut bundles, sweeps, &mut panel);
        }
        bundles
    }
}

impl<G: Grid> Task<'_, G> {
    #[inline(always)]
    fn polish(&self, bundles: &mut [Bundle<G::Part>], sweeps: usize, panel: &mut Vec<Panel>) {
        let Plan { factor, grid, blocks, squares, .. } = *self.plan;
        let n = factor.len();
        let rows: Vec<&[f32]> = self.rows.chunks(LANES * n).collect();
        // G = (W - Ŵ) H, block of rows of H by block.
        let mut changes: Vec<Vec<F32x16>> = Vec::new();
        for (bundle, rows) in bundles.iter_mut().zip(&rows) {
            let original = transposed(rows, factor.order());
            // Negative, because the product is subtracted.
            changes.push(bundle.value.iter().zip(&original).map(|(v, w)| *v - *w).collect());
            bundle.weight.fill(F32x16::ZERO);
        }
        for places in blocks {
            carry(factor, places, bundles, |i| &changes[i][places.clone()], panel);
        }
        for _ in 0..sweeps {
            for (places, square) in blocks.iter().zip(squares) {
                for (bundle, change) in bundles.iter_mut().zip(&mut changes) {
                    let change = &mut change[places.clone()];
                    let gradient = &mut bundle.weight[places.clone()];
                    let saved: Vec<F32x16> = gradient.to_vec();
                    let value = &mut bundle.value[places.clone()];
                    change.copy_from_slice(value);
                    grid.polish(&mut bundle.part, Polish { places: places.clone(), square, gradient, value });
                    change.iter_mut().zip(value.iter()).for_each(|(old, new)| *old = *new - *old);
                    gradient.copy_from_slice(&saved);
                    bundle.loss += square.loss_change(0, change, gradient).sum(bundle.rows);
                }
                carry(factor, places, bundles, |i| &changes[i][places.clone()], panel);
            }
        }
    }
}

/// `G -= change · H[places, ·]` for each bundle's `weight`, which holds `G`.
#[inline(always)]
fn carry<'a, P>(
    factor: &Factor,
    places: &Range<usize>,
    bundles: &mut [Bundle<P>],
    change: impl Fn(usize) -> &'a [F32x16],
    panel: &mut Vec<Panel>,
) {
    match factor.hessian(places.start, 0) {
        Some(h) => {
            let mut work: Vec<_> =
                bundles.iter_mut().enumerate().map(|(i, b)| (change(i), &mut b.weight[..])).collect();
            subtract_product(h, factor.len(), places.len(), &mut work, panel);
        }
        None => {
            for (i, bundle) in bundles.iter_mut().enumerate() {
                for (place, change) in places.clone().zip(change(i)) {
                    one_column();
                    bundle.weight[place] -= *change * factor.importance()[place];
                }
            }
        }
    }
}

/// Up to 16 rows as lanes, columns in the order of processing; lanes without a row are zero.
fn transposed(rows: &[f32], order: &[u32]) -> Vec<F32x16> {
    let mut out = vec![F32x16::ZERO; order.len()];
    for (lane, row) in rows.chunks_exact(order.len()).enumerate() {
        for (out, column) in out.iter_mut().zip(order) {
            out.0[lane] = row[*column as usize];
        }
    }
    out
}

#[cfg(test)]
mod tests;
