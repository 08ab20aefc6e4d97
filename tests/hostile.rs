//! What a stranger would break: damaged and contradictory checkpoints, targets that cannot be written, runs that are
//! stopped. One clear error each, the right exit code, and nothing left behind.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama")
}

/// A small checkpoint in a folder of its own that can be damaged.
struct Victim {
    dir: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/llama");
        std::fs::create_dir(dir.path().join("m")).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(small.join(name), dir.path().join("m").join(name)).unwrap();
        }
        Victim { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("m").join(name)
    }

    fn weights(&self) -> Vec<u8> {
        std::fs::read(self.path("model.safetensors")).unwrap()
    }

    /// Rewrites the safetensors header.
    fn header(&self, change: impl FnOnce(&mut Value)) {
        let bytes = self.weights();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        change(&mut header);
        let text = header.to_string().into_bytes();
        let new = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[8 + len..]].concat();
        std::fs::write(self.path("model.safetensors"), new).unwrap();
    }

    /// Where a tensor's data begins in the file.
    fn data(&self, tensor: &str) -> usize {
        let bytes = self.weights();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        8 + len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.path("config.json")).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    fn convert(&self) -> Output {
        quantize(self.dir.path(), &["--to", "q8_0", "m"])
    }

    /// The conversion is refused with this code and these words, and leaves nothing.
    fn refused(&self, code: i32, parts: &[&str]) {
        fails(&self.convert(), code, parts);
        assert_eq!(names(self.dir.path()), ["m"]);
    }
}

fn quantize(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantize")).current_dir(dir).args(args).output().unwrap()
}

fn fails(out: &Output, code: i32, parts: &[&str]) {
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{message}");
    assert_eq!(message.matches("error:").count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in parts {
        assert!(message.contains(part), "no '{part}' in: {message}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

#[test]
fn damaged_safetensors() {
    let v = Victim::new();
    let bytes = v.weights();
    for len in [0, 7, 8, 100, 5000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(v.path("model.safetensors"), &bytes[..len]).unwrap();
        v.refused(3, &["model.safetensors"]);
    }
    let v = Victim::new();
    std::fs::write(v.path("model.safetensors"), [&v.weights()[..], b"more"].concat()).unwrap();
    v.refused(3, &["model.safetensors"]);

    let v = Victim::new();
    v.header(|h| h[DOWN]["data_offsets"] = h["model.norm.weight"]["data_offsets"].clone());
    v.refused(3, &["model.safetensors"]);

    let v = Victim::new();
    v.header(|h| h[DOWN]["shape"] = json!([u64::MAX, 128]));
    v.refused(3, &["model.safetensors"]);

    let v = Victim::new();
    v.header(|h| h[DOWN]["shape"] = json!([128, 64]));
    v.refused(3, &[DOWN, "64"]);

    let v = Victim::new();
    v.header(|h| {
        let tensor = h.as_object_mut().unwrap().remove(DOWN).unwrap();
        h["model.layers.1.mlp.other.weight"] = tensor;
    });
    v.refused(3, &["model.layers.1.mlp."]);
}

#[test]
fn weights_that_are_not_numbers_are_named() {
    for (bits, shown) in [(0x7e00u16, "NaN"), (0x7c00, "inf"), (0xfc00, "-inf")] {
        let v = Victim::new();
        let mut bytes = v.weights();
        let at = v.data(DOWN) + 2 * (3 * 128 + 9);
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        std::fs::write(v.path("model.safetensors"), bytes).unwrap();
        v.refused(3, &["model.safetensors", DOWN, "row 3", "column 9", shown]);
    }
}

#[test]
fn weights_too_large_for_the_type() {
    let v = Victim::new();
    let at = v.data(DOWN);
    let len = 64 * 128 * 2;
    // The same bits read as BF16 are numbers that F16 cannot hold.
    v.header(|h| h[DOWN]["dtype"] = json!("BF16"));
    let mut bytes = v.weights();
    let at = at + bytes.len() - Victim::new().weights().len();
    for pair in bytes[at..at + len].chunks_exact_mut(2) {
        pair.copy_from_slice(&0x4980u16.to_le_bytes()); // 2^20
    }
    std::fs::write(v.path("model.safetensors"), bytes).unwrap();
    fails(&quantize(v.dir.path(), &["--to", "f16", "m"]), 3, &[DOWN, "too large for F16", "bf16"]);
    assert_eq!(names(v.dir.path()), ["m"]);
    assert!(quantize(v.dir.path(), &["--to", "bf16", "m"]).status.success());
}

#[test]
fn shards_and_their_index_must_agree() {
    let v = Victim::new();
    std::fs::rename(v.path("model.safetensors"), v.path("model-00001-of-00002.safetensors")).unwrap();
    let index = |map: Value| {
        std::fs::write(v.path("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap()
    };
    index(json!({ DOWN: "model-00002-of-00002.safetensors" }));
    v.refused(3, &["model-00002-of-00002.safetensors"]);
    index(json!({ "model.absent.weight": "model-00001-of-00002.safetensors" }));
    v.refused(3, &["model.absent.weight"]);
    index(json!({ DOWN: "../../etc/passwd" }));
    v.refused(3, &["index"]);
    std::fs::write(v.path("model.safetensors.index.json"), "{").unwrap();
    v.refused(3, &["model.safetensors.index.json"]);
}

#[test]
fn contradictions_are_found_before_weights_are_read() {
    let v = Victim::new();
    std::fs::remove_file(v.path("tokenizer.json")).unwrap();
    v.refused(3, &["no tokenizer"]);

    let v = Victim::new();
    std::fs::write(v.path("tokenizer.json"), "[]").unwrap();
    v.refused(3, &["tokenizer.json"]);

    let v = Victim::new();
    std::fs::remove_file(v.path("config.json")).unwrap();
    v.refused(3, &["config.json"]);

    let v = Victim::new();
    std::fs::write(v.path("config.json"), "not json").unwrap();
    v.refused(3, &["config.json"]);

    let v = Victim::new();
    v.config(|c| c["architectures"] = json!(["MambaForCausalLM"]));
    v.refused(4, &["MambaForCausalLM", "LlamaForCausalLM", "Gemma2ForCausalLM"]);

    let v = Victim::new();
    v.config(|c| c["num_hidden_layers"] = json!(4));
    v.refused(3, &["model.layers.3."]);

    let v = Victim::new();
    v.config(|c| c["num_attention_heads"] = json!(0));
    v.refused(3, &["config.json", "heads is 0"]);

    let v = Victim::new();
    v.config(|c| c["hidden_size"] = json!(1u64 << 60));
    v.refused(3, &[]);

    let v = Victim::new();
    std::fs::remove_file(v.path("model.safetensors")).unwrap();
    std::fs::write(v.path("pytorch_model.bin"), "x").unwrap();
    v.refused(3, &["safetensors"]);
}

#[test]
fn damaged_gguf_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(quantize(dir.path(), &["--to", "f16", fixture().to_str().unwrap(), "-o", "a.gguf"]).status.success());
    let bytes = std::fs::read(dir.path().join("a.gguf")).unwrap();
    for len in [0, 3, 24, 1000, 50_000, bytes.len() - 100] {
        std::fs::write(dir.path().join("b.gguf"), &bytes[..len]).unwrap();
        fails(&quantize(dir.path(), &["--to", "q8_0", "b.gguf"]), 3, &["b.gguf"]);
        fails(&quantize(dir.path(), &["inspect", "b.gguf"]), 3, &["b.gguf"]);
    }
    // Counts that no file can hold.
    for at in [8, 16] {
        let mut huge = bytes.clone();
        huge[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(dir.path().join("b.gguf"), &huge).unwrap();
        fails(&quantize(dir.path(), &["verify", "b.gguf"]), 3, &["b.gguf"]);
    }
    assert_eq!(names(dir.path()), ["a.gguf", "b.gguf"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any few changed bytes of the header: a conversion or a clear error, never a panic or half a file.
    #[test]
    fn flipped_bytes_of_a_header_never_panic(flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..4)) {
        let v = Victim::new();
        let mut bytes = v.weights();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        std::fs::write(v.path("model.safetensors"), bytes).unwrap();
        let out = v.convert();
        let code = out.status.code();
        prop_assert!(matches!(code, Some(0 | 3 | 4)), "{:?}: {}", code, String::from_utf8_lossy(&out.stderr));
        let expected: &[&str] = if code == Some(0) { &["m", "m-Q8_0.gguf"] } else { &["m"] };
        prop_assert_eq!(names(v.dir.path()), expected);
    }
}

#[test]
fn targets_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture();
    let model = model.to_str().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", "file/x.gguf"]), 5, &["file/x.gguf"]);
    std::fs::create_dir(dir.path().join("x.gguf")).unwrap();
    let out = quantize(dir.path(), &["--to", "q8_0", model, "-o", "absent/folder/x.gguf"]);
    fails(&out, 5, &["absent/folder"]);
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", "/proc/self/x.gguf"]), 5, &["/proc/self"]);
    assert_eq!(names(dir.path()), ["file", "x.gguf"]);
}

/// A file system of one megabyte, in a mount namespace of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_found_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=1m tmpfs \"$1\" && cd \"$1\" && \"$2\" --to q8_0 \"$3\"; code=$?; ls -A; exit $code";
    let run = |flags: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).args(["sh", "-c", script, "sh"]).arg(dir.path());
        unshare.arg(env!("CARGO_BIN_EXE_quantize")).arg(fixture()).output()
    };
    let mounts =
        |out: &Output| !String::from_utf8_lossy(&out.stderr).contains("unshare:") && out.status.code() != Some(32);
    match [&["-m"][..], &["-Urm"]].into_iter().find_map(|flags| run(flags).ok().filter(mounts)) {
        Some(out) => {
            fails(&out, 5, &["needs 5.6 MB of disk"]);
            assert!(out.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&out.stdout));
        }
        None => eprintln!("skipped: this system allows no mount namespace"),
    }
}

/// Starts a conversion that takes a while and stops it with `signal` soon after its temporary files exist.
#[cfg(unix)]
fn stopped_by(signal: &str, dir: &Path) -> Option<i32> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantize"))
        .current_dir(dir)
        .args(["--to", "q4_k_m,q5_k_m,iq4_xs,iq3_s,iq3_m,q2_k,q3_k_m", "-t", "1"])
        .arg(fixture())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while names(dir).is_empty() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    child.wait().unwrap().code()
}

#[cfg(unix)]
#[test]
fn a_stopped_run_leaves_nothing_that_looks_finished() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stopped_by(signal, dir.path()), Some(75), "{signal}");
        assert!(names(dir.path()).is_empty(), "{signal}: {:?}", names(dir.path()));
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stopped_by("-KILL", dir.path()), None);
    assert!(names(dir.path()).iter().all(|n| n.starts_with('.') && n.ends_with(".partial")), "{:?}", names(dir.path()));
}
