//! Any bytes as a file of the kind that `FUZZ_READER` names; see `readers.rs`. One program for all kinds, since to link the
//! library takes longest.
#![no_main]

#[path = "../readers.rs"]
mod readers;

use libfuzzer_sys::fuzz_target;
use readers::{READERS, Reader, read};
use std::sync::LazyLock;

static READER: LazyLock<Reader> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_READER").unwrap_or_default();
    let known = READERS.iter().find(|(known, _)| *known == name);
    let names: Vec<_> = READERS.iter().map(|(name, _)| *name).collect();
    known.unwrap_or_else(|| panic!("FUZZ_READER is none of {}", names.join(", "))).1
});

fuzz_target!(|data: &[u8]| read(*READER, data));
