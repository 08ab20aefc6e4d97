//! Writes metadata of an architecture: what llama.cpp's converter writes for every text model, and the pieces that
//! blueprints add to it.

use super::Hparams;
use crate::gguf::{Array, Metadata, Value};
use crate::model::hf_json::{as_size, missing, wrong};
use crate::model::source_names::layer_of;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result};
use std::path::Path;

/// The metadata under construction, and what it is made from.
pub(in crate::model) struct Keys<'a> {
    pub h: &'a Hparams,
    pub arch: &'static str,
    /// Blocks of the file.
    pub blocks: usize,
    pub ckpt: &'a Checkpoint,
    pub meta: &'a mut Metadata,
}

/// How router scores become weights, as GGUF numbers it.
#[derive(Clone, Copy)]
pub(in crate::model) enum Gating {
    Softmax = 1,
    Sigmoid = 2,
    SqrtSoftplus = 4,
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.meta.set(format!("{}.{key}", self.arch), value);
    }

    /// # Errors
    /// `BadInput` when the number does not fit.
    pub fn size(&mut self, key: &str, n: usize) -> Result<()> {
        let n = u32::try_from(n).map_err(|_| Error::bad_input(format!("{key} of {n} does not fit GGUF")))?;
        self.set(key, n);
        Ok(())
    }

    pub fn float(&mut self, key: &str, x: f32) {
        self.set(key, x);
    }

    pub fn flag(&mut self, key: &str, flag: bool) {
        self.set(key, flag);
    }

    pub fn text(&mut self, key: &str, text: &str) {
        self.set(key, text);
    }

    pub fn flags(&mut self, key: &str, flags: Vec<bool>) {
        self.set(key, flags);
    }

    pub fn sizes(&mut self, key: &str, sizes: &[usize]) {
        self.set(key, Value::Array(Array::I32(sizes.iter().map(|n| *n as i32).collect())));
    }

    pub fn floats(&mut self, key: &str, values: Vec<f32>) {
        self.set(key, Value::Array(Array::F32(values)));
    }

    pub fn gating(&mut self, gating: Gating) {
        self.set("expert_gating_func", gating as u32);
    }

    /// A size that the configuration states, where it does.
    pub fn stated_size(&mut self, key: &str, from: &[&str]) -> Result<()> {
        match self.h.size_of(from)? {
            Some(n) => self.size(key, n),
            None => Ok(()),
        }
    }

    /// # Errors
    /// `BadInput` when the configuration does not state it.
    pub fn needed_size(&mut self, key: &str, from: &str) -> Result<()> {
        self.size(key, self.h.need(from)?)
    }

    pub fn stated_float(&mut self, key: &str, from: &str) -> Result<()> {
        if let Some(x) = self.h.float(from)? {
            self.float(key, x);
        }
        Ok(())
    }

    /// Lengths of keys and values.
    pub fn head_lengths(&mut self, key: usize, value: usize) -> Result<()> {
        self.size("attention.key_length", key)?;
        self.size("attention.value_length", value)
    }

    /// `rope.dimension_count` from the part of each head that is rotated; `default` where the configuration is silent.
    pub fn partial_rotary(&mut self, default: f32) -> Result<()> {
        let factor = self.h.rope_float("partial_rotary_factor").unwrap_or(default);
        let dims = (self.h.head_dim()? as f64 * f64::from(factor)) as usize;
        self.size("rope.dimension_count", dims)
    }

    /// The window, and which layers have it by `layer_types`.
    pub fn windows_by_type(&mut self) -> Result<()> {
        let Some(window) = self.h.size("sliding_window")? else { return Ok(()) };
        self.size("attention.sliding_window", window)?;
        if let Some(slides) = self.h.layers_of_type("sliding_attention") {
            self.flags("attention.sliding_window_pattern", slides);
        }
        Ok(())
    }

    pub fn texts(&mut self, key: &str, texts: Vec<String>) {
        self.set(key, texts);
    }

    /// A key that does not begin with the architecture.
    pub fn plain_floats(&mut self, key: &str, values: Vec<f32>) {
        self.meta.set(key, Value::Array(Array::F32(values)));
    }

    pub fn stated_flag(&mut self, key: &str, from: &str) {
        if let Some(flag) = self.h.get(from).and_then(serde_json::Value::as_bool) {
            self.flag(key, flag);
        }
    }

    /// The place of `general.file_type`.
    pub fn file_type(&mut self) {
        self.meta.set("general.file_type", 0u32);
    }

    /// What every model of Llama's line adds.
    pub fn llama(&mut self) -> Result<()> {
        self.needed_size("vocab_size", "vocab_size")?;
        self.size("rope.dimension_count", self.h.head_dim()?)
    }

    /// The one number that each tensor of such a name holds, layer by layer.
    pub fn scalars(&self, end: &str) -> Result<Vec<f32>> {
        let mut tensors: Vec<_> = self.ckpt.tensors().iter().filter(|t| t.name.ends_with(end)).collect();
        tensors.sort_by_key(|t| layer_of(&t.name));
        let mut values = vec![0.0; tensors.len()];
        for (t, value) in tensors.into_iter().zip(&mut values) {
            self.ckpt.read_f32(t, 0..1, &mut Vec::new(), std::slice::from_mut(value))?;
        }
        Ok(values)
    }

    /// Columns of the tensor whose name ends so.
    pub fn columns(&self, end: &str) -> Option<usize> {
        self.ckpt.tensors().iter().find(|t| t.name.ends_with(end))?.shape.last().copied()
    }

    /// Whole numbers that the checkpoint stores as a tensor, under one key.
    ///
    /// # Errors
    /// `BadInput` when there is no such tensor, or it holds other numbers.
    pub fn integers(&mut self, key: &str, end: &str) -> Result<()> {
        let t = self.ckpt.tensors().iter().find(|t| t.name.ends_with(end));
        let t = t.filter(|t| t.dtype == Dtype::Ggml(GgmlType::I64) && t.bytes() <= 1 << 20);
        let t = t.ok_or_else(|| Error::bad_input(format!("no whole numbers are stored as '{end}'")))?;
        let mut bytes = vec![0; t.bytes() as usize];
        self.ckpt.read(t, 0, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let numbers = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        self.set(key, Value::Array(Array::U64(numbers)));
        Ok(())
    }

    /// The shape of the matrix in a folder beside the checkpoint.
    pub fn beside_shape(&self, folder: &str) -> Result<Option<Vec<usize>>> {
        let path = self.ckpt.dir().join(folder).join("model.safetensors");
        if !path.is_file() {
            return Ok(None);
        }
        Ok(Checkpoint::open(&path)?.tensors().first().map(|t| t.shape.clone()))
    }

    /// How an embedding model pools its tokens, as sentence-transformers' files beside it say.
    pub fn pooling(&mut self) -> Result<()> {
        if let Some(kind) = pooling(self.ckpt.dir())? {
            self.set("pooling_type", kind);
        }
        match self.h.str("classifier_pooling") {
            Some("mean") => self.size("classifier.pooling_type", 1),
            Some("cls") => self.size("classifier.pooling_type", 2),
            _ => Ok(()),
        }
    }
}

/// How the model in a folder pools its tokens, as GGUF numbers it, where sentence-transformers' files say so.
///
/// # Errors
/// `Unsupported` for a way that GGUF has no number for.
pub(in crate::model) fn pooling(dir: &Path) -> Result<Option<u32>> {
    let json = |path: &str| {
        let path = dir.join(path);
        path.is_file().then(|| crate::input::read_json(&path)).transpose()
    };
    let modules = json("modules.json")?.unwrap_or_default();
    let is_pooling =
        |m: &&serde_json::Value| m.get("type").and_then(|t| t.as_str()).is_some_and(|t| t.ends_with("Pooling"));
    let path = modules.as_array().into_iter().flatten().find(is_pooling).and_then(|m| m.get("path")?.as_str());
    let Some(pooling) = path.map(|path| json(&format!("{path}/config.json"))).transpose()?.flatten() else {
        return Ok(None);
    };
    let on = |key: &str| pooling.get(key).and_then(serde_json::Value::as_bool) == Some(true);
    match pooling.get("pooling_mode").and_then(|m| m.as_str()).unwrap_or_default() {
        _ if on("pooling_mode_mean_tokens") => Ok(Some(1)),
        _ if on("pooling_mode_cls_token") => Ok(Some(2)),
        _ if on("pooling_mode_lasttoken") => Ok(Some(3)),
        "mean" => Ok(Some(1)),
        "cls" => Ok(Some(2)),
        "lasttoken" => Ok(Some(3)),
        _ => {
            let what = "has a pooling that GGUF has no number for (mean, cls and last token have one)";
            Err(Error::unsupported(format!("{}: {what}", dir.join("modules.json").display())))
        }
    }
}

/// A size, or one for each layer, under one key.
fn size_or_list(k: &mut Keys, key: &str, from: &[&str]) -> Result<()> {
    match k.h.find(from) {
        None => Ok(()),
        Some(serde_json::Value::Array(list)) => {
            let size = |v| as_size(v).ok_or_else(|| wrong(from[0], v, "whole numbers"));
            let sizes = list.iter().map(size).collect::<Result<Vec<_>>>()?;
            k.sizes(key, &sizes);
            Ok(())
        }
        Some(_) => k.stated_size(key, from),
    }
}

/// What the converter writes for every text model, in its order (`TextModel.set_gguf_parameters`).
pub(super) fn write(k: &mut Keys) -> Result<()> {
    let h = k.h;
    k.size("block_count", k.blocks)?;
    let context =
        ["max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"];
    k.stated_size("context_length", &context)?;
    k.stated_size("embedding_length", &["hidden_size", "n_embd", "dim"])?;
    let ffn =
        ["prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"];
    size_or_list(k, "feed_forward_length", &ffn)?;
    size_or_list(k, "attention.head_count", &["num_attention_heads", "n_head", "n_heads"])?;
    size_or_list(k, "attention.head_count_kv", &["num_key_value_heads", "n_kv_heads"])?;
    if h.get("is_causal").and_then(serde_json::Value::as_bool) == Some(false) {
        k.flag("attention.causal", false);
    }
    rope(k)?;
    for (key, from) in [
        ("attention.layer_norm_rms_epsilon", &["rms_norm_eps", "norm_eps"][..]),
        ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    ] {
        if let Some(eps) = h.float_of(from)? {
            k.float(key, eps);
        }
    }
    size_or_list(k, "expert_count", &["num_local_experts", "num_experts", "n_routed_experts"])?;
    let used = ["num_experts_per_tok", "num_experts_per_token", "top_k_experts"];
    size_or_list(k, "expert_used_count", &used)?;
    k.stated_size("expert_group_count", &["n_group"])?;
    k.stated_size("expert_group_used_count", &["topk_group"])?;
    let score = [
        "score_function",
        "scoring_func",
        "score_func",
        "moe_router_activation",
        "moe_router_activation_func",
        "expert_selection_fn",
    ];
    match h.find(&score).map(|v| v.as_str().unwrap_or_default()) {
        None => {}
        Some("sigmoid") => k.gating(Gating::Sigmoid),
        Some("softmax") => k.gating(Gating::Softmax),
        Some("sqrtsoftplus") => k.gating(Gating::SqrtSoftplus),
        Some(other) => {
            let what = format!("config.json: router scores by '{other}' cannot be stored in a GGUF file");
            return Err(Error::unsupported(what));
        }
    }
    if let Some(dim) = h.size("head_dim")? {
        k.head_lengths(dim, dim)?;
    }
    k.file_type();
    Ok(())
}

fn rope(k: &mut Keys) -> Result<()> {
    let h = k.h;
    let table = h.rope();
    let number = |key: &str| table.get(key).and_then(serde_json::Value::as_f64).map(|x| x as f32);
    match (table.get("rope_type").and_then(serde_json::Value::as_str), number("factor")) {
        (Some("linear"), Some(factor)) => {
            k.text("rope.scaling.type", "linear");
            k.float("rope.scaling.factor", factor);
        }
        (Some("yarn"), Some(factor)) => {
            k.text("rope.scaling.type", "yarn");
            k.float("rope.scaling.factor", factor);
            let original = table.get("original_max_position_embeddings").and_then(as_size);
            let original = original.ok_or_else(|| missing("rope_parameters.original_max_position_embeddings"))?;
            k.size("rope.scaling.original_context_length", original)?;
            for (key, from) in [
                ("yarn_ext_factor", &["extrapolation_factor"][..]),
                ("yarn_attn_factor", &["attention_factor", "attn_factor"]),
                ("yarn_beta_fast", &["beta_fast"]),
                ("yarn_beta_slow", &["beta_slow"]),
            ] {
                if let Some(x) = from.iter().find_map(|f| table.get(*f)).and_then(serde_json::Value::as_f64) {
                    k.float(&format!("rope.scaling.{key}"), x as f32);
                }
            }
        }
        (Some("su" | "longrope"), _) => k.text("rope.scaling.type", "longrope"),
        _ => {}
    }
    if let Some(sections) = table.get("mrope_section").and_then(serde_json::Value::as_array) {
        let mut sections: Vec<usize> = sections.iter().filter_map(as_size).collect();
        sections.resize(4, 0);
        k.sizes("rope.dimension_sections", &sections);
    }
    if let Some(theta) = number("rope_theta") {
        k.float("rope.freq_base", theta);
    }
    let local = h.local_rope().and_then(|l| l.get("rope_theta")?.as_f64());
    if let Some(theta) = local {
        k.float("rope.freq_base_swa", theta as f32);
    }
    Ok(())
}
