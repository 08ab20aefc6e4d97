//! Whether the tensors of a folder without a family of its own are all that its configuration promises: those that its
//! blueprint makes of the configuration, or, where that needs the weights, those that a file of the architecture must hold
//! in the sizes that the configuration gives.

use crate::convert::loadable;
use crate::model::{Model, Mtp, Part, SourceModel};
use crate::source::Checkpoint;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What keeps the folder from being what its configuration promises, or that nobody knows what that is.
pub(super) fn unfitting(file: &Checkpoint, model: &Model) -> Option<String> {
    if model.known().is_ok() {
        return None;
    }
    let source = match SourceModel::open(file.dir()).and_then(|source| source.for_files(Part::Text, Mtp::Keep)) {
        Ok(source) => source,
        Err(e) => return Some(said(&e)),
    };
    let Some(json) = model.hf_config.clone() else { return Some("there is no config.json".into()) };
    match Model::imagined(json.clone(), Mtp::Keep) {
        Ok((_, promised)) => differing(&shapes(&promised), &shapes(&source.model)),
        Err(e) => match loadable::of_folder(&source.model) {
            None => Some(said(&e)),
            Some(found) => {
                let names = file.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>();
                let found = found.into_iter().next().or_else(|| uneven(&shapes(&source.model)));
                let embedding = source.model.tensors.iter().find(|t| t.name == "token_embd.weight");
                found.or_else(|| ends(&names, embedding.map(|t| t.row_count()), &json))
            }
        },
    }
}

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes(model: &Model) -> Shapes {
    let stored = model.tensors.iter().map(|t| (t.name.clone(), t.shape.clone()));
    stored.chain(model.generated.iter().map(|g| (g.name.clone(), g.shape.clone()))).collect()
}

/// The first tensor that is missing, of another shape, or not promised.
fn differing(promised: &Shapes, found: &Shapes) -> Option<String> {
    let differs = |(name, shape): (&String, &Vec<usize>)| match found.get(name) {
        None => Some(format!("{name} is missing")),
        Some(other) if other != shape => Some(format!("{name} is {other:?}, and config.json promises {shape:?}")),
        Some(_) => None,
    };
    let more = || found.keys().find(|name| !promised.contains_key(*name)).map(|n| format!("{n} is not promised"));
    promised.iter().find_map(differs).or_else(more)
}

/// A block that lacks what another has, and has nothing that the other has not: kinds of blocks differ by more.
fn uneven(found: &Shapes) -> Option<String> {
    let mut blocks: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for name in found.keys() {
        let Some((block, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { continue };
        blocks.entry(block.parse().ok()?).or_default().insert(part);
    }
    let kinds: BTreeSet<&BTreeSet<&str>> = blocks.values().collect();
    blocks.iter().find_map(|(block, parts)| {
        let more = kinds.iter().find(|kind| kind.len() > parts.len() && kind.is_superset(parts))?;
        let lacking = more.iter().find(|part| !parts.contains(**part))?;
        Some(format!("blk.{block}.{lacking} is missing, which other blocks have"))
    })
}

/// What stands before and behind the blocks: an embedding of the vocabulary that is promised, and a head.
fn ends(names: &[&str], rows: Option<usize>, json: &Value) -> Option<String> {
    let text = json.get("text_config").unwrap_or(json);
    let said = |key: &str| text.get(key).or_else(|| json.get(key)).filter(|v| !v.is_null());
    match (rows, said("vocab_size").and_then(Value::as_u64)) {
        (Some(rows), Some(size)) if rows as u64 != size => {
            return Some(format!("the embedding has {rows} rows, and config.json promises {size}"));
        }
        _ => {}
    }
    let class = json.get("architectures").and_then(|a| a.get(0)?.as_str()).unwrap_or_default();
    let has = |parts: &[&str]| names.iter().any(|name| parts.iter().any(|part| name.contains(part)));
    let generates = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"].iter().any(|end| class.ends_with(end));
    let tied = said("tie_word_embeddings").and_then(Value::as_bool);
    let head = ["lm_head.", "embed_out.", "output_layer.", "output.weight", "lm_head_"];
    if generates && tied != Some(true) && !has(&head) {
        return Some("there is no head, and config.json does not say that it is the embedding".into());
    }
    const HEADS: [(&str, &[&str]); 4] = [
        ("ForMaskedLM", &["cls.", "lm_head.", "decoder.", "vocab_", "head."]),
        ("ForSequenceClassification", &["classifier.", "score.", "head."]),
        ("ForTokenClassification", &["classifier.", "score."]),
        ("ForQuestionAnswering", &["qa_outputs."]),
    ];
    let lacking = HEADS.iter().find(|(end, parts)| class.ends_with(end) && !has(parts));
    lacking.map(|(_, parts)| format!("{} is missing", parts.join(" or ")))
}

/// What an error says, without its hint.
fn said(error: &crate::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(names: &[(&str, &[usize])]) -> Shapes {
        names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn what_differs_from_a_promise_is_named() {
        let promised = of(&[("a", &[2, 3]), ("b", &[4])]);
        assert_eq!(differing(&promised, &promised), None);
        for (found, what) in [
            (of(&[("a", &[2, 3])]), "b is missing"),
            (of(&[("a", &[2, 4]), ("b", &[4])]), "a is [2, 4], and config.json promises [2, 3]"),
            (of(&[("a", &[2, 3]), ("b", &[4]), ("c", &[1])]), "c is not promised"),
        ] {
            assert_eq!(differing(&promised, &found).as_deref(), Some(what));
        }
    }

    #[test]
    fn a_block_that_lacks_something_is_named_and_kinds_of_blocks_are_not() {
        let kinds = [
            ("blk.0.attn_q.weight", &[1][..]),
            ("blk.0.ffn_up.weight", &[1]),
            ("blk.1.ssm_in.weight", &[1]),
            ("blk.1.ffn_up.weight", &[1]),
        ];
        assert_eq!(uneven(&of(&kinds)), None);
        let lacking = [&kinds[..], &[("blk.2.attn_q.weight", &[1][..])]].concat();
        assert_eq!(uneven(&of(&lacking)).as_deref(), Some("blk.2.ffn_up.weight is missing, which other blocks have"));
    }

    #[test]
    fn heads_and_vocabularies_are_asked_for() {
        let json = |tied: Value, class: &str| json!({ "tie_word_embeddings": tied, "architectures": [class] });
        let head = |json: Value, names: &[&str]| ends(names, None, &json);
        assert!(head(json(Value::Null, "GPTNeoXForCausalLM"), &["gpt_neox.embed_in.weight"]).is_some());
        assert_eq!(head(json(Value::Null, "GPTNeoXForCausalLM"), &["embed_out.weight"]), None);
        assert_eq!(head(json(true.into(), "BloomForCausalLM"), &[]), None);
        assert!(head(json(Value::Null, "BertForMaskedLM"), &["bert.pooler.dense.weight"]).is_some());
        assert!(ends(&[], Some(64), &json!({ "vocab_size": 72 })).is_some());
        assert_eq!(ends(&[], Some(64), &json!({ "vocab_size": 64 })), None);
    }
}
