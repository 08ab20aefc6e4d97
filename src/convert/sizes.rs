//! Sizes of what a conversion writes and holds, before a weight is read: every tensor's type and exact size, the file's,
//! and the memory that the work takes.

use crate::gguf::TensorInfo;
use crate::model::Config;
use crate::quant::presets::{Choice, Preset, Why};
use crate::quant::{GgmlType, codec};
use serde::Serialize;

/// One tensor of a file.
#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    /// The tensor's name in the file.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// The type, and why.
    #[serde(flatten)]
    pub choice: Choice,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// A GGUF file by tensors. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct FileSizes {
    /// What the file is called by.
    #[serde(rename = "type")]
    pub name: String,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Bytes of the tensors alone.
    pub tensor_bytes: u64,
    /// The same with the padding between tensors.
    #[serde(skip)]
    pub padded_bytes: u64,
    /// Bits per weight over all tensors.
    pub bits_per_weight: f64,
    /// Weights that did not get the type they should have.
    pub fallback_weights: u64,
    /// Whether this type cannot be made without an importance matrix. The rows are then those with one.
    pub needs_importance: bool,
    /// All tensors, in file order.
    pub rows: Vec<TensorRow>,
}

impl FileSizes {
    /// What each tensor becomes.
    pub fn types(&self) -> Vec<GgmlType> {
        self.rows.iter().map(|row| row.choice.got).collect()
    }

    /// Tensors that did not get the type they should have.
    pub fn fallbacks(&self) -> impl Iterator<Item = &TensorRow> {
        self.rows.iter().filter(|row| row.choice.why == Why::Fallback)
    }
}

/// The sizes of a file called `name`, with the rules of `preset`. `header` is the size of everything before the tensor
/// data.
pub fn of_file(
    name: &str,
    preset: &Preset,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, Choice)>,
    header: u64,
) -> FileSizes {
    let (mut tensor_bytes, mut padded, mut weights, mut fallback_weights) = (0, 0, 0, 0);
    let mut needs_importance = false;
    let mut rows = Vec::new();
    for (name, shape, choice) in tensors {
        let bytes = bytes_of(&shape, choice.got);
        let n: u64 = shape.iter().map(|d| *d as u64).product();
        tensor_bytes += bytes;
        padded += bytes.next_multiple_of(crate::gguf::DEFAULT_ALIGNMENT);
        weights += n;
        if choice.why == Why::Fallback {
            fallback_weights += n;
        }
        needs_importance |= self::needs_importance(preset, &name, choice.got);
        rows.push(TensorRow { name, shape, choice, bytes });
    }
    let bits_per_weight = 8.0 * tensor_bytes as f64 / weights.max(1) as f64;
    let file_bytes = header + padded;
    FileSizes {
        name: name.to_string(),
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
    codec(ty).is_some_and(|c| c.needs_importance) || ty.requires_importance(name, preset.name)
}

/// Bytes of a tensor.
pub fn bytes_of(shape: &[usize], ty: GgmlType) -> u64 {
    let dims = shape.iter().rev().map(|d| *d as u64).collect();
    TensorInfo { name: String::new(), dims, ty, offset: 0 }.bytes().unwrap_or(0)
}

/// A header's size where there is no tokenizer to measure: keys, tensor table, and a typical vocabulary (token, score,
/// type, merge) per entry.
pub fn header_estimate<'a>(config: &Config, tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> u64 {
    let table: u64 = tensors.map(|(name, shape)| (8 + name.len() + 4 + 8 * shape.len() + 4 + 8) as u64).sum();
    4096 + table + 45 * config.vocab as u64
}

/// Bytes of 16-bit keys and values that one token of context takes. Layers with a sliding window stop growing at it, so
/// this is an upper bound for them.
pub fn kv_bytes_per_token(config: &Config) -> u64 {
    let own = config.attention().filter(|h| h.peculiar.shared.is_none());
    own.map(|h| 2 * (h.k_width() + h.v_width()) as u64).sum()
}

/// Bytes that a conversion holds at once: per thread a piece of decoded rows, its stored bytes and the encoded form for
/// each target; and the vocabulary.
pub fn conversion_memory(config: &Config, tensors: &[TensorRow], threads: usize) -> u64 {
    let widest = tensors.iter().filter_map(|t| t.shape.last()).max().copied().unwrap_or(0);
    let piece = super::stream::PIECE.max(widest) as u64;
    40_000_000 + 700 * config.vocab as u64 + threads as u64 * piece * 12
}

/// The types a 16-bit conversion gives tensors that are not quantized.
pub fn kept_type(name: &str, shape: &[usize], source: Option<GgmlType>) -> GgmlType {
    if crate::model::keeps_f32(name, shape) {
        return GgmlType::F32;
    }
    match source {
        Some(ty @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) => ty,
        Some(ty) if !ty.is_plain() => ty,
        _ => GgmlType::F16,
    }
}
