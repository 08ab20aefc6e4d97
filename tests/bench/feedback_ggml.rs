//! Error feedback against ggml's search with an importance matrix of the same tokens: CPU time of every stage, and the KL
//! divergence from the unquantized model that each leaves. All linear layers of one pure type; embedding and head as they
//! are.
//!
//! `cargo bench --bench feedback_ggml -- MODEL CALIBRATION TYPE:STAGES,... [TEXT ...]`, where stages are letters: `a` ggml's
//! search, `b` feedback with ggml's scales, `c` with the in-loop search, `d` polished once, `e` twice. In the environment:
//! `WINDOWS` (48) of 512 tokens spread over the calibration text, `CHUNKS` (24) of each evaluation text, `RHO` (0.3), and
//! `GRAMS`, a file that keeps the moments from run to run.

use ndarray::ArrayView2;
use quantize::eval::Runnable;
use quantize::eval::softmax;
use quantize::feedback::ggml::{Hessian, Prepared, Stage, feedback_rows};
use quantize::feedback::{Factor, Order, Shrink};
use quantize::infer::{Cache, Observer};
use quantize::kernel::{Dense, Output, RowSource, matmul};
use quantize::quant::{GgmlType, dequantize_rows, quantize_rows};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::path::Path;

const CONTEXT: usize = 512;

/// Second moments of the inputs, one of each group of layers that share theirs.
struct Grams(BTreeMap<String, Vec<f32>>);

/// The layer whose input is also that of `linear`.
fn source(linear: &str) -> String {
    ["attn_k.", "attn_v."]
        .iter()
        .fold(linear.replace("ffn_up.", "ffn_gate."), |name, other| name.replace(other, "attn_q."))
}

impl Observer for Grams {
    fn input(&mut self, linear: &str, _: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        let Some(gram) = self.0.get_mut(linear) else { return ControlFlow::Continue(()) };
        let (x, cols) = (x.as_slice().unwrap(), gram.len().isqrt());
        let n = x.len() / cols;
        let mut transposed = vec![0f32; x.len()];
        transposed.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            (0..n).for_each(|t| row[t] = x[t * cols + i]);
        });
        let mut product = vec![0f32; cols * cols];
        let right = Dense { data: transposed.clone(), cols: n };
        matmul(&transposed, &right, 0..cols, Output::whole(&mut product, cols));
        gram.iter_mut().zip(&product).for_each(|(g, p)| *g += p);
        ControlFlow::Continue(())
    }
}

/// Blocks in memory.
struct Blocks {
    ty: GgmlType,
    bytes: Vec<u8>,
    cols: usize,
}

impl RowSource for Blocks {
    fn rows(&self) -> usize {
        self.bytes.len() / self.ty.row_bytes(self.cols).unwrap()
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let row = self.ty.row_bytes(self.cols).unwrap();
        dequantize_rows(self.ty, &self.bytes[rows.start * row..rows.end * row], out).unwrap();
    }
}

/// One way to quantize all layers, and what came of it.
struct Way {
    ty: GgmlType,
    stage: char,
    weights: HashMap<String, Box<dyn RowSource>>,
    cpu: f64,
    /// Σ e'He / Σ w'Hw over the layers, unregularised H.
    loss: f64,
    /// Mean KL divergence and hits of each chunk, all texts one after the other.
    chunks: Vec<(f64, f64)>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [model, calibration, ways, texts @ ..] = &args[..] else {
        eprintln!("usage: cargo bench --bench feedback_ggml -- MODEL CALIBRATION TYPE:STAGES,... [TEXT ...]");
        return;
    };
    let number = |name: &str, default: f64| std::env::var(name).map_or(default, |v| v.parse().expect("a number"));
    let mut model = Runnable::open(Path::new(model)).expect("a model");
    let names: Vec<String> =
        model.engine.linears_mut().map(|l| l.name.clone()).filter(|n| n.contains("blk.")).collect();
    let grams = grams(&mut model, &names, calibration, number("WINDOWS", 48.0) as usize);
    let tokens = number("WINDOWS", 48.0) as f32 * CONTEXT as f32;
    let shrink = Shrink { rho: number("RHO", 0.3) as f32, ..Shrink::default() };

    let mut ways: Vec<Way> = ways
        .split(',')
        .flat_map(|way| {
            let (ty, stages) = way.split_once(':').expect("TYPE:STAGES");
            let ty: GgmlType = GgmlType::from_name(ty).expect("a type");
            stages.chars().map(move |stage| Way {
                ty,
                stage,
                weights: HashMap::new(),
                cpu: 0.0,
                loss: 0.0,
                chunks: Vec::new(),
            })
        })
        .collect();
    quantize(&mut model, &grams, &names, tokens, shrink, &mut ways);
    for text in texts {
        evaluate(&mut model, text, number("CHUNKS", 24.0) as usize, &mut ways);
    }
}

/// Runs the calibration windows, or reads what an earlier run kept.
fn grams(model: &mut Runnable, names: &[String], text: &str, windows: usize) -> Grams {
    let mut grams = BTreeMap::new();
    let mut cols: HashMap<String, usize> = HashMap::new();
    for linear in model.engine.linears_mut() {
        cols.insert(linear.name.clone(), linear.weight.cols());
    }
    for name in names.iter().filter(|n| source(n) == **n) {
        grams.insert(name.clone(), vec![0f32; cols[name] * cols[name]]);
    }
    let mut grams = Grams(grams);
    let file = std::env::var("GRAMS").ok();
    if let Some(bytes) = file.as_ref().and_then(|f| std::fs::read(f).ok()) {
        let mut at = 0;
        for value in grams.0.values_mut().flat_map(|g| g.iter_mut()) {
            *value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            at += 4;
        }
        return grams;
    }
    let stream = tokens(model, text);
    let all = stream.len() / CONTEXT;
    let cpu = cpu_seconds();
    for i in 0..windows {
        let at = i * all / windows * CONTEXT;
        let mut cache = Cache::one_batch(CONTEXT);
        model.engine.hidden(&stream[at..at + CONTEXT], &mut cache, &mut grams).expect("a pass");
    }
    println!("moments of {windows} windows (of {all}): {:.1} CPU s", cpu_seconds() - cpu);
    if let Some(file) = file {
        let bytes: Vec<u8> = grams.0.values().flatten().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(file, bytes).expect("a file");
    }
    grams
}

fn tokens(model: &Runnable, text: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(text).expect("a text");
    model.tokenizer.encode(&text, false).expect("tokens")
}

fn quantize(model: &mut Runnable, grams: &Grams, names: &[String], tokens: f32, shrink: Shrink, ways: &mut [Way]) {
    let mut count = 0usize;
    let (mut energy, mut factor_cpu) = (0.0, 0.0);
    let mut dense: HashMap<String, (Vec<f32>, usize)> = HashMap::new();
    for linear in model.engine.linears_mut().filter(|l| names.contains(&l.name)) {
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        let mut w = vec![0f32; rows * cols];
        linear.weight.decode(0..rows, &mut w);
        dense.insert(linear.name.clone(), (w, cols));
    }
    let mut prepare_cpu = 0.0;
    for (first, gram) in &grams.0 {
        let cols = gram.len().isqrt();
        let importance: Vec<f32> = (0..cols).map(|i| gram[i * cols + i] / tokens).collect();
        let cpu = cpu_seconds();
        let (factor, _) = Factor::new(gram, cols, shrink, Order::Natural).expect("a factor");
        let hessian = Hessian::new(factor).expect("whole panels");
        factor_cpu += cpu_seconds() - cpu;
        let mut prepared: Vec<(GgmlType, Prepared)> = Vec::new();
        for way in ways.iter_mut() {
            if way.stage != 'a' && !prepared.iter().any(|p| p.0 == way.ty) {
                let cpu = cpu_seconds();
                prepared.push((way.ty, Prepared::new(way.ty, &hessian).expect("a layout")));
                prepare_cpu += cpu_seconds() - cpu;
            }
            for name in names.iter().filter(|n| source(n) == *first) {
                let (w, cols) = &dense[name];
                let mut bytes = vec![0u8; w.len() / way.ty.block() * way.ty.block_bytes()];
                let cpu = cpu_seconds();
                let stage = match way.stage {
                    'b' => Some(Stage::GgmlScales),
                    'c' => Some(Stage::InLoop),
                    'd' => Some(Stage::Polish(1)),
                    'e' => Some(Stage::Polish(2)),
                    _ => None,
                };
                match stage {
                    Some(stage) => {
                        let prepared = &prepared.iter().find(|p| p.0 == way.ty).unwrap().1;
                        feedback_rows(prepared, w, &importance, stage, &mut bytes).expect("blocks");
                    }
                    None => {
                        let row = way.ty.row_bytes(*cols).unwrap();
                        let rows = w.par_chunks(16 * cols).zip(bytes.par_chunks_mut(16 * row));
                        rows.for_each(|(w, b)| quantize_rows(way.ty, w, *cols, Some(&importance), b).expect("blocks"));
                    }
                }
                way.cpu += cpu_seconds() - cpu;
                let mut error = vec![0f32; w.len()];
                dequantize_rows(way.ty, &bytes, &mut error).expect("weights");
                error.iter_mut().zip(w).for_each(|(v, w)| *v -= w);
                way.loss += quadratic(&error, gram, *cols);
                way.weights.insert(name.clone(), Box::new(Blocks { ty: way.ty, bytes, cols: *cols }));
            }
        }
        for name in names.iter().filter(|n| source(n) == *first) {
            count += dense[name].0.len();
            energy += quadratic(&dense[name].0, gram, cols);
        }
    }
    let million = count as f64 / 1e6;
    println!("{million:.1} M weights; factors {factor_cpu:.1} CPU s, panels {prepare_cpu:.1} CPU s");
    println!("type stage  CPU s per M weights  loss/energy");
    for way in ways.iter() {
        println!("{:6} {}  {:.4}  {:.3e}", way.ty.name(), way.stage, way.cpu / million, way.loss / energy);
    }
}

/// Σ over the rows of x: x'Hx.
fn quadratic(x: &[f32], h: &[f32], cols: usize) -> f64 {
    let mut product = vec![0f32; x.len()];
    matmul(x, &Dense { data: h.to_vec(), cols }, 0..cols, Output::whole(&mut product, cols));
    x.iter().zip(&product).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Scores every way on the first chunks of `text` and prints means and the ratio to stage `a` of the same type.
fn evaluate(model: &mut Runnable, text: &str, chunks: usize, ways: &mut [Way]) {
    let stream = tokens(model, text);
    let chunks = chunks.min(stream.len() / CONTEXT);
    for way in ways.iter_mut() {
        way.chunks.clear();
    }
    let vocab = model.engine.config.vocab;
    for chunk in 0..chunks {
        let input = &stream[chunk * CONTEXT..(chunk + 1) * CONTEXT];
        let run = |model: &Runnable| {
            let mut cache = Cache::one_batch(CONTEXT);
            model.engine.forward(input, &mut cache, CONTEXT / 2..CONTEXT - 1).expect("logits")
        };
        let base = run(model);
        for way in ways.iter_mut() {
            exchange(model, &mut way.weights);
            let logits = run(model);
            exchange(model, &mut way.weights);
            let scores: Vec<(f64, f64)> = base
                .par_chunks(vocab)
                .zip(logits.par_chunks(vocab))
                .map(|(p, q)| {
                    let rows = (softmax::row(p).expect("numbers"), softmax::row(q).expect("numbers"));
                    let kl = softmax::kl(p, &rows.0, q, &rows.1, f32::NEG_INFINITY);
                    (kl, f64::from(rows.0.top == rows.1.top))
                })
                .collect();
            let n = scores.len() as f64;
            let sums = scores.iter().fold((0.0, 0.0), |s, v| (s.0 + v.0, s.1 + v.1));
            way.chunks.push((sums.0 / n, sums.1 / n));
        }
    }
    println!("{text}: {chunks} chunks\ntype stage  KL  top-1  ratio to a ± standard error");
    for way in ways.iter() {
        let mean = |w: &Way| w.chunks.iter().map(|c| c.0).sum::<f64>() / chunks as f64;
        let top = way.chunks.iter().map(|c| c.1).sum::<f64>() / chunks as f64;
        let ratio = ways.iter().find(|w| w.ty == way.ty && w.stage == 'a').map(|a| {
            let ratio = mean(way) / mean(a);
            let spread: f64 = way.chunks.iter().zip(&a.chunks).map(|(w, a)| (w.0 - ratio * a.0).powi(2)).sum();
            format!("{ratio:.3} ± {:.3}", spread.sqrt() / (chunks as f64 * mean(a)))
        });
        println!("{:6} {}  {:.5}  {top:.4}  {}", way.ty.name(), way.stage, mean(way), ratio.unwrap_or_default());
    }
}

/// Puts `weights` where their layers are, and what was there into `weights`.
fn exchange(model: &mut Runnable, weights: &mut HashMap<String, Box<dyn RowSource>>) {
    for linear in model.engine.linears_mut() {
        if let Some(weight) = weights.get_mut(&linear.name) {
            std::mem::swap(&mut linear.weight, weight);
        }
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = [11, 12].iter().map(|i: &usize| fields[*i].parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}
