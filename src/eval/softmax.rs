//! The hot arithmetic of the evaluation: log-softmax of a row of logits and the KL divergence between two rows, over
//! vocabularies of 49 thousand to 256 thousand entries. Plain Rust in fixed lanes, which the compiler turns into SSE2,
//! AVX2 or AVX-512 code with the same additions in the same order, so every CPU gives the same figures.

use crate::isa::multiversion;
use crate::simd::F32x16;
use rayon::prelude::*;

/// Lanes of the partial sums. Fixed, so that the order of additions does not depend on the CPU.
const LANES: usize = F32x16::LANES;
/// Elements whose f32 partial sums are folded into f64 at once: few enough that the f32 sums stay exact to an ulp or two.
const BLOCK: usize = 256;

/// A row of logits, boiled down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// ln Σ exp(logit).
    pub lse: f64,
    /// Index of the largest logit, the first of equals.
    pub top: usize,
}

/// Index of a logit that is NaN or infinite, and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    pub index: usize,
    pub value: f32,
}

/// e^x for x ≤ 0 to a relative error below 2e-7; 0 below -87. Polynomial and split of ln 2 from Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer in the low mantissa bits
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x > -87.0 { y * scale } else { 0.0 }
}

/// Largest value, and whether all values are finite.
#[inline(always)]
fn max_and_finite(x: &[f32]) -> (f32, bool) {
    let mut max = F32x16::splat(f32::NEG_INFINITY);
    // Magnitudes compare as integers; infinity is the first that is not finite, NaN lies above.
    let mut magnitude = [0u32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        max = F32x16(*c).max(max);
        for l in 0..LANES {
            magnitude[l] = magnitude[l].max(c[l].to_bits() & 0x7fff_ffff);
        }
    }
    for (l, &v) in rest.iter().enumerate() {
        max.0[l] = if v > max.0[l] { v } else { max.0[l] };
        magnitude[l] = magnitude[l].max(v.to_bits() & 0x7fff_ffff);
    }
    let finite = magnitude.iter().all(|&m| m < f32::INFINITY.to_bits());
    (max.0.into_iter().fold(f32::NEG_INFINITY, f32::max), finite)
}

/// First index of `max`, by whole blocks, so that the search runs in vectors.
#[inline(always)]
fn first_equal(x: &[f32], max: f32) -> usize {
    let hit = |block: &[f32]| block.iter().fold(false, |hit, &v| hit | (v == max));
    let block = x.chunks(BLOCK).position(hit).unwrap_or(0);
    let start = block * BLOCK;
    start + x[start..].iter().position(|&v| v == max).unwrap_or(0)
}

/// Σ f(a_i, b_i) with f32 lanes inside blocks and f64 across them.
#[inline(always)]
fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0f64;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = F32x16::ZERO;
        let (ac, ar) = a.as_chunks::<LANES>();
        let (bc, br) = b.as_chunks::<LANES>();
        for (a, b) in ac.iter().zip(bc) {
            lanes += F32x16(*a).zip(F32x16(*b), &f);
        }
        for (l, (&a, &b)) in ar.iter().zip(br).enumerate() {
            lanes.0[l] += f(a, b);
        }
        total += lanes.0.iter().map(|&v| v as f64).sum::<f64>();
    }
    total
}

#[inline(always)]
fn row_body(x: &[f32]) -> (f32, bool, f64) {
    let (max, finite) = max_and_finite(x);
    (max, finite, sum2(x, x, |v, _| exp(v - max)))
}

#[inline(always)]
fn kl_body(base: &[f32], q: &[f32], lse_base: f32, offset: f32, floor: f32) -> f64 {
    sum2(base, q, |b, q| {
        let log_p = b - lse_base;
        let term = exp(log_p.min(0.0)) * ((b - q) - offset);
        if log_p > floor { term } else { 0.0 }
    })
}

multiversion! {
    fn row_kernel(x: &[f32]) -> (f32, bool, f64) {
        row_body(x)
    }

    fn gradient_kernel(base: &mut [f32], q: &[f32], lse_base: f32, lse_q: f32, factor: f32) {
        for (b, q) in base.iter_mut().zip(q) {
            *b = factor * (exp((q - lse_q).min(0.0)) - exp((*b - lse_base).min(0.0)));
        }
    }

    fn kl_kernel(base: &[f32], q: &[f32], lse_base: f32, offset: f32, floor: f32) -> f64 {
        kl_body(base, q, lse_base, offset, floor)
    }
}

/// Log-sum-exp and argmax of `logits` `[vocab]`. A NaN or an infinity anywhere is an error, for it would spoil every mean.
pub fn row(logits: &[f32]) -> Result<Row, NotFinite> {
    let (max, finite, sum) = row_kernel(logits);
    if !finite || logits.is_empty() {
        let index = logits.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err(NotFinite { index, value: logits.get(index).copied().unwrap_or(f32::NAN) });
    }
    let top = first_equal(logits, max);
    Ok(Row { lse: max as f64 + sum.ln(), top })
}

/// KL(base ‖ q) = Σ p_base (ln p_base − ln p_q) in nats, over the entries with ln p_base > `floor`
/// (`f32::NEG_INFINITY`: all of them). Rows as [`row`] saw them; both of the same length.
pub fn kl(base: &[f32], base_row: &Row, q: &[f32], q_row: &Row, floor: f32) -> f64 {
    debug_assert_eq!(base.len(), q.len());
    // Centred on the difference of the normalisers, so that nearly equal rows do not cancel; what rounding that
    // difference to f32 costs is the same for every entry, so it is put back once (the probabilities sum to 1).
    let offset = base_row.lse - q_row.lse;
    let centre = offset as f32;
    kl_kernel(base, q, base_row.lse as f32, centre, floor) + (centre as f64 - offset)
}

/// The KL divergence of every row of `logits` (`[n, vocab]`) from that of `base`: infinite where the former are not all
/// numbers, and none itself where the latter are not.
pub fn kl_of_rows(base: &[f32], logits: &[f32], vocab: usize) -> Vec<f64> {
    let pairs = base.par_chunks(vocab).zip(logits.par_chunks(vocab));
    let kl = pairs.map(|(p, q)| match (row(p), row(q)) {
        (Err(_), _) => f64::NAN,
        (_, Err(_)) => f64::INFINITY,
        (Ok(p_row), Ok(q_row)) => kl(p, &p_row, q, &q_row, f32::NEG_INFINITY),
    });
    kl.collect()
}

/// The KL divergence of every row of `logits` from that of `base` (both `[n, vocab]`), and in the place of `base` `factor`
/// times its gradient at `logits`: the difference of the probabilities. NaN where either are not all numbers.
pub fn kl_gradients(base: &mut [f32], logits: &[f32], vocab: usize, factor: f32) -> Vec<f64> {
    let pairs = base.par_chunks_mut(vocab).zip(logits.par_chunks(vocab));
    let kl = pairs.map(|(p, q)| match (row(p), row(q)) {
        (Ok(p_row), Ok(q_row)) => {
            let loss = kl(p, &p_row, q, &q_row, f32::NEG_INFINITY);
            gradient_kernel(p, q, p_row.lse as f32, q_row.lse as f32, factor);
            loss
        }
        _ => f64::NAN,
    });
    kl.collect()
}

/// The place of the largest number of a row, the last of equals.
pub fn largest(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i)
}

/// Adds the probabilities of a row of logits to `sum`; returns their entropy in nats.
pub fn add_probabilities(logits: &[f32], sum: &mut [f64]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let mut entropy = 0.0;
    for (x, sum) in logits.iter().zip(sum) {
        let log = f64::from(x - largest) - total.ln();
        *sum += log.exp();
        entropy -= if log.is_finite() { log.exp() * log } else { 0.0 };
    }
    entropy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::bootstrap::Rng;

    fn logits(n: usize, seed: u64, spread: f32) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..n).map(|_| (0..4).map(|_| rng.unit() as f32 - 0.5).sum::<f32>() * spread).collect()
    }

    fn reference(x: &[f32]) -> f64 {
        let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v as f64));
        max + x.iter().map(|&v| (v as f64 - max).exp()).sum::<f64>().ln()
    }

    #[test]
    fn exp_is_accurate_and_zero_far_down() {
        let worst = (0..870_000)
            .map(|i| -(i as f32) * 1e-4)
            .map(|x| ((exp(x) as f64) / (x as f64).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn log_sum_exp_matches_f64_at_every_length() {
        for n in [1, 2, 15, 16, 17, 255, 256, 257, 4099, 49_152] {
            let x = logits(n, n as u64, 20.0);
            assert!((row(&x).unwrap().lse - reference(&x)).abs() < 2e-7, "n = {n}");
        }
    }

    #[test]
    fn kl_matches_f64_and_keeps_small_values() {
        let base = logits(49_152, 1, 20.0);
        for noise in [3.0, 0.1, 1e-2, 1e-3] {
            let q: Vec<f32> = base.iter().zip(logits(49_152, 2, noise)).map(|(b, e)| b + e + 5.0).collect();
            let (lb, lq) = (reference(&base), reference(&q));
            let exact: f64 =
                base.iter().zip(&q).map(|(&b, &q)| (b as f64 - lb).exp() * ((b as f64 - lb) - (q as f64 - lq))).sum();
            let ours = kl(&base, &row(&base).unwrap(), &q, &row(&q).unwrap(), f32::NEG_INFINITY);
            assert!((ours - exact).abs() < 1e-3 * exact + 2e-8, "noise {noise}: {ours:e} against {exact:e}");
        }
        let r = row(&base).unwrap();
        assert_eq!(kl(&base, &r, &base, &r, f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn the_gradient_is_that_of_small_steps() {
        let (base, q) = (logits(300, 1, 6.0), logits(300, 2, 6.0));
        let mut gradient = base.clone();
        let loss = kl_gradients(&mut gradient, &q, 300, 2.0)[0];
        assert_eq!(loss, kl_of_rows(&base, &q, 300)[0]);
        let exact = |q: &[f64]| {
            let lse = |x: &[f64]| x.iter().map(|v| v.exp()).sum::<f64>().ln();
            let base: Vec<f64> = base.iter().map(|v| f64::from(*v)).collect();
            let (lp, lq) = (lse(&base), lse(q));
            base.iter().zip(q).map(|(b, q)| (b - lp).exp() * ((b - lp) - (q - lq))).sum::<f64>()
        };
        let q: Vec<f64> = q.iter().map(|v| f64::from(*v)).collect();
        for i in [0, 7, 123, 299] {
            let at = |h: f64| {
                let mut moved = q.clone();
                moved[i] += h;
                exact(&moved)
            };
            let difference = 2.0 * (at(1e-4) - at(-1e-4)) / 2e-4;
            assert!((f64::from(gradient[i]) - difference).abs() < 1e-6, "{i}: {} {difference}", gradient[i]);
        }
        assert!(kl_gradients(&mut [f32::NAN, 0.0], &[0.0, 0.0], 2, 1.0)[0].is_nan());
    }

    #[test]
    fn the_floor_leaves_out_the_tail() {
        let base = [0.0, -20.0];
        let q = [0.0, -10.0];
        let (rb, rq) = (row(&base).unwrap(), row(&q).unwrap());
        let all = kl(&base, &rb, &q, &rq, f32::NEG_INFINITY);
        let cut = kl(&base, &rb, &q, &rq, -16.0);
        let tail = (-20f64).exp() * -10.0;
        assert!((all - cut - tail).abs() < 1e-10, "{all:e} {cut:e}");
    }

    #[test]
    fn the_vector_code_equals_the_plain_code() {
        let (a, b) = (logits(5000, 3, 9.0), logits(5000, 4, 9.0));
        assert_eq!(row_body(&a), row_kernel(&a));
        assert_eq!(kl_body(&a, &b, 8.0, 0.1, -16.0).to_bits(), kl_kernel(&a, &b, 8.0, 0.1, -16.0).to_bits());
    }

    #[test]
    fn the_first_of_equal_maxima_is_the_top() {
        assert_eq!(row(&[1.0, 3.0, 3.0]).unwrap().top, 1);
    }

    #[test]
    fn nan_and_infinity_are_found_wherever_they_stand() {
        for n in [1, 16, 300] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, n / 2, n - 1] {
                    let mut x = logits(n, 5, 1.0);
                    x[at] = bad;
                    assert_eq!(row(&x).unwrap_err().index, at);
                }
            }
        }
        assert!(row(&[]).is_err());
    }
}
