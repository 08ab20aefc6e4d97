//! Million weights per CPU-second of every quantizer, by type and instruction set, with and without importance.
//! `cargo bench --bench quant -- [TYPE,...|all] [ISA,...|all] [million weights]`. One thread; the source stays in cache.

use quantize::quant::{GgmlType, Isa, codec, quantize_rows_with, types::TYPES};

const COLS: usize = 2048;
const ROWS: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let chosen = |i: usize| args.get(i).filter(|a| *a != "all").map(|a| a.split(',').collect::<Vec<_>>());
    let (types, sets) = (chosen(0), chosen(1));
    let millions: f64 = args.get(2).map_or(4.0, |a| a.parse().expect("a number"));
    let src = weights();
    let importance: Vec<f32> = (0..COLS).map(|i| 0.1 + (i * 7919 % 101) as f32 / 50.0).collect();
    let sets: Vec<Isa> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.is_available() && sets.as_ref().is_none_or(|s| s.contains(&isa.name())))
        .collect();
    print!("{:<8} {:<8}", "type", "weights");
    sets.iter().for_each(|isa| print!(" {:>9}", isa.name()));
    println!("   M weights per CPU-second");
    for row in TYPES {
        let ty = row.ty;
        let wanted = types.as_ref().is_none_or(|t| t.iter().any(|t| t.eq_ignore_ascii_case(ty.name())));
        let Some(codec) = codec(ty).filter(|_| wanted) else { continue };
        for (kind, importance) in [("plain", None), ("imatrix", Some(importance.as_slice()))] {
            if importance.is_none() && codec.needs_importance || importance.is_some() && ty.is_plain() {
                continue;
            }
            print!("{:<8} {kind:<8}", ty.name());
            for isa in &sets {
                print!(" {:>9.1}", rate(*isa, ty, &src, importance, millions));
            }
            println!();
        }
    }
}

/// About normal, as weights are.
fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..COLS * ROWS).map(|_| 0.02 * ((0..12).map(|_| unit()).sum::<f32>() - 6.0)).collect()
}

/// The best of three; slow types stop after a second each.
fn rate(isa: Isa, ty: GgmlType, src: &[f32], importance: Option<&[f32]>, millions: f64) -> f64 {
    let mut out = vec![0; ROWS * ty.row_bytes(COLS).expect("whole blocks")];
    let rows = if isa == Isa::Scalar { 8 } else { ROWS };
    let (src, out) = (&src[..rows * COLS], &mut out[..rows * ty.row_bytes(COLS).expect("whole blocks")]);
    let mut run = || quantize_rows_with(isa, ty, src, COLS, importance, out).expect("quantized");
    run();
    // Reading the clock costs as much as some thousand weights of the quick types.
    let once = cpu_seconds();
    run();
    let repeats = (1e-3 / (cpu_seconds() - once)).clamp(1.0, 100.0) as usize;
    let mut best = 0f64;
    for _ in 0..3 {
        let (start, mut done) = (cpu_seconds(), 0.0);
        loop {
            (0..repeats).for_each(|_| run());
            done += (repeats * src.len()) as f64;
            let seconds = cpu_seconds() - start;
            if seconds > 1.0 || done >= millions * 1e6 && seconds > 0.02 {
                best = best.max(done / seconds / 1e6);
                break;
            }
        }
    }
    best
}

/// CPU time of this thread so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
