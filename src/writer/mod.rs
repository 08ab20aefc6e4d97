//! Finished files. Everything is written beside its final name, synced, checked and only then renamed, so that nothing
//! that looks finished ever is not. No algorithm lives here: callers hand over bytes and say where they go.

pub mod atomic;
pub mod folder;
pub mod gguf;
pub mod safetensors;

pub use atomic::PartialFile;
