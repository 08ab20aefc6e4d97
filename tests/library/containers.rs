//! Containers that are sound: what this crate, gguf-py, gguf-rs and safetensors write and read agrees, and a checkpoint
//! finds its tensors in whole files, in shards and in split GGUF models. Damaged ones are in `containers_hostile.rs`.

use crate::common::repo;
use gguf_rs::get_gguf_container_array_size;
use quantize::Cancel;
use quantize::gguf::{Array, Header, Metadata, TensorInfo, Value, encode_header, layout, parse_header, read_header};
use quantize::quant::GgmlType;
use quantize::source::{Checkpoint, Dtype, sha256_file};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::Path;

fn tensor(name: &str, dims: &[u64], ty: GgmlType) -> TensorInfo {
    TensorInfo { name: name.into(), dims: dims.to_vec(), ty, offset: 0 }
}

/// A whole GGUF file in memory, its data counting up from zero.
fn gguf_bytes(metadata: &Metadata, tensors: &mut [TensorInfo], alignment: u64) -> Vec<u8> {
    let data = layout(tensors, alignment).unwrap();
    let mut bytes = encode_header(metadata, tensors, alignment);
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn parse(bytes: &[u8]) -> quantize::Result<Header> {
    parse_header(bytes, bytes.len() as u64, Path::new("in-memory.gguf"))
}

/// One value of every type, with the awkward ones: empty arrays and strings, text beyond ASCII, nested arrays.
fn every_type() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("a.u8", u8::MAX);
    m.set("a.i8", i8::MIN);
    m.set("a.u16", u16::MAX);
    m.set("a.i16", i16::MIN);
    m.set("a.u32", u32::MAX);
    m.set("a.i32", i32::MIN);
    m.set("a.f32", f32::MIN_POSITIVE);
    m.set("a.bool", true);
    m.set("a.string", "héllo\n😀");
    m.set("a.empty", "");
    m.set("a.u64", u64::MAX);
    m.set("a.i64", i64::MIN);
    m.set("a.f64", std::f64::consts::PI);
    m.set("b.u8", vec![1u8, 2]);
    m.set("b.i8", vec![-1i8, 2]);
    m.set("b.u16", vec![1u16, 2]);
    m.set("b.i16", vec![-1i16, 2]);
    m.set("b.u32", (0..2000).collect::<Vec<u32>>());
    m.set("b.i32", vec![-1i32, 2]);
    m.set("b.f32", vec![0.5f32, -2.0]);
    m.set("b.bool", vec![true, false]);
    m.set("b.string", vec![String::new(), "é".to_string()]);
    m.set("b.u64", vec![u64::MAX]);
    m.set("b.i64", vec![i64::MIN]);
    m.set("b.f64", Vec::<f64>::new());
    m.set("b.nested", Value::Array(Array::Nested(vec![Array::U8(vec![1]), Array::Nested(vec![]), Array::F32(vec![])])));
    m
}

#[test]
fn a_written_header_reads_back_the_same() {
    let mut tensors = vec![
        tensor("token_embd.weight", &[64, 3], GgmlType::F32),
        tensor("a", &[3], GgmlType::F16),
        tensor("b", &[256, 2, 2], GgmlType::Q4_K),
        tensor("empty", &[0], GgmlType::F32),
        tensor("scalar", &[], GgmlType::F64),
    ];
    let metadata = every_type();
    let bytes = gguf_bytes(&metadata, &mut tensors, 32);
    let header = parse(&bytes).unwrap();
    assert_eq!(header.metadata, metadata);
    assert_eq!(header.tensors, tensors);
    assert_eq!((header.version, header.alignment, header.file_len), (3, 32, bytes.len() as u64));
    assert_eq!(tensors.iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 768, 800, 1376, 1376]);
    assert_eq!(header.data_start + 1376 + 32, header.file_len);
}

#[test]
fn version_2_is_read_like_3() {
    let mut bytes = gguf_bytes(&every_type(), &mut [tensor("a", &[4], GgmlType::F32)], 32);
    let v3 = parse(&bytes).unwrap();
    bytes[4] = 2;
    assert_eq!(parse(&bytes).unwrap(), Header { version: 2, ..v3 });
}

/// gguf-py's files parse to the values that were put in, and writing them again gives its bytes.
#[test]
fn files_of_gguf_py_are_rewritten_byte_for_byte() {
    for name in ["gguf-py.gguf", "aligned-64.gguf"] {
        let path = repo("tests/fuzz/seeds/gguf_header").join(name);
        let bytes = fs::read(&path).unwrap();
        let header = read_header(&path).unwrap();
        let mut tensors = header.tensors.clone();
        let data = layout(&mut tensors, header.alignment).unwrap();
        assert_eq!(tensors, header.tensors, "{name}: the same places");
        assert_eq!(header.data_start + data, header.file_len, "{name}: the same padding at the end");
        let ours = encode_header(&header.metadata, &tensors, header.alignment);
        assert!(ours == bytes[..header.data_start as usize], "{name}: the same header");
    }
    let header = read_header(&repo("tests/fuzz/seeds/gguf_header/gguf-py.gguf")).unwrap();
    assert_eq!(header.metadata.get("t.u64"), Some(&Value::U64((1 << 63) + 1)));
    assert_eq!(header.metadata.get("t.i16"), Some(&Value::I16(-300)));
    assert_eq!(header.metadata.str("t.string"), Some("naïve ✓"));
    let nested = Array::Nested(vec![Array::I32(vec![1, 2, 3]), Array::I32(vec![4])]);
    assert_eq!(header.metadata.get("t.nested"), Some(&Value::Array(nested)));
    assert_eq!(header.find("blk.0.ffn_down_exps.weight").unwrap().dims, [64, 2, 2]);
    assert_eq!(header.find("blk.0.ffn_down_exps.weight").unwrap().ty, GgmlType::Q8_0);
}

/// gguf-rs reads what we write. Only types whose sizes it computes right are used.
#[test]
fn gguf_rs_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut metadata = every_type();
    metadata.remove("b.nested");
    let mut tensors = vec![
        tensor("token_embd.weight", &[64, 3], GgmlType::F32),
        tensor("a.weight", &[32, 5], GgmlType::F16),
        tensor("b.weight", &[256, 2, 2], GgmlType::Q4_K),
        tensor("c.weight", &[256, 2], GgmlType::Q6_K),
        tensor("d.weight", &[32], GgmlType::Q8_0),
    ];
    fs::write(&path, gguf_bytes(&metadata, &mut tensors, 32)).unwrap();
    let ours = read_header(&path).unwrap();
    let theirs = get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap().decode().unwrap();
    assert_eq!(theirs.get_version(), "v3");
    assert_eq!(theirs.data_offset(), ours.data_start);
    assert_eq!(theirs.tensors().len(), tensors.len());
    for (t, ours) in theirs.tensors().iter().zip(&ours.tensors) {
        assert_eq!((&t.name, &t.shape, t.kind), (&ours.name, &ours.dims, ours.ty as u32));
        assert_eq!((t.offset, Some(t.size)), (ours.offset, ours.bytes()), "{}", t.name);
    }
    let keys: std::collections::BTreeSet<_> = metadata.iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(theirs.metadata().keys().cloned().collect::<std::collections::BTreeSet<_>>(), keys);
    assert_eq!(theirs.metadata()["a.u64"].as_u64(), Some(u64::MAX));
    assert_eq!(theirs.metadata()["a.string"].as_str(), Some("héllo\n😀"));
    assert_eq!(theirs.metadata()["b.u32"].as_array().map(Vec::len), Some(2000));
}

/// Every tensor of the conformance checkpoints: the place, the bytes and the values are those of the reference reader.
#[test]
fn conformance_checkpoints_are_read_as_safetensors_reads_them() {
    let mut checked = 0;
    for entry in fs::read_dir(repo("tests/conformance")).unwrap() {
        let dir = entry.unwrap().path();
        let Ok(bytes) = fs::read(dir.join("model.safetensors")) else { continue };
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(checkpoint.tensors().len(), reference.len());
        assert_eq!(checkpoint.dir(), dir);
        assert_eq!(checkpoint.files().len(), 1);
        assert!(checkpoint.gguf().is_none());
        let mut scratch = Vec::new();
        for (i, t) in checkpoint.tensors().iter().enumerate() {
            let view = reference.tensor(&t.name).unwrap();
            assert_eq!(checkpoint.find(&t.name), Some(i));
            assert_eq!(t.shape, view.shape());
            let mut raw = vec![0; t.bytes() as usize];
            checkpoint.read(t, 0, &mut raw).unwrap();
            assert!(raw == view.data(), "{}", t.name);
            let mut values = vec![f32::NAN; t.elements()];
            checkpoint.read_f32(t, 0..t.elements(), &mut scratch, &mut values).unwrap();
            assert_eq!(values, reference_values(&view), "{}", t.name);
            // And a part from the middle.
            let part = t.elements() / 3..t.elements() / 2;
            let mut middle = vec![f32::NAN; part.len()];
            checkpoint.read_f32(t, part.clone(), &mut scratch, &mut middle).unwrap();
            assert_eq!(middle, values[part]);
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} tensors");
}

fn reference_values(view: &TensorView) -> Vec<f32> {
    let pairs = view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    match view.dtype() {
        safetensors::Dtype::BF16 => pairs.map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        safetensors::Dtype::F16 => pairs.map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        safetensors::Dtype::F32 => {
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        other => panic!("{other:?} in a conformance checkpoint"),
    }
}

#[test]
fn numpys_safetensors_file_opens_as_a_file() {
    let path = repo("tests/fuzz/seeds/safetensors_header/numpy.safetensors");
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.dir(), path.parent().unwrap());
    let get = |name: &str| &checkpoint.tensors()[checkpoint.find(name).unwrap()];
    assert_eq!(get("model.embed_tokens.weight").shape, [4, 2]);
    assert_eq!(get("empty").shape, [0, 2]);
    assert_eq!(get("empty").bytes(), 0);
    assert_eq!((&get("scalar").shape, get("scalar").elements()), (&vec![], 1));
    assert_eq!(get("u").dtype, Dtype::U8);
    let mut value = [0.0];
    checkpoint.read_f32(get("scalar"), 0..1, &mut Vec::new(), &mut value).unwrap();
    assert_eq!(value, [3.0]);
    let error = checkpoint.read_f32(get("u"), 0..1, &mut Vec::new(), &mut value).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
}

#[test]
fn a_gguf_checkpoint_turns_dimensions_around() {
    let path = repo("tests/fuzz/seeds/gguf_header/gguf-py.gguf");
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.gguf().unwrap().str("general.architecture"), Some("llama"));
    let t = &checkpoint.tensors()[checkpoint.find("token_embd.weight").unwrap()];
    assert_eq!(t.shape, [4, 2]);
    let mut values = [0.0; 3];
    checkpoint.read_f32(t, 2..5, &mut Vec::new(), &mut values).unwrap();
    assert_eq!(values, [2.0, 3.0, 4.0]);
}

#[test]
fn a_split_gguf_model_is_opened_whole_from_any_of_its_shards() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |i: u16, n: u16, total: i32| {
        let mut m = Metadata::new();
        m.set("general.architecture", "llama");
        m.set("split.no", i);
        m.set("split.count", n);
        m.set("split.tensors.count", total);
        gguf_bytes(&m, &mut [tensor(&format!("t{i}"), &[4], GgmlType::I8)], 32)
    };
    let path = |i: u16| dir.path().join(format!("m-{:05}-of-00003.gguf", i + 1));
    for i in 0..3 {
        fs::write(path(i), shard(i, 3, 3)).unwrap();
    }
    for opened in [path(0), path(2), dir.path().to_path_buf()] {
        let checkpoint = Checkpoint::open(&opened).unwrap();
        assert_eq!(checkpoint.files().len(), 3);
        assert_eq!(checkpoint.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["t0", "t1", "t2"]);
        let mut bytes = [0; 4];
        checkpoint.read(&checkpoint.tensors()[2], 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 2, 3]);
        assert_eq!(checkpoint.gguf().unwrap().iter().count(), 1, "the split's own keys are gone");
    }

    let fails = |part: &str| {
        let error = Checkpoint::open(&path(0)).unwrap_err();
        assert!(error.to_string().contains(part) && error.exit_code() == 3, "{error}");
    };
    fs::write(path(1), shard(2, 3, 3)).unwrap();
    fails("m-00002-of-00003.gguf: its 'split.no'");
    fs::remove_file(path(1)).unwrap();
    fails("m-00002-of-00003.gguf: this shard of the model is missing");
    fs::write(path(1), shard(1, 3, 3)).unwrap();
    fs::write(path(0), shard(0, 3, 7)).unwrap();
    fails("'split.tensors.count' is 7, but the shards hold 3");
    let renamed = dir.path().join("renamed.gguf");
    fs::rename(path(0), &renamed).unwrap();
    let error = Checkpoint::open(&renamed).unwrap_err().to_string();
    assert!(error.contains("original names"), "{error}");
}

#[test]
fn many_threads_read_one_checkpoint() {
    let checkpoint = Checkpoint::open(&repo("tests/conformance/llama")).unwrap();
    let bytes = fs::read(repo("tests/conformance/llama/model.safetensors")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for t in checkpoint.tensors().iter().cycle().take(500) {
                    let mut raw = vec![0; t.bytes() as usize];
                    checkpoint.read(t, 0, &mut raw).unwrap();
                    assert!(raw == bytes[t.range.start as usize..t.range.end as usize]);
                }
            });
        }
    });
}

#[test]
fn a_file_cut_while_open_is_an_error_that_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::copy(repo("tests/conformance/llama/model.safetensors"), &path).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let t = checkpoint.tensors().last().unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(t.range.end - 1).unwrap();
    let error = checkpoint.read(t, 0, &mut vec![0; t.bytes() as usize]).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains(&t.name) && error.to_string().contains("became shorter"), "{error}");
    // Asking beyond the tensor is a bug of the caller, not of the file.
    assert_eq!(checkpoint.read(t, t.bytes(), &mut [0]).unwrap_err().exit_code(), 1);
}

#[test]
fn sha256_is_that_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc");
    fs::write(&path, "abc").unwrap();
    let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_file(&path, &Cancel::new()).unwrap(), want);
    assert_eq!(sha256_file(&dir.path().join("none"), &Cancel::new()).unwrap_err().exit_code(), 5);
}
