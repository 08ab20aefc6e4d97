//! Stored weights as small integers: of every block of 32 weights each is `step · integer + offset`, where the halves of a
//! block may have offsets of their own. Steps and offsets are read here; the integers are what is left of the decoded
//! weights, so that codes have one decoder. Where 16 weights have a scale, which is an integer itself, it counts as a part
//! of their integers.

use super::iquants::fp4::half_e8m0;
use super::iquants::iq1::scale_m;
use super::iquants::numeric::{get_u16, get_u32};
use super::kquants::unpack_scale_min;
use super::{GgmlType, f16_at};

/// Weights under one step.
pub const BLOCK: usize = 32;

/// No integer of any type is larger in magnitude: those of Q6_K are 8 bits by 6, with signs.
pub const LARGEST: i32 = 4096;

/// How the weights of a type are integers.
#[derive(Clone, Copy)]
pub struct Integers {
    /// No integer is larger in magnitude.
    pub largest: i32,
    /// Offsets of a block: none, one, or one for each half.
    pub offsets: usize,
    /// Reads the steps (`[cols / 32]`) and offsets (`[cols / 32 * offsets]`) of a stored row.
    pub read: fn(row: &[u8], steps: &mut [f32], offsets: &mut [f32]),
}

/// The integers of a type; `None` where weights are no multiples of a step.
pub fn integers(ty: GgmlType) -> Option<Integers> {
    use GgmlType::*;
    let symmetric = |largest, read| Some(Integers { largest, offsets: 0, read });
    match ty {
        Q4_0 => symmetric(8, |row, steps, _| each::<18, 1, 0>(row, steps, |d, _, _| d)),
        Q5_0 => symmetric(16, |row, steps, _| each::<22, 1, 0>(row, steps, |d, _, _| d)),
        Q8_0 => symmetric(128, |row, steps, _| each::<34, 1, 0>(row, steps, |d, _, _| d)),
        Q4_1 => Some(Integers { largest: 15, offsets: 1, read: legacy::<20> }),
        Q5_1 => Some(Integers { largest: 31, offsets: 1, read: legacy::<24> }),
        // Four bits of scale by two of code.
        Q2_K => Some(Integers { largest: 15 * 3, offsets: 2, read: q2_k }),
        // Six bits by three, with signs.
        Q3_K => symmetric(32 * 4, |row, steps, _| each::<110, 8, 108>(row, steps, |d, _, _| d)),
        Q4_K => Some(Integers { largest: 15, offsets: 1, read: q45_k::<144> }),
        Q5_K => Some(Integers { largest: 31, offsets: 1, read: q45_k::<176> }),
        Q6_K => symmetric(LARGEST, |row, steps, _| each::<210, 8, 208>(row, steps, |d, _, _| d)),
        IQ2_XXS => symmetric(43, |row, steps, _| {
            each::<66, 8, 0>(row, steps, |d, b, i| d * (0.5 + (get_u32(b, 6 + 8 * i) >> 28) as f32) * 0.25);
        }),
        // The scale is an eighth of an odd number up to 31.
        IQ2_XS => symmetric(31 * 43, |row, steps, _| each::<74, 8, 0>(row, steps, |d, _, _| d * 0.125)),
        IQ2_S => symmetric(31 * 43, |row, steps, _| each::<82, 8, 0>(row, steps, |d, _, _| d * 0.125)),
        IQ3_XXS => symmetric(62, |row, steps, _| {
            each::<98, 8, 0>(row, steps, |d, b, i| d * (0.5 + (get_u32(b, 66 + 4 * i) >> 28) as f32) * 0.5);
        }),
        IQ3_S => symmetric(15, |row, steps, _| {
            each::<110, 8, 0>(row, steps, |d, b, i| d * f32::from(1 + 2 * (b[106 + i / 2] >> (4 * (i % 2)) & 15)));
        }),
        // In eighths.
        IQ1_S => symmetric(9, |row, steps, _| {
            each::<50, 8, 0>(row, steps, |d, b, i| d * f32::from(2 * (get_u16(b, 34 + 2 * i) >> 12 & 7) + 1) * 0.125);
        }),
        IQ1_M => symmetric(15 * 9, |row, steps, _| {
            for (b, steps) in row.as_chunks::<56>().0.iter().zip(steps.as_chunks_mut::<8>().0) {
                steps.fill(scale_m(b) * 0.125);
            }
        }),
        IQ4_NL => symmetric(127, |row, steps, _| each::<18, 1, 0>(row, steps, |d, _, _| d)),
        IQ4_XS => symmetric(127, |row, steps, _| {
            each::<136, 8, 0>(row, steps, |d, b, i| {
                let low = u16::from(b[4 + i / 2] >> (4 * (i % 2)) & 15);
                d * (f32::from(low | (get_u16(b, 2) >> (2 * i) & 3) << 4) - 32.0)
            });
        }),
        TQ1_0 => symmetric(1, |row, steps, _| each::<54, 8, 52>(row, steps, |d, _, _| d)),
        TQ2_0 => symmetric(2, |row, steps, _| each::<66, 8, 64>(row, steps, |d, _, _| d)),
        Q1_0 => symmetric(1, |row, steps, _| each::<18, 4, 0>(row, steps, |d, _, _| d)),
        Q2_0 => symmetric(2, |row, steps, _| each::<18, 2, 0>(row, steps, |d, _, _| d)),
        MXFP4 => symmetric(12, |row, steps, _| {
            for (b, step) in row.as_chunks::<17>().0.iter().zip(steps) {
                *step = half_e8m0(b[0]);
            }
        }),
        // The scales of NVFP4 are floats, one for 16 weights.
        NVFP4 | F32 | F16 | BF16 | F64 | I8 | I16 | I32 | I64 => None,
    }
}

/// `COUNT` numbers of each stored block of `BYTES`, made of the f16 at byte `AT`.
#[inline(always)]
fn each<const BYTES: usize, const COUNT: usize, const AT: usize>(
    row: &[u8],
    out: &mut [f32],
    number: impl Fn(f32, &[u8; BYTES], usize) -> f32,
) {
    for (b, out) in row.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<COUNT>().0) {
        let d = f16_at(b, AT);
        for (i, out) in out.iter_mut().enumerate() {
            *out = number(d, b, i);
        }
    }
}

fn legacy<const BYTES: usize>(row: &[u8], steps: &mut [f32], offsets: &mut [f32]) {
    each::<BYTES, 1, 0>(row, steps, |d, _, _| d);
    each::<BYTES, 1, 2>(row, offsets, |m, _, _| m);
}

fn q2_k(row: &[u8], steps: &mut [f32], offsets: &mut [f32]) {
    each::<84, 8, 80>(row, steps, |d, _, _| d);
    each::<84, 16, 82>(row, offsets, |dmin, b, i| -(dmin * f32::from(b[i] >> 4)));
}

fn q45_k<const BYTES: usize>(row: &[u8], steps: &mut [f32], offsets: &mut [f32]) {
    each::<BYTES, 8, 0>(row, steps, |d, b, i| d * f32::from(unpack_scale_min(&b[4..16], i).0));
    each::<BYTES, 8, 2>(row, offsets, |dmin, b, i| -(dmin * f32::from(unpack_scale_min(&b[4..16], i).1)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize_rows;

    /// Blocks of random bytes, but with the scales of the type finite.
    #[test]
    fn weights_of_every_type_are_integers_times_their_steps() {
        for ty in GgmlType::ALL.iter().copied() {
            let Some(known) = integers(ty) else { continue };
            let (cols, mut seed) = (4096, ty as u32);
            let mut bytes = vec![0; ty.row_bytes(cols).unwrap()];
            let mut found = false;
            for _ in 0..40 {
                bytes.iter_mut().for_each(|b| {
                    seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                    *b = (seed >> 24) as u8;
                });
                let mut weights = vec![0.0f32; cols];
                dequantize_rows(ty, &bytes, &mut weights).unwrap();
                let (mut steps, mut offsets) = (vec![0.0; cols / BLOCK], vec![0.0; cols / BLOCK * known.offsets]);
                (known.read)(&bytes, &mut steps, &mut offsets);
                for (i, w) in weights.iter().enumerate() {
                    let step = f64::from(steps[i / BLOCK]);
                    let offset = f64::from(match known.offsets {
                        0 => 0.0,
                        n => offsets[i * n / BLOCK],
                    });
                    if !w.is_finite() || !step.is_finite() || !offset.is_finite() || step.abs() < 1e-30 {
                        continue;
                    }
                    let integer = ((f64::from(*w) - offset) / step).round();
                    // What the subtraction leaves of a weight that was rounded with its offset.
                    let room = 1e-6 * (integer * step).abs() + 2e-7 * offset.abs();
                    assert!((integer * step + offset - f64::from(*w)).abs() <= room, "{ty}, weight {i}: {w}");
                    let sure = offset.abs() < 1e6 * step.abs();
                    assert!(!sure || integer.abs() <= f64::from(known.largest), "{ty}: {integer}");
                    found |= sure && integer.abs() == f64::from(known.largest);
                }
            }
            assert!(found, "the largest integer of {ty} is smaller than it says");
        }
    }
}
