//! What the tensors of a checkpoint mean: hyper-parameters, families as rows of data, tokenizers, and the mapping from
//! source tensors to GGUF tensors. It decides from metadata and shapes; weights pass through, row by row, when asked.

mod anatomy;
pub(crate) mod back;
mod blueprint;
pub(crate) mod families;
mod family;
mod fault;
pub(crate) mod graph;
mod hf_config;
mod hf_json;
mod kept;
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
        pub mod config;
        pub mod keys;
        pub mod metadata;
        pub mod tokenizer;
    } else {
        pub(crate) mod config;
        pub(crate) mod keys;
        pub(crate) mod metadata;
        pub(crate) mod tokenizer;
    }
}

pub use crate::source::Checkpoint;
pub(crate) use blueprint::WITHOUT_MTP;
pub use blueprint::{Cache, Mtp, Part};
pub use config::{Config, LayerConfig};
pub use families::{Family, Role, tokenizer_of};
pub use fault::fault;
pub use kept::keeps_f32;
pub use known::{Known, known};
pub use mapping::expected_tensors;
pub(crate) use mapping::stored_head_differs;
pub use metadata::gguf_metadata;
pub use opaque::preset_facts;
pub use source_model::{SourceModel, name_of};
pub(crate) use source_names::TOWER;
pub use tensor::{Generated, MappedTensor, RowOrder, ValueMap};
pub use understood::{Model, Opaque};
