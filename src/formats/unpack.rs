//! The tensors of one packed module as a [`Packed`], format by format. Which format it is was decided before.

use super::bits::{from_bytes, to_bytes, transpose, unpack, words};
use super::integer::AWQ_ORDER;
use super::minifloat::{e4m3, e8m0};
use super::packed::{Blocks, Coding, Numbers, Packed, e2m1_table};
use super::read::StoredPiece;
use crate::quant::GgmlType;
use crate::source::Dtype;
use half::{bf16, f16};
use serde_json::Value;

/// Why something cannot be read; the caller adds file and tensor.
pub(super) type Found<T> = std::result::Result<T, String>;

/// The tensors of one module.
pub(super) struct Pieces<'a>(pub &'a [StoredPiece]);

impl Pieces<'_> {
    pub fn find(&self, suffix: &str) -> Option<&StoredPiece> {
        self.0.iter().find(|p| p.suffix == suffix)
    }

    pub fn get(&self, suffix: &str) -> Found<&StoredPiece> {
        self.find(suffix).ok_or_else(|| format!("has no '{suffix}'"))
    }

    pub fn matrix(&self, suffix: &str) -> Found<[usize; 2]> {
        let shape = &self.get(suffix)?.shape;
        match shape[..] {
            [a, b] if a > 0 && b > 0 => Ok([a, b]),
            _ => Err(format!("'{suffix}' has the shape {shape:?}; expected two dimensions")),
        }
    }

    /// The piece, if it has the shape.
    fn shaped(&self, suffix: &str, shape: &[usize]) -> Found<&StoredPiece> {
        let piece = self.get(suffix)?;
        if piece.shape == shape {
            return Ok(piece);
        }
        Err(format!("'{suffix}' has the shape {:?}; expected {shape:?}", piece.shape))
    }

    /// The 32-bit words of a piece of this shape.
    fn words(&self, suffix: &str, shape: &[usize]) -> Found<Vec<u32>> {
        let piece = self.shaped(suffix, shape)?;
        match piece.dtype {
            Dtype::Ggml(GgmlType::I32) | Dtype::U32 => Ok(from_bytes(&piece.data)),
            other => Err(format!("'{suffix}' is stored as {other}; expected 32-bit words")),
        }
    }

    pub fn bytes(&self, suffix: &str, shape: &[usize]) -> Found<&[u8]> {
        let piece = self.shaped(suffix, shape)?;
        match piece.dtype {
            Dtype::U8 | Dtype::F8_E4M3 | Dtype::F8_E8M0 | Dtype::Ggml(GgmlType::I8) => Ok(&piece.data),
            other => Err(format!("'{suffix}' is stored as {other}; expected bytes")),
        }
    }
}

pub(super) fn integers(piece: &StoredPiece) -> Found<Vec<i64>> {
    match piece.dtype {
        Dtype::Ggml(GgmlType::I64) => Ok(piece.data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::I32) => {
            Ok(piece.data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect())
        }
        other => Err(format!("'{}' is stored as {other}; expected integers", piece.suffix)),
    }
}

pub(super) fn numbers(piece: &StoredPiece) -> Found<Numbers> {
    let data = &piece.data;
    Ok(match piece.dtype {
        Dtype::Ggml(GgmlType::F32) => Numbers::F32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::F16) => Numbers::F16(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        Dtype::Ggml(GgmlType::BF16) => {
            Numbers::BF16(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
        }
        other => return Err(format!("'{}' is stored as {other}; expected F32, F16 or BF16", piece.suffix)),
    })
}

/// The only number of a piece.
pub(super) fn single(piece: &StoredPiece) -> Found<f32> {
    let numbers = numbers(piece)?;
    match numbers.len() {
        1 if numbers.get(0).is_finite() => Ok(numbers.get(0)),
        1 => Err(format!("'{}' is {}", piece.suffix, numbers.get(0))),
        n => Err(format!("'{}' holds {n} numbers; expected one", piece.suffix)),
    }
}

/// `[rows, cols]` to `[cols, rows]`.
fn transposed(numbers: Numbers, rows: usize, cols: usize) -> Numbers {
    match numbers {
        Numbers::F32(x) => Numbers::F32(transpose(&x, rows, cols)),
        Numbers::F16(x) => Numbers::F16(transpose(&x, rows, cols)),
        Numbers::BF16(x) => Numbers::BF16(transpose(&x, rows, cols)),
        Numbers::Table(x, values) => Numbers::Table(transpose(&x, rows, cols), values),
    }
}

/// One number for all groups where they agree.
fn zero_points(zeros: Vec<u8>) -> Coding {
    match zeros.first() {
        Some(first) if zeros.iter().all(|z| z == first) => Coding::Offset(*first),
        _ => Coding::Zeros(zeros),
    }
}

/// Rows of packed words to codes, `[rows, cols]`.
fn unpack_rows(packed: &[u32], width: usize, cols: usize, bits: u8) -> Vec<u8> {
    let bytes = to_bytes(packed);
    let mut codes = vec![0; packed.len() / width.max(1) * cols];
    for (row, codes) in bytes.chunks_exact(4 * width.max(1)).zip(codes.chunks_exact_mut(cols.max(1))) {
        unpack(row, 0, bits, codes);
    }
    codes
}

pub(super) fn gptq(p: &Pieces, n: usize, k: usize, minus_one: bool) -> Found<Packed> {
    let [height, _] = p.matrix("qweight")?;
    let bits = (height * 32 / k) as u8;
    if !matches!(bits, 2 | 3 | 4 | 8) || words(k, bits) != height {
        return Err(format!("'qweight' has {height} rows of words for {k} columns; that is no width in bits"));
    }
    let [groups, _] = p.matrix("scales")?;
    let codes = to_bytes(&transpose(&p.words("qweight", &[height, n])?, height, n));
    let scales = transposed(numbers(p.shaped("scales", &[groups, n])?)?, groups, n);
    let width = words(n, bits);
    let mut zeros = unpack_rows(&p.words("qzeros", &[groups, width])?, width, n, bits);
    if minus_one {
        let mask = u8::MAX >> (8 - bits);
        zeros.iter_mut().for_each(|z| *z = z.wrapping_add(1) & mask);
    }
    let zeros = zero_points(transpose(&zeros, groups, n));
    let trivial = Blocks::Grid { rows: 1, cols: k.div_ceil(groups) };
    let blocks = match p.find("g_idx") {
        Some(piece) => {
            let group_of = p.words("g_idx", &[k])?;
            if group_of.iter().any(|g| *g as usize >= groups) {
                return Err(format!("'{}' names a group beyond the {groups} there are", piece.suffix));
            }
            let size = k.div_ceil(groups);
            let in_order = group_of.iter().enumerate().all(|(i, g)| i / size == *g as usize);
            if in_order { trivial } else { Blocks::Columns { group_of, groups } }
        }
        None => trivial,
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * height), zeros, scales, blocks))
}

pub(super) fn awq(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let width = n / 8;
    let [groups, _] = p.matrix("scales")?;
    let read = |suffix: &str, rows: usize| {
        let mut codes = unpack_rows(&p.words(suffix, &[rows, width])?, width, n, 4);
        for eight in codes.as_chunks_mut::<8>().0 {
            let mut plain = [0; 8];
            AWQ_ORDER.iter().zip(*eight).for_each(|(i, code)| plain[*i] = code);
            *eight = plain;
        }
        Ok::<_, String>(transpose(&codes, rows, n))
    };
    let codes = super::bits::pack_rows(&read("qweight", k)?, k, 4);
    let coding = match p.find("qzeros") {
        Some(_) => zero_points(read("qzeros", groups)?),
        None => Coding::Offset(8),
    };
    let scales = transposed(numbers(p.shaped("scales", &[groups, n])?)?, groups, n);
    let blocks = Blocks::Grid { rows: 1, cols: k.div_ceil(groups) };
    Ok(Packed::new(n, k, 4, to_bytes(&codes), Some(4 * words(k, 4)), coding, scales, blocks))
}

pub(super) fn pack_quantized(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let [_, width] = p.matrix("weight_packed")?;
    let bits = (width * 32 / k).min(8) as u8;
    if bits == 0 || words(k, bits) != width {
        return Err(format!("'weight_packed' has {width} words for {k} columns; that is no width in bits"));
    }
    let codes = to_bytes(&p.words("weight_packed", &[n, width])?);
    let [_, groups] = p.matrix("weight_scale")?;
    let scales = numbers(p.shaped("weight_scale", &[n, groups])?)?;
    let coding = match p.find("weight_zero_point") {
        Some(_) => {
            let height = words(n, bits);
            let packed = transpose(&p.words("weight_zero_point", &[height, groups])?, height, groups);
            zero_points(transpose(&unpack_rows(&packed, height, n, bits), groups, n))
        }
        None => Coding::Offset(1 << (bits - 1)),
    };
    let blocks = match p.find("weight_g_idx") {
        Some(_) => Blocks::Columns { group_of: p.words("weight_g_idx", &[k])?, groups },
        None => Blocks::Grid { rows: 1, cols: k.div_ceil(groups) },
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * width), coding, scales, blocks))
}

fn e8m0_table() -> Box<[f32; 256]> {
    Box::new(std::array::from_fn(|code| e8m0(code as u8)))
}

/// NVFP4 where there is a global scale, MXFP4 where there is none.
pub(super) fn four_bit_floats(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let codes = p.bytes("weight_packed", &[n, k / 2])?.to_vec();
    let (group, values) = match p.find("weight_global_scale") {
        Some(global) => {
            let global = single(global)?;
            (16, Box::new(std::array::from_fn(|code| e4m3(code as u8) / global)))
        }
        None => (32, e8m0_table()),
    };
    let scales = Numbers::Table(p.bytes("weight_scale", &[n, k.div_ceil(group)])?.to_vec(), values);
    let blocks = Blocks::Grid { rows: 1, cols: group };
    Ok(Packed::new(n, k, 4, codes, Some(k / 2), Coding::Table(e2m1_table()), scales, blocks))
}

pub(super) fn bnb_state(p: &Pieces) -> Found<Value> {
    let state = p.0.iter().find(|p| p.suffix.starts_with("weight.quant_state."));
    let state = state.ok_or("has no quantization state")?;
    serde_json::from_slice(&state.data).map_err(|e| format!("its quantization state is not JSON: {e}"))
}

pub(super) fn bnb_four_bits(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let state = bnb_state(p)?;
    let whole = |key: &str| state.get(key).and_then(Value::as_u64).filter(|v| *v > 0).map(|v| v as usize);
    let block = whole("blocksize").ok_or("its quantization state names no block size")?;
    let blocks = (n * k).div_ceil(block);
    let weight = p.get("weight")?;
    if weight.data.len() != (n * k).div_ceil(2) {
        return Err(format!("'weight' has {} bytes for {n} x {k} codes of four bits", weight.data.len()));
    }
    // The first of two weights is in the high half.
    let codes = weight.data.iter().map(|b| b.rotate_left(4)).collect();
    let map = numbers(p.shaped("weight.quant_map", &[16])?)?;
    let values = Box::new(std::array::from_fn(|code| map.get(code & 15)));
    let scales = match p.find("weight.nested_absmax") {
        None => numbers(p.shaped("weight.absmax", &[blocks])?)?,
        Some(_) => {
            let nested = whole("nested_blocksize").ok_or("its quantization state names no nested block size")?;
            let offset = state.get("nested_offset").and_then(Value::as_f64).unwrap_or(0.0) as f32;
            let scales = numbers(p.shaped("weight.nested_absmax", &[blocks.div_ceil(nested)])?)?;
            let map = numbers(p.shaped("weight.nested_quant_map", &[256])?)?;
            let codes = p.bytes("weight.absmax", &[blocks])?;
            let value = |(i, code): (usize, &u8)| map.get(usize::from(*code)) * scales.get(i / nested) + offset;
            Numbers::F32(codes.iter().enumerate().map(value).collect())
        }
    };
    Ok(Packed::new(n, k, 4, codes, None, Coding::Table(values), scales, Blocks::Flat(block)))
}

pub(super) fn bnb_int8(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let codes = p.bytes("weight", &[n, k])?.to_vec();
    if p.find("weight_format").is_some_and(|f| f.data.iter().any(|b| *b != 0)) {
        return Err("its rows are interleaved for a GPU".into());
    }
    let scales = numbers(p.shaped("SCB", &[n])?)?;
    let scales = Numbers::F32((0..n).map(|row| scales.get(row) * (1.0 / 127.0)).collect());
    Ok(Packed::new(n, k, 8, codes, Some(k), Coding::Signed, scales, Blocks::Grid { rows: 1, cols: k }))
}

pub(super) fn mlx(p: &Pieces, n: usize, k: usize) -> Found<Packed> {
    let [_, width] = p.matrix("weight")?;
    let [_, groups] = p.matrix("scales")?;
    let bits = (width * 32 / k).min(8) as u8;
    if bits == 0 || words(k, bits) != width {
        return Err(format!("'weight' has {width} words for {k} columns; that is no width in bits"));
    }
    let codes = to_bytes(&p.words("weight", &[n, width])?);
    let group = k / groups;
    let scales = p.shaped("scales", &[n, groups])?;
    let e4m3_table = || Box::new(std::array::from_fn(|code| e4m3(code as u8)));
    let (coding, scales) = match (p.find("biases"), bits, group) {
        (Some(_), ..) => (Coding::Bias(numbers(p.shaped("biases", &[n, groups])?)?), numbers(scales)?),
        (None, 4, 16) => (Coding::Table(e2m1_table()), Numbers::Table(scales.data.clone(), e4m3_table())),
        (None, 4, 32) => (Coding::Table(e2m1_table()), Numbers::Table(scales.data.clone(), e8m0_table())),
        (None, 8, 32) => (Coding::Table(e4m3_table()), Numbers::Table(scales.data.clone(), e8m0_table())),
        _ => return Err(format!("{bits} bits in groups of {group} without biases are no mode of MLX")),
    };
    Ok(Packed::new(n, k, bits, codes, Some(4 * width), coding, scales, Blocks::Grid { rows: 1, cols: group }))
}
