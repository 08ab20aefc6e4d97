//! The bytes of outputs, against `tests/golden/outputs.json`: types, shapes, names, data and metadata of what a hundred
//! commands write. What a file says of its own making (keys under `quantize.`, the manifest and the README of a folder) is
//! left out. Files are read by the readers in [`read`], not by the library's.
//!
//! Outputs of calibrated runs depend on the instructions of the processor, so the file holds their hashes per set of
//! instructions; on another processor two runs have to agree, and the test says that there was nothing to compare with.
//!
//! One command in three is run, and all with `QUANTIZE_TEST_ALL=1` or `BLESS=1`.
//!
//! `BLESS=1` writes the file anew, `QUANTIZE_BIN=PATH` runs another binary.

mod cases;
mod read;

use crate::common::{everything, model, repo};
use cases::{CALIBRATED, Case, EXACT, RESUMED};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// SHA-256 by `case/output`.
type Hashes = BTreeMap<String, String>;

/// Processes at once.
const JOBS: usize = 2;

fn golden() -> PathBuf {
    repo("tests/golden/outputs.json")
}

fn binary() -> PathBuf {
    std::env::var_os("QUANTIZE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_quantize").into(), PathBuf::from)
}

/// What decides the last bits of sums over activations: the vector instructions that the program and faer look for.
fn instructions() -> String {
    #[allow(unused_mut)]
    let mut set = std::env::consts::ARCH.to_string();
    #[cfg(target_arch = "x86_64")]
    for (there, name) in [
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "+avx2"),
        (is_x86_feature_detected!("f16c"), "+f16c"),
        (
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"),
            "+avx512",
        ),
        (is_x86_feature_detected!("avx512bf16"), "+avx512bf16"),
    ] {
        set += if there { name } else { "" };
    }
    set
}

/// The command of one step in `dir`. Words in braces are models: a folder of `conformance`, or `tiny` for the trained one.
fn command(dir: &Path, step: &str) -> Command {
    let mut command = Command::new(binary());
    for word in step.split_whitespace() {
        match word.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
            Some("tiny") => command.arg(model("tiny-llama")),
            Some("text") => command.arg(repo("calibration/technical.txt")),
            Some(family) => command.arg(model(family)),
            None => command.arg(word),
        };
    }
    // Merging uses none.
    if !step.contains("--merge") {
        command.args(["-t", "1"]);
    }
    command.current_dir(dir).arg("--quiet").env_remove("QUANTIZE_ISA").env_remove("QUANTIZE_THREADS");
    command
}

fn run(dir: &Path, step: &str) {
    let out = command(dir, step).output().unwrap();
    assert!(out.status.success(), "{step}: {}", String::from_utf8_lossy(&out.stderr));
}

/// What lies in `dir` at the end, but for inputs that cases make for themselves.
fn outputs(case: &str, dir: &Path) -> Hashes {
    let mut found = Hashes::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != cases::IMPORTANCE {
            found.insert(format!("{case}/{name}"), read::hash(&entry.path()));
        }
    }
    found
}

fn hashes(case: &Case) -> Hashes {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    case.steps.iter().for_each(|step| match step.strip_prefix("importance-of ") {
        Some(file) => cases::write_importance(&dir.join(file), &dir.join(cases::IMPORTANCE)),
        None => match step.strip_prefix("remove ") {
            Some(names) => names.split_whitespace().for_each(|name| std::fs::remove_file(dir.join(name)).unwrap()),
            None => run(dir, step),
        },
    });
    outputs(case.name, dir)
}

/// The hashes of all cases, several processes at once.
fn all(cases: &[Case]) -> Hashes {
    let cases = sample(cases);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Hashes::new()));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = std::time::Instant::now();
                    let of_case = hashes(case);
                    println!("{:6.2} s {}: {} outputs", begin.elapsed().as_secs_f64(), case.name, of_case.len());
                    found.lock().unwrap().extend(of_case);
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// One case in three, or all of them.
fn sample<T>(cases: &[T]) -> Vec<&T> {
    let every = if everything() || std::env::var_os("BLESS").is_some() { 1 } else { 3 };
    cases.iter().step_by(every).collect()
}

static FILE: Mutex<()> = Mutex::new(());

/// The hashes in the golden file under `keys`, or none. With `BLESS=1`, `found` takes their place first.
fn expected(keys: &[&str], found: &Hashes) -> Option<Hashes> {
    let _lock = FILE.lock().unwrap();
    let mut all: Value = std::fs::read(golden()).map_or(json!({}), |text| serde_json::from_slice(&text).unwrap());
    if std::env::var_os("BLESS").is_some_and(|v| v == "1") {
        let place = keys.iter().fold(&mut all, |value, key| &mut value[*key]);
        *place = json!(found);
        std::fs::write(golden(), serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
    }
    let place = keys.iter().try_fold(&all, |value, key| value.get(key))?;
    Some(serde_json::from_value(place.clone()).unwrap())
}

fn check(found: &Hashes, expected: &Hashes) {
    let mut wrong: Vec<&String> = found.iter().filter(|(k, v)| expected.get(*k) != Some(v)).map(|(k, _)| k).collect();
    let case = |name: &str| name.split_once('/').map(|(case, _)| case.to_string());
    let ran: BTreeSet<_> = found.keys().map(|name| case(name)).collect();
    wrong.extend(expected.keys().filter(|k| ran.contains(&case(k)) && !found.contains_key(*k)));
    assert!(wrong.is_empty(), "{} of {} outputs have other bytes: {wrong:#?}", wrong.len(), expected.len());
}

#[test]
fn bytes_of_outputs() {
    let found = all(EXACT);
    check(&found, &expected(&["exact"], &found).expect("tests/golden/outputs.json"));
}

#[test]
fn bytes_of_calibrated_outputs() {
    let (set, found) = (instructions(), all(CALIBRATED));
    match expected(&["calibrated", &set], &found) {
        Some(expected) => {
            // Cases that were not recorded on such a processor are compared with another run of themselves.
            let of = |name: &str| name.split_once('/').map(|(case, _)| case.to_string());
            let recorded: BTreeSet<_> = expected.keys().map(|name| of(name)).collect();
            let (known, new): (Hashes, Hashes) = found.into_iter().partition(|(name, _)| recorded.contains(&of(name)));
            check(&known, &expected);
            let names: BTreeSet<_> = new.keys().filter_map(|name| of(name)).collect();
            let cases = CALIBRATED.iter().filter(|case| names.contains(case.name));
            let again: Hashes = cases.flat_map(hashes).collect();
            check(&again, &new);
        }
        None => {
            eprintln!("tests/golden/outputs.json has no hashes for {set}: only compared two runs");
            check(&all(CALIBRATED), &found);
        }
    }
}

/// Whether a run has got so far that a kill leaves something to resume: `lines` lines in its journal.
fn has_begun(dir: &Path, journal: &str, lines: usize) -> bool {
    let count = |path: &Path| std::fs::read(path).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    match journal.strip_prefix("*/") {
        None if lines == 0 => dir.join(journal).exists(),
        None => count(&dir.join(journal)) >= lines,
        Some(name) => std::fs::read_dir(dir).unwrap().any(|e| count(&e.unwrap().path().join(name)) >= lines),
    }
}

fn kill_when_begun(mut child: Child, dir: &Path, journal: &str, lines: usize) -> bool {
    while child.try_wait().unwrap().is_none() {
        if has_begun(dir, journal, lines) {
            child.kill().unwrap();
            return !child.wait().unwrap().success();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Runs that are killed on their way and resumed give the bytes of those that are not.
#[test]
fn bytes_of_resumed_runs() {
    let mut found = Hashes::new();
    for (name, step, journal, lines) in sample(RESUMED) {
        let whole = tempfile::tempdir().unwrap();
        run(whole.path(), step);
        let want = outputs(name, whole.path());
        // A run may be over before it is killed.
        let cut = (0..10).map(|_| tempfile::tempdir().unwrap()).find(|cut| {
            let child = command(cut.path(), step).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            kill_when_begun(child, cut.path(), journal, *lines)
        });
        let cut = cut.unwrap_or_else(|| panic!("{name} was over each time before it was killed"));
        assert_ne!(outputs(name, cut.path()), want, "{name} was not killed");
        run(cut.path(), &format!("{step} --resume"));
        assert_eq!(outputs(name, cut.path()), want, "{name}");
        found.extend(want);
    }
    match expected(&["resumed", &instructions()], &found) {
        Some(expected) => check(&found, &expected),
        None => eprintln!("tests/golden/outputs.json has no hashes for {}: only compared two runs", instructions()),
    }
}
