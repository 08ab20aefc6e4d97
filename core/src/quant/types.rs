//! The ggml type table: one row per type with all that is known of it without files, models or feedback: block, codec,
//! and what llama.cpp does about it. The search by lanes is looked up in `lanes`, and what error feedback needs in
//! `feedback/ggml/layout.rs` (this module may not import it); these and `integers` list every type, so that a new one does not compile
//! until it is there too. It holds no arithmetic; that is in the modules beside it. Sources: ggml's `ggml.h`,
//! `ggml-common.h` and `ggml-cpu.c`, llama.cpp's `llama-quant.cpp`.

use super::iquants::one_by_one::OneByOne;
use super::iquants::{binary, fp4, iq1, iq2, iq3, iq4, ternary};
use super::{Codec, kquants, legacy, plain, scales_at};
pub use crate::dtype::GgmlType;

/// One row of the table. `block` weights are stored in `bytes` bytes.
#[derive(Clone, Copy)]
pub struct TypeInfo {
    pub ty: GgmlType,
    pub name: &'static str,
    pub block: usize,
    pub bytes: usize,
    /// Scalar search, decoding and check; `None` for types that hold no weights.
    pub codec: Option<Codec>,
    pub importance: Importance,
    /// What takes its place in rows that its block does not divide (`tensor_type_fallback`).
    pub fallback: GgmlType,
    pub budget: Budget,
    /// Whether the effect of a tensor on the KL divergence is measured in it: coarse enough to be seen on few tokens, and
    /// within reach of what budgets buy.
    pub probes: bool,
    pub activations: Activations,
}

/// Who asks for an importance matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// Nobody; it may still help.
    Optional,
    /// llama-quantize, in this preset.
    InPreset(&'static str),
    /// llama-quantize, though the search does without.
    ByTool,
    /// The search itself, and llama-quantize.
    BySearch,
}

/// Of which rows a budget of bytes considers the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Never,
    /// Those made of blocks of 256.
    Whole,
    /// The others.
    Odd,
    Both,
}

/// What ggml's CPU kernels round activations to before a product with weights of the type (`vec_dot_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum Activations {
    /// Nothing narrower than half precision.
    Plain,
    Q8_0,
    /// Q8_0 with the sum of each block.
    Q8_1,
    Q8_K,
}

impl Activations {
    /// Activations under one scale; `None` where there is none.
    pub fn block(self) -> Option<usize> {
        match self {
            Activations::Plain => None,
            Activations::Q8_0 | Activations::Q8_1 => Some(32),
            Activations::Q8_K => Some(256),
        }
    }
}

macro_rules! codec {
    ($importance:expr,) => {
        None
    };
    ($importance:expr, $quantize:expr, $dequantize:expr, $check:expr) => {
        Some(Codec {
            quantize: Some($quantize),
            dequantize: $dequantize,
            check: $check,
            needs_importance: matches!($importance, Importance::BySearch),
        })
    };
}

macro_rules! rows {
    ($($ty:ident $block:literal $bytes:literal
        [$($quantize:expr, $dequantize:expr, $check:expr)?]
        $importance:ident$(($preset:literal))? $fallback:ident $budget:ident $probes:literal $activations:ident;)*) => {
        const fn row(ty: GgmlType) -> TypeInfo {
            match ty {
                $(GgmlType::$ty => {
                    let importance = Importance::$importance$(($preset))?;
                    let codec = codec!(importance, $($quantize, $dequantize, $check)?);
                    TypeInfo {
                        ty, name: stringify!($ty), block: $block, bytes: $bytes, codec, importance,
                        fallback: GgmlType::$fallback, budget: Budget::$budget, probes: $probes,
                        activations: Activations::$activations,
                    }
                })*
            }
        }
    };
}

// type, block, bytes, [search, decode, check], importance, fallback, budget, probes, activations
rows! {
    F32       1   4 [plain::quantize_f32, plain::dequantize_f32, plain::check_f32]
        Optional F16 Never false Plain;
    F16       1   2 [plain::quantize_f16, plain::dequantize_f16, plain::check_f16]
        Optional F16 Never false Plain;
    Q4_0     32  18 [legacy::symmetric::<8, 18>, legacy::dequantize_q4_0, scales_at::<18, 0, 1>]
        Optional F16 Odd true Q8_0;
    Q4_1     32  20 [legacy::asymmetric::<15, 20>, legacy::dequantize_q4_1, scales_at::<20, 0, 2>]
        Optional F16 Odd false Q8_1;
    Q5_0     32  22 [legacy::symmetric::<16, 22>, legacy::dequantize_q5_0, scales_at::<22, 0, 1>]
        Optional F16 Odd false Q8_0;
    Q5_1     32  24 [legacy::asymmetric::<31, 24>, legacy::dequantize_q5_1, scales_at::<24, 0, 2>]
        Optional F16 Odd false Q8_1;
    Q8_0     32  34 [legacy::quantize_q8_0, legacy::dequantize_q8_0, scales_at::<34, 0, 1>]
        Optional F16 Both false Q8_0;
    Q2_K    256  84 [kquants::quantize_q2_k, kquants::dequantize_q2_k, scales_at::<84, 80, 2>]
        InPreset("Q2_K_S") Q4_0 Whole false Q8_K;
    Q3_K    256 110 [kquants::quantize_q3_k, kquants::dequantize_q3_k, scales_at::<110, 108, 1>]
        Optional Q4_0 Whole true Q8_K;
    Q4_K    256 144 [kquants::quantize_q45_k::<4>, kquants::dequantize_q4_k, scales_at::<144, 0, 2>]
        Optional Q5_0 Whole false Q8_K;
    Q5_K    256 176 [kquants::quantize_q45_k::<5>, kquants::dequantize_q5_k, scales_at::<176, 0, 2>]
        Optional Q5_1 Whole false Q8_K;
    Q6_K    256 210 [kquants::quantize_q6_k, kquants::dequantize_q6_k, scales_at::<210, 208, 1>]
        Optional Q8_0 Whole false Q8_K;
    IQ2_XXS 256  66 [iq2::quantize_xxs::<OneByOne>, iq2::dequantize_xxs, scales_at::<66, 0, 1>]
        BySearch IQ4_NL Whole false Q8_K;
    IQ2_XS  256  74 [iq2::quantize_xs::<OneByOne>, iq2::dequantize_xs, scales_at::<74, 0, 1>]
        BySearch IQ4_NL Whole false Q8_K;
    IQ3_XXS 256  98 [iq3::quantize_xxs::<OneByOne>, iq3::dequantize_xxs, scales_at::<98, 0, 1>]
        ByTool IQ4_NL Whole false Q8_K;
    IQ1_S   256  50 [iq1::quantize_s::<OneByOne>, iq1::dequantize_s, scales_at::<50, 0, 1>]
        BySearch IQ4_NL Never false Q8_K;
    IQ4_NL   32  18 [iq4::quantize_nl, iq4::dequantize_nl, scales_at::<18, 0, 1>]
        Optional F16 Odd false Q8_0;
    IQ3_S   256 110 [iq3::quantize_s::<OneByOne>, iq3::dequantize_s, scales_at::<110, 0, 1>]
        Optional IQ4_NL Whole false Q8_K;
    IQ2_S   256  82 [iq2::quantize_s::<OneByOne>, iq2::dequantize_s, scales_at::<82, 0, 1>]
        ByTool IQ4_NL Whole false Q8_K;
    IQ4_XS  256 136 [iq4::quantize_xs, iq4::dequantize_xs, scales_at::<136, 0, 1>]
        Optional IQ4_NL Whole false Q8_K;
    I8        1   1 []
        Optional F16 Never false Plain;
    I16       1   2 []
        Optional F16 Never false Plain;
    I32       1   4 []
        Optional F16 Never false Plain;
    I64       1   8 []
        Optional F16 Never false Plain;
    F64       1   8 []
        Optional F16 Never false Plain;
    IQ1_M   256  56 [iq1::quantize_m::<OneByOne>, iq1::dequantize_m, iq1::check_m]
        ByTool IQ4_NL Never false Q8_K;
    BF16      1   2 [plain::quantize_bf16, plain::dequantize_bf16, plain::check_bf16]
        Optional F16 Never false Plain;
    TQ1_0   256  54 [ternary::quantize_tq1, ternary::dequantize_tq1, scales_at::<54, 52, 1>]
        Optional Q4_0 Never false Q8_K;
    TQ2_0   256  66 [ternary::quantize_tq2, ternary::dequantize_tq2, scales_at::<66, 64, 1>]
        Optional Q4_0 Never false Q8_K;
    MXFP4    32  17 [fp4::quantize_mx, fp4::dequantize_mx, fp4::check_mx]
        Optional F16 Never false Q8_0;
    // Every scale byte is valid: the NaN code counts as zero.
    NVFP4    64  36 [fp4::quantize_nv, fp4::dequantize_nv, |_| Ok(())]
        Optional F16 Never false Q8_0;
    Q1_0    128  18 [binary::quantize_q1, binary::dequantize_q1, scales_at::<18, 0, 1>]
        Optional F16 Never false Q8_0;
    Q2_0     64  18 [binary::quantize_q2, binary::dequantize_q2, scales_at::<18, 0, 1>]
        Optional Q4_0 Never false Q8_0;
}

/// Every known type, in the order of the ids.
pub static TYPES: &[TypeInfo] = &{
    let mut rows = [row(GgmlType::ALL[0]); GgmlType::ALL.len()];
    let mut i = 0;
    while i < rows.len() {
        rows[i] = row(GgmlType::ALL[i]);
        i += 1;
    }
    rows
};

impl GgmlType {
    /// What there is to know of the type.
    pub fn info(self) -> &'static TypeInfo {
        // The table has every type (it is made from all of them), so the search always ends on a row.
        TYPES.iter().find(|t| t.ty == self).unwrap_or(&TYPES[0])
    }

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Weights per block.
    pub fn block(self) -> usize {
        self.info().block
    }

    /// Bits per weight, scales included.
    pub fn bits(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block() as f64
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.info().bytes
    }

    /// The type of this number in ggml.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|t| t.ty as u32 == id).map(|t| t.ty)
    }

    /// Finds a type by its name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|t| t.name.eq_ignore_ascii_case(name)).map(|t| t.ty)
    }

    /// Bytes of a row of `cols` weights; `None` when the row is not a whole number of blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let info = self.info();
        if cols.is_multiple_of(info.block) { (cols / info.block).checked_mul(info.bytes) } else { None }
    }

    /// Whether llama-quantize refuses to make a tensor of this name without importance, in the preset of this name.
    pub fn requires_importance(self, name: &str, preset: &str) -> bool {
        // Embeddings and the output are looked up or never calibrated.
        if name.starts_with("token_embd.") || name == "per_layer_token_embd.weight" || name == "output.weight" {
            return false;
        }
        match self.info().importance {
            Importance::Optional => false,
            Importance::InPreset(wanted) => preset == wanted,
            Importance::ByTool | Importance::BySearch => true,
        }
    }

    /// The types that a budget of bytes considers for rows of `cols` weights, from the smallest to the largest.
    pub fn candidates(cols: usize) -> Vec<GgmlType> {
        let whole = cols.is_multiple_of(256);
        let considered = |row: &&TypeInfo| match row.budget {
            Budget::Never => false,
            Budget::Whole => whole,
            Budget::Odd => !whole,
            Budget::Both => true,
        };
        let fits = |row: &&TypeInfo| cols.is_multiple_of(row.block);
        let mut types: Vec<_> = TYPES.iter().filter(considered).filter(fits).map(|row| row.ty).collect();
        types.sort_by(|a, b| a.bits().total_cmp(&b.bits()));
        types
    }

    /// The type in which the effect of a tensor with rows of `cols` is measured, that with the longest block where there
    /// are several; `None` where none divides them.
    pub fn probe(cols: usize) -> Option<GgmlType> {
        let fits = TYPES.iter().filter(|row| row.probes && cols.is_multiple_of(row.block));
        fits.max_by_key(|row| row.block).map(|row| row.ty)
    }

    /// Whether the type stores plain numbers rather than quantized blocks.
    pub fn is_plain(self) -> bool {
        self.block() == 1
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_id_and_name() {
        for row in TYPES {
            assert_eq!(GgmlType::from_id(row.ty as u32), Some(row.ty));
            assert_eq!(GgmlType::from_name(&row.name.to_lowercase()), Some(row.ty));
            assert_eq!(row.ty.info().name, row.name);
        }
        assert_eq!(GgmlType::from_id(4), None);
    }

    /// The answers that other places once listed by hand.
    #[test]
    fn rows_say_what_llama_cpp_does() {
        use GgmlType::*;
        assert_eq!(
            GgmlType::candidates(512),
            [IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, Q3_K, IQ3_S, IQ4_XS, Q4_K, Q5_K, Q6_K, Q8_0]
        );
        assert_eq!(GgmlType::candidates(96), [Q4_0, IQ4_NL, Q4_1, Q5_0, Q5_1, Q8_0]);
        assert_eq!(GgmlType::candidates(100), []);
        assert_eq!([512, 96, 100].map(GgmlType::probe), [Some(Q3_K), Some(Q4_0), None]);
        assert!(IQ2_S.requires_importance("blk.0.attn_q.weight", "IQ2_M"));
        assert!(!IQ3_XXS.requires_importance("token_embd.weight", "IQ2_M"));
        assert!(Q2_K.requires_importance("blk.0.attn_q.weight", "Q2_K_S"));
        assert!(!Q2_K.requires_importance("blk.0.attn_q.weight", "Q2_K"));
        for row in TYPES {
            assert_eq!(row.codec.is_some_and(|c| c.needs_importance), row.importance == Importance::BySearch);
            // A fallback has a shorter block, and some type is written for each.
            assert!(row.ty == row.fallback || row.fallback.block() < row.block || row.block <= 32, "{}", row.name);
            assert!(row.fallback.info().codec.is_some());
            assert!(row.budget == Budget::Never || row.codec.is_some());
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_have_no_size() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_bytes(576), None);
        assert_eq!(GgmlType::Q8_0.row_bytes(usize::MAX - 31), None);
    }
}
