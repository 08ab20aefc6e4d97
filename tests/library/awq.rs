//! Folding channel factors onto a model must not change its function: every family of the conformance data, with
//! factors drawn at random for every group.

use crate::common::conformance;
use quantize::awq::{Fold, groups, representable};
use quantize::infer::{Cache, Engine};
use quantize::model::ValueMap;
use quantize::model::{MappedTensor, Model};
use quantize::quant::GgmlType;
use quantize::source::Checkpoint;
use std::collections::HashSet;
use std::path::Path;

/// The weights of a mapped tensor; of a norm as stored, without what the model adds.
fn read(ckpt: &Checkpoint, t: &MappedTensor) -> Vec<f32> {
    let plain = MappedTensor { values: ValueMap::Same, ..t.clone() };
    let mut values = vec![0.0; t.elements()];
    plain.read_rows(ckpt, 0..t.row_count(), &mut Vec::new(), &mut values).unwrap();
    values
}

/// The checkpoint as a folder with F32 tensors, changed by `change`; source names and order of rows are kept.
fn rewrite(ckpt: &Checkpoint, model: &Model, to: &Path, change: impl Fn(&MappedTensor, usize, &mut [f32])) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut scratch = Vec::new();
    let mut whole: Vec<Vec<f32>> = vec![Vec::new(); ckpt.tensors().len()];
    for (values, meta) in whole.iter_mut().zip(ckpt.tensors()) {
        values.resize(meta.elements(), 0.0);
        ckpt.read_f32(meta, 0..values.len(), &mut scratch, values).unwrap();
    }
    for t in &model.tensors {
        for (i, part) in t.parts.iter().enumerate() {
            let values = &mut whole[*part];
            match t.half {
                // `[experts, 2 * out, in]`: every other block of `out` rows is this tensor's.
                Some(half) => {
                    let block = t.shape[1] * t.shape[2];
                    for (e, values) in values.chunks_exact_mut(block).skip(half).step_by(2).enumerate() {
                        change(t, e * t.shape[1], values);
                    }
                }
                None => change(t, i * t.row_count() / t.parts.len(), values),
            }
        }
    }
    for (meta, values) in ckpt.tensors().iter().zip(whole) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((meta.name.clone(), meta.shape.clone(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::copy(ckpt.dir().join("config.json"), to.join("config.json")).unwrap();
}

fn logits(ckpt: &Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let model = Model::open(ckpt).unwrap();
    let engine = Engine::load(ckpt, &model).unwrap();
    engine.forward(tokens, &mut Cache::one_batch(tokens.len()), 0..tokens.len()).unwrap()
}

/// Repeatable factors from 1/4 to 4.
fn factors(n: usize, seed: &mut u32) -> Vec<f32> {
    let mut next = || {
        *seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| (4f32.ln() * next()).exp()).collect()
}

#[test]
fn folding_leaves_every_family_its_function() {
    for folder in conformance() {
        let ckpt = Checkpoint::open(&folder).unwrap();
        let model = Model::open(&ckpt).unwrap();
        let mut seed = 7;
        let mut fold = Fold::default();
        let mut touched = HashSet::new();
        for layer in 0..model.config.layers.len() {
            for group in groups(model.known().unwrap(), &model.config, layer) {
                let mut scales = factors(group.channels, &mut seed);
                if group.from.is_norm() {
                    let t = model.find(group.from, Some(layer)).unwrap();
                    scales = representable(&scales, &read(&ckpt, t), t.values.added(), GgmlType::F16);
                }
                fold.add(&group, &scales);
                touched.insert(group.from);
                touched.extend(&group.into);
            }
        }
        // Everything linear, whatever the family calls it, takes part.
        for t in model.tensors.iter().filter(|t| t.role.is_linear() || t.role.is_router()) {
            assert!(touched.contains(&t.role), "{}: {:?}", folder.display(), t.role);
        }
        let dir = tempfile::tempdir().unwrap();
        let mut changed = HashSet::new();
        rewrite(&ckpt, &model, dir.path(), |_, _, _| ());
        let plain = Checkpoint::open(dir.path()).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % model.config.vocab as u32).collect();
        let before = logits(&plain, &tokens);

        let dir = tempfile::tempdir().unwrap();
        rewrite(&ckpt, &model, dir.path(), |t, row, weights| {
            let Some(factors) = t.layer.and_then(|layer| fold.get(layer, t.role)) else { return };
            if t.role.is_norm() {
                factors.apply_norm(t.values.added(), weights);
                for w in weights {
                    let kept = half::f16::from_f32(*w).to_f32();
                    assert!((kept - *w).abs() <= 1e-6, "{}: {kept} {w}", t.name);
                    *w = kept;
                }
            } else {
                let cols = t.cols();
                let rows = weights.len() / cols;
                factors.apply(row..row + rows, cols, t.rows_per_matrix(), weights);
            }
        });
        let folded = Checkpoint::open(dir.path()).unwrap();
        for (old, new) in plain.tensors().iter().zip(folded.tensors()) {
            let (mut a, mut b) = (vec![0.0; old.elements()], vec![0.0; old.elements()]);
            plain.read_f32(old, 0..a.len(), &mut Vec::new(), &mut a).unwrap();
            folded.read_f32(new, 0..b.len(), &mut Vec::new(), &mut b).unwrap();
            if a != b {
                changed.insert(old.name.clone());
            }
        }
        let after = logits(&folded, &tokens);
        let size = before.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = before.iter().zip(&after).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{}: {:.1e} of {size:.2}, {} tensors changed", folder.display(), worst / size, changed.len());
        assert!(worst < 2e-5 * size, "{}: {worst} of {size}", folder.display());
        let linear = model.tensors.iter().filter(|t| t.role.is_linear()).flat_map(|t| &t.parts);
        for part in linear {
            let name = &ckpt.tensors()[*part].name;
            assert!(changed.contains(name), "{name} was not scaled");
        }
    }
}
