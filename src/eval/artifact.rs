//! What is known of a model on disk and of its tensors, as reports show it. It measures nothing.

use super::Estimate;
use serde::{Deserialize, Serialize};

/// A model on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Short name for tables and charts, for instance `Q4_K_M`.
    pub name: String,
    /// Where it lies.
    pub path: String,
    /// `gguf`, `safetensors`, ...
    pub format: String,
    /// Bytes of all its weight files.
    pub bytes: u64,
    /// Weights of the model.
    pub parameters: u64,
    /// Bits per weight: 8 · bytes of tensor data / parameters.
    pub bpw: f64,
    /// How the format itself has engines round activations: `fp8`, `int8`, `llm.int8`, `nvfp4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<String>,
    /// The hash of its file, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// How far one tensor is from its source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorDamage {
    /// The tensor's name.
    pub name: String,
    /// The layer that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// What the tensor is for: `attn_q`, `ffn_down`, `token_embd`, ...
    pub role: String,
    /// The type it is stored in.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// ‖W − W'‖ / ‖W‖ (Frobenius).
    pub rel_error: f64,
    /// The same with every column weighted by the mean square of the activation it meets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rel_error_weighted: Option<f64>,
}

/// The loss with one group of tensors quantized and all others as in the base.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// What the tensors have in common.
    pub group: String,
    /// How many they are.
    pub tensors: usize,
    /// Bytes of the group as quantized.
    pub bytes: u64,
    /// The divergence with these tensors alone quantized.
    pub kld: Estimate,
}
