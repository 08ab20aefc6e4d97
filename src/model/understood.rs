//! A checkpoint's tensors with their meaning, or the reason why it is not known. How they are found is in `mapping` and
//! `opaque`.

use super::blueprint::{Blueprint, Cache, Part};
use super::config::Config;
use super::families::tokenizer_of;
use super::family::{Family, TokenizerFacts};
use super::kept::keeps_f32;
use super::role::Role;
use super::tensor::{Generated, MappedTensor};
use crate::error::Hint;
use crate::gguf::Metadata;
use crate::quant::GgmlType;
use crate::{Error, Result};

/// A checkpoint whose tensors are understood.
#[derive(Debug)]
pub struct Model {
    /// Its hyper-parameters.
    pub config: Config,
    /// Or why the meaning of the tensors is not known.
    pub family: Result<&'static Family, Opaque>,
    /// In the order in which llama.cpp's converter writes them; in file order for a GGUF source.
    pub tensors: Vec<MappedTensor>,
    /// Tensors that the checkpoint does not hold (or, in a GGUF source, holds beside the weights): rotary factors.
    pub generated: Vec<Generated>,
    /// Source tensors that are left out, with the reason.
    pub dropped: Vec<(String, String)>,
    /// The parsed `config.json`; `None` for a GGUF source.
    pub hf_config: Option<serde_json::Value>,
    /// What a blueprint says, of a model that only a blueprint makes a GGUF file of.
    pub(super) drawn: Option<OfBlueprint>,
    /// Of a model without a family: whether the configuration says how it is run, or why it does not.
    pub(super) runs: Result<(), String>,
}

/// What a blueprint says of a GGUF file beside its tensors.
#[derive(Clone)]
pub(super) struct OfBlueprint {
    /// Metadata of the architecture.
    pub keys: Metadata,
    pub blueprint: &'static Blueprint,
    /// What a sequence takes, where that is known.
    pub cache: Option<Cache>,
}

impl std::fmt::Debug for OfBlueprint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("OfBlueprint").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Whether one of the parts is in a name; of those that begin with `^`, at its beginning.
fn holds(parts: &[&str], name: &str) -> bool {
    parts.iter().any(|part| part.strip_prefix('^').map_or_else(|| name.contains(part), |begin| name.starts_with(begin)))
}

/// Metadata that names its architecture.
pub(super) fn with_architecture(keys: &Metadata, arch: &str) -> Metadata {
    let mut keys = keys.clone();
    keys.set("general.architecture", arch);
    keys
}

impl Model {
    /// The family, where the meaning of the tensors is needed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason when it is not known, and what works without it.
    pub fn known(&self) -> Result<&'static Family> {
        self.family.clone().map_err(|opaque| opaque.error())
    }

    /// Of a GGUF file whose architecture has a family, and which is none of it all the same: why its tensors are taken by
    /// their names alone.
    pub fn half_known(&self) -> Option<String> {
        let opaque = self.family.as_ref().err().filter(|opaque| !opaque.is_folder)?;
        crate::model::families::by_gguf(&opaque.arch)?;
        Some(format!("{}; its tensors are quantized by their names alone", opaque.reason))
    }

    /// Whether the reference inference can run it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason, and what works without.
    pub fn runnable(&self) -> Result<()> {
        match (&self.family, &self.runs) {
            (Ok(_), _) | (_, Ok(())) => Ok(()),
            (Err(opaque), Err(_)) if opaque.is_folder && self.drawn.is_none() => Err(opaque.error()),
            (Err(opaque), Err(why)) => {
                Err(Opaque { reason: why.clone(), nearest: None, runs_as_file: false, ..opaque.clone() }.error())
            }
        }
    }

    /// Whether only a blueprint makes a GGUF file of it.
    pub fn is_drawn(&self) -> bool {
        self.drawn.is_some()
    }

    /// What a sequence takes beside the weights, of a model that only a blueprint describes.
    pub fn drawn_cache(&self) -> Option<&Cache> {
        self.drawn.as_ref()?.cache.as_ref()
    }

    /// Metadata of the architecture, of such a model.
    pub fn drawn_keys(&self) -> Option<Metadata> {
        Some(with_architecture(&self.drawn.as_ref()?.keys, &self.config.arch))
    }

    /// What its tokenizer does differently on the way to GGUF.
    pub(crate) fn tokenizer_facts(&self) -> &'static TokenizerFacts {
        self.drawn.as_ref().map_or_else(|| tokenizer_of(&self.config.arch), |drawn| &drawn.blueprint.tokenizer)
    }

    /// Whether a tensor stays F32 in a file of any type, as llama.cpp's converter and loader demand. `name` is the GGUF name.
    pub fn keeps_f32(&self, name: &str, shape: &[usize]) -> bool {
        let drawn = self.drawn.as_ref().is_some_and(|drawn| holds(drawn.blueprint.in_f32, name));
        drawn || keeps_f32(name, shape)
    }

    /// Which part of a checkpoint it is.
    pub fn part(&self) -> Part {
        self.drawn.as_ref().map_or(Part::Text, |drawn| drawn.blueprint.part)
    }

    /// The type of a projector's tensor in a file of this type, as llama.cpp's converter has it, before rows are found too
    /// short for it.
    pub fn projector_type(&self, name: &str, shape: &[usize], file: GgmlType) -> GgmlType {
        let Some(blueprint) = self.drawn.as_ref().map(|drawn| drawn.blueprint) else { return file };
        if shape.len() <= 1 || name.ends_with("_norm.weight") || holds(blueprint.in_f32, name) {
            return GgmlType::F32;
        }
        match () {
            () if holds(blueprint.in_f16, name) => GgmlType::F16,
            () if holds(blueprint.plain, name) && file == GgmlType::F16 => GgmlType::F16,
            () if holds(blueprint.plain, name) || keeps_f32(name, shape) => GgmlType::F32,
            () => file,
        }
    }

    /// The mapped tensor of a role in a layer (`None` for embeddings, output norm and output).
    pub fn find(&self, role: Role, layer: Option<usize>) -> Option<&MappedTensor> {
        self.tensors.iter().find(|t| t.role == role && t.layer == layer)
    }
}

/// Why a model is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opaque {
    pub(super) arch: String,
    pub(super) reason: String,
    /// GGUF's name of the family whose tensors are most like this model's.
    pub(super) nearest: Option<&'static str>,
    pub(super) is_folder: bool,
    /// Whether there is a blueprint of it.
    pub(super) is_convertible: bool,
    /// Whether the reference inference runs it, or what the blueprint makes of it.
    pub(super) runs_as_file: bool,
}

impl Opaque {
    /// What only a blueprint makes a file of.
    pub(super) fn of_blueprint(arch: &str, reason: String) -> Self {
        let arch = arch.to_string();
        Opaque { arch, reason, nearest: None, is_folder: true, is_convertible: true, runs_as_file: false }
    }

    /// A GGUF file, or what is one by its names.
    pub(super) fn of_file(arch: &str, reason: &str) -> Self {
        let (arch, reason) = (arch.to_string(), reason.to_string());
        Opaque { arch, reason, nearest: None, is_folder: false, is_convertible: false, runs_as_file: false }
    }

    /// What is said where the meaning of the tensors is needed.
    pub fn error(&self) -> Error {
        let nearest = match self.nearest {
            Some(name) if name != self.arch => format!("; of the known families its tensors are most like {name}'s"),
            _ => String::new(),
        };
        let error = Error::unsupported(format!("{}{nearest}", self.reason));
        if self.runs_as_file && !self.is_folder {
            return error
                .hint("this file can be quantized from GGUF to GGUF, run, and calibrated; it makes no folders");
        }
        if self.runs_as_file {
            return error.hint(Hint::FilesAndNearestFolders);
        }
        if self.is_convertible {
            return error.hint(Hint::ConvertedOnly);
        }
        if self.is_folder {
            return error.hint(Hint::FormatsOfAnyModel);
        }
        error.hint(
            "this model can be quantized from GGUF to GGUF, with an importance matrix and type rules, planned, and \
             verified against its source; it cannot be run or calibrated, and makes no folders",
        )
    }
}
