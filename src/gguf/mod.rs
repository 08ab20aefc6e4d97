//! The GGUF container: header, metadata, tensor table. See `value` for metadata types.

pub mod value;
pub use value::{Array, Metadata, Value};
