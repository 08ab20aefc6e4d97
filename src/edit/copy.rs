//! A GGUF file whose tensors are ranges of other files.

use crate::control::Cancel;
use crate::disk::free_space;
use crate::disk::partial::PartialFile;
use crate::gguf::{self, ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Metadata, TensorInfo};
use crate::source::SourceFile;
use crate::writer::gguf::human;
use crate::{Error, Result};
use std::path::Path;

/// A tensor, and where its bytes are.
#[derive(Clone, Debug)]
pub(super) struct Copied<'a> {
    pub info: TensorInfo,
    pub file: &'a SourceFile,
    pub at: u64,
}

/// Between two looks at whether the run is to stop.
const STEP: u64 = 1 << 30;

/// Writes the file under its temporary name, whole but for the final one.
///
/// # Errors
/// `Exists`; `Storage`; `Io`; `Interrupted`; `BadInput` for a source that changes meanwhile.
pub(super) fn write(
    target: &Path,
    metadata: &Metadata,
    tensors: &[Copied],
    force: bool,
    cancel: &Cancel,
) -> Result<PartialFile> {
    let alignment = metadata.uint(ALIGNMENT_KEY).unwrap_or(DEFAULT_ALIGNMENT);
    let mut table: Vec<TensorInfo> = tensors.iter().map(|t| t.info.clone()).collect();
    let data = gguf::layout(&mut table, alignment)?;
    let header = gguf::encode_header(metadata, &table, alignment);
    let start = header.len() as u64;
    let file = PartialFile::create(target, force)?;
    // What is sparse takes no space, here and there.
    let mut sources: Vec<&SourceFile> = Vec::new();
    for t in tensors.iter().filter(|t| t.info.bytes() != Some(0)) {
        if !sources.iter().any(|known| std::ptr::eq(*known, t.file)) {
            sources.push(t.file);
        }
    }
    let total = sources.iter().map(|file| file.stored()).sum::<u64>().min(start + data);
    if let Some(free) = free_space(target).filter(|free| *free < total) {
        let (need, free) = (human(total), human(free));
        return Err(Error::storage(format!("{}: needs {need} of disk, {free} free", target.display())));
    }
    file.set_len(start + data)?;
    for (copied, info) in tensors.iter().zip(&table) {
        let len = info.bytes().ok_or_else(|| Error::Internal(format!("'{}' has no size", info.name)))?;
        for done in (0..len).step_by(STEP as usize) {
            cancel.check()?;
            let n = STEP.min(len - done);
            file.copy_range(copied.file.handle(), copied.at + done, start + info.offset + done, n)?;
        }
    }
    sources.into_iter().try_for_each(SourceFile::check_unchanged)?;
    file.write_at(0, &header)?;
    file.complete()?;
    let written = gguf::read_header(file.temp_path())?;
    // Encoded, so that a NaN equals itself.
    match gguf::encode_header(&written.metadata, &written.tensors, alignment) == header {
        true => Ok(file),
        false => Err(Error::storage(format!("{}: the header differs from what was written", target.display()))),
    }
}

/// Gives names, the last file's first: the first of several is the one that they are opened by.
pub(super) fn publish(files: Vec<PartialFile>) -> Result<()> {
    files.into_iter().rev().try_for_each(PartialFile::finish)
}
