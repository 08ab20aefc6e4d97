//! The GGUF metadata of a model: architecture keys in the names, types and order of llama.cpp's converter, `general.*`
//! from [`super::naming`]. The tokenizer's keys follow from `GgufVocab::write`; file layout is none of its business.

use super::config::{Attention, Config, RopeScaling};
use super::hf_config::{HfJson, family_of};
use super::mapping::Model;
use super::naming;
use crate::gguf::{Metadata, Value};
use crate::source::Checkpoint;
use crate::{Error, Result};

/// The version of ggml's quantized blocks that `general.quantization_version` states.
pub const QUANTIZATION_VERSION: u32 = 2;

/// Whether a tensor stays F32 in a file of any type, as llama.cpp's converter and loader demand: vectors, norms and
/// routers. `name` is the GGUF name.
pub fn keeps_f32(name: &str, shape: &[usize]) -> bool {
    shape.len() <= 1
        || name.ends_with("_norm.weight")
        || name.ends_with(".ffn_gate_inp.weight")
        || name.ends_with(".ffn_gate_inp_shexp.weight")
        || !name.ends_with(".weight")
}

/// All metadata but the tokenizer's for a Hugging Face source; for a GGUF source its own metadata, tokenizer included,
/// with the new file type (`llama_ftype`).
///
/// # Errors
/// [`Error::BadInput`] when a value does not fit GGUF's types.
pub fn gguf_metadata(model: &Model, ckpt: &Checkpoint, file_type: u32) -> Result<Metadata> {
    if let Some(source) = ckpt.gguf() {
        let mut meta = source.clone();
        meta.set("general.file_type", file_type);
        meta.set("general.quantization_version", QUANTIZATION_VERSION);
        return Ok(meta);
    }
    let Some(json) = &model.hf_config else { return Err(Error::Internal("a model without config.json".into())) };
    let mut meta = Metadata::new();
    let family = model.known()?;
    meta.set("general.architecture", family.gguf);
    let mut w = Writer { meta, arch: family.gguf };
    if let RopeScaling::LongRope { original_context, .. } = model.config.rope.scaling
        && w.arch == "phi3"
    {
        w.float("rope.scaling.attn_factor", longrope_attention_factor(model.config.context, original_context));
    }
    let sizes = ParameterCount::of(model);
    let fallback = json.get("model_type").and_then(serde_json::Value::as_str).unwrap_or(w.arch);
    naming::set_general(&mut w.meta, ckpt.dir(), json, sizes.total, &sizes.label(), fallback);
    match w.arch {
        "phi3" => w.phi3(&model.config, json, file_type)?,
        "gemma2" => w.gemma2(&model.config, file_type)?,
        _ => w.common(model, json, file_type)?,
    }
    w.meta.set("general.quantization_version", QUANTIZATION_VERSION);
    Ok(w.meta)
}

/// Phi3's factor on rotary sines and cosines, by the context it was stretched to (transformers' longrope).
pub fn longrope_attention_factor(context: usize, original: usize) -> f32 {
    let scale = context as f64 / original as f64;
    if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() as f32 } else { 1.0 }
}

struct Writer {
    meta: Metadata,
    arch: &'static str,
}

impl Writer {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.meta.set(format!("{}.{key}", self.arch), value);
    }

    fn size(&mut self, key: &str, value: usize) -> Result<()> {
        let value =
            u32::try_from(value).map_err(|_| Error::bad_input(format!("{key} of {value} does not fit GGUF")))?;
        self.set(key, value);
        Ok(())
    }

    fn float(&mut self, key: &str, value: f32) {
        self.set(key, value);
    }

    fn head_lengths(&mut self, c: &Config) -> Result<()> {
        self.size("attention.key_length", c.head_dim)?;
        self.size("attention.value_length", c.head_dim)
    }

    /// llama, qwen and gemma3: the converter's `TextModel.set_gguf_parameters` and what their classes add.
    fn common(&mut self, model: &Model, json: &serde_json::Value, file_type: u32) -> Result<()> {
        let c = &model.config;
        let (_, name) = family_of(json)?;
        self.size("block_count", c.layers)?;
        self.size("context_length", c.context)?;
        self.size("embedding_length", c.hidden)?;
        self.size("feed_forward_length", c.ffn)?;
        self.size("attention.head_count", c.heads)?;
        self.size("attention.head_count_kv", c.kv_heads)?;
        self.rope_scaling(c, json)?;
        self.float("rope.freq_base", c.rope.theta);
        if let Some(theta) = c.rope.theta_local {
            self.float("rope.freq_base_swa", theta);
        }
        self.float("attention.layer_norm_rms_epsilon", c.norm_eps);
        if let Some(e) = &c.experts {
            self.size("expert_count", e.count)?;
            self.size("expert_used_count", e.used)?;
        }
        if name.defaults.states_head_dim || HfJson::new(json).has("head_dim") || c.head_dim * c.heads != c.hidden {
            self.head_lengths(c)?;
        }
        self.meta.set("general.file_type", file_type);
        match self.arch {
            "llama" => {
                self.size("vocab_size", c.vocab)?;
                self.size("rope.dimension_count", c.rope.dims)?;
                // llama.cpp reads and writes no window for this architecture; our own readers need it.
                if let Some(window) = window_of(c) {
                    self.size("attention.sliding_window", window)?;
                }
            }
            "gemma3" => {
                if let Some(cap) = c.logit_softcap {
                    self.float("final_logit_softcapping", cap);
                }
                self.sliding_window(c, 6)?;
            }
            _ => {}
        }
        if let Some(e) = c.experts.as_ref().filter(|_| self.arch != "llama") {
            self.size("expert_feed_forward_length", e.ffn)?;
            if let Some(shared) = e.shared_ffn {
                self.size("expert_shared_feed_forward_length", shared)?;
            }
        }
        Ok(())
    }

    fn rope_scaling(&mut self, c: &Config, json: &serde_json::Value) -> Result<()> {
        match c.rope.scaling {
            RopeScaling::Linear { factor } => {
                self.set("rope.scaling.type", "linear");
                self.float("rope.scaling.factor", factor);
            }
            RopeScaling::Yarn { factor, original_context, attention_factor, beta_fast, beta_slow } => {
                self.set("rope.scaling.type", "yarn");
                self.float("rope.scaling.factor", factor);
                self.size("rope.scaling.original_context_length", original_context)?;
                if let Some(factor) = attention_factor {
                    self.float("rope.scaling.yarn_attn_factor", factor);
                }
                // Only what the file states; readers know the defaults.
                let j = HfJson::new(json);
                let table = j.get("rope_scaling").or_else(|| j.get("rope_parameters"));
                let states = |key: &str| table.is_some_and(|t| t.get(key).is_some_and(|v| !v.is_null()));
                if states("beta_fast") {
                    self.float("rope.scaling.yarn_beta_fast", beta_fast);
                }
                if states("beta_slow") {
                    self.float("rope.scaling.yarn_beta_slow", beta_slow);
                }
            }
            RopeScaling::LongRope { .. } => self.set("rope.scaling.type", "longrope"),
            RopeScaling::Default | RopeScaling::Llama3 { .. } => {}
        }
        Ok(())
    }

    /// The window, and which layers slide where they are not all but every `usual`-th, as readers take for granted.
    fn sliding_window(&mut self, c: &Config, usual: usize) -> Result<()> {
        let Some(window) = window_of(c) else { return Ok(()) };
        self.size("attention.sliding_window", window)?;
        let slides: Vec<bool> = c.attention.iter().map(|a| *a != Attention::Full).collect();
        if slides.iter().enumerate().any(|(i, slides)| *slides != ((i + 1) % usual != 0)) {
            self.set("attention.sliding_window_pattern", slides);
        }
        Ok(())
    }

    fn phi3(&mut self, c: &Config, json: &serde_json::Value, file_type: u32) -> Result<()> {
        let original = match c.rope.scaling {
            RopeScaling::LongRope { original_context, .. } => original_context,
            _ => HfJson::new(json).size(&["original_max_position_embeddings"])?.unwrap_or(4096),
        };
        self.size("context_length", c.context)?;
        self.size("rope.scaling.original_context_length", original)?;
        self.size("embedding_length", c.hidden)?;
        self.size("feed_forward_length", c.ffn)?;
        self.size("block_count", c.layers)?;
        self.size("attention.head_count", c.heads)?;
        self.size("attention.head_count_kv", c.kv_heads)?;
        self.float("attention.layer_norm_rms_epsilon", c.norm_eps);
        self.size("rope.dimension_count", c.rope.dims)?;
        self.float("rope.freq_base", c.rope.theta);
        self.meta.set("general.file_type", file_type);
        // A zero says that there is none; an absent key would mean an unknown one.
        self.size("attention.sliding_window", window_of(c).unwrap_or(0))
    }

    fn gemma2(&mut self, c: &Config, file_type: u32) -> Result<()> {
        self.size("context_length", c.context)?;
        self.size("embedding_length", c.hidden)?;
        self.size("block_count", c.layers)?;
        self.size("feed_forward_length", c.ffn)?;
        self.size("attention.head_count", c.heads)?;
        self.size("attention.head_count_kv", c.kv_heads)?;
        self.float("attention.layer_norm_rms_epsilon", c.norm_eps);
        self.head_lengths(c)?;
        self.meta.set("general.file_type", file_type);
        if let Some(cap) = c.attn_softcap {
            self.float("attn_logit_softcapping", cap);
        }
        if let Some(cap) = c.logit_softcap {
            self.float("final_logit_softcapping", cap);
        }
        self.sliding_window(c, 2)
    }
}

fn window_of(c: &Config) -> Option<usize> {
    c.attention.iter().find_map(|a| match a {
        Attention::Sliding { window } => Some(*window),
        Attention::Full => None,
    })
}

/// How many weights there are, for `general.size_label` (gguf-py's `get_total_parameter_count` and `size_label`).
struct ParameterCount {
    total: u64,
    /// Outside of experts, and in one expert of every layer.
    active_shape: u64,
    experts: u64,
}

impl ParameterCount {
    fn of(model: &Model) -> Self {
        let experts = model.config.experts.as_ref().map_or(0, |e| e.count as u64);
        let mut count = ParameterCount { total: 0, active_shape: 0, experts };
        for t in &model.tensors {
            let size = t.elements() as u64;
            count.total += size;
            count.active_shape += if t.role.is_expert() { size / experts.max(1) } else { size };
        }
        for g in &model.generated {
            count.total += g.values.len() as u64;
            count.active_shape += g.values.len() as u64;
        }
        count
    }

    fn label(&self) -> String {
        match self.experts {
            0 => rounded(self.total),
            n => format!("{n}x{}", rounded(self.active_shape)),
        }
    }
}

/// `135M`, `1.7B`: at least two digits.
fn rounded(params: u64) -> String {
    let n = params as f64;
    let (scaled, unit) = if n > 1e12 {
        (n * 1e-12, 'T')
    } else if n > 1e9 {
        (n * 1e-9, 'B')
    } else if n > 1e6 {
        (n * 1e-6, 'M')
    } else {
        (n * 1e-3, 'K')
    };
    let whole = scaled.round_ties_even() as u64;
    let digits = if whole == 0 { 0 } else { whole.to_string().len() };
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let cases =
            [(134_515_008, "135M"), (1_711_376_384, "1.7B"), (8_030_261_312, "8.0B"), (152_000, "152K"), (40, "0.04K")];
        for (n, label) in cases {
            assert_eq!(rounded(n), label);
        }
    }

    #[test]
    fn vectors_norms_and_routers_keep_f32() {
        assert!(keeps_f32("blk.0.attn_q.bias", &[64]));
        assert!(keeps_f32("output_norm.weight", &[64]));
        assert!(keeps_f32("blk.3.ffn_gate_inp.weight", &[8, 64]));
        assert!(keeps_f32("blk.3.ffn_gate_inp_shexp.weight", &[1, 64]));
        assert!(!keeps_f32("blk.3.ffn_gate.weight", &[8, 64]));
        assert!(!keeps_f32("token_embd.weight", &[8, 64]));
    }
}
