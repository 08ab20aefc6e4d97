//! `quantize families`: the architectures that are known by name, and what works with each.

use super::args::Format;
use super::commands::FamiliesArgs;
use super::output::{print, print_json};
use crate::Result;
use crate::model::{Known, known};
use serde_json::json;
use std::fmt::Write;

pub fn run(args: FamiliesArgs) -> Result<()> {
    let all = known();
    match args.format {
        Format::Json => print_json(&json!({ "schema": "quantize.families/1", "families": all })),
        Format::Text => print(&text(&all)),
    }
}

fn text(all: &[Known]) -> String {
    let mut out = String::new();
    let width = all.iter().map(|k| k.gguf.len()).max().unwrap_or(0);
    for known in all {
        let [runs, converts] = [true, false].map(|runs| {
            let of = |class: &&&str| known.runs.contains(class) == runs;
            known.classes.iter().filter(of).copied().collect::<Vec<_>>().join(", ")
        });
        for (what, classes) in [("runs    ", runs), ("converts", converts)].iter().filter(|(_, c)| !c.is_empty()) {
            let _ = writeln!(out, "{:width$}  {what}  {classes}", known.gguf);
        }
    }
    let classes: usize = all.iter().map(|k| k.classes.len()).sum();
    let running: usize = all.iter().map(|k| k.runs.len()).sum();
    let _ = write!(
        out,
        "\n{} architectures, {classes} classes; {running} of them run (calibration, error feedback, eval, compare; generate with a head),\n\
         all are converted to GGUF and to folders by rounding to nearest. Of any other architecture, folders are made by\n\
         rounding to nearest, and GGUF files are quantized by the names of their tensors.\n",
        all.len()
    );
    out
}
