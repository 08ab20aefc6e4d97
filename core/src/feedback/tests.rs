//! The core against the definition of GPTQ written out, and what must hold of any rounding.

use super::cholesky::tests::spd;
use super::int::{IntSpec, Search, quantize};
use super::nearest::nearest;
use super::*;
use crate::made::numbers;

const SPEC: IntSpec = IntSpec { bits: 4, group: 16, symmetric: true, least_zero: 0, scale: ScaleType::F16 };
const PLAIN: Search = Search { scales: false, sweeps: 0, static_groups: true };

/// GPTQ column by column in `f64` with scales from the extremes. Returns the dequantized weights.
fn naive(w: &[f32], gram: &[f32], n: usize, shrink: Shrink, order: Order, spec: &IntSpec) -> Vec<f64> {
    let (factor, _) = Factor::new(gram, n, shrink, order).unwrap();
    let mut out = vec![0.0; w.len()];
    for (w, out) in w.chunks(n).zip(out.chunks_mut(n)) {
        let mut w: Vec<f64> = factor.order().iter().map(|c| f64::from(w[*c as usize])).collect();
        let mut scale = 0.0;
        let max = f64::from(spec.max_code());
        for j in 0..n {
            if j % spec.group == 0 {
                let absmax = w[j..n.min(j + spec.group)].iter().fold(0.0f64, |m, v| m.max(v.abs()));
                scale = f64::from(half::f16::from_f64(absmax / (max / 2.0)).to_f32());
            }
            let middle = (max + 1.0) / 2.0;
            let code = (w[j] / scale + middle).round_ties_even().clamp(0.0, max);
            let v = (code - middle) * scale;
            let u = |k: usize| f64::from(factor.upper(j, k).unwrap()[0]);
            let e = (w[j] - v) / u(j);
            (j..n).for_each(|k| w[k] -= e * u(k));
            out[factor.order()[j] as usize] = v;
        }
    }
    out
}

/// `Σ e G eᵀ`.
fn output_error(w: &[f32], rounded: &[f32], h: &[f32], n: usize) -> f64 {
    let errors: Vec<f64> = w.iter().zip(rounded).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let row =
        |e: &[f64]| (0..n).map(|i| e[i] * (0..n).map(|j| f64::from(h[i * n + j]) * e[j]).sum::<f64>()).sum::<f64>();
    errors.chunks(n).map(row).sum()
}

fn values(codes: &int::Codes) -> Vec<f32> {
    let mut out = vec![0.0; codes.rows * codes.cols];
    codes.dequantize(0..codes.rows, &mut out);
    out
}

#[test]
fn the_core_is_gptq() {
    let (n, rows) = (96, 37);
    let gram = spd(n, 300, 7);
    let w = numbers(rows * n, 8);
    for order in [Order::Natural, Order::Groups(16)] {
        for shrink in [Shrink { rho: 0.0, damping: 0.01 }, Shrink::default()] {
            let (factor, _) = Factor::new(&gram, n, shrink, order).unwrap();
            let (codes, loss) = quantize(&w, &factor, &SPEC, PLAIN);
            let (got, wanted) = (values(&codes), naive(&w, &gram, n, shrink, order, &SPEC));
            // A weight between two codes may fall to either side; what follows it in the row then differs.
            let same = got
                .chunks(n)
                .zip(wanted.chunks(n))
                .filter(|(a, b)| a.iter().zip(*b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
            assert!(same.count() >= rows - 2, "{order:?} {shrink:?}");
            assert!(loss > 0.0 && loss < 0.05, "{loss}");
        }
    }
}

#[test]
fn the_loss_is_the_output_error_and_every_step_lowers_it() {
    let (n, rows) = (128, 40);
    let gram = spd(n, 200, 9);
    let w = numbers(rows * n, 10);
    let shrink = Shrink { rho: 0.0, damping: 0.01 };
    let (factor, _) = Factor::new(&gram, n, shrink, Order::Natural).unwrap();
    let h = factor.hessian(0, 0).unwrap();
    let energy: f64 =
        w.chunks(n).flat_map(|w| w.iter().zip(factor.importance())).map(|(w, h)| f64::from(w * w * h)).sum();
    for bits in [2, 3, 4, 8] {
        for symmetric in [true, false] {
            for group in [32, 128, 48] {
                let spec = IntSpec { bits, symmetric, group, ..SPEC };
                let mut last = f64::INFINITY;
                for (scales, sweeps) in [(false, 0), (true, 0), (true, 1), (true, 2), (true, 4)] {
                    let (codes, loss) = quantize(&w, &factor, &spec, Search { scales, sweeps, static_groups: true });
                    let error = output_error(&w, &values(&codes), h, n) / energy;
                    assert!((error / loss - 1.0).abs() < 1e-3, "{spec:?} {sweeps}: {error} {loss}");
                    assert!(error <= last, "{spec:?} {scales} {sweeps}: {error} after {last}");
                    last = error;
                }
            }
        }
    }
}

#[test]
fn feedback_beats_rounding_to_nearest() {
    let (n, rows) = (128, 32);
    let gram = spd(n, 400, 11);
    let w = numbers(rows * n, 12);
    let shrink = Shrink { rho: 0.0, damping: 0.01 };
    let (factor, _) = Factor::new(&gram, n, shrink, Order::Natural).unwrap();
    let spec = IntSpec { group: 32, ..SPEC };
    let error = |codes: &int::Codes| output_error(&w, &values(codes), &gram, n);
    let nearest = error(&nearest(&w, rows, n, &spec));
    let weighted = error(&quantize(&w, &Factor::diagonal(factor.importance()), &spec, Search::default()).0);
    let plain = error(&quantize(&w, &factor, &spec, PLAIN).0);
    let full = error(&quantize(&w, &factor, &spec, Search::default()).0);
    assert!(weighted < nearest && plain < 0.7 * nearest && full < 0.9 * plain, "{nearest} {weighted} {plain} {full}");
}

#[test]
fn threads_and_instruction_sets_give_the_same_bits() {
    let (n, rows) = (150, 75);
    let gram = spd(n, 200, 13);
    let w = numbers(rows * n, 14);
    let spec = IntSpec { group: 32, ..SPEC };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (factor, _) = Factor::new(&gram, n, Shrink::default(), Order::Groups(32)).unwrap();
            quantize(&w, &factor, &spec, Search::default())
        })
    };
    assert!(run(1) == run(4));
    let (factor, _) = Factor::new(&gram, n, Shrink::default(), Order::Natural).unwrap();
    let results = Isa::available().into_iter().map(|isa| int::tests::quantize_with(&w, &factor, &spec, isa));
    let results: Vec<_> = results.collect();
    assert!(results.windows(2).all(|r| r[0] == r[1]));
}

#[test]
fn orders_and_static_groups_hold_what_they_promise() {
    let (n, rows) = (96, 20);
    let gram = spd(n, 200, 15);
    let w = numbers(rows * n, 16);
    let nearest = output_error(&w, &values(&nearest(&w, rows, n, &SPEC)), &gram, n);
    for (order, static_groups) in [(Order::Activity, true), (Order::Activity, false), (Order::Groups(16), false)] {
        let (factor, _) = Factor::new(&gram, n, Shrink::default(), order).unwrap();
        let (codes, _) = quantize(&w, &factor, &SPEC, Search { static_groups, ..Search::default() });
        assert_eq!(codes.g_idx.is_some(), order == Order::Activity && !static_groups);
        if let Some(index) = &codes.g_idx {
            let uses = |g: u32| index.iter().filter(|i| **i == g).count();
            assert!((0..6).all(|g| uses(g) == 16));
        }
        assert!(output_error(&w, &values(&codes), &gram, n) < 0.8 * nearest, "{order:?}");
    }
    // One scale per row.
    let spec = IntSpec { group: n, ..SPEC };
    let (factor, _) = Factor::new(&gram, n, Shrink::default(), Order::Activity).unwrap();
    let (codes, _) = quantize(&w, &factor, &spec, Search::default());
    assert_eq!((codes.scales.len(), codes.g_idx), (rows, None));
}

#[test]
fn odd_shapes_and_degenerate_matrices_are_rounded() {
    let shrink = Shrink::default();
    // One column, one row.
    let (factor, _) = Factor::new(&[3.0], 1, shrink, Order::Natural).unwrap();
    let (codes, _) = quantize(&[0.7], &factor, &SPEC, Search::default());
    assert!((values(&codes)[0] - 0.7).abs() < 0.01);
    // All weights zero, and a rank-one gram with a dead column.
    let x: Vec<f32> = (0..40).map(|i| if i == 7 { 0.0 } else { (i % 5) as f32 - 2.5 }).collect();
    let gram: Vec<f32> = x.iter().flat_map(|a| x.iter().map(move |b| a * b)).collect();
    let (factor, notes) = Factor::new(&gram, 40, shrink, Order::Groups(16)).unwrap();
    assert_eq!(notes.dead, 1);
    let (codes, loss) = quantize(&[0.0; 80], &factor, &SPEC, Search::default());
    assert!(values(&codes).iter().all(|v| *v == 0.0) && loss == 0.0);
    let w = numbers(80, 17);
    let (codes, _) = quantize(&w, &factor, &SPEC, Search::default());
    for (a, b) in values(&codes).iter().zip(&w) {
        assert!((a - b).abs() < 2.0, "{a} {b}");
    }
    let none = quantize(&[], &factor, &SPEC, Search::default()).0;
    assert!(none.codes.is_empty());
}
