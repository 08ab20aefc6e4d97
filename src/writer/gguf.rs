//! A GGUF artifact being written: one file, or the shards of a split one. The layout is known before a byte is written,
//! tensors may arrive in any order and in pieces, and the header goes in last, so a file that a crash left behind has
//! no valid header either.

use super::atomic::{PartialFile, free_space};
use crate::gguf::{self, Metadata, TensorInfo};
use crate::quant::{self, GgmlType};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The alignment of tensor data that every reader assumes unless told otherwise.
pub const ALIGNMENT: u64 = 32;

/// When to begin another shard, as llama.cpp's gguf-split has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    #[default]
    Never,
    /// Tensor bytes per shard, at most (a single larger tensor still fits in a shard of its own).
    MaxBytes(u64),
    MaxTensors(usize),
}

/// A tensor to be written. `dims` in ggml order (row length first).
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: GgmlType,
}

impl TensorSpec {
    /// Bytes of the tensor's data; `None` when a row is not a whole number of blocks or the size overflows.
    pub fn bytes(&self) -> Option<u64> {
        let cols = usize::try_from(*self.dims.first()?).ok()?;
        let row = self.ty.row_bytes(cols)? as u64;
        self.dims[1..].iter().try_fold(row, |n, d| n.checked_mul(*d))
    }
}

struct Shard {
    file: PartialFile,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    header_len: u64,
}

/// Where a tensor lies: shard, absolute offset, length.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    offset: u64,
    len: u64,
}

/// A GGUF file (or its shards) under temporary names.
pub struct Artifact {
    target: PathBuf,
    shards: Vec<Shard>,
    places: Vec<Place>,
}

impl Artifact {
    /// Lays out the file and reserves its space. Metadata may change until [`finish`](Self::finish), but only to values
    /// that encode to the same number of bytes.
    pub fn create(target: &Path, metadata: &Metadata, tensors: &[TensorSpec], split: Split, force: bool) -> Result<Self> {
        let groups = group(tensors, split)?;
        let count = groups.len();
        if count > 1 {
            super::atomic::refuse_existing(target, force)?;
        }
        let mut shards = Vec::with_capacity(count);
        let mut places = Vec::with_capacity(tensors.len());
        let mut total = 0u64;
        let mut plans = Vec::with_capacity(count);
        for (no, members) in groups.into_iter().enumerate() {
            let mut shard_metadata = if no == 0 { metadata.clone() } else { Metadata::new() };
            if count > 1 {
                shard_metadata.set("split.no", no as u16);
                shard_metadata.set("split.count", count as u16);
                shard_metadata.set("split.tensors.count", tensors.len() as i32);
            }
            let mut infos = Vec::with_capacity(members.len());
            let mut offset = 0u64;
            let mut lens = Vec::with_capacity(members.len());
            for spec in &tensors[members] {
                let len = spec.bytes().ok_or_else(|| Error::Internal(format!("tensor {} has no size", spec.name)))?;
                infos.push(TensorInfo { name: spec.name.clone(), dims: spec.dims.clone(), ty: spec.ty, offset });
                lens.push(len);
                offset += len.next_multiple_of(ALIGNMENT);
            }
            let header_len = gguf::encode_header(&shard_metadata, &infos, ALIGNMENT).len() as u64;
            for (info, len) in infos.iter().zip(lens) {
                places.push(Place { shard: no, offset: header_len + info.offset, len });
            }
            total += header_len + offset;
            plans.push((shard_metadata, infos, header_len, header_len + offset));
        }
        if let Some(free) = free_space(target).filter(|free| *free < total) {
            let (need, free) = (human(total), human(free));
            return Err(Error::Storage(format!("{}: needs {need} of disk, {free} free", target.display())));
        }
        for (no, (metadata, tensors, header_len, len)) in plans.into_iter().enumerate() {
            let file = PartialFile::create(&shard_path(target, no, count), force)?;
            file.reserve(len)?;
            shards.push(Shard { file, metadata, tensors, header_len });
        }
        Ok(Self { target: target.to_path_buf(), shards, places })
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Size of all shards together.
    pub fn total_bytes(&self) -> u64 {
        let headers: u64 = self.shards.iter().map(|s| s.header_len).sum();
        headers + self.places.iter().map(|p| p.len.next_multiple_of(ALIGNMENT)).sum::<u64>()
    }

    /// Changes a metadata value before the header is written.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<gguf::Value>) {
        if let Some(first) = self.shards.first_mut() {
            first.metadata.set(key, value);
        }
    }

    /// Writes the headers, syncs, reads everything back and checks it, then gives the files their names.
    /// Returns the final paths.
    pub fn finish(self, threads: usize) -> Result<Vec<PathBuf>> {
        for shard in &self.shards {
            let header = gguf::encode_header(&shard.metadata, &shard.tensors, ALIGNMENT);
            if header.len() as u64 != shard.header_len {
                return Err(Error::Internal("the header changed its size while the file was written".into()));
            }
            shard.file.write_at(0, &header)?;
        }
        for shard in &self.shards {
            shard.file.sync()?;
            check_file(shard.file.temp_path(), shard.file.target(), &shard.metadata, &shard.tensors, threads)?;
        }
        let mut paths = Vec::with_capacity(self.shards.len());
        for shard in self.shards {
            paths.push(shard.file.target().to_path_buf());
            shard.file.finish()?;
        }
        Ok(paths)
    }
}

impl crate::convert::Sink for Artifact {
    fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = self.places[tensor];
        debug_assert!(offset + bytes.len() as u64 <= place.len);
        self.shards[place.shard].file.write_at(place.offset + offset, bytes)
    }
}

/// Re-reads a finished temporary file: the header must say what was meant, every block's scales must be finite.
fn check_file(temp: &Path, target: &Path, metadata: &Metadata, tensors: &[TensorInfo], threads: usize) -> Result<()> {
    let fault = |what: String| Error::Storage(format!("{}: re-reading what was written: {what}", target.display()));
    let header = gguf::read_header(temp).map_err(|e| fault(e.to_string()))?;
    if header.metadata != *metadata || header.tensors != *tensors {
        return Err(fault("the header differs from what was written".into()));
    }
    let file = std::fs::File::open(temp).map_err(|e| Error::io(target, e))?;
    check_blocks(&file, &header, threads, &|tensor, what| {
        // What was read back is what was computed: a bad scale means a weight too large for the type.
        Error::bad_file(target, what).tensor(tensor).hint("use a type with a wider range for it: --tensor-type NAME=bf16")
    })
}

/// Checks the scales of every block of an open GGUF file, in pieces, on `threads` threads.
pub fn check_blocks(
    file: &std::fs::File,
    header: &gguf::Header,
    threads: usize,
    fault: &(dyn Fn(&str, String) -> Error + Sync),
) -> Result<()> {
    const PIECE: usize = 4 << 20;
    let mut pieces = Vec::new();
    for (index, t) in header.tensors.iter().enumerate() {
        let spec = TensorSpec { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
        let len = spec.bytes().ok_or_else(|| fault(&t.name, "rows are not whole blocks".into()))?;
        let step = (PIECE / t.ty.block_bytes() * t.ty.block_bytes()) as u64;
        pieces.extend((0..len).step_by(step as usize).map(|at| (index, at, step.min(len - at) as usize)));
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffer = vec![0u8; PIECE];
        while let Some(&(index, at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tensor = &header.tensors[index];
            let bytes = &mut buffer[..len];
            crate::source::read_at(file, header.data_start + tensor.offset + at, bytes)
                .map_err(|e| fault(&tensor.name, format!("cannot be read: {e}")))?;
            quant::check_rows(tensor.ty, bytes).map_err(|e| {
                next.store(pieces.len(), Ordering::Relaxed);
                fault(&tensor.name, e.to_string())
            })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| {
            w.join().unwrap_or_else(|_| Err(Error::Internal("a checking thread panicked".into())))
        })
    })
}

/// `name-00001-of-00003.gguf`, or the target itself when there is one file only.
pub fn shard_path(target: &Path, no: usize, count: usize) -> PathBuf {
    if count == 1 {
        return target.to_path_buf();
    }
    let stem = target.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    target.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1))
}

/// Which tensors go into which shard.
fn group(tensors: &[TensorSpec], split: Split) -> Result<Vec<std::ops::Range<usize>>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let len = tensor.bytes().unwrap_or(0).next_multiple_of(ALIGNMENT);
        let full = match split {
            Split::Never => false,
            Split::MaxBytes(max) => bytes + len > max,
            Split::MaxTensors(max) => i - start >= max.max(1),
        };
        if full && i > start {
            groups.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += len;
    }
    groups.push(start..tensors.len());
    if groups.len() > u16::MAX as usize {
        return Err(Error::Usage(format!("{} shards are too many; raise --split-max-size", groups.len())));
    }
    Ok(groups)
}

/// Decimal units, as disks are sold and as llama.cpp's split sizes are given.
pub fn human(bytes: u64) -> String {
    let b = bytes as f64;
    match bytes {
        0..=999 => format!("{bytes} B"),
        1_000..=999_999 => format!("{:.1} kB", b / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", b / 1e6),
        _ => format!("{:.2} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, cols: u64, rows: u64) -> TensorSpec {
        TensorSpec { name: name.into(), dims: vec![cols, rows], ty: GgmlType::F32 }
    }

    #[test]
    fn shards_hold_at_most_the_size_asked_unless_one_tensor_is_larger() {
        let tensors = [spec("a", 8, 1), spec("b", 8, 1), spec("c", 80, 1), spec("d", 8, 1)];
        assert_eq!(group(&tensors, Split::MaxBytes(64)).unwrap(), vec![0..2, 2..3, 3..4]);
        assert_eq!(group(&tensors, Split::MaxTensors(3)).unwrap(), vec![0..3, 3..4]);
        assert_eq!(group(&tensors, Split::Never).unwrap(), vec![0..4]);
    }

    #[test]
    fn shards_are_named_as_llama_cpp_names_them() {
        assert_eq!(shard_path(Path::new("x/m.gguf"), 1, 3), Path::new("x/m-00002-of-00003.gguf"));
        assert_eq!(shard_path(Path::new("x/m.gguf"), 0, 1), Path::new("x/m.gguf"));
    }
}
