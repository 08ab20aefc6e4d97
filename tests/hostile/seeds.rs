//! What was kept of fuzzing is read again: no panic, and memory and time in proportion.

#[path = "../fuzz/readers.rs"]
mod readers;

use crate::common::repo;
use crate::containers::largest;
use readers::{READERS, read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// More than any of them needs at once; a reader that believes a count asks for more.
const MOST: usize = 32 << 20;

#[test]
fn what_was_kept_of_fuzzing_is_read() {
    let listed = |folder: &PathBuf| {
        let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let mut inputs = 0;
    for folder in listed(&repo("tests/fuzz/seeds")) {
        let kind = folder.file_name().unwrap().to_str().unwrap();
        let (_, reader) =
            READERS.iter().find(|(known, _)| *known == kind).unwrap_or_else(|| panic!("no reader: {kind}"));
        for path in listed(&folder) {
            println!("{}", path.display());
            let bytes = std::fs::read(&path).unwrap();
            readers::clear();
            let begin = Instant::now();
            let most = largest(|| read(*reader, &bytes));
            assert!(most < MOST, "{most} bytes at once, for {}", bytes.len());
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
            inputs += 1;
        }
    }
    readers::clear();
    assert!(inputs >= 15, "{inputs}");
}
