//! Conversions in tasks: whatever is done to the tasks, the outputs are those of one run, byte for byte, or there is an error.

use crate::common::family;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const VARIABLES: [&str; 7] = [
    "SLURM_ARRAY_TASK_ID",
    "JOB_COMPLETION_INDEX",
    "AWS_BATCH_JOB_ARRAY_INDEX",
    "CLOUD_RUN_TASK_INDEX",
    "SKYPILOT_NODE_RANK",
    "RANK",
    "QUANTIZE_THREADS",
];

pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.current_dir(dir).args(args);
    for name in VARIABLES {
        command.env_remove(name);
    }
    command
}

pub fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

pub fn ok(out: &Output) {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The exit code is this, and standard error has the words.
pub fn fails(out: &Output, code: i32, words: &str) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(code) && text.contains(words), "{:?}: {text}", out.status.code());
}

/// All files of a folder, by their names within it.
fn bytes(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    fn walk(root: &Path, at: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
        match at.is_dir() {
            true => std::fs::read_dir(at).unwrap().for_each(|e| walk(root, &e.unwrap().path(), found)),
            false => found.push((at.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(at).unwrap())),
        }
    }
    let mut found = Vec::new();
    walk(path, path, &mut found);
    found.sort();
    found
}

fn status(dir: &Path) -> Value {
    let out = run(dir, &["job", "status", "job", "--format", "json"]);
    ok(&out);
    serde_json::from_slice(&out.stdout).unwrap()
}

fn planned(dir: &Path, args: &[&str]) {
    ok(&run(dir, &[&["job", "plan"], args, &["-o", "job", "--quiet"]].concat()));
}

/// A job that makes an importance matrix of few tokens on its way, in two tasks.
fn planned_with_matrix(dir: &Path) {
    let data = ["--calibration", "tokens:random", "--calibration-tokens", "512", "--seq-len", "128"];
    let how = ["--to", "q4_0", &family("llama"), "--rounding", "nearest", "--tasks", "2"];
    planned(dir, &[&how[..], &data].concat());
}

/// Tasks in an odd order, one of them twice and two at once, make what one run makes.
fn equal(args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("one")).unwrap();
    ok(&run(dir, &[args, &["-o", "one/", "--quiet"]].concat()));
    planned(dir, &[args, &["--tasks", "5"]].concat());
    let count = status(dir)["of"].as_u64().unwrap() as usize;
    assert!(count > 1, "{args:?}");
    fails(&run(dir, &["job", "assemble", "job"]), 2, "are not done");
    let task = |i: usize| command(dir, &["job", "run", "job", "--index", &i.to_string(), "--quiet", "-t", "1"]);
    ok(&task(count - 1).output().unwrap());
    ok(&task(count - 1).output().unwrap());
    let twins: Vec<_> = (0..3).map(|_| task(0).stderr(Stdio::piped()).spawn().unwrap()).collect();
    twins.into_iter().for_each(|twin| ok(&twin.wait_with_output().unwrap()));
    ok(&run(dir, &["job", "run", "job", "--index", "1", "--of", "2", "--quiet"]));
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    assert_eq!(status(dir)["done"], count);
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
    let made = bytes(&dir.join("one"));
    assert!(!made.is_empty());
    for (name, whole) in made {
        assert!(std::fs::read(dir.join("job").join(&name)).is_ok_and(|there| there == whole), "{}", name.display());
    }
    fails(&run(dir, &["job", "assemble", "job"]), 2, "exists");
}

#[test]
fn files_of_tasks_are_those_of_one_run() {
    let model = family("qwen3-moe");
    equal(&["--to", "q4_k_m,q8_0", &model]);
    equal(&["--to", "q4_0", &model, "--split-max-tensors", "9"]);
    equal(&["--to", "f16", &model, "--no-source-hash"]);
}

#[test]
fn folders_of_tasks_are_those_of_one_run() {
    let model = family("llama");
    equal(&["--to", "fp8", &model]);
    equal(&["--to", "bnb-nf4", &model, "--split-max-size", "100K"]);
    equal(&["--to", "q8_0,mlx-4bit-32g,safetensors", &model]);
}

#[test]
fn an_importance_matrix_is_found_and_recorded_as_in_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, model) = (dir.path(), family("llama"));
    let data = ["--calibration-tokens", "2048", "--seq-len", "256", "--quiet"];
    ok(&run(dir, &[&["calibrate", &model, "-o", "i.gguf"], &data[..]].concat()));
    let args = ["--to", "iq2_s", &model, "--imatrix", "i.gguf"];
    ok(&run(dir, &[&args[..], &["-o", "one.gguf", "--quiet"]].concat()));
    planned(dir, &args);
    // From elsewhere, as a scheduler starts it.
    let job = dir.join("job").display().to_string();
    ok(&run(Path::new("/"), &["job", "run", &job, "--quiet"]));
    ok(&run(dir, &["job", "assemble", "job", "-o", "two.gguf", "--quiet"]));
    assert!(std::fs::read(dir.join("one.gguf")).unwrap() == std::fs::read(dir.join("two.gguf")).unwrap());
}

/// An importance matrix is made in one phase and the conversion in the next, in any number of tasks.
#[test]
fn a_matrix_that_tasks_make_gives_the_bytes_of_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // With experts, of which windows see different ones.
    let model = family("qwen3-moe");
    let data = ["--calibration", "default", "--calibration-tokens", "2048", "--seq-len", "256"];
    let args = [&["--to", "iq2_s,q4_k_m", &model, "--rounding", "nearest"], &data[..]].concat();
    std::fs::create_dir(dir.join("one")).unwrap();
    ok(&run(dir, &[&args[..], &["-o", "one/", "--quiet"]].concat()));
    ok(&run(dir, &[&["calibrate", &model, "-o", "one.gguf", "--quiet"], &data[2..]].concat()));
    for tasks in ["1", "2", "5"] {
        let job = format!("job{tasks}");
        let told = |more: &[&str]| run(dir, &[&["job"], more, &["--quiet"]].concat());
        ok(&run(dir, &[&["job", "plan"], &args[..], &["-o", &job, "--tasks", tasks, "--quiet"]].concat()));
        fails(&told(&["run", &job, "--phase", "convert", "--index", "0"]), 2, "phase importance: 1 task is not done");
        fails(&told(&["run", &job, "--phase", "importance"]), 2, "phase calibrate: ");
        fails(&told(&["assemble", &job]), 2, "phase calibrate: ");
        for index in (0..tasks.parse::<usize>().unwrap()).rev() {
            let index = index.to_string();
            let task = ["job", "run", &job, "--phase", "calibrate", "--index", &index, "--quiet"];
            // Twice at once, and once more.
            let twins: Vec<_> = ["1", "2"].map(|n| command(dir, &task).args(["-t", n]).spawn().unwrap()).into();
            twins.into_iter().for_each(|twin| ok(&twin.wait_with_output().unwrap()));
            ok(&run(dir, &task));
        }
        ok(&told(&["run", &job]));
        ok(&told(&["assemble", &job]));
        for (name, whole) in bytes(&dir.join("one")) {
            assert!(std::fs::read(dir.join(&job).join(&name)).unwrap() == whole, "{tasks}: {}", name.display());
        }
        let matrix = dir.join(&job).join("tasks").join(tasks).join("importance.gguf");
        assert!(std::fs::read(matrix).unwrap() == std::fs::read(dir.join("one.gguf")).unwrap(), "{tasks}");
    }
}

/// Windows go through the model in tasks, and others round the layers behind.
#[test]
fn error_feedback_in_tasks_gives_the_bytes_of_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let data = ["--calibration", "tokens:random", "--calibration-tokens", "2048", "--seq-len", "128", "--quiet"];
    for (types, model, more) in [
        ("q4_k_m,q4_0", family("llama"), &["--sort-channels"][..]),
        ("iq4_nl,fp8", family("qwen3-moe"), &["--split-max-tensors", "9"]),
        ("q4_0", family("gemma2"), &[]),
    ] {
        let one = dir.join(types);
        std::fs::create_dir(&one).unwrap();
        let args = [&["--to", types, &model], more, &data[..]].concat();
        ok(&run(dir, &[&args[..], &["-o", &format!("{types}/")]].concat()));
        for tasks in ["1", "2", "5"] {
            let job = format!("{types} in {tasks}");
            let told = |more: &[&str]| run(dir, &[&["job"], more, &["--quiet"]].concat());
            ok(&run(dir, &[&["job", "plan"], &args[..], &["-o", &job, "--tasks", tasks]].concat()));
            if tasks != "1" {
                fails(&told(&["run", &job, "--phase", "convert", "--index", "1"]), 2, "phase activations: ");
            }
            ok(&told(&["run", &job, "--index", "0"]));
            ok(&told(&["run", &job, "--index", "0"]));
            ok(&told(&["run", &job, "--max-memory", "100K"]));
            ok(&told(&["assemble", &job]));
            for (name, whole) in bytes(&one) {
                let made = std::fs::read(dir.join(&job).join(&name)).unwrap();
                assert!(made == whole, "{job}: {}", name.display());
            }
        }
    }
    // What is handed on is looked at.
    let handed = std::fs::read_dir(dir.join("q4_0 in 2/tasks/0")).unwrap().map(|e| e.unwrap().path());
    let handed: Vec<PathBuf> = handed.filter(|p| p.display().to_string().contains("layer-")).collect();
    assert_eq!(handed.len(), 1);
    let mut bytes = std::fs::read(&handed[0]).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&handed[0], bytes).unwrap();
    let last = run(dir, &["job", "status", "q4_0 in 2", "--format", "json"]);
    let last = serde_json::from_slice::<Value>(&last.stdout).unwrap()["of"].as_u64().unwrap() - 1;
    std::fs::remove_dir_all(dir.join(format!("q4_0 in 2/tasks/{last}"))).unwrap();
    fails(&run(dir, &["job", "run", "q4_0 in 2"]), 3, "run its task again");
}

#[test]
fn damage_to_what_an_earlier_phase_made_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    planned_with_matrix(dir);
    let told = |more: &[&str]| run(dir, &[&["job", "run", "job", "--quiet"], more].concat());
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    ok(&told(&["--phase", "calibrate"]));
    damage(&dir.join("job/tasks/1/sums"));
    fails(&told(&["--phase", "importance"]), 3, "run its task again");
    std::fs::remove_dir_all(dir.join("job/tasks/1")).unwrap();
    fails(&told(&["--phase", "importance"]), 2, "phase calibrate: 1 task is not done: 1");
    // Elsewhere with other instructions, other activations come out.
    let mut other = command(dir, &["job", "run", "job", "--quiet", "--phase", "calibrate"]);
    fails(&other.env("QUANTIZE_ISA", "scalar").output().unwrap(), 3, "not what the job was planned with");
    ok(&told(&["--phase", "calibrate"]));
    ok(&told(&["--phase", "importance"]));
    damage(&dir.join("job/tasks/2/importance.gguf"));
    fails(&told(&[]), 3, "run its task again");
    std::fs::remove_dir_all(dir.join("job/tasks/2")).unwrap();
    ok(&told(&[]));
    // Other windows than those of the job.
    let windows = dir.join("job/windows.json");
    let text = std::fs::read_to_string(&windows).unwrap();
    std::fs::write(&windows, text.replacen('[', "[[1,2],", 1)).unwrap();
    fails(&run(dir, &["job", "assemble", "job"]), 3, "windows");
    std::fs::write(&windows, text).unwrap();
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
}

#[test]
fn a_killed_task_leaves_nothing_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, model) = (dir.path(), family("llama"));
    planned(dir, &["--to", "q2_k", &model, "--tasks", "2"]);
    for wait in [0, 3, 10, 30] {
        let mut task = command(dir, &["job", "run", "job", "--index", "0", "--quiet", "-t", "1"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        let _ = task.kill();
        task.wait().unwrap();
        assert_eq!(status(dir)["running"], 0);
    }
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
    ok(&run(dir, &["--to", "q2_k", &model, "-o", "one.gguf", "--quiet"]));
    let made = dir.join("job/llama-Q2_K.gguf");
    assert!(std::fs::read(made).unwrap() == std::fs::read(dir.join("one.gguf")).unwrap());
    let left = std::fs::read_dir(dir.join("job/tasks")).unwrap();
    assert!(left.into_iter().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with('.')));
}

#[test]
fn killed_tasks_of_a_calibrated_job_leave_nothing_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, model) = (dir.path(), family("llama"));
    let data = ["--calibration", "default", "--calibration-tokens", "4096", "--seq-len", "128", "--quiet"];
    let args = [&["--to", "q4_0", &model], &data[..]].concat();
    ok(&run(dir, &[&args[..], &["-o", "one.gguf"]].concat()));
    planned(dir, &[&args[..args.len() - 1], &["--tasks", "2"]].concat());
    let count = status(dir)["of"].as_u64().unwrap();
    for task in 0..count {
        let index = task.to_string();
        for wait in [0, 20, 60, 120] {
            let mut task =
                command(dir, &["job", "run", "job", "--index", &index, "--quiet", "-t", "1"]).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(wait));
            let _ = task.kill();
            task.wait().unwrap();
        }
        ok(&run(dir, &["job", "run", "job", "--index", &index, "--quiet"]));
    }
    ok(&run(dir, &["job", "assemble", "job", "-o", "two.gguf", "--quiet"]));
    assert!(std::fs::read(dir.join("one.gguf")).unwrap() == std::fs::read(dir.join("two.gguf")).unwrap());
    let left = std::fs::read_dir(dir.join("job/tasks")).unwrap();
    assert!(left.into_iter().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with('.')));
}

#[test]
fn another_model_another_recipe_and_damage_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let copy = dir.join("m");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(family("llama")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let model = copy.display().to_string();
    planned(dir, &["--to", "q8_0", &model, "--tasks", "2"]);
    // A second job does not take the first one's folder.
    fails(&run(dir, &["job", "plan", "--to", "q4_0", &model, "-o", "job"]), 2, "another job");
    fails(&run(dir, &["job", "run", "m"]), 3, "job.json");
    ok(&run(dir, &["job", "run", "job", "--index", "0", "--quiet"]));

    // What a task has made is damaged afterwards.
    let mut parts = std::fs::read_dir(dir.join("job/tasks/0")).unwrap().map(|e| e.unwrap().path());
    let part = parts.find(|p| p.extension().is_some_and(|e| e == "partial")).unwrap();
    let whole = std::fs::read(&part).unwrap();
    ok(&run(dir, &["job", "run", "job", "--quiet"]));
    std::fs::write(&part, &whole[..whole.len() / 4]).unwrap();
    fails(&run(dir, &["job", "assemble", "job"]), 3, "run task 0 again");
    assert!(!dir.join("job/m-Q8_0.gguf").exists());
    std::fs::remove_dir_all(dir.join("job/tasks/0")).unwrap();
    fails(&run(dir, &["job", "assemble", "job"]), 2, "1 task is not done: 0");

    // Another recipe.
    let file = dir.join("job/job.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"Q8_0\"", "\"Q4_0\"")).unwrap();
    fails(&run(dir, &["job", "run", "job", "--index", "0"]), 3, "not what the job was planned with");
    assert_eq!(status(dir)["failed"], 1);
    std::fs::write(&file, &text).unwrap();
    ok(&run(dir, &["job", "run", "job", "--index", "0", "--quiet"]));
    assert_eq!(status(dir)["failed"], 0);

    // Another model.
    std::fs::remove_dir_all(dir.join("job/tasks/0")).unwrap();
    let config = copy.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen('{', "{ ", 1)).unwrap();
    fails(&run(dir, &["job", "run", "job", "--index", "0"]), 3, "not what the job was planned with");
    fails(&run(dir, &["job", "assemble", "job"]), 2, "is not done");
}

#[test]
fn what_names_no_task_or_cannot_be_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, model) = (dir.path(), family("llama"));
    let plan = |more: &[&str]| run(dir, &[&["job", "plan", &model, "-o", "job"], more].concat());
    fails(&plan(&["--to", "awq"]), 4, "not cut into tasks");
    fails(&plan(&["--to", "q4_k_m", "--calibration", "default", "--sequential"]), 4, "not cut into tasks");
    fails(&plan(&["--like", "q4_k_m", "--calibration", "default"]), 4, "not cut into tasks");
    fails(&plan(&["--to", "q8_0", "--resume"]), 2, "--resume is not for job plan");
    fails(&run(dir, &["job", "plan", &model, "--to", "q8_0"]), 2, "-o JOB");
    assert!(!dir.join("job").exists());
    planned(dir, &["--to", "q8_0", &model, "--tasks", "3"]);
    fails(&run(dir, &["job", "run", "job", "--index", "3"]), 2, "no task 3");
    fails(&run(dir, &["job", "run", "job", "--phase", "round"]), 2, "no phase 'round'");
    let with = |set: &[(&str, &str)]| {
        let mut command = command(dir, &["job", "run", "job", "--quiet"]);
        command.envs(set.iter().copied());
        command.output().unwrap()
    };
    fails(&with(&[("SLURM_ARRAY_TASK_ID", "1"), ("RANK", "0")]), 2, "name two tasks");
    fails(&with(&[("JOB_COMPLETION_INDEX", "one")]), 2, "no index");
    ok(&with(&[("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "1")]));
    assert_eq!(status(dir)["tasks"][1]["state"], "done");
    assert_eq!(status(dir)["done"], 1);
}

#[test]
fn every_engine_gets_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, model) = (dir.path(), family("llama"));
    planned(dir, &["--to", "q8_0", &model, "--tasks", "3"]);
    let count = status(dir)["of"].as_u64().unwrap();
    let emitted = |engine: &str| {
        let out = run(dir, &["job", "emit", engine, "job"]);
        ok(&out);
        String::from_utf8(out.stdout).unwrap()
    };
    let parses = |text: &str| {
        std::fs::write(dir.join("script"), text).unwrap();
        let out = Command::new("sh").args(["-n", "script"]).current_dir(dir).output().unwrap();
        assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
    };
    let slurm = emitted("slurm");
    parses(&slurm);
    assert!(slurm.contains(&format!("--array=0-{}%{count}", count - 1)) && slurm.contains("kill-on-invalid-dep=yes"));
    assert!(slurm.contains("scontrol requeue \"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}\""));
    let aws = emitted("aws-batch");
    parses(&aws);
    assert!(aws.contains(&format!("--array-properties size={count}")));
    parses(&emitted("hf-jobs"));
    // What the published schemas let pass.
    let kubernetes = emitted("kubernetes");
    for line in ["completionMode: Indexed", "backoffLimitPerIndex: 3", "restartPolicy: Never", "action: FailIndex"] {
        assert!(kubernetes.contains(line), "{line}");
    }
    assert!(kubernetes.contains(&format!("completions: {count}\n")) && kubernetes.contains("memory: 16Gi\n"));
    assert!(emitted("skypilot").contains("--index \"$SKYPILOT_NODE_RANK\" --of \"$SKYPILOT_NUM_NODES\""));
    assert!(emitted("ray").contains(&format!("[(\"convert\", {count})]")));
}

#[test]
fn phases_are_submitted_one_after_the_other_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    planned_with_matrix(dir);
    let emitted = |engine: &str| {
        let out = run(dir, &["job", "emit", engine, "job"]);
        ok(&out);
        String::from_utf8(out.stdout).unwrap()
    };
    let slurm = emitted("slurm");
    let arrays: Vec<&str> = slurm.lines().filter(|line| line.contains(" --array=0-")).collect();
    for (line, (name, array)) in
        arrays.iter().zip([("calibrate", "0-1%2"), ("importance", "0-0%1"), ("convert", "0-1%2")])
    {
        // Each waits for the one before.
        assert!(line.starts_with("after=$(submit \"$after\" "), "{line}");
        assert!(line.contains(&format!("--job-name=quantize-{name} ")) && line.contains(&format!("--array={array} ")));
    }
    assert_eq!(arrays.len(), 3);
    let aws = emitted("aws-batch");
    assert!(aws.matches("--depends-on").count() == 3 && aws.matches("--array-properties size=2").count() == 2);
    assert!(emitted("ray").contains("[(\"calibrate\", 2), (\"importance\", 1), (\"convert\", 2)]"));

    // Two machines that share the tasks out; one begins late.
    let share = |index: &str| {
        let mut share = command(dir, &["job", "run", "job", "--index", index, "--of", "2", "--wait", "--quiet"]);
        share.stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = share("0");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let second = share("1");
    [first, second].into_iter().for_each(|share| ok(&share.wait_with_output().unwrap()));
    let status = status(dir);
    assert_eq!((&status["done"], &status["of"]), (&5.into(), &5.into()));
    let names: Vec<&str> = status["phases"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["calibrate", "importance", "convert"]);
    ok(&run(dir, &["job", "assemble", "job", "--quiet"]));
}
