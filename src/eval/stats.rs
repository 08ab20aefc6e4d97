//! The statistics of a comparison, as llama-perplexity's `--kl-divergence` defines them, over one record per scored
//! position. Errors here are standard errors that take positions as independent; `bootstrap` adds intervals that do not.

use serde::{Deserialize, Serialize};

/// What one scored position says about one candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Record {
    /// −ln p(actual token), base and candidate, in nats.
    pub nll_base: f64,
    /// Negative log-likelihood of the token that follows, nats.
    pub nll: f64,
    /// KL(base ‖ candidate) in nats.
    pub kld: f64,
    /// p_candidate(actual token) − p_base(actual token).
    pub dp: f64,
    /// Whether both put the same token first.
    pub same_top: bool,
}

impl Record {
    /// `dp` follows from the two negative log-likelihoods.
    pub fn new(nll_base: f64, nll: f64, kld: f64, same_top: bool) -> Record {
        Record { nll_base, nll, kld, dp: (-nll).exp() - (-nll_base).exp(), same_top }
    }
}

/// A figure with its uncertainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Standard error over chunks, by the same bootstrap; with fewer than two chunks that of positions taken as independent.
    pub std_error: f64,
    /// 95 % confidence interval by block bootstrap over chunks; absent with fewer than two chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
}

impl Estimate {
    /// An estimate with its standard error.
    pub fn new(value: f64, std_error: f64) -> Estimate {
        Estimate { value, std_error, ci95: None }
    }
}

/// Order statistics of a sample, linearly interpolated.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub min: f64,
    #[serde(rename = "p0.1")]
    pub p0_1: f64,
    pub p1: f64,
    pub p5: f64,
    pub p10: f64,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    pub max: f64,
}

impl Percentiles {
    /// Of `values` in any order; all zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Percentiles {
        values.sort_unstable_by(f64::total_cmp);
        let at = |fraction| percentile(&values, fraction);
        Percentiles {
            min: at(0.0),
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

/// The `fraction` quantile of ascending `sorted` values at rank fraction·(n − 1), linearly interpolated; 0 if empty.
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let rank = fraction.clamp(0.0, 1.0) * last as f64;
    let low = (rank as usize).min(last);
    let high = (low + 1).min(last);
    let weight = rank - low as f64;
    (1.0 - weight) * sorted[low] + weight * sorted[high]
}

/// Everything said about one candidate against the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Scored positions.
    pub tokens: usize,
    /// Perplexity of the candidate.
    pub ppl: Estimate,
    /// Perplexity of the base.
    pub ppl_base: Estimate,
    /// ln(PPL / PPL_base); its error takes the covariance of the two into account.
    pub ln_ppl_ratio: Estimate,
    /// The candidate's perplexity over the base's.
    pub ppl_ratio: Estimate,
    /// The candidate's perplexity less the base's.
    pub ppl_difference: Estimate,
    /// Correlation of the two negative log-likelihoods, −1 to 1.
    pub correlation: f64,
    /// Mean KL divergence in nats.
    pub kld: Estimate,
    /// How the divergences are distributed.
    pub kld_percentiles: Percentiles,
    /// Mean Δp of the actual token, as a fraction (0.01 is one percentage point).
    pub dp: Estimate,
    /// Root mean square of the differences in probability.
    pub dp_rms: Estimate,
    /// How these differences are distributed.
    pub dp_percentiles: Percentiles,
    /// Share of positions where base and candidate put the same token first, 0 to 1.
    pub same_top: Estimate,
}

/// Mean and standard error of the mean (0 for up to ten values, as llama-perplexity has it).
fn mean_and_error(n: usize, value: impl Fn(usize) -> f64) -> Estimate {
    if n == 0 {
        return Estimate::default();
    }
    let mean = (0..n).map(&value).sum::<f64>() / n as f64;
    let variance = (0..n).map(|i| (value(i) - mean).powi(2)).sum::<f64>() / n as f64;
    Estimate::new(mean, if n > 10 { (variance / (n - 1) as f64).sqrt() } else { 0.0 })
}

impl Statistics {
    /// From the records of all scored positions, in any order of chunks. Without confidence intervals.
    pub fn of(records: &[Record]) -> Statistics {
        let n = records.len();
        let mean = |f: fn(&Record) -> f64| mean_and_error(n, |i| f(&records[i]));
        let (q, base) = (mean(|r| r.nll), mean(|r| r.nll_base));
        let covariance = if n >= 10 {
            records.iter().map(|r| (r.nll - q.value) * (r.nll_base - base.value)).sum::<f64>()
                / n as f64
                / (n - 1) as f64
        } else {
            0.0
        };
        // Rounding may push the variance of a difference of equal things below zero.
        let difference_error = |a: f64, b: f64, cov: f64| (a * a + b * b - 2.0 * cov).max(0.0).sqrt();

        let (ppl, ppl_base) = (q.value.exp(), base.value.exp());
        let (ppl_error, ppl_base_error) = (ppl * q.std_error, ppl_base * base.std_error);
        let ln_ratio = q.value - base.value;
        let ln_ratio_error = difference_error(q.std_error, base.std_error, covariance);
        let spread = q.std_error * base.std_error;
        let square = mean(|r| r.dp * r.dp);
        let rms = square.value.sqrt();
        let top = records.iter().filter(|r| r.same_top).count() as f64 / n.max(1) as f64;
        Statistics {
            tokens: n,
            ppl: Estimate::new(ppl, ppl_error),
            ppl_base: Estimate::new(ppl_base, ppl_base_error),
            ln_ppl_ratio: Estimate::new(ln_ratio, ln_ratio_error),
            ppl_ratio: Estimate::new(ln_ratio.exp(), ln_ratio.exp() * ln_ratio_error),
            ppl_difference: Estimate::new(
                ppl - ppl_base,
                difference_error(ppl_error, ppl_base_error, ppl * ppl_base * covariance),
            ),
            correlation: if spread > 0.0 { covariance / spread } else { 0.0 },
            kld: mean(|r| r.kld),
            kld_percentiles: Percentiles::of(records.iter().map(|r| r.kld).collect()),
            dp: mean(|r| r.dp),
            dp_rms: Estimate::new(rms, if rms > 0.0 { 0.5 / rms * square.std_error } else { 0.0 }),
            dp_percentiles: Percentiles::of(records.iter().map(|r| r.dp).collect()),
            same_top: Estimate::new(top, (top * (1.0 - top) / n.saturating_sub(1).max(1) as f64).sqrt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} is not {b}");
    }

    /// llama-perplexity's own running sums, transcribed as the reference.
    #[test]
    fn equals_the_running_sums_of_llama_perplexity() {
        let records: Vec<Record> = (0..500)
            .map(|i| {
                let base = 2.0 + (i as f64 * 0.7).sin();
                Record::new(
                    base,
                    base + 0.05 * (i as f64 * 1.3).cos() + 0.01,
                    0.01 + 0.009 * (i as f64).sin(),
                    i % 20 != 0,
                )
            })
            .collect();
        let s = Statistics::of(&records);
        let n = 500.0;
        let sum = |f: &dyn Fn(&Record) -> f64| records.iter().map(f).sum::<f64>();
        let unc = |f: &dyn Fn(&Record) -> f64| {
            let (a, b) = (sum(f) / n, sum(&|r| f(r).powi(2)) / n);
            ((b - a * a) / (n - 1.0)).sqrt()
        };
        let cov = (sum(&|r| r.nll * r.nll_base) / n - sum(&|r| r.nll) / n * sum(&|r| r.nll_base) / n) / (n - 1.0);
        let (uq, ub) = (unc(&|r| r.nll), unc(&|r| r.nll_base));
        let ppl = (sum(&|r| r.nll) / n).exp();
        close(s.ppl.value, ppl);
        assert!((s.ppl.std_error / (ppl * uq) - 1.0).abs() < 1e-9);
        assert!((s.ln_ppl_ratio.std_error / (uq * uq + ub * ub - 2.0 * cov).sqrt() - 1.0).abs() < 1e-6);
        assert!((s.correlation - cov / (uq * ub)).abs() < 1e-9);
        close(s.kld.value, sum(&|r| r.kld) / n);
        let rms = (sum(&|r| r.dp * r.dp) / n).sqrt();
        close(s.dp_rms.value, rms);
        assert!((s.dp_rms.std_error / (0.5 / rms * unc(&|r| r.dp * r.dp)) - 1.0).abs() < 1e-9);
        close(s.same_top.value, 0.95);
        close(s.same_top.std_error, (0.95f64 * 0.05 / 499.0).sqrt());
        close(s.ppl_ratio.value * s.ppl_base.value, s.ppl.value);
    }

    #[test]
    fn percentiles_interpolate() {
        let p = Percentiles::of((0..=1000).rev().map(f64::from).collect());
        assert_eq!((p.min, p.p0_1, p.p1, p.median, p.p99_9, p.max), (0.0, 1.0, 10.0, 500.0, 999.0, 1000.0));
        close(percentile(&[1.0, 2.0], 0.25), 1.25);
        close(percentile(&[3.0], 0.9), 3.0);
        close(percentile(&[], 0.9), 0.0);
    }

    #[test]
    fn equal_models_have_no_loss_and_no_nan() {
        let records: Vec<Record> = (0..100).map(|i| Record::new(i as f64 * 0.01, i as f64 * 0.01, 0.0, true)).collect();
        let s = Statistics::of(&records);
        assert_eq!((s.ln_ppl_ratio.value, s.ln_ppl_ratio.std_error), (0.0, 0.0));
        assert_eq!((s.same_top.value, s.dp_rms.std_error, s.kld.value), (1.0, 0.0, 0.0));
        close(s.correlation, 1.0);
        let none = serde_json::to_string(&Statistics::of(&[])).unwrap();
        assert!(!none.contains("null"), "{none}");
    }
}
