//! How models without a family are run: a configuration from the metadata of a GGUF file and the names and shapes of its
//! tensors, or from what a blueprint makes of a folder. An [`Anatomy`] says per architecture what neither tells, as
//! llama.cpp's graphs and transformers' modelling files have it. What a layer has is told by its tensors; one that is not
//! known here is a reason not to run the model.

mod diffusion;
mod facts;
mod mixers;
mod mixtures;
mod rows;

use crate::gguf::Metadata;
use crate::model::blueprint;
use crate::model::config::{
    Activation, Config, Dense, Ending, Experts, Ffn, Gating, LayerConfig, Mixer, Mixing, Norm, NormNames, Pooling,
    Rope, RopeScaling, Routing, Streams, Wiring, yarn_attention_factor,
};
use crate::model::tensor::{Generated, MappedTensor};
use crate::{Error, Result};
use facts::Facts;

/// What nothing in a file tells of an architecture.
#[derive(Clone, Copy)]
pub(super) struct Anatomy {
    /// `general.architecture`.
    pub gguf: &'static [&'static str],
    /// Classes among its that do not run.
    pub without: &'static [&'static str],
    /// Rotary channels are neighbours, not half a head apart.
    pub pairs: bool,
    /// But half a head apart where the head has sections for images.
    pub halves_in_sections: bool,
    /// Attention has rotary positions.
    pub rope: bool,
    pub norm: Norm,
    pub activation: Activation,
    pub parallel: bool,
    pub norms: NormNames,
    pub gating: Gating,
    /// Weights of the chosen experts sum to 1 where no key says so.
    pub norm_topk: bool,
    /// Which layers see a window where no key says so: all but every n-th.
    pub all_but_every: Option<usize>,
    /// It is the first of every n layers that sees everything, not the last.
    pub full_first: bool,
    /// Every token sees all others, and there is no head.
    pub encodes: bool,
    /// Whether layers that see everything have rotary positions where others have a window.
    pub full_rope: bool,
    /// How indexers of sparse attention turn their channels: as neighbours, and those at the end of a head.
    pub indexer_pairs: bool,
    pub indexer_turns_end: bool,
    pub indexer_eps: f32,
    /// Layers without an indexer, where others have one, read what the last one before chose.
    pub shares_choice: bool,
    /// What else there is to say, layer by layer.
    pub layer: fn(&Facts, usize, &mut LayerConfig) -> Result<()>,
    pub finish: fn(&Facts, &mut Config) -> Result<()>,
}

fn all() -> impl Iterator<Item = &'static Anatomy> {
    rows::ALL.iter().chain(mixtures::ALL).chain(diffusion::ALL)
}

/// The row of an architecture.
pub(super) fn find(arch: &str) -> Option<&'static Anatomy> {
    all().find(|row| row.gguf.contains(&arch))
}

/// Whether models of a class that becomes `arch` are run.
pub(super) fn runs(arch: &str, class: &str) -> bool {
    find(arch).is_some_and(|row| !row.without.contains(&class))
}

/// The tensors that a layer may have, without `blk.N.` and their last part.
const KNOWN: &[&str] = &[
    "attn_norm",
    "attn_norm_2",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "attn_output_norm",
    "layer_output_norm",
    "attn_q_norm",
    "attn_k_norm",
    "attn_sinks",
    "attn_sub_norm",
    "attn_gate",
    "attn_q_a",
    "attn_q_b",
    "attn_q_a_norm",
    "attn_kv_a_mqa",
    "attn_kv_a_norm",
    "attn_kv_b",
    "attn_k_b",
    "attn_v_b",
    "post_attention_norm",
    "ffn_norm",
    "ffn_sub_norm",
    "post_ffw_norm",
    "post_ffw_norm_1",
    "post_ffw_norm_2",
    "pre_ffw_norm_2",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_inp",
    "exp_probs_b",
    "ffn_norm_exps",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_up_exps",
    "ffn_latent_down",
    "ffn_latent_up",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ffn_gate_inp_shexp",
    "layer_output_scale",
    "ssm_in",
    "ssm_conv1d",
    "ssm_x",
    "ssm_dt",
    "ssm_dt_norm",
    "ssm_b_norm",
    "ssm_c_norm",
    "ssm_a",
    "ssm_d",
    "ssm_norm",
    "ssm_out",
    "ssm_ba",
    "ssm_alpha",
    "ssm_beta",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "ssm_f_a",
    "ssm_f_b",
    "ssm_g_a",
    "ssm_g_b",
    "shortconv",
    "indexer",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "hc_attn_fn",
    "hc_attn_base",
    "hc_attn_scale",
    "hc_ffn_fn",
    "hc_ffn_base",
    "hc_ffn_scale",
    "hc_attn_norm",
    "hc_attn_down",
    "hc_attn_up",
    "hc_attn_inject",
    "hc_ffn_norm",
    "hc_ffn_down",
    "hc_ffn_up",
    "hc_ffn_inject",
    "ple_key",
    "ple_value",
    "ple_norm_key",
    "ple_norm_query",
    "ple_norm_conv",
    "ple_conv1d",
    "altup_router",
    "altup_router_norm",
    "altup_predict_coef",
    "altup_correct_coef",
    "altup_correct_scale",
    "laurel_l",
    "laurel_r",
    "laurel_post_norm",
    "inp_gate",
    "proj",
    "post_norm",
];

/// The same of no layer.
const ENDS: &[&str] = &[
    "token_embd",
    "token_embd_norm",
    "token_types",
    "cls",
    "position_embd",
    "dense_2",
    "dense_3",
    "output",
    "output_norm",
    "rope_freqs",
    "rope_factors_long",
    "rope_factors_short",
    "per_layer_token_embd",
    "per_layer_model_proj",
    "per_layer_proj_norm",
    "altup_proj",
    "altup_unembd_proj",
    "output_hc_norm",
    "output_hc_down",
    "output_hc_up",
    "output_hc_fn",
    "output_hc_base",
    "output_hc_scale",
];

/// The configuration of a model of architecture `arch`, with its vocabulary as the embedding has it. `json` is the
/// `config.json` of a folder.
///
/// # Errors
/// `Unsupported` for what the reference inference does not know; `BadInput` for keys that are missing or absurd.
pub(super) fn config(
    meta: &Metadata,
    arch: &str,
    tensors: &[MappedTensor],
    generated: &[Generated],
    json: Option<&serde_json::Value>,
) -> Result<Config> {
    let no = |what: String| Error::unsupported(format!("{arch} models are not run here: {what}"));
    let row = find(arch).ok_or_else(|| no("their architecture has no forward pass".into()))?;
    let f = Facts::new(meta, arch, tensors, generated, json);
    if let Some(class) = json.and_then(blueprint::class).filter(|class| row.without.contains(class)) {
        return Err(no(format!("{class} computes something else")));
    }
    // Of few architectures the file says it.
    let row = &Anatomy { activation: stated(&f).map_err(no)?.unwrap_or(row.activation), ..*row };
    let ending = ending(&f, row).map_err(no)?;
    let both_ways = f.flag("attention.causal").map_or(row.encodes, |causal| !causal);
    if both_ways && ending == Ending::Logits {
        return Err(no("every token sees the ones after it".into()));
    }
    let said = ["hidden_act", "hidden_activation", "activation_function"].iter().find_map(|key| f.said(key)?.as_str());
    if let Some(said) = said.filter(|said| !agrees(row.activation, said)) {
        return Err(no(format!("their activation would be '{said}'")));
    }
    let blocks = f.needed("block_count", 0)?;
    let trunk = blocks.saturating_sub(f.size("nextn_predict_layers", 0).unwrap_or(0));
    if trunk == 0 || trunk > 1 << 12 {
        return Err(Error::bad_input(format!("{trunk} layers")));
    }
    for t in tensors {
        let (known, stem) = match t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, _)) if layer.parse().is_ok_and(|layer: usize| layer >= trunk) => continue,
            Some((_, stem)) => (KNOWN, stem),
            None => (ENDS, t.name.as_str()),
        };
        if !known.contains(&stem.split_once('.').map_or(stem, |(stem, _)| stem)) {
            return Err(no(format!("nothing is known of the tensor '{}'", t.name)));
        }
    }
    let embedding = f.tensors.get("token_embd.weight").filter(|shape| shape.len() == 2);
    let embedding = embedding.ok_or_else(|| no("they have no matrix of embeddings".into()))?;
    let eps = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"];
    let eps = if row.norm == Norm::Layer { [eps[1], eps[0]] } else { eps };
    let mut config = Config {
        arch: arch.to_string(),
        hidden: f.needed("embedding_length", 0)?,
        ffn: f.size("feed_forward_length", 0).unwrap_or(0),
        vocab: embedding[0],
        context: f.size("context_length", 0).unwrap_or(2048).max(1),
        norm: row.norm,
        norm_eps: eps.iter().find_map(|key| f.float(key)).unwrap_or(1e-5),
        ropes: ropes(&f, row, trunk)?,
        tied_embeddings: !f.tensors.contains_key("output.weight"),
        logit_softcap: f.float("final_logit_softcapping"),
        embedding_scale: f.float("embedding_scale").unwrap_or(1.0),
        residual_scale: f.float("residual_scale").unwrap_or(1.0),
        logit_scale: f.float("logit_scale").unwrap_or(1.0),
        norms: row.norms,
        // Sections of the head are rotated by positions in images too, and then as halves.
        pairs: row.pairs && !(row.halves_in_sections && f.size("rope.dimension_sections", 0).is_some()),
        ending,
        ..Config::default()
    };
    if config.hidden != embedding[1] {
        return Err(Error::bad_input(format!(
            "embeddings of {}, and a hidden size of {}",
            embedding[1], config.hidden
        )));
    }
    for index in 0..trunk {
        let mut layer = layer(&f, row, &config, index)?;
        layer.heads_mut().into_iter().for_each(|heads| heads.peculiar.both_ways = both_ways);
        config.layers.push(layer);
    }
    let past = |layer: &LayerConfig| !matches!(layer.mixer, Mixer::Attention(_) | Mixer::None);
    if both_ways && config.layers.iter().any(past) {
        return Err(no("every token sees the ones after it, in layers that are not attention".into()));
    }
    // A block with one norm behind its attention has it in front of the feed-forward part.
    let alone = f.has(0, "post_attention_norm.weight") && !f.has(0, "ffn_norm.weight");
    if alone && !f.has(0, "post_ffw_norm.weight") {
        config.norms = NormNames { ffn: "post_attention_norm", post_attn: "", ..config.norms };
    }
    if let Some(count) = f.size("hyper_connection.count", 0) {
        let mixing = match (f.size("hyper_connection.sinkhorn_iterations", 0), f.float("hyper_connection.magnitude")) {
            _ if f.tensors.contains_key("output_hc_up.weight") => Mixing::Gated,
            (Some(rounds), _) => Mixing::Sinkhorn { rounds },
            (None, magnitude) => Mixing::Apart { magnitude: magnitude.unwrap_or(2.0) },
        };
        let eps = f.float("hyper_connection.epsilon").unwrap_or(1e-6);
        config.streams = Some(Streams { count, eps, mixing });
    }
    (row.finish)(&f, &mut config)?;
    config.check()?;
    Ok(config)
}

/// Whether there is a head, or how the vectors of tokens become those of a text. Where no key says it, the mean of all
/// tokens is taken, as sentence-transformers does; or each token's vector where a dense layer waits for it.
fn ending(f: &Facts, row: &Anatomy) -> Result<Ending, String> {
    let (has, said) = (|name: &str| f.tensors.contains_key(name), f.size("classifier.pooling_type", 0));
    if row.encodes && has("cls.output.weight") {
        return Ok(Ending::Vectors(if said == Some(1) { Pooling::Mean } else { Pooling::First }));
    }
    if has("cls.weight") || has("cls.output.weight") {
        return Err("their classifier has no last layer, or stands behind no encoder".into());
    }
    let each = has("dense_2.weight") && !row.encodes;
    match f.size("pooling_type", 0).map(|n| n as u64) {
        Some(n) => match Pooling::of_gguf(n) {
            Some(pooling) => Ok(Ending::Vectors(pooling)),
            None => Err("their vectors are ranked by a head that has no forward pass".into()),
        },
        None if each => Ok(Ending::Vectors(Pooling::Each)),
        None if row.encodes => Ok(Ending::Vectors(Pooling::Mean)),
        None => Ok(Ending::Logits),
    }
}

/// The activation that the metadata names.
fn stated(f: &Facts) -> Result<Option<Activation>, String> {
    let known = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::SquaredRelu];
    let Some(name) = f.text("hidden_activation") else { return Ok(None) };
    match known.into_iter().find(|activation| agrees(*activation, name)) {
        Some(activation) => Ok(Some(activation)),
        None => Err(format!("their activation would be '{name}'")),
    }
}

/// Whether the activation that `config.json` names is that of the architecture, where it is one of the usual.
fn agrees(activation: Activation, said: &str) -> bool {
    match activation {
        Activation::Silu => ["silu", "swish", "swiglu"].contains(&said),
        Activation::Gelu => said == "gelu",
        Activation::GeluTanh => said.starts_with("gelu_"),
        Activation::Relu => said == "relu",
        Activation::SquaredRelu => said == "relu2",
        _ => true,
    }
}

fn layer(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<LayerConfig> {
    let mixer = mixers::of(f, row, c, index)?;
    let beside = mixers::beside(f, row, c, index)?;
    let wiring = Wiring { pre_norm: true, post_norm: true, parallel: row.parallel };
    let mut layer = LayerConfig { mixer, beside, ffn: Ffn::default(), wiring };
    if let Some(&[_, width]) = f.shape(index, "ffn_down.weight") {
        let wide = f.shape(index, "ffn_up.weight").is_some_and(|up| up.first() == Some(&(2 * width)));
        let gated = f.has(index, "ffn_gate.weight") || wide;
        let bias = f.has(index, "ffn_down.bias");
        layer.ffn.dense = Some(Dense { width, gated, activation: row.activation, bias, cutoff: None });
    }
    if let Some(&[count, _, width]) = f.shape(index, "ffn_down_exps.weight") {
        let shared = f.shape(index, "ffn_down_shexp.weight").and_then(|shape| shape.last().copied());
        let gating = match f.size("expert_gating_func", 0) {
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::OfChosen,
            Some(4) => Gating::SqrtSoftplus,
            _ => row.gating,
        };
        let routing = Routing {
            gating,
            groups: f.size("expert_group_count", 0).unwrap_or(0),
            groups_used: f.size("expert_group_used_count", 0).unwrap_or(0),
            scale: f.float("expert_weights_scale").filter(|x| *x != 0.0 && *x != 1.0),
            ..Routing::default()
        };
        if routing.groups > 1 && !count.is_multiple_of(routing.groups) {
            return Err(Error::bad_input(format!("{count} experts in {} groups", routing.groups)));
        }
        layer.ffn.experts = Some(Experts {
            count,
            used: f.needed("expert_used_count", index)?,
            ffn: width,
            shared_ffn: shared,
            norm_topk: f.flag("expert_weights_norm").unwrap_or(row.norm_topk),
            activation: row.activation,
            shared_activation: None,
            routing,
        });
    }
    clamp(f, index, &mut layer.ffn);
    (row.layer)(f, index, &mut layer)?;
    if layer.mixer == Mixer::None && layer.ffn == Ffn::default() {
        return Err(Error::unsupported(format!("layer {index} mixes tokens in a way that is not known")));
    }
    Ok(layer)
}

/// Activations that are cut off, where keys say so: of experts, and of shared experts and dense blocks.
fn clamp(f: &Facts, index: usize, ffn: &mut Ffn) {
    let limit = |key: &str| f.float_of(key, index).filter(|x| *x > 0.0).map(|limit| Activation::ClampedSilu { limit });
    let (experts, others) = (limit("swiglu_clamp_exp"), limit("swiglu_clamp_shexp"));
    if let Some(own) = &mut ffn.experts {
        own.shared_activation = experts.or(others).map(|_| others.unwrap_or(own.activation));
        own.activation = experts.unwrap_or(own.activation);
    }
    if let (Some(own), Some(others)) = (&mut ffn.dense, others) {
        own.activation = others;
    }
}

/// The rotary embeddings: that of all layers, or of those that see everything; and that of layers with a window, where it
/// is another.
fn ropes(f: &Facts, row: &Anatomy, layers: usize) -> Result<Vec<Rope>> {
    if !row.rope {
        return Ok(Vec::new());
    }
    let head = |key: &str| f.size(key, 0);
    let by_hidden = || f.size("embedding_length", 0).unwrap_or(0) / first_heads(f, layers).max(1);
    let dim = head("attention.key_length").unwrap_or_else(by_hidden);
    let dims = f.size("rope.dimension_count", 0).unwrap_or(dim);
    let theta = f.float("rope.freq_base").unwrap_or(10_000.0);
    let first = Rope { theta, dims, scaling: scaling(f)? };
    let own = (f.float("rope.freq_base_swa"), f.size("rope.dimension_count_swa", 0));
    let local = (own != (None, None)).then(|| Rope {
        theta: own.0.unwrap_or(theta),
        dims: own.1.unwrap_or(dims),
        scaling: RopeScaling::Default,
    });
    Ok(std::iter::once(first).chain(local).collect())
}

/// Heads of the first layer that has some.
fn first_heads(f: &Facts, layers: usize) -> usize {
    (0..layers).find_map(|i| f.size("attention.head_count", i).filter(|n| *n > 0)).unwrap_or(0)
}

fn scaling(f: &Facts) -> Result<RopeScaling> {
    let original = || f.size("rope.scaling.original_context_length", 0);
    let factor = f.float("rope.scaling.factor").filter(|x| *x > 0.0);
    let factors = f.tensors.get("rope_factors_long.weight");
    if let Some(shape) = factors {
        let said = |key: &str| f.said(key).and_then(|v| v.as_u64()).map(|n| n as usize);
        let context = said("original_max_position_embeddings").or_else(original);
        // The values are tensors, which are read when the model is loaded.
        let one = vec![1.0; shape.iter().product()];
        return Ok(RopeScaling::LongRope {
            short: one.clone(),
            long: one,
            original_context: context.or(f.size("context_length", 0)).unwrap_or(4096),
            attention_factor: f.float("rope.scaling.attn_factor"),
        });
    }
    let said = |key: &str| f.said_of_rope(key).and_then(|v| v.as_f64()).map(|x| x as f32).filter(|x| *x != 0.0);
    // Two scales of which one is undone where scores are scaled (DeepSeek-V2).
    let by_scales = |factor: f32| match (said("mscale"), said("mscale_all_dim")) {
        (Some(a), Some(b)) => Some(yarn_attention_factor(factor, a, b)),
        _ => f.float("rope.scaling.yarn_log_multiplier").map(|_| 1.0),
    };
    match (f.text("rope.scaling.type"), factor) {
        (Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => Ok(RopeScaling::Yarn {
            factor,
            original_context: f.needed("rope.scaling.original_context_length", 0)?,
            attention_factor: f.float("rope.scaling.yarn_attn_factor").or_else(|| by_scales(factor)),
            beta_fast: f.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            beta_slow: f.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            truncate: f.said_of_rope("truncate").and_then(|v| v.as_bool()).unwrap_or(true),
        }),
        _ => Ok(RopeScaling::Default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::blueprint;

    #[test]
    fn every_row_is_of_an_architecture_with_a_blueprint_and_of_no_other_rows() {
        let mut seen = std::collections::HashSet::new();
        for arch in all().flat_map(|row| row.gguf) {
            assert!(seen.insert(arch), "{arch} twice");
            assert!(blueprint::all().any(|b| b.gguf == *arch), "{arch} has no blueprint");
        }
    }
}
