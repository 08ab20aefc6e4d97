//! The header of a safetensors file, read and checked. The element types and their sizes come from the `safetensors`
//! crate; the rules are checked here because its reader wants the whole file in memory, lets a name appear twice, and
//! does not name the tensor at fault.

use super::{Dtype, SourceFile, TensorMeta};
use crate::quant::GgmlType;
use crate::{Error, Result};
use ::safetensors::Dtype as Stored;
use ::safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;

/// The format's own limit on a header's size in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// A checked header. Ranges count from the start of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetensorsHeader {
    /// In order of their place in the file; `file` is 0.
    pub tensors: Vec<TensorMeta>,
    /// The free text under `__metadata__`.
    pub metadata: HashMap<String, String>,
}

/// Reads the header of a safetensors stream of `file_len` bytes; `path` only names it in errors.
///
/// The tensors must fill the file after the header exactly: no gap, no overlap, nothing missing, nothing left over.
pub fn parse_safetensors_header(mut reader: impl Read, file_len: u64, path: &Path) -> Result<SafetensorsHeader> {
    let bad = |what: String| Error::bad_file(path, what);
    let read_error = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => bad("the file ends within its header".into()),
        _ => Error::io(path, e),
    };
    let Some(room) = file_len.checked_sub(8) else {
        return Err(bad(format!("{file_len} bytes are too few for a safetensors file")).hint("fetch the file again"));
    };
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(read_error)?;
    let len = u64::from_le_bytes(start);
    if len > room.min(MAX_HEADER) {
        let hint = match &start {
            b"version " => "this looks like a Git LFS pointer; run `git lfs pull` to fetch the file itself",
            [b'P', b'K', ..] | [0x80, ..] => "this looks like a PyTorch file; only safetensors are read",
            _ => "the file is truncated, damaged or of another format; fetch it again",
        };
        let what = format!("the header claims {len} bytes, but {room} follow and {MAX_HEADER} are allowed");
        return Err(bad(what).hint(hint));
    }
    let mut text = vec![0; len as usize];
    reader.read_exact(&mut text).map_err(read_error)?;
    // The JSON reader looks at no text that it skips, so the whole is checked here.
    let text = String::from_utf8(text).map_err(|_| bad("the safetensors header is not valid UTF-8".into()))?;
    let entries: Entries = serde_json::from_str(&text).map_err(|e| {
        // The message quotes the input, however long and whatever is in it.
        let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        let quoted: String = e.to_string().chars().take(200).map(plain).collect();
        bad(format!("the safetensors header is not valid: {quoted}"))
    })?;
    drop(text);
    let tensors = check(entries.tensors, 8 + len, file_len, path)?;
    Ok(SafetensorsHeader { tensors, metadata: entries.metadata })
}

/// Reads the header of an open file whose index in the checkpoint is `file`.
pub(super) fn read(source: &SourceFile, file: usize) -> Result<Vec<TensorMeta>> {
    let mut tensors = parse_safetensors_header(source.stream(), source.len, &source.path)?.tensors;
    tensors.iter_mut().for_each(|t| t.file = file);
    Ok(tensors)
}

fn check(mut found: Vec<(String, TensorInfo)>, data: u64, file_len: u64, path: &Path) -> Result<Vec<TensorMeta>> {
    // Empty tensors share their offset with the next one; the name settles the order.
    found.sort_unstable_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    let mut tensors = Vec::with_capacity(found.len());
    let mut end = 0u64;
    for (name, info) in found {
        let bad = |what: String| Error::bad_file(path, what).tensor(name.as_str());
        let (start, stop) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if start < end {
            return Err(bad(format!("its data at offset {start} overlaps that of the tensor before it")));
        }
        if start > end {
            return Err(bad(format!("bytes {end} to {start} before it belong to no tensor")));
        }
        let bits = info.dtype.bitsize() as u64;
        // Without the zeros, so that no partial product overflows, in any order.
        let product = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if product.and_then(|n| (n as u64).checked_mul(bits)).is_none() {
            return Err(bad(format!("the shape {:?} has too many elements", info.shape)));
        }
        let total = info.shape.iter().product::<usize>() as u64 * bits;
        if !total.is_multiple_of(8) {
            return Err(bad(format!("the shape {:?} does not end on a whole byte", info.shape)));
        }
        if stop.checked_sub(start) != Some(total / 8) {
            let what = format!("offsets {start} to {stop} do not fit {:?} {:?}", info.dtype, info.shape);
            return Err(bad(what));
        }
        let dtype = dtype(info.dtype).ok_or_else(|| bad(format!("has the unknown type {:?}", info.dtype)))?;
        let range = match (data.checked_add(start), data.checked_add(stop)) {
            (Some(a), Some(b)) if b <= file_len => a..b,
            _ => {
                let what = format!("its data ends at offset {stop}, but the file holds {}", file_len - data);
                return Err(bad(what).hint("the file is truncated; fetch it again"));
            }
        };
        end = stop;
        tensors.push(TensorMeta { dtype, shape: info.shape, file: 0, range, name });
    }
    let left = file_len - data - end;
    if left != 0 {
        let what = format!("{left} bytes at the end of the file belong to no tensor");
        return Err(Error::bad_file(path, what).hint("the file is damaged; fetch it again"));
    }
    Ok(tensors)
}

fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F32 => Dtype::Ggml(GgmlType::F32),
        Stored::F16 => Dtype::Ggml(GgmlType::F16),
        Stored::BF16 => Dtype::Ggml(GgmlType::BF16),
        Stored::F64 => Dtype::Ggml(GgmlType::F64),
        Stored::I8 => Dtype::Ggml(GgmlType::I8),
        Stored::I16 => Dtype::Ggml(GgmlType::I16),
        Stored::I32 => Dtype::Ggml(GgmlType::I32),
        Stored::I64 => Dtype::Ggml(GgmlType::I64),
        Stored::U8 => Dtype::U8,
        Stored::U16 => Dtype::U16,
        Stored::U32 => Dtype::U32,
        Stored::U64 => Dtype::U64,
        Stored::BOOL => Dtype::Bool,
        Stored::C64 => Dtype::C64,
        Stored::F8_E4M3 => Dtype::F8_E4M3,
        Stored::F8_E4M3FNUZ => Dtype::F8_E4M3FNUZ,
        Stored::F8_E5M2 => Dtype::F8_E5M2,
        Stored::F8_E5M2FNUZ => Dtype::F8_E5M2FNUZ,
        Stored::F8_E8M0 => Dtype::F8_E8M0,
        Stored::F6_E2M3 => Dtype::F6_E2M3,
        Stored::F6_E3M2 => Dtype::F6_E3M2,
        Stored::F4 => Dtype::F4,
        _ => return None,
    })
}

/// The header's JSON object, with repeated names refused rather than the last one taken.
struct Entries {
    tensors: Vec<(String, TensorInfo)>,
    metadata: HashMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { tensors: Vec::new(), metadata: HashMap::new() };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("tensor '{name}' appears twice")));
                    }
                    if name == "__metadata__" {
                        entries.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        entries.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Map)
    }
}
