//! Tests that call the library.

#[path = "../common/mod.rs"]
mod common;

mod architecture;
mod awq;
mod configurations;
mod containers;
mod encoders;
mod engines;
mod eval;
mod families;
mod faults;
mod golden_logits;
mod infer;
mod layerwise;
mod lineages;
mod lora;
mod lora_parameters;
mod model;
mod model_variants;
mod mtp;
mod projectors;
mod report;
mod resume;
mod resume_inputs;
mod reverse;
mod together;
mod tokenizer;
mod tokenizer_folders;
