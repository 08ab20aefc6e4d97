//! The file that lets an interrupted calibration go on: the exact sums so far, what they are sums of, and the activations
//! that go on to the layers that are left. It lies beside the output, is replaced as a whole, and ends with a hash of
//! itself. What is in the sums is `totals`' matter.

use super::streams::Streams;
use super::totals::{Total, Totals};
use crate::disk::{self, Written, folder_of};
use crate::error::Hint;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"QZCALIB2";
const HASH: usize = 32;

/// What a calibration is of: model, data and options by name. Only an equal one can be continued.
pub type Key = BTreeMap<String, String>;

/// How far a pass is: `windows` of them are through layer `layer`, all are through those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub layer: usize,
    pub windows: usize,
}

/// How far a calibration is.
#[derive(Debug, PartialEq)]
pub struct Progress {
    pub key: Key,
    pub at: Position,
    pub totals: Totals,
}

/// An unfinished calibration, from its file.
#[derive(Debug)]
pub struct Saved {
    pub progress: Progress,
    /// The streams of all windows, one behind the other; then the hash.
    pub(super) activations: BufReader<File>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    at: Position,
    tensors: Vec<Tensor>,
    /// Bytes of activations behind the sums.
    activations: u64,
}

#[derive(Serialize, Deserialize)]
struct Tensor {
    name: String,
    matrices: usize,
    sums: usize,
    overflow: bool,
}

/// Where the checkpoint of a run that writes `output` lies.
pub fn path_for(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".resume");
    output.with_file_name(name)
}

/// Where a checkpoint is until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("resume.new")
}

/// That nothing is in the place of a checkpoint but an earlier one.
///
/// # Errors
/// `Exists` for any other file, which is left alone; `Io`.
pub fn refuse_foreign(path: &Path) -> Result<()> {
    let foreign = || {
        let what = "is not a calibration checkpoint and was left untouched; move it out of the way";
        Err(Error::Exists { path: path.to_path_buf(), what, replaceable: false })
    };
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, e)),
        Ok(metadata) if !metadata.is_file() => return foreign(),
        Ok(_) => {}
    }
    let mut magic = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_ok() && magic == *MAGIC { Ok(()) } else { foreign() }
}

/// Removes the checkpoint of a run that is finished, where there is one.
pub fn forget(output: &Path) -> Result<()> {
    let file = path_for(output);
    for file in [unfinished(&file), file] {
        disk::remove_file(&file).map_err(|e| Error::io(&file, e))?;
    }
    Ok(())
}

/// Puts an unfinished calibration in the place of what is at `path`: whatever happens, one of the two is there whole.
pub(super) fn save(path: &Path, progress: &Progress, streams: &mut Streams) -> Result<()> {
    let new = unfinished(path);
    let written = Written::open_public(&new).and_then(|file| {
        file.set_len(0)?;
        let mut file = Hashing { file, at: 0, hasher: Sha256::new() };
        file.write_all(&progress.encode(streams.bytes))?;
        streams.each(|bytes| file.write_all(bytes))?;
        let Hashing { file, at, hasher } = file;
        file.write_at(at, &hasher.finalize())?;
        file.sync()
    });
    let named = written.and_then(|()| disk::rename(&new, path));
    if named.is_err() {
        // A full disk is not to stay full.
        let _ = disk::remove_file(&new);
    }
    named.map_err(|e| Error::io(path, e))
}

/// Writes the sums of a calibration that is finished, for those who add them up. [`open`] reads them.
///
/// # Errors
/// `Io`.
pub fn save_sums(path: &Path, progress: &Progress) -> Result<()> {
    save(path, progress, &mut Streams::new(&[], 0, None, folder_of(path))?)
}

/// What is at `path`; `None` when nothing is. It must be of a run with this `key`.
///
/// Errors: `BadInput` for a damaged file, or one of another run, naming what differs.
pub fn open(path: &Path, key: &Key) -> Result<Option<Saved>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let hint = Hint::BeginAgain(path.to_path_buf());
    let saved = Saved::read(file).map_err(|e| Error::io(path, e))?;
    let damaged = || Error::bad_file(path, "is not a complete calibration checkpoint").hint(hint.clone());
    let saved = saved.ok_or_else(damaged)?;
    let was = &saved.progress.key;
    let names = key.keys().chain(was.keys());
    if let Some(name) = names.into_iter().find(|name| key.get(*name) != was.get(*name)) {
        let value = |key: &Key| key.get(name).map_or("none".to_string(), |v| v.chars().take(40).collect());
        let (was, is) = (value(was), value(key));
        let name = name.trim_start_matches("identity.").trim_start_matches("companions.");
        let what = format!("the calibration to resume has a different {name}: {was} there, {is} here");
        return Err(Error::bad_file(path, what).hint(hint));
    }
    Ok(Some(saved))
}

/// Writes, and hashes what is written.
struct Hashing {
    file: Written,
    at: u64,
    hasher: Sha256,
}

impl Hashing {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Saved {
    /// `None` when the file is not whole.
    fn read(mut file: File) -> io::Result<Option<Self>> {
        let Some(body) = file.metadata()?.len().checked_sub(HASH as u64) else { return Ok(None) };
        let (mut hasher, mut left, mut bytes) = (Sha256::new(), body, vec![0; 1 << 20]);
        while left > 0 {
            let piece = &mut bytes[..left.min(1 << 20) as usize];
            file.read_exact(piece)?;
            left -= piece.len() as u64;
            hasher.update(piece);
        }
        let mut hash = [0; HASH];
        file.read_exact(&mut hash)?;
        if hasher.finalize().as_slice() != hash {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(0))?;
        let mut file = BufReader::new(file);
        // Whole, so what does not fit was never a checkpoint.
        let Some((progress, activations)) = Progress::decode(&mut file, body) else { return Ok(None) };
        let rest = body.checked_sub(file.stream_position()?);
        Ok((rest == Some(activations)).then_some(Self { progress, activations: file }))
    }
}

impl Progress {
    fn encode(&self, activations: u64) -> Vec<u8> {
        let tensors = self.totals.0.iter().map(|(name, total)| Tensor {
            name: name.clone(),
            matrices: total.counts.len(),
            sums: total.sums.len(),
            overflow: total.overflow,
        });
        let header = Header { key: self.key.clone(), at: self.at, tensors: tensors.collect(), activations };
        // Strings and numbers alone: this cannot fail.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut out = MAGIC.to_vec();
        out.extend((header.len() as u64).to_le_bytes());
        out.extend(header);
        for total in self.totals.0.values() {
            out.extend(total.sums.iter().chain(&total.magnitudes).flat_map(|v| v.to_le_bytes()));
            out.extend(total.counts.iter().flat_map(|v| v.to_le_bytes()));
        }
        out
    }

    /// From a file of `len` bytes; also the bytes of activations that are behind.
    fn decode(file: &mut impl Read, len: u64) -> Option<(Self, u64)> {
        let mut take = |n: usize| {
            let mut bytes = vec![0; Some(n).filter(|n| *n as u64 <= len)?];
            file.read_exact(&mut bytes).ok()?;
            Some(bytes)
        };
        if take(MAGIC.len())? != MAGIC {
            return None;
        }
        let header = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let header: Header = serde_json::from_slice(&take(usize::try_from(header).ok()?)?).ok()?;
        let mut totals = BTreeMap::new();
        for tensor in header.tensors {
            let mut wide = |n: usize| {
                let values = take(n.checked_mul(16)?)?;
                Some(values.as_chunks().0.iter().map(|b| i128::from_le_bytes(*b)).collect::<Vec<i128>>())
            };
            let (sums, magnitudes) = (wide(tensor.sums)?, wide(tensor.sums)?);
            let counts = take(tensor.matrices.checked_mul(8)?)?;
            let counts = counts.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            totals.insert(tensor.name, Total { sums, magnitudes, counts, overflow: tensor.overflow });
        }
        Some((Self { key: header.key, at: header.at, totals: Totals(totals) }, header.activations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Progress {
        let total = |n: i128| Total {
            sums: vec![n << 70, -1, 3],
            magnitudes: vec![4, 5, i128::MAX],
            counts: vec![n as u64],
            overflow: n == 2,
        };
        let totals = BTreeMap::from([("a".to_string(), total(1)), ("b".to_string(), total(2))]);
        let key = BTreeMap::from([("model".to_string(), "m".to_string()), ("data".to_string(), "d".to_string())]);
        Progress { key, at: Position { layer: 2, windows: 7 }, totals: Totals(totals) }
    }

    /// Two windows of one and two tokens, of which `max_memory` bytes stay in memory.
    fn streams(max_memory: u64, dir: &Path) -> Streams {
        let mut streams = Streams::new(&[vec![0], vec![0, 0]], 3, Some(max_memory), dir).unwrap();
        streams.put(0, vec![1.0, -2.0, 3.5]).unwrap();
        streams.put(1, (0..6).map(|i| i as f32).collect()).unwrap();
        streams
    }

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(&dir.path().join("stats.gguf"));
        let progress = example();
        assert!(open(&path, &progress.key).unwrap().is_none());
        let mut files = Vec::new();
        for max_memory in [0, 12, 1000] {
            save(&path, &progress, &mut streams(max_memory, dir.path())).unwrap();
            files.push(std::fs::read(&path).unwrap());
        }
        assert!(files[0] == files[1] && files[1] == files[2], "where the streams were does not matter");
        let mut saved = open(&path, &progress.key).unwrap().unwrap();
        assert_eq!(saved.progress, example());
        let mut values = vec![0f32; 9];
        saved.activations.read_exact(bytemuck::cast_slice_mut(&mut values)).unwrap();
        assert_eq!(values, [1.0, -2.0, 3.5, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let bytes = files.remove(0);
        for cut in (0..bytes.len()).step_by(13) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(open(&path, &progress.key).is_err(), "{cut}");
            let mut damaged = bytes.clone();
            damaged[cut] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            assert!(open(&path, &progress.key).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.resume");
        save(&path, &example(), &mut streams(0, dir.path())).unwrap();
        let mut key = example().key;
        key.insert("data".into(), "other".into());
        let text = open(&path, &key).unwrap_err().to_string();
        assert!(text.contains("a different data: d there, other here"), "{text}");
    }
}
