//! What decides the bytes of an output decides whether a run may go on: every field of the recipe is changed, one after the
//! other, and the unfinished work of the first run is refused.

use crate::common::{digests, model};
use quantize::convert::recipe::Data;
use quantize::convert::{self, Limit, Recipe, Search, Target};
use quantize::model::SourceModel;
use quantize::{Cancel, Control, Error, Phase, Report, Unfinished, Unit};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Asks a run to stop in the middle of its longest phase.
#[derive(Default)]
struct StopHalfway {
    cancel: Cancel,
    total: AtomicU64,
    done: AtomicU64,
}

impl Report for StopHalfway {
    fn begin(&self, phase: &Phase) {
        // Nothing is noted while losses are estimated.
        let counts = matches!(phase.unit, Unit::TokensByLayer(_)) && phase.name != "losses by type"
            || ["gptq", "int8", "mlx"].iter().any(|name| phase.name.starts_with(name));
        self.total.store(if counts { phase.total } else { u64::MAX }, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
    }

    fn advance(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if done > self.total.load(Ordering::Relaxed) / 10 * 6 {
            self.cancel.request();
        }
    }
}

fn run(source: &SourceModel, recipe: &Recipe, output: &Path, control: &Control, report: &dyn Report) -> Option<Error> {
    let planned = convert::plan(source, recipe).and_then(|mut plan| plan.place(output).map(|()| plan));
    planned.and_then(|plan| convert::run(&plan, control, report)).err()
}

/// The places of all values in a JSON document that have no parts.
fn leaves(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(k, v)| leaves(v, format!("{at}/{k}"), found)),
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(i, v)| leaves(v, format!("{at}/{i}"), found));
        }
        _ => found.push(at),
    }
}

/// Another value for a field. A field that is not known here ends the test: say how to change it, and see it refused.
fn other(place: &str, value: &Value, text: &str, of_files: bool) -> Value {
    match (place, value) {
        (_, Value::Bool(b)) => json!(!b),
        ("/rounding/rho" | "/rounding/damping" | "/rounding/smooth", _) => json!(0.25),
        (_, Value::Number(n)) => json!(n.as_u64().unwrap() + 1),
        ("/outputs/0/preset", _) => json!("Q4_K_M"),
        ("/outputs/0/folder/name", _) => json!("another"),
        ("/outputs/0/folder/format", _) => json!("gptq-4bit-64g!"),
        ("/types/tensors", _) => json!([{ "pattern": "ffn_down", "type": if of_files { "Q6_K" } else { "8bit" } }]),
        ("/types/output" | "/types/embedding", _) => json!("Q8_0"),
        ("/metadata", _) => json!([{ "key": "general.name", "value": { "str": "other" } }]),
        ("/pretokenizer", _) => json!("gpt-2"),
        ("/unseen_experts", _) => json!("plain"),
        ("/data/sources/0", _) => json!(text),
        ("/rounding/search", Value::String(s)) => json!(if s == "feedback" { "nearest" } else { "feedback" }),
        ("/rounding/sequential", _) => json!(true),
        ("/mtp", _) => json!("drop"),
        ("/part", _) => json!("projector"),
        ("/split", _) => json!({ "max-bytes": 1_000_000 }),
        _ => panic!("how is {place} changed? It is {value}"),
    }
}

/// Cuts a run short, changes each field of what it records, and expects `--resume` to refuse; then the unchanged recipe goes
/// on. `passed_over`: fields whose change makes a run that continues nothing, or that excludes others.
fn every_field_counts(source: &str, recipe: Recipe, passed_over: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let source = SourceModel::open(&model(source)).unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "Another text about other things, long enough for a window or two.\n".repeat(200)).unwrap();
    let output = dir.path().join(if recipe.files().next().is_some() { "out.gguf" } else { "out" });
    let stop = StopHalfway::default();
    let control = |resume| Control { threads: 2, resume, ..Control::default() };
    let first = Control { cancel: stop.cancel.clone(), ..control(false) };
    assert!(matches!(run(&source, &recipe, &output, &first, &stop), Some(Error::Interrupted)));
    let recorded = recipe.of_output(0).to_json();
    let mut places = Vec::new();
    leaves(&recorded, String::new(), &mut places);
    assert!(places.len() > 10, "{places:?}");
    let mut refused = 0;
    for place in places.iter().filter(|place| !passed_over.contains(&place.as_str())) {
        let mut changed = recorded.clone();
        let value = changed.pointer_mut(place).unwrap();
        *value = other(place, value, text.to_str().unwrap(), recipe.files().next().is_some());
        let changed = Recipe::from_json(&changed.to_string()).unwrap();
        match run(&source, &changed, &output, &control(true), &()) {
            Some(Error::Unfinished { why, .. }) => {
                assert!(matches!(why, Unfinished::OfAnotherRun { .. }), "{place}: {why}")
            }
            other => panic!("{place} was changed, and the run went on: {other:?}"),
        }
        refused += 1;
    }
    assert!(refused + passed_over.len() >= places.len());
    assert!(!output.exists());
    let unchanged = run(&source, &recipe, &output, &control(true), &());
    assert!(unchanged.is_none() && output.exists(), "{unchanged:?}");
}

fn calibrated(target: &str) -> Recipe {
    let data = Some(Data { tokens: 2048, window: 64, ..Data::default() });
    Recipe { data, ..Recipe::to([target]).unwrap() }
}

#[test]
fn every_field_of_a_files_recipe_counts() {
    // A finished matrix and projectors exclude calibration data; without feedback nothing is continued.
    let of_folders = ["/rounding/static_groups", "/rounding/smooth", "/devices"];
    every_field_counts(
        "llama",
        calibrated("q4_0"),
        &[&["/importance", "/part", "/rounding/search"], &of_folders[..]].concat(),
    );
}

/// What a folder's recipe does not depend on.
const OF_FILES: [&str; 12] = [
    "/part",
    "/mtp",
    "/types/output",
    "/types/embedding",
    "/types/keep_output",
    "/types/pure",
    "/metadata",
    "/pretokenizer",
    "/requantize",
    "/importance",
    "/unseen_experts",
    "/rounding/sort_channels",
];

#[test]
fn every_field_of_a_folders_recipe_counts() {
    let of_other_formats = ["/rounding/static_groups", "/rounding/smooth"];
    every_field_counts("llama", calibrated("gptq-4bit-32g"), &[&OF_FILES[..], &of_other_formats].concat());
    // With groups in the order of the activations.
    every_field_counts("llama", calibrated("gptq-4bit-32g-desc"), &[&OF_FILES[..], &["/rounding/smooth"]].concat());
    // With formats chosen to fit.
    let mut budget = calibrated("mlx-4bit-32g");
    if let Target::Folder { limit, .. } = &mut budget.outputs[0] {
        *limit = Some(Limit::Bytes(165_000));
    }
    every_field_counts("llama", budget, &[&OF_FILES[..], &of_other_formats].concat());
    // With channels scaled, and nothing that error feedback decides.
    let of_feedback = ["/rounding/search", "/rounding/rho", "/rounding/damping", "/rounding/static_groups"];
    every_field_counts("llama", calibrated("int8"), &[&OF_FILES[..], &of_feedback].concat());
    // With tuned scales, and nothing else that calibration decides.
    let mut tuned = calibrated("mlx-4bit-32g");
    (tuned.rounding.search, tuned.rounding.tune) = (Some(Search::Nearest), 2);
    let of_rounding = ["/rounding/rho", "/rounding/damping", "/rounding/sequential"];
    every_field_counts("llama", tuned, &[&OF_FILES[..], &of_other_formats, &of_rounding].concat());
}

/// Asks a run to stop as soon as a phase begins.
struct StopIn {
    phase: &'static str,
    cancel: Cancel,
}

impl Report for StopIn {
    fn begin(&self, phase: &Phase) {
        if phase.name == self.phase {
            self.cancel.request();
        }
    }
}

/// All the work is done when a file is checked; a run that is stopped then does not do it again.
#[test]
fn a_run_stopped_while_its_file_is_checked_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (source, recipe) = (SourceModel::open(&model("tiny-llama")).unwrap(), calibrated("q4_0"));
    let [output, whole] = ["a", "b"].map(|folder| dir.path().join(folder).join("out.gguf"));
    [&output, &whole].iter().for_each(|path| std::fs::create_dir(path.parent().unwrap()).unwrap());
    let control = Control { threads: 2, check: Some(true), ..Control::default() };
    let stop = StopIn { phase: "checking", cancel: Cancel::default() };
    let first = Control { cancel: stop.cancel.clone(), ..control.clone() };
    assert!(matches!(run(&source, &recipe, &output, &first, &stop), Some(Error::Interrupted)));
    // What was left is there to go on with.
    assert!(!output.exists() && std::fs::read_dir(output.parent().unwrap()).unwrap().count() > 1);
    let resumed = Control { resume: true, ..control.clone() };
    assert!(run(&source, &recipe, &output, &resumed, &()).is_none());
    assert!(run(&source, &recipe, &whole, &control, &()).is_none());
    assert!(std::fs::read(output).unwrap() == std::fs::read(whole).unwrap());
}

/// Steps of tuning are not noted one by one: a run that is stopped among them takes them anew, to the same bytes.
#[test]
fn a_run_stopped_while_its_scales_are_tuned_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = SourceModel::open(&model("tiny-llama")).unwrap();
    let mut recipe = calibrated("mlx-3bit-64g");
    recipe.rounding.tune = 3;
    let [output, whole] = ["a", "b"].map(|name| dir.path().join(name));
    let control = Control { threads: 2, ..Control::default() };
    let stop = StopIn { phase: "tuning", cancel: Cancel::default() };
    let first = Control { cancel: stop.cancel.clone(), ..control.clone() };
    assert!(matches!(run(&source, &recipe, &output, &first, &stop), Some(Error::Interrupted)));
    assert!(!output.exists());
    let resumed = Control { resume: true, ..control.clone() };
    let done = run(&source, &recipe, &output, &resumed, &());
    assert!(done.is_none(), "{done:?}");
    assert!(run(&source, &recipe, &whole, &Control { threads: 1, ..control }, &()).is_none());
    assert_eq!(digests(&output), digests(&whole));
    let manifest = std::fs::read_to_string(output.join("quantize-manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let tuned = &manifest["tuned"];
    assert!(tuned["kept"].as_u64().unwrap() > 0, "{tuned}");
    assert!(tuned["after"].as_f64().unwrap() < tuned["before"].as_f64().unwrap(), "{tuned}");
    assert_eq!(manifest["recipe"]["rounding"]["tune"], 3);
}
