//! Finished files with other metadata, in shards and in one piece, and single tensors of them.

use crate::common::*;
use quantize::gguf::{self, Metadata, TensorInfo, Value};
use quantize::quant::GgmlType;
use std::path::Path;

fn made(dir: &Path, name: &str) {
    ok(quantize(dir, &["--to", "q8_0", &tiny(), "-o", name, "--no-check", "--quiet"]));
}

/// The bytes of the tensors.
fn data(path: &Path) -> Vec<u8> {
    let start = gguf::read_header(path).unwrap().data_start as usize;
    std::fs::read(path).unwrap().split_off(start)
}

#[test]
fn metadata_change_and_tensors_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    made(d, "a.gguf");
    let before = std::fs::read(d.join("a.gguf")).unwrap();
    std::fs::write(d.join("t.jinja"), "{{ messages[0].content }} ü").unwrap();
    let args = [
        "edit",
        "a.gguf",
        "-o",
        "b.gguf",
        "--set",
        "general.name=A: b",
        "--set",
        "x.list=[u32]:[1,2]",
        "--set",
        "llama.context_length=99",
        "--rename",
        "general.size_label=general.old",
        "--remove",
        "quantize.version",
        "--chat-template",
        "t.jinja",
        "--token-type",
        "5=control",
        "--stop-token",
        "eot=300",
    ];
    assert_eq!(ok(quantize(d, &args)), "b.gguf\n");
    let meta = gguf::read_header(&d.join("b.gguf")).unwrap().metadata;
    assert_eq!(meta.str("general.name"), Some("A: b"));
    assert_eq!(meta.get("x.list"), Some(&Value::from(vec![1u32, 2])));
    assert_eq!(meta.get("llama.context_length"), Some(&Value::U32(99)));
    assert!(meta.get("general.size_label").is_none() && meta.get("quantize.version").is_none());
    assert!(meta.str("general.old").is_some());
    assert_eq!(meta.str("tokenizer.chat_template"), Some("{{ messages[0].content }} ü"));
    assert_eq!(meta.uint("tokenizer.ggml.eot_token_id"), Some(300));
    assert_eq!(data(&d.join("a.gguf")), data(&d.join("b.gguf")));
    assert_eq!(std::fs::read(d.join("a.gguf")).unwrap(), before);
    // In its place; and back again it is the file that it was.
    ok(quantize(d, &["edit", "b.gguf", "--in-place", "--set", "general.name=C"]));
    assert_eq!(gguf::read_header(&d.join("b.gguf")).unwrap().metadata.str("general.name"), Some("C"));
    ok(quantize(d, &["edit", "a.gguf", "--in-place", "--rename", "general.name=n"]));
    ok(quantize(d, &["edit", "a.gguf", "--in-place", "--rename", "n=general.name"]));
    assert_eq!(std::fs::read(d.join("a.gguf")).unwrap(), before);
    ok(quantize(d, &["verify", "b.gguf"]));
    assert_eq!(names(d), ["a.gguf", "b.gguf", "t.jinja"]);
}

#[test]
fn bad_edits_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    made(d, "a.gguf");
    let before = digests(d);
    let edit = |args: &[&str]| quantize(d, &[&["edit", "a.gguf"], args].concat());
    fails(&edit(&["-o", "b.gguf"]), 2, &["nothing to change"]);
    fails(&edit(&["-o", "a.gguf", "--force", "--set", "a=b"]), 2, &["source itself"]);
    fails(&edit(&["-o", "b.gguf", "--set", "llama.context_length=-1"]), 2, &["u32"]);
    fails(&edit(&["-o", "b.gguf", "--set", "split.count=u16:3"]), 2, &["layout"]);
    fails(&edit(&["-o", "b.gguf", "--remove", "no.such.key"]), 2, &["no.such.key"]);
    fails(&edit(&["-o", "b.gguf", "--token-type", "<nothing>=control"]), 2, &["<nothing>"]);
    fails(&edit(&["--in-place", "--stop-token", "end=1"]), 2, &["eos"]);
    let ty = ["-o", "b.gguf", "--set", "general.file_type=i32:7"];
    fails(&edit(&ty), 2, &["llama.cpp could not use", "general.file_type"]);
    fails(&edit(&["-o", "b.gguf", "--chat-template", "absent"]), 3, &["absent"]);
    std::fs::write(d.join("c.gguf"), b"GGUF").unwrap();
    fails(&quantize(d, &["edit", "c.gguf", "--in-place", "--set", "a=b"]), 3, &["c.gguf"]);
    std::fs::remove_file(d.join("c.gguf")).unwrap();
    assert_eq!(digests(d), before);
}

#[test]
fn shards_go_together_again_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    made(d, "m.gguf");
    let whole = std::fs::read(d.join("m.gguf")).unwrap();
    let count = gguf::read_header(&d.join("m.gguf")).unwrap().tensors.len();
    for (flag, value) in [("--max-size", "40k"), ("--max-tensors", "7"), ("--count", "3")] {
        let out = ok(quantize(d, &["split", "m.gguf", flag, value, "-o", "s"]));
        let shards: Vec<&str> = out.lines().collect();
        let n = shards.len();
        assert!(n > 1);
        for (i, shard) in shards.iter().enumerate() {
            assert_eq!(*shard, format!("s-{:05}-of-{n:05}.gguf", i + 1));
            let header = gguf::read_header(&d.join(shard)).unwrap();
            // As llama.cpp's gguf-split types them.
            assert_eq!(header.metadata.get("split.no"), Some(&Value::U16(i as u16)));
            assert_eq!(header.metadata.get("split.count"), Some(&Value::U16(n as u16)));
            assert_eq!(header.metadata.get("split.tensors.count"), Some(&Value::I32(count as i32)));
            assert_eq!(header.metadata.str("general.architecture").is_some(), i == 0);
            if flag == "--max-tensors" {
                assert!(header.tensors.len() <= 7);
            }
        }
        let tokens: Vec<u32> = (1..9).collect();
        assert_eq!(logits(&d.join(shards[0]), &tokens), logits(&d.join("m.gguf"), &tokens));
        // Of a shard behind the first the metadata are elsewhere.
        let behind = quantize(d, &["edit", shards[1], "--in-place", "--set", "a=b"]);
        fails(&behind, 3, &["first"]);
        ok(quantize(d, &["merge", shards[n - 1], "-o", "again.gguf"]));
        assert_eq!(std::fs::read(d.join("again.gguf")).unwrap(), whole);
        fails(&quantize(d, &["split", shards[0], "--count", "2"]), 2, &["merge"]);
        // A shard that is missing.
        std::fs::remove_file(d.join(shards[1])).unwrap();
        fails(&quantize(d, &["merge", shards[0], "-o", "x.gguf"]), 3, &["missing"]);
        names(d).iter().filter(|name| *name != "m.gguf").for_each(|name| std::fs::remove_file(d.join(name)).unwrap());
    }
    fails(&quantize(d, &["merge", "m.gguf", "-o", "x.gguf"]), 2, &["one piece"]);
    fails(&quantize(d, &["split", "m.gguf", "--max-size", "1G"]), 2, &["smaller"]);
    fails(&quantize(d, &["split", "m.gguf"]), 2, &["--max-size"]);
    assert_eq!(names(d), ["m.gguf"]);
}

/// Tensors of a size that nobody has read and written in the time of a test.
#[cfg(target_os = "linux")]
#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut meta = Metadata::new();
    meta.set("general.architecture", "llama");
    let tensor =
        |name: &str| TensorInfo { name: name.into(), dims: vec![1 << 15, 1 << 15], ty: GgmlType::F32, offset: 0 };
    let mut tensors = vec![tensor("a.weight"), tensor("b.weight"), tensor("c.weight")];
    let len = gguf::layout(&mut tensors, 32).unwrap();
    let header = gguf::encode_header(&meta, &tensors, 32);
    let file = std::fs::File::create(d.join("big.gguf")).unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.set_len(header.len() as u64 + len).unwrap();
    let mark = header.len() as u64 + tensors[1].offset + 12345;
    file.write_all_at(b"here", mark).unwrap();
    if file.metadata().unwrap().blocks() > 1 << 16 {
        return; // This file system has no holes.
    }
    ok(quantize(d, &["edit", "big.gguf", "-o", "out.gguf", "--set", "general.name=a longer name than before"]));
    let out = std::fs::File::open(d.join("out.gguf")).unwrap();
    let header = gguf::read_header(&d.join("out.gguf")).unwrap();
    assert!(out.metadata().unwrap().blocks() < 1 << 16);
    let mut read = [0; 4];
    out.read_exact_at(&mut read, header.data_start + header.tensors[1].offset + 12345).unwrap();
    assert_eq!(&read, b"here");
}

#[test]
fn single_tensors_are_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    ok(quantize(d, &["--to", "q4_0", &family("mixtral"), "-o", "m.gguf", "--no-check", "--quiet"]));
    let extract = |args: &[&str]| quantize(d, &[&["extract", "m.gguf"], args].concat());
    ok(extract(&["--tensor", "blk.0.ffn_gate_exps", "--tensor", "norm", "-o", "t.safetensors"]));
    let whole = quantize::source::Checkpoint::open(&d.join("m.gguf")).unwrap();
    let taken = quantize::source::Checkpoint::open(&d.join("t.safetensors")).unwrap();
    let read = |c: &quantize::source::Checkpoint, name: &str| {
        let t = &c.tensors()[c.find(name).unwrap()];
        let mut out = vec![0.0; t.elements()];
        c.read_f32(t, 0..out.len(), &mut Vec::new(), &mut out).unwrap();
        (t.shape.clone(), out)
    };
    assert!(taken.tensors().len() > 3);
    for t in taken.tensors() {
        assert_eq!(read(&taken, &t.name), read(&whole, &t.name), "{}", t.name);
    }
    ok(extract(&["--tensor", "blk.1.ffn_gate_exps", "--expert", "2", "-o", "e.npy"]));
    let bytes = std::fs::read(d.join("e.npy")).unwrap();
    let (shape, all) = read(&whole, "blk.1.ffn_gate_exps.weight");
    let start = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = String::from_utf8_lossy(&bytes[10..start]).into_owned();
    assert!(header.contains(&format!("'shape': ({}, {}, )", shape[1], shape[2])), "{header}");
    let values: Vec<f32> = bytes[start..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let each = shape[1] * shape[2];
    assert_eq!(values, all[2 * each..3 * each]);
    fails(&extract(&["--tensor", "norm", "-o", "n.npy"]), 2, &["one"]);
    fails(&extract(&["--tensor", "nothing", "-o", "n.npy"]), 2, &["nothing"]);
    fails(&extract(&["--tensor", "norm", "-o", "n.bin"]), 2, &[".safetensors"]);
    fails(&extract(&["--tensor", "gate_exps", "--expert", "9", "-o", "n.safetensors"]), 2, &["expert 9"]);
    assert_eq!(names(d), ["e.npy", "m.gguf", "t.safetensors"]);
}
