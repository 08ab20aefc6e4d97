//! A GGUF model as a checkpoint: one file, or all the shards of a split one (`name-00001-of-00005.gguf`, with the keys
//! `split.no`, `split.count` and `split.tensors.count` of llama.cpp's gguf-split).

use super::{Checkpoint, Dtype, SourceFile, TensorMeta};
use crate::gguf::{self, Header, Metadata};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// Opens `path` and, when it says that it is one of several shards, all of them.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let (file, header) = read(path)?;
    let count = header.metadata.uint(SPLIT_COUNT).unwrap_or(1);
    if count <= 1 {
        let tensors = tensors(&header, 0, path)?;
        return Checkpoint::new(dir, vec![file], tensors, Some(without_split(header.metadata)));
    }
    let Some(prefix) = split_name(path).filter(|&(_, _, of)| of == count).map(|(prefix, ..)| prefix) else {
        let what = format!("is one of {count} shards, but its name does not end in -00001-of-{count:05}.gguf");
        return Err(Error::bad_file(path, what).hint("give the shards their original names"));
    };
    let path = |i: u64| dir.join(format!("{prefix}-{:05}-of-{count:05}.gguf", i + 1));
    let paths: Vec<PathBuf> = (0..count).map(path).collect();
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        return Err(Error::bad_file(missing, "this shard of the model is missing").hint("fetch all the shards"));
    }
    open_shards(&paths)
}

/// Opens the shards of one model, all of them and in order, whatever their names.
pub(super) fn open_shards(paths: &[PathBuf]) -> Result<Checkpoint> {
    let count = paths.len() as u64;
    let (mut files, mut all, mut metadata) = (Vec::new(), Vec::new(), Metadata::new());
    let (mut announced, mut set) = (None, None);
    for (i, path) in (0..).zip(paths) {
        let (file, header) = read(path)?;
        if header.metadata.uint(SPLIT_NO) != Some(i) || header.metadata.uint(SPLIT_COUNT) != Some(count) {
            return Err(Error::bad_file(path, format!("its '{SPLIT_NO}' and '{SPLIT_COUNT}' do not match its name")));
        }
        let own = header.metadata.str(gguf::SPLIT_SET).map(String::from);
        if i > 0 && own != set {
            let what = "is of another run than the first shard, though its name and its place agree";
            return Err(Error::bad_file(path, what).hint("convert again, or fetch all the shards again"));
        }
        set = own;
        all.extend(tensors(&header, files.len(), path)?);
        files.push(file);
        if i == 0 {
            announced = header.metadata.uint(SPLIT_TENSORS);
            metadata = without_split(header.metadata);
        }
    }
    let Some(first) = files.first() else { return Err(Error::Internal("a model of no shards".into())) };
    if announced.is_some_and(|n| n != all.len() as u64) {
        let (first, n) = (&first.path, announced.unwrap_or_default());
        return Err(Error::bad_file(first, format!("'{SPLIT_TENSORS}' is {n}, but the shards hold {}", all.len())));
    }
    let dir = first.path.parent().unwrap_or(Path::new(".")).to_path_buf();
    Checkpoint::new(dir, files, all, Some(metadata))
}

fn read(path: &Path) -> Result<(SourceFile, Header)> {
    let file = SourceFile::open(path)?;
    let header = gguf::parse_header(file.stream(), file.len, path)?;
    Ok((file, header))
}

fn tensors(header: &Header, file: usize, path: &Path) -> Result<Vec<TensorMeta>> {
    let convert = |t: &gguf::TensorInfo| {
        let start = header.data_start.checked_add(t.offset)?;
        let shape = t.dims.iter().rev().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
        let range = start..start.checked_add(t.bytes()?)?;
        Some(TensorMeta { name: t.name.clone(), dtype: Dtype::Ggml(t.ty), shape, file, range })
    };
    let too_large = |t: &gguf::TensorInfo| Error::bad_file(path, "is too large").tensor(t.name.as_str());
    header.tensors.iter().map(|t| convert(t).ok_or_else(|| too_large(t))).collect()
}

/// The shards' bookkeeping is the container's, not the model's.
fn without_split(mut metadata: Metadata) -> Metadata {
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS, gguf::SPLIT_SET] {
        metadata.remove(key);
    }
    metadata
}

/// Takes `dir/name-00002-of-00005.gguf` apart into `name`, 2 and 5.
fn split_name(path: &Path) -> Option<(String, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (prefix, no) = rest.rsplit_once('-')?;
    let number = |s: &str| if s.len() == 5 { s.parse().ok() } else { None };
    Some((prefix.to_string(), number(no)?, number(of)?))
}

/// The one model among the GGUF files of a folder: a single file, or the first shard of a single split one.
pub(super) fn only_model(mut paths: Vec<PathBuf>) -> Option<PathBuf> {
    paths.sort();
    let first = paths.first()?;
    match split_name(first) {
        _ if paths.len() == 1 => Some(first.clone()),
        Some((prefix, _, of)) => paths
            .iter()
            .all(|p| split_name(p).is_some_and(|(other, _, n)| other == prefix && n == of))
            .then(|| first.clone()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards() {
        assert_eq!(split_name(Path::new("/a/m-7b-00002-of-00005.gguf")), Some(("m-7b".into(), 2, 5)));
        assert_eq!(split_name(Path::new("m-2-of-5.gguf")), None);
        assert_eq!(split_name(Path::new("m.gguf")), None);
    }

    #[test]
    fn one_model_in_a_folder() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        let first = PathBuf::from("m-00001-of-00002.gguf");
        assert_eq!(only_model(paths(&["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"])), Some(first));
        assert_eq!(only_model(paths(&["a.gguf"])), Some("a.gguf".into()));
        assert_eq!(only_model(paths(&["a.gguf", "b.gguf"])), None);
        assert_eq!(only_model(paths(&["m-00001-of-00002.gguf", "n-00002-of-00002.gguf"])), None);
    }
}
