//! Whether a GGUF file is really what its source gives: a conversion is run over the source again, and its bytes are
//! compared with those in the file instead of being written.

use crate::calibration::imatrix::UnseenExperts;
use crate::control::{Run, Unit};
use crate::convert::{Importance, record, stream};
use crate::error::Hint;
use crate::model::{Model, SourceModel, gguf_metadata};
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::writer::Sink;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Mutex;

/// What a GGUF file is said to be made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The checkpoint.
    pub source: PathBuf,
    /// The LoRA adapter that was merged into it.
    pub adapter: Option<PathBuf>,
    /// The importance matrix, which a file that was made with one cannot be derived without.
    pub imatrix: Option<PathBuf>,
    /// What experts that saw no token got.
    pub unseen_experts: UnseenExperts,
}

/// A file's tensors beside those that its source gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// Tensors that were compared: all of the file.
    pub compared: usize,
    /// Names of those with other bytes.
    pub differing: Vec<String>,
}

/// Compares what a run over the source would write with what the file holds.
///
/// # Errors
/// `BadInput` for a file that has other tensors than the source gives, or other sizes in its metadata, or that cannot be
/// derived from what was named; `Interrupted`.
pub fn derive(file: &Checkpoint, origin: &Origin, run: Run) -> Result<Derived> {
    let recipe = file.gguf().and_then(record::read).unwrap_or_default();
    let whole = match &origin.adapter {
        Some(adapter) if file.is_adapter() => SourceModel::open_adapter(&origin.source, adapter)?,
        adapter => SourceModel::open_merged(&origin.source, adapter.as_deref())?,
    };
    let SourceModel { ckpt, model, .. } = whole.for_files(recipe.part, recipe.mtp)?;
    same_configuration(file, &ckpt, &model)?;
    let open = |file| Importance::open(file, origin.unseen_experts, &model);
    let importance = origin.imatrix.as_deref().map(open).transpose()?;
    let fault = |what: &str| Error::bad_file(&file.files()[0].path, what);
    if origin.imatrix.is_none() && file.gguf().is_some_and(record::needs_the_run) {
        let differing = super::again::differing(file, &whole, run)?;
        return Ok(Derived { compared: file.tensors().len(), differing });
    }
    if file.gguf().is_some_and(record::used_imatrix) && importance.is_none() {
        return Err(fault("was made with an importance matrix, without which its tensors cannot be derived")
            .hint(Hint::NameImportance));
    }
    let mut stored = Vec::new();
    for (name, shape) in stream::outputs(&model) {
        let found = file.find(name).map(|i| &file.tensors()[i]);
        let meta = found.ok_or_else(|| fault("the file lacks it").tensor(name))?;
        if meta.shape != shape {
            let what = format!("the file has the shape {:?}, the source gives {shape:?}", meta.shape);
            return Err(fault(&what).tensor(name));
        }
        stored.push(meta.clone());
    }
    if let Some(extra) = file.tensors().iter().find(|t| !stored.iter().any(|s| s.name == t.name)) {
        return Err(fault("the source has no such tensor").tensor(&extra.name));
    }
    let ty = |t: &TensorMeta| match t.dtype {
        Dtype::Ggml(ty) => ty,
        _ => GgmlType::F32, // a GGUF file holds ggml types only
    };
    let types: Vec<GgmlType> = stored.iter().map(ty).collect();
    let compare = Compare { file, stored, differing: Mutex::default() };
    {
        let _phase = run.phase("verifying", stream::source_bytes(&ckpt, &model), Unit::Bytes);
        let importance = |name: &str| importance.as_ref().and_then(|i| i.of(name));
        let target = stream::Target { types, sink: &compare, done: Vec::new() };
        stream::run(&ckpt, &model, &importance, &[target], &|| Ok(()), run)?;
    }
    let mut differing = compare.differing.into_inner().unwrap_or_default();
    differing.sort();
    differing.dedup();
    let differing = differing.into_iter().map(|i| compare.stored[i].name.clone()).collect();
    Ok(Derived { compared: compare.stored.len(), differing })
}

/// That the file says of the model's sizes what the source's configuration says, but for what its recipe sets.
pub fn same_configuration(file: &Checkpoint, ckpt: &Checkpoint, model: &Model) -> Result<()> {
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
