//! The report on a terminal, line by line and each line escaped: the headline, one aligned table, gates, significant differences, departures. No colour.

pub use super::format::decimals_for;
use super::format::{fixed, percent, signed_percent, significant};
use super::schema::Report;
use super::{generation, sizes, summary, vectors};
use crate::escape;
use crate::eval::Estimate;

/// `value ± standard error`.
pub fn with_error(e: Estimate, decimals: usize) -> String {
    format!("{} ± {}", fixed(e.value, decimals), fixed(e.std_error, decimals))
}

/// The table's cells, header first. Shared with Markdown.
pub fn table(report: &Report) -> Vec<Vec<String>> {
    if report.is_of_vectors() {
        return vectors::table(report);
    }
    let head = ["model", "size", "of base", "bpw", "perplexity", "vs base", "KL mean", "KL 99%", "RMS Δp", "same top"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    let dash = || "–".to_string();
    if let Some(mut row) = sizes::of_base(report) {
        let ppl = report.base.as_ref().and_then(|base| base.ppl);
        let ppl = ppl.or_else(|| summary::measured(report).first().map(|(_, s)| s.ppl_base));
        row.push(ppl.map_or_else(dash, |p| with_error(p, decimals_for(p).clamp(2, 3))));
        rows.push(row.into_iter().chain((0..5).map(|_| dash())).collect());
    }
    for (c, mut row) in sizes::of_candidates(report) {
        match &c.stats {
            Some(s) => row.extend([
                with_error(s.ppl, decimals_for(s.ppl).clamp(2, 3)),
                signed_percent(s.ppl_ratio.value - 1.0, 2),
                with_error(s.kld, decimals_for(s.kld)),
                significant(s.kld_percentiles.p99, 3),
                percent(s.dp_rms.value, 2),
                percent(s.same_top.value, 2),
            ]),
            None => row.extend((0..6).map(|_| dash())),
        }
        rows.push(row);
    }
    rows
}

/// The KL divergence, or mean cosine, of every candidate on each of several texts, the worst text first; a header before. Empty for one.
pub fn texts(report: &Report) -> Vec<Vec<String>> {
    if report.texts.is_empty() {
        return Vec::new();
    }
    let mut texts: Vec<_> = report.texts.iter().collect();
    texts.sort_by(|a, b| b.worst().total_cmp(&a.worst()));
    let name = |t: &&super::schema::OfText| t.text.rsplit('/').next().unwrap_or(&t.text).to_string();
    let mut rows: Vec<Vec<String>> = vec![std::iter::once("model".into()).chain(texts.iter().map(name)).collect()];
    let measured = report.candidates.iter().filter(|c| c.measured().is_some());
    for (i, c) in measured.enumerate() {
        let shown = |e: &Estimate| match report.is_of_vectors() {
            true => vectors::with_error(*e),
            false => with_error(*e, decimals_for(*e)),
        };
        let figure = |t: &&super::schema::OfText| t.figures().get(i).map_or("–".into(), shown);
        rows.push(std::iter::once(c.artifact.name.clone()).chain(texts.iter().map(figure)).collect());
    }
    rows
}

/// A line of it.
fn add(out: &mut String, line: &str) {
    *out += &escape::line(line);
    out.push('\n');
}

/// Rows with their cells under each other, the first column to the left.
fn aligned(out: &mut String, rows: &[Vec<String>]) {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| escape::line(cell)).collect()).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (cell, &w))| if i == 0 { format!("{cell:<w$}") } else { format!("{cell:>w$}") });
        add(out, &cells.collect::<Vec<_>>().join("  "));
    }
}

/// Renders for a terminal: at most about 110 columns, aligned by characters.
pub fn render_text(report: &Report) -> String {
    let mut out = String::new();
    add(&mut out, &summary::title(report));
    add(&mut out, &summary::headline(report));
    for line in summary::verdict(report).into_iter().chain(summary::details(report)) {
        add(&mut out, &line);
    }
    let rows = table(report);
    if rows.len() > 1 && !summary::answers_only(report) {
        out.push('\n');
        aligned(&mut out, &rows);
        out += &match report.is_of_vectors() {
            true => format!("\n{}\n", vectors::LEGEND),
            false => "\nKL in nats per token; ± is one standard error over chunks of the text.\n".to_string(),
        };
    }
    let texts = texts(report);
    if !texts.is_empty() {
        let what = if report.is_of_vectors() { "Mean cosine" } else { "KL" };
        out += &format!("\n{what} by text; all above is of the first, the worst:\n");
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
            let name = |i: usize| report.candidates.get(i).map_or("?", |c| c.artifact.name.as_str());
            add(
                &mut out,
                &format!("No significant difference in KL between {} and {}.", name(p.first), name(p.second)),
            );
        }
    }
    if !report.ledger.is_empty() {
        out += "\nDepartures from what was asked:\n";
        for row in &report.ledger {
            let tensor = row.tensor.as_deref().map(|t| format!(" {t}")).unwrap_or_default();
            let departure = format!("{}{tensor}: {} → {} ({})", row.kind, row.asked, row.done, row.reason);
            add(&mut out, &format!("  {}: {departure}", row.candidate));
        }
    }
    if let Some(method) = summary::method(report) {
        out.push('\n');
        add(&mut out, &format!("Measured on {method}"));
    }
    out
}
