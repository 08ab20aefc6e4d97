//! `quantize verify --check` on folders that were changed in one place, what JSON says of them, and what sources are told of
//! that contradict themselves.

use crate::common::{copy_model, fails, family, json, model, ok, quantize, stderr, tiny};
use crate::verify::{Tensors, edit_config, store, tensors};
use serde_json::{Value, json};
use std::path::Path;

const SOURCE: &str = "llama";

fn check(dir: &Path, folder: &str) -> std::process::Output {
    quantize(dir, &["verify", folder, "--check", &family(SOURCE), "--quiet"])
}

fn make(dir: &Path, format: &str, more: &[&str]) -> String {
    ok(quantize(dir, &[&["--to", format, &family(SOURCE), "-o", format, "--quiet"], more].concat()));
    format.to_string()
}

/// Writes a folder of the same kind with other tensors, and checks it.
fn changed(dir: &Path, folder: &str, sound: &Tensors, change: impl Fn(&mut Tensors)) -> std::process::Output {
    let mut all = sound.clone();
    change(&mut all);
    store(&dir.join(folder), &all);
    check(dir, folder)
}

/// A number of a tensor times a factor.
fn scale(all: &mut Tensors, name: &str, factor: f32) {
    let (dtype, _, data) = all.get_mut(name).unwrap_or_else(|| panic!("no {name}"));
    *data = match dtype {
        safetensors::Dtype::F16 => {
            let old = half::f16::from_le_bytes([data[0], data[1]]).to_f32();
            half::f16::from_f32(old * factor).to_le_bytes().to_vec()
        }
        safetensors::Dtype::F32 => (f32::from_le_bytes(data[..4].try_into().unwrap()) * factor).to_le_bytes().to_vec(),
        other => panic!("{other:?}"),
    };
}

#[test]
fn scales_of_activations_are_held_against_activations() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let data = ["--calibration", "default", "--calibration-tokens", "512", "--seq-len", "64"];
    for (format, name) in [("fp8-static", "input_scale"), ("nvfp4", "input_global_scale")] {
        let folder = make(d, format, &data);
        ok(check(d, &folder));
        let sound = tensors(&d.join(&folder));
        let wider = if format == "nvfp4" { 0.01 } else { 100.0 };
        for part in ["self_attn.q_proj", "mlp.down_proj"] {
            let name = format!("model.layers.1.{part}.{name}");
            fails(&changed(d, &folder, &sound, |all| scale(all, &name, wider)), 6, &["blk.1", "times the largest"]);
            fails(&changed(d, &folder, &sound, |all| scale(all, &name, 1.0 / wider)), 6, &["blk.1", "has room for"]);
        }
        fails(
            &changed(d, &folder, &sound, |all| scale(all, &format!("model.layers.0.mlp.up_proj.{name}"), -1.0)),
            3,
            &["room for -"],
        );
    }
}

#[test]
fn rows_that_were_lost_are_found_however_few() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (format, name) in [("fp8", "weight"), ("int8", "weight"), ("w8a16", "weight_packed")] {
        let folder = make(d, format, if format == "w8a16" { &["--rounding", "nearest"] } else { &[] });
        ok(check(d, &folder));
        let sound = tensors(&d.join(&folder));
        let (scales, name) = ("model.layers.0.mlp.up_proj.weight_scale", format!("model.layers.0.mlp.up_proj.{name}"));
        let zeroed = changed(d, &folder, &sound, |all| {
            // Two rows of 128. Words of integers hold 128 where they stand for nothing.
            let (_, shape, data) = all.get_mut(&name).unwrap();
            let row = data.len() / shape[0];
            data[5 * row..7 * row].fill(if format == "w8a16" { 0x80 } else { 0 });
        });
        fails(&zeroed, 6, &["blk.0.ffn_up.weight", "nothing of the source's"]);
        let faint = changed(d, &folder, &sound, |all| {
            let (_, shape, data) = all.get_mut(scales).unwrap();
            let size = data.len() / shape[0];
            data[3 * size..4 * size].fill(0);
        });
        fails(&faint, 6, &["1 rows of blk.0.ffn_up.weight"]);
    }
}

#[test]
fn small_files_of_a_folder_are_compared_with_the_sources() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let source = d.join("source");
    copy_model(SOURCE, &source);
    let write = |dir: &Path, name: &str, value: Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
    write(&source, "generation_config.json", json!({"eos_token_id": [0, 7], "temperature": 0.6, "do_sample": true}));
    let edit = |path: &Path, edit: &dyn Fn(&mut Value)| {
        let mut value = json(path);
        edit(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    };
    edit(&source.join("tokenizer_config.json"), &|config| config["chat_template"] = "{{ messages }}".into());
    ok(quantize(d, &["--to", "fp8", "source", "-o", "sound", "--quiet"]));
    let check = |folder: &str| quantize(d, &["verify", folder, "--check", "source", "--quiet"]);
    ok(check("sound"));
    let kept = crate::common::names(&d.join("sound"));
    let copy = |to: &str| {
        std::fs::remove_dir_all(d.join(to)).ok();
        std::fs::create_dir(d.join(to)).unwrap();
        for name in &kept {
            std::fs::copy(d.join("sound").join(name), d.join(to).join(name)).unwrap();
        }
        d.join(to)
    };
    type Edit = dyn Fn(&mut Value);
    let cases: [(&str, &Edit, &str); 7] = [
        ("config.json", &|c| c["eos_token_id"] = 5.into(), "eos_token_id 5"),
        ("config.json", &|c| c["bos_token_id"] = 5.into(), "bos_token_id 5"),
        ("config.json", &|c| c["architectures"] = json!(["MistralForCausalLM"]), "MistralForCausalLM"),
        ("generation_config.json", &|c| c["eos_token_id"] = 0.into(), "does not end at token 7"),
        ("generation_config.json", &|c| c["temperature"] = 100.into(), "temperature 100"),
        (
            "tokenizer_config.json",
            &|c| c["chat_template"] = "{{ 'x' }}".into(),
            "the chat template is not the source's",
        ),
        ("tokenizer_config.json", &|c| drop(c.as_object_mut().unwrap().remove("chat_template")), "chat template"),
    ];
    for (file, change, says) in cases {
        let folder = copy("changed");
        edit(&folder.join(file), change);
        fails(&check("changed"), 6, &[says]);
    }
    // The same in another place or form is no difference.
    let folder = copy("moved");
    edit(&folder.join("tokenizer_config.json"), &|c| drop(c.as_object_mut().unwrap().remove("chat_template")));
    std::fs::write(folder.join("chat_template.jinja"), "{{ messages }}\n").unwrap();
    edit_config(&folder, |c| c["eos_token_id"] = json!([0]));
    edit(&folder.join("generation_config.json"), &|c| c["transformers_version"] = "5.0".into());
    let said = ok(check("moved"));
    assert!(!said.contains("note:"), "{said}");
    // What only one of the two says is a note.
    edit_config(&folder, |c| c["pad_token_id"] = 3.into());
    assert!(ok(check("moved")).contains("note: pad_token_id comes to 3"));
    // Back from a GGUF file, whose vocabulary has the ids and the template.
    ok(quantize(d, &["--to", "f16", "source", "-o", "a.gguf", "--quiet"]));
    ok(quantize(d, &["--to", "safetensors", "a.gguf", "-o", "back", "--quiet"]));
    let back = || quantize(d, &["verify", "back", "--check", "a.gguf", "--quiet"]);
    ok(back());
    edit_config(&d.join("back"), |c| c["eos_token_id"] = 5.into());
    fails(&back(), 6, &["eos_token_id"]);
}

#[test]
fn json_says_sound_of_what_nothing_was_found_against() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let folder = make(d, "fp8", &[]);
    let out = |folder: &str| {
        let out = quantize(d, &["verify", folder, "--check", &family(SOURCE), "--format", "json"]);
        let found: Value = serde_json::from_slice(&out.stdout).unwrap();
        (found, stderr(&out))
    };
    let (found, said) = out(&folder);
    assert_eq!((&found["sound"], said.as_str()), (&true.into(), ""), "progress is no JSON");
    edit_config(&d.join(&folder), |c| c["eos_token_id"] = 5.into());
    let (found, said) = out(&folder);
    assert_eq!(found["sound"], false, "{found}");
    assert!(found["check"]["suspicion"].as_str().unwrap().contains("eos_token_id"), "{found}");
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["error"]["exit_code"]), (1, &6.into()), "{said}");
    // Tensors of another source.
    ok(quantize(d, &["--to", "q8_0", &tiny(), "-o", "a.gguf", "--quiet"]));
    let other = d.join("other");
    copy_model("tiny-llama", &other);
    let mut all = tensors(&other);
    all.get_mut("model.norm.weight").unwrap().2[1] ^= 0x80;
    store(&other, &all);
    let out = quantize(d, &["verify", "a.gguf", "--source", "other", "--format", "json"]);
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &found["sound"]), (Some(3), &false.into()), "{found}");
}

#[test]
fn who_asks_for_json_is_told_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy_model("tiny-llama", &d.join("odd"));
    std::fs::write(d.join("odd/generation_config.json"), "{\"eos_token_id\": 5}").unwrap();
    let data = ["--calibration", "default", "--calibration-tokens", "1024", "--seq-len", "64"];
    let out = quantize(d, &[&["--to", "q4_k_m", "odd", "-o", "a.gguf", "--format", "json"], &data[..]].concat());
    assert_eq!(stderr(&out), "");
    let made: Value = serde_json::from_str(&ok(out)).unwrap();
    assert!(made["remarks"][0].as_str().unwrap().contains("generation_config.json 5"), "{made}");
    for args in [&["inspect", "a.gguf"][..], &["plan", "odd"], &["diff", "odd", "a.gguf"]] {
        let out = quantize(d, &[args, &["--format", "json"]].concat());
        assert_eq!(stderr(&out), "", "{args:?}");
    }
    // Warnings are objects too.
    std::fs::write(d.join("odd/tokenizer.json"), "{}").unwrap();
    let out = quantize(d, &["--to", "fp8", "odd", "-o", "f", "--format", "json"]);
    let lines: Vec<Value> = stderr(&out).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line.get("warning").is_some()) && !lines.is_empty(), "{lines:?}");
}

#[test]
fn a_source_is_said_the_same_of_before_it_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy_model("tiny-llama", &d.join("odd"));
    std::fs::write(d.join("odd/generation_config.json"), "{\"eos_token_id\": 5}").unwrap();
    std::fs::write(d.join("odd/tokenizer.model"), b"\x0ajunk").unwrap();
    std::fs::write(d.join("odd/special_tokens_map.json"), "{\"bos_token\": \"a\"}").unwrap();
    let path = d.join("odd/tokenizer_config.json");
    let mut config = json(&path);
    config.as_object_mut().unwrap().remove("bos_token");
    std::fs::write(&path, config.to_string()).unwrap();
    let wanted =
        ["generation_config.json 5", "tokenizer.model cannot be read", "special_tokens_map.json says bos_token 'a'"];
    let converted = quantize(d, &["--to", "q8_0", "odd", "-o", "a.gguf"]);
    let said = stderr(&converted);
    ok(converted);
    let planned = ok(quantize(d, &["plan", "odd"]));
    let inspected = ok(quantize(d, &["inspect", "odd"]));
    for text in [&said, &planned, &inspected] {
        for what in wanted {
            assert!(
                text.lines().any(|line| line.starts_with("note: ") && line.contains(what)),
                "no '{what}' in {text}"
            );
        }
    }
    for command in [&["plan", "odd"], &["inspect", "odd"]] {
        let found: Value =
            serde_json::from_str(&ok(quantize(d, &[&command[..], &["--format", "json"]].concat()))).unwrap();
        assert_eq!(found["remarks"].as_array().unwrap().len(), 3, "{}", found["remarks"]);
    }
    assert!(!ok(quantize(d, &["inspect", &tiny()])).contains("note: "));
}

#[test]
fn hints_are_those_of_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    copy_model("tiny-llama", &d.join("novel"));
    edit_config(&d.join("novel"), |c| {
        c["architectures"] = json!(["NovelForCausalLM"]);
        c["model_type"] = "novel".into();
    });
    let text = model("tiny-llama").join("config.json");
    let told = |args: &[&str]| {
        let out = quantize(d, args);
        fails(&out, 4, &["NovelForCausalLM"]);
        stderr(&out)
    };
    assert!(told(&["--to", "q8_0", "novel"]).contains("--to fp8"));
    ok(quantize(d, &["--to", "fp8", "novel", "-o", "made", "--quiet"]));
    let checked = told(&["verify", "made", "--check", "novel", "--quiet"]);
    assert!(checked.contains("without --check") && !checked.contains("--to"), "{checked}");
    for args in [&["eval", "novel", "--text", text.to_str().unwrap()][..], &["generate", "novel", "--prompt", "a"]] {
        let told = told(args);
        assert!(told.contains("the engine that runs it") && !told.contains("--to"), "{told}");
    }
    // Windows that are held out for error feedback, or for a budget, which needs them however is rounded.
    let few = ["--calibration", "default", "--calibration-tokens", "64", "--seq-len", "64", "--quiet"];
    let run = |args: &[&str]| quantize(d, &[args, &[tiny().as_str()], &few[..]].concat());
    fails(
        &run(&["--to", "q4_k_m"]),
        3,
        &["one calibration window of 64 tokens is too few", "512 tokens", "--rounding nearest"],
    );
    for args in [&["--to", "w4a16", "--target-size", "4MB"][..], &["--like", "q4_k_m"]] {
        let out = run(args);
        fails(&out, 3, &["too few to choose types", "512 tokens"]);
        assert!(!stderr(&out).contains("--rounding"), "{}", stderr(&out));
    }
}

#[test]
fn what_llama_cpp_would_not_load_is_not_made_by_editing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(quantize(d, &["--to", "q8_0", &tiny(), "-o", "a.gguf", "--quiet"]));
    for set in [
        "llama.expert_group_count=u32:4",
        "tokenizer.ggml.suppress_tokens=str:x",
        "tokenizer.ggml.suppress_tokens=[u32]:[5]",
        "tokenizer.ggml.model=str:no_vocab",
    ] {
        let key = set.split('=').next().unwrap().rsplit('.').next().unwrap();
        fails(&quantize(d, &["edit", "a.gguf", "-o", "b.gguf", "--set", set]), 2, &[key]);
    }
    for set in
        ["llama.expert_group_count=int:4", "tokenizer.ggml.suppress_tokens=int:5", "tokenizer.ggml.model=str:none"]
    {
        let key = set.split('=').next().unwrap();
        fails(&quantize(d, &["--to", "q8_0", &tiny(), "-o", "c.gguf", "--override-kv", set]), 2, &[key]);
    }
    ok(quantize(d, &["edit", "a.gguf", "-o", "b.gguf", "--set", "tokenizer.ggml.suppress_tokens=[i32]:[5, 6]"]));
}

/// mlx-lm's mixed recipes leave the group of modules with an entry of their own open: MLX's default of their mode is meant.
#[test]
fn groups_that_mlx_leaves_open_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(quantize(d, &["--to", "mlx-4bit-64g", &tiny(), "-o", "open", "--quiet"]));
    let convert = |to: &str| {
        ok(quantize(d, &["--to", "q8_0", "open", "-o", to, "--no-check", "--quiet"]));
        let start = quantize::gguf::read_header(&d.join(to)).unwrap().data_start as usize;
        std::fs::read(d.join(to)).unwrap().split_off(start)
    };
    let told = convert("a.gguf");
    edit_config(&d.join("open"), |config| {
        for key in ["quantization", "quantization_config"] {
            config[key]["model.layers.0.mlp.up_proj"] = json!({"group_size": null, "bits": 4, "mode": "affine"});
            config[key]["model.layers.1.mlp.up_proj"] = json!({"bits": 4});
        }
    });
    assert!(convert("b.gguf") == told);
    edit_config(&d.join("open"), |config| {
        config["quantization_config"]["model.layers.1.mlp.up_proj"] = json!({"mode": "mxfp4"})
    });
    fails(&quantize(d, &["--to", "q8_0", "open", "-o", "c.gguf"]), 3, &["model.layers.1.mlp.up_proj"]);
}
