//! GGUF files with a budget: a type for every tensor such that the file keeps to it and loses as little as it can. What a
//! type costs a tensor is measured on calibration data ([`super::sensitivity`]), the budget is spent by
//! [`crate::quant::allocate`], and the conversion that follows is the ordinary one.

use super::allocation::{AllocatedTensor, Allocation, Sensitivity};
use super::data::HoldOut;
use super::form::Form;
use super::importance::Importance;
use super::plan::{FilePlan, Plan};
use super::recipe::{Limit, Target};
use super::record::Facts;
use super::sensitivity::{self, Estimate, Losses, Rounding};
use super::sizes::{TensorRow, bytes_of};
use crate::calibration::data::DataReport;
use crate::calibration::layerwise;
use crate::control::{Run, Unit};
use crate::eval::{Loss, Method, Runnable, Windows};
use crate::feedback::{Shrink, ggml};
use crate::gguf::DEFAULT_ALIGNMENT;
use crate::quant::allocate::{Choice, allocate};
use crate::quant::presets::{self, Why};
use crate::quant::{GgmlType, codec};
use crate::writer::gguf::human;
use crate::{Error, Result};
use std::path::Path;

impl Limit {
    /// Bytes for the tensors of a file with `header` bytes before them, where the file of the preset that it is to be like
    /// takes `like` bytes.
    pub(super) fn bytes(self, weights: u64, like: u64, header: u64) -> u64 {
        match self {
            Limit::BitsPerWeight(bits) => (bits * weights as f64 / 8.0) as u64,
            Limit::Bytes(bytes) => bytes.saturating_sub(header),
            Limit::Like(_) => like.saturating_sub(header),
        }
    }

    /// Whether the padding between tensors counts.
    fn is_padded(self) -> bool {
        !matches!(self, Limit::BitsPerWeight(_))
    }

    /// The file that the size is taken from.
    fn like(self, plan: &Plan) -> Result<Option<FilePlan>> {
        match self {
            Limit::Like(preset) => plan.preset_file(preset).map(Some),
            _ => Ok(None),
        }
    }
}

/// A tensor of the output and the types it may have.
struct Item {
    shape: Vec<usize>,
    types: Vec<GgmlType>,
}

impl Item {
    fn bytes(&self, ty: GgmlType, padded: bool) -> u64 {
        let bytes = bytes_of(&self.shape, ty);
        if padded { bytes.next_multiple_of(DEFAULT_ALIGNMENT) } else { bytes }
    }
}

/// What each tensor of a file may be: what it is where it is kept or was asked for, else every type that divides its
/// rows. `like` adds the types of a preset.
fn items(file: &FilePlan, like: Option<&FilePlan>) -> Vec<Item> {
    let rows = file.sizes.rows.iter().enumerate();
    rows.map(|(i, row)| {
        let mut types = Vec::new();
        if row.choice.why == Why::Default {
            let cols = row.shape.last().copied().unwrap_or(0);
            types = GgmlType::candidates(cols);
            // Of embeddings there is no importance.
            let searched =
                |ty: &GgmlType| row.name.starts_with("blk.") || !codec(*ty).is_some_and(|c| c.needs_importance);
            types.retain(searched);
            types.extend(like.map(|like| like.sizes.rows[i].choice.got).filter(|ty| !types.contains(ty)));
        }
        if !types.contains(&row.choice.got) {
            types.push(row.choice.got);
        }
        Item { shape: row.shape.clone(), types }
    })
    .collect()
}

/// That a budget is within the reach of its file, before anything is measured.
///
/// # Errors
/// `Request` with the range that is.
pub(super) fn check(plan: &Plan, (index, target): (usize, &Target), file: &FilePlan) -> Result<()> {
    let Some(limit) = file.limit else { return Ok(()) };
    // As far as the header is known before the data is drawn.
    let facts = Facts::default();
    let header = plan.header_bytes((index, target), file, &facts)?;
    let like = limit.like(plan)?.map(|like| whole_bytes(plan, index, &like, &facts)).transpose()?;
    let bytes = limit.bytes(plan.weights(), like.unwrap_or(0), header);
    in_reach(plan, file, limit, &items(file, None), bytes, header)
}

/// Bytes of the file of a preset that takes the place of an output.
fn whole_bytes(plan: &Plan, index: usize, file: &FilePlan, facts: &Facts) -> Result<u64> {
    let header = plan.header_bytes((index, &Target::Preset(file.preset)), file, facts)?;
    Ok(file.sizes.padded_bytes + header)
}

/// That `bytes` for the tensors lie between the smallest types and 16 bits.
fn in_reach(plan: &Plan, file: &FilePlan, limit: Limit, items: &[Item], bytes: u64, header: u64) -> Result<()> {
    let sizes = items.iter().map(|item| item.types.iter().map(|ty| item.bytes(*ty, limit.is_padded())));
    let (least, most) = sizes.fold((0, 0), |(least, most), sizes| {
        (least + sizes.clone().min().unwrap_or(0), most + sizes.max().unwrap_or(0))
    });
    let reach = Reach { least, most, header, weights: plan.weights(), of: "the smallest types to 16 bits" };
    reach.check(limit, bytes, &file.sizes.name)
}

/// What an output can take.
pub(super) struct Reach {
    /// Bytes of the tensors.
    pub least: u64,
    pub most: u64,
    /// Bytes that come on top of them.
    pub header: u64,
    pub weights: u64,
    /// From what to what, in words.
    pub of: &'static str,
}

impl Reach {
    /// That `bytes` for the tensors of an output are within it.
    ///
    /// # Errors
    /// `Request` with the range that is.
    pub fn check(&self, limit: Limit, bytes: u64, name: &str) -> Result<()> {
        let Reach { least, most, header, weights, of } = *self;
        if (least..=most).contains(&bytes) {
            return Ok(());
        }
        let range = if matches!(limit, Limit::BitsPerWeight(_)) {
            let bits = |bytes: u64| 800.0 * bytes as f64 / weights.max(1) as f64;
            // Rounded into the range.
            format!("{:.2} to {:.2} bits per weight", bits(least).ceil() / 100.0, bits(most).floor() / 100.0)
        } else {
            let (least, most) = (least + header, most + header);
            format!("{least} to {most} bytes ({} to {})", human(least), human(most))
        };
        Err(Error::request(format!("{name} is out of reach: this model can take {range}, from {of}")))
    }
}

/// Chooses the types of every file with a budget. `files` are those of the plan, by their place in it.
///
/// # Errors
/// `Request` for a budget that nothing fits; those of running the model.
pub(super) fn spend(
    plan: &Plan,
    files: &mut [(usize, FilePlan)],
    held: &HoldOut,
    data: &DataReport,
    folder: &Path,
    run: Run,
) -> Result<()> {
    let mut orders = Vec::new();
    for (index, file) in files.iter_mut() {
        let Some(limit) = file.limit else { continue };
        let like = limit.like(plan)?;
        let items = items(file, like.as_ref());
        orders.push(Order { index: *index, file, limit, like, items });
    }
    if orders.is_empty() {
        return Ok(());
    }
    // One table for all: of every tensor, the types that any budget may want.
    let model = &plan.source.model;
    let generated = model.generated.len();
    let mut types: Vec<Vec<Form>> = vec![Vec::new(); model.tensors.len()];
    for order in &orders {
        for (types, item) in types.iter_mut().zip(&order.items[generated..]).filter(|(_, item)| item.types.len() > 1) {
            for ty in item.types.iter().copied().map(Form::Ggml) {
                if !types.contains(&ty) {
                    types.push(ty);
                }
            }
        }
    }
    let settings = &plan.recipe.rounding;
    let rounding = match plan.recipe.file_feedback() {
        true => Rounding::Feedback {
            shrink: Shrink { rho: settings.rho, damping: settings.damping },
            stage: ggml::Stage::default(),
        },
        false => Rounding::Ggml,
    };
    let table = measure(plan, held, types, rounding, folder, run)?;
    let imatrix = (!plan.recipe.file_feedback()).then(|| Importance::expected_facts(data));
    let facts = Facts { data: Some(data), imatrix };
    orders.into_iter().try_for_each(|order| order.spend(plan, &table, &facts))
}

/// What each tensor of the model adds to the KL divergence.
pub(super) struct Table {
    types: Vec<Vec<Form>>,
    /// In each of these types; `None` where no input was seen.
    kl: Vec<Option<Vec<f64>>>,
    pub sensitivities: Vec<Sensitivity>,
}

impl Table {
    /// What tensor number `index` adds in type `ty`; nothing is known of one whose input was not seen, and it keeps at
    /// least eight bits.
    pub fn loss(&self, index: usize, ty: Form) -> f64 {
        let known = self.kl[index].as_ref().zip(self.types[index].iter().position(|t| *t == ty));
        match known {
            Some((kl, at)) => kl[at],
            None if ty.bits() < 8.0 => f64::NAN,
            None => 0.0,
        }
    }
}

/// A file and the budget that it is to keep to.
struct Order<'a> {
    index: usize,
    file: &'a mut FilePlan,
    limit: Limit,
    like: Option<FilePlan>,
    items: Vec<Item>,
}

impl Order<'_> {
    /// Gives the file its types.
    fn spend(self, plan: &Plan, table: &Table, facts: &Facts) -> Result<()> {
        let Order { index, file, limit, like, items } = self;
        let header = plan.header_bytes((index, &plan.recipe.outputs[index]), file, facts)?;
        let like_bytes = like.as_ref().map(|like| whole_bytes(plan, index, like, facts)).transpose()?.unwrap_or(0);
        let bytes = limit.bytes(plan.weights(), like_bytes, header);
        let generated = plan.source.model.generated.len();
        let loss = |output: usize, ty: GgmlType| match output.checked_sub(generated) {
            Some(index) if items[output].types.len() > 1 => table.loss(index, Form::Ggml(ty)),
            _ => 0.0,
        };
        let choice = |output: usize, ty: GgmlType| Choice {
            bytes: items[output].bytes(ty, limit.is_padded()),
            loss: loss(output, ty),
        };
        let choices = items.iter().enumerate().map(|(i, item)| item.types.iter().map(|ty| choice(i, *ty)).collect());
        let Some(taken) = allocate(&choices.collect::<Vec<Vec<Choice>>>(), bytes) else {
            in_reach(plan, file, limit, &items, bytes, header)?;
            return Err(Error::request(format!(
                "{} is out of reach: tensors that calibration says nothing of keep eight bits",
                file.sizes.name
            )));
        };
        let types: Vec<GgmlType> = items.iter().zip(taken).map(|(item, t)| item.types[t]).collect();
        let of_budget = |(row, (item, ty)): (&TensorRow, (&Item, &GgmlType))| match item.types.len() {
            1 => row.choice.clone(),
            _ => presets::Choice { wanted: *ty, got: *ty, why: Why::Budget },
        };
        let decided = file.sizes.rows.iter().zip(items.iter().zip(&types)).map(of_budget).collect();
        file.sizes.file_bytes = file.sizes.padded_bytes + header;
        file.take(decided);
        if !matches!(limit, Limit::Like(_)) {
            file.file_type = file_type(&types, &items);
        }
        let free = (0..items.len()).filter(|i| items[*i].types.len() > 1);
        let tensors: Vec<AllocatedTensor> = free
            .map(|i| AllocatedTensor {
                tensor: file.sizes.rows[i].name.clone(),
                ty: types[i].to_string(),
                bytes: items[i].bytes(types[i], false),
                kl: loss(i, types[i]),
            })
            .collect();
        file.allocation = Some(Allocation {
            budget: bytes,
            spent: items.iter().zip(&types).map(|(item, ty)| item.bytes(*ty, limit.is_padded())).sum(),
            loss: Loss::of(plan.source.model.config.ending),
            predicted_kl: tensors.iter().map(|row| row.kl).sum(),
            preset_predicted_kl: like
                .as_ref()
                .map(|l| l.sizes.types().iter().enumerate().map(|(i, ty)| loss(i, *ty)).sum()),
            sensitivities: table.sensitivities.clone(),
            tensors,
        });
        Ok(())
    }
}

/// llama.cpp's number of the preset whose main type most weights have.
fn file_type(types: &[GgmlType], items: &[Item]) -> u32 {
    let mut weights: Vec<(GgmlType, usize)> = Vec::new();
    for (ty, item) in types.iter().zip(items) {
        let n = item.shape.iter().product::<usize>();
        match weights.iter_mut().find(|(t, _)| t == ty) {
            Some((_, sum)) => *sum += n,
            None => weights.push((*ty, n)),
        }
    }
    let main = weights.iter().max_by_key(|(_, n)| *n).map_or(GgmlType::F16, |(ty, _)| *ty);
    // Of the presets with one main type, the middle-sized.
    let of_main = || presets::PRESETS.iter().filter(|p| p.default == main);
    of_main().find(|p| p.name.ends_with("_M")).or(of_main().next()).map_or(F16, |p| p.file_type)
}

/// llama.cpp's number of the 16-bit file.
const F16: u32 = 1;

/// Windows that the KL divergence of a group is measured on.
const MEASURED: usize = 6;

/// What each tensor of the model adds to the KL divergence in each of `types`. `folder`: where files are spilled.
pub(super) fn measure(
    plan: &Plan,
    held: &HoldOut,
    types: Vec<Vec<Form>>,
    rounding: Rounding,
    folder: &Path,
    run: Run,
) -> Result<Table> {
    let source = &plan.source;
    let model = &source.model;
    let (all, sets) = held.all();
    let layers = layerwise::Options {
        sequential: false,
        bf16: false,
        held: sets,
        max_memory: run.control.max_memory,
        spill: folder.to_path_buf(),
    };
    let tokens: usize = all.iter().map(Vec::len).sum();
    let passes = model.config.layers.len() as u64;
    let losses: Vec<Option<Losses>> = {
        let _phase = run.phase("losses by type", tokens as u64 * passes, Unit::TokensByLayer(passes));
        let mut estimate = Estimate::new(&source.ckpt, model, &types, rounding, run);
        let ends = layerwise::run(&source.ckpt, model, &all, &layers, &mut estimate, run)?;
        estimate.ends(&ends)?;
        estimate.losses
    };
    let mut groups = sensitivity::groups(model, &losses);
    // Some of every set.
    let sets = &held.held.sets;
    let longest = sets.iter().map(Vec::len).max().unwrap_or(0);
    let mixed = (0..longest).flat_map(|i| sets.iter().filter_map(move |set| set.get(i)));
    let text: Vec<&Vec<u32>> = mixed.take(MEASURED).collect();
    let ctx = text.iter().map(|w| w.len()).min().unwrap_or(0);
    let stream: Vec<u32> = text.iter().flat_map(|w| w[..ctx].iter().copied()).collect();
    let windows = Windows::plan(Method::LlamaCpp { ctx }, stream.len(), None, None)?;
    let mut whole = Runnable::load(source)?;
    {
        let _phase = run.phase("sensitivities", (stream.len() * groups.len()) as u64, Unit::Tokens);
        let text = sensitivity::Text { stream: &stream, windows: &windows, folder };
        sensitivity::measure(&mut whole, &losses, &mut groups, &text, run)?;
    }
    let sensitivities = groups.iter().map(|group| Sensitivity {
        part: group.part.clone(),
        layers: (!group.layers.is_empty()).then_some((group.layers.start, group.layers.end)),
        tensors: group.members.len(),
        ty: sensitivity::probe_type(model.tensors[group.members[0]].cols()).map_or("", |ty| ty.name()).into(),
        kl: group.kl,
    });
    let sensitivities = sensitivities.collect();
    Ok(Table { kl: sensitivity::calibrated(&losses, &groups), types, sensitivities })
}
