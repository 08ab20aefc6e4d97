//! Every flag of commands that make no conversion, on runs of each: it is refused, it changes what comes out, or it is one
//! that permits or promises something.

use crate::common::*;
use std::collections::BTreeMap;
use std::path::Path;

/// What flags are given; `None` for switches.
fn value(flag: &str) -> Option<&'static str> {
    Some(match flag {
        "--to" => "q8_0",
        "--tensor-type" => "ffn_down=q8_0",
        "--output-tensor-type" | "--token-embedding-type" => "q8_0",
        "--tensor-type-file" => "rules",
        "--mmproj" => "f16",
        "--mtp" => "drop",
        "--on-fallback" => "allow",
        "--override-kv" => "a.b=int:1",
        "--pretokenizer" => "gpt-2",
        "--rounding" => "nearest",
        "--imatrix" | "--merge" => "im.gguf",
        "--unseen-experts" => "plain",
        "--calibration" => "default",
        "--calibration-tokens" => "333",
        "--seq-len" => "99",
        "--seed" | "--checkpoint-every" => "7",
        "--max-memory" => "1G",
        "--like" => "q4_k_m",
        "--device" | "--fit" => "24GB",
        "--context" => "100",
        "--group-size" => "32",
        "--bits" => "8",
        "--checkpoint-format" => "gptq_v2",
        "--smooth" => "0.4",
        "--dtype" => "f16",
        "--like-config" | "--source" | "--check" | "--lora" => "no-such",
        "--tp" | "--count" | "--threads" | "--parallel" => "2",
        "--revision" => "v2",
        "--format" => "json",
        "--filter" => "attn_q",
        "--for" => "llama.cpp",
        "--output" => "o.gguf",
        "--text" => "text",
        "--save-text" => "t.txt",
        "--set" => "general.name=x",
        "--remove" => "general.name",
        "--rename" => "general.name=x",
        "--chat-template" => "rules",
        "--token-type" => "5=control",
        "--stop-token" => "eos=5",
        "--max-size" => "20000",
        "--max-tensors" | "--cpus" | "--memory" => "3",
        "--tensor" => "attn_k",
        "--expert" => "0",
        "--phase" => "convert",
        "--index" => "0",
        "--of" => "1",
        "--image" | "--claim" => "x",
        "--mount" => "/x",
        "--dir" => "pages",
        "--prompt" => "once",
        "--system" => "be",
        "--temp" => "3",
        "--top-p" => "0.5",
        "--top-k" => "3",
        _ => return None,
    })
}

/// Flags that permit or promise something, or depend on what the model has, whatever comes of them here.
const SILENT: [&str; 15] = [
    "--quiet",
    "--threads",
    "--force",
    "--offline",
    "--on-fallback",
    "--allow-requantize",
    // The model has no such layers, its pre-tokenizer is this one, and so on.
    "--mtp",
    "--leave-output-tensor",
    "--override-kv",
    "--pretokenizer",
    "--rounding",
    "--imatrix",
    "--calibration",
    "--sym",
    "--special",
];

/// The flags in the help of a command.
fn flags(command: &[&str]) -> Vec<String> {
    let help = ok(quantize(Path::new("."), &[command, &["--help"]].concat()));
    let line = regex::Regex::new(r"(?m)^ {2,6}(?:-\w, )?(--[a-z0-9-]+)").unwrap();
    line.captures_iter(&help).map(|c| c[1].to_string()).filter(|f| f != "--help" && f != "--version").collect()
}

/// What a run does: its exit code, what it says, and the files that it leaves.
fn outcome(inputs: &Path, args: &[&str]) -> (Option<i32>, String, String, BTreeMap<String, Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    copy(inputs, dir.path());
    let out = quantize(dir.path(), args);
    let times = regex::Regex::new(r#"[\d.]+ (s|tokens/s)\b|"seconds":\s*[\d.e-]+"#).unwrap();
    let text = |bytes: &[u8]| times.replace_all(&String::from_utf8_lossy(bytes), "").into_owned();
    let files = names(dir.path()).into_iter().filter(|name| dir.path().join(name).is_file());
    let files = files.map(|name| (name.clone(), std::fs::read(dir.path().join(&name)).unwrap())).collect();
    (out.status.code(), text(&out.stdout), text(&out.stderr), files)
}

fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

#[test]
fn no_flag_passes_in_silence() {
    let inputs = tempfile::tempdir().unwrap();
    let (d, tiny) = (inputs.path(), tiny());
    std::fs::write(d.join("rules"), "ffn_down=q8_0\n").unwrap();
    ok(quantize(d, &["--to", "q4_k_m", &tiny, "-o", "m.gguf", "--no-check", "--quiet"]));
    ok(quantize(d, &["split", "m.gguf", "--count", "2", "-o", "s"]));
    ok(quantize(
        d,
        &["calibrate", &tiny, "-o", "im.gguf", "--calibration-tokens", "256", "--seq-len", "64", "--quiet"],
    ));
    ok(quantize(d, &["job", "plan", "--to", "q8_0", &tiny, "-o", "job", "--quiet"]));
    std::fs::write(d.join("text"), "The quick brown fox jumps over the lazy dog. ".repeat(200)).unwrap();
    let how = ["--text", "text", "--ctx", "64", "--chunks", "2", "--report", "r.json", "--quiet"];
    ok(quantize(d, &[&["compare", &tiny, "m.gguf"], &how[..]].concat()));
    let tiny = tiny.as_str();
    let mut runs: Vec<Vec<&str>> = vec![
        vec!["plan", tiny, "--to", "q4_k_m"],
        vec!["plan", tiny, "--to", "gptq"],
        vec!["plan", tiny, "--fit", "24GB"],
        vec!["inspect", "m.gguf"],
        vec!["inspect", tiny],
        vec!["inspect", "im.gguf"],
        vec!["verify", "m.gguf"],
        vec!["verify", "m.gguf", "--for", "llama.cpp"],
        vec!["calibrate", "--merge", "im.gguf", "--show-statistics"],
        vec!["calibrate", "--merge", "im.gguf", "-o", "o.gguf"],
        vec!["diff", "m.gguf", tiny],
        vec!["edit", "m.gguf", "--in-place", "--set", "general.name=y"],
        vec!["split", "m.gguf", "--count", "3"],
        vec!["merge", "s-00001-of-00002.gguf", "-o", "whole.gguf"],
        vec!["extract", "m.gguf", "--tensor", "attn_q", "-o", "o.safetensors"],
        vec!["types"],
        vec!["families"],
        vec!["generate", "m.gguf", "--prompt", "hello", "-n", "12"],
        vec!["job", "status", "job"],
        vec!["report", "r.json"],
        vec!["report", "r.json", "--to", "x.md"],
        vec!["man"],
    ];
    runs.extend(
        ["slurm", "kubernetes", "ray", "aws-batch", "skypilot", "hf-jobs"].map(|e| vec!["job", "emit", e, "job"]),
    );
    let mut silent = Vec::new();
    for run in &runs {
        let command: Vec<&str> = run[..if run[0] == "job" { 2 } else { 1 }].to_vec();
        let plain = outcome(d, run);
        for flag in flags(&command) {
            if run.contains(&flag.as_str()) || SILENT.contains(&flag.as_str()) {
                continue;
            }
            let args: Vec<&str> = run.iter().copied().chain([flag.as_str()]).chain(value(&flag)).collect();
            let with = outcome(d, &args);
            if with == plain {
                silent.push(args.join(" "));
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
}
