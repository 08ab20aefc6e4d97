//! Departures from what was asked, for people: those that differ only in their layer are one line.

use super::schema::Report;
use crate::convert::{Kind, LedgerRow};

/// Those of a report, candidate by candidate.
pub fn lines(report: &Report) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for row in &report.ledger {
        if !names.contains(&row.candidate.as_str()) {
            names.push(&row.candidate);
        }
    }
    let of = |name: &str| -> Vec<String> {
        let rows: Vec<LedgerRow> = report.ledger.iter().filter(|row| row.candidate == name).cloned().collect();
        grouped(&rows).iter().map(|line| format!("{name}: {line}")).collect()
    };
    names.into_iter().flat_map(of).collect()
}

/// Departures of one output, those that differ only in their layer in one line.
pub fn grouped(rows: &[LedgerRow]) -> Vec<String> {
    let part_of = |name: &str| {
        let name = name.strip_suffix(".weight").unwrap_or(name);
        name.rsplit('.').next().unwrap_or(name).to_string()
    };
    let mut groups: Vec<(String, &LedgerRow, usize)> = Vec::new();
    for row in rows {
        let part = row.tensor.as_deref().map_or_else(String::new, part_of);
        let same = |(p, other, _): &&mut (String, &LedgerRow, usize)| {
            (p.as_str(), &other.asked, &other.done) == (&part, &row.asked, &row.done)
                && (other.reason == row.reason || row.tensor.as_deref().is_some_and(|t| row.reason.contains(t)))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.2 += 1,
            None => groups.push((part, row, 1)),
        }
    }
    let line = |(part, row, n): (String, &LedgerRow, usize)| {
        let what = match (row.tensor.as_deref(), n) {
            (None, _) => String::new(),
            (Some(tensor), 1) => format!("{tensor}: "),
            (Some(_), n) => format!("{part} ×{n}: "),
        };
        match row.kind {
            Kind::LeftOut => format!("{what}{} {}: {}", row.asked, row.done, row.reason),
            _ => format!("{what}{} instead of {}: {}", row.done, row.asked, row.reason),
        }
    };
    groups.into_iter().map(line).collect()
}
