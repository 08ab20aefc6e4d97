//! A repository of the Hugging Face Hub as a local folder, or one file of a data set there: asks the Hub which files there are, fetches those that a
//! conversion reads into the standard cache (`models--org--name/{blobs,refs,snapshots}`, shared with every other tool
//! that uses it), and returns the snapshot's folder. Names and addresses come from the `hf-hub` crate; retries, resume,
//! checks and offline use are done here, and files are put there ([`upload`]). It keeps no credentials.

mod cache;
mod choose;
mod client;
mod tls;
pub mod upload;

use crate::error::Hint;
use crate::{Error, Result};
use cache::Folder;
use client::Client;
use hf_hub::{Repo, RepoType};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Where and how repositories are fetched.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the Hub or of a mirror, without a slash at the end.
    pub endpoint: String,
    /// The cache folder (`HF_HOME/hub`).
    pub cache: PathBuf,
    /// Sent to the endpoint's host only.
    pub token: Option<String>,
    /// Address of an HTTP or SOCKS proxy.
    pub proxy: Option<String>,
    /// A file of certificates (PEM), or a folder of such files, to trust instead of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// Use the cache alone.
    pub offline: bool,
    /// Branch, tag or commit.
    pub revision: String,
}

/// How a caller follows and stops a download.
pub struct Watch<'a> {
    /// Set from elsewhere to stop.
    pub cancel: &'a AtomicBool,
    /// Called once, before the first byte, with the number of bytes still to fetch. An error stops the download.
    pub begin: &'a (dyn Fn(u64) -> Result<()> + 'a),
    /// Called with the number of bytes that arrived since the last call.
    pub advance: &'a dyn Fn(u64),
}

/// A revision of a repository in the cache.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The folder with the files (links into the cache).
    pub path: PathBuf,
    /// The commit that the revision named.
    pub commit: String,
    /// Names of the files that a conversion reads, in the order they are fetched.
    pub files: Vec<String>,
}

/// Makes sure that the files of `org/name` that a conversion reads are in the cache.
///
/// An interrupted download goes on where it stopped, also one of another run. Sizes are always checked, contents by the
/// hash that the Hub states (SHA-256 of large files, git's of small ones).
///
/// Errors: `Request` for an impossible id or revision; `BadInput` when the Hub knows no such repository, when contents do
/// not match their hash, and when files are missing in offline mode; `Unsupported` for a repository without safetensors;
/// `Storage` when access is denied, the network fails or the disk is full; `Interrupted`.
pub fn fetch(id: &str, options: &HubOptions, watch: &Watch) -> Result<Snapshot> {
    check_names(id, &options.revision)?;
    let repo = Repo::with_revision(id.to_string(), RepoType::Model, options.revision.clone());
    let folder = Folder::new(&options.cache, &repo);
    if options.offline {
        return folder.complete(id, &options.revision);
    }
    let client = Client::new(id, "", options, watch.cancel)?;
    let listing = client.listing(&repo, choose::plain)?;
    let mut files = choose::small(&listing.names);
    let weights = match choose::weights(id, &listing.names)? {
        choose::Weights::Files(weights) => weights,
        choose::Weights::Indexed => {
            let index = choose::INDEX.to_string();
            get(&client, &folder, &listing.commit, std::slice::from_ref(&index), &|_| Ok(()), &|_| ())?;
            let shards = choose::shards(&folder.snapshot(&listing.commit).join(&index))?;
            if let Some(absent) = shards.iter().find(|s| !listing.names.contains(*s)) {
                let what = format!("{id}: {index} names '{absent}', which is not in the repository");
                return Err(Error::bad_input(what).hint(Hint::Revision));
            }
            files.push(index);
            shards
        }
    };
    // Weights last: where they are complete, so is the rest.
    files.extend(weights);
    get(&client, &folder, &listing.commit, &files, watch.begin, watch.advance)?;
    folder.set_ref(&repo, &listing.commit)?;
    Ok(Snapshot { path: folder.snapshot(&listing.commit), commit: listing.commit, files })
}

/// What a plan needs of `org/name`: the snapshot's folder where all of it is in the cache, else its `config.json` alone,
/// fetched if it is not there yet.
///
/// Errors: as [`fetch`].
pub fn fetch_config(id: &str, options: &HubOptions, watch: &Watch) -> Result<PathBuf> {
    check_names(id, &options.revision)?;
    let repo = Repo::with_revision(id.to_string(), RepoType::Model, options.revision.clone());
    let folder = Folder::new(&options.cache, &repo);
    let whole = folder.complete(id, &options.revision);
    if options.offline {
        return Ok(whole?.path);
    }
    let client = Client::new(id, "", options, watch.cancel)?;
    let listing = client.listing(&repo, choose::plain)?;
    if let Some(whole) = whole.ok().filter(|whole| whole.commit == listing.commit) {
        return Ok(whole.path);
    }
    choose::weights(id, &listing.names)?;
    let config = choose::CONFIG.to_string();
    get(&client, &folder, &listing.commit, std::slice::from_ref(&config), watch.begin, watch.advance)?;
    Ok(folder.snapshot(&listing.commit).join(config))
}

/// The path in the cache of one file of the data set `org/name`, fetched if it is not there yet.
///
/// Errors: as [`fetch`]; `BadInput` with some that there are when there is no such file.
pub fn fetch_dataset_file(id: &str, file: &str, options: &HubOptions, watch: &Watch) -> Result<PathBuf> {
    check_names(id, &options.revision)?;
    if !choose::nested(file) {
        return Err(Error::request(format!("'{file}' is not the path of a file in a data set")));
    }
    let repo = Repo::with_revision(id.to_string(), RepoType::Dataset, options.revision.clone());
    let folder = Folder::new(&options.cache, &repo);
    let commit = if options.offline {
        let commit = folder.commit(&options.revision).filter(|commit| folder.has(commit, file));
        commit.ok_or_else(|| {
            let what = format!("{id}: offline mode, and {file} at revision '{}' is not", options.revision);
            Error::bad_input(format!("{what} in the cache {}", options.cache.display())).hint(Hint::Online { id: None })
        })?
    } else {
        let client = Client::new(id, "datasets/", options, watch.cancel)?;
        let listing = client.listing(&repo, choose::nested)?;
        if !listing.names.contains(file) {
            let readable = |name: &&String| [".parquet", ".jsonl", ".txt"].iter().any(|end| name.ends_with(end));
            let some: Vec<&str> = listing.names.iter().filter(readable).take(8).map(String::as_str).collect();
            let some = if some.is_empty() { "it has no Parquet, JSONL or text files".into() } else { some.join(", ") };
            let what = format!("the data set {id} has no file '{file}' at revision '{}'", options.revision);
            return Err(Error::bad_input(what).hint(format!("name one of its files: {some}")));
        }
        get(&client, &folder, &listing.commit, &[file.to_string()], watch.begin, watch.advance)?;
        folder.set_ref(&repo, &listing.commit)?;
        listing.commit
    };
    Ok(folder.snapshot(&commit).join(file))
}

/// Fetches those of `files` that the snapshot does not have yet.
fn get(
    client: &Client,
    folder: &Folder,
    commit: &str,
    files: &[String],
    begin: &dyn Fn(u64) -> Result<()>,
    advance: &dyn Fn(u64),
) -> Result<()> {
    let missing = files.iter().filter(|name| !folder.has(commit, name));
    let missing = missing.map(|name| client.describe(commit, name)).collect::<Result<Vec<_>>>()?;
    if missing.is_empty() {
        return Ok(());
    }
    // A size is bounded, but not how many there are.
    let left = missing.iter().map(|file| file.size - folder.already(file));
    begin(left.fold(0, u64::saturating_add))?;
    for file in &missing {
        let blob = folder.blob(file, client.cancel, |part| client.download(commit, file, part, advance))?;
        folder.link(commit, &file.name, &blob)?;
    }
    Ok(())
}

/// Puts the snapshot's files into `dir` as well: weights as hard links where the file system can (no second copy),
/// the small files as copies, so that editing one does not change the cache.
pub fn export(snapshot: &Snapshot, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    for name in &snapshot.files {
        let from = snapshot.path.join(name);
        let from = from.canonicalize().map_err(|e| Error::io(&from, e))?;
        let (to, temporary) = (dir.join(name), dir.join(format!(".{name}.incomplete")));
        if to.canonicalize().is_ok_and(|to| to == from) {
            continue;
        }
        for stale in [&to, &temporary] {
            match std::fs::remove_file(stale) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(stale, e)),
                _ => {}
            }
        }
        if name.ends_with(".safetensors") && std::fs::hard_link(&from, &to).is_ok() {
            continue;
        }
        let copied = std::fs::copy(&from, &temporary).and_then(|_| std::fs::rename(&temporary, &to));
        if let Err(e) = copied {
            let _ = std::fs::remove_file(&temporary);
            return Err(Error::io(&to, e));
        }
    }
    Ok(())
}

/// Ids and revisions become parts of paths and addresses.
fn check_names(id: &str, revision: &str) -> Result<()> {
    let part = |p: &str| {
        !p.is_empty() && !p.starts_with('.') && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if !matches!(id.split('/').collect::<Vec<_>>()[..], [org, name] if part(org) && part(name)) {
        return Err(Error::request(format!("'{id}' is not a Hub id; write org/name")));
    }
    // What git allows in a name, less what could leave the folder of refs.
    let odd = |c: char| c.is_whitespace() || c.is_control() || "\\?*[~^:%#\"'<>|".contains(c);
    if revision.split('/').any(|p| p.is_empty() || p.starts_with('.')) || revision.contains(odd) {
        return Err(Error::request(format!("'{revision}' is not a branch, tag or commit")));
    }
    Ok(())
}

/// Hexadecimal digits alone: a commit or a hash.
fn is_hex(text: &str, len: std::ops::RangeInclusive<usize>) -> bool {
    len.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_cache_are_refused() {
        for (id, revision) in [("org/name", "main"), ("o-1/n_2.3", "refs/pr/4"), ("a/b", "v1.0-rc+2")] {
            assert!(check_names(id, revision).is_ok(), "{id} {revision}");
        }
        for id in ["name", "a/b/c", "../b", "a/..", "a/", "a b/c", "a/b?c"] {
            assert!(check_names(id, "main").is_err(), "{id}");
        }
        for revision in ["", "..", "a/../b", "/a", "a/", "a b", "a?b", "a%2fb", "a\\b"] {
            assert!(check_names("a/b", revision).is_err(), "{revision}");
        }
    }
}
