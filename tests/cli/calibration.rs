//! `quantize calibrate`, and conversions with an importance matrix, run as a user runs them on the tiny models of
//! `tests/conformance` (see `containers.rs` for files alone).

use crate::common::{model, repo};
use assert_cmd::Command;
use ndarray::ArrayView2;
use quantize::Error;
use quantize::calibration::data::{Amount, Source, draw};
use quantize::calibration::hessians::Hessians;
use quantize::calibration::imatrix::{Imatrix, UnseenExperts};
use quantize::calibration::pass::{Options, Pass};
use quantize::calibration::resume::{self, Key, path_for};
use quantize::calibration::totals::{Totals, single};
use quantize::eval::Runnable;
use quantize::gguf::{Metadata, read_header};
use quantize::infer::Observer;
use quantize::model::Model;
use quantize::source::Checkpoint;
use quantize::{Control, Run};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

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
            let chosen = model.config.experts().filter(|_| t.shape.len() > 2).map_or(1, |e| e.used as u64);
            assert_eq!(entry.counts.iter().sum::<u64>(), 320 * chosen, "{name}: {}", t.name);
        }
        assert!(!imatrix.entries.contains_key("output.weight"));
    }
}

#[test]
fn threads_and_memory_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = [("1", "1G"), ("2", "1K"), ("5", "50K")]
        .iter()
        .map(|(threads, memory)| {
            let out = dir.path().join(threads);
            let out = out.with_extension("gguf");
            let more = ["--calibration-tokens", "640", "-t", threads, "--max-memory", memory];
            ok(&mut calibrate("qwen3-moe", &out, &more));
            std::fs::read(out).unwrap()
        })
        .collect();
    assert!(files.windows(2).all(|f| f[0] == f[1]));
}

fn control() -> Control {
    Control { threads: 1, ..Control::default() }
}

/// The sums over `windows`, those of the output matrix too.
fn sums(model: &Runnable, windows: &[Vec<u32>]) -> Totals {
    let options = Options { head: true, ..Options::default() };
    let mut pass = Pass::new(&model.ckpt, &model.model, windows, &options, Run::new(&control(), &())).unwrap();
    pass.run(|_, _| Ok(())).unwrap();
    pass.totals()
}

/// Sums everything in `f64`, one number at a time.
struct Plain {
    sums: BTreeMap<(String, usize), (Vec<f64>, u64)>,
    cols: BTreeMap<String, usize>,
}

impl Observer for Plain {
    fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        let cols = self.cols[linear];
        let (sums, count) = self.sums.entry((linear.into(), expert.unwrap_or(0))).or_insert((vec![0.0; cols], 0));
        for row in x.rows() {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            *count += 1;
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn sums_are_those_of_a_plain_observer() {
    for (name, head) in [("mixtral", "output.weight"), ("gemma3", "token_embd.weight")] {
        let mut model = Runnable::open(&model(name)).unwrap();
        let amount = Amount { tokens: 200, seq_len: 20, seed: 1 };
        let drawn = draw(&[Source::Random], amount, &model, &mut || Ok(())).unwrap();
        let totals = sums(&model, &drawn.windows);
        let cols = model.model.tensors.iter().map(|t| (t.name.clone(), t.cols())).collect();
        let mut plain = Plain { sums: BTreeMap::new(), cols };
        model.engine.linears_mut().for_each(|l| l.multiply_in_bf16(true));
        for window in &drawn.windows {
            let mut cache = quantize::infer::Cache::one_batch(window.len());
            let hidden = model.engine.hidden(window, &mut cache, &mut plain).unwrap();
            model.engine.head(&hidden, &mut plain);
        }
        assert!(plain.sums.contains_key(&(head.to_string(), 0)));
        for ((name, expert), (sums, count)) in &plain.sums {
            let total = &totals.0[name];
            assert_eq!(total.counts[*expert], *count, "{name} {expert}");
            for (a, b) in total.sums[expert * sums.len()..].iter().zip(sums) {
                let a = f64::from(single(*a));
                assert!((a - b).abs() <= 1e-6 * b + 1e-9, "{name} {expert}: {a} {b}");
            }
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
    assert!(whole.entries.values().all(|e| e.exact.is_some()));
    assert_eq!(merged, whole, "bit for bit");
    // In the other order too, but for the names of the texts.
    ok(quantize().args(["calibrate", "--merge"]).arg(path("b.gguf")).arg(path("a.gguf")).arg("-o").arg(path("r.gguf")));
    assert_eq!(Imatrix::open(&path("r.gguf")).unwrap().entries, whole.entries);
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
    let in_one = ["--search", "ggml", "--calibration", "default", "--calibration-tokens", "640", "--seq-len", "32"];
    let in_one = [&in_one[..], &["--save-imatrix"]].concat();
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
    // None of these waits for the model, or for the calibration.
    let long = ["--calibration", "tokens:random", "--calibration-tokens", "50000000"];
    let soon = |command: &mut Command| fails(command.timeout(std::time::Duration::from_secs(60)), 3);
    let text = soon(&mut calibrate("llama", &out, &[&long[..], &["--merge", other.to_str().unwrap()]].concat()));
    assert!(text.contains("another model") && text.contains("phi3.gguf"), "{text}");
    let mut nowhere = calibrate("llama", &path("no/folder/x.gguf"), &long);
    let text = fails(nowhere.timeout(std::time::Duration::from_secs(60)), 5);
    assert!(text.contains("does not exist"), "{text}");
    #[cfg(feature = "hub")]
    assert!(fails(&mut calibrate("llama", &out, &["--calibration", "hf://datasets/a/b"]), 2).contains("/path/to/file"));
    assert!(!out.exists());
}

fn fixture(name: &str) -> String {
    repo("tests/fixtures/parquet").join(name).display().to_string()
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_texts_and_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let run = |source: &str, name: &str| -> serde_json::Value {
        let more = ["--format", "json", "--calibration-tokens", "100000", "--calibration", source];
        let mut command = calibrate("llama", &path(name), &more);
        serde_json::from_str(&ok(command.arg("--save-text").arg(path(&format!("{name}.txt")))).0).unwrap()
    };
    // pyarrow's files; the rows as JSONL make the same windows.
    let report = run(&fixture("text.parquet"), "text.gguf");
    let source = &report["data"]["sources"][0];
    assert_eq!((source["rows"].as_u64(), source["rows_dropped"].as_u64()), (Some(40), Some(2)));
    let row = |i: usize| {
        format!(
            "Row {i} of a table tells of the sea, of ships, and of the {} people who sailed in them for a living.",
            i * 7
        )
    };
    let lines =
        (0..40).filter(|i| ![5, 9].contains(i)).map(|i| serde_json::json!({ "text": row(i) }).to_string() + "\n");
    std::fs::write(path("rows.jsonl"), lines.collect::<String>()).unwrap();
    let same = run(path("rows.jsonl").to_str().unwrap(), "jsonl.gguf");
    assert_eq!(report["data"]["sha256"], same["data"]["sha256"]);
    assert!(std::fs::read_to_string(path("text.gguf.txt")).unwrap().contains(&row(17)));
    // A model without a chat template cannot read conversations.
    let chats = fixture("messages.parquet");
    let text = fails(&mut calibrate("llama", &path("chat.gguf"), &["--calibration", &chats]), 3);
    assert!(text.contains("chat template"), "{text}");
    let text = fails(&mut calibrate("llama", &path("o.gguf"), &["--calibration", &fixture("other.parquet")]), 3);
    assert!(text.contains("question, answer"), "{text}");
    // Damaged anywhere, it is read or refused, and nothing worse.
    let whole = std::fs::read(fixture("text.parquet")).unwrap();
    let damaged = path("damaged.parquet");
    for cut in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..cut]).unwrap();
        let text = fails(&mut calibrate("llama", &path("d.gguf"), &["--calibration", damaged.to_str().unwrap()]), 3);
        assert!(text.contains("damaged.parquet"), "{text}");
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn without_the_feature_parquet_is_refused_with_the_way_to_get_it() {
    let out = Path::new("never.gguf");
    for source in [fixture("text.parquet"), "hf://datasets/a/b/c.parquet@main".to_string()] {
        let text = fails(&mut calibrate("llama", out, &["--calibration", &source]), 4);
        assert!(text.contains("--features parquet") && text.contains("JSONL"), "{text}");
    }
}

/// A copy of a model with one weight replaced.
fn damaged(name: &str, tensor: &str, value: f32, dir: &Path) {
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let at = 8 + len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    match header[tensor]["dtype"].as_str() {
        Some("F16") => bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
        other => panic!("{other:?}"),
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn activations_that_are_not_numbers_end_the_run_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("i.gguf");
    let (matrix, norm) = ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.post_attention_layernorm.weight");
    for (tensor, value, named, fault) in [
        (matrix, f32::NAN, matrix, "row 0, column 0 is NaN"),
        (matrix, f32::INFINITY, matrix, "row 0, column 0 is inf"),
        ("lm_head.weight", f32::NAN, "lm_head.weight", "row 0, column 0 is NaN"),
        (norm, f32::NAN, "blk.1.ffn_gate.weight", "not finite"),
    ] {
        damaged("llama", tensor, value, dir.path());
        // More than a test would wait for.
        let mut command = quantize();
        command.args(["calibrate", "--quiet", "--calibration", "tokens:random", "--calibration-tokens", "5000000"]);
        command
            .args(["--seq-len", "32"])
            .arg(dir.path())
            .arg("-o")
            .arg(&out)
            .timeout(std::time::Duration::from_secs(120));
        let text = fails(&mut command, 3);
        assert!(text.contains(named) && text.contains(fault), "{tensor}: {text}");
        let mut convert = quantize();
        convert.args(["--to", "q4_0", "--quiet", "--calibration", "default", "--seq-len", "32"]).arg(dir.path());
        assert!(fails(convert.arg("-o").arg(&out), 3).contains(fault));
        assert!(!out.exists());
    }
}

#[test]
fn tokens_per_expert_are_reported_and_unseen_ones_handled() {
    for name in ["qwen2-moe", "qwen3-moe"] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // Few tokens leave experts out.
        let few = ["--calibration", "tokens:random", "--calibration-tokens", "2", "--seq-len", "2"];
        let mut command = quantize();
        command.args(["calibrate", "--format", "json"]).args(few).arg(model(name)).arg("-o").arg(path("few.gguf"));
        let (json, told) = ok(&mut command);
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        let experts = report["experts"].as_array().unwrap();
        let matrix = Imatrix::open(&path("few.gguf")).unwrap();
        for row in experts {
            let counts = &matrix.entries[row["tensor"].as_str().unwrap()].counts;
            let unseen: Vec<u64> = (0..counts.len() as u64).filter(|e| counts[*e as usize] == 0).collect();
            let listed: Vec<u64> = row["unseen"].as_array().unwrap().iter().map(|e| e.as_u64().unwrap()).collect();
            assert_eq!((listed, row["min"].as_u64()), (unseen, counts.iter().min().copied()), "{name}");
            let mut sorted = counts.clone();
            sorted.sort_unstable();
            assert_eq!(row["median"].as_u64(), Some(sorted[((counts.len() - 1) as f64 / 2.0).round() as usize]));
            assert!(row["p5"].as_u64() >= row["min"].as_u64() && row["p5"].as_u64() <= row["median"].as_u64());
        }
        assert!(experts.iter().any(|r| !r["unseen"].as_array().unwrap().is_empty()), "{name}: {json} {told}");
        for policy in ["layer-mean", "plain", "error"] {
            let mut convert = quantize();
            convert.args(["--to", "q4_0", "--search", "ggml", "--quiet", "--format", "json"]).args(few);
            convert.args(["--unseen-experts", policy]);
            convert.arg(model(name)).arg("-o").arg(path(&format!("{policy}.gguf")));
            if policy == "error" {
                assert!(fails(&mut convert, 3).contains("saw no token"), "{name}");
                assert!(!path("error.gguf").exists());
                continue;
            }
            let summary: serde_json::Value = serde_json::from_str(&ok(&mut convert).0).unwrap();
            let ledger = summary["artifacts"][0]["ledger"].as_array().unwrap();
            let rows: Vec<_> = ledger.iter().filter(|r| r["kind"] == "unseen experts").collect();
            assert!(!rows.is_empty() && rows.iter().all(|r| r["done"] == policy), "{name}: {ledger:?}");
        }
        let data = |policy: &str| std::fs::read(path(&format!("{policy}.gguf"))).unwrap();
        assert_ne!(data("layer-mean"), data("plain"), "{name}");
    }
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
    entry.exact = None;
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

/// Runs until the checkpoint beside `out` has changed `times` times, then kills it. Says whether it was killed.
fn killed(command: &mut std::process::Command, out: &Path, times: usize) -> bool {
    let file = path_for(out);
    let mut child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let (mut last, mut seen) = (std::fs::read(&file).ok(), 0);
    while child.try_wait().unwrap().is_none() {
        let now = std::fs::read(&file).ok();
        if now.is_some() && now != last {
            seen += 1;
            last = now;
        }
        if seen >= times {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    !child.wait().unwrap().success()
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    for name in ["llama", "qwen2-moe"] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // `self` too: what is sampled is the same again.
        let data = ["--calibration", "default", "--calibration", "self", "--calibration-tokens", "3200"];
        ok(&mut calibrate(name, &path("whole.gguf"), &data));
        assert!(!path_for(&path("whole.gguf")).exists());
        let out = path("out.gguf");
        let run = || {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quantize"));
            command.args(["calibrate", "--quiet", "--seq-len", "32", "--resume", "--checkpoint-every", "0"]).args(data);
            command.arg(model(name)).arg("-o").arg(&out);
            command
        };
        let mut kills = 0;
        for times in [1, 4, 2, 7, 3, 9] {
            if out.exists() {
                break;
            }
            if killed(&mut run(), &out, times) {
                kills += 1;
                assert!(!out.exists(), "the output appears only at the end");
                assert!(path_for(&out).exists());
            }
        }
        assert!(kills >= 3, "{name}: the run was over before it could be killed: {kills}");
        if !out.exists() {
            assert!(run().status().unwrap().success());
        }
        assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(path("whole.gguf")).unwrap(), "{name}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
    }
}

#[test]
fn only_the_same_run_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let tokens = ["--calibration-tokens", "3200", "--checkpoint-every", "0"];
    let mut first = std::process::Command::new(env!("CARGO_BIN_EXE_quantize"));
    first.args(["calibrate", "--quiet", "--seq-len", "32"]).args(tokens).arg(model("llama")).arg("-o").arg(&out);
    assert!(killed(&mut first, &out, 2));
    let resume = |name: &str, more: &[&str]| calibrate(name, &out, &[&["--resume"], more].concat());
    let seed = [&tokens[..], &["--seed", "3"]].concat();
    let head = [&tokens[..], &["--process-output"]].concat();
    for (name, more, fault) in [
        ("llama", &seed[..], "data.seed"),
        ("llama", &head[..], "a different head"),
        ("mixtral", &tokens[..], "a different config.json"),
    ] {
        let text = fails(&mut resume(name, more), 3);
        assert!(text.contains(fault) && text.contains("without --resume"), "{text}");
    }
    let file = path_for(&out);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(fails(&mut resume("llama", &tokens), 3).contains("not a complete calibration checkpoint"));
    std::fs::write(&file, &bytes).unwrap();
    ok(&mut resume("llama", &tokens));
    assert!(out.exists() && !file.exists());
    assert!(
        fails(quantize().args(["calibrate", "--resume", "--show-statistics"]).arg(model("llama")), 2).contains("-o")
    );
}

#[test]
fn a_pass_goes_on_from_every_point_to_the_same_sums() {
    let model = Runnable::open(&model("qwen3-moe")).unwrap();
    let amount = Amount { tokens: 33 * 7, seq_len: 33, seed: 1 };
    let windows = draw(&[Source::Random], amount, &model, &mut || Ok(())).unwrap().windows;
    let whole = sums(&model, &windows);
    let mut turned = windows.clone();
    turned.rotate_left(3);
    assert_eq!(sums(&model, &turned), whole, "the order of the windows does not matter");
    let dir = tempfile::tempdir().unwrap();
    let (file, key) = (dir.path().join("resume"), Key::new());
    for max_memory in [None, Some(20_000), Some(0)] {
        let options = Options { head: true, max_memory, spill: dir.path().into(), ..Options::default() };
        let mut pass = Pass::new(&model.ckpt, &model.model, &windows, &options, Run::new(&control(), &())).unwrap();
        let mut steps = 0;
        while let Err(e) = pass.run(|pass, _| {
            steps += 1;
            pass.save(&file, &key)?;
            Err(Error::Interrupted)
        }) {
            assert!(matches!(e, Error::Interrupted), "{e}");
            let saved = resume::open(&file, &key).unwrap().unwrap();
            assert_eq!(saved.progress.totals, pass.totals());
            pass = Pass::resumed(&model.ckpt, &model.model, &windows, &options, saved).unwrap();
        }
        assert_eq!(steps, windows.len() * model.model.config.layers.len());
        assert_eq!(pass.totals(), whole);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is spilled under a name");
    }
}

#[test]
fn hessians_are_saved_beside_the_same_importance() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["llama", "phi3", "qwen2-moe"] {
        let tokens = ["--calibration-tokens", "1600", "--force"];
        ok(&mut calibrate(name, &path("plain.gguf"), &tokens));
        let files: Vec<Vec<u8>> = [&["-t", "1"][..], &["-t", "3", "--max-memory", "10K"]]
            .iter()
            .map(|more| {
                ok(&mut calibrate(name, &path("h.gguf"), &[&tokens[..], &["--hessians"], more].concat()));
                std::fs::read(path("h.gguf")).unwrap()
            })
            .collect();
        assert!(files[0] == files[1], "{name}: threads or spilling change it");
        let (plain, with) = (Imatrix::open(&path("plain.gguf")).unwrap(), Imatrix::open(&path("h.gguf")).unwrap());
        assert_eq!(plain.entries.keys().collect::<Vec<_>>(), with.entries.keys().collect::<Vec<_>>());
        for (linear, entry) in &plain.entries {
            let exact = &with.entries[linear];
            // The plain pass multiplies in bfloat16: a token between two experts may fall to the other, and all that
            // comes behind changes with it.
            assert_eq!(entry.counts.iter().sum::<u64>(), exact.counts.iter().sum::<u64>());
            let moved = entry.counts.iter().zip(&exact.counts).map(|(a, b)| a.abs_diff(*b)).sum::<u64>();
            assert!(moved as f64 <= 0.01 * exact.counts.iter().sum::<u64>() as f64, "{name} {linear}: {moved}");
            let allowed = if name == "qwen2-moe" { 2e-2 } else { 5e-3 };
            let pairs = || entry.sums.iter().zip(&exact.sums);
            let error: f32 = pairs().map(|(a, b)| (a - b).abs()).sum();
            let share = error / pairs().map(|(_, b)| b).sum::<f32>();
            assert!(share <= allowed, "{name} {linear}: {share}");
        }
        let hessians = Hessians::open(&path("h.gguf")).unwrap().unwrap();
        assert!(Hessians::open(&path("plain.gguf")).unwrap().is_none());
        let linears: Vec<&str> = hessians.linears().collect();
        assert!(linears.iter().all(|l| plain.entries.contains_key(*l)) && linears.len() > 4, "{linears:?}");
        for linear in linears {
            let entry = &with.entries[linear];
            let cols = entry.sums.len() / entry.counts.len();
            for expert in 0..entry.counts.len() {
                let gram = hessians.gram(linear, expert).unwrap();
                assert_eq!(gram.len(), cols * cols);
                for i in 0..cols {
                    let (own, sum) = (gram[i * cols + i], entry.sums[expert * cols + i]);
                    assert!((own - sum).abs() <= 1e-5 * sum, "{name} {linear} {expert} {i}: {own} {sum}");
                    assert!((0..cols).all(|j| gram[i * cols + j] == gram[j * cols + i]));
                }
            }
            assert!(hessians.gram(linear, entry.counts.len()).is_err());
        }
    }
    // It is an importance matrix like any other.
    let mut convert = quantize();
    convert.args(["--quiet", "--to", "q4_0"]).arg(model("qwen2-moe")).arg("-o").arg(path("q.gguf"));
    ok(convert.arg("--imatrix").arg(path("h.gguf")));
    let (shown, _) = ok(quantize().args(["calibrate", "--show-statistics", "--merge"]).arg(path("h.gguf")));
    assert!(shown.contains("off-diagonal"), "{shown}");
    let mut merge = quantize();
    merge.args(["calibrate", "--merge"]).arg(path("h.gguf")).arg(path("plain.gguf")).arg("-o").arg(path("m.gguf"));
    assert!(fails(&mut merge, 3).contains("cannot be merged exactly"));
    assert!(!path("m.gguf").exists());
}

/// Σ x xᵀ in `f64`, one number at a time.
struct Products {
    gram: BTreeMap<String, Vec<f64>>,
    cols: BTreeMap<String, usize>,
}

impl Observer for Products {
    fn input(&mut self, linear: &str, _: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
        let cols = self.cols[linear];
        let gram = self.gram.entry(linear.into()).or_insert_with(|| vec![0.0; cols * cols]);
        for row in x.rows() {
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    gram[i * cols + j] += f64::from(*a) * f64::from(*b);
                }
            }
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn saved_hessians_are_those_of_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("h.gguf");
    ok(&mut calibrate("llama", &out, &["--calibration-tokens", "320", "--hessians"]));
    let saved = Hessians::open(&out).unwrap().unwrap();
    let model = Runnable::open(&model("llama")).unwrap();
    let amount = Amount { tokens: 320, seq_len: 32, seed: 0 };
    let drawn = draw(&[Source::Default], amount, &model, &mut || Ok(())).unwrap();
    let cols = model.model.tensors.iter().map(|t| (t.name.clone(), t.cols())).collect();
    let mut plain = Products { gram: BTreeMap::new(), cols };
    for window in &drawn.windows {
        let mut cache = quantize::infer::Cache::one_batch(window.len());
        model.engine.hidden(window, &mut cache, &mut plain).unwrap();
    }
    assert_eq!(saved.linears().collect::<Vec<_>>(), plain.gram.keys().map(String::as_str).collect::<Vec<_>>());
    // Sums of so many products in 32 bits, in an order that follows the processor's instructions: errors grow with the root.
    let tolerance = 320_f64.sqrt() * f64::from(f32::EPSILON);
    for (linear, exact) in &plain.gram {
        let (got, cols) = (saved.gram(linear, 0).unwrap(), plain.cols[linear]);
        for i in 0..cols {
            for j in 0..cols {
                let size = (exact[i * cols + i] * exact[j * cols + j]).sqrt();
                let error = (f64::from(got[i * cols + j]) - exact[i * cols + j]).abs();
                assert!(error <= tolerance * size, "{linear} [{i}, {j}]: {error} of {size}");
            }
        }
    }
}
