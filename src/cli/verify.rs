//! `quantize verify`: is this artifact sound, and who would refuse it? Of a GGUF file also: do other readers see the same
//! file, and does the source it claims really give these bytes? Every tensor is derived again and compared, which is
//! stronger than any signature alone.

use super::args::EngineName;
use super::args::{Format, ImatrixArgs};
use super::commands::VerifyArgs;
use super::interrupt::{CANCEL, catch_interrupt};
use super::options::threads;
use super::output::{print, print_json};
use super::progress::Terminal;
use super::words;
use crate::control::{Control, Run, Unit};
use crate::convert::folder::engines::{Engine, Objection, objections};
use crate::convert::{Importance, loadable, record, stream};
use crate::error::Hint;
use crate::model::{Model, SourceModel, gguf_metadata};
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::Sink;
use crate::writer::gguf::check_blocks;
use crate::{Error, Result, escape, gguf};
use rayon::prelude::*;
use serde_json::json;
use std::sync::Mutex;

impl EngineName {
    fn engine(self) -> Engine {
        match self {
            EngineName::Vllm => Engine::Vllm,
            EngineName::Transformers => Engine::Transformers,
            EngineName::LlamaCpp => Engine::LlamaCpp,
            EngineName::Mlx => Engine::Mlx,
        }
    }
}

pub fn run(args: VerifyArgs) -> Result<()> {
    catch_interrupt()?;
    let threads = threads(args.common.threads)?;
    let file = Checkpoint::open(&args.file)?;
    let mut text = String::new();
    let mut json = json!({ "file": escape::path(&args.file), "sound": true, "tensors": file.tensors().len() });
    let mut differing = Vec::new();
    if file.gguf().is_some() {
        for part in file.files() {
            let header = gguf::read_header(&part.path)?;
            check_blocks(part, &header, threads, &CANCEL, &|tensor, what| {
                Error::bad_file(&part.path, what).tensor(tensor)
            })?;
            cross_read(&part.path, &header)?;
        }
        text += &format!("{}: {} tensors, every block sound\n", args.file.display(), file.tensors().len());
        if let Some(source) = &args.source {
            let compared;
            (differing, compared) = derive(&file, source, &args.imatrix, threads, args.common.quiet)?;
            json["source"] = json!({ "path": escape::path(source), "compared": compared, "differing": differing });
            let same = compared - differing.len();
            text += &format!("{same} of {compared} tensors are what {} gives, byte for byte\n", source.display());
        }
    } else {
        if args.source.is_some() {
            let hint = "convert the source again with the recipe in quantize-manifest.json, and compare the folders";
            return Err(Error::request("--source is for GGUF files").hint(hint));
        }
        let packed = check_tensors(&file, threads, args.common.quiet)?;
        json["packed_modules"] = json!(packed);
        let kept = file.tensors().len() - packed;
        text += &format!("{}: {packed} quantized layers and {kept} other tensors, all sound\n", args.file.display());
    }
    let mut refusing = Vec::new();
    if !args.engines.is_empty() {
        let model = Model::open(&file)?;
        let mut rows = Vec::new();
        for engine in args.engines.iter().map(|e| e.engine()) {
            let found = match file.gguf() {
                Some(_) => about_gguf(engine, &file),
                None => objections(engine, &file, &model, args.tp as usize)?,
            };
            let loads = found.iter().all(|o| !o.refused);
            if !loads {
                refusing.push(engine.release());
            }
            text += &in_words(engine, args.tp, &found);
            rows.push(json!({
                "engine": engine.name(), "release": engine.release(), "tp": args.tp, "loads": loads,
                "objections": found.iter().map(|o| json!({
                    "refused": o.refused, "modules": o.modules, "what": words::objection(o),
                })).collect::<Vec<_>>(),
            }));
        }
        json["engines"] = json!(rows);
    }
    match args.common.format {
        Format::Json => print_json(&json)?,
        Format::Text => print(&text)?,
    }
    if let Some(first) = differing.first() {
        return Err(Error::bad_file(&args.file, format!("{} tensors differ from the source", differing.len()))
            .tensor(first)
            .hint("the source is another one, the file was changed, or another program or recipe made it"));
    }
    match refusing.is_empty() {
        true => Ok(()),
        false => Err(Error::unsupported(format!("{}: refused by {}", args.file.display(), refusing.join(" and ")))),
    }
}

/// What engines say of a sound GGUF file.
fn about_gguf(engine: Engine, file: &Checkpoint) -> Vec<Objection> {
    let (refused, what) = match engine {
        Engine::LlamaCpp => {
            return loadable::refusals(file).into_iter().map(|what| Objection::to_all(what, true)).collect();
        }
        Engine::Vllm => (false, "needs the GGUF plugin, which has no kernels for CPUs"),
        Engine::Transformers => (false, "is turned back into 16 or 32 bits: from_pretrained(DIR, gguf_file=FILE)"),
        Engine::Mlx => (true, "mlx-lm loads folders"),
    };
    let hint = (engine == Engine::Mlx).then(|| Hint::OfOriginal("mlx-4bit".into()));
    vec![Objection { hint, ..Objection::to_all(what, refused) }]
}

/// An engine's verdict, a line for it and one per objection.
fn in_words(engine: Engine, tp: u32, found: &[Objection]) -> String {
    let split = if tp > 1 && engine == Engine::Vllm { format!(" over {tp} devices") } else { String::new() };
    let verdict = if found.iter().any(|o| o.refused) { "refused" } else { "loads" };
    let mut text = format!("{}{split}: {verdict}\n", engine.release());
    for o in found {
        let mark = if o.refused { "✗" } else { "·" };
        let what = words::objection(o);
        text += &match o.modules.as_slice() {
            [] => format!("  {mark} {what}\n"),
            [one] => format!("  {mark} {one}: {what}\n"),
            [first, rest @ ..] => format!("  {mark} {first} and {} more: {what}\n", rest.len()),
        };
    }
    text
}

/// Reads every tensor of a folder: packed layers must fit together, and every number be finite. How many are packed.
fn check_tensors(ckpt: &Checkpoint, threads: usize, quiet: bool) -> Result<usize> {
    let total = ckpt.tensors().iter().map(|t| t.bytes()).sum();
    let (control, terminal) = (Control { threads, cancel: CANCEL.clone(), ..Control::default() }, Terminal::new(quiet));
    let run = Run::new(&control, &terminal);
    let _phase = run.phase("verifying", total, Unit::Bytes);
    let check = |t: &TensorMeta| -> Result<usize> {
        run.check()?;
        let packed = matches!(t.dtype, Dtype::Packed(_));
        if packed {
            ckpt.load_packed(t)?;
        } else if let Dtype::Ggml(ty) = t.dtype
            && ty.is_plain()
        {
            check_numbers(ckpt, t)?;
        }
        run.advance(t.bytes());
        Ok(usize::from(packed))
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::Internal(e.to_string()))?;
    pool.install(|| ckpt.tensors().par_iter().map(check).sum::<Result<usize>>())
}

fn check_numbers(ckpt: &Checkpoint, t: &TensorMeta) -> Result<()> {
    let (mut scratch, mut values) = (Vec::new(), vec![0.0; t.elements().min(stream::PIECE)]);
    let mut at = 0;
    while at < t.elements() {
        let part = values.len().min(t.elements() - at);
        ckpt.read_f32(t, at..at + part, &mut scratch, &mut values[..part])?;
        if let Some(bad) = values[..part].iter().position(|v| !v.is_finite()) {
            let what = format!("element {} is {}", at + bad, values[bad]);
            return Err(Error::bad_file(&ckpt.files()[t.file].path, what).tensor(&t.name));
        }
        at += part;
    }
    Ok(())
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
    let SourceModel { ckpt, model, .. } = SourceModel::open(source)?.for_files()?;
    same_configuration(file, &ckpt, &model)?;
    let unseen = imatrix.unseen_experts.unwrap_or_default();
    let importance = imatrix.imatrix.as_deref().map(|file| Importance::open(file, unseen, &model)).transpose()?;
    let recorded = file.gguf().is_some_and(record::used_imatrix);
    if file.gguf().is_some_and(record::used_feedback) {
        let what = "was made with error feedback, which needs the calibration run again";
        return Err(Error::bad_file(&file.files()[0].path, what)
            .hint("convert the source again with the recipe in quantize.recipe, and compare the files"));
    }
    if recorded && importance.is_none() {
        let what = "was made with an importance matrix, without which its tensors cannot be derived";
        return Err(Error::bad_file(&file.files()[0].path, what).hint(Hint::NameImportance));
    }
    let mut stored = Vec::new();
    for (name, shape) in stream::outputs(&model) {
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
    let (control, terminal) = (Control { threads, cancel: CANCEL.clone(), ..Control::default() }, Terminal::new(quiet));
    let run = Run::new(&control, &terminal);
    {
        let _phase = run.phase("verifying", stream::source_bytes(&ckpt, &model), Unit::Bytes);
        let importance = |name: &str| importance.as_ref().and_then(|i| i.of(name));
        let target = stream::Target { types, sink: &compare, done: Vec::new() };
        stream::run(&ckpt, &model, &importance, &[target], &|| Ok(()), run)?;
    }
    let mut differing = compare.differing.into_inner().unwrap_or_default();
    differing.sort();
    differing.dedup();
    let names = differing.into_iter().map(|i| compare.stored[i].name.clone()).collect();
    Ok((names, compare.stored.len()))
}

/// That the file says of the model's sizes what the source's configuration says, but for what its recipe sets.
fn same_configuration(file: &Checkpoint, ckpt: &Checkpoint, model: &Model) -> Result<()> {
    let Some(there) = file.gguf() else { return Ok(()) };
    let ours = gguf_metadata(model, ckpt, 0)?;
    let recipe = record::read(there);
    let is_set = |key: &str| recipe.iter().flat_map(|r| &r.metadata).any(|o| o.key == key);
    let arch = ours.str("general.architecture").unwrap_or_default().to_string() + ".";
    for (key, value) in ours.iter().filter(|(key, _)| key.starts_with(&arch) && !is_set(key)) {
        if there.get(key).is_some_and(|other| other != value) {
            let what = format!("metadata key '{key}' is not what the configuration of the source gives");
            return Err(Error::bad_file(&file.files()[0].path, what)
                .hint("the source's configuration was changed, or the file is of another model"));
        }
    }
    Ok(())
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
