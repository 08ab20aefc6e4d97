//! Finished files. Everything is written beside its final name, synced, checked and only then renamed, so that nothing
//! that looks finished ever is not. No algorithm lives here: callers hand over bytes and say where they go.

pub mod folder;
pub mod gguf;
pub mod pieces;
pub mod places;
pub mod publish;
pub mod safetensors;

use crate::Result;

/// Where derived bytes go: into an artifact, or against one that is being verified.
pub trait Sink: Sync {
    /// Takes a piece of tensor number `tensor` of the output that begins at byte `offset` of it. Called from any thread.
    fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()>;
}
