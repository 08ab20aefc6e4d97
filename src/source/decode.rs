//! Stored numbers to f32: the plain types here, quantized blocks through `quant`.

use crate::quant::{self, GgmlType};
use crate::{Error, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Decodes all of `bytes`, which are stored as `ty`, into `out`.
pub(super) fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match ty {
        GgmlType::F32 => each(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => half_to_f32(bytes, out),
        GgmlType::BF16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        GgmlType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        GgmlType::I8 => each(bytes, out, |b| i8::from_le_bytes(b).into()),
        GgmlType::I16 => each(bytes, out, |b| i16::from_le_bytes(b).into()),
        GgmlType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        GgmlType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        _ => quant::dequantize_rows(ty, bytes, out).map_err(|e| Error::bad_input(e.to_string()))?,
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = decode(bytes);
    }
}

/// The processor's own conversion where the bytes are aligned, which those of a vector are in practice.
fn half_to_f32(bytes: &[u8], out: &mut [f32]) {
    match bytemuck::try_cast_slice::<u8, f16>(bytes) {
        Ok(values) if cfg!(target_endian = "little") && values.len() == out.len() => values.convert_to_f32_slice(out),
        _ => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half-precision pattern, from aligned and from odd addresses, against the scalar conversion.
    #[test]
    fn halves_decode_the_same_from_any_address() {
        let bytes: Vec<u8> = std::iter::once(0).chain((0..=u16::MAX).flat_map(u16::to_le_bytes)).collect();
        let aligned = bytes[1..].to_vec();
        let (mut a, mut b) = (vec![0.0; 65536], vec![0.0; 65536]);
        half_to_f32(&aligned, &mut a);
        half_to_f32(&bytes[1..], &mut b);
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let want = f16::from_bits(i as u16).to_f32();
            assert!(a.to_bits() == want.to_bits() || (a.is_nan() && want.is_nan()), "{i:#x}");
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{i:#x}");
        }
    }

    #[test]
    fn brain_floats_are_the_upper_half_of_an_f32() {
        let mut out = [0.0; 3];
        decode(GgmlType::BF16, &[0x80, 0x3f, 0x00, 0xc0, 0x80, 0x7f], &mut out).unwrap();
        assert_eq!(out, [1.0, -2.0, f32::INFINITY]);
    }
}
