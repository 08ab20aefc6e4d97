//! The rows of the main table: the models, with the figures of each.

use super::figures::{self, Figure};
use super::format::{fixed, percent};
use super::schema::{Artifact, Candidate, Report};
use super::sizes;
use crate::eval::Statistics;

/// A model.
pub(crate) struct Row<'a> {
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
pub(crate) struct Losses {
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
        let ppl = base.ppl.or_else(|| measured(report).first().map(|(_, s)| s.ppl_base));
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

/// Every candidate that was run, smallest first, with its statistics.
pub fn measured(report: &Report) -> Vec<(&Candidate, &Statistics)> {
    let mut all: Vec<_> = report.candidates.iter().filter_map(|c| Some((c, c.stats.as_ref()?))).collect();
    all.sort_by_key(|(c, _)| c.artifact.bytes);
    all
}
