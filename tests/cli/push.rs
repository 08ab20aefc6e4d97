//! Releases sent to a local server that speaks the Hub's API for writing: repositories, lists of files, what is a large
//! file, the storage (whole and in parts, on another host), commits. It can refuse, be busy, and drop connections.

use crate::common::{fails, names, ok, quantize, repo, sha256, stderr, tiny};
use crate::tls;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

const TOKEN: &str = "hf_right";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Larger files go to the storage in parts of this.
const PART: usize = 2_000_000;

#[derive(Default)]
struct State {
    exists: bool,
    private: bool,
    branches: Vec<String>,
    /// What is in the repository: large files by their SHA-256, small ones as they are.
    large: BTreeMap<String, String>,
    small: BTreeMap<String, Vec<u8>>,
    /// What is in the storage.
    storage: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<(String, usize), Vec<u8>>,
    commits: usize,
    proposals: usize,
    /// Requests as `METHOD path`, and whether each had the token.
    seen: Vec<(String, bool)>,
    /// Answer so many commits with 429, so many requests to the storage by closing the connection.
    busy: usize,
    drops: usize,
    /// Make the commit and close the connection instead of answering, so many times.
    lost_answers: usize,
    /// The status of every request for writing.
    refuse: Option<&'static str>,
    /// The port at which this server speaks TLS, where it is asked there.
    front: Option<u16>,
    /// Where requests for the repository are sent on to.
    moved: Option<String>,
    /// Keep half of what is sent to the storage.
    truncates: bool,
}

struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
    home: tempfile::TempDir,
}

impl Hub {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || drop(answer(stream, port, &shared)));
            }
        });
        Self { port, state, home: tempfile::tempdir().unwrap() }
    }

    /// With a release of two files and a folder.
    fn with_release(state: State) -> Self {
        let hub = Self::start(state);
        let args = [
            "release",
            &tiny(),
            "--to",
            "q8_0,q2_k,nf4",
            "--rounding",
            "nearest",
            "--no-check",
            "-o",
            "out",
            "--quiet",
        ];
        ok(quantize(hub.home.path(), &args));
        hub
    }

    fn push_as(&self, token: Option<&str>, args: &[&str]) -> Output {
        self.run_as(token, &[&["push", "out", "org/tiny"], args].concat())
    }

    fn run_as(&self, token: Option<&str>, args: &[&str]) -> Output {
        self.command(token, args).output().unwrap()
    }

    fn command(&self, token: Option<&str>, args: &[&str]) -> std::process::Command {
        let mut command = crate::common::command(self.home.path(), args);
        for name in tls::VARIABLES.iter().chain(&[
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ]) {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
            .env("HF_HOME", self.home.path().join("hf"));
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        command
    }

    fn push(&self, args: &[&str]) -> Output {
        self.push_as(Some(TOKEN), args)
    }

    /// Commits, proposals and requests until now.
    fn counts(&self) -> (usize, usize, usize) {
        let state = self.state();
        (state.commits, state.proposals, state.seen.len())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Everything of the release is in the repository, byte for byte; the card has its name.
    #[track_caller]
    fn assert_whole(&self) {
        let state = self.state();
        let folder = self.home.path().join("out");
        let mut files = 0;
        for path in walk(&folder, &folder) {
            let here = std::fs::read(folder.join(&path)).unwrap();
            let there = match state.large.get(&path) {
                Some(oid) => state.storage[oid].clone(),
                None => state.small.get(&path).unwrap_or_else(|| panic!("{path} is not there")).clone(),
            };
            match path.ends_with("README.md") {
                true => {
                    let card = String::from_utf8(there).unwrap();
                    assert!(card.contains("org/tiny") && !card.contains("YOUR-NAME"), "{card}");
                }
                false => assert!(here == there, "{path}"),
            }
            files += 1;
        }
        assert_eq!(files, state.large.len() + state.small.len());
        // The token goes to the endpoint alone.
        for (request, token) in &state.seen {
            assert_eq!(*token, !request.contains("/storage/"), "{request}");
        }
    }
}

fn walk(root: &Path, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(root, &path)),
            false => found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_string()),
        }
    }
    found
}

fn git_hash(bytes: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn unbase64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut out = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let n = four.iter().filter(|c| **c != b'=').count();
        let value = four.iter().fold(0u32, |v, c| v << 6 | if *c == b'=' { 0 } else { u32::from(digit(*c)) });
        out.extend(&value.to_be_bytes()[1..n]);
    }
    out
}

/// One request on one connection.
fn answer(mut stream: TcpStream, port: u16, shared: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length, mut token) = (String::new(), 0, None);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => token = value.strip_prefix("Bearer ").map(String::from),
            _ => {}
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
    let mut state = shared.lock().unwrap();
    state.seen.push((format!("{method} {path}"), token.is_some()));
    if path.contains("/storage/") && state.drops > 0 {
        state.drops -= 1;
        // A part of it is read, and the connection closed.
        let mut some = vec![0; length / 2];
        reader.read_exact(&mut some)?;
        return Ok(());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (origin, storage) = match state.front {
        Some(front) => (format!("https://127.0.0.1:{front}"), format!("https://localhost:{front}")),
        None => (format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}")),
    };
    let mut reply = |status: &str, more: &str, body: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let parsed = || serde_json::from_slice::<Value>(&body).unwrap();
    if let Some((_, rest)) = path.split_once("/storage/") {
        assert!(token.is_none(), "the token went to the storage");
        let (oid, part) = rest.split_once('/').unwrap_or((rest, ""));
        return match (method.as_str(), part) {
            ("PUT", "") => {
                assert_eq!(sha256(&body), oid);
                let kept = if state.truncates { body[..body.len() / 2].to_vec() } else { body };
                state.storage.insert(oid.into(), kept);
                reply("200 OK", "", "")
            }
            ("PUT", part) => {
                let part: usize = part.parse().unwrap();
                state.parts.insert((oid.into(), part), body);
                reply("200 OK", &format!("ETag: \"part{part}\"\r\n"), "")
            }
            _ => {
                let parts = parsed()["parts"].as_array().unwrap().clone();
                let mut whole = Vec::new();
                for (i, part) in parts.iter().enumerate() {
                    assert_eq!(*part, json!({ "partNumber": i + 1, "etag": format!("\"part{}\"", i + 1) }));
                    whole.extend(&state.parts[&(oid.to_string(), i + 1)]);
                }
                assert_eq!(sha256(&whole), oid);
                whole.truncate(if state.truncates { whole.len() / 2 } else { whole.len() });
                state.storage.insert(oid.into(), whole);
                reply("200 OK", "", "{}")
            }
        };
    }
    if token.as_deref().is_some_and(|token| token != TOKEN) {
        return reply("401 Unauthorized", "X-Error-Message: Invalid credentials\r\n", "");
    }
    if let Some(status) = state.refuse.filter(|_| method == "POST") {
        return reply(status, "", "");
    }
    if let Some(to) = state.moved.clone().filter(|_| path.contains("/org/tiny")) {
        return reply("307 Temporary Redirect", &format!("Location: {to}{path}\r\n"), "");
    }
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    match (method.as_str(), path) {
        ("POST", "/api/repos/create") => {
            assert_eq!((&parsed()["organization"], &parsed()["name"]), (&json!("org"), &json!("tiny")));
            (state.exists, state.private) = (true, parsed()["private"] == true);
            reply("200 OK", "", "{}")
        }
        ("GET", "/api/models/org/tiny") if state.exists => reply("200 OK", "", "{}"),
        ("POST", path) if path.starts_with("/api/models/org/tiny/branch/") => {
            state.branches.push(path.rsplit('/').next().unwrap().into());
            reply("200 OK", "", "{}")
        }
        ("GET", path) if path.starts_with("/api/models/org/tiny/tree/") && state.exists => {
            let revision = path.rsplit('/').next().unwrap();
            if revision != "main" && !state.branches.iter().any(|b| b == revision) {
                return reply("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", "");
            }
            // Two pages.
            let large = state.large.iter().map(|(path, oid)| {
                let size = state.storage[oid].len();
                json!({ "type": "file", "path": path, "size": size, "oid": "0", "lfs": { "oid": oid, "size": size } })
            });
            let small = state.small.iter().map(
                |(path, bytes)| json!({ "type": "file", "path": path, "size": bytes.len(), "oid": git_hash(bytes) }),
            );
            match query.contains("cursor") {
                true => reply("200 OK", "", &json!(small.collect::<Vec<_>>()).to_string()),
                false => {
                    let next = format!("Link: <{origin}{path}?cursor=1>; rel=\"next\"\r\n");
                    reply("200 OK", &next, &json!(large.collect::<Vec<_>>()).to_string())
                }
            }
        }
        ("POST", path) if path.starts_with("/api/models/org/tiny/preupload/") => {
            let mode = |file: &Value| {
                let path = file["path"].as_str().unwrap();
                assert!(!file["sample"].as_str().unwrap().is_empty());
                let large = path.ends_with(".gguf") || path.ends_with(".safetensors");
                json!({ "path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false })
            };
            let files: Vec<Value> = parsed()["files"].as_array().unwrap().iter().map(mode).collect();
            reply("200 OK", "", &json!({ "files": files }).to_string())
        }
        ("POST", "/org/tiny.git/info/lfs/objects/batch") => {
            let object = |object: &Value| {
                let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                let mut row = json!({ "oid": oid, "size": size });
                if !state.storage.contains_key(oid) {
                    let place = format!("{storage}/storage/{oid}");
                    let mut upload = json!({ "href": place });
                    if size > PART {
                        upload["header"] = json!({ "chunk_size": PART.to_string() });
                        for part in 1..=size.div_ceil(PART) {
                            upload["header"][part.to_string()] = json!(format!("{place}/{part}"));
                        }
                    }
                    let verify = json!({ "href": format!("{origin}/verify") });
                    row["actions"] = json!({ "upload": upload, "verify": verify });
                }
                row
            };
            let objects: Vec<Value> = parsed()["objects"].as_array().unwrap().iter().map(object).collect();
            reply("200 OK", "", &json!({ "transfer": "basic", "objects": objects }).to_string())
        }
        ("POST", "/verify") => {
            let whole = state.storage.get(parsed()["oid"].as_str().unwrap()).map(Vec::len);
            let same = whole.map(|n| n as u64) == parsed()["size"].as_u64();
            reply(if same { "200 OK" } else { "422 Unprocessable" }, "", "")
        }
        ("POST", path) if path.starts_with("/api/models/org/tiny/commit/") => {
            if state.busy > 0 {
                state.busy -= 1;
                return reply("429 Too Many Requests", "Retry-After: 1\r\n", "");
            }
            let text = String::from_utf8(body.clone()).unwrap();
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert!(lines[0]["key"] == "header" && lines[0]["value"]["summary"].as_str().is_some());
            if query.contains("create_pr=1") {
                state.proposals += 1;
                let page = json!({ "success": true, "commitOid": COMMIT, "pullRequestUrl": "https://hub/org/tiny/discussions/1" });
                return reply("200 OK", "", &page.to_string());
            }
            for line in &lines[1..] {
                let value = &line["value"];
                let path = value["path"].as_str().unwrap().to_string();
                match line["key"].as_str().unwrap() {
                    "file" => drop(state.small.insert(path, unbase64(value["content"].as_str().unwrap()))),
                    "lfsFile" => {
                        let oid = value["oid"].as_str().unwrap().to_string();
                        assert!(state.storage.contains_key(&oid), "{path} was committed and not sent");
                        state.large.insert(path, oid);
                    }
                    other => panic!("{other}"),
                }
            }
            state.commits += 1;
            if state.lost_answers > 0 {
                state.lost_answers -= 1;
                return Ok(());
            }
            let page = json!({ "success": true, "commitOid": COMMIT, "commitUrl": "https://hub/org/tiny/commit/0" });
            reply("200 OK", "", &page.to_string())
        }
        _ => reply("404 Not Found", "X-Error-Code: RepoNotFound\r\n", ""),
    }
}

#[test]
fn a_release_is_pushed_with_one_commit_and_not_twice() {
    let hub = Hub::with_release(State::default());
    let told = ok(hub.push(&["--dry-run"]));
    assert!(told.contains("would create the public repository") && told.contains("tiny-llama-Q8_0.gguf"), "{told}");
    assert!(hub.state().seen.iter().all(|(request, _)| request.starts_with("GET ")));
    // Without a token, too.
    hub.state().seen.clear();
    ok(hub.push_as(None, &["--dry-run"]));
    hub.state().seen.clear();
    let out: Value = serde_json::from_str(&ok(hub.push(&["--private", "--format", "json"]))).unwrap();
    assert_eq!((&out["commit"], &out["url"]), (&json!(COMMIT), &json!("https://hub/org/tiny/commit/0")));
    assert!(hub.state().private);
    assert_eq!(hub.counts().0, 1);
    assert!(hub.state().parts.len() > 1, "a large file goes in parts");
    hub.assert_whole();
    // A second time there is nothing to do.
    let seen = hub.counts().2;
    let again = hub.push(&[]);
    assert!(crate::common::stderr(&again).contains("nothing was sent"));
    ok(again);
    assert_eq!(hub.counts(), (1, 0, seen + 2));
    // What changed is sent alone.
    hub.state().large.remove("tiny-llama-Q2_K.gguf");
    let told: Value = serde_json::from_str(&ok(hub.push(&["--dry-run", "--format", "json"]))).unwrap();
    assert_eq!(told["files"].as_array().unwrap().len(), 1);
    let out: Value = serde_json::from_str(&ok(hub.push(&["--format", "json"]))).unwrap();
    assert_eq!((&out["files"], &out["bytes"]), (&json!(["tiny-llama-Q2_K.gguf"]), &json!(0)));
    hub.assert_whole();
}

#[test]
fn a_branch_and_a_pull_request() {
    let hub = Hub::with_release(State { exists: true, ..State::default() });
    ok(hub.push(&["--revision", "v1"]));
    assert_eq!(hub.state().branches, ["v1"]);
    let state = State { exists: true, ..State::default() };
    *hub.state() = state;
    let out = ok(hub.push(&["--create-pr"]));
    assert_eq!(out.trim(), "https://hub/org/tiny/discussions/1");
    assert_eq!((hub.counts().0, hub.counts().1), (0, 1));
}

#[test]
fn busy_servers_dropped_connections_and_lost_answers_are_overcome() {
    let hub = Hub::with_release(State { busy: 1, drops: 2, lost_answers: 1, ..State::default() });
    let start = std::time::Instant::now();
    ok(hub.push(&[]));
    assert!(start.elapsed().as_millis() > 1000, "Retry-After is waited for");
    assert_eq!(hub.counts().0, 1);
    hub.assert_whole();
}

#[test]
fn who_may_not_write_is_told_so() {
    let hub = Hub::with_release(State { exists: true, ..State::default() });
    fails(&hub.push_as(None, &[]), 5, &["token", "HF_TOKEN"]);
    fails(&hub.push_as(Some("hf_wrong"), &[]), 5, &["token", "Invalid credentials"]);
    hub.state().refuse = Some("403 Forbidden");
    fails(&hub.push(&[]), 5, &["may write"]);
    fails(&hub.push(&["--offline"]), 2, &["network"]);
    assert_eq!(hub.counts().0, 0);
    // What is no release, or no longer what it was.
    let folder = hub.home.path().join("out");
    std::fs::write(folder.join("tiny-llama-nf4/config.json"), "{}").unwrap();
    hub.state().refuse = None;
    fails(&hub.push(&[]), 3, &["config.json", "SHA256SUMS"]);
    std::fs::remove_file(folder.join("tiny-llama-nf4/config.json")).unwrap();
    fails(&hub.push(&[]), 3, &["config.json", "complete release"]);
    std::fs::remove_file(folder.join("quantize-manifest.json")).unwrap();
    fails(&hub.push(&[]), 2, &["quantize release"]);
}

#[test]
fn tls_is_checked_against_the_authority_that_the_environment_names() {
    let hub = Hub::with_release(State::default());
    let front = tls::front(hub.port);
    hub.state().front = Some(front);
    let push = |certificates: &[(&str, &Path)]| {
        let mut command = hub.command(Some(TOKEN), &["push", "out", "org/tiny"]);
        command.env("HF_ENDPOINT", format!("https://127.0.0.1:{front}")).envs(certificates.iter().copied());
        command.output().unwrap()
    };
    let authority = tls::authority();
    // Nobody that is known vouches for it, and it is not asked again and again.
    let start = std::time::Instant::now();
    fails(&push(&[]), 5, &["certificate", "SSL_CERT_FILE"]);
    assert!(start.elapsed().as_secs() < 5);
    let none = repo("Cargo.toml");
    fails(&push(&[("SSL_CERT_FILE", none.as_path())]), 3, &["Cargo.toml", "no certificate"]);
    assert!(hub.state().seen.is_empty());
    ok(push(&[("SSL_CERT_FILE", authority.as_path())]));
    hub.assert_whole();
    for name in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        assert!(stderr(&push(&[(name, authority.as_path())])).contains("nothing was sent"), "{name}");
    }
    assert!(stderr(&push(&[("SSL_CERT_DIR", authority.parent().unwrap())])).contains("nothing was sent"));
    // The first that is set counts.
    fails(&push(&[("REQUESTS_CA_BUNDLE", none.as_path()), ("SSL_CERT_FILE", authority.as_path())]), 3, &["Cargo.toml"]);
}

#[test]
fn a_moved_repository_is_named_and_the_token_stays() {
    let hub = Hub::with_release(State { exists: true, ..State::default() });
    let other = Hub::start(State { exists: true, ..State::default() });
    hub.state().moved = Some(format!("http://127.0.0.1:{}", other.port));
    fails(&hub.push(&[]), 5, &["redirects to", "current name"]);
    assert!(other.state().seen.is_empty());
    assert_eq!(hub.counts().0, 0);
}

#[test]
fn what_the_storage_did_not_keep_whole_is_not_committed() {
    let hub = Hub::with_release(State { truncates: true, ..State::default() });
    fails(&hub.push(&[]), 3, &["422"]);
    assert_eq!(hub.counts().0, 0);
}

#[test]
fn a_release_is_made_and_pushed_in_one_command() {
    let hub = Hub::start(State::default());
    let tiny = tiny();
    let text = repo("calibration/technical.txt");
    let base =
        ["release", &tiny, "--to", "q8_0", "--no-check", "-o", "out", "--push-to", "https://huggingface.co/org/tiny"];
    let run = |token: Option<&str>, more: &[&str]| hub.run_as(token, &[&base[..], more].concat());
    // What stands in the way of the push is said before anything is converted.
    fails(&run(None, &[]), 5, &["token", "HF_TOKEN"]);
    fails(&run(Some("hf_wrong"), &[]), 5, &["Invalid credentials"]);
    fails(&run(Some(TOKEN), &["--offline"]), 2, &["network"]);
    fails(&run(Some(TOKEN), &["--repo", "org/other"]), 2, &["--push-to"]);
    fails(&hub.run_as(Some(TOKEN), &["release", &tiny, "--to", "q8_0", "--private"]), 2, &["--push-to"]);
    fails(&hub.run_as(Some(TOKEN), &["release", &tiny, "--to", "q8_0", "--push-to", "tiny"]), 2, &["org/name"]);
    let told = ok(run(None, &["--dry-run", "--private"]));
    assert!(told.contains("would be pushed to org/tiny at main, with one commit, private"), "{told}");
    assert!(names(hub.home.path()).iter().all(|name| !name.starts_with("out")));
    // Neither is what failed its gates.
    let gates = ["--text", text.to_str().unwrap(), "--chunks", "8", "--max-kld", "0.000000001"];
    fails(&run(Some(TOKEN), &gates), 6, &["out.failed"]);
    assert!(!hub.state().exists);
    let made: Value = serde_json::from_str(&ok(run(Some(TOKEN), &["--private", "--format", "json"]))).unwrap();
    assert_eq!((&made["pushed"]["commit"], &made["pushed"]["same"]), (&json!(COMMIT), &json!(0)));
    assert!(hub.state().private);
    hub.assert_whole();
    // A push that fails leaves the release, and says what to do.
    hub.state().refuse = Some("403 Forbidden");
    hub.state().small.clear();
    let out = run(Some(TOKEN), &["--force"]);
    fails(&out, 5, &["may write", "quantize push out org/tiny"]);
    hub.state().refuse = None;
    ok(hub.push(&[]));
    hub.assert_whole();
}
