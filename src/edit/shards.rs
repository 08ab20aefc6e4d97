//! GGUF files in shards and in one piece, as llama.cpp's gguf-split has them.

use super::copy::{self, Copied};
use crate::control::Cancel;
use crate::gguf::{Metadata, TensorInfo};
use crate::source::{Checkpoint, Dtype};
use crate::writer::gguf::{Split, group, shard_path};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// When another shard begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// Before one would hold more bytes of tensors; a single larger tensor has one of its own.
    MaxBytes(u64),
    /// After so many tensors.
    MaxTensors(usize),
    /// So many of about equal size.
    Count(usize),
}

/// Cuts a GGUF file into shards `PREFIX-00001-of-0000N.gguf`. `prefix`: the path that the names begin with. The names of
/// the shards, in order.
///
/// # Errors
/// `Request` where there is nothing to cut; those of reading and writing.
pub fn split(input: &Path, prefix: &Path, shards: Shards, force: bool, cancel: &Cancel) -> Result<Vec<PathBuf>> {
    let ckpt = opened(input)?;
    if ckpt.files().len() > 1 {
        return Err(Error::request(format!("{} is in shards already; merge them first", input.display())));
    }
    let (metadata, tensors) = contents(&ckpt)?;
    let table: Vec<TensorInfo> = tensors.iter().map(|t| t.info.clone()).collect();
    let by = match shards {
        Shards::MaxBytes(bytes) => Split::MaxBytes(bytes),
        Shards::MaxTensors(n) => Split::MaxTensors(n),
        Shards::Count(n) => Split::Count(n),
    };
    let groups = group(&table, by)?;
    let count = groups.len();
    if count < 2 {
        let what = "would be a single shard; choose a smaller limit";
        return Err(Error::request(format!("{} {what}", input.display())));
    }
    if let Shards::Count(asked) = shards
        && asked != count
    {
        let what = format!("its {} tensors come out as {count} shards of like size, not {asked}", tensors.len());
        return Err(Error::request(format!("{}: {what}", input.display())));
    }
    // `shard_path` takes an extension away.
    let target = prefix.with_file_name(format!("{}.gguf", prefix.file_name().unwrap_or_default().to_string_lossy()));
    let paths: Vec<PathBuf> = (0..count).map(|no| shard_path(&target, no, count)).collect();
    crate::writer::places::check([input], paths.iter().map(PathBuf::as_path), force)?;
    let mut files = Vec::with_capacity(count);
    for (no, (members, path)) in groups.into_iter().zip(&paths).enumerate() {
        let mut own = if no == 0 { metadata.clone() } else { Metadata::new() };
        own.set("split.no", no as u16);
        own.set("split.count", count as u16);
        own.set("split.tensors.count", tensors.len() as i32);
        files.push(copy::write(path, &own, &tensors[members], force, cancel)?);
    }
    copy::publish(files)?;
    Ok(paths)
}

/// Puts the shards of a model, of which `input` is one, into one file.
///
/// # Errors
/// `Request` for a file that is whole; those of reading and writing.
pub fn merge(input: &Path, output: &Path, force: bool, cancel: &Cancel) -> Result<()> {
    let ckpt = opened(input)?;
    if ckpt.files().len() < 2 {
        return Err(Error::request(format!("{} is in one piece already", input.display())));
    }
    let (metadata, tensors) = contents(&ckpt)?;
    let shards = ckpt.files().iter().map(|f| f.path.as_path());
    crate::writer::places::check(shards, [output], force)?;
    copy::publish(vec![copy::write(output, &metadata, &tensors, force, cancel)?])
}

fn opened(input: &Path) -> Result<Checkpoint> {
    let ckpt = Checkpoint::open(input)?;
    match ckpt.gguf() {
        Some(_) => Ok(ckpt),
        None => {
            let what = "is not a GGUF file; the shards of a folder are set when it is made";
            Err(Error::request(format!("{} {what}", input.display())))
        }
    }
}

/// Metadata without what says that there are shards, and every tensor.
fn contents(ckpt: &Checkpoint) -> Result<(Metadata, Vec<Copied<'_>>)> {
    let tensor = |t: &crate::source::TensorMeta| {
        let Dtype::Ggml(ty) = t.dtype else { return Err(Error::Internal(format!("'{}' is {}", t.name, t.dtype))) };
        let dims = t.shape.iter().rev().map(|d| *d as u64).collect();
        let info = TensorInfo { name: t.name.clone(), dims, ty, offset: 0 };
        Ok(Copied { info, file: &ckpt.files()[t.file], at: t.range.start })
    };
    let tensors = ckpt.tensors().iter().map(tensor).collect::<Result<_>>()?;
    Ok((ckpt.gguf().cloned().unwrap_or_default(), tensors))
}
