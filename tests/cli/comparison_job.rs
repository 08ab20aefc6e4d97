//! Comparisons in tasks: the report is that of one run, or there is an error.

use crate::common::{one_layer, repo};
use crate::job::{command, fails, ok, run};
use serde_json::Value;
use std::path::Path;

/// A report without what two runs never have in common.
fn figures(dir: &Path, name: &str) -> Value {
    let mut report: Value = serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap();
    for of_the_run in ["created", "command", "environment"] {
        assert!(report.as_object_mut().unwrap().remove(of_the_run).is_some(), "{of_the_run}");
    }
    report
}

/// A small model, two quantizations of it, and two texts.
fn field(dir: &Path) {
    one_layer(&dir.join("m"));
    ok(&run(dir, &["--to", "q8_0,q4_0", "m", "-o", ".", "--quiet", "--no-check"]));
    let text =
        |n: usize| (0..n).map(|i| format!("Line {i} of {} about nothing at all.\n", i * i % 97)).collect::<String>();
    std::fs::write(dir.join("a.txt"), text(300)).unwrap();
    std::fs::write(dir.join("b.txt"), text(260)).unwrap();
}

const MODELS: [&str; 3] = ["m", "m-Q8_0.gguf", "m-Q4_0.gguf"];

#[test]
fn the_report_of_tasks_is_that_of_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    field(dir);
    let how = ["--text", "a.txt", "--text", "b.txt", "--ctx", "128", "--max-kld", "9", "--quiet"];
    ok(&run(dir, &[&["compare"], &MODELS[..], &how[..], &["--report", "one.json"]].concat()));
    let planned = ["--report", "two.json", "--report", "two.html", "-o", "job", "--tasks", "4"];
    ok(&run(dir, &[&["job", "compare"], &MODELS[..], &how[..], &planned[..]].concat()));
    fails(&run(dir, &["job", "assemble", "job"]), 2, "are not done");
    // From elsewhere, out of order, one of them twice at once.
    let job = dir.join("job").display().to_string();
    let task = |i: &str| command(Path::new("/"), &["job", "run", &job, "--index", i, "--quiet", "-t", "1"]);
    ok(&task("3").output().unwrap());
    let twins: Vec<_> = (0..2).map(|_| task("1").spawn().unwrap()).collect();
    twins.into_iter().for_each(|twin| ok(&twin.wait_with_output().unwrap()));
    let out = run(dir, &["job", "status", "job"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("2 of 4 tasks done"));
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
    assert_eq!(figures(dir, "one.json"), figures(dir, "two.json"));
    assert!(dir.join("two.html").is_file());
    fails(&run(dir, &["job", "assemble", "job"]), 2, "exists");
    ok(&run(dir, &["job", "assemble", "job", "--force", "--quiet"]));
    let slurm = run(dir, &["job", "emit", "slurm", "job"]);
    assert!(String::from_utf8_lossy(&slurm.stdout).contains("--job-name=quantize-compare --mem=16G --array=0-3%4"));
}

#[test]
fn a_gate_decides_when_all_is_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    field(dir);
    let how = ["--text", "a.txt", "--ctx", "128", "--max-kld", "1e-9", "-o", "job", "--tasks", "2", "--quiet"];
    ok(&run(dir, &[&["job", "compare"], &MODELS[..], &how[..]].concat()));
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    let out = run(dir, &["job", "assemble", "job", "--format", "json", "--quiet"]);
    assert_eq!(out.status.code(), Some(6));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["candidates"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_not_as_it_was_planned_or_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    field(dir);
    let plan = |more: &[&str]| {
        let how = ["--text", "a.txt", "--ctx", "128", "-o", "job", "--tasks", "2", "--quiet"];
        run(dir, &[&["job", "compare"], &MODELS[..], &how[..], more].concat())
    };
    fails(&plan(&["--ablate"]), 2, "--ablate is not for job compare");
    fails(&plan(&["--force"]), 2, "job assemble");
    fails(&plan(&["--report", "nowhere/r.json"]), 2, "there is no folder");
    fails(&plan(&["--text", "none.txt"]), 3, "none.txt");
    let without = [&["job", "compare"], &MODELS[..], &["-o", "job"]].concat();
    fails(&run(dir, &without), 2, "--text");
    let bert = repo("tests/lineages/bert").display().to_string();
    fails(&run(dir, &["job", "compare", &bert, &bert, "--text", "a.txt", "--ctx", "32", "-o", "job"]), 4, "logits");
    assert!(!dir.join("job").exists());

    ok(&plan(&[]));
    fails(&plan(&[]), 2, "another job's");
    fails(&run(dir, &["job", "assemble", "job", "-o", "x"]), 2, "--output is for a conversion");
    ok(&run(dir, &["job", "run", "job", "--index", "0", "--quiet"]));
    // Another candidate under the same name.
    let q4 = std::fs::read(dir.join("m-Q4_0.gguf")).unwrap();
    std::fs::copy(dir.join("m-Q8_0.gguf"), dir.join("m-Q4_0.gguf")).unwrap();
    fails(&run(dir, &["job", "run", "job", "--index", "1"]), 3, "is not what the job was planned with");
    let text = std::fs::read(dir.join("a.txt")).unwrap();
    std::fs::write(dir.join("m-Q4_0.gguf"), q4).unwrap();
    std::fs::remove_dir_all(dir.join("job")).unwrap();

    ok(&plan(&[]));
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    let records = dir.join("job/tasks/1/text-0.records");
    let whole = std::fs::read(&records).unwrap();
    for damaged in [&whole[..whole.len() - 1], &[&whole[..40], &[1], &whole[41..]].concat()[..]] {
        std::fs::write(&records, damaged).unwrap();
        fails(&run(dir, &["job", "assemble", "job"]), 3, "is not what task 1 has written");
    }
    std::fs::write(&records, whole).unwrap();
    std::fs::write(dir.join("a.txt"), [&text[..], b"more"].concat()).unwrap();
    fails(&run(dir, &["job", "assemble", "job"]), 3, "is not what the job was planned with");
    std::fs::write(dir.join("a.txt"), text).unwrap();
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
}
