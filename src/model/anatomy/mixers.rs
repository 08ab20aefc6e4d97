//! How a layer mixes tokens, by the tensors that it has.

use super::Anatomy;
use super::facts::Facts;
use crate::model::config::{
    Blocks, ChannelDelta, Chosen, Config, Delta, Gate, Heads, Indexer, Latent, Lightning, Mamba, Mamba2, Mixer,
    Peculiar, Pools, RopeScaling, ShortConv,
};
use crate::{Error, Result};

pub(super) fn of(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<Mixer> {
    let has = |stem: &str| f.has(index, stem);
    let mamba = || f.needed("ssm.inner_size", index);
    if has("shortconv.conv.weight") {
        return Ok(Mixer::ShortConv(ShortConv { kernel: f.needed("shortconv.l_cache", 0)? }));
    }
    if has("ssm_x.weight") {
        return Ok(Mixer::Mamba(Mamba {
            inner: mamba()?,
            state: f.needed("ssm.state_size", 0)?,
            rank: f.needed("ssm.time_step_rank", 0)?,
            kernel: f.needed("ssm.conv_kernel", 0)?,
            unit_norms: f.flag("ssm.dt_b_c_rms").unwrap_or(false),
        }));
    }
    if has("ssm_ba.weight") || has("ssm_alpha.weight") {
        let heads = f.needed("ssm.time_step_rank", 0)?;
        let delta = Delta {
            key_heads: f.needed("ssm.group_count", 0)?,
            value_heads: heads,
            key_dim: f.needed("ssm.state_size", 0)?,
            value_dim: mamba()? / heads.max(1),
            kernel: f.needed("ssm.conv_kernel", 0)?,
            tiled: !has("ssm_ba.weight"),
        };
        let shared = delta.key_heads > 0 && heads.is_multiple_of(delta.key_heads);
        return if shared { Ok(Mixer::Delta(delta)) } else { Err(uneven(heads, delta.key_heads)) };
    }
    if has("ssm_f_a.weight") {
        let dim = f.needed("kda.head_dim", 0)?;
        let rows = f.shape(index, "attn_q.weight").and_then(|shape| shape.first().copied()).unwrap_or(0);
        if dim == 0 || rows == 0 || !rows.is_multiple_of(dim) {
            return Err(uneven(rows, dim));
        }
        let bounded = f.flag("kda.safe_gate").unwrap_or(true);
        return Ok(Mixer::ChannelDelta(ChannelDelta {
            heads: rows / dim,
            dim,
            kernel: f.needed("ssm.conv_kernel", 0)?,
            least_decay: f.float("kda.gate_lower_bound").filter(|_| bounded),
        }));
    }
    if has("ssm_in.weight") {
        return mamba2(f, index);
    }
    if has("attn_kv_a_mqa.weight") {
        return latent(f, row, c, index).map(Mixer::Latent);
    }
    if has("attn_norm_2.weight") && has("attn_gate.weight") {
        return lightning(f, index).map(Mixer::Lightning);
    }
    match has("attn_qkv.weight") || has("attn_q.weight") {
        true => attention(f, row, c, index).map(Mixer::Attention),
        false => Ok(Mixer::None),
    }
}

/// What reads the same beside it: attention beside Mamba-2 (Falcon-H1).
pub(super) fn beside(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<Option<Mixer>> {
    let both = f.has(index, "ssm_in.weight") && f.has(index, "attn_q.weight");
    both.then(|| attention(f, row, c, index).map(Mixer::Attention)).transpose()
}

/// Heads forget by powers of two as in ALiBi, and the more slowly the deeper the layer.
fn lightning(f: &Facts, index: usize) -> Result<Lightning> {
    let heads = f.needed("attention.head_count", index)?;
    if heads == 0 || heads > 1 << 14 {
        return Err(Error::bad_input(format!("{heads} heads")));
    }
    let depth = index as f32 / ((f.needed("block_count", 0)?.max(1) - 1) as f32 + 1e-5);
    let base = (-8.0 / heads as f32).exp2();
    let rates = (1..=heads).map(|head| base.powi(head as i32) * (1.0 - depth + 1e-5)).collect();
    Ok(Lightning { rates, dim: f.needed("attention.key_length", index)? })
}

fn mamba2(f: &Facts, index: usize) -> Result<Mixer> {
    let heads = f.needed("ssm.time_step_rank", 0)?;
    let (inner, groups) = (f.needed("ssm.inner_size", index)?, f.size("ssm.group_count", 0).unwrap_or(1).max(1));
    if !heads.is_multiple_of(groups) || heads == 0 {
        return Err(uneven(heads, groups));
    }
    if !inner.is_multiple_of(heads) {
        return Err(Error::bad_input(format!("{heads} heads cannot share {inner} channels evenly")));
    }
    Ok(Mixer::Mamba2(Mamba2 {
        inner,
        state: f.needed("ssm.state_size", 0)?,
        heads,
        groups,
        kernel: f.needed("ssm.conv_kernel", 0)?,
        least_step: 0.0,
    }))
}

fn uneven(heads: usize, groups: usize) -> Error {
    Error::bad_input(format!("{heads} heads cannot share {groups} evenly"))
}

/// Whether a layer sees a window, and how much.
fn window(f: &Facts, row: &Anatomy, index: usize) -> Option<usize> {
    let window = f.size("attention.sliding_window", index).filter(|n| *n > 0)?;
    let every = |n: usize| !(if row.full_first { index } else { index + 1 }).is_multiple_of(n.max(1));
    let slides = match f.flag_of("attention.sliding_window_pattern", index) {
        Some(slides) => slides,
        None => match f.size("attention.sliding_window_pattern", index).or(row.all_but_every) {
            Some(n) => every(n),
            None => true,
        },
    };
    slides.then_some(window)
}

fn attention(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<Heads> {
    let q = f.needed("attention.head_count", index)?;
    let kv = f.size("attention.head_count_kv", index).unwrap_or(q);
    if q == 0 || kv == 0 || !q.is_multiple_of(kv) || q > 1 << 14 {
        return Err(uneven(q, kv));
    }
    let window = window(f, row, index);
    let local = |key: &str| {
        let own = window.and_then(|_| f.size(&format!("{key}_swa"), index));
        own.or_else(|| f.size(key, index))
    };
    let dim = local("attention.key_length").unwrap_or(c.hidden / q);
    let rope = match window {
        Some(_) if c.ropes.len() > 1 => Some(1),
        None if !row.full_rope && f.size("attention.sliding_window", index).is_some_and(|n| n > 0) => None,
        _ => (!c.ropes.is_empty()).then_some(0),
    };
    let wide = f.shape(index, "attn_q.weight").is_some_and(|shape| shape.first() == Some(&(2 * q * dim)));
    let gate = match wide {
        true => Gate::InQuery,
        false if f.has(index, "attn_gate.weight") => Gate::Sigmoid,
        false => Gate::None,
    };
    Ok(Heads {
        q,
        kv,
        dim,
        value_dim: local("attention.value_length").unwrap_or(dim),
        window,
        rope,
        scale: f.float("attention.scale").filter(|x| *x != 0.0).unwrap_or(1.0 / (dim as f32).sqrt()),
        softcap: f.float("attn_logit_softcapping"),
        qkv_bias: f.has(index, "attn_q.bias"),
        output_bias: f.has(index, "attn_output.bias"),
        peculiar: Peculiar {
            gate,
            chosen: plain_indexer(f, row, c, index)?,
            alibi: f.float("attention.max_alibi_bias").filter(|x| *x > 0.0),
            clamp: f.float("attention.clamp_kqv").filter(|x| *x > 0.0),
            value_scale: f.float("attention.value_scale").filter(|x| *x != 1.0),
            ..Peculiar::default()
        },
    })
}

fn latent(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<Latent> {
    let heads = f.needed("attention.head_count", index)?;
    let window = window(f, row, index);
    // Layers with a window may have another shape (dots 3).
    let local = |key: &str| {
        let own = window.and_then(|_| f.size(&format!("{key}_swa"), index));
        own.or_else(|| f.size(key, index))
    };
    let rank = local("attention.kv_lora_rank");
    let rank = rank.map_or_else(|| f.needed("attention.kv_lora_rank", index), Ok)?;
    let rotated = f.needed("rope.dimension_count", 0)?;
    let head = match local("attention.key_length_mla") {
        Some(n) => n,
        None => f.needed("attention.key_length", index)?,
    };
    let nope = head.saturating_sub(rotated);
    // The whole matrix of keys and values tells the width of values where no key does.
    let rows = f.shape(index, "attn_kv_b.weight").and_then(|shape| shape.first().copied());
    let value_dim = local("attention.value_length_mla");
    let value_dim = value_dim.or_else(|| Some((rows? / heads.max(1)).saturating_sub(nope)));
    let value_dim = value_dim.filter(|n| *n > 0);
    let value_dim = value_dim.ok_or_else(|| Error::bad_input("nothing says how wide values are"))?;
    if heads == 0 || nope == 0 || heads > 1 << 14 {
        return Err(Error::bad_input(format!("{heads} heads of {head}, of which {rotated} are rotated")));
    }
    // What yarn multiplies scores by (DeepSeek-V2): the square of `0.1 · mscale · ln(factor) + 1`.
    let scale = match (f.float("rope.scaling.yarn_log_multiplier"), c.rope().map(|rope| &rope.scaling)) {
        (Some(log), Some(RopeScaling::Yarn { factor, .. })) if *factor > 1.0 => (log * factor.ln() + 1.0).powi(2),
        _ => 1.0,
    };
    Ok(Latent {
        heads,
        nope,
        rotated,
        value_dim,
        rank,
        rope: (row.rope && rotated > 0 && !c.ropes.is_empty()).then_some(match window {
            Some(_) if c.ropes.len() > 1 => 1,
            _ => 0,
        }),
        scale: scale / (head as f32).sqrt(),
        temperature: None,
        window,
        chosen: chosen(f, row, index, rotated)?,
    })
}

/// An indexer beside plain attention, which ranks groups of positions by their mean keys (Qwen3.8-Flash-Next).
fn plain_indexer(f: &Facts, row: &Anatomy, c: &Config, index: usize) -> Result<Option<Indexer>> {
    if !f.has(index, "indexer.q_proj.weight") {
        return Ok(None);
    }
    let dim = f.needed("attention.indexer.key_length", 0)?;
    let blocks = f.size("attention.indexer.block_size", 0);
    let size = blocks.map_or_else(|| f.needed("attention.compress_ratios", index), Ok)?;
    let rotated = c.rope().map_or(0, |rope| rope.dims);
    if dim < rotated || size == 0 {
        return Err(Error::bad_input(format!("an indexer turns {rotated} of {dim} channels of groups of {size}")));
    }
    let (heads, top) = (f.needed("attention.indexer.head_count", 0)?, f.needed("attention.indexer.top_k", 0)?);
    let kv = f.size("attention.head_count_kv", index).unwrap_or(heads);
    if blocks.is_some() && heads != kv {
        return Err(uneven(heads, kv));
    }
    Ok(Some(Indexer {
        heads,
        dim,
        rotated,
        at_end: false,
        pairs: row.pairs,
        top: top.max(if blocks.is_some() { 1 } else { size }),
        pools: blocks.is_none().then_some(Pools { size, tail: true }),
        blocks: blocks.map(|size| Blocks { size, local: f.size("attention.indexer.local_blocks", 0).unwrap_or(0) }),
        plain: blocks.is_none(),
        norm_eps: c.norm_eps,
    }))
}

/// Which positions are read, where an indexer chooses.
fn chosen(f: &Facts, row: &Anatomy, index: usize, rotated: usize) -> Result<Option<Chosen>> {
    if !f.has(index, "indexer.attn_q_b.weight") {
        let shares = f.size("attention.indexer.top_k", 0).is_some()
            && f.flag_of("attention.indexer.types", index) == Some(false);
        return Ok((shares && row.shares_choice).then_some(Chosen::AsBefore));
    }
    let dim = f.needed("attention.indexer.key_length", 0)?;
    let rotated = if row.rope { rotated } else { 0 };
    if dim < rotated {
        return Err(Error::bad_input(format!("an indexer turns {rotated} of {dim} channels")));
    }
    let size = f.size("attention.indexer.kpool", 0).filter(|n| *n > 1);
    let tail = f.flag("attention.indexer.kpool_select_tail").unwrap_or(true);
    Ok(Some(Chosen::ByIndexer(Indexer {
        heads: f.needed("attention.indexer.head_count", 0)?,
        dim,
        rotated,
        at_end: row.indexer_turns_end,
        pairs: row.indexer_pairs,
        top: f.needed("attention.indexer.top_k", 0)?.max(1),
        pools: size.map(|size| Pools { size, tail }),
        blocks: None,
        plain: false,
        norm_eps: row.indexer_eps,
    })))
}
