//! From flags to values that were checked: sizes, thread counts, metadata overrides, output names, and where a model
//! named on the command line really is.

use super::HubArgs;
use crate::gguf::{ALIGNMENT_KEY, Metadata, Value};
use crate::quant::{Isa, lanes};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C and by the termination signal.
pub static CANCEL: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C is a request to stop cleanly; a second one stops at once. And a limit on the size of files
/// (`ulimit -f`) lets a write fail, which is cleaned up after, instead of ending the program.
pub fn catch_interrupt() -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("signal handler: {e}"));
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map_err(|e| failed(&e))?;
    let installed = ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::SeqCst) {
            std::process::exit(75);
        }
    });
    installed.map_err(|e| failed(&e))
}

/// `QUANTIZE_ISA` forces the instructions that the quantizers use, for tests: the bytes are the same with all of them.
pub fn instruction_set() -> Result<()> {
    let Ok(name) = std::env::var("QUANTIZE_ISA") else { return Ok(()) };
    if name.is_empty() {
        return Ok(());
    }
    let names = || {
        let available = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name);
        available.collect::<Vec<_>>().join(", ")
    };
    match Isa::from_name(&name) {
        Some(isa) if lanes::force(isa) => Ok(()),
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

/// Applies `KEY=TYPE:VALUE` overrides. A key that exists keeps its type, down to the width of a number; keys that say how
/// the file is laid out or where it comes from cannot be set.
pub fn override_metadata(metadata: &mut Metadata, rules: &[String]) -> Result<()> {
    for rule in rules {
        let bad = |why: &str| {
            Error::Usage(format!(
                "--override-kv '{rule}': {why}; write KEY=TYPE:VALUE with TYPE int, float, bool or str"
            ))
        };
        let (key, typed) = rule.split_once('=').ok_or_else(|| bad("no '='"))?;
        let (ty, text) = typed.split_once(':').ok_or_else(|| bad("no ':'"))?;
        if key.is_empty() || key.len() > 127 {
            return Err(bad("keys have 1 to 127 characters"));
        }
        if key == ALIGNMENT_KEY || key.starts_with("split.") || key.starts_with("quantize.") {
            return Err(bad("this key describes the file itself and cannot be set"));
        }
        let old = metadata.get(key);
        let value = match ty {
            "int" => int_like(old, text.parse().map_err(|_| bad("not an integer"))?)
                .ok_or_else(|| bad("out of the range of the existing value's type"))?,
            "float" => {
                let v: f64 = text.parse().map_err(|_| bad("not a number"))?;
                let v = if matches!(old, Some(Value::F64(_))) { Value::F64(v) } else { Value::F32(v as f32) };
                if !matches!(v, Value::F64(v) if v.is_finite()) && !matches!(v, Value::F32(v) if v.is_finite()) {
                    return Err(bad("not a finite number"));
                }
                v
            }
            "bool" => Value::Bool(text.parse().map_err(|_| bad("not true or false"))?),
            "str" => Value::String(text.to_string()),
            _ => return Err(bad("unknown type")),
        };
        if old.is_some_and(|old| std::mem::discriminant(old) != std::mem::discriminant(&value)) {
            return Err(bad("the key exists and holds another type"));
        }
        metadata.set(key, value);
    }
    Ok(())
}

fn int_like(existing: Option<&Value>, v: i64) -> Option<Value> {
    Some(match existing {
        Some(Value::U8(_)) => Value::U8(v.try_into().ok()?),
        Some(Value::I8(_)) => Value::I8(v.try_into().ok()?),
        Some(Value::U16(_)) => Value::U16(v.try_into().ok()?),
        Some(Value::I16(_)) => Value::I16(v.try_into().ok()?),
        Some(Value::U32(_)) => Value::U32(v.try_into().ok()?),
        Some(Value::I32(_)) => Value::I32(v.try_into().ok()?),
        Some(Value::U64(_)) => Value::U64(v.try_into().ok()?),
        _ => Value::I64(v),
    })
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

/// The name that artifacts of a model begin with. A Hub cache snapshot is named after its repository, not its commit.
pub fn model_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    for part in full.components().rev() {
        let part = part.as_os_str().to_string_lossy();
        if let Some(repo) = part.strip_prefix("models--") {
            return repo.rsplit("--").next().unwrap_or(repo).to_string();
        }
    }
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    let name = stem.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    // A shard number or an earlier 16-bit type is not part of the name, nor are line breaks and escapes.
    let name = crate::escape::file_name(name.split("-00001-of-").next().unwrap_or(&name)).into_owned();
    for suffix in ["-F16", "-f16", "-BF16", "-bf16", "-F32", "-f32", ".F16", ".f16", ".BF16", ".bf16", ".F32", ".f32"] {
        if let Some(short) = name.strip_suffix(suffix) {
            return short.to_string();
        }
    }
    name
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

/// Where what does not fit into memory lies meanwhile: where the output goes, if that is there.
pub fn scratch_folder(output: Option<&Path>) -> PathBuf {
    let folder = output.and_then(|o| if o.is_dir() { Some(o) } else { o.parent() });
    folder.filter(|f| f.is_dir()).map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// The file each target is written to. `output` may be a folder, a file (one target), or a name with `{type}` in it.
pub fn output_paths(output: Option<&Path>, model: &str, types: &[&str]) -> Result<Vec<PathBuf>> {
    let named = |ty: &&str| format!("{model}-{ty}.gguf");
    let Some(output) = output else {
        return Ok(types.iter().map(|ty| PathBuf::from(named(ty))).collect());
    };
    let text = output.to_string_lossy();
    if let Some(marker) = ["{type}", "{ftype}"].into_iter().find(|m| text.contains(m)) {
        return Ok(types.iter().map(|ty| PathBuf::from(text.replace(marker, ty))).collect());
    }
    let is_folder = output.is_dir() || text.ends_with('/') || output.extension().is_none_or(|e| e != "gguf");
    if is_folder {
        if output.exists() && !output.is_dir() {
            let what = "is neither a folder nor named .gguf; name a folder, or a file that ends in .gguf";
            return Err(Error::Usage(format!("{} {what}", output.display())));
        }
        std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
        return Ok(types.iter().map(|ty| output.join(named(ty))).collect());
    }
    match types.len() {
        1 => Ok(vec![output.to_path_buf()]),
        n => Err(Error::Usage(format!("{n} types go to one file; name a folder, or put {{type}} into the file name"))),
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

    #[test]
    fn overrides_keep_the_width_of_the_existing_value() {
        let mut m = Metadata::new();
        m.set("llama.context_length", 2048u32);
        let rules = ["llama.context_length=int:4096", "a.b=str:x:y", "a.c=bool:true", "a.d=float:0.5", "a.e=int:-3"];
        override_metadata(&mut m, &rules.map(String::from)).unwrap();
        assert_eq!(m.get("llama.context_length"), Some(&Value::U32(4096)));
        assert_eq!(m.str("a.b"), Some("x:y"));
        assert_eq!(m.bool("a.c"), Some(true));
        assert_eq!(m.get("a.e"), Some(&Value::I64(-3)));
        for bad in [
            "x",
            "x=int",
            "x=int:a",
            "x=u32:1",
            "=int:1",
            "llama.context_length=int:-1",
            "llama.context_length=str:2048",
            "a.d=int:1",
            "x=float:nan",
            "x=float:1e40",
            "general.alignment=int:64",
            "split.count=int:2",
            "quantize.version=str:0",
        ] {
            assert!(override_metadata(&mut m, &[bad.to_string()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn output_names() {
        let dir = tempfile::tempdir().unwrap();
        let paths = |o: Option<&Path>, t: &[&str]| output_paths(o, "m", t);
        assert_eq!(paths(None, &["Q4_K_M"]).unwrap(), [PathBuf::from("m-Q4_K_M.gguf")]);
        assert_eq!(paths(Some(dir.path()), &["Q8_0"]).unwrap(), [dir.path().join("m-Q8_0.gguf")]);
        let file = dir.path().join("x.gguf");
        assert_eq!(paths(Some(&file), &["Q8_0"]).unwrap(), std::slice::from_ref(&file));
        assert!(paths(Some(&file), &["Q8_0", "F16"]).is_err());
        let pattern = dir.path().join("x-{type}.gguf");
        assert_eq!(paths(Some(&pattern), &["Q8_0", "F16"]).unwrap()[1], dir.path().join("x-F16.gguf"));
    }

    #[test]
    fn a_snapshot_folder_is_named_after_its_repository() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("models--org--Some-Model/snapshots/0123abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(model_name(&snapshot), "Some-Model");
        assert_eq!(model_name(Path::new("/x/Llama-3-F16.gguf")), "Llama-3");
    }
}
