//! The ggml types beyond the round and K-quant ones, one file per family: codebook types (IQ*), ternary (TQ*), 4-bit float
//! and 1- or 2-bit types. This is the specification: scalar code whose bytes equal ggml's. Nothing here names lanes; the
//! steps of the codebook searches that have a lane form come through [`steps::Steps`].

pub(super) mod binary;
pub(crate) mod codes;
pub(super) mod fp4;
pub(crate) mod grids;
pub(crate) mod iq1;
pub(crate) mod iq2;
pub(crate) mod iq3;
pub(crate) mod iq4;
pub(super) mod numeric;
pub(super) mod one_by_one;
pub(super) mod search;
pub(super) mod steps;
pub(super) mod ternary;
#[cfg(test)]
pub(super) mod tests;
