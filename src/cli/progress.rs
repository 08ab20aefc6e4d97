//! Progress on standard error: a bar with rate and time left on a terminal, a plain line every few seconds elsewhere.

use super::output::{is_for_machines, say_json};
use crate::control::{Notice, Phase, Report, Unit};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Counts per thing that is shown.
fn steps(unit: Unit) -> u64 {
    if let Unit::TokensByLayer(layers) = unit { layers.max(1) } else { 1 }
}

/// The person at the terminal: bars and lines on standard error. A program gets warnings alone.
pub struct Terminal {
    quiet: bool,
    current: RwLock<Option<Progress>>,
}

impl Terminal {
    pub fn new(quiet: bool) -> Self {
        Self { quiet: quiet || is_for_machines(), current: RwLock::new(None) }
    }
}

impl Report for Terminal {
    fn begin(&self, phase: &Phase) {
        if let Ok(mut current) = self.current.write() {
            *current = Some(Progress::new(&phase.name, phase.total, phase.unit, self.quiet));
        }
    }

    fn advance(&self, n: u64) {
        if let Ok(current) = self.current.read() {
            current.iter().for_each(|progress| progress.advance(n));
        }
    }

    fn end(&self) {
        if let Ok(mut current) = self.current.write() {
            current.take().iter().for_each(Progress::finish);
        }
    }

    fn notice(&self, notice: &Notice) {
        let warning = matches!(notice, Notice::Warning(_));
        if let (Notice::Warning(text), true) = (notice, is_for_machines()) {
            return say_json(&serde_json::json!({ "warning": text }));
        }
        if !self.quiet || warning {
            suspended(|| say!("{}", super::words::noticed(notice)));
        }
    }
}

/// One phase of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    plain: Option<Plain>,
}

struct Plain {
    label: String,
    unit: Unit,
    total: u64,
    done: AtomicU64,
    start: Instant,
    last: Mutex<Instant>,
}

/// The bar on screen, so that an error message does not land in the middle of it.
static CURRENT: Mutex<Option<ProgressBar>> = Mutex::new(None);

impl Progress {
    pub fn new(label: &str, total: u64, unit: Unit, quiet: bool) -> Self {
        if quiet {
            return Self { bar: None, plain: None };
        }
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            let plain = Plain {
                label: label.to_string(),
                unit,
                total,
                done: AtomicU64::new(0),
                start: now,
                last: Mutex::new(now),
            };
            return Self { bar: None, plain: Some(plain) };
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let template = match unit {
            Unit::Bytes => {
                "{prefix:>12} {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left"
            }
            Unit::Questions => "{prefix:>12} {wide_bar} {done}/{all} questions  {rate}  {eta} left",
            Unit::Tokens | Unit::TokensByLayer(_) => "{prefix:>12} {wide_bar} {done}/{all} tokens  {rate}  {eta} left",
        };
        let count = move |n: u64| HumanCount(n / steps(unit));
        if let Ok(style) = ProgressStyle::with_template(template) {
            // What cannot be written to the screen is not shown.
            let style = style
                .with_key("done", move |s: &ProgressState, w: &mut dyn Write| _ = write!(w, "{}", count(s.pos())))
                .with_key("all", move |s: &ProgressState, w: &mut dyn Write| {
                    _ = write!(w, "{}", count(s.len().unwrap_or(0)))
                })
                .with_key("rate", move |s: &ProgressState, w: &mut dyn Write| {
                    _ = write!(w, "{:.1}/s", s.per_sec() / steps(unit) as f64)
                });
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        if let Ok(mut current) = CURRENT.lock() {
            *current = Some(bar.clone());
        }
        Self { bar: Some(bar), plain: None }
    }

    pub fn advance(&self, n: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n);
        }
        if let Some(plain) = &self.plain {
            plain.advance(n);
        }
    }

    pub fn finish(&self) {
        clear();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Plain {
    fn advance(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        *last = Instant::now();
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let left = Duration::from_secs_f64((self.total.saturating_sub(done)) as f64 / rate.max(1.0));
        let rate = match self.unit {
            Unit::Bytes => format!("{}/s", crate::writer::gguf::human(rate as u64)),
            Unit::Questions => format!("{rate:.1} questions/s"),
            unit => format!("{:.0} tokens/s", rate / steps(unit) as f64),
        };
        let percent = 100.0 * done as f64 / self.total.max(1) as f64;
        say!("{}: {percent:.0} %, {rate}, {} left", self.label, indicatif::HumanDuration(left));
    }
}

/// Prints something without a bar in its way.
fn suspended(print: impl FnOnce()) {
    let bar = CURRENT.lock().ok().and_then(|current| current.clone());
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Takes a bar off the screen, if there is one.
pub fn clear() {
    if let Ok(mut current) = CURRENT.lock()
        && let Some(bar) = current.take()
    {
        bar.finish_and_clear();
    }
}
