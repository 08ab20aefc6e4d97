//! What a text alone does not show: how long continuations stay the base's, and what is lost far into the context. Tables
//! that every rendering shares, the header first.

use super::format::{count, decimals_for, fixed, percent};
use super::schema::Report;

/// Ranges of positions from which on they have a table: fewer are of short windows.
const RANGES: usize = 4;

/// A title and a table of the continuations.
pub fn continuations(report: &Report) -> Option<(String, Vec<Vec<String>>)> {
    let found = report.continuations.as_ref()?;
    let title = format!(
        "Greedy continuations of {} prompts ({} tokens each) by up to {} tokens, beside the base's",
        count(found.starts),
        count(found.prompt),
        count(found.length)
    );
    let after = found.candidates.first().map_or(&[][..], |c| c.equal.as_slice());
    let mut head = ["model", "first difference", "25 %", "75 %"].map(String::from).to_vec();
    head.extend(after.iter().map(|e| format!("equal after {}", count(e.tokens))));
    let at = |quartile: Option<usize>| quartile.map_or(format!("> {}", count(found.length)), |at| count(at + 1));
    let mut rows = vec![head];
    for (candidate, c) in report.candidates.iter().zip(&found.candidates) {
        let [low, median, high] = c.quartiles.map(at);
        let mut row = vec![candidate.artifact.name.clone(), median, low, high];
        row.extend(c.equal.iter().map(|e| percent(e.share.value, 0)));
        rows.push(row);
    }
    Some((title, rows))
}

/// A title and a table of the KL divergence by position.
pub fn positions(report: &Report) -> Option<(String, Vec<Vec<String>>)> {
    let measured = || report.candidates.iter().filter(|c| c.positions.len() >= RANGES);
    let ranges = &measured().next()?.positions;
    let mut head = vec!["model".to_string()];
    head.extend(ranges.iter().map(|p| format!("from {}", count(p.from))));
    let mut rows = vec![head];
    for c in measured() {
        let mut row = vec![c.artifact.name.clone()];
        row.extend(c.positions.iter().map(|p| fixed(p.kld.value, decimals_for(p.kld).min(5))));
        rows.push(row);
    }
    Some(("KL by the number of tokens before the one that is predicted".into(), rows))
}

/// What the continuations' columns are.
pub const LEGEND: &str =
    "First difference: the token at which half of the continuations have left the base's, with quartiles.";
