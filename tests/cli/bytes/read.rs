//! Hashes of what must not change in an output. Small readers of GGUF and safetensors that trust their files, written
//! apart from the library's, so that a mistake there cannot hide itself here.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The hash of a file or a folder.
pub fn hash(path: &Path) -> String {
    let mut hash = Sha256::new();
    if path.is_dir() {
        folder(path, &mut hash)
    } else {
        file(path, &mut hash)
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn either(path: &Path, hash: &mut Sha256) {
    if path.is_dir() { folder(path, hash) } else { file(path, hash) }
}

/// Names and contents, without the manifest and the README.
fn folder(path: &Path, hash: &mut Sha256) {
    let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names.iter().map(|name| name.to_str().unwrap()) {
        if name != "quantize-manifest.json" && name != "README.md" {
            field(hash, name.as_bytes());
            either(&path.join(name), hash);
        }
    }
}

fn file(path: &Path, hash: &mut Sha256) {
    let bytes = std::fs::read(path).unwrap();
    if bytes.starts_with(b"GGUF") {
        gguf(&bytes, hash);
    } else if path.extension().is_some_and(|e| e == "safetensors") {
        safetensors(&bytes, hash);
    } else {
        field(hash, &bytes);
    }
}

/// A length and the bytes, so that two fields cannot be taken for two others.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Every tensor in the order of the file: name, type, shape, data.
fn safetensors(bytes: &[u8], hash: &mut Sha256) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let data = &bytes[8 + len..];
    let at = |tensor: &Value, end: usize| tensor["data_offsets"][end].as_u64().unwrap() as usize;
    let mut tensors: Vec<_> = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__").collect();
    tensors.sort_by_key(|(name, tensor)| (at(tensor, 0), name.as_str()));
    field(hash, header["__metadata__"].to_string().as_bytes());
    for (name, tensor) in tensors {
        field(hash, name.as_bytes());
        field(hash, tensor["dtype"].to_string().as_bytes());
        field(hash, tensor["shape"].to_string().as_bytes());
        field(hash, &data[at(tensor, 0)..at(tensor, 1)]);
    }
}

/// Metadata but for keys under `quantize.`, then every tensor: name, shape, type, data with what pads it.
fn gguf(bytes: &[u8], hash: &mut Sha256) {
    let gguf = Gguf::new(bytes);
    for (key, value) in &gguf.metadata {
        if !key.starts_with(b"quantize.") {
            field(hash, key);
            field(hash, value);
        }
    }
    for (i, tensor) in gguf.tensors.iter().enumerate() {
        field(hash, tensor.name.as_bytes());
        tensor.dims.iter().for_each(|d| hash.update(d.to_le_bytes()));
        hash.update(tensor.ty.to_le_bytes());
        let end = gguf.tensors.get(i + 1).map_or(gguf.data.len(), |next| next.offset);
        field(hash, &gguf.data[tensor.offset..end]);
    }
}

/// A GGUF file: metadata as encoded, type and value together.
pub struct Gguf<'a> {
    metadata: Vec<(&'a [u8], &'a [u8])>,
    pub tensors: Vec<Tensor>,
    data: &'a [u8],
}

pub struct Tensor {
    pub name: String,
    /// Row length first.
    pub dims: Vec<u64>,
    ty: u32,
    offset: usize,
}

impl<'a> Gguf<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut r = Reader { bytes, at: 8 };
        let (tensors, keys) = (r.u64(), r.u64());
        let metadata: Vec<_> = (0..keys)
            .map(|_| {
                let key = r.string();
                let start = r.at;
                let ty = r.u32();
                r.skip(ty);
                (key, &bytes[start..r.at])
            })
            .collect();
        let tensor = |r: &mut Reader| {
            let name = String::from_utf8(r.string().to_vec()).unwrap();
            let dims = (0..r.u32()).map(|_| r.u64()).collect();
            Tensor { name, dims, ty: r.u32(), offset: r.u64() as usize }
        };
        let mut tensors: Vec<Tensor> = (0..tensors).map(|_| tensor(&mut r)).collect();
        tensors.sort_by_key(|t| t.offset);
        // A table without tensors may end the file.
        let data = &bytes[r.at.next_multiple_of(32).min(bytes.len())..];
        Self { metadata, tensors, data }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> &'a [u8] {
        let n = self.u64() as usize;
        self.take(n)
    }

    /// Goes past a value of this type.
    fn skip(&mut self, ty: u32) {
        match ty {
            8 => drop(self.string()),
            9 => {
                let (ty, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip(ty));
            }
            _ => drop(self.take(match ty {
                0 | 1 | 7 => 1,
                2 | 3 => 2,
                4..=6 => 4,
                _ => 8,
            })),
        }
    }
}
