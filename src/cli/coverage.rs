//! `quantize inspect` of an importance matrix: how far the texts reached into every tensor and expert, and where single
//! channels stand out.

use super::args::Format;
use super::output::{print, print_json};
use crate::calibration::imatrix::Imatrix;
use crate::calibration::summary::{Coverage, coverage};
use crate::gguf;
use crate::{Error, Result, escape};
use regex::Regex;
use serde_json::json;
use std::fmt::Write;
use std::path::Path;

/// Unseen experts that are named in a line.
const NAMED: usize = 12;

/// Whether a file is an importance matrix: by what it says, or the name of the older form.
pub fn is_imatrix(path: &Path) -> bool {
    match path.extension().and_then(|e| e.to_str()) {
        Some("dat") => path.is_file(),
        Some("gguf") => gguf::read_header(path).is_ok_and(|h| h.metadata.str("general.type") == Some("imatrix")),
        _ => false,
    }
}

/// Shows it.
pub fn show(path: &Path, filter: Option<&Regex>, format: Format) -> Result<()> {
    let imatrix = Imatrix::open(path)?;
    let mut rows = coverage(&imatrix);
    rows.retain(|row| filter.is_none_or(|f| f.is_match(&row.tensor)));
    if rows.is_empty() {
        return Err(Error::bad_file(path, "has no entry with such a name"));
    }
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    match format {
        Format::Json => print_json(&json!({
            "files": [{ "path": escape::path(path), "bytes": bytes }],
            "imatrix": { "datasets": imatrix.datasets, "chunks": imatrix.chunks, "chunk_size": imatrix.chunk_size,
                "entries": imatrix.entries.len(), "coverage": rows },
        })),
        Format::Text => print(&text(path, &imatrix, &rows)),
    }
}

fn text(path: &Path, imatrix: &Imatrix, rows: &[Coverage]) -> String {
    let mut out = format!("{}\n\nImportance matrix of {} tensors", escape::path(path), imatrix.entries.len());
    match imatrix.chunk_size {
        0 => _ = writeln!(out, ", {} chunks", imatrix.chunks),
        size => _ = writeln!(out, ", {} chunks of {size} tokens", imatrix.chunks),
    }
    for name in &imatrix.datasets {
        let _ = writeln!(out, "  made on {}", escape::line(name));
    }
    let _ = writeln!(
        out,
        "\n  {:<34} {:>8} {:>8} {:>10} {:>10} {:>10} {:>7} {:>8}",
        "tensor", "experts", "channels", "least", "median", "most", "silent", "loudest"
    );
    for row in rows {
        let experts = if row.matrices > 1 { row.matrices.to_string() } else { String::new() };
        let _ = writeln!(
            out,
            "  {:<34} {experts:>8} {:>8} {:>10} {:>10} {:>10} {:>7} {:>7.1}×",
            escape::line(&row.tensor),
            row.channels,
            row.least,
            row.median,
            row.most,
            row.silent,
            row.outlier
        );
    }
    out += "\n  least, median, most: tokens that an expert (or the tensor) saw; silent: channels that were always zero;\n  \
            loudest: mean square of the loudest channel over that of all\n";
    for row in rows.iter().filter(|row| !row.unseen.is_empty()) {
        let named: Vec<String> = row.unseen.iter().take(NAMED).map(usize::to_string).collect();
        let more = row.unseen.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let (tensor, list) = (escape::line(&row.tensor), named.join(", "));
        let _ = writeln!(out, "  {tensor}: no token reached {} of {}: {list}{more}", row.unseen.len(), row.matrices);
    }
    out
}
