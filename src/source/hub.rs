//! Fetching a checkpoint from the Hub: which files a conversion needs, into the standard cache, resumed where an earlier
//! try stopped, and checked. The protocol and the cache layout are hf-hub's; offline mode, checks and the choice of files
//! are ours.

use crate::{Error, Result};
use hf_hub::api::Progress as HubProgress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Tries per file beyond the first; each goes on where the last one stopped.
const RETRIES: usize = 5;

/// Where and how to fetch; the command line fills this from flags and `HF_*` variables.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Base address, without a slash at the end.
    pub endpoint: String,
    /// The cache folder (`$HF_HOME/hub`).
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Use only what the cache holds.
    pub offline: bool,
}

/// Sees downloads: `begin(file, bytes)`, then bytes as they come.
pub trait Watch {
    fn begin(&mut self, file: &str, bytes: u64);
    fn advance(&mut self, bytes: u64);
}

/// The folder of a snapshot that holds all that a conversion of `id` (`org/name`) at `revision` needs.
///
/// Errors: `Unsupported` for a repository without safetensors, `BadInput` for content that does not match its hash or an
/// incomplete cache in offline mode, `Storage` for the network and the disk, `Interrupted`.
pub fn fetch(
    id: &str,
    revision: &str,
    options: &HubOptions,
    watch: &mut dyn Watch,
    cancel: &AtomicBool,
) -> Result<PathBuf> {
    let cache = Cache::new(options.cache.clone());
    let repo = Repo::with_revision(id.to_string(), RepoType::Model, revision.to_string());
    if options.offline {
        return cached(id, &cache, &repo);
    }
    std::fs::create_dir_all(&options.cache).map_err(|e| Error::io(&options.cache, e))?;
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(options.endpoint.clone())
        .with_token(options.token.clone())
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
        .map_err(|e| fault(id, options, "cannot be reached", e))?;
    let info = api.repo(repo.clone()).info().map_err(|e| fault(id, options, "cannot be listed", e))?;
    let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    if !names.iter().any(|n| n.ends_with(".safetensors")) {
        let found: Vec<&str> = names.iter().copied().filter(|n| is_weights(n)).collect();
        let found = if found.is_empty() { "no weights at all".to_string() } else { found.join(", ") };
        return Err(Error::Unsupported(format!("{id} holds no safetensors ({found})")));
    }
    // From here on one commit, whatever is pushed meanwhile.
    let pinned = Repo::with_revision(id.to_string(), RepoType::Model, info.sha.clone());
    let mut snapshot = None;
    for name in names.into_iter().filter(|n| is_needed(n)) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let path = match cache.repo(pinned.clone()).get(name) {
            Some(path) => path,
            None => download(&api, &pinned, id, name, options, watch)?,
        };
        // Files at the top level tell the snapshot's folder.
        if !name.contains('/') {
            snapshot = path.parent().map(Path::to_path_buf);
        }
    }
    cache.repo(repo).create_ref(&info.sha).map_err(|e| Error::io(&options.cache, e))?;
    snapshot.ok_or_else(|| Error::Unsupported(format!("{id} holds no config.json")))
}

/// Downloads one file and checks it. Content with the wrong hash is thrown away and fetched once more.
fn download(
    api: &Api,
    repo: &Repo,
    id: &str,
    name: &str,
    options: &HubOptions,
    watch: &mut dyn Watch,
) -> Result<PathBuf> {
    for last in [false, true] {
        let path = match api.repo(repo.clone()).download_with_progress(name, Bridge { name, watch }) {
            Ok(path) => path,
            // A part that is already whole (the last run was killed just before the rename) cannot be resumed.
            Err(e) if !last && e.to_string().contains("416") => {
                remove_parts(&options.cache, repo)?;
                continue;
            }
            Err(e) => return Err(fault(id, options, &format!("{name} cannot be downloaded"), e)),
        };
        let blob = path.canonicalize().map_err(|e| Error::io(&path, e))?;
        let etag = blob.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_sha256 || super::sha256_file(&blob, &AtomicBool::new(false))? == etag {
            return Ok(path);
        }
        for broken in [&path, &blob] {
            std::fs::remove_file(broken).map_err(|e| Error::io(broken, e))?;
        }
        if last {
            let what = format!("what {} sends does not match its hash", options.endpoint);
            return Err(Error::bad_file(format!("{id}/{name}"), what).hint("try again later, or another mirror"));
        }
    }
    Err(Error::Internal("a download neither failed nor ended".into()))
}

fn remove_parts(cache: &Path, repo: &Repo) -> Result<()> {
    let blobs = cache.join(repo.folder_name()).join("blobs");
    let entries = std::fs::read_dir(&blobs).map_err(|e| Error::io(&blobs, e))?;
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "part")) {
        std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

/// The snapshot in the cache, if it is whole.
fn cached(id: &str, cache: &Cache, repo: &Repo) -> Result<PathBuf> {
    let missing = |what: &str| {
        Error::bad_input(format!("{id}: offline mode, and the cache {what}"))
            .hint(format!("run `quantize pull {id}` while online"))
    };
    let config = cache.repo(repo.clone()).get("config.json").ok_or_else(|| missing("does not hold it"))?;
    let folder = config.parent().map(Path::to_path_buf).unwrap_or_default();
    let index = folder.join("model.safetensors.index.json");
    let needed: Vec<String> = if index.exists() {
        let text = std::fs::read(&index).map_err(|e| Error::io(&index, e))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| Error::bad_file(&index, format!("not JSON: {e}")))?;
        let map = json["weight_map"].as_object();
        map.into_iter().flat_map(|m| m.values()).filter_map(|v| v.as_str()).map(String::from).collect()
    } else {
        Vec::new()
    };
    if let Some(absent) = needed.iter().find(|n| !folder.join(n).exists()) {
        return Err(missing(&format!("lacks {absent}")));
    }
    let any = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?.flatten();
    if !any.map(|e| e.file_name()).any(|n| n.to_string_lossy().ends_with(".safetensors")) {
        return Err(missing("lacks the weights"));
    }
    Ok(folder)
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"].iter().any(|e| name.ends_with(e))
}

/// Weights in safetensors and the small text files beside them, at the top level; never a second copy of the weights.
fn is_needed(name: &str) -> bool {
    if name.contains('/') {
        return false;
    }
    let is_safetensors = name.ends_with(".safetensors") && !name.starts_with("consolidated");
    let small = [".json", ".jinja", ".model", ".txt"].iter().any(|e| name.ends_with(e));
    is_safetensors || small || name == "README.md"
}

/// The classes of failure that a user can do something about.
fn fault(id: &str, options: &HubOptions, what: &str, e: ApiError) -> Error {
    let text = e.to_string();
    let status = |code: &str| text.contains(&format!("status code {code}"));
    if status("401") || status("403") {
        let hint = match options.token {
            Some(_) => "the token in HF_TOKEN is wrong, or its owner has not been granted access to this model",
            None => "set HF_TOKEN, and accept the model's terms on its page if it has any",
        };
        return Error::Storage(format!("{id} {what}: access is denied\n  hint: {hint}"));
    }
    if status("404") {
        let hint = "check the spelling and the revision; a private model looks like this too (set HF_TOKEN)";
        return Error::bad_input(format!("{id} {what}: not found on {}", options.endpoint)).hint(hint);
    }
    Error::Storage(format!(
        "{id} {what}: {text}\n  hint: run the same command again; it goes on where this one stopped"
    ))
}

/// hf-hub reports a start per try and the bytes of each read.
struct Bridge<'a> {
    name: &'a str,
    watch: &'a mut dyn Watch,
}

impl HubProgress for Bridge<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.watch.begin(self.name, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.watch.advance(size as u64);
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::is_needed;

    #[test]
    fn only_what_a_conversion_needs() {
        let needed = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"];
        assert!(needed.iter().all(|n| is_needed(n)));
        let skipped =
            ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "model.gguf", "onnx/model.onnx"];
        assert!(!skipped.iter().any(|n| is_needed(n)));
    }
}
