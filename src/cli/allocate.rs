//! `--target-bpw`, `--target-size` and `--like`: a type for every tensor such that the file keeps to a budget and loses
//! as little as it can. What a type costs a tensor is measured on calibration data ([`crate::sensitivity`]), the budget is
//! spent by [`crate::quant::allocate`], and the conversion that follows is the ordinary one.

use super::calibrate::{self, Drawing, Opened};
use super::options::{self, CANCEL};
use super::plan::{Imatrix, Planned, Prepared};
use super::progress::{Progress, Unit};
use super::{ConvertArgs, feedback};
use crate::calibration::data::DataReport;
use crate::calibration::layerwise;
use crate::convert::{self, Control};
use crate::eval::{Method, Windows};
use crate::feedback::{Shrink, ggml};
use crate::gguf::{DEFAULT_ALIGNMENT, Metadata};
use crate::plan::{self, bytes_of};
use crate::quant::GgmlType;
use crate::quant::allocate::{Choice, allocate};
use crate::quant::presets::{self, Preset, Why};
use crate::sensitivity::{self, Estimate, Losses, Rounding};
use crate::writer::gguf::human;
use crate::{Error, Result};
use clap::Args;
use serde::Serialize;

/// How large a file may be, with types chosen to fit.
#[derive(Clone, Debug, Default, Args)]
pub struct BudgetArgs {
    /// Choose types so that the tensors take so many bits per weight: 4.2 (comma-separated; needs --calibration)
    #[arg(long, value_name = "BITS", value_delimiter = ',')]
    pub target_bpw: Vec<String>,
    /// Choose types so that the file takes no more than this: 4.5GB, 900M (comma-separated; needs --calibration)
    #[arg(long, value_name = "SIZE", value_delimiter = ',',
          conflicts_with_all = ["split_max_size", "split_max_tensors", "keep_split"])]
    pub target_size: Vec<String>,
    /// Choose types so that the file takes no more than that of this preset: q4_k_m (comma-separated; needs
    /// --calibration)
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub like: Vec<String>,
}

/// A budget, checked.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: Limit,
    /// A preset made up for the file: its name, file type and nothing else. It lives as long as the process, like those
    /// of llama.cpp.
    preset: &'static Preset,
    /// The flag, for messages and for the recipe.
    flag: String,
}

#[derive(Clone, Debug)]
enum Limit {
    /// Of the tensors' data.
    BitsPerWeight(f64),
    /// Of the file.
    Bytes(u64),
    /// Of the file of a preset.
    Like(&'static Preset),
}

impl BudgetArgs {
    pub fn is_empty(&self) -> bool {
        self.target_bpw.is_empty() && self.target_size.is_empty() && self.like.is_empty()
    }

    /// Errors: `Usage` for what is no number, size or preset, or asked for twice.
    pub fn budgets(&self) -> Result<Vec<Budget>> {
        let mut budgets = Vec::new();
        for text in &self.target_bpw {
            let bits: f64 = text.parse().ok().filter(|b: &f64| b.is_finite() && *b > 0.0).ok_or_else(|| {
                Error::Usage(format!("--target-bpw {text}: not a number of bits per weight; write 4.2"))
            })?;
            budgets.push(Budget::new(Limit::BitsPerWeight(bits), format!("{text}bpw"), "--target-bpw", text));
        }
        for text in &self.target_size {
            let bytes = options::size(text)?;
            budgets.push(Budget::new(Limit::Bytes(bytes), text.clone(), "--target-size", text));
        }
        for text in &self.like {
            let preset = presets::find(text)
                .ok_or_else(|| Error::Usage(format!("--like {text}: no such preset; try --like q4_k_m")))?;
            let name = format!("like-{}", preset.name);
            budgets.push(Budget::new(Limit::Like(preset), name, "--like", &preset.name.to_lowercase()));
        }
        for (i, budget) in budgets.iter().enumerate() {
            if budgets[..i].iter().any(|b| b.preset.name == budget.preset.name) {
                return Err(Error::Usage(format!("{} is asked for twice", budget.flag)));
            }
        }
        Ok(budgets)
    }
}

impl Budget {
    fn new(limit: Limit, name: String, flag: &str, text: &str) -> Self {
        // Until the types are known.
        let file_type = if let Limit::Like(preset) = limit { preset.file_type } else { F16 };
        let preset = Preset { name: name.leak(), file_type, default: GgmlType::F16 };
        Self { limit, preset: Box::leak(Box::new(preset)), flag: format!("{flag} {text}") }
    }

    /// The target that the size is taken from.
    fn like(&self, prepared: &Prepared, args: &ConvertArgs) -> Result<Option<Planned>> {
        match self.limit {
            Limit::Like(preset) => prepared.of_preset(preset, &args.types, Imatrix::Given).map(Some),
            _ => Ok(None),
        }
    }

    /// Bytes for the tensors of a file with `header` bytes before them, where that of the preset is `like` bytes long.
    fn bytes(&self, prepared: &Prepared, like: u64, header: u64) -> u64 {
        match self.limit {
            Limit::BitsPerWeight(bits) => (bits * prepared.weights() as f64 / 8.0) as u64,
            Limit::Bytes(bytes) => bytes.saturating_sub(header),
            Limit::Like(_) => like.saturating_sub(header),
        }
    }

    /// Whether the padding between tensors counts.
    fn is_padded(&self) -> bool {
        !matches!(self.limit, Limit::BitsPerWeight(_))
    }

    /// Whether `bytes` for the tensors lie between the smallest types and 16 bits.
    fn check(&self, prepared: &Prepared, items: &[Item], bytes: u64, header: u64) -> Result<()> {
        let sizes = items.iter().map(|item| item.types.iter().map(|ty| item.bytes(*ty, self.is_padded())));
        let (least, most) = sizes.fold((0, 0), |(least, most), sizes| {
            (least + sizes.clone().min().unwrap_or(0), most + sizes.max().unwrap_or(0))
        });
        if (least..=most).contains(&bytes) {
            return Ok(());
        }
        let range = if self.is_padded() {
            let (least, most) = (least + header, most + header);
            format!("{least} to {most} bytes ({} to {})", human(least), human(most))
        } else {
            let bits = |bytes: u64| 800.0 * bytes as f64 / prepared.weights().max(1) as f64;
            // Rounded into the range.
            format!("{:.2} to {:.2} bits per weight", bits(least).ceil() / 100.0, bits(most).floor() / 100.0)
        };
        let flag = &self.flag;
        Err(Error::Usage(format!(
            "{flag} is out of reach: this model can take {range}, from the smallest types to 16 bits"
        )))
    }
}

/// llama.cpp's number of the 16-bit file.
const F16: u32 = 1;

/// How a budget was spent.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    /// Bytes that the tensors may take.
    pub budget: u64,
    pub spent: u64,
    /// Expected KL divergence from the source, nats per token, if the losses of single tensors add up.
    pub predicted_kl: f64,
    /// The same for the types of the preset that the size is taken from.
    pub preset_predicted_kl: Option<f64>,
    pub sensitivities: Vec<Sensitivity>,
    pub tensors: Vec<Row>,
}

/// What a group of tensors was measured at.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    pub part: String,
    /// First layer, and the one after the last; absent outside the layers.
    pub layers: Option<(usize, usize)>,
    pub tensors: usize,
    #[serde(rename = "type")]
    pub ty: String,
    /// KL divergence, nats per token, with the group alone in that type.
    pub kl: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub tensor: String,
    #[serde(rename = "type")]
    pub ty: String,
    pub bytes: u64,
    /// What the tensor is expected to add to the KL divergence.
    pub kl: f64,
}

/// Adds a target for every budget, its types still to be chosen.
///
/// Errors: `Usage` without calibration data, and for a budget that nothing fits.
pub fn add(prepared: &mut Prepared, budgets: &[Budget], importance: &Opened, args: &ConvertArgs) -> Result<()> {
    let Some(first) = budgets.first() else { return Ok(()) };
    if !importance.calibrates() {
        return Err(Error::Usage(format!(
            "{} chooses types by what they cost this model, which takes calibration data: add --calibration default",
            first.flag
        )));
    }
    if args.types.pure {
        return Err(Error::Usage(format!("--pure has one type for all tensors, and {} chooses them", first.flag)));
    }
    for budget in budgets {
        let f16 = presets::find("f16").ok_or_else(|| Error::Internal("no F16".into()))?;
        let mut target = prepared.of_preset(f16, &args.types, Imatrix::Given)?;
        target.preset = budget.preset;
        target.plan.name = budget.preset.name;
        target.recipe = target.recipe.replacen("--to f16", &budget.flag, 1);
        let like = budget.like(prepared, args)?.map_or(0, |like| like.plan.file_bytes);
        let header = prepared.header_bytes(&target, &args.types, &|_| ())?;
        let bytes = budget.bytes(prepared, like, header);
        budget.check(prepared, &items(prepared, &target, None), bytes, header)?;
        prepared.targets.push(target);
    }
    Ok(())
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

/// What each tensor of the output may be: what it is where it is kept or was asked for, else every type that divides its
/// rows. `like` adds the types of a preset.
fn items(prepared: &Prepared, target: &Planned, like: Option<&Planned>) -> Vec<Item> {
    use GgmlType::*;
    let outputs = convert::outputs(&prepared.model);
    let rows = outputs.iter().zip(&target.plan.rows).enumerate();
    rows.map(|(i, ((_, shape), row))| {
        let mut types = Vec::new();
        if row.choice.why == Why::Default {
            let cols = shape.last().copied().unwrap_or(0);
            types = if cols.is_multiple_of(256) {
                vec![Q2_K, Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K, Q8_0]
            } else {
                vec![Q4_0, IQ4_NL, Q4_1, Q5_0, Q5_1, Q8_0]
            };
            types.retain(|ty| cols.is_multiple_of(ty.block()));
            types.extend(like.map(|like| like.types[i]).filter(|ty| !types.contains(ty)));
        }
        if !types.contains(&row.choice.got) {
            types.push(row.choice.got);
        }
        Item { shape: shape.to_vec(), types }
    })
    .collect()
}

/// Chooses the types of the targets that [`add`] made, which are the last. Returns the calibration data, to be used again.
pub fn run(
    prepared: &mut Prepared,
    budgets: &[Budget],
    importance: &Opened,
    args: &ConvertArgs,
    threads: usize,
) -> Result<Option<Drawing>> {
    let Some(mut drawing) = importance.draw(prepared, args, true)? else { return Ok(None) };
    let first = prepared.targets.len() - budgets.len();
    let mut orders = Vec::new();
    for (budget, target) in budgets.iter().zip(&prepared.targets[first..]) {
        let like = budget.like(prepared, args)?;
        let items = items(prepared, target, like.as_ref());
        orders.push(Order { budget, target, like, items });
    }
    // One table for all: of every tensor, the types that any budget may want.
    let generated = prepared.model.generated.len();
    let mut types: Vec<Vec<GgmlType>> = vec![Vec::new(); prepared.model.tensors.len()];
    for order in &orders {
        for (types, item) in types.iter_mut().zip(&order.items[generated..]).filter(|(_, item)| item.types.len() > 1) {
            for ty in &item.types {
                if !types.contains(ty) {
                    types.push(*ty);
                }
            }
        }
    }
    let table = measure(prepared, &mut drawing, types, args, threads)?;
    let data = &drawing.data;
    let chosen: Vec<Planned> =
        orders.iter().map(|order| order.spend(prepared, &table, args, data)).collect::<Result<_>>()?;
    prepared.targets.truncate(first);
    prepared.targets.extend(chosen);
    Ok(Some(drawing))
}

/// What each tensor of the model adds to the KL divergence.
struct Table {
    types: Vec<Vec<GgmlType>>,
    /// In each of these types; `None` where no input was seen.
    kl: Vec<Option<Vec<f64>>>,
    sensitivities: Vec<Sensitivity>,
}

impl Table {
    /// What tensor number `index` adds in type `ty`; nothing is known of one whose input was not seen, and it keeps at
    /// least eight bits.
    fn loss(&self, index: usize, ty: GgmlType) -> f64 {
        let known = self.kl[index].as_ref().zip(self.types[index].iter().position(|t| *t == ty));
        match known {
            Some((kl, at)) => kl[at],
            None if ty.bits_per_weight() < 8.0 => f64::NAN,
            None => 0.0,
        }
    }
}

/// A budget and the target that it is for.
struct Order<'a> {
    budget: &'a Budget,
    target: &'a Planned,
    like: Option<Planned>,
    items: Vec<Item>,
}

impl Order<'_> {
    /// The target with its types.
    fn spend(&self, prepared: &Prepared, table: &Table, args: &ConvertArgs, data: &DataReport) -> Result<Planned> {
        let Order { budget, target, like, items } = self;
        let also = |metadata: &mut Metadata| run_metadata(metadata, args, data);
        let header = prepared.header_bytes(target, &args.types, &also)?;
        let file = |like: &Planned| Ok(like.plan.padded_bytes + prepared.header_bytes(like, &args.types, &also)?);
        let like_bytes = like.as_ref().map(file).transpose()?.unwrap_or(0);
        let bytes = budget.bytes(prepared, like_bytes, header);
        let generated = prepared.model.generated.len();
        let loss = |output: usize, ty: GgmlType| match output.checked_sub(generated) {
            Some(index) if items[output].types.len() > 1 => table.loss(index, ty),
            _ => 0.0,
        };
        let choice = |output: usize, ty: GgmlType| Choice {
            bytes: items[output].bytes(ty, budget.is_padded()),
            loss: loss(output, ty),
        };
        let choices = items.iter().enumerate().map(|(i, item)| item.types.iter().map(|ty| choice(i, *ty)).collect());
        let Some(taken) = allocate(&choices.collect::<Vec<Vec<Choice>>>(), bytes) else {
            budget.check(prepared, items, bytes, header)?;
            let flag = &budget.flag;
            return Err(Error::Usage(format!(
                "{flag} is out of reach: tensors that calibration says nothing of keep eight bits"
            )));
        };
        let types: Vec<GgmlType> = items.iter().zip(taken).map(|(item, t)| item.types[t]).collect();
        let of_budget = |(row, (item, ty)): (&plan::Row, (&Item, &GgmlType))| match item.types.len() {
            1 => row.choice.clone(),
            _ => presets::Choice { wanted: *ty, got: *ty, why: Why::Budget },
        };
        let decided = target.plan.rows.iter().zip(items.iter().zip(&types)).map(of_budget).collect();
        let mut chosen = Planned::clone(target);
        chosen.plan.file_bytes = chosen.plan.padded_bytes + header;
        chosen.decide(prepared, decided);
        if !matches!(budget.limit, Limit::Like(_)) {
            let preset = Preset { name: target.preset.name, file_type: file_type(&types, items), ..*target.preset };
            chosen.preset = Box::leak(Box::new(preset));
        }
        let free = (0..items.len()).filter(|i| items[*i].types.len() > 1);
        let tensors: Vec<Row> = free
            .map(|i| Row {
                tensor: chosen.plan.rows[i].name.clone(),
                ty: types[i].to_string(),
                bytes: items[i].bytes(types[i], false),
                kl: loss(i, types[i]),
            })
            .collect();
        chosen.allocation = Some(Allocation {
            budget: bytes,
            spent: items.iter().zip(&types).map(|(item, ty)| item.bytes(*ty, budget.is_padded())).sum(),
            predicted_kl: tensors.iter().map(|row| row.kl).sum(),
            preset_predicted_kl: like.as_ref().map(|l| l.types.iter().enumerate().map(|(i, ty)| loss(i, *ty)).sum()),
            sensitivities: table.sensitivities.clone(),
            tensors,
        });
        Ok(chosen)
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

/// What the run adds to the metadata, at most.
fn run_metadata(metadata: &mut Metadata, args: &ConvertArgs, data: &DataReport) {
    calibrate::describe(metadata, data);
    match args.search.is_feedback(true) {
        Ok(true) => args.search.record(metadata),
        _ => {
            if let Some(file) = &args.save_imatrix {
                metadata.set("quantize.imatrix.file", file.display().to_string());
            }
            let longest = data.sources.iter().map(|s| s.name.as_str()).max_by_key(|name| name.len());
            metadata.set("quantize.imatrix.dataset", longest.unwrap_or_default());
            metadata.set("quantize.imatrix.entries_count", 0u32);
            metadata.set("quantize.imatrix.chunks_count", 0u32);
            metadata.set("quantize.imatrix.unseen_experts", args.imatrix.unseen_experts.unwrap_or_default().name());
        }
    }
}

/// Windows that the KL divergence of a group is measured on.
const MEASURED: usize = 6;

/// What each tensor of the model adds to the KL divergence in each of `types`.
fn measure(
    prepared: &Prepared,
    drawing: &mut Drawing,
    types: Vec<Vec<GgmlType>>,
    args: &ConvertArgs,
    threads: usize,
) -> Result<Table> {
    let quiet = args.common.quiet;
    let (model, held) = (&prepared.model, feedback::hold_out(drawing, args)?);
    let (all, sets) = held.all(drawing.windows.clone());
    let folder = options::scratch_folder(args.output.as_deref());
    let layers = layerwise::Options {
        sequential: false,
        bf16: false,
        held: sets,
        max_memory: args.search.max_memory,
        spill: folder.clone(),
    };
    let rounding = match args.search.is_feedback(true)? {
        true => Rounding::Feedback {
            shrink: Shrink { rho: args.search.rho, damping: args.search.damping },
            stage: ggml::Stage::default(),
        },
        false => Rounding::Ggml,
    };
    let tokens: usize = all.iter().map(Vec::len).sum();
    let passes = model.config.layers.len() as u64;
    let progress = Progress::new("losses by type", tokens as u64 * passes, Unit::TokensByLayer(passes), quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let mut estimate = Estimate::new(&prepared.ckpt, model, &types, rounding, &control);
    let ends = layerwise::run(&prepared.ckpt, model, &all, &layers, &mut estimate, &control)?;
    estimate.ends(&ends)?;
    let losses: Vec<Option<Losses>> = estimate.losses;
    progress.finish();
    let mut groups = sensitivity::groups(model, &losses);
    // Some of every set.
    let longest = held.sets.iter().map(Vec::len).max().unwrap_or(0);
    let mixed = (0..longest).flat_map(|i| held.sets.iter().filter_map(move |set| set.get(i)));
    let text: Vec<&Vec<u32>> = mixed.take(MEASURED).collect();
    let ctx = text.iter().map(|w| w.len()).min().unwrap_or(0);
    let stream: Vec<u32> = text.iter().flat_map(|w| w[..ctx].iter().copied()).collect();
    let windows = Windows::plan(Method::LlamaCpp { ctx }, stream.len(), None, None)?;
    let progress = Progress::new("sensitivities", (stream.len() * groups.len()) as u64, Unit::Tokens, quiet);
    let control = Control { threads, cancel: &CANCEL, advance: &|n| progress.advance(n) };
    let text = sensitivity::Text { stream: &stream, windows: &windows, folder: &folder };
    sensitivity::measure(&mut drawing.model, &losses, &mut groups, &text, &control)?;
    progress.finish();
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

/// The types chosen, part by part, for the person at the terminal.
pub fn table(target: &Planned) -> String {
    let Some(allocation) = &target.allocation else { return String::new() };
    // How many tensors of a part have each type.
    type Types<'a> = Vec<(&'a str, usize)>;
    let mut parts: Vec<(&str, f64, Types)> = Vec::new();
    for row in &allocation.tensors {
        let name = row.tensor.trim_end_matches(".weight");
        let part = name.rsplit('.').next().unwrap_or(name);
        let at = parts.iter().position(|p| p.0 == part).unwrap_or_else(|| {
            parts.push((part, 0.0, Vec::new()));
            parts.len() - 1
        });
        let (_, kl, types) = &mut parts[at];
        *kl += row.kl;
        match types.iter_mut().find(|t| t.0 == row.ty) {
            Some((_, n)) => *n += 1,
            None => types.push((&row.ty, 1)),
        }
    }
    let mut out = format!("{}: expected KL {:.4}", target.preset.name, allocation.predicted_kl);
    if let Some(of_preset) = allocation.preset_predicted_kl {
        out += &format!(" (the preset's types {of_preset:.4})");
    }
    out += &format!(", {} of {} bytes\n", allocation.spent, allocation.budget);
    for (part, kl, mut types) in parts {
        types.sort();
        let types: Vec<String> = types.iter().map(|(ty, n)| format!("{ty} ×{n}")).collect();
        out += &format!("  {part:<16} {kl:.5}  {}\n", types.join("  "));
    }
    out
}
