//! The questions about a checkpoint format, as the fields of one value.

use super::compressed::floats::Fp4Kind;
use super::engines::Engines;
use super::read::Tool;
use super::{Data, Module, Scope, Slot, Spec};
use crate::Result;
use crate::dtype::{Dtype, GgmlType};
use crate::feedback::int::Codes;
use serde_json::Value;

/// A way to store a quantized linear layer: the answers to every question about it. There are no defaults.
pub struct Format {
    /// What tells it from the others; for messages of tests and debugging.
    pub(crate) id: &'static str,
    /// What people take it for.
    pub(crate) purpose: &'static str,
    /// Whose checkpoints hold it: how these are recognised and read back.
    pub(crate) tool: &'static Tool,
    /// What people call it, with the numbers that each name stands for; the first is what its own name begins with.
    pub(crate) names: &'static [Name],
    /// The name that [`parse`](super::parse) takes back, complete where there is a choice.
    pub(crate) shown: fn(&Spec) -> String,
    /// Bits per weight that it has.
    pub(crate) bits: Bits,
    /// Columns under one scale.
    pub(crate) group: GroupRule,
    /// Whether groups have zero points.
    pub(crate) symmetry: Symmetry,
    /// Further words of a name and the rows that they turn this one into.
    pub(crate) layouts: &'static [(&'static str, &'static Format)],
    /// What takes its place with asymmetric groups, unless a word of `layouts` was given.
    pub(crate) if_asymmetric: Option<&'static Format>,
    /// The same numbers as compressed-tensors hold them.
    pub(crate) as_compressed_tensors: Option<&'static Format>,
    /// What any shape can have that this one refuses.
    pub(crate) fallback: Option<&'static Format>,
    /// Whether columns may be quantized by falling activation, with `g_idx` for their groups.
    pub(crate) orders_columns: bool,
    /// Whether block scales may be quantized too.
    pub(crate) nests: bool,
    /// How far what one column costs is made good.
    pub(crate) reach: Reach,
    /// How scales are stored.
    pub(crate) scales: Scales,
    /// Whether modules that engines fuse (query, key, value; gate, up) must agree on a scale: [`Module::fused_max`].
    pub(crate) shares_scale: bool,
    /// What engines do to the input of a module.
    pub(crate) activations: Activations,
    /// What error feedback chooses in it.
    pub(crate) feedback: Feedback,
    /// How codes are chosen unless the user says so.
    pub(crate) rounding: DefaultRounding,
    /// How channels are scaled before a calibrated rounding.
    pub(crate) scaling: ChannelScaling,
    /// Why a matrix of `(spec, rows, cols)` cannot be stored so.
    pub(crate) refuses: fn(&Spec, usize, usize) -> Option<String>,
    /// The tensors of a module of `(spec, rows, cols, type of the checkpoint)`.
    pub(crate) layout: fn(&Spec, usize, usize, GgmlType) -> Vec<Slot>,
    /// Rounding to nearest as the format's own tool does it ([`ScaleRule::Peer`](super::ScaleRule::Peer)).
    pub(crate) nearest: fn(&Spec, &Module) -> Result<Data>,
    /// The keys of the configuration that say how a module is stored: what an exception among others gets.
    pub(crate) entry: fn(&Spec) -> Value,
    /// The `quantization_config` object.
    pub(crate) config: fn(&Spec, Scope) -> Value,
    /// What engines have against it.
    pub(crate) engines: &'static Engines,
}

/// A name of a format, as words joined by `-`.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub words: &'static str,
    pub bits: u8,
    /// As [`Spec::group`].
    pub group: Option<usize>,
}

/// Which widths there are.
#[derive(Clone, Copy, Debug)]
pub enum Bits {
    /// Those of the names.
    Named,
    /// Any of these.
    Of(&'static [u8]),
}

/// Which groups there are.
#[derive(Clone, Copy, Debug)]
pub enum GroupRule {
    /// That of the name.
    Fixed,
    /// Any length, or whole rows.
    Free,
    /// Any of these lengths.
    Of(&'static [usize]),
    /// Runs of weights across rows, a power of two long.
    Flat,
}

/// Whether groups have zero points (or biases).
#[derive(Clone, Copy, Debug)]
pub enum Symmetry {
    /// Never.
    Symmetric,
    /// Always.
    Asymmetric,
    /// As asked; otherwise this.
    Choice { symmetric: bool },
}

/// Which linear layers a format quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the decoder's blocks; routers, embedding and output stay as they are.
    Blocks,
    /// Those, the embedding and the output.
    EmbeddingsToo,
}

/// The type in which scales of groups are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// That of the checkpoint.
    Model,
    Stored(Dtype),
}

impl Scales {
    /// The stored type in a checkpoint of type `model`.
    pub(crate) fn dtype(self, model: GgmlType) -> Dtype {
        match self {
            Scales::Model => Dtype::Ggml(model),
            Scales::Stored(dtype) => dtype,
        }
    }
}

/// How engines round the input of a module before the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Not at all.
    Exact,
    /// E4M3 with a scale per token.
    Fp8,
    /// E4M3 with a scale per token and this many channels.
    Fp8InGroups(usize),
    /// E4M3 with one scale for all, from calibration.
    Fp8Static,
    /// Eight-bit integers with a scale per token.
    Int8,
    /// The same but for channels with outliers.
    Int8Mixed,
    /// E2M1 with a scale per token and 16 channels, under a global one from calibration.
    NvFp4,
}

impl Activations {
    /// The mean squared error of that rounding, as a share of the input's power: about what it is for normal numbers, with
    /// the channels of large models that stand out where all of a token share a scale.
    pub fn relative_error(self) -> f64 {
        match self {
            Activations::Exact => 0.0,
            Activations::Fp8 | Activations::Fp8InGroups(_) | Activations::Fp8Static => 6e-4,
            Activations::Int8 | Activations::Int8Mixed => 5e-4,
            Activations::NvFp4 => 9e-3,
        }
    }

    /// Whether a scale comes from the largest input over calibration data: [`Module::input_max`].
    pub fn are_calibrated(self) -> bool {
        match self {
            Activations::Fp8Static | Activations::NvFp4 => true,
            Activations::Exact | Activations::Fp8 | Activations::Fp8InGroups(_) => false,
            Activations::Int8 | Activations::Int8Mixed => false,
        }
    }
}

/// Which codes error feedback can choose.
#[derive(Clone, Copy)]
pub enum Feedback {
    None,
    /// Integers in groups, zero points from `least_zero` up, and how they are packed with the type of the checkpoint.
    Integers {
        least_zero: u8,
        pack: fn(&Spec, &Codes, GgmlType) -> Result<Data>,
    },
    /// Four-bit floats.
    Floats(Fp4Kind),
}

/// How codes are chosen unless the user says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultRounding {
    Nearest,
    Feedback,
    /// To nearest as its own tool does in seconds, unless there is calibration data.
    FeedbackWithData,
}

/// Who loads a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// vLLM and transformers.
    Torch,
    /// mlx-lm.
    Mlx,
}

impl Loader {
    /// The `format` entry of the safetensors metadata.
    pub fn metadata_format(self) -> &'static str {
        match self {
            Loader::Torch => "pt",
            Loader::Mlx => "mlx",
        }
    }

    /// Its library, as model cards name it.
    pub fn library(self) -> &'static str {
        match self {
            Loader::Torch => "transformers",
            Loader::Mlx => "mlx",
        }
    }

    /// Whether modules that read the same input become one matrix, so that they must be stored alike.
    pub fn fuses(self) -> bool {
        match self {
            Loader::Torch => true,
            Loader::Mlx => false,
        }
    }
}

/// How channels are scaled before a calibrated rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelScaling {
    /// Not at all.
    None,
    /// By powers of the mean input (Lin et al. 2023), searched.
    Awq,
    /// From inputs into weights (Xiao et al. 2022).
    SmoothQuant,
}

/// Rows are compared as the values that they are: each is alone in its place.
impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Format {}

impl std::hash::Hash for Format {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.id)
    }
}
