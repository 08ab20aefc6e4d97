//! What a text that a model is measured on shares with what it was calibrated on.

use serde::Serialize;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tokens in a row that count as the same text (the 13-grams of Brown et al. 2020, appendix C).
const SHINGLE: usize = 13;

/// How much of an evaluation text the calibration has seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// Runs of 13 tokens of the evaluation text.
    pub shingles: usize,
    /// Those that are also in the calibration windows.
    pub shared: usize,
}

impl Overlap {
    /// As a share of all windows.
    pub fn share(self) -> f64 {
        self.shared as f64 / self.shingles.max(1) as f64
    }

    /// Above one in a hundred a score says little about unseen text.
    pub fn is_suspicious(self) -> bool {
        self.share() > 0.01
    }
}

/// Compares windows with an evaluation text in the same tokens.
pub fn overlap(windows: &[Vec<u32>], evaluation: &[u32]) -> Overlap {
    let hash = |tokens: &[u32]| {
        let mut hasher = DefaultHasher::new();
        tokens.hash(&mut hasher);
        hasher.finish()
    };
    let seen: HashSet<u64> = windows.iter().flat_map(|w| w.windows(SHINGLE)).map(hash).collect();
    let shared = evaluation.windows(SHINGLE).filter(|s| seen.contains(&hash(s))).count();
    Overlap { shingles: evaluation.len().saturating_sub(SHINGLE - 1), shared }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_shared_runs() {
        let text: Vec<u32> = (0..100).collect();
        let windows = vec![(0..50).collect::<Vec<u32>>(), (200..250).collect()];
        let found = overlap(&windows, &text);
        assert_eq!(found, Overlap { shingles: 88, shared: 38 });
        assert!(found.is_suspicious());
        assert_eq!(overlap(&windows, &[1, 2, 3]), Overlap { shingles: 0, shared: 0 });
    }
}
