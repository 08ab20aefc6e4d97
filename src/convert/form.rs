//! What a budget chooses from: a way to store a matrix, as a type of GGUF files or as a format of folders; and what a matrix
//! is in the latter.

use crate::feedback::{Factor, fp4, int};
use crate::kernel::RowSource;
use crate::packed::{self, Fp4Codes, Piece, Scheme, Scope, Spec, StoredPiece};
use crate::quant::GgmlType;
use crate::{Error, Result};
use serde_json::json;

/// A way to store a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// In a GGUF file.
    Ggml(GgmlType),
    /// In a folder, its codes chosen with error feedback or to nearest.
    Module { spec: Spec, feedback: bool },
    /// In a folder, as it is.
    Kept,
}

impl Form {
    /// Bits per weight, without scales in folders.
    pub fn bits(self) -> f64 {
        match self {
            Form::Ggml(ty) => ty.bits(),
            Form::Module { spec, .. } => spec.bits.into(),
            Form::Kept => 16.0,
        }
    }
}

/// A matrix of a folder before it is rounded, and how it is.
pub struct Matrix<'a> {
    pub module: packed::Module<'a>,
    /// With error feedback; `None`: to nearest, as the format's own tool does it.
    pub feedback: Option<(&'a Factor, int::Search)>,
}

impl Matrix<'_> {
    /// What a loader makes of it, rounded and packed: `[rows, cols]`.
    ///
    /// # Errors
    /// `BadInput` for weights that are not finite.
    pub fn decoded(&self, spec: &Spec) -> Result<Vec<f32>> {
        const NAME: &str = "model.layers.0";
        let module = &self.module;
        let pieces = match self.feedback {
            Some((factor, search)) => match spec.integer_grid(module.cols, module.dtype) {
                Some(grid) => {
                    let (codes, _) = int::quantize(module.weights, factor, &grid, search);
                    spec.pack_codes(&codes, module.dtype)?
                }
                None => floats(spec, module, factor)?.0,
            },
            None => spec.quantize_nearest(module)?,
        };
        let config = json!({ "quantization_config": spec.quantization_config(Scope::default()) });
        let scheme = Scheme::of(&config).map_err(Error::Internal)?;
        let scheme = scheme.ok_or_else(|| Error::Internal(format!("{spec} names no format")))?;
        let stored = pieces.into_iter().map(|Piece { suffix, dtype, shape, data }| {
            let suffix = suffix.to_string();
            StoredPiece { suffix, dtype, shape, data }
        });
        let packed = scheme.unpack(NAME, stored.collect()).map_err(Error::Internal)?;
        let mut out = vec![0.0; module.rows * module.cols];
        packed.decode(0..module.rows, &mut out);
        Ok(out)
    }
}

/// Four-bit floats with error feedback, under the global scales of rounding to nearest, packed; and the loss.
///
/// # Errors
/// Those of [`Fp4Codes::nearest`].
pub fn floats(spec: &Spec, module: &packed::Module, factor: &Factor) -> Result<(Vec<Piece>, f64)> {
    let mut codes = Fp4Codes::nearest(spec, module)?;
    let rounded = fp4::quantize(module.weights, factor, &codes.grid());
    (codes.codes, codes.scales) = (rounded.codes, rounded.scales);
    Ok((packed::pack_fp4(spec, &codes, module.dtype)?, rounded.loss))
}
