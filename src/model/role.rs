//! What a tensor does in a model. It names meanings and sorts them into kinds; which tensor has which meaning is in
//! `families`.

/// What a tensor does in the model. One variant per GGUF tensor name.
#[allow(missing_docs)] // Most names say it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    TokenEmbedding,
    Output,
    OutputNorm,
    OutputNormBias,
    /// The norm in front of attention.
    AttnNorm,
    AttnNormBias,
    AttnQ,
    AttnK,
    AttnV,
    /// Query, key and value rows in one matrix, in this order (phi3).
    AttnQkv,
    AttnOutput,
    AttnQBias,
    AttnKBias,
    AttnVBias,
    AttnOutputBias,
    /// Norms over each query and key head (qwen3, gemma3).
    AttnQNorm,
    AttnKNorm,
    /// The norm on the result of attention, before it is added to the residual (gemma2, gemma3).
    PostAttnNorm,
    /// The norm in front of the feed-forward block.
    FfnNorm,
    FfnNormBias,
    /// The norm on the result of the feed-forward block (gemma2, gemma3).
    PostFfnNorm,
    FfnGate,
    FfnUp,
    /// Gate rows, then up rows, in one matrix; GGUF calls it `ffn_up` (phi3).
    FfnGateUp,
    FfnDown,
    FfnGateBias,
    FfnUpBias,
    FfnDownBias,
    Router,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    /// Any other linear layer that reads what a block's mixer reads: gates, rates, latent vectors, what goes into a state.
    MixerInput,
    /// A linear layer of a model whose family is not known.
    OpaqueLinear,
    /// Any other tensor of such a model.
    Unknown,
}

impl Role {
    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        use Role::*;
        matches!(self, OutputNorm | AttnNorm | AttnQNorm | AttnKNorm | PostAttnNorm | FfnNorm | PostFfnNorm)
    }

    /// Whether it is a bias.
    pub fn is_bias(self) -> bool {
        use Role::*;
        let norms = matches!(self, OutputNormBias | AttnNormBias | FfnNormBias);
        norms
            || matches!(
                self,
                AttnQBias | AttnKBias | AttnVBias | AttnOutputBias | FfnGateBias | FfnUpBias | FfnDownBias
            )
    }

    /// The role of the bias of a linear layer or norm, where some family has one. Biases of fused matrices and of experts are none of
    /// the families' here.
    pub fn bias(self) -> Option<Role> {
        use Role::*;
        match self {
            OutputNorm => Some(OutputNormBias),
            AttnNorm => Some(AttnNormBias),
            FfnNorm => Some(FfnNormBias),
            AttnQ => Some(AttnQBias),
            AttnK => Some(AttnKBias),
            AttnV => Some(AttnVBias),
            AttnOutput => Some(AttnOutputBias),
            FfnGate => Some(FfnGateBias),
            FfnUp => Some(FfnUpBias),
            FfnDown => Some(FfnDownBias),
            _ => None,
        }
    }

    /// What a tensor does that GGUF calls so, without `blk.N.`; of a model without a family that runs.
    pub fn of_gguf(stem: &str) -> Role {
        use Role::*;
        match stem {
            "token_embd.weight" => TokenEmbedding,
            "output.weight" => Output,
            "output_norm.weight" => OutputNorm,
            "attn_q.weight" => AttnQ,
            "attn_k.weight" => AttnK,
            "attn_v.weight" => AttnV,
            "attn_qkv.weight" => AttnQkv,
            "attn_output.weight" | "ssm_out.weight" | "shortconv.out_proj.weight" => AttnOutput,
            "attn_gate.weight"
            | "attn_q_a.weight"
            | "attn_kv_a_mqa.weight"
            | "ssm_in.weight"
            | "ssm_ba.weight"
            | "ssm_alpha.weight"
            | "ssm_beta.weight"
            | "ssm_f_a.weight"
            | "ssm_g_a.weight"
            | "shortconv.in_proj.weight" => MixerInput,
            "ffn_gate.weight" => FfnGate,
            "ffn_up.weight" => FfnUp,
            "ffn_down.weight" => FfnDown,
            "ffn_gate_inp.weight" => Router,
            "ffn_gate_inp_shexp.weight" => SharedRouter,
            "ffn_gate_exps.weight" => ExpertGate,
            "ffn_up_exps.weight" | "ffn_gate_up_exps.weight" => ExpertUp,
            "ffn_down_exps.weight" => ExpertDown,
            "ffn_gate_shexp.weight" => SharedGate,
            "ffn_up_shexp.weight" => SharedUp,
            "ffn_down_shexp.weight" => SharedDown,
            _ => Unknown,
        }
    }

    /// Weights of all experts of a layer, stacked to `[experts, out, in]`.
    pub fn is_expert(self) -> bool {
        matches!(self, Role::ExpertGate | Role::ExpertUp | Role::ExpertDown)
    }

    /// Whether it chooses experts.
    pub fn is_router(self) -> bool {
        matches!(self, Role::Router | Role::SharedRouter)
    }

    /// A linear layer of a feed-forward block, or of all experts.
    pub fn is_feed_forward(self) -> bool {
        use Role::*;
        let dense = matches!(self, FfnGate | FfnUp | FfnGateUp | FfnDown);
        dense || self.is_expert() || matches!(self, SharedGate | SharedUp | SharedDown)
    }

    /// A linear layer inside a block: what quantization is about, apart from embeddings and the output.
    pub fn is_linear(self) -> bool {
        !self.is_norm()
            && !self.is_bias()
            && !self.is_router()
            && !matches!(self, Role::TokenEmbedding | Role::Output | Role::Unknown)
    }
}
