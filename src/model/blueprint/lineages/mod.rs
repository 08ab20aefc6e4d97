//! The blueprints, a file per lineage, and what most of them share. Sources of the facts: llama.cpp's conversion scripts.

mod deepseek;
mod delta;
mod dense;
mod drafts;
mod encoders;
mod experts;
mod gemma;
mod glm;
mod gpt;
mod hybrid;
mod llama;
mod moe;
mod plamo;
mod qwen;
mod rwkv;
mod small;
mod tower_keys;
mod towers;

use super::base::Keys;
use super::shapes;
use super::view::Change;
use super::{Blueprint, Hparams, Named, Part};
use crate::Result;
use crate::model::family::PLAIN_TOKENIZER;
use crate::model::tensor::Generated;

pub(super) static ALL: &[&[Blueprint]] = &[
    deepseek::ALL,
    delta::ALL,
    dense::ALL,
    drafts::ALL,
    encoders::ALL,
    experts::ALL,
    gemma::ALL,
    glm::ALL,
    gpt::ALL,
    hybrid::ALL,
    llama::ALL,
    moe::ALL,
    plamo::ALL,
    qwen::ALL,
    rwkv::ALL,
    small::ALL,
];

/// Of projector files.
pub(super) use towers::ALL as TOWERS;

/// Why layers that predict more than the next token are left out.
pub(crate) const WITHOUT_MTP: &str = "multi-token prediction, which llama.cpp does not support for this architecture";

/// The usual; blueprints name what differs.
const PLAIN: Blueprint = Blueprint {
    part: Part::Text,
    gguf: "",
    classes: &[],
    tensors: "",
    names: &[],
    rename: same,
    changes: &[],
    splits: &[],
    defaults: "{}",
    beside: &[],
    only: |_| true,
    in_f32: &[],
    in_f16: &[],
    plain: &[],
    without: &[],
    base: true,
    more_blocks: none,
    keys: nothing,
    shapes: None,
    generated: no_tensors,
    tokenizer: PLAIN_TOKENIZER,
};

fn same(_: &Hparams, name: &str) -> Named {
    Named::Keep(name.into())
}

fn none(_: &Hparams, _: &mut dyn Iterator<Item = &str>) -> usize {
    0
}

fn nothing(_: &mut Keys) -> Result<()> {
    Ok(())
}

fn no_tensors(_: &Hparams) -> Result<Vec<Generated>> {
    Ok(Vec::new())
}

/// Query and key rows, whose rotary halves GGUF interleaves for these architectures.
const PAIRS: &[(&str, Change)] = &[
    ("attn_q.weight", Change::QueryPairs),
    ("attn_q.bias", Change::QueryPairs),
    ("attn_k.weight", Change::KeyPairs),
    ("attn_k.bias", Change::KeyPairs),
];

/// Fused experts `[experts, 2 * out, in]`.
const HALVES: &[(&str, Change)] = &[("ffn_gate_exps.weight", Change::Half(0)), ("ffn_up_exps.weight", Change::Half(1))];

/// Fused experts `[experts, in, 2 * out]`.
const TURNED_HALVES: &[(&str, Change)] =
    &[("ffn_gate_exps.weight", Change::TurnedHalf(0)), ("ffn_up_exps.weight", Change::TurnedHalf(1))];

/// The name with this in the place of that.
fn renamed(name: &str, from: &str, to: &str) -> Named {
    Named::Keep(name.replacen(from, to, 1))
}

/// Names that end where others have `.weight` or `.bias`.
fn with_suffix(name: &str, ends: &[(&str, &str)]) -> Named {
    let suffix = ends.iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, suffix)| suffix);
    Named::Keep(format!("{name}{suffix}"))
}

/// `model.layers.N` behind the last layer of the configuration: multi-token prediction.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Multi-token prediction layers that the configuration counts.
fn nextn(h: &Hparams, _: &mut dyn Iterator<Item = &str>) -> usize {
    h.size("num_nextn_predict_layers").ok().flatten().unwrap_or(0)
}

/// Factors of Llama 3's rotary scaling as a tensor, `[dims / 2]`, where the configuration has that scaling.
fn llama3_factors(h: &Hparams) -> Result<Vec<Generated>> {
    let table = h.rope();
    if !table.get("rope_type").and_then(|v| v.as_str()).is_some_and(|kind| kind.eq_ignore_ascii_case("llama3")) {
        return Ok(Vec::new());
    }
    let number = |key: &str, default: f32| h.rope_float(key).unwrap_or(default);
    let rope = crate::model::config::Rope {
        theta: number("rope_theta", 10_000.0),
        dims: h.head_dim()?,
        scaling: crate::model::config::RopeScaling::Llama3 {
            factor: number("factor", 8.0),
            low_freq_factor: number("low_freq_factor", 1.0),
            high_freq_factor: number("high_freq_factor", 4.0),
            original_context: number("original_max_position_embeddings", 8192.0) as usize,
        },
    };
    let values = rope.llama3_factors();
    Ok(vec![Generated { name: "rope_freqs.weight".into(), shape: vec![values.len()], values }])
}

/// The two lists of long-rope as tensors.
fn long_rope_factors(h: &Hparams) -> Result<Vec<Generated>> {
    let list = |key: &str| -> Vec<f32> {
        let list = h.rope().get(key).and_then(|v| v.as_array());
        list.into_iter().flatten().filter_map(|v| v.as_f64()).map(|x| x as f32).collect()
    };
    let (long, short) = (list("long_factor"), list("short_factor"));
    if long.is_empty() || short.is_empty() {
        return Ok(Vec::new());
    }
    let tensor = |name: &str, values: Vec<f32>| Generated { name: name.into(), shape: vec![values.len()], values };
    Ok(vec![tensor("rope_factors_long.weight", long), tensor("rope_factors_short.weight", short)])
}
