//! Facts that a checkpoint states twice, and differently. One of them is taken, as loaders of the ecosystem do; which, is
//! said. What is read as one thing by some loaders and as another by others is said in the same way.

use super::families::by_hf;
use crate::input::{read_json, read_text};
use serde_json::Value;
use std::path::Path;

/// Keys of `config.json` that mean the same; of two that differ the second is taken.
const SAME: [(&str, &str); 2] =
    [("/rope_theta", "/rope_parameters/rope_theta"), ("/rope_theta", "/rope_scaling/rope_theta")];

/// A sentence for each contradiction in a folder with this `config.json`.
pub fn of(dir: &Path, config: &Value) -> Vec<String> {
    let mut found = of_config(config);
    found.extend(of_templates(dir));
    found
}

fn of_config(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let class = config["architectures"].get(0).and_then(Value::as_str);
    let (of_class, kind) = (class.and_then(|class| by_hf(Some(class), None)), config["model_type"].as_str());
    let of_kind = kind.and_then(|kind| by_hf(None, Some(kind)));
    if let (Some(class), Some(kind), Some((a, _)), Some((b, _))) = (class, kind, of_class, of_kind)
        && a.gguf != b.gguf
    {
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

/// The template in its own file beside another in the tokenizer's configuration.
fn of_templates(dir: &Path) -> Option<String> {
    let of_file = read_text(&dir.join("chat_template.jinja")).ok()?;
    let config = read_json(&dir.join("tokenizer_config.json")).ok()?;
    let of_config = config["chat_template"].as_str()?;
    (of_config.trim() != of_file.trim()).then(|| {
        "chat_template.jinja and tokenizer_config.json have different chat templates; the former is taken, as transformers does"
            .into()
    })
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
        assert_eq!(of_templates(dir.path()), None);
        write("chat_template.jinja", "A\n");
        assert_eq!(of_templates(dir.path()), None);
        write("chat_template.jinja", "B");
        assert!(of_templates(dir.path()).unwrap().contains("the former"));
    }
}
