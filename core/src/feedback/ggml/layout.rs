//! What tells the block types apart, as one table: how many weights share a scale, which levels a code can take and which
//! scales a sub-block can have; and the way from these numbers to a block's bytes and back. No search. This is the second
//! table of ggml types beside `quant/types.rs`, which must not know of feedback; it lists every type, so that a new one
//! does not compile until it is decided here whether feedback makes it.
//!
//! In all of them a weight is `s · level + m` with `s = d · a` and `m = −(dmin · c)`, where d and dmin are f16 and belong
//! to the block, a and c are small integers and belong to the sub-block. The 32-weight types are the case a = 1, c = −1;
//! types without a minimum have dmin = 0.

use crate::quant::iquants::iq4::VALUES;
use crate::quant::kquants::{pack_q3_scales, pack_scale_min, pack_two_bits, unpack_q3_scale, unpack_scale_min};
use crate::quant::{GgmlType, f16_at, legacy, put_f16};

/// The most weights of a block, and its most sub-blocks.
pub const MAX_BLOCK: usize = 256;
pub const MAX_SUBS: usize = 16;
pub const MAX_SUB: usize = 32;

/// Scales (or minimums) of sub-blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factors {
    /// All 0: there are none.
    None,
    /// The one value that the block's own f16 makes unnecessary.
    Fixed(f32),
    /// Integers from the first to the second.
    Integer(f32, f32),
}

/// One block type.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub ty: GgmlType,
    /// Weights per block, and per sub-block.
    pub block: usize,
    pub sub: usize,
    /// The lowest and the highest level.
    pub levels: (f32, f32),
    /// Whether levels are those of IQ4's table, not all integers.
    pub table: bool,
    pub scales: Factors,
    pub mins: Factors,
    /// Whether the scales of the first pass start from ggml's: with two bits and a minimum, its longer search finds some
    /// that the shorter one misses; elsewhere both end at the same loss.
    pub starts_from_ggml: bool,
    pub bytes: Bytes,
}

/// The way to a block's bytes and back.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// Codes (levels less the lowest, or places in the table) and scales into the block's bytes.
    pack: fn(&[u8; MAX_BLOCK], &Block, &mut [u8]),
    /// The scales of a block's bytes; levels are left alone.
    unpack_scales: fn(&[u8], &mut Block),
}

impl Layout {
    pub fn subs(&self) -> usize {
        self.block / self.sub
    }

    pub fn has_min(&self) -> bool {
        self.mins != Factors::None
    }
}

/// The layout of `ty`; `None` for codebooks, and for types that feedback does not make.
pub fn layout(ty: GgmlType) -> Option<Layout> {
    use Factors::{Fixed, Integer, None as Absent};
    use GgmlType::*;
    let row = |block, sub, low, high, scales, mins, bytes| Layout {
        ty,
        block,
        sub,
        levels: (low, high),
        table: false,
        scales,
        mins,
        starts_from_ggml: false,
        bytes,
    };
    let (low, high) = (VALUES[0], VALUES[15]);
    Some(match ty {
        Q2_K => {
            let plain = row(256, 16, 0.0, 3.0, Integer(0.0, 15.0), Integer(0.0, 15.0), q2_k());
            Layout { starts_from_ggml: true, ..plain }
        }
        Q3_K => row(256, 16, -4.0, 3.0, Integer(-32.0, 31.0), Absent, q3_k()),
        Q4_K => row(256, 32, 0.0, 15.0, Integer(0.0, 63.0), Integer(0.0, 63.0), q45_k::<0>()),
        Q5_K => row(256, 32, 0.0, 31.0, Integer(0.0, 63.0), Integer(0.0, 63.0), q45_k::<32>()),
        Q6_K => row(256, 16, -32.0, 31.0, Integer(-128.0, 127.0), Absent, q6_k()),
        IQ4_XS => Layout { table: true, ..row(256, 32, low, high, Integer(-32.0, 31.0), Absent, iq4_xs()) },
        IQ4_NL => Layout { table: true, ..row(32, 32, low, high, Fixed(1.0), Absent, legacy_symmetric()) },
        Q4_0 => row(32, 32, -8.0, 7.0, Fixed(1.0), Absent, legacy_symmetric()),
        Q5_0 => row(32, 32, -16.0, 15.0, Fixed(1.0), Absent, legacy_symmetric()),
        Q8_0 => row(32, 32, -127.0, 127.0, Fixed(1.0), Absent, q8_0()),
        Q4_1 => row(32, 32, 0.0, 15.0, Fixed(1.0), Fixed(-1.0), legacy_asymmetric()),
        Q5_1 => row(32, 32, 0.0, 31.0, Fixed(1.0), Fixed(-1.0), legacy_asymmetric()),
        // Codebooks, which choose several weights at once, are in `codebook/book.rs`.
        IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S => return None,
        // Not made: the codebook whose shift is of a whole block; ternary, binary and four-bit floats; plain numbers.
        IQ1_S | TQ1_0 | TQ2_0 | Q1_0 | Q2_0 | MXFP4 | NVFP4 => return None,
        F32 | F16 | BF16 | F64 | I8 | I16 | I32 | I64 => return None,
    })
}

/// The numbers of one block of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub d: f32,
    pub dmin: f32,
    pub a: [f32; MAX_SUBS],
    pub c: [f32; MAX_SUBS],
    pub levels: [f32; MAX_BLOCK],
}

impl Block {
    pub fn new(layout: &Layout) -> Self {
        let value = |factors| if let Factors::Fixed(v) = factors { v } else { 0.0 };
        let (a, c) = ([value(layout.scales); MAX_SUBS], [value(layout.mins); MAX_SUBS]);
        Block { d: 0.0, dmin: 0.0, a, c, levels: [0.0; MAX_BLOCK] }
    }
}

fn bytes_of<const N: usize>(values: &[f32; MAX_SUBS], plus: f32) -> [u8; N] {
    std::array::from_fn(|i| (values[i] + plus) as u8)
}

/// The bytes of one block (as long as the type's blocks are).
pub fn pack(layout: &Layout, block: &Block, out: &mut [u8]) {
    let low = layout.levels.0;
    let mut codes = [0u8; MAX_BLOCK];
    for (code, level) in codes.iter_mut().zip(&block.levels[..layout.block]) {
        *code = match layout.table {
            true => VALUES.iter().position(|v| v == level).unwrap_or(0) as u8,
            false => (level - low) as u8,
        };
    }
    (layout.bytes.pack)(&codes, block, out);
}

/// The scales of a block's bytes; levels are left alone.
pub fn unpack_scales(layout: &Layout, bytes: &[u8], block: &mut Block) {
    (layout.bytes.unpack_scales)(bytes, block);
}

/// Low nibbles of the first half of `codes`, high ones of the second.
fn nibbles(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = (low & 15) | (high & 15) << 4;
    }
}

fn q2_k() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        let (a, c) = (bytes_of::<16>(&block.a, 0.0), bytes_of::<16>(&block.c, 0.0));
        for (out, (a, c)) in out.iter_mut().zip(a.into_iter().zip(c)) {
            *out = a | c << 4;
        }
        pack_two_bits(codes, &mut out[16..80]);
        put_f16(out, 80, block.d);
        put_f16(out, 82, block.dmin);
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        (block.d, block.dmin) = (f16_at(bytes, 80), f16_at(bytes, 82));
        for ((a, c), byte) in block.a.iter_mut().zip(&mut block.c).zip(&bytes[..16]) {
            (*a, *c) = (f32::from(byte & 15), f32::from(byte >> 4));
        }
    };
    Bytes { pack, unpack_scales }
}

fn q3_k() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        out[..32].fill(0);
        for (i, code) in codes.iter().enumerate() {
            out[i % 32] |= (code >> 2) << (i / 32);
        }
        pack_two_bits(codes, &mut out[32..96]);
        pack_q3_scales(&bytes_of(&block.a, 32.0), &mut out[96..108]);
        put_f16(out, 108, block.d);
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        block.d = f16_at(bytes, 108);
        for (j, a) in block.a.iter_mut().enumerate() {
            *a = unpack_q3_scale(&bytes[96..108], j) as f32;
        }
    };
    Bytes { pack, unpack_scales }
}

/// Q4_K, and Q5_K with `HIGH` = 32 bytes of fifth bits.
fn q45_k<const HIGH: usize>() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        put_f16(out, 0, block.d);
        put_f16(out, 2, block.dmin);
        pack_scale_min(&bytes_of(&block.a, 0.0), &bytes_of(&block.c, 0.0), &mut out[4..16]);
        let (high, low) = out[16..].split_at_mut(HIGH);
        high.fill(0);
        for (k, (codes, low)) in codes.chunks_exact(64).zip(low.chunks_exact_mut(32)).enumerate() {
            nibbles(codes, low);
            for (i, high) in high.iter_mut().enumerate() {
                *high |= (codes[i] >> 4) << (2 * k) | (codes[i + 32] >> 4) << (2 * k + 1);
            }
        }
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        (block.d, block.dmin) = (f16_at(bytes, 0), f16_at(bytes, 2));
        for j in 0..8 {
            let (scale, min) = unpack_scale_min(&bytes[4..16], j);
            (block.a[j], block.c[j]) = (f32::from(scale), f32::from(min));
        }
    };
    Bytes { pack, unpack_scales }
}

fn q6_k() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        let (ql, rest) = out.split_at_mut(128);
        let (qh, rest) = rest.split_at_mut(64);
        for ((l, ql), qh) in codes.chunks_exact(128).zip(ql.chunks_exact_mut(64)).zip(qh.chunks_exact_mut(32)) {
            nibbles(l, ql);
            for (i, qh) in qh.iter_mut().enumerate() {
                *qh = l[i] >> 4 | (l[i + 32] >> 4) << 2 | (l[i + 64] >> 4) << 4 | (l[i + 96] >> 4) << 6;
            }
        }
        for (out, a) in rest.iter_mut().zip(&block.a) {
            *out = *a as i8 as u8;
        }
        put_f16(out, 208, block.d);
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        block.d = f16_at(bytes, 208);
        for (a, byte) in block.a.iter_mut().zip(&bytes[192..208]) {
            *a = f32::from(*byte as i8);
        }
    };
    Bytes { pack, unpack_scales }
}

fn iq4_xs() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        put_f16(out, 0, block.d);
        let scales: [u8; 8] = bytes_of(&block.a, 32.0);
        let upper = scales.iter().enumerate().fold(0u16, |u, (i, s)| u | u16::from(s >> 4) << (2 * i));
        out[2..4].copy_from_slice(&upper.to_le_bytes());
        for i in 0..4 {
            out[4 + i] = (scales[2 * i] & 15) | (scales[2 * i + 1] & 15) << 4;
        }
        codes.chunks_exact(32).zip(out[8..].chunks_exact_mut(16)).for_each(|(codes, out)| nibbles(codes, out));
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        block.d = f16_at(bytes, 0);
        let upper = u16::from_le_bytes([bytes[2], bytes[3]]);
        for (j, a) in block.a.iter_mut().enumerate().take(8) {
            let low = u16::from(bytes[4 + j / 2] >> (4 * (j % 2)) & 15);
            *a = f32::from(low | (upper >> (2 * j) & 3) << 4) - 32.0;
        }
    };
    Bytes { pack, unpack_scales }
}

/// A block of one f16 scale.
fn one_scale(bytes: &[u8], block: &mut Block) {
    (block.d, block.dmin) = (f16_at(bytes, 0), 0.0);
}

fn q8_0() -> Bytes {
    let pack = |_: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        put_f16(out, 0, block.d);
        for (out, level) in out[2..].iter_mut().zip(&block.levels) {
            *out = *level as i8 as u8;
        }
    };
    Bytes { pack, unpack_scales: one_scale }
}

/// Q4_0, Q5_0 and IQ4_NL.
fn legacy_symmetric() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        put_f16(out, 0, block.d);
        legacy::pack(&std::array::from_fn(|i| codes[i]), &mut out[2..]);
    };
    Bytes { pack, unpack_scales: one_scale }
}

/// Q4_1 and Q5_1.
fn legacy_asymmetric() -> Bytes {
    let pack = |codes: &[u8; MAX_BLOCK], block: &Block, out: &mut [u8]| {
        put_f16(out, 0, block.d);
        put_f16(out, 2, block.dmin);
        legacy::pack(&std::array::from_fn(|i| codes[i]), &mut out[4..]);
    };
    let unpack_scales = |bytes: &[u8], block: &mut Block| {
        (block.d, block.dmin) = (f16_at(bytes, 0), f16_at(bytes, 2));
    };
    Bytes { pack, unpack_scales }
}
