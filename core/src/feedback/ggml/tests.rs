//! What must hold for every type: bytes decode to what feedback reckoned with, stages only improve, and neither
//! instruction sets, threads, nor the number of rows change a bit.

use super::codebook::tests::CODEBOOKS;
use super::layout::{self, Block, layout, unpack_scales};
use super::matrices::inverse_factor;
use super::*;
use crate::made::numbers;
use crate::quant::{check_rows, dequantize_rows, iquants::iq4::VALUES};
use crate::simd::{F32x16, Plain};

const TYPES: [GgmlType; 12] = [
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
];

/// A Hessian far from diagonal, its factor, and its diagonal as importance.
pub(super) struct Problem {
    pub cols: usize,
    h: Vec<f32>,
    u: Vec<f32>,
    pub importance: Vec<f32>,
}

pub(super) fn problem(cols: usize) -> Problem {
    let samples = cols + 40;
    let noise = numbers(samples * cols, 7);
    let mut h = vec![0f64; cols * cols];
    for row in noise.chunks_exact(cols) {
        let x: Vec<f64> = (0..cols)
            .map(|i| f64::from(row[i] + 0.8 * row[i / 3] + 0.5 * row[(i + 1) % cols]) * (1.0 + (i % 11) as f64))
            .collect();
        for i in 0..cols {
            for j in 0..cols {
                h[i * cols + j] += x[i] * x[j];
            }
        }
    }
    let damping = 0.01 * (0..cols).map(|i| h[i * cols + i]).sum::<f64>() / cols as f64;
    (0..cols).for_each(|i| h[i * cols + i] += damping);
    let u = inverse_factor(&h, cols);
    let single = |m: &[f64]| m.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let importance = (0..cols).map(|i| (h[i * cols + i] / samples as f64) as f32).collect();
    Problem { cols, h: single(&h), u: single(&u), importance }
}

pub(super) fn weights(rows: usize, cols: usize, seed: u32) -> Vec<f32> {
    // Nearer to a normal distribution than to a flat one.
    let (a, b, c) = (numbers(rows * cols, seed), numbers(rows * cols, seed + 1), numbers(rows * cols, seed + 2));
    (0..rows * cols).map(|i| 0.03 * (a[i] + b[i] + c[i])).collect()
}

impl Problem {
    pub fn hessian(&self) -> Hessian {
        Hessian::from_matrices(self.h.clone(), self.u.clone(), self.cols).unwrap()
    }

    pub fn bytes(&self, ty: GgmlType, w: &[f32], stage: Stage, isa: Isa) -> Vec<u8> {
        let prepared = Prepared::new(ty, &self.hessian()).unwrap();
        let mut out = vec![0xa5; w.len() / ty.block() * ty.block_bytes()];
        run(&prepared, w, &self.importance, stage, &mut out, isa).unwrap();
        check_rows(ty, &out).unwrap();
        out
    }

    /// e'He of every row.
    pub fn losses(&self, ty: GgmlType, w: &[f32], bytes: &[u8]) -> Vec<f64> {
        let mut decoded = vec![0.0; w.len()];
        dequantize_rows(ty, bytes, &mut decoded).unwrap();
        let rows = w.chunks_exact(self.cols).zip(decoded.chunks_exact(self.cols));
        rows.map(|(w, v)| {
            let e: Vec<f64> = w.iter().zip(v).map(|(w, v)| f64::from(*w) - f64::from(*v)).collect();
            let row = |h: &[f32]| h.iter().zip(&e).map(|(h, e)| f64::from(*h) * e).sum::<f64>();
            self.h.chunks_exact(self.cols).zip(&e).map(|(h, e)| e * row(h)).sum()
        })
        .collect()
    }
}

#[test]
fn each_stage_loses_less_than_the_one_before() {
    let p = problem(512);
    let w = weights(21, p.cols, 3);
    for ty in TYPES {
        let mut ggml = vec![0; w.len() / ty.block() * ty.block_bytes()];
        crate::quant::quantize_rows(ty, &w, p.cols, Some(&p.importance), &mut ggml).unwrap();
        let loss = |stage| p.losses(ty, &w, &p.bytes(ty, &w, stage, Isa::active()));
        let (a, b) = (p.losses(ty, &w, &ggml), loss(Stage::GgmlScales));
        let (c, d, e) = (loss(Stage::InLoop), loss(Stage::Polish(1)), loss(Stage::Polish(2)));
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        let sums = [&a, &b, &c, &d, &e].map(|v| sum(v));
        eprintln!("{ty}: {:.3?}", sums.map(|s| s / sums[0]));
        assert!(sums.is_sorted_by(|a, b| a >= b), "{ty}: {sums:?}");
        assert!(sums[1] < 0.9 * sums[0], "{ty}: feedback gains nothing: {sums:?}");
        // A sweep must not lose in any row.
        for (before, after) in [(&c, &d), (&d, &e)] {
            assert!(before.iter().zip(after).all(|(b, a)| *a <= b * (1.0 + 1e-5)), "{ty}");
        }
    }
}

#[test]
fn blocks_decode_to_the_values_that_were_reckoned_with() {
    let p = problem(256);
    let w = weights(LANES, p.cols, 9);
    for ty in TYPES {
        let layout = layout(ty).unwrap();
        let Grid::Levels(prepared) = Prepared::new(ty, &p.hessian()).unwrap().grid else { panic!("{ty}") };
        for (first, sweeps) in [(FirstPass::Ggml(prepared.quantize, &p.importance), 0), (FirstPass::InLoop, 2)] {
            let mut bundle = Bundle::new(&layout, &w, p.cols);
            let steps = Steps { layout: &layout, matrices: &prepared.matrices, first, sweeps };
            simd::run_16(Isa::SCALAR, Task(steps, &mut bundle, LANES));
            let mut bytes = vec![0; w.len() / ty.block() * ty.block_bytes()];
            let row_bytes = bytes.len() / LANES;
            bundle.pack(&layout, &mut bytes, row_bytes);
            let mut decoded = vec![0.0; w.len()];
            dequantize_rows(ty, &bytes, &mut decoded).unwrap();
            for (lane, row) in decoded.chunks_exact(p.cols).enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let affine = bundle.scales::<Plain>(&layout, j / layout.sub).affine();
                    let (mut s, mut m) = (F32x16::ZERO, F32x16::ZERO);
                    affine.s.write(&mut s);
                    affine.m.write(&mut m);
                    let reckoned = s.0[lane] * bundle.levels[j].0[lane] + m.0[lane];
                    assert_eq!(*value, reckoned, "{ty}: row {lane}, column {j}");
                }
            }
        }
    }
}

/// Stage B as one reads it in the paper: one row, one column after the other.
fn feedback_by_definition(p: &Problem, ty: GgmlType, row: &[f32]) -> Vec<u8> {
    let (layout, n) = (layout(ty).unwrap(), p.cols);
    let quantize = codec(ty).unwrap().quantize.unwrap();
    let (mut t, mut errors) = (row.to_vec(), vec![0f32; n]);
    let mut out = vec![0u8; n / ty.block() * ty.block_bytes()];
    for (i, out) in out.chunks_exact_mut(ty.block_bytes()).enumerate() {
        let columns = i * layout.block..(i + 1) * layout.block;
        for j in columns.clone() {
            (0..columns.start).for_each(|k| t[j] -= p.u[k * n + j] * errors[k]);
        }
        quantize(&t[columns.clone()], Some(&p.importance[columns.clone()]), out);
        let mut block = Block::new(&layout);
        unpack_scales(&layout, out, &mut block);
        for j in columns.clone() {
            (columns.start..j).for_each(|k| t[j] -= p.u[k * n + j] * errors[k]);
            let b = (j - columns.start) / layout.sub;
            let (s, m) = (block.d * block.a[b], -(block.dmin * block.c[b]));
            let y = (t[j] - m) * if s == 0.0 { 0.0 } else { 1.0 / s };
            let level = if layout.table {
                let above = VALUES.windows(2).filter(|v| y >= 0.5 * (v[0] + v[1])).count();
                VALUES[above]
            } else {
                y.clamp(layout.levels.0, layout.levels.1).round_ties_even()
            };
            block.levels[j - columns.start] = level;
            errors[j] = (t[j] - (s * level + m)) * (1.0 / f64::from(p.u[j * n + j])) as f32;
        }
        layout::pack(&layout, &block, out);
    }
    out
}

#[test]
fn bundles_equal_the_definition_row_by_row() {
    let p = problem(512);
    let w = weights(19, p.cols, 5);
    for ty in TYPES {
        let one_by_one: Vec<u8> = w.chunks_exact(p.cols).flat_map(|row| feedback_by_definition(&p, ty, row)).collect();
        assert!(p.bytes(ty, &w, Stage::GgmlScales, Isa::active()) == one_by_one, "{ty}");
    }
}

#[test]
fn instruction_sets_threads_and_companions_change_nothing() {
    let p = problem(256);
    let w = weights(37, p.cols, 11);
    for ty in TYPES.into_iter().chain(CODEBOOKS) {
        let reference = p.bytes(ty, &w, Stage::Polish(1), Isa::SCALAR);
        for isa in Isa::available() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let bytes = pool.install(|| p.bytes(ty, &w, Stage::Polish(1), isa));
                assert!(bytes == reference, "{ty}: {isa:?}, {threads} threads");
            }
        }
        let row_bytes = reference.len() / 37;
        for (row, bytes) in w.chunks_exact(p.cols).zip(reference.chunks_exact(row_bytes)).skip(14).take(5) {
            assert!(p.bytes(ty, row, Stage::Polish(1), Isa::active()) == bytes, "{ty}: a row alone");
        }
    }
}

#[test]
fn odd_weights_give_sound_blocks() {
    for ty in TYPES.into_iter().chain(CODEBOOKS) {
        let p = problem(if ty.block() == 32 { 96 } else { 256 });
        for scale in [0.0, 1e-38, 1e-9, 1.0, 1e6, 1e30] {
            for rows in [1, 3, 17] {
                let mut w: Vec<f32> = weights(rows, p.cols, 2).iter().map(|v| v * scale).collect();
                // A sub-block of zeros, one of equal weights, one outlier.
                w[..16].fill(0.0);
                w[32..64].fill(0.01 * scale);
                w[70] = -9.0 * scale;
                for stage in [Stage::GgmlScales, Stage::InLoop, Stage::Polish(1)] {
                    if stage == Stage::GgmlScales && scale > 1.0 {
                        continue; // ggml's own scales overflow there
                    }
                    let bytes = p.bytes(ty, &w, stage, Isa::active());
                    let mut decoded = vec![0.0; w.len()];
                    dequantize_rows(ty, &bytes, &mut decoded).unwrap();
                    assert!(decoded.iter().all(|v| v.is_finite()), "{ty} {scale} {rows} {stage:?}");
                    if scale == 0.0 {
                        assert!(decoded.iter().all(|v| *v == 0.0), "{ty} {stage:?}: zeros became something");
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let p = problem(256);
    let prepared = Prepared::new(GgmlType::Q4_K, &p.hessian()).unwrap();
    let mut out = vec![0; 144];
    let mut go = |w: &[f32], importance: &[f32]| feedback_rows(&prepared, w, importance, Stage::default(), &mut out);
    let mut w = weights(1, 256, 1);
    assert_eq!(go(&w, &p.importance), Ok(()));
    assert!(matches!(go(&w[..255], &p.importance), Err(QuantError::Length { .. })));
    assert!(matches!(go(&w, &p.importance[1..]), Err(QuantError::Length { .. })));
    w[77] = f32::NAN;
    assert!(matches!(go(&w, &p.importance), Err(QuantError::NotFinite { index: 77, .. })));
    assert!(matches!(Prepared::new(GgmlType::TQ2_0, &p.hessian()), Err(QuantError::Unsupported { .. })));
    let short = Hessian::from_matrices(p.h.clone(), p.u.clone(), 128).unwrap();
    assert!(matches!(Prepared::new(GgmlType::Q4_K, &short), Err(QuantError::NotWholeBlocks { .. })));
    for (h, n) in [(&p.h[..], 100), (&p.h[..100], 256), (&p.h[..], 0)] {
        let refused = Hessian::from_matrices(h.to_vec(), p.u.clone(), n);
        assert!(matches!(refused, Err(QuantError::Length { .. })), "{n}");
    }
}

#[test]
fn a_gauge_measures_the_loss_and_refuses_feedback_that_does_not_hold() {
    let p = problem(256);
    let w = weights(19, p.cols, 3);
    let ty = GgmlType::Q3_K;
    let feedback = p.bytes(ty, &w, Stage::default(), Isa::active());
    let mut ggml = vec![0; feedback.len()];
    crate::quant::quantize_rows(ty, &w, p.cols, Some(&p.importance), &mut ggml).unwrap();
    let same = Gauge::new(&p.h, p.cols).unwrap();
    let exact: f64 = p.losses(ty, &w, &feedback).iter().sum();
    let loss = same.loss(ty, &w, &feedback).unwrap();
    assert!((loss / exact - 1.0).abs() < 1e-4, "{loss} {exact}");
    // Other data, on which only the diagonal counts: there feedback's larger errors are not made good.
    let mut other = vec![0.0; p.cols * p.cols];
    (0..p.cols).for_each(|i| other[i * p.cols + i] = p.h[i * p.cols + i]);
    let other = Gauge::new(&other, p.cols).unwrap();
    let kept = Verdict::new(std::slice::from_ref(&same), ty, &w, &feedback, &ggml).unwrap();
    assert!(kept.keep && kept.losses[0].0 < kept.losses[0].1);
    let refused = Verdict::new(&[same, other], ty, &w, &feedback, &ggml).unwrap();
    assert!(!refused.keep && refused.losses[1].0 > refused.losses[1].1, "{refused:?}");
}

#[test]
fn more_bits_lose_less() {
    let p = problem(256);
    let w = weights(16, p.cols, 3);
    let hessian = Hessian::new(crate::feedback::Factor::diagonal(&p.importance)).unwrap();
    let gauge = Gauge::new(&p.h, p.cols).unwrap();
    let types = [GgmlType::IQ3_S, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K, GgmlType::F16];
    let table = losses_by_type(&hessian, &gauge, &w, &p.importance, &types, Stage::InLoop).unwrap();
    assert_eq!(table.iter().map(|row| row.ty).collect::<Vec<_>>(), types);
    assert!(table.is_sorted_by(|a, b| a.loss > b.loss && a.bytes < b.bytes), "{table:?}");
}

#[test]
fn feedback_pays_with_the_factor_of_a_gram() {
    use crate::feedback::{Order, Shrink};
    let p = problem(768);
    let w = weights(16, p.cols, 3);
    let ty = GgmlType::Q4_K;
    let mut ggml = vec![0; w.len() / ty.block() * ty.block_bytes()];
    crate::quant::quantize_rows(ty, &w, p.cols, Some(&p.importance), &mut ggml).unwrap();
    let (factor, _) = crate::feedback::Factor::new(&p.h, p.cols, Shrink::default(), Order::Natural).unwrap();
    let prepared = Prepared::new(ty, &Hessian::new(factor).unwrap()).unwrap();
    let mut bytes = vec![0; ggml.len()];
    let sum = |bytes: &[u8]| p.losses(ty, &w, bytes).iter().sum::<f64>();
    for (stage, share) in [(Stage::GgmlScales, 0.8), (Stage::default(), 0.7)] {
        feedback_rows(&prepared, &w, &p.importance, stage, &mut bytes).unwrap();
        assert!(sum(&bytes) < share * sum(&ggml), "{stage:?}: {} of {}", sum(&bytes), sum(&ggml));
    }
    let (other, _) = crate::feedback::Factor::new(&p.h, p.cols, Shrink::default(), Order::Activity).unwrap();
    assert!(matches!(Hessian::new(other), Err(QuantError::Length { .. })));
}
