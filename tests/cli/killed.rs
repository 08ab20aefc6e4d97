//! Runs of the program that are killed, or fail, between what they have made and what they have yet to say of it: the next
//! one goes on from there.

use crate::common::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Kills a run as soon as `path` is there. Whether it was still at work.
fn killed_when(path: &Path, dir: &Path, args: &[&str]) -> bool {
    let mut child = command(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !path.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // By then it measures.
    std::thread::sleep(Duration::from_millis(20));
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// A report without what hangs on the clock and the machine's memory.
fn lasting(path: &Path) -> serde_json::Value {
    fn without(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(map) => {
                let last = |key: &String| !["second", "created", "rss"].iter().any(|word| key.contains(word));
                map.into_iter().filter(|(key, _)| last(key)).map(|(key, value)| (key, without(value))).collect()
            }
            serde_json::Value::Array(list) => list.into_iter().map(without).collect(),
            other => other,
        }
    }
    without(json(path))
}

/// All files below a folder.
fn below(folder: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
        for path in names(folder).iter().map(|name| folder.join(name)) {
            match path.is_dir() {
                true => walk(root, &path, found),
                false => {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                    found.insert(name, sha256(&std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn a_conversion_that_was_killed_while_it_measured_goes_on_measuring() {
    let (model, text) = (model("llama"), repo("README.md"));
    // By the name that is given last.
    for (targets, last) in [("q4_0", "llama-Q4_0.gguf"), ("q8_0,fp8", "llama-fp8")] {
        let dir = tempfile::tempdir().unwrap();
        let (out, report) = (dir.path().join("out"), dir.path().join("r.json"));
        let base = ["--to", targets, model.to_str().unwrap(), "-o", "out/", "--no-check", "-t", "1"];
        let measured = ["--text", text.to_str().unwrap(), "--ctx", "64", "--report", "r.json", "--report", "out/r.md"];
        let all = [&base[..], &measured].concat();
        std::fs::create_dir(&out).unwrap();
        ok(quantize(dir.path(), &all));
        let (whole, right) = (below(&out), lasting(&report));
        let made: Vec<&String> = whole.keys().filter(|name| *name != "r.md").collect();
        let times =
            || -> Vec<_> { made.iter().map(|name| out.join(name).metadata().unwrap().modified().unwrap()).collect() };
        let same = || made.iter().all(|name| below(&out)[*name] == whole[*name]);
        let cut = || {
            std::fs::remove_dir_all(&out).unwrap();
            std::fs::create_dir(&out).unwrap();
            let _ = std::fs::remove_file(&report);
            assert!(killed_when(&out.join(last), dir.path(), &all), "it was not killed");
            assert!(!report.exists() && same());
        };
        cut();
        let before = times();
        let next = quantize(dir.path(), &all);
        assert!(stderr(&next).contains("finished by the interrupted run"), "{}", stderr(&next));
        ok(next);
        assert_eq!(times(), before, "made again");
        assert_eq!(names(dir.path()), ["out", "r.json"], "left over");
        assert!(below(&out).keys().eq(whole.keys()) && same());
        assert_eq!(lasting(&report), right);
        // What is finished is in the way of the next, as ever.
        fails(&quantize(dir.path(), &all), 2, &["exists; use --force"]);
        // One that converts alone takes over what is made, too.
        cut();
        ok(quantize(dir.path(), &base));
        assert_eq!(names(dir.path()), ["out"]);
        assert!(below(&out).keys().eq(made.iter().copied()) && same());
    }
}

/// A report that cannot be written leaves what was made, and the next run need not make it again.
#[test]
fn a_conversion_whose_report_failed_is_reported_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("llama"), repo("README.md"));
    let (model, text) = (model.to_str().unwrap(), text.to_str().unwrap());
    let args =
        ["--to", "q4_0", model, "-o", "m.gguf", "--text", text, "--ctx", "64", "--chunks", "2", "--report", "r.json"];
    // In the place of its temporary file.
    std::fs::create_dir(dir.path().join(".r.json.partial")).unwrap();
    let out = quantize(dir.path(), &args);
    assert!(!out.status.success() && !dir.path().join("r.json").exists());
    assert!(String::from_utf8_lossy(&out.stdout).contains("KL"), "what was measured is said");
    std::fs::remove_dir(dir.path().join(".r.json.partial")).unwrap();
    let out = quantize(dir.path(), &args);
    assert!(stderr(&out).contains("finished by the interrupted run"), "{}", stderr(&out));
    ok(out);
    assert_eq!(names(dir.path()), ["m.gguf", "r.json"]);
    let report = std::fs::read_to_string(dir.path().join("r.json")).unwrap();
    assert!(report.contains("\"m.gguf\"") && !report.contains("./m.gguf"), "named as by the run that made it");
}

#[test]
fn hessians_and_their_text_get_their_names_together() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("llama");
    let args = |force| {
        let base = ["calibrate", model.to_str().unwrap(), "--calibration", "default", "--calibration-tokens", "256"];
        let more = ["--seq-len", "32", "--hessians", "-o", "h.gguf", "--save-text", "t.txt", "--quiet"];
        [&base[..], &more, if force { &["--force"] } else { &[] }].concat()
    };
    // In the place of the text's temporary file.
    std::fs::create_dir(dir.path().join(".t.txt.partial")).unwrap();
    assert!(!quantize(dir.path(), &args(false)).status.success());
    assert_eq!(names(dir.path()), [".t.txt.partial"], "none without the other");
    std::fs::remove_dir(dir.path().join(".t.txt.partial")).unwrap();
    ok(quantize(dir.path(), &args(false)));
    assert_eq!(names(dir.path()), ["h.gguf", "t.txt"]);
    let first = digests(dir.path());
    fails(&quantize(dir.path(), &args(false)), 2, &["exists; use --force"]);
    ok(quantize(dir.path(), &args(true)));
    assert_eq!(digests(dir.path()), first);
}

/// Nothing that a conversion reads is replaced by its report.
#[test]
fn reports_take_the_place_of_no_input() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = model("llama");
    let recipe = ok(quantize(dir.path(), &["--to", "q4_0", "--print-recipe"]));
    std::fs::write(at("recipe.json"), &recipe).unwrap();
    std::fs::create_dir(at("lora")).unwrap();
    std::fs::write(at("lora/adapter_config.json"), "{}").unwrap();
    let text = repo("README.md");
    let base = [model.to_str().unwrap(), "-o", "m.gguf", "--text", text.to_str().unwrap(), "--force"];
    let run = |more: &[&str]| quantize(dir.path(), &[&base[..], more].concat());
    fails(&run(&["--recipe", "recipe.json", "--report", "recipe.json"]), 2, &["another file that this run reads"]);
    let adapter = ["--to", "q4_0", "--lora", "lora", "--report", "lora/adapter_config.json"];
    fails(&run(&adapter), 2, &["another file that this run reads"]);
    assert_eq!(std::fs::read_to_string(at("recipe.json")).unwrap(), recipe);
    assert_eq!(std::fs::read_to_string(at("lora/adapter_config.json")).unwrap(), "{}");
    assert!(!at("m.gguf").exists());
}
