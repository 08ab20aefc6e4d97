//! Projector files of models that see images: tensors and metadata are what llama.cpp's converter made of the same
//! checkpoints, in every type that it writes (`tests/interop/projector_goldens.py` wrote the goldens).

use crate::common::{json, names, repo};
use crate::families::{contents, restore, restore_golden};
use quantize::check::{self, Origin};
use quantize::convert::{self, Recipe};
use quantize::model::{Checkpoint, Part, SourceModel};
use quantize::release::{self, Options, Projector};
use quantize::{Control, Error};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> Value {
    json(&repo("tests/golden/projectors").join(format!("{name}.json")))
}

/// The checkpoint of a golden, with what its image processor is told.
fn checkpoint(name: &str, golden: &Value, at: &Path) -> PathBuf {
    let folder = at.join(name);
    match golden.get("weights") {
        // Not one of the families' goldens.
        Some(weights) => restore_golden(&json!({ "files": {}, "weights": weights }), &folder),
        None => restore(name, &folder),
    }
    for (file, content) in golden["files"].as_object().unwrap() {
        std::fs::write(folder.join(file), content.to_string()).unwrap();
    }
    folder
}

fn projector(types: &[&str]) -> Recipe {
    Recipe { part: Part::Projector, ..Recipe::to(types.iter().copied()).unwrap() }
}

const TYPES: [&str; 4] = ["f16", "bf16", "q8_0", "f32"];

fn differences(name: &str) -> quantize::Result<Vec<String>> {
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden(name));
    let folder = checkpoint(name, &golden, dir.path());
    let mut plan = convert::plan(&SourceModel::open(&folder)?, &projector(&TYPES))?;
    plan.place(dir.path())?;
    let made = convert::run(&plan, &Control::default(), &())?;
    let mut wrong = Vec::new();
    for (made, ty) in made.outputs.iter().zip(TYPES) {
        let upper = ty.to_uppercase();
        assert_eq!(made.paths, [dir.path().join(format!("mmproj-{name}-{upper}.gguf"))]);
        let (mut tensors, mut metadata) = (golden["f16"].clone(), golden["metadata"].clone());
        if ty != "f16" {
            tensors.as_object_mut().unwrap().extend(golden[ty]["tensors"].as_object().unwrap().clone());
            metadata["general.file_type"] = json!(["UINT32", golden[ty]["file_type"]]);
        }
        let maps = |value: &Value| -> Map<String, Value> { value.as_object().unwrap().clone() };
        for (ours, theirs) in contents(&made.paths[0]).iter().zip([maps(&tensors), maps(&metadata)]) {
            for key in theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key))) {
                if ours.get(key) != theirs.get(key) {
                    wrong.push(format!("{name} {ty}: {key}: {:?} for {:?}", ours.get(key), theirs.get(key)));
                }
            }
        }
    }
    Ok(wrong)
}

#[test]
fn every_projector_is_what_llama_cpp_writes() {
    let goldens = names(&repo("tests/golden/projectors"));
    assert!(goldens.len() >= 27, "{}", goldens.len());
    let mut wrong = Vec::new();
    for name in goldens.iter().filter_map(|file| file.strip_suffix(".json")) {
        wrong.extend(differences(name).unwrap_or_else(|error| vec![format!("{name}: {error}")]));
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_projector_is_verified_against_its_source() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden("qwen2_5-vl"));
    let source = checkpoint("qwen2_5-vl", &golden, dir.path());
    let mut plan = convert::plan(&SourceModel::open(&source).unwrap(), &projector(&["f16"])).unwrap();
    plan.place(dir.path()).unwrap();
    let made = convert::run(&plan, &Control::default(), &()).unwrap();
    let file = Checkpoint::open(&made.outputs[0].paths[0]).unwrap();
    let origin = Origin { source, ..Origin::default() };
    let found = check::verify(&file, Some(&origin), &Control::default(), &()).unwrap().derived.unwrap();
    assert_eq!((found.compared, found.differing.len()), (golden["f16"].as_object().unwrap().len(), 0));
}

#[test]
fn a_text_model_tells_of_the_tower_that_it_leaves_out() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden("qwen3-vl"));
    let source = SourceModel::open(&checkpoint("qwen3-vl", &golden, dir.path())).unwrap();
    let recipe = Recipe { pretokenizer: Some("gpt-2".into()), ..Recipe::to(["f16"]).unwrap() };
    let plan = convert::plan(&source, &recipe).unwrap();
    let ledger = plan.ledger();
    assert!(ledger.iter().any(|row| row.kind == convert::Kind::LeftOut && row.done == "left out"), "{ledger:?}");
    // Nothing else was asked for.
    plan.refuse_departures().unwrap();
    let of_projector = convert::plan(&source, &projector(&["f16"])).unwrap();
    assert!(of_projector.ledger().is_empty());
}

#[test]
fn what_has_no_projector_says_so() {
    let open = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        restore(name, &dir.path().join(name));
        let plan = convert::plan(&SourceModel::open(&dir.path().join(name)).unwrap(), &projector(&["f16"]));
        plan.map(|_| ()).unwrap_err()
    };
    let text = open("glm4");
    assert!(matches!(text, Error::Unsupported(_)) && text.to_string().contains("no encoder"), "{text}");
    let unprocessed = open("qwen3-vl");
    assert!(unprocessed.to_string().contains("preprocessor_config.json: 'image_mean'"), "{unprocessed}");
    assert!(matches!(unprocessed, Error::BadInput(_)));
    let recipe = Recipe { part: Part::Projector, ..Recipe::to(["q4_k_m"]).unwrap() };
    assert!(matches!(recipe.check(), Err(Error::Request(_))));
}

#[test]
fn a_release_has_the_projector_beside_its_files() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden("qwen2_5-vl"));
    let source = SourceModel::open(&checkpoint("qwen2_5-vl", &golden, dir.path())).unwrap();
    let make = |name: &str, projector: Projector| {
        let options = Options { projector, ..Options::default() };
        let target = dir.path().join(name);
        let release = release::plan(&source, &Recipe::to(["q8_0"]).unwrap(), &target, options).unwrap();
        let contents = release.contents();
        let made = release::run(&release, &Control::default(), &()).unwrap();
        assert!(contents.iter().all(|name| target.join(name).exists()), "{contents:?}");
        (made, target)
    };
    let (made, folder) = make("default", Projector::default());
    let file = "mmproj-qwen2_5-vl-F16.gguf";
    assert_eq!(made.projectors.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), [file]);
    assert_eq!((made.artifacts.len(), made.artifacts[0].path.as_str()), (1, "qwen2_5-vl-Q8_0.gguf"));
    // It is the converter's.
    let [tensors, _] = contents(&folder.join(file));
    assert_eq!(Value::Object(tensors.into_iter().collect()), golden["f16"]);
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for part in ["pipeline_tag: image-text-to-text", "--mmproj mmproj-qwen2_5-vl-F16.gguf", "turns images or sound"] {
        assert!(card.contains(part), "no {part} in {card}");
    }
    assert_eq!(json(&folder.join("quantize-manifest.json"))["projectors"][0]["path"], file);
    assert!(std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap().contains(file));
    assert_eq!(release::verify(&folder, &Control::default(), &()).unwrap().artifacts.len(), 2);
    let (made, _) = make("types", Projector::Types(vec!["q8_0".into(), "bf16".into()]));
    assert_eq!(made.projectors.len(), 2);
    let (made, folder) = make("without", Projector::Without);
    assert!(made.projectors.is_empty() && !names(&folder).iter().any(|name| name.contains("mmproj")));
}
