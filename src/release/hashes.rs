//! SHA-256 of files and of every tensor in them, from one read; and the list of them as coreutils' sha256sum has it.

use crate::control::Run;
use crate::digest::hex;
use crate::gguf;
use crate::source::{SourceFile, parse_safetensors_header};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// The list's name.
pub const SUMS: &str = "SHA256SUMS";
const PIECE: usize = 1 << 20;

/// A file, by what is in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FileHash {
    /// From the release's folder on, with slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Of a file of weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorHash>,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorHash {
    /// The tensor's name.
    pub name: String,
    /// The type's name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Outermost first.
    pub shape: Vec<u64>,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

/// Where a tensor's bytes are in its file.
struct Range {
    from: u64,
    to: u64,
}

/// Hashes the file at `path` of a release in `root`, and its tensors where it holds weights.
///
/// # Errors
/// `Io`; `BadInput` for a file of weights whose header is not sound; `Interrupted`.
pub fn hash(root: &Path, path: &str, run: Run) -> Result<FileHash> {
    let place = root.join(path);
    let (mut tensors, ranges): (Vec<TensorHash>, Vec<Range>) = contents(&place)?.into_iter().unzip();
    let mut file = File::open(&place).map_err(|e| Error::io(&place, e))?;
    let (mut whole, mut parts) = (Sha256::new(), vec![Sha256::new(); tensors.len()]);
    let (mut buffer, mut at, mut first) = (vec![0; PIECE], 0u64, 0);
    loop {
        run.check()?;
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(&place, e)),
        };
        whole.update(&buffer[..n]);
        let end = at + n as u64;
        while first < ranges.len() && ranges[first].to <= at {
            first += 1;
        }
        for (range, part) in ranges.iter().zip(&mut parts).skip(first).take_while(|(range, _)| range.from < end) {
            let (from, to) = (range.from.max(at), range.to.min(end));
            if from < to {
                part.update(&buffer[(from - at) as usize..(to - at) as usize]);
            }
        }
        at = end;
        run.advance(n as u64);
    }
    for (tensor, part) in tensors.iter_mut().zip(parts) {
        tensor.sha256 = hex(&part.finalize());
    }
    Ok(FileHash { path: path.to_string(), bytes: at, sha256: hex(&whole.finalize()), tensors })
}

/// The tensors of a file of weights, in order of their places; none of any other file.
fn contents(path: &Path) -> Result<Vec<(TensorHash, Range)>> {
    let name = path.to_string_lossy();
    let mut found = Vec::new();
    if name.ends_with(".gguf") {
        let header = gguf::read_header(path)?;
        for t in &header.tensors {
            let bytes = t.bytes().unwrap_or(0);
            let shape = t.dims.iter().rev().copied().collect();
            let row = TensorHash { name: t.name.clone(), ty: t.ty.to_string(), shape, bytes, sha256: String::new() };
            let from = header.data_start + t.offset;
            found.push((row, Range { from, to: from + bytes }));
        }
    } else if name.ends_with(".safetensors") {
        let file = SourceFile::open(path)?;
        let open = File::open(path).map_err(|e| Error::io(path, e))?;
        for t in parse_safetensors_header(std::io::BufReader::new(open), file.len, path)?.tensors {
            let shape = t.shape.iter().map(|d| *d as u64).collect();
            let (bytes, ty) = (t.bytes(), t.dtype.to_string());
            let row = TensorHash { name: t.name.clone(), ty, shape, bytes, sha256: String::new() };
            found.push((row, Range { from: t.range.start, to: t.range.end }));
        }
    }
    found.sort_by_key(|(_, range)| (range.from, range.to));
    Ok(found)
}

/// The list as `sha256sum` writes it, in order of the names.
pub fn sums(files: &[FileHash]) -> String {
    let mut lines: Vec<(&str, &str)> = files.iter().map(|f| (f.path.as_str(), f.sha256.as_str())).collect();
    lines.sort();
    let line = |(path, hash): (&str, &str)| match path.contains(['\\', '\n', '\r']) {
        false => format!("{hash}  {path}\n"),
        true => {
            let path = path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
            format!("\\{hash}  {path}\n")
        }
    };
    lines.into_iter().map(line).collect()
}

/// Names and hashes of such a list.
///
/// # Errors
/// `BadInput` naming `path`, for a line that is none, and for a name that leaves the folder.
pub fn parse_sums(text: &str, path: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let bad = |what: &str| Error::bad_file(path, format!("line {}: {what}", i + 1));
        let (escaped, line) = match line.strip_prefix('\\') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let hash = line.get(..64).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        let name = line.get(64..).and_then(|rest| rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *")));
        let (Some(hash), Some(name)) = (hash, name) else { return Err(bad("is not a SHA-256 and a name")) };
        let name = if escaped { unescaped(name) } else { name.to_string() };
        if !is_inside(&name) {
            return Err(bad("names a file outside the folder"));
        }
        found.push((name, hash.to_ascii_lowercase()));
    }
    Ok(found)
}

fn unescaped(name: &str) -> String {
    let mut out = String::new();
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => out.push(match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            }),
            (c, false) => out.push(c),
        }
    }
    out
}

/// Whether a path stays in the folder that it is taken from.
pub fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;

    #[test]
    fn sums_are_read_back() {
        let file = |path: &str| FileHash { path: path.into(), sha256: "ab".repeat(32), ..FileHash::default() };
        let files = [file("b/c.txt"), file("a\\x\ny"), file("a b")];
        let text = sums(&files);
        assert_eq!(text.lines().count(), 3);
        let names: Vec<String> = parse_sums(&text, Path::new("S")).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a b", "a\\x\ny", "b/c.txt"]);
        for bad in ["x", &format!("{}  ../x", "0".repeat(64)), &format!("{}  /x", "0".repeat(64))] {
            assert!(parse_sums(bad, Path::new("S")).is_err(), "{bad}");
        }
    }

    #[test]
    fn tensors_are_hashed_where_they_lie() {
        let control = Control::default();
        let folder = Path::new("tests/conformance/llama");
        let found = hash(folder, "model.safetensors", Run::new(&control, &())).unwrap();
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(found.sha256, crate::digest::sha256(&bytes));
        let total: u64 = found.tensors.iter().map(|t| t.bytes).sum();
        let start = bytes.len() - total as usize;
        let first = &found.tensors[0];
        assert_eq!(first.sha256, crate::digest::sha256(&bytes[start..start + first.bytes as usize]));
        let last = found.tensors.last().unwrap();
        assert_eq!(last.sha256, crate::digest::sha256(&bytes[bytes.len() - last.bytes as usize..]));
    }
}
