//! The pass of `quantize calibrate` over its windows: progress, and the checkpoint that lets it go on after an interruption.

use super::options::CANCEL;
use super::progress::{Progress, Unit};
use crate::calibration::data::DataReport;
use crate::calibration::pass::Pass;
use crate::calibration::resume::{self, Checkpoint, Key};
use crate::calibration::totals::Totals;
use crate::runnable::Runnable;
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How a run is kept from being lost.
#[derive(Clone, Copy)]
pub struct Keeping<'a> {
    /// What the run writes in the end; the checkpoint lies beside it.
    pub output: &'a Path,
    /// Go on from the checkpoint that is there.
    pub resume: bool,
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

/// Runs the windows. `head`: the output matrix too.
pub fn run(
    model: &mut Runnable,
    windows: &[Vec<u32>],
    data: &DataReport,
    head: bool,
    keeping: Option<Keeping>,
    quiet: bool,
) -> Result<Collected> {
    let file = keeping.map(|k| resume::path_for(k.output));
    let key = if keeping.is_some() { key(model, data, head)? } else { Key::new() };
    let saved = match (&file, keeping) {
        (Some(file), Some(Keeping { resume: true, .. })) => Checkpoint::open(file, &key)?,
        _ => None,
    };
    let mut pass = match saved {
        Some(saved) => Pass::resumed(model, saved.done, &saved.totals)?,
        None => Pass::new(model),
    };
    if pass.done() > 0 && !quiet {
        eprintln!("  resuming after {} of {} windows", pass.done(), windows.len());
    }
    let tokens = |windows: &[Vec<u32>]| windows.iter().map(|w| w.len() as u64).sum::<u64>();
    let left = tokens(windows.get(pass.done()..).unwrap_or_default());
    let (start, mut last) = (Instant::now(), Instant::now());
    let progress = Progress::new("calibrating", left, Unit::Tokens, quiet);
    pass.run(model, windows, head, |pass, n| {
        progress.advance(n as u64);
        let stop = go_on();
        let (Some(file), Some(keeping)) = (&file, keeping) else { return stop };
        if stop.is_err() || last.elapsed() >= keeping.every {
            Checkpoint { key: key.clone(), done: pass.done(), totals: pass.totals() }.save(file)?;
            last = Instant::now();
        }
        stop
    })?;
    progress.finish();
    Ok(Collected { totals: pass.totals(), speed: left as f64 / start.elapsed().as_secs_f64() })
}

/// What has to be the same for a run to be continued.
fn key(model: &Runnable, data: &DataReport, head: bool) -> Result<Key> {
    let entry = |name: &str, value: String| (name.to_string(), value);
    Ok(Key::from([
        entry("program version", env!("CARGO_PKG_VERSION").into()),
        entry("model", resume::identity(model)?),
        entry("--seq-len", data.seq_len.to_string()),
        entry("text (hash of its tokens)", data.sha256.clone()),
        entry("--process-output", head.to_string()),
    ]))
}
