//! What tests of all kinds share: where models lie, running the program, judging how it ended, digests of what it wrote.

// No test binary needs all of it.
#![allow(dead_code)]

use quantize::infer::{Cache, Engine};
use quantize::model::Model;
use quantize::source::Checkpoint;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

/// The folders of `tests/conformance`: a small random model of every family.
pub const FAMILIES: [&str; 12] = [
    "gemma2",
    "gemma3",
    "llama",
    "llama-tied-headdim",
    "llama3-rope",
    "mistral-window",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen2-moe",
    "qwen3",
    "qwen3-moe",
];

/// A file or folder of the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether to test everything (`QUANTIZE_TEST_ALL=1`), where a sample is tested otherwise.
pub fn everything() -> bool {
    std::env::var_os("QUANTIZE_TEST_ALL").is_some()
}

/// Numbers of threads that must give the same bytes.
pub fn threads() -> &'static [&'static str] {
    if everything() { &["1", "2", "7"] } else { &["1", "7"] }
}

/// A folder of `tests/conformance`, or `tiny-llama`: the small trained model.
pub fn model(name: &str) -> PathBuf {
    repo(if name == "tiny-llama" { "tests/fixtures" } else { "tests/conformance" }).join(name)
}

/// The same as an argument.
pub fn family(name: &str) -> String {
    model(name).to_str().unwrap().to_string()
}

/// The small trained model as an argument.
pub fn tiny() -> String {
    family("tiny-llama")
}

/// The folders of all families, in order of their names.
pub fn conformance() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repo("tests/conformance")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert_eq!(folders, FAMILIES.map(model), "FAMILIES are the folders of tests/conformance");
    folders
}

/// Copies the files of a model to a new folder, without what is expected of it.
pub fn copy_model(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in names(Path::new(&family(name))) {
        if !file.starts_with("expected") {
            std::fs::copy(Path::new(&family(name)).join(&file), to.join(&file)).unwrap();
        }
    }
}

/// The small trained model with its first layer alone, in a new folder: for what is slow and does not depend on depth.
pub fn one_layer(to: &Path) -> PathBuf {
    first_layers(1, to)
}

/// The same with its first `n` layers.
pub fn first_layers(n: usize, to: &Path) -> PathBuf {
    copy_model("tiny-llama", to);
    let config = std::fs::read_to_string(to.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = n.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(to.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let is_kept =
        |name: &str| !name.contains(".layers.") || (0..n).any(|layer| name.contains(&format!(".layers.{layer}.")));
    let kept: Vec<_> = all.iter().filter(|(name, _)| is_kept(name)).collect();
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(kept, None).unwrap()).unwrap();
    to.to_path_buf()
}

/// The program with these arguments, in this folder.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quantize"));
    command.current_dir(dir).args(args);
    command
}

/// Runs the program.
pub fn quantize(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Standard output of a run that succeeded.
#[track_caller]
pub fn ok(out: Output) -> String {
    assert!(out.status.success(), "{}", stderr(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// The run ended with this exit code, one error, and a message that holds every part.
#[track_caller]
pub fn fails(out: &Output, code: i32, parts: &[&str]) {
    let message = stderr(out);
    assert_eq!(out.status.code(), Some(code), "{message}");
    assert_eq!(
        message.lines().filter(|line| line.starts_with("error:") || line.starts_with("{\"error\":")).count(),
        1,
        "{message}"
    );
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

/// Names in a folder, hidden ones too, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of every file of a folder by its name.
pub fn digests(dir: &Path) -> BTreeMap<String, String> {
    names(dir).into_iter().map(|name| (name.clone(), sha256(&std::fs::read(dir.join(name)).unwrap()))).collect()
}

/// Checkpoint and model of a family, or of `tiny-llama`.
pub fn open(name: &str) -> (Checkpoint, Model) {
    let ckpt = Checkpoint::open(&model(name)).unwrap();
    let model = Model::open(&ckpt).unwrap_or_else(|e| panic!("{name}: {e}"));
    (ckpt, model)
}

/// The model at `path`, ready to run.
pub fn engine(path: &Path) -> Engine {
    let ckpt = Checkpoint::open(path).unwrap();
    let model = Model::open(&ckpt).unwrap();
    Engine::load(&ckpt, &model).unwrap()
}

/// Logits of all positions.
pub fn logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    engine(path).forward(tokens, &mut Cache::one_batch(tokens.len()), 0..tokens.len()).unwrap()
}

/// Kills a run once the journal of the folder that it makes, inside `dir`, has so many lines, or when it has ended.
pub fn kill_at(mut child: Child, dir: &Path, lines: usize) {
    let journal = || {
        let inside = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path().join(".quantize-journal"));
        inside
            .filter_map(|path| std::fs::read(path).ok())
            .map(|text| text.iter().filter(|b| **b == b'\n').count())
            .max()
    };
    while journal().unwrap_or(0) < lines && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
}
