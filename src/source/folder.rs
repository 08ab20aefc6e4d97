//! What a path that a person typed means: which files of a folder make up the checkpoint, and whether a shard index
//! agrees with the shards.

use super::{Checkpoint, SourceFile, TensorMeta, compressed, gguf, safetensors};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index is about 100 bytes per tensor; a larger file is not one.
const MAX_INDEX: u64 = 256 << 20;

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    if !path.exists() {
        let error = Error::bad_file(path, "no such file or folder");
        return Err(error.hint("give a folder with config.json and safetensors, or a .safetensors or .gguf file"));
    }
    if path.is_dir() { open_folder(path) } else { open_file(path) }
}

fn open_file(path: &Path) -> Result<Checkpoint> {
    let file = SourceFile::open(path)?;
    let mut magic = [0; 4];
    let is_gguf = file.len >= 4 && file.read_at(0, &mut magic).map(|()| magic == crate::gguf::MAGIC)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        _ if is_gguf => gguf::open(path),
        "gguf" => gguf::open(path),
        "safetensors" => {
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let tensors = safetensors::read(&file, 0)?;
            compressed::present(Checkpoint::new(dir.to_path_buf(), vec![file], tensors, None)?)
        }
        "bin" | "pt" | "pth" | "ckpt" => Err(pytorch(path)),
        _ => {
            let error = Error::bad_file(path, "neither a GGUF nor a .safetensors file");
            Err(error.hint("give the model's folder, or one of its .safetensors or .gguf files"))
        }
    }
}

fn open_folder(dir: &Path) -> Result<Checkpoint> {
    let names = list(dir)?;
    let with = |suffix: &str| names.iter().filter(|n| n.ends_with(suffix)).collect::<Vec<_>>();
    let weights = with(".safetensors");
    if names.contains(INDEX) {
        let index = read_index(&dir.join(INDEX))?;
        // As transformers does: a whole model beside the index of another copy goes first.
        let stale = names.contains(SINGLE) && !index.values().any(|file| file == SINGLE);
        return if stale { open_single(dir, SINGLE) } else { open_shards(dir, &names, &index) };
    }
    match weights.as_slice() {
        _ if names.contains(SINGLE) => open_single(dir, SINGLE),
        [name] => open_single(dir, name),
        [] => {
            let models = with(".gguf").into_iter().map(|n| dir.join(n)).collect::<Vec<_>>();
            if let Some(model) = gguf::only_model(models.clone()) {
                gguf::open(&model)
            } else if !models.is_empty() {
                Err(Error::bad_file(dir, format!("holds {} GGUF models", models.len())).hint("name one of the files"))
            } else if names.iter().any(|n| is_pytorch(n)) {
                Err(pytorch(dir))
            } else {
                let error = Error::bad_file(dir, "holds no model: there is no .safetensors and no .gguf file in it");
                Err(error.hint("give the folder that directly holds config.json and the weights"))
            }
        }
        several => {
            let what = format!("holds {} .safetensors files, but neither {SINGLE} nor {INDEX}", several.len());
            Err(Error::bad_file(dir, what).hint(format!("fetch {INDEX}, or name one of the files")))
        }
    }
}

/// The file names of a folder, sorted. Names that are not UTF-8 are none of ours.
fn list(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

fn is_pytorch(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|e| name.ends_with(e))
}

fn pytorch(path: &Path) -> Error {
    Error::bad_file(path, "the weights are PyTorch pickles, which can run code when loaded and are not read").hint(
        "use the repository's safetensors, or save the model with `save_pretrained(..., safe_serialization=True)`",
    )
}

fn open_single(dir: &Path, name: &str) -> Result<Checkpoint> {
    let file = SourceFile::open(&dir.join(name))?;
    let tensors = safetensors::read(&file, 0)?;
    compressed::present(Checkpoint::new(dir.to_path_buf(), vec![file], tensors, None)?)
}

/// Tensor name to file name, from `model.safetensors.index.json`.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let len = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if len > MAX_INDEX {
        return Err(Error::bad_file(path, format!("{len} bytes are too many for an index")));
    }
    let text = crate::input::read(path)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::bad_file(path, format!("the index is not valid: {e}")).hint("fetch the file again"))?;
    if index.weight_map.is_empty() {
        return Err(Error::bad_file(path, "the index names no tensors"));
    }
    for (tensor, file) in &index.weight_map {
        // The index may come from anywhere; it must not lead out of its folder.
        if PathBuf::from(file).file_name() != Some(file.as_ref()) || file.contains(['/', '\\']) {
            return Err(Error::bad_file(path, format!("'{file}' is not a plain file name")).tensor(tensor.as_str()));
        }
    }
    Ok(index.weight_map)
}

/// Opens every shard that the index names, and requires that both tell the same.
fn open_shards(dir: &Path, names: &BTreeSet<String>, index: &BTreeMap<String, String>) -> Result<Checkpoint> {
    let shards: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let missing: Vec<&str> = shards.iter().copied().filter(|&s| !names.contains(s)).collect();
    if let Some(first) = missing.first() {
        let what = format!("{} of the {} shards that {INDEX} names are missing", missing.len(), shards.len());
        return Err(Error::bad_file(dir.join(first), format!("no such file; {what}")).hint("fetch the missing shards"));
    }
    let (mut files, mut tensors) = (Vec::new(), Vec::<TensorMeta>::new());
    for shard in shards {
        let file = SourceFile::open(&dir.join(shard))?;
        tensors.extend(safetensors::read(&file, files.len())?);
        files.push(file);
    }
    // Twice the same name shows here; what is left to compare is two sets.
    let checkpoint = Checkpoint::new(dir.to_path_buf(), files, tensors, None)?;
    let hint = "the index and the shards are from different versions of the model; fetch both again";
    let stored: HashMap<&str, &SourceFile> =
        checkpoint.tensors.iter().map(|t| (t.name.as_str(), &checkpoint.files[t.file])).collect();
    for (tensor, shard) in index {
        let at_home = stored.get(tensor.as_str()).is_some_and(|f| f.path.file_name() == Some(shard.as_ref()));
        if !at_home {
            let error = Error::bad_file(dir.join(shard), format!("{INDEX} says that it is here, but it is not"));
            return Err(error.tensor(tensor.as_str()).hint(hint));
        }
    }
    if let Some(t) = checkpoint.tensors.iter().find(|t| !index.contains_key(&t.name)) {
        let error = Error::bad_file(&checkpoint.files[t.file].path, format!("{INDEX} does not name it"));
        return Err(error.tensor(t.name.as_str()).hint(hint));
    }
    compressed::present(checkpoint)
}
