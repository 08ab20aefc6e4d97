//! The GGUF container: header, metadata and tensor table, read and written. Tensor data is not touched here; a
//! checkpoint reads it (`source`) and a writer streams it. Metadata types are in [`value`]. Source of the format: ggml's
//! `docs/gguf.md`, with `gguf.cpp` where the text leaves a choice.

mod read;
mod write;

// Private, but for this repository's tests and benches.
cfg_if::cfg_if! {
    if #[cfg(feature = "internals")] {
        pub mod value;
    } else {
        pub(crate) mod value;
    }
}

pub use read::{parse_header, read_header};
pub use value::{Array, Metadata, Value};
pub use write::{encode_header, layout};

use crate::quant::GgmlType;

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written; 2 and 3 are read (they differ in nothing but big-endian support).
pub const VERSION: u32 = 3;
/// Says which shards belong together: the same in all shards of one run, another in those of other runs.
pub const SPLIT_SET: &str = "quantize.split.set";
/// Bytes that tensor offsets are multiples of, unless the metadata says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key that says otherwise (a `u32`).
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// ggml's `GGML_MAX_DIMS`.
pub const MAX_DIMS: usize = 4;

/// A row of the tensor table.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// ggml's order: row length first (`[in, out]` for a linear layer). No dimensions at all is a single number.
    pub dims: Vec<u64>,
    /// The type of its blocks.
    pub ty: GgmlType,
    /// Where the data begins, in bytes from the start of the data section.
    pub offset: u64,
}

impl TensorInfo {
    /// How many weights; `None` when the product overflows.
    pub fn elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Bytes of data; `None` when a row is not a whole number of blocks or the size overflows. Always known for the
    /// tensors of a [`Header`] that was read.
    pub fn bytes(&self) -> Option<u64> {
        let (block, bytes) = (self.ty.block() as u64, self.ty.block_bytes() as u64);
        let row = self.dims.first().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return None;
        }
        (self.elements()? / block).checked_mul(bytes)
    }
}

/// Everything before the tensor data of one file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The version of the format.
    pub version: u32,
    /// The keys and values.
    pub metadata: Metadata,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
    /// Bytes to whose multiples tensors are aligned.
    pub alignment: u64,
    /// Where the data section begins in the file, in bytes.
    pub data_start: u64,
    /// Bytes of the whole file.
    pub file_len: u64,
}

impl Header {
    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// `n` rounded up to a multiple of `alignment`; `None` on overflow.
pub fn align_up(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
}
