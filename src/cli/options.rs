//! From flags to values that were checked: sizes, thread counts, interruption, and where a model named on the command
//! line really is.

use super::HubArgs;
use crate::control::Cancel;
use crate::isa::Isa;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::sync::Arc;
use std::sync::LazyLock;

/// Requested by Ctrl-C and by the termination signal.
pub static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::new);

/// From here on Ctrl-C is a request to stop cleanly; a second one stops at once. And a limit on the size of files
/// (`ulimit -f`) lets a write fail, which is cleaned up after, instead of ending the program.
pub fn catch_interrupt() -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("signal handler: {e}"));
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map_err(|e| failed(&e))?;
    let cancel = CANCEL.clone();
    let installed = ctrlc::set_handler(move || {
        if cancel.request() {
            std::process::exit(75);
        }
    });
    installed.map_err(|e| failed(&e))
}

/// `QUANTIZE_ISA` names the instructions that all arithmetic uses, for tests; see [`crate::isa`].
pub fn instruction_set() -> Result<()> {
    let Ok(name) = std::env::var("QUANTIZE_ISA") else { return Ok(()) };
    if name.is_empty() {
        return Ok(());
    }
    let names = || Isa::available().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
    match Isa::named(&name) {
        Some(isa) if isa.make_active() => Ok(()),
        _ => Err(Error::Usage(format!("QUANTIZE_ISA={name}: this machine has {}", names()))),
    }
}

/// The number of worker threads; also sizes the global pool.
pub fn threads(asked: Option<usize>) -> Result<usize> {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n = match asked {
        Some(0) => return Err(Error::Usage("--threads must be at least 1".into())),
        Some(n) => n.min(1024),
        None => all,
    };
    // A pool that exists already (in tests) is as good.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
    Ok(n)
}

/// `4G`, `500M`, `24GB`, `1.5TiB`, `1000`: decimal units, binary with an `i`.
pub fn size(text: &str) -> Result<u64> {
    let bad = || Error::Usage(format!("'{text}' is not a size; write 4G, 500M, 24GB or 16GiB"));
    let t = text.trim();
    let split = t.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(t.len());
    let number: f64 = t[..split].parse().map_err(|_| bad())?;
    let unit = t[split..].trim().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024f64,
        "mi" => 1024f64.powi(2),
        "gi" => 1024f64.powi(3),
        "ti" => 1024f64.powi(4),
        _ => return Err(bad()),
    };
    let bytes = number * factor;
    if bytes < 1.0 || bytes > u64::MAX as f64 / 2.0 { Err(bad()) } else { Ok(bytes as u64) }
}

/// The folder or file behind what the user typed: a path, or a Hub id that is fetched first.
pub fn resolve_model(model: &str, hub: &HubArgs, quiet: bool) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if is_hub_id(model) {
        return super::pull::fetch(model, hub, None, quiet);
    }
    Err(Error::bad_file(path, "no such file or folder")
        .hint("name a checkpoint folder, a .safetensors or .gguf file, or a Hub id such as org/name"))
}

/// The same for who needs no weights: of a Hub id, config.json alone may be fetched.
pub fn resolve_plan(model: &str, hub: &HubArgs, quiet: bool) -> Result<PathBuf> {
    match !Path::new(model).exists() && is_hub_id(model) {
        true => super::pull::fetch_config(model, hub, quiet),
        false => resolve_model(model, hub, quiet),
    }
}

/// `org/name` or `org/name@revision`, and nothing that looks like a path.
pub fn is_hub_id(text: &str) -> bool {
    let id = text.split_once('@').map_or(text, |(id, _)| id);
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with('.')
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(id.split('/').collect::<Vec<_>>()[..], [org, name] if part(org) && part(name))
        && !id.ends_with(".gguf")
        && !id.ends_with(".safetensors")
}

/// A Modelfile has one instruction a line and no escapes.
///
/// Errors: `Usage` for names that would break its line or that it cannot hold.
pub fn modelfile_name(output: &Path) -> Result<()> {
    match output.file_name().and_then(|n| n.to_str()) {
        Some(name) if matches!(crate::escape::line(name), std::borrow::Cow::Borrowed(_)) => Ok(()),
        _ => {
            let what = format!("{}: a Modelfile cannot hold this name; choose another with -o", output.display());
            Err(Error::Usage(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4G").unwrap(), 4_000_000_000);
        assert_eq!(size("24GB").unwrap(), 24_000_000_000);
        assert_eq!(size("1.5GiB").unwrap(), 1_610_612_736);
        assert_eq!(size("500").unwrap(), 500);
        for bad in ["", "G", "4X", "-1", "0", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hub_ids_are_not_paths() {
        assert!(is_hub_id("org/name"));
        assert!(is_hub_id("org/name-1.5@main"));
        for path in ["model", "./model", "../a/b", "a/b/c", "/abs/path", "dir/file.gguf", "a/"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
