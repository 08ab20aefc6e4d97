//! What docs/engines.md says of formats is what the program knows of the engines.

use crate::common::repo;
use crate::families::restore;
use quantize::Control;
use quantize::check::objections;
use quantize::convert::{self, Recipe, Search, Target};
use quantize::model::SourceModel;
use quantize::packed::{Engine, FORMATS};
use quantize::source::Checkpoint;

/// The rows of the table: the names in the first column, and what is said of vLLM, transformers and mlx-lm.
fn rows() -> Vec<(Vec<String>, [bool; 3])> {
    let page = std::fs::read_to_string(repo("docs/engines.md")).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_string()).collect::<Vec<_>>();
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(cells);
    let names = |cell: &str| {
        let quoted = cell.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("--"));
        quoted.map(String::from).collect::<Vec<_>>()
    };
    rows.map(|row| (names(&row[0]), [5, 6, 7].map(|i| row[i] != "–"))).collect()
}

#[test]
fn the_page_of_engines_says_what_verify_says() {
    let rows = rows();
    let mut seen = Vec::new();
    for (names, says) in &rows {
        for name in names {
            let target = Target::parse(name).unwrap_or_else(|e| panic!("{name}: {e}"));
            let Target::Folder { format, .. } = target else { continue };
            let takes = |engine| !format.verdict(engine, 1).refuses();
            assert_eq!(says[..2], [takes(Engine::Vllm), takes(Engine::Transformers)], "{name}");
            // Of MLX the page may know more: files with a g_idx are found out when they are looked at.
            assert!(!says[2] || takes(Engine::Mlx), "{name}");
            seen.push(name.clone());
        }
    }
    for format in FORMATS {
        let seen = |name: &str| seen.iter().any(|s| s == name || s.starts_with("mlx-4") && name == "mlx");
        assert!(format.spellings().any(seen), "{format:?} is not on the page");
    }
}

/// A projector that is packed is no encoder that transformers would look for under another name (PaddleOCR).
#[test]
fn a_packed_projector_is_not_taken_for_a_lost_encoder() {
    let dir = tempfile::tempdir().unwrap();
    restore("paddleocr-vl", &dir.path().join("model"));
    let source = SourceModel::open(&dir.path().join("model")).unwrap();
    let mut recipe = Recipe::to(["fp8"]).unwrap();
    recipe.rounding.search = Some(Search::Nearest);
    let mut plan = convert::plan(&source, &recipe).unwrap();
    plan.place(dir.path()).unwrap();
    let made = convert::run(&plan, &Control::default(), &()).unwrap();
    let folder = Checkpoint::open(&made.outputs[0].paths[0]).unwrap();
    let refused = |folder: &Checkpoint| {
        let all = objections(Engine::Transformers, folder, 1).unwrap();
        all.into_iter().filter(|o| o.refused).map(|o| o.what).collect::<Vec<_>>()
    };
    assert_eq!(refused(&folder), [""; 0]);
    // Without the word on encoders their plain matrices are in the way.
    let path = made.outputs[0].paths[0].join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let without = config.replace(r"re:model\\.visual\\.", r"re:model\\.ears\\.");
    assert_ne!(config, without);
    std::fs::write(&path, without).unwrap();
    let folder = Checkpoint::open(&made.outputs[0].paths[0]).unwrap();
    assert!(refused(&folder).iter().any(|what| what.contains("under this name alone")), "{:?}", refused(&folder));
}
