//! The file that lets an interrupted calibration go on: the exact sums so far, and what they are sums of. It lies beside
//! the output, is replaced as a whole, and ends with a hash of itself. What is in the sums is `totals`' matter.

use super::totals::{Total, Totals};
use crate::runnable::Runnable;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"QZCALIB1";
const HASH: usize = 32;
/// Places of a model file that are looked at, and bytes at each.
const PLACES: u64 = 256;
const PLACE: u64 = 4096;

/// What a calibration is of: model, data and options by name. Only an equal one can be continued.
pub type Key = BTreeMap<String, String>;

/// An unfinished calibration.
#[derive(Debug, PartialEq)]
pub struct Checkpoint {
    pub key: Key,
    /// Windows that are in the sums.
    pub done: usize,
    pub totals: Totals,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    done: usize,
    tensors: Vec<Tensor>,
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

/// Removes the checkpoint of a run that is finished, where there is one.
pub fn forget(output: &Path) -> Result<()> {
    let file = path_for(output);
    for file in [unfinished(&file), file] {
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&file, e)),
            _ => {}
        }
    }
    Ok(())
}

impl Checkpoint {
    /// Puts this in the place of what is at `path`: whatever happens, one of the two is there whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        let new = unfinished(path);
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&self.encode())?;
            file.sync_all()
        });
        written.and_then(|()| std::fs::rename(&new, path)).map_err(|e| Error::io(path, e))
    }

    /// What is at `path`; `None` when nothing is. It must be of a run with this `key`.
    ///
    /// Errors: `BadInput` for a damaged file, or one of another run, naming what differs.
    pub fn open(path: &Path, key: &Key) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, e)),
        };
        let hint = format!("calibrate without --resume to begin again, or delete {}", path.display());
        let damaged = || Error::bad_file(path, "is no whole checkpoint of a calibration").hint(hint.clone());
        let saved = Self::decode(&bytes).ok_or_else(damaged)?;
        let names = key.keys().chain(saved.key.keys());
        if let Some(name) = names.into_iter().find(|name| key.get(*name) != saved.key.get(*name)) {
            let value = |key: &Key| key.get(name).map_or("none".to_string(), |v| v.chars().take(40).collect());
            let (was, is) = (value(&saved.key), value(key));
            let what = format!("the calibration to resume has another {name}: {was} there, {is} here");
            return Err(Error::bad_file(path, what).hint(hint));
        }
        Ok(Some(saved))
    }

    fn encode(&self) -> Vec<u8> {
        let tensors = self.totals.0.iter().map(|(name, total)| Tensor {
            name: name.clone(),
            matrices: total.counts.len(),
            sums: total.sums.len(),
            overflow: total.overflow,
        });
        let header = Header { key: self.key.clone(), done: self.done, tensors: tensors.collect() };
        // Strings and numbers alone: this cannot fail.
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut out = MAGIC.to_vec();
        out.extend((header.len() as u64).to_le_bytes());
        out.extend(header);
        for total in self.totals.0.values() {
            out.extend(total.sums.iter().chain(&total.magnitudes).flat_map(|v| v.to_le_bytes()));
            out.extend(total.counts.iter().flat_map(|v| v.to_le_bytes()));
        }
        let hash = Sha256::digest(&out);
        out.extend(hash);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
        if Sha256::digest(body).as_slice() != hash {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let (len, rest) = rest.split_first_chunk()?;
        let (header, mut rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        let header: Header = serde_json::from_slice(header).ok()?;
        let mut totals = BTreeMap::new();
        for tensor in header.tensors {
            let mut wide = |n: usize| {
                let (values, after) = rest.split_at_checked(n.checked_mul(16)?)?;
                rest = after;
                Some(values.as_chunks().0.iter().map(|b| i128::from_le_bytes(*b)).collect::<Vec<i128>>())
            };
            let (sums, magnitudes) = (wide(tensor.sums)?, wide(tensor.sums)?);
            let (counts, after) = rest.split_at_checked(tensor.matrices.checked_mul(8)?)?;
            rest = after;
            let counts = counts.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            totals.insert(tensor.name, Total { sums, magnitudes, counts, overflow: tensor.overflow });
        }
        rest.is_empty().then_some(Self { key: header.key, done: header.done, totals: Totals(totals) })
    }
}

/// What tells a model from others: a hash of its configuration, and of its files' lengths and bytes at many places.
/// Reading all of a large model would take longer than the calibration that is left.
///
/// Errors: `Io`.
pub fn identity(model: &Runnable) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?}", model.model.config));
    for file in model.ckpt.files() {
        hasher.update(file.len.to_le_bytes());
        for place in 0..PLACES {
            let from = file.len / PLACES * place;
            let mut bytes = vec![0; PLACE.min(file.len - from) as usize];
            file.read_at(from, &mut bytes)?;
            hasher.update(&bytes);
        }
    }
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Checkpoint {
        let total = |n: i128| Total {
            sums: vec![n << 70, -1, 3],
            magnitudes: vec![4, 5, i128::MAX],
            counts: vec![n as u64],
            overflow: n == 2,
        };
        let totals = BTreeMap::from([("a".to_string(), total(1)), ("b".to_string(), total(2))]);
        let key = BTreeMap::from([("model".to_string(), "m".to_string()), ("data".to_string(), "d".to_string())]);
        Checkpoint { key, done: 7, totals: Totals(totals) }
    }

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(&dir.path().join("stats.gguf"));
        let saved = example();
        assert_eq!(Checkpoint::open(&path, &saved.key).unwrap(), None);
        saved.save(&path).unwrap();
        assert_eq!(Checkpoint::open(&path, &saved.key).unwrap(), Some(example()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&path).unwrap();
        for cut in (0..bytes.len()).step_by(13) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Checkpoint::open(&path, &saved.key).is_err(), "{cut}");
            let mut damaged = bytes.clone();
            damaged[cut] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            assert!(Checkpoint::open(&path, &saved.key).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.resume");
        example().save(&path).unwrap();
        let mut key = example().key;
        key.insert("data".into(), "other".into());
        let text = Checkpoint::open(&path, &key).unwrap_err().to_string();
        assert!(text.contains("another data: d there, other here"), "{text}");
    }
}
