//! What an engine would refuse in a checkpoint folder, told from its configuration, names and shapes before anyone has
//! copied it to a server. The rules are those of the releases named at [`Engine::release`], read in their sources and,
//! where `docs/formats.md` says so, seen at work. Whether the bytes are sound is checked elsewhere.

mod known;
mod packing;

use super::files;
use crate::Result;
use crate::error::Hint;
use crate::model::graph::{Shard, Stage, shards};
use crate::model::modules::{shares_scale, stored_alike};
use crate::model::{Model, Role, stored_head_differs, tokenizer};
pub use crate::packed::Engine;
use crate::packed::Scheme;
use crate::packed::engines::{Check, UNPACKED, Verdict};
use crate::source::{Checkpoint, Dtype, TensorMeta};
use serde_json::Value;

/// JSON files that engines read where they are there.
const SMALL_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
];

/// Something that an engine has against a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// The modules it is about; empty: the folder as a whole.
    pub modules: Vec<String>,
    /// What it is, as a sentence without a full stop.
    pub what: String,
    /// Whether the engine refuses to load it; the others are good to know.
    pub refused: bool,
    /// Whether it says that the engine's answer is not known.
    pub unknown: bool,
    /// What helps.
    pub hint: Option<Hint>,
}

impl Objection {
    /// One to the whole, without a hint.
    pub fn to_all(what: impl Into<String>, refused: bool) -> Self {
        Self { modules: Vec::new(), what: what.into(), refused, unknown: false, hint: None }
    }
}

/// What is said of a layer, and what helps.
struct Said {
    what: String,
    hint: Option<Hint>,
}

impl From<String> for Said {
    fn from(what: String) -> Self {
        Said { what, hint: None }
    }
}

/// A linear layer as it is stored.
struct Linear<'a> {
    path: &'a str,
    role: Role,
    layer: Option<usize>,
    rows: usize,
    cols: usize,
    /// Suffix and shape of each tensor; empty when the layer is not packed.
    pieces: Vec<(&'a str, &'a TensorMeta)>,
}

impl Linear<'_> {
    fn shape(&self, suffix: &str) -> Option<&[usize]> {
        self.pieces.iter().find(|(s, _)| *s == suffix).map(|(_, t)| t.shape.as_slice())
    }

    /// Columns under one scale; `None` for whole rows and for layers that are not packed in groups.
    fn group(&self, groups: Option<(&str, usize)>) -> Option<usize> {
        let (suffix, dimension) = groups?;
        let groups = *self.shape(suffix)?.get(dimension)?;
        (groups > 1).then(|| self.cols / groups)
    }

    /// Whether a fused kernel can take both: the same tensors, in the same groups.
    fn agrees(&self, other: &Linear, groups: Option<(&str, usize)>) -> bool {
        let suffixes = |l: &Linear| {
            let mut all: Vec<String> = l.pieces.iter().map(|(suffix, _)| suffix.to_string()).collect();
            all.sort_unstable();
            all
        };
        let groups = (self.group(groups), other.group(groups));
        // Rows of a single group look like rows without groups.
        let alike = groups.0 == groups.1 || (self.cols != other.cols && (groups.0.is_none() || groups.1.is_none()));
        suffixes(self) == suffixes(other) && alike
    }
}

struct View<'a> {
    ckpt: &'a Checkpoint,
    model: &'a Model,
    /// Which tensor of a module has an entry per group, and along which dimension.
    groups: Option<(&'static str, usize)>,
    linears: Vec<Linear<'a>>,
    /// Whether an output matrix is stored that is not the embedding.
    own_head: bool,
    found: Vec<Objection>,
}

/// What `engine` has against the folder when every layer is split over `tp` devices.
///
/// # Errors
/// Those of reading the few numbers that must agree.
pub fn objections(engine: Engine, ckpt: &Checkpoint, model: &Model, tp: usize) -> Result<Vec<Objection>> {
    let mut linears = Vec::new();
    for t in &model.tensors {
        let output = matches!(t.role, Role::TokenEmbedding | Role::Output);
        for meta in t.parts.iter().map(|part| &ckpt.tensors()[*part]) {
            let packed = matches!(meta.dtype, Dtype::Packed(_));
            if (t.role.is_linear() || (output && packed)) && meta.shape.len() == 2 {
                let path = meta.name.strip_suffix(".weight").unwrap_or(&meta.name);
                let (rows, cols, pieces) = (meta.shape[0], meta.shape[1], ckpt.packed_pieces(meta));
                linears.push(Linear { path, role: t.role, layer: t.layer, rows, cols, pieces });
            }
        }
    }
    let groups = ckpt.scheme().and_then(Scheme::groups);
    let own_head = stored_head_differs(ckpt)?;
    let mut view = View { ckpt, model, groups, linears, own_head, found: Vec::new() };
    let verdict = match ckpt.scheme() {
        Some(scheme) => scheme.verdict(engine, tp),
        None => UNPACKED.ask(engine, &Value::Null, tp),
    };
    let is_final = verdict.is_final;
    view.hold(verdict, tp)?;
    const ONLY_BLOCKS: &str = "it keeps the embedding and the output as they are";
    match engine {
        Engine::Vllm => {
            view.strays(|_| true);
            view.experts_in_vllm();
            view.unnamed_in_vllm();
            if !is_final {
                view.only_blocks(ONLY_BLOCKS);
                view.splits(tp);
                view.fused();
            }
        }
        Engine::Transformers => {
            view.packed_in_transformers();
            view.packing();
            if !is_final {
                view.only_blocks(ONLY_BLOCKS);
            }
        }
        Engine::Mlx => {
            view.strays(|name| name.starts_with("model"));
        }
        Engine::LlamaCpp => {}
    }
    if engine != Engine::LlamaCpp {
        view.files(engine);
        view.family(engine);
    }
    Ok(view.found)
}

impl<'a> View<'a> {
    fn refuse(&mut self, what: impl Into<String>) {
        self.found.push(Objection::to_all(what, true));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.found.push(Objection::to_all(what, false));
    }

    /// An objection per layer; alike ones become one.
    fn each<S: Into<Said>>(&mut self, refused: bool, why: impl Fn(&Linear) -> Option<S>) {
        for linear in &self.linears {
            let Some(Said { what, hint }) = why(linear).map(Into::into) else { continue };
            match self.found.iter_mut().find(|o| o.what == what && !o.modules.is_empty()) {
                Some(same) => same.modules.push(linear.path.to_string()),
                None => self.found.push(Objection {
                    modules: vec![linear.path.to_string()],
                    what,
                    refused,
                    unknown: false,
                    hint,
                }),
            }
        }
    }

    /// What the engine says of the format, and the looks at shapes that it calls for.
    fn hold(&mut self, verdict: Verdict, tp: usize) -> Result<()> {
        let instead = verdict.instead.map(|name| Hint::OfOriginal(name.into()));
        let said = |(what, refused)| Objection {
            hint: instead.clone().filter(|_| refused),
            ..Objection::to_all(what, refused)
        };
        self.found.extend(verdict.says.into_iter().map(said));
        for check in verdict.checks {
            match check {
                Check::WholeWords => self.words(),
                Check::UsualGroups => {
                    self.groups(|group| format!("groups of {group}: its kernels take 32, 64, 128 or whole rows"))
                }
                Check::MlxGroups => self.groups(|group| format!("groups of {group}: it takes 32, 64 and 128")),
                Check::EightBits => {
                    if self.linears.iter().any(|l| l.shape("weight_packed").is_some_and(|s| s[1] * 4 == l.cols)) {
                        self.note("8 bits run on GPUs only; its CPU kernels have 4");
                    }
                }
                Check::GlobalScales => self.global_scales()?,
                Check::SplitBlocks => self.fp8_blocks(tp),
                Check::WholeBlocks => self.fp8_blocks(1),
                Check::NoOrder => self.each(true, |l| match (l.shape("g_idx"), l.shape("qzeros")) {
                    (Some(_), _) => Some("has a g_idx, which it refuses even when it is trivial".to_string()),
                    (None, None) if !l.pieces.is_empty() => Some("has no qzeros, which it takes for zero".to_string()),
                    _ => None,
                }),
                Check::OwnObject => {
                    let own = self.model.hf_config.as_ref().and_then(|c| c.get("quantization"));
                    if own.is_none_or(Value::is_null) {
                        self.refuse("config.json lacks the object 'quantization'");
                    }
                }
            }
        }
        Ok(())
    }

    /// Weights in the folder that are not the model's, which an engine that takes all files of such names loads too.
    fn strays(&mut self, takes: impl Fn(&str) -> bool) {
        let own = |name: &str| self.ckpt.files().iter().any(|f| f.path.file_name().is_some_and(|n| n == name));
        let entries = std::fs::read_dir(self.ckpt.dir()).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        let mut strays: Vec<String> = names.filter(|n| n.ends_with(".safetensors") && takes(n) && !own(n)).collect();
        strays.sort();
        // A shard may hold more than the index lists.
        for remark in self.ckpt.remarks().iter().filter(|remark| remark.contains(" is left out: ")) {
            self.refuse(format!("{remark}, but it takes every tensor of a file"));
        }
        for name in strays {
            self.refuse(format!("{name} is not part of the model, but it loads every file of such a name"));
        }
    }

    /// Kernels for packed experts are those of GPUs.
    fn experts_in_vllm(&mut self) {
        let packed = |l: &Linear| l.role.is_expert() && !l.pieces.is_empty();
        if self.linears.iter().any(packed) {
            let what = "has packed experts, which its CPU build has no kernels for; on GPUs they were not tried";
            self.found.push(Objection { unknown: true, ..Objection::to_all(what, false) });
        }
    }

    /// How transformers 5 with compressed-tensors 0.20 takes packed experts, zero points and four-bit floats.
    fn packed_in_transformers(&mut self) {
        self.each(true, |l| {
            let both = l.shape("weight_packed").is_some() && l.shape("weight_zero_point").is_some();
            both.then(|| "has packed zero points, for which it makes room as if they were not packed".to_string())
        });
        self.each(true, |l| {
            let eight_bits =
                l.pieces.iter().any(|(s, t)| *s == "weight" && t.dtype == Dtype::Ggml(crate::quant::GgmlType::I8));
            (l.role.is_expert() && eight_bits)
                .then(|| "is an expert in 8-bit integers, whose matrix it does not find".to_string())
        });
        self.each(true, |l| {
            (l.role.is_expert() && l.shape("weight.absmax").is_some()).then(|| {
                "is an expert in four bits of bitsandbytes: it stacks experts, and these have no rows".to_string()
            })
        });
        self.each(true, |l| {
            (l.role.is_expert() && l.shape("weight_global_scale").is_some()).then(|| {
                "is an expert with a global scale, which it leaves out: its weights come out wrong".to_string()
            })
        });
        let config = self.model.hf_config.as_ref();
        let half = config.and_then(|c| c.get("dtype").or(c.get("torch_dtype"))?.as_str()) == Some("float16");
        let fp4 =
            self.linears.iter().any(|l| l.pieces.iter().any(|(s, t)| *s == "weight_packed" && t.dtype == Dtype::U8));
        if half && fp4 {
            self.note("four-bit floats are decoded to bfloat16: pass dtype=torch.bfloat16 to from_pretrained");
        }
    }

    /// Files that every engine looks for.
    fn files(&mut self, engine: Engine) {
        let dir = self.ckpt.dir();
        let has = |name: &str| dir.join(name).is_file();
        if !["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|name| has(name)) {
            self.refuse("there is no tokenizer in the folder (tokenizer.json, tokenizer.model or vocab.json)");
        } else if !has("tokenizer_config.json") {
            self.note("without tokenizer_config.json, special tokens and the chat template are guessed");
        }
        if let Err(e) = tokenizer::check_library(dir) {
            self.found.push(Objection {
                unknown: true,
                ..Objection::to_all(format!("its tokenizer is in question: {e}"), false)
            });
        }
        for name in SMALL_FILES.iter().filter(|name| has(name)) {
            if let Err(e) = crate::input::read_json(&dir.join(name)) {
                // These go on without.
                let goes_on = *name == "generation_config.json" && engine != Engine::Vllm;
                self.found.push(Objection::to_all(format!("{name} cannot be read: {e}"), !goes_on));
            }
        }
        let tied = self.model.config.tied_embeddings;
        // As the file says it: the model's own copy follows what is stored.
        let said: Option<serde_json::Value> = crate::input::read_json(&self.ckpt.dir().join("config.json")).ok();
        let says_tied = said.and_then(|config| config.get("tie_word_embeddings")?.as_bool());
        let heads = self.ckpt.tensors().iter().filter(|t| t.name.contains("lm_head."));
        let packed = heads.clone().any(|t| matches!(t.dtype, Dtype::Packed(_)));
        if engine == Engine::Mlx && says_tied == Some(true) && self.own_head {
            self.refuse("config.json ties the output to the embedding, so it leaves out the lm_head, which is another");
        } else if tied && packed {
            self.refuse("config.json ties the output to the embedding, but there is a quantized lm_head, too");
        } else if tied && heads.count() > 0 {
            self.note("config.json ties the output to the embedding; the separate lm_head is ignored");
        }
        if engine != Engine::Mlx && self.ckpt.files().len() > 1 && !has("model.safetensors.index.json") {
            self.refuse("several shards, but no model.safetensors.index.json to say which holds what");
        }
    }

    /// Blocks of 128 x 128 must not be cut by devices nor, but for the last, by fused neighbours.
    fn fp8_blocks(&mut self, tp: usize) {
        let block = crate::packed::FP8_BLOCK;
        self.each(true, |l| {
            let scales = l.shape("weight_scale")?;
            let in_blocks = scales.len() == 2 && scales[1] > 1;
            let (mut rows, mut cols) = (l.rows, l.cols);
            match shards(l.role) {
                Shard::Columns => cols /= tp,
                Shard::Rows => rows /= tp,
            }
            let cut = |n: usize| !n.is_multiple_of(block);
            let what = match (in_blocks, cut(rows), cut(cols)) {
                (true, true, _) => format!("{rows} rows on each device"),
                (true, _, true) => format!("{cols} input channels on each device"),
                _ => return None,
            };
            Some(format!("blocks of {block} do not divide its {what}"))
        });
    }

    /// Modules that run as one matrix share one global scale.
    fn global_scales(&mut self) -> Result<()> {
        let mut differing = Vec::new();
        let scale = |l: &Linear| -> Result<Option<f32>> {
            let Some((_, t)) = l.pieces.iter().find(|(s, _)| *s == "weight_global_scale") else { return Ok(None) };
            let mut bytes = [0; 4];
            self.ckpt.read(t, 0, &mut bytes)?;
            Ok(Some(f32::from_le_bytes(bytes)))
        };
        for (i, l) in self.linears.iter().enumerate() {
            let single = l.role.is_expert() || l.path.contains(".experts.");
            let Some(set) = shares_scale(l.role, l.layer, None, l.path).filter(|_| !single) else { continue };
            let alike = |f: &&Linear| f.layer == l.layer && shares_scale(f.role, f.layer, None, f.path) == Some(set);
            let first = self.linears[..i].iter().find(alike);
            if let Some(first) = first
                && scale(first)? != scale(l)?
            {
                differing.push(l.path.to_string());
            }
        }
        if !differing.is_empty() {
            let what = "has another global scale than the layers it is fused with; one of them is used for all, which costs quality";
            self.found.push(Objection { modules: differing, ..Objection::to_all(what, false) });
        }
        Ok(())
    }

    /// The kernels for integers work on 32 x 32.
    fn words(&mut self) {
        self.each(true, |l| {
            let whole = l.rows.is_multiple_of(32) && l.cols.is_multiple_of(32);
            let odd = !whole && !l.pieces.is_empty();
            odd.then(|| format!("{} x {} is not made of blocks of 32 x 32", l.rows, l.cols))
        });
    }

    /// Refuses groups other than the usual ones.
    fn groups(&mut self, what: impl Fn(usize) -> String) {
        let groups = self.groups;
        self.each(true, |l| {
            let group = l.group(groups)?;
            (![32, 64, 128].contains(&group)).then(|| what(group))
        });
    }

    fn only_blocks(&mut self, why: &str) {
        self.each(true, |l| {
            let output = matches!(l.role, Role::TokenEmbedding | Role::Output) && !l.pieces.is_empty();
            output.then(|| format!("is quantized: {why}"))
        });
    }

    /// What does not divide by the number of devices.
    fn splits(&mut self, tp: usize) {
        let Some((heads, kv)) = self.model.config.first_heads().map(|h| (h.q, h.kv)) else { return };
        if !heads.is_multiple_of(tp) {
            self.refuse(format!("{heads} attention heads cannot be split over {tp} devices"));
        }
        if !kv.is_multiple_of(tp) && !tp.is_multiple_of(kv) {
            self.refuse(format!("{kv} key-value heads can neither be split over {tp} devices nor repeated on them"));
        }
        let groups = self.groups;
        self.each(true, |l| {
            let attention = Stage::of(l.role) == Some(Stage::Qkv);
            let (n, what) = match shards(l.role) {
                Shard::Columns => (l.cols, "input channels"),
                Shard::Rows => (l.rows, "rows"),
            };
            if !n.is_multiple_of(tp) {
                // Heads were spoken of.
                return (!attention).then(|| format!("{n} {what} cannot be split over {tp} devices").into());
            }
            let group = l.group(groups).filter(|_| shards(l.role) == Shard::Columns && tp > 1)?;
            let part = n / tp;
            (!part.is_multiple_of(group)).then(|| Said {
                what: format!("groups of {group} do not divide the {part} input channels on each of {tp} devices"),
                hint: Some(Hint::Devices(tp)),
            })
        });
    }

    /// Layers that run as one matrix must be stored alike.
    fn fused(&mut self) {
        let groups = self.groups;
        let mut found = Vec::new();
        for (i, l) in self.linears.iter().enumerate() {
            let Some(set) = stored_alike(l.role, l.layer, l.path) else { continue };
            let alike = |f: &&Linear| f.layer == l.layer && stored_alike(f.role, f.layer, f.path) == Some(set);
            let first = self.linears[..i].iter().find(alike);
            if let Some(first) = first.filter(|f| !f.agrees(l, groups)) {
                let kind = |l: &Linear| match (l.pieces.is_empty(), l.group(groups)) {
                    (true, _) => "not quantized".to_string(),
                    (false, Some(group)) => format!("in groups of {group}"),
                    (false, None) => "with a scale per row".to_string(),
                };
                let what = format!("is {}, but {}, with which it is fused, is {}", kind(l), first.path, kind(first));
                found.push(Objection { modules: vec![l.path.to_string()], ..Objection::to_all(what, true) });
            }
        }
        self.found.extend(found);
    }
}
