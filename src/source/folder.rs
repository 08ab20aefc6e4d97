//! What a path that a person typed means: which files of a folder make up the checkpoint, and whether a shard index
//! agrees with the shards.

use super::{Checkpoint, SourceFile, TensorMeta, compressed, gguf, safetensors};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index is about 100 bytes per tensor; a larger file is not one.
const MAX_INDEX: u64 = 256 << 20;
/// What files of llama.cpp before GGUF begin with: ggml, ggmf, ggjt, ggla.
const OLD_MAGIC: [&[u8; 4]; 4] = [b"lmgg", b"fmgg", b"tjgg", b"algg"];

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
        _ if OLD_MAGIC.contains(&&magic) => {
            let what = "is in GGML's format from before GGUF, which is not read";
            Err(Error::bad_file(path, what).hint("convert the original checkpoint"))
        }
        "bin" | "pt" | "pth" | "ckpt" => Err(pytorch(path)),
        _ => {
            let error = Error::bad_file(path, "neither a GGUF nor a .safetensors file");
            Err(error.hint("give the model's folder, or one of its .safetensors or .gguf files"))
        }
    }
}

/// What PEFT calls the files of an adapter.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(super) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

fn open_folder(dir: &Path) -> Result<Checkpoint> {
    let names = list(dir)?;
    let adapter = names.contains(ADAPTER_CONFIG) && names.contains(ADAPTER_WEIGHTS);
    let remark =
        adapter.then(|| format!("a LoRA adapter lies beside the weights ({ADAPTER_CONFIG}); it is not merged"));
    Ok(open_listed(dir, names)?.remarking(remark))
}

fn open_listed(dir: &Path, names: BTreeSet<String>) -> Result<Checkpoint> {
    // Some file systems have no small letters.
    let with = |suffix: &str| names.iter().filter(|n| n.to_ascii_lowercase().ends_with(suffix)).collect::<Vec<_>>();
    let mut weights = with(".safetensors");
    // Mistral's own layout of the same weights lies beside that of transformers.
    let other_layout = |name: &&String| name.starts_with("consolidated");
    if !weights.iter().all(other_layout) {
        weights.retain(|name| !other_layout(name));
    }
    if names.contains(INDEX) {
        let index = read_index(&dir.join(INDEX))?;
        // As transformers does: a whole model beside the index of another copy goes first.
        if names.contains(SINGLE) && !index.values().any(|file| file == SINGLE) {
            let aside: BTreeSet<&str> = index.values().map(String::as_str).filter(|f| names.contains(*f)).collect();
            let remark = aside.first().map(|first| {
                format!("{SINGLE} is read, as transformers does; {first} and what else {INDEX} names is ignored")
            });
            return Ok(open_all(dir, [SINGLE])?.remarking(remark));
        }
        let absent = index.values().all(|file| !names.contains(file));
        let set = if absent { complete_set(&weights).ok().flatten() } else { None };
        return match set {
            Some(set) => {
                let remark = format!(
                    "{INDEX} names shards that are not here; the complete set {} to {} is read",
                    set[0],
                    set[set.len() - 1]
                );
                Ok(open_all(dir, set.iter().map(String::as_str))?.remarking(Some(remark)))
            }
            None => open_shards(dir, &names, &index),
        };
    }
    match weights.as_slice() {
        _ if names.contains(SINGLE) => open_all(dir, [SINGLE]),
        [name] => {
            // One shard of several is no model.
            complete_set(&weights)?;
            open_all(dir, [name.as_str()])
        }
        [] => {
            let models = with(".gguf").into_iter().map(|n| dir.join(n)).collect::<Vec<_>>();
            if let Some(model) = gguf::only_model(models.clone()) {
                gguf::open(&model)
            } else if !models.is_empty() {
                let names: Vec<_> = models.iter().filter_map(|m| m.file_name()?.to_str()).collect();
                let what = format!("holds {} GGUF files: {}", models.len(), names.join(", "));
                Err(Error::bad_file(dir, what).hint("name one of them"))
            } else if names.iter().any(|n| is_pytorch(n)) {
                Err(pytorch(dir))
            } else {
                let error = Error::bad_file(dir, "has no model: there is no .safetensors or .gguf file in it");
                let inside = names
                    .iter()
                    .find(|name| list(&dir.join(name)).is_ok_and(|n| n.iter().any(|n| n.ends_with(".safetensors"))));
                Err(match inside {
                    Some(folder) => {
                        error.hint(format!("there are some in {folder}; give {}", dir.join(folder).display()))
                    }
                    None => error.hint("give the folder that directly holds config.json and the weights"),
                })
            }
        }
        several => {
            if let Some(set) = complete_set(several)? {
                let remark = format!("there is no {INDEX}; {} to {} are read as one model", set[0], set[set.len() - 1]);
                return Ok(open_all(dir, set.iter().map(String::as_str))?.remarking(Some(remark)));
            }
            let what = format!("holds {} .safetensors files, but neither {SINGLE} nor {INDEX}", several.len());
            Err(Error::bad_file(dir, what).hint(format!("fetch {INDEX}, or name one of the files")))
        }
    }
}

/// The shards of one model without an index, by their names, `NAME-00001-of-00003.safetensors`; `None` where the names are
/// others, or of more than one model.
///
/// # Errors
/// `BadInput` for a set with gaps, naming the first.
fn complete_set(names: &[&String]) -> Result<Option<Vec<String>>> {
    let parts = |name: &str| -> Option<(String, usize, usize)> {
        let (start, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, number) = start.rsplit_once('-')?;
        let five = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5);
        Some((stem.to_string(), five(number)?, five(total)?))
    };
    let found: Option<Vec<_>> = names.iter().map(|name| parts(name)).collect();
    let Some(found) = found.filter(|f| !f.is_empty()) else { return Ok(None) };
    let (stem, _, total) = found[0].clone();
    if found.iter().any(|(s, _, t)| (s, t) != (&stem, &total)) || total > 100_000 {
        return Ok(None);
    }
    let set: Vec<String> = (1..=total).map(|i| format!("{stem}-{i:05}-of-{total:05}.safetensors")).collect();
    match set.iter().find(|name| !names.contains(name)) {
        Some(absent) => {
            let what = format!("is missing; {} of {total} shards are here", names.len());
            Err(Error::bad_file(absent, what).hint("fetch the missing shards"))
        }
        None => Ok(Some(set)),
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

pub(super) fn pytorch(path: &Path) -> Error {
    Error::bad_file(path, "the weights are PyTorch pickles, which can run code when loaded and are not read").hint(
        "use the repository's safetensors, or save the model with `save_pretrained(..., safe_serialization=True)`",
    )
}

/// Opens files, all of them parts of one model.
fn open_all<'a>(dir: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<Checkpoint> {
    let (files, tensors) = read_headers(dir, names)?;
    compressed::present(Checkpoint::new(dir.to_path_buf(), files, tensors, None)?)
}

fn read_headers<'a>(
    dir: &Path,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(Vec<SourceFile>, Vec<TensorMeta>)> {
    let (mut files, mut tensors) = (Vec::new(), Vec::new());
    for name in names {
        let file = SourceFile::open(&dir.join(name))?;
        tensors.extend(safetensors::read(&file, files.len())?);
        files.push(file);
    }
    Ok((files, tensors))
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
    let mut index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::bad_file(path, format!("the index is not valid: {e}")).hint("fetch the file again"))?;
    if index.weight_map.is_empty() {
        return Err(Error::bad_file(path, "the index names no tensors"));
    }
    for (tensor, file) in &mut index.weight_map {
        if let Some(plain) = file.strip_prefix("./") {
            *file = plain.to_string();
        }
        // The index may come from anywhere; it must not lead out of its folder.
        if Path::new(file.as_str()).file_name() != Some(file.as_str().as_ref()) || file.contains(['/', '\\']) {
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
    let (files, tensors) = read_headers(dir, shards)?;
    // What the index leaves out, or puts elsewhere, belongs to another version of the model.
    let shard_of = |t: &TensorMeta| files[t.file].path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let mut remarks = Vec::new();
    let (tensors, left): (Vec<_>, Vec<_>) =
        tensors.into_iter().partition(|t| index.get(&t.name).is_some_and(|shard| shard == shard_of(t)));
    for t in &left {
        let why = match index.get(&t.name) {
            Some(other) => format!("{INDEX} takes it from {other}"),
            None => format!("{INDEX} does not name it"),
        };
        remarks.push(format!("tensor '{}' of {} is left out: {why}", t.name, shard_of(t)));
    }
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
    Ok(compressed::present(checkpoint)?.remarking(remarks))
}
