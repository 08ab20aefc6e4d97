//! FP8 as transformers and DeepSeek's own files have it: E4M3 with a scale per tensor or per block, under `quant_method`
//! fp8. Such checkpoints are read, none is written.

use super::Loader;
use super::engines::{Engines, Verdict, no_mlx};
use super::matrix::Input;
use super::mixture::own_or_kept;
use super::pieces::{Found, single};
use super::read::{CACHE_SCALES, Read, Suffixes, Tool, admits_all};
use serde_json::Value;

pub(super) static TOOL: Tool = Tool {
    name: "fp8",
    method: Some("fp8"),
    admits: admits_all,
    suffixes: Suffixes {
        main: &["weight"],
        sign: &["weight_scale_inv", "weight_scale"],
        shape: &[],
        others: &["input_scale", "activation_scale"],
    },
    label: |_| "fp8".into(),
    groups: None,
    shape: |read| read.pieces.matrix("weight").map(|[n, k]| (n, k)),
    unpack: super::compressed::eight_bits,
    input,
    engine_tensors: CACHE_SCALES,
    loader: Loader::Torch,
    doubles_config: false,
    extra_config_files: &[],
    mixes: |_, _| false,
    mixture: own_or_kept,
    engines: |_| &ENGINES,
};

static ENGINES: Engines =
    Engines { vllm: |_, _| Verdict::default(), transformers: |_| Verdict::default(), mlx: |_| no_mlx("fp8") };

fn input(read: &Read) -> Found<Input> {
    match read.pieces.find("input_scale").or(read.pieces.find("activation_scale")) {
        Some(scale) => Ok(Input::Fp8Static { scale: single(scale)? }),
        None => {
            let block = read.config.get("weight_block_size").and_then(|b| b.get(1)).and_then(Value::as_u64);
            Ok(Input::Fp8 { group: block.map(|b| b as usize) })
        }
    }
}
