//! bitsandbytes: NF4 and FP4 in flat blocks (which run across rows), with plain or quantized block scales, and LLM.int8().
//! The tables are bitsandbytes' own; `create_dynamic_map` is followed in single precision.

use super::float::largest;
use super::{Dtype, F32, Format, Module, Slot, Spec};
use crate::quant::GgmlType;
use rayon::prelude::*;

/// Quantiles of the normal distribution, ascending (QLoRA, Dettmers et al. 2023).
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// Twelfths of the magnitudes that bitsandbytes' four-bit floats stand for, by their lower three bits; bit 3 is the sign.
const FP4_TWELFTHS: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];

/// Block scales that share a second scale.
const NESTED_BLOCK: usize = 256;
/// Characters kept for the number `nested_offset`, so that sizes do not depend on the weights.
const OFFSET_CHARS: usize = 24;

/// The value of an FP4 code.
const fn fp4_value(code: u8) -> f32 {
    let value = FP4_TWELFTHS[(code & 7) as usize] / 12.0;
    if code > 8 { -value } else { value }
}

/// bitsandbytes' `create_dynamic_map()`: 256 values in -1 ..= 1, dense around 0.
fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for i in 0..7 {
        let bins = 1 << i;
        let edge = |j: usize| linspace_edge(j, bins);
        let scale = 10f64.powi(i - 6) as f32;
        for j in 0..bins {
            let middle = (edge(j) + edge(j + 1)) / 2.0;
            let value = scale * middle;
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.iter_mut().zip(values).for_each(|(map, v)| *map = v);
    map
}

/// Edge `j` of `bins` equal bins of 0.1 .. 1, as torch's `linspace` computes it: from whichever end is nearer, rounded once.
fn linspace_edge(j: usize, bins: usize) -> f32 {
    let step = (1.0f32 - 0.1) / bins as f32;
    let from = |end: f32, steps: f64| (f64::from(end) + f64::from(step) * steps) as f32;
    if j < bins.div_ceil(2) { from(0.1, j as f64) } else { from(1.0, -((bins - j) as f64)) }
}

impl Spec {
    fn quant_type(&self) -> (&'static str, &'static str) {
        match self.format {
            Format::Fp4 => ("fp4", "weight.quant_state.bitsandbytes__fp4"),
            _ => ("nf4", "weight.quant_state.bitsandbytes__nf4"),
        }
    }

    pub(super) fn bnb_slots(&self, rows: usize, cols: usize, dtype: GgmlType) -> Vec<Slot> {
        let slot = |suffix, dtype, shape: &[usize]| Slot { suffix, dtype, shape: shape.to_vec() };
        let blocks = (rows * cols).div_ceil(self.group_of(64));
        let absmax = if self.nested { Dtype::U8 } else { F32 };
        let state = self.state(rows, cols, dtype, 0.0).len();
        let mut slots =
            vec![slot("weight", Dtype::U8, &[rows * cols / 2, 1]), slot("weight.absmax", absmax, &[blocks])];
        if self.nested {
            slots.push(slot("weight.nested_absmax", F32, &[blocks.div_ceil(NESTED_BLOCK)]));
            slots.push(slot("weight.nested_quant_map", F32, &[256]));
        }
        slots.push(slot("weight.quant_map", F32, &[16]));
        slots.push(slot(self.quant_type().1, Dtype::U8, &[state]));
        slots
    }

    /// The JSON text that travels as a tensor, spaced as Python's `json.dumps` does.
    fn state(&self, rows: usize, cols: usize, dtype: GgmlType, offset: f32) -> Vec<u8> {
        let kind = self.quant_type().0;
        let block = self.group_of(64);
        let dtype = super::config::torch_name(dtype);
        let mut text =
            format!(r#"{{"quant_type": "{kind}", "blocksize": {block}, "dtype": "{dtype}", "shape": [{rows}, {cols}]"#);
        let mut pad = 0;
        if self.nested {
            let number = serde_json::Value::from(f64::from(offset)).to_string();
            pad = OFFSET_CHARS.saturating_sub(number.len());
            text += &format!(
                r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {number}"#
            );
        }
        text.push('}');
        text.extend(std::iter::repeat_n(' ', pad));
        text.into_bytes()
    }

    /// The data of [`Spec::bnb_slots`].
    pub(super) fn bnb_four_bits(&self, m: &Module) -> Vec<Vec<u8>> {
        let block = self.group_of(64);
        let (map, code): ([f32; 16], fn(f32) -> u8) = match self.format {
            Format::Fp4 => (std::array::from_fn(|code| fp4_value(code as u8)), to_fp4),
            _ => (NF4, to_nf4),
        };
        let mut packed = vec![0; m.weights.len() / 2];
        let mut absmax = vec![0.0; m.weights.len().div_ceil(block)];
        let blocks = packed.par_chunks_mut(block / 2).zip(&mut absmax).zip(m.weights.par_chunks(block));
        blocks.with_min_len(64).for_each(|((packed, absmax), w)| {
            *absmax = largest(w);
            let inverse = if *absmax > 0.0 { 1.0 / *absmax } else { 0.0 };
            for (byte, pair) in packed.iter_mut().zip(w.as_chunks::<2>().0) {
                *byte = code(pair[0] * inverse) << 4 | code(pair[1] * inverse);
            }
        });
        let numbers = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let state = |offset| self.state(m.rows, m.cols, m.dtype, offset);
        if !self.nested {
            return vec![packed, numbers(&absmax), numbers(&map), state(0.0)];
        }
        let sum: f64 = absmax.iter().map(|x| f64::from(*x)).sum();
        let offset = (sum / absmax.len() as f64) as f32;
        let nested_map = dynamic_map();
        let mut codes = vec![0; absmax.len()];
        let mut nested = vec![0.0; absmax.len().div_ceil(NESTED_BLOCK)];
        for ((codes, nested), absmax) in
            codes.chunks_mut(NESTED_BLOCK).zip(&mut nested).zip(absmax.chunks(NESTED_BLOCK))
        {
            let off: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
            *nested = largest(&off);
            let inverse = if *nested > 0.0 { 1.0 / *nested } else { 0.0 };
            codes.iter_mut().zip(off).for_each(|(code, x)| *code = nearest(&nested_map, x * inverse));
        }
        vec![packed, codes, numbers(&nested), numbers(&nested_map), numbers(&map), state(offset)]
    }
}

/// The entry of an ascending table that is nearest to `x`, after `x` was rounded to one of 65536 steps from -1 to 1, as
/// bitsandbytes' look-up has it; of equals the lower.
fn nearest(map: &[f32; 256], x: f32) -> u8 {
    const STEPS: f64 = 65535.0;
    let x = ((f64::from(x) + 1.0) * (STEPS / 2.0)).round_ties_even() * 2.0 / STEPS - 1.0;
    let above = map.partition_point(|v| f64::from(*v) < x).min(255);
    let below = above.saturating_sub(1);
    if x - f64::from(map[below]) <= f64::from(map[above]) - x { below as u8 } else { above as u8 }
}

fn to_nf4(x: f32) -> u8 {
    place(&NF4, x)
}

/// FP4's values have two zeros: what is just above zero gets the code of the negative one.
fn to_fp4(x: f32) -> u8 {
    const ASCENDING: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];
    const VALUES: [f32; 16] = {
        let mut values = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            values[i] = fp4_value(ASCENDING[i]);
            i += 1;
        }
        values
    };
    ASCENDING[usize::from(place(&VALUES, x))]
}

/// The place of the nearest of ascending values; of equals the lower.
fn place(values: &[f32; 16], x: f32) -> u8 {
    values.windows(2).map(|pair| u8::from(x > (pair[0] + pair[1]) / 2.0)).sum()
}

/// `SCB`, `weight`, `weight_format`: eight-bit integers, 127 for a row's largest weight.
pub(super) fn int8(m: &Module) -> Vec<Vec<u8>> {
    let mut codes = vec![0; m.rows * m.cols];
    let mut scales = vec![0.0; m.rows];
    let rows = codes.par_chunks_mut(m.cols).zip(&mut scales).zip(m.weights.par_chunks(m.cols));
    rows.for_each(|((codes, scale), w)| {
        *scale = largest(w);
        // torch divides a number by a tensor in two steps.
        let inverse = if *scale > 0.0 { 1.0 / *scale * 127.0 } else { 0.0 };
        codes.iter_mut().zip(w).for_each(|(code, w)| *code = (w * inverse).round_ties_even() as i8 as u8);
    });
    vec![scales.iter().flat_map(|x| x.to_le_bytes()).collect(), codes, vec![0]]
}
