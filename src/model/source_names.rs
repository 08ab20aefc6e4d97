//! What the names of a checkpoint's tensors say in any family: which half of an image-and-text model they belong to, which
//! tensors a text model has no use for, and in which order llama.cpp's converter writes them.

use super::tensor::MappedTensor;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use std::collections::HashMap;

/// The layer that a tensor belongs to: the first number in its name.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The name without the part that says which half of an image-and-text model it belongs to.
pub(super) fn text_name(name: &str) -> String {
    name.replacen("language_model.", "", 1).replacen("model.text_model.", "model.", 1)
}

pub(crate) const TOWER: &str = "belongs to an image or sound encoder; a text model does not use it";

/// Why a tensor may be left out of a text model of any family, by its name without `language_model.`.
pub(super) fn drop_reason_of_any(t: &TensorMeta, name: &str) -> Option<&'static str> {
    if let Some(reason) = drop_reason_of_buffer(t, name) {
        return Some(reason);
    }
    if matches!(t.shape.as_slice(), [1, 1, n, m] if n == m) && name.ends_with(".bias") {
        return Some("a mask that is computed from the configuration");
    }
    if t.elements() == 1 && name.ends_with("_scale") && !name.contains("hc_") {
        return Some("a scale of the key-value cache or of activations, which GGUF and other formats do not take over");
    }
    const TOWERS: [&str; 6] = [
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
        "vision_model.",
        "model.vision_model.",
    ];
    if TOWERS.iter().any(|p| name.starts_with(p)) || of_another_sense(name) {
        return Some(TOWER);
    }
    None
}

/// Why a tensor is no weight of any part of a model.
pub(super) fn drop_reason_of_buffer(t: &TensorMeta, name: &str) -> Option<&'static str> {
    if t.elements() == 0 {
        return Some("it has no elements");
    }
    if matches!(t.dtype, Dtype::Bool | Dtype::Ggml(GgmlType::I64 | GgmlType::I32)) {
        return Some("a buffer: it holds no weights");
    }
    const ENDS: [&str; 6] = [
        ".rotary_emb.inv_freq",
        ".rotary_emb.original_inv_freq",
        ".rotary_emb.cos_cached",
        ".rotary_emb.sin_cached",
        ".masked_bias",
        ".attention.bias",
    ];
    if ENDS.iter().any(|end| name.ends_with(end)) {
        return Some("a buffer that is computed from the configuration");
    }
    // Transformer Engine's, quantization-aware training's, and the value head of reinforcement learning (TRL).
    let of_training = name.ends_with("._extra_state")
        || name.contains(".activation_post_process.")
        || name.contains(".weight_fake_quant.")
        || name.starts_with("v_head.");
    of_training.then_some("what training keeps beside the weights")
}

/// Whether a tensor belongs to the image or sound part of a model, by the names that such parts have.
fn of_another_sense(name: &str) -> bool {
    const BEGINS: [&str; 10] = [
        "vit.",
        "vpm.",
        "siglip2.",
        "conformer.",
        "merger.",
        "resampler.",
        "sound_encoder.",
        "sound_projection.",
        "speech_embeddings.",
        "mlp",
    ];
    const HOLDS: [&str; 19] = [
        "visual.",
        "vision.",
        "audio.",
        "talker.",
        "vision_",
        "audio_",
        "token2wav.",
        "code2wav.",
        "projector.",
        "pre_mm_projector_norm",
        "image_newline",
        "view_seperator",
        "patch_embed",
        "patch_embedding",
        "patch_merger.",
        "patch_merge_mlp.",
        "model.connector.",
        "multi_modal_projector",
        "embed_vision.",
    ];
    BEGINS.iter().any(|begin| name.starts_with(begin)) || HOLDS.iter().any(|part| name.contains(part))
}

/// llama.cpp's converter walks the files in order and each file by name, and writes a tensor when its last part has
/// come by; all expert tensors of a layer wait for the layer's last expert.
pub(super) fn sort_like_llama_cpp(ckpt: &Checkpoint, tensors: &mut [MappedTensor]) {
    let mut order: Vec<usize> = (0..ckpt.tensors().len()).collect();
    order.sort_by_key(|i| (ckpt.tensors()[*i].file, &ckpt.tensors()[*i].name));
    let mut rank = vec![0; order.len()];
    for (place, i) in order.into_iter().enumerate() {
        rank[i] = place;
    }
    let last_part = |t: &MappedTensor| t.parts.iter().map(|p| rank[*p]).max().unwrap_or(0);
    let mut experts_done: HashMap<Option<usize>, usize> = HashMap::new();
    for t in tensors.iter().filter(|t| t.parts.len() > 1) {
        let done = experts_done.entry(t.layer).or_default();
        *done = (*done).max(last_part(t));
    }
    tensors.sort_by_key(|t| if t.parts.len() > 1 { experts_done[&t.layer] } else { last_part(t) });
}
