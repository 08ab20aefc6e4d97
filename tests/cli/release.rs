//! Releases: a folder that can be published, or none.

use crate::common::{
    command, copy_model, digests, fails, json, names, ok, one_layer, quantize, repo, sha256, stderr, tiny,
};
use std::path::Path;
use std::time::Duration;

/// A text on which gates can be judged.
fn text() -> String {
    repo("calibration/technical.txt").to_str().unwrap().to_string()
}

/// The small trained model with one layer, under its name; the folder goes with the test.
fn small() -> (tempfile::TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let model = one_layer(&home.path().join("tiny-llama")).to_str().unwrap().to_string();
    (home, model)
}

/// Every file under a folder with its hash, as the list in it says, against what `sha256sum` would find.
fn check_sums(folder: &Path) -> usize {
    let list = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    for line in list.lines() {
        let (hash, name) = line.split_once("  ").unwrap();
        assert_eq!(sha256(&std::fs::read(folder.join(name)).unwrap()), hash, "{name}");
    }
    list.lines().count()
}

#[test]
fn a_release_holds_all_that_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("model");
    copy_model("tiny-llama", &source);
    let card = "---\nlicense: other\nlicense_name: \"a: b\"\nlanguage:\n- en\n- \"no\"\nbase_model: org/grandparent\n---\n# Tiny | one\n";
    std::fs::write(source.join("README.md"), card).unwrap();
    std::fs::write(source.join("LICENSE"), "free").unwrap();
    let mut config = json(&source.join("config.json"));
    config["_name_or_path"] = "org/Tiny-1".into();
    std::fs::write(source.join("config.json"), config.to_string()).unwrap();
    let args =
        ["release", "model", "--to", "q4_k_m,q8_0,fp8,mlx-4bit", "--rounding", "nearest", "-o", "out/", "--quiet"];
    let more =
        ["--text", &text(), "--chunks", "8", "--max-kld", "0.5", "--quantized-by", "me: \"x\"", "--format", "json"];
    let out = ok(quantize(dir.path(), &[&args[..], &more[..]].concat()));
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    let folder = dir.path().join("out");
    assert_eq!(
        names(&folder),
        [
            "LICENSE",
            "README.md",
            "SHA256SUMS",
            "Tiny-1-Q4_K_M.gguf",
            "Tiny-1-Q8_0.gguf",
            "Tiny-1-fp8",
            "Tiny-1-mlx-4bit",
            "quantize-manifest.json",
            "report.html",
            "report.json",
            "report.md"
        ]
    );
    assert_eq!(names(dir.path()), ["model", "out"]);
    assert!(check_sums(&folder) > 10);
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let front = "---\nbase_model: org/Tiny-1\nbase_model_relation: quantized\nlicense: other\nlicense_name: \"a: b\"\n\
                 language:\n- en\n- \"no\"\nlibrary_name: gguf\npipeline_tag: text-generation\n";
    assert!(card.starts_with(front), "{card}");
    for part in [
        "quantized_by: \"me: \\\"x\\\"\"\n",
        "# Tiny-1, quantized",
        "(./Tiny-1-Q4_K_M.gguf) | 3.",
        "llama-server -hf YOUR-NAME/Tiny-1-GGUF:Q4_K_M",
        "ollama run hf.co/YOUR-NAME/Tiny-1-GGUF:Q4_K_M",
        "vllm serve ./Tiny-1-fp8",
        "mlx_lm.generate --model ./Tiny-1-mlx-4bit",
        "sha256sum -c",
        "| 8 GB",
    ] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    assert!(!card.contains("grandparent"));
    let of_folder = std::fs::read_to_string(folder.join("Tiny-1-mlx-4bit/README.md")).unwrap();
    assert!(
        of_folder.starts_with("---\nbase_model: org/Tiny-1\n") && of_folder.contains("KL divergence"),
        "{of_folder}"
    );
    assert!(of_folder.contains("library_name: mlx\n"));
    let manifest = json(&folder.join("quantize-manifest.json"));
    assert_eq!(manifest["source"]["id"], "org/Tiny-1");
    let weights = std::fs::read(source.join("model.safetensors")).unwrap();
    assert_eq!(manifest["source"]["files"][0]["sha256"], sha256(&weights).as_str());
    let artifacts = manifest["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.len(), 4);
    let q4 = artifacts.iter().find(|a| a["type"] == "Q4_K_M").unwrap();
    assert_eq!(q4["files"][0]["tensors"].as_array().unwrap().len(), 56);
    assert!(q4["kl_divergence"]["value"].as_f64().unwrap() < 0.5);
    assert_eq!(out["artifacts"].as_array().unwrap().len(), 4);
    // Nothing tells of this machine.
    let here = dir.path().to_str().unwrap();
    for name in names(&folder).iter().filter(|name| name.contains("report") || name.contains("README")) {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(!text.contains(here) && !text.contains("out.partial"), "{name}");
    }
    ok(quantize(dir.path(), &["verify", "out"]));
    // A part of it can be checked, a changed file cannot pass.
    std::fs::remove_file(folder.join("Tiny-1-Q8_0.gguf")).unwrap();
    assert!(ok(quantize(dir.path(), &["verify", "out"])).contains("1 are not here"));
    let mut bytes = std::fs::read(folder.join("Tiny-1-Q4_K_M.gguf")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(folder.join("Tiny-1-Q4_K_M.gguf"), bytes).unwrap();
    fails(&quantize(dir.path(), &["verify", "out"]), 3, &["Tiny-1-Q4_K_M.gguf", "SHA-256"]);
}

#[test]
fn a_release_that_fails_its_gates_has_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_home, tiny) = small();
    let run = |limit: &str, more: &[&str]| {
        let text = text();
        let args =
            ["release", &tiny, "--to", "q2_k", "--text", &text, "--chunks", "8", "--max-kld", limit, "-o", "out"];
        quantize(dir.path(), &[&args[..], more].concat())
    };
    fails(&run("0.000001", &[]), 6, &["Q2_K", "out.failed"]);
    assert_eq!(names(dir.path()), ["out.failed"]);
    assert!(dir.path().join("out.failed/report.html").is_file());
    // Again, in place of the first.
    fails(&run("0.000001", &[]), 6, &["out.failed"]);
    ok(run("5", &[]));
    assert_eq!(names(dir.path()), ["out", "out.failed"]);
    let first = digests(&dir.path().join("out").join("..").join("out.failed"));
    let again = run("5", &[]);
    fails(&again, 2, &["holds a release of tiny-llama: Q2_K", "--force"]);
    assert_eq!(digests(&dir.path().join("out.failed")), first);
    ok(run("5", &["--force"]));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("theirs")).unwrap();
    std::fs::write(dir.path().join("theirs/a"), "a").unwrap();
    let tiny = tiny();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--to", "q4_k_m", "-o", "theirs", "--force"], 2, "not made by this program"),
        (&["--to", "q4_k_m", "-o", "out", "--name", "a|b"], 2, "a-b"),
        (&["--to", "q4_k_m", "-o", "out", "--base-model", "x"], 2, "org/name"),
        (&["--to", "q4_k_m", "-o", "out", "--repo", "x y/z"], 2, "org/name"),
        (&["--to", "q4_k_m", "-o", "out", "--max-kld", "1"], 2, "--text"),
        (&["--to", "q4_k_m", "-o", "out", "--text", "none.txt"], 3, "none.txt"),
        (&["--to", "q4_k_m", "-o", "out", "--modelfile"], 2, "--modelfile"),
        (&["--to", "q4_k_m", "-o", "no/where"], 5, "does not exist"),
        (&["--to", "q4km", "-o", "out"], 2, "did you mean q4_k_m?"),
    ];
    for (more, code, part) in cases {
        let out = quantize(dir.path(), &[&["release", &tiny], more].concat());
        fails(&out, code, &[part]);
    }
    assert_eq!(names(dir.path()), ["theirs"]);
}

/// Killed at any time, a release goes on, and becomes what it would have been.
#[cfg(unix)]
#[test]
fn a_killed_release_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_home, tiny) = small();
    let run = |target: &str, more: &[&str]| {
        let base = ["release", &tiny, "--to", "q8_0,q4_k_m,gptq,nf4", "--rounding", "nearest", "--quiet", "-o", target];
        command(dir.path(), &[&base[..], more].concat())
    };
    let start = std::time::Instant::now();
    ok(run("whole", &[]).output().unwrap());
    let length = start.elapsed();
    let want = std::fs::read_to_string(dir.path().join("whole/SHA256SUMS")).unwrap();
    let weights = |sums: &str| -> Vec<String> {
        sums.lines().filter(|l| l.ends_with(".gguf") || l.ends_with(".safetensors")).map(String::from).collect()
    };
    for i in 1..6u32 {
        let mut child =
            run("cut", &[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(length * i / 6 + Duration::from_millis(u64::from(i)));
        child.kill().unwrap();
        child.wait().unwrap();
        if !dir.path().join("cut").exists() {
            let out = run("cut", &["--resume"]).output().unwrap();
            assert!(out.status.success(), "{}", stderr(&out));
        }
        let got = std::fs::read_to_string(dir.path().join("cut/SHA256SUMS")).unwrap();
        assert_eq!(weights(&got), weights(&want));
        assert!(check_sums(&dir.path().join("cut")) > 5);
        assert_eq!(names(dir.path()), ["cut", "whole"]);
        // The card names the command, and not that it was gone on with.
        let card = |name: &str| {
            let text = std::fs::read_to_string(dir.path().join(name).join("README.md")).unwrap();
            text.replace(&format!("-o {name}"), "-o release")
        };
        assert_eq!(card("cut"), card("whole"));
        std::fs::remove_dir_all(dir.path().join("cut")).unwrap();
    }
}

/// What is made already is not made again, so it must have been calibrated on the same text.
#[test]
fn a_release_goes_on_with_its_own_calibration_text_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_home, tiny) = small();
    let text = dir.path().join("data.txt");
    std::fs::write(&text, "A text about this and that, and about how it goes on.\n".repeat(400)).unwrap();
    let data = ["--calibration", "data.txt", "--calibration-tokens", "2048"];
    let base = ["release", &tiny, "--to", "q4_0,gptq", "--quiet", "-o", "cut", data[0], data[1], data[2], data[3]];
    let run = |more: &[&str]| command(dir.path(), &[&base[..], more].concat());
    let mut child = run(&[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let is_there = || {
        let entries = std::fs::read_dir(dir.path()).unwrap().flatten().filter(|entry| entry.path().is_dir());
        let inner = entries.flat_map(|entry| names(&entry.path()));
        inner.into_iter().any(|name| name.ends_with(".gguf"))
    };
    while !is_there() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_there() && !dir.path().join("cut").exists(), "it was not cut in the middle");
    let old = std::fs::read_to_string(&text).unwrap();
    std::fs::write(&text, old.replace("this", "that")).unwrap();
    fails(&run(&["--resume"]).output().unwrap(), 2, &["calibration"]);
    std::fs::write(&text, old).unwrap();
    ok(run(&["--resume"]).output().unwrap());
}

#[test]
fn types_are_listed_and_typing_errors_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let text = ok(quantize(dir.path(), &["types"]));
    assert!(text.contains("q4_k_m") && text.contains("mlx-4bit") && text.lines().all(|l| l.chars().count() <= 120));
    let all: serde_json::Value =
        serde_json::from_str(&ok(quantize(dir.path(), &["types", "--format", "json"]))).unwrap();
    assert!(all["types"].as_array().unwrap().iter().any(|t| t["name"] == "nvfp4" && t["kind"] == "folder"));
    let tiny = tiny();
    for (name, part) in [("q4km", "q4_k_m"), ("4bit", "mlx-4bit"), ("nvpf4", "nvfp4"), ("banana", "the usual ones")] {
        fails(&quantize(dir.path(), &["--to", name, &tiny]), 2, &[part, "quantize types"]);
    }
    fails(&quantize(dir.path(), &["run", &tiny]), 2, &["quantize chat MODEL"]);
    fails(&quantize(dir.path(), &["convert", &tiny]), 2, &["quantize --to"]);
    let bare = quantize(dir.path(), &[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(stderr(&bare).lines().count() <= 15 && stderr(&bare).contains("quantize --help"));
}

#[test]
fn differences_are_shown_and_can_fail_a_build() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny();
    ok(quantize(dir.path(), &["--to", "q8_0,q4_k_m", &tiny, "-o", "made/", "--quiet", "--no-check"]));
    let (q8, q4) = ("made/tiny-llama-Q8_0.gguf", "made/tiny-llama-Q4_K_M.gguf");
    assert!(ok(quantize(dir.path(), &["diff", q8, q8, "--fail-on-difference"])).contains("the same: 56 tensors"));
    let text = ok(quantize(dir.path(), &["diff", q8, q4]));
    for part in ["general.file_type", "attn_q", "Q8_0 and Q4_K", "Numbers: "] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    fails(&quantize(dir.path(), &["diff", q8, q4, "--fail-on-difference"]), 6, &["differ"]);
    // A folder and the file made of it have the same tokens.
    let out = ok(quantize(dir.path(), &["diff", &tiny, q8, "--format", "json"]));
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(out["tokens"].is_null() && out["template"].is_null() && out["same"] == false);
    assert_eq!((&out["compared"], &out["only_first"]), (&serde_json::json!(56), &serde_json::json!([])));
    // A token and the template changed.
    let other = dir.path().join("other");
    copy_model("tiny-llama", &other);
    let mut tokenizer = json(&other.join("tokenizer.json"));
    tokenizer["added_tokens"][0]["content"] = "<|end|>".into();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("<|endoftext|>").unwrap();
    vocab.insert("<|end|>".into(), id);
    std::fs::write(other.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(other.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let out = ok(quantize(dir.path(), &["diff", &tiny, "other", "--format", "json"]));
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["tokens"]["differing"], 1);
    assert_eq!(out["template"]["second"], "{{ messages }}");
}

#[test]
fn the_best_type_for_a_device_is_chosen_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let config = repo("tests/configs/llama-3.1-8b.json");
    let config = config.to_str().unwrap();
    let plan = |more: &[&str]| quantize(dir.path(), &[&["plan", config][..], more].concat());
    let chosen = |more: &[&str]| -> serde_json::Value {
        let out: serde_json::Value = serde_json::from_str(&ok(plan(&[more, &["--format", "json"]].concat()))).unwrap();
        out["fit"]["chosen"].clone()
    };
    assert_eq!(chosen(&["--fit", "RTX 4090", "--context", "32k"]), "Q8_0");
    assert_eq!(chosen(&["--fit", "RTX 4090", "--context", "128k"]), "Q6_K");
    assert_eq!(chosen(&["--fit", "8GB", "--context", "8k"]), "Q5_K_M");
    assert_eq!(chosen(&["--fit", "8GB", "--context", "8k", "--to", "q2_k,q8_0"]), "Q2_K");
    assert_eq!(chosen(&["--fit", "RTX 3060", "--tp", "2", "--context", "32k", "--to", "fp8,awq"]), "fp8");
    let text = ok(plan(&["--fit", "4090", "--context", "128k"]));
    assert!(
        text.contains("is the largest that fits RTX 4090 with 131\u{202f}072 tokens") && text.contains("would take"),
        "{text}"
    );
    fails(&plan(&["--fit", "2GB"]), 6, &["none fits 2GB"]);
    fails(&plan(&["--fit", "GTX"]), 2, &["RTX 4090"]);
    let (tiny, args) = (tiny(), ["--fit", "24GB", "--rounding", "nearest", "--no-check", "--quiet", "-o", "out"]);
    ok(quantize(dir.path(), &[&["release", &tiny, "--to", "q4_k_m,q8_0"][..], &args[..]].concat()));
    assert!(names(&dir.path().join("out")).contains(&"tiny-llama-Q8_0.gguf".to_string()));
    assert!(!names(&dir.path().join("out")).contains(&"tiny-llama-Q4_K_M.gguf".to_string()));
}
