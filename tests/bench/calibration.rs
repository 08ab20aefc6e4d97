//! CPU time and peak memory of a calibration pass.
//! `cargo bench --bench calibration -- MODEL TEXT [sums|moments|sequential] [threads] [windows] [context]`: `sums` is the
//! importance matrix's pass, `moments` all second moments of the original model, `sequential` those with weights replaced
//! on the way. The model is a folder or a GGUF file.

use quantize::Result;
use quantize::calibration::data::{self, Amount, Source};
use quantize::calibration::layerwise::{self, Captured, Options, Stage, Visit};
use quantize::calibration::pass::{self, Pass};
use quantize::eval::Runnable;
use quantize::infer::Linear;
use quantize::{Control, Run};
use std::path::Path;
use std::time::Instant;

/// Adds up the traces, so that nothing can be left out.
struct Traces(f64);

impl Visit for Traces {
    fn stage(&mut self, _: usize, _: Stage, captured: &[&Captured], _: Vec<&mut Linear>) -> Result<()> {
        for m in captured.iter().flat_map(|c| &c.moments) {
            self.0 += (0..m.cols).map(|i| f64::from(m.gram[i * m.cols + i])).sum::<f64>();
        }
        Ok(())
    }

    fn layer_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let (Some(path), Some(text)) = (args.first(), args.get(1)) else {
        eprintln!("usage: cargo bench --bench calibration -- MODEL TEXT [sums|moments|sequential] [threads] [windows]");
        return;
    };
    let kind = args.get(2).map_or("moments", String::as_str);
    let number = |i: usize, default: usize| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (threads, windows, context) = (number(3, 2), number(4, 48), number(5, 512));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("a thread pool");
    let model = Runnable::open_idle(Path::new(path)).expect("a model");
    let amount = Amount { tokens: windows * context, seq_len: context, seed: 0 };
    let source = Source::parse(text, |_| unreachable!("no data set of the Hub")).expect("a source");
    let windows = data::draw(&[source], amount, &model, &mut || Ok(())).expect("text").windows;
    let before = reset_peak();
    let (cpu, clock) = (cpu_seconds(), Instant::now());
    let control = Control { threads, ..Control::default() };
    let run = Run::new(&control, &());
    let checksum = if kind == "sums" {
        let options = pass::Options::default();
        let mut pass = Pass::new(&model.ckpt, &model.model, &windows, &options, run).expect("a pass");
        pass.run(|_, _| Ok(())).expect("a pass");
        pass.totals().0.values().flat_map(|t| &t.sums).map(|s| *s as f64).sum()
    } else {
        let options = Options { sequential: kind == "sequential", ..Options::default() };
        let mut traces = Traces(0.0);
        layerwise::run(&model.ckpt, &model.model, &windows, &options, &mut traces, run).expect("a pass");
        traces.0
    };
    let (cpu, seconds) = (cpu_seconds() - cpu, clock.elapsed().as_secs_f64());
    let tokens = (windows.len() * context) as f64;
    println!(
        "{kind}: {tokens} tokens, {cpu:.1} CPU-seconds, {seconds:.1} s, {:.0} tokens per CPU-second, {} MiB before, peak \
         {} MiB, checksum {checksum:.6e}",
        tokens / cpu,
        before / 1024,
        status("VmHWM:") / 1024
    );
}

/// Sets the peak back to the memory in use, where the system can, and returns that in KiB.
fn reset_peak() -> u64 {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    status("VmRSS:")
}

fn status(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = text.lines().find_map(|l| l.strip_prefix(key)).expect("the key");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = [11, 12].iter().map(|i: &usize| fields[*i].parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}
