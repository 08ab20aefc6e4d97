//! Files put into a repository of the Hub with one commit: the Hub says which of them it keeps as large files, these go
//! to the storage that it names (those that are there already do not), and a commit lists all. A run that was cut short
//! begins again and sends only what did not arrive. The token goes to the endpoint alone.

use super::client::{Client, Trouble, header, passing, redirect};
use super::{HubOptions, Watch, check_names};
use crate::digest::hex;
use crate::{Error, Result};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Files that the Hub is asked about at once.
const AT_ONCE: usize = 256;
/// Bytes of a file by which the Hub tells what it is.
const SAMPLE: usize = 512;
/// Small files are sent within the commit, so they are held in memory.
const LARGEST_REGULAR: u64 = 64 << 20;
/// No answer is larger.
const MAX_ANSWER: u64 = 64 << 20;
const LFS: &str = "application/vnd.git-lfs+json";

/// A file to be put into a repository.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Its path there.
    pub path: String,
    pub content: Content,
    pub size: u64,
    pub sha256: String,
}

#[derive(Clone, Debug)]
pub enum Content {
    File(PathBuf),
    Text(String),
}

/// Where files go.
#[derive(Clone, Debug)]
pub struct Destination {
    pub id: String,
    /// Whether a repository that is made is private.
    pub private: bool,
    /// Propose the commit instead of making it.
    pub create_pr: bool,
    /// Of the commit.
    pub message: String,
}

/// What a repository lacks.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    /// Whether the repository is there.
    pub exists: bool,
    /// Whether the revision is.
    pub revision_exists: bool,
    /// Those of the files that it does not have, by their place in the list.
    pub missing: Vec<usize>,
}

/// What became of an upload.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// `None` where there was nothing to commit.
    pub commit: Option<String>,
    /// The page of the commit, or of its proposal.
    pub url: Option<String>,
    /// Files of the commit.
    pub files: Vec<String>,
    /// Bytes that were sent to the storage.
    pub bytes: u64,
}

impl Content {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            Content::Text(text) => Ok(text.clone().into_bytes()),
            Content::File(path) => crate::input::read(path),
        }
    }

    fn sample(&self) -> Result<Vec<u8>> {
        match self {
            Content::Text(text) => Ok(text.bytes().take(SAMPLE).collect()),
            Content::File(path) => {
                let file = File::open(path).map_err(|e| Error::io(path, e))?;
                let mut bytes = Vec::new();
                file.take(SAMPLE as u64).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
                Ok(bytes)
            }
        }
    }

    fn open(&self, from: u64) -> Result<Box<dyn Read>> {
        match self {
            Content::Text(text) => {
                Ok(Box::new(std::io::Cursor::new(text.clone().into_bytes().split_off(from as usize))))
            }
            Content::File(path) => {
                let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
                file.seek(SeekFrom::Start(from)).map_err(|e| Error::io(path, e))?;
                Ok(Box::new(file))
            }
        }
    }

    /// The hash that git has of it.
    fn git_hash(&self, size: u64) -> Result<String> {
        let mut hash = Sha1::new();
        hash.update(format!("blob {size}\0"));
        let mut reader = self.open(0)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hex(&hash.finalize())),
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::storage(format!("reading a file to upload: {e}"))),
            }
        }
    }
}

/// What the repository `id` lacks of `files`. Nothing is written there.
///
/// Errors: `Request` for an impossible id or revision; `Storage` when access is denied or the network fails; `BadInput` for
/// an answer that is no Hub's; `Interrupted`.
pub fn difference(id: &str, files: &[Upload], options: &HubOptions, watch: &Watch) -> Result<Difference> {
    check_names(id, &options.revision)?;
    let client = Client::new(id, "", options, watch.cancel)?.writing();
    let Some(tree) = tree(&client)? else {
        let exists = options.revision != "main" && exists(&client)?;
        return Ok(Difference { exists, revision_exists: false, missing: (0..files.len()).collect() });
    };
    let mut missing = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let same = match tree.get(&file.path) {
            Some(there) if there.size != file.size => false,
            Some(There { large: Some(sha256), .. }) => sha256.eq_ignore_ascii_case(&file.sha256),
            Some(there) => there.git.eq_ignore_ascii_case(&file.content.git_hash(file.size)?),
            None => false,
        };
        if !same {
            missing.push(i);
        }
    }
    Ok(Difference { exists: true, revision_exists: true, missing })
}

/// Puts those of `files` that are not there into the repository, with one commit. Makes the repository and the branch
/// where they are not there.
///
/// Errors: as [`difference`].
pub fn upload(to: &Destination, files: &[Upload], options: &HubOptions, watch: &Watch) -> Result<Sent> {
    let lacks = difference(&to.id, files, options, watch)?;
    if lacks.missing.is_empty() {
        return Ok(Sent::default());
    }
    let client = Client::new(&to.id, "", options, watch.cancel)?.writing();
    if !lacks.exists {
        create(&client, to)?;
    }
    if !lacks.revision_exists && options.revision != "main" {
        let url = client.api("branch");
        client.post_json(&url, &json!({}), "the branch", &[409])?;
    }
    let files: Vec<&Upload> = lacks.missing.iter().map(|i| &files[*i]).collect();
    let large = large(&client, &files)?;
    let (large, regular): (Vec<_>, Vec<_>) = files.iter().zip(large).partition(|(_, large)| *large);
    let large: Vec<&Upload> = large.into_iter().map(|(file, _)| *file).collect();
    let regular: Vec<&Upload> = regular.into_iter().map(|(file, _)| *file).collect();
    let mut sent = Sent { files: files.iter().map(|f| f.path.clone()).collect(), ..Sent::default() };
    let actions = actions(&client, &large)?;
    (watch.begin)(actions.iter().map(|(file, _)| file.size).sum())?;
    for (file, object) in &actions {
        store(&client, file, object, watch)?;
        sent.bytes += file.size;
    }
    let answer = commit(&client, to, &large, &regular, &files)?;
    let text = |key: &str| answer[key].as_str().map(String::from);
    sent.commit = text("commitOid");
    sent.url = text("pullRequestUrl").or_else(|| text("commitUrl"));
    Ok(sent)
}

/// A file of a repository.
struct There {
    size: u64,
    git: String,
    /// The SHA-256 of a large one.
    large: Option<String>,
}

/// The files of the revision; `None` where the Hub knows no such repository or revision.
fn tree(client: &Client) -> Result<Option<BTreeMap<String, There>>> {
    let mut found = BTreeMap::new();
    let mut next = Some(client.api("tree") + "?recursive=true");
    while let Some(url) = next {
        let page = client.get_page(&url)?;
        let Some((rows, link)) = page else { return Ok(None) };
        for row in rows.as_array().into_iter().flatten().filter(|row| row["type"] == "file") {
            let (Some(path), Some(git)) = (row["path"].as_str(), row["oid"].as_str()) else { continue };
            let large = row["lfs"]["oid"].as_str().map(String::from);
            let size = row["lfs"]["size"].as_u64().or(row["size"].as_u64()).unwrap_or(0);
            found.insert(path.to_string(), There { size, git: git.to_string(), large });
        }
        next = link;
    }
    Ok(Some(found))
}

fn exists(client: &Client) -> Result<bool> {
    client.get_page(&client.of_repo()).map(|page| page.is_some())
}

fn create(client: &Client, to: &Destination) -> Result<()> {
    let (org, name) = to.id.split_once('/').unwrap_or_default();
    let url = format!("{}/api/repos/create", client.endpoint());
    let body = json!({ "name": name, "organization": org, "type": "model", "private": to.private });
    client.post_json(&url, &body, "the repository", &[409]).map(|_| ())
}

/// Which files the Hub keeps as large ones.
fn large(client: &Client, files: &[&Upload]) -> Result<Vec<bool>> {
    let mut all = Vec::new();
    for files in files.chunks(AT_ONCE) {
        let row = |file: &&Upload| {
            Ok(json!({ "path": file.path, "sample": base64(&file.content.sample()?), "size": file.size }))
        };
        let rows = files.iter().map(row).collect::<Result<Vec<Value>>>()?;
        let url = client.api("preupload");
        let answer = client.post_json(&url, &json!({ "files": rows }), "the files", &[])?;
        for file in files {
            let row = answer["files"].as_array().into_iter().flatten().find(|row| row["path"] == file.path.as_str());
            let mode = row.and_then(|row| row["uploadMode"].as_str());
            match mode {
                Some("lfs") => all.push(true),
                Some("regular") if file.size <= LARGEST_REGULAR => all.push(false),
                _ => {
                    let what = format!("{url}: the answer does not say how {} is to be sent", file.path);
                    return Err(Error::bad_input(what).hint("check HF_ENDPOINT: a Hub is needed"));
                }
            }
        }
    }
    Ok(all)
}

/// What is to be done for the large files that the storage does not have.
fn actions<'a>(client: &Client, files: &[&'a Upload]) -> Result<Vec<(&'a Upload, Value)>> {
    let mut all = Vec::new();
    for files in files.chunks(AT_ONCE) {
        let objects: Vec<Value> = files.iter().map(|f| json!({ "oid": f.sha256, "size": f.size })).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", "objects": objects,
            "ref": { "name": client.revision() },
        });
        let url = format!("{}.git/info/lfs/objects/batch", client.page());
        let answer = client.post(&url, LFS, body.to_string().as_bytes(), "the storage", &[])?;
        for file in files {
            let rows = answer["objects"].as_array().into_iter().flatten();
            let object = rows.into_iter().find(|row| row["oid"] == file.sha256.as_str());
            match object {
                Some(object) if object["error"].is_object() => {
                    let said = object["error"]["message"].as_str().unwrap_or_default().escape_debug().to_string();
                    return Err(Error::storage(format!("{}: the Hub refused it: {said}", file.path)));
                }
                Some(object) if object["actions"]["upload"].is_object() => all.push((*file, object.clone())),
                Some(_) => {}
                None => return Err(Error::bad_input(format!("{url}: the answer does not mention {}", file.path))),
            }
        }
    }
    Ok(all)
}

/// Sends one large file to the storage.
fn store(client: &Client, file: &Upload, object: &Value, watch: &Watch) -> Result<()> {
    let action = &object["actions"]["upload"];
    let text = |value: &Value| value.as_str().map(String::from).or_else(|| value.as_u64().map(|n| n.to_string()));
    let bad = |what: &str| Error::bad_input(format!("{}: the Hub's answer {what}", file.path));
    let href = action["href"].as_str().ok_or_else(|| bad("gives no upload address"))?;
    let headers: Vec<(String, String)> = action["header"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect();
    let chunk = headers.iter().find(|(name, _)| name == "chunk_size").map(|(_, size)| size.parse::<u64>());
    let send = |url: &str, from: u64, len: u64, headers: &[(String, String)]| {
        client.put(url, headers, len, &file.path, || {
            let reader = file.content.open(from)?.take(len);
            Ok(Box::new(Watched { reader: Box::new(reader), cancel: watch.cancel, advance: watch.advance }))
        })
    };
    match chunk {
        None => {
            send(href, 0, file.size, &headers)?;
        }
        Some(chunk) => {
            let chunk = chunk.ok().filter(|n| *n > 0).ok_or_else(|| bad("gives no part size"))?;
            let mut parts = Vec::new();
            for no in 1..=file.size.div_ceil(chunk) {
                let place = headers.iter().find(|(name, _)| name.parse() == Ok(no)).map(|(_, url)| url);
                let url = place.ok_or_else(|| bad(&format!("gives no upload address for part {no}")))?;
                let from = (no - 1) * chunk;
                let etag = send(url, from, chunk.min(file.size - from), &[])?;
                let etag = etag.ok_or_else(|| bad(&format!("states no ETag of part {no}")))?;
                parts.push(json!({ "partNumber": no, "etag": etag }));
            }
            let body = json!({ "oid": file.sha256, "parts": parts }).to_string();
            client.post(href, LFS, body.as_bytes(), &file.path, &[])?;
        }
    }
    if let Some(verify) = object["actions"]["verify"]["href"].as_str() {
        let body = json!({ "oid": file.sha256, "size": file.size }).to_string();
        client.post(verify, LFS, body.as_bytes(), &file.path, &[])?;
    }
    Ok(())
}

/// Makes the commit. Where an answer is lost, the next try looks whether it was made.
fn commit(client: &Client, to: &Destination, large: &[&Upload], regular: &[&Upload], all: &[&Upload]) -> Result<Value> {
    let mut lines = vec![json!({ "key": "header", "value": { "summary": to.message, "description": "" } })];
    for file in regular {
        let content = base64(&file.content.read()?);
        lines.push(json!({ "key": "file", "value": { "path": file.path, "content": content, "encoding": "base64" } }));
    }
    for file in large {
        let value = json!({ "path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.size });
        lines.push(json!({ "key": "lfsFile", "value": value }));
    }
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let url = client.api("commit") + if to.create_pr { "?create_pr=1" } else { "" };
    let mut tries = 0;
    client.persist(|_| {
        tries += 1;
        if tries > 1 && !to.create_pr && is_there(client, all)? {
            return Ok(json!({}));
        }
        client.try_post(&url, "application/x-ndjson", body.as_bytes(), "the commit", &[])
    })
}

fn is_there(client: &Client, files: &[&Upload]) -> Result<bool> {
    let Some(tree) = tree(client)? else { return Ok(false) };
    for file in files {
        let same = match tree.get(&file.path) {
            Some(There { large: Some(sha256), .. }) => sha256.eq_ignore_ascii_case(&file.sha256),
            Some(there) => there.git.eq_ignore_ascii_case(&file.content.git_hash(file.size)?),
            None => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Bytes on their way: stops when it is asked to, and tells how many went.
struct Watched<'a> {
    reader: Box<dyn Read>,
    cancel: &'a std::sync::atomic::AtomicBool,
    advance: &'a dyn Fn(u64),
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("interrupted"));
        }
        let n = self.reader.read(buffer)?;
        (self.advance)(n as u64);
        Ok(n)
    }
}

impl<'a> Client<'a> {
    fn endpoint(&self) -> &str {
        &self.options.endpoint
    }

    fn revision(&self) -> &str {
        &self.options.revision
    }

    /// The repository's page.
    fn page(&self) -> String {
        format!("{}/{}", self.options.endpoint, self.id)
    }

    fn of_repo(&self) -> String {
        format!("{}/api/models/{}", self.options.endpoint, self.id)
    }

    /// The address of what is done at the revision.
    fn api(&self, what: &str) -> String {
        format!("{}/{what}/{}", self.of_repo(), self.options.revision.replace('/', "%2F"))
    }

    /// JSON and the address of the next page; `None` where there is no such thing.
    fn get_page(&self, url: &str) -> Result<Option<(Value, Option<String>)>> {
        self.persist(|_| {
            let response = match self.send("GET", url, None, "the repository") {
                // Without a token the Hub does not say whether there is one.
                Err(Trouble::Absent(_)) => return Ok(None),
                other => other?,
            };
            if let Some(to) = redirect(&response) {
                return Err(moved(self.id, &to).into());
            }
            let link = header(&response, &["link"]).and_then(|link| {
                let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
                let url = next.trim().strip_prefix('<')?.split('>').next()?.to_string();
                url.starts_with(&format!("{}/", self.options.endpoint)).then_some(url)
            });
            Ok(Some((answer(response, url)?, link)))
        })
    }

    fn post_json(&self, url: &str, body: &Value, what: &str, fine: &[u16]) -> Result<Value> {
        self.post(url, "application/json", body.to_string().as_bytes(), what, fine)
    }

    /// `fine`: statuses that are no failure, with no answer.
    fn post(&self, url: &str, kind: &str, body: &[u8], what: &str, fine: &[u16]) -> Result<Value> {
        self.persist(|_| self.try_post(url, kind, body, what, fine))
    }

    fn try_post(&self, url: &str, kind: &str, body: &[u8], what: &str, fine: &[u16]) -> Result<Value, Trouble> {
        let mut request = self.request("POST", url).set("Content-Type", kind);
        if kind == LFS {
            request = request.set("Accept", LFS);
        }
        match request.send_bytes(body) {
            Err(ureq::Error::Status(status, _)) if fine.contains(&status) => Ok(Value::Null),
            sent => {
                let response = self.sorted(sent, what)?;
                match redirect(&response) {
                    Some(to) => Err(moved(self.id, &to).into()),
                    None => answer(response, url),
                }
            }
        }
    }

    /// Sends bytes to the storage; its ETag of them.
    fn put<'b>(
        &self,
        url: &str,
        headers: &[(String, String)],
        len: u64,
        what: &str,
        open: impl Fn() -> Result<Box<dyn Read + 'b>>,
    ) -> Result<Option<String>> {
        self.persist(|_| {
            let mut request = self.request("PUT", url).set("Content-Length", &len.to_string());
            for (name, value) in headers {
                request = request.set(name, value);
            }
            let response = self.sorted(request.send(open()?), what)?;
            match redirect(&response) {
                Some(to) => Err(moved(what, &to).into()),
                None => Ok(header(&response, &["etag"])),
            }
        })
    }
}

fn moved(what: &str, to: &str) -> Error {
    let to: String = to.chars().take(200).collect();
    Error::storage(format!("{what}: the server redirects to '{}'", to.escape_debug()))
        .hint("use the repository's current name, and check HF_ENDPOINT")
}

/// The JSON of an answer; null where it is empty.
fn answer(response: ureq::Response, url: &str) -> Result<Value, Trouble> {
    let mut text = Vec::new();
    response.into_reader().take(MAX_ANSWER).read_to_end(&mut text).map_err(passing)?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&text).map_err(|e| {
        Trouble::Final(Error::bad_input(format!("{url}: the answer is not a Hub's: {e}")).hint("check HF_ENDPOINT"))
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let n = part.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - part.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= part.len() { digit } else { '=' });
        }
    }
    out
}

/// The token that writing needs.
///
/// Errors: `Storage` where there is none.
pub fn check_token(options: &HubOptions) -> Result<()> {
    match options.token {
        Some(_) => Ok(()),
        None => Err(Error::storage("uploading to the Hub needs a token")
            .hint("set HF_TOKEN to a token that may write (huggingface.co/settings/tokens), or run `hf auth login`")),
    }
}

/// A file as it is on the disk.
///
/// Errors: `Io`.
pub fn of_file(root: &Path, path: &str, sha256: String) -> Result<Upload> {
    let place = root.join(path);
    let size = place.metadata().map_err(|e| Error::io(&place, e))?.len();
    Ok(Upload { path: path.to_string(), content: Content::File(place), size, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_everywhere() {
        for (text, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), want);
        }
        let hash = Content::Text("hello\n".into()).git_hash(6).unwrap();
        assert_eq!(hash, "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
