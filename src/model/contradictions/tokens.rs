//! Special tokens that the files of a folder name differently: ids in `config.json` and `generation_config.json`, texts in the
//! tokenizer's files.

use crate::input::read_json;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Files that name special tokens by their text, in the order in which transformers looks.
const BY_TEXT: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// A sentence for each contradiction. Where several tokens end a text, one of them in common is none.
pub(super) fn of(dir: &Path, config: &Value) -> Vec<String> {
    let (generation, mut found) = of_generation(dir);
    let rows =
        config.get("vocab_size").or_else(|| config.get("text_config")?.get("vocab_size")).and_then(Value::as_u64);
    for kind in ["bos", "eos", "pad"] {
        let key = format!("{kind}_token_id");
        for (file, json) in [("config.json", config), ("generation_config.json", &generation)] {
            found.extend(odd(json, &key, rows).map(|what| format!("{file} says {key} {what}")));
        }
        let (of_config, of_generation) = (ids(config, &key), ids(&generation, &key));
        if !of_config.is_empty() && !of_generation.is_empty() && of_config.is_disjoint(&of_generation) {
            let (a, b) = (listed(&of_config), listed(&of_generation));
            found.push(format!(
                "config.json says {key} {a} and generation_config.json {b}; transformers generates with the latter"
            ));
        }
    }
    for kind in ["bos", "eos"] {
        let key = format!("{kind}_token_id");
        let known: BTreeSet<u64> = ids(config, &key).union(&ids(&generation, &key)).copied().collect();
        let Some((file, text, id)) = by_text(dir, &format!("{kind}_token")) else { continue };
        if !known.is_empty() && !known.contains(&id) {
            found.push(format!(
                "{file} says {kind}_token '{text}', which is {id}, and config.json {key} {}; the former is the tokenizer's, \
                 and transformers generates with the latter",
                listed(&known)
            ));
        }
    }
    found
}

/// What is said of generation, and what is wrong with a file that says nothing.
fn of_generation(dir: &Path) -> (Value, Vec<String>) {
    const NAME: &str = "generation_config.json";
    let path = dir.join(NAME);
    let read = path.is_file().then(|| read_json(&path)).transpose();
    match read {
        Ok(None) => (Value::Null, Vec::new()),
        Ok(Some(json)) if json.is_object() => (json, Vec::new()),
        _ => (Value::Null, vec![format!("{NAME} is no object of JSON; transformers goes by config.json alone")]),
    }
}

/// Why what is said under a key is not the id of one of so many tokens.
fn odd(json: &Value, key: &str, rows: Option<u64>) -> Option<String> {
    let said = json.get(key)?;
    let all = said.as_array().map_or(std::slice::from_ref(said), Vec::as_slice);
    all.iter().find_map(|id| match (id, id.as_i64()) {
        // Older checkpoints say -1 of a token that they do not have.
        (Value::Null, _) | (_, Some(-1)) => None,
        (_, Some(id)) if u64::try_from(id).is_ok_and(|id| rows.is_none_or(|rows| id < rows)) => None,
        (_, Some(id)) => Some(format!("{id}, and the model has {} tokens", rows.unwrap_or(0))),
        _ => Some(format!("{id}, which is no number of a token")),
    })
}

/// The ids under a key of a configuration; the text model's, where the model has several parts.
pub(crate) fn ids(config: &Value, key: &str) -> BTreeSet<u64> {
    let own = config.get(key).filter(|value| !value.is_null());
    match own.or_else(|| config.get("text_config")?.get(key)) {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_u64).collect(),
        Some(one) => one.as_u64().into_iter().collect(),
        None => BTreeSet::new(),
    }
}

/// Ids as a sentence has them.
pub(crate) fn listed(ids: &BTreeSet<u64>) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// The first file that names the token, its text, and its id where the tokenizer tells it.
fn by_text(dir: &Path, key: &str) -> Option<(&'static str, String, u64)> {
    let read = |name: &str| read_json(&dir.join(name)).ok();
    let named = |name: &&'static str| {
        let token = read(name)?.get(key)?.clone();
        Some((*name, token.as_str().or_else(|| token["content"].as_str())?.to_string()))
    };
    let (file, text) = BY_TEXT.iter().find_map(named)?;
    let of_decoder = || {
        let config = read("tokenizer_config.json")?;
        let mut all = config.get("added_tokens_decoder")?.as_object()?.iter();
        all.find(|(_, token)| token["content"] == text.as_str())?.0.parse::<u64>().ok()
    };
    let of_tokenizer = || {
        let tokenizer = read("tokenizer.json")?;
        let mut added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added = added.find(|token| token["content"] == text.as_str()).map(|token| &token["id"]);
        added.or_else(|| tokenizer["model"]["vocab"].get(&text))?.as_u64()
    };
    let id = of_decoder().or_else(of_tokenizer)?;
    Some((file, text, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_that_two_files_say_differently_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let told = |config: Value| of(dir.path(), &config);
        assert_eq!(told(json!({"eos_token_id": 2})), [""; 0]);
        // Llama 3: one token in the configuration, several at which generation stops.
        write("generation_config.json", json!({"eos_token_id": [2, 5], "bos_token_id": 1}));
        assert_eq!(told(json!({"eos_token_id": 2, "bos_token_id": null})), [""; 0]);
        assert!(told(json!({"eos_token_id": 9}))[0].contains("eos_token_id 9 and generation_config.json 2, 5"));
        assert!(told(json!({"text_config": {"bos_token_id": 7}}))[0].contains("bos_token_id 7"));
        assert_eq!(told(json!({"pad_token_id": -1, "eos_token_id": null, "vocab_size": 9})), [""; 0]);
        for (odd, says) in
            [(json!("2"), "\"2\", which is no number"), (json!([2, 99]), "99, and the model has 9 tokens")]
        {
            let told = told(json!({"pad_token_id": odd, "vocab_size": 9}));
            assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
        }
        write("special_tokens_map.json", json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}));
        assert_eq!(told(json!({"eos_token_id": 2})), [""; 0], "the id of '</s>' is not known");
        write(
            "tokenizer.json",
            json!({"added_tokens": [{"id": 3, "content": "</s>"}], "model": {"vocab": {"<s>": 1, "x": 4}}}),
        );
        let eos = told(json!({"eos_token_id": 2}));
        assert!(
            eos.len() == 1 && eos[0].contains("special_tokens_map.json says eos_token '</s>', which is 3"),
            "{eos:?}"
        );
        // What the tokenizer's own configuration says goes first.
        write(
            "tokenizer_config.json",
            json!({"eos_token": "</e>", "added_tokens_decoder": {"5": {"content": "</e>"}}}),
        );
        assert_eq!(told(json!({"eos_token_id": 2})), [""; 0]);
        write("generation_config.json", json!([1]));
        assert!(told(json!({"eos_token_id": 5}))[0].contains("no object of JSON"));
    }
}
