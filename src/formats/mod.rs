//! The one table of checkpoint formats other than GGUF: which tensors a quantized linear layer becomes, their types,
//! shapes and sizes, how its numbers are packed, read back and described in `config.json`. Sources: AutoGPTQ and
//! GPTQModel, AutoAWQ, compressed-tensors, bitsandbytes, MLX. How the numbers are chosen, beyond plain rounding to
//! nearest as those tools do it, is decided elsewhere; folders and shards are written elsewhere.

mod bits;
mod bnb;
mod config;
mod float;
mod integer;
pub mod minifloat;
mod mlx;
mod names;
mod packed;
mod read;
mod unpack;

pub use bits::transpose;
pub use config::{Exception, Scope};
pub use float::{Fp4Codes, pack_fp4};
pub use integer::nearest;
pub use mlx::{Affine, pack_affine};
pub use packed::{Input, Packed};
pub use read::{Scheme, StoredPiece};

use crate::feedback::int::Codes;
use crate::quant::GgmlType;
use crate::source::Dtype;
use crate::{Error, Result};

/// A way to store a quantized linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// AutoGPTQ's first layout: zero points less one.
    Gptq,
    /// Its second: zero points as they are.
    GptqV2,
    /// AutoAWQ's GEMM layout.
    Awq,
    /// compressed-tensors `pack-quantized`: integers in words, activations as they are.
    PackQuantized,
    /// compressed-tensors `float-quantized`: E4M3 with a scale per row; activations per token.
    Fp8,
    /// E4M3 with a scale per 128 x 128; activations per token and 128 channels.
    Fp8Block,
    /// E4M3 with one scale per tensor, for weights and for activations.
    Fp8Static,
    /// compressed-tensors `int-quantized`: eight-bit integers with a scale per row; activations per token.
    Int8,
    /// compressed-tensors `nvfp4-pack-quantized`: E2M1 under an E4M3 scale per 16 and a global one; activations too.
    NvFp4,
    /// The same with activations as they are.
    NvFp4A16,
    /// compressed-tensors `mxfp4-pack-quantized`: E2M1 under a power of two per 32; activations as they are.
    MxFp4,
    /// bitsandbytes, sixteen quantiles of the normal distribution.
    Nf4,
    /// bitsandbytes, sixteen four-bit floats.
    Fp4,
    /// bitsandbytes LLM.int8().
    BnbInt8,
    /// MLX: unsigned integers with scale and bias.
    MlxAffine,
    MlxMxFp4,
    MlxNvFp4,
    MlxMxFp8,
}

/// Everything that decides the bytes of a format and its entry in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    pub format: Format,
    pub bits: u8,
    /// Columns (for the flat blocks of bitsandbytes: weights) under one scale; `None`: a whole row, or what the format fixes.
    pub group: Option<usize>,
    /// Whether the group was asked for by name, so that no other may take its place.
    pub group_given: bool,
    pub symmetric: bool,
    /// GPTQ: columns were quantized by falling activation, and `g_idx` says which group each belongs to.
    pub desc_act: bool,
    /// bitsandbytes: the block scales are quantized too.
    pub nested: bool,
}

/// Which linear layers a format quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the decoder's blocks; routers, embedding and output stay as they are.
    Blocks,
    /// Those, the embedding and the output.
    EmbeddingsToo,
}

/// One tensor of a packed module, before its bytes are known. Its name is `{module}.{suffix}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub suffix: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// One tensor of a packed module.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub suffix: &'static str,
    pub dtype: Dtype,
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
    pub rows: usize,
    pub cols: usize,
    /// The checkpoint's type (F16, BF16 or F32), in which scales are kept and some tools calculate.
    pub dtype: GgmlType,
    /// Weight of each column's squared error, for [`ScaleRule::Search`].
    pub importance: Option<&'a [f32]>,
    /// Largest magnitude among all modules that an engine fuses with this one (NVFP4 shares their global scale).
    pub fused_max: Option<f32>,
    /// Largest magnitude of the input over the calibration data (static FP8, NVFP4 with activations).
    pub input_max: Option<f32>,
    pub scales: ScaleRule,
}

impl<'a> Module<'a> {
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

/// Rows and columns of a block of [`Format::Fp8Block`].
pub const FP8_BLOCK: usize = 128;

pub fn parse(name: &str) -> Option<Spec> {
    names::parse(name)
}

impl Spec {
    /// The group length for a matrix with rows of `cols`.
    pub fn group_of(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols).max(1)
    }

    /// The largest of the common group lengths that divides all of `cols`; `None` when 32 does not.
    pub fn common_group(cols: impl Iterator<Item = usize> + Clone) -> Option<usize> {
        [128, 64, 32].into_iter().find(|group| cols.clone().all(|cols| cols.is_multiple_of(*group)))
    }

    pub fn reach(&self) -> Reach {
        match self.format {
            Format::MlxAffine | Format::MlxMxFp4 | Format::MlxNvFp4 | Format::MlxMxFp8 => Reach::EmbeddingsToo,
            _ => Reach::Blocks,
        }
    }

    /// The `format` entry of the safetensors metadata.
    pub fn metadata_format(&self) -> &'static str {
        if self.reach() == Reach::EmbeddingsToo { "mlx" } else { "pt" }
    }

    /// Whether [`Spec::pack_codes`] takes its codes.
    pub fn is_integer(&self) -> bool {
        use Format::*;
        matches!(self.format, Gptq | GptqV2 | Awq | PackQuantized | MlxAffine)
    }

    /// Whether the format needs a calibration pass for the scale of activations.
    pub fn needs_inputs(&self) -> bool {
        matches!(self.format, Format::Fp8Static | Format::NvFp4)
    }

    /// Whether modules that engines fuse (query, key, value; gate, up) must agree on a scale: [`Module::fused_max`].
    pub fn shares_global_scale(&self) -> bool {
        matches!(self.format, Format::NvFp4 | Format::NvFp4A16)
    }

    /// Why a matrix of this shape cannot be stored so; `None` when it can.
    pub fn refuses(&self, rows: usize, cols: usize) -> Option<String> {
        use Format::*;
        let group = self.group_of(cols);
        let multiple = |what: &str, n: usize, of: usize, why: &str| {
            (!n.is_multiple_of(of)).then(|| format!("{n} {what} are not a multiple of {of} ({why})"))
        };
        let whole_groups = || multiple("columns", cols, group, "the group size");
        // So many codes end on a word: 8 of four bits, 32 of three.
        let whole = 32 >> self.bits.trailing_zeros();
        match self.format {
            Gptq | GptqV2 => whole_groups()
                .or_else(|| multiple("columns", cols, whole, "codes fill 32-bit words"))
                .or_else(|| multiple("rows", rows, whole, "zero points fill 32-bit words")),
            Awq => whole_groups().or_else(|| multiple("rows", rows, 8, "eight codes fill a word")),
            PackQuantized => whole_groups(),
            Fp8Block => multiple("columns", cols, FP8_BLOCK, "engines take whole blocks")
                .or_else(|| multiple("rows", rows, FP8_BLOCK, "engines take whole blocks")),
            NvFp4 | NvFp4A16 | MxFp4 => whole_groups(),
            MlxAffine | MlxMxFp4 | MlxMxFp8 => whole_groups(),
            MlxNvFp4 => multiple("columns", cols, 32, "MLX packs 32 at a time"),
            Nf4 | Fp4 => multiple("weights", rows * cols, 2, "two share a byte"),
            Fp8 | Fp8Static | Int8 | BnbInt8 => None,
        }
    }

    /// The tensors that a module of `rows` x `cols` becomes, in a checkpoint of type `dtype`.
    pub fn layout(&self, rows: usize, cols: usize, dtype: GgmlType) -> Vec<Slot> {
        use Format::*;
        let slot = |suffix, dtype, shape: &[usize]| Slot { suffix, dtype, shape: shape.to_vec() };
        let (n, k, model) = (rows, cols, Dtype::Ggml(dtype));
        let groups = k.div_ceil(self.group_of(k));
        let words = |n| bits::words(n, self.bits);
        match self.format {
            Gptq | GptqV2 => vec![
                slot("g_idx", I32, &[k]),
                slot("qweight", I32, &[words(k), n]),
                slot("qzeros", I32, &[groups, words(n)]),
                slot("scales", F16, &[groups, n]),
            ],
            Awq => vec![
                slot("qweight", I32, &[k, words(n)]),
                slot("qzeros", I32, &[groups, words(n)]),
                slot("scales", F16, &[groups, n]),
            ],
            PackQuantized => {
                let mut slots = vec![
                    slot("weight_packed", I32, &[n, words(k)]),
                    slot("weight_scale", model, &[n, groups]),
                    slot("weight_shape", I64, &[2]),
                ];
                if !self.symmetric {
                    slots.push(slot("weight_zero_point", I32, &[words(n), groups]));
                }
                slots
            }
            Fp8 => vec![slot("weight", Dtype::F8_E4M3, &[n, k]), slot("weight_scale", model, &[n, 1])],
            Fp8Block => {
                let blocks = [n.div_ceil(FP8_BLOCK), k.div_ceil(FP8_BLOCK)];
                vec![slot("weight", Dtype::F8_E4M3, &[n, k]), slot("weight_scale", model, &blocks)]
            }
            Fp8Static => vec![
                slot("input_scale", model, &[1]),
                slot("weight", Dtype::F8_E4M3, &[n, k]),
                slot("weight_scale", model, &[1]),
            ],
            Int8 => vec![slot("weight", I8, &[n, k]), slot("weight_scale", model, &[n, 1])],
            NvFp4 | NvFp4A16 => {
                let mut slots = vec![
                    slot("weight_global_scale", F32, &[1]),
                    slot("weight_packed", Dtype::U8, &[n, k / 2]),
                    slot("weight_scale", Dtype::F8_E4M3, &[n, groups]),
                ];
                if self.format == NvFp4 {
                    slots.insert(0, slot("input_global_scale", F32, &[1]));
                }
                slots
            }
            MxFp4 => {
                vec![slot("weight_packed", Dtype::U8, &[n, k / 2]), slot("weight_scale", Dtype::U8, &[n, groups])]
            }
            Nf4 | Fp4 => self.bnb_slots(rows, cols, dtype),
            BnbInt8 => vec![slot("SCB", F32, &[n]), slot("weight", I8, &[n, k]), slot("weight_format", Dtype::U8, &[])],
            MlxAffine => vec![
                slot("biases", model, &[n, groups]),
                slot("scales", model, &[n, groups]),
                slot("weight", Dtype::U32, &[n, words(k)]),
            ],
            MlxMxFp4 | MlxNvFp4 | MlxMxFp8 => {
                vec![slot("scales", Dtype::U8, &[n, groups]), slot("weight", Dtype::U32, &[n, words(k)])]
            }
        }
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
        if !fits || codes.bits != self.bits || codes.group != self.group_of(codes.cols) || !self.is_integer() {
            return Err(Error::Internal(format!(
                "codes of {} bits in groups of {} for {self}",
                codes.bits, codes.group
            )));
        }
        let data = match self.format {
            Format::Gptq | Format::GptqV2 => integer::gptq(codes, self.format == Format::Gptq)?,
            Format::Awq => integer::awq(codes),
            Format::PackQuantized => integer::pack_quantized(codes, self.symmetric, dtype),
            _ => return pack_affine(self, &Affine::from_codes(codes, dtype), dtype),
        };
        self.fill(codes.rows, codes.cols, dtype, data)
    }

    /// Rounds a module to nearest, as the format's own tool does ([`ScaleRule::Peer`]), and packs it.
    ///
    /// # Errors
    /// `BadInput` for a shape that cannot be stored or weights that are not finite, and where the format needs the
    /// largest input and it is not given.
    pub fn quantize_nearest(&self, module: &Module) -> Result<Vec<Piece>> {
        use Format::*;
        self.check_shape(module.rows, module.cols)?;
        if module.weights.len() != module.rows * module.cols {
            return Err(Error::Internal(format!("{} weights for {self}", module.weights.len())));
        }
        if let Some(bad) = module.weights.iter().find(|w| !w.is_finite()) {
            return Err(Error::bad_input(format!("holds a weight that is {bad}")));
        }
        let data = match self.format {
            Gptq | GptqV2 | Awq | PackQuantized => {
                let codes = nearest(module, self.bits, self.group_of(module.cols), self.symmetric);
                return self.pack_codes(&codes, module.dtype);
            }
            MlxAffine => {
                let affine = Affine::nearest(module, self.bits, self.group_of(module.cols));
                return pack_affine(self, &affine, module.dtype);
            }
            Fp8 => float::fp8_rows(module),
            Fp8Block => float::fp8_blocks(module),
            Fp8Static => float::fp8_static(module)?,
            Int8 => float::int8_rows(module),
            NvFp4 | NvFp4A16 | MxFp4 => return pack_fp4(self, &Fp4Codes::nearest(self, module)?, module.dtype),
            Nf4 | Fp4 => self.bnb_four_bits(module),
            BnbInt8 => bnb::int8(module),
            MlxMxFp4 | MlxNvFp4 | MlxMxFp8 => mlx::floats(self.format, module),
        };
        self.fill(module.rows, module.cols, module.dtype, data)
    }

    fn check_shape(&self, rows: usize, cols: usize) -> Result<()> {
        match self.refuses(rows, cols) {
            Some(why) => Err(Error::bad_input(format!("cannot be stored as {self}: {why}"))),
            None => Ok(()),
        }
    }

    /// Puts `data`, one per slot in order, into the slots.
    fn fill(&self, rows: usize, cols: usize, dtype: GgmlType, data: Vec<Vec<u8>>) -> Result<Vec<Piece>> {
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
