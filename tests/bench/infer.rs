//! Tokens per CPU-second of the forward pass with logits of the second half of each chunk, as perplexity needs them.
//! `cargo bench --bench infer -- MODEL [threads] [chunks] [context]`; the model is a folder or a GGUF file.

use quantize::infer::{Cache, Engine};
use quantize::model::Model;
use quantize::source::Checkpoint;
use std::path::Path;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let Some(path) = args.first() else {
        eprintln!("usage: cargo bench --bench infer -- MODEL [threads] [chunks] [context]");
        return;
    };
    let number = |i: usize, default: usize| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (threads, chunks, context) = (number(1, 2), number(2, 4), number(3, 512));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("a thread pool");
    let ckpt = Checkpoint::open(Path::new(path)).expect("a checkpoint");
    let model = Model::open(&ckpt).expect("a model");
    let engine = Engine::load(&ckpt, &model).expect("an engine");
    let mut cache = Cache::one_batch(context);
    let (cpu, clock) = (cpu_seconds(), Instant::now());
    let mut checksum = 0.0;
    for chunk in 0..chunks {
        let token = |i: usize| ((i * 7919 + chunk * 104_729) % engine.config.vocab) as u32;
        let tokens: Vec<u32> = (0..context).map(token).collect();
        let logits = engine.forward(&tokens, &mut cache, context / 2..context).expect("logits");
        checksum += f64::from(logits[0]);
    }
    let (cpu, seconds) = (cpu_seconds() - cpu, clock.elapsed().as_secs_f64());
    let tokens = (chunks * context) as f64;
    println!("{:.1} tokens/s, {:.1} tokens per CPU-second, checksum {checksum:.4}", tokens / seconds, tokens / cpu);
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = [11, 12].iter().map(|i: &usize| fields[*i].parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}
