//! The tensors of one packed module, looked up by suffix and checked for shape and type: what all tools' readers build on.

use super::bits::{from_bytes, to_bytes, transpose, unpack};
use super::matrix::{Coding, Numbers};
use crate::dtype::{Dtype, GgmlType};
use half::{bf16, f16};

/// A tensor of a packed module with its bytes.
#[derive(Clone, Debug)]
pub struct StoredPiece {
    /// What its name ends with.
    pub suffix: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub data: Vec<u8>,
}

/// Why something cannot be read; the caller adds file and tensor.
pub type Found<T> = std::result::Result<T, String>;

/// The tensors of one module.
pub struct Pieces<'a>(pub &'a [StoredPiece]);

impl Pieces<'_> {
    pub fn find(&self, suffix: &str) -> Option<&StoredPiece> {
        self.0.iter().find(|p| p.suffix == suffix)
    }

    pub fn get(&self, suffix: &str) -> Found<&StoredPiece> {
        self.find(suffix).ok_or_else(|| format!("has no '{suffix}'"))
    }

    pub fn matrix(&self, suffix: &str) -> Found<[usize; 2]> {
        let shape = &self.get(suffix)?.shape;
        match shape[..] {
            [a, b] if a > 0 && b > 0 => Ok([a, b]),
            _ => Err(format!("'{suffix}' has the shape {shape:?}; expected two dimensions")),
        }
    }

    /// The piece, if it has the shape.
    pub fn shaped(&self, suffix: &str, shape: &[usize]) -> Found<&StoredPiece> {
        let piece = self.get(suffix)?;
        if piece.shape == shape {
            return Ok(piece);
        }
        Err(format!("'{suffix}' has the shape {:?}; expected {shape:?}", piece.shape))
    }

    /// The 32-bit words of a piece of this shape.
    pub fn words(&self, suffix: &str, shape: &[usize]) -> Found<Vec<u32>> {
        let piece = self.shaped(suffix, shape)?;
        match piece.dtype {
            Dtype::Ggml(GgmlType::I32) | Dtype::U32 => Ok(from_bytes(&piece.data)),
            other => Err(format!("'{suffix}' is stored as {other}; expected 32-bit words")),
        }
    }

    pub fn bytes(&self, suffix: &str, shape: &[usize]) -> Found<&[u8]> {
        let piece = self.shaped(suffix, shape)?;
        match piece.dtype {
            Dtype::U8 | Dtype::F8_E4M3 | Dtype::F8_E8M0 | Dtype::Ggml(GgmlType::I8) => Ok(&piece.data),
            other => Err(format!("'{suffix}' is stored as {other}; expected bytes")),
        }
    }
}

pub(super) fn integers(piece: &StoredPiece) -> Found<Vec<i64>> {
    match piece.dtype {
        Dtype::Ggml(GgmlType::I64) => Ok(piece.data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::I32) => {
            Ok(piece.data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect())
        }
        other => Err(format!("'{}' is stored as {other}; expected integers", piece.suffix)),
    }
}

pub(super) fn numbers(piece: &StoredPiece) -> Found<Numbers> {
    let data = &piece.data;
    Ok(match piece.dtype {
        Dtype::Ggml(GgmlType::F32) => Numbers::F32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::F16) => Numbers::F16(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::BF16) => {
            Numbers::BF16(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
        }
        other => return Err(format!("'{}' is stored as {other}; expected F32, F16 or BF16", piece.suffix)),
    })
}

/// The only number of a piece.
pub(super) fn single(piece: &StoredPiece) -> Found<f32> {
    let numbers = numbers(piece)?;
    match numbers.len() {
        1 if numbers.get(0).is_finite() => Ok(numbers.get(0)),
        1 => Err(format!("'{}' is {}", piece.suffix, numbers.get(0))),
        n => Err(format!("'{}' holds {n} numbers; expected one", piece.suffix)),
    }
}

/// `[rows, cols]` to `[cols, rows]`.
pub(super) fn transposed(numbers: Numbers, rows: usize, cols: usize) -> Numbers {
    match numbers {
        Numbers::F32(x) => Numbers::F32(transpose(&x, rows, cols)),
        Numbers::F16(x) => Numbers::F16(transpose(&x, rows, cols)),
        Numbers::BF16(x) => Numbers::BF16(transpose(&x, rows, cols)),
        Numbers::Table(x, values) => Numbers::Table(transpose(&x, rows, cols), values),
    }
}

/// One number for all groups where they agree.
pub(super) fn zero_points(zeros: Vec<u8>) -> Coding {
    match zeros.first() {
        Some(first) if zeros.iter().all(|z| z == first) => Coding::Offset(*first),
        _ => Coding::Zeros(zeros),
    }
}

/// Rows of packed words to codes, `[rows, cols]`.
pub(super) fn unpack_rows(packed: &[u32], width: usize, cols: usize, bits: u8) -> Vec<u8> {
    let bytes = to_bytes(packed);
    let mut codes = vec![0; packed.len() / width.max(1) * cols];
    for (row, codes) in bytes.chunks_exact(4 * width.max(1)).zip(codes.chunks_exact_mut(cols.max(1))) {
        unpack(row, 0, bits, codes);
    }
    codes
}
