//! Quantization of rows of weights to ggml blocks and back. One entry point per direction; the arithmetic of each type
//! family is in a file of its own. Nothing here knows files, models or threads: rows in, bytes out.

pub mod allocate;
pub(crate) mod integers;
pub(crate) mod iquants;
pub(crate) mod kquants;
mod lanes;
pub(crate) mod legacy;
mod plain;
pub mod presets;
pub mod search;
#[cfg(test)]
mod tests;
pub mod types;

use crate::isa::Isa;
use lanes::Job;
pub use types::GgmlType;

/// Quantizes one whole row; lengths were checked by the caller.
pub type QuantizeRow = fn(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]);
/// Decodes any number of whole blocks.
pub type DequantizeRow = fn(bytes: &[u8], out: &mut [f32]);
/// Whether every scale is finite; else the first bad block and its scale.
pub type CheckRow = fn(bytes: &[u8]) -> Result<(), (usize, f32)>;

/// What can be done with a type.
#[derive(Clone, Copy)]
pub struct Codec {
    pub quantize: Option<QuantizeRow>,
    pub dequantize: DequantizeRow,
    pub check: CheckRow,
    pub needs_importance: bool,
}

/// Why a row could not be quantized, or why stored blocks are not sound.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    #[error("rows of {cols} weights are not a multiple of the {block}-weight block of {ty}")]
    NotWholeBlocks { ty: GgmlType, cols: usize, block: usize },
    #[error("weight {index} is {value}")]
    NotFinite { index: usize, value: f32 },
    #[error("{ty} needs an importance matrix")]
    NeedsImportance { ty: GgmlType },
    #[error("{ty} cannot be written")]
    Unsupported { ty: GgmlType },
    #[error("block {block} of {ty} holds the scale {value}")]
    BadScale { ty: GgmlType, block: usize, value: f32 },
    #[error("{what}")]
    Length { what: String },
}

/// The codec of a type; `None` for types that hold no weights (I8 .. I64, F64).
pub fn codec(ty: GgmlType) -> Option<Codec> {
    ty.info().codec
}

fn need(ty: GgmlType) -> Result<Codec, QuantError> {
    codec(ty).ok_or(QuantError::Unsupported { ty })
}

/// Quantizes whole rows of `cols` weights. `importance` (`[cols]`, the mean squared activation of each input) steers the
/// search of the types that use it.
///
/// Errors: lengths that do not fit, a weight that is not finite (by index into `src`), a type that cannot be written.
pub fn quantize_rows(
    ty: GgmlType,
    src: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    quantize_rows_with(Isa::active(), ty, src, cols, importance, out)
}

/// [`quantize_rows`] with a given instruction set. The bytes are the same with any.
pub fn quantize_rows_with(
    isa: Isa,
    ty: GgmlType,
    src: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let codec = need(ty)?;
    let quantize = codec.quantize.ok_or(QuantError::Unsupported { ty })?;
    let mut job = Job::new(ty, src, cols, importance, out)?;
    if codec.needs_importance && importance.is_none() {
        return Err(QuantError::NeedsImportance { ty });
    }
    if !lanes::all_finite(isa, src)
        && let Some(index) = src.iter().position(|v| !v.is_finite())
    {
        return Err(QuantError::NotFinite { index, value: src[index] });
    }
    if !lanes::quantize(isa, &mut job) {
        job.by_rows(quantize);
    }
    Ok(())
}

/// Decodes whole blocks.
pub fn dequantize_rows(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let codec = need(ty)?;
    check_length(ty, bytes)?;
    if bytes.len() / ty.block_bytes() * ty.block() != out.len() {
        let what = format!("{} bytes of {ty} do not hold {} weights", bytes.len(), out.len());
        return Err(QuantError::Length { what });
    }
    (codec.dequantize)(bytes, out);
    Ok(())
}

/// Checks that every scale of stored blocks is finite (for plain types: every number), as ggml does when it loads with
/// `--check-tensors`.
pub fn check_rows(ty: GgmlType, bytes: &[u8]) -> Result<(), QuantError> {
    check_length(ty, bytes)?;
    match codec(ty) {
        Some(codec) => (codec.check)(bytes).map_err(|(block, value)| QuantError::BadScale { ty, block, value }),
        None => Ok(()),
    }
}

fn check_length(ty: GgmlType, bytes: &[u8]) -> Result<(), QuantError> {
    if bytes.len().is_multiple_of(ty.block_bytes()) {
        return Ok(());
    }
    Err(QuantError::Length { what: format!("{} bytes are not whole blocks of {ty}", bytes.len()) })
}

#[inline(always)]
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

pub(crate) fn put_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

/// What a scale is after it was stored.
fn round_f16(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}

/// Checks the `COUNT` f16 scales at byte `AT` of every block of `BYTES`.
fn scales_at<const BYTES: usize, const AT: usize, const COUNT: usize>(bytes: &[u8]) -> Result<(), (usize, f32)> {
    for (block, b) in bytes.chunks_exact(BYTES).enumerate() {
        for i in 0..COUNT {
            let at = AT + 2 * i;
            if u16::from_le_bytes([b[at], b[at + 1]]) & 0x7c00 == 0x7c00 {
                return Err((block, f16_at(b, at)));
            }
        }
    }
    Ok(())
}
