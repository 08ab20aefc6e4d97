//! What a run will write, decided before a weight is read: the type of every tensor of every GGUF file, the format of
//! every module of every folder, exact sizes, and where it all goes. Everything that can be refused is refused here.

use super::allocation::Allocation;
pub use super::asked::regex_fault;
use super::folder::plain::PlainPlan;
use super::folder::plan::FolderPlan;
use super::folder::rules;
use super::ledger::LedgerRow;
use super::recipe::{Limit, Recipe, Target, TypeRule};
use super::record::{self, Facts};
use super::sizes::{self, FileSizes};
use super::stream;
use crate::error::Hint;
use crate::gguf::{self, Metadata};
use crate::model::keys::lost;
use crate::model::tokenizer::GgufVocab;
use crate::model::{Config, Model, Mtp, Part, SourceModel, TOWER, WITHOUT_MTP, gguf_metadata, preset_facts};
use crate::quant::presets::{self, Candidate, Choice, ModelFacts, Preset, Request, Why};
use crate::quant::{GgmlType, codec};
use crate::source::Dtype;
use crate::{Error, Result};
use std::path::PathBuf;

/// A run, decided.
#[derive(Debug)]
pub struct Plan {
    /// The model.
    pub source: SourceModel,
    /// What was asked for.
    pub recipe: Recipe,
    /// In the order of [`Recipe::outputs`].
    pub outputs: Vec<OutputPlan>,
    /// Where the importance matrix goes that calibration makes on the way, if it is to be kept.
    pub save_importance: Option<PathBuf>,
    /// Whether every GGUF file gets a Modelfile for Ollama beside it.
    pub modelfiles: bool,
    /// An evaluation text that calibration data should not hold.
    pub evaluation_text: Option<PathBuf>,
    /// SHA-256 of the source files, where they were hashed before.
    pub source_hashes: Option<Vec<String>>,
    /// What was odd about the source, and what of it the outputs cannot hold: a sentence each.
    pub remarks: Vec<String>,
    /// Of GGUF files, but for their types and records. `None` when none is made.
    pub(super) metadata: Option<Metadata>,
}

/// One output, decided.
#[derive(Debug)]
pub struct OutputPlan {
    /// Its place in [`Recipe::outputs`].
    pub index: usize,
    /// What was asked for.
    pub target: Target,
    /// The file (of a split one: the name that its shards' names are made of) or folder.
    pub place: PathBuf,
    /// How it is made.
    pub what: Decided,
}

impl OutputPlan {
    /// Where a file's Modelfile goes.
    pub fn modelfile(&self) -> PathBuf {
        self.place.with_extension("Modelfile")
    }
}

/// How an output is made.
#[derive(Debug)]
pub enum Decided {
    /// A GGUF file.
    File(Box<FilePlan>),
    /// A checkpoint folder.
    Folder(Box<FolderPlan>),
    /// A folder without quantization.
    Plain(Box<PlainPlan>),
}

/// A GGUF file, decided.
#[derive(Clone, Debug)]
pub struct FilePlan {
    /// Types and sizes of its tensors. Of a file with a budget, types are chosen when its losses are known.
    pub sizes: FileSizes,
    /// GGUF `general.file_type`.
    pub file_type: u32,
    /// Whose rules it follows.
    pub preset: &'static Preset,
    /// The budget, where types are chosen to fit one.
    pub limit: Option<Limit>,
    /// How a budget was spent.
    pub allocation: Option<Allocation>,
    /// Parts of the model that have no place in it, and where they have one.
    pub left_out: Vec<LeftOut>,
}

/// A part of a model that a file does not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    what: &'static str,
    reason: &'static str,
}

/// What is taken for granted about importance while types are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssumedImportance {
    /// What the recipe says.
    OfRecipe,
    /// There is some.
    Given,
    /// There is some for the presets that need it.
    WhereNeeded,
}

/// Decides everything but the reach of budgets.
pub(super) fn decide_outputs(source: &SourceModel, recipe: &Recipe, importance: AssumedImportance) -> Result<Plan> {
    recipe.check()?;
    let drawn = recipe.files().next().map(|_| source.for_files(recipe.part, recipe.mtp)).transpose()?;
    let source = drawn.as_ref().unwrap_or(source);
    if source.model.is_drawn() && recipe.folders().next().is_some() {
        let what = "make GGUF files and folders of this model in separate runs: what its tensors mean is not known";
        return Err(Error::unsupported(what));
    }
    let mut remarks = source.ckpt.remarks().to_vec();
    let metadata = match recipe.files().next() {
        Some(_) => {
            let (metadata, told) = metadata(source, recipe)?;
            remarks.extend(told);
            if source.model.part() == Part::Text {
                remarks.extend(lost(&source.model)?.iter().map(ToString::to_string));
            }
            Some(metadata)
        }
        None => None,
    };
    let mut plan = Plan {
        source: source.clone(),
        recipe: recipe.clone(),
        outputs: Vec::new(),
        save_importance: None,
        modelfiles: false,
        evaluation_text: None,
        source_hashes: None,
        remarks,
        metadata,
    };
    for (index, target) in recipe.outputs.iter().enumerate() {
        let what = match target {
            Target::Folder { format, .. } => {
                // What is planned from a configuration alone has no files.
                let is_folder = source.ckpt.gguf().is_none() && !source.ckpt.files().is_empty();
                if is_folder && !source.ckpt.dir().join("config.json").is_file() {
                    let what = "there is no config.json, which every program that loads a folder reads";
                    return Err(Error::unsupported(format!("{}: {what}", source.ckpt.dir().display())));
                }
                Decided::Folder(Box::new(FolderPlan::new(source, *format, recipe.devices, &recipe.types.tensors)?))
            }
            Target::Plain { dtype, like, .. } => {
                Decided::Plain(Box::new(PlainPlan::new(source, *dtype, like.as_ref())?))
            }
            _ => Decided::File(Box::new(plan.file(index, target, importance)?)),
        };
        let place = PathBuf::from(recipe.usual_place(target, &source.name()));
        plan.outputs.push(OutputPlan { index, target: target.clone(), place, what });
    }
    let is_packed = |row: &sizes::TensorRow| row.choice.why == Why::Kept && !row.choice.got.is_plain();
    let packed = plan.files().map(|(_, file)| file.sizes.rows.iter().filter(|row| is_packed(row)).count()).max();
    if let Some(n) = packed.filter(|n| *n > 0 && source.ckpt.gguf().is_none()) {
        plan.remarks.push(format!("{n} expert tensors are stored in MXFP4 and are kept bit for bit"));
    }
    Ok(plan)
}

impl Plan {
    /// The GGUF files, with the output that each is.
    pub fn files(&self) -> impl Iterator<Item = (&OutputPlan, &FilePlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::File(file) = &o.what { Some((o, &**file)) } else { None })
    }

    /// The folders, with the output that each is.
    pub fn folders(&self) -> impl Iterator<Item = (&OutputPlan, &FolderPlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::Folder(f) = &o.what { Some((o, &**f)) } else { None })
    }

    /// Whether GGUF files hold a model that makes vectors of texts instead of continuing them.
    pub(super) fn is_encoder(&self) -> bool {
        let arch = &self.source.model.config.arch;
        let Some(metadata) = &self.metadata else { return false };
        metadata.get(&format!("{arch}.pooling_type")).is_some()
            || metadata.bool(&format!("{arch}.attention.causal")) == Some(false)
    }

    /// The folders without quantization, with the output that each is.
    pub fn plain(&self) -> impl Iterator<Item = (&OutputPlan, &PlainPlan)> {
        self.outputs.iter().filter_map(|o| if let Decided::Plain(f) = &o.what { Some((o, &**f)) } else { None })
    }

    /// Weights of the model in GGUF files.
    pub fn weights(&self) -> u64 {
        stream::outputs(&self.source.model).iter().map(|(_, s)| s.iter().map(|d| *d as u64).product::<u64>()).sum()
    }

    /// What departs from what was asked, as far as it is known before the work.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        self.outputs.iter().flat_map(OutputPlan::ledger).collect()
    }

    /// Refuses a plan that departs from what was asked.
    ///
    /// # Errors
    /// `Unsupported` for the first departure.
    pub fn refuse_departures(&self) -> Result<()> {
        let Some(row) = self.ledger().into_iter().find(|row| row.kind != LEFT_OUT) else { return Ok(()) };
        let what = format!("{}: cannot be {}: {}", row.candidate, row.asked, row.reason);
        let error = Error::unsupported(what).hint(Hint::AllowFallback { instead: row.done });
        Err(match row.tensor {
            Some(tensor) => error.tensor(tensor),
            None => error,
        })
    }

    /// The GGUF file of a preset, whatever the outputs are.
    pub(super) fn preset_file(&self, preset: &'static Preset) -> Result<FilePlan> {
        self.decided(preset.name, preset, AssumedImportance::Given)
    }

    /// Decides the types of a GGUF file.
    fn file(&self, index: usize, target: &Target, importance: AssumedImportance) -> Result<FilePlan> {
        let (preset, limit) = match target {
            Target::Preset(preset) => (*preset, None),
            // Until the types are chosen.
            Target::Budget { limit, .. } => (f16()?, Some(*limit)),
            Target::Folder { .. } | Target::Plain { .. } => {
                return Err(Error::Internal("a folder is not a file".into()));
            }
        };
        let decided =
            self.decided(target.name(), preset, if limit.is_some() { AssumedImportance::Given } else { importance })?;
        let file_type = if let Some(Limit::Like(like)) = limit { like.file_type } else { decided.file_type };
        let mut file = FilePlan { file_type, limit, ..decided };
        file.sizes.file_bytes =
            file.sizes.padded_bytes + self.header_bytes((index, target), &file, &Facts::default())?;
        Ok(file)
    }

    fn decided(&self, name: &str, preset: &'static Preset, importance: AssumedImportance) -> Result<FilePlan> {
        let (tensors, kept) = tensors_and_kept(&self.source);
        let importance = match importance {
            AssumedImportance::OfRecipe if self.recipe.importance.is_some() || self.recipe.data.is_some() => {
                Known::Given
            }
            AssumedImportance::OfRecipe => Known::Absent,
            AssumedImportance::Given => Known::Given,
            AssumedImportance::WhereNeeded => Known::WhereNeeded,
        };
        let request = request(preset, &self.recipe)?;
        let of_files: Vec<&TypeRule> = self.recipe.types.tensors.iter().filter(|rule| rule.ty.file.is_some()).collect();
        let matches = |regex: &regex::Regex| tensors.iter().any(|(name, _)| regex.is_match(name));
        let matched = of_files.into_iter().zip(request.overrides.iter().map(|(regex, _)| matches(regex)));
        rules::all_matched(matched, "tensor of the file")?;
        let metadata = self.metadata.as_ref().ok_or_else(|| Error::Internal("no metadata".into()))?;
        let mut choices = decide(&request, preset_facts(metadata), &tensors, &kept, importance)?;
        if self.source.ckpt.gguf().is_none() {
            match self.recipe.part {
                Part::Text => {
                    keep_stored(&mut choices, &kept, preset, self.recipe.requantize, &self.source.model, &tensors);
                }
                Part::Projector => choose_of_projector(&mut choices, preset, &self.source.model, &tensors),
            }
        }
        if !self.recipe.requantize {
            refuse_requantizing(&self.source, &choices)?;
        }
        let sizes = sizes::of_file(name, preset, &tensors, &choices, 0);
        // As llama.cpp's converter marks 16-bit files with packed experts.
        let packed = preset.default.is_plain() && choices.iter().any(|c| c.got == GgmlType::MXFP4);
        let marked = presets::find("mxfp4_moe").filter(|_| packed).unwrap_or(preset);
        Ok(FilePlan {
            sizes,
            file_type: marked.file_type,
            preset,
            limit: None,
            allocation: None,
            left_out: left_out(&self.source.model, &self.recipe),
        })
    }

    /// The metadata of a file: the model's, the file type, the record of the run, and what the recipe overrides.
    ///
    /// # Errors
    /// `Request` for an override that contradicts the type of a value.
    pub(super) fn metadata(
        &self,
        (index, target): (usize, &Target),
        file: &FilePlan,
        facts: &Facts,
    ) -> Result<Metadata> {
        let mut metadata = self.metadata.clone().unwrap_or_default();
        metadata.set("general.file_type", file.file_type);
        let recipe = Recipe { outputs: vec![target.clone()], ..self.recipe.of_output(index) };
        record::write(&mut metadata, &recipe, &self.source, facts);
        record::override_metadata(&mut metadata, &self.recipe.metadata)?;
        Ok(metadata)
    }

    /// The bytes before the tensors of a file, but for what shards add.
    pub(super) fn header_bytes(&self, output: (usize, &Target), file: &FilePlan, facts: &Facts) -> Result<u64> {
        let entries = stream::entries(&self.source.model, &file.sizes.types());
        let metadata = self.metadata(output, file, facts)?;
        Ok(gguf::encode_header(&metadata, &entries, gguf::DEFAULT_ALIGNMENT).len() as u64)
    }
}

impl OutputPlan {
    /// What departs from what was asked.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        match &self.what {
            Decided::File(file) => file.ledger(self.target.name()),
            Decided::Folder(folder) => folder.departures.iter().map(|d| d.of(self.target.name())).collect(),
            Decided::Plain(folder) => folder.departures.iter().map(|d| d.of(self.target.name())).collect(),
        }
    }
}

impl FilePlan {
    fn ledger(&self, candidate: &str) -> Vec<LedgerRow> {
        let row = |r: &sizes::TensorRow| LedgerRow {
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
        };
        let left_out = self.left_out.iter().map(|left| LedgerRow {
            candidate: candidate.to_string(),
            kind: LEFT_OUT.into(),
            tensor: None,
            asked: left.what.into(),
            done: "left out".into(),
            reason: left.reason.into(),
        });
        self.sizes.fallbacks().map(row).chain(left_out).collect()
    }

    /// Takes other types; the bytes before the tensors stay as they are.
    pub(super) fn take(&mut self, choices: Vec<Choice>) {
        let tensors: Vec<_> = self.sizes.rows.iter().map(|r| (r.name.clone(), r.shape.clone())).collect();
        let before = self.sizes.file_bytes.saturating_sub(self.sizes.padded_bytes);
        self.sizes = sizes::of_file(&self.sizes.name, self.preset, &tensors, &choices, before);
    }
}

/// The kind of a row of the ledger about a part of the model that the file does not hold. It departs from no request.
pub const LEFT_OUT: &str = "left-out";

/// The parts of the source that a text model has no place for.
fn left_out(model: &Model, recipe: &Recipe) -> Vec<LeftOut> {
    if recipe.part == Part::Projector || recipe.mtp == Mtp::Only {
        return Vec::new();
    }
    let has = |reason: &str| model.dropped.iter().any(|(_, why)| why == reason);
    let encoder = LeftOut {
        what: "encoder of images or sound",
        reason: "a text model cannot hold it; it goes into a separate projector file (mmproj)",
    };
    let mtp = LeftOut { what: "multi-token prediction", reason: "llama.cpp does not support it for this architecture" };
    [(encoder, has(TOWER)), (mtp, has(WITHOUT_MTP))].into_iter().filter(|(_, has)| *has).map(|(left, _)| left).collect()
}

pub(super) fn f16() -> Result<&'static Preset> {
    presets::find("f16").ok_or_else(|| Error::Internal("no F16".into()))
}

/// The metadata of the model, and of its tokenizer; and what is to be said of the latter.
pub(crate) fn metadata(source: &SourceModel, recipe: &Recipe) -> Result<(Metadata, Vec<String>)> {
    let (ckpt, model) = (&source.ckpt, &source.model);
    let mut metadata = gguf_metadata(model, ckpt, 0)?;
    // A GGUF source's own layout and provenance are not the new file's.
    let stale = |key: &str| key == gguf::ALIGNMENT_KEY || key.starts_with("quantize.");
    for key in metadata.iter().map(|(key, _)| key.to_string()).filter(|key| stale(key)).collect::<Vec<_>>() {
        metadata.remove(&key);
    }
    let (pre, mut told) = (recipe.pretokenizer.as_deref(), Vec::new());
    if model.part() == Part::Projector {
        return Ok((metadata, told));
    }
    if ckpt.gguf().is_none() {
        let vocab = GgufVocab::from_hf_dir(ckpt.dir(), model.config.vocab, model.tokenizer_facts(), pre)?;
        vocab.write(&mut metadata);
        told.extend(vocab.remarks().iter().cloned());
    } else if let Some(name) = pre {
        metadata.set("tokenizer.ggml.pre", name);
    }
    Ok((metadata, told))
}

/// Tensors that are quantized already may be copied, but not rounded again.
fn refuse_requantizing(source: &SourceModel, choices: &[Choice]) -> Result<()> {
    let outputs = stream::outputs(&source.model);
    for (((name, _), ty), choice) in outputs.iter().zip(source_types(source)).zip(choices) {
        if let Some(ty) = ty.filter(|ty| !ty.is_plain() && *ty != choice.got) {
            let what = format!("is already quantized ({ty})");
            let error = Error::bad_file(&source.ckpt.files()[0].path, what).tensor(*name);
            return Err(error.hint(Hint::AcceptRequantizing));
        }
    }
    Ok(())
}

/// The type each output has in the source, where there is one.
fn source_types(source: &SourceModel) -> Vec<Option<GgmlType>> {
    let (ckpt, model) = (&source.ckpt, &source.model);
    let generated = model.generated.iter().map(|_| Some(GgmlType::F32));
    let mapped = model.tensors.iter().map(|t| match t.parts.first().map(|p| ckpt.tensors()[*p].dtype) {
        Some(Dtype::Ggml(ty)) => Some(ty),
        _ => None,
    });
    generated.chain(mapped).collect()
}

/// Name and shape of every tensor of a GGUF file, and the type that it has where it is not quantized.
fn tensors_and_kept(source: &SourceModel) -> (Vec<(String, Vec<usize>)>, Vec<GgmlType>) {
    let outputs = stream::outputs(&source.model);
    let kept = outputs.iter().zip(source_types(source)).map(|((name, shape), ty)| match ty {
        Some(ty) if source.ckpt.gguf().is_some() => ty,
        _ if source.model.keeps_f32(name, shape) => GgmlType::F32,
        ty => sizes::kept_type(name, shape, ty),
    });
    let kept = kept.collect();
    (outputs.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect(), kept)
}

/// What a preset and the rules of the recipe ask for.
fn request(preset: &'static Preset, recipe: &Recipe) -> Result<Request> {
    let types = &recipe.types;
    let rule = |rule: &TypeRule| {
        Ok(Some((
            rules::pattern(rule)?,
            match rule.ty.file {
                Some(ty) => ty,
                None => return Ok(None),
            },
        )))
    };
    Ok(Request {
        preset,
        pure: types.pure,
        leave_output: types.keep_output,
        output: types.output,
        embedding: types.embedding,
        overrides: types.tensors.iter().filter_map(|r| rule(r).transpose()).collect::<Result<_>>()?,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Given,
    Absent,
    WhereNeeded,
}

/// What a conversion of a checkpoint folder leaves as it is stored: packed weights, unless they may be rounded again; and in
/// 16-bit files what llama.cpp's converter leaves in F32, also where llama-quantize would round it.
fn keep_stored(
    choices: &mut [Choice],
    kept: &[GgmlType],
    preset: &Preset,
    requantize: bool,
    model: &Model,
    tensors: &[(String, Vec<usize>)],
) {
    for ((choice, kept), (name, shape)) in choices.iter_mut().zip(kept).zip(tensors) {
        let packed = !kept.is_plain() && !requantize && choice.why != Why::Asked;
        let f32 = preset.default.is_plain() && choice.why == Why::Default && model.keeps_f32(name, shape);
        // What llama-quantize never touches has the type of the file all the same; ends are kept only when asked for.
        let floats = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].contains(kept);
        let is_end = ["output.weight", "token_embd.weight"].contains(&name.as_str());
        let plain = preset.default.is_plain() && choice.why == Why::Kept && floats && !is_end;
        if packed || f32 {
            *choice = Choice { wanted: *kept, got: *kept, why: Why::Kept };
        } else if plain && !model.keeps_f32(name, shape) {
            *choice = Choice { wanted: preset.default, got: preset.default, why: Why::Default };
        }
    }
}

/// What llama.cpp's converter makes of a projector's tensors, but for those that were asked for otherwise.
fn choose_of_projector(choices: &mut [Choice], preset: &Preset, model: &Model, tensors: &[(String, Vec<usize>)]) {
    for (choice, (name, shape)) in choices.iter_mut().zip(tensors).filter(|(choice, _)| choice.why != Why::Asked) {
        let wanted = model.projector_type(name, shape, preset.default);
        let fits = shape.last().is_some_and(|cols| cols.is_multiple_of(wanted.block()));
        *choice = match (fits, wanted == preset.default) {
            (false, _) => Choice { wanted, got: GgmlType::F16, why: Why::Fallback },
            (true, true) => Choice { wanted, got: wanted, why: Why::Default },
            (true, false) => Choice { wanted, got: wanted, why: Why::Kept },
        };
    }
}

fn decide(
    request: &Request,
    facts: ModelFacts,
    tensors: &[(String, Vec<usize>)],
    all_kept: &[GgmlType],
    importance: Known,
) -> Result<Vec<Choice>> {
    let has_imatrix = importance == Known::Given;
    let candidates: Vec<Candidate> =
        tensors.iter().zip(all_kept).map(|((name, shape), kept)| Candidate { name, shape, kept: *kept }).collect();
    let facts = ModelFacts { has_imatrix, ..facts };
    let (choices, unused) = presets::choose(request, &facts, &candidates);
    if let Some(rule) = unused.first() {
        let pattern = request.overrides[*rule].0.as_str();
        return Err(Error::request(format!("the type rule '{pattern}' matches no tensor")));
    }
    for (regex, ty) in &request.overrides {
        let mut matched = choices.iter().zip(tensors).filter(|(_, (name, _))| regex.is_match(name));
        if matched.all(|(choice, _)| choice.why == Why::Kept && choice.got != *ty) {
            let what = "matches only tensors that stay as they are (norms, biases, routers)";
            return Err(Error::request(format!("the type rule '{}={ty}' {what}", regex.as_str())));
        }
    }
    for (choice, (name, _)) in choices.iter().zip(tensors) {
        let (preset, ty) = (request.preset.name, choice.got);
        let kept = choice.why == Why::Kept;
        if !kept && codec(ty).is_none_or(|c| c.quantize.is_none()) {
            return Err(Error::unsupported(format!("tensor '{name}': {ty} cannot be written")));
        }
        if !kept && sizes::needs_importance(request.preset, name, ty) && !has_imatrix {
            if importance == Known::WhereNeeded {
                return decide(request, facts, tensors, all_kept, Known::Given);
            }
            let what = format!("{preset}: tensor '{name}' in {ty} needs an importance matrix");
            return Err(Error::unsupported(what).hint(Hint::MakeImportance));
        }
    }
    Ok(choices)
}

/// What the presets need to know, from a configuration without metadata.
fn facts_of(config: &Config) -> ModelFacts<'_> {
    ModelFacts {
        arch: &config.arch,
        layers: config.layers.len(),
        heads: config.first_heads().map_or(0, |h| h.q),
        kv_heads: config.first_heads().map_or(0, |h| h.kv),
        experts: config.experts().map_or(0, |e| e.count),
        has_imatrix: false,
    }
}

/// The sizes of GGUF files of a model that is known by its configuration alone. There is no tokenizer to measure, so the
/// bytes before the tensors are an estimate.
///
/// # Errors
/// As [`super::plan()`].
pub fn sizes_of_model(model: &Model, recipe: &Recipe) -> Result<Vec<FileSizes>> {
    recipe.check()?;
    if recipe.part == Part::Projector {
        return Err(Error::unsupported("a projector is not planned from a configuration alone"));
    }
    if let Some(keys) = model.drawn_keys() {
        return sizes_of_drawn(model, &keys, recipe);
    }
    if recipe.mtp == Mtp::Only {
        return Err(Error::unsupported("the model has no layers that predict more than the next token"));
    }
    let config = &model.config;
    let mut tensors = sizes::tensors_of(config);
    tensors.extend(model.generated.iter().map(|g| (g.name.clone(), g.shape.clone())));
    let kept: Vec<GgmlType> = tensors.iter().map(|(n, s)| sizes::kept_type(n, s, None)).collect();
    let header = sizes::header_estimate(config, &tensors);
    let known = if recipe.importance.is_some() { Known::Given } else { Known::WhereNeeded };
    let presets = recipe.files().filter_map(|t| if let Target::Preset(preset) = t { Some(*preset) } else { None });
    presets
        .map(|preset| {
            let choices = decide(&request(preset, recipe)?, facts_of(config), &tensors, &kept, known)?;
            Ok(sizes::of_file(preset.name, preset, &tensors, &choices, header))
        })
        .collect()
}

/// The same of a model whose tensors a blueprint promises.
fn sizes_of_drawn(model: &Model, keys: &Metadata, recipe: &Recipe) -> Result<Vec<FileSizes>> {
    let method = model.hf_config.as_ref().and_then(|json| json.pointer("/quantization_config/quant_method")?.as_str());
    let is_packed = |name: &str| method == Some("mxfp4") && name.ends_with("_exps.weight");
    let tensors: Vec<(String, Vec<usize>)> =
        stream::outputs(model).iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    let kept = tensors.iter().map(|(name, shape)| match () {
        () if is_packed(name) => GgmlType::MXFP4,
        () if model.keeps_f32(name, shape) => GgmlType::F32,
        () => GgmlType::F16,
    });
    let kept: Vec<GgmlType> = kept.collect();
    let header = sizes::header_estimate(&model.config, &tensors);
    let known = if recipe.importance.is_some() { Known::Given } else { Known::WhereNeeded };
    let presets = recipe.files().filter_map(|t| if let Target::Preset(preset) = t { Some(*preset) } else { None });
    presets
        .map(|preset| {
            let mut choices = decide(&request(preset, recipe)?, preset_facts(keys), &tensors, &kept, known)?;
            keep_stored(&mut choices, &kept, preset, recipe.requantize, model, &tensors);
            Ok(sizes::of_file(preset.name, preset, &tensors, &choices, header))
        })
        .collect()
}
