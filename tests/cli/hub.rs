//! The binary against a local server that speaks the Hub's API: listing, HEAD and GET with ranges, redirects of large files
//! to another host, tokens. The server can drop, stall, refuse and falsify.

use crate::common::{model, sha256};
use crate::tls;
use predicates::prelude::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";
const TOKEN: &str = "hf_right";
/// Files of the data set `org/texts` stand behind this in the server's list.
const DATASET: &str = "texts/";

#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    range: Option<String>,
    token: Option<String>,
}

/// How the server misbehaves.
#[derive(Clone, Default)]
struct Faults {
    /// Close the connection after so many bytes of the weights, so many times.
    drop_after: usize,
    drops: usize,
    /// Send nothing more after so many bytes of the weights.
    stall_after: Option<usize>,
    /// Answer ranges with the whole file.
    no_ranges: bool,
    /// Flip a bit of the weights.
    corrupt: bool,
    /// Answer so many requests with 503 first.
    busy: usize,
    /// Answer so many requests with 429 and a time to wait first.
    limited: usize,
    /// State this size of the weights.
    stated: Option<usize>,
    private: bool,
}

struct Hub {
    endpoint: String,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    faults: Arc<Mutex<Faults>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    home: tempfile::TempDir,
}

impl Hub {
    fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(model("tiny-llama")).unwrap() {
            let path = entry.unwrap().path();
            files.insert(path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap());
        }
        for other in ["pytorch_model.bin", "model.gguf", "onnx/model.onnx", "original/consolidated.safetensors"] {
            files.insert(other.to_string(), b"not wanted".to_vec());
        }
        let hub = Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            files: Arc::new(Mutex::new(files)),
            faults: Arc::new(Mutex::new(faults)),
            seen: Arc::default(),
            home: tempfile::tempdir().unwrap(),
        };
        let (files, faults, seen) = (hub.files.clone(), hub.faults.clone(), hub.seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, faults, seen) = (files.clone(), faults.clone(), seen.clone());
                // A client that goes away is part of the tests.
                std::thread::spawn(move || drop(answer(stream, port, &files, &faults, &seen)));
            }
        });
        hub
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
        let own = ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
        for name in own.iter().chain(&tls::VARIABLES) {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.home.path()).current_dir(self.home.path());
        command
    }

    fn quantize(&self, args: &[&str]) -> assert_cmd::assert::Assert {
        let mut command = assert_cmd::Command::from_std(self.command());
        command.args(args).timeout(Duration::from_secs(120)).assert()
    }

    fn repo(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny")
    }

    fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// First bytes of the ranges in which the weights were asked for.
    fn weight_ranges(&self) -> Vec<u64> {
        let gets = self.seen().into_iter().filter(|s| s.method == "GET" && s.path == format!("/cdn/{WEIGHTS}"));
        let start = |range: String| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        gets.map(|s| start(s.range.unwrap())).collect()
    }

    /// Where an unfinished download of the weights lies.
    fn partial(&self) -> PathBuf {
        self.repo()
            .join("blobs")
            .join(format!("{}.incomplete", sha256(&std::fs::read(model("tiny-llama").join(WEIGHTS)).unwrap())))
    }

    #[track_caller]
    fn assert_complete(&self) {
        assert_same(&self.snapshot());
        assert_eq!(std::fs::read_to_string(self.repo().join("refs/main")).unwrap(), COMMIT);
        let left = std::fs::read_dir(self.repo().join("blobs")).unwrap();
        let left: Vec<_> = left.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(left.iter().all(|name| !name.contains('.')), "{left:?}");
    }
}

/// The folder holds the fixture's files, the same bytes, and nothing else.
#[track_caller]
fn assert_same(dir: &Path) {
    let names = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir), names(&model("tiny-llama")));
    for name in names(dir) {
        assert!(
            std::fs::read(dir.join(&name)).unwrap() == std::fs::read(model("tiny-llama").join(&name)).unwrap(),
            "{name:?}"
        );
    }
}

/// One request on one connection.
fn answer(
    mut stream: TcpStream,
    port: u16,
    files: &Mutex<BTreeMap<String, Vec<u8>>>,
    faults: &Mutex<Faults>,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
    let mut request = Seen { method: method.clone(), path: path.clone(), range: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_string()),
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_string),
            _ => {}
        }
    }
    seen.lock().unwrap().push(request.clone());
    let mut status = |line: &str| write!(stream, "HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    {
        let mut faults = faults.lock().unwrap();
        if faults.busy > 0 {
            faults.busy -= 1;
            return status("503 Service Unavailable");
        }
        if faults.limited > 0 {
            faults.limited -= 1;
            return status("429 Too Many Requests\r\nRetry-After: 2");
        }
        let refused =
            request.token.as_deref().is_some_and(|t| t != TOKEN) || (faults.private && request.token.is_none());
        if refused && !path.starts_with("/cdn/") {
            return status("401 Unauthorized\r\nX-Error-Message: Invalid credentials");
        }
    }
    if path == "/api/models/org/gated/revision/main" {
        return status("403 Forbidden");
    }
    if path == "/api/models/org/tiny/revision/main" || path == format!("/api/models/org/tiny/revision/{COMMIT}") {
        let names: Vec<_> = files.lock().unwrap().keys().map(|n| serde_json::json!({ "rfilename": n })).collect();
        let body = serde_json::json!({ "id": "org/tiny", "sha": COMMIT, "siblings": names }).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
    let revisions = ["main", "refs%2Fconvert%2Fparquet"].map(|r| format!("/api/datasets/org/texts/revision/{r}"));
    if revisions.contains(&path) {
        let files = files.lock().unwrap();
        let names = files.keys().filter_map(|n| n.strip_prefix(DATASET));
        let names: Vec<_> = names.map(|n| serde_json::json!({ "rfilename": n })).collect();
        let body = serde_json::json!({ "id": "org/texts", "sha": COMMIT, "siblings": names }).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    }
    let resolved = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let of_dataset = path.strip_prefix(&format!("/datasets/org/texts/resolve/{COMMIT}/"));
    let of_dataset = of_dataset.map(|name| format!("{DATASET}{}", name.replace("%20", " ")));
    let (name, redirects) = match (resolved, path.strip_prefix("/cdn/"), of_dataset.as_deref()) {
        (Some(name), _, _) => (name, name.ends_with(".safetensors")),
        (_, Some(name), _) | (_, _, Some(name)) => (name, false),
        _ => return status("404 Not Found"),
    };
    let Some(mut body) = files.lock().unwrap().get(name).cloned() else { return status("404 Not Found") };
    let hash = sha256(&body);
    if redirects {
        let stated = faults.lock().unwrap().stated;
        let location = format!("http://localhost:{port}/cdn/{name}");
        let linked = format!(
            "X-Linked-Size: {}\r\nX-Linked-ETag: \"{hash}\"\r\nX-Repo-Commit: {COMMIT}",
            stated.unwrap_or(body.len())
        );
        return status(&format!("302 Found\r\nLocation: {location}\r\n{linked}"));
    }
    let (mut limit, mut stall) = (usize::MAX, false);
    let mut ranges = true;
    if name == WEIGHTS && method == "GET" {
        let mut faults = faults.lock().unwrap();
        ranges = !faults.no_ranges;
        if faults.drops > 0 {
            faults.drops -= 1;
            limit = faults.drop_after;
        }
        if let Some(n) = faults.stall_after {
            (limit, stall) = (n, true);
        }
        if faults.corrupt {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
    }
    // As the Hub does: only large files are named by their SHA-256, and the storage names them otherwise.
    let etag = if path.starts_with("/cdn/") { "\"storage\"".to_string() } else { format!("\"{}\"", &hash[..39]) };
    let total = body.len();
    let start = request.range.filter(|_| ranges).map(|r| {
        r.strip_prefix("bytes=").and_then(|r| r.split('-').next()).and_then(|r| r.parse::<usize>().ok()).unwrap()
    });
    if start.is_some_and(|start| start >= total) {
        return status("416 Range Not Satisfiable");
    }
    let part = &body[start.unwrap_or(0)..];
    let line = match start {
        Some(start) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}", total - 1),
        None => "200 OK".to_string(),
    };
    write!(
        stream,
        "HTTP/1.1 {line}\r\nConnection: close\r\nETag: {etag}\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: \
         bytes\r\nContent-Length: {}\r\n\r\n",
        part.len()
    )?;
    if method == "GET" {
        stream.write_all(&part[..part.len().min(limit)])?;
        stream.flush()?;
        if stall && part.len() > limit {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    Ok(())
}

#[test]
fn pull_fetches_what_a_conversion_reads_and_conversion_uses_the_cache() {
    let hub = Hub::start(Faults::default());
    let path = hub.snapshot();
    hub.quantize(&["pull", "org/tiny"]).success().stdout(format!("{}\n", path.display()));
    hub.assert_complete();
    let link = std::fs::read_link(path.join(WEIGHTS));
    let hash = sha256(&std::fs::read(model("tiny-llama").join(WEIGHTS)).unwrap());
    #[cfg(unix)]
    assert_eq!(link.unwrap(), Path::new("../../blobs").join(hash));
    #[cfg(not(unix))]
    let _ = (link, hash);
    for unwanted in ["pytorch_model.bin", "gguf", "onnx", "original"] {
        assert!(!hub.seen().iter().any(|s| s.path.contains(unwanted)), "{unwanted}");
    }
    // A second time only the list is asked for.
    let before = hub.seen().len();
    hub.quantize(&["pull", "org/tiny@main", "--quiet"]).success().stderr("");
    assert_eq!(hub.seen().len(), before + 1);
    hub.quantize(&["--to", "q8_0", "org/tiny"]).success();
    assert_eq!(hub.seen().len(), before + 2);
    assert!(hub.home.path().join("tiny-Q8_0.gguf").is_file());
}

#[test]
fn a_plan_fetches_no_weights() {
    let hub = Hub::start(Faults::default());
    let plan = |more: &[&str]| {
        let args = [&["plan", "org/tiny", "--to", "q4_k_m,gptq", "--format", "json"], more].concat();
        let out = hub.quantize(&args).success().get_output().stdout.clone();
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    let before = plan(&[]);
    assert!(hub.weight_ranges().is_empty() && before["source_bytes"].is_null());
    // A part of the files is no model to convert.
    hub.quantize(&["plan", "org/tiny", "--offline"]).code(3);
    hub.quantize(&["--to", "q8_0", "org/tiny"]).success();
    hub.assert_complete();
    // The cache is planned from when all of it is there.
    let after = plan(&[]);
    assert!(after["source_bytes"].as_u64() > Some(0));
    assert_eq!(plan(&["--offline"]), after);
    assert_eq!(before["folders"], after["folders"]);
    assert_eq!(before["targets"][0]["tensor_bytes"], after["targets"][0]["tensor_bytes"]);
}

#[test]
fn a_conversion_fetches_by_itself_at_a_commit() {
    let hub = Hub::start(Faults::default());
    hub.quantize(&["--to", "q8_0", "org/tiny", "--revision", COMMIT, "-o", "out/"]).success();
    assert_same(&hub.snapshot());
    assert!(!hub.repo().join("refs").exists());
    assert!(hub.home.path().join("out/tiny-Q8_0.gguf").is_file());
    hub.quantize(&["pull", &format!("org/tiny@{COMMIT}"), "--offline"]).success();
}

#[test]
fn sharded_weights_are_those_of_the_index() {
    let hub = Hub::start(Faults::default());
    let index = serde_json::json!({ "weight_map": { "a": "m-1.safetensors", "b": "m-2.safetensors" } }).to_string();
    {
        let mut files = hub.files.lock().unwrap();
        let whole = files.remove(WEIGHTS).unwrap();
        for name in ["m-1.safetensors", "m-2.safetensors", "other.safetensors", "consolidated.safetensors"] {
            files.insert(name.into(), [name.as_bytes(), &whole[..1000]].concat());
        }
        files.insert("model.safetensors.index.json".into(), index.into_bytes());
    }
    let pulled = hub.quantize(&["pull", "org/tiny", "--format", "json"]).success();
    let answer: serde_json::Value = serde_json::from_slice(&pulled.get_output().stdout).unwrap();
    let files: Vec<_> = answer["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert_eq!(files[files.len() - 3..], ["model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors"]);
    assert!(!hub.seen().iter().any(|s| s.path.contains("other") || s.path.contains("consolidated")));
    hub.quantize(&["pull", "org/tiny", "--offline"]).success();
    std::fs::remove_file(hub.snapshot().join("m-2.safetensors")).unwrap();
    hub.quantize(&["pull", "org/tiny", "--offline"]).code(3).stderr(predicate::str::contains("m-2.safetensors"));
    hub.files.lock().unwrap().remove("m-2.safetensors");
    hub.quantize(&["pull", "org/tiny"]).code(3).stderr(predicate::str::contains("m-2.safetensors"));
}

#[test]
fn a_local_folder_gets_the_files_too() {
    let hub = Hub::start(Faults::default());
    for _ in 0..2 {
        hub.quantize(&["pull", "org/tiny", "--local-dir", "here"]).success().stdout("here\n");
        assert_same(&hub.home.path().join("here"));
    }
    // Editing a small file there leaves the cache as it is.
    std::fs::write(hub.home.path().join("here/config.json"), "{}").unwrap();
    hub.assert_complete();
}

#[test]
fn a_dropped_connection_resumes() {
    let hub = Hub::start(Faults { drop_after: 3_000_000, drops: 2, busy: 1, ..Faults::default() });
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
    assert_eq!(hub.weight_ranges(), [0, 3_000_000, 6_000_000]);
}

#[test]
fn a_server_without_ranges_begins_again() {
    let hub = Hub::start(Faults { drop_after: 3_000_000, drops: 1, no_ranges: true, ..Faults::default() });
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
    assert_eq!(hub.weight_ranges(), [0, 3_000_000]);
}

#[test]
fn tries_are_bounded_and_what_came_stays() {
    let hub = Hub::start(Faults { drop_after: 100_000, drops: usize::MAX, ..Faults::default() });
    let told = predicate::str::contains("failed 6 times").and(predicate::str::contains("resumes where it stopped"));
    hub.quantize(&["pull", "org/tiny"]).code(5).stderr(told);
    assert_eq!(hub.weight_ranges().len(), 6);
    assert_eq!(std::fs::metadata(hub.partial()).unwrap().len(), 600_000);
    assert!(!hub.repo().join("refs").exists());
    hub.faults.lock().unwrap().drops = 0;
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
    assert_eq!(hub.weight_ranges()[6..], [600_000]);
}

#[test]
fn a_killed_pull_resumes() {
    let hub = Hub::start(Faults { stall_after: Some(4_000_000), ..Faults::default() });
    let mut child =
        hub.command().args(["pull", "org/tiny"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (start, partial) = (Instant::now(), hub.partial());
    while std::fs::metadata(&partial).map_or(0, |m| m.len()) < 4_000_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "the download did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!hub.snapshot().join(WEIGHTS).exists());
    hub.quantize(&["pull", "org/tiny", "--offline"]).code(3);
    hub.faults.lock().unwrap().stall_after = None;
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
    assert_eq!(hub.weight_ranges(), [0, 4_000_000]);
}

#[test]
fn a_bad_partial_file_is_fetched_again() {
    let hub = Hub::start(Faults::default());
    std::fs::create_dir_all(hub.partial().parent().unwrap()).unwrap();
    std::fs::write(hub.partial(), vec![7; 1_000_000]).unwrap();
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
    assert_eq!(hub.weight_ranges(), [1_000_000, 0]);
}

#[test]
fn corrupt_content_is_fetched_again_and_never_used() {
    let hub = Hub::start(Faults { corrupt: true, ..Faults::default() });
    let told = predicate::str::contains(WEIGHTS).and(predicate::str::contains("corrupt"));
    hub.quantize(&["pull", "org/tiny"]).code(3).stderr(told);
    assert!(!hub.snapshot().join(WEIGHTS).exists());
    hub.faults.lock().unwrap().corrupt = false;
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
}

#[cfg(unix)]
#[test]
fn too_little_space_and_false_sizes_are_found() {
    let hub = Hub::start(Faults { stated: Some(1 << 47), ..Faults::default() });
    let told = predicate::str::contains("of disk").and(predicate::str::contains("HF_HOME"));
    hub.quantize(&["pull", "org/tiny"]).code(5).stderr(told);
    assert!(hub.weight_ranges().is_empty());
    hub.faults.lock().unwrap().stated = Some(1000);
    hub.quantize(&["pull", "org/tiny"]).code(3).stderr(predicate::str::contains("more than the 1000 bytes"));
    hub.faults.lock().unwrap().stated = None;
    hub.quantize(&["pull", "org/tiny"]).success();
    hub.assert_complete();
}

#[test]
fn the_token_opens_a_private_repository_and_stays_at_the_hub() {
    let hub = Hub::start(Faults { private: true, ..Faults::default() });
    let pull = |token: Option<&str>| {
        let mut command = hub.command();
        token.map(|token| command.env("HF_TOKEN", token));
        assert_cmd::Command::from_std(command).args(["pull", "org/tiny"]).assert()
    };
    pull(None).code(5).stderr(predicate::str::contains("HF_TOKEN"));
    let told = predicate::str::contains("token was not accepted").and(predicate::str::contains("HF_TOKEN"));
    pull(Some("hf_wrong")).code(5).stderr(told.and(predicate::str::contains("hf_wrong").not()));
    assert_eq!(hub.seen().len(), 2, "a refusal is not tried again");
    pull(Some(TOKEN)).success();
    hub.assert_complete();
    assert!(hub.seen().iter().skip(2).all(|s| s.path.starts_with("/cdn/") != (s.token.as_deref() == Some(TOKEN))));
    // The token that a login stored does the same.
    std::fs::remove_dir_all(hub.home.path().join("hub")).unwrap();
    std::fs::write(hub.home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    pull(None).success();
}

#[test]
fn unknown_and_gated_repositories_are_named() {
    let hub = Hub::start(Faults::default());
    hub.quantize(&["pull", "org/absent"]).code(3).stderr(predicate::str::contains("org/absent"));
    let told = predicate::str::contains("revision 'v9'").and(predicate::str::contains("org/tiny"));
    hub.quantize(&["pull", "org/tiny@v9"]).code(3).stderr(told);
    hub.quantize(&["pull", "org/gated"]).code(5).stderr(predicate::str::contains("HF_TOKEN"));
    for id in ["tiny", "org/tiny/x", "../tiny", "org/tiny@../x"] {
        hub.quantize(&["pull", id]).code(2);
    }
    assert_eq!(hub.seen().len(), 3);
    hub.files.lock().unwrap().remove(WEIGHTS);
    hub.files.lock().unwrap().remove("model.gguf");
    hub.quantize(&["pull", "org/tiny"]).code(4).stderr(predicate::str::contains("pickles"));
}

#[test]
fn offline_mode_asks_nobody() {
    let hub = Hub::start(Faults::default());
    let offline = |args: &[&str]| {
        let mut command = hub.command();
        command.env("HF_HUB_OFFLINE", "1").args(args);
        assert_cmd::Command::from_std(command).assert()
    };
    let told = predicate::str::contains("offline").and(predicate::str::contains("quantize pull org/tiny"));
    offline(&["--to", "q8_0", "org/tiny"]).code(3).stderr(told);
    assert!(hub.seen().is_empty());
    hub.quantize(&["pull", "org/tiny"]).success();
    let before = hub.seen().len();
    offline(&["pull", "org/tiny"]).success().stdout(format!("{}\n", hub.snapshot().display()));
    offline(&["--to", "q8_0", "org/tiny"]).success();
    offline(&["pull", "org/tiny@v9"]).code(3).stderr(predicate::str::contains("'v9'"));
    std::fs::remove_file(
        hub.repo().join("blobs").join(sha256(&std::fs::read(model("tiny-llama").join(WEIGHTS)).unwrap())),
    )
    .unwrap();
    offline(&["pull", "org/tiny"]).code(3).stderr(predicate::str::contains("weights"));
    assert_eq!(hub.seen().len(), before);
}

#[test]
fn an_absent_server_is_a_network_error() {
    let hub = Hub::start(Faults::default());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = hub.command();
    command.env("HF_ENDPOINT", format!("http://{closed}")).args(["pull", "org/tiny"]);
    let told = predicate::str::contains("--offline").and(predicate::str::contains(closed.to_string()));
    assert_cmd::Command::from_std(command).assert().code(5).stderr(told);
}

#[test]
fn calibration_reads_a_file_of_a_data_set() {
    let hub = Hub::start(Faults { busy: 1, ..Faults::default() });
    let rows = |n: usize| format!("{{\"text\": \"Row {n} of a data set that lies on the Hub.\"}}\n");
    hub.files
        .lock()
        .unwrap()
        .insert(format!("{DATASET}data/train v1.jsonl"), (0..50).map(rows).collect::<String>().into());
    hub.files.lock().unwrap().insert(format!("{DATASET}README.md"), b"not wanted".to_vec());
    let model = model("tiny-llama");
    let calibrate = |address: &str, more: &[&str]| {
        let model = model.to_str().unwrap();
        let mut args =
            vec!["calibrate", model, "--calibration", address, "--seq-len", "16", "--calibration-tokens", "160"];
        args.extend(["--format", "json", "--force", "-o", "i.gguf"]);
        args.extend(more);
        hub.quantize(&args)
    };
    let address = "hf://datasets/org/texts/data/train v1.jsonl";
    let report = calibrate(address, &[]).success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["data"]["sources"][0]["name"], address);
    assert_eq!(report["data"]["sources"][0]["rows"], 50);
    let repo = hub.home.path().join("hub/datasets--org--texts");
    let file = repo.join("snapshots").join(COMMIT).join("data/train v1.jsonl");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 50);
    #[cfg(unix)]
    assert!(std::fs::read_link(&file).unwrap().starts_with("../../../blobs"));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(!hub.seen().iter().any(|s| s.path.contains("README")));
    // From the cache, after a look at the list, or without any.
    let before = hub.seen().len();
    calibrate(address, &[]).success();
    assert_eq!(hub.seen().len(), before + 1);
    calibrate(address, &["--offline"]).success();
    assert_eq!(hub.seen().len(), before + 1);
    // Revisions stand at the end, or after the name as in huggingface_hub.
    calibrate(&format!("{address}@refs/convert/parquet"), &[]).success();
    calibrate("hf://datasets/org/texts@refs%2Fconvert%2Fparquet/data/train v1.jsonl", &["--offline"]).success();
    assert!(repo.join("refs/refs/convert/parquet").is_file());
    let told = |text: &str| predicate::str::contains(text.to_string());
    calibrate("hf://datasets/org/texts/train.jsonl", &[]).code(3).stderr(told("data/train v1.jsonl"));
    calibrate("hf://datasets/org/texts/other.jsonl", &["--offline"]).code(3).stderr(told("offline"));
    calibrate("hf://datasets/org/none/a.jsonl", &[]).code(3).stderr(told("was not found"));
    calibrate(&format!("{address}@v9"), &[]).code(3).stderr(told("v9"));
    for wrong in ["hf://datasets/org/texts", "hf://org/texts/a.jsonl", "hf://datasets/org/texts/../a.jsonl"] {
        calibrate(wrong, &[]).code(2);
    }
}

#[test]
fn a_server_that_limits_requests_is_waited_for() {
    let hub = Hub::start(Faults { limited: 1, ..Faults::default() });
    let start = Instant::now();
    hub.quantize(&["pull", "org/tiny"]).success();
    assert!(start.elapsed() >= Duration::from_secs(2));
    hub.assert_complete();
}

#[test]
fn a_hub_behind_an_authority_of_its_own_is_pulled_from() {
    let mut hub = Hub::start(Faults { private: true, ..Faults::default() });
    let port: u16 = hub.endpoint.rsplit(':').next().unwrap().parse().unwrap();
    hub.endpoint = format!("https://127.0.0.1:{}", tls::front(port));
    let pull = |certificates: Option<PathBuf>| {
        let mut command = hub.command();
        command.env("HF_TOKEN", TOKEN).args(["pull", "org/tiny"]);
        certificates.map(|path| command.env("SSL_CERT_FILE", path));
        assert_cmd::Command::from_std(command).assert()
    };
    pull(None).code(5).stderr(predicate::str::contains("certificate"));
    assert!(hub.seen().is_empty());
    pull(Some(tls::authority())).success();
    hub.assert_complete();
    // The storage, another host, gets no token.
    assert!(hub.seen().iter().all(|s| s.path.starts_with("/cdn/") == s.token.is_none()));
}
