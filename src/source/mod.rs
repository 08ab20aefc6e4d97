//! A checkpoint as bytes on disk: which tensors there are, where they lie, and reading a range of one. It knows
//! safetensors and GGUF containers and nothing of models or quantization.

use crate::quant::GgmlType;
use std::ops::Range;

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Dtype {
    /// Anything a GGUF file can hold; safetensors' F32, F16, BF16, F64, I8 .. I64 map to these too.
    Ggml(GgmlType),
    U8,
    U16,
    U32,
    U64,
    Bool,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    F4,
}

/// A tensor of a checkpoint. `shape` is outermost first (`[out, in]` for a linear layer), whatever the container says.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMeta {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Byte range inside that file.
    pub range: Range<u64>,
}
