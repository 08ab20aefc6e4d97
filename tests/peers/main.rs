//! Against what other programs made, stored in `tests/golden` and `tests/fixtures`: ggml's blocks, llama-quantize's types,
//! packed layouts, chat templates as Python renders them, llama.cpp's tokenizer vectors.

#[path = "../common/mod.rs"]
mod common;

mod chat_templates;
mod ggml_blocks;
mod packed;
mod presets;
mod presets_architectures;
mod tokenizer_vectors;
