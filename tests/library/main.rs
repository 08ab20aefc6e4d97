//! Tests that call the library.

#[path = "../common/mod.rs"]
mod common;

mod architecture;
mod awq;
mod containers;
mod eval;
mod families;
mod infer;
mod layerwise;
mod lineages;
mod model;
mod model_variants;
mod report;
mod resume;
mod tokenizer;
mod tokenizer_folders;
