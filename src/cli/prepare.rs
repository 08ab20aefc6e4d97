//! What every command that plans a conversion does first: flags become a recipe, the model is found and opened; and, once
//! it is planned, what the user has to accept.

use super::commands::ConvertArgs;
use super::progress::Terminal;
use super::{advice, idle, interrupt, options, plan, recipe};
use crate::control::Control;
use crate::convert::{Plan, Recipe};
use crate::model::SourceModel;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A conversion that can be planned.
pub struct Prepared {
    pub control: Control,
    pub terminal: Terminal,
    pub recipe: Recipe,
    /// The model as it was named, and where it is.
    pub named: String,
    pub path: PathBuf,
    pub source: SourceModel,
}

/// `given`: the flags that the user gave, whose effect this run has to have. `before`: what can refuse the recipe before a
/// model is looked for.
///
/// # Errors
/// `Usage` for flags that contradict each other or have no effect; those of finding and opening the model.
pub fn prepare(args: &ConvertArgs, given: &[String], before: impl FnOnce() -> Result<()>) -> Result<Prepared> {
    let check = (args.check || args.no_check).then_some(args.check);
    let control = Control { check, ..recipe::control(&args.control, args.common.threads)? };
    interrupt::catch_interrupt()?;
    let terminal = Terminal::new(args.common.quiet);
    let recipe = recipe::of_convert(args)?;
    idle::refuse(given, &recipe, args.text.is_some())?;
    before()?;
    let named = args.model.first().cloned().unwrap_or_default();
    let path = options::resolve_model(&named, &args.hub, args.common.quiet)?;
    let source = match &args.lora {
        Some(adapter) if is_adapter_file(args.output.as_deref()) => {
            refuse_types(&recipe)?;
            SourceModel::open_adapter(&path, adapter)?
        }
        adapter => SourceModel::open_merged(&path, adapter.as_deref())?,
    };
    Ok(Prepared { control, terminal, recipe, named, path, source })
}

/// Whether the output is named as adapters are (GGUF's naming convention: `NAME-LoRA.gguf`).
fn is_adapter_file(output: Option<&Path>) -> bool {
    let name = output.and_then(Path::file_name).map(|name| name.to_string_lossy().to_lowercase());
    name.is_some_and(|name| name.ends_with("-lora.gguf"))
}

/// Types that llama.cpp adds to a model as it runs.
fn refuse_types(recipe: &Recipe) -> Result<()> {
    match recipe.outputs.iter().find(|target| !target.is_for_companions()) {
        Some(target) => {
            let what = format!("{}: an adapter file is F32, F16, BF16 or Q8_0", target.name());
            Err(Error::Usage(format!("{what}; an output whose name ends otherwise is the merged model")))
        }
        None => Ok(()),
    }
}

/// Says what there is to remark of a plan, and refuses what was not accepted.
///
/// # Errors
/// `Request` for fallbacks that are forbidden, and for types that are nothing without calibration.
pub fn accept(args: &ConvertArgs, planned: &Plan) -> Result<()> {
    if !args.common.quiet {
        planned.remarks.iter().for_each(|remark| say!("note: {remark}"));
    }
    plan::on_fallback(args.types.on_fallback, planned)?;
    advice::uncalibrated(planned, args.uncalibrated, args.common.quiet)
}
