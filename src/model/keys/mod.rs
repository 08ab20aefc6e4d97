//! GGUF's metadata keys as rows: a name, what a configuration says under it, and what reading it does to a configuration.
//! Families list the keys that llama.cpp's converter writes for them, in its order. `general.*` and the tokenizer's keys
//! are not here.

pub(in crate::model) mod rows;
pub(in crate::model) mod stored;
