//! Adapters on raw parameters, as the fused experts of a layer (PEFT's `target_parameters`), magnitudes of columns, and
//! vocabularies that were changed before training.

use crate::common::model;
use crate::lora::{Tensors, add, exact, turned, write_adapter};
use half::f16;
use quantize::Error;
use quantize::source::Checkpoint;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn read(ckpt: &Checkpoint, name: &str) -> Vec<f32> {
    let t = &ckpt.tensors()[ckpt.find(name).unwrap_or_else(|| panic!("no {name}"))];
    let mut values = vec![0.0; t.elements()];
    ckpt.read_f32(t, 0..values.len(), &mut Vec::new(), &mut values).unwrap();
    values
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|w| f16::from_f32(*w).to_f32()).collect()
}

const RANK: usize = 2;

/// Σ over the rank of B[o, k·E + e] · A[e·r + k, i], of PEFT's `einsum("o r e, e r i -> e o i")`.
fn of_expert(expert: usize, experts: usize, a: &[f32], b: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let ranks = experts * RANK;
    let input = a.len() / ranks;
    let right = a[expert * RANK * input..(expert + 1) * RANK * input].to_vec();
    let left = b.chunks_exact(ranks).flat_map(|row| (0..RANK).map(move |k| row[k * experts + expert])).collect();
    (left, right)
}

fn adapter(dir: &Path, settings: Value, experts: usize, parts: [[usize; 2]; 2]) -> (PathBuf, Tensors) {
    let [both, down] = parts;
    let module = "model.layers.0.mlp.experts";
    let tensors: Tensors = [(".base_layer", both, 3), ("", down, 5)]
        .into_iter()
        .flat_map(|(wrapped, [output, input], seed)| {
            [
                (format!("{module}{wrapped}.lora_A.weight"), exact(&[experts * RANK, input], seed)),
                (format!("{module}{wrapped}.lora_B.weight"), exact(&[output, experts * RANK], seed + 1)),
            ]
        })
        .collect();
    (write_adapter(dir, settings, &tensors), tensors)
}

#[test]
fn adapters_on_the_parameters_of_experts_are_merged_into_each() {
    let dir = tempfile::tempdir().unwrap();
    let module = "model.layers.0.mlp.experts";
    for (name, block, names, experts, parts) in [
        ("qwen3-moe", "model.layers.0.mlp", ["gate_proj", "up_proj", "down_proj"], 8, [[128, 64], [64, 64]]),
        ("mixtral", "model.layers.0.block_sparse_moe", ["w1", "w3", "w2"], 4, [[256, 64], [64, 128]]),
    ] {
        let settings =
            json!({ "lora_alpha": 4, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] });
        let (path, tensors) = adapter(&dir.path().join(name), settings, experts, parts);
        let plain = Checkpoint::open(&model(name)).unwrap();
        let merged = Checkpoint::open_merged(&model(name), Some(&path)).unwrap();
        let of = |part: &str| tensors[&format!("{module}{part}.weight")].1.as_slice();
        for expert in 0..experts {
            let name = |i: usize| format!("{block}.experts.{expert}.{}.weight", names[i]);
            let (left, right) = of_expert(expert, experts, of(".base_layer.lora_A"), of(".base_layer.lora_B"));
            let half = left.len() / 2;
            for (i, left) in [&left[..half], &left[half..]].into_iter().enumerate() {
                let mut expected = read(&plain, &name(i));
                add(&mut expected, (left, &right), RANK, 2.0);
                assert!(read(&merged, &name(i)) == rounded(&expected), "{}", name(i));
            }
            let (left, right) = of_expert(expert, experts, of(".lora_A"), of(".lora_B"));
            let mut expected = read(&plain, &name(2));
            add(&mut expected, (&left, &right), RANK, 2.0);
            assert!(read(&merged, &name(2)) == rounded(&expected), "{}", name(2));
        }
        let layer_1 = format!("{}.experts.0.{}.weight", block.replace(".0.", ".1."), names[0]);
        assert!(read(&merged, &layer_1) == read(&plain, &layer_1));
    }
}

/// Stacks with the inputs first, as gpt-oss has them.
#[test]
fn adapters_on_stacks_are_merged_as_the_stack_lies() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    let module = "model.layers.0.mlp.experts";
    let store = |kind: &str, shapes: [[usize; 3]; 2]| {
        std::fs::write(base.join("config.json"), json!({ "model_type": kind }).to_string()).unwrap();
        let bytes: Vec<(String, [usize; 3], Vec<u8>)> = ["gate_up_proj", "down_proj"]
            .into_iter()
            .zip(shapes)
            .map(|(name, shape)| {
                let bytes = exact(&shape, 9).1.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
                (format!("{module}.{name}"), shape, bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.to_vec(), bytes).unwrap())
        });
        std::fs::write(base.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    };
    // Of the last, the shape does not tell.
    for (kind, both, down, inputs_first) in [
        ("gpt_oss", [4, 32, 96], [4, 48, 32], true),
        ("novel", [4, 96, 32], [4, 32, 48], false),
        ("gpt_oss", [4, 32, 64], [4, 32, 32], true),
        ("novel", [4, 64, 32], [4, 32, 32], false),
    ] {
        store(kind, [both, down]);
        let sizes = |shape: [usize; 3]| if inputs_first { [shape[2], shape[1]] } else { [shape[1], shape[2]] };
        let settings = json!({ "lora_alpha": 4, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"] });
        let parts = [sizes(both), sizes(down)];
        let (path, tensors) = adapter(&dir.path().join("adapter"), settings, 4, parts);
        let (plain, merged) = (Checkpoint::open(&base).unwrap(), Checkpoint::open_merged(&base, Some(&path)).unwrap());
        for (name, wrapped, [_, rows, cols]) in [("gate_up_proj", ".base_layer", both), ("down_proj", "", down)] {
            let of = |part: &str| tensors[&format!("{module}{wrapped}.{part}.weight")].1.as_slice();
            let mut expected = read(&plain, &format!("{module}.{name}"));
            for (expert, matrix) in expected.chunks_exact_mut(rows * cols).enumerate() {
                let (left, right) = of_expert(expert, 4, of("lora_A"), of("lora_B"));
                match inputs_first {
                    true => add(matrix, (&turned(&right, rows), &turned(&left, RANK)), RANK, 2.0),
                    false => add(matrix, (&left, &right), RANK, 2.0),
                }
            }
            assert!(read(&merged, &format!("{module}.{name}")) == rounded(&expected), "{kind} {name}");
        }
    }
    // A parameter that the base has not.
    let settings = json!({ "lora_alpha": 4, "target_parameters": ["experts.w13"] });
    let (path, _) = adapter(&dir.path().join("adapter"), settings, 4, [[64, 32], [32, 32]]);
    let error = Checkpoint::open_merged(&base, Some(&path)).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::BadInput(_)) && error.to_string().contains("w13"), "{error}");
}

#[test]
fn magnitudes_of_an_embedding_are_lengths_of_its_columns() {
    let dir = tempfile::tempdir().unwrap();
    let embedding = "model.embed_tokens";
    let lengths: Vec<f32> = (0..256).map(|i| 1.0 + i as f32 / 64.0).collect();
    let (a, b) = (exact(&[2, 2048], 5), exact(&[256, 2], 6));
    let tensors = Tensors::from([
        (format!("{embedding}.lora_embedding_A"), a.clone()),
        (format!("{embedding}.lora_embedding_B"), b.clone()),
        (format!("{embedding}.lora_magnitude_vector"), (vec![256], lengths.clone())),
    ]);
    let path = write_adapter(&dir.path().join("adapter"), json!({ "lora_alpha": 2, "use_dora": true }), &tensors);
    let merged = Checkpoint::open_merged(&model("tiny-llama"), Some(&path)).unwrap();
    let mut sum = read(&Checkpoint::open(&model("tiny-llama")).unwrap(), &format!("{embedding}.weight"));
    add(&mut sum, (&turned(&a.1, 2048), &turned(&b.1, 2)), 2, 1.0);
    let merged = read(&merged, &format!("{embedding}.weight"));
    for (column, length) in lengths.iter().enumerate() {
        let of = |all: &[f32]| all.iter().skip(column).step_by(256).map(|w| f64::from(*w)).collect::<Vec<f64>>();
        let (merged, sum) = (of(&merged), of(&sum));
        let factor = f64::from(*length) / sum.iter().map(|w| w * w).sum::<f64>().sqrt();
        for (w, s) in merged.iter().zip(&sum) {
            assert!((w - s * factor).abs() <= 1e-3 * (s * factor).abs() + 1e-6, "{column}: {w} for {}", s * factor);
        }
    }
}

#[test]
fn a_changed_vocabulary_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let pair = |name: &str, a: [usize; 2], b: [usize; 2]| {
        [(format!("{name}A"), exact(&a, 1)), (format!("{name}B"), exact(&b, 2))]
    };
    let whole = Tensors::from([("model.embed_tokens.weight".into(), exact(&[2056, 256], 1))]);
    let added = Tensors::from(pair("model.embed_tokens.lora_embedding_", [2, 2056], [256, 2]));
    let head = Tensors::from([
        ("lm_head.lora_A.weight".into(), exact(&[2, 256], 1)),
        ("lm_head.lora_B.weight".into(), exact(&[2056, 2], 2)),
    ]);
    for (name, tensors) in [("whole", whole), ("added", added), ("head", head)] {
        let path = write_adapter(&dir.path().join(name), json!({ "lora_alpha": 2 }), &tensors);
        let error = Checkpoint::open_merged(&model("tiny-llama"), Some(&path)).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::BadInput(_)), "{error}");
        assert!(error.to_string().contains("resize_token_embeddings(2056)"), "{name}: {error}");
    }
}
