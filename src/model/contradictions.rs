//! Facts that a checkpoint states twice, and differently. One of them is taken, as loaders of the ecosystem do; which, is
//! said. What is read as one thing by some loaders and as another by others is said in the same way.

mod tokens;

use super::families::by_hf;
use super::tokenizer::unlike_model_file;
use crate::input::{read_json, read_text};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
pub(crate) use tokens::{ids as special_ids, listed as listed_ids};

/// Keys of `config.json` that mean the same; of two that differ the second is taken.
const SAME: [(&str, &str); 2] =
    [("/rope_theta", "/rope_parameters/rope_theta"), ("/rope_theta", "/rope_scaling/rope_theta")];

/// A sentence for each contradiction in a folder with this `config.json`.
pub fn of(dir: &Path, config: &Value) -> Vec<String> {
    let mut found = of_config(config);
    found.extend(of_templates(dir));
    found.extend(of_vocabularies(dir));
    found.extend(tokens::of(dir, config));
    found.extend(unlike_model_file(dir));
    found
}

/// The class and the kind that a configuration names, where they are of two families.
pub fn class_and_kind(config: &Value) -> Option<(&str, &str)> {
    let (class, kind) = (config["architectures"].get(0)?.as_str()?, config["model_type"].as_str()?);
    let ((a, _), (b, _)) = (by_hf(Some(class), None)?, by_hf(None, Some(kind))?);
    (a.gguf != b.gguf).then_some((class, kind))
}

fn of_config(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((class, kind)) = class_and_kind(config) {
        found.push(format!(
            "config.json names the architecture {class}, which is taken, and the model_type {kind}, by which transformers goes"
        ));
    }
    for part in [config, &config["text_config"]] {
        for (one, other) in SAME {
            let [a, b] = [one, other].map(|key| part.pointer(key).and_then(Value::as_f64));
            if let (Some(a), Some(b)) = (a, b)
                && a != b
            {
                let [one, other] = [one, other].map(|key| key.trim_start_matches('/').replace('/', "."));
                found.push(format!(
                    "config.json says {one} {a} and {other} {b}; the latter is taken, as transformers does"
                ));
            }
        }
    }
    found
}

/// The places of a chat template, in the order in which they are looked at.
const TEMPLATES: [&str; 4] =
    ["chat_template.jinja", "tokenizer_config.json", "chat_template.json", "processor_config.json"];

/// Templates beside the one that is taken.
fn of_templates(dir: &Path) -> Vec<String> {
    let read = |name: &&'static str| {
        let path = dir.join(name);
        let template = match name.ends_with(".jinja") {
            true => read_text(&path).ok()?,
            false => read_json(&path).ok()?["chat_template"].as_str()?.to_string(),
        };
        Some((*name, template.trim().to_string()))
    };
    let mut there = TEMPLATES.iter().filter_map(read);
    let Some((taken, template)) = there.next() else { return Vec::new() };
    let others = there.filter(|(_, other)| *other != template);
    others.map(|(name, _)| format!("{taken} and {name} have different chat templates; the former is taken")).collect()
}

/// The files of a byte-level tokenizer beside the `tokenizer.json` that all loaders take.
fn of_vocabularies(dir: &Path) -> Vec<String> {
    let read = |name: &str| read_json(&dir.join(name)).ok();
    let mut found = Vec::new();
    if let Some(config) = read("tokenizer_config.json")
        && let Some(map) = read("special_tokens_map.json")
    {
        let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_string);
        let differ = |key: &&String| {
            let [a, b] = [&config, &map].map(|file| text(&file[key.as_str()]));
            a.is_some() && b.is_some() && a != b
        };
        let keys: Vec<&str> =
            map.as_object().into_iter().flat_map(|map| map.keys()).filter(differ).map(String::as_str).collect();
        if !keys.is_empty() {
            let keys = keys.join(", ");
            found.push(format!(
                "tokenizer_config.json and special_tokens_map.json have another {keys}; the former is taken, as llama.cpp's converter does"
            ));
        }
    }
    // It is large, and mostly alone.
    if !["vocab.json", "merges.txt"].iter().any(|name| dir.join(name).is_file()) {
        return found;
    }
    let Some(tokenizer) = read("tokenizer.json") else { return found };
    let model = &tokenizer["model"];
    if let (Some(vocab), Some(beside)) = (model["vocab"].as_object(), read("vocab.json")) {
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added: HashMap<&str, &Value> = added.filter_map(|t| Some((t["content"].as_str()?, &t["id"]))).collect();
        let id = |token: &str| vocab.get(token).or_else(|| added.get(token).copied());
        let all = beside.as_object().map_or(0, serde_json::Map::len);
        let other = beside.as_object().into_iter().flatten().filter(|(token, at)| id(token) != Some(at)).count();
        if other > 0 {
            found.push(format!(
                "{other} of the {all} tokens of vocab.json are others in tokenizer.json, which is taken, as transformers does"
            ));
        }
    }
    if let (Some(merges), Ok(text)) = (model["merges"].as_array(), read_text(&dir.join("merges.txt"))) {
        let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
        let same = |(merge, line): (&Value, &str)| match merge.as_str() {
            Some(merge) => merge == line,
            None => merge[0].as_str().zip(merge[1].as_str()) == line.split_once(' '),
        };
        if lines.clone().count() != merges.len() || !merges.iter().zip(lines).all(same) {
            found.push(
                "merges.txt and tokenizer.json have different merges; the latter are taken, as transformers does"
                    .into(),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_twice_and_differently_is_told() {
        let told = |config: Value| of_config(&config);
        assert_eq!(
            told(json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 1e4})),
            [""; 0]
        );
        let kind = told(json!({"architectures": ["LlamaForCausalLM"], "model_type": "qwen2"}));
        assert!(kind[0].contains("LlamaForCausalLM") && kind[0].contains("qwen2"), "{kind:?}");
        // Mistral's files are of Llama's architecture.
        assert_eq!(told(json!({"architectures": ["MistralForCausalLM"], "model_type": "llama"})), [""; 0]);
        let rope = json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}});
        for config in [rope.clone(), json!({"text_config": rope})] {
            assert!(told(config)[0].contains("10000 and rope_parameters.rope_theta 500000"));
        }
        assert_eq!(told(json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 10000}})), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("tokenizer_config.json", r#"{"chat_template": "A"}"#);
        assert_eq!(of_templates(dir.path()), [""; 0]);
        write("chat_template.jinja", "A\n");
        assert_eq!(of_templates(dir.path()), [""; 0]);
        write("chat_template.json", r#"{"chat_template": "B"}"#);
        assert!(of_templates(dir.path())[0].contains("chat_template.jinja and chat_template.json"));
        write("chat_template.jinja", "B");
        let told = of_templates(dir.path());
        assert!(told.len() == 1 && told[0].contains("jinja and tokenizer_config.json"), "{told:?}");
    }

    #[test]
    fn files_beside_tokenizer_json_are_compared_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let told = || of_vocabularies(dir.path());
        write(
            "tokenizer.json",
            r#"{"added_tokens": [{"id": 3, "content": "<s>"}],
                "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#,
        );
        write("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "<s>": 3}"#);
        write("merges.txt", "#version: 0.2\na b\n");
        write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": {"content": "ab"}}"#);
        write("special_tokens_map.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "ab", "unk_token": "a"}"#);
        assert_eq!(told(), [""; 0]);
        write("vocab.json", r#"{"a": 1, "b": 0, "ab": 2}"#);
        assert!(told()[0].contains("2 of the 3 tokens of vocab.json"), "{:?}", told());
        write("vocab.json", "{}");
        write("merges.txt", "b a\n");
        assert!(told()[0].contains("merges"), "{:?}", told());
        write("merges.txt", "a b\n");
        write("special_tokens_map.json", r#"{"bos_token": "a", "eos_token": "b"}"#);
        assert!(told()[0].contains("another bos_token, eos_token"), "{:?}", told());
    }
}
