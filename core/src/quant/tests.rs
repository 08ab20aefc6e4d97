//! Plain, legacy and K-quant types against ggml's on inputs chosen to be hard (`tests/golden/ggml-kquants.json` says how
//! the digests were made), error bounds of a round trip, and hostile input. Ordinary weights are in `tests/peers/ggml_blocks.rs`.

use proptest::prelude::*;

use super::iquants::tests::{COLS, ROWS, dequantize, floats, golden, quantize, sha256, sha256_floats, stream};
use super::{GgmlType, QuantError, check_rows, codec, dequantize_rows, quantize_rows, types::TYPES};

/// `ROWS · COLS` weights in [-1, 1) on a grid of 2^-15.
fn units() -> impl Iterator<Item = f64> {
    let bytes = stream("weights", 2 * ROWS * COLS);
    bytes.as_chunks().0.to_vec().into_iter().map(|b| (f64::from(u16::from_le_bytes(b)) - 32768.0) / 32768.0)
}

/// Groups of 32 that differ by up to 2^40, some of them zero.
fn wide() -> Vec<f32> {
    let exponents = stream("exponents", ROWS * COLS / 32);
    let exponent = |i: usize| i32::from(exponents[i / 32]);
    let value = |(i, u): (usize, f64)| if exponent(i) % 16 == 0 { 0.0 } else { u * 2f64.powi(exponent(i) % 40 - 24) };
    units().enumerate().map(value).map(|v| v as f32).collect()
}

/// Groups of 32 around and below the smallest normal number, where the inverse of a scale overflows.
fn tiny() -> Vec<f32> {
    let exponents = stream("exponents", ROWS * COLS / 32);
    units().enumerate().map(|(i, u)| (u * 2f64.powi(-115 - i32::from(exponents[i / 32]) % 36)) as f32).collect()
}

/// Groups of 16 far below zero with little spread: the least-squares scale of a sub-block can become negative.
fn below() -> Vec<f32> {
    let base = stream("base", ROWS * COLS / 16);
    let value = |(i, u): (usize, f64)| -((f64::from(base[i / 16]) + 1.0) / 64.0 + u * 2f64.powi(-20)) as f32;
    units().enumerate().map(value).collect()
}

/// Multiples of one half: many ties, for the largest magnitude and in rounding.
fn steps() -> Vec<f32> {
    units().map(|u| ((u * 17.0).floor() / 2.0) as f32).collect()
}

/// Importance over 19 powers of two, zero for every fourth group of 16.
fn importance() -> Vec<f32> {
    let value = |(i, byte): (usize, &u8)| match i / 16 % 4 {
        1 => 0.0,
        _ => (f64::from(*byte) / 64.0 * 2f64.powi((i % 13) as i32 - 6)) as f32,
    };
    stream("importance", COLS).iter().enumerate().map(value).collect()
}

fn own_types() -> impl Iterator<Item = GgmlType> {
    let first = |ty: &GgmlType| *ty <= GgmlType::Q6_K || *ty == GgmlType::BF16;
    TYPES.iter().map(|row| row.ty).filter(|ty| codec(*ty).is_some()).filter(first)
}

/// Where a block's scales are. A plain number is its own scale.
fn scales(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        _ => &[0],
    }
}

/// Blocks of random bytes with finite scales, so that codes occur which no quantizer writes.
fn random_blocks(ty: GgmlType) -> Vec<u8> {
    let mut bytes = stream(&format!("blocks {ty}"), 64 * ty.block_bytes());
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        scales(ty).iter().for_each(|at| block[at + 1] &= 0xbf);
    }
    bytes
}

#[test]
fn bytes_and_values_equal_ggml() {
    let expected: serde_json::Value = serde_json::from_slice(&golden("ggml-kquants.json")).unwrap();
    let (input, weights) = (golden("ggml-blocks/input.f32"), golden("ggml-blocks/imatrix.f32"));
    let (input, weights) = (floats(&input), floats(&weights));
    let importance = importance();
    let made = [("wide", wide()), ("tiny", tiny()), ("below", below()), ("steps", steps())];
    let mut wrong = Vec::new();
    let mut compare = |ty: GgmlType, what: String, sha: String| {
        if expected["types"][ty.name()][&what] != sha {
            wrong.push(format!("{ty} {what}"));
        }
    };
    let types: Vec<_> = own_types().filter(|ty| *ty != GgmlType::F32).collect();
    assert_eq!(types.len(), expected["types"].as_object().unwrap().len());
    for ty in types {
        for (set, x) in &made {
            compare(ty, format!("{set}_plain"), sha256(quantize(ty, x, None)));
            if !ty.is_plain() {
                compare(ty, format!("{set}_imatrix"), sha256(quantize(ty, x, Some(&importance))));
            }
        }
        let bytes = quantize(ty, &input, if ty.is_plain() { None } else { Some(&weights) });
        compare(ty, "decoded".into(), sha256_floats(&dequantize(ty, &bytes)));
        compare(ty, "random".into(), sha256_floats(&dequantize(ty, &random_blocks(ty))));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_half_survives_and_ties_go_to_even() {
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let finite: Vec<u8> =
            all.as_chunks::<2>().0.iter().filter(|b| check_rows(ty, &b[..]).is_ok()).flatten().copied().collect();
        assert_eq!(finite.len() / 2, if ty == GgmlType::F16 { 63488 } else { 65280 });
        let values = dequantize(ty, &finite);
        let mut back = vec![0; finite.len()];
        quantize_rows(ty, &values, values.len(), None, &mut back).unwrap();
        assert_eq!(back, finite, "{ty}");
    }
    let one = |ty: GgmlType, x: f32| {
        let mut out = [0; 2];
        quantize_rows(ty, &[x], 1, None, &mut out).unwrap();
        u16::from_le_bytes(out)
    };
    for (x, bits) in
        [(1.0 + 2f32.powi(-11), 0x3c00), (1.0 + 3.0 * 2f32.powi(-11), 0x3c02), (65519.0, 0x7bff), (65520.0, 0x7c00)]
    {
        assert_eq!(one(GgmlType::F16, x), bits, "{x}");
    }
    for (x, bits) in [(1.0 + 2f32.powi(-8), 0x3f80), (1.0 + 3.0 * 2f32.powi(-8), 0x3f82), (f32::MAX, 0x7f80)] {
        assert_eq!(one(GgmlType::BF16, x), bits, "{x}");
    }
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let mut row = vec![1.0; 512];
    let mut out = vec![0; 288];
    let short = quantize_rows(GgmlType::Q4_K, &row, 512, None, &mut out[1..]);
    assert!(matches!(short, Err(QuantError::Length { .. })));
    let importance = quantize_rows(GgmlType::Q4_K, &row, 512, Some(&[1.0; 256]), &mut out);
    assert!(matches!(importance, Err(QuantError::Length { .. })));
    let ragged = quantize_rows(GgmlType::Q4_K, &row, 128, None, &mut out);
    assert_eq!(ragged, Err(QuantError::NotWholeBlocks { ty: GgmlType::Q4_K, cols: 128, block: 256 }));
    let whole = quantize_rows(GgmlType::I8, &row, 512, None, &mut out);
    assert_eq!(whole, Err(QuantError::Unsupported { ty: GgmlType::I8 }));
    row[300] = f32::NEG_INFINITY;
    let infinite = quantize_rows(GgmlType::Q4_K, &row, 256, None, &mut out);
    assert_eq!(infinite, Err(QuantError::NotFinite { index: 300, value: f32::NEG_INFINITY }));
}

/// A weight whose scale no half can hold is quantized to an infinite scale, which the check then finds.
#[test]
fn weights_that_are_too_large_give_a_scale_that_is_found() {
    for ty in own_types().filter(|ty| !matches!(ty, GgmlType::F32 | GgmlType::BF16)) {
        let mut row = vec![0.5; 512];
        row[300] = -3e9;
        let mut bytes = vec![0; ty.row_bytes(512).unwrap()];
        quantize_rows(ty, &row, 512, None, &mut bytes).unwrap();
        match check_rows(ty, &bytes) {
            Err(QuantError::BadScale { block, value, .. }) => {
                assert!(block == 300 / ty.block() && value.is_infinite(), "{ty}: block {block}, {value}")
            }
            sound => panic!("{ty}: {sound:?}"),
        }
    }
}

#[test]
fn scales_that_are_not_finite_are_found() {
    for ty in own_types() {
        for at in scales(ty) {
            let mut bytes = vec![0; 3 * ty.block_bytes()];
            assert_eq!(check_rows(ty, &bytes), Ok(()));
            let value = &mut bytes[2 * ty.block_bytes() + at..];
            value[..if ty == GgmlType::F32 { 4 } else { 2 }].fill(0xff);
            match check_rows(ty, &bytes) {
                Err(QuantError::BadScale { block: 2, value, .. }) => assert!(value.is_nan(), "{ty}"),
                other => panic!("{ty}: {other:?}"),
            }
        }
    }
}

/// Largest error of a round trip, as a fraction of the largest magnitude in the super-block.
fn worst(ty: GgmlType, row: &[f32], importance: Option<&[f32]>) -> f32 {
    let mut bytes = vec![0; ty.row_bytes(row.len()).unwrap()];
    quantize_rows(ty, row, row.len(), importance, &mut bytes).unwrap();
    let mut back = vec![0.0; row.len()];
    dequantize_rows(ty, &bytes, &mut back).unwrap();
    let amax = row.iter().fold(0f32, |m, v| m.max(v.abs()));
    row.iter().zip(&back).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / amax.max(f32::MIN_POSITIVE)
}

/// The bound of [`worst`]: half a step of the type's grid over `[-1, 1]`, or a whole one where the positive end has one
/// code less; twice that for the types with sub-blocks up to Q5_K, whose search may give up the ends for the middle and whose
/// scales are rounded themselves. Halves that hold scales add less than 2^-9.
fn bound(ty: GgmlType) -> f32 {
    let step = match ty {
        GgmlType::F32 => return 0.0,
        GgmlType::F16 => return 2f32.powi(-11),
        GgmlType::BF16 => return 2f32.powi(-8),
        GgmlType::Q8_0 => 0.5 / 127.0,
        GgmlType::Q4_0 => 1.0 / 8.0,
        GgmlType::Q5_0 => 1.0 / 16.0,
        GgmlType::Q4_1 => 1.0 / 15.0,
        GgmlType::Q5_1 => 1.0 / 31.0,
        GgmlType::Q2_K => 2.0 / 3.0,
        GgmlType::Q3_K => 1.0 / 2.0,
        GgmlType::Q4_K => 2.0 / 15.0,
        GgmlType::Q5_K => 2.0 / 31.0,
        GgmlType::Q6_K => 1.0 / 32.0,
        _ => unreachable!(),
    };
    step + 2f32.powi(-9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_round_trip_stays_within_the_bound(
        units in proptest::collection::vec(-1f32..1.0, 256),
        offset in -2f32..2.0,
        exponent in -6i32..6,
    ) {
        for ty in own_types() {
            let row: Vec<f32> = units.iter().map(|u| (u + offset) * 2f32.powi(exponent)).collect();
            let error = worst(ty, &row, None);
            prop_assert!(error <= bound(ty), "{}: {} of {}", ty, error, bound(ty));
        }
    }

    #[test]
    fn any_bytes_decode(seed in proptest::collection::vec(any::<u8>(), 500)) {
        for ty in own_types() {
            let bytes = &seed[..seed.len() / ty.block_bytes() * ty.block_bytes()];
            let finite = check_rows(ty, bytes).is_ok();
            let values = dequantize(ty, bytes);
            prop_assert!(!finite || values.iter().all(|v| v.is_finite()), "{}", ty);
        }
    }

    /// Any finite weights and any importance quantize without a panic, though magnitudes may overflow.
    #[test]
    fn any_finite_weights_quantize(bits in proptest::collection::vec(any::<u32>(), 256), weigh in any::<bool>()) {
        let row: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).map(|v| if v.is_finite() { v } else { 1.0 }).collect();
        let importance: Vec<f32> = row.iter().rev().map(|v| v.abs()).collect();
        for ty in own_types() {
            let mut bytes = vec![0; ty.row_bytes(256).unwrap()];
            quantize_rows(ty, &row, 256, weigh.then_some(&importance[..]), &mut bytes).unwrap();
            dequantize(ty, &bytes);
        }
    }
}
