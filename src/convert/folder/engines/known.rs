//! What engines know of families: the model types that they have, the keys that they must find in `config.json`, and the
//! families that were given to them in each kind of folder (tests/interop/folder_verdicts.py). The tables beside this
//! file are those of the releases named at [`Engine::release`]; tests/interop/engine_tables.py writes them.

use super::{Objection, View, files};
use crate::model::contradictions;
use crate::packed::engines::{MlxFamily, MlxNames};
use crate::packed::{Engine, Loader};
use crate::source::TensorMeta;
use serde_json::Value;

/// A line per type of model, with the names under which it reads the number of experts.
const TRANSFORMERS: &str = include_str!("transformers.txt");
/// A line per class.
const VLLM: &str = include_str!("vllm.txt");
/// Engine, kind of folder, class (and whether there are experts), and `+` where all such folders that were tried loaded and gave the right logits,
/// `-` where none did, `?` where some did.
const SEEN: &str = include_str!("seen.tsv");

/// Activations and kinds of rotary embeddings that some engine has.
const ACTIVATIONS: &str = "silu swish swiglu swigluoai situ gelu gelu_new gelu_pytorch_tanh gelu_python gelu_fast gelu_10 \
    gelu_accurate quick_gelu laplace leaky_relu linear mish relu relu2 relu6 sigmoid tanh prelu xielu";
const ROPES: &str = "default linear dynamic yarn longrope su llama3 mrope proportional axial original ntk";

/// The names of types that torch has and a checkpoint may be asked for in.
const FLOATS: [&str; 8] = ["float16", "bfloat16", "float32", "float64", "half", "float", "double", "auto"];

/// A configuration, and its text model's inside.
fn parts(config: &Value) -> impl Iterator<Item = &Value> {
    [Some(config), config.get("text_config")].into_iter().flatten()
}

/// What transformers' configuration stops at, whatever the family.
fn odd_values(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for part in parts(config) {
        for key in ["hidden_act", "rms_norm_eps", "layer_norm_eps", "max_position_embeddings"] {
            if part.get(key).is_some_and(Value::is_null) {
                found.push(format!("config.json says null for {key}"));
            }
        }
        let layers = part.get("num_hidden_layers").and_then(Value::as_u64);
        if let (Some(kinds), Some(layers)) = (part.get("layer_types").and_then(Value::as_array), layers)
            && kinds.len() as u64 != layers
        {
            found.push(format!("config.json has {} layer_types for {layers} layers", kinds.len()));
        }
        for rope in ["rope_parameters", "rope_scaling"].into_iter().filter_map(|key| part.get(key)) {
            let is = |kind: &str| ["rope_type", "type"].iter().any(|key| rope.get(key).is_some_and(|v| v == kind));
            let lacks = |key: &&&str| rope.get(**key).is_none();
            let wanted: &[&str] = if is("llama3") { &["factor", "low_freq_factor", "high_freq_factor"] } else { &[] };
            found.extend(
                wanted.iter().find(lacks).map(|key| format!("the rotary embedding of config.json lacks {key}")),
            );
        }
    }
    found
}

/// The names under which configurations state the number of experts.
const EXPERTS: [&str; 4] = ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// The number of experts under a name that an engine's class does not read: it takes its own default then. `names`: those
/// that the class of a model type reads.
fn unread_experts(config: &Value, names: impl Fn(&str) -> Option<&'static str>) -> Option<String> {
    parts(config).find_map(|part| {
        let names = names(part.get("model_type")?.as_str()?)?;
        let wanted = names.split(' ').next().filter(|name| !name.is_empty())?;
        let stated: Vec<&str> = EXPERTS.into_iter().filter(|key| part.get(key).is_some_and(Value::is_u64)).collect();
        let unread = !stated.is_empty() && !stated.iter().any(|key| names.split(' ').any(|name| name == *key));
        unread.then(|| format!("config.json has '{}', and it reads the number of experts from '{wanted}'", stated[0]))
    })
}

/// The rest of the line of a model type.
fn of_transformers(model_type: &str) -> Option<&'static str> {
    TRANSFORMERS.lines().filter_map(|line| line.split_once('\t')).find(|(name, _)| *name == model_type).map(|(_, n)| n)
}

/// What became of the folders of a kind and a class of model that an engine was given.
fn seen(engine: Engine, kind: &str, class: &str) -> Option<bool> {
    let row = |line: &'static str| {
        let mut cells = line.split('\t');
        let own = cells.next()? == engine.name() && cells.next()? == kind && cells.next()? == class;
        cells.next().filter(|_| own)
    };
    SEEN.lines().find_map(row).map(|verdict| verdict == "+")
}

impl View<'_> {
    /// The family as `config.json` names it.
    pub(super) fn family(&mut self, engine: Engine) {
        let Some(config) = self.model.hf_config.as_ref() else { return };
        if !self.ckpt.dir().join("config.json").is_file() {
            return self.refuse("there is no config.json");
        }
        let Some(model_type) = config.get("model_type").and_then(Value::as_str) else {
            return self.refuse("config.json names no model_type");
        };
        let class = config.get("architectures").and_then(|a| a.get(0)?.as_str());
        if engine != Engine::Mlx {
            self.dtype(config);
        }
        let own_code = config.get("auto_map").is_some_and(|map| !map.is_null());
        let knows = |table: &'static str, name: &str| table.lines().any(|line| line.split('\t').next() == Some(name));
        match engine {
            Engine::Transformers if !knows(TRANSFORMERS, model_type) && own_code => {
                return self.unknown("runs by the repository's own code alone (trust_remote_code=True)");
            }
            Engine::Transformers if !knows(TRANSFORMERS, model_type) => {
                return self.refuse(format!("it has no model type '{model_type}'"));
            }
            Engine::Vllm if !class.is_some_and(|class| knows(VLLM, class)) => {
                let what = format!("it has no class {} of its own", class.unwrap_or("of that model"));
                return self.unknown(format!("{what}; transformers' may run in it"));
            }
            Engine::Mlx => match MlxFamily::of(model_type) {
                Some(family) => {
                    self.keys_of_mlx(config, &family);
                    // The text model inside reads its own.
                    let text = config.get("text_config").unwrap_or(&Value::Null);
                    if let Some(inner) = text.get("model_type").and_then(Value::as_str).and_then(MlxFamily::of) {
                        self.newer_keys_of_mlx(text, &inner, "text_config");
                    }
                }
                None => return self.refuse(format!("it has no model type '{model_type}'")),
            },
            _ => {}
        }
        if self.model.known().is_err() {
            self.unheard(config);
        }
        if let Some((class, kind)) = contradictions::class_and_kind(config).filter(|_| engine != Engine::Vllm) {
            self.unknown(format!("it goes by the model_type {kind}, and the class is {class}"));
        }
        odd_values(config).into_iter().for_each(|what| self.unknown(what));
        let unread = match engine {
            Engine::Mlx => unread_experts(config, |name| MlxFamily::of(name).map(|family| family.experts)),
            _ => unread_experts(config, of_transformers),
        };
        unread.into_iter().for_each(|what| self.unknown(what));
        if engine == Engine::Mlx {
            self.stacks_of_mlx(config);
        }
        let kind = self.ckpt.scheme().map_or_else(|| "plain".to_string(), |scheme| scheme.kind());
        let experts = self.ckpt.tensors().iter().any(|t| t.name.contains("expert"));
        let class = format!("{}{}", class.unwrap_or_default(), if experts { " experts" } else { "" });
        match seen(engine, &kind, &class) {
            Some(true) => {}
            Some(false) => self.unknown(format!("a small {class} model in such a folder did not come out right in it")),
            // What transformers has, it loads from plain folders.
            None if engine == Engine::Vllm || (engine == Engine::Transformers && kind == "plain") => {}
            None => self.unknown(format!("no {class} model in such a folder was given to it so far")),
        }
        if engine == Engine::Mlx && self.ckpt.tensors().iter().any(|t| t.name.starts_with("layers.")) {
            self.refuse("names of tensors lack the prefix 'model.', without which it does not find them");
        }
        if engine == Engine::Mlx && model_type == "mistral" && config.get("sliding_window").is_some_and(Value::is_u64) {
            self.unknown("it computes no windows (sliding_window): texts that are longer come out otherwise");
        }
    }

    /// An activation or a kind of rotary embedding that no engine has.
    fn unheard(&mut self, config: &Value) {
        let found = parts(config).find_map(|part| {
            let word = |value: Option<&Value>, known: &str| -> Option<String> {
                let word = value?.as_str()?;
                (!known.split_whitespace().any(|k| k == word)).then(|| word.to_string())
            };
            let acts = ["hidden_act", "hidden_activation", "activation_function"];
            let ropes = ["rope_parameters", "rope_scaling"].into_iter().filter_map(|key| part.get(key));
            let act = acts.iter().find_map(|key| word(part.get(*key), ACTIVATIONS));
            let mut kinds = ropes.map(|rope| rope.get("rope_type").or(rope.get("type")));
            act.or_else(|| kinds.find_map(|kind| word(kind, ROPES)))
        });
        if let Some(word) = found {
            self.unknown(format!("config.json says '{word}', which no engine is known to have"));
        }
    }

    /// Its classes stack experts as they load them, many of them the weights alone; some know them one by one only.
    fn stacks_of_mlx(&mut self, config: &Value) {
        let names = MlxNames::or_usual(config);
        let path = |t: &TensorMeta| t.name.strip_suffix(".weight").unwrap_or(&t.name).to_string();
        let apart = |t: &&TensorMeta| {
            let Some((stack, _)) = names.stack(&path(t)).map(|(stack, e)| (format!("{stack}."), e)) else {
                return false;
            };
            let pieces = self.ckpt.packed_pieces(t);
            !pieces.is_empty() && !pieces.iter().all(|(_, piece)| piece.name.starts_with(&stack))
        };
        let first = self.ckpt.tensors().iter().find(apart);
        let is_mlx = self.ckpt.scheme().is_some_and(|scheme| scheme.loader() == Loader::Mlx);
        if let Some(t) = first.filter(|_| is_mlx && MlxNames::of(config).is_some() && !names.takes_singles()) {
            let what = "is an expert by itself: it stacks the weights of such, and not their scales";
            let modules = vec![path(t)];
            self.found.push(Objection { modules, ..Objection::to_all(what, true) });
        }
        let both = self.ckpt.tensors().iter().any(|t| t.name.contains("experts.gate_up_proj"));
        if both && self.model.known().is_err() {
            self.unknown("experts are stacked, gate and up in one, which it may know one by one alone");
        }
    }

    /// A type that torch does not have stops transformers whatever type is asked for.
    fn dtype(&mut self, config: &Value) {
        let named = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str());
        let known = |name: &str| FLOATS.contains(&name.strip_prefix("torch.").unwrap_or(name));
        if let Some(name) = named.filter(|name| !known(name)) {
            self.refuse(format!("config.json names the type '{name}', which torch does not have"));
        }
    }

    /// Keys that mlx-lm reads, where `place` has them under transformers 5's names alone.
    fn newer_keys_of_mlx(&mut self, config: &Value, family: &MlxFamily, place: &str) -> Vec<(&'static str, Value)> {
        let beside = files::keys_beside(config);
        for (key, value) in &beside {
            let taken = family.base.as_ref().is_some_and(|base| value.as_f64() == Some(*base));
            if family.needs(key) || (family.base.is_some() && key.starts_with("rope_") && !taken) {
                let known = "which it reads; it knows no newer name of it";
                self.refuse(format!("{place} lacks {key} ({value}), {known}"));
            }
        }
        beside
    }

    /// Those, and the ones that config.json lacks under any name.
    fn keys_of_mlx(&mut self, config: &Value, family: &MlxFamily) {
        let beside = self.newer_keys_of_mlx(config, family, "config.json");
        let is_beside = |key: &str| beside.iter().any(|(known, _)| *known == key);
        for key in family.needed.iter().filter(|key| config.get(**key).is_none() && !is_beside(key)) {
            self.refuse(format!("config.json lacks {key}, without which it does not make this model"));
        }
    }

    fn unknown(&mut self, what: impl Into<String>) {
        self.found.push(Objection { unknown: true, ..Objection::to_all(what, false) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_engines() {
        assert!(
            of_transformers("qwen3_moe") == Some("num_experts") && VLLM.lines().any(|line| line == "LlamaForCausalLM")
        );
        let qwen = MlxFamily::of("qwen3").unwrap();
        assert!(qwen.needs("head_dim") && qwen.base.is_none());
        assert_eq!(MlxFamily::of("mistral").unwrap(), MlxFamily::of("llama").unwrap());
        assert_eq!(MlxFamily::of("llama").unwrap().base, Some(10_000.0));
        assert!(MlxFamily::of("bert").is_none());
    }

    #[test]
    fn what_no_configuration_class_takes_is_told() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let good = r#"{"hidden_act":"silu","num_hidden_layers":2,"layer_types":["full_attention","full_attention"],
            "rope_parameters":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0}}"#;
        assert_eq!(odd_values(&json(good)), [] as [&str; 0]);
        for (from, to) in [
            (r#""silu""#, "null"),
            (r#"["full_attention","full_attention"]"#, r#"["full_attention"]"#),
            (r#""low_freq_factor":1.0,"#, ""),
        ] {
            assert_eq!(odd_values(&json(&good.replace(from, to))).len(), 1, "{from}");
        }
        let experts = |text: &str| unread_experts(&json(text), of_transformers);
        assert!(experts(r#"{"model_type":"afmoe","num_local_experts":8}"#).is_some());
        assert_eq!(experts(r#"{"model_type":"afmoe","num_experts":8}"#), None);
    }

    #[test]
    fn what_was_seen_is_told_by_kind_and_class() {
        assert!(SEEN.lines().count() > 100);
        for line in SEEN.lines() {
            let cells: Vec<&str> = line.split('\t').collect();
            let [engine, _, _, verdict] = cells[..] else { panic!("{line}") };
            assert!(Engine::ALL.iter().any(|e| e.name() == engine) && ["+", "-", "?"].contains(&verdict), "{line}");
        }
        assert_eq!(seen(Engine::Transformers, "bitsandbytes-4bit", "Qwen3ForCausalLM"), Some(true));
        assert_eq!(seen(Engine::Transformers, "pack-quantized", "T5ForConditionalGeneration"), Some(false));
        assert_eq!(seen(Engine::Mlx, "mlx", "UnheardForCausalLM"), None);
    }
}
