//! Families that blueprints convert, run from their checkpoints and from the GGUF files made of them, against logits that
//! transformers computed in float32; and calibration, feedback and comparison of such models.

use crate::common::repo;
use quantize::Control;
use quantize::calibration::data::Source;
use quantize::convert::{self, Calibration, Data, Recipe, calibrate};
use quantize::eval::{self, Base, Candidate, Method, Runnable, Windows};
use quantize::infer::{Cache, Engine};
use quantize::model::{Mtp, Part, SourceModel};
use std::path::{Path, PathBuf};

/// The checkpoints of `tests/lineages`, by name, or those of the folders named in `QUANTIZE_TEST_LINEAGES`.
fn all() -> Vec<PathBuf> {
    if let Some(folders) = std::env::var_os("QUANTIZE_TEST_LINEAGES") {
        return std::env::split_paths(&folders).collect();
    }
    let entries = std::fs::read_dir(repo("tests/lineages")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("expected.json").is_file()).collect();
    // Those without logits are in `encoders`.
    let apart = |path: &PathBuf| {
        let expected = std::fs::read_to_string(path.join("expected.json")).unwrap();
        expected.contains("hidden") || expected.contains("\"kind\": \"scores\"")
    };
    folders.retain(|path| !apart(path));
    folders.sort();
    assert!(folders.len() >= 10, "{} lineages", folders.len());
    folders
}

struct Expected {
    tokens: Vec<u32>,
    /// Those of the positions from here on.
    from: usize,
    logits: Vec<f32>,
    std: f32,
    /// Largest allowed difference of a logit, in units of the logits' standard deviation; and of a file, where the
    /// converter rounds numbers that the model computes with.
    tolerance: [f32; 2],
    /// Whether a file in 4 bits is still a model: not where random indexers choose among positions.
    rounded: bool,
}

fn expected(folder: &Path) -> Expected {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("expected_logits.f32")).unwrap();
    let mut logits: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    // Of several sequences the first.
    let ids = &json["input_ids"];
    let tokens: Vec<u32> = serde_json::from_value(if ids[0].is_array() { &ids[0] } else { ids }.clone()).unwrap();
    if ids[0].is_array() {
        logits.truncate(logits.len() / ids.as_array().unwrap().len());
    }
    Expected {
        tokens,
        from: json["from"].as_u64().unwrap_or(0) as usize,
        logits,
        std: json["std"].as_f64().unwrap() as f32,
        tolerance: ["tolerance", "file_tolerance"]
            .map(|key| json[key].as_f64().or(json["tolerance"].as_f64()).unwrap_or(2e-3) as f32),
        rounded: json["rounded"].as_bool().unwrap_or(true),
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// The largest differences in standard deviations: in one batch, and in batches of one token and more behind each other.
fn differences(path: &Path, expected: &Expected) -> [f32; 2] {
    let source = SourceModel::open(path).unwrap().for_files(Part::Text, Mtp::Keep).unwrap();
    let engine = Engine::load(&source.ckpt, &source.model).unwrap();
    let (tokens, n) = (&expected.tokens, expected.tokens.len());
    let whole = engine.forward(tokens, &mut Cache::one_batch(n), expected.from..n).unwrap();
    let (mut cache, mut pieces, mut start) = (engine.cache(n), Vec::new(), 0);
    while start < n {
        let len = if start == 1 { 4 } else { 1 }.min(n - start);
        pieces.extend(engine.forward(&tokens[start..start + len], &mut cache, 0..len).unwrap());
        start += len;
    }
    let vocab = pieces.len() / n;
    [whole.as_slice(), &pieces[expected.from * vocab..]].map(|got| worst(got, &expected.logits) / expected.std)
}

fn convert_to(source: &SourceModel, recipe: &Recipe, dir: &Path) -> PathBuf {
    let mut plan = convert::plan(source, recipe).unwrap();
    plan.place(dir).unwrap();
    convert::run(&plan, &Control { force: true, ..Control::default() }, &()).unwrap().outputs[0].paths[0].clone()
}

#[test]
fn logits_agree_with_transformers() {
    let (dir, mut wrong) = (tempfile::tempdir().unwrap(), Vec::new());
    for folder in all() {
        let (name, expected) = (folder.display(), expected(&folder));
        let of_folder = differences(&folder, &expected);
        let source = SourceModel::open(&folder).unwrap();
        let file = convert_to(&source, &Recipe::to(["f16"]).unwrap(), dir.path());
        let of_file = differences(&file, &expected);
        eprintln!("{name}: {of_folder:?} {of_file:?}");
        let near = |all: [f32; 2], most: f32| all.into_iter().all(|d| d <= most);
        if !near(of_folder, expected.tolerance[0]) || !near(of_file, expected.tolerance[1]) {
            wrong.push(format!("{name}: {of_folder:?} {of_file:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Texts with a common beginning, which is run once for each group of them, give what each of them gives alone.
#[test]
fn a_common_beginning_is_run_once() {
    let mut wrong = Vec::new();
    for folder in all() {
        let (name, expected) = (folder.display(), expected(&folder));
        let source = SourceModel::open(&folder).unwrap().for_files(Part::Text, Mtp::Keep).unwrap();
        let engine = Engine::load(&source.ckpt, &source.model).unwrap();
        let (n, layers) = (expected.tokens.len().min(24), engine.config.layers.len());
        let shared = n / 2;
        // Two groups, of two texts and of three.
        let text = |group: usize, i: usize| {
            let mut text: Vec<u32> = expected.tokens[..n].to_vec();
            text[1] = text[2 + group];
            text[shared + 1] = text[i];
            text
        };
        let texts: Vec<Vec<u32>> = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)].map(|(group, i)| text(group, i)).into();
        let whole: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let whole = engine.hidden_from(&whole, shared, &mut Cache::one_batch(n)).unwrap();
        let mut cache = Cache::together(layers, 2, n);
        engine.hidden_from(&[&texts[0][..shared], &texts[2][..shared]], shared - 1, &mut cache).unwrap();
        let tails: Vec<&[u32]> = texts.iter().map(|text| &text[shared..]).collect();
        let forked = engine.hidden_from(&tails, 0, &mut cache.forked(&[2, 3])).unwrap();
        let [whole, forked] = [whole, forked].map(|hidden| engine.head(&hidden, &mut ()));
        let apart = worst(&whole, &forked) / expected.std;
        eprintln!("{name}: {apart:.1e}");
        if apart > 1e-3 {
            wrong.push(format!("{name}: {apart}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every matrix that the model multiplies with is in the importance matrix, with finite sums; a file in 8 bits is near its
/// source, and one in 4 bits, rounded with feedback, farther from it. Models of random weights are worth nothing in 4 bits.
#[test]
fn they_are_calibrated_rounded_with_feedback_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let data = Data { sources: vec![Source::Random], tokens: 512, window: 64, ..Data::default() };
    for folder in all() {
        let (name, source) = (folder.display(), SourceModel::open(&folder).unwrap());
        let calibration = Calibration { data: data.clone(), ..Calibration::default() };
        let made = calibrate(&source, &calibration, None, None, &Control::default(), &()).unwrap();
        let model = source.for_files(Part::Text, Mtp::Keep).unwrap().model;
        let trunk = model.config.layers.len();
        // Norms, convolutions and tables.
        let apart = ["norm", "conv1d", "shortconv.conv", "_ape."];
        let norm = |name: &str| apart.iter().any(|part| name.contains(part));
        for t in model.tensors.iter().filter(|t| t.shape.len() > 1 && t.name.ends_with(".weight") && !norm(&t.name)) {
            let Some(layer) = t.layer.filter(|layer| *layer < trunk) else { continue };
            // Nobody asks for what comes behind the last input of the last layer.
            let last = layer + 1 == trunk && t.name.contains("ffn_down");
            let entry = made.imatrix.entries.get(&t.name);
            assert!(last || entry.is_some_and(|e| e.sums.iter().all(|s| s.is_finite())), "{name}: {}", t.name);
        }
        let nearest = convert_to(&source, &Recipe::to(["q8_0"]).unwrap(), dir.path());
        if !expected(&folder).rounded {
            continue;
        }
        let recipe = Recipe { data: Some(data.clone()), ..Recipe::to(["q4_0"]).unwrap() };
        let rounded = convert_to(&source, &recipe, dir.path());
        let mut base = Runnable::load(&source).unwrap();
        let tokens: Vec<u32> = (0..256u32).map(|i| (i * 7919 + i * i * 31) % 320).collect();
        let windows = Windows::plan(Method::LlamaCpp { ctx: 64 }, tokens.len(), None, None).unwrap();
        let kld = |base: &mut Runnable, path: &Path| {
            let mut model = Runnable::open(path).unwrap();
            let mut candidates = [Candidate { name: "file".into(), model: &mut model }];
            let base = Base::Model(Candidate { name: "source".into(), model: base });
            let found = eval::compare(base, &mut candidates, &tokens, &windows, eval::Options::default()).unwrap();
            found.candidates[0].iter().map(|p| p.kld).sum::<f64>() / found.candidates[0].len() as f64
        };
        let (near, far) = (kld(&mut base, &nearest), kld(&mut base, &rounded));
        eprintln!("{name}: {near:.2e} {far:.2e}");
        assert!(near < 0.25 && near < far && far.is_finite(), "{name}: {near} {far}");
    }
}
