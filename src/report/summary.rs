//! The plain-language sentences at the top of every rendering: what a candidate keeps, what it costs, and whether the gates
//! held. Plain text without markup.

use super::figures;
use super::format::{bytes, percent, significant};
pub use super::results::measured;
use super::schema::{Answered, Candidate, Report};
use super::sizes;
pub use super::sizes::{base_bytes, size_share, title};
use super::vectors;
use crate::eval::gate::shown_cosine;
use crate::eval::stats::Statistics;

/// Every candidate that was run, smallest first, with its loss: KL divergence, or 1 − cosine.
pub fn losses(report: &Report) -> Vec<(&Candidate, f64)> {
    let mut all: Vec<_> = report.candidates.iter().filter_map(|c| Some((c, c.measured()?.loss()))).collect();
    all.sort_by_key(|(c, _)| c.artifact.bytes);
    all
}

/// A loss in words.
fn figure(report: &Report, loss: f64) -> String {
    match report.is_of_vectors() {
        true => format!("cosine {}", shown_cosine(1.0 - loss)),
        false => format!("KL {}", significant(loss, 2)),
    }
}

/// Sizes that differ by less are alike: half a hundredth.
const ALIKE: f64 = 0.005;

/// Which of the candidates, smallest first, are beaten: by one that is no larger, but for a little, and closer.
pub fn beaten(points: &[(&Candidate, f64)]) -> Vec<bool> {
    let one = |(c, loss): &(&Candidate, f64)| {
        points.iter().any(|(other, theirs)| {
            let no_larger = other.artifact.bytes as f64 <= c.artifact.bytes as f64 * (1.0 + ALIKE);
            let smaller = (other.artifact.bytes as f64) < c.artifact.bytes as f64 * (1.0 - ALIKE);
            no_larger && (theirs < loss || (smaller && theirs == loss))
        })
    };
    points.iter().map(one).collect()
}

/// Those that none beats.
fn unbeaten<'a>(points: &[(&'a Candidate, f64)]) -> Vec<(&'a Candidate, f64)> {
    points.iter().zip(beaten(points)).filter(|(_, beaten)| !beaten).map(|(point, _)| *point).collect()
}

/// What to take and what to leave, a sentence each: the smallest that passes the gates, the most for its bytes, and what
/// others beat.
pub fn verdict(report: &Report) -> Vec<String> {
    let all = losses(report);
    let mut lines = Vec::new();
    if all.len() < 2 {
        return lines;
    }
    if !report.gates.is_empty() {
        let passes = |c: &Candidate| report.gates.iter().all(|g| g.candidate != c.artifact.name || g.pass);
        lines.push(match all.iter().find(|(c, _)| passes(c)) {
            Some((c, _)) => format!("Smallest that passes: {} ({}).", c.artifact.name, bytes(c.artifact.bytes)),
            None => "None passes the gates.".into(),
        });
    }
    let beaten = beaten(&all);
    if let Some((c, loss)) = best_per_byte(&unbeaten(&all)) {
        let figure = figure(report, loss);
        lines.push(format!("Best for its size: {} ({}, {figure}).", c.artifact.name, bytes(c.artifact.bytes)));
    }
    let avoid: Vec<&str> =
        all.iter().zip(&beaten).filter(|(_, beaten)| **beaten).map(|((c, _), _)| c.artifact.name.as_str()).collect();
    if !avoid.is_empty() {
        lines.push(format!("Skip: {}; others here are no larger and closer to the original.", avoid.join(", ")));
    }
    lines
}

/// Bits per weight from which on a candidate is no quantization: nearly without loss, it would bend any curve to itself.
const PLAIN_BITS: f64 = 15.9;

/// Where the curve of size against ln KL bends most: the point furthest below the line from its one end to the other.
fn best_per_byte<'a>(kept: &[(&'a Candidate, f64)]) -> Option<(&'a Candidate, f64)> {
    let is_quantized = |(c, loss): &&(&Candidate, f64)| c.artifact.bpw < PLAIN_BITS && *loss > 0.0;
    let kept: Vec<(&Candidate, f64)> = kept.iter().filter(is_quantized).copied().collect();
    let at = |(c, loss): &(&Candidate, f64)| (c.artifact.bytes as f64, loss.max(1e-12).ln());
    let (first, last) = (at(kept.first()?), at(kept.last()?));
    if kept.len() < 3 || last.0 <= first.0 {
        return None;
    }
    let below = |p: &(&Candidate, f64)| {
        let (x, y) = at(p);
        first.1 + (last.1 - first.1) * (x - first.0) / (last.0 - first.0) - y
    };
    kept.iter().max_by(|a, b| below(a).total_cmp(&below(b))).filter(|p| below(p) > 0.0).copied()
}

/// The candidate the headline speaks of: the smallest one that passes all gates if there are any; without gates the best
/// for its size, of two the smaller whose KL divergence stays below 0.1, and failing that the closest one.
pub fn headline_candidate(report: &Report) -> Option<(&Candidate, &Statistics)> {
    let all = measured(report);
    let failed = |name: &str| report.gates.iter().any(|g| g.candidate == name && !g.pass);
    let good = if report.gates.is_empty() {
        let best = best_per_byte(&unbeaten(&losses(report)));
        all.iter().find(|(c, s)| best.map_or(s.kld.value < 0.1, |(best, _)| std::ptr::eq(*c, best)))
    } else {
        all.iter().find(|(c, _)| !failed(&c.artifact.name))
    };
    good.or_else(|| all.iter().min_by(|a, b| a.1.kld.value.total_cmp(&b.1.kld.value))).copied()
}

/// `Q4_K_M keeps 93.1 % of the top choices at 32 % of the size.`
pub fn headline(report: &Report) -> String {
    if report.is_of_vectors() {
        return vectors::headline(report);
    }
    match headline_candidate(report) {
        Some((c, s)) => {
            let size = match size_share(report, c) {
                Some(share) => format!("{} of the size", percent(share, 0)),
                None => bytes(c.artifact.bytes),
            };
            format!("{} keeps {} of the top choices at {size}.", c.artifact.name, top1(s))
        }
        None => match (&report.base, report.candidates.len()) {
            (Some(base), 0) if base.ppl.is_some() => {
                let ppl = base.ppl.unwrap_or_default();
                format!("{} has a perplexity of {}.", title(report), significant(ppl.value, 5))
            }
            _ if !report.tasks.is_empty() => answered(report),
            (_, 0) => "Nothing was measured.".to_string(),
            (_, 1) => "One artifact was written; its quality was not measured.".to_string(),
            (_, n) => format!("{n} artifacts were written; their quality was not measured."),
        },
    }
}

/// How many answers of the first task are right, and how many candidates are significantly worse in any.
fn answered(report: &Report) -> String {
    let Some(first) = report.tasks.first() else { return String::new() };
    let base = percent(first.base.accuracy.value, 1);
    if report.candidates.is_empty() {
        return format!("{} answers {base} of {} questions correctly.", title(report), first.kind.title());
    }
    let is_worse = |a: &Answered| a.p.is_some_and(|p| p < 0.05) && a.difference.is_some_and(|d| d.value < 0.0);
    let worse = (0..report.candidates.len())
        .filter(|i| report.tasks.iter().any(|t| t.candidates.get(*i).is_some_and(is_worse)));
    match worse.count() {
        0 => format!("No candidate answers significantly fewer questions correctly than the base ({base})."),
        1 => format!("One candidate answers significantly fewer questions correctly than the base ({base})."),
        n => format!("{n} candidates answer significantly fewer questions correctly than the base ({base})."),
    }
}

/// One decimal, two where one would round to 100 %.
fn top1(s: &Statistics) -> String {
    percent(s.same_top.value, if s.same_top.value > 0.9995 { 2 } else { 1 })
}

/// Whether questions were answered and no text was read.
pub fn answers_only(report: &Report) -> bool {
    !report.tasks.is_empty() && report.method.is_none()
}

/// What goes with the headline, a sentence each.
pub fn details(report: &Report) -> Vec<String> {
    let mut lines = vectors::details(report);
    if let Some((c, s)) = headline_candidate(report) {
        let size = sizes::change(report, c);
        lines.push(format!(
            "{size}Perplexity goes from {} to {} ({}), and the KL divergence from the original is {} nats per token.",
            significant(s.ppl_base.value, 4),
            significant(s.ppl.value, 4),
            figures::change_in_words(s.ppl_ratio.value),
            significant(s.kld.value, 3),
        ));
    }
    let all = losses(report);
    let ranked = |a: &&(&Candidate, f64), b: &&(&Candidate, f64)| a.1.total_cmp(&b.1);
    if let (Some(best), Some(worst)) = (all.iter().min_by(ranked), all.iter().max_by(ranked))
        && all.len() > 1
    {
        lines.push(format!(
            "Of {} candidates, {} is closest to the original ({}, {} of its size) and {} is furthest ({}, {}).",
            all.len(),
            best.0.artifact.name,
            figure(report, best.1),
            size_share(report, best.0).map_or("–".into(), |s| percent(s, 0)),
            worst.0.artifact.name,
            figure(report, worst.1),
            size_share(report, worst.0).map_or("–".into(), |s| percent(s, 0)),
        ));
    }
    lines
}

/// How each candidate was made, by its own record, and whether its calibration had seen the text.
pub fn origins(report: &Report) -> Vec<String> {
    fn one(c: &Candidate) -> Option<(&str, String)> {
        let made = c.made.as_ref()?;
        let seen = match made.overlap {
            None => String::new(),
            Some(share) if share > 0.01 => format!(
                "; {} of the text's runs of 13 tokens are in what it was calibrated on, so its figures are too good",
                percent(share, 1)
            ),
            Some(share) if share > 0.0 => {
                format!("; {} of the text's runs of 13 tokens are in what it was calibrated on", percent(share, 2))
            }
            Some(_) => "; none of this text is in its calibration data".to_string(),
        };
        Some((c.artifact.name.as_str(), format!("{}{seen}.", made.how)))
    }
    // Those that were made alike in one line.
    let mut lines: Vec<(Vec<&str>, String)> = Vec::new();
    for (name, how) in report.candidates.iter().filter_map(one) {
        match lines.iter_mut().find(|(_, other)| *other == how) {
            Some((names, _)) => names.push(name),
            None => lines.push((vec![name], how)),
        }
    }
    lines.into_iter().map(|(names, how)| format!("{}: {how}", names.join(", "))).collect()
}

/// `All 6 quality gates passed.` and the like; `None` without gates.
pub fn gates(report: &Report) -> Option<(bool, String)> {
    let failed = report.gates.iter().filter(|g| !g.pass).count();
    match (report.gates.len(), failed) {
        (0, _) => None,
        (1, 0) => Some((true, "The quality gate passed.".into())),
        (n, 0) => Some((true, format!("All {n} quality gates passed."))),
        (1, _) => Some((false, "The quality gate failed.".into())),
        (n, f) => Some((false, format!("{f} of {n} quality gates failed."))),
    }
}

/// How it was measured, in one sentence.
pub fn method(report: &Report) -> Option<String> {
    let m = report.method.as_ref()?;
    let windows = match m.name.as_str() {
        "llama.cpp" => {
            format!("{} chunks of {} tokens, the second half of each scored (llama.cpp's method)", m.chunks, m.ctx)
        }
        "vectors" => format!("{} chunks of {} tokens, each a text of its own", m.chunks, m.ctx),
        _ => format!("{} windows of {} tokens, {} scored in each", m.chunks, m.ctx, m.stride),
    };
    let activations = match m.activations.as_str() {
        "q8" => "activations rounded to 8 bits, as llama.cpp's CPU kernels do",
        _ => "activations in f32, so the loss is that of the weights alone",
    };
    let measured = report.base.iter().map(|b| &b.artifact).chain(report.candidates.iter().map(|c| &c.artifact));
    let rounding: Vec<&str> = measured.filter(|a| a.activations.is_some()).map(|a| a.name.as_str()).collect();
    let except = match rounding.is_empty() {
        true => String::new(),
        false => format!(", but for {}, whose formats round activations too", rounding.join(", ")),
    };
    let cache = m.kv_cache.as_ref().map(|types| format!("; keys and values kept in {types}")).unwrap_or_default();
    Some(format!("{} tokens of {} in {windows}; {activations}{except}{cache}.", super::format::count(m.tokens), m.text))
}
