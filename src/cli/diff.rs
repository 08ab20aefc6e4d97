//! `quantize diff A B`: how two artifacts or checkpoints differ.

use super::args::Format;
use super::commands::DiffArgs;
use super::interrupt::{CANCEL, catch_interrupt};
use super::options;
use super::output::{print, print_json};
use super::progress::Terminal;
use crate::check::{self, Diff, OfKey, OfTensor};
use crate::control::Control;
use crate::{Error, Result, escape};
use serde_json::json;
use std::fmt::Write;

/// Rows of a kind that are shown.
const ROWS: usize = 40;

pub fn run(args: DiffArgs) -> Result<()> {
    catch_interrupt()?;
    let threads = options::threads(args.common.threads)?;
    let control = Control { threads, cancel: CANCEL.clone(), ..Control::default() };
    let place = |name: &String| options::resolve_model(name, &args.hub, args.common.quiet);
    let (first, second) = (place(&args.first)?, place(&args.second)?);
    let found = check::diff(&first, &second, &control, &Terminal::new(args.common.quiet))?;
    match args.common.format {
        Format::Json => {
            let mut json =
                json!({ "schema": "quantize.diff/1", "first": escape::path(&first), "second": escape::path(&second) });
            let rest = serde_json::to_value(&found).map_err(|e| Error::Internal(e.to_string()))?;
            if let (Some(json), Some(rest)) = (json.as_object_mut(), rest.as_object()) {
                json.extend(rest.clone());
            }
            print_json(&json)?;
        }
        Format::Text => print(&text(&found))?,
    }
    match args.fail_on_difference && !found.same {
        true => Err(Error::Gate(format!("{} and {} differ", args.first, args.second))),
        false => Ok(()),
    }
}

fn text(found: &Diff) -> String {
    let mut out = String::new();
    found.notes.iter().for_each(|note| out += &format!("note: {}\n", escape::line(note)));
    if found.same {
        return out + &format!("the same: {} tensors, metadata and tokens\n", found.compared);
    }
    keys(&mut out, "Metadata", &found.metadata);
    keys(&mut out, "config.json", &found.config);
    if let Some(tokens) = &found.tokens {
        let _ = writeln!(out, "Tokens: {} and {}, {} differ", tokens.first, tokens.second, tokens.differing);
        if let Some((i, a, b)) = &tokens.example {
            let _ = writeln!(out, "  number {i}: '{}' and '{}'", escape::line(a), escape::line(b));
        }
        out.push('\n');
    }
    if let Some(template) = &found.template {
        keys(&mut out, "Chat template", std::slice::from_ref(template));
    }
    for (which, names) in [("first", &found.only_first), ("second", &found.only_second)] {
        if !names.is_empty() {
            let _ = writeln!(out, "Tensors only in the {which} ({})", names.len());
            names.iter().take(ROWS).for_each(|name| out += &format!("  {}\n", escape::line(name)));
            out.push_str(if names.len() > ROWS { "  ...\n\n" } else { "\n" });
        }
    }
    types(&mut out, &found.tensors);
    numbers(&mut out, found);
    out
}

fn keys(out: &mut String, title: &str, rows: &[OfKey]) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "{title} ({})", rows.len());
    for row in rows.iter().take(ROWS) {
        let _ = writeln!(out, "  {}", escape::line(&row.key));
        for (mark, value) in [('-', &row.first), ('+', &row.second)] {
            if let Some(value) = value {
                let _ = writeln!(out, "    {mark} {}", escape::line(value));
            }
        }
    }
    out.push_str(if rows.len() > ROWS { "  ...\n\n" } else { "\n" });
}

/// `ffn_down ×6: F16 and Q6_K`
fn types(out: &mut String, tensors: &[OfTensor]) {
    let mut groups: Vec<(String, String, usize)> = Vec::new();
    for t in tensors {
        let what = match (&t.shapes, &t.types) {
            (Some((a, b)), _) => format!("{a:?} and {b:?}"),
            (None, Some((a, b))) => format!("{a} and {b}"),
            (None, None) => continue,
        };
        let part = part_of(&t.name);
        match groups.iter_mut().find(|g| (&g.0, &g.1) == (&part, &what)) {
            Some(group) => group.2 += 1,
            None => groups.push((part, what, 1)),
        }
    }
    if groups.is_empty() {
        return;
    }
    let _ = writeln!(out, "Types and shapes");
    for (part, what, n) in groups.iter().take(ROWS) {
        let _ = writeln!(out, "  {:<20} ×{n:<4} {what}", escape::line(part));
    }
    out.push_str(if groups.len() > ROWS { "  ...\n\n" } else { "\n" });
}

/// The tensors that are furthest apart.
fn numbers(out: &mut String, found: &Diff) {
    let mut rows: Vec<(&OfTensor, f64)> =
        found.tensors.iter().filter_map(|t| Some((t, t.distance.filter(|d| *d > 0.0)?))).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (compared, differing) = (found.compared, rows.len());
    let _ = writeln!(out, "Numbers: {differing} of {compared} tensors differ; |A - B| / |A|, largest first");
    for (t, distance) in rows.iter().take(ROWS) {
        let _ = writeln!(out, "  {distance:>10.3e}  {}", escape::line(&t.name));
    }
    if rows.len() > ROWS {
        let _ = writeln!(out, "  ... ({} more in JSON)", rows.len() - ROWS);
    }
}

/// The name without its layer.
fn part_of(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part).to_string()
}
