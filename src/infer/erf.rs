//! The error function, which encoders compute for every channel of their feed-forward blocks: a slow definition, and a table that
//! gives the same 24 bits.

use std::f64::consts::{FRAC_2_SQRT_PI, PI};
use std::sync::LazyLock;

/// From here on it is 1 in 24 bits.
const END: f64 = 4.0;
/// Points of the table for each unit.
const POINTS: usize = 16;
/// Coefficients at each: the first that is left out adds less than 1e-16.
const TERMS: usize = 10;
/// More than table and definition are apart.
const APART: f64 = 1e-12;

static TABLE: LazyLock<Vec<[f64; TERMS]>> =
    LazyLock::new(|| (0..=END as usize * POINTS).map(|i| around(i as f64 / POINTS as f64)).collect());

/// Taylor's coefficients around `z`. Each derivative follows from the two before it, as Hermite's polynomials do.
fn around(z: f64) -> [f64; TERMS] {
    let mut coefficients = [0.0; TERMS];
    coefficients[0] = defined(z);
    let (mut before, mut last, mut factorial) = (0.0, FRAC_2_SQRT_PI * (-z * z).exp(), 1.0);
    for (k, coefficient) in coefficients.iter_mut().enumerate().skip(1) {
        factorial *= k as f64;
        *coefficient = last / factorial;
        (before, last) = (last, -2.0 * z * last - 2.0 * (k - 1) as f64 * before);
    }
    coefficients
}

/// To the nearest `f32`.
pub(super) fn erf(x: f32) -> f32 {
    let z = f64::from(x).abs();
    if z >= END {
        return 1f32.copysign(x);
    }
    let point = (z * POINTS as f64 + 0.5) as usize;
    let h = z - point as f64 / POINTS as f64;
    let value = TABLE[point].iter().rev().fold(0.0, |sum, coefficient| sum * h + coefficient);
    let (low, high) = ((value * (1.0 - APART)) as f32, (value * (1.0 + APART)) as f32);
    // Between two floats the definition decides.
    let value = if low == high { low } else { defined(z) as f32 };
    value.copysign(x)
}

/// Of a number that is not negative (Abramowitz and Stegun 7.1.5, and the continued fraction 7.1.14).
fn defined(z: f64) -> f64 {
    if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for k in 1..40 {
            term *= -z * z / k as f64;
            sum += term / (2 * k + 1) as f64;
        }
        return sum * FRAC_2_SQRT_PI;
    }
    let fraction = (1..=24).rev().fold(0.0, |f, k| k as f64 / 2.0 / (z + f));
    1.0 - (-z * z).exp() / ((z + fraction) * PI.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_gives_the_bits_of_the_definition() {
        let mut bits = 0u32;
        // All magnitudes up to 5.
        while f32::from_bits(bits) < 5.0 {
            let x = f32::from_bits(bits);
            let wanted = defined(f64::from(x)) as f32;
            assert_eq!(erf(x).to_bits(), wanted.to_bits(), "{x}");
            assert_eq!(erf(-x).to_bits(), (-wanted).to_bits(), "{x}");
            bits += 6151;
        }
        assert!(erf(f32::NAN).is_nan() && erf(f32::INFINITY) == 1.0 && erf(-9.0) == -1.0);
    }
}
