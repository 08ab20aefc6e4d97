//! The ggml types beyond the round and K-quant ones, one file per family: codebook types (IQ*), ternary (TQ*), 4-bit float
//! and 1- or 2-bit types. This is the specification: scalar code whose bytes equal ggml's. Nothing here names lanes; the
//! steps of the codebook searches that have a lane form come through [`grids::Steps`].

pub(super) mod binary;
mod codes;
pub(super) mod fp4;
pub(super) mod grids;
pub(super) mod iq1;
pub(super) mod iq2;
pub(super) mod iq3;
pub(crate) mod iq4;
mod numeric;
pub(super) mod search;
pub(super) mod ternary;
#[cfg(test)]
pub(super) mod tests;

use grids::OneByOne;

use super::{CheckRow, Codec, DequantizeRow, GgmlType, QuantizeRow, scales_at};

/// How `ty` is written and read; `None` for a type that is not of these families.
pub fn codec(ty: GgmlType) -> Option<Codec> {
    use GgmlType::*;
    let (quantize, dequantize, check): (QuantizeRow, DequantizeRow, CheckRow) = match ty {
        IQ1_S => (iq1::quantize_s::<OneByOne>, iq1::dequantize_s, scales_at::<50, 0, 1>),
        IQ1_M => (iq1::quantize_m::<OneByOne>, iq1::dequantize_m, iq1::check_m),
        IQ2_XXS => (iq2::quantize_xxs::<OneByOne>, iq2::dequantize_xxs, scales_at::<66, 0, 1>),
        IQ2_XS => (iq2::quantize_xs::<OneByOne>, iq2::dequantize_xs, scales_at::<74, 0, 1>),
        IQ2_S => (iq2::quantize_s::<OneByOne>, iq2::dequantize_s, scales_at::<82, 0, 1>),
        IQ3_XXS => (iq3::quantize_xxs::<OneByOne>, iq3::dequantize_xxs, scales_at::<98, 0, 1>),
        IQ3_S => (iq3::quantize_s::<OneByOne>, iq3::dequantize_s, scales_at::<110, 0, 1>),
        IQ4_NL => (iq4::quantize_nl, iq4::dequantize_nl, scales_at::<18, 0, 1>),
        IQ4_XS => (iq4::quantize_xs, iq4::dequantize_xs, scales_at::<136, 0, 1>),
        TQ1_0 => (ternary::quantize_tq1, ternary::dequantize_tq1, scales_at::<54, 52, 1>),
        TQ2_0 => (ternary::quantize_tq2, ternary::dequantize_tq2, scales_at::<66, 64, 1>),
        MXFP4 => (fp4::quantize_mx, fp4::dequantize_mx, fp4::check_mx),
        // Every scale byte is valid: the NaN code counts as zero.
        NVFP4 => (fp4::quantize_nv, fp4::dequantize_nv, |_| Ok(())),
        Q1_0 => (binary::quantize_q1, binary::dequantize_q1, scales_at::<18, 0, 1>),
        Q2_0 => (binary::quantize_q2, binary::dequantize_q2, scales_at::<18, 0, 1>),
        _ => return None,
    };
    let needs_importance = matches!(ty, IQ1_S | IQ2_XXS | IQ2_XS);
    Some(Codec { quantize: Some(quantize), dequantize, check, needs_importance })
}
