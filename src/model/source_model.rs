//! A checkpoint, what its tensors mean, and its tokenizer: opened once, and shared by everything that converts, runs or
//! judges it. It holds no weights.

use super::Model;
use super::blueprint::{Mtp, Part};
use super::opaque::as_gguf;
use super::tokenizer::Tokenizer;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// An open model. Clones share what is open.
#[derive(Clone, Debug)]
pub struct SourceModel {
    /// What was opened: a folder, or a file.
    pub path: PathBuf,
    /// Where the tensors lie.
    pub ckpt: Arc<Checkpoint>,
    /// What they mean.
    pub model: Arc<Model>,
    tokenizer: Arc<OnceLock<Arc<Tokenizer>>>,
}

impl SourceModel {
    /// Opens a checkpoint folder, a `.safetensors` file or a `.gguf` file, and maps every tensor. The tokenizer is read
    /// when somebody asks for it.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Model::open`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_merged(path, None)
    }

    /// Opens a checkpoint with a LoRA adapter merged into it as it is read; see [`Checkpoint::open_merged`].
    ///
    /// # Errors
    /// Those of [`Checkpoint::open_merged`] and [`Model::open`].
    pub fn open_merged(path: &Path, adapter: Option<&Path>) -> Result<Self> {
        let ckpt = Checkpoint::open_merged(path, adapter)?;
        let model = Model::open(&ckpt)?;
        Ok(Self::new(path, ckpt, model))
    }

    /// A model whose parts were opened already.
    pub fn new(path: &Path, ckpt: Checkpoint, model: Model) -> Self {
        let (ckpt, model) = (Arc::new(ckpt), Arc::new(model));
        Self { path: path.to_path_buf(), ckpt, model, tokenizer: Arc::default() }
    }

    /// A part of the model as GGUF files hold it: the text model is the same where its meaning is known, or it is one;
    /// everything else follows a blueprint.
    ///
    /// # Errors
    /// `Unsupported` for a folder of an architecture without one, and for a draft model of what has none.
    pub fn for_files(&self, part: Part, mtp: Mtp) -> Result<Self> {
        let by_blueprint = self.model.family.is_err() && self.ckpt.gguf().is_none();
        if mtp == Mtp::Only && !by_blueprint {
            return Err(Error::unsupported(
                "the model has no layers that predict more than the next token, or is a GGUF file",
            ));
        }
        if mtp == Mtp::Drop && self.ckpt.gguf().is_some() {
            return Err(Error::unsupported("a GGUF file is quantized with all the layers that it has"));
        }
        match part == Part::Projector || by_blueprint {
            true => Ok(Self { model: Arc::new(as_gguf(&self.ckpt, &self.model, part, mtp)?), ..self.clone() }),
            false => Ok(self.clone()),
        }
    }

    /// The text model as it is run: a folder without a family as its blueprint makes it.
    ///
    /// # Errors
    /// Those of [`Self::for_files`]; `Unsupported` for what the reference inference does not run.
    pub fn to_run(&self) -> Result<Self> {
        let drawn = self.model.is_drawn() && self.model.part() == Part::Text;
        let source = if drawn { self.clone() } else { self.for_files(Part::Text, Mtp::Keep)? };
        source.model.runnable()?;
        Ok(source)
    }

    /// The model's own tokenizer.
    ///
    /// # Errors
    /// `BadInput` and `Unsupported` when there is none that can be read.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        if let Some(known) = self.tokenizer.get() {
            return Ok(known.clone());
        }
        let tokenizer = match self.ckpt.gguf() {
            Some(metadata) => Tokenizer::from_gguf(metadata)?,
            None => Tokenizer::from_hf_dir(self.ckpt.dir())?,
        };
        Ok(self.tokenizer.get_or_init(|| Arc::new(tokenizer)).clone())
    }

    /// The name that artifacts of the model begin with; a Hub cache snapshot is named after its repository, not its
    /// commit. A shard number or a 16-bit type is not part of the name, nor are line breaks and escapes.
    pub fn name(&self) -> String {
        name_of(&self.path)
    }
}

/// The name of the model at `path`; see [`SourceModel::name`].
pub fn name_of(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    for part in full.components().rev() {
        let part = part.as_os_str().to_string_lossy();
        if let Some(repo) = part.strip_prefix("models--") {
            return repo.rsplit("--").next().unwrap_or(repo).to_string();
        }
    }
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    let name = stem.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    let name = crate::escape::file_name(name.split("-00001-of-").next().unwrap_or(&name)).into_owned();
    for suffix in ["-F16", "-f16", "-BF16", "-bf16", "-F32", "-f32", ".F16", ".f16", ".BF16", ".bf16", ".F32", ".f32"] {
        if let Some(short) = name.strip_suffix(suffix) {
            return short.to_string();
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_folder_is_named_after_its_repository() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--org--Some-Model/snapshots/0123abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(name_of(&snapshot), "Some-Model");
        assert_eq!(name_of(Path::new("/x/Llama-3-F16.gguf")), "Llama-3");
    }
}
