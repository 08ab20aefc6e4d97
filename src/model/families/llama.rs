//! Llama and what is built like it: pre-norm blocks, gated SiLU, grouped heads; Mixtral with experts in the place of the
//! feed-forward block; Arcee; SmolLM3.

use super::plain::PLAIN;
use super::rows::{ATTENTION, ENDS, MIXTRAL_EXPERTS, MLP, TWO_NORMS, UP_DOWN};
use crate::Result;
use crate::model::config::{Activation, LayerConfig};
use crate::model::family::Reading;
use crate::model::family::{
    Activations, ByteLevel, DEFAULTS, Defaults, ExpertKeys, Family, HfName, Map, PLAIN_TOKENIZER, Rotation,
    TokenizerFacts, WindowRule,
};
use crate::model::keys::rows::{TEXT_MODEL, VOCAB_AND_ROTATION, WINDOW_BESIDE};
use crate::model::role::Role;

/// Query and key rows, whose rotary halves GGUF interleaves for these architectures.
pub(super) const PAIRS: &[(Role, Map)] = &[
    (Role::AttnQ, Map::QueryPairs),
    (Role::AttnQBias, Map::QueryPairs),
    (Role::AttnK, Map::KeyPairs),
    (Role::AttnKBias, Map::KeyPairs),
];

/// Defaults as in transformers 5's configuration classes.
pub(super) static FAMILIES: &[Family] = &[LLAMA, MISTRAL3, ARCEE, SMOLLM3];

const LLAMA: Family = Family {
    gguf: "llama",
    hf: &[
        HfName {
            architecture: "LlamaForCausalLM",
            model_type: "llama",
            defaults: Defaults { context: 2048, states_head_dim: true, ..DEFAULTS },
            experts: None,
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
            experts: None,
        },
        HfName {
            architecture: "MixtralForCausalLM",
            model_type: "mixtral",
            defaults: Defaults { kv_heads: Some(8), context: 131_072, norm_eps: 1e-5, theta: 1_000_000.0, ..DEFAULTS },
            experts: Some(ExpertKeys { width: "intermediate_size", shared: None, norm_topk: None }),
        },
    ],
    tables: &[ENDS, TWO_NORMS, ATTENTION, MLP, MIXTRAL_EXPERTS],
    maps: PAIRS,
    rotation: Rotation::Pairs,
    keys: &[TEXT_MODEL, VOCAB_AND_ROTATION, WINDOW_BESIDE],
    norm_topk: true,
    tokenizer: TokenizerFacts {
        byte_level: ByteLevel::SentencePieceFirst,
        states_space_prefix: true,
        by_vocabulary_size: true,
        ..PLAIN_TOKENIZER
    },
    ..PLAIN
};

/// Mistral Small 3.1 and 3.2 in their wrapper of images.
const MISTRAL3: Family = Family {
    gguf: "mistral3",
    hf: &[HfName {
        architecture: "Mistral3ForConditionalGeneration",
        model_type: "mistral3",
        defaults: Defaults {
            kv_heads: Some(8),
            context: 131_072,
            states_head_dim: true,
            window: WindowRule::Every(Some(4096)),
            ..DEFAULTS
        },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
    maps: PAIRS,
    rotation: Rotation::Pairs,
    keys: &[TEXT_MODEL, VOCAB_AND_ROTATION],
    tokenizer: LLAMA.tokenizer,
    ..PLAIN
};

/// Squared ReLU without gate.
const ARCEE: Family = Family {
    gguf: "arcee",
    hf: &[HfName {
        architecture: "ArceeForCausalLM",
        model_type: "arcee",
        defaults: Defaults { context: 4096, norm_eps: 1e-5, states_head_dim: true, ..DEFAULTS },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, ATTENTION, UP_DOWN],
    maps: PAIRS,
    rotation: Rotation::Pairs,
    keys: &[TEXT_MODEL, VOCAB_AND_ROTATION],
    activations: Activations {
        key: "hidden_act",
        names: &[("relu2", Activation::SquaredRelu)],
        default: Activation::SquaredRelu,
    },
    ..PLAIN
};

/// Every fourth layer has no positions, which llama.cpp takes for granted.
const SMOLLM3: Family = Family {
    gguf: "smollm3",
    hf: &[HfName {
        architecture: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        defaults: Defaults {
            kv_heads: Some(4),
            theta: 2_000_000.0,
            tied: true,
            window: WindowRule::Switched,
            ..DEFAULTS
        },
        experts: None,
    }],
    tables: &[ENDS, TWO_NORMS, ATTENTION, MLP],
    maps: PAIRS,
    rotation: Rotation::Pairs,
    keys: &[TEXT_MODEL, VOCAB_AND_ROTATION],
    unstated: |config| {
        let fourth = config.layers.iter_mut().skip(3).step_by(4);
        fourth.filter_map(LayerConfig::heads_mut).for_each(|h| h.rope = None);
    },
    layers: smollm3_layers,
    ..PLAIN
};

fn smollm3_layers(r: &Reading) -> Result<Vec<LayerConfig>> {
    let interval = r.json.size(&["no_rope_layer_interval"])?.unwrap_or(4).max(1);
    let stated = r.json.get("no_rope_layers").and_then(|v| v.as_array());
    r.layers_with(|i, layer| {
        let rotates = match stated.and_then(|list| list.get(i)?.as_u64()) {
            Some(flag) => flag != 0,
            None => (i + 1) % interval != 0,
        };
        layer.heads_mut().filter(|_| !rotates).into_iter().for_each(|h| h.rope = None);
    })
}
