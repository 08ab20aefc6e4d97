//! The table of `--show-statistics`: the activations behind an importance matrix, tensor by tensor, in the measures of
//! llama-imatrix (`compute_statistics` and `compute_cossim` there).

use super::imatrix::{Entry, Imatrix};
use serde::Serialize;

/// One tensor. Activations are the mean squares of its input channels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub tensor: String,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub deviation: f64,
    /// Share of channels above 1e-5.
    pub active: f64,
    pub channels: usize,
    /// Of the activations as a distribution, in bits; and as a share of the most it could be.
    pub entropy: f64,
    pub entropy_share: f64,
    /// Share of channels more than one standard deviation above the mean.
    pub high: f64,
    /// Cosine similarity to the same tensor of the layer before; 0 without one.
    pub similarity: f64,
}

/// How far the data reached into one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Coverage {
    pub tensor: String,
    /// Experts, or 1.
    pub matrices: usize,
    pub channels: usize,
    /// Tokens that the least, the median and the most used matrix saw.
    pub least: u64,
    pub median: u64,
    pub most: u64,
    /// Matrices that saw none.
    pub unseen: Vec<usize>,
    /// Channels that were zero throughout, of the matrices that saw tokens.
    pub silent: usize,
    /// The mean square of the loudest channel over that of all.
    pub outlier: f64,
}

/// A row for every tensor, in the order of layers.
pub fn coverage(imatrix: &Imatrix) -> Vec<Coverage> {
    let mut rows: Vec<Coverage> = imatrix.entries.iter().map(|(name, entry)| covered(name, entry)).collect();
    let place =
        |row: &Coverage| layer(&row.tensor).map_or((usize::MAX, row.tensor.clone()), |(n, rest)| (n, rest.into()));
    rows.sort_by_key(place);
    rows
}

fn covered(name: &str, entry: &Entry) -> Coverage {
    let matrices = entry.counts.len();
    let channels = entry.sums.len() / matrices.max(1);
    let mut counts = entry.counts.clone();
    counts.sort_unstable();
    let seen = entry.sums.chunks(channels.max(1)).zip(&entry.counts).filter(|(_, count)| **count > 0);
    let (mut silent, mut all, mut loudest, mut n) = (0, 0.0, 0f64, 0usize);
    for (sums, count) in seen {
        for sum in sums {
            let square = f64::from(*sum) / *count as f64;
            silent += usize::from(square == 0.0);
            (all, loudest, n) = (all + square, loudest.max(square), n + 1);
        }
    }
    let unseen = entry.counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(i, _)| i).collect();
    Coverage {
        tensor: name.to_string(),
        matrices,
        channels,
        least: counts.first().copied().unwrap_or(0),
        median: counts.get(matrices / 2).copied().unwrap_or(0),
        most: counts.last().copied().unwrap_or(0),
        unseen,
        silent,
        outlier: if all > 0.0 { loudest * n as f64 / all } else { 0.0 },
    }
}

/// Rows by kind of tensor, and in a kind by falling sum.
pub fn rows(imatrix: &Imatrix) -> Vec<Row> {
    let mut rows: Vec<Row> = imatrix.entries.iter().filter_map(|(name, entry)| row(imatrix, name, entry)).collect();
    rows.sort_by(|a, b| kind(&a.tensor).cmp(kind(&b.tensor)).then(b.sum.total_cmp(&a.sum)));
    rows
}

fn row(imatrix: &Imatrix, name: &str, entry: &Entry) -> Option<Row> {
    let cols = entry.sums.len() / entry.counts.len().max(1);
    let mut x: Vec<f64> = Vec::new();
    for (sums, count) in entry.sums.chunks(cols.max(1)).zip(&entry.counts).filter(|(_, count)| **count > 0) {
        x.extend(sums.iter().map(|s| f64::from(*s) / *count as f64));
    }
    if x.is_empty() {
        return None;
    }
    let n = x.len() as f64;
    let sum: f64 = x.iter().sum();
    let mean = sum / n;
    let deviation = (x.iter().map(|v| v * v).sum::<f64>() / n - mean * mean).max(0.0).sqrt();
    let share = |count: usize| count as f64 / n;
    let entropy: f64 = x.iter().map(|v| v / sum).filter(|p| *p > 0.0).map(|p| -p * p.log2()).sum();
    let previous = layer(name).and_then(|(layer, rest)| {
        imatrix
            .entries
            .get(&format!("blk.{}.{rest}", layer.checked_sub(1)?))
            .filter(|e| e.sums.len() == entry.sums.len())
    });
    Some(Row {
        tensor: name.to_string(),
        sum,
        min: x.iter().copied().fold(f64::INFINITY, f64::min),
        max: x.iter().copied().fold(0.0, f64::max),
        mean,
        deviation,
        active: share(x.iter().filter(|v| **v > 1e-5).count()),
        channels: x.len(),
        entropy,
        entropy_share: if x.len() > 1 { entropy / n.log2() } else { 0.0 },
        high: share(x.iter().filter(|v| (**v - mean) > deviation && deviation > 0.0).count()),
        similarity: previous.map_or(0.0, |p| cosine(&entry.sums, &p.sums)),
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// `blk.7.ffn_down.weight` → 7 and `ffn_down.weight`.
fn layer(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

fn kind(name: &str) -> &str {
    let name = layer(name).map_or(name, |(_, rest)| rest);
    name.strip_suffix(".weight").unwrap_or(name)
}

/// The table as text.
pub fn table(rows: &[Row]) -> String {
    use std::fmt::Write;
    let mut out = String::from(
        "layer  tensor                  Σ(x²)      min        max       μ       σ   active  channels  entropy  E(norm)      ZD  CosSim\n",
    );
    for r in rows {
        let layer = layer(&r.tensor).map_or_else(|| "-".into(), |(l, _)| l.to_string());
        let _ = writeln!(
            out,
            "{layer:>5}  {:<16} {:>12.2} {:>8.4} {:>10.4} {:>7.2} {:>7.2} {:>7.2}% {:>9} {:>8.4} {:>7.2}% {:>6.2}% {:>7.4}",
            kind(&r.tensor),
            r.sum,
            r.min,
            r.max,
            r.mean,
            r.deviation,
            100.0 * r.active,
            r.channels,
            r.entropy,
            100.0 * r.entropy_share,
            100.0 * r.high,
            r.similarity
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_of_a_known_input() {
        let entry = |sums: &[f32]| Entry { sums: sums.to_vec(), magnitudes: None, counts: vec![2], exact: None };
        let mut imatrix = Imatrix::default();
        imatrix.entries.insert("blk.0.attn_q.weight".into(), entry(&[2.0, 2.0, 2.0, 0.0]));
        imatrix.entries.insert("blk.1.attn_q.weight".into(), entry(&[4.0, 4.0, 4.0, 0.0]));
        let rows = rows(&imatrix);
        let first = rows.iter().find(|r| r.tensor == "blk.0.attn_q.weight").unwrap();
        assert_eq!((first.sum, first.min, first.max, first.mean, first.active), (3.0, 0.0, 1.0, 0.75, 0.75));
        assert!((first.entropy - 3f64.log2()).abs() < 1e-12 && first.similarity == 0.0 && first.high == 0.0);
        assert_eq!(rows[0].tensor, "blk.1.attn_q.weight");
        assert!((rows[0].similarity - 1.0).abs() < 1e-12);
        assert!(table(&rows).lines().count() == 3);
    }
}
