//! The table of all statistics in an HTML page.

use super::figures;
use super::format::{count, fixed, percent, signed_percent};
use super::schema::Candidate;
use crate::eval::Statistics;
use crate::eval::stats::Percentiles;

/// Every figure that llama-perplexity prints, a column per candidate; the names of the candidates first.
pub fn table(all: &[(&Candidate, &Statistics)]) -> Vec<Vec<String>> {
    let head = all.iter().map(|(c, _)| c.artifact.name.clone());
    let mut rows = vec![std::iter::once("Statistic".to_string()).chain(head).collect::<Vec<_>>()];
    let mut row = |name: &str, value: &dyn Fn(&Statistics) -> String| {
        rows.push(std::iter::once(name.to_string()).chain(all.iter().map(|(_, s)| value(s))).collect());
    };
    row("Perplexity", &|s| figures::with_error(s.ppl, false));
    row("Perplexity of the base", &|s| figures::with_error(s.ppl_base, false));
    row("Correlation of ln PPL", &|s| percent(s.correlation, 2));
    row("ln(PPL / base)", &|s| figures::with_error(s.ln_ppl_ratio, false));
    row("PPL / base", &|s| figures::with_error(s.ppl_ratio, false));
    row("PPL − base", &|s| figures::with_error(s.ppl_difference, false));
    row("KL mean", &|s| figures::kl(s.kld).with_error);
    row("Δp mean", &|s| figures::with_error(s.dp, true));
    row("Δp RMS", &|s| figures::with_error(s.dp_rms, true));
    row("Same top", &|s| figures::with_error(s.same_top, true));
    row("Tokens scored", &|s| count(s.tokens));
    row("KL median", &|s| fixed(s.kld_percentiles.median, 6));
    type Pick = fn(&Percentiles) -> f64;
    let picks: [(&str, Pick); 13] = [
        ("maximum", |p| p.max),
        ("99.9 %", |p| p.p99_9),
        ("99 %", |p| p.p99),
        ("95 %", |p| p.p95),
        ("90 %", |p| p.p90),
        ("75 %", |p| p.p75),
        ("median", |p| p.median),
        ("25 %", |p| p.p25),
        ("10 %", |p| p.p10),
        ("5 %", |p| p.p5),
        ("1 %", |p| p.p1),
        ("0.1 %", |p| p.p0_1),
        ("minimum", |p| p.min),
    ];
    for (name, pick) in picks.iter().filter(|(name, _)| *name != "median") {
        row(&format!("KL {name}"), &|s| fixed(pick(&s.kld_percentiles), 6));
    }
    for (name, pick) in picks {
        row(&format!("Δp {name}"), &|s| signed_percent(pick(&s.dp_percentiles), 3));
    }
    rows
}
