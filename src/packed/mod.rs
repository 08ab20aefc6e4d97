//! Checkpoint formats other than GGUF: which tensors a quantized linear layer becomes, their types, shapes and sizes, how
//! its numbers are packed, read back and described in `config.json`, and what engines have against it. Every format is one
//! [`Format`] value, in the file of its tool; a new one is one value there and a place in [`FORMATS`], and the compiler
//! names what it leaves unsaid. How numbers are chosen beyond plain rounding to nearest, as those tools do it, is decided
//! elsewhere; folders and shards are written elsewhere.

mod awq;
mod bits;
mod bnb;
mod compressed;
pub mod engines;
mod format;
mod fp8;
mod gptq;
mod integer;
mod matrix;
mod mixture;
mod mlx;
mod names;
mod pieces;
mod read;
mod tunable;

pub(crate) use bits::transpose;
pub use compressed::floats::{Fp4Codes, pack_fp4};
pub use compressed::{ENCODERS, FP8_BLOCK, group_of};
pub use engines::Engine;
pub use format::{
    Activations, Bits, ChannelScaling, DefaultRounding, Feedback, Format, GroupRule, Loader, Name, Reach, Scales,
    Symmetry,
};
pub use integer::nearest;
pub use matrix::{Input, Packed};
pub use mixture::Mixture;
pub use pieces::StoredPiece;
pub use read::Scheme;
pub use tunable::Tunable;

use crate::dtype::{Dtype, GgmlType};
use crate::feedback::ScaleType;
use crate::feedback::int::{Codes, IntSpec};
use crate::{Error, Result};
use engines::{Engines, Verdict};
use read::Tool;
use serde_json::Value;

/// The bytes of a module's tensors, one for each [`Slot`] of its layout, in order.
pub(crate) type Data = Vec<Vec<u8>>;

/// Every format. Those of one tool are together.
pub static FORMATS: [&Format; 18] = [
    &gptq::GPTQ,
    &gptq::GPTQ_V2,
    &awq::AWQ,
    &compressed::PACK_QUANTIZED,
    &compressed::FP8,
    &compressed::FP8_IN_BLOCKS,
    &compressed::FP8_STATIC,
    &compressed::INT8,
    &compressed::NVFP4,
    &compressed::NVFP4_A16,
    &compressed::MXFP4,
    &bnb::NF4,
    &bnb::FP4,
    &bnb::INT8,
    &mlx::AFFINE,
    &mlx::MXFP4,
    &mlx::NVFP4,
    &mlx::MXFP8,
];

/// The tools whose checkpoints are read.
pub(crate) static TOOLS: [&Tool; 6] = [&gptq::TOOL, &awq::TOOL, &compressed::TOOL, &fp8::TOOL, &bnb::TOOL, &mlx::TOOL];

/// A format with the numbers that decide its bytes and its entry in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The format.
    pub format: &'static Format,
    /// Bits per weight.
    pub bits: u8,
    /// Columns (for the flat blocks of bitsandbytes: weights) under one scale; `None`: a whole row, or what the format fixes.
    pub group: Option<usize>,
    /// Whether the group was asked for by name, so that no other may take its place.
    pub group_given: bool,
    /// Groups without zero points.
    pub symmetric: bool,
    /// GPTQ: columns were quantized by falling activation, and `g_idx` says which group each belongs to.
    pub desc_act: bool,
    /// bitsandbytes: the block scales are quantized too.
    pub nested: bool,
}

/// A module that could not be stored as the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Exception {
    /// Its full name, without `.weight`.
    pub module: String,
    /// How it is stored instead.
    pub spec: Spec,
}

/// Which modules the format does not speak for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Linear layers kept as they are, by full name, beside `lm_head`: routers, modules that the format refuses.
    pub kept: &'a [String],
    /// Modules stored in another format.
    pub exceptions: &'a [Exception],
}

/// One tensor of a packed module, before its bytes are known. Its name is `{module}.{suffix}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What its name ends with.
    pub suffix: &'static str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// One tensor of a packed module.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// What its name ends with.
    pub suffix: &'static str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub data: Vec<u8>,
}

/// How block scales of the four-bit floats are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRule {
    /// As the format's own tool does, from the largest weight alone.
    #[default]
    Peer,
    /// Of the scales nearby, the one with the lowest (weighted) squared error.
    Search,
}

/// A linear layer to be rounded to nearest.
#[derive(Clone, Copy)]
pub struct Module<'a> {
    /// `[rows, cols]`
    pub weights: &'a [f32],
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The checkpoint's type (F16, BF16 or F32), in which scales are kept and some tools calculate.
    pub dtype: GgmlType,
    /// Weight of each column's squared error, for [`ScaleRule::Search`].
    pub importance: Option<&'a [f32]>,
    /// Largest magnitude among all modules that an engine fuses with this one (NVFP4 shares their global scale).
    pub fused_max: Option<f32>,
    /// Largest magnitude of the input over the calibration data (static FP8, NVFP4 with activations).
    pub input_max: Option<f32>,
    /// How block scales are chosen.
    pub scales: ScaleRule,
}

impl<'a> Module<'a> {
    /// Scaled as the format's own tool does, of unknown inputs.
    pub fn new(weights: &'a [f32], rows: usize, cols: usize, dtype: GgmlType) -> Self {
        let scales = ScaleRule::Peer;
        Module { weights, rows, cols, dtype, importance: None, fused_max: None, input_max: None, scales }
    }
}

const I8: Dtype = Dtype::Ggml(GgmlType::I8);
const I32: Dtype = Dtype::Ggml(GgmlType::I32);
const I64: Dtype = Dtype::Ggml(GgmlType::I64);
pub(crate) const F16: Dtype = Dtype::Ggml(GgmlType::F16);
const F32: Dtype = Dtype::Ggml(GgmlType::F32);

pub fn parse(name: &str) -> Option<Spec> {
    names::parse(name)
}

/// A tensor of the layout.
fn slot(suffix: &'static str, dtype: Dtype, shape: &[usize]) -> Slot {
    Slot { suffix, dtype, shape: shape.to_vec() }
}

/// `n` of `what` that are not a multiple of `of`, as a reason to refuse.
fn not_multiple(what: &str, n: usize, of: usize, why: &str) -> Option<String> {
    (!n.is_multiple_of(of)).then(|| format!("{n} {what} are not a multiple of {of} ({why})"))
}

/// Columns that do not end with a group, as a reason to refuse.
fn broken_group(spec: &Spec, _rows: usize, cols: usize) -> Option<String> {
    not_multiple("columns", cols, spec.group_of(cols), "the group size")
}

impl Spec {
    /// The group length for a matrix with rows of `cols`.
    pub fn group_of(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols).max(1)
    }

    /// Groups in a row of `cols`.
    fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group_of(cols))
    }

    /// The same format with another width, where it has that.
    pub fn with_bits(&self, bits: u8) -> Option<Spec> {
        let has = match self.format.bits {
            Bits::Named => self.format.names.iter().any(|name| name.bits == bits),
            Bits::Of(widths) => widths.contains(&bits),
        };
        has.then_some(Spec { bits, ..*self })
    }

    /// Whether a loader reads modules of both formats in one folder.
    pub fn mixes_with(&self, other: &Spec) -> bool {
        let same_tool = std::ptr::eq(self.format.tool, other.format.tool);
        same_tool && (self == other || (self.format.tool.mixes)(self, other))
    }

    /// What modules of a folder in this format may be stored as where a budget decides, itself among it. A group that was
    /// asked for by name stays.
    pub fn mixture(&self) -> Mixture {
        (self.format.tool.mixture)(self)
    }

    /// Whether another group may be asked for, or take the place of the usual one.
    pub fn has_free_group(&self) -> bool {
        match self.format.group {
            GroupRule::Free | GroupRule::Of(_) => true,
            GroupRule::Fixed | GroupRule::Flat => false,
        }
    }

    /// How far what one column costs is made good.
    pub fn reach(&self) -> Reach {
        self.format.reach
    }

    /// Who loads a folder of it.
    pub fn loader(&self) -> Loader {
        self.format.tool.loader
    }

    /// Whether [`Spec::pack_codes`] takes its codes.
    pub fn is_integer(&self) -> bool {
        match self.format.feedback {
            Feedback::Integers { .. } => true,
            Feedback::None | Feedback::Floats(_) => false,
        }
    }

    /// Whether codes can be chosen with error feedback.
    pub fn takes_feedback(&self) -> bool {
        match self.format.feedback {
            Feedback::Integers { .. } | Feedback::Floats(_) => true,
            Feedback::None => false,
        }
    }

    /// Whether codes are chosen with error feedback unless the recipe says otherwise; `given`: there is calibration data.
    pub fn prefers_feedback(&self, given: bool) -> bool {
        match self.format.rounding {
            DefaultRounding::Nearest => false,
            DefaultRounding::Feedback => true,
            DefaultRounding::FeedbackWithData => given,
        }
    }

    /// What engines do to the input of a module.
    pub(crate) fn activations(&self) -> Activations {
        self.format.activations
    }

    /// How channels are scaled before a calibrated rounding.
    pub fn scaling(&self) -> ChannelScaling {
        self.format.scaling
    }

    /// The grid on which error feedback chooses integers for rows of `cols`, in a checkpoint of type `dtype`; `None`
    /// where it chooses none.
    pub fn integer_grid(&self, cols: usize, dtype: GgmlType) -> Option<IntSpec> {
        let Feedback::Integers { least_zero, .. } = self.format.feedback else { return None };
        let scale = if self.format.scales.dtype(dtype) == F16 { ScaleType::F16 } else { ScaleType::Bf16 };
        Some(IntSpec { bits: self.bits, group: self.group_of(cols), symmetric: self.symmetric, least_zero, scale })
    }

    /// The same numbers in compressed-tensors' layout, where that has such.
    pub fn in_compressed_tensors(&self) -> Option<Spec> {
        let format = self.format.as_compressed_tensors?;
        let has_bits = format.names.iter().any(|name| name.bits == self.bits);
        (has_bits && !self.desc_act).then_some(Spec { format, ..*self })
    }

    /// What a module that this format refuses is stored as; `None`: as it is.
    pub fn fallback(&self) -> Option<Spec> {
        self.format.fallback.and_then(Format::plain)
    }

    /// What `engine` says of a folder in this format, before it looks at shapes.
    pub fn verdict(&self, engine: Engine, tp: usize) -> Verdict {
        self.format.engines.ask(engine, &self.quantization_config(Scope::default()), tp)
    }

    /// Whether the format needs a calibration pass for the scale of activations.
    pub fn needs_inputs(&self) -> bool {
        self.format.activations.are_calibrated()
    }

    /// Whether modules that engines fuse (query, key, value; gate, up) must agree on a scale: [`Module::fused_max`].
    pub fn shares_global_scale(&self) -> bool {
        self.format.shares_scale
    }

    /// Why a matrix of this shape cannot be stored so; `None` when it can.
    pub fn refuses(&self, rows: usize, cols: usize) -> Option<String> {
        (self.format.refuses)(self, rows, cols)
    }

    /// The tensors that a module of `rows` x `cols` becomes, in a checkpoint of type `dtype`.
    pub fn layout(&self, rows: usize, cols: usize, dtype: GgmlType) -> Vec<Slot> {
        (self.format.layout)(self, rows, cols, dtype)
    }

    /// The `quantization_config` object (MLX has the same once more as `quantization`).
    pub fn quantization_config(&self, scope: Scope) -> Value {
        (self.format.config)(self, scope)
    }

    /// Files beside `config.json` that hold the object once more, for readers that look there.
    pub fn extra_config_files(&self) -> &'static [&'static str] {
        self.format.tool.extra_config_files
    }

    /// Whether `config.json` has the object under `quantization` too.
    pub fn doubles_config(&self) -> bool {
        self.format.tool.doubles_config
    }

    /// Bytes of the tensors of a module of `rows` x `cols`, without the safetensors header.
    pub fn sizes(&self, rows: usize, cols: usize, dtype: GgmlType) -> u64 {
        self.layout(rows, cols, dtype).iter().map(Slot::bytes).sum()
    }

    /// Packs what an integer rounding has chosen. `dtype` is the checkpoint's type.
    ///
    /// # Errors
    /// `Internal` when the codes do not belong to this format; `BadInput` when the shape cannot be stored
    /// ([`Spec::refuses`]) or a version-1 GPTQ file cannot hold a zero point.
    pub fn pack_codes(&self, codes: &Codes, dtype: GgmlType) -> Result<Vec<Piece>> {
        self.check_shape(codes.rows, codes.cols)?;
        let groups = codes.cols.div_ceil(codes.group.max(1));
        let (n, g) = (codes.rows * codes.cols, codes.rows * groups);
        let fits = codes.codes.len() == n && codes.scales.len() == g && codes.zeros.len() == g;
        match self.format.feedback {
            Feedback::Integers { pack, .. }
                if fits && codes.bits == self.bits && codes.group == self.group_of(codes.cols) =>
            {
                self.fill(codes.rows, codes.cols, dtype, pack(self, codes, dtype)?)
            }
            _ => Err(Error::Internal(format!("codes of {} bits in groups of {} for {self}", codes.bits, codes.group))),
        }
    }

    /// Rounds a module to nearest, as the format's own tool does ([`ScaleRule::Peer`]), and packs it.
    ///
    /// # Errors
    /// `BadInput` for a shape that cannot be stored or weights that are not finite, and where the format needs the
    /// largest input and it is not given.
    pub fn quantize_nearest(&self, module: &Module) -> Result<Vec<Piece>> {
        self.check_shape(module.rows, module.cols)?;
        if module.weights.len() != module.rows * module.cols {
            return Err(Error::Internal(format!("{} weights for {self}", module.weights.len())));
        }
        if let Some(bad) = module.weights.iter().find(|w| !w.is_finite()) {
            return Err(Error::bad_input(format!("holds a weight that is {bad}")));
        }
        self.fill(module.rows, module.cols, module.dtype, (self.format.nearest)(self, module)?)
    }

    /// -1 for whole rows.
    fn group_size(&self) -> Value {
        self.group.map_or(Value::from(-1), Value::from)
    }

    fn check_shape(&self, rows: usize, cols: usize) -> Result<()> {
        match self.refuses(rows, cols) {
            Some(why) => Err(Error::bad_input(format!("cannot be stored as {self}: {why}"))),
            None => Ok(()),
        }
    }

    /// Puts `data`, one per slot in order, into the slots.
    fn fill(&self, rows: usize, cols: usize, dtype: GgmlType, data: Data) -> Result<Vec<Piece>> {
        let slots = self.layout(rows, cols, dtype);
        let sound = slots.len() == data.len() && slots.iter().zip(&data).all(|(s, d)| s.bytes() == d.len() as u64);
        if !sound {
            return Err(Error::Internal(format!("{rows} x {cols} as {self} has another size than its layout")));
        }
        let piece = |(slot, data): (Slot, _)| Piece { suffix: slot.suffix, dtype: slot.dtype, shape: slot.shape, data };
        Ok(slots.into_iter().zip(data).map(piece).collect())
    }
}

impl Slot {
    /// Stored size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * size_of(self.dtype)) as u64
    }
}

/// Bytes of an element, for the types that packed modules are made of.
fn size_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Ggml(ty) => ty.block_bytes(),
        Dtype::U32 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
