//! Any bytes as a GGUF file: no panic, no allocation out of proportion, and what is accepted is sound and survives being
//! written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::gguf::{encode_header, parse_header};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzz.gguf");
    let Ok(header) = parse_header(data, data.len() as u64, path) else { return };
    for t in &header.tensors {
        let end = header.data_start + t.offset + t.bytes().expect("a checked tensor has a size");
        assert!(end <= header.file_len && t.offset % header.alignment == 0);
    }
    // The padding would be out of proportion to the input; that is the writer's own doing.
    if header.alignment > 1 << 16 {
        return;
    }
    let bytes = encode_header(&header.metadata, &header.tensors, header.alignment);
    let len = bytes.len() as u64 + (header.file_len.saturating_sub(header.data_start));
    let again = parse_header(bytes.as_slice(), len, path).expect("our own header");
    // Compared as bytes, for a NaN is not equal to itself.
    assert_eq!(bytes, encode_header(&again.metadata, &again.tensors, again.alignment));
});
