//! The tensors of a GGUF file that a configuration promises, and what a sequence takes beside them, where no weights are there
//! to tell: for plans. A test compares the tensors with those of real conversions.

use super::{Blueprint, Hparams};
use crate::model::hf_json::{missing, wrong};
use crate::{Error, Result};

/// Bytes that the keys, values and recurrent states of a sequence take, keys and values in 16 bits and states in 32.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    /// By token of context, of layers that see all of it.
    pub per_token: u64,
    /// Whatever the length: recurrent states, and layers with a window, at their longest.
    pub fixed: u64,
}

/// The sizes that tensors are made of here. No layer of a model is wider than a million.
const WIDTHS: [&str; 28] = [
    "hidden_size",
    "vocab_size",
    "vocab_size_per_layer_input",
    "hidden_size_per_layer_input",
    "intermediate_size",
    "moe_intermediate_size",
    "expert_intermediate_size",
    "shared_expert_intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "head_dim",
    "global_head_dim",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "sliding_window",
];

/// Tensors under construction, and what they follow from.
pub(in crate::model) struct Shapes<'a> {
    pub h: &'a Hparams,
    pub tensors: Vec<(String, Vec<usize>)>,
    pub cache: Cache,
    /// Blocks that `config.json` counts, and those behind them (multi-token prediction).
    pub blocks: usize,
    pub more: usize,
    hidden: usize,
    block: usize,
}

/// Tensors by name, outermost dimension first, and the cache.
pub(in crate::model) type Promised = (Vec<(String, Vec<usize>)>, Cache);

/// # Errors
/// `BadInput` for a configuration that lacks a size. `None` for an architecture whose tensors do not follow from it here.
pub(in crate::model) fn promised(blueprint: &Blueprint, h: &Hparams) -> Result<Option<Promised>> {
    let Some(shapes) = blueprint.shapes else { return Ok(None) };
    for key in WIDTHS {
        if let Some(wide) = h.get(key).filter(|v| v.as_u64().is_some_and(|n| n > 1 << 20)) {
            return Err(wrong(key, wide, "a plausible size"));
        }
    }
    let more = (blueprint.more_blocks)(h, &mut std::iter::empty());
    let (blocks, hidden) = (h.blocks()?.min(1 << 12), h.hidden()?);
    let mut s =
        Shapes { h, tensors: Vec::new(), cache: Cache::default(), blocks, more: more.min(64), hidden, block: 0 };
    shapes(&mut s)?;
    let weights = |shape: &[usize]| shape.iter().map(|n| *n as u128).product::<u128>();
    if s.tensors.iter().map(|(_, shape)| weights(shape)).sum::<u128>() > 1 << 50 {
        return Err(Error::bad_input("config.json: the sizes make a model larger than any"));
    }
    Ok(Some((s.tensors, s.cache)))
}

impl Shapes<'_> {
    fn whole(&mut self, name: &str, shape: &[usize]) {
        self.tensors.push((name.into(), shape.to_vec()));
    }

    fn put(&mut self, stem: &str, shape: &[usize]) {
        self.tensors.push((format!("blk.{}.{stem}", self.block), shape.to_vec()));
    }

    fn norms(&mut self, stems: &[&str]) {
        let width = self.hidden;
        stems.iter().for_each(|stem| self.put(&format!("{stem}.weight"), &[width]));
    }

    /// Embeddings, output and the norm before it.
    fn ends(&mut self, tied: bool) -> Result<()> {
        let (vocab, hidden) = (self.h.need("vocab_size")?, self.hidden);
        let is_tied = self.h.get("tie_word_embeddings").and_then(serde_json::Value::as_bool).unwrap_or(tied);
        if !is_tied {
            self.whole("output.weight", &[vocab, hidden]);
        }
        self.whole("token_embd.weight", &[vocab, hidden]);
        self.whole("output_norm.weight", &[hidden]);
        Ok(())
    }

    /// Keys and values of a layer of so many channels each, which sees `window` tokens, or all.
    fn cached(&mut self, channels: usize, window: Option<usize>) {
        let bytes = 2 * channels as u64;
        match window {
            Some(window) => self.cache.fixed += bytes * window as u64,
            None => self.cache.per_token += bytes,
        }
    }

    /// Attention of `heads` and `kv` heads of `dim` channels; rows of the query are `times` as many.
    fn attention(&mut self, heads: usize, kv: usize, dim: usize, times: usize, biased: bool) {
        let hidden = self.hidden;
        for (stem, rows) in [("attn_q", times * heads * dim), ("attn_k", kv * dim), ("attn_v", kv * dim)] {
            self.put(&format!("{stem}.weight"), &[rows, hidden]);
            if biased {
                self.put(&format!("{stem}.bias"), &[rows]);
            }
        }
        self.put("attn_output.weight", &[hidden, heads * dim]);
    }

    fn qk_norms(&mut self, q: usize, k: usize) {
        self.put("attn_q_norm.weight", &[q]);
        self.put("attn_k_norm.weight", &[k]);
    }

    fn dense(&mut self, width: usize) {
        self.feed_forward("", width);
    }

    fn feed_forward(&mut self, end: &str, width: usize) {
        let hidden = self.hidden;
        self.put(&format!("ffn_gate{end}.weight"), &[width, hidden]);
        self.put(&format!("ffn_up{end}.weight"), &[width, hidden]);
        self.put(&format!("ffn_down{end}.weight"), &[hidden, width]);
    }

    fn experts(&mut self, n: usize, width: usize) {
        let hidden = self.hidden;
        self.put("ffn_gate_inp.weight", &[n, hidden]);
        self.put("ffn_gate_exps.weight", &[n, width, hidden]);
        self.put("ffn_up_exps.weight", &[n, width, hidden]);
        self.put("ffn_down_exps.weight", &[n, hidden, width]);
    }

    /// What a block of multi-token prediction has beyond a layer; `own_ends`: embeddings and a head of its own.
    fn nextn(&mut self, own_ends: bool) -> Result<()> {
        let (vocab, hidden) = (self.h.need("vocab_size")?, self.hidden);
        self.put("nextn.eh_proj.weight", &[hidden, 2 * hidden]);
        self.norms(&["nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"]);
        if own_ends {
            self.put("nextn.embed_tokens.weight", &[vocab, hidden]);
            self.put("nextn.shared_head_head.weight", &[vocab, hidden]);
        }
        Ok(())
    }

    /// Whether layer `i` does what `layer_types` call so; `other` where there are none.
    fn is(&self, i: usize, ty: &str, other: bool) -> bool {
        let types = self.h.list("layer_types");
        types.map_or(other, |list| list.get(i).and_then(|v| v.as_str()) == Some(ty))
    }
}

/// Qwen3-VL's text models: the dense one, and the mixture.
pub(in crate::model) fn qwen3(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim) = (h.heads()?, h.kv_heads()?, h.head_dim()?);
    let experts = h.size_of(&["num_experts", "num_local_experts"])?.filter(|n| *n > 0);
    s.ends(false)?;
    for block in 0..s.blocks {
        s.block = block;
        s.norms(&["attn_norm", "ffn_norm"]);
        s.attention(heads, kv, dim, 1, false);
        s.qk_norms(dim, dim);
        s.cached(2 * kv * dim, None);
        match experts {
            Some(n) => s.experts(n, h.need("moe_intermediate_size")?),
            None => s.dense(h.need("intermediate_size")?),
        }
    }
    Ok(())
}

/// Qwen2-VL's and 2.5's text models.
pub(in crate::model) fn qwen2(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim, width) = (h.heads()?, h.kv_heads()?, h.head_dim()?, h.need("intermediate_size")?);
    s.ends(false)?;
    for block in 0..s.blocks {
        s.block = block;
        s.norms(&["attn_norm", "ffn_norm"]);
        s.attention(heads, kv, dim, 1, true);
        s.cached(2 * kv * dim, None);
        s.dense(width);
    }
    Ok(())
}

/// Qwen3.5, dense and mixtures.
pub(in crate::model) fn qwen35(s: &mut Shapes) -> Result<()> {
    let more = s.h.size("mtp_num_hidden_layers")?.unwrap_or(0);
    delta(s, more.min(64), false)
}

/// Qwen3-Next. Its configuration does not count the layer of multi-token prediction that it has.
pub(in crate::model) fn qwen3_next(s: &mut Shapes) -> Result<()> {
    delta(s, 1, true)
}

/// Gated delta nets, and every so many layers full attention with a gate.
fn delta(s: &mut Shapes, more: usize, fused: bool) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim, hidden) = (h.heads()?, h.kv_heads()?, h.head_dim()?, s.hidden);
    let (k_heads, v_heads) = (h.need("linear_num_key_heads")?, h.need("linear_num_value_heads")?);
    let (k_dim, v_dim) = (h.need("linear_key_head_dim")?, h.need("linear_value_head_dim")?);
    let (kernel, inner) = (h.need("linear_conv_kernel_dim")?, v_heads * v_dim);
    let mixed = 2 * k_heads * k_dim + inner;
    let every = h.size("full_attention_interval")?.unwrap_or(4).max(1);
    let experts = h.size("num_experts")?.filter(|n| *n > 0);
    s.ends(false)?;
    for block in 0..s.blocks + more {
        s.block = block;
        s.norms(&["attn_norm", "post_attention_norm"]);
        if block >= s.blocks || s.is(block, "full_attention", (block + 1).is_multiple_of(every)) {
            s.attention(heads, kv, dim, 2, false);
            s.qk_norms(dim, dim);
            // Layers of multi-token prediction have caches of their own, in the draft's context.
            if block < s.blocks {
                s.cached(2 * kv * dim, None);
            }
        } else {
            s.put("attn_qkv.weight", &[mixed, hidden]);
            s.put("attn_gate.weight", &[inner, hidden]);
            s.put("ssm_a", &[v_heads]);
            s.put("ssm_dt.bias", &[v_heads]);
            s.put("ssm_conv1d.weight", &[mixed, kernel]);
            s.put("ssm_norm.weight", &[v_dim]);
            s.put("ssm_out.weight", &[hidden, inner]);
            if fused {
                s.put("ssm_ba.weight", &[2 * v_heads, hidden]);
            } else {
                s.put("ssm_alpha.weight", &[v_heads, hidden]);
                s.put("ssm_beta.weight", &[v_heads, hidden]);
            }
            s.cache.fixed += 4 * (v_heads * k_dim * v_dim + kernel.saturating_sub(1) * mixed) as u64;
        }
        match experts {
            Some(n) => {
                s.experts(n, h.need("moe_intermediate_size")?);
                s.feed_forward("_shexp", h.need("shared_expert_intermediate_size")?);
                s.put("ffn_gate_inp_shexp.weight", &[1, hidden]);
            }
            None => s.dense(h.need("intermediate_size")?),
        }
        if block >= s.blocks {
            s.nextn(false)?;
        }
    }
    Ok(())
}

pub(in crate::model) fn gpt_oss(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim, hidden) = (h.heads()?, h.kv_heads()?, h.head_dim()?, s.hidden);
    let (n, width) = (h.need("num_local_experts")?, h.need("intermediate_size")?);
    let window = h.size("sliding_window")?;
    s.ends(false)?;
    for block in 0..s.blocks {
        s.block = block;
        s.norms(&["attn_norm", "post_attention_norm"]);
        s.attention(heads, kv, dim, 1, true);
        s.put("attn_output.bias", &[hidden]);
        s.put("attn_sinks.weight", &[heads]);
        s.experts(n, width);
        s.put("ffn_gate_inp.bias", &[n]);
        s.put("ffn_gate_exps.bias", &[n, width]);
        s.put("ffn_up_exps.bias", &[n, width]);
        s.put("ffn_down_exps.bias", &[n, hidden]);
        let slides = s.is(block, "sliding_attention", block.is_multiple_of(2));
        s.cached(2 * kv * dim, window.filter(|_| slides));
    }
    Ok(())
}

/// GLM-4.5 and what is built like it.
pub(in crate::model) fn glm_moe(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim) = (h.heads()?, h.kv_heads()?, h.head_dim()?);
    let (n, width) = (h.need("n_routed_experts")?, h.need("moe_intermediate_size")?);
    let (first, shared) = (h.size("first_k_dense_replace")?.unwrap_or(0), h.size("n_shared_experts")?.unwrap_or(0));
    let biased = h.flag("attention_bias");
    s.ends(false)?;
    for block in 0..s.blocks + s.more {
        s.block = block;
        s.norms(&["attn_norm", "post_attention_norm"]);
        s.attention(heads, kv, dim, 1, biased);
        if h.flag("use_qk_norm") {
            s.qk_norms(dim, dim);
        }
        if block < first {
            s.dense(h.need("intermediate_size")?);
        } else {
            s.experts(n, width);
            s.put("exp_probs_b.bias", &[n]);
            s.feed_forward("_shexp", shared * width);
        }
        match block < s.blocks {
            true => s.cached(2 * kv * dim, None),
            false => s.nextn(true)?,
        }
    }
    Ok(())
}

/// Latent attention with experts or without: DeepSeek-V2 and V3, Kimi, Moonlight, GLM-4.7-Flash, Youtu.
pub(in crate::model) fn latent(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, hidden, rank) = (h.heads()?, s.hidden, h.need("kv_lora_rank")?);
    let (nope, rope, value) = (h.need("qk_nope_head_dim")?, h.need("qk_rope_head_dim")?, h.need("v_head_dim")?);
    let experts = h.size("n_routed_experts")?.filter(|n| *n > 0);
    let first = if experts.is_some() { h.size("first_k_dense_replace")?.unwrap_or(0) } else { usize::MAX };
    let corrected = h.str("topk_method").is_none_or(|method| method == "noaux_tc");
    s.ends(false)?;
    for block in 0..s.blocks + s.more {
        s.block = block;
        s.norms(&["attn_norm", "ffn_norm"]);
        s.put("attn_kv_a_norm.weight", &[rank]);
        s.put("attn_kv_a_mqa.weight", &[rank + rope, hidden]);
        s.put("attn_k_b.weight", &[heads, rank, nope]);
        s.put("attn_v_b.weight", &[heads, value, rank]);
        s.put("attn_output.weight", &[hidden, heads * value]);
        match h.size("q_lora_rank")? {
            Some(low) => {
                s.put("attn_q_a_norm.weight", &[low]);
                s.put("attn_q_a.weight", &[low, hidden]);
                s.put("attn_q_b.weight", &[heads * (nope + rope), low]);
            }
            None => s.put("attn_q.weight", &[heads * (nope + rope), hidden]),
        }
        match experts.filter(|_| block >= first) {
            Some(n) => {
                let width = h.need("moe_intermediate_size")?;
                s.experts(n, width);
                if corrected {
                    s.put("exp_probs_b.bias", &[n]);
                }
                s.feed_forward("_shexp", width * h.size("n_shared_experts")?.unwrap_or(0));
            }
            None => s.dense(h.need("intermediate_size")?),
        }
        // Values are a part of what is kept for keys.
        match block < s.blocks {
            true => s.cached(rank + rope, None),
            false => s.nextn(true)?,
        }
    }
    Ok(())
}

pub(in crate::model) fn minimax(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, kv, dim) = (h.heads()?, h.kv_heads()?, h.head_dim()?);
    let (n, width) = (h.need("num_local_experts")?, h.need("intermediate_size")?);
    s.ends(false)?;
    for block in 0..s.blocks {
        s.block = block;
        s.norms(&["attn_norm", "ffn_norm"]);
        s.attention(heads, kv, dim, 1, false);
        s.qk_norms(heads * dim, kv * dim);
        s.experts(n, width);
        s.put("exp_probs_b.bias", &[n]);
        s.cached(2 * kv * dim, None);
    }
    Ok(())
}

/// Gemma 4: dense, with experts beside, and with embeddings for every layer.
pub(in crate::model) fn gemma4(s: &mut Shapes) -> Result<()> {
    let h = s.h;
    let (heads, hidden, local) = (h.heads()?, s.hidden, h.head_dim()?);
    let full = h.full_head()?.min(1 << 20);
    let keys_are_values = h.flag("attention_k_eq_v");
    let shared_from = s.blocks.saturating_sub(h.size("num_kv_shared_layers")?.unwrap_or(0));
    let each = h.size("hidden_size_per_layer_input")?.filter(|n| *n > 0);
    let window = h.size("sliding_window")?.ok_or_else(|| missing("sliding_window"))?;
    let experts = h.size("num_experts")?.filter(|_| h.flag("enable_moe_block"));
    s.ends(true)?;
    if let Some(each) = each {
        let vocab = h.size_of(&["vocab_size_per_layer_input", "vocab_size"])?.unwrap_or(0);
        s.whole("per_layer_token_embd.weight", &[vocab, each * s.blocks]);
        s.whole("per_layer_model_proj.weight", &[each * s.blocks, hidden]);
        s.whole("per_layer_proj_norm.weight", &[each]);
    }
    for block in 0..s.blocks {
        s.block = block;
        let slides = s.is(block, "sliding_attention", !(block + 1).is_multiple_of(6));
        let dim = if slides { local } else { full };
        let global = h.size("num_global_key_value_heads")?.or_else(|| h.of_full_layers("num_key_value_heads"));
        let global = global.filter(|_| !slides && keys_are_values).map(|n| n.min(1 << 20));
        let kv = global.map_or_else(|| h.kv_heads(), Ok)?;
        s.norms(&["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"]);
        s.put("layer_output_scale.weight", &[1]);
        s.put("attn_q.weight", &[heads * dim, hidden]);
        s.put("attn_q_norm.weight", &[dim]);
        s.put("attn_output.weight", &[hidden, heads * dim]);
        let shares = block >= shared_from;
        if !shares {
            s.put("attn_k.weight", &[kv * dim, hidden]);
            s.put("attn_k_norm.weight", &[dim]);
            if slides || !keys_are_values {
                s.put("attn_v.weight", &[kv * dim, hidden]);
            }
            s.cached(2 * kv * dim, Some(window).filter(|_| slides));
        }
        let wide = shares && h.flag("use_double_wide_mlp");
        s.dense(h.need("intermediate_size")? * if wide { 2 } else { 1 });
        if let Some(each) = each {
            s.put("inp_gate.weight", &[each, hidden]);
            s.put("proj.weight", &[hidden, each]);
            s.norms(&["post_norm"]);
        }
        if let Some(n) = experts {
            let width = h.size_of(&["moe_intermediate_size", "expert_intermediate_size"])?;
            let width = width.ok_or_else(|| missing("moe_intermediate_size"))?;
            s.put("ffn_gate_inp.weight", &[n, hidden]);
            s.put("ffn_gate_inp.scale", &[hidden]);
            s.put("ffn_gate_up_exps.weight", &[n, 2 * width, hidden]);
            s.put("ffn_down_exps.weight", &[n, hidden, width]);
            s.put("ffn_down_exps.scale", &[n]);
            s.norms(&["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"]);
        }
    }
    Ok(())
}
