//! What the tensors of a checkpoint mean: hyper-parameters, families as rows of data, tokenizers, and the mapping from
//! source tensors to GGUF tensors. It decides from metadata and shapes; weights pass through, row by row, when asked.

mod adapter;
mod anatomy;
pub(crate) mod back;
mod blueprint;
pub mod config;
pub(crate) mod contradictions;
pub(crate) mod families;
mod family;
mod fault;
pub(crate) mod graph;
mod hf_config;
mod hf_json;
mod kept;
mod keys;
mod known;
mod layers;
pub(crate) mod mapping;
mod mistral;
pub(crate) mod modules;
pub(crate) mod naming;
mod opaque;
mod role;
mod source_model;
mod source_names;
mod stacks;
mod tensor;
mod understood;

// Private, but for this repository's tests and benches.
cfg_if::cfg_if! {
    if #[cfg(feature = "internals")] {
        pub mod config_keys;
        pub mod metadata;
        pub mod tokenizer;
        pub use families::tokenizer_of;
        /// What the tokenizer of a model does differently.
        pub fn tokenizer_facts(model: &Model) -> &'static family::TokenizerFacts {
            model.tokenizer_facts()
        }
    } else {
        pub(crate) mod config_keys;
        pub(crate) mod metadata;
        pub(crate) mod tokenizer;
    }
}

pub use crate::source::{Checkpoint, SourceFile, TensorMeta};
pub(crate) use blueprint::WITHOUT_MTP;
pub use blueprint::{Cache, Mtp, Part};
pub use config::{Config, LayerConfig};
pub use families::{Family, Role};
pub use fault::fault;
pub use kept::keeps_f32;
pub use known::{Known, known};
pub use mapping::expected_tensors;
pub(crate) use mapping::stored_head_differs;
pub use metadata::gguf_metadata;
pub use opaque::preset_facts;
pub use source_model::{SourceModel, name_of};
pub(crate) use source_names::TOWER;
pub use tensor::{Gather, Generated, MappedTensor, RowOrder, ValueMap};
pub use tokenizer::{DecodeStream, Message, Tokenizer};
pub use understood::{Model, Opaque};
