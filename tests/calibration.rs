//! `quantize calibrate`, and conversions with an importance matrix, run as a user runs them on the tiny models of
//! `tests/conformance` (see `containers.rs` for files alone).

use assert_cmd::Command;
use quantize::calibration::data::{Amount, Source, draw, run};
use quantize::calibration::imatrix::{Imatrix, UnseenExperts};
use quantize::calibration::stats::Statistics;
use quantize::gguf::{Metadata, read_header};
use quantize::infer::Observer;
use quantize::model::Model;
use quantize::runnable::Runnable;
use quantize::source::Checkpoint;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

fn quantize() -> Command {
    Command::cargo_bin("quantize").unwrap()
}

/// Runs, and returns standard output and standard error.
fn ok(command: &mut Command) -> (String, String) {
    let done = command.assert().success().get_output().clone();
    (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

fn fails(command: &mut Command, code: i32) -> String {
    let done = command.assert().code(code).get_output().clone();
    String::from_utf8(done.stderr).unwrap()
}

fn calibrate(name: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = quantize();
    command.args(["calibrate", "--quiet", "--seq-len", "32"]).arg(model(name)).arg("-o").arg(out).args(more);
    command
}

#[test]
fn every_family_is_calibrated_on_the_bundled_texts() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "gemma3", "phi3", "qwen2-moe"] {
        let out = dir.path().join(format!("{name}.gguf"));
        ok(&mut calibrate(name, &out, &["--calibration-tokens", "320"]));
        let imatrix = Imatrix::open(&out).unwrap();
        assert_eq!((imatrix.chunks, imatrix.chunk_size, &imatrix.datasets[..]), (10, 32, &["default".to_string()][..]));
        let ckpt = Checkpoint::open(&model(name)).unwrap();
        let model = Model::open(&ckpt).unwrap();
        imatrix.check(&model, &out).unwrap();
        // Every matrix in the layers has an entry, and each token went through it (once per chosen expert).
        for t in model.tensors.iter().filter(|t| t.role.is_linear() && t.layer.is_some()) {
            let entry = imatrix.entries.get(&t.name).unwrap_or_else(|| panic!("{name}: {}", t.name));
            let chosen = model.config.experts.as_ref().filter(|_| t.shape.len() > 2).map_or(1, |e| e.used as u64);
            assert_eq!(entry.counts.iter().sum::<u64>(), 320 * chosen, "{name}: {}", t.name);
        }
        assert!(!imatrix.entries.contains_key("output.weight"));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = ["1", "2", "5"]
        .iter()
        .map(|threads| {
            let out = dir.path().join(threads);
            let out = out.with_extension("gguf");
            ok(&mut calibrate("qwen3-moe", &out, &["--calibration-tokens", "640", "-t", threads]));
            std::fs::read(out).unwrap()
        })
        .collect();
    assert!(files.windows(2).all(|f| f[0] == f[1]));
}

/// Sums everything in `f64`, one number at a time.
struct Plain {
    sums: BTreeMap<(String, usize), (Vec<f64>, u64)>,
    cols: BTreeMap<String, usize>,
}

impl Observer for Plain {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: &[f32]) -> ControlFlow<()> {
        let cols = self.cols[linear];
        let (sums, count) = self.sums.entry((linear.into(), expert.unwrap_or(0))).or_insert((vec![0.0; cols], 0));
        for row in x.chunks_exact(cols) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            *count += 1;
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn sums_are_those_of_a_plain_observer() {
    let model = Runnable::open(&model("mixtral")).unwrap();
    let amount = Amount { tokens: 200, seq_len: 20, seed: 1 };
    let drawn = draw(&[Source::Random], amount, &model, &mut || Ok(())).unwrap();
    let mut statistics = Statistics::new(&model.model);
    run(&model, &drawn.windows, &mut statistics, true, |_| Ok(())).unwrap();
    let cols = model.model.tensors.iter().map(|t| (t.name.clone(), t.cols())).collect();
    let mut plain = Plain { sums: BTreeMap::new(), cols };
    for window in &drawn.windows {
        let mut cache = quantize::infer::Cache::one_batch(window.len());
        let hidden = model.engine.hidden(window, &mut cache, &mut plain).unwrap();
        model.engine.head(&hidden, &mut plain);
    }
    let inputs = statistics.finish().unwrap();
    for ((name, expert), (sums, count)) in &plain.sums {
        let input = &inputs[name];
        assert_eq!(input.counts[*expert], *count, "{name} {expert}");
        for (a, b) in input.sum2[expert * sums.len()..].iter().zip(sums) {
            assert!((a - b).abs() <= 1e-6 * b, "{name} {expert}: {a} {b}");
        }
    }
}

#[test]
fn all_sources_work_and_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (text, chat) = (dir.path().join("a.txt"), dir.path().join("b.jsonl"));
    std::fs::write(&text, "The quick brown fox jumps over the lazy dog. ".repeat(40)).unwrap();
    std::fs::write(
        &chat,
        "{\"text\":\"One row of text, which is long enough for a window or two of sixteen.\"}\n".repeat(9),
    )
    .unwrap();
    let out = dir.path().join("i.gguf");
    let mut command = quantize();
    command.args(["calibrate", "--format", "json", "--seq-len", "16", "--calibration-tokens", "320", "--seed", "5"]);
    for source in ["default", "self", "tokens:random", text.to_str().unwrap(), chat.to_str().unwrap()] {
        command.args(["--calibration", source]);
    }
    command.arg(model("llama")).arg("-o").arg(&out).arg("--text").arg(&text).arg("--show-statistics");
    let report: serde_json::Value = serde_json::from_str(&ok(&mut command).0).unwrap();
    let sources = report["data"]["sources"].as_array().unwrap();
    assert_eq!(sources.iter().map(|s| s["tokens_used"].as_u64().unwrap()).collect::<Vec<_>>(), [64; 5]);
    assert_eq!(report["data"]["sha256"].as_str().unwrap().len(), 64);
    assert!(report["overlap"]["shared"].as_u64().unwrap() > 0);
    assert_eq!(report["statistics"].as_array().unwrap().len(), report["entries"].as_u64().unwrap() as usize);
    let header = read_header(&out).unwrap();
    assert_eq!(header.metadata.str("general.type"), Some("imatrix"));
    assert_eq!(header.metadata.strings("imatrix.datasets").unwrap().len(), 5);
}

#[test]
fn merging_two_runs_is_one_run_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let words = "Calibration is done twice here, on two halves of a text, and once on the whole of it. ";
    let mut whole = quantize();
    whole.args(["calibrate", "--quiet", "--seq-len", "16", "--calibration-tokens", "100000"]).arg(model("llama"));
    for (name, times) in [("a", 20), ("b", 31)] {
        std::fs::write(path(name), words.repeat(times)).unwrap();
        let text = path(name);
        let text = text.to_str().unwrap();
        let mut half = quantize();
        half.args(["calibrate", "--quiet", "--seq-len", "16", "--calibration-tokens", "100000", "--calibration", text]);
        ok(half.arg(model("llama")).arg("-o").arg(path(&format!("{name}.gguf"))));
        whole.args(["--calibration", text]);
    }
    ok(whole.arg("-o").arg(path("whole.gguf")));
    ok(quantize().args(["calibrate", "--merge"]).arg(path("a.gguf")).arg(path("b.gguf")).arg("-o").arg(path("m.gguf")));
    let (merged, whole) = (Imatrix::open(&path("m.gguf")).unwrap(), Imatrix::open(&path("whole.gguf")).unwrap());
    assert_eq!((merged.chunks, &merged.datasets), (whole.chunks, &whole.datasets));
    for (name, entry) in &whole.entries {
        let other = &merged.entries[name];
        assert_eq!(entry.counts, other.counts);
        let close = |a: &f32, b: &f32| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs();
        assert!(entry.sums.iter().zip(&other.sums).all(|(a, b)| close(a, b)), "{name}");
    }
}

#[test]
fn a_conversion_uses_the_matrix_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    ok(&mut calibrate("llama", &path("i.gguf"), &["--calibration-tokens", "640"]));
    let convert = |out: &str, more: &[&str]| {
        let mut command = quantize();
        command.args(["--quiet", "--to", "q4_0", "--pure"]).arg(model("llama")).arg("-o").arg(path(out)).args(more);
        command
    };
    let imatrix = path("i.gguf");
    let imatrix = imatrix.to_str().unwrap();
    ok(&mut convert("none.gguf", &[]));
    ok(&mut convert("file.gguf", &["--imatrix", imatrix]));
    let in_one = ["--calibration", "default", "--calibration-tokens", "640", "--seq-len", "32", "--save-imatrix"];
    let saved = path("saved.gguf");
    ok(&mut convert("one.gguf", &[&in_one[..], &[saved.to_str().unwrap()]].concat()));
    let tensors = |name: &str| {
        let header = read_header(&path(name)).unwrap();
        (std::fs::read(path(name)).unwrap()[header.data_start as usize..].to_vec(), header.metadata)
    };
    let (none, file, one) = (tensors("none.gguf"), tensors("file.gguf"), tensors("one.gguf"));
    assert_ne!(none.0, file.0);
    assert_eq!(file.0, one.0, "calibrating before and in the same run give the same bytes");
    assert_eq!(Imatrix::open(&saved).unwrap(), Imatrix::open(&path("i.gguf")).unwrap());
    assert_eq!(file.1.str("quantize.imatrix.file"), Some(imatrix));
    assert_eq!(file.1.str("quantize.imatrix.dataset"), Some("default"));
    assert_eq!(file.1.uint("quantize.imatrix.chunks_count"), Some(20));
    assert_eq!(one.1.str("quantize.calibration.sha256").map(str::len), Some(64));
    // Derived again with the matrix the file is right; without one it cannot be judged.
    let verify = |more: &[&str]| {
        let mut command = quantize();
        command.args(["verify", "--quiet"]).arg(path("file.gguf")).arg("--source").arg(model("llama")).args(more);
        command
    };
    ok(&mut verify(&["--imatrix", imatrix]));
    assert!(fails(&mut verify(&[]), 3).contains("--imatrix FILE"));
}

#[test]
fn what_cannot_work_is_refused_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let out = path("x.gguf");
    let convert = |ty: &str, more: &[&str]| {
        let mut command = quantize();
        command.args(["--quiet", "--to", ty]).arg(model("llama")).arg("-o").arg(&out).args(more);
        command
    };
    ok(&mut calibrate("phi3", &path("phi3.gguf"), &["--calibration-tokens", "64"]));
    ok(&mut calibrate("llama", &path("llama.gguf"), &["--calibration-tokens", "64"]));
    let other = path("phi3.gguf");
    let text = fails(&mut convert("q4_0", &["--imatrix", other.to_str().unwrap()]), 3);
    assert!(text.contains("another model") && text.contains("phi3.gguf"), "{text}");
    let mut nan = Imatrix::open(&path("llama.gguf")).unwrap();
    nan.entries.values_mut().for_each(|e| e.sums[0] = f32::NAN);
    nan.write(&path("nan.gguf"), &Metadata::new(), false).unwrap();
    let text = fails(&mut convert("q4_0", &["--imatrix", path("nan.gguf").to_str().unwrap()]), 3);
    assert!(text.contains("finite"), "{text}");
    assert!(fails(&mut convert("q4_0", &["--imatrix", path("none").to_str().unwrap()]), 5).contains("none"));
    assert!(!out.exists());
    let sources =
        [("", 3, "is empty"), ("short", 3, "fewer than one window"), ("caf\u{e9}", 3, "fewer than one window")];
    for (contents, code, message) in sources {
        std::fs::write(path("t.txt"), contents).unwrap();
        let text = fails(&mut calibrate("llama", &out, &["--calibration", path("t.txt").to_str().unwrap()]), code);
        assert!(text.contains(message), "{text}");
    }
    std::fs::write(path("t.txt"), b"\xff\xfe latin").unwrap();
    let text = fails(&mut calibrate("llama", &out, &["--calibration", path("t.txt").to_str().unwrap()]), 3);
    assert!(text.contains("not UTF-8"), "{text}");
    assert!(fails(&mut calibrate("llama", &out, &["--calibration", "hf://datasets/a/b"]), 4).contains("JSONL"));
    assert!(!out.exists());
}

#[test]
fn experts_that_saw_nothing_are_counted_and_handled() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    ok(&mut calibrate("mixtral", &path("i.gguf"), &["--calibration-tokens", "64"]));
    let mut imatrix = Imatrix::open(&path("i.gguf")).unwrap();
    let name = "blk.0.ffn_down_exps.weight";
    let entry = imatrix.entries.get_mut(name).unwrap();
    let cols = entry.sums.len() / entry.counts.len();
    entry.counts[1] = 0;
    entry.sums[cols..2 * cols].fill(0.0);
    let mean = imatrix.weights(UnseenExperts::LayerMean).unwrap().by_name[name].clone();
    assert!(mean[cols..2 * cols].iter().any(|w| *w != 1.0));
    imatrix.write(&path("gap.gguf"), &Metadata::new(), false).unwrap();
    let convert = |policy: &str| {
        let mut command = quantize();
        command.args(["--quiet", "--to", "q4_0", "--format", "json", "--unseen-experts", policy, "--imatrix"]);
        command.arg(path("gap.gguf")).arg(model("mixtral")).arg("-o").arg(path(&format!("{policy}.gguf")));
        command
    };
    for policy in ["layer-mean", "plain"] {
        let summary: serde_json::Value = serde_json::from_str(&ok(&mut convert(policy)).0).unwrap();
        let ledger = summary["artifacts"][0]["ledger"].as_array().unwrap().clone();
        let row = ledger.iter().find(|r| r["kind"] == "unseen experts").unwrap();
        assert_eq!((row["tensor"].as_str(), row["done"].as_str()), (Some(name), Some(policy)));
    }
    assert!(fails(&mut convert("error"), 3).contains("saw no token"));
}
