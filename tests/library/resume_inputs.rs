//! What a run reads decides whether another goes on with what it left: every file of the source, and the text, are changed
//! one after the other. Each time the unfinished work is refused and left alone, or the end is that of an undisturbed run.

use crate::common::{copy_model, names, sha256};
use quantize::calibration::resume;
use quantize::convert::recipe::Data;
use quantize::convert::{self, Calibration, Checkpoints, ImportanceFile, Recipe, Source, calibrate};
use quantize::model::SourceModel;
use quantize::release;
use quantize::{Cancel, Control, Error, Phase, Report, Result, Unfinished};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The source's folder.
const MODEL: &str = "model";
/// An importance matrix, among the source's files.
const IMPORTANCE: &str = "imatrix.gguf";
/// What is calibrated on.
const TEXT: &str = "text.txt";

/// Asks a run to stop when most of a phase is over.
struct StopIn {
    phase: &'static str,
    cancel: Cancel,
    left: AtomicU64,
}

impl Report for StopIn {
    fn begin(&self, phase: &Phase) {
        let part = if phase.name.starts_with(self.phase) { phase.total / 10 * 6 } else { u64::MAX };
        self.left.store(part, Ordering::Relaxed);
    }

    fn advance(&self, n: u64) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(n), Ordering::Relaxed);
        if left <= n {
            self.cancel.request();
        }
    }
}

/// A kind of run that goes on with what another left.
struct Kind {
    /// The phase in which it is cut short.
    phase: &'static str,
    work: fn(&Path, &Control, &dyn Report) -> Result<()>,
    /// Whether the weights are known by a hash, whatever their file's time says.
    hashes: bool,
}

fn data(folder: &Path) -> Data {
    Data { sources: vec![Source::File(folder.join(TEXT))], tokens: 1024, window: 64, ..Data::default() }
}

/// A conversion of what lies in a folder, to its `out` or `out.gguf`.
fn converted(folder: &Path, target: &str, calibrated: bool, control: &Control, report: &dyn Report) -> Result<()> {
    let recipe = Recipe { data: calibrated.then(|| data(folder)), ..Recipe::to([target])? };
    let mut plan = convert::plan(&SourceModel::open(&folder.join(MODEL))?, &recipe)?;
    plan.place(&folder.join(if recipe.files().next().is_some() { "out.gguf" } else { "out" }))?;
    convert::run(&plan, control, report).map(|_| ())
}

/// All that a run has written: names below a folder, and bytes.
fn written(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
            match path.is_dir() {
                true if name == MODEL => {}
                true => walk(root, &path, found),
                false if name == TEXT => {}
                false => drop(found.insert(name, fs::read(&path).unwrap())),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

fn inputs(folder: &Path) {
    copy_model("llama", &folder.join(MODEL));
    fs::write(folder.join(MODEL).join("README.md"), "---\nlicense: mit\n---\nA model.\n").unwrap();
    fs::write(folder.join(TEXT), "A text about one thing and another, long enough for a window.\n".repeat(300))
        .unwrap();
    let source = SourceModel::open(&folder.join(MODEL)).unwrap();
    let calibration = Calibration { data: data(folder), ..Calibration::default() };
    let control = Control { threads: 2, ..Control::default() };
    let made = calibrate(&source, &calibration, None, None, &control, &()).unwrap();
    made.write(&folder.join(MODEL).join(IMPORTANCE), &control).unwrap();
}

fn edited(bytes: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    edit(&mut value);
    value.to_string().into_bytes()
}

/// The same file saying something else.
fn changed(name: &str, bytes: &[u8]) -> Vec<u8> {
    match name {
        "config.json" => edited(bytes, |config| config["rms_norm_eps"] = json!(0.01)),
        "tokenizer.json" => edited(bytes, |tokenizer| {
            let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
            let two: Vec<String> = vocab.keys().skip(40).take(2).cloned().collect();
            let (a, b) = (vocab[&two[0]].clone(), vocab[&two[1]].clone());
            vocab[&two[0]] = b;
            vocab[&two[1]] = a;
        }),
        "tokenizer_config.json" => edited(bytes, |config| config["chat_template"] = json!("{{ messages }}")),
        "model.safetensors" => {
            let mut bytes = bytes.to_vec();
            // A sign, in the middle of the weights.
            let at = (bytes.len() / 2) | 1;
            bytes[at] ^= 0x80;
            bytes
        }
        IMPORTANCE => {
            let mut bytes = bytes.to_vec();
            // The lowest bits of a number.
            let at = bytes.len() / 8 * 4;
            bytes[at] ^= 1;
            bytes
        }
        _ => [bytes, b"And one more line.\n"].concat(),
    }
}

/// Whether unfinished work was refused for being of other inputs.
fn refused(error: &Error) -> bool {
    match error {
        Error::Unfinished { why: Unfinished::OfAnotherRun { .. }, .. } => true,
        Error::BadInput(finding) => finding.what.contains("the calibration to resume has a different"),
        // What is finished is of other inputs, and in the way.
        Error::Exists { replaceable, .. } => *replaceable,
        _ => false,
    }
}

/// Removes all that runs have written.
fn clear(folder: &Path) {
    for name in names(folder).iter().filter(|name| *name != MODEL && *name != TEXT) {
        let path = folder.join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// That a run which went on has made what one from the beginning makes.
fn assert_whole(kind: &Kind, folder: &Path, control: &Control, what: &str) {
    let resumed = written(folder);
    clear(folder);
    (kind.work)(folder, control, &()).unwrap();
    assert!(written(folder) == resumed, "{}, {what}: other bytes than those of an undisturbed run", kind.phase);
}

fn every_input_counts(kind: &Kind) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    inputs(folder);
    let stop = StopIn { phase: kind.phase, cancel: Cancel::default(), left: AtomicU64::new(u64::MAX) };
    let control = |resume| Control { threads: 2, resume, check: Some(false), ..Control::default() };
    let first = Control { cancel: stop.cancel.clone(), ..control(false) };
    assert!(matches!((kind.work)(folder, &first, &stop), Err(Error::Interrupted)), "{}", kind.phase);
    let left = written(folder);
    assert!(!left.is_empty(), "{}: nothing to go on with", kind.phase);
    let mut files: Vec<String> = names(&folder.join(MODEL)).into_iter().map(|name| format!("{MODEL}/{name}")).collect();
    assert!(files.len() >= 5, "{files:?}");
    files.extend([TEXT.to_string(), format!("{MODEL}/generation_config.json")]);
    let (mut refusals, mut went_on) = (0, 0);
    for keep_time in [false, true] {
        for file in &files {
            let (path, name) = (folder.join(file), file.trim_start_matches("model/"));
            if keep_time && !(kind.hashes && name == "model.safetensors") {
                continue;
            }
            // One of them is not there before.
            let before = fs::read(&path).ok();
            let time = before.as_ref().map(|_| path.metadata().unwrap().modified().unwrap());
            let new = changed(name, before.as_deref().unwrap_or(b"{}"));
            fs::write(&path, if before.is_some() { new.as_slice() } else { b"{}".as_slice() }).unwrap();
            let set_time = |time| File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
            if keep_time {
                assert_eq!(before.as_ref().unwrap().len(), new.len());
                set_time(time.unwrap());
            }
            match (kind.work)(folder, &control(true), &()) {
                Err(error) => {
                    assert!(refused(&error), "{}, {file}: {error}", kind.phase);
                    assert!(written(folder) == left, "{}, {file}: what was refused was not left alone", kind.phase);
                    refusals += 1;
                }
                Ok(()) => {
                    assert_whole(kind, folder, &control(false), file);
                    clear(folder);
                    for (name, bytes) in &left {
                        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                        fs::write(folder.join(name), bytes).unwrap();
                    }
                    went_on += 1;
                }
            }
            match before {
                Some(before) => fs::write(&path, before).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            time.into_iter().for_each(set_time);
        }
    }
    println!("{}: refused {refusals} times, went on {went_on} times", kind.phase);
    assert!(refusals >= 3);
    (kind.work)(folder, &control(true), &()).unwrap();
    assert_whole(kind, folder, &control(false), "nothing changed");
}

#[test]
fn of_files_with_feedback() {
    let work = |folder: &Path, control: &Control, report: &dyn Report| converted(folder, "q4_0", true, control, report);
    every_input_counts(&Kind { phase: "rounding with feedback", work, hashes: true });
}

#[test]
fn of_folders() {
    let nearest =
        |folder: &Path, control: &Control, report: &dyn Report| converted(folder, "fp8", false, control, report);
    every_input_counts(&Kind { phase: "fp8", work: nearest, hashes: false });
    let gptq = |folder: &Path, control: &Control, report: &dyn Report| {
        converted(folder, "gptq-4bit-32g", true, control, report)
    };
    every_input_counts(&Kind { phase: "gptq", work: gptq, hashes: true });
}

/// A file that an importance matrix guides, and a folder.
#[test]
fn of_an_importance_matrix() {
    let work = |folder: &Path, control: &Control, report: &dyn Report| {
        let file = folder.join(MODEL).join(IMPORTANCE);
        let importance = ImportanceFile { file: file.display().to_string(), sha256: sha256(&fs::read(&file).unwrap()) };
        let recipe = Recipe { importance: Some(importance), ..Recipe::to(["q4_0", "fp8"])? };
        let mut plan = convert::plan(&SourceModel::open(&folder.join(MODEL))?, &recipe)?;
        plan.place(&folder.join("./"))?;
        convert::run(&plan, control, report).map(|_| ())
    };
    every_input_counts(&Kind { phase: "fp8", work, hashes: false });
}

#[test]
fn of_releases() {
    let work = |folder: &Path, control: &Control, report: &dyn Report| {
        let recipe = Recipe { data: Some(data(folder)), ..Recipe::to(["q4_0", "gptq-4bit-32g"])? };
        let source = SourceModel::open(&folder.join(MODEL))?;
        let release = release::plan(&source, &recipe, &folder.join("out"), release::Options::default())?;
        release::run(&release, control, report).map(|_| ())
    };
    every_input_counts(&Kind { phase: "gptq", work, hashes: true });
}

#[test]
fn of_calibrations() {
    let work = |folder: &Path, control: &Control, report: &dyn Report| {
        let output = folder.join("out.gguf");
        let source = SourceModel::open(&folder.join(MODEL))?;
        let calibration = Calibration { data: data(folder), ..Calibration::default() };
        let checkpoints = Some(Checkpoints { output: &output, every: Duration::ZERO });
        let made = calibrate(&source, &calibration, None, checkpoints, control, report)?;
        made.imatrix.write(&output, &Default::default(), control.force)?;
        resume::forget(&output)
    };
    every_input_counts(&Kind { phase: "calibrating", work, hashes: false });
}

/// Every field of what is asked of a calibration is changed; Hessians are made from the beginning.
#[test]
fn every_field_of_a_calibration_counts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    inputs(folder);
    let other = folder.join("other.txt");
    fs::write(&other, "Another text about other things, which is as long.\n".repeat(300)).unwrap();
    let output = folder.join("out.gguf");
    let source = SourceModel::open(&folder.join(MODEL)).unwrap();
    let run = |calibration: &Calibration, control: &Control, report: &dyn Report| {
        let checkpoints = Some(Checkpoints { output: &output, every: Duration::ZERO });
        calibrate(&source, calibration, None, checkpoints, control, report)
    };
    let calibration = Calibration { data: data(folder), ..Calibration::default() };
    let stop = StopIn { phase: "calibrating", cancel: Cancel::default(), left: AtomicU64::new(u64::MAX) };
    let control = Control { threads: 2, ..Control::default() };
    let first = Control { cancel: stop.cancel.clone(), ..control.clone() };
    assert!(matches!(run(&calibration, &first, &stop), Err(Error::Interrupted)));
    let resumed = Control { resume: true, ..control };
    let recorded = serde_json::to_value(&calibration).unwrap();
    let places = ["/data/sources/0", "/data/tokens", "/data/window", "/data/seed", "/head"];
    let fields = |value: &Value| value.as_object().unwrap().len();
    assert_eq!(fields(&recorded["data"]) + fields(&recorded) - 2, places.len(), "a new field is to be changed here");
    for place in places {
        let mut changed = recorded.clone();
        let value = changed.pointer_mut(place).unwrap();
        *value = match value {
            Value::Bool(b) => json!(!*b),
            Value::Number(n) => json!(n.as_u64().unwrap() + 1),
            _ => json!(other),
        };
        let changed: Calibration = serde_json::from_value(changed).unwrap();
        let error =
            run(&changed, &resumed, &()).err().unwrap_or_else(|| panic!("{place} was changed, and the run went on"));
        assert!(refused(&error), "{place}: {error}");
    }
    let made = run(&calibration, &resumed, &()).unwrap();
    resume::forget(&output).unwrap();
    let whole = run(&calibration, &Control { resume: false, ..resumed }, &()).unwrap();
    let bytes = |made: &convert::Imatrix, name: &str| {
        made.write(&folder.join(name), &Default::default(), false).unwrap();
        fs::read(folder.join(name)).unwrap()
    };
    assert!(bytes(&made.imatrix, "a.gguf") == bytes(&whole.imatrix, "b.gguf"));
}

/// What is unfinished may lie among the source's files, and is none of them.
#[test]
fn outputs_in_the_sources_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    inputs(folder);
    let work = |control: &Control, report: &dyn Report| -> Result<()> {
        let recipe = Recipe { data: Some(data(folder)), ..Recipe::to(["q4_0"])? };
        let mut plan = convert::plan(&SourceModel::open(&folder.join(MODEL))?, &recipe)?;
        plan.place(&folder.join(MODEL).join("out.gguf"))?;
        convert::run(&plan, control, report).map(|_| ())
    };
    let before = names(&folder.join(MODEL));
    let stop = StopIn { phase: "rounding with feedback", cancel: Cancel::default(), left: AtomicU64::new(u64::MAX) };
    let control = Control { threads: 2, check: Some(false), ..Control::default() };
    assert!(matches!(
        work(&Control { cancel: stop.cancel.clone(), ..control.clone() }, &stop),
        Err(Error::Interrupted)
    ));
    assert!(names(&folder.join(MODEL)).iter().any(|name| name == "out.gguf.resume"));
    work(&Control { resume: true, ..control }, &()).unwrap();
    let mut after = before;
    after.push("out.gguf".into());
    after.sort();
    assert_eq!(names(&folder.join(MODEL)), after);
}
