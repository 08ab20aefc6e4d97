//! What a model family is: one value that says which Hugging Face names belong together, which tensors a model has and what
//! each one means, how its values change on the way to GGUF, which metadata it gets, and what its tokenizer does
//! differently. The families themselves are in `families`.

use super::config::{Activation, Config, LayerConfig, Norm, NormNames, Sizes, Wiring};
use super::hf_json::HfJson;
use super::role::Role;
use crate::Result;
use crate::gguf::Metadata;

/// A size that the configuration decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    Vocab,
    Hidden,
    Ffn,
    /// Gate and up together.
    TwoFfn,
    /// Query rows.
    Q,
    /// Key rows.
    Kv,
    /// Value rows.
    V,
    /// What enters the attention's output matrix.
    AttnOut,
    /// Query, key and value rows together.
    Qkv,
    Head,
    Experts,
    ExpertFfn,
    SharedFfn,
    One,
}

impl Dim {
    /// In `layer`; `None` for tensors of no layer. 0 for what the layer does not have.
    pub fn of(self, layer: Option<&LayerConfig>, c: &Config) -> usize {
        let heads = layer.and_then(LayerConfig::heads);
        let dense = layer.and_then(|l| l.ffn.dense.as_ref());
        let experts = layer.and_then(|l| l.ffn.experts.as_ref());
        match self {
            Dim::Vocab => c.vocab,
            Dim::Hidden => c.hidden,
            Dim::Ffn => dense.map_or(0, |d| d.width),
            Dim::TwoFfn => dense.map_or(0, |d| 2 * d.width),
            Dim::Q => heads.map_or(0, |h| h.q_width()),
            Dim::Kv => heads.map_or(0, |h| h.k_width()),
            Dim::V => heads.map_or(0, |h| h.v_width()),
            Dim::AttnOut => heads.map_or(0, |h| h.out_width()),
            Dim::Qkv => heads.map_or(0, |h| h.q_width() + h.k_width() + h.v_width()),
            Dim::Head => heads.map_or(0, |h| h.dim),
            Dim::Experts => experts.map_or(0, |e| e.count),
            Dim::ExpertFfn => experts.map_or(0, |e| e.ffn),
            Dim::SharedFfn => experts.and_then(|e| e.shared_ffn).unwrap_or(0),
            Dim::One => 1,
        }
    }
}

/// When a row's tensor exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// The output matrix is not the embedding.
    Untied,
    /// The layer mixes tokens by attention.
    Attention,
    QkvBias,
    AttnOutputBias,
    /// The layer has a feed-forward block without experts.
    Dense,
    DenseBias,
    Moe,
    SharedExpert,
}

impl When {
    /// In `layer`; `None` for tensors of no layer.
    pub fn holds(self, layer: Option<&LayerConfig>, c: &Config) -> bool {
        let heads = layer.and_then(LayerConfig::heads);
        let dense = layer.and_then(|l| l.ffn.dense.as_ref());
        let experts = layer.and_then(|l| l.ffn.experts.as_ref());
        match self {
            When::Always => true,
            When::Untied => !c.tied_embeddings,
            When::Attention => heads.is_some(),
            When::QkvBias => heads.is_some_and(|h| h.qkv_bias),
            When::AttnOutputBias => heads.is_some_and(|h| h.output_bias),
            When::Dense => dense.is_some(),
            When::DenseBias => dense.is_some_and(|d| d.bias),
            When::Moe => experts.is_some(),
            When::SharedExpert => experts.is_some_and(|e| e.shared_ffn.is_some()),
        }
    }
}

/// Where a checkpoint keeps a tensor. `{layer}` and `{expert}` stand for numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One tensor of the row's shape.
    One(&'static str),
    /// One tensor `[out, in]` per expert.
    PerExpert(&'static str),
    /// One tensor `[experts, 2 * out, in]`; the row's tensor is the first or the second half of every expert.
    Half(&'static str, usize),
}

/// One tensor of a family: its names on both sides, its meaning and its shape, outermost dimension first.
#[derive(Debug)]
pub struct Row {
    /// Spellings, tried in order.
    pub sources: &'static [Source],
    pub gguf: &'static str,
    pub role: Role,
    pub shape: &'static [Dim],
    pub when: When,
}

impl Row {
    /// Whether there is one such tensor per layer.
    pub fn per_layer(&self) -> bool {
        self.gguf.contains("{layer}")
    }
}

/// How GGUF keeps a tensor differently from the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Of every query head, rotary rows go from two halves to interleaved pairs (llama.cpp's `LlamaModel.permute`).
    QueryPairs,
    /// The same of key heads.
    KeyPairs,
    /// 1 is added, because the model computes `x * (1 + w)`.
    PlusOne,
}

/// How the runtime rotates a head: the GGUF's order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Channel `i` with channel `i + dims / 2`.
    Halves,
    /// Channel `2 i` with channel `2 i + 1`.
    Pairs,
}

/// Which layers see a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// All, where `sliding_window` is set; the number stands in for an absent key.
    Every(Option<usize>),
    /// Only with `use_sliding_window`; layers from `max_window_layers` on (qwen2, qwen3).
    Late,
    /// Only with `use_sliding_window`; every other layer below `max_window_layers` (qwen2_moe).
    EarlyAlternate,
    /// Only with `use_sliding_window`; all layers (qwen3_moe).
    Switched,
    /// All but every n-th layer (`sliding_window_pattern` where it is set); default window 4096 (gemma2, gemma3).
    AllButEvery {
        every: usize,
        /// The window of a GGUF file that states none; `None`: such a file has none.
        unstated: Option<usize>,
    },
    /// Where `sliding_window` is set: by `layer_types`, else all but every n-th layer.
    ByType { every: usize },
    /// None, whatever `config.json` says.
    Never,
}

/// What transformers assumes for keys that `config.json` leaves out. `None`: the key must be there.
#[derive(Debug)]
pub struct Defaults {
    pub hidden: Option<usize>,
    pub ffn: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    /// `None`: as many as heads.
    pub kv_heads: Option<usize>,
    /// `None`: `hidden / heads`.
    pub head_dim: Option<usize>,
    /// Whether transformers fills in `head_dim`, so that conversion writes it even when `config.json` has none.
    pub states_head_dim: bool,
    pub vocab: Option<usize>,
    pub context: usize,
    pub norm_eps: f32,
    pub theta: f32,
    pub theta_local: Option<f32>,
    /// The part of each head that is rotated.
    pub partial_rotary: f32,
    pub tied: bool,
    pub window: WindowRule,
}

pub(super) const DEFAULTS: Defaults = Defaults {
    hidden: None,
    ffn: None,
    layers: None,
    heads: None,
    kv_heads: None,
    head_dim: None,
    states_head_dim: false,
    vocab: None,
    context: 32768,
    norm_eps: 1e-6,
    theta: 10_000.0,
    theta_local: None,
    partial_rotary: 1.0,
    tied: false,
    window: WindowRule::Every(None),
};

/// Where `config.json` keeps the sizes of experts.
#[derive(Debug)]
pub struct ExpertKeys {
    pub width: &'static str,
    /// Width of the shared expert.
    pub shared: Option<&'static str>,
    /// The flag that says whether weights are normalised; `None`: they are.
    pub norm_topk: Option<&'static str>,
}

/// One spelling of a family on the Hub.
#[derive(Debug)]
pub struct HfName {
    pub architecture: &'static str,
    pub model_type: &'static str,
    pub defaults: Defaults,
    /// For mixtures of experts.
    pub experts: Option<ExpertKeys>,
}

/// The activations that a family's models may name, and where.
#[derive(Debug)]
pub struct Activations {
    pub key: &'static str,
    pub names: &'static [(&'static str, Activation)],
    pub default: Activation,
}

/// Whether scores or logits are capped softly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cap {
    /// Never; a key for it means nothing.
    Never,
    /// By the number that is stated.
    Stated,
    /// By this number unless another is stated, or `null`.
    Default(f32),
}

impl Cap {
    /// What a reader of a GGUF file that states none takes.
    pub(in crate::model) fn unstated(self) -> Option<f32> {
        if let Cap::Default(cap) = self { Some(cap) } else { None }
    }
}

/// What attention scores are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttnScale {
    /// `1 / sqrt(head_dim)`.
    HeadDim,
    /// `1 / sqrt(query_pre_attn_scalar)`, of 256 where absent. GGUF has no key for it; readers take the head size, and
    /// hidden / heads for models of `by_hidden` layers (the 27B gemmas, which llama.cpp tells by their layers too).
    QueryScalar { by_hidden: usize },
}

/// What embeddings are multiplied by on look-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmbeddingScale {
    One,
    SqrtHidden,
}

/// When `tokenizer.json` is read as byte-level BPE although there is a `tokenizer.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteLevel {
    /// The `tokenizer.model` comes first.
    SentencePieceFirst,
    Always,
    /// Where `tokenizer_class` is this.
    OfClass(&'static str),
}

/// Which vocabulary llama.cpp's converter makes of a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    Usual,
    /// With the number of token types.
    Encoder,
    /// SentencePiece's spelling with merges, under a name of its own.
    Gemma4,
    /// A list of Python literals.
    RwkvWorld,
    /// A list of JSON arrays.
    Plamo,
}

/// What llama.cpp's converter does differently about the tokenizers of a family.
#[derive(Debug)]
pub struct TokenizerFacts {
    pub kind: TokenizerKind,
    /// Which tokens are put around a text, whatever the files say of it: written first.
    pub adds: &'static [(&'static str, bool)],
    /// `eod_token_id` of `config.json` ends a text (hunyuan).
    pub ends_by_eod: bool,
    pub byte_level: ByteLevel,
    /// `add_prefix_space` of `tokenizer_config.json` is written.
    pub states_space_prefix: bool,
    /// A `tokenizer.model` puts no space in front of a text.
    pub no_space_prefix: bool,
    /// Whether a `tokenizer.model` puts a space in front of a text is written as it says.
    pub tells_dummy_prefix: bool,
    /// This token ends a text, where the vocabulary has it.
    pub chat_end: Option<&'static str>,
    /// Added tokens go by their flags alone and keep their spelling, and those of `tokenizer.json` count too.
    pub added_by_flags: bool,
    /// Some models are known by the size of their vocabulary (CodeLlama, Granite).
    pub by_vocabulary_size: bool,
    /// Ids that are fixed: kind of special token and id (gemma).
    pub fixed_ids: &'static [(&'static str, u32)],
    /// Kinds of special tokens that a text stands for where nothing else says which token it is (glm4).
    pub named: &'static [(&'static str, &'static str)],
}

/// A tokenizer without anything special about it.
pub(super) const PLAIN_TOKENIZER: TokenizerFacts = TokenizerFacts {
    kind: TokenizerKind::Usual,
    adds: &[],
    ends_by_eod: false,
    byte_level: ByteLevel::SentencePieceFirst,
    states_space_prefix: false,
    no_space_prefix: false,
    tells_dummy_prefix: false,
    chat_end: None,
    added_by_flags: false,
    by_vocabulary_size: false,
    fixed_ids: &[],
    named: &[],
};

/// A model family: one GGUF architecture.
#[derive(Debug)]
pub struct Family {
    /// GGUF `general.architecture`.
    pub(crate) gguf: &'static str,
    /// Its names on the Hub.
    pub(crate) hf: &'static [HfName],
    /// The tensor table, in groups that families share.
    pub(crate) tables: &'static [&'static [Row]],
    /// What becomes of the values of a role on their way to GGUF.
    pub(crate) maps: &'static [(Role, Map)],
    /// How positions enter.
    pub(crate) rotation: Rotation,
    /// Metadata in the order of llama.cpp's converter, in groups that families share.
    pub(crate) keys: &'static [&'static [Entry]],
    /// The kind of its norms.
    pub(crate) norm: Norm,
    /// Where `config.json` keeps the epsilon of norms.
    pub(crate) norm_eps_key: &'static str,
    /// How attention and feed-forward blocks follow each other.
    pub(crate) wiring: Wiring,
    /// The activation function.
    pub(crate) activations: Activations,
    /// The cap of attention's logits.
    pub(crate) attn_softcap: Cap,
    /// The cap of the output's logits.
    pub(crate) logit_softcap: Cap,
    /// What attention's logits are multiplied by.
    pub(crate) attn_scale: AttnScale,
    /// What embeddings are multiplied by.
    pub(crate) embedding_scale: EmbeddingScale,
    /// What is stated as the scale of logits is a divisor.
    pub(crate) logit_scale_divides: bool,
    /// Query, key and value have biases whatever the configuration says (qwen2, qwen2_moe).
    pub(crate) qkv_bias: bool,
    /// Weights of the chosen experts sum to 1, where `config.json` has no say or GGUF does not store it.
    pub(crate) norm_topk: bool,
    /// Only a part of each head may be rotated.
    pub(crate) partial_rotary: bool,
    /// Knows long-rope: GGUF keeps its factors as tensors, and what early configurations call "yarn" is long-rope.
    pub(crate) long_rope: bool,
    /// Prefixes of tensors that belong to image encoders and are left out.
    pub(crate) towers: &'static [&'static str],
    /// What its tokenizer does differently.
    pub(crate) tokenizer: TokenizerFacts,
    /// The layers that a `config.json` describes.
    pub(crate) layers: fn(&Reading) -> Result<Vec<LayerConfig>>,
    /// What is said of the whole model beside the usual.
    pub(crate) finish: fn(&Reading, &mut Config) -> Result<()>,
    /// What readers of a GGUF file take for granted.
    pub(crate) unstated: fn(&mut Config),
}

impl EmbeddingScale {
    pub(super) fn of(self, hidden: usize) -> f32 {
        match self {
            EmbeddingScale::One => 1.0,
            EmbeddingScale::SqrtHidden => (hidden as f32).sqrt(),
        }
    }
}

impl Family {
    /// The tensors that models of the family have.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Row> + use<> {
        self.tables.iter().flat_map(|t| t.iter())
    }

    /// The row of `role`, if the family has it.
    pub(crate) fn row(&self, role: Role) -> Option<&'static Row> {
        self.rows().find(|r| r.role == role)
    }

    /// Whether the family has a tensor of this role, in some layer of some model.
    pub fn has(&self, role: Role) -> bool {
        self.row(role).is_some()
    }

    /// Whether a layer of a model has a tensor of this role.
    pub(crate) fn layer_has(&self, role: Role, layer: &LayerConfig, config: &Config) -> bool {
        self.row(role).is_some_and(|row| row.when.holds(Some(layer), config))
    }

    /// What becomes of the values of one role.
    pub(crate) fn maps_of(&self, role: Role) -> impl Iterator<Item = Map> + use<> {
        self.maps.iter().filter(move |(r, _)| *r == role).map(|(_, map)| *map)
    }

    /// The metadata keys of the family.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &'static Entry> + use<> {
        self.keys.iter().flat_map(|k| k.iter())
    }

    /// Whether a GGUF file says something of its model that this family does not know.
    pub(super) fn leaves_out(&self, meta: &Metadata) -> Option<String> {
        let named = |key: &str| format!("{}.{key}", self.gguf);
        let keys = ["attention.temperature_scale", "rope.dimension_sections"];
        let said = keys.into_iter().map(named).find(|key| meta.get(key).is_some());
        // StableLM's blocks follow each other, in the family.
        said.or_else(|| Some(named("use_parallel_residual")).filter(|key| meta.bool(key) == Some(true)))
    }

    /// How GGUF calls the norms of this family's blocks; nothing for those it has not.
    pub(super) fn norms(&self) -> NormNames {
        let stem = |role: Role| {
            let name = self.row(role).map_or("", |row| row.gguf);
            name.strip_prefix("blk.{layer}.").and_then(|name| name.strip_suffix(".weight")).unwrap_or("")
        };
        NormNames {
            attn: stem(Role::AttnNorm),
            post_attn: stem(Role::PostAttnNorm),
            ffn: stem(Role::FfnNorm),
            post_ffn: stem(Role::PostFfnNorm),
            ..NormNames::NONE
        }
    }

    /// Whether a second matrix gates the feed-forward blocks.
    pub fn is_gated(&self) -> bool {
        self.has(Role::FfnGate) || self.has(Role::FfnGateUp)
    }
}

/// A `config.json` whose family and sizes are known.
pub struct Reading<'a> {
    pub(super) json: HfJson<'a>,
    pub(super) family: &'static Family,
    pub(super) name: &'static HfName,
    pub(super) sizes: Sizes,
}

/// What a key's value is made from.
pub struct Facts<'a> {
    pub(super) config: &'a Config,
    pub(super) json: HfJson<'a>,
    pub(super) name: &'static HfName,
}

/// A value before it has GGUF's type.
pub enum Stated {
    Size(usize),
    Float(f32),
    Text(&'static str),
    Flag(bool),
    Flags(Vec<bool>),
}

/// One key of a family's architecture.
#[derive(Debug)]
pub struct Key {
    /// Behind `{architecture}.`.
    pub name: &'static str,
    /// `None`: the key is not written.
    pub(super) from: fn(&Facts) -> Option<Stated>,
    pub(super) to: fn(&mut Config, &Stored) -> Result<()>,
}

/// A place in the metadata of a family.
#[derive(Debug)]
pub enum Entry {
    Key(&'static Key),
    /// A key that only this program reads: a reader that follows llama.cpp does not know the fact.
    Ours(&'static Key),
    /// `general.*`, names and licences, stand here.
    General,
    /// `general.file_type` stands here.
    FileType,
}

/// The value under one key of a GGUF file.
pub struct Stored<'a> {
    pub(super) meta: &'a Metadata,
    pub(super) family: &'static Family,
    pub(super) key: &'static str,
}
