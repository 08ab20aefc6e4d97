//! Quantization of rows of weights to ggml blocks and back. One entry point per direction; the arithmetic of each type
//! family is in a file of its own. Nothing here knows files, models or threads: rows in, bytes out.

pub mod types;

pub use types::GgmlType;

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

/// Decodes whole blocks of `ty` into `out`.
pub fn dequantize_rows(ty: GgmlType, _bytes: &[u8], _out: &mut [f32]) -> Result<(), QuantError> {
    Err(QuantError::Unsupported { ty })
}
