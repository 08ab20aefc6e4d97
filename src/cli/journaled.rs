//! The journal of a conversion with error feedback, from the side of the command: what the run is of, which journal that
//! makes the right one, and what stays when the run ends early.

use super::ConvertArgs;
use super::calibrate::Drawing;
use super::plan::Prepared;
use crate::Result;
use crate::calibration::resume;
use crate::refine::journal::{Finished, Journal};
use crate::writer::gguf::Artifact;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Opened before the unfinished files are, begun once these have names.
pub struct Journaled {
    path: PathBuf,
    key: Value,
    journal: Option<Journal>,
    finished: Finished,
    /// What an earlier run left, in the order in which the files are opened.
    pub files: Vec<PathBuf>,
}

impl Journaled {
    /// With `--resume`, the journal that lies beside `output`, if there is one; otherwise what lies there is removed.
    ///
    /// Errors: `Usage` when it is of another run.
    pub fn open(prepared: &Prepared, args: &ConvertArgs, drawing: &Drawing, output: &Path) -> Result<Self> {
        let (path, key) = (resume::path_for(output), key(prepared, args, drawing)?);
        let mut found = if args.folder.resume { Journal::resume(&path, &key)? } else { None };
        if found.as_ref().is_some_and(|(_, files, _)| files.iter().any(|file| !file.exists())) {
            eprintln!("  an unfinished file of the interrupted run is missing; beginning again");
            Journal::forget(&path);
            found = None;
        }
        let Some((journal, files, finished)) = found else {
            Journal::forget(&path);
            return Ok(Self { path, key, journal: None, finished: Finished::default(), files: Vec::new() });
        };
        if !args.common.quiet {
            eprintln!("  resuming after {} of {} layers", finished.layers, prepared.model.config.layers.len());
        }
        Ok(Self { path, key, journal: Some(journal), finished, files })
    }

    /// The journal, begun if need be, and what it knew when it was opened.
    pub fn journal(&mut self, artifacts: &[Artifact], plain: &[Artifact]) -> Result<(&mut Journal, Finished)> {
        let finished = std::mem::take(&mut self.finished);
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => {
                let pairs = plain.iter().zip(artifacts);
                let files = pairs.flat_map(|(plain, artifact)| [plain.temp_paths(), artifact.temp_paths()].concat());
                none.insert(Journal::create(&self.path, self.key.clone(), files.collect())?)
            }
        };
        Ok((journal, finished))
    }

    /// Whether the unfinished files are to stay, and the journal with them: once there is something to go on with.
    pub fn stays(&mut self, complete: bool) -> bool {
        let Some(journal) = &mut self.journal else { return false };
        let stays = complete || journal.layers() > 0;
        journal.stays(stays);
        stays
    }

    /// The files go if the run still fails, and the journal with them.
    pub fn leaves(&mut self) {
        self.journal.iter_mut().for_each(|journal| journal.stays(false));
    }
}

/// What a run is of, as far as it decides what its layers leave: an equal one alone may go on with them.
fn key(prepared: &Prepared, args: &ConvertArgs, drawing: &Drawing) -> Result<Value> {
    let types = prepared.targets.iter().map(|t| {
        let names: Vec<&str> = t.types.iter().map(|ty| ty.name()).collect();
        Sha256::digest(names.join(" ")).iter().map(|b| format!("{b:02x}")).collect::<String>()
    });
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": resume::identity(&drawing.model.ckpt, &drawing.model.model)?,
        "recipe": prepared.targets.iter().map(|t| &t.recipe).collect::<Vec<_>>(),
        "types": types.collect::<Vec<_>>(),
        "calibration": drawing.data.sha256,
        "rho": args.search.rho,
        "damping": args.search.damping,
        "sort_channels": args.search.sort_channels,
        "split": [args.split_max_size.as_deref(), args.split_max_tensors.map(|n| n.to_string()).as_deref()],
        "keep_split": args.keep_split,
    }))
}
