//! What docs/engines.md says of formats is what the program knows of the engines.

use crate::common::repo;
use quantize::convert::Target;
use quantize::packed::{Engine, FORMATS};

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
        let known = format
            .names
            .iter()
            .any(|n| seen.iter().any(|s| s == n.words || s.strip_prefix("mlx-4").is_some() && n.words == "mlx"));
        assert!(known, "{} is not on the page", format.names[0].words);
    }
}
