//! A checkpoint as bytes on disk: which tensors there are, where they lie, and reading a range of one. It knows
//! safetensors and GGUF containers and nothing of models or quantization.

mod compressed;
mod decode;
mod file;
mod folder;
mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod lora;
mod mxfp4;
mod safetensors;

pub use crate::dtype::Dtype;
pub use file::{SourceFile, sha256_file};
pub(crate) use lora::{Adapter, Pair, separate as separate_adapter};
#[cfg(feature = "internals")]
pub use safetensors::SafetensorsHeader;
pub use safetensors::parse_safetensors_header;

use crate::dtype::GgmlType;
use crate::gguf::Metadata;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor of a checkpoint. `shape` is outermost first (`[out, in]` for a linear layer), whatever the container says.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMeta {
    /// As the file has it.
    pub name: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Byte range inside that file. Of a packed module: from its main tensor, as long as all its tensors together.
    pub range: Range<u64>,
}

impl TensorMeta {
    /// How many elements; the headers were checked, so the product does not overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Stored size in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// An open checkpoint: one or more files whose headers were read and checked. Tensor data is read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SourceFile>,
    /// How many of the files are the model's own; those of an adapter follow.
    shards: usize,
    tensors: Vec<TensorMeta>,
    index: HashMap<String, usize>,
    gguf: Option<Metadata>,
    quantization: compressed::Quantization,
    /// Of an adapter, what it adds to tensors as they are read.
    deltas: lora::Deltas,
    /// What was odd about the files, and what was made of it.
    remarks: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder with safetensors (one file, or shards with their index) or with one GGUF model, a single
    /// `.safetensors` file, or a `.gguf` file (any shard of a split one opens all).
    ///
    /// Errors: `BadInput` naming the file, and the tensor where there is one, when something is absent, damaged or
    /// contradictory; `Io` when the disk fails.
    pub fn open(path: &Path) -> Result<Self> {
        folder::open(path)
    }

    /// Opens a checkpoint with the LoRA adapter at `adapter` (a folder of PEFT's, or its safetensors file) merged into it.
    ///
    /// Errors: as [`Self::open`]; `Unsupported` for adapters that are merged in another way.
    pub fn open_merged(path: &Path, adapter: Option<&Path>) -> Result<Self> {
        let base = Self::open(path)?;
        match adapter {
            Some(adapter) => lora::merged(base, adapter),
            None => Ok(base),
        }
    }

    /// Opens a GGUF model whose file, or shards in order, may have any names yet.
    ///
    /// Errors: as [`Self::open`].
    pub fn open_gguf(paths: &[PathBuf]) -> Result<Self> {
        match paths {
            [one] => gguf::open(one),
            shards => gguf::open_shards(shards),
        }
    }

    /// Puts the parts together. `found` is in order of files and, within one, of the container's choice.
    fn new(dir: PathBuf, files: Vec<SourceFile>, found: Vec<TensorMeta>, gguf: Option<Metadata>) -> Result<Self> {
        let mut index = HashMap::with_capacity(found.len());
        for (i, t) in found.iter().enumerate() {
            if let Some(first) = index.insert(t.name.clone(), i) {
                let path = |t: &TensorMeta| files.get(t.file).map_or_else(PathBuf::new, |f| f.path.clone());
                let first = path(&found[first]);
                let what = format!("is also in {}", first.display());
                return Err(Error::bad_file(path(t), what).tensor(t.name.as_str()));
            }
        }
        Ok(Self {
            dir,
            shards: files.len(),
            files,
            tensors: found,
            index,
            gguf,
            quantization: compressed::Quantization::None,
            deltas: HashMap::new(),
            remarks: Vec::new(),
        })
    }

    /// A checkpoint that exists only as names, types and shapes, for planning: nothing can be read from it.
    ///
    /// Errors: `BadInput` for a name that is there twice; `Unsupported` for a type without a size.
    pub fn imagined(tensors: Vec<(String, GgmlType, Vec<usize>)>) -> Result<Self> {
        let mut at = 0;
        let mut found = Vec::with_capacity(tensors.len());
        for (name, ty, shape) in tensors {
            let dims = shape.iter().rev().map(|d| *d as u64).collect();
            let bytes = crate::gguf::TensorInfo { name: name.clone(), dims, ty, offset: 0 }.bytes();
            let bytes = bytes.ok_or_else(|| Error::unsupported(format!("tensor '{name}': {shape:?} as {ty}")))?;
            found.push(TensorMeta { name, dtype: Dtype::Ggml(ty), shape, file: 0, range: at..at + bytes });
            at += bytes;
        }
        Self::new(PathBuf::new(), Vec::new(), found, None)
    }

    /// As a GGUF file with this metadata.
    pub fn with_metadata(self, metadata: Metadata) -> Self {
        Self { gguf: Some(metadata), ..self }
    }

    /// Every tensor, in order of files and of their place in them.
    pub fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    /// The tensor of that name, by its index.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// What was odd about the files, and what was made of it: a sentence each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    fn remarking(mut self, remarks: impl IntoIterator<Item = String>) -> Self {
        self.remarks.extend(remarks);
        self
    }

    /// The files that what is read comes from: those of the model, and of an adapter that is merged into it.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The model's own files.
    pub fn shards(&self) -> &[SourceFile] {
        &self.files[..self.shards]
    }

    /// The folder that holds `config.json` and the tokenizer, if there are any.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The metadata of a GGUF source (of the first shard, without its `split.*` keys).
    pub fn gguf(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// Whether it is a GGUF file of an adapter instead of a model.
    pub fn is_adapter(&self) -> bool {
        self.gguf.as_ref().and_then(|meta| meta.str("general.type")) == Some("adapter")
    }

    /// Reads `out.len()` stored bytes of `t`, from `offset` bytes into the tensor. Any number of threads may read at once.
    ///
    /// Errors: `BadInput` when the file became shorter than it was when opened; `Io` when the disk fails.
    pub fn read(&self, t: &TensorMeta, offset: u64, out: &mut [u8]) -> Result<()> {
        if let compressed::Quantization::Mxfp4(pairs) = &self.quantization
            && let Some(pair) = pairs.get(&t.name)
        {
            return mxfp4::read(self, pair, offset, out);
        }
        let start = t.range.start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(out.len() as u64));
        match (start, end, self.files.get(t.file)) {
            (Some(start), Some(end), Some(file)) if end <= t.range.end && !matches!(t.dtype, Dtype::Packed(_)) => {
                if let Some(delta) = self.deltas.get(&t.name) {
                    return delta.read(t, file, offset, out);
                }
                file.read_at(start, out).map_err(|e| e.tensor(t.name.as_str()))
            }
            _ => Err(Error::Internal(format!("{} bytes at {offset} are not in tensor '{}'", out.len(), t.name))),
        }
    }

    /// Decodes the elements `elements` of `t`, counted in storage order, into `out` of that length. The range must begin
    /// and end on block borders, of a packed module on borders of rows. `scratch` holds the stored bytes meanwhile and is reused from call to call.
    ///
    /// Errors: as [`Checkpoint::read`]; `Unsupported` when the type holds no numbers that can be decoded alone.
    pub fn read_f32(
        &self,
        t: &TensorMeta,
        elements: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        if let Dtype::Packed(_) = t.dtype {
            return self.decode_packed(t, elements, out);
        }
        let Dtype::Ggml(ty) = t.dtype else {
            return Err(Error::unsupported(format!(
                "tensor '{}' is of type {}, which holds no weights",
                t.name, t.dtype
            )));
        };
        let internal = || Error::Internal(format!("elements {elements:?} of tensor '{}' cannot be decoded", t.name));
        if elements.len() != out.len() || elements.end > t.elements() {
            return Err(internal());
        }
        let offset = ty.row_bytes(elements.start).ok_or_else(internal)? as u64;
        let len = ty.row_bytes(elements.len()).ok_or_else(internal)?;
        if ty == GgmlType::F32 {
            // Read in place; on a little-endian machine this is all there is to do.
            self.read(t, offset, bytemuck::cast_slice_mut(out))?;
            out.iter_mut().for_each(|v| *v = f32::from_bits(u32::from_le(v.to_bits())));
            return Ok(());
        }
        scratch.resize(len, 0);
        self.read(t, offset, scratch)?;
        decode::decode(ty, scratch, out).map_err(|e| match e {
            Error::BadInput(_) => e.tensor(t.name.as_str()),
            other => other,
        })
    }
}
