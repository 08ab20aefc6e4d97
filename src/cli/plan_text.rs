//! A plan for people and for machines: GGUF files with the devices that they fit, folders with what it takes to make them.

use super::words;
use crate::convert::FolderPlan;
use crate::convert::cost::{Cost, Pass};
use crate::convert::devices::{Device, Fit};
use crate::convert::forecast::{Files, Forecast, folder_fits};
use crate::convert::plan::OutputPlan;
use crate::convert::proven;
use crate::convert::sizes::{FileSizes, TensorRow};
use crate::quant::GgmlType;
use crate::quant::presets::Why;
use crate::writer::gguf::{count, human};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fmt::Write;

/// What of a plan is shown.
pub struct Shown<'a> {
    /// With folders; its files may be known by their sizes alone.
    pub work: Forecast<'a>,
    pub files: Option<&'a Files>,
    /// Devices to fit; an empty list stands for a built-in table, `None` for the same in text and none in JSON.
    pub devices: Option<&'a [Device]>,
    /// Tokens of context to leave room for.
    pub context: usize,
    /// Devices over which each layer of a folder is split.
    pub tp: usize,
    /// Whether the outputs are to be run at the end, where somebody said so.
    pub check: Option<bool>,
    /// One row per tensor.
    pub all: bool,
    /// Whether it is calibrated; `None` where that is open.
    pub calibrated: Option<bool>,
}

impl Shown<'_> {
    fn longest(&self) -> usize {
        self.work.plan.source.model.config.context
    }

    fn fits(&self, files: &Files, target: &FileSizes) -> Option<Vec<Fit>> {
        files.fits(target, self.devices.unwrap_or_default(), self.context, self.longest())
    }

    /// The outputs that do not fit every device that was named.
    pub fn misfits(&self) -> Vec<String> {
        let Some([_, ..]) = self.devices else { return Vec::new() };
        let files = self.files.iter().flat_map(|files| files.targets.iter().map(|t| (*files, t)));
        let files = files.map(|(files, target)| (target.name.as_str(), self.fits(files, target)));
        let folders = self.work.plan.folders().map(|(output, folder)| (output.target.name(), self.folder_fits(folder)));
        let mut found = Vec::new();
        for (name, fits) in files.chain(folders) {
            for fit in fits.into_iter().flatten().filter(|fit| !fit.fits) {
                let room = match fit.context {
                    0 => "not at all".to_string(),
                    n => format!("with {} tokens of context only", count(n)),
                };
                found.push(format!("{name} fits {} {room}", fit.device));
            }
        }
        found
    }

    fn folder_fits(&self, folder: &FolderPlan) -> Option<Vec<Fit>> {
        let devices = self.devices.unwrap_or_default();
        folder_fits(&self.work.plan.source.model, folder, devices, self.tp, self.context)
    }

    pub fn json(&self) -> Result<Value> {
        let mut value = match self.files {
            Some(files) => serde_json::to_value(files).map_err(|e| Error::Internal(e.to_string()))?,
            None => json!({}),
        };
        if let (Some(files), Some(_)) = (self.files, self.devices) {
            let plan = self.work.plan;
            let unasked = plan.source.model.runnable().is_ok() && proven::is_cheap(plan);
            value["check"] = json!({ "cpu_seconds": proven::seconds(plan), "unasked": unasked });
            for (i, target) in files.targets.iter().enumerate() {
                value["targets"][i]["devices"] = json!(self.fits(files, target));
            }
            if self.work.plan.source.model.runnable().is_ok() {
                value["calibration"] = json!({ "importance": self.work.cost(Pass::Importance), "feedback": self.work.feedback_cost(files) });
            }
        }
        let packed = self.work.plan.folders().map(|(output, folder)| self.folder_json(output, folder));
        let plain = self.work.plan.plain().map(|(output, folder)| {
            json!({ "type": output.target.name(), "format": "safetensors", "tensor_bytes": folder.tensor_bytes(),
                "weights": folder.weights(), "ledger": output.ledger() })
        });
        let folders: Vec<Value> = packed.chain(plain).collect();
        if !folders.is_empty() {
            value["folders"] = folders.into();
        }
        value["remarks"] = json!(self.work.plan.remarks);
        Ok(value)
    }

    pub fn text(&self) -> String {
        let mut out = self.files.map_or_else(String::new, |files| self.files_text(files));
        if self.files.is_some() && !self.work.plan.source.ckpt.files().is_empty() {
            out += &format!("{}\n", proven::in_words(self.work.plan, self.check));
        }
        for (output, folder) in self.work.plan.folders() {
            out += &self.folder_text(output, folder);
        }
        for (output, folder) in self.work.plan.plain() {
            let (size, weights) = (human(folder.tensor_bytes()), count(folder.weights()));
            out += &format!("\n{}: {size}, {weights} weights without quantization\n", output.target.name());
            for line in words::departures(&output.ledger()) {
                out += &format!("  {line}\n");
            }
        }
        out
    }

    fn files_text(&self, files: &Files) -> String {
        let config = &self.work.plan.source.model.config;
        let mut out = String::new();
        let _ = writeln!(out, "{} weights, {}", count(files.weights), config.arch);
        if let Some(bytes) = files.source_bytes {
            let _ = writeln!(out, "source {}", human(bytes));
        }
        if let (Some(kv), Some(states)) = (files.kv_bytes_per_token, files.state_bytes.filter(|n| *n > 0)) {
            let _ = writeln!(
                out,
                "a sequence takes {} bytes per token, and {} whatever its length",
                count(kv),
                human(states)
            );
        }
        for target in &files.targets {
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
                let share = 100.0 * target.fallback_weights as f64 / files.weights.max(1) as f64;
                let _ = writeln!(out, "  {share:.1} % of the weights get another type than asked");
            }
            if let Some(fits) = self.fits(files, target) {
                device_table(&mut out, &fits, self.context.min(self.longest()));
            }
        }
        let runs = self.work.plan.source.model.runnable().is_ok();
        out.push('\n');
        if self.calibrated != Some(true) || !runs {
            let (memory, disk) = (human(files.peak_memory), human(files.disk));
            let _ = writeln!(out, "to convert: about {memory} of memory, {disk} of disk");
        }
        if self.calibrated == Some(false) || !runs {
            return out;
        }
        let (importance, feedback) = (self.work.cost(Pass::Importance), self.work.feedback_cost(files));
        for (flags, cost, disk) in [
            ("with --calibration", &feedback, self.work.feedback_disk(files)),
            ("with --calibration --rounding nearest", &importance, files.disk),
        ] {
            let _ = writeln!(out, "{flags}:");
            let _ = writeln!(
                out,
                "  about {} of memory, {} of disk; {}",
                human(cost.peak_memory),
                human(disk),
                in_words(cost)
            );
        }
        out
    }

    fn folder_json(&self, output: &OutputPlan, folder: &FolderPlan) -> Value {
        let (weights, bits) = folder.quantized(&self.work.plan.source.ckpt);
        json!({
            "type": output.target.name(), "format": folder.spec.to_string(), "tensor_bytes": folder.tensor_bytes(),
            "quantized_weights": weights, "bits_per_weight": bits, "quantization_config": folder.config,
            "peak_memory": self.work.folder_memory(folder), "calibration": self.work.folder_cost(folder),
            "ledger": output.ledger(), "allocation": folder.allocation, "devices": self.devices.and_then(|_| self.folder_fits(folder)),
        })
    }

    fn folder_text(&self, output: &OutputPlan, folder: &FolderPlan) -> String {
        let ckpt = &self.work.plan.source.ckpt;
        let (weights, bits) = folder.quantized(ckpt);
        let all: u64 = ckpt.tensors().iter().map(|t| t.elements() as u64).sum();
        let size = human(folder.tensor_bytes());
        let share = 100.0 * weights as f64 / all.max(1) as f64;
        let mut out = format!("\n{}: {size} as {}\n", output.target.name(), folder.spec);
        out += &format!("  {share:.1} % of {} weights quantized, {bits:.2} bits each with their scales\n", count(all));
        if let Some(allocation) = &folder.allocation {
            let bits = 8.0 * folder.tensor_bytes() as f64 / folder.weights(ckpt).max(1) as f64;
            out += &format!("  {bits:.2} bits per weight in all, chosen to fit\n");
            out += &words::allocation("  chosen", allocation);
        }
        for line in words::departures(&output.ledger()) {
            out += &format!("  {line}\n");
        }
        out += &format!("  to make it: about {} of memory, {size} of disk", human(self.work.folder_memory(folder)));
        match self.work.folder_cost(folder) {
            Some(cost) => out += &format!("; {}\n", in_words(&cost)),
            None => out.push('\n'),
        }
        if let (Some(fits), Some(_)) = (self.folder_fits(folder), self.devices) {
            device_table(&mut out, &fits, self.context.min(self.longest()));
        }
        out
    }
}

/// `12 s`, `40 min`, `3 h`.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

/// `65 536 tokens of text, about 12 min of one core a file`
fn in_words(cost: &Cost) -> String {
    let time = time(cost.cpu_seconds);
    format!("{} tokens of text, about {time} of one core a file", count(cost.calibration_tokens))
}

/// `ffn_gate ×30 wanted Q4_K, got Q5_0: rows of 576 are not a multiple of 256`
fn fallback_lines(plan: &FileSizes) -> Vec<String> {
    let mut groups: Vec<(String, GgmlType, GgmlType, usize, usize)> = Vec::new();
    for row in plan.fallbacks() {
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
fn tensor_table(out: &mut String, target: &FileSizes, all: bool) {
    let mut groups: Vec<(String, &TensorRow, usize, u64)> = Vec::new();
    for row in &target.rows {
        let part = if all { row.name.clone() } else { part_of(&row.name) };
        let same = |g: &&mut (String, &TensorRow, usize, u64)| {
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

/// What devices hold; those in a row with the same answer are one line.
fn device_table(out: &mut String, fits: &[Fit], context: usize) {
    let _ = writeln!(out, "  room for the weights and {} tokens of context:", count(context as u64));
    let answer = |fit: &Fit| match (fit.fits, fit.context) {
        (true, n) => format!("yes (up to {} tokens)", count(n)),
        (false, 0) => "no".to_string(),
        (false, n) => format!("only {} tokens", count(n)),
    };
    let kind = |fit: &Fit| fit.device.split(' ').next().unwrap_or_default().to_string();
    let shared = |fit: &Fit| ["Mac", "RAM"].contains(&kind(fit).as_str()).then(|| kind(fit));
    let mut at = 0;
    while at < fits.len() {
        let same = |fit: &&Fit| answer(fit) == answer(&fits[at]) && shared(fit) == shared(&fits[at]);
        let n = fits[at..].iter().take_while(same).count();
        let name = match n {
            1 => fits[at].device.clone(),
            n => format!("{} to {}", fits[at].device, fits[at + n - 1].device),
        };
        let _ = writeln!(out, "    {name:<34} {}", answer(&fits[at]));
        at += n;
    }
}
