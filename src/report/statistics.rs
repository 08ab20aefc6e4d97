//! The table of all statistics in an HTML page.

use super::format::{add, count, decimals_for, fixed, html as escape, percent, signed_percent};
use super::schema::Candidate;
use crate::eval::{Estimate, Statistics};
use std::fmt::Write;

/// Every figure that llama-perplexity prints, a column per candidate.
pub fn table(out: &mut String, all: &[(&Candidate, &Statistics)]) {
    *out += "<div class=\"scroll\"><table><thead><tr><th>Statistic</th>";
    for (c, _) in all {
        add!(out, "<th>{}</th>", escape(&c.artifact.name));
    }
    *out += "</tr></thead><tbody>";
    let pm = |e: Estimate, scale: f64, unit: &str| {
        let e = Estimate { value: e.value * scale, std_error: e.std_error * scale, ci95: None };
        format!("{} ± {}{unit}", fixed(e.value, decimals_for(e)), fixed(e.std_error, decimals_for(e)))
    };
    let points = "\u{a0}%";
    type Show<'a> = &'a dyn Fn(&Statistics) -> String;
    let rows: [(&str, Show); 12] = [
        ("Perplexity", &|s| pm(s.ppl, 1.0, "")),
        ("Perplexity of the base", &|s| pm(s.ppl_base, 1.0, "")),
        ("Correlation of ln PPL", &|s| percent(s.correlation, 2)),
        ("ln(PPL / base)", &|s| pm(s.ln_ppl_ratio, 1.0, "")),
        ("PPL / base", &|s| pm(s.ppl_ratio, 1.0, "")),
        ("PPL − base", &|s| pm(s.ppl_difference, 1.0, "")),
        ("KL mean", &|s| pm(s.kld, 1.0, "")),
        ("Δp mean", &|s| pm(s.dp, 100.0, points)),
        ("Δp RMS", &|s| pm(s.dp_rms, 100.0, points)),
        ("Same top", &|s| pm(s.same_top, 100.0, points)),
        ("Tokens scored", &|s| count(s.tokens)),
        ("KL median", &|s| fixed(s.kld_percentiles.median, 6)),
    ];
    let row = |out: &mut String, name: &str, value: Show| {
        add!(out, "<tr><td>{name}</td>");
        for (_, s) in all {
            add!(out, "<td>{}</td>", value(s));
        }
        *out += "</tr>";
    };
    for (name, value) in rows {
        row(out, name, value);
    }
    type Pick = fn(&crate::eval::stats::Percentiles) -> f64;
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
        row(out, &format!("KL {name}"), &|s| fixed(pick(&s.kld_percentiles), 6));
    }
    for (name, pick) in picks {
        row(out, &format!("Δp {name}"), &|s| signed_percent(pick(&s.dp_percentiles), 3));
    }
    *out += "</tbody></table></div>";
}
