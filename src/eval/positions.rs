//! Whether a candidate loses more the further it is into its context: the KL divergence by the position in the window.

use super::Estimate;
use super::stats::Record;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Ranges of positions at most, and positions of a window that one has at least.
const MOST: usize = 6;
const LEAST: usize = 64;

/// What was lost at some positions of every window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AtPositions {
    /// The first of them: so many tokens stand before the token that is predicted there, at least.
    pub from: usize,
    /// The one behind the last.
    pub to: usize,
    /// The mean KL divergence; its error is that of the means of windows.
    pub kld: Estimate,
    /// How often the same token comes first.
    pub same_top: f64,
}

/// The records of all windows, one after the other, by their place in the `scored` positions of each; nothing where
/// windows are too short to tell early from late.
pub fn by_position(records: &[Record], scored: Range<usize>) -> Vec<AtPositions> {
    let count = (scored.len() / LEAST).min(MOST);
    if count < 2 {
        return Vec::new();
    }
    let windows = records.chunks_exact(scored.len());
    let n = windows.len().max(1) as f64;
    let bound = |i: usize| scored.len() * i / count;
    let at = |i: usize| {
        let places = bound(i)..bound(i + 1);
        let means: Vec<f64> = windows
            .clone()
            .map(|w| w[places.clone()].iter().map(|r| r.kld).sum::<f64>() / places.len() as f64)
            .collect();
        let mean = means.iter().sum::<f64>() / n;
        let spread = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>();
        let same = windows.clone().flat_map(|w| &w[places.clone()]).filter(|r| r.same_top).count();
        AtPositions {
            from: scored.start + places.start + 1,
            to: scored.start + places.end + 1,
            kld: Estimate::new(mean, if n > 1.0 { (spread / (n - 1.0) / n).sqrt() } else { 0.0 }),
            same_top: same as f64 / (n * places.len() as f64),
        }
    };
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_go_to_the_range_of_their_position() {
        // Two windows of 300 scored positions; the second half loses ten times as much, in the second window twice that.
        let record = |window: usize, at: usize| {
            let kld = if at < 150 { 0.1 } else { (window + 1) as f64 };
            Record::new(1.0, 1.0, kld, at < 150)
        };
        let records: Vec<Record> = (0..2).flat_map(|w| (0..300).map(move |at| record(w, at))).collect();
        let found = by_position(&records, 300..600);
        assert_eq!(
            found.iter().map(|p| (p.from, p.to)).collect::<Vec<_>>(),
            [(301, 376), (376, 451), (451, 526), (526, 601)]
        );
        for (found, mean) in found.iter().zip([0.1, 0.1, 1.5, 1.5]) {
            assert!((found.kld.value - mean).abs() < 1e-12);
            // Half the difference of two values is the error of their mean.
            let error = if mean > 1.0 { 0.5 } else { 0.0 };
            assert!((found.kld.std_error - error).abs() < 1e-12);
        }
        assert_eq!((found[0].same_top, found[3].same_top), (1.0, 0.0));
        assert!(by_position(&records[..200], 100..200).is_empty());
        assert_eq!(by_position(&vec![record(0, 0); 4095], 4096..8191).len(), MOST);
    }
}
