//! Quantized bytes against ggml's own (tests/golden/ggml-blocks): every type and both ways, exactly.

use crate::common::repo;
use quantize::quant::{GgmlType, dequantize_rows, quantize_rows};
use std::path::PathBuf;

fn folder() -> PathBuf {
    repo("tests/golden/ggml-blocks")
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder().join(name)).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn bytes_equal_ggml() {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder().join("index.json")).unwrap()).unwrap();
    let (input, importance) = (floats("input.f32"), floats("imatrix.f32"));
    let cols = index["columns"].as_u64().unwrap() as usize;
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, entry) in index["types"].as_object().unwrap() {
        let ty = GgmlType::from_name(name).unwrap();
        if quantize::quant::codec(ty).is_none() {
            continue;
        }
        for (kind, weights) in [("plain", None), ("imatrix", Some(importance.as_slice()))] {
            let Some(file) = entry[kind]["file"].as_str() else { continue };
            let expected = std::fs::read(folder().join(file)).unwrap();
            let mut bytes = vec![0; input.len() / cols * ty.row_bytes(cols).unwrap()];
            quantize_rows(ty, &input, cols, weights, &mut bytes).unwrap();
            let blocks = bytes.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
            let differing: Vec<_> = blocks.enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
            if bytes.len() != expected.len() || !differing.is_empty() {
                wrong.push(format!("{name} {kind}: {} blocks differ, first {:?}", differing.len(), differing.first()));
            }
            let mut back = vec![0f32; input.len()];
            dequantize_rows(ty, &bytes, &mut back).unwrap();
            assert!(back.iter().all(|v| v.is_finite()), "{name}");
            checked += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked >= 20, "only {checked} files were checked");
}
