//! `quantize plan` and everything a conversion decides before it reads a weight: the model, the tokenizer, the metadata,
//! and the type of every tensor for every target.

use super::allocate::Allocation;
use super::folder_plan::Means;
use super::options::size;
use super::plan_text::{Shown, fallback_lines};
use super::{Format, OnFallback, PlanArgs, TypeArgs, folder, options, print, print_json};
use crate::gguf::Metadata;
use crate::model::tokenizer::GgufVocab;
use crate::model::{Config, Model, gguf_metadata, preset_facts};
use crate::plan::devices::Device;
use crate::plan::{self, Plan, TargetPlan};
use crate::quant::presets::{self, Candidate, Choice, ModelFacts, Preset, Request, Why};
use crate::quant::{GgmlType, codec};
use crate::report::LedgerRow;
use crate::source::{Checkpoint, Dtype};
use crate::{Error, Result, convert, gguf};
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A model that can be converted, and the decisions for each target.
pub struct Prepared {
    pub path: PathBuf,
    pub ckpt: Checkpoint,
    pub model: Model,
    /// Everything but the file type and the provenance.
    pub metadata: Metadata,
    pub targets: Vec<Planned>,
}

/// One target: types in the order of [`convert::outputs`], and what the user should know.
#[derive(Clone)]
pub struct Planned {
    pub preset: &'static Preset,
    pub types: Vec<GgmlType>,
    pub plan: TargetPlan,
    pub recipe: String,
    /// How a budget of bytes was spent, where there is one.
    pub allocation: Option<Allocation>,
}

impl Planned {
    /// Takes other types; the bytes before the tensors stay as they are.
    pub fn decide(&mut self, prepared: &Prepared, choices: Vec<Choice>) {
        let tensors = owned(&convert::outputs(&prepared.model));
        let before = self.plan.file_bytes.saturating_sub(self.plan.padded_bytes);
        self.plan = plan::target(self.preset, &tensors, &choices, before);
        self.types = choices.iter().map(|c| c.got).collect();
    }

    /// Tensors that did not get the type they should have.
    pub fn fallbacks(&self) -> usize {
        self.plan.rows.iter().filter(|r| r.choice.why == Why::Fallback).count()
    }

    /// Departures from what was asked, as rows of a report.
    pub fn ledger_rows(&self, candidate: &str) -> Vec<LedgerRow> {
        let rows = self.plan.rows.iter().filter(|r| r.choice.why == Why::Fallback);
        rows.map(|r| LedgerRow {
            candidate: candidate.to_string(),
            kind: "fallback".into(),
            tensor: Some(r.name.clone()),
            asked: r.choice.wanted.to_string(),
            done: r.choice.got.to_string(),
            reason: format!(
                "rows of {} are not a multiple of {}",
                r.shape.last().unwrap_or(&0),
                r.choice.wanted.block()
            ),
        })
        .collect()
    }

    /// Provenance: what made this file, of what. Hashes are filled in at the end, in the same number of bytes.
    pub fn record(&self, metadata: &mut Metadata, ckpt: &Checkpoint, hashes: bool) {
        metadata.set("quantize.version", env!("CARGO_PKG_VERSION"));
        metadata.set("quantize.recipe", self.recipe.as_str());
        if presets::PRESETS.iter().all(|p| p.name != self.preset.name) {
            metadata.set("quantize.target", self.preset.name);
        }
        let name = |f: &crate::source::SourceFile| {
            f.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
        };
        metadata.set("quantize.source.files", ckpt.files().iter().map(name).collect::<Vec<String>>());
        if hashes {
            metadata.set("quantize.source.sha256", vec!["0".repeat(64); ckpt.files().len()]);
        }
    }
}

impl Prepared {
    pub fn weights(&self) -> u64 {
        weights(&convert::outputs(&self.model))
    }

    fn plan(&self, threads: usize) -> Plan {
        let tensors = owned(&convert::outputs(&self.model));
        Plan {
            weights: self.weights(),
            source_bytes: Some(convert::source_bytes(&self.ckpt, &self.model)),
            peak_memory: plan::conversion_memory(&self.model.config, &tensors, threads),
            disk: self.targets.iter().map(|t| t.plan.file_bytes).sum(),
            kv_bytes_per_token: self.model.family.is_ok().then(|| plan::kv_bytes_per_token(&self.model.config)),
            targets: self.targets.iter().map(|t| t.plan.clone()).collect(),
        }
    }

    /// Says on standard error what departs from what was asked.
    pub fn warn(&self, quiet: bool) {
        if quiet {
            return;
        }
        for target in &self.targets {
            for line in fallback_lines(&target.plan) {
                eprintln!("{}: {line}", target.preset.name);
            }
        }
    }
}

fn weights(tensors: &[(&str, &[usize])]) -> u64 {
    tensors.iter().map(|(_, shape)| shape.iter().map(|d| *d as u64).product::<u64>()).sum()
}

fn owned(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect()
}

/// Whether there is an importance matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Imatrix {
    Given,
    /// A type that needs one is refused.
    Absent,
    /// A plan: one is assumed for the presets that need it.
    WhereNeeded,
}

/// Opens and checks everything, and decides every type. Nothing is written, no weight is read.
pub fn prepare(path: &Path, args: &TypeArgs, imatrix: Imatrix) -> Result<Prepared> {
    let requests = requests(args)?;
    let ckpt = Checkpoint::open(path)?;
    let model = Model::open(&ckpt)?;
    let mut metadata = gguf_metadata(&model, &ckpt, 0)?;
    // A GGUF source's own layout and provenance are not the new file's.
    let stale = |key: &str| key == gguf::ALIGNMENT_KEY || key.starts_with("quantize.");
    for key in metadata.iter().map(|(key, _)| key.to_string()).filter(|key| stale(key)).collect::<Vec<_>>() {
        metadata.remove(&key);
    }
    if ckpt.gguf().is_none() {
        let vocab =
            GgufVocab::from_hf_dir(ckpt.dir(), model.config.vocab, &model.config.arch, args.pretokenizer.as_deref())?;
        vocab.write(&mut metadata);
    } else if let Some(name) = &args.pretokenizer {
        metadata.set("tokenizer.ggml.pre", name.as_str());
    }
    let mut prepared = Prepared { path: path.to_path_buf(), ckpt, model, metadata, targets: Vec::new() };
    if requests.is_empty() && !args.allow_requantize {
        prepared.refuse_requantizing(&source_types(&prepared.ckpt, &prepared.model), &[])?;
    }
    prepared.targets = requests.iter().map(|r| prepared.target(r, args, imatrix)).collect::<Result<_>>()?;
    Ok(prepared)
}

impl Prepared {
    /// Decides on every tensor for one target.
    fn target(&self, request: &Request, args: &TypeArgs, imatrix: Imatrix) -> Result<Planned> {
        let outputs = convert::outputs(&self.model);
        let sources = source_types(&self.ckpt, &self.model);
        let kept: Vec<GgmlType> = outputs
            .iter()
            .zip(&sources)
            .map(|((name, shape), (_, source))| match source {
                Some(ty) if self.ckpt.gguf().is_some() => *ty,
                source => plan::kept_type(name, shape, *source),
            })
            .collect();
        let tensors = owned(&outputs);
        let choices = decide(request, preset_facts(&self.metadata), &tensors, &kept, imatrix)?;
        if !args.allow_requantize {
            self.refuse_requantizing(&sources, &choices)?;
        }
        on_fallback(args.on_fallback, request, &tensors, &choices)?;
        let mut target = Planned {
            preset: request.preset,
            types: Vec::new(),
            plan: plan::target(request.preset, &tensors, &choices, 0),
            recipe: recipe(request, args),
            allocation: None,
        };
        target.decide(self, choices);
        target.plan.file_bytes += self.header_bytes(&target, args, &|_| ())?;
        Ok(target)
    }

    /// Tensors that are quantized already may be copied, but not rounded again. Without choices, none may be there.
    fn refuse_requantizing(&self, sources: &[(String, Option<GgmlType>)], choices: &[Choice]) -> Result<()> {
        for (i, (name, source)) in sources.iter().enumerate() {
            let got = choices.get(i).map(|c| c.got);
            if let Some(ty) = source.filter(|ty| !ty.is_plain() && Some(*ty) != got) {
                return Err(Error::bad_file(&self.ckpt.files()[0].path, format!("is already quantized ({ty})"))
                    .tensor(name.as_str())
                    .hint("start from the original checkpoint, or accept the added loss with --allow-requantize"));
            }
        }
        Ok(())
    }

    /// The target of a preset, as far as the command line says otherwise.
    pub fn of_preset(&self, preset: &Preset, args: &TypeArgs, imatrix: Imatrix) -> Result<Planned> {
        let args = TypeArgs { to: vec![preset.name.to_string()], ..args.clone() };
        let requests = requests(&args)?;
        let request = requests.first().ok_or_else(|| Error::Internal("a preset without a request".into()))?;
        self.target(request, &args, imatrix)
    }

    /// The bytes before the tensors of a target's file, but for what shards add. `also` sets what is known of the run.
    pub fn header_bytes(&self, target: &Planned, args: &TypeArgs, also: &dyn Fn(&mut Metadata)) -> Result<u64> {
        let mut complete = self.metadata.clone();
        complete.set("general.file_type", target.preset.file_type);
        target.record(&mut complete, &self.ckpt, true);
        also(&mut complete);
        options::override_metadata(&mut complete, &args.override_kv)?;
        let entries = convert::entries(&self.model, &target.types);
        Ok(gguf::encode_header(&complete, &entries, gguf::DEFAULT_ALIGNMENT).len() as u64)
    }
}

/// The type each output has in the source, where there is one.
fn source_types(ckpt: &Checkpoint, model: &Model) -> Vec<(String, Option<GgmlType>)> {
    let generated = model.generated.iter().map(|g| (g.name.clone(), Some(GgmlType::F32)));
    let mapped = model.tensors.iter().map(|t| {
        let dtype = t.parts.first().map(|p| ckpt.tensors()[*p].dtype);
        let ty = match dtype {
            Some(Dtype::Ggml(ty)) => Some(ty),
            _ => None,
        };
        (t.name.clone(), ty)
    });
    generated.chain(mapped).collect()
}

fn decide(
    request: &Request,
    facts: ModelFacts,
    tensors: &[(String, Vec<usize>)],
    all_kept: &[GgmlType],
    imatrix: Imatrix,
) -> Result<Vec<Choice>> {
    let has_imatrix = imatrix == Imatrix::Given;
    let candidates: Vec<Candidate> =
        tensors.iter().zip(all_kept).map(|((name, shape), kept)| Candidate { name, shape, kept: *kept }).collect();
    let facts = ModelFacts { has_imatrix, ..facts };
    let (choices, unused) = presets::choose(request, &facts, &candidates);
    if let Some(rule) = unused.first() {
        let regex = request.overrides[*rule].0.as_str();
        return Err(Error::Usage(format!("--tensor-type '{regex}' matches no tensor; see: quantize plan MODEL --all")));
    }
    for (regex, ty) in &request.overrides {
        let mut matched = choices.iter().zip(tensors).filter(|(_, (name, _))| regex.is_match(name));
        if matched.all(|(choice, _)| choice.why == Why::Kept && choice.got != *ty) {
            let what = "matches only tensors that stay as they are (norms, biases, routers)";
            return Err(Error::Usage(format!("--tensor-type '{}={ty}' {what}", regex.as_str())));
        }
    }
    for (choice, (name, _)) in choices.iter().zip(tensors) {
        let (preset, ty) = (request.preset.name, choice.got);
        let kept = choice.why == Why::Kept;
        if !kept && codec(ty).is_none_or(|c| c.quantize.is_none()) {
            return Err(Error::Unsupported(format!("tensor '{name}': {ty} cannot be written")));
        }
        if !kept && plan::needs_importance(request.preset, name, ty) && !has_imatrix {
            if imatrix == Imatrix::WhereNeeded {
                return decide(request, facts, tensors, all_kept, Imatrix::Given);
            }
            return Err(Error::Unsupported(format!(
                "{preset}: tensor '{name}' in {ty} needs an importance matrix\n  hint: make one with: quantize calibrate MODEL -o imatrix.gguf, then add --imatrix imatrix.gguf (or calibrate in the same run with --calibration default)"
            )));
        }
    }
    Ok(choices)
}

fn on_fallback(
    policy: OnFallback,
    request: &Request,
    tensors: &[(String, Vec<usize>)],
    choices: &[Choice],
) -> Result<()> {
    let first = choices.iter().zip(tensors).find(|(c, _)| c.why == Why::Fallback);
    match (policy, first) {
        (OnFallback::Error, Some((choice, (name, shape)))) => Err(Error::Unsupported(format!(
            "{}: tensor '{name}' cannot be {}: rows of {} are not a multiple of {}\n  hint: --on-fallback warn accepts {} instead",
            request.preset.name,
            choice.wanted,
            shape.last().unwrap_or(&0),
            choice.wanted.block(),
            choice.got,
        ))),
        _ => Ok(()),
    }
}

/// The command line's types, checked.
fn requests(args: &TypeArgs) -> Result<Vec<Request>> {
    let ty = |flag: &str, text: &Option<String>| text.as_deref().map(|t| tensor_type(flag, t)).transpose();
    let (output, embedding) = (
        ty("--output-tensor-type", &args.output_tensor_type)?,
        ty("--token-embedding-type", &args.token_embedding_type)?,
    );
    let mut overrides = Vec::new();
    let file = match &args.tensor_type_file {
        Some(path) => std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?,
        None => String::new(),
    };
    let lines = file.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    for rule in args.tensor_type.iter().map(String::as_str).chain(lines) {
        let bad = |why: &str| Error::Usage(format!("--tensor-type '{rule}': {why}; write REGEX=TYPE"));
        let (pattern, name) = rule.rsplit_once('=').ok_or_else(|| bad("no '='"))?;
        if pattern.is_empty() {
            return Err(bad("an empty pattern matches everything"));
        }
        let regex = regex::RegexBuilder::new(pattern).case_insensitive(true).build();
        let regex = regex.map_err(|e| bad(&e.to_string()))?;
        overrides.push((regex, tensor_type("--tensor-type", name)?));
    }
    let mut requests: Vec<Request> = Vec::new();
    for name in &args.to {
        let preset = presets::find(name).ok_or_else(|| unknown(name))?;
        if requests.iter().any(|r| r.preset == preset) {
            return Err(Error::Usage(format!("{} is asked for twice", preset.name)));
        }
        let overrides = overrides.clone();
        requests.push(Request {
            preset,
            pure: args.pure,
            leave_output: args.leave_output_tensor,
            output,
            embedding,
            overrides,
        });
    }
    Ok(requests)
}

fn tensor_type(flag: &str, name: &str) -> Result<GgmlType> {
    let known = GgmlType::from_name(name).filter(|t| codec(*t).is_some_and(|c| c.quantize.is_some()));
    known.ok_or_else(|| Error::Usage(format!("{flag}: '{name}' is no tensor type; try q6_k, q8_0, f16 or bf16")))
}

fn unknown(name: &str) -> Error {
    let names: Vec<String> = presets::PRESETS.iter().map(|p| p.name.to_lowercase()).collect();
    Error::Usage(format!("'{name}' is no target type; known are {}", names.join(", ")))
}

/// The recipe as recorded in the file: the flags that decided its bytes.
fn recipe(request: &Request, args: &TypeArgs) -> String {
    let mut recipe = format!("--to {}", request.preset.name.to_lowercase());
    for (on, flag) in [(request.pure, "--pure"), (request.leave_output, "--leave-output-tensor")] {
        if on {
            let _ = write!(recipe, " {flag}");
        }
    }
    for (ty, flag) in [(request.output, "--output-tensor-type"), (request.embedding, "--token-embedding-type")] {
        if let Some(ty) = ty {
            let _ = write!(recipe, " {flag} {}", ty.name().to_lowercase());
        }
    }
    for (regex, ty) in &request.overrides {
        let _ = write!(recipe, " --tensor-type '{regex}={}'", ty.name().to_lowercase());
    }
    if let Some(name) = &args.pretokenizer {
        let _ = write!(recipe, " --pretokenizer {name}");
    }
    for rule in &args.override_kv {
        let _ = write!(recipe, " --override-kv '{rule}'");
    }
    if args.allow_requantize {
        recipe += " --allow-requantize";
    }
    recipe
}

pub fn run(args: PlanArgs) -> Result<()> {
    let threads = options::threads(args.common.threads)?;
    let device = |text: &String| Ok(Device { name: text.clone(), memory: size(text)? });
    let asked: Vec<Device> = args.device.iter().map(device).collect::<Result<_>>()?;
    let mut types = args.types.clone();
    let targets = folder::take_targets(&mut types.to, &args.folder)?;
    if types.to.is_empty() && targets.is_empty() {
        types.to = vec!["q4_k_m".into()];
    }
    if targets.is_empty() {
        args.folder.refuse_idle()?;
    }
    let path = options::resolve_plan(&args.model, &args.hub, args.common.quiet)?;
    let imatrix = if args.imatrix.is_some() { Imatrix::Given } else { Imatrix::WhereNeeded };
    let (ckpt, model, files) = match config_only(&path)? {
        Some(json) => {
            let (ckpt, model) = Model::imagined(json)?;
            let files = match types.to.is_empty() {
                true => None,
                false => Some(from_config(&model.config, &types, imatrix, threads)?),
            };
            (ckpt, model, files)
        }
        None if types.to.is_empty() => {
            let ckpt = Checkpoint::open(&path)?;
            let model = Model::open(&ckpt)?;
            (ckpt, model, None)
        }
        None => {
            let prepared = prepare(&path, &types, imatrix)?;
            let plan = prepared.plan(threads);
            (prepared.ckpt, prepared.model, Some(plan))
        }
    };
    let names = targets.iter().map(|t| PathBuf::from(&t.name)).collect();
    let folders = folder::prepare(&ckpt, &model, targets, names, args.folder.tp, types.on_fallback)?;
    let means = Means {
        ckpt: &ckpt,
        model: &model,
        rounding: args.folder.rounding,
        calibration_tokens: args.calibration_tokens as u64,
        threads,
    };
    let shown = Shown { devices: &asked, context: args.context, all: args.all };
    match args.common.format {
        Format::Json => {
            let mut value = files.as_ref().map_or_else(|| Ok(json!({})), |plan| shown.json(plan, &means))?;
            if !folders.is_empty() {
                value["folders"] = folders.iter().map(|p| means.json(p)).collect();
            }
            print_json(&value)
        }
        Format::Text => {
            let mut text = files.as_ref().map_or_else(String::new, |plan| shown.text(plan, &means));
            folders.iter().for_each(|p| text += &means.text(p));
            print(&text)
        }
    }
}

/// What would be written, for `--dry-run`.
pub fn describe(
    prepared: Option<&Prepared>,
    folders: &[folder::Prepared],
    means: &Means,
    format: Format,
) -> Result<()> {
    let plan = prepared.map(|p| p.plan(means.threads));
    let shown = Shown { devices: &[], context: 8192, all: false };
    match format {
        Format::Text => {
            let mut text = plan.as_ref().map_or_else(String::new, |plan| shown.text(plan, means));
            folders.iter().for_each(|p| text += &means.text(p));
            print(&text)
        }
        Format::Json => {
            let plan = plan.as_ref().map(serde_json::to_value).transpose();
            let mut value = plan.map_err(|e| Error::Internal(e.to_string()))?.unwrap_or_else(|| json!({}));
            value["folders"] = folders.iter().map(|p| means.json(p)).collect();
            print_json(&value)
        }
    }
}

/// The config.json of a model without weights: the file itself, or a folder that holds nothing else to read.
fn config_only(path: &Path) -> Result<Option<serde_json::Value>> {
    let file = if path.is_dir() {
        let has_weights = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".safetensors") || name.ends_with(".gguf") || name.ends_with(".bin")
        });
        if has_weights {
            return Ok(None);
        }
        path.join("config.json")
    } else if path.extension().is_some_and(|e| e == "json") {
        path.to_path_buf()
    } else {
        return Ok(None);
    };
    let text = std::fs::read(&file).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::bad_file(path, "holds no model: there is no config.json in it"),
        _ => Error::io(&file, e),
    })?;
    let json = serde_json::from_slice(&text).map_err(|e| Error::bad_file(&file, format!("not JSON: {e}")))?;
    Ok(Some(json))
}

/// What the presets need to know, from a configuration without metadata.
fn facts(config: &Config) -> ModelFacts<'_> {
    ModelFacts {
        arch: &config.arch,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        experts: config.experts.as_ref().map_or(0, |e| e.count),
        has_imatrix: false,
    }
}

fn from_config(config: &Config, args: &TypeArgs, imatrix: Imatrix, threads: usize) -> Result<Plan> {
    let tensors = plan::tensors_of(config);
    let kept: Vec<GgmlType> = tensors.iter().map(|(n, s)| plan::kept_type(n, s, None)).collect();
    let header = plan::header_estimate(config, &tensors);
    let mut targets = Vec::new();
    for request in requests(args)? {
        let choices = decide(&request, facts(config), &tensors, &kept, imatrix)?;
        targets.push(plan::target(request.preset, &tensors, &choices, header));
    }
    let refs: Vec<(&str, &[usize])> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    Ok(Plan {
        weights: weights(&refs),
        source_bytes: None,
        peak_memory: plan::conversion_memory(config, &tensors, threads),
        disk: targets.iter().map(|t| t.file_bytes).sum(),
        kv_bytes_per_token: Some(plan::kv_bytes_per_token(config)),
        targets,
    })
}
