//! Converting, planning, inspecting and verifying, as a user runs them.

use crate::common::*;
use quantize::convert::Recipe;
use quantize::gguf::{Array, Value, read_header};
use quantize::source::{Checkpoint, Dtype};
use std::path::Path;
use std::process::Command;

/// Every tensor of a file: name, type, SHA-256 of the stored bytes.
fn tensors(path: &Path) -> Vec<(String, String, String)> {
    let ckpt = Checkpoint::open(path).unwrap();
    let read = |t: &quantize::source::TensorMeta| {
        let mut bytes = vec![0; t.bytes() as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        (t.name.clone(), t.dtype.to_string(), sha256(&bytes))
    };
    ckpt.tensors().iter().map(read).collect()
}

#[test]
fn the_f16_file_of_every_family_is_the_converters() {
    let dir = tempfile::tempdir().unwrap();
    for folder in conformance() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        ok(quantize(dir.path(), &["--to", "f16,q8_0", folder.to_str().unwrap()]));
        let path = dir.path().join(format!("{name}-F16.gguf"));
        let text = std::fs::read(folder.join("expected_gguf.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let ours = tensors(&path);
        let theirs = expected["tensors"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let header = read_header(&path).unwrap();
        for ((tensor, ty, digest), want) in ours.iter().zip(theirs) {
            let dims: Vec<u64> = want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            assert_eq!(want["name"], **tensor, "{name}");
            assert_eq!(want["type"], **ty, "{name} {tensor}");
            assert_eq!(header.find(tensor).unwrap().dims, dims, "{name} {tensor}");
            assert_eq!(want["sha256"], **digest, "{name} {tensor}");
        }
        for (key, want) in expected["metadata"].as_object().unwrap() {
            let value = header.metadata.get(key).unwrap_or_else(|| panic!("{name}: no {key}"));
            let same = match (value, &want["value"]) {
                (Value::String(v), w) => w == v.as_str(),
                (Value::U32(v), w) => want["type"][0] == "UINT32" && w == *v,
                (Value::Bool(v), w) => w == *v,
                (Value::F32(v), w) => w.as_f64().unwrap() as f32 == *v,
                // The digest is of Python's json.dumps, which puts ", " between items.
                (Value::Array(Array::String(v)), w) => {
                    let items: Vec<String> = v.iter().map(|s| serde_json::to_string(s).unwrap()).collect();
                    w["length"] == v.len() && w["sha256"] == *sha256(format!("[{}]", items.join(", ")).as_bytes())
                }
                (Value::Array(Array::I32(v)), w) => {
                    let items: Vec<String> = v.iter().map(|n| n.to_string()).collect();
                    w["length"] == v.len() && w["sha256"] == *sha256(format!("[{}]", items.join(", ")).as_bytes())
                }
                (Value::Array(Array::F32(v)), w) => {
                    let items: Vec<String> = v.iter().map(|x| format!("{:?}", f64::from(*x))).collect();
                    w["length"] == v.len() && w["sha256"] == *sha256(format!("[{}]", items.join(", ")).as_bytes())
                }
                other => panic!("{name}: {key}: {other:?}"),
            };
            assert!(same, "{name}: {key}: {value:?} against {want}");
        }
        let known = |key: &str| key.starts_with("quantize.") || key == "llama.attention.sliding_window";
        for (key, _) in header.metadata.iter() {
            assert!(known(key) || expected["metadata"].get(key).is_some(), "{name}: {key} is one too many");
        }
    }
}

#[test]
fn every_preset_writes_a_file_that_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let plain = "f32,f16,bf16,q8_0,q4_0,q4_1,q5_0,q5_1,q2_k,q3_k_s,q3_k_m,q3_k_l,q4_k_s,q4_k_m,q5_k_s,q5_k_m,q6_k,iq4_nl,iq4_xs,tq1_0,tq2_0";
    let summary = ok(quantize(dir.path(), &["--to", plain, &tiny(), "--format", "json"]));
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let artifacts = summary["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.len(), 21);
    for artifact in artifacts {
        let path = artifact["paths"][0].as_str().unwrap();
        let size = std::fs::metadata(dir.path().join(path)).unwrap().len();
        assert_eq!(artifact["bytes"], size, "{path}");
        ok(quantize(dir.path(), &["verify", path, "--source", &tiny()]));
    }
    // What the plan said is what was written.
    let plan = ok(quantize(dir.path(), &["plan", &tiny(), "--to", plain, "--format", "json"]));
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    for (target, artifact) in plan["targets"].as_array().unwrap().iter().zip(artifacts) {
        let (planned, written) = (target["file_bytes"].as_f64().unwrap(), artifact["bytes"].as_f64().unwrap());
        assert!((planned / written - 1.0).abs() < 0.001, "{}: {planned} {written}", artifact["type"]);
    }
}

#[test]
fn types_that_need_an_importance_matrix_are_refused_before_work_starts() {
    let dir = tempfile::tempdir().unwrap();
    let out = quantize(dir.path(), &["--to", "iq2_xxs", &tiny()]);
    fails(&out, 4, &["importance matrix", "quantize calibrate"]);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn bytes_do_not_depend_on_threads_runs_or_the_source_container() {
    let dir = tempfile::tempdir().unwrap();
    let run = |threads: &str, out: &str| {
        ok(quantize(dir.path(), &["--to", "q4_k_m", &tiny(), "-t", threads, "-o", out]));
        std::fs::read(dir.path().join(out)).unwrap()
    };
    let one = run("1", "one.gguf");
    assert!(one == run("2", "two.gguf") && one == run("7", "seven.gguf"));
    ok(quantize(dir.path(), &["--to", "f16", &tiny()]));
    // llama-quantize's order of arguments, from the 16-bit GGUF file.
    ok(quantize(dir.path(), &["tiny-llama-F16.gguf", "via.gguf", "Q4_K_M", "2"]));
    assert_eq!(tensors(&dir.path().join("via.gguf")), tensors(&dir.path().join("one.gguf")));
    let (a, b) =
        (read_header(&dir.path().join("one.gguf")).unwrap(), read_header(&dir.path().join("via.gguf")).unwrap());
    for (key, value) in a.metadata.iter().filter(|(k, _)| !k.starts_with("quantize.source")) {
        assert_eq!(b.metadata.get(key), Some(value), "{key}");
    }
}

#[test]
fn outputs_go_where_they_are_asked_to_and_replace_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let printed = ok(quantize(dir.path(), &["--to", "q8_0,15", &tiny()]));
    assert_eq!(printed, "tiny-llama-Q8_0.gguf\ntiny-llama-Q4_K_M.gguf\n");
    let before = std::fs::read(dir.path().join("tiny-llama-Q8_0.gguf")).unwrap();
    fails(&quantize(dir.path(), &["--to", "q8_0", &tiny()]), 2, &["exists", "--force"]);
    assert!(before == std::fs::read(dir.path().join("tiny-llama-Q8_0.gguf")).unwrap());
    ok(quantize(dir.path(), &["--to", "q8_0", &tiny(), "--force"]));
    ok(quantize(dir.path(), &["--to", "q8_0", &tiny(), "-o", "folder/"]));
    ok(quantize(dir.path(), &["--to", "q8_0,q4_0", &tiny(), "-o", "x-{type}.gguf", "--modelfile"]));
    assert!(dir.path().join("folder/tiny-llama-Q8_0.gguf").exists());
    let modelfile = std::fs::read_to_string(dir.path().join("x-Q4_0.Modelfile")).unwrap();
    assert_eq!(modelfile, "FROM ./x-Q4_0.gguf\n");
    fails(&quantize(dir.path(), &["--to", "q8_0,q4_0", &tiny(), "-o", "one.gguf"]), 2, &["{type}"]);
    let count = names(dir.path()).len();
    ok(quantize(dir.path(), &["--to", "q6_k", &tiny(), "--dry-run"]));
    assert_eq!(names(dir.path()).len(), count, "a dry run writes nothing");
    assert!(!names(dir.path()).iter().any(|n| n.contains("partial")));
}

#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    for (blocks, args) in
        [("100", "--to q4_0"), ("100", "--to nf4 -o folder"), ("10", "calibrate --calibration-tokens 512")]
    {
        let output = if args.contains("-o") { "" } else { "-o out.gguf" };
        let command = format!(
            "ulimit -f {blocks}; exec '{}' {args} '{}' {output} --quiet",
            env!("CARGO_BIN_EXE_quantize"),
            tiny()
        );
        let out = Command::new("sh").current_dir(dir.path()).args(["-c", &command]).output().unwrap();
        fails(&out, 5, &["File too large"]);
        assert!(names(dir.path()).is_empty(), "{args}: {:?}", names(dir.path()));
    }
}

#[test]
fn types_follow_what_is_asked_tensor_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let types = |args: &[&str]| {
        let model = tiny();
        let args = [&["--to", "q4_k_m", &model, "--force", "-o", "x.gguf"], args].concat();
        ok(quantize(dir.path(), &args));
        let header = read_header(&dir.path().join("x.gguf")).unwrap();
        move |name: &str| header.find(name).unwrap().ty.name()
    };
    let asked =
        types(&["--tensor-type", "ffn_down=q8_0", "--tensor-type", r"blk\.2\.=q5_0", "--token-embedding-type", "q6_k"]);
    assert_eq!(asked("blk.2.ffn_down.weight"), "Q8_0", "the first rule that matches wins");
    assert_eq!(asked("blk.2.attn_q.weight"), "Q5_0");
    assert_eq!(asked("token_embd.weight"), "Q6_K");
    let pure = types(&["--pure"]);
    assert!(pure("blk.0.ffn_down.weight") == "Q4_K" && pure("token_embd.weight") == "Q4_K");
    fails(
        &quantize(dir.path(), &["--to", "q8_0", &tiny(), "--tensor-type", "nothing=q4_0"]),
        2,
        &["'nothing=Q4_0'", "no tensor"],
    );
    fails(&quantize(dir.path(), &["--to", "q8_0", &tiny(), "--tensor-type", "ffn_down=q9"]), 2, &["'q9'"]);
    fails(&quantize(dir.path(), &["--to", "q9_z", &tiny()]), 2, &["q9_z", "q4_k_m"]);

    let untied = model("llama");
    let untied = untied.to_str().unwrap();
    ok(quantize(dir.path(), &["--to", "q8_0", untied, "--leave-output-tensor", "-o", "l.gguf"]));
    assert_eq!(read_header(&dir.path().join("l.gguf")).unwrap().find("output.weight").unwrap().ty.name(), "F16");
    ok(quantize(dir.path(), &["--to", "q4_0", untied, "--output-tensor-type", "q5_1", "-o", "o.gguf"]));
    assert_eq!(read_header(&dir.path().join("o.gguf")).unwrap().find("output.weight").unwrap().ty.name(), "Q5_1");
}

#[test]
fn fallbacks_are_reported_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("llama");
    let model = model.to_str().unwrap();
    let out = quantize(dir.path(), &["--to", "q4_k_m", model, "--on-fallback", "error"]);
    fails(&out, 4, &["rows of 64", "256", "--on-fallback warn"]);
    let out = quantize(dir.path(), &["--to", "q4_k_m", model, "-o", "told.gguf"]);
    assert!(stderr(&out).contains("Q5_0 instead of Q4_K"), "{}", stderr(&out));
    let out = quantize(dir.path(), &["--to", "q4_k_m", model, "--format", "json"]);
    assert_eq!(stderr(&out), "");
    let summary: serde_json::Value = serde_json::from_str(&ok(out)).unwrap();
    let rows = summary["artifacts"][0]["ledger"].as_array().unwrap();
    assert_eq!(summary["artifacts"][0]["fallbacks"], rows.len());
    assert!(
        rows.iter().any(|r| r["kind"] == "fallback" && r["tensor"] == "blk.0.ffn_gate.weight" && r["done"] == "Q5_0")
    );
}

#[test]
fn metadata_is_overridden_and_says_where_the_file_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let rules = ["--override-kv", "llama.context_length=int:256", "--override-kv", "general.name=str:Other"];
    let model = tiny();
    ok(quantize(dir.path(), &[&["--to", "q8_0", &model, "-o", "x.gguf"], &rules[..]].concat()));
    let m = read_header(&dir.path().join("x.gguf")).unwrap().metadata;
    assert_eq!(m.get("llama.context_length"), Some(&Value::U32(256)));
    assert_eq!(m.str("general.name"), Some("Other"));
    assert_eq!(m.get("general.file_type"), Some(&Value::U32(7)));
    let weights = std::fs::read(repo("tests/fixtures/tiny-llama/model.safetensors")).unwrap();
    assert_eq!(m.strings("quantize.source.sha256"), Some(&[sha256(&weights)][..]));
    let recipe = Recipe::from_json(m.str("quantize.recipe").unwrap()).unwrap();
    assert_eq!(recipe.outputs, Recipe::to(["q8_0"]).unwrap().outputs);
    let keys: Vec<&str> = recipe.metadata.iter().map(|o| o.key.as_str()).collect();
    assert_eq!(keys, ["llama.context_length", "general.name"]);
    fails(&quantize(dir.path(), &["--to", "q8_0", &tiny(), "--override-kv", "a=b"]), 2, &["a=b", "KEY=TYPE:VALUE"]);
}

#[test]
fn split_files_are_named_keyed_and_read_as_llama_cpp_does() {
    let dir = tempfile::tempdir().unwrap();
    let printed = ok(quantize(dir.path(), &["--to", "f16", &tiny(), "--split-max-size", "3M"]));
    let shards: Vec<&str> = printed.lines().collect();
    assert_eq!(shards[0], format!("tiny-llama-F16-00001-of-{:05}.gguf", shards.len()));
    assert!(shards.len() >= 4);
    let mut found = 0;
    for (no, shard) in shards.iter().enumerate() {
        let header = read_header(&dir.path().join(shard)).unwrap();
        assert_eq!(header.metadata.get("split.no"), Some(&Value::U16(no as u16)));
        assert_eq!(header.metadata.get("split.count"), Some(&Value::U16(shards.len() as u16)));
        assert_eq!(header.metadata.get("split.tensors.count"), Some(&Value::I32(56)));
        assert_eq!(header.metadata.get("general.name").is_some(), no == 0, "metadata is in the first shard only");
        assert!(header.tensors.iter().map(|t| t.bytes().unwrap()).sum::<u64>() <= 3_000_000);
        found += header.tensors.len();
    }
    assert_eq!(found, 56);
    // A split source gives the same file as the folder, and as many shards where that is asked for.
    ok(quantize(dir.path(), &["--to", "q4_k_m", shards[0], "-o", "a.gguf"]));
    ok(quantize(dir.path(), &["--to", "q4_k_m", &tiny(), "-o", "b.gguf"]));
    assert_eq!(tensors(&dir.path().join("a.gguf")), tensors(&dir.path().join("b.gguf")));
    let kept = ok(quantize(dir.path(), &["--to", "q8_0", shards[0], "--keep-split"]));
    assert_eq!(kept.lines().count(), shards.len());
    ok(quantize(dir.path(), &["verify", kept.lines().next().unwrap(), "--source", &tiny()]));
}

#[test]
fn what_is_quantized_already_is_not_quantized_again_unasked() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "q8_0", &tiny()]));
    let args = ["--to", "q4_0", "tiny-llama-Q8_0.gguf", "-o", "x.gguf"];
    fails(&quantize(dir.path(), &args), 3, &["already quantized", "--allow-requantize"]);
    ok(quantize(dir.path(), &[&args[..], &["--allow-requantize"]].concat()));
}

#[test]
fn verify_finds_a_changed_file_and_another_source() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "q4_k_m", &tiny()]));
    let path = dir.path().join("tiny-llama-Q4_K_M.gguf");
    let header = read_header(&path).unwrap();
    let tensor = header.find("blk.3.ffn_up.weight").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(header.data_start + tensor.offset) as usize + 77] ^= 1;
    std::fs::write(dir.path().join("changed.gguf"), &bytes).unwrap();
    fails(&quantize(dir.path(), &["verify", "changed.gguf"]), 3, &["changed.gguf", "quantize.data.sha256"]);
    let out = quantize(dir.path(), &["verify", "changed.gguf", "--source", &tiny()]);
    fails(&out, 3, &["changed.gguf", "blk.3.ffn_up.weight", "differ"]);
    let other = model("llama");
    fails(
        &quantize(dir.path(), &["verify", "changed.gguf", "--source", other.to_str().unwrap()]),
        3,
        &["changed.gguf"],
    );
    // An infinite scale.
    let at = (header.data_start + tensor.offset) as usize;
    bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    std::fs::write(dir.path().join("inf.gguf"), &bytes).unwrap();
    fails(&quantize(dir.path(), &["verify", "inf.gguf"]), 3, &["inf.gguf", "blk.3.ffn_up.weight"]);
}

#[test]
fn inspect_and_plan() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "q4_k_m", &tiny()]));
    let text = ok(quantize(dir.path(), &["inspect", "tiny-llama-Q4_K_M.gguf"]));
    assert!(text.contains("general.architecture") && text.contains("blk.0.attn_q.weight") && text.contains("Q4_K"));
    let json = ok(quantize(dir.path(), &["inspect", &tiny(), "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 56);
    let text = ok(quantize(dir.path(), &["plan", &tiny(), "--device", "24GB", "--all"]));
    assert!(text.contains("24GB") && text.contains("blk.5.ffn_down.weight"));
    // A configuration alone is enough for a plan.
    std::fs::copy(model("tiny-llama").join("config.json"), dir.path().join("config.json")).unwrap();
    let from = |model: &str| {
        let plan = ok(quantize(dir.path(), &["plan", model, "--to", "q4_k_m", "--format", "json"]));
        serde_json::from_str::<serde_json::Value>(&plan).unwrap()["targets"][0]["tensor_bytes"].clone()
    };
    assert_eq!(from("config.json"), from(&tiny()));
    assert!(ok(quantize(dir.path(), &["--help"])).contains("Examples:"));
}

#[test]
fn shells_complete_types_and_every_command_has_its_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(quantize(dir.path(), &["completions", shell]));
        assert!(script.contains("q4_k_m") && script.contains("nvfp4"), "{shell}");
    }
    assert!(ok(quantize(dir.path(), &["completions", "powershell"])).contains("quantize"));
    // What bash puts in for `quantize --to q4<TAB>` and the like.
    std::fs::write(dir.path().join("script"), ok(quantize(dir.path(), &["completions", "bash"]))).unwrap();
    let complete = |words: &str| {
        let at = words.split(' ').count() - 1;
        let run = format!(
            "source ./script; COMP_WORDS=({words}); COMP_CWORD={at}; \
             _quantize quantize \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let out = std::process::Command::new("bash").args(["-c", &run]).current_dir(dir.path()).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    let mut names_of_four_bits = complete("quantize --to q4");
    names_of_four_bits.sort();
    assert_eq!(names_of_four_bits, ["q4_0", "q4_1", "q4_k_m", "q4_k_s"]);
    assert!(complete("quantize --to mlx").contains(&"mlx-4bit".to_string()));
    assert!(complete("quantize plan model --to aw").contains(&"awq".to_string()));
    assert!(!complete("quantize --like aw").contains(&"awq".to_string()), "a budget is for GGUF files");

    ok(quantize(dir.path(), &["man", "--dir", "pages"]));
    let pages = names(&dir.path().join("pages"));
    let program = std::fs::read_to_string(dir.path().join("pages/quantize.1")).unwrap();
    assert_eq!(program, ok(quantize(dir.path(), &["man"])));
    let named: Vec<String> = program
        .lines()
        .filter_map(|line| Some(format!("{}.1", line.strip_suffix("(1)")?.replace("\\-", "-"))))
        .collect();
    assert!(named.contains(&"quantize-plan.1".to_string()));
    assert!(named.iter().all(|page| pages.contains(page)), "{named:?} {pages:?}");
    assert_eq!(pages.len(), named.len() + 1);
    assert!(ok(quantize(dir.path(), &["man", "plan"])).contains(".TH quantize-plan"));
    fails(&quantize(dir.path(), &["man", "nothing"]), 2, &["there is no command 'nothing'"]);
}

#[test]
fn a_conversion_ends_with_the_command_that_runs_its_result() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("llama");
    let model = model.to_str().unwrap();
    let run = |more: &[&str]| {
        let out = quantize(
            dir.path(),
            &[&["--to", "q8_0,q4_0,fp8,mlx-4bit,nf4", model, "-o", "a b/", "--force"], more].concat(),
        );
        let said = stderr(&out);
        ok(out);
        said.lines().filter_map(|line| Some(line.strip_prefix("run it: ")?.to_string())).collect::<Vec<_>>()
    };
    std::fs::create_dir(dir.path().join("a b")).unwrap();
    let commands = [
        "llama-completion -m 'a b/llama-Q8_0.gguf' -p Hello",
        "vllm serve 'a b/llama-fp8'",
        "mlx_lm.generate --model 'a b/llama-mlx-4bit' --prompt Hello",
        "transformers serve 'a b/llama-nf4'",
    ];
    assert_eq!(run(&[]), commands);
    assert!(run(&["--quiet"]).is_empty());
}

#[test]
fn plain_types_of_the_source_are_copied_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "f16", &tiny()]));
    let source = Checkpoint::open(Path::new(&tiny())).unwrap();
    let file = Checkpoint::open(&dir.path().join("tiny-llama-F16.gguf")).unwrap();
    let pairs = [("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight")];
    for (from, to) in pairs {
        let (a, b) = (&source.tensors()[source.find(from).unwrap()], &file.tensors()[file.find(to).unwrap()]);
        assert_eq!(b.dtype, Dtype::Ggml(quantize::quant::GgmlType::F16));
        let (mut x, mut y) = (vec![0; a.bytes() as usize], vec![0; b.bytes() as usize]);
        source.read(a, 0, &mut x).unwrap();
        file.read(b, 0, &mut y).unwrap();
        assert!(x == y, "{to}");
    }
}

#[test]
fn the_source_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "f16", &tiny(), "-o", "a.gguf"]));
    let before = std::fs::read(dir.path().join("a.gguf")).unwrap();
    let out = quantize(dir.path(), &["--to", "q8_0", "a.gguf", "-o", "./a.gguf", "--force"]);
    fails(&out, 2, &["a.gguf is the source itself"]);
    let shards = ok(quantize(dir.path(), &["--to", "f16", &tiny(), "-o", "s.gguf", "--split-max-size", "6M"]));
    let first = shards.lines().next().unwrap();
    let out = quantize(dir.path(), &["--to", "f16", first, "-o", "s.gguf", "--split-max-size", "6M", "--force"]);
    fails(&out, 2, &["is the source itself"]);
    assert!(before == std::fs::read(dir.path().join("a.gguf")).unwrap());
    assert_eq!(names(dir.path()).len(), 1 + shards.lines().count());
}

#[test]
fn keys_that_describe_the_file_are_the_programs() {
    let dir = tempfile::tempdir().unwrap();
    for (rule, why) in [
        ("general.alignment=int:64", "describes the file"),
        ("split.count=int:3", "describes the file"),
        ("quantize.source.sha256=str:x", "describes the file"),
        ("general.file_type=str:x", "another type"),
        ("tokenizer.ggml.tokens=str:x", "another type"),
        ("x.y=float:nan", "finite"),
        ("llama.rope.scaling.type=str:banana", "llama.cpp could not use"),
    ] {
        fails(
            &quantize(dir.path(), &["--to", "q8_0", &tiny(), "--override-kv", rule]),
            2,
            &[rule.split('=').next().unwrap(), why],
        );
    }
    assert!(names(dir.path()).is_empty());
}

/// A GGUF file with another alignment, a NaN among its metadata and the provenance of an earlier run.
#[test]
fn layout_and_provenance_of_a_gguf_source_are_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "f16", &tiny(), "-o", "a.gguf"]));
    let bytes = std::fs::read(dir.path().join("a.gguf")).unwrap();
    let header = read_header(&dir.path().join("a.gguf")).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.set("general.alignment", 256u32);
    metadata.set("some.number", f32::NAN);
    metadata.set("quantize.imatrix.file", "old.gguf");
    let mut infos = header.tensors.clone();
    quantize::gguf::layout(&mut infos, 256).unwrap();
    let mut other = quantize::gguf::encode_header(&metadata, &infos, 256);
    for (from, to) in header.tensors.iter().zip(&infos) {
        let start = (header.data_start + from.offset) as usize;
        other.resize(other.len().next_multiple_of(256), 0);
        assert_eq!(other.len() as u64 % 256, to.offset % 256);
        other.extend(&bytes[start..start + from.bytes().unwrap() as usize]);
    }
    other.resize(other.len().next_multiple_of(256), 0);
    std::fs::write(dir.path().join("b.gguf"), other).unwrap();
    ok(quantize(dir.path(), &["--to", "q4_0", "b.gguf", "-o", "c.gguf", "--no-source-hash"]));
    ok(quantize(dir.path(), &["--to", "q4_0", &tiny(), "-o", "d.gguf"]));
    ok(quantize(dir.path(), &["verify", "c.gguf", "--source", "b.gguf"]));
    assert_eq!(tensors(&dir.path().join("c.gguf")), tensors(&dir.path().join("d.gguf")));
    let m = read_header(&dir.path().join("c.gguf")).unwrap().metadata;
    assert!(m.f32("some.number").is_some_and(f32::is_nan));
    for key in ["general.alignment", "quantize.imatrix.file", "quantize.source.sha256"] {
        assert_eq!(m.get(key), None, "{key}");
    }
}

#[test]
fn rules_come_from_a_file_too_and_must_have_an_effect() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rules"), "# the last layers\n\nblk\\.[45]\\.ffn_down=q8_0\nATTN_V=q6_k\n").unwrap();
    ok(quantize(dir.path(), &["--to", "q4_0", &tiny(), "--tensor-type-file", "rules", "-o", "x.gguf"]));
    let header = read_header(&dir.path().join("x.gguf")).unwrap();
    let ty = |name: &str| header.find(name).unwrap().ty.name();
    assert_eq!(ty("blk.5.ffn_down.weight"), "Q8_0");
    assert_eq!(ty("blk.3.ffn_down.weight"), "Q4_0");
    assert_eq!(ty("blk.0.attn_v.weight"), "Q6_K");
    let refused = |rule: &str, parts: &[&str]| {
        fails(&quantize(dir.path(), &["--to", "q8_0", &tiny(), "--tensor-type", rule]), 2, parts);
    };
    refused("norm=q8_0", &["norm=Q8_0", "stay as they are"]);
    refused("=q8_0", &["empty pattern"]);
    refused("(=q8_0", &["unclosed group"]);
    refused("ffn_down", &["REGEX=TYPE"]);
    let out = quantize(dir.path(), &["--to", "q8_0", &tiny(), "--leave-output-tensor", "--output-tensor-type", "q6_k"]);
    fails(&out, 2, &["--leave-output-tensor", "cannot be used with"]);
    assert_eq!(names(dir.path()), ["rules", "x.gguf"]);
}

#[test]
fn standard_output_is_for_results_and_quiet_is_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let model = model("llama");
    let model = model.to_str().unwrap();
    let out = quantize(dir.path(), &["--to", "q4_k_m,q8_0", model, "--format", "json", "--quiet"]);
    assert_eq!(stderr(&out), "");
    let summary: serde_json::Value = serde_json::from_str(&ok(out)).unwrap();
    assert_eq!(summary["artifacts"].as_array().unwrap().len(), 2);
    let out = quantize(dir.path(), &["verify", "llama-Q8_0.gguf", "--source", model, "--format", "json"]);
    let found: serde_json::Value = serde_json::from_str(&ok(out)).unwrap();
    assert_eq!((&found["sound"], &found["source"]["compared"]), (&true.into(), &30.into()));
    assert_eq!(found["source"]["differing"], serde_json::json!([]));
    // Errors leave standard output empty, also where JSON was asked for.
    let out = quantize(dir.path(), &["--to", "q8_0", "absent", "--format", "json"]);
    fails(&out, 3, &["absent: no such file or folder"]);
    assert!(out.stdout.is_empty());
}

#[test]
fn shards_by_count_of_tensors_and_of_the_sources_files() {
    let dir = tempfile::tempdir().unwrap();
    let printed = ok(quantize(dir.path(), &["--to", "q8_0", &tiny(), "--split-max-tensors", "20"]));
    assert_eq!(printed.lines().count(), 3);
    let held = |name: &str| read_header(&dir.path().join(name)).unwrap().tensors.len();
    assert_eq!(printed.lines().map(held).collect::<Vec<_>>(), [20, 20, 16]);
    for bad in [["--split-max-tensors", "0"], ["--split-max-size", "0"], ["--split-max-size", "big"]] {
        fails(&quantize(dir.path(), &[&["--to", "q8_0", &tiny()], &bad[..]].concat()), 2, &[bad[1]]);
    }
    let out = quantize(dir.path(), &["--to", "q8_0", &tiny(), "--split-max-tensors", "20"]);
    fails(&out, 2, &["00001-of-00003.gguf exists", "--force"]);
    // One file stays one file.
    assert_eq!(ok(quantize(dir.path(), &["--to", "q6_k", &tiny(), "--keep-split"])), "tiny-llama-Q6_K.gguf\n");
}

#[test]
fn plans_without_a_model_to_plan_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fails(&quantize(dir.path(), &["plan", "."]), 3, &["no config.json"]);
    let config = model("tiny-llama").join("config.json");
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(dir.path().join("config.json"), &text).unwrap();
    assert!(ok(quantize(dir.path(), &["plan", "."])).contains("Q4_K_M: 3.3 MB"), "q4_k_m is the default");
    std::fs::write(dir.path().join("other.json"), text.replace("LlamaForCausalLM", "UnheardForCausalLM")).unwrap();
    fails(
        &quantize(dir.path(), &["plan", "other.json"]),
        4,
        &["UnheardForCausalLM", "is not known here", "name the folder with its weights"],
    );
    std::fs::write(dir.path().join("other.json"), text.replace("LlamaForCausalLM", "LlamasForCausalLM")).unwrap();
    fails(
        &quantize(dir.path(), &["plan", "other.json"]),
        4,
        &["LlamasForCausalLM", "nearest that is: LlamaForCausalLM"],
    );
    std::fs::write(dir.path().join("other.json"), text.replace("LlamaForCausalLM", "MambaForCausalLM")).unwrap();
    fails(
        &quantize(dir.path(), &["plan", "other.json"]),
        4,
        &["a mamba model is not planned from its configuration alone", "name the folder"],
    );
    std::fs::write(dir.path().join("other.json"), text.replace("LlamaForCausalLM", "BertModel")).unwrap();
    fails(
        &quantize(dir.path(), &["plan", "other.json"]),
        4,
        &["a bert model is not planned from its configuration alone"],
    );
    std::fs::write(dir.path().join("other.json"), text.replace("2048", "\"many\"")).unwrap();
    fails(&quantize(dir.path(), &["plan", "other.json"]), 3, &["vocab_size"]);
}

#[test]
fn a_checkpoint_in_shards_gives_the_same_bytes_and_keeps_its_split_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(model("tiny-llama").join(name), folder.join(name)).unwrap();
    }
    let bytes = std::fs::read(model("tiny-llama").join("model.safetensors")).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for no in 0..2 {
        // Layers alternate between the shards.
        let shard = format!("model-{:05}-of-00002.safetensors", no + 1);
        let ours =
            |name: &str| name.split('.').any(|part| part.parse::<usize>().is_ok_and(|n| n % 2 == 1)) == (no == 1);
        let tensors: Vec<_> = whole.tensors().into_iter().filter(|(name, _)| ours(name)).collect();
        map.extend(tensors.iter().map(|(name, _)| (name.clone(), shard.clone().into())));
        safetensors::serialize_to_file(tensors, None, &folder.join(shard)).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    ok(quantize(dir.path(), &["--to", "q4_k_m", "m", "-o", "a.gguf"]));
    ok(quantize(dir.path(), &["--to", "q4_k_m", &tiny(), "-o", "b.gguf"]));
    // The same tensors; their order is that of the source, as with llama.cpp's converter.
    let sorted = |name: &str| {
        let mut all = tensors(&dir.path().join(name));
        all.sort();
        all
    };
    assert_eq!(sorted("a.gguf"), sorted("b.gguf"));
    ok(quantize(dir.path(), &["verify", "b.gguf", "--source", "m"]));
    let m = read_header(&dir.path().join("a.gguf")).unwrap().metadata;
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(m.strings("quantize.source.files").unwrap(), files);
    assert_eq!(
        m.strings("quantize.source.sha256").unwrap(),
        files.map(|f| sha256(&std::fs::read(folder.join(f)).unwrap()))
    );
    let kept = ok(quantize(dir.path(), &["--to", "q4_k_m", "m", "--keep-split"]));
    assert_eq!(kept, "m-Q4_K_M-00001-of-00002.gguf\nm-Q4_K_M-00002-of-00002.gguf\n");
    ok(quantize(dir.path(), &["verify", "m-Q4_K_M-00001-of-00002.gguf", "--source", "m"]));
}

#[test]
fn the_readmes_first_command_works_where_nothing_is_yet() {
    let readme = std::fs::read_to_string(repo("README.md")).unwrap();
    let command = readme.lines().find_map(|line| line.strip_prefix("cargo run --release -- ")).unwrap();
    let absolute = |word: &str| match word.starts_with("tests/") || word.starts_with("calibration/") {
        true => repo(word).into_os_string().into_string().unwrap(),
        false => word.to_string(),
    };
    let mut args: Vec<String> = command.split_whitespace().map(absolute).collect();
    args.extend(["--chunks".into(), "1".into(), "--quiet".into()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        ok(quantize(dir.path(), &args));
        let made = names(&dir.path().join("out"));
        assert_eq!(made.len(), 4, "{made:?}");
        assert!(made.contains(&"report.html".to_string()), "{made:?}");
    }
}
