//! Models without a head, encoders and embedding models: their last hidden states and vectors against what transformers
//! computed in float32, and calibration, feedback and comparison by cosine.

use crate::common::repo;
use quantize::Control;
use quantize::calibration::data::Source;
use quantize::check::{self, Measurement};
use quantize::convert::{self, Calibration, Data, Nearness, Recipe, calibrate};
use quantize::eval::cosine::cosine;
use quantize::eval::{Method, Runnable, Vectors};
use quantize::infer::{Cache, Engine};
use quantize::model::config::Ending;
use quantize::model::{Mtp, Part, SourceModel};
use std::path::{Path, PathBuf};

/// The checkpoints of `tests/lineages` without logits, or those of the folders named in `QUANTIZE_TEST_ENCODERS`.
fn all() -> Vec<PathBuf> {
    if let Some(folders) = std::env::var_os("QUANTIZE_TEST_ENCODERS") {
        return std::env::split_paths(&folders).collect();
    }
    let entries = std::fs::read_dir(repo("tests/lineages")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.join("expected.json").is_file()).collect();
    folders.retain(|path| Expected::of(path).is_here());
    folders.sort();
    assert!(folders.len() >= 6, "{} encoders", folders.len());
    folders
}

struct Expected {
    /// The values are those of hidden states; otherwise scores.
    hidden: bool,
    sequences: Vec<Vec<u32>>,
    /// Of all sequences, `[tokens, hidden]`.
    states: Vec<f32>,
    std: f32,
    /// Largest allowed difference of a file, where the converter rounds norms that the model computes with.
    of_file: f32,
    /// `[sequences, width]`; none where tokens are not pooled.
    pooled: Vec<f32>,
}

impl Expected {
    fn of(folder: &Path) -> Self {
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let bytes = std::fs::read(folder.join(name)).unwrap_or_default();
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let hidden = json["kind"] == "hidden";
        let here = hidden || json["shape"].as_array().is_some_and(|shape| shape.len() == 2);
        Expected {
            hidden,
            sequences: if here { serde_json::from_value(json["input_ids"].clone()).unwrap() } else { Vec::new() },
            states: floats("expected_logits.f32"),
            std: json["std"].as_f64().unwrap() as f32,
            of_file: json["file_tolerance"].as_f64().unwrap_or(5e-4) as f32,
            pooled: floats("expected_pooled.f32"),
        }
    }

    fn is_here(&self) -> bool {
        !self.sequences.is_empty()
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

fn unit(v: &[f32]) -> Vec<f32> {
    let length = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    v.iter().map(|x| x / length).collect()
}

/// The largest difference of a hidden state in standard deviations, one text after the other and all together; and of a
/// number of a vector, whose length is 1.
fn differences(path: &Path, expected: &Expected) -> [f32; 3] {
    let source = SourceModel::open(path).unwrap().for_files(Part::Text, Mtp::Keep).unwrap();
    let engine = Engine::load(&source.ckpt, &source.model).unwrap();
    assert!(matches!(engine.config.ending, Ending::Vectors(_)));
    let n = expected.sequences[0].len();
    let run = |tokens: &Vec<u32>| engine.hidden(tokens, &mut Cache::one_batch(n), &mut ()).unwrap();
    let each: Vec<Vec<f32>> = expected.sequences.iter().map(run).collect();
    let slices: Vec<&[u32]> = expected.sequences.iter().map(Vec::as_slice).collect();
    let together = engine.hidden_from(&slices, 0, &mut Cache::one_batch(n)).unwrap();
    let vectors: Vec<f32> = each.iter().flat_map(|hidden| engine.vectors(hidden).unwrap()).collect();
    if !expected.hidden {
        let both = [each.concat(), together].map(|states| {
            let texts = states.chunks_exact(n * engine.config.hidden);
            let scores: Vec<f32> =
                texts.flat_map(|hidden| engine.scores(&engine.vectors(hidden).unwrap()).unwrap()).collect();
            worst(&scores, &expected.states) / expected.std
        });
        return [both[0], both[1], 0.0];
    }
    let width = engine.vector_width();
    let pooled: Vec<f32> = expected.pooled.chunks(width).flat_map(unit).collect();
    let apart = if pooled.is_empty() { 0.0 } else { worst(&vectors, &pooled) };
    [each.concat(), together]
        .map(|states| worst(&engine.head_input(&states), &expected.states) / expected.std)
        .into_iter()
        .chain([apart])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn convert_to(source: &SourceModel, recipe: &Recipe, dir: &Path) -> (PathBuf, Option<Nearness>) {
    let mut plan = convert::plan(source, recipe).unwrap();
    plan.place(dir).unwrap();
    let control = Control { force: true, check: Some(true), ..Control::default() };
    let made = convert::run(&plan, &control, &()).unwrap().outputs.remove(0);
    (made.paths[0].clone(), made.checked.map(|checked| checked.nearness))
}

#[test]
fn hidden_states_and_vectors_agree_with_transformers() {
    let (dir, mut wrong) = (tempfile::tempdir().unwrap(), Vec::new());
    for folder in all() {
        let (name, expected) = (folder.file_name().unwrap().display().to_string(), Expected::of(&folder));
        let of_folder = differences(&folder, &expected);
        let source = SourceModel::open(&folder).unwrap();
        let (file, nearness) = convert_to(&source, &Recipe::to(["f16"]).unwrap(), dir.path());
        let of_file = differences(&file, &expected);
        eprintln!("{name}: {of_folder:?} {of_file:?}");
        let within = |all: [f32; 3], most: f32| all.into_iter().all(|d| d <= most);
        if !within(of_folder, 5e-4) || !within(of_file, expected.of_file) {
            wrong.push(format!("{name}: {of_folder:?} {of_file:?}"));
        }
        assert!(matches!(nearness, Some(Nearness::Vectors { cosine, .. }) if cosine > 0.99999), "{name}: {nearness:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every matrix inside the layers is in the importance matrix, with finite sums; a file in 8 bits is near its source, and one
/// in 4 bits nearer with error feedback than without.
#[test]
fn they_are_calibrated_rounded_with_feedback_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let data = Data { sources: vec![Source::Random], tokens: 4096, window: 64, ..Data::default() };
    let mut better = Vec::new();
    for folder in all() {
        let name = folder.file_name().unwrap().display().to_string();
        let source = SourceModel::open(&folder).unwrap();
        let calibration = Calibration { data: data.clone(), ..Calibration::default() };
        let made = calibrate(&source, &calibration, None, None, &Control::default(), &()).unwrap();
        let model = source.for_files(Part::Text, Mtp::Keep).unwrap().model;
        for t in model.tensors.iter().filter(|t| t.role.is_linear()) {
            let last = t.layer == Some(model.config.layers.len() - 1) && t.name.contains("ffn_down");
            let entry = made.imatrix.entries.get(&t.name);
            assert!(last || entry.is_some_and(|e| e.sums.iter().all(|s| s.is_finite())), "{name}: {}", t.name);
        }
        let head = Calibration { head: true, ..calibration };
        let error = calibrate(&source, &head, None, None, &Control::default(), &()).err().unwrap().to_string();
        assert!(error.contains("gives vectors of texts"), "{name}: {error}");
        let (eight, _) = convert_to(&source, &Recipe::to(["q8_0"]).unwrap(), dir.path());
        let mut base = Runnable::load(&source.to_run().unwrap()).unwrap();
        let chunks: Vec<Vec<u32>> =
            (0..8u32).map(|k| (0..64u32).map(|i| ((64 * k + i) * 7919 + i * i * 31) % 320).collect()).collect();
        let width = base.width().unwrap();
        let ours = base.vectors(&chunks).unwrap();
        let distance = |path: &Path| {
            let theirs = Runnable::open(path).unwrap().vectors(&chunks).unwrap();
            let pairs = ours.iter().flat_map(|v| v.chunks(width)).zip(theirs.iter().flat_map(|v| v.chunks(width)));
            let all: Vec<f64> = pairs.map(|(a, b)| 1.0 - cosine(a, b)).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        let near = distance(&eight);
        let (nearest, _) = convert_to(&source, &Recipe::to(["q4_0"]).unwrap(), dir.path());
        let plain = distance(&nearest);
        let recipe = Recipe { data: Some(data.clone()), ..Recipe::to(["q4_0"]).unwrap() };
        let (rounded, _) = convert_to(&source, &recipe, dir.path());
        let fed = distance(&rounded);
        eprintln!("{name}: 8 bits {near:.2e}, 4 bits {plain:.2e}, with feedback {fed:.2e}");
        assert!(near < 0.1 * plain && fed.is_finite(), "{name}: {near} {plain} {fed}");
        better.push((name, fed / plain));
    }
    assert!(better.iter().all(|(_, ratio)| *ratio < 1.0), "{better:?}");
}

/// Classifiers and rerankers are compared by their scores beside the cosines; models without scores are not.
#[test]
fn scores_are_compared_where_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "It was a bright cold day in April, and the clocks were striking thirteen. ".repeat(20))
        .unwrap();
    let scores = |name: &str, to: &str| {
        let folder = repo("tests/lineages").join(name);
        let (file, _) = convert_to(&SourceModel::open(&folder).unwrap(), &Recipe::to([to]).unwrap(), dir.path());
        let how = Measurement { method: Method::LlamaCpp { ctx: 32 }, ..Measurement::on(&text) };
        let report = check::compare(&folder, &[file], &how, &Control::default(), &()).unwrap();
        let table = quantize::report::render_markdown(&report).unwrap();
        assert_eq!(table.contains("same order"), report.candidates[0].scores.is_some(), "{table}");
        report.candidates[0].scores
    };
    // The small ModernBERT has a tokenizer without [CLS], which a converted file adds: its texts differ.
    for (name, labels) in [("bert-reranker", 1), ("roberta-classifier", 3)] {
        let (near, far) = (scores(name, "q8_0").unwrap(), scores(name, "q4_0").unwrap());
        eprintln!("{name}: {near:?} {far:?}");
        assert_eq!((near.labels, near.texts), (labels, far.texts));
        assert!(near.texts > 4 && near.spread > 0.0 && near.agreement >= 0.5, "{name}: {near:?}");
        assert!(near.mean.value < far.mean.value && far.mean.value <= far.worst, "{name}: {near:?} {far:?}");
    }
    assert_eq!(scores("bert", "q8_0"), None);
}
