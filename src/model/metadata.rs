//! The GGUF metadata of a model: architecture keys by the rows of [`super::config_keys`], `general.*` from [`super::naming`]. The tokenizer's keys follow from `GgufVocab::write`; file layout is none of its business.

use super::blueprint::pooling;
use super::understood::Model;
use super::{config_keys, naming};
use crate::gguf::Metadata;
use crate::source::Checkpoint;
use crate::{Error, Result};

/// The version of ggml's quantized blocks that `general.quantization_version` states.
pub const QUANTIZATION_VERSION: u32 = 2;

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
    let arch = match (&model.family, &model.drawn) {
        (Ok(family), _) => family.gguf,
        (Err(_), Some(_)) => &model.config.arch,
        (Err(opaque), None) => return Err(opaque.error()),
    };
    let mut meta = Metadata::new();
    meta.set("general.architecture", arch);
    let sizes = ParameterCount::of(model);
    let fallback = json.get("model_type").and_then(serde_json::Value::as_str).unwrap_or(arch);
    let general = |meta: &mut Metadata| {
        naming::set_general(meta, ckpt.dir(), json, sizes.total, &sizes.label(), fallback);
    };
    match (&model.family, &model.drawn) {
        (Ok(family), _) => {
            config_keys::write(&model.config, family, json, &mut meta, general, file_type)?;
            if let Some(kind) = pooling(ckpt.dir())? {
                meta.set(format!("{arch}.pooling_type"), kind);
            }
        }
        (Err(_), drawn) => {
            general(&mut meta);
            for (key, value) in drawn.iter().flat_map(|drawn| drawn.keys.iter()) {
                meta.set(key, value.clone());
            }
            meta.set("general.file_type", file_type);
        }
    }
    meta.set("general.quantization_version", QUANTIZATION_VERSION);
    Ok(meta)
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
        let mut count = ParameterCount { total: 0, active_shape: 0, experts: 0 };
        let (mut experts, mut stacks) = (0, 0);
        for t in &model.tensors {
            let size = t.elements() as u64;
            count.total += size;
            match t.shape[..] {
                // Their biases count as shared.
                [n, _, _] if t.name.contains("_exps.") => {
                    let n = (n as u64).max(1);
                    count.active_shape += size / n;
                    (experts, stacks) = (experts + n, stacks + 1);
                }
                _ => count.active_shape += size,
            }
        }
        count.experts = experts.checked_div(stacks).unwrap_or(0);
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
}
