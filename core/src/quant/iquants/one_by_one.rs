//! The steps one candidate after the other.

use super::grids::{Candidates, Grid};
use super::steps::{Found, Search, Sorted, Steps};
use super::{iq1, search};

/// One candidate after the other: the specification.
pub struct OneByOne;

impl Steps for OneByOne {
    fn nearest<const N: usize>(
        grid: &Grid<N>,
        candidates: Candidates,
        values: &[f32],
        x: &[f32],
        weight: &[f32],
        scale: f32,
    ) -> u16 {
        // Where overflow leaves no distance below the largest float ggml aborts; here the first candidate stands.
        let mut best = (candidates.points.first().copied().unwrap_or(0), f32::MAX);
        for &candidate in candidates.points {
            let mut sum = 0.0;
            for ((digit, x), w) in grid.point(candidate).iter().zip(x).zip(weight) {
                let diff = scale * values[usize::from(*digit)] - x;
                sum += w * diff * diff;
            }
            if sum < best.1 {
                best = (candidate, sum);
            }
        }
        best.0
    }

    fn trials<const N: usize>(
        search: &Search<N>,
        x: &[f32],
        weight: &[f32],
        root: &[f32],
        reach: f32,
        found: &mut Found,
    ) {
        search::trials::<N, Self>(search, x, weight, root, reach, found);
    }

    fn splits<const G: usize>(x: &[f32], weight: &[f32]) -> Vec<Sorted<G>> {
        iq1::splits(x, weight)
    }
}
