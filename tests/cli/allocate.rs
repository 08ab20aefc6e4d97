//! Files with a budget (`--target-bpw`, `--target-size`, `--like`), made as a user makes them from the small trained model
//! of `tests/fixtures`.

use crate::common::{threads, tiny};
use assert_cmd::Command;
use quantize::gguf::{Header, read_header};
use quantize::quant::GgmlType;
use serde_json::Value;
use std::path::Path;

/// A conversion by ggml's search on a few windows.
fn convert(out: &Path, args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("quantize").unwrap();
    command.args(["--quiet", "--format", "json", "--search", "ggml", "--calibration", "default"]);
    command.args(["--calibration-tokens", "512", "--seq-len", "32"]).args(args).arg(tiny()).arg("-o").arg(out);
    command
}

fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
}

fn refused(command: &mut Command) -> String {
    let done = command.assert().code(2).get_output().clone();
    String::from_utf8(done.stderr).unwrap()
}

fn matrices(header: &Header) -> impl Iterator<Item = &quantize::gguf::TensorInfo> {
    header.tensors.iter().filter(|t| t.dims.len() > 1)
}

/// What the cheapest step up would have cost: the file may not be smaller than its limit by more. A type that takes hardly
/// more is no step up (Q2_K after IQ2_S).
fn smallest_step(header: &Header) -> u64 {
    let ladder = [GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K, GgmlType::Q8_0];
    let steps = matrices(header).filter_map(|t| {
        let n: u64 = t.dims.iter().product();
        let bytes = |ty: GgmlType| n / ty.block() as u64 * ty.block_bytes() as u64;
        let now = t.bytes().unwrap();
        ladder.iter().map(|ty| bytes(*ty)).find(|b| *b > now + now / 20).map(|b| b - now)
    });
    steps.min().unwrap()
}

#[test]
fn budgets_are_kept_and_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let report = json(&mut convert(
        dir.path(),
        &["--to", "q4_k_m", "--like", "q4_k_m", "--target-size", "2.5MB", "--target-bpw", "6"],
    ));
    let sizes: Vec<u64> =
        report["artifacts"].as_array().unwrap().iter().map(|a| a["bytes"].as_u64().unwrap()).collect();
    let (preset, limits) = (sizes[0], [u64::MAX, 2_500_000, sizes[0]]);
    let names = ["6bpw", "2.5MB", "like-Q4_K_M"];
    for (i, (name, limit)) in names.iter().zip(limits).enumerate() {
        let path = dir.path().join(format!("tiny-llama-{name}.gguf"));
        let header = read_header(&path).unwrap();
        assert_eq!(header.metadata.str("quantize.target"), Some(*name));
        assert_eq!(header.file_len, sizes[i + 1]);
        assert!(header.file_len <= limit, "{name}: {} > {limit}", header.file_len);
        let artifact = &report["artifacts"][i + 1];
        let allocation = &artifact["allocation"];
        assert!(allocation["predicted_kl"].as_f64().unwrap() > 0.0, "{allocation}");
        let rows = allocation["tensors"].as_array().unwrap();
        assert_eq!(rows.len(), matrices(&header).count());
        for row in rows {
            let tensor = header.tensors.iter().find(|t| t.name == row["tensor"].as_str().unwrap()).unwrap();
            assert_eq!(
                (tensor.ty.name(), tensor.bytes().unwrap()),
                (row["type"].as_str().unwrap(), row["bytes"].as_u64().unwrap())
            );
        }
        if *name == "6bpw" {
            let bits = artifact["bits_per_weight"].as_f64().unwrap();
            assert!(bits <= 6.0 && bits > 5.9, "{bits}");
        } else {
            assert!(limit - header.file_len < smallest_step(&header) + 512, "{name}: {}", limit - header.file_len);
        }
    }
    // The preset's own types were among the choices.
    let like = &report["artifacts"][3]["allocation"];
    assert!(like["predicted_kl"].as_f64() <= like["preset_predicted_kl"].as_f64(), "{like}");
    assert!(report["artifacts"][0]["allocation"].is_null());
    assert!(preset - sizes[3] < 10_000, "{sizes:?}");
}

#[test]
fn the_same_file_with_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = threads()
        .iter()
        .map(|threads| {
            let out = dir.path().join(format!("{threads}.gguf"));
            json(&mut convert(&out, &["--target-bpw", "4.5", "-t", threads]));
            std::fs::read(out).unwrap()
        })
        .collect();
    assert!(files.iter().all(|file| *file == files[0]));
}

#[test]
fn what_was_asked_for_is_no_choice() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let args = ["--target-bpw", "5", "--tensor-type", "ffn_down=q8_0", "--output-tensor-type", "q6_k"];
    json(&mut convert(&out, &args));
    let header = read_header(&out).unwrap();
    let ty = |name: &str| header.tensors.iter().find(|t| t.name == name).unwrap().ty;
    assert_eq!(ty("blk.3.ffn_down.weight"), GgmlType::Q8_0);
    let weights: u64 = header.tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum();
    let bytes: u64 = header.tensors.iter().map(|t| t.bytes().unwrap()).sum();
    assert!(8.0 * bytes as f64 / weights as f64 <= 5.0);
}

#[test]
fn what_cannot_be_met_is_refused_with_the_range() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    for (flag, value) in [("--target-bpw", "1"), ("--target-bpw", "17")] {
        let message = refused(&mut convert(&out, &[flag, value]));
        assert!(message.contains("2.14 to 16.01 bits per weight"), "{message}");
    }
    for (flag, value) in [("--target-size", "100K"), ("--target-size", "1G"), ("--like", "iq1_s")] {
        let message = refused(&mut convert(&out, &[flag, value]));
        assert!(message.contains("out of reach") && message.contains("1.5 MB to 10.6 MB"), "{message}");
    }
    let bad = [
        (["--target-bpw", "many"], "not a number"),
        (["--target-bpw", "-3"], "not a number"),
        (["--target-size", "4X"], "not a size"),
        (["--like", "q9"], "no such preset"),
        (["--like", "q4_k_m,15"], "asked for twice"),
    ];
    for (args, what) in bad {
        let mut args = args.to_vec();
        let joined = args.join("=");
        if args[1].starts_with('-') {
            args = vec![&joined];
        }
        assert!(refused(&mut convert(&out, &args)).contains(what), "{args:?}");
    }
    assert!(refused(&mut convert(&out, &["--target-bpw", "5", "--pure"])).contains("nothing to choose"));
    let mut without = Command::cargo_bin("quantize").unwrap();
    let message = refused(without.args(["--target-bpw", "5"]).arg(tiny()).arg("-o").arg(&out));
    assert!(message.contains("add --calibration default"), "{message}");
    assert!(!out.exists());
}

#[test]
fn a_dry_run_shows_the_choice_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let plan = json(&mut convert(&out, &["--target-bpw", "4", "--dry-run"]));
    let rows = plan["targets"][0]["rows"].as_array().unwrap();
    assert!(rows.iter().any(|r| r["why"] == "budget") && rows.iter().any(|r| r["why"] == "kept"), "{plan}");
    assert!(plan["targets"][0]["bits_per_weight"].as_f64().unwrap() <= 4.0);
    assert!(!out.exists());
}
