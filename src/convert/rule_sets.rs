//! Rules for the types of tensors that go by a name, where llama.cpp's presets serve models poorly. Off unless asked for.

use super::recipe::TypeRule;
use crate::quant::GgmlType;

/// By name: patterns and their types.
const SETS: &[(&str, &[(&str, GgmlType)])] = &[
    // The presets know none of `ssm_*`, and leave attention at the base type where layer 0 is recurrent.
    ("hybrid", &[(r"^blk\.\d+\.(ssm_|shortconv\.|attn_)", GgmlType::Q8_0)]),
];

/// The rules of a set; `None` for what is no name of one.
pub fn named(name: &str) -> Option<Vec<TypeRule>> {
    let (_, rules) = SETS.iter().find(|set| set.0.eq_ignore_ascii_case(name.trim()))?;
    Some(rules.iter().map(|(pattern, ty)| TypeRule { pattern: pattern.to_string(), ty: (*ty).into() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrids_keep_what_mixes_tokens() {
        let rules = named(" Hybrid").unwrap();
        let pattern = regex::Regex::new(&rules[0].pattern).unwrap();
        let matched = ["blk.0.ssm_out.weight", "blk.11.attn_qkv.weight", "blk.2.shortconv.in_proj.weight"];
        assert!(matched.iter().all(|name| pattern.is_match(name)));
        assert!(
            !["blk.0.ffn_down.weight", "token_embd.weight", "enc.blk.0.attn_q.weight"]
                .iter()
                .any(|n| pattern.is_match(n))
        );
        assert_eq!((rules[0].ty.file, named("ssm_out=q8_0")), (Some(GgmlType::Q8_0), None));
    }
}
