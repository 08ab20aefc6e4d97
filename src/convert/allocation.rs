//! How the budget of a GGUF file was spent, as results and reports show it.

use serde::{Deserialize, Serialize};

/// How a budget was spent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocation {
    /// Bytes that the tensors may take.
    pub budget: u64,
    pub spent: u64,
    /// Expected KL divergence from the source, nats per token, if the losses of single tensors add up.
    pub predicted_kl: f64,
    /// The same for the types of the preset that the size is taken from.
    pub preset_predicted_kl: Option<f64>,
    pub sensitivities: Vec<Sensitivity>,
    pub tensors: Vec<AllocatedTensor>,
}

/// What a group of tensors was measured at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sensitivity {
    pub part: String,
    /// First layer, and the one after the last; absent outside the layers.
    pub layers: Option<(usize, usize)>,
    pub tensors: usize,
    #[serde(rename = "type")]
    pub ty: String,
    /// KL divergence, nats per token, with the group alone in that type.
    pub kl: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllocatedTensor {
    pub tensor: String,
    #[serde(rename = "type")]
    pub ty: String,
    pub bytes: u64,
    /// What the tensor is expected to add to the KL divergence.
    pub kl: f64,
}
