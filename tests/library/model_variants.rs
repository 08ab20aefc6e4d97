//! Checkpoints that differ from the conformance models in spelling, in packing or by a fault: what is accepted must mean
//! the same, what is refused must be refused with a message that names the tensor, the shape and the file.

use crate::common::model;
use quantize::Error;
use quantize::gguf::{TensorInfo, encode_header, layout};
use quantize::model::config::RopeScaling;
use quantize::model::{Config, Model, Role, gguf_metadata};
use quantize::quant::GgmlType;
use quantize::source::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A checkpoint in memory: configuration, and tensors as F16 bytes by name.
struct Draft {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

fn draft(name: &str) -> Draft {
    let dir = model(name);
    let config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let ckpt = Checkpoint::open(&dir).unwrap();
    let tensors = ckpt.tensors().iter().map(|t| {
        let mut bytes = vec![0; (t.range.end - t.range.start) as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        (t.name.clone(), (t.shape.clone(), bytes))
    });
    Draft { config, tensors: tensors.collect() }
}

impl Draft {
    fn set(&mut self, name: &str, shape: &[usize]) {
        self.tensors.insert(name.into(), (shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()]));
    }

    fn rename(&mut self, new: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(k, v)| (new(&k), v)).collect();
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        let views = self
            .tensors
            .iter()
            .map(|(n, (shape, bytes))| (n.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        dir
    }

    fn open(&self) -> quantize::Result<(tempfile::TempDir, Checkpoint, Model)> {
        let dir = self.write();
        let ckpt = Checkpoint::open(dir.path())?;
        let model = Model::open(&ckpt)?;
        Ok((dir, ckpt, model))
    }

    fn refusal(&self) -> Error {
        match self.open() {
            Ok(_) => panic!("accepted"),
            Err(e) => e,
        }
    }
}

/// GGUF names, shapes and values, sorted by name.
fn contents(ckpt: &Checkpoint, model: &Model) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut all: Vec<_> = model
        .tensors
        .iter()
        .map(|t| {
            let mut values = vec![0.0; t.elements()];
            t.read_rows(ckpt, 0..t.row_count(), &mut Vec::new(), &mut values).unwrap();
            (t.name.clone(), t.shape.clone(), values)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn original(name: &str) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let ckpt = Checkpoint::open(&model(name)).unwrap();
    let model = Model::open(&ckpt).unwrap();
    contents(&ckpt, &model)
}

#[test]
fn experts_in_one_tensor_equal_experts_apart() {
    for (name, module, weights) in [
        ("mixtral", "block_sparse_moe", ["w1", "w3", "w2"]),
        ("qwen3-moe", "mlp", ["gate_proj", "up_proj", "down_proj"]),
    ] {
        let mut d = draft(name);
        let count = d.tensors.keys().filter(|k| k.contains("layers.0.") && k.contains(weights[0])).count();
        for layer in 0..3 {
            let (mut gate_up, mut down) = (Vec::new(), Vec::new());
            for e in 0..count {
                let mut take = |w: &str| {
                    d.tensors.remove(&format!("model.layers.{layer}.{module}.experts.{e}.{w}.weight")).unwrap()
                };
                gate_up.extend([take(weights[0]), take(weights[1])]);
                down.push(take(weights[2]));
            }
            let [out, inner] = gate_up[0].0[..] else { panic!() };
            let bytes = |v: Vec<(Vec<usize>, Vec<u8>)>| v.into_iter().flat_map(|t| t.1).collect::<Vec<_>>();
            let base = format!("model.layers.{layer}.mlp.experts");
            d.tensors.insert(format!("{base}.gate_up_proj"), (vec![count, 2 * out, inner], bytes(gate_up)));
            d.tensors.insert(format!("{base}.down_proj"), (vec![count, inner, out], bytes(down)));
        }
        d.rename(|n| n.replace("block_sparse_moe.gate", "mlp.gate"));
        let (_dir, ckpt, model) = d.open().unwrap();
        assert_eq!(contents(&ckpt, &model), original(name), "{name}");
        let gate = model.find(Role::ExpertGate, Some(1)).unwrap();
        assert_eq!((gate.parts.len(), gate.half), (1, Some(0)));
        // Ranges across experts.
        let rows = gate.shape[1] - 3..gate.shape[1] + 5;
        let mut some = vec![0.0; rows.len() * gate.cols()];
        gate.read_rows(&ckpt, rows.clone(), &mut Vec::new(), &mut some).unwrap();
        let all = original(name).into_iter().find(|t| t.0 == gate.name).unwrap().2;
        assert_eq!(some, all[rows.start * gate.cols()..rows.end * gate.cols()]);
    }
}

/// Both places where transformers has kept the text half of an image-and-text model.
#[test]
fn the_text_half_of_an_image_model_is_the_text_model() {
    for prefix in ["language_model.model.", "model.language_model."] {
        let mut d = draft("gemma3");
        d.rename(|n| n.replacen("model.", prefix, 1));
        d.set("vision_tower.vision_model.embeddings.position_embedding.weight", &[4, 8]);
        d.set("multi_modal_projector.mm_input_projection_weight", &[8, 64]);
        let mut text = d.config.clone();
        for key in ["architectures", "tie_word_embeddings", "transformers_version", "head_dim"] {
            text.as_object_mut().unwrap().remove(key);
        }
        text["head_dim"] = json!(32);
        d.config = json!({
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": { "hidden_size": 8, "num_hidden_layers": 1 },
        });
        let (_dir, ckpt, model) = d.open().unwrap();
        assert_eq!(contents(&ckpt, &model), original("gemma3"));
        assert_eq!(model.dropped.len(), 2);
        assert!(model.dropped.iter().all(|(_, why)| why.contains("image or sound encoder")));
        let expected = Config::from_hf(&draft("gemma3").config).unwrap();
        assert_eq!(model.config, expected);
    }
}

#[test]
fn tied_outputs_and_buffers_are_dropped_with_a_reason() {
    let mut d = draft("qwen2");
    let embedding = d.tensors["model.embed_tokens.weight"].clone();
    d.tensors.insert("lm_head.weight".into(), embedding);
    d.set("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]);
    let (_dir, ckpt, model) = d.open().unwrap();
    assert_eq!(contents(&ckpt, &model), original("qwen2"));
    let reasons: Vec<_> = model.dropped.iter().map(|(n, why)| (n.as_str(), why.as_str())).collect();
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].0 == "lm_head.weight" && reasons[0].1.contains("ties"));
}

/// A model saved from its base class has no head, whatever its configuration ties; a wrapper may tie what the text model's
/// part does not.
#[test]
fn heads_that_need_not_be_there() {
    let headless = |name: &str| {
        let mut d = draft(name);
        d.tensors.remove("lm_head.weight");
        d.config["tie_word_embeddings"] = false.into();
        d
    };
    for (name, class) in [("llama", "LlamaModel"), ("qwen3", "Qwen3Model"), ("mistral-window", "MistralModel")] {
        let mut d = headless(name);
        assert!(d.refusal().to_string().contains("lm_head.weight"), "{name}");
        d.config["architectures"] = json!([class]);
        let (_dir, ckpt, model) = d.open().unwrap();
        assert!(model.config.tied_embeddings);
        let mut expected = original(name);
        expected.retain(|(tensor, ..)| tensor != "output.weight");
        assert_eq!(contents(&ckpt, &model), expected, "{name}");
    }
    let mut d = headless("llama");
    d.rename(|n| format!("language_model.{n}"));
    d.config = json!({"architectures": ["SomeSpeechForConditionalGeneration"], "tie_word_embeddings": true,
        "text_config": d.config});
    d.config["text_config"].as_object_mut().unwrap().remove("architectures");
    assert!(d.open().unwrap().2.config.tied_embeddings);
    d.config["tie_word_embeddings"] = false.into();
    assert!(d.refusal().to_string().contains("lm_head.weight"));
}

#[test]
fn faults_name_tensor_shape_and_file() {
    let says = |d: &Draft, words: &[&str]| {
        let error = d.refusal();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 3, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    };
    let mut d = draft("llama");
    d.tensors.remove("model.layers.2.mlp.up_proj.weight");
    says(&d, &["model.safetensors", "'model.layers.2.mlp.up_proj.weight'", "missing", "[128, 64]"]);

    let mut d = draft("llama");
    d.tensors.remove("lm_head.weight");
    says(&d, &["lm_head.weight", "tie_word_embeddings"]);

    let mut d = draft("mixtral");
    d.tensors.remove("model.layers.1.block_sparse_moe.experts.3.w2.weight");
    says(&d, &["layers.1.block_sparse_moe.experts.3.w2", "[64, 128]"]);

    let mut d = draft("llama");
    d.set("model.layers.0.self_attn.q_proj.weight", &[64, 32]);
    says(&d, &["model.safetensors", "q_proj", "[64, 32]", "[64, 64]"]);

    let mut d = draft("llama");
    d.set("model.layers.3.mlp.up_proj.weight", &[128, 64]);
    says(&d, &["'model.layers.3.mlp.up_proj.weight'", "does not belong", "3 layers"]);

    let mut d = draft("llama");
    d.set("model.layers.0.self_attn.q_proj.bias", &[64]);
    says(&d, &["q_proj.bias", "does not belong"]);
}

#[test]
fn refusals_of_configurations_say_what_is_wrong() {
    let refused = |base: &str, changes: Value, code: u8, words: &[&str]| {
        let mut d = draft(base);
        for (key, value) in changes.as_object().unwrap() {
            d.config[key] = value.clone();
        }
        let error = Config::from_hf(&d.config).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    };
    refused("llama", json!({"architectures": ["UnheardModel"]}), 4, &["UnheardModel is not known here"]);
    refused(
        "llama",
        json!({"architectures": ["Qwen3ForSequenceClassification"]}),
        4,
        &["Qwen3ForSequenceClassification is not known here; the nearest that is: Qwen3ForCausalLM"],
    );
    refused(
        "llama",
        json!({"architectures": ["T5EncoderModel"]}),
        4,
        &["T5EncoderModel", "converted only", "importance matrix"],
    );
    refused("llama", json!({"num_hidden_layers": 0}), 3, &["layers", "0"]);
    refused("llama", json!({"num_hidden_layers": 1_000_000_000}), 3, &["layers"]);
    refused("llama", json!({"hidden_size": -64}), 3, &["hidden_size", "-64"]);
    refused("llama", json!({"hidden_size": "64"}), 3, &["hidden_size"]);
    refused("llama", json!({"hidden_size": null}), 3, &["hidden_size", "missing"]);
    refused("llama", json!({"vocab_size": u64::MAX}), 3, &["vocab"]);
    refused("llama", json!({"num_key_value_heads": 3}), 3, &["4 heads", "3 key-value"]);
    refused("llama", json!({"num_attention_heads": 5, "head_dim": null}), 3, &["64", "5"]);
    refused("llama", json!({"hidden_act": "relu"}), 4, &["relu"]);
    refused("llama", json!({"rms_norm_eps": 0}), 3, &["epsilon"]);
    refused("llama", json!({"rope_parameters": {"rope_type": "spiral"}}), 4, &["spiral"]);
    refused("llama", json!({"rope_parameters": {"rope_type": "linear"}}), 3, &["factor"]);
    refused("llama", json!({"rope_parameters": {"rope_theta": 0}}), 3, &["theta"]);
    refused("qwen3-moe", json!({"num_experts_per_tok": 9}), 3, &["8 experts", "9"]);
    refused("qwen3-moe", json!({"mlp_only_layers": [1]}), 4, &["mlp_only_layers"]);
    refused("gemma3", json!({"layer_types": ["full_attention"]}), 3, &["layer_types", "1", "6"]);
    refused("gemma3", json!({"use_bidirectional_attention": true}), 4, &["bidirectional"]);
    let quantized = {
        let mut d = draft("llama");
        d.config["quantization_config"] = json!({"quant_method": "gptq"});
        d.refusal()
    };
    assert!(quantized.exit_code() == 4 && quantized.to_string().contains("gptq"));
}

/// A configuration as transformers 4 writes it means the same as the version 5 file in the folder.
#[test]
fn transformers_4_spellings_mean_the_same() {
    let rewrite = |name: &str, remove: &[&str], add: Value| {
        let mut config = draft(name).config;
        let expected = Config::from_hf(&config).unwrap();
        for key in remove {
            config.as_object_mut().unwrap().remove(*key);
        }
        for (key, value) in add.as_object().unwrap() {
            config[key] = value.clone();
        }
        assert_eq!(Config::from_hf(&config).unwrap(), expected, "{name}");
    };
    rewrite(
        "llama",
        &["rope_parameters", "dtype", "head_dim"],
        json!({"rope_theta": 10000.0, "torch_dtype": "float16"}),
    );
    rewrite(
        "llama3-rope",
        &["rope_parameters"],
        json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
    );
    rewrite("qwen3-moe", &["num_local_experts"], json!({"num_experts": 8}));
    rewrite("mixtral", &["rope_parameters", "rms_norm_eps", "head_dim"], json!({"rope_theta": 1e6}));
    rewrite(
        "gemma3",
        &["rope_parameters", "layer_types", "_sliding_window_pattern", "tie_word_embeddings"],
        json!({"rope_theta": 1e6, "rope_local_base_freq": 10000, "sliding_window_pattern": 6, "rope_scaling": null}),
    );
    rewrite(
        "gemma2",
        &["rope_parameters", "layer_types", "attn_logit_softcapping", "final_logit_softcapping"],
        json!({"rope_theta": 10000.0}),
    );
    rewrite("phi3", &["rope_parameters", "original_max_position_embeddings"], json!({"rope_theta": 10000.0}));
}

#[test]
fn windows_follow_each_familys_rule() {
    let windows = |name: &str, changes: Value| -> Vec<usize> {
        let mut config = draft(name).config;
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = Config::from_hf(&config).unwrap();
        config.attention().map(|heads| heads.window.unwrap_or(0)).collect()
    };
    assert_eq!(windows("mistral-window", json!({})), [16, 16, 16]);
    assert_eq!(windows("mistral-window", json!({"sliding_window": null})), [0, 0, 0]);
    let late = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2, "layer_types": null});
    assert_eq!(windows("qwen2", late), [0, 0, 8]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 8})), [0, 0, 0]);
    assert_eq!(windows("gemma2", json!({"layer_types": null})), [16, 0, 16]);
    assert_eq!(windows("gemma3", json!({})), [16, 16, 16, 16, 16, 0]);
}

/// Phi3 stretched to eight times its context: factors become tensors, and come back from a GGUF file.
#[test]
fn long_rope_factors_become_tensors() {
    let mut d = draft("phi3");
    let long: Vec<f32> = (1..=8).map(|i| 1.0 + i as f32).collect();
    let short: Vec<f32> = (1..=8).map(|i| 1.0 + i as f32 / 8.0).collect();
    d.config["original_max_position_embeddings"] = json!(32);
    d.config["rope_parameters"] = Value::Null;
    d.config["rope_scaling"] = json!({"type": "su", "long_factor": long, "short_factor": short});
    let (_dir, ckpt, model) = d.open().unwrap();
    let names: Vec<_> = model.generated.iter().map(|g| (g.name.as_str(), g.values.clone())).collect();
    assert_eq!(names, [("rope_factors_long.weight", long), ("rope_factors_short.weight", short)]);
    assert!(matches!(model.config.ropes[0].scaling, RopeScaling::LongRope { original_context: 32, .. }));
    let meta = gguf_metadata(&model, &ckpt, 1).unwrap();
    let factor = (1.0 + 8f64.ln() / 32f64.ln()).sqrt() as f32;
    assert_eq!(meta.f32("phi3.rope.scaling.attn_factor"), Some(factor));
    assert_eq!(meta.uint("phi3.rope.scaling.original_context_length"), Some(32));
    let back = through_gguf(&ckpt, &model);
    assert_eq!(back.1.generated, model.generated);
    let RopeScaling::LongRope { long, original_context, attention_factor, .. } = &back.1.config.ropes[0].scaling else {
        panic!("{:?}", back.1.config.ropes[0].scaling)
    };
    assert_eq!((long[7], *original_context, *attention_factor), (9.0, 32, Some(factor)));

    d.config["rope_scaling"]["long_factor"] = json!([1.0, 2.0]);
    let text = d.refusal().to_string();
    assert!(text.contains("2 long") && text.contains("config.json"), "{text}");
}

/// Writes the model as an F32 GGUF file and opens it again.
fn through_gguf(ckpt: &Checkpoint, model: &Model) -> (Checkpoint, Model, tempfile::TempDir) {
    let mut meta = gguf_metadata(model, ckpt, 0).unwrap();
    meta.set("tokenizer.ggml.tokens", vec![String::new(); model.config.vocab]);
    let mut infos = Vec::new();
    let mut data = Vec::new();
    let mut add = |name: &str, shape: &[usize], values: &[f32]| {
        let dims = shape.iter().rev().map(|d| *d as u64).collect();
        infos.push(TensorInfo { name: name.into(), dims, ty: GgmlType::F32, offset: 0 });
        data.push(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    };
    for g in &model.generated {
        add(&g.name, &g.shape, &g.values);
    }
    for t in &model.tensors {
        let mut values = vec![0.0; t.elements()];
        t.read_rows(ckpt, 0..t.row_count(), &mut Vec::new(), &mut values).unwrap();
        add(&t.name, &t.shape, &values);
    }
    layout(&mut infos, 32).unwrap();
    let mut file = encode_header(&meta, &infos, 32);
    let start = file.len();
    for (info, bytes) in infos.iter().zip(&data) {
        file.resize(start + info.offset as usize, 0);
        file.extend(bytes);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file).unwrap();
    let ckpt = Checkpoint::open(&path).unwrap();
    let model = Model::open(&ckpt).unwrap();
    (ckpt, model, dir)
}

#[test]
fn a_gguf_source_is_the_same_model() {
    for name in ["gemma3", "llama-tied-headdim", "llama3-rope", "mixtral", "phi3", "qwen2", "qwen2-moe", "qwen3"] {
        let ckpt = Checkpoint::open(&model(name)).unwrap();
        let model = Model::open(&ckpt).unwrap();
        let (again, back, _dir) = through_gguf(&ckpt, &model);
        assert_eq!(contents(&again, &back), contents(&ckpt, &model), "{name}");
        assert_eq!(back.generated, model.generated, "{name}");
        assert_eq!(back.config.layers, model.config.layers, "{name}");
        assert_eq!(back.config.tied_embeddings, model.config.tied_embeddings, "{name}");
        let order = |m: &Model| m.tensors.iter().map(|t| (t.name.clone(), t.role, t.layer)).collect::<Vec<_>>();
        assert_eq!(order(&back), order(&model), "{name}");
        let meta = gguf_metadata(&back, &again, 15).unwrap();
        assert_eq!(meta.uint("general.file_type"), Some(15));
        assert_eq!(meta.str("general.name"), gguf_metadata(&model, &ckpt, 0).unwrap().str("general.name"));
    }
}

/// What a model card says goes where gguf-py puts it; nested tables of the front matter are passed over.
#[test]
fn the_model_card_becomes_general_keys() {
    let d = draft("phi3");
    let dir = d.write();
    let card = "---\nlicense: mit\nlicense_link: https://example.org/LICENSE\nlanguage:\n- en\n- \"no\"\npipeline_tag: text-generation\n\
        tags: [nlp, 'code']\nbase_model:\n- microsoft/Phi-3-mini-4k-instruct\ndatasets:\n  - org/some-data-v2\n\
        \x20 - https://huggingface.co/datasets/x/y\nwidget:\n  - messages:\n      - role: user\n        content: Can you\n---\n\
        license: other\n";
    std::fs::write(dir.path().join("README.md"), card).unwrap();
    let settings = r#"{"top_k": 64, "temperature": 0.5, "repetition_penalty": 1.25, "do_sample": true, "min_p": null}"#;
    std::fs::write(dir.path().join("generation_config.json"), settings).unwrap();
    let ckpt = Checkpoint::open(dir.path()).unwrap();
    let meta = gguf_metadata(&Model::open(&ckpt).unwrap(), &ckpt, 1).unwrap();
    for (key, value) in [
        ("license", "mit"),
        ("license.link", "https://example.org/LICENSE"),
        ("base_model.0.name", "Phi 3 Mini 4k Instruct"),
        ("base_model.0.organization", "Microsoft"),
        ("base_model.0.repo_url", "https://huggingface.co/microsoft/Phi-3-mini-4k-instruct"),
        ("dataset.0.name", "Some Data v2"),
        ("dataset.0.version", "v2"),
        ("dataset.1.repo_url", "https://huggingface.co/datasets/x/y"),
    ] {
        assert_eq!(meta.str(&format!("general.{key}")), Some(value), "{key}");
    }
    assert_eq!(meta.uint("general.dataset.count"), Some(2));
    assert!(meta.get("general.dataset.1.name").is_none());
    assert_eq!(meta.strings("general.tags").unwrap(), ["nlp", "code", "text-generation"]);
    assert_eq!(meta.strings("general.languages").unwrap(), ["en", "no"]);
    let sampling: Vec<_> = meta.iter().filter(|(k, _)| k.starts_with("general.sampling.")).collect();
    use quantize::gguf::Value::{F32, I32};
    assert_eq!(
        sampling,
        [
            ("general.sampling.top_k", &I32(64)),
            ("general.sampling.temp", &F32(0.5)),
            ("general.sampling.penalty_repeat", &F32(1.25))
        ]
    );
}

/// A snapshot of the Hub's cache: the files lie under a commit, which must not become the model's name.
#[test]
fn a_hub_snapshot_is_named_after_its_repository() {
    let d = draft("qwen3");
    let source = d.write();
    let cache = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let named_after = |dir: PathBuf| {
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(source.path().join(file), dir.join(file)).unwrap();
        }
        let ckpt = Checkpoint::open(&dir).unwrap();
        gguf_metadata(&Model::open(&ckpt).unwrap(), &ckpt, 1).unwrap()
    };
    let meta = named_after(cache.path().join("models--Qwen--Qwen3-8B").join("snapshots").join(commit));
    assert_eq!(meta.str("general.name"), Some("Qwen3 8B"));
    assert_eq!(meta.str("general.organization"), Some("Qwen"));
    let meta = named_after(cache.path().join(commit));
    assert_eq!(meta.str("general.name"), Some("Qwen3"));
}
