//! The layout of safetensors shards: which tensor lies where, and the headers that say so. All sizes are known before a
//! byte of a tensor is, so headers come first and data in any order. It opens no file.

use crate::quant::GgmlType;
use crate::source::Dtype;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// Where a tensor lies: the shard, and the offset of its first byte in that file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub shard: usize,
    pub offset: u64,
    pub len: u64,
}

/// One file: its name, its header (with the length in front), its length.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    pub name: String,
    pub header: Vec<u8>,
    pub len: u64,
}

/// The files of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub shards: Vec<Shard>,
    /// In the order of the entries.
    pub places: Vec<Place>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// What safetensors calls a type, and its bits; `None` for types that it does not have.
fn stored(dtype: Dtype) -> Option<(&'static str, u64)> {
    Some(match dtype {
        Dtype::Ggml(GgmlType::F32) => ("F32", 32),
        Dtype::Ggml(GgmlType::F16) => ("F16", 16),
        Dtype::Ggml(GgmlType::BF16) => ("BF16", 16),
        Dtype::Ggml(GgmlType::F64) => ("F64", 64),
        Dtype::Ggml(GgmlType::I8) => ("I8", 8),
        Dtype::Ggml(GgmlType::I16) => ("I16", 16),
        Dtype::Ggml(GgmlType::I32) => ("I32", 32),
        Dtype::Ggml(GgmlType::I64) => ("I64", 64),
        Dtype::U8 => ("U8", 8),
        Dtype::U16 => ("U16", 16),
        Dtype::U32 => ("U32", 32),
        Dtype::U64 => ("U64", 64),
        Dtype::Bool => ("BOOL", 8),
        Dtype::C64 => ("C64", 64),
        Dtype::F8_E4M3 => ("F8_E4M3", 8),
        Dtype::F8_E4M3FNUZ => ("F8_E4M3FNUZ", 8),
        Dtype::F8_E5M2 => ("F8_E5M2", 8),
        Dtype::F8_E5M2FNUZ => ("F8_E5M2FNUZ", 8),
        Dtype::F8_E8M0 => ("F8_E8M0", 8),
        Dtype::F6_E2M3 => ("F6_E2M3", 6),
        Dtype::F6_E3M2 => ("F6_E3M2", 6),
        Dtype::F4 => ("F4", 4),
        _ => return None,
    })
}

impl Entry {
    /// Stored size in bytes.
    pub fn bytes(&self) -> Result<u64> {
        let bits = stored(self.dtype).map(|(_, bits)| bits);
        let bits = bits.ok_or_else(|| Error::Internal(format!("'{}': {} in safetensors", self.name, self.dtype)))?;
        Ok((self.shape.iter().product::<usize>() as u64 * bits).div_ceil(8))
    }
}

/// Begins a new shard where the next tensor would make one larger than `max_shard` bytes. Within a shard the widest
/// types come first and names decide among equals, as the safetensors library has it, so that all data is aligned.
///
/// # Errors
/// `BadInput` for two tensors of one name.
pub fn layout(entries: &[Entry], metadata_format: &str, max_shard: u64) -> Result<Layout> {
    let sizes = entries.iter().map(Entry::bytes).collect::<Result<Vec<u64>>>()?;
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(Error::bad_input("two tensors of the output would have this name").tensor(twice[0]));
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0;
    for (i, size) in sizes.iter().enumerate() {
        if filled > 0 && filled + size > max_shard {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(group) = groups.last_mut() {
            group.push(i);
        }
    }
    let count = groups.len();
    let mut places = vec![Place { shard: 0, offset: 0, len: 0 }; entries.len()];
    let mut shards = Vec::with_capacity(count);
    for (shard, mut group) in groups.into_iter().enumerate() {
        let width = |i: &usize| stored(entries[*i].dtype).map_or(0, |(_, bits)| bits);
        group.sort_by(|a, b| width(b).cmp(&width(a)).then_with(|| entries[*a].name.cmp(&entries[*b].name)));
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": metadata_format }));
        let mut at = 0;
        for &i in &group {
            let (entry, len) = (&entries[i], sizes[i]);
            let dtype = stored(entry.dtype).map(|(name, _)| name);
            header.insert(
                entry.name.clone(),
                json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [at, at + len] }),
            );
            places[i] = Place { shard, offset: at, len };
            at += len;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.append(&mut text);
        group.iter().for_each(|i| places[*i].offset += header.len() as u64);
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        shards.push(Shard { name, len: header.len() as u64 + at, header });
    }
    Ok(Layout { shards, places, tensor_bytes: sizes.iter().sum() })
}

/// The text of `model.safetensors.index.json`, as transformers writes it; `parameters` is what the numbers stand for.
pub fn index(entries: &[Entry], layout: &Layout, parameters: Option<u64>) -> String {
    let mut names: Vec<(&str, &str)> = entries
        .iter()
        .zip(&layout.places)
        .map(|(e, p)| (e.name.as_str(), layout.shards[p.shard].name.as_str()))
        .collect();
    names.sort_unstable();
    let map: Map<String, Value> = names.into_iter().map(|(name, file)| (name.to_string(), file.into())).collect();
    let mut metadata = json!({ "total_size": layout.tensor_bytes });
    if let Some(n) = parameters {
        metadata["total_parameters"] = n.into();
    }
    let text = serde_json::to_string_pretty(&json!({ "metadata": metadata, "weight_map": map }));
    text.unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse_safetensors_header;
    use std::path::Path;

    fn entry(name: &str, dtype: Dtype, shape: &[usize]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn the_reader_finds_every_tensor_where_it_was_put() {
        let entries = [
            entry("a", Dtype::U8, &[3]),
            entry("b", Dtype::Ggml(GgmlType::F16), &[2, 3]),
            entry("c", Dtype::Ggml(GgmlType::I64), &[2]),
            entry("d", Dtype::Ggml(GgmlType::F32), &[]),
        ];
        for (max, shards) in [(u64::MAX, 1), (16, 3), (1, 4)] {
            let layout = layout(&entries, "pt", max).unwrap();
            assert_eq!(layout.shards.len(), shards);
            assert_eq!(layout.tensor_bytes, 3 + 12 + 16 + 4);
            for (i, shard) in layout.shards.iter().enumerate() {
                let read = parse_safetensors_header(&shard.header[..], shard.len, Path::new("x")).unwrap();
                assert_eq!(read.metadata["format"], "pt");
                for t in read.tensors {
                    let at = entries.iter().position(|e| e.name == t.name).unwrap();
                    let place = layout.places[at];
                    assert_eq!((place.shard, place.offset..place.offset + place.len), (i, t.range));
                    assert_eq!((t.dtype, t.shape), (entries[at].dtype, entries[at].shape.clone()));
                }
            }
        }
        let index: Value = serde_json::from_str(&index(&entries, &layout(&entries, "pt", 16).unwrap(), None)).unwrap();
        assert_eq!(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
        assert!(layout(&[entries[0].clone(), entries[0].clone()], "pt", 9).is_err());
    }
}
