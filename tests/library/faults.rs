//! Every operation that changes a file fails once, or ends the run, or finds the disk full. Whatever happens, nothing wrong
//! lies under a final name, the next run gives the bytes of an undisturbed one, and nothing is left over. A sample of the
//! operations; all of them with `QUANTIZE_TEST_ALL=1`.

use crate::common::{everything, model};
use quantize::convert::recipe::Data;
use quantize::convert::{self, Calibration, Checkpoints, Recipe, Split, calibrate};
use quantize::disk::fault::{self, Fault};
use quantize::model::SourceModel;
use quantize::{Control, Result};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
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
    let plain = recipe.folders().next().is_none();
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
        made.imatrix.write(&output, &Default::default(), control.force)?;
        quantize::calibration::resume::forget(&output)
    };
    sweep(&Kind { name: "importance matrix", run: Box::new(run), before: None, plain: true, every: 41 });
}
