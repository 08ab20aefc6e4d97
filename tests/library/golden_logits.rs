//! Families that only their publishers have code of: the small models of `tests/golden/families`, run from their folders and
//! from files, beside what llama.cpp computed of them (`tests/interop/family_logits.py`).

use crate::common::{json, repo};
use crate::families::restore;
use quantize::Control;
use quantize::convert::{self, Recipe};
use quantize::infer::{Cache, Engine};
use quantize::model::config::Ending;
use quantize::model::{Mtp, Part, SourceModel};
use std::path::Path;

const TOKENS: usize = 16;

/// The largest difference in standard deviations: logits of the last token, or its last hidden state.
fn difference(path: &Path, expected: &[f32]) -> f32 {
    let source = SourceModel::open(path).unwrap().for_files(Part::Text, Mtp::Keep).unwrap();
    let engine = Engine::load(&source.ckpt, &source.model).unwrap();
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| (37 * i * i + 11 * i + 5) % 300 + 10).collect();
    let mut cache = Cache::one_batch(TOKENS);
    let got = match engine.config.ending {
        Ending::Logits => engine.forward(&tokens, &mut cache, TOKENS - 1..TOKENS).unwrap(),
        _ => {
            let states = engine.hidden(&tokens, &mut cache, &mut ()).unwrap();
            engine.head_input(&states)[(TOKENS - 1) * engine.config.hidden..].to_vec()
        }
    };
    assert_eq!(got.len(), expected.len());
    let n = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / n;
    let std = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    got.iter().zip(expected).map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
        / std
}

#[test]
fn logits_are_those_of_llama_cpp() {
    let all = json(&repo("tests/golden/logits.json"));
    let all = all.as_object().unwrap();
    assert!(all.len() > 15, "{}", all.len());
    let mut wrong = Vec::new();
    for (name, row) in all {
        let dir = tempfile::tempdir().unwrap();
        restore(name, &dir.path().join("model"));
        let row: Vec<f32> = serde_json::from_value(row.clone()).unwrap();
        let folder = dir.path().join("model");
        let source = SourceModel::open(&folder).unwrap();
        let golden = json(&repo("tests/golden/families").join(format!("{name}.json")));
        let pre = golden["metadata"]["tokenizer.ggml.pre"][1].as_str().filter(|pre| *pre != "default");
        let recipe = Recipe { pretokenizer: pre.map(String::from), ..Recipe::to(["f32"]).unwrap() };
        let mut plan = convert::plan(&source, &recipe).unwrap();
        plan.place(dir.path()).unwrap();
        let made = convert::run(&plan, &Control::default(), &()).unwrap();
        let found = [&folder, &made.outputs[0].paths[0]].map(|path| difference(path, &row));
        eprintln!("{name}: {found:?}");
        // ggml reads GELU from a table of 16-bit numbers.
        let most = if ["codeshell", "jina-bert", "spark2-5"].contains(&name.as_str()) { 1e-2 } else { 1e-3 };
        if !found.iter().all(|d| *d <= most) {
            wrong.push(format!("{name}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
