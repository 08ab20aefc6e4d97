//! What the tensors of a checkpoint mean: hyper-parameters, families as rows of data, tokenizers, and the mapping from
//! source tensors to GGUF tensors. It decides from metadata and shapes; weights pass through, row by row, when asked.

pub mod config;
pub mod families;
mod family;
mod fault;
pub mod graph;
mod hf_config;
mod hf_json;
pub mod keys;
mod layers;
pub mod mapping;
pub mod metadata;
pub mod modules;
pub mod naming;
mod opaque;
mod role;
mod source_model;
mod tensor;
pub mod tokenizer;
mod understood;

pub use config::{Config, LayerConfig};
pub use families::{Family, Role};
pub use fault::fault;
pub use mapping::expected_tensors;
pub use metadata::{gguf_metadata, keeps_f32};
pub use opaque::preset_facts;
pub use source_model::{SourceModel, name_of};
pub use tensor::{MappedTensor, RowOrder, ValueMap};
pub use understood::{Generated, Model, Opaque};
