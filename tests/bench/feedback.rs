//! Error feedback on a real model: KL divergence against the model itself, and CPU seconds per million weights.
//! `cargo bench --bench feedback -- MODEL CALIBRATION.txt EVALUATION.txt CALIB_WINDOWS EVAL_WINDOWS VARIANT...` where a
//! variant is `nearest`, `diagonal` or comma-separated settings: `rho=0.3,damping=0.01,search=1,sweeps=1,order=natural`
//! (or groups, activity, index), `bits=4,group=64,sym=1`. All weights of a variant stay in memory until the end.

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::ArrayView2;
use quantize::eval::Runnable;
use quantize::eval::bootstrap::Bootstrap;
use quantize::eval::{self, Base, Candidate, Method, Windows};
use quantize::feedback::int::{IntSpec, Search, quantize};
use quantize::feedback::nearest::nearest;
use quantize::feedback::{Factor, Order, ScaleType, Shrink};
use quantize::infer::{Cache, Observer};
use quantize::kernel::Dense;
use std::collections::BTreeMap;
use std::path::Path;

/// `Σ x xᵀ` of the inputs that differ.
#[derive(Default)]
struct Grams(BTreeMap<String, (usize, Vec<f32>)>);

/// The linear whose input `name` shares.
fn source(name: &str) -> String {
    name.replace("attn_k", "attn_q").replace("attn_v", "attn_q").replace("ffn_up", "ffn_gate")
}

impl Grams {
    fn add(&mut self, name: &str, cols: usize, x: &[f32]) {
        let gram = &mut self.0.entry(name.into()).or_insert_with(|| (cols, vec![0.0; cols * cols])).1;
        let x = MatRef::from_row_major_slice(x, x.len() / cols, cols);
        let out = MatMut::from_row_major_slice_mut(gram, cols, cols);
        let full = BlockStructure::Rectangular;
        matmul(out, full, Accum::Add, x.transpose(), full, x, full, 1.0, Par::Seq);
    }
}

struct Collect<'a> {
    grams: &'a mut Grams,
    cols: &'a BTreeMap<String, usize>,
}

impl Observer for Collect<'_> {
    fn input(&mut self, linear: &str, _: Option<usize>, x: ArrayView2<f32>) -> std::ops::ControlFlow<()> {
        if linear.starts_with("blk.") && source(linear) == linear {
            self.grams.add(linear, self.cols[linear], x.as_slice().unwrap());
        }
        std::ops::ControlFlow::Continue(())
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [path, calibration, evaluation, windows, chunks, variants @ ..] = &args[..] else {
        eprintln!("usage: cargo bench --bench feedback -- MODEL CALIB.txt EVAL.txt WINDOWS CHUNKS VARIANT...");
        return;
    };
    let mut base = Runnable::open(Path::new(path)).expect("a model");
    let text = std::fs::read_to_string(calibration).expect("a calibration text");
    let tokens = base.tokenizer.encode(&text, false).expect("tokens");
    let windows: usize = windows.parse().expect("a number of windows");
    let (mut grams, clock) = (Grams::default(), cpu_seconds());
    let cols = base.engine.linears_mut().map(|l| (l.name.clone(), l.weight.cols())).collect();
    let mut cache = Cache::one_batch(512);
    for i in 0..windows {
        // Spread over the whole text.
        let at = (tokens.len() - 512) * i / (windows - 1).max(1);
        let mut observer = Collect { grams: &mut grams, cols: &cols };
        base.engine.hidden(&tokens[at..at + 512], &mut cache, &mut observer).expect("a forward pass");
        cache = Cache::one_batch(512);
    }
    println!("{windows} windows: {:.1} CPU s for the moments", cpu_seconds() - clock);

    let mut models: Vec<Runnable> = Vec::new();
    for variant in variants {
        let mut model = Runnable::open(Path::new(path)).expect("a model");
        let (mut factors, mut rounding, mut weights, mut losses) = (0.0, 0.0, 0usize, Vec::new());
        let variant = Variant::parse(variant);
        let mut last: Option<(String, Factor)> = None;
        for linear in model.engine.linears_mut().filter(|l| l.name.starts_with("blk.")) {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let mut w = vec![0.0; rows * cols];
            linear.weight.decode(0..rows, &mut w);
            let key = source(&linear.name);
            let gram = &grams.0[&key].1;
            let mut clock = cpu_seconds();
            if last.as_ref().is_none_or(|(name, _)| *name != key) && variant.kind != "nearest" {
                last = Some((key, variant.factor(gram, cols)));
                factors += cpu_seconds() - clock;
                clock = cpu_seconds();
            }
            let codes = match &last {
                Some((_, factor)) => {
                    let (codes, loss) = quantize(&w, factor, &variant.spec, variant.search);
                    losses.push(loss);
                    codes
                }
                None => nearest(&w, rows, cols, &variant.spec),
            };
            codes.dequantize(0..rows, &mut w);
            rounding += cpu_seconds() - clock;
            weights += w.len();
            linear.weight = Box::new(Dense { data: w, cols });
        }
        let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        println!(
            "{}: factors {factors:.1} CPU s, rounding {rounding:.1} CPU s ({:.3} s per million weights), mean loss {mean:.5}",
            variant.name,
            rounding / (weights as f64 / 1e6)
        );
        model.artifact.name = variant.name;
        models.push(model);
    }

    let text = std::fs::read_to_string(evaluation).expect("an evaluation text");
    let stream = base.tokenizer.encode(&text, false).expect("tokens");
    let chunks = chunks.parse().expect("a number of chunks");
    let windows = Windows::plan(Method::LlamaCpp { ctx: 512 }, stream.len(), Some(chunks), None).expect("windows");
    let names: Vec<String> = models.iter().map(|m| m.artifact.name.clone()).collect();
    let named = models.iter_mut().zip(&names);
    let mut candidates: Vec<Candidate> = named.map(|(model, name)| Candidate { name: name.clone(), model }).collect();
    let base = Base::Model(Candidate { name: "base".into(), model: &mut base });
    let result =
        eval::compare(base, &mut candidates, &stream, &windows, eval::Options::default()).expect("a comparison");
    let (statistics, _) = result.summarize(Bootstrap::default());
    for (name, s) in names.iter().zip(&statistics) {
        println!(
            "{name}: KL {:.4} ± {:.4}, perplexity {:.2}, top-1 {:.3}",
            s.kld.value, s.kld.std_error, s.ppl.value, s.same_top.value
        );
    }
}

struct Variant {
    name: String,
    kind: String,
    shrink: Shrink,
    order: Order,
    spec: IntSpec,
    search: Search,
}

impl Variant {
    fn parse(text: &str) -> Variant {
        let mut v = Variant {
            name: text.into(),
            kind: "feedback".into(),
            shrink: Shrink::default(),
            order: Order::Natural,
            spec: IntSpec { bits: 4, group: 64, symmetric: true, least_zero: 0, scale: ScaleType::F16 },
            search: Search::default(),
        };
        for part in text.split(',') {
            match part.split_once('=').unwrap_or((part, "")) {
                ("rho", x) => v.shrink.rho = x.parse().expect("rho"),
                ("damping", x) => v.shrink.damping = x.parse().expect("damping"),
                ("search", x) => v.search.scales = x == "1",
                ("sweeps", x) => v.search.sweeps = x.parse().expect("sweeps"),
                ("bits", x) => v.spec.bits = x.parse().expect("bits"),
                ("group", x) => v.spec.group = x.parse().expect("group"),
                ("sym", x) => v.spec.symmetric = x == "1",
                ("order", "groups") => v.order = Order::Groups(v.spec.group),
                ("order", "activity") => v.order = Order::Activity,
                ("order", "index") => (v.order, v.search.static_groups) = (Order::Activity, false),
                (kind, _) => v.kind = kind.into(),
            }
        }
        v
    }

    fn factor(&self, gram: &[f32], n: usize) -> Factor {
        if self.kind == "diagonal" {
            return Factor::diagonal(&(0..n).map(|i| gram[i * n + i]).collect::<Vec<_>>());
        }
        Factor::new(gram, n, self.shrink, self.order).expect("a factor").0
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = [11, 12].iter().map(|i: &usize| fields[*i].parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}
