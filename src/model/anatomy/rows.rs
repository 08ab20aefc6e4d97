//! One row per architecture, or for several that are alike. Facts from llama.cpp's graphs and transformers' modelling files.

use super::Anatomy;
use super::facts::Facts;
use crate::model::config::{
    Activation, Chosen, Config, Ending, Gate, Gating, Heads, Latent, LayerConfig, Mixer, Mixing, Ngrams, Norm,
    NormNames, Rope, RopeScaling, Streams, Temperature,
};
use crate::{Error, Result};

/// The usual: rotary halves, RMS norms, gated SiLU.
pub(super) const PLAIN: Anatomy = Anatomy {
    gguf: &[],
    without: &[],
    pairs: false,
    halves_in_sections: false,
    rope: true,
    norm: Norm::Rms,
    activation: Activation::Silu,
    parallel: false,
    norms: NormNames::USUAL,
    gating: Gating::Softmax,
    norm_topk: true,
    all_but_every: None,
    full_first: false,
    encodes: false,
    full_rope: true,
    indexer_pairs: true,
    indexer_turns_end: false,
    indexer_eps: 1e-6,
    shares_choice: true,
    layer: |_, _, _| Ok(()),
    finish: |_, _| Ok(()),
};

/// Llama's order of rotary channels.
pub(super) const PAIRS: Anatomy = Anatomy { pairs: true, ..PLAIN };

/// GPT-2's time: LayerNorm, no gate.
const GPT: Anatomy = Anatomy { norm: Norm::Layer, activation: Activation::GeluTanh, ..PLAIN };

/// BERT's line: learnt positions, and norms behind what is added up.
const BERT: Anatomy = Anatomy {
    encodes: true,
    rope: false,
    norm: Norm::Layer,
    activation: Activation::Gelu,
    norms: NormNames::ON_SUMS,
    ..PLAIN
};

/// Command R's line.
const COHERE: Anatomy =
    Anatomy { norm: Norm::Layer, parallel: true, full_rope: false, all_but_every: Some(4), ..PAIRS };

/// Granite's multipliers.
const GRANITE: Anatomy = Anatomy {
    gating: Gating::OfChosen,
    finish: |_, c| {
        c.logit_scale_divides = true;
        Ok(())
    },
    ..PAIRS
};

pub(super) static ALL: &[Anatomy] = &[
    Anatomy { gguf: &["llama", "internlm2", "xverse", "bailingmoe", "ernie4_5"], ..PAIRS },
    Anatomy { gguf: &["llama-embed"], encodes: true, ..PAIRS },
    Anatomy { gguf: &["deepseek"], norm_topk: false, ..PAIRS },
    Anatomy {
        gguf: &["deepseek2-ocr"],
        norm_topk: false,
        // Its files say that nothing is rotated; the whole head is.
        finish: |_, c| {
            let dim = c.layers.iter().find_map(|layer| layer.heads()).map_or(0, |heads| heads.dim);
            c.ropes.iter_mut().for_each(|rope| rope.dims = dim);
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["minicpm"], ..GRANITE },
    Anatomy { gguf: &["plm"], activation: Activation::SquaredRelu, ..PAIRS },
    Anatomy {
        gguf: &["maincoder"],
        layer: |_, _, layer| on_heads(layer, |h| h.peculiar.norm_after_rope = true),
        ..PAIRS
    },
    Anatomy {
        gguf: &["baichuan"],
        // The 13B models, which nothing but the number of layers tells apart, have linear biases and no rotary positions.
        layer: |f, _, layer| {
            let large = f.size("block_count", 0) == Some(40);
            on_heads(layer, |h| {
                if large {
                    (h.rope, h.peculiar.alibi) = (None, Some(8.0));
                }
            })
        },
        finish: |_, c| match c.vocab {
            // Of the second generation.
            125_696 => Err(Error::unsupported("their output matrix is normalised as it is used, which no file says")),
            _ => Ok(()),
        },
        ..PAIRS
    },
    Anatomy {
        gguf: &["deci"],
        layer: |f, index, layer| match layer.mixer == Mixer::None && f.has(index, "attn_output.weight") {
            true => Err(Error::unsupported(format!("layer {index} has a matrix in the place of attention"))),
            false => Ok(()),
        },
        ..PAIRS
    },
    Anatomy {
        gguf: &["nanbeige"],
        finish: |f, _| match f.size("num_loops", 0).unwrap_or(1) {
            1 => Ok(()),
            n => Err(Error::unsupported(format!("their layers are gone through {n} times"))),
        },
        ..PAIRS
    },
    Anatomy { gguf: &["qwen2", "qwen2vl", "qwen3vl", "qwen3vlmoe", "paddleocr", "mellum"], ..PLAIN },
    Anatomy { gguf: &["qwen", "openelm", "pangu-embedded", "phi3"], ..PLAIN },
    Anatomy { gguf: &["orion"], norm: Norm::Layer, ..PLAIN },
    Anatomy { gguf: &["plamo"], parallel: true, ..PLAIN },
    Anatomy {
        gguf: &["plamo3"],
        all_but_every: Some(8),
        // What stretches the context is left out where a layer has a window.
        finish: |_, c| {
            if let [only] = &c.ropes[..] {
                let local = Rope { scaling: RopeScaling::Default, ..only.clone() };
                c.ropes.push(local);
                let slide = c.layers.iter_mut().filter_map(LayerConfig::heads_mut).filter(|h| h.window.is_some());
                slide.for_each(|h| h.rope = h.rope.map(|_| 1));
            }
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["refact"],
        rope: false,
        layer: |_, _, layer| on_heads(layer, |h| h.peculiar.alibi = Some(8.0)),
        ..PLAIN
    },
    Anatomy { gguf: &["maple"], full_rope: false, ..PLAIN },
    Anatomy { gguf: &["spark2_5"], activation: Activation::Gelu, ..PLAIN },
    Anatomy {
        gguf: &["jais"],
        rope: false,
        norm: Norm::Layer,
        layer: |_, _, layer| on_heads(layer, |h| h.scale = 1.0 / h.dim as f32),
        ..PLAIN
    },
    Anatomy { gguf: &["gptneox"], activation: Activation::Gelu, finish: parallel_where_stated, ..GPT },
    Anatomy { gguf: &["gpt2", "starcoder"], without: &["RuGPT3XLForCausalLM"], rope: false, ..GPT },
    Anatomy { gguf: &["phi2"], parallel: true, ..GPT },
    Anatomy { gguf: &["codeshell"], ..GPT },
    Anatomy {
        gguf: &["falcon"],
        activation: Activation::Gelu,
        parallel: true,
        finish: |f, c| {
            let apart = f.has(0, "attn_norm_2.weight");
            let attn = if apart { "attn_norm_2" } else { "attn_norm" };
            c.norms = NormNames { attn, ffn: "attn_norm", ..c.norms };
            Ok(())
        },
        ..GPT
    },
    Anatomy {
        gguf: &["bloom"],
        rope: false,
        layer: |_, _, layer| on_heads(layer, |h| h.peculiar.alibi = Some(8.0)),
        ..GPT
    },
    // DistilBERT's classifier has a ReLU where readers of its files have tanh.
    Anatomy { gguf: &["bert"], without: &["DistilBertForSequenceClassification"], ..BERT },
    // Linear biases by the distance to either side.
    Anatomy { gguf: &["jina-bert-v2"], layer: |_, _, layer| on_heads(layer, |h| h.peculiar.alibi = Some(8.0)), ..BERT },
    Anatomy { gguf: &["nomic-bert"], rope: true, activation: Activation::Silu, ..BERT },
    Anatomy {
        gguf: &["modern-bert"],
        encodes: true,
        full_first: true,
        norm: Norm::Layer,
        activation: Activation::Gelu,
        finish: |_, c| {
            c.scores_by_gelu = true;
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["eurobert"], without: &["JinaEmbeddingsV5Model"], encodes: true, ..PLAIN },
    Anatomy {
        gguf: &["gemma-embedding"],
        encodes: true,
        all_but_every: Some(6),
        activation: Activation::GeluTanh,
        layer: |f, index, layer| {
            let kind = f.said("layer_types").and_then(|v| v.get(index)?.as_str());
            on_heads(layer, |h| {
                if kind == Some("full_attention") {
                    (h.window, h.rope) = (None, Some(0));
                }
            })
        },
        finish: |_, c| {
            c.embedding_scale = (c.hidden as f32).sqrt();
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["mpt"], rope: false, activation: Activation::Gelu, ..GPT },
    Anatomy { gguf: &["jais2", "nemotron"], activation: Activation::SquaredRelu, ..GPT },
    Anatomy {
        gguf: &["olmo"],
        norm: Norm::Layer,
        finish: |_, c| {
            c.weightless_norms = true;
            Ok(())
        },
        ..PAIRS
    },
    Anatomy { gguf: &["command-r"], full_rope: true, all_but_every: None, ..COHERE },
    Anatomy {
        gguf: &["cohere2moe"],
        gating: Gating::Sigmoid,
        layer: |f, index, layer| {
            layer.ffn.experts.iter_mut().for_each(|e| e.routing.averaged = e.shared_ffn.is_some());
            // Those in front without experts have positions, whatever they see.
            let leads = index < f.size("leading_dense_block_count", 0).unwrap_or(0);
            on_heads(layer, |h| h.rope = h.rope.or(leads.then_some(0)))
        },
        ..COHERE
    },
    Anatomy { gguf: &["stablelm"], norm: Norm::Layer, finish: parallel_where_stated, ..PLAIN },
    Anatomy { gguf: &["exaone", "glm4moe", "dots1", "bailingmoe2", "hy_v3"], ..PLAIN },
    Anatomy { gguf: &["exaone4", "exaone-moe"], full_rope: false, ..PLAIN },
    Anatomy { gguf: &["minimax-m2"], gating: Gating::Sigmoid, ..PLAIN },
    Anatomy { gguf: &["chatglm", "glm4"], halves_in_sections: true, ..PAIRS },
    Anatomy { gguf: &["ernie4_5-moe"], ..PAIRS },
    // Beyond the original context it has the long factors of its rotary embedding, as in the publisher's code and in
    // llama.cpp; transformers takes the short ones at any length.
    Anatomy {
        gguf: &["phimoe"],
        norm: Norm::Layer,
        layer: |f, _, layer| {
            let within = f.said_float("router_jitter_noise").unwrap_or(0.01);
            layer.ffn.experts.iter_mut().for_each(|e| e.routing.mixer = Some(within));
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["falcon-h1", "bitnet"], ..PLAIN },
    Anatomy {
        gguf: &["hunyuan-dense", "hunyuan-moe", "hunyuan_vl"],
        layer: |_, _, layer| on_heads(layer, |h| h.peculiar.norm_after_rope = true),
        finish: |f, c| {
            // Alpha stretches the base, where the file has not done so already.
            if let (Some(alpha), Some(rope)) = (f.float("rope.scaling.alpha"), c.ropes.first_mut()) {
                let dims = rope.dims as f32;
                rope.theta *= alpha.powf(dims / (dims - 2.0));
            }
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["apertus"],
        activation: Activation::Xielu { positive: 0.0, negative: 0.0, beta: 0.0, eps: 0.0 },
        layer: |f, index, layer| {
            let of = |key: &str| f.plain_float(key, index).unwrap_or(0.0);
            let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
            let beta = of("xielu.beta");
            let (positive, negative) = (softplus(of("xielu.alpha_p")), beta + softplus(of("xielu.alpha_n")));
            let activation = Activation::Xielu { positive, negative, beta, eps: of("xielu.eps") };
            layer.ffn.dense.iter_mut().for_each(|d| d.activation = activation);
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["gpt-oss"],
        gating: Gating::OfChosen,
        activation: Activation::Clamped { limit: 7.0 },
        all_but_every: Some(2),
        finish: |f, c| {
            let said = f.said_of_rope("truncate").and_then(|v| v.as_bool());
            if let Some(RopeScaling::Yarn { truncate, .. }) = c.ropes.first_mut().map(|rope| &mut rope.scaling) {
                *truncate = said.unwrap_or(false);
            }
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["gemma4"],
        activation: Activation::GeluTanh,
        layer: |_, _, layer| {
            on_heads(layer, |h| {
                h.scale = 1.0;
                h.peculiar.value_norm = true;
            })
        },
        finish: |f, c| {
            c.embedding_scale = (c.hidden as f32).sqrt();
            c.per_layer = f.size("embedding_length_per_layer_input", 0).unwrap_or(0);
            share(c, f.size("attention.shared_kv_layers", 0).unwrap_or(0))
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["gemma3n"],
        activation: Activation::GeluTanh,
        layer: |f, index, layer| {
            let cutoff = f.float_of("activation_sparsity_scale", index).filter(|by| by.is_finite());
            layer.ffn.dense.iter_mut().for_each(|d| d.cutoff = cutoff);
            on_heads(layer, |h| {
                h.scale = 1.0;
                h.peculiar.value_norm = true;
            })
        },
        finish: |f, c| {
            if f.size("altup.active_idx", 0).is_some_and(|active| active != 0) {
                return Err(Error::unsupported("their blocks compute with another stream than the first"));
            }
            let count = f.needed("altup.num_inputs", 0)?.max(1);
            c.streams = Some(Streams { count, eps: c.norm_eps, mixing: Mixing::AltUp });
            c.embedding_scale = (c.hidden as f32).sqrt();
            c.per_layer = f.size("embedding_length_per_layer_input", 0).unwrap_or(0);
            share(c, f.size("attention.shared_kv_layers", 0).unwrap_or(0))
        },
        ..PLAIN
    },
    Anatomy { gguf: &["llama4"], gating: Gating::Sigmoid, norm_topk: false, layer: llama4, ..PAIRS },
    Anatomy { gguf: &["mistral3"], layer: by_position, ..PAIRS },
    Anatomy { gguf: &["granitemoe"], ..GRANITE },
    Anatomy {
        gguf: &["granite_swa"],
        layer: |f, index, layer| {
            let rotates = f.flag_of("attention.rope_pattern", index).unwrap_or(true);
            on_heads(layer, |h| h.rope = h.rope.filter(|_| rotates))
        },
        ..GRANITE
    },
    Anatomy {
        gguf: &["granitehybrid"],
        layer: |f, _, layer| {
            let rotates = f.flag("rope.scaling.finetuned").unwrap_or(true);
            on_heads(layer, |h| h.rope = h.rope.filter(|_| rotates))
        },
        finish: |f, c| {
            // llama.cpp's converter puts all rows of a head into pairs, also where a part of it is rotated (Bamba).
            let turned = f.size("rope.dimension_count", 0).unwrap_or(usize::MAX);
            c.spread_pairs = c.layers.iter().filter_map(|layer| layer.heads()).any(|heads| turned < heads.dim);
            (GRANITE.finish)(f, c)
        },
        ..GRANITE
    },
    Anatomy {
        gguf: &["minimax-01"],
        finish: |f, c| {
            let said = |key: &str| f.said_float(&format!("layernorm_{key}"));
            let parts = ["full_attention", "linear_attention", "mlp"];
            let alphas = parts.map(|part| said(&format!("{part}_alpha")).unwrap_or(c.residual_scale));
            let betas = parts.map(|part| said(&format!("{part}_beta")).unwrap_or(1.0));
            if alphas != [c.residual_scale; 3] || betas != [1.0; 3] {
                return Err(Error::unsupported("their parts are not all added to the stream with the same factors"));
            }
            (c.norm_residual, c.residual_scale) = (Some(c.residual_scale), 1.0);
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["mimo2"], gating: Gating::Sigmoid, ..PLAIN },
    Anatomy {
        gguf: &["laguna"],
        gating: Gating::Sigmoid,
        layer: |f, index, layer| {
            // The first layer of four sees everything, whatever the counts of heads.
            let full = match f.said("layer_types").and_then(|v| v.get(index)?.as_str()) {
                Some(kind) => kind == "full_attention",
                None => index % 4 == 0,
            };
            on_heads(layer, |h| {
                h.peculiar.gate = Gate::Softplus;
                if full {
                    (h.window, h.rope) = (None, Some(0));
                }
            })
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["afmoe"],
        gating: Gating::Sigmoid,
        all_but_every: Some(4),
        full_rope: false,
        finish: |_, c| {
            c.embedding_scale = (c.hidden as f32).sqrt();
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["step35"],
        gating: Gating::Sigmoid,
        finish: |f, c| {
            let limits = ["swiglu_clamp_exp", "swiglu_clamp_shexp"];
            if limits.iter().any(|key| (0..c.layers.len()).any(|i| f.float_of(key, i).is_some_and(|x| x != 0.0))) {
                return Err(Error::unsupported("their experts are clamped in a way that is not supported here"));
            }
            // Where a layer sees everything, half of each head is rotated.
            if let [full, local, ..] = &mut c.ropes[..] {
                (local.dims, full.dims) = (full.dims, full.dims / 2);
            }
            Ok(())
        },
        ..PLAIN
    },
    Anatomy {
        gguf: &["muse-glimmer"],
        full_rope: false,
        finish: |_, c| {
            (c.embedding_unit_norm, c.post_norm_eps) = (true, Some(1e-8));
            Ok(())
        },
        ..PAIRS
    },
    Anatomy { gguf: &["deepseek2"], norm_topk: false, ..PAIRS },
    Anatomy { gguf: &["deepseek32"], indexer_pairs: false, ..PAIRS },
    Anatomy { gguf: &["glm-dsa"], ..PAIRS },
    Anatomy { gguf: &["dots3note"], shares_choice: false, ..PAIRS },
    Anatomy {
        gguf: &["hy_v4"],
        gating: Gating::Sigmoid,
        indexer_pairs: false,
        indexer_turns_end: true,
        finish: |_, c| {
            let eps = c.norm_eps;
            c.layers.iter_mut().for_each(|layer| {
                if let Mixer::Latent(Latent { chosen: Some(Chosen::ByIndexer(indexer)), .. }) = &mut layer.mixer {
                    indexer.norm_eps = eps;
                }
            });
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["kimi-linear", "glm5-next"], rope: false, gating: Gating::Sigmoid, ..PLAIN },
    Anatomy { gguf: &["bailingmoe3"], gating: Gating::Sigmoid, halves_in_sections: true, ..PAIRS },
    Anatomy { gguf: &["mistral4"], layer: by_position, ..PAIRS },
    Anatomy {
        gguf: &["minicpm3"],
        finish: |f, c| {
            // llama.cpp has them as constants of this architecture.
            let said = |key: &str, usual: f32| f.said_float(key).unwrap_or(usual);
            c.embedding_scale = said("scale_emb", 12.0);
            c.residual_scale = said("scale_depth", 1.4) / (c.layers.len() as f32).sqrt();
            c.logit_scale = said("dim_model_base", 256.0) / c.hidden as f32;
            Ok(())
        },
        ..PLAIN
    },
    Anatomy { gguf: &["qwen3next", "qwen35", "qwen35moe"], ..PLAIN },
    Anatomy { gguf: &["qwen4exp"], finish: ngrams, ..PLAIN },
    Anatomy {
        gguf: &["lfm2", "lfm2moe"],
        without: &["Lfm2BidirectionalModel"],
        gating: Gating::Sigmoid,
        finish: |f, c| {
            let class = f.said("architectures").and_then(|all| all.get(0)?.as_str());
            match (class, c.ending) {
                (Some("Lfm2Model"), Ending::Logits) => Err(Error::unsupported("their output is not described")),
                _ => Ok(()),
            }
        },
        ..PLAIN
    },
    Anatomy { gguf: &["mamba", "mamba2", "jamba"], rope: false, norm_topk: false, ..PLAIN },
    Anatomy {
        gguf: &["nemotron_h", "nemotron_h_moe"],
        rope: false,
        gating: Gating::Sigmoid,
        activation: Activation::SquaredRelu,
        layer: |f, _, layer| {
            if let Mixer::Mamba2(mixer) = &mut layer.mixer {
                mixer.least_step = f.said_float("time_step_min").unwrap_or(0.001);
            }
            Ok(())
        },
        ..PLAIN
    },
];

pub(super) fn on_heads(layer: &mut LayerConfig, change: impl FnOnce(&mut Heads)) -> Result<()> {
    if let Some(heads) = layer.heads_mut() {
        change(heads);
    }
    Ok(())
}

fn parallel_where_stated(f: &Facts, c: &mut Config) -> Result<()> {
    let parallel = f.flag("use_parallel_residual").unwrap_or(true);
    c.layers.iter_mut().for_each(|layer| layer.wiring.parallel = parallel);
    Ok(())
}

/// Every fourth layer sees everything, without positions but with queries that grow with them; the others see chunks.
fn llama4(f: &Facts, index: usize, layer: &mut LayerConfig) -> Result<()> {
    let size = |key: &str, usual: usize| f.said(key).and_then(|v| v.as_u64()).map_or(usual, |n| n as usize);
    let listed = f.said("no_rope_layers").and_then(|v| v.get(index)?.as_u64());
    let rotates = listed.map_or(!(index + 1).is_multiple_of(size("no_rope_layer_interval", 4).max(1)), |n| n != 0);
    let tuned = f.said("attn_temperature_tuning").is_none_or(|v| v.as_bool() != Some(false));
    let experts = layer.ffn.experts.as_ref().map(|e| e.count);
    // Of the published models the one with 128 experts has no norms of queries and keys.
    let many = experts.or(f.size("expert_count", 0)) == Some(128);
    let normed = f.said("use_qk_norm").and_then(|v| v.as_bool()).unwrap_or(!many);
    let temperature = Temperature {
        scale: f.said_float("attn_scale").unwrap_or(0.1),
        floor: f.said_float("floor_scale").unwrap_or(8192.0),
        shifted: true,
    };
    layer.ffn.experts.iter_mut().for_each(|e| e.routing.weighs_input = true);
    on_heads(layer, |h| {
        h.rope = h.rope.filter(|_| rotates);
        h.window = rotates.then(|| size("attention_chunk_size", 8192));
        h.peculiar.chunked = rotates;
        h.peculiar.unit_norm = rotates && normed;
        h.peculiar.temperature = (!rotates && tuned).then_some(temperature);
    })
}

/// Queries grow with the position beyond the original context.
fn by_position(f: &Facts, _: usize, layer: &mut LayerConfig) -> Result<()> {
    let beta = f.said_of_rope("llama_4_scaling_beta").and_then(|v| v.as_f64()).map(|x| x as f32);
    let beta = beta.or(f.float("attention.temperature_scale"));
    let original = f.size("rope.scaling.original_context_length", 0);
    let (Some(scale), Some(original)) = (beta.filter(|x| *x != 0.0), original) else { return Ok(()) };
    let rule = Some(Temperature { scale, floor: original as f32, shifted: false });
    match &mut layer.mixer {
        Mixer::Attention(heads) => heads.peculiar.temperature = rule,
        Mixer::Latent(latent) => latent.temperature = rule,
        _ => {}
    }
    Ok(())
}

/// The last `n` layers read the keys and values of the last layer of their kind before them, with a window or without.
fn share(c: &mut Config, n: usize) -> Result<()> {
    let first = c.layers.len().saturating_sub(n);
    let slides = c.slides();
    for index in first..c.layers.len() {
        let source = (0..first).rev().find(|source| slides[*source] == slides[index]);
        let source = source.ok_or_else(|| Error::bad_input(format!("no layer has the keys of layer {index}")))?;
        if let Mixer::Attention(heads) = &mut c.layers[index].mixer {
            heads.peculiar.shared = Some(source);
        }
    }
    Ok(())
}

/// The layer with hashed n-grams.
fn ngrams(f: &Facts, c: &mut Config) -> Result<()> {
    if f.said("output_gate_type").and_then(|v| v.as_str()).is_some_and(|gate| gate != "silu") {
        return Err(Error::unsupported("their delta rule has another gate"));
    }
    if !f.tensors.contains_key("per_layer_token_embd.weight") {
        return Ok(());
    }
    let layers = f.integers("ple.layers");
    let &[layer] = &layers[..] else {
        return Err(Error::unsupported(format!("{} of their layers have n-grams; one is run here", layers.len())));
    };
    let own = Ngrams {
        layer: usize::try_from(layer).unwrap_or(usize::MAX),
        size: f.needed("ple.ngram_size", 0)?,
        heads: f.needed("ple.heads_per_ngram", 0)?,
        width: f.needed("embedding_length_per_layer_input", 0)?,
        end: f.needed("ple.eos_token_id", 0)? as u32,
        multipliers: f.integers("ple.layer_multipliers"),
        offsets: f.integers("ple.head_offsets"),
        sizes: f.integers("ple.head_vocab_sizes"),
    };
    let heads = own.size.saturating_sub(1) * own.heads;
    let sound = (2..=16).contains(&own.size) && own.heads <= 1 << 10 && own.width <= 1 << 16;
    let whole = [own.offsets.len(), own.sizes.len()] == [heads; 2] && own.multipliers.len() == own.size;
    if !sound || !whole || own.sizes.iter().any(|n| *n <= 0) || own.offsets.iter().any(|n| *n < 0) {
        return Err(Error::bad_input("the hashes of n-grams do not fit each other"));
    }
    c.ngrams = Some(own);
    Ok(())
}
