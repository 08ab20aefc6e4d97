//! A conversion gives the same bytes with every instruction set of this machine and any number of threads.

use crate::common::{everything, model, one_layer};
use quantize::isa::Isa;
use quantize::quant::codec;
use quantize::quant::types::TYPES;
use quantize::source::{Checkpoint, Dtype};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn quantize(isa: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quantize")).env("QUANTIZE_ISA", isa).args(args).output().unwrap()
}

/// The digest of all tensors of a file, in order.
fn digest(path: &Path) -> Vec<u8> {
    let ckpt = Checkpoint::open(path).unwrap();
    let mut hash = Sha256::new();
    for file in ckpt.files().iter().filter(|_| path.is_dir()) {
        hash.update(std::fs::read(&file.path).unwrap());
    }
    // The header of a GGUF file says when it was made.
    for t in ckpt.tensors().iter().filter(|_| path.is_file()) {
        let mut bytes = vec![0; t.bytes() as usize];
        ckpt.read(t, 0, &mut bytes).unwrap();
        hash.update(t.name.as_bytes());
        hash.update(&bytes);
    }
    hash.finalize().to_vec()
}

/// Every instruction set of this machine; unless everything is tested the least, AVX2 and the best.
fn sets() -> Vec<&'static str> {
    let all: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let ends = [all.first(), all.last()].map(Option::<&&str>::cloned);
    all.iter().copied().filter(|set| everything() || *set == "avx2" || ends.contains(&Some(*set))).collect()
}

/// Converts with the instruction sets and with 1, 2 and 7 threads, asserts that the files are the same, and returns the
/// types that occur in them.
fn same_with_all(model: &Path, types: &[&str], more: &[&str]) -> BTreeSet<&'static str> {
    let mut occur = BTreeSet::new();
    let sets = sets();
    let mut first = None;
    // Every instruction set, and the best of them with several numbers of threads.
    let best = sets.last().copied().unwrap_or("scalar");
    let runs = sets.iter().copied().zip(["1", "2", "7"].into_iter().cycle());
    for (isa, threads) in runs.chain([(best, "2"), (best, "7")].into_iter().skip(usize::from(!everything()))) {
        let dir = tempfile::tempdir().unwrap();
        let (out, to) = (format!("{}/", dir.path().display()), types.join(","));
        let args = ["--to", &to, model.to_str().unwrap(), "-o", &out, "-t", threads, "--on-fallback", "allow"];
        let run = quantize(isa, &[&args[..], more].concat());
        assert!(run.status.success(), "{isa}: {}", String::from_utf8_lossy(&run.stderr));
        let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let digests: Vec<_> = files.iter().map(|f| digest(f)).collect();
        assert_eq!(digests.len(), types.len());
        assert_eq!(*first.get_or_insert_with(|| digests.clone()), digests, "{isa}, {threads} threads, {more:?}");
        for file in &files {
            let ckpt = Checkpoint::open(file).unwrap();
            occur.extend(ckpt.tensors().iter().filter_map(|t| match t.dtype {
                Dtype::Ggml(ty) => Some(ty.name()),
                _ => None,
            }));
        }
    }
    occur
}

/// Between them every type that is written without an importance matrix.
const PLAIN: [&str; 19] = [
    "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl",
    "iq4_xs", "iq3_s", "tq1_0", "tq2_0", "q1_0", "q2_0",
];

#[test]
fn instruction_sets_and_threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = one_layer(&dir.path().join("model"));
    let mut occur = same_with_all(&model, &PLAIN, &["--uncalibrated"]);
    occur.extend(same_with_all(
        &model,
        &["mxfp4_moe"],
        &["--tensor-type", "ffn_down=mxfp4", "--tensor-type", "ffn_up=nvfp4"],
    ));
    let all = TYPES.iter().filter(|row| codec(row.ty).is_some_and(|c| c.quantize.is_some()));
    let missing: Vec<_> =
        all.map(|row| row.ty.name()).filter(|ty| !occur.contains(ty) && !ASKING.contains(ty)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Between them every type with a search that takes importance.
const WEIGHTED: [&str; 14] = [
    "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "iq4_nl", "iq4_xs", "iq1_s", "iq1_m",
    "iq2_s", "iq3_xxs",
];

/// Types for which a conversion asks for a matrix.
const ASKING: [&str; 6] = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"];

#[test]
fn nor_do_they_with_an_importance_matrix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.gguf");
    let (model, imatrix) = (one_layer(&dir.path().join("model")), path.to_str().unwrap());
    let args = ["calibrate", model.to_str().unwrap(), "-o", imatrix, "--calibration-tokens", "640", "--seq-len", "64"];
    let run = Command::new(env!("CARGO_BIN_EXE_quantize")).args(args).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let mut occur = same_with_all(&model, &WEIGHTED, &["--imatrix", imatrix]);
    occur.extend(same_with_all(&model, &["iq2_xs"], &["--imatrix", imatrix, "--tensor-type", "attn_q=iq2_xxs"]));
    assert!(ASKING.iter().all(|ty| occur.contains(ty)), "{occur:?}");
}

#[test]
fn an_unknown_instruction_set_is_a_wrong_usage() {
    let run = quantize("avx99", &["inspect", model("tiny-llama").to_str().unwrap()]);
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(2), "{message}");
    assert!(message.contains("avx99") && message.contains("scalar"), "{message}");
}

/// Perplexity of four windows as `eval` reports it.
fn perplexity(isa: &str, model: &Path, dir: &Path) -> f64 {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("calibration/technical.txt");
    let report = dir.join(format!("{isa}.json"));
    let paths = [model, &text, &report].map(|p| p.to_str().unwrap());
    let run = quantize(
        isa,
        &[
            "eval", paths[0], "--text", paths[1], "--ctx", "64", "--chunks", "4", "--report", paths[2], "--quiet",
            "--force",
        ],
    );
    assert!(run.status.success(), "{isa}: {}", String::from_utf8_lossy(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    report["base"]["ppl"]["value"].as_f64().unwrap()
}

/// Matrix products may differ in their last bits from set to set, and so may all that is made with them.
#[test]
fn evaluation_and_error_feedback_run_with_every_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: String| dir.path().join(name);
    let mut plain = None;
    let mut reference = None;
    let model = one_layer(&dir.path().join("model"));
    for name in sets() {
        let (blocks, folder) = (path(format!("{name}.gguf")), path(format!("{name}-gptq")));
        let codebooks = path(format!("{name}-iq2_m.gguf"));
        let data = ["--calibration", "default", "--calibration-tokens", "512", "--seq-len", "64", "--quiet"];
        for (to, out) in [("q4_k_m", &blocks), ("iq2_m", &codebooks), ("gptq", &folder)] {
            let args = ["--to", to, model.to_str().unwrap(), "-o", out.to_str().unwrap()];
            let run = quantize(name, &[&args[..], &data].concat());
            assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
        }
        // Up to AVX2 the moments are one library's, so feedback has the same input and must give the same bytes.
        if name != "avx512" && name != "avx512bf16" {
            let digests = [&blocks, &codebooks, &folder].map(|path| digest(path));
            assert!(*plain.get_or_insert_with(|| digests.clone()) == digests, "{name}");
        }
        let figures = [perplexity(name, &model, dir.path()), perplexity(name, &blocks, dir.path())];
        let expected = *reference.get_or_insert(figures);
        assert!((figures[0] / expected[0] - 1.0).abs() < 1e-5, "{name}: {figures:?} {expected:?}");
        // A code or a scale that goes the other way is a difference between files.
        assert!((figures[1] / expected[1] - 1.0).abs() < 2e-2, "{name}: {figures:?} {expected:?}");
    }
}
