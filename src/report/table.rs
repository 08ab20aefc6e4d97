//! Tables of text, the header first, for renderings that have columns only.

use super::figures;
use super::results::{Losses, NONE, rows};
use super::schema::{OfText, Report};
use super::vectors;
use crate::eval::Estimate;

/// The table's cells, header first, for the terminal and Markdown.
pub fn cells(report: &Report) -> Vec<Vec<String>> {
    if report.is_of_vectors() {
        return vectors::table(report);
    }
    let head = ["model", "size", "of base", "bpw", "KL mean", "same top", "perplexity", "vs base", "KL 99 %", "RMS Δp"];
    let mut cells = vec![head.map(String::from).to_vec()];
    for row in rows(report) {
        let loss = |show: fn(&Losses) -> &String| row.loss.as_ref().map_or(NONE.into(), |loss| show(loss).clone());
        cells.push(vec![
            row.name.clone(),
            row.size.text.clone(),
            row.share.clone().unwrap_or(NONE.into()),
            row.bpw.clone(),
            loss(|l| &l.kl.with_error),
            loss(|l| &l.same_top.text),
            row.perplexity.as_ref().map_or(NONE.into(), |p| p.with_error.clone()),
            loss(|l| &l.change.text),
            loss(|l| &l.kl_99.text),
            loss(|l| &l.dp_rms.text),
        ]);
    }
    cells
}

/// The KL divergence, or mean cosine, of every candidate on each of several texts, the worst text first; a header before.
/// Empty for one.
pub fn texts(report: &Report) -> Vec<Vec<String>> {
    if report.texts.is_empty() {
        return Vec::new();
    }
    let mut texts: Vec<_> = report.texts.iter().collect();
    texts.sort_by(|a, b| b.worst().total_cmp(&a.worst()));
    let name = |t: &&OfText| t.text.rsplit('/').next().unwrap_or(&t.text).to_string();
    let mut rows: Vec<Vec<String>> = vec![std::iter::once("model".into()).chain(texts.iter().map(name)).collect()];
    let measured = report.candidates.iter().filter(|c| c.measured().is_some());
    for (i, c) in measured.enumerate() {
        let shown = |e: &Estimate| match report.is_of_vectors() {
            true => vectors::with_error(*e),
            false => figures::kl(*e).with_error,
        };
        let figure = |t: &&OfText| t.figures().get(i).map_or(NONE.into(), shown);
        rows.push(std::iter::once(c.artifact.name.clone()).chain(texts.iter().map(figure)).collect());
    }
    rows
}
