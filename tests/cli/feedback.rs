//! `--search feedback` for GGUF, run as a user runs it: the same bytes from any number of threads, no file worse than that
//! of ggml's search on text that had no part in it, and the ledger says where ggml's blocks were kept.

use crate::common::{FAMILIES, everything, first_layers, model, names, one_layer, threads};
use assert_cmd::Command;
use quantize::Result;
use quantize::calibration::data::{Amount, Source, draw};
use quantize::calibration::layerwise::{self, Options};
use quantize::convert::Recipe;
use quantize::convert::blocks::{BlockOutput, Refine, Refused, Settings};
use quantize::convert::judge::{self, OpenModel, Scored};
use quantize::convert::recipe::Search;
use quantize::convert::stream;
use quantize::eval::Runnable;
use quantize::eval::{self, Base, Candidate, Method, Windows};
use quantize::gguf::read_header;
use quantize::model::Model;
use quantize::quant::{GgmlType, dequantize_rows};
use quantize::source::Checkpoint;
use quantize::writer::Sink;
use quantize::{Control, Run as Work};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

const WINDOW: usize = 64;
const TOKENS: usize = 40 * WINDOW;
/// The command holds one window in so many out.
const HOLD_OUT: usize = 8;

/// A conversion calibrated on the bundled texts.
fn convert(name: &str, ty: &str, search: &str, out: &Path) -> Command {
    of_folder(&model(name), ty, search, out)
}

fn of_folder(model: &Path, ty: &str, search: &str, out: &Path) -> Command {
    let mut command = Command::cargo_bin("quantize").unwrap();
    command.args(["--quiet", "--format", "json", "--to", ty, "--search", search, "--calibration", "default"]);
    command.args(["--calibration-tokens", &TOKENS.to_string(), "--seq-len", &WINDOW.to_string()]);
    command.arg(model).arg("-o").arg(out);
    command
}

/// The summary of a conversion that succeeds.
fn ok(command: &mut Command) -> serde_json::Value {
    let done = command.assert().success().get_output().clone();
    serde_json::from_slice(&done.stdout).unwrap()
}

fn data(path: &Path) -> Vec<u8> {
    let start = read_header(path).unwrap().data_start as usize;
    std::fs::read(path).unwrap()[start..].to_vec()
}

/// Mean KL divergence of each of `files` from the model `name` on the windows that the command held out.
fn held_out(name: &str, files: &[&Path]) -> Vec<f64> {
    let mut base = Runnable::open(&model(name)).unwrap();
    let amount = Amount { tokens: TOKENS, seq_len: WINDOW, seed: 0 };
    let windows = draw(&[Source::Default], amount, &base, &mut || Ok(())).unwrap().windows;
    let held = windows.iter().enumerate().filter(|(i, _)| i % HOLD_OUT == HOLD_OUT - 1);
    let stream: Vec<u32> = held.flat_map(|(_, window)| window.iter().copied()).collect();
    assert_eq!(stream.len(), TOKENS / HOLD_OUT);
    let plan = Windows::plan(Method::LlamaCpp { ctx: WINDOW }, stream.len(), None, None).unwrap();
    let mut models: Vec<Runnable> = files.iter().map(|path| Runnable::open(path).unwrap()).collect();
    let mut candidates: Vec<Candidate> =
        models.iter_mut().map(|model| Candidate { name: "candidate".into(), model }).collect();
    let base = Base::Model(Candidate { name: "base".into(), model: &mut base });
    let result = eval::compare(base, &mut candidates, &stream, &plan, eval::Options::default()).unwrap();
    result.candidates.iter().map(|r| r.iter().map(|r| r.kld).sum::<f64>() / r.len() as f64).collect()
}

#[test]
fn a_file_is_judged_layer_by_layer_as_it_is_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("q4_0.gguf");
    let control = Control { threads: 1, ..Control::default() };
    let run = Work::new(&control, &());
    for name in FAMILIES {
        ok(&mut convert(name, "q4_0", "ggml", &file));
        let whole = held_out(name, &[&file])[0];
        let base = Runnable::open_idle(&model(name)).unwrap();
        let amount = Amount { tokens: TOKENS, seq_len: WINDOW, seed: 0 };
        let windows = draw(&[Source::Default], amount, &base, &mut || Ok(())).unwrap().windows;
        let held: Vec<&[u32]> = windows.iter().skip(HOLD_OUT - 1).step_by(HOLD_OUT).map(|w| &w[..]).collect();
        let other = Runnable::open_idle(&file).unwrap();
        let sides = [&base, &other].map(|m| OpenModel { ckpt: &m.ckpt, model: &m.model });
        let results = sides.map(|side| judge::results(&side, &held, Scored::SecondHalf, run).unwrap());
        let kl = judge::losses((&sides[0], &results[0]), (&sides[1], &results[1]), &mut |_, _| (), run).unwrap();
        assert_eq!(kl.len(), held.len());
        let mean = kl.iter().sum::<f64>() / kl.len() as f64;
        // Windows run alone here, in pairs there, so that logits differ by some 1e-5 of rounding (gemma's embeddings are
        // large), and a divergence of half their squared change by that times the change.
        let rounding = 3e-5 * (2.0 * whole).sqrt();
        assert!(whole > 1e-5 && (mean - whole).abs() <= rounding, "{name}: {mean} {whole}");
        let same = judge::losses((&sides[0], &results[0]), (&sides[0], &results[0]), &mut |_, _| (), run).unwrap();
        assert!(same.iter().all(|kl| kl.abs() < 1e-9), "{name}: {same:?}");
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn no_family_is_worse_than_with_ggmls_search() {
    let dir = tempfile::tempdir().unwrap();
    let (feedback, ggml) = (dir.path().join("feedback.gguf"), dir.path().join("ggml.gguf"));
    let mut won = 0;
    for name in FAMILIES {
        let summary = ok(&mut convert(name, "q4_0", "feedback", &feedback));
        ok(&mut convert(name, "q4_0", "ggml", &ggml));
        let divergence = held_out(name, &[&feedback, &ggml]);
        let kept_ggml = summary["artifacts"][0]["ledger"].as_array().unwrap().iter().any(|r| {
            r["kind"] == "search" && r["tensor"].is_null() // the file as a whole
        });
        if !kept_ggml {
            assert!(divergence[0] <= divergence[1], "{name}: {divergence:?}");
            won += 1;
        }
        std::fs::remove_file(&feedback).unwrap();
        std::fs::remove_file(&ggml).unwrap();
    }
    assert!(won > FAMILIES.len() / 2, "feedback was kept for {won} families only");
}

#[test]
fn k_quants_and_i_quants_of_tiny_llama_lose_less() {
    let dir = tempfile::tempdir().unwrap();
    let types = ["q4_k_m", "iq4_xs", "iq2_m", "q3_k_m", "q2_k", "iq3_s"];
    for ty in &types[..if everything() { types.len() } else { 3 }] {
        let path = |search: &str| dir.path().join(format!("{search}-{ty}.gguf"));
        for search in ["feedback", "ggml"] {
            ok(&mut convert("tiny-llama", ty, search, &path(search)));
        }
        let (feedback, ggml) = (path("feedback"), path("ggml"));
        assert_eq!(data(&feedback).len(), data(&ggml).len(), "{ty}");
        let divergence = held_out("tiny-llama", &[&feedback, &ggml]);
        assert!(divergence[0] < divergence[1], "{ty}: {divergence:?}");
        let header = read_header(&feedback).unwrap();
        let recipe = Recipe::from_json(header.metadata.str("quantize.recipe").unwrap()).unwrap();
        assert_eq!(recipe.rounding.search, Some(Search::Feedback), "{ty}");
    }
}

#[test]
fn threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let small = one_layer(&dir.path().join("small"));
    let experts = model("qwen3-moe");
    for (name, model, ty) in [("small", &small, "q4_k_m"), ("small", &small, "iq2_xs"), ("qwen3-moe", &experts, "q4_0")]
    {
        let files: Vec<Vec<u8>> = threads()
            .iter()
            .map(|threads| {
                let path = dir.path().join(format!("{name}-{ty}-{threads}.gguf"));
                ok(of_folder(model, ty, "feedback", &path).args(["-t", threads]));
                std::fs::read(&path).unwrap()
            })
            .collect();
        assert!(files.iter().all(|file| *file == files[0]), "{name}");
    }
}

#[test]
fn a_split_file_holds_the_same_tensors_and_is_judged_too() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, split) = (dir.path().join("whole.gguf"), dir.path().join("split.gguf"));
    let one = ok(&mut convert("llama", "q4_0", "feedback", &whole));
    let mut command = convert("llama", "q4_0", "feedback", &split);
    let many = ok(command.args(["--split-max-tensors", "7"]));
    let rows = |summary: &serde_json::Value| summary["artifacts"][0]["ledger"].clone();
    assert_eq!(rows(&one), rows(&many));
    let first = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let first = first.into_iter().find(|p| p.to_str().unwrap().contains("-00001-of-")).unwrap();
    let tensors = |path: &Path| {
        let ckpt = Checkpoint::open(path).unwrap();
        let read = |t: &quantize::source::TensorMeta| {
            let mut bytes = vec![0; t.bytes() as usize];
            ckpt.read(t, 0, &mut bytes).unwrap();
            (t.name.clone(), bytes)
        };
        ckpt.tensors().iter().map(read).collect::<BTreeMap<_, _>>()
    };
    assert!(tensors(&whole) == tensors(&first));
}

/// Killed as by a power cut at some point of the run, it goes on behind the last finished layer to the same bytes.
#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole.gguf"), dir.path().join("cut.gguf"));
    let home = tempfile::tempdir().unwrap();
    let source = first_layers(if everything() { 6 } else { 3 }, &home.path().join("model"));
    let run = |out: &Path, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quantize"));
        command.args(["--to", "q4_k_s,q3_k_s", "--calibration", "default", "--calibration-tokens", "1280"]);
        command.args(["--seq-len", "64", "-t", "2", "-o"]).arg(out.with_extension("{type}.gguf"));
        command.args(more).arg(&source).stdout(std::process::Stdio::null());
        command
    };
    let files = |out: &Path| ["Q4_K_S", "Q3_K_S"].map(|ty| out.with_extension(format!("{ty}.gguf")));
    assert!(run(&whole, &["--quiet"]).status().unwrap().success());
    let want = files(&whole).map(|file| std::fs::read(file).unwrap());
    let finished = names(dir.path());
    assert_eq!(finished.len(), 2, "{finished:?}");
    let (mut killed, mut resumed) = (0, 0);
    let journal = dir.path().join("cut.Q4_K_S.gguf.resume");
    let layers = Model::open(&Checkpoint::open(&source).unwrap()).unwrap().config.layers.len();
    // Early and late, and all over the run where everything is tested.
    let kills: Vec<usize> = (0..10).step_by(if everything() { 1 } else { 4 }).collect();
    for i in kills.iter().copied() {
        let mut child = run(&cut, &["--quiet"]).spawn().unwrap();
        // The first line is of the run, every other of a layer.
        let lines = || std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
        while lines() < 1 + layers * i / 9 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(7 * i as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let there = files(&cut).map(|file| file.exists());
        if there == [true, false] {
            // Between the two names: the next run begins again.
            std::fs::remove_file(&files(&cut)[0]).unwrap();
            assert!(run(&cut, &["--quiet"]).status().unwrap().success());
        } else if !there[1] {
            killed += 1;
            let out = run(&cut, &["--resume"]).stderr(std::process::Stdio::piped()).output().unwrap();
            let told = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{told}");
            resumed += usize::from(told.contains("resuming after") && !told.contains("resuming after 0"));
        }
        for (file, want) in files(&cut).iter().zip(&want) {
            assert!(std::fs::read(file).unwrap() == *want, "kill {i}");
            std::fs::remove_file(file).unwrap();
        }
        assert_eq!(names(dir.path()), finished, "kill {i}");
    }
    let (least, on) = (kills.len() * 2 / 3, kills.len() / 2);
    assert!(killed >= least && resumed >= on, "{killed} of {kills:?} kills came in time, {resumed} runs went on");
    // What is left of a run is taken up by the same run only, and cleared away by one that begins again.
    let leave_unfinished = || {
        let mut child = run(&cut, &["--quiet"]).spawn().unwrap();
        while std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count()) < 3 {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    };
    leave_unfinished();
    let out = run(&cut, &["--resume", "--rho", "0.2"]).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("rho was 0.3, and here it is 0.2"));
    assert!(run(&cut, &["--quiet"]).status().unwrap().success());
    files(&cut).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    assert_eq!(names(dir.path()), finished);
    // Where a part of it is gone, the run begins again.
    leave_unfinished();
    let partial = names(dir.path()).into_iter().find(|name| name.ends_with(".partial")).unwrap();
    std::fs::remove_file(dir.path().join(partial)).unwrap();
    let out = run(&cut, &["--resume"]).stderr(std::process::Stdio::piped()).output().unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stderr).contains("beginning again"));
    for (file, want) in files(&cut).iter().zip(&want) {
        assert!(std::fs::read(file).unwrap() == *want);
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(names(dir.path()), finished);
}

#[test]
fn data_that_cannot_be_judged_by_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let text = dir.path().join("short.txt");
    std::fs::write(&text, "One short text, and nothing held out.").unwrap();
    for (tokens, window, says) in [("64", "64", "too few"), ("640", "8", "too short")] {
        let mut command = Command::cargo_bin("quantize").unwrap();
        command.args(["--quiet", "--to", "q4_0", "--search", "feedback", "--calibration", "default"]);
        command.args(["--calibration-tokens", tokens, "--seq-len", window]).arg(model("llama")).arg("-o").arg(&out);
        let done = command.assert().code(3).get_output().clone();
        let told = String::from_utf8(done.stderr).unwrap();
        assert!(told.contains(says) && told.contains("--rounding nearest"), "{told}");
        assert!(!out.exists());
    }
}

/// Bytes by tensor.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<usize, BTreeMap<u64, Vec<u8>>>>);

impl Sink for Kept {
    fn put(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.lock().unwrap().entry(tensor).or_default().insert(offset, bytes.to_vec());
        Ok(())
    }
}

impl Kept {
    fn of(&self, tensor: usize) -> Vec<u8> {
        self.0.lock().unwrap().get(&tensor).into_iter().flat_map(|pieces| pieces.values().flatten().copied()).collect()
    }
}

/// What a run on random tokens gives, every linear layer of a block as `ty`.
struct Run {
    model: Model,
    types: Vec<GgmlType>,
    with: Kept,
    without: Kept,
    done: Vec<bool>,
    refused: Vec<Refused>,
    kept: usize,
}

fn refined(name: &str, ty: GgmlType, settings: Settings) -> Run {
    let ckpt = Checkpoint::open(&model(name)).unwrap();
    let model = Model::open(&ckpt).unwrap();
    let types: Vec<GgmlType> = stream::outputs(&model)
        .iter()
        .map(|(name, shape)| {
            let linear =
                name.contains("blk.") && name.ends_with(".weight") && !name.contains("norm") && shape.len() > 1;
            if linear && !name.contains("gate_inp") { ty } else { GgmlType::F32 }
        })
        .collect();
    let vocab = model.config.vocab as u32;
    let windows: Vec<Vec<u32>> =
        (0..16u32).map(|w| (0..48).map(|i| (w * 7919 + i * 104_729 + i * i * 31) % vocab).collect()).collect();
    let held: Vec<usize> = (0..windows.len()).map(|w| usize::from(w % 4 == 3)).collect();
    let (with, without) = (Kept::default(), Kept::default());
    let mut outputs = [BlockOutput::new(types.clone(), &with, &without)];
    let control = Control { threads: 2, ..Control::default() };
    let run = Work::new(&control, &());
    let options = Options { sequential: false, held, max_memory: None, spill: std::env::temp_dir(), bf16: false };
    let mut refine = Refine::new(&ckpt, &model, &mut outputs, settings, run, None, &|| Ok(Vec::new())).unwrap();
    let head = layerwise::run(&ckpt, &model, &windows, &options, &mut refine, run).unwrap();
    refine.head(&head).unwrap();
    drop(refine);
    let [BlockOutput { done, refused, kept, .. }] = outputs;
    Run { model, types, with, without, done, refused, kept }
}

#[test]
fn refused_matrices_have_ggmls_blocks_and_all_others_differ() {
    let Run { model, types, with, without, done, refused, kept } =
        refined("qwen3-moe", GgmlType::Q4_0, Settings::default());
    let mut differ = 0;
    for (i, (name, shape)) in stream::outputs(&model).into_iter().enumerate() {
        assert_eq!(done[i], types[i] == GgmlType::Q4_0, "{name}");
        let (a, b) = (with.of(i), without.of(i));
        let experts = if shape.len() == 3 { shape[0] } else { 1 };
        assert_eq!(a.len(), b.len(), "{name}");
        for expert in 0..if a.is_empty() { 0 } else { experts } {
            let size = a.len() / experts;
            let part = expert * size..(expert + 1) * size;
            let refused = refused.iter().find(|r| r.tensor == name && r.expert.is_none_or(|e| e == expert));
            assert_eq!(a[part.clone()] == b[part], refused.is_some(), "{name} {expert}: {refused:?}");
            differ += usize::from(refused.is_none());
            assert!(refused.is_none_or(|r| !r.reason.is_empty()));
        }
    }
    assert!(differ > 0);
    assert_eq!(differ, kept);
}

/// Which column of `natural` each column of `sorted` is, both `[rows, cols]` and rounded once.
fn order_of_columns(sorted: &[f32], natural: &[f32], cols: usize) -> Vec<usize> {
    let column = |x: &[f32], c: usize| -> Vec<f32> { x.iter().skip(c).step_by(cols).copied().collect() };
    let natural: Vec<Vec<f32>> = (0..cols).map(|c| column(natural, c)).collect();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let nearest = |c: usize| {
        let own = column(sorted, c);
        let best = (0..cols).min_by(|a, b| distance(&own, &natural[*a]).total_cmp(&distance(&own, &natural[*b])));
        let best = best.unwrap();
        assert!(distance(&own, &natural[best]) < 1e-2 * distance(&own, &vec![0.0; own.len()]), "column {c}");
        best
    };
    (0..cols).map(nearest).collect()
}

fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| x.iter().skip(c).step_by(cols).copied()).collect()
}

#[test]
fn sorted_channels_go_together_in_every_family() {
    for family in FAMILIES {
        let settings = Settings { sort_channels: true, ..Settings::default() };
        let Run { model, with, without, .. } = refined(family, GgmlType::Q8_0, settings);
        let outputs = stream::outputs(&model);
        let values = |bytes: &[u8]| {
            let mut out = vec![0.0; bytes.len() / 34 * 32];
            dequantize_rows(GgmlType::Q8_0, bytes, &mut out).unwrap();
            out
        };
        let (mut blocks, mut moved) = (0, 0);
        for (i, (name, shape)) in outputs.iter().enumerate().filter(|(_, (name, _))| name.contains(".ffn_down")) {
            let (channels, experts) = (shape[shape.len() - 1], if shape.len() == 3 { shape[0] } else { 1 });
            for expert in 0..experts {
                let of = |kept: &Kept, tensor: usize| {
                    let bytes = kept.of(tensor);
                    let size = bytes.len() / experts;
                    values(&bytes[expert * size..][..size])
                };
                let order = order_of_columns(&of(&with, i), &of(&without, i), channels);
                let mut seen = order.clone();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..channels), "{family} {name}: {order:?}");
                for above in ["ffn_gate", "ffn_up"] {
                    let above = name.replace("ffn_down", above);
                    let Some(j) = outputs.iter().position(|(name, _)| *name == above) else { continue };
                    let cols = outputs[j].1[outputs[j].1.len() - 1];
                    let (sorted, natural) = (of(&with, j), of(&without, j));
                    // Both halves of a fused matrix.
                    for (sorted, natural) in sorted.chunks(channels * cols).zip(natural.chunks(channels * cols)) {
                        let rows = order_of_columns(&transposed(sorted, cols), &transposed(natural, cols), channels);
                        assert_eq!(rows, order, "{family} {above} {expert}");
                    }
                }
                blocks += 1;
                moved += usize::from(!order.is_sorted());
            }
        }
        assert!(moved > 0, "{family}: none of {blocks} blocks was sorted");
    }
}

#[test]
fn sorted_files_say_so_and_are_judged_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let (sorted, natural) = (dir.path().join("sorted.gguf"), dir.path().join("natural.gguf"));
    ok(convert("tiny-llama", "q3_k_m", "feedback", &sorted).arg("--sort-channels"));
    ok(&mut convert("tiny-llama", "q3_k_m", "feedback", &natural));
    assert_eq!(data(&sorted).len(), data(&natural).len());
    assert_ne!(data(&sorted), data(&natural));
    assert_eq!(read_header(&sorted).unwrap().metadata.bool("quantize.search.sorted_channels"), Some(true));
    assert_eq!(read_header(&natural).unwrap().metadata.bool("quantize.search.sorted_channels"), Some(false));
    let divergence = held_out("tiny-llama", &[&sorted, &natural]);
    assert!(divergence[0] < 1.1 * divergence[1], "{divergence:?}");
    // What cannot be compared weight by weight is left out of the damage report.
    let mut compare = Command::cargo_bin("quantize").unwrap();
    compare.arg("compare").arg(model("tiny-llama")).args([&sorted, &natural]);
    compare.args([
        "--quiet",
        "--format",
        "json",
        "--ctx",
        "64",
        "--chunks",
        "2",
        "--text",
        "calibration/technical.txt",
    ]);
    let report = ok(&mut compare);
    let roles = |i: usize| -> Vec<&str> {
        let tensors = report["candidates"][i]["tensors"].as_array().unwrap();
        tensors.iter().map(|t| t["role"].as_str().unwrap()).collect()
    };
    assert!(roles(0).contains(&"attn_q") && !roles(0).iter().any(|r| r.starts_with("ffn")));
    assert!(roles(1).contains(&"attn_q") && roles(1).contains(&"ffn_down"));
    // Only with feedback, and not while later layers wait for earlier ones.
    for (search, flags) in [("ggml", &["--sort-channels"][..]), ("feedback", &["--sort-channels", "--sequential"])] {
        let out = dir.path().join("none.gguf");
        convert("tiny-llama", "q3_k_m", search, &out).args(flags).assert().code(2);
        assert!(!out.exists());
    }
}
