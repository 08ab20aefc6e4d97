//! `quantize inspect`: what is in a GGUF file or a checkpoint, as text or JSON. Headers only; no weight is read.

use super::{Format, InspectArgs, print, print_json};
use crate::gguf::{Array, Metadata, Value};
use crate::source::Checkpoint;
use crate::writer::gguf::human;
use crate::{Error, Result};
use serde_json::{Map, json};
use std::fmt::Write;

/// Array elements shown unless `--full`.
const HEAD: usize = 6;

pub fn run(args: InspectArgs) -> Result<()> {
    let ckpt = Checkpoint::open(&args.file)?;
    let filter = match &args.filter {
        Some(text) => Some(regex::Regex::new(text).map_err(|e| Error::Usage(format!("--filter: {e}")))?),
        None => None,
    };
    let keep = |name: &str| filter.as_ref().is_none_or(|f| f.is_match(name));
    let empty = Metadata::new();
    let metadata = ckpt.gguf().unwrap_or(&empty);
    match args.common.format {
        Format::Json => print_json(&as_json(&ckpt, metadata, &keep, args.full)),
        Format::Text => print(&as_text(&ckpt, metadata, &keep, args.full)),
    }
}

fn as_text(ckpt: &Checkpoint, metadata: &Metadata, keep: &dyn Fn(&str) -> bool, full: bool) -> String {
    let mut out = String::new();
    for file in ckpt.files() {
        let _ = writeln!(out, "{}  {}", file.path.display(), human(file.len));
    }
    if !metadata.is_empty() {
        let _ = writeln!(out, "\nMetadata ({} keys)", metadata.len());
        for (key, value) in metadata.iter().filter(|(k, _)| keep(k)) {
            let _ = writeln!(out, "  {key:<44} {:<10} {}", kind(value), show(value, full));
        }
    }
    let (mut weights, mut bytes) = (0u64, 0u64);
    let mut by_type: Vec<(String, usize, u64, u64)> = Vec::new();
    let _ = writeln!(out, "\nTensors ({})", ckpt.tensors().len());
    for t in ckpt.tensors() {
        let (n, len) = (t.shape.iter().map(|d| *d as u64).product::<u64>(), t.bytes());
        (weights, bytes) = (weights + n, bytes + len);
        let name = t.dtype.to_string();
        match by_type.iter_mut().find(|row| row.0 == name) {
            Some(row) => *row = (name.clone(), row.1 + 1, row.2 + n, row.3 + len),
            None => by_type.push((name.clone(), 1, n, len)),
        }
        if keep(&t.name) {
            let shape = t.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(" × ");
            let _ = writeln!(out, "  {:<44} {name:<8} {shape:<20} {:>10}", t.name, human(len));
        }
    }
    let _ = writeln!(out, "\nBy type");
    for (name, count, n, len) in by_type {
        let bits = 8.0 * len as f64 / n.max(1) as f64;
        let _ = writeln!(
            out,
            "  {name:<8} {count:>5} tensors {n:>14} weights {:>10}  {bits:.4} bits per weight",
            human(len)
        );
    }
    let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
    let _ = writeln!(
        out,
        "  total    {:>5} tensors {weights:>14} weights {:>10}  {bits:.4} bits per weight",
        ckpt.tensors().len(),
        human(bytes)
    );
    out
}

fn as_json(ckpt: &Checkpoint, metadata: &Metadata, keep: &dyn Fn(&str) -> bool, full: bool) -> serde_json::Value {
    let entries: Map<_, _> = metadata
        .iter()
        .filter(|(k, _)| keep(k))
        .map(|(k, v)| (k.to_string(), json!({ "type": kind(v), "value": to_json(v, full) })))
        .collect();
    let tensors = ckpt.tensors().iter().filter(|t| keep(&t.name)).map(|t| {
        json!({ "name": t.name, "type": t.dtype.to_string(), "shape": t.shape, "file": t.file,
                "offset": t.range.start, "bytes": t.bytes() })
    });
    let tensors: Vec<_> = tensors.collect();
    let files: Vec<_> = ckpt.files().iter().map(|f| json!({ "path": f.path, "bytes": f.len })).collect();
    json!({ "files": files, "metadata": entries, "tensors": tensors })
}

/// The GGUF name of a value's type.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::U8(_) => "u8",
        Value::I8(_) => "i8",
        Value::U16(_) => "u16",
        Value::I16(_) => "i16",
        Value::U32(_) => "u32",
        Value::I32(_) => "i32",
        Value::F32(_) => "f32",
        Value::Bool(_) => "bool",
        Value::String(_) => "str",
        Value::U64(_) => "u64",
        Value::I64(_) => "i64",
        Value::F64(_) => "f64",
        Value::Array(Array::String(_)) => "[str]",
        Value::Array(Array::F32(_)) => "[f32]",
        Value::Array(Array::I32(_)) => "[i32]",
        Value::Array(Array::U32(_)) => "[u32]",
        Value::Array(Array::Bool(_)) => "[bool]",
        Value::Array(_) => "array",
    }
}

fn show(value: &Value, full: bool) -> String {
    match value {
        Value::String(s) => {
            let line = s.replace('\n', "\\n");
            match line.char_indices().nth(120) {
                Some((at, _)) if !full => format!("{}… ({} characters)", &line[..at], s.chars().count()),
                _ => line,
            }
        }
        _ => to_json(value, full).to_string(),
    }
}

fn to_json(value: &Value, full: bool) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Array(a) => match a {
            Array::U8(v) => list(v, full),
            Array::I8(v) => list(v, full),
            Array::U16(v) => list(v, full),
            Array::I16(v) => list(v, full),
            Array::U32(v) => list(v, full),
            Array::I32(v) => list(v, full),
            Array::F32(v) => list(v, full),
            Array::Bool(v) => list(v, full),
            Array::String(v) => list(v, full),
            Array::U64(v) => list(v, full),
            Array::I64(v) => list(v, full),
            Array::F64(v) => list(v, full),
            Array::Nested(v) => json!(format!("{} arrays", v.len())),
        },
    }
}

/// All elements, or the first few and the count.
fn list<T: serde::Serialize>(items: &[T], full: bool) -> serde_json::Value {
    if full || items.len() <= HEAD {
        return json!(items);
    }
    json!({ "length": items.len(), "head": &items[..HEAD] })
}
