//! Types, lengths and values that llama.cpp's loader demands of keys which most architectures share: a key of another type
//! than it reads ends the loading (`GKV::get_kv`), and so do arrays by layer of another length and numbers out of range.

use crate::gguf::{Array, Metadata, Value};

/// What is read as what; `{}` stands for the architecture.
const TYPES: &[(&str, &[&str])] = &[
    ("str", &["general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre", "{}.rope.scaling.type"]),
    (
        "bool",
        &[
            "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_eos_token",
            "tokenizer.ggml.add_sep_token",
            "tokenizer.ggml.add_space_prefix",
            "tokenizer.ggml.remove_extra_whitespaces",
            "tokenizer.ggml.normalizer.lowercase",
            "{}.rope.scaling.finetuned",
            "{}.attention.causal",
        ],
    ),
    (
        "u32",
        &[
            "general.file_type",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.eot_token_id",
            "tokenizer.ggml.eom_token_id",
            "tokenizer.ggml.unknown_token_id",
            "tokenizer.ggml.seperator_token_id",
            "tokenizer.ggml.padding_token_id",
            "tokenizer.ggml.mask_token_id",
            "tokenizer.ggml.prefix_token_id",
            "tokenizer.ggml.suffix_token_id",
            "tokenizer.ggml.middle_token_id",
            "tokenizer.ggml.fim_pre_token_id",
            "tokenizer.ggml.fim_suf_token_id",
            "tokenizer.ggml.fim_mid_token_id",
            "tokenizer.ggml.fim_pad_token_id",
            "tokenizer.ggml.fim_rep_token_id",
            "tokenizer.ggml.fim_sep_token_id",
            "{}.expert_count",
            "{}.expert_group_count",
            "{}.expert_group_used_count",
            "{}.rope.scaling.original_context_length",
            "{}.embedding_length_out",
            "{}.pooling_type",
        ],
    ),
    (
        "f32",
        &[
            "{}.rope.freq_base",
            "{}.rope.scaling.factor",
            "{}.rope.scaling.attn_factor",
            "{}.rope.freq_scale",
            "{}.rope.scale_linear",
            "{}.final_logit_softcapping",
            "{}.attn_logit_softcapping",
        ],
    ),
];

/// Kinds of rotary scaling.
const SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];
/// The most experts that it has room for.
const MOST_EXPERTS: u64 = 1024;

/// What is wrong with the keys that most architectures share. `is_own`: of which the architecture's own table tells the type.
pub(super) fn odd(meta: &Metadata, arch: &str, is_own: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, names) in TYPES {
        let others = names.iter().filter(|name| !name.strip_prefix("{}.").is_some_and(&is_own));
        for name in others.map(|name| name.replace("{}", arch)) {
            if let Some(value) = meta.get(&name).filter(|value| value.kind() != *kind) {
                found.push(format!("{name} is of type {}, and it reads {kind}", value.kind()));
            }
        }
    }
    let key = |end: &str| format!("{arch}.{end}");
    if let Some(kind) = meta.str(&key("rope.scaling.type")).filter(|kind| !SCALINGS.contains(kind)) {
        found.push(format!("it does not know {arch}.rope.scaling.type '{kind}'"));
    }
    for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"].map(key) {
        if let Some(Value::F32(eps)) = meta.get(&name).filter(|v| matches!(v, Value::F32(e) if e.is_nan() || *e < 0.0))
        {
            found.push(format!("{name} is {eps}"));
        }
    }
    if let Some(layers) = meta.uint(&key("block_count")) {
        for name in ["attention.head_count", "attention.head_count_kv", "feed_forward_length"].map(key) {
            let len = match meta.get(&name) {
                Some(Value::Array(Array::U32(all))) => all.len() as u64,
                Some(Value::Array(Array::I32(all))) => all.len() as u64,
                _ => continue,
            };
            if len != layers {
                found.push(format!("{name} has {len} numbers for {layers} blocks"));
            }
        }
    }
    if meta.uint(&key("context_length")) == Some(0) {
        found.push(format!("{arch}.context_length is 0"));
    }
    let drafts = meta.uint(&key("nextn_predict_layers")).unwrap_or(0);
    if meta.uint(&key("block_count")).is_some_and(|layers| drafts > 0 && drafts >= layers) {
        found.push(format!("{arch}.nextn_predict_layers is {drafts}, as many as there are blocks"));
    }
    if let Some(kind) = meta.uint(&key("pooling_type")).filter(|kind| *kind > 4) {
        found.push(format!("it does not know {arch}.pooling_type {kind}"));
    }
    let experts = meta.uint(&key("expert_count")).unwrap_or(0);
    let used = meta.uint(&key("expert_used_count"));
    let by_layer = matches!(meta.get(&key("expert_used_count")), Some(Value::Array(_)));
    if experts > MOST_EXPERTS {
        found.push(format!("{arch}.expert_count is {experts}, and it has room for {MOST_EXPERTS}"));
    } else if experts > 0 && !by_layer && used.unwrap_or(0) == 0 {
        found.push(format!("{arch}.expert_count is {experts}, and expert_used_count says that none is used"));
    } else if used.is_some_and(|used| used > experts && experts != 1) {
        found.push(format!("{arch}.expert_used_count is more than the {experts} of expert_count"));
    }
    found.extend(groups(meta, arch, experts));
    found.extend(suppressed(meta));
    found
}

/// What is wrong with the groups that experts are chosen from.
fn groups(meta: &Metadata, arch: &str, experts: u64) -> Option<String> {
    let uint = |key: &str| meta.uint(&format!("{arch}.{key}")).unwrap_or(0);
    let (groups, used) = (uint("expert_group_count"), uint("expert_group_used_count"));
    if groups == 0 {
        return None;
    }
    if groups >= experts {
        return Some(format!("{arch}.expert_group_count is {groups}, and expert_count {experts}"));
    }
    if groups > 1 && !experts.is_multiple_of(groups) {
        return Some(format!("{arch}.expert_group_count is {groups}, which does not divide the {experts} experts"));
    }
    let bad = groups > 1 && (used == 0 || used >= groups);
    bad.then(|| {
        format!("{arch}.expert_group_used_count is {used} of {groups} groups, where some and not all are meant")
    })
}

/// Tokens that are never chosen: numbers of one type alone.
fn suppressed(meta: &Metadata) -> Option<String> {
    let key = "tokenizer.ggml.suppress_tokens";
    let other = meta.get(key).filter(|value| !matches!(value, Value::Array(Array::I32(_))))?;
    Some(format!("{key} is of type {}, and it reads [i32]", other.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_types_lengths_and_values_are_told() {
        let mut good = Metadata::new();
        good.set("llama.block_count", 2u32);
        good.set("llama.attention.head_count", vec![4u32, 4]);
        good.set("llama.rope.scaling.type", "yarn");
        good.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        good.set("general.file_type", 15u32);
        good.set("tokenizer.ggml.eos_token_id", 2u32);
        assert_eq!(odd(&good, "llama", |_| false), [] as [&str; 0]);
        let with = |key: &str, value: Value| {
            let mut meta = good.clone();
            meta.set(key, value);
            odd(&meta, "llama", |_| false)
        };
        for (key, value) in [
            ("general.file_type", Value::I32(15)),
            ("tokenizer.ggml.eos_token_id", Value::U64(2)),
            ("tokenizer.ggml.add_bos_token", Value::U32(1)),
            ("llama.attention.causal", Value::U32(1)),
            ("llama.rope.scaling.type", Value::String("banana".into())),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
            ("llama.attention.head_count", Value::Array(Array::U32(vec![4, 4, 4]))),
            ("llama.expert_count", Value::U32(2000)),
            ("llama.expert_count", Value::U32(8)),
            ("llama.pooling_type", Value::U32(99)),
            ("llama.expert_used_count", Value::U32(2)),
            ("llama.expert_group_count", Value::U32(1)),
            ("llama.expert_group_count", Value::I32(0)),
            ("tokenizer.ggml.suppress_tokens", Value::String("2".into())),
            ("tokenizer.ggml.suppress_tokens", Value::Array(Array::String(vec!["2".into()]))),
            ("tokenizer.ggml.suppress_tokens", Value::Array(Array::U32(vec![0, 2]))),
        ] {
            assert_eq!(with(key, value.clone()).len(), 1, "{key} {value:?}");
        }
        assert_eq!(with("tokenizer.ggml.suppress_tokens", Value::Array(Array::I32(vec![0, 2]))), [""; 0]);
    }

    #[test]
    fn groups_of_experts_divide_them() {
        let of = |groups: u32, used: u32| {
            let mut meta = Metadata::new();
            meta.set("deepseek2.expert_count", 8u32);
            meta.set("deepseek2.expert_used_count", 2u32);
            meta.set("deepseek2.expert_group_count", groups);
            meta.set("deepseek2.expert_group_used_count", used);
            odd(&meta, "deepseek2", |_| true).len()
        };
        assert_eq!([(0, 0), (1, 0), (1, 1), (4, 2), (4, 3)].map(|(groups, used)| of(groups, used)), [0; 5]);
        assert_eq!([(8, 2), (3, 1), (4, 0), (4, 4), (999, 1)].map(|(groups, used)| of(groups, used)), [1; 5]);
    }
}
