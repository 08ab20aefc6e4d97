//! A release on its way to the Hub: which files go, and that they are those that were released.

use super::hashes::{SUMS, is_inside, parse_sums};
use super::manifest::SCHEMA;
use super::verify::read;
use crate::control::{Run, Unit};
use crate::digest::sha256;
use crate::error::Hint;
use crate::source::hub::upload::{Content, Upload, of_file};
use crate::{Error, Result};
use std::path::Path;

/// A release to be sent.
pub struct Package {
    /// What it holds, in a line.
    pub summary: String,
    pub files: Vec<Upload>,
}

/// The files of the release in `folder`, as they go to the repository `id`: its card has that name where none was known.
///
/// # Errors
/// `Request` for a folder that is no release; `BadInput` for a file that is missing, or is not as it was released; `Io`;
/// `Interrupted`.
pub fn package(folder: &Path, id: &str, run: Run) -> Result<Package> {
    let manifest = read(folder).ok().filter(|manifest| manifest["schema"] == SCHEMA);
    let manifest = manifest.ok_or_else(|| {
        let what = format!("{} is not a release: it has no release manifest", folder.display());
        Error::request(what).hint(Hint::MakeRelease)
    })?;
    let list = folder.join(SUMS);
    let text = crate::input::read_text(&list)?;
    let mut files = Vec::new();
    for (path, hash) in parse_sums(&text, &list)? {
        if !folder.join(&path).is_file() {
            let what = format!("is listed in {SUMS} but missing");
            return Err(Error::bad_file(folder.join(&path), what).hint("push a complete release"));
        }
        files.push(of_file(folder, &path, hash)?);
    }
    {
        let _phase = run.phase("hashing", files.iter().map(|f| f.size).sum(), Unit::Bytes);
        for file in &files {
            let place = folder.join(&file.path);
            if crate::source::sha256_file(&place, &run.control.cancel)? != file.sha256 {
                let what = format!("was changed after the release: its hash does not match {SUMS}");
                return Err(Error::bad_file(place, what).hint("make the release again"));
            }
            run.advance(file.size);
        }
    }
    let as_text = |path: &str, text: String| Upload {
        path: path.to_string(),
        size: text.len() as u64,
        sha256: sha256(text.as_bytes()),
        content: Content::Text(text),
    };
    files.push(as_text(SUMS, text));
    let placeholder = manifest["placeholder"].as_str().filter(|p| !p.is_empty());
    let folders = manifest["artifacts"].as_array().into_iter().flatten().filter_map(|row| row["path"].as_str());
    let cards = folders.filter(|path| is_inside(path)).map(|path| format!("{path}/README.md"));
    for path in cards.chain(["README.md".to_string()]).filter(|path| folder.join(path).is_file()) {
        let card = crate::input::read_text(&folder.join(&path))?;
        let card = placeholder.map_or(card.clone(), |placeholder| card.replace(placeholder, id));
        files.push(as_text(&path, card));
    }
    let name = manifest["name"].as_str().unwrap_or_default();
    let types = manifest["artifacts"].as_array().into_iter().flatten().filter_map(|row| row["type"].as_str());
    let summary = format!("{name}: {}", types.collect::<Vec<_>>().join(", "));
    Ok(Package { summary, files })
}
