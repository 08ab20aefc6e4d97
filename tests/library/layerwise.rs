//! The layer-by-layer pass: moments as the whole model's own inputs give them, weights that are replaced on the way,
//! activations in a file.

use crate::common::{FAMILIES, open};
use ndarray::ArrayView2;
use quantize::Result;
use quantize::calibration::layerwise::{self, Captured, Options, Stage, Visit};
use quantize::infer::{Cache, Engine, Linear, Observer};
use quantize::kernel::Dense;
use quantize::model::Model;
use quantize::{Control, Run};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Windows of different lengths.
fn windows(model: &Model) -> Vec<Vec<u32>> {
    let vocab = model.config.vocab as u32;
    (0..6).map(|w| (0..10 + 5 * w).map(|i| (w * 7919 + i * 104_729 + i * i * 31) % vocab).collect()).collect()
}

fn run(name: &str, options: &Options, visit: &mut dyn Visit) -> Result<Captured> {
    let (ckpt, model) = open(name);
    let control = Control { threads: 2, ..Control::default() };
    layerwise::run(&ckpt, &model, &windows(&model), options, visit, Run::new(&control, &()))
}

/// Key of a linear layer and an expert of it.
type Key = (String, usize);

/// Keeps the grams, and replaces the weights of one stage by smaller ones if asked to.
#[derive(Default)]
struct Keep {
    grams: BTreeMap<Key, Vec<f32>>,
    held: BTreeMap<Key, u64>,
    tokens: BTreeMap<Key, u64>,
    shrink: Option<(usize, Stage)>,
    stages: Vec<(usize, Stage)>,
}

/// Half of the weights.
fn halved(linear: &Linear) -> Dense {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let mut data = vec![0.0; rows * cols];
    linear.weight.decode(0..rows, &mut data);
    data.iter_mut().for_each(|v| *v *= 0.5);
    Dense { data, cols }
}

impl Visit for Keep {
    fn stage(&mut self, layer: usize, stage: Stage, captured: &[&Captured], linears: Vec<&mut Linear>) -> Result<()> {
        self.stages.push((layer, stage));
        let mut names: Vec<&String> = captured.iter().flat_map(|c| &c.linears).collect();
        let mut mine: Vec<&String> = linears.iter().map(|l| &l.name).collect();
        names.sort();
        mine.sort();
        assert_eq!(names, mine, "every linear layer of the stage was captured");
        for c in captured {
            for (expert, m) in c.moments.iter().enumerate() {
                for name in &c.linears {
                    self.grams.insert((name.clone(), expert), m.gram.clone());
                    self.tokens.insert((name.clone(), expert), m.tokens);
                    self.held.insert(
                        (name.clone(), expert),
                        c.held.first().and_then(|set| set.get(expert)).map_or(0, |m| m.tokens),
                    );
                }
            }
        }
        if self.shrink == Some((layer, stage)) {
            for linear in linears {
                linear.weight = Box::new(halved(linear));
            }
        }
        Ok(())
    }

    fn layer_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// Sums of x xᵀ in `f64` while the whole model runs.
struct Plain;

impl Plain {
    fn of(engine: &Engine, windows: &[Vec<u32>]) -> BTreeMap<Key, (Vec<f64>, u64)> {
        struct Sum<'a>(&'a mut BTreeMap<Key, (Vec<f64>, u64)>, &'a BTreeMap<String, usize>);
        impl Observer for Sum<'_> {
            fn input(&mut self, linear: &str, expert: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
                let Some(&cols) = self.1.get(linear) else { return ControlFlow::Continue(()) };
                let entry = self.0.entry((linear.to_string(), expert.unwrap_or(0)));
                let (gram, tokens) = entry.or_insert_with(|| (vec![0.0; cols * cols], 0));
                for row in x.rows() {
                    *tokens += 1;
                    for (i, a) in row.iter().enumerate() {
                        for (j, b) in row.iter().enumerate() {
                            gram[i * cols + j] += f64::from(*a) * f64::from(*b);
                        }
                    }
                }
                ControlFlow::Continue(())
            }
        }
        let mut widths = BTreeMap::new();
        let mut sums = BTreeMap::new();
        for layer in 0..engine.config.layers.len() {
            for part in PARTS {
                widths.insert(format!("blk.{layer}.{part}.weight"), 0);
            }
        }
        // The width of each input is what the model itself shows for one token.
        struct Widths<'a>(&'a mut BTreeMap<String, usize>);
        impl Observer for Widths<'_> {
            fn input(&mut self, linear: &str, _: Option<usize>, x: ArrayView2<f32>) -> ControlFlow<()> {
                if let Some(width) = self.0.get_mut(linear) {
                    *width = x.ncols();
                }
                ControlFlow::Continue(())
            }
        }
        for token in 0..40 {
            engine.hidden(&[token], &mut Cache::one_batch(1), &mut Widths(&mut widths)).unwrap();
        }
        widths.retain(|_, width| *width > 0);
        for window in windows {
            engine.hidden(window, &mut Cache::one_batch(window.len()), &mut Sum(&mut sums, &widths)).unwrap();
        }
        sums
    }
}

const PARTS: [&str; 13] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_down_shexp",
];

fn assert_close(grams: &BTreeMap<Key, Vec<f32>>, exact: &BTreeMap<Key, (Vec<f64>, u64)>, context: &str) {
    let mut compared = 0;
    for (key, (exact, _)) in exact {
        let gram = grams.get(key).unwrap_or_else(|| panic!("{context}: {key:?} was not captured"));
        let scale = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert_eq!(gram.len(), exact.len());
        for (got, exact) in gram.iter().zip(exact) {
            assert!((f64::from(*got) - exact).abs() <= 1e-5 * scale, "{context} {key:?}: {got} {exact}");
        }
        compared += 1;
    }
    assert!(compared >= 8, "{context}: {compared}");
}

#[test]
fn moments_are_those_of_the_whole_model_in_every_family() {
    for name in FAMILIES {
        let (ckpt, model) = open(name);
        let engine = Engine::load(&ckpt, &model).unwrap();
        let exact = Plain::of(&engine, &windows(&model));
        for sequential in [false, true] {
            let mut keep = Keep::default();
            let head = run(name, &Options { sequential, ..Options::default() }, &mut keep).unwrap();
            assert_close(&keep.grams, &exact, name);
            for (key, (_, tokens)) in &exact {
                assert_eq!(keep.tokens[key], *tokens, "{name} {key:?}");
            }
            let all: usize = windows(&model).iter().map(Vec::len).sum();
            assert_eq!(head.moments[0].tokens, all as u64);
            let order: Vec<(usize, Stage)> =
                (0..model.config.layers.len()).flat_map(|layer| Stage::ALL.map(|s| (layer, s))).collect();
            assert_eq!(keep.stages, order);
        }
    }
}

#[test]
fn later_stages_see_the_weights_that_were_replaced() {
    for name in ["llama", "mixtral", "phi3"] {
        for stage in Stage::ALL {
            let (ckpt, model) = open(name);
            let mut engine = Engine::load(&ckpt, &model).unwrap();
            let mut keep = Keep { shrink: Some((0, stage)), ..Keep::default() };
            run(name, &Options { sequential: true, ..Options::default() }, &mut keep).unwrap();
            let role = |linear: &Linear| model.tensors.iter().find(|t| t.name == linear.name).map(|t| t.role);
            for linear in engine.layer_linears_mut(0) {
                if role(linear).and_then(Stage::of) == Some(stage) {
                    linear.weight = Box::new(halved(linear));
                }
            }
            // What came before was captured with the original, and does not depend on what was replaced.
            assert_close(&keep.grams, &Plain::of(&engine, &windows(&model)), &format!("{name} {stage:?}"));
        }
    }
}

#[test]
fn activations_in_a_file_change_nothing() {
    let spill = tempfile::tempdir().unwrap();
    for sequential in [false, true] {
        let (mut memory, mut file) = (Keep::default(), Keep::default());
        run("llama", &Options { sequential, ..Options::default() }, &mut memory).unwrap();
        for max_memory in [0, 20_000] {
            let options =
                Options { sequential, max_memory: Some(max_memory), spill: spill.path().into(), ..Options::default() };
            run("llama", &options, &mut file).unwrap();
            assert_eq!(memory.grams, file.grams);
        }
    }
    assert_eq!(std::fs::read_dir(spill.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn held_out_windows_are_kept_apart() {
    let mut keep = Keep::default();
    run("llama", &Options { held: vec![0, 0, 1, 0, 0, 1], ..Options::default() }, &mut keep).unwrap();
    // Windows 2 and 5 of 10, 15, 20, 25, 30 and 35 tokens.
    assert!(keep.held.values().all(|tokens| *tokens == 55));
    assert!(keep.tokens.values().all(|tokens| *tokens == 80));
}
