//! What the small files of a checkpoint folder say of the model, beside what the source's say: what class it is, at which
//! tokens a text begins and ends, how chats are written and how text is generated. Nothing of it is in the weights.

use crate::gguf::Metadata;
use crate::input::read_json;
use crate::model::SourceModel;
use crate::model::contradictions::{listed_ids as listed, special_ids as ids};
use crate::model::tokenizer::chat_templates;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// What differs.
#[derive(Debug, Default, PartialEq)]
pub struct Differences {
    /// Both say it, and differently, or the folder lacks what the source needs: a sentence each.
    pub suspicions: Vec<String>,
    /// Only one of the two says it.
    pub notes: Vec<String>,
}

/// A folder beside its source.
pub fn beside(source: &SourceModel, artifact: &SourceModel) -> Differences {
    let mut found = Differences::default();
    let Some(theirs) = &artifact.model.hf_config else { return found };
    let b = Said::of(artifact.ckpt.dir());
    if let Some(metadata) = source.ckpt.gguf() {
        found.of_file(metadata, [theirs, &b.generation], artifact.ckpt.dir());
    }
    let Some(ours) = &source.model.hf_config else { return found };
    let a = Said::of(source.ckpt.dir());
    found.classes(ours, theirs);
    found.ids((ours, &a.generation), (theirs, &b.generation));
    found.generation(&a.generation, &b.generation);
    found.texts(&a, &b);
    found.templates(source.ckpt.dir(), artifact.ckpt.dir());
    found
}

/// The small files of a folder.
struct Said {
    generation: Value,
    tokenizer: Value,
    map: Value,
}

impl Said {
    fn of(dir: &Path) -> Self {
        let read = |name: &str| read_json(&dir.join(name)).unwrap_or_default();
        let [generation, tokenizer, map] =
            ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"].map(read);
        Self { generation, tokenizer, map }
    }

    /// The text of a special token.
    fn text(&self, key: &str) -> Option<&str> {
        let files = [&self.tokenizer, &self.map].into_iter();
        files.filter_map(|file| file.get(key)).find_map(|token| token.as_str().or_else(|| token["content"].as_str()))
    }
}

/// Tokens that a file names by their ids.
const IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];
/// Tokens that a tokenizer names by their text.
const TEXTS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];
/// What tells nothing of how text is generated.
const BOOKKEEPING: [&str; 2] = ["transformers_version", "_from_model_config"];

impl Differences {
    /// A folder that was made of a GGUF file with this metadata; `configs`: the files that name ids.
    fn of_file(&mut self, metadata: &Metadata, configs: [&Value; 2], dir: &Path) {
        for (key, name) in IDS.iter().zip(["bos", "eos", "padding"]) {
            let Some(id) = metadata.uint(&format!("tokenizer.ggml.{name}_token_id")) else { continue };
            for said in configs.map(|config| ids(config, key)).iter().filter(|said| !said.is_empty()) {
                if !said.contains(&id) {
                    self.suspicions.push(format!("{key} is {}, and {id} in the source", listed(said)));
                }
            }
        }
        let of_folder = chat_templates(dir).unwrap_or_default();
        match (metadata.str("tokenizer.chat_template"), of_folder.get("default")) {
            (Some(_), None) => self.suspicions.push("the chat template of the source is missing".into()),
            (Some(a), Some(b)) if a.trim() != b.trim() => {
                self.suspicions.push("the chat template is not the source's".into());
            }
            _ => {}
        }
    }

    fn classes(&mut self, ours: &Value, theirs: &Value) {
        for key in ["architectures", "model_type"] {
            self.value("config.json", key, ours.get(key), theirs.get(key));
        }
    }

    /// Configuration and generation settings of the source, and of the folder.
    fn ids(&mut self, ours: (&Value, &Value), theirs: (&Value, &Value)) {
        for key in IDS {
            let mut is_told = false;
            for (file, a, b) in [("config.json", ours.0, theirs.0), ("generation_config.json", ours.1, theirs.1)] {
                let (a, b) = (ids(a, key), ids(b, key));
                if !a.is_empty() && !b.is_empty() && a.is_disjoint(&b) {
                    self.suspicions.push(format!("{file} says {key} {}, and the source's {}", listed(&b), listed(&a)));
                    is_told = true;
                }
            }
            let [a, b] = [ours, theirs].map(|(config, generation)| {
                let own = ids(generation, key);
                if own.is_empty() { ids(config, key) } else { own }
            });
            let missing: BTreeSet<u64> = a.difference(&b).copied().collect();
            if !is_told && key == "eos_token_id" && !missing.is_empty() {
                let missing = listed(&missing);
                self.suspicions.push(format!("text does not end at token {missing}, as the source's does"));
            } else if !is_told && a != b {
                let [a, b] = [a, b].map(|ids| if ids.is_empty() { "none".to_string() } else { listed(&ids) });
                self.notes.push(format!("{key} comes to {b}, and to {a} in the source"));
            }
        }
    }

    fn generation(&mut self, ours: &Value, theirs: &Value) {
        let none = Map::new();
        let [a, b] = [ours, theirs].map(|file| file.as_object().unwrap_or(&none));
        // Where one was made of a configuration, it says what that leaves open.
        let is_made = |file: &Map<String, Value>| file.is_empty() || file.get(BOOKKEEPING[1]) == Some(&true.into());
        let any_is_made = is_made(a) || is_made(b);
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let is_wanted = |key: &&&String| {
            let both = a.contains_key(**key) && b.contains_key(**key);
            let other = IDS.contains(&key.as_str()) || BOOKKEEPING.contains(&key.as_str());
            !other && (both || !any_is_made)
        };
        for key in keys.iter().filter(is_wanted) {
            self.value("generation_config.json", key, a.get(*key), b.get(*key));
        }
    }

    fn texts(&mut self, ours: &Said, theirs: &Said) {
        for key in TEXTS {
            let [a, b] = [ours, theirs].map(|said| said.text(key).map(Value::from));
            self.value("the tokenizer", key, a.as_ref(), b.as_ref());
        }
    }

    fn templates(&mut self, ours: &Path, theirs: &Path) {
        let (Ok(a), Ok(b)) = (chat_templates(ours), chat_templates(theirs)) else { return };
        let called = |name: &str| match name {
            "default" => "the chat template".to_string(),
            other => format!("the chat template '{other}'"),
        };
        for (name, text) in &a {
            match b.get(name) {
                None => self.suspicions.push(format!("{} of the source is missing", called(name))),
                Some(other) if other.trim() != text.trim() => {
                    self.suspicions.push(format!("{} is not the source's", called(name)));
                }
                Some(_) => {}
            }
        }
        let more = b.keys().filter(|name| !a.contains_key(*name));
        self.notes.extend(more.map(|name| format!("{} is not in the source", called(name))));
    }

    /// What a file of the folder says under a key, and the source's.
    fn value(&mut self, file: &str, key: &str, ours: Option<&Value>, theirs: Option<&Value>) {
        let [a, b] = [ours, theirs].map(|value| value.filter(|value| !value.is_null()));
        match (a, b) {
            (Some(a), Some(b)) if !is_same(a, b) => {
                self.suspicions.push(format!("{file} says {key} {b}, and the source's {a}"));
            }
            (Some(a), None) => self.notes.push(format!("{file} does not say {key} {a}, as the source's does")),
            (None, Some(b)) => self.notes.push(format!("{file} says {key} {b}, and the source's does not")),
            _ => {}
        }
    }
}

/// Whether two values are the same, of numbers whether they are equal.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of_ids(ours: (Value, Value), theirs: (Value, Value)) -> Differences {
        let mut found = Differences::default();
        found.ids((&ours.0, &ours.1), (&theirs.0, &theirs.1));
        found
    }

    #[test]
    fn ids_are_compared_by_what_they_come_to() {
        let llama = (json!({"eos_token_id": 9, "bos_token_id": 1}), json!({"eos_token_id": [9, 7]}));
        assert_eq!(of_ids(llama.clone(), llama.clone()), Differences::default());
        // One number or a list of one.
        let listed = (json!({"eos_token_id": [9], "bos_token_id": 1}), json!({"eos_token_id": [7, 9]}));
        assert_eq!(of_ids(llama.clone(), listed), Differences::default());
        let other = of_ids(llama.clone(), (json!({"eos_token_id": 3, "bos_token_id": 2}), llama.1.clone()));
        assert_eq!(
            other.suspicions,
            [
                "config.json says bos_token_id 2, and the source's 1",
                "config.json says eos_token_id 3, and the source's 9"
            ]
        );
        // Of two tokens at which text ends one is left.
        let fewer = of_ids(llama.clone(), (llama.0.clone(), json!({"eos_token_id": 9})));
        assert_eq!(fewer.suspicions, ["text does not end at token 7, as the source's does"]);
        let more = of_ids(llama.clone(), (llama.0.clone(), json!({"eos_token_id": [9, 7, 4]})));
        assert!(more.suspicions.is_empty() && more.notes.len() == 1, "{more:?}");
        // Tools give models a token to pad with.
        let padded = of_ids(llama.clone(), (json!({"eos_token_id": 9, "bos_token_id": 1, "pad_token_id": 0}), llama.1));
        assert!(padded.suspicions.is_empty() && padded.notes.len() == 1, "{padded:?}");
    }

    #[test]
    fn classes_and_settings_are_compared() {
        let mut found = Differences::default();
        found.classes(&json!({"model_type": "llama"}), &json!({"model_type": "qwen2", "architectures": ["A"]}));
        assert_eq!(found.suspicions, ["config.json says model_type \"qwen2\", and the source's \"llama\""]);
        assert_eq!(found.notes.len(), 1);
        let mut found = Differences::default();
        let ours = json!({"temperature": 0.6, "top_k": 20, "transformers_version": "4.40", "eos_token_id": 1});
        found.generation(&ours, &json!({"temperature": 100, "top_k": 20.0, "transformers_version": "5"}));
        assert_eq!(found.suspicions, ["generation_config.json says temperature 100, and the source's 0.6"]);
        assert_eq!(found.notes, [""; 0]);
        // As transformers makes one where there is none.
        let mut found = Differences::default();
        found.generation(&Value::Null, &json!({"_from_model_config": true, "use_cache": true}));
        assert_eq!(found, Differences::default());
    }

    #[test]
    fn templates_are_the_same_wherever_they_stand() {
        let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let write =
            |dir: &tempfile::TempDir, name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let compared = || {
            let mut found = Differences::default();
            found.templates(ours.path(), theirs.path());
            found
        };
        write(&ours, "tokenizer_config.json", r#"{"chat_template": "A"}"#);
        assert_eq!(compared().suspicions, ["the chat template of the source is missing"]);
        write(&theirs, "chat_template.jinja", "A\n");
        assert_eq!(compared(), Differences::default());
        write(&theirs, "chat_template.jinja", "B");
        assert_eq!(compared().suspicions, ["the chat template is not the source's"]);
        std::fs::remove_file(ours.path().join("tokenizer_config.json")).unwrap();
        assert_eq!(compared().notes, ["the chat template is not in the source"]);
    }
}
