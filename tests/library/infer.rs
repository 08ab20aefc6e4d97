//! The forward pass against logits that transformers computed in float32, for every family of the conformance data.

use crate::common::{conformance, engine, model};
use quantize::gguf::{DEFAULT_ALIGNMENT, TensorInfo, encode_header, layout};
use quantize::infer::{
    Cache, Ended, Engine, Sampler, Sampling, continue_text, continue_together, generate, sample_together,
};
use quantize::model::Generated;
use quantize::model::ValueMap;
use quantize::model::metadata::gguf_metadata;
use quantize::model::{MappedTensor, Model, keeps_f32};
use quantize::quant::GgmlType;
use quantize::source::Checkpoint;
use std::path::Path;

/// Largest allowed difference of a logit, in units of the logits' standard deviation.
const TOLERANCE: f32 = 2e-3;

/// The engine with rotary frequencies rounded to float16, as the reference has them: the script that made the expected
/// logits casts the whole model to float16 and back, and with the weights transformers' buffer of frequencies. In exact
/// arithmetic that alone moves logits by up to 2e-2 of their standard deviation.
fn engine_like_reference(path: &Path) -> Engine {
    let ckpt = Checkpoint::open(path).unwrap();
    let mut model = Model::open(&ckpt).unwrap();
    let rope = &model.config.ropes[0];
    let name = "rope_freqs.weight";
    let given = model.generated.iter().find(|g| g.name == name).map(|g| g.values.clone());
    let divisor = |j: usize| {
        let base = 1.0 / rope.theta.powf((2 * j) as f32 / rope.dims as f32);
        let frequency = base / given.as_ref().map_or(1.0, |g| g[j]);
        base / half::f16::from_f32(frequency).to_f32()
    };
    let values: Vec<f32> = (0..rope.dims / 2).map(divisor).collect();
    model.generated.retain(|g| g.name != name);
    model.generated.push(Generated { name: name.into(), shape: vec![values.len()], values });
    Engine::load(&ckpt, &model).unwrap()
}

/// Writes the checkpoint in `folder` as a GGUF file with F16 matrices to `path`.
fn write_f16_gguf(folder: &Path, path: &Path) {
    write_scaled_gguf(folder, path, &|_| Vec::new());
}

/// The same with matrices divided by numbers, one or one for each expert, that lie beside them.
fn write_scaled_gguf(folder: &Path, path: &Path, scales: &dyn Fn(&MappedTensor) -> Vec<f32>) {
    let ckpt = Checkpoint::open(folder).unwrap();
    let model = Model::open(&ckpt).unwrap();
    let mut meta = gguf_metadata(&model, &ckpt, 1).unwrap();
    // The tokenizer is not needed to run token ids, but the size of the vocabulary is.
    let tokens: Vec<String> = (0..model.config.vocab).map(|t| t.to_string()).collect();
    meta.set("tokenizer.ggml.tokens", tokens);
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let mut add = |name: &str, shape: &[usize], values: &[f32]| {
        let ty = if keeps_f32(name, shape) { GgmlType::F32 } else { GgmlType::F16 };
        let dims = shape.iter().rev().map(|d| *d as u64).collect();
        infos.push(TensorInfo { name: name.into(), dims, ty, offset: 0 });
        data.push(match ty {
            GgmlType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
            _ => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        });
    };
    for g in &model.generated {
        add(&g.name, &g.shape, &g.values);
    }
    for t in &model.tensors {
        // llama.cpp's converter, and ours with it, adds 1 to gemma's norms in the stored type. In float16 that alone moves
        // gemma2's logits by 2.0e-3 standard deviations, so here the sum is exact: the engine is what is tested.
        let plain = MappedTensor { values: ValueMap::Same, ..t.clone() };
        let mut values = vec![0.0; t.elements()];
        plain.read_rows(&ckpt, 0..t.row_count(), &mut Vec::new(), &mut values).unwrap();
        t.values.apply(&mut values, t.cols());
        let scales = scales(t);
        if !scales.is_empty() {
            let each = values.len() / scales.len();
            values.chunks_mut(each).zip(&scales).for_each(|(values, by)| values.iter_mut().for_each(|v| *v /= by));
            add(&t.name.replace(".weight", ".scale"), &[scales.len()], &scales);
        }
        add(&t.name, &t.shape, &values);
    }
    let len = layout(&mut infos, DEFAULT_ALIGNMENT).unwrap();
    let mut bytes = encode_header(&meta, &infos, DEFAULT_ALIGNMENT);
    let start = bytes.len();
    bytes.resize(start + len as usize, 0);
    for (info, data) in infos.iter().zip(data) {
        bytes[start + info.offset as usize..][..data.len()].copy_from_slice(&data);
    }
    std::fs::write(path, bytes).unwrap();
}

/// What a folder of the conformance data expects.
struct Expected {
    sequences: Vec<Vec<u32>>,
    /// One `[tokens, vocab]` per sequence.
    logits: Vec<Vec<f32>>,
    std: f32,
}

fn expected(folder: &Path) -> Expected {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let sequences: Vec<Vec<u32>> = serde_json::from_value(json["input_ids"].clone()).unwrap();
    let shape: Vec<usize> = serde_json::from_value(json["logits_shape"].clone()).unwrap();
    let bytes = std::fs::read(folder.join("expected_logits.f32")).unwrap();
    assert_eq!(bytes.len(), 4 * shape.iter().product::<usize>());
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let logits = values.chunks_exact(shape[1] * shape[2]).map(<[f32]>::to_vec).collect();
    Expected { sequences, logits, std: json["logits_std"].as_f64().unwrap() as f32 }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}

/// The largest difference to transformers, in standard deviations, with whole sequences as one batch.
fn difference(engine: &Engine, expected: &Expected) -> f32 {
    let mut largest = 0f32;
    for (tokens, logits) in expected.sequences.iter().zip(&expected.logits) {
        let mut cache = Cache::one_batch(tokens.len());
        let got = engine.forward(tokens, &mut cache, 0..tokens.len()).unwrap();
        largest = largest.max(worst(&got, logits) / expected.std);
    }
    largest
}

#[test]
fn logits_agree_with_transformers_from_safetensors() {
    for folder in conformance() {
        let difference = difference(&engine_like_reference(&folder), &expected(&folder));
        eprintln!("{}: {difference:.1e}", folder.display());
        assert!(difference <= TOLERANCE, "{}: {difference}", folder.display());
    }
}

/// llama.cpp multiplies products with `.scale` tensors, of whatever architecture: NVFP4's second level of scales.
#[test]
fn products_are_multiplied_with_the_scales_beside_a_matrix() {
    let dir = tempfile::tempdir().unwrap();
    for (name, has_experts) in [("llama", false), ("qwen3-moe", true)] {
        let (plain, scaled) = (dir.path().join("plain.gguf"), dir.path().join("scaled.gguf"));
        write_f16_gguf(&model(name), &plain);
        // Powers of two that make weights larger: nothing is rounded.
        write_scaled_gguf(&model(name), &scaled, &|t| match t.shape.len() {
            3 => (0..t.shape[0]).map(|i| [0.5, 1.0, 0.25][i % 3]).collect(),
            2 if t.name.starts_with("blk.") && !t.name.contains("_inp") => vec![0.25],
            _ => Vec::new(),
        });
        let logits = |path: &Path| {
            let ckpt = Checkpoint::open(path).unwrap();
            let own = Model::open(&ckpt).unwrap();
            let stacked = own.tensors.iter().filter(|t| t.name.ends_with("_exps.scale"));
            let engine = Engine::load(&ckpt, &own).unwrap();
            let tokens: Vec<u32> = (3..19).collect();
            (stacked.count(), engine.forward(&tokens, &mut engine.cache(16), 0..16).unwrap())
        };
        let ((none, wanted), (stacked, found)) = (logits(&plain), logits(&scaled));
        assert!(none == 0 && (stacked > 0) == has_experts, "{name}");
        assert!(wanted == found, "{name}");
    }
}

#[test]
fn logits_agree_with_transformers_from_an_f16_gguf() {
    let dir = tempfile::tempdir().unwrap();
    for folder in conformance() {
        let path = dir.path().join("model.gguf");
        write_f16_gguf(&folder, &path);
        let difference = difference(&engine_like_reference(&path), &expected(&folder));
        eprintln!("{}: {difference:.1e}", folder.display());
        assert!(difference <= TOLERANCE, "{}: {difference}", folder.display());
    }
}

#[test]
fn any_cut_into_batches_gives_the_same_logits() {
    for folder in conformance() {
        let engine = engine_like_reference(&folder);
        let Expected { sequences, logits, std } = expected(&folder);
        let (tokens, logits) = (&sequences[0], &logits[0]);
        for cuts in [vec![1; tokens.len()], vec![5, 1, 20, 1, 1, 2, 18], vec![33, 15]] {
            let mut cache = engine.cache(tokens.len());
            let mut got = Vec::new();
            let mut start = 0;
            for n in cuts {
                got.extend(engine.forward(&tokens[start..start + n], &mut cache, 0..n).unwrap());
                start += n;
            }
            let difference = worst(&got, logits) / std;
            assert!(difference <= TOLERANCE, "{}: {difference}", folder.display());
        }
    }
}

#[test]
fn sequences_in_step_give_the_logits_of_each_alone() {
    for folder in conformance() {
        let engine = engine_like_reference(&folder);
        let Expected { sequences, logits, std } = expected(&folder);
        // The second sequence is the first, shifted.
        let n = 20;
        let (first, second) = (&sequences[0][..n], &sequences[0][3..n + 3]);
        let alone = engine.forward(second, &mut engine.cache(n), 0..n).unwrap();
        let mut cache = Cache::together(engine.config.layers.len(), 2, n);
        let vocab = engine.config.vocab;
        for t in 0..n {
            let got = engine.step(&[first[t], second[t]], &mut cache).unwrap();
            let row = t * vocab..(t + 1) * vocab;
            let differences = [worst(&got[..vocab], &logits[0][row.clone()]), worst(&got[vocab..], &alone[row])];
            assert!(differences.iter().all(|d| d / std <= TOLERANCE), "{}: {differences:?}", folder.display());
        }
        assert!(engine.step(&[1, 2], &mut cache).is_err());
    }
}

#[test]
fn texts_sampled_in_step_are_those_sampled_alone() {
    let engine = engine(&conformance()[3]);
    let options = Sampling { temperature: 1.0, ..Sampling::default() };
    let mut counted = 0;
    let count = || {
        counted += 1;
        Ok(())
    };
    let together = sample_together(&engine, &[(5, 1), (17, 2), (5, 3)], 12, options, count).unwrap();
    assert_eq!(counted, 33);
    for (text, (start, seed)) in together.iter().zip([(5, 1), (17, 2), (5, 3)]) {
        let (alone, _) = generate(&engine, &[start], 11, &[], Sampling { seed, ..options }, |_| true).unwrap();
        assert_eq!(text[0], start);
        assert_eq!(text[1..], alone);
    }
    assert_ne!(together[0], together[2]);
    let stopped = sample_together(&engine, &[(5, 1)], 12, options, || Err(quantize::Error::bad_input("stop")));
    assert!(stopped.is_err());
}

#[test]
fn only_the_wanted_positions_are_returned() {
    let folder = &conformance()[3];
    let engine = engine(folder);
    let tokens = &expected(folder).sequences[0];
    let all = engine.forward(tokens, &mut engine.cache(64), 0..tokens.len()).unwrap();
    let some = engine.forward(tokens, &mut engine.cache(64), 7..9).unwrap();
    let vocab = engine.config.vocab;
    assert!(worst(&some, &all[7 * vocab..9 * vocab]) < 1e-4);
    assert!(engine.forward(tokens, &mut engine.cache(64), 40..49).is_err());
}

#[test]
fn tokens_beyond_the_vocabulary_and_beyond_the_context_are_errors() {
    let engine = engine(&conformance()[3]);
    let error = engine.forward(&[1, 320], &mut engine.cache(8), 0..1).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("token 320"), "{error}");
    let error = engine.forward(&[1, 2, 3], &mut engine.cache(2), 0..1).unwrap_err();
    assert!(error.to_string().contains("3 tokens do not fit the context of 2"), "{error}");
}

#[test]
fn greedy_generation_follows_the_logits_and_stops() {
    let engine = engine(&conformance()[3]);
    let prompt = [5, 17, 200];
    let mut seen = Vec::new();
    let made = generate(&engine, &prompt, 6, &[], Sampling::default(), |t| {
        seen.push(t);
        true
    });
    let (made, ended) = made.unwrap();
    assert_eq!((made.len(), &made), (6, &seen));
    // Each token is the best after all before it, computed at once.
    let mut tokens = prompt.to_vec();
    for token in &made {
        let logits = engine.forward(&tokens, &mut engine.cache(16), tokens.len() - 1..tokens.len()).unwrap();
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best as u32, *token);
        tokens.push(*token);
    }
    let first = made.iter().position(|t| t == &made[2]).unwrap();
    assert_eq!(ended, Ended::Length);
    let (stopped, ended) = generate(&engine, &prompt, 6, &[made[2]], Sampling::default(), |_| true).unwrap();
    assert_eq!(stopped, made[..first]);
    assert_eq!(ended, Ended::Stop);
    let (cut, ended) = generate(&engine, &prompt, 6, &[], Sampling::default(), |_| false).unwrap();
    assert_eq!(cut, made[..1]);
    assert_eq!(ended, Ended::Interrupted);
    assert!(generate(&engine, &[], 6, &[], Sampling::default(), |_| true).is_err());
}

#[test]
fn a_text_goes_on_after_what_is_known_of_it() {
    let engine = engine(&conformance()[3]);
    let text: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 100).collect();
    let greedy = || Sampler::new(Sampling::default());
    let mut cache = engine.cache(64);
    let (first, _) = continue_text(&engine, &mut cache, &text, 5, &[], &mut greedy(), |_| true).unwrap();
    // The last token was chosen and not run.
    assert_eq!(cache.len(), text.len() + 4);
    // All of it and more; another end; another beginning.
    let longer = [&text[..], &first, &[9, 8]].concat();
    let changed = [&text[..20], &[5, 6, 7]].concat();
    for text in [longer, changed, vec![4, 5], text.clone()] {
        let (went_on, _) = continue_text(&engine, &mut cache, &text, 6, &[], &mut greedy(), |_| true).unwrap();
        let (alone, _) = generate(&engine, &text, 6, &[], Sampling::default(), |_| true).unwrap();
        assert_eq!(went_on, alone);
    }
}

#[test]
fn prompts_continued_together_are_those_continued_alone() {
    let engine = engine(&conformance()[3]);
    let prompts: Vec<Vec<u32>> = (0..3).map(|p| (0..20).map(|i| (i * 7 + 13 * p + 3) % 100).collect()).collect();
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut heard = 0;
    let made = continue_together(&engine, &slices, 8, || {
        heard += 1;
        Ok(())
    });
    let alone = |prompt: &Vec<u32>| generate(&engine, prompt, 8, &[], Sampling::default(), |_| true).unwrap().0;
    assert_eq!(made.unwrap(), prompts.iter().map(alone).collect::<Vec<_>>());
    assert_eq!(heard, 24);
}
