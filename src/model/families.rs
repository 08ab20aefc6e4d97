//! Model families as rows of data: which Hugging Face names belong together, which tensors a model of the family has,
//! what each one means, and which tensor feeds which. Adding a family is adding a row here and a test. It holds no
//! arithmetic and reads no file. Sources of the facts: transformers' configuration and modelling files, gguf-py's
//! `tensor_mapping.py`, llama.cpp's conversion scripts and loaders.

use super::config::Config;
pub use super::role::Role;

/// A size that the configuration decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    Vocab,
    Hidden,
    Ffn,
    /// Gate and up together.
    TwoFfn,
    /// `heads * head_dim`.
    Q,
    /// `kv_heads * head_dim`.
    Kv,
    /// Query, key and value rows together.
    Qkv,
    HeadDim,
    Experts,
    ExpertFfn,
    SharedFfn,
    One,
}

impl Dim {
    pub fn of(self, c: &Config) -> usize {
        let experts = c.experts.as_ref();
        match self {
            Dim::Vocab => c.vocab,
            Dim::Hidden => c.hidden,
            Dim::Ffn => c.ffn,
            Dim::TwoFfn => 2 * c.ffn,
            Dim::Q => c.heads * c.head_dim,
            Dim::Kv => c.kv_heads * c.head_dim,
            Dim::Qkv => (c.heads + 2 * c.kv_heads) * c.head_dim,
            Dim::HeadDim => c.head_dim,
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
    QkvBias,
    AttnOutputBias,
    MlpBias,
    Dense,
    Moe,
    SharedExpert,
}

impl When {
    pub fn holds(self, c: &Config) -> bool {
        match self {
            When::Always => true,
            When::Untied => !c.tied_embeddings,
            When::QkvBias => c.bias.qkv,
            When::AttnOutputBias => c.bias.attn_output,
            When::MlpBias => c.bias.mlp && c.experts.is_none(),
            When::Dense => c.experts.is_none(),
            When::Moe => c.experts.is_some(),
            When::SharedExpert => c.experts.as_ref().is_some_and(|e| e.shared_ffn.is_some()),
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

/// `from` produces what the linear layers `into` read, so a factor on `from`'s output channels can be undone in their
/// input columns. Roles that a model lacks are skipped. Out of a fused matrix it is the last part that feeds: the
/// value rows of [`Role::AttnQkv`], the up rows of [`Role::FfnGateUp`]. With fewer key-value heads than heads, one
/// value channel feeds several columns of the attention output.
#[derive(Debug)]
pub struct Feed {
    pub from: Role,
    pub into: &'static [Role],
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
    AllButEvery(usize),
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
    pub tied: bool,
    pub window: WindowRule,
}

const DEFAULTS: Defaults = Defaults {
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
    tied: false,
    window: WindowRule::Every(None),
};

/// One spelling of a family on the Hub.
#[derive(Debug)]
pub struct HfName {
    pub architecture: &'static str,
    pub model_type: &'static str,
    pub defaults: Defaults,
}

/// A model family.
#[derive(Debug)]
pub struct Family {
    /// GGUF `general.architecture`.
    pub gguf: &'static str,
    pub hf: &'static [HfName],
    /// The tensor table, in groups that families share.
    pub tables: &'static [&'static [Row]],
    pub feeds: &'static [Feed],
    /// GGUF keeps query and key rows in interleaved rotary order, Hugging Face in two halves (llama).
    pub interleaved_rope: bool,
    /// Added to every norm weight, because the model computes `x * (1 + w)` (gemma).
    pub norm_add: f32,
    /// `sqrt(hidden)` on embeddings, `query_pre_attn_scalar` on scores, tanh-GELU.
    pub gemma: bool,
    /// Query, key and value have biases whatever the configuration says (qwen2, qwen2_moe).
    pub qkv_bias: bool,
    /// Weights of the chosen experts sum to 1, where `config.json` has no say or GGUF does not store it.
    pub norm_topk: bool,
}

impl Family {
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> + use<> {
        self.tables.iter().flat_map(|t| t.iter())
    }

    /// The row of `role`, if the family has it.
    pub fn row(&self, role: Role) -> Option<&'static Row> {
        self.rows().find(|r| r.role == role)
    }
}

/// Finds a family by `architectures[0]` and, failing that, by `model_type`.
pub fn by_hf(architecture: Option<&str>, model_type: Option<&str>) -> Option<(&'static Family, &'static HfName)> {
    let all = || FAMILIES.iter().flat_map(|f| f.hf.iter().map(move |h| (f, h)));
    match architecture {
        Some(name) => all().find(|(_, h)| h.architecture == name),
        None => all().find(|(_, h)| Some(h.model_type) == model_type),
    }
}

pub fn by_gguf(arch: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.gguf == arch)
}

/// The supported `architectures` names, for messages.
pub fn supported() -> String {
    let names: Vec<_> = FAMILIES.iter().flat_map(|f| f.hf.iter().map(|h| h.architecture)).collect();
    names.join(", ")
}

use Dim::*;
use Source::{Half, One as At, PerExpert};

const fn row(sources: &'static [Source], gguf: &'static str, role: Role, shape: &'static [Dim], when: When) -> Row {
    Row { sources, gguf, role, shape, when }
}

macro_rules! rows {
    ($name:ident: $($when:ident $role:ident $gguf:literal [$($dim:ident),*] <- $($source:expr),+;)*) => {
        const $name: &[Row] = &[$(row(&[$($source),+], $gguf, Role::$role, &[$($dim),*], When::$when)),*];
    };
}

rows! { ENDS:
    Untied Output         "output.weight"      [Vocab, Hidden] <- At("lm_head.weight");
    Always TokenEmbedding "token_embd.weight"  [Vocab, Hidden] <- At("model.embed_tokens.weight");
    Always OutputNorm     "output_norm.weight" [Hidden]        <- At("model.norm.weight");
}

rows! { TWO_NORMS:
    Always AttnNorm "blk.{layer}.attn_norm.weight" [Hidden] <- At("model.layers.{layer}.input_layernorm.weight");
    Always FfnNorm  "blk.{layer}.ffn_norm.weight"  [Hidden] <- At("model.layers.{layer}.post_attention_layernorm.weight");
}

rows! { FOUR_NORMS:
    Always AttnNorm     "blk.{layer}.attn_norm.weight"           [Hidden] <- At("model.layers.{layer}.input_layernorm.weight");
    Always PostAttnNorm "blk.{layer}.post_attention_norm.weight" [Hidden] <- At("model.layers.{layer}.post_attention_layernorm.weight");
    Always FfnNorm      "blk.{layer}.ffn_norm.weight"            [Hidden] <- At("model.layers.{layer}.pre_feedforward_layernorm.weight");
    Always PostFfnNorm  "blk.{layer}.post_ffw_norm.weight"       [Hidden] <- At("model.layers.{layer}.post_feedforward_layernorm.weight");
}

rows! { ATTENTION:
    Always         AttnQ          "blk.{layer}.attn_q.weight"      [Q, Hidden]  <- At("model.layers.{layer}.self_attn.q_proj.weight");
    Always         AttnK          "blk.{layer}.attn_k.weight"      [Kv, Hidden] <- At("model.layers.{layer}.self_attn.k_proj.weight");
    Always         AttnV          "blk.{layer}.attn_v.weight"      [Kv, Hidden] <- At("model.layers.{layer}.self_attn.v_proj.weight");
    Always         AttnOutput     "blk.{layer}.attn_output.weight" [Hidden, Q]  <- At("model.layers.{layer}.self_attn.o_proj.weight");
    QkvBias        AttnQBias      "blk.{layer}.attn_q.bias"        [Q]          <- At("model.layers.{layer}.self_attn.q_proj.bias");
    QkvBias        AttnKBias      "blk.{layer}.attn_k.bias"        [Kv]         <- At("model.layers.{layer}.self_attn.k_proj.bias");
    QkvBias        AttnVBias      "blk.{layer}.attn_v.bias"        [Kv]         <- At("model.layers.{layer}.self_attn.v_proj.bias");
    AttnOutputBias AttnOutputBias "blk.{layer}.attn_output.bias"   [Hidden]     <- At("model.layers.{layer}.self_attn.o_proj.bias");
}

rows! { FUSED_ATTENTION:
    Always AttnQkv    "blk.{layer}.attn_qkv.weight"    [Qkv, Hidden] <- At("model.layers.{layer}.self_attn.qkv_proj.weight");
    Always AttnOutput "blk.{layer}.attn_output.weight" [Hidden, Q]   <- At("model.layers.{layer}.self_attn.o_proj.weight");
}

rows! { HEAD_NORMS:
    Always AttnQNorm "blk.{layer}.attn_q_norm.weight" [HeadDim] <- At("model.layers.{layer}.self_attn.q_norm.weight");
    Always AttnKNorm "blk.{layer}.attn_k_norm.weight" [HeadDim] <- At("model.layers.{layer}.self_attn.k_norm.weight");
}

rows! { MLP:
    Dense   FfnGate     "blk.{layer}.ffn_gate.weight" [Ffn, Hidden] <- At("model.layers.{layer}.mlp.gate_proj.weight");
    Dense   FfnUp       "blk.{layer}.ffn_up.weight"   [Ffn, Hidden] <- At("model.layers.{layer}.mlp.up_proj.weight");
    Dense   FfnDown     "blk.{layer}.ffn_down.weight" [Hidden, Ffn] <- At("model.layers.{layer}.mlp.down_proj.weight");
    MlpBias FfnGateBias "blk.{layer}.ffn_gate.bias"   [Ffn]         <- At("model.layers.{layer}.mlp.gate_proj.bias");
    MlpBias FfnUpBias   "blk.{layer}.ffn_up.bias"     [Ffn]         <- At("model.layers.{layer}.mlp.up_proj.bias");
    MlpBias FfnDownBias "blk.{layer}.ffn_down.bias"   [Hidden]      <- At("model.layers.{layer}.mlp.down_proj.bias");
}

rows! { FUSED_MLP:
    Always FfnGateUp "blk.{layer}.ffn_up.weight"   [TwoFfn, Hidden] <- At("model.layers.{layer}.mlp.gate_up_proj.weight");
    Always FfnDown   "blk.{layer}.ffn_down.weight" [Hidden, Ffn]    <- At("model.layers.{layer}.mlp.down_proj.weight");
}

rows! { MIXTRAL_EXPERTS:
    Moe Router     "blk.{layer}.ffn_gate_inp.weight"  [Experts, Hidden] <-
        At("model.layers.{layer}.block_sparse_moe.gate.weight"), At("model.layers.{layer}.mlp.gate.weight");
    Moe ExpertGate "blk.{layer}.ffn_gate_exps.weight" [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 0);
    Moe ExpertDown "blk.{layer}.ffn_down_exps.weight" [Experts, Hidden, ExpertFfn] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"),
        At("model.layers.{layer}.mlp.experts.down_proj");
    Moe ExpertUp   "blk.{layer}.ffn_up_exps.weight"   [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 1);
}

rows! { QWEN_EXPERTS:
    Moe Router     "blk.{layer}.ffn_gate_inp.weight"  [Experts, Hidden] <- At("model.layers.{layer}.mlp.gate.weight");
    Moe ExpertDown "blk.{layer}.ffn_down_exps.weight" [Experts, Hidden, ExpertFfn] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"),
        At("model.layers.{layer}.mlp.experts.down_proj");
    Moe ExpertGate "blk.{layer}.ffn_gate_exps.weight" [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 0);
    Moe ExpertUp   "blk.{layer}.ffn_up_exps.weight"   [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 1);
}

rows! { SHARED_EXPERT:
    SharedExpert SharedRouter "blk.{layer}.ffn_gate_inp_shexp.weight" [One, Hidden] <-
        At("model.layers.{layer}.mlp.shared_expert_gate.weight");
    SharedExpert SharedGate "blk.{layer}.ffn_gate_shexp.weight" [SharedFfn, Hidden] <-
        At("model.layers.{layer}.mlp.shared_expert.gate_proj.weight");
    SharedExpert SharedUp "blk.{layer}.ffn_up_shexp.weight" [SharedFfn, Hidden] <-
        At("model.layers.{layer}.mlp.shared_expert.up_proj.weight");
    SharedExpert SharedDown "blk.{layer}.ffn_down_shexp.weight" [Hidden, SharedFfn] <-
        At("model.layers.{layer}.mlp.shared_expert.down_proj.weight");
}

const FEEDS: &[Feed] = &[
    Feed { from: Role::AttnNorm, into: &[Role::AttnQ, Role::AttnK, Role::AttnV] },
    Feed { from: Role::AttnV, into: &[Role::AttnOutput] },
    Feed {
        from: Role::FfnNorm,
        into: &[
            Role::FfnGate,
            Role::FfnUp,
            Role::Router,
            Role::ExpertGate,
            Role::ExpertUp,
            Role::SharedRouter,
            Role::SharedGate,
            Role::SharedUp,
        ],
    },
    Feed { from: Role::FfnUp, into: &[Role::FfnDown] },
    Feed { from: Role::ExpertUp, into: &[Role::ExpertDown] },
    Feed { from: Role::SharedUp, into: &[Role::SharedDown] },
];

const FUSED_FEEDS: &[Feed] = &[
    Feed { from: Role::AttnNorm, into: &[Role::AttnQkv] },
    Feed { from: Role::AttnQkv, into: &[Role::AttnOutput] },
    Feed { from: Role::FfnNorm, into: &[Role::FfnGateUp] },
    Feed { from: Role::FfnGateUp, into: &[Role::FfnDown] },
];

const PLAIN: Family = Family {
    gguf: "",
    hf: &[],
    tables: &[],
    feeds: FEEDS,
    interleaved_rope: false,
    norm_add: 0.0,
    gemma: false,
    qkv_bias: false,
    norm_topk: false,
};

/// Every supported family. Defaults as in transformers 5's configuration classes.
pub static FAMILIES: &[Family] = &[
    Family {
        gguf: "llama",
        hf: &[
            HfName {
                architecture: "LlamaForCausalLM",
                model_type: "llama",
                defaults: Defaults { context: 2048, states_head_dim: true, ..DEFAULTS },
            },
            HfName {
                architecture: "MistralForCausalLM",
                model_type: "mistral",
                defaults: Defaults {
                    kv_heads: Some(8),
                    context: 131_072,
                    states_head_dim: true,
                    window: WindowRule::Every(Some(4096)),
                    ..DEFAULTS
                },
            },
            HfName {
                architecture: "MixtralForCausalLM",
                model_type: "mixtral",
                defaults: Defaults {
                    kv_heads: Some(8),
                    context: 131_072,
                    norm_eps: 1e-5,
                    theta: 1_000_000.0,
                    ..DEFAULTS
                },
            },
        ],
        tables: &[ENDS, TWO_NORMS, ATTENTION, MLP, MIXTRAL_EXPERTS],
        interleaved_rope: true,
        norm_topk: true,
        ..PLAIN
    },
    Family {
        gguf: "qwen2",
        hf: &[HfName {
            architecture: "Qwen2ForCausalLM",
            model_type: "qwen2",
            defaults: Defaults { kv_heads: Some(32), window: WindowRule::Late, ..DEFAULTS },
        }],
        tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
        qkv_bias: true,
        ..PLAIN
    },
    Family {
        gguf: "qwen2moe",
        hf: &[HfName {
            architecture: "Qwen2MoeForCausalLM",
            model_type: "qwen2_moe",
            defaults: Defaults { kv_heads: Some(16), window: WindowRule::EarlyAlternate, ..DEFAULTS },
        }],
        tables: &[ENDS, TWO_NORMS, ATTENTION, QWEN_EXPERTS, SHARED_EXPERT],
        qkv_bias: true,
        ..PLAIN
    },
    Family {
        gguf: "qwen3",
        hf: &[HfName {
            architecture: "Qwen3ForCausalLM",
            model_type: "qwen3",
            defaults: Defaults {
                kv_heads: Some(32),
                head_dim: Some(128),
                states_head_dim: true,
                window: WindowRule::Late,
                ..DEFAULTS
            },
        }],
        tables: &[ENDS, TWO_NORMS, HEAD_NORMS, ATTENTION, MLP],
        ..PLAIN
    },
    Family {
        gguf: "qwen3moe",
        hf: &[HfName {
            architecture: "Qwen3MoeForCausalLM",
            model_type: "qwen3_moe",
            defaults: Defaults { kv_heads: Some(4), window: WindowRule::Switched, ..DEFAULTS },
        }],
        tables: &[ENDS, TWO_NORMS, HEAD_NORMS, ATTENTION, QWEN_EXPERTS],
        norm_topk: true,
        ..PLAIN
    },
    Family {
        gguf: "phi3",
        hf: &[HfName {
            architecture: "Phi3ForCausalLM",
            model_type: "phi3",
            defaults: Defaults { context: 4096, norm_eps: 1e-5, ..DEFAULTS },
        }],
        tables: &[ENDS, TWO_NORMS, FUSED_ATTENTION, FUSED_MLP],
        feeds: FUSED_FEEDS,
        ..PLAIN
    },
    Family {
        gguf: "gemma2",
        hf: &[HfName {
            architecture: "Gemma2ForCausalLM",
            model_type: "gemma2",
            defaults: Defaults {
                kv_heads: Some(4),
                head_dim: Some(256),
                states_head_dim: true,
                context: 8192,
                tied: true,
                window: WindowRule::AllButEvery(2),
                ..DEFAULTS
            },
        }],
        tables: &[ENDS, FOUR_NORMS, ATTENTION, MLP],
        norm_add: 1.0,
        gemma: true,
        ..PLAIN
    },
    Family {
        gguf: "gemma3",
        hf: &[
            HfName { architecture: "Gemma3ForCausalLM", model_type: "gemma3_text", defaults: GEMMA3 },
            HfName { architecture: "Gemma3ForConditionalGeneration", model_type: "gemma3", defaults: GEMMA3 },
        ],
        tables: &[ENDS, FOUR_NORMS, HEAD_NORMS, ATTENTION, MLP],
        norm_add: 1.0,
        gemma: true,
        ..PLAIN
    },
];

/// The image-and-text configurations on the Hub leave most of these out.
const GEMMA3: Defaults = Defaults {
    hidden: Some(2304),
    ffn: Some(9216),
    layers: Some(26),
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    states_head_dim: true,
    vocab: Some(262_208),
    context: 131_072,
    theta: 1_000_000.0,
    theta_local: Some(10_000.0),
    tied: true,
    window: WindowRule::AllButEvery(6),
    ..DEFAULTS
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_names_on_both_sides_that_agree_on_the_layer() {
        for family in FAMILIES {
            let mut seen = std::collections::HashSet::new();
            for row in family.rows() {
                assert!(seen.insert(row.gguf), "{} lists {} twice", family.gguf, row.gguf);
                for source in row.sources {
                    let (Source::One(name) | Source::PerExpert(name) | Source::Half(name, _)) = source;
                    assert_eq!(name.contains("{layer}"), row.per_layer(), "{name}");
                    assert_eq!(name.contains("{expert}"), matches!(source, Source::PerExpert(_)), "{name}");
                }
                assert_eq!(row.gguf.ends_with(".bias"), row.role.is_bias());
            }
        }
    }

    #[test]
    fn feeds_name_roles_of_the_family_and_reach_every_linear_layer() {
        for family in FAMILIES {
            for row in family.rows().filter(|r| r.role.is_linear()) {
                let fed = family.feeds.iter().any(|f| f.into.contains(&row.role) && family.row(f.from).is_some());
                assert!(fed, "nothing feeds {:?} in {}", row.role, family.gguf);
            }
        }
    }

    #[test]
    fn spellings_are_unique() {
        let mut names = std::collections::HashSet::new();
        for name in FAMILIES.iter().flat_map(|f| f.hf) {
            assert!(names.insert(name.architecture) && names.insert(name.model_type));
        }
        assert_eq!(by_hf(None, Some("mixtral")).map(|(f, _)| f.gguf), Some("llama"));
        assert!(by_hf(Some("BertModel"), Some("llama")).is_none());
    }
}
