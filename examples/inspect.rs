//! Shows what is in a GGUF file: `inspect model.gguf`
use quantize::{Result, gguf};
use std::collections::BTreeMap;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, file] = &args[..] else { panic!("inspect model.gguf") };
    let header = gguf::read_header(file.as_ref())?;
    let architecture = header.metadata.str("general.architecture").unwrap_or("unknown");
    println!("{architecture}, {} keys, {} tensors", header.metadata.len(), header.tensors.len());
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &header.tensors {
        let (count, bytes) = types.entry(tensor.ty.name()).or_default();
        *count += 1;
        *bytes += tensor.bytes().unwrap_or(0);
    }
    for (name, (count, bytes)) in types {
        println!("{name:>8} {count:>5} tensors {bytes:>12} bytes");
    }
    Ok(())
}
