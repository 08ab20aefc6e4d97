//! Calibrated GPTQ folders: what held-out windows say of them, what a kill in the middle leaves, and data and options from
//! which little can be learned.

use crate::common::{FAMILIES, family, kill_at};
use quantize::convert::FolderPlan;
use quantize::convert::Recipe;
use quantize::convert::folder::job::{Job, Provenance, UnnamedFolder};
use quantize::convert::folder::layered::{Layered, Options};
use quantize::convert::folder::{judged, nearest};
use quantize::convert::judge::{HeldOut, Scored};
use quantize::feedback::Shrink;
use quantize::feedback::int::Search;
use quantize::model::SourceModel;
use quantize::source::Checkpoint;
use quantize::{Control, Run};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.current_dir(dir).args(args).args(["--no-source-hash", "-t", "2"]);
    command
}

fn ok(out: &Output) {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The manifest of a folder that this command line makes.
fn manifest(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    ok(&command(dir.path(), args).args(["-o", "out", "--quiet"]).output().unwrap());
    serde_json::from_slice(&std::fs::read(dir.path().join("out/quantize-manifest.json")).unwrap()).unwrap()
}

/// KL divergence on the held-out windows: of the folder, and of rounding to nearest.
fn kl(manifest: &Value) -> (f64, f64) {
    let held = &manifest["held_out"];
    (held["kl_divergence"].as_f64().unwrap(), held["kl_divergence_of_nearest"].as_f64().unwrap())
}

const DATA: [&str; 6] = ["--calibration", "default", "--calibration-tokens", "8192", "--seq-len", "256"];

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_killed_calibrated_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = family("gemma3");
    let run = |more: &[&str]| {
        let mut command = command(dir.path(), &["--to", "gptq-32g", &model, "--quiet"]);
        command.args(["--calibration", "default", "--calibration-tokens", "2048", "--seq-len", "128"]).args(more);
        command
    };
    ok(&run(&["-o", "whole"]).output().unwrap());
    let want = files(&dir.path().join("whole"));
    let cut = dir.path().join("cut");
    let mut killed = 0;
    // The first line is of the run, every other of a layer.
    for lines in 1..=4 {
        let child = run(&["-o", "cut"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        kill_at(child, dir.path(), lines);
        if cut.exists() {
            // It was faster; then it must be complete.
            assert!(files(&cut) == want);
            let _ = std::fs::remove_file(dir.path().join(".cut.publishing"));
        } else {
            killed += 1;
            ok(&run(&["-o", "cut", "--resume"]).output().unwrap());
            assert!(files(&cut) == want, "killed at {lines} lines");
        }
        std::fs::remove_dir_all(&cut).unwrap();
        assert_eq!(files_in(dir.path()), ["whole"]);
    }
    assert!(killed >= 2, "only {killed} of 4 kills came in time");
}

fn files_in(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_family_is_nearer_to_its_source_than_rounding_to_nearest() {
    for name in FAMILIES {
        let made = manifest(&[&["--to", "gptq-32g", &family(name)][..], &DATA].concat());
        let (with, without) = kl(&made);
        println!("{name}: {with:.6} {without:.6}");
        assert!(with <= without, "{name}: {with} {without}");
        assert_eq!(made["held_out"]["chosen"], "calibrated", "{name}");
        assert_eq!(made["held_out"]["tokens"], 256);
    }
}

#[test]
fn every_choice_is_nearer_to_the_source_than_rounding_to_nearest() {
    let model = family("qwen3");
    let of = |more: &[&str]| {
        let (with, without) = kl(&manifest(&[&["--to", "gptq", &model][..], &DATA, more].concat()));
        println!("{more:?}: {with:.6} {without:.6}");
        assert!(with <= without, "{more:?}: {with} {without}");
        with
    };
    let [two, three, four, eight] = ["2", "3", "4", "8"].map(|bits| of(&["--bits", bits, "--group-size", "32"]));
    assert!(two > three && three > four && four > eight, "{two} {three} {four} {eight}");
    assert!(of(&["--group-size", "-1"]) > four);
    for more in [&["--asym"][..], &["--desc-act"], &["--desc-act", "--static-groups"], &["--no-sequential"]] {
        assert!(of(&[&["--group-size", "32"], more].concat()) < three);
    }
}

#[test]
fn data_that_says_little_does_no_harm() {
    let llama = family("llama");
    // Fewer tokens than channels: the second moments are singular.
    let few = ["--calibration", "tokens:random", "--calibration-tokens", "32", "--seq-len", "8"];
    let made = manifest(&[&["--to", "gptq-32g", &llama][..], &few].concat());
    let (with, without) = kl(&made);
    assert!(with.is_finite() && (with <= without) == (made["held_out"]["chosen"] == "calibrated"));
    assert!(made["modules"].as_array().unwrap().iter().all(|m| m["relative_error"].as_f64().unwrap() < 0.1));
    // Too few windows to hold one out: nothing is claimed.
    let one = ["--calibration", "tokens:random", "--calibration-tokens", "64", "--seq-len", "64"];
    assert_eq!(manifest(&[&["--to", "gptq-32g", &llama][..], &one].concat())["held_out"], Value::Null);
    // No window at all.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("short.txt"), "Hello.").unwrap();
    let out = command(dir.path(), &["--to", "gptq-32g", &llama, "--calibration", "short.txt"]).output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{message}");
    assert!(message.contains("short.txt") && !message.contains("panicked"), "{message}");
    assert_eq!(files_in(dir.path()), ["short.txt"]);
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("model");
    std::fs::create_dir(&copy).unwrap();
    for (name, bytes) in files(Path::new(&family("llama"))) {
        std::fs::write(copy.join(name), bytes).unwrap();
    }
    let ckpt = Checkpoint::open(&copy).unwrap();
    let tensor = "model.layers.1.mlp.down_proj.weight";
    let meta = ckpt.tensors().iter().find(|t| t.name == tensor).unwrap();
    let file = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = meta.range.start as usize;
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let out = command(dir.path(), &["--to", "gptq-32g", "model", "-o", "out", "--quiet"]).args(DATA).output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{message}");
    assert!(message.contains(tensor) && !message.contains("panicked"), "{message}");
    assert!(!dir.path().join("out").exists());
}

/// Makes a folder as `rounded` has it.
fn made(dir: &Path, name: &str, rounded: impl FnOnce(&Job) -> quantize::Result<()>) -> UnnamedFolder {
    let source = SourceModel::open(Path::new(&family("llama"))).unwrap();
    let plan = FolderPlan::new(&source, quantize::packed::parse("gptq-32g").unwrap(), 1, &[]).unwrap();
    let control = Control { threads: 2, ..Control::default() };
    let recipe = Recipe::to(["gptq-32g"]).unwrap();
    let job = Job::new(&source, &plan, &recipe, &dir.join(name), None, Run::new(&control, &())).unwrap();
    let provenance = Provenance { name: "llama", hashes: None, calibration: Value::Null };
    let made = job.make(rounded, |_| Ok(None), &provenance).unwrap();
    made.step.carry_out(dir).unwrap();
    made
}

#[test]
fn where_calibration_loses_the_folder_is_rounded_to_nearest() {
    let dir = tempfile::tempdir().unwrap();
    // One token says nothing of any other, and nothing steadies what it says.
    let windows = vec![vec![7; 64]; 2];
    let held: Vec<Vec<u32>> =
        (0..4).map(|w| (0..32).map(|i| (w * 7919 + i * 104_729 + i * i * 31) % 320).collect()).collect();
    let options = Options {
        feedback: true,
        scaling: None,
        shrink: Shrink { rho: 0.0, damping: 1e-6 },
        search: Search::default(),
        sequential: true,
    };
    let held = HeldOut { sets: vec![held], scored: Scored::All };
    let method = Layered { windows: &windows, options };
    let lost = made(dir.path(), "lost", |job| judged::run(job, &method, &held));
    let nearest = made(dir.path(), "nearest", nearest::run);
    assert_eq!(lost.manifest["held_out"]["chosen"], "nearest", "{}", lost.manifest["held_out"]);
    assert!(lost.departures.iter().any(|d| d.done == "rounding to nearest"));
    assert!(
        lost.manifest["modules"].as_array().unwrap().len() == nearest.manifest["modules"].as_array().unwrap().len()
    );
    let weights = |w: &UnnamedFolder| std::fs::read(w.path.join("model.safetensors")).unwrap();
    assert!(weights(&lost) == weights(&nearest));
}
