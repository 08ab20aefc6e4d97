//! Folders with a budget: a format for every module, of those that its tool can mix, such that the tensors keep to it and
//! lose as little as they can. What a format costs is measured as for GGUF files ([`super::budget`]); the choice becomes
//! rules for single modules, and the conversion that follows is the ordinary one.

use super::allocation::{AllocatedTensor, Allocation};
use super::budget::{Reach, Table, measure};
use super::data::{Decides, Drawing, hold_out_for_files};
use super::form::Form;
use super::layout::FolderPlan;
use super::layout::quantized::refusal;
use super::layout::rules::{Alike, ModulePlan};
use super::plan::Plan;
use super::recipe::{FolderType, Limit, RuleType, TypeRule};
use super::rounding::has_feedback;
use super::sensitivity::Rounding;
use crate::control::Run;
use crate::eval::Loss;
use crate::feedback::{Shrink, int};
use crate::packed::{Mixture, Spec};
use crate::quant::allocate::{Choice, allocate};
use crate::source::Checkpoint;
use crate::writer::safetensors;
use crate::{Error, Result};
use std::collections::HashMap;

/// Modules of a folder that are stored alike, and the ways in which they may be.
struct Item {
    modules: Vec<usize>,
    choices: Mixture,
}

impl Item {
    fn bytes(&self, ckpt: &Checkpoint, folder: &FolderPlan, choice: Option<Spec>) -> u64 {
        self.modules.iter().map(|m| bytes_of(ckpt, &folder.modules[*m], choice)).sum()
    }

    /// The names of its tensors in a GGUF file, by which its losses are known.
    fn tensors<'a>(&self, folder: &'a FolderPlan) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.modules.iter().map(|m| folder.modules[*m].module.gguf.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Bytes of a module; `None`: as it is.
fn bytes_of(ckpt: &Checkpoint, ModulePlan { module: m, .. }: &ModulePlan, choice: Option<Spec>) -> u64 {
    match choice {
        Some(spec) => spec.sizes(m.rows, m.cols, m.scale_type(ckpt)),
        None => {
            let meta = m.meta(ckpt);
            meta.bytes() / meta.elements().max(1) as u64 * (m.rows * m.cols) as u64
        }
    }
}

/// What may be chosen: sets of modules that no rule and no departure has decided, with more than one way to store them.
fn items(plan: &Plan, folder: &FolderPlan) -> Vec<Item> {
    #[derive(PartialEq, Eq, Hash)]
    enum Key<'a> {
        Alike(Alike<'a>),
        /// Single experts of a stack have one loss.
        Tensor(&'a str),
    }
    let fuses = folder.spec.loader().fuses();
    let (mut sets, mut places): (Vec<Vec<usize>>, HashMap<Key, usize>) = (Vec::new(), HashMap::new());
    for (i, module) in folder.modules.iter().enumerate() {
        let key = module.alike_where(fuses).map_or(Key::Tensor(&module.module.gguf), Key::Alike);
        let at = *places.entry(key).or_insert(sets.len());
        if at == sets.len() {
            sets.push(Vec::new());
        }
        sets[at].push(i);
    }
    let devices = plan.recipe.devices.max(1);
    let item = |modules: Vec<usize>| {
        let all = || modules.iter().map(|m| &folder.modules[*m]);
        let is_free = all().all(|m| m.spec == Some(folder.spec) && !m.ruled);
        let fits = |choice: &Option<Spec>| {
            choice.is_none_or(|spec| all().all(|m| refusal(&spec, &m.module, devices).is_none()))
        };
        let choices: Mixture = folder.spec.mixture().into_iter().filter(fits).collect();
        (is_free && choices.len() > 1).then_some(Item { modules, choices })
    };
    sets.into_iter().filter_map(item).collect()
}

/// A folder, its budget, and what is left to choose.
struct Order<'a> {
    folder: &'a FolderPlan,
    name: &'a str,
    limit: Limit,
    items: Vec<Item>,
    /// Bytes of the tensors that there is no choice for.
    fixed: u64,
    /// With the headers of the folder as it is without a budget.
    reach: Reach,
}

impl<'a> Order<'a> {
    /// `None` for a folder without a budget.
    ///
    /// # Errors
    /// `Request` with the range that is within reach, for a budget beyond it.
    fn new(plan: &Plan, name: &'a str, folder: &'a FolderPlan) -> Result<Option<Self>> {
        let Some(limit) = folder.limit else { return Ok(None) };
        let ckpt = &*plan.source.ckpt;
        let items = items(plan, folder);
        if items.is_empty() {
            return Err(Error::request(format!(
                "{name}: there is nothing to choose for {} in this model",
                folder.spec
            )));
        }
        let own: u64 = items.iter().map(|item| item.bytes(ckpt, folder, Some(folder.spec))).sum();
        let fixed = folder.tensor_bytes().saturating_sub(own);
        let (mut least, mut most) = (fixed, fixed);
        for item in &items {
            let sizes = item.choices.iter().map(|choice| item.bytes(ckpt, folder, *choice));
            least += sizes.clone().min().unwrap_or(0);
            most += sizes.max().unwrap_or(0);
        }
        let (weights, header) = (folder.weights(ckpt), headers(plan, folder)?);
        let of = "the smallest formats that can be mixed to the largest";
        let reach = Reach { least, most, header, weights, of };
        reach.check(limit, limit.bytes(weights, 0, header), name)?;
        Ok(Some(Self { folder, name, limit, items, fixed, reach }))
    }

    /// The folder with a format for every module. How long headers are depends on the choice; where they are longer than was
    /// thought, it is made again.
    fn spend(&self, plan: &Plan, table: &Table, places: &HashMap<&str, usize>) -> Result<FolderPlan> {
        let mut known = self.reach.header;
        loop {
            let made = self.chosen(plan, table, places, known)?;
            match headers(plan, &made)? {
                longer if longer > known && matches!(self.limit, Limit::Bytes(_)) => known = longer,
                _ => return Ok(made),
            }
        }
    }

    /// A way to store a module, and how its codes will be chosen.
    fn form(&self, plan: &Plan, module: &ModulePlan, choice: Option<Spec>) -> Form {
        let feedback = has_feedback(&self.folder.spec, &plan.recipe.rounding, plan.recipe.data.is_some());
        match choice {
            // What lies outside the layers is rounded to nearest.
            Some(spec) => Form::Module { spec, feedback: feedback && module.module.layer.is_some() },
            None => Form::Kept,
        }
    }

    /// The same where so many bytes come before the tensors.
    fn chosen(&self, plan: &Plan, table: &Table, places: &HashMap<&str, usize>, headers: u64) -> Result<FolderPlan> {
        let Order { folder, items, .. } = self;
        let ckpt = &*plan.source.ckpt;
        let budget = self.limit.bytes(self.reach.weights, 0, headers);
        let loss_of = |name: &str, form| places.get(name).map_or(f64::NAN, |at| table.loss(*at, form));
        let loss = |item: &Item, choice: Option<Spec>| -> f64 {
            let form = self.form(plan, &folder.modules[item.modules[0]], choice);
            item.tensors(folder).into_iter().map(|name| loss_of(name, form)).sum()
        };
        let choice = |item: &Item, choice: &Option<Spec>| Choice {
            bytes: item.bytes(ckpt, folder, *choice),
            loss: loss(item, *choice),
        };
        let choices = items.iter().map(|item| item.choices.iter().map(|c| choice(item, c)).collect());
        let choices: Vec<Vec<Choice>> = choices.collect();
        let Some(taken) = allocate(&choices, budget.saturating_sub(self.fixed)) else {
            Reach { header: headers, ..self.reach }.check(self.limit, budget, self.name)?;
            let what = "modules that calibration says nothing of keep eight bits";
            return Err(Error::request(format!("{} is out of reach: {what}", self.name)));
        };
        let chosen: Vec<(&Item, Option<Spec>)> = items.iter().zip(taken).map(|(i, t)| (i, i.choices[t])).collect();
        let other = chosen.iter().filter(|(_, choice)| *choice != Some(folder.spec));
        let rules = other.map(|(item, choice)| rule(&item.tensors(folder), *choice));
        let rules: Vec<TypeRule> = plan.recipe.types.tensors.iter().cloned().chain(rules).collect();
        let made = FolderPlan::new(&plan.source, folder.spec, plan.recipe.devices, &rules)?;
        let mut tensors = Vec::new();
        for (item, choice) in &chosen {
            let form = self.form(plan, &folder.modules[item.modules[0]], *choice);
            for name in item.tensors(folder) {
                let modules = item.modules.iter().map(|m| &folder.modules[*m]);
                let own: Vec<&ModulePlan> = modules.filter(|m| m.module.gguf == name).collect();
                tensors.push(AllocatedTensor {
                    // Experts have one name together.
                    tensor: if let [module] = own[..] { module.name("weight") } else { name.to_string() },
                    ty: choice.map_or("keep".into(), |spec| spec.to_string()),
                    bytes: own.iter().map(|m| bytes_of(ckpt, m, *choice)).sum(),
                    kl: loss_of(name, form),
                });
            }
        }
        let allocation = Allocation {
            budget,
            spent: made.tensor_bytes(),
            loss: Loss::of(plan.source.model.config.ending),
            predicted_kl: tensors.iter().map(|row| row.kl).sum(),
            preset_predicted_kl: None,
            sensitivities: table.sensitivities.clone(),
            tensors,
        };
        Ok(FolderPlan { limit: Some(self.limit), allocation: Some(allocation), ..made })
    }
}

/// Bytes before the tensors, in all files of a folder.
fn headers(plan: &Plan, folder: &FolderPlan) -> Result<u64> {
    let format = folder.spec.loader().metadata_format();
    let layout = safetensors::layout(&folder.entries, format, plan.recipe.split.of_folders())?;
    Ok(layout.shards.iter().map(|shard| shard.len).sum::<u64>().saturating_sub(layout.tensor_bytes))
}

/// The rule that gives modules of these GGUF names what was chosen.
fn rule(names: &[&str], choice: Option<Spec>) -> TypeRule {
    let names: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    let folder = Some(choice.map_or(FolderType::Keep, FolderType::Format));
    TypeRule { pattern: format!("^(?:{})$", names.join("|")), ty: RuleType { file: None, folder } }
}

/// That a budget is within the reach of its folder, before anything is measured.
///
/// # Errors
/// `Request` with the range that is.
pub(super) fn check(plan: &Plan, name: &str, folder: &FolderPlan) -> Result<()> {
    Order::new(plan, name, folder).map(|_| ())
}

/// Chooses the formats of every folder with a budget. `folders` are those of the plan, by their place in it.
///
/// # Errors
/// `Request` for a budget that nothing fits; those of running the model.
pub(super) fn spend(
    plan: &Plan,
    folders: &mut [(usize, FolderPlan)],
    drawing: Option<&Drawing>,
    run: Run,
) -> Result<()> {
    let budgets: Vec<(usize, FolderPlan)> = folders.iter().filter(|(_, f)| f.limit.is_some()).cloned().collect();
    let Some((first, _)) = budgets.first() else { return Ok(()) };
    let (Some(drawing), Some(data)) = (drawing, &plan.recipe.data) else {
        return Err(Error::Internal("a budget without calibration data".into()));
    };
    let orders = budgets.iter().filter_map(|(index, folder)| {
        let order = Order::new(plan, plan.outputs[*index].target.name(), folder).transpose()?;
        Some(order.map(|order| (*index, order)))
    });
    let orders = orders.collect::<Result<Vec<_>>>()?;
    // One table for all: of every tensor, the formats that any budget may want.
    let tensors = &plan.source.model.tensors;
    let places: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut wanted: Vec<Vec<Form>> = vec![Vec::new(); tensors.len()];
    for (_, order) in &orders {
        for (item, module) in order.items.iter().flat_map(|item| item.modules.iter().map(move |m| (item, *m))) {
            let module = &order.folder.modules[module];
            let Some(at) = places.get(module.module.gguf.as_str()) else { continue };
            for choice in &item.choices {
                let form = order.form(plan, module, *choice);
                if !wanted[*at].contains(&form) {
                    wanted[*at].push(form);
                }
            }
        }
    }
    let held = hold_out_for_files(&plan.source, data, &drawing.windows, Decides::Types)?;
    let settings = &plan.recipe.rounding;
    let shrink = Shrink { rho: settings.rho, damping: settings.damping };
    let search = int::Search { static_groups: settings.static_groups, ..int::Search::default() };
    let spill = run.spill_folder(&plan.outputs[*first].place);
    let table = measure(plan, &held, wanted, Rounding::Modules { shrink, search }, &spill, run)?;
    for (index, order) in &orders {
        let made = order.spend(plan, &table, &places)?;
        if let Some((_, folder)) = folders.iter_mut().find(|(own, _)| own == index) {
            *folder = made;
        }
    }
    Ok(())
}
