//! Channel scaling before quantization: AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization", 2023) and
//! SmoothQuant (Xiao et al., 2022). Channels whose inputs are large get finer steps: their columns are multiplied by a
//! factor that the norm or the linear layer in front of them is divided by.
//!
//! [`mod@groups`] says where factors can be moved, [`fold`] moves them, the others choose them. Everything here is a
//! function of weights and of moments of the inputs; files, packing and the order of layers are the caller's.

pub mod clip;
pub mod fold;
mod grid;
pub mod groups;
mod refine;
mod search;

pub use fold::{Fold, representable};
pub use grid::Grid;
pub use groups::{Group, groups};
pub use search::{Consumer, Options, search, smooth};
