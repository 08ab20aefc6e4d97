//! The requests: what a repository holds, what a file is, and its bytes. Everything that may pass by itself (a dropped
//! connection, a busy server) is tried again a bounded number of times; what was received stays.

use super::{HubOptions, choose, is_hex};
use crate::{Error, Result};
use hf_hub::{Repo, api::RepoInfo};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::{Agent, AgentBuilder, RedirectAuthHeaders, Request, Response};

/// Tries in a row that bring less than [`ENOUGH`] before giving up.
const TRIES: u32 = 6;
/// Bytes that make a broken try count as progress.
const ENOUGH: u64 = 1 << 20;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);
/// Without a byte for so long, a connection counts as dropped.
const STALLED: Duration = Duration::from_secs(60);
/// The file list of the largest repositories is a few megabytes.
const MAX_LISTING: u64 = 64 << 20;

pub(super) struct Client<'a> {
    id: &'a str,
    /// What stands between the endpoint and the id in the address of a file.
    kind: &'static str,
    options: &'a HubOptions,
    pub(super) cancel: &'a AtomicBool,
    agent: Agent,
    /// Follows no redirects: the Hub describes a file in the answer that sends to the storage.
    direct: Agent,
}

/// A commit and files of its tree.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) names: BTreeSet<String>,
}

/// A file as the Hub describes it.
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    /// Without quotes; the SHA-256 for large files, git's hash for small ones.
    pub(super) etag: String,
}

impl RemoteFile {
    fn sha256(&self) -> Option<&str> {
        Some(self.etag.as_str()).filter(|etag| is_hex(etag, 64..=64))
    }
}

/// Why a try failed.
enum Trouble {
    /// Trying again is of no use.
    Final(Error),
    /// The network or the server; `wait` where the server said how long.
    Passing { why: String, wait: Option<Duration> },
    /// The server's file ends before the range begins: what was received so far is of other content.
    NoSuchRange,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Final(error)
    }
}

fn passing(why: impl ToString) -> Trouble {
    Trouble::Passing { why: why.to_string(), wait: None }
}

impl<'a> Client<'a> {
    /// For the model or, with `kind` "datasets/", the data set `id`.
    pub(super) fn new(
        id: &'a str,
        kind: &'static str,
        options: &'a HubOptions,
        cancel: &'a AtomicBool,
    ) -> Result<Self> {
        let build = || {
            let builder = AgentBuilder::new()
                .timeout_connect(CONNECT)
                .timeout_read(STALLED)
                .timeout_write(STALLED)
                .user_agent(concat!("quantize/", env!("CARGO_PKG_VERSION")))
                .redirect_auth_headers(RedirectAuthHeaders::SameHost);
            let Some(proxy) = &options.proxy else { return Ok(builder) };
            // The text may hold a password.
            let proxy = ureq::Proxy::new(proxy).map_err(|_| Error::Usage("the proxy's address is not valid".into()))?;
            Ok(builder.proxy(proxy))
        };
        Ok(Self { id, kind, options, cancel, agent: build()?.build(), direct: build()?.redirects(0).build() })
    }

    /// The files of the revision that the options name, as far as `wanted` says so of their paths.
    pub(super) fn listing(&self, repo: &Repo, wanted: fn(&str) -> bool) -> Result<Listing> {
        let url = format!("{}/api/{}", self.options.endpoint, repo.api_url());
        let text = self.persist(|_| {
            let response = self.send(self.agent.get(&url), "the repository or its revision")?;
            let mut text = Vec::new();
            response.into_reader().take(MAX_LISTING).read_to_end(&mut text).map_err(passing)?;
            Ok(text)
        })?;
        let info: RepoInfo = serde_json::from_slice(&text).map_err(|e| {
            let error = Error::bad_input(format!("{url}: the answer is not a Hub's: {e}"));
            error.hint("check HF_ENDPOINT")
        })?;
        if !is_hex(&info.sha, 7..=64) {
            return Err(Error::bad_input(format!("{url}: '{}' is not a commit", info.sha.escape_debug())));
        }
        let names = info.siblings.into_iter().map(|file| file.rfilename).filter(|name| wanted(name)).collect();
        Ok(Listing { commit: info.sha, names })
    }

    /// Size and hash of a file.
    pub(super) fn describe(&self, commit: &str, name: &str) -> Result<RemoteFile> {
        let start = self.url(commit, name);
        self.persist(|_| {
            let mut url = start.clone();
            let mut response = self.send(self.direct.head(&url), name)?;
            // Redirects on the same host (a renamed repository) still lead to the Hub's own answer; the first one to
            // another host carries what is asked for.
            for _ in 0..5 {
                let Some(next) = redirect(&response).filter(|to| to.starts_with('/') && !to.starts_with("//")) else {
                    break;
                };
                url = format!("{}{next}", origin(&url));
                response = self.send(self.direct.head(&url), name)?;
            }
            let etag = header(&response, &["x-linked-etag", "etag"]);
            let mut size = header(&response, &["x-linked-size"]);
            if size.is_none() {
                if redirect(&response).is_some() {
                    response = self.send(self.agent.head(&url), name)?;
                }
                size = header(&response, &["content-length"]);
            }
            let vague = |what: &str| {
                let error = Error::bad_input(format!("{url}: the server states no {what}"));
                Trouble::Final(error.hint("check HF_ENDPOINT: a Hub or a full mirror of one is needed"))
            };
            let etag = etag.or_else(|| header(&response, &["etag"])).ok_or_else(|| vague("ETag"))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
            let size = size.and_then(|s| s.parse().ok()).ok_or_else(|| vague("size"))?;
            if etag.len() > 200 || !choose::plain(&etag) {
                return Err(vague("usable ETag"));
            }
            Ok(RemoteFile { name: name.to_string(), size, etag })
        })
    }

    /// Completes the partial file at `part`. `advance` hears of every byte that arrives.
    pub(super) fn download(&self, commit: &str, file: &RemoteFile, part: &Path, advance: &dyn Fn(u64)) -> Result<()> {
        let url = self.url(commit, &file.name);
        let mut partial = Partial::open(part, file.size)?;
        self.receive(&url, file, &mut partial, advance)?;
        let wrong = |partial: &Partial| file.sha256().is_some_and(|expected| expected != partial.digest());
        if wrong(&partial) {
            // What an earlier run left may have been the bad part, or it was an accident on the way.
            partial.clear()?;
            self.receive(&url, file, &mut partial, advance)?;
        }
        if wrong(&partial) {
            let hash = partial.digest();
            partial.clear()?;
            let what = format!("{}: {}: the content is corrupt: its SHA-256 is {hash}", self.id, file.name);
            let error = Error::bad_input(format!("{what}, the Hub states {}", file.etag));
            return Err(error.hint("run again; if it stays, the mirror or a proxy in between changes the file"));
        }
        partial.file.sync_all().map_err(|e| Error::io(part, e))
    }

    fn receive(&self, url: &str, file: &RemoteFile, partial: &mut Partial, advance: &dyn Fn(u64)) -> Result<()> {
        let mut buffer = vec![0; 1 << 18];
        self.persist(|counted| {
            while partial.len < file.size {
                let request = self.agent.get(url).set("Range", &format!("bytes={}-", partial.len));
                let response = match self.send(request, &file.name) {
                    Err(Trouble::NoSuchRange) => {
                        partial.clear()?;
                        return Err(Trouble::NoSuchRange);
                    }
                    answer => answer?,
                };
                let first = header(&response, &["content-range"]).and_then(|r| range_start(&r));
                match (response.status(), first) {
                    (206, Some(first)) if first == partial.len => {}
                    (206, _) => return Err(passing("the server sent another part of the file")),
                    // A server without ranges begins again.
                    _ => partial.clear()?,
                }
                let mut body = response.into_reader();
                loop {
                    if self.cancel.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted.into());
                    }
                    let n = match body.read(&mut buffer) {
                        Ok(0) if partial.len < file.size => return Err(passing("the connection ended early")),
                        Ok(0) => break,
                        Ok(n) => n,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                        Err(e) => return Err(passing(e)),
                    };
                    if partial.len + n as u64 > file.size {
                        partial.clear()?;
                        let what = format!("{url}: the server sends more than the {} bytes it stated", file.size);
                        return Err(Error::bad_input(what).into());
                    }
                    partial.append(&buffer[..n])?;
                    *counted += n as u64;
                    advance(n as u64);
                }
            }
            Ok(())
        })
    }

    /// Runs `attempt` until it succeeds, fails for good, or fails [`TRIES`] times in a row. The attempt adds the bytes it
    /// received to the number it is given.
    fn persist<T>(&self, mut attempt: impl FnMut(&mut u64) -> Result<T, Trouble>) -> Result<T> {
        let mut failed = 0;
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut received = 0;
            let (why, wait) = match attempt(&mut received) {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing { why, wait }) => (why, wait),
                Err(Trouble::NoSuchRange) => ("the server has no such range of the file".to_string(), None),
            };
            failed = if received >= ENOUGH { 1 } else { failed + 1 };
            if failed == TRIES {
                return Err(Error::Storage(format!(
                    "{}: the download failed {TRIES} times: {why}\n  hint: run the command again, it goes on where it \
                     stopped; --offline uses only what is in the cache",
                    self.id
                )));
            }
            self.pause(wait.unwrap_or(FIRST_WAIT * (1 << (failed - 1))).min(LONGEST_WAIT));
        }
    }

    fn pause(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.cancel.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50).min(time));
        }
    }

    /// Sends the request with the token and sorts the answers.
    fn send(&self, request: Request, what: &str) -> Result<Response, Trouble> {
        // Ranges are of the file itself, not of a compressed form.
        let mut request = request.set("Accept-Encoding", "identity");
        if let Some(token) = &self.options.token {
            request = request.set("Authorization", &format!("Bearer {token}"));
        }
        match request.call() {
            Ok(response) => Ok(response),
            Err(ureq::Error::Status(status @ (408 | 429 | 500..), response)) => {
                let wait = header(&response, &["retry-after"]).and_then(|s| s.parse().ok()).map(Duration::from_secs);
                Err(Trouble::Passing { why: format!("{}: HTTP status {status}", response.get_url()), wait })
            }
            Err(ureq::Error::Status(416, _)) => Err(Trouble::NoSuchRange),
            Err(ureq::Error::Status(status, response)) => Err(self.refusal(status, &response, what).into()),
            Err(ureq::Error::Transport(e)) => Err(passing(e)),
        }
    }

    fn refusal(&self, status: u16, response: &Response, what: &str) -> Error {
        let id = self.id;
        let said = header(response, &["x-error-message"]).filter(|s| s.len() <= 300);
        let said = said.map(|s| format!(" (the server says: {})", s.escape_debug())).unwrap_or_default();
        let denied = |what: &str, hint: &str| Error::Storage(format!("{id}: {what}{said}\n  hint: {hint}"));
        match (status, &self.options.token) {
            (401, None) => denied(
                "access is denied: it needs a token, or there is no such repository",
                "check the id; for a private or gated one set HF_TOKEN (huggingface.co/settings/tokens)",
            ),
            (401, Some(_)) => denied(
                "access is denied: the token was not accepted",
                "set HF_TOKEN to a valid token (huggingface.co/settings/tokens), or unset it for a public repository",
            ),
            (403, None) => denied(
                "access is denied",
                "accept the terms on the repository's page, then set HF_TOKEN to a token of that account",
            ),
            (403, Some(_)) => denied(
                "access is denied to the token's account",
                "accept the terms on the repository's page, or set HF_TOKEN to a token that may read it",
            ),
            (404, _) => {
                let revision = &self.options.revision;
                let what = format!("{id} at revision '{revision}': {what} was not found on {}", self.options.endpoint);
                Error::bad_input(what + &said)
                    .hint("check the spelling of org/name and the revision; private repositories also need HF_TOKEN")
            }
            _ => Error::bad_input(format!("{id}: {}: HTTP status {status}{said}", response.get_url())),
        }
    }

    /// What is not plain in an address is escaped.
    fn url(&self, commit: &str, name: &str) -> String {
        let mut url = format!("{}/{}{}/resolve/{commit}/", self.options.endpoint, self.kind, self.id);
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => url.push(byte.into()),
                _ => url.push_str(&format!("%{byte:02X}")),
            }
        }
        url
    }
}

/// A file that grows, with the hash of what it holds.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    hash: Sha256,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier run left, or an empty file. More than `size` bytes cannot be of the same content.
    fn open(path: &'a Path, size: u64) -> Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path).map_err(|e| Error::io(path, e))?;
        let mut partial = Self { path, file, len: 0, hash: Sha256::new() };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match partial.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    partial.hash.update(&buffer[..n]);
                    partial.len += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
        if partial.len > size {
            partial.clear()?;
        }
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::Storage(format!(
                "{}: the disk is full\n  hint: make room, or set HF_HOME to a folder on another disk; the download goes \
                 on where it stopped",
                self.path.display()
            )),
            _ => Error::io(self.path, e),
        })?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(self.path, e))?;
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    fn digest(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn header(response: &Response, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| response.header(name)).map(str::to_string)
}

fn redirect(response: &Response) -> Option<String> {
    header(response, &["location"]).filter(|_| (300..400).contains(&response.status()))
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    let end = url[host..].find('/').map_or(url.len(), |i| host + i);
    &url[..end]
}

/// The first byte of `bytes 5-9/10`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_addresses_and_ranges() {
        assert_eq!(origin("https://a.b:1/c/d"), "https://a.b:1");
        assert_eq!(origin("https://a.b"), "https://a.b");
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
    }

    #[test]
    fn a_partial_file_goes_on_with_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut whole = Partial::open(&path, 10).unwrap();
        whole.append(b"hello").unwrap();
        drop(whole);
        let mut again = Partial::open(&path, 10).unwrap();
        assert_eq!(again.len, 5);
        again.append(b"world").unwrap();
        assert_eq!(again.digest(), "936a185caaa266bb9cbe981e9e05cb78cd732b0b3280eb944412bb6f8f8f07af");
        assert_eq!(Partial::open(&path, 9).unwrap().len, 0);
    }
}
