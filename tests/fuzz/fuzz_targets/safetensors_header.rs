//! Any bytes as a safetensors file: no panic, no allocation out of proportion, and whatever is accepted is accepted by
//! the reference reader with the same tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::source::parse_safetensors_header;
use safetensors::SafeTensors;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = parse_safetensors_header(data, data.len() as u64, Path::new("fuzz.safetensors")) else { return };
    let reference = SafeTensors::deserialize(data).expect("the reference reader accepts it too");
    assert_eq!(header.tensors.len(), reference.len());
    for t in &header.tensors {
        let view = reference.tensor(&t.name).expect("the same names");
        assert_eq!(view.shape(), t.shape);
        assert_eq!(view.data(), &data[t.range.start as usize..t.range.end as usize]);
    }
});
