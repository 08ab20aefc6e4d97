//! `quantize inspect`: what is in a GGUF file or a checkpoint, as text or JSON. Headers only; no weight is read.

use super::args::Format;
use super::commands::InspectArgs;
use super::coverage;
use super::output::{JsonText, stream};
use crate::gguf::{Array, Metadata, Value};
use crate::input::read_json;
use crate::model::contradictions;
use crate::source::{Checkpoint, TensorMeta};
use crate::writer::gguf::human;
use crate::{Error, Result, escape};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::io::{self, Write};

/// Array elements shown unless `--full`.
const HEAD: usize = 6;

/// What is shown of what. It is written as it goes: arrays may have hundreds of millions of elements.
struct View<'a> {
    ckpt: &'a Checkpoint,
    metadata: &'a Metadata,
    filter: Option<regex::Regex>,
    full: bool,
    /// What is odd about it: what the conversion of such a source says of it, too.
    remarks: Vec<String>,
}

pub fn run(args: InspectArgs) -> Result<()> {
    let filter = match &args.filter {
        Some(text) => Some(regex::Regex::new(text).map_err(|e| Error::Usage(format!("--filter: {e}")))?),
        None => None,
    };
    let no_arrays =
        || Error::Usage("--full prints the arrays of a model's GGUF metadata, and there are none here".into());
    if coverage::is_imatrix(&args.file) {
        if args.full {
            return Err(no_arrays());
        }
        return coverage::show(&args.file, filter.as_ref(), args.common.format);
    }
    let ckpt = Checkpoint::open(&args.file)?;
    if args.full && ckpt.gguf().is_none() {
        return Err(no_arrays());
    }
    let empty = Metadata::new();
    let remarks = remarks(&ckpt);
    let view = View { ckpt: &ckpt, metadata: ckpt.gguf().unwrap_or(&empty), filter, full: args.full, remarks };
    match args.common.format {
        Format::Json => super::output::print_json(&view),
        Format::Text => stream(|out| view.text(out)),
    }
}

/// What was odd about the files of a checkpoint, and what they say twice and differently.
fn remarks(ckpt: &Checkpoint) -> Vec<String> {
    let config = read_json(&ckpt.dir().join("config.json")).ok().filter(|_| ckpt.gguf().is_none());
    let of_folder = config.map(|config| contradictions::of(ckpt.dir(), &config)).unwrap_or_default();
    ckpt.remarks().iter().cloned().chain(of_folder).collect()
}

impl View<'_> {
    fn keeps(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| f.is_match(name))
    }

    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let ckpt = self.ckpt;
        for file in ckpt.files() {
            writeln!(out, "{}  {}", escape::line(&escape::path(&file.path)), human(file.len))?;
        }
        if !self.metadata.is_empty() {
            writeln!(out, "\nMetadata ({} keys)", self.metadata.len())?;
            for (key, value) in self.metadata.iter().filter(|(k, _)| self.keeps(k)) {
                write!(out, "  {:<44} {:<10} ", escape::line(key), kind(value))?;
                show(value, self.full, out)?;
                writeln!(out)?;
            }
        }
        let (mut weights, mut bytes) = (0u64, 0u64);
        let mut by_type: Vec<(String, usize, u64, u64)> = Vec::new();
        writeln!(out, "\nTensors ({})", ckpt.tensors().len())?;
        for t in ckpt.tensors() {
            let (n, len) = (t.shape.iter().map(|d| *d as u64).product::<u64>(), t.bytes());
            (weights, bytes) = (weights + n, bytes + len);
            let name = t.dtype.to_string();
            match by_type.iter_mut().find(|row| row.0 == name) {
                Some(row) => *row = (name.clone(), row.1 + 1, row.2 + n, row.3 + len),
                None => by_type.push((name.clone(), 1, n, len)),
            }
            if self.keeps(&t.name) {
                let shape = t.shape.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(" × ");
                writeln!(out, "  {:<44} {name:<8} {shape:<20} {:>10}", escape::line(&t.name), human(len))?;
            }
        }
        writeln!(out, "\nBy type")?;
        for (name, count, n, len) in by_type {
            let bits = 8.0 * len as f64 / n.max(1) as f64;
            writeln!(
                out,
                "  {name:<8} {count:>5} tensors {n:>14} weights {:>10}  {bits:.4} bits per weight",
                human(len)
            )?;
        }
        let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
        writeln!(
            out,
            "  total    {:>5} tensors {weights:>14} weights {:>10}  {bits:.4} bits per weight",
            ckpt.tensors().len(),
            human(bytes)
        )?;
        self.remarks.iter().try_for_each(|remark| writeln!(out, "note: {}", escape::line(remark)))
    }
}

impl Serialize for View<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(4))?;
        let files = self.ckpt.files().iter();
        let files = files.map(|f| serde_json::json!({ "path": escape::path(&f.path), "bytes": f.len }));
        map.serialize_entry("files", &files.collect::<Vec<_>>())?;
        map.serialize_entry("metadata", &Entries(self))?;
        map.serialize_entry("tensors", &Tensors(self))?;
        map.serialize_entry("remarks", &self.remarks)?;
        map.end()
    }
}

struct Entries<'a>(&'a View<'a>);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let View { metadata, full, .. } = self.0;
        let entries = metadata.iter().filter(|(k, _)| self.0.keeps(k));
        s.collect_map(entries.map(|(k, value)| (k, Entry { r#type: kind(value), value: Shown { value, full: *full } })))
    }
}

#[derive(serde::Serialize)]
struct Entry<'a> {
    r#type: &'static str,
    value: Shown<'a>,
}

struct Tensors<'a>(&'a View<'a>);

impl Serialize for Tensors<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let row = |t: &TensorMeta| {
            serde_json::json!({ "name": t.name, "type": t.dtype.to_string(), "shape": t.shape, "file": t.file,
                                "offset": t.range.start, "bytes": t.bytes() })
        };
        s.collect_seq(self.0.ckpt.tensors().iter().filter(|t| self.0.keeps(&t.name)).map(row))
    }
}

/// The name of a value's type; arrays of rare types are called that alone.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(Array::String(_) | Array::F32(_) | Array::I32(_) | Array::U32(_) | Array::Bool(_)) => value.kind(),
        Value::Array(_) => "array",
        _ => value.kind(),
    }
}

fn show(value: &Value, full: bool, out: &mut dyn Write) -> io::Result<()> {
    match value {
        Value::String(s) => {
            let line = escape::line(s);
            match line.char_indices().nth(120) {
                Some((at, _)) if !full => write!(out, "{}… ({} characters)", &line[..at], s.chars().count()),
                _ => write!(out, "{line}"),
            }
        }
        _ => Ok(serde_json::to_writer(JsonText(out), &Shown { value, full })?),
    }
}

/// A value, of an array all elements or the first few and the count.
struct Shown<'a> {
    value: &'a Value,
    full: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::U8(v) => s.serialize_u8(*v),
            Value::I8(v) => s.serialize_i8(*v),
            Value::U16(v) => s.serialize_u16(*v),
            Value::I16(v) => s.serialize_i16(*v),
            Value::U32(v) => s.serialize_u32(*v),
            Value::I32(v) => s.serialize_i32(*v),
            Value::F32(v) => s.serialize_f32(*v),
            Value::Bool(v) => s.serialize_bool(*v),
            Value::String(v) => s.serialize_str(v),
            Value::U64(v) => s.serialize_u64(*v),
            Value::I64(v) => s.serialize_i64(*v),
            Value::F64(v) => s.serialize_f64(*v),
            Value::Array(a) => match a {
                Array::U8(v) => self.list(v, s, |v| *v),
                Array::I8(v) => self.list(v, s, |v| *v),
                Array::U16(v) => self.list(v, s, |v| *v),
                Array::I16(v) => self.list(v, s, |v| *v),
                Array::U32(v) => self.list(v, s, |v| *v),
                Array::I32(v) => self.list(v, s, |v| *v),
                Array::F32(v) => self.list(v, s, |v| *v),
                Array::Bool(v) => self.list(v, s, |v| *v),
                Array::String(v) => self.list(v, s, |v| v.as_str()),
                Array::U64(v) => self.list(v, s, |v| *v),
                Array::I64(v) => self.list(v, s, |v| *v),
                Array::F64(v) => self.list(v, s, |v| *v),
                Array::Nested(v) => s.collect_str(&format_args!("{} arrays", v.len())),
            },
        }
    }
}

impl Shown<'_> {
    fn list<'v, T, U: Serialize, S: Serializer>(
        &self,
        items: &'v [T],
        s: S,
        shown: impl Fn(&'v T) -> U,
    ) -> Result<S::Ok, S::Error> {
        if self.full || items.len() <= HEAD {
            return s.collect_seq(items.iter().map(shown));
        }
        let mut map = s.serialize_map(Some(2))?;
        map.serialize_entry("length", &items.len())?;
        map.serialize_entry("head", &items.iter().take(HEAD).map(shown).collect::<Vec<_>>())?;
        map.end()
    }
}
