//! Whether an artifact is sound: every block and number of it, other readers' view of it, and its source's.

use super::derive::{Derived, Origin, derive};
use crate::control::{Control, Report, Run, Unit};
use crate::convert::folder::engines::{self, Engine, Objection};
use crate::convert::{loadable, record, stream};
use crate::error::Hint;
use crate::gguf;
use crate::model::{Model, Mtp, Part, SourceModel};
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::gguf::{check_blocks, hash_of_data};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
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
            found.extend(unfitting(file, &model, engine).map(|what| Objection {
                unknown: true,
                ..Objection::to_all(format!("its tensors are not known to be all that the model needs: {what}"), false)
            }));
            Ok(found)
        }
    }
}

/// What keeps a folder of no known family from being what its blueprint makes of its configuration, or that there is none.
fn unfitting(file: &Checkpoint, model: &Model, engine: Engine) -> Option<String> {
    if model.known().is_ok() {
        return None;
    }
    let source = match SourceModel::open(file.dir()).and_then(|source| source.for_files(Part::Text, Mtp::Keep)) {
        Ok(source) => source,
        Err(e) => return Some(said(&e)),
    };
    let Some(json) = model.hf_config.clone() else { return Some("there is no config.json".into()) };
    if let Some(word) = unheard(&json) {
        return Some(format!("config.json says '{word}'"));
    }
    let stacked = |t: &TensorMeta| t.name.contains("experts.gate_up_proj");
    if engine == Engine::Mlx && file.tensors().iter().any(stacked) {
        return Some("experts are stacked, which it may know one by one alone".into());
    }
    let promised = match Model::imagined(json, Mtp::Keep) {
        Ok((_, promised)) => promised,
        Err(e) => return Some(said(&e)),
    };
    let shapes = |model: &Model| -> BTreeMap<String, Vec<usize>> {
        let stored = model.tensors.iter().map(|t| (t.name.clone(), t.shape.clone()));
        stored.chain(model.generated.iter().map(|g| (g.name.clone(), g.shape.clone()))).collect()
    };
    let (promised, found) = (shapes(&promised), shapes(&source.model));
    let differs = |(name, shape): (&String, &Vec<usize>)| match found.get(name) {
        None => Some(format!("{name} is missing")),
        Some(other) if other != shape => Some(format!("{name} is {other:?}, and config.json promises {shape:?}")),
        Some(_) => None,
    };
    let more = || found.keys().find(|name| !promised.contains_key(*name)).map(|n| format!("{n} is not promised"));
    promised.iter().find_map(differs).or_else(more)
}

/// What an error says, without its hint.
fn said(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// An activation or a kind of rotary embedding that no engine has.
fn unheard(config: &Value) -> Option<String> {
    const ACTIVATIONS: &str = "silu swish swiglu swigluoai situ gelu gelu_new gelu_pytorch_tanh gelu_python gelu_fast gelu_10 \
        gelu_accurate quick_gelu laplace leaky_relu linear mish relu relu2 relu6 sigmoid tanh prelu xielu";
    const ROPES: &str = "default linear dynamic yarn longrope su llama3 mrope proportional axial original ntk";
    let parts = [Some(config), config.get("text_config")].into_iter().flatten();
    parts.into_iter().find_map(|part| {
        let word = |value: Option<&Value>, known: &str| -> Option<String> {
            let word = value?.as_str()?;
            (!known.split_whitespace().any(|k| k == word)).then(|| word.to_string())
        };
        let acts = ["hidden_act", "hidden_activation", "activation_function"];
        let ropes = ["rope_parameters", "rope_scaling"].into_iter().filter_map(|key| part.get(key));
        let act = acts.iter().find_map(|key| word(part.get(*key), ACTIVATIONS));
        let mut kinds = ropes.map(|rope| rope.get("rope_type").or(rope.get("type")));
        act.or_else(|| kinds.find_map(|kind| word(kind, ROPES)))
    })
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
