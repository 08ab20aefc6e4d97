//! The report as one HTML file that needs no network: text, tables, inline SVG, one style sheet, a few lines of script that
//! make tables sort. The page is `report.html`, its drawings are in `charts`.

use super::figures::{self, Figure};
use super::format::{bytes, count, parameters, percent};
use super::schema::{Candidate, Report};
use super::{charts, names, statistics, summary, view};
use crate::Result;
use crate::convert::Kind;
use crate::template::render;
use minijinja::context;
use minijinja::value::Value;

/// Renders the whole page.
///
/// # Errors
/// `Internal` for a mistake in the template.
pub fn render_html(report: &Report) -> Result<String> {
    let report = &*names::shortened(report);
    let model = report.source.as_ref().or(report.base.as_ref().map(|b| &b.artifact));
    let measured = summary::measured(report);
    let weighted = report.candidates.iter().flat_map(|c| &c.tensors).any(|t| t.rel_error_weighted.is_some());
    let name = |c: &Candidate| c.artifact.name.clone();
    let with_strips: Vec<String> = charts::with_strips(report).into_iter().map(name).collect();
    let without_strips: Vec<String> = report.candidates.iter().map(name).filter(|n| !with_strips.contains(n)).collect();
    let ablations = report.candidates.iter().filter(|c| !c.ablation.is_empty());
    let ablation = |c: &Candidate| {
        context! { name => name(c), bars => drawing(charts::ablation(&c.ablation)) }
    };
    let page = context! {
        parameters => model.map(|a| a.parameters).filter(|n| *n > 0).map(parameters),
        tiles => tiles(report), spoken_of => summary::headline_candidate(report).map(|(c, _)| name(c)),
        scatter => charts::scatter(report).map(drawing), bands => charts::dp_bands(report).map(drawing),
        not_drawn => not_drawn(report), strips => charts::strips(report).map(drawing), weighted,
        with_strips, without_strips => without_strips.join(", "),
        statistics => (!measured.is_empty()).then(|| statistics::table(&measured)),
        ablations => ablations.map(ablation).collect::<Vec<_>>(), pairs_in_words => pairs_in_words(report),
        departures_in_words => departures_in_words(report), facts => view::facts(report),
        css => drawing(include_str!("report.css").into()), script => drawing(include_str!("report.js").into()),
    };
    render("report.html", include_str!("report.html"), minijinja::value::merge_maps([page, view::of(report)]))
}

/// What is markup already.
fn drawing(markup: String) -> Value {
    Value::from_safe_string(markup)
}

/// Candidates that a logarithmic scale has no place for.
fn not_drawn(report: &Report) -> String {
    let copies = summary::measured(report).into_iter().filter(|(_, s)| s.kld.value <= 0.0);
    copies.map(|(c, _)| c.artifact.name.clone()).collect::<Vec<_>>().join(", ")
}

/// The four figures of the headline's candidate.
fn tiles(report: &Report) -> Vec<Value> {
    let Some((c, s)) = summary::headline_candidate(report) else { return Vec::new() };
    let of_original =
        summary::size_share(report, c).map_or(String::new(), |share| format!("{} of the original", percent(share, 0)));
    let tile = |name: String, figure: Figure| {
        let interval = figure.interval.replacen('–', " to ", 1);
        let below = if interval.is_empty() { figure.with_error } else { interval };
        context! { name, value => figure.text, below }
    };
    vec![
        context! { name => format!("{} size", c.artifact.name), value => bytes(c.artifact.bytes), below => of_original },
        tile("Same top choice".into(), figures::share(s.same_top)),
        tile("Perplexity".into(), figures::change(s.ppl_ratio)),
        tile("KL divergence, nats".into(), figures::kl(s.kld)),
    ]
}

/// What the pairs say together.
fn pairs_in_words(report: &Report) -> String {
    let name = |i: usize| names::of_candidate(report, i);
    let unclear = report.pairs.iter().filter(|p| p.better().is_none());
    let unclear: Vec<String> = unclear.map(|p| format!("{} and {}", name(p.first), name(p.second))).collect();
    match (report.pairs.len(), unclear.as_slice()) {
        (1, []) => "The difference is significant at the 95 % level.".to_string(),
        (n, []) => format!("All {n} differences are significant at the 95 % level."),
        (1, _) => "The difference is not significant: the text cannot tell them apart.".to_string(),
        (_, pairs) => format!(
            "The text cannot tell apart {}; all other differences are significant at the 95 % level.",
            pairs.join(", ")
        ),
    }
}

/// `240 departures: 238 fallback, 2 search`.
fn departures_in_words(report: &Report) -> String {
    let mut kinds: Vec<(Kind, usize)> = Vec::new();
    for row in &report.ledger {
        match kinds.iter_mut().find(|(kind, _)| *kind == row.kind) {
            Some((_, n)) => *n += 1,
            None => kinds.push((row.kind, 1)),
        }
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{} {kind}", count(*n))).collect();
    format!("{} departures: {}", count(report.ledger.len()), kinds.join(", "))
}
