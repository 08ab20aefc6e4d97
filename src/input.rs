//! Whole files that the user names: texts, matrices, reports. A pipe that nobody writes to is an empty file and not a
//! wait without end; a device is an error. Checkpoints, which are read by position, are opened in `source`.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Opens a file or a pipe for reading.
///
/// Errors: `BadInput` when there is no such file, or it is a folder or a device; `Io`.
pub fn open(path: &Path) -> Result<File> {
    let fault = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => Error::bad_file(path, "no such file"),
        _ => Error::io(path, e),
    };
    let kind = std::fs::metadata(path).map_err(fault)?.file_type();
    if kind.is_dir() {
        return Err(Error::bad_file(path, "is a folder; name a file"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
        if kind.is_fifo() {
            // To open it without this flag is to wait for a writer; to read it with the flag is not to wait for one
            // that is there.
            let wait_not = rustix::fs::OFlags::NONBLOCK;
            let pipe = File::options().read(true).custom_flags(wait_not.bits() as i32).open(path).map_err(fault)?;
            let flags = rustix::fs::fcntl_getfl(&pipe).map_err(|e| fault(e.into()))?;
            rustix::fs::fcntl_setfl(&pipe, flags - wait_not).map_err(|e| fault(e.into()))?;
            return Ok(pipe);
        }
    }
    if !kind.is_file() {
        return Err(Error::bad_file(path, "is a device, not a file"));
    }
    File::open(path).map_err(fault)
}

/// All bytes of a file or a pipe.
///
/// Errors: as [`open`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    let expected = file.metadata().map_or(0, |m| m.len());
    // A size that memory cannot hold is an error and no abort.
    let room = usize::try_from(expected).ok().and_then(|n| bytes.try_reserve_exact(n).ok());
    room.ok_or_else(|| Error::bad_file(path, format!("its {expected} bytes do not fit into memory")))?;
    file.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// The same as text.
///
/// Errors: as [`open`]; `BadInput` where it is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|e| Error::bad_file(path, format!("is not UTF-8 text (byte {})", e.utf8_error().valid_up_to())))
}

/// The JSON in the bytes of a file, as Python writes it too.
///
/// # Errors
/// `BadInput` naming the file, also for a Git LFS pointer in its place.
pub fn json(path: &Path, bytes: &[u8]) -> Result<serde_json::Value> {
    if bytes.starts_with(b"version https://git-lfs") {
        let what = "is a Git LFS pointer, not the file itself";
        return Err(Error::bad_file(path, what).hint("run `git lfs pull` to fetch it"));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        let what = "begins with a byte order mark, which JSON has none of and other loaders refuse";
        return Err(Error::bad_file(path, what).hint("save it as UTF-8 without one"));
    }
    let parsed = serde_json::from_slice(bytes);
    let parsed = parsed.or_else(|e| serde_json::from_slice(&without_bare_numbers(bytes)).map_err(|_| e));
    parsed.map_err(|e| Error::bad_file(path, format!("not valid JSON: {e}")).hint("fetch the file again"))
}

/// Reads and parses a JSON file of bounded size.
///
/// # Errors
/// Those of [`open`] and [`json`]; `BadInput` for a file that is too large to be a configuration.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    const LIMIT: u64 = 64 << 20;
    let len = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if len > LIMIT {
        return Err(Error::bad_file(path, format!("{len} bytes; expected at most {LIMIT}")));
    }
    let bytes = read(path)?;
    json(path, &bytes)
}

/// JSON as Python writes it, whose infinities and NaNs are no JSON: these become strings, so that a key that should be a
/// number is still refused, and one that nobody asks for does no harm.
fn without_bare_numbers(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let (mut in_string, mut at) = (false, 0);
    while at < text.len() {
        let bare =
            [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|w| !in_string && text[at..].starts_with(w));
        if let Some(word) = bare {
            out.push(b'"');
            out.extend(word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        let escaped = in_string && text[at] == b'\\' && at + 1 < text.len();
        in_string ^= text[at] == b'"';
        out.extend(&text[at..at + 1 + usize::from(escaped)]);
        at += 1 + usize::from(escaped);
    }
    out
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pipe_is_read_to_its_end_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(read(&path).unwrap(), b"");
        // A writer that is there is waited for. This one holds the other end, too, so that nothing is lost before it is read.
        let mut writer = File::options().read(true).write(true).open(&path).unwrap();
        writer.write_all(b"ab").unwrap();
        let ends = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_text(&path).unwrap());
            while rustix::io::ioctl_fionread(&writer).unwrap() > 0 && !reader.is_finished() {
                std::thread::yield_now();
            }
            writer.write_all(b"c").unwrap();
            drop(writer);
            reader.join().unwrap()
        });
        assert_eq!(ends, "abc");
        assert!(read(Path::new("/dev/zero")).is_err() && read(dir.path()).is_err());
    }
}
