//! What a stranger would break: damaged and contradictory checkpoints, targets that cannot be written, runs that are
//! stopped. One clear error each, the right exit code, and nothing left behind.

use crate::common::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A small checkpoint in a folder of its own that can be damaged.
struct Victim {
    dir: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let small = model("llama");
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

/// Whether a file system of a few megabytes can be mounted in a namespace of its own; runs `script` in it with the folder,
/// the binary and the fixture as `$1`, `$2` and `$3`.
#[cfg(target_os = "linux")]
fn in_a_namespace(dir: &Path, script: &str) -> Option<Output> {
    let run = |flags: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).args(["sh", "-c", script, "sh"]).arg(dir);
        unshare.arg(env!("CARGO_BIN_EXE_quantize")).arg(model("tiny-llama")).output()
    };
    let mounts =
        |out: &Output| !String::from_utf8_lossy(&out.stderr).contains("unshare:") && out.status.code() != Some(32);
    let out = [&["-m"][..], &["-Urm"]].into_iter().find_map(|flags| run(flags).ok().filter(mounts));
    if out.is_none() {
        eprintln!("skipped: this system allows no mount namespace");
    }
    out
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
    v.config(|c| c["architectures"] = json!(["UnheardForCausalLM"]));
    v.refused(4, &["UnheardForCausalLM", "of any architecture", "quantize families"]);

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
    assert!(
        quantize(dir.path(), &["--to", "f16", model("tiny-llama").to_str().unwrap(), "-o", "a.gguf"]).status.success()
    );
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
    let model = model("tiny-llama");
    let model = model.to_str().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", "file/x.gguf"]), 5, &["file/x.gguf"]);
    std::fs::create_dir(dir.path().join("x.gguf")).unwrap();
    let out = quantize(dir.path(), &["--to", "q8_0", model, "-o", "absent/folder/x.gguf"]);
    fails(&out, 5, &["absent/folder"]);
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", "/proc/self/x.gguf"]), 5, &["/proc/self"]);
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", "file"]), 2, &["file is neither a folder nor"]);
    let out = quantize(dir.path(), &["--to", "q8_0", model, "-o", "{type}.gguf", "--force"]);
    assert!(out.status.success());
    std::fs::remove_file(dir.path().join("Q8_0.gguf")).unwrap();
    std::fs::create_dir(dir.path().join("Q8_0.gguf")).unwrap();
    let out = quantize(dir.path(), &["--to", "q8_0", model, "-o", "{type}.gguf", "--force"]);
    fails(&out, 2, &["Q8_0.gguf is a folder"]);
    let long = format!("{}.gguf", "a".repeat(250));
    assert!(quantize(dir.path(), &["--to", "q8_0", model, "-o", &long[5..]]).status.success());
    std::fs::remove_file(dir.path().join(&long[5..])).unwrap();
    fails(&quantize(dir.path(), &["--to", "q8_0", model, "-o", &format!("a{long}")]), 5, &["aaa"]);
    assert_eq!(names(dir.path()), ["Q8_0.gguf", "file", "x.gguf"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_found_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=1m tmpfs \"$1\" && cd \"$1\" && \"$2\" --to q8_0 \"$3\"; code=$?; ls -A; exit $code";
    if let Some(out) = in_a_namespace(dir.path(), script) {
        fails(&out, 5, &["needs 5.6 MB of disk"]);
        assert!(out.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&out.stdout));
    }
    // The first of two files fits, the second does not: neither stays.
    let script = "mount -t tmpfs -o size=7m tmpfs \"$1\" && cd \"$1\" && \"$2\" --to q8_0,q4_k_m \"$3\"; code=$?; ls -A; exit $code";
    if let Some(out) = in_a_namespace(dir.path(), script) {
        fails(&out, 5, &["Q4_K_M.gguf", "of disk"]);
        assert!(out.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&out.stdout));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_target_is_found_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o ro tmpfs \"$1\" && \"$2\" --to q8_0 \"$3\" -o \"$1/x.gguf\"";
    if let Some(out) = in_a_namespace(dir.path(), script) {
        fails(&out, 5, &["x.gguf", "read-only"]);
    }
}

/// Starts a conversion that takes a while and stops it with `signal` soon after its temporary files exist.
#[cfg(unix)]
fn stopped_by(signal: &str, dir: &Path) -> Option<i32> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quantize"))
        .current_dir(dir)
        .args(["--to", "q4_k_m,q5_k_m,iq4_xs,iq3_s,iq3_m,q2_k,q3_k_m", "--uncalibrated", "-t", "1"])
        .arg(model("tiny-llama"))
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

#[test]
fn files_that_are_not_what_their_names_say() {
    for (name, parts) in [
        ("config.json", &["config.json", "JSON"][..]),
        ("tokenizer.json", &["tokenizer.json", "JSON"]),
        ("tokenizer_config.json", &["tokenizer_config.json", "JSON"]),
        ("model.safetensors", &["model.safetensors", "too few"]),
    ] {
        let v = Victim::new();
        std::fs::write(v.path(name), "").unwrap();
        v.refused(3, parts);
        std::fs::remove_file(v.path(name)).unwrap();
        std::fs::create_dir(v.path(name)).unwrap();
        if name != "tokenizer_config.json" {
            v.refused(3, &[name.trim_end_matches(".json")]);
        }
    }
    let v = Victim::new();
    std::fs::write(v.path("config.json"), "[".repeat(100_000)).unwrap();
    v.refused(3, &["config.json", "recursion"]);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::remove_file(v.path(name)).unwrap();
    }
    v.refused(3, &["has no model"]);
    fails(&quantize(v.dir.path(), &["--to", "q8_0", "absent/model/folder"]), 3, &["absent/model/folder: no such"]);
}

/// A pipe that nobody writes to would stop the run for ever.
#[cfg(unix)]
#[test]
fn a_pipe_is_no_checkpoint() {
    let v = Victim::new();
    std::fs::remove_file(v.path("model.safetensors")).unwrap();
    assert!(Command::new("mkfifo").arg(v.path("model.safetensors")).status().unwrap().success());
    v.refused(3, &["model.safetensors: not a regular file"]);
}

#[test]
fn bad_numbers_are_found_wherever_they_are() {
    // In a vector that is kept in F32.
    let v = Victim::new();
    let norm = "model.layers.2.input_layernorm.weight";
    let mut bytes = v.weights();
    let at = v.data(norm) + 2 * 17;
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(v.path("model.safetensors"), bytes).unwrap();
    v.refused(3, &[norm, "column 17", "NaN"]);
    // In a GGUF source, which is copied where its type is the one that is asked for.
    let dir = tempfile::tempdir().unwrap();
    assert!(
        quantize(dir.path(), &["--to", "f16", model("tiny-llama").to_str().unwrap(), "-o", "a.gguf"]).status.success()
    );
    let header = quantize::gguf::read_header(&dir.path().join("a.gguf")).unwrap();
    let tensor = header.find("blk.4.ffn_up.weight").unwrap();
    let mut bytes = std::fs::read(dir.path().join("a.gguf")).unwrap();
    let at = (header.data_start + tensor.offset) as usize + 2 * (5 * 256 + 3);
    bytes[at..at + 2].copy_from_slice(&0xfc00u16.to_le_bytes());
    std::fs::write(dir.path().join("b.gguf"), bytes).unwrap();
    for ty in ["f16", "bf16", "q8_0", "q4_k_m"] {
        let out = quantize(dir.path(), &["--to", ty, "b.gguf", "-o", "c.gguf"]);
        fails(&out, 3, &["b.gguf", "blk.4.ffn_up.weight", "row 5, column 3", "-inf"]);
    }
    assert_eq!(names(dir.path()), ["a.gguf", "b.gguf"]);
}

#[test]
fn finite_weights_too_large_for_a_scale() {
    let v = Victim::new();
    let grown = v.weights().len();
    let at = v.data(DOWN);
    v.header(|h| h[DOWN]["dtype"] = json!("BF16"));
    let mut bytes = v.weights();
    let at = at + bytes.len() - grown + 2 * (7 * 128 + 40);
    bytes[at..at + 2].copy_from_slice(&0x7f00u16.to_le_bytes()); // 1.7e38
    std::fs::write(v.path("model.safetensors"), bytes).unwrap();
    for ty in ["f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"] {
        let out = quantize(v.dir.path(), &["--to", ty, "m"]);
        fails(&out, 3, &[DOWN, "near row 7,", "too large for", "--tensor-type"]);
        assert_eq!(names(v.dir.path()), ["m"], "{ty}");
    }
    // What the hint says helps.
    let hint = r"blk\.1\.ffn_down\.weight=bf16";
    assert!(quantize(v.dir.path(), &["--to", "q8_0", "m", "--tensor-type", hint]).status.success());
}

#[test]
fn configurations_that_contradict_the_weights() {
    let changed = |key: &str, value: Value| {
        let v = Victim::new();
        v.config(|c| c[key] = value);
        v
    };
    changed("num_key_value_heads", json!(3)).refused(3, &["config.json", "3 key-value heads"]);
    changed("num_key_value_heads", json!(4)).refused(3, &["k_proj"]);
    changed("intermediate_size", json!(256)).refused(3, &["mlp.", "256"]);
    changed("num_hidden_layers", json!(2)).refused(3, &["model.layers.2."]);
    changed("num_hidden_layers", json!(u64::MAX)).refused(3, &["config.json"]);
    changed("vocab_size", json!(100)).refused(3, &["[320, 64]", "[100, 64]"]);
    changed("hidden_act", json!("gelu")).refused(4, &["hidden_act", "gelu"]);
    changed("quantization_config", json!({ "quant_method": "gptq" })).refused(4, &["already quantized", "original"]);

    // An output that is said to be the embedding, and is not, is kept.
    let out = changed("tie_word_embeddings", json!(true)).convert();
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && message.contains("30 source tensors: 30 written, 0 dropped"), "{message}");
    // An output that is neither there nor said to be the embedding.
    let v = Victim::new();
    v.header(|h| {
        let head = h.as_object_mut().unwrap().remove("lm_head.weight").unwrap();
        h["model.layers.0.self_attn.rotary_emb.inv_freq"] = head;
    });
    v.refused(3, &["lm_head.weight", "tie_word_embeddings"]);
    // A tensor that no one can place.
    let v = Victim::new();
    v.header(|h| {
        let norm = h.as_object_mut().unwrap().remove("model.norm.weight").unwrap();
        h["model.surprise.weight"] = norm;
    });
    v.refused(3, &["model."]);
    // Whole numbers are no weights.
    let v = Victim::new();
    v.header(|h| {
        h[DOWN]["dtype"] = json!("I16");
    });
    let out = v.convert();
    assert!(matches!(out.status.code(), Some(3 | 4)), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains(DOWN));
}

#[test]
fn gguf_tensors_that_overlap_or_lie_outside() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a.gguf");
    assert!(
        quantize(dir.path(), &["--to", "q8_0", model("tiny-llama").to_str().unwrap(), "-o", "a.gguf"]).status.success()
    );
    let header = quantize::gguf::read_header(&source).unwrap();
    let bytes = std::fs::read(&source).unwrap();
    for offset in [0, header.tensors[1].offset, 32, 33, 1 << 40, u64::MAX - 31] {
        let mut tensors = header.tensors.clone();
        tensors[7].offset = offset;
        let mut changed = bytes.clone();
        let new = quantize::gguf::encode_header(&header.metadata, &tensors, header.alignment);
        changed[..new.len()].copy_from_slice(&new);
        std::fs::write(dir.path().join("b.gguf"), changed).unwrap();
        for args in
            [&["inspect", "b.gguf"][..], &["verify", "b.gguf"], &["--to", "f16", "b.gguf", "--allow-requantize"]]
        {
            fails(&quantize(dir.path(), args), 3, &["b.gguf", &header.tensors[7].name]);
        }
    }
    assert_eq!(names(dir.path()), ["a.gguf", "b.gguf"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The same for what stands beside the weights.
    #[test]
    fn flipped_bytes_of_the_small_files_never_panic(
        which in 0usize..3, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<bool>()
    ) {
        let v = Victim::new();
        let name = ["config.json", "tokenizer.json", "tokenizer_config.json"][which];
        let mut bytes = std::fs::read(v.path(name)).unwrap();
        for (at, byte) in &flips {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if cut {
            bytes.truncate(flips[0].0.index(bytes.len()));
        }
        std::fs::write(v.path(name), bytes).unwrap();
        let out = v.convert();
        let code = out.status.code();
        prop_assert!(matches!(code, Some(0 | 3 | 4)), "{:?}: {}", code, String::from_utf8_lossy(&out.stderr));
        let expected: &[&str] = if code == Some(0) { &["m", "m-Q8_0.gguf"] } else { &["m"] };
        prop_assert_eq!(names(v.dir.path()), expected);
    }

    /// And for a GGUF file's header.
    #[test]
    fn flipped_bytes_of_a_gguf_header_never_panic(flips in prop::collection::vec((0usize..6000, any::<u8>()), 1..4)) {
        let v = Victim::new();
        prop_assert!(quantize(v.dir.path(), &["--to", "f16", "m", "-o", "a.gguf"]).status.success());
        let mut bytes = std::fs::read(v.dir.path().join("a.gguf")).unwrap();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        std::fs::write(v.dir.path().join("a.gguf"), bytes).unwrap();
        for args in [&["verify", "a.gguf"][..], &["--to", "q8_0", "a.gguf", "-o", "b.gguf"]] {
            let out = quantize(v.dir.path(), args);
            let code = out.status.code();
            prop_assert!(matches!(code, Some(0 | 3 | 4)), "{:?}: {}", code, String::from_utf8_lossy(&out.stderr));
            prop_assert_eq!(v.dir.path().join("b.gguf").exists(), code == Some(0) && args[0] != "verify");
        }
    }
}

/// Found by fuzzing: what the library that runs tokenizers panics at is refused first.
#[test]
fn tokenizers_that_end_the_library_are_refused() {
    let encoded = |folder: &Path| quantize::model::tokenizer::Tokenizer::from_hf_dir(folder).map(|_| ());
    let seed = |name: &str| std::fs::read(repo(&format!("tests/fuzz/seeds/{name}"))).unwrap();

    let v = Victim::new();
    std::fs::remove_file(v.path("tokenizer.json")).unwrap();
    let both = seed("vocab_merges/longer-than-any-token");
    let (vocab, merges) = both.split_at(both.iter().position(|b| *b == 0).unwrap());
    std::fs::write(v.path("vocab.json"), vocab).unwrap();
    std::fs::write(v.path("merges.txt"), &merges[1..]).unwrap();
    std::fs::write(v.path("tokenizer_config.json"), r#"{"tokenizer_class": "GPT2Tokenizer"}"#).unwrap();
    let error = encoded(&v.dir.path().join("m")).unwrap_err();
    assert!(error.to_string().contains("makes no token"), "{error}");

    let v = Victim::new();
    std::fs::write(v.path("tokenizer.json"), seed("tokenizer_json/bare-key")).unwrap();
    encoded(&v.dir.path().join("m")).unwrap_err();
}
