//! A GGUF artifact being written: one file, or the shards of a split one. The layout is known before a byte is written,
//! tensors may arrive in any order and in pieces, and the header goes in last, so a file that a crash left behind has
//! no valid header either.

use super::pieces::{self, Piece, Touched};
use super::publish::Step;
use crate::control::{Cancel, Run};
use crate::digest::sha256;
use crate::disk::free_space;
use crate::disk::partial::{Laying, PartialFile};
use crate::gguf::{self, DEFAULT_ALIGNMENT, Metadata, TensorInfo};
use crate::quant;
use crate::source::SourceFile;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Digits of a hash that tell one run's shards from another's.
const SET_DIGITS: usize = 16;

/// When to begin another shard, as llama.cpp's gguf-split has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// One file.
    #[default]
    Never,
    /// Tensor bytes per shard, at most (a single larger tensor still fits in a shard of its own).
    MaxBytes(u64),
    /// Tensors per shard, at most.
    MaxTensors(usize),
    /// So many shards of about equal size.
    Count(usize),
}

struct Shard {
    file: PartialFile,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    header_len: u64,
}

/// Where a tensor lies: shard, absolute offset.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    offset: u64,
    len: u64,
}

/// A GGUF file (or its shards) under temporary names.
pub struct Artifact {
    shards: Vec<Shard>,
    places: Vec<Place>,
    total_bytes: u64,
    tensor_bytes: u64,
    touched: Touched,
}

impl Artifact {
    /// Lays out the file and reserves its space, over the unfinished files that an earlier run left (in the order of the
    /// shards; what they hold stays), if any. `tensors` need no offsets. Metadata may change until [`seal`](Self::seal), but
    /// only to values that encode to the same number of bytes.
    pub fn reopen(
        target: &Path,
        metadata: &Metadata,
        tensors: &[TensorInfo],
        split: Split,
        kind: &str,
        laying: Laying,
        files: &mut impl Iterator<Item = PathBuf>,
    ) -> Result<Self> {
        let groups = group(tensors, split)?;
        let count = groups.len();
        let (mut plans, mut places) = (Vec::with_capacity(count), Vec::with_capacity(tensors.len()));
        let (mut total, mut tensor_bytes) = (0, 0);
        for (no, members) in groups.into_iter().enumerate() {
            let mut metadata = if no == 0 { metadata.clone() } else { Metadata::new() };
            if count > 1 {
                metadata.set("split.no", no as u16);
                metadata.set("split.count", count as u16);
                metadata.set("split.tensors.count", tensors.len() as i32);
                // Filled in when the file is sealed.
                metadata.set(gguf::SPLIT_SET, "0".repeat(SET_DIGITS));
            }
            let mut tensors = tensors[members].to_vec();
            let data = gguf::layout(&mut tensors, DEFAULT_ALIGNMENT)?;
            let header_len = gguf::encode_header(&metadata, &tensors, DEFAULT_ALIGNMENT).len() as u64;
            let place =
                |t: &TensorInfo| Place { shard: no, offset: header_len + t.offset, len: t.bytes().unwrap_or(0) };
            places.extend(tensors.iter().map(place));
            tensor_bytes += tensors.iter().filter_map(TensorInfo::bytes).sum::<u64>();
            total += header_len + data;
            plans.push((metadata, tensors, header_len, header_len + data));
        }
        let mut shards = Vec::with_capacity(count);
        for (no, (metadata, tensors, header_len, len)) in plans.into_iter().enumerate() {
            let path = shard_path(target, no, count);
            let file = match files.next() {
                Some(temp) => PartialFile::reopen(&path, &temp, laying.force)?,
                None => {
                    if let Some(free) = free_space(target).filter(|free| no == 0 && !laying.sparse && *free < total) {
                        let (need, free) = (human(total), human(free));
                        return Err(Error::storage(format!("{}: needs {need} of disk, {free} free", target.display())));
                    }
                    PartialFile::create_as(&path, kind, laying.force)?
                }
            };
            match laying.sparse {
                true => file.set_len(len)?,
                false => file.reserve(len)?,
            }
            shards.push(Shard { file, metadata, tensors, header_len });
        }
        Ok(Self { shards, places, total_bytes: total, tensor_bytes, touched: Touched::default() })
    }

    /// Size of all shards together.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Size of the tensor data alone, without headers and padding.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// Changes a metadata value before the header is written.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<gguf::Value>) {
        if let Some(first) = self.shards.first_mut() {
            first.metadata.set(key, value);
        }
    }

    /// The names that the files get in the end.
    pub fn targets(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.file.target())
    }

    /// Where the files of a [sealed](Self::seal) artifact lie for the time being.
    pub fn temp_paths(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.file.temp_path().to_path_buf()).collect()
    }

    /// Whether the temporary files stay when this is dropped unfinished.
    pub fn keep_on_drop(&mut self, on: bool) {
        self.shards.iter_mut().for_each(|shard| shard.file.keep_on_drop(on));
    }

    /// Removes what was written.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(self) -> Result<()> {
        self.shards.into_iter().try_for_each(|shard| shard.file.discard())
    }

    /// Makes sure that what was written is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.file.sync())
    }

    /// Syncs, reads everything back and checks it, and writes the headers, with the hash of all data under the key
    /// `hash_key`.
    ///
    /// # Errors
    /// `Interrupted` once `cancel` is set; `BadInput` when a weight was too large for its type.
    pub fn seal(&mut self, hash_key: &str, threads: usize, cancel: &Cancel) -> Result<()> {
        let mut hashes = Vec::new();
        for shard in &self.shards {
            shard.file.sync()?;
            hashes.extend(check_data(shard, threads, cancel)?);
        }
        self.set_metadata(hash_key, hash_of_data(&hashes));
        if let [first, _, ..] = self.shards.as_slice() {
            // Shards of two runs do not belong together, though all else may agree.
            let header = gguf::encode_header(&first.metadata, &first.tensors, DEFAULT_ALIGNMENT);
            let set = sha256(&header);
            self.shards.iter_mut().for_each(|shard| shard.metadata.set(gguf::SPLIT_SET, &set[..SET_DIGITS]));
        }
        self.shards.iter().try_for_each(write_header)
    }

    /// Gives keys of a [sealed](Self::seal) artifact other values, of the same size.
    ///
    /// # Errors
    /// `Io`; `Storage` where the header reads otherwise.
    pub fn amend(&mut self, values: Vec<(&'static str, gguf::Value)>) -> Result<()> {
        values.into_iter().for_each(|(key, value)| self.set_metadata(key, value));
        self.shards.first().map_or(Ok(()), write_header)
    }

    /// The tensors that were written since the last call, of files that are numbered from `first` on.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub fn pieces(&self, first: usize, run: Run) -> Result<Vec<Piece>> {
        let place = |tensor: usize| {
            let Place { shard, offset, len } = self.places[tensor];
            (first + shard, self.shards[shard].file.temp_path().to_path_buf(), offset, len)
        };
        pieces::of(self.touched.take().into_iter().map(place).collect(), run)
    }

    /// Makes the files of a [sealed](Self::seal) artifact whole but for their names. How these are given: the first
    /// shard, by which a model is opened, comes last: whoever finds it finds all of them.
    ///
    /// # Errors
    /// `Io`.
    pub fn complete(&self) -> Result<Vec<Step>> {
        self.shards.iter().rev().map(|shard| Step::of(&shard.file)).collect()
    }
}

impl super::Sink for Artifact {
    fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = self.places[tensor];
        self.touched.note(tensor);
        self.shards[place.shard].file.write_at(place.offset + offset, bytes)
    }
}

/// Writes the header of a file whose data are there, and reads it back.
fn write_header(shard: &Shard) -> Result<()> {
    let header = gguf::encode_header(&shard.metadata, &shard.tensors, DEFAULT_ALIGNMENT);
    if header.len() as u64 != shard.header_len {
        return Err(Error::Internal("the header changed its size while the file was written".into()));
    }
    shard.file.write_at(0, &header)?;
    shard.file.sync()?;
    check_header(shard)
}

/// Re-reads the header of a finished temporary file, which must say what was meant.
fn check_header(shard: &Shard) -> Result<()> {
    let (temp, target) = (shard.file.temp_path(), shard.file.target());
    let fault = |what: String| Error::storage(format!("{}: re-reading what was written: {what}", target.display()));
    let header = gguf::read_header(temp).map_err(|e| fault(e.to_string()))?;
    // Encoded, so that a NaN that the metadata of a source held equals itself.
    let encoded = |m: &Metadata, t: &[TensorInfo]| gguf::encode_header(m, t, DEFAULT_ALIGNMENT);
    if encoded(&header.metadata, &header.tensors) != encoded(&shard.metadata, &shard.tensors) {
        return Err(fault("the header differs from what was written".into()));
    }
    Ok(())
}

/// Re-reads the tensors of a finished temporary file: every block's scales must be finite. Their hashes.
fn check_data(shard: &Shard, threads: usize, cancel: &Cancel) -> Result<Vec<TensorHash>> {
    let target = shard.file.target();
    let file = SourceFile::open(shard.file.temp_path())?;
    check_blocks(&file, &shard.tensors, shard.header_len, threads, cancel, &|tensor, what| {
        // What was read back is what was computed: a bad scale means a weight too large for the type.
        Error::bad_file(target, what).tensor(tensor).hint(crate::error::Hint::WiderType { tensor: tensor.to_string() })
    })
}

/// SHA-256 of a tensor's bytes.
pub type TensorHash = [u8; 32];

/// The hash that stands for all data of a file or of all its shards: SHA-256 over the SHA-256 of each tensor's bytes, in the
/// order of the headers.
pub fn hash_of_data(tensors: &[TensorHash]) -> String {
    sha256(tensors.as_flattened())
}

/// Checks the scales of every block of an open GGUF file whose data begin at byte `start`, on `threads` threads. The hash
/// of each tensor, in order.
///
/// # Errors
/// `Interrupted` once `cancel` is set; otherwise what `fault` makes of a tensor's name and what is wrong with it.
pub fn check_blocks(
    file: &SourceFile,
    tensors: &[TensorInfo],
    start: u64,
    threads: usize,
    cancel: &Cancel,
    fault: &(dyn Fn(&str, String) -> Error + Sync),
) -> Result<Vec<TensorHash>> {
    const PIECE: usize = 4 << 20;
    // The largest first, so that no thread is left with one at the end.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(tensors[*i].bytes()));
    let hashes: Vec<OnceLock<TensorHash>> = tensors.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffer = vec![0u8; PIECE];
        while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tensor = &tensors[index];
            let bad = |what: String| {
                next.store(order.len(), Ordering::Relaxed);
                fault(&tensor.name, what)
            };
            let len = tensor.bytes().ok_or_else(|| bad("rows are not whole blocks".into()))?;
            let step = PIECE / tensor.ty.block_bytes() * tensor.ty.block_bytes();
            let mut hasher = Sha256::new();
            for at in (0..len).step_by(step) {
                cancel.check()?;
                let bytes = &mut buffer[..step.min((len - at) as usize)];
                file.read_at(start + tensor.offset + at, bytes)?;
                quant::check_rows(tensor.ty, bytes).map_err(|e| bad(e.to_string()))?;
                hasher.update(bytes);
            }
            let _ = hashes[index].set(hasher.finalize().into());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().unwrap_or_else(|_| Err(Error::Internal("a checking thread panicked".into()))))
    })?;
    let hash = |hash: OnceLock<TensorHash>| hash.into_inner().ok_or_else(|| Error::Internal("no hash".into()));
    hashes.into_iter().map(hash).collect()
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
///
/// # Errors
/// `Request` for more shards than a file can count.
pub fn group(tensors: &[TensorInfo], split: Split) -> Result<Vec<std::ops::Range<usize>>> {
    let total: u64 = tensors.iter().filter_map(TensorInfo::bytes).sum();
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let len = tensor.bytes().unwrap_or(0).next_multiple_of(DEFAULT_ALIGNMENT);
        let full = match split {
            Split::Never => false,
            Split::MaxBytes(max) => bytes + len > max,
            Split::MaxTensors(max) => i - start >= max.max(1),
            Split::Count(n) => groups.len() + 1 < n && bytes + len / 2 > total / n as u64,
        };
        if full && i > start {
            groups.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += len;
    }
    groups.push(start..tensors.len());
    if groups.len() > u16::MAX as usize {
        return Err(Error::request(format!("{} shards are too many; choose a larger limit", groups.len())));
    }
    Ok(groups)
}

/// `12 345`, in groups of three with narrow no-break spaces.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
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

    fn spec(name: &str, cols: u64, rows: u64) -> TensorInfo {
        TensorInfo { name: name.into(), dims: vec![cols, rows], ty: crate::quant::GgmlType::F32, offset: 0 }
    }

    #[test]
    fn shards_hold_at_most_the_size_asked_unless_one_tensor_is_larger() {
        let tensors = [spec("a", 8, 1), spec("b", 8, 1), spec("c", 80, 1), spec("d", 8, 1)];
        assert_eq!(group(&tensors, Split::MaxBytes(64)).unwrap(), vec![0..2, 2..3, 3..4]);
        assert_eq!(group(&tensors, Split::MaxTensors(3)).unwrap(), vec![0..3, 3..4]);
        assert_eq!(group(&tensors, Split::Never).unwrap(), vec![0..4]);
        assert_eq!(group(&tensors, Split::Count(2)).unwrap().len(), 2);
    }

    #[test]
    fn shards_are_named_as_llama_cpp_names_them() {
        assert_eq!(shard_path(Path::new("x/m.gguf"), 1, 3), Path::new("x/m-00002-of-00003.gguf"));
        assert_eq!(shard_path(Path::new("x/m.gguf"), 0, 1), Path::new("x/m.gguf"));
    }
}
