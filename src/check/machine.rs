//! What the system tells of this machine and this process. It decides nothing.

use crate::report::Environment;
use std::time::Instant;

/// Where a measurement ran that began at `begin`.
pub fn environment(threads: usize, begin: Instant) -> Environment {
    Environment {
        os: std::env::consts::OS.into(),
        cpu: cpu_name(),
        threads,
        seconds: begin.elapsed().as_secs_f64(),
        peak_rss: kibibytes("/proc/self/status", "VmHWM:").unwrap_or(0),
    }
}

/// The memory of this process, bytes, where the system tells.
pub fn resident() -> u64 {
    kibibytes("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// Bytes of memory that programs can still have.
pub fn available() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// A figure in kB from a table of the system, in bytes.
fn kibibytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
