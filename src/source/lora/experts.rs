//! Adapters on raw parameters (PEFT's `target_parameters`), as those that hold all experts of a layer: the pair of all experts,
//! taken apart, and the tensors of the base that they are added to. Such a parameter may be one tensor of the checkpoint, with
//! inputs or outputs first, or an expert a tensor, as transformers splits them again when it saves.

use super::super::Checkpoint;
use super::OF_ANOTHER;
use super::delta::Delta;
use super::files::{A, B, MERGE_FIRST, Parts, Settings, WRAPPED, matrices, values};
use crate::packed::transpose;
use crate::{Error, Result};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// Families whose stacks are `[experts, in, out]`.
const INPUTS_FIRST: [&str; 3] = ["gpt_oss", "llama4", "llama4_text"];

/// The names of single experts' matrices that a parameter of all is made of, one below the other.
const SINGLE: [(&str, &[&str]); 4] = [
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("gate_up_proj", &["w1", "w3"]),
    ("down_proj", &["down_proj"]),
    ("down_proj", &["w2"]),
];

/// What the pair of a module adds to its parameters, by the names of tensors.
///
/// # Errors
/// `BadInput` where no parameter of the base has such a shape.
pub fn deltas(
    base: &Checkpoint,
    module: &str,
    parts: &Parts,
    settings: &Settings,
    weights: &Path,
) -> Result<Vec<(String, Delta)>> {
    let stem = module.replace(WRAPPED, "");
    let (a, b, ranks) = matrices(parts, module, [A, B], weights)?;
    let (input, output) = (a.shape[1], b.shape[0]);
    let parameters = settings.parameters(&stem);
    let (a, b) = (values(base, a)?, values(base, b)?);
    for parameter in &parameters {
        let name = format!("{stem}.{parameter}");
        let pair = |experts: usize| {
            let rank = ranks / experts.max(1);
            let whole = rank > 0 && rank * experts == ranks;
            whole.then(|| Pair { experts, rank, a: &a, b: &b, scale: settings.scale(&name, rank) })
        };
        if let Some(found) = base.named(&name) {
            let fits = match base.tensors[found].shape[..] {
                [rows, cols] if (rows, cols) == (output, input) => pair(1).map(|pair| pair.one(0, 0..output)),
                [experts, x, y] if (x, y) == (output, input) || (x, y) == (input, output) => {
                    let inputs_first = (x, y) != (output, input) || (x == y && are_inputs_first(base));
                    pair(experts).map(|pair| pair.stack(inputs_first))
                }
                _ => None,
            };
            match fits {
                Some(delta) => return Ok(vec![(name, delta)]),
                None => continue,
            }
        }
        if let Some((experts, names)) = singles(base, &stem, parameter)
            && let Some(pair) = pair(experts.len()).filter(|_| output.is_multiple_of(names.len()))
        {
            let rows = output / names.len();
            let fits = |prefix: &String| {
                base.named(&format!("{prefix}.{}.weight", names[0]))
                    .is_some_and(|t| base.tensors[t].shape == [rows, input])
            };
            if experts.iter().all(fits) {
                let of = |(expert, prefix): (usize, &String)| -> Vec<(String, Delta)> {
                    let part = |(i, name): (usize, &&str)| {
                        (format!("{prefix}.{name}.weight"), pair.one(expert, i * rows..(i + 1) * rows))
                    };
                    names.iter().enumerate().map(part).collect()
                };
                return Ok(experts.iter().enumerate().flat_map(of).collect());
            }
        }
    }
    let what = format!(
        "adapts {} with {input} inputs and {output} outputs, and the base model has no such parameter",
        if parameters.is_empty() { "a parameter".into() } else { parameters.join(" or ") }
    );
    let hint = if parameters.is_empty() { OF_ANOTHER } else { MERGE_FIRST };
    Err(Error::bad_file(weights, what).tensor(module).hint(hint))
}

/// The names of a module's experts where these lie alone, and of the matrices in them that the parameter is made of.
fn singles(base: &Checkpoint, stem: &str, parameter: &str) -> Option<(Vec<String>, &'static [&'static str])> {
    // Mixtral's files have another name for the block.
    let stems = [stem.to_string(), stem.replace(".mlp.experts", ".block_sparse_moe.experts")];
    let found = |(stem, names): (&String, &'static [&'static str])| {
        let of = |expert: usize| Some(format!("{stem}.{expert}"));
        let is_there = |prefix: &String| base.named(&format!("{prefix}.{}.weight", names[0])).is_some();
        let experts: Vec<String> = (0..).map_while(|expert| of(expert).filter(is_there)).collect();
        (!experts.is_empty()).then_some((experts, names))
    };
    let forms = SINGLE.iter().filter(|(name, _)| *name == parameter).map(|(_, names)| *names);
    forms.flat_map(|names| stems.iter().map(move |stem| (stem, names))).find_map(found)
}

fn are_inputs_first(base: &Checkpoint) -> bool {
    let config = crate::input::read_json(&base.dir.join("config.json")).unwrap_or_default();
    let kinds = [&config, &config["text_config"]].map(|part| part.get("model_type").and_then(Value::as_str));
    kinds.into_iter().flatten().any(|kind| INPUTS_FIRST.contains(&kind))
}

/// `a` `[experts * rank, in]` and `b` `[out, rank * experts]`, in which the experts' columns alternate.
struct Pair<'a> {
    experts: usize,
    rank: usize,
    a: &'a [f32],
    b: &'a [f32],
    scale: f32,
}

impl Pair<'_> {
    fn sizes(&self) -> (usize, usize) {
        let ranks = (self.experts * self.rank).max(1);
        (self.a.len() / ranks, self.b.len() / ranks)
    }

    /// For the whole stack, `[experts, out, in]` or `[experts, in, out]`.
    fn stack(&self, inputs_first: bool) -> Delta {
        let (input, output) = self.sizes();
        let (rows, cols) = if inputs_first { (input, output) } else { (output, input) };
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for expert in 0..self.experts {
            let one = self.one(expert, 0..output);
            match inputs_first {
                true => {
                    left.extend(transpose(&one.right, self.rank, input));
                    right.extend(transpose(&one.left, output, self.rank));
                }
                false => {
                    left.extend(one.left);
                    right.extend(one.right);
                }
            }
        }
        let rows = self.experts * rows;
        Delta::of_parameter([rows, cols], left, right, self.scale, self.experts)
    }

    /// For these outputs of one expert.
    fn one(&self, expert: usize, outputs: Range<usize>) -> Delta {
        let (cols, ranks) = (self.sizes().0, self.experts * self.rank);
        let of_row = |row: usize| (0..self.rank).map(move |k| self.b[row * ranks + k * self.experts + expert]);
        let left = outputs.clone().flat_map(of_row).collect();
        let right = self.a[expert * self.rank * cols..][..self.rank * cols].to_vec();
        Delta::of_parameter([outputs.len(), cols], left, right, self.scale, 1)
    }
}
