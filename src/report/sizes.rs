//! What a report says before anything is measured: the model's name, sizes beside the base's, and the first cells of tables.

use super::format::{bytes, fixed, percent};
use super::schema::{Artifact, Candidate, Report};

/// Bytes of the base, or of the source if the base is unknown.
pub fn base_bytes(report: &Report) -> Option<u64> {
    let base = report.base.as_ref().map(|b| b.artifact.bytes).filter(|&b| b > 0);
    base.or_else(|| report.source.as_ref().map(|s| s.bytes)).filter(|&b| b > 0)
}

/// Size of a candidate as a share of the base.
pub fn size_share(report: &Report, c: &Candidate) -> Option<f64> {
    base_bytes(report).map(|b| c.artifact.bytes as f64 / b as f64)
}

/// The first cells of a table: name, size, share of the base, bits per weight.
fn cells(name: String, a: &Artifact, share: Option<f64>) -> Vec<String> {
    let share = share.map_or_else(|| "–".to_string(), |share| percent(share, 0));
    vec![name, bytes(a.bytes), share, fixed(a.bpw, 2)]
}

/// Those of the base, where it is known.
pub fn of_base(report: &Report) -> Option<Vec<String>> {
    let a = &report.base.as_ref()?.artifact;
    Some(cells(format!("{} (base)", a.name), a, Some(1.0)))
}

/// Every candidate with its own, the largest first.
pub fn of_candidates(report: &Report) -> Vec<(&Candidate, Vec<String>)> {
    let mut all: Vec<&Candidate> = report.candidates.iter().collect();
    all.sort_by_key(|c| std::cmp::Reverse(c.artifact.bytes));
    let row = |c: &Candidate| cells(c.artifact.name.clone(), &c.artifact, size_share(report, c));
    all.into_iter().map(|c| (c, row(c))).collect()
}

/// The title: the model's name.
pub fn title(report: &Report) -> String {
    let name = |n: &str| (!n.is_empty()).then(|| n.to_string());
    report
        .source
        .as_ref()
        .and_then(|s| name(&s.name))
        .or_else(|| report.base.as_ref().and_then(|b| name(&b.artifact.name)))
        .unwrap_or_else(|| "Quantization report".to_string())
}
