//! Whether a release is what its list of hashes says, and every artifact in it sound.

use super::hashes::{self, SUMS, is_inside};
use super::manifest::SCHEMA;
use crate::check;
use crate::control::{Control, Report, Run, Unit};
use crate::source::Checkpoint;
use crate::writer::folder::MANIFEST;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What was found of a sound release.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// The release's name.
    pub name: String,
    /// Files whose hashes agree.
    pub files: usize,
    /// Artifacts of which every tensor was read, with how many there are.
    pub artifacts: Vec<(String, usize)>,
    /// Files on the list that are not here: a part of a release may have been fetched.
    pub absent: Vec<String>,
}

/// Whether a folder is a release, by its manifest.
pub fn is_release(folder: &Path) -> bool {
    read(folder).is_ok_and(|manifest| manifest["schema"] == SCHEMA)
}

pub(super) fn read(folder: &Path) -> Result<Value> {
    crate::input::read_json(&folder.join(MANIFEST))
}

/// Compares every file of a release with its hash, and reads every tensor.
///
/// # Errors
/// `BadInput` naming the first file that differs, or is not sound; `Io`; `Interrupted`.
pub fn verify(folder: &Path, control: &Control, report: &dyn Report) -> Result<Verified> {
    let run = Run::new(control, report);
    let manifest = read(folder)?;
    let list = folder.join(SUMS);
    let sums = hashes::parse_sums(&crate::input::read_text(&list)?, &list)?;
    let (here, absent): (Vec<_>, Vec<_>) = sums.into_iter().partition(|(name, _)| folder.join(name).is_file());
    if here.is_empty() {
        return Err(Error::bad_file(&list, "names no file that is here"));
    }
    let size = |name: &str| folder.join(name).metadata().map_or(0, |m| m.len());
    {
        let _phase = run.phase("hashing", here.iter().map(|(name, _)| size(name)).sum(), Unit::Bytes);
        for (name, hash) in &here {
            let found = crate::source::sha256_file(&folder.join(name), &control.cancel)?;
            if found != *hash {
                let what = format!("its SHA-256 is {found}, not {hash} as {SUMS} says");
                return Err(
                    Error::bad_file(folder.join(name), what).hint("the file was changed or is damaged; fetch it again")
                );
            }
            run.advance(size(name));
        }
    }
    let mut artifacts = Vec::new();
    for row in ["artifacts", "projectors"].iter().filter_map(|key| manifest[key].as_array()).flatten() {
        let Some(path) = row["path"].as_str().filter(|path| is_inside(path)) else { continue };
        let place = folder.join(path);
        if place.exists() {
            let found = check::verify(&Checkpoint::open(&place)?, None, control, report)?;
            artifacts.push((path.to_string(), found.tensors));
        }
    }
    let name = manifest["name"].as_str().unwrap_or_default().to_string();
    let absent = absent.into_iter().map(|(name, _)| name).collect();
    Ok(Verified { name, files: here.len(), artifacts, absent })
}
