//! Bytes and values against ggml's (`tests/golden/ggml-iquants.json` says how they were made), and hostile input.

use std::path::Path;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::isa::Isa;
use crate::quant::{GgmlType, check_rows, codec, dequantize_rows, quantize_rows, quantize_rows_with};

pub(in crate::quant) const ROWS: usize = 32;
pub(in crate::quant) const COLS: usize = 1024;

pub(in crate::quant) fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).unwrap()
}

pub(in crate::quant) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub(in crate::quant) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(in crate::quant) fn sha256_floats(values: &[f32]) -> String {
    sha256(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// `len` bytes: the digests of "name 0", "name 1", ...
pub(in crate::quant) fn stream(name: &str, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len.div_ceil(32)).flat_map(|i| Sha256::digest(format!("{name} {i}"))).collect();
    bytes.truncate(len);
    bytes
}

/// Weights whose groups of 32 differ by up to 2^40 or are zero, and importance that is zero for some groups.
fn made_input() -> (Vec<f32>, Vec<f32>) {
    let exponents = stream("exponents", ROWS * COLS / 32);
    let weights = stream("weights", 2 * ROWS * COLS);
    let weights = weights.as_chunks().0.iter().enumerate().map(|(i, bytes)| {
        let k = i32::from(exponents[i / 32]);
        if k % 16 == 0 {
            0.0
        } else {
            (f32::from(u16::from_le_bytes(*bytes)) - 32768.0) / 32768.0 * 2f32.powi(k % 40 - 24)
        }
    });
    let importance = stream("importance", COLS);
    let importance = importance.iter().enumerate();
    let importance = importance.map(|(i, byte)| if i / 32 % 8 == 5 { 0.0 } else { f32::from(*byte) / 64.0 });
    (weights.collect(), importance.collect())
}

/// With every instruction set of this machine, which must agree.
pub(in crate::quant) fn quantize(ty: GgmlType, input: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let run = |isa| {
        let mut bytes = vec![0; ROWS * ty.row_bytes(COLS).unwrap()];
        quantize_rows_with(isa, ty, input, COLS, importance, &mut bytes).unwrap();
        bytes
    };
    let bytes = run(Isa::SCALAR);
    for isa in Isa::available() {
        assert!(bytes == run(isa), "{ty} with {}", isa.name());
    }
    bytes
}

pub(in crate::quant) fn dequantize(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / ty.block_bytes() * ty.block()];
    dequantize_rows(ty, bytes, &mut values).unwrap();
    values
}

/// Blocks of random bytes with finite scales, so that codes occur which no quantizer writes.
fn random_blocks(ty: GgmlType) -> Vec<u8> {
    let mut bytes = stream(&format!("blocks {ty}"), 64 * ty.block_bytes());
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            GgmlType::NVFP4 => {}
            GgmlType::MXFP4 if block[0] == 0xff => block[0] = 0,
            GgmlType::MXFP4 => {}
            GgmlType::TQ1_0 => block[53] &= 0xbf,
            GgmlType::TQ2_0 => block[65] &= 0xbf,
            GgmlType::IQ1_M => block[55] &= 0xbf,
            _ => block[1] &= 0xbf,
        }
    }
    bytes
}

#[test]
fn bytes_and_values_equal_ggml() {
    let expected: serde_json::Value = serde_json::from_slice(&golden("ggml-iquants.json")).unwrap();
    let inputs = [
        ("golden", (floats(&golden("ggml-blocks/input.f32")), floats(&golden("ggml-blocks/imatrix.f32")))),
        ("made", made_input()),
    ];
    let mut wrong = Vec::new();
    let mut compare = |ty: &str, what: String, sha: String| {
        if expected["types"][ty][&what] != sha {
            wrong.push(format!("{ty} {what}"));
        }
    };
    let types = expected["types"].as_object().unwrap();
    assert_eq!(types.len(), 15);
    for name in types.keys() {
        let ty = GgmlType::from_name(name).unwrap();
        for (set, (input, importance)) in &inputs {
            if !codec(ty).unwrap().needs_importance {
                compare(name, format!("{set}_plain"), sha256(quantize(ty, input, None)));
            }
            let bytes = quantize(ty, input, Some(importance));
            compare(name, format!("{set}_imatrix"), sha256(&bytes));
            assert_eq!(check_rows(ty, &bytes), Ok(()));
            if *set == "golden" {
                compare(name, "decoded".into(), sha256_floats(&dequantize(ty, &bytes)));
            }
        }
        compare(name, "random".into(), sha256_floats(&dequantize(ty, &random_blocks(ty))));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn types() -> impl Iterator<Item = GgmlType> {
    crate::quant::types::TYPES.iter().map(|row| row.ty).filter(|ty| codec(*ty).is_some())
}

#[test]
fn scales_that_are_not_finite_are_found() {
    for ty in types().filter(|ty| *ty != GgmlType::NVFP4) {
        let mut bytes = vec![0; 3 * ty.block_bytes()];
        assert_eq!(check_rows(ty, &bytes), Ok(()), "{ty}");
        bytes[2 * ty.block_bytes()..].fill(0xff);
        let (block, scale) = (codec(ty).unwrap().check)(&bytes).unwrap_err();
        assert!(block == 2 && scale.is_nan(), "{ty}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_decode(seed in proptest::collection::vec(any::<u8>(), 200)) {
        for ty in types() {
            let bytes = &seed[..seed.len() / ty.block_bytes() * ty.block_bytes()];
            let finite = check_rows(ty, bytes).is_ok();
            let values = dequantize(ty, bytes);
            // Where scales are finite only overflow makes a value that is not, and no value is ever NaN.
            prop_assert!(!finite || values.iter().all(|v| !v.is_nan()), "{}", ty);
        }
    }

    /// Any finite weights and any importance quantize without a panic, though magnitudes may overflow.
    #[test]
    fn any_finite_weights_quantize(bits in proptest::collection::vec(any::<u32>(), 256), weigh in any::<bool>()) {
        let row: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).map(|v| if v.is_finite() { v } else { 1.0 }).collect();
        let importance: Vec<f32> = row.iter().rev().map(|v| v.abs()).collect();
        for ty in types() {
            let weigh = weigh || codec(ty).unwrap().needs_importance;
            let mut bytes = vec![0; ty.row_bytes(256).unwrap()];
            quantize_rows(ty, &row, 256, weigh.then_some(&importance[..]), &mut bytes).unwrap();
            dequantize(ty, &bytes);
        }
    }
}
