//! AWQ and SmoothQuant folders from the command line: factors are folded so that the model stays what it was, every
//! family comes out whole, and a calibrated run that is killed continues to the same bytes.

use crate::common::*;
use quantize::eval::damage::{Transform, transform};
use quantize::model::Model;
use quantize::source::Checkpoint;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

const SMALL: [&str; 7] = ["--calibration", "default", "--calibration-tokens", "1024", "--seq-len", "64", "--quiet"];

/// Mean KL divergence of the logits' distributions from those of `base`.
fn divergence(base: &[f32], other: &[f32], vocab: usize) -> f64 {
    let log_softmax = |row: &[f32]| {
        let max = row.iter().fold(f32::MIN, |m, v| m.max(*v));
        let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
        row.iter().map(|v| f64::from(v - max) - sum.ln()).collect::<Vec<f64>>()
    };
    let rows = base.chunks_exact(vocab).zip(other.chunks_exact(vocab));
    let kl = |(p, q): (&[f32], &[f32])| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    rows.map(kl).sum::<f64>() / (base.len() / vocab) as f64
}

#[test]
fn every_family_is_scaled_and_closer_to_itself_than_by_plain_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let (mut plain, mut scaled, mut nearest, mut changed, mut found) = (0.0, 0.0, 0.0, 0, 0);
    for name in FAMILIES {
        let source = model(name);
        let source = source.to_str().unwrap();
        let run = |out: &str, more: &[&str]| {
            let args = ["--to", "awq-32g", source, "-o", out, "--force"];
            ok(command(dir.path(), &[&args[..], more].concat()).output().unwrap());
            dir.path().join(out)
        };
        let folders = [
            run("plain", &["--rounding", "nearest", "--quiet"]),
            run("scaled", &SMALL),
            run("nearest", &[&SMALL[..], &["--rounding", "nearest"]].concat()),
        ];
        let vocab = Model::open(&Checkpoint::open(Path::new(source)).unwrap()).unwrap().config.vocab;
        let tokens: Vec<u32> = (0..120).map(|i| (i * 37 + i * i * 11 + 5) % vocab as u32).collect();
        let base = logits(Path::new(source), &tokens);
        let kl = folders.each_ref().map(|folder| divergence(&base, &logits(folder, &tokens), vocab));
        println!("{name}: nearest {:.2e}, scaled with feedback {:.2e}, scaled {:.2e}", kl[0], kl[1], kl[2]);
        assert!(kl[1] < 1.5 * kl[0] && kl[2] < 1.5 * kl[0], "{name}: {kl:?}");
        plain += kl[0].ln();
        scaled += kl[1].ln();
        nearest += kl[2].ln();
        let (was, is) = (Checkpoint::open(Path::new(source)).unwrap(), Checkpoint::open(&folders[1]).unwrap());
        for t in was.tensors().iter().filter(|t| t.name.contains("norm")) {
            let read = |c: &Checkpoint| {
                let t = &c.tensors()[c.find(&t.name).unwrap()];
                let mut out = vec![0.0; t.elements()];
                c.read_f32(t, 0..out.len(), &mut Vec::new(), &mut out).unwrap();
                out
            };
            changed += usize::from(read(&was) != read(&is));
        }
        let how = |folder: &Path| {
            let [a, b] = [Path::new(source), folder].map(|path| Checkpoint::open(path).unwrap());
            let (m, n) = (Model::open(&a).unwrap(), Model::open(&b).unwrap());
            transform((&a, &m), (&b, &n)).unwrap()
        };
        assert_eq!(how(&folders[0]), None, "{name}");
        found += usize::from(how(&folders[1]) == Some(Transform::Scaled));
        let manifest = json(&folders[1].join("quantize-manifest.json"));
        assert_eq!(manifest["recipe"]["rounding"]["search"], "feedback");
        let modules = manifest["modules"].as_array().unwrap();
        let gain = |m: &Value| m["loss_with_scaled_channels"].as_f64();
        assert!(modules.iter().filter_map(gain).all(|gain| gain <= 1.0));
        assert!(modules.iter().filter_map(gain).count() > modules.len() / 2, "{name}");
    }
    assert!(changed > 24, "{changed} norms have taken factors");
    assert_eq!(found, 12, "families whose damage is not measured weight by weight");
    // Over all families, scaling pays. These models have random weights: there is little to find.
    let (scaled, nearest) = (((scaled - plain) / 12.0).exp(), ((nearest - plain) / 12.0).exp());
    println!("relative to plain rounding: {scaled:.3} with feedback, {nearest:.3} without");
    assert!(scaled < 1.0 && nearest < 1.0, "{scaled} {nearest}");
}

/// A copy of the llama model in which a few channels behind every norm are 64 times as large and the columns that read
/// them as much smaller: the same function.
fn with_outliers(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let source = model("llama");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(file), to.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let ckpt = Checkpoint::open(&source).unwrap();
    for t in ckpt.tensors().iter().filter(|t| t.name.contains(".layers.")) {
        let norm = t.name.ends_with("layernorm.weight");
        let reads = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().any(|part| t.name.contains(part));
        if !norm && !reads {
            continue;
        }
        let cols = *t.shape.last().unwrap();
        for (i, place) in (t.range.start as usize..t.range.end as usize).step_by(2).enumerate() {
            if i % cols % 23 == 5 {
                let value = half::f16::from_le_bytes([bytes[place], bytes[place + 1]]).to_f32();
                let value = if norm { value * 64.0 } else { value / 64.0 };
                bytes[place..place + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
        }
    }
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn smoothing_takes_large_channels_out_of_the_activations() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    with_outliers(&source);
    let run = |out: &str, more: &[&str]| {
        let args = ["--to", "int8", "source", "-o", out];
        ok(command(dir.path(), &[&args[..], more].concat()).output().unwrap());
        dir.path().join(out)
    };
    let vocab = Model::open(&Checkpoint::open(&source).unwrap()).unwrap().config.vocab;
    let tokens: Vec<u32> = (0..100).map(|i| (i * 31 + 7) % vocab as u32).collect();
    let base = logits(&source, &tokens);
    let kl = |folder: &Path| divergence(&base, &logits(folder, &tokens), vocab);
    let (plain, smooth) = (kl(&run("plain", &["--quiet"])), kl(&run("smooth", &SMALL)));
    println!("KL {plain:.2e} as it is, {smooth:.2e} smoothed");
    assert!(smooth < 0.5 * plain, "{smooth} {plain}");
    let manifest = json(&dir.path().join("smooth/quantize-manifest.json"));
    assert_eq!(manifest["recipe"]["rounding"]["smooth"], 0.5);
    // Without smoothing there is nothing to calibrate.
    let args = [&["--to", "int8", "source", "-o", "none", "--smooth", "0"], &SMALL[..]].concat();
    let out = command(dir.path(), &args).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn feedback_is_for_floats_and_mlx_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut before, mut after) = (0.0, 0.0);
    for name in ["llama", "qwen2", "qwen3-moe", "gemma3"] {
        let source = model(name);
        let vocab = Model::open(&Checkpoint::open(&source).unwrap()).unwrap().config.vocab;
        let tokens: Vec<u32> = (0..120).map(|i| (i * 31 + i * i * 7 + 7) % vocab as u32).collect();
        let base = logits(&source, &tokens);
        for format in ["mlx-4bit-32g", "nvfp4a16", "nvfp4", "mxfp4"] {
            let run = |how: &str| {
                let out = format!("{name}-{format}-{how}");
                let args = ["--to", format, source.to_str().unwrap(), "-o", &out, "--rounding", how];
                let data: &[&str] = if how == "nearest" && format != "nvfp4" { &["--quiet"] } else { &SMALL };
                ok(command(dir.path(), &[&args[..], data].concat()).output().unwrap());
                let manifest = json(&dir.path().join(&out).join("quantize-manifest.json"));
                assert_eq!(manifest["recipe"]["rounding"]["search"], how);
                divergence(&base, &logits(&dir.path().join(&out), &tokens), vocab)
            };
            let (nearest, feedback) = (run("nearest"), run("feedback"));
            println!("{name} {format}: nearest {nearest:.2e}, feedback {feedback:.2e}");
            before += nearest.ln();
            after += feedback.ln();
        }
    }
    let ratio = ((after - before) / 16.0).exp();
    println!("ratio {ratio:.3}");
    assert!(ratio < 1.0, "{ratio}");
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // With a bias on the values, routers, experts and a shared expert.
    let source = model("qwen2-moe");
    let run = |more: &[&str]| {
        let args = ["--to", "awq-32g", source.to_str().unwrap()];
        command(dir.path(), &[&args[..], &SMALL, more].concat())
    };
    ok(run(&["-o", "whole"]).output().unwrap());
    let want = digests(&dir.path().join("whole"));
    let mut killed = 0;
    // The first line is of the run, every other of a layer.
    for lines in 1..=4 {
        let child = run(&["-o", "cut"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        kill_at(child, dir.path(), lines);
        let cut = dir.path().join("cut");
        if !cut.exists() {
            killed += 1;
            ok(run(&["-o", "cut", "--resume"]).output().unwrap());
        }
        assert_eq!(digests(&cut), want);
        std::fs::remove_dir_all(cut).unwrap();
    }
    assert!(killed >= 2, "only {killed} of 4 kills came in time");
}
