//! Gemma 1 to 3: norms before and (but for the first) after each part, computed as `x * (1 + w)`; windows on most layers; scaled embeddings;
//! tanh-GELU.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, FOUR_NORMS, HEAD_NORMS, MLP, TWO_NORMS};
use crate::model::config::{Activation, Wiring};
use crate::model::family::{
    Activations, AttnScale, Cap, DEFAULTS, Defaults, EmbeddingScale, Family, HfName, Map, PLAIN_TOKENIZER,
    TokenizerFacts, WindowRule,
};
use crate::model::keys::rows::{self as keys, GEMMA2, LOGIT_CAP_AND_WINDOW, TEXT_MODEL};
use crate::model::role::Role;

const NORMS: &[(Role, Map)] = &[
    (Role::OutputNorm, Map::PlusOne),
    (Role::AttnNorm, Map::PlusOne),
    (Role::PostAttnNorm, Map::PlusOne),
    (Role::FfnNorm, Map::PlusOne),
    (Role::PostFfnNorm, Map::PlusOne),
];

const TWO: &[(Role, Map)] =
    &[(Role::OutputNorm, Map::PlusOne), (Role::AttnNorm, Map::PlusOne), (Role::FfnNorm, Map::PlusOne)];

const NORMS_AND_HEADS: &[(Role, Map)] = &[
    (Role::OutputNorm, Map::PlusOne),
    (Role::AttnNorm, Map::PlusOne),
    (Role::PostAttnNorm, Map::PlusOne),
    (Role::FfnNorm, Map::PlusOne),
    (Role::PostFfnNorm, Map::PlusOne),
    (Role::AttnQNorm, Map::PlusOne),
    (Role::AttnKNorm, Map::PlusOne),
];

const GEMMA: Family = Family {
    maps: NORMS,
    wiring: Wiring { post_norm: true, ..Wiring::SEQUENTIAL },
    // Early configurations say "gelu" in hidden_act; the models compute the tanh form either way.
    activations: Activations {
        key: "hidden_activation",
        names: &[("gelu_pytorch_tanh", Activation::GeluTanh), ("gelu", Activation::GeluTanh)],
        default: Activation::GeluTanh,
    },
    embedding_scale: EmbeddingScale::SqrtHidden,
    towers: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
    tokenizer: TokenizerFacts { no_space_prefix: true, ..PLAIN_TOKENIZER },
    ..PLAIN
};

pub(super) static FAMILIES: &[Family] = &[
    Family {
        gguf: "gemma",
        hf: &[HfName {
            architecture: "GemmaForCausalLM",
            model_type: "gemma",
            defaults: Defaults {
                kv_heads: Some(16),
                head_dim: Some(256),
                states_head_dim: true,
                context: 8192,
                tied: true,
                window: WindowRule::Never,
                ..DEFAULTS
            },
            experts: None,
        }],
        tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
        maps: TWO,
        keys: &[keys::GEMMA],
        wiring: Wiring::SEQUENTIAL,
        // "<end_of_turn>".
        tokenizer: TokenizerFacts { fixed_ids: &[("eot", 107)], no_space_prefix: true, ..PLAIN_TOKENIZER },
        ..GEMMA
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
                window: WindowRule::AllButEvery { every: 2, unstated: Some(4096) },
                ..DEFAULTS
            },
            experts: None,
        }],
        tables: &[ENDS, FOUR_NORMS, ATTENTION, MLP],
        keys: &[GEMMA2],
        attn_softcap: Cap::Default(50.0),
        logit_softcap: Cap::Default(30.0),
        attn_scale: AttnScale::QueryScalar { by_hidden: 46 },
        ..GEMMA
    },
    Family {
        gguf: "gemma3",
        hf: &[
            HfName { architecture: "Gemma3ForCausalLM", model_type: "gemma3_text", defaults: GEMMA3, experts: None },
            HfName {
                architecture: "Gemma3ForConditionalGeneration",
                model_type: "gemma3",
                defaults: GEMMA3,
                experts: None,
            },
        ],
        tables: &[ENDS, FOUR_NORMS, HEAD_NORMS, ATTENTION, MLP],
        maps: NORMS_AND_HEADS,
        keys: &[TEXT_MODEL, LOGIT_CAP_AND_WINDOW],
        attn_softcap: Cap::Stated,
        logit_softcap: Cap::Stated,
        attn_scale: AttnScale::QueryScalar { by_hidden: 62 },
        ..GEMMA
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
    window: WindowRule::AllButEvery { every: 6, unstated: None },
    ..DEFAULTS
};
