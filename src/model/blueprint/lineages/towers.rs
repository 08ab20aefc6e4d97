//! Projector files: encoders of images (and of sound beside them) with what takes their vectors to the text model's.

use super::super::view::{Stored, View, range};
use super::tower_keys as keys;
use super::{Blueprint, Change, Hparams, Named, PLAIN, Part};
use crate::model::tensor::{Gather, ValueMap};
use crate::{Error, Result};
use serde_json::Value;

pub(in crate::model::blueprint) static ALL: &[Blueprint] = &[
    Blueprint {
        classes: &["Qwen2VLModel", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"],
        names: &[("merger.ln_q", "v.post_ln"), ("merger.mlp.{}", "mm.{}")],
        rename: |_, name| part(name, &["visual.", "model.visual."], &[]),
        splits: &[QKV_WEIGHT, QKV_BIAS, FRAMES],
        keys: keys::qwen2,
        ..TOWER
    },
    Blueprint {
        classes: &["Exaone4_5_ForConditionalGeneration"],
        names: &[("merger.ln_q", "v.post_ln"), ("merger.mlp.{}", "mm.{}")],
        rename: |_, name| part(name, &["visual.", "model.visual."], &[]),
        splits: &[FRAMES],
        keys: keys::exaone,
        ..TOWER
    },
    Blueprint {
        classes: &[
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
        ],
        names: &[
            ("merger.norm", "v.post_ln"),
            ("merger.linear_fc1", "mm.0"),
            ("merger.linear_fc2", "mm.2"),
            ("deepstack.{}.norm", "v.deepstack.{}.norm"),
            ("deepstack.{}.linear_fc1", "v.deepstack.{}.fc1"),
            ("deepstack.{}.linear_fc2", "v.deepstack.{}.fc2"),
        ],
        rename: deepstack,
        splits: &[FRAMES],
        keys: keys::qwen3,
        ..TOWER
    },
    Blueprint {
        classes: &[
            "Glm4vForConditionalGeneration",
            "Glm4vMoeForConditionalGeneration",
            "GlmOcrForConditionalGeneration",
        ],
        keys: |k| keys::glm(k, "glm4v").map(drop),
        ..GLM
    },
    Blueprint { classes: &["Glm5NextForConditionalGeneration"], keys: keys::glm5, ..GLM },
    Blueprint {
        classes: &["Gemma3ForConditionalGeneration"],
        names: &[
            ("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight"),
            ("multi_modal_projector.mm_soft_emb_norm", "mm.soft_emb_norm"),
        ],
        rename: |_, name| match name.contains("vision_model.head.") {
            true => Named::Drop("a head that the projector does not use"),
            false => part(name, &["vision_tower.vision_model.", "vision_model."], &["multi_modal_projector."]),
        },
        changes: &[("mm.soft_emb_norm.weight", Change::PlusOne)],
        in_f16: &["mm.input_projection."],
        in_f32: &["v.patch_embd.", "v.position_embd."],
        keys: keys::gemma3,
        ..TOWER
    },
    Blueprint {
        classes: &["Gemma4ForConditionalGeneration"],
        names: &[
            ("embed_vision.embedding_projection", "mm.input_projection"),
            ("embed_vision.soft_embedding_norm", "mm.soft_emb_norm"),
            ("embed_audio.embedding_projection", "mm.a.input_projection"),
            ("patch_embedder.position_embedding_table", "v.position_embd.weight"),
            ("layers.{}.post_attention_layernorm", "v.blk.{}.attn_post_norm"),
            ("layers.{}.pre_feedforward_layernorm", "v.blk.{}.ln2"),
            ("layers.{}.post_feedforward_layernorm", "v.blk.{}.ffn_post_norm"),
            ("layers.{}.layer_scalar", "v.blk.{}.out_scale.weight"),
            ("conformer.subsample_conv_projection.layer.{}.conv", "a.conv1d.{}"),
            ("conformer.subsample_conv_projection.layer.{}.norm", "a.conv1d.{}.norm"),
            ("conformer.subsample_conv_projection.input_proj_linear", "a.input_projection"),
            ("conformer.output_proj", "a.pre_encode.out"),
            ("conformer.layers.{}.norm_pre_attn", "a.blk.{}.attn_pre_norm"),
            ("conformer.layers.{}.norm_post_attn", "a.blk.{}.attn_post_norm"),
            ("conformer.layers.{}.norm_out", "a.blk.{}.ln2"),
            ("conformer.layers.{}.self_attn.q_proj", "a.blk.{}.attn_q"),
            ("conformer.layers.{}.self_attn.k_proj", "a.blk.{}.attn_k"),
            ("conformer.layers.{}.self_attn.v_proj", "a.blk.{}.attn_v"),
            ("conformer.layers.{}.self_attn.post", "a.blk.{}.attn_out"),
            ("conformer.layers.{}.self_attn.relative_k_proj", "a.blk.{}.attn_k_rel"),
            ("conformer.layers.{}.self_attn.per_dim_scale", "a.blk.{}.per_dim_scale.weight"),
            ("conformer.layers.{}.feed_forward1.pre_layer_norm", "a.blk.{}.ffn_norm"),
            ("conformer.layers.{}.feed_forward1.post_layer_norm", "a.blk.{}.ffn_post_norm"),
            ("conformer.layers.{}.feed_forward1.ffw_layer_1", "a.blk.{}.ffn_up"),
            ("conformer.layers.{}.feed_forward1.ffw_layer_2", "a.blk.{}.ffn_down"),
            ("conformer.layers.{}.feed_forward2.pre_layer_norm", "a.blk.{}.ffn_norm_1"),
            ("conformer.layers.{}.feed_forward2.post_layer_norm", "a.blk.{}.ffn_post_norm_1"),
            ("conformer.layers.{}.feed_forward2.ffw_layer_1", "a.blk.{}.ffn_up_1"),
            ("conformer.layers.{}.feed_forward2.ffw_layer_2", "a.blk.{}.ffn_down_1"),
            ("conformer.layers.{}.lconv1d.pre_layer_norm", "a.blk.{}.conv_norm"),
            ("conformer.layers.{}.lconv1d.conv_norm", "a.blk.{}.norm_conv"),
            ("conformer.layers.{}.lconv1d.linear_start", "a.blk.{}.conv_pw1"),
            ("conformer.layers.{}.lconv1d.linear_end", "a.blk.{}.conv_pw2"),
            ("conformer.layers.{}.lconv1d.depthwise_conv1d", "a.blk.{}.conv_dw"),
        ],
        rename: gemma4_name,
        changes: &[
            ("v.patch_embd.weight", Change::View(colours_first)),
            ("conv_dw.weight", Change::Squeeze),
            ("per_dim_scale.weight", Change::Softplus),
        ],
        in_f32: &["v.position_embd.", "^a.input_projection.", "a.conv1d.", ".conv_dw.", ".norm_conv."],
        keys: keys::gemma4,
        ..TOWER
    },
    Blueprint {
        classes: &["Gemma4UnifiedForConditionalGeneration"],
        names: &[
            ("embed_vision.embedding_projection", "mm.input_projection"),
            ("embed_audio.embedding_projection", "mm.a.input_projection"),
            ("patch_ln1", "v.patch_norm.1"),
            ("patch_ln2", "v.patch_norm.2"),
            ("pos_norm", "v.patch_norm.3"),
            ("pos_embedding", "v.position_embd.weight"),
        ],
        rename: |_, name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            part(name, &["vision_embedder."], &["embed_vision.", "embed_audio."])
        },
        changes: &[
            ("v.patch_embd.weight", Change::View(planes)),
            ("v.patch_norm.1.weight", Change::View(planes)),
            ("v.patch_norm.1.bias", Change::View(planes)),
            ("v.position_embd.weight", Change::View(axes_first)),
        ],
        defaults: r#"{"intermediate_size": 0, "num_layers": 0, "num_attention_heads": 0}"#,
        keys: keys::gemma4_unified,
        ..TOWER
    },
    Blueprint {
        classes: &["Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"],
        names: &[("model.connector.modality_projection.proj", "mm.model.fc")],
        rename: |_, name| part(name, &["model.vision_model.", "vision_model."], &["model.connector."]),
        in_f32: &["v.patch_embd.", "v.position_embd."],
        defaults: r#"{"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 32, "layer_norm_eps": 1e-6}"#,
        keys: keys::idefics,
        ..TOWER
    },
    Blueprint {
        classes: &["InternVisionModel", "InternVLForConditionalGeneration", "InternVLChatModel"],
        names: &[
            ("mlp1.{}", "mm.model.mlp.{}"),
            ("multi_modal_projector.layer_norm", "mm.model.mlp.0"),
            ("multi_modal_projector.linear_1", "mm.model.mlp.1"),
            ("multi_modal_projector.linear_2", "mm.model.mlp.3"),
            ("embeddings.position_embedding", "v.position_embd.weight"),
            ("embeddings.position_embeddings", "v.position_embd.weight"),
            ("layers.{}.ls1", "v.blk.{}.ls1.weight"),
            ("layers.{}.ls2", "v.blk.{}.ls2.weight"),
            ("layers.{}.lambda_1", "v.blk.{}.ls1.weight"),
            ("layers.{}.lambda_2", "v.blk.{}.ls2.weight"),
        ],
        rename: |_, name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            part(name, &["vision_tower.", "vision_model."], &["multi_modal_projector.", "mlp1."])
        },
        splits: &[QKV_WEIGHT, QKV_BIAS],
        keys: keys::intern,
        ..TOWER
    },
    Blueprint {
        classes: &["Llama4ForConditionalGeneration"],
        names: &[
            ("multi_modal_projector.linear_1", "mm.model.fc"),
            ("vision_adapter.mlp.fc1", "mm.model.mlp.1"),
            ("vision_adapter.mlp.fc2", "mm.model.mlp.2"),
            ("positional_embedding_vlm", "v.position_embd.weight"),
            ("layers.{}.post_attention_layernorm", "v.blk.{}.attn_post_norm"),
        ],
        rename: |_, name| part(name, &["vision_model."], &["multi_modal_projector."]),
        keys: keys::llama4,
        ..TOWER
    },
    Blueprint {
        classes: &["LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"],
        only: |json| json.pointer("/vision_config/model_type").and_then(Value::as_str) == Some("pixtral"),
        keys: |k| keys::pixtral(k, "pixtral"),
        ..PIXTRAL
    },
    Blueprint { classes: &["LightOnOCRForConditionalGeneration"], keys: |k| keys::pixtral(k, "lightonocr"), ..PIXTRAL },
    Blueprint {
        classes: &["MistralOwnLayout"],
        only: |json| json.get("vision_encoder").is_some_and(Value::is_object),
        names: &[
            ("vision_language_adapter.w_in", "mm.1"),
            ("vision_language_adapter.w_out", "mm.2"),
            ("patch_merger.merging_layer", "mm.patch_merger"),
            ("pre_mm_projector_norm", "mm.input_norm"),
            ("tok_embeddings.weight", "v.token_embd.img_break"),
        ],
        rename: |h, name| match name == "tok_embeddings.weight"
            && h.size("image_break_token_id").ok().flatten() > Some(0)
        {
            true => Named::Keep(name.into()),
            false => part(
                name,
                &["vision_encoder."],
                &["vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm."],
            ),
        },
        changes: &[("v.token_embd.img_break", Change::View(image_break))],
        keys: keys::own_pixtral,
        ..TOWER
    },
    Blueprint {
        classes: &["MuseGlimmerForConditionalGeneration"],
        names: &[
            ("model.vision_adapter.fc1", "mm.0"),
            ("model.vision_adapter.fc2", "mm.1"),
            ("model.vision_projection", "mm.2"),
        ],
        rename: |_, name| part(name, &["model.vision_tower."], &["model.vision_adapter.", "model.vision_projection."]),
        changes: &[
            ("attn_q.weight", Change::QueryPairs),
            ("attn_q.bias", Change::QueryPairs),
            ("attn_k.weight", Change::QueryPairs),
            ("attn_k.bias", Change::QueryPairs),
            ("v.patch_embd.weight", Change::View(frames_added)),
        ],
        keys: keys::muse,
        ..TOWER
    },
    Blueprint {
        classes: &["PaddleOCRVisionModel", "PaddleOCRVLForConditionalGeneration"],
        names: &[("mlp_AR.linear_1", "mm.1"), ("mlp_AR.linear_2", "mm.2"), ("mlp_AR.pre_norm", "mm.input_norm")],
        rename: |_, name| match name.contains("packing_position_embedding") || name.contains("vision_model.head") {
            true => Named::Drop("not used for images in prompts"),
            false => part(name, &["visual.vision_model.", "model.vision_model."], &["mlp_AR."]),
        },
        keys: keys::paddle,
        ..TOWER
    },
    Blueprint {
        classes: &["HunYuanVLForConditionalGeneration"],
        names: &[
            ("perceive.proj.{}", "mm.{}"),
            ("perceive.mlp", "mm.model.fc"),
            ("perceive.before_rms", "mm.pre_norm"),
            ("perceive.after_rms", "mm.post_norm"),
            ("perceive.image_begin", "mm.image_begin"),
            ("perceive.image_end", "mm.image_end"),
            ("perceive.image_newline", "v.image_newline"),
            ("perceive.image_sep", "v.view_seperator"),
        ],
        rename: |_, name| part(name, &["vit."], &[]),
        changes: &[("v.position_embd.weight", Change::View(without_class))],
        plain: &[".patch_embd.weight", "mm.0.weight", "mm.2.weight"],
        keys: keys::hunyuan,
        ..TOWER
    },
    Blueprint {
        classes: &["Lfm2VlForConditionalGeneration"],
        names: &[
            ("multi_modal_projector.layer_norm", "mm.input_norm"),
            ("multi_modal_projector.linear_1", "mm.1"),
            ("multi_modal_projector.linear_2", "mm.2"),
        ],
        rename: |_, name| {
            let name = name.strip_prefix("model.").unwrap_or(name);
            part(name, &["vision_tower.vision_model.", "vision_tower."], &["multi_modal_projector."])
        },
        changes: &[("v.patch_embd.weight", Change::View(colours_first))],
        keys: keys::lfm2,
        ..TOWER
    },
];

/// The usual of projectors.
const TOWER: Blueprint = Blueprint {
    part: Part::Projector,
    gguf: "clip",
    base: false,
    plain: &[".patch_embd.weight", ".patch_merger.weight"],
    ..PLAIN
};

const GLM: Blueprint = Blueprint {
    names: &[
        ("merger.proj", "mm.model.fc"),
        ("merger.post_projection_norm", "mm.post_norm"),
        ("merger.up_proj", "mm.up"),
        ("merger.gate_proj", "mm.gate"),
        ("merger.down_proj", "mm.down"),
        ("downsample", "mm.patch_merger"),
    ],
    rename: |_, name| part(name, &["visual.", "model.visual."], &[]),
    splits: &[FRAMES],
    ..TOWER
};

const PIXTRAL: Blueprint = Blueprint {
    names: &[
        ("multi_modal_projector.linear_1", "mm.1"),
        ("multi_modal_projector.linear_2", "mm.2"),
        ("multi_modal_projector.norm", "mm.input_norm"),
        ("multi_modal_projector.patch_merger.merging_layer", "mm.patch_merger"),
    ],
    rename: |_, name| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        let name = name.replacen("vision_projection.", "multi_modal_projector.", 1);
        part(&name, &["vision_tower.", "vision_encoder."], &["multi_modal_projector."])
    },
    changes: &[("attn_q.weight", Change::QueryPairs), ("attn_k.weight", Change::QueryPairs)],
    defaults: r#"{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 1024, "patch_size": 16, "hidden_act": "gelu"}"#,
    ..TOWER
};

type Split = (&'static str, &'static [(&'static str, Change)]);

const QKV_WEIGHT: Split = (
    "attn.qkv.weight",
    &[
        ("v.blk.{}.attn_q.weight", Change::Third(0)),
        ("v.blk.{}.attn_k.weight", Change::Third(1)),
        ("v.blk.{}.attn_v.weight", Change::Third(2)),
    ],
);

const QKV_BIAS: Split = (
    "attn.qkv.bias",
    &[
        ("v.blk.{}.attn_q.bias", Change::Third(0)),
        ("v.blk.{}.attn_k.bias", Change::Third(1)),
        ("v.blk.{}.attn_v.bias", Change::Third(2)),
    ],
);

/// Patches of two frames: a convolution over three dimensions as two over two.
const FRAMES: Split = (
    "patch_embed.proj.weight",
    &[
        ("v.patch_embd.weight", Change::View(|_, stored| frame(stored, 0))),
        ("v.patch_embd.weight.1", Change::View(|_, stored| frame(stored, 1))),
    ],
);

const TEXT: &str = "belongs to the text model";

/// The name of an encoder's tensor without the encoder's (`strip`), layers called `layers`; or of one of the projector's,
/// which begin with one of `keep`.
fn part(name: &str, strip: &[&str], keep: &[&str]) -> Named {
    if name.contains("language_model.") {
        return Named::Drop(TEXT);
    }
    if keep.iter().any(|begin| name.starts_with(begin)) {
        return Named::Keep(name.into());
    }
    let Some(rest) = strip.iter().find_map(|begin| name.strip_prefix(begin)) else { return Named::Drop(TEXT) };
    const LAYERS: [&str; 5] = ["encoder.layers.", "encoder.layer.", "transformer.layers.", "model.layers.", "blocks."];
    let layer = LAYERS.iter().find_map(|begin| rest.strip_prefix(begin));
    Named::Keep(layer.map_or_else(|| rest.to_string(), |rest| format!("layers.{rest}")))
}

/// Mergers beside the last are counted by the layer that they are behind.
fn deepstack(h: &Hparams, name: &str) -> Named {
    let Named::Keep(name) = part(name, &["visual.", "model.visual."], &[]) else { return Named::Drop(TEXT) };
    let Some(rest) = name.strip_prefix("deepstack_merger_list.") else { return Named::Keep(name) };
    let layer = |rest: &str| {
        let (index, rest) = rest.split_once('.')?;
        let layer = h.list("deepstack_visual_indexes")?.get(index.parse::<usize>().ok()?)?.as_u64()?;
        Some(format!("deepstack.{layer}.{rest}"))
    };
    Named::Keep(layer(rest).unwrap_or_else(|| name.clone()))
}

fn gemma4_name(_: &Hparams, name: &str) -> Named {
    let name = name.strip_prefix("model.").unwrap_or(name);
    if let Some(rest) = name.strip_prefix("audio_tower.") {
        // The number of a convolution as one of its own.
        let rest = rest.replace(".linear.", ".").replace(".layer0.", ".layer.0.").replace(".layer1.", ".layer.1.");
        return Named::Keep(format!("conformer.{rest}"));
    }
    let name = name.replace(".linear.weight", ".weight");
    part(&name, &["vision_tower."], &["embed_vision.", "embed_audio."])
}

fn misshapen(stored: &Stored) -> Error {
    let what = format!("shape is {:?}, which is not one of this architecture", stored.shape);
    Error::bad_input(what).tensor(stored.name)
}

/// One of the two frames of `[n, colours, 2, height, width]`.
fn frame(stored: &Stored, frame: usize) -> Result<View> {
    let [n, colours, 2, height, width] = *stored.shape else { return Err(misshapen(stored)) };
    let all = range(0, n * colours * 2 * height);
    let rows = all.into_iter().filter(|row| *row as usize / height.max(1) % 2 == frame).collect::<Vec<_>>();
    let gather = Gather {
        matrices: 1,
        stored: [n * colours * 2 * height, width],
        turned: false,
        rows: Some(rows.into()),
        cols: None,
    };
    Ok(View::gathered(&[n, colours, height, width], gather))
}

/// `[n, height * width * colours]` as `[n, colours, height, width]`, of square patches.
fn colours_first(_: &Hparams, stored: &Stored) -> Result<View> {
    let [n, values] = *stored.shape else { return Err(misshapen(stored)) };
    let side = (values / 3).isqrt();
    if side == 0 || 3 * side * side != values {
        return Err(misshapen(stored));
    }
    let cols = range(0, values).into_iter().map(|i| i % (side * side) as u32 * 3 + i / (side * side) as u32);
    let gather = Gather {
        matrices: 1,
        stored: [n, values],
        turned: false,
        rows: None,
        cols: Some(cols.collect::<Vec<_>>().into()),
    };
    Ok(View::gathered(&[n, 3, side, side], gather))
}

/// Columns of three colours each in the order of planes of one colour each.
fn planes(_: &Hparams, stored: &Stored) -> Result<View> {
    let n = stored.shape.last().copied().unwrap_or(0);
    if n == 0 || !n.is_multiple_of(3) {
        return Err(misshapen(stored));
    }
    let cols = range(0, n).into_iter().map(|i| i % (n / 3) as u32 * 3 + i / (n / 3) as u32).collect();
    Ok(if stored.shape.len() == 1 { View::rows(stored, cols) } else { View::cols(stored, cols) })
}

/// `[positions, axes, n]` as `[axes, positions, n]`.
fn axes_first(_: &Hparams, stored: &Stored) -> Result<View> {
    let [positions, axes, n] = *stored.shape else { return Err(misshapen(stored)) };
    let rows =
        range(0, positions * axes).into_iter().map(|i| i % positions as u32 * axes as u32 + i / positions as u32);
    let gather = Gather {
        matrices: 1,
        stored: [positions * axes, n],
        turned: false,
        rows: Some(rows.collect::<Vec<_>>().into()),
        cols: None,
    };
    Ok(View::gathered(&[axes, positions, n], gather))
}

/// Positions but for the first, which is of no patch.
fn without_class(_: &Hparams, stored: &Stored) -> Result<View> {
    let [positions, n] = *stored.shape else { return Err(misshapen(stored)) };
    Ok(View::rows(stored, range(1, positions)).without(n))
}

/// `[n, frames * colours * height * width]` as `[n, colours, height, width]`, frames added up: an image is two equal ones.
fn frames_added(h: &Hparams, stored: &Stored) -> Result<View> {
    let [n, values] = *stored.shape else { return Err(misshapen(stored)) };
    let (frames, side) = (h.need("patch_temporal")?, h.need("patch_size")?);
    if frames == 0 || frames.checked_mul(3 * side * side) != Some(values) {
        return Err(misshapen(stored));
    }
    let view = View::same(&[n, 3, side, side]).with(ValueMap::SumOf(frames));
    Ok(view.without((frames - 1) * n * 3 * side * side))
}

/// The embedding that ends a row of patches.
fn image_break(h: &Hparams, stored: &Stored) -> Result<View> {
    let [tokens, n] = *stored.shape else { return Err(misshapen(stored)) };
    let id = h.need("image_break_token_id")?;
    if id >= tokens {
        return Err(misshapen(stored));
    }
    let rows = Some(vec![id as u32].into());
    let gather = Gather { matrices: 1, stored: [tokens, n], turned: false, rows, cols: None };
    Ok(View::gathered(&[n], gather).without((tokens - 1) * n))
}
