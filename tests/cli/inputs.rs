//! Inputs as people have them: folders that are not tidy, and outputs that cannot be.

use crate::common::*;
use quantize::gguf::read_header;
use quantize::source::Checkpoint;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

/// A copy of a model, changed.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_model(name, &dir.path().join("m"));
        Self { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("m").join(name)
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = json(&self.path("config.json"));
        change(&mut config);
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    /// Takes the weights apart into files, as `place` says for every tensor.
    fn split(&self, place: impl Fn(&str) -> String) {
        let ckpt = Checkpoint::open(&self.dir.path().join("m")).unwrap();
        let mut files: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for t in ckpt.tensors() {
            let mut bytes = vec![0; t.bytes() as usize];
            ckpt.read(t, 0, &mut bytes).unwrap();
            files.entry(place(&t.name)).or_default().push((t.name.clone(), t.shape.clone(), bytes));
        }
        let names: Vec<_> = ckpt.files().iter().map(|f| f.path.clone()).collect();
        let dtype = format!("{}", ckpt.tensors()[0].dtype);
        drop(ckpt);
        names.iter().for_each(|name| std::fs::remove_file(name).unwrap());
        for (name, tensors) in files {
            std::fs::write(self.path(&name), safetensors(&dtype, &tensors)).unwrap();
        }
    }

    fn convert(&self, args: &[&str]) -> Output {
        quantize(self.dir.path(), &[&["--to", "f16", "m", "-o", "x.gguf", "--force"], args].concat())
    }

    fn tensors(&self) -> Vec<(String, Vec<u8>)> {
        let file = Checkpoint::open(&self.dir.path().join("x.gguf")).unwrap();
        let read = |t: &quantize::source::TensorMeta| {
            let mut bytes = vec![0; t.bytes() as usize];
            file.read(t, 0, &mut bytes).unwrap();
            (t.name.clone(), bytes)
        };
        let mut all: Vec<_> = file.tensors().iter().map(read).collect();
        all.sort();
        all
    }
}

/// Name, shape and bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);

fn safetensors(dtype: &str, tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape, bytes) in tensors {
        let end = at + bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    tensors.iter().for_each(|(_, _, bytes)| out.extend(bytes));
    out
}

fn whole(name: &str) -> Vec<(String, Vec<u8>)> {
    let plain = Folder::of(name);
    ok(plain.convert(&[]));
    plain.tensors()
}

#[test]
fn shards_without_an_index_are_a_model_if_all_are_there() {
    let v = Folder::of("llama");
    v.split(|name| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(name.contains("layers.1"))));
    let out = v.convert(&[]);
    assert!(stderr(&out).contains("model-00001-of-00002.safetensors"), "{}", stderr(&out));
    ok(out);
    assert_eq!(v.tensors(), whole("llama"));
    // Mistral's own files beside them are the same weights again.
    std::fs::copy(v.path("model-00001-of-00002.safetensors"), v.path("consolidated.safetensors")).unwrap();
    ok(v.convert(&[]));
    assert_eq!(v.tensors(), whole("llama"));
    std::fs::remove_file(v.path("model-00002-of-00002.safetensors")).unwrap();
    fails(&v.convert(&[]), 3, &["model-00002-of-00002.safetensors", "is missing"]);
}

#[test]
fn what_the_index_leaves_out_is_left_out_and_named() {
    let v = Folder::of("llama");
    let place = |name: &str| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(name.contains("layers.1")));
    v.split(place);
    let ckpt = Checkpoint::open(&v.dir.path().join("m")).unwrap();
    let map: serde_json::Map<String, Value> =
        ckpt.tensors().iter().map(|t| (t.name.clone(), place(&t.name).into())).collect();
    drop(ckpt);
    std::fs::write(v.path("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    let bytes = std::fs::read(v.path("model-00002-of-00002.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let end = (bytes.len() - 8 - len) as u64;
    header["mtp.fc.weight"] = json!({ "dtype": "F32", "shape": [1], "data_offsets": [end, end + 4] });
    let header = header.to_string();
    let data = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..], &[0; 4]].concat();
    std::fs::write(v.path("model-00002-of-00002.safetensors"), data).unwrap();
    let out = v.convert(&[]);
    assert!(stderr(&out).contains("'mtp.fc.weight'"), "{}", stderr(&out));
    ok(out);
    assert_eq!(v.tensors(), whole("llama"));
}

#[test]
fn names_of_the_base_class_are_read() {
    let v = Folder::of("llama");
    let ckpt = Checkpoint::open(&v.dir.path().join("m")).unwrap();
    let dtype = format!("{}", ckpt.tensors()[0].dtype);
    let tensors = ckpt.tensors().iter().map(|t| {
        let mut bytes = vec![0; t.bytes() as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        (t.name.trim_start_matches("model.").to_string(), t.shape.clone(), bytes)
    });
    let bytes = safetensors(&dtype, &tensors.collect::<Vec<_>>());
    drop(ckpt);
    std::fs::write(v.path("model.safetensors"), bytes).unwrap();
    v.config(|c| c["architectures"] = json!(["LlamaModel"]));
    ok(v.convert(&[]));
    assert_eq!(v.tensors(), whole("llama"));
}

#[test]
fn messages_name_what_was_found() {
    let v = Folder::of("llama");
    std::fs::rename(v.path("config.json"), v.path("config.old")).unwrap();
    fails(&v.convert(&[]), 3, &["config.json is missing"]);
    std::fs::write(v.path("adapter_config.json"), r#"{"base_model_name_or_path":"org/base"}"#).unwrap();
    fails(&v.convert(&[]), 3, &["LoRA adapter", "org/base"]);
    // By itself it has types that llama.cpp adds to a model as it runs.
    let args = ["--to", "q4_k_m", "--lora", "m", &family("llama"), "-o", "x-LoRA.gguf"];
    fails(&quantize(v.dir.path(), &args), 2, &["an adapter file is F32, F16, BF16 or Q8_0"]);
    let v = Folder::of("llama");
    std::fs::write(v.path("tokenizer.json"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    fails(&v.convert(&[]), 3, &["tokenizer.json", "git lfs pull"]);
    // A folder copies it, so it is looked at there too.
    let out = quantize(v.dir.path(), &["--to", "fp8", "m", "-o", "out"]);
    fails(&out, 3, &["tokenizer.json", "git lfs pull"]);
}

#[test]
fn numbers_as_python_writes_them_do_no_harm_where_nobody_asks() {
    let v = Folder::of("llama");
    let text = std::fs::read_to_string(v.path("config.json")).unwrap();
    let with = |key: &str, value: &str| text.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
    std::fs::write(v.path("config.json"), with("time_step_limit", "[0.0, Infinity]")).unwrap();
    ok(v.convert(&[]));
    assert_eq!(v.tensors(), whole("llama"));
    let v = Folder::of("llama");
    v.config(|c| drop(c.as_object_mut().unwrap().remove("rms_norm_eps")));
    let text = std::fs::read_to_string(v.path("config.json")).unwrap();
    std::fs::write(v.path("config.json"), text.replacen('{', "{\"rms_norm_eps\": NaN, ", 1)).unwrap();
    fails(&v.convert(&[]), 3, &["rms_norm_eps", "NaN"]);
}

#[test]
fn a_head_of_its_own_counts_whatever_the_configuration_says() {
    let v = Folder::of("llama");
    v.config(|c| c["tie_word_embeddings"] = json!(true));
    ok(v.convert(&[]));
    assert_eq!(v.tensors(), whole("llama"));
    ok(quantize(v.dir.path(), &["--to", "fp8", "m", "-o", "out"]));
    let folder = v.dir.path().join("out");
    assert_eq!(json(&folder.join("config.json"))["tie_word_embeddings"], false);
    assert!(Checkpoint::open(&folder).unwrap().find("lm_head.weight").is_some());
}

#[test]
fn linear_layers_of_an_unknown_architecture_go_into_folders() {
    let v = Folder::of("llama");
    v.config(|c| {
        c["architectures"] = json!(["Zephyr9ForCausalLM"]);
        c["model_type"] = json!("zephyr9");
    });
    fails(&v.convert(&[]), 4, &["Zephyr9ForCausalLM", "--to fp8"]);
    fails(&quantize(v.dir.path(), &["--to", "awq", "m", "-o", "awq"]), 4, &["Zephyr9ForCausalLM"]);
    ok(quantize(v.dir.path(), &["--to", "fp8", "m", "-o", "out"]));
    let known = Folder::of("llama");
    ok(quantize(known.dir.path(), &["--to", "fp8", "m", "-o", "out"]));
    let weights = |f: &Folder| std::fs::read(f.dir.path().join("out/model.safetensors")).unwrap();
    assert_eq!(weights(&v), weights(&known));
}

#[cfg(unix)]
#[test]
fn outputs_that_cannot_be_are_refused() {
    let v = Folder::of("llama");
    let pipe = v.dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for name in ["pipe", "-", "x.bin"] {
        let out = quantize(v.dir.path(), &["--to", "f16", "m", "-o", name, "--force"]);
        fails(&out, 2, &[]);
    }
    use std::os::unix::fs::FileTypeExt;
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
    assert_eq!(names(v.dir.path()), ["m", "pipe"]);
    // What is no checkpoint of a calibration is not replaced by one.
    std::fs::write(v.dir.path().join("i.gguf.resume"), "notes").unwrap();
    let args = ["calibrate", "m", "-o", "i.gguf", "--calibration-tokens", "64", "--seq-len", "32"];
    fails(&quantize(v.dir.path(), &args), 2, &["i.gguf.resume"]);
    assert_eq!(std::fs::read_to_string(v.dir.path().join("i.gguf.resume")).unwrap(), "notes");
}

#[test]
fn shards_of_two_runs_are_told_apart() {
    let v = Folder::of("llama");
    let run = |more: &[&str]| {
        let args = [&["--to", "q8_0", "m", "-o", "s.gguf", "--split-max-tensors", "12", "--force"], more].concat();
        ok(quantize(v.dir.path(), &args))
    };
    let first = run(&[]);
    let shards: Vec<&str> = first.lines().collect();
    let last = v.dir.path().join(shards[shards.len() - 1]);
    let old = std::fs::read(&last).unwrap();
    run(&["--override-kv", "general.name=str:other"]);
    ok(quantize(v.dir.path(), &["verify", shards[0]]));
    std::fs::write(&last, old).unwrap();
    fails(&quantize(v.dir.path(), &["verify", shards[0]]), 3, &["another run"]);
}

#[test]
fn what_llama_cpp_does_not_load_is_said() {
    let v = Folder::of("llama");
    ok(v.convert(&[]));
    let file = v.dir.path().join("x.gguf");
    ok(quantize(v.dir.path(), &["verify", "x.gguf", "--for", "llama.cpp"]));
    let header = read_header(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let refused = |change: &dyn Fn(&mut quantize::gguf::Metadata), says: &str| {
        let mut metadata = header.metadata.clone();
        change(&mut metadata);
        let mut infos = header.tensors.clone();
        quantize::gguf::layout(&mut infos, 32).unwrap();
        let mut out = quantize::gguf::encode_header(&metadata, &infos, 32);
        out.extend(&bytes[header.data_start as usize..]);
        std::fs::write(v.dir.path().join("y.gguf"), out).unwrap();
        fails(&quantize(v.dir.path(), &["verify", "y.gguf", "--for", "llama.cpp"]), 4, &["y.gguf"]);
        let out = quantize(v.dir.path(), &["verify", "y.gguf", "--for", "llama.cpp"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains(says), "{says}: {text}");
    };
    refused(&|m| m.remove("tokenizer.ggml.model"), "there is no vocabulary");
    refused(&|m| m.set("llama.rope.dimension_count", 8u32), "rope.dimension_count");
    let tokens = header.metadata.strings("tokenizer.ggml.tokens").unwrap().to_vec();
    let twice: Vec<String> =
        tokens.iter().map(|t| if *t == tokens[5] { tokens[6].clone() } else { t.clone() }).collect();
    refused(&|m| m.set("tokenizer.ggml.tokens", twice.clone()), "twice");
    assert!(Path::new(&file).exists());
}

/// A report is read from a pipe and printed in any form; nothing else takes `-` for a file, and no file gets that name.
#[test]
fn reports_alone_go_through_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let report =
        r#"{"schema": "quantize-report/1", "tool": {"name": "a", "version": "1"}, "command": "made <by> hand"}"#;
    for (ending, says) in [
        ("md", "made &lt;by&gt; hand"),
        ("html", "<!doctype html>"),
        ("json", "\"made <by> hand\""),
        ("txt", "Nothing was measured"),
    ] {
        let mut command = assert_cmd::Command::cargo_bin("quantize").unwrap();
        let done = command
            .current_dir(dir.path())
            .args(["report", "-", "--to", ending])
            .write_stdin(report)
            .assert()
            .success();
        let out = String::from_utf8(done.get_output().stdout.clone()).unwrap();
        assert!(out.contains(says), "{ending}: {out}");
    }
    for args in [
        &["calibrate", &tiny(), "-o", "-"][..],
        &["eval", &tiny(), "--text", "-"],
        &["eval", &tiny(), "--text", "x.txt", "--save-logits", "-"],
        &["--to", "q4_0", &tiny(), "-o", "-"],
        &["inspect", "-"],
        &["verify", "-"],
        &["plan", "-"],
        &["report", "x.json", "--to", "-"],
    ] {
        fails(&command(dir.path(), args).output().unwrap(), 2, &["piped"]);
    }
    assert!(names(dir.path()).is_empty());
}

/// A configuration may name a quantization that is done as weights are loaded, or of the cache alone.
#[test]
fn plain_weights_under_a_quantization_are_read() {
    for quantization in [
        json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" }),
        json!({ "quant_method": "compressed-tensors", "format": "dense", "config_groups": {},
            "kv_cache_scheme": { "num_bits": 8, "type": "float" } }),
    ] {
        let v = Folder::of("llama");
        v.config(|config| config["quantization_config"] = quantization.clone());
        let out = v.convert(&[]);
        assert!(stderr(&out).contains("all weights are plain"), "{}", stderr(&out));
        ok(out);
        assert_eq!(v.tensors(), whole("llama"));
        ok(quantize(v.dir.path(), &["--to", "fp8", "m", "-o", "fp8", "--quiet"]));
        let made = json(&v.dir.path().join("fp8/config.json"));
        assert_eq!(made["quantization_config"]["quant_method"], "compressed-tensors");
        assert_eq!(made["quantization_config"]["kv_cache_scheme"], Value::Null);
    }
}

#[test]
fn names_of_wrapped_modules_and_single_shards_are_told_from_missing_tensors() {
    let v = Folder::of("llama");
    let ckpt = Checkpoint::open(&v.dir.path().join("m")).unwrap();
    let dtype = format!("{}", ckpt.tensors()[0].dtype);
    let read = |t: &quantize::source::TensorMeta| {
        let mut bytes = vec![0; t.bytes() as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        (t.name.clone(), t.shape.clone(), bytes)
    };
    let tensors: Vec<Tensor> = ckpt.tensors().iter().map(read).collect();
    let named = |change: &dyn Fn(&str) -> String| {
        let renamed: Vec<Tensor> = tensors.iter().map(|(n, s, b)| (change(n), s.clone(), b.clone())).collect();
        std::fs::write(v.path("model.safetensors"), safetensors(&dtype, &renamed)).unwrap();
        v.convert(&[])
    };
    fails(&named(&|name| format!("module.{name}")), 3, &["begin with module.", "DistributedDataParallel"]);
    fails(&named(&|name| name.replace("self_attn", "_fsdp_wrapped_module.self_attn")), 3, &["FSDP"]);
    fails(&named(&|name| format!("model.{name}")), 3, &["begin with model.model."]);
    let unmerged = |name: &str| format!("base_model.model.{}", name.replace("q_proj.", "q_proj.base_layer."));
    fails(&named(&unmerged), 3, &["LoRA adapter", "merge_and_unload"]);
    ok(named(&|name| name.into()));
    v.split(|name| format!("model-0000{}-of-00002.safetensors", 1 + usize::from(name.contains("layers.1"))));
    let one = quantize(v.dir.path(), &["--to", "f16", "m/model-00001-of-00002.safetensors", "-o", "y.gguf"]);
    fails(&one, 3, &["one shard of several"]);
}

#[test]
fn templates_by_name_and_of_processors_are_read_and_no_token_has_the_number_minus_one() {
    let template = |v: &Folder| {
        ok(v.convert(&[]));
        let header = read_header(&v.dir.path().join("x.gguf")).unwrap();
        header.metadata.str("tokenizer.chat_template").map(String::from)
    };
    let v = Folder::of("llama");
    let mut config = json(&v.path("tokenizer_config.json"));
    config.as_object_mut().unwrap().remove("chat_template");
    let plain = config.clone();
    config["chat_template"] = json!({ "default": "A{{ bos_token }}", "tool_use": "B" });
    std::fs::write(v.path("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(template(&v).as_deref(), Some("A{{ bos_token }}"));
    std::fs::write(v.path("tokenizer_config.json"), plain.to_string()).unwrap();
    std::fs::write(v.path("processor_config.json"), json!({ "chat_template": "P" }).to_string()).unwrap();
    v.config(|config| config["pad_token_id"] = json!(-1));
    assert_eq!(template(&v).as_deref(), Some("P"));
    let header = read_header(&v.dir.path().join("x.gguf")).unwrap();
    assert_eq!(header.metadata.uint("tokenizer.ggml.padding_token_id"), None);
}

/// A file that lacks a key of its family is quantized by names all the same, with a word of it.
#[test]
fn a_gguf_file_without_a_key_of_its_family_is_quantized_by_names() {
    let v = Folder::of("llama");
    ok(v.convert(&[]));
    let file = v.dir.path().join("x.gguf");
    let (header, bytes) = (read_header(&file).unwrap(), std::fs::read(&file).unwrap());
    let key = "llama.attention.layer_norm_rms_epsilon";
    let changed = |change: &dyn Fn(&mut quantize::gguf::Metadata)| {
        let (mut metadata, mut infos) = (header.metadata.clone(), header.tensors.clone());
        change(&mut metadata);
        quantize::gguf::layout(&mut infos, 32).unwrap();
        let mut out = quantize::gguf::encode_header(&metadata, &infos, 32);
        out.extend(&bytes[header.data_start as usize..]);
        std::fs::write(v.dir.path().join("y.gguf"), out).unwrap();
        quantize(v.dir.path(), &["--to", "q8_0", "y.gguf", "-o", "q8.gguf", "--force"])
    };
    let out = changed(&|metadata| metadata.remove(key));
    assert!(stderr(&out).contains(key) && stderr(&out).contains("by their names alone"), "{}", stderr(&out));
    ok(out);
    ok(quantize(v.dir.path(), &["--to", "q8_0", "x.gguf", "-o", "whole.gguf"]));
    let tensors = |name: &str| {
        let path = v.dir.path().join(name);
        let header = read_header(&path).unwrap();
        std::fs::read(&path).unwrap()[header.data_start as usize..].to_vec()
    };
    assert_eq!(tensors("q8.gguf"), tensors("whole.gguf"));
    fails(&changed(&|metadata| metadata.set(key, "a word")), 3, &[key, "another type"]);
}
