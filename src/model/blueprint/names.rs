//! The names that tensors have in checkpoints, by GGUF's name: facts of many publishers, as gguf-py's `tensor_mapping.py`
//! collects them. Which of them an architecture has, its blueprint says.

use super::tower_names::TOWER;
use super::{Blueprint, Part};
use std::collections::HashMap;

/// GGUF's stem, and the stems that checkpoints use for it; `{}` is the layer. `+pre` marks a second list of names for
/// the same stem: which of the two an architecture has decides what the names that both hold mean.
#[rustfmt::skip]
const COMMON: &[(&str, &[&str])] = &[
    ("token_embd", &[
        "gpt_neox.embed_in", "transformer.wte", "transformer.word_embeddings", "word_embeddings",
        "model.embed_tokens", "embed_tokens", "tok_embeddings", "embeddings.word_embeddings",
        "embeddings.tok_embeddings", "wte", "transformer.embd.wte", "model.tok_embeddings", "model.embedding",
        "backbone.embedding", "backbone.embeddings", "transformer.in_out_embed", "embedding.word_embeddings",
        "transformer.token_embeddings", "shared", "rwkv.embeddings", "model.embeddings", "model.word_embeddings",
        "encoder", "model.transformer.wte", "model.embed",
    ]),
    ("masked_embd_centroids", &["masked_embedding.centroids"]),
    ("masked_embd_ordering", &["masked_embedding.token_ordering"]),
    ("token_types", &["embeddings.token_type_embeddings"]),
    ("token_embd_norm", &[
        "word_embeddings_layernorm", "embeddings.LayerNorm", "embeddings.norm", "emb_ln", "transformer.norm",
        "rwkv.blocks.0.pre_ln", "model.pre_ln", "model.layers.0.pre_norm", "backbone.norm", "model.embedding_norm",
    ]),
    ("position_embd", &["transformer.wpe", "embeddings.position_embeddings", "wpe", "model.embed_positions"]),
    ("output", &[
        "embed_out", "lm_head", "output", "word_embeddings_for_head", "lm_head.linear", "output_layer", "head",
        "head.out", "model.lm_head", "model.transformer.ff_out", "head.decoder",
    ]),
    ("dense_2", &["dense_2_out"]),
    ("dense_3", &["dense_3_out"]),
    ("output_norm", &[
        "gpt_neox.final_layer_norm", "transformer.ln_f", "model.norm", "norm", "transformer.norm_f", "ln_f",
        "model.final_layernorm", "lm_head.ln", "model.norm_f", "backbone.norm_f", "transformer.rms_norm",
        "encoder.final_layernorm", "transformer.norm", "rwkv.ln_out", "model.ln_out", "backbone.final_layer_norm",
        "model.transformer.ln_f", "final_norm",
    ]),
    ("rope_freqs", &["rope.freqs", "rotary_pos_emb.inv_freq", "encoder.layers.{}.self_attention.rotary_emb.inv_freq"]),
    ("rope_factors_long", &[]),
    ("rope_factors_short", &[]),
    ("blk.{}.attn_norm", &[
        "gpt_neox.layers.{}.input_layernorm", "transformer.h.{}.ln_1", "transformer.blocks.{}.norm_1",
        "transformer.h.{}.input_layernorm", "h.{}.input_layernorm", "transformer.h.{}.ln_mlp",
        "model.layers.{}.input_layernorm", "layers.{}.attention_norm", "model.layers.{}.ln1", "h.{}.ln_1",
        "transformer.h.{}.ln", "model.layers.layers.{}.norm", "model.layers.layers.{}.pre_mixer_norm",
        "model.layers.{}.attention_norm", "model.layers.{}.norm", "backbone.layers.{}.norm",
        "transformer.decoder_layer.{}.rms_norm", "model.layers.{}.pre_attn_norm",
        "transformer.blocks.{}.norm_attn_norm.norm_1", "encoder.layers.{}.input_layernorm",
        "transformer.layers.{}.attn_norm", "rwkv.blocks.{}.ln1", "layers.{}.input_layernorm",
        "transformer_encoder.{}.attention_norm", "layers.{}.attn_norm", "model.layers.{}.operator_norm",
        "model.transformer.blocks.{}.attn_norm", "model.layers.{}.attention_layernorm",
        "model.layers.{}.pre_attention_layernorm",
    ]),
    ("blk.{}.attn_norm_2", &[
        "transformer.h.{}.ln_attn", "encoder.layer.{}.layer_norm_1", "rwkv.blocks.{}.ln2", "model.layers.{}.ln2",
        "model.layers.{}.post_attention_layernorm", "model.layers.{}.self_attn.norm",
    ]),
    ("blk.{}.attn_qkv", &[
        "gpt_neox.layers.{}.attention.query_key_value", "transformer.h.{}.attn.c_attn",
        "transformer.blocks.{}.attn.Wqkv", "transformer.blocks.{}.norm_attn_norm.attn.Wqkv",
        "transformer.h.{}.self_attention.query_key_value", "h.{}.self_attention.query_key_value",
        "model.layers.{}.self_attn.query_key_value", "model.layers.{}.attention.query_key_value", "h.{}.attn.c_attn",
        "transformer.h.{}.mixer.Wqkv", "encoder.layers.{}.attn.Wqkv", "encoder.layers.{}.mixer.Wqkv",
        "model.layers.{}.self_attn.qkv_proj", "model.layers.layers.{}.mixer.qkv_proj",
        "encoder.layers.{}.self_attention.query_key_value", "transformer.layers.{}.attn.qkv_proj",
        "transformer_encoder.{}.qkv", "layers.{}.attn.Wqkv",
        "model.layers.{}.self_attn.language_expert_query_key_value", "model.layers.{}.linear_attn.in_proj_qkv",
    ]),
    ("blk.{}.attn_q", &[
        "model.layers.{}.self_attn.q_proj", "model.layers.{}.attention.q_proj", "layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.q_proj_no_perm", "layers.{}.attention.wq",
        "encoder.layer.{}.attention.self.query", "transformer.layer.{}.attention.q_lin",
        "transformer.h.{}.attn.q_proj", "model.layers.layers.{}.self_attn.q_proj", "model.layers.{}.attention.wq",
        "transformer.decoder_layer.{}.multi_head_attention.query", "transformer.h.{}.attn.attention.q_proj",
        "model.transformer.blocks.{}.q_proj", "backbone.layers.{}.mixer.q_proj", "model.blocks.{}.attn.attn_query",
    ]),
    ("blk.{}.attn_k", &[
        "model.layers.{}.self_attn.k_proj", "model.layers.{}.attention.k_proj", "layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.k_proj_no_perm", "layers.{}.attention.wk", "encoder.layer.{}.attention.self.key",
        "transformer.layer.{}.attention.k_lin", "transformer.h.{}.attn.k_proj", "transformer.h.{}.attn.k",
        "model.layers.layers.{}.self_attn.k_proj", "model.layers.{}.attention.wk",
        "transformer.decoder_layer.{}.multi_head_attention.key", "transformer.h.{}.attn.attention.k_proj",
        "model.transformer.blocks.{}.k_proj", "backbone.layers.{}.mixer.k_proj", "model.blocks.{}.attn.attn_key",
    ]),
    ("blk.{}.attn_v", &[
        "model.layers.{}.self_attn.v_proj", "model.layers.{}.attention.v_proj", "layers.{}.self_attn.v_proj",
        "layers.{}.attention.wv", "encoder.layer.{}.attention.self.value", "transformer.layer.{}.attention.v_lin",
        "transformer.h.{}.attn.v_proj", "transformer.h.{}.attn.v", "model.layers.layers.{}.self_attn.v_proj",
        "model.layers.{}.attention.wv", "transformer.decoder_layer.{}.multi_head_attention.value",
        "transformer.h.{}.attn.attention.v_proj", "model.transformer.blocks.{}.v_proj",
        "backbone.layers.{}.mixer.v_proj", "model.blocks.{}.attn.attn_value",
    ]),
    ("blk.{}.attn_output", &[
        "gpt_neox.layers.{}.attention.dense", "transformer.h.{}.attn.c_proj", "transformer.blocks.{}.attn.out_proj",
        "transformer.h.{}.self_attention.dense", "h.{}.self_attention.dense", "model.layers.{}.self_attn.o_proj",
        "model.layers.{}.attention.o_proj", "model.layers.{}.attention.dense", "layers.{}.self_attn.o_proj",
        "model.layers.{}.self_attn.out_proj", "model.layers.{}.self_attn.linear_attn", "layers.{}.attention.wo",
        "encoder.layer.{}.attention.output.dense", "layers.{}.attn.Wo", "transformer.layer.{}.attention.out_lin",
        "transformer.h.{}.attn.out_proj", "model.layers.{}.self_attn.dense", "h.{}.attn.c_proj",
        "transformer.h.{}.mixer.out_proj", "model.layers.layers.{}.self_attn.o_proj",
        "model.layers.layers.{}.mixer.o_proj", "model.layers.{}.attention.wo", "encoder.layers.{}.attn.out_proj",
        "encoder.layers.{}.mixer.out_proj", "transformer.decoder_layer.{}.multi_head_attention.linear",
        "transformer.blocks.{}.norm_attn_norm.attn.out_proj", "encoder.layers.{}.self_attention.dense",
        "transformer.layers.{}.attn.out_proj", "transformer.h.{}.attn.attention.out_proj",
        "transformer_encoder.{}.wo", "model.transformer.blocks.{}.attn_out", "backbone.layers.{}.mixer.o_proj",
        "model.layers.{}.self_attn.language_expert_dense", "model.blocks.{}.attn.attn_resid",
    ]),
    ("blk.{}.attn_output_norm", &[
        "encoder.layer.{}.attention.output.LayerNorm", "transformer.layer.{}.sa_layer_norm",
        "encoder.layers.{}.norm1", "transformer.decoder_layer.{}.rms_norm_1", "model.layers.{}.post_attn_norm",
        "transformer.blocks.{}.norm_attn_norm.norm_2",
    ]),
    ("blk.{}.post_attention_norm", &[
        "model.layers.{}.post_attention_layernorm", "layers.{}.post_attention_layernorm",
        "model.layers.{}.post_self_attn_layernorm", "model.layers.layers.{}.post_mixer_norm.weight",
    ]),
    ("blk.{}.attn_rot_embd", &[
        "model.layers.{}.self_attn.rotary_emb.inv_freq", "layers.{}.attention.inner_attention.rope.freqs",
        "model.layers.layers.{}.self_attn.rotary_emb.inv_freq", "transformer.h.{}.attn.rotary_emb.inv_freq",
    ]),
    ("blk.{}.attn_sinks", &[
        "model.layers.{}.self_attn.sinks", "model.layers.{}.self_attn.attention_sink_bias",
        "model.layers.{}.self_attn.learnable_sink_param",
    ]),
    ("blk.{}.attn_gate", &[
        "model.layers.{}.self_attn.gate_proj", "model.layers.{}.linear_attn.in_proj_z",
        "model.layers.{}.self_attn.g_proj", "model.layers.{}.self_attn.output_gate",
        "model.layers.{}.self_attn.linear_gate",
    ]),
    ("blk.{}.ffn_norm", &[
        "gpt_neox.layers.{}.post_attention_layernorm", "transformer.h.{}.ln_2", "h.{}.post_attention_layernorm",
        "transformer.blocks.{}.norm_2", "model.layers.{}.post_attention_layernorm", "layers.{}.ffn_norm",
        "model.layers.{}.ln2", "h.{}.ln_2", "model.layers.{}.ffn_norm", "transformer.decoder_layer.{}.rms_norm_2",
        "model.layers.{}.pre_moe_norm", "encoder.layers.{}.post_attention_layernorm",
        "transformer.layers.{}.ffn_norm", "model.layers.{}.pre_ff_layernorm", "model.layers.{}.pre_moe_layernorm",
        "transformer_encoder.{}.ffn_norm", "model.layers.layers.{}.pre_mlp_norm",
        "model.transformer.blocks.{}.ff_norm", "layers.{}.post_attention_layernorm",
        "model.layers.{}.feedforward_layernorm", "model.layers.{}.pre_mlp_layernorm", "layers.{}.mlp_norm",
    ]),
    ("blk.{}.ffn_norm+pre", &[
        "model.layers.{}.pre_feedforward_layernorm", "layers.{}.pre_feedforward_layernorm",
        "model.layers.{}.pre_ff_layernorm.weight", "model.layers.{}.pre_mlp_layernorm",
    ]),
    ("blk.{}.pre_ffw_norm_2", &["model.layers.{}.pre_feedforward_layernorm_2"]),
    ("blk.{}.post_ffw_norm", &[
        "model.layers.{}.post_feedforward_layernorm", "layers.{}.post_feedforward_layernorm",
        "model.layers.{}.post_mlp_layernorm", "model.layers.layers.{}.post_mlp_norm.weight",
        "model.layers.{}.feed_forward.up_proj", "model.layers.{}.post_moe_norm",
    ]),
    ("blk.{}.post_ffw_norm_1", &["model.layers.{}.post_feedforward_layernorm_1"]),
    ("blk.{}.post_ffw_norm_2", &["model.layers.{}.post_feedforward_layernorm_2"]),
    ("blk.{}.ffn_gate_inp", &[
        "layers.{}.feed_forward.gate", "model.layers.{}.block_sparse_moe.gate", "model.layers.{}.mlp.gate",
        "transformer.decoder_layer.{}.router", "transformer.blocks.{}.ffn.router.layer",
        "model.layers.{}.block_sparse_moe.router.layer", "model.layers.{}.block_sparse_moe.router",
        "model.layers.{}.feed_forward.router", "encoder.layers.{}.mlp.router.layer", "model.layers.{}.mlp.router",
        "model.layers.{}.mlp.gate.wg", "model.layers.{}.block_sparse_moe.primary_router",
        "model.layers.{}.feed_forward.gate", "model.layers.{}.mlp.router.gate", "layers.{}.gate",
        "backbone.layers.{}.mixer.gate", "model.layers.{}.moe.gate", "model.layers.{}.router.proj",
    ]),
    ("blk.{}.ffn_gate_inp_shexp", &["model.layers.{}.mlp.shared_expert_gate"]),
    ("blk.{}.exp_probs_b", &[
        "model.layers.{}.mlp.gate.e_score_correction", "model.layers.{}.mlp.moe_statics.e_score_correction",
        "model.layers.{}.mlp.gate.expert_bias", "model.layers.{}.mlp.expert_bias",
        "model.layers.{}.feed_forward.expert_bias", "model.layers.{}.block_sparse_moe.e_score_correction",
        "backbone.layers.{}.mixer.gate.e_score_correction", "model.layers.{}.mlp.e_score_correction",
        "model.layers.{}.block_sparse_moe.gate.e_score_correction", "model.layers.{}.moe.router_bias",
        "model.layers.{}.mlp.experts.e_score_correction",
    ]),
    ("blk.{}.ffn_up", &[
        "gpt_neox.layers.{}.mlp.dense_h_to_4h", "transformer.h.{}.mlp.c_fc", "transformer.blocks.{}.ffn.up_proj",
        "transformer.h.{}.mlp.dense_h_to_4h", "h.{}.mlp.dense_h_to_4h", "model.layers.{}.mlp.up_proj",
        "layers.{}.mlp.up_proj", "layers.{}.feed_forward.w3", "encoder.layer.{}.intermediate.dense",
        "layers.{}.mlp.Wi", "transformer.layer.{}.ffn.lin1", "transformer.h.{}.mlp.fc_in",
        "transformer.h.{}.mlp.linear_3", "model.layers.{}.mlp.dense_h_to_4h", "transformer.h.{}.mlp.w1",
        "h.{}.mlp.c_fc", "transformer.h.{}.mlp.fc1", "model.layers.{}.mlp.fc1", "model.layers.{}.mlp.gate_up_proj",
        "model.layers.layers.{}.mlp.up_proj", "model.layers.layers.{}.mlp.gate_up_proj",
        "model.layers.{}.feed_forward.w3", "encoder.layers.{}.mlp.fc11", "encoder.layers.{}.mlp.fc1",
        "model.layers.{}.mlp.c_fc", "encoder.layer.{}.mlp.gated_layers_v", "encoder.layer.{}.mlp.gated_layers",
        "encoder.layer.{}.mlp.up_gated_layer", "model.layers.{}.residual_mlp.w3",
        "encoder.layers.{}.mlp.dense_h_to_4h", "transformer.h.{}.mlp.c_fc_1", "model.layers.{}.feed_forward.up_proj",
        "transformer_encoder.{}.ffn.w12", "model.layers.{}.block_sparse_moe.up",
        "model.transformer.blocks.{}.up_proj", "backbone.layers.{}.mixer.up_proj",
        "model.layers.{}.mlp.language_mlp.up_proj", "model.blocks.{}.mlp.mlp_linear",
    ]),
    ("blk.{}.ffn_up_exps", &[
        "layers.{}.feed_forward.experts.w3", "transformer.decoder_layer.{}.moe.linear_v",
        "transformer.blocks.{}.ffn.experts.mlp.v1", "model.layers.{}.mlp.experts.up_proj",
        "model.layers.{}.block_sparse_moe.experts.w3", "model.layers.{}.feed_forward.experts.up_proj",
        "encoder.layers.{}.mlp.experts.mlp.w1", "model.layers.{}.block_sparse_moe.experts.up",
        "model.layers.{}.moe.up_proj",
    ]),
    ("blk.{}.ffn_up_shexp", &[
        "model.layers.{}.mlp.shared_expert.up_proj", "model.layers.{}.mlp.shared_experts.up_proj",
        "model.layers.{}.feed_forward.shared_expert.up_proj", "model.layers.{}.feed_forward.down_proj",
        "model.layers.{}.mlp.shared_mlp.up_proj", "layers.{}.shared_experts.w3",
        "backbone.layers.{}.mixer.shared_experts.up_proj", "model.layers.{}.block_sparse_moe.shared_experts.up_proj",
        "model.layers.{}.share_expert.up_proj",
    ]),
    ("blk.{}.ffn_up_chexps", &["model.layers.{}.mlp.chunk_experts.up_proj"]),
    ("blk.{}.ffn", &["transformer.blocks.{}.ffn.act"]),
    ("blk.{}.ffn_gate", &[
        "model.layers.{}.mlp.gate_proj", "layers.{}.mlp.gate_proj", "layers.{}.feed_forward.w1",
        "transformer.h.{}.mlp.w2", "transformer.h.{}.mlp.c_fc2", "model.layers.layers.{}.mlp.gate_proj",
        "model.layers.{}.feed_forward.w1", "encoder.layers.{}.mlp.fc12", "encoder.layer.{}.mlp.gated_layers_w",
        "transformer.h.{}.mlp.linear_1", "model.layers.{}.residual_mlp.w1", "transformer.h.{}.mlp.c_fc_0",
        "model.layers.{}.feed_forward.gate_proj", "model.transformer.blocks.{}.ff_proj",
        "model.layers.{}.mlp.language_mlp.gate_proj", "model.blocks.{}.mlp.mlp_gate",
    ]),
    ("blk.{}.ffn_gate_exps", &[
        "layers.{}.feed_forward.experts.w1", "transformer.decoder_layer.{}.moe.linear",
        "transformer.blocks.{}.ffn.experts.mlp.w1", "model.layers.{}.mlp.experts.gate_proj",
        "model.layers.{}.block_sparse_moe.experts.w1", "model.layers.{}.feed_forward.experts.gate_proj",
        "model.layers.{}.block_sparse_moe.experts.gate", "model.layers.{}.moe.gate_proj",
    ]),
    ("blk.{}.ffn_gate_shexp", &[
        "model.layers.{}.mlp.shared_expert.gate_proj", "model.layers.{}.mlp.shared_experts.gate_proj",
        "model.layers.{}.feed_forward.shared_expert.gate_proj", "model.layers.{}.mlp.shared_mlp.gate_proj",
        "layers.{}.shared_experts.w1", "model.layers.{}.block_sparse_moe.shared_experts.gate_proj",
        "model.layers.{}.share_expert.gate_proj",
    ]),
    ("blk.{}.ffn_gate_chexps", &["model.layers.{}.mlp.chunk_experts.gate_proj"]),
    ("blk.{}.ffn_gate_up_exps", &["model.layers.{}.mlp.experts.gate_up_proj", "model.layers.{}.experts.gate_up_proj"]),
    ("blk.{}.ffn_latent_down", &["backbone.layers.{}.mixer.fc1_latent_proj"]),
    ("blk.{}.ffn_latent_up", &["backbone.layers.{}.mixer.fc2_latent_proj"]),
    ("blk.{}.ffn_down", &[
        "gpt_neox.layers.{}.mlp.dense_4h_to_h", "transformer.h.{}.mlp.c_proj", "transformer.blocks.{}.ffn.down_proj",
        "transformer.h.{}.mlp.dense_4h_to_h", "h.{}.mlp.dense_4h_to_h", "model.layers.{}.mlp.down_proj",
        "layers.{}.mlp.down_proj", "layers.{}.feed_forward.w2", "encoder.layer.{}.output.dense", "layers.{}.mlp.Wo",
        "transformer.layer.{}.ffn.lin2", "transformer.h.{}.mlp.fc_out", "model.layers.{}.mlp.dense_4h_to_h",
        "h.{}.mlp.c_proj", "transformer.h.{}.mlp.fc2", "model.layers.{}.mlp.fc2",
        "model.layers.layers.{}.mlp.down_proj", "model.layers.{}.feed_forward.w2", "encoder.layers.{}.mlp.fc2",
        "model.layers.{}.mlp.c_proj", "encoder.layer.{}.mlp.wo", "transformer.layers.{}.ffn.proj_2",
        "model.layers.{}.residual_mlp.w2", "encoder.layer.{}.mlp.down_layer", "encoder.layers.{}.mlp.dense_4h_to_h",
        "model.layers.h.{}.mlp.c_proj", "model.layers.{}.feed_forward.down_proj", "transformer_encoder.{}.ffn.w3",
        "model.layers.{}.block_sparse_moe.down", "model.transformer.blocks.{}.ff_out",
        "backbone.layers.{}.mixer.down_proj", "model.layers.{}.mlp.language_mlp.down_proj",
        "model.blocks.{}.mlp.mlp_resid",
    ]),
    ("blk.{}.ffn_down_exps", &[
        "layers.{}.feed_forward.experts.w2", "transformer.decoder_layer.{}.moe.linear_1",
        "transformer.blocks.{}.ffn.experts.mlp.w2", "model.layers.{}.mlp.experts.down_proj",
        "model.layers.{}.block_sparse_moe.output_linear", "model.layers.{}.block_sparse_moe.experts.w2",
        "model.layers.{}.feed_forward.experts.down_proj", "encoder.layers.{}.mlp.experts.mlp.w2",
        "model.layers.{}.block_sparse_moe.experts.down", "model.layers.{}.moe.down_proj",
        "model.layers.{}.experts.down_proj",
    ]),
    ("blk.{}.ffn_down_shexp", &[
        "model.layers.{}.mlp.shared_expert.down_proj", "model.layers.{}.mlp.shared_experts.down_proj",
        "model.layers.{}.feed_forward.shared_expert.down_proj", "model.layers.{}.shared_mlp.output_linear",
        "model.layers.{}.mlp.shared_mlp.down_proj", "layers.{}.shared_experts.w2",
        "backbone.layers.{}.mixer.shared_experts.down_proj",
        "model.layers.{}.block_sparse_moe.shared_experts.down_proj", "model.layers.{}.share_expert.down_proj",
    ]),
    ("blk.{}.ffn_down_chexps", &["model.layers.{}.mlp.chunk_experts.down_proj"]),
    ("blk.{}.attn_q_norm", &[
        "encoder.layers.{}.self_attention.q_layernorm", "model.layers.{}.self_attn.q_layernorm",
        "model.layers.{}.self_attn.query_layernorm", "model.layers.{}.attention.query_layernorm",
        "model.layers.{}.self_attn.q_norm", "layers.{}.self_attn.q_norm", "transformer.blocks.{}.attn.q_ln",
        "encoder.layer.{}.attention.self.layer_norm_q", "transformer.layers.{}.attn.q_norm",
        "model.layers.layers.{}.mixer.q", "model.layers.layers.{}.mixer.q_norm",
        "model.blocks.{}.attn.head_gain.head_g",
    ]),
    ("blk.{}.attn_k_norm", &[
        "encoder.layers.{}.self_attention.k_layernorm", "model.layers.{}.self_attn.k_layernorm",
        "model.layers.{}.self_attn.key_layernorm", "model.layers.{}.attention.key_layernorm",
        "model.layers.{}.self_attn.k_norm", "layers.{}.self_attn.k_norm", "transformer.blocks.{}.attn.k_ln",
        "encoder.layer.{}.attention.self.layer_norm_k", "transformer.layers.{}.attn.k_norm",
        "model.layers.layers.{}.mixer.k", "model.layers.layers.{}.mixer.k_norm",
        "model.layers.{}.self_attn.k_rope_only_layernorm",
    ]),
    ("blk.{}.layer_output_norm", &[
        "encoder.layer.{}.output.LayerNorm", "transformer.layer.{}.output_layer_norm", "encoder.layers.{}.norm2",
        "transformer.decoder_layer.{}.rms_norm_3", "encoder.layer.{}.mlp.layernorm", "encoder.layer.{}.layer_norm_2",
        "model.layers.{}.final_layernorm",
    ]),
    ("blk.{}.layer_output_scale", &["model.layers.{}.layer_scalar", "model.blocks.{}.embed_skip.a_g"]),
    ("per_layer_token_embd", &["model.embed_tokens_per_layer"]),
    ("per_layer_model_proj", &["model.per_layer_model_projection"]),
    ("per_layer_proj_norm", &["model.per_layer_projection_norm"]),
    ("altup_proj", &["model.altup_projections"]),
    ("altup_unembd_proj", &["model.altup_unembed_projections"]),
    ("blk.{}.inp_gate", &["model.layers.{}.per_layer_input_gate"]),
    ("blk.{}.proj", &["model.layers.{}.per_layer_projection"]),
    ("blk.{}.post_norm", &["model.layers.{}.post_per_layer_input_norm"]),
    ("blk.{}.altup_correct_coef", &["model.layers.{}.altup.correction_coefs"]),
    ("blk.{}.altup_correct_scale", &["model.layers.{}.altup.correct_output_scale"]),
    ("blk.{}.altup_predict_coef", &["model.layers.{}.altup.prediction_coefs"]),
    ("blk.{}.altup_router", &["model.layers.{}.altup.modality_router"]),
    ("blk.{}.altup_router_norm", &["model.layers.{}.altup.router_norm"]),
    ("blk.{}.laurel_l", &["model.layers.{}.laurel.linear_left"]),
    ("blk.{}.laurel_r", &["model.layers.{}.laurel.linear_right"]),
    ("blk.{}.laurel_post_norm", &["model.layers.{}.laurel.post_laurel_norm"]),
    ("blk.{}.ssm_in", &[
        "model.layers.{}.in_proj", "backbone.layers.{}.mixer.in_proj", "model.layers.{}.mamba.in_proj",
        "model.layers.layers.{}.mixer.in_proj", "model.layers.{}.linear_attn.in_proj_qkvz",
    ]),
    ("blk.{}.ssm_conv1d", &[
        "model.layers.{}.conv1d", "backbone.layers.{}.mixer.conv1d", "model.layers.{}.mamba.conv1d",
        "model.layers.layers.{}.mixer.conv1d", "model.layers.{}.linear_attn.conv1d",
    ]),
    ("blk.{}.ssm_x", &[
        "model.layers.{}.x_proj", "backbone.layers.{}.mixer.x_proj", "model.layers.{}.mamba.x_proj",
        "model.layers.layers.{}.mixer.bcdt_proj",
    ]),
    ("blk.{}.ssm_dt", &[
        "model.layers.{}.dt_proj", "backbone.layers.{}.mixer.dt_proj", "model.layers.{}.mamba.dt_proj",
        "model.layers.layers.{}.mixer.dt_proj", "model.layers.{}.linear_attn.dt_proj", "backbone.layers.{}.mixer.dt",
        "model.layers.{}.self_attn.dt_proj", "model.layers.{}.attention.dt_proj",
    ]),
    ("blk.{}.ssm_dt_norm", &["model.layers.layers.{}.mixer.dt_norm.weight", "model.layers.{}.mamba.dt_layernorm"]),
    ("blk.{}.ssm_a", &[
        "model.layers.{}.A_log", "backbone.layers.{}.mixer.A_log", "model.layers.{}.mamba.A_log",
        "model.layers.layers.{}.mixer.A_log", "model.layers.{}.linear_attn.A_log", "model.layers.{}.self_attn.A_log",
        "model.layers.{}.attention.A_log",
    ]),
    ("blk.{}.ssm_b_norm", &[
        "model.layers.{}.mamba.b_layernorm", "model.layers.{}.mamba.B_layernorm",
        "model.layers.layers.{}.mixer.B_norm.weight",
    ]),
    ("blk.{}.ssm_c_norm", &[
        "model.layers.{}.mamba.c_layernorm", "model.layers.{}.mamba.C_layernorm",
        "model.layers.layers.{}.mixer.C_norm.weight",
    ]),
    ("blk.{}.ssm_d", &[
        "model.layers.{}.D", "backbone.layers.{}.mixer.D", "model.layers.{}.mamba.D",
        "model.layers.layers.{}.mixer.D",
    ]),
    ("blk.{}.ssm_norm", &[
        "model.layers.{}.mamba.norm", "model.layers.{}.linear_attn.norm", "backbone.layers.{}.mixer.norm",
        "model.layers.{}.self_attn.o_norm", "model.layers.{}.attention.o_norm",
    ]),
    ("blk.{}.ssm_out", &[
        "model.layers.{}.out_proj", "backbone.layers.{}.mixer.out_proj", "model.layers.{}.mamba.out_proj",
        "model.layers.{}.linear_attn.out_proj", "model.layers.layers.{}.mixer.out_proj",
    ]),
    ("blk.{}.ssm_alpha", &["model.layers.{}.linear_attn.in_proj_a"]),
    ("blk.{}.ssm_ba", &["model.layers.{}.linear_attn.in_proj_ba"]),
    ("blk.{}.ssm_conv1d_q", &["model.layers.{}.self_attn.q_conv1d", "model.layers.{}.attention.q_conv1d"]),
    ("blk.{}.ssm_conv1d_k", &["model.layers.{}.self_attn.k_conv1d", "model.layers.{}.attention.k_conv1d"]),
    ("blk.{}.ssm_conv1d_v", &["model.layers.{}.self_attn.v_conv1d", "model.layers.{}.attention.v_conv1d"]),
    ("blk.{}.ssm_f_a", &["model.layers.{}.self_attn.f_a_proj"]),
    ("blk.{}.ssm_f_b", &["model.layers.{}.self_attn.f_b_proj"]),
    ("blk.{}.ssm_beta", &[
        "model.layers.{}.linear_attn.in_proj_b", "model.layers.{}.self_attn.b_proj",
        "model.layers.{}.attention.b_proj",
    ]),
    ("blk.{}.ffn_routed_down", &["model.layers.{}.block_sparse_moe.routed_expert_down_proj"]),
    ("blk.{}.ffn_routed_up", &["model.layers.{}.block_sparse_moe.routed_expert_up_proj"]),
    ("blk.{}.ffn_routed_norm", &["model.layers.{}.block_sparse_moe.routed_expert_norm"]),
    ("blk.{}.ssm_g_a", &["model.layers.{}.self_attn.g_a_proj"]),
    ("blk.{}.ssm_g_b", &["model.layers.{}.self_attn.g_b_proj"]),
    ("blk.{}.time_mix_w0", &["model.layers.{}.attention.w0"]),
    ("blk.{}.time_mix_w1", &[
        "rwkv.blocks.{}.attention.time_maa_w1", "model.layers.{}.self_attn.time_maa_w1",
        "model.layers.{}.attention.w1",
    ]),
    ("blk.{}.time_mix_w2", &[
        "rwkv.blocks.{}.attention.time_maa_w2", "model.layers.{}.self_attn.time_maa_w2",
        "model.layers.{}.attention.w2",
    ]),
    ("blk.{}.time_mix_a0", &["model.layers.{}.attention.a0"]),
    ("blk.{}.time_mix_a1", &["model.layers.{}.attention.a1"]),
    ("blk.{}.time_mix_a2", &["model.layers.{}.attention.a2"]),
    ("blk.{}.time_mix_v0", &["model.layers.{}.attention.v0"]),
    ("blk.{}.time_mix_v1", &["model.layers.{}.attention.v1"]),
    ("blk.{}.time_mix_v2", &["model.layers.{}.attention.v2"]),
    ("blk.{}.time_mix_g1", &["model.layers.{}.attention.g1"]),
    ("blk.{}.time_mix_g2", &["model.layers.{}.attention.g2"]),
    ("blk.{}.time_mix_k_k", &["model.layers.{}.attention.k_k"]),
    ("blk.{}.time_mix_k_a", &["model.layers.{}.attention.k_a"]),
    ("blk.{}.time_mix_r_k", &["model.layers.{}.attention.r_k"]),
    ("blk.{}.time_mix_lerp_x", &["rwkv.blocks.{}.attention.time_maa_x", "model.layers.{}.self_attn.time_maa_x"]),
    ("blk.{}.time_mix_lerp_k", &["rwkv.blocks.{}.attention.time_maa_k", "model.layers.{}.self_attn.time_maa_k"]),
    ("blk.{}.time_mix_lerp_v", &["rwkv.blocks.{}.attention.time_maa_v", "model.layers.{}.self_attn.time_maa_v"]),
    ("blk.{}.time_mix_lerp_r", &["rwkv.blocks.{}.attention.time_maa_r", "model.layers.{}.self_attn.time_maa_r"]),
    ("blk.{}.time_mix_lerp_g", &["rwkv.blocks.{}.attention.time_maa_g", "model.layers.{}.self_attn.time_maa_g"]),
    ("blk.{}.time_mix_lerp_w", &["rwkv.blocks.{}.attention.time_maa_w", "model.layers.{}.self_attn.time_maa_w"]),
    ("blk.{}.time_mix_first", &["rwkv.blocks.{}.attention.time_faaaa"]),
    ("blk.{}.time_mix_decay", &["rwkv.blocks.{}.attention.time_decay", "model.layers.{}.self_attn.time_decay"]),
    ("blk.{}.time_mix_decay_w1", &[
        "rwkv.blocks.{}.attention.time_decay_w1", "model.layers.{}.self_attn.time_decay_w1",
    ]),
    ("blk.{}.time_mix_decay_w2", &[
        "rwkv.blocks.{}.attention.time_decay_w2", "model.layers.{}.self_attn.time_decay_w2",
    ]),
    ("blk.{}.time_mix_key", &[
        "rwkv.blocks.{}.attention.key", "model.layers.{}.self_attn.k_proj", "model.layers.{}.attention.key",
        "model.layers.{}.attention.k_proj",
    ]),
    ("blk.{}.time_mix_value", &[
        "rwkv.blocks.{}.attention.value", "model.layers.{}.self_attn.v_proj", "model.layers.{}.attention.value",
        "model.layers.{}.attention.v_proj",
    ]),
    ("blk.{}.time_mix_receptance", &[
        "rwkv.blocks.{}.attention.receptance", "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.attention.receptance", "model.layers.{}.attention.r_proj",
    ]),
    ("blk.{}.time_mix_gate", &["rwkv.blocks.{}.attention.gate", "model.layers.{}.self_attn.gate"]),
    ("blk.{}.time_mix_ln", &["rwkv.blocks.{}.attention.ln_x", "model.layers.{}.attention.ln_x"]),
    ("blk.{}.time_mix_output", &[
        "rwkv.blocks.{}.attention.output", "model.layers.{}.self_attn.o_proj", "model.layers.{}.attention.output",
        "model.layers.{}.attention.o_proj",
    ]),
    ("blk.{}.channel_mix_lerp_k", &["rwkv.blocks.{}.feed_forward.time_maa_k", "model.layers.{}.feed_forward.x_k"]),
    ("blk.{}.channel_mix_lerp_r", &["rwkv.blocks.{}.feed_forward.time_maa_r"]),
    ("blk.{}.channel_mix_key", &["rwkv.blocks.{}.feed_forward.key", "model.layers.{}.feed_forward.key"]),
    ("blk.{}.channel_mix_receptance", &["rwkv.blocks.{}.feed_forward.receptance"]),
    ("blk.{}.channel_mix_value", &["rwkv.blocks.{}.feed_forward.value", "model.layers.{}.feed_forward.value"]),
    ("blk.{}.attn_q_a", &[
        "model.layers.{}.self_attn.q_a_proj", "model.layers.{}.attention.q_a_proj", "layers.{}.attention.wq_a",
    ]),
    ("blk.{}.attn_q_b", &[
        "model.layers.{}.self_attn.q_b_proj", "model.layers.{}.attention.q_b_proj", "layers.{}.attention.wq_b",
    ]),
    ("blk.{}.attn_kv_a_mqa", &[
        "model.layers.{}.self_attn.kv_a_proj_with_mqa", "model.layers.{}.attention.kv_a_proj_with_mqa",
        "layers.{}.attention.wkv_a_with_mqa",
    ]),
    ("blk.{}.attn_kv_b", &["model.layers.{}.self_attn.kv_b_proj", "model.layers.{}.attention.kv_b_proj"]),
    ("blk.{}.attn_k_b", &[
        "model.layers.{}.self_attn.k_b_proj", "model.layers.{}.attention.k_b_proj", "layers.{}.attention.k_b_proj",
    ]),
    ("blk.{}.attn_v_b", &[
        "model.layers.{}.self_attn.v_b_proj", "model.layers.{}.attention.v_b_proj", "layers.{}.attention.v_b_proj",
    ]),
    ("blk.{}.attn_q_a_norm", &[
        "model.layers.{}.self_attn.q_a_layernorm", "model.layers.{}.attention.q_a_layernorm",
        "layers.{}.attention.q_a_norm",
    ]),
    ("blk.{}.attn_kv_a_norm", &[
        "model.layers.{}.self_attn.kv_a_layernorm", "model.layers.{}.attention.kv_a_layernorm",
        "layers.{}.attention.kv_a_norm",
    ]),
    ("blk.{}.attn_sub_norm", &["model.layers.{}.self_attn.inner_attn_ln"]),
    ("blk.{}.ffn_sub_norm", &["model.layers.{}.mlp.ffn_layernorm"]),
    ("dec.blk.{}.attn_norm", &["decoder.block.{}.layer.0.layer_norm"]),
    ("dec.blk.{}.attn_q", &["decoder.block.{}.layer.0.SelfAttention.q"]),
    ("dec.blk.{}.attn_k", &["decoder.block.{}.layer.0.SelfAttention.k"]),
    ("dec.blk.{}.attn_v", &["decoder.block.{}.layer.0.SelfAttention.v"]),
    ("dec.blk.{}.attn_o", &["decoder.block.{}.layer.0.SelfAttention.o"]),
    ("dec.blk.{}.attn_rel_b", &["decoder.block.{}.layer.0.SelfAttention.relative_attention_bias"]),
    ("dec.blk.{}.cross_attn_norm", &["decoder.block.{}.layer.1.layer_norm"]),
    ("dec.blk.{}.cross_attn_q", &["decoder.block.{}.layer.1.EncDecAttention.q"]),
    ("dec.blk.{}.cross_attn_k", &["decoder.block.{}.layer.1.EncDecAttention.k"]),
    ("dec.blk.{}.cross_attn_v", &["decoder.block.{}.layer.1.EncDecAttention.v"]),
    ("dec.blk.{}.cross_attn_o", &["decoder.block.{}.layer.1.EncDecAttention.o"]),
    ("dec.blk.{}.cross_attn_rel_b", &["decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias"]),
    ("dec.blk.{}.ffn_norm", &["decoder.block.{}.layer.2.layer_norm"]),
    ("dec.blk.{}.ffn_gate", &["decoder.block.{}.layer.2.DenseReluDense.wi_0"]),
    ("dec.blk.{}.ffn_up", &[
        "decoder.block.{}.layer.2.DenseReluDense.wi", "decoder.block.{}.layer.2.DenseReluDense.wi_1",
    ]),
    ("dec.blk.{}.ffn_down", &["decoder.block.{}.layer.2.DenseReluDense.wo"]),
    ("dec.output_norm", &["decoder.final_layer_norm"]),
    ("enc.blk.{}.attn_norm", &["encoder.block.{}.layer.0.layer_norm"]),
    ("enc.blk.{}.attn_q", &["encoder.block.{}.layer.0.SelfAttention.q"]),
    ("enc.blk.{}.attn_k", &["encoder.block.{}.layer.0.SelfAttention.k"]),
    ("enc.blk.{}.attn_v", &["encoder.block.{}.layer.0.SelfAttention.v"]),
    ("enc.blk.{}.attn_o", &["encoder.block.{}.layer.0.SelfAttention.o"]),
    ("enc.blk.{}.attn_rel_b", &["encoder.block.{}.layer.0.SelfAttention.relative_attention_bias"]),
    ("enc.blk.{}.ffn_norm", &["encoder.block.{}.layer.1.layer_norm"]),
    ("enc.blk.{}.ffn_gate", &["encoder.block.{}.layer.1.DenseReluDense.wi_0"]),
    ("enc.blk.{}.ffn_up", &[
        "encoder.block.{}.layer.1.DenseReluDense.wi", "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    ]),
    ("enc.blk.{}.ffn_down", &["encoder.block.{}.layer.1.DenseReluDense.wo"]),
    ("blk.{}.vis_up", &["model.layers.{}.mlp.vision_mlp.up_proj"]),
    ("blk.{}.vis_gate", &["model.layers.{}.mlp.vision_mlp.gate_proj"]),
    ("blk.{}.vis_down", &["model.layers.{}.mlp.vision_mlp.down_proj"]),
    ("blk.{}.vis_attn_output", &["model.layers.{}.self_attn.vision_expert_dense"]),
    ("blk.{}.vis_attn_qkv", &["model.layers.{}.self_attn.vision_expert_query_key_value"]),
    ("blk.{}.indexer.k_norm", &["model.layers.{}.self_attn.indexer.k_norm", "model.layers.{}.self_attn.index_k_norm"]),
    ("blk.{}.indexer.proj", &["model.layers.{}.self_attn.indexer.weights_proj"]),
    ("blk.{}.indexer.attn_k", &["model.layers.{}.self_attn.indexer.wk"]),
    ("blk.{}.indexer.attn_q_b", &["model.layers.{}.self_attn.indexer.wq_b"]),
    ("blk.{}.indexer_compressor_gate", &["model.layers.{}.self_attn.indexer.index_kpool_compress_gate"]),
    ("blk.{}.indexer_compressor_ape", &["model.layers.{}.self_attn.indexer.index_kpool_compress_ape"]),
    ("blk.{}.indexer.q_proj", &["model.layers.{}.self_attn.index_q_proj"]),
    ("blk.{}.indexer.k_proj", &["model.layers.{}.self_attn.index_k_proj"]),
    ("blk.{}.indexer.q_norm", &["model.layers.{}.self_attn.index_q_norm"]),
    ("blk.{}.hc_attn_fn", &["model.layers.{}.hc_attn_layer.hc_pre.hc_fn", "model.layers.{}.hc_attn_fn"]),
    ("blk.{}.hc_attn_base", &["model.layers.{}.hc_attn_layer.hc_pre.hc_base", "model.layers.{}.hc_attn_base"]),
    ("blk.{}.hc_attn_scale", &["model.layers.{}.hc_attn_layer.hc_pre.hc_scale", "model.layers.{}.hc_attn_scale"]),
    ("blk.{}.hc_ffn_fn", &["model.layers.{}.hc_mlp_layer.hc_pre.hc_fn", "model.layers.{}.hc_ffn_fn"]),
    ("blk.{}.hc_ffn_base", &["model.layers.{}.hc_mlp_layer.hc_pre.hc_base", "model.layers.{}.hc_ffn_base"]),
    ("blk.{}.hc_ffn_scale", &["model.layers.{}.hc_mlp_layer.hc_pre.hc_scale", "model.layers.{}.hc_ffn_scale"]),
    ("output_hc_fn", &["model.hc_head.hc_head_fn"]),
    ("output_hc_base", &["model.hc_head.hc_head_base"]),
    ("output_hc_scale", &["model.hc_head.hc_head_scale"]),
    ("enc.output_norm", &["encoder.final_layer_norm", "layer_norm", "model.hidden_norm", "encoder.output_norm_enc"]),
    ("fc", &["model.fc", "encoder.fc"]),
    ("markov_w1", &["model.markov_head.markov_w1"]),
    ("markov_w2", &["model.markov_head.markov_w2"]),
    ("conf_proj", &["model.confidence_head.proj"]),
    ("blk.{}.attn_conv_base", &["model.layers.{}.attention_conv.base_kernel"]),
    ("blk.{}.attn_conv_proj", &["model.layers.{}.attention_conv.kernel_projection"]),
    ("blk.{}.ffn_conv_base", &["model.layers.{}.mlp_conv.base_kernel"]),
    ("blk.{}.ffn_conv_proj", &["model.layers.{}.mlp_conv.kernel_projection"]),
    ("selector_predecessor", &["model.candidate_selector.predecessor_codebook"]),
    ("selector_successor", &["model.candidate_selector.successor_codebook"]),
    ("selector_hidden", &["model.candidate_selector.hidden_projection"]),
    ("cls", &["classifier", "classifier.dense", "pre_classifier", "dense", "head.dense"]),
    ("cls.output", &["classifier.out_proj"]),
    ("cls.norm", &["head.norm"]),
    ("blk.{}.shortconv.conv", &["model.layers.{}.conv.conv"]),
    ("blk.{}.shortconv.in_proj", &["model.layers.{}.conv.in_proj"]),
    ("blk.{}.shortconv.out_proj", &["model.layers.{}.conv.out_proj"]),
    ("nextn.pre_projection", &["pre_projection"]),
    ("nextn.post_projection", &["post_projection"]),
    ("blk.{}.nextn.eh_proj", &["model.layers.{}.eh_proj"]),
    ("blk.{}.nextn.embed_tokens", &["model.layers.{}.embed_tokens"]),
    ("blk.{}.nextn.enorm", &["model.layers.{}.enorm"]),
    ("blk.{}.nextn.hnorm", &["model.layers.{}.hnorm"]),
    ("blk.{}.nextn.shared_head_head", &["model.layers.{}.shared_head.head"]),
    ("blk.{}.nextn.shared_head_norm", &["model.layers.{}.shared_head.norm"]),
];

/// What follows a stem. The last four are limits of Gemma 4's clipped layers.
const SUFFIXES: [&str; 6] = [".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min"];

/// GGUF's stem without its block.
fn short(gguf: &str) -> &str {
    gguf.strip_prefix("blk.{}.").unwrap_or(gguf)
}

#[cfg(test)]
pub(super) fn knows(stem: &str) -> bool {
    COMMON.iter().any(|(gguf, _)| short(gguf) == stem)
}

/// The names of one architecture.
pub(super) struct Names {
    /// By whole names.
    whole: HashMap<&'static str, &'static str>,
    /// By the part before `.weight` or `.bias`.
    stems: HashMap<&'static str, &'static str>,
}

impl Names {
    pub fn of(blueprint: &Blueprint) -> Self {
        let mut stems = HashMap::new();
        if blueprint.part == Part::Projector {
            stems.extend(TOWER.iter().flat_map(|(gguf, sources)| sources.iter().map(|source| (*source, *gguf))));
        }
        for stem in blueprint.tensors.split_whitespace() {
            for (gguf, sources) in COMMON.iter().filter(|(gguf, _)| short(gguf) == stem) {
                let gguf = gguf.strip_suffix("+pre").unwrap_or(gguf);
                stems.extend(sources.iter().map(|source| (*source, gguf)));
            }
        }
        let is_whole = |gguf: &str| gguf.ends_with(".weight") || gguf.ends_with(".bias") || gguf.ends_with(".scale");
        let (whole, own): (Vec<_>, Vec<_>) = blueprint.names.iter().copied().partition(|(_, gguf)| is_whole(gguf));
        stems.extend(own);
        Self { whole: whole.into_iter().collect(), stems }
    }

    /// GGUF's name of a tensor: of the whole name, or of the part before `.weight` or `.bias`, which stays.
    pub fn find(&self, name: &str, layer: Option<usize>) -> Option<String> {
        let pattern = match layer {
            Some(layer) => name.replacen(&format!(".{layer}."), ".{}.", 1),
            None => name.to_string(),
        };
        let placed = |gguf: &str| match layer {
            Some(layer) => gguf.replace("{}", &layer.to_string()),
            None => gguf.to_string(),
        };
        if let Some(gguf) = self.whole.get(pattern.as_str()).or_else(|| self.stems.get(pattern.as_str())) {
            return Some(placed(gguf));
        }
        SUFFIXES.into_iter().find_map(|suffix| {
            let gguf = self.stems.get(pattern.strip_suffix(suffix)?)?;
            Some(placed(gguf) + suffix)
        })
    }
}
