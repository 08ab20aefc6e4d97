//! Gradients of scales and biases against differences, and what tuning makes of a small trained model.

use super::*;
use crate::model::SourceModel;
use crate::packed::{Module, Scheme, Scope, StoredPiece, parse};
use crate::quant::GgmlType;
use serde_json::json;
use std::path::Path;

/// A matrix rounded to nearest, with scales in a type.
fn rounded(format: &str, weights: &[f32], cols: usize, dtype: GgmlType) -> Tunable {
    let spec = parse(format).unwrap();
    let pieces = spec.quantize_nearest(&Module::new(weights, weights.len() / cols, cols, dtype)).unwrap();
    let config = json!({ "quantization_config": spec.quantization_config(Scope::default()) });
    let stored = pieces.into_iter().map(|p| StoredPiece {
        suffix: p.suffix.to_string(),
        dtype: p.dtype,
        shape: p.shape,
        data: p.data,
    });
    let scheme = Scheme::of(&config).unwrap().unwrap();
    scheme.unpack("model.layers.0.mlp.up_proj", stored.collect()).unwrap().tunable().unwrap()
}

/// A model with all its matrices rounded, and these by name.
struct Case {
    source: SourceModel,
    artifact: Engine,
    subject: Subject,
}

impl Case {
    fn new(path: &str, format: &str, dtype: GgmlType) -> Case {
        let source = SourceModel::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)).unwrap();
        let mut artifact = Engine::load(&source.ckpt, &source.model).unwrap();
        let matrices: Vec<(String, Tunable)> = artifact
            .linears_mut()
            .map(|linear| {
                let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
                let mut weights = vec![0.0; rows * cols];
                linear.weight.decode(0..rows, &mut weights);
                (linear.name.clone(), rounded(format, &weights, cols, dtype))
            })
            .collect();
        let norm = |(name, weights): (&str, &mut [f32])| {
            let (name, stored) = (name.to_string(), weights.to_vec());
            Norm { name, stored, dtype, added: 0.0 }
        };
        let norms = artifact.norms_mut().map(norm).collect();
        let subject = Subject { matrices, norms };
        All::new(subject.clone()).place(&mut artifact);
        Case { source, artifact, subject }
    }

    fn open(&self) -> OpenModel<'_> {
        OpenModel { ckpt: &self.source.ckpt, model: &self.source.model }
    }

    fn windows(&self, count: usize, len: usize) -> Vec<Vec<u32>> {
        let mut rng = Rng::new(7);
        (0..count).map(|_| (0..len).map(|_| rng.below(self.artifact.config.vocab) as u32).collect()).collect()
    }
}

#[test]
fn scales_and_biases_have_the_gradients_of_small_steps() {
    for (path, format) in [
        ("conformance/qwen3", "mlx-3bit-32g"),
        ("conformance/gemma2", "mlx-4bit-32g"),
        ("conformance/llama", "w4a16-32g-asym"),
        ("fixtures/tiny-llama", "mlx-4bit-64g"),
    ] {
        let mut case = Case::new(path, format, GgmlType::F32);
        let windows = case.windows(1, 40);
        let window = windows[0].as_slice();
        let control = crate::Control::default();
        let run = Run { control: &control, report: &() };
        let results = judge::results(&case.open(), &[window], Scored::All, run).unwrap();
        let source = judge::head(&case.open()).unwrap();
        let mut state = State { cache: Cache::one_batch(40), source, logits: Default::default(), run };
        let mut all = All::new(case.subject.clone());
        let summed = state.add_gradients(&case.artifact, window, &results[0], 1.0 / 40.0, &mut all).unwrap();
        let held = [(window, results[0].as_slice())];
        let loss = state.loss(&case.artifact, &held).unwrap();
        assert!((summed / 40.0 - loss).abs() < 1e-9, "{path}: {summed} {loss}");
        let mut compared = 0;
        for i in 0..case.subject.matrices.len() {
            let (name, matrix) = case.subject.matrices[i].clone();
            let (scales, biases) = all.matrices[i].gradients();
            for (of_scales, gradient) in [(true, scales), (false, biases)] {
                let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                if norm < 1e-4 * loss {
                    continue;
                }
                let step = 0.01 * loss / norm;
                let mut at = |by: f64| {
                    let shifted = |x: &[f32]| -> Vec<f32> {
                        x.iter()
                            .zip(&gradient)
                            .map(|(x, g)| (f64::from(*x) + by * f64::from(*g) / norm) as f32)
                            .collect()
                    };
                    let biases = matrix.biases().unwrap_or_default();
                    let moved = match of_scales {
                        true => matrix.with(shifted(matrix.scales()), biases.to_vec()),
                        false => matrix.with(matrix.scales().to_vec(), shifted(biases)),
                    };
                    let matrices = vec![(name.clone(), moved)];
                    All::new(Subject { matrices, norms: Vec::new() }).place(&mut case.artifact);
                    state.loss(&case.artifact, &held).unwrap()
                };
                // Two pairs of steps, so that the third derivative drops out too.
                let [near, far] = [step, 2.0 * step].map(|step| at(step) - at(-step));
                let found = (8.0 * near - far) / (12.0 * step);
                at(0.0);
                assert!((found - norm).abs() < 1e-2 * norm, "{path} {name} {of_scales}: {norm:e} {found:e}");
                compared += 1;
            }
        }
        assert!(compared >= 7, "{path}: {compared}");
    }
}

#[test]
fn tuning_lowers_the_loss_alike_for_any_number_of_threads() {
    for (format, dtype) in [("mlx-3bit-64g", GgmlType::BF16), ("w4a16-64g", GgmlType::F16)] {
        let tuned = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut case = Case::new("fixtures/tiny-llama", format, dtype);
                let windows = case.windows(6, 128);
                let (seen, held) = windows.split_at(4);
                let control = crate::Control::default();
                let subject = case.subject.clone();
                let mut artifact = std::mem::replace(
                    &mut case.artifact,
                    Engine::shell(&case.source.ckpt, &case.source.model).unwrap(),
                );
                let tuning = Tuning { source: case.open(), seen, held, steps: 6 };
                super::run(&mut artifact, subject, &tuning, Run { control: &control, report: &() }).unwrap()
            })
        };
        let (subject, summary) = tuned(1);
        assert!(summary.kept > 0 && summary.after < 0.97 * summary.before, "{format}: {summary:?}");
        let (others, same) = tuned(3);
        assert_eq!(summary, same);
        let scales = |all: &Subject| all.matrices.iter().flat_map(|one| one.1.scales().to_vec()).collect::<Vec<f32>>();
        assert_eq!(scales(&subject), scales(&others));
        assert_eq!(subject.norms, others.norms);
        assert!(scales(&subject).iter().all(|s| crate::minifloat::rounded(dtype, *s) == *s));
    }
}

#[test]
fn every_window_comes_once_before_any_comes_again() {
    let seen: Vec<Vec<u32>> = (0..6).map(|_| vec![0; 512]).collect();
    let order = order(&seen, 6);
    assert!(order.iter().all(|windows| windows.len() == 2));
    let mut first: Vec<usize> = order[..3].concat();
    first.sort();
    assert_eq!(first, [0, 1, 2, 3, 4, 5]);
    assert_ne!(order[..3], order[3..]);
    assert!(super::order(&[vec![0; 10]], 2).iter().all(|windows| windows.len() == 1));
}
