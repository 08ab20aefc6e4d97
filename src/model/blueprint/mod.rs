//! How checkpoints of families that this program cannot run become GGUF files all the same. A [`Blueprint`] says which names
//! belong together, what happens to values and their order, and which metadata the file gets, as llama.cpp's converter has
//! it; shapes are the checkpoint's own. Such a file can be quantized by rounding, with an importance matrix made elsewhere
//! too, and verified; nothing here says what a tensor means. One file per lineage.

mod apply;
mod base;
mod clip;
mod hparams;
mod lineages;
mod names;
mod shapes;
mod tower_names;
mod view;

pub(super) use apply::{draw, imagine};
pub(super) use base::pooling;
pub(super) use hparams::Hparams;
pub(crate) use lineages::WITHOUT_MTP;
pub use shapes::Cache;

use super::family::TokenizerFacts;
use super::tensor::Generated;
use crate::Result;
use base::Keys;
use serde::{Deserialize, Serialize};
use shapes::Shapes;
use view::Change;

/// What becomes of a source tensor's name before it is looked up.
pub(super) enum Named {
    Keep(String),
    /// The tensor has no place in the file, for this reason.
    Drop(&'static str),
    /// This name, unless another tensor has it; then it is left out for this reason.
    Alias(&'static str, &'static str),
}

/// What of a checkpoint a GGUF file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The language model.
    #[default]
    Text,
    /// The encoder of images or sound, with what takes its vectors to the language model's: llama.cpp's `mmproj`.
    Projector,
}

/// What becomes of layers that predict more than the next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mtp {
    /// They follow the others, where llama.cpp has a place for them.
    #[default]
    Keep,
    /// They are left out.
    Drop,
    /// Nothing else goes to the file but embeddings and output: a draft model.
    Only,
}

impl Mtp {
    /// What its files' names begin with.
    pub fn prefix(self) -> &'static str {
        if self == Mtp::Only { "mtp-" } else { "" }
    }
}

impl Part {
    /// What its files' names begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Part::Text => "",
            Part::Projector => "mmproj-",
        }
    }
}

/// One GGUF architecture, or a variant of it that needs other rules.
pub(super) struct Blueprint {
    /// Which part of a checkpoint it is of.
    pub part: Part,
    /// `general.architecture`.
    pub gguf: &'static str,
    /// `architectures` of `config.json`.
    pub classes: &'static [&'static str],
    /// The stems of its tensors, without `blk.N.`, in whose common names the checkpoint is searched.
    pub tensors: &'static str,
    /// Names of its own, which come first: the checkpoint's stem, `{}` for the layer, and GGUF's.
    pub names: &'static [(&'static str, &'static str)],
    pub rename: fn(&Hparams, &str) -> Named,
    /// What happens to tensors on the way, by GGUF name without `blk.N.`.
    pub changes: &'static [(&'static str, Change)],
    /// Source tensors of which several are made, by the end of their names.
    pub splits: &'static [(&'static str, &'static [(&'static str, Change)])],
    /// Folders beside the checkpoint that each hold one matrix of an embedding model (`linear.weight`), and its GGUF name.
    pub beside: &'static [(&'static str, &'static str)],
    /// Whether this one speaks for a `config.json` of its classes.
    pub only: fn(&serde_json::Value) -> bool,
    /// Whether the metadata begins with what llama.cpp's converter writes for most text models.
    pub base: bool,
    /// Keys of `config.json` that mean nothing here.
    pub without: &'static [&'static str],
    /// What transformers assumes for keys that `config.json` leaves out: a JSON object.
    pub defaults: &'static str,
    /// Blocks behind those that `config.json` counts (multi-token prediction), when the checkpoint's names are these.
    pub more_blocks: fn(&Hparams, &mut dyn Iterator<Item = &str>) -> usize,
    /// Parts of the names of tensors that stay F32 in this architecture, beside those that do in all; `^` begins one that
    /// stands at the beginning. So in the next two.
    pub in_f32: &'static [&'static str],
    /// Parts of the names of tensors that are F16 in every file.
    pub in_f16: &'static [&'static str],
    /// Parts of the names of tensors that are F16 in an F16 file, and F32 in any other.
    pub plain: &'static [&'static str],
    /// Metadata behind the usual.
    pub keys: fn(&mut Keys) -> Result<()>,
    /// The tensors that a configuration promises, and the cache, where they follow from it alone.
    pub shapes: Option<fn(&mut Shapes) -> Result<()>>,
    pub generated: fn(&Hparams) -> Result<Vec<Generated>>,
    pub tokenizer: TokenizerFacts,
}

/// The class that a `config.json` names.
pub(super) fn class(json: &serde_json::Value) -> Option<&str> {
    json.get("architectures")?.get(0)?.as_str()
}

/// The blueprint of a `config.json`: by the class of its text model, where that has one, or its own.
pub(super) fn find(json: &serde_json::Value) -> Option<&'static Blueprint> {
    let classes = [json.get("text_config").and_then(class), class(json)];
    let of_class = |class: &&str| all().find(|b| b.classes.contains(class) && (b.only)(json));
    classes.iter().flatten().find_map(of_class).or_else(|| of_wrapped(json))
}

/// That of the text model in a wrapper for images or sound that is not known itself, by the kind that it names.
fn of_wrapped(json: &serde_json::Value) -> Option<&'static Blueprint> {
    class(json).filter(|class| class.ends_with("ForConditionalGeneration"))?;
    let kind = json.get("text_config").filter(|text| class(text).is_none())?.get("model_type")?.as_str()?;
    if super::families::by_hf(None, Some(kind)).is_some() {
        return None;
    }
    let kind = kind.replace('_', "");
    let named = |class: &&str| class.strip_suffix("ForCausalLM").is_some_and(|stem| stem.eq_ignore_ascii_case(&kind));
    all().find(|b| b.classes.iter().any(named) && (b.only)(json))
}

/// The blueprint of the projector file of a `config.json`, as llama.cpp's converter chooses it: by the class of the image
/// encoder, where that has one, or the model's.
pub(super) fn find_projector(json: &serde_json::Value) -> Option<&'static Blueprint> {
    let classes = [json.get("vision_config").and_then(class), class(json)];
    let of = |class: &&str| lineages::TOWERS.iter().find(|b| b.classes.contains(class) && (b.only)(json));
    classes.iter().flatten().find_map(of)
}

pub(super) fn all() -> impl Iterator<Item = &'static Blueprint> {
    lineages::ALL.iter().flat_map(|lineage| lineage.iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blueprints_name_what_exists() {
        for b in all() {
            for class in b.classes {
                let known = crate::model::families::by_hf(Some(class), None).is_some();
                let both =
                    ["Mistral3ForConditionalGeneration", "CohereForCausalLM", "StableLmForCausalLM"].contains(class);
                assert!(!known || both, "{class} is a family, too");
            }
            for stem in b.tensors.split_whitespace() {
                assert!(names::knows(stem), "{}: no common names for {stem}", b.gguf);
            }
            assert!(serde_json::from_str::<serde_json::Value>(b.defaults).is_ok_and(|v| v.is_object()), "{}", b.gguf);
        }
    }
}
