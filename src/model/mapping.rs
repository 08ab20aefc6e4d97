//! From the tensors of a checkpoint to the tensors of a GGUF file: every source tensor is mapped, or dropped with a
//! reason, and everything the configuration promises is there in the right shape. How rows are read
//! through the mapping is in `tensor`. It does not quantize and writes nothing.

use super::blueprint::{self, Mtp};
use super::config::{Config, Ending, LayerConfig, Pooling, RopeScaling};
use super::family::{Family, Map, Row, Source, When};
use super::hf_config::family_of;
use super::mistral;
use super::opaque;
use super::role::Role;
use super::source_names::{TOWER, drop_reason_of_any, sort_like_llama_cpp, text_name};
use super::tensor::{Generated, MappedTensor, RowOrder, ValueMap};
use super::understood::{Model, Opaque};
use crate::error::Hint;
use crate::gguf::Metadata;
use crate::quant::GgmlType;
use crate::quant::presets::layer_of;
use crate::source::{Checkpoint, Dtype, TensorMeta};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Every tensor of a model with this configuration: GGUF name, shape, role, layer. Embeddings and output first, then
/// layer by layer.
pub fn expected_tensors(config: &Config) -> Vec<(String, Vec<usize>, Role, Option<usize>)> {
    let Some(family) = super::families::by_gguf(&config.arch) else { return Vec::new() };
    expected(family, config)
        .map(|(row, layer)| (named(row.gguf, layer, 0), shape_of(row, config, layer), row.role, layer))
        .collect()
}

fn expected<'a>(
    family: &'static Family,
    config: &'a Config,
) -> impl Iterator<Item = (&'static Row, Option<usize>)> + 'a {
    let rows = move |layer: Option<&'a LayerConfig>| {
        family.rows().filter(move |r| r.per_layer() == layer.is_some() && r.when.holds(layer, config))
    };
    let layers = config.layers.iter().enumerate();
    let layers = layers.flat_map(move |(i, layer)| rows(Some(layer)).map(move |row| (row, Some(i))));
    rows(None).map(|row| (row, None)).chain(layers)
}

pub(super) fn named(pattern: &str, layer: Option<usize>, expert: usize) -> String {
    let name = match layer {
        Some(layer) => pattern.replace("{layer}", &layer.to_string()),
        None => pattern.to_string(),
    };
    if name.contains("{expert}") { name.replace("{expert}", &expert.to_string()) } else { name }
}

fn shape_of(row: &Row, config: &Config, layer: Option<usize>) -> Vec<usize> {
    let layer = layer.and_then(|i| config.layers.get(i));
    row.shape.iter().map(|d| d.of(layer, config)).collect()
}

/// Experts of a layer; 0 where it has none.
fn expert_count(config: &Config, layer: Option<usize>) -> usize {
    let layer = layer.and_then(|i| config.layers.get(i));
    layer.and_then(|l| l.ffn.experts.as_ref()).map_or(0, |e| e.count)
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
    pub fn imagined(json: serde_json::Value, mtp: Mtp) -> Result<(Checkpoint, Model)> {
        let config = match Config::from_hf(&json) {
            Err(Error::Unsupported(why)) if family_of(&json).is_err() => {
                return opaque::imagined(json, mtp, why.what.clone());
            }
            config => config?,
        };
        let (family, _) = family_of(&json)?;
        let text = json.get("text_config").unwrap_or(&json);
        let named_type = ["torch_dtype", "dtype"].iter().find_map(|key| text.get(key).or(json.get(key))?.as_str());
        let ty = match named_type {
            Some("float16") => GgmlType::F16,
            Some("float32") => GgmlType::F32,
            _ => GgmlType::BF16,
        };
        let mut tensors: Vec<(String, GgmlType, Vec<usize>)> = Vec::new();
        for (row, layer) in expected(family, &config) {
            let shape = shape_of(row, &config, layer);
            match row.sources.first() {
                Some(Source::PerExpert(p)) => {
                    let experts = expert_count(&config, layer);
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
        let there = |name: &str| ckpt.dir().join(name).is_file();
        if there("adapter_config.json") {
            let adapter = crate::input::read_json(&ckpt.dir().join("adapter_config.json")).unwrap_or_default();
            let base =
                adapter.get("base_model_name_or_path").and_then(serde_json::Value::as_str).unwrap_or("its base model");
            let what = format!("holds a LoRA adapter of {base} (adapter_config.json), not a model");
            return Err(Error::bad_file(ckpt.dir(), what).hint(Hint::NameBase));
        }
        let params = ckpt.dir().join("params.json");
        if params.is_file() {
            let json = mistral::restated(&crate::input::read_json(&params)?)?;
            let why = "it has Mistral's own layout (params.json), which is converted to GGUF only";
            return opaque::open_folder(ckpt, json, why.into()).map_err(|e| in_file(e, &params));
        }
        let what = "config.json is missing, so the tensors have no meaning";
        return Err(Error::bad_file(ckpt.dir(), what).hint("copy it from the model's page next to the weights"));
    }
    let mut json = crate::input::read_json(&path)?;
    if let serde_json::Value::Object(map) = &mut json
        && !ckpt.is_quantized()
    {
        // It says how weights are to be quantized, or nothing of them.
        for key in ["quantization_config", "quantization", "compression_config"] {
            map.shift_remove(key);
        }
    }
    if let Some(why) = ckpt.unknown_quantization() {
        let what = format!("{}: the checkpoint is already quantized ({why}); start from the original", path.display());
        return Err(Error::unsupported(what));
    }
    let config = match Config::from_hf(&json) {
        Err(Error::Unsupported(why)) if family_of(&json).is_err() => {
            return opaque::open_folder(ckpt, json, why.what.clone()).map_err(|e| in_file(e, &path));
        }
        config => config.map_err(|e| in_file(e, &path))?,
    };
    // A way of pooling that GGUF has no number for is refused where it is to be written.
    let pooling = blueprint::pooling(ckpt.dir()).unwrap_or_default();
    let ending = ending(pooling.map(u64::from));
    of_config(ckpt, Config { ending, ..config }, json)
}

/// Families have a head unless their tokens' vectors are said to be pooled.
fn ending(pooling: Option<u64>) -> Ending {
    let pooling = pooling.filter(|n| *n > 0).and_then(Pooling::of_gguf);
    pooling.map_or(Ending::Logits, Ending::Vectors)
}

fn of_config(ckpt: &Checkpoint, mut config: Config, mut json: serde_json::Value) -> Result<Model> {
    let (family, _) = family_of(&json)?;
    if config.tied_embeddings && stored_head_differs(ckpt)? {
        // As transformers and llama.cpp do: what is stored counts.
        tie(&mut config, &mut json, false);
    }
    if !config.tied_embeddings && has_no_head(ckpt, &json) {
        tie(&mut config, &mut json, true);
    }
    let (tensors, dropped) = map_hf(ckpt, family, &config)?;
    let generated = generated(family, &config);
    Ok(Model {
        config,
        family: Ok(family),
        tensors,
        generated,
        dropped,
        hf_config: Some(json),
        drawn: None,
        runs: Ok(()),
    })
}

/// States whether the embedding is the output matrix.
fn tie(config: &mut Config, json: &mut serde_json::Value, tied: bool) {
    config.tied_embeddings = tied;
    json["tie_word_embeddings"] = tied.into();
    if let Some(text) = json.get_mut("text_config").and_then(|t| t.as_object_mut()) {
        text.insert("tie_word_embeddings".into(), tied.into());
    }
}

/// Whether there is no output matrix, and need be none: the model was saved from its base class, or its wrapper ties what
/// the text model's part of the configuration does not.
fn has_no_head(ckpt: &Checkpoint, json: &serde_json::Value) -> bool {
    let base = blueprint::class(json).is_some_and(|class| class.ends_with("Model"));
    let tied = json.get("text_config").is_some() && json.get("tie_word_embeddings") == Some(&true.into());
    (base || tied) && !ckpt.tensors().iter().any(|t| text_name(&t.name) == "lm_head.weight")
}

/// Whether there is an output matrix that is not the embedding, bit for bit.
pub(crate) fn stored_head_differs(ckpt: &Checkpoint) -> Result<bool> {
    let find = |end: &str| ckpt.tensors().iter().find(|t| text_name(&t.name) == end);
    let (Some(head), Some(embedding)) = (find("lm_head.weight"), find("model.embed_tokens.weight")) else {
        return Ok(false);
    };
    let plain = |t: &TensorMeta| !matches!(t.dtype, Dtype::Packed(_));
    if ckpt.files().is_empty() || head.shape != embedding.shape || !plain(head) || !plain(embedding) {
        return Ok(false);
    }
    if head.dtype != embedding.dtype {
        return Ok(true);
    }
    let (mut a, mut b, mut at) = (vec![0; 1 << 20], vec![0; 1 << 20], 0);
    while at < head.bytes() {
        let n = (head.bytes() - at).min(1 << 20) as usize;
        ckpt.read(head, at, &mut a[..n])?;
        ckpt.read(embedding, at, &mut b[..n])?;
        if a[..n] != b[..n] {
            return Ok(true);
        }
        at += n as u64;
    }
    Ok(false)
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
                .hint("check that config.json belongs to these weights"));
        }
        let float = [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::F64].map(Dtype::Ggml);
        if !float.contains(&t.dtype) && !matches!(t.dtype, Dtype::Packed(_)) {
            let file = file_of(self.ckpt, Some(t));
            let what = format!("{}: tensor '{}' is stored as {:?}", file.display(), t.name, t.dtype);
            return Err(Error::unsupported(format!("{what}; weights must be F32, F16, BF16 or F64")));
        }
        Ok(())
    }
}

type Mapped = (Vec<MappedTensor>, Vec<(String, String)>);

fn map_hf(ckpt: &Checkpoint, family: &'static Family, config: &Config) -> Result<Mapped> {
    let mut by_name: HashMap<String, usize> =
        ckpt.tensors().iter().enumerate().map(|(i, t)| (text_name(&t.name), i)).collect();
    if !by_name.keys().any(|name| name.starts_with("model.")) {
        // Saved from the base class, whose names lack the prefix.
        let whole = |(name, i): (String, usize)| match name.starts_with("lm_head.") {
            true => (name, i),
            false => (format!("model.{name}"), i),
        };
        by_name = by_name.into_iter().map(whole).collect();
    }
    if config.tied_embeddings && !by_name.contains_key("model.embed_tokens.weight") {
        // Of two equal tensors some writers keep the other one.
        by_name.extend(by_name.get("lm_head.weight").copied().map(|i| ("model.embed_tokens.weight".to_string(), i)));
    }
    let names = Names { ckpt, by_name };
    let mut used = vec![false; ckpt.tensors().len()];
    let mut tensors = Vec::new();
    for (row, layer) in expected(family, config) {
        let shape = shape_of(row, config, layer);
        let (source, parts) = names
            .parts(row, layer, expert_count(config, layer))
            .map_err(|name| missing(ckpt, &name, part_shape(row, &shape)))?;
        let (stored, half) = match source {
            Source::One(_) => (shape.clone(), None),
            Source::PerExpert(_) => (shape[1..].to_vec(), None),
            Source::Half(_, half) => (vec![shape[0], 2 * shape[1], shape[2]], Some(half)),
        };
        for &part in &parts {
            names.check_shape(part, &stored)?;
            used[part] = true;
        }
        let (mut rows, mut values) = (RowOrder::Same, ValueMap::Same);
        let heads = layer.and_then(|i| config.layers[i].heads());
        for map in family.maps_of(row.role) {
            match (map, heads) {
                (Map::QueryPairs, Some(h)) => rows = RowOrder::Rope { heads: h.q },
                (Map::KeyPairs, Some(h)) => rows = RowOrder::Rope { heads: h.kv },
                (Map::QueryPairs | Map::KeyPairs, None) => {}
                (Map::PlusOne, _) => values = ValueMap::PlusOne,
            }
        }
        tensors.push(MappedTensor {
            name: named(row.gguf, layer, 0),
            shape,
            parts,
            half,
            rows,
            values,
            role: row.role,
            layer,
        });
    }
    let mut dropped = Vec::new();
    for (t, _) in ckpt.tensors().iter().zip(&used).filter(|(_, used)| !**used) {
        match drop_reason(t, family, config) {
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
    let hint = match (telling(ckpt), name) {
        (Some(hint), _) => hint,
        (None, "lm_head.weight") => {
            "if the output is the embedding, config.json must say \"tie_word_embeddings\": true"
        }
        _ => "check that every file of the checkpoint is there and that config.json belongs to it",
    };
    Error::bad_file(file_of(ckpt, None), what).tensor(name).hint(hint)
}

/// What other tensor names say of a checkpoint in which some are missing.
fn telling(ckpt: &Checkpoint) -> Option<&'static str> {
    let any = |part: &str| ckpt.tensors().iter().any(|t| t.name.contains(part));
    let begin = |start: &str| ckpt.tensors().iter().all(|t| t.name.starts_with(start));
    let file = ckpt.files().first().and_then(|f| f.path.file_stem()?.to_str());
    let shard =
        file.and_then(|stem| stem.rsplit_once("-of-")).filter(|(_, of)| *of != "00001" && ckpt.files().len() == 1);
    if shard.is_some_and(|(_, of)| of.len() == 5 && of.parse::<usize>().is_ok()) {
        return Some("this is one shard of several; give the folder that holds all of them");
    }
    if any(".lora_A.") || any(".base_layer.") {
        return Some(
            "a LoRA adapter was saved with the model and not merged; call merge_and_unload (peft) before saving",
        );
    }
    if any("_fsdp_wrapped_module.") || any("_checkpoint_wrapped_module.") {
        return Some(
            "the names are those of modules wrapped for training (FSDP); save the full state dict of the model inside",
        );
    }
    if begin("base_model.") || begin("pretrained_model.") {
        return Some(
            "the names are those of a model inside another (PEFT, TRL); merge or unwrap it, and save the model inside",
        );
    }
    if begin("module.") {
        return Some(
            "the names begin with module., as DistributedDataParallel and DeepSpeed make them; save the model's module instead",
        );
    }
    if ckpt.tensors().iter().any(|t| t.name.starts_with("model.model.")) {
        return Some(
            "the names begin with model.model., as trainers that wrap a model make them; save the model inside instead",
        );
    }
    if any("_orig_mod.") {
        return Some(
            "the names begin with _orig_mod., as torch.compile makes them; save the model's _orig_mod instead",
        );
    }
    if any(".qweight") || any(".weight_packed") {
        return Some(
            "the weights are packed (qweight, qzeros, scales), but no quantization_config in config.json says how",
        );
    }
    None
}

fn unexpected(ckpt: &Checkpoint, t: &TensorMeta, config: &Config) -> Error {
    let what = format!(
        "does not belong in a {} model of {} layers as the configuration describes it (shape {:?})",
        config.arch,
        config.layers.len(),
        t.shape
    );
    Error::bad_file(file_of(ckpt, Some(t)), what)
        .tensor(&t.name)
        .hint("check that config.json belongs to these weights")
}

/// Why a tensor that the family table does not list may be left out; `None` if it may not.
fn drop_reason(t: &TensorMeta, family: &Family, config: &Config) -> Option<&'static str> {
    let name = &text_name(&t.name);
    if name == "lm_head.weight" && config.tied_embeddings {
        return Some("the configuration ties the output to the embedding");
    }
    if family.towers.iter().any(|p| name.starts_with(p)) {
        return Some(TOWER);
    }
    drop_reason_of_any(t, name)
}

/// Rotary factors that GGUF keeps as tensors: the wavelength-dependent ones of Llama 3, as one factor per pair of
/// rotary dimensions, and the two lists of long-rope.
fn generated(family: &Family, config: &Config) -> Vec<Generated> {
    let Some(rope) = config.rope() else { return Vec::new() };
    let tensor = |name: &str, values: Vec<f32>| Generated { name: name.into(), shape: vec![values.len()], values };
    match &rope.scaling {
        RopeScaling::Llama3 { .. } => vec![tensor("rope_freqs.weight", rope.llama3_factors())],
        RopeScaling::LongRope { short, long, .. } if family.long_rope => {
            vec![tensor("rope_factors_long.weight", long.clone()), tensor("rope_factors_short.weight", short.clone())]
        }
        _ => Vec::new(),
    }
}

/// A family's model where the file is one; otherwise its tensors as they are.
fn open_gguf(ckpt: &Checkpoint) -> Result<Model> {
    let Some(meta) = ckpt.gguf() else { return Err(Error::Internal("not a GGUF source".into())) };
    if ckpt.is_adapter() {
        let what = "holds a LoRA adapter, not a model";
        return Err(
            Error::bad_file(file_of(ckpt, None), what).hint("merge it into its base model first (llama-export-lora)")
        );
    }
    match open_family(ckpt, meta) {
        Err(Error::Unsupported(reason)) => {
            opaque::open(ckpt, meta, reason.to_string()).map_err(|e| in_file(e, &file_of(ckpt, None)))
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
    if let Some(key) = family.leaves_out(meta) {
        return Err(Error::unsupported(format!(
            "the metadata key '{key}' has no meaning in a known {} model",
            config.arch
        )));
    }
    let has = |role: Role, layer: usize| {
        family.row(role).is_some_and(|r| ckpt.find(&named(r.gguf, Some(layer), 0)).is_some())
    };
    config.tied_embeddings = !has(Role::Output, 0);
    config.ending = ending(meta.uint(&format!("{}.pooling_type", config.arch)));
    for (i, layer) in config.layers.iter_mut().enumerate() {
        if let Some(heads) = layer.heads_mut() {
            (heads.qkv_bias, heads.output_bias) = (has(Role::AttnQBias, i), has(Role::AttnOutputBias, i));
        }
        if let Some(dense) = &mut layer.ffn.dense {
            dense.bias = has(Role::FfnUpBias, i);
        }
    }
    let generated = gguf_factors(ckpt, &mut config)?;
    config.check().map_err(|e| in_file(e, &path))?;
    let mut tensors = Vec::new();
    let mut used: Vec<bool> = ckpt.tensors().iter().map(|t| generated.iter().any(|g| g.name == t.name)).collect();
    for (row, layer) in expected(family, &config) {
        let (name, shape) = (named(row.gguf, layer, 0), shape_of(row, &config, layer));
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
            values: ValueMap::Same,
            role: row.role,
            layer,
        });
    }
    let mut known = Ok(family);
    for (part, t) in ckpt.tensors().iter().enumerate().filter(|(part, _)| !used[*part]) {
        let (path, name, arch) = (path.display(), &t.name, &config.arch);
        if !opaque::is_scale(ckpt, t) {
            return Err(Error::unsupported(format!("{path}: tensor '{name}' does not belong in a known {arch} model")));
        }
        // The model runs; folders have no place for it.
        let why = format!("'{name}' multiplies what a matrix gives");
        known = Err(Opaque { runs_as_file: true, ..Opaque::of_file(arch, &why) });
        tensors.push(opaque::as_stored(part, t, Role::Unknown, layer_of(name)));
    }
    tensors.sort_by_key(|t| t.parts[0]);
    Ok(Model {
        config,
        family: known,
        tensors,
        generated,
        dropped: Vec::new(),
        hf_config: None,
        drawn: None,
        runs: Ok(()),
    })
}

/// Rotary factors of a GGUF source. Long-rope factors go to the configuration too, which GGUF metadata cannot hold.
fn gguf_factors(ckpt: &Checkpoint, config: &mut Config) -> Result<Vec<Generated>> {
    let mut found = Vec::new();
    let Some(rope) = config.rope() else { return Ok(found) };
    let (dims, context) = (rope.dims, config.context);
    let mut scratch = Vec::new();
    for name in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
        let Some(t) = ckpt.find(name).and_then(|i| ckpt.tensors().get(i)) else { continue };
        let expected = vec![dims / 2];
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
            .unwrap_or(context);
        let attention_factor = meta.and_then(|m| m.f32(&key("attn_factor")));
        let scaling = RopeScaling::LongRope { short, long, original_context, attention_factor };
        config.ropes.first_mut().into_iter().for_each(|rope| rope.scaling = scaling.clone());
    }
    Ok(found)
}
