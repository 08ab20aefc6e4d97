//! How a budget was spent, as results and reports show it.

use crate::eval::Loss;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a budget was spent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocation {
    /// Bytes that the tensors may take.
    pub budget: u64,
    /// Bytes that the tensors take.
    pub spent: u64,
    /// In what losses are measured.
    #[serde(default, skip_serializing_if = "Loss::is_divergence")]
    pub loss: Loss,
    /// Expected KL divergence from the source, nats per token, or 1 − cosine, if the losses of single tensors add up.
    pub predicted_kl: f64,
    /// The same for the types of the preset that the size is taken from.
    pub preset_predicted_kl: Option<f64>,
    /// What groups of tensors were measured at.
    pub sensitivities: Vec<Sensitivity>,
    /// What each tensor got.
    pub tensors: Vec<AllocatedTensor>,
}

impl Allocation {
    /// What the manifest of a folder says, where it has a budget.
    pub fn of_folder(manifest: &Value) -> Option<Self> {
        manifest.get("allocation").and_then(|allocation| Self::deserialize(allocation).ok())
    }
}

/// What a group of tensors was measured at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sensitivity {
    /// Which tensors of a layer.
    pub part: String,
    /// First layer, and the one after the last; absent outside the layers.
    pub layers: Option<(usize, usize)>,
    /// How many tensors are in the group.
    pub tensors: usize,
    /// The type that was tried.
    #[serde(rename = "type")]
    pub ty: String,
    /// KL divergence, nats per token, or 1 − cosine, with the group alone in that type.
    pub kl: f64,
}

/// The type that a tensor got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllocatedTensor {
    /// The tensor's name in the file, or the module's in the folder; that of GGUF for experts, which are stored alike.
    pub tensor: String,
    /// The type's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// What the tensor is expected to add to the loss.
    pub kl: f64,
}
