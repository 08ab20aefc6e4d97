//! The tensors of a family, in groups that families share: names on both sides, shapes, and when they exist. Data only.

use crate::model::family::Dim::{self, *};
use crate::model::family::Source::{self, Half, One as At, PerExpert};
use crate::model::family::{Row, When};
use crate::model::role::Role;

const fn row(sources: &'static [Source], gguf: &'static str, role: Role, shape: &'static [Dim], when: When) -> Row {
    Row { sources, gguf, role, shape, when }
}

macro_rules! rows {
    ($name:ident: $($when:ident $role:ident $gguf:literal [$($dim:ident),*] <- $($source:expr),+;)*) => {
        pub(super) const $name: &[Row] = &[$(row(&[$($source),+], $gguf, Role::$role, &[$($dim),*], When::$when)),*];
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
    Attention      AttnQ          "blk.{layer}.attn_q.weight"      [Q, Hidden]  <- At("model.layers.{layer}.self_attn.q_proj.weight");
    Attention      AttnK          "blk.{layer}.attn_k.weight"      [Kv, Hidden] <- At("model.layers.{layer}.self_attn.k_proj.weight");
    Attention      AttnV          "blk.{layer}.attn_v.weight"      [V, Hidden]  <- At("model.layers.{layer}.self_attn.v_proj.weight");
    Attention      AttnOutput     "blk.{layer}.attn_output.weight" [Hidden, AttnOut] <- At("model.layers.{layer}.self_attn.o_proj.weight");
    QkvBias        AttnQBias      "blk.{layer}.attn_q.bias"        [Q]          <- At("model.layers.{layer}.self_attn.q_proj.bias");
    QkvBias        AttnKBias      "blk.{layer}.attn_k.bias"        [Kv]         <- At("model.layers.{layer}.self_attn.k_proj.bias");
    QkvBias        AttnVBias      "blk.{layer}.attn_v.bias"        [V]          <- At("model.layers.{layer}.self_attn.v_proj.bias");
    AttnOutputBias AttnOutputBias "blk.{layer}.attn_output.bias"   [Hidden]     <- At("model.layers.{layer}.self_attn.o_proj.bias");
}

rows! { FUSED_ATTENTION:
    Attention AttnQkv    "blk.{layer}.attn_qkv.weight"    [Qkv, Hidden] <- At("model.layers.{layer}.self_attn.qkv_proj.weight");
    Attention AttnOutput "blk.{layer}.attn_output.weight" [Hidden, AttnOut] <- At("model.layers.{layer}.self_attn.o_proj.weight");
}

rows! { HEAD_NORMS:
    Attention AttnQNorm "blk.{layer}.attn_q_norm.weight" [Head] <- At("model.layers.{layer}.self_attn.q_norm.weight");
    Attention AttnKNorm "blk.{layer}.attn_k_norm.weight" [Head] <- At("model.layers.{layer}.self_attn.k_norm.weight");
}

rows! { MLP:
    Dense     FfnGate     "blk.{layer}.ffn_gate.weight" [Ffn, Hidden] <- At("model.layers.{layer}.mlp.gate_proj.weight");
    Dense     FfnUp       "blk.{layer}.ffn_up.weight"   [Ffn, Hidden] <- At("model.layers.{layer}.mlp.up_proj.weight");
    Dense     FfnDown     "blk.{layer}.ffn_down.weight" [Hidden, Ffn] <- At("model.layers.{layer}.mlp.down_proj.weight");
    DenseBias FfnGateBias "blk.{layer}.ffn_gate.bias"   [Ffn]         <- At("model.layers.{layer}.mlp.gate_proj.bias");
    DenseBias FfnUpBias   "blk.{layer}.ffn_up.bias"     [Ffn]         <- At("model.layers.{layer}.mlp.up_proj.bias");
    DenseBias FfnDownBias "blk.{layer}.ffn_down.bias"   [Hidden]      <- At("model.layers.{layer}.mlp.down_proj.bias");
}

rows! { FUSED_MLP:
    Dense FfnGateUp "blk.{layer}.ffn_up.weight"   [TwoFfn, Hidden] <- At("model.layers.{layer}.mlp.gate_up_proj.weight");
    Dense FfnDown   "blk.{layer}.ffn_down.weight" [Hidden, Ffn]    <- At("model.layers.{layer}.mlp.down_proj.weight");
}

rows! { MIXTRAL_EXPERTS:
    Moe Router     "blk.{layer}.ffn_gate_inp.weight"  [Experts, Hidden] <-
        At("model.layers.{layer}.block_sparse_moe.gate.weight"), At("model.layers.{layer}.mlp.gate.weight");
    Moe ExpertGate "blk.{layer}.ffn_gate_exps.weight" [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight"),
        At("model.layers.{layer}.block_sparse_moe.switch_mlp.gate_proj.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 0);
    Moe ExpertDown "blk.{layer}.ffn_down_exps.weight" [Experts, Hidden, ExpertFfn] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight"),
        At("model.layers.{layer}.block_sparse_moe.switch_mlp.down_proj.weight"),
        At("model.layers.{layer}.mlp.experts.down_proj");
    Moe ExpertUp   "blk.{layer}.ffn_up_exps.weight"   [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight"),
        At("model.layers.{layer}.block_sparse_moe.switch_mlp.up_proj.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 1);
}

rows! { QWEN_EXPERTS:
    Moe Router     "blk.{layer}.ffn_gate_inp.weight"  [Experts, Hidden] <- At("model.layers.{layer}.mlp.gate.weight");
    Moe ExpertDown "blk.{layer}.ffn_down_exps.weight" [Experts, Hidden, ExpertFfn] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"),
        At("model.layers.{layer}.mlp.switch_mlp.down_proj.weight"),
        At("model.layers.{layer}.mlp.experts.down_proj");
    Moe ExpertGate "blk.{layer}.ffn_gate_exps.weight" [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"),
        At("model.layers.{layer}.mlp.switch_mlp.gate_proj.weight"),
        Half("model.layers.{layer}.mlp.experts.gate_up_proj", 0);
    Moe ExpertUp   "blk.{layer}.ffn_up_exps.weight"   [Experts, ExpertFfn, Hidden] <-
        PerExpert("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"),
        At("model.layers.{layer}.mlp.switch_mlp.up_proj.weight"),
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

rows! { OUTPUT_NORM_BIAS:
    Always OutputNormBias "output_norm.bias" [Hidden] <- At("model.norm.bias");
}

rows! { TWO_NORM_BIASES:
    Always AttnNormBias "blk.{layer}.attn_norm.bias" [Hidden] <- At("model.layers.{layer}.input_layernorm.bias");
    Always FfnNormBias  "blk.{layer}.ffn_norm.bias"  [Hidden] <- At("model.layers.{layer}.post_attention_layernorm.bias");
}

rows! { ONE_NORM:
    Always AttnNorm "blk.{layer}.attn_norm.weight" [Hidden] <- At("model.layers.{layer}.input_layernorm.weight");
}

rows! { POST_NORMS:
    Always PostAttnNorm "blk.{layer}.post_attention_norm.weight" [Hidden] <- At("model.layers.{layer}.post_attention_layernorm.weight");
    Always PostFfnNorm  "blk.{layer}.post_ffw_norm.weight"       [Hidden] <- At("model.layers.{layer}.post_feedforward_layernorm.weight");
}

rows! { WIDE_NORMS:
    Attention AttnQNorm "blk.{layer}.attn_q_norm.weight" [Q]  <- At("model.layers.{layer}.self_attn.q_norm.weight");
    Attention AttnKNorm "blk.{layer}.attn_k_norm.weight" [Kv] <- At("model.layers.{layer}.self_attn.k_norm.weight");
}

rows! { UP_DOWN:
    Dense     FfnUp       "blk.{layer}.ffn_up.weight"   [Ffn, Hidden] <- At("model.layers.{layer}.mlp.up_proj.weight");
    Dense     FfnDown     "blk.{layer}.ffn_down.weight" [Hidden, Ffn] <- At("model.layers.{layer}.mlp.down_proj.weight");
    DenseBias FfnUpBias   "blk.{layer}.ffn_up.bias"     [Ffn]         <- At("model.layers.{layer}.mlp.up_proj.bias");
    DenseBias FfnDownBias "blk.{layer}.ffn_down.bias"   [Hidden]      <- At("model.layers.{layer}.mlp.down_proj.bias");
}
