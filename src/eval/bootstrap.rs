//! Block bootstrap over chunks: 95 % confidence intervals that respect that neighbouring tokens are not independent, and
//! paired differences between candidates. Seeded, so a report can be made again to the last digit. It draws whole chunks
//! with replacement; every candidate sees the same draws, which is what makes the differences paired.

use serde::{Deserialize, Serialize};

use super::stats::{Estimate, Record, Statistics, percentile};

/// xoshiro256++ by Blackman and Vigna, seeded through splitmix64.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        let mut state = seed;
        Rng(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1).
    #[cfg(any(test, feature = "internals"))]
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below `n` (multiply and shift; the bias is below n / 2⁶⁴).
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next_u64() as u128 * n as u128) >> 64) as usize
    }
}

/// How to resample; recorded in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Draws of chunks, with replacement.
    pub resamples: usize,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        // So many that the p-values of 66 pairs (twelve candidates) can still be told from chance.
        Bootstrap { resamples: 10_000, seed: 0x5eed }
    }
}

/// Sums over the positions of one chunk, from which every resampled statistic follows.
#[derive(Clone, Copy, Default)]
struct Sums {
    n: f64,
    nll_base: f64,
    nll: f64,
    kld: f64,
    dp: f64,
    dp2: f64,
    top: f64,
}

impl Sums {
    fn of(records: &[Record]) -> Sums {
        records.iter().fold(Sums::default(), |s, r| Sums {
            n: s.n + 1.0,
            nll_base: s.nll_base + r.nll_base,
            nll: s.nll + r.nll,
            kld: s.kld + r.kld,
            dp: s.dp + r.dp,
            dp2: s.dp2 + r.dp * r.dp,
            top: s.top + r.same_top as u8 as f64,
        })
    }

    fn add(&mut self, o: &Sums) {
        self.n += o.n;
        self.nll_base += o.nll_base;
        self.nll += o.nll;
        self.kld += o.kld;
        self.dp += o.dp;
        self.dp2 += o.dp2;
        self.top += o.top;
    }

    /// The resampled values of one draw.
    fn draw(&self) -> Draw {
        let (q, base) = (self.nll / self.n, self.nll_base / self.n);
        Draw {
            ppl: q.exp(),
            ppl_base: base.exp(),
            ln_ratio: q - base,
            kld: self.kld / self.n,
            dp: self.dp / self.n,
            dp_rms: (self.dp2 / self.n).sqrt(),
            top: self.top / self.n,
        }
    }
}

#[derive(Clone, Copy)]
struct Draw {
    ppl: f64,
    ppl_base: f64,
    ln_ratio: f64,
    kld: f64,
    dp: f64,
    dp_rms: f64,
    top: f64,
}

/// How two candidates differ, on the same text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// First minus second.
    pub value: f64,
    /// The 95 % interval.
    pub ci95: [f64; 2],
    /// Two-sided bootstrap p-value of "no difference", never below 1 / (resamples + 1).
    pub p_value: f64,
    /// The same corrected for the number of pairs, after Holm (1979).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_corrected: Option<f64>,
}

impl Difference {
    fn of(value: f64, mut draws: Vec<f64>) -> Difference {
        let n = draws.len() as f64 + 1.0;
        let below = draws.iter().filter(|&&d| d <= 0.0).count() as f64 + 1.0;
        let above = draws.iter().filter(|&&d| d >= 0.0).count() as f64 + 1.0;
        Difference {
            value,
            ci95: interval(&mut draws),
            p_value: (2.0 * below.min(above) / n).min(1.0),
            p_corrected: None,
        }
    }

    /// Whether there is a difference at the 95 % level: by the corrected p-value where there is one, otherwise whether the
    /// interval leaves out zero.
    pub fn significant(&self) -> bool {
        self.p_corrected.map_or(self.ci95[0] > 0.0 || self.ci95[1] < 0.0, |p| p < 0.05)
    }
}

/// A paired comparison of candidates number `first` and `second`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Number of the candidate that is compared.
    pub first: usize,
    /// Number of the one it is compared with.
    pub second: usize,
    /// Mean KL divergence to the base.
    pub kld: Difference,
    /// Mean negative log-likelihood, that is ln(PPL_first / PPL_second).
    pub ln_ppl: Difference,
    /// Share of equal first choices.
    pub same_top: Difference,
}

impl Pair {
    /// The candidate with the lower KL divergence, if the difference is significant.
    pub fn better(&self) -> Option<usize> {
        self.kld.significant().then_some(if self.kld.value < 0.0 { self.first } else { self.second })
    }
}

/// Holm's correction of the p-values of all pairs' KL divergences: the smallest times their number, the next times one less,
/// and none smaller than the one before.
fn correct(pairs: &mut [Pair]) {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by(|a, b| pairs[*a].kld.p_value.total_cmp(&pairs[*b].kld.p_value));
    let (all, mut before) = (pairs.len(), 0.0f64);
    for (rank, i) in order.into_iter().enumerate() {
        before = before.max(pairs[i].kld.p_value * (all - rank) as f64).min(1.0);
        pairs[i].kld.p_corrected = Some(before);
    }
}

/// The mean of a figure that chunks have one or several of each, with its interval over chunks where there are two or more.
pub fn mean(chunks: &[Vec<f64>], config: Bootstrap) -> Estimate {
    let sums: Vec<(f64, f64)> = chunks.iter().map(|c| (c.iter().sum(), c.len() as f64)).collect();
    let of = |picked: &mut dyn Iterator<Item = (f64, f64)>| {
        let (sum, n) = picked.fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
        sum / n.max(1.0)
    };
    let value = of(&mut sums.iter().copied());
    if sums.len() < 2 || config.resamples == 0 {
        return Estimate::new(value, 0.0);
    }
    let mut rng = Rng::new(config.seed);
    let mut draw = || of(&mut (0..sums.len()).map(|_| sums[rng.below(sums.len())]));
    let mut draws: Vec<f64> = (0..config.resamples).map(|_| draw()).collect();
    Estimate { value, std_error: deviation(&draws), ci95: Some(interval(&mut draws)) }
}

/// The standard deviation of the resampled values: the standard error over chunks.
fn deviation(draws: &[f64]) -> f64 {
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    (draws.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt()
}

fn interval(draws: &mut [f64]) -> [f64; 2] {
    draws.sort_unstable_by(f64::total_cmp);
    [percentile(draws, 0.025), percentile(draws, 0.975)]
}

/// Statistics with standard errors and confidence intervals over chunks for every candidate, and all pairs of candidates. `records[c]` holds `chunks`
/// equal runs of positions, chunk by chunk. With fewer than two chunks there is nothing to resample: no intervals, no
/// pairs.
pub fn summarize(records: &[Vec<Record>], chunks: usize, config: Bootstrap) -> (Vec<Statistics>, Vec<Pair>) {
    let mut stats: Vec<Statistics> = records.iter().map(|r| Statistics::of(r)).collect();
    if chunks < 2 || records.iter().any(|r| r.is_empty()) || config.resamples == 0 {
        return (stats, Vec::new());
    }
    let sums: Vec<Vec<Sums>> =
        records.iter().map(|r| r.chunks(r.len().div_ceil(chunks)).map(Sums::of).collect()).collect();
    let mut draws: Vec<Vec<Draw>> = vec![Vec::with_capacity(config.resamples); records.len()];
    let mut rng = Rng::new(config.seed);
    let mut picks = vec![0; chunks];
    for _ in 0..config.resamples {
        picks.fill_with(|| rng.below(chunks));
        for (sums, draws) in sums.iter().zip(&mut draws) {
            let mut total = Sums::default();
            picks.iter().filter_map(|&p| sums.get(p)).for_each(|s| total.add(s));
            draws.push(total.draw());
        }
    }

    for (s, draws) in stats.iter_mut().zip(&draws) {
        let over_chunks = |e: &mut Estimate, f: fn(&Draw) -> f64| {
            let mut values: Vec<f64> = draws.iter().map(f).collect();
            (e.std_error, e.ci95) = (deviation(&values), Some(interval(&mut values)));
        };
        over_chunks(&mut s.ppl, |d| d.ppl);
        over_chunks(&mut s.ppl_base, |d| d.ppl_base);
        over_chunks(&mut s.ln_ppl_ratio, |d| d.ln_ratio);
        over_chunks(&mut s.ppl_ratio, |d| d.ln_ratio.exp());
        over_chunks(&mut s.ppl_difference, |d| d.ppl - d.ppl_base);
        over_chunks(&mut s.kld, |d| d.kld);
        over_chunks(&mut s.dp, |d| d.dp);
        over_chunks(&mut s.dp_rms, |d| d.dp_rms);
        over_chunks(&mut s.same_top, |d| d.top);
    }
    let mut pairs = Vec::new();
    for first in 0..stats.len() {
        for second in first + 1..stats.len() {
            let (a, b) = (&stats[first], &stats[second]);
            let difference = |value: f64, f: fn(&Draw) -> f64| {
                Difference::of(value, draws[first].iter().zip(&draws[second]).map(|(a, b)| f(a) - f(b)).collect())
            };
            pairs.push(Pair {
                first,
                second,
                kld: difference(a.kld.value - b.kld.value, |d| d.kld),
                ln_ppl: difference(a.ln_ppl_ratio.value - b.ln_ppl_ratio.value, |d| d.ln_ratio),
                same_top: difference(a.same_top.value - b.same_top.value, |d| d.top),
            });
        }
    }
    correct(&mut pairs);
    (stats, pairs)
}

/// Perplexity of a single model with its 95 % interval. `nll` holds `chunks` equal runs.
pub fn perplexity(nll: &[f64], chunks: usize, config: Bootstrap) -> super::Estimate {
    let records = nll.iter().map(|&v| Record { nll: v, ..Record::default() }).collect();
    let (stats, _) = summarize(&[records], chunks, config);
    stats.first().map(|s| s.ppl).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First outputs of splitmix64(1234567), from Vigna's reference code as widely published.
    #[test]
    fn the_seeding_is_splitmix64() {
        let rng = Rng::new(1_234_567);
        assert_eq!(rng.0[..3], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut rng = Rng::new(1);
        let mut seen = [0usize; 7];
        (0..70_000).for_each(|_| seen[rng.below(7)] += 1);
        assert!(seen.iter().all(|&n| (9_600..10_400).contains(&n)), "{seen:?}");
    }

    /// Chunks with a common shift: the noise of a chunk is shared by all its tokens.
    fn sample(seed: u64, chunks: usize, mean: f64) -> Vec<Record> {
        let mut rng = Rng::new(seed);
        (0..chunks)
            .flat_map(|_| {
                let shift = rng.unit() - 0.5;
                (0..50).map(move |_| Record::new(2.0, 2.0 + shift, mean + 0.1 * shift, true)).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_promised() {
        let covered = (0..200)
            .filter(|&seed| {
                let config = Bootstrap { resamples: 300, seed };
                let (stats, _) = summarize(&[sample(seed, 40, 0.2)], 40, config);
                let [low, high] = stats[0].kld.ci95.unwrap();
                low <= 0.2 && 0.2 <= high
            })
            .count();
        assert!((176..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn pairing_sees_a_difference_far_below_the_error_of_either() {
        let a = sample(3, 30, 0.20);
        let b: Vec<Record> = a.iter().map(|r| Record { kld: r.kld + 0.001, ..*r }).collect();
        let (stats, pairs) = summarize(&[a, b], 30, Bootstrap::default());
        let [low, high] = stats[0].kld.ci95.unwrap();
        assert!(high - low > 0.005);
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs[0].better(), Some(0));
        assert!(pairs[0].kld.p_value < 0.002);
        assert!(!pairs[0].ln_ppl.significant());
        assert_eq!(pairs[0].ln_ppl.p_value, 1.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_and_another_seed_another() {
        let run = |seed| summarize(&[sample(1, 10, 0.1)], 10, Bootstrap { resamples: 100, seed }).0[0].kld.ci95;
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn standard_errors_are_those_of_chunks() {
        let (stats, _) = summarize(&[sample(5, 200, 0.2)], 200, Bootstrap::default());
        // The shift of a chunk is uniform over 1 and enters the divergence as a tenth: sigma / sqrt(chunks).
        let wanted = 0.1 / 12f64.sqrt() / 200f64.sqrt();
        assert!((stats[0].kld.std_error / wanted - 1.0).abs() < 0.15, "{} for {wanted}", stats[0].kld.std_error);
        let [low, high] = stats[0].kld.ci95.unwrap();
        assert!(((high - low) / 3.92 / stats[0].kld.std_error - 1.0).abs() < 0.1);
    }

    #[test]
    fn many_pairs_are_corrected_after_holm() {
        let difference = |p_value| Difference { value: 1.0, ci95: [0.5, 1.5], p_value, p_corrected: None };
        let pair = |p| Pair { first: 0, second: 1, kld: difference(p), ln_ppl: difference(p), same_top: difference(p) };
        let mut pairs = [0.04, 0.01, 0.03].map(pair);
        correct(&mut pairs);
        let corrected: Vec<f64> = pairs.iter().filter_map(|p| p.kld.p_corrected).collect();
        assert_eq!(corrected, [0.06, 0.03, 0.06]);
        assert_eq!(pairs.map(|p| p.better()), [None, Some(1), None]);
    }

    #[test]
    fn one_chunk_has_no_interval() {
        let (stats, pairs) = summarize(&[sample(1, 1, 0.1), sample(2, 1, 0.1)], 1, Bootstrap::default());
        assert_eq!(stats[0].kld.ci95, None);
        assert!(pairs.is_empty());
    }
}
