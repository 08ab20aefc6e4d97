//! What holds for codebooks beyond what holds for every type: how much they gain, what their bytes decode to, and the rules
//! of signs. Threads, instruction sets and odd weights are with the other types.

use super::super::tests::{problem, weights};
use super::super::{LANES, Stage};
use super::*;
use crate::quant::{dequantize_rows, quantize_rows};
use crate::simd::{F32x16, Plain};

pub const CODEBOOKS: [GgmlType; 6] =
    [GgmlType::IQ3_S, GgmlType::IQ3_XXS, GgmlType::IQ2_S, GgmlType::IQ2_XS, GgmlType::IQ2_XXS, GgmlType::IQ1_M];

#[test]
fn feedback_loses_far_less_than_ggmls_search() {
    let p = problem(512);
    let w = weights(21, p.cols, 3);
    for ty in CODEBOOKS {
        let mut ggml = vec![0; w.len() / ty.block() * ty.block_bytes()];
        quantize_rows(ty, &w, p.cols, Some(&p.importance), &mut ggml).unwrap();
        let loss = |stage| p.losses(ty, &w, &p.bytes(ty, &w, stage, Isa::active()));
        let sum = |v: &[f64]| v.iter().sum::<f64>();
        let ggml = sum(&p.losses(ty, &w, &ggml));
        let stages = [Stage::InLoop, Stage::Polish(1), Stage::Polish(3)].map(loss);
        let shares = stages.each_ref().map(|v| sum(v) / ggml);
        eprintln!("{ty}: {shares:.3?}");
        assert!(shares[0] < 0.7 && shares[1] < 0.62, "{ty}: {shares:?}");
        // A sweep must not lose in any row, and gains in all of them together.
        for (before, after) in stages.iter().zip(&stages[1..]) {
            assert!(before.iter().zip(after).all(|(b, a)| *a <= b * (1.0 + 1e-5)), "{ty}");
        }
        assert!(shares[1] < 0.97 * shares[0] && shares[2] < shares[1], "{ty}: {shares:?}");
    }
}

#[test]
fn the_search_alone_is_no_worse_than_ggmls() {
    // Without off-diagonals nothing is carried on, and what is left is the search of scales and points.
    let p = problem(256);
    let w = weights(32, p.cols, 5);
    let hessian = Hessian::new(crate::feedback::Factor::diagonal(&p.importance)).unwrap();
    let squares = |ty: GgmlType, bytes: &[u8]| -> f64 {
        let mut decoded = vec![0.0; w.len()];
        dequantize_rows(ty, bytes, &mut decoded).unwrap();
        let errors = w.iter().zip(&decoded).zip(p.importance.iter().cycle());
        errors.map(|((w, v), h)| f64::from(h * (w - v).powi(2))).sum()
    };
    for ty in CODEBOOKS {
        let mut ggml = vec![0; w.len() / ty.block() * ty.block_bytes()];
        quantize_rows(ty, &w, p.cols, Some(&p.importance), &mut ggml).unwrap();
        let mut ours = vec![0; ggml.len()];
        let row_bytes = ours.len() / 32;
        let codebook = Codebook::new(ty, &hessian).unwrap();
        for (w, out) in w.chunks(LANES * p.cols).zip(ours.chunks_mut(LANES * row_bytes)) {
            codebook.rows(w, 0, Isa::active(), out, row_bytes);
        }
        let share = squares(ty, &ours) / squares(ty, &ggml);
        eprintln!("{ty}: {share:.3}");
        assert!(share < 0.97, "{ty}: {share}");
    }
}

#[test]
fn blocks_decode_to_the_values_that_were_reckoned_with() {
    let p = problem(512);
    let mut w = weights(LANES, p.cols, 9);
    // A super-block of zeros in one row.
    w[3 * p.cols..3 * p.cols + SUPER].fill(0.0);
    for ty in CODEBOOKS {
        let codebook = Codebook::new(ty, &p.hessian()).unwrap();
        let book = &codebook.book;
        for sweeps in [0, 2] {
            let bundle = codebook.bundle(&w, sweeps, Isa::SCALAR);
            let mut bytes = vec![0; w.len() / ty.block() * ty.block_bytes()];
            let row_bytes = bytes.len() / LANES;
            bundle.pack(book, &mut bytes, row_bytes);
            let mut decoded = vec![0.0; w.len()];
            dequantize_rows(ty, &bytes, &mut decoded).unwrap();
            for (lane, row) in decoded.chunks_exact(p.cols).enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let d = bundle.d[j / SUPER].0[lane];
                    let mut s = F32x16::ZERO;
                    bundle::scale(book, &bundle.d[j / SUPER], Plain::read(&bundle.a[j / book.block])).write(&mut s);
                    assert_eq!(*value, s.0[lane] * bundle.values[j].0[lane], "{ty}: row {lane}, column {j}");
                    assert_eq!(half::f16::from_f32(d).to_f32(), d, "{ty}");
                }
                for vector in bundle.values.chunks_exact(8).filter(|_| book.even_signs) {
                    let minus = vector.iter().filter(|v| v.0[lane] < 0.0).count();
                    assert!(minus.is_multiple_of(2), "{ty}: row {lane} has {minus} minus signs");
                }
            }
            let zeros = &bytes[3 * row_bytes..][..ty.block_bytes()];
            assert!(zeros.iter().all(|b| *b == 0), "{ty}: zeros became something");
        }
    }
}

#[test]
fn the_scan_finds_the_nearest_signed_point() {
    // Against all points under all signs that the type allows, in double precision.
    let targets = weights(LANES, 8, 21);
    let metric = [1.0f32, 0.3, 2.0, 0.7, 0.1, 1.5, 0.9, 0.4];
    for ty in CODEBOOKS {
        let book = Book::new(ty).unwrap();
        let n = book.vector;
        let mut target = [F32x16::ZERO; 8];
        for (j, t) in target.iter_mut().enumerate() {
            *t = F32x16(std::array::from_fn(|lane| targets[lane * 8 + j]));
        }
        let s = 0.09 / book.reach();
        let (mut values, mut points) = ([F32x16::ZERO; 8], [F32x16::ZERO; 2]);
        let mut tables = Tables::new();
        let (target, metric) = (&target[..n], &metric[..n]);
        let (values, points) = (&mut values[..n], &mut points[..n / book.point]);
        match book.point {
            4 => scan::nearest::<Plain, 8, 2>(&book, &mut tables, target, metric, Plain::splat(s), values, points),
            _ => scan::nearest::<Plain, 3, 4>(&book, &mut tables, target, metric, Plain::splat(s), values, points),
        }
        let mut all = (0.0, 0.0);
        for lane in 0..LANES {
            let cost =
                |j: usize, g: f32| f64::from(metric[j]) * (f64::from(target[j].0[lane]) - f64::from(s * g)).powi(2);
            let found: f64 = values.iter().enumerate().map(|(j, v)| cost(j, v.0[lane])).sum();
            // The best of each point, for both parities of its minus signs.
            let point = |from: usize| {
                let mut best = [f64::INFINITY; 2];
                for point in &book.values {
                    for signs in 0u32..if book.has_signs() { 1 << book.point } else { 1 } {
                        let sign = |i: usize| if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
                        let sum = (0..book.point).map(|i| cost(from + i, sign(i) * point[i])).sum();
                        let best = &mut best[signs.count_ones() as usize % 2];
                        *best = f64::min(*best, sum);
                    }
                }
                best
            };
            let parts: Vec<[f64; 2]> = (0..n).step_by(book.point).map(point).collect();
            let even = parts
                .iter()
                .skip(1)
                .fold(parts[0], |a, b| [(a[0] + b[0]).min(a[1] + b[1]), (a[0] + b[1]).min(a[1] + b[0])]);
            let best = if book.even_signs { even[0] } else { even[0].min(even[1]) };
            assert!(found >= best * (1.0 - 1e-5), "{ty}: {found} is less than {best}");
            assert!(book.even_signs || found <= best * (1.0 + 1e-5), "{ty}: {found} of {best}");
            (all.0, all.1) = (all.0 + found, all.1 + best);
        }
        // Signs are turned before the points are compared, which costs a little where not all are allowed.
        assert!(all.0 <= 1.1 * all.1, "{ty}: {all:?}");
    }
}
