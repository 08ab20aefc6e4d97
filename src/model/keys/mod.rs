//! GGUF's metadata keys as rows: a name, what a configuration says under it, and what reading it does to a configuration.
//! Families list the keys that llama.cpp's converter writes for them, in its order; one list in the order of dependence
//! reads them back (`read`). From both follows what a GGUF file of a family cannot hold (`compare`). `general.*` and the
//! tokenizer's keys are not here.

mod compare;
mod read;
mod rows;

pub use compare::{Lost, differences, lost};
pub use read::Stored;
pub use rows::*;

use super::config::Config;
use super::families::{Family, HfName};
use super::hf_config::{HfJson, family_of};
use crate::gguf::Metadata;
use crate::{Error, Result};

/// What a key's value is made from.
pub struct Facts<'a> {
    pub(super) config: &'a Config,
    pub(super) json: HfJson<'a>,
    pub(super) name: &'static HfName,
}

/// A value before it has GGUF's type.
pub enum Stated {
    Size(usize),
    Float(f32),
    Text(&'static str),
    Flag(bool),
    Flags(Vec<bool>),
}

/// One key of a family's architecture.
#[derive(Debug)]
pub struct Key {
    /// Behind `{architecture}.`.
    pub name: &'static str,
    /// `None`: the key is not written.
    pub(super) from: fn(&Facts) -> Option<Stated>,
    pub(super) to: fn(&mut Config, &Stored) -> Result<()>,
}

/// A place in the metadata of a family.
#[derive(Debug)]
pub enum Entry {
    Key(&'static Key),
    /// A key that only this program reads: a reader that follows llama.cpp does not know the fact.
    Ours(&'static Key),
    /// `general.*`, names and licences, stand here.
    General,
    /// `general.file_type` stands here.
    FileType,
}

/// Writes the keys of `family` in their order; `general` and `file_type` write what stands between them.
///
/// # Errors
/// `BadInput` when a size does not fit GGUF's types.
pub(super) fn write(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::all;

    #[test]
    fn every_key_that_is_written_is_read_or_belongs_to_one_that_is() {
        let read = |key: &Key| read::READ.iter().any(|r| r.name == key.name);
        let beside_type = ["factor", "original_context_length", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"];
        for family in all() {
            let mut marks = (0, 0);
            for entry in family.entries() {
                match entry {
                    Entry::General => marks.0 += 1,
                    Entry::FileType => marks.1 += 1,
                    Entry::Key(key) | Entry::Ours(key) => {
                        let scaling = key.name.strip_prefix("rope.scaling.");
                        let beside = scaling.is_some_and(|k| beside_type.contains(&k) || k == "attn_factor");
                        assert!(read(key) || beside, "{} of {} is never read", key.name, family.gguf);
                    }
                }
            }
            assert_eq!(marks, (1, 1), "{}", family.gguf);
        }
    }
}
