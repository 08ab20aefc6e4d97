//! Error feedback.

pub mod ggml;
