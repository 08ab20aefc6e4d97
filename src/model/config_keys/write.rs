//! Writes the keys of a family.

use crate::gguf::Metadata;
use crate::model::config::Config;
use crate::model::family::{Entry, Facts, Family, Stated};
use crate::model::hf_config::family_of;
use crate::model::hf_json::HfJson;
use crate::{Error, Result};

/// Writes the keys of `family` in their order; `general` and `file_type` write what stands between them.
///
/// # Errors
/// `BadInput` when a size does not fit GGUF's types.
pub(in crate::model) fn write(
    config: &Config,
    family: &'static Family,
    json: &serde_json::Value,
    meta: &mut Metadata,
    mut general: impl FnMut(&mut Metadata),
    file_type: u32,
) -> Result<()> {
    let (_, name) = family_of(json)?;
    let facts = Facts { config, json: HfJson::new(json), name };
    for entry in family.entries() {
        match entry {
            Entry::General => general(meta),
            Entry::FileType => meta.set("general.file_type", file_type),
            Entry::Key(key) | Entry::Ours(key) => {
                let name = format!("{}.{}", family.gguf, key.name);
                match (key.from)(&facts) {
                    Some(Stated::Size(n)) => {
                        let n = u32::try_from(n)
                            .map_err(|_| Error::bad_input(format!("{} of {n} does not fit GGUF", key.name)))?;
                        meta.set(name, n);
                    }
                    Some(Stated::Float(x)) => meta.set(name, x),
                    Some(Stated::Text(text)) => meta.set(name, text),
                    Some(Stated::Flag(flag)) => meta.set(name, flag),
                    Some(Stated::Flags(flags)) => meta.set(name, flags),
                    None => {}
                }
            }
        }
    }
    Ok(())
}
