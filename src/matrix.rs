//! Matrices of weights as callers of the library hold them: `ndarray` views `[out, in]` to stored bytes and back. The
//! arithmetic below works on slices; here shapes travel with the data and are checked.

use crate::eval::{Logits, Runnable};
use crate::model::SourceModel;
use crate::packed;
use crate::quant::{self, QuantError};
use crate::{Error, Result};
use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

pub use crate::packed::{
    Exception, Input, Module, Packed, Piece, ScaleRule, Scheme, Scope, Slot, StoredPiece, Tunable,
};
pub use crate::quant::GgmlType;

fn fault(e: QuantError) -> Error {
    Error::bad_input(e.to_string())
}

fn shaped(rows: usize, cols: usize, values: Vec<f32>) -> Result<Array2<f32>> {
    Array2::from_shape_vec((rows, cols), values).map_err(|e| Error::Internal(format!("{rows} x {cols}: {e}")))
}

/// The blocks of a matrix `[out, in]`, row after row, as a GGUF tensor of this type holds them. `importance` (`[in]`, the
/// mean squared activation of each input) steers the search of the types that use it.
///
/// # Errors
/// `BadInput` for rows that are not whole blocks, an importance of another length, weights that are not finite, a type
/// that cannot be written, or one that needs an importance and has none.
pub fn quantize(matrix: ArrayView2<f32>, ty: GgmlType, importance: Option<ArrayView1<f32>>) -> Result<Vec<u8>> {
    let cols = matrix.ncols();
    let matrix = matrix.as_standard_layout();
    let importance = importance.as_ref().map(|i| i.as_standard_layout());
    let importance = importance.as_ref().and_then(|i| i.as_slice());
    by_search(ty, matrix.as_slice().unwrap_or_default(), cols, importance).map_err(fault)
}

/// Rows that one thread quantizes at a time.
const TOGETHER: usize = 64;

/// The blocks of the rows of `weights`, `[out, cols]`, by ggml's search on all threads.
///
/// Errors: those of [`quant::quantize_rows`].
pub(crate) fn by_search(
    ty: GgmlType,
    weights: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, QuantError> {
    let row_bytes = ty.row_bytes(cols).ok_or(QuantError::NotWholeBlocks { ty, cols, block: ty.block() })?;
    let mut out = vec![0; weights.len() / cols.max(1) * row_bytes];
    let pieces = out.par_chunks_mut((TOGETHER * row_bytes).max(1)).zip(weights.par_chunks((TOGETHER * cols).max(1)));
    pieces.enumerate().try_for_each(|(i, (out, rows))| {
        quant::quantize_rows(ty, rows, cols, importance, out).map_err(|e| match e {
            QuantError::NotFinite { index, value } => {
                QuantError::NotFinite { index: i * TOGETHER * cols + index, value }
            }
            other => other,
        })
    })?;
    Ok(out)
}

/// The weights `[out, in]` that stored blocks stand for.
///
/// # Errors
/// `BadInput` when the bytes are not `shape` weights of this type.
pub fn dequantize(bytes: &[u8], ty: GgmlType, shape: [usize; 2]) -> Result<Array2<f32>> {
    let [rows, cols] = shape;
    let mut out = vec![0.0; rows * cols];
    quant::dequantize_rows(ty, bytes, &mut out).map_err(fault)?;
    shaped(rows, cols, out)
}

/// A linear layer `[out, in]` rounded to nearest and packed as a checkpoint folder of `format` holds it (`gptq`, `fp8`,
/// `nf4`, `mlx-4bit`, ...): its tensors by suffix. `dtype` is the checkpoint's type (F16, BF16 or F32), in which scales
/// are kept.
///
/// # Errors
/// `Request` for an unknown format; `BadInput` for a shape that it cannot store, or weights that are not finite.
pub fn pack(matrix: ArrayView2<f32>, format: &str, dtype: GgmlType) -> Result<Vec<Piece>> {
    let spec = packed::parse(format).ok_or_else(|| Error::request(format!("unknown format '{format}'")))?;
    let (rows, cols) = matrix.dim();
    let matrix = matrix.as_standard_layout();
    spec.quantize_nearest(&Module::new(matrix.as_slice().unwrap_or_default(), rows, cols, dtype))
}

/// A tensor of a model by its GGUF name, as `[out, in]`: transforms of the conversion applied, vectors as one row, stacked
/// experts one below the other.
///
/// # Errors
/// `Request` when the model has no such tensor; otherwise those of reading.
pub fn read(source: &SourceModel, name: &str) -> Result<Array2<f32>> {
    let tensor = source.model.tensors.iter().find(|t| t.name == name);
    let tensor = tensor.ok_or_else(|| Error::request(format!("the model has no tensor '{name}'")))?;
    let (rows, cols) = (tensor.row_count(), tensor.cols());
    let mut out = vec![0.0; rows * cols];
    tensor.read_rows(&source.ckpt, 0..rows, &mut Vec::new(), &mut out)?;
    shaped(rows, cols, out)
}

/// The logits `[tokens, vocabulary]` of a model after each of these tokens, from an empty cache.
///
/// # Errors
/// Those of the forward pass: a token outside the vocabulary, activations that are not finite.
pub fn logits(model: &mut Runnable, tokens: &[u32]) -> Result<Array2<f32>> {
    let mut all = Vec::new();
    model.run(&[tokens.to_vec()], 0)?;
    let vocab = model.vocab();
    model.logits(0, 0..tokens.len(), &mut |_, rows| {
        all.extend(rows.iter());
        Ok(())
    })?;
    shaped(tokens.len(), vocab, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, s};

    #[test]
    fn a_weight_that_is_no_number_is_found_where_it_stands() {
        let (rows, cols) = (3 * TOGETHER, 32);
        let mut weights = vec![1.0; rows * cols];
        let index = (2 * TOGETHER + 5) * cols + 7;
        weights[index] = f32::NAN;
        let fault = by_search(GgmlType::Q8_0, &weights, cols, None).unwrap_err();
        assert!(matches!(fault, QuantError::NotFinite { index: found, .. } if found == index), "{fault}");
    }

    #[test]
    fn views_of_any_layout_give_the_bytes_of_their_rows() {
        let values: Vec<f32> = (0..4 * 512).map(|i| (i as f32 * 0.37).sin()).collect();
        let matrix = Array2::from_shape_vec((4, 512), values.clone()).unwrap();
        let mut expected = vec![0; 4 * 2 * 144];
        quant::quantize_rows(GgmlType::Q4_K, &values, 512, None, &mut expected).unwrap();
        assert_eq!(quantize(matrix.view(), GgmlType::Q4_K, None).unwrap(), expected);
        // A transposed copy, seen the right way round.
        let columns = Array2::from_shape_fn((512, 4), |(c, r)| matrix[(r, c)]);
        assert_eq!(quantize(columns.t(), GgmlType::Q4_K, None).unwrap(), expected);
        let half = quantize(matrix.slice(s![.., ..256]), GgmlType::Q4_K, None).unwrap();
        assert_eq!(half[..144], expected[..144]);

        let back = dequantize(&expected, GgmlType::Q4_K, [4, 512]).unwrap();
        assert!(back.iter().zip(&values).all(|(b, v)| (b - v).abs() < 0.1));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let matrix = Array2::<f32>::zeros((2, 256));
        let narrow = matrix.slice(s![.., ..200]);
        assert!(quantize(narrow, GgmlType::Q4_K, None).is_err());
        assert!(quantize(matrix.view(), GgmlType::IQ2_XXS, None).is_err());
        let short = Array1::<f32>::ones(255);
        assert!(quantize(matrix.view(), GgmlType::Q4_K, Some(short.view())).is_err());
        assert!(dequantize(&[0; 143], GgmlType::Q4_K, [1, 256]).is_err());
        assert!(pack(narrow, "nonsense", GgmlType::F16).is_err());
    }

    #[test]
    fn packed_tensors_have_the_shapes_of_the_format() {
        let matrix = Array2::from_shape_fn((8, 128), |(r, c)| (r as f32 - c as f32) / 100.0);
        let pieces = pack(matrix.view(), "mlx-4bit", GgmlType::F16).unwrap();
        let shapes: Vec<(&str, &[usize])> = pieces.iter().map(|p| (p.suffix, p.shape.as_slice())).collect();
        let expected: [(&str, &[usize]); 3] = [("biases", &[8, 2]), ("scales", &[8, 2]), ("weight", &[8, 16])];
        assert_eq!(shapes, expected);
    }
}
