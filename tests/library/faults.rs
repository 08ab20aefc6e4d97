//! Every operation that changes a file fails once, or ends the run, or finds the disk full. Whatever happens, nothing wrong
//! lies under a final name, the next run gives the bytes of an undisturbed one, and nothing is left over. A sample of the
//! operations; all of them with `QUANTIZE_TEST_ALL=1`.

use crate::common::{everything, model};
use quantize::convert::recipe::Data;
use quantize::convert::{self, Calibration, Checkpoints, Recipe, Split, Target, calibrate};
use quantize::disk::fault::{self, Fault};
use quantize::edit::{self, Change, Shards};
use quantize::model::SourceModel;
use quantize::release;
use quantize::{Control, Error, Notice, Report, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Makes something in a folder.
type Work = Box<dyn Fn(&Path, &Control) -> Result<()>>;

/// A kind of run.
struct Kind {
    name: &'static str,
    run: Work,
    /// Outputs of another recipe are there, and are replaced.
    before: Option<Work>,
    /// A plain run, too, goes on after a failed one.
    plain: bool,
    /// One in so many operations is tried with each fault.
    every: usize,
}

fn source() -> SourceModel {
    SourceModel::open(&model("llama")).unwrap()
}

/// A conversion to `targets`.
fn conversion(recipe: Recipe, output: &'static str) -> Work {
    Box::new(move |folder, control| {
        let mut plan = convert::plan(&source(), &recipe)?;
        plan.place(&folder.join(output))?;
        plan.modelfiles = recipe.data.is_none();
        if recipe.data.is_some() && recipe.files().next().is_some() {
            plan.save_importance = Some(folder.join("imatrix.gguf"));
        }
        convert::run(&plan, control, &()).map(|_| ())
    })
}

fn to(targets: &[&str]) -> Recipe {
    Recipe::to(targets.iter().copied()).unwrap()
}

fn calibrated(targets: &[&str]) -> Recipe {
    Recipe { data: Some(Data { tokens: 512, window: 32, ..Data::default() }), ..to(targets) }
}

fn split(recipe: Recipe) -> Recipe {
    Recipe { split: Split::MaxTensors(9), ..recipe }
}

/// Names in a folder and all below it, with what is in the files.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

fn sweep(kind: &Kind) {
    let control =
        |resume: bool, force: bool| Control { threads: 1, resume, force, check: Some(false), ..Control::default() };
    let force = kind.before.is_some();
    let prepared = || {
        let dir = tempfile::tempdir().unwrap();
        if let Some(before) = &kind.before {
            before(dir.path(), &control(false, false)).unwrap();
        }
        dir
    };
    let dir = prepared();
    let old = contents(dir.path());
    let (done, seen) =
        fault::with(dir.path(), usize::MAX, Fault::None, || (kind.run)(dir.path(), &control(false, force)));
    done.unwrap();
    let new = contents(dir.path());
    let operations = seen.operations;
    assert!(operations.len() > 10, "{}: {} operations", kind.name, operations.len());
    let all = everything();
    let (step, mut runs) = (if all { 1 } else { kind.every }, 0);
    let modes = [Fault::Kill, Fault::Once(ErrorKind::Other), Fault::Full];
    for (m, mode) in modes.into_iter().enumerate() {
        for n in (m..operations.len()).step_by(step) {
            let dir = prepared();
            let (failed, seen) = fault::with(dir.path(), n, mode, || (kind.run)(dir.path(), &control(false, force)));
            let what = format!("{}, {mode:?} at {n} ({:?}): {failed:?}", kind.name, seen.operations.get(n));
            let now = contents(dir.path());
            for (name, bytes) in now.iter().filter(|(name, _)| new.contains_key(*name) || old.contains_key(*name)) {
                assert!(new.get(name) == Some(bytes) || old.get(name) == Some(bytes), "{what}: {name} is neither");
            }
            runs += 1;
            if failed.is_ok() && mode != Fault::Kill {
                let named = now.iter().filter(|(name, _)| new.contains_key(*name));
                assert!(named.eq(new.iter()), "{what}: not what was to be made");
                continue;
            }
            // What finished in spite of all is there.
            if failed.is_ok() && !force && now == new {
                continue;
            }
            let resume = !kind.plain || runs % 2 == 0;
            let next = (kind.run)(dir.path(), &control(resume, force));
            assert!(next.is_ok(), "{what}; then {next:?}");
            let now = contents(dir.path());
            let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&now), names(&new), "{what}: left over or missing");
            assert!(now == new, "{what}: other bytes");
        }
    }
    println!("{}: {} operations, {runs} runs", kind.name, operations.len());
}

fn kind(name: &'static str, recipe: Recipe, output: &'static str) -> Kind {
    let plain = recipe.outputs.iter().all(Target::is_file);
    let every = if recipe.data.is_some() { 41 } else { 13 };
    Kind { name, run: conversion(recipe, output), before: None, plain, every }
}

fn replacing(kind: Kind, recipe: Recipe, output: &'static str) -> Kind {
    Kind { before: Some(conversion(recipe, output)), ..kind }
}

#[test]
fn files() {
    sweep(&kind("two files", to(&["q8_0", "q4_0"]), "./"));
    sweep(&kind("shards", split(to(&["q4_0"])), "out.gguf"));
    sweep(&replacing(kind("a file replaced", to(&["q4_0"]), "out.gguf"), to(&["q8_0"]), "out.gguf"));
    sweep(&replacing(kind("shards replaced", split(to(&["q4_0"])), "out.gguf"), split(to(&["q8_0"])), "out.gguf"));
}

#[test]
fn files_with_feedback() {
    sweep(&kind("feedback", calibrated(&["q4_0"]), "out.gguf"));
    sweep(&kind("feedback, two files", calibrated(&["q4_0", "q5_0"]), "./"));
    sweep(&kind("feedback, shards", split(calibrated(&["q4_0"])), "out.gguf"));
}

#[test]
fn folders() {
    sweep(&kind("folder", to(&["fp8"]), "out"));
    sweep(&replacing(kind("a folder replaced", to(&["fp8"]), "out"), to(&["nf4"]), "out"));
    sweep(&kind("file and folder", to(&["q4_0", "fp8"]), "./"));
}

#[test]
fn plain_folders() {
    sweep(&kind("plain folder", to(&["safetensors"]), "out"));
    sweep(&replacing(kind("a plain folder replaced", to(&["safetensors"]), "out"), to(&["fp8"]), "out"));
}

/// A release of `targets` in `out`.
fn released(targets: &'static [&str]) -> Work {
    Box::new(|folder, control| {
        let release = release::plan(&source(), &to(targets), &folder.join("out"), release::Options::default())?;
        release::run(&release, control, &()).map(|_| ())
    })
}

#[test]
fn releases() {
    let kind = |name, before| Kind { name, run: released(&["q4_0", "fp8"]), before, plain: false, every: 23 };
    sweep(&kind("release", None));
    sweep(&kind("a release replaced", Some(released(&["q8_0", "q4_0"]))));
}

/// What a release says beside its recipe is what was asked for last: where it was killed halfway it goes on and says so,
/// where it had its name already it is in the way.
#[test]
fn a_release_says_what_was_asked_for_last() {
    let made = |folder: &Path, license: &str, resume: bool| -> Result<()> {
        let options = release::Options { license: Some(license.into()), ..release::Options::default() };
        let release = release::plan(&source(), &to(&["q4_0", "fp8"]), &folder.join("out"), options)?;
        let control = Control { threads: 1, resume, check: Some(false), ..Control::default() };
        release::run(&release, &control, &()).map(|_| ())
    };
    let whole = |license: &str| {
        let dir = tempfile::tempdir().unwrap();
        let (done, seen) = fault::with(dir.path(), usize::MAX, Fault::None, || made(dir.path(), license, false));
        done.unwrap();
        (contents(dir.path()), seen.operations)
    };
    let ((mit, operations), (apache, _)) = (whole("mit"), whole("apache-2.0"));
    assert!(mit != apache);
    let killed = |at: usize| {
        let dir = tempfile::tempdir().unwrap();
        fault::with(dir.path(), at, Fault::Kill, || made(dir.path(), "mit", false)).0.unwrap_err();
        dir
    };
    let is_note = |(what, path): &(String, PathBuf)| what == "remove" && path.ends_with(".quantize-release");
    let last = operations.iter().rposition(is_note).unwrap();
    for at in (0..last).step_by(if everything() { 1 } else { 29 }) {
        let dir = killed(at);
        let what = format!("killed at {at} ({:?})", operations[at]);
        // Killed once more when it has said that it goes on.
        fault::with(dir.path(), 2, Fault::Kill, || made(dir.path(), "apache-2.0", true)).0.unwrap_err();
        made(dir.path(), "apache-2.0", true).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(contents(dir.path()) == apache, "{what}");
    }
    let dir = killed(last);
    assert!(dir.path().join("out/.quantize-release").is_file());
    assert!(matches!(made(dir.path(), "apache-2.0", false), Err(Error::Exists { .. })));
    assert!(contents(dir.path()) == mit, "what was finished stays, and nothing is left over");
    let dir = killed(last);
    made(dir.path(), "mit", false).unwrap();
    assert!(contents(dir.path()) == mit);
}

/// What is made of a finished file, by a run of its own that may replace what is there.
fn of_file(name: &'static str, work: fn(&Path, &Control) -> Result<()>) -> Kind {
    let run = Box::new(work);
    Kind { name, run, before: Some(conversion(to(&["q4_0"]), "a.gguf")), plain: true, every: 5 }
}

#[test]
fn edits() {
    const NAME: &str = "a name that is longer than the one before, so that everything moves";
    fn renamed(folder: &Path, to: &str, control: &Control) -> Result<()> {
        let change = [Change::Set { key: "general.name".into(), ty: None, value: NAME.into() }];
        edit::edit(&folder.join("a.gguf"), &folder.join(to), &change, control.force, &control.cancel)
    }
    sweep(&of_file("an edited copy", |folder, control| renamed(folder, "b.gguf", control)));
    sweep(&of_file("a file edited in its place", |folder, control| renamed(folder, "a.gguf", control)));
    sweep(&of_file("shards of a file", |folder, control| {
        let by = Shards::MaxTensors(9);
        edit::split(&folder.join("a.gguf"), &folder.join("s"), by, control.force, &control.cancel).map(|_| ())
    }));
}

#[test]
fn calibrated_folders() {
    sweep(&kind("gptq", calibrated(&["gptq-4bit-32g"]), "out"));
}

#[test]
fn calibrations() {
    let run = |folder: &Path, control: &Control| {
        let output = folder.join("imatrix.gguf");
        let calibration =
            Calibration { data: Data { tokens: 256, window: 32, ..Data::default() }, ..Calibration::default() };
        let checkpoints = Some(Checkpoints { output: &output, every: Duration::ZERO });
        let made = calibrate(&source(), &calibration, None, checkpoints, control, &())?;
        made.write(&output, control)
    };
    sweep(&Kind { name: "importance matrix", run: Box::new(run), before: None, plain: true, every: 41 });
    let run = |folder: &Path, control: &Control| {
        let output = folder.join("hessians.gguf");
        let data = Data { tokens: 256, window: 32, ..Data::default() };
        let calibration = Calibration { data, hessians: true, ..Calibration::default() };
        let checkpoints = Some(Checkpoints { output: &output, every: Duration::ZERO });
        calibrate(&source(), &calibration, None, checkpoints, control, &())?.write(&output, control)
    };
    sweep(&Kind { name: "Hessians", run: Box::new(run), before: None, plain: true, every: 23 });
}

/// Keeps what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Report for Heard {
    fn notice(&self, notice: &Notice) {
        self.0.lock().unwrap().push(notice.to_string());
    }
}

/// A run that may not replace what is there tells of what one has left that might, and removes what nothing came of.
#[test]
fn a_refused_run_tells_of_unfinished_work() {
    for (output, target, older) in [("out", "fp8", "nf4"), ("out.gguf", "q4_0", "q8_0")] {
        let made = |folder: &Path, to: &str, force: bool, report: &dyn Report| -> Result<()> {
            let recipe = if output == "out" { self::to(&[to]) } else { calibrated(&[to]) };
            let mut plan = convert::plan(&source(), &recipe)?;
            plan.place(&folder.join(output))?;
            let control = Control { threads: 1, force, check: Some(false), ..Control::default() };
            convert::run(&plan, &control, report).map(|_| ())
        };
        let prepared = || {
            let dir = tempfile::tempdir().unwrap();
            made(dir.path(), older, false, &()).unwrap();
            dir
        };
        // Killed when all is made, and what is to be renamed is about to be written down.
        let (counted, dir) = (prepared(), prepared());
        let replace = |folder: &Path| made(folder, target, true, &());
        let (done, seen) = fault::with(counted.path(), usize::MAX, Fault::None, || replace(counted.path()));
        done.unwrap();
        let is_record =
            |(what, path): &(String, PathBuf)| what == "rename" && path.ends_with(format!(".{output}.publishing"));
        let at = seen.operations.iter().position(is_record).unwrap();
        let old = contents(dir.path());
        let (killed, _) = fault::with(dir.path(), at, Fault::Kill, || replace(dir.path()));
        assert!(killed.is_err());
        let unborn = dir.path().join(format!(".{output}.publishing.new"));
        assert!(unborn.exists());
        let heard = Heard::default();
        assert!(matches!(made(dir.path(), target, false, &heard), Err(Error::Exists { .. })));
        let heard = heard.0.into_inner().unwrap();
        assert!(
            heard.iter().any(|text| text.contains("the unfinished work of a run that was to replace")),
            "{heard:?}"
        );
        assert!(!unborn.exists());
        let now = contents(dir.path());
        assert!(old.iter().all(|(name, bytes)| now.get(name) == Some(bytes)));
        // One that may replace it leaves nothing else.
        replace(dir.path()).unwrap();
        assert!(contents(dir.path()) == contents(counted.path()));
    }
}

/// A run is killed before it gives the name, and one of another recipe in the middle of its work: what this one has begun
/// under the same temporary name is not what the first had written down.
#[test]
fn what_a_second_killed_run_has_begun_gets_no_name() {
    for (output, first, second) in [("out", "fp8", "nf4"), ("out.gguf", "q4_0", "q8_0")] {
        let made = |folder: &Path, to: &str, force: bool| -> Result<()> {
            let mut plan = convert::plan(&source(), &self::to(&[to]))?;
            plan.place(&folder.join(output))?;
            let control = Control { threads: 1, force, check: Some(false), ..Control::default() };
            convert::run(&plan, &control, &()).map(|_| ())
        };
        let whole = |to: &str| {
            let dir = tempfile::tempdir().unwrap();
            let (done, seen) = fault::with(dir.path(), usize::MAX, Fault::None, || made(dir.path(), to, true));
            done.unwrap();
            (contents(dir.path()), seen.operations)
        };
        let ((whole_first, operations), (whole_second, _)) = (whole(first), whole(second));
        let at = operations.iter().position(|(what, path)| what == "rename" && path.ends_with(output)).unwrap();
        let killed = || {
            let dir = tempfile::tempdir().unwrap();
            fault::with(dir.path(), at, Fault::Kill, || made(dir.path(), first, true)).0.unwrap_err();
            assert!(!dir.path().join(output).exists());
            dir
        };
        let dir = killed();
        let (done, seen) = fault::with(dir.path(), usize::MAX, Fault::None, || made(dir.path(), second, true));
        done.unwrap();
        for n in (0..seen.operations.len()).step_by(if everything() { 1 } else { 7 }) {
            let dir = killed();
            let (_, seen) = fault::with(dir.path(), n, Fault::Kill, || made(dir.path(), second, true));
            let what = format!("{output}, killed at {n} ({:?})", seen.operations.get(n));
            // Whatever a third one finds and does, it is one of the two.
            let _ = made(dir.path(), second, false);
            let now = contents(dir.path());
            let named =
                |whole: &BTreeMap<String, Vec<u8>>| whole.iter().all(|(name, bytes)| now.get(name) == Some(bytes));
            assert!(named(&whole_first) || named(&whole_second), "{what}: neither");
            let last = made(dir.path(), second, true);
            assert!(last.is_ok(), "{what}; then {last:?}");
            assert!(contents(dir.path()) == whole_second, "{what}: other bytes, or something is left over");
        }
    }
}
