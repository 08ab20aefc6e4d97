//! What an artifact of a classifier or reranker is worth beside the cosines of its vectors: its scores of pieces of a text, and
//! whether they put texts, or labels, in the same order.

use super::bootstrap::{self, Bootstrap};
use super::softmax::largest;
use super::stats::Estimate;
use serde::{Deserialize, Serialize};

/// How near the scores of an artifact are to the base's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Texts that were scored.
    pub texts: usize,
    /// Scores of a text.
    pub labels: usize,
    /// The mean absolute difference of a score.
    pub mean: Estimate,
    /// The largest.
    pub worst: f64,
    /// The standard deviation of a label's scores, of the base.
    pub spread: f64,
    /// Of one label: how many pairs of texts are in the same order. Of several: how many texts have the same label first.
    pub agreement: f64,
}

/// Texts of which all pairs are looked at.
const PAIRED: usize = 2048;

impl Scores {
    /// Of the scores of every text by both.
    pub fn of(base: &[Vec<f32>], other: &[Vec<f32>], config: Bootstrap) -> Self {
        let apart = |(a, b): (&Vec<f32>, &Vec<f32>)| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect()
        };
        let apart: Vec<Vec<f64>> = base.iter().zip(other).map(apart).collect();
        let labels = base.first().map_or(0, Vec::len);
        Scores {
            texts: base.len(),
            labels,
            mean: bootstrap::mean(&apart, config),
            worst: apart.iter().flatten().copied().fold(0.0, f64::max),
            spread: spread(base, labels),
            agreement: if labels == 1 { same_order(base, other) } else { same_label(base, other) },
        }
    }
}

/// The root of the mean variance of the labels.
fn spread(scores: &[Vec<f32>], labels: usize) -> f64 {
    let n = scores.len().max(1) as f64;
    let variance = |label: usize| {
        let of = || scores.iter().map(|row| f64::from(row[label]));
        let mean = of().sum::<f64>() / n;
        of().map(|x| (x - mean).powi(2)).sum::<f64>() / n
    };
    ((0..labels).map(variance).sum::<f64>() / labels.max(1) as f64).sqrt()
}

fn same_order(base: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    let all: Vec<(f32, f32)> = base.iter().zip(other).map(|(a, b)| (a[0], b[0])).take(PAIRED).collect();
    let (mut same, mut pairs) = (0usize, 0usize);
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            pairs += 1;
            same += usize::from(a.0.total_cmp(&b.0) == a.1.total_cmp(&b.1));
        }
    }
    if pairs == 0 { 1.0 } else { same as f64 / pairs as f64 }
}

fn same_label(base: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    let same = base.iter().zip(other).filter(|(a, b)| largest(a) == largest(b)).count();
    same as f64 / base.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_differ_in_size_and_in_order() {
        let rows = |v: &[f32]| v.iter().map(|x| vec![*x]).collect::<Vec<_>>();
        let found = Scores::of(&rows(&[0.0, 1.0, 2.0]), &rows(&[0.5, 0.25, 2.0]), Bootstrap::default());
        assert!((found.mean.value - 1.25 / 3.0).abs() < 1e-9 && found.worst == 0.75);
        assert!((found.agreement - 2.0 / 3.0).abs() < 1e-9 && (found.spread - (2f64 / 3.0).sqrt()).abs() < 1e-9);
        let labels = [vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.5]];
        let other = [vec![0.9, 0.1, 0.0], vec![0.0, 0.4, 0.5]];
        let found = Scores::of(&labels, &other, Bootstrap::default());
        assert_eq!((found.labels, found.agreement), (3, 0.5));
    }
}
