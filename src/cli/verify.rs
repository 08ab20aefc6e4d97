//! `quantize verify`: is this GGUF file sound, do other readers see the same file, and does the source it claims really
//! give these bytes? Every tensor is derived again and compared, which is stronger than any signature alone.

use super::calibrate::Importance;
use super::options::{CANCEL, catch_interrupt, threads};
use super::progress::{Progress, Unit};
use super::{Format, ImatrixArgs, VerifyArgs, print, print_json};
use crate::convert::{self, Control, Sink, Target};
use crate::model::Model;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::gguf::check_blocks;
use crate::{Error, Result, gguf};
use serde_json::json;
use std::sync::Mutex;

pub fn run(args: VerifyArgs) -> Result<()> {
    catch_interrupt()?;
    let threads = threads(args.common.threads)?;
    let file = Checkpoint::open(&args.file)?;
    if file.gguf().is_none() {
        return Err(Error::bad_file(&args.file, "not a GGUF file").hint("verify takes the .gguf file itself"));
    }
    for part in file.files() {
        let header = gguf::read_header(&part.path)?;
        check_blocks(part, &header, threads, &CANCEL, &|tensor, what| {
            Error::bad_file(&part.path, what).tensor(tensor)
        })?;
        cross_read(&part.path, &header)?;
    }
    let derived = match &args.source {
        Some(source) => Some(derive(&file, source, &args.imatrix, threads, args.common.quiet)?),
        None => None,
    };
    let (differing, compared) = derived.unwrap_or_default();
    if args.common.format == Format::Json {
        let source = args.source.as_ref().map(|s| json!({ "path": s, "compared": compared, "differing": differing }));
        print_json(&json!({ "file": args.file, "sound": true, "tensors": file.tensors().len(), "source": source }))?;
    } else {
        print(&format!("{}: {} tensors, every block sound\n", args.file.display(), file.tensors().len()))?;
        if let Some(source) = &args.source {
            let same = compared - differing.len();
            print(&format!("{same} of {compared} tensors are what {} gives, byte for byte\n", source.display()))?;
        }
    }
    match differing.first() {
        None => Ok(()),
        Some(first) => Err(Error::bad_file(&args.file, format!("{} tensors differ from the source", differing.len()))
            .tensor(first)
            .hint("the source is another one, the file was changed, or another program or recipe made it")),
    }
}

/// Another reader's view of the same header. gguf-rs gets the sizes of some types wrong, so only fields that do not
/// depend on them are compared, for the types it knows.
fn cross_read(path: &std::path::Path, header: &gguf::Header) -> Result<()> {
    let text = path.to_string_lossy();
    let read = gguf_rs::get_gguf_container_array_size(&text, u64::MAX).and_then(|mut c| c.decode());
    let other = read.map_err(|e| Error::bad_file(path, format!("gguf-rs cannot read the header: {e}")))?;
    if other.tensors().len() != header.tensors.len() {
        return Err(Error::bad_file(path, "gguf-rs counts another number of tensors"));
    }
    for (ours, theirs) in header.tensors.iter().zip(other.tensors()) {
        let dims: Vec<u64> = theirs.shape.iter().copied().filter(|d| *d != 0).collect();
        let same_dims = dims.iter().zip(&ours.dims).all(|(a, b)| a == b);
        if theirs.name != ours.name || theirs.kind != ours.ty as u32 || theirs.offset != ours.offset || !same_dims {
            return Err(Error::bad_file(path, "gguf-rs reads this tensor's entry differently").tensor(&ours.name));
        }
    }
    Ok(())
}

/// Compares what a run over the source would write with what the file holds.
fn derive(
    file: &Checkpoint,
    source: &std::path::Path,
    imatrix: &ImatrixArgs,
    threads: usize,
    quiet: bool,
) -> Result<(Vec<String>, usize)> {
    let ckpt = Checkpoint::open(source)?;
    let model = Model::open(&ckpt)?;
    let importance = Importance::open(imatrix, &model)?;
    let recorded = file.gguf().is_some_and(|m| m.uint("quantize.imatrix.entries_count").is_some());
    if file.gguf().is_some_and(|m| m.str("quantize.search") == Some("feedback")) {
        let what = "was made with error feedback, which needs the calibration run again";
        return Err(Error::bad_file(&file.files()[0].path, what)
            .hint("convert the source again with the recipe in quantize.recipe, and compare the files"));
    }
    if recorded && importance.is_none() {
        let what = "was made with an importance matrix, without which its tensors cannot be derived";
        return Err(Error::bad_file(&file.files()[0].path, what).hint("name it with --imatrix FILE"));
    }
    let mut stored = Vec::new();
    for (name, shape) in convert::outputs(&model) {
        let found = file.find(name).map(|i| &file.tensors()[i]);
        let meta = found.ok_or_else(|| Error::bad_file(&file.files()[0].path, "the file lacks it").tensor(name))?;
        if meta.shape != shape {
            let what = format!("the file has the shape {:?}, the source gives {shape:?}", meta.shape);
            return Err(Error::bad_file(&file.files()[0].path, what).tensor(name));
        }
        stored.push(meta.clone());
    }
    if let Some(extra) = file.tensors().iter().find(|t| !stored.iter().any(|s| s.name == t.name)) {
        return Err(Error::bad_file(&file.files()[0].path, "the source has no such tensor").tensor(&extra.name));
    }
    let ty = |t: &TensorMeta| match t.dtype {
        Dtype::Ggml(ty) => ty,
        _ => GgmlType::F32, // a GGUF file holds ggml types only
    };
    let types: Vec<GgmlType> = stored.iter().map(ty).collect();
    let compare = Compare { file, stored, differing: Mutex::default() };
    let progress = Progress::new("verifying", convert::source_bytes(&ckpt, &model), Unit::Bytes, quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let importance = |name: &str| importance.as_ref().and_then(|i| i.of(name));
    convert::run(&ckpt, &model, &importance, &[Target { types, sink: &compare, done: Vec::new() }], &control)?;
    progress.finish();
    let mut differing = compare.differing.into_inner().unwrap_or_default();
    differing.sort();
    differing.dedup();
    let names = differing.into_iter().map(|i| compare.stored[i].name.clone()).collect();
    Ok((names, compare.stored.len()))
}

/// A sink that reads the place where the bytes should already be.
struct Compare<'a> {
    file: &'a Checkpoint,
    stored: Vec<TensorMeta>,
    differing: Mutex<Vec<usize>>,
}

impl Sink for Compare<'_> {
    fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut there = vec![0; bytes.len()];
        self.file.read(&self.stored[tensor], offset, &mut there)?;
        if there != bytes
            && let Ok(mut differing) = self.differing.lock()
        {
            differing.push(tensor);
        }
        Ok(())
    }
}
