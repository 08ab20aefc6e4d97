//! What the tensors of a checkpoint mean: hyper-parameters, families as rows of data, tokenizers, and the mapping from
//! source tensors to GGUF tensors. It reads metadata only, never weights.

pub mod config;
pub use config::Config;
