//! How each measured quantity reads: its digits, its unit, its error, its interval. Every rendering takes its cells from
//! here, so that a figure is the same text in all of them.

use super::format::{bytes, decimals_for, fixed, percent, signed, signed_percent, significant};
use crate::eval::Estimate;
use crate::eval::bootstrap::Difference;

/// A quantity as a table has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figure {
    /// What tables sort by.
    pub key: f64,
    pub text: String,
    /// `value ± one standard error` with its unit; the text alone where there is no error.
    pub with_error: String,
    /// The 95 % interval without its unit, or nothing.
    pub interval: String,
}

impl Figure {
    fn plain(key: f64, text: String) -> Self {
        Self { key, with_error: text.clone(), text, interval: String::new() }
    }

    /// `show` gives a value without its unit, `unit` stands behind the value and behind the error.
    fn of(e: Estimate, unit: &str, between: &str, show: impl Fn(f64) -> String, error: impl Fn(f64) -> String) -> Self {
        let text = format!("{}{unit}", show(e.value));
        let with_error = match e.std_error > 0.0 {
            true => format!("{} ± {}{unit}", show(e.value), error(e.std_error)),
            false => text.clone(),
        };
        let interval = e.ci95.map_or(String::new(), |[low, high]| format!("{}{between}{}", show(low), show(high)));
        Self { key: e.value, text, with_error, interval }
    }

    /// An estimate times `scale`, and its error, in so many decimals.
    fn scaled(e: Estimate, scale: f64, unit: &str, decimals: usize) -> Self {
        let show = |v: f64| fixed(scale * v, decimals);
        Self::of(e, unit, DASH, show, show)
    }
}

const PERCENT: &str = "\u{a0}%";

/// Between the ends of intervals that are never negative, and of those that may be.
const DASH: &str = "–";
const TO: &str = " to ";

pub fn size(n: u64) -> Figure {
    Figure::plain(n as f64, bytes(n))
}

/// Mean KL divergence, nats per token.
pub fn kl(e: Estimate) -> Figure {
    // A copy: there is nothing to round.
    if e.value == 0.0 && e.std_error == 0.0 {
        return Figure::plain(0.0, "0".into());
    }
    Figure::scaled(e, 1.0, "", decimals_for(e))
}

/// A percentile of the KL divergence.
pub fn kl_percentile(v: f64) -> Figure {
    Figure::plain(v, significant(v, 3))
}

pub fn perplexity(e: Estimate) -> Figure {
    Figure::scaled(e, 1.0, "", decimals_for(e).clamp(2, 3))
}

/// Perplexity over the base's, as the change in percent.
pub fn change(ratio: Estimate) -> Figure {
    let d = percent_decimals(ratio);
    Figure::of(ratio, PERCENT, TO, |v| signed(100.0 * (v - 1.0), d), |v| fixed(100.0 * v, d))
}

/// A share, in percent.
pub fn share(e: Estimate) -> Figure {
    Figure::scaled(e, 100.0, PERCENT, percent_decimals(e))
}

/// One or two decimals of a percentage, as its error asks.
fn percent_decimals(e: Estimate) -> usize {
    decimals_for(Estimate::new(0.0, 100.0 * e.std_error)).clamp(1, 2)
}

/// A difference of a pair with its 95 % interval.
fn difference(p: &Difference, unit: &str, decimals: usize, show: impl Fn(f64, usize) -> String) -> Figure {
    let e = Estimate { value: p.value, std_error: 0.0, ci95: Some(p.ci95) };
    Figure::of(e, unit, TO, |v| show(v, decimals), |_| String::new())
}

/// The difference of two KL divergences.
pub fn kl_difference(p: &Difference) -> Figure {
    // A 95 % interval is about four standard errors wide.
    let d = decimals_for(Estimate::new(0.0, (p.ci95[1] - p.ci95[0]) / 4.0));
    difference(p, "", d, signed)
}

/// The ratio of two perplexities, of the difference of their logarithms.
pub fn perplexity_ratio(p: &Difference) -> Figure {
    difference(p, "", 4, |v, d| fixed(v.exp(), d))
}

/// The difference of two shares of same first choices, in points.
pub fn share_difference(p: &Difference) -> Figure {
    difference(p, PERCENT, 2, |v, d| signed(100.0 * v, d))
}

pub fn p_value(p: f64) -> Figure {
    Figure::plain(p, if p < 0.001 { "< 0.001".into() } else { significant(p, 2) })
}

/// The error of a tensor, as a share of its norm.
pub fn error(v: f64) -> Figure {
    Figure::plain(v, percent(v, 2))
}

/// `value ± standard error` with as many digits as the error has; shares in percent.
pub fn with_error(e: Estimate, in_percent: bool) -> String {
    let (scale, unit) = if in_percent { (100.0, PERCENT) } else { (1.0, "") };
    Figure::scaled(e, scale, unit, decimals_for(Estimate::new(0.0, scale * e.std_error))).with_error
}

/// The change of a perplexity in a sentence.
pub fn change_in_words(ratio: f64) -> String {
    signed_percent(ratio - 1.0, 1)
}
