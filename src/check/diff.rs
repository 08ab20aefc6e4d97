//! Two artifacts or checkpoints side by side: metadata, tokens, template, types, and the numbers of every tensor. A folder
//! is taken as the GGUF file that it would be, so that folders and files can be compared; two folders also by their
//! configurations.

use crate::control::{Control, Report, Run, Unit};
use crate::convert::{Recipe, plan};
use crate::eval::damage::{self, Transform};
use crate::gguf::{Array, Metadata, Value};
use crate::model::SourceModel;
use crate::model::{Mtp, Part};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TEMPLATE: &str = "tokenizer.chat_template";
/// Of text that is shown.
const SHOWN: usize = 100;

/// How two artifacts differ.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Diff {
    /// Whether nothing below differs.
    pub same: bool,
    /// Metadata keys whose values differ.
    pub metadata: Vec<OfKey>,
    /// Of two folders.
    pub config: Vec<OfKey>,
    /// How the vocabularies differ; `None` where they do not.
    pub tokens: Option<OfTokens>,
    /// The chat templates, where they differ.
    pub template: Option<OfKey>,
    /// Tensors of the first alone.
    pub only_first: Vec<String>,
    /// Tensors that only the second has.
    pub only_second: Vec<String>,
    /// Those that both have and that differ in type, shape or numbers.
    pub tensors: Vec<OfTensor>,
    /// How many tensors both have.
    pub compared: usize,
    /// What could not be compared, and why.
    pub notes: Vec<String>,
}

/// A key; `None` where one does not have it.
#[derive(Clone, Debug, Serialize)]
pub struct OfKey {
    /// The key's name.
    pub key: String,
    /// Its value in the first; `None` where it has no such key.
    pub first: Option<String>,
    /// Its value in the second.
    pub second: Option<String>,
}

/// The vocabularies.
#[derive(Clone, Debug, Serialize)]
pub struct OfTokens {
    /// How many tokens the first has.
    pub first: usize,
    /// How many tokens the second has.
    pub second: usize,
    /// Places that hold other tokens.
    pub differing: usize,
    /// The first of these: its number and both tokens.
    pub example: Option<(usize, String, String)>,
}

/// A tensor that differs.
#[derive(Clone, Debug, Serialize)]
pub struct OfTensor {
    /// The tensor's name.
    pub name: String,
    /// Type and shape where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<(String, String)>,
    /// The shapes, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<(Vec<usize>, Vec<usize>)>,
    /// ‖A − B‖ / ‖A‖; absent where that cannot be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
}

/// Compares what lies at two paths.
///
/// # Errors
/// Those of opening and reading them; `Interrupted`.
///
/// ```
/// use quantize::{Control, check, convert::{self, Recipe}, model::SourceModel};
///
/// let source = std::path::Path::new("tests/conformance/llama");
/// let folder = tempfile::tempdir().unwrap();
/// let mut plan = convert::plan(&SourceModel::open(source)?, &Recipe::to(["q8_0"])?)?;
/// plan.place(folder.path())?;
/// let file = convert::run(&plan, &Control::default(), &())?.outputs[0].paths[0].clone();
/// let diff = check::diff(source, &file, &Control::default(), &())?;
/// assert!(diff.tokens.is_none() && diff.only_first.is_empty());
/// assert!(diff.tensors.iter().all(|t| t.distance.unwrap() < 0.01));
/// # Ok::<(), quantize::Error>(())
/// ```
pub fn diff(first: &Path, second: &Path, control: &Control, report: &dyn Report) -> Result<Diff> {
    let run = Run::new(control, report);
    let (a, b) = (open(first)?, open(second)?);
    let mut diff = Diff::default();
    match (metadata(&a), metadata(&b)) {
        (Ok(x), Ok(y)) => of_metadata(&mut diff, &x, &y),
        (Err(e), _) | (_, Err(e)) => diff.notes.push(format!("metadata is not compared: {e}")),
    }
    if let (Some(x), Some(y)) = (&a.model.hf_config, &b.model.hf_config) {
        let (mut of_first, mut of_second) = (BTreeMap::new(), BTreeMap::new());
        flatten("", x, &mut of_first);
        flatten("", y, &mut of_second);
        diff.config = of_keys(&of_first, &of_second);
    }
    of_tensors(&mut diff, &a, &b, run)?;
    diff.same = diff.metadata.is_empty()
        && diff.config.is_empty()
        && diff.tokens.is_none()
        && diff.template.is_none()
        && diff.only_first.is_empty()
        && diff.only_second.is_empty()
        && diff.tensors.is_empty();
    Ok(diff)
}

/// A model; a folder without a family as its blueprint makes it, where it has one.
fn open(path: &Path) -> Result<SourceModel> {
    let source = SourceModel::open(path)?;
    Ok(source.for_files(Part::Text, Mtp::Keep).unwrap_or(source))
}

fn metadata(source: &SourceModel) -> Result<Metadata> {
    match source.ckpt.gguf() {
        Some(metadata) => Ok(metadata.clone()),
        None => plan::metadata(source, &Recipe::default()).map(|(metadata, _)| metadata),
    }
}

fn of_metadata(diff: &mut Diff, a: &Metadata, b: &Metadata) {
    let text = |m: &Metadata| m.str(TEMPLATE).map(String::from);
    if text(a) != text(b) {
        let (first, second) = (text(a), text(b));
        let (first, second) = match (&first, &second) {
            (Some(x), Some(y)) => parted(x, y),
            _ => (first.map(|t| short(&t)), second.map(|t| short(&t))),
        };
        diff.template = Some(OfKey { key: TEMPLATE.into(), first, second });
    }
    if let (Some(x), Some(y)) = (a.strings(TOKENS), b.strings(TOKENS))
        && x != y
    {
        let differing = |i: &usize| x.get(*i) != y.get(*i);
        let places: Vec<usize> = (0..x.len().max(y.len())).filter(differing).collect();
        let token = |all: &[String], i: usize| all.get(i).map_or_else(|| "nothing".to_string(), |t| short(t));
        let example = places.first().map(|i| (*i, token(x, *i), token(y, *i)));
        diff.tokens = Some(OfTokens { first: x.len(), second: y.len(), differing: places.len(), example });
    }
    let keys = |m: &Metadata| -> BTreeMap<String, Value> {
        let own = m.iter().filter(|(key, _)| ![TEMPLATE, TOKENS].contains(key) && !key.starts_with("split."));
        own.map(|(key, value)| (key.to_string(), value.clone())).collect()
    };
    let (x, y) = (keys(a), keys(b));
    for key in x.keys().chain(y.keys().filter(|key| !x.contains_key(*key))) {
        let (first, second) = (x.get(key), y.get(key));
        if first != second {
            let (first, second) = match (first, second) {
                (Some(Value::Array(p)), Some(Value::Array(q))) => of_arrays(p, q),
                _ => (first.map(shown), second.map(shown)),
            };
            diff.metadata.push(OfKey { key: key.clone(), first, second });
        }
    }
}

/// Two texts from where they part.
fn parted(a: &str, b: &str) -> (Option<String>, Option<String>) {
    let same: usize = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    let from = |text: &str| Some(format!("at byte {same}: {}", short(&text[same..])));
    (from(a), from(b))
}

fn short(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN).collect();
    if out.len() < text.len() {
        out += "…";
    }
    out
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => short(text),
        Value::Array(array) => format!("{} elements", elements(array).len()),
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
    }
}

fn of_arrays(a: &Array, b: &Array) -> (Option<String>, Option<String>) {
    let (x, y) = (elements(a), elements(b));
    let at = (0..x.len().max(y.len())).find(|i| x.get(*i) != y.get(*i)).unwrap_or(0);
    let one = |all: &[String]| match all.get(at) {
        Some(element) => Some(format!("{} elements, number {at}: {}", all.len(), short(element))),
        None => Some(format!("{} elements", all.len())),
    };
    (one(&x), one(&y))
}

fn elements(array: &Array) -> Vec<String> {
    fn all<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }
    match array {
        Array::U8(v) => all(v),
        Array::I8(v) => all(v),
        Array::U16(v) => all(v),
        Array::I16(v) => all(v),
        Array::U32(v) => all(v),
        Array::I32(v) => all(v),
        Array::F32(v) => all(v),
        Array::Bool(v) => all(v),
        Array::String(v) => v.clone(),
        Array::U64(v) => all(v),
        Array::I64(v) => all(v),
        Array::F64(v) => all(v),
        Array::Nested(v) => v.iter().map(|inner| elements(inner).join(", ")).collect(),
    }
}

/// The leaves of a JSON document by their paths.
fn flatten(path: &str, value: &serde_json::Value, found: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, found);
            }
        }
        leaf => drop(found.insert(path.to_string(), short(&leaf.to_string()))),
    }
}

fn of_keys(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<OfKey> {
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    let row = |key: &String| OfKey { key: key.clone(), first: a.get(key).cloned(), second: b.get(key).cloned() };
    keys.map(row).filter(|row| row.first != row.second).collect()
}

fn of_tensors(diff: &mut Diff, a: &SourceModel, b: &SourceModel, run: Run) -> Result<()> {
    let names = |source: &SourceModel| -> Vec<String> { source.model.tensors.iter().map(|t| t.name.clone()).collect() };
    let (x, y) = (names(a), names(b));
    diff.only_first = x.iter().filter(|name| !y.contains(name)).cloned().collect();
    diff.only_second = y.iter().filter(|name| !x.contains(name)).cloned().collect();
    let total = b.model.tensors.iter().map(|t| t.elements() as u64 * 4).sum();
    let _phase = run.phase("comparing", total, Unit::Bytes);
    if let Some(transform) = damage::transform((&a.ckpt, &a.model), (&b.ckpt, &b.model))? {
        diff.notes.push(match transform {
            Transform::Sorted => "feed-forward channels are in a different order, so whole tensors differ".into(),
            Transform::Scaled => {
                "norms differ by more than rounding; if factors were moved between norms and layers (AWQ, SmoothQuant), both differ although the model is the same".into()
            }
        });
    }
    for tensor in &b.model.tensors {
        run.check()?;
        let Some(source) = a.model.tensors.iter().find(|t| t.name == tensor.name) else { continue };
        diff.compared += 1;
        let ty = |of: &SourceModel, parts: &[usize]| {
            parts.first().map_or_else(String::new, |part| of.ckpt.tensors()[*part].dtype.to_string())
        };
        let types = Some((ty(a, &source.parts), ty(b, &tensor.parts))).filter(|(x, y)| x != y);
        let shapes = Some((source.shape.clone(), tensor.shape.clone())).filter(|(x, y)| x != y);
        let distance = match shapes {
            Some(_) => None,
            None => match damage::distance(&a.ckpt, source, &b.ckpt, tensor) {
                // Whole numbers are compared as they are stored.
                Err(Error::Unsupported(_)) => None,
                other => Some(other?),
            },
        };
        run.advance(tensor.elements() as u64 * 4);
        if types.is_some() || shapes.is_some() || distance.is_some_and(|d| d > 0.0) {
            diff.tensors.push(OfTensor { name: tensor.name.clone(), types, shapes, distance });
        }
    }
    Ok(())
}
