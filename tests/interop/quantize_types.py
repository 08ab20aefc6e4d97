"""Writes tests/golden/llama-quantize-types.json: the type that `llama-quantize --dry-run` gives every tensor of made-up
models of every kind the mixture rules tell apart, under every preset, with and without an importance matrix.

Usage: quantize_types.py LLAMA_QUANTIZE OUT.json    (needs gguf and numpy)
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

PRESETS = """F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K
IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE Q1_0 Q2_0""".split()

# name: arch, layers, heads, kv_heads, experts, tied, cols, extra flags
MODELS = {
    "llama-gqa4": ("llama", 32, 32, 8, 0, False, 256, []),
    "llama-mha-tied": ("llama", 22, 32, 32, 0, True, 256, []),
    "llama-few-layers": ("llama", 7, 8, 4, 0, False, 256, []),
    "llama-80-gqa": ("llama", 80, 64, 8, 0, False, 256, []),
    "llama-80-mha": ("llama", 80, 64, 64, 0, False, 256, []),
    "llama-80-qkv": ("phi3", 80, 64, 8, 0, False, 256, []),
    "qwen2-80": ("qwen2", 80, 64, 8, 0, False, 256, []),
    "qwen2-28-tied": ("qwen2", 28, 12, 2, 0, True, 256, []),
    "mixtral": ("llama", 32, 32, 8, 8, False, 256, []),
    "mixtral-mha": ("llama", 20, 16, 16, 8, False, 256, []),
    "experts4-mha": ("llama", 16, 16, 16, 4, False, 256, []),
    "qwen3moe": ("qwen3moe", 48, 32, 4, 16, False, 256, []),
    "qwen2moe": ("qwen2moe", 24, 16, 16, 60, False, 256, []),
    "falcon-32": ("falcon", 32, 64, 8, 0, False, 256, []),
    "falcon-60-tied": ("falcon", 60, 71, 1, 0, True, 256, []),
    "deci-80": ("deci", 80, 64, 8, 0, False, 256, []),
    "olmo-80": ("olmo", 80, 64, 64, 0, False, 256, []),
    "jais2-68": ("jais2", 68, 64, 64, 0, False, 256, []),
    "llama-embed-80": ("llama-embed", 80, 64, 8, 0, False, 256, []),
    "phi3": ("phi3", 32, 32, 32, 0, False, 256, []),
    "phi3-gqa": ("phi3", 40, 40, 10, 0, False, 256, []),
    "gemma2": ("gemma2", 26, 8, 4, 0, True, 256, []),
    "rows-of-576": ("llama", 30, 9, 3, 0, True, 576, []),
    "rows-of-96-untied": ("llama", 12, 4, 4, 0, False, 96, []),
    "rows-of-40": ("llama", 8, 4, 1, 0, True, 40, []),
    "leave-output": ("llama", 8, 4, 1, 0, False, 256, ["--leave-output-tensor"]),
    "pure": ("llama", 8, 4, 1, 0, False, 256, ["--pure"]),
    "pure-tied": ("llama", 8, 4, 1, 0, True, 576, ["--pure"]),
    "output-type": ("llama", 8, 4, 1, 0, False, 256, ["--output-tensor-type", "q5_k"]),
    "output-type-tied": ("llama", 8, 4, 1, 0, True, 256, ["--output-tensor-type", "q5_k"]),
    "embedding-type": ("llama", 8, 4, 1, 0, False, 256, ["--token-embedding-type", "q3_k"]),
    "embedding-type-tied": ("llama", 8, 4, 1, 0, True, 256, ["--token-embedding-type", "q3_k"]),
    "override": ("llama", 16, 4, 1, 0, False, 256, ["--tensor-type", "blk\\.[2-5]\\.ffn_down=q8_0", "--tensor-type", "attn_v=q6_k"]),
    "override-tied": ("llama", 8, 4, 1, 0, True, 576, ["--tensor-type", "token_embd=q4_k"]),
}


def parts(arch, experts):
    """(name, rows, 3-D) of one layer's matrices."""
    fused = arch in ("phi3", "falcon")
    yield from [("attn_qkv", False)] if fused else [("attn_q", False), ("attn_k", False), ("attn_v", False)]
    yield "attn_output", False
    if experts:
        yield "ffn_gate_inp", False
        yield from [("ffn_gate_exps", True), ("ffn_up_exps", True), ("ffn_down_exps", True)]
        if arch == "qwen2moe":
            yield from [("ffn_gate_inp_shexp", None), ("ffn_gate_shexp", False), ("ffn_up_shexp", False), ("ffn_down_shexp", False)]
    else:
        yield from [] if fused else [("ffn_gate", False)]
        yield from [("ffn_up", False), ("ffn_down", False)]


def make(path, arch, layers, heads, kv_heads, experts, tied, cols):
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(layers)
    w.add_context_length(2048)
    w.add_embedding_length(cols)
    w.add_feed_forward_length(cols)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(64)
    w.add_value_length(64)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_layer_norm_eps(1e-5)
    w.add_rope_dimension_count(64)
    w.add_vocab_size(32)
    w.add_sliding_window(1024)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(2)
        w.add_expert_feed_forward_length(cols)
    two = np.zeros((2, cols), np.float16)
    w.add_tensor("token_embd.weight", two)
    w.add_tensor("output_norm.weight", np.zeros(cols, np.float32))
    if not tied:
        w.add_tensor("output.weight", two)
    for i in range(layers):
        w.add_tensor(f"blk.{i}.attn_norm.weight", np.zeros(cols, np.float32))
        for part, three in parts(arch, experts):
            array = np.zeros(cols, np.float32) if three is None else np.zeros((experts, 2, cols), np.float16) if three else two
            w.add_tensor(f"blk.{i}.{part}.weight", array.astype(np.float32) if part.startswith("ffn_gate_inp") else array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def imatrix(path):
    w = gguf.GGUFWriter(path, "imatrix")
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["none"])
    w.add_uint32("imatrix.chunk_count", 1)
    w.add_uint32("imatrix.chunk_size", 512)
    w.add_tensor("x.weight.in_sum2", np.ones((1, 8), np.float32))
    w.add_tensor("x.weight.counts", np.ones((1, 1), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\S+), size = .*?(?:\((\S+)\))?$")


def types(tool, args, model, preset):
    out = subprocess.run([tool, "--dry-run", *args, model, preset], capture_output=True, text=True)
    text = out.stdout + out.stderr
    if out.returncode != 0:
        return None
    found = [LINE.match(line) for line in text.splitlines() if line.startswith("[")]
    return {m[1]: (m[3] or m[2]).upper() for m in found}


def compact(types):
    """The most common type under `rest`; parts that differ as `part: "Q6_K*4 Q4_K*28"`, over the layers in order."""
    by_part = {}
    for name, ty in types.items():
        m = re.match(r"blk\.(\d+)\.(.*)$", name)
        by_part.setdefault(m[2] if m else name, []).append((int(m[1]) if m else 0, ty))
    rest = max(sorted(set(types.values()) - {"F32"}) or ["F32"], key=list(types.values()).count)
    out = {"rest": rest}
    for part, pairs in sorted(by_part.items()):
        if "norm" in part or "ffn_gate_inp" in part:
            assert {ty for _, ty in pairs} == {"F32"}, part
            continue
        runs = []
        for _, ty in sorted(pairs):
            if runs and runs[-1][0] == ty:
                runs[-1][1] += 1
            else:
                runs.append([ty, 1])
        if [ty for ty, _ in runs] != [rest]:
            out[part] = " ".join(f"{ty}*{n}" for ty, n in runs)
    return out


def main():
    tool, out = sys.argv[1:]
    result = {"made_by": "llama-quantize --dry-run (llama.cpp, end of 2026) by tests/interop/quantize_types.py", "models": {}}
    with tempfile.TemporaryDirectory() as tmp:
        matrix = Path(tmp) / "imatrix.gguf"
        imatrix(matrix)
        for name, (arch, layers, heads, kv_heads, experts, tied, cols, flags) in MODELS.items():
            model = Path(tmp) / "model.gguf"
            make(model, arch, layers, heads, kv_heads, experts, tied, cols)
            presets = {}
            for preset in PRESETS:
                for key, extra in [("plain", []), ("imatrix", ["--imatrix", str(matrix)])]:
                    got = types(tool, flags + extra, str(model), preset)
                    got = got and compact(got)
                    if key == "imatrix" and got == presets.get(preset):
                        continue
                    presets[preset if key == "plain" else preset + " imatrix"] = got
            names = ["token_embd", "output_norm"] + ([] if tied else ["output"])
            names += ["attn_norm"] + [part for part, _ in parts(arch, experts)]
            facts = dict(arch=arch, layers=layers, heads=heads, kv_heads=kv_heads, experts=experts, cols=cols, flags=flags)
            facts["parts"] = " ".join(names)
            result["models"][name] = {**facts, "types": presets}
            print(name, sum(v is None for v in presets.values()), "refused", file=sys.stderr)
    models = result.pop("models")
    with open(out, "w") as f:  # a line per model and preset
        f.write(json.dumps(result)[:-1] + ',\n"models": {')
        for i, (name, model) in enumerate(models.items()):
            presets = model.pop("types")
            f.write(",\n"[not i :] + json.dumps(name) + ": " + json.dumps(model)[:-1] + ', "types": {\n')
            f.write(",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in presets.items()) + "}}")
        f.write("}}\n")


main()
