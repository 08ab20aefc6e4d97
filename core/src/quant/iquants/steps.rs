//! The steps of the codebook searches that take most of their time, and what goes in and out of them: a search by its
//! parameters, the best trial, the best split.

use super::grids::{Candidates, Grid};

pub const GROUP: usize = 32;

/// Which grid points are chosen anew once the scale is known.
#[derive(PartialEq)]
pub enum Refit {
    /// Those whose pattern was off the grid.
    OffGrid,
    /// All, if one was off the grid or no trial was better than none.
    AllIfOffGrid,
    /// All.
    Always,
}

/// How a type searches.
pub struct Search<const N: usize> {
    pub grid: fn() -> &'static Grid<N>,
    /// Weights that share a scale.
    pub group: usize,
    /// Whether seven of eight signs are stored and the eighth makes the number of minus signs even.
    pub even_signs: bool,
    /// The mean square counts this often in the error weights.
    pub mean_square_factor: f32,
    /// The error weight without importance, from the weight and the mean square (times the factor).
    pub plain: fn(f32, f32) -> f32,
    /// A group whose largest magnitude is below this is stored as zero.
    pub zero_below: f32,
    /// Scales tried to either side, and how far they are apart in units of the largest magnitude.
    pub tries: i32,
    pub step: f32,
    pub refit: Refit,
    /// Whether the trials surround a least-squares fit on positive codes rather than the largest magnitude.
    pub fitted_start: bool,
}

/// The best of the trials so far.
pub struct Found {
    pub scale: f32,
    pub digits: [u8; GROUP],
    /// By `N` weights: whether the pattern was on the grid before it was moved there.
    pub on_grid: [bool; GROUP / 4],
}

/// A group's weights in ascending order of value, equal ones in their own order (ggml relies on a stable `qsort` here), and
/// the best split of them, if any is better than none.
pub struct Sorted<const G: usize> {
    pub order: [u8; G],
    pub split: Option<Split>,
}

/// A split: digits 0 before `first`, 1 up to `second`, 2 after it, in sorted order.
pub struct Split {
    pub first: usize,
    pub second: usize,
    pub scale: f32,
    /// Which shift or shifts: see `Group::shift` in `iq1`.
    pub variant: usize,
}

/// The steps of the codebook searches that are most of their work. A trait, because they also have a form by lanes.
pub trait Steps {
    /// Which of the candidates is nearest to `x` in the `weight`ed square when digit `l` stands for `scale · values[l]`;
    /// the first of equals.
    fn nearest<const N: usize>(
        grid: &Grid<N>,
        candidates: Candidates,
        values: &[f32],
        x: &[f32],
        weight: &[f32],
        scale: f32,
    ) -> u16;

    /// The best of the trial scales around `reach`, if any is better than none; else `found` stays.
    fn trials<const N: usize>(
        search: &Search<N>,
        x: &[f32],
        weight: &[f32],
        root: &[f32],
        reach: f32,
        found: &mut Found,
    );

    /// Every group of `G` weights of a row, sorted and with its best split: `G` is 32 for IQ1_S and 16 for IQ1_M.
    fn splits<const G: usize>(x: &[f32], weight: &[f32]) -> Vec<Sorted<G>>;
}
