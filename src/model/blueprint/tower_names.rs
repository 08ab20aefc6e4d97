//! The names of image encoders' tensors, without what names the encoder itself: facts of many publishers, as gguf-py's
//! `tensor_mapping.py` collects them. Names that mean different things in different encoders are their blueprints'.

/// GGUF's stem, and the stems that checkpoints use for it; `{}` is the layer, whose names begin with `layers.{}` here.
#[rustfmt::skip]
pub(super) const TOWER: &[(&str, &[&str])] = &[
    ("v.patch_embd", &[
        "embeddings.patch_embedding", "embeddings.patch_embeddings.projection", "patch_embed.proj", "patch_conv",
        "patch_embedding.linear", "patch_embedder.input_proj", "patch_embedder.patch_embedding", "patch_dense",
    ]),
    ("v.position_embd", &[
        "embeddings.position_embedding", "embeddings.position_embeddings", "pos_embed",
        "patch_embedder.position_embedding_table", "positional_embedding_vlm", "pos_embedding",
    ]),
    ("v.class_embd", &["embeddings.class_embedding", "embeddings.cls_token", "class_embedding"]),
    ("v.norm_embd", &["post_conv_layernorm"]),
    ("v.pre_ln", &["pre_layrnorm", "ln_pre", "layernorm_pre"]),
    ("v.post_ln", &["post_layernorm", "ln_post", "layernorm_post"]),
    ("v.std_bias", &["std_bias"]),
    ("v.std_scale", &["std_scale"]),
    ("v.blk.{}.ln1", &[
        "layers.{}.norm1", "layers.{}.layer_norm1", "layers.{}.layernorm_before", "layers.{}.input_layernorm",
        "layers.{}.attention_norm",
    ]),
    ("v.blk.{}.ln2", &[
        "layers.{}.norm2", "layers.{}.layer_norm2", "layers.{}.layernorm_after", "layers.{}.post_attention_layernorm",
        "layers.{}.ffn_norm",
    ]),
    ("v.blk.{}.attn_qkv", &["layers.{}.attn.qkv"]),
    ("v.blk.{}.attn_q", &[
        "layers.{}.self_attn.q_proj", "layers.{}.attention.q_proj", "layers.{}.attn.q_proj", "layers.{}.attention.wq",
    ]),
    ("v.blk.{}.attn_k", &[
        "layers.{}.self_attn.k_proj", "layers.{}.attention.k_proj", "layers.{}.attn.k_proj", "layers.{}.attention.wk",
    ]),
    ("v.blk.{}.attn_v", &[
        "layers.{}.self_attn.v_proj", "layers.{}.attention.v_proj", "layers.{}.attn.v_proj", "layers.{}.attention.wv",
    ]),
    ("v.blk.{}.attn_out", &[
        "layers.{}.self_attn.out_proj", "layers.{}.self_attn.o_proj", "layers.{}.attn.proj",
        "layers.{}.attention.projection_layer", "layers.{}.attention.o_proj", "layers.{}.attention.wo",
    ]),
    ("v.blk.{}.attn_q_norm", &["layers.{}.self_attn.q_norm", "layers.{}.attn.q_norm", "layers.{}.attention.q_norm"]),
    ("v.blk.{}.attn_k_norm", &["layers.{}.self_attn.k_norm", "layers.{}.attn.k_norm", "layers.{}.attention.k_norm"]),
    ("v.blk.{}.ffn_up", &[
        "layers.{}.mlp.fc1", "layers.{}.mlp.up_proj", "layers.{}.mlp.linear_fc1", "layers.{}.mlp.dense_h_to_4h",
        "layers.{}.feed_forward.up_proj", "layers.{}.feed_forward.w3",
    ]),
    ("v.blk.{}.ffn_gate", &[
        "layers.{}.mlp.gate_proj", "layers.{}.feed_forward.gate_proj", "layers.{}.feed_forward.w1",
    ]),
    ("v.blk.{}.ffn_down", &[
        "layers.{}.mlp.fc2", "layers.{}.mlp.down_proj", "layers.{}.mlp.linear_fc2", "layers.{}.mlp.dense_4h_to_h",
        "layers.{}.feed_forward.down_proj", "layers.{}.feed_forward.w2",
    ]),
    ("v.blk.{}.ls1", &["layers.{}.ls1"]),
    ("v.blk.{}.ls2", &["layers.{}.ls2"]),
];
