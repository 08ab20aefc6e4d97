//! Containers that are damaged or built to do harm: one clear error each, no panic, and memory in proportion to the
//! file. The allocator counts, so a reader that believes a count fails here.

use crate::common::repo;
use proptest::prelude::*;
use quantize::gguf::{Header, Metadata, TensorInfo, encode_header, layout, parse_header};
use quantize::quant::GgmlType;
use quantize::source::{Checkpoint, SafetensorsHeader, parse_safetensors_header};
use quantize::{Error, Result};
use safetensors::SafeTensors;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

/// The system's allocator, noting the largest single request of each thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to `System` unchanged; noting a number allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// The most memory that `read` asks for at once, in this thread.
pub fn largest<T>(read: impl FnOnce() -> T) -> usize {
    LARGEST.set(0);
    read();
    LARGEST.get()
}

/// Runs a reader on `bytes` and fails when it asks for more memory at once than a small multiple of them.
fn frugal<T>(bytes: &[u8], read: impl FnOnce() -> T) -> T {
    LARGEST.set(0);
    let result = read();
    let allowed = 16 * bytes.len() + 4096;
    assert!(LARGEST.get() <= allowed, "{} bytes asked for at once, for a file of {}", LARGEST.get(), bytes.len());
    result
}

fn gguf(bytes: &[u8]) -> Result<Header> {
    frugal(bytes, || parse_header(bytes, bytes.len() as u64, Path::new("hostile.gguf")))
}

fn safe(bytes: &[u8]) -> Result<SafetensorsHeader> {
    let path = Path::new("hostile.safetensors");
    let ours = frugal(bytes, || parse_safetensors_header(bytes, bytes.len() as u64, path));
    // What is accepted here is accepted by the reference.
    if ours.is_ok() {
        SafeTensors::deserialize(bytes).unwrap();
    }
    ours
}

/// The error's whole text, after checking its class and that it names the file.
fn text(error: Error) -> String {
    assert_eq!(error.exit_code(), 3, "{error}");
    let text = error.to_string();
    assert!(text.starts_with("hostile."), "{text}");
    text
}

fn seed(path: &str) -> Vec<u8> {
    fs::read(repo("tests/fuzz/seeds").join(path)).unwrap()
}

fn tensor(name: &str, dims: &[u64], ty: GgmlType, offset: u64) -> TensorInfo {
    TensorInfo { name: name.into(), dims: dims.to_vec(), ty, offset }
}

/// A GGUF file with this tensor table, as it is, and `data` bytes after it.
fn with_tensors(tensors: &[TensorInfo], data: usize) -> Vec<u8> {
    let mut bytes = encode_header(&Metadata::new(), tensors, 32);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A GGUF file with one metadata entry, whose type and value are given raw.
fn with_value(raw: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0u64, 1, 3].map(u64::to_le_bytes).as_flattened());
    bytes.extend(b"key");
    bytes.extend(raw.concat());
    bytes
}

fn with_json(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn a_truncated_gguf_file_is_refused_at_every_length() {
    let bytes = seed("gguf_header/gguf-py.gguf");
    let header = gguf(&bytes).unwrap();
    let last = header.tensors.last().unwrap();
    // Only the padding after the last tensor may be missing.
    let end = (header.data_start + last.offset + last.bytes().unwrap()) as usize;
    for len in 0..bytes.len() {
        let result = gguf(&bytes[..len]);
        assert_eq!(result.is_ok(), len >= end, "{len} of {}", bytes.len());
        result.err().map(text);
    }
}

#[test]
fn a_truncated_or_longer_safetensors_file_is_refused_at_every_length() {
    let bytes = seed("safetensors_header/numpy.safetensors");
    safe(&bytes).unwrap();
    for len in 0..bytes.len() {
        text(safe(&bytes[..len]).unwrap_err());
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(text(safe(&longer).unwrap_err()).contains("1 bytes at the end of the file belong to no tensor"));
}

/// No flip may panic or ask for memory. Where one is accepted, what was read is still consistent.
#[test]
fn every_flipped_bit_is_survived() {
    let bytes = seed("gguf_header/gguf-py.gguf");
    let start = gguf(&bytes).unwrap().data_start as usize;
    let mut refused = 0;
    for bit in 0..8 * start {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match gguf(&flipped) {
            Ok(h) => h.tensors.iter().for_each(|t| assert!(h.data_start + t.offset + t.bytes().unwrap() <= h.file_len)),
            Err(e) => {
                text(e);
                refused += 1;
            }
        }
    }
    assert!(refused > start, "{refused} of {} flips refused", 8 * start);

    let bytes = seed("safetensors_header/numpy.safetensors");
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        safe(&flipped).err().map(text);
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    let ok = with_tensors(&[], 0);
    gguf(&ok).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = ok.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        text(gguf(&bytes).unwrap_err())
    };
    assert!(with(4, &[1, 0, 0, 0]).contains("version 1 is not supported"));
    assert!(with(4, &[0, 0, 0, 3]).contains("big-endian"));
    assert!(with(4, &[9, 0, 0, 0]).contains("version 9 is unknown"));
    assert!(with(4, &[0, 0, 0, 0]).contains("version 0 is unknown"));
    assert!(with(0, b"tjgg").contains("before GGUF"));
    assert!(with(0, b"PK\x03\x04").contains("PyTorch"));
    assert!(with(0, b"vers").contains("git lfs pull"));
    assert!(text(safe(b"version https://git-lfs.github.com/spec/v1").unwrap_err()).contains("git lfs pull"));
    assert!(text(safe(b"PK\x03\x04\0\0\0\0\0\0\0\0").unwrap_err()).contains("PyTorch"));
}

#[test]
fn gguf_counts_are_held_against_the_file() {
    let huge = [u64::MAX, 1 << 62, 1 << 40, 1 << 32].map(u64::to_le_bytes);
    for n in &huge {
        let mut bytes = with_tensors(&[], 0);
        bytes.resize(160, 0);
        let original = bytes.clone();
        bytes[8..16].copy_from_slice(n);
        assert!(text(gguf(&bytes).unwrap_err()).contains("tensors, but only"));
        bytes = original;
        bytes[16..24].copy_from_slice(n);
        assert!(text(gguf(&bytes).unwrap_err()).contains("metadata entries, but only"));

        let string = with_value(&[&[8, 0, 0, 0], n, &[0; 100]]);
        assert!(text(gguf(&string).unwrap_err()).contains("metadata key 'key' claims"));
        for ty in 0..13u8 {
            let array = with_value(&[&[9, 0, 0, 0], &[ty, 0, 0, 0], n, &[0; 100]]);
            assert!(text(gguf(&array).unwrap_err()).contains("metadata key 'key' claims"), "type {ty}");
        }
    }
}

/// A file that only claims to be large (a sparse one costs nothing to make) does not get its strings' worth of memory.
#[test]
fn gguf_headers_have_a_cap() {
    let bytes = with_value(&[&[8, 0, 0, 0], &(1u64 << 39).to_le_bytes()]);
    let error = frugal(&bytes, || parse_header(&bytes[..], 1 << 40, Path::new("hostile.gguf"))).unwrap_err();
    assert!(text(error).contains("claims 549755813888 bytes of text"));
}

#[test]
fn names_in_errors_are_harmless() {
    let mut m = Metadata::new();
    m.set("\x1b[2J", 1u8);
    let mut bytes = encode_header(&m, &[], 32);
    bytes[32 + 4] = 99;
    assert!(text(gguf(&bytes).unwrap_err()).contains(r"metadata key '\u{1b}[2J' has the unknown value type"));
    let long = "n".repeat(70_000);
    let tensors = [tensor(&long, &[1], GgmlType::I8, 0)];
    assert!(text(gguf(&with_tensors(&tensors, 32)).unwrap_err()).contains("tensor 0 is longer than 65535"));
    let json = format!(r#"{{"x":{{"dtype":"{long}","shape":[],"data_offsets":[0,0]}}}}"#);
    assert!(text(safe(&with_json(&json, 0)).unwrap_err()).len() < 500);
    assert!(!text(safe(&with_json("{\"\\u001b[2J\":1}", 0)).unwrap_err()).contains('\x1b'));
}

#[test]
fn bad_gguf_values_are_named() {
    let fails = |raw: &[&[u8]], part: &str| {
        let text = text(gguf(&with_value(raw)).unwrap_err());
        assert!(text.contains("'key'") && text.contains(part), "{text}");
    };
    fails(&[&[13, 0, 0, 0], &[0; 16]], "unknown value type 13");
    fails(&[&[9, 0, 0, 0], &[77, 0, 0, 0], &[0; 8]], "array of the unknown value type 77");
    fails(&[&[7, 0, 0, 0], &[2]], "truth value 2");
    fails(&[&[8, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0], &[0xff, 0xfe]], "not valid UTF-8");
    let one_array = [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    fails(&[&[9, 0, 0, 0], &one_array.repeat(1000)], "nests arrays more than");

    let mut m = Metadata::new();
    let mut with_alignment = |value: quantize::gguf::Value| {
        m.set("general.alignment", value);
        text(gguf(&encode_header(&m, &[], 32)).unwrap_err())
    };
    assert!(with_alignment(0u32.into()).contains("not a power of two"));
    assert!(with_alignment(24u32.into()).contains("not a power of two"));
    assert!(with_alignment(32u64.into()).contains("not of type u32"));

    let mut twice = Metadata::new();
    twice.set("aa", 1u8);
    twice.set("ab", 1u8);
    let mut bytes = encode_header(&twice, &[], 32);
    let at = bytes.windows(2).position(|w| w == b"ab").unwrap();
    bytes[at + 1] = b'a';
    assert!(text(gguf(&bytes).unwrap_err()).contains("'aa' appears twice"));
    bytes[at - 8] = 0;
    assert!(text(gguf(&bytes).unwrap_err()).contains("metadata key 1 is empty"));
}

#[test]
fn bad_gguf_tensors_are_named() {
    let fails = |tensors: &[TensorInfo], part: &str| {
        let text = text(gguf(&with_tensors(tensors, 4096)).unwrap_err());
        assert!(text.contains("tensor 'x'") && text.contains(part), "{text}");
    };
    let f32s = |dims: &[u64], offset: u64| tensor("x", dims, GgmlType::F32, offset);
    let other = tensor("other", &[64], GgmlType::F32, 0);
    fails(&[f32s(&[4, 1, 1, 1, 1], 0)], "5 dimensions");
    fails(&[f32s(&[1 << 32, 1 << 32], 0)], "too many elements");
    fails(&[f32s(&[u64::MAX], 0)], "too many elements");
    fails(&[f32s(&[0, u64::MAX], 0)], "too many elements");
    fails(&[f32s(&[1 << 62, 1 << 62, 0], 0)], "too many elements");
    fails(&[f32s(&[1 << 62], 0)], "not a multiple");
    fails(&[tensor("x", &[1 << 62], GgmlType::I8, 0)], "reach beyond the file");
    fails(&[f32s(&[1025], 0)], "reach beyond the file");
    fails(&[f32s(&[4], 4096)], "reach beyond the file");
    fails(&[f32s(&[4], u64::MAX - 31)], "reach beyond the file");
    fails(&[f32s(&[4], 4)], "not a multiple of 32");
    fails(&[tensor("x", &[48, 2], GgmlType::Q8_0, 0)], "multiple of the 32-weight block");
    fails(&[tensor("x", &[], GgmlType::Q8_0, 0)], "multiple of the 32-weight block");
    fails(&[other.clone(), f32s(&[4], 224)], "overlaps that of tensor 'other'");
    fails(&[f32s(&[4], 0), f32s(&[4], 32)], "appears twice");
    // An empty tensor has a place too; found by fuzzing.
    let mut cut = with_tensors(&[tensor("x", &[0], GgmlType::F32, 0)], 0);
    gguf(&cut).unwrap();
    cut.pop();
    assert!(text(gguf(&cut).unwrap_err()).contains("the file ends within the padding"));
    let unknown = |id: u8| {
        let mut bytes = with_tensors(&[f32s(&[4], 0)], 64);
        let at = bytes.windows(9).position(|w| w == b"x\x01\0\0\0\x04\0\0\0").unwrap() + 13;
        bytes[at] = id;
        text(gguf(&bytes).unwrap_err())
    };
    assert!([4, 31, 200].map(unknown).iter().all(|e| e.contains("which is unknown")));
    // In any order on disk, as long as nothing overlaps.
    gguf(&with_tensors(&[f32s(&[4], 256), other], 4096)).unwrap();
}

#[test]
fn bad_safetensors_headers_are_named() {
    let fails = |json: &str, part: &str| {
        let text = text(safe(&with_json(json, 64)).unwrap_err());
        assert!(text.contains(part), "{text}");
    };
    let one = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let two = |from: u64, to: u64| {
        let first = r#""w":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}"#;
        format!("{{{first},{}}}", one("F32", "[8]", from, to))
    };
    safe(&with_json(&two(32, 64), 64)).unwrap();
    fails(&two(28, 60), "tensor 'x': its data at offset 28 overlaps");
    fails(&two(36, 68), "bytes 32 to 36 before it belong to no tensor");
    fails(&two(64, 32), "tensor 'x'");
    let object = |entry: String| format!("{{{entry}}}");
    fails(&object(one("F32", "[4]", 0, 64)), "tensor 'x': offsets 0 to 64 do not fit F32 [4]");
    fails(&object(one("F32", "[4294967296,4294967296]", 0, 64)), "too many elements");
    fails(&object(one("F32", "[4294967296,4294967296,0]", 0, 0)), "too many elements");
    fails(&object(one("F4", "[3]", 0, 1)), "whole byte");
    fails(&object(one("F32", "[32]", 0, 128)), "tensor 'x': its data ends at offset 128, but the file holds 64");
    fails(&object(one("F32", "[8]", 0, 32)), "32 bytes at the end of the file belong to no tensor");
    fails(&object(one("Q4", "[8]", 0, 32)), "not valid");
    fails(&object(one("F32", "[-8]", 0, 32)), "not valid");
    fails(&object(format!("{},{}", one("F32", "[16]", 0, 64), one("F32", "[16]", 0, 64))), "'x' appears twice");
    fails("[]", "not valid");
    fails(&"[".repeat(5000), "not valid");
    // Text in a field that nobody reads; found by fuzzing.
    let mut bytes = with_json(&object(one("F32", "[16]", 0, 64).replace("\"shape", "\"note\":\"?\",\"shape")), 64);
    safe(&bytes).unwrap();
    *bytes.iter_mut().find(|b| **b == b'?').unwrap() = 0xff;
    assert!(text(safe(&bytes).unwrap_err()).contains("not valid UTF-8"));
    let mut bytes = with_json("{}", 64);
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(text(safe(&bytes).unwrap_err()).contains("the header claims 1099511627776 bytes"));
}

/// A folder with two shards of one tensor each, `a` and `b`, and this index.
fn sharded(index: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in ["a", "b"].iter().enumerate() {
        let json = format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
        fs::write(dir.path().join(format!("s{}.safetensors", i + 1)), with_json(&json, 8)).unwrap();
    }
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let good = r#"{"metadata":{"total_size":16},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#;
    let dir = sharded(good);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.file)).collect::<Vec<_>>(),
        [("a", 0), ("b", 1)]
    );

    let fails = |dir: &Path, parts: &[&str]| {
        let error = Checkpoint::open(dir).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 3 && parts.iter().all(|p| text.contains(p)), "{text}");
    };
    let index = |map: &str, parts: &[&str]| {
        fails(sharded(&format!(r#"{{"weight_map":{map}}}"#)).path(), parts);
    };
    index(
        r#"{"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"}"#,
        &["s2.safetensors: tensor 'c'", "hint"],
    );
    index(r#"{"a":"s2.safetensors","b":"s2.safetensors"}"#, &["s2.safetensors: tensor 'a'"]);
    index(r#"{"a":"s1.safetensors","b":"s3.safetensors"}"#, &["s3.safetensors: no such file", "1 of the 2 shards"]);
    index(r#"{"a":"s1.safetensors","b":"../b.safetensors"}"#, &["tensor 'b'", "not a plain file name"]);
    index(r#"{"a":"s1.safetensors","b":"/etc/passwd"}"#, &["tensor 'b'", "not a plain file name"]);
    index(r#"{"a":"s1.safetensors","b":".."}"#, &["tensor 'b'", "not a plain file name"]);
    index("{}", &["index.json", "names no tensors"]);
    index("[]", &["index.json", "not valid"]);

    let twice = sharded(good);
    fs::copy(twice.path().join("s1.safetensors"), twice.path().join("s2.safetensors")).unwrap();
    fails(twice.path(), &["s2.safetensors: tensor 'b'", "it is not"]);

    let more = sharded(good);
    let json = concat!(
        r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
        r#""c":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#
    );
    fs::write(more.path().join("s2.safetensors"), with_json(json, 16)).unwrap();
    let left = Checkpoint::open(more.path()).unwrap();
    assert_eq!(left.tensors().len(), 2);
    assert!(
        left.remarks()[0].contains("'c'") && left.remarks()[0].contains("does not name it"),
        "{:?}",
        left.remarks()
    );
}

#[test]
fn paths_that_are_no_checkpoint_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |path: PathBuf, part: &str| {
        let error = Checkpoint::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(error.exit_code() == 3 && text.contains(part) && text.contains("hint: "), "{text}");
    };
    let put = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    fails(dir.path().join("none"), "no such file or folder");
    fails(dir.path().to_path_buf(), "has no model");
    fails(put("config.json", b"{}"), "neither a GGUF nor a .safetensors file");
    fails(put("pytorch_model.bin", b"PK"), "PyTorch");
    fails(dir.path().to_path_buf(), "PyTorch");
    put("a.gguf", &with_tensors(&[], 0));
    Checkpoint::open(dir.path()).unwrap();
    put("b.gguf", &with_tensors(&[], 0));
    fails(dir.path().to_path_buf(), "holds 2 GGUF files");
    put("a.safetensors", &with_json("{}", 0));
    Checkpoint::open(dir.path()).unwrap();
    put("b.safetensors", &with_json("{}", 0));
    fails(dir.path().to_path_buf(), "holds 2 .safetensors files");
    fails(put("c.gguf", b"hello, world"), "not a GGUF file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_survived(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = gguf(&tail);
        let _ = gguf(&[b"GGUF\x03\0\0\0", &tail[..]].concat());
        let _ = safe(&tail);
        let _ = safe(&[&(tail.len() as u64).to_le_bytes()[..], &tail].concat());
    }

    /// Sound files with a few bytes changed get far deeper than random ones.
    #[test]
    fn changed_bytes_are_survived(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..6),
    ) {
        for name in ["gguf_header/gguf-py.gguf", "gguf_header/aligned-64.gguf"] {
            let mut bytes = seed(name);
            changes.iter().for_each(|(at, new)| bytes[at.index(1472.min(seed(name).len()))] = *new);
            let _ = gguf(&bytes).map_err(text);
        }
        let mut bytes = seed("safetensors_header/numpy.safetensors");
        let len = bytes.len();
        changes.iter().for_each(|(at, new)| bytes[at.index(len)] = *new);
        let _ = safe(&bytes).map_err(text);
    }

    /// What the writer makes, the reader gives back, whatever the names, numbers and shapes.
    #[test]
    fn headers_survive_the_round_trip(
        entries in proptest::collection::hash_map(".{1,20}", (any::<u64>(), ".*", any::<Vec<i16>>()), 0..8),
        names in proptest::collection::hash_set(".{1,20}", 0..8),
        dims in proptest::collection::vec(0u64..5, 0..4),
        log_alignment in 0u32..10,
    ) {
        let alignment = 1u64 << log_alignment;
        let mut metadata = Metadata::new();
        metadata.set("general.alignment", alignment as u32);
        for (key, (number, string, array)) in &entries {
            metadata.set(format!("{key}.n"), *number);
            metadata.set(format!("{key}.s"), string.as_str());
            metadata.set(format!("{key}.a"), array.clone());
        }
        let mut tensors: Vec<_> = names.iter().map(|n| tensor(n, &dims, GgmlType::F16, 0)).collect();
        let data = layout(&mut tensors, alignment).unwrap();
        let mut bytes = encode_header(&metadata, &tensors, alignment);
        bytes.resize(bytes.len() + data as usize, 0);
        let header = gguf(&bytes).unwrap();
        prop_assert_eq!(header.metadata, metadata);
        prop_assert_eq!(header.tensors, tensors);
    }
}
