//! Quantized checkpoint folders from the command line: what is in them, what is refused, and that a run which is killed
//! leaves nothing that looks finished and continues to the same bytes.

use crate::common::*;
use quantize::source::{Checkpoint, Dtype};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Header of the model's only safetensors file: name to (offsets in the file, shape).
fn header(file: &Path) -> BTreeMap<String, (std::ops::Range<u64>, Vec<usize>)> {
    let ckpt = Checkpoint::open(file).unwrap();
    ckpt.tensors().iter().map(|t| (t.name.clone(), (t.range.clone(), t.shape.clone()))).collect()
}

#[test]
fn every_family_becomes_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let formats = "fp8,int8,nf4,bnb-int8,mxfp4,nvfp4a16,mlx-4bit,w8a16,fp8-block";
    let mut families = 0;
    for name in FAMILIES {
        families += 1;
        let source = family(name);
        let all = format!("{formats},gptq,awq,w4a16,gptq-8bit-32g-v2");
        let args = ["--to", &all, &source, "-o", "out/", "--rounding", "nearest", "--format", "json", "--quiet"];
        let out: Value = serde_json::from_str(&ok(quantize(dir.path(), &args))).unwrap();
        let artifacts = out["artifacts"].as_array().unwrap();
        assert_eq!(artifacts.len(), 13);
        for artifact in artifacts {
            let folder = dir.path().join(artifact["paths"][0].as_str().unwrap());
            // It opens as a model whose weights are near the source's.
            let (was, is) = (Checkpoint::open(Path::new(&source)).unwrap(), Checkpoint::open(&folder).unwrap());
            let mut compared = 0;
            for t in is.tensors() {
                let Some(at) = was.find(&t.name) else { continue };
                let before = &was.tensors()[at];
                assert_eq!(before.shape, t.shape, "{name} {}", t.name);
                let read = |c: &Checkpoint, t: &quantize::source::TensorMeta| {
                    let mut out = vec![0.0; t.elements()];
                    c.read_f32(t, 0..out.len(), &mut Vec::new(), &mut out).unwrap();
                    out
                };
                let (a, b) = (read(&was, before), read(&is, t));
                let square = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                let error: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                let relative = square(&error) / square(&a).max(1e-30);
                assert!(relative < 0.02, "{name} {} {}: {relative}", artifact["type"], t.name);
                if t.dtype == before.dtype {
                    assert_eq!(a, b, "{name} {}", t.name);
                }
                compared += 1;
            }
            let dropped = out["dropped"].as_array().unwrap().len();
            assert_eq!(compared + dropped, was.tensors().len(), "{name} {}", artifact["type"]);
            // The configuration has the source's keys in their order, and a few more at the end: for mlx-lm also the older
            // names of keys that it reads.
            let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            let (before, after) = (json(&Path::new(&source).join("config.json")), json(&folder.join("config.json")));
            let mut expected = keys(&before);
            if artifact["type"] == "mlx-4bit" {
                let rope = &before["rope_parameters"];
                let older = [
                    ("rope_theta", rope.get("rope_theta").is_some()),
                    ("rope_scaling", rope.get("rope_type").is_some_and(|kind| kind != "default")),
                    ("num_experts", before.get("num_local_experts").is_some() && name != "mixtral"),
                    ("partial_rotary_factor", rope.get("partial_rotary_factor").is_some()),
                ];
                let lacking = |(key, newer): &(&str, bool)| *newer && before.get(*key).is_none();
                expected.extend(older.iter().filter(|row| lacking(row)).map(|(key, _)| key.to_string()));
                expected.push("quantization".into());
            }
            expected.push("quantization_config".into());
            assert_eq!(keys(&after), expected);
            for key in keys(&before) {
                assert_eq!(before[&key], after[&key]);
            }
            let manifest = json(&folder.join("quantize-manifest.json"));
            let file = std::fs::read(Path::new(&source).join("model.safetensors")).unwrap();
            let sha: String = Sha256::digest(&file).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(manifest["source"]["files"][0]["sha256"], sha);
            let tokenizer = names(Path::new(&source)).into_iter().find(|n| n.starts_with("tokenizer.")).unwrap();
            let read = |dir: &Path| std::fs::read(dir.join(&tokenizer)).unwrap();
            assert_eq!(read(&folder), read(Path::new(&source)));
        }
        // Nothing unfinished is left.
        assert!(names(&dir.path().join("out")).iter().all(|n| !n.contains(".partial")));
        let gptq = dir.path().join("out").join(format!("{name}-gptq"));
        let q = &json(&gptq.join("config.json"))["quantization_config"];
        assert_eq!(*q, json(&gptq.join("quantize_config.json")));
        assert_eq!((&q["desc_act"], &q["sym"], &q["bits"]), (&Value::Bool(false), &Value::Bool(true), &4.into()));
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
    assert_eq!(families, 12);
}

#[test]
fn a_tied_model_has_no_head_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "fp8", &family("qwen2"), "--quiet"]));
    let file = header(&dir.path().join("qwen2-fp8/model.safetensors"));
    assert!(!file.contains_key("lm_head.weight") && file.contains_key("model.embed_tokens.weight"));
}

#[test]
fn shards_are_what_was_asked_and_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--to", "int8", &family("llama"), "--quiet", "-o"];
    ok(quantize(dir.path(), &[&args[..], &["one"]].concat()));
    ok(quantize(dir.path(), &[&args[..], &["many", "--max-shard-size", "60k"]].concat()));
    let files = names(&dir.path().join("many"));
    let shards: Vec<&String> = files.iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3 && *shards[0] == format!("model-00001-of-{:05}.safetensors", shards.len()));
    for shard in &shards {
        let tensors = header(&dir.path().join("many").join(shard));
        let bytes: u64 = tensors.values().map(|(range, _)| range.end - range.start).sum();
        assert!(bytes <= 60_000 || tensors.len() == 1, "{shard}: {bytes}");
    }
    let index = json(&dir.path().join("many/model.safetensors.index.json"));
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    let (one, many) = (Checkpoint::open(&one).unwrap(), Checkpoint::open(&many).unwrap());
    assert_eq!(one.tensors().len(), many.tensors().len());
    let total: u64 = index["metadata"]["total_size"].as_u64().unwrap();
    assert!(total > 0);
    for t in many.tensors() {
        let read = |c: &Checkpoint| {
            let t = &c.tensors()[c.find(&t.name).unwrap()];
            let mut out = vec![0.0; t.elements()];
            c.read_f32(t, 0..out.len(), &mut Vec::new(), &mut out).unwrap();
            out
        };
        assert_eq!(read(&one), read(&many), "{}", t.name);
    }
}

#[test]
fn groups_that_do_not_divide_are_made_smaller_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let llama = family("llama");
    let run = |args: &[&str]| quantize(dir.path(), &[&["--rounding", "nearest", &llama], args].concat());
    let plan = run(&["--to", "gptq", "-o", "a"]);
    assert!(stderr(&plan).contains("groups of 64 instead of groups of 128"), "{}", stderr(&plan));
    assert_eq!(json(&dir.path().join("a/config.json"))["quantization_config"]["group_size"], 64);
    fails(&run(&["--to", "gptq-128g"]), 4, &["128 does not divide the rows of 64", "gptq-4bit-64g"]);
    fails(&run(&["--to", "gptq", "--group-size", "128"]), 4, &["128 does not divide"]);
    fails(&run(&["--to", "gptq", "--on-fallback", "error"]), 4, &["groups of 64"]);
    // Rows of 64 over two devices are 32 on each.
    ok(run(&["--to", "gptq", "--tp", "2", "-o", "b"]));
    assert_eq!(json(&dir.path().join("b/config.json"))["quantization_config"]["group_size"], 32);
    ok(run(&["--to", "gptq", "--group-size", "-1", "--bits", "8", "-o", "c"]));
    let q = json(&dir.path().join("c/config.json"))["quantization_config"].clone();
    assert_eq!((&q["group_size"], &q["bits"]), (&(-1).into(), &8.into()));
    fails(&run(&["--to", "awq", "--bits", "3"]), 2, &["awq does not support --bits 3"]);
    fails(&run(&["--to", "fp8", "--desc-act"]), 2, &["fp8 does not support --desc-act"]);
    fails(&run(&["--to", "q4_0", "--group-size", "32"]), 2, &["--group-size only affects checkpoint folders"]);
    fails(&run(&["--to", "fp8", "--tensor-type", "ffn_down=q8_0"]), 2, &["is for GGUF files"]);
    fails(&run(&["--to", "fp8,fp8-dynamic"]), 2, &["twice"]);
    fails(&quantize(dir.path(), &["--to", "gptq_v3", &llama]), 2, &["gptq_v3"]);
}

#[test]
fn a_damaged_weight_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for tensor in ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"] {
        let source = dir.path().join("m");
        copy_model("llama", &source);
        let file = source.join("model.safetensors");
        let at = header(&file)[tensor].0.start as usize;
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[at + 2..at + 4].copy_from_slice(&0x7e00u16.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        let out = quantize(dir.path(), &["--to", "gptq,fp8", "m", "-o", "out/", "--rounding", "nearest"]);
        fails(&out, 3, &[tensor, "model.safetensors"]);
        // Layer 0 was finished, so there may be something to continue; nothing may have the final name.
        assert!(names(&dir.path().join("out")).iter().all(|n| n.ends_with(".partial")));
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
}

#[test]
fn outputs_are_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let qwen = family("qwen3");
    let run = |args: &[&str]| quantize(dir.path(), &[&["--to", "int8", &qwen, "--quiet"], args].concat());
    ok(run(&["-o", "x"]));
    let first = digests(&dir.path().join("x"));
    fails(&run(&["-o", "x"]), 2, &["exists", "--force"]);
    ok(run(&["-o", "x", "--force"]));
    assert_eq!(digests(&dir.path().join("x")), first, "a second run gives the same bytes");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    fails(&run(&["-o", "file"]), 2, &["not a folder"]);
    std::fs::create_dir(dir.path().join("theirs")).unwrap();
    std::fs::write(dir.path().join("theirs/notes.txt"), "x").unwrap();
    ok(run(&["-o", "theirs"]));
    assert_eq!(names(&dir.path().join("theirs")), ["notes.txt", "qwen3-int8"]);
    fails(&run(&["-o", "/nonexistent/deep/x"]), 5, &["/nonexistent/deep"]);
    copy_model("qwen3", &dir.path().join("own"));
    let own = dir.path().join("own");
    let out = quantize(&own, &["--to", "int8", ".", "-o", "../own", "--force"]);
    assert!(own.join("model.safetensors").is_file() && own.join("config.json").is_file(), "{}", stderr(&out));
    assert_eq!(names(dir.path()).iter().filter(|n| n.contains("partial")).count(), 0);
}

#[test]
fn other_sources_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "q8_0", &family("llama"), "--quiet"]));
    fails(&quantize(dir.path(), &["--to", "fp8", "llama-Q8_0.gguf"]), 4, &["not from GGUF"]);
    fails(&quantize(dir.path(), &["--to", "fp8", "missing"]), 3, &["missing"]);
    ok(quantize(dir.path(), &["--to", "fp8", &family("llama"), "--quiet"]));
    fails(&quantize(dir.path(), &["--to", "int8", "llama-fp8"]), 4, &["already quantized"]);
}

#[test]
fn a_mix_of_files_and_folders_is_made_in_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--to", "q8_0,fp8", &family("llama"), "-o", "out", "--format", "json", "--quiet"];
    let out: Value = serde_json::from_str(&ok(quantize(dir.path(), &args))).unwrap();
    let types: Vec<&Value> = out["artifacts"].as_array().unwrap().iter().map(|a| &a["type"]).collect();
    assert_eq!(types, ["Q8_0", "fp8"]);
    assert_eq!(names(&dir.path().join("out")), ["llama-Q8_0.gguf", "llama-fp8"]);
}

#[test]
fn the_small_files_come_along_and_other_weights_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("m");
    copy_model("llama", &source);
    for (name, text) in [
        ("README.md", "---\nlicense: mit\n---\n# A model"),
        ("chat_template.jinja", "{{ x }}"),
        ("LICENSE", "free"),
        ("pytorch_model.bin", "weights"),
        ("consolidated.00.pth", "weights"),
        ("model-Q4_0.gguf", "weights"),
        (".gitattributes", "x"),
        ("generation_config.json", "{\"top_k\": 3}"),
    ] {
        std::fs::write(source.join(name), text).unwrap();
    }
    ok(quantize(dir.path(), &["--to", "nf4", "m", "-o", "out", "--quiet"]));
    assert_eq!(
        names(&dir.path().join("out")),
        [
            "LICENSE",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "quantize-manifest.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let card = std::fs::read_to_string(dir.path().join("out/README.md")).unwrap();
    let front = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- quantized\n";
    assert!(card.starts_with(front) && card.contains("\n# m-nf4\n") && !card.contains("# A model"), "{card}");
}

/// Starts a run, lets it go for a while, kills it as a power cut would, and continues; twenty times.
#[cfg(unix)]
#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = family("gemma3");
    let run = |args: &[&str]| {
        let all = [&["--to", "gptq", &source, "--rounding", "nearest", "--quiet"], args].concat();
        command(dir.path(), &all)
    };
    let start = std::time::Instant::now();
    ok(run(&["-o", "whole"]).output().unwrap());
    let length = start.elapsed();
    let want = digests(&dir.path().join("whole"));
    let mut killed = 0;
    for i in 0..20u32 {
        let mut child = run(&["-o", "cut"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(length * (i + 1) / 21 + Duration::from_micros(u64::from(i) * 311));
        child.kill().unwrap();
        child.wait().unwrap();
        let cut = dir.path().join("cut");
        if cut.exists() {
            // It was done before the kill came, all but the journal's removal perhaps, which follows the renaming.
            let mut got = digests(&cut);
            got.remove(".quantize-journal");
            assert_eq!(got, want);
            // And so may the record of the naming, which the next run removes.
            let _ = std::fs::remove_file(dir.path().join(".cut.publishing"));
        } else {
            killed += 1;
            let out = run(&["-o", "cut", "--resume"]).output().unwrap();
            assert!(out.status.success(), "{}", stderr(&out));
            assert_eq!(digests(&cut), want);
        }
        std::fs::remove_dir_all(cut).unwrap();
        assert_eq!(names(dir.path()), ["whole"]);
    }
    assert!(killed > 5, "only {killed} of 20 kills came in time");
}

#[test]
fn dtypes_are_the_source_s() {
    let dir = tempfile::tempdir().unwrap();
    ok(quantize(dir.path(), &["--to", "w4a16-32g", &family("llama"), "--rounding", "nearest", "--quiet"]));
    let raw = std::fs::read(dir.path().join("llama-w4a16-32g/model.safetensors")).unwrap();
    let header = quantize::source::parse_safetensors_header(&raw[..], raw.len() as u64, Path::new("x")).unwrap();
    let dtype = |name: &str| header.tensors.iter().find(|t| t.name == name).map(|t| t.dtype);
    let f16 = Some(Dtype::Ggml(quantize::quant::GgmlType::F16));
    assert_eq!(dtype("model.norm.weight"), f16);
    assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight_scale"), f16);
    assert_eq!(dtype("model.layers.0.self_attn.q_proj.weight"), None);
}
