//! `quantize plan` and `--dry-run`: what a conversion would write, before a weight is read.

use super::args::{Format, OnFallback};
use super::commands::{ConvertArgs, PlanArgs};
use super::options;
use super::output::{print, print_json};
use super::plan_text::Shown;
use super::values::device;
use super::{idle, recipe};
use crate::control::Control;
use crate::convert::devices::Device;
use crate::convert::fitting;
use crate::convert::forecast::{self, Files, Forecast};
use crate::convert::recipe::ImportanceFile;
use crate::convert::{Plan, Recipe};
use crate::writer::gguf::{count, human};
use crate::{Error, Result};
use serde_json::json;

pub fn run(args: PlanArgs, given: &[String]) -> Result<()> {
    let threads = options::threads(args.common.threads)?;
    let named = |text: &String| {
        // As it was written.
        device(text).map(|device| Device { name: text.clone(), ..device })
    };
    let asked: Vec<Device> = args.device.iter().map(named).collect::<Result<_>>()?;
    let to_fit = args.fit.as_deref().map(device).transpose()?;
    let mut recipe = recipe::of_plan(&args)?;
    if recipe.outputs.is_empty() {
        recipe.outputs = match to_fit {
            Some(_) => Recipe::to(fitting::LADDER)?.outputs,
            None => Recipe::to(["q4_k_m"])?.outputs,
        };
    }
    idle::of_plan(given, &recipe, args.calibration.is_some())?;
    if let Some(file) = &args.imatrix {
        // What is in it does not matter here.
        recipe.importance = Some(ImportanceFile { file: file.display().to_string(), sha256: String::new() });
    }
    if args.calibration.is_some() {
        // Calibration makes one.
        recipe.importance = Some(ImportanceFile { file: String::new(), sha256: String::new() });
    }
    let path = options::resolve_plan(&args.model, &args.hub, args.common.quiet)?;
    let (plan, files) = forecast::plan(&path, &recipe, threads)?;
    on_fallback(args.types.on_fallback, &plan)?;
    if let Some(device) = &to_fit {
        return fit(&plan, files.as_ref(), device, &args);
    }
    let shown = Shown {
        work: Forecast { plan: &plan, calibration_tokens: args.calibration_tokens as u64, threads },
        files: files.as_ref(),
        devices: Some(&asked),
        context: args.context,
        check: None,
        all: args.all,
        tp: args.folder.tp.max(1),
        calibrated: args.calibration.as_ref().map(|_| true),
    };
    match args.common.format {
        Format::Json => print_json(&shown.json()?)?,
        Format::Text => print(&format!("{}{}", shown.text(), noted(&plan)))?,
    }
    if !args.require_fit {
        return Ok(());
    }
    if forecast::cache(&plan.source.model).is_none() {
        let what = "what a sequence of this model takes in memory is not known, so neither is whether it fits";
        return Err(Error::unsupported(what));
    }
    match shown.misfits().as_slice() {
        [] => Ok(()),
        misfits => Err(Error::Gate(format!("does not fit: {}", misfits.join("; ")))),
    }
}

/// What there is to remark of a plan, a line each.
fn noted(plan: &Plan) -> String {
    plan.remarks.iter().map(|remark| format!("note: {remark}\n")).collect()
}

/// The best output for a device.
fn fit(plan: &Plan, files: Option<&Files>, device: &Device, args: &PlanArgs) -> Result<()> {
    let found = fitting::fitting(plan, files, device, args.folder.tp.max(1), args.context)?;
    match args.common.format {
        Format::Json => print_json(&json!({ "fit": found, "why": found.why(), "remarks": plan.remarks }))?,
        Format::Text => {
            let mut out = String::new();
            for row in &found.rows {
                let answer = match (row.fits, row.context) {
                    (true, n) => format!("fits, up to {} tokens", count(n)),
                    (false, 0) => "does not fit".to_string(),
                    (false, n) => format!("fits with {} tokens only", count(n)),
                };
                let (weights, needed) = (human(row.weights), human(row.needed));
                out += &format!("  {:<12} {weights:>10} of weights, {needed:>10} in all  {answer}\n", row.name);
            }
            print(&format!("{out}\n{}\n{}", found.why(), noted(plan)))?;
        }
    }
    match found.chosen {
        Some(_) => Ok(()),
        None => Err(Error::Gate(found.why())),
    }
}

/// What would be written, for `--dry-run`.
pub fn describe(plan: &Plan, args: &ConvertArgs, control: &Control) -> Result<()> {
    let threads = control.threads;
    let files = Files::of(plan, threads);
    let shown = Shown {
        work: Forecast { plan, calibration_tokens: args.calibration.calibration_tokens as u64, threads },
        files: files.as_ref(),
        devices: None,
        context: 8192,
        check: control.check,
        all: false,
        tp: args.folder.tp.max(1),
        calibrated: Some(plan.recipe.data.is_some()),
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
    match policy {
        OnFallback::Error => plan.refuse_departures(),
        OnFallback::Warn | OnFallback::Allow => Ok(()),
    }
}
