//! Whether an artifact is sound: every block and number of it, other readers' view of it, and its source's.

use super::derive::{Derived, Origin, derive};
use super::promised;
use crate::control::{Control, Report, Run, Unit};
use crate::convert::folder::engines::{self, Engine, Objection};
use crate::convert::{loadable, record, stream};
use crate::error::Hint;
use crate::gguf;
use crate::model::Model;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::gguf::{check_blocks, hash_of_data};
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// What was found of a sound artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many tensors were looked at.
    pub tensors: usize,
    /// Of a checkpoint folder, how many of its tensors are packed layers; `None` for a GGUF file.
    pub packed: Option<usize>,
    /// What its source gives, where one was named.
    pub derived: Option<Derived>,
}

impl Verified {
    /// Whether nothing was found against it: what lies in it is whole, and is what its source gives, where one was named.
    pub fn is_sound(&self) -> bool {
        self.derived.as_ref().is_none_or(|derived| derived.differing.is_empty())
    }
}

/// Reads all of an artifact, a GGUF file with its shards or a checkpoint folder: blocks must be sound, packed layers fit
/// together, numbers be finite. With `origin`, every tensor of a GGUF file is also derived again from its source; tensors
/// that differ are told, and are no error.
///
/// # Errors
/// `BadInput` for what is not sound, or cannot be of that origin; `Request` for the origin of a folder; `Interrupted`.
///
/// ```
/// use quantize::{Control, check::{self, Origin}, convert::{self, Recipe}, model::{Checkpoint, SourceModel}};
///
/// let folder = tempfile::tempdir().unwrap();
/// let source = std::path::PathBuf::from("tests/conformance/llama");
/// let mut plan = convert::plan(&SourceModel::open(&source)?, &Recipe::to(["q8_0"])?)?;
/// plan.place(folder.path())?;
/// let made = convert::run(&plan, &Control::default(), &())?.outputs[0].paths[0].clone();
///
/// let origin = Origin { source, ..Origin::default() };
/// let found = check::verify(&Checkpoint::open(&made)?, Some(&origin), &Control::default(), &())?;
/// assert!(found.derived.unwrap().differing.is_empty());
/// # Ok::<(), quantize::Error>(())
/// ```
pub fn verify(file: &Checkpoint, origin: Option<&Origin>, control: &Control, report: &dyn Report) -> Result<Verified> {
    let run = Run::new(control, report);
    let tensors = file.tensors().len();
    if file.gguf().is_none() {
        if origin.is_some() {
            return Err(Error::request("only the tensors of GGUF files are derived again from their source")
                .hint("convert the source again with the recipe in quantize-manifest.json, and compare the folders"));
        }
        return Ok(Verified { tensors, packed: Some(check_tensors(file, run)?), derived: None });
    }
    let mut hashes = Vec::new();
    for part in file.files() {
        let header = gguf::read_header(&part.path)?;
        let fault = |tensor: &str, what: String| Error::bad_file(&part.path, what).tensor(tensor);
        let (tensors, start) = (&header.tensors, header.data_start);
        hashes.extend(check_blocks(part, tensors, start, run.threads(), &control.cancel, &fault)?);
        #[cfg(feature = "cli")]
        cross_read(&part.path, &header)?;
    }
    let derived = origin.map(|origin| derive(file, origin, run)).transpose()?;
    let noted = file.gguf().and_then(|metadata| metadata.str(record::DATA_HASH));
    // Which tensors differ says more, where that is known.
    let known = derived.as_ref().is_some_and(|derived| !derived.differing.is_empty());
    if !known && noted.is_some_and(|noted| noted != hash_of_data(&hashes)) {
        let what = "its tensors are not what was written: their hash differs from quantize.data.sha256";
        return Err(Error::bad_file(&file.files()[0].path, what)
            .hint("the file was changed or damaged since; download it again, or convert the source again"));
    }
    Ok(Verified { tensors, packed: None, derived })
}

/// What `engine` has against an artifact when it splits every layer over `devices` devices (at least 1), told from names,
/// shapes and configuration.
///
/// # Errors
/// Those of reading the few numbers that must agree.
pub fn objections(engine: Engine, file: &Checkpoint, devices: usize) -> Result<Vec<Objection>> {
    match file.gguf() {
        Some(_) => Ok(about_gguf(engine, file)),
        None => {
            let model = Model::open(file)?;
            let mut found = engines::objections(engine, file, &model, devices.max(1))?;
            found.extend(promised::unfitting(file, &model).map(|what| Objection {
                unknown: true,
                ..Objection::to_all(format!("its tensors are not known to be all that the model needs: {what}"), false)
            }));
            Ok(found)
        }
    }
}

/// What engines say of a sound GGUF file.
fn about_gguf(engine: Engine, file: &Checkpoint) -> Vec<Objection> {
    let (refused, what) = match engine {
        Engine::LlamaCpp => {
            let found = loadable::examine(file);
            let unknown = found.unknown.map(|what| Objection { unknown: true, ..Objection::to_all(what, false) });
            return found.refusals.into_iter().map(|what| Objection::to_all(what, true)).chain(unknown).collect();
        }
        Engine::Vllm => (false, "needs the GGUF plugin, which has no kernels for CPUs"),
        Engine::Transformers => (false, "is turned back into 16 or 32 bits: from_pretrained(DIR, gguf_file=FILE)"),
        Engine::Mlx => (true, "mlx-lm loads folders"),
    };
    let hint = (engine == Engine::Mlx).then(|| Hint::OfOriginal("mlx-4bit".into()));
    vec![Objection { hint, ..Objection::to_all(what, refused) }]
}

/// Reads every tensor of a folder: packed layers must fit together, and every number be finite. How many are packed.
fn check_tensors(ckpt: &Checkpoint, run: Run) -> Result<usize> {
    let total = ckpt.tensors().iter().map(|t| t.bytes()).sum();
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
    let pool = rayon::ThreadPoolBuilder::new().num_threads(run.threads()).build();
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
#[cfg(feature = "cli")]
fn cross_read(path: &Path, header: &gguf::Header) -> Result<()> {
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
