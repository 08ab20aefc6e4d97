"""Writes a checkpoint of the shape of Llama-3.2-1B (1.24 billion parameters, BF16, two shards) with random weights.

For measuring speed and memory only: random weights say nothing about quality.

usage: make_synthetic.py TOKENIZER_DIR OUT_DIR [LAYERS]     (needs numpy; TOKENIZER_DIR gives tokenizer.json)
"""
import json
import os
import shutil
import sys

import numpy as np

tokenizer, out = sys.argv[1:3]
layers = int(sys.argv[3]) if len(sys.argv) > 3 else 16
os.makedirs(out, exist_ok=True)
hidden, ffn, heads, kv, head, vocab = 2048, 8192, 32, 8, 64, 128256
shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
for i in range(layers):
    p = f"model.layers.{i}."
    shapes |= {
        p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,),
        p + "self_attn.q_proj.weight": (heads * head, hidden), p + "self_attn.k_proj.weight": (kv * head, hidden),
        p + "self_attn.v_proj.weight": (kv * head, hidden), p + "self_attn.o_proj.weight": (hidden, heads * head),
        p + "mlp.gate_proj.weight": (ffn, hidden), p + "mlp.up_proj.weight": (ffn, hidden), p + "mlp.down_proj.weight": (hidden, ffn),
    }
names = sorted(shapes)
halves = [names[: len(names) // 2], names[len(names) // 2:]]
index, total = {}, 0
rng = np.random.default_rng(1)
for n, part in enumerate(halves):
    file = f"model-{n + 1:05}-of-00002.safetensors"
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in part:
        size = 2 * int(np.prod(shapes[name]))
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
        at += size
        index[name] = file
    total += at
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, file), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in part:
            left = int(np.prod(shapes[name]))
            while left:
                count = min(left, 1 << 24)
                w = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                if name.endswith("norm.weight"):
                    w += 1
                f.write((w.view(np.uint32) >> 16).astype("<u2").tobytes())
                left -= count
json.dump({"metadata": {"total_size": total}, "weight_map": index}, open(os.path.join(out, "model.safetensors.index.json"), "w"))
rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
           "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head, "vocab_size": vocab,
           "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": rope,
           "tie_word_embeddings": True, "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0,
           "attention_bias": False, "mlp_bias": False}, open(os.path.join(out, "config.json"), "w"), indent=1)
for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
    if os.path.exists(os.path.join(tokenizer, f)):
        shutil.copy(os.path.join(tokenizer, f), out)
