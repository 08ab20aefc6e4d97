//! The reverse pass against central differences of the loss, for every family that it knows.

use crate::common::{conformance, model, repo};
use quantize::eval::softmax::{kl_gradients, kl_of_rows};
use quantize::infer::{Cache, Engine, Gradients, check_reversible, weight_gradient};
use quantize::kernel::Dense;
use quantize::model::{Model, SourceModel};
use quantize::source::Checkpoint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest allowed difference of a derivative, in units of the gradient's norm.
const TOLERANCE: f64 = 1e-2;
/// What the first pair of steps changes the loss by, as a share of it, and how far they go at most, in units of the size of what
/// is moved.
const CHANGE: f64 = 2e-3;
const FARTHEST: f64 = 0.01;
const TOKENS: usize = 40;

/// Repeatable numbers in -1 .. 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Gradients of whole matrices, and of norms.
#[derive(Default)]
struct Whole {
    /// Rows and columns of every matrix.
    shapes: BTreeMap<String, (usize, usize)>,
    found: BTreeMap<String, Vec<f32>>,
}

impl Whole {
    fn sum(&mut self, name: &str, len: usize) -> &mut Vec<f32> {
        self.found.entry(name.to_string()).or_insert_with(|| vec![0.0; len])
    }
}

impl Gradients for Whole {
    fn linear(&mut self, linear: &str, x: &[f32], dy: &[f32]) {
        let (rows, cols) = self.shapes[linear];
        let mut dw = vec![0.0; rows * cols];
        weight_gradient(x, cols, dy, rows, 0..rows, &mut dw);
        self.sum(linear, rows * cols).iter_mut().zip(dw).for_each(|(sum, v)| *sum += v);
    }

    fn lookup(&mut self, embedding: &str, tokens: &[u32], dy: &[f32]) {
        let (rows, cols) = self.shapes[embedding];
        let sum = self.sum(embedding, rows * cols);
        for (token, dy) in tokens.iter().zip(dy.chunks_exact(cols)) {
            let row = &mut sum[*token as usize * cols..][..cols];
            row.iter_mut().zip(dy).for_each(|(sum, v)| *sum += v);
        }
    }

    fn norm(&mut self, norm: &str, dw: &[f32]) {
        let of = self.sum(norm, dw.len());
        of.iter_mut().zip(dw).for_each(|(sum, v)| *sum += v);
    }
}

/// A model, and logits of a distribution that it is far from: those of small random models hardly differ from each other.
struct Case {
    engine: Engine,
    tokens: Vec<u32>,
    base: Vec<f32>,
}

impl Case {
    /// `None` for a model that no gradient is taken through.
    fn of(path: &Path) -> Option<Case> {
        let source = SourceModel::open(path).ok()?.to_run().ok()?;
        check_reversible(&source.model.config).ok()?;
        let mut engine = Engine::load(&source.ckpt, &source.model).unwrap();
        engine.check_layer_reversible(0).ok()?;
        let tokens: Vec<u32> = (0..TOKENS).map(|i| ((i * i * 31 + i * 7) % engine.config.vocab) as u32).collect();
        let base = numbers(TOKENS * engine.config.vocab, 77).into_iter().map(|v| 3.0 * v).collect();
        for (i, (_, weights)) in engine.norms_mut().enumerate() {
            let noise = numbers(weights.len(), 1000 + i as u64);
            weights.iter_mut().zip(noise).for_each(|(w, noise)| *w += 0.1 * noise);
        }
        Some(Case { engine, tokens, base })
    }

    fn loss(&self) -> f64 {
        let logits = self.engine.forward(&self.tokens, &mut Cache::one_batch(TOKENS), 0..TOKENS).unwrap();
        kl_of_rows(&self.base, &logits, self.engine.config.vocab).iter().sum::<f64>() / TOKENS as f64
    }

    fn gradients(&mut self) -> BTreeMap<String, Vec<f32>> {
        let shapes = self.engine.linears_mut().map(|l| (l.name.clone(), (l.weight.rows(), l.weight.cols())));
        let mut whole = Whole { shapes: shapes.collect(), ..Whole::default() };
        let engine = &self.engine;
        let mut cache = Cache::one_batch(TOKENS);
        let (mut entered, mut x) = (Vec::new(), engine.embed(&self.tokens).unwrap());
        for layer in 0..engine.config.layers.len() {
            entered.push(x.clone());
            let _ = engine.layer(layer, &mut x, &mut cache, &mut ()).unwrap();
        }
        let logits = engine.head(&x, &mut ());
        let mut d = self.base.clone();
        kl_gradients(&mut d, &logits, engine.config.vocab, 1.0 / TOKENS as f32);
        let mut dx = engine.reverse_head(&x, &logits, &mut d, &mut whole);
        while let Some(x) = entered.pop() {
            dx = engine.reverse_layer(entered.len(), &x, dx, &mut cache, &mut whole).unwrap();
        }
        engine.reverse_embedding(&self.tokens, dx, &mut whole);
        whole.found
    }

    /// The weights of what is called `name`: a norm, or a matrix.
    fn weights(&mut self, name: &str) -> Vec<f32> {
        if let Some((_, weights)) = self.engine.norms_mut().find(|(norm, _)| *norm == name) {
            return weights.to_vec();
        }
        let linear = self.engine.linears_mut().find(|linear| linear.name == name).unwrap();
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        let mut data = vec![0.0; rows * cols];
        linear.weight.decode(0..rows, &mut data);
        data
    }

    fn put(&mut self, name: &str, weights: &[f32]) {
        if let Some((_, place)) = self.engine.norms_mut().find(|(norm, _)| *norm == name) {
            return place.copy_from_slice(weights);
        }
        let linear = self.engine.linears_mut().find(|linear| linear.name == name).unwrap();
        let cols = linear.weight.cols();
        linear.weight = Box::new(Dense { data: weights.to_vec(), cols });
    }

    fn size(&mut self, name: &str) -> f64 {
        norm_of(&self.weights(name))
    }

    /// Adds `by` times `direction` to what is called `name`.
    fn shift(&mut self, name: &str, direction: &[f32], by: f64) {
        let mut weights = self.weights(name);
        weights.iter_mut().zip(direction).for_each(|(w, d)| *w = (f64::from(*w) + by * f64::from(*d)) as f32);
        self.put(name, &weights);
    }
}

fn norm_of(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Compares every gradient along itself, and along parts of itself.
fn check(path: &Path) -> bool {
    let Some(mut case) = Case::of(path) else { return false };
    let (loss, gradients) = (case.loss(), case.gradients());
    assert!(loss > 0.1, "{}: a loss of {loss}", path.display());
    let mut compared = 0;
    for (i, (name, gradient)) in gradients.iter().filter(|(name, _)| !name.is_empty()).enumerate() {
        let (norm, size) = (norm_of(gradient), case.size(name));
        // What hardly changes the loss is lost in its last digits.
        if norm * FARTHEST * size < 2e-4 * loss {
            continue;
        }
        for part in 0..3 {
            let chosen = numbers(gradient.len(), (31 * i + part) as u64);
            let mut direction = gradient.clone();
            direction.iter_mut().zip(&chosen).filter(|(_, c)| part > 0 && **c < 0.0).for_each(|(d, _)| *d = 0.0);
            let length = norm_of(&direction);
            if length < 0.2 * norm {
                continue;
            }
            direction.iter_mut().for_each(|d| *d = (f64::from(*d) / length) as f32);
            let expected: f64 = gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let step = (CHANGE * loss / length).min(FARTHEST * size);
            let mut at = |by: f64| {
                let before = case.weights(name);
                case.shift(name, &direction, by);
                let loss = case.loss();
                case.put(name, &before);
                loss
            };
            // Two pairs of steps, so that the third derivative drops out too.
            let [near, far] = [step, 2.0 * step].map(|step| at(step) - at(-step));
            let found = (8.0 * near - far) / (12.0 * step);
            let error = (found - expected).abs() / norm;
            assert!(error < TOLERANCE, "{}: {name}: {expected:e}, by differences {found:e}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 20, "{}: {compared} derivatives", path.display());
    true
}

fn lineages() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repo("tests/lineages")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn gradients_are_those_of_small_steps() {
    let mut known: Vec<String> = Vec::new();
    for path in [model("tiny-llama")].into_iter().chain(conformance()).chain(lineages()) {
        if check(&path) {
            known.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    let wanted = [
        "gemma2",
        "gemma3",
        "llama",
        "llama-tied-headdim",
        "llama3-rope",
        "mistral-window",
        "phi3",
        "qwen2",
        "qwen3",
        "apertus",
        "cohere-qknorm",
        "gpt-neox",
        "tiny-llama",
    ];
    assert!(wanted.iter().all(|name| known.iter().any(|known| known == name)), "{known:?}");
}

#[test]
fn any_number_of_threads_gives_the_same_gradients() {
    for name in ["qwen3", "gemma2"] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Case::of(&model(name)).unwrap().gradients())
        };
        assert_eq!(run(1), run(3), "{name}");
    }
}

#[test]
fn what_has_no_gradient_is_refused() {
    for (name, part) in [("mixtral", "experts"), ("qwen2-moe", "experts")] {
        let ckpt = Checkpoint::open(&model(name)).unwrap();
        let error = check_reversible(&Model::open(&ckpt).unwrap().config).unwrap_err();
        assert!(error.to_string().contains(part), "{name}: {error}");
        assert_eq!(error.exit_code(), 4, "{name}");
    }
}
