//! The type of every tensor of a GGUF file: what the rules of its preset and of the recipe say, and what stays as it is
//! stored. Decided from names and shapes; no weight is read.

use super::layout::rules;
use super::recipe::{Recipe, Target, TypeRule};
use super::sizes::{self, FileSizes};
use super::stream;
use crate::error::Hint;
use crate::model::{Config, Model, Mtp, Part, SourceModel, preset_facts};
use crate::quant::presets::{self, Candidate, Choice, ModelFacts, Preset, Request, Why};
use crate::quant::{GgmlType, codec};
use crate::source::Dtype;
use crate::{Error, Result};

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

/// A tensor of a file, decided. `shape` is outermost first.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Its type where it is not quantized.
    kept: GgmlType,
    choice: Choice,
}

impl Tensor {
    fn new(name: &str, shape: &[usize], kept: GgmlType) -> Self {
        let (name, shape) = (name.to_string(), shape.to_vec());
        Self { name, shape, kept, choice: Choice { wanted: kept, got: kept, why: Why::Kept } }
    }

    fn fits(&self, ty: GgmlType) -> bool {
        self.shape.last().is_some_and(|cols| cols.is_multiple_of(ty.block()))
    }

    /// Its row in [`sizes::of_file`].
    pub fn decided(self) -> (String, Vec<usize>, Choice) {
        (self.name, self.shape, self.choice)
    }
}

/// The tensors of a file made of `source`, in the order of [`stream::outputs`].
///
/// # Errors
/// `Request` for a rule without effect; `Unsupported` for a type that cannot be written, or not without importance;
/// `BadInput` for a quantized tensor that would be rounded again.
pub(super) fn of_source(
    source: &SourceModel,
    recipe: &Recipe,
    preset: &'static Preset,
    facts: ModelFacts,
    importance: AssumedImportance,
) -> Result<Vec<Tensor>> {
    let is_gguf = source.ckpt.gguf().is_some();
    let outputs = stream::outputs(&source.model).into_iter().zip(source_types(source));
    let kept = |name: &str, shape: &[usize], ty| match ty {
        Some(ty) if is_gguf => ty,
        _ if source.model.keeps_f32(name, shape) => GgmlType::F32,
        ty => sizes::kept_type(name, shape, ty),
    };
    let tensors = outputs.map(|((name, shape), ty)| Tensor::new(name, shape, kept(name, shape, ty)));
    let mut tensors: Vec<Tensor> = tensors.collect();
    let request = request(preset, recipe)?;
    let of_files = recipe.types.tensors.iter().filter(|rule| rule.ty.file.is_some());
    let matches = |regex: &regex::Regex| tensors.iter().any(|t| regex.is_match(&t.name));
    let matched = of_files.zip(request.overrides.iter().map(|(regex, _)| matches(regex)));
    rules::all_matched(matched.collect::<Vec<_>>(), "tensor of the file")?;
    let known = match importance {
        AssumedImportance::OfRecipe if recipe.importance.is_some() || recipe.data.is_some() => ImportanceState::Given,
        AssumedImportance::OfRecipe => ImportanceState::Absent,
        AssumedImportance::Given => ImportanceState::Given,
        AssumedImportance::WhereNeeded => ImportanceState::WhereNeeded,
    };
    decide(&request, facts, &mut tensors, known)?;
    match recipe.part {
        _ if is_gguf => {}
        Part::Text => keep_stored(&mut tensors, preset, recipe.requantize, &source.model),
        Part::Projector => choose_of_projector(&mut tensors, preset, &source.model),
    }
    if !recipe.requantize {
        refuse_requantizing(source, &tensors)?;
    }
    Ok(tensors)
}

/// The preset whose number a file gets: as llama.cpp's converter marks 16-bit files with packed experts.
pub(super) fn marked(preset: &'static Preset, tensors: &[Tensor]) -> &'static Preset {
    let packed = preset.default.is_plain() && tensors.iter().any(|t| t.choice.got == GgmlType::MXFP4);
    presets::find("mxfp4_moe").filter(|_| packed).unwrap_or(preset)
}

/// The type each output has in the source, where there is one.
fn source_types(source: &SourceModel) -> impl Iterator<Item = Option<GgmlType>> {
    let (ckpt, model) = (&source.ckpt, &source.model);
    let generated = model.generated.iter().map(|_| Some(GgmlType::F32));
    let mapped = model.tensors.iter().map(|t| match t.parts.first().map(|p| ckpt.tensors()[*p].dtype) {
        Some(Dtype::Ggml(ty)) => Some(ty),
        _ => None,
    });
    generated.chain(mapped)
}

/// Tensors that are quantized already may be copied, but not rounded again.
fn refuse_requantizing(source: &SourceModel, tensors: &[Tensor]) -> Result<()> {
    for (tensor, ty) in tensors.iter().zip(source_types(source)) {
        if let Some(ty) = ty.filter(|ty| !ty.is_plain() && *ty != tensor.choice.got) {
            let what = format!("is already quantized ({ty})");
            let error = Error::bad_file(&source.ckpt.files()[0].path, what).tensor(&*tensor.name);
            return Err(error.hint(Hint::AcceptRequantizing));
        }
    }
    Ok(())
}

/// What a preset and the rules of the recipe ask for.
fn request(preset: &'static Preset, recipe: &Recipe) -> Result<Request> {
    let types = &recipe.types;
    // A pattern that is none is refused, whatever its rule is for.
    let own = |rule: &TypeRule| rules::pattern(rule).map(|pattern| Some((pattern, rule.ty.file?)));
    let overrides: Vec<Option<_>> = types.tensors.iter().map(own).collect::<Result<_>>()?;
    Ok(Request {
        preset,
        pure: types.pure,
        leave_output: types.keep_output,
        output: types.output,
        embedding: types.embedding,
        overrides: overrides.into_iter().flatten().collect(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ImportanceState {
    Given,
    Absent,
    WhereNeeded,
}

/// What a conversion of a checkpoint folder leaves as it is stored: packed weights, unless they may be rounded again; and in
/// 16-bit files what llama.cpp's converter leaves in F32, also where llama-quantize would round it.
fn keep_stored(tensors: &mut [Tensor], preset: &Preset, requantize: bool, model: &Model) {
    for Tensor { name, shape, kept, choice } in tensors {
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
fn choose_of_projector(tensors: &mut [Tensor], preset: &Preset, model: &Model) {
    for tensor in tensors.iter_mut().filter(|t| t.choice.why != Why::Asked) {
        let wanted = model.projector_type(&tensor.name, &tensor.shape, preset.default);
        tensor.choice = match (tensor.fits(wanted), wanted == preset.default) {
            (false, _) => Choice { wanted, got: GgmlType::F16, why: Why::Fallback },
            (true, true) => Choice { wanted, got: wanted, why: Why::Default },
            (true, false) => Choice { wanted, got: wanted, why: Why::Kept },
        };
    }
}

fn decide(request: &Request, facts: ModelFacts, tensors: &mut [Tensor], importance: ImportanceState) -> Result<()> {
    let has_imatrix = importance == ImportanceState::Given;
    let candidates: Vec<Candidate> =
        tensors.iter().map(|t| Candidate { name: &t.name, shape: &t.shape, kept: t.kept }).collect();
    let facts = ModelFacts { has_imatrix, ..facts };
    let (choices, unused) = presets::choose(request, &facts, &candidates);
    if let Some(rule) = unused.first() {
        let pattern = request.overrides[*rule].0.as_str();
        return Err(Error::request(format!("the type rule '{pattern}' matches no tensor")));
    }
    tensors.iter_mut().zip(choices).for_each(|(tensor, choice)| tensor.choice = choice);
    for (regex, ty) in &request.overrides {
        let mut matched = tensors.iter().filter(|t| regex.is_match(&t.name));
        if matched.all(|t| t.choice.why == Why::Kept && t.choice.got != *ty) {
            let what = "matches only tensors that stay as they are (norms, biases, routers)";
            return Err(Error::request(format!("the type rule '{}={ty}' {what}", regex.as_str())));
        }
    }
    for Tensor { name, choice, .. } in tensors.iter().filter(|t| t.choice.why != Why::Kept) {
        let ty = choice.got;
        if codec(ty).is_none_or(|c| c.quantize.is_none()) {
            return Err(Error::unsupported(format!("tensor '{name}': {ty} cannot be written")));
        }
        if !has_imatrix && sizes::needs_importance(request.preset, name, ty) {
            if importance == ImportanceState::WhereNeeded {
                return decide(request, facts, tensors, ImportanceState::Given);
            }
            let what = format!("{}: tensor '{name}' in {ty} needs an importance matrix", request.preset.name);
            return Err(Error::unsupported(what).hint(Hint::MakeImportance));
        }
    }
    Ok(())
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
    let drawn = model.drawn_keys();
    if drawn.is_none() && recipe.mtp == Mtp::Only {
        return Err(Error::unsupported("the model has no layers that predict more than the next token"));
    }
    let tensors = match &drawn {
        Some(_) => tensors_drawn(model),
        None => tensors_of_config(model),
    };
    let facts = drawn.as_ref().map_or_else(|| facts_of(&model.config), preset_facts);
    let header = sizes::header_estimate(&model.config, tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())));
    let known = if recipe.importance.is_some() { ImportanceState::Given } else { ImportanceState::WhereNeeded };
    let presets = recipe.files().filter_map(|t| if let Target::Preset(preset) = t { Some(*preset) } else { None });
    presets
        .map(|preset| {
            let mut tensors = tensors.clone();
            decide(&request(preset, recipe)?, facts, &mut tensors, known)?;
            if drawn.is_some() {
                keep_stored(&mut tensors, preset, recipe.requantize, model);
            }
            Ok(sizes::of_file(preset.name, preset, tensors.into_iter().map(Tensor::decided), header))
        })
        .collect()
}

/// What a family's table says that there is, in GGUF order.
fn tensors_of_config(model: &Model) -> Vec<Tensor> {
    let expected = crate::model::expected_tensors(&model.config).into_iter().map(|(name, shape, ..)| (name, shape));
    let generated = model.generated.iter().map(|g| (g.name.clone(), g.shape.clone()));
    let tensor =
        |(name, shape): (String, Vec<usize>)| Tensor::new(&name, &shape, sizes::kept_type(&name, &shape, None));
    expected.chain(generated).map(tensor).collect()
}

/// What a blueprint promises.
fn tensors_drawn(model: &Model) -> Vec<Tensor> {
    let method = model.hf_config.as_ref().and_then(|json| json.pointer("/quantization_config/quant_method")?.as_str());
    let is_packed = |name: &str| method == Some("mxfp4") && name.ends_with("_exps.weight");
    let kept = |name: &str, shape: &[usize]| match () {
        () if is_packed(name) => GgmlType::MXFP4,
        () if model.keeps_f32(name, shape) => GgmlType::F32,
        () => GgmlType::F16,
    };
    stream::outputs(model).into_iter().map(|(name, shape)| Tensor::new(name, shape, kept(name, shape))).collect()
}
