//! Quality gates: limits on a candidate's loss that can fail a build. The point estimate decides; the confidence interval
//! says how sure that is. A gate that the text is too short to judge is an error, never a pass.

use serde::{Deserialize, Serialize};

use super::cosine::Cosines;
use super::stats::{Estimate, Statistics};
use crate::error::Hint;
use crate::model::config::Ending;
use crate::{Error, Result};

/// Fewest scored positions for any gate.
pub const MIN_TOKENS: usize = 1000;
/// Fewest chunks for any gate: below, the bootstrap interval means nothing.
pub const MIN_CHUNKS: usize = 4;
/// Fewest disagreements that a candidate exactly at a `min_top1` limit must be expected to show.
const MIN_EVENTS: f64 = 10.0;

/// The limits asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// Largest mean KL divergence, nats.
    pub max_kld: Option<f64>,
    /// Largest rise in perplexity, as a fraction (0.03 is 3 %).
    pub max_ppl_increase: Option<f64>,
    /// Smallest share of equal first choices, as a fraction.
    pub min_top1: Option<f64>,
    /// Smallest mean cosine between vectors, of models without a head.
    pub min_cosine: Option<f64>,
}

/// What one gate said about one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateOutcome {
    /// `max_kld`, `max_ppl_increase`, `min_top1` or `min_cosine`.
    pub gate: String,
    /// Which candidate.
    pub candidate: String,
    /// The limit.
    pub limit: f64,
    /// What was measured.
    pub value: f64,
    /// The 95 % interval of that.
    pub ci95: [f64; 2],
    /// Whether it holds.
    pub pass: bool,
    /// Whether the whole interval lies on the same side of the limit.
    pub certain: bool,
}

impl GateOutcome {
    /// One sentence: what was measured, against what, and how sure it is.
    pub fn sentence(&self) -> String {
        let (what, sign) = match (self.gate.as_str(), self.pass) {
            ("max_kld", true) => ("KL divergence", "within"),
            ("max_kld", false) => ("KL divergence", "above"),
            ("max_ppl_increase", true) => ("perplexity increase", "within"),
            ("max_ppl_increase", false) => ("perplexity increase", "above"),
            ("min_cosine", true) => ("mean cosine", "at or above"),
            ("min_cosine", false) => ("mean cosine", "below"),
            (_, true) => ("same top choice", "at or above"),
            (_, false) => ("same top choice", "below"),
        };
        // The limit as it was asked for; what was measured with the digits it deserves.
        let limit = match self.gate.as_str() {
            "max_kld" | "min_cosine" => format!("{}", self.limit),
            _ => format!("{} %", (self.limit * 1e8).round() / 1e6),
        };
        let show = |v: f64| match self.gate.as_str() {
            "max_kld" => significant(v),
            "min_cosine" => shown_cosine(v),
            _ => format!("{:.2} %", 100.0 * v),
        };
        let unsure =
            if self.certain { "" } else { "; the interval includes the limit, so more text could change this" };
        format!(
            "{}: {what} {} (95 % interval {} to {}) is {sign} the limit of {limit}{unsure}",
            self.candidate,
            show(self.value),
            show(self.ci95[0]),
            show(self.ci95[1]),
        )
    }
}

/// Three significant digits, no exponent.
fn significant(v: f64) -> String {
    let digits = if v == 0.0 { 0 } else { (2 - v.abs().log10().floor() as i32).clamp(0, 9) };
    format!("{v:.*}", digits as usize)
}

/// A cosine with as many nines as it has, and two digits behind them.
pub fn shown_cosine(v: f64) -> String {
    let decimals = if v < 1.0 { (1.0 - (1.0 - v).log10().floor()).clamp(3.0, 9.0) } else { 4.0 };
    format!("{v:.*}", decimals as usize)
}

impl Gates {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        *self == Gates::default()
    }

    /// Fails before anything is run if `tokens` scored positions in `chunks` chunks cannot judge these gates.
    ///
    /// The rule: at least [`MIN_CHUNKS`] chunks and [`MIN_TOKENS`] positions, and for `min_top1` enough positions that a
    /// candidate exactly at the limit would show ten disagreements (10,000 for 99.9 %).
    pub fn check_size(&self, tokens: usize, chunks: usize) -> Result<()> {
        self.check_limits()?;
        if self.is_empty() {
            return Ok(());
        }
        let for_top1 = match self.min_top1 {
            Some(limit) if limit < 1.0 => (MIN_EVENTS / (1.0 - limit)).round() as usize,
            _ => 0,
        };
        let needed = MIN_TOKENS.max(for_top1);
        if tokens < needed || chunks < MIN_CHUNKS {
            return Err(Error::bad_input(format!(
                "too few tokens for this gate: {tokens} scored positions in {chunks} chunks, \
                 needed {needed} in at least {MIN_CHUNKS}"
            ))
            .hint(Hint::TextForGate));
        }
        Ok(())
    }

    /// That a model that ends so can be held to the limits.
    ///
    /// # Errors
    /// `Request`.
    pub fn check_ending(&self, ending: Ending) -> Result<()> {
        let of_logits = self.max_kld.or(self.max_ppl_increase).or(self.min_top1).is_some();
        match ending {
            Ending::Vectors(_) if of_logits => Err(Error::request(
                "the model gives vectors of texts and no logits: no KL divergence, perplexity or top choice can be held to a limit",
            )
            .hint(Hint::GateOfVectors)),
            Ending::Logits if self.min_cosine.is_some() => Err(Error::request(
                "the model gives logits and no vectors of texts: no cosine can be held to a limit",
            )
            .hint(Hint::GateOfLogits)),
            _ => Ok(()),
        }
    }

    /// [`Gates::check_size`] for a model that gives vectors, of which each chunk is one.
    ///
    /// # Errors
    /// As that.
    pub fn check_chunks(&self, chunks: usize) -> Result<()> {
        self.check_limits()?;
        if self.is_empty() || chunks >= MIN_CHUNKS {
            return Ok(());
        }
        let what = format!("too little text for this gate: {chunks} chunks, needed {MIN_CHUNKS}");
        Err(Error::bad_input(what).hint(Hint::TextForGate))
    }

    /// Judges one candidate by its vectors.
    ///
    /// # Errors
    /// As [`Gates::judge`].
    pub fn judge_vectors(&self, candidate: &str, cosines: &Cosines, chunks: usize) -> Result<Vec<GateOutcome>> {
        self.check_chunks(chunks)?;
        let mut outcomes = Vec::new();
        judge(candidate, &mut outcomes, "min_cosine", self.min_cosine, cosines.mean, |limit| 1.0 - limit, false)?;
        Ok(outcomes)
    }

    /// That the limits are such as something can be held to.
    ///
    /// # Errors
    /// `Request`.
    pub fn check_limits(&self) -> Result<()> {
        for (what, limit, low, high) in [
            ("KL divergence", self.max_kld, 0.0, f64::MAX),
            ("the rise of perplexity", self.max_ppl_increase, 0.0, f64::MAX),
            ("the share of equal top choices", self.min_top1, 0.0, 1.0),
            ("the mean cosine", self.min_cosine, -1.0, 1.0),
        ] {
            if let Some(limit) = limit.filter(|l| !(low..=high).contains(l)) {
                return Err(Error::request(format!("{limit} is no limit for {what}")));
            }
        }
        Ok(())
    }

    /// Judges one candidate. Fails as [`Gates::check_size`] does, and if the interval straddles the limit and is wider to
    /// either side than the limit itself: then the text says nothing about the gate.
    pub fn judge(&self, candidate: &str, s: &Statistics, chunks: usize) -> Result<Vec<GateOutcome>> {
        self.check_size(s.tokens, chunks)?;
        let mut outcomes = Vec::new();
        let mut judge = |gate: &str, limit: Option<f64>, e: Estimate, room: fn(f64) -> f64, upper: bool| {
            judge(candidate, &mut outcomes, gate, limit, e, room, upper)
        };
        let rise = |r: Estimate| Estimate {
            value: r.value - 1.0,
            std_error: r.std_error,
            ci95: r.ci95.map(|ci| ci.map(|v| v - 1.0)),
        };
        judge("max_kld", self.max_kld, s.kld, |limit| limit, true)?;
        judge("max_ppl_increase", self.max_ppl_increase, rise(s.ppl_ratio), |limit| limit, true)?;
        judge("min_top1", self.min_top1, s.same_top, |limit| 1.0 - limit, false)?;
        Ok(outcomes)
    }
}

/// The outcome of one limit, where there is one: `upper` ones are not to be exceeded. `room` is how wide an interval may be.
fn judge(
    candidate: &str,
    outcomes: &mut Vec<GateOutcome>,
    gate: &str,
    limit: Option<f64>,
    e: Estimate,
    room: fn(f64) -> f64,
    upper: bool,
) -> Result<()> {
    let Some(limit) = limit else { return Ok(()) };
    let ci95 = e.ci95.unwrap_or([e.value - 1.96 * e.std_error, e.value + 1.96 * e.std_error]);
    let passes = |v: f64| if upper { v <= limit } else { v >= limit };
    let certain = passes(ci95[0]) == passes(ci95[1]);
    let half = (ci95[1] - ci95[0]) / 2.0;
    if !certain && half > room(limit) && room(limit) > 0.0 {
        return Err(Error::bad_input(format!(
            "too few tokens for this gate: {candidate}'s {gate} is {} with a 95 % interval of {} to {}, \
             too wide to judge a limit of {limit}",
            significant(e.value),
            significant(ci95[0]),
            significant(ci95[1])
        ))
        .hint(Hint::TextForGate));
    }
    let (gate, candidate) = (gate.to_string(), candidate.to_string());
    outcomes.push(GateOutcome { gate, candidate, limit, value: e.value, ci95, pass: passes(e.value), certain });
    Ok(())
}

/// The error of a build whose gates failed, or `Ok`.
pub fn verdict(outcomes: &[GateOutcome]) -> Result<()> {
    let failed: Vec<String> = outcomes.iter().filter(|o| !o.pass).map(GateOutcome::sentence).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::Gate(format!("quality gate failed: {}", failed.join("\n  ")))) }
}

/// Parses a share of at most `most`: `3%` and `0.03` are the same. The error is a sentence for the user.
pub fn parse_share(text: &str, most: f64) -> Result<f64, String> {
    let trimmed = text.trim();
    let (number, unit) = match trimmed.strip_suffix('%') {
        Some(n) => (n.trim_end(), 100.0),
        None => (trimmed, 1.0),
    };
    match number.parse::<f64>() {
        Ok(v) if v / unit > most => Err(match unit == 1.0 && v <= 100.0 * most {
            true => format!("'{text}' is more than all; write {text}% or {}", v / 100.0),
            false => format!("'{text}' is more than all; write it as 95% or 0.95"),
        }),
        Ok(v) if v >= 1.0 && unit == 1.0 && v.is_finite() => {
            Err(format!("'{text}' reads as {text} % or as {} %; write {text}% or {}%", 100.0 * v, 100.0 * v))
        }
        Ok(v) if v.is_finite() && v >= 0.0 => Ok(v / unit),
        _ => Err(format!("'{text}' is not a share: write it as 3% or 0.03, 95% or 0.95")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Pooling;

    fn stats(kld: f64, half: f64) -> Statistics {
        let e =
            |value: f64, half: f64| Estimate { value, std_error: half / 2.0, ci95: Some([value - half, value + half]) };
        Statistics {
            tokens: 10_200,
            kld: e(kld, half),
            ppl_ratio: e(1.02, 0.004),
            same_top: e(0.93, 0.005),
            ..Statistics::default()
        }
    }

    #[test]
    fn the_point_estimate_decides_and_the_interval_is_said() {
        let gates = Gates { max_kld: Some(0.05), max_ppl_increase: Some(0.03), min_top1: Some(0.95), min_cosine: None };
        let outcomes = gates.judge("Q4_K_M", &stats(0.048, 0.004), 40).unwrap();
        assert_eq!(outcomes.iter().map(|o| o.pass).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(outcomes.iter().map(|o| o.certain).collect::<Vec<_>>(), [false, true, true]);
        assert!(
            outcomes[0].sentence().contains("0.0480 (95 % interval 0.0440 to 0.0520) is within the limit of 0.05;")
        );
        assert!((outcomes[1].value - 0.02).abs() < 1e-12);
        let error = verdict(&outcomes).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("same top choice 93.00 %"), "{error}");
        assert!(verdict(&outcomes[..2]).is_ok());
    }

    #[test]
    fn too_few_tokens_is_an_error_and_not_a_pass() {
        let kld = Gates { max_kld: Some(0.05), ..Gates::default() };
        assert!(kld.check_size(999, 4).unwrap_err().to_string().contains("too few tokens"));
        assert!(kld.check_size(5000, 3).is_err());
        assert!(kld.check_size(1000, 4).is_ok());
        assert!(Gates::default().check_size(1, 1).is_ok());
        let top1 = Gates { min_top1: Some(0.999), ..Gates::default() };
        assert!(top1.check_size(9_999, 40).is_err());
        assert!(top1.check_size(10_000, 40).is_ok());
        let tight = Gates { max_kld: Some(0.001), ..Gates::default() };
        assert!(tight.judge("a", &stats(0.0005, 0.002), 40).unwrap_err().to_string().contains("too wide to judge"));
        assert!(!tight.judge("a", &stats(0.5, 0.02), 40).unwrap()[0].pass, "a clear failure needs no precision");
    }

    #[test]
    fn cosines_are_judged_where_there_are_vectors() {
        let vectors = Ending::Vectors(Pooling::Mean);
        let (kld, cosine) =
            (Gates { max_kld: Some(0.1), ..Gates::default() }, Gates { min_cosine: Some(0.999), ..Gates::default() });
        assert!(kld.check_ending(Ending::Logits).is_ok() && cosine.check_ending(vectors).is_ok());
        assert_eq!(kld.check_ending(vectors).unwrap_err().exit_code(), 2);
        assert_eq!(cosine.check_ending(Ending::Logits).unwrap_err().exit_code(), 2);
        assert!(cosine.check_chunks(3).unwrap_err().to_string().contains("too little text"));
        let mean = |value| Cosines {
            mean: Estimate { value, std_error: 1e-5, ci95: Some([value - 2e-5, value + 2e-5]) },
            ..Cosines::default()
        };
        let judge = |value| cosine.judge_vectors("Q4_0", &mean(value), 8).unwrap().remove(0);
        assert!(judge(0.9997).pass && !judge(0.9979).pass);
        let sentence = judge(0.9979).sentence();
        assert_eq!(sentence, "Q4_0: mean cosine 0.9979 (95 % interval 0.9979 to 0.9979) is below the limit of 0.999");
        assert_eq!([1.0, 0.5, 0.999_961].map(shown_cosine), ["1.0000", "0.500", "0.999961"]);
    }

    #[test]
    fn shares_read_both_ways() {
        let any = |text: &str| parse_share(text, f64::MAX);
        assert_eq!(any("3%"), Ok(0.03));
        assert_eq!(any(" 0.03 "), Ok(0.03));
        assert!(any("-1%").is_err());
        assert_eq!((any("100%"), any("300%")), (Ok(1.0), Ok(3.0)));
        assert_eq!(parse_share("95", 1.0).unwrap_err(), "'95' is more than all; write 95% or 0.95");
        assert!(parse_share("101%", 1.0).unwrap_err().contains("more than all"));
        assert_eq!(parse_share("100%", 1.0), Ok(1.0));
        let bare = ["1", "3", "95"].map(|text| any(text).unwrap_err());
        assert_eq!(bare[1], "'3' reads as 3 % or as 300 %; write 3% or 300%");
        assert!(any("x").unwrap_err().contains("3% or 0.03"));
        let out = Gates { min_top1: Some(95.0), ..Gates::default() };
        assert_eq!(out.check_size(10_000, 40).unwrap_err().exit_code(), 2);
    }
}
