//! From flags to values that were checked: thread counts, instruction sets, and where a model named on the command
//! line really is.

use super::args::HubArgs;
use super::values::{is_stream, of_address};
use crate::isa::Isa;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

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

/// The folder or file behind what the user typed: a path, or a Hub id that is fetched first.
pub fn resolve_model(model: &str, hub: &HubArgs, quiet: bool) -> Result<PathBuf> {
    let path = Path::new(model);
    if is_stream(path) {
        return Err(Error::Usage(
            "a model cannot be piped, since it is read by position; name a file or a folder".into(),
        ));
    }
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if is_hub_id(model) {
        return super::pull::fetch(&of_address(model), hub, None, quiet);
    }
    Err(Error::bad_file(path, "no such file or folder")
        .hint("name a checkpoint folder, a .safetensors or .gguf file, or a Hub id such as org/name"))
}

/// The same where no weights are needed: of a Hub id, config.json alone may be fetched.
pub fn resolve_plan(model: &str, hub: &HubArgs, quiet: bool) -> Result<PathBuf> {
    match !Path::new(model).exists() && is_hub_id(model) {
        true => super::pull::fetch_config(&of_address(model), hub, quiet),
        false => resolve_model(model, hub, quiet),
    }
}

/// `org/name` or `org/name@revision`, the address of such a repository, and nothing that looks like a path.
pub fn is_hub_id(text: &str) -> bool {
    let address = of_address(text);
    let text = address.as_str();
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
    fn addresses_are_ids() {
        for (address, id) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://huggingface.co/org/name/", "org/name"),
            ("https://huggingface.co/org/name/tree/main", "org/name@main"),
            ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1?x=y", "org/name@refs/pr/1"),
            ("hf.co/org/name", "org/name"),
            ("hf://org/name@v1", "org/name@v1"),
        ] {
            assert_eq!(of_address(address), id);
            assert!(is_hub_id(address), "{address}");
        }
        for other in ["https://example.org/org/name", "https://huggingface.co/org/name/blob/main/x.gguf", "org"] {
            assert!(!is_hub_id(other), "{other}");
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
