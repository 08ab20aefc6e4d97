//! What a conversion would write, before a weight is read: every tensor's type and exact size, the file's size, memory
//! and disk needed, and the devices that can run the result.

pub mod cost;
pub mod devices;

use crate::calibration::imatrix::is_required;
use crate::gguf::TensorInfo;
use crate::model::{Config, Role};

use crate::quant::presets::{Choice, Preset, Why};
use crate::quant::{GgmlType, codec};
use serde::Serialize;

/// One tensor of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    #[serde(flatten)]
    pub choice: Choice,
    pub bytes: u64,
}

/// One target of the plan. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct TargetPlan {
    #[serde(rename = "type")]
    pub name: &'static str,
    pub file_bytes: u64,
    pub tensor_bytes: u64,
    /// The same with the padding between tensors.
    #[serde(skip)]
    pub padded_bytes: u64,
    pub bits_per_weight: f64,
    /// Weights that did not get the type they should have.
    pub fallback_weights: u64,
    /// Whether this type cannot be made without an importance matrix. The rows are then those with one.
    pub needs_importance: bool,
    pub rows: Vec<Row>,
}

/// The whole plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub weights: u64,
    /// `None` when planned from config.json alone.
    pub source_bytes: Option<u64>,
    /// Memory of the conversion itself.
    pub peak_memory: u64,
    pub disk: u64,
    /// Bytes of keys and values per token of context, in 16 bits. `None` for a model of an unknown family.
    pub kv_bytes_per_token: Option<u64>,
    pub targets: Vec<TargetPlan>,
}

/// The plan of one target. `header` is the size of everything before the tensor data.
pub fn target(preset: &Preset, tensors: &[(String, Vec<usize>)], choices: &[Choice], header: u64) -> TargetPlan {
    let (mut tensor_bytes, mut padded, mut weights, mut fallback_weights) = (0, 0, 0, 0);
    let mut needs_importance = false;
    let mut rows = Vec::with_capacity(tensors.len());
    for ((name, shape), choice) in tensors.iter().zip(choices) {
        let bytes = bytes_of(shape, choice.got);
        let n: u64 = shape.iter().map(|d| *d as u64).product();
        tensor_bytes += bytes;
        padded += bytes.next_multiple_of(crate::gguf::DEFAULT_ALIGNMENT);
        weights += n;
        if choice.why == Why::Fallback {
            fallback_weights += n;
        }
        needs_importance |= self::needs_importance(preset, name, choice.got);
        rows.push(Row { name: name.clone(), shape: shape.clone(), choice: choice.clone(), bytes });
    }
    let bits_per_weight = 8.0 * tensor_bytes as f64 / weights.max(1) as f64;
    let file_bytes = header + padded;
    TargetPlan {
        name: preset.name,
        file_bytes,
        tensor_bytes,
        padded_bytes: padded,
        bits_per_weight,
        fallback_weights,
        needs_importance,
        rows,
    }
}

/// Whether this tensor cannot be made without an importance matrix, or comes out as garbage.
pub fn needs_importance(preset: &Preset, name: &str, ty: GgmlType) -> bool {
    codec(ty).is_some_and(|c| c.needs_importance) || is_required(name, ty, preset.name)
}

/// Bytes of a tensor.
pub fn bytes_of(shape: &[usize], ty: GgmlType) -> u64 {
    let dims = shape.iter().rev().map(|d| *d as u64).collect();
    TensorInfo { name: String::new(), dims, ty, offset: 0 }.bytes().unwrap_or(0)
}

/// A header's size where there is no tokenizer to measure: keys, tensor table, and a typical vocabulary (token, score,
/// type, merge) per entry.
pub fn header_estimate(config: &Config, tensors: &[(String, Vec<usize>)]) -> u64 {
    let table: u64 = tensors.iter().map(|(name, shape)| (8 + name.len() + 4 + 8 * shape.len() + 4 + 8) as u64).sum();
    4096 + table + 45 * config.vocab as u64
}

/// Bytes of 16-bit keys and values that one token of context takes. Layers with a sliding window stop growing at it, so
/// this is an upper bound for them.
pub fn kv_bytes_per_token(config: &Config) -> u64 {
    2 * 2 * (config.layers * config.kv_heads * config.head_dim) as u64
}

/// Bytes that a conversion holds at once: per thread a piece of decoded rows, its stored bytes and the encoded form for
/// each target; and the vocabulary.
pub fn conversion_memory(config: &Config, tensors: &[(String, Vec<usize>)], threads: usize) -> u64 {
    let widest = tensors.iter().filter_map(|(_, s)| s.last()).max().copied().unwrap_or(0);
    let piece = crate::convert::PIECE.max(widest) as u64;
    40_000_000 + 700 * config.vocab as u64 + threads as u64 * piece * 12
}

/// The types a 16-bit conversion gives tensors that are not quantized.
pub fn kept_type(name: &str, shape: &[usize], source: Option<GgmlType>) -> GgmlType {
    if crate::model::metadata::keeps_f32(name, shape) {
        return GgmlType::F32;
    }
    match source {
        Some(ty @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) => ty,
        Some(ty) if !ty.is_plain() => ty,
        _ => GgmlType::F16,
    }
}

/// Names and shapes of a model known by its configuration only, in GGUF order.
pub fn tensors_of(config: &Config) -> Vec<(String, Vec<usize>)> {
    crate::model::expected_tensors(config)
        .into_iter()
        .map(|(name, shape, _role, _): (_, _, Role, _)| (name, shape))
        .collect()
}
