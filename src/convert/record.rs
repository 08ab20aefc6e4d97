//! What a GGUF file says of how it was made: the recipe as far as it decides this file, the source, and the calibration
//! data; and the metadata that the recipe sets whatever the source says.

use super::recipe::{Override, OverrideValue, Recipe, Target};
use crate::calibration::data::DataReport;
use crate::eval::damage::SORTED;
use crate::gguf::{ALIGNMENT_KEY, Metadata, Value};
use crate::isa::Isa;
use crate::model::SourceModel;
use crate::source::SourceFile;
use crate::{Error, Result};

/// The recipe of the file, as [`Recipe::from_json`] reads it.
pub const RECIPE: &str = "quantize.recipe";
/// SHA-256 of every source file.
pub const SOURCE_HASHES: &str = "quantize.source.sha256";
/// The hash of all tensors' bytes, see [`crate::writer::gguf::hash_of_data`]; filled in when the file is sealed.
pub const DATA_HASH: &str = "quantize.data.sha256";
/// The instructions that activations were computed with, where any were: their last bits depend on it.
pub const INSTRUCTIONS: &str = "quantize.instructions";
/// SHA-256 of the tokens that were calibrated on.
pub const DATA_TOKENS: &str = "quantize.calibration.sha256";
/// How many tensors the importance matrix has, where one was used; llama-quantize's key.
const IMATRIX_ENTRIES: &str = "quantize.imatrix.entries_count";

/// What is known of a run beside its recipe.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    pub data: Option<&'a DataReport>,
    pub imatrix: Option<ImatrixFacts>,
}

/// An importance matrix, as llama-quantize describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImatrixFacts {
    pub file: Option<String>,
    pub dataset: Option<String>,
    pub entries: u32,
    /// 0 where the file does not say.
    pub chunks: u32,
}

/// Records how a file is made: by `recipe`, which has no other output. Hashes of the source are filled in at the end, in as
/// many bytes.
pub(super) fn write(metadata: &mut Metadata, recipe: &Recipe, source: &SourceModel, facts: &Facts) {
    metadata.set("quantize.version", env!("CARGO_PKG_VERSION"));
    metadata.set(RECIPE, recipe.to_json().to_string());
    if let [Target::Budget { name, .. }] = &recipe.outputs[..] {
        metadata.set("quantize.target", name.as_str());
    }
    let files = source.ckpt.files();
    let name = |f: &SourceFile| f.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    metadata.set(DATA_HASH, "0".repeat(64));
    metadata.set("quantize.source.files", files.iter().map(name).collect::<Vec<String>>());
    if recipe.hash_sources {
        metadata.set(SOURCE_HASHES, vec!["0".repeat(64); files.len()]);
    }
    if recipe.file_feedback() {
        metadata.set(SORTED, recipe.rounding.sort_channels);
    }
    if let Some(imatrix) = &facts.imatrix {
        for (key, value) in [("file", &imatrix.file), ("dataset", &imatrix.dataset)] {
            if let Some(value) = value {
                metadata.set(format!("quantize.imatrix.{key}"), value.as_str());
            }
        }
        metadata.set(IMATRIX_ENTRIES, imatrix.entries);
        if imatrix.chunks > 0 {
            metadata.set("quantize.imatrix.chunks_count", imatrix.chunks);
        }
    }
    if let Some(data) = facts.data {
        metadata.set(INSTRUCTIONS, Isa::active().name());
        describe(metadata, data);
    }
}

/// Which data a file is made with.
pub fn describe(metadata: &mut Metadata, data: &DataReport) {
    let names: Vec<String> = data.sources.iter().map(|s| s.name.clone()).collect();
    metadata.set("quantize.calibration.sources", names);
    metadata.set("quantize.calibration.tokens", data.tokens as u32);
    metadata.set("quantize.calibration.seq_len", data.seq_len as u32);
    metadata.set("quantize.calibration.seed", data.seed);
    metadata.set(DATA_TOKENS, data.sha256.as_str());
}

/// The recipe that a file records; `None` where there is none, or one of an older form.
pub fn read(metadata: &Metadata) -> Option<Recipe> {
    Recipe::from_json(metadata.str(RECIPE)?).ok()
}

/// Whether a file records an importance matrix.
pub fn used_imatrix(metadata: &Metadata) -> bool {
    metadata.uint(IMATRIX_ENTRIES).is_some()
}

/// Whether a file was calibrated on the way, so that nothing but the whole run gives its tensors again.
pub fn needs_the_run(metadata: &Metadata) -> bool {
    used_feedback(metadata) || read(metadata).is_some_and(|recipe| recipe.data.is_some())
}

/// Whether a file records error feedback.
pub fn used_feedback(metadata: &Metadata) -> bool {
    match read(metadata) {
        Some(recipe) => recipe.file_feedback(),
        // As version 0.1.0 wrote it.
        None => metadata.str("quantize.search") == Some("feedback"),
    }
}

/// Sets values. A key that exists keeps its type, down to the width of a number; keys that say how the file is laid out
/// or where it comes from cannot be set.
///
/// # Errors
/// `Request` naming the key.
pub(super) fn override_metadata(metadata: &mut Metadata, overrides: &[Override]) -> Result<()> {
    for Override { key, value } in overrides {
        let bad = |why: &str| Error::request(format!("metadata key '{key}': {why}"));
        if key.is_empty() || key.len() > 127 {
            return Err(bad("keys have 1 to 127 characters"));
        }
        if key == ALIGNMENT_KEY || key.starts_with("split.") || key.starts_with("quantize.") {
            return Err(bad("it describes the file itself and cannot be set"));
        }
        let old = metadata.get(key);
        let value = match value {
            OverrideValue::Int(v) => {
                int_like(old, *v).ok_or_else(|| bad("out of the range of the existing value's type"))?
            }
            OverrideValue::Float(v) => {
                let v = if matches!(old, Some(Value::F64(_))) { Value::F64(*v) } else { Value::F32(*v as f32) };
                if !matches!(v, Value::F64(v) if v.is_finite()) && !matches!(v, Value::F32(v) if v.is_finite()) {
                    return Err(bad("not a finite number"));
                }
                v
            }
            OverrideValue::Bool(v) => Value::Bool(*v),
            OverrideValue::Str(v) => Value::String(v.clone()),
        };
        if old.is_some_and(|old| std::mem::discriminant(old) != std::mem::discriminant(&value)) {
            return Err(bad("it exists and holds another type"));
        }
        metadata.set(key, value);
    }
    Ok(())
}

fn int_like(existing: Option<&Value>, v: i64) -> Option<Value> {
    Some(match existing {
        Some(Value::U8(_)) => Value::U8(v.try_into().ok()?),
        Some(Value::I8(_)) => Value::I8(v.try_into().ok()?),
        Some(Value::U16(_)) => Value::U16(v.try_into().ok()?),
        Some(Value::I16(_)) => Value::I16(v.try_into().ok()?),
        Some(Value::U32(_)) => Value::U32(v.try_into().ok()?),
        Some(Value::I32(_)) => Value::I32(v.try_into().ok()?),
        Some(Value::U64(_)) => Value::U64(v.try_into().ok()?),
        _ => Value::I64(v),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, value: OverrideValue) -> Override {
        Override { key: key.into(), value }
    }

    #[test]
    fn overrides_keep_the_width_of_the_existing_value() {
        use OverrideValue::*;
        let mut m = Metadata::new();
        m.set("llama.context_length", 2048u32);
        let good = [
            set("llama.context_length", Int(4096)),
            set("a.b", Str("x:y".into())),
            set("a.c", Bool(true)),
            set("a.d", Float(0.5)),
            set("a.e", Int(-3)),
        ];
        override_metadata(&mut m, &good).unwrap();
        assert_eq!(m.get("llama.context_length"), Some(&Value::U32(4096)));
        assert_eq!(m.str("a.b"), Some("x:y"));
        assert_eq!(m.bool("a.c"), Some(true));
        assert_eq!(m.get("a.e"), Some(&Value::I64(-3)));
        for bad in [
            set("", Int(1)),
            set("llama.context_length", Int(-1)),
            set("llama.context_length", Str("2048".into())),
            set("a.d", Int(1)),
            set("x", Float(f64::NAN)),
            set("x", Float(1e40)),
            set("general.alignment", Int(64)),
            set("split.count", Int(2)),
            set("quantize.version", Str("0".into())),
        ] {
            assert!(override_metadata(&mut m, std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }
}
