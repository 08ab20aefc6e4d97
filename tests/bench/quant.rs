//! Million weights per CPU-second of every quantizer, by type and instruction set, with and without importance.
//! `cargo bench --bench quant -- [TYPE,...|all] [ISA,...|all] [million weights]`. One thread; the source stays in cache.
//!
//! Two tables of docs/benchmarks.md: `cargo bench --bench quant -- table [TYPE,...|all] [GGML_RATES]` prints the same beside
//! ggml's rates (what `tests/bench/ggml_rate.py` prints), `… -- roofline [TYPE,...|all]` what a stream of BF16 weights from
//! memory to blocks in memory reaches of the memory's own rate.

use quantize::isa::Isa;
use quantize::quant::{GgmlType, codec, dequantize_rows, quantize_rows_with, types::TYPES};
use std::hint::black_box;

const COLS: usize = 2048;
const ROWS: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let chosen = |i: usize| args.get(i).filter(|a| *a != "all").map(|a| a.split(',').collect::<Vec<_>>());
    let available = || Isa::available().into_iter();
    if args.first().is_some_and(|a| a == "table") {
        let sets = available().collect::<Vec<_>>();
        let ggml = args.get(2).map(|path| std::fs::read_to_string(path).expect("rates of ggml"));
        let cases = cases(chosen(1).as_deref());
        return against_ggml(&cases, &sets, ggml.as_deref().unwrap_or(""));
    }
    if args.first().is_some_and(|a| a == "roofline") {
        return roofline(&cases(chosen(1).as_deref()));
    }
    let (types, sets) = (chosen(0), chosen(1));
    let millions: f64 = args.get(2).map_or(4.0, |a| a.parse().expect("a number"));
    let src = weights();
    let sets: Vec<Isa> = available().filter(|isa| sets.as_ref().is_none_or(|s| s.contains(&isa.name()))).collect();
    print!("{:<8} {:<8}", "type", "weights");
    sets.iter().for_each(|isa| print!(" {:>9}", isa.name()));
    println!("   M weights per CPU-second");
    for Case { ty, kind, importance } in cases(types.as_deref()) {
        print!("{:<8} {kind:<8}", ty.name());
        for isa in &sets {
            print!(" {:>9.1}", rate(*isa, ty, &src, importance.as_deref(), millions));
        }
        println!();
    }
}

/// One row of the output.
struct Case {
    ty: GgmlType,
    kind: &'static str,
    importance: Option<Vec<f32>>,
}

fn cases(wanted: Option<&[&str]>) -> Vec<Case> {
    let types = TYPES.iter().map(|row| row.ty).filter(|ty| {
        codec(*ty).is_some() && wanted.is_none_or(|wanted| wanted.iter().any(|t| t.eq_ignore_ascii_case(ty.name())))
    });
    let importance: Vec<f32> = (0..COLS).map(|i| 0.1 + (i * 7919 % 101) as f32 / 50.0).collect();
    let both = |ty| {
        [("plain", None), ("imatrix", Some(importance.clone()))]
            .map(|(kind, importance)| Case { ty, kind, importance })
            .into_iter()
            .filter(|case| match case.importance {
                None => codec(case.ty).is_some_and(|codec| !codec.needs_importance),
                // These take none.
                Some(_) => {
                    !case.ty.is_plain()
                        && !matches!(case.ty.name(), "Q8_0" | "MXFP4" | "NVFP4" | "Q1_0" | "Q2_0" | "TQ1_0" | "TQ2_0")
                }
            })
            .collect::<Vec<_>>()
    };
    types.flat_map(both).collect()
}

fn against_ggml(cases: &[Case], sets: &[Isa], ggml: &str) {
    let src = weights();
    print!("| type | | ggml |");
    sets.iter().for_each(|isa| print!(" {} |", isa.name()));
    println!(" best to ggml |\n|---|---|---|{}---|", "---|".repeat(sets.len()));
    for Case { ty, kind, importance } in cases {
        let same = |line: &&str| line.split_whitespace().take(2).eq([ty.name(), *kind]);
        let theirs = ggml.lines().find(same).and_then(|line| line.split_whitespace().nth(2)?.parse::<f64>().ok());
        let short = |v: f64| if v < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") };
        let imatrix = if *kind == "plain" { "" } else { "importance" };
        print!("| {} | {imatrix} | {} |", ty.name(), theirs.map_or(String::new(), short));
        let rates: Vec<f64> = sets.iter().map(|isa| rate(*isa, *ty, &src, importance.as_deref(), 4.0)).collect();
        rates.iter().for_each(|rate| print!(" {} |", short(*rate)));
        let best = rates.last().copied().unwrap_or(0.0);
        println!(" {} |", theirs.map_or(String::new(), |theirs| format!("{:.1}", best / theirs)));
    }
}

/// From BF16 in memory to blocks in memory, one thread, in pieces that stay in cache in between.
fn roofline(cases: &[Case]) {
    const WEIGHTS: usize = 1 << 26;
    const PIECE: usize = 1 << 17;
    let isa = Isa::detect();
    let mut bf16 = vec![0u8; 2 * WEIGHTS];
    let piece = weights();
    for part in bf16.chunks_exact_mut(2 * piece.len()) {
        quantize_rows_with(isa, GgmlType::BF16, &piece, COLS, None, part).expect("BF16");
    }
    let mut out = vec![1u8; 4 * WEIGHTS];
    let copied = &mut out[..2 * WEIGHTS];
    let copy = fastest(|| copied.copy_from_slice(black_box(&bf16)));
    let sum =
        |words: &[u8]| words.as_chunks::<64>().0.iter().fold([0u8; 64], |s, b| std::array::from_fn(|i| s[i] ^ b[i]));
    let read = fastest(|| {
        black_box(sum(black_box(&bf16)));
    });
    let (read, both) = (2.0 * WEIGHTS as f64 / read / 1e9, 4.0 * WEIGHTS as f64 / copy / 1e9);
    println!("One thread reads {read:.1} GB/s and copies {both:.1} GB/s (both directions counted).\n");
    println!(
        "| type | | bytes a weight | the copy's rate allows | {} in cache | of it | BF16 to blocks in memory | of it |",
        isa.name()
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut rows = vec![0f32; PIECE];
    for Case { ty, kind, importance } in cases {
        let importance = importance.as_deref();
        let bytes = ty.block_bytes() as f64 / ty.block() as f64;
        let allowed = both * 1e3 / (2.0 + bytes);
        let cached = rate(isa, *ty, &piece, importance, 4.0);
        // Slow types show their rate on a part.
        let count = ((cached * 1e6) as usize).clamp(PIECE, WEIGHTS) / PIECE * PIECE;
        let piece_bytes = PIECE / COLS * ty.row_bytes(COLS).expect("whole blocks");
        let seconds = fastest(|| {
            for (src, out) in bf16[..2 * count].chunks_exact(2 * PIECE).zip(out.chunks_exact_mut(piece_bytes)) {
                dequantize_rows(GgmlType::BF16, src, &mut rows).expect("decoded");
                quantize_rows_with(isa, *ty, &rows, COLS, importance, out).expect("quantized");
            }
        });
        let streamed = count as f64 / seconds / 1e6;
        let imatrix = if *kind == "plain" { "" } else { "importance" };
        println!(
            "| {} | {imatrix} | {:.2} | {allowed:.0} | {cached:.0} | {:.1} % | {streamed:.0} | {:.1} % |",
            ty.name(),
            2.0 + bytes,
            100.0 * cached / allowed,
            100.0 * streamed / allowed
        );
    }
}

/// CPU seconds of the quickest of three.
fn fastest(mut run: impl FnMut()) -> f64 {
    let once = |run: &mut dyn FnMut()| {
        let start = cpu_seconds();
        run();
        cpu_seconds() - start
    };
    (0..3).map(|_| once(&mut run)).fold(f64::INFINITY, f64::min)
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
    let rows = if isa == Isa::SCALAR { 8 } else { ROWS };
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
