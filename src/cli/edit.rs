//! `quantize edit`, `split`, `merge` and `extract`: finished files with something else about them.

use super::args::Format;
use super::commands::{EditArgs, ExtractArgs, MergeArgs, SplitArgs};
use super::interrupt::{CANCEL, catch_interrupt};
use super::output::{print, print_json};
use crate::convert::loadable;
use crate::edit::{self, Change, Chosen, SCALARS, Shards};
use crate::source::Checkpoint;
use crate::{Error, Result, escape};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub fn edit(args: EditArgs) -> Result<()> {
    catch_interrupt()?;
    let changes = changes(&args)?;
    if changes.is_empty() {
        let what = "nothing to change; add --set, --remove, --rename, --chat-template, --token-type or --stop-token";
        return Err(Error::Usage(what.into()));
    }
    let output = match &args.output {
        Some(output) => {
            crate::writer::places::check([args.file.as_path()], [output.as_path()], args.force)?;
            output
        }
        None => &args.file,
    };
    let file = Checkpoint::open(&args.file)?;
    if let Some(metadata) = file.gguf().map(|metadata| edit::changed(metadata, &changes)).transpose()?
        && let Some(what) = loadable::refused_by_change(file, metadata)
    {
        return Err(Error::request(format!("llama.cpp could not use the file with these changes: {what}")));
    }
    edit::edit(&args.file, output, &changes, args.force || args.in_place, &CANCEL)?;
    made(args.common.format, std::slice::from_ref(output))
}

/// The changes in the order of the flags' kinds: removals and other names first, so that a key can take another's place.
fn changes(args: &EditArgs) -> Result<Vec<Change>> {
    let two = |flag: &str, text: &str, form: &str| -> Result<(String, String)> {
        match text.split_once('=') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_string(), b.to_string())),
            _ => Err(Error::Usage(format!("{flag} '{text}': write {form}"))),
        }
    };
    let mut changes: Vec<Change> = args.remove.iter().cloned().map(Change::Remove).collect();
    for text in &args.rename {
        let (from, to) = two("--rename", text, "OLD=NEW")?;
        changes.push(Change::Rename { from, to });
    }
    for text in &args.set {
        changes.push(set(text)?);
    }
    if let Some(path) = &args.chat_template {
        changes.push(Change::ChatTemplate(crate::input::read_text(path)?));
    }
    for text in &args.token_type {
        // A token may hold the sign itself.
        let (token, ty) = text
            .rsplit_once('=')
            .filter(|(token, _)| !token.is_empty())
            .ok_or_else(|| Error::Usage(format!("--token-type '{text}': write TOKEN=TYPE")))?;
        changes.push(Change::TokenType { token: token.into(), ty: ty.into() });
    }
    for text in &args.stop_token {
        let (kind, token) = two("--stop-token", text, "KIND=TOKEN, KIND one of eos, eot, eom")?;
        changes.push(Change::Stop { kind, token });
    }
    Ok(changes)
}

/// `KEY=VALUE` or `KEY=TYPE:VALUE`; what stands before a colon is a type where it is the name of one.
fn set(text: &str) -> Result<Change> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return Err(Error::Usage(format!("--set '{text}': write KEY=VALUE or KEY=TYPE:VALUE")));
    };
    let is_type = |ty: &str| SCALARS.contains(&ty.trim_start_matches('[').trim_end_matches(']'));
    let (ty, value) = match value.split_once(':') {
        Some((ty, value)) if is_type(ty) => (Some(ty.to_string()), value),
        _ => (None, value),
    };
    Ok(Change::Set { key: key.into(), ty, value: value.into() })
}

pub fn split(args: SplitArgs) -> Result<()> {
    catch_interrupt()?;
    let by = match (args.max_size, args.max_tensors, args.count) {
        (Some(bytes), _, _) => Shards::MaxBytes(bytes),
        (_, Some(n), _) => Shards::MaxTensors(n.get()),
        (_, _, Some(n)) => Shards::Count(n.get()),
        _ => return Err(Error::Usage("say how large shards are: --max-size, --max-tensors or --count".into())),
    };
    let prefix = match &args.output {
        Some(prefix) if prefix.is_dir() => prefix.join(stem(&args.file)),
        Some(prefix) if prefix.extension().is_some_and(|e| e == "gguf") => prefix.with_extension(""),
        Some(prefix) => prefix.clone(),
        None => args.file.with_file_name(stem(&args.file)),
    };
    made(args.common.format, &edit::split(&args.file, &prefix, by, args.force, &CANCEL)?)
}

fn stem(path: &Path) -> PathBuf {
    path.file_stem().unwrap_or_default().into()
}

pub fn merge(args: MergeArgs) -> Result<()> {
    catch_interrupt()?;
    edit::merge(&args.file, &args.output, args.force, &CANCEL)?;
    made(args.common.format, std::slice::from_ref(&args.output))
}

pub fn extract(args: ExtractArgs) -> Result<()> {
    catch_interrupt()?;
    let pattern = |text: &String| {
        regex::Regex::new(text)
            .map_err(|e| Error::Usage(format!("--tensor: {}", crate::convert::plan::regex_fault(&e))))
    };
    let names = args.tensor.iter().map(pattern).collect::<Result<_>>()?;
    let ckpt = Checkpoint::open(&args.file)?;
    if let Some(why) = ckpt.unknown_quantization() {
        let what = format!("{}: the tensors cannot be unpacked ({why})", args.file.display());
        return Err(Error::unsupported(what));
    }
    let chosen = Chosen { names, expert: args.expert };
    let rows = edit::extract(&ckpt, &chosen, &args.output, args.force, &CANCEL)?;
    match args.common.format {
        Format::Json => {
            let rows: Vec<Value> =
                rows.iter().map(|row| json!({ "tensor": row.name, "type": row.dtype, "shape": row.shape })).collect();
            print_json(&json!({ "path": escape::path(&args.output), "tensors": rows }))
        }
        Format::Text => {
            if !args.common.quiet {
                rows.iter().for_each(|row| say!("  {} {:?} {}", row.name, row.shape, row.dtype));
            }
            print(&format!("{}\n", args.output.display()))
        }
    }
}

/// Says which files were made.
fn made(format: Format, paths: &[PathBuf]) -> Result<()> {
    match format {
        Format::Json => print_json(&json!({ "paths": paths.iter().map(|p| escape::path(p)).collect::<Vec<_>>() })),
        Format::Text => print(&paths.iter().map(|p| format!("{}\n", p.display())).collect::<String>()),
    }
}
