//! What a report says before anything is measured: the model's name, and sizes beside the base's.

use super::format::bytes;
use super::schema::{Candidate, Report};
use std::cmp::Ordering;

/// Bytes of the base, or of the source if the base is unknown.
pub fn base_bytes(report: &Report) -> Option<u64> {
    let base = report.base.as_ref().map(|b| b.artifact.bytes).filter(|&b| b > 0);
    base.or_else(|| report.source.as_ref().map(|s| s.bytes)).filter(|&b| b > 0)
}

/// `It shrinks from 2.2 GB to 700 MB. `; nothing where the base's size is not known.
pub fn change(report: &Report, c: &Candidate) -> String {
    let (Some(base), own) = (base_bytes(report), c.artifact.bytes) else { return String::new() };
    match own.cmp(&base) {
        Ordering::Less => format!("It shrinks from {} to {}. ", bytes(base), bytes(own)),
        Ordering::Equal => format!("It keeps the size of {}. ", bytes(base)),
        Ordering::Greater => format!("It grows from {} to {}. ", bytes(base), bytes(own)),
    }
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
