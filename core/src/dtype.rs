//! The element types of stored tensors, as identities alone: ggml's by their ids in GGUF files, and those that other
//! containers have besides. What can be done with a ggml type is in the rows of [`crate::quant::types`]; no arithmetic and
//! no sizes are here.

macro_rules! ggml_types {
    ($($ty:ident = $id:literal,)*) => {
        /// A ggml tensor type, by its id in GGUF files (`ggml.h`).
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType {
            $(
                /// The type of that name in ggml.
                $ty = $id,
            )*
        }

        impl GgmlType {
            /// Every known type, in the order of the ids.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$ty),*];
        }
    };
}

ggml_types! {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// The element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Dtype {
    /// Anything a GGUF file can hold; safetensors' F32, F16, BF16, F64, I8 .. I64 map to these too.
    Ggml(GgmlType),
    U8,
    U16,
    U32,
    U64,
    Bool,
    C64,
    F8_E4M3,
    F8_E4M3FNUZ,
    F8_E5M2,
    F8_E5M2FNUZ,
    F8_E8M0,
    F6_E2M3,
    F6_E3M2,
    F4,
    /// A module of several tensors, packed by this tool; it decodes by whole rows.
    Packed(&'static str),
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dtype::Ggml(ty) => ty.fmt(f),
            Dtype::Packed(tool) => f.pad(tool),
            other => f.pad(&format!("{other:?}").to_uppercase()),
        }
    }
}
