//! The arithmetic that [`quantize`](https://crates.io/crates/quantize-cli) is built on: it knows numbers and blocks, no
//! files and no models. A package of its own, so that it is compiled once, with more optimization than what calls it.
//! Made for that program; nothing here is kept stable for others.
//!
//! [`quant`] has ggml's block types, [`feedback`] rounding with error feedback, [`kernel`] products over stored weights,
//! [`minifloat`] the floats of four and eight bits, on the vectors of [`simd`] and the one switch of instructions, [`isa`].

pub mod dtype;
pub mod feedback;
pub mod isa;
pub mod kernel;
#[doc(hidden)]
pub mod made;
pub mod minifloat;
pub mod quant;
pub mod simd;
