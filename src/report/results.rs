//! The main table: a row per model with the figures of each, and its cells for renderings that have columns only.

use super::figures::{self, Figure};
use super::format::{fixed, percent};
use super::schema::{Artifact, Candidate, OfText, Report};
use super::{sizes, summary, vectors};
use crate::eval::{Estimate, Statistics};

/// A model.
pub struct Row<'a> {
    pub name: String,
    pub artifact: &'a Artifact,
    /// `None` for the base.
    pub candidate: Option<&'a Candidate>,
    pub failed: bool,
    pub size: Figure,
    /// Of the base's size.
    pub share: Option<String>,
    pub bpw: String,
    pub loss: Option<Losses>,
    /// The base's, which has no loss.
    pub perplexity: Option<Figure>,
}

/// What a candidate loses.
pub struct Losses {
    pub kl: Figure,
    pub kl_99: Figure,
    pub same_top: Figure,
    pub change: Figure,
    pub dp_rms: Figure,
}

impl Losses {
    fn of(s: &Statistics) -> Self {
        Self {
            kl: figures::kl(s.kld),
            kl_99: figures::kl_percentile(s.kld_percentiles.p99),
            same_top: figures::share(s.same_top),
            change: figures::change(s.ppl_ratio),
            dp_rms: figures::share(s.dp_rms),
        }
    }
}

/// The base first, then the candidates, the largest first.
pub fn rows<'a>(report: &'a Report) -> Vec<Row<'a>> {
    fn row<'a>(report: &Report, name: String, artifact: &'a Artifact, share: Option<f64>) -> Row<'a> {
        Row {
            failed: report.gates.iter().any(|g| g.candidate == name && !g.pass),
            name,
            artifact,
            candidate: None,
            size: figures::size(artifact.bytes),
            share: share.map(|share| percent(share, 0)),
            bpw: fixed(artifact.bpw, 2),
            loss: None,
            perplexity: None,
        }
    }
    let base = report.base.as_ref().map(|base| {
        let ppl = base.ppl.or_else(|| summary::measured(report).first().map(|(_, s)| s.ppl_base));
        let name = format!("{} (base)", base.artifact.name);
        Row { perplexity: ppl.map(figures::perplexity), ..row(report, name, &base.artifact, Some(1.0)) }
    });
    let mut candidates: Vec<&Candidate> = report.candidates.iter().collect();
    candidates.sort_by_key(|c| std::cmp::Reverse(c.artifact.bytes));
    let of = |c: &'a Candidate| Row {
        candidate: Some(c),
        loss: c.stats.as_ref().map(Losses::of),
        perplexity: c.stats.map(|s| figures::perplexity(s.ppl)),
        ..row(report, c.artifact.name.clone(), &c.artifact, sizes::size_share(report, c))
    };
    base.into_iter().chain(candidates.into_iter().map(of)).collect()
}

/// What stands where there is nothing.
pub const NONE: &str = "–";

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
