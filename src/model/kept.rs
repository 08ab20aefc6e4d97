//! What is F32 in a GGUF file of any type.

/// Ends of names that stay F32 whatever their shape.
const F32_ENDS: [&str; 28] = [
    "_norm.weight",
    ".ffn_gate_inp.weight",
    ".ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    ".ssm_conv1d.weight",
    ".ssm_conv1d_q.weight",
    ".ssm_conv1d_k.weight",
    ".ssm_conv1d_v.weight",
    ".shortconv.conv.weight",
    ".time_mix_first.weight",
    ".time_mix_w1.weight",
    ".time_mix_w2.weight",
    ".time_mix_lerp_fused.weight",
    ".time_mix_decay_w1.weight",
    ".time_mix_decay_w2.weight",
    ".altup_correct_coef.weight",
    ".altup_predict_coef.weight",
    ".indexer.proj.weight",
    ".indexer_compressor_ape.weight",
    ".indexer_compressor_gate.weight",
    "hc_attn_fn.weight",
    "hc_attn_base.weight",
    "hc_attn_scale.weight",
    "hc_ffn_fn.weight",
    "hc_ffn_base.weight",
    "hc_ffn_scale.weight",
    "output_hc_fn.weight",
];

/// Whether a tensor stays F32 in a file of any type, as llama.cpp's converter and loader demand: vectors, norms, routers,
/// and small tensors of some architectures. `name` is the GGUF name; matrices of adapters are named after what they change.
pub fn keeps_f32(name: &str, shape: &[usize]) -> bool {
    let is_matrix = [".weight", ".lora_a", ".lora_b"].iter().any(|end| name.ends_with(end));
    shape.len() <= 1 || !is_matrix || F32_ENDS.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_norms_and_routers_keep_f32() {
        assert!(keeps_f32("blk.0.attn_q.bias", &[64]));
        assert!(keeps_f32("output_norm.weight", &[64]));
        assert!(keeps_f32("blk.3.ffn_gate_inp.weight", &[8, 64]));
        assert!(keeps_f32("blk.3.ffn_gate_inp_shexp.weight", &[1, 64]));
        assert!(!keeps_f32("blk.3.ffn_gate.weight", &[8, 64]));
        assert!(!keeps_f32("token_embd.weight", &[8, 64]));
    }
}
