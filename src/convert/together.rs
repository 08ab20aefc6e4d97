//! Files of one run that get their names together: a report in several forms, and what was stored while it was measured.
//! They are published as outputs of conversions are, so that a run that was killed between two names is brought to its end
//! by the next; an equal one takes what it had to say from the record, and need not do the work again.

use super::naming::{self, Record, TakenUp, Whose, tidied};
use crate::Result;
use crate::control::Run;
use crate::disk::{self, partial::PartialFile};
use crate::writer::places::files_behind;
use crate::writer::publish::{MANIFEST, Stamp, Step};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files of a run. Until [`Together::publish`] has ended, none is said to be finished.
#[derive(Default)]
pub struct Together {
    /// What the run is of.
    key: Value,
    /// What earlier runs left.
    earlier: Vec<TakenUp>,
}

impl Together {
    /// Brings to its end what killed runs left where `files` go. `of` says what decides this run's bytes, beside the files
    /// that are read at `inputs`.
    ///
    /// # Errors
    /// Those of renaming.
    pub fn begin<'a>(
        files: &[&Path],
        of: Value,
        inputs: impl IntoIterator<Item = &'a Path>,
        run: Run,
    ) -> Result<Together> {
        Self::begin_where(files, of, inputs, Whose::Others, run)
    }

    /// The same for a run that makes outputs of a conversion too: what is written down of these it looks at later.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_beside_outputs<'a>(
        files: &[&Path],
        of: Value,
        inputs: impl IntoIterator<Item = &'a Path>,
        run: Run,
    ) -> Result<Together> {
        Self::begin_where(files, of, inputs, Whose::LeftAlone, run)
    }

    fn begin_where<'a>(
        files: &[&Path],
        of: Value,
        inputs: impl IntoIterator<Item = &'a Path>,
        outputs: Whose,
        run: Run,
    ) -> Result<Together> {
        let read: Vec<PathBuf> = inputs.into_iter().flat_map(files_behind).collect();
        let read: Vec<Value> =
            read.iter().map(|path| json!([path.display().to_string(), Stamp::behind(path)])).collect();
        let key = json!({ "version": env!("CARGO_PKG_VERSION"), "of": of, "inputs": read });
        let folders: Vec<&Path> = files.iter().map(|file| disk::folder_of(file)).collect();
        let whose = |folder: &Path, record: &Record| {
            let is_here = |step: &Step| files.iter().any(|file| is_at(file, folder, step));
            if record.outputs.is_empty() { Whose::ours(record.steps.iter().any(is_here)) } else { outputs }
        };
        Ok(Together { key, earlier: naming::recover(folders, whose, run)? })
    }

    /// What an equal run had to say which gave all of `files` their names and was killed before it ended. What else it had
    /// made is there too.
    pub fn said(&self, files: &[&Path]) -> Option<&Value> {
        let (_, _, record) = self.equal().next()?;
        let is_there =
            |file: &Value| file[0].as_str().is_some_and(|path| named(path.as_ref(), Stamp::of(path.as_ref())) == *file);
        let all = record.identity["files"].as_array().is_some_and(|all| all.iter().all(is_there));
        (all && files.iter().all(|file| self.has(file))).then(|| &record.identity["said"])
    }

    /// Whether `file` is what an equal run has made that did not come to its end: it may be made again in its place.
    pub fn has(&self, file: &Path) -> bool {
        let there = named(file, Stamp::of(file));
        self.equal().any(|(_, _, record)| record.identity["files"].as_array().is_some_and(|all| all.contains(&there)))
    }

    fn equal(&self) -> impl Iterator<Item = &TakenUp> {
        self.earlier.iter().filter(|(_, _, record)| record.identity["key"] == self.key)
    }

    /// Gives files their names, which are whole but for that. `said`: what the run has to say beside.
    ///
    /// # Errors
    /// `Io`; `Exists` for a name that was taken meanwhile; `Unfinished` while another run gives the same names.
    pub fn publish(self, files: Vec<PartialFile>, said: &Value, run: Run) -> Result<()> {
        self.publish_beside(&[], files, said, run, || ())
    }

    /// The same where the run has made `outputs` which have their names. Once nothing is left to do, `end` is called: from then
    /// on what is written down of the files tells of the outputs too.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn publish_beside(
        mut self,
        outputs: &[PathBuf],
        mut files: Vec<PartialFile>,
        said: &Value,
        run: Run,
        end: impl FnOnce(),
    ) -> Result<()> {
        if files.is_empty() || outputs.is_empty() && files.len() < 2 {
            files.pop().map_or(Ok(()), PartialFile::finish)?;
            end();
            self.forget(run);
            return Ok(());
        }
        let steps = files.iter().map(|file| Ok((disk::folder_of(file.target()).to_path_buf(), Step::of(file)?)));
        let steps = steps.collect::<Result<Vec<_>>>()?;
        // Every record names the whole set: of those in several folders, one goes first.
        let made = files.iter().map(|file| named(file.target(), Stamp::of(file.temp_path())));
        // A report may lie in a folder that is an output.
        let known = outputs.iter().map(|path| if path.is_dir() { path.join(MANIFEST) } else { path.clone() });
        let all: Vec<Value> = known.map(|path| named(&path, Stamp::of(&path))).chain(made).collect();
        let identity = json!({ "key": self.key, "said": said, "files": all });
        let mut folders: BTreeMap<PathBuf, Record> = BTreeMap::new();
        for (folder, step) in &steps {
            folders.entry(folder.clone()).or_insert_with(|| Record::of(&identity)).steps.push(step.clone());
        }
        // In place of those of earlier runs, whose files are replaced.
        let mut records = naming::announce(&folders)?;
        self.earlier.retain(|(_, earlier, _)| records.iter().all(|record| record.path() != earlier.path()));
        self.forget(run);
        naming::carry_out(&mut records, 0, &steps, || files.iter_mut().for_each(|file| file.keep_on_drop(true)))?;
        end();
        records.into_iter().for_each(|record| tidied(record.remove(), run));
        Ok(())
    }

    /// Removes what earlier runs wrote down; nothing of it is needed any more.
    pub fn forget(&mut self, run: Run) {
        self.earlier.drain(..).for_each(|(_, record, _)| tidied(record.remove(), run));
    }
}

/// A file as records have it.
fn named(file: &Path, stamp: Option<Stamp>) -> Value {
    json!([file.display().to_string(), stamp])
}

/// Whether a step gives a file in `folder` its name.
fn is_at(file: &Path, folder: &Path, step: &Step) -> bool {
    folder == disk::folder_of(file) && file.file_name() == Some(step.to().as_ref())
}
