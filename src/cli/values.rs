//! Values on the command line that are more than a word or a number.

use crate::convert::catalogue;
use crate::{Error, Result};
use clap::builder::{PathBufValueParser, PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command};
use std::any::TypeId;
use std::path::{Path, PathBuf};

/// Stands for standard input, or standard output, where a path is asked for.
const STREAM: &str = "-";

/// Whether a path stands for standard input.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == STREAM
}

/// The same command, that refuses `-` where it asks for paths: files are read and written by position and more than once,
/// and outputs are renamed. A report alone is read from standard input.
pub fn without_streams(command: Command) -> Command {
    let reads_one = command.get_name() == "report";
    let refusing = move |arg: Arg| {
        let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        if !is_path || (reads_one && arg.get_id() == "file") {
            return arg;
        }
        arg.value_parser(PathBufValueParser::new().try_map(|path| match is_stream(&path) {
            true => Err("it cannot be piped; name a file (./- is one of that name)"),
            false => Ok(path),
        }))
    };
    command.mut_args(refusing).mut_subcommands(without_streams)
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

/// A limit that is no share: nats per token, or a cosine.
pub fn limit(text: &str) -> Result<f64, &'static str> {
    match text.trim().parse() {
        Ok(limit) if f64::is_finite(limit) => Ok(limit),
        _ if text.contains('%') => Err("it is no share; write a number as reports show it, like 0.05"),
        _ => Err("not a number; write one as reports show it, like 0.05"),
    }
}

/// Any text; completion offers the names of these groups.
#[derive(Clone)]
pub struct Names(fn(&catalogue::Entry) -> bool);

/// What `--to` takes.
pub const TYPES_AND_FORMATS: Names = Names(|_| true);
/// What goes into GGUF files.
pub const TYPES: Names = Names(|entry| entry.kind == "gguf");

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let entries = catalogue::all().into_iter().flat_map(|(_, entries)| entries);
        Some(Box::new(entries.filter(self.0).map(|entry| PossibleValue::new(entry.name))))
    }
}

/// Tokens: `8192`, `32k` (binary, as context lengths are given).
pub fn tokens(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let (number, factor) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1024),
        None => (text, 1),
    };
    let n: Option<usize> = number.parse().ok().and_then(|n: usize| n.checked_mul(factor));
    n.filter(|n| *n > 0).ok_or_else(|| "write 8192 or 32k".to_string())
}

/// A device by its name (`RTX 4090`) or its memory (`24GB`).
pub fn device(text: &str) -> Result<crate::convert::devices::Device> {
    use crate::convert::devices::{Device, named};
    match named(text) {
        Some(device) => Ok(device),
        None => size(text).map(|memory| Device { name: text.to_string(), memory }).map_err(|_| {
            Error::Usage(format!("'{text}' is neither a known device nor a size; write 24GB, 'RTX 4090' or 'Mac 36GB'"))
        }),
    }
}

/// The id that the address of a repository stands for, `https://huggingface.co/org/name[/tree/revision]`; any other text
/// as it is.
pub fn of_address(text: &str) -> String {
    let begins =
        ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/", "hf://"];
    let Some(rest) = begins.iter().find_map(|begin| text.strip_prefix(begin)) else { return text.to_string() };
    let rest = rest.split(['?', '#']).next().unwrap_or(rest).trim_end_matches('/');
    let decoded = |revision: &str| revision.replace("%2F", "/").replace("%2f", "/");
    match rest.splitn(4, '/').collect::<Vec<_>>()[..] {
        [org, name] => format!("{org}/{name}"),
        [org, name, "tree" | "commit"] => format!("{org}/{name}"),
        [org, name, "tree" | "commit", revision] => format!("{org}/{name}@{}", decoded(revision)),
        _ => text.to_string(),
    }
}

/// A switch as environment variables have it: `1`, `true`, `yes`, `on`, and their opposites; empty is off.
pub fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1, true, yes or on; or 0, false, no or off".into()),
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
        assert_eq!((tokens("32k"), tokens("8192")), (Ok(32768), Ok(8192)));
        assert!(["", "k", "0", "-1", "8x"].iter().all(|bad| tokens(bad).is_err()));
        assert!(device("RTX 4090").is_ok() && device("24GB").is_ok() && device("GTX").is_err());
        assert!(yes_or_no("ON").unwrap() && !yes_or_no("").unwrap() && yes_or_no("banana").is_err());
        for bad in ["", "G", "4X", "-1", "0", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
