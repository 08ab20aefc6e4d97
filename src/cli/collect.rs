//! The pass of `quantize calibrate` over its windows: progress, and the checkpoint that lets it go on after an interruption.

use super::options::CANCEL;
use super::progress::{Progress, Unit};
use crate::calibration::data::DataReport;
use crate::calibration::pass::{Options, Pass};
use crate::calibration::resume::{self, Key};
use crate::calibration::totals::Totals;
use crate::convert::Control;
use crate::model::Model;
use crate::source::Checkpoint;
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Checkpoints come so seldom that writing them takes at most one part in so many of the time.
const CHEAP: u32 = 20;

/// How a run is kept from being lost.
#[derive(Clone, Copy)]
pub struct Keeping<'a> {
    /// What the run writes in the end; the checkpoint lies beside it.
    pub output: &'a Path,
    /// Go on from the checkpoint that is there.
    pub resume: bool,
    /// Zero: after every window.
    pub every: Duration,
}

/// The sums, and the tokens per second.
pub struct Collected {
    pub totals: Totals,
    pub speed: f64,
}

pub fn go_on() -> Result<()> {
    if CANCEL.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Runs the windows.
pub fn run(
    (ckpt, model): (&Checkpoint, &Model),
    windows: &[Vec<u32>],
    data: &DataReport,
    options: &Options,
    keeping: Option<Keeping>,
    quiet: bool,
) -> Result<Collected> {
    let file = keeping.map(|k| resume::path_for(k.output));
    let key = if keeping.is_some() { key(ckpt, model, data, options.head)? } else { Key::new() };
    let saved = match (&file, keeping) {
        (Some(file), Some(Keeping { resume: true, .. })) => resume::open(file, &key)?,
        _ => None,
    };
    let layers = model.config.layers.len();
    let control = Control { threads: 0, cancel: &CANCEL, advance: &|_| () };
    let mut pass = match saved {
        Some(saved) => Pass::resumed(ckpt, model, windows, options, saved)?,
        None => Pass::new(ckpt, model, windows, options, &control)?,
    };
    let at = pass.at();
    if at != Default::default() && !quiet {
        eprintln!("  resuming after {} of {layers} layers", at.layer);
    }
    let tokens = |windows: &[Vec<u32>]| windows.iter().map(|w| w.len() as u64).sum::<u64>();
    let done = at.layer as u64 * tokens(windows) + tokens(windows.get(..at.windows).unwrap_or_default());
    let left = layers as u64 * tokens(windows) - done;
    let start = Instant::now();
    let progress = Progress::new("calibrating", left, Unit::TokensByLayer(layers as u64), quiet);
    let (mut last, mut wait, mut told) = (start, keeping.map_or(Duration::ZERO, |k| k.every), quiet);
    pass.run(|pass, n| {
        progress.advance(n as u64);
        let stop = go_on();
        let (Some(file), Some(keeping)) = (&file, keeping) else { return stop };
        if stop.is_err() || last.elapsed() >= wait {
            let began = Instant::now();
            match pass.save(file, &key) {
                Ok(()) if stop.is_err() && !quiet => {
                    progress.finish();
                    eprintln!("{} holds what is done; --resume goes on from there", file.display());
                }
                Ok(()) => {}
                Err(e) => {
                    // The run itself can go on.
                    if !told {
                        eprintln!("warning: no checkpoint to resume from: {e}");
                    }
                    told = true;
                }
            }
            last = Instant::now();
            wait = if keeping.every.is_zero() { wait } else { keeping.every.max(CHEAP * began.elapsed()) };
        }
        stop
    })?;
    progress.finish();
    let speed = left as f64 / layers.max(1) as f64 / start.elapsed().as_secs_f64();
    Ok(Collected { totals: pass.totals(), speed })
}

/// What has to be the same for a run to be continued.
fn key(ckpt: &Checkpoint, model: &Model, data: &DataReport, head: bool) -> Result<Key> {
    let entry = |name: &str, value: String| (name.to_string(), value);
    Ok(Key::from([
        entry("program version", env!("CARGO_PKG_VERSION").into()),
        entry("model", resume::identity(ckpt, model)?),
        entry("--seq-len", data.seq_len.to_string()),
        entry("text (hash of its tokens)", data.sha256.clone()),
        entry("--process-output", head.to_string()),
    ]))
}
