//! How finished outputs get their names: in steps that are written down before the first of them, so that a run which was
//! killed between two of them is brought to its end by the next. Every step can be carried out again.

use crate::disk;
use crate::disk::partial::PartialFile;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// The provenance of a folder that this program made. Its presence is what lets a run that may replace outputs replace the
/// folder.
pub const MANIFEST: &str = "quantize-manifest.json";

/// One name that is given, in a folder that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A file's.
    File {
        from: String,
        to: String,
        /// Whether it takes the place of what has the name.
        replace: bool,
    },
    /// A folder's. What has the name goes to `old`, and is removed; then `journal`, which lies in the folder.
    Folder { from: String, to: String, old: String, journal: String },
}

impl Step {
    /// Makes a file whole but for its name. How that is given.
    ///
    /// # Errors
    /// `Io`.
    pub fn of(file: &PartialFile) -> Result<Self> {
        file.complete()?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Step::File { from: name(file.temp_path()), to: name(file.target()), replace: file.replaces() })
    }

    /// That names are names, and what is renamed is unfinished work.
    pub fn is_sound(&self) -> bool {
        let plain = |name: &String| Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        match self {
            Step::File { from, to, .. } => plain(from) && plain(to) && from.ends_with(".partial"),
            Step::Folder { from, to, old, journal } => {
                [from, to, old, journal].into_iter().all(plain)
                    && from.ends_with(".partial")
                    && old.ends_with(".replaced")
            }
        }
    }

    /// Whether it is done in one operation.
    pub fn is_one(&self) -> bool {
        matches!(self, Step::File { .. })
    }

    /// The name that is given.
    pub fn to(&self) -> &str {
        match self {
            Step::File { to, .. } | Step::Folder { to, .. } => to,
        }
    }

    /// Whether something is left to do in `folder`.
    pub fn is_due(&self, folder: &Path) -> bool {
        match self {
            Step::File { from, .. } => folder.join(from).exists(),
            Step::Folder { from, to, old, journal } => {
                [folder.join(from), folder.join(old), folder.join(to).join(journal)].iter().any(|path| path.exists())
            }
        }
    }

    /// Gives the name, as far as that was not done before.
    ///
    /// # Errors
    /// `Exists` where something took the name meanwhile; `Io`.
    pub fn carry_out(&self, folder: &Path) -> Result<()> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |e: std::io::Error| match e.kind() {
                ErrorKind::AlreadyExists => Error::Exists { path, what: "exists", replaceable: true },
                _ => Error::io(&path, e),
            }
        };
        match self {
            Step::File { from, to, replace } => {
                let (from, to) = (folder.join(from), folder.join(to));
                if from.exists() {
                    let rename = if *replace { disk::rename } else { disk::rename_new };
                    rename(&from, &to).map_err(io(&to))?;
                }
            }
            Step::Folder { from, to, old, journal } => {
                let [from, to, old] = [from, to, old].map(|name| folder.join(name));
                if from.exists() {
                    if to.exists() {
                        // Of an earlier run, which did not come to its end.
                        disk::remove_folder(&old, MANIFEST).map_err(io(&old))?;
                        disk::rename(&to, &old).map_err(io(&to))?;
                    }
                    disk::rename(&from, &to).map_err(io(&to))?;
                    disk::sync_folder_of(&to);
                }
                disk::remove_folder(&old, MANIFEST).map_err(io(&old))?;
                let journal = to.join(journal);
                disk::remove_file(&journal).map_err(io(&journal))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_from_wherever_it_was_left() {
        let step = Step::Folder {
            from: "m.partial".into(),
            to: "m".into(),
            old: "m.replaced".into(),
            journal: ".journal".into(),
        };
        assert!(step.is_sound());
        // Which of new, old in place, and old out of the way is there.
        for left in [["m.partial", "m"].as_slice(), &["m.partial", "m.replaced"], &["m.partial"], &["m", "m.replaced"]]
        {
            let dir = tempfile::tempdir().unwrap();
            for name in left {
                std::fs::create_dir(dir.path().join(name)).unwrap();
                let new = *name == "m.partial" || (*name == "m" && !left.contains(&"m.partial"));
                std::fs::write(dir.path().join(name).join("config.json"), if new { "new" } else { "old" }).unwrap();
            }
            for _ in 0..2 {
                step.carry_out(dir.path()).unwrap();
                assert_eq!(std::fs::read_to_string(dir.path().join("m/config.json")).unwrap(), "new", "{left:?}");
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{left:?}");
                assert!(!step.is_due(dir.path()));
            }
        }
    }

    #[test]
    fn steps_of_elsewhere_are_not_sound() {
        let file = |from: &str, to: &str| Step::File { from: from.into(), to: to.into(), replace: false }.is_sound();
        assert!(file(".a.gguf.partial", "a.gguf"));
        assert!(!file("../.a.gguf.partial", "a.gguf") && !file(".a.gguf.partial", "/etc/a") && !file("a", "b"));
    }
}
