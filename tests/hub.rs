//! `quantize pull` and Hub ids against a local server that speaks the Hub's API, with its accidents: a connection that
//! drops half-way, a wrong token, content that does not match its hash, no network at all.
#![cfg(feature = "hub")]

use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does and what it saw.
#[derive(Default)]
struct State {
    files: Vec<(String, Vec<u8>)>,
    /// Requests need this token.
    token: Option<String>,
    /// Connections for the weights that are still to be dropped half-way.
    drops: usize,
    /// Send other bytes than the hash promises, so many times.
    corrupt: usize,
    /// Path and Range of every request.
    seen: Vec<(String, Option<String>)>,
}

struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
    home: tempfile::TempDir,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama")
}

impl Hub {
    fn start() -> Self {
        let mut files = vec![("pytorch_model.bin".to_string(), vec![1, 2, 3])];
        for entry in std::fs::read_dir(fixture()).unwrap() {
            let path = entry.unwrap().path();
            files.push((path.file_name().unwrap().to_str().unwrap().into(), std::fs::read(&path).unwrap()));
        }
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let _ = serve(stream, &shared);
                });
            }
        });
        Hub { address, state, home: tempfile::tempdir().unwrap() }
    }

    fn with(self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state.lock().unwrap());
        self
    }

    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
        command.current_dir(self.home.path()).args(args);
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path().join("hf")).env("HF_ENDPOINT", &self.address);
        command.envs(env.iter().copied()).output().unwrap()
    }

    fn requests(&self) -> Vec<(String, Option<String>)> {
        self.state.lock().unwrap().seen.clone()
    }
}

/// One request; the connection is closed after it.
fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut range, mut token) = (String::new(), None, None);
    reader.read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or("/").to_string();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        match header.split_once(':') {
            Some((k, v)) if k.eq_ignore_ascii_case("range") => range = Some(v.trim().to_string()),
            Some((k, v)) if k.eq_ignore_ascii_case("authorization") => token = Some(v.trim().to_string()),
            _ => {}
        }
    }
    let mut out = stream;
    let mut s = state.lock().unwrap();
    s.seen.push((path.clone(), range.clone()));
    if s.token.is_some() && token != s.token.as_ref().map(|t| format!("Bearer {t}")) {
        return out.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let listing = ["main", COMMIT].iter().any(|rev| path == format!("/api/models/org/tiny/revision/{rev}"));
    if listing {
        let siblings: Vec<_> = s.files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        return out.write_all((head + &body).as_bytes());
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).unwrap_or_default().to_string();
    let Some((_, content)) = s.files.iter().find(|(n, _)| *n == name) else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let mut content = content.clone();
    let etag: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
    let (first, last) = range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-')).unwrap_or(("0", ""));
    let (first, probe) = (first.parse::<usize>().unwrap(), last == "0");
    let is_weights = name.ends_with(".safetensors");
    if is_weights && !probe && s.corrupt > 0 {
        s.corrupt -= 1;
        content[1000] ^= 1;
    }
    let total = content.len();
    let body = if probe { &content[..1] } else { &content[first..] };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{total}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\nConnection: close\r\n\r\n",
        body.len(),
        first + body.len() - 1,
    );
    let drop_it = is_weights && !probe && s.drops > 0;
    if drop_it {
        s.drops -= 1;
    }
    drop(s);
    out.write_all(head.as_bytes())?;
    out.write_all(if drop_it { &body[..body.len() / 2] } else { body })?;
    out.flush()?;
    out.shutdown(std::net::Shutdown::Write)?;
    let _ = reader.read(&mut [0; 16]);
    Ok(())
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn fails(out: &Output, code: i32, parts: &[&str]) {
    let message = stderr(out);
    assert_eq!(out.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

fn same_as_fixture(folder: &Path) {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(std::fs::read(folder.join(name)).unwrap() == std::fs::read(fixture().join(name)).unwrap(), "{name}");
    }
    assert!(!folder.join("pytorch_model.bin").exists());
}

#[test]
fn a_pull_fetches_what_is_needed_once_and_conversions_use_it() {
    let hub = Hub::start();
    let out = hub.run(&["pull", "org/tiny"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    let folder = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
    assert!(folder.ends_with(format!("hub/models--org--tiny/snapshots/{COMMIT}")), "{}", folder.display());
    same_as_fixture(&folder);

    let before = hub.requests().len();
    let out = hub.run(&["--to", "q8_0", "org/tiny"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(hub.home.path().join("tiny-Q8_0.gguf").exists(), "named after the repository");
    assert_eq!(hub.requests().len(), before + 1, "only the listing is asked for again");

    let out = hub.run(&["pull", "org/tiny@main", "--local-dir", "copy"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    same_as_fixture(&hub.home.path().join("copy"));
}

#[test]
fn a_connection_that_drops_is_resumed() {
    let hub = Hub::start().with(|s| s.drops = 2);
    let out = hub.run(&["pull", "org/tiny", "--local-dir", "copy"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    same_as_fixture(&hub.home.path().join("copy"));
    let resumed = |(path, range): &(String, Option<String>)| {
        path.ends_with("model.safetensors") && range.as_deref().is_some_and(|r| r != "bytes=0-" && r != "bytes=0-0")
    };
    assert_eq!(hub.requests().iter().filter(|r| resumed(r)).count(), 2);
}

#[test]
fn a_second_run_goes_on_where_the_first_was_stopped() {
    let hub = Hub::start().with(|s| s.drops = 1000);
    // More drops than tries: the halves of halves arrive, then it gives up.
    fails(&hub.run(&["pull", "org/tiny"], &[]), 5, &["org/tiny", "run the same command again"]);
    hub.state.lock().unwrap().drops = 0;
    let seen = hub.requests().len();
    let out = hub.run(&["pull", "org/tiny", "--local-dir", "copy"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    same_as_fixture(&hub.home.path().join("copy"));
    let ranges: Vec<_> =
        hub.requests()[seen..].iter().filter(|r| r.0.ends_with("model.safetensors")).cloned().collect();
    assert!(ranges.iter().all(|r| r.1.as_deref() != Some("bytes=0-")), "{ranges:?}");
}

#[test]
fn content_that_does_not_match_its_hash_is_fetched_again_and_never_used() {
    let hub = Hub::start().with(|s| s.corrupt = 1);
    let out = hub.run(&["pull", "org/tiny", "--local-dir", "copy"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    same_as_fixture(&hub.home.path().join("copy"));

    let hub = Hub::start().with(|s| s.corrupt = 1000);
    fails(&hub.run(&["--to", "q8_0", "org/tiny"], &[]), 3, &["model.safetensors", "does not match its hash"]);
    assert!(!hub.home.path().join("tiny-Q8_0.gguf").exists());
}

#[test]
fn tokens_are_sent_and_wrong_ones_explained() {
    let hub = Hub::start().with(|s| s.token = Some("right".into()));
    fails(&hub.run(&["pull", "org/tiny"], &[]), 5, &["access is denied", "set HF_TOKEN"]);
    fails(&hub.run(&["pull", "org/tiny"], &[("HF_TOKEN", "wrong")]), 5, &["access is denied", "the token in HF_TOKEN"]);
    let out = hub.run(&["pull", "org/tiny"], &[("HF_TOKEN", "right")]);
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn offline_mode_asks_nobody() {
    let hub = Hub::start();
    let offline = [("HF_HUB_OFFLINE", "1")];
    fails(&hub.run(&["pull", "org/tiny"], &offline), 3, &["offline mode", "quantize pull org/tiny"]);
    assert!(hub.run(&["pull", "org/tiny"], &[]).status.success());
    let seen = hub.requests().len();
    let out = hub.run(&["--to", "q8_0", "org/tiny"], &offline);
    assert!(out.status.success(), "{}", stderr(&out));
    let out = hub.run(&["pull", "org/tiny", "--offline"], &[]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(hub.requests().len(), seen);
}

#[test]
fn what_is_not_there_is_said_clearly() {
    let hub = Hub::start();
    fails(&hub.run(&["pull", "org/other"], &[]), 3, &["org/other", "not found"]);
    fails(&hub.run(&["pull", "org/tiny@v9"], &[]), 3, &["not found"]);
    fails(&hub.run(&["pull", "tiny"], &[]), 2, &["org/name"]);
    let only_bin = Hub::start().with(|s| s.files.retain(|(n, _)| !n.ends_with(".safetensors")));
    fails(&only_bin.run(&["pull", "org/tiny"], &[]), 4, &["no safetensors", "pytorch_model.bin"]);
    let nobody = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    fails(&hub.run(&["pull", "org/tiny"], &nobody), 5, &["org/tiny"]);
}
