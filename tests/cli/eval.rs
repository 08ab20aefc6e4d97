//! `eval`, `compare`, `report`, `generate` and the gates, as a user and a pipeline run them.

use crate::common::{command, fails, family, model, ok, quantize, repo, stderr};
use std::path::{Path, PathBuf};
use std::process::Output;

fn text() -> PathBuf {
    repo("calibration/technical.txt")
}

fn json(out: &Output) -> serde_json::Value {
    assert!(out.status.success(), "{}", stderr(out));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_conversion_with_a_text_ends_with_the_comparison_and_its_gates() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let common = ["--text", str(&text), "--ctx", "128", "--chunks", "20", "--format", "json", "-t", "2"];
    let args =
        [&["--to", "f16,q8_0,q2_k", str(&model), "--report", "r.html", "--report", "r.md"], &common[..]].concat();
    let report = json(&quantize(dir.path(), &args));
    let candidates = report["report"]["candidates"].as_array().unwrap();
    let kld = |i: usize| candidates[i]["stats"]["kld"]["value"].as_f64().unwrap();
    // The F16 file holds the same weights; fewer bits lose more.
    assert_eq!(kld(0), 0.0);
    assert!(kld(1) > 0.0 && kld(1) < 0.001 && kld(2) > 10.0 * kld(1), "{} {}", kld(1), kld(2));
    let tensors = candidates[2]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 43);
    for tensor in tensors.iter().filter(|t| t["name"].as_str().unwrap().starts_with("blk.")) {
        let (plain, weighted) = (tensor["rel_error"].as_f64().unwrap(), tensor["rel_error_weighted"].as_f64().unwrap());
        assert!(plain > 0.01 && weighted > 0.01 && plain != weighted, "{tensor}");
    }
    for (file, start) in [("r.html", "<!doctype html>"), ("r.md", "#")] {
        let rendered = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(rendered.to_lowercase().starts_with(start), "{file}: {}", &rendered[..80]);
    }

    // The same files against the source, and a gate that one of them fails.
    let compare = ["compare", str(&model), "tiny-llama-Q8_0.gguf", "tiny-llama-Q2_K.gguf", "--max-kld", "0.01"];
    let out = quantize(dir.path(), &[&compare[..], &common[..8]].concat());
    fails(&out, 6, &["quality gate failed", "Q2_K", "above the limit of 0.01"]);
    let again: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(again["candidates"][1]["stats"], candidates[2]["stats"], "lock-step results must not depend on company");
    assert_eq!(again["gates"].as_array().unwrap().iter().filter(|g| g["pass"] == true).count(), 1);
    assert!(dir.path().join("tiny-llama-Q2_K.gguf").exists(), "the artifact stays");
}

#[test]
fn perplexity_is_the_same_from_folder_file_and_stored_logits() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let cut = ["--text", str(&text), "--ctx", "128", "--chunks", "6", "--format", "json"];
    assert!(quantize(dir.path(), &["--to", "f16,q4_0", str(&model)]).status.success());
    let eval = |model: &str, extra: &[&str]| {
        let out = quantize(dir.path(), &[&["eval", model], &cut[..], extra].concat());
        json(&out)["base"]["ppl"]["value"].as_f64().unwrap()
    };
    let folder = eval(str(&model), &["--save-logits", "base.kld"]);
    assert_eq!(folder, eval("tiny-llama-F16.gguf", &[]));
    assert_eq!(folder, eval("tiny-llama-F16.gguf", &["-t", "1"]), "any number of threads");
    let kld = |base: &str, cut: &[&str]| {
        let out = quantize(dir.path(), &[&["compare", base, "tiny-llama-Q4_0.gguf", "--format", "json"], cut].concat());
        json(&out)["candidates"][0]["stats"]["kld"]["value"].as_f64().unwrap()
    };
    let (live, stored) = (kld(str(&model), &cut[..6]), kld("base.kld", &[]));
    assert!((live / stored - 1.0).abs() < 0.01, "{live} {stored}");
}

#[test]
fn a_saved_report_is_rendered_again() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let args = ["eval", str(&model), "--text", str(&text), "--ctx", "128", "--chunks", "4", "--report", "r.json"];
    assert!(quantize(dir.path(), &args).status.success());
    let out = quantize(dir.path(), &["report", "r.json", "-o", "r.html", "-o", "r.txt"]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(
        std::fs::read_to_string(dir.path().join("r.html")).unwrap().contains("<svg")
            || dir.path().join("r.txt").exists()
    );
    fails(&quantize(dir.path(), &["report", "r.json", "-o", "r.pdf"]), 2, &["r.pdf", ".html"]);
    std::fs::write(dir.path().join("bad.json"), "{\"schema\": \"other/9\"}").unwrap();
    fails(&quantize(dir.path(), &["report", "bad.json"]), 3, &["bad.json", "other/9"]);
}

#[test]
fn what_cannot_be_measured_is_said_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    write("empty.txt", b"");
    write("short.txt", b"one two three");
    write("latin1.txt", b"caf\xe9 and more");
    let eval = |args: &[&str]| quantize(dir.path(), &[&["eval", str(&model)], args].concat());
    fails(&eval(&["--text", "empty.txt"]), 3, &["empty.txt", "empty"]);
    fails(&eval(&["--text", "short.txt"]), 3, &["fewer than one chunk"]);
    fails(&eval(&["--text", "latin1.txt"]), 3, &["latin1.txt", "UTF-8"]);
    fails(&eval(&["--text", "none.txt"]), 3, &["none.txt"]);
    fails(&eval(&[]), 2, &["--text"]);
    fails(&eval(&["--text", str(&text), "--ctx", "4096"]), 2, &["--ctx", "context of 512"]);
    fails(&eval(&["--text", str(&text), "--ctx", "3"]), 2, &["nothing to score", "--ctx 4 or more"]);
    fails(&eval(&["--text", str(&text), "--ctx", "64", "--stride", "64"]), 2, &["stride 64", "between 1 and 63"]);
    fails(&eval(&["--text", str(&text), "--ctx", "64", "--chunks", "0"]), 2, &["0 chunks"]);
    let strided = ["--text", str(&text), "--ctx", "64", "--stride", "32", "--save-logits", "x"];
    fails(&eval(&strided), 2, &["cannot hold strided windows", "leave out --stride"]);
    let compare = |args: &[&str]| {
        let common = ["compare", str(&model), str(&model), "--text", str(&text), "--ctx", "64"];
        quantize(dir.path(), &[&common[..], args].concat())
    };
    fails(&compare(&["--max-memory", "1M"]), 2, &["1000000 bytes of memory are too little", "hint: --max-memory "]);
    // What is said to be enough is enough, and nothing was loaded before.
    for memory in ["1M", "30M"] {
        let out = compare(&["--chunks", "2", "--max-memory", memory]);
        let said = stderr(&out);
        assert!(!said.to_lowercase().contains("loading"), "{said}");
        let enough = said.lines().find_map(|line| line.split_once("hint: --max-memory ")).unwrap().1;
        ok(compare(&["--chunks", "2", "--max-memory", enough]));
    }
    fails(&compare(&["--min-top1", "95"]), 2, &["--min-top1", "write 95% or 0.95"]);
    let gate = ["--text", str(&text), "--ctx", "128", "--chunks", "2", "--max-kld", "1"];
    let out = quantize(dir.path(), &[&["compare", str(&model), str(&model)], &gate[..]].concat());
    fails(&out, 3, &["too few tokens for this gate"]);
    fails(&quantize(dir.path(), &["--to", "q8_0", str(&model), "--max-kld", "1"]), 2, &["--text"]);

    // Another model: another vocabulary.
    let other = family("qwen2");
    let args = ["compare", str(&model), &other, "--text", str(&text), "--ctx", "128"];
    fails(&quantize(dir.path(), &args), 3, &["qwen2", "vocabulary"]);
}

#[test]
fn a_tokenizer_that_differs_from_the_bases_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let out = quantize(dir.path(), &["--to", "q8_0", str(&model), "--pretokenizer", "llama-bpe"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let args = ["compare", str(&model), "tiny-llama-Q8_0.gguf", "--text", str(&text), "--ctx", "128", "--chunks", "4"];
    fails(&quantize(dir.path(), &args), 3, &["tiny-llama-Q8_0.gguf", "tokenizer"]);
}

#[test]
fn logits_that_are_not_numbers_name_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    assert!(quantize(dir.path(), &["--to", "f32", str(&model)]).status.success());
    // Overwrite the last norm with NaN: it is the last tensor of the file.
    let path = dir.path().join("tiny-llama-F32.gguf");
    let header = quantize::gguf::read_header(&path).unwrap();
    let norm = header.find("output_norm.weight").unwrap();
    let at = (header.data_start + norm.offset) as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let args = ["compare", str(&model), "tiny-llama-F32.gguf", "--text", str(&text), "--ctx", "128", "--chunks", "4"];
    fails(&quantize(dir.path(), &args), 3, &["F32", "NaN"]);
}

#[test]
fn generation_is_greedy_and_repeatable() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("tiny-llama");
    let run = |args: &[&str]| {
        let out = quantize(dir.path(), &[&["generate", str(&model), "-p", "The file", "-n", "12"], args].concat());
        assert!(out.status.success(), "{}", stderr(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    let text = run(&[]);
    assert!(text.trim().len() > 10, "{text:?}");
    assert_eq!(text, run(&["-t", "1"]));
    assert_eq!(run(&["--temp", "0.8", "--seed", "7"]), run(&["--temp", "0.8", "--seed", "7"]));
    let out = quantize(dir.path(), &["generate", str(&model), "-p", "x", "--chat"]);
    fails(&out, 3, &["chat template"]);
    fails(&quantize(dir.path(), &["generate", str(&model), "-p", ""]), 2, &["prompt"]);
}

#[test]
fn ablation_adds_up_to_the_groups_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    assert!(quantize(dir.path(), &["--to", "q4_0", str(&model)]).status.success());
    let args = ["compare", str(&model), "tiny-llama-Q4_0.gguf", "--text", str(&text), "--ctx", "128", "--chunks", "4"];
    let out = quantize(dir.path(), &[&args[..], &["--ablate", "--ablate-chunks", "2", "--format", "json"]].concat());
    let report = json(&out);
    let groups = report["candidates"][0]["ablation"].as_array().unwrap();
    let mut names: Vec<&str> = groups.iter().map(|g| g["group"].as_str().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up", "token_embd"]);
    assert!(groups.iter().all(|g| g["kld"]["value"].as_f64().unwrap() > 0.0));
}

#[test]
fn formats_that_round_activations_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let folders = ["fp8", "int8", "bnb-int8", "nf4"];
    for format in folders {
        let out = quantize(dir.path(), &["--to", format, str(&model), "-o", format, "--quiet"]);
        assert!(out.status.success(), "{}", stderr(&out));
    }
    let cut = ["--text", str(&text), "--ctx", "128", "--chunks", "4", "--format", "json", "--report", "r.md"];
    let report = json(&quantize(dir.path(), &[&["compare", str(&model)], &folders[..], &cut].concat()));
    let rounded: Vec<&serde_json::Value> =
        report["candidates"].as_array().unwrap().iter().map(|c| &c["activations"]).collect();
    assert_eq!(rounded, [&"fp8".into(), &"int8".into(), &"llm.int8".into(), &serde_json::Value::Null]);
    let told = std::fs::read_to_string(dir.path().join("r.md")).unwrap();
    assert!(told.contains("but for fp8, int8, bnb-int8, whose formats round activations too"), "{told}");
}

/// A model without a family runs as the blueprint of its class makes it: alone, beside its files, and after a conversion.
#[test]
fn what_blueprints_convert_is_evaluated_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let folder = repo("tests/lineages/lfm2-moe").to_str().unwrap().to_string();
    std::fs::write(dir.path().join("t.txt"), "one two three four five six seven eight nine ten ".repeat(40)).unwrap();
    let measured = ["--text", "t.txt", "--ctx", "32", "--chunks", "2"];
    let run = |args: &[&str]| ok(quantize(dir.path(), &[args, &measured].concat()));
    run(&["--to", "q8_0", &folder, "-o", "m.gguf"]);
    assert!(run(&["eval", &folder]).contains("perplexity"));
    assert!(run(&["eval", "m.gguf"]).contains("perplexity"));
    assert!(run(&["compare", &folder, "m.gguf"]).contains("m"));
}

#[test]
fn questions_are_answered_and_compared_pair_by_pair() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("tiny-llama");
    let line = |i: usize| {
        let right = i % 3;
        format!(r#"{{"question":"Number {i} is","choices":["a cat {i}","the dog","of"],"answer":{right}}}"#) + "\n"
    };
    std::fs::write(dir.path().join("q.jsonl"), (0..30).map(line).collect::<String>()).unwrap();
    std::fs::write(dir.path().join("w.csv"), "0,\"So it was, as _ said, the end.\",Ann,the man,1\n").unwrap();
    ok(quantize(dir.path(), &["--to", "f32,q2_k", str(&model), "--no-check", "-q"]));
    let files = ["tiny-llama-F32.gguf", "tiny-llama-Q2_K.gguf"];

    let common = ["--task", "q.jsonl", "--task", "w.csv", "--format", "json", "-t", "2"];
    let args =
        [&["compare", str(&model), files[0], files[1], "--report", "r.md", "--report", "r.html"], &common[..]].concat();
    let report = json(&quantize(dir.path(), &args));
    let tasks = report["tasks"].as_array().unwrap();
    assert_eq!((tasks[0]["kind"].as_str(), tasks[1]["kind"].as_str()), (Some("multiple-choice"), Some("winogrande")));
    assert!((tasks[0]["chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    // The same weights answer the same; two bits change some answers.
    let [same, other] = [0, 1].map(|i| &tasks[0]["candidates"][i]);
    assert_eq!(same["answers"], tasks[0]["base"]["answers"]);
    assert_eq!((same["difference"]["value"].as_f64(), same["p"].as_f64()), (Some(0.0), Some(1.0)));
    assert!(other["same"]["value"].as_f64().unwrap() < 1.0, "{other}");
    for (file, wanted) in [("r.md", "| same answer |"), ("r.html", "<th>same answer</th>")] {
        assert!(std::fs::read_to_string(dir.path().join(file)).unwrap().contains(wanted), "{file}");
    }

    // Alone, on fewer of them, and beside a text.
    let alone =
        json(&quantize(dir.path(), &["eval", files[0], "--task", "q.jsonl", "--questions", "10", "--format", "json"]));
    assert_eq!(alone["tasks"][0]["questions"], 10);
    let every_third: Vec<_> = (0..10).map(|i| same["answers"][3 * i].clone()).collect();
    assert_eq!(alone["tasks"][0]["base"]["answers"], serde_json::Value::from(every_third));
    let text = text();
    let both = [
        "eval",
        files[0],
        "--text",
        str(&text),
        "--chunks",
        "2",
        "--ctx",
        "64",
        "--task",
        "q.jsonl",
        "--format",
        "json",
    ];
    let both = json(&quantize(dir.path(), &both));
    assert!(both["base"]["ppl"]["value"].as_f64().unwrap() > 1.0);
    assert_eq!(both["tasks"][0]["base"]["answers"], same["answers"]);

    // Mistakes.
    let bad = |args: &[&str], code, said: &[&str]| fails(&quantize(dir.path(), args), code, said);
    bad(&["compare", str(&model), files[0], "--task", "q.jsonl", "--max-kld", "1"], 2, &["a quality gate", "--text"]);
    bad(&["eval", files[0], "--task", "q.jsonl", "--chunks", "3"], 2, &["--chunks", "--text"]);
    bad(&["eval", files[0], "--questions", "3"], 2, &["--task"]);
    bad(&["eval", files[0], "--task", "r.md"], 3, &["r.md", "not in a known format", "JSON lines"]);
}

#[test]
fn a_cache_of_fewer_bits_costs_what_it_costs() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    let common = ["--text", str(&text), "--ctx", "128", "--chunks", "4", "--format", "json", "-t", "2"];
    let kld = |cache: &str| {
        let args = [&["compare", str(&model), str(&model), "--kv-cache", cache], &common[..]].concat();
        let report = json(&quantize(dir.path(), &args));
        assert_eq!(report["method"]["kv_cache"], cache);
        report["candidates"][0]["stats"]["kld"]["value"].as_f64().unwrap()
    };
    let [f16, q8, q4, mixed] = ["f16", "q8_0", "q4_0", "q8_0,q4_0"].map(kld);
    assert!(f16 < q8 && q8 < mixed && mixed < q4 && f16 < 1e-5, "{f16} {q8} {mixed} {q4}");
    let args = [&["eval", str(&model), "--kv-cache", "q6_k"], &common[..]].concat();
    fails(&quantize(dir.path(), &args), 2, &["q6_k", "q8_0", "fp8"]);
}

#[test]
fn embedding_models_are_compared_by_the_cosine_of_their_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (repo("tests/lineages/eurobert"), text());
    let made = quantize(dir.path(), &["--to", "q8_0,q4_0", str(&model)]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(
        stderr(&made).contains("checked: cosine 0.99") && stderr(&made).contains("over 2 chunks"),
        "{}",
        stderr(&made)
    );
    let cut = ["--text", str(&text), "--ctx", "64", "--chunks", "12"];
    let compare = |more: &[&str]| {
        let models = ["compare", str(&model), "eurobert-Q8_0.gguf", "eurobert-Q4_0.gguf"];
        quantize(dir.path(), &[&models[..], &cut, more].concat())
    };
    let report = json(&compare(&["--format", "json", "--report", "r.html", "--report", "r.md", "--report", "r.json"]));
    let cosine = |i: usize, key: &str| report["candidates"][i]["cosine"][key].clone();
    let mean = |i: usize| cosine(i, "mean")["value"].as_f64().unwrap();
    assert!(mean(0) > 0.999 && mean(1) > 0.9 && 1.0 - mean(1) > 10.0 * (1.0 - mean(0)), "{} {}", mean(0), mean(1));
    assert!(cosine(1, "worst").as_f64().unwrap() < mean(1) && cosine(1, "vectors") == 12);
    let vectors = &report["base"]["vectors"];
    assert_eq!((vectors["width"].as_u64(), vectors["pooling"].as_str()), (Some(64), Some("mean")));
    assert!(report["base"].get("ppl").is_none() && report["candidates"][0].get("stats").is_none());
    assert!(!report["candidates"][1]["tensors"].as_array().unwrap().is_empty());
    for file in ["r.html", "r.md"] {
        let rendered = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(rendered.contains("mean cosine") && !rendered.contains("nats"), "{file}: {rendered}");
    }
    let again = quantize(dir.path(), &["report", "r.json"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("mean cosine"), "{}", stderr(&again));

    fails(
        &compare(&["--min-cosine", "0.9995"]),
        6,
        &["quality gate failed", "Q4_0: mean cosine", "below the limit of 0.9995"],
    );
    assert!(compare(&["--min-cosine", "0.5", "--quiet"]).status.success());
    fails(&compare(&["--max-kld", "1"]), 2, &["gives vectors of texts", "--min-cosine"]);
    fails(&compare(&["--min-cosine", "2"]), 2, &["2 is no limit for the mean cosine"]);
    fails(&compare(&["--ablate"]), 4, &["an ablation needs logits"]);
    let llama = crate::common::tiny();
    let args = ["compare", &llama, &llama, "--text", str(&text), "--ctx", "64", "--min-cosine", "0.9"];
    fails(&quantize(dir.path(), &args), 2, &["gives logits", "--max-kld"]);

    let eval = |more: &[&str]| quantize(dir.path(), &[&["eval", "eurobert-Q8_0.gguf"], &cut[..], more].concat());
    let said = eval(&[]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("vectors of 64 numbers") && said.contains("in the middle"), "{said}");
    fails(&eval(&["--save-logits", "x.kld"]), 4, &["a file of logits needs logits"]);
    let out = quantize(dir.path(), &["generate", "eurobert-Q8_0.gguf", "-p", "x"]);
    fails(&out, 4, &["generating text needs logits, and this model gives vectors of texts"]);
}

#[test]
fn prompts_come_from_standard_input_and_answers_go_out_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("tiny-llama");
    let run = |prompt: &str, input: &str| {
        let mut command = assert_cmd::Command::from_std(command(dir.path(), &["generate", str(&model), "-p", prompt]));
        let out = command.args(["-n", "8", "--format", "json", "--quiet"]).write_stdin(input).assert().success();
        serde_json::from_slice::<serde_json::Value>(&out.get_output().stdout).unwrap()
    };
    let (piped, typed) = (run("-", "The file\n"), run("The file", ""));
    assert_eq!((&piped["tokens"], &piped["text"]), (&typed["tokens"], &typed["text"]));
    assert_eq!(typed["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(typed["finish_reason"], "length");
    for wrong in [["--temp", "-1"], ["--top-p", "0"], ["--top-k", "5"]] {
        let args = [&["generate", str(&model), "-p", "x"], &wrong[..]].concat();
        fails(&quantize(dir.path(), &args), 2, &[wrong[0]]);
    }
}

#[test]
fn continuations_part_where_candidates_differ() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text) = (model("tiny-llama"), text());
    ok(quantize(dir.path(), &["--to", "f32,q2_k", str(&model), "-o", "./", "--no-check", "--quiet"]));
    let args = ["compare", str(&model), "tiny-llama-F32.gguf", "tiny-llama-Q2_K.gguf", "--text", str(&text)];
    let more = ["--ctx", "64", "--chunks", "4", "--continuations", "20", "--length", "40", "--report", "r.html"];
    let report = json(&quantize(dir.path(), &[&args[..], &more, &["--format", "json"]].concat()));
    let found = &report["continuations"];
    assert_eq!((&found["starts"], &found["prompt"], &found["length"]), (&20.into(), &32.into(), &40.into()));
    // The same weights say the same.
    assert!(found["candidates"][0]["first"].as_array().unwrap().iter().all(|at| at.is_null()));
    assert_eq!(found["candidates"][0]["equal"][0]["share"]["value"], 1.0);
    let q2 = &found["candidates"][1];
    assert!(q2["quartiles"][1].as_u64().unwrap() < 32, "{q2}");
    assert!(q2["equal"][0]["share"]["value"].as_f64().unwrap() < 0.5);
    let page = std::fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert!(page.contains("Greedy continuations of 20 prompts") && page.contains("Side by side"));
    let samples = found["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for sample in samples {
        assert_eq!(sample["candidates"][0], sample["base"]);
        assert!(!sample["prompt"].as_str().unwrap().is_empty());
    }
    assert!(samples.iter().any(|sample| sample["candidates"][1] != sample["base"]), "{samples:?}");
    let out = ok(quantize(dir.path(), &[&args[..], &more[..8]].concat()));
    assert!(out.contains("first difference") && out.contains("equal after 32"), "{out}");
    for (more, part) in
        [(&["--continuations", "2", "--length", "500"][..], "context"), (&["--length", "5"], "continuations")]
    {
        fails(&quantize(dir.path(), &[&args[..], more].concat()), 2, &[part]);
    }
}

#[test]
fn losses_are_told_by_position_in_long_windows() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("tiny-llama");
    ok(quantize(dir.path(), &["--to", "q4_0", str(&model), "--no-check", "--quiet"]));
    let compare = |ctx: &str| {
        let text = text();
        let args =
            ["compare", str(&model), "tiny-llama-Q4_0.gguf", "--text", str(&text), "--chunks", "2", "--ctx", ctx];
        let report =
            json(&quantize(dir.path(), &[&args[..], &["--format", "json", "--report", "r.txt", "--force"]].concat()));
        (report["candidates"][0].clone(), std::fs::read_to_string(dir.path().join("r.txt")).unwrap())
    };
    let (candidate, text) = compare("512");
    let ranges = candidate["positions"].as_array().unwrap();
    assert_eq!(ranges.len(), 3);
    let mean: f64 = ranges.iter().map(|r| r["kld"]["value"].as_f64().unwrap()).sum::<f64>() / ranges.len() as f64;
    let whole = candidate["stats"]["kld"]["value"].as_f64().unwrap();
    assert!((mean / whole - 1.0).abs() < 0.05, "{mean} {whole}");
    assert!(!text.contains("number of tokens before"));
    assert!(text.lines().all(|line| line.contains("/") || line.chars().count() <= 80), "{text}");
}
