//! Every lane form against its specification: all types, all instruction sets of this machine, shapes that leave lanes
//! empty, and inputs on which the searches branch differently from lane to lane.

use crate::isa::Isa;
use crate::quant::{GgmlType, codec, quantize_rows_with, types::TYPES};
use proptest::prelude::*;

fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::SCALAR)
}

fn types() -> impl Iterator<Item = GgmlType> {
    TYPES.iter().map(|row| row.ty).filter(|ty| codec(*ty).is_some())
}

fn bytes(isa: Isa, ty: GgmlType, src: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; src.len() / cols * ty.row_bytes(cols).unwrap()];
    quantize_rows_with(isa, ty, src, cols, importance, &mut out).unwrap();
    out
}

/// Where the lanes differ from the specification: type, instruction set, the first block.
fn differences(src: &[f32], cols: usize, importance: &[f32]) -> Vec<String> {
    let mut wrong = Vec::new();
    for ty in types().filter(|ty| cols.is_multiple_of(ty.block())) {
        for weights in [None, Some(importance)] {
            if weights.is_none() && codec(ty).unwrap().needs_importance {
                continue;
            }
            let expected = bytes(Isa::SCALAR, ty, src, cols, weights);
            for isa in instruction_sets() {
                let got = bytes(isa, ty, src, cols, weights);
                let block = ty.block_bytes();
                let bad: Vec<_> = (0..got.len() / block)
                    .filter(|b| got[b * block..][..block] != expected[b * block..][..block])
                    .collect();
                if !bad.is_empty() {
                    let kind = if weights.is_some() { "weighted" } else { "plain" };
                    wrong.push(format!("{ty} {kind} {}: {} blocks, first {}", isa.name(), bad.len(), bad[0]));
                }
            }
        }
    }
    wrong
}

/// Repeatable numbers.
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// In [0, 1).
    fn unit(&mut self) -> f32 {
        (self.bits() >> 7) as f32 / (1 << 24) as f32
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// One kind of input; groups of sixteen weights of a row may differ in theirs.
fn weight(kind: u32, numbers: &mut Numbers) -> f32 {
    match kind {
        0 => 0.02 * numbers.normal(),
        1 => 0.0,
        2 => -0.0,
        3 => 0.25,
        4 => -0.75,
        5 => numbers.unit() * 2f32.powi((numbers.bits() % 80) as i32 - 40),
        // Around and below the smallest normal number.
        6 => (numbers.unit() - 0.5) * 2f32.powi(-110 - (numbers.bits() % 40) as i32),
        7 => (numbers.unit() - 0.5) * 2f32.powi((numbers.bits() % 40) as i32 + 10),
        // Ties.
        8 => ((numbers.unit() - 0.5) * 17.0).floor() / 2.0,
        // Far from zero with little spread.
        9 => -3.0 - numbers.unit() * 2f32.powi(-18),
        10 => 3.0 + numbers.unit() * 2f32.powi(-18),
        // One outlier among small ones.
        11 => {
            if numbers.bits().is_multiple_of(16) {
                100.0
            } else {
                1e-3 * numbers.normal()
            }
        }
        _ => {
            if numbers.bits().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            }
        }
    }
}

const KINDS: u32 = 13;

fn mixed(len: usize, seed: u64, run: usize) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let mut kind = 0;
    let weight = |i| {
        if i % run == 0 {
            kind = numbers.bits() % KINDS;
        }
        weight(kind, &mut numbers)
    };
    (0..len).map(weight).collect()
}

fn importance(cols: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let value = |i| match i / 16 % 5 {
        1 => 0.0,
        2 => 1.0,
        _ => numbers.unit() * 2f32.powi((i % 13) as i32 - 6),
    };
    (0..cols).map(value).collect()
}

#[test]
fn lanes_equal_the_specification_in_every_shape() {
    for (cols, rows) in [(32, 1), (64, 3), (96, 7), (256, 1), (256, 2), (256, 33), (768, 11), (512, 17), (1280, 5)] {
        for run in [16, 32, 256, 7] {
            let src = mixed(cols * rows, (cols * rows + run) as u64, run);
            let wrong = differences(&src, cols, &importance(cols, 5));
            assert!(wrong.is_empty(), "{rows} rows of {cols}, runs of {run}: {wrong:#?}");
        }
    }
}

#[test]
fn lanes_equal_the_specification_on_every_kind_of_weights() {
    for kind in 0..KINDS {
        let mut numbers = Numbers(u64::from(kind) + 100);
        let src: Vec<f32> = (0..40 * 256).map(|_| weight(kind, &mut numbers)).collect();
        for importance in [importance(512, 7), vec![0.0; 512], vec![1.0; 512]] {
            let wrong = differences(&src, 512, &importance);
            assert!(wrong.is_empty(), "kind {kind}: {wrong:#?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn lanes_equal_the_specification(seed in any::<u64>(), rows in 1usize..40, run in 1usize..600) {
        let src = mixed(rows * 256, seed, run);
        let wrong = differences(&src, 256, &importance(256, seed ^ 1));
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }
}
