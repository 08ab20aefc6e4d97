//! Which of several outputs is the best that a device holds, with room for its context; and why.

use super::devices::{self, Device};
use super::forecast::{self, Files};
use super::plan::Plan;
use super::{AssumedImportance, Recipe, plan_assuming};
use crate::model::SourceModel;
use crate::writer::gguf::{count, human};
use crate::{Error, Result};
use serde::Serialize;

/// The types that are chosen from where none are named: those that lose little at their size.
pub const LADDER: [&str; 7] = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q3_k_s", "q2_k"];

/// An output on a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// Bytes of its tensors.
    pub weights: u64,
    /// With buffers, runtime, and keys and values of the whole context.
    pub needed: u64,
    pub fits: bool,
    /// The longest context that fits.
    pub context: u64,
}

/// Outputs on a device, the largest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitting {
    pub device: String,
    /// What models can use of it, of all devices together.
    pub memory: u64,
    pub devices: usize,
    /// Tokens that there is to be room for, at most as many as the model reads.
    pub context: u64,
    /// Bytes of keys and values of that context, in 16 bits.
    pub cache: u64,
    pub rows: Vec<Row>,
    /// The largest that fits: more bits lose less.
    pub chosen: Option<String>,
}

/// The outputs of a plan on `count` devices. `files`: its GGUF files, as far as they are known.
///
/// # Errors
/// `Unsupported` for a model whose keys and values are not known.
pub fn fitting(plan: &Plan, files: Option<&Files>, device: &Device, count: usize, context: usize) -> Result<Fitting> {
    let model = &plan.source.model;
    let cache = forecast::cache(model).ok_or_else(|| {
        Error::unsupported("what a sequence of this model takes in memory is not known, so neither is what fits")
    })?;
    let longest = model.config.context as u64;
    let context = (context as u64).min(longest);
    let whole = Device { name: device.name.clone(), memory: device.memory * count as u64 };
    let row = |name: &str, weights: u64| {
        let fit = devices::fit(&whole, weights + cache.fixed, cache.per_token, context, longest);
        let needed = devices::with_overhead(weights + cache.fixed) + cache.per_token * context;
        Row { name: name.to_string(), weights, needed, fits: fit.fits, context: fit.context }
    };
    let of_files = files.iter().flat_map(|files| &files.targets).map(|t| row(&t.name, t.tensor_bytes));
    let of_folders = plan.folders().map(|(output, folder)| row(output.target.name(), folder.tensor_bytes()));
    let mut rows: Vec<Row> = of_files.chain(of_folders).collect();
    rows.sort_by(|a, b| b.weights.cmp(&a.weights).then(a.name.cmp(&b.name)));
    let chosen = rows.iter().find(|row| row.fits).map(|row| row.name.clone());
    let cache = cache.fixed + cache.per_token * context;
    Ok(Fitting {
        device: whole.name.clone(),
        memory: devices::usable(&whole),
        devices: count,
        context,
        cache,
        rows,
        chosen,
    })
}

/// Leaves of the outputs of a recipe the best that `count` devices hold.
///
/// # Errors
/// `Gate` where none fits; as [`fitting`] and [`super::plan()`].
pub fn choose(
    source: &SourceModel,
    recipe: &mut Recipe,
    device: &Device,
    count: usize,
    context: usize,
) -> Result<Fitting> {
    let plan = plan_assuming(source, recipe, AssumedImportance::WhereNeeded)?;
    let found = fitting(&plan, Files::of(&plan, 1).as_ref(), device, count, context)?;
    let Some(name) = &found.chosen else { return Err(Error::Gate(found.why())) };
    recipe.outputs.retain(|target| target.name() == name);
    Ok(found)
}

impl Fitting {
    /// The choice and its reason, in words.
    pub fn why(&self) -> String {
        let on = match self.devices {
            1 => self.device.clone(),
            n => format!("{n} × {}", self.device),
        };
        let (cache, context, memory) = (human(self.cache), count(self.context), human(self.memory));
        let Some(at) = self.rows.iter().position(|row| row.fits) else {
            let least =
                self.rows.last().map_or_else(String::new, |row| format!("; {} takes {}", row.name, human(row.needed)));
            return format!("none fits {on} with {context} tokens of context: {memory} can be used{least}");
        };
        let row = &self.rows[at];
        let mut out = format!(
            "{} is the largest that fits {on} with {context} tokens of context: {} of weights, {cache} of keys and values, \
             with buffers {} of {memory}",
            row.name,
            human(row.weights),
            human(row.needed),
        );
        if let Some(next) = at.checked_sub(1).map(|i| &self.rows[i]) {
            out += &format!("; {} would take {}", next.name, human(next.needed));
        }
        out
    }
}
