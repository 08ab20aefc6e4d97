"""Writes a checkpoint of the shape of Llama-3.2-1B (1.24 billion parameters, two shards) or Llama-3.1-8B (8.03 billion, four shards), BF16,
with random weights.

For measuring speed and memory only: random weights say nothing about quality. With --holes only the first layer has weights and the rest are
holes in the files, zeros that take no room on the disk.

usage: make_synthetic.py TOKENIZER_DIR OUT_DIR [--shape 1b|8b] [--layers N] [--holes]     (needs numpy; TOKENIZER_DIR gives tokenizer.json)
"""
import argparse
import json
import os
import shutil

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("tokenizer")
parser.add_argument("out")
parser.add_argument("--shape", choices=["1b", "8b"], default="1b")
parser.add_argument("--layers", type=int)
parser.add_argument("--holes", action="store_true")
args = parser.parse_args()
tokenizer, out = args.tokenizer, args.out
os.makedirs(out, exist_ok=True)
vocab, kv = 128256, 8
hidden, ffn, heads, head, layers, shards, tied = (2048, 8192, 32, 64, 16, 2, True) if args.shape == "1b" else (4096, 14336, 32, 128, 32, 4, False)
layers = args.layers or layers
shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
if not tied:
    shapes["lm_head.weight"] = (vocab, hidden)
for i in range(layers):
    p = f"model.layers.{i}."
    shapes |= {
        p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,),
        p + "self_attn.q_proj.weight": (heads * head, hidden), p + "self_attn.k_proj.weight": (kv * head, hidden),
        p + "self_attn.v_proj.weight": (kv * head, hidden), p + "self_attn.o_proj.weight": (hidden, heads * head),
        p + "mlp.gate_proj.weight": (ffn, hidden), p + "mlp.up_proj.weight": (ffn, hidden), p + "mlp.down_proj.weight": (hidden, ffn),
    }
names = sorted(shapes)
parts = [names[len(names) * i // shards: len(names) * (i + 1) // shards] for i in range(shards)]
index, total = {}, 0
rng = np.random.default_rng(1)
for n, part in enumerate(parts):
    file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
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
            if args.holes and not name.startswith("model.layers.0.") and not name.endswith("norm.weight"):
                f.seek(2 * left, os.SEEK_CUR)
                continue
            while left:
                count = min(left, 1 << 24)
                w = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                if name.endswith("norm.weight"):
                    w += 1
                f.write((w.view(np.uint32) >> 16).astype("<u2").tobytes())
                left -= count
        f.truncate(f.seek(0, os.SEEK_CUR))
json.dump({"metadata": {"total_size": total}, "weight_map": index}, open(os.path.join(out, "model.safetensors.index.json"), "w"))
rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
           "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head, "vocab_size": vocab,
           "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": rope,
           "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0,
           "attention_bias": False, "mlp_bias": False}, open(os.path.join(out, "config.json"), "w"), indent=1)
for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
    if os.path.exists(os.path.join(tokenizer, f)):
        shutil.copy(os.path.join(tokenizer, f), out)
