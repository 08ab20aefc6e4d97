//! Single tensors of a checkpoint or a GGUF file, as safetensors or NumPy arrays.

use crate::control::Cancel;
use crate::disk::partial::PartialFile;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::safetensors::{self, Entry};
use crate::{Error, Result};
use regex::Regex;
use std::path::{Path, PathBuf};

/// Which tensors, and what of them.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Tensors whose names hold one of these.
    pub names: Vec<Regex>,
    /// Of stacked experts, this one.
    pub expert: Option<usize>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extracted {
    /// The tensor's name.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The type as safetensors names it.
    pub dtype: String,
    /// The file that holds it now.
    pub path: PathBuf,
}

/// A tensor to be written: its part of the source, and the type it gets.
struct Taken<'a> {
    meta: &'a TensorMeta,
    /// Elements before the first one.
    first: usize,
    entry: Entry,
}

/// Numbers that are decoded at once.
const PIECE: usize = 1 << 20;

/// Writes the chosen tensors to `output`: a `.safetensors` file of all of them, or one `.npy` file of one. What is quantized
/// is decoded to F32; anything else keeps its type (NumPy has no BF16, which becomes F32).
///
/// # Errors
/// `Request` where nothing is chosen, or several for one array; those of reading and writing.
pub fn extract(
    ckpt: &Checkpoint,
    chosen: &Chosen,
    output: &Path,
    force: bool,
    cancel: &Cancel,
) -> Result<Vec<Extracted>> {
    let extension = output.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let numpy = match extension {
        "npy" => true,
        "safetensors" => false,
        _ => {
            return Err(Error::request(format!("{}: name a file that ends in .safetensors or .npy", output.display())));
        }
    };
    let files = ckpt.files().iter().map(|f| f.path.as_path());
    crate::writer::places::check(files, [output], force)?;
    let mut taken = Vec::new();
    for pattern in &chosen.names {
        if !ckpt.tensors().iter().any(|t| pattern.is_match(&t.name)) {
            return Err(Error::request(format!("no tensor's name matches '{pattern}'")));
        }
    }
    for meta in ckpt.tensors().iter().filter(|t| chosen.names.iter().any(|name| name.is_match(&t.name))) {
        taken.push(Taken::new(meta, chosen.expert, numpy)?);
    }
    if !taken.is_empty() && chosen.expert.is_some() && taken.iter().all(|taken| taken.meta.shape.len() != 3) {
        return Err(Error::request("an expert is asked for, and no chosen tensor is a stack of experts"));
    }
    let (first, len) = match (numpy, taken.as_slice()) {
        (_, []) => return Err(Error::request("no tensor is chosen")),
        (true, [one]) => {
            let header = numpy_header(&one.entry)?;
            (header, one.entry.bytes()?)
        }
        (true, several) => {
            let what = format!("{} tensors are chosen, and an .npy file holds one", several.len());
            return Err(Error::request(what).hint("choose fewer, or write a .safetensors file"));
        }
        (false, _) => (Vec::new(), 0),
    };
    let file = PartialFile::create(output, force)?;
    if numpy {
        file.set_len(first.len() as u64 + len)?;
        file.write_at(0, &first)?;
        taken[0].copy(ckpt, &file, first.len() as u64, cancel)?;
    } else {
        let entries: Vec<Entry> = taken.iter().map(|t| t.entry.clone()).collect();
        let layout = safetensors::layout(&entries, "pt", u64::MAX)?;
        let Some(shard) = layout.shards.first() else { return Err(Error::Internal("no layout".into())) };
        file.set_len(shard.len)?;
        for (taken, place) in taken.iter().zip(&layout.places) {
            taken.copy(ckpt, &file, place.offset, cancel)?;
        }
        file.write_at(0, &shard.header)?;
    }
    ckpt.files().iter().try_for_each(|f| f.check_unchanged())?;
    file.finish()?;
    let made = |t: &Taken| Extracted {
        name: t.entry.name.clone(),
        shape: t.entry.shape.clone(),
        dtype: t.entry.dtype.to_string(),
        path: output.to_path_buf(),
    };
    Ok(taken.iter().map(made).collect())
}

impl<'a> Taken<'a> {
    fn new(meta: &'a TensorMeta, expert: Option<usize>, numpy: bool) -> Result<Self> {
        let (mut shape, mut first) = (meta.shape.clone(), 0);
        if let (Some(expert), true) = (expert, meta.shape.len() == 3) {
            let count = shape.remove(0);
            if expert >= count {
                return Err(Error::request(format!("there is no expert {expert}: {} has {count}", meta.name)));
            }
            first = expert * shape.iter().product::<usize>();
        }
        let is_float = |ty| [GgmlType::F32, GgmlType::F16, GgmlType::F64].contains(&ty);
        let dtype = match meta.dtype {
            Dtype::Ggml(ty) if is_float(ty) || (ty == GgmlType::BF16 && !numpy) => meta.dtype,
            Dtype::Ggml(GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64) => meta.dtype,
            Dtype::Ggml(_) | Dtype::Packed(_) => Dtype::Ggml(GgmlType::F32),
            other => other,
        };
        Ok(Self { meta, first, entry: Entry { name: meta.name.clone(), dtype, shape } })
    }

    /// Writes the numbers from byte `at` of the file on.
    fn copy(&self, ckpt: &Checkpoint, file: &PartialFile, at: u64, cancel: &Cancel) -> Result<()> {
        let elements: usize = self.entry.shape.iter().product();
        if self.entry.dtype == self.meta.dtype {
            let len = self.entry.bytes()?;
            let from = len / elements.max(1) as u64 * self.first as u64;
            let mut buffer = Vec::new();
            for done in (0..len).step_by(4 * PIECE) {
                cancel.check()?;
                buffer.resize((4 * PIECE as u64).min(len - done) as usize, 0);
                ckpt.read(self.meta, from + done, &mut buffer)?;
                file.write_at(at + done, &buffer)?;
            }
            return Ok(());
        }
        let cols = self.entry.shape.last().copied().unwrap_or(1).max(1);
        let step = (PIECE / cols).max(1) * cols;
        let (mut scratch, mut values) = (Vec::new(), Vec::new());
        for done in (0..elements).step_by(step) {
            cancel.check()?;
            values.resize(step.min(elements - done), 0.0);
            let from = self.first + done;
            ckpt.read_f32(self.meta, from..from + values.len(), &mut scratch, &mut values)?;
            let bytes: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
            file.write_at(at + 4 * done as u64, &bytes)?;
        }
        Ok(())
    }
}

/// The header of an `.npy` file (version 1.0), padded so that the data begin at a multiple of 64.
fn numpy_header(entry: &Entry) -> Result<Vec<u8>> {
    let Dtype::Ggml(ty) = entry.dtype else {
        return Err(Error::request(format!("{} is of type {}, which NumPy does not have", entry.name, entry.dtype)));
    };
    let descr = match ty {
        GgmlType::F32 => "<f4",
        GgmlType::F16 => "<f2",
        GgmlType::F64 => "<f8",
        GgmlType::I8 => "|i1",
        GgmlType::I16 => "<i2",
        GgmlType::I32 => "<i4",
        GgmlType::I64 => "<i8",
        other => return Err(Error::Internal(format!("{other} in an array"))),
    };
    let shape: String = entry.shape.iter().map(|d| format!("{d}, ")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.extend(std::iter::repeat_n(' ', length - text.len() - 1));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(text.as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_arrays_are_aligned() {
        let entry =
            |shape: &[usize]| Entry { name: "a".into(), dtype: Dtype::Ggml(GgmlType::F16), shape: shape.to_vec() };
        for shape in [&[][..], &[3], &[2, 3], &[1_000_000, 2_000_000, 3]] {
            let header = numpy_header(&entry(shape)).unwrap();
            assert_eq!(header.len() % 64, 0);
            assert_eq!(u16::from_le_bytes([header[8], header[9]]) as usize + 10, header.len());
            assert!(header.ends_with(b"\n"));
        }
    }
}
