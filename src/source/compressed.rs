//! Checkpoints whose linear layers are already packed (GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, MLX): the tensors
//! of each packed module appear as one, `{module}.weight` of shape `[out, in]`, which decodes like any other. What the
//! bytes mean is told by `packed`; here is only which tensors there are and how they are read.

use super::{Checkpoint, Dtype, TensorMeta, mxfp4};
use crate::kernel::RowSource;
use crate::packed::engines::MlxNames;
use crate::packed::{Loader, Packed, Scheme, StoredPiece};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Larger files are no configuration.
const MAX_CONFIG: u64 = 64 << 20;
/// A tensor that only tells a shape is a few numbers, or a line of JSON.
const MAX_SHAPE: u64 = 64 << 10;
/// Modules kept between reads: enough for the threads of a converter that work through one tensor, or through
/// neighbouring experts.
const KEPT: usize = 8;

/// What `config.json` says of quantization.
#[derive(Debug, Default)]
pub(super) enum Quantization {
    #[default]
    None,
    Packed(Compressed),
    /// Experts in MXFP4, by the name under which they appear.
    Mxfp4(HashMap<String, mxfp4::Pair>),
    /// There is one, but not one that can be read, for this reason.
    Unknown(String),
}

#[derive(Debug)]
pub(super) struct Compressed {
    scheme: Scheme,
    /// The packed modules, by the name under which they appear.
    modules: HashMap<String, Module>,
    recent: Mutex<VecDeque<(String, Slot)>>,
}

/// Empty until the first reader has read the module.
type Slot = Arc<Mutex<Option<Arc<Packed>>>>;

#[derive(Debug)]
struct Module {
    name: String,
    /// Suffix and place of each tensor.
    pieces: Vec<(String, TensorMeta)>,
}

/// The checkpoint with its packed modules as single tensors, if `config.json` says that it has some.
pub(super) fn present(plain: Checkpoint) -> Result<Checkpoint> {
    let path = plain.dir.join("config.json");
    // An absent or damaged configuration is for the reader of the model to report.
    if !std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_CONFIG) {
        return Ok(plain);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let Ok(mut config) = crate::input::json(&path, &text) else { return Ok(plain) };
    if config.get("quantization_config").is_none_or(|q| q.is_null()) && config.get("quantization").is_none() {
        if plain.dir.join("hf_quant_config.json").is_file() {
            let why = "by NVIDIA ModelOpt: hf_quant_config.json".to_string();
            return Ok(Checkpoint { quantization: Quantization::Unknown(why), ..plain });
        }
        // Where AutoGPTQ keeps it.
        let own = std::fs::read(plain.dir.join("quantize_config.json")).unwrap_or_default();
        if let Ok(serde_json::Value::Object(mut own)) = serde_json::from_slice(&own)
            && plain.tensors.iter().any(|t| t.name.ends_with(".qweight"))
        {
            own.entry("quant_method").or_insert_with(|| "gptq".into());
            config["quantization_config"] = own.into();
        }
    }
    let method = config.get("quantization_config").and_then(|q| q.get("quant_method")?.as_str());
    if method == Some("mxfp4") {
        let (tensors, pairs) = mxfp4::joined(&plain.tensors);
        if !pairs.is_empty() {
            let joined = Checkpoint::new(plain.dir, plain.files, tensors, None)?.remarking(plain.remarks);
            return Ok(Checkpoint { quantization: Quantization::Mxfp4(pairs), ..joined });
        }
    }
    match Scheme::of(&config) {
        Ok(None) => Ok(plain),
        Ok(Some(scheme)) => {
            let names = (scheme.loader() == Loader::Mlx).then(|| MlxNames::or_usual(&config));
            join(plain, scheme, names)
        }
        Err(why) => Ok(Checkpoint { quantization: Quantization::Unknown(why), ..plain }),
    }
}

fn is_float(t: &TensorMeta) -> bool {
    use crate::dtype::GgmlType::{BF16, F16, F32, F64};
    matches!(t.dtype, Dtype::Ggml(F32 | F16 | BF16 | F64))
}

/// One matrix of a stack of so many.
fn slice(stack: &TensorMeta, index: usize) -> TensorMeta {
    let len = stack.bytes() / stack.shape[0] as u64;
    let start = stack.range.start + index as u64 * len;
    TensorMeta { shape: stack.shape[1..].to_vec(), range: start..start + len, ..stack.clone() }
}

/// How many matrices lie in each tensor of a module; `None`: they are no stacks.
fn stacked(pieces: &[(&str, &TensorMeta)]) -> Option<usize> {
    let count = *pieces.first()?.1.shape.first()?;
    let alike = pieces.iter().all(|(_, t)| t.shape.len() == 3 && t.shape[0] == count);
    (alike && count > 0).then_some(count)
}

fn join(plain: Checkpoint, scheme: Scheme, names: Option<MlxNames>) -> Result<Checkpoint> {
    let mut by_module: BTreeMap<&str, Vec<(&str, &TensorMeta)>> = BTreeMap::new();
    for t in &plain.tensors {
        if let Some((module, suffix)) = scheme.split(&t.name) {
            by_module.entry(module).or_default().push((suffix, t));
        }
    }
    // What is shown in place of a tensor, where that is not the tensor.
    let mut fate: HashMap<&str, Vec<TensorMeta>> = HashMap::new();
    let mut modules = HashMap::new();
    for (name, pieces) in by_module {
        let suffixes: Vec<&str> = pieces.iter().map(|(suffix, _)| *suffix).collect();
        let single = |expert| stacked(&pieces).and_then(|_| names?.single(name, expert));
        // The experts of a stack appear one by one, as those of other checkpoints lie.
        let experts = single(0).and_then(|_| stacked(&pieces));
        let Some(main) = scheme.main(&suffixes) else {
            if let (Some(count), [(_, t)]) = (experts, pieces.as_slice()) {
                let own = |e| Some(TensorMeta { name: format!("{}.weight", single(e)?), ..slice(t, e) });
                fate.insert(&t.name, (0..count).filter_map(own).collect());
            }
            continue;
        };
        pieces.iter().for_each(|(_, t)| drop(fate.insert(&t.name, Vec::new())));
        for e in 0..experts.unwrap_or(1) {
            let part = |t: &TensorMeta| if experts.is_some() { slice(t, e) } else { t.clone() };
            let own: Vec<(&str, TensorMeta)> = pieces.iter().map(|(suffix, t)| (*suffix, part(t))).collect();
            let borrowed: Vec<(&str, &TensorMeta)> = own.iter().map(|(suffix, t)| (*suffix, t)).collect();
            let (rows, cols) = module_shape(&plain, &scheme, name, &borrowed)?;
            let bytes: u64 = own.iter().map(|(_, t)| t.bytes()).sum();
            let shown = single(e).unwrap_or_else(|| names.map_or_else(|| name.into(), |names| names.original(name)));
            let (whole, dtype) = (format!("{shown}.weight"), Dtype::Packed(scheme.name()));
            let place = pieces.iter().zip(&own).find(|((suffix, _), _)| *suffix == main);
            if let Some(((_, stored), (_, t))) = place {
                let range = t.range.start..t.range.start.saturating_add(bytes);
                let shape = vec![rows, cols];
                let t = TensorMeta { name: whole.clone(), dtype, shape, file: t.file, range };
                fate.entry(&stored.name).or_default().push(t);
            }
            let pieces = own.into_iter().map(|(suffix, t)| (suffix.to_string(), t)).collect();
            modules.insert(whole, Module { name: name.to_string(), pieces });
        }
    }
    // Nothing is packed: quantized as they are loaded, in the cache of keys and values alone, or made plain since. Tools that
    // search for codes leave no such folders.
    let plain_weights = plain.tensors.iter().filter(|t| t.shape.len() > 1).all(is_float);
    if modules.is_empty() && plain_weights && !["gptq", "awq"].contains(&scheme.name()) {
        let named = scheme.name();
        let remark =
            format!("config.json names a quantization ({named}), but all weights are plain; they are read as such");
        return Ok(Checkpoint { quantization: Quantization::None, ..plain }.remarking(Some(remark)));
    }
    if modules.is_empty() {
        let why = format!("{}, but none of its tensors are here", scheme.name());
        return Ok(Checkpoint { quantization: Quantization::Unknown(why), ..plain });
    }
    let mut tensors = Vec::with_capacity(plain.tensors.len());
    for t in &plain.tensors {
        match fate.remove(t.name.as_str()) {
            Some(shown) => tensors.extend(shown),
            None if scheme.is_for_the_engine(&t.name) => {}
            None => tensors.push(t.clone()),
        }
    }
    let packed = Compressed { scheme, modules, recent: Mutex::default() };
    let mut joined = Checkpoint::new(plain.dir, plain.files, tensors, None)?.remarking(plain.remarks);
    joined.quantization = Quantization::Packed(packed);
    Ok(joined)
}

fn module_shape(
    ckpt: &Checkpoint,
    scheme: &Scheme,
    name: &str,
    pieces: &[(&str, &TensorMeta)],
) -> Result<(usize, usize)> {
    let mut stored = Vec::with_capacity(pieces.len());
    for (suffix, t) in pieces {
        let mut data = Vec::new();
        if scheme.tells_shape(suffix) && t.bytes() <= MAX_SHAPE {
            data.resize(t.bytes() as usize, 0);
            ckpt.read(t, 0, &mut data)?;
        }
        stored.push(StoredPiece { suffix: suffix.to_string(), dtype: t.dtype, shape: t.shape.clone(), data });
    }
    scheme.shape(name, &stored).map_err(|why| fault(ckpt, name, pieces.first().map(|(_, t)| *t), why))
}

/// What is wrong with a packed module, and where.
fn fault(ckpt: &Checkpoint, name: &str, t: Option<&TensorMeta>, why: String) -> Error {
    let file = t.and_then(|t| ckpt.files.get(t.file)).map_or(&ckpt.dir, |f| &f.path);
    Error::bad_file(file, why).tensor(name).hint("check that config.json belongs to these weights")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checkpoint {
    /// How the linear layers are packed, if they are.
    pub fn scheme(&self) -> Option<&Scheme> {
        match &self.quantization {
            Quantization::Packed(packed) => Some(&packed.scheme),
            _ => None,
        }
    }

    /// Whether any weights are quantized, in a way that is known or not.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.quantization, Quantization::None)
    }

    /// Why the quantization that `config.json` names cannot be read.
    pub fn unknown_quantization(&self) -> Option<&str> {
        match &self.quantization {
            Quantization::Unknown(why) => Some(why),
            _ => None,
        }
    }

    /// The tensors of a packed module: what follows the module's name, and each as it is stored. Empty for any other tensor.
    pub(crate) fn packed_pieces(&self, t: &TensorMeta) -> Vec<(&str, &TensorMeta)> {
        let Quantization::Packed(packed) = &self.quantization else { return Vec::new() };
        let pieces = packed.modules.get(&t.name).map_or(&[][..], |module| &module.pieces);
        pieces.iter().map(|(suffix, t)| (suffix.as_str(), t)).collect()
    }

    /// Reads a packed module (a tensor of type [`Dtype::Packed`]) as it is. Any number of threads may read at once.
    ///
    /// Errors: `BadInput` when its tensors do not fit together; those of reading.
    pub fn load_packed(&self, t: &TensorMeta) -> Result<Packed> {
        let Quantization::Packed(packed) = &self.quantization else { return Err(not_packed(t)) };
        let module = packed.modules.get(&t.name).ok_or_else(|| not_packed(t))?;
        let mut pieces = Vec::with_capacity(module.pieces.len());
        for (suffix, t) in &module.pieces {
            let mut data = vec![0; t.bytes() as usize];
            self.read(t, 0, &mut data)?;
            pieces.push(StoredPiece { suffix: suffix.clone(), dtype: t.dtype, shape: t.shape.clone(), data });
        }
        packed.scheme.unpack(&module.name, pieces).map_err(|why| fault(self, &module.name, Some(t), why))
    }

    /// Decodes elements of a packed module, which must be whole rows. Recently read modules are kept.
    pub(super) fn decode_packed(&self, t: &TensorMeta, elements: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = t.shape.last().copied().unwrap_or(0);
        let whole = cols > 0 && elements.start.is_multiple_of(cols) && elements.end.is_multiple_of(cols);
        let Quantization::Packed(packed) = &self.quantization else { return Err(not_packed(t)) };
        if !whole || elements.end > t.elements() || out.len() != elements.len() {
            return Err(Error::Internal(format!("elements {elements:?} of '{}' are not whole rows", t.name)));
        }
        let slot = packed.slot(&t.name);
        let mut held = lock(&slot);
        let module = match &*held {
            Some(module) => Arc::clone(module),
            None => Arc::clone(held.insert(Arc::new(self.load_packed(t)?))),
        };
        drop(held);
        module.decode(elements.start / cols..elements.end / cols, out);
        Ok(())
    }
}

fn not_packed(t: &TensorMeta) -> Error {
    Error::Internal(format!("tensor '{}' is not a packed module", t.name))
}

impl Compressed {
    /// The place of a module among the recent ones; the oldest makes room.
    fn slot(&self, name: &str) -> Slot {
        let mut recent = lock(&self.recent);
        if let Some(at) = recent.iter().position(|(held, _)| held == name)
            && let Some(entry) = recent.remove(at)
        {
            let slot = Arc::clone(&entry.1);
            recent.push_back(entry);
            return slot;
        }
        if recent.len() >= KEPT {
            recent.pop_front();
        }
        let slot = Slot::default();
        recent.push_back((name.to_string(), Arc::clone(&slot)));
        slot
    }
}
