//! `quantize verify` on checkpoint folders, and what engines would refuse in them; `quantize plan` on folder formats.

use crate::common::{conformance, copy_model, fails, model, ok, quantize, repo, tiny};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What `verify --for` says of a folder, and its exit code.
pub(super) fn verdict(dir: &Path, folder: &str, engine: &str, more: &[&str]) -> (i32, Value) {
    let args = [&["verify", folder, "--for", engine, "--format", "json", "--quiet"], more].concat();
    let out = quantize(dir, &args);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let json: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    assert_eq!(json["engines"][0]["engine"], engine);
    (out.status.code().unwrap(), json["engines"][0].clone())
}

#[track_caller]
pub(super) fn loads(dir: &Path, folder: &str, engine: &str, more: &[&str]) {
    let (code, found) = verdict(dir, folder, engine, more);
    assert_eq!((code, found["loads"].as_bool()), (0, Some(true)), "{found}");
}

#[track_caller]
pub(super) fn refuses(dir: &Path, folder: &str, engine: &str, more: &[&str], why: &str) -> Vec<String> {
    let (code, found) = verdict(dir, folder, engine, more);
    assert_eq!((code, found["loads"].as_bool()), (4, Some(false)), "{found}");
    let objections = found["objections"].as_array().unwrap();
    let objection = objections.iter().find(|o| o["refused"] == true && o["what"].as_str().unwrap().contains(why));
    let objection = objection.unwrap_or_else(|| panic!("no '{why}' in {found}"));
    objection["modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_string()).collect()
}

fn make(dir: &Path, formats: &str, more: &[&str]) {
    let tiny = tiny();
    let args = [&["--to", formats, &tiny, "-o", "out/", "--rounding", "nearest", "--quiet"], more].concat();
    ok(quantize(dir, &args));
}

pub(super) type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

pub(super) fn tensors(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(own).collect()
}

pub(super) fn store(folder: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(super) fn edit_config(folder: &Path, edit: impl Fn(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn what_each_engine_takes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let formats = "gptq-128g,gptq-8bit,gptq-3bit-32g,awq,w4a16,fp8,fp8-block,nvfp4a16,nf4,mlx-4bit,mlx-mxfp4";
    make(dir, formats, &[]);
    make(dir, "gptq-asym", &[]);
    let folder = |format: &str| format!("out/tiny-llama-{format}");
    for format in ["gptq-128g", "gptq-8bit", "awq", "w4a16", "fp8", "fp8-block", "nvfp4a16", "nf4"] {
        loads(dir, &folder(format), "vllm", &[]);
    }
    refuses(dir, &folder("gptq-3bit-32g"), "vllm", &[], "3 bits, symmetric");
    refuses(dir, &folder("gptq-asym"), "vllm", &[], "4 bits, asymmetric");
    refuses(dir, &folder("mlx-4bit"), "vllm", &[], "not read MLX");
    for format in ["gptq-3bit-32g", "gptq-asym", "awq", "fp8", "nf4"] {
        loads(dir, &folder(format), "transformers", &[]);
    }
    refuses(dir, &folder("mlx-mxfp4"), "transformers", &[], "quant_method");
    for format in ["mlx-4bit", "mlx-mxfp4", "awq"] {
        loads(dir, &folder(format), "mlx", &[]);
    }
    assert_eq!(refuses(dir, &folder("gptq-128g"), "mlx", &[], "g_idx").len(), 6 * 7);
    refuses(dir, &folder("nf4"), "mlx", &[], "bitsandbytes");
    refuses(dir, &folder("fp8"), "mlx", &[], "compressed-tensors");
    refuses(dir, &folder("awq"), "llama.cpp", &[], "GGUF");
    // Several at once: one verdict each, and the worst decides.
    let out = quantize(dir, &["verify", &folder("awq"), "--for", "vllm,mlx", "--for", "llama.cpp", "--quiet"]);
    assert_eq!(out.status.code(), Some(4));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("vLLM 0.32: loads") && text.contains("mlx-lm 0.32: loads"), "{text}");
    // A GGUF file has its own answers.
    ok(quantize(dir, &["--to", "q8_0", &tiny(), "-o", "a.gguf", "--quiet"]));
    loads(dir, "a.gguf", "llama.cpp", &[]);
    refuses(dir, "a.gguf", "mlx", &[], "loads folders");
}

#[test]
fn what_devices_cut_through() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir, "gptq-128g,fp8-block,fp8", &[]);
    make(dir, "awq", &["--tp", "4"]);
    let gptq = "out/tiny-llama-gptq-128g";
    loads(dir, gptq, "vllm", &["--tp", "2"]);
    // 256 attention and 768 feed-forward channels on four devices: 64 and 192 of each.
    let cut = refuses(dir, gptq, "vllm", &["--tp", "4"], "groups of 128 do not divide the 64 input channels");
    assert_eq!(cut.len(), 6);
    assert!(cut.iter().all(|m| m.ends_with("self_attn.o_proj")), "{cut:?}");
    refuses(dir, gptq, "vllm", &["--tp", "4"], "192 input channels");
    // Groups chosen for it survive.
    loads(dir, "out/tiny-llama-awq", "vllm", &["--tp", "4"]);
    refuses(dir, "out/tiny-llama-awq", "vllm", &["--tp", "3"], "4 attention heads cannot be split over 3");
    refuses(dir, "out/tiny-llama-fp8-block", "vllm", &["--tp", "4"], "blocks of 128");
    loads(dir, "out/tiny-llama-fp8", "vllm", &["--tp", "4"]);
    let out = quantize(dir, &["verify", gptq, "--for", "vllm", "--tp", "0"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn contradictions_inside_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir, "awq-64g,awq-32g,gptq", &[]);
    let folder = dir.join("out/tiny-llama-awq-64g");
    let name = folder.to_str().unwrap();
    let (sound, other) = (tensors(&folder), tensors(&dir.join("out/tiny-llama-awq-32g")));

    let mut mixed = sound.clone();
    for (name, tensor) in other.iter().filter(|(name, _)| name.starts_with("model.layers.2.self_attn.k_proj.")) {
        mixed.insert(name.clone(), tensor.clone());
    }
    store(&folder, &mixed);
    let fused = refuses(dir, name, "vllm", &[], "in groups of");
    assert!(fused[0].starts_with("model.layers.2.self_attn."), "{fused:?}");
    assert!(!verdict(dir, name, "transformers", &[]).1.to_string().contains("which it is fused"));

    let mut two_heads = sound.clone();
    for (name, tensor) in sound.iter().filter(|(name, _)| name.starts_with("model.layers.0.mlp.up_proj.")) {
        two_heads.insert(name.replace("model.layers.0.mlp.up_proj", "lm_head"), tensor.clone());
    }
    store(&folder, &two_heads);
    refuses(dir, name, "vllm", &[], "ties the output");
    store(&folder, &sound);
    loads(dir, name, "vllm", &[]);

    edit_config(&folder, |c| c["quantization_config"]["bits"] = 8.into());
    refuses(dir, name, "vllm", &[], "other than 4 bits");
    edit_config(&folder, |c| c["quantization_config"]["bits"] = 4.into());
    edit_config(&dir.join("out/tiny-llama-gptq"), |c| c["quantization_config"]["desc_act"] = true.into());
    refuses(dir, "out/tiny-llama-gptq", "vllm", &[], "desc_act");

    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    for engine in ["vllm", "transformers", "mlx"] {
        refuses(dir, name, engine, &[], "tokenizer");
    }
}

/// Zero points in the layout that compressed-tensors itself writes, and vLLM reads.
#[test]
fn packed_zero_points_are_not_for_transformers() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "w4a16-32g-asym", &[]);
    let folder = std::fs::read_dir(dir.path().join("out")).unwrap().next().unwrap().unwrap().path();
    let folder = folder.to_str().unwrap();
    assert_eq!(refuses(dir.path(), folder, "transformers", &[], "packed zero points").len(), 42);
    loads(dir.path(), folder, "vllm", &[]);
}

/// What loaders read in config.json, changed in one place each.
#[test]
fn configurations_that_loaders_stop_at() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir, "nf4,w4a16-32g,fp8,mlx-4bit", &[]);
    type Change<'a> = &'a dyn Fn(&mut Value);
    let group = |c: &mut Value, key: &str, value: Value| {
        c["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
    };
    let cases: [(&str, &str, &str, Change); 14] = [
        ("nf4", "transformers", "no model type 'unheard'", &|c| c["model_type"] = "unheard".into()),
        ("nf4", "transformers", "names no model_type", &|c| c["model_type"] = Value::Null),
        ("nf4", "transformers", "'float12'", &|c| c["dtype"] = "float12".into()),
        ("nf4", "transformers", "load_in_4bit is not on", &|c| c["quantization_config"]["load_in_4bit"] = false.into()),
        ("w4a16-4bit-32g", "transformers", "has 4 bits, but", &|c| group(c, "num_bits", 8.into())),
        ("fp8", "transformers", "has 8 bits, but", &|c| group(c, "num_bits", 4.into())),
        ("w4a16-4bit-32g", "transformers", "says groups of 64", &|c| group(c, "group_size", 64.into())),
        ("w4a16-4bit-32g", "transformers", "no format 'unheard'", &|c| {
            c["quantization_config"]["format"] = "unheard".into()
        }),
        ("w4a16-4bit-32g", "transformers", "does not ignore lm_head", &|c| {
            c["quantization_config"]["ignore"] = Value::Null
        }),
        ("w4a16-4bit-32g", "transformers", "no group of quantization_config names it", &|c| {
            c["quantization_config"]["config_groups"]["group_0"]["targets"] = serde_json::json!(["Convolution"]);
        }),
        ("mlx-4bit", "mlx", "no model type 'bert'", &|c| c["model_type"] = "bert".into()),
        ("mlx-4bit", "mlx", "lacks rope_theta (500000.0)", &|c| {
            c["rope_theta"] = Value::Null;
            c["rope_parameters"] = serde_json::json!({ "rope_type": "default", "rope_theta": 5e5 });
        }),
        ("mlx-4bit", "mlx", "text_config lacks rope_theta (500000.0)", &|c| {
            let mut text = c.clone();
            for key in ["rope_theta", "quantization", "quantization_config"] {
                text.as_object_mut().unwrap().remove(key);
            }
            text["model_type"] = "mistral".into();
            text["rope_parameters"] = serde_json::json!({ "rope_type": "default", "rope_theta": 5e5 });
            c["text_config"] = text;
            c["model_type"] = "pixtral".into();
        }),
        ("mlx-4bit", "mlx", "lacks mlp_bias", &|c| {
            c["model_type"] = "helium".into();
            c.as_object_mut().unwrap().shift_remove("mlp_bias");
        }),
    ];
    for (format, engine, why, change) in cases {
        let folder = std::fs::read_dir(dir.join("out")).unwrap().map(|e| e.unwrap().path());
        let word = format.split('-').next().unwrap();
        let folder = folder.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().contains(word)).unwrap();
        let sound = std::fs::read(folder.join("config.json")).unwrap();
        loads(dir, folder.to_str().unwrap(), engine, &[]);
        edit_config(&folder, change);
        refuses(dir, folder.to_str().unwrap(), engine, &[], why);
        std::fs::write(folder.join("config.json"), sound).unwrap();
    }
    // A family that was never tried is not said to load.
    let nf4 = dir.join("out/tiny-llama-nf4");
    edit_config(&nf4, |c| c["architectures"] = serde_json::json!(["HeliumForCausalLM"]));
    edit_config(&nf4, |c| c["model_type"] = "helium".into());
    let (code, found) = verdict(dir, nf4.to_str().unwrap(), "transformers", &[]);
    assert!(code == 0 && found["loads"].is_null(), "{found}");
}

/// mlx-lm goes by what config.json says, and leaves out the matrix that is stored.
#[test]
fn a_head_of_its_own_is_lost_where_it_is_said_to_be_tied() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("llama");
    copy_model("llama", &folder);
    loads(dir.path(), "llama", "mlx", &[]);
    edit_config(&folder, |c| c["tie_word_embeddings"] = true.into());
    refuses(dir.path(), "llama", "mlx", &[], "leaves out the lm_head");
}

#[test]
fn files_that_mlx_takes_beside_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir, "mlx-4bit", &[]);
    let (name, folder) = ("out/tiny-llama-mlx-4bit", dir.join("out/tiny-llama-mlx-4bit"));
    std::fs::copy(folder.join("model.safetensors"), folder.join("adapter.safetensors")).unwrap();
    loads(dir, name, "mlx", &[]);
    std::fs::copy(folder.join("model.safetensors"), folder.join("model-00001-of-00002.safetensors")).unwrap();
    refuses(dir, name, "mlx", &[], "model-00001-of-00002.safetensors is not part of the model");
    std::fs::remove_file(folder.join("model-00001-of-00002.safetensors")).unwrap();
    // Its index is not read: a tensor that it does not list counts.
    let mut more = tensors(&folder);
    more.insert("model.layers.0.more.weight".into(), (safetensors::Dtype::F16, vec![8], vec![0; 16]));
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let map: BTreeMap<&str, &str> =
            more.keys().filter(|n| !n.contains("more")).map(|n| (n.as_str(), "model.safetensors")).collect();
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    }
    store(&folder, &more);
    refuses(dir, name, "mlx", &[], "model.layers.0.more.weight");
    // Broken settings of generation are left aside by it.
    store(&folder, &tensors(&folder).into_iter().filter(|(n, _)| !n.contains("more")).collect());
    std::fs::write(folder.join("generation_config.json"), "{").unwrap();
    loads(dir, name, "mlx", &[]);
    refuses(dir, name, "vllm", &[], "does not read MLX");
}

#[test]
fn damage_is_found_without_an_engine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir, "awq", &[]);
    let folder = dir.join("out/tiny-llama-awq");
    let text = ok(quantize(dir, &["verify", folder.to_str().unwrap(), "--quiet"]));
    assert!(text.contains("42 quantized layers and 14 other tensors, all sound"), "{text}");
    let sound = tensors(&folder);
    for (tensor, at) in [("model.norm.weight", 2), ("model.layers.1.mlp.up_proj.scales", 6)] {
        let mut damaged = sound.clone();
        let data = &mut damaged.get_mut(tensor).unwrap().2;
        data[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        store(&folder, &damaged);
        let out = quantize(dir, &["verify", folder.to_str().unwrap(), "--for", "vllm", "--quiet"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(tensor.trim_end_matches(".scales")) && stderr.contains("NaN"), "{stderr}");
    }
    let out = quantize(dir, &["verify", folder.to_str().unwrap(), "--source", &tiny()]);
    assert_eq!(out.status.code(), Some(2));
}

/// Names and sizes told from the configuration alone are those of the real checkpoint.
#[test]
fn folders_are_planned_from_a_configuration_alone() {
    let dir = tempfile::tempdir().unwrap();
    let formats = "gptq,awq,w4a16,fp8,fp8-block,fp8-static,int8,nvfp4,mxfp4,nf4,bnb-int8,mlx-4bit";
    let mut families = 0;
    for family in conformance() {
        families += 1;
        let config = family.join("config.json");
        let plan = |path: &Path| -> Vec<Value> {
            let args = ["plan", path.to_str().unwrap(), "--to", formats, "--format", "json"];
            let mut value: Value = serde_json::from_str(&ok(quantize(dir.path(), &args))).unwrap();
            assert!(value["targets"].is_null());
            value["folders"].as_array_mut().unwrap().drain(..).collect()
        };
        let (alone, whole) = (plan(&config), plan(&family));
        assert_eq!((alone.len(), whole.len()), (12, 12));
        for (alone, whole) in alone.iter().zip(&whole) {
            assert_eq!(alone, whole, "{}", family.display());
        }
    }
    assert_eq!(families, 12);
}

#[test]
fn a_plan_says_what_calibration_takes() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| -> Value {
        let config = repo("tests/configs/llama-3.1-8b.json");
        let args = [&["plan", config.to_str().unwrap(), "--format", "json", "--to"], more].concat();
        serde_json::from_str(&ok(quantize(dir.path(), &args))).unwrap()
    };
    let (gptq, nearest) = (plan(&["gptq,nf4"]), plan(&["gptq", "--rounding", "nearest"]));
    let [calibrated, nf4] = [0, 1].map(|i| gptq["folders"][i].clone());
    assert!(nf4["calibration"].is_null() && nearest["folders"][0]["calibration"].is_null());
    let number = |v: &Value, key: &str| v["calibration"][key].as_f64().unwrap();
    assert_eq!(number(&calibrated, "calibration_tokens"), 65536.0);
    // Half the tokens take less, and more than half of the time and memory is not theirs alone.
    let fewer = plan(&["gptq", "--calibration-tokens", "32768"]);
    for key in ["cpu_seconds", "peak_memory"] {
        let (all, half) = (number(&calibrated, key), number(&fewer["folders"][0], key));
        assert!(half < all && half > all / 2.0, "{key}: {half} of {all}");
    }
    // Published 8B GPTQ checkpoints with groups of 128 take 5.74 GB.
    let bytes = calibrated["tensor_bytes"].as_f64().unwrap();
    assert!((bytes / 5.74e9 - 1.0).abs() < 0.01, "{bytes}");
    let both = plan(&["q4_k_m,gptq"]);
    assert_eq!(both["targets"].as_array().unwrap().len(), 1);
    assert!(
        both["calibration"]["feedback"]["cpu_seconds"].as_f64()
            > both["calibration"]["importance"]["cpu_seconds"].as_f64()
    );
    // Codebooks take longer than levels do.
    let seconds = |ty: &str| plan(&[ty])["calibration"]["feedback"]["cpu_seconds"].as_f64().unwrap();
    assert!(seconds("iq2_m") > 1.1 * seconds("q2_k"));
    let out = quantize(dir.path(), &["plan", "x", "--to", "q4_k_m", "--group-size", "64"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn files_know_their_data_and_calibrated_ones_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let source = model("llama").into_os_string().into_string().unwrap();
    let data = ["--calibration-tokens", "256", "--seq-len", "32"];
    std::fs::write(dir.join("text.txt"), "All of it happened, more or less, and some of it twice.\n".repeat(200))
        .unwrap();
    let make = |to: &str, output: &str, text: &str| {
        let args = ["--to", to, &source, "-o", output, "--calibration", text, "--quiet", "--no-check"];
        ok(quantize(dir, &[&args[..], data.as_slice()].concat()));
    };
    make("q4_0", "bundled.gguf", "default");
    make("q4_0", "own.gguf", "text.txt");
    let verify = |file: &str| {
        let out = quantize(dir, &["verify", file, "--source", &source, "--quiet"]);
        (out.status.code().unwrap(), format!("{}{}", text(&out.stdout), text(&out.stderr)))
    };
    for file in ["bundled.gguf", "own.gguf"] {
        let (code, said) = verify(file);
        assert_eq!(code, 0, "{said}");
    }
    // One bit in the middle of a block's codes: nothing but the hash can tell.
    let change = |file: &str, at: usize| {
        let mut bytes = std::fs::read(dir.join(file)).unwrap();
        let len = bytes.len();
        bytes[len - at] ^= 1;
        std::fs::write(dir.join(file), bytes).unwrap();
    };
    change("own.gguf", 5);
    let out = quantize(dir, &["verify", "own.gguf", "--quiet"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("quantize.data.sha256"), "{}", text(&out.stderr));
    change("own.gguf", 5);
    // Text that is other than it was, or not here, proves nothing.
    let first = std::fs::read_to_string(dir.join("text.txt")).unwrap();
    std::fs::write(dir.join("text.txt"), first.replace("twice", "thrice")).unwrap();
    let (code, said) = verify("own.gguf");
    assert!(code == 3 && said.contains("different text"), "{code} {said}");
    std::fs::remove_file(dir.join("text.txt")).unwrap();
    let (code, said) = verify("own.gguf");
    assert!(code == 3 && said.contains("text.txt, which is not here"), "{code} {said}");
    // Another model of the same shape gives other tensors.
    std::fs::write(dir.join("text.txt"), first).unwrap();
    let other = dir.join("other");
    copy_with_one_weight_changed(Path::new(&source), &other);
    let out = quantize(dir, &["verify", "bundled.gguf", "--source", "other", "--quiet"]);
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert!(out.status.code() == Some(3) && said.contains("differ"), "{:?} {said}", out.status.code());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn copy_with_one_weight_changed(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let mut all = tensors(to);
    let (_, _, data) = all.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
    // The high byte of a number: its sign and exponent.
    data[1] ^= 0x80;
    store(to, &all);
}

#[test]
fn folders_are_run_beside_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let source = model("llama");
    let check = |folder: &str| quantize(d, &["verify", folder, "--check", source.to_str().unwrap(), "--quiet"]);
    let data = ["--calibration", "default", "--calibration-tokens", "1024", "--seq-len", "128"];
    for (format, more) in [("gptq-32g", &data[..]), ("awq-32g", &data), ("mlx-4bit-32g", &[]), ("fp8", &[])] {
        let args = [&["--to", format, source.to_str().unwrap(), "-o", format, "--quiet"], more].concat();
        ok(quantize(d, &args));
        assert!(ok(check(format)).contains("beside"), "{format}");
        // Codes of one layer in the place of another's.
        let path = d.join(format).join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = |layer: usize| {
            let module = format!("layers.{layer}.self_attn.q_proj.");
            let is_codes =
                |name: &&str| ["qweight", "weight"].iter().any(|end| name.ends_with(&format!("{module}{end}")));
            (*all.names().iter().find(|name| is_codes(name)).unwrap()).to_string()
        };
        let (a, b) = (name(0), name(1));
        let other = |name: &str| {
            if name == a {
                b.clone()
            } else if name == b {
                a.clone()
            } else {
                name.to_string()
            }
        };
        let swapped: Vec<_> = all.iter().map(|(name, _)| (name, all.tensor(&other(name)).unwrap())).collect();
        std::fs::write(&path, safetensors::serialize(swapped, None).unwrap()).unwrap();
        fails(&check(format), 6, &["source"]);
    }
    // Another tokenizer, and another configuration.
    for (file, from, to) in
        [("config.json", "\"rope_theta\": ", "\"rope_theta\": 7"), ("tokenizer.json", "\"a\": ", "\"\u{e9}\u{e9}\": ")]
    {
        copy_model("llama", &d.join(file.replace('.', "-")));
        let path = d.join(file.replace('.', "-")).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} lacks {from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        fails(&check(&file.replace('.', "-")), 6, &[]);
    }
}
