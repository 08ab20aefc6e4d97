//! A conversion gives the same bytes with every instruction set of this machine and any number of threads.

use quantize::quant::Isa;
use quantize::source::Checkpoint;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn quantize(isa: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantize")).env("QUANTIZE_ISA", isa).args(args).output().unwrap()
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama")
}

/// The digest of all tensors of a file, in order.
fn digest(path: &Path) -> Vec<u8> {
    let ckpt = Checkpoint::open(path).unwrap();
    let mut hash = Sha256::new();
    for t in ckpt.tensors() {
        let mut bytes = vec![0; t.bytes() as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        hash.update(t.name.as_bytes());
        hash.update(&bytes);
    }
    hash.finalize().to_vec()
}

#[test]
fn instruction_sets_and_threads_change_nothing() {
    let sets: Vec<&str> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect();
    let mut first = None;
    for (i, isa) in sets.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let threads = ["1", "2", "7"][i % 3];
        let (out, model) = (dir.path().to_str().unwrap(), tiny());
        let args =
            ["--to", "q4_k_m,q3_k_m,q5_1,iq4_nl", model.to_str().unwrap(), "-o", &format!("{out}/"), "-t", threads];
        let run = quantize(isa, &args);
        assert!(run.status.success(), "{isa}: {}", String::from_utf8_lossy(&run.stderr));
        let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let digests: Vec<_> = files.iter().map(|f| digest(f)).collect();
        assert_eq!(digests.len(), 4);
        assert_eq!(*first.get_or_insert_with(|| digests.clone()), digests, "{isa}, {threads} threads");
    }
}

#[test]
fn an_unknown_instruction_set_is_a_wrong_usage() {
    let run = quantize("avx99", &["inspect", tiny().to_str().unwrap()]);
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(2), "{message}");
    assert!(message.contains("avx99") && message.contains("scalar"), "{message}");
}
