//! Where outputs go: the names they get unless told otherwise, and what must not be there already. It writes nothing but
//! folders that somebody named to put outputs into.

use super::plan::{Decided, OutputPlan, Plan};
use crate::calibration::data::Source;
use crate::control::Control;
use crate::disk::{self, partial};
use crate::writer::folder;
use crate::writer::places::Inputs;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

impl Plan {
    /// Puts the outputs where `output` says: a folder to put them into, a file or folder of that name (one output), or a
    /// name with `{type}` in it. Makes the folder they go into where there is none.
    ///
    /// # Errors
    /// `Request` for a name that does not suit the outputs; `Io`.
    pub fn place(&mut self, output: &Path) -> Result<()> {
        let text = output.to_string_lossy();
        if text == "-" {
            return Err(Error::request(
                "outputs cannot be piped, since they are written by position and renamed; name a file or a folder",
            ));
        }
        let marker = ["{type}", "{ftype}"].into_iter().find(|m| text.contains(m));
        let files = self.files().count();
        let folders = self.outputs.len() - files;
        let mut into = false;
        for o in &mut self.outputs {
            let usual = output.join(o.place.file_name().unwrap_or_default());
            if let Some(marker) = marker {
                o.place = PathBuf::from(text.replace(marker, o.target.name()));
                continue;
            }
            let itself = match o.target.is_file() {
                true => is_file_name(output, &text)?,
                // A folder that is there is a place to put things, unless it is one of ours to be replaced.
                false => {
                    let ours = !output.is_dir() || output.join(folder::MANIFEST).is_file();
                    folders == 1 && files == 0 && ours && !text.ends_with('/')
                }
            };
            if itself && o.target.is_file() && files > 1 {
                return Err(Error::request(format!(
                    "{files} types cannot go to one file; name a folder, or put {{type}} into the file name"
                )));
            }
            into |= !itself;
            o.place = if itself { output.to_path_buf() } else { usual };
        }
        if into {
            if disk::is_no_folder(output) {
                let what = "is neither a folder nor named .gguf; name a folder, or a file that ends in .gguf";
                return Err(Error::request(format!("{} {what}", output.display())));
            }
            disk::create_folders(output).map_err(|e| Error::io(output, e))?;
        }
        Ok(())
    }

    /// Names the outputs after `model`, in `folder`.
    pub(crate) fn name_after(&mut self, model: &str, folder: &Path) {
        for output in &mut self.outputs {
            output.place = folder.join(self.recipe.usual_place(&output.target, model));
        }
    }

    /// That nothing is in the way of the outputs, but for those that are `finished`, and none would take the place of what
    /// it is made from.
    ///
    /// # Errors
    /// `Exists`; `Request`.
    pub fn check_places(&self, control: &Control, finished: &dyn Fn(&OutputPlan) -> bool) -> Result<()> {
        for (i, output) in self.outputs.iter().enumerate() {
            match output.what {
                _ if finished(output) => {}
                Decided::File(_) => partial::refuse_existing(&output.place, control.force)?,
                Decided::Folder(_) | Decided::Plain(_) => folder::refuse_existing(&output.place, control.force)?,
            }
            if self.outputs[..i].iter().any(|other| other.place == output.place) {
                return Err(Error::request(format!("two outputs would be called {}", output.place.display())));
            }
            self.refuse_input(&output.place)?;
            if self.modelfiles && output.target.is_file() && !finished(output) {
                partial::refuse_existing(&output.modelfile(), control.force)?;
            }
        }
        let files_left = self.files().any(|(output, _)| !finished(output));
        if let Some(file) = self.save_importance.as_ref().filter(|_| files_left) {
            partial::refuse_existing(file, control.force)?;
            self.refuse_input(file)?;
        }
        Ok(())
    }

    /// Whatever may be replaced, the inputs are not.
    pub(crate) fn refuse_input(&self, target: &Path) -> Result<()> {
        let ckpt = &self.source.ckpt;
        let data = self.recipe.data.iter().flat_map(|d| &d.sources).filter_map(Source::path);
        let importance = self.recipe.importance.iter().map(|i| Path::new(&i.file));
        let weights = ckpt.files().iter().map(|f| f.path.as_path());
        Inputs::new(weights.chain(data).chain(importance)).refuse(target)?;
        let inside =
            |target: PathBuf| ckpt.dir().canonicalize().is_ok_and(|dir| target.is_dir() && dir.starts_with(target));
        match ckpt.gguf().is_none() && target.canonicalize().is_ok_and(inside) {
            true => Err(Error::request(format!("{} is the source itself; name another output", target.display()))),
            false => Ok(()),
        }
    }
}

/// Whether `output` names a GGUF file rather than a folder to put files into.
fn is_file_name(output: &Path, text: &str) -> Result<bool> {
    if output.is_dir() || text.ends_with('/') {
        return Ok(false);
    }
    match output.extension().and_then(|e| e.to_str()) {
        Some("gguf") => Ok(true),
        // `v1.5` ends a folder's name, `.bin` one of a file.
        Some(e) if e.len() > 1 && e.chars().all(|c| c.is_ascii_alphabetic()) => {
            let what = "name a GGUF file ending in .gguf, or a new folder ending in '/'";
            Err(Error::request(format!("{}: {what}", output.display())))
        }
        _ if output.exists() && !output.is_file() => Err(Error::request(format!(
            "{} is a device or a pipe; name a file that ends in .gguf, or a folder",
            output.display()
        ))),
        _ => Ok(false),
    }
}
