//! `quantize types`: what `--to` takes.

use super::args::Format;
use super::commands::TypesArgs;
use super::output::{print, print_json};
use crate::convert::catalogue;
use crate::{Error, Result};
use serde_json::json;
use std::fmt::Write;

pub fn run(args: TypesArgs) -> Result<()> {
    let wanted = args.filter.as_deref().unwrap_or_default().to_lowercase();
    let mut all = catalogue::all();
    all.iter_mut().for_each(|(_, entries)| entries.retain(|entry| entry.name.contains(&wanted)));
    all.retain(|(_, entries)| !entries.is_empty());
    if all.is_empty() {
        let near = catalogue::near(&wanted);
        let instead = if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) };
        return Err(Error::Usage(format!("no type or format has '{wanted}' in its name{instead}")));
    }
    if args.format == Format::Json {
        let types: Vec<_> = all.iter().flat_map(|(_, entries)| entries).collect();
        return print_json(&json!({ "schema": "quantize.types/1", "types": types }));
    }
    let mut out = String::new();
    for (group, entries) in &all {
        let _ = writeln!(out, "{group}");
        for entry in entries {
            let _ = writeln!(out, "  {:<11} {:>5.2}  {}", entry.name, entry.bits, entry.purpose);
        }
        out.push('\n');
    }
    out += "Bits are those of most tensors (GGUF) or of a weight without its scales (folders). Formats of folders take more\n\
            words: gptq-8bit-64g, mlx-6bit, awq-32g, gptq-desc, w8a16. Combine with commas: --to q4_k_m,q8_0,awq\n";
    print(&out)
}
