//! `quantize plan` and `--dry-run`: what a conversion would write, before a weight is read.

use super::args::{Format, OnFallback};
use super::commands::{ConvertArgs, PlanArgs};
use super::options;
use super::output::{print, print_json};
use super::plan_text::{Files, Shown};
use super::values::size;
use super::{idle, recipe};
use crate::convert::devices::Device;
use crate::convert::plan::{AssumedImportance, sizes_of_config};
use crate::convert::plan_assuming;
use crate::convert::recipe::ImportanceFile;
use crate::convert::{Plan, Recipe};
use crate::error::Hint;
use crate::model::{Model, SourceModel};
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

pub fn run(args: PlanArgs, given: &[String]) -> Result<()> {
    let threads = options::threads(args.common.threads)?;
    let device = |text: &String| Ok(Device { name: text.clone(), memory: size(text)? });
    let asked: Vec<Device> = args.device.iter().map(device).collect::<Result<_>>()?;
    let mut recipe = recipe::of_plan(&args)?;
    if recipe.outputs.is_empty() {
        recipe.outputs = Recipe::to(["q4_k_m"])?.outputs;
    }
    idle::of_plan(given, &recipe)?;
    if let Some(file) = &args.imatrix {
        // What is in it does not matter here.
        recipe.importance = Some(ImportanceFile { file: file.display().to_string(), sha256: String::new() });
    }
    let path = options::resolve_plan(&args.model, &args.hub, args.common.quiet)?;
    let (plan, files) = match config_only(&path)? {
        Some(json) => {
            let (ckpt, model) = Model::imagined(json)?;
            let source = SourceModel::new(&path, ckpt, model);
            let folders = recipe.outputs.iter().filter(|t| !t.is_file()).cloned().collect();
            let sizes = sizes_of_config(&source.model.config, &recipe)?;
            let files = (!sizes.is_empty()).then(|| Files::new(&source.model, sizes, None, threads));
            (crate::convert::plan(&source, &Recipe { outputs: folders, ..recipe })?, files)
        }
        None => {
            let plan = plan_assuming(&SourceModel::open(&path)?, &recipe, AssumedImportance::WhereNeeded)?;
            let files = Files::of(&plan, threads);
            (plan, files)
        }
    };
    on_fallback(args.types.on_fallback, &plan)?;
    let tokens = args.calibration_tokens as u64;
    let shown = Shown {
        plan: &plan,
        files: files.as_ref(),
        devices: Some(&asked),
        context: args.context,
        all: args.all,
        calibration_tokens: tokens,
        threads,
    };
    match args.common.format {
        Format::Json => print_json(&shown.json()?),
        Format::Text => print(&shown.text()),
    }
}

/// What would be written, for `--dry-run`.
pub fn describe(plan: &Plan, args: &ConvertArgs, threads: usize) -> Result<()> {
    let files = Files::of(plan, threads);
    let shown = Shown {
        plan,
        files: files.as_ref(),
        devices: None,
        context: 8192,
        all: false,
        calibration_tokens: args.calibration.calibration_tokens as u64,
        threads,
    };
    match args.common.format {
        Format::Text => print(&shown.text()),
        Format::Json => {
            let mut json = shown.json()?;
            if json.get("folders").is_none() {
                json["folders"] = json!([]);
            }
            print_json(&json)
        }
    }
}

/// Departures from what was asked are refused where that was asked for.
pub fn on_fallback(policy: OnFallback, plan: &Plan) -> Result<()> {
    let first = plan.ledger().into_iter().next();
    match (policy, first) {
        (OnFallback::Error, Some(row)) => {
            let what = format!("{}: cannot be {}: {}", row.candidate, row.asked, row.reason);
            let error = Error::unsupported(what).hint(Hint::AllowFallback { instead: row.done.clone() });
            Err(match &row.tensor {
                Some(tensor) => error.tensor(tensor),
                None => error,
            })
        }
        _ => Ok(()),
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
    match file.exists() {
        true => crate::input::read_json(&file).map(Some),
        false => Err(Error::bad_file(path, "holds no model: there is no config.json in it")),
    }
}
