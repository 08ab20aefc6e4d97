//! How finished outputs get their names: in steps that are written down before the first of them, so that a run which was
//! killed between two of them is brought to its end by the next. Every step can be carried out again. Meanwhile another run
//! may have begun work under the same temporary name, which is not what is written down: finished work is known by a stamp.

use crate::disk;
use crate::disk::partial::PartialFile;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The provenance of a folder that this program made. Its presence is what lets a run that may replace outputs replace the
/// folder.
pub const MANIFEST: &str = "quantize-manifest.json";

/// By which a finished file is told from another run's of the same temporary name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: Option<String>,
}

impl Stamp {
    /// That of a file; `None` where there is none.
    pub fn of(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().map(|metadata| Self::from(&metadata))
    }

    /// The same of the file that a link leads to.
    pub fn behind(path: &Path) -> Option<Self> {
        path.metadata().ok().map(|metadata| Self::from(&metadata))
    }

    fn from(metadata: &Metadata) -> Self {
        let since = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Self { bytes: metadata.len(), modified: since.map(|s| s.as_nanos().to_string()) }
    }
}

/// The file that is written last into a checkpoint folder.
pub const LAST: &str = "config.json";

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
        /// Of the file.
        stamp: Option<Stamp>,
    },
    /// A folder's. What has the name goes to `old`, and is removed; then `journal`, which lies in the folder.
    Folder {
        from: String,
        to: String,
        old: String,
        journal: String,
        /// The file that was written last into it.
        #[serde(default = "last_of_checkpoints")]
        last: String,
        /// Of that file. Without one nobody but the run itself gives the name.
        stamp: Option<Stamp>,
    },
}

fn last_of_checkpoints() -> String {
    LAST.into()
}

impl Step {
    /// Makes a file whole but for its name. How that is given.
    ///
    /// # Errors
    /// `Io`.
    pub fn of(file: &PartialFile) -> Result<Self> {
        file.complete()?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stamp = Stamp::of(file.temp_path());
        Ok(Step::File { from: name(file.temp_path()), to: name(file.target()), replace: file.replaces(), stamp })
    }

    /// That names are names, and what is renamed is unfinished work.
    pub fn is_sound(&self) -> bool {
        let plain = |name: &String| Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        match self {
            Step::File { from, to, .. } => plain(from) && plain(to) && from.ends_with(".partial"),
            Step::Folder { from, to, old, journal, last, .. } => {
                [from, to, old, journal, last].into_iter().all(plain)
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
            Step::File { .. } => self.is_unnamed(folder),
            Step::Folder { to, old, journal, .. } => {
                self.is_unnamed(folder) || [folder.join(old), folder.join(to).join(journal)].iter().any(|p| p.exists())
            }
        }
    }

    /// Whether what was written down is still under its temporary name.
    fn is_unnamed(&self, folder: &Path) -> bool {
        let (there, stamp) = match self {
            Step::File { from, stamp, .. } => (folder.join(from), stamp),
            Step::Folder { from, last, stamp, .. } => (folder.join(from).join(last), stamp),
        };
        stamp.is_some() && Stamp::of(&there) == *stamp
    }

    /// Gives the name to what this run has made.
    ///
    /// # Errors
    /// `Exists` where something took the name meanwhile; `Io`.
    pub fn carry_out(&self, folder: &Path) -> Result<()> {
        let from = match self {
            Step::File { from, .. } | Step::Folder { from, .. } => folder.join(from),
        };
        self.name(folder, from.exists())
    }

    /// Gives the name to what a run has made that was killed, as far as it had not done so.
    ///
    /// # Errors
    /// As [`carry_out`](Self::carry_out).
    pub fn catch_up(&self, folder: &Path) -> Result<()> {
        self.name(folder, self.is_unnamed(folder))
    }

    fn name(&self, folder: &Path, is_unnamed: bool) -> Result<()> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |e: std::io::Error| match e.kind() {
                ErrorKind::AlreadyExists => Error::Exists { path, what: "exists", replaceable: true },
                _ => Error::io(&path, e),
            }
        };
        match self {
            Step::File { from, to, replace, .. } => {
                let (from, to) = (folder.join(from), folder.join(to));
                if is_unnamed {
                    let rename = if *replace { disk::rename } else { disk::rename_new };
                    rename(&from, &to).map_err(io(&to))?;
                }
            }
            Step::Folder { from, to, old, journal, last, stamp } => {
                let [from, to, old] = [from, to, old].map(|name| folder.join(name));
                let mut is_exchanged = !is_unnamed && is_exchanged(&from, &to, journal, last);
                if is_unnamed {
                    if to.exists() {
                        // What somebody else has put there since.
                        if !is_ours(&to) {
                            let what = "was not made by this program and is not replaced; remove it yourself";
                            return Err(Error::Exists { path: to, what, replaceable: false });
                        }
                        // Of an earlier run, which did not come to its end.
                        disk::remove_folder(&old, MANIFEST).map_err(io(&old))?;
                        // Where the system can, there is always one of the two; for the next run to know which, there has to
                        // be a stamp.
                        let can = stamp.is_some() && to.join(MANIFEST).is_file();
                        is_exchanged = can && disk::exchange(&from, &to).map_err(io(&to))?;
                        if !is_exchanged {
                            disk::rename(&to, &old).map_err(io(&to))?;
                        }
                    }
                    if !is_exchanged {
                        disk::rename(&from, &to).map_err(io(&to))?;
                    }
                    disk::sync_folder_of(&to);
                }
                if is_exchanged {
                    disk::remove_folder(&old, MANIFEST).map_err(io(&old))?;
                    disk::rename(&from, &old).map_err(io(&old))?;
                }
                disk::remove_folder(&old, MANIFEST).map_err(io(&old))?;
                let journal = to.join(journal);
                disk::remove_file(&journal).map_err(io(&journal))?;
            }
        }
        Ok(())
    }
}

/// Whether what has the temporary name is the folder that was replaced: it was finished and has no journal, and the new
/// one still has its own.
fn is_exchanged(from: &Path, to: &Path, journal: &str, last: &str) -> bool {
    let is_whole =
        |folder: &Path, last: &[&str]| folder.join(MANIFEST).is_file() && last.iter().any(|l| folder.join(l).is_file());
    to.join(journal).exists() && is_whole(to, &[last]) && is_whole(from, &[last, LAST]) && !from.join(journal).exists()
}

/// Whether a folder may be replaced: one of this program, or one with nothing in it.
fn is_ours(folder: &Path) -> bool {
    folder.join(MANIFEST).is_file() || std::fs::read_dir(folder).is_ok_and(|mut inside| inside.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gives `m.partial` the name `m`.
    fn folder_step(dir: &Path) -> Step {
        Step::Folder {
            from: "m.partial".into(),
            to: "m".into(),
            old: "m.replaced".into(),
            journal: ".journal".into(),
            last: LAST.into(),
            stamp: Stamp::of(&dir.join("m.partial").join(LAST)),
        }
    }

    #[test]
    fn a_folder_is_replaced_from_wherever_it_was_left() {
        // Which of new, old in place, and old out of the way is there.
        for left in [["m.partial", "m"].as_slice(), &["m.partial", "m.replaced"], &["m.partial"], &["m", "m.replaced"]]
        {
            let dir = tempfile::tempdir().unwrap();
            for name in left {
                std::fs::create_dir(dir.path().join(name)).unwrap();
                let new = *name == "m.partial" || (*name == "m" && !left.contains(&"m.partial"));
                std::fs::write(dir.path().join(name).join("config.json"), if new { "new" } else { "old" }).unwrap();
                std::fs::write(dir.path().join(name).join(MANIFEST), "{}").unwrap();
            }
            let step = folder_step(dir.path());
            assert!(step.is_sound());
            for _ in 0..2 {
                step.catch_up(dir.path()).unwrap();
                assert_eq!(std::fs::read_to_string(dir.path().join("m/config.json")).unwrap(), "new", "{left:?}");
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{left:?}");
                assert!(!step.is_due(dir.path()));
            }
        }
    }

    #[test]
    fn an_exchange_is_brought_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // Of two lengths: clocks of file systems do not tell apart what is written in one tick.
        for (name, text) in [("m", "older"), ("m.partial", "new")] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("config.json"), text).unwrap();
            std::fs::write(at(name).join(MANIFEST), "{}").unwrap();
        }
        std::fs::write(at("m.partial/.journal"), "").unwrap();
        let step = folder_step(dir.path());
        // Killed right after it, whatever did it.
        std::fs::rename(at("m"), at("aside")).unwrap();
        std::fs::rename(at("m.partial"), at("m")).unwrap();
        std::fs::rename(at("aside"), at("m.partial")).unwrap();
        assert!(step.is_due(dir.path()));
        step.catch_up(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(at("m/config.json")).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(!step.is_due(dir.path()) && !at("m/.journal").exists());
    }

    /// Another run works under the temporary name when the step of an earlier one, which was carried out, is found.
    #[test]
    fn what_another_run_has_begun_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| std::fs::read_to_string(at(name)).unwrap();
        std::fs::write(at(".a.partial"), "first").unwrap();
        let stamp = Stamp::of(&at(".a.partial"));
        let file = Step::File { from: ".a.partial".into(), to: "a".into(), replace: true, stamp };
        assert!(file.is_due(dir.path()));
        file.catch_up(dir.path()).unwrap();
        std::fs::write(at(".a.partial"), "half of the second").unwrap();
        assert!(!file.is_due(dir.path()));
        file.catch_up(dir.path()).unwrap();
        assert_eq!((text("a"), text(".a.partial")), ("first".into(), "half of the second".into()));
        std::fs::create_dir(at("m.partial")).unwrap();
        std::fs::write(at("m.partial/config.json"), "first").unwrap();
        let folder = folder_step(dir.path());
        folder.catch_up(dir.path()).unwrap();
        // Of the second, whatever is there: a folder without its last file, or a whole one.
        std::fs::create_dir(at("m.partial")).unwrap();
        for last in [None, Some("another one")] {
            last.iter().for_each(|text| std::fs::write(at("m.partial/config.json"), text).unwrap());
            std::fs::create_dir(at("m.replaced")).unwrap();
            assert!(folder.is_due(dir.path()));
            folder.catch_up(dir.path()).unwrap();
            assert!(!folder.is_due(dir.path()) && at("m.partial").is_dir() && !at("m.replaced").exists());
            assert_eq!(text("m/config.json"), "first");
        }
    }

    #[test]
    fn what_somebody_has_put_in_the_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        [at("m"), at("m.partial")].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        std::fs::write(at("m.partial/config.json"), "{}").unwrap();
        std::fs::write(at("m/mine.txt"), "mine").unwrap();
        let folder = folder_step(dir.path());
        assert!(matches!(folder.catch_up(dir.path()), Err(Error::Exists { replaceable: false, .. })));
        assert!(at("m/mine.txt").is_file() && at("m.partial").is_dir() && !at("m.replaced").exists());
    }

    #[test]
    fn steps_of_elsewhere_are_not_sound() {
        let file = |from: &str, to: &str| {
            let stamp = None;
            Step::File { from: from.into(), to: to.into(), replace: false, stamp }.is_sound()
        };
        assert!(file(".a.gguf.partial", "a.gguf"));
        assert!(!file("../.a.gguf.partial", "a.gguf") && !file(".a.gguf.partial", "/etc/a") && !file("a", "b"));
    }
}
