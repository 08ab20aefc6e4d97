//! Whether configuration and tensors agree on what is packed, and how: loaders go by the configuration, and take what it
//! does not name for plain weights.

use super::{Linear, Objection, View};
use crate::dtype::{Dtype, GgmlType};
use crate::model::Role;
use crate::packed::{ENCODERS, group_of};
use crate::source::TensorMeta;
use serde_json::Value;

/// The formats of compressed-tensors 0.20.
const FORMATS: [&str; 13] = [
    "dense",
    "sparse-bitmask",
    "sparse-24-bitmask",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "marlin-24",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp6-pack-quantized",
    "mxfp8-quantized",
];

impl View<'_> {
    /// What the loaders of torch find in the configuration of a packed folder.
    pub(super) fn packing(&mut self) {
        let Some(scheme) = self.ckpt.scheme() else { return };
        match scheme.name() {
            "compressed-tensors" => self.compressed(scheme.config()),
            "bitsandbytes" => {
                self.rows_of_blocks();
                let on = |key: &str| scheme.config().get(key).and_then(Value::as_bool) == Some(true);
                for (suffix, key) in [("SCB", "load_in_8bit"), ("weight.absmax", "load_in_4bit")] {
                    if self.linears.iter().any(|l| l.shape(suffix).is_some()) && !on(key) {
                        self.refuse(format!("layers have {suffix}, but {key} is not on in quantization_config"));
                    }
                }
            }
            _ => {}
        }
    }

    /// bitsandbytes 0.50 begins a block at every row when it decodes four bits on a CPU, although its blocks run on.
    fn rows_of_blocks(&mut self) {
        let block = |l: &Linear| {
            let blocks = *l.shape("weight.absmax")?.first()?;
            Some((l.rows * l.cols).div_ceil(blocks.max(1)).next_power_of_two())
        };
        let cut = |l: &&Linear| block(l).is_some_and(|block| !l.cols.is_multiple_of(block));
        if let Some(first) = self.linears.iter().find(cut).map(|l| l.path.to_string()) {
            let what = "has rows that are no whole blocks: GPUs decode them, but bitsandbytes 0.50 wrongly on a CPU";
            self.found.push(Objection { modules: vec![first], unknown: true, ..Objection::to_all(what, false) });
        }
    }

    /// Encoders beside the text model that transformers calls `model.` and the folder's name.
    fn renamed_towers(&mut self, ignored: impl Fn(&str) -> bool) {
        let plain = |t: &&TensorMeta| {
            t.shape.len() == 2 && t.name.ends_with(".weight") && self.ckpt.packed_pieces(t).is_empty()
        };
        let lost = self.ckpt.tensors().iter().filter(plain).find_map(|t| {
            let root = ENCODERS.iter().find(|root| t.name.strip_prefix(**root).is_some_and(|n| n.starts_with('.')))?;
            (!ignored(&format!("model.{root}."))).then(|| t.name.clone())
        });
        if let Some(path) = lost {
            let what = "is not packed, and ignored by quantization_config under this name alone; transformers has it under \
                        'model.'";
            self.found.push(Objection { modules: vec![path], ..Objection::to_all(what, true) });
        }
    }

    /// Packed modules that vLLM, which goes by the same lists under names of its own, takes for plain ones.
    pub(super) fn unnamed_in_vllm(&mut self) {
        let Some(scheme) = self.ckpt.scheme().filter(|scheme| scheme.name() == "compressed-tensors") else { return };
        let unnamed = |l: &&Linear| !l.pieces.is_empty() && group_of(scheme.config(), l.path).is_none();
        if let Some(path) = self.linears.iter().find(unnamed).map(|l| l.path.to_string()) {
            let what = "is packed, but no group of quantization_config names it";
            self.found.push(Objection { modules: vec![path], unknown: true, ..Objection::to_all(what, false) });
        }
    }

    fn compressed(&mut self, config: &Value) {
        let groups = config.get("config_groups").and_then(Value::as_object);
        let own = groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("format"));
        let formats = config.get("format").into_iter().chain(own).filter_map(Value::as_str);
        if let Some(unheard) = formats.into_iter().find(|format| !FORMATS.contains(format)) {
            self.refuse(format!("compressed-tensors has no format '{unheard}'"));
        }
        let group = |path: &str| group_of(config, path);
        self.each(true, |l| match (l.pieces.is_empty(), group(l.path)) {
            (true, Some(_)) => {
                Some("is not packed, but quantization_config neither ignores nor leaves it out".to_string())
            }
            (false, None) => Some("is packed, but no group of quantization_config names it".to_string()),
            _ => None,
        });
        self.renamed_towers(|path| group(path).is_none());
        let has_head = self.linears.iter().any(|l| l.role == Role::Output);
        if !has_head && group("lm_head").is_some() {
            self.refuse("quantization_config does not ignore lm_head, which is not packed");
        }
        self.each(true, |l| {
            let (_, packed) = l.pieces.iter().find(|(suffix, _)| ["weight_packed", "weight"].contains(suffix))?;
            let weights = group(l.path)?.get("weights")?;
            let number = |key: &str| weights.get(key).and_then(Value::as_u64).map(|n| n as usize);
            let per_number = if packed.dtype == Dtype::Ggml(GgmlType::I32) { 32 } else { 8 };
            let bits = packed.shape.get(1)? * per_number / l.cols.max(1);
            let of_config = number("num_bits")?;
            if bits != of_config {
                return Some(format!("has {bits} bits, but quantization_config says {of_config}"));
            }
            let groups = l.shape("weight_scale")?.get(1).copied().filter(|groups| *groups > 0)?;
            let of_config = number("group_size")?;
            let differs = l.cols.div_ceil(of_config.max(1)) != groups;
            differs.then(|| format!("has {groups} groups, but quantization_config says groups of {of_config}"))
        });
    }
}
