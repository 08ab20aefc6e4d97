//! The ggml type table: one row per type with its id, name and block. Everything else asks this table. It holds no
//! arithmetic; that is in the modules beside it. Source of the facts: ggml's `ggml.h` and `ggml-common.h`.

/// A ggml tensor type, by its id in GGUF files.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum GgmlType {
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

/// One row of the table. `block` weights are stored in `bytes` bytes.
#[derive(Debug)]
pub struct TypeInfo {
    pub ty: GgmlType,
    pub name: &'static str,
    pub block: usize,
    pub bytes: usize,
}

macro_rules! table {
    ($($ty:ident $block:literal $bytes:literal)*) => {
        /// Every known type, in the order of the ids.
        pub const TYPES: &[TypeInfo] = &[$(TypeInfo { ty: GgmlType::$ty, name: stringify!($ty), block: $block, bytes: $bytes }),*];
    };
}

table! {
    F32     1   4
    F16     1   2
    Q4_0    32  18
    Q4_1    32  20
    Q5_0    32  22
    Q5_1    32  24
    Q8_0    32  34
    Q2_K    256 84
    Q3_K    256 110
    Q4_K    256 144
    Q5_K    256 176
    Q6_K    256 210
    IQ2_XXS 256 66
    IQ2_XS  256 74
    IQ3_XXS 256 98
    IQ1_S   256 50
    IQ4_NL  32  18
    IQ3_S   256 110
    IQ2_S   256 82
    IQ4_XS  256 136
    I8      1   1
    I16     1   2
    I32     1   4
    I64     1   8
    F64     1   8
    IQ1_M   256 56
    BF16    1   2
    TQ1_0   256 54
    TQ2_0   256 66
    MXFP4   32  17
    NVFP4   64  36
    Q1_0    128 18
    Q2_0    64  18
}

impl GgmlType {
    pub fn info(self) -> &'static TypeInfo {
        // The table is complete (a test asserts it), so the search always ends on a row.
        TYPES.iter().find(|t| t.ty == self).unwrap_or(&TYPES[0])
    }

    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Weights per block.
    pub fn block(self) -> usize {
        self.info().block
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.info().bytes
    }

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

    pub fn bits_per_weight(self) -> f64 {
        let info = self.info();
        8.0 * info.bytes as f64 / info.block as f64
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

    #[test]
    fn rows_that_are_not_whole_blocks_have_no_size() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_bytes(576), None);
        assert_eq!(GgmlType::Q8_0.row_bytes(usize::MAX - 31), None);
    }
}
