//! The files of a PEFT adapter: adapter_config.json, and the matrices of each module.

use super::super::folder::{self, ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use super::super::{Checkpoint, SourceFile, TensorMeta, safetensors};
use crate::{Error, Result, input};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const A: &str = ".lora_A.weight";
pub const B: &str = ".lora_B.weight";
pub const BIAS: &str = ".lora_B.bias";
pub const EMBEDDING_A: &str = ".lora_embedding_A";
pub const EMBEDDING_B: &str = ".lora_embedding_B";
pub const MAGNITUDE: &str = ".lora_magnitude_vector";
pub const TOKENS: &str = ".token_adapter.trainable_tokens_delta";
const PARTS: [&str; 7] = [A, B, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, TOKENS];

/// The fields of adapter_config.json that say how to merge.
pub struct Settings {
    path: PathBuf,
    alpha: f64,
    /// Alphas of modules, by regular expression.
    alphas: Vec<(regex::Regex, f64)>,
    /// The tokens that have rows of their own, of one module or of all.
    tokens: Vec<(Option<String>, Vec<usize>)>,
    /// Ends of the names of raw parameters that are adapted.
    parameters: Vec<String>,
    rank_stabilized: bool,
    /// Weights are stored `[in, out]` (GPT-2).
    pub turned: bool,
}

/// The parts of one module's adapter, by the suffix of their names.
pub type Parts = BTreeMap<&'static str, TensorMeta>;

/// An adapter's files, whose tensors lie in the checkpoint that they were opened for.
pub struct Files {
    pub dir: PathBuf,
    pub weights: PathBuf,
    pub settings: Settings,
    /// By the names of the modules that they are added to.
    pub modules: BTreeMap<String, Parts>,
    /// What takes the place of a tensor of the base.
    pub whole: Vec<(String, TensorMeta)>,
}

/// What stands around a module's name where several parameters of one module are adapted: the last wraps the others.
pub const WRAPPED: &str = ".base_layer";
pub const MERGE_FIRST: &str = "merge it with PEFT (merge_and_unload, save_pretrained) and give the result";

/// Without what PEFT puts around a module's name.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.replace(".default.", ".").replace(".modules_to_save.", ".").replace(".base_layer.", ".");
    let name = name.strip_suffix(".default").unwrap_or(&name);
    match name.strip_suffix(".lora_magnitude_vector.weight") {
        Some(module) => format!("{module}{MAGNITUDE}"),
        None => name.to_string(),
    }
}

impl Files {
    /// Opens an adapter's files behind those of `ckpt`.
    pub fn open(ckpt: &mut Checkpoint, path: &Path) -> Result<Self> {
        let (dir, weights) = match path.is_dir() {
            true => (path, path.join(ADAPTER_WEIGHTS)),
            false => {
                (path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")), path.to_path_buf())
            }
        };
        if !weights.exists() && dir.join("adapter_model.bin").exists() {
            return Err(folder::pytorch(&dir.join("adapter_model.bin")));
        }
        let settings = Settings::read(&dir.join(ADAPTER_CONFIG))?;
        let file = SourceFile::open(&weights)?;
        let tensors = safetensors::read(&file, ckpt.files.len())?;
        ckpt.files.push(file);
        ckpt.files.push(SourceFile::open(&settings.path)?);
        let (mut modules, mut whole) = (BTreeMap::<String, Parts>::new(), Vec::new());
        for t in tensors {
            let name = plain_name(&t.name);
            match PARTS.iter().find_map(|part| Some((*part, name.strip_suffix(part)?))) {
                Some((part, module)) => {
                    // Of several parameters of one module each wraps those before it.
                    let wrapped = t.name.matches(WRAPPED).count();
                    let more = WRAPPED.repeat(if settings.adapts_parameters() { wrapped } else { 0 });
                    modules.entry(module.to_string() + &more).or_default().insert(part, t);
                }
                None if name.contains("lora_") || name.contains("token_adapter") => {
                    let what = format!("{}: is a kind of adapter that cannot be merged", weights.display());
                    return Err(Error::unsupported(what).tensor(&t.name).hint(MERGE_FIRST));
                }
                None => whole.push((name, t)),
            }
        }
        Ok(Self { dir: dir.to_path_buf(), weights, settings, modules, whole })
    }
}

impl Settings {
    fn read(path: &Path) -> Result<Self> {
        let json = input::read_json(path)?;
        let bad = |key: &str| Error::bad_file(path, format!("'{key}' is {}", json[key]));
        let other = |what: &str| Error::unsupported(format!("{}: {what}", path.display()));
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if !kind.eq_ignore_ascii_case("LORA") {
            return Err(other(&format!("the adapter is of type {kind}")).hint(MERGE_FIRST));
        }
        let set = |key: &&&str| {
            json.get(**key).is_some_and(|v| !matches!(v, Value::Null | Value::Bool(false)) && !is_empty(v))
        };
        let kinds = ["use_qalora", "layer_replication", "alora_invocation_tokens", "arrow_config"];
        if let Some(key) = kinds.iter().find(set) {
            return Err(other(&format!("the adapter has '{key}'")).hint(MERGE_FIRST));
        }
        // These begin at another base than the model's own weights.
        let begin = json.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if ["pissa", "olora", "corda", "loftq"].iter().any(|other| begin.starts_with(other)) {
            let error = other(&format!("the adapter was initialized with {begin}, which changes the base"));
            return Err(error.hint("save it with path_initial_model_for_weight_conversion"));
        }
        let alpha = json.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| bad("lora_alpha"))?;
        let pattern = |(key, v): (&String, &Value)| {
            let whole = regex::Regex::new(&format!("^(?:.*\\.)?(?:{key})$")).ok();
            whole.zip(v.as_f64()).ok_or_else(|| bad("alpha_pattern"))
        };
        let alphas = json.get("alpha_pattern").and_then(Value::as_object);
        let alphas = alphas.into_iter().flatten().map(pattern).collect::<Result<_>>()?;
        Ok(Self {
            path: path.to_path_buf(),
            alpha,
            alphas,
            tokens: tokens(&json["trainable_token_indices"]).ok_or_else(|| bad("trainable_token_indices"))?,
            parameters: parameters(&json["target_parameters"]).ok_or_else(|| bad("target_parameters"))?,
            rank_stabilized: flag("use_rslora"),
            turned: flag("fan_in_fan_out"),
        })
    }

    /// What the product of a module's matrices is multiplied by, times the rank.
    pub fn alpha(&self, module: &str, rank: usize) -> f64 {
        let own = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        if self.rank_stabilized { alpha * (rank as f64).sqrt() } else { alpha }
    }

    /// The tokens whose rows of a module the adapter has; none where it does not say.
    pub fn tokens(&self, module: &str) -> &[usize] {
        let is_own = |name: &str| module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let mut all = self.tokens.iter();
        all.find(|(name, _)| name.as_deref().is_none_or(is_own)).map_or(&[], |(_, ids)| ids)
    }

    /// The parameters of a module that are adapted themselves, by their names in it.
    pub fn parameters(&self, module: &str) -> Vec<&str> {
        let own = |whole: &'_ str| -> bool {
            let (of, _) = whole.rsplit_once('.').unwrap_or(("", whole));
            of.is_empty() || module.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let mut names: Vec<&str> = self.parameters.iter().map(String::as_str).filter(|whole| own(whole)).collect();
        names.iter_mut().for_each(|whole| *whole = whole.rsplit('.').next().unwrap_or(whole));
        names
    }

    /// Whether raw parameters are adapted.
    pub fn adapts_parameters(&self) -> bool {
        !self.parameters.is_empty()
    }

    pub fn scale(&self, module: &str, rank: usize) -> f32 {
        (self.alpha(module, rank) / rank as f64) as f32
    }
}

/// A list of tokens, or a list for each module by the end of its name.
fn tokens(value: &Value) -> Option<Vec<(Option<String>, Vec<usize>)>> {
    let list = |value: &Value| -> Option<Vec<usize>> {
        value.as_array()?.iter().map(|id| usize::try_from(id.as_u64()?).ok()).collect()
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::Object(map) => map.iter().map(|(name, ids)| Some((Some(name.clone()), list(ids)?))).collect(),
        ids => Some(vec![(None, list(ids)?)]),
    }
}

/// Names, in a list.
fn parameters(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        names => names.as_array()?.iter().map(|name| name.as_str().map(String::from)).collect(),
    }
}

/// The numbers of a tensor of the adapter.
///
/// # Errors
/// `BadInput` for what is no number; those of reading.
pub fn values(ckpt: &Checkpoint, t: &TensorMeta) -> Result<Vec<f32>> {
    let mut values = vec![0.0; t.elements()];
    ckpt.read_f32(t, 0..values.len(), &mut Vec::new(), &mut values)?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => {
            let file = ckpt.files[t.file].path.clone();
            Err(Error::bad_file(file, "holds values that are not finite").tensor(&t.name))
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The two matrices of a module, whose ends are `wanted`: `[rank, in]` and `[out, rank]`; and the rank.
pub fn matrices<'a>(
    parts: &'a Parts,
    module: &str,
    wanted: [&str; 2],
    weights: &Path,
) -> Result<(&'a TensorMeta, &'a TensorMeta, usize)> {
    let [Some(a), Some(b)] = wanted.map(|part| parts.get(part)) else {
        return Err(Error::bad_file(weights, "lacks one of its matrices, A or B").tensor(module));
    };
    let ([rank, _], [_, same]) = (&a.shape[..], &b.shape[..]) else {
        return Err(Error::unsupported("adapters of convolutions are not read").tensor(&a.name).hint(MERGE_FIRST));
    };
    if rank != same || *rank == 0 {
        return Err(Error::bad_file(weights, format!("A is {:?} and B is {:?}", a.shape, b.shape)).tensor(module));
    }
    Ok((a, b, *rank))
}
