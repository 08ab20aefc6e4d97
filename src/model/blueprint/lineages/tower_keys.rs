//! Metadata of projector files, encoder by encoder.

use super::super::base::Keys;
use super::super::clip::Processor;
use super::super::hparams::plausible;
use crate::model::hf_json::missing;
use crate::{Error, Result};
use serde_json::Value;

pub(super) fn qwen2(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.vision(Some(h.size("image_size")?.unwrap_or(560)))?;
    match h.outer("model_type").and_then(Value::as_str) {
        Some("qwen2_5_vl") => {
            k.projector_type("qwen2.5vl_merger");
            k.flag("use_silu", true);
            k.window_pattern(true)?;
        }
        _ => k.projector_type("qwen2vl_merger"),
    }
    let eps = h.outer("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6);
    k.float("vision.attention.layer_norm_epsilon", eps as f32);
    Ok(())
}

pub(super) fn exaone(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let processor = k.vision(Some(h.size("image_size")?.unwrap_or(560)))?;
    k.projector_type("exaone4_5");
    k.flag("use_silu", true);
    k.size("vision.image_min_pixels", processor.need_size("min_pixels")?)?;
    k.size("vision.image_max_pixels", processor.need_size("max_pixels")?)?;
    k.stated_size("vision.attention.head_count_kv", &["num_key_value_heads"])?;
    let outer = h.outer("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6);
    k.eps("rms_norm_eps", outer as f32)?;
    k.stated_size("vision.window_size", &["window_size"])?;
    k.window_pattern(false)
}

pub(super) fn qwen3(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let positions = h.size("num_position_embeddings")?.unwrap_or(2304);
    let side = (positions as f64).sqrt() * h.size("patch_size")?.unwrap_or(16) as f64;
    k.vision(Some(h.size("image_size")?.unwrap_or(side as usize)))?;
    k.projector_type("qwen3vl_merger");
    k.flag("use_gelu", true);
    k.stated_size("vision.spatial_merge_size", &["spatial_merge_size"])?;
    let eps = h.outer("text_config").and_then(|text| text.get("rms_norm_eps")?.as_f64()).unwrap_or(1e-6);
    k.float("vision.attention.layer_norm_epsilon", eps as f32);
    let mut behind = vec![false; h.need("depth")?.min(1 << 12)];
    for layer in h.list("deepstack_visual_indexes").into_iter().flatten() {
        let place = plausible(layer).and_then(|layer| behind.get_mut(layer));
        *place
            .ok_or_else(|| Error::bad_input("config.json: deepstack_visual_indexes name layers that do not exist"))? =
            true;
    }
    k.flags("vision.is_deepstack_layers", behind);
    Ok(())
}

pub(super) fn glm(k: &mut Keys, projector: &str) -> Result<Processor> {
    let processor = k.vision(None)?;
    k.projector_type(projector);
    if k.h.str("hidden_act").is_some_and(|act| ["silu", "gelu"].contains(&act)) {
        k.activation()?;
    }
    k.eps("rms_norm_eps", 1e-5)?;
    Ok(processor)
}

pub(super) fn glm5(k: &mut Keys) -> Result<()> {
    let processor = glm(k, "glm5v")?;
    k.size("vision.spatial_merge_size", k.h.size("spatial_merge_size")?.unwrap_or(2))?;
    k.stated_float("vision.swiglu_clamp", "swiglu_limit")?;
    let size = |key: &str, default| processor.get(key).and_then(plausible).unwrap_or(default);
    let per_token = size("patch_size", 14).saturating_mul(size("merge_size", 2)).saturating_pow(2);
    for (key, from) in [("image_min_pixels", "min_image_tokens"), ("image_max_pixels", "max_image_tokens")] {
        if let Some(tokens) = processor.get(from).and_then(plausible) {
            k.size(&format!("vision.{key}"), tokens.saturating_mul(per_token))?;
        }
    }
    Ok(())
}

pub(super) fn gemma3(k: &mut Keys) -> Result<()> {
    let processor = k.vision(None)?;
    k.projector_type("gemma3");
    k.eps("layer_norm_eps", 1e-6)?;
    k.flag("use_gelu", true);
    let side = processor.get("image_seq_length").and_then(plausible).unwrap_or(256).isqrt();
    let patches = k.h.need("image_size")? / k.h.need("patch_size")?.max(1);
    match patches / side.max(1) {
        // The usual is not stated.
        0 | 4 => Ok(()),
        scale => k.size("vision.projector.scale_factor", scale),
    }
}

pub(super) fn gemma4(k: &mut Keys) -> Result<()> {
    k.vision(Some(224))?;
    let audio = k.h.outer("audio_config").and_then(Value::as_object).cloned();
    if let Some(audio) = &audio {
        let width = audio.get("hidden_size").and_then(plausible).ok_or_else(|| missing("audio_config.hidden_size"))?;
        k.audio(audio, width, 4 * width)?;
    }
    k.text("vision.projector_type", "gemma4v");
    k.eps("layer_norm_eps", 1e-6)?;
    if let Some(audio) = &audio {
        k.text("audio.projector_type", "gemma4a");
        gemma4_sound(k, audio)?;
    }
    Ok(())
}

fn gemma4_sound(k: &mut Keys, audio: &serde_json::Map<String, Value>) -> Result<()> {
    k.size("audio.num_mel_bins", audio.get("input_feat_size").and_then(plausible).unwrap_or(128))?;
    let eps = audio.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6);
    k.float("audio.attention.layer_norm_epsilon", eps as f32);
    Ok(())
}

/// Without an encoder: patches and pieces of sound go through one matrix each.
pub(super) fn gemma4_unified(k: &mut Keys) -> Result<()> {
    k.vision(Some(224))?;
    let mut audio = k.h.outer("audio_config").and_then(Value::as_object).cloned().unwrap_or_default();
    let width = audio.get("audio_embed_dim").and_then(plausible);
    let width = width.ok_or_else(|| missing("audio_config.audio_embed_dim"))?;
    audio.extend([("num_layers".into(), 0.into()), ("num_attention_heads".into(), 0.into())]);
    k.audio(&audio, width, 0)?;
    k.text("vision.projector_type", "gemma4uv");
    k.eps("layer_norm_eps", 1e-6)?;
    k.text("audio.projector_type", "gemma4ua");
    gemma4_sound(k, &audio)
}

pub(super) fn idefics(k: &mut Keys) -> Result<()> {
    let processor = k.vision(None)?;
    k.projector_type("idefics3");
    k.eps("layer_norm_eps", 1e-5)?;
    let scale = k.h.outer("scale_factor").and_then(plausible).unwrap_or(2);
    k.size("vision.projector.scale_factor", scale)?;
    k.flag("use_gelu", true);
    let edge = processor.get("size").and_then(|size| plausible(size.get("longest_edge")?));
    k.size("vision.preproc_image_size", edge.map_or_else(|| k.h.need("image_size"), Ok)?)
}

/// The whole factor that an inverse ratio is.
fn inverse(ratio: Option<&Value>, key: &str) -> Result<usize> {
    let ratio = ratio.and_then(Value::as_f64).filter(|x| *x > 0.0).ok_or_else(|| missing(key))?;
    Ok((1.0 / ratio) as usize)
}

pub(super) fn intern(k: &mut Keys) -> Result<()> {
    k.vision(None)?;
    k.projector_type("internvl");
    if k.h.get("layer_norm_eps").is_none() {
        return Err(missing("vision_config.layer_norm_eps"));
    }
    k.eps("layer_norm_eps", 1e-6)?;
    k.activation()?;
    k.size("vision.projector.scale_factor", inverse(k.h.outer("downsample_ratio"), "downsample_ratio")?)?;
    for (key, from) in [("preproc_min_tiles", "min_dynamic_patch"), ("preproc_max_tiles", "max_dynamic_patch")] {
        if let Some(tiles) = k.h.outer(from).and_then(plausible).filter(|n| *n > 0) {
            k.size(&format!("vision.{key}"), tiles)?;
        }
    }
    Ok(())
}

pub(super) fn llama4(k: &mut Keys) -> Result<()> {
    k.vision(None)?;
    k.projector_type("llama4");
    k.eps("norm_eps", 1e-5)?;
    let scale = inverse(k.h.get("pixel_shuffle_ratio"), "vision_config.pixel_shuffle_ratio")?;
    k.size("vision.projector.scale_factor", scale)?;
    k.flag("use_gelu", true);
    Ok(())
}

pub(super) fn pixtral(k: &mut Keys, projector: &str) -> Result<()> {
    k.vision(None)?;
    k.projector_type(projector);
    k.eps("layer_norm_eps", 1e-5)?;
    k.activation()?;
    match k.h.outer("spatial_merge_size").and_then(plausible) {
        Some(merge) => k.size("vision.spatial_merge_size", merge),
        None => Ok(()),
    }
}

/// Mistral's own layout states neither; they are CLIP's.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

pub(super) fn own_pixtral(k: &mut Keys) -> Result<()> {
    k.projector()?;
    k.begin_vision(None, &MEAN, &DEVIATION)?;
    k.projector_type("pixtral");
    let eps = k.h.outer("rms_norm_eps").and_then(Value::as_f64).ok_or_else(|| missing("norm_eps"))?;
    k.float("vision.attention.layer_norm_epsilon", eps as f32);
    k.stated_float("rope.freq_base", "rope_theta")?;
    k.flag("use_silu", true);
    match k.h.str("mm_projector_id") {
        Some("patch_merge") => k.needed_size("vision.spatial_merge_size", "spatial_merge_size"),
        _ => Ok(()),
    }
}

pub(super) fn muse(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let merge = h.need("merge_size")?;
    let side = h.need("pos_emb_height")?.saturating_mul(h.need("patch_size")?).saturating_mul(merge);
    k.vision(Some(side))?;
    k.projector_type("muse-glimmer");
    k.eps("layer_norm_eps", 1e-5)?;
    k.size("vision.spatial_merge_size", merge)
}

pub(super) fn paddle(k: &mut Keys) -> Result<()> {
    let processor = k.projector()?;
    let largest = processor.need_size("max_pixels")?;
    k.vision(Some(largest.isqrt()))?;
    k.projector_type("paddleocr");
    k.size("vision.image_max_pixels", largest)?;
    k.size("vision.image_min_pixels", processor.need_size("min_pixels")?)?;
    k.flag("use_gelu", true);
    k.eps("rms_norm_eps", 1e-6)
}

pub(super) fn hunyuan(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let image = h.size_of(&["image_size", "max_image_size"])?.unwrap_or(2048);
    let processor = k.vision(Some(image))?;
    k.projector_type("hunyuanvl");
    k.flag("use_gelu", true);
    k.eps("rms_norm_eps", 1e-5)?;
    k.size("vision.spatial_merge_size", h.size("spatial_merge_size")?.unwrap_or(2))?;
    k.size("vision.image_min_pixels", processor.need_size("min_pixels")?)?;
    k.size("vision.image_max_pixels", processor.need_size("max_pixels")?)
}

pub(super) fn lfm2(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.vision(Some(256))?;
    k.projector_type("lfm2");
    k.eps("layer_norm_eps", 1e-6)?;
    let factor = h.outer("downsample_factor").and_then(plausible).unwrap_or(2);
    k.size("vision.projector.scale_factor", factor)?;
    k.flag("use_gelu", true);
    // The layer whose outputs are taken, from the last (-1) back.
    let layer = h.outer("vision_feature_layer").and_then(Value::as_i64).unwrap_or(-1);
    let above = usize::try_from(-(layer + 1)).unwrap_or(0);
    k.size("vision.block_count", h.need("num_hidden_layers")?.saturating_sub(above))
}
