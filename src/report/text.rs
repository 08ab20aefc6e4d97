//! The report on a terminal, line by line and each line escaped: the headline, one aligned table, gates, significant differences, departures. No colour.

use super::schema::Report;
use super::{departures, generation, names, summary, table, vectors};
use crate::escape;

/// Columns of a terminal.
const WIDTH: usize = 80;

/// A paragraph of it, wrapped; what is indented goes on two columns further in.
fn add(out: &mut String, line: &str) {
    *out += &wrap(&escape::line(line), WIDTH);
    out.push('\n');
}

/// Breaks a line between words.
pub fn wrap(line: &str, width: usize) -> String {
    let lead = line.len() - line.trim_start_matches(' ').len();
    let indent = if lead > 0 { lead + 2 } else { 0 };
    let (mut out, mut column) = (" ".repeat(lead), lead);
    for (i, word) in line[lead..].split(' ').enumerate() {
        let len = word.chars().count();
        if i > 0 && column + 1 + len > width {
            out += &format!("\n{}", " ".repeat(indent));
            column = indent;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += len;
    }
    out
}

/// Rows with their cells under each other, the first column to the left. What is too wide goes on below, behind the first
/// column again.
fn aligned(out: &mut String, rows: &[Vec<String>]) {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| escape::line(cell)).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut from = 1;
    while from < columns.max(2) {
        let mut to = from;
        let mut wide = widths.first().copied().unwrap_or(0);
        while to < columns && (to == from || wide + 2 + widths[to] <= WIDTH) {
            wide += 2 + widths[to];
            to += 1;
        }
        if from > 1 {
            out.push('\n');
        }
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate().filter(|(i, _)| *i == 0 || (from..to).contains(i));
            let cells = cells.map(|(i, (cell, &w))| if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
            *out += cells.collect::<Vec<_>>().join("  ").trim_end();
            out.push('\n');
        }
        from = to.max(from + 1);
    }
}

/// Renders for a terminal of 80 columns.
pub fn render_text(report: &Report) -> String {
    let report = &*names::shortened(report);
    let mut out = String::new();
    add(&mut out, &summary::title(report));
    add(&mut out, &summary::headline(report));
    for line in summary::verdict(report).into_iter().chain(summary::details(report)) {
        add(&mut out, &line);
    }
    let rows = table::cells(report);
    if rows.len() > 1 && !summary::answers_only(report) {
        out.push('\n');
        aligned(&mut out, &rows);
        out.push('\n');
        add(
            &mut out,
            match report.is_of_vectors() {
                true => vectors::LEGEND,
                false => "KL in nats per token; ± is one standard error over chunks of the text.",
            },
        );
    }
    let texts = table::texts(report);
    if !texts.is_empty() {
        let what = if report.is_of_vectors() { "Mean cosine" } else { "KL" };
        out += &format!("\n{what} by text (everything above is for the first, the worst):\n");
        aligned(&mut out, &texts);
    }
    for (title, rows) in super::tasks::tables(report) {
        out.push('\n');
        add(&mut out, &title);
        aligned(&mut out, &rows);
    }
    for (title, rows) in generation::positions(report).into_iter().chain(generation::continuations(report)) {
        out.push('\n');
        add(&mut out, &format!("{title}:"));
        aligned(&mut out, &rows);
    }
    if let Some((_, verdict)) = summary::gates(report) {
        out += &format!("\n{verdict}\n");
        for gate in &report.gates {
            add(&mut out, &format!("  {}  {}", if gate.pass { "pass" } else { "FAIL" }, gate.sentence()));
        }
    }
    let origins = summary::origins(report);
    if !origins.is_empty() {
        out.push('\n');
        origins.iter().for_each(|line| add(&mut out, line));
    }
    let unclear: Vec<_> = report.pairs.iter().filter(|p| p.better().is_none()).collect();
    if !unclear.is_empty() {
        out.push('\n');
        for p in unclear {
            let name = |i: usize| names::of_candidate(report, i);
            add(
                &mut out,
                &format!("No significant difference in KL between {} and {}.", name(p.first), name(p.second)),
            );
        }
    }
    let departures = departures::lines(report);
    if !departures.is_empty() {
        out += "\nDepartures from what was asked (tensor by tensor in the JSON report):\n";
        departures.iter().for_each(|line| add(&mut out, &format!("  {line}")));
    }
    if let Some(method) = summary::method(report) {
        out.push('\n');
        add(&mut out, &format!("Measured on {method}"));
    }
    out
}
