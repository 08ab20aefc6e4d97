//! A LoRA adapter merged into the weights of its base model as they are read, as PEFT's `merge_and_unload` does it:
//! `W + scale * B A` (LoRA, Hu et al. 2021, eq. 3; the scale is alpha / r, with rank stabilisation alpha / sqrt(r),
//! Kalajdzievski 2023), with a magnitude vector the rows of that scaled to its lengths (DoRA, Liu et al. 2024, eq. 5), in
//! `f32`, rounded to the type of the base. Whole tensors in the adapter take the base's place.

use super::decode::decode;
use super::{Checkpoint, Dtype, SourceFile, TensorMeta, safetensors};
use crate::dtype::GgmlType;
use crate::packed::transpose;
use crate::quant::codec;
use crate::{Error, Result, input};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What is added to tensors, by their names.
pub(super) type Deltas = HashMap<String, Delta>;

/// `left` `[rows, rank]` times `right` `[rank, cols]`, scaled.
#[derive(Debug)]
pub(super) struct Delta {
    rows: usize,
    cols: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    scale: f32,
    /// Lengths that the rows have in the end, `[rows]`.
    magnitude: Option<Vec<f32>>,
    /// What is added is rounded to the base's type before, as PEFT does it for embeddings.
    rounded: bool,
}

/// The fields of adapter_config.json that say how to merge.
struct Settings {
    path: PathBuf,
    alpha: f64,
    /// Alphas of modules, by regular expression.
    alphas: Vec<(regex::Regex, f64)>,
    rank_stabilized: bool,
    /// Weights are stored `[in, out]` (GPT-2).
    turned: bool,
}

/// The parts of one module's adapter, by the suffix of their names.
type Parts = BTreeMap<&'static str, TensorMeta>;

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const BIAS: &str = ".lora_B.bias";
const EMBEDDING_A: &str = ".lora_embedding_A";
const EMBEDDING_B: &str = ".lora_embedding_B";
const MAGNITUDE: &str = ".lora_magnitude_vector";
const PARTS: [&str; 6] = [A, B, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE];

/// `base` with the adapter at `path` (a folder, or its safetensors file) merged. The adapter's weights stay in memory.
///
/// # Errors
/// `BadInput` naming the tensor that has no place in the base; `Unsupported` for adapters that PEFT merges otherwise.
pub(super) fn merged(mut base: Checkpoint, path: &Path) -> Result<Checkpoint> {
    let (dir, weights) = match path.is_dir() {
        true => (path, path.join(WEIGHTS)),
        false => (path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")), path.to_path_buf()),
    };
    if base.gguf.is_some() {
        let error = Error::unsupported("an adapter is merged into safetensors, and the base model is a GGUF file");
        return Err(error.hint("give the folder of the checkpoint that the adapter was trained on"));
    }
    if !weights.exists() && dir.join("adapter_model.bin").exists() {
        return Err(super::folder::pytorch(&dir.join("adapter_model.bin")));
    }
    let settings = Settings::read(&dir.join(CONFIG))?;
    let file = SourceFile::open(&weights)?;
    let tensors = safetensors::read(&file, base.files.len())?;
    base.files.push(file);
    base.files.push(SourceFile::open(&settings.path)?);

    let mut modules: BTreeMap<String, Parts> = BTreeMap::new();
    for t in tensors {
        let name = plain_name(&t.name);
        match PARTS.iter().find_map(|part| Some((*part, name.strip_suffix(part)?))) {
            Some((part, module)) => drop(modules.entry(module.to_string()).or_default().insert(part, t)),
            None if name.contains("lora_") || name.contains("token_adapter") => {
                let what = format!("{}: is a kind of adapter that cannot be merged", weights.display());
                return Err(Error::unsupported(what).tensor(&t.name).hint(MERGE_FIRST));
            }
            None => base.replace(&name, t, &weights)?,
        }
    }
    for (module, parts) in modules {
        let fault = |what: &str| Error::bad_file(&weights, what).tensor(&module);
        for (name, delta) in deltas(&base, &module, &parts, &settings)? {
            let target = base.named(&name).ok_or_else(|| {
                let error = fault(&format!("the base model has no tensor {name}"));
                error.hint(OF_ANOTHER)
            })?;
            let t = &base.tensors[target];
            if !matches!(t.dtype, Dtype::Ggml(GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) {
                let what = format!("the base model's {} is stored as {}", t.name, t.dtype);
                return Err(Error::unsupported(what).hint("merge into the checkpoint of 16-bit weights"));
            }
            let fits = match t.shape[..] {
                [n] => delta.rows == 1 && delta.cols == n,
                _ => t.shape == [delta.rows, delta.cols],
            };
            if !fits {
                let what =
                    format!("gives {} x {}, and the base model's {name} is {:?}", delta.rows, delta.cols, t.shape);
                return Err(fault(&what).hint(OF_ANOTHER));
            }
            base.deltas.insert(t.name.clone(), delta);
        }
    }
    if base.deltas.is_empty() {
        return Err(Error::bad_file(&weights, "holds no LoRA matrices"));
    }
    let what = format!("the adapter {} is merged into {} tensors", dir.display(), base.deltas.len());
    Ok(base.remarking(Some(what)))
}

const OF_ANOTHER: &str = "check that the adapter was trained on this model";
const MERGE_FIRST: &str = "merge it with PEFT (merge_and_unload, save_pretrained) and give the result";

/// Without what PEFT puts around a module's name.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.replace(".default.", ".").replace(".modules_to_save.", ".").replace(".base_layer.", ".");
    let name = name.strip_suffix(".default").unwrap_or(&name);
    match name.strip_suffix(".lora_magnitude_vector.weight") {
        Some(module) => format!("{module}{MAGNITUDE}"),
        None => name.to_string(),
    }
}

impl Settings {
    fn read(path: &Path) -> Result<Self> {
        let json = input::read_json(path)?;
        let bad = |key: &str| Error::bad_file(path, format!("'{key}' is {}", json[key]));
        let other = |what: &str| Error::unsupported(format!("{}: {what}", path.display()));
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if !kind.eq_ignore_ascii_case("LORA") {
            return Err(other(&format!("the adapter is of type {kind}")).hint(MERGE_FIRST));
        }
        let set = |key: &&&str| {
            json.get(**key).is_some_and(|v| !matches!(v, Value::Null | Value::Bool(false)) && !is_empty(v))
        };
        let kinds = [
            "use_qalora",
            "layer_replication",
            "target_parameters",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "arrow_config",
        ];
        if let Some(key) = kinds.iter().find(set) {
            return Err(other(&format!("the adapter has '{key}'")).hint(MERGE_FIRST));
        }
        // These begin at another base than the model's own weights.
        let begin = json.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if ["pissa", "olora", "corda", "loftq"].iter().any(|other| begin.starts_with(other)) {
            let error = other(&format!("the adapter was initialized with {begin}, which changes the base"));
            return Err(error.hint("save it with path_initial_model_for_weight_conversion"));
        }
        let alpha = json.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| bad("lora_alpha"))?;
        let pattern = |(key, v): (&String, &Value)| {
            let whole = regex::Regex::new(&format!("^(?:.*\\.)?(?:{key})$")).ok();
            whole.zip(v.as_f64()).ok_or_else(|| bad("alpha_pattern"))
        };
        let alphas = json.get("alpha_pattern").and_then(Value::as_object);
        let alphas = alphas.into_iter().flatten().map(pattern).collect::<Result<_>>()?;
        Ok(Self {
            path: path.to_path_buf(),
            alpha,
            alphas,
            rank_stabilized: flag("use_rslora"),
            turned: flag("fan_in_fan_out"),
        })
    }

    fn scale(&self, module: &str, rank: usize) -> f32 {
        let own = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// What a module's parts add, to which tensors.
fn deltas(base: &Checkpoint, module: &str, parts: &Parts, settings: &Settings) -> Result<Vec<(String, Delta)>> {
    let file = |t: &TensorMeta| base.files[t.file].path.clone();
    let read = |t: &TensorMeta| {
        let mut values = vec![0.0; t.elements()];
        base.read_f32(t, 0..values.len(), &mut Vec::new(), &mut values)?;
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(Error::bad_file(file(t), "holds values that are not finite").tensor(&t.name)),
        }
    };
    let embedding = parts.contains_key(EMBEDDING_A);
    let [a, b] = if embedding { [EMBEDDING_A, EMBEDDING_B] } else { [A, B] }.map(|part| parts.get(part));
    let (Some(a), Some(b)) = (a, b) else {
        let what = "lacks one of its matrices, A or B";
        return Err(Error::bad_file(parts.values().next().map(file).unwrap_or_default(), what).tensor(module));
    };
    let ([rank, input], [output, same]) = (&a.shape[..], &b.shape[..]) else {
        return Err(Error::unsupported("adapters of convolutions are not merged").tensor(&a.name).hint(MERGE_FIRST));
    };
    if rank != same || *rank == 0 {
        let what = format!("A is {:?} and B is {:?}", a.shape, b.shape);
        return Err(Error::bad_file(file(a), what).tensor(module));
    }
    let scale = settings.scale(module, *rank);
    let turned = embedding || settings.turned;
    let (left, right) = match turned {
        true => (transpose(&read(a)?, *rank, *input), transpose(&read(b)?, *output, *rank)),
        false => (read(b)?, read(a)?),
    };
    let (rows, cols) = if turned { (*input, *output) } else { (*output, *input) };
    let magnitude = match parts.get(MAGNITUDE) {
        Some(_) if turned => {
            let error = Error::unsupported("a magnitude vector of a matrix stored [in, out] is not merged");
            return Err(error.tensor(module).hint(MERGE_FIRST));
        }
        Some(t) if t.elements() == rows => Some(read(t)?),
        Some(t) => {
            let what = format!("has {} magnitudes for {rows} rows", t.elements());
            return Err(Error::bad_file(file(t), what).tensor(&t.name));
        }
        None => None,
    };
    let mut found =
        vec![(format!("{module}.weight"), Delta { rows, cols, left, right, scale, magnitude, rounded: embedding })];
    if let Some(t) = parts.get(BIAS) {
        let delta = Delta {
            rows: 1,
            cols: t.elements(),
            left: vec![1.0],
            right: read(t)?,
            scale,
            magnitude: None,
            rounded: false,
        };
        found.push((format!("{module}.bias"), delta));
    }
    Ok(found)
}

impl Checkpoint {
    /// The tensor that a PEFT name means: transformers' modules are named otherwise than some checkpoints.
    fn named(&self, name: &str) -> Option<usize> {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let text = inner.strip_prefix("language_model.").unwrap_or(inner);
        let forms = [
            name.to_string(),
            inner.to_string(),
            format!("model.{name}"),
            format!("language_model.model.{text}"),
            format!("model.language_model.{text}"),
            format!("model.{text}"),
        ];
        if let Some(found) = forms.iter().find_map(|form| self.find(form)) {
            return Some(found);
        }
        let end = format!(".{name}");
        let mut ends = self.tensors.iter().enumerate().filter(|(_, t)| t.name.ends_with(&end)).map(|(i, _)| i);
        ends.next().filter(|_| ends.next().is_none())
    }

    /// Puts a whole tensor of the adapter in the place of the base's.
    fn replace(&mut self, name: &str, t: TensorMeta, weights: &Path) -> Result<()> {
        let place = self.named(name).ok_or_else(|| {
            let error = Error::bad_file(weights, "the base model has no such tensor").tensor(&t.name);
            error.hint(OF_ANOTHER)
        })?;
        let there = &mut self.tensors[place];
        if there.shape != t.shape {
            let what = format!("is {:?}, and the base model's {} is {:?}", t.shape, there.name, there.shape);
            let error = Error::bad_file(weights, what).tensor(&t.name);
            return Err(error.hint("a model with other rows must be merged and saved by PEFT"));
        }
        *there = TensorMeta { name: std::mem::take(&mut there.name), ..t };
        Ok(())
    }
}

impl Delta {
    /// The stored bytes of `t` from `offset` on, with what is added.
    pub fn read(&self, t: &TensorMeta, file: &SourceFile, offset: u64, out: &mut [u8]) -> Result<()> {
        let internal =
            || Error::Internal(format!("{} bytes at {offset} of '{}' are not whole values", out.len(), t.name));
        let Dtype::Ggml(ty) = t.dtype else { return Err(internal()) };
        let width = if ty == GgmlType::F32 { 4 } else { 2 };
        if !offset.is_multiple_of(width as u64) || !out.len().is_multiple_of(width) {
            return Err(internal());
        }
        let quantize = codec(ty).and_then(|codec| codec.quantize).ok_or_else(internal)?;
        let fault = |e: Error| e.tensor(t.name.as_str());
        file.read_at(t.range.start + offset, out).map_err(fault)?;
        let mut at = (offset / width as u64) as usize;
        let (mut bytes, mut row, mut added) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = out;
        while !rest.is_empty() {
            let (r, from) = (at / self.cols, at % self.cols);
            let n = (self.cols - from).min(rest.len() / width);
            let (now, later) = rest.split_at_mut(n * width);
            // Rows have to be seen whole where their length counts.
            let first = if self.magnitude.is_some() { 0 } else { from };
            if self.magnitude.is_some() && n < self.cols {
                bytes.resize(self.cols * width, 0);
                file.read_at(t.range.start + (r * self.cols * width) as u64, &mut bytes).map_err(fault)?;
            } else {
                bytes.clear();
                bytes.extend_from_slice(now);
            }
            row.resize(bytes.len() / width, 0.0);
            decode(ty, &bytes, &mut row)?;
            self.product(r, first, row.len(), &mut added);
            if self.rounded {
                bytes.resize(added.len() * width, 0);
                quantize(&added, None, &mut bytes);
                decode(ty, &bytes, &mut added)?;
            }
            self.add(r, &mut row, &added);
            quantize(&row[from - first..][..n], None, now);
            at += n;
            rest = later;
        }
        Ok(())
    }

    /// What is added to `n` values of row `r` from column `from` on.
    fn product(&self, r: usize, from: usize, n: usize, added: &mut Vec<f32>) {
        let rank = self.right.len() / self.cols;
        added.clear();
        added.resize(n, 0.0);
        for (k, factor) in self.left[r * rank..(r + 1) * rank].iter().enumerate() {
            let right = &self.right[k * self.cols + from..][..n];
            added.iter_mut().zip(right).for_each(|(sum, x)| *sum += factor * x);
        }
        added.iter_mut().for_each(|sum| *sum *= self.scale);
    }

    /// Merges it into what is stored of row `r`, or all of it where the row has a length.
    fn add(&self, r: usize, row: &mut [f32], added: &[f32]) {
        row.iter_mut().zip(added).for_each(|(w, x)| *w += x);
        if let Some(magnitude) = &self.magnitude {
            let length = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>().sqrt() as f32;
            let factor = magnitude[r] / length;
            row.iter_mut().for_each(|w| *w *= factor);
        }
    }
}
