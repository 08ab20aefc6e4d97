//! The codebook types as one table: how many weights share a scale, how many are chosen together, which points there are,
//! and the way to a block's bytes. No search.
//!
//! In all of them a weight is `s · value` with `s = unit · d · (2 a + 1)`, where d is f16 and belongs to the super-block, a
//! is a small integer and belongs to the block. Values come from points of four or eight magnitudes and signs of their own,
//! or (IQ1_M) from points of eight numbers that are all shifted up or down; none is zero.

use crate::quant::iquants::{codes, grids::unpack, iq1, iq2, iq3};
use crate::quant::{GgmlType, put_f16};

/// Weights of a super-block, the most of a block, and the most that are chosen together.
pub const SUPER: usize = 256;
pub const MAX_BLOCK: usize = 32;
pub const MAX_VECTOR: usize = 8;

/// One type.
pub struct Book {
    pub ty: GgmlType,
    /// Weights that share a scale.
    pub block: usize,
    /// Weights that are chosen together: those of a point, or of the points that share the rule of signs.
    pub vector: usize,
    /// Weights of a point.
    pub point: usize,
    /// Whether the number of minus signs of a vector is even.
    pub even_signs: bool,
    pub unit: f32,
    /// The largest a.
    pub top: f32,
    /// The magnitudes, or the numbers that are shifted; rising.
    pub levels: &'static [f32],
    /// What is added to the numbers of a point: nothing where they are magnitudes, else the one or the other.
    pub shifts: &'static [f32],
    /// The scales tried for a block, as shares of the one that takes its largest weight to the largest value.
    pub trials: &'static [f32; 8],
    /// By point: the places of its first and its second half among all patterns of so many magnitudes, the first magnitude
    /// changing fastest.
    pub halves: Vec<[u8; 2]>,
    /// By shift and point: its values.
    pub values: Vec<[f32; MAX_VECTOR]>,
    pack: fn(&Numbers, &mut [u8]),
}

/// What one super-block of one row holds.
pub struct Numbers {
    pub d: f32,
    /// By block.
    pub a: [u8; 16],
    /// By vector or part of one: the point, and behind all points the same ones with the second shift.
    pub points: [u16; SUPER / 4],
    /// By eight weights: bit i is set where weight i is negative.
    pub signs: [u8; SUPER / 8],
}

const TRIALS: [f32; 8] = [0.70, 0.77, 0.84, 0.91, 0.98, 1.05, 1.12, 1.20];
const SHIFTED_TRIALS: [f32; 8] = [0.40, 0.49, 0.57, 0.66, 0.74, 0.83, 0.91, 1.00];

impl Book {
    /// `None` for types without a codebook, and for those whose codebook feedback does not make.
    pub fn new(ty: GgmlType) -> Option<Self> {
        use GgmlType::*;
        let row = |block, vector, even_signs, unit, levels, pack| Book {
            ty,
            block,
            vector,
            point: 0,
            even_signs,
            unit,
            top: 15.0,
            levels,
            shifts: &[0.0],
            trials: &TRIALS,
            halves: Vec::new(),
            values: Vec::new(),
            pack,
        };
        let (iq2, iq3_s, iq3_xxs): (&[f32], &[f32], &[f32]) = (&iq2::LEVELS, &iq3::LEVELS_S, &iq3::LEVELS_XXS);
        Some(match ty {
            IQ3_S => row(32, 4, false, 1.0, iq3_s, pack_iq3_s).with_points::<4>(&codes::IQ3_S, 3),
            IQ3_XXS => row(32, 8, true, 0.25, iq3_xxs, pack_iq3_xxs).with_points::<4>(&codes::IQ3_XXS, 3),
            IQ2_S => row(16, 8, false, 0.125, iq2, pack_iq2_s).with_points::<8>(&codes::IQ2_S, 2),
            IQ2_XS => row(16, 8, true, 0.125, iq2, pack_iq2_xs).with_points::<8>(&codes::IQ2_XS, 2),
            IQ2_XXS => row(32, 8, true, 0.125, iq2, pack_iq2_xxs).with_points::<8>(&codes::IQ2_XXS, 2),
            IQ1_M => {
                let plain = row(16, 8, false, 1.0, &[-1.0, 0.0, 1.0], pack_iq1_m);
                let shifts = &[iq1::DELTA, -iq1::DELTA];
                Book { top: 7.0, shifts, trials: &SHIFTED_TRIALS, ..plain }.with_points::<8>(&codes::IQ1, 2)
            }
            _ => return None,
        })
    }

    fn with_points<const N: usize>(mut self, codes: &[u16], bits: usize) -> Self {
        self.point = N;
        let place = |digits: &[u8]| digits.iter().rev().fold(0, |at, d| at * self.levels.len() + usize::from(*d)) as u8;
        for code in codes {
            let digits = unpack::<N>(*code, bits);
            let (first, second) = digits.split_at(N / 2);
            self.halves.push([place(first), place(second)]);
        }
        for shift in self.shifts {
            for code in codes {
                let digits = unpack::<N>(*code, bits);
                let value = |i: usize| digits.get(i).map_or(0.0, |digit| self.levels[usize::from(*digit)] + shift);
                self.values.push(std::array::from_fn(value));
            }
        }
        self
    }

    /// Whether points are magnitudes, with signs beside them.
    pub fn has_signs(&self) -> bool {
        self.shifts.len() == 1
    }

    /// The largest value.
    pub fn reach(&self) -> f32 {
        self.levels[self.levels.len() - 1] + self.shifts[0]
    }

    /// The bytes of one super-block. Where d is 0 nothing else counts, and all bytes are zero.
    pub fn pack(&self, numbers: &Numbers, out: &mut [u8]) {
        out.fill(0);
        if numbers.d != 0.0 {
            (self.pack)(numbers, out);
        }
    }
}

/// Two scales of four bits a byte, the first in the low half.
fn put_scales(a: &[u8], out: &mut [u8]) {
    for (pair, out) in a.chunks_exact(2).zip(out) {
        *out = pair[0] | pair[1] << 4;
    }
}

/// Signs of 32 weights, seven bits of each eight, and the block's scale.
fn word(n: &Numbers, block: usize) -> [u8; 4] {
    let signs = n.signs[4 * block..4 * block + 4].iter().enumerate();
    let signs = signs.fold(0, |word, (k, signs)| word | u32::from(signs & 0x7f) << (7 * k));
    (signs | u32::from(n.a[block]) << 28).to_le_bytes()
}

fn pack_iq3_s(n: &Numbers, out: &mut [u8]) {
    put_f16(out, 0, n.d);
    for (k, point) in n.points.iter().enumerate() {
        out[2 + k] = *point as u8;
        out[66 + k / 8] |= ((point >> 8) << (k % 8)) as u8;
    }
    out[74..106].copy_from_slice(&n.signs);
    put_scales(&n.a[..8], &mut out[106..]);
}

fn pack_iq3_xxs(n: &Numbers, out: &mut [u8]) {
    put_f16(out, 0, n.d);
    for (out, point) in out[2..66].iter_mut().zip(&n.points) {
        *out = *point as u8;
    }
    for (block, out) in out[66..].chunks_exact_mut(4).enumerate() {
        out.copy_from_slice(&word(n, block));
    }
}

fn pack_iq2_s(n: &Numbers, out: &mut [u8]) {
    put_f16(out, 0, n.d);
    for (k, point) in n.points[..32].iter().enumerate() {
        out[2 + k] = *point as u8;
        out[66 + k / 4] |= ((point >> 8) << (2 * (k % 4))) as u8;
    }
    out[34..66].copy_from_slice(&n.signs);
    put_scales(&n.a, &mut out[74..]);
}

fn pack_iq2_xs(n: &Numbers, out: &mut [u8]) {
    put_f16(out, 0, n.d);
    for ((point, signs), out) in n.points.iter().zip(&n.signs).zip(out[2..66].chunks_exact_mut(2)) {
        out.copy_from_slice(&(point | u16::from(signs & 0x7f) << 9).to_le_bytes());
    }
    put_scales(&n.a, &mut out[66..]);
}

/// The scales' words hold d too, four bits each.
fn pack_iq1_m(n: &Numbers, out: &mut [u8]) {
    for (k, point) in n.points[..32].iter().enumerate() {
        out[k] = *point as u8;
        // Three upper bits, and one for the shift down.
        out[32 + k / 2] |= ((point >> 8) as u8) << (4 * (k % 2));
    }
    let d = half::f16::from_f32(n.d).to_bits();
    for (k, (a, out)) in n.a.chunks_exact(4).zip(out[48..].chunks_exact_mut(2)).enumerate() {
        let scales = a.iter().enumerate().fold(0, |word, (i, a)| word | u16::from(*a) << (3 * i));
        out.copy_from_slice(&(scales | (d >> (4 * k) & 15) << 12).to_le_bytes());
    }
}

fn pack_iq2_xxs(n: &Numbers, out: &mut [u8]) {
    put_f16(out, 0, n.d);
    for (block, out) in out[2..].chunks_exact_mut(8).enumerate() {
        for (out, point) in out.iter_mut().zip(&n.points[4 * block..4 * block + 4]) {
            *out = *point as u8;
        }
        out[4..].copy_from_slice(&word(n, block));
    }
}
