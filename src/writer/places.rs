//! Which files a run reads and writes: no output takes the place of an input, not even with force, none of another output,
//! and of a file that is there only with force. It looks at names and identities, never at contents.

use crate::disk::folder_of;
use crate::disk::partial::refuse_existing;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The files that a run reads.
pub struct Inputs(Vec<Identity>);

impl Inputs {
    /// What is behind `paths`, of which folders stand for the checkpoint in them.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(paths.into_iter().flat_map(files_behind).filter_map(|f| identity(&f)).collect())
    }

    /// That `output` takes the place of none of them.
    ///
    /// # Errors
    /// `Request`.
    pub fn refuse(&self, output: &Path) -> Result<()> {
        if identity(output).is_some_and(|it| self.0.contains(&it)) {
            let what = "is the source itself, or another file that this run reads; name another";
            return Err(Error::request(format!("{} {what}", output.display())));
        }
        Ok(())
    }
}

/// Checks `outputs` against each other and against the files behind `inputs`.
///
/// # Errors
/// `Request`; `Exists` for what is there unless `force`.
pub fn check<'a>(
    inputs: impl IntoIterator<Item = &'a Path>,
    outputs: impl IntoIterator<Item = &'a Path>,
    force: bool,
) -> Result<()> {
    let read = Inputs::new(inputs);
    let mut written = Vec::new();
    for output in outputs {
        read.refuse(output)?;
        refuse_existing(output, force)?;
        let place = place(output);
        if written.contains(&place) {
            return Err(Error::request(format!("{} is named for two outputs; name another file", output.display())));
        }
        written.push(place);
    }
    Ok(())
}

/// The files that are read where `input` is named, in order.
pub fn files_behind(input: &Path) -> Vec<PathBuf> {
    let listed = |folder: &Path, keep: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let kept = entries.filter(|e| e.file_name().to_str().is_some_and(keep));
        let mut kept: Vec<PathBuf> = kept.map(|e| e.path()).collect();
        kept.sort();
        kept
    };
    if input.is_dir() {
        return listed(input, &of_checkpoint);
    }
    let name = input.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let mut all = vec![input.to_path_buf()];
    if name.ends_with(".safetensors") {
        all.extend(listed(folder_of(input), &of_checkpoint));
    }
    if let Some((stem, _)) = name.split_once("-00001-of-") {
        all.extend(listed(folder_of(input), &|other| other.starts_with(stem) && other.contains("-of-")));
    }
    all
}

/// What a checkpoint's folder holds for itself; reports and artifacts may lie there too.
fn of_checkpoint(name: &str) -> bool {
    let beginnings = [
        "adapter_",
        "pytorch_model",
        "consolidated",
        "tokenizer",
        "chat_template",
        "config.",
        "generation_config",
        "special_tokens",
        "added_tokens",
    ];
    let ends = [".safetensors", ".safetensors.index.json", ".model", ".jinja"];
    beginnings.iter().any(|b| name.starts_with(b))
        || ends.iter().any(|e| name.ends_with(e))
        || matches!(
            name,
            "vocab.json"
                | "vocab.txt"
                | "merges.txt"
                | "params.json"
                | "tekken.json"
                | "README.md"
                | "quantize-manifest.json"
        )
}

/// What tells whether two names are of one file.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

/// `None` where there is no such file.
fn identity(path: &Path) -> Option<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok().filter(|m| m.is_file())?;
        Some((metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    path.canonicalize().ok().filter(|p| p.is_file())
}

/// Where a file goes that need not be there yet.
fn place(path: &Path) -> PathBuf {
    let folder = folder_of(path);
    folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf()).join(path.file_name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_take_the_place_of_nothing_that_is_read_or_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["model.safetensors", "config.json", "text.txt", "old.html"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::hard_link(at("model.safetensors"), at("linked")).unwrap();
        let refused = |outputs: &[&str], force: bool| {
            let outputs: Vec<PathBuf> = outputs.iter().map(|o| at(o)).collect();
            check([dir.path(), &at("text.txt")], outputs.iter().map(PathBuf::as_path), force).is_err()
        };
        for input in ["model.safetensors", "config.json", "text.txt", "linked"] {
            assert!(refused(&[input], true), "{input}");
        }
        assert!(refused(&["old.html"], false) && !refused(&["old.html"], true));
        assert!(refused(&["new.html", "./new.html"], true) && !refused(&["new.html", "new.md"], false));
    }
}
