//! Every number of every family's configuration, changed: the conversion ends well or names what is wrong.

use crate::common::{everything, json, names, repo};
use crate::families::restore;
use quantize::convert::{self, Recipe};
use quantize::model::SourceModel;
use quantize::{Control, Error};
use serde_json::{Value, json};
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// JSON pointers of the numbers in `value`.
fn numbers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| numbers(v, format!("{at}/{i}"), found)),
        Value::Object(fields) => {
            fields.iter().for_each(|(k, v)| numbers(v, format!("{at}/{}", k.replace('/', "~1")), found));
        }
        _ => {}
    }
}

fn changed(number: &Value) -> Vec<Value> {
    let mut values = match number.as_u64() {
        Some(n) => vec![json!(n.saturating_add(1)), json!(n.saturating_mul(2))],
        None => vec![json!(number.as_f64().unwrap_or(1.0) * 2.0), json!(f64::MAX)],
    };
    values.extend([json!(0), json!(1_000_000_000_000_u64), json!(-1)]);
    values
}

fn convert_folder(folder: &Path, to: &Path, golden: &Value) -> quantize::Result<()> {
    let pre = golden["metadata"]["tokenizer.ggml.pre"][1].as_str().filter(|pre| *pre != "default");
    let recipe = Recipe { pretokenizer: pre.map(String::from), ..Recipe::to(["f16"])? };
    let mut plan = convert::plan(&SourceModel::open(folder)?, &recipe)?;
    plan.place(to)?;
    convert::run(&plan, &Control { check: Some(false), ..Control::default() }, &())?;
    Ok(())
}

/// One change in `every`, in turn; all of them where the environment says `QUANTIZE_TEST_ALL`.
#[test]
fn a_changed_number_in_a_configuration_is_converted_or_named() {
    let every = if everything() { 1 } else { 16 };
    let mut bad = Vec::new();
    let (mut tried, mut turn) = (0, 0);
    for file in names(&repo("tests/golden/families")) {
        let Some(name) = file.strip_suffix(".json") else { continue };
        let golden = json(&repo("tests/golden/families").join(&file));
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        restore(name, &folder);
        let config = folder.join("config.json");
        if !config.exists() {
            continue;
        }
        let original = json(&config);
        let mut found = Vec::new();
        numbers(&original, String::new(), &mut found);
        for pointer in found {
            for value in changed(original.pointer(&pointer).unwrap()) {
                turn += 1;
                if turn % every != 0 {
                    continue;
                }
                tried += 1;
                let mut edited = original.clone();
                *edited.pointer_mut(&pointer).unwrap() = value.clone();
                fs::write(&config, edited.to_string()).unwrap();
                let out = tempfile::tempdir().unwrap();
                let end = catch_unwind(|| convert_folder(&folder, out.path(), &golden));
                let what = match end {
                    Ok(Ok(()) | Err(Error::BadInput(_) | Error::Unsupported(_))) => continue,
                    Ok(Err(error)) => format!("{error:?}"),
                    Err(_) => "panics".into(),
                };
                bad.push(format!("{name} {pointer} = {value}: {what}"));
            }
        }
    }
    assert!(tried > 500, "{tried}");
    assert!(bad.is_empty(), "{} of {tried}:\n{}", bad.len(), bad.join("\n"));
}
