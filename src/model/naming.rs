//! What a model is called and where it comes from: the `general.*` keys that gguf-py's `Metadata` derives from the model
//! card, from `generation_config.json`, from `config.json` and from the folder's name. Names only; sizes of the network
//! are in `metadata`.

use crate::card::Front;
use crate::gguf::Metadata;
use crate::input::read_json;
use regex::Regex;
use std::path::Path;
use std::sync::LazyLock;

/// The parts of a model's name, such as `Llama-3.1-8B-Instruct`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NameParts {
    pub full: Option<String>,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a part of a name was recognised as; several may hold.
#[derive(Clone, Copy, Default)]
struct Kinds {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    file_type: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.basename, self.size, self.finetune, self.version, self.file_type].into_iter().filter(|k| *k).count()
    }
}

fn pattern(text: &str) -> Regex {
    // The patterns are constants of this file and the tests compile each; a failure would match nothing.
    Regex::new(text).unwrap_or_else(|_| unreachable!("pattern {text}"))
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(v|iter)?\d+([.]\d+)*$"));
static FILE_TYPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(i?q\d(_\w)*|b?fp?(16|32))$"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)^(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)$"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)^(chat|instruct|vision|lora)$"));
static KEEPS_CASE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(v\d+(\.\d+)*|\d.*)$"));

/// Splits a Hub id (`organization/name`) or a folder's name into parts; `params` tells sizes from context lengths.
pub fn split_name(id: &str, params: u64) -> NameParts {
    if id.contains(' ') {
        // A sentence, not an id.
        return NameParts { full: Some(id.to_string()), ..NameParts::default() };
    }
    let (organization, full) = match id.split_once('/') {
        Some((org, name)) => (Some(org).filter(|o| !o.starts_with('.')), name),
        None => (None, id),
    };
    let mut parts: Vec<String> = full.split('-').filter(|p| !p.is_empty()).map(String::from).collect();
    let mut kinds = vec![Kinds::default(); parts.len()];
    for (i, (part, kind)) in parts.iter_mut().zip(&mut kinds).enumerate() {
        if VERSION.is_match(part) {
            kind.version = true;
        } else if FILE_TYPE.is_match(part) {
            kind.file_type = true;
            *part = part.to_uppercase();
        } else if i > 0 && SIZE.is_match(part) {
            let (label, context) = size_part(part, params);
            *part = label;
            kind.finetune = context;
            kind.size = !context;
        } else if i > 0 && FINETUNE.is_match(part) {
            kind.finetune = true;
        }
    }
    // A word such as "large" is no size beside a number.
    let is_digit = |c: char| c.is_ascii_digit();
    if parts.iter().zip(&kinds).any(|(p, k)| k.size && p.contains(is_digit)) {
        for (part, kind) in parts.iter().zip(&mut kinds) {
            kind.size &= !part.chars().all(char::is_alphabetic);
        }
    }
    let mut at_start = true;
    for (part, kind) in parts.iter().zip(&mut kinds) {
        let unknown = kind.count() == 0;
        if at_start && ((unknown && part.starts_with(char::is_alphabetic)) || kind.version) {
            kind.basename = true;
        } else {
            at_start = false;
            kind.finetune |= unknown;
        }
    }
    for kind in kinds.iter_mut().rev() {
        if !(kind.basename && kind.count() > 1) {
            break;
        }
        kind.basename = false;
    }
    let join = |pick: fn(&Kinds) -> bool| -> Option<String> {
        let mut picked: Vec<&str> = Vec::new();
        for (part, _) in parts.iter().zip(&kinds).filter(|(_, k)| pick(k)) {
            picked.push(part);
        }
        Some(picked.join("-")).filter(|s| !s.is_empty())
    };
    let mut sizes: Vec<&str> = Vec::new();
    for (part, _) in parts.iter().zip(&kinds).filter(|(_, k)| k.size) {
        if !sizes.contains(&part.as_str()) {
            sizes.push(part);
        }
    }
    let size_label = Some(sizes.join("-")).filter(|s| !s.is_empty());
    let finetune = join(|k| k.finetune);
    let version = join(|k| k.version && !k.basename);
    // A lone basename is too ambiguous to state.
    let telling = size_label.is_some() || finetune.is_some() || version.is_some();
    NameParts {
        full: Some(full.to_string()),
        organization: organization.map(String::from),
        basename: join(|k| k.basename).filter(|_| telling),
        finetune,
        version,
        size_label,
    }
}

/// A part that looks like a size, normalised, and whether it is a context length instead.
fn size_part(part: &str, params: u64) -> (String, bool) {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    let n = chars.len();
    if n > 1 && chars[n - 1].is_ascii_digit() {
        // "7b1" means 7.1B.
        chars.swap(n - 2, n - 1);
        chars.insert(n - 2, '.');
    }
    let n = chars.len();
    if n > 1 && chars[n - 2].is_ascii_digit() && "kmbt".contains(chars[n - 1]) {
        chars[n - 1] = chars[n - 1].to_ascii_uppercase();
    }
    let (digits, unit) = (chars[..n - 1].iter().collect::<String>(), chars[n - 1]);
    let power = match unit {
        'K' => 1,
        'M' => 2,
        'B' => 3,
        'T' => 4,
        _ => -1,
    };
    let mut context = false;
    if params != 0
        && let Ok(number) = digits.parse::<f64>()
    {
        let stated = number * 1000f64.powi(power);
        context = (stated - params as f64).abs() > (7 * params / 8) as f64;
    }
    if context {
        chars[n - 1] = chars[n - 1].to_ascii_lowercase();
    }
    (chars.into_iter().collect(), context)
}

/// `meta-llama` → `Meta Llama`: lower-case words get capitals, versions and mixed case stay.
pub fn title(id: &str) -> String {
    let words = id.trim().replace('-', " ");
    let titled = words.split_whitespace().map(|w| {
        let lower = w.chars().any(char::is_lowercase) && !w.chars().any(char::is_uppercase);
        if !lower || KEEPS_CASE.is_match(w) {
            return w.to_string();
        }
        let mut after_letter = false;
        let mut out = String::new();
        for c in w.chars() {
            if after_letter {
                out.push(c)
            } else {
                out.extend(c.to_uppercase())
            }
            after_letter = c.is_alphabetic();
        }
        out
    });
    titled.collect::<Vec<_>>().join(" ")
}

/// The Hub id or name that a folder's path tells. A snapshot of the Hub's cache,
/// `models--{org}--{name}/snapshots/{commit}`, is called after the repository, never after the commit.
pub fn id_of_folder(dir: &Path) -> Option<String> {
    // "." and ".." have no name of their own.
    let path = if dir.file_name().is_none() { dir.canonicalize().unwrap_or_default() } else { dir.to_path_buf() };
    let names: Vec<&str> = path.iter().rev().filter_map(|n| n.to_str()).collect();
    let repository = names.windows(2).find_map(|w| match w {
        ["snapshots", repo] => repo.strip_prefix("models--").map(|r| r.replacen("--", "/", 1)),
        _ => None,
    });
    let name = names.first().filter(|n| {
        let commit = n.len() == 40 && n.chars().all(|c| c.is_ascii_hexdigit());
        !commit && **n != "/"
    });
    repository.or_else(|| name.map(|n| n.to_string()))
}

/// Sets `general.type`, the sampling hints, the name and the origin, in gguf-py's order. `computed_size` labels a model
/// whose name states no size, if it is not empty; `fallback` names one that nothing else names.
pub fn set_general(
    meta: &mut Metadata,
    dir: &Path,
    hf_config: &serde_json::Value,
    params: u64,
    computed_size: &str,
    fallback: &str,
) {
    meta.set("general.type", "model");
    set_sampling(meta, dir);
    let card = Front::read(dir);
    let values = |key: &str| card.all(key);
    let one = |keys: &[&str]| card.one(keys);

    let stated = hf_config.get("_name_or_path").and_then(serde_json::Value::as_str);
    let ids = [stated.filter(|s| !s.is_empty() && s.matches('/').count() <= 1).map(String::from), id_of_folder(dir)];
    let guesses: Vec<NameParts> = ids.iter().flatten().map(|id| split_name(id, params)).collect();
    let guess = |pick: fn(&NameParts) -> &Option<String>| guesses.iter().find_map(|g| pick(g).clone());

    let name = one(&["name", "model_name"]).or_else(|| guess(|g| &g.full).map(|n| title(&n)));
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            meta.set(format!("general.{key}"), value);
        }
    };
    set("name", Some(name.filter(|n| !n.is_empty()).unwrap_or_else(|| title(fallback))));
    set("author", one(&["author", "model_author", "model_creator"]));
    set("version", one(&["version", "model_version"]).or_else(|| guess(|g| &g.version)));
    let organization = one(&["organization", "model_organization"]);
    set("organization", organization.or_else(|| guess(|g| &g.organization).map(|o| title(&o))));
    set("finetune", one(&["finetune", "model_finetune"]).or_else(|| guess(|g| &g.finetune)));
    set("basename", one(&["basename", "model_basename", "model_type"]).or_else(|| guess(|g| &g.basename)));
    set("description", one(&["description", "model_description"]));
    let size = one(&["size_label", "model_size_label"]).or_else(|| guess(|g| &g.size_label));
    set("size_label", Some(size.unwrap_or_else(|| computed_size.to_string())).filter(|size| !size.is_empty()));
    set("license", Some(values("license").join(",")).filter(|l| !l.is_empty()));
    set("license.name", one(&["license_name"]));
    set("license.link", one(&["license_link"]));
    set("source.url", one(&["url", "model_url"]));
    set("source.doi", one(&["doi", "model_doi"]));
    set("source.uuid", one(&["uuid", "model_uuid"]));
    set("source.repo_url", one(&["repo_url", "model_repo_url"]));

    let first_of = |keys: [&'static str; 3]| keys.into_iter().find(|k| card.has(k));
    for (prefix, keys) in [
        ("base_model", ["base_model", "base_models", "base_model_sources"]),
        ("dataset", ["datasets", "dataset", "dataset_sources"]),
    ] {
        if let Some(key) = first_of(keys) {
            set_origins(meta, prefix, values(key), params);
        }
    }
    for (key, sources) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
        let all: Vec<String> = sources.iter().flat_map(|s| values(s).iter().cloned()).collect();
        if !all.is_empty() {
            meta.set(format!("general.{key}"), all);
        }
    }
}

/// Models or data sets that this one was made from, each a Hub id or an address.
fn set_origins(meta: &mut Metadata, prefix: &str, ids: &[String], params: u64) {
    meta.set(format!("general.{prefix}.count"), u32::try_from(ids.len()).unwrap_or(u32::MAX));
    for (i, id) in ids.iter().enumerate() {
        let mut set = |key: &str, value: String| meta.set(format!("general.{prefix}.{i}.{key}"), value);
        let address = ["http://", "https://", "ssh://"].iter().any(|p| id.starts_with(p));
        let hub = ["http://huggingface.co/", "https://huggingface.co/"].iter().find_map(|p| id.strip_prefix(p));
        let id_on_hub = if address { hub.filter(|h| h.matches('/').count() == 1) } else { Some(id.as_str()) };
        if let Some(hub_id) = id_on_hub {
            let parts = split_name(hub_id, params);
            let full = parts.full.unwrap_or_default();
            set("name", title(&full));
            if let Some(version) = parts.version {
                set("version", version);
            }
            if let Some(org) = parts.organization {
                set("organization", title(&org));
                if !address {
                    set("repo_url", format!("https://huggingface.co/{org}/{full}"));
                }
            }
        }
        if address {
            set("repo_url", id.clone());
        }
    }
}

/// The sampling settings of `generation_config.json`; an absent or damaged file has none.
fn set_sampling(meta: &mut Metadata, dir: &Path) {
    let Ok(json) = read_json(&dir.join("generation_config.json")) else { return };
    let number = |keys: &[&str]| keys.iter().find_map(|k| json.get(k)).and_then(serde_json::Value::as_f64);
    if let Some(sequence) = json.get("sequence").and_then(serde_json::Value::as_str) {
        meta.set("general.sampling.sequence", sequence);
    }
    let settings: [(&str, &[&str], bool); 11] = [
        ("top_k", &["top_k"], true),
        ("top_p", &["top_p"], false),
        ("min_p", &["min_p"], false),
        ("xtc_probability", &["xtc_probability"], false),
        ("xtc_threshold", &["xtc_threshold"], false),
        ("temp", &["temperature"], false),
        ("penalty_last_n", &["penalty_last_n"], true),
        ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], false),
        ("mirostat", &["mirostat"], true),
        ("mirostat_tau", &["mirostat_tau"], false),
        ("mirostat_eta", &["mirostat_eta"], false),
    ];
    for (key, sources, whole) in settings {
        let key = format!("general.sampling.{key}");
        match number(sources) {
            Some(value) if whole => meta.set(key, value as i32),
            Some(value) => meta.set(key, value as f32),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, params: u64) -> [Option<String>; 6] {
        let p = split_name(id, params);
        [p.full, p.organization, p.basename, p.finetune, p.version, p.size_label]
    }

    /// Cases of gguf-py's own `test_metadata.py`.
    #[test]
    fn names_split_as_in_gguf_py() {
        let some = |s: &str| Some(s.to_string());
        let check = |id: &str, params: u64, want: [Option<&str>; 6]| {
            assert_eq!(parts(id, params), want.map(|w| w.map(String::from)), "{id}");
        };
        check("Mistral-7B", 0, [Some("Mistral-7B"), None, Some("Mistral"), None, None, Some("7B")]);
        check(
            "Mixtral-8x7B-Instruct-v0.1",
            0,
            [Some("Mixtral-8x7B-Instruct-v0.1"), None, Some("Mixtral"), Some("Instruct"), Some("v0.1"), Some("8x7B")],
        );
        check("Mixtral", 0, [Some("Mixtral"), None, None, None, None, None]);
        check("Mixtral-8x7B", 0, [Some("Mixtral-8x7B"), None, Some("Mixtral"), None, None, Some("8x7B")]);
        check(
            "bigscience/bloom-7b1-petals",
            0,
            [Some("bloom-7b1-petals"), Some("bigscience"), Some("bloom"), Some("petals"), None, Some("7.1B")],
        );
        check(
            "meta-llama/Meta-Llama-3.1-8B",
            8_000_000_000,
            [Some("Meta-Llama-3.1-8B"), Some("meta-llama"), Some("Meta-Llama-3.1"), None, None, Some("8B")],
        );
        check(
            "Phi-3-mini-4k-instruct",
            3_800_000_000,
            [Some("Phi-3-mini-4k-instruct"), None, Some("Phi-3"), Some("4k-instruct"), None, Some("mini")],
        );
        check(
            "SmolLM-1.7B-Instruct",
            1_700_000_000,
            [Some("SmolLM-1.7B-Instruct"), None, Some("SmolLM"), Some("Instruct"), None, Some("1.7B")],
        );
        assert_eq!(split_name("a model of mine", 0).full, some("a model of mine"));
    }

    #[test]
    fn titles_keep_versions_and_acronyms() {
        assert_eq!(title("llama3-rope"), "Llama3 Rope");
        assert_eq!(title("Mixtral-8x7B-Instruct-v0.1"), "Mixtral 8x7B Instruct v0.1");
        assert_eq!(title("smollm2-135m"), "Smollm2 135m");
    }

    #[test]
    fn a_snapshot_is_called_after_its_repository() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let path = format!("/home/u/.cache/hub/models--Qwen--Qwen3-8B/snapshots/{commit}");
        assert_eq!(id_of_folder(Path::new(&path)), Some("Qwen/Qwen3-8B".to_string()));
        assert_eq!(id_of_folder(Path::new(&format!("/models/{commit}"))), None);
        assert_eq!(id_of_folder(Path::new("/models/tiny-llama")), Some("tiny-llama".to_string()));
    }
}
