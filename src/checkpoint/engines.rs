//! What an engine would refuse in a checkpoint folder, told from its configuration, names and shapes before anyone has
//! copied it to a server. The rules are those of the releases named at [`Engine::release`], read in their sources and,
//! where `docs/formats.md` says so, seen at work. Whether the bytes are sound is checked elsewhere.

use crate::Result;
use crate::model::graph::{Shard, Stage, shards, shares_scale, stored_alike};
use crate::model::{Model, Role};
use crate::source::{Checkpoint, Dtype, TensorMeta};
use serde_json::Value;

/// A program that loads checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Vllm,
    Transformers,
    LlamaCpp,
    Mlx,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vllm",
            Engine::Transformers => "transformers",
            Engine::LlamaCpp => "llama.cpp",
            Engine::Mlx => "mlx",
        }
    }

    /// The release whose rules these are.
    pub fn release(self) -> &'static str {
        match self {
            Engine::Vllm => "vLLM 0.32",
            Engine::Transformers => "transformers 5.23",
            Engine::LlamaCpp => "llama.cpp of November 2026",
            Engine::Mlx => "mlx-lm 0.32",
        }
    }
}

/// Something that an engine has against a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// The modules it is about; empty: the folder as a whole.
    pub modules: Vec<String>,
    pub what: String,
    /// Whether the engine refuses to load it; the others are good to know.
    pub refused: bool,
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
    fn group(&self, method: &str) -> Option<usize> {
        let groups = match method {
            "gptq" | "awq" => *self.shape("scales")?.first()?,
            "mlx" => *self.shape("scales")?.get(1)?,
            "compressed-tensors" => *self.shape("weight_scale")?.get(1)?,
            _ => return None,
        };
        (groups > 1).then(|| self.cols / groups)
    }

    /// Whether a fused kernel can take both: the same tensors, in the same groups.
    fn agrees(&self, other: &Linear, method: &str) -> bool {
        let suffixes = |l: &Linear| {
            let mut all: Vec<String> = l.pieces.iter().map(|(suffix, _)| suffix.to_string()).collect();
            all.sort_unstable();
            all
        };
        let groups = (self.group(method), other.group(method));
        // Rows of a single group look like rows without groups.
        let alike = groups.0 == groups.1 || (self.cols != other.cols && (groups.0.is_none() || groups.1.is_none()));
        suffixes(self) == suffixes(other) && alike
    }
}

struct View<'a> {
    ckpt: &'a Checkpoint,
    model: &'a Model,
    /// `quantization_config`, or MLX's `quantization`.
    config: &'a Value,
    /// Which tool's layout it is; empty when nothing is packed.
    method: &'static str,
    linears: Vec<Linear<'a>>,
    found: Vec<Objection>,
}

/// What `engine` has against the folder when every layer is split over `tp` devices.
///
/// # Errors
/// Those of reading the few numbers that must agree.
pub fn objections(engine: Engine, ckpt: &Checkpoint, model: &Model, tp: usize) -> Result<Vec<Objection>> {
    let null = Value::Null;
    let given = |key: &str| model.hf_config.as_ref().and_then(|c| c.get(key)).filter(|v| !v.is_null());
    let config = given("quantization_config").or_else(|| given("quantization")).unwrap_or(&null);
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
    let method = ckpt.scheme().map_or("", |scheme| scheme.name());
    let mut view = View { ckpt, model, config, method, linears, found: Vec::new() };
    match engine {
        Engine::Vllm => view.vllm(tp)?,
        Engine::Transformers => view.transformers(),
        Engine::LlamaCpp => {
            view.refuse("it runs GGUF files, not folders; make one of the original with: quantize --to q4_k_m")
        }
        Engine::Mlx => view.mlx(),
    }
    if engine != Engine::LlamaCpp {
        view.files();
    }
    Ok(view.found)
}

impl<'a> View<'a> {
    fn refuse(&mut self, what: impl Into<String>) {
        self.found.push(Objection { modules: Vec::new(), what: what.into(), refused: true });
    }

    fn note(&mut self, what: impl Into<String>) {
        self.found.push(Objection { modules: Vec::new(), what: what.into(), refused: false });
    }

    /// An objection per layer; alike ones become one.
    fn each(&mut self, refused: bool, why: impl Fn(&Linear) -> Option<String>) {
        for linear in &self.linears {
            let Some(what) = why(linear) else { continue };
            match self.found.iter_mut().find(|o| o.what == what && !o.modules.is_empty()) {
                Some(same) => same.modules.push(linear.path.to_string()),
                None => self.found.push(Objection { modules: vec![linear.path.to_string()], what, refused }),
            }
        }
    }

    fn text(&self, key: &str) -> &'a str {
        self.config.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn int(&self, key: &str) -> i64 {
        self.config.get(key).and_then(Value::as_i64).unwrap_or_default()
    }

    /// Files that every engine looks for.
    fn files(&mut self) {
        let dir = self.ckpt.dir();
        let has = |name: &str| dir.join(name).is_file();
        if !["tokenizer.json", "tokenizer.model", "vocab.json"].iter().any(|name| has(name)) {
            self.refuse("there is no tokenizer in the folder (tokenizer.json, tokenizer.model or vocab.json)");
        } else if !has("tokenizer_config.json") {
            self.note("without tokenizer_config.json, special tokens and the chat template are guessed");
        }
        let tied = self.model.config.tied_embeddings;
        let heads = self.ckpt.tensors().iter().filter(|t| t.name.contains("lm_head."));
        let packed = heads.clone().any(|t| matches!(t.dtype, Dtype::Packed(_)));
        if tied && packed {
            self.refuse("config.json ties the output to the embedding, but there is a quantized lm_head, too");
        } else if tied && heads.count() > 0 {
            self.note("config.json ties the output to the embedding; the lm_head beside it is ignored");
        }
        if self.ckpt.files().len() > 1 && !has("model.safetensors.index.json") {
            self.refuse("several shards, and no model.safetensors.index.json that says what is in which");
        }
    }

    fn vllm(&mut self, tp: usize) -> Result<()> {
        match self.method {
            "mlx" => {
                self.refuse("it knows no MLX checkpoints");
                return Ok(());
            }
            "bitsandbytes" => {
                self.note("needs the plugin: pip install vllm-bnb-plugin");
                if tp > 1 && self.flag("load_in_8bit") {
                    self.refuse("LLM.int8() weights cannot be split over devices");
                }
            }
            "gptq" => {
                let (bits, sym, group) = (self.int("bits"), self.flag("sym"), self.int("group_size"));
                if !(sym && matches!(bits, 4 | 8)) {
                    let kind = if sym { "symmetric" } else { "asymmetric" };
                    self.refuse(format!("GPTQ with {bits} bits, {kind}: it takes 4 or 8 bits, symmetric"));
                }
                if self.flag("desc_act") && group != -1 {
                    self.refuse("desc_act with groups: it takes columns in their own order only");
                }
                if bits == 8 {
                    self.note("8 bits run on GPUs only; its CPU kernels have 4");
                }
                self.words();
                self.usual_groups();
            }
            "awq" => {
                if self.int("bits") != 4 {
                    self.refuse("AWQ with other than 4 bits");
                }
                self.words();
                self.usual_groups();
            }
            "compressed-tensors" => self.vllm_compressed_tensors(tp)?,
            _ => {}
        }
        self.only_blocks("it keeps the embedding and the output as they are");
        self.splits(tp);
        self.fused();
        Ok(())
    }

    fn vllm_compressed_tensors(&mut self, tp: usize) -> Result<()> {
        match self.text("format") {
            "pack-quantized" => {
                if self.linears.iter().any(|l| l.shape("weight_packed").is_some_and(|s| s[1] * 4 == l.cols)) {
                    self.note("8 bits run on GPUs only; its CPU kernels have 4");
                }
                self.usual_groups();
            }
            "nvfp4-pack-quantized" => {
                self.note("runs on GPUs only (Blackwell; others dequantize), not on CPUs");
                self.global_scales()?;
            }
            "mxfp4-pack-quantized" => self.note("runs on GPUs only, not on CPUs"),
            "float-quantized" => {
                self.note("for Hopper, Ada and newer GPUs (8.9 and up); older ones keep activations in 16 bits");
                self.fp8_blocks(tp);
            }
            _ => {}
        }
        Ok(())
    }

    /// Blocks of 128 x 128 must not be cut by devices nor, but for the last, by fused neighbours.
    fn fp8_blocks(&mut self, tp: usize) {
        let block = crate::formats::FP8_BLOCK;
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
            let set = |l: &Linear| shares_scale(l.role).filter(|_| !l.role.is_expert()).map(|set| (l.layer, set));
            let first = self.linears[..i].iter().find(|f| set(l).is_some() && set(f) == set(l));
            if let Some(first) = first
                && scale(first)? != scale(l)?
            {
                differing.push(l.path.to_string());
            }
        }
        if !differing.is_empty() {
            let what = "has another global scale than the layers it is fused with; one of them is used for all, which costs quality";
            self.found.push(Objection { modules: differing, what: what.into(), refused: false });
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

    fn usual_groups(&mut self) {
        let method = self.method;
        self.each(true, |l| {
            let group = l.group(method)?;
            (![32, 64, 128].contains(&group))
                .then(|| format!("groups of {group}: its kernels take 32, 64, 128 or whole rows"))
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
        let method = self.method;
        self.each(true, |l| {
            let attention = Stage::of(l.role) == Some(Stage::Qkv);
            let (n, what) = match shards(l.role) {
                Shard::Columns => (l.cols, "input channels"),
                Shard::Rows => (l.rows, "rows"),
            };
            if !n.is_multiple_of(tp) {
                // Heads were spoken of.
                return (!attention).then(|| format!("{n} {what} cannot be split over {tp} devices"));
            }
            let group = l.group(method).filter(|_| shards(l.role) == Shard::Columns && tp > 1)?;
            let part = n / tp;
            (!part.is_multiple_of(group)).then(|| {
                format!("groups of {group} do not divide the {part} input channels on each of {tp} devices (quantize again with --tp {tp})")
            })
        });
    }

    /// Layers that run as one matrix must be stored alike.
    fn fused(&mut self) {
        let method = self.method;
        let mut found = Vec::new();
        for (i, l) in self.linears.iter().enumerate() {
            let Some(set) = stored_alike(l.role) else { continue };
            let first = self.linears[..i].iter().find(|f| f.layer == l.layer && stored_alike(f.role) == Some(set));
            if let Some(first) = first.filter(|f| !f.agrees(l, method)) {
                let kind = |l: &Linear| match (l.pieces.is_empty(), l.group(method)) {
                    (true, _) => "not quantized".to_string(),
                    (false, Some(group)) => format!("in groups of {group}"),
                    (false, None) => "with a scale per row".to_string(),
                };
                let what = format!("is {}, but {}, with which it is fused, is {}", kind(l), first.path, kind(first));
                found.push(Objection { modules: vec![l.path.to_string()], what, refused: true });
            }
        }
        self.found.extend(found);
    }

    fn transformers(&mut self) {
        match self.method {
            "mlx" => return self.refuse("its quantization_config names no quant_method"),
            "gptq" => self.note("needs: pip install optimum gptqmodel"),
            "awq" => self.note("needs: pip install gptqmodel"),
            "compressed-tensors" => self.note("needs: pip install compressed-tensors"),
            "bitsandbytes" => self.note("needs: pip install bitsandbytes"),
            _ => {}
        }
        if self.method == "compressed-tensors" && self.text("format") == "float-quantized" {
            self.fp8_blocks(1);
        }
        self.only_blocks("it keeps the embedding and the output as they are");
    }

    fn mlx(&mut self) {
        match self.method {
            "" | "mlx" => {}
            "gptq" | "awq" => {
                if self.int("bits") != 4 {
                    self.refuse("of GPTQ and AWQ it takes 4 bits only");
                }
                self.each(true, |l| {
                    l.shape("g_idx").map(|_| "has a g_idx, which it refuses even where it says nothing".to_string())
                });
            }
            "compressed-tensors" => {
                self.refuse("it reads compressed-tensors for a few other families only; use --to mlx-4bit");
            }
            other => self.refuse(format!("it reads no {other} checkpoints; use --to mlx-4bit")),
        }
        if self.method == "mlx" {
            let own = self.model.hf_config.as_ref().and_then(|c| c.get("quantization"));
            if own.is_none_or(Value::is_null) {
                self.refuse("config.json lacks the object 'quantization'");
            }
            if self.text("mode") == "affine" || self.text("mode").is_empty() {
                self.each(true, |l| {
                    let group = l.group("mlx")?;
                    (![32, 64, 128].contains(&group)).then(|| format!("groups of {group}: it takes 32, 64 and 128"))
                });
            }
        }
    }
}
