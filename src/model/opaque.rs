//! A GGUF model whose architecture is not known, or not in this shape: every tensor is taken by its name and shape, and
//! the metadata as it is. That is enough to quantize it, and to derive such a file again; what needs to know the meaning
//! of a tensor refuses with the reason. Also what the presets want to know of a model, from metadata alone.

use super::anatomy;
use super::blueprint::{self, Mtp, Part};
use super::config::{Config, Ffn, Heads, LayerConfig, Mixer, Wiring};
use super::families::{self, Role};
use super::family::{Row, Source};
use super::source_names::{layer_of, text_name};
use super::stacks;
use super::tensor::{Generated, MappedTensor, RowOrder, ValueMap};
use super::understood::{Model, OfBlueprint, Opaque, with_architecture};
use crate::gguf::{Array, Metadata, Value};
use crate::quant::presets::{ModelFacts, layer_of as layer_of_gguf};
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};
use std::collections::BTreeSet;

/// Takes every tensor of a GGUF source as it is. `reason` says why its meaning is not known.
///
/// # Errors
/// [`Error::BadInput`] for a file that is not a model.
pub(super) fn open(ckpt: &Checkpoint, meta: &Metadata, reason: String) -> Result<Model> {
    let arch = meta.str("general.architecture").unwrap_or_default();
    let tensor = |(part, t): (usize, &TensorMeta)| as_stored(part, t, Role::Unknown, layer_of_gguf(&t.name));
    let tensors: Vec<MappedTensor> = ckpt.tensors().iter().enumerate().map(tensor).collect();
    if tensors.is_empty() {
        return Err(Error::bad_input("the file holds no tensor").hint("this may be a vocabulary without a model"));
    }
    let nearest = nearest(tensors.iter().map(|t| t.name.as_str()));
    let (config, runs) = anatomy(meta, arch, &tensors, &[], None);
    let family = Err(Opaque { nearest, runs_as_file: runs.is_ok(), ..Opaque::of_file(arch, &reason) });
    let tensors = if runs.is_ok() { with_roles(tensors, config.layers.len()) } else { tensors };
    let (generated, dropped) = (Vec::new(), Vec::new());
    Ok(Model { config, family, tensors, generated, dropped, hf_config: None, drawn: None, runs })
}

/// The same tensors with what they do in the first `layers` blocks, by their names.
fn with_roles(tensors: Vec<MappedTensor>, layers: usize) -> Vec<MappedTensor> {
    let of = |t: MappedTensor| match t.layer {
        Some(layer) if layer >= layers => t,
        layer => {
            let stem = layer.and_then(|_| t.name.splitn(3, '.').nth(2)).unwrap_or(&t.name);
            MappedTensor { role: Role::of_gguf(stem), ..t }
        }
    };
    tensors.into_iter().map(of).collect()
}

/// How the model is run, or its sizes alone and why it is not.
fn anatomy(
    meta: &Metadata,
    arch: &str,
    tensors: &[MappedTensor],
    generated: &[Generated],
    json: Option<&serde_json::Value>,
) -> (Config, Result<(), String>) {
    match anatomy::config(meta, arch, tensors, generated, json) {
        Ok(config) => (config, Ok(())),
        Err(why) => (sizes(meta, arch), Err(why.to_string())),
    }
}

/// Whether a tensor holds what the products of a matrix beside it, or of each of its experts, are multiplied with: llama.cpp reads such
/// of any architecture. `.input_scale` is how activations are rounded.
pub(super) fn is_scale(ckpt: &Checkpoint, t: &TensorMeta) -> bool {
    let stem = t.name.strip_suffix(".scale").or(t.name.strip_suffix(".input_scale"));
    let matrix = stem.and_then(|stem| ckpt.find(&format!("{stem}.weight"))).map(|i| &ckpt.tensors()[i]);
    matrix.is_some_and(|m| t.elements() == 1 || (m.shape.len() == 3 && t.shape == [m.shape[0]]))
}

/// A tensor of the source, number `part`, as it is.
pub(super) fn as_stored(part: usize, t: &TensorMeta, role: Role, layer: Option<usize>) -> MappedTensor {
    MappedTensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        parts: vec![part],
        half: None,
        rows: RowOrder::Same,
        values: ValueMap::Same,
        role,
        layer,
    }
}

/// Takes the tensors of a checkpoint folder by their names and shapes: which are linear layers, and what stays as it is.
/// `reason` says why their meaning is not known.
///
/// # Errors
/// [`Error::BadInput`] for a checkpoint without tensors.
pub(super) fn open_folder(ckpt: &Checkpoint, json: serde_json::Value, reason: String) -> Result<Model> {
    let arch = json.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default().to_string();
    let tensor = |(part, t): (usize, &TensorMeta)| {
        let whole = as_stored(part, t, role_by_name(t), layer_of(&t.name));
        match stacks::of(ckpt, t) {
            None => vec![whole],
            Some(stacks::Stack::Single) => vec![MappedTensor { role: Role::OpaqueLinear, ..whole }],
            Some(stacks::Stack::Halves) => {
                let shape = vec![t.shape[0], t.shape[1] / 2, t.shape[2]];
                let half = |half| MappedTensor {
                    shape: shape.clone(),
                    half: Some(half),
                    role: Role::OpaqueLinear,
                    ..whole.clone()
                };
                vec![half(0), half(1)]
            }
        }
    };
    let tensors: Vec<MappedTensor> = ckpt.tensors().iter().enumerate().flat_map(tensor).collect();
    if tensors.is_empty() {
        return Err(Error::bad_input("the checkpoint holds no tensor"));
    }
    let config = sizes(&Metadata::new(), &arch);
    let blueprint = blueprint::find(&json);
    let runs_as_file = blueprint.is_some_and(|b| anatomy::runs(b.gguf, blueprint::class(&json).unwrap_or_default()));
    let is_convertible = blueprint.is_some();
    let nearest = nearest_of_folder(ckpt.tensors().iter().map(|t| t.name.as_str()));
    let nearest = nearest.filter(|_| !is_convertible && !reason.contains("nearest"));
    let family = Err(Opaque { arch, reason, nearest, is_folder: true, is_convertible, runs_as_file });
    Ok(Model {
        config,
        family,
        tensors,
        generated: Vec::new(),
        dropped: Vec::new(),
        hf_config: Some(json),
        drawn: None,
        runs: Err("its tensors have the names of a folder".into()),
    })
}

/// A checkpoint folder, or a part of it, as a GGUF file holds it by the blueprint of its class.
///
/// # Errors
/// `Unsupported` where there is none; those of [`blueprint::draw`].
pub(super) fn as_gguf(ckpt: &Checkpoint, model: &Model, part: Part, mtp: Mtp) -> Result<Model> {
    let Some(json) = &model.hf_config else {
        let what = "projector files are made of checkpoint folders; a GGUF file of a text model holds none";
        return Err(Error::unsupported(what));
    };
    let blueprint = match part {
        Part::Text => blueprint::find(json),
        Part::Projector => blueprint::find_projector(json),
    };
    let Some(blueprint) = blueprint else {
        return Err(match (&model.family, part) {
            (Err(opaque), Part::Text) => opaque.error(),
            _ => no_projector(json),
        });
    };
    let drawn = blueprint::draw(ckpt, blueprint, json, mtp)?;
    let meta = with_architecture(&drawn.keys, drawn.arch);
    let rows = drawn.tensors.iter().find(|t| t.name == "token_embd.weight").map_or(0, MappedTensor::row_count);
    let vocab = stated_vocabulary(json).unwrap_or(rows);
    let opaque = match &model.family {
        Err(opaque) => Opaque { arch: drawn.arch.to_string(), ..opaque.clone() },
        Ok(_) => Opaque::of_blueprint(drawn.arch, "a projector is not a text model".into()),
    };
    let (config, runs) = anatomy(&meta, drawn.arch, &drawn.tensors, &drawn.generated, Some(json));
    Ok(Model {
        tensors: if runs.is_ok() { with_roles(drawn.tensors, config.layers.len()) } else { drawn.tensors },
        config: Config { vocab, ..config },
        family: Err(opaque),
        generated: drawn.generated,
        dropped: drawn.dropped,
        hf_config: Some(json.clone()),
        drawn: Some(OfBlueprint { keys: drawn.keys, blueprint, cache: drawn.cache }),
        runs,
    })
}

impl Model {
    /// Of a model that only a blueprint makes a GGUF file of, and that runs: what readers of the file take it for.
    pub(super) fn as_file(&self) -> Option<Config> {
        let (of, arch) = (self.drawn.as_ref().filter(|_| self.runs.is_ok())?, &self.config.arch);
        let meta = with_architecture(&of.keys, arch);
        let config = anatomy::config(&meta, arch, &self.tensors, &self.generated, None).ok()?;
        Some(Config { vocab: self.config.vocab, ..config })
    }
}

/// The model that a configuration promises, of an architecture that is converted only.
///
/// # Errors
/// `Unsupported` with `reason` where there is no blueprint of it, or tensors do not follow from a configuration alone.
pub(super) fn imagined(json: serde_json::Value, mtp: Mtp, reason: String) -> Result<(Checkpoint, Model)> {
    let Some(blueprint) = blueprint::find(&json) else {
        let what = format!("{reason}; without its weights, nobody knows which tensors it has");
        return Err(Error::unsupported(what)
            .hint("name the folder with its weights: formats that need no calibration are planned for any of them"));
    };
    let ckpt = Checkpoint::imagined(Vec::new())?;
    let Some(drawn) = blueprint::imagine(&ckpt, blueprint, &json, mtp)? else {
        let what = format!("a {} model is not planned from its configuration alone", blueprint.gguf);
        return Err(Error::unsupported(what).hint("name the folder with its weights"));
    };
    let vocab = stated_vocabulary(&json).unwrap_or(0);
    let meta = with_architecture(&drawn.keys, drawn.arch);
    let model = Model {
        config: Config { vocab, ..sizes(&meta, drawn.arch) },
        family: Err(Opaque::of_blueprint(drawn.arch, reason)),
        tensors: drawn.tensors,
        generated: drawn.generated,
        dropped: drawn.dropped,
        hf_config: Some(json),
        drawn: Some(OfBlueprint { keys: drawn.keys, blueprint, cache: drawn.cache }),
        runs: Err("its weights are not here".into()),
    };
    Ok((ckpt, model))
}

/// The size of the vocabulary that a `config.json` states.
fn stated_vocabulary(json: &serde_json::Value) -> Option<usize> {
    let nested = ["text_config", "transformer_layer_config"].iter().find_map(|part| json.get(*part)?.get("vocab_size"));
    nested.or(json.get("vocab_size"))?.as_u64().map(|n| n as usize)
}

fn no_projector(json: &serde_json::Value) -> Error {
    let class = blueprint::class(json).unwrap_or("this model");
    match ["vision_config", "vision_encoder", "audio_config"]
        .iter()
        .any(|part| json.get(*part).is_some_and(|v| !v.is_null()))
    {
        true => Error::unsupported(format!("no projector file is known to be made of the encoder of {class}")),
        false => {
            Error::unsupported(format!("{class} has no encoder of images or sound that a projector file could hold"))
        }
    }
}

/// What a tensor is by its name and shape alone. Whatever might be an embedding, a router, a norm, a convolution or part of
/// an encoder is left unchanged: what quantization costs there is not known.
fn role_by_name(t: &TensorMeta) -> Role {
    let Some(path) = t.name.strip_suffix(".weight") else { return Role::Unknown };
    let last = path.rsplit('.').next().unwrap_or(path);
    if ["embed_tokens", "wte", "word_embeddings", "tok_embeddings"].contains(&last) {
        return Role::TokenEmbedding;
    }
    if last == "lm_head" {
        return Role::Output;
    }
    const PARTS: [&str; 14] = [
        "embed",
        "norm",
        "router",
        "conv",
        "visual",
        "vision",
        "audio",
        "projector",
        "score",
        "classifier",
        "position",
        "wpe",
        "dt_proj",
        "x_proj",
    ];
    let kept = PARTS.iter().any(|part| path.contains(part)) || ["gate", "output", "head"].contains(&last);
    let number = matches!(t.dtype, Dtype::Ggml(ty) if ty.is_plain()) || matches!(t.dtype, Dtype::Packed(_));
    match t.shape.as_slice() {
        [rows, cols] if !kept && number && *rows >= 16 && *cols >= 16 => Role::OpaqueLinear,
        _ => Role::Unknown,
    }
}

/// The sizes that a conversion and its plan show; what only a forward pass reads has no meaning here.
fn sizes(meta: &Metadata, arch: &str) -> Config {
    let facts = preset_facts(meta);
    let size = |key: &str| first(meta, &format!("{arch}.{key}")).unwrap_or(0);
    let vocab = meta.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
    let layer = LayerConfig {
        mixer: Mixer::Attention(Heads {
            q: facts.heads,
            kv: facts.kv_heads,
            dim: size("attention.key_length"),
            value_dim: size("attention.value_length"),
            scale: 1.0,
            ..Heads::default()
        }),
        beside: None,
        ffn: Ffn::default(),
        wiring: Wiring { pre_norm: true, post_norm: false, parallel: false },
    };
    Config {
        arch: arch.to_string(),
        layers: vec![layer; facts.layers.min(1 << 12)],
        hidden: size("embedding_length"),
        ffn: size("feed_forward_length"),
        vocab,
        context: size("context_length"),
        ..Config::default()
    }
}

/// What the presets need to know of a model, as llama.cpp's loader reads it from metadata. Sizes that a file states per
/// layer are those of the first layer; what it does not state is 0.
pub fn preset_facts(meta: &Metadata) -> ModelFacts<'_> {
    let arch = meta.str("general.architecture").unwrap_or_default();
    let size = |key: &str| first(meta, &format!("{arch}.{key}"));
    let blocks = size("block_count").unwrap_or(0);
    let layers = match arch {
        // Projectors state blocks under other keys, and llama-quantize reads none.
        "clip" => 0,
        "nanbeige" => blocks.saturating_mul(size("num_loops").unwrap_or(1)),
        // The router of the adapters is a layer of its own.
        "graniteswitch" => blocks.saturating_add(1),
        _ => blocks,
    };
    let experts = size("expert_count").unwrap_or(0);
    let heads = size("attention.head_count").unwrap_or(0);
    ModelFacts {
        arch,
        layers,
        heads,
        kv_heads: size("attention.head_count_kv").unwrap_or(heads),
        experts: if experts == 1 && arch.starts_with("hunyuan") { 0 } else { experts },
        has_imatrix: false,
    }
}

/// A whole number, or the first of an array of them.
fn first(meta: &Metadata, key: &str) -> Option<usize> {
    let value = match meta.get(key)? {
        Value::Array(Array::U32(v)) => v.first().map(|n| u64::from(*n)),
        Value::Array(Array::I32(v)) => v.first().and_then(|n| u64::try_from(*n).ok()),
        Value::Array(Array::U64(v)) => v.first().copied(),
        Value::Array(Array::I64(v)) => v.first().and_then(|n| u64::try_from(*n).ok()),
        _ => meta.uint(key),
    };
    value.and_then(|n| usize::try_from(n).ok())
}

/// The family with the most tensor names in common, counted without layers, against all that either has; at least half.
fn nearest<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let pattern = |name: &str| match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((_, part)) => format!("blk.{{layer}}.{part}"),
        None => name.to_string(),
    };
    let own: BTreeSet<String> = names.map(pattern).collect();
    most_alike(families::all().map(|f| (likeness(&own, &f.rows().map(|r| r.gguf.to_string()).collect()), f.gguf)))
}

/// The same by the names of a checkpoint, each row under the spelling that is there, or its first.
fn nearest_of_folder<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let pattern = |name: &str| {
        let mut numbers = ["{layer}", "{expert}"].into_iter();
        let name = text_name(name);
        let part = |part: &str| match part.parse::<usize>() {
            Ok(_) => numbers.next().unwrap_or(part).to_string(),
            Err(_) => part.to_string(),
        };
        name.split('.').map(part).collect::<Vec<_>>().join(".")
    };
    let own: BTreeSet<String> = names.map(pattern).collect();
    let spelling = |row: &Row| -> Option<String> {
        let all = row.sources.iter().map(|source| match source {
            Source::One(name) | Source::PerExpert(name) | Source::Half(name, _) => name.to_string(),
        });
        let all: Vec<String> = all.collect();
        all.iter().find(|name| own.contains(*name)).or(all.first()).cloned()
    };
    most_alike(families::all().map(|f| (likeness(&own, &f.rows().filter_map(spelling).collect()), f.gguf)))
}

/// What two lists of names have in common, in thousandths of all that either has.
fn likeness(own: &BTreeSet<String>, rows: &BTreeSet<String>) -> usize {
    let common = rows.intersection(own).count();
    1000 * common / (rows.len() + own.len() - common).max(1)
}

fn most_alike(ranked: impl Iterator<Item = (usize, &'static str)>) -> Option<&'static str> {
    let best = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|(likeness, _)| *likeness >= 500).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(arch: &str, entries: &[(&str, Value)]) -> Metadata {
        let mut meta = Metadata::new();
        meta.set("general.architecture", arch);
        entries.iter().for_each(|(key, value)| meta.set(format!("{arch}.{key}"), value.clone()));
        meta
    }

    #[test]
    fn sizes_per_layer_are_those_of_the_first() {
        let kv = Value::Array(Array::I32(vec![0, 0, 8, 0]));
        let entries = [("block_count", Value::U32(4)), ("attention.head_count", Value::U32(32))];
        let meta = metadata("lfm2", &[&entries[..], &[("attention.head_count_kv", kv)]].concat());
        let facts = preset_facts(&meta);
        assert_eq!((facts.layers, facts.heads, facts.kv_heads, facts.experts), (4, 32, 0, 0));
        assert_eq!(preset_facts(&metadata("x", &entries)).kv_heads, 32);
    }

    #[test]
    fn counts_that_the_loader_changes() {
        let entries = [("block_count", Value::U32(4)), ("expert_count", Value::U32(1)), ("num_loops", Value::U32(2))];
        let facts = |arch| preset_facts(&metadata(arch, &entries)).layers;
        assert_eq!((facts("nanbeige"), facts("graniteswitch"), facts("clip"), facts("other")), (8, 5, 0, 4));
        assert_eq!(preset_facts(&metadata("hunyuan-dense", &entries)).experts, 0);
        assert_eq!(preset_facts(&metadata("other", &entries)).experts, 1);
    }

    #[test]
    fn the_nearest_family_shares_at_least_half_of_the_names() {
        let parts =
            "attn_norm attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm ffn_norm ffn_gate ffn_up ffn_down gate";
        let names: Vec<String> = parts.split(' ').map(|part| format!("blk.1.{part}.weight")).collect();
        assert_eq!(nearest(names.iter().map(String::as_str)), Some("qwen3"));
        assert_eq!(nearest(["token_embd.weight", "output_norm.weight", "blk.0.ssm_in.weight"].into_iter()), None);
        let parts = "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.q_norm \
            self_attn.k_norm post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj";
        let names: Vec<String> =
            parts.split_whitespace().map(|part| format!("model.language_model.layers.1.{part}.weight")).collect();
        assert_eq!(nearest_of_folder(names.iter().map(String::as_str)), Some("qwen3"));
        assert_eq!(nearest_of_folder(["encoder.layer.0.weight"].into_iter()), None);
    }
}
