//! From the tensors of a checkpoint to the tensors of a GGUF file: every source tensor is mapped, or dropped with a
//! reason, and everything the configuration promises is there in the right shape. Rows are read through the mapping in
//! GGUF's order. It does not quantize and writes nothing.

use super::config::{Config, RopeScaling};
use super::families::{Family, Role, Row, Source, When};
use super::hf_config::family_of;
use super::opaque::{self, Opaque};
use crate::gguf::Metadata;
use crate::quant::GgmlType;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A checkpoint whose tensors are understood.
#[derive(Debug)]
pub struct Model {
    pub config: Config,
    /// Or why the meaning of the tensors is not known.
    pub family: Result<&'static Family, Opaque>,
    /// In the order in which llama.cpp's converter writes them; in file order for a GGUF source.
    pub tensors: Vec<MappedTensor>,
    /// Tensors that the checkpoint does not hold (or, in a GGUF source, holds beside the weights): rotary factors.
    pub generated: Vec<Generated>,
    /// Source tensors that are left out, with the reason.
    pub dropped: Vec<(String, String)>,
    /// The parsed `config.json`; `None` for a GGUF source.
    pub hf_config: Option<serde_json::Value>,
}

/// A small tensor that follows from the configuration. Goes to the file as F32, before all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// How GGUF rows follow from source rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    Same,
    /// Per head, the two halves of the rotary dimensions are interleaved.
    Rope {
        heads: usize,
    },
}

/// A tensor of the GGUF file and where its weights come from.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedTensor {
    /// GGUF name.
    pub name: String,
    /// `[out, in]`, `[experts, out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// Source tensors by index; several when experts lie one by one.
    pub parts: Vec<usize>,
    /// The part is `[experts, 2 * out, in]`, and this is the first (0) or second (1) half of every expert.
    pub half: Option<usize>,
    pub rows: RowOrder,
    /// Added to every weight.
    pub add: f32,
    pub role: Role,
    pub layer: Option<usize>,
}

/// Every tensor of a model with this configuration: GGUF name, shape, role, layer. Embeddings and output first, then
/// layer by layer.
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>, Role, Option<usize>)> {
    let Some(family) = super::families::by_gguf(&config.arch) else { return Vec::new() };
    expected(family, config)
        .map(|(row, layer)| (named(row.gguf, layer, 0), shape_of(row, config), row.role, layer))
        .collect()
}

fn expected<'a>(
    family: &'static Family,
    config: &'a Config,
) -> impl Iterator<Item = (&'static Row, Option<usize>)> + 'a {
    let rows = move |per_layer: bool| family.rows().filter(move |r| r.per_layer() == per_layer && r.when.holds(config));
    let layers = (0..config.layers).flat_map(move |layer| rows(true).map(move |row| (row, Some(layer))));
    rows(false).map(|row| (row, None)).chain(layers)
}

pub(super) fn named(pattern: &str, layer: Option<usize>, expert: usize) -> String {
    let name = match layer {
        Some(layer) => pattern.replace("{layer}", &layer.to_string()),
        None => pattern.to_string(),
    };
    if name.contains("{expert}") { name.replace("{expert}", &expert.to_string()) } else { name }
}

fn shape_of(row: &Row, config: &Config) -> Vec<usize> {
    row.shape.iter().map(|d| d.of(config)).collect()
}

impl Model {
    /// Reads `config.json` beside the weights, or the metadata of a GGUF source, and maps every tensor.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a family, variant or element type that is not known; [`Error::BadInput`] for a
    /// tensor that is missing, unexpected or of another shape.
    pub fn open(ckpt: &Checkpoint) -> Result<Model> {
        match ckpt.gguf() {
            Some(_) => open_gguf(ckpt),
            None => open_hf(ckpt),
        }
    }

    /// The model that a `config.json` promises, and the checkpoint it would come in: no weights, every tensor under the
    /// first of its names, in the type that the configuration names (BF16 where it names none).
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn imagined(json: serde_json::Value) -> Result<(Checkpoint, Model)> {
        let config = Config::from_hf(&json)?;
        let (family, _) = family_of(&json)?;
        let text = json.get("text_config").unwrap_or(&json);
        let named_type = ["torch_dtype", "dtype"].iter().find_map(|key| text.get(key).or(json.get(key))?.as_str());
        let ty = match named_type {
            Some("float16") => GgmlType::F16,
            Some("float32") => GgmlType::F32,
            _ => GgmlType::BF16,
        };
        let experts = config.experts.as_ref().map_or(0, |e| e.count);
        let mut tensors: Vec<(String, GgmlType, Vec<usize>)> = Vec::new();
        for (row, layer) in expected(family, &config) {
            let shape = shape_of(row, &config);
            match row.sources.first() {
                Some(Source::PerExpert(p)) => {
                    tensors.extend((0..experts).map(|e| (named(p, layer, e), ty, shape[1..].to_vec())));
                }
                Some(Source::One(p)) => tensors.push((named(p, layer, 0), ty, shape)),
                Some(Source::Half(p, 0)) => {
                    tensors.push((named(p, layer, 0), ty, vec![shape[0], 2 * shape[1], shape[2]]))
                }
                Some(Source::Half(..)) | None => {}
            }
        }
        let ckpt = Checkpoint::imagined(tensors)?;
        let model = of_config(&ckpt, config, json)?;
        Ok((ckpt, model))
    }

    /// The family, where the meaning of the tensors is needed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason when it is not known, and what works without it.
    pub fn known(&self) -> Result<&'static Family> {
        self.family.clone().map_err(|opaque| opaque.error())
    }

    /// The mapped tensor of a role in a layer (`None` for embeddings, output norm and output).
    pub fn find(&self, role: Role, layer: Option<usize>) -> Option<&MappedTensor> {
        self.tensors.iter().find(|t| t.role == role && t.layer == layer)
    }
}

/// Reads and parses a JSON file of bounded size.
pub(super) fn read_json(path: &Path) -> Result<serde_json::Value> {
    const LIMIT: u64 = 64 << 20;
    let len = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if len > LIMIT {
        return Err(Error::bad_file(path, format!("{len} bytes; expected at most {LIMIT}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(path, format!("not valid JSON: {e}")))
}

/// Adds the file to an error that a parser below raised without knowing it.
fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::BadInput(mut finding) if finding.file.is_none() => {
            finding.file = Some(path.to_path_buf());
            finding.what = finding.what.trim_start_matches("config.json: ").to_string();
            Error::BadInput(finding)
        }
        other => other,
    }
}

fn file_of(ckpt: &Checkpoint, tensor: Option<&TensorMeta>) -> PathBuf {
    let file = ckpt.files().get(tensor.map_or(0, |t| t.file));
    file.map_or_else(|| ckpt.dir().to_path_buf(), |f| f.path.clone())
}

fn open_hf(ckpt: &Checkpoint) -> Result<Model> {
    let path = ckpt.dir().join("config.json");
    if !path.is_file() {
        let what = "config.json is missing, so the tensors have no meaning";
        return Err(Error::bad_file(ckpt.dir(), what).hint("copy it from the model's page beside the weights"));
    }
    let json = read_json(&path)?;
    if let Some(why) = ckpt.unknown_quantization() {
        let what = format!("{}: the checkpoint is already quantized ({why}); start from the original", path.display());
        return Err(Error::Unsupported(what));
    }
    let config = Config::from_hf(&json).map_err(|e| in_file(e, &path))?;
    of_config(ckpt, config, json)
}

fn of_config(ckpt: &Checkpoint, config: Config, json: serde_json::Value) -> Result<Model> {
    let (family, _) = family_of(&json)?;
    let (tensors, dropped) = map_hf(ckpt, family, &config)?;
    let generated = generated(&config);
    Ok(Model { config, family: Ok(family), tensors, generated, dropped, hf_config: Some(json) })
}

/// Source tensors by the name that the family tables use.
struct Names<'a> {
    ckpt: &'a Checkpoint,
    by_name: HashMap<String, usize>,
}

impl Names<'_> {
    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The parts of one GGUF tensor, in whichever spelling the checkpoint has; `Err` holds the name that is missing.
    fn parts(&self, row: &Row, layer: Option<usize>, experts: usize) -> Result<(Source, Vec<usize>), String> {
        let mut first_missing = None;
        for source in row.sources {
            let names: Vec<String> = match *source {
                Source::One(p) | Source::Half(p, _) => vec![named(p, layer, 0)],
                Source::PerExpert(p) => (0..experts).map(|e| named(p, layer, e)).collect(),
            };
            let found: Result<Vec<usize>, String> = names.into_iter().map(|n| self.find(&n).ok_or(n)).collect();
            match found {
                Ok(parts) => return Ok((*source, parts)),
                Err(name) => first_missing.get_or_insert(name),
            };
        }
        Err(first_missing.unwrap_or_default())
    }

    fn check_shape(&self, part: usize, shape: &[usize]) -> Result<()> {
        let t = &self.ckpt.tensors()[part];
        if t.shape != shape {
            let what = format!("shape is {:?}, but the configuration makes it {shape:?}", t.shape);
            return Err(Error::bad_file(file_of(self.ckpt, Some(t)), what)
                .tensor(&t.name)
                .hint("does config.json belong to these weights?"));
        }
        let float = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::F64].map(Dtype::Ggml);
        if !float.contains(&t.dtype) && !matches!(t.dtype, Dtype::Packed(_)) {
            let file = file_of(self.ckpt, Some(t));
            let what = format!("{}: tensor '{}' is stored as {:?}", file.display(), t.name, t.dtype);
            return Err(Error::Unsupported(format!("{what}; weights must be F32, F16, BF16 or F64")));
        }
        Ok(())
    }
}

/// The name without the part that says which half of an image-and-text model it belongs to.
pub(super) fn text_name(name: &str) -> String {
    name.replacen("language_model.", "", 1)
}

type Mapped = (Vec<MappedTensor>, Vec<(String, String)>);

fn map_hf(ckpt: &Checkpoint, family: &'static Family, config: &Config) -> Result<Mapped> {
    let by_name = ckpt.tensors().iter().enumerate().map(|(i, t)| (text_name(&t.name), i)).collect();
    let names = Names { ckpt, by_name };
    let mut used = vec![false; ckpt.tensors().len()];
    let mut tensors = Vec::new();
    for (row, layer) in expected(family, config) {
        let shape = shape_of(row, config);
        let experts = config.experts.as_ref().map_or(0, |e| e.count);
        let (source, parts) =
            names.parts(row, layer, experts).map_err(|name| missing(ckpt, &name, part_shape(row, &shape)))?;
        let (stored, half) = match source {
            Source::One(_) => (shape.clone(), None),
            Source::PerExpert(_) => (shape[1..].to_vec(), None),
            Source::Half(_, half) => (vec![shape[0], 2 * shape[1], shape[2]], Some(half)),
        };
        for &part in &parts {
            names.check_shape(part, &stored)?;
            used[part] = true;
        }
        let rows = match row.role {
            Role::AttnQ | Role::AttnQBias if family.interleaved_rope => RowOrder::Rope { heads: config.heads },
            Role::AttnK | Role::AttnKBias if family.interleaved_rope => RowOrder::Rope { heads: config.kv_heads },
            _ => RowOrder::Same,
        };
        let add = if row.role.is_norm() { family.norm_add } else { 0.0 };
        tensors.push(MappedTensor {
            name: named(row.gguf, layer, 0),
            shape,
            parts,
            half,
            rows,
            add,
            role: row.role,
            layer,
        });
    }
    let mut dropped = Vec::new();
    for (t, _) in ckpt.tensors().iter().zip(&used).filter(|(_, used)| !**used) {
        match drop_reason(&text_name(&t.name), family, config) {
            Some(reason) => dropped.push((t.name.clone(), reason.to_string())),
            None => return Err(unexpected(ckpt, t, config)),
        }
    }
    sort_like_llama_cpp(ckpt, &mut tensors);
    Ok((tensors, dropped))
}

/// What one part of a row should look like, for the message about a missing one.
fn part_shape<'a>(row: &Row, shape: &'a [usize]) -> &'a [usize] {
    if matches!(row.sources[0], Source::PerExpert(_)) { &shape[1..] } else { shape }
}

fn missing(ckpt: &Checkpoint, name: &str, shape: &[usize]) -> Error {
    let what = format!("is missing; the configuration promises it with shape {shape:?}");
    let hint = if name == "lm_head.weight" {
        "if the output is the embedding, config.json must say \"tie_word_embeddings\": true"
    } else {
        "is every file of the checkpoint there, and does config.json belong to it?"
    };
    Error::bad_file(file_of(ckpt, None), what).tensor(name).hint(hint)
}

fn unexpected(ckpt: &Checkpoint, t: &TensorMeta, config: &Config) -> Error {
    let what = format!(
        "has no place in a {} model of {} layers as the configuration describes it (shape {:?})",
        config.arch, config.layers, t.shape
    );
    Error::bad_file(file_of(ckpt, Some(t)), what).tensor(&t.name).hint("does config.json belong to these weights?")
}

/// Why a tensor that the family table does not list may be left out; `None` if it may not.
fn drop_reason(name: &str, family: &Family, config: &Config) -> Option<&'static str> {
    if name == "lm_head.weight" && config.tied_embeddings {
        return Some("the configuration ties the output to the embedding");
    }
    if [".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"].iter().any(|s| name.ends_with(s)) {
        return Some("a buffer that is computed from the configuration");
    }
    let vision = ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    if family.gemma && vision.iter().any(|p| name.starts_with(p)) {
        return Some("belongs to the image encoder; a text model has no use for it");
    }
    None
}

/// llama.cpp's converter walks the files in order and each file by name, and writes a tensor when its last part has
/// come by; all expert tensors of a layer wait for the layer's last expert.
fn sort_like_llama_cpp(ckpt: &Checkpoint, tensors: &mut [MappedTensor]) {
    let mut order: Vec<usize> = (0..ckpt.tensors().len()).collect();
    order.sort_by_key(|i| (ckpt.tensors()[*i].file, &ckpt.tensors()[*i].name));
    let mut rank = vec![0; order.len()];
    for (place, i) in order.into_iter().enumerate() {
        rank[i] = place;
    }
    let last_part = |t: &MappedTensor| t.parts.iter().map(|p| rank[*p]).max().unwrap_or(0);
    let mut experts_done: HashMap<Option<usize>, usize> = HashMap::new();
    for t in tensors.iter().filter(|t| t.parts.len() > 1) {
        let done = experts_done.entry(t.layer).or_default();
        *done = (*done).max(last_part(t));
    }
    tensors.sort_by_key(|t| if t.parts.len() > 1 { experts_done[&t.layer] } else { last_part(t) });
}

/// Rotary factors that GGUF keeps as tensors: the wavelength-dependent ones of Llama 3, as one factor per pair of
/// rotary dimensions, and the two lists of long-rope.
fn generated(config: &Config) -> Vec<Generated> {
    let tensor = |name: &str, values: Vec<f32>| Generated { name: name.into(), shape: vec![values.len()], values };
    match &config.rope.scaling {
        RopeScaling::Llama3 { .. } => vec![tensor("rope_freqs.weight", llama3_factors(config))],
        RopeScaling::LongRope { short, long, .. } if config.arch == "phi3" => {
            vec![tensor("rope_factors_long.weight", long.clone()), tensor("rope_factors_short.weight", short.clone())]
        }
        _ => Vec::new(),
    }
}

/// Divisors of the rotary frequencies after Llama 3's rule (transformers' `_compute_llama3_parameters`), `[dims / 2]`:
/// 1 for short wavelengths, `factor` for long ones, a blend between.
fn llama3_factors(config: &Config) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context } =
        config.rope.scaling
    else {
        return Vec::new();
    };
    let dims = config.rope.dims as f32;
    let context = original_context as f32;
    (0..config.rope.dims / 2)
        .map(|i| {
            let frequency = 1.0 / config.rope.theta.powf((2 * i) as f32 / dims);
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                factor
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

/// A family's model where the file is one; otherwise its tensors as they are.
fn open_gguf(ckpt: &Checkpoint) -> Result<Model> {
    let Some(meta) = ckpt.gguf() else { return Err(Error::Internal("not a GGUF source".into())) };
    match open_family(ckpt, meta) {
        Err(Error::Unsupported(reason)) => {
            opaque::open(ckpt, meta, reason).map_err(|e| in_file(e, &file_of(ckpt, None)))
        }
        other => other,
    }
}

fn open_family(ckpt: &Checkpoint, meta: &Metadata) -> Result<Model> {
    let path = file_of(ckpt, None);
    let mut config = Config::from_gguf(meta).map_err(|e| in_file(e, &path))?;
    let Some(family) = super::families::by_gguf(&config.arch) else {
        return Err(Error::Internal(format!("no family for {}", config.arch)));
    };
    let has = |role: Role| family.row(role).is_some_and(|r| ckpt.find(&named(r.gguf, Some(0), 0)).is_some());
    config.tied_embeddings = !has(Role::Output);
    config.bias.qkv = has(Role::AttnQBias);
    config.bias.attn_output = has(Role::AttnOutputBias);
    config.bias.mlp = has(Role::FfnGateBias);
    let generated = gguf_factors(ckpt, &mut config)?;
    config.check().map_err(|e| in_file(e, &path))?;
    let mut tensors = Vec::new();
    let mut used: Vec<bool> = ckpt.tensors().iter().map(|t| generated.iter().any(|g| g.name == t.name)).collect();
    for (row, layer) in expected(family, &config) {
        let (name, shape) = (named(row.gguf, layer, 0), shape_of(row, &config));
        let part = ckpt.find(&name).ok_or_else(|| missing(ckpt, &name, &shape))?;
        let t = &ckpt.tensors()[part];
        // A matrix of one row is stored as a vector by some writers.
        let same = t.shape == shape || (row.when == When::SharedExpert && t.shape == shape[1..]);
        if !same {
            let what = format!("shape is {:?}, but the metadata makes it {shape:?}", t.shape);
            return Err(Error::bad_file(file_of(ckpt, Some(t)), what).tensor(&t.name));
        }
        used[part] = true;
        let rows = RowOrder::Same;
        tensors.push(MappedTensor {
            name,
            shape,
            parts: vec![part],
            half: None,
            rows,
            add: 0.0,
            role: row.role,
            layer,
        });
    }
    if let Some((t, _)) = ckpt.tensors().iter().zip(&used).find(|(_, used)| !**used) {
        let (path, name, arch) = (path.display(), &t.name, &config.arch);
        return Err(Error::Unsupported(format!("{path}: tensor '{name}' has no place in a known {arch} model")));
    }
    tensors.sort_by_key(|t| t.parts[0]);
    Ok(Model { config, family: Ok(family), tensors, generated, dropped: Vec::new(), hf_config: None })
}

/// Rotary factors of a GGUF source. Long-rope factors go to the configuration too, which GGUF metadata cannot hold.
fn gguf_factors(ckpt: &Checkpoint, config: &mut Config) -> Result<Vec<Generated>> {
    let mut found = Vec::new();
    let mut scratch = Vec::new();
    for name in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
        let Some(t) = ckpt.find(name).and_then(|i| ckpt.tensors().get(i)) else { continue };
        let expected = vec![config.rope.dims / 2];
        if t.shape != expected {
            let what = format!("shape is {:?}; expected {expected:?}", t.shape);
            return Err(Error::bad_file(file_of(ckpt, Some(t)), what).tensor(name));
        }
        let mut values = vec![0.0; expected[0]];
        ckpt.read_f32(t, 0..values.len(), &mut scratch, &mut values)?;
        if let Some(bad) = values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            let what = format!("a rotary factor is {bad}; expected numbers above 0");
            return Err(Error::bad_file(file_of(ckpt, Some(t)), what).tensor(name));
        }
        found.push(Generated { name: name.to_string(), shape: expected, values });
    }
    let values = |name: &str| found.iter().find(|g| g.name == name).map(|g| g.values.clone());
    if let (Some(long), Some(short)) = (values("rope_factors_long.weight"), values("rope_factors_short.weight")) {
        let key = |k: &str| format!("{}.rope.scaling.{k}", config.arch);
        let meta = ckpt.gguf();
        let original_context = meta
            .and_then(|m| m.uint(&key("original_context_length")))
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(config.context);
        let attention_factor = meta.and_then(|m| m.f32(&key("attn_factor")));
        config.rope.scaling = RopeScaling::LongRope { short, long, original_context, attention_factor };
    }
    Ok(found)
}

impl MappedTensor {
    /// Length of a row: the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Rows, all outer dimensions flattened; 1 for a vector.
    pub fn row_count(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of one matrix: all of them, or one expert's.
    pub fn rows_per_matrix(&self) -> usize {
        match self.shape.as_slice() {
            [_, .., rows, _] => *rows,
            _ => self.row_count(),
        }
    }

    /// Whether the stored rows are the rows: same order, nothing added, nothing left out.
    pub fn is_verbatim(&self) -> bool {
        self.half.is_none() && self.rows == RowOrder::Same && self.add == 0.0
    }

    /// Reads rows of the GGUF tensor as F32, transforms applied; `out` holds `rows.len() * cols` values.
    /// `scratch` is reused from call to call. Any number of threads may read at once.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn read_rows(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let cols = self.cols();
        if rows.start > rows.end || rows.end > self.row_count() || out.len() != rows.len() * cols {
            let what = format!("rows {rows:?} of {} into {} values", self.name, out.len());
            return Err(Error::Internal(what));
        }
        match self.rows {
            RowOrder::Same => self.read_runs(ckpt, rows, scratch, out)?,
            // The rows of a bias are its elements.
            RowOrder::Rope { heads } if self.shape.len() == 1 => {
                self.read_rope(ckpt, rows.start * cols..rows.end * cols, 1, cols / heads.max(1), scratch, out)?;
            }
            RowOrder::Rope { heads } => {
                self.read_rope(ckpt, rows, cols, self.row_count() / heads.max(1), scratch, out)?;
            }
        }
        if self.add != 0.0 {
            // llama.cpp's converter adds in the stored type, so that F16 sums are rounded to F16.
            let in_f16 = self.parts.iter().any(|p| ckpt.tensors()[*p].dtype == Dtype::Ggml(GgmlType::F16));
            for w in out.iter_mut() {
                *w += self.add;
                if in_f16 {
                    *w = half::f16::from_f32(*w).to_f32();
                }
            }
        }
        Ok(())
    }

    /// Runs of rows that lie together in one part.
    fn read_runs(&self, ckpt: &Checkpoint, rows: Range<usize>, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        // Rows per expert where experts are apart; all rows otherwise.
        let block = if self.parts.len() > 1 || self.half.is_some() { self.shape[1] } else { self.row_count() };
        let mut row = rows.start;
        let mut rest = out;
        while row < rows.end {
            let (expert, inner) = (row / block, row % block);
            let n = (block - inner).min(rows.end - row);
            let (part, first) = match self.half {
                Some(half) => (self.parts[0], (2 * expert + half) * block + inner),
                None => (self.parts[expert], inner),
            };
            let (now, later) = rest.split_at_mut(n * cols);
            ckpt.read_f32(&ckpt.tensors()[part], first * cols..(first + n) * cols, scratch, now)?;
            rest = later;
            row += n;
        }
        Ok(())
    }

    /// GGUF row `2j + i` of a head is source row `i * head / 2 + j` of that head (llama.cpp's `LlamaModel.permute`).
    fn read_rope(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        cols: usize,
        head: usize,
        scratch: &mut Vec<u8>,
        out: &mut [f32],
    ) -> Result<()> {
        let part = &ckpt.tensors()[self.parts[0]];
        let mut buffer = vec![0.0; head.div_ceil(2) * cols];
        let mut start = rows.start;
        while start < rows.end {
            let base = start / head * head;
            let end = (base + head).min(rows.end);
            for half in 0..2 {
                // The rows of this half that the range asks for: every other one, but together in the source.
                let first = (start - base + 1 - half) / 2;
                let last = (end - base + 1 - half) / 2;
                if first == last {
                    continue;
                }
                let source = base + half * (head / 2) + first;
                let run = &mut buffer[..(last - first) * cols];
                ckpt.read_f32(part, source * cols..(source + last - first) * cols, scratch, run)?;
                for (k, row) in run.chunks_exact(cols).enumerate() {
                    let at = (base + 2 * (first + k) + half - rows.start) * cols;
                    out[at..at + cols].copy_from_slice(row);
                }
            }
            start = end;
        }
        Ok(())
    }
}
