//! Encoding a GGUF header and placing tensors after it, byte for byte as gguf-py and llama.cpp do: version 3,
//! little-endian, keys and tensors in the given order, zeros as padding. It writes no files.

use super::{Array, MAGIC, Metadata, TensorInfo, VERSION, Value, align_up};
use crate::{Error, Result};

/// Gives every tensor its offset, in order, each aligned and none overlapping. Returns the size of the data section in
/// bytes, with the padding that follows the last tensor.
///
/// Errors: `Internal` when a row is not a whole number of blocks, or the size overflows.
pub fn layout(tensors: &mut [TensorInfo], alignment: u64) -> Result<u64> {
    let mut end = 0u64;
    for t in tensors {
        t.offset = end;
        end = t
            .bytes()
            .and_then(|n| end.checked_add(n))
            .and_then(|n| align_up(n, alignment))
            .ok_or_else(|| Error::Internal(format!("tensor '{}' {:?} has no size as {}", t.name, t.dims, t.ty)))?;
    }
    Ok(end)
}

/// The header's bytes, padded up to where the data begins. An `alignment` other than
/// [`DEFAULT_ALIGNMENT`](super::DEFAULT_ALIGNMENT) must also stand in the metadata.
pub fn encode_header(metadata: &Metadata, tensors: &[TensorInfo], alignment: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    for t in tensors {
        put_string(&mut out, &t.name);
        out.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend((t.ty as u32).to_le_bytes());
        out.extend(t.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! number {
        ($id:literal, $v:expr) => {{
            out.extend(u32::to_le_bytes($id));
            out.extend($v.to_le_bytes());
        }};
    }
    match value {
        Value::U8(v) => number!(0, v),
        Value::I8(v) => number!(1, v),
        Value::U16(v) => number!(2, v),
        Value::I16(v) => number!(3, v),
        Value::U32(v) => number!(4, v),
        Value::I32(v) => number!(5, v),
        Value::F32(v) => number!(6, v),
        Value::Bool(v) => number!(7, u8::from(*v)),
        Value::String(v) => {
            out.extend(8u32.to_le_bytes());
            put_string(out, v);
        }
        Value::Array(v) => {
            out.extend(9u32.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => number!(10, v),
        Value::I64(v) => number!(11, v),
        Value::F64(v) => number!(12, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! items {
        ($id:literal, $items:expr, $put:expr) => {{
            out.extend(u32::to_le_bytes($id));
            out.extend(($items.len() as u64).to_le_bytes());
            $items.iter().for_each($put);
        }};
    }
    match array {
        Array::U8(v) => items!(0, v, |x| out.extend(x.to_le_bytes())),
        Array::I8(v) => items!(1, v, |x| out.extend(x.to_le_bytes())),
        Array::U16(v) => items!(2, v, |x| out.extend(x.to_le_bytes())),
        Array::I16(v) => items!(3, v, |x| out.extend(x.to_le_bytes())),
        Array::U32(v) => items!(4, v, |x| out.extend(x.to_le_bytes())),
        Array::I32(v) => items!(5, v, |x| out.extend(x.to_le_bytes())),
        Array::F32(v) => items!(6, v, |x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => items!(7, v, |&x| out.push(x.into())),
        Array::String(v) => items!(8, v, |x| put_string(out, x)),
        Array::Nested(v) => items!(9, v, |x| put_array(out, x)),
        Array::U64(v) => items!(10, v, |x| out.extend(x.to_le_bytes())),
        Array::I64(v) => items!(11, v, |x| out.extend(x.to_le_bytes())),
        Array::F64(v) => items!(12, v, |x| out.extend(x.to_le_bytes())),
    }
}
