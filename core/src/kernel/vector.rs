//! Element-wise functions and reductions over `f32` slices. Plain loops over fixed lanes, compiled once per instruction
//! set and chosen at run time. Reductions run in the lanes of [`F32x16`], which are then added in order, so no result depends
//! on the machine.

use crate::isa::{Isa, multiversion};
use crate::simd::{self, F32x16, Float, Int, Kernel};

const LANES: usize = F32x16::LANES;

/// `e^x` to about two units in the last place: `2^k · p(r)` with `|r| <= ln 2 / 2` (Cephes' `expf`). Arguments below -87
/// give about 1e-38, above 88 about 1e38.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer, which is left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * LN2_HIGH - k * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * scale
}

multiversion! {
    /// `Σ a·b`.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        // Four sets of lanes hide the latency of an addition.
        let mut sums = [F32x16::ZERO; 4];
        let n = a.len().min(b.len());
        let (chunks_a, rest_a) = a[..n].as_chunks::<{ 4 * LANES }>();
        let (chunks_b, rest_b) = b[..n].as_chunks::<{ 4 * LANES }>();
        let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
        for (a, b) in chunks_a.iter().zip(chunks_b) {
            for ((sum, a), b) in sums.iter_mut().zip(F32x16::chunks(a).0).zip(F32x16::chunks(b).0) {
                *sum += a * b;
            }
        }
        let [first, second, third, fourth] = sums;
        (first + (second + third + fourth)).0.iter().sum::<f32>() + rest
    }

    /// `y += scale · x`.
    pub fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += scale * x;
        }
    }

    /// `x /= sqrt(mean(x²) + eps)`, times `weight` (RMSNorm, Zhang and Sennrich 2019).
    pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
        let mut sums = F32x16::ZERO;
        let (chunks, rest) = F32x16::chunks(x);
        let rest: f32 = rest.iter().map(|v| v * v).sum();
        for chunk in chunks {
            sums += chunk * chunk;
        }
        let scale = 1.0 / ((sums.0.iter().sum::<f32>() + rest) / x.len() as f32 + eps).sqrt();
        for (x, w) in x.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }

    /// The largest element (negative infinity for none). NaNs are passed over.
    pub fn max(x: &[f32]) -> f32 {
        let mut lanes = F32x16::splat(f32::NEG_INFINITY);
        let (chunks, rest) = F32x16::chunks(x);
        let rest = rest.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
        for chunk in chunks {
            lanes = chunk.max(lanes);
        }
        lanes.0.iter().fold(rest, |m, v| if *v > m { *v } else { m })
    }

    /// Replaces each element by `e^(x - shift)` and returns their sum.
    pub fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut sums = F32x16::ZERO;
        let (chunks, others) = x.as_chunks_mut();
        for chunk in chunks {
            let powers = F32x16(*chunk).map(|v| exp(v - shift));
            *chunk = powers.0;
            sums += powers;
        }
        let mut rest = 0f32;
        for v in others {
            *v = exp(*v - shift);
            rest += *v;
        }
        sums.0.iter().sum::<f32>() + rest
    }

    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) {
        for v in x {
            *v *= factor;
        }
    }

    /// `out = silu(gate) · up`, with `silu(x) = x / (1 + e^-x)`.
    pub fn silu_times(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = *g / (1.0 + exp(-*g)) * u;
        }
    }

    /// `out = gelu(gate) · up`, in the tanh approximation (Hendrycks and Gimpel 2016): as `1 + tanh(z) = 2 / (1 + e^-2z)`,
    /// it is `x / (1 + e^-2z)` with `z = sqrt(2/π) (x + 0.044715 x³)`.
    pub fn gelu_times(out: &mut [f32], gate: &[f32], up: &[f32]) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            let z = SQRT_2_OVER_PI * (*g + 0.044715 * *g * *g * *g);
            *out = *g / (1.0 + exp(-2.0 * z)) * u;
        }
    }

    /// `x = cap · tanh(x / cap)`.
    pub fn soft_cap(x: &mut [f32], cap: f32) {
        for v in x {
            *v = cap * (1.0 - 2.0 / (exp(2.0 * *v / cap) + 1.0));
        }
    }

    /// Little-endian brain floats: the upper halves of `f32`.
    pub fn from_bf16(bytes: &[u8], out: &mut [f32]) {
        for (out, b) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }
    }

    /// Rotates pairs `(low[j], high[j])` by the angles whose cosines and sines are given.
    pub fn rotate_halves(low: &mut [f32], high: &mut [f32], cos: &[f32], sin: &[f32]) {
        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
        }
    }

    /// Rotates neighbours `(x[2j], x[2j + 1])` by the angles whose cosines and sines are given.
    pub fn rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        for ((pair, c), s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
            (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
        }
    }
}

/// Little-endian half-precision floats, with the processor's own conversion where it has one.
pub fn from_f16(bytes: &[u8], out: &mut [f32]) {
    simd::run(Isa::active(), Halves { bytes: bytes.as_chunks().0, out });
}

struct Halves<'a> {
    bytes: &'a [[u8; 2]],
    out: &'a mut [f32],
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Float>(self) {
        let Halves { bytes, out } = self;
        // Words are loaded in the machine's order of bytes.
        let n = if cfg!(target_endian = "little") { out.len().min(bytes.len()) } else { 0 };
        let whole = n / V::N * V::N;
        for at in (0..whole).step_by(V::N) {
            // SAFETY: `N` pairs of bytes and as many floats are there from `at` on.
            unsafe {
                let bits = V::Int::load_words(bytes.as_ptr().add(at).cast());
                V::from_half(bits).store(out.as_mut_ptr().add(at));
            }
        }
        for (out, bytes) in out[whole..].iter_mut().zip(&bytes[whole..]) {
            *out = half::f16::from_le_bytes(*bytes).to_f32();
        }
    }
}

/// In place: `e^x / Σ e^x`.
pub fn softmax(x: &mut [f32]) {
    let shift = max(x);
    let sum = exp_sum(x, shift);
    scale(x, 1.0 / sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_two_units_in_the_last_place() {
        for i in -86_000..87_000 {
            let x = i as f32 / 1000.0;
            let exact = (x as f64).exp();
            assert!(((exp(x) as f64 - exact) / exact).abs() < 2.4e-7, "exp({x}) = {}, not {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn functions_agree_with_their_definitions() {
        let x: Vec<f32> = (0..77).map(|i| (i as f32 - 38.0) * 0.3).collect();
        let one = vec![1.0; x.len()];
        let check = |name: &str, f: &dyn Fn(&mut [f32]), exact: &dyn Fn(f64) -> f64| {
            let mut y = x.clone();
            f(&mut y);
            for (y, x) in y.iter().zip(&x) {
                let e = exact(*x as f64);
                assert!((*y as f64 - e).abs() < 2e-6 * (1.0 + e.abs()), "{name}({x}) = {y}, not {e}");
            }
        };
        check("silu", &|y| silu_times(y, &x, &one), &|x| x / (1.0 + (-x).exp()));
        let z = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        check("gelu", &|y| gelu_times(y, &x, &one), &|x| 0.5 * x * (1.0 + z(x).tanh()));
        check("soft_cap", &|y| soft_cap(y, 5.0), &|x| 5.0 * (x / 5.0).tanh());
        let rms = (x.iter().map(|v| (v * v) as f64).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
        check("rms_norm", &|y| rms_norm(y, &one, 1e-5), &|x| x / rms);
        let sum: f64 = x.iter().map(|v| (*v as f64).exp()).sum();
        check("softmax", &softmax, &|x| x.exp() / sum);
        let exact: f64 = x.iter().map(|v| (*v as f64).powi(2)).sum();
        assert!((dot(&x, &x) as f64 / exact - 1.0).abs() < 1e-6);
        assert_eq!(max(&x), x[76]);
    }

    #[test]
    fn every_half_decodes_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        // An odd number, so that some are left to the scalar loop.
        let n = 65_529;
        let (mut halves, mut brains) = (vec![0.0; n], vec![0.0; n]);
        from_f16(&bytes[..2 * n], &mut halves);
        from_bf16(&bytes[..2 * n], &mut brains);
        for i in 0..n {
            let (half, brain) = (half::f16::from_bits(i as u16).to_f32(), half::bf16::from_bits(i as u16).to_f32());
            assert!(halves[i].to_bits() == half.to_bits() || (halves[i].is_nan() && half.is_nan()), "{i:#x}");
            assert!(brains[i].to_bits() == brain.to_bits() || (brains[i].is_nan() && brain.is_nan()), "{i:#x}");
        }
    }

    #[test]
    fn both_rotations_turn_by_the_angle() {
        let (cos, sin) = ([0.6, 0.0], [0.8, 1.0]);
        let mut pairs = [1.0, 2.0, 3.0, 4.0];
        rotate_pairs(&mut pairs, &cos, &sin);
        let (mut low, mut high) = ([1.0, 3.0], [2.0, 4.0]);
        rotate_halves(&mut low, &mut high, &cos, &sin);
        assert_eq!(pairs, [low[0], high[0], low[1], high[1]]);
        assert!((low[0] + 1.0).abs() < 1e-6 && (high[0] - 2.0).abs() < 1e-6 && low[1] == -4.0 && high[1] == 3.0);
    }
}
