//! What a quantized copy was made of, as its model card names it: the id on the Hub, license and languages, and a name
//! for files. It is told from paths, `config.json`, `README.md` and GGUF metadata; whatever cannot be told is left out.

use super::front::Front;
use crate::gguf::Metadata;
use serde_json::Value;
use std::path::Path;

/// The model that was quantized.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parent {
    /// What files are named after.
    pub name: String,
    /// `org/name` on the Hub.
    pub id: Option<String>,
    /// The commit there.
    pub revision: Option<String>,
    /// An id that may be its own or that of the model it was tuned from.
    pub perhaps: Option<String>,
    pub license: Option<String>,
    pub license_name: Option<String>,
    pub license_link: Option<String>,
    pub languages: Vec<String>,
    /// What it does, in the Hub's words.
    pub pipeline: Option<String>,
}

/// Names of folders that say nothing of the model in them.
const VAGUE: [&str; 24] = [
    "model",
    "models",
    "checkpoint",
    "checkpoints",
    "ckpt",
    "output",
    "outputs",
    "out",
    "final",
    "merged",
    "hf",
    "src",
    "source",
    "weights",
    "data",
    "tmp",
    "temp",
    "latest",
    "best",
    "last",
    "base",
    "safetensors",
    "download",
    "snapshot",
];

impl Parent {
    /// Of the checkpoint at `path`: a folder, or a file in it. `usual`: what its outputs are named after where nothing
    /// better is known.
    pub fn of(path: &Path, config: Option<&Value>, metadata: Option<&Metadata>, usual: &str) -> Parent {
        let cached = cached(path);
        if let Some(metadata) = metadata {
            return Self::of_gguf(metadata, cached, usual);
        }
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let card = Front::read(dir);
        // What it was tuned from is not what it is.
        let parents = card.all("base_model");
        let is_parent = |id: &str| parents.iter().any(|p| p == id);
        let stated = config.and_then(|c| c.get("_name_or_path")).and_then(Value::as_str);
        let stated = stated.map(|s| s.trim_end_matches('/')).filter(|s| !s.is_empty() && !is_parent(s));
        let is_vague = is_vague(usual);
        let stated_id = stated.filter(|s| is_id(s));
        let same_name = |id: &str| id.rsplit('/').next().is_some_and(|name| name.eq_ignore_ascii_case(usual));
        let named = id_in_text(&card.body, usual).filter(|id| !is_parent(id));
        let (id, revision) = match cached {
            Some((id, revision)) => (Some(id), revision),
            None => {
                let sure = stated_id.filter(|id| is_vague || same_name(id)).map(String::from);
                (named.filter(|_| !is_vague).or(sure), None)
            }
        };
        let of_id = id.as_deref().and_then(|id| id.rsplit('/').next());
        let of_stated = stated.and_then(|s| s.rsplit('/').next()).filter(|name| !self::is_vague(name));
        let better = of_id.or(of_stated).or(card.heading.as_deref()).filter(|_| is_vague);
        Parent {
            name: file_stem(better.unwrap_or(usual)),
            perhaps: stated_id.filter(|_| id.is_none()).map(String::from),
            id,
            revision,
            license: card.one(&["license"]),
            license_name: card.one(&["license_name"]),
            license_link: card.one(&["license_link"]),
            languages: card.all("language").to_vec(),
            pipeline: card.one(&["pipeline_tag"]),
        }
    }

    fn of_gguf(metadata: &Metadata, cached: Option<(String, Option<String>)>, usual: &str) -> Parent {
        let one = |key: &str| metadata.str(&format!("general.{key}")).map(String::from);
        let url = one("source.url").or_else(|| one("repo_url"));
        let of_url = url.as_deref().and_then(|u| u.strip_prefix("https://huggingface.co/")).filter(|id| is_id(id));
        let (id, revision) = match cached {
            Some((id, revision)) => (Some(id), revision),
            None => (of_url.map(String::from), None),
        };
        let named = one("name").filter(|_| is_vague(usual));
        Parent {
            name: file_stem(named.as_deref().unwrap_or(usual)),
            id,
            revision,
            license: one("license"),
            license_name: one("license.name"),
            license_link: one("license.link"),
            languages: metadata
                .strings("general.languages")
                .unwrap_or_default()
                .iter()
                .map(|s| s.to_string())
                .collect(),
            ..Parent::default()
        }
    }
}

/// Whether a text is `org/name`.
pub fn is_id(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(text.split('/').collect::<Vec<_>>()[..], [org, name] if part(org) && part(name))
}

/// Id and commit of a snapshot in the Hub's cache, `models--org--name/snapshots/commit`.
fn cached(path: &Path) -> Option<(String, Option<String>)> {
    let of = |path: &Path| {
        let names: Vec<String> = path.iter().map(|n| n.to_string_lossy().into_owned()).collect();
        let at = names.iter().position(|name| name.starts_with("models--"))?;
        let id = names[at].strip_prefix("models--")?.replacen("--", "/", 1);
        let commit = names.get(at + 2).filter(|_| names.get(at + 1).is_some_and(|name| name == "snapshots"));
        is_id(&id).then(|| (id, commit.cloned()))
    };
    of(path).or_else(|| of(&path.canonicalize().ok()?))
}

/// Whether a folder's name says nothing of the model in it.
pub fn is_vague(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let numbered = lower
        .split_once('-')
        .is_some_and(|(word, n)| VAGUE.contains(&word) && n.chars().all(|c| c.is_ascii_digit() || c == '-'));
    let commit = lower.len() == 40 && lower.bytes().all(|b| b.is_ascii_hexdigit());
    numbered || commit || lower.len() < 2 || VAGUE.contains(&lower.as_str())
}

/// The Hub id in a card's text that ends in this name: in an address, or in quotes as code has it.
fn id_in_text(text: &str, name: &str) -> Option<String> {
    let end = format!("/{name}");
    let in_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let found = text.match_indices(&end).filter_map(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + end.len()..]);
        if after.starts_with(|c| in_id(c) && c != '.') {
            return None;
        }
        let org = &before[before.trim_end_matches(in_id).len()..];
        let lead = &before[..before.len() - org.len()];
        let quoted =
            lead.ends_with(['"', '\'', '`']) || ["huggingface.co/", "hf.co/"].iter().any(|h| lead.ends_with(h));
        let id = format!("{org}/{name}");
        (quoted && is_id(&id) && !["datasets", "models", "spaces", "docs", "blog", "papers"].contains(&org))
            .then_some(id)
    });
    found.into_iter().next()
}

/// A name as files and addresses can have it everywhere.
pub fn file_stem(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            c if c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+') => out.push(c),
            _ if !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    let out: String = out.trim_matches(['-', '.']).chars().take(96).collect();
    if out.is_empty() { "model".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parent(folder: &str, config: Value, card: &str) -> Parent {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(folder);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("README.md"), card).unwrap();
        Parent::of(&path, Some(&config), None, folder.rsplit('/').next().unwrap())
    }

    #[test]
    fn an_id_is_told_from_the_cache_the_card_and_the_configuration() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let found = parent(&format!("models--org--Some-Model/snapshots/{commit}"), json!({}), "");
        assert_eq!((found.id.as_deref(), found.revision.as_deref()), (Some("org/Some-Model"), Some(commit)));
        assert_eq!(found.name, "Some-Model");
        let of_card = parent("Some-Model", json!({}), "# X\nfrom_pretrained(\"org/Some-Model\")");
        assert_eq!(of_card.id.as_deref(), Some("org/Some-Model"));
        assert_eq!(parent("Some-Model", json!({}), "not/Some-Model-2, see/Some-Model").id, None);
        let vague = parent("model", json!({"_name_or_path": "org/Some-Model"}), "");
        assert_eq!((vague.id.as_deref(), vague.name.as_str()), (Some("org/Some-Model"), "Some-Model"));
        assert_eq!(parent("model", json!({"_name_or_path": "/home/u/Mine/"}), "").name, "Mine");
        assert_eq!(parent("checkpoint-500", json!({}), "---\nlicense: mit\n---\n# My | model").name, "My-model");
    }

    #[test]
    fn what_it_was_tuned_from_is_not_what_it_is() {
        let config = json!({"_name_or_path": "org/Base"});
        let tuned = parent("Mine", config.clone(), "");
        assert_eq!((tuned.id, tuned.name.as_str(), tuned.perhaps.as_deref()), (None, "Mine", Some("org/Base")));
        let tuned = parent("model", config, "---\nbase_model: org/Base\n---\n# Mine");
        assert_eq!((tuned.id, tuned.name.as_str(), tuned.perhaps), (None, "Mine", None));
    }
}
