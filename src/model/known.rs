//! The architectures that are known by name, and what works with each.

use super::{anatomy, blueprint, families};
use serde::Serialize;
use std::collections::BTreeMap;

/// One GGUF architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Known {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// The classes of `config.json` that become it.
    pub classes: Vec<&'static str>,
    /// The classes among them that run too: they are calibrated, rounded with error feedback, evaluated and compared. All are
    /// converted.
    pub runs: Vec<&'static str>,
}

/// All, by their GGUF names. A model of any other architecture still becomes a checkpoint folder of a format that rounds to
/// nearest, and a GGUF file of one is quantized by the names of its tensors.
pub fn known() -> Vec<Known> {
    let mut found: BTreeMap<&str, Known> = BTreeMap::new();
    let mut add = |gguf, class, runs: bool| {
        let known = found.entry(gguf).or_insert(Known { gguf, classes: Vec::new(), runs: Vec::new() });
        for list in [Some(&mut known.classes), runs.then_some(&mut known.runs)].into_iter().flatten() {
            if !list.contains(&class) {
                list.push(class);
            }
        }
    };
    for family in families::all() {
        family.hf.iter().for_each(|name| add(family.gguf, name.architecture, true));
    }
    for blueprint in blueprint::all() {
        blueprint.classes.iter().for_each(|class| add(blueprint.gguf, class, anatomy::runs(blueprint.gguf, class)));
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_and_what_is_converted_only() {
        let all = known();
        let of = |gguf: &str| all.iter().find(|k| k.gguf == gguf).unwrap();
        assert!(of("llama").runs.contains(&"LlamaForCausalLM"));
        assert!(of("bert").runs.contains(&"BertForSequenceClassification"));
        assert!(of("bert").runs.contains(&"BertModel") && of("modern-bert").runs.contains(&"ModernBertModel"));
        assert!(of("mamba").runs.contains(&"MambaForCausalLM"));
        assert!(of("rwkv7").runs.is_empty() && of("rwkv7").classes.contains(&"RWKV7ForCausalLM"));
        assert!(all.iter().all(|k| !k.classes.is_empty()) && all.is_sorted_by_key(|k| k.gguf));
    }
}
