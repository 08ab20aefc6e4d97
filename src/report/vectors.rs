//! What is said of models without a head: the cosines between an artifact's vectors and the original's. Everything that does
//! not depend on what was measured is where it is for all.

use super::format::{bytes, decimals_for, fixed, percent};
use super::results::{self, NONE};
use super::schema::{Candidate, Report};
use super::sizes;
use crate::eval::Estimate;
use crate::eval::cosine::Cosines;
use crate::eval::gate::shown_cosine;

/// A mean cosine from which on an artifact is as good as the original for most uses.
const GOOD: f64 = 0.99;

/// Every candidate that was run, smallest first.
fn measured(report: &Report) -> Vec<(&Candidate, &Cosines)> {
    let mut all: Vec<_> = report.candidates.iter().filter_map(|c| Some((c, c.cosine.as_ref()?))).collect();
    all.sort_by_key(|(c, _)| c.artifact.bytes);
    all
}

/// The candidate that the headline speaks of: as for models with a head, by the mean cosine.
fn spoken_of(report: &Report) -> Option<(&Candidate, &Cosines)> {
    let all = measured(report);
    let failed = |name: &str| report.gates.iter().any(|g| g.candidate == name && !g.pass);
    let good = match report.gates.is_empty() {
        true => all.iter().find(|(_, cosines)| cosines.mean.value >= GOOD),
        false => all.iter().find(|(c, _)| !failed(&c.artifact.name)),
    };
    good.or_else(|| all.iter().max_by(|a, b| a.1.mean.value.total_cmp(&b.1.mean.value))).copied()
}

/// `Q4_K_M gives vectors with a mean cosine of 0.9987 to the original's, at 32 % of the size.`
pub fn headline(report: &Report) -> String {
    if let Some((c, cosines)) = spoken_of(report) {
        let size = match sizes::size_share(report, c) {
            Some(share) => format!("{} of the size", percent(share, 0)),
            None => bytes(c.artifact.bytes),
        };
        let mean = shown_cosine(cosines.mean.value);
        return format!("{} gives vectors with a mean cosine of {mean} to the original's, at {size}.", c.artifact.name);
    }
    let vectors = report.base.as_ref().and_then(|base| base.vectors.as_ref());
    vectors.map_or_else(String::new, |vectors| {
        let (title, width, pooling) = (sizes::title(report), vectors.width, &vectors.pooling);
        format!("{title} gives vectors of {width} numbers for a text (pooling: {pooling}), and no logits.")
    })
}

/// What goes with the headline, a sentence each; nothing for models with a head.
pub fn details(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some((c, cosines)) = spoken_of(report) {
        let size = sizes::change(report, c);
        lines.push(format!(
            "{size}Of {} vectors the one that changed most has a cosine of {} to the original's.",
            cosines.vectors,
            shown_cosine(cosines.worst)
        ));
    }
    if let Some(scores) = spoken_of(report).and_then(|(c, _)| c.scores) {
        let shown = |x: f64| fixed(x, decimals_for(scores.mean));
        lines.push(format!(
            "Its scores are off by {} on average and {} at most, where those of the original spread by {}; {}.",
            shown(scores.mean.value),
            shown(scores.worst),
            shown(scores.spread),
            match scores.labels {
                1 => format!("{} of all pairs of chunks are in the same order", percent(scores.agreement, 1)),
                _ => format!("{} of the chunks have the same label first", percent(scores.agreement, 1)),
            }
        ));
    }
    let base = report.base.as_ref().and_then(|base| base.vectors.as_ref()?.between);
    if let Some(between) = base {
        lines.push(format!(
            "Vectors of different chunks have cosines of {} to {} to each other, {} in the middle.",
            shown_cosine(between.min),
            shown_cosine(between.max),
            shown_cosine(between.median)
        ));
    }
    lines
}

/// `value ± standard error`, with as many digits as the error has.
pub fn with_error(mean: Estimate) -> String {
    if mean.std_error <= 0.0 {
        return shown_cosine(mean.value);
    }
    let decimals = decimals_for(mean);
    format!("{} ± {}", fixed(mean.value, decimals), fixed(mean.std_error, decimals))
}

/// The table's cells, header first.
pub fn table(report: &Report) -> Vec<Vec<String>> {
    let mut head = vec!["model", "size", "of base", "bpw", "mean cosine", "5 % below", "worst"];
    let scored = report.candidates.iter().any(|c| c.scores.is_some());
    if scored {
        head.extend(["score off by", "at most", "same order"]);
    }
    let missing = head.len() - 4;
    let mut rows = vec![head.into_iter().map(str::to_string).collect()];
    for of in results::rows(report) {
        let mut row = vec![of.name, of.size.text, of.share.unwrap_or(NONE.into()), of.bpw];
        let Some(c) = of.candidate else {
            rows.push(row.into_iter().chain((0..missing).map(|_| NONE.into())).collect());
            continue;
        };
        match &c.cosine {
            Some(cosines) => row.extend([
                with_error(cosines.mean),
                shown_cosine(cosines.percentiles.p5),
                shown_cosine(cosines.worst),
            ]),
            None => row.extend((0..3).map(|_| NONE.to_string())),
        }
        match &c.scores {
            Some(scores) => row.extend([
                fixed(scores.mean.value, decimals_for(scores.mean)),
                fixed(scores.worst, decimals_for(scores.mean)),
                percent(scores.agreement, 1),
            ]),
            None if scored => row.extend((0..3).map(|_| NONE.to_string())),
            None => {}
        }
        rows.push(row);
    }
    rows
}

/// What the table's columns are.
pub const LEGEND: &str = "Cosines are between a model's vectors and the base's, over the chunks of the text; 1 is no loss, ± one \
    standard error.";
