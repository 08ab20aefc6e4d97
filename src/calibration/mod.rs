//! Calibration: the texts a model is shown ([`data`]), what its linear layers see meanwhile ([`stats`]), and importance
//! matrices in llama.cpp's formats ([`imatrix`]). What a quantizer does with an importance is its own matter (`quant`).

pub(crate) mod bundled;
pub mod data;
pub mod hessians;
pub mod imatrix;
pub mod layerwise;
pub mod moments;
pub mod overlap;
mod parquet;
pub mod pass;
mod probe;
pub mod resume;
pub mod stats;
mod streams;
pub mod summary;
pub mod totals;
