//! The requests: what a repository holds, what a file is, and its bytes. Everything that may pass by itself (a dropped
//! connection, a busy server) is tried again a bounded number of times; what was received stays.

use super::{HubOptions, choose, is_hex, tls};
use crate::clock::{now, retry_after};
use crate::digest::hex;
use crate::error::Hint;
use crate::{Error, Result};
use hf_hub::{Repo, api::RepoInfo};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::{Agent, AgentBuilder, Response};

/// Tries in a row that bring less than [`ENOUGH`] before giving up.
const TRIES: u32 = 6;
/// Bytes that make a broken try count as progress.
const ENOUGH: u64 = 1 << 20;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);
/// Without a byte for so long, a connection counts as dropped.
const STALLED: Duration = Duration::from_secs(60);
/// A connection that brings less than [`ENOUGH`] in so long counts as dropped too.
const SLOWEST: Duration = Duration::from_secs(600);
/// Redirects in a row.
const HOPS: usize = 10;
/// No file is larger; sizes that are must not wrap where they are added up.
const MAX_SIZE: u64 = 1 << 48;
/// The file list of the largest repositories is a few megabytes.
const MAX_LISTING: u64 = 64 << 20;

pub(super) struct Client<'a> {
    pub(super) id: &'a str,
    /// What stands between the endpoint and the id in the address of a file.
    kind: &'static str,
    pub(super) options: &'a HubOptions,
    /// Whether files are sent rather than fetched.
    writes: bool,
    pub(super) cancel: &'a AtomicBool,
    /// Follows no redirects by itself: the Hub describes a file in the answer that sends to the storage, and the token
    /// goes to the endpoint alone.
    agent: Agent,
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
    /// Whether the file at `part`, with this SHA-256, is not what the Hub says. For small files it states git's hash of a
    /// blob; some mirrors state the plain SHA-1 there. Other ETags say nothing.
    fn differs(&self, part: &Path, sha256: &str) -> Result<bool> {
        if is_hex(&self.etag, 64..=64) {
            return Ok(!self.etag.eq_ignore_ascii_case(sha256));
        }
        if !is_hex(&self.etag, 40..=40) {
            return Ok(false);
        }
        let (mut git, mut plain) = (Sha1::new(), Sha1::new());
        git.update(format!("blob {}\0", self.size));
        let mut file = File::open(part).map_err(|e| Error::io(part, e))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => [&mut git, &mut plain].into_iter().for_each(|hash| hash.update(&buffer[..n])),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(part, e)),
            }
        }
        Ok([git, plain].into_iter().all(|hash| !self.etag.eq_ignore_ascii_case(&hex(&hash.finalize()))))
    }
}

/// Why a try failed.
pub(super) enum Trouble {
    /// Trying again is of no use.
    Final(Error),
    /// The network or the server; `wait` where the server said how long.
    Passing { why: String, wait: Option<Duration> },
    /// The server's file ends before the range begins: what was received so far is of other content.
    NoSuchRange,
    /// There is no such thing, or none that may be seen.
    Absent(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Final(error)
    }
}

pub(super) fn passing(why: impl ToString) -> Trouble {
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
                .redirects(0);
            let builder = match &options.certificates {
                Some(path) => builder.tls_config(tls::trusting(path)?),
                None => builder,
            };
            let Some(proxy) = &options.proxy else { return Ok(builder) };
            // The text may hold a password.
            let proxy = ureq::Proxy::new(proxy).map_err(|_| Error::request("the proxy's address is not valid"))?;
            Ok(builder.proxy(proxy))
        };
        Ok(Self { id, kind, options, writes: false, cancel, agent: build()?.build() })
    }

    /// The same, to send files.
    pub(super) fn writing(self) -> Self {
        Self { writes: true, ..self }
    }

    /// The files of the revision that the options name, as far as `wanted` says so of their paths.
    pub(super) fn listing(&self, repo: &Repo, wanted: fn(&str) -> bool) -> Result<Listing> {
        let url = format!("{}/api/{}", self.options.endpoint, repo.api_url());
        let text = self.persist(|_| {
            let response = self.follow("GET", &url, None, "the repository or its revision")?;
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
            let mut response = self.send("HEAD", &url, None, name)?;
            // Redirects on the same host (a renamed repository) still lead to the Hub's own answer; the first one to
            // another host carries what is asked for.
            for _ in 0..5 {
                let Some(next) = redirect(&response).filter(|to| to.starts_with('/') && !to.starts_with("//")) else {
                    break;
                };
                url = format!("{}{next}", origin(&url));
                response = self.send("HEAD", &url, None, name)?;
            }
            let etag = header(&response, &["x-linked-etag", "etag"]);
            let mut size = header(&response, &["x-linked-size"]);
            if size.is_none() {
                if redirect(&response).is_some() {
                    response = self.follow("HEAD", &url, None, name)?;
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
            if size > MAX_SIZE {
                let what = format!("{url}: the server states a size of {size} bytes; no file has more than {MAX_SIZE}");
                return Err(Error::bad_input(what).into());
            }
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
        if file.differs(part, &partial.digest())? {
            // What an earlier run left may have been the bad part, or it was an accident on the way.
            partial.clear()?;
            self.receive(&url, file, &mut partial, advance)?;
        }
        if file.differs(part, &partial.digest())? {
            let hash = partial.digest();
            partial.clear()?;
            let what = format!("{}: {}: the content is corrupt: its SHA-256 is {hash}", self.id, file.name);
            let error = Error::bad_input(format!("{what}, the Hub states the hash {}", file.etag));
            return Err(error.hint("run again; if it stays, the mirror or a proxy in between changes the file"));
        }
        partial.file.sync_all().map_err(|e| Error::io(part, e))
    }

    fn receive(&self, url: &str, file: &RemoteFile, partial: &mut Partial, advance: &dyn Fn(u64)) -> Result<()> {
        let mut buffer = vec![0; 1 << 18];
        // Only what no try had before is progress: a server without ranges may begin again for ever.
        let mut most = partial.len;
        self.persist(|counted| {
            while partial.len < file.size {
                let range = format!("bytes={}-", partial.len);
                let response = match self.follow("GET", url, Some(&range), &file.name) {
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
                let (mut since, mut brought) = (Instant::now(), 0);
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
                    *counted += partial.len.saturating_sub(most);
                    most = most.max(partial.len);
                    advance(n as u64);
                    brought += n as u64;
                    if since.elapsed() > SLOWEST {
                        if brought < ENOUGH {
                            return Err(passing(format!("only {brought} bytes came in {} s", SLOWEST.as_secs())));
                        }
                        (since, brought) = (Instant::now(), 0);
                    }
                }
            }
            Ok(())
        })
    }

    /// Runs `attempt` until it succeeds, fails for good, or fails [`TRIES`] times in a row. The attempt adds the bytes it
    /// received to the number it is given.
    pub(super) fn persist<T>(&self, mut attempt: impl FnMut(&mut u64) -> Result<T, Trouble>) -> Result<T> {
        let mut failed = 0;
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut received = 0;
            let (why, wait) = match attempt(&mut received) {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error) | Trouble::Absent(error)) => return Err(error),
                Err(Trouble::Passing { why, wait }) => (why, wait),
                Err(Trouble::NoSuchRange) => ("the server has no such range of the file".to_string(), None),
            };
            failed = if received >= ENOUGH { 1 } else { failed + 1 };
            if failed == TRIES && self.writes {
                let what = format!("{}: sending failed {TRIES} times: {why}", self.id);
                return Err(Error::storage(what).hint("run the command again; what has arrived is not sent twice"));
            }
            if failed == TRIES {
                let what = format!("{}: the download failed {TRIES} times: {why}", self.id);
                return Err(Error::storage(what).hint(Hint::DownloadAgain));
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

    /// Sends the request where redirects lead.
    fn follow(&self, method: &str, url: &str, range: Option<&str>, what: &str) -> Result<Response, Trouble> {
        let mut url = url.to_string();
        for _ in 0..HOPS {
            let response = self.send(method, &url, range, what)?;
            let Some(to) = redirect(&response) else { return Ok(response) };
            url = resolve(&url, &to).ok_or_else(|| {
                let shown: String = to.chars().take(200).collect();
                Error::bad_input(format!("{url}: the server redirects to '{shown}', which is no http address"))
                    .hint("check HF_ENDPOINT, and what stands between it and this machine")
            })?;
        }
        let what = format!("{}: {what}: more than {HOPS} redirects in a row", self.id);
        Err(Error::bad_input(what).hint("check HF_ENDPOINT").into())
    }

    /// Sends one request without a body.
    pub(super) fn send(&self, method: &str, url: &str, range: Option<&str>, what: &str) -> Result<Response, Trouble> {
        let mut request = self.request(method, url);
        if let Some(range) = range {
            request = request.set("Range", range);
        }
        self.sorted(request.call(), what)
    }

    /// A request, with the token where it goes to the endpoint itself.
    pub(super) fn request(&self, method: &str, url: &str) -> ureq::Request {
        // Ranges are of the file itself, not of a compressed form.
        let request = self.agent.request(method, url).set("Accept-Encoding", "identity");
        let own = origin(url).eq_ignore_ascii_case(origin(&self.options.endpoint));
        match self.options.token.as_ref().filter(|_| own) {
            Some(token) => request.set("Authorization", &format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sorts the answers.
    pub(super) fn sorted(&self, answer: Result<Response, ureq::Error>, what: &str) -> Result<Response, Trouble> {
        match answer {
            Ok(response) => Ok(response),
            Err(ureq::Error::Status(status @ (408 | 429 | 500..), response)) => {
                let wait = header(&response, &["retry-after"]).and_then(|text| retry_after(&text, now()));
                Err(Trouble::Passing { why: format!("{}: HTTP status {status}", response.get_url()), wait })
            }
            Err(ureq::Error::Status(416, _)) if !self.writes => Err(Trouble::NoSuchRange),
            Err(ureq::Error::Status(status, response))
                if self.writes && (status == 404 || (status == 401 && self.options.token.is_none())) =>
            {
                Err(Trouble::Absent(self.refusal(status, &response, what)))
            }
            Err(ureq::Error::Status(status, response)) => Err(self.refusal(status, &response, what).into()),
            Err(ureq::Error::Transport(e)) => {
                // Addresses may be of any length.
                let why: String = e.to_string().chars().take(500).collect();
                match e.kind() {
                    _ if tls::is_refusal(&why) => Err(tls::refused(self.id, &why).into()),
                    ureq::ErrorKind::InvalidUrl | ureq::ErrorKind::UnknownScheme => {
                        Err(Error::bad_input(format!("{}: {what}: {why}", self.id)).into())
                    }
                    _ => Err(passing(why)),
                }
            }
        }
    }

    fn refusal(&self, status: u16, response: &Response, what: &str) -> Error {
        let id = self.id;
        let said = header(response, &["x-error-message"]).filter(|s| s.len() <= 300);
        let said = said.map(|s| format!(" (the server says: {})", s.escape_debug())).unwrap_or_default();
        let denied = |what: &str, hint: &str| Error::storage(format!("{id}: {what}{said}")).hint(hint);
        match (status, &self.options.token) {
            (401, None) => denied(
                "access is denied: it needs a token, or there is no such repository",
                "check the id; for a private or gated one set HF_TOKEN (huggingface.co/settings/tokens)",
            ),
            (401 | 403, Some(_)) if self.writes => denied(
                "access is denied: the token was not accepted, or may not write there",
                "set HF_TOKEN to a token that may write to this repository (huggingface.co/settings/tokens)",
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
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::storage(format!("{}: the disk is full", self.path.display())).hint(
                    "make room, or set HF_HOME to a folder on another disk; the download resumes where it stopped",
                )
            }
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
        hex(&self.hash.clone().finalize())
    }
}

pub(super) fn header(response: &Response, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| response.header(name)).map(str::to_string)
}

pub(super) fn redirect(response: &Response) -> Option<String> {
    header(response, &["location"]).filter(|_| (300..400).contains(&response.status()))
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    let end = url[host..].find('/').map_or(url.len(), |i| host + i);
    &url[..end]
}

/// The address that a redirect from `url` leads to; `None` for any that is not http or https.
fn resolve(url: &str, to: &str) -> Option<String> {
    let scheme = url.split_once(':')?.0;
    let address = if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{}{to}", origin(url))
    } else if to.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
        to.to_string()
    } else {
        let path = url.split(['?', '#']).next()?;
        let folder = path.rfind('/').filter(|&i| i >= origin(url).len())?;
        format!("{}/{to}", &path[..folder])
    };
    let lower = address.get(..8)?.to_ascii_lowercase();
    (lower.starts_with("http://") || lower.starts_with("https://")).then_some(address)
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
    fn redirects_lead_to_http_alone() {
        let from = "https://a.b:1/c/d?e";
        for (to, expected) in [
            ("/x?y", Some("https://a.b:1/x?y")),
            ("//c.d/x", Some("https://c.d/x")),
            ("x/y", Some("https://a.b:1/c/x/y")),
            ("HTTP://c.d/x", Some("HTTP://c.d/x")),
            ("file:///etc/hostname", None),
            ("ftp://a.b/x", None),
            ("data:x", None),
        ] {
            assert_eq!(resolve(from, to).as_deref(), expected, "{to}");
        }
    }

    #[test]
    fn small_files_are_checked_by_the_hash_of_git() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        let differs = |etag: &str| {
            let file = RemoteFile { name: "x".into(), size: 6, etag: etag.into() };
            file.differs(&path, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap()
        };
        // `git hash-object`, and sha1sum.
        assert!(!differs("ce013625030ba8dba906f756967f9e9ca394464a"));
        assert!(!differs("f572d396fae9206628714fb2ce00f72e94f2258f"));
        assert!(differs("ce013625030ba8dba906f756967f9e9ca394464b"));
        assert!(!differs("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"));
        assert!(differs("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be04"));
        assert!(!differs("some-etag"));
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
