//! Files without the layers that predict more than the next token, and draft models of them alone: what llama.cpp's converter
//! makes with `--no-mtp` and `--mtp` (`tests/interop/mtp_goldens.py` wrote the goldens).

use crate::common::{json, repo};
use crate::families::{contents, restore};
use quantize::check::{self, Origin};
use quantize::convert::{self, Recipe};
use quantize::model::{Checkpoint, Mtp, SourceModel};
use quantize::{Control, Error};
use serde_json::{Map, Value};

fn recipe(mtp: Mtp, family: &Value) -> Recipe {
    let pre = family["metadata"]["tokenizer.ggml.pre"][1].as_str().filter(|pre| *pre != "default");
    Recipe { mtp, pretokenizer: pre.map(String::from), ..Recipe::to(["f16"]).unwrap() }
}

/// What a file should hold: tensors and metadata.
fn expected(family: &Value, golden: &Value) -> [Map<String, Value>; 2] {
    let names = golden["tensors"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let tensors = names.map(|name| (name.to_string(), family["tensors"][name].clone())).collect();
    let mut metadata = family["metadata"].as_object().unwrap().clone();
    for (key, value) in golden["metadata"].as_object().unwrap() {
        match value.is_null() {
            true => drop(metadata.remove(key)),
            false => drop(metadata.insert(key.clone(), value.clone())),
        }
    }
    [tensors, metadata]
}

#[test]
fn layers_are_dropped_and_written_alone_as_llama_cpp_does_it() {
    let goldens = json(&repo("tests/golden/mtp.json"));
    let (mut wrong, mut drafts) = (Vec::new(), 0);
    for (name, modes) in goldens.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(name);
        restore(name, &folder);
        let family = json(&repo("tests/golden/families").join(format!("{name}.json")));
        let source = SourceModel::open(&folder).unwrap();
        for (mode, mtp) in [("drop", Mtp::Drop), ("only", Mtp::Only)] {
            let planned = convert::plan(&source, &recipe(mtp, &family));
            // llama.cpp writes the shared tensors of a model that has nothing else.
            if mode == "only" && !family["tensors"].as_object().unwrap().keys().any(|name| name.contains(".nextn.")) {
                assert!(matches!(planned, Err(Error::Unsupported(_))), "{name}");
                continue;
            }
            let mut plan = planned.unwrap();
            plan.place(dir.path()).unwrap();
            let made = convert::run(&plan, &Control::default(), &()).unwrap().outputs[0].paths[0].clone();
            let begin = if mode == "only" { "mtp-" } else { "" };
            assert_eq!(made, dir.path().join(format!("{begin}{name}-F16.gguf")));
            for (ours, theirs) in contents(&made).iter().zip(expected(&family, &modes[mode])) {
                for key in theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key))) {
                    if ours.get(key) != theirs.get(key) {
                        wrong.push(format!("{name} {mode}: {key}: {:?} for {:?}", ours.get(key), theirs.get(key)));
                    }
                }
            }
            drafts += usize::from(mode == "only");
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(drafts >= 10, "{drafts}");
}

#[test]
fn a_draft_model_is_verified_against_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("qwen3.5-text");
    restore("qwen3.5-text", &source);
    let family = json(&repo("tests/golden/families/qwen3.5-text.json"));
    let mut plan = convert::plan(&SourceModel::open(&source).unwrap(), &recipe(Mtp::Only, &family)).unwrap();
    plan.place(dir.path()).unwrap();
    let made = convert::run(&plan, &Control::default(), &()).unwrap();
    let file = Checkpoint::open(&made.outputs[0].paths[0]).unwrap();
    let origin = Origin { source, ..Origin::default() };
    let found = check::verify(&file, Some(&origin), &Control::default(), &()).unwrap().derived.unwrap();
    assert!(found.differing.is_empty() && found.compared > 10);
}

#[test]
fn layers_that_have_no_place_are_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("deepseek-v3");
    restore("deepseek-v3", &source);
    let family = json(&repo("tests/golden/families/deepseek-v3.json"));
    let source = SourceModel::open(&source).unwrap();
    let rows = convert::plan(&source, &recipe(Mtp::Keep, &family)).unwrap().ledger();
    assert!(
        rows.iter().any(|row| row.asked == "multi-token prediction" && row.kind == convert::Kind::LeftOut),
        "{rows:?}"
    );
    assert!(matches!(convert::plan(&source, &recipe(Mtp::Only, &family)), Err(Error::Unsupported(_))));
}
