//! What a report says before anything is measured: the model's name, and sizes beside the base's.

use super::schema::{Candidate, Report};

/// Bytes of the base, or of the source if the base is unknown.
pub fn base_bytes(report: &Report) -> Option<u64> {
    let base = report.base.as_ref().map(|b| b.artifact.bytes).filter(|&b| b > 0);
    base.or_else(|| report.source.as_ref().map(|s| s.bytes)).filter(|&b| b > 0)
}

/// Size of a candidate as a share of the base.
pub fn size_share(report: &Report, c: &Candidate) -> Option<f64> {
    base_bytes(report).map(|b| c.artifact.bytes as f64 / b as f64)
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
