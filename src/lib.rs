//! `quantize` turns a checkpoint into the quantized artifacts people run, and measures what was lost.
//!
//! Data flows one way: [`source`] (bytes on disk) → [`model`] (what the tensors mean) → [`quant`] (blocks) →
//! [`writer`] (a finished file) → [`infer`] and [`eval`] (what it is worth) → [`report`]. [`gguf`] is the container
//! format that both ends share, [`convert`] the streaming pass that joins them, [`cli`] the only place that reads flags or the environment.

pub mod awq;
pub mod calibration;
pub mod cli;
pub mod control;
pub mod convert;
pub mod dtype;
pub mod error;
pub mod escape;
pub mod eval;
pub mod feedback;
pub mod gguf;
pub mod infer;
pub mod input;
pub mod isa;
pub mod kernel;
pub mod model;
pub mod packed;
pub mod quant;
pub mod report;
mod simd;
pub mod source;
pub mod writer;

pub use control::{Cancel, Control, Notice, Phase, Report, Run, Unit};
pub use error::{Error, Result};
