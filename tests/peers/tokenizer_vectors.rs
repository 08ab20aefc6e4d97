//! llama.cpp's own tokenizer vectors (`models/ggml-vocab-*.gguf` with `.inp` and `.out`), which are too large to keep
//! here. Runs when `QUANTIZE_VOCAB_DIR` names the folder that holds them.

use quantize::Error;
use quantize::gguf::read_header;
use quantize::model::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

/// Kinds of tokenizer that this crate does not run.
const UNSUPPORTED: [&str; 2] = ["bert-bge", "gemma-4"];

fn vocabularies(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|p| p.with_extension("gguf.inp").exists() && p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn vectors_of_llama_cpp() {
    let Some(dir) = std::env::var_os("QUANTIZE_VOCAB_DIR") else {
        println!("skipped: QUANTIZE_VOCAB_DIR is not set");
        return;
    };
    let vocabularies = vocabularies(Path::new(&dir));
    assert!(!vocabularies.is_empty(), "no ggml-vocab-*.gguf with vectors in {dir:?}");
    let mut failures = 0;
    for path in vocabularies {
        let name = path.file_stem().unwrap().to_str().unwrap().trim_start_matches("ggml-vocab-").to_string();
        let tokenizer = match Tokenizer::from_gguf(&read_header(&path).unwrap().metadata) {
            Ok(tokenizer) => tokenizer,
            Err(Error::Unsupported(what)) if UNSUPPORTED.contains(&name.as_str()) => {
                println!("{name}: not supported: {what}");
                continue;
            }
            Err(e) => panic!("{name}: {e}"),
        };
        let texts = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let ids = std::fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut lines: Vec<&str> = ids.split('\n').collect();
        lines.truncate(texts.len());
        let (mut same, mut back, mut count) = (0, 0, 0);
        for (text, line) in texts.iter().zip(&lines) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let got = tokenizer.encode(text, false).unwrap();
            count += 1;
            same += usize::from(got == expected);
            back += usize::from(tokenizer.decode(&got) == *text);
            if got != expected {
                println!("{name}: {text:?}\n  expected {expected:?}\n  got      {got:?}");
            }
        }
        println!("{name}: {same} of {count} texts as expected, {back} decode to the text");
        failures += count - same;
        failures += count - back;
    }
    assert_eq!(failures, 0);
}
