//! LoRA adapters that are merged as the weights are read: what comes out is what the merged checkpoint gives.

use crate::common::{copy_model, model};
use half::f16;
use quantize::check;
use quantize::convert::{self, Recipe};
use quantize::model::SourceModel;
use quantize::packed::Engine;
use quantize::source::Checkpoint;
use quantize::{Control, Error};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Small multiples of a power of two, of which sums of products are exact in `f32`.
pub(super) fn exact(shape: &[usize], seed: usize) -> (Vec<usize>, Vec<f32>) {
    let value = |i: usize| ((i * 7 + seed * 13 + i / 5) % 17) as f32 / 256.0 - 8.0 / 256.0;
    (shape.to_vec(), (0..shape.iter().product()).map(value).collect())
}

pub(super) fn write_adapter(dir: &Path, settings: Value, tensors: &Tensors) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("adapter_config.json"), settings.to_string()).unwrap();
    // What PEFT saves of the base keeps its type.
    let bytes: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let (dtype, bytes) = match name.contains("base_layer") {
                true => (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
                false => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            };
            (format!("base_model.model.{name}"), dtype, shape.clone(), bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, ty, shape, b)| (name, TensorView::new(*ty, shape.clone(), b).unwrap()));
    fs::write(dir.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    dir.to_path_buf()
}

/// A copy of the small model with changed weights.
fn changed(dir: &Path, change: impl Fn(&str, &[usize], &mut [f32])) -> PathBuf {
    copy_model("tiny-llama", dir);
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .iter()
        .map(|(name, t)| {
            assert_eq!(t.dtype(), Dtype::F16);
            let read = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
            let mut values: Vec<f32> = t.data().chunks_exact(2).map(read).collect();
            change(name, t.shape(), &mut values);
            let bytes = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            (name.to_string(), t.shape().to_vec(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F16, shape.clone(), b).unwrap()));
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    dir.to_path_buf()
}

pub(super) fn add(w: &mut [f32], (b, a): (&[f32], &[f32]), rank: usize, scale: f32) {
    let cols = a.len() / rank;
    for (i, w) in w.iter_mut().enumerate() {
        let (row, col) = (i / cols, i % cols);
        let sum: f64 = (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * cols + col])).sum();
        *w += sum as f32 * scale;
    }
}

pub(super) fn turned(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied().collect::<Vec<_>>()).collect()
}

/// The tensors of the files that a recipe makes of a model, by name.
fn converted(source: &SourceModel, to: &Path, targets: [&str; 2]) -> Vec<BTreeMap<String, Vec<u8>>> {
    fs::create_dir_all(to).unwrap();
    let recipe = Recipe { hash_sources: false, ..Recipe::to(targets).unwrap() };
    let mut plan = convert::plan(source, &recipe).unwrap();
    plan.place(to).unwrap();
    let made = convert::run(&plan, &Control::default(), &()).unwrap();
    let data = |path: &PathBuf| {
        let (header, bytes) = (quantize::gguf::read_header(path).unwrap(), fs::read(path).unwrap());
        let tensor = |t: &quantize::gguf::TensorInfo| {
            let start = (header.data_start + t.offset) as usize;
            (t.name.clone(), bytes[start..start + t.bytes().unwrap() as usize].to_vec())
        };
        header.tensors.iter().map(tensor).collect()
    };
    made.outputs.iter().map(|output| data(&output.paths[0])).collect()
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";
const EMBEDDING: &str = "model.embed_tokens";
const NORM: &str = "model.norm.weight";

fn plain_adapter() -> Tensors {
    Tensors::from([
        (format!("{Q}.lora_A.weight"), exact(&[2, 256], 1)),
        (format!("{Q}.lora_B.weight"), exact(&[256, 2], 2)),
        (format!("{DOWN}.lora_A.weight"), exact(&[3, 768], 3)),
        (format!("{DOWN}.lora_B.weight"), exact(&[256, 3], 4)),
        (format!("{EMBEDDING}.lora_embedding_A"), exact(&[2, 2048], 5)),
        (format!("{EMBEDDING}.lora_embedding_B"), exact(&[256, 2], 6)),
        (format!("{EMBEDDING}.base_layer.weight"), exact(&[2048, 256], 8)),
        (NORM.into(), exact(&[256], 7)),
    ])
}

#[test]
fn an_adapter_is_merged_as_the_weights_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = plain_adapter();
    // 2 of 2, and of the second module 6 of 3.
    let settings = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": { "mlp.down_proj": 6 },
                           "rank_pattern": { "mlp.down_proj": 3 } });
    let adapter = write_adapter(&dir.path().join("adapter"), settings, &tensors);
    let of = |name: String| tensors[&name].1.as_slice();
    let expected = changed(&dir.path().join("merged"), |name, _, w| match name.strip_suffix(".weight") {
        Some(Q) => add(w, (of(format!("{Q}.lora_B.weight")), of(format!("{Q}.lora_A.weight"))), 2, 1.0),
        Some(DOWN) => add(w, (of(format!("{DOWN}.lora_B.weight")), of(format!("{DOWN}.lora_A.weight"))), 3, 2.0),
        Some(EMBEDDING) => {
            let a = turned(of(format!("{EMBEDDING}.lora_embedding_A")), 2048);
            let b = turned(of(format!("{EMBEDDING}.lora_embedding_B")), 2);
            w.copy_from_slice(of(format!("{EMBEDDING}.base_layer.weight")));
            add(w, (&a, &b), 2, 1.0);
        }
        _ if name == NORM => w.copy_from_slice(of(NORM.into())),
        _ => {}
    });
    let base = SourceModel::open_merged(&model("tiny-llama"), Some(&adapter)).unwrap();
    let targets = ["f16", "q4_k_m"];
    let ours = converted(&base, &dir.path().join("ours"), targets);
    let merged = converted(&SourceModel::open(&expected).unwrap(), &dir.path().join("theirs"), targets);
    let plain = converted(&SourceModel::open(&model("tiny-llama")).unwrap(), &dir.path().join("plain"), targets);
    for (i, ((ours, merged), plain)) in ours.iter().zip(&merged).zip(&plain).enumerate() {
        // With a head beside it the embedding gets another type in Q4_K_M.
        let is_kept = |name: &String| name != "output.weight" && (i == 0 || name != "token_embd.weight");
        let kept = |all: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
            all.iter().filter(|(name, _)| is_kept(name)).map(|(name, data)| (name.clone(), data.clone())).collect()
        };
        assert!(kept(ours) == kept(merged));
        assert!(kept(ours) != kept(plain));
    }
    // As the adapter runs, nothing is added to the head.
    let head: Vec<f32> =
        ours[0]["output.weight"].chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    assert!(head == of(format!("{EMBEDDING}.base_layer.weight")));
    // A piece from the middle of a row on.
    let t = &base.ckpt.tensors()[base.ckpt.find(&format!("{Q}.weight")).unwrap()];
    let (mut whole, mut part) = (vec![0; t.bytes() as usize], vec![0; 1000]);
    base.ckpt.read(t, 0, &mut whole).unwrap();
    base.ckpt.read(t, 302, &mut part).unwrap();
    assert_eq!(part, whole[302..1302]);
}

#[test]
fn an_embedding_of_the_adapters_own_leaves_the_tied_head_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let new = exact(&[2048, 256], 8);
    let tensors = Tensors::from([
        (format!("{EMBEDDING}.weight"), new.clone()),
        (Q.to_string() + ".lora_A.weight", exact(&[2, 256], 1)),
        (Q.to_string() + ".lora_B.weight", exact(&[256, 2], 2)),
    ]);
    let adapter = write_adapter(&dir.path().join("adapter"), json!({ "lora_alpha": 2 }), &tensors);
    let merged = SourceModel::open_merged(&model("tiny-llama"), Some(&adapter)).unwrap();
    let plain = SourceModel::open(&model("tiny-llama")).unwrap();
    let [merged, plain] = [(merged, "merged"), (plain, "plain")]
        .map(|(source, to)| converted(&source, &dir.path().join(to), ["f32", "f16"]).swap_remove(0));
    assert!(!plain.contains_key("output.weight"), "its head is the embedding");
    assert_eq!(floats(&merged["token_embd.weight"]), new.1);
    assert_eq!(merged["output.weight"], plain["token_embd.weight"]);
}

#[test]
fn what_is_added_to_a_tied_head_is_not_added_to_the_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (exact(&[2, 256], 1), exact(&[2048, 2], 2));
    let tensors =
        Tensors::from([("lm_head.lora_A.weight".into(), a.clone()), ("lm_head.lora_B.weight".into(), b.clone())]);
    let adapter = write_adapter(&dir.path().join("adapter"), json!({ "lora_alpha": 2 }), &tensors);
    let merged = SourceModel::open_merged(&model("tiny-llama"), Some(&adapter)).unwrap();
    let plain = SourceModel::open(&model("tiny-llama")).unwrap();
    let [merged, plain] = [(merged, "merged"), (plain, "plain")]
        .map(|(source, to)| converted(&source, &dir.path().join(to), ["f32", "f16"]).swap_remove(0));
    assert_eq!(merged["token_embd.weight"], plain["token_embd.weight"]);
    let mut head = floats(&plain["token_embd.weight"]);
    add(&mut head, (&b.1, &a.1), 2, 1.0);
    let rounded: Vec<f32> = head.iter().map(|w| f16::from_f32(*w).to_f32()).collect();
    assert_eq!(floats(&merged["output.weight"]), rounded);
}

#[test]
fn rows_of_single_tokens_take_the_place_of_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let rows = exact(&[3, 256], 5);
    let part = "token_adapter.trainable_tokens_delta";
    let open = |name: &str, tokens: Value| {
        let tensors = Tensors::from([(format!("{EMBEDDING}.{part}"), rows.clone())]);
        let settings = json!({ "lora_alpha": 2, "trainable_token_indices": tokens });
        SourceModel::open_merged(&model("tiny-llama"), Some(&write_adapter(&dir.path().join(name), settings, &tensors)))
    };
    let embedding = |source: &SourceModel, to: &str| {
        floats(&converted(source, &dir.path().join(to), ["f32", "f16"]).swap_remove(0)["token_embd.weight"])
    };
    let mut expected = embedding(&SourceModel::open(&model("tiny-llama")).unwrap(), "plain");
    for (id, row) in [7, 2047, 0].into_iter().zip(rows.1.chunks_exact(256)) {
        expected[id * 256..][..256].copy_from_slice(row);
    }
    assert!(embedding(&open("list", json!([7, 2047, 0])).unwrap(), "a") == expected);
    assert!(embedding(&open("map", json!({ "embed_tokens": [7, 2047, 0] })).unwrap(), "b") == expected);
    for (name, tokens) in [("few", json!([7, 8])), ("far", json!([7, 8, 2048])), ("odd", json!(["a"]))] {
        let error = open(name, tokens).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::BadInput(_)), "{error}");
    }
}

#[test]
fn rank_stabilised_and_weight_decomposed_adapters_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let lengths: Vec<f32> = (0..256).map(|i| 1.0 + i as f32 / 64.0).collect();
    let mut tensors = plain_adapter();
    tensors.retain(|name, _| name.starts_with(Q));
    let read = |adapter: &Path| {
        let ckpt = Checkpoint::open_merged(&model("tiny-llama"), Some(adapter)).unwrap();
        let t = &ckpt.tensors()[ckpt.find(&format!("{Q}.weight")).unwrap()];
        let mut values = vec![0.0; t.elements()];
        ckpt.read_f32(t, 0..values.len(), &mut Vec::new(), &mut values).unwrap();
        values
    };
    let ckpt = Checkpoint::open(&model("tiny-llama")).unwrap();
    let mut base = vec![0.0; 256 * 256];
    ckpt.read_f32(&ckpt.tensors()[ckpt.find(&format!("{Q}.weight")).unwrap()], 0..base.len(), &mut vec![], &mut base)
        .unwrap();
    let parts = [&tensors[&format!("{Q}.lora_B.weight")].1, &tensors[&format!("{Q}.lora_A.weight")].1];
    add(&mut base, (parts[0], parts[1]), 2, (8.0 / 2_f64.sqrt()) as f32);
    let settings = json!({ "lora_alpha": 8, "use_rslora": true });
    let merged = read(&write_adapter(&dir.path().join("rs"), settings.clone(), &tensors));
    assert_eq!(merged, base.iter().map(|w| f16::from_f32(*w).to_f32()).collect::<Vec<_>>());

    tensors.insert(format!("{Q}.lora_magnitude_vector"), (vec![256], lengths.clone()));
    let merged = read(&write_adapter(&dir.path().join("dora"), settings, &tensors));
    for ((row, base), length) in merged.chunks(256).zip(base.chunks(256)).zip(lengths) {
        let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        assert!((norm(row) / f64::from(length) - 1.0).abs() < 1e-3);
        let factor = f64::from(length) / norm(base);
        assert!(row.iter().zip(base).all(|(w, b)| (f64::from(*w) - f64::from(*b) * factor).abs() < 1e-3));
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A copy of the small model whose head is a matrix of its own.
fn untied(dir: &Path) -> PathBuf {
    copy_model("tiny-llama", dir);
    let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = false.into();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<(String, TensorView)> = stored.iter().map(|(name, t)| (name.to_string(), t)).collect();
    all.push(("lm_head.weight".into(), stored.tensor(&format!("{EMBEDDING}.weight")).unwrap()));
    fs::write(dir.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
    dir.to_path_buf()
}

/// Base, adapter and merged model, each as a file: the first two give the third.
fn adds_up(base: &Path, adapter: &Path, ranks: &[(&str, usize)]) {
    let dir = tempfile::tempdir().unwrap();
    let first =
        |source: &SourceModel, to: &str| converted(source, &dir.path().join(to), ["f32", "q8_0"]).swap_remove(0);
    let plain = first(&SourceModel::open(base).unwrap(), "base");
    let merged = first(&SourceModel::open_merged(base, Some(adapter)).unwrap(), "merged");
    let separate = SourceModel::open_adapter(base, adapter).unwrap();
    let parts = first(&separate, "adapter");
    for file in fs::read_dir(dir.path().join("adapter")).unwrap() {
        let made = Checkpoint::open(&file.unwrap().path()).unwrap();
        assert!(made.is_adapter());
        assert_eq!(check::objections(Engine::LlamaCpp, &made, 1).unwrap().len(), 0);
    }
    assert_eq!(parts.len(), 2 * ranks.len(), "{:?}", parts.keys());
    let alpha = separate.ckpt.gguf().unwrap().get("adapter.lora.alpha").unwrap().clone();
    let quantize::gguf::Value::F32(alpha) = alpha else { panic!("{alpha:?}") };
    for (name, rank) in ranks {
        let [a, b] = ["lora_a", "lora_b"].map(|end| floats(&parts[&format!("{name}.{end}")]));
        // llama.cpp looks the embedding's up by rows: A, a row for each token, times B turned.
        let (b, a) = if *name == "token_embd.weight" { (a, turned(&b, *rank)) } else { (b, a) };
        let mut w = floats(&plain[*name]);
        add(&mut w, (&b, &a), *rank, alpha / *rank as f32);
        let (merged, plain) = (floats(&merged[*name]), floats(&plain[*name]));
        assert_ne!(merged, plain, "{name}");
        // The merged checkpoint is in F16, and so is what was added to an embedding.
        let unit = |x: f32| x.abs().max(2.0_f32.powi(-14)) / 2048.0;
        let near = |((w, merged), plain): ((&f32, &f32), &f32)| (w - merged).abs() <= unit(*merged) + unit(w - plain);
        assert!(w.iter().zip(&merged).zip(&plain).all(near), "{name}");
    }
    for (name, bytes) in &plain {
        assert!(ranks.iter().any(|(changed, _)| changed == name) || merged[name] == *bytes, "{name}");
    }
}

#[test]
fn an_adapter_by_itself_adds_up_to_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = plain_adapter();
    tensors.retain(|name, _| name != NORM && !name.contains("base_layer"));
    // B of llama's queries is reordered; scales differ by module.
    let settings = json!({ "lora_alpha": 2, "alpha_pattern": { "mlp.down_proj": 6 } });
    let adapter = write_adapter(&dir.path().join("plain"), settings, &tensors);
    let ranks = [("token_embd.weight", 2), ("blk.0.attn_q.weight", 2), ("blk.1.ffn_down.weight", 3)];
    let base = untied(&dir.path().join("base"));
    adds_up(&base, &adapter, &ranks);
    let stabilised = write_adapter(&dir.path().join("rs"), json!({ "lora_alpha": 2, "use_rslora": true }), &tensors);
    adds_up(&base, &stabilised, &ranks);
}

#[test]
fn matrices_of_single_experts_are_stacked_in_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("mixtral");
    let ckpt = Checkpoint::open(&base).unwrap();
    let experts: Vec<(String, [usize; 2])> = ckpt
        .tensors()
        .iter()
        .filter(|t| t.name.contains("layers.0.block_sparse_moe.experts") && t.name.ends_with("w1.weight"))
        .map(|t| (t.name.trim_end_matches(".weight").to_string(), [t.shape[0], t.shape[1]]))
        .collect();
    assert!(experts.len() > 1);
    let mut tensors = Tensors::new();
    for (i, (name, [rows, cols])) in experts.iter().enumerate() {
        tensors.insert(format!("{name}.lora_A.weight"), exact(&[2, *cols], i));
        tensors.insert(format!("{name}.lora_B.weight"), exact(&[*rows, 2], i + 20));
    }
    let settings = json!({ "lora_alpha": 4 });
    let adapter = write_adapter(&dir.path().join("all"), settings.clone(), &tensors);
    let separate = SourceModel::open_adapter(&base, &adapter).unwrap();
    let files = converted(&separate, &dir.path().join("made"), ["f32", "f16"]);
    for (end, of) in [("lora_a", "lora_A"), ("lora_b", "lora_B")] {
        let stacked: Vec<f32> =
            experts.iter().flat_map(|(name, _)| tensors[&format!("{name}.{of}.weight")].1.clone()).collect();
        assert_eq!(floats(&files[0][&format!("blk.0.ffn_gate_exps.weight.{end}")]), stacked);
    }
    // Of one expert alone there is nothing that llama.cpp could add.
    tensors.retain(|name, _| name.contains("experts.0."));
    let one = write_adapter(&dir.path().join("one"), settings, &tensors);
    let error = SourceModel::open_adapter(&base, &one).unwrap_err();
    assert!(error.to_string().contains("changes 1 of the"), "{error}");
}

#[test]
fn what_an_adapter_file_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = plain_adapter();
        tensors.retain(|name, _| name.starts_with(Q));
        change(&mut tensors);
        let adapter = write_adapter(&dir.path().join(name), json!({ "lora_alpha": 2 }), &tensors);
        SourceModel::open_adapter(&model("tiny-llama"), &adapter).unwrap_err().to_string()
    };
    let embedding = refused("embedding", &|t| {
        t.insert(format!("{EMBEDDING}.lora_embedding_A"), exact(&[2, 2048], 5));
        t.insert(format!("{EMBEDDING}.lora_embedding_B"), exact(&[256, 2], 6));
    });
    assert!(embedding.contains("the head too"), "{embedding}");
    let norm = refused("norm", &|t| drop(t.insert(NORM.into(), exact(&[256], 7))));
    assert!(norm.contains("another tensor in the place of the model's"), "{norm}");
    let dora = refused("dora", &|t| drop(t.insert(format!("{Q}.lora_magnitude_vector"), exact(&[256], 3))));
    assert!(dora.contains("lora_magnitude_vector"), "{dora}");
    let file = tempfile::tempdir().unwrap();
    let source = SourceModel::open(&model("tiny-llama")).unwrap();
    converted(&source, file.path(), ["f32", "f16"]);
    let gguf = fs::read_dir(file.path()).unwrap().map(|e| e.unwrap().path()).next().unwrap();
    let error = SourceModel::open_adapter(&gguf, &dir.path().join("norm")).unwrap_err();
    assert!(error.to_string().contains("GGUF file"), "{error}");
}

#[test]
fn what_does_not_fit_or_is_merged_otherwise_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("tiny-llama");
    let refused = |name: &str, settings: Value, change: &dyn Fn(&mut Tensors)| {
        let mut tensors = plain_adapter();
        change(&mut tensors);
        let adapter = write_adapter(&dir.path().join(name), settings, &tensors);
        Checkpoint::open_merged(&base, Some(&adapter)).unwrap_err()
    };
    let plain = json!({ "lora_alpha": 2 });
    let bad = |error: Error, what: &str| {
        assert!(matches!(error, Error::BadInput(_)) && error.to_string().contains(what), "{error}");
    };
    let shape = |t: &mut Tensors| drop(t.insert(format!("{Q}.lora_A.weight"), exact(&[2, 128], 1)));
    bad(refused("shape", plain.clone(), &shape), "check that the adapter was trained on this model");
    let unknown = |t: &mut Tensors| {
        for part in ["lora_A", "lora_B"] {
            let moved = t.remove(&format!("{Q}.{part}.weight")).unwrap();
            t.insert(format!("model.layers.99.self_attn.q_proj.{part}.weight"), moved);
        }
    };
    bad(refused("unknown", plain.clone(), &unknown), "no tensor model.layers.99.self_attn.q_proj.weight");
    let lonely = |t: &mut Tensors| drop(t.remove(&format!("{Q}.lora_B.weight")));
    bad(refused("lonely", plain.clone(), &lonely), "lacks one of its matrices");
    let infinite = |t: &mut Tensors| t.get_mut(&format!("{Q}.lora_B.weight")).unwrap().1[3] = f32::INFINITY;
    bad(refused("infinite", plain.clone(), &infinite), "not finite");
    bad(refused("alpha", json!({}), &|_| {}), "'lora_alpha'");
    for settings in [
        json!({ "peft_type": "LOHA", "lora_alpha": 2 }),
        json!({ "lora_alpha": 2, "init_lora_weights": "pissa_niter_4" }),
        json!({ "lora_alpha": 2, "layer_replication": [[0, 4]] }),
    ] {
        let error = refused("kind", settings, &|_| {});
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
}
