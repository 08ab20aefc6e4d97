//! The plan of GGUF files, for people and for machines.

use super::folder_plan::{Means, in_words};
use crate::plan::cost::{self, Pass};
use crate::plan::devices::{self, Device};
use crate::plan::{self, Plan, TargetPlan};
use crate::quant::GgmlType;
use crate::quant::presets::Why;
use crate::writer::gguf::human;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fmt::Write;

/// What of a plan is shown.
pub struct Shown<'a> {
    /// Empty: a built-in table.
    pub devices: &'a [Device],
    pub context: usize,
    /// One row per tensor.
    pub all: bool,
}

impl Shown<'_> {
    fn fits(&self, plan: &Plan, target: &TargetPlan, longest: usize) -> Option<Vec<devices::Fit>> {
        let kv = plan.kv_bytes_per_token?;
        let table = devices::table();
        let devices = if self.devices.is_empty() { &table } else { self.devices };
        let bytes = target.tensor_bytes;
        Some(devices.iter().map(|d| devices::fit(d, bytes, kv, self.context as u64, longest as u64)).collect())
    }

    pub fn json(&self, plan: &Plan, means: &Means) -> Result<Value> {
        let mut value = serde_json::to_value(plan).map_err(|e| Error::Internal(e.to_string()))?;
        for (i, target) in plan.targets.iter().enumerate() {
            value["targets"][i]["devices"] = json!(self.fits(plan, target, means.model.config.context));
        }
        if means.model.family.is_ok() {
            let cost = |pass| cost::of(means.model, pass, means.calibration_tokens, means.threads);
            value["calibration"] = json!({ "importance": cost(Pass::Importance), "feedback": cost(Pass::Blocks) });
        }
        Ok(value)
    }

    pub fn text(&self, plan: &Plan, means: &Means) -> String {
        let config = &means.model.config;
        let mut out = String::new();
        let _ = writeln!(out, "{} weights, {}", plan.weights, config.arch);
        if let Some(bytes) = plan.source_bytes {
            let _ = writeln!(out, "source {}", human(bytes));
        }
        for target in &plan.targets {
            let bits = target.bits_per_weight;
            let _ = writeln!(out, "\n{}: {}, {bits:.2} bits per weight", target.name, human(target.file_bytes));
            if target.needs_importance {
                let _ = writeln!(out, "  needs an importance matrix, and is planned as with one");
            }
            tensor_table(&mut out, target, self.all);
            for line in fallback_lines(target) {
                let _ = writeln!(out, "  fallback: {line}");
            }
            if target.fallback_weights > 0 {
                let share = 100.0 * target.fallback_weights as f64 / plan.weights.max(1) as f64;
                let _ = writeln!(out, "  {share:.1} % of the weights get another type than asked");
            }
            if let Some(fits) = self.fits(plan, target, config.context) {
                device_table(&mut out, &fits, self.context.min(config.context));
            }
        }
        let memory = human(plan.peak_memory);
        let _ = writeln!(out, "\nto convert: about {memory} of memory, {} of disk", human(plan.disk));
        if means.model.family.is_err() {
            return out;
        }
        let cost = |pass| cost::of(means.model, pass, means.calibration_tokens, means.threads);
        let (importance, feedback) = (cost(Pass::Importance), cost(Pass::Blocks));
        let _ = writeln!(
            out,
            "with --calibration: about {} of memory, {} per file; with --search ggml {}, {}",
            human(feedback.peak_memory),
            in_words(&feedback),
            human(importance.peak_memory),
            in_words(&importance),
        );
        out
    }
}

/// `ffn_gate ×30 wanted Q4_K, got Q5_0: rows of 576 are not a multiple of 256`
pub fn fallback_lines(plan: &TargetPlan) -> Vec<String> {
    let mut groups: Vec<(String, GgmlType, GgmlType, usize, usize)> = Vec::new();
    for row in plan.rows.iter().filter(|r| r.choice.why == Why::Fallback) {
        let (part, cols) = (part_of(&row.name), row.shape.last().copied().unwrap_or(0));
        let same = |g: &&mut (String, GgmlType, GgmlType, usize, usize)| {
            (g.0.as_str(), g.1, g.2, g.3) == (&part, row.choice.wanted, row.choice.got, cols)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.4 += 1,
            None => groups.push((part, row.choice.wanted, row.choice.got, cols, 1)),
        }
    }
    let line = |(part, wanted, got, cols, n): (String, GgmlType, GgmlType, usize, usize)| {
        format!(
            "{part} ×{n}: wanted {wanted}, got {got}, because rows of {cols} are not a multiple of {}",
            wanted.block()
        )
    };
    groups.into_iter().map(line).collect()
}

/// The name without its layer: `blk.7.ffn_down.weight` → `ffn_down`.
fn part_of(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((_, part)) => part.to_string(),
        None => name.to_string(),
    }
}

/// Rows grouped by part, type and reason; or one row per tensor.
fn tensor_table(out: &mut String, target: &TargetPlan, all: bool) {
    let mut groups: Vec<(String, &plan::Row, usize, u64)> = Vec::new();
    for row in &target.rows {
        let part = if all { row.name.clone() } else { part_of(&row.name) };
        let same = |g: &&mut (String, &plan::Row, usize, u64)| {
            g.0 == part
                && g.1.choice.got == row.choice.got
                && g.1.choice.wanted == row.choice.wanted
                && g.1.shape == row.shape
        };
        match groups.iter_mut().find(same) {
            Some(group) => (group.2, group.3) = (group.2 + 1, group.3 + row.bytes),
            None => groups.push((part, row, 1, row.bytes)),
        }
    }
    let width = groups.iter().map(|g| g.0.len()).max().unwrap_or(0);
    for (part, row, count, bytes) in groups {
        let shape = row.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("×");
        let (wanted, got) = (row.choice.wanted, row.choice.got);
        let change = if wanted == got { got.to_string() } else { format!("{wanted} → {got}") };
        let why = match row.choice.why {
            Why::Default => "",
            Why::Mixture => "mixture",
            Why::Asked => "asked",
            Why::Kept => "kept",
            Why::Fallback => "fallback",
            Why::Budget => "budget",
        };
        let _ = writeln!(out, "  {part:<width$}  ×{count:<4} {shape:<18} {change:<14} {:>10}  {why}", human(bytes));
    }
}

fn device_table(out: &mut String, fits: &[devices::Fit], context: usize) {
    let _ = writeln!(out, "  room for the weights and {context} tokens of context:");
    for fit in fits {
        let answer = match (fit.fits, fit.context) {
            (true, n) => format!("yes (up to {n} tokens)"),
            (false, 0) => "no".to_string(),
            (false, n) => format!("only {n} tokens"),
        };
        let _ = writeln!(out, "    {:<20} {answer}", fit.device);
    }
}
